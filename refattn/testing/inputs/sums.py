"""Sums of thousands of terms that are exact in every accumulator wider than the format.

There is no bias, before which a kernel might round. The terms are small whole numbers, mostly of one sign, so that a total has more digits than a format of 8 or 11 bits: what adds up
in the format loses them, and what adds up in float32 is exact.
"""

from __future__ import annotations

from collections.abc import Iterator

from refattn._core import Array
from refattn._core.random import Random
from refattn.testing.inputs.case import Case

MANY = 2055
"""Terms: no multiple of a tile, and enough for a sum of ones to stall at 256 in bfloat16 and be wrong from 2,048 in float16."""
CONVOLUTIONS = {
    "conv1d": 1,
    "conv2d": 2,
    "conv3d": 3,
    "conv2d_im2col": 2,
    "conv2d_fft": 2,
    "conv_transpose1d": 1,
    "conv_transpose2d": 2,
    "conv_transpose3d": 3,
}


def whole(random: Random, shape: tuple[int, ...]) -> Array:
    """From -1 to 3, so that sums grow."""
    return random.integers(-1, 4, shape) * 1.0


def cases(name: str, random: Random) -> Iterator[Case]:
    """For a mechanism of this name; none for others."""
    if name == "linear":
        yield Case("many features", {"x": whole(random, (3, MANY)), "weight": whole(random, (4, MANY))})
        yield Case("many rows", {"x": whole(random, (MANY, 3)), "weight": whole(random, (4, 3)), "bias": random.normal(4)})
    elif name == "matmul":
        yield Case("many terms", {"a": whole(random, (3, MANY)), "b": whole(random, (MANY, 2))})
    elif name in CONVOLUTIONS:
        axes = CONVOLUTIONS[name]
        kernel, size = (2,) * axes, (3,) * axes
        channels = -(-MANY // 2**axes)
        shape = (channels, 2, *kernel) if "transpose" in name else (2, channels, *kernel)
        yield Case("many channels", {"x": whole(random, (1, channels, *size)), "weight": whole(random, shape)})
        long = (MANY, *(2,) * (axes - 1))
        # no window holds zeros alone: a transform errs as much there as elsewhere, but a sum of products not at all
        yield Case("many positions", {"x": random.integers(1, 4, (1, 2, *long)) * 1.0, "weight": whole(random, (2, 2, *(2,) * axes))})
    elif name in {"depthwise_conv2d", "pointwise_conv2d"}:
        channels, kernel = (3, (1, 45, 47)) if name == "depthwise_conv2d" else (MANY, (MANY, 1, 1))
        size = (46, 48) if name == "depthwise_conv2d" else (1, 2)
        count = channels if name == "depthwise_conv2d" else 2
        yield Case("many terms", {"x": whole(random, (1, channels, *size)), "weight": whole(random, (count, *kernel))})
    elif name in {"mean_over", "global_avg_pool"}:
        yield Case("many terms", {"x": whole(random, (2, 3, MANY)), **({"axes": (-1,)} if name == "mean_over" else {})})
