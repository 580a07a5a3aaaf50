"""What a kernel needs of a library of arrays, whatever the library calls it."""

# ruff: noqa: D102  # what each function of `Assigning` does stands in `Library`

from __future__ import annotations

import math
import sys
from typing import Any, NamedTuple, Protocol

import numpy as np

from refattn_numba.cuda import driver

LEGACY_STREAM = 0


class Memory(NamedTuple):
    """Where the numbers of an array lie.

    Attributes
    ----------
    address : int
        Of its first number; 0 where it has none.
    shape, strides : tuple of int
        Sizes, and steps in numbers from one to the next.
    dtype : str
        The name of the type, as NumPy or ml_dtypes has it.
    device : int
        The ordinal of the device.
    """

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    device: int


class Library(Protocol):
    """One library's arrays.

    Attributes
    ----------
    name : str
        As it is imported.
    tells_changes : bool
        Whether nobody can write to an array unseen: its arrays are never written to, or count it.
    in_order : bool
        Whether what the library does next with an array waits for what was launched on its stream. If not, a call has to end with
        the kernel.
    """

    name: str
    in_order: bool
    tells_changes: bool

    def is_on_device(self, x: Any) -> bool:
        """Whether an array of this library lies in the memory of a CUDA device."""
        ...

    def read(self, what: str, x: Any) -> Memory:
        """Where it lies; a TypeError with the name `what` where no kernel can read it."""
        ...

    def stream(self, x: Any) -> int:
        """The stream on which the caller works."""
        ...

    def empty(self, x: Any, shape: tuple[int, ...], dtype: str) -> Any:
        """A new C-contiguous array on the device and stream of `x`."""
        ...

    def zeros(self, x: Any, shape: tuple[int, ...], dtype: str) -> Any:
        """The same of zeros."""
        ...

    def copied(self, x: Any, dtype: str, width: int | None = None) -> Any:
        """A C-contiguous copy in a type, with room for `width` numbers along the last axis."""
        ...

    def trimmed(self, x: Any, width: int) -> Any:
        """The first numbers along the last axis, C-contiguous."""
        ...

    def broadcast(self, x: Any, shape: tuple[int, ...]) -> Any:
        """An array of this shape with the same numbers."""
        ...

    def turned(self, x: Any, axes: tuple[int, ...]) -> Any:
        """A view with the axes in this order; None where the library makes none of arrays with more than two."""
        ...

    def summed(self, x: Any, axes: tuple[int, ...], shape: tuple[int, ...]) -> Any:
        """The sum over some axes, in a shape of as many numbers."""
        ...

    def uploaded(self, x: Any, like: Any) -> Any:
        """A NumPy array on the device of another one."""
        ...

    def version(self, x: Any) -> int | None:
        """A number that grows when `x` is written to; None where the library counts no writes."""
        ...


def module_of(name: str) -> Any:
    """A library, which who passes an array of it has imported."""
    return sys.modules[name]


class Assigning:
    """What copies are made of where new arrays can be written to."""

    tells_changes = False

    def empty(self, x: Any, shape: tuple[int, ...], dtype: str) -> Any:
        raise NotImplementedError

    def zeros(self, x: Any, shape: tuple[int, ...], dtype: str) -> Any:
        made = self.empty(x, shape, dtype)
        made[...] = 0
        return made

    def copied(self, x: Any, dtype: str, width: int | None = None) -> Any:
        shape = tuple(x.shape)
        made = self.empty(x, shape if width is None else (*shape[:-1], width), dtype)
        if width is None:
            made[...] = x
        else:
            made[..., : shape[-1]] = x
        return made

    def trimmed(self, x: Any, width: int) -> Any:
        part = x[..., :width]
        return self.copied(part, str(x.dtype).rpartition(".")[2])

    def turned(self, x: Any, axes: tuple[int, ...]) -> Any:
        return x.transpose(axes)

    def summed(self, x: Any, axes: tuple[int, ...], shape: tuple[int, ...]) -> Any:
        return x.sum(axis=axes).reshape(shape)

    def version(self, x: Any) -> int | None:
        return None


def c_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The steps of a C-contiguous array."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def from_interface(what: str, x: Any) -> Memory:
    """What the CUDA array interface, version 2 or 3, says of an array."""
    face = x.__cuda_array_interface__
    if face.get("version", 0) < 2:
        raise TypeError(f"{what} has version {face.get('version', 0)} of the CUDA array interface, but must have 2 or 3")
    if face.get("mask") is not None:
        raise TypeError(f"{what} is a masked array: pass its data, and what is valid as a boolean mask")
    dtype, shape, (address, _) = np.dtype(face["typestr"]), tuple(face["shape"]), face["data"]
    name = getattr(getattr(x, "dtype", None), "name", dtype.name) if dtype.kind == "V" else native(what, dtype)
    steps = face.get("strides")
    strides = c_strides(shape) if steps is None else in_numbers(what, steps, dtype.itemsize)
    return Memory(address or 0, shape, strides, name, driver.current().device_of(address or 0))


def in_numbers(what: str, steps: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Steps of bytes as steps of numbers."""
    if any(step % itemsize for step in steps):
        raise TypeError(f"{what} has steps of {tuple(steps)} bytes, but must have multiples of {itemsize}, the size of a number")
    return tuple(step // itemsize for step in steps)


def native(what: str, dtype: Any) -> str:
    """The name of a type that this machine reads."""
    if not dtype.isnative:
        raise TypeError(f"{what} is {dtype.str}, but must be in the byte order of this machine")
    return dtype.name


def numpy_type(name: str) -> np.dtype[Any]:
    """The type of this name; those that NumPy lacks are ml_dtypes'."""
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes  # noqa: PLC0415  # who has an array of such a type has the package

        return np.dtype(getattr(ml_dtypes, name))
