"""Floating-point formats, and rounding to them without a library that has them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from refattn._core import Array

NARROW = -100
"""Exponents of the smallest normal numbers lie on two sides of it: -126 in float32 and bfloat16, -14 and -6 in narrow formats."""
BY_ML_DTYPES = {"bfloat16", "float8_e4m3fn", "float8_e5m2"}


@dataclass(frozen=True)
class Format:
    """One floating-point format, and the precision in which kernels accumulate it.

    Attributes
    ----------
    name : str
        As NumPy, torch and jax spell it.
    digits : int
        Bits of the significand, the leading one included.
    lowest : int
        Binary exponent of the smallest normal number.
    largest : float
        Largest finite number.
    accumulator : float
        Unit roundoff of sums: float32's for all formats up to float32.
    saturates : bool
        Whether what is larger than the largest number becomes that, and not infinity: so conversions to 8 bits do by default.
    infinite : bool
        Whether it has infinities.
    taken : Format or None
        What arguments are given in, where that is another format: cotangents, outputs and gradients are of this one.
    """

    name: str
    digits: int
    lowest: int
    largest: float
    accumulator: float
    saturates: bool = False
    infinite: bool = True
    taken: Format | None = None

    @property
    def arguments(self) -> Format:
        """The format of arguments."""
        return self.taken or self

    @property
    def results(self) -> Format:
        """The format of cotangents, outputs and gradients."""
        return self if self.taken is None else FORMATS[self.name.rpartition(":")[2]]

    @property
    def unit(self) -> float:
        """Unit roundoff: the largest relative error of rounding to nearest."""
        return 2.0**-self.digits

    @property
    def floor(self) -> float:
        """An absolute error that underflow may cause: kernels may flush subnormal numbers, except in formats of few exponents."""
        return 2.0 ** (self.lowest - self.digits + 1) if self.is_narrow else 2.0**self.lowest

    @property
    def is_narrow(self) -> bool:
        """Whether numbers of ordinary size are subnormal: in float16 and in formats of 8 bits."""
        return self.lowest > NARROW

    def round(self, x: Any) -> Array:
        """The nearest numbers of this format, ties to even, as float64 (longdouble stays so)."""
        x = np.asarray(x)
        _, exponent = np.frexp(np.where(np.isfinite(x), x, 0))
        step = np.ldexp(np.ones_like(x), np.maximum(exponent, self.lowest + 1) - self.digits)
        with np.errstate(over="ignore", invalid="ignore"):
            nearest = np.where(np.isfinite(x), np.round(x / step) * step, x)
        beyond = np.isfinite(nearest) & (np.abs(nearest) > self.largest)
        return np.where(beyond, np.copysign(self.largest if self.saturates else np.inf, nearest), nearest)

    def array(self, x: Array) -> np.ndarray[Any, Any]:
        """The same values in this format; bfloat16 and formats of 8 bits need ml_dtypes."""
        return x.astype(self.numpy_dtype)

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """NumPy's own type, or that of ml_dtypes."""
        if self.name not in BY_ML_DTYPES:
            return np.dtype(self.name)
        try:
            import ml_dtypes  # noqa: PLC0415  # an extra
        except ImportError:
            raise TypeError(f"dtype={self.name!r} in NumPy arrays needs the package ml_dtypes: pip install 'refattn[test]'") from None
        return np.dtype(getattr(ml_dtypes, self.name))


FORMATS = {
    f.name: f
    for f in (
        Format("float64", 53, -1022, float(np.finfo(np.float64).max), 2.0**-53),
        Format("float32", 24, -126, float(np.finfo(np.float32).max), 2.0**-24),
        Format("float16", 11, -14, 65504.0, 2.0**-24),
        Format("bfloat16", 8, -126, (2 - 2.0**-7) * 2.0**127, 2.0**-24),
        Format("float8_e4m3fn", 4, -6, 448.0, 2.0**-24, saturates=True, infinite=False),
        Format("float8_e5m2", 3, -14, 57344.0, 2.0**-24, saturates=True),
    )
}


MIXED = tuple(f"{small}:{wide}" for small in ("float8_e4m3fn", "float8_e5m2") for wide in ("bfloat16", "float32"))
"""Arguments of 8 bits, from which sums are returned in a wider format."""


def named_format(dtype: Any) -> Format:
    """The format of this name or NumPy type; ValueError where there is none."""
    if isinstance(dtype, str) and dtype in MIXED:
        small, _, wide = dtype.partition(":")
        return dataclasses.replace(FORMATS[wide], name=dtype, taken=FORMATS[small])
    try:
        name = dtype if isinstance(dtype, str) or dtype is None else np.dtype(dtype).name
    except TypeError:  # another library's, for example torch.float16
        name = str(dtype).rpartition(".")[2]
    if name not in FORMATS:
        raise ValueError(f"dtype is {name!r}, but must be one of {', '.join((*FORMATS, *MIXED))}")
    return FORMATS[name]
