"""Primitives, index by index: plain loops over plain numbers, slow and easy to check by eye."""

import math

import numpy as np


def _each_row(function, x):
    rows = [function([float(v) for v in row]) for row in x.reshape(-1, x.shape[-1])]
    return np.array(rows).reshape(x.shape[:-1] if np.ndim(rows[0]) == 0 else x.shape)


def softmax(x):
    def row(v):
        largest = max(v)
        e = [math.exp(a - largest) for a in v]
        return [a / sum(e) for a in e]

    return _each_row(row, x)


def logsumexp(x):
    def row(v):
        largest = max(v)
        return largest + math.log(sum(math.exp(a - largest) for a in v))

    return _each_row(row, x)


def log_softmax(x):
    return x - logsumexp(x)[..., None]


def linear(x, weight, bias=None):
    y = np.zeros((*x.shape[:-1], len(weight)))
    for at in np.ndindex(y.shape):
        *lead, o = at
        y[at] = sum(x[(*lead, i)] * weight[o, i] for i in range(x.shape[-1]))
        if bias is not None:
            y[at] += bias[o]
    return y


def scaled(scores, scale):
    y = np.zeros(scores.shape)
    spread = np.broadcast_to(scale, scores.shape)
    for at in np.ndindex(y.shape):
        y[at] = spread[at] * scores[at]
    return y


def softcap(scores, *, cap):
    y = np.zeros(scores.shape)
    for at in np.ndindex(y.shape):
        y[at] = scores[at] if cap is None else cap * math.tanh(scores[at] / cap)
    return y


def dropout(x, *, keep, rate=0.0):
    y = np.zeros(x.shape)
    for at in np.ndindex(y.shape):
        if keep is None:
            y[at] = x[at]
        elif np.broadcast_to(keep, x.shape)[at]:
            y[at] = x[at] / (1 - rate)
    return y


def masked_softmax(scores, sinks=None, *, mask=None, masked_rows="zero"):
    weights, lse = np.zeros(scores.shape), np.zeros(scores.shape[:-1])
    allowed = np.broadcast_to(True if mask is None else mask, scores.shape)
    for at in np.ndindex(lse.shape):
        seen = [j for j in range(scores.shape[-1]) if allowed[(*at, j)]]
        total = sum(math.exp(scores[(*at, j)]) for j in seen)
        if sinks is not None:
            total += math.exp(sinks[at[-2]])
        lse[at] = math.log(total) if total else -math.inf
        for j in seen:
            weights[(*at, j)] = math.exp(scores[(*at, j)]) / total
        if not total:
            weights[at] = {"zero": 0.0, "nan": math.nan, "uniform": 1 / scores.shape[-1]}[masked_rows]
    return weights, lse
