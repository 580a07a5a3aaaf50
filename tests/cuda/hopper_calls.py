"""Runs the forward kernel of compute capability 9.0 under the emulator, as the host side does on a device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from refattn_numba.cuda import hopper
from refattn_numba.cuda.fragments import bytes_of
from refattn_numba.cuda.kernel import Kernel
from refattn_numba.cuda.kernels import by_columns, hopper_forward
from refattn_numba.cuda.tensor_map import MAP_NAMES, Layout, layouts_of
from tests.cuda.calls import address, operands, read_only, steps, stored, tiles
from tests.cuda.emulated_block import encoded_map
from tests.cuda.emulated_hopper import launch
from tests.cuda.emulator import FLOAT8
from tests.cuda.emulator import launch as launch_plain


def hopper_kernel(config: hopper_forward.Config) -> Kernel:
    c = config
    return Kernel("hopper_forward", hopper_forward.forward, c, hopper_forward.PARAMETERS, c.threads, c.shared_bytes, c.tile)


def map_of(layout: Layout) -> np.ndarray:
    """128 bytes at a multiple of 64."""
    whole = np.zeros(192, np.uint8)
    start = -whole.ctypes.data % 64
    made = whole[start : start + 128]
    made[:] = np.frombuffer(encoded_map(bytes_of(layout.element), layout.address, layout.sizes, layout.strides, layout.box), np.uint8)
    return made


def columns_of(arguments: Mapping[str, Any], arrays: list[np.ndarray], value: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """Values by columns, as the kernel before makes them, and the parameters that tell where they are."""
    batch, heads, key_len, value_dim = value.shape
    kernel, count = hopper.values_by_columns(), by_columns.tiles_of(key_len, arguments["sequences"])
    made = stored(np.full((batch, heads, value_dim, count * by_columns.TILE), np.nan), FLOAT8)
    made[...] = 0x77  # whatever was there before; what is not a number would be made up for
    places = {"columns": address(made), **steps("columns", made)}
    given = {**arguments, **places, "tiles": count, "kv_heads": heads}
    launch_plain(kernel, count * heads * batch, {name: given[name] for name, _ in kernel.parameters}, [*map(read_only, arrays), made])
    return made, places


def hopper_forward_of(
    kernel: Kernel, query: np.ndarray, key: np.ndarray, value: np.ndarray, *, empty: float = 0.0, **options: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Output and log-sum-exp, of stored operands; `late` and `last_first` are the emulator's."""
    order = {name: options.pop(name) for name in ("late", "last_first") if name in options}
    batch, heads, query_len, _ = query.shape
    output = stored(np.full((batch, heads, query_len, value.shape[-1]), np.nan), kernel.config.result)
    lse = np.full((batch, heads, query_len), np.nan, np.float32)
    arguments, arrays = operands(kernel, query, key, value, lse, **options)
    if kernel.config.is_narrow:
        columns, of_columns = columns_of(arguments, arrays, value)
        arrays.append(columns)
        arguments |= of_columns
    layouts = layouts_of(kernel, arguments, batch)
    assert layouts is not None
    maps = [map_of(x) for x in layouts]
    count = tiles(kernel, query_len, options.get("cu"))
    arguments |= {"tiles": count, "output": address(output), **steps("output", output), "empty": empty}
    arguments |= {name: address(x) for name, x in zip(MAP_NAMES, maps, strict=True)}
    arguments = {name: arguments[name] for name, _ in kernel.parameters}
    launch(kernel, count * heads * batch, arguments, [*map(read_only, (*arrays, *maps)), lse, output], **order)
    return output, lse
