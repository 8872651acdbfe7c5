"""Whitening: the linear map that gives the vectors of a text set mean 0 and the identity as covariance.

A baseline that needs no training: vectors of pretrained encoders lie in a narrow cone, and cosines tell them apart
better once every direction has the same variance. Su et al. 2021, "Whitening Sentence Representations for Better
Semantics and Faster Retrieval" (arXiv:2103.15316); keeping only the first directions often helps further.

Legend: N sentences, D width of the vectors, k dimensions that are kept.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from simcse_kit.batching import stated_length, windows
from simcse_kit.encoder import SentenceEncoder
from simcse_kit.errors import UserError
from simcse_kit.modules import Dense
from simcse_kit.progress import counted_rows

# Sentences encoded at a time; only their vectors are in memory.
_WINDOW = 16_384
# A direction whose standard deviation is less than this share of the vectors' length holds rounding errors of float32,
# or too much of them for the whitened covariance to be the identity to 1e-4.
_LEAST_DEVIATION = 1e-4


def whiten(
    encoder: SentenceEncoder,
    sentences: Iterable[str],
    dimensions: int | None = None,
    *,
    show_progress: bool = False,
) -> SentenceEncoder:
    """Whiten an encoder: y = W^T (x - mean), with W = U L^(-1/2) from the covariance U L U^T of a text set.

    What is whitened are the encoder's vectors behind all its layers, a kept head included, and before they are brought
    to unit length. The whitened encoder returns them as they are (``normalize`` is False), since unit length would
    undo the identity covariance; cosines are the same. The map is one more Dense layer, so that the whitened encoder is
    saved, opened and measured like any other.

    Args:
        encoder: The encoder; it stays as it is. Its weights must be float32.
        sentences: The text set whose mean and covariance (with N - 1, as ``np.cov``) are fitted, repetitions counted.
        dimensions: k, the directions of the largest variance. None: all in which the set varies. These may be a few
            less than D: the last LayerNorm keeps the vectors of most backbones in a hyperplane.
        show_progress: Show a progress display on standard error.

    Returns:
        A new encoder, whose vectors of the set have mean 0 and identity covariance to 1e-4.

    Raises:
        UserError: If there are not more distinct sentences than dimensions, or the vectors vary in fewer directions.
    """
    if encoder.dtype != torch.float32:
        raise UserError(f"{encoder.source}: whitening needs float32 weights, these are {encoder.dtype}")
    width = encoder.dimension
    if dimensions is not None and not 1 <= dimensions <= width:
        raise UserError(f"dimensions {dimensions}: the vectors of {encoder.source} have {width}; ask for 1 to {width}")
    wanted = dimensions or width
    distinct: set[str] = set()

    def encoded(count: Callable[[float], None]) -> Iterator[NDArray[np.float32]]:
        for block in windows(sentences, _WINDOW):
            if len(distinct) <= wanted:
                distinct.update(block)
            yield encoder.encode(block, normalize=False)
            count(len(block))

    with counted_rows(total=stated_length(sentences), quiet=not show_progress) as count:
        mean, covariance = mean_and_covariance(encoded(count), width)
    if len(distinct) <= wanted:
        raise UserError(
            f"{wanted} dimensions take more than {wanted} distinct sentences, and there are {len(distinct)}; "
            "give more sentences, or ask for fewer dimensions"
        )
    return _with_layer(encoder, whitening_layer(mean, covariance, dimensions))


def mean_and_covariance(
    blocks: Iterable[NDArray[np.float32]], width: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean [D] and covariance [D, D] of vectors that come in blocks [n, D], in float64 and in one pass.

    The covariance is that of ``np.cov``: divided by N - 1. It is zero for fewer than two vectors.
    """
    count, origin = 0, np.zeros(width)
    total, scatter = np.zeros(width), np.zeros((width, width))
    for block in blocks:
        if count == 0:
            # Any point near the mean will do: the sums of squares then do not cancel.
            origin = block.mean(axis=0, dtype=np.float64)
        centred = block - origin
        count += len(block)
        total += centred.sum(axis=0)
        scatter += centred.T @ centred
    offset = total / max(count, 1)
    return origin + offset, (scatter - count * np.outer(offset, offset)) / max(count - 1, 1)


def whitening_layer(mean: NDArray[np.float64], covariance: NDArray[np.float64], dimensions: int | None) -> Dense:
    """The layer that whitens vectors of this mean [D] and covariance [D, D]: [B, D] -> [B, k].

    Raises:
        UserError: If the vectors vary in fewer than ``dimensions`` directions (None: in none at all).
    """
    variances, directions = (part[..., ::-1] for part in np.linalg.eigh(covariance))  # the largest first
    length = np.sqrt(mean @ mean + np.trace(covariance))  # root mean square
    rank = int((variances > (_LEAST_DEVIATION * length) ** 2).sum())
    if rank == 0:
        raise UserError("all vectors of the text set are equal, so they cannot be whitened; give other sentences")
    kept = rank if dimensions is None else dimensions
    if kept > rank:
        raise UserError(
            f"the text set's vectors vary in {rank} of {len(mean)} directions, not in {kept}; "
            f"give more varied sentences, or ask for at most {rank} dimensions"
        )
    weights = (directions[:, :kept] / np.sqrt(variances[:kept])).T.astype(np.float32)  # [k, D]
    layer = Dense(len(mean), kept, activation="Identity")
    with torch.no_grad():
        layer.linear.weight.copy_(torch.from_numpy(weights))
        # From the weights as rounded, so that the mean is 0 all the same.
        layer.linear.bias.copy_(torch.from_numpy(-(weights.astype(np.float64) @ mean)))
    return layer


def _with_layer(encoder: SentenceEncoder, layer: Dense) -> SentenceEncoder:
    """A copy of the encoder with a layer behind all it applies after training."""
    extended = copy.deepcopy(encoder)
    kept_head = [extended.head] if extended.head is not None and extended.keep_head else []
    extended.dense = nn.Sequential(*extended.dense, *kept_head, layer.to(encoder.device))
    extended.head, extended.keep_head = None, False
    extended.normalize = False
    extended.weight_files = []
    return extended.eval()
