import math
from collections import Counter

import pytest
import torch
import transformers

from simcse_kit import SentenceEncoder
from simcse_kit.train.optim import adamw, clip_gradients, learning_rate


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize(("steps", "warmup_ratio"), [(1, 0.0), (20, 0.0), (20, 0.1), (33, 0.1), (10, 0.95)])
def test_learning_rates_are_those_of_transformers(schedule, steps, warmup_ratio):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-5)
    theirs = transformers.get_scheduler(
        "constant_with_warmup" if schedule == "constant" else schedule,
        optimizer,
        num_warmup_steps=math.ceil(steps * warmup_ratio),
        num_training_steps=steps,
    )
    for done in range(steps):
        ours = learning_rate(done, steps=steps, peak=2e-5, schedule=schedule, warmup_ratio=warmup_ratio)
        assert ours == pytest.approx(theirs.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        theirs.step()


def test_learning_rates_have_their_closed_forms():
    def rates(schedule, warmup_ratio=0.0):
        return [
            learning_rate(done, steps=4, peak=8.0, schedule=schedule, warmup_ratio=warmup_ratio) for done in range(4)
        ]

    assert rates("linear") == [8, 6, 4, 2]
    assert rates("linear", 0.5) == [0, 4, 8, 4]
    assert rates("constant") == [8, 8, 8, 8]
    assert rates("cosine") == pytest.approx([8, 4 + math.sqrt(8), 4, 4 - math.sqrt(8)])


@pytest.mark.parametrize(
    ("family", "pooling", "pooler_trained"),
    [("bert", "mean", False), ("bert", "cls_pooler", True), ("distilbert", "cls", None), ("modernbert", "mean", None)],
)
def test_weights_decay_but_biases_and_norms_do_not_and_an_unused_pooler_is_left_out(
    tiny_checkpoint, family, pooling, pooler_trained
):
    encoder = SentenceEncoder.from_pretrained(tiny_checkpoint(family), pooling=pooling, device="cpu")
    encoder.add_head(keep=False)
    decayed, plain = adamw(encoder, lr=1e-3, weight_decay=0.1).param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    for group in (decayed, plain):
        assert (group["lr"], group["betas"], group["eps"]) == (1e-3, (0.9, 0.999), 1e-8)
    names = {id(parameter): name for name, parameter in encoder.named_parameters()}
    groups = [[names[id(parameter)] for parameter in group["params"]] for group in (decayed, plain)]
    assert all(counted == 1 for counted in Counter(groups[0] + groups[1]).values())
    assert all("norm" not in name.lower() and name.endswith("weight") for name in groups[0])
    assert all("norm" in name.lower() or name.endswith("bias") for name in groups[1])
    left_out = set(names.values()) - {*groups[0], *groups[1]}
    if pooler_trained is False:
        assert left_out == {"backbone.pooler.dense.weight", "backbone.pooler.dense.bias"}
    else:
        assert not left_out


def test_one_step_is_adam_s_with_decoupled_decay():
    layer = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(layer.weight, 2.0)
    torch.nn.init.constant_(layer.bias, 2.0)
    optimizer = adamw(layer, lr=0.01, weight_decay=0.5)
    layer(torch.ones(1, 1)).backward()
    optimizer.step()
    # After one step the two moments cancel to the sign of the gradient.
    assert layer.weight.item() == pytest.approx(2.0 * (1 - 0.01 * 0.5) - 0.01)
    assert layer.bias.item() == pytest.approx(2.0 - 0.01)


@pytest.mark.parametrize("rates", [[0.01] * 6, [0.0, 0.005, 0.01, 0.02, 0.01, 0.0]])
def test_without_bias_correction_the_moments_are_taken_as_they_are(rates):
    """Against the loop of BERT's optimiser, the decay as PyTorch orders it; the state stored and read on the way."""
    torch.manual_seed(0)
    layer, targets = torch.nn.Linear(5, 3), torch.randn(6, 3)
    optimizer = adamw(layer, lr=1.0, weight_decay=0.1, epsilon=0.01, bias_correction=False)
    expected = {name: p.detach().double().clone() for name, p in layer.named_parameters()}
    moments = {name: [torch.zeros_like(value), torch.zeros_like(value)] for name, value in expected.items()}
    for step, rate in enumerate(rates):
        if step == 3:
            state, optimizer = optimizer.state_dict(), adamw(layer, lr=1.0, weight_decay=0.1, bias_correction=False)
            optimizer.load_state_dict(state)
        for group in optimizer.param_groups:
            group["lr"] = rate
        layer.zero_grad()
        (layer(torch.ones(6, 5)) - targets).square().sum().backward()
        for name, parameter in layer.named_parameters():
            gradient, (first, second) = parameter.grad.double(), moments[name]
            first.mul_(0.9).add_(gradient, alpha=0.1)
            second.mul_(0.999).add_(gradient.square(), alpha=0.001)
            expected[name] *= 1 - rate * (0.1 if name == "weight" else 0.0)
            expected[name] -= rate * first / (second.sqrt() + 0.01)
        optimizer.step()
        assert [(group["lr"], group["eps"]) for group in optimizer.param_groups] == [(rate, 0.01)] * 2
        for name, parameter in layer.named_parameters():
            assert (parameter - expected[name]).abs().max() < 2e-6, (step, name)


def test_a_step_that_is_not_made_is_not_counted():
    layers = [torch.nn.Linear(2, 2) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    for layer, steps in zip(layers, ([1.0, 0.0, 0.0], [0.0, 0.0]), strict=True):
        optimizer = adamw(layer, lr=0.01, weight_decay=0.0, bias_correction=False)
        for skipped in steps:
            # What a gradient scaler tells the fused kernel of gradients that are not finite.
            optimizer.grad_scale, optimizer.found_inf = torch.tensor(1.0), torch.tensor(skipped)
            layer.zero_grad()
            layer(torch.ones(1, 2)).sum().backward()
            optimizer.step()
    assert torch.equal(layers[0].weight, layers[1].weight)


@pytest.mark.parametrize("highest", [0.5, 2.0, 16.0, 1e9, float("inf")])  # norms are 16.25 times the scale
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_gradients_are_clipped_as_torch_clips_them(highest, scale):
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in [(40, 7), (13,), (), (3, 1, 2)]]
    for parameter in parameters[:-1]:
        parameter.grad = scale * torch.randn(parameter.shape)
    others = [torch.nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    for other, parameter in zip(others, parameters, strict=True):
        other.grad = None if parameter.grad is None else parameter.grad.clone()
    expected = torch.nn.utils.clip_grad_norm_(others, highest)
    torch.testing.assert_close(clip_gradients(parameters, highest), expected)
    for other, parameter in zip(others[:-1], parameters, strict=False):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-5, atol=0)
    assert parameters[-1].grad is None


def test_clipping_on_a_gpu_waits_for_nothing():
    # Of tensors without values, any that is asked for is an error.
    parameter = torch.nn.Parameter(torch.zeros(3, 2, device="meta"))
    parameter.grad = torch.ones_like(parameter)
    assert clip_gradients([parameter], 1.0).device.type == "meta"
