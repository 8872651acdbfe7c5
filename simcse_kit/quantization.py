"""Vectors in fewer bits, as sentence-transformers makes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from simcse_kit.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Precision = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]


def quantize(vectors: NDArray[np.float32], precision: str) -> NDArray[Any]:
    """Store vectors in another precision.

    Args:
        vectors: [N, D].
        precision: ``float32``, ``float16``; ``int8`` or ``uint8``, 256 steps between the smallest and the largest value
            of each dimension among these vectors; ``binary`` or ``ubinary``, the signs of eight dimensions in a byte.

    Returns:
        The vectors, [N, D] of that type; for ``binary`` and ``ubinary`` [N, D / 8] of int8 and uint8.

    Raises:
        UserError: If there is no such precision, or ``int8`` or ``uint8`` have fewer than two vectors to find the range
            in, or D is no multiple of 8 where bytes are made of eight.
    """
    count, width = vectors.shape
    check_precision(precision, width)
    if precision in ("float32", "float16"):
        return vectors.astype(precision, copy=False)
    if precision in ("int8", "uint8") and count < 2:
        raise UserError(
            f"precision {precision}: the range of each dimension needs two vectors at least, here is {count}"
        )
    from sentence_transformers.util import quantize_embeddings

    quantized = quantize_embeddings(vectors, precision=cast(Any, precision))
    return cast("NDArray[Any]", quantized)


def check_precision(precision: str, width: int) -> None:
    """See that vectors of D dimensions can be stored in a precision, before they are made.

    Raises:
        UserError: If there is no such precision, or D is no multiple of 8 where bytes are made of eight.
    """
    if precision not in get_args(Precision):
        raise UserError(f"precision {precision!r} is unknown; use {', '.join(get_args(Precision))}")
    if precision in ("binary", "ubinary") and width % 8:
        raise UserError(
            f"precision {precision}: {width} dimensions do not fill whole bytes; truncate them to {width // 8 * 8}"
        )
