"""Runs the forward kernel of compute capability 9.0 under the emulator, as the host side does on a device."""

from __future__ import annotations

from typing import Any

import numpy as np

from refattn_numba.cuda.kernel import Kernel
from refattn_numba.cuda.kernels import hopper_forward
from refattn_numba.cuda.tensor_map import MAP_NAMES, Layout, layouts_of
from tests.cuda.calls import address, operands, read_only, steps, stored, tiles
from tests.cuda.emulated_block import encoded_map
from tests.cuda.emulated_hopper import launch


def hopper_kernel(config: hopper_forward.Config) -> Kernel:
    c = config
    return Kernel("hopper_forward", hopper_forward.forward, c, hopper_forward.PARAMETERS, c.threads, c.shared_bytes, c.tile)


def map_of(layout: Layout) -> np.ndarray:
    """128 bytes at a multiple of 64."""
    whole = np.zeros(192, np.uint8)
    start = -whole.ctypes.data % 64
    made = whole[start : start + 128]
    made[:] = np.frombuffer(encoded_map(2, layout.address, layout.sizes, layout.strides, layout.box), np.uint8)
    return made


def hopper_forward_of(
    kernel: Kernel, query: np.ndarray, key: np.ndarray, value: np.ndarray, *, empty: float = 0.0, **options: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Output and log-sum-exp, of stored operands; `late` and `last_first` are the emulator's."""
    order = {name: options.pop(name) for name in ("late", "last_first") if name in options}
    batch, heads, query_len, _ = query.shape
    output = stored(np.full((batch, heads, query_len, value.shape[-1]), np.nan), kernel.config.element)
    lse = np.full((batch, heads, query_len), np.nan, np.float32)
    arguments, arrays = operands(kernel, query, key, value, lse, **options)
    layouts = layouts_of(kernel, arguments, batch)
    assert layouts is not None
    maps = [map_of(x) for x in layouts]
    count = tiles(kernel, query_len, options.get("cu"))
    arguments |= {"tiles": count, "output": address(output), **steps("output", output), "empty": empty}
    arguments |= {name: address(x) for name, x in zip(MAP_NAMES, maps, strict=True)}
    arguments = {name: arguments[name] for name, _ in kernel.parameters}
    launch(kernel, count * heads * batch, arguments, [*map(read_only, (*arrays, *maps)), lse, output], **order)
    return output, lse
