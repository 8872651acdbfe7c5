"""The comparison with sentence-transformers' CoSENT, on a tiny model and a few pairs."""

import json

import pytest
import yaml
from sentence_transformers import SentenceTransformer
from small_files import write_stsb

from eval import peer_cosent
from simcse_kit import SentenceEncoder
from simcse_kit.data.sts import load_sts_task
from simcse_kit.evaluate.sts import score_sts


@pytest.fixture
def senteval(tmp_path):
    """A folder with raw STS-B of 24 made-up pairs a split."""
    write_stsb(tmp_path / "senteval" / "raw" / "STSBenchmark")
    return tmp_path / "senteval"


def test_both_train_with_the_budget_of_the_recipe_and_keep_their_best(senteval, tiny_checkpoint, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    content = {
        "model": {"name": str(tiny_checkpoint("bert")), "pooling": "mean", "head": "none"},
        "data": {"train": "set by the command", "convert": "scored_pairs"},
        "objectives": [{"name": "cosent"}],
        "train": {"batch_size": 8, "epochs": 2, "lr": 1e-3, "warmup_ratio": 0.5},
        "evaluation": {"every": 2, "text": "raw"},
        "output_dir": "set by the command",
    }
    recipe.write_text(yaml.safe_dump(content))
    arguments = ["--data", str(senteval), "-o", str(tmp_path / "out"), "--recipe", str(recipe), "--seeds", "4,5"]
    assert peer_cosent.main([*arguments, "--set", "train.lr=2e-3"]) == 0

    dev = load_sts_task("STSB", [senteval], split="dev", text="raw")
    weights = set()
    for seed in (4, 5):
        for name in (f"ours-{seed}", f"peer-{seed}"):
            run = json.loads((tmp_path / "out" / name / "run.json").read_text())
            encoder = SentenceEncoder.from_pretrained(tmp_path / "out" / name, device="cpu")
            assert run["seed"] == seed and run["best"]["step"] in (2, 4, 6)
            assert run["best"]["spearman"] == pytest.approx(score_sts(encoder, dev).value, abs=1e-3)
            weights.add(encoder.weights_sha256)
    assert len(weights) == 4
    assert SentenceTransformer(str(tmp_path / "out" / "peer-4"), device="cpu").encode(["a cat"]).shape == (1, 32)

    before = (tmp_path / "out" / "peer-5" / "run.json").stat().st_mtime_ns
    assert peer_cosent.main([*arguments, "--set", "train.lr=2e-3"]) == 0
    assert (tmp_path / "out" / "peer-5" / "run.json").stat().st_mtime_ns == before


def test_seeds_that_are_none_are_one_line(senteval, tmp_path, capsys):
    assert peer_cosent.main(["--data", str(senteval), "-o", str(tmp_path / "out"), "--seeds", "1,x"]) == 2
    assert "--seeds 1,x: expected different whole numbers" in capsys.readouterr().err
