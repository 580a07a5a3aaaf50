"""The delta rule: a state that first erases what it holds for a key, and then writes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from refattn._core import Array, BadCall, Pullback, Random, Sample, mechanism
from refattn.attention.linear import draws
from refattn.attention.linear.rule import Recalled, chunked, recurrent


def _inputs(random: Random) -> dict[str, Any]:
    return {
        "query": random.normal((2, 4, 5, 3)),
        "key": random.normal((2, 2, 5, 3)) / 2,
        "value": random.normal((2, 2, 5, 4)),
        "beta": random.uniform(0.0, 1.0, (2, 2, 5)),
    }


def _samples(random: Random) -> Iterator[Sample]:
    return draws.samples(random, _inputs(random))


def _chunked_samples(random: Random) -> Iterator[Sample]:
    return draws.in_chunks(_samples(random))


def _bad_calls(random: Random) -> Iterator[BadCall]:
    return draws.bad_calls(random, _inputs(random))


def _benchmark(random: Random) -> dict[str, Any]:
    inputs = {name: random.normal((1, 8, 256, 64)) for name in ("query", "key", "value")}
    return {**inputs, "key": inputs["key"] / 8, "beta": random.uniform(0.0, 1.0, (1, 8, 256))}


@mechanism(tags={"linear", "recurrent"}, samples=_samples, bad_calls=_bad_calls, benchmark=_benchmark)
def delta_rule(
    query: Array, key: Array, value: Array, beta: Array, state: Array | None = None, *, scale: float | None = None
) -> tuple[Recalled, Pullback]:
    r"""Read from a state in which each position replaces what stands at its key, so that it stays an associative memory.

    Parameters
    ----------
    query : array, shape (..., kv_heads * group, length, head_dim)
        What is asked; query head h reads the state of key and value head ``h // group``.
    key : array, shape (..., kv_heads, length, head_dim)
        Where each position writes; of length 1, where it shall be replaced and not overshot.
    value : array, shape (..., kv_heads, length, value_dim)
        What each position writes.
    beta : array, shape (..., kv_heads, length)
        How much of what the state holds for the key is replaced: 0 nothing, and 1 all, where the key has length 1.
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

    .. math::

        u_t = \beta_t (v_t - S_{t-1}^\top k_t), \quad S_t = S_{t-1} + k_t u_t^\top = (I - \beta_t k_t k_t^\top) S_{t-1}
        + \beta_t k_t v_t^\top, \quad o_t = s\, S_t^\top q_t

    With :math:`\bar S_t` the cotangent of the state after position t, from its own query and from all later positions:

    .. math::

        \bar S_t = s\, q_t \bar o_t^\top + (I - \beta_{t+1} k_{t+1} k_{t+1}^\top) \bar S_{t+1}, \quad
        \bar q_t = s\, S_t \bar o_t, \quad \bar u_t = \bar S_t^\top k_t

    .. math::

        \bar v_t = \beta_t \bar u_t, \quad \bar \beta_t = \bar u_t \cdot (v_t - S_{t-1}^\top k_t), \quad
        \bar k_t = \bar S_t u_t - S_{t-1} \bar v_t

    References
    ----------
    .. [1] Schlag, Irie, Schmidhuber, "Linear Transformers Are Secretly Fast Weight Programmers", ICML 2021. arXiv:2102.11174.
    .. [2] Yang et al., "Parallelizing Linear Transformers with the Delta Rule over Sequence Length", NeurIPS 2024: without feature
       maps, and the WY representation. arXiv:2406.06484.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> key, value = np.ones((1, 2, 1)), np.array([[[8.0], [3.0]]])
    >>> output, state = refattn.delta_rule(key, key, value, np.array([[1.0, 0.5]]))
    >>> output.ravel(), state
    (array([8. , 5.5]), array([[[5.5]]]))
    """
    return recurrent(query, key, value, None, beta, state, scale=scale)


@mechanism(
    tags={"linear", "recurrent", "chunked"}, samples=_chunked_samples, bad_calls=_bad_calls, benchmark=_benchmark, inert={"chunk_size"}
)
def chunked_delta_rule(
    query: Array, key: Array, value: Array, beta: Array, state: Array | None = None, *, scale: float | None = None, chunk_size: int = 64
) -> tuple[Recalled, Pullback]:
    r"""`delta_rule`, chunk by chunk: a triangular system inside a chunk, in the WY representation, the state between chunks.

    Parameters
    ----------
    query : array, shape (..., kv_heads * group, length, head_dim)
        What is asked; query head h reads the state of key and value head ``h // group``.
    key : array, shape (..., kv_heads, length, head_dim)
        Where each position writes; of length 1, where it shall be replaced and not overshot.
    value : array, shape (..., kv_heads, length, value_dim)
        What each position writes.
    beta : array, shape (..., kv_heads, length)
        How much of what the state holds for the key is replaced: 0 nothing, and 1 all, where the key has length 1.
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

    With A the strictly lower part of :math:`\operatorname{diag}(\beta) K K^\top`, S the state before the chunk, and M the causal mask:

    .. math::

        (I + A)\, W = \operatorname{diag}(\beta) K, \quad (I + A)\, U = \operatorname{diag}(\beta) V, \quad
        X = U - W S

    .. math::

        O = s\, \bigl(Q S + (Q K^\top \odot M) X\bigr), \quad
        S' = S + K^\top X

    .. math::

        \bar X = s\, (Q K^\top \odot M)^\top \bar O + K \bar S', \quad \bar U = \bar X, \quad \bar W = -\bar X S^\top, \quad
        \bar S = \bar S' + s\, Q^\top \bar O - W^\top \bar X

    References
    ----------
    .. [1] Schlag, Irie, Schmidhuber, "Linear Transformers Are Secretly Fast Weight Programmers", ICML 2021. arXiv:2102.11174.
    .. [2] Yang et al., "Parallelizing Linear Transformers with the Delta Rule over Sequence Length", NeurIPS 2024: without feature
       maps, and the WY representation. arXiv:2406.06484.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> key, value = np.ones((1, 2, 1)), np.array([[[8.0], [3.0]]])
    >>> output, state = refattn.chunked_delta_rule(key, key, value, np.array([[1.0, 0.5]]), chunk_size=2)
    >>> output.ravel(), state
    (array([8. , 5.5]), array([[[5.5]]]))
    """
    return chunked(query, key, value, None, beta, state, scale=scale, chunk_size=chunk_size)
