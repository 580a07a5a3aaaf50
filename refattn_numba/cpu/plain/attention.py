"""Softmax attention on CPU cores, in the dtype of the query: float32 or float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from refattn import masks
from refattn._core import Array, Booleans, unbroadcast
from refattn.attention.dot_product.scaled_dot_product import AttendedWithLse
from refattn.primitives.attention_stages import MaskedRows
from refattn_numba.cpu.packing import Pairs, packed, pairs, rows_of, sharing
from refattn_numba.cpu.plain.attention_backward import Cotangents, PairGradient, backward_keys, backward_queries
from refattn_numba.cpu.plain.attention_forward import forward
from refattn_numba.cpu.plain.attention_stages import Operands, Rows, Scoring, Sizes
from refattn_numba.cpu.plain.tiles import LINES, TILE
from refattn_numba.cpu.threads import run

Window: TypeAlias = tuple[int | None, int | None]


def attend(
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None = None,
    sinks: Array | None = None,
    *,
    mask: Booleans | None = None,
    causal: bool = False,
    align: masks.Align | None = None,
    window: Window | None = None,
    scale: Array | float | None = None,
    softcap: float | None = None,
    keep: Booleans | None = None,
    dropout_rate: float = 0.0,
    masked_rows: MaskedRows = "zero",
) -> tuple[AttendedWithLse, Callable[[Array | None, Array | None], dict[str, Array | None]]]:
    """`refattn.scaled_dot_product_attention_with_lse` and its pullback, where a cotangent of None is zero."""
    *lead, query_len, head_dim = query.shape
    kv_heads, key_len, value_dim = value.shape[-3:]
    heads, count, tiles = lead[-1], math.prod(lead), -(-query_len // TILE)
    dtype, shape = query.dtype.newbyteorder("="), (*lead, query_len, key_len)
    check_shapes(query, key, value, sinks)
    sizes = Sizes(heads, heads // max(kv_heads, 1), query_len, key_len, *band(query_len, key_len, causal, align, window))
    sink_scores = () if sinks is None else sinks
    operands = Operands(rows_of(query, dtype), rows_of(key, dtype), rows_of(value, dtype), packed(sink_scores, dtype))
    factor = np.asarray(1 / math.sqrt(head_dim) if scale is None else scale, dtype)
    by_row = factor.shape[-1:] in {(), (1,)}
    scoring = Scoring(
        pairs(factor if by_row else np.ones(()), shape, dtype),
        pairs(None if by_row else factor, shape, dtype),
        pairs(bias, shape, dtype),
        pairs(mask, shape, np.bool_),
        pairs(keep, shape, np.bool_),
        dtype.type(softcap or 0),
        dtype.type(1 / (1 - dropout_rate)),
        dtype.type({"zero": 0.0, "nan": np.nan, "uniform": 1 / max(key_len, 1)}[masked_rows]),
    )
    rows = Rows(np.empty((count, query_len, value_dim), dtype), *(np.empty((count, query_len), dtype) for _ in range(3)))
    cost = count * query_len * key_len * (head_dim + value_dim)
    run(forward, operands, scoring, sizes, rows, tasks=count * tiles, cost=cost)

    def pullback(d_output: Array | None, d_lse: Array | None) -> dict[str, Array | None]:
        cotangents = Cotangents(
            rows_of(_cotangent(d_output, (*lead, query_len, value_dim), dtype), dtype),
            packed(_cotangent(d_lse, (*lead, query_len), dtype), dtype).reshape(count, query_len),
            np.empty((count, query_len), dtype),
            *(np.empty((count, tiles, -(-size // LINES) * LINES, TILE), dtype) for size in (head_dim, value_dim)),
        )
        d_query, d_key, d_value = (np.empty(x.shape, dtype) for x in operands[:3])
        d_bias = _gradient(scoring.bias, bias is not None, count, sizes, dtype)
        d_scale = _gradient(scoring.row_scale if by_row else scoring.scale, isinstance(scale, np.ndarray), count, sizes, dtype)
        groups = sharing([p.start for p, d in ((scoring.bias, d_bias), (scoring.scale, d_scale)) if d.pairs.size], count)
        given, gradients = (operands, scoring, sizes, rows, cotangents), (d_bias, d_scale)
        tasks = (len(groups.bounds) - 1) * tiles
        run(backward_queries, *given, groups, d_query, *gradients, tasks=tasks, cost=2 * cost)
        tasks = operands.key.shape[0] * -(-key_len // TILE)
        run(backward_keys, *given, d_key, d_value, *gradients, tasks=tasks, cost=2 * cost)
        return {
            "query": d_query.reshape(query.shape),
            "key": d_key.reshape(key.shape),
            "value": d_value.reshape(value.shape),
            "bias": None if bias is None else _collected(d_bias, lead, np.shape(bias)),
            "sinks": None if sinks is None else d_sinks(sinks, rows.shift, rows.inverse, cotangents.centre),
            "scale": _collected(d_scale, lead, scale.shape) if isinstance(scale, np.ndarray) else None,
        }

    # a copy, since the pullback reads the output, which is the caller's to overwrite
    return AttendedWithLse(rows.output.reshape(*lead, query_len, value_dim).copy(), rows.lse.reshape(*lead, query_len)), pullback


def check_shapes(query: Array, key: Array, value: Array, sinks: Array | None) -> None:
    """Refuse what would make a kernel read beyond an array; options are checked where they are broadcast."""
    *batch, heads, _, head_dim = query.shape
    kv_heads, key_len = key.shape[-3:-1]
    fits = key.shape == (*batch, kv_heads, key_len, head_dim) and value.shape[:-1] == key.shape[:-1]
    if not fits or heads % max(kv_heads, 1) or (heads and not kv_heads) or head_dim < 1:
        raise ValueError(f"query {query.shape}, key {key.shape} and value {value.shape} do not fit together")
    if sinks is not None and sinks.shape != (heads,):
        raise ValueError(f"sinks is {sinks.shape}, but must be {(heads,)}")


def band(query_len: int, key_len: int, causal: bool, align: masks.Align | None, window: Window | None) -> tuple[int, int]:
    """How many keys before and after its own index a query may attend to."""
    left, right = window or (None, None)
    if window is not None:
        masks.sliding_window(0, 0, left=left, right=right)  # refuses negative numbers
    known = align in {"upper_left", "lower_right"} or (align is None and query_len == key_len)
    if not known and (causal or window is not None):
        masks.distance(query_len, key_len, align=align)  # refuses it
    everything = query_len + key_len
    before = everything if left is None else min(left, everything)
    after = 0 if causal else everything if right is None else min(right, everything)
    offset = key_len - query_len if align == "lower_right" else 0
    return before - offset, after + offset


def _cotangent(given: Array | None, shape: tuple[int, ...], dtype: Any) -> Array:
    if given is not None and given.shape != shape:
        raise ValueError(f"a cotangent is {given.shape}, but must be {shape}")
    return np.zeros(shape, dtype) if given is None else given


def _gradient(of: Pairs, wanted: bool, count: int, sizes: Sizes, dtype: Any) -> PairGradient:
    """Zeros in the one form that fits how an option is broadcast."""
    form = "none" if not (wanted and of.values.size) else "rows" if not of.key_step else "pairs" if of.query_step else "columns"
    return PairGradient(
        np.zeros(of.values.size if form == "pairs" else 0, dtype),
        np.zeros((count, sizes.query_len if form == "rows" else 0), dtype),
        np.zeros((count, sizes.key_len if form == "columns" else 0), dtype),
    )


def _collected(gradient: PairGradient, lead: Sequence[int], shape: tuple[int, ...]) -> Array:
    """The gradient in the shape of the option itself."""
    if gradient.pairs.size:
        return gradient.pairs.reshape(shape)
    if gradient.columns.size:
        return unbroadcast(gradient.columns.reshape(*lead, 1, gradient.columns.shape[1]), shape)
    if gradient.rows.size:
        return unbroadcast(gradient.rows.reshape(*lead, gradient.rows.shape[1], 1), shape)
    return np.zeros(shape, gradient.pairs.dtype)


def d_sinks(sinks: Array, shift: Array, inverse: Array, centre: Array) -> Array:
    """The sum over all rows of the sink's weight, times minus the centre: what a pair gets whose value is 0."""
    heads, query_len = len(sinks), centre.shape[-1]
    shape = centre.size // max(heads * query_len, 1), heads, query_len
    shift, inverse, inner = (x.reshape(shape) for x in (shift, inverse, centre))
    with np.errstate(invalid="ignore"):
        return -(np.exp(sinks[:, None].astype(centre.dtype) - shift) * inverse * inner).sum(axis=(0, 2))
