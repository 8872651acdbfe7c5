"""The geometry of an encoder's vectors: how close similar sentences lie, and how well all of them use the space.

Every figure is of directions: vectors are scaled to unit length first. As in the STS protocol, a zero vector stays zero
and so has cosine 0 with every other, and NaN counts as 0.

Legend of shapes: n pairs, N sentences, D vector dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simcse_kit.evaluate.sts import cosine_similarity

_ALIKE = 4
_GOLD_EDGES = (0, 1, 2, 3, 4, 5)
_COSINE_EDGES = tuple(tenths / 10 for tenths in range(-10, 11))
_KERNEL_ENTRIES = 2**21
_COLLAPSED = 1e-12
_REASONS = {
    "alignment": f"no pair has a gold score above {_ALIKE}",
    "uniformity": "there are fewer than two sentences",
    "anisotropy": "there are fewer than two sentences",
    "effective_rank": "all vectors have the same direction",
}


@dataclass(frozen=True)
class GoldBucket:
    """The cosines of the pairs whose gold scores lie in [low, high), the last bucket's in [low, high].

    Attributes:
        low: The lowest score.
        high: The highest score.
        n: Number of pairs.
        mean: Their mean cosine; None if there is no pair.
        counts: Pairs in each bin of `Geometry.cosine_edges`.
    """

    low: float
    high: float
    n: int
    mean: float | None
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Geometry:
    """What `geometry` measures; a figure that is undefined is None, and `reasons` says why.

    Attributes:
        alignment: Mean squared distance of the two sentences of a positive pair, in [0, 4]; lower is better.
        uniformity: Log of the mean Gaussian potential of two sentences, in [-8, 0]; lower is better.
        anisotropy: Mean cosine of two sentences, in [-1, 1]; 0 where directions cancel out.
        effective_rank: How many dimensions the sentences spread over, in [1, D].
        n_positives: Pairs behind `alignment`.
        n_sentences: Sentences behind the other three.
        cosine_edges: Edges of the bins of the buckets' histograms.
        buckets: The pairs' cosines by their gold score.
    """

    alignment: float | None
    uniformity: float | None
    anisotropy: float | None
    effective_rank: float | None
    n_positives: int
    n_sentences: int
    cosine_edges: tuple[float, ...]
    buckets: tuple[GoldBucket, ...]

    @property
    def reasons(self) -> Mapping[str, str]:
        """Why a figure is None, by its name."""
        return {name: reason for name, reason in _REASONS.items() if getattr(self, name) is None}

    def as_json(self) -> dict[str, Any]:
        """The fields and `reasons`, as numbers, strings and lists of a JSON file."""
        return asdict(self) | {"reasons": self.reasons}


def geometry(
    vectors1: NDArray[np.float32],
    vectors2: NDArray[np.float32],
    gold: NDArray[np.float64],
    distinct: NDArray[np.intp] | None = None,
) -> Geometry:
    """Measure the geometry of a set of sentence pairs.

    Args:
        vectors1: Vectors of the pairs' first sentences [n, D].
        vectors2: Vectors of their second sentences [n, D].
        gold: Human scores [n], from 0 to 5; pairs above 4 are the positives, as in SimCSE (Gao et al., 2021).
        distinct: One row [N] of each different sentence, of the rows of `vectors1` followed by those of `vectors2`: a
            sentence that recurs is one sentence, and the distance to itself none. That cannot be seen from vectors,
            since an encoder that maps different sentences to one vector is to be measured as such. None: all
            sentences are different.

    Returns:
        The figures.
    """
    sentences = _unit(np.concatenate([vectors1, vectors2]))
    left, right = np.split(sentences, 2)
    if distinct is not None:
        sentences = sentences[distinct]
    positive = gold > _ALIKE
    return Geometry(
        alignment=alignment(left[positive], right[positive]),
        uniformity=uniformity(sentences),
        anisotropy=anisotropy(sentences),
        effective_rank=effective_rank(sentences),
        n_positives=int(positive.sum()),
        n_sentences=len(sentences),
        cosine_edges=_COSINE_EDGES,
        buckets=_buckets(cosine_similarity(vectors1, vectors2), gold),
    )


def alignment(left: NDArray[np.float64], right: NDArray[np.float64]) -> float | None:
    """E ||x - x+||^2 over positive pairs of unit vectors [n, D] (Wang & Isola, 2020, with alpha = 2).

    Returns:
        The mean; None if there is no pair.
    """
    return float(((left - right) ** 2).sum(axis=1).mean()) if len(left) else None


def uniformity(unit: NDArray[np.float64]) -> float | None:
    """Log E exp(-2 ||x - y||^2) over all pairs of two of the unit vectors [N, D] (Wang & Isola, 2020, with t = 2).

    Takes O(N^2 D) time and, computed block by block, O(N D) memory.

    Returns:
        The logarithm, 0 if all vectors are equal; None if there are fewer than two.
    """
    n = len(unit)
    if n < 2:
        return None
    squares = (unit**2).sum(axis=1)
    rows = max(1, _KERNEL_ENTRIES // n)
    total = 0.0
    for start in range(0, n, rows):
        kernel = unit[start : start + rows] @ unit[start:].T
        kernel *= 4
        kernel -= 2 * squares[start : start + rows, None]
        kernel -= 2 * squares[start:]
        np.exp(kernel, out=kernel)
        # The square of the block with itself holds each pair twice, the rest each pair once.
        total += 2 * kernel.sum() - kernel[:, : len(kernel)].sum()
    return math.log((total - n) / (n * (n - 1)))


def anisotropy(unit: NDArray[np.float64]) -> float | None:
    """Mean cosine over all pairs of two of the unit vectors [N, D] (Ethayarajh, 2019), from the length of their sum.

    Returns:
        The mean; None if there are fewer than two vectors.
    """
    n = len(unit)
    if n < 2:
        return None
    return float(((unit.sum(axis=0) ** 2).sum() - (unit**2).sum()) / (n * (n - 1)))


def effective_rank(unit: NDArray[np.float64]) -> float | None:
    """Roy & Vetterli (2007): exp of the entropy of the normalised singular values; here of centred unit vectors [N, D].

    Centred, because a direction that all vectors share is `anisotropy`'s and tells no two sentences apart.

    Returns:
        The rank; None if all vectors are equal, since it then has no limit: any rank is as near as any other.
    """
    centred = unit - unit.mean(axis=0)
    energies = np.linalg.eigvalsh(centred.T @ centred)
    if energies[-1] < _COLLAPSED * len(unit):
        return None
    # Beyond the numerical rank there is only rounding, which the square root would raise to something.
    singular = np.sqrt(energies[energies > energies[-1] * len(energies) * np.finfo(np.float64).eps])
    shares = singular / singular.sum()
    return math.exp(-(shares * np.log(shares)).sum())


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    finite = np.nan_to_num(vectors).astype(np.float64)
    norms = np.linalg.norm(finite, axis=1, keepdims=True)
    np.divide(finite, norms, out=finite, where=norms > 0)
    return finite


def _buckets(cosines: NDArray[np.float64], gold: NDArray[np.float64]) -> tuple[GoldBucket, ...]:
    counts = np.histogram2d(gold, cosines, bins=(_GOLD_EDGES, _COSINE_EDGES))[0].astype(int)
    sums = np.histogram(gold, _GOLD_EDGES, weights=cosines)[0]
    return tuple(
        GoldBucket(low, high, sum(row), total / sum(row) if sum(row) else None, tuple(row))
        for (low, high), row, total in zip(pairwise(_GOLD_EDGES), counts.tolist(), sums.tolist(), strict=True)
    )
