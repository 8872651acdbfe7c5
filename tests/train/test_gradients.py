"""Gradients in chunks: those of the whole batch, whatever is random in it, and smaller chunks where memory ends."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from simcse_kit.errors import UserError
from simcse_kit.tokenization import TemplateTokenizer
from simcse_kit.train import views as views_module
from simcse_kit.train.gradients import Gradients
from simcse_kit.train.pipeline import step_seed
from simcse_kit.train.prepare import prepare
from simcse_kit.train.views import MergedForward

ROWS = [3, 1, 4, 15, 9, 2, 6]

CASES = {
    "triplets": {"data__columns": ["a", "p", "n"], "objectives": [{"hard_negative_weight": 0.5}]},
    "dropout views": {"data__columns": ["a"]},
    "a view without dropout": {"data__columns": ["a"], "views": [{}, {"dropout": False}]},
    "two encoders": {"data__columns": ["a", "p"], "train__encoders": 2},
    "embeddings": {
        "data__columns": ["a"],
        "views": [{"embedding": {"name": "feature_cutoff", "rate": 0.3}}, {"embedding": {"name": "shuffle"}}],
        "objectives": [{"name": "nt_xent"}],
    },
    "labels": {
        "data__columns": ["a", "p", "label"],
        "data__convert": "nli_pairs",
        "views": [{}, {}],
        "objectives": [{"name": "softmax"}, {"name": "nt_xent"}],
    },
    "masked tokens": {"data__columns": ["a", "p"], "objectives": [{}, {"name": "mlm", "rate": 0.4}]},
}


@pytest.fixture
def prepared(recipe, files, tmp_path):
    """A case prepared, with its forward pass."""
    header, *rows = (files / "triplets.csv").read_text().splitlines()
    table = tmp_path / "rows.csv"
    table.write_text("\n".join([f"{header},label", *(f"{row},{i % 3}" for i, row in enumerate(rows))]))

    def make(case, **changes):
        settings = {"data__train": str(table), "model__head": "mlp", "model__dropout": 0.3, **CASES[case], **changes}
        made = prepare(recipe(**settings))
        options = {"second": made.second, "masked_lm": made.masked_lm}
        return made, MergedForward(made.recipe, made.encoder, made.views, made.objective, **options)

    return make


def batch_of(made, step):
    draws = torch.Generator().manual_seed(step)
    return made.views.collate(TemplateTokenizer(made.encoder.tokenizer), made.rows, ROWS, draws, made.masked_lm)


def gradients_of(model, prepared):
    found = {name: p.grad for name, p in [*model.named_parameters(), *prepared.objective.named_parameters()]}
    for part in (model, prepared.objective):
        part.zero_grad()
    return {name: gradient.clone() for name, gradient in found.items() if gradient is not None}


def assert_same(found, expected):
    assert found.keys() == expected.keys() and expected
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() < 1e-5 * max(1.0, gradient.abs().max()), name


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [1, 3])
def test_chunks_have_the_gradients_of_their_joint_graph_with_dropout_on(prepared, case, size):
    made, model = prepared(case, train__chunk_size=size)
    gradients = Gradients(made, model, made.recipe.train.chunk_size)
    loss = gradients.compute(batch_of(made, step=5), step=5)
    found = gradients_of(model, made)

    batch = batch_of(made, step=5)
    torch.manual_seed(step_seed(made.recipe.seed, 5, 0))
    with gradients._quick_layers.in_use():  # which draw dropout in their own way
        parts = [model._encode_chunk(chunk) for chunk in batch.chunks(len(made.views.blocks), size)]
    assert len(parts) == -(-len(ROWS) // size)
    blocks = [torch.cat(views) for views in zip(*(vectors for vectors, _ in parts), strict=True)]
    totals = [total for _, total in parts if total is not None]
    own = {"mlm": sum(totals) / len(batch.masked.places)} if totals else {}
    expected, _ = made.objective(made.views.arrange(blocks), batch.labels, own)
    assert loss.value.item() == pytest.approx(expected.item(), rel=1e-6)
    expected.backward()
    assert_same(found, gradients_of(model, made))


@pytest.mark.parametrize("case", ["triplets", "labels", "masked tokens"])
def test_without_dropout_chunks_have_the_loss_and_the_gradients_of_the_whole_batch(prepared, case):
    results = []
    for size in (None, 2):
        made, model = prepared(case, model__dropout=0.0, train__chunk_size=size)
        loss = Gradients(made, model, made.recipe.train.chunk_size).compute(batch_of(made, step=1), step=1)
        results.append((loss, gradients_of(model, made)))
    (whole, expected), (chunked, found) = results
    assert chunked.value.item() == pytest.approx(whole.value.item(), abs=1e-5)
    assert chunked.tokens == whole.tokens
    assert_same(found, expected)


def test_draws_that_are_not_repeated_would_be_noticed(prepared, monkeypatch):
    made, model = prepared("triplets", train__chunk_size=3)
    Gradients(made, model, made.recipe.train.chunk_size).compute(batch_of(made, step=1), step=1)
    right = gradients_of(model, made)
    forgetful = lambda *args, **options: checkpoint(*args, **options, preserve_rng_state=False)  # noqa: E731
    monkeypatch.setattr(views_module, "checkpoint", forgetful)
    Gradients(made, model, made.recipe.train.chunk_size).compute(batch_of(made, step=1), step=1)
    with pytest.raises(AssertionError):
        assert_same(gradients_of(model, made), right)


@pytest.fixture
def memory(monkeypatch):
    """Memory for no more than so many rows a chunk."""

    def limit(rows):
        encode, sizes = MergedForward._encode_chunk, []

        def encoding(self, batch):
            sizes.append(len(batch.ids) // len(self._blocks))
            if sizes[-1] > rows:
                raise torch.OutOfMemoryError("no memory left")
            return encode(self, batch)

        monkeypatch.setattr(MergedForward, "_encode_chunk", encoding)
        return sizes

    return limit


def test_out_of_memory_halves_the_chunk_and_the_step_is_what_it_would_have_been(prepared, memory):
    made, model = prepared("triplets", train__chunk_size=2)
    loss = Gradients(made, model, made.recipe.train.chunk_size).compute(batch_of(made, step=1), step=1)
    expected = gradients_of(model, made)

    made, model = prepared("triplets")
    sizes, computing = memory(2), Gradients(made, model, made.recipe.train.chunk_size)
    again = computing.compute(batch_of(made, step=1), step=1)
    assert sizes[:3] == [7, 4, 2] and computing.chunk_size == 2
    assert again.value == loss.value
    assert_same(gradients_of(model, made), expected)
    sizes.clear()
    computing.compute(batch_of(made, step=2), step=2)
    assert sizes[0] == 2  # what did not fit is not tried again


def test_where_nothing_helps_the_user_is_told(prepared, memory):
    made, model = prepared("triplets")
    memory(0)
    with pytest.raises(UserError, match="step 3: out of memory"):
        Gradients(made, model, made.recipe.train.chunk_size).compute(batch_of(made, step=3), step=3)
