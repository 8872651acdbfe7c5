import json
import signal
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from tokenizers import BertWordPieceTokenizer
from transformers import BertConfig, BertModel, BertTokenizer

from simcse_kit import SentenceEncoder
from simcse_kit.data.overlap import overlap, read_fingerprints
from simcse_kit.data.readers import read_columns
from simcse_kit.data.sts import load_evaluation
from simcse_kit.errors import UserError
from simcse_kit.evaluate.sts import score_sts
from simcse_kit.objectives import info_nce, nt_xent
from simcse_kit.train import prepare as prepare_module
from simcse_kit.train.loop import train
from simcse_kit.train.prepare import open_encoder, prepare
from simcse_kit.train.recipe import Recipe
from simcse_kit.train.recipe_file import load_recipe
from simcse_kit.train.rundir import RunDirectory
from simcse_kit.train.signals import stop_signals
from simcse_kit.train.weighted import WeightedObjectives

TRAIN_KEYS = {"kind", "step", "epoch", "loss", "terms", "lr", "grad_norm", "tokens", "seconds"}
EVAL_KEYS = {"kind", "step", "task", "split", "spearman", "best"}
RUN_KEYS = {"versions", "commit", "seed", "command", "data", "seconds", "world_size", "resumed_from", "best"}


def weights(path):
    return SentenceEncoder.from_pretrained(path, device="cpu").state_dict()


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_leaves_the_documented_files(recipe, run, lines, files):
    content = recipe(data__convert=None, evaluation__task="my pairs")
    outcome = run(content)
    path = RunDirectory(content.output_dir).path
    assert {"recipe.yaml", "run.json", "metrics.jsonl", "modules.json", "model.safetensors"} <= {
        item.name for item in path.iterdir()
    }
    assert not (path / "checkpoints").exists() and not [item for item in path.iterdir() if item.name.startswith(".")]
    assert yaml.safe_load((path / "recipe.yaml").read_text()) == content.model_dump()

    trained, evaluated = lines(content), lines(content, "eval")
    assert [line["step"] for line in trained] == [1, 2, 3, 4, 5, 6]
    assert [line["epoch"] for line in trained] == [step / 3 for step in range(1, 7)]
    assert [line["lr"] for line in trained] == pytest.approx([1e-3 * (6 - step) / 6 for step in range(6)])
    assert all(line.keys() == TRAIN_KEYS and line["terms"] == {"info_nce": line["loss"]} for line in trained)
    assert all(line["seconds"] > 0 and line["grad_norm"] > 0 for line in trained)
    encoder, rows = open_encoder(content), prepare(content).rows
    tokens = sum(len(ids) for column in rows.texts for ids in encoder.tokenize(column, 32))
    assert sum(line["tokens"] for line in trained[:3]) == sum(line["tokens"] for line in trained[3:]) == tokens
    assert [line["step"] for line in evaluated] == [2, 4, 6]
    assert all(line.keys() == EVAL_KEYS and line["task"] == "my pairs" for line in evaluated)

    record = json.loads((path / "run.json").read_text())
    assert record.keys() >= RUN_KEYS
    assert (record["status"], record["seed"], record["world_size"], record["resumed_from"]) == ("done", 42, 1, None)
    assert record["versions"]["torch"] == torch.__version__
    assert (record["step"], record["steps"], record["rows"]) == (6, 6, 22)
    assert record["selected_on_test"] is False
    assert overlap(read_fingerprints(path), rows.texts[2]).train_rows == 22
    best = max(evaluated, key=lambda line: (line["spearman"], -line["step"]))
    assert record["best"] == {key: best[key] for key in ("step", "task", "split", "spearman")}
    assert record["before"]["step"] == 0
    task = load_evaluation(files / "sts.csv", task="my pairs", split="dev")
    assert score_sts(outcome.encoder, task).value == record["best"]["spearman"]
    assert same(outcome.encoder.state_dict(), weights(path))


def test_only_a_strictly_better_score_replaces_the_best_model(recipe, run, lines, monkeypatch):
    scores = iter([10.0, 30.0, 30.0, None, 29.0, 31.0, 5.0])
    seen = []

    def score(encoder, task, step):
        seen.append({name: value.clone() for name, value in encoder.state_dict().items()})
        return {"step": step, "task": task.name, "split": task.split, "spearman": next(scores)}

    monkeypatch.setattr("simcse_kit.train.loop._evaluate", score)
    content = recipe(evaluation__every=1)
    outcome = run(content)
    assert [line["best"] for line in lines(content, "eval")] == [True, False, False, False, True, False]
    assert outcome.progress.best["step"] == 5 and outcome.progress.before["spearman"] == 10.0
    assert outcome.progress.stale == 1
    kept = outcome.encoder.state_dict()
    assert all(torch.equal(kept[name], seen[5][name]) for name in kept if "pooler" not in name)


def test_training_stops_when_patience_ends(recipe, run, lines, monkeypatch):
    scores = iter([0.0, 1.0, 2.0, 1.5, 2.0, 3.0, 4.0])
    monkeypatch.setattr(
        "simcse_kit.train.loop._evaluate",
        lambda encoder, task, step: {"step": step, "task": "t", "split": "dev", "spearman": next(scores)},
    )
    content = recipe(evaluation__every=1, train__patience=2)
    outcome = run(content)
    assert (outcome.progress.step, outcome.progress.best["step"], outcome.interrupted) == (4, 2, False)
    assert len(lines(content)) == 4
    assert json.loads((RunDirectory(content.output_dir).path / "run.json").read_text())["status"] == "done"


@pytest.mark.parametrize(("every", "steps"), [(0, [6]), (4, [4, 6]), (99, [6])])
def test_evaluation_takes_place_as_often_as_asked_and_at_the_end(recipe, run, lines, every, steps):
    content = recipe(evaluation__every=every, train__log_every=4)
    run(content)
    assert [line["step"] for line in lines(content, "eval")] == steps
    assert [line["step"] for line in lines(content)] == [4]


def test_without_evaluation_the_last_model_is_kept(recipe, run, lines):
    content = recipe(evaluation__data=None)
    prepared = prepare(content)
    outcome = train(prepared, RunDirectory(content.output_dir), quiet=True)
    assert lines(content, "eval") == [] and outcome.progress.best is None and outcome.progress.before is None
    last, kept = prepared.encoder.state_dict(), outcome.encoder.state_dict()
    assert all(torch.equal(kept[name], last[name]) for name in kept if "pooler" not in name)
    assert not same(kept, weights(content.model.name))


@pytest.mark.parametrize("evaluated", [True, False])
def test_a_share_of_the_trained_weights_lies_between_start_and_end_and_changes_no_step(
    recipe, run, lines, files, tmp_path, evaluated
):
    def content(share):
        evaluation = {"data": str(files / "sts.csv") if evaluated else None, "every": 0}
        return recipe(train__trained_share=share, evaluation=evaluation, output_dir=str(tmp_path / str(share)))

    whole, part = content(1.0), content(0.3)
    runs = [run(each) for each in (whole, part)]
    assert [line["loss"] for line in lines(whole)] == [line["loss"] for line in lines(part)]
    start, end, between = (
        SentenceEncoder.from_pretrained(path, device="cpu").state_dict()
        for path in (whole.model.name, whole.output_dir, part.output_dir)
    )
    for name, weights in between.items():
        torch.testing.assert_close(weights, 0.7 * start[name] + 0.3 * end[name], rtol=0, atol=1e-6)
    name = "backbone.embeddings.LayerNorm.weight"
    assert (end[name] - start[name]).abs().max() > 1e-3
    if evaluated:
        task = load_evaluation(str(files / "sts.csv"), task="STSB", split="dev")
        assert lines(part, "eval")[-1]["spearman"] == pytest.approx(score_sts(runs[1].encoder, task).value, abs=1e-4)


def test_the_same_seed_gives_the_same_run_and_another_one_another(recipe, run, lines, tmp_path):
    def losses(name, **changes):
        content = recipe(output_dir=str(tmp_path / name), evaluation__data=None, **changes)
        return [line["loss"] for line in (run(content), lines(content))[1]]

    once = losses("once")
    torch.rand(7)  # what was drawn before a run is of no account
    assert losses("again") == once
    assert losses("other", seed=43) != once
    assert losses("still", seed=43, data__shuffle=False)[0] != losses("dropout", seed=44, data__shuffle=False)[0]
    dry = [losses(f"dry{seed}", seed=seed, data__shuffle=False, model__dropout=0.0) for seed in (43, 44)]
    assert dry[0] == dry[1]


def test_two_dropout_views_of_one_text_differ_the_more_the_higher_the_rate(recipe, run, lines, files, tmp_path):
    losses = []
    for dropout in (0.0, 0.1, 0.5):
        content = recipe(
            data__train=str(files / "texts.txt"),
            data__columns=["text"],
            model__dropout=dropout,
            objectives=[{"temperature": 1.0}],
            evaluation__data=None,
            train__max_steps=1,
            output_dir=str(tmp_path / str(dropout)),
        )
        run(content)
        losses.append(lines(content)[0]["loss"])
    assert losses[0] < losses[1] < losses[2]


@pytest.mark.parametrize(
    ("pooling", "keep", "saved_as"),
    [
        ("cls", False, ("cls", "none")),
        ("cls", True, ("cls_pooler", "none")),  # as the models released with SimCSE: in the place of BERT's pooler
        ("mean", True, ("mean", "mlp")),
    ],
)
def test_a_head_trains_and_is_kept_or_not(recipe, run, pooling, keep, saved_as):
    content = recipe(model__head="mlp", model__keep_head=keep, model__pooling=pooling)
    fresh = open_encoder(content, torch.device("cpu")).head.linear.weight.detach()
    prepared = prepare(content)
    outcome = train(prepared, RunDirectory(content.output_dir), quiet=True)
    head, encoder = prepared.encoder.head.linear.weight, outcome.encoder
    assert 0 < (head - fresh).abs().max() < 0.1
    assert (encoder.pooling, encoder.head_name) == saved_as


def test_unsupervised_training_on_a_text_file_needs_no_network(recipe, run, lines, files, no_network):
    content = recipe(
        data__train=str(files / "texts.txt"),
        data__columns=["text"],
        model__pooling="cls",
        model__head="mlp",
    )
    outcome = run(content)
    assert outcome.encoder.encode(["a cat", "a dog"]).shape == (2, 32)
    assert [line["step"] for line in lines(content)] == [1, 2, 3, 4, 5, 6]


def test_bfloat16_trains_in_bfloat16_and_evaluates_and_saves_in_float32(recipe, run, lines, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "has_instructions", lambda *of: True)
    seen = set()
    content = recipe(train__precision="bf16", model__dropout=0.0)
    prepared = prepare(content)
    layer = prepared.encoder.backbone.encoder.layer[0].intermediate.dense
    layer.register_forward_hook(lambda module, inputs, output: seen.add((prepared.encoder.training, output.dtype)))
    outcome = train(prepared, RunDirectory(content.output_dir), quiet=True)
    assert seen == {(True, torch.bfloat16), (False, torch.float32)}
    assert {value.dtype for value in outcome.encoder.state_dict().values()} == {torch.float32}
    full = recipe(model__dropout=0.0, output_dir=str(tmp_path / "full"))
    run(full)
    ours, reference = ([line["loss"] for line in lines(each)] for each in (content, full))
    assert ours != reference and ours == pytest.approx(reference, rel=0.1)


def test_no_clipping_takes_larger_steps_and_reports_the_norm_before_clipping(recipe, run, lines, tmp_path):
    norms = {}
    for limit in (None, 1e-3, 1e9):
        content = recipe(
            train__max_grad_norm=limit,
            model__dropout=0.0,
            train__weight_decay=0.1,
            evaluation__data=None,
            output_dir=str(tmp_path / str(limit)),
        )
        run(content)
        norms[limit] = [line["grad_norm"] for line in lines(content)]
    assert norms[None] == norms[1e9]
    assert norms[1e-3][0] == norms[None][0] > 1e-3 and norms[1e-3][1:] != norms[None][1:]


def test_a_diverging_run_stops_and_names_the_step(recipe, run, lines):
    content = recipe(train__lr=1e30)
    with pytest.raises(UserError, match=r"step 2: the loss is no longer a finite number"):
        run(content)
    assert lines(content)[1]["loss"] is None
    assert not (RunDirectory(content.output_dir).path / "model.safetensors").exists()


def test_a_set_that_cannot_rank_models_is_refused_before_anything_is_written(recipe, run, tmp_path):
    path = tmp_path / "flat.csv"
    path.write_text("sentence1,sentence2,score\na cat,a dog,2\na man,a ball,2\n")
    with pytest.raises(UserError, match=r"flat\.csv: Spearman is undefined on this set: all 2 gold scores are equal"):
        run(recipe(evaluation__data=str(path)))
    assert not (tmp_path / "run").exists()


def test_a_failing_first_evaluation_comes_before_anything_is_written(recipe, run, tmp_path, monkeypatch):
    def fail(*arguments):
        raise MemoryError

    monkeypatch.setattr("simcse_kit.train.loop.score_sts", fail)
    with pytest.raises(MemoryError):
        run(recipe())
    assert not (tmp_path / "run").exists()


def test_half_precision_without_a_gpu_is_refused(recipe, tmp_path):
    if torch.accelerator.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        prepare(recipe(train__precision="fp16"))


def test_objectives_are_weighted_and_reported_before_weighting(recipe):
    columns = [[torch.randn(5, 8, generator=torch.Generator().manual_seed(seed))] for seed in range(3)]
    one = {"weight": 0.5, "temperature": 0.2, "hard_negative_weight": 1.0}
    both = [one, {"name": "triplet", "weight": 3.0}]
    (anchor,), (positive,), (negative,) = columns
    contrast = info_nce(anchor, positive, negative, temperature=0.2, hard_negative_weight=1.0)
    total, terms = WeightedObjectives(recipe(objectives=[one]), width=8)(columns, None)
    assert terms == {"info_nce": contrast} and total.item() == pytest.approx(0.5 * contrast.item())
    total, terms = WeightedObjectives(recipe(objectives=both), width=8)(columns, None)
    margin = (1 + (anchor - positive).norm(dim=1) - (anchor - negative).norm(dim=1)).clamp(min=0).mean()
    assert terms["triplet"].item() == pytest.approx(margin.item(), rel=1e-5)
    assert total.item() == pytest.approx(0.5 * contrast.item() + 3.0 * margin.item(), rel=1e-5)


def test_an_objective_over_views_adds_up_over_the_texts_and_one_over_columns_sees_the_first_views(recipe, files):
    content = recipe(
        data={"train": str(files / "sts.csv"), "convert": "scored_pairs"},
        views=[{}, {}],
        objectives=[{"name": "nt_xent", "weight": 0.15, "reduction": "sum"}, {"name": "cosine_regression"}],
    )
    u, v = (
        [torch.randn(4, 8, generator=torch.Generator().manual_seed(10 * i + j)) for j in range(2)] for i in range(2)
    )
    labels = torch.tensor([5.0, 0.0, 2.5, 1.0])
    total, terms = WeightedObjectives(content, width=8)([list(u), list(v)], labels)
    contrast = nt_xent(*u, reduction="sum") + nt_xent(*v, reduction="sum")
    squares = ((torch.cosine_similarity(u[0], v[0]) - labels / 5) ** 2).mean()
    assert terms["nt_xent"].item() == pytest.approx(contrast.item(), rel=1e-5)
    assert terms["cosine_regression"].item() == pytest.approx(squares.item(), rel=1e-5)
    assert total.item() == pytest.approx(0.15 * contrast.item() + squares.item(), rel=1e-5)


def test_signals_are_noted_and_a_second_one_is_not_held_back():
    before = signal.getsignal(signal.SIGINT)
    with stop_signals(launched=False) as received:
        assert not received
        signal.raise_signal(signal.SIGINT)
        assert received == [signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    with stop_signals(launched=True) as received:
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(number)
        assert received == [signal.SIGINT, signal.SIGINT, signal.SIGTERM]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_works_outside_the_main_thread(recipe, run):
    ended = []
    thread = threading.Thread(target=lambda: ended.append(run(recipe(evaluation__data=None, train__max_steps=1))))
    thread.start()
    thread.join()
    assert [outcome.progress.step for outcome in ended] == [1]


def test_a_run_in_another_precision_may_follow_in_the_same_process(recipe, monkeypatch):
    monkeypatch.setattr(prepare_module, "has_instructions", lambda *of: True)
    precisions = [prepare(recipe(train__precision=name)).accelerator.mixed_precision for name in ("fp32", "bf16")]
    assert precisions == ["no", "bf16"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("has", [True, False])
def test_a_cpu_without_instructions_for_bfloat16_trains_in_float32_and_says_so(
    recipe, run, monkeypatch, recwarn, has, precision
):
    monkeypatch.setattr(prepare_module, "has_instructions", lambda *of: has)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    content = recipe(train__precision=precision)
    run(content)
    falls_back = precision == "bf16" and not has
    assert any("bf16 is fp32 here" in str(warning.message) for warning in recwarn) == falls_back
    record = json.loads((Path(content.output_dir) / "run.json").read_text())
    assert record["precision"] == ("fp32" if falls_back else precision)
    assert load_recipe(Path(content.output_dir) / "recipe.yaml").train.precision == precision


@pytest.mark.slow
def test_a_random_bert_learns_the_scenes(run, lines, tmp_path):
    texts = [text for triplet in read_columns("scenes", ["a", "p", "n"], limit=2_000).values() for text in triplet]
    pieces = BertWordPieceTokenizer()
    pieces.train_from_iterator(texts, vocab_size=2_000, show_progress=False)
    tokenizer = BertTokenizer(vocab=pieces.get_vocab(), model_max_length=64)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    content = {
        "model": {"name": str(tmp_path / "bert"), "pooling": "mean", "head": "none"},
        "data": {"train": "scenes", "columns": ["anchor", "positive", "negative"]},
        "train": {"batch_size": 32, "max_steps": 40, "lr": 3e-3, "warmup_ratio": 0.1},
        "evaluation": {"data": "scenes", "split": "dev", "every": 20},
        "output_dir": str(tmp_path / "run"),
    }
    recipe = Recipe.model_validate(content)
    progress = run(recipe).progress
    # From about 10 to about 33, whatever the seed.
    assert progress.best["spearman"] > progress.before["spearman"] + 12
    losses = [line["loss"] for line in lines(recipe)]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_a_run_that_diverges_between_two_lines_leaves_no_model(recipe, run):
    content = recipe(train__lr=1e30, train__log_every=100, evaluation__data=None)
    with pytest.raises(UserError, match=r"step 6: the loss is no longer a finite number"):
        run(content)
    assert not (RunDirectory(content.output_dir).path / "model.safetensors").exists()


def test_a_signal_during_the_last_step_is_told_though_the_run_is_complete(recipe, run, monkeypatch):
    received = []

    @contextmanager
    def signals(*, launched):
        yield received

    monkeypatch.setattr("simcse_kit.train.loop.stop_signals", signals)
    monkeypatch.setattr(
        "simcse_kit.train.loop._evaluate",
        lambda encoder, task, step: (
            (step == 6 and received.append(2)) or {"step": step, "task": "t", "split": "dev", "spearman": 1.0}
        ),
    )
    outcome = run(recipe())
    assert (outcome.interrupted, outcome.stopped, outcome.progress.step) == (False, True, 6)


def test_what_cannot_be_fingerprinted_leaves_no_folder(recipe, run, monkeypatch):
    def fail(rows):
        raise UserError("prepare the text again")

    monkeypatch.setattr("simcse_kit.train.rows.TrainingRows.fingerprints", fail)
    content = recipe()
    with pytest.raises(UserError, match="prepare the text again"):
        run(content)
    assert not RunDirectory(content.output_dir).path.exists()


def test_a_kept_head_goes_on_in_the_next_run(recipe, run, tmp_path):
    first = recipe(model__pooling="cls", model__head="mlp", model__keep_head=True, evaluation__data=None)
    run(first)
    second = {"model__name": first.output_dir, "output_dir": str(tmp_path / "second"), "train__lr": 0.0}
    run(recipe(model__pooling="cls", model__head="mlp", model__keep_head=True, evaluation__data=None, **second))
    assert same(weights(first.output_dir), weights(tmp_path / "second"))


def test_the_recipes_optimiser_is_the_one_that_trains(recipe, monkeypatch):
    made = []
    monkeypatch.setattr("simcse_kit.train.loop.adamw", lambda *args, **options: made.append(options) or 1 / 0)
    content = recipe(train__adam_epsilon=1e-6, train__bias_correction=False, train__weight_decay=0.1)
    with pytest.raises(ZeroDivisionError):
        train(prepare(content), RunDirectory(content.output_dir), quiet=True)
    assert made == [{"lr": 1e-3, "weight_decay": 0.1, "epsilon": 1e-6, "bias_correction": False}]
