import numpy as np
import pytest

from simcse_kit.errors import UserError
from simcse_kit.quantization import quantize

VECTORS = np.random.default_rng(0).normal(size=(40, 24)).astype(np.float32)


def test_float32_is_what_it_was_and_float16_is_rounded():
    assert quantize(VECTORS, "float32") is VECTORS
    half = quantize(VECTORS, "float16")
    assert half.dtype == np.float16 and np.abs(half - VECTORS).max() < 2**-10 * np.abs(VECTORS).max()


@pytest.mark.parametrize(("precision", "lowest"), [("int8", -128), ("uint8", 0)])
def test_whole_numbers_are_steps_between_the_extremes_of_each_dimension(precision, lowest):
    found = quantize(VECTORS, precision)
    assert found.dtype == precision and found.shape == VECTORS.shape
    low, high = VECTORS.min(axis=0), VECTORS.max(axis=0)
    steps = (VECTORS - low) / (high - low) * 255 + lowest
    assert np.abs(found - steps).max() <= 1.0
    assert found.min() == lowest and found.max() == lowest + 255


@pytest.mark.parametrize(("precision", "offset"), [("ubinary", 0), ("binary", -128)])
def test_bits_are_signs(precision, offset):
    found = quantize(VECTORS, precision)
    assert found.shape == (40, 3)
    expected = [[int("".join("1" if x > 0 else "0" for x in row[i : i + 8]), 2) for i in (0, 8, 16)] for row in VECTORS]
    assert (found.astype(int) == np.array(expected) + offset).all()


@pytest.mark.parametrize(
    ("shape", "precision", "says"),
    [
        ((2, 8), "int4", "precision 'int4' is unknown"),
        ((1, 8), "int8", "two vectors at least, here is 1"),
        ((0, 8), "uint8", "here is 0"),
        ((3, 12), "binary", "12 dimensions do not fill whole bytes; truncate them to 8"),
    ],
)
def test_what_cannot_be_is_said(shape, precision, says):
    with pytest.raises(UserError, match=says):
        quantize(np.zeros(shape, np.float32), precision)
