"""The gated delta rule: a state that decays as a whole, erases what it holds for a key, and then writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from refattn._core import Array, BadCall, Grads, Pullback, Random, Sample, mechanism
from refattn.attention.linear import draws
from refattn.attention.linear.rule import Recalled, chunked, recurrent


def _inputs(random: Random) -> dict[str, Any]:
    return {
        "query": random.normal((2, 4, 5, 3)),
        "key": random.normal((2, 2, 5, 3)) / 2,
        "value": random.normal((2, 2, 5, 4)),
        "log_decay": -random.uniform(0.0, 1.0, (2, 2, 5)),
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
    return {
        **inputs,
        "key": inputs["key"] / 8,
        "log_decay": -random.uniform(0.0, 0.25, (1, 8, 256)),
        "beta": random.uniform(0.0, 1.0, (1, 8, 256)),
    }


def per_head(
    form: Callable[..., tuple[Recalled, Pullback]],
    query: Array,
    key: Array,
    value: Array,
    log_decay: Array,
    *rest: Any,
    **options: Any,
) -> tuple[Recalled, Pullback]:
    """The rule, with one decay for all rows of a state."""
    recalled, form_pullback = form(query, key, value, log_decay[..., None], *rest, **options)

    def pullback(d_output: Array, d_state: Array) -> Grads:
        d = form_pullback(d_output, d_state)
        return {**d, "log_decay": d["log_decay"][..., 0]}

    return recalled, pullback


@mechanism(tags={"linear", "recurrent"}, samples=_samples, bad_calls=_bad_calls, benchmark=_benchmark)
def gated_delta_rule(
    query: Array, key: Array, value: Array, log_decay: Array, beta: Array, state: Array | None = None, *, scale: float | None = None
) -> tuple[Recalled, Pullback]:
    r"""Read from a state that decays, and in which each position then replaces what is left at its key.

    Parameters
    ----------
    query : array, shape (..., kv_heads * group, length, head_dim)
        What is asked; query head h reads the state of key and value head ``h // group``.
    key : array, shape (..., kv_heads, length, head_dim)
        Where each position writes; of length 1, where it shall be replaced and not overshot.
    value : array, shape (..., kv_heads, length, value_dim)
        What each position writes.
    log_decay : array, shape (..., kv_heads, length)
        Natural logarithm of the factor by which the state decays before a position erases and writes; 0 forgets nothing,
        and :math:`-\infty` all.
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

        D_t = e^{g_t} S_{t-1}, \quad u_t = \beta_t (v_t - D_t^\top k_t), \quad
        S_t = D_t + k_t u_t^\top = e^{g_t} (I - \beta_t k_t k_t^\top) S_{t-1} + \beta_t k_t v_t^\top, \quad o_t = s\, S_t^\top q_t

    With :math:`\bar S_t` the cotangent of the state after position t, from its own query and from all later positions:

    .. math::

        \bar S_t = s\, q_t \bar o_t^\top + e^{g_{t+1}} \bar D_{t+1}, \quad \bar q_t = s\, S_t \bar o_t, \quad
        \bar u_t = \bar S_t^\top k_t, \quad \bar D_t = \bar S_t - \beta_t k_t \bar u_t^\top

    .. math::

        \bar v_t = \beta_t \bar u_t, \quad \bar \beta_t = \bar u_t \cdot (v_t - D_t^\top k_t), \quad
        \bar k_t = \bar S_t u_t - D_t \bar v_t, \quad \bar g_t = \sum \bar D_t \odot D_t

    References
    ----------
    .. [1] Yang, Kautz, Hatamizadeh, "Gated Delta Networks: Improving Mamba2 with Delta Rule", ICLR 2025. arXiv:2412.06464.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> key, value = np.ones((1, 2, 1)), np.array([[[8.0], [3.0]]])
    >>> output, state = refattn.gated_delta_rule(key, key, value, np.log([[1.0, 0.25]]), np.array([[1.0, 0.5]]))
    >>> output.ravel(), state
    (array([8. , 2.5]), array([[[2.5]]]))
    """
    return per_head(recurrent, query, key, value, log_decay, beta, state, scale=scale)


@mechanism(
    tags={"linear", "recurrent", "chunked"}, samples=_chunked_samples, bad_calls=_bad_calls, benchmark=_benchmark, inert={"chunk_size"}
)
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
    r"""`gated_delta_rule`, chunk by chunk: a triangular system inside a chunk, in the WY representation, the state between chunks.

    Parameters
    ----------
    query : array, shape (..., kv_heads * group, length, head_dim)
        What is asked; query head h reads the state of key and value head ``h // group``.
    key : array, shape (..., kv_heads, length, head_dim)
        Where each position writes; of length 1, where it shall be replaced and not overshot.
    value : array, shape (..., kv_heads, length, value_dim)
        What each position writes.
    log_decay : array, shape (..., kv_heads, length)
        Natural logarithm of the factor by which the state decays before a position erases and writes; 0 forgets nothing,
        and :math:`-\infty` all.
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

    With E the decay from position j to i, :math:`E_{ij} = e^{\sum_{j < m \le i} g_m}`, the strictly lower matrix
    :math:`A_{ij} = \beta_i E_{ij}\, k_i \cdot k_j`, E with index 0 the decay from the state S before the chunk, c its last
    position, and M the causal mask:

    .. math::

        (I + A)\, W = \operatorname{diag}(\beta \odot E_{\cdot 0}) K, \quad (I + A)\, U = \operatorname{diag}(\beta) V, \quad
        X = U - W S

    .. math::

        O = s\, \bigl(\operatorname{diag}(E_{\cdot 0}) Q S + (Q K^\top \odot E \odot M) X\bigr), \quad
        S' = E_{c0} S + K^\top \operatorname{diag}(E_{c \cdot}) X

    .. math::

        \bar X = s\, (Q K^\top \odot E \odot M)^\top \bar O + \operatorname{diag}(E_{c \cdot}) K \bar S', \quad \bar U = \bar X, \quad
        \bar W = -\bar X S^\top, \quad
        \bar S = E_{c0} \bar S' + s\, Q^\top \operatorname{diag}(E_{\cdot 0}) \bar O - W^\top \bar X

    References
    ----------
    .. [1] Yang, Kautz, Hatamizadeh, "Gated Delta Networks: Improving Mamba2 with Delta Rule", ICLR 2025. arXiv:2412.06464.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> key, value = np.ones((1, 2, 1)), np.array([[[8.0], [3.0]]])
    >>> output, state = refattn.chunked_gated_delta_rule(key, key, value, np.log([[1.0, 0.25]]), np.array([[1.0, 0.5]]), chunk_size=2)
    >>> output.ravel(), state
    (array([8. , 2.5]), array([[[2.5]]]))
    """
    return per_head(chunked, query, key, value, log_decay, beta, state, scale=scale, chunk_size=chunk_size)
