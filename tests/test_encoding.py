"""``encode``: what it takes and what it gives, whatever windows and batches it works in."""

import threading
from concurrent.futures import ThreadPoolExecutor

import naive
import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from simcse_kit import SentenceEncoder, UserError, blas
from simcse_kit import encoding as encoding_module
from simcse_kit.locate import locate


def open_encoder(name):
    return SentenceEncoder.from_pretrained(name, device="cpu")


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint):
    """An encoder that no test changes."""
    return open_encoder(tiny_checkpoint("bert"))


@pytest.mark.reference
def test_sts_sentences_have_the_vectors_of_sentence_transformers(minilm, data_dir):
    """On every tenth pair; the whole set takes a minute and shows no more."""
    lines = (data_dir / "sts/raw/STSBenchmark/sts-test.csv").read_text(encoding="utf-8").splitlines()[::10]
    texts = [text for line in lines for text in line.split("\t")[5:7]]
    assert len(texts) == 276
    vectors, peer = minilm.encode(texts), SentenceTransformer(str(locate("all-MiniLM-L6-v2")), device="cpu")
    assert naive.largest_difference(vectors, peer.encode(texts)) < 2e-5
    assert (minilm.pooling, minilm.normalize, minilm.max_length, minilm.dimension) == ("mean", True, 256, 384)
    assert (vectors.dtype, vectors.shape) == (np.float32, (276, 384))


def test_a_vector_does_not_depend_on_its_neighbours(minilm, sentences):
    alone = np.stack([minilm.encode(sentence) for sentence in sentences])
    for budget in (1, 64, 10**6):
        assert naive.largest_difference(minilm.encode(sentences, token_budget=budget), alone) < 1e-5
    among_long_ones = minilm.encode([text for short in sentences for text in (short, short + " and on it went" * 60)])
    assert naive.largest_difference(among_long_ones[::2], alone) < 1e-5
    assert naive.largest_difference(minilm.encode(sentences[::-1])[::-1], alone) < 1e-5


def containers(texts):
    import datasets
    import pandas

    return {
        "tuple": tuple(texts),
        "generator": (text for text in texts),
        "dict keys": dict.fromkeys(texts).keys(),
        "numpy array": np.array(texts),
        "pandas series": pandas.Series(texts, index=range(5, 5 + len(texts))),
        "datasets column": datasets.Dataset.from_dict({"text": texts})["text"],
    }


def test_any_iterable_of_strings_is_encoded_in_order(tiny, sentences):
    expected = tiny.encode(sentences)
    for name, texts in containers(sentences).items():
        assert naive.largest_difference(tiny.encode(texts), expected) == 0, name


def test_order_is_kept_over_windows(tiny, sentences, monkeypatch):
    expected = tiny.encode(sentences)
    monkeypatch.setattr(encoding_module, "_WINDOW", 5)
    assert naive.largest_difference(tiny.encode(iter(sentences)), expected) < 1e-6
    with pytest.raises(UserError, match=r"^sentence 7 is NoneType, not a string: None$"):
        tiny.encode([*sentences[:7], None])


def test_a_progress_display_changes_nothing(tiny, sentences):
    assert naive.largest_difference(tiny.encode(sentences, show_progress=True), tiny.encode(sentences)) == 0


def test_one_string_gives_one_vector(tiny, sentences):
    vector = tiny.encode(sentences[0])
    assert vector.shape == (32,)
    assert naive.largest_difference(vector, tiny.encode([sentences[0]])[0]) == 0
    assert tiny.encode("").shape == (32,)


@pytest.mark.parametrize("nothing", [[], (), iter([]), np.array([], dtype=str)])
def test_no_sentences_give_no_vectors(tiny, nothing):
    vectors = tiny.encode(nothing)
    assert (vectors.shape, vectors.dtype) == ((0, 32), np.float32)


def test_a_text_of_any_length_is_cut_to_the_limit(tiny):
    vector = tiny.encode("the cat sleeps " * 50_000)
    assert naive.largest_difference(vector, tiny.encode("the cat sleeps " * 32)) == 0
    assert naive.largest_difference(vector, tiny.encode("the cat sleeps " * 31)) > 1e-3


def test_max_length_counts_special_tokens(tiny):
    text = "the cat sleeps . the cat sleeps ."
    assert naive.largest_difference(tiny.encode(text, max_length=5), tiny.encode("the cat sleeps")) == 0
    assert [len(ids) for ids in tiny.tokenize([text, "the"], max_length=5)] == [5, 3]
    for wrong in (2, 97):
        with pytest.raises(UserError, match=rf"^max_length {wrong} does not fit .*: it takes 3 to 96 tokens$"):
            tiny.encode([text], max_length=wrong)


def test_normalize_is_the_models_own_unless_told_otherwise(tiny, minilm, sentences):
    for encoder, own in ((tiny, False), (minilm, True)):
        raw, unit = (encoder.encode(sentences, normalize=normalize) for normalize in (False, True))
        assert naive.largest_difference(unit, raw / np.linalg.norm(raw, axis=1, keepdims=True)) < 1e-6
        assert abs(np.linalg.norm(raw, axis=1) - 1).max() > 0.1
        assert naive.largest_difference(encoder.encode(sentences), unit if own else raw) == 0


def test_encoding_leaves_the_mode_as_it_was(tiny_checkpoint, sentences):
    encoder = open_encoder(tiny_checkpoint("bert"))
    expected = encoder.encode(sentences)
    encoder.train()
    assert naive.largest_difference(encoder.encode(sentences), expected) == 0
    with pytest.raises(UserError):
        encoder.encode([None])
    assert encoder.training
    assert encoder.backbone.training


def test_a_sentence_that_comes_again_is_encoded_once(tiny, sentences, monkeypatch):
    expected, seen = tiny.encode(sentences), []
    tokenize = tiny.tokenize
    monkeypatch.setattr(tiny, "tokenize", lambda texts, *others: seen.extend(texts) or tokenize(texts, *others))
    repeated = [*sentences, *sentences[::-1], sentences[2]]
    assert naive.largest_difference(tiny.encode(repeated), [*expected, *expected[::-1], expected[2]]) < 1e-6
    assert len(seen) == len(set(sentences))


def test_vectors_keep_their_first_dimensions_and_are_stored_as_asked(tiny, sentences):
    whole = tiny.encode(sentences, normalize=False)
    short = tiny.encode(iter(sentences), normalize=True, truncate_dim=8)
    expected = whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True)
    assert naive.largest_difference(short, expected) < 1e-6
    assert tiny.encode(sentences[0], truncate_dim=8, precision="float16").dtype == np.float16
    bits = tiny.encode(sentences, normalize=False, precision="ubinary")
    assert (bits == np.packbits(whole > 0, axis=1)).all()
    for wrong in (0, 33):
        with pytest.raises(UserError, match=f"truncate_dim {wrong}: the vectors have 1 to 32 dimensions"):
            tiny.encode(sentences, truncate_dim=wrong)
    with pytest.raises(UserError, match="precision int8"):
        tiny.encode("one", precision="int8")


@pytest.mark.parametrize("stated", [None, 0, 3, 100])
def test_a_wrong_length_is_taken_for_the_guess_that_it_is(tiny, sentences, stated, monkeypatch):
    """As of a progress bar around a file, whose length is None or what its user has said."""

    class Told:
        def __iter__(self):
            return iter(sentences)

        def __len__(self):
            return stated

    monkeypatch.setattr(encoding_module, "_WINDOW", 5)
    for show_progress in (False, True):
        assert naive.largest_difference(tiny.encode(Told(), show_progress=show_progress), tiny.encode(sentences)) < 1e-6


def test_a_precision_that_does_not_fit_is_refused_before_anything_is_encoded(tiny, monkeypatch):
    monkeypatch.setattr(encoding_module, "_encode_window", None)
    for options, message in (
        ({"precision": "int4"}, "unknown"),
        ({"precision": "binary", "truncate_dim": 12}, "bytes"),
    ):
        with pytest.raises(UserError, match=message):
            tiny.encode(["the cat sleeps"], **options)


def test_modes_are_left_as_they_were(tiny_checkpoint):
    encoder = open_encoder(tiny_checkpoint("bert")).train()
    encoder.backbone.eval()
    before = {name: module.training for name, module in encoder.named_modules()}
    encoder.encode(["the cat sleeps"])
    assert {name: module.training for name, module in encoder.named_modules()} == before
    assert encoder.training and not encoder.backbone.training


def test_torchs_default_type_and_device_change_nothing(tiny, sentences):
    expected = tiny.encode(sentences)
    try:
        torch.set_default_dtype(torch.float64)
        with torch.device("meta"):
            found = tiny.encode(sentences)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == np.float32 and naive.largest_difference(found, expected) < 1e-6


@pytest.fixture(params=[3, 1])
def side_by_side(request, monkeypatch):
    """Batches have a thread each, few texts though they are; the threads that encoded, and on how many of torch's."""
    seen, forward = [], SentenceEncoder.forward

    def watched(self, *args):
        seen.append((threading.current_thread().name, torch.get_num_threads()))
        return forward(self, *args)

    monkeypatch.setattr(blas, "usable_threads", torch.get_num_threads)
    monkeypatch.setattr(encoding_module, "_FUSED_TOKENS", 1)
    monkeypatch.setattr(encoding_module, "_THREAD_TOKENS", 1)
    monkeypatch.setattr(SentenceEncoder, "forward", watched)
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield seen
    with ThreadPoolExecutor(1) as thread:  # what a thread that comes later has
        left = torch.get_num_threads(), thread.submit(torch.get_num_threads).result()
    torch.set_num_threads(before)
    assert left == (request.param, request.param)


def test_batches_that_have_a_thread_each_give_the_same_vectors(tiny, sentences, monkeypatch, side_by_side):
    monkeypatch.setattr(encoding_module, "_THREAD_TOKENS", 10**6)
    expected = tiny.encode(sentences * 2)
    assert set(side_by_side) == {("MainThread", torch.get_num_threads())}
    side_by_side.clear()
    monkeypatch.setattr(encoding_module, "_THREAD_TOKENS", 1)
    longest = max(map(len, tiny.tokenize(sentences)))
    for budget in (None, 2 * longest):
        assert naive.largest_difference(tiny.encode(sentences * 2, token_budget=budget), expected) < 1e-6
        assert len(side_by_side) >= (torch.get_num_threads() if budget is None else 4)
        assert {name.rpartition("_")[0] for name, _ in side_by_side} == {"batches"}
        assert {threads for _, threads in side_by_side} == {1}
        side_by_side.clear()


def test_a_row_longer_than_a_threads_share_is_encoded_by_all_threads(tiny, sentences, side_by_side):
    tiny.encode(["the cat sleeps " * 30, "a dog runs"])
    main = {("MainThread", torch.get_num_threads())}
    assert set(side_by_side) == main if torch.get_num_threads() > 1 else not main & set(side_by_side)


def test_an_error_in_a_thread_comes_to_the_caller(tiny, sentences, monkeypatch, side_by_side):
    def fail(*args):
        raise KeyError("no such row")

    monkeypatch.setattr(SentenceEncoder, "forward", fail)
    with pytest.raises(KeyError, match="no such row"):
        tiny.encode(sentences)


def test_where_autocast_has_chosen_a_precision_the_callers_thread_encodes(tiny, sentences, side_by_side):
    with torch.autocast("cpu", torch.bfloat16):
        tiny.encode(sentences)
    assert set(side_by_side) == {("MainThread", torch.get_num_threads())}


def test_threads_that_cut_at_different_lengths_do_not_disturb_each_other(tiny):
    texts = ["the cat sleeps " * 20] * 40
    wrong = []

    def tokenize(length):
        for _ in range(30):
            wrong.extend(ids for ids in tiny.tokenize(texts, max_length=length) if len(ids) != length)

    threads = [threading.Thread(target=tokenize, args=(length,)) for length in (5, 9, 13)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_a_backbone_that_is_given_another_attention_pads(tiny_checkpoint, sentences, implementation):
    encoder = open_encoder(tiny_checkpoint("bert"))
    expected = encoder.encode(sentences)
    assert encoder.packs
    encoder.backbone.set_attn_implementation(implementation)
    assert not encoder.packs
    assert naive.largest_difference(encoder.encode(sentences), expected) < 1e-5
