"""The three faces of one convolution on a device, as launches: of products of matrices, or of a kernel for channels on their own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from refattn_numba._activations import CODES
from refattn_numba.cpu.conv.problem import Activation
from refattn_numba.cuda import conv_configurations, conv_small_configurations, hopper
from refattn_numba.cuda.arrays import ROW_BYTES, DeviceArray, read
from refattn_numba.cuda.conv_layout import AXES, Five, Queue, Style, five
from refattn_numba.cuda.conv_sizes import Sizes
from refattn_numba.cuda.kernel import Kernel
from refattn_numba.cuda.library import c_strides

FUSED: frozenset[Activation | None] = frozenset({None, "relu", "silu"})
"""Activations that the kernels of products make; GELU has a kernel of its own."""

THREADS_OF_SUM, MOST_SPLITS = 1 << 17, 1024
"""Threads that make the parts of a sum of single channels, as long as the parts are not too many."""

Optional: TypeAlias = DeviceArray | None


class Linear:
    """One convolution with its weight."""

    def __init__(self, queue: Queue, sizes: Sizes, weight: DeviceArray) -> None:
        sizes.refuse_large()
        self.queue, self.sizes, self.given, self.dtype = queue, sizes, weight, queue.x.dtype
        self.kernels: Five | None = None

    @property
    def weight(self) -> Five:
        """The weight as kernels read it: (o, taps, c), of single channels (taps, o); made when it is first asked for."""
        if self.kernels is None:
            found = five(self.given, is_last=False)
            if self.sizes.is_depthwise:
                found = _by_tap(found)
            places = zip(found.shape, found.steps, c_strides(found.shape), strict=True)
            is_packed = all(size <= 1 or step == wanted for size, step, wanted in places)
            self.kernels = found if is_packed else self.queue.moved(found, self.queue.empty(found.shape))
        return self.kernels

    def correlate(self, x: Five, axes: int, bias: Optional = None, activation: Activation | None = None) -> Five:
        """The output, in an array of so many axes."""
        y = self.queue.empty(self.sizes.of_y, axes)
        return self._made("forward", x, y, y, self.sizes.c, bias, activation)

    def spread(self, y: Five, axes: int, bias: Optional = None, activation: Activation | None = None) -> Five:
        """The gradient of x, or the output of a transposed convolution."""
        x = self.queue.empty(self.sizes.of_x, axes)
        return self._made("input", x, y, x, self.sizes.o, bias, activation)

    def _made(self, face: str, x: Five, y: Five, made: Five, summed: int, bias: Optional, activation: Activation | None) -> Five:
        if not math.prod(made.shape):
            return made
        if not summed or not math.prod((x if made is y else y).shape):  # nothing is read
            made = made._replace(array=self.queue.x.zeros(made.array.shape, self.dtype))
            return self.finished(made, bias, activation)
        bias = None if bias is None else _aligned(bias.as_type(self.dtype).contiguous())
        if self.sizes.is_depthwise:
            self._depthwise(face, *((x, y) if made is y else (y, x)), bias, activation)
            return made
        fields = {"bias": 0 if bias is None else bias.memory.address}
        is_fused = activation in FUSED
        self._product(f"conv_{face}", x, y, **fields, activation=CODES[activation] if is_fused else 0)
        return made if is_fused else self.finished(made, None, activation)

    def _product(self, face: Any, x: Five, y: Five, **more: int) -> None:
        """Launch a kernel that multiplies matrices."""
        kernel = self._kernel(face, x, y, self.weight)
        fields = {**self.sizes.fields(), **x.fields("x"), **y.fields("y"), "weight": self.weight.address, **more}
        blocks, tiles = conv_configurations.launched(kernel, fields)
        self.queue.start(kernel, blocks, {**fields, **tiles})

    def _kernel(self, face: Any, *read: Five) -> Kernel:
        """One that multiplies matrices."""
        is_odd, on_hopper = not all(x.is_aligned for x in read), hopper.may_take(self.queue.facts)
        dtype: Any = self.dtype
        return conv_configurations.choose(face, dtype, self.sizes.o, self.sizes.c, is_odd=is_odd, on_hopper=on_hopper)

    def _depthwise(self, face: str, source: Five, target: Five, bias: Optional, activation: Activation | None) -> None:
        """Launch a kernel for channels on their own."""
        is_wide = self.sizes.o == 1 and all(x.is_wide for x in (source, target, self.weight))
        kernel = conv_small_configurations.choose(f"depthwise_{face}", self.dtype, is_wide=is_wide)  # pyright: ignore[reportArgumentType]
        fields = {**self.sizes.fields(), **source.fields("source", "of_"), **target.fields("target", "of_"), "w": self.weight.address}
        for name, x in (("source", source), ("target", target)):
            fields |= {f"{name}_{axis}": size for axis, size in zip(AXES, x.shape[1:4], strict=True)} | {f"{name}_channels": x.shape[-1]}
        fields |= {"multiplier": self.sizes.o, "bias": 0 if bias is None else bias.memory.address, "activation": CODES[activation]}
        config, (batch, depth, height, width, channels) = kernel.config, target.shape
        threads = batch * depth * height * -(-width // config.positions) * -(-channels // config.vector)
        self.queue.start(kernel, -(-threads // kernel.tile), fields)

    def finished(self, x: Five, bias: Optional, activation: Activation | None, before: Five | None = None) -> Five:
        """Bias and activation of x, in place, or of what is before it in another array."""
        if bias is None and activation is None:
            return x
        bias = None if bias is None else _aligned(bias.as_type(self.dtype).contiguous())
        before = x if before is None else before
        fields = {"bias": 0 if bias is None else bias.memory.address, "activation": CODES[activation]}
        self._of_rows("conv_finish", {"before": before, "target": x}, fields)
        return x

    def before_activation(self, given: Five, activation: Activation, dy: Five) -> Five:
        """The cotangent of what the activation is given; for ReLU `given` is its result."""
        made, dy = self.queue.empty(dy.shape), self.queue.with_one_step(dy)
        self._of_rows("conv_finish_back", {"before": given, "d_after": dy, "target": made}, {"activation": CODES[activation]})
        return made

    def _of_rows(self, face: Any, arrays: Mapping[str, Five], fields: Mapping[str, int]) -> None:
        """Launch a kernel that walks over positions."""
        kernel = conv_small_configurations.choose(face, self.dtype, is_wide=all(x.is_wide for x in arrays.values()))  # pyright: ignore[reportArgumentType]
        rows, channels = arrays["target"].positions, arrays["target"].shape[-1]
        fields = {**fields, **{name: x.address for name, x in arrays.items()}, "rows": rows, "channels": channels}
        fields |= {f"of_{name}": x.row_step or 0 for name, x in arrays.items()}
        self.queue.start(kernel, -(-rows * -(-channels // kernel.config.vector) // kernel.tile), fields)

    def weight_gradient(self, x: Five, y: Five, style: Style) -> DeviceArray:
        """From x and the cotangent of y."""
        found = five(self.given, is_last=False)
        if not math.prod(found.shape) or not x.positions or not y.positions:
            return self.queue.x.zeros(self.given.shape, self.dtype)
        if self.sizes.is_depthwise:
            workspace, splits = self._depthwise_weight(x, y)
            made = self.queue.empty(self.weight.shape)
            self._summed(workspace, made, splits)
            return self.queue.delivered(_by_channel(made), style)
        kernel = self._kernel("conv_weight", x, y)
        fields = {**self.sizes.fields(), **x.fields("x"), **y.fields("y")}
        splits = conv_configurations.splits_for(kernel, fields, self.queue.facts.processors)
        workspace = self.queue.x.packed((splits, *found.shape), "float32")
        blocks, tiles = conv_configurations.launched(kernel, fields, splits)
        self.queue.start(kernel, blocks, {**fields, **tiles, "splits": splits, "workspace": workspace.memory.address})
        made = self.queue.empty(found.shape, style.axes)
        self._summed(workspace, made, splits)
        return self.queue.delivered(made, style)

    def _depthwise_weight(self, x: Five, y: Five) -> tuple[DeviceArray, int]:
        """Parts of the gradient, and how many."""
        is_wide = self.sizes.o == 1 and x.is_wide and y.is_wide
        kernel = conv_small_configurations.choose("depthwise_weight", self.dtype, is_wide=is_wide)  # pyright: ignore[reportArgumentType]
        chunks, taps = -(-y.shape[-1] // kernel.config.vector), math.prod(self.sizes.kernel)
        *rows, width = y.shape[:-1]
        splits = _splits(chunks * taps, math.prod(rows) * -(-width // kernel.config.segment))
        workspace = self.queue.x.packed((splits, taps, y.shape[-1]), "float32")
        fields = {**self.sizes.fields(), **x.fields("x"), **y.fields("y"), "multiplier": self.sizes.o, "c_out": y.shape[-1]}
        fields |= {"splits": splits, "workspace": workspace.memory.address}
        self.queue.start(kernel, -(-chunks * taps * splits // kernel.tile), fields)
        return workspace, splits

    def bias_gradient(self, y: Five) -> DeviceArray:
        """The sum of a cotangent over examples and positions."""
        channels = y.shape[-1]
        if not channels or not y.positions:
            return self.queue.x.zeros((channels,), self.dtype)
        kernel = conv_configurations.choose("conv_bias", self.dtype, 1, 1, is_odd=not y.is_wide)  # pyright: ignore[reportArgumentType]
        fields = {**self.sizes.fields(), **y.fields("y"), "channels": channels}
        fields |= {f"out_{axis}": size for axis, size in zip(AXES, y.shape[1:4], strict=True)}
        splits = conv_configurations.splits_for(kernel, fields, self.queue.facts.processors)
        workspace = self.queue.x.packed((splits, channels), "float32")
        blocks, tiles = conv_configurations.launched(kernel, fields, splits)
        self.queue.start(kernel, blocks, {**fields, **tiles, "splits": splits, "workspace": workspace.memory.address})
        made = self.queue.x.packed((channels,), self.dtype)
        self._summed(workspace, made, splits)
        return made

    def _summed(self, workspace: DeviceArray, made: Five | DeviceArray, splits: int) -> None:
        """The sum of parts, in their order."""
        kernel = conv_configurations.choose("conv_sum", self.dtype, 1, 1)  # pyright: ignore[reportArgumentType]
        address = made.address if isinstance(made, Five) else made.memory.address
        fields = {"workspace": workspace.memory.address, "output": address, "splits": splits, "count": math.prod(made.shape)}
        blocks, tiles = conv_configurations.launched(kernel, fields, splits)
        self.queue.start(kernel, blocks, {**fields, **tiles})


def _splits(threads: int, most: int) -> int:
    """Parts of a sum, of which each takes so many threads: the same on every device, and so are then the results."""
    return max(1, min(-(-THREADS_OF_SUM // threads), most, MOST_SPLITS))


def _by_tap(weight: Five) -> Five:
    """A weight (o, *kernel, 1) as (1, *kernel, o)."""
    return weight._replace(shape=(1, *_turned(weight.shape)[1:]), steps=(0, *_turned(weight.steps)[1:]))


def _by_channel(weight: Five) -> Five:
    """The other way."""
    return weight._replace(shape=(*_turned(weight.shape)[:4], 1), steps=(*_turned(weight.steps)[:4], 0))


def _turned(axes: Sequence[int]) -> tuple[int, ...]:
    """First and last exchanged."""
    return (axes[-1], *axes[1:-1], axes[0])


def _aligned(bias: DeviceArray) -> DeviceArray:
    """Itself, or a copy that begins at a multiple of 16 bytes."""
    if bias.memory.address % ROW_BYTES == 0:
        return bias
    return read("copy", bias.library.copied(bias.owner, bias.dtype), bias.library)
