"""The network that transforms each token by itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

from refattn._core import Array, Booleans, Grads, Pullback, Random, Sample, mechanism
from refattn.blocks.draws import feed_forward_weights
from refattn.primitives.activation import gelu, relu
from refattn.primitives.attention_stages import dropout
from refattn.primitives.linear import linear

Activation: TypeAlias = Literal["relu", "gelu"]


def _samples(random: Random) -> Iterator[Sample]:
    inputs = {"x": random.normal((2, 3, 4)), **feed_forward_weights(random, 4, 5)._asdict()}
    bare = {name: inputs[name] for name in ("x", "w_expand", "w_reduce")}
    yield Sample("relu", inputs)
    yield Sample("gelu", {**inputs, "activation": "gelu"})
    yield Sample("no biases", bare)
    yield Sample("dropout", {**inputs, "keep": random.booleans(0.7, (3, 5)), "dropout_rate": 0.25})


def _benchmark(random: Random) -> dict[str, Any]:
    return {"x": random.normal((1, 256, 512)), **feed_forward_weights(random, 512, 2048)._asdict()}


@mechanism(tags={"block"}, samples=_samples, benchmark=_benchmark)
def feed_forward(
    x: Array,
    w_expand: Array,
    w_reduce: Array,
    b_expand: Array | None = None,
    b_reduce: Array | None = None,
    *,
    activation: Activation = "relu",
    keep: Booleans | None = None,
    dropout_rate: float = 0.0,
) -> tuple[Array, Pullback]:
    r"""Transform each token by itself: a linear layer, an activation, and a linear layer.

    Parameters
    ----------
    x : array, shape (..., model_dim)
        Tokens.
    w_expand : array, shape (hidden_dim, model_dim)
        First layer.
    w_reduce : array, shape (model_dim, hidden_dim)
        Second layer.
    b_expand : array or None, shape (hidden_dim), optional
        Bias of the first layer.
    b_reduce : array or None, shape (model_dim), optional
        Bias of the second layer.
    activation : {"relu", "gelu"}, optional
        What stands between the layers; gelu is the exact one.
    keep : bool array or None, broadcastable to (..., hidden_dim), optional
        False where dropout drops a number after the activation.
    dropout_rate : probability, optional
        The probability with which `keep` was drawn False.

    Returns
    -------
    array, shape (..., model_dim)
        Transformed tokens.

    Notes
    -----
    .. math::

        h = W_1 x + b_1, \quad y = W_2\, \phi(h) + b_2, \qquad
        \bar W_2 = \sum \bar y\, \phi(h)^\top, \quad \bar h = \phi'(h) \odot W_2^\top \bar y, \quad
        \bar W_1 = \sum \bar h\, x^\top, \quad \bar x = W_1^\top \bar h

    References
    ----------
    .. [1] Vaswani et al., "Attention Is All You Need", NeurIPS 2017, section 3.3. arXiv:1706.03762.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.feed_forward(np.array([2.0]), np.array([[1.0], [-1.0]]), np.array([[3.0, 5.0]]))
    array([6.])
    """
    expanded, expand_pullback = linear.vjp(x, w_expand, b_expand)
    activated, activation_pullback = relu.vjp(expanded) if activation == "relu" else gelu.vjp(expanded)
    kept, dropout_pullback = dropout.vjp(activated, keep=keep, rate=dropout_rate)
    output, reduce_pullback = linear.vjp(kept, w_reduce, b_reduce)

    def pullback(dy: Array) -> Grads:
        d_reduce = reduce_pullback(dy)
        d_activated = dropout_pullback(d_reduce["x"])["x"]
        d_expand = expand_pullback(activation_pullback(d_activated)["x"])
        return {
            "x": d_expand["x"],
            "w_expand": d_expand["weight"],
            "w_reduce": d_reduce["weight"],
            "b_expand": d_expand.get("bias"),
            "b_reduce": d_reduce.get("bias"),
        }

    return output, pullback
