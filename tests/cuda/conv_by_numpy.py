"""What each kernel of a convolution computes of its parameters, in NumPy, as `by_numpy` does for attention."""

import numpy as np

import refattn
from refattn.convolution import rule
from refattn.primitives.padding import NUMPY_MODES
from refattn_numba._activations import CODES
from refattn_numba.cuda.vectors import BORDERS
from tests.cuda.by_numpy import Memory
from tests.cuda.standins import numpy_type

AXES = "d", "h", "w"
STEPS = ("batch", *AXES)
ALIGNMENT = 16


class Call:
    """The arrays of a launch."""

    def __init__(self, kernel, blocks, arguments, buffers):
        self.kernel, self.blocks, self.memory, self.dtype = kernel, blocks, Memory(buffers), kernel.config.element
        self.given = arguments
        self.face = max((face for face in FACES if kernel.name.startswith(face)), key=len)

    def axes(self, name):
        return tuple(self.given[f"{name}_{axis}"] for axis in AXES)

    def rows(self, name, shape, prefix="", *, is_wide=False):
        """An array with channels next to one another, as the kernel may read it."""
        steps = [self.given[f"{prefix}{name}_{axis}"] for axis in STEPS]
        item = numpy_type(self.dtype).itemsize
        if is_wide:
            assert not self.given[name] % ALIGNMENT, name
            assert not any(step * item % ALIGNMENT for step in steps), (name, steps)
        return self.memory.view(self.given[name], shape, (*steps, 1), self.dtype)

    def covers(self, threads):
        assert self.blocks == -(-threads // self.kernel.tile), (self.kernel.name, self.blocks, threads)

    def bias(self, channels):
        return (
            self.memory.packed(self.given["bias"], (channels,), self.dtype).astype(np.float64) if self.given["bias"] else np.zeros(channels)
        )

    def activated(self, y):
        return activated(y, self.given["activation"])


def activated(y, code):
    name = {code: name for name, code in CODES.items()}[code]
    return y if name is None else getattr(refattn, name)(y)


def launch(kernel, blocks, arguments, buffers):
    """Do what the kernel would do."""
    call = Call(kernel, blocks, arguments, buffers)
    with np.errstate(all="ignore"):
        FACES[call.face](call)


class Convolution:
    """One of `GEOMETRY` in float64, channels second and in groups."""

    def __init__(self, size, kernel, out, stride, dilation, pad):
        self.size, self.kernel, self.out, self.stride, self.dilation = size, kernel, out, stride, dilation
        reach = [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip(out, stride, dilation, kernel, strict=True)]
        self.borders = [(low, max(r - low - n, 0)) for low, r, n in zip(pad, reach, size, strict=True)]

    def padded(self, x):
        return np.pad(x, [(0, 0)] * 3 + self.borders)

    def correlate(self, x, weight):
        return rule.correlate(self.padded(x), weight, self.out, self.stride, self.dilation)

    def spread(self, y, weight):
        whole = tuple(n + a + b for n, (a, b) in zip(self.size, self.borders, strict=True))
        inner = tuple(slice(a, a + n) for n, (a, _) in zip(self.size, self.borders, strict=True))
        return rule.spread(y, weight, whole, self.stride, self.dilation)[(..., *inner)]

    def weight_gradient(self, x, y):
        return rule.weight_gradient(self.padded(x), y, self.kernel, self.stride, self.dilation)


def grouped(x, groups):
    """(batch, positions, channels) as (batch, groups, channels of one, positions)."""
    return rule.in_groups(np.moveaxis(x, -1, 1).astype(np.float64), groups, axis=1)


def rowed(x):
    return np.moveaxis(rule.joined(x, axis=1), 1, -1)


def _geometry(call):
    given = call.given
    made = Convolution(*(call.axes(name) for name in ("in", "kernel", "out", "stride", "dilation", "pad")))
    groups, c, o, is_wide = given["groups"], given["c_in"], given["c_out"], not call.kernel.config.is_odd
    x = call.rows("x", (given["batch"], *made.size, groups * c), is_wide=is_wide)
    y = call.rows("y", (given["batch"], *made.out, groups * o), is_wide=is_wide)
    return made, groups, c, o, x, y


def _of_weight(call, made, groups, o, c):
    found = call.memory.packed(call.given["weight"], (groups, o, *made.kernel, c), call.dtype)
    return np.moveaxis(found, -1, 2).astype(np.float64)


def _product(call):
    made, groups, c, o, x, y = _geometry(call)
    weight = _of_weight(call, made, groups, o, c)
    if call.face == "conv_forward":
        y[...] = call.activated(rowed(made.correlate(grouped(x, groups), weight)) + call.bias(groups * o))
    else:
        x[...] = call.activated(rowed(made.spread(grouped(y, groups), weight)) + call.bias(groups * c))


def _weight(call):
    made, groups, c, o, x, y = _geometry(call)
    splits = call.given["splits"]
    workspace = call.memory.packed(call.given["workspace"], (splits, groups, o, *made.kernel, c), "float32")
    workspace[...] = 0
    workspace[-1] = np.moveaxis(made.weight_gradient(grouped(x, groups), grouped(y, groups)), 2, -1)


def _bias(call):
    channels, splits = call.given["channels"], call.given["splits"]
    y = call.rows("y", (call.given["batch"], *call.axes("out"), channels))
    workspace = call.memory.packed(call.given["workspace"], (splits, channels), "float32")
    workspace[...] = 0
    workspace[-1] = y.astype(np.float64).sum(axis=(0, 1, 2, 3))


def _sum(call):
    splits, count = call.given["splits"], call.given["count"]
    parts = call.memory.packed(call.given["workspace"], (splits, count), "float32")
    call.memory.packed(call.given["output"], (count,), call.dtype)[...] = parts.astype(np.float64).sum(axis=0)


def _depthwise(call):
    given, config = call.given, call.kernel.config
    is_wide, m = config.vector > 1, given["multiplier"]
    target_size, source_size = call.axes("target"), call.axes("source")
    source = call.rows("source", (given["batch"], *source_size, given["source_channels"]), "of_", is_wide=is_wide)
    target = call.rows("target", (given["batch"], *target_size, given["target_channels"]), "of_", is_wide=is_wide)
    x_size, y_size = (target_size, source_size) if config.is_spread else (source_size, target_size)
    made = Convolution(x_size, *(call.axes("kernel"), y_size, call.axes("stride"), call.axes("dilation"), call.axes("pad")))
    groups = given["target_channels"] if config.is_spread else given["source_channels"]
    found = call.memory.packed(given["w"], (*made.kernel, groups, m), call.dtype)
    weight = found.transpose(3, 4, 0, 1, 2)[:, :, None].astype(np.float64)
    assert m == 1 or not is_wide
    b, d, h, w, c = target.shape
    call.covers(b * d * h * -(-w // config.positions) * -(-c // config.vector))
    y = (made.spread if config.is_spread else made.correlate)(grouped(source, groups), weight)
    target[...] = call.activated(rowed(y) + call.bias(c))


def _depthwise_weight(call):
    given, config = call.given, call.kernel.config
    is_wide, m, splits, c_out = config.vector > 1, given["multiplier"], given["splits"], given["c_out"]
    made = Convolution(*(call.axes(name) for name in ("in", "kernel", "out", "stride", "dilation", "pad")))
    x = call.rows("x", (given["batch"], *made.size, c_out // m), is_wide=is_wide)
    y = call.rows("y", (given["batch"], *made.out, c_out), is_wide=is_wide)
    taps = int(np.prod(made.kernel))
    call.covers(splits * taps * -(-c_out // config.vector))
    workspace = call.memory.packed(given["workspace"], (splits, taps, c_out), "float32")
    workspace[...] = 0
    found = made.weight_gradient(grouped(x, c_out // m), grouped(y, c_out // m))
    workspace[-1] = found.reshape(c_out, taps).T


def _six(call, name, sizes):
    steps = [call.given[f"of_{name}_{axis}"] for axis in ("group", *STEPS, "channel")]
    shape = (call.given["groups"], call.given["batch"], *sizes, call.given["channels"])
    if call.given[f"{name}_vectors"]:
        assert steps[-1] == 1
        assert not shape[-1] % call.kernel.config.vector
    return call.memory.view(call.given[name], shape, steps, call.dtype)


def _place(call):
    inner, outer = ("target", "source") if call.face == "conv_fold" else ("source", "target")
    source, target = _six(call, "source", call.axes("source")), _six(call, "target", call.axes("target"))
    low, high = call.axes("low"), call.axes("high")
    assert call.axes(outer) == tuple(n + a + b for n, a, b in zip(call.axes(inner), low, high, strict=True))
    mode = {code: name for name, code in BORDERS.items()}[call.given["mode"]]
    borders = tuple(zip(low, high, strict=True))
    call.covers(target.size // max(target.shape[-1], 1) * -(-target.shape[-1] // call.kernel.config.vector))
    if call.face == "conv_place":
        target[...] = np.pad(source, [(0, 0)] * 2 + [*borders] + [(0, 0)], mode=NUMPY_MODES[mode])
        return
    moved = np.moveaxis(np.empty(target.shape), -1, 2)
    _, pullback = refattn.pad.vjp(moved, padding=borders, mode=mode)
    target[...] = np.moveaxis(pullback(np.moveaxis(source.astype(np.float64), -1, 2))["x"], 2, -1)


def _finish(call):
    names = ("before", "d_after") if call.face == "conv_finish_back" else ("before",)
    shape, config = (call.given["rows"], call.given["channels"]), call.kernel.config
    call.covers(shape[0] * -(-shape[1] // config.vector))
    for name in (*names, "target"):
        if config.vector > 1:
            assert not call.given[name] % ALIGNMENT
            assert not call.given[f"of_{name}"] % config.vector
            assert not shape[1] % config.vector
    arrays = [call.memory.view(call.given[name], shape, (call.given[f"of_{name}"], 1), call.dtype) for name in names]
    target = call.memory.view(call.given["target"], shape, (call.given["of_target"], 1), call.dtype)
    before = arrays[0].astype(np.float64)
    if call.face == "conv_finish":
        target[...] = call.activated(before + call.bias(shape[1]))
        return
    name = {code: name for name, code in CODES.items()}[call.given["activation"]]
    target[...] = getattr(refattn, name).vjp(before)[1](arrays[1].astype(np.float64))["x"]


FACES = {
    "conv_forward": _product,
    "conv_input": _product,
    "conv_weight": _weight,
    "conv_bias": _bias,
    "conv_sum": _sum,
    "depthwise_forward": _depthwise,
    "depthwise_input": _depthwise,
    "depthwise_weight": _depthwise_weight,
    "conv_place": _place,
    "conv_fold": _place,
    "conv_finish": _finish,
    "conv_finish_back": _finish,
}
"""By how the names of kernels begin."""
