"""Packed attention against loops, and packed backbones against transformers' own padded ones."""

import copy
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.nn import functional
from transformers import AttentionInterface, AutoConfig, AutoModel, AutoTokenizer

from simcse_kit import attention, passes
from simcse_kit.attention import packed_attention, packed_states, packs_on, use_packed_attention
from simcse_kit.backbone import set_dropout
from simcse_kit.batching import pad
from simcse_kit.packing import Packing
from simcse_kit.pooling import POOLINGS

PACKED = ["albert", "bert", "distilbert", "electra", "modernbert", "roberta", "xlm-roberta"]
PADDED = ["deberta-v2", "mpnet"]


def on_gpu(test):
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")(test))


def open_backbone(checkpoint, dropout=0.0, **options):
    config = AutoConfig.from_pretrained(checkpoint)
    set_dropout(config, dropout)
    return AutoModel.from_pretrained(checkpoint, config=config, **options)


def batch_of(checkpoint, sentences):
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    return pad(tokenizer(sentences)["input_ids"], tokenizer.pad_token_id)


def pooled(pooling, backbone, ids, mask, kept=None):
    """Vectors of a batch, by the packed path."""
    packing, kept = Packing(mask), mask if kept is None else kept
    states = packed_states(backbone, ids, packing, all_layers=len(POOLINGS[pooling].layers) > 1)
    groups = packing.by_length(packing.pack(kept), *states)
    return packing.in_order(torch.cat([POOLINGS[pooling](hidden, part) for part, *hidden in groups]))


@pytest.fixture(scope="module")
def opened(tiny_checkpoint, sentences):
    """Factory: of a family its own backbone, a packed one, and a batch of token ids; no test changes them."""
    made = {}

    def open_family(family):
        if family not in made:
            own, packed = (open_backbone(tiny_checkpoint(family)) for _ in range(2))
            assert use_packed_attention(packed)
            made[family] = own, packed, *batch_of(tiny_checkpoint(family), sentences)
        return made[family]

    return open_family


# The attention function.


def by_loops(query, key, value, lengths, window, scaling):
    """Attention of each token of each sequence, in Python: [P, H, d] each."""
    gathered, start = torch.zeros_like(query), 0
    for length in lengths:
        for i in range(length):
            near = [j for j in range(length) if window is None or abs(i - j) < window]
            for head in range(query.shape[1]):
                shared = head * key.shape[1] // query.shape[1]
                scores = torch.stack([query[start + i, head] @ key[start + j, shared] for j in near]) * scaling
                for weight, j in zip(scores.softmax(0), near, strict=True):
                    gathered[start + i, head] += weight * value[start + j, shared]
        start += length
    return gathered


@pytest.mark.parametrize("window", [None, 3, 100])
@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("trained", [False, True], ids=["", "trained"])
@pytest.mark.parametrize("longest", [6, 192])
def test_each_sequence_attends_to_itself(monkeypatch, window, key_heads, trained, longest):
    monkeypatch.setattr(attention, "LONGEST", longest)
    lengths = [7, 4, 4, 1]
    mask = (torch.arange(7) < torch.tensor(lengths).unsqueeze(1)).long()
    query, key, value = (torch.randn(1, heads, 16, 5, dtype=torch.float64) for heads in (4, key_heads, key_heads))
    query.requires_grad_(trained)
    packing = Packing(mask)
    found, _ = packed_attention(
        torch.nn.Module(), query, key, value, None, scaling=0.7, sliding_window=window, packing=packing
    )
    expected = by_loops(*(states[0].transpose(0, 1) for states in (query, key, value)), lengths, window, 0.7)
    assert found.shape == (1, 16, 4, 5)
    assert (found[0] - expected).abs().max() < 1e-12


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("family", PACKED)
def test_all_lengths_at_once_give_the_padded_vectors_and_gradients(opened, monkeypatch, family, pooling):
    """What a GPU computes, on a CPU, which has none of its kernels."""
    own, packed, ids, mask = map(copy.deepcopy, opened(family))
    for module in (attention, passes):
        monkeypatch.setattr(module, "goes_by_length", lambda device: False)
    kept = mask * (torch.arange(mask.shape[1]) % 4 == 0) if pooling == "mask" else mask
    hidden = own(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    expected = POOLINGS[pooling](hidden, kept)
    ways = passes.Passes(packed)
    assert ways.packs
    found = ways.pool(ids, mask, POOLINGS[pooling], kept, None)
    assert (found - expected).abs().max() < 1e-5
    weights = torch.randn(expected.shape)
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    gradients = {name: parameter.grad for name, parameter in packed.named_parameters()}
    for name, parameter in own.named_parameters():
        if parameter.grad is not None:
            assert (gradients[name] - parameter.grad).abs().max() < 1e-5 * max(1, parameter.grad.abs().max()), name


@on_gpu
@pytest.mark.parametrize("family", PACKED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_packed_states_and_gradients_are_the_padded_ones(opened, family, dtype):
    own, packed, ids, mask = (copy.deepcopy(each).to("cuda") for each in opened(family))
    assert packs_on(ids.device)
    packing = Packing(mask)
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        expected = packing.pack(own.train()(input_ids=ids, attention_mask=mask).last_hidden_state)
        (found,) = packed_states(packed.train(), ids, packing, all_layers=False)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    assert (found - expected).abs().max() < tolerance
    weights = torch.randn(expected.shape, device="cuda")
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    gradients = {name: parameter.grad for name, parameter in packed.named_parameters()}
    for name, parameter in own.named_parameters():
        if parameter.grad is not None:
            assert (gradients[name] - parameter.grad).norm() <= 10 * tolerance * (1 + parameter.grad.norm()), name


@on_gpu
def test_on_a_gpu_probabilities_are_dropped_at_the_rate():
    check_dropout(torch.device("cuda"))


def test_attention_probabilities_are_dropped_at_the_rate_and_the_others_scaled_up():
    check_dropout(torch.device("cpu"))


def check_dropout(device):
    length, rate = 8, 0.3
    packing = Packing(torch.ones(500, length, dtype=torch.int64, device=device))
    # All scores equal, and the values a unit matrix: what is gathered are the probabilities, 1 / L each.
    zeros = torch.zeros(1, 2, 500 * length, length, device=device)
    units = torch.eye(length, device=device).repeat(1, 2, 500, 1)
    torch.manual_seed(0)
    probabilities, _ = packed_attention(torch.nn.Module(), zeros, zeros, units, None, dropout=rate, packing=packing)
    probabilities = probabilities.cpu()
    kept = probabilities != 0
    spread = (rate * (1 - rate) / kept.numel()) ** 0.5
    assert abs(kept.double().mean() - (1 - rate)) < 4 * spread
    assert torch.allclose(probabilities[kept], torch.tensor(1 / length / (1 - rate)))
    # Every token and every head has draws of its own.
    for one, other in ((kept[:, ::2], kept[:, 1::2]), (kept[:, :, 0], kept[:, :, 1])):
        assert abs((one != other).double().mean() - 2 * rate * (1 - rate)) < 0.02


# Backbones.


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("family", PACKED)
def test_packed_vectors_are_the_padded_ones(opened, family, pooling):
    own, packed, ids, mask = opened(family)
    # For pooling `mask` some tokens count, in every row one at least.
    kept = mask * (torch.arange(mask.shape[1]) % 4 == 0) if pooling == "mask" else mask
    with torch.no_grad():
        hidden = own(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        found = pooled(pooling, packed, ids, mask, kept)
    assert (found - POOLINGS[pooling](hidden, kept)).abs().max() < 1e-5


@pytest.mark.parametrize("family", PACKED)
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
@pytest.mark.parametrize("recomputed", [False, True], ids=["", "gradient-checkpointing"])
def test_gradients_are_the_padded_ones(opened, family, recomputed):
    own, packed, ids, mask = map(copy.deepcopy, opened(family))
    if recomputed and packed.supports_gradient_checkpointing:
        packed.gradient_checkpointing_enable()
    hidden = own.train()(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    expected = POOLINGS["last2_mean"](hidden, mask)
    weights = torch.randn(expected.shape)
    (expected * weights).sum().backward()
    (pooled("last2_mean", packed.train(), ids, mask) * weights).sum().backward()
    gradients = {name: parameter.grad for name, parameter in packed.named_parameters()}
    for name, parameter in own.named_parameters():
        if parameter.grad is None:
            assert name.startswith("pooler")
        else:
            apart = (gradients[name] - parameter.grad).abs().max()
            assert apart < 1e-5 * max(1, parameter.grad.abs().max()), name


@pytest.mark.parametrize("family", PACKED)
def test_the_attention_of_every_layer_gets_the_familys_dropout_in_training(tiny_checkpoint, monkeypatch, family):
    packed, rates = open_backbone(tiny_checkpoint(family), dropout=0.3), []

    def watched(attend):
        return lambda *of, **how: rates.append(how["dropout"]) or attend(*of, **how)

    for name in ("_attend", "attend_by_length"):
        monkeypatch.setattr(attention, name, watched(getattr(attention, name)))
    # Asked in training mode, and left there.
    assert use_packed_attention(packed.train()) and all(module.training for module in packed.modules())
    for mode, rate in ((True, 0.3), (False, 0.0)):
        rates.clear()
        packed.train(mode)
        ids = torch.full((1, 4), 9)
        packed_states(packed, ids, Packing(torch.ones_like(ids)), all_layers=False)
        assert rates == [rate] * 3


@pytest.mark.parametrize("family", PACKED)
def test_padded_batches_go_through_a_packed_backbone_as_before(opened, family):
    own, packed, ids, mask = opened(family)
    with torch.no_grad():
        expected, found = (one(input_ids=ids, attention_mask=mask).last_hidden_state for one in (own, packed))
        assert (found - expected)[mask.bool()].abs().max() < 1e-5
        # The longest text without a mask: longer than ModernBERT's local attention reaches.
        longest = ids[mask.sum(1).argmax()].unsqueeze(0)
        expected, found = (one(input_ids=longest).last_hidden_state for one in (own, packed))
    assert (found - expected).abs().max() < 1e-5


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_no_mask_over_all_tokens_is_made(opened, monkeypatch, family):
    _, packed, ids, mask = opened(family)
    shapes, attend = [], functional.scaled_dot_product_attention

    def watch(*states, attn_mask, **how):
        shapes.append(None if attn_mask is None else tuple(attn_mask.shape))
        return attend(*states, attn_mask=attn_mask, **how)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", watch)
    monkeypatch.delattr(attention, "sdpa_mask")
    pooled("mean", packed, ids, mask)
    lengths = set(mask.sum(1).tolist())
    assert {shape for shape in shapes if shape} == (
        {(n, n) for n in lengths if n > 5} if family == "modernbert" else set()
    )


def test_a_row_without_tokens_has_the_padded_vector(opened):
    own, packed, *_ = opened("bert")
    ids, mask = pad([[9, 8, 7], [], [6]], pad_id=0)
    with torch.no_grad():
        hidden = own(input_ids=ids, attention_mask=mask).last_hidden_state
        found = pooled("mean", packed, ids, mask)
    assert (found - POOLINGS["mean"]([hidden], mask)).abs().max() < 1e-5
    assert (found[1] == 0).all()


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta"])
def test_a_padding_token_in_a_text_is_counted_as_the_family_does(opened, family):
    own, packed, ids, mask = opened(family)
    ids = ids.clone()
    ids[0, 2] = packed.config.pad_token_id
    with torch.no_grad():
        hidden = own(input_ids=ids, attention_mask=mask).last_hidden_state
        assert (pooled("mean", packed, ids, mask) - POOLINGS["mean"]([hidden], mask)).abs().max() < 1e-5


def test_threads_do_not_mix_their_sequences(opened):
    work = [opened(family) for family in ("bert", "roberta")]
    batches = [
        (packed, *(part[rows] for part in rest)) for _, packed, *rest in work for rows in (slice(5), slice(3, 12))
    ]
    expected = [pooled("mean", *batch) for batch in batches]
    with ThreadPoolExecutor(4) as threads:
        for _ in range(10):
            for vectors, truth in zip(
                threads.map(lambda batch: pooled("mean", *batch), batches), expected, strict=True
            ):
                assert torch.equal(vectors, truth)


def test_what_is_saved_says_nothing_of_it(opened, tmp_path):
    opened("bert")[1].save_pretrained(tmp_path)
    assert "packed" not in (tmp_path / "config.json").read_text()


# Which backbones are fit.


@pytest.mark.parametrize("family", PADDED)
def test_families_with_attention_of_their_own_are_found_out(tiny_checkpoint, sentences, family):
    backbone, ids_and_mask = open_backbone(tiny_checkpoint(family)), batch_of(tiny_checkpoint(family), sentences)
    inputs = dict(zip(("input_ids", "attention_mask"), ids_and_mask, strict=True))
    implementation, before = backbone.config._attn_implementation, backbone(**inputs).last_hidden_state
    with pytest.warns(UserWarning, match=r"^\w+Model computes attention in a way of its own: batches are padded"):
        assert not use_packed_attention(backbone)
    assert backbone.config._attn_implementation == implementation
    assert torch.equal(backbone(**inputs).last_hidden_state, before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", PACKED)
def test_packed_families_are_fit_in_every_precision(tiny_checkpoint, family, dtype):
    backbone = open_backbone(tiny_checkpoint(family), dtype=dtype)
    with warnings.catch_warnings(), torch.autocast("cpu", torch.bfloat16):
        warnings.simplefilter("error")
        assert use_packed_attention(backbone)


def leaking(module, query, key, value, mask, packing=None, **options):
    """Attention that counts as called and goes over all tokens of a packed batch."""
    if packing is not None:
        packing.calls += 1
    return packed_attention(module, query, key, value, mask, **options)


def without_window(*states, sliding_window=None, **options):
    return packed_attention(*states, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("family", "wrong"),
    [("bert", leaking), ("roberta", leaking), ("modernbert", leaking), ("modernbert", without_window)],
)
def test_attention_over_the_wrong_tokens_is_found_out(tiny_checkpoint, monkeypatch, family, wrong, dtype):
    monkeypatch.setitem(AttentionInterface._global_mapping, attention._NAME, wrong)
    backbone = open_backbone(tiny_checkpoint(family), dtype=dtype)
    with pytest.warns(UserWarning, match="batches are padded"):
        assert not use_packed_attention(backbone)
    assert backbone.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_told_from_errors(tiny_checkpoint, monkeypatch, dtype):
    def inexact(*states, **options):
        gathered, _ = packed_attention(*states, **options)
        return gathered * (1 + 1 / 128), None

    monkeypatch.setitem(AttentionInterface._global_mapping, attention._NAME, inexact)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = use_packed_attention(open_backbone(tiny_checkpoint("bert"), dtype=dtype))
    assert fit == (dtype == torch.bfloat16)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_wrong_positions_are_found_out(tiny_checkpoint, monkeypatch, family):
    own = attention.position_ids
    monkeypatch.setattr(attention, "position_ids", lambda *batch: own(*batch) + 1)
    with pytest.warns(UserWarning, match="batches are padded"):
        assert not use_packed_attention(open_backbone(tiny_checkpoint(family)))


def test_a_layer_that_does_not_call_it_is_found_out_even_where_it_makes_no_difference(tiny_checkpoint):
    backbone = open_backbone(tiny_checkpoint("bert"))
    silent = backbone.encoder.layer[1].attention
    silent.self.config = copy.deepcopy(silent.self.config)  # which keeps its implementation
    torch.nn.init.zeros_(silent.output.dense.weight)
    with pytest.warns(UserWarning, match="batches are padded"):
        assert not use_packed_attention(backbone)


def test_a_family_that_refuses_the_arguments_is_padded(tiny_checkpoint, monkeypatch):
    backbone = open_backbone(tiny_checkpoint("bert"))
    own = backbone.forward
    monkeypatch.setattr(
        backbone,
        "forward",
        lambda input_ids, attention_mask, output_hidden_states: own(
            input_ids, attention_mask, output_hidden_states=True
        ),
    )
    with pytest.warns(UserWarning, match="batches are padded"):
        assert not use_packed_attention(backbone)


def test_memory_that_ends_in_a_trial_says_nothing_of_the_family(tiny_checkpoint, monkeypatch):
    backbone = open_backbone(tiny_checkpoint("bert"))
    own = backbone.config._attn_implementation

    def end(*args, **options):
        raise torch.OutOfMemoryError

    with monkeypatch.context() as ended:
        ended.setattr(attention, "packed_states", end)
        with pytest.raises(torch.OutOfMemoryError):
            use_packed_attention(backbone)
    assert backbone.config._attn_implementation == own
    assert use_packed_attention(backbone)
