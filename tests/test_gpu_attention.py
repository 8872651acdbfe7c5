"""Attention over all lengths at once: against loops on a CPU, and its kernels by their documented arguments.

A CPU has none of the kernels. Stand-ins with their arguments tell what they would be asked; PyTorch's meta device, of
shapes and types alone, tells whether a GPU's work fits together, and is ever waited for.
"""

from contextlib import nullcontext

import pytest
import torch
from test_attention import PACKED, by_loops, open_backbone
from torch.utils.checkpoint import checkpoint

from simcse_kit import gpu_attention
from simcse_kit.attention import packed_states, use_packed_attention
from simcse_kit.first_tokens import computes_first_tokens_alone, first_states
from simcse_kit.gpu_attention import attend_all_lengths
from simcse_kit.packing import Packing

CPU, META = torch.device("cpu"), torch.device("meta")
LENGTHS = [7, 4, 4, 1]


@pytest.fixture(autouse=True)
def anew():
    """Kernels are tried anew in each test."""
    gpu_attention._kernel.cache_clear()
    yield
    gpu_attention._kernel.cache_clear()


def packing():
    return Packing((torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS).unsqueeze(1)).long())


def states(shared=1, heads=4, width=8):
    torch.manual_seed(0)
    counts = heads, heads // shared, heads // shared
    return [torch.randn(1, sum(LENGTHS), n, width, dtype=torch.float64, requires_grad=True) for n in counts]


def check(given, window, first_only=False):
    """Values and gradients are those of loops."""
    laid_out, (query, key, value) = packing(), given
    asked = query[:, laid_out.first] if first_only else query
    found = attend_all_lengths(asked, key, value, laid_out, window=window, dropout=0.0, scaling=0.7)
    expected = by_loops(*(each[0] for each in given), LENGTHS, window, 0.7)
    expected = expected[laid_out.first] if first_only else expected
    assert found.shape == asked.shape and (found[0] - expected).abs().max() < 1e-12
    weights = torch.randn_like(expected)
    theirs = torch.autograd.grad((expected * weights).sum(), given)
    for own, other in zip(torch.autograd.grad((found[0] * weights).sum(), given), theirs, strict=True):
        assert (own - other).abs().max() < 1e-12


def flash(
    query,
    key,
    value,
    starts,
    key_starts,
    most,
    longest,
    dropout,
    *,
    scale,
    window_size_left,
    window_size_right,
    **options,
):
    """As FlashAttention: [P, H, d], sequences by where they start; a window by how far it reaches to both sides.

    It counts positions from the sequences' ends, which only without a window says nothing of queries that are fewer.
    """
    assert options == {"is_causal": False, "return_debug_mask": False}
    assert starts.dtype == key_starts.dtype == torch.int32 and query.shape[1:] == value.shape[1:]
    counts, lengths = starts.diff().tolist(), key_starts.diff().tolist()
    assert most == max(counts) and longest == max(lengths) and window_size_left == window_size_right
    assert counts == lengths or (counts == [1] * len(lengths) and window_size_left == -1)
    window = None if window_size_left == -1 else window_size_left + 1
    places = [start + i for start, n in zip(key_starts.tolist(), counts, strict=False) for i in range(n)]
    every = torch.zeros_like(key).index_copy(0, torch.tensor(places), query)
    gathered = by_loops(every, key, value, lengths, window, scale)[places]
    return torch.nn.functional.dropout(gathered, dropout), None


def efficient(query, key, value, bias, *places, **options):
    """As memory-efficient attention: [1, P, H, d]."""
    assert bias is None and options.pop("custom_mask_type") == 0 and options.pop("compute_log_sumexp")
    window = {"window_size_left": -1, "window_size_right": -1}
    rest = options | window | {"is_causal": False, "return_debug_mask": False}
    found, _ = flash(*(each[0] for each in (query, key, value)), *places, **rest)
    return found.unsqueeze(0), None


@pytest.mark.parametrize("window", [None, 3, 100])
@pytest.mark.parametrize("shared", [1, 2])
@pytest.mark.parametrize("kernel", ["none", "flash", "efficient"])
@pytest.mark.parametrize("first_only", [False, True], ids=["", "first-tokens"])
def test_each_sequence_attends_to_itself(monkeypatch, kernel, shared, window, first_only):
    calls = []
    for name, stand_in in {"flash": flash, "efficient": efficient}.items():
        if name == kernel:

            def counted(*given, stand_in=stand_in, **options):
                calls.append(len(given[0]))
                return stand_in(*given, **options)

            monkeypatch.setattr(torch.ops.aten, f"_{kernel}_attention_forward", counted)
    check(states(shared), window, first_only)
    tried = calls.copy()
    check(states(shared), window, first_only)
    # Tried once, and not with a window that it does not know.
    serves = kernel != "none" and (window != 3 or (kernel == "flash" and not first_only))
    assert len(calls) - len(tried) == serves


@pytest.mark.parametrize("case", ["wrong", "keeps all", "no such", "not for these"])
def test_a_kernel_that_is_not_as_it_should_be_is_not_used(monkeypatch, case):
    def kernel(*given, **options):
        if case == "not for these":
            raise RuntimeError("head width")
        found, _ = flash(*given, **options)
        return (found * 1.1 if case == "wrong" else found), None

    if case == "no such":
        monkeypatch.delattr(torch.ops.aten, "_flash_attention_forward", raising=False)
        monkeypatch.setattr(gpu_attention, "_flash", lambda *given: torch.ops.aten.no_such_operation(*given))
    else:
        monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", kernel)
    if case == "keeps all":
        monkeypatch.setattr(torch.nn.functional, "dropout", lambda values, rate: values)
    check(states(), None)
    assert gpu_attention._kernel(CPU, torch.float64, 8, False) is None
    assert not gpu_attention.has_kernels(CPU)


def test_the_trial_leaves_the_draws_alone_and_works_while_nothing_is_recorded(monkeypatch):
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", flash)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with torch.inference_mode():
        assert gpu_attention.has_kernels(CPU)
    assert torch.equal(torch.rand(4), expected)


def test_the_trial_of_a_device_leaves_no_trace_in_a_step_that_counts_what_it_saves(monkeypatch):
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", flash)
    states, asked = torch.ones(2, requires_grad=True), []

    def encode(states):
        if not asked:
            asked.append(gpu_attention.has_kernels(CPU))
        return states.exp()

    checkpoint(encode, states, use_reentrant=False).sum().backward()
    assert asked and states.grad is not None


def test_a_device_without_memory_is_not_judged(monkeypatch):
    def full(*given, **options):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", full)
    with pytest.raises(torch.OutOfMemoryError):
        gpu_attention.has_kernels(CPU)
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", flash)
    assert gpu_attention.has_kernels(CPU)


@pytest.mark.parametrize(
    ("family", "kernel"),
    [(family, "flash") for family in PACKED] + [(family, "efficient") for family in PACKED if family != "modernbert"],
)
def test_a_step_on_a_gpu_fits_together_and_waits_for_nothing(tiny_checkpoint, monkeypatch, family, kernel):
    """Of tensors without values, any that is asked for is an error."""
    backbone = open_backbone(tiny_checkpoint(family), dropout=0.1)
    assert use_packed_attention(backbone)
    ends_on_first = computes_first_tokens_alone(backbone)
    monkeypatch.setattr(gpu_attention, "_kernel", lambda *of: getattr(gpu_attention, f"_{kernel}"))
    laid_out, ids = packing(), torch.full((len(LENGTHS), max(LENGTHS)), 9)
    for name, instead in {
        "autocast": lambda *of, **options: nullcontext(),
        "is_autocast_enabled": lambda kind: False,
    }.items():
        monkeypatch.setattr(torch, name, instead)  # unknown to that device
    for name, tensor in vars(laid_out).items():
        setattr(laid_out, name, tensor.to(META) if isinstance(tensor, torch.Tensor) else tensor)
    backbone, ids = backbone.to(META, torch.bfloat16 if kernel == "flash" else None).train(), ids.to(META)
    states = packed_states(backbone, ids, laid_out, all_layers=True)
    loss = sum(laid_out.pad(each).float().sum() for each in states)
    if ends_on_first:
        loss = loss + laid_out.in_order(first_states(backbone, ids, laid_out)).float().sum()
    with pytest.raises(RuntimeError, match="meta"):  # as were anything else asked for
        loss.item()
    if kernel == "efficient":  # the meta device's own gradients of it take other arguments than autograd gives
        return
    loss.backward()
    gradients = [parameter.grad for name, parameter in backbone.named_parameters() if "pooler" not in name]
    assert all(gradient is not None and gradient.device == META for gradient in gradients)
