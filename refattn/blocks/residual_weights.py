"""The weights of residual units, and of the attention module that is made of them.

Convolutions have no bias: the normalization behind each has a shift.
"""

from __future__ import annotations

from typing import NamedTuple

from refattn._core import Array


class BatchNormWeights(NamedTuple):
    """Weights and statistics of `batch_norm`.

    Attributes
    ----------
    running_mean : array, shape (channels)
        Mean of each channel in training.
    running_var : array, shape (channels)
        Variance of each channel in training.
    scale : array or None, shape (channels)
        Learned scale; None is 1.
    shift : array or None, shape (channels)
        Learned shift; None is 0.
    """

    running_mean: Array
    running_var: Array
    scale: Array | None = None
    shift: Array | None = None


class ReducedNormWeights(NamedTuple):
    """Weights and statistics of `batch_norm` inside a bottleneck.

    Attributes
    ----------
    running_mean : array, shape (reduced)
        Mean of each channel in training.
    running_var : array, shape (reduced)
        Variance of each channel in training.
    scale : array or None, shape (reduced)
        Learned scale; None is 1.
    shift : array or None, shape (reduced)
        Learned shift; None is 0.
    """

    running_mean: Array
    running_var: Array
    scale: Array | None = None
    shift: Array | None = None


class ResidualUnitWeights(NamedTuple):
    """Weights of `residual_unit`.

    Attributes
    ----------
    norm_reduce : BatchNormWeights
        Of the norm before the first convolution.
    w_reduce : array, shape (reduced, channels, 1, 1)
        First convolution, to fewer channels.
    norm_spatial : ReducedNormWeights
        Of the norm before the second convolution.
    w_spatial : array, shape (reduced, reduced, kernel_height, kernel_width)
        Second convolution, over neighbours; the paper's is 3 by 3.
    norm_expand : ReducedNormWeights
        Of the norm before the third convolution.
    w_expand : array, shape (channels, reduced, 1, 1)
        Third convolution, back to the channels.
    """

    norm_reduce: BatchNormWeights
    w_reduce: Array
    norm_spatial: ReducedNormWeights
    w_spatial: Array
    norm_expand: ReducedNormWeights
    w_expand: Array


class SoftMaskLevelWeights(NamedTuple):
    """Weights of one level of `soft_mask_branch`: between one pooling and the next, and on the way back.

    Attributes
    ----------
    down : tuple of ResidualUnitWeights
        Of the units after the pooling.
    up : tuple of ResidualUnitWeights
        Of the units before the interpolation; at the last level they follow on those of `down`.
    skip : ResidualUnitWeights or None
        Of the unit that leads around the deeper levels; None where there are none, or where nothing leads around them.
    """

    down: tuple[ResidualUnitWeights, ...]
    up: tuple[ResidualUnitWeights, ...]
    skip: ResidualUnitWeights | None = None


class SoftMaskWeights(NamedTuple):
    """Weights of `soft_mask_branch`.

    Attributes
    ----------
    levels : tuple of SoftMaskLevelWeights
        Of each level, the finest first.
    norm_first : BatchNormWeights
        Of the norm before the first of the two convolutions that end the branch.
    w_first : array, shape (channels, channels, 1, 1)
        The first of them.
    norm_second : BatchNormWeights
        Of the norm before the second.
    w_second : array, shape (channels, channels, 1, 1)
        The second.
    """

    levels: tuple[SoftMaskLevelWeights, ...]
    norm_first: BatchNormWeights
    w_first: Array
    norm_second: BatchNormWeights
    w_second: Array


class ResidualAttentionWeights(NamedTuple):
    """Weights of `residual_attention_module`.

    Attributes
    ----------
    before : tuple of ResidualUnitWeights
        Of the units before the branches part: p of them in the paper.
    trunk : tuple of ResidualUnitWeights
        Of the units of the trunk: t in the paper.
    mask : SoftMaskWeights
        Of the mask.
    after : tuple of ResidualUnitWeights
        Of the units after the branches meet: p again.
    """

    before: tuple[ResidualUnitWeights, ...]
    trunk: tuple[ResidualUnitWeights, ...]
    mask: SoftMaskWeights
    after: tuple[ResidualUnitWeights, ...]
