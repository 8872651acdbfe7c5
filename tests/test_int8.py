"""Layers in int8 against the same rounding written out in float64, and against the float32 model."""

import naive
import numpy as np
import pytest
import torch
from torch import nn

from simcse_kit import SentenceEncoder, int8
from simcse_kit import backbone as hf
from simcse_kit import encoder as encoder_module
from simcse_kit import encoding as encoding_module
from simcse_kit import passes as passes_module
from simcse_kit.errors import UserError
from simcse_kit.int8 import Int8Linear, Rounded
from simcse_kit.pooling import POOLINGS

FUSED = ["bert", "distilbert", "electra", "roberta", "xlm-roberta"]
FAMILIES = [*FUSED, "albert", "deberta-v2", "modernbert", "mpnet"]

pytestmark = [
    pytest.mark.skipif(not int8.is_available(), reason=f"int8 needs {int8.NEEDED}"),
    pytest.mark.filterwarnings("ignore:.* computes attention in a way of its own"),
]


def open_encoder(checkpoint, **options):
    return SentenceEncoder.from_pretrained(checkpoint, device="cpu", **options)


@pytest.fixture(params=[0, 10**9], ids=["fused", "not-fused"])
def fused_or_not(monkeypatch, request):
    monkeypatch.setattr(encoding_module, "_FUSED_TOKENS", request.param)


# A layer.


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("shape", [(7, 48), (1, 7, 48), (2, 3, 5, 48)], ids=str)
def test_a_layer_multiplies_what_is_rounded(shape, bias):
    torch.manual_seed(3)
    layer, states = nn.Linear(48, 20, bias=bias), torch.randn(shape) * 3 - 1
    found = Int8Linear.of(layer)(states)

    weight, own = layer.weight.detach().numpy().astype(np.float64), states.numpy().astype(np.float64)
    scale = np.abs(weight).max(axis=1, keepdims=True) / 127
    lowest = own.min(axis=-1, keepdims=True)
    step = (own.max(axis=-1, keepdims=True) - lowest) / 254
    expected = np.round(own / step) * step @ (np.round(weight / scale) * scale).T
    expected += layer.bias.detach().numpy() if bias else 0
    assert found.dtype == torch.float32 and found.shape == (*shape[:-1], 20)
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-5)
    exact = layer(states).detach()
    assert 0.001 < (found - exact).norm() / exact.norm() < 0.02


def test_states_are_rounded_to_the_nearest_of_255_steps_of_their_row_of_which_one_is_zero():
    torch.manual_seed(5)
    states = torch.randn(400, 300) * torch.logspace(-3, 3, 400).unsqueeze(1) + torch.randn(400, 1)
    steps, step, lowest = Rounded.of(states)
    assert steps.dtype == torch.uint8
    widths = states.amax(1).clamp(min=0) - states.amin(1).clamp(max=0)
    torch.testing.assert_close(step.squeeze(1) * 254, widths)
    rounding = 1e-6 * states.abs() + 1e-6 * step
    assert ((steps * step + lowest - states).abs() <= step * 0.5 + rounding).all()
    assert ((lowest / step).round() - lowest / step).abs().max() < 1e-4 and (lowest <= 0).all()


def test_rounding_up_on_both_sides_stays_within_a_byte():
    states = torch.tensor([[127.6, -126.4], [126.5, -127.5], [127.4999, -126.5001], [254.0, 0.0], [0.0, -254.0]])
    steps, step, lowest = Rounded.of(states)
    assert ((steps * step + lowest - states).abs() <= 0.50001).all()


def test_spare_states_give_the_same():
    torch.manual_seed(7)
    states = torch.randn(6, 40)
    expected = Rounded.of(states)
    assert all(torch.equal(*pair) for pair in zip(Rounded.of(states.clone(), spare=True), expected, strict=True))


def test_layers_are_joined_side_by_side():
    torch.manual_seed(9)
    layers = [Int8Linear.of(nn.Linear(16, width, bias=bias)) for width, bias in ((4, True), (8, False), (4, True))]
    states = torch.randn(5, 16)
    expected = torch.cat([layer(states) for layer in layers], dim=1)
    torch.testing.assert_close(Int8Linear.joined(*layers)(states), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 2.5, -1e-30])
def test_a_row_of_one_value_is_exact(value):
    layer, states = nn.Linear(16, 4), torch.full((2, 16), value)
    found = Int8Linear.of(layer)(states)
    weight = layer.weight / (scale := layer.weight.abs().amax(1, keepdim=True) / 127)
    torch.testing.assert_close(found, nn.functional.linear(states, weight.round() * scale, layer.bias))


def test_weights_of_zero_are_zero():
    layer = nn.Linear(16, 4)
    nn.init.zeros_(layer.weight)
    assert torch.equal(Int8Linear.of(layer)(torch.randn(3, 16)), layer.bias.detach().expand(3, 4))


# An encoder.


@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_are_nearly_those_of_float32(tiny_checkpoint, fused_or_not, sentences, family):
    checkpoint = tiny_checkpoint(family)
    exact, ours = open_encoder(checkpoint), open_encoder(checkpoint, dtype="int8")
    assert (exact.dtype, ours.dtype) == (torch.float32, torch.int8)
    layers = [module for module in ours.backbone.modules() if type(module) is nn.Linear]
    assert layers == [layer for layer in [hf.pooler_linear(ours.backbone)] if layer is not None]
    cosines = naive.cosines(ours.encode(sentences), exact.encode(sentences))
    assert 0.99 < cosines.min() < 0.9999999


@pytest.mark.parametrize("pooling", POOLINGS)
def test_fused_layers_give_what_the_backbone_gives(tiny_checkpoint, monkeypatch, sentences, pooling):
    encoder = open_encoder(tiny_checkpoint("bert"), dtype="int8", pooling=pooling)
    monkeypatch.setattr(encoding_module, "_FUSED_TOKENS", 10**9)
    expected = encoder.encode(sentences)
    monkeypatch.setattr(encoding_module, "_FUSED_TOKENS", 0)
    monkeypatch.setattr(passes_module, "packed_states", None)
    fused = encoder.encode(sentences)
    # A state at the edge of two steps may fall to either side.
    assert naive.cosines(fused, expected).min() > 0.9999


def test_a_vector_does_not_depend_on_the_texts_beside_it(tiny_checkpoint, fused_or_not, sentences):
    encoder = open_encoder(tiny_checkpoint("bert"), dtype="int8")
    together = encoder.encode(sentences)
    alone = np.stack([encoder.encode(sentence) for sentence in sentences])
    assert naive.cosines(together, alone).min() > 0.9999
    assert naive.cosines(encoder.encode(sentences, token_budget=20), together).min() > 0.9999


def test_stsb_loses_little(data_dir):
    from simcse_kit.data.sts import load_sts_task
    from simcse_kit.evaluate.sts import score_sts

    task = load_sts_task("STSB", [data_dir / "sts"])
    encoders = (open_encoder("all-MiniLM-L6-v2", dtype=dtype) for dtype in ("float32", "int8"))
    exact, ours = (score_sts(encoder, task).value for encoder in encoders)
    assert 0 < abs(exact - ours) < 0.3


def test_an_encoder_in_int8_is_not_saved(tiny_checkpoint, tmp_path):
    encoder = open_encoder(tiny_checkpoint("bert"), dtype=torch.int8)
    with pytest.raises(UserError, match="opened in int8 to encode; to save it, open it in float32"):
        encoder.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_where_there_is_no_int8(tiny_checkpoint, monkeypatch):
    monkeypatch.setattr(torch.ops.onednn, "qlinear_pointwise", lambda *args: torch.zeros(4, 16))
    with pytest.raises(UserError, match="dtype int8 needs an x86 processor"):
        open_encoder(tiny_checkpoint("bert"), dtype="int8")
    monkeypatch.setattr(encoder_module.hf, "parse_device", lambda device: torch.device("cuda:0"))
    with pytest.raises(UserError, match="dtype int8 is for CPUs, the device is cuda:0"):
        open_encoder(tiny_checkpoint("bert"), dtype="int8")
