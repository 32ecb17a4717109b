"""The one rounding to storage, against NumPy's f16 and ml_dtypes' bf16, over every pattern and every tie."""

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, strategies as st

from ttr_ref.float_dtype import HALF_FORMATS, FloatDType, at_precision_of, round_to_storage, to_storage

HALVES = pytest.mark.parametrize("dtype", list(HALF_FORMATS))
PATTERNS = np.arange(2**16, dtype=np.uint16)
LARGEST = {FloatDType.F16: 65504.0, FloatDType.BF16: (2 - 2.0**-7) * 2.0**127}


def values(dtype: FloatDType) -> np.ndarray:
    """The value of each of the 65 536 patterns, in float32, which holds them all. Every NaN among them is a quiet one."""
    with np.errstate(invalid="ignore"):
        return np.where(np.isnan(PATTERNS.view(dtype.storage)), np.float32(np.nan), PATTERNS.view(dtype.storage).astype(np.float32))


def assert_as_the_type_itself(x: np.ndarray, dtype: FloatDType) -> None:
    """Both functions agree with the type's own cast in every bit but NaN's payload; what is rounded keeps the type of x."""
    with np.errstate(over="ignore", invalid="ignore"):  # the cast warns of overflow and of signalling NaNs; ours must not
        expected = x.astype(dtype.storage)
    rounded, stored = round_to_storage(x, dtype), to_storage(x, dtype)
    assert rounded.dtype == x.dtype
    assert stored.dtype == dtype.storage
    finite = ~np.isnan(x)
    assert np.array_equal(np.isnan(stored.astype(np.float32)), ~finite)
    assert np.array_equal(stored[finite].view(np.uint16), expected[finite].view(np.uint16))
    assert np.array_equal(rounded[finite], expected[finite].astype(x.dtype))
    assert np.array_equal(np.signbit(rounded[finite]), np.signbit(x[finite]))


@HALVES
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_every_pattern_is_a_fixed_point(dtype, kind):
    x = values(dtype).astype(kind)
    rounded, stored = round_to_storage(x, dtype), to_storage(x, dtype)
    number = ~np.isnan(x)
    assert rounded[number].tobytes() == x[number].tobytes()
    assert np.array_equal(stored[number].view(np.uint16), PATTERNS[number])
    assert np.isnan(rounded[~number]).all()
    assert np.isnan(stored[~number].astype(np.float32)).all()


@HALVES
def test_every_midpoint_and_its_neighbours(dtype):
    """Ties go to the even pattern; one float32 step to either side of a tie goes to that side. The midpoints around zero are subnormal."""
    x = np.sort(values(dtype)[np.isfinite(values(dtype))].astype(np.float64))
    x = np.unique(x)  # the two zeros are one value
    middle = (x[:-1] + x[1:]) / 2
    tie = middle.astype(np.float32)
    exact = tie == middle  # below float32's own smallest number there is no midpoint of neighbours to test
    assert exact.sum() >= middle.size - 2
    around = np.stack([tie, np.nextafter(tie, np.float32(-np.inf)), np.nextafter(tie, np.float32(np.inf))])[:, exact]
    assert_as_the_type_itself(around, dtype)
    even, below, above = round_to_storage(around, dtype)
    assert np.array_equal(below, x[:-1][exact])
    assert np.array_equal(above, x[1:][exact])
    assert not (to_storage(around[0], dtype).view(np.uint16) & 1).any()
    assert np.all((even == below) | (even == above))


@HALVES
def test_every_midpoint_from_float64(dtype):
    """The neighbours of a tie in float64 are nearer to it than any float32, so that going through float32 would round twice."""
    x = np.unique(values(dtype)[np.isfinite(values(dtype))].astype(np.float64))
    middle = (x[:-1] + x[1:]) / 2
    assert np.array_equal(round_to_storage(np.nextafter(middle, -np.inf), dtype), x[:-1])
    assert np.array_equal(round_to_storage(np.nextafter(middle, np.inf), dtype), x[1:])
    assert np.array_equal(to_storage(np.nextafter(middle, np.inf), dtype).astype(np.float64), x[1:])


@HALVES
def test_overflow_threshold(dtype):
    """What is nearer to 2^(e_max + 1) than to the largest finite number, and the tie between them, becomes infinite, with its sign."""
    precision, _, e_max = HALF_FORMATS[dtype]
    largest, threshold = LARGEST[dtype], (2 - 2.0**-precision) * 2.0**e_max
    for kind in (np.float32, np.float64):
        x = np.array([largest, np.nextafter(kind(threshold), kind(0)), threshold, np.inf], kind)
        assert round_to_storage(x, dtype).tolist() == [largest, largest, np.inf, np.inf]
        assert round_to_storage(-x, dtype).tolist() == [-largest, -largest, -np.inf, -np.inf]
        assert to_storage(-x, dtype).astype(np.float64).tolist() == [-largest, -largest, -np.inf, -np.inf]


@HALVES
def test_zeros_and_the_smallest(dtype):
    """Half the smallest number is a tie with zero, which is even; the sign survives."""
    precision, e_min, _ = HALF_FORMATS[dtype]
    smallest = 2.0 ** (e_min - precision + 1)
    x = np.array([0.0, smallest / 2, np.nextafter(smallest / 2, 1), smallest, 1.5 * smallest, 5e-324])
    for sign in (1, -1):
        y = round_to_storage(sign * x, dtype)
        assert np.array_equal(sign * y, [0, 0, smallest, smallest, 2 * smallest, 0])
        assert np.array_equal(np.signbit(y), np.full(x.size, sign < 0))


@HALVES
def test_random_float32_patterns(dtype):
    patterns = np.random.default_rng(0).integers(0, 2**32, 500_000, dtype=np.uint32)
    assert_as_the_type_itself(patterns.view(np.float32), dtype)


@HALVES
@given(pattern=st.integers(0, 2**32 - 1))
def test_any_float32_pattern(dtype, pattern):
    assert_as_the_type_itself(np.array([pattern], np.uint32).view(np.float32), dtype)


def test_float64_to_f16_as_numpy():
    """NumPy casts float64 to float16 with one rounding. Random patterns mostly overflow or vanish, so the exponents are drawn near f16's."""
    rng = np.random.default_rng(1)
    spread = np.ldexp(rng.uniform(-2, 2, 300_000), rng.integers(-27, 18, 300_000))
    patterns = rng.integers(0, 2**64, 100_000, dtype=np.uint64).view(np.float64)
    assert_as_the_type_itself(np.concatenate([spread, patterns]), FloatDType.F16)


@given(st.floats(-3e38, 3e38))
def test_float64_to_bf16_in_exact_fractions(x):
    """Round |x| to a whole number of quanta in rational arithmetic, where Python rounds half to even."""
    _, exponent = np.frexp(x)
    quantum = Fraction(2) ** (max(int(exponent) - 1, -126) - 7)
    assert float(round_to_storage(np.array(x), FloatDType.BF16)) == round(Fraction(x) / quantum) * quantum


def test_rounding_twice_would_be_wrong():
    """1 + 2⁻⁸ is a tie of bf16. A float64 just above it belongs up, but float32 cannot hold the difference, and its tie would go down."""
    x = np.array([1 + 2.0**-8 + 2.0**-40])
    assert x.astype(np.float32).astype(ml_dtypes.bfloat16).astype(float) == 1.0
    assert to_storage(x, FloatDType.BF16).astype(float) == 1 + 2.0**-7
    y = np.array([1 + 2.0**-11 + 2.0**-40])
    assert y.astype(np.float32).astype(np.float16).astype(float) == 1.0
    assert to_storage(y, FloatDType.F16).astype(float) == 1 + 2.0**-10


@pytest.mark.parametrize("dtype", [FloatDType.F64, FloatDType.F32])
def test_full_types_are_left_alone(dtype):
    x = np.array([np.nan, -0.0, 1 / 3, np.inf], dtype.compute)
    assert round_to_storage(x, dtype) is x
    assert to_storage(x, dtype).tobytes() == x.tobytes()
    assert to_storage(x, dtype).dtype == dtype.storage == dtype.compute


def test_compute_types_of_the_halves():
    assert {dtype.compute for dtype in HALF_FORMATS} == {np.dtype(np.float32)}


def test_precision_of_another():
    """Rounded down to float32, never up, and complex stays complex."""
    a = np.array([1 / 3])
    assert at_precision_of(np.zeros(1, np.float32), a).dtype == np.float32
    assert at_precision_of(np.zeros(1), a) is a
    assert at_precision_of(np.zeros(1, complex), a) is a
    assert at_precision_of(np.zeros(1), a + 1j).dtype == complex
