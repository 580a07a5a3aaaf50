"""The non-local block: every position of a sequence, image or video is compared with all others."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

from refattn._core import Array, BadCall, Grads, Pullback, Random, Sample, mechanism
from refattn.attention.spatial.pairs import COMPARED, Pair, refuse
from refattn.primitives.arithmetic import add
from refattn.primitives.linear import linear
from refattn.primitives.max_pooling import max_pool1d, max_pool2d, max_pool3d

POOL: dict[int, Any] = {1: max_pool1d, 2: max_pool2d, 3: max_pool3d}
"""By the number of spatial axes."""


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
    pooled = {**inputs, **embeddings, **biases, "pair": "embedded_gaussian", "pool": 2}
    yield Sample("pooled", {**pooled, "x": random.normal((2, 4, 5, 4))})
    yield Sample("pooled input", {**pooled, "x": random.normal((2, 4, 5, 4)), "pooled": "input"})
    yield Sample("pooled gaussian", {**inputs, "x": 0.5 * random.normal((2, 4, 5)), "pool": 2})
    yield Sample("pooled frames", {**pooled, "x": random.normal((1, 4, 2, 3, 4)), "pool": (1, 3, 2), "pair": "dot_product"})


def _bad_calls(random: Random) -> Iterator[BadCall]:
    inputs, embeddings = _inputs(random), _embeddings(random)
    yield BadCall("embeddings of gaussian", {**inputs, **embeddings}, ValueError, "w_theta is given, but pair is 'gaussian'")
    yield BadCall("no embeddings", {**inputs, "pair": "dot_product"}, ValueError, "w_theta is None, but pair is 'dot_product'")
    yield BadCall("no w_concat", {**inputs, **embeddings, "pair": "concatenation"}, ValueError, "w_concat is None, but pair is")
    yield BadCall("another pair", {**inputs, "pair": "cosine"}, ValueError, "pair is 'cosine'")
    yield BadCall("one size of two", {**inputs, "pool": (2,)}, ValueError, r"pool is \(2,\), but x has 2 spatial axes")
    yield BadCall(
        "four axes", {**inputs, "x": random.normal((1, 4, 2, 2, 2, 2)), "pool": 2}, ValueError, "pool is 2, but x has 4 spatial axes"
    )
    yield BadCall("large window", {**inputs, "pool": 3}, ValueError, "kernel_size reaches over 3 positions")
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
    pair: Pair = "embedded_gaussian",
    pool: int | tuple[int, ...] | None = None,
    pooled: Literal["embeddings", "input"] = "embeddings",
) -> tuple[Array, Pullback]:
    r"""Add to each position a weighted sum over all positions, or over a pooled map of them.

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
        other two by the number N of positions compared with.
    pool : positive int or tuple of positive int or None, optional
        Sub-sampling: what is compared with and read is the largest of each window of this size, one size for all axes or one for
        each. Windows do not overlap, and positions that fill none are left out.
    pooled : {"embeddings", "input"}, optional
        What is pooled: phi and g, or x before them.

    Returns
    -------
    array, shape (batch, channels, *positions)
        The input and what was attended.

    Notes
    -----
    Sizes: ``channels >= 1``.

    .. math::

        z_i = W_z \frac{1}{C} \sum_j f(x_i, \hat x_j)\, g(\hat x_j) + x_i, \quad f = e^{x_i^\top \hat x_j},\; e^{\theta_i^\top \phi_j},\;
        \theta_i^\top \phi_j,\; \operatorname{relu}(w_f^\top [\theta_i; \phi_j]), \quad C = \textstyle\sum_j f \text{ or } N, \qquad
        \bar g_j = \frac{1}{C} \sum_i f_{ij} \bar y_i, \quad \bar f_{ij} = \bar y_i^\top g_j / N

    Without sub-sampling, :math:`\hat x` is x. The paper's equation pools x, and so does the authors' code, over space but not over
    time; its text also tells of a max pooling after phi and g. The two differ, since a maximum does not commute with a matrix.
    "gaussian" has no phi: there, x itself is pooled where phi would be.

    The paper puts a batch normalization after :math:`W_z`, whose scale begins at 0: take ``batch_norm(non_local(...) - x) + x``.
    `pixel_self_attention` with ``scale=1.0`` is what "embedded_gaussian" adds. The attention of SAGAN (Zhang et al. 2019) is this
    too, times a learned number that begins at 0.

    References
    ----------
    .. [1] Wang et al., "Non-local Neural Networks", CVPR 2018, section 3; sub-sampling, section 3.3. arXiv:1711.07971.
    .. [2] Zhang et al., "Self-Attention Generative Adversarial Networks", ICML 2019. arXiv:1805.08318.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> x, one = np.array([[[0.0, 0.0, 3.0]]]), np.ones((1, 1))
    >>> refattn.non_local(x, one, one, w_theta=0 * one, w_phi=one)  # equal weights: the mean is added
    array([[[1., 1., 4.]]])
    """
    refuse(pair, {"w_theta": w_theta, "w_phi": w_phi, "b_theta": b_theta, "b_phi": b_phi, "w_concat": w_concat})
    before, after = (pool, None) if pooled == "input" else (None, pool)
    read, read_pullback = _pooled(x, before)
    theta, theta_pullback = _embedded(x, w_theta, b_theta)
    all_phi, embed_phi_pullback = _embedded(read, w_phi, b_phi)
    all_g, embed_g_pullback = _embedded(read, w_g, b_g)
    phi, phi_pullback = _pooled(all_phi, after)
    g, g_pullback = _pooled(all_g, after)
    y, compare_pullback = COMPARED[pair](_tokens(theta), _tokens(phi), _tokens(g), w_concat)
    attended, output_pullback = linear.vjp(y, w_output, b_output)
    output, residual_pullback = add.vjp(x, _map(attended, x.shape))

    def pullback(dz: Array) -> Grads:
        d_sum = residual_pullback(dz)
        d_output = output_pullback(_tokens(d_sum["b"]))
        d_pair = compare_pullback(d_output["x"])
        d_theta = theta_pullback(_map(d_pair["theta"], theta.shape))
        d_phi = embed_phi_pullback(phi_pullback(_map(d_pair["phi"], phi.shape))["x"])
        d_g = embed_g_pullback(g_pullback(_map(d_pair["g"], g.shape))["x"])
        parts = {"theta": d_theta, "phi": d_phi, "g": d_g, "output": d_output}
        return {
            "x": d_sum["a"] + d_theta["x"] + read_pullback(d_phi["x"] + d_g["x"])["x"],
            **{f"w_{name}": d.get("weight") for name, d in parts.items()},
            **{f"b_{name}": d.get("bias") for name, d in parts.items()},
            "w_concat": d_pair.get("w_concat"),
        }

    return output, pullback


def _tokens(x: Array) -> Array:
    """The positions of a map, one after another, with their channels last."""
    return x.reshape(*x.shape[:2], math.prod(x.shape[2:])).swapaxes(1, 2)


def _map(tokens: Array, shape: tuple[int, ...]) -> Array:
    """Undo `_tokens`."""
    return tokens.swapaxes(1, 2).reshape(shape)


def _embedded(x: Array, weight: Array | None, bias: Array | None) -> tuple[Array, Pullback]:
    """The channels of each position through a layer; None leaves them as they are."""
    if weight is None:
        return x, lambda d: {"x": d}
    y, linear_pullback = linear.vjp(_tokens(x), weight, bias)

    def pullback(d: Array) -> Grads:
        d_linear = linear_pullback(_tokens(d))
        return {**d_linear, "x": _map(d_linear["x"], x.shape)}

    return _map(y, (len(x), len(weight), *x.shape[2:])), pullback


def _pooled(x: Array, pool: int | tuple[int, ...] | None) -> tuple[Array, Pullback]:
    """The largest element of each window; None leaves the map as it is."""
    axes = x.ndim - 2
    if pool is None:
        return x, lambda d: {"x": d}
    if axes not in POOL or (isinstance(pool, tuple) and len(pool) != axes):
        raise ValueError(f"pool is {pool}, but x has {axes} spatial axes")
    return POOL[axes].vjp(x, kernel_size=pool)
