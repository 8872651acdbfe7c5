"""The pre-training of mini at a tiny scale: slots that go on with one another, and the model with its card."""

import json
import lzma
import random
import shutil
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
from small_files import WORDS
from transformers import AutoModelForMaskedLM

from eval.mini import card, licences, slots
from eval.mini.__main__ import main
from simcse_kit import SentenceEncoder, locate
from simcse_kit.data.tokens import read_record

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "model.new={num_hidden_layers: 1, hidden_size: 32, num_attention_heads: 2}",
    "model.max_length=16",
    "train.batch_size=4",
    "train.precision=fp32",
    "train.lr=3e-3",
    "train.log_every=1",
    "evaluation.every=10",
]
SET = [part for override in TINY for part in ("--set", override)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Two files of the corpus, in small; words follow one another in a circle, so that there is something to learn."""
    folder, draw = tmp_path_factory.mktemp("corpus"), random.Random(2)
    for name in ("books", "wiki"):
        starts = [(draw.randrange(6), draw.randint(8, 40)) for _ in range(150)]
        texts = [" ".join(WORDS[place % 6] for place in range(start, start + length)) for start, length in starts]
        (folder / f"{name}.txt.xz").write_bytes(lzma.compress("\n\n".join(texts).encode()))
    (folder / "sample.txt").write_text("for reading only")
    return folder


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    """The folder of two slots, the second one the last; the library ``datasets`` is not to be had."""
    output = tmp_path_factory.mktemp("mini") / "run"
    code = f"""
import sys
sys.modules["datasets"] = None
from eval.mini.__main__ import main
slot = {["pretrain", str(corpus), "-o", str(output), "--steps", "40", *SET]}
sys.exit(main(slot) or main([*slot, "--last"]))
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)
    return output


def held_out(folder):
    return slots.Slot(folder).held_out


def test_a_slot_goes_on_where_the_one_before_ended(trained):
    first, second = (held_out(trained / f"slot-{number}") for number in (1, 2))
    assert [line["step"] for line in first] == [line["step"] for line in second] == [0, 10, 20, 30, 40]
    # But for the rounding of the weights to half precision.
    assert second[0]["loss"] == pytest.approx(first[-1]["loss"], rel=5e-3)
    assert first[0]["loss"] > first[-1]["loss"] > second[-1]["loss"]
    rates = [
        [line["lr"] for line in map(json.loads, (trained / f"slot-{number}" / "metrics.jsonl").open()) if "lr" in line]
        for number in (1, 2)
    ]
    assert rates[0][-1] == 3e-3 and rates[1][-1] < 3e-4


def test_the_model_is_complete_with_curve_and_card(trained, tmp_path, monkeypatch, capfd):
    target = tmp_path / "mini"
    monkeypatch.setitem(locate.OWN_MODELS, "simcse-kit/mini", target)
    assert main(["finish", str(trained)]) == 0
    encoder = SentenceEncoder.from_pretrained("simcse-kit/mini")
    assert encoder.encode("the cat").shape == (32,) and str(encoder.dtype) == "torch.float32"
    assert AutoModelForMaskedLM.from_pretrained(target).dtype.itemsize == 2
    names = {path.name for path in target.iterdir()}
    assert {"README.md", "pretraining.json", "config.json", "tokenizer.json"} <= names
    assert not names & {"run.json", "recipe.yaml", "metrics.jsonl", "training_text.npy", "checkpoints"}

    record = json.loads((target / "pretraining.json").read_text())
    assert [point["step"] for point in record["held_out"]] == [0, 10, 20, 30, 40, 50, 60, 70, 80]
    assert [point["tokens_seen"] for point in record["held_out"]] == [step * 64 for step in range(0, 81, 10)]
    seconds = [point["seconds"] for point in record["held_out"]]
    assert seconds == sorted(seconds)
    assert set(record["data"]) == {"books.txt.xz", "wiki.txt.xz", "tokens.json"}
    text = (target / "README.md").read_text()
    assert "80 steps of 4 rows" in text and "English Wikipedia" in text and "Stack Exchange" not in text
    assert str(trained) not in text and str(trained) not in json.dumps(record)

    assert main(["finish", str(trained)]) == 2
    assert "is there already" in capfd.readouterr().err


def test_what_is_not_finished_is_no_model(trained, tmp_path, capfd):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "slot-1").symlink_to(trained / "slot-1")
    assert main(["finish", str(tmp_path / "run"), "-o", str(tmp_path / "mini")]) == 2
    assert "the last slot must be done, and trained with --last" in capfd.readouterr().err
    assert not (tmp_path / "mini").exists()


def test_behind_the_last_slot_there_is_none(trained, corpus, capfd):
    assert main(["pretrain", str(corpus), "-o", str(trained), "--steps", "5", *SET]) == 2
    assert "was trained with --last" in capfd.readouterr().err


def test_on_another_machine_the_tokens_are_those_of_the_slots_vocabulary(trained, corpus, tmp_path):
    again = slots.Slots(trained, tmp_path / "tokens", [])
    again._prepare(corpus, again.found, quiet=True)
    assert read_record(tmp_path / "tokens") == read_record(trained / "tokens")


def test_an_interruption_while_the_pace_is_taken_ends_the_call(corpus, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(slots, "train", lambda *args, **options: types.SimpleNamespace(interrupted=True))
    assert main(["pretrain", str(corpus), "-o", str(tmp_path / "run"), "--minutes", "1", *SET]) == 130
    assert not (tmp_path / "run" / "slot-1").exists()


def test_text_without_a_licence_is_refused_before_anything_is_done(corpus, tmp_path, capfd):
    shutil.copytree(corpus, tmp_path / "corpus")
    shutil.copy(corpus / "wiki.txt.xz", tmp_path / "corpus" / "unheard-of.txt.xz")
    assert main(["pretrain", str(tmp_path / "corpus"), "-o", str(tmp_path / "run"), "--steps", "5", *SET]) == 2
    assert "no licence is named for unheard-of.txt.xz" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_interrupted_slot_is_gone_on_with_and_minutes_become_steps(corpus, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(slots, "_PACE_FROM", 2)
    monkeypatch.setattr(slots, "_PACE_TO", 4)
    monkeypatch.setattr(slots.Clock, "seconds_left", 0.4)
    command = ["pretrain", str(corpus), "-o", str(tmp_path / "run"), "--minutes", "1", *SET]
    trained = slots._train

    def cut(recipe, **options):
        trained(recipe, **options)
        if "slot" in recipe.output_dir:
            place = Path(recipe.output_dir) / "run.json"
            place.write_text(json.dumps(json.loads(place.read_text()) | {"status": "running"}))
            raise KeyboardInterrupt

    monkeypatch.setattr(slots, "_train", cut)
    assert main(command) == 130
    monkeypatch.setattr(slots, "_train", trained)
    assert main(command) == 0
    (slot,) = slots.Slots(tmp_path / "run", tmp_path, []).found
    assert slot.is_done and slot.run["step"] == slot.run["steps"] >= 4
    assert "go on: the same command trains the next slot" in capfd.readouterr().out


def test_the_time_left_is_that_before_the_model_is_written():
    now = time.perf_counter()
    clock, earlier = slots.Clock(2, None, now), slots.Clock(2, None, now - 60)
    assert 0 < 2 * 60 - clock.seconds_left < 40
    assert earlier.seconds_left == pytest.approx(clock.seconds_left - 60, abs=1)


def test_the_pace_is_that_of_steps_and_measuring_costs_what_it_costs(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(slots, "_PACE_FROM", 2)
    monkeypatch.setattr(slots, "_PACE_TO", 6)
    clocks = iter([*[10.0, 30.0, 32.0, 34.0], 50.0, 53.0])  # at steps 0, 2, 4, 6; before and after measuring
    ours = types.SimpleNamespace(perf_counter=lambda: next(clocks))
    monkeypatch.setattr(slots.Clock, "seconds_left", 100.0)
    place = slots.Slots(tmp_path / "run", tmp_path / "tokens", TINY)
    place._prepare(corpus, [], quiet=True)
    monkeypatch.setattr(slots, "time", ours)
    # One second a step, three to measure: before, every ten steps, behind.
    assert place._steps([], slots.Clock(2, None, 0.0)) == int((100 - 6) / (1 + 0.3))


def test_too_little_time_is_said(corpus, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(slots, "_PACE_FROM", 2)
    monkeypatch.setattr(slots, "_PACE_TO", 4)
    monkeypatch.setattr(slots.Clock, "seconds_left", -1.0)
    assert main(["pretrain", str(corpus), "-o", str(tmp_path / "run"), "--minutes", "1", *SET]) == 2
    assert "there is no time left to train" in capfd.readouterr().err
    assert main(["pretrain", str(corpus), "-o", str(tmp_path / "run"), *SET]) == 2
    assert "either --minutes or --steps" in capfd.readouterr().err


def test_every_file_of_text_needs_a_licence(trained, monkeypatch, tmp_path, capfd):
    known = tmp_path / "sources.yaml"
    known.write_text("- {file: wiki, source: Wikipedia, licence: CC BY-SA, basis: known}\n")
    monkeypatch.setattr(licences, "_SOURCES", known)
    assert main(["finish", str(trained), "-o", str(tmp_path / "mini")]) == 2
    assert "no licence is named for books.txt.xz" in capfd.readouterr().err


def test_the_published_size_is_what_the_recipe_makes():
    from transformers import BertConfig, BertForMaskedLM

    recipe = slots.load_recipe(slots.RECIPE)
    shape = {key: value for key, value in recipe.model.new.model_dump().items() if value is not None}
    shape |= {"intermediate_size": 4 * shape["hidden_size"], "max_position_embeddings": recipe.model.max_length}
    model = BertForMaskedLM(BertConfig(vocab_size=slots.VOCABULARY, **shape))
    size = 2 * sum(parameter.numel() for parameter in model.parameters())
    assert 20e6 < size < card._LARGEST
