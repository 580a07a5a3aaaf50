"""Arrays on a device as a call has them: all of one library and one device, and each as a kernel reads or writes it.

Kernels read four axes, (batch, heads, rows, columns), at any steps of the first three, as long as columns follow one another and rows
begin on addresses that are multiples of 16 bytes. What lies otherwise is copied by the caller's library.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from refattn_numba.cuda import driver
from refattn_numba.cuda.libraries import library_of
from refattn_numba.cuda.library import Library, Memory, c_strides

ITEM_BYTES: Mapping[str, int] = {
    "bool": 1,
    "int8": 1,
    "float8_e4m3fn": 1,
    "float16": 2,
    "bfloat16": 2,
    "int32": 4,
    "float32": 4,
    "int64": 8,
    "float64": 8,
}
ROW_BYTES = 16
"""What the instructions load that bring rows to shared memory."""


class DeviceArray(NamedTuple):
    """An array of the caller's, or one that is made for him.

    Attributes
    ----------
    owner : Any
        The object of his library.
    library : Library
        What knows it.
    memory : Memory
        Where its numbers lie.
    """

    owner: Any
    library: Library
    memory: Memory

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""
        return self.memory.shape

    @property
    def dtype(self) -> str:
        """The name of its type."""
        return self.memory.dtype

    def made(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """A new C-contiguous one beside it, with rows that kernels can write."""
        width = _row_width(shape[-1], dtype) if shape else 0
        owner = self.library.empty(self.owner, (*shape[:-1], width) if shape else shape, dtype)
        made = DeviceArray(owner, self.library, self.library.read("output", owner))
        return made._replace(memory=made.memory._replace(shape=shape))

    def packed(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """A new one in which all numbers follow one another."""
        owner = self.library.empty(self.owner, shape, dtype)
        return DeviceArray(owner, self.library, self.library.read("output", owner))

    def as_type(self, dtype: str) -> DeviceArray:
        """Itself, or a copy in another type."""
        return self if self.dtype == dtype else read("copy", self.library.copied(self.owner, dtype), self.library)

    def contiguous(self) -> DeviceArray:
        """Itself, or a copy in which all numbers follow one another."""
        steps = self.memory.strides
        if all(size <= 1 or step == wanted for size, step, wanted in zip(self.shape, steps, c_strides(self.shape), strict=True)):
            return self
        return read("copy", self.library.copied(self.owner, self.dtype), self.library)

    def zeros(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """A new one of zeros."""
        return read("zeros", self.library.zeros(self.owner, shape, dtype), self.library)

    def beside(self, x: np.ndarray[Any, Any]) -> DeviceArray:
        """A NumPy array on the same device."""
        return read("copy", self.library.uploaded(x, self.owner), self.library)

    def summed(self, axes: tuple[int, ...], shape: tuple[int, ...]) -> DeviceArray:
        """The sum over some axes, in a shape."""
        return read("sum", self.library.summed(self.owner, axes, shape), self.library)

    def version(self) -> int | None:
        """A number that grows when it is written to, where the library counts that."""
        return self.library.version(self.owner)

    def result(self, *, copied: bool = False) -> Any:
        """What the caller gets: an array of this shape, C-contiguous; `copied` where he may write to it and somebody reads it later."""
        if tuple(self.owner.shape) != self.shape:
            return self.library.trimmed(self.owner, self.shape[-1])
        return self.library.copied(self.owner, self.dtype) if copied else self.owner


class Placed(NamedTuple):
    """Where a kernel finds the first number of an array, and its steps in numbers along each of four axes."""

    array: DeviceArray | None
    address: int = 0
    batch: int = 0
    head: int = 0
    row: int = 0
    column: int = 0

    def of_part(self, part: int) -> Placed:
        """The same for one part of the batch."""
        itemsize = 0 if self.array is None else ITEM_BYTES[self.array.dtype]
        return self._replace(address=self.address + part * self.batch * itemsize)

    def fields(self, name: str, *axes: str) -> dict[str, int]:
        """The parameters of a kernel that tell it so: the address, and one for each of some axes."""
        steps = {"batch": self.batch, "head": self.head, "row": self.row, "key": self.column}
        return {name: self.address, **{f"{name}_{axis}": steps[axis] for axis in axes or ("batch", "head", "row")}}


def read(what: str, owner: Any, library: Library) -> DeviceArray:
    """An array of a library."""
    return DeviceArray(owner, library, library.read(what, owner))


def is_on_device(x: Any) -> bool:
    """Whether this is an array that lies in the memory of a CUDA device."""
    library = library_of(type(x))
    return library is not None and library.is_on_device(x)


def gathered(caller: str, given: Mapping[str, Any], may_be_on_host: Sequence[str] = ()) -> dict[str, Any]:
    """Every array among the arguments as a `DeviceArray`; a TypeError unless all lie on one device and are of one library.

    Arrays in main memory are an error too, since no copy is made of a large array unasked, but for the few in `may_be_on_host`.
    What is None or a Python number stays as it is. The stream of the first one waits for those of the others.
    """
    first = next(name for name, x in given.items() if is_on_device(x))
    library = library_of(type(given[first]))
    assert library is not None  # an array on a device is some library's
    found: dict[str, Any] = {}
    for name, x in given.items():
        if x is None or isinstance(x, (bool, int, float, np.generic)) or (name in may_be_on_host and not is_on_device(x)):
            found[name] = x
            continue
        if not is_on_device(x):
            raise TypeError(
                f"{caller}: {name} is a {_kind(x)} in main memory, but {first} is a {_kind(given[first])} on a device: pass both on one side"
            )
        if library_of(type(x)) is not library:
            raise TypeError(f"{caller}: {name} is a {_kind(x)}, but {first} is a {_kind(given[first])}: pass arrays of one library")
        found[name] = read(f"{caller}: {name}", x, library)
    arrays = {name: x for name, x in found.items() if isinstance(x, DeviceArray)}
    device = arrays[first].memory.device
    for name, x in arrays.items():
        if x.memory.device != device and math.prod(x.shape):
            raise TypeError(f"{caller}: {name} lies on device {x.memory.device}, but {first} on device {device}")
    stream = library.stream(given[first])
    for other in {library.stream(x.owner) for x in arrays.values()} - {stream}:
        driver.current().wait_for(device, stream, other)
    return found


def placed(array: DeviceArray, dtype: str) -> Placed:
    """An array (..., heads, rows, columns) for a kernel: where it lies, or as a copy in the type and with rows that can be read."""
    found = _where_it_lies(array, dtype)
    if found is None:
        copy = read("copy", array.library.copied(array.owner, dtype, _row_width(array.shape[-1], dtype)), array.library)
        found = _where_it_lies(copy._replace(memory=copy.memory._replace(shape=array.shape)), dtype)
    if found is None:
        raise TypeError(
            f"{array.library.name} makes arrays that begin at {array.memory.address:#x}, but kernels need multiples of {ROW_BYTES}"
        )
    return found


def _where_it_lies(array: DeviceArray, dtype: str) -> Placed | None:
    """None where a kernel could not read it."""
    shape, strides = array.shape, array.memory.strides
    if not math.prod(shape):
        return Placed(array)
    batch = merged(shape[:-3], strides[:-3])
    if batch is None or array.dtype != dtype or (shape[-1] > 1 and strides[-1] != 1):
        return None
    head, row = (step if size > 1 else 0 for size, step in zip(shape[-3:-1], strides[-3:-1], strict=True))
    is_aligned = not any(at % ROW_BYTES for at in (array.memory.address, *(step * ITEM_BYTES[dtype] for step in (batch, head, row))))
    return Placed(array, array.memory.address, batch, head, row, 1) if is_aligned else None


def placed_pairs(array: DeviceArray, shape: tuple[int, ...], dtype: str) -> Placed:
    """An array that is broadcastable to ``shape = (..., heads, query_len, key_len)``: a step of 0 along what it is broadcast."""
    array = array.as_type(dtype)
    absent = len(shape) - len(array.shape)
    sizes, strides = (1,) * absent + array.shape, (0,) * absent + array.memory.strides
    steps = [0 if size == 1 else step for size, step in zip(sizes, strides, strict=True)]
    batch = merged(shape[:-3], tuple(steps[:-3]))
    if batch is None:
        whole = array.library.broadcast(array.owner, (*shape[:-3], *sizes[-3:]))
        return placed_pairs(read("copy", array.library.copied(whole, dtype), array.library), shape, dtype)
    return Placed(array, array.memory.address, batch, *steps[-3:])


def merged(shape: tuple[int, ...], strides: tuple[int, ...]) -> int | None:
    """The one step with which several axes are walked in order; None where no step does it."""
    axes = [(size, step) for size, step in zip(shape, strides, strict=True) if size > 1]
    for (_, outer), (size, inner) in itertools.pairwise(axes):
        if outer != size * inner:
            return None
    return axes[-1][1] if axes else 0


def _row_width(columns: int, dtype: str) -> int:
    """How many numbers a row takes that ends where the next may begin."""
    granule = max(ROW_BYTES // ITEM_BYTES[dtype], 1)
    return -(-columns // granule) * granule


def _kind(x: Any) -> str:
    return f"{type(x).__module__}.{type(x).__name__}"
