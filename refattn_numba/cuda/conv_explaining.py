"""Which kernels a convolution takes: the call itself, made with arrays that have no numbers and a driver that launches nothing."""
# ruff: noqa: D102  # what each function does stands in `Library` and `Driver`

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from refattn_numba.cuda import driver
from refattn_numba.cuda.arrays import DeviceArray, is_on_device, read
from refattn_numba.cuda.explaining import Explanations, explained, target
from refattn_numba.cuda.faces import checked
from refattn_numba.cuda.libraries import library_of
from refattn_numba.cuda.library import Memory, c_strides

PLACE = 1 << 20
"""Where all arrays are said to begin."""


class Imagined(NamedTuple):
    """An array without numbers."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str


class Imagination:
    """The library of such arrays, as far as convolutions ask for it."""

    name, in_order, tells_changes = "nobody", True, True

    def is_on_device(self, x: Any) -> bool:
        return True

    def read(self, what: str, x: Imagined) -> Memory:
        return Memory(PLACE if math.prod(x.shape) else 0, x.shape, x.strides, x.dtype, 0)

    def stream(self, x: Any) -> int:
        return 0

    def empty(self, x: Any, shape: tuple[int, ...], dtype: str) -> Imagined:
        return Imagined(tuple(shape), c_strides(tuple(shape)), dtype)

    zeros = empty

    def copied(self, x: Imagined, dtype: str, width: int | None = None) -> Imagined:
        return self.empty(x, x.shape, dtype)

    def turned(self, x: Imagined, axes: tuple[int, ...]) -> Imagined:
        return Imagined(tuple(x.shape[i] for i in axes), tuple(x.strides[i] for i in axes), x.dtype)

    def version(self, x: Any) -> None:
        return None


class Notes:
    """A driver that notes which kernels it is to launch."""

    def __init__(self, architecture: str, shared_bytes: int) -> None:
        major, minor = int(architecture[3:4]), int(architecture[4:5])
        self.known = driver.Facts(architecture, (major, minor), 1, 0, 0, shared_bytes, (0, 0))
        self.kernels: dict[str, Any] = {}

    def facts(self, device: int) -> driver.Facts:
        return self.known

    def launch(self, kernel: Any, device: int, blocks: int, arguments: Mapping[str, int | float], stream: int) -> None:
        self.kernels.setdefault(kernel.name, kernel)


def explain_convolution(
    function: Any, x: Any, weight: Any, bias: Any = None, *, architecture: str | None = None, **options: Any
) -> Explanations:
    """The kernels that a convolution of `refattn_numba` takes for such a call, forward and backward, in the order of their first use.

    They are compiled if no file holds them; nothing is launched.

    Parameters
    ----------
    function : convolution
        Such as ``refattn_numba.conv2d``.
    x, weight : array
        On a device; or of NumPy or PyTorch in main memory, of a type that kernels take, where `architecture` is given.
    bias : array or None, optional
        Likewise.
    architecture : str or None, optional
        ``"sm_80"`` or ``"sm_90a"``; default: that of the device.
    **options
        As of the call.

    Returns
    -------
    tuple of Explanation
        Prints as a table.

    Raises
    ------
    ValueError
        Where no kernel takes such a call.
    """
    from refattn_numba.cuda import convolving  # noqa: PLC0415  # which brings the kernels along

    architecture, shared_bytes = target(x, "x", architecture)
    bound = function.spec.bind((x, weight, bias), options)
    arrays = {name: None if given is None else _imagined(given) for name, given in (("x", x), ("weight", weight), ("bias", bias))}
    arrays, accepted = checked(function.spec, {**bound, **arrays}, arrays)
    notes: Any = Notes(architecture, shared_bytes)
    with driver.using(notes):
        output, pullback = getattr(convolving, function.spec.name)(**arrays, **accepted)
        pullback(output)
    dtype = arrays["x"].dtype
    return Explanations(explained(name.partition(f"_{dtype}")[0], kernel, architecture) for name, kernel in notes.kernels.items())


def _imagined(x: Any) -> DeviceArray:
    """An array that lies so, whose numbers nobody knows."""
    if is_on_device(x):
        library = library_of(type(x))
        assert library is not None  # an array on a device is some library's
        memory = read("array", x, library).memory
        shape, strides, dtype = memory.shape, memory.strides, memory.dtype
    else:
        shape, dtype = tuple(x.shape), str(x.dtype).rpartition(".")[2]
        strides = tuple(x.stride()) if hasattr(x, "stride") else tuple(step // x.itemsize for step in x.strides)
    made: Any = Imagined(shape, strides, dtype)
    imagination: Any = Imagination()
    return read("array", made, imagination)
