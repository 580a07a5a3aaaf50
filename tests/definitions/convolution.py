"""Convolutions, index by index: each output is a sum over the taps of a kernel, each tap looks up one position."""

import itertools
import math

import numpy as np


def _source(p, size, mode):
    """The position of the input that stands at position p of an axis that goes on at both ends; None for a zero."""
    if 0 <= p < size:
        return p
    if mode == "zeros":
        return None
    if mode == "replicate":
        return 0 if p < 0 else size - 1
    if mode == "circular":
        return p % size
    return -p if p < 0 else 2 * (size - 1) - p


def pad(x, *, padding, mode="zeros"):
    pairs = [(0, 0)] * (x.ndim - len(padding)) + list(padding)
    y = np.zeros([before + n + after for n, (before, after) in zip(x.shape, pairs, strict=True)])
    for at in np.ndindex(y.shape):
        source = [_source(p - before, n, mode) for p, n, (before, _) in zip(at, x.shape, pairs, strict=True)]
        if None not in source:
            y[at] = x[tuple(source)]
    return y


def _numbers(option, axes):
    return [option] * axes if isinstance(option, int) else list(option)


def _before_and_out(padding, size, kernel, stride, dilation):
    """How many positions one axis has before the input, and how many outputs."""
    reach = dilation * (kernel - 1) + 1
    if padding == "same":
        out = math.ceil(size / stride)
        added = max((out - 1) * stride + reach - size, 0)
        return added // 2, out
    before, after = (padding, padding) if isinstance(padding, int) else padding
    return before, (before + size + after - reach) // stride + 1


def _conv(x, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1, padding_mode="zeros"):
    batch, _, *size = x.shape
    out_channels, in_group, *kernel = weight.shape
    axes = len(size)
    strides, dilations = _numbers(stride, axes), _numbers(dilation, axes)
    paddings = [padding] * axes if padding == "same" else _numbers(0 if padding == "valid" else padding, axes)
    borders = [_before_and_out(*each) for each in zip(paddings, size, kernel, strides, dilations, strict=True)]
    y = np.zeros((batch, out_channels, *(out for _, out in borders)))
    for b, o, *p in np.ndindex(y.shape):
        group = o // (out_channels // groups)
        total = 0.0 if bias is None else bias[o]
        for c in range(in_group):
            for t in itertools.product(*map(range, kernel)):
                seen = [_source(strides[i] * p[i] + dilations[i] * t[i] - borders[i][0], size[i], padding_mode) for i in range(axes)]
                if None not in seen:
                    total += weight[(o, c, *t)] * x[(b, group * in_group + c, *seen)]
        y[(b, o, *p)] = total
    return y


def conv1d(*args, **options):
    return _conv(*args, **options)


def conv2d(*args, **options):
    return _conv(*args, **options)


def conv3d(*args, **options):
    return _conv(*args, **options)


def _conv_transpose(x, weight, bias=None, *, stride=1, padding=0, output_padding=0, dilation=1, groups=1):
    batch, in_channels, *size = x.shape
    _, out_group, *kernel = weight.shape
    axes = len(size)
    strides, dilations, more = _numbers(stride, axes), _numbers(dilation, axes), _numbers(output_padding, axes)
    pairs = [(p, p) if isinstance(p, int) else p for p in _numbers(padding, axes)]
    out = [
        (n - 1) * s - sum(pair) + d * (k - 1) + m + 1
        for n, s, pair, d, k, m in zip(size, strides, pairs, dilations, kernel, more, strict=True)
    ]
    y = np.zeros((batch, groups * out_group, *out))
    if bias is not None:
        for o in range(groups * out_group):
            y[:, o] = bias[o]
    for b, c, *p in np.ndindex(x.shape):
        group = c // (in_channels // groups)
        for o, *t in np.ndindex(out_group, *kernel):
            q = [strides[i] * p[i] + dilations[i] * t[i] - pairs[i][0] for i in range(axes)]
            if all(0 <= q[i] < out[i] for i in range(axes)):
                y[(b, group * out_group + o, *q)] += weight[(c, o, *t)] * x[(b, c, *p)]
    return y


def conv_transpose1d(*args, **options):
    return _conv_transpose(*args, **options)


def conv_transpose2d(*args, **options):
    return _conv_transpose(*args, **options)


def conv_transpose3d(*args, **options):
    return _conv_transpose(*args, **options)


def conv2d_im2col(*args, **options):
    return _conv(*args, **options)


def conv2d_fft(*args, **options):
    return _conv(*args, **options)


def conv2d_winograd(*args, tile=4, **options):
    return _conv(*args, **options)


def depthwise_conv2d(x, weight, bias=None, **options):
    y = [_conv(x[:, [c]], kernels, **options) for c, kernels in enumerate(np.split(weight, x.shape[1]))]
    return np.concatenate(y, axis=1) + (0 if bias is None else np.reshape(bias, (-1, 1, 1)))


def pointwise_conv2d(x, weight, bias=None):
    y = np.zeros((len(x), len(weight), *x.shape[2:]))
    for b, o, i, j in np.ndindex(y.shape):
        y[b, o, i, j] = sum(weight[o, c, 0, 0] * x[b, c, i, j] for c in range(x.shape[1])) + (0 if bias is None else bias[o])
    return y


def separable_conv2d(x, w_depthwise, w_pointwise, bias=None, **options):
    return pointwise_conv2d(depthwise_conv2d(x, w_depthwise, **options), w_pointwise, bias)


def causal_conv1d(x, weight, bias=None, state=None):
    batch, channels, length = x.shape
    taps = weight.shape[1]
    past = np.zeros((batch, channels, taps - 1)) if state is None else state

    def at(b, c, p):
        return x[b, c, p] if p >= 0 else past[b, c, p + taps - 1]

    y, new = np.zeros(x.shape), np.zeros(past.shape)
    for b, c, p in np.ndindex(y.shape):
        y[b, c, p] = sum(weight[c, t] * at(b, c, p + t - (taps - 1)) for t in range(taps)) + (0 if bias is None else bias[c])
    for b, c, p in np.ndindex(new.shape):
        new[b, c, p] = at(b, c, length + p - (taps - 1))
    return y, new


def unfold2d(x, *, kernel_size, stride=1, padding=0, dilation=1, padding_mode="zeros"):
    batch, channels, *size = x.shape
    kernel, strides, dilations = (_numbers(option, 2) for option in (kernel_size, stride, dilation))
    paddings = [padding] * 2 if padding == "same" else _numbers(padding, 2)
    borders = [_before_and_out(*each) for each in zip(paddings, size, kernel, strides, dilations, strict=True)]
    y = np.zeros((batch, channels, kernel[0] * kernel[1], *(out for _, out in borders)))
    for b, c, tap, *p in np.ndindex(y.shape):
        t = divmod(tap, kernel[1])
        seen = [_source(strides[i] * p[i] + dilations[i] * t[i] - borders[i][0], size[i], padding_mode) for i in range(2)]
        y[(b, c, tap, *p)] = 0.0 if None in seen else x[(b, c, *seen)]
    return y
