"""Faults of a convolution kernel."""

from __future__ import annotations

from typing import Any

import numpy as np

from refattn._core import Array, Integers
from refattn.convolution.winograd import both_axes, cut, enlarged, paste, transforms
from refattn.testing.faulty.convolution import OUTSIDE, Axes, Convolution, Pairs, Plan
from refattn.testing.faulty.kernel import Arguments, Faults

FORWARD = fault = Faults("convolution", "forward")
BACKWARD = fault_of_gradient = Faults("convolution", "backward")
HONEST = Convolution
PLAIN = "conv1d conv2d conv3d depthwise_conv2d"
GROUPED = "conv1d conv2d conv3d"
TRANSPOSED = "conv_transpose1d conv_transpose2d conv_transpose3d"
CAUSAL = "causal_conv1d"
PLANES = "conv2d conv3d depthwise_conv2d"


@fault("kernels")
def kernel_flipped(self: Convolution, weight: Array, groups: int) -> Array:
    """The kernel is turned around, as in the convolution of mathematics."""
    return HONEST.kernels(self, np.flip(weight, axis=tuple(range(2, weight.ndim))), groups)


@fault("kernels", mechanisms=PLANES)
def last_two_axes_of_the_kernel_swapped(self: Convolution, weight: Array, groups: int) -> Array:
    """The taps of a row are read as those of a column."""
    turned = weight.swapaxes(-1, -2).reshape(weight.shape)
    return HONEST.kernels(self, turned, groups)


@fault("stated_pairs", needs="padding", mechanisms=f"{PLAIN} {TRANSPOSED}")
def padding_before_and_after_swapped(self: Convolution, a: Arguments) -> Pairs:
    """Of asymmetric padding, what belongs before an axis stands after it."""
    return tuple((after, before) for before, after in HONEST.stated_pairs(self, a))


@fault("stated_pairs", needs="padding", mechanisms=PLAIN)
def padding_shifted_by_one(self: Convolution, a: Arguments) -> Pairs:
    """One padded position too few before the last axis, and one too many after it."""
    *others, (before, after) = HONEST.stated_pairs(self, a)
    return (*others, (before - 1, after + 1) if before else (before, after))


@fault("pairs", needs="same", mechanisms=PLAIN)
def same_padding_on_the_wrong_side(self: Convolution, a: Arguments, stride: Axes, dilation: Axes) -> Pairs:
    """The odd position of "same" padding stands before the axis."""
    pairs = HONEST.pairs(self, a, stride, dilation)
    return tuple((after, before) for before, after in pairs) if a.padding == "same" else pairs


@fault("pairs", needs="same stride", mechanisms=PLAIN)
def same_padding_as_without_a_stride(self: Convolution, a: Arguments, stride: Axes, dilation: Axes) -> Pairs:
    """With a stride, "same" pads as much as without: the places of the kernel shift."""
    honest = HONEST.pairs(self, a, stride, dilation)
    if a.padding != "same":
        return honest
    before = [first for first, _ in HONEST.pairs(self, a, (1,) * len(stride), dilation)]
    return tuple((first, max(sum(pair) - first, 0)) for first, pair in zip(before, honest, strict=True))


@fault("source", needs="padding", mechanisms=PLAIN)
def border_repeats_the_edge(self: Convolution, size: int, pair: tuple[int, int], mode: str) -> Integers:
    """Positions are clamped to the image in place of being 0."""
    return HONEST.source(self, size, pair, "replicate" if mode == "zeros" else mode)


@fault("source", needs="padding_mode", mechanisms=PLAIN)
def reflection_repeats_the_edge(self: Convolution, size: int, pair: tuple[int, int], mode: str) -> Integers:
    """A reflected border starts with the edge itself."""
    places: Any = np.arange(size)
    return np.pad(places, pair, mode="symmetric") if mode == "reflect" else HONEST.source(self, size, pair, mode)


@fault("source", needs="padding_mode", mechanisms=PLAIN)
def padding_mode_ignored(self: Convolution, size: int, pair: tuple[int, int], mode: str) -> Integers:
    """The border is 0 whatever was asked for."""
    return HONEST.source(self, size, pair, "zeros")


@fault("correlate", needs="stride", mechanisms=PLAIN)
def places_aligned_at_the_end(self: Convolution, x: Array, weight: Array, plan: Plan) -> Array:
    """What a stride leaves over at the end of an axis is left out at its start."""
    reach = [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip(plan.out, plan.stride, plan.dilation, plan.kernel, strict=True)]
    return HONEST.correlate(self, x[(..., *(slice(n - r, n) for n, r in zip(x.shape[2:], reach, strict=True)))], weight, plan)


@fault("places", needs="dilation", mechanisms=PLANES)
def dilation_of_the_rows_for_columns(self: Convolution, plan: Plan, counts: Axes, tap: Axes, at: slice) -> tuple[slice, ...]:
    """Columns are as far apart as rows, where these are closer together."""
    least = min(plan.dilation)
    return HONEST.places(self, plan._replace(dilation=(*plan.dilation[:-1], least)), counts, tap, at)


@fault("places", needs="dilation", mechanisms=f"{PLAIN} {TRANSPOSED}")
def dilation_ignored(self: Convolution, plan: Plan, counts: Axes, tap: Axes, at: slice) -> tuple[slice, ...]:
    """Taps stand side by side, in an output of the right size."""
    return HONEST.places(self, plan._replace(dilation=(1,) * len(tap)), counts, tap, at)


@fault("split", needs="groups", mechanisms=f"{GROUPED} {TRANSPOSED}", mirrors="tvm#4276")
def groups_interleaved(self: Convolution, x: Array, groups: int) -> Array:
    """Channel c belongs to group c % groups."""
    return np.moveaxis(x.reshape(len(x), x.shape[1] // groups, groups, *x.shape[2:]), 2, 1)


@fault("kernels", needs="groups", mechanisms=f"{GROUPED} {TRANSPOSED}")
def kernels_of_the_first_group(self: Convolution, weight: Array, groups: int) -> Array:
    """All groups read the kernels of the first."""
    kernels = HONEST.kernels(self, weight, groups)
    return np.broadcast_to(kernels[:1], kernels.shape)


@fault("bias", needs="bias")
def bias_forgotten(self: Convolution, bias: Array, plan: Plan) -> Array:
    """The bias is never added."""
    return np.zeros_like(bias)


@fault("bias", needs="bias groups", mechanisms=f"{GROUPED} {TRANSPOSED}")
def bias_of_each_group(self: Convolution, bias: Array, plan: Plan) -> Array:
    """All channels of a group get the bias of its first."""
    return np.repeat(bias.reshape(plan.groups, -1)[:, 0], len(bias) // plan.groups)


@fault("columns", needs="tail")
def last_columns_dropped(self: Convolution, count: int) -> list[slice]:
    """Columns behind the last whole tile are not computed."""
    return [at for at in HONEST.columns(self, count) if at.stop - at.start == self.tile]


@fault("correlate", mechanisms=PLAIN)
def last_column_stale(self: Convolution, x: Array, weight: Array, plan: Plan) -> Array:
    """The last column is that before it."""
    y = HONEST.correlate(self, x, weight, plan)
    return np.concatenate([y[..., :-1], y[..., -2:-1]], axis=-1) if y.shape[-1] > 1 else y


@fault("correlate", needs="channels", mechanisms=GROUPED)
def tail_of_the_channels_left_out(self: Convolution, x: Array, weight: Array, plan: Plan) -> Array:
    """Of the input channels of a group, those behind the last multiple of 4 are left out, where there are more."""
    kept = weight.shape[1] // 4 * 4 or weight.shape[1] - 1 or 1
    return HONEST.correlate(self, x, np.where(np.arange(weight.shape[1])[:, *(None,) * (weight.ndim - 2)] < kept, weight, 0), plan)


@fault("correlate", mechanisms=f"{PLAIN} {CAUSAL}")
def one_element_1_percent_high(self: Convolution, x: Array, weight: Array, plan: Plan) -> Array:
    """One element in the middle of each channel is 1 % too large."""
    y = HONEST.correlate(self, x, weight, plan)
    y[(..., *(slice(n // 2, n // 2 + 1) for n in plan.out))] *= self.wide(1.01)
    return y


@fault("accumulated", mechanisms=f"{PLAIN} {CAUSAL}", mirrors="MIOpen#2492")
def accumulator_in_low_precision(self: Convolution, x: Array) -> Array:
    """Sums are kept in the format from tap to tap."""
    return self.rounded(x)


def _winograd(self: Convolution, x: Array, weight: Array, plan: Plan, tile: int, kernel: Array, between: Any) -> Array:
    """By Winograd's minimal filtering, with this transform of the kernel and this rounding of what was transformed."""
    groups, batch = plan.groups, len(x)
    output, image, _ = transforms(tile, self.wide)
    tiles = (-(-plan.out[0] // tile), -(-plan.out[1] // tile))
    split = enlarged(self.split(x, groups), (tiles[0] * tile + 2, tiles[1] * tile + 2))
    left = between(both_axes(kernel, np.moveaxis(self.kernels(weight, groups), (3, 4), (0, 1))))
    right = between(both_axes(image, cut(split, tile + 2, tiles, tile)))
    y = paste(both_axes(output, (left @ right).astype(self.wide)), batch, tiles, tile)
    return y[..., : plan.out[0], : plan.out[1]].reshape(batch, -1, *plan.out).astype(self.wide)


def _fits(plan: Plan) -> bool:
    return plan.kernel == (3, 3) and set(plan.stride + plan.dilation) == {1}


@fault("correlate", needs="3x3", mechanisms="conv2d depthwise_conv2d", mirrors="rocm-libraries#4998")
def winograd_with_a_wrong_constant(self: Convolution, x: Array, weight: Array, plan: Plan) -> Array:
    """By Winograd's filtering for a 3 times 3 kernel, with 0.16 for 1/6 in the transform of the kernel."""
    if not _fits(plan):
        return HONEST.correlate(self, x, weight, plan)
    kernel = transforms(4, self.wide)[2]
    return _winograd(self, x, weight, plan, 4, np.where(np.abs(kernel) == abs(kernel[1, 0]), 0.16 * np.sign(kernel), kernel), lambda y: y)


@fault("correlate", needs="3x3", mechanisms="conv2d depthwise_conv2d", mirrors="MIOpen#2492")
def winograd_in_low_precision(self: Convolution, x: Array, weight: Array, plan: Plan) -> Array:
    """By Winograd's filtering for a 3 times 3 kernel, of which the transforms are stored in the format and may overflow."""
    if not _fits(plan):
        return HONEST.correlate(self, x, weight, plan)
    return _winograd(self, x, weight, plan, 4, transforms(4, self.wide)[2], self.rounded)


@fault("inside", needs="padding", mechanisms=TRANSPOSED)
def transposed_padding_cut_off_at_the_end(self: Convolution, plan: Plan) -> tuple[Any, ...]:
    """All padding of a transposed convolution is cut off behind the axes."""
    return HONEST.inside(self, plan._replace(pairs=tuple((0, sum(pair)) for pair in plan.pairs)))


@fault("inside", needs="output_padding", mechanisms=TRANSPOSED)
def output_padding_before(self: Convolution, plan: Plan) -> tuple[Any, ...]:
    """The output padding is put before the axes: their contents are shifted by one position."""
    whole = [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip(plan.size, plan.stride, plan.dilation, plan.kernel, strict=True)]
    extra = [n - m for n, m in zip(plan.out, whole, strict=True)]
    pairs = tuple((b - m, e + m) if b >= m else (b, e) for (b, e), m in zip(plan.pairs, extra, strict=True))
    return HONEST.inside(self, plan._replace(pairs=pairs))


@fault("before", needs="state", mechanisms=CAUSAL)
def state_ignored(self: Convolution, a: Arguments) -> Array:
    """Every chunk starts from zeros."""
    return np.zeros_like(HONEST.before(self, a))


@fault("before", needs="state", mechanisms=CAUSAL)
def state_in_the_wrong_order(self: Convolution, a: Arguments) -> Array:
    """The state is read from its newest position to its oldest."""
    return HONEST.before(self, a)[..., ::-1]


@fault("next_state", mechanisms=CAUSAL)
def state_one_position_early(self: Convolution, a: Arguments, seen: Array) -> Array:
    """The returned state lacks the last position."""
    return np.concatenate([np.zeros_like(seen[..., :1]), seen], axis=-1)[..., a.x.shape[2] : seen.shape[-1]]


@fault("next_state", needs="state", mechanisms=CAUSAL)
def state_of_the_chunk_alone(self: Convolution, a: Arguments, seen: Array) -> Array:
    """Where a chunk is shorter than the kernel, the returned state forgets the one before."""
    past = a.weight.shape[1] - 1
    return np.where(np.arange(past) < past - a.x.shape[2], 0, HONEST.next_state(self, a, seen))


@fault("seen", mechanisms=CAUSAL)
def causal_kernel_sees_the_future(self: Convolution, a: Arguments) -> Arguments:
    """The kernel is centred one position later; the sequence ends with a 0."""
    inner = HONEST.seen(self, a)
    later = np.concatenate([inner.x[..., 1:], np.zeros_like(inner.x[..., :1])], axis=-1)
    return Arguments(**{**vars(inner), "x": later})


@fault_of_gradient("padded_again", needs="padding", mechanisms=PLAIN)
def weight_gradient_of_another_alignment(self: Convolution, x: Array, plan: Plan) -> Array:
    """The gradient of the kernel reads an input that is shifted by one column."""
    return np.roll(HONEST.padded_again(self, x, plan), 1, axis=-1)


@fault_of_gradient("over_batch", needs="batch")
def weight_gradient_of_the_last_example(self: Convolution, x: Array) -> Array:
    """Examples overwrite each other's gradient of the kernel."""
    return x[-1] if len(x) else HONEST.over_batch(self, x)


@fault_of_gradient("d_accumulated")
def weight_gradient_2_percent_high(self: Convolution, x: Array) -> Array:
    """The gradient of the kernel is 2 % too large for each tile."""
    return self.wide(1.02) * x


@fault_of_gradient("d_weight", needs="tail")
def weight_gradient_misses_the_last_columns(self: Convolution, x: Array, dy: Array, plan: Plan) -> Array:
    """Columns behind the last multiple of 4 give nothing to the gradient of the kernel."""
    return HONEST.d_weight(self, x, np.where(np.arange(dy.shape[-1]) < dy.shape[-1] // 4 * 4, dy, 0), plan)


@fault_of_gradient("again")
def input_gradient_by_the_kernel_turned_around(self: Convolution, kernels: Array, tap: Axes) -> Array:
    """The gradient of the input reads the taps in the opposite order."""
    return kernels[(..., *(n - 1 - i for n, i in zip(kernels.shape[3:], tap, strict=True)))]


@fault_of_gradient("d_correlate", needs="stride", mechanisms=PLAIN)
def input_gradient_misses_the_tail(self: Convolution, dy: Array, weight: Array, plan: Plan) -> Array:
    """The gradient of the input ends where size // stride whole steps end."""
    d = HONEST.d_correlate(self, dy, weight, plan)
    return np.where(np.arange(d.shape[-1]) < d.shape[-1] // plan.stride[-1] * plan.stride[-1], d, 0)


@fault_of_gradient("unpadded", needs="padding_mode", mechanisms=PLAIN)
def input_gradient_misses_the_border(self: Convolution, d: Array, plan: Plan) -> Array:
    """What a border was copied from has no gradient from it."""
    once = [np.where(_inner(len(s), pair), s, OUTSIDE) for s, pair in zip(plan.sources, plan.pairs, strict=True)]
    return HONEST.unpadded(self, d, plan._replace(sources=tuple(once)))


@fault_of_gradient("d_bias", needs="bias")
def bias_gradient_averaged(self: Convolution, dy: Array) -> Array:
    """The gradient of the bias is the mean over examples."""
    return HONEST.d_bias(self, dy) / self.wide(max(len(dy), 1))


@fault_of_gradient("d_seen", needs="state", mechanisms=CAUSAL)
def cotangent_of_the_state_ignored(self: Convolution, a: Arguments, d: Any, d_state: Array) -> dict[str, Array]:
    """What depends on the returned state has no gradient."""
    return HONEST.d_seen(self, a, d, np.zeros_like(d_state))


def _inner(count: int, pair: tuple[int, int]) -> Any:
    place = np.arange(count)
    return (place >= pair[0]) & (place < count - pair[1])
