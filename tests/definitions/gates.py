"""Channel gates, index by index."""

import itertools
import math

import numpy as np


def _layer(v, weight, bias=None):
    return [sum(weight[o, i] * v[i] for i in range(len(v))) + (0.0 if bias is None else bias[o]) for o in range(len(weight))]


def _sigmoid(t):
    return 1 / (1 + math.exp(-t))


def _mlp(v, w_reduce, w_expand, b_reduce, b_expand):
    return _layer([max(t, 0.0) for t in _layer(v, w_reduce, b_reduce)], w_expand, b_expand)


def squeeze_excitation(x, w_reduce, w_expand, b_reduce=None, b_expand=None):
    y = np.zeros(x.shape)
    for n in range(len(x)):
        means = [sum(channel.ravel()) / channel.size for channel in x[n]]
        gates = [_sigmoid(t) for t in _mlp(means, w_reduce, w_expand, b_reduce, b_expand)]
        for c, gate in enumerate(gates):
            y[n, c] = gate * x[n, c]
    return y


def squeeze_excitation_one_layer(x, w_gate, b_gate=None):
    y = np.zeros(x.shape)
    for n in range(len(x)):
        means = [sum(channel.ravel()) / channel.size for channel in x[n]]
        for c, t in enumerate(_layer(means, w_gate, b_gate)):
            y[n, c] = _sigmoid(t) * x[n, c]
    return y


def cbam_channel_concat(x, w_gate, b_gate=None):
    y = np.zeros(x.shape)
    for n in range(len(x)):
        means = [sum(channel.ravel()) / channel.size for channel in x[n]]
        maxima = [max(channel.ravel()) for channel in x[n]]
        for c, t in enumerate(_layer(means + maxima, w_gate, b_gate)):
            y[n, c] = _sigmoid(t) * x[n, c]
    return y


def cbam_channel(x, w_reduce, w_expand, b_reduce=None, b_expand=None):
    y = np.zeros(x.shape)
    for n in range(len(x)):
        means = [sum(channel.ravel()) / channel.size for channel in x[n]]
        maxima = [max(channel.ravel()) for channel in x[n]]
        from_means = _mlp(means, w_reduce, w_expand, b_reduce, b_expand)
        from_maxima = _mlp(maxima, w_reduce, w_expand, b_reduce, b_expand)
        for c in range(x.shape[1]):
            y[n, c] = _sigmoid(from_means[c] + from_maxima[c]) * x[n, c]
    return y


def cbam_spatial(x, w_spatial, b_spatial=None):
    batch, channels, height, width = x.shape
    _, _, kernel_height, kernel_width = w_spatial.shape
    y = np.zeros(x.shape)
    for n, i, j in itertools.product(range(batch), range(height), range(width)):
        logit = 0.0 if b_spatial is None else b_spatial[0]
        for a, b in itertools.product(range(kernel_height), range(kernel_width)):
            p, q = i + a - kernel_height // 2, j + b - kernel_width // 2
            if 0 <= p < height and 0 <= q < width:
                column = [x[n, c, p, q] for c in range(channels)]
                logit += w_spatial[0, 0, a, b] * sum(column) / channels + w_spatial[0, 1, a, b] * max(column)
        y[n, :, i, j] = _sigmoid(logit) * x[n, :, i, j]
    return y


def cbam(x, w_reduce, w_expand, w_spatial, b_reduce=None, b_expand=None, b_spatial=None):
    return cbam_spatial(cbam_channel(x, w_reduce, w_expand, b_reduce, b_expand), w_spatial, b_spatial)


def mean_weights(scores):
    y = np.zeros(scores.shape)
    for at in np.ndindex(scores.shape):
        y[at] = scores[at] / len(scores[at[:-1]])
    return y
