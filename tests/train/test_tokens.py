"""Runs on tokens prepared before: rows against the documents, and what comes out against transformers' own model."""

import random

import numpy as np
import pytest
import torch
import yaml
from small_files import WORDS
from transformers import AutoModelForMaskedLM, AutoTokenizer

from simcse_kit import SentenceEncoder
from simcse_kit.cli import train as command
from simcse_kit.data.preparation import prepare_tokens
from simcse_kit.errors import UserError
from simcse_kit.locate import weight_files
from simcse_kit.objectives.masked_lm import MaskedLM
from simcse_kit.tokenization import TemplateTokenizer
from simcse_kit.train.batches import Schedule
from simcse_kit.train.held_out import HeldOut
from simcse_kit.train.plan import describe
from simcse_kit.train.prepare import open_encoder, prepare
from simcse_kit.train.recipe import Recipe
from simcse_kit.train.recipe_file import load_recipe
from simcse_kit.train.rows import open_rows
from simcse_kit.train.rundir import RunDirectory
from simcse_kit.train.stages import stage_recipes

NEW = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2}


@pytest.fixture(scope="session")
def tokens(tmp_path_factory):
    """A directory of tokens of 60 documents, 6 of them held out; a few words follow one another in a circle."""
    folder, draw = tmp_path_factory.mktemp("tokens"), random.Random(4)
    starts = [(draw.randrange(5), draw.randint(5, 60)) for _ in range(60)]
    documents = (" ".join(WORDS[place % 5] for place in range(start, start + length)) for start, length in starts)
    (folder / "text.txt").write_text("\n\n".join(documents))
    prepare_tokens([str(folder / "text.txt")], folder / "tokens", vocabulary_size=90, held_out=0.1, quiet=True)
    return folder / "tokens"


@pytest.fixture
def pretraining(tokens, tmp_path):
    """Factory of recipes that pre-train a new model for 12 steps; sections of keys are laid over it."""

    def make(**sections):
        content = {
            "model": {"name": str(tokens), "new": NEW, "pooling": "mean", "head": "none", "max_length": 16},
            "data": {"train": str(tokens)},
            "objectives": [{"name": "mlm", "rate": 0.3, "whole_word": True}],
            "train": {"batch_size": 16, "max_steps": 12, "lr": 3e-3, "warmup_ratio": 0.1},
            "evaluation": {"every": 5},
            "output_dir": str(tmp_path / "run"),
        }
        for section, keys in sections.items():
            content[section] = {**content[section], **keys} if isinstance(keys, dict) else keys
        return Recipe.model_validate(content)

    return make


def test_rows_are_the_documents_end_to_end_cut_into_one_length(pretraining, tokens):
    whole = np.load(tokens / "train-00001.npy")
    rows = open_rows(pretraining())
    assert len(rows) == len(whole) // 14
    found = rows.token_ids(range(len(rows)))
    assert all(row[0] == 2 and row[-1] == 3 and len(row) == 16 for row in found)
    np.testing.assert_array_equal([token for row in found for token in row[1:-1]], whole[: 14 * len(rows)])
    np.testing.assert_array_equal(rows.token_ids([5, 1]), [found[5], found[1]])


def test_a_batch_is_its_rows_and_words_are_hidden_whole(pretraining):
    prepared = prepare(pretraining())
    tokenizer = TemplateTokenizer(prepared.encoder.tokenizer)
    draws = torch.Generator().manual_seed(0)
    batch = prepared.views.collate(tokenizer, prepared.rows, [3, 0], draws, prepared.masked_lm)
    np.testing.assert_array_equal(batch.ids, prepared.rows.token_ids([3, 0]))
    assert batch.mask.all() and len(batch.masked.places)


def test_what_is_learned_is_measured_on_what_is_held_out_and_stays_the_same_when_saved(pretraining, run, lines):
    recipe = pretraining(train={"save_dtype": "bfloat16", "max_steps": 60}, evaluation={"every": 20})
    outcome = run(recipe)
    measured = lines(recipe, "held_out")
    assert [line["step"] for line in measured] == [0, 20, 40, 60]
    assert measured[0]["loss"] == pytest.approx(np.log(len(outcome.encoder.tokenizer)), abs=0.3)
    assert measured[-1]["loss"] < measured[0]["loss"] - 0.3
    assert measured[-1]["accuracy"] > measured[0]["accuracy"] + 0.1
    assert len({line["tokens"] for line in measured}) == 1

    # Opened by transformers, the saved model predicts the same tokens as well.
    model = AutoModelForMaskedLM.from_pretrained(recipe.output_dir, dtype=torch.float32).eval()
    assert type(model).__name__ == "BertForMaskedLM"
    prepared = prepare(recipe.model_copy(update={"model": recipe.model.model_copy(update={"new": None, "name":
                       recipe.output_dir})}))  # fmt: skip
    found = prepared.held_out.measure(prepared.encoder, prepared.masked_lm)
    assert found["loss"] == pytest.approx(measured[-1]["loss"], rel=1e-2)
    held = prepared.held_out.rows
    ids = torch.tensor(np.array(held.token_ids(range(len(held)))))
    hidden = prepared.masked_lm.mask(ids, torch.ones_like(ids), torch.Generator().manual_seed(0))
    labels = torch.full_like(ids, -100).flatten()
    labels[hidden.places] = hidden.targets
    with torch.no_grad():
        expected = model(input_ids=hidden.ids, labels=labels.view_as(ids))
    assert found["loss"] == pytest.approx(expected.loss.item(), rel=1e-5)
    right = expected.logits.argmax(-1).flatten()[hidden.places] == hidden.targets
    assert (found["accuracy"], found["tokens"]) == (pytest.approx(right.double().mean().item()), len(hidden.targets))
    assert outcome.encoder.max_length == 16


def test_a_later_run_goes_on_where_an_earlier_one_ended(pretraining, run, lines, tmp_path):
    first = pretraining(train={"max_steps": 60, "shard_mb": 1})
    run(first)
    second = pretraining(model={"name": first.output_dir, "new": None}, seed=43, output_dir=str(tmp_path / "second"))
    run(second)
    assert lines(second, "held_out")[0]["loss"] == pytest.approx(lines(first, "held_out")[-1]["loss"], rel=1e-6)
    # Its text is that of the run before, and is counted once.
    tables = [np.load(tmp_path / name / "training_text.npy") for name in ("run", "second")]
    np.testing.assert_array_equal(*tables)


def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(pretraining, run, tmp_path, monkeypatch):
    whole = run(pretraining(output_dir=str(tmp_path / "whole")))
    recipe = pretraining(train={"save_every": 5})
    monkeypatch.setattr(Schedule, "batches", cut_after(Schedule.batches, 7))
    with pytest.raises(KeyboardInterrupt):
        run(recipe)
    monkeypatch.undo()
    resumed = run(recipe, resume=True)
    for one, other in zip(whole.encoder.parameters(), resumed.encoder.parameters(), strict=True):
        if one.requires_grad:
            torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_run_that_is_interrupted_before_its_first_step_can_be_resumed(pretraining, run, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(HeldOut, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(pretraining())
    monkeypatch.undo()
    RunDirectory(pretraining().output_dir).check(pretraining(), resume=True, overwrite=False)
    assert run(pretraining(), resume=True).progress.step == 12


def cut_after(batches, steps):
    def cut(self, done):
        for number, rows in enumerate(batches(self, done)):
            if done + number == steps:
                raise KeyboardInterrupt
            yield rows

    return cut


def test_a_new_model_has_the_architecture_and_the_vocabulary_it_is_told_and_is_drawn_by_the_seed(pretraining):
    encoder = open_encoder(pretraining())
    config = encoder.backbone.config
    shape = {"intermediate_size": 128, "max_position_embeddings": 16, "vocab_size": len(encoder.tokenizer), **NEW}
    assert {key: getattr(config, key) for key in shape} == shape
    same, other = open_encoder(pretraining()), open_encoder(pretraining(seed=1))
    words = [each.backbone.get_input_embeddings().weight for each in (encoder, same, other)]
    assert torch.equal(words[0], words[1]) and not torch.equal(words[0], words[2])
    assert words[0].std().item() == pytest.approx(0.02, rel=0.1)


def test_weights_in_several_small_files_are_the_same_weights(pretraining, tmp_path):
    wide = {"num_hidden_layers": 2, "hidden_size": 256, "num_attention_heads": 4}
    prepared = prepare(pretraining(model={"new": wide}))
    # Others that were there before, in one file, would be opened first.
    prepare(pretraining(model={"new": wide}, seed=1)).encoder.save_pretrained(tmp_path / "saved")
    prepared.encoder.save_pretrained(
        tmp_path / "saved", dtype="bfloat16", shard_mb=1, token_head=prepared.masked_lm.head
    )
    files = weight_files(tmp_path / "saved")
    assert not (tmp_path / "saved" / "model.safetensors").exists()
    assert len(files) >= 4 and all(file.stat().st_size < 1.05e6 for file in files)
    opened = SentenceEncoder.from_pretrained(tmp_path / "saved", device="cpu")
    assert opened.dtype == torch.float32 and opened.weight_files == files
    again = MaskedLM(opened, rate=0.3)
    for one, other in ((prepared.encoder, opened), (prepared.masked_lm, again)):
        theirs = dict(other.named_parameters())
        for name, parameter in one.named_parameters():
            if parameter.requires_grad:
                assert torch.equal(parameter.bfloat16().float(), theirs[name]), name


def test_later_stages_begin_with_the_model_of_the_one_before_and_not_anew(pretraining, tmp_path, capfd):
    first, second = stage_recipes(pretraining(stages=[{}, {"train": {"lr": 1e-4}}]))
    assert first.model.new is not None
    assert (second.model.new, second.model.name) == (None, str(tmp_path / "run-stage1"))
    content = pretraining(stages=[{}, {"train": {"lr": 1e-4}}]).model_dump(mode="json")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    assert command.main([str(tmp_path / "recipe.yaml"), "--check"]) == 0
    assert "the best of the stage before" in capfd.readouterr().out
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content | {"stages": [{}, {"model": {"new": NEW}}]}))
    assert command.main([str(tmp_path / "recipe.yaml"), "--check"]) == 2
    assert "stages.1.model.new: a later stage starts from the best model" in capfd.readouterr().err


def test_the_plan_says_what_the_tokens_are(pretraining, tokens):
    plan = "\n".join(describe(pretraining()))
    assert "of 16 tokens, packed from the" in plan and "of 54 documents" in plan
    assert "masked tokens of" in plan and f"new, tokenizer of {tokens}" in plan


def test_rows_without_padding_have_the_loss_and_the_gradient_of_masked_ones(pretraining):
    prepared = prepare(pretraining(model={"dropout": 0.0}))
    encoder, masked_lm = prepared.encoder, prepared.masked_lm
    ids = torch.tensor(np.array(prepared.rows.token_ids(range(8))))
    mask = torch.ones_like(ids)
    hidden = masked_lm.mask(ids, mask, torch.Generator().manual_seed(1))
    losses, gradients = [], []
    for full in (True, False):
        masked_lm._full_rows = full
        encoder.zero_grad()
        loss = masked_lm(encoder, hidden, mask)
        loss.backward()
        losses.append(loss.item())
        gradients.append(encoder.backbone.get_input_embeddings().weight.grad.clone())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_a_compiled_backbone_computes_the_same_and_only_in_training(pretraining, monkeypatch):
    compiled = []

    def compile_eagerly(function):
        def called(**inputs):
            compiled.append(inputs["input_ids"].shape)
            return function(**inputs)

        return called

    monkeypatch.setattr(torch, "compile", compile_eagerly)
    encoder = open_encoder(pretraining(model={"dropout": 0.0}))
    masked_lm = MaskedLM(encoder, rate=0.3, full_rows=True, compiled=True)
    ids = torch.tensor(np.array(open_rows(pretraining()).token_ids(range(4))))
    hidden = masked_lm.mask(ids, torch.ones_like(ids), torch.Generator())
    trained = masked_lm.train()(encoder, hidden, torch.ones_like(ids))
    measured = masked_lm.eval()(encoder, hidden, torch.ones_like(ids))
    assert trained.item() == pytest.approx(measured.item(), rel=1e-6)
    assert compiled == [(4, 16)]
    assert not any("backbone" in name for name in masked_lm.state_dict())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objectives": [{"name": "info_nce"}, {"name": "mlm"}]}, "objectives: mlm alone learns from tokens"),
        ({"data": {"columns": ["a", "b"]}}, "data.columns: data.train .* holds tokens"),
        ({"views": [{"text": {"name": "crop", "rate": 0.1}}]}, "views: data.train .* holds tokens"),
        ({"model": {"new": {**NEW, "num_attention_heads": 3}}}, "hidden_size: 32 is no multiple"),
        ({"model": {"new": {**NEW, "max_position_embeddings": 8}}}, "max_position_embeddings: max_length 16"),
        ({"model": {"pooling": "cls_pooler"}}, "a new model has none"),
    ],
)
def test_what_does_not_fit_tokens_or_a_new_model_is_refused(pretraining, tokens, tmp_path, changes, said):
    content = pretraining().model_dump()
    for section, keys in changes.items():
        content[section] = {**content[section], **keys} if isinstance(keys, dict) else keys
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=said):
        load_recipe(tmp_path / "recipe.yaml")


def test_an_unknown_key_of_the_architecture_is_one_line_with_a_suggestion(pretraining, tmp_path, capfd):
    content = pretraining().model_dump(mode="json")
    content["model"]["new"] = {**NEW, "hiden_act": "gelu"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    assert command.main([str(tmp_path / "recipe.yaml"), "--check"]) == 2
    assert "model.new.hiden_act: unknown key; did you mean 'hidden_act'?" in capfd.readouterr().err


def test_tokens_of_another_vocabulary_are_refused(pretraining, tiny_checkpoint):
    with pytest.raises(UserError, match=r"another vocabulary .* --tokenizer"):
        prepare(pretraining(model={"name": str(tiny_checkpoint("bert")), "new": None}))


def test_only_rows_of_one_length_are_compiled(recipe, files):
    texts = {"train": str(files / "texts.txt")}
    with pytest.raises(UserError, match=r"train\.compile: rows must be of one length"):
        prepare(recipe(data=texts, objectives=[{"name": "mlm"}], train__compile=True, evaluation={}))
    with pytest.raises(UserError, match=r"train\.compile: rows must be of one length"):
        prepare(recipe(data=texts, train__compile=True, evaluation={}))


def test_text_without_preparation_still_serves_masked_language_modelling_alone(recipe, files, run, lines):
    content = recipe(data={"train": str(files / "texts.txt")}, objectives=[{"name": "mlm"}], evaluation={})
    run(content)
    assert lines(content) and not lines(content, "held_out")
    tokenizer = AutoTokenizer.from_pretrained(content.output_dir)
    assert SentenceEncoder.from_pretrained(content.output_dir).tokenizer.get_vocab() == tokenizer.get_vocab()
