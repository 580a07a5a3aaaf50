"""Softmax attention of arrays on a device: operands, the choice of a kernel, and its launches. Nothing comes to main memory."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias, cast

import numpy as np

from refattn import masks
from refattn._core import Integers, Pullback
from refattn.attention.cached.varlen import spans_of
from refattn.attention.dot_product.scaled_dot_product import AttendedWithLse
from refattn_numba.cpu.packing import cap_of
from refattn_numba.cpu.plain.attention import band, check_shapes
from refattn_numba.cuda import decoding
from refattn_numba.cuda.arrays import DeviceArray, Placed, placed_pairs
from refattn_numba.cuda.launching import NO_LIMIT, Launcher, Options, check_types

Window: TypeAlias = tuple[int | None, int | None]
Optional: TypeAlias = DeviceArray | None


def scaled_dot_product_attention_with_lse(
    query: DeviceArray,
    key: DeviceArray,
    value: DeviceArray,
    bias: Optional = None,
    sinks: Optional = None,
    *,
    mask: Optional = None,
    causal: bool = False,
    align: masks.Align | None = None,
    window: Window | None = None,
    scale: DeviceArray | float | None = None,
    softcap: float | None = None,
    keep: Optional = None,
    dropout_rate: float = 0.0,
    masked_rows: Literal["zero", "nan", "uniform"] = "zero",
) -> tuple[AttendedWithLse, Pullback]:
    """`refattn.scaled_dot_product_attention_with_lse` and its pullback; the log-sum-exp is float32."""
    check_types(query=query, key=key, value=value)
    check_shapes(query, key, value, sinks)  # pyright: ignore[reportArgumentType]  # of which it sees the shapes alone
    band(query.shape[-2], key.shape[-2], causal, align, window)
    if masked_rows == "uniform":
        raise ValueError("masked_rows is 'uniform', but on a device must be 'zero' or 'nan'")
    if isinstance(scale, DeviceArray):
        raise TypeError("scale is an array, but on a device must be a number: multiply the query by it, and pass scale=1.0")
    pairs = (*query.shape[:-1], key.shape[-2])
    kinds = {"mask": (mask, "bool"), "bias": (bias, query.dtype), "keep": (keep, "bool")}
    options = Options(
        {name: Placed(None) if x is None else placed_pairs(x, pairs, kind) for name, (x, kind) in kinds.items()},
        softcap=cap_of(softcap, np.float32),
        keep_scale=1.0 if keep is None else 1 / (1 - dropout_rate),
    )
    positions = _positions(causal=causal, align=align, window=window)
    launcher = Launcher(query, key, value, sinks, scale=_factor(query, scale), **positions, options=options)
    by_splits = decoding.of_whole_caches if decoding.takes(launcher) else None
    return launcher.run(bias, not_a_number=masked_rows == "nan" and key.shape[-2] > 0, forward=by_splits)


def scaled_dot_product_attention(*args: Any, **kwargs: Any) -> tuple[DeviceArray, Pullback]:
    """The output alone."""
    attended, pullback = scaled_dot_product_attention_with_lse(*args, **kwargs)
    return cast("Any", attended.output), lambda d_output: pullback(d_output, None)


def varlen_attention_with_lse(
    query: DeviceArray,
    key: DeviceArray,
    value: DeviceArray,
    cu_seqlens_q: DeviceArray | Integers,
    cu_seqlens_k: DeviceArray | Integers | None = None,
    sinks: Optional = None,
    *,
    causal: bool = False,
    align: masks.Align | None = None,
    window: Window | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    masked_rows: Literal["zero", "nan"] = "zero",
) -> tuple[AttendedWithLse, Pullback]:
    """`refattn.varlen_attention_with_lse` and its pullback.

    Lengths in main memory are checked and sent to the device. Those on the device are read by the kernels alone, which stay inside the
    arrays, but cannot say that lengths are wrong: to look at them would be a copy to main memory.
    """
    check_types(query=query, key=key, value=value)
    check_shapes(query, key, value, sinks)  # pyright: ignore[reportArgumentType]  # of which it sees the shapes alone
    starts = _starts(query, cu_seqlens_q, cu_seqlens_k, key.shape[-2], needs_align=(causal or window is not None) and align is None)
    if starts is None:
        queries, keys = spans_of(cast("Any", cu_seqlens_q), cast("Any", cu_seqlens_k), query.shape[-2], key.shape[-2])
        for q, k in zip(queries, keys, strict=True):
            band(q.stop - q.start, k.stop - k.start, causal, align, window)
        given = (cu_seqlens_q, cu_seqlens_q if cu_seqlens_k is None else cu_seqlens_k)
        starts = tuple(query.beside(np.asarray(x, np.int32)) for x in given)
    options = Options(dict.fromkeys(("mask", "bias", "keep"), Placed(None)), softcap=cap_of(softcap, np.float32))
    positions = _positions(causal=causal, align=align, window=window)
    launcher = Launcher(query, key, value, sinks, scale=_factor(query, scale), **positions, options=options, starts=starts)
    return launcher.run(None, not_a_number=masked_rows == "nan")


def varlen_attention(*args: Any, **kwargs: Any) -> tuple[DeviceArray, Pullback]:
    """The output alone."""
    attended, pullback = varlen_attention_with_lse(*args, **kwargs)
    return cast("Any", attended.output), lambda d_output: pullback(d_output, None)


def _starts(query: DeviceArray, of_queries: Any, of_keys: Any, key_len: int, *, needs_align: bool) -> tuple[DeviceArray, ...] | None:
    """Where sequences begin, if that is known to the device alone; None where main memory knows it."""
    on_device = [isinstance(x, DeviceArray) for x in (of_queries, of_keys) if x is not None]
    if not any(on_device):
        return None
    if not all(on_device):
        raise TypeError("cu_seqlens_q and cu_seqlens_k lie on different sides, but must both be in main memory or both on the device")
    if of_keys is None and query.shape[-2] != key_len:
        raise ValueError(f"cu_seqlens_k is None, but query_len is {query.shape[-2]} and key_len is {key_len}")
    if of_keys is not None and needs_align:
        raise ValueError("align is None, but lengths on the device are not compared: pass 'upper_left' or 'lower_right'")
    return of_queries.as_type("int32").contiguous(), (of_queries if of_keys is None else of_keys).as_type("int32").contiguous()


def _factor(query: DeviceArray, scale: float | None) -> float:
    return 1 / math.sqrt(query.shape[-1]) if scale is None else float(scale)


def _positions(*, causal: bool, align: masks.Align | None, window: Window | None) -> dict[str, Any]:
    """The limits between which the position of a key lies, counted from that of the query."""
    left, right = window or (None, None)
    after = 0 if causal else NO_LIMIT if right is None else min(right, NO_LIMIT)
    return {"low": -NO_LIMIT if left is None else -min(left, NO_LIMIT), "high": after, "align_right": int(align == "lower_right")}
