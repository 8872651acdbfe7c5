"""Attention for packed batches, in any backbone that computes it through transformers' attention interface.

The boundaries of the sequences travel as an argument of the backbone's forward, down to the attention of every layer:
so threads cannot mix them, and what gradient checkpointing computes again sees the same ones.

Legend: B rows, T tokens of a padded row, P tokens of a packed batch, H heads, d width of a head, D width of the states.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from simcse_kit.backbone import evaluating, position_ids, quiet
from simcse_kit.gpu_attention import attend_all_lengths, has_kernels
from simcse_kit.packing import Packing
from simcse_kit.row_attention import LONGEST
from simcse_kit.trained_attention import attend_by_length

_NAME = "simcse_kit_packed"
# How far apart packed and padded states may be, as a share of their length: what rounding explains in single and in
# half precision. Where sequences see each other, or positions are off, it is more than half.
_TOLERANCE, _HALF_TOLERANCE = 1e-5, 0.1


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    packing: Packing | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention, within each sequence of a packed batch or over the rows of a padded one.

    Args:
        module: The layer's attention module; as transformers' interface has it, not used.
        query: [B, H, T, d]; of a packed batch [1, H, P, d], as are the others, or of each row's first token alone
            [1, H, B, d].
        key: As ``query``; fewer heads are shared by groups of the query's.
        value: As ``key``.
        attention_mask: Of a padded batch, [B, 1, T, T]; True where a token may look.
        dropout: Rate of dropout on the attention probabilities.
        scaling: Factor on the dot products; None: d ** -0.5.
        sliding_window: A token looks at those less than this many positions away (ModernBERT's local layers).
        packing: The sequences of a packed batch.
        **kwargs: What else a family hands over.

    Returns:
        What each token gathers, [B, T, H, d], and no attention probabilities.
    """
    attend = partial(_attend, mask=attention_mask, window=sliding_window, dropout=dropout, scaling=scaling)
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    if packing is None:
        return attend(query, key, value).contiguous(), None
    packing.calls += 1
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    on_cpu = goes_by_length(query.device)
    if not on_cpu and len(packing.groups) > 1:
        found = attend_all_lengths(query, key, value, packing, window=sliding_window, dropout=dropout, scaling=factor)
        return found, None
    alike = query.shape[2] == key.shape[2] and (sliding_window is None or packing.longest <= sliding_window)
    # Where nothing is dropped, rows so long that their scores had better be computed anew are left to PyTorch.
    trained = dropout or (packing.longest <= LONGEST and torch.is_grad_enabled() and query.requires_grad)
    if on_cpu and alike and trained:
        return attend_by_length(query, key, value, packing, dropout=dropout, scaling=factor), None
    gathered = [attend(*group).flatten(0, 1) for group in packing.by_length(query, key, value)]
    return torch.cat(gathered).unsqueeze(0), None


@lru_cache
def packs_on(device: torch.device) -> bool:
    """Whether a device computes the attention of packed batches well, in training too."""
    return device.type == "cpu" or (device.type == "cuda" and has_kernels(device))


def goes_by_length(device: torch.device) -> bool:
    """Whether rows of one length go side by side, one length after the other; such small groups never fill a GPU."""
    return device.type == "cpu"


def _padded_mask(attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """The mask of a padded batch; a packed one, which comes without, needs none over all of its tokens."""
    return None if attention_mask is None else sdpa_mask(attention_mask=attention_mask, **kwargs)


AttentionInterface.register(_NAME, packed_attention)
AttentionMaskInterface.register(_NAME, _padded_mask)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None,
    window: int | None,
    dropout: float,
    scaling: float | None,
) -> Tensor:
    """Attention within each of n rows of one length: [n, L, H, d] each -> [n, L, H, d]."""
    length = query.shape[1]
    if mask is None and window is not None and length > window:
        positions = torch.arange(length, device=query.device)
        mask = (positions - positions.unsqueeze(1)).abs() < window
    gathered = nn.functional.scaled_dot_product_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attn_mask=mask,
        dropout_p=dropout,
        scale=scaling,
        enable_gqa=query.shape[2] != key.shape[2],
    )
    return gathered.transpose(1, 2)


def packed_states(
    backbone: PreTrainedModel, input_ids: Tensor, packing: Packing, *, all_layers: bool
) -> Sequence[Tensor]:
    """The token states of a batch, computed without its padding; differentiable.

    Args:
        backbone: One that ``use_packed_attention`` has found fit.
        input_ids: Token ids, padded on the right, [B, T].
        packing: That of the batch's attention mask.
        all_layers: Return H_0 ... H_L; else H_L alone.

    Returns:
        States, [1, P, D] each, to be read through ``packing.by_length``.
    """
    outputs = backbone(
        input_ids=packing.pack(input_ids),
        position_ids=packing.pack(position_ids(backbone, input_ids)),
        packing=packing,
        output_hidden_states=all_layers,
    )
    return outputs.hidden_states if all_layers else (outputs.last_hidden_state,)


def use_packed_attention(backbone: PreTrainedModel) -> bool:
    """Make a backbone fit for packed batches, if it is one of a family that can be.

    Some families compute attention by themselves, whatever they are told to use. So a small batch is tried: every layer
    must have called ``packed_attention``, and its packed states must be the padded ones, in every layer. Padded batches
    go through the backbone as before, whatever comes out.

    Returns:
        Whether it is fit; if not, a warning says so.

    Raises:
        torch.OutOfMemoryError: If memory ends, which says nothing about another time.
    """
    own, fit = backbone.config._attn_implementation, False
    try:
        with quiet(), tried_out(backbone):
            fit = _packed_equals_padded(backbone)
    except torch.OutOfMemoryError:  # which says nothing of the family
        raise
    except Exception:  # whatever a family makes of arguments it does not know
        fit = False
    finally:
        if not fit:
            with quiet():
                backbone.set_attn_implementation(own)
    if not fit:
        warnings.warn(
            f"{type(backbone).__name__} computes attention in a way of its own: batches are padded (equal, but slower)",
            stacklevel=2,
        )
    return fit


def uses_packed_attention(backbone: PreTrainedModel) -> bool:
    """Whether a backbone still computes attention as ``use_packed_attention`` has told it to."""
    return bool(backbone.config._attn_implementation == _NAME)


def _packed_equals_padded(backbone: PreTrainedModel) -> bool:
    """Switch the backbone to ``packed_attention``, and compare the states of a made-up batch with what they were."""
    ids, mask = made_up_batch(backbone)
    padded = backbone(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    backbone.set_attn_implementation(_NAME)
    packing = Packing(mask)
    packed = packed_states(backbone, ids, packing, all_layers=True)
    if packing.calls != len(padded) - 1:
        return False
    return all(same_states(expected, found) for expected, found in zip(map(packing.pack, padded), packed, strict=True))


@contextmanager
def tried_out(backbone: PreTrainedModel) -> Iterator[None]:
    """Within this context a backbone computes what its weights say: no dropout, no gradients, no other precision."""
    with evaluating(backbone), torch.no_grad(), torch.autocast(backbone.device.type, enabled=False):
        yield


def made_up_batch(backbone: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, [B, T] each, of two rows of one length and one that is longer.

    Where attention is local, the latter is longer than it reaches.
    """
    window = getattr(backbone.config, "sliding_window", None) or 0
    lengths = torch.tensor([3, max(5, window + 2), 3])
    mask = (torch.arange(int(lengths.max())) < lengths.unsqueeze(1)).long().to(backbone.device)
    # Ids of words, not of special tokens, which stand at the start of a vocabulary.
    half = backbone.config.vocab_size // 2
    return half + torch.arange(mask.numel(), device=mask.device).view_as(mask) % half, mask


def same_states(expected: Tensor, found: Tensor, *, coarse: bool = False) -> bool:
    """Whether the states of every token, [..., D], differ by no more than rounding explains in their precision.

    ``coarse``: layers before them round more coarsely than their precision tells.
    """
    tolerance = _HALF_TOLERANCE if coarse or expected.dtype.itemsize == 2 else _TOLERANCE
    apart, scale = (found - expected).norm(dim=-1), expected.norm(dim=-1)
    return bool((apart <= tolerance * scale).all())
