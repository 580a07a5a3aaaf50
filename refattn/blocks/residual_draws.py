"""Records of random weights of residual units and what is made of them, for samples and benchmarks."""

from __future__ import annotations

from typing import Any

from refattn._core import Random
from refattn.blocks.residual_weights import (
    BatchNormWeights,
    ReducedNormWeights,
    ResidualAttentionWeights,
    ResidualUnitWeights,
    SoftMaskLevelWeights,
    SoftMaskWeights,
)


def batch_norm_weights(random: Random, channels: int, record: Any = BatchNormWeights, *, affine: bool = True) -> Any:
    """Means below those of the inputs, so that few relus are closed; with a scale and a shift or without."""
    learned = (1 + random.normal(channels) / 4, random.normal(channels) / 4) if affine else ()
    return record(random.normal(channels) / 4 - 0.75, random.uniform(0.5, 2.0, channels), *learned)


def residual_unit_weights(random: Random, channels: int, reduced: int, *, affine: bool = True) -> ResidualUnitWeights:
    """A bottleneck with a kernel of 3 by 3."""
    return ResidualUnitWeights(
        batch_norm_weights(random, channels, affine=affine),
        random.normal((reduced, channels, 1, 1)) / channels**0.5,
        batch_norm_weights(random, reduced, ReducedNormWeights, affine=affine),
        random.normal((reduced, reduced, 3, 3)) / (9 * reduced) ** 0.5,
        batch_norm_weights(random, reduced, ReducedNormWeights, affine=affine),
        random.normal((channels, reduced, 1, 1)) / reduced**0.5,
    )


def soft_mask_weights(random: Random, channels: int, reduced: int, *, levels: int = 1, affine: bool = True) -> SoftMaskWeights:
    """So many levels with one unit in each place, and two in a row at the last."""

    def unit() -> ResidualUnitWeights:
        return residual_unit_weights(random, channels, reduced, affine=affine)

    each = tuple(SoftMaskLevelWeights((unit(),), (unit(),), unit() if i + 1 < levels else None) for i in range(levels))
    w_first, w_second = (random.normal((channels, channels, 1, 1)) / channels**0.5 for _ in range(2))
    norms = [batch_norm_weights(random, channels, affine=affine) for _ in range(2)]
    return SoftMaskWeights(each, norms[0], w_first, norms[1], w_second)


def residual_attention_weights(
    random: Random, channels: int, reduced: int, *, levels: int = 1, units: tuple[int, int, int] = (1, 2, 1), affine: bool = True
) -> ResidualAttentionWeights:
    """A module with so many units before, in the trunk and after; by default as many as the paper's."""
    before, trunk, after = (tuple(residual_unit_weights(random, channels, reduced, affine=affine) for _ in range(n)) for n in units)
    return ResidualAttentionWeights(before, trunk, soft_mask_weights(random, channels, reduced, levels=levels, affine=affine), after)
