"""Quicker operations in a training step: those of the layers themselves, and only while they are in use."""

import copy

import pytest
import torch
from torch import nn

from simcse_kit import blas
from simcse_kit.train import quick
from simcse_kit.train.quick import QuickLayers

CPU = torch.device("cpu")


@pytest.fixture(params=["onednn", "blas"])
def calls(request, monkeypatch):
    """The shapes of the states of every product that was quick, but those of the trial."""
    assert quick._onednn_is_available()
    if request.param == "blas" and not blas.Team.is_available():
        pytest.skip("needs PyTorch with GNU's OpenMP")
    monkeypatch.setattr(blas, "mkl_is_quickest", lambda: False)
    monkeypatch.setattr(blas, "usable_threads", lambda: 2 if request.param == "blas" else 0)
    monkeypatch.setattr(blas, "_FEWEST", 1)
    seen, by_blas = [], quick._by_blas

    def watched(products):
        return products._replace(linear=lambda *of: seen.append(tuple(of[0].shape)) or products.linear(*of))

    monkeypatch.setattr(quick, "_ONEDNN", watched(quick._ONEDNN))
    monkeypatch.setattr(quick, "_by_blas", lambda team: watched(by_blas(team)))
    return seen


@pytest.mark.parametrize("shape", [(1_100, 12), (1, 1_100, 12), (11, 100, 12)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers_and_their_gradients_are_the_same(shape, bias, calls):
    torch.manual_seed(0)
    own, states = nn.Linear(12, 20, bias=bias), torch.randn(shape, requires_grad=True)
    ours, weights = copy.deepcopy(own), torch.randn(*shape[:-1], 20)
    exact = copy.deepcopy(own).double()
    (exact(states.double()) * weights).sum().backward()
    expected, states.grad = states.grad, None
    with QuickLayers([ours], CPU).in_use():
        found = ours(states)
        (found * weights).sum().backward()
    assert calls == [shape, (*shape[:-1], 20)]
    assert (found - own(states)).abs().max() < 1e-5 and (states.grad - expected).abs().max() < 1e-5
    for one, other in zip(ours.parameters(), exact.parameters(), strict=True):
        # What rounding explains in sums over 1,100 rows, of magnitude 700 before terms cancel.
        assert (one.grad - other.grad).abs().max() < 2 * 700 * torch.finfo(torch.float32).eps


def test_what_takes_no_gradient_gets_none(calls):
    layer, states = nn.Linear(12, 20), torch.randn(1_100, 12)
    layer.weight.requires_grad_(False)
    with QuickLayers([layer], CPU).in_use():
        layer(states).sum().backward()
    assert layer.weight.grad is None and torch.allclose(layer.bias.grad, torch.full((20,), 1_100.0))
    assert calls == [(1_100, 12)]


@pytest.mark.parametrize("case", ["few rows", "double", "autocast", "adapter", "replaced", "gpu"])
def test_everything_else_is_left_to_the_layer(case, calls, monkeypatch):
    class Adapter(nn.Linear):
        def forward(self, states):
            return super().forward(states) + 1

    layer, states = (
        (Adapter if case == "adapter" else nn.Linear)(12, 20),
        torch.randn(10 if case == "few rows" else 1_100, 12),
    )
    if case == "replaced":
        layer.forward = lambda states: states * 2
    if case == "double":
        layer, states = layer.double(), states.double()
    with torch.autocast("cpu", enabled=case == "autocast"):
        expected = layer(states)
        with QuickLayers([layer], torch.device("cuda" if case == "gpu" else "cpu")).in_use():
            found = layer(states)
    assert torch.equal(found, expected) and not calls
    assert ("forward" in vars(layer)) == (case == "replaced")


@pytest.mark.skipif(not blas.Team.is_available(), reason="needs PyTorch with GNU's OpenMP")
def test_products_share_a_step_with_the_threads_of_other_operations(monkeypatch):
    """On as many threads, which are there before each product and needed again behind it."""
    monkeypatch.setattr(blas, "mkl_is_quickest", lambda: False)
    monkeypatch.setattr(blas, "usable_threads", lambda: 3)
    monkeypatch.setattr(blas, "_FEWEST", 1)
    layers = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64), nn.LayerNorm(64))
    states, before = torch.randn(3_000, 64), torch.get_num_threads()

    def gradients(quick):
        layers.zero_grad()
        with QuickLayers([layers] if quick else [], CPU).in_use():
            layers(states).square().mean().backward()
        return [parameter.grad.clone() for parameter in layers.parameters()]

    expected = gradients(quick=False)
    torch.set_num_threads(3)
    try:
        found, again = gradients(quick=True), gradients(quick=True)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    for one, other, third in zip(found, expected, again, strict=True):
        assert torch.allclose(one, other, atol=1e-6) and torch.equal(one, third)


@pytest.mark.parametrize("case", ["missing", "wrong"])
def test_a_onednn_that_is_not_as_it_should_be_is_not_used(case, monkeypatch):
    def linear(states, weight, bias):
        if case == "missing":
            raise RuntimeError("no such operation")
        return states @ weight.t()

    monkeypatch.setattr(blas, "mkl_is_quickest", lambda: False)
    monkeypatch.setattr(blas, "usable_threads", lambda: 0)
    monkeypatch.setattr(quick, "_ONEDNN", quick._ONEDNN._replace(linear=linear))
    quick._onednn_is_available.cache_clear()
    try:
        layer, states = nn.Linear(12, 20), torch.randn(1_100, 12)
        with QuickLayers([layer], CPU).in_use():
            assert torch.equal(layer(states), nn.Linear.forward(layer, states)) and "forward" not in vars(layer)
    finally:
        quick._onednn_is_available.cache_clear()


def test_where_mkl_is_the_quickest_linear_layers_are_left_alone(calls, monkeypatch):
    monkeypatch.setattr(blas, "mkl_is_quickest", lambda: True)
    layer = nn.Linear(12, 20)
    with QuickLayers([layer], CPU).in_use():
        layer(torch.randn(1_100, 12)).sum().backward()
        assert "forward" not in vars(layer)
    assert not calls


def test_dropout_is_quick_in_training_alone_and_nothing_outlasts_the_context(monkeypatch):
    seen = []
    monkeypatch.setattr(quick, "dropout", lambda states, rate: seen.append(rate) or states)
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.25))
    layers = QuickLayers([model, model[1]], CPU)
    before = [dict(vars(module)) for module in model]
    with pytest.raises(RuntimeError, match="shapes"), layers.in_use():
        model(torch.randn(3, 4))
        model.eval()(torch.randn(3, 4))
        model(torch.randn(3, 5))
    assert seen == [0.25]
    assert [vars(module).keys() for module in model] == [kept.keys() for kept in before]


def test_a_step_is_quick_and_its_gradients_are_those_without(recipe, monkeypatch, calls):
    """Of a whole recipe, its rows repeated until they are enough."""
    from simcse_kit.tokenization import TemplateTokenizer
    from simcse_kit.train.gradients import Gradients
    from simcse_kit.train.prepare import prepare
    from simcse_kit.train.views import MergedForward

    found = []
    for modules in (True, False):
        prepared = prepare(recipe(model__dropout=0.0))
        model = MergedForward(prepared.recipe, prepared.encoder, prepared.views, prepared.objective)
        gradients = Gradients(prepared, model, None)
        if not modules:
            gradients._quick_layers = QuickLayers([], CPU)
        calls.clear()
        rows = [row % 22 for row in range(220)]
        batch = prepared.views.collate(
            TemplateTokenizer(prepared.encoder.tokenizer), prepared.rows, rows, torch.Generator()
        )
        gradients.compute(batch, 1)
        assert bool(calls) == modules
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert (gradient - found[1][name]).abs().max() < 1e-5 * max(1, gradient.abs().max()), name
