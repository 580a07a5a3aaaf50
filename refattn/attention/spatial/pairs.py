"""How a non-local block compares two positions: the four functions of a pair, each with what it divides by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

import numpy as np

from refattn._core import Array, Grads, Pullback, Random, Sample, mechanism
from refattn.attention.dot_product.scaled_dot_product import scaled_dot_product_attention
from refattn.primitives.activation import relu
from refattn.primitives.arithmetic import add, matmul
from refattn.primitives.linear import linear

Pair: TypeAlias = Literal["gaussian", "embedded_gaussian", "dot_product", "concatenation"]


def refuse(pair: Pair, given: dict[str, Array | None]) -> None:
    """Weights that a pair needs and has not, or has and does not read."""
    needed = {"gaussian": set(), "concatenation": {"w_theta", "w_phi", "w_concat"}}.get(pair, {"w_theta", "w_phi"})
    read = needed if pair == "gaussian" else needed | {"b_theta", "b_phi"}
    for name, weight in given.items():
        if weight is None and name in needed:
            raise ValueError(f"{name} is None, but pair is {pair!r}")
        if weight is not None and name not in read:
            raise ValueError(f"{name} is given, but pair is {pair!r}")


def _by_softmax(theta: Array, phi: Array, g: Array, w_concat: Array | None) -> tuple[Array, Pullback]:
    """A Gaussian divided by its sum: attention with one head and no scale."""
    output, attention_pullback = scaled_dot_product_attention.vjp(*(t[:, None] for t in (theta, phi, g)), scale=1.0)

    def pullback(dy: Array) -> Grads:
        d = attention_pullback(dy[:, None])
        return {"theta": d["query"][:, 0], "phi": d["key"][:, 0], "g": d["value"][:, 0]}

    return output[:, 0], pullback


def _by_dot_product(theta: Array, phi: Array, g: Array, w_concat: Array | None) -> tuple[Array, Pullback]:
    scores, scores_pullback = matmul.vjp(theta, phi.swapaxes(1, 2))
    output, mean_pullback = _mean(scores, g)

    def pullback(dy: Array) -> Grads:
        d = mean_pullback(dy)
        d_scores = scores_pullback(d["scores"])
        return {"theta": d_scores["a"], "phi": d_scores["b"].swapaxes(1, 2), "g": d["g"]}

    return output, pullback


def _by_concatenation(theta: Array, phi: Array, g: Array, w_concat: Array) -> tuple[Array, Pullback]:
    """The weighted concatenation of two positions is a sum: of what each half of the weights makes of either."""
    width = theta.shape[-1]
    left, left_pullback = linear.vjp(theta, w_concat[None, :width])
    right, right_pullback = linear.vjp(phi, w_concat[None, width:])
    sums, sums_pullback = add.vjp(left, right.swapaxes(1, 2))
    scores, relu_pullback = relu.vjp(sums)
    output, mean_pullback = _mean(scores, g)

    def pullback(dy: Array) -> Grads:
        d = mean_pullback(dy)
        d_sums = sums_pullback(relu_pullback(d["scores"])["x"])
        d_left, d_right = left_pullback(d_sums["a"]), right_pullback(d_sums["b"].swapaxes(1, 2))
        d_concat = np.concatenate([d_left["weight"][0], d_right["weight"][0]])
        return {"theta": d_left["x"], "phi": d_right["x"], "g": d["g"], "w_concat": d_concat}

    return output, pullback


def _mean_samples(random: Random) -> Iterator[Sample]:
    yield Sample("plain", {"scores": random.normal((2, 3, 4))})
    yield Sample("one key", {"scores": random.normal((3, 1))})


@mechanism(tags={"weights"}, samples=_mean_samples)
def mean_weights(scores: Array) -> tuple[Array, Pullback]:
    r"""Scores divided by the number of keys: weights that need not be positive, nor sum to 1.

    Parameters
    ----------
    scores : array, shape (..., key_len)
        Scores.

    Returns
    -------
    array, shape (..., key_len)
        Weights.

    Notes
    -----
    With N keys,

    .. math::

        p_j = s_j / N, \qquad \bar s_j = \bar p_j / N

    References
    ----------
    .. [1] Wang et al., "Non-local Neural Networks", CVPR 2018, section 3. arXiv:1711.07971.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.mean_weights(np.array([3.0, -1.0]))
    array([ 1.5, -0.5])
    """
    count = max(scores.shape[-1], 1)
    return scores / count, lambda dy: {"scores": dy / count}


def _mean(scores: Array, g: Array) -> tuple[Array, Pullback]:
    """What the positions give, weighted by their scores divided by the number of positions."""
    weights, scale_pullback = mean_weights.vjp(scores)
    output, product_pullback = matmul.vjp(weights, g)

    def pullback(dy: Array) -> Grads:
        d = product_pullback(dy)
        return {"scores": scale_pullback(d["a"])["scores"], "g": d["b"]}

    return output, pullback


COMPARED: dict[str, Any] = {
    "gaussian": _by_softmax,
    "embedded_gaussian": _by_softmax,
    "dot_product": _by_dot_product,
    "concatenation": _by_concatenation,
}
