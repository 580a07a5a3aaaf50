"""Runs kernels for attention under the emulator on arrays of NumPy, as the host side does on a device's."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refattn_numba.cuda.kernel import Kernel
from refattn_numba.cuda.kernels import forward as of_forward
from refattn_numba.cuda.kernels.place import FAR
from tests.cuda.emulator import bits16, launch


def forward_kernel(config: of_forward.Config) -> Kernel:
    return Kernel("forward", of_forward.forward, config, of_forward.PARAMETERS, config.threads, config.shared_bytes, config.tile)


def stored(x: Any, element: str) -> np.ndarray:
    """As a device holds it: rows of whole multiples of 16 bytes, bits where NumPy has no such numbers."""
    x = np.asarray(x, np.float32)
    width = -(-x.shape[-1] // 8) * 8
    dtype = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}[element]
    size = x.size // max(x.shape[-1], 1) * width
    whole = np.empty(size + 16, dtype)
    start = -whole.ctypes.data % 16 // whole.itemsize
    made = whole[start : start + size].reshape(*x.shape[:-1], width)
    made.view(np.uint16)[...] = 0x7FC1  # NaN in whatever no kernel may read
    made = made[..., : x.shape[-1]]
    made[...] = bits16(x, element) if element == "bfloat16" else x
    return made


def numbers(x: np.ndarray) -> np.ndarray:
    """In float64."""
    return ((x.astype(np.uint32) << 16).view(np.float32) if x.dtype == np.uint16 else x).astype(np.float64)


def rounded(x: Any, element: str) -> np.ndarray:
    """The nearest numbers of this type, in float64."""
    return numbers(stored(x, element))


class Band(NamedTuple):
    """Causal and window in one."""

    low: int = -FAR
    high: int = FAR
    align_right: int = 0


def address(x: np.ndarray | None) -> int:
    return 0 if x is None else x.ctypes.data


def steps(name: str, x: np.ndarray | None, axes: tuple[str, ...] = ("batch", "head", "row"), shape: tuple[int, ...] = ()) -> dict[str, int]:
    """Strides in elements; of an option, for the shape that it is broadcast to."""
    if x is None:
        return {f"{name}_{axis}": 0 for axis in axes}
    if shape:
        x = np.broadcast_to(x, shape)
    return {f"{name}_{axis}": step // x.itemsize for axis, step in zip(axes, x.strides, strict=False)}


def operands(
    kernel: Kernel, query: np.ndarray, key: np.ndarray, value: np.ndarray, lse: np.ndarray, *, band: Band = Band(), scale: float | None = None,
    sinks: np.ndarray | None = None, mask: np.ndarray | None = None, bias: np.ndarray | None = None, keep: np.ndarray | None = None,
    softcap: float = 0.0, dropout_rate: float = 0.0, cu: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[dict[str, Any], list[np.ndarray]]:  # fmt: skip
    """The arguments that all kernels for attention share, and the arrays that they name."""
    batch, heads, query_len, head_dim = query.shape
    kv_heads, key_len, value_dim = value.shape[1:]
    pairs = ("batch", "head", "row", "key")
    arguments: dict[str, Any] = {
        "heads": heads, "group": heads // kv_heads, "query_len": query_len, "key_len": key_len, "head_dim": head_dim,
        "value_dim": value_dim, "sequences": 0 if cu is None else len(cu[0]) - 1, **band._asdict(),
        "scale": head_dim**-0.5 if scale is None else scale, "softcap": softcap, "keep_scale": 1 / (1 - dropout_rate),
        "cu_query": 0 if cu is None else address(cu[0]), "cu_key": 0 if cu is None else address(cu[1]),
        **steps("lse", lse, ("batch", "head")),
    }  # fmt: skip
    for name, x in (("query", query), ("key", key), ("value", value)):
        arguments |= {name: address(x), **steps(name, x)}
    for name, x in (("mask", mask), ("bias", bias), ("keep", keep)):
        arguments |= {name: address(x), **steps(name, x, pairs, (batch, heads, query_len, key_len))}
    arguments |= {"lse": address(lse), "sinks": address(sinks)}
    return arguments, [x for x in (query, key, value, sinks, mask, bias, keep, *(cu or ())) if x is not None]


def tiles(kernel: Kernel, length: int, cu: Any) -> int:
    return -(-length // kernel.tile) if cu is None else length // kernel.tile + len(cu[0]) - 1


def forward(kernel: Kernel, query: np.ndarray, key: np.ndarray, value: np.ndarray, *, empty: float = 0.0, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Output and log-sum-exp, of stored operands."""
    batch, heads, query_len, _ = query.shape
    output = stored(np.full((batch, heads, query_len, value.shape[-1]), np.nan), kernel.config.element)
    lse = np.full((batch, heads, query_len), np.nan, np.float32)
    arguments, arrays = operands(kernel, query, key, value, lse, **options)
    count = tiles(kernel, query_len, options.get("cu"))
    arguments |= {"tiles": count, "output": address(output), **steps("output", output), "empty": empty}
    launch(kernel, count * heads * batch, arguments, [*map(read_only, arrays), lse, output])
    return output, lse


def read_only(x: np.ndarray) -> np.ndarray:
    made = x.view()
    made.flags.writeable = False
    return made
