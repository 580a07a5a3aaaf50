"""Inputs of convolutions: sizes and options at which loops, tiles and transforms have their ends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from refattn._core.random import Random
from refattn.testing.inputs.case import Case

DIRECT = {"conv1d": 1, "conv2d": 2, "conv3d": 3, "conv2d_im2col": 2}
TRANSPOSED = {"conv_transpose1d": 1, "conv_transpose2d": 2, "conv_transpose3d": 3}
DEFORMABLE = {"deform_conv2d": False, "modulated_deform_conv2d": True}
"""Whether samples have weights of their own."""

Geometry = dict[str, Any]


def cases(name: str, random: Random, *, quick: bool) -> Iterator[Case]:
    """For a mechanism of this name; none for others."""
    if name in DIRECT:
        yield from _direct(random, DIRECT[name])
        if not quick:
            yield from _magnitudes(random, DIRECT[name])
    elif name in TRANSPOSED:
        yield from _transposed(random, TRANSPOSED[name])
    elif name == "depthwise_conv2d":
        yield from _depthwise(random)
    elif name == "causal_conv1d":
        yield from _causal(random)
    elif name in DEFORMABLE:
        yield from _deformable(random, modulated=DEFORMABLE[name])


def _call(random: Random, batch: int, groups: int, channels: tuple[int, int], size: Any, kernel: Any, **options: Any) -> Geometry:
    """Input and kernel with these many channels in and out of each group."""
    into, out = channels
    given = {"x": random.normal((batch, groups * into, *size)), "weight": random.normal((groups * out, into, *kernel))}
    return {**given, **({"groups": groups} if groups > 1 else {}), **options}


def _direct(random: Random, axes: int) -> Iterator[Case]:
    """Sizes are odd, and one more or less than those of tiles."""
    odd, three = (17, 9, 5)[:axes], (3,) * axes
    wide = (*(1,) * (axes - 1), 5)
    cut = tuple((k % 3, (k + 1) % 3) for k in range(axes))
    yield Case("odd sizes", _call(random, 3, 1, (5, 7), odd, three, bias=random.normal(7)))
    yield Case("stride beyond the kernel", _call(random, 2, 1, (3, 5), odd, (2,) * axes, stride=(4, 3, 3)[:axes]))
    yield Case(
        "dilated further than the kernel",
        _call(random, 2, 1, (3, 2), odd, (2,) * axes, dilation=(5, 3, 2)[:axes], padding=(2, 1, 1)[:axes]),
    )
    yield Case("dilated with a stride", _call(random, 1, 1, (2, 3), odd, three, dilation=2, stride=2, padding=2))
    yield Case("3 groups of 7 channels", _call(random, 2, 3, (7, 5), odd, three, padding=1))
    yield Case("as many groups as channels", _call(random, 2, 13, (1, 2), odd, three, padding=1))
    yield Case("kernel along the last axis", _call(random, 2, 1, (3, 4), odd, wide, padding=(*(0,) * (axes - 1), 2)))
    yield Case("kernel along the first axis", _call(random, 2, 1, (3, 4), odd, wide[::-1]))
    yield Case("more padding on one side", _call(random, 2, 1, (3, 4), odd, three, padding=cut))
    yield Case("more padding than kernel", _call(random, 1, 1, (2, 2), odd, (2,) * axes, padding=3))
    yield Case("one position", _call(random, 2, 1, (3, 4), (1,) * axes, (1,) * axes, bias=random.normal(4)))
    yield Case("kernel as large as the input", _call(random, 2, 1, (3, 4), odd, odd))
    thin = (*(1,) * (axes - 2), 8, 4)[-axes:]
    yield Case("one output along the last axis", _call(random, 1, 1, (4, 5), thin, (*(1,) * (axes - 1), 3), stride=(*(1,) * (axes - 1), 2)))
    yield Case("one position between padding", _call(random, 1, 1, (3, 2), (1, 4, 8)[:axes], (2,) * axes, padding=(1, 0, 0)[:axes]))
    yield Case("a tap that meets padding alone", _call(random, 1, 2, (3, 3), (5, 5, 2)[-axes:], (2,) * axes, stride=3, padding=1))
    for size in (15, 16, 17) if axes == 1 else ():
        yield Case(f"tile of 16 at {size} outputs", _call(random, 1, 1, (17, 33), (size + 2,), (3,)))
    yield Case("3 channels to 33", _call(random, 1, 1, (3, 33), odd, three, stride=2, padding=1))


def _magnitudes(random: Random, axes: int) -> Iterator[Case]:
    """One number among many is enormous, or each tap cancels another.

    A convolution that is computed as such gives an output that does not see the large number the error of its own terms;
    Winograd's and Fourier's transforms mix it into all outputs of a tile, or of the image. In a format as coarse as its
    accumulator they fail here: that is what they lose.
    """
    size, three = (18, 18, 6)[:axes], (3,) * axes
    spike = _call(random, 1, 1, (2, 2), size, three)
    x = spike["x"].copy()
    x[(0, 0, *(n // 2 for n in size))] = 2.0**20
    yield Case("one enormous number", {**spike, "x": x})
    edges = np.where(random.booleans(0.5, (2, 2, *three)), 1.0, -1.0)
    yield Case("taps that cancel", {"x": 1024 + random.integers(0, 4, (1, 2, *size)) * 1.0, "weight": edges})


def _transposed(random: Random, axes: int) -> Iterator[Case]:
    """Overlaps, gaps, and cut edges."""
    odd, three = (9, 5, 3)[:axes], (3,) * axes

    def call(groups: int, channels: tuple[int, int], kernel: Any, **options: Any) -> Geometry:
        into, out = channels
        given = {"x": random.normal((2, groups * into, *odd)), "weight": random.normal((groups * into, out, *kernel))}
        return {**given, **({"groups": groups} if groups > 1 else {}), **options}

    yield Case("odd sizes", call(1, (5, 7), three, bias=random.normal(7)))
    yield Case("stride beyond the kernel", call(1, (3, 5), (2,) * axes, stride=(4, 3, 3)[:axes]))
    yield Case("much output padding", call(1, (3, 2), three, stride=3, output_padding=(2, 1, 1)[:axes]))
    yield Case("3 groups of 7 channels", call(3, (7, 5), three, stride=2, padding=1))
    yield Case("dilated further than the kernel", call(1, (3, 2), (2,) * axes, dilation=3, padding=1))
    yield Case("kernel along the last axis", call(1, (3, 4), (*(1,) * (axes - 1), 5), padding=(*(0,) * (axes - 1), 2)))


def _depthwise(random: Random) -> Iterator[Case]:
    """More channels than a register has numbers, and several outputs of each."""

    def call(channels: int, multiplier: int, size: Any, kernel: Any, **options: Any) -> Geometry:
        given = _call(random, 2, channels, (1, multiplier), size, kernel, bias=random.normal(channels * multiplier), **options)
        return {n: x for n, x in given.items() if n != "groups"}

    yield Case("19 channels", call(19, 1, (17, 9), (3, 3), padding=((0, 1), (2, 1))))
    yield Case("19 channels, dilated with a stride", call(19, 1, (9, 11), (3, 2), stride=2, dilation=(1, 2), padding=1))
    yield Case("3 outputs of each of 5 channels", call(5, 3, (9, 19), (2, 3), padding=((1, 0), (0, 2))))


def _causal(random: Random) -> Iterator[Case]:
    """More channels than a register has numbers, and a state that is longer than a sequence."""
    for name, length, taps in (("19 channels", 37, 4), ("state longer than the sequence", 3, 7)):
        given = {"x": random.normal((3, 19, length)), "weight": random.normal((19, taps)), "bias": random.normal(19)}
        yield Case(name, {**given, "state": random.normal((3, 19, taps - 1))})


def _deformable(random: Random, *, modulated: bool) -> Iterator[Case]:
    """Offsets of less than a pixel, of several, and beyond the image; of groups that cross those of the weights."""

    def call(
        channels: tuple[int, int], out: tuple[int, int], kernel: tuple[int, int], scale: float, parts: int, **options: Any
    ) -> Geometry:
        given = _call(random, 2, options.pop("groups", 1), channels, (9, 7), kernel, **options)
        taps = parts * kernel[0] * kernel[1]
        given["offset"] = scale * random.normal((2, 2 * taps, *out))
        if modulated:
            given["modulation"] = random.uniform(0, 1, (2, taps, *out))
        return {**given, "offset_groups": parts}

    yield Case("offsets within a pixel", call((5, 7), (9, 7), (3, 3), 0.125, 1, padding=1, bias=random.normal(7)))
    yield Case("offsets beyond the image", call((3, 4), (7, 5), (3, 3), 8.0, 1))
    yield Case("17 channels", call((17, 3), (5, 3), (2, 3), 1.0, 1, stride=2, padding=((0, 1), (1, 0))))
    yield Case("offset groups across groups", call((3, 4), (9, 7), (1, 3), 1.0, 3, groups=2, padding=(0, 1)))
    yield Case("one group of offsets for many", call((1, 1), (7, 7), (3, 1), 1.0, 1, groups=6))
