"""The layers of BERT and its kin (RoBERTa, XLM-R, ELECTRA, DistilBERT) on a CPU, in fewer and quicker steps.

Query, key and value come from one linear layer. The weights are put into the order that oneDNN's kernels read, which
add bias and residual and apply GELU to what they have at hand; these operations are private to PyTorch, so where one is
missing, or gives something else, nothing is fused. Where numpy's BLAS is quicker (see ``simcse_kit.blas``), it
multiplies instead. Pooling ``cls`` gets no more of the last layer than it reads.

The weights are a copy, made for the texts at hand and dropped behind them: so it is never older than weights that are
trained, loaded or moved, it is not copied or saved with a model, and it takes memory only while texts are encoded (as
much as the layers themselves).

Legend: B rows, T tokens of a padded row, P tokens of a packed batch, D width of the states; n rows of one length L,
H heads, d width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import BuiltinFunctionType, FunctionType
from typing import Any, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import GELUActivation

from simcse_kit.attention import made_up_batch, packed_states, same_states
from simcse_kit.backbone import position_ids
from simcse_kit.batching import CPU_TOKEN_BUDGET
from simcse_kit.int8 import Int8Linear, Rounded, has_int8_layers
from simcse_kit.packing import Packing
from simcse_kit.row_attention import attend_rows

# What options of modules are, beside their weights.
_OPTIONS = (int, float, str, FunctionType, BuiltinFunctionType)

# The settings in which a backbone was found to compute what it computes when it is fused.
_FIT: WeakKeyDictionary[PreTrainedModel, set[int]] = WeakKeyDictionary()


class FusedBackbone:
    """A backbone's own embeddings and a copy of its layers, for evaluation; made by ``fuse``."""

    def __init__(self, backbone: PreTrainedModel, *, by_blas: bool) -> None:
        self._backbone, self._embeddings = backbone, cast(Any, backbone.embeddings)
        self._project = getattr(backbone, "embeddings_project", nn.Identity())  # ELECTRA's
        layers: Any = backbone.encoder if hasattr(backbone, "encoder") else backbone.transformer
        self._layers = [_Layer(layer, backbone.config.num_attention_heads, by_blas=by_blas) for layer in layers.layer]

    @torch.inference_mode()
    def states(self, input_ids: Tensor, packing: Packing, *, all_layers: bool) -> Sequence[Tensor]:
        """The token states of a batch, as ``simcse_kit.attention.packed_states`` returns them.

        Args:
            input_ids: Token ids, padded on the right, [B, T].
            packing: That of the batch's attention mask.
            all_layers: Return H_0 ... H_L; else H_L alone.

        Returns:
            States, [1, P, D] each, to be read through ``packing.by_length``.
        """
        states = [self._embed(input_ids, packing)]
        for layer in self._layers:
            states = [*(states if all_layers else []), layer(states[-1], packing)]
        return states

    @torch.inference_mode()
    def first_states(self, input_ids: Tensor, packing: Packing) -> Tensor:
        """H_L at the first token of each row, [B, D], in the order of ``packing.by_length``; arguments as ``states``.

        The last layer computes these alone, from the keys and values of all tokens.
        """
        states = self._embed(input_ids, packing)
        for layer in self._layers[:-1]:
            states = layer(states, packing)
        return self._layers[-1](states, packing, first_only=True).squeeze(0)

    def _embed(self, input_ids: Tensor, packing: Packing) -> Tensor:
        ids, places = (packing.pack(each) for each in (input_ids, position_ids(self._backbone, input_ids)))
        embedded: Tensor = self._project(self._embeddings(input_ids=ids, position_ids=places))
        return embedded


@torch.inference_mode()
def fuse(backbone: PreTrainedModel, *, by_blas: bool = False) -> FusedBackbone | None:
    """Fuse the layers of a backbone as they are now, if they are BERT's.

    The states of a made-up batch must be the backbone's own, in every layer. That is tried once for what its modules
    are and how they are set; what they have learned since then changes nothing in it.

    Args:
        backbone: One that ``simcse_kit.attention.use_packed_attention`` has found fit; in evaluation mode, on a CPU.
        by_blas: Multiply by numpy's BLAS, as it is set, instead of oneDNN; in float32.

    Returns:
        The fused backbone. None: its layers are others, PyTorch lacks the operations here or in this precision,
        autocast has chosen another one, or a hook waits for one of its modules to be called.
    """
    if _has_hooks(backbone):
        return None
    try:
        fused, setting = FusedBackbone(backbone, by_blas=by_blas), hash((_setting(backbone), by_blas))
        if setting not in _FIT.setdefault(backbone, set()):
            if not _equals(fused, backbone):
                return None
            _FIT[backbone].add(setting)
        return fused
    except (AttributeError, RuntimeError, TypeError):  # other modules, or no such operation for these weights
        return None


class _Linear:
    """Linear layers that read the same states, joined to one."""

    def __init__(self, *layers: nn.Module) -> None:
        weight, self._bias = _joined(*layers)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, CPU_TOKEN_BUDGET)  # suits these best, serves any
        self._count = len(layers)

    def each(self, states: Tensor) -> Sequence[Tensor]:
        """What each layer makes of states, [1, P, width in] -> [1, P, width out] each."""
        return self.only(states).chunk(self._count, dim=-1)

    def only(self, states: Tensor, then: str = "none") -> Tensor:
        """What a single layer makes of states, and ``then``, "none" or "gelu" (the exact one)."""
        found: Tensor = torch.ops.mkldnn._linear_pointwise(states, self._weight, self._bias, then, [], "none")
        return found

    def plus(self, residual: Tensor, states: Tensor) -> Tensor:
        """What a single layer makes of states, and a residual added to it; the states are not needed again."""
        found: Tensor = torch.ops.mkldnn._linear_pointwise.binary(states, residual, self._weight, self._bias, "add")
        return found


class _BlasLinear:
    """As ``_Linear``, by numpy's BLAS."""

    def __init__(self, *layers: nn.Module) -> None:
        weight, self._bias = _joined(*layers)
        if weight.dtype != torch.float32:
            raise TypeError("numpy multiplies nothing shorter by BLAS")
        self._weight = weight.detach().t().contiguous().numpy()
        self._count = len(layers)

    def each(self, states: Tensor) -> Sequence[Tensor]:
        """As ``_Linear.each``."""
        return self.only(states).chunk(self._count, dim=-1)

    def only(self, states: Tensor, then: str = "none") -> Tensor:
        """As ``_Linear.only``."""
        found = states.new_empty(*states.shape[:-1], len(self._bias))
        np.matmul(states.numpy(), self._weight, out=found.numpy())
        found.add_(self._bias)
        return torch.ops.aten.gelu_(found) if then == "gelu" else found

    def plus(self, residual: Tensor, states: Tensor) -> Tensor:
        """As ``_Linear.plus``."""
        return self.only(states).add_(residual)


class _Int8Linear:
    """As ``_Linear``, of layers in int8."""

    def __init__(self, *layers: Int8Linear) -> None:
        self._layer = layers[0] if len(layers) == 1 else Int8Linear.joined(*layers)
        self._count = len(layers)

    def each(self, states: Tensor) -> Sequence[Tensor]:
        """As ``_Linear.each``."""
        return self.only(states).chunk(self._count, dim=-1)

    def only(self, states: Tensor, then: str = "none") -> Tensor:
        """As ``_Linear.only``."""
        found: Tensor = self._layer(states)
        # In place: new memory for the widest states takes the system as long as GELU itself.
        return torch.ops.aten.gelu_(found) if then == "gelu" else found

    def plus(self, residual: Tensor, states: Tensor) -> Tensor:
        """As ``_Linear.plus``."""
        return self._layer.multiply(Rounded.of(states, spare=True)).add_(residual)


def _linear(*layers: nn.Module, by_blas: bool) -> _Linear | _BlasLinear | _Int8Linear:
    if by_blas:
        return _BlasLinear(*layers)
    integers = [layer for layer in layers if isinstance(layer, Int8Linear)]
    return _Int8Linear(*integers) if len(integers) == len(layers) else _Linear(*layers)


def _joined(*layers: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of linear layers, one below the other: [width out of all, width in], [width out of all]."""
    plain = [layer for layer in layers if type(layer) is nn.Linear]
    if len(plain) < len(layers):
        raise TypeError("adapters, quantised layers and the like compute more than their weights tell")
    weight = plain[0].weight if len(plain) == 1 else torch.cat([layer.weight for layer in plain])
    return weight, torch.cat([layer.bias for layer in plain])


class _Layer:
    """Attention and feed-forward, each added to what it got, and the sum normalised (Devlin et al. 2019)."""

    def __init__(self, layer: Any, heads: int, *, by_blas: bool) -> None:
        if hasattr(layer, "ffn"):  # DistilBERT's names
            attention, feed = layer.attention, layer.ffn
            inner = attention.q_lin, attention.k_lin, attention.v_lin
            linears = attention.out_lin, feed.lin1, feed.lin2
            self._activation = feed.activation
            self._middle_norm, self._norm = layer.sa_layer_norm, layer.output_layer_norm
        else:
            attention, after = layer.attention.self, layer.attention.output
            inner = attention.query, attention.key, attention.value
            linears = after.dense, layer.intermediate.dense, layer.output.dense
            self._activation = layer.intermediate.intermediate_act_fn
            self._middle_norm, self._norm = after.LayerNorm, layer.output.LayerNorm
        self._heads, self._inner = heads, _linear(*inner, by_blas=by_blas)
        self._out, self._up, self._down = (_linear(linear, by_blas=by_blas) for linear in linears)

    def __call__(self, states: Tensor, packing: Packing, *, first_only: bool = False) -> Tensor:
        """The next states, [1, P, D] -> [1, P, D]; ``first_only``: of each row's first token, [1, B, D]."""
        query, key, value = self._inner.each(states)
        if first_only:
            query, states = query[:, packing.first], states[:, packing.first]
        gathered = torch.empty_like(query, memory_format=torch.contiguous_format)
        for group in packing.by_length(query, key, value, gathered):
            own, keys, values, into = (each.view(*each.shape[:2], self._heads, -1) for each in group)
            attend_rows(own, keys, values, into=into)
        middle = self._middle_norm(self._out.plus(states, gathered))
        is_gelu = isinstance(self._activation, GELUActivation)
        inner = self._up.only(middle, then="gelu") if is_gelu else self._activation(self._up.only(middle))
        normalised: Tensor = self._norm(self._down.plus(middle, inner))
        return normalised


def _has_hooks(backbone: PreTrainedModel) -> bool:
    """Whether any hook waits for a module, other than transformers' and our own, which sleep in evaluation."""
    return any(
        hook.__module__.partition(".")[0] not in ("transformers", "simcse_kit")
        for module in backbone.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    )


def _setting(backbone: PreTrainedModel) -> int:
    """A hash of what a forward pass depends on beside the weights: kinds of modules, their options, precisions."""
    modules = (
        (type(module), *(option for option in vars(module).items() if isinstance(option[1], _OPTIONS)))
        for module in backbone.modules()
    )
    autocast = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
    return hash((tuple(modules), backbone.dtype, autocast))


def _equals(fused: FusedBackbone, backbone: PreTrainedModel) -> bool:
    """Compare states with the backbone's own, on three made-up rows of two lengths."""
    ids, mask = made_up_batch(backbone)
    packing = Packing(mask)
    expected = packed_states(backbone, ids, packing, all_layers=True)
    first = expected[-1][0, packing.first]
    found = [*fused.states(ids, packing, all_layers=True), fused.first_states(ids, packing)]
    coarse = has_int8_layers(backbone)
    return all(same_states(own, ours, coarse=coarse) for own, ours in zip([*expected, first], found, strict=True))
