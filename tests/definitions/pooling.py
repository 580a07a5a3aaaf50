"""Pooling, window by window."""

import itertools
import math

import numpy as np


def _each(value, axes):
    return (value,) * axes if isinstance(value, int) else value


def _outputs(size, k, s, p, d, ceil_mode):
    spare = size + 2 * p - d * (k - 1) - 1
    out = (math.ceil(spare / s) if ceil_mode else math.floor(spare / s)) + 1
    return out - 1 if ceil_mode and (out - 1) * s >= size + p else out


def _pool(reduce, x, axes, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False):
    """`reduce` gets the elements inside a window, and how many positions it has inside the padded input."""
    size = x.shape[-axes:]
    k, p, d = _each(kernel_size, axes), _each(padding, axes), _each(dilation, axes)
    s = k if stride is None else _each(stride, axes)
    out = [_outputs(size[a], k[a], s[a], p[a], d[a], ceil_mode) for a in range(axes)]
    y = np.zeros((*x.shape[:-axes], *out))
    for at in np.ndindex(y.shape):
        values, positions = [], 0
        for tap in itertools.product(*map(range, k)):
            i = [at[a - axes] * s[a] - p[a] + d[a] * tap[a] for a in range(axes)]
            positions += all(i[a] < size[a] + p[a] for a in range(axes))
            if all(0 <= i[a] < size[a] for a in range(axes)):
                values.append(float(x[(*at[:-axes], *i)]))
        y[at] = reduce(values, positions)
    return y


def _largest(values, positions):
    return max(values)


def _mean(values, positions):
    return math.fsum(values) / len(values)


def _mean_with_padding(values, positions):
    return math.fsum(values) / positions


def _adaptive(reduce, x, axes, output_size):
    size, out = x.shape[-axes:], _each(output_size, axes)
    y = np.zeros((*x.shape[:-axes], *out))
    for at in np.ndindex(y.shape):
        bins = [range(math.floor(at[a - axes] * size[a] / out[a]), math.ceil((at[a - axes] + 1) * size[a] / out[a])) for a in range(axes)]
        y[at] = reduce([float(x[(*at[:-axes], *i)]) for i in itertools.product(*bins)], 0)
    return y


def max_pool1d(x, **options):
    return _pool(_largest, x, 1, **options)


def max_pool2d(x, **options):
    return _pool(_largest, x, 2, **options)


def max_pool3d(x, **options):
    return _pool(_largest, x, 3, **options)


def avg_pool1d(x, *, count_include_pad=True, **options):
    return _pool(_mean_with_padding if count_include_pad else _mean, x, 1, **options)


def avg_pool2d(x, *, count_include_pad=True, **options):
    return _pool(_mean_with_padding if count_include_pad else _mean, x, 2, **options)


def avg_pool3d(x, *, count_include_pad=True, **options):
    return _pool(_mean_with_padding if count_include_pad else _mean, x, 3, **options)


def adaptive_avg_pool1d(x, *, output_size):
    return _adaptive(_mean, x, 1, output_size)


def adaptive_avg_pool2d(x, *, output_size):
    return _adaptive(_mean, x, 2, output_size)


def adaptive_avg_pool3d(x, *, output_size):
    return _adaptive(_mean, x, 3, output_size)


def adaptive_max_pool1d(x, *, output_size):
    return _adaptive(_largest, x, 1, output_size)


def adaptive_max_pool2d(x, *, output_size):
    return _adaptive(_largest, x, 2, output_size)


def adaptive_max_pool3d(x, *, output_size):
    return _adaptive(_largest, x, 3, output_size)
