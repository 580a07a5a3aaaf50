"""Runs the kernels of compute capability 9.0 under the emulator, as the host side does on a device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from refattn_numba.cuda import hopper
from refattn_numba.cuda.fragments import bytes_of
from refattn_numba.cuda.kernel import Kernel
from refattn_numba.cuda.kernels import by_columns, hopper_backward, hopper_forward
from refattn_numba.cuda.tensor_map import Layout, layouts_of
from tests.cuda.calls import address, operands, read_only, steps, stored, tiles
from tests.cuda.emulated_block import encoded_map
from tests.cuda.emulated_hopper import launch
from tests.cuda.emulator import FLOAT8
from tests.cuda.emulator import launch as launch_plain


def hopper_kernel(config: hopper_forward.Config) -> Kernel:
    c = config
    return Kernel("hopper_forward", hopper_forward.forward, c, hopper_forward.PARAMETERS, c.threads, c.shared_bytes, c.tile)


def backward_kernel(config: hopper_backward.Config) -> Kernel:
    c = config
    return Kernel("hopper_backward", hopper_backward.backward, c, hopper_backward.PARAMETERS, c.threads, c.shared_bytes, c.tile)


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


def maps_of(kernel: Kernel, arguments: dict[str, Any], batch: int) -> dict[str, np.ndarray]:
    """Tensor maps by parameter."""
    layouts = layouts_of(kernel, arguments, batch)
    assert layouts is not None
    return {name: map_of(x) for name, x in layouts.items()}


def run(
    kernel: Kernel, blocks: int, arguments: dict[str, Any], maps: dict[str, np.ndarray], arrays: list[np.ndarray], order: dict[str, bool]
) -> None:
    """Launch with the arguments that the kernel has."""
    given = {**arguments, **{name: address(x) for name, x in maps.items()}}
    given = {name: given[name] for name, _ in kernel.parameters}
    launch(kernel, blocks, given, [*arrays, *map(read_only, maps.values())], **order)


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
    maps = maps_of(kernel, arguments, batch)
    count = tiles(kernel, query_len, options.get("cu"))
    arguments |= {"tiles": count, "output": address(output), **steps("output", output), "empty": empty}
    run(kernel, count * heads * batch, arguments, maps, [*map(read_only, arrays), lse, output], order)
    return output, lse


def hopper_backward_of(
    queries: Kernel, keys: Kernel, query: np.ndarray, key: np.ndarray, value: np.ndarray, lse: np.ndarray, delta: np.ndarray,
    d_output: np.ndarray, **options: Any,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Cotangents of stored operands by both kernels."""
    order = {name: options.pop(name) for name in ("late", "last_first") if name in options}
    batch, heads, query_len, _ = query.shape
    kv_heads, key_len, cu = key.shape[1], key.shape[2], options.get("cu")
    operands_of = {"query": query, "key": key, "value": value}
    made = {name: stored(np.full(x.shape, np.nan), keys.config.element) for name, x in operands_of.items()}
    shared, arrays = operands(keys, query, key, value, lse, **options)
    shared |= {"d_output": address(d_output), "delta": address(delta), **steps("d_output", d_output)}
    for name, x in made.items():
        shared |= {f"d_{name}": address(x), **steps(f"d_{name}", x)}
    given = [*map(read_only, (*arrays, d_output, lse, delta))]
    faces = (
        (queries, heads, tiles(queries, query_len, cu), ["query"]),
        (keys, kv_heads, tiles(keys, key_len, cu and cu[::-1]), ["key", "value"]),
    )
    for kernel, count, in_head, names in faces:
        maps = maps_of(kernel, shared, batch)
        run(kernel, in_head * count * batch, {**shared, "tiles": in_head}, maps, [*given, *(made[n] for n in names)], order)
    return made
