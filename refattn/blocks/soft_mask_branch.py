"""The branch of a residual attention module that makes the mask: down to where each position sees far, and up again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

from refattn._core import Array, BadCall, Grads, Pullback, Random, Sample, mechanism
from refattn.blocks.residual_draws import residual_unit_weights, soft_mask_weights
from refattn.blocks.residual_unit import activated_conv, residual_unit, residual_units
from refattn.blocks.residual_weights import ResidualUnitWeights, SoftMaskLevelWeights, SoftMaskWeights
from refattn.primitives.arithmetic import add
from refattn.primitives.max_pooling import max_pool2d
from refattn.primitives.resize import resize_bilinear

Pooling: TypeAlias = Literal["hanging", "padded"]


def _samples(random: Random) -> Iterator[Sample]:
    inputs = {"x": random.normal((1, 2, 6, 5)), "weights": soft_mask_weights(random, 2, 1, affine=False)}
    unit = residual_unit_weights(random, 2, 1, affine=False)
    fine, coarse = soft_mask_weights(random, 2, 1, levels=2).levels
    deep = inputs["weights"]._replace(levels=(fine, coarse._replace(down=(unit,), up=())))
    bare = SoftMaskLevelWeights((), ())
    yield Sample("one level", {**inputs, "align_corners": False})
    yield Sample("padded", {**inputs, "pooling": "padded", "eps": 0.25})
    yield Sample("two levels", {**inputs, "weights": deep, "x": random.normal((2, 2, 7, 6))})
    yield Sample("no skip", {**inputs, "weights": deep._replace(levels=(bare, bare)), "pooling": "padded"})
    yield Sample("no level", {**inputs, "weights": soft_mask_weights(random, 2, 1, levels=0)})


def _bad_calls(random: Random) -> Iterator[BadCall]:
    inputs = {"x": random.normal((1, 2, 6, 5)), "weights": soft_mask_weights(random, 2, 1, levels=2)}
    outer = inputs["weights"]._replace(levels=inputs["weights"].levels[:1])
    yield BadCall("skip of the last level", {**inputs, "weights": outer}, ValueError, "weights.levels has a skip at its last level")
    yield BadCall("small map", {**inputs, "x": random.normal((1, 2, 6, 3))}, ValueError, "kernel_size reaches over 3 positions")


def _benchmark(random: Random) -> dict[str, Any]:
    return {"x": random.normal((1, 32, 28, 28)), "weights": soft_mask_weights(random, 32, 8, levels=2)}


@mechanism(tags={"block"}, samples=_samples, bad_calls=_bad_calls, benchmark=_benchmark)
def soft_mask_branch(
    x: Array, weights: SoftMaskWeights, *, pooling: Pooling = "hanging", align_corners: bool = True, eps: float = 1e-5
) -> tuple[Array, Pullback]:
    r"""Look at a map from further and further away, and come back to its size: the logits of a mask for it.

    Parameters
    ----------
    x : array, shape (batch, channels, height, width)
        Feature maps.
    weights : SoftMaskWeights
        Weights of the levels, of which each halves the map, and of the two convolutions that end the branch.
    pooling : {"hanging", "padded"}, optional
        How windows of 3 by 3 that are 2 apart meet the border: the first begins at the first position and the last may hang over the
        end, as in the networks that the authors published; or with one position of padding around, as in PyTorch versions of them.
    align_corners : bool, optional
        How `resize_bilinear` enlarges; the authors' layer, and PyTorch versions of it, keep the corner pixels where they are.
    eps : non-negative float, optional
        Added to the variances.

    Returns
    -------
    array, shape (batch, channels, height, width)
        Logits: there is no sigmoid yet.

    Notes
    -----
    Sizes: ``height >= 1``, ``width >= 1``, ``kernel_height >= 1``, ``kernel_width >= 1``.

    With the levels :math:`1, \dots, L`, pooling P, interpolation I to the size before it, units D, U and S of each level, and
    the two convolutions F:

    .. math::

        y = F(h_1(x)), \quad h_l(x) = I\bigl(U_l(h_{l + 1}(d) + S_l(d))\bigr), \; d = D_l(P(x)), \quad h_L(x) = I(U_L(D_L(P(x))))

    .. math::

        \bar x = h_1^*(F^*(\bar y)), \quad h_l^*(\bar h) = P^*\bigl(D_l^*(h_{l + 1}^*(\bar u) + S_l^*(\bar u))\bigr), \;
        \bar u = U_l^*(I^*(\bar h))

    Stars are pullbacks. Each of the two convolutions has a norm and a relu before it, with the statistics of training, as all units
    have. No skip leads around the first pooling.

    References
    ----------
    .. [1] Wang et al., "Residual Attention Network for Image Classification", CVPR 2017, section 3.2. arXiv:1704.06904.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> one, norm = np.ones((1, 1, 1, 1)), refattn.BatchNormWeights(np.zeros(1), np.ones(1))
    >>> level = refattn.SoftMaskLevelWeights(down=(), up=())
    >>> weights = refattn.SoftMaskWeights((level,), norm, one, norm, one)
    >>> x = np.array([[[[1.0, 0.0, 0.0, 0.0, 5.0]] * 3]])
    >>> refattn.soft_mask_branch(x, weights, eps=0.0)[0, 0, 0]
    array([1., 2., 3., 4., 5.])
    """
    if weights.levels and weights.levels[-1].skip is not None:
        raise ValueError("weights.levels has a skip at its last level, which leads around nothing")
    pooled = {"padding": 1} if pooling == "padded" else {"ceil_mode": True}
    seen, hourglass_pullback = _hourglass(x, weights.levels, pooled, align_corners=align_corners, eps=eps)
    first, first_pullback = activated_conv(seen, weights.norm_first, weights.w_first, eps)
    logits, second_pullback = activated_conv(first, weights.norm_second, weights.w_second, eps)

    def pullback(dy: Array) -> Grads:
        d_second = second_pullback(dy)
        d_first = first_pullback(d_second["x"])
        d_seen = hourglass_pullback(d_first["x"])
        ends = (d_first["norm"], d_first["weight"], d_second["norm"], d_second["weight"])
        return {"x": d_seen["x"], "weights": SoftMaskWeights(d_seen["levels"], *ends)}

    return logits, pullback


def _hourglass(
    x: Array, levels: tuple[SoftMaskLevelWeights, ...], pooled: dict[str, Any], *, align_corners: bool, eps: float
) -> tuple[Array, Pullback]:
    """The map pooled, seen by the deeper levels and by the skip, and enlarged again; without levels, the map."""
    if not levels:
        return x, lambda dy: {"x": dy, "levels": ()}
    level = levels[0]
    small, pool_pullback = max_pool2d.vjp(x, kernel_size=3, stride=2, **pooled)
    down, down_pullback = residual_units(small, level.down, eps)
    deep, deep_pullback = _hourglass(down, levels[1:], pooled, align_corners=align_corners, eps=eps)
    joined, skip_pullback = _skipped(down, deep, level.skip, eps)
    up, up_pullback = residual_units(joined, level.up, eps)
    large, resize_pullback = resize_bilinear.vjp(up, output_size=x.shape[-2:], align_corners=align_corners)

    def pullback(dy: Array) -> Grads:
        d_up = up_pullback(resize_pullback(dy)["x"])
        d_skip = skip_pullback(d_up["x"])
        d_deep = deep_pullback(d_skip["deep"])
        d_down = down_pullback(d_deep["x"] + d_skip.get("x", 0))
        here = SoftMaskLevelWeights(d_down["layers"], d_up["layers"], d_skip.get("weights"))
        return {"x": pool_pullback(d_down["x"])["x"], "levels": (here, *d_deep["levels"])}

    return large, pullback


def _skipped(x: Array, deep: Array, skip: ResidualUnitWeights | None, eps: float) -> tuple[Array, Pullback]:
    """What the deeper levels made of `x`, and what one unit makes of it."""
    if skip is None:
        return deep, lambda dy: {"deep": dy}
    unit, unit_pullback = residual_unit.vjp(x, skip, eps=eps)
    total, add_pullback = add.vjp(deep, unit)

    def pullback(dy: Array) -> Grads:
        d_sum = add_pullback(dy)
        return {"deep": d_sum["a"], **unit_pullback(d_sum["b"])}

    return total, pullback
