"""Gated linear attention: a state of which each row decays at a rate of its own, which the input sets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from refattn._core import Array, BadCall, Pullback, Random, Sample, mechanism
from refattn.attention.linear import draws
from refattn.attention.linear.rule import Recalled, chunked, recurrent


def _inputs(random: Random) -> dict[str, Any]:
    return {
        "query": random.normal((2, 4, 5, 3)),
        "key": random.normal((2, 2, 5, 3)),
        "value": random.normal((2, 2, 5, 4)),
        "log_decay": -random.uniform(0.0, 1.0, (2, 2, 5, 3)),
    }


def _samples(random: Random) -> Iterator[Sample]:
    return draws.samples(random, _inputs(random))


def _chunked_samples(random: Random) -> Iterator[Sample]:
    return draws.in_chunks(_samples(random))


def _bad_calls(random: Random) -> Iterator[BadCall]:
    return draws.bad_calls(random, _inputs(random))


def _benchmark(random: Random) -> dict[str, Any]:
    inputs = {name: random.normal((1, 8, 256, 64)) for name in ("query", "key", "value")}
    return {**inputs, "log_decay": -random.uniform(0.0, 0.25, (1, 8, 256, 64))}


@mechanism(tags={"linear", "recurrent"}, samples=_samples, bad_calls=_bad_calls, benchmark=_benchmark)
def gated_linear_attention(
    query: Array, key: Array, value: Array, log_decay: Array, state: Array | None = None, *, scale: float | None = None
) -> tuple[Recalled, Pullback]:
    r"""Read from a state to which each position adds its value at its key, after each row of the state has decayed.

    Parameters
    ----------
    query : array, shape (..., kv_heads * group, length, head_dim)
        What is asked; query head h reads the state of key and value head ``h // group``.
    key : array, shape (..., kv_heads, length, head_dim)
        Where each position writes.
    value : array, shape (..., kv_heads, length, value_dim)
        What each position writes.
    log_decay : array, shape (..., kv_heads, length, head_dim)
        Natural logarithm of the factor by which each row of the state decays before a position writes; 0 forgets nothing,
        and :math:`-\infty` all.
    state : array or None, shape (..., kv_heads, head_dim, value_dim), optional
        The state before the first position; None is zeros.
    scale : float or None, optional
        Factor of the query, default ``1 / sqrt(head_dim)``.

    Returns
    -------
    output : array, shape (..., kv_heads * group, length, value_dim)
        What the queries read.
    state : array, shape (..., kv_heads, head_dim, value_dim)
        The state after the last position.

    Notes
    -----
    Sizes: ``head_dim >= 1``.

    With a scalar gate, the same for all rows, this is the recurrence of RetNet and Mamba-2.

    .. math::

        D_t = \operatorname{diag}(e^{g_t})\, S_{t-1}, \quad S_t = D_t + k_t v_t^\top, \quad o_t = s\, S_t^\top q_t

    With :math:`\bar S_t` the cotangent of the state after position t, from its own query and from all later positions:

    .. math::

        \bar S_t = s\, q_t \bar o_t^\top + \operatorname{diag}(e^{g_{t+1}})\, \bar S_{t+1}, \quad
        \bar q_t = s\, S_t \bar o_t, \quad \bar k_t = \bar S_t v_t, \quad \bar v_t = \bar S_t^\top k_t, \quad
        \bar g_t = \operatorname{rowsum}(\bar S_t \odot D_t)

    References
    ----------
    .. [1] Yang et al., "Gated Linear Attention Transformers with Hardware-Efficient Training", ICML 2024. arXiv:2312.06635.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> query, key, value = np.ones((1, 3, 1)), np.ones((1, 3, 1)), np.array([[[8.0], [0.0], [1.0]]])
    >>> output, state = refattn.gated_linear_attention(query, key, value, np.full((1, 3, 1), np.log(0.5)))
    >>> output.ravel(), state
    (array([8., 4., 3.]), array([[[3.]]]))
    """
    return recurrent(query, key, value, log_decay, None, state, scale=scale)


@mechanism(
    tags={"linear", "recurrent", "chunked"}, samples=_chunked_samples, bad_calls=_bad_calls, benchmark=_benchmark, inert={"chunk_size"}
)
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
    r"""`gated_linear_attention`, chunk by chunk: decayed scores inside a chunk, the state between chunks.

    Parameters
    ----------
    query : array, shape (..., kv_heads * group, length, head_dim)
        What is asked; query head h reads the state of key and value head ``h // group``.
    key : array, shape (..., kv_heads, length, head_dim)
        Where each position writes.
    value : array, shape (..., kv_heads, length, value_dim)
        What each position writes.
    log_decay : array, shape (..., kv_heads, length, head_dim)
        Natural logarithm of the factor by which each row of the state decays before a position writes; 0 forgets nothing,
        and :math:`-\infty` all.
    state : array or None, shape (..., kv_heads, head_dim, value_dim), optional
        The state before the first position; None is zeros.
    scale : float or None, optional
        Factor of the query, default ``1 / sqrt(head_dim)``.
    chunk_size : positive int, optional
        Positions of a chunk; the last one may be shorter. The result does not depend on it.

    Returns
    -------
    output : array, shape (..., kv_heads * group, length, value_dim)
        What the queries read.
    state : array, shape (..., kv_heads, head_dim, value_dim)
        The state after the last position.

    Notes
    -----
    Sizes: ``head_dim >= 1``.

    With :math:`E_{ij} = e^{\sum_{j < m \le i} g_m}` the decay of each row from position j to i, E with index 0 the decay from the
    state S before the chunk, and c its last position:

    .. math::

        A_{ij} = [i \ge j] \sum_d q_{id}\, k_{jd}\, E_{ijd}, \quad O = s\, \bigl((Q \odot E_{\cdot 0}) S + A V\bigr), \quad
        S' = \operatorname{diag}(E_{c0}) S + (K \odot E_{c \cdot})^\top V

    .. math::

        \bar V = s\, A^\top \bar O + (K \odot E_{c \cdot}) \bar S', \quad \bar A = s\, \bar O V^\top, \quad
        \bar S = \operatorname{diag}(E_{c0}) \bar S' + s\, (Q \odot E_{\cdot 0})^\top \bar O

    References
    ----------
    .. [1] Yang et al., "Gated Linear Attention Transformers with Hardware-Efficient Training", ICML 2024. arXiv:2312.06635.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> query, key, value = np.ones((1, 3, 1)), np.ones((1, 3, 1)), np.array([[[8.0], [0.0], [1.0]]])
    >>> output, state = refattn.chunked_gated_linear_attention(query, key, value, np.full((1, 3, 1), np.log(0.5)), chunk_size=2)
    >>> output.ravel(), state
    (array([8., 4., 3.]), array([[[3.]]]))
    """
    return chunked(query, key, value, log_decay, None, state, scale=scale, chunk_size=chunk_size)
