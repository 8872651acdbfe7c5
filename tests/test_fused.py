"""Fused backbones against transformers' own padded forward pass of the same checkpoint."""

import copy
import gc
import sys
import weakref
from functools import partial
from types import SimpleNamespace

import naive
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from simcse_kit import SentenceEncoder, blas, fused, row_attention
from simcse_kit import encoding as encoding_module
from simcse_kit import passes as passes_module
from simcse_kit.attention import use_packed_attention
from simcse_kit.augment.augmenter import EmbeddingAugmenter
from simcse_kit.batching import pad
from simcse_kit.fused import fuse
from simcse_kit.locate import locate
from simcse_kit.packing import Packing
from simcse_kit.pooling import POOLINGS

FUSED = ["bert", "distilbert", "electra", "roberta", "xlm-roberta"]
OTHERS = ["albert", "deberta-v2", "modernbert", "mpnet"]

pytestmark = pytest.mark.filterwarnings("ignore:.* computes attention in a way of its own")


def open_encoder(checkpoint, **options):
    return SentenceEncoder.from_pretrained(checkpoint, device="cpu", **options)


@pytest.fixture(autouse=True, params=["onednn", "blas"])
def multiplied_by(request, monkeypatch):
    """Each test by both libraries, whichever is quicker here; few texts are worth it."""
    by_blas = request.param == "blas"
    monkeypatch.setattr(encoding_module, "_FUSED_TOKENS", 0)
    monkeypatch.setattr(encoding_module, "_THREAD_TOKENS", 1)
    monkeypatch.setattr(blas, "usable_threads", lambda: 2 if by_blas else 0)
    monkeypatch.setattr(sys.modules[__name__], "fuse", partial(fused.fuse, by_blas=by_blas))
    return request.param


@pytest.fixture
def fused_alone(monkeypatch):
    """Fail where an encoder's states come from its backbone."""
    monkeypatch.setattr(passes_module, "packed_states", None)


@pytest.fixture(scope="module")
def opened(tiny_checkpoint, sentences):
    """Factory: of a family transformers' model, an encoder of ours, and a batch of token ids; no test changes them."""
    made = {}

    def open_family(family):
        if family not in made:
            checkpoint = tiny_checkpoint(family)
            tokenizer = AutoTokenizer.from_pretrained(checkpoint)
            batch = pad(tokenizer(sentences)["input_ids"], tokenizer.pad_token_id)
            encoder = open_encoder(checkpoint)
            assert encoder.packs
            made[family] = AutoModel.from_pretrained(checkpoint), encoder, *batch
        return made[family]

    return open_family


@pytest.fixture
def bert(tiny_checkpoint):
    """An encoder of its own for a test that changes it."""
    encoder = open_encoder(tiny_checkpoint("bert"))
    assert encoder.packs
    return encoder


def padded_states(backbone, ids, mask):
    with torch.no_grad():
        return backbone(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states


def padded_vectors(encoder, sentences):
    """What ``encode`` would return of an encoder with pooling mean, by its backbone's own padded forward."""
    ids, mask = pad(encoder.tokenize(sentences), encoder.pad_id)
    states = padded_states(encoder.eval().backbone, ids, mask)
    return POOLINGS["mean"](states, mask).float().numpy()


# Fused states are the backbone's own.


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("family", FUSED)
def test_fused_vectors_are_the_padded_ones(opened, monkeypatch, fused_alone, family, pooling):
    own, encoder, ids, mask = opened(family)
    kept = mask
    if pooling == "mask":
        ids = ids.clone()
        ids[:, 1] = encoder.tokenizer.mask_token_id
        kept = mask * (torch.arange(mask.shape[1]) == 1)
    expected = POOLINGS[pooling](padded_states(own, ids, mask), kept)
    monkeypatch.setattr(encoder, "pooling", pooling)
    found = encoder.pool(ids, mask, fuse(encoder.backbone))
    assert (found - expected).abs().max() < 1e-5


@pytest.mark.parametrize("family", FUSED)
def test_every_layers_states_are_the_padded_ones(opened, family):
    own, encoder, ids, mask = opened(family)
    packing = Packing(mask)
    found = fuse(encoder.backbone).states(ids, packing, all_layers=True)
    for ours, theirs in zip(found, padded_states(own, ids, mask), strict=True):
        assert (ours - packing.pack(theirs)).abs().max() < 1e-5


@pytest.mark.parametrize("longest", [0, 8, 128], ids=lambda length: f"steps-to-{length}")
@pytest.mark.parametrize("family", FUSED)
def test_in_bfloat16_rounding_is_no_worse_than_the_padded_ones(opened, monkeypatch, multiplied_by, family, longest):
    monkeypatch.setattr(row_attention, "LONGEST", longest)
    monkeypatch.setattr(blas, "mkl_is_quickest", lambda: False)
    own, encoder, ids, mask = opened(family)
    exact = padded_states(own, ids, mask)[-1]
    theirs = padded_states(copy.deepcopy(own).bfloat16(), ids, mask)[-1].float()
    found = fuse(copy.deepcopy(encoder.backbone).bfloat16())
    if multiplied_by == "blas":
        assert found is None
        return
    if found is None:
        assert not torch.ops.mkldnn._is_mkldnn_bf16_supported()
        pytest.skip("no bfloat16 linear layers in oneDNN on this machine")
    packing = Packing(mask)
    ours = packing.pad(found.states(ids, packing, all_layers=False)[0]).float()
    error, expected = ((states - exact)[mask.bool()].norm() for states in (ours, theirs))
    assert 0 < error < 1.3 * expected


@pytest.mark.parametrize("pooling", ["cls", "cls_pooler", "mean"])
def test_pooling_cls_has_the_last_layer_compute_first_tokens_alone(opened, monkeypatch, fused_alone, pooling):
    _, encoder, ids, mask = opened("bert")
    monkeypatch.setattr(encoder, "pooling", pooling)
    made, rows = fuse(encoder.backbone), []
    for layer in made._layers:
        watched = SimpleNamespace(plus=lambda *of, own=layer._out: rows.append(of[1].shape[1]) or own.plus(*of))
        monkeypatch.setattr(layer, "_out", watched)
    assert encoder.pool(ids, mask, made).shape == (len(ids), 32)
    tokens = int(mask.sum())
    assert rows == [tokens, tokens, tokens if pooling == "mean" else len(ids)]


@pytest.mark.parametrize("activation", ["gelu_new", "gelu_pytorch_tanh", "relu", "silu"])
@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_any_activation_is_the_models_own(tiny_checkpoint, opened, family, activation):
    ids, mask = opened(family)[2:]
    own, ours = (
        AutoModel.from_pretrained(
            tiny_checkpoint(family), **{"activation" if family == "distilbert" else "hidden_act": activation}
        )
        for _ in range(2)
    )
    assert use_packed_attention(ours)
    packing = Packing(mask)
    (found,) = fuse(ours).states(ids, packing, all_layers=False)
    assert (found - packing.pack(padded_states(own, ids, mask)[-1])).abs().max() < 1e-5


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_rows_without_tokens_and_padding_tokens_in_texts(opened, monkeypatch, family, pooling):
    own, encoder, *_ = opened(family)
    padding = own.config.pad_token_id
    ids, mask = pad([[9, 8, padding, 7], [6], []], pad_id=padding)
    expected = POOLINGS[pooling](padded_states(own, ids, mask), mask)
    monkeypatch.setattr(encoder, "pooling", pooling)
    found = encoder.pool(ids, mask, fuse(encoder.backbone))
    assert (found - expected)[:2].abs().max() < 1e-5
    # transformers lets a row without tokens look at its padding; as a vector, it only has to be a number.
    assert found.isfinite().all()


@pytest.mark.reference
def test_trained_weights_have_the_vectors_of_sentence_transformers(minilm, data_dir, fused_alone):
    lines = (data_dir / "sts/raw/STSBenchmark/sts-test.csv").read_text(encoding="utf-8").splitlines()[::15]
    texts = [text for line in lines for text in line.split("\t")[5:7]]
    expected = SentenceTransformer(str(locate("all-MiniLM-L6-v2")), device="cpu").encode(texts)
    assert naive.largest_difference(minilm.encode(texts), expected) < 1e-5


# They are those of the weights as they are now.


def train_a_step(encoder, sentences):
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=0.1, fused=True)
    encoder.train()(*pad(encoder.tokenize(sentences), encoder.pad_id)).square().sum().backward()
    optimizer.step()


def load_others(encoder, sentences):
    encoder.load_state_dict({name: 1.5 * tensor for name, tensor in encoder.state_dict().items()})


def write_past_autograd(encoder, sentences):
    for parameter in encoder.parameters():
        parameter.data.mul_(1.5)


def halve(encoder, sentences):
    encoder.to(torch.bfloat16)


def double(encoder, sentences):
    encoder.to(torch.float64)


@pytest.mark.parametrize("change", [train_a_step, load_others, write_past_autograd, halve, double])
def test_changed_weights_are_the_ones_that_encode(bert, sentences, change):
    before = bert.encode(sentences)
    change(bert, sentences)
    found, expected = bert.encode(sentences), padded_vectors(bert, sentences)
    assert naive.largest_difference(found, expected) < (0.1 if bert.dtype == torch.bfloat16 else 1e-5)
    if bert.dtype == torch.float32:
        assert naive.largest_difference(found, before) > 0.1


def test_nothing_of_it_stays_in_the_encoder(bert, sentences, monkeypatch, tmp_path):
    made = []

    def fuse_and_watch(backbone, **options):
        result = fused.fuse(backbone, **options)
        made.append(weakref.ref(result))
        return result

    monkeypatch.setattr(encoding_module, "fuse", fuse_and_watch)
    attributes, names = set(bert.__dict__), set(bert.state_dict())
    vectors = bert.encode(sentences)
    assert [reference() for reference in made] == [None]
    assert (set(bert.__dict__), set(bert.state_dict())) == (attributes, names)
    bert.save_pretrained(tmp_path)
    for other in (copy.deepcopy(bert), open_encoder(tmp_path)):
        assert naive.largest_difference(other.encode(sentences), vectors) == 0


def test_a_backbone_is_freed_although_it_was_fused(tiny_checkpoint):
    encoder = open_encoder(tiny_checkpoint("bert"))
    # As wrappers of a module's forward do, which hold it.
    encoder.backbone.pooled_by = lambda held=encoder.backbone: held
    assert encoder.packs and fuse(encoder.backbone) is not None
    watched = weakref.ref(encoder.backbone)
    del encoder.backbone.pooled_by, encoder
    gc.collect()
    assert watched() is None


def test_training_takes_the_ordinary_way(bert, sentences, monkeypatch):
    batch = pad(bert.tokenize(sentences), bert.pad_id)
    bert.eval()(*batch).sum().backward()
    trained = [parameter for parameter in bert.parameters() if parameter.requires_grad]
    expected = [parameter.grad for parameter in trained]
    bert.zero_grad()
    bert.encode(sentences)
    monkeypatch.setattr(encoding_module, "fuse", None)
    bert(*batch).sum().backward()
    assert all(torch.equal(parameter.grad, one) for parameter, one in zip(trained, expected, strict=True))


# When nothing is fused.


@pytest.mark.parametrize("family", OTHERS)
def test_other_families_encode_as_before(tiny_checkpoint, sentences, family):
    encoder = open_encoder(tiny_checkpoint(family))
    found = encoder.encode(sentences)
    assert naive.largest_difference(found, padded_vectors(encoder, sentences)) < 1e-5
    assert fuse(encoder.backbone) is None


class Adapter(torch.nn.Linear):
    """A linear layer whose weight will not be all that it applies, when it is trained."""


def scale_otherwise(backbone):
    backbone.encoder.layer[1].attention.self.scaling = 0.3


def adapt(backbone):
    backbone.encoder.layer[2].attention.self.query.__class__ = Adapter


def listen(backbone):
    backbone.encoder.layer[0].register_forward_hook(lambda *of: None)


def test_what_was_tried_is_not_tried_again(bert, monkeypatch):
    assert fuse(bert.backbone) is not None
    load_others(bert, [])
    monkeypatch.setattr(fused, "_equals", None)
    assert fuse(bert.backbone) is not None


@pytest.mark.parametrize("change", [scale_otherwise, adapt, listen])
def test_backbones_that_do_more_or_otherwise_are_found_out(bert, change):
    assert fuse(bert.backbone) is not None
    change(bert.backbone)
    assert fuse(bert.backbone) is None


def test_hooks_of_our_own_and_of_transformers_do_not_hinder(bert, sentences, fused_alone):
    EmbeddingAugmenter(bert.backbone)
    expected = padded_vectors(bert, sentences)
    assert naive.largest_difference(bert.encode(sentences), expected) < 1e-5


def without_residual(self, residual, states):
    return self(states)


def of_the_second_token(self, ids, packing):
    (states,) = self.states(ids, packing, all_layers=False)
    return torch.cat([rows[:, 1] for (rows,) in packing.by_length(states)])


@pytest.mark.parametrize(
    ("owner", "name", "wrong"),
    [
        (fused._Linear, "plus", without_residual),
        (fused._BlasLinear, "plus", without_residual),
        (fused.FusedBackbone, "first_states", of_the_second_token),
        (torch.ops, "mkldnn", SimpleNamespace()),
    ],
    ids=["wrong", "wrong-blas", "wrong-first", "missing"],
)
def test_operations_that_are_wrong_or_missing_are_found_out(
    bert, sentences, monkeypatch, multiplied_by, owner, name, wrong
):
    monkeypatch.setattr(owner, name, wrong)
    of_the_other = fused._Linear if multiplied_by == "blas" else fused._BlasLinear
    unharmed = owner is of_the_other or (owner is torch.ops and multiplied_by == "blas")
    assert (fuse(bert.backbone) is None) != unharmed
    assert naive.largest_difference(bert.encode(sentences), padded_vectors(bert, sentences)) < 1e-5


@pytest.mark.parametrize("before", [False, True], ids=["", "fused-before"])
def test_autocast_keeps_its_own_precisions(bert, before):
    if before:
        assert fuse(bert.backbone) is not None
    with torch.autocast("cpu", torch.bfloat16):
        assert fuse(bert.backbone) is None


@pytest.mark.parametrize(("more", "calls"), [(0, 1), (1, 0)])
def test_it_takes_many_tokens_to_be_worth_it(bert, sentences, monkeypatch, multiplied_by, more, calls):
    made = []
    monkeypatch.setattr(encoding_module, "_FUSED_TOKENS", sum(map(len, bert.tokenize(sentences))) + more)
    monkeypatch.setattr(encoding_module, "fuse", lambda backbone, by_blas=False: made.append(by_blas))
    bert.encode(sentences)
    # Where one way finds nothing, the other one is tried.
    assert made == ([True, False] if multiplied_by == "blas" else [False])[: calls * 2]
