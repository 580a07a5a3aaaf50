"""Reductions and global pooling, index by index."""

import math

import numpy as np


def _over(function, x, axes, keepdims):
    axes = {a % x.ndim for a in ((axes,) if isinstance(axes, int) else axes)}
    groups = {}
    for at in np.ndindex(x.shape):
        key = tuple(0 if i in axes else n for i, n in enumerate(at))
        groups.setdefault(key, []).append(float(x[at]))
    y = np.zeros([1 if i in axes else n for i, n in enumerate(x.shape)])
    for at, values in groups.items():
        y[at] = function(values)
    return y if keepdims else y.reshape([n for i, n in enumerate(x.shape) if i not in axes])


def _mean(values):
    return math.fsum(values) / len(values)


def mean_over(x, *, axes, keepdims=False):
    return _over(_mean, x, axes, keepdims)


def max_over(x, *, axes, keepdims=False):
    return _over(max, x, axes, keepdims)


def global_avg_pool(x):
    return _over(_mean, x, tuple(range(2, x.ndim)), keepdims=False)


def global_max_pool(x):
    return _over(max, x, tuple(range(2, x.ndim)), keepdims=False)
