"""Arrays from anywhere, in the one precision that a call computes in."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.floating[Any]]
Integers: TypeAlias = npt.NDArray[np.integer[Any]]
Booleans: TypeAlias = npt.NDArray[np.bool_]
Grads: TypeAlias = Mapping[str, Any]
Pullback: TypeAlias = Callable[..., Grads]

CPU = (1, 0)
"""Main memory, as DLPack numbers devices."""

LOW_PRECISION = ("bfloat16", "float8_", "float6_", "float4_")


@functools.cache
def is_low_precision(dtype: np.dtype[Any]) -> bool:
    """Whether this is a floating type of ml_dtypes, which NumPy itself calls "void"."""
    return dtype.names is None and dtype.name.startswith(LOW_PRECISION)


def is_real(dtype: np.dtype[Any]) -> bool:
    """Whether this is a floating type, of NumPy or of ml_dtypes."""
    return dtype.kind == "f" or is_low_precision(dtype)


def working_dtype(*dtypes: np.dtype[Any]) -> np.dtype[Any]:
    """The precision to compute in: float64, or longdouble where an argument has it."""
    return np.result_type(np.float64, *(d for d in dtypes if not is_low_precision(d)))


def like(x: Array, value: Any) -> Array:
    """A number, its digits, or an array of numbers in the precision, and the arithmetic, of `x`."""
    return np.full_like(x, value, shape=np.shape(value))


def as_array(x: Any, name: str = "argument") -> np.ndarray[Any, Any]:
    """Any array-like as a plain NumPy array, without importing the library that made it.

    Values are kept exactly: a format that NumPy cannot hold (a bfloat16 or float8 tensor) comes as float64.
    """
    if type(x) is np.ndarray:
        return x
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array: pass its data, and what is valid as a boolean mask")
    if isinstance(x, np.ndarray):
        return np.asarray(x)
    if hasattr(x, "detach") and hasattr(x, "cpu"):
        return _from_torch(x, name)
    if hasattr(x, "__dlpack__") and not hasattr(x, "__array__"):
        return _from_dlpack(x, name)
    try:
        return np.asarray(x)
    except Exception as error:  # whatever the library that made it raises
        if hasattr(x, "__dlpack__"):  # an array on a GPU that leaves no library by itself
            return _from_dlpack(x, name)
        raise (ValueError if isinstance(error, ValueError) else TypeError)(f"{name}: {error}") from None


def _from_torch(x: Any, name: str) -> np.ndarray[Any, Any]:
    try:
        tensor = x.detach().cpu().resolve_conj().resolve_neg()
        try:
            return tensor.numpy()
        except TypeError:  # NumPy has no such type; every format below float64 is a subset of it
            return tensor.double().numpy()
    except (TypeError, RuntimeError) as error:
        raise TypeError(f"{name} is a {type(x).__module__}.{type(x).__name__} that NumPy cannot read: {error}") from None


class _CopyOnCpu:
    """An array on a GPU, which is asked for a copy in main memory."""

    def __init__(self, x: Any) -> None:
        self.x = x

    def __dlpack__(self, **options: Any) -> Any:
        return self.x.__dlpack__(**{**options, "dl_device": CPU, "copy": True})

    def __dlpack_device__(self) -> tuple[int, int]:
        return CPU


def _from_dlpack(x: Any, name: str) -> np.ndarray[Any, Any]:
    errors = []
    for source in (x, _CopyOnCpu(x)):
        try:
            return np.from_dlpack(source)
        except (BufferError, RuntimeError, TypeError) as error:
            errors.append(error)
    raise TypeError(f"{name} is a {type(x).__module__}.{type(x).__name__} that NumPy cannot read: {errors[-1]}")
