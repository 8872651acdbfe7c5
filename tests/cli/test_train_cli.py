import csv
import dataclasses
import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from simcse_kit.cli.train import main
from simcse_kit.train import loop

TEXTS = ["A man plays the guitar.", "The cat sleeps.", "Two children are running.", "It didn't rain.", "A red ball."]


@pytest.fixture
def here(tmp_path, tiny_checkpoint, monkeypatch):
    """A working folder with good and bad data files, and ``recipe.yaml``: 3 steps on 5 triplets, with evaluation."""
    monkeypatch.chdir(tmp_path)

    def write(name, header, rows):
        with Path(name).open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows])

    write("rows.csv", ["a", "p", "n"], zip(TEXTS, TEXTS[1:] + TEXTS[:1], TEXTS[2:] + TEXTS[:2], strict=True))
    write("sts.csv", ["sentence1", "sentence2", "score"], [[TEXTS[i], TEXTS[i - 1], i] for i in range(5)])
    write("labelled.csv", ["a", "p", "n"], [[TEXTS[0], TEXTS[1], 1], [TEXTS[1], TEXTS[2], 7]])
    Path("empty.csv").write_text("")
    Path("header.csv").write_text("a,p,n\n")
    Path("null.jsonl").write_text("".join(f"{json.dumps(dict(a='x', p=p, n='z'))}\n" for p in ("y", None)))
    Path("bytes.csv").write_bytes(b"a,p,n\none,two,three\nfour,\xff,six\n")
    Path("flat.csv").write_text("sentence1,sentence2,score\na,b,1\nc,d,1\n")
    Path("stsb/STS/STSBenchmark").mkdir(parents=True)
    Path("stsb/STS/STSBenchmark/sts-dev.csv").write_text("g\tf\ty\t1\t2.5\tonly one sentence\n")
    Path("sts12/STS/STS12-en-test").mkdir(parents=True)
    for subset in ("MSRpar", "MSRvid", "SMTeuroparl", "surprise.OnWN", "surprise.SMTnews"):
        Path(f"sts12/STS/STS12-en-test/STS.input.{subset}.txt").write_text("a\tb\nc\td\n")
        Path(f"sts12/STS/STS12-en-test/STS.gs.{subset}.txt").write_text("1\n")
    shutil.copytree(tiny_checkpoint("distilbert"), "distilbert")
    Path("gpt").mkdir()
    Path("gpt/config.json").write_text('{"model_type": "gpt2", "architectures": ["GPT2Model"]}')
    Path("gpt/model.safetensors").write_bytes(b"")
    recipe = {
        "model": {"name": str(tiny_checkpoint("bert")), "pooling": "mean", "head": "none"},
        "data": {"train": "rows.csv", "columns": ["a", "p", "n"]},
        "train": {"batch_size": 2, "lr": 1e-3},
        "evaluation": {"data": "sts.csv", "every": 2},
        "output_dir": "run",
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


def tree(folder):
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


BAD = {
    "an unknown key": (["train.bath_size=8"], ["train.bath_size", "did you mean 'batch_size'?"]),
    "a value that does not fit": (["train.lr=fast"], ["train.lr", "'fast'"]),
    "a missing file": (["data.train=texts.txt"], ["texts.txt"]),
    "a missing file of several": (["data.train=[rows.csv, more.csv]"], ["more.csv"]),
    "a glob without a match": (["data.train=*.tsv"], ["*.tsv"]),
    "a folder": (["data.train=stsb"], ["stsb", "directory"]),
    "a wrong column": (["data.columns=[a, pos, n]"], ["rows.csv", "'pos'", "a, p, n"]),
    "an empty file": (["data.train=empty.csv"], ["empty.csv"]),
    "a file without rows": (["data.train=header.csv"], ["header.csv", "no rows"]),
    "a null cell": (["data.train=null.jsonl"], ["null.jsonl, row 2", "'p'", "null"]),
    "undecodable bytes": (["data.train=bytes.csv"], ["bytes.csv", "line 3"]),
    "a half-read gold file": (
        ["evaluation.data=sts12", "evaluation.task=STS12", "evaluation.split=test", "evaluation.allow_test=true"],
        ["STS.gs"],
    ),
    "a test split": (["evaluation.data=stsb", "evaluation.split=test"], ["evaluation.data", "allow_test"]),
    "a class too many": (
        ["data.convert=labelled_pairs", "data.train=labelled.csv", "objectives=[{name: margin_contrastive}]"],
        ["row 2", "class 7", "margin_contrastive"],
    ),
    "a malformed STS line": (["evaluation.data=stsb"], ["sts-dev.csv"]),
    "constant gold": (["evaluation.data=flat.csv"], ["flat.csv", "undefined"]),
    "an unknown task": (["evaluation.data=stsb", "evaluation.task=STSX"], ["STSX", "STSB"]),
    "an unknown split": (["evaluation.data=stsb", "evaluation.split=validation"], ["'validation'", "dev"]),
    "a missing evaluation": (["evaluation.data=nowhere"], ["nowhere"]),
    "a report on nothing": (["report={data: nowhere.csv}"], ["nowhere.csv"]),
    "a decoder": (["model.name=gpt"], ["gpt", "no encoder"]),
    "a folder that is no model": (["model.name=stsb"], ["stsb", "no config.json"]),
    "a model found nowhere": (["model.name=no/such/model/anywhere"], ["no/such/model/anywhere", "no such directory"]),
    "more tokens than positions": (["model.max_length=1000"], ["1000", "96"]),
    "a pooler that is not there": (["model.pooling=cls_pooler", "model.name=distilbert"], ["pooler"]),
    "a batch that is never full": (["train.drop_last=true", "train.batch_size=64"], ["drop_last", "5 rows"]),
    "an output that is a file": (["output_dir=rows.csv"], ["rows.csv"]),
    "an output that is no run": (["output_dir=stsb"], ["stsb", "holds no run"]),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("check", [False, True])
def test_bad_input_gets_one_line_and_leaves_nothing_behind(name, check, here, capsys):
    overrides, says = BAD[name]
    before = tree(here)
    code = main(["recipe.yaml", *overrides, *(["--check"] if check else [])])
    out, err = capsys.readouterr()
    assert code == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err
    assert all(part in err for part in says), err
    assert tree(here) == before


def test_several_mistakes_are_named_at_once_a_line_each(here, capsys):
    before = tree(here)
    assert main(["recipe.yaml", "train.bath_size=8", "modle.name=x", "seed=-1"]) == 2
    err = capsys.readouterr().err
    assert [line.removeprefix("error: ").split(": ")[1] for line in err.splitlines()] == [
        "train.bath_size",
        "seed",
        "modle",
    ]
    assert tree(here) == before


def test_a_mistake_comes_out_of_the_command_as_exit_code_2_without_a_traceback(here):
    command = [sys.executable, "-m", "simcse_kit.cli.train", "recipe.yaml", "train.bath_size=8"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: recipe.yaml: train.bath_size: unknown key") and done.stderr.count("\n") == 1


def test_help_comes_at_once_and_without_torch():
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    code = "import sys; from simcse_kit.cli.train import main; main(['--help']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(word in done.stdout for word in ("RECIPE.yaml", "--check", "--resume", "--overwrite", "--quiet"))
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 1.0


def test_check_says_what_would_run_and_writes_nothing(here, capsys):
    before = tree(here)
    assert main(["recipe.yaml", "--check", "report.data=sts.csv", "train.epochs=3"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and tree(here) == before
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert list(lines) == ["data", "model", "evaluation", "report", "steps", "cost", "output"]
    assert lines["data"].startswith("5 rows, 3 views")
    assert "mean pooling, head none" in lines["model"]
    assert "5 pairs, every 2 steps and at the end" in lines["evaluation"]
    assert lines["steps"].startswith("9 steps (3 epochs of 3), batch 2")
    assert "tokens" in lines["cost"] and "GiB" in lines["cost"]


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[2].glob("recipes/*.yaml")), ids=lambda path: path.stem)
def test_check_takes_recipes_whose_model_and_data_are_elsewhere(path, capsys, no_network):
    overrides = ["data.train=hub:owner/name:train", "evaluation.data=hub:owner/name:dev", "model.name=owner/name"]
    assert main([str(path), "--check", *overrides]) == 0
    first, *later = capsys.readouterr().out.split("\n\n")
    assert first.count("not checked") == 3
    assert all("the best of the stage before" in stage for stage in later)


def test_half_precision_without_a_gpu_is_refused_and_checked_to_need_one(here, capsys):
    if torch.accelerator.is_available():
        pytest.skip("there is a GPU")
    before = tree(here)
    assert main(["recipe.yaml", "train.precision=fp16", "--check"]) == 0
    assert "fp16 (needs a GPU, and there is none here)" in capsys.readouterr().out
    assert main(["recipe.yaml", "train.precision=fp16"]) == 2
    assert "fp16 needs a GPU" in capsys.readouterr().err
    assert tree(here) == before


def test_check_says_what_bf16_is_on_a_cpu_without_instructions_for_it(here, monkeypatch, capsys):
    monkeypatch.setattr("simcse_kit.train.plan.lacks_instructions", lambda precision: precision == "bf16")
    assert main(["recipe.yaml", "train.precision=bf16", "--check"]) == 0
    assert "bf16 (fp32 here: this processor has no instructions for it)" in capsys.readouterr().out
    assert main(["recipe.yaml", "--check"]) == 0
    assert "fp32 here" not in capsys.readouterr().out


def test_check_notes_a_run_that_is_there(here, capsys):
    assert main(["recipe.yaml", "--quiet"]) == 0
    before = tree(here)
    assert main(["recipe.yaml", "--check"]) == 0
    assert "holds a run: --resume or --overwrite" in capsys.readouterr().out
    assert tree(here) == before


def test_a_run_reports_where_the_model_lies_and_how_good_it_is(here, capsys):
    assert main(["recipe.yaml", "report={data: sts.csv, task: mine, neighbours: 2}", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    record = json.loads(Path("run/run.json").read_text())
    assert f"mine test: Spearman {record['before']['spearman']:.2f} before" in out
    assert f"{record['best']['spearman']:.2f} at step {record['best']['step']}, the best of 3" in out
    assert "nearest before" in out and any(text in out for text in TEXTS)
    assert "The model is in run" in out


def test_a_second_run_needs_resume_or_overwrite(here, capsys):
    assert main(["recipe.yaml", "--quiet"]) == 0
    first = tree("run")
    capsys.readouterr()
    for options, says in [
        ([], "--overwrite"),
        (["--resume"], "complete"),
        (["--resume", "--overwrite"], "exclude each other"),
        (["--resume", "train.lr=2e-3", "seed=1"], "seed was 42, is 1; train.lr was 0.001, is 0.002"),
        (["--overwrite", "model.name=run"], "--overwrite would remove model.name run"),
    ]:
        assert main(["recipe.yaml", "--quiet", *options]) == 2
        err = capsys.readouterr().err
        assert says in err and err.count("\n") == 1
        assert tree("run") == first
    assert main(["recipe.yaml", "--quiet", "--overwrite", "seed=1"]) == 0
    second = tree("run")
    assert second.keys() == first.keys()
    assert second[Path("run/model.safetensors")] != first[Path("run/model.safetensors")]


def test_resume_starts_a_run_that_has_not_begun(here, capsys):
    assert main(["recipe.yaml", "--quiet", "--resume"]) == 0
    assert json.loads(Path("run/run.json").read_text())["resumed_from"] is None


STAGES = "stages=[{train: {max_steps: 1}}, {train: {max_steps: 2}, seed: 7}]"


def test_stages_go_on_from_one_another_and_a_resumed_run_passes_over_what_is_done(here, capsys):
    assert main(["recipe.yaml", "--quiet", STAGES]) == 0
    first, second = (json.loads(Path(place, "run.json").read_text()) for place in ("run-stage1", "run"))
    assert (first["step"], second["step"], second["seed"]) == (1, 2, 7)
    assert yaml.safe_load(Path("run/recipe.yaml").read_text())["model"]["name"] == "run-stage1"
    assert capsys.readouterr().out.count("The model is in") == 2

    before = tree("run-stage1")
    shutil.rmtree("run")
    assert main(["recipe.yaml", "--quiet", "--resume", STAGES]) == 0
    assert tree("run-stage1") == before
    assert json.loads(Path("run/run.json").read_text())["step"] == 2
    assert capsys.readouterr().out.count("The model is in") == 1


def test_no_stage_begins_where_a_later_one_has_no_place(here, capsys):
    Path("run").mkdir()
    Path("run/thesis.txt").write_text("mine")
    assert main(["recipe.yaml", "--quiet", STAGES]) == 2
    assert "the folder is not empty and holds no run" in capsys.readouterr().err
    assert not Path("run-stage1").exists()


def test_a_signal_at_the_end_of_a_stage_leaves_the_next_one_to_resume(here, capsys, monkeypatch):
    train = loop.train

    def stopped(*args, **options):
        outcome = train(*args, **options)
        return dataclasses.replace(outcome, stopped=True)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "train", stopped)
        assert main(["recipe.yaml", "--quiet", STAGES]) == 130
    assert Path("run-stage1/run.json").exists() and not Path("run").exists()
    assert main(["recipe.yaml", "--quiet", "--resume", STAGES]) == 0
    assert Path("run/run.json").exists()


def test_a_run_behind_a_link_is_replaced_there(here, capsys):
    Path("scratch").mkdir()
    Path("run").symlink_to("scratch")
    for options in ([], ["--overwrite"]):
        assert main(["recipe.yaml", "--quiet", *options]) == 0
        assert Path("run").is_symlink() and Path("scratch/run.json").exists()


def test_overwriting_spares_training_text_that_a_pattern_names(here, capsys):
    assert main(["recipe.yaml", "--quiet"]) == 0
    Path("run/texts").mkdir()
    Path("run/texts/a.txt").write_text("a cat\na dog\n" * 20)
    assert main(["recipe.yaml", "--quiet", "--overwrite", "data.train=run/texts/*.txt", "data.columns=[text]"]) == 2
    assert "--overwrite would remove data.train run/texts/*.txt" in capsys.readouterr().err
    assert Path("run/texts/a.txt").exists()
