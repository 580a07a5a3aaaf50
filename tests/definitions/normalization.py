"""Normalisations, one set of values at a time."""

import math

import numpy as np


def _standardized(values, eps, center=True):
    mean = math.fsum(values) / len(values) if center else 0.0
    var = math.fsum((v - mean) ** 2 for v in values) / len(values)
    return [(v - mean) / math.sqrt(var + eps) for v in values], mean, var


def _over(key, x, eps, center=True):
    """Standardise the elements that share a key; also the mean, variance and number of each set."""
    sets = {}
    for at in np.ndindex(x.shape):
        sets.setdefault(key(at), []).append(at)
    z, statistics = np.zeros(x.shape), {}
    for k, places in sets.items():
        values, mean, var = _standardized([float(x[at]) for at in places], eps, center)
        statistics[k] = (mean, var, len(places))
        for at, v in zip(places, values, strict=True):
            z[at] = v
    return z, statistics


def _affine(z, scale, shift, key):
    y = np.zeros(z.shape)
    for at in np.ndindex(z.shape):
        y[at] = z[at] * (1 if scale is None else scale[key(at)]) + (0 if shift is None else shift[key(at)])
    return y


def layer_norm(x, scale=None, shift=None, *, normalized=1, eps=1e-5):
    z, _ = _over(lambda at: at[: len(at) - normalized], x, eps)
    return _affine(z, scale, shift, lambda at: at[len(at) - normalized :])


def rms_norm(x, scale=None, *, normalized=1, eps=1e-6):
    z, _ = _over(lambda at: at[: len(at) - normalized], x, eps, center=False)
    return _affine(z, scale, None, lambda at: at[len(at) - normalized :])


def batch_norm(x, running_mean, running_var, scale=None, shift=None, *, eps=1e-5):
    z = np.zeros(x.shape)
    for at in np.ndindex(x.shape):
        z[at] = (x[at] - running_mean[at[1]]) / math.sqrt(running_var[at[1]] + eps)
    return _affine(z, scale, shift, lambda at: at[1])


def batch_norm_training(x, running_mean, running_var, scale=None, shift=None, *, momentum=0.1, eps=1e-5):
    z, statistics = _over(lambda at: at[1], x, eps)
    new_mean, new_var = np.zeros(len(running_mean)), np.zeros(len(running_var))
    for c, (mean, var, n) in statistics.items():
        new_mean[c] = (1 - momentum) * running_mean[c] + momentum * mean
        new_var[c] = (1 - momentum) * running_var[c] + momentum * var * n / (n - 1)
    return _affine(z, scale, shift, lambda at: at[1]), new_mean, new_var


def group_norm(x, scale=None, shift=None, *, num_groups, eps=1e-5):
    size = x.shape[1] // num_groups
    z, _ = _over(lambda at: (at[0], at[1] // size), x, eps)
    return _affine(z, scale, shift, lambda at: at[1])


def instance_norm(x, scale=None, shift=None, *, eps=1e-5):
    z, _ = _over(lambda at: at[:2], x, eps)
    return _affine(z, scale, shift, lambda at: at[1])
