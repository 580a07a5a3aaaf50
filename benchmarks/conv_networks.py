"""All convolutions of one forward and one backward pass through a network, each as often as it occurs.

Nothing else of the network is computed. The gradient of the images is not asked for, as in training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from benchmarks.cases import Call, installed
from benchmarks.conv_layer import FACES, Layer
from benchmarks.conv_ours import CORNER, ours
from benchmarks.conv_peers import EITHER, torch_call
from benchmarks.torch_peer import fastest

IMAGE = 224


def _square(batch: int, channels: int, filters: int, size: int, kernel: int, **options: Any) -> Layer:
    return Layer(batch, channels, filters, (size, size), kernel, **options)


def resnet50(batch: int, image: int = IMAGE, width: int = 64) -> Iterator[Layer]:
    """He et al. 2015, table 1; strides are those of the 3x3 convolutions, as in torchvision."""
    yield _square(batch, 3, width, image, 7, stride=2, padding=3)
    size, channels = image // 4, width
    for stage, blocks in enumerate((3, 4, 6, 3)):
        inner = width << stage
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            yield _square(batch, channels, inner, size, 1)
            yield _square(batch, inner, inner, size, 3, stride=stride, padding=1)
            yield _square(batch, inner, 4 * inner, size // stride, 1)
            if not block:
                yield _square(batch, channels, 4 * inner, size, 1, stride=stride)
            size, channels = size // stride, 4 * inner


def convnext_tiny(batch: int, image: int = IMAGE, width: int = 96) -> Iterator[Layer]:
    """Liu et al. 2022, ConvNeXt-T; the two linear layers of a block are convolutions of one tap."""
    size, channels = image, 3
    for stage, blocks in enumerate((3, 3, 9, 3)):
        inner, step = width << stage, 2 if stage else 4
        yield _square(batch, channels, inner, size, step, stride=step)
        size, channels = size // step, inner
        for _ in range(blocks):
            yield _square(batch, inner, inner, size, 7, padding=3, groups=inner)
            yield _square(batch, inner, 4 * inner, size, 1)
            yield _square(batch, 4 * inner, inner, size, 1)


def operations(layers: Callable[[], Iterator[Layer]]) -> float:
    """Of all faces but the first layer's dX."""
    first, *others = (layer.operations for layer in layers())
    return 2 * first + 3 * sum(others)


def network(layers: Callable[[], Iterator[Layer]]) -> Mapping[str, Call]:
    """Both contenders; PyTorch in the faster layout of each layer's each face."""
    torch, counts = installed("torch"), Counter(layers())
    calls: dict[str, list[tuple[int, Call]]] = {"refattn_numba": [], **({"torch": []} if torch else {})}
    for i, (layer, count) in enumerate(counts.items()):
        given = layer.drawn()
        for face in FACES if i else ("forward", "dW"):
            calls["refattn_numba"].append((count, ours(given, face)))
            if torch:
                calls["torch"].append((count, fastest([torch_call(torch, given, face, layout) for layout in EITHER])))
    return {name: _all(them) for name, them in calls.items()}


def _all(calls: list[tuple[int, Call]]) -> Call:
    """What is returned is a small part, to be compared."""

    def run() -> Any:
        corners = []
        for count, call in calls:
            for _ in range(count - 1):
                call()
            corners.append(call()[:1, :CORNER] + 0)  # a copy, so that the rest is free
        return tuple(corners)

    return run
