"""Several processes train as one does. They talk over gloo, on this machine alone."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from simcse_kit import SentenceEncoder
from simcse_kit.objectives import masked_lm
from simcse_kit.train import distributed, loop
from simcse_kit.train.distributed import share
from simcse_kit.train.loop import train
from simcse_kit.train.prepare import prepare
from simcse_kit.train.recipe import Recipe
from simcse_kit.train.rundir import RunDirectory
from simcse_kit.train.stages import stage_recipes

PROCESSES = 2


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@given(rows=st.lists(st.integers(), max_size=40), processes=st.integers(1, 9))
def test_shares_are_contiguous_even_and_make_up_the_batch(rows, processes):
    shares = [share(rows, process, processes) for process in range(processes)]
    assert [row for part in shares for row in part] == rows
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def train_noting_gradients(content, process, processes, port, notes):
    """Run a recipe as one of several processes, and save the gradients of every step before they are clipped."""
    if processes > 1:
        place = {"RANK": process, "LOCAL_RANK": process, "WORLD_SIZE": processes, "MASTER_PORT": port}
        os.environ.update({"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in place.items()}})
    masked_lm._MASKED, masked_lm._RANDOM = 1.0, 0.0  # else every process draws what it hides tokens behind
    gradients = []
    clip = loop.clip_gradients

    def noting(parameters, *arguments):
        parameters = list(parameters)
        gradients.append([None if each.grad is None else each.grad.clone() for each in parameters])
        return clip(parameters, *arguments)

    loop.clip_gradients = noting
    recipe = Recipe.model_validate(content)
    train(prepare(recipe), RunDirectory(recipe.output_dir), quiet=True)
    torch.save(gradients, notes)


@pytest.mark.parametrize(
    ("columns", "objectives", "changes"),
    [
        (["a", "p"], [{}], {}),
        (["a", "p", "n"], [{"hard_negative_weight": 0.7}], {}),
        (["a", "p", "n"], [{}], {"train__chunk_size": 2}),
        (["a", "p", "label"], [{"name": "softmax"}], {"data__convert": "nli_pairs"}),  # it has parameters of its own
        (["a", "p"], [{}, {"name": "mlm", "rate": 1 - 1e-9}], {}),
        (["a", "p"], [{"name": "nt_xent"}], {"views": [{}, {"embedding": {"name": "adversarial", "of": "views"}}]}),
    ],
    ids=["pairs", "triplets", "chunks", "classes", "masked tokens", "adversarial"],
)
def test_two_processes_give_the_loss_and_the_gradient_of_one(
    columns, objectives, changes, recipe, lines, start, tmp_path, files
):
    # 19 rows in batches of 9: an odd batch, and a last one with a single row for both processes. The learning rate is
    # 0, so that no step inherits a difference from the one before.
    few = tmp_path / "rows.csv"
    header, *rows = (files / "triplets.csv").read_text().splitlines()[:20]
    labelled = [f"{header},label", *(f"{row},{i % 3}" for i, row in enumerate(rows))]
    few.write_text("\n".join(labelled))

    def content(name):
        return recipe(
            data__train=str(few),
            data__columns=columns,
            model__dropout=0.0,
            model__head="mlp",
            train__batch_size=9,
            train__lr=0.0,
            train__epochs=1,
            objectives=objectives,
            **changes,
            output_dir=str(tmp_path / name),
        )

    port = free_port()
    runs = {"one": [(0, 1)], "two": [(process, PROCESSES) for process in range(PROCESSES)]}
    started = [
        start(train_noting_gradients, content(name).model_dump(), *place, port, tmp_path / f"{name}-{place[0]}.pt")
        for name, places in runs.items()
        for place in places
    ]
    for process in started:
        process.join(120)
    assert [process.exitcode for process in started] == [0, 0, 0]

    one, two = (lines(content(name)) for name in ("one", "two"))
    assert [line["step"] for line in two] == [1, 2, 3]
    for alone, together in zip(one, two, strict=True):
        assert together["loss"] == pytest.approx(alone["loss"], abs=1e-5)
        assert together["grad_norm"] == pytest.approx(alone["grad_norm"], abs=1e-4)
        assert together["tokens"] == alone["tokens"]
    expected = torch.load(tmp_path / "one-0.pt")
    assert max(part.abs().max() for step in expected[:2] for part in step if part is not None) > 0.01
    for process in range(PROCESSES):
        found = torch.load(tmp_path / f"two-{process}.pt")
        for step, own in zip(expected, found, strict=True):
            for part, own_part in zip(step, own, strict=True):
                assert (part is None) == (own_part is None)
                assert part is None or (part - own_part).abs().max() < 1e-5 * max(1.0, part.abs().max())
    assert json.loads((tmp_path / "two" / "run.json").read_text())["world_size"] == PROCESSES
    assert [line["step"] for line in lines(content("two"), "eval")] == [2, 3]


def launch(path, *options):
    """``torchrun`` with two processes, as one would type it."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(PROCESSES)]
    ports = ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    return subprocess.Popen(
        [*torchrun, *ports, "-m", "simcse_kit.cli.train", str(path), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a group of its own, to which Ctrl-C can be sent as a terminal does
    )


@pytest.mark.slow
def test_a_launched_run_is_the_run_of_one_process(recipe, run, lines, tmp_path):
    options = {"model__dropout": 0.0, "train__lr": 1e-4}
    content = recipe(**options, output_dir=str(tmp_path / "two"))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content.model_dump()))
    launched = launch(tmp_path / "recipe.yaml")
    alone = recipe(**options, output_dir=str(tmp_path / "one"))
    outcome = run(alone)
    out, err = launched.communicate(timeout=120)
    assert launched.returncode == 0, err
    assert out.count("The model is in") == 1
    assert json.loads((tmp_path / "two" / "run.json").read_text())["world_size"] == PROCESSES
    for kind, keys in (("train", ("loss", "grad_norm", "lr", "tokens")), ("eval", ("step", "spearman"))):
        one, two = lines(alone, kind), lines(content, kind)
        for key in keys:
            assert [line[key] for line in two] == pytest.approx([line[key] for line in one], abs=1e-4)
    text = "the red ball in the garden"
    theirs = SentenceEncoder.from_pretrained(tmp_path / "two", device="cpu").encode(text)
    assert abs(theirs - outcome.encoder.encode(text)).max() < 1e-4


@pytest.mark.slow
def test_the_stages_of_a_launched_run_are_those_of_one_process(recipe, run, lines, tmp_path):
    options = {"model__dropout": 0.0, "train__lr": 1e-4, "train__max_steps": 2, "stages": [{"seed": 3}, {"seed": 4}]}
    content = recipe(**options, output_dir=str(tmp_path / "two"))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content.model_dump()))
    launched = launch(tmp_path / "recipe.yaml", "--quiet")
    alone = stage_recipes(recipe(**options, output_dir=str(tmp_path / "one")))
    for stage in alone:
        run(stage)
    _, err = launched.communicate(timeout=120)
    assert launched.returncode == 0, err
    for one, two in zip(alone, stage_recipes(content), strict=True):
        assert json.loads((Path(two.output_dir) / "run.json").read_text())["world_size"] == PROCESSES
        losses = [[line["loss"] for line in lines(each)] for each in (one, two)]
        assert losses[1] == pytest.approx(losses[0], abs=1e-4) and len(losses[0]) == 2


@pytest.mark.slow
def test_ctrl_c_ends_a_launched_run_with_a_checkpoint(recipe, tmp_path):
    content = recipe(train__max_steps=100_000, evaluation__every=5)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content.model_dump()))
    launched = launch(tmp_path / "recipe.yaml", "--quiet")
    try:
        patience = time.monotonic() + 100
        while not (tmp_path / "run" / "model.safetensors").exists() and time.monotonic() < patience:
            time.sleep(0.1)
        os.killpg(launched.pid, signal.SIGINT)
        _, err = launched.communicate(timeout=60)
    finally:
        if launched.poll() is None:
            os.killpg(launched.pid, signal.SIGKILL)
    assert launched.returncode != 0 and "KeyboardInterrupt" not in err
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["status"], record["world_size"]) == ("interrupted", PROCESSES)
    assert RunDirectory(tmp_path / "run").load_checkpoint().progress.step == record["step"]
    assert SentenceEncoder.from_pretrained(tmp_path / "run", device="cpu").encode("a cat").shape == (32,)


@pytest.mark.parametrize(("seconds", "asked"), [(0.001, [1, 11, 21, 31]), (2.0, [1, 3, 5, 7]), (60.0, [1, 2, 3, 4])])
def test_processes_ask_each_other_whether_to_stop_as_often_as_steps_are_long(monkeypatch, seconds, asked):
    """Every tenth step, and after five seconds at the latest; the slowest process decides."""
    questions, now = [], [0.0]

    def largest(values, device):
        questions.append(step)
        return [float(step >= asked[-1]), 2 * values[1]]

    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "_largest", largest)
    monkeypatch.setattr(distributed.time, "perf_counter", lambda: now[0])
    agreement = distributed.Agreement(torch.device("cpu"))
    for step in range(1, 100):  # noqa: B007 - `largest` looks at it
        now[0] += seconds / 2
        if agreement.after_step(told=False):
            break
    assert questions == asked
