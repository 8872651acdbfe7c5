"""Batches made ahead: those of a loop that makes each when its step has come."""

import threading
import time

import pytest
import torch

from simcse_kit.errors import UserError
from simcse_kit.tokenization import TemplateTokenizer
from simcse_kit.train.pipeline import batches_ahead, step_seed
from simcse_kit.train.prepare import prepare
from simcse_kit.train.views import Views

AUGMENTED = [{"text": {"name": "word_deletion", "rate": 0.4}}, {}]


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("batches-ahead")]


def in_turn(prepared, done):
    tokenizer = TemplateTokenizer(prepared.encoder.tokenizer)
    for step, rows in enumerate(prepared.schedule.batches(done), start=done + 1):
        draws = torch.Generator().manual_seed(step_seed(prepared.recipe.seed, step, 0))
        yield prepared.views.collate(tokenizer, prepared.rows, rows, draws, prepared.masked_lm)


@pytest.mark.parametrize("done", [0, 2, 5, 6])
def test_batches_are_those_made_in_turn(recipe, done):
    prepared = prepare(recipe(views=AUGMENTED, objectives=[{"name": "nt_xent"}, {"name": "mlm"}]))
    expected, found = list(in_turn(prepared, done)), list(batches_ahead(prepared, done))
    assert len(found) == len(expected) == prepared.schedule.steps - done
    for batch, other in zip(found, expected, strict=True):
        assert torch.equal(batch.ids, other.ids) and torch.equal(batch.mask, other.mask)
        assert all(map(torch.equal, batch.masked, other.masked))
        assert (batch.own, batch.total) == (other.own, other.total)


@pytest.fixture
def made(monkeypatch):
    """The rows of each batch that has been made; making the third one fails."""
    collate, seen = Views.collate, []

    def collating(self, tokenizer, data, rows, *others):
        seen.append(rows)
        if len(seen) == 3:
            raise UserError("no such word")
        return collate(self, tokenizer, data, rows, *others)

    monkeypatch.setattr(Views, "collate", collating)
    return seen


def test_two_are_made_ahead_and_an_error_comes_at_its_own_step(recipe, made):
    batches = batches_ahead(prepare(recipe()), 0)
    next(batches)
    deadline = time.monotonic() + 60
    while len(made) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)  # for one too many
    assert len(made) == 3
    next(batches)
    with pytest.raises(UserError, match="no such word"):
        next(batches)
    assert not threads()


def test_a_loop_that_ends_early_leaves_no_thread(recipe):
    batches = batches_ahead(prepare(recipe()), 0)
    next(batches)
    assert len(threads()) == 1
    batches.close()
    assert not threads()


def test_an_encoder_tokenizes_meanwhile(recipe):
    """A tokenizer that two threads share would refuse, or cut texts where the other wants it."""
    prepared = prepare(recipe(model__max_length=4, train__batch_size=1, train__epochs=20))
    text = " ".join(prepared.rows.texts[0])
    expected = prepared.encoder.tokenize([text])
    for batch in batches_ahead(prepared, 0):
        assert prepared.encoder.tokenize([text]) == expected and len(expected[0]) > 4
        assert batch.ids.shape[1] <= 4


def test_the_seed_of_a_step_depends_on_seed_step_and_process():
    places = [(seed, step, process) for seed in (0, 1, 2**32 - 1) for step in (1, 2) for process in (0, 1)]
    assert len({step_seed(*place) for place in places}) == len(places)
    assert all(torch.Generator().manual_seed(step_seed(*place)) for place in places)
