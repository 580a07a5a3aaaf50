"""The stages of softmax attention, in the order in which they apply; each is the identity where its option is None."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from refattn._core import Array, Booleans, Grads, Pullback, Random, Sample, like, mechanism, unbroadcast

MaskedRows: TypeAlias = Literal["zero", "nan", "uniform"]


def _scale_samples(random: Random) -> Iterator[Sample]:
    inputs = {"scores": random.normal((2, 3, 4))}
    yield Sample("number", {**inputs, "scale": 0.25})
    yield Sample("for each row", {**inputs, "scale": random.normal((3, 1))})
    yield Sample("one array", {**inputs, "scale": np.asarray(random.normal())})


@mechanism(samples=_scale_samples)
def scaled(scores: Array, scale: Array | float) -> tuple[Array, Pullback]:
    r"""Multiply scores by a number, or by a learned temperature.

    Parameters
    ----------
    scores : array, shape (...)
        Scores.
    scale : float or array, broadcastable to (...)
        A number has no gradient, an array has one.

    Returns
    -------
    array, shape (...)
        Scaled scores.

    Notes
    -----
    .. math::

        y = c\, s, \qquad \bar s = c\, \bar y, \quad \bar c = \sum s\, \bar y

    Examples
    --------
    >>> import numpy as np
    >>> scaled(np.array([2.0, 4.0]), 0.5)
    array([1., 2.])
    """

    def pullback(dy: Array) -> Grads:
        return {"scores": scale * dy, "scale": unbroadcast(scores * dy, np.shape(scale))}

    return scale * scores, pullback


def _softcap_samples(random: Random) -> Iterator[Sample]:
    yield Sample("capped", {"scores": random.normal((2, 3)), "cap": 0.75})
    yield Sample("far beyond", {"scores": 100 * random.normal((2, 3)), "cap": 30.0})
    yield Sample("none", {"scores": random.normal((2, 3)), "cap": None})


@mechanism(samples=_softcap_samples)
def softcap(scores: Array, *, cap: float | None) -> tuple[Array, Pullback]:
    r"""Keep scores between -cap and cap.

    Parameters
    ----------
    scores : array, shape (...)
        Scores.
    cap : positive float or None
        Bound; None leaves the scores as they are.

    Returns
    -------
    array, shape (...)
        Capped scores.

    Notes
    -----
    .. math::

        y = c \tanh(s / c), \qquad \bar s = (1 - y^2 / c^2)\, \bar y

    References
    ----------
    .. [1] Gemma Team, "Gemma 2: Improving Open Language Models at a Practical Size", 2024, section 2. arXiv:2408.00118.

    Examples
    --------
    >>> import numpy as np
    >>> softcap(np.array([0.0, 1e9]), cap=50.0)
    array([ 0., 50.])
    """
    if cap is None:
        return scores, lambda dy: {"scores": dy}
    bounded = np.tanh(scores / cap)
    return cap * bounded, lambda dy: {"scores": dy * (1 - bounded**2)}


class Weights(NamedTuple):
    """Attention weights, and the logarithm of what they were divided by."""

    weights: Array
    lse: Array


def _softmax_samples(random: Random) -> Iterator[Sample]:
    inputs = {"scores": random.normal((2, 3, 4, 5))}
    mask = random.booleans(0.6, (4, 5))
    mask[1] = False
    sinks = random.normal(3)
    sinks[0] = -np.inf
    yield Sample("plain", inputs)
    yield Sample("masked", {**inputs, "mask": mask})
    yield Sample("sinks", {**inputs, "mask": mask, "sinks": random.normal(3)})
    yield Sample("uniform", {**inputs, "mask": mask, "masked_rows": "uniform"})
    yield Sample("not a number", {**inputs, "mask": mask, "sinks": sinks, "masked_rows": "nan"})


@mechanism(tags={"weights"}, samples=_softmax_samples)
def masked_softmax(
    scores: Array, sinks: Array | None = None, *, mask: Booleans | None = None, masked_rows: MaskedRows = "zero"
) -> tuple[Weights, Pullback]:
    r"""Softmax over the keys that a query may attend to, and a sink that takes weight and gives nothing.

    Parameters
    ----------
    scores : array, shape (..., heads, query_len, key_len)
        Scores; those outside the mask are not read.
    sinks : array or None, shape (heads), optional
        One more score for each head.
    mask : bool array or None, broadcastable to (..., heads, query_len, key_len), optional
        True where the query may attend.
    masked_rows : {"zero", "nan", "uniform"}, optional
        Weights of a row that has nothing: no key that it may attend to, and no sink. Its scores have gradient 0 in each case.

    Returns
    -------
    weights : array, shape (..., heads, query_len, key_len)
        A row sums to 1 less what its sink takes.
    lse : array, shape (..., heads, query_len)
        Natural logarithm of the sum of exponentials, with the sink; :math:`-\infty` for a row that has nothing.

    Notes
    -----
    .. math::

        \ell = \log\Bigl(e^{b} + \sum_j e^{s_j}\Bigr), \quad p_j = e^{s_j - \ell}, \qquad
        \bar s_j = p_j \Bigl(\bar p_j - \sum_k p_k \bar p_k + \bar \ell\Bigr), \quad
        \bar b = e^{b - \ell} \Bigl(\bar \ell - \sum_k p_k \bar p_k\Bigr)

    References
    ----------
    .. [1] Xiao et al., "Efficient Streaming Language Models with Attention Sinks", ICLR 2024, eq. (2). arXiv:2309.17453.
    .. [2] OpenAI, "gpt-oss-120b & gpt-oss-20b Model Card", 2025, section 2.2: a learned sink for each head. arXiv:2508.10925.

    Examples
    --------
    >>> import numpy as np
    >>> masked_softmax(np.zeros((1, 1, 2)), np.log([2.0])).weights
    array([[[0.25, 0.25]]])
    """
    allowed = np.broadcast_to(True if mask is None else mask, scores.shape)
    sink = np.full_like(scores, -np.inf, shape=scores.shape[:-1]) if sinks is None else np.broadcast_to(sinks[:, None], scores.shape[:-1])
    masked = np.where(allowed, scores, -np.inf)
    largest = np.maximum(masked.max(axis=-1, initial=-np.inf), sink)
    shift = np.where(np.isneginf(largest), 0, largest)
    exp, sink_exp = np.exp(masked - shift[..., None]), np.exp(sink - shift)
    total = exp.sum(axis=-1) + sink_exp
    empty = total == 0
    divisor = np.where(empty, 1, total)
    attended, sink_weight = np.where(allowed, exp / divisor[..., None], 0), sink_exp / divisor  # 0 in rows that are NaN too
    lse = np.where(empty, -np.inf, shift + np.log(divisor))
    fill = {"zero": 0.0, "nan": np.nan, "uniform": 1 / like(scores, max(scores.shape[-1], 1))}[masked_rows]
    weights = np.where(empty[..., None], fill, attended)

    def pullback(d_weights: Array, d_lse: Array) -> Grads:
        d_attended = np.where(allowed, d_weights, 0)
        inner = (attended * d_attended).sum(axis=-1)
        d_sink = sink_weight * (d_lse - inner)
        return {
            "scores": np.where(allowed, attended * (d_attended + (d_lse - inner)[..., None]), 0),
            "sinks": d_sink.sum(axis=(*range(d_sink.ndim - 2), -1)),
        }

    return Weights(weights, lse), pullback


def _dropout_samples(random: Random) -> Iterator[Sample]:
    inputs = {"x": random.normal((2, 3, 4))}
    yield Sample("dropped", {**inputs, "keep": random.booleans(0.7, (3, 4)), "rate": 0.3})
    yield Sample("none", {**inputs, "keep": None})


@mechanism(samples=_dropout_samples)
def dropout(x: Array, *, keep: Booleans | None, rate: float = 0.0) -> tuple[Array, Pullback]:
    r"""Zero what is not kept and scale the rest.

    Parameters
    ----------
    x : array, shape (...)
        Input.
    keep : bool array or None, broadcastable to (...)
        False where the input is dropped; None keeps all and scales nothing.
    rate : probability, optional
        The probability with which `keep` was drawn False.

    Returns
    -------
    array, shape (...)
        Output.

    Notes
    -----
    .. math::

        y = \frac{k\, x}{1 - r}, \qquad \bar x = \frac{k\, \bar y}{1 - r}

    References
    ----------
    .. [1] Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", JMLR 2014.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.dropout(np.array([1.0, 2.0]), keep=np.array([False, True]), rate=0.5)
    array([0., 4.])
    """
    if keep is None:
        return x, lambda dy: {"x": dy}
    factor = like(x, keep) / (1 - like(x, rate))
    return x * factor, lambda dy: {"x": dy * factor}


def masked_matmul(weights: Array, x: Array, mask: Booleans) -> Array:
    """``weights @ x``, in which a pair outside the mask counts 0 even where `x` is NaN or infinite.

    Only rows of `x` that hold such a value cost more than a matrix product.
    """
    finite = np.isfinite(x)
    if finite.all():
        return weights @ x
    clean = np.where(finite, x, 0)
    product = weights @ clean
    allowed = np.broadcast_to(mask, weights.shape)
    for j in np.unique(np.nonzero(~finite)[-2]):
        more = weights[..., :, j, None] * (x - clean)[..., None, j, :]
        product = product + np.where(allowed[..., :, j, None], more, 0)
    return product


def zero_unless(used: Booleans, x: Array) -> Array:
    """Rows of `x` that no pair reads become 0, so that what stands there reaches no gradient of a weight (0 * NaN is NaN)."""
    return np.where(used[..., None], x, 0)
