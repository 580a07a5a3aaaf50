"""Self-attention over pixels: every position of a feature map attends to all, in several heads."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from refattn._core import Array, BadCall, Grads, Pullback, Random, Sample, mechanism
from refattn.attention.dot_product.multi_head import multi_head_attention


def _inputs(random: Random) -> dict[str, Any]:
    weights = {"w_query": random.normal((4, 3)) / 2, "w_key": random.normal((4, 3)) / 2, "w_value": random.normal((6, 3))}
    return {"x": random.normal((2, 3, 2, 3)), **weights}


def _samples(random: Random) -> Iterator[Sample]:
    inputs = _inputs(random)
    output = {"w_output": random.normal((5, 6)), "b_output": random.normal(5)}
    biases = {"b_query": random.normal(4), "b_key": random.normal(4), "b_value": random.normal(6)}
    yield Sample("one head", inputs)
    yield Sample("two heads", {**inputs, **output, "num_heads": 2})
    yield Sample("biases", {**inputs, **biases, **output, "num_heads": 2, "scale": 1.5})
    yield Sample("learned temperatures", {**inputs, **biases, "num_heads": 2, "scale": random.uniform(0.25, 1.0, (2, 1, 1))})
    yield Sample("sequence", {**inputs, **output, "x": random.normal((2, 3, 5))})
    yield Sample("video", {**inputs, **output, "x": random.normal((1, 3, 2, 2, 3))})


def _bad_calls(random: Random) -> Iterator[BadCall]:
    inputs = _inputs(random)
    yield BadCall("heads that do not divide", {**inputs, "num_heads": 3}, ValueError, r"num_heads \* head_dim is 4 in w_query")
    yield BadCall("bias alone", {**inputs, "b_output": random.normal(6)}, ValueError, "b_output is given, but w_output is None")
    yield BadCall("another map", {**inputs, "x": random.normal((2, 4, 2, 3))}, ValueError, "channels is")


def _benchmark(random: Random) -> dict[str, Any]:
    weights = {name: random.normal((64, 64)) / 8 for name in ("w_query", "w_key", "w_value", "w_output")}
    return {"x": random.normal((1, 64, 32, 32)), **weights, "num_heads": 4}


@mechanism(tags={"softmax", "quadratic"}, samples=_samples, bad_calls=_bad_calls, benchmark=_benchmark, inert={"b_key"})
def pixel_self_attention(
    x: Array,
    w_query: Array,
    w_key: Array,
    w_value: Array,
    w_output: Array | None = None,
    b_query: Array | None = None,
    b_key: Array | None = None,
    b_value: Array | None = None,
    b_output: Array | None = None,
    *,
    num_heads: int = 1,
    scale: Array | float | None = None,
) -> tuple[Array, Pullback]:
    r"""Let every position of a feature map attend to all positions: `multi_head_attention` with the pixels as tokens.

    Parameters
    ----------
    x : array, shape (batch, channels, *positions)
        Feature maps of a sequence, an image or a video.
    w_query : array, shape (num_heads * head_dim, channels)
        Projection to queries: this and the following weights are convolutions with kernels of one tap.
    w_key : array, shape (num_heads * head_dim, channels)
        Projection to keys.
    w_value : array, shape (num_heads * value_dim, channels)
        Projection to values.
    w_output : array or None, shape (out_channels, num_heads * value_dim), optional
        Projection of all heads together; None leaves them as they are, head after head.
    b_query : array or None, shape (num_heads * head_dim), optional
        Added to the queries.
    b_key : array or None, shape (num_heads * head_dim), optional
        Added to the keys: the same number for all keys of a query, so without effect.
    b_value : array or None, shape (num_heads * value_dim), optional
        Added to the values.
    b_output : array or None, shape (out_channels), optional
        Added to the output; needs `w_output`.
    num_heads : positive int, optional
        Heads.
    scale : float or array or None, broadcastable to (batch, num_heads, 1, 1), optional
        Default ``1 / sqrt(head_dim)``. An array is a learned temperature and has a gradient.

    Returns
    -------
    array, shape (batch, out_channels, *positions)
        What each position read; the input is not added.

    Notes
    -----
    Sizes: ``head_dim >= 1``.

    With N positions, the weights of each head are an N by N matrix. No position knows where it is: to permute the pixels permutes
    the output.

    .. math::

        X = [x_1 \dots x_N]^\top, \quad Y = \operatorname{attention}(X, X, X), \qquad
        \bar X = \bar X_{\mathrm{query}} + \bar X_{\mathrm{key}} + \bar X_{\mathrm{value}}

    The module of SAGAN is ``x + gamma * pixel_self_attention(...)`` with one head, ``scale=1.0`` and a learned number gamma that
    begins at 0; its g is the query here, f the key, h the value and v the output. `non_local` with "embedded_gaussian" is
    ``x + pixel_self_attention(...)`` with one head and ``scale=1.0``.

    References
    ----------
    .. [1] Vaswani et al., "Attention Is All You Need", NeurIPS 2017, section 3.2.2. arXiv:1706.03762.
    .. [2] Zhang et al., "Self-Attention Generative Adversarial Networks", ICML 2019. arXiv:1805.08318.
    .. [3] Wang et al., "Non-local Neural Networks", CVPR 2018, section 3. arXiv:1711.07971.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> x, one = np.array([[[0.0, 0.0, 3.0]]]), np.ones((1, 1))
    >>> refattn.pixel_self_attention(x, 0 * one, one, one)  # equal weights: the mean
    array([[[1., 1., 1.]]])
    """
    if w_output is None and b_output is not None:
        raise ValueError("b_output is given, but w_output is None")
    channels = np.arange(len(w_value))
    joined = (channels[:, None] == channels).astype(x.dtype) if w_output is None else w_output
    pixels = x.reshape(*x.shape[:2], math.prod(x.shape[2:])).swapaxes(1, 2)
    biases = (b_query, b_key, b_value, b_output)
    y, attention_pullback = multi_head_attention.vjp(
        pixels, pixels, pixels, w_query, w_key, w_value, joined, *biases, num_heads=num_heads, scale=scale
    )

    def pullback(dy: Array) -> Grads:
        d = attention_pullback(dy.reshape(*dy.shape[:2], y.shape[1]).swapaxes(1, 2))
        d_pixels = d["query"] + d["key"] + d["value"]
        return {**d, "x": d_pixels.swapaxes(1, 2).reshape(x.shape)}

    return y.swapaxes(1, 2).reshape(len(x), len(joined), *x.shape[2:]), pullback
