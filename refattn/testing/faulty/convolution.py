"""An honest convolution kernel: one matrix product for each tap and tile of output columns, forward and backward.

Also transposed, and causal with a state. One method a step, so that a fault is one method replaced.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from refattn._core import Array, Integers
from refattn.testing.faulty.kernel import Arguments, Kernel

Axes: TypeAlias = tuple[int, ...]
Pairs: TypeAlias = tuple[tuple[int, int], ...]

MODES: dict[str, Any] = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
OUTSIDE = -1


class Plan(NamedTuple):
    """The sizes of one call; `sources` says for each padded position of each axis which position of x stands there."""

    size: Axes
    kernel: Axes
    stride: Axes
    dilation: Axes
    groups: int
    pairs: Pairs
    sources: tuple[Integers, ...]
    out: Axes


class Convolution(Kernel):
    """`refattn.conv1d` to `conv3d`, depthwise, transposed and causal."""

    family = "convolution"
    own_tile = 16

    def forward(self, a: Arguments) -> tuple[tuple[Array, ...], Any]:
        """By the kind of convolution."""
        if self.transposed:
            plan = self.plan_transposed(a)
            return (self.rounded(self.with_bias(a, self.spread(a.x, a.weight, plan), plan)),), plan
        if not self.causal:
            plan = self.plan(a)
            return (self.rounded(self.with_bias(a, self.correlate(self.padded(a.x, plan), a.weight, plan), plan)),), plan
        inner = self.seen(a)
        (output,), plan = self.forward_of_seen(inner)
        return (output, self.rounded(self.next_state(a, inner.x))), (inner, plan)

    def backward(self, a: Arguments, saved: Any, *ds: Array) -> dict[str, Array | None]:
        """By the kind of convolution."""
        if not self.causal:
            return self.gradients(a, saved, ds[0])
        inner, plan = saved
        grads = self.gradients(inner, plan, ds[0])
        return {**self.d_seen(a, grads["x"], ds[1]), "weight": grads["weight"][:, 0], "bias": grads["bias"]}

    @property
    def transposed(self) -> bool:
        """Whether inputs spread over a larger output."""
        return "transpose" in self.mechanism.spec.name

    @property
    def causal(self) -> bool:
        """Whether this is a depthwise convolution with a state."""
        return "causal" in self.mechanism.spec.name

    def plan(self, a: Arguments) -> Plan:
        """The sizes of a convolution."""
        size, kernel = a.x.shape[2:], a.weight.shape[2:]
        stride, dilation = self.stride(a), self.dilation(a)
        pairs = self.pairs(a, stride, dilation)
        sources = tuple(itertools.starmap(self.source, zip(size, pairs, (a.padding_mode,) * len(size), strict=True)))
        out = tuple((len(n) - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(sources, kernel, stride, dilation, strict=True))
        return Plan(size, kernel, stride, dilation, self.groups(a), pairs, sources, out)

    def plan_transposed(self, a: Arguments) -> Plan:
        """The sizes of a transposed convolution; `out` is that before its padding is cut off."""
        size, kernel = a.x.shape[2:], a.weight.shape[2:]
        stride, dilation, more = self.stride(a), self.dilation(a), self.each(a.output_padding, a)
        out = tuple((n - 1) * s + d * (k - 1) + 1 + m for n, s, d, k, m in zip(size, stride, dilation, kernel, more, strict=True))
        return Plan(size, kernel, stride, dilation, a.groups, self.stated_pairs(a), (), out)

    def stride(self, a: Arguments) -> Axes:
        """Of each axis."""
        return self.each(a.stride, a)

    def dilation(self, a: Arguments) -> Axes:
        """Of each axis."""
        return self.each(a.dilation, a)

    def groups(self, a: Arguments) -> int:
        """Of a depthwise convolution, as many as channels."""
        return getattr(a, "groups", a.x.shape[1])

    def each(self, value: Any, a: Arguments) -> Any:
        """One number for each axis."""
        return value if isinstance(value, tuple) else (value,) * (a.x.ndim - 2)

    def pairs(self, a: Arguments, stride: Axes, dilation: Axes) -> Pairs:
        """How many positions stand before and after each axis."""
        if a.padding == "same":
            sizes = zip(a.x.shape[2:], a.weight.shape[2:], stride, dilation, strict=True)
            short = [max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0) for n, k, s, d in sizes]
            return tuple((n // 2, n - n // 2) for n in short)
        return self.stated_pairs(a)

    def stated_pairs(self, a: Arguments) -> Pairs:
        """Of padding in numbers."""
        return tuple(p if isinstance(p, tuple) else (p, p) for p in self.each(0 if a.padding == "valid" else a.padding, a))

    def source(self, size: int, pair: tuple[int, int], mode: str) -> Integers:
        """Which position of an axis stands at each padded one."""
        places: Any = np.arange(size)
        return np.pad(places, pair, mode=MODES[mode], **({"constant_values": OUTSIDE} if mode == "zeros" else {}))

    def padded(self, x: Array, plan: Plan) -> Array:
        """With its border."""
        for axis, source in enumerate(plan.sources, 2):
            x = np.where(_along(source != OUTSIDE, axis, x.ndim), np.take(x, source, axis), 0)
        return x

    def unpadded(self, d: Array, plan: Plan) -> Array:
        """The transpose of `padded`."""
        for axis, (source, size) in enumerate(zip(plan.sources, plan.size, strict=True), 2):
            inside = source != OUTSIDE
            moved = np.moveaxis(d, axis, 0)
            total = np.zeros((size, *moved.shape[1:]), d.dtype)
            np.add.at(total, source[inside], moved[inside])
            d = np.moveaxis(total, 0, axis)
        return d

    def correlate(self, x: Array, weight: Array, plan: Plan) -> Array:
        """From padded (batch, groups * c, ...) and (groups * o, c, ...) to (batch, groups * o, ...)."""
        split, kernels = self.split(x, plan.groups), self.kernels(weight, plan.groups)
        y = np.zeros((len(x), plan.groups, kernels.shape[1], *plan.out), self.wide)
        for at in self.columns(plan.out[-1]):
            total = np.zeros_like(y[..., at])
            for tap in np.ndindex(*plan.kernel):
                seen = split[(..., *self.places(plan, plan.out, tap, at))]
                term = kernels[(..., *tap)] @ flat(seen)
                total = self.accumulated(total + term.reshape(total.shape))
            y[..., at] = total
        return joined(y)

    def split(self, x: Array, groups: int) -> Array:
        """Channels by groups."""
        return x.reshape(len(x), groups, x.shape[1] // groups, *x.shape[2:])

    def kernels(self, weight: Array, groups: int) -> Array:
        """Kernels by groups."""
        return weight.reshape(groups, -1, *weight.shape[1:])

    def columns(self, count: int) -> list[slice]:
        """Tiles of the last axis of the output."""
        return self.tiles(count)

    def places(self, plan: Plan, counts: Axes, tap: Axes, at: slice) -> tuple[slice, ...]:
        """What a tap meets, for all rows and one tile of columns."""
        starts, stops = (0,) * (len(tap) - 1) + (at.start,), (*counts[:-1], at.stop)
        return tuple(
            slice(i * d + first * s, i * d + (last - 1) * s + 1, s)
            for i, first, last, s, d in zip(tap, starts, stops, plan.stride, plan.dilation, strict=True)
        )

    def accumulated(self, x: Array) -> Array:
        """What an accumulator holds after a tap."""
        return x

    def with_bias(self, a: Arguments, y: Array, plan: Plan) -> Array:
        """One number for each output channel; of a transposed convolution, what its padding leaves."""
        whole = y[self.inside(plan)] if self.transposed else y
        return whole if a.bias is None else whole + _along(self.bias(a.bias, plan), 1, whole.ndim)

    def bias(self, bias: Array, plan: Plan) -> Array:
        """Of each output channel."""
        return bias

    def inside(self, plan: Plan) -> tuple[Any, ...]:
        """What is left of the output of a transposed convolution."""
        return (..., *(slice(before, n - after) for n, (before, after) in zip(plan.out, plan.pairs, strict=True)))

    def spread(self, x: Array, weight: Array, plan: Plan) -> Array:
        """Each position of the input adds to all places that it reaches."""
        split, kernels = self.split(x, plan.groups), self.kernels(weight, plan.groups)
        y = np.zeros((len(x), plan.groups, kernels.shape[2], *plan.out), self.wide)
        for at in self.columns(plan.size[-1]):
            for tap in np.ndindex(*plan.kernel):
                part = y[(..., *self.places(plan, plan.size, tap, at))]
                part += (kernels[(..., *tap)].swapaxes(-1, -2) @ flat(split[..., at])).reshape(part.shape)
        return joined(y)

    def gradients(self, a: Arguments, plan: Plan, dy: Array) -> dict[str, Any]:
        """Of a convolution, or of a transposed one."""
        if self.transposed:
            full = np.zeros((*dy.shape[:2], *plan.out), self.wide)
            full[self.inside(plan)] = dy
            reached = plan._replace(out=plan.size)
            d_x = self.d_spread(full, a.weight, reached)
            d_weight = self.d_weight(full, a.x, reached)
        else:
            d_x = self.d_correlate(dy, a.weight, plan)
            d_weight = self.d_weight(self.padded_again(a.x, plan), dy, plan)
        return {"x": d_x, "weight": d_weight, "bias": None if a.bias is None else self.d_bias(dy)}

    def padded_again(self, x: Array, plan: Plan) -> Array:
        """What the gradient of the kernel reads."""
        return self.padded(x, plan)

    def d_correlate(self, dy: Array, weight: Array, plan: Plan) -> Array:
        """The gradient of the input of a convolution."""
        split, kernels = self.split(dy, plan.groups), self.kernels(weight, plan.groups)
        d = np.zeros((len(dy), plan.groups, kernels.shape[2], *map(len, plan.sources)), self.wide)
        for at in self.tiles(plan.out[-1]):
            for tap in np.ndindex(*plan.kernel):
                part = d[(..., *self.places(plan, plan.out, tap, at))]
                part += (self.again(kernels, tap).swapaxes(-1, -2) @ flat(split[..., at])).reshape(part.shape)
        return self.unpadded(joined(d), plan)

    def d_spread(self, full: Array, weight: Array, plan: Plan) -> Array:
        """The gradient of the input of a transposed convolution."""
        split, kernels = self.split(full, plan.groups), self.kernels(weight, plan.groups)
        d = np.zeros((len(full), plan.groups, kernels.shape[1], *plan.out), self.wide)
        for at in self.tiles(plan.out[-1]):
            for tap in np.ndindex(*plan.kernel):
                seen = split[(..., *self.places(plan, plan.out, tap, at))]
                d[..., at] += (self.again(kernels, tap) @ flat(seen)).reshape(d[..., at].shape)
        return joined(d)

    def again(self, kernels: Array, tap: Axes) -> Array:
        """The matrix of a tap, in the backward pass."""
        return kernels[(..., *tap)]

    def d_weight(self, x: Array, dy: Array, plan: Plan) -> Array:
        """The gradient of the kernel."""
        seen, given = self.split(x, plan.groups), self.split(dy, plan.groups)
        d = np.zeros((plan.groups, given.shape[2], seen.shape[2], *plan.kernel), self.wide)
        for at in self.tiles(plan.out[-1]):
            for tap in np.ndindex(*plan.kernel):
                part = flat(seen[(..., *self.places(plan, plan.out, tap, at))])
                d[(..., *tap)] = self.d_accumulated(d[(..., *tap)] + self.over_batch(flat(given[..., at]) @ part.swapaxes(-1, -2)))
        return d.reshape(-1, *d.shape[2:])

    def d_accumulated(self, x: Array) -> Array:
        """What the accumulator of the kernel's gradient holds after a tile."""
        return x

    def over_batch(self, x: Array) -> Array:
        """Summed over examples."""
        return x.sum(axis=0)

    def d_bias(self, dy: Array) -> Array:
        """Summed over examples and positions."""
        return dy.sum(axis=(0, *range(2, dy.ndim)))

    def seen(self, a: Arguments) -> Arguments:
        """A causal convolution as one of the state and the input."""
        x = np.concatenate([self.before(a), a.x], axis=-1)
        options = {"stride": 1, "padding": 0, "dilation": 1, "groups": len(a.weight), "padding_mode": "zeros"}
        return Arguments(x=x, weight=a.weight[:, None], bias=a.bias, **options)

    def before(self, a: Arguments) -> Array:
        """The positions before the first."""
        past = a.weight.shape[1] - 1
        return np.zeros((*a.x.shape[:2], past), self.wide) if a.state is None else a.state

    def forward_of_seen(self, inner: Arguments) -> tuple[tuple[Array], Plan]:
        """The convolution of state and input."""
        plan = self.plan(inner)
        return (self.rounded(self.with_bias(inner, self.correlate(self.padded(inner.x, plan), inner.weight, plan), plan)),), plan

    def next_state(self, a: Arguments, seen: Array) -> Array:
        """The last positions."""
        return seen[..., a.x.shape[2] :]

    def d_seen(self, a: Arguments, d: Any, d_state: Array) -> dict[str, Array]:
        """The gradients of input and state."""
        past = a.weight.shape[1] - 1
        d[..., a.x.shape[2] :] += d_state
        return {"x": d[..., past:], "state": d[..., :past]}


def flat(x: Array) -> Array:
    """All positions as one axis."""
    return x.reshape(*x.shape[:3], int(np.prod(x.shape[3:])))


def joined(x: Array) -> Array:
    """Channels of all groups as one axis."""
    return x.reshape(len(x), x.shape[1] * x.shape[2], *x.shape[3:])


def _along(x: Any, axis: int, ndim: int) -> Any:
    return x.reshape(*(-1 if i == axis else 1 for i in range(ndim)))
