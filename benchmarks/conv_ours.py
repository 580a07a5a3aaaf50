"""The calls of our own packages for one face of a convolution.

What is timed: "forward" is a call of the public function. Users get the gradients of input and weight together, by one pullback; here
each is the algorithm that the pullback would choose, called alone, packing of the weight included, so that each has its own peer.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import numpy as np

import refattn
from benchmarks.cases import Call
from benchmarks.conv_layer import Face, Given, Layer

NUMPY_OPERATIONS = 5e8  # the reference is not timed on more
CORNER = 8  # channels for which the exact result is made


def _options(layer: Layer, **more: Any) -> dict[str, Any]:
    return {"stride": layer.stride, "padding": layer.padding, "groups": layer.groups, **more}


def _of(module: Any, layer: Layer) -> Any:
    return getattr(module, f"conv{layer.axes}d")


def ours(given: Given, face: Face, accuracy: Literal["fast", "strict"] = "fast") -> Call:
    """The call of the compiled twin."""
    import refattn_numba  # noqa: PLC0415  (needs Numba, but the list of cases does not)

    layer, x, weight, dy = given
    if face == "forward":
        convolve, options = _of(refattn_numba, layer), _options(layer, accuracy=accuracy)
        return lambda: convolve(x, weight, **options)
    return _gradient(given, face, accuracy, (x, weight, dy))


def _gradient(given: Given, face: Face, accuracy: Literal["fast", "strict"], arrays: tuple[np.ndarray, ...]) -> Call:
    from refattn_numba.cpu.conv.choice import choose  # noqa: PLC0415
    from refattn_numba.cpu.conv.problem import AXES, Axes, Epilogue, Problem  # noqa: PLC0415

    layer = given.layer

    def three(numbers: tuple[int, ...], missing: int) -> Axes:
        return cast("Axes", (missing,) * (AXES - len(numbers)) + numbers)

    def alike(number: int, missing: int) -> Axes:
        return three((number,) * layer.axes, missing)

    problem = Problem(
        np.dtype(np.float32), layer.channels_last, layer.batch, layer.groups, layer.channels // layer.groups, layer.filters // layer.groups,
        three(layer.size, 1), alike(layer.kernel, 1), three(layer.out, 1), alike(layer.stride, 1), alike(1, 1), alike(layer.padding, 0),
    )  # fmt: skip
    x, weight, dy = (a.reshape(*a.shape[:2], *(1,) * (AXES - layer.axes), *a.shape[2:]) for a in arrays)
    shape = arrays[0].shape if face == "dX" else arrays[1].shape
    if face == "dW":
        algorithm = choose(problem, "weight_gradient", "auto", accuracy)
        return lambda: algorithm.weight_gradient(problem, x, dy).reshape(shape)
    algorithm = choose(problem, "spread", "auto", accuracy)
    return lambda: algorithm.spread(problem, dy, algorithm.pack(problem, "spread", weight), Epilogue()).output.reshape(shape)


def reference(given: Given) -> dict[str, Call]:
    """The forward pass in NumPy, where it is small."""
    layer, x, weight, _ = given
    if layer.operations > NUMPY_OPERATIONS:
        return {}
    return {"numpy": lambda: _of(refattn, layer)(x, weight, **_options(layer))}


def exact(given: Given, face: Face) -> Call:
    """In float64, the first channels of the first example; of a weight its first channels, by all examples."""
    layer, examples = given.layer, None if face == "dW" else 1
    depthwise = layer.groups > 1
    inputs = None if face == "forward" and not depthwise else CORNER
    outputs = None if face == "dX" and not depthwise else CORNER
    x, weight, dy = (a.astype(float) for a in (
        given.x[:examples, :inputs], given.weight[:outputs, : None if depthwise else inputs], given.dy[:examples, :outputs],
    ))  # fmt: skip
    options = _options(layer, groups=len(weight) if depthwise else 1)
    if face == "forward":
        return lambda: _of(refattn, layer)(x, weight, **options)
    return lambda: _of(refattn, layer).vjp(x, weight, **options)[1](dy)["x" if face == "dX" else "weight"]
