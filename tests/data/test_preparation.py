"""Text prepared as token ids, against the documents that went in."""

import json
import lzma
import random

import numpy as np
import pytest
from small_files import WORDS
from transformers import AutoTokenizer

from simcse_kit.data import tokens as tokens_module
from simcse_kit.data.overlap import overlap, read_fingerprints
from simcse_kit.data.preparation import prepare_tokens
from simcse_kit.data.tokens import TokenStream, read_record, tokens_directory
from simcse_kit.errors import UserError

OPTIONS = {"vocabulary_size": 200, "held_out": 0.1, "seed": 3, "quiet": True}


def documents(count=40, seed=1):
    """Documents of one to four paragraphs; each begins with a word that no other one has."""
    draw = random.Random(seed)
    return [
        [f"doc{number}", *(" ".join(draw.choices(WORDS, k=draw.randint(1, 9))) for _ in range(draw.randint(0, 3)))]
        for number in range(count)
    ]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "text.txt.xz"
    path.write_bytes(lzma.compress("\n\n".join("\n".join(lines) for lines in documents()).encode()))
    return path


def split(ids, separator):
    """The documents of a stream."""
    found, current = [], []
    for token in ids:
        if token == separator:
            found.append(current)
            current = []
        else:
            current.append(int(token))
    assert not current
    return found


def test_every_document_is_there_once_in_another_order_or_held_out(source, tmp_path, monkeypatch):
    monkeypatch.setattr(tokens_module, "_SHARD_TOKENS", 50)
    out = tmp_path / "tokens"
    record = prepare_tokens([str(source)], out, **OPTIONS)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert (tokenizer.mask_token, tokenizer.pad_token_id, tokenizer("")["input_ids"]) == ("[MASK]", 0, [2, 3])
    assert record == read_record(tokens_directory(str(out)))
    assert len(record.train.files) > 3
    found = {}
    for name in ("train", "held_out"):
        part = getattr(record, name)
        stream = TokenStream(out, part)
        found[name] = split(stream.span(0, len(stream)), tokenizer.sep_token_id)
        assert (len(found[name]), len(stream)) == (part.documents, part.tokens)
    expected = [tokenizer(" ".join(lines), add_special_tokens=False)["input_ids"] for lines in documents()]
    assert len(found["held_out"]) == 4
    assert sorted(found["train"] + found["held_out"]) == sorted(expected)
    assert found["held_out"] + found["train"] != expected
    # What is held out has not been trained on, and so it has left no fingerprint.
    lines = [lines[0] for lines in documents()]
    assert overlap(read_fingerprints(out), lines).sentences == 36


def test_sentences_within_a_paragraph_count_as_seen(tmp_path):
    texts = [f'A man plays song {number}. "Is it good?" he asks! It is.' for number in range(40)]
    (tmp_path / "text.txt").write_text("\n\n".join(texts))
    prepare_tokens([str(tmp_path / "text.txt")], tmp_path / "tokens", **OPTIONS)
    seen = read_fingerprints(tmp_path / "tokens")
    assert overlap(seen, [f"a man plays song {number} ." for number in range(40)]).sentences == 36
    assert overlap(seen, ["Is it good?", "He asks", "It is", "Not this one."]).sentences == 3
    assert overlap(seen, texts).sentences == 36


def test_a_span_is_that_of_the_files_end_to_end(source, tmp_path, monkeypatch):
    monkeypatch.setattr(tokens_module, "_SHARD_TOKENS", 50)
    out = tmp_path / "tokens"
    part = prepare_tokens([str(source)], out, **OPTIONS).train
    stream, whole = TokenStream(out, part), np.concatenate([np.load(out / name) for name in part.files])
    for start in range(0, len(whole), 7):
        for length in (1, 49, 50, 51, 130):
            stop = min(start + length, len(whole))
            np.testing.assert_array_equal(stream.span(start, stop), whole[start:stop])


def test_it_depends_on_the_text_and_the_seed_alone(source, tmp_path):
    def made(name, **changes):
        prepare_tokens([str(source)], tmp_path / name, **{**OPTIONS, **changes})
        return [(tmp_path / name / file).read_bytes() for file in ("tokenizer.json", "tokens.json", "train-00001.npy")]

    assert made("a") == made("b") != made("c", seed=4)


def test_a_models_tokenizer_is_used_as_it_is(source, tiny_checkpoint, tmp_path):
    checkpoint = tiny_checkpoint("roberta")
    record = prepare_tokens([str(source)], tmp_path / "tokens", tokenizer=str(checkpoint), **OPTIONS)
    own = AutoTokenizer.from_pretrained(checkpoint)
    assert record.vocabulary_size == len(own)
    assert AutoTokenizer.from_pretrained(tmp_path / "tokens").get_vocab() == own.get_vocab()


def test_the_vocabulary_has_the_size_asked_for_and_lower_cased_words(tmp_path):
    text = tmp_path / "text.txt"
    words = [first + last for first in ("Über", "walk", "talk", "red") for last in ("ing", "ed", "s", "able")]
    text.write_text("\n\n".join(" ".join(words) for _ in range(20)))
    prepare_tokens([str(text)], tmp_path / "tokens", **{**OPTIONS, "vocabulary_size": 100})
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokens")
    assert len(tokenizer) <= 100 and tokenizer.tokenize("ÜBERING walked") == ["ubering", "walked"]
    assert tokenizer.tokenize("reding!")[-1] == "[UNK]"  # a character that the text does not have


@pytest.mark.parametrize(
    ("said", "changes"),
    [
        ("a vocabulary of 70,000 does not fit the 16 bits", {"vocabulary_size": 70_000}),
        ("a vocabulary of 20 is too small for this text", {"vocabulary_size": 20}),
        ("the text has 40 documents, of which 40 would be held out", {"held_out": 0.999}),
        ("model '/no/such/model': there is no such directory", {"tokenizer": "/no/such/model"}),
    ],
)
def test_mistakes_leave_nothing_behind(source, tmp_path, said, changes):
    with pytest.raises(UserError, match=said):
        prepare_tokens([str(source)], tmp_path / "tokens", **{**OPTIONS, **changes})
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt.xz"]


def test_damaged_files_are_named(source, tmp_path):
    out = tmp_path / "tokens"
    record = prepare_tokens([str(source)], out, **OPTIONS)
    np.save(out / "train-00001.npy", np.zeros(3, dtype=np.uint16))
    with pytest.raises(UserError, match=r"its files hold 3 tokens, tokens\.json says"):
        TokenStream(out, record.train)
    np.save(out / "train-00001.npy", np.zeros(3))
    with pytest.raises(UserError, match=r"train-00001\.npy: holds no token ids"):
        TokenStream(out, record.train)
    (out / "train-00001.npy").unlink()
    with pytest.raises(UserError, match=r"train-00001\.npy: cannot be read"):
        TokenStream(out, record.train)
    (out / "tokens.json").write_text(json.dumps({"train": 1}))
    with pytest.raises(UserError, match=r"tokens\.json: cannot be read as simcse-prepare writes it"):
        read_record(out)
    for other in (tmp_path, "scenes", "hub:owner/name:train", "x" * 5_000, ["a.txt"]):
        assert tokens_directory(other) is None
