import naive
import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, AutoModel

from simcse_kit import SentenceEncoder, UserError
from simcse_kit.evaluate.cross_encoder import PairScorer
from simcse_kit.evaluate.systems import (
    SystemName,
    check_system,
    open_system,
    parse_system,
    random_encoder,
)
from simcse_kit.evaluate.word_vectors import WordVectors


@pytest.fixture
def words(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("the 1 2\ncat 3 5\n")
    return path


@pytest.fixture
def cross_encoder(tiny_checkpoint, tmp_path):
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(tiny_checkpoint("bert")), num_labels=1, device="cpu", local_files_only=True)
    model.save_pretrained(str(tmp_path / "ce"), create_model_card=False)
    return tmp_path / "ce"


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("runs/x", ("encoder", "runs/x", 42)),
        ("words:a:b.txt", ("words", "a:b.txt", 42)),
        ("words:a@7", ("words", "a@7", 42)),
        ("random:bert-base-uncased", ("random", "bert-base-uncased", 42)),
        ("random:my@model@7", ("random", "my@model", 7)),
        ("random:my@model", ("random", "my@model", 42)),
        ("cross-encoder:m@7", ("cross-encoder", "m@7", 42)),
        ("glove:x", ("encoder", "glove:x", 42)),
    ],
)
def test_names_are_taken_apart(name, parsed):
    assert parse_system(name) == SystemName(*parsed)


def test_a_directory_of_the_name_is_an_encoder(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    SentenceEncoder.from_pretrained(tiny_checkpoint("bert")).save_pretrained("random:me@1")
    system = open_system("random:me@1")
    assert system.weights_sha256 == SentenceEncoder.from_pretrained("random:me@1").weights_sha256


@pytest.mark.parametrize("name", ["words:", "random:", "cross-encoder:"])
def test_a_prefix_alone_is_refused(name):
    with pytest.raises(UserError, match=rf"^{name} names nothing behind the colon; write {name}(FILE|MODEL)$"):
        open_system(name)


def test_what_is_nowhere_is_said_at_once(tmp_path, tiny_checkpoint, words):
    check_system(f"random:{tiny_checkpoint('bert')}@3")
    check_system(f"words:{words}")
    for name, message in (
        ("words:absent.txt", "there is no file absent.txt"),
        ("random:./absent", "was found nowhere"),
    ):
        with pytest.raises(UserError, match=message):
            check_system(name)


def test_each_kind_has_what_a_record_needs(tiny_checkpoint, words, cross_encoder):
    bert = tiny_checkpoint("bert")
    expected = {
        str(bert): (SentenceEncoder, "mean", 96, "torch.float32"),
        f"words:{words}": (WordVectors, "mean", None, "float32"),
        f"random:{bert}@5": (SentenceEncoder, "mean", 96, "torch.float32"),
        f"cross-encoder:{cross_encoder}": (PairScorer, "cross-encoder", 96, "torch.float32"),
    }
    hashes = set()
    for name, (kind, pooling, max_length, dtype) in expected.items():
        system = open_system(name, device="cpu")
        assert isinstance(system, kind)
        assert (system.source, system.pooling, system.head_name) == (name, pooling, "none")
        assert (system.normalize, system.max_length, str(system.dtype)) == (False, max_length, dtype)
        assert len(system.weights_sha256) == 64
        hashes.add(system.weights_sha256)
    assert len(hashes) == 4


def test_options_reach_the_system_or_are_refused(tiny_checkpoint, words, cross_encoder):
    bert = tiny_checkpoint("bert")
    for name in (str(bert), f"random:{bert}"):
        system = open_system(name, pooling="cls", max_length=7, device="cpu", dtype="bfloat16")
        assert (system.pooling, system.max_length, system.dtype) == ("cls", 7, torch.bfloat16)
    assert open_system(f"cross-encoder:{cross_encoder}", max_length=9, dtype="bfloat16").max_length == 9
    vectors = open_system(f"words:{words}", pooling="mean", device="cpu", vocabulary={"cat"})
    assert vectors.encode(["the cat"]).tolist() == [[3, 5]]
    for name, options in (
        (f"words:{words}", {"pooling": "cls"}),
        (f"words:{words}", {"max_length": 32}),
        (f"words:{words}", {"dtype": "float16"}),
        (f"cross-encoder:{cross_encoder}", {"pooling": "mean"}),
    ):
        (option,) = options
        with pytest.raises(UserError, match=rf"^{name}: .* no {option} to choose"):
            open_system(name, **options)


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
def test_random_weights_are_those_that_transformers_draws(tiny_checkpoint, sentences, family):
    config = AutoConfig.from_pretrained(tiny_checkpoint(family))
    torch.manual_seed(3)
    drawn = AutoModel.from_config(config).state_dict()
    torch.manual_seed(99)
    state = torch.get_rng_state()
    encoder = random_encoder(str(tiny_checkpoint(family)), 3, device="cpu")
    assert torch.equal(torch.get_rng_state(), state)
    own = encoder.backbone.state_dict()
    assert own.keys() == drawn.keys() and all(torch.equal(own[name], drawn[name]) for name in own)
    trained = SentenceEncoder.from_pretrained(tiny_checkpoint(family), device="cpu")
    assert encoder.tokenize(sentences) == trained.tokenize(sentences)
    assert not encoder.training


def test_the_seed_decides(tiny_checkpoint, sentences, tmp_path):
    from sentence_transformers.sentence_transformer import modules

    parts = [modules.Transformer(str(tiny_checkpoint("bert"))), modules.Pooling(32, "mean"), modules.Dense(32, 8)]
    SentenceTransformer(modules=parts, device="cpu").save(str(tmp_path), create_model_card=False)
    first, same, other = (random_encoder(str(tmp_path), seed, device="cpu") for seed in (1, 1, 2))
    trained = SentenceEncoder.from_pretrained(tmp_path, device="cpu")
    assert np.array_equal(first.encode(sentences), same.encode(sentences))
    assert naive.largest_difference(first.encode(sentences), other.encode(sentences)) > 0.1
    assert len({system.weights_sha256 for system in (first, same, other, trained)}) == 3
    assert not torch.equal(first.dense[0].linear.weight, trained.dense[0].linear.weight)
    first.save_pretrained(tmp_path / "saved")
    assert np.array_equal(
        SentenceEncoder.from_pretrained(tmp_path / "saved").encode(sentences), first.encode(sentences)
    )


def test_options_are_refused_before_anything_is_opened(tiny_checkpoint, words, monkeypatch):
    for name, options in (
        (f"words:{words}", {"pooling": "max"}),
        (f"words:{words}", {"max_length": 8}),
        (f"cross-encoder:{tiny_checkpoint('bert')}", {"pooling": "cls"}),
    ):
        with pytest.raises(UserError, match="to choose"):
            check_system(name, **options)
    check_system(f"words:{words}", pooling="mean")
