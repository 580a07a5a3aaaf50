"""Channel gates and the non-local block, index by index."""

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


def non_local(
    x,
    w_g,
    w_output,
    w_theta=None,
    w_phi=None,
    w_concat=None,
    b_g=None,
    b_output=None,
    b_theta=None,
    b_phi=None,
    *,
    pair="embedded_gaussian",
):
    z = np.zeros(x.shape)
    places = list(np.ndindex(x.shape[2:]))
    for n in range(len(x)):
        at = [x[(n, slice(None), *p)] for p in places]
        g = [_layer(v, w_g, b_g) for v in at]
        theta = at if pair == "gaussian" else [_layer(v, w_theta, b_theta) for v in at]
        phi = at if pair == "gaussian" else [_layer(v, w_phi, b_phi) for v in at]
        for i, p in enumerate(places):
            f = []
            for j in range(len(places)):
                dot = sum(s * t for s, t in zip(theta[i], phi[j], strict=True))
                if pair == "concatenation":
                    f.append(max(sum(w * t for w, t in zip(w_concat, [*theta[i], *phi[j]], strict=True)), 0.0))
                else:
                    f.append(dot if pair == "dot_product" else math.exp(dot))
            c = sum(f) if "gaussian" in pair else len(places)
            y = [sum(f[j] / c * g[j][d] for j in range(len(places))) for d in range(len(w_g))]
            z[(n, slice(None), *p)] = np.array(_layer(y, w_output, b_output)) + at[i]
    return z


def mean_weights(scores):
    y = np.zeros(scores.shape)
    for at in np.ndindex(scores.shape):
        y[at] = scores[at] / len(scores[at[:-1]])
    return y
