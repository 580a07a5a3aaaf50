"""Sums and products, index by index."""

import numpy as np


def _elementwise(function, a, b):
    y = np.zeros(np.broadcast_shapes(a.shape, b.shape))
    left, right = np.broadcast_to(a, y.shape), np.broadcast_to(b, y.shape)
    for at in np.ndindex(y.shape):
        y[at] = function(left[at], right[at])
    return y


def add(a, b):
    return _elementwise(lambda x, y: x + y, a, b)


def multiply(a, b):
    return _elementwise(lambda x, y: x * y, a, b)


def squared_distances(a, b, *, mask=None):
    y = np.zeros((*a.shape[:-1], b.shape[-2]))
    compared = np.broadcast_to(True if mask is None else mask, y.shape)
    for *lead, i, j in np.ndindex(y.shape):
        if compared[(*lead, i, j)]:
            y[(*lead, i, j)] = sum((a[(*lead, i, k)] - b[(*lead, j, k)]) ** 2 for k in range(a.shape[-1]))
    return y


def matmul(a, b):
    y = np.zeros((*a.shape[:-1], b.shape[-1]))
    for at in np.ndindex(y.shape):
        *lead, i, j = at
        y[at] = sum(a[(*lead, i, k)] * b[(*lead, k, j)] for k in range(a.shape[-1]))
    return y


def weighted_sum(a, b, alpha, beta):
    y = np.zeros(a.shape)
    alphas, betas = np.broadcast_to(alpha, a.shape), np.broadcast_to(beta, a.shape)
    for at in np.ndindex(a.shape):
        y[at] = alphas[at] * a[at] + betas[at] * b[at]
    return y
