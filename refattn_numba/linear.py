"""Attention whose memory does not grow: chunks of positions, with the state in the cache, whichever form is asked for.

Recurrent and chunked forms are one kernel, which has chunks of its own: `chunk_size` is accepted, and changes nothing.
"""

from __future__ import annotations

import numpy as np

import refattn
from refattn._core import Array, Pullback
from refattn.attention.linear.gated_delta import per_head
from refattn.attention.linear.linear import FeatureMap, LinearAttended, attend
from refattn.attention.linear.rule import Recalled
from refattn_numba._twin import twin_of, using
from refattn_numba.cpu import scan_features
from refattn_numba.cpu.packing import packed
from refattn_numba.cpu.scan import scan
from refattn_numba.cpu.threads import run


@twin_of(refattn.elu_plus_one)
def elu_plus_one(x: Array) -> tuple[Array, Pullback]:
    """The docstring is the reference's."""
    given = packed(x, x.dtype.newbyteorder("="))
    y = np.empty(given.shape, given.dtype)
    tasks = -(-x.size // int(scan_features.BLOCK))
    run(scan_features.elu_plus_one, given.reshape(x.size), y.reshape(x.size), tasks=tasks, cost=8 * x.size)
    return y, lambda dy: {"x": np.minimum(y, 1) * dy}


@twin_of(refattn.linear_attention)
def linear_attention(
    query: Array,
    key: Array,
    value: Array,
    state: Array | None = None,
    normalizer: Array | None = None,
    *,
    causal: bool = False,
    feature_map: FeatureMap | None = "elu_plus_one",
    normalize: bool = True,
    eps: float = 0.0,
    scale: float | None = None,
) -> tuple[LinearAttended, Pullback]:
    """The docstring is the reference's."""
    options = {"causal": causal, "feature_map": feature_map, "normalize": normalize, "eps": eps, "scale": scale}
    with using():  # for the feature map
        return attend(scan, query, key, value, state, normalizer, **options)


@twin_of(refattn.chunked_linear_attention)
def chunked_linear_attention(
    query: Array,
    key: Array,
    value: Array,
    state: Array | None = None,
    normalizer: Array | None = None,
    *,
    causal: bool = False,
    feature_map: FeatureMap | None = "elu_plus_one",
    normalize: bool = True,
    eps: float = 0.0,
    scale: float | None = None,
    chunk_size: int = 64,
) -> tuple[LinearAttended, Pullback]:
    """The docstring is the reference's."""
    options = {"causal": causal, "feature_map": feature_map, "normalize": normalize, "eps": eps, "scale": scale}
    with using():  # for the feature map
        return attend(scan, query, key, value, state, normalizer, **options)


@twin_of(refattn.gated_linear_attention)
def gated_linear_attention(
    query: Array, key: Array, value: Array, log_decay: Array, state: Array | None = None, *, scale: float | None = None
) -> tuple[Recalled, Pullback]:
    """The docstring is the reference's."""
    return scan(query, key, value, log_decay, None, state, scale=scale)


@twin_of(refattn.chunked_gated_linear_attention)
def chunked_gated_linear_attention(
    query: Array,
    key: Array,
    value: Array,
    log_decay: Array,
    state: Array | None = None,
    *,
    scale: float | None = None,
    chunk_size: int = 64,
) -> tuple[Recalled, Pullback]:
    """The docstring is the reference's."""
    return scan(query, key, value, log_decay, None, state, scale=scale)


@twin_of(refattn.delta_rule)
def delta_rule(
    query: Array, key: Array, value: Array, beta: Array, state: Array | None = None, *, scale: float | None = None
) -> tuple[Recalled, Pullback]:
    """The docstring is the reference's."""
    return scan(query, key, value, None, beta, state, scale=scale)


@twin_of(refattn.chunked_delta_rule)
def chunked_delta_rule(
    query: Array, key: Array, value: Array, beta: Array, state: Array | None = None, *, scale: float | None = None, chunk_size: int = 64
) -> tuple[Recalled, Pullback]:
    """The docstring is the reference's."""
    return scan(query, key, value, None, beta, state, scale=scale)


@twin_of(refattn.gated_delta_rule)
def gated_delta_rule(
    query: Array, key: Array, value: Array, log_decay: Array, beta: Array, state: Array | None = None, *, scale: float | None = None
) -> tuple[Recalled, Pullback]:
    """The docstring is the reference's."""
    return per_head(scan, query, key, value, log_decay, beta, state, scale=scale)


@twin_of(refattn.chunked_gated_delta_rule)
def chunked_gated_delta_rule(
    query: Array,
    key: Array,
    value: Array,
    log_decay: Array,
    beta: Array,
    state: Array | None = None,
    *,
    scale: float | None = None,
    chunk_size: int = 64,
) -> tuple[Recalled, Pullback]:
    """The docstring is the reference's."""
    return per_head(scan, query, key, value, log_decay, beta, state, scale=scale)
