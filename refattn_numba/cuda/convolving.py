"""Convolution of arrays on a device: options to sizes, layouts in and out, and the launches of a call and its pullback.

Nothing comes to main memory. Borders other than zeros are made by a kernel that copies x; the gradient of the copy is folded back.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np

from refattn._core import Pullback
from refattn.convolution import rule
from refattn.convolution.rule import Padding, Pairs, PerAxis
from refattn.primitives.padding import PaddingMode, pad
from refattn_numba.cpu.conv.choice import Name
from refattn_numba.cpu.conv.problem import Accuracy, Activation, Axes, Layout
from refattn_numba.cuda.arrays import DeviceArray
from refattn_numba.cuda.conv_layout import Five, Queue, five, style_of
from refattn_numba.cuda.conv_linear import Linear, Optional, Sizes
from refattn_numba.cuda.launching import check_types, watching

Grads: TypeAlias = dict[str, DeviceArray | None]


class How(NamedTuple):
    """Options that are not of the convolution itself."""

    algorithm: Name = "auto"
    accuracy: Accuracy = "fast"
    activation: Activation | None = None
    layout: Layout = "channels_first"
    differentiate: bool = True


class Border(NamedTuple):
    """What stands beside x that is not zeros."""

    pairs: Pairs
    mode: PaddingMode

    @property
    def low(self) -> Axes:
        """Its width before each of three axes."""
        return cast("Axes", (*(0,) * (3 - len(self.pairs)), *(a for a, _ in self.pairs)))


def convolve(
    x: DeviceArray,
    weight: DeviceArray,
    bias: Optional = None,
    *,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    groups: int = 1,
    padding_mode: PaddingMode = "zeros",
    **how: Any,
) -> tuple[DeviceArray, Pullback]:
    """A convolution of any number of dimensions, and its pullback."""
    options = _checked(x, weight, how)
    size = _size(x, options)
    steps, gaps, pairs = rule.geometry(size, weight.shape[2:], stride, padding, dilation)
    border = None
    if padding_mode != "zeros":
        pad(np.empty((0, *size)), padding=pairs, mode=padding_mode)  # which refuses borders that are too wide
        border = Border(pairs, padding_mode)
        size = tuple(n + a + b for n, (a, b) in zip(size, pairs, strict=True))
        pairs = ((0, 0),) * len(pairs)
    out = rule.places(size, weight.shape[2:], steps, gaps, pairs)
    sizes = _sizes(x, weight, size, out, steps, gaps, pairs, groups)
    return _Call(x, weight, bias, sizes, options, is_transposed=False, border=border).run()


conv1d = conv2d = conv3d = convolve


def convolve_transposed(
    x: DeviceArray,
    weight: DeviceArray,
    bias: Optional = None,
    *,
    stride: PerAxis = 1,
    padding: int | tuple[int, ...] | Pairs = 0,
    output_padding: PerAxis = 0,
    dilation: PerAxis = 1,
    groups: int = 1,
    **how: Any,
) -> tuple[DeviceArray, Pullback]:
    """A transposed convolution: the convolution whose input is what is returned here, read the other way."""
    options = _checked(x, weight, how)
    given = _size(x, options)
    steps, gaps, pairs, full = rule.transposed_geometry(given, weight.shape[2:], stride, padding, output_padding, dilation)
    size = tuple(n - a - b for n, (a, b) in zip(full, pairs, strict=True))
    sizes = _sizes(x, weight, size, given, steps, gaps, pairs, groups)
    return _Call(x, weight, bias, sizes, options, is_transposed=True).run()


conv_transpose1d = conv_transpose2d = conv_transpose3d = convolve_transposed


def depthwise_conv2d(x: DeviceArray, weight: DeviceArray, bias: Optional = None, **options: Any) -> tuple[DeviceArray, Pullback]:
    """As many groups as channels."""
    channels = x.shape[-1 if options.get("layout") == "channels_last" else 1]
    return convolve(x, weight, bias, groups=channels, **options)


pointwise_conv2d = convolve


def separable_conv2d(
    x: DeviceArray, w_depthwise: DeviceArray, w_pointwise: DeviceArray, bias: Optional = None, *, differentiate: bool = True, **options: Any
) -> tuple[DeviceArray, Pullback]:
    """Positions first, then channels."""
    check_types(x=x, w_depthwise=w_depthwise, w_pointwise=w_pointwise)
    hidden, of_depthwise = depthwise_conv2d(x, w_depthwise, differentiate=differentiate, **options)
    output, of_pointwise = convolve(hidden, w_pointwise, bias, differentiate=differentiate)

    def pullback(d_output: Optional) -> Grads:
        second = of_pointwise(d_output)
        first = of_depthwise(second["x"])
        return {"x": first["x"], "w_depthwise": first["weight"], "w_pointwise": second["weight"], "bias": second["bias"]}

    return output, _reading(pullback)


def _checked(x: DeviceArray, weight: DeviceArray, how: dict[str, Any]) -> How:
    """The other options, of which one means something in main memory alone."""
    options = How(**how)
    if options.algorithm != "auto":
        raise ValueError(f"algorithm is {options.algorithm!r}, but on a device must be 'auto'")
    check_types(x=x, weight=weight)
    return options


def _size(x: DeviceArray, options: How) -> Axes:
    """The positions of x along each axis."""
    return cast("Axes", x.shape[1:-1] if options.layout == "channels_last" else x.shape[2:])


def _sizes(x: DeviceArray, weight: DeviceArray, size: Any, out: Any, stride: Any, dilation: Any, pairs: Pairs, groups: int) -> Sizes:
    """With three axes; those that are missing have one position."""

    def three(numbers: Any, missing: int) -> Axes:
        return cast("Axes", (missing,) * (3 - len(numbers)) + tuple(numbers))

    groups = max(groups, 1)
    return Sizes(
        x.shape[0], groups, weight.shape[1], weight.shape[0] // groups, three(size, 1), three(weight.shape[2:], 1), three(out, 1),
        three(stride, 1), three(dilation, 1), three([a for a, _ in pairs], 0),
    )  # fmt: skip


class _Call:
    """One call and what its pullback needs."""

    def __init__(
        self,
        x: DeviceArray,
        weight: DeviceArray,
        bias: Optional,
        sizes: Sizes,
        options: How,
        *,
        is_transposed: bool,
        border: Border | None = None,
    ) -> None:
        self.x, self.weight, self.bias, self.options, self.is_transposed, self.border = x, weight, bias, options, is_transposed, border
        self.queue = Queue(x)
        self.linear = Linear(self.queue, sizes, weight)
        self.style = style_of(x, is_last=options.layout == "channels_last")

    def run(self) -> tuple[DeviceArray, Pullback]:
        """The output and its pullback."""
        given = five(self.x, is_last=self.style.is_last)
        if self.border is None:
            source = self.queue.in_rows(given)
        else:
            source = self.queue.moved(given, self.queue.empty(self.linear.sizes.of_x), low=self.border.low, mode=self.border.mode)
        activation = self.options.activation
        is_apart = self.options.differentiate and activation not in {None, "relu"}  # what is before it is needed for its gradient
        forward = self.linear.spread if self.is_transposed else self.linear.correlate
        before = made = forward(source, self.style.axes, self.bias, None if is_apart else activation)
        if is_apart:
            made = self.queue.empty(before.shape, self.style.axes)
            self.linear.finished(made, None, activation, before)
        is_kept = activation == "relu" and self.options.differentiate
        output = self.queue.delivered(made, self.style, is_copied=is_kept and not self.x.library.tells_changes)
        self.queue.finish()
        is_shared = is_kept and self.style.has_rows
        check = watching({"x": self.x, "weight": self.weight, **({"output": output} if is_shared else {})})

        def pullback(d_output: Optional) -> Grads:
            check()
            grads = self.gradients(source, before, d_output, output)
            self.queue.finish()
            return grads

        return output, _reading(pullback)

    def gradients(self, source: Five, before: Five, d_output: Optional, output: DeviceArray) -> Grads:
        """Of all arguments."""
        queue, linear, activation = self.queue, self.linear, self.options.activation
        d_output = self.x.zeros(output.shape, self.x.dtype) if d_output is None else d_output
        d = five(d_output, is_last=self.style.is_last)
        d = queue.in_rows(d) if activation is None else linear.before_activation(before, activation, d)
        back = linear.correlate if self.is_transposed else linear.spread
        of_border = back(d, 5 if self.border else self.style.axes)
        if self.border is not None:
            inner = queue.empty(five(self.x, is_last=self.style.is_last).shape, self.style.axes)
            of_border = queue.moved(of_border, inner, low=self.border.low, mode=self.border.mode, is_back=True)
        style = style_of(self.weight, is_last=False)
        return {
            "x": queue.delivered(of_border, self.style),
            "weight": linear.weight_gradient(*((d, source) if self.is_transposed else (source, d)), style),
            "bias": None if self.bias is None else linear.bias_gradient(d),
        }


def _reading(pullback: Any) -> Pullback:
    """Say that it reads nothing that the caller may write to unseen."""
    pullback.reads_outputs = False
    return pullback
