"""How an operand is described to the hardware that copies boxes of it, and where the descriptions lie on a device.

CUDA driver API, `cuTensorMapEncodeTiled`: strides are multiples of 16 bytes below 2**40, sizes at most 2**32. A description holds an
address and a layout, no contents, so it is kept for the next call of the same layout, and for graphs that were captured with it: 128 bytes
of the device's memory for each, for as long as the process lives.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from threading import Lock
from typing import Any, NamedTuple

from refattn_numba.cuda.fragments import FLOAT8, Stored, bytes_of
from refattn_numba.cuda.kernels.by_columns import TILE, tiles_of
from refattn_numba.cuda.warpgroups import BLOCK_BYTES

MAP_BYTES, IN_SLAB = 128, 4096
_SMALLEST, _STRIDES_BELOW, _LARGEST_BOX = 16, 1 << 40, 256


class Layout(NamedTuple):
    """A tensor of rank 4 and the boxes that are copied of it: columns, rows, heads, batch.

    Attributes
    ----------
    element : str
        Of its numbers.
    address : int
        Where it begins.
    sizes : tuple of int
        Innermost first; 1 where all places share one.
    strides : tuple of int
        In bytes, from the second axis on.
    rows : int
        Of a box, which has 128 bytes of each, and is of one head.
    """

    element: Stored
    address: int
    sizes: tuple[int, int, int, int]
    strides: tuple[int, int, int]
    rows: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Sizes of one."""
        return BLOCK_BYTES // bytes_of(self.element), self.rows, 1, 1


def layout_of(element: Stored, address: int, shape: tuple[int, int, int, int], strides: tuple[int, int, int], rows: int) -> Layout | None:
    """The layout of an operand, if the hardware knows such.

    Parameters
    ----------
    element : {"bfloat16", "float16", "float8_e4m3fn"}
        Of its numbers.
    address : int
        Of the first.
    shape : (int, int, int, int)
        Batch, heads, length, columns.
    strides : (int, int, int)
        Of batch, heads and rows, in elements.
    rows : int
        Of a box.

    Returns
    -------
    Layout, or None
        None where it is empty, where rows share a place or run backwards, or an address or stride is no multiple of 16 bytes.
    """
    width, (batch, heads, length, columns) = bytes_of(element), shape
    sizes, steps = [columns], []
    for size, stride in ((length, strides[2]), (heads, strides[1]), (batch, strides[0])):
        is_shared = stride == 0 or size == 1
        sizes.append(1 if is_shared else size)
        steps.append(_SMALLEST if is_shared else stride * width)
    is_known = all(step % _SMALLEST == 0 and 0 < step < _STRIDES_BELOW for step in steps) and address % _SMALLEST == 0
    if not is_known or 0 in shape or sizes[1] != length or rows > _LARGEST_BOX:
        return None
    return Layout(element, address, tuple(sizes), tuple(steps), rows)  # pyright: ignore[reportArgumentType]


def layouts_of(kernel: Any, fields: Mapping[str, Any], batch: int) -> dict[str, Layout] | None:
    """Those of a kernel's operands, from its parameters and by the parameters for them; None where the hardware does not know one."""
    queries, keys = (fields["heads"], fields["query_len"]), (fields["heads"] // fields["group"], fields["key_len"])
    head_dim, value_dim = fields["head_dim"], fields["value_dim"]
    shapes = {"query": (*queries, head_dim), "key": (*keys, head_dim), "value": (*keys, value_dim), "d_output": (*queries, value_dim)}
    made, places = {}, {name: name for name in kernel.config.boxes}
    if kernel.config.element == FLOAT8:  # whose values are by columns, and of whose keys no box is copied where there are none
        shapes["columns"] = (keys[0], value_dim, tiles_of(fields["key_len"], fields["sequences"]) * TILE)
        places |= {"value": "columns"} if fields["key_len"] else {"key": "query", "value": "query"}
    for name, rows in kernel.config.boxes.items():
        place = places[name]
        strides = tuple(fields[f"{place}_{axis}"] for axis in ("batch", "head", "row"))
        found = layout_of(kernel.config.element, fields[place], (batch, *shapes[place]), strides, rows)  # pyright: ignore[reportArgumentType]
        if found is None:
            return None
        made[f"{name}_map"] = found
    return made


class TensorMaps:
    """The descriptions on one device, whose context is current when they are asked for.

    Parameters
    ----------
    bindings : module
        ``cuda.bindings.driver``.
    call : callable
        ``call(name, *arguments)`` is what a function of it returns besides its status.
    """

    def __init__(self, bindings: Any, call: Callable[..., Any]) -> None:
        self._cuda, self._call = bindings, call
        self._kept: dict[Layout, int] = {}
        self._free, self._end, self._stream = 0, 0, None
        self._lock = Lock()

    def address(self, layout: Layout) -> int:
        """Where the description lies; it is there when this returns."""
        with self._lock:
            if layout not in self._kept:
                self._kept[layout] = self._written(self.encoded(layout))
            return self._kept[layout]

    def encoded(self, layout: Layout) -> Any:
        """The driver's description: boxes swizzled by 128 bytes, zeros outside."""
        cuda = self._cuda
        kinds, names = cuda.CUtensorMapDataType, {"bfloat16": "BFLOAT16", "float16": "FLOAT16", FLOAT8: "UINT8"}
        return self._call(
            "cuTensorMapEncodeTiled",
            getattr(kinds, f"CU_TENSOR_MAP_DATA_TYPE_{names[layout.element]}"),
            4,
            layout.address,
            [cuda.cuuint64_t(n) for n in layout.sizes],
            [cuda.cuuint64_t(n) for n in layout.strides],
            [cuda.cuuint32_t(n) for n in layout.box],
            [cuda.cuuint32_t(1)] * 4,
            cuda.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
            cuda.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B,
            cuda.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            cuda.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )

    def _written(self, encoded: Any) -> int:
        """Copy to the device on a stream of its own, also while another stream's work is captured in a graph."""
        relaxed = self._cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        before = self._call("cuThreadExchangeStreamCaptureMode", relaxed)
        try:
            if self._stream is None:
                self._stream = self._call("cuStreamCreate", self._cuda.CUstream_flags.CU_STREAM_NON_BLOCKING)
            if self._free == self._end:
                self._free = int(self._call("cuMemAlloc", MAP_BYTES * IN_SLAB))
                self._end = self._free + MAP_BYTES * IN_SLAB
            content = ctypes.string_at(encoded.getPtr(), MAP_BYTES)
            self._call("cuMemcpyHtoDAsync", self._free, content, MAP_BYTES, self._stream)
            self._call("cuStreamSynchronize", self._stream)
        finally:
            self._call("cuThreadExchangeStreamCaptureMode", before)
        self._free += MAP_BYTES
        return self._free - MAP_BYTES
