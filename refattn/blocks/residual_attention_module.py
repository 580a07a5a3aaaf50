"""The attention module of a residual attention network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from refattn._core import Array, BadCall, Grads, Pullback, Random, Sample, mechanism
from refattn.attention.spatial.residual_attention import Constraint, residual_attention
from refattn.blocks.residual_draws import residual_attention_weights
from refattn.blocks.residual_unit import residual_units
from refattn.blocks.residual_weights import ResidualAttentionWeights
from refattn.blocks.soft_mask_branch import Pooling, soft_mask_branch


def _samples(random: Random) -> Iterator[Sample]:
    inputs = {"x": random.normal((1, 2, 5, 6)), "weights": residual_attention_weights(random, 2, 1, units=(0, 1, 0), affine=False)}
    yield Sample("trunk", {**inputs, "pooling": "padded", "align_corners": False})
    yield Sample("channel", {**inputs, "constraint": "channel", "eps": 0.25})
    full = residual_attention_weights(random, 2, 1, levels=2, units=(1, 1, 1))
    levels = (full.mask.levels[0], full.mask.levels[1]._replace(down=(), up=()))
    yield Sample("two levels", {"x": random.normal((1, 2, 7, 6)), "weights": full._replace(mask=full.mask._replace(levels=levels))})


def _bad_calls(random: Random) -> Iterator[BadCall]:
    inputs = {"x": random.normal((1, 2, 5, 6)), "weights": residual_attention_weights(random, 2, 1)}
    yield BadCall("other channels", {**inputs, "x": random.normal((1, 3, 5, 6))}, ValueError, "channels is")
    yield BadCall("small map", {**inputs, "x": random.normal((1, 2, 2, 6))}, ValueError, "kernel_size reaches over 3 positions")


def _benchmark(random: Random) -> dict[str, Any]:
    return {"x": random.normal((1, 32, 28, 28)), "weights": residual_attention_weights(random, 32, 8, levels=2)}


@mechanism(tags={"block", "gate"}, samples=_samples, bad_calls=_bad_calls, benchmark=_benchmark)
def residual_attention_module(
    x: Array,
    weights: ResidualAttentionWeights,
    *,
    constraint: Constraint = "mixed",
    pooling: Pooling = "hanging",
    align_corners: bool = True,
    eps: float = 1e-5,
) -> tuple[Array, Pullback]:
    r"""Weigh the features of a trunk by a soft mask that has seen the map from far away.

    Parameters
    ----------
    x : array, shape (batch, channels, height, width)
        Feature maps.
    weights : ResidualAttentionWeights
        Weights of all units; the paper has 1 before, 2 in the trunk, 1 in each place of the mask, and 1 after.
    constraint : {"mixed", "channel", "spatial"}, optional
        How the mask is made of its logits: see `residual_attention`.
    pooling : {"hanging", "padded"}, optional
        How the windows of the mask's pooling meet the border: see `soft_mask_branch`.
    align_corners : bool, optional
        How the mask is enlarged: see `resize_bilinear`.
    eps : non-negative float, optional
        Added to the variances, and to what stands under the root of a constraint.

    Returns
    -------
    array, shape (batch, channels, height, width)
        Feature maps.

    Notes
    -----
    Sizes: ``channels >= 1``, ``height >= 1``, ``width >= 1``, ``kernel_height >= 1``, ``kernel_width >= 1``.

    .. math::

        z = B(x), \quad H = (1 + M(z)) \odot T(z), \quad y = A(H), \qquad
        \bar H = A^*(\bar y), \quad \bar z = T^*\bigl((1 + M) \odot \bar H\bigr) + M^*(T \odot \bar H), \quad \bar x = B^*(\bar z)

    with units B before, T in the trunk and A after, the mask M of `soft_mask_branch` and `residual_attention`, and pullbacks as
    stars. All norms have the statistics of training.

    References
    ----------
    .. [1] Wang et al., "Residual Attention Network for Image Classification", CVPR 2017, section 3. arXiv:1704.06904.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> zero, norm = np.zeros((1, 1, 1, 1)), refattn.BatchNormWeights(np.zeros(1), np.ones(1))
    >>> mask = refattn.SoftMaskWeights((), norm, zero, norm, zero)  # logits of 0
    >>> weights = refattn.ResidualAttentionWeights(before=(), trunk=(), mask=mask, after=())
    >>> refattn.residual_attention_module(np.array([[[[2.0, 4.0]]]]), weights)
    array([[[[3., 6.]]]])
    """
    entered, before_pullback = residual_units(x, weights.before, eps)
    trunk, trunk_pullback = residual_units(entered, weights.trunk, eps)
    logits, mask_pullback = soft_mask_branch.vjp(entered, weights.mask, pooling=pooling, align_corners=align_corners, eps=eps)
    gated, gate_pullback = residual_attention.vjp(trunk, logits, constraint=constraint, eps=eps)
    output, after_pullback = residual_units(gated, weights.after, eps)

    def pullback(dy: Array) -> Grads:
        d_after = after_pullback(dy)
        d_gate = gate_pullback(d_after["x"])
        d_mask, d_trunk = mask_pullback(d_gate["logits"]), trunk_pullback(d_gate["trunk"])
        d_before = before_pullback(d_trunk["x"] + d_mask["x"])
        d_weights = ResidualAttentionWeights(d_before["layers"], d_trunk["layers"], d_mask["weights"], d_after["layers"])
        return {"x": d_before["x"], "weights": d_weights}

    return output, pullback
