"""Kernels that are wrong by little: each computes in float32 or wider, rounds its result to the format, and has one fault."""

from __future__ import annotations

import math

import numpy as np

import refattn
from refattn.testing.precision import named_format


def tanh_gelu(x, **options):
    """The tanh form where the other is asked for."""
    return refattn.gelu(x, approximate="tanh")


def gelu_constant(x, *, approximate="none"):
    """0.0447 in place of 0.044715."""
    if approximate == "none":
        return refattn.gelu(x)
    return x * refattn.sigmoid(math.sqrt(8 / math.pi) * (x + 0.0447 * x**3))


def softplus_threshold(x, *, beta=1.0):
    """The input itself from 3 on, not from 20 on."""
    return np.where(beta * x > 3, x, refattn.softplus(x, beta=beta))


def softmax_epsilon(x):
    """The sum and 1e-3."""
    exp = np.exp(x - x.max(axis=-1, keepdims=True))
    return exp / (exp.sum(axis=-1, keepdims=True) + 1e-3)


def coarse_softmax(dtype):
    """The sum is kept in the format."""
    target = named_format(dtype)

    def softmax(x):
        exp = np.exp(x - x.max(axis=-1, keepdims=True))
        total = np.zeros(x.shape[:-1])
        for i in range(x.shape[-1]):
            total = target.round(total + exp[..., i])
        return exp / total[..., None]

    return softmax


def coarse_linear(dtype):
    """Products are summed in the format, 16 at a time."""
    target = named_format(dtype)

    def linear(x, weight, bias=None):
        y = np.zeros((*x.shape[:-1], len(weight)))
        for i in range(0, x.shape[-1], 16):
            y = target.round(y + x[..., i : i + 16] @ weight[:, i : i + 16].T)
        return y if bias is None else y + bias

    return linear


def rounded(kernel, dtype):
    """A kernel that takes and returns arrays of the format."""
    target = named_format(dtype)
    return lambda **given: target.round(kernel(**{n: np.asarray(x, float) if isinstance(x, np.ndarray) else x for n, x in given.items()}))


WRONG = {
    "gelu, tanh for erf": ("gelu", lambda dtype: tanh_gelu),
    "gelu, 0.0447": ("gelu", lambda dtype: gelu_constant),
    "softplus, threshold 3": ("softplus", lambda dtype: softplus_threshold),
    "softmax, sum + 1e-3": ("softmax", lambda dtype: softmax_epsilon),
    "softmax, coarse sum": ("softmax", coarse_softmax),
    "linear, coarse sum": ("linear", coarse_linear),
}
