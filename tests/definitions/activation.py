"""Nonlinearities, number by number."""

import math

import numpy as np


def _each(function, x):
    return np.array([function(float(v)) for v in x.ravel()]).reshape(x.shape)


def erf(x):
    return _each(math.erf, x)


def erfc(x):
    return _each(math.erfc, x)


def relu(x):
    return _each(lambda v: v if v > 0 else 0.0, x)


def elu_plus_one(x):
    return _each(lambda v: v + 1 if v > 0 else math.exp(v), x)


def _logistic(v):
    return 1 / (1 + math.exp(-v)) if v > 0 else math.exp(v) / (1 + math.exp(v))


def sigmoid(x):
    return _each(_logistic, x)


def tanh(x):
    return _each(math.tanh, x)


def silu(x):
    return _each(lambda v: v * _logistic(v), x)


def softplus(x, *, beta=1.0):
    return _each(lambda v: (math.log1p(math.exp(beta * v)) if beta * v < 0 else beta * v + math.log1p(math.exp(-beta * v))) / beta, x)


def gelu(x, *, approximate="none"):
    def normal(v):
        if approximate == "tanh":
            return (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) / 2
        return math.erfc(-v / math.sqrt(2)) / 2

    return _each(lambda v: v * normal(v), x)
