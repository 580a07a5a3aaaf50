"""Numbers as they stand in files: the name of their type, a shape and bits. No library but NumPy, whatever the type.

bfloat16 and float8 are held as unsigned integers of their size, so that nothing here needs `ml_dtypes`. Every conversion is
exact, or refused.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refattn._core import Array

MOST_DIMENSIONS = 32
MOST_BYTES = 2**63 - 1


@dataclass(frozen=True)
class Kind:
    """A type of numbers in a file.

    Attributes
    ----------
    name : str
        As NumPy, torch and jax spell it.
    tag : str
        As safetensors spells it.
    bits : str
        The NumPy type in which its bits are held, little endian.
    """

    name: str
    tag: str
    bits: str

    @property
    def size(self) -> int:
        """Bytes of one number."""
        return np.dtype(self.bits).itemsize

    @property
    def is_real(self) -> bool:
        """Whether it is a floating-point type."""
        return "float" in self.name


KINDS = {
    k.name: k
    for k in (
        Kind("bool", "BOOL", "|b1"),
        Kind("uint8", "U8", "|u1"),
        Kind("int8", "I8", "|i1"),
        Kind("uint16", "U16", "<u2"),
        Kind("int16", "I16", "<i2"),
        Kind("uint32", "U32", "<u4"),
        Kind("int32", "I32", "<i4"),
        Kind("uint64", "U64", "<u8"),
        Kind("int64", "I64", "<i8"),
        Kind("float8_e4m3fn", "F8_E4M3", "|u1"),
        Kind("float8_e5m2", "F8_E5M2", "|u1"),
        Kind("bfloat16", "BF16", "<u2"),
        Kind("float16", "F16", "<f2"),
        Kind("float32", "F32", "<f4"),
        Kind("float64", "F64", "<f8"),
    )
}


class NotHeldError(ValueError):
    """A type has no such number."""


NAMED_BY_TAG = {k.tag: k.name for k in KINDS.values()}


@dataclass(frozen=True, eq=False)
class Tensor:
    """An array of any type that a file may hold.

    Attributes
    ----------
    dtype : str
        A name of `KINDS`.
    bits : array
        Its numbers; for bfloat16 and float8 their bits as unsigned integers.
    """

    dtype: str
    bits: np.ndarray[Any, Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.bits.shape

    def tobytes(self) -> bytes:
        """Little endian, C order."""
        return self.bits.tobytes()

    def values(self) -> np.ndarray[Any, Any]:
        """The same numbers in a type of NumPy: float64 for bfloat16 and float8."""
        if self.dtype == "bfloat16":
            with np.errstate(invalid="ignore"):  # of a NaN, whose kind does not matter
                return (self.bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        if self.dtype.startswith("float8"):
            return _eights(self.dtype)[self.bits]
        return self.bits.astype(self.bits.dtype.newbyteorder("="), copy=False)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        """The bits."""
        return np.array(self.bits, dtype, copy=copy)


def stored(x: Any, dtype: str | None = None) -> Tensor:
    """An array's numbers in the type of this name, by default its own.

    Parameters
    ----------
    x : array_like
        Real numbers, integers or booleans.
    dtype : str or None, optional
        A name of `KINDS`.

    Returns
    -------
    Tensor
        The same numbers.

    Raises
    ------
    ValueError
        Where the type is unknown.
    NotHeldError
        Where it cannot hold one of the numbers exactly.
    """
    values = np.asarray(x)
    kind = named_kind(values.dtype.name if dtype is None else dtype)
    with np.errstate(all="ignore"):
        made = Tensor(kind.name, np.ascontiguousarray(_bits(values, kind)).reshape(values.shape))
        back = made.values()
        same = (back == values) | (np.isnan(back) & np.isnan(values)) if kind.is_real and values.dtype.kind == "f" else back == values
    if not np.all(same):
        raise NotHeldError(f"{values[~same].flat[0]} is no number of {kind.name}")
    return made


def from_bytes(dtype: str, shape: Sequence[int], data: bytes) -> Tensor:
    """A tensor from its bytes; ValueError where they are not as many as they must be."""
    kind, size = named_kind(dtype), size_in_bytes(dtype, shape)
    if len(data) != size:
        raise ValueError(f"{dtype} of shape {tuple(shape)} has {size} bytes, here are {len(data)}")
    if kind.name == "bool" and data.strip(b"\0\1"):
        raise ValueError("a boolean is neither 0 nor 1")
    return Tensor(kind.name, np.frombuffer(data, kind.bits).reshape(tuple(shape)))


def named_kind(name: Any) -> Kind:
    """The type of this name; ValueError where there is none."""
    if not isinstance(name, str) or name not in KINDS:
        raise ValueError(f"dtype is {str(name)[:80]!r}, but must be one of {', '.join(KINDS)}")
    return KINDS[name]


def size_in_bytes(dtype: str, shape: Any) -> int:
    """How many bytes an array has; ValueError for what is no shape."""
    whole = isinstance(shape, (list, tuple)) and all(type(n) is int and n >= 0 for n in shape)
    if not whole or len(shape) > MOST_DIMENSIONS:
        raise ValueError(f"shape is {str(shape)[:80]}, but must be at most {MOST_DIMENSIONS} whole numbers from 0")
    size = named_kind(dtype).size
    if size * math.prod(max(n, 1) for n in shape) > MOST_BYTES:
        raise ValueError(f"shape is {str(list(shape))[:80]}, more than memory can have")
    return size * math.prod(shape)


def _bits(values: np.ndarray[Any, Any], kind: Kind) -> np.ndarray[Any, Any]:
    if kind.name == "bfloat16":
        high = (values.astype("<f4").view("<u4") >> 16).astype("<u2")
        return np.where(np.isnan(values), np.uint16(0x7FC0), high).astype("<u2")
    if kind.name.startswith("float8"):
        finite = _eights(kind.name)[:127]
        finite = finite[~np.isnan(finite)]  # from 0 upwards, with infinity where there is one
        place = np.minimum(np.searchsorted(finite, np.abs(values)), finite.size - 1)
        return np.where(np.isnan(values), 127, place + 128 * np.signbit(values)).astype("|u1")
    return values.astype(kind.bits)


@functools.cache
def _eights(name: str) -> Array:
    """What each of the 256 numbers of a float8 type is."""
    bits = np.arange(256, dtype=np.uint16)
    if name == "float8_e5m2":  # the upper half of float16
        return (bits << 8).view(np.float16).astype(np.float64)
    exponent, fraction = (bits >> 3 & 15).astype(int), (bits & 7).astype(float)
    magnitude = np.where(exponent == 0, np.ldexp(fraction, -9), np.ldexp(8 + fraction, exponent - 10))
    magnitude[[127, 255]] = np.nan  # float8_e4m3fn has no infinity
    return np.where(bits < 128, magnitude, -magnitude)
