"""Sampling between pixels and deformable convolutions: interpolation is a sum over all pixels of the map, as the paper writes it."""

import numpy as np


def _g(a, b):
    return np.maximum(0, 1 - abs(a - b))


def _interpolated(plane, row, column):
    """Equations (3) and (4) of Dai et al."""
    return sum(_g(i, row) * _g(j, column) * plane[i, j] for i, j in np.ndindex(plane.shape))


def sample_bilinear(x, positions):
    lead, channels = x.shape[:-3], x.shape[-3]
    picked = positions.shape[len(lead) + 1 :]
    y = np.zeros((*lead, channels, *picked))
    for at in np.ndindex(y.shape):
        example, c, p = at[: len(lead)], at[len(lead)], at[len(lead) + 1 :]
        y[at] = _interpolated(x[(*example, c)], positions[(*example, 0, *p)], positions[(*example, 1, *p)])
    return y


def _before(padding, axis, size, kernel, stride, dilation):
    """How many zeros stand before an axis."""
    if padding == "same":
        added = (-(-size // stride) - 1) * stride + dilation * (kernel - 1) + 1 - size
        return max(added, 0) // 2
    if padding == "valid":
        return 0
    of_axis = padding if isinstance(padding, int) else padding[axis]
    return of_axis if isinstance(of_axis, int) else of_axis[0]


def deform_conv2d(x, offset, weight, bias=None, **options):
    batch, channels, height, width = offset.shape
    return modulated_deform_conv2d(x, offset, np.ones((batch, channels // 2, height, width)), weight, bias, **options)


def modulated_deform_conv2d(x, offset, modulation, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1, offset_groups=1):
    batch, in_channels, *size = x.shape
    out_channels, in_group, *kernel = weight.shape
    stride, dilation = ([n, n] if isinstance(n, int) else n for n in (stride, dilation))
    before = [_before(padding, a, size[a], kernel[a], stride[a], dilation[a]) for a in (0, 1)]
    y = np.zeros((batch, out_channels, *offset.shape[2:]))
    for b, o, p, q in np.ndindex(y.shape):
        total = 0.0 if bias is None else bias[o]
        group = o // (out_channels // groups)
        for k, t, u in np.ndindex(in_group, *kernel):
            c = group * in_group + k
            tap = (c // (in_channels // offset_groups) * kernel[0] + t) * kernel[1] + u
            row = stride[0] * p - before[0] + dilation[0] * t + offset[b, 2 * tap, p, q]
            column = stride[1] * q - before[1] + dilation[1] * u + offset[b, 2 * tap + 1, p, q]
            total += weight[o, k, t, u] * _interpolated(x[b, c], row, column) * modulation[b, tap, p, q]
        y[b, o, p, q] = total
    return y
