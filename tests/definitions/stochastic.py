"""Attention that takes one value, index by index."""

import math

import numpy as np


def _rows(query, key, mask, scale):
    """The index of each query, and the scores of the keys that it may attend to, by key."""
    pairs = (*query.shape[:-1], key.shape[-2])
    allowed = np.broadcast_to(True if mask is None else mask, pairs)
    factor = np.broadcast_to(1 / math.sqrt(query.shape[-1]) if scale is None else scale, pairs)
    for at in np.ndindex(query.shape[:-1]):
        keys = [j for j in range(key.shape[-2]) if allowed[(*at, j)]]
        dots = {j: sum(query[at][d] * key[(*at[:-1], j)][d] for d in range(query.shape[-1])) for j in keys}
        yield at, {j: factor[(*at, j)] * dot for j, dot in dots.items()}


def _softmax(scores):
    total = sum(math.exp(s) for s in scores.values())
    return {j: math.exp(s) / total for j, s in scores.items()}


def hard_attention(query, key, value, chosen, *, mask=None, scale=None):
    output = np.zeros((*query.shape[:-1], value.shape[-1]))
    log_probability, entropy = np.zeros(chosen.shape), np.zeros(chosen.shape)
    for at, scores in _rows(query, key, mask, scale):
        weights = _softmax(scores)
        entropy[at] = -sum(p * math.log(p) for p in weights.values())
        if chosen[at] >= 0:
            output[at] = value[(*at[:-1], chosen[at])]
            log_probability[at] = math.log(weights[chosen[at]])
    return output, log_probability, entropy


def straight_through_attention(query, key, value, *, mask=None, scale=None):
    output = np.zeros((*query.shape[:-1], value.shape[-1]))
    for at, scores in _rows(query, key, mask, scale):
        if scores:
            output[at] = value[(*at[:-1], max(scores, key=scores.get))]
    return output


def gumbel_softmax(scores, noise, *, temperature=1.0):
    y = np.zeros(scores.shape)
    for at in np.ndindex(scores.shape[:-1]):
        row = _softmax({j: (scores[at][j] + noise[at][j]) / temperature for j in range(scores.shape[-1])})
        y[at] = [row[j] for j in range(scores.shape[-1])]
    return y


def straight_through_gumbel_softmax(scores, noise, *, temperature=1.0):
    y = np.zeros(scores.shape)
    for at in np.ndindex(scores.shape[:-1]):
        sums = [x + g for x, g in zip(scores[at], noise[at], strict=True)]
        y[(*at, sums.index(max(sums)))] = 1.0
    return y


def gumbel_softmax_attention(query, key, value, noise, *, temperature=1.0, mask=None, scale=None):
    output = np.zeros((*query.shape[:-1], value.shape[-1]))
    for at, scores in _rows(query, key, mask, scale):
        for j, p in _softmax({j: (s + noise[(*at, j)]) / temperature for j, s in scores.items()}).items():
            output[at] += p * value[(*at[:-1], j)]
    return output
