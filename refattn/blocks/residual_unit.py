"""A residual unit with its activations before its convolutions."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, TypeVar

from refattn._core import Array, BadCall, Grads, Pullback, Random, Sample, mechanism
from refattn._core.tree import pick
from refattn.blocks.residual_draws import residual_unit_weights
from refattn.blocks.residual_weights import BatchNormWeights, ReducedNormWeights, ResidualUnitWeights
from refattn.blocks.stacks import stack
from refattn.convolution.conv2d import conv2d
from refattn.primitives.activation import relu
from refattn.primitives.arithmetic import add
from refattn.primitives.normalization import batch_norm

N = TypeVar("N", BatchNormWeights, ReducedNormWeights)


def _samples(random: Random) -> Iterator[Sample]:
    inputs = {"x": random.normal((2, 4, 3, 4)), "weights": residual_unit_weights(random, 4, 2)}
    yield Sample("plain", inputs)
    yield Sample("eps", {**inputs, "weights": residual_unit_weights(random, 4, 2, affine=False), "eps": 0.25})
    even = inputs["weights"]._replace(w_spatial=random.normal((2, 2, 2, 4)) / 4)
    yield Sample("even kernel", {**inputs, "weights": even})


def _bad_calls(random: Random) -> Iterator[BadCall]:
    inputs = {"x": random.normal((2, 4, 3, 4)), "weights": residual_unit_weights(random, 4, 2)}
    wide = inputs["weights"]._replace(w_expand=random.normal((5, 2, 1, 1)))
    yield BadCall("other channels", {**inputs, "weights": wide}, ValueError, "channels is 5 in weights.w_expand")
    yield BadCall("no weights", {**inputs, "weights": None}, TypeError, "weights is None, but must be ResidualUnitWeights")


def _benchmark(random: Random) -> dict[str, Any]:
    return {"x": random.normal((2, 64, 28, 28)), "weights": residual_unit_weights(random, 64, 16)}


@mechanism(tags={"block"}, samples=_samples, bad_calls=_bad_calls, benchmark=_benchmark)
def residual_unit(x: Array, weights: ResidualUnitWeights, *, eps: float = 1e-5) -> tuple[Array, Pullback]:
    r"""Add to a map what three convolutions make of it: to fewer channels, over neighbours, and back.

    The second one keeps the size as ``padding="same"`` of `conv2d` does.

    Parameters
    ----------
    x : array, shape (batch, channels, height, width)
        Feature maps.
    weights : ResidualUnitWeights
        Weights of convolutions and norms.
    eps : non-negative float, optional
        Added to the variances.

    Returns
    -------
    array, shape (batch, channels, height, width)
        Feature maps.

    Notes
    -----
    Sizes: ``height >= 1``, ``width >= 1``, ``kernel_height >= 1``, ``kernel_width >= 1``.

    The norms have the statistics of training (`batch_norm`): this is the unit at inference, in which one example does not change
    another. The statistics are arguments and have gradients.

    .. math::

        y = x + W_3 * \operatorname{relu}(N_3(W_2 * \operatorname{relu}(N_2(W_1 * \operatorname{relu}(N_1(x)))))), \qquad
        \bar x = \bar y + F^*(\bar y)

    where F is all that is added to x, and the star its pullback.

    References
    ----------
    .. [1] He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016: the activations before the weights.
       arXiv:1603.05027.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> one, kernel = np.ones((1, 1, 1, 1)), np.ones((1, 1, 1, 3))
    >>> norm = refattn.BatchNormWeights(np.zeros(1), np.ones(1))
    >>> inner = refattn.ReducedNormWeights(*norm)
    >>> weights = refattn.ResidualUnitWeights(norm, one, inner, kernel, inner, one)
    >>> refattn.residual_unit(np.array([[[[-1.0, 0.0, 2.0]]]]), weights, eps=0.0)
    array([[[[-1.,  2.,  4.]]]])
    """
    reduced, reduce_pullback = activated_conv(x, weights.norm_reduce, weights.w_reduce, eps)
    mixed, spatial_pullback = activated_conv(reduced, weights.norm_spatial, weights.w_spatial, eps)
    expanded, expand_pullback = activated_conv(mixed, weights.norm_expand, weights.w_expand, eps)
    output, add_pullback = add.vjp(x, expanded)

    def pullback(dy: Array) -> Grads:
        d_sum = add_pullback(dy)
        d_expand = expand_pullback(d_sum["b"])
        d_spatial = spatial_pullback(d_expand["x"])
        d_reduce = reduce_pullback(d_spatial["x"])
        parts = [d[name] for d in (d_reduce, d_spatial, d_expand) for name in ("norm", "weight")]
        return {"x": d_sum["a"] + d_reduce["x"], "weights": ResidualUnitWeights(*parts)}

    return output, pullback


def activated_conv(x: Array, norm: N, weight: Array, eps: float) -> tuple[Array, Pullback]:
    """Norm, relu, and a convolution that keeps the size."""
    normal, norm_pullback = batch_norm.vjp(x, *norm, eps=eps)
    active, relu_pullback = relu.vjp(normal)
    y, conv_pullback = conv2d.vjp(active, weight, padding="same")

    def pullback(dy: Array) -> Grads:
        d_conv = conv_pullback(dy)
        d_norm = norm_pullback(relu_pullback(d_conv["x"])["x"])
        return {"x": d_norm["x"], "norm": pick(type(norm), d_norm), "weight": d_conv["weight"]}

    return y, pullback


def residual_units(x: Array, units: tuple[ResidualUnitWeights, ...], eps: float) -> tuple[Array, Pullback]:
    """One unit after another; none leaves the map as it is."""
    return stack(x, [functools.partial(residual_unit.vjp, weights=u, eps=eps) for u in units], None, eps)
