"""The non-local block: every position of a sequence, image or video is compared with all others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from refattn._core import Array, BadCall, Grads, Pullback, Random, Sample, mechanism
from refattn.attention.dot_product.scaled_dot_product import scaled_dot_product_attention
from refattn.primitives.activation import relu
from refattn.primitives.arithmetic import add, matmul
from refattn.primitives.linear import linear


def _inputs(random: Random) -> dict[str, Any]:
    return {"x": random.normal((2, 4, 2, 3)), "w_g": random.normal((3, 4)), "w_output": random.normal((4, 3)), "pair": "gaussian"}


def _embeddings(random: Random) -> dict[str, Any]:
    return {"w_theta": random.normal((3, 4)), "w_phi": random.normal((3, 4))}


def _samples(random: Random) -> Iterator[Sample]:
    inputs, embeddings = _inputs(random), _embeddings(random)
    biases = {"b_theta": random.normal(3), "b_phi": random.normal(3), "b_g": random.normal(3), "b_output": random.normal(4)}
    yield Sample("gaussian", {**inputs, "b_g": biases["b_g"], "x": 0.5 * inputs["x"]})
    yield Sample("embedded gaussian", {**inputs, **embeddings, "pair": "embedded_gaussian"})
    yield Sample("dot product", {**inputs, **embeddings, **biases, "pair": "dot_product"})
    yield Sample("concatenation", {**inputs, **embeddings, **biases, "w_concat": random.normal(6), "pair": "concatenation"})
    yield Sample("sequence", {**inputs, **embeddings, **biases, "x": random.normal((2, 4, 5)), "pair": "embedded_gaussian"})


def _bad_calls(random: Random) -> Iterator[BadCall]:
    inputs, embeddings = _inputs(random), _embeddings(random)
    yield BadCall("embeddings of gaussian", {**inputs, **embeddings}, ValueError, "w_theta is given, but pair is 'gaussian'")
    yield BadCall("no embeddings", {**inputs, "pair": "dot_product"}, ValueError, "w_theta is None, but pair is 'dot_product'")
    yield BadCall("no w_concat", {**inputs, **embeddings, "pair": "concatenation"}, ValueError, "w_concat is None, but pair is")
    yield BadCall("another pair", {**inputs, "pair": "cosine"}, ValueError, "pair is 'cosine'")
    yield BadCall("no channels", {**inputs, "x": random.normal((2, 0, 3)), "w_g": random.normal((3, 0))}, ValueError, "channels is")


def _benchmark(random: Random) -> dict[str, Any]:
    weights = {name: random.normal((32, 64)) / 8 for name in ("w_g", "w_theta", "w_phi")}
    return {"x": random.normal((1, 64, 32, 32)), "w_output": random.normal((64, 32)) / 8, **weights}


@mechanism(tags={"quadratic"}, samples=_samples, bad_calls=_bad_calls, benchmark=_benchmark)
def non_local(
    x: Array,
    w_g: Array,
    w_output: Array,
    w_theta: Array | None = None,
    w_phi: Array | None = None,
    w_concat: Array | None = None,
    b_g: Array | None = None,
    b_output: Array | None = None,
    b_theta: Array | None = None,
    b_phi: Array | None = None,
    *,
    pair: Literal["gaussian", "embedded_gaussian", "dot_product", "concatenation"] = "embedded_gaussian",
) -> tuple[Array, Pullback]:
    r"""Add to each position a weighted sum over all positions.

    Parameters
    ----------
    x : array, shape (batch, channels, *positions)
        Feature maps of a sequence, an image or a video.
    w_g : array, shape (inner_dim, channels)
        What a position gives: this and the following weights are convolutions with kernels of one tap.
    w_output : array, shape (channels, inner_dim)
        The paper's W_z, back to the channels.
    w_theta : array or None, shape (key_dim, channels), optional
        Embedding of the position that asks; needed by all pairs but "gaussian".
    w_phi : array or None, shape (key_dim, channels), optional
        Embedding of the position that is compared with.
    w_concat : array or None, shape (2 * key_dim), optional
        The paper's w_f, which "concatenation" needs: what it weighs of theta, then of phi.
    b_g : array or None, shape (inner_dim), optional
        Bias of g.
    b_output : array or None, shape (channels), optional
        Bias of the output.
    b_theta : array or None, shape (key_dim), optional
        Bias of theta.
    b_phi : array or None, shape (key_dim), optional
        Bias of phi; without effect in "embedded_gaussian".
    pair : {"gaussian", "embedded_gaussian", "dot_product", "concatenation"}, optional
        How two positions are compared. The Gaussians are normalised by their sum (a softmax of unscaled inner products), the
        other two by the number N of positions.

    Returns
    -------
    array, shape (batch, channels, *positions)
        The input and what was attended.

    Notes
    -----
    Sizes: ``channels >= 1``.

    .. math::

        z_i = W_z \frac{1}{C} \sum_j f(x_i, x_j)\, g(x_j) + x_i, \quad f = e^{x_i^\top x_j},\; e^{\theta_i^\top \phi_j},\;
        \theta_i^\top \phi_j,\; \operatorname{relu}(w_f^\top [\theta_i; \phi_j]), \quad C = \textstyle\sum_j f \text{ or } N, \qquad
        \bar g_j = \frac{1}{C} \sum_i f_{ij} \bar y_i, \quad \bar f_{ij} = \bar y_i^\top g_j / N

    References
    ----------
    .. [1] Wang et al., "Non-local Neural Networks", CVPR 2018, section 3. arXiv:1711.07971.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> x, one = np.array([[[0.0, 0.0, 3.0]]]), np.ones((1, 1))
    >>> refattn.non_local(x, one, one, w_theta=0 * one, w_phi=one)  # equal weights: the mean is added
    array([[[1., 1., 4.]]])
    """
    embeddings = {"w_theta": w_theta, "w_phi": w_phi, "b_theta": b_theta, "b_phi": b_phi, "w_concat": w_concat}
    _refuse(pair, embeddings)
    tokens = x.reshape(*x.shape[:2], -1 if x.size else 0).swapaxes(1, 2)
    count = tokens.shape[1]
    theta, theta_pullback = _embedded(tokens, w_theta, b_theta)
    phi, phi_pullback = _embedded(tokens, w_phi, b_phi)
    g, g_pullback = linear.vjp(tokens, w_g, b_g)
    y, compare_pullback = COMPARED[pair](theta, phi, g, w_concat)
    attended, output_pullback = linear.vjp(y, w_output, b_output)
    output, residual_pullback = add.vjp(x, attended.swapaxes(1, 2).reshape(x.shape))

    def pullback(dz: Array) -> Grads:
        d_sum = residual_pullback(dz)
        d_output = output_pullback(d_sum["b"].reshape(*x.shape[:2], count).swapaxes(1, 2))
        d_pair = compare_pullback(d_output["x"])
        d_theta, d_phi, d_g = theta_pullback(d_pair["theta"]), phi_pullback(d_pair["phi"]), g_pullback(d_pair["g"])
        d_tokens = d_theta["x"] + d_phi["x"] + d_g["x"]
        parts = {"theta": d_theta, "phi": d_phi, "g": d_g, "output": d_output}
        return {
            "x": d_sum["a"] + d_tokens.swapaxes(1, 2).reshape(x.shape),
            **{f"w_{name}": d.get("weight") for name, d in parts.items()},
            **{f"b_{name}": d.get("bias") for name, d in parts.items()},
            "w_concat": d_pair.get("w_concat"),
        }

    return output, pullback


def _refuse(pair: str, given: dict[str, Array | None]) -> None:
    """Weights that a pair needs and has not, or has and does not read."""
    needed = {"gaussian": set(), "concatenation": {"w_theta", "w_phi", "w_concat"}}.get(pair, {"w_theta", "w_phi"})
    read = needed if pair == "gaussian" else needed | {"b_theta", "b_phi"}
    for name, weight in given.items():
        if weight is None and name in needed:
            raise ValueError(f"{name} is None, but pair is {pair!r}")
        if weight is not None and name not in read:
            raise ValueError(f"{name} is given, but pair is {pair!r}")


def _embedded(tokens: Array, weight: Array | None, bias: Array | None) -> tuple[Array, Pullback]:
    return (tokens, lambda d: {"x": d}) if weight is None else linear.vjp(tokens, weight, bias)


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
