import itertools
import json
import shutil

import numpy as np
import pytest
import torch

from simcse_kit import UserError
from simcse_kit.data.files import sha256_of_files
from simcse_kit.data.sts import StsSubset, StsTask
from simcse_kit.evaluate.cross_encoder import PairScorer, pair_similarities


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint, tmp_path_factory):
    """A random classifier of pairs, as sentence-transformers saves it, and itself."""
    from sentence_transformers import CrossEncoder

    torch.manual_seed(0)
    model = CrossEncoder(str(tiny_checkpoint("bert")), num_labels=1, device="cpu", local_files_only=True)
    torch.nn.init.normal_(model.model.classifier.weight)
    directory = tmp_path_factory.mktemp("cross-encoder") / "model"
    model.save_pretrained(str(directory), create_model_card=False)
    return directory, model.eval()


@pytest.fixture
def tasks(sentences):
    pairs = list(itertools.combinations(sentences, 2))
    subsets = []
    for name, chunk in (("a", pairs[:20]), ("b", pairs[20:27]), ("c", pairs[27:60])):
        first, second = (list(side) for side in zip(*chunk, strict=True))
        subsets.append(StsSubset(name, first, second, np.arange(len(chunk), dtype=np.float64)))
    return [StsTask("one", "test", "disk", (*subsets[:2],), "0"), StsTask("two", "test", "disk", (subsets[2],), "1")]


def naive_score(model, first, second):
    """One pair at a time through plain transformers."""
    tokens = model.tokenizer([first], [second], truncation=True, max_length=96, return_tensors="pt")
    with torch.no_grad():
        return torch.sigmoid(model.model(**tokens).logits).item()


def test_every_pair_has_its_score_in_its_place(checkpoint, tasks):
    directory, model = checkpoint
    scorer = PairScorer.from_pretrained(directory, device="cpu")
    found = pair_similarities(scorer, tasks)
    assert [[len(part) for part in of_task] for of_task in found] == [[20, 7], [33]]
    for task, of_task in zip(tasks, found, strict=True):
        for subset, scores in zip(task.subsets, of_task, strict=True):
            pairs = list(zip(subset.sentences1, subset.sentences2, strict=True))
            assert scores.dtype == np.float64
            np.testing.assert_allclose(scores, model.predict(pairs), atol=1e-6)
            np.testing.assert_allclose(scores, [naive_score(model, *pair) for pair in pairs], atol=1e-5)
    assert np.ptp(found[1][0]) > 0.1
    assert pair_similarities(scorer, []) == []


def test_the_order_within_a_pair_counts(checkpoint):
    scorer = PairScorer.from_pretrained(checkpoint[0], device="cpu")
    one, other = scorer.score([("The cat sleeps.", "It didn't rain."), ("It didn't rain.", "The cat sleeps.")])
    assert abs(one - other) > 1e-3


def test_what_a_record_says_of_a_cross_encoder(checkpoint):
    directory = checkpoint[0]
    scorer = PairScorer.from_pretrained(directory, max_length=12, dtype="bfloat16")
    assert (scorer.source, scorer.max_length, scorer.dtype) == (str(directory), 12, torch.bfloat16)
    assert (scorer.pooling, scorer.head_name, scorer.normalize) == ("cross-encoder", "none", False)
    assert scorer.weights_sha256 == sha256_of_files(directory / "model.safetensors")
    # 12 tokens: 3 special ones, 2 of the second sentence, 7 of the first.
    long, cut = ("the cat " * 20, "a man"), ("the cat the cat the cat the", "a man")
    whole = PairScorer.from_pretrained(directory)
    assert (whole.max_length, whole.dtype) == (96, torch.float32)
    same, other = scorer.score([long, cut]), whole.score([long, cut])
    assert same[0] == same[1] and abs(other[0] - other[1]) > 1e-6


def edit_config(directory, **changes):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | changes))


def three_classes(directory):
    from safetensors.torch import load_file, save_file

    weights = load_file(directory / "model.safetensors")
    weights |= {"classifier.weight": torch.zeros(3, 32), "classifier.bias": torch.zeros(3)}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    edit_config(directory, id2label={"0": "a", "1": "b", "2": "c"}, label2id={"a": 0, "b": 1, "c": 2})


BROKEN = {
    "three classes": (three_classes, "gives a pair 3 scores; for similarity it must be 1"),
    "an encoder": (
        lambda directory: edit_config(directory, architectures=["BertModel"]),
        r"is no cross-encoder \(its config.json names BertModel, .*python -m eval.cross_encoder",
    ),
    "no weights": (lambda directory: (directory / "model.safetensors").unlink(), "no weights here"),
    "half the weights": (
        lambda directory: (directory / "model.safetensors").write_bytes(b"\x08"),
        "cannot be opened as a cross-encoder: ",
    ),
    "no config": (lambda directory: (directory / "config.json").unlink(), "config.json: cannot be read"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_no_cross_encoder_is_refused_in_one_line(checkpoint, tmp_path, what):
    damage, message = BROKEN[what]
    directory = shutil.copytree(checkpoint[0], tmp_path / "model")
    damage(directory)
    with pytest.raises(UserError, match=rf"^{directory}[^\n]*{message}[^\n]*$"):
        PairScorer.from_pretrained(directory)


@pytest.mark.parametrize("max_length", [4, 97])
def test_a_length_that_does_not_fit_is_refused(checkpoint, max_length):
    with pytest.raises(UserError, match=rf"^max_length {max_length} does not fit .*: it takes 5 to 96 tokens$"):
        PairScorer.from_pretrained(checkpoint[0], max_length=max_length)


def test_nothing_is_said_and_no_connection_made(checkpoint, no_network, monkeypatch, capfd):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    PairScorer.from_pretrained(checkpoint[0]).score([("a", "b")])
    assert capfd.readouterr() == ("", "")


# The command that trains one.


@pytest.fixture
def stsb(tmp_path, sentences):
    """STS-B train and dev in which a pair's score is high exactly if both sentences are the same."""
    lines = []
    for number, (one, other) in enumerate(itertools.product(sentences[:8], repeat=2)):
        lines.append(f"g\tf\ty\t{number}\t{5.0 if one == other else 0.1 * (number % 9)}\t{one}\t{other}\n")
    folder = tmp_path / "data" / "STS" / "STSBenchmark"
    folder.mkdir(parents=True)
    (folder / "sts-train.csv").write_text("".join(lines * 2))
    (folder / "sts-dev.csv").write_text("".join(lines[::3]))
    return tmp_path / "data"


def test_training_keeps_the_best_epoch_by_dev(tiny_checkpoint, stsb, tmp_path, no_network, monkeypatch, capsys):
    from eval import cross_encoder as command

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("sys.argv", ["cross_encoder"])
    output = tmp_path / "trained"
    arguments = [str(tiny_checkpoint("bert")), "--data", str(stsb), "-o", str(output), "--lr", "1e-3", "--epochs", "2"]
    assert command.main([*arguments, "--batch-size", "8", "--seed", "3"]) == 0
    record = json.loads((output / "run.json").read_text())
    from simcse_kit.data.overlap import overlap, read_fingerprints
    from simcse_kit.data.sts import load_sts_task
    from simcse_kit.evaluate.sts import correlate

    dev = load_sts_task("STSB", [stsb], split="dev")
    ((predicted,),) = pair_similarities(PairScorer.from_pretrained(output, device="cpu"), [dev])
    spearman = correlate(predicted, dev.subsets[0].scores, "spearman").value
    assert record["best"]["spearman"] == pytest.approx(spearman, abs=1e-6)
    assert record["best"]["step"] in (16, 32)
    train_hash = sha256_of_files(stsb / "STS/STSBenchmark/sts-train.csv")
    assert (record["seed"], list(record["data"]["train"].values())) == (3, [train_hash])
    train = load_sts_task("STSB", [stsb], split="train")
    assert overlap(read_fingerprints(output), train.sentences).train_rows == len(train.subsets[0].scores)
    assert f"{output}: STS-B dev {spearman:.2f} (Spearman x100)" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "trained"]
    assert command.main(arguments) == 2
    assert capsys.readouterr().err == f"error: {output}: is there already; name a new directory\n"
