"""The cases of convolution: the compiled twin beside PyTorch in its faster layout, and beside what the machine can do at most.

Every face has a row of its own: "forward", and the gradients of the input, "dX", and of the weight, "dW" (`conv_ours` says how each
is called). Eight examples in float32; names give input to output channels and the positions of the input along one axis. A share of
the limit can exceed 100 %, where an algorithm saves operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from benchmarks.cases import Call, Case, Work
from benchmarks.conv_causal import causal
from benchmarks.conv_layer import FACES, Face, Layer
from benchmarks.conv_networks import convnext_tiny, network, operations, resnet50
from benchmarks.conv_ours import exact, ours, reference
from benchmarks.conv_peers import EITHER, Memory, peers

BATCH, ERROR = 8, 1e-4
CAUSAL = (2, 2048, 2048, 4)  # batch, channels, positions, taps
Floors = tuple[float | None, float | None, float | None]


def one_face(
    layer: Layer, face: Face, accuracy: Literal["fast", "strict"] = "fast", layouts: Sequence[Memory] = EITHER
) -> Mapping[str, Call]:
    """All contenders of one case."""
    given = layer.drawn()
    calls = {"refattn_numba": ours(given, face, accuracy), **peers(given, face, layouts)}
    return {**calls, **(reference(given) if face == "forward" else {}), "exact": exact(given, face)}


def _rows(name: str, floors: Floors, layer: Layer, quick: Sequence[Face] = (), **how: Any) -> Iterator[Case]:
    """A layer's three faces."""
    channels = str(layer.channels) if layer.groups > 1 else f"{layer.channels} to {layer.filters}"
    full = f"{name}, {channels}, {layer.size[-1]} px"
    for face, floor in zip(FACES, floors, strict=True):
        make, work = partial(one_face, layer, face, **how), Work("float32", layer.operations)
        yield Case(f"{face}, {full}", make, ERROR, floor, work=work, quick=face in quick)


def _square(channels: int, filters: int, size: int, kernel: int, batch: int = BATCH, **options: Any) -> Layer:
    return Layer(batch, channels, filters, (size, size), kernel, **options)


def _threes(name: str, floors: Callable[[int], Floors], **how: Any) -> Iterator[Case]:
    for channels, size in ((64, 56), (128, 28), (256, 14), (512, 7)):
        layer, quick = _square(channels, channels, size, 3, padding=1), FACES if size == 14 and not how else ()
        yield from _rows(f"3x3{name}", floors(size), layer, quick, **how)


def _ones() -> Iterator[Case]:
    for channels, filters, size in ((256, 64, 56), (64, 256, 56), (1024, 256, 14), (256, 1024, 14), (2048, 512, 7), (512, 2048, 7)):
        yield from _rows("1x1", (1.0, 1.0, 1.0), _square(channels, filters, size, 1), ("forward",) if size == 14 else ())


def _depthwise() -> Iterator[Case]:
    """Against the same layout."""
    for kernel, channels, size in ((3, 144, 56), (5, 240, 28), (7, 96, 56)):
        first = _square(channels, channels, size, kernel, padding=kernel // 2, groups=channels)
        quick = ("forward",) if kernel == 3 else ()
        yield from _rows(f"depthwise {kernel}x{kernel}", (1.05, 1.2, 1.5), first, quick, layouts=("first",))
        last, name = replace(first, channels_last=True), f"depthwise {kernel}x{kernel} channels-last"
        yield from _rows(name, (1.0, 1.0, 1.0), last, layouts=("last",))


def _causal(direction: Literal["forward", "backward"], floor: float) -> Case:
    """At least each number is read once, and each result written: counted as if that were read too."""
    batch, channels, length, taps = CAUSAL
    moved = 4.0 * batch * channels * length * (2 if direction == "forward" else 3)
    name = f"{direction}, causal conv1d of {taps} taps, {batch}x{channels}x{length}"
    return Case(name, partial(causal, *CAUSAL, direction), ERROR, floor, work=Work("read", moved), quick=False)


def _network(name: str, layers: Callable[[int], Iterator[Layer]]) -> Case:
    of = partial(layers, BATCH)
    full = f"all convolutions of {name}, forward and backward"
    return Case(full, partial(network, of), ERROR, 1.15, work=Work("float32", operations(of)), quick=False)


CASES = (
    *_threes("", lambda size: (1.05, 0.95, 0.9) if size == 7 else (1.5, 1.4, 1.05)),
    *_threes(" strict", lambda size: (0.97, 0.97, 0.97), accuracy="strict"),
    *_ones(),
    *_rows("7x7 stride 2", (1.0, 3.0, 1.05), _square(3, 64, 224, 7, stride=2, padding=3)),
    *_depthwise(),
    _causal("forward", 10.0),
    _causal("backward", 8.0),
    *_rows("3x3x3", (0.95, 0.95, 0.95), Layer(1, 64, 64, (16, 28, 28), 3, padding=1)),
    _network("ResNet-50", resnet50),
    _network("ConvNeXt-T", convnext_tiny),
)
