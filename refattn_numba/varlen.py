"""Attention within packed sequences: one call of a kernel, whose tasks are tiles of all of them."""

from __future__ import annotations

import math
from functools import cache
from typing import Any, Literal

import numpy as np

import refattn
from refattn import masks
from refattn._core import Array, Integers, Pullback
from refattn.attention.cached.varlen import spans_of
from refattn.attention.dot_product.scaled_dot_product import AttendedWithLse
from refattn_numba._twin import twin_of
from refattn_numba.cpu.attention import Outcome, attend_within
from refattn_numba.cpu.call import Spans
from refattn_numba.cpu.conversion import in_single
from refattn_numba.cpu.plain.attention import band, check_shapes
from refattn_numba.cuda.faces import on_device


@in_single
def attend(
    query: Array,
    key: Array,
    value: Array,
    cu_seqlens_q: Integers,
    cu_seqlens_k: Integers | None = None,
    sinks: Array | None = None,
    *,
    causal: bool = False,
    align: masks.Align | None = None,
    window: tuple[int | None, int | None] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    masked_rows: Literal["zero", "nan"] = "zero",
) -> Outcome:
    """Each sequence has a band of its own, as its lengths say."""
    check_shapes(query, key, value, sinks)
    queries, keys = spans_of(cu_seqlens_q, cu_seqlens_k, query.shape[-2], key.shape[-2])
    bands = cache(lambda query_len, key_len: band(query_len, key_len, causal, align, window))
    lengths = [(q.stop - q.start, k.stop - k.start) for q, k in zip(queries, keys, strict=True)]
    table = [(q.start, m, k.start, n, *bands(m, n)) for q, k, (m, n) in zip(queries, keys, lengths, strict=True)]
    spans = Spans(*np.array(table, np.int64).reshape(-1, len(Spans._fields)).T)
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    attended, pullback = attend_within(query, key, value, None, sinks, spans=spans, scale=factor, softcap=softcap)
    if masked_rows == "nan":
        attended.output[np.isneginf(attended.lse())] = np.nan
    return attended, pullback


@twin_of(refattn.varlen_attention_with_lse, like=attend, narrow=True, finished=on_device)
def varlen_attention_with_lse(*args: Any, **kwargs: Any) -> tuple[AttendedWithLse, Pullback]:
    """The docstring is the reference's."""
    attended, pullback = attend(*args, **kwargs)
    return AttendedWithLse(attended.output, attended.lse()), pullback


@twin_of(refattn.varlen_attention, like=attend, narrow=True, finished=on_device)
def varlen_attention(*args: Any, **kwargs: Any) -> tuple[Array, Pullback]:
    """The docstring is the reference's."""
    attended, pullback = attend(*args, **kwargs)
    return attended.output, lambda d_output: pullback(d_output, None)
