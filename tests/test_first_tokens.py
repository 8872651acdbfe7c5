"""The last layer for first tokens alone, against transformers' own padded forward pass."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoTokenizer

from simcse_kit import SentenceEncoder, first_tokens
from simcse_kit.batching import pad
from simcse_kit.first_tokens import computes_first_tokens_alone

FAMILIES = ["bert", "electra", "roberta", "xlm-roberta"]
OTHERS = ["albert", "distilbert", "modernbert"]


@pytest.fixture
def opened(tiny_checkpoint, sentences):
    """Factory: of a family transformers' model, an encoder in training mode, and a batch."""

    def open_family(family, dropout=0.0):
        checkpoint = tiny_checkpoint(family)
        batch = pad(AutoTokenizer.from_pretrained(checkpoint)(sentences)["input_ids"], 0)
        encoder = SentenceEncoder.from_pretrained(checkpoint, device="cpu", pooling="cls", dropout=dropout)
        own = AutoModel.from_pretrained(checkpoint)
        return own.eval(), encoder.train(), batch[0].where(batch[1].bool(), encoder.pad_id), batch[1]

    return open_family


def rows_of(module):
    """The numbers of tokens that a module computes from now on, noted call by call."""
    rows = []
    module.register_forward_hook(lambda module, args, output: rows.append(output.shape[:-1].numel()))
    return rows


@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
def test_vectors_and_gradients_are_the_padded_ones(opened, family):
    own, encoder, ids, mask = opened(family)
    expected = own(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0]
    found = encoder(ids, mask)
    assert (found - expected).abs().max() < 1e-5
    for vectors in (expected, found):
        vectors.sin().sum().backward()
    theirs = {name: parameter.grad for name, parameter in own.named_parameters() if parameter.grad is not None}
    ours = {name: parameter.grad for name, parameter in encoder.backbone.named_parameters()}
    assert len(theirs) >= 20
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).abs().max() < 1e-5 * max(1.0, gradient.abs().max()), name


@pytest.mark.parametrize("family", FAMILIES)
def test_behind_its_attention_the_last_layer_sees_first_tokens_alone(opened, family):
    _, encoder, ids, mask = opened(family)
    before, last = (rows_of(encoder.backbone.encoder.layer[at].intermediate) for at in (-2, -1))
    encoder(ids, mask)
    tokens = int(mask.sum())
    assert before[-1] == tokens and last[-1] == len(ids) < tokens
    encoder.pooling = "mean"
    encoder(ids, mask)
    encoder.pooling = "cls"
    encoder.eval()(ids, mask)
    assert last[-2:] == [tokens, tokens]


@pytest.mark.parametrize("family", OTHERS)
def test_other_families_are_found_out(opened, family):
    _, encoder, _, _ = opened(family)
    assert encoder.packs and not computes_first_tokens_alone(encoder.backbone)


def test_layers_that_are_called_otherwise_are_found_out(opened, monkeypatch):
    _, encoder, _, _ = opened("bert")
    assert encoder.packs and computes_first_tokens_alone(encoder.backbone)
    first, *_, last = (layer.attention for layer in encoder.backbone.encoder.layer)
    swapped = SimpleNamespace(self=last.self, output=first.output)
    for wrong in (first, swapped, SimpleNamespace(self=last.output, output=last.self), nn.Identity()):
        monkeypatch.setattr(first_tokens, "_last_attention", lambda backbone, wrong=wrong: wrong)
        assert not computes_first_tokens_alone(encoder.backbone)
    assert encoder.training and all(not module._forward_pre_hooks for module in encoder.backbone.modules())
    assert all("forward" not in vars(module) for module in encoder.backbone.modules())


def test_an_attention_that_somebody_has_replaced_is_called(opened):
    _, encoder, ids, mask = opened("bert")
    attention, calls = encoder.backbone.encoder.layer[-1].attention.self, []
    own = attention.forward
    attention.forward = lambda *given, **options: calls.append(given[0].shape[1]) or own(*given, **options)
    expected = encoder(ids, mask)
    assert int(mask.sum()) in calls and not computes_first_tokens_alone(encoder.backbone)
    del attention.forward
    assert computes_first_tokens_alone(encoder.backbone)
    assert torch.allclose(encoder(ids, mask), expected, atol=1e-6)


def test_who_watches_the_backbone_sees_all_tokens(opened):
    _, encoder, ids, mask = opened("bert")
    rows = rows_of(encoder.backbone.encoder.layer[-1].intermediate)
    encoder.backbone.register_forward_hook(lambda module, args, output: None)
    encoder(ids, mask)
    assert rows[-1] == int(mask.sum())


def test_dropout_has_the_distribution_that_it_has_over_all_tokens(opened):
    """Mean and spread of each dimension over many draws, as transformers' own model in training mode has them."""
    _, encoder, ids, mask = opened("bert", dropout=0.3)
    longest = mask.sum(1).argmax()
    many, one = (part[longest : longest + 1].expand(6000, -1) for part in (ids, mask))
    torch.manual_seed(2)
    found = encoder(many, one).detach()
    encoder.backbone.register_forward_hook(lambda module, args, output: None)
    expected = encoder(many, one).detach()
    error = (found.var(0) + expected.var(0)).div(len(many)).sqrt()
    assert ((found.mean(0) - expected.mean(0)).abs() < 4.5 * error).all()
    assert (found.std(0) / expected.std(0) - 1).abs().max() < 0.06
    assert found.std(0).min() > 0.05
