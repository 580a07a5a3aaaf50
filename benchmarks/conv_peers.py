"""The convolutions of other libraries on a CPU, in the layout in which they are faster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from benchmarks.cases import Call, installed
from benchmarks.conv_layer import Face, Given
from benchmarks.onnx_peer import session
from benchmarks.torch_peer import fastest

Memory: TypeAlias = Literal["first", "last"]

EITHER: tuple[Memory, ...] = ("first", "last")


def peers(given: Given, face: Face, layouts: Sequence[Memory] = EITHER) -> dict[str, Call]:
    """By name: first PyTorch, which is the baseline; ONNX Runtime has no gradients."""
    calls = {}
    if (torch := installed("torch")) is not None:
        calls["torch"] = fastest([torch_call(torch, given, face, layout) for layout in layouts])
    runtime, onnx = installed("onnxruntime"), installed("onnx")
    if runtime is not None and onnx is not None and face == "forward":
        layer = given.layer
        strides, pads = [layer.stride] * layer.axes, [layer.padding] * (2 * layer.axes)
        one = session(onnx, runtime, "Conv", "", given[1:3], strides=strides, pads=pads, group=layer.groups)
        calls["onnxruntime"] = lambda: one()[0]
    return calls


def torch_call(torch: Any, given: Given, face: Face, layout: Memory) -> Call:
    """One face; what is not asked for is masked out of its backward function. Layouts are made before the clock runs."""
    layer = given.layer
    last = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d}[layer.axes]
    memory = last if layout == "last" else torch.contiguous_format
    x, weight, dy = (torch.from_numpy(a).contiguous(memory_format=memory) for a in given[1:])
    stride, padding, one, none = ([n] * layer.axes for n in (layer.stride, layer.padding, 1, 0))
    if face == "forward":
        convolve = getattr(torch.nn.functional, f"conv{layer.axes}d")
        return lambda: convolve(x, weight, None, stride, padding, one, layer.groups)
    which, mask = (0, [True, False, False]) if face == "dX" else (1, [False, True, False])
    backward = torch.ops.aten.convolution_backward
    return lambda: backward(dy, x, weight, None, stride, padding, one, False, none, layer.groups, mask)[which]
