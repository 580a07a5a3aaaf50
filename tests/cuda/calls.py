"""Runs kernels for attention under the emulator on arrays of NumPy, as the host side does on a device's."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refattn.testing.bits import Tensor
from refattn_numba.cuda.kernel import Kernel
from refattn_numba.cuda.kernels import backward_keys as of_keys
from refattn_numba.cuda.kernels import backward_queries as of_queries
from refattn_numba.cuda.kernels import forward as of_forward
from refattn_numba.cuda.kernels import sums
from refattn_numba.cuda.kernels.place import FAR
from tests.cuda.emulator import FLOAT8, bits8, bits16, launch


def forward_kernel(config: of_forward.Config) -> Kernel:
    return Kernel("forward", of_forward.forward, config, of_forward.PARAMETERS, config.threads, config.shared_bytes, config.tile)


def stored(x: Any, element: str) -> np.ndarray:
    """As a device holds it: rows of whole multiples of 16 bytes, bits where NumPy has no such numbers."""
    x = np.asarray(x, np.float32)
    granule = 16 if element == FLOAT8 else 8
    width = -(-x.shape[-1] // granule) * granule
    dtype = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16, FLOAT8: np.uint8}[element]
    size = x.size // max(x.shape[-1], 1) * width
    whole = np.empty(size + 16, dtype)
    start = -whole.ctypes.data % 16 // whole.itemsize
    made = whole[start : start + size].reshape(*x.shape[:-1], width)
    made.view(np.uint16)[...] = 0x7FFF  # NaN in whatever no kernel may read
    made = made[..., : x.shape[-1]]
    made[...] = bits8(x) if element == FLOAT8 else bits16(x, element) if element == "bfloat16" else x
    return made


def numbers(x: np.ndarray) -> np.ndarray:
    """In float64."""
    if x.dtype == np.uint8:
        return Tensor(FLOAT8, x).values()
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


EVERYWHERE = Band()


def operands(
    kernel: Kernel, query: np.ndarray, key: np.ndarray, value: np.ndarray, lse: np.ndarray, *, band: Band = EVERYWHERE, scale: float | None = None,
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


def forward(
    kernel: Kernel, query: np.ndarray, key: np.ndarray, value: np.ndarray, *, empty: float = 0.0, **options: Any
) -> tuple[np.ndarray, np.ndarray]:
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


class Kernels(NamedTuple):
    """All of the backward pass."""

    delta: Kernel
    queries: Kernel
    keys: Kernel
    sinks: Kernel
    bias: Kernel


def backward_kernels(queries: of_queries.Config, keys: of_keys.Config) -> Kernels:
    element = queries.element
    return Kernels(
        Kernel("delta", sums.delta, (c := sums.Config(element, 2, 8)), sums.DELTA, c.threads, 0, c.warps * c.rows),
        Kernel("queries", of_queries.backward_queries, queries, of_queries.PARAMETERS, queries.threads, queries.shared_bytes, queries.tile),
        Kernel("keys", of_keys.backward_keys, keys, of_keys.PARAMETERS, keys.threads, keys.shared_bytes, keys.tile),
        Kernel("sinks", sums.sinks, (c := sums.Config(element, 1)), sums.SINKS, c.threads, 0, 1),
        Kernel("bias", sums.bias, (c := sums.Config(element, 4)), sums.BIAS, c.threads, 0, c.threads),
    )


def backward(
    kernels: Kernels, query: np.ndarray, key: np.ndarray, value: np.ndarray, output: np.ndarray, lse: np.ndarray, d_output: np.ndarray,
    d_lse: np.ndarray | None = None, **options: Any,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Cotangents of stored operands."""
    element = kernels.keys.config.element
    batch, heads, query_len, _ = query.shape
    kv_heads, key_len, value_dim = value.shape[1:]
    delta = np.full_like(lse, np.nan)
    of_lse = steps("lse", lse, ("batch", "head"))
    rows = batch * heads * query_len
    arguments: dict[str, Any] = {"output": address(output), "d_output": address(d_output), "d_lse": address(d_lse), "delta": address(delta)}
    arguments |= {"rows": rows, "heads": heads, "query_len": query_len, "value_dim": value_dim, **of_lse}
    arguments |= {**steps("output", output), **steps("d_output", d_output)}
    given = [read_only(x) for x in (output, d_output, d_lse) if x is not None]
    launch(kernels.delta, -(-rows // kernels.delta.tile), arguments, [*given, delta])

    made = {name: stored(np.full(x.shape, np.nan), element) for name, x in (("query", query), ("key", key), ("value", value))}
    bias, sinks, cu = (options.get(name) for name in ("bias", "sinks", "cu"))
    pairs = np.zeros((batch, heads, query_len, key_len), np.float32) if bias is not None else None
    shared, arrays = operands(kernels.keys, query, key, value, lse, **options)
    shared |= {"d_output": address(d_output), "delta": address(delta), **steps("d_output", d_output)}
    given = [read_only(x) for x in (*arrays, d_output, lse, delta)]

    arguments = {
        **shared,
        "tiles": tiles(kernels.queries, query_len, cu),
        "d_query": address(made["query"]),
        **steps("d_query", made["query"]),
    }
    arguments |= {"d_bias": address(pairs), **steps("d_bias", pairs)}
    launch(kernels.queries, arguments["tiles"] * heads * batch, arguments, [*given, made["query"], *([] if pairs is None else [pairs])])

    arguments = {**shared, "tiles": tiles(kernels.keys, key_len, cu and cu[::-1])}
    for name in ("key", "value"):
        arguments |= {f"d_{name}": address(made[name]), **steps(f"d_{name}", made[name])}
    launch(kernels.keys, arguments["tiles"] * kv_heads * batch, arguments, [*given, made["key"], made["value"]])
    if pairs is not None and bias is not None:
        kept = [1] * (4 - bias.ndim) + list(bias.shape)
        total = stored(np.full((1, 1, 1, int(np.prod(kept))), np.nan), element)
        names = ("keeps_batch", "keeps_head", "keeps_row", "keeps_key")
        arguments = {"d_bias": address(pairs), "total": address(total), "batch": batch, "heads": heads, "query_len": query_len}
        arguments |= {"key_len": key_len, **{name: int(n > 1) for name, n in zip(names, kept, strict=True)}}
        launch(kernels.bias, -(-total.size // kernels.bias.tile), arguments, [read_only(pairs), total])
        made["bias"] = total.reshape(bias.shape)
    if sinks is not None:
        made["sinks"] = stored(np.full(heads, np.nan), element)
        arguments = {"sinks": address(sinks), "lse": address(lse), "delta": address(delta), "d_sinks": address(made["sinks"])}
        arguments |= {"batch": batch, "query_len": query_len, **of_lse}
        launch(kernels.sinks, heads, arguments, [*map(read_only, (sinks, lse, delta)), made["sinks"]])
    return made
