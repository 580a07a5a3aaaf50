"""Linear attentions, position by position and number by number; a chunked form is what the step-by-step form is."""

import math

import numpy as np


def cumsum(x, *, axis=-1):
    y = np.zeros(x.shape)
    for at in np.ndindex(x.shape):
        for j in range(at[axis] + 1):
            before = list(at)
            before[axis] = j
            y[at] += x[tuple(before)]
    return y


def triangular_solve(lower, b):
    x = np.zeros(b.shape)
    for at in np.ndindex(b.shape):  # in row-major order: the rows above are done
        *lead, i, column = at
        x[at] = b[at] - sum(lower[(*lead, i, j)] * x[(*lead, j, column)] for j in range(i))
    return x


def _recurrence(query, key, value, factors, beta, state, scale):
    """`factors` gives the decay of one number of the state; without `beta` nothing is erased."""
    *lead, heads, length, width = query.shape
    kv_heads, value_dim = key.shape[-3], value.shape[-1]
    factor = 1 / math.sqrt(width) if scale is None else scale
    memory = np.zeros((*lead, kv_heads, width, value_dim)) if state is None else state.copy()
    output = np.zeros((*lead, heads, length, value_dim))
    for at in np.ndindex(*lead, kv_heads):
        for t in range(length):
            for i in range(width):
                for c in range(value_dim):
                    memory[at][i, c] *= factors(at, t, i)
            for c in range(value_dim):
                written = value[at][t, c]
                if beta is not None:
                    held = sum(memory[at][i, c] * key[at][t, i] for i in range(width))
                    written = beta[at][t] * (written - held)
                for i in range(width):
                    memory[at][i, c] += key[at][t, i] * written
            *b, h = at
            group = heads // kv_heads
            for q in range(h * group, (h + 1) * group):
                for c in range(value_dim):
                    output[(*b, q, t, c)] = factor * sum(query[(*b, q, t, i)] * memory[at][i, c] for i in range(width))
    return output, memory


def gated_linear_attention(query, key, value, log_decay, state=None, *, scale=None):
    return _recurrence(query, key, value, lambda at, t, i: math.exp(log_decay[at][t, i]), None, state, scale)


def delta_rule(query, key, value, beta, state=None, *, scale=None):
    return _recurrence(query, key, value, lambda at, t, i: 1.0, beta, state, scale)


def gated_delta_rule(query, key, value, log_decay, beta, state=None, *, scale=None):
    return _recurrence(query, key, value, lambda at, t, i: math.exp(log_decay[at][t]), beta, state, scale)


def _feature(v, feature_map):
    if feature_map == "elu_plus_one":
        return v + 1 if v > 0 else math.exp(v)
    return max(v, 0.0) if feature_map == "relu" else v


def linear_attention(
    query, key, value, state=None, normalizer=None, *, causal=False, feature_map="elu_plus_one", normalize=True, eps=0.0, scale=None
):
    # Every query by its own sum over the keys, as in the paper before it is turned into a recurrence.
    *lead, heads, rows, width = query.shape
    kv_heads, columns = key.shape[-3:-1]
    factor = 1 / math.sqrt(width) if scale is None else scale
    end = np.zeros((*lead, kv_heads, width, value.shape[-1])) if state is None else state.copy()
    total = np.zeros((*lead, kv_heads, width)) if normalizer is None else normalizer.copy()
    output = np.zeros((*lead, heads, rows, value.shape[-1]))
    for at in np.ndindex(*lead, heads, rows):
        *b, h, i = at
        kv = (*b, h // (heads // kv_heads))
        features = [factor * _feature(float(query[at][d]), feature_map) for d in range(width)]
        weight = eps + (0.0 if normalizer is None else sum(features[d] * normalizer[kv][d] for d in range(width)))
        for c in range(value.shape[-1]):
            output[(*at, c)] = 0.0 if state is None else sum(features[d] * state[kv][d, c] for d in range(width))
        for j in range(i + 1 if causal else columns):
            similarity = sum(features[d] * _feature(float(key[kv][j, d]), feature_map) for d in range(width))
            weight += similarity
            output[at] += similarity * value[kv][j]
        if normalize:
            output[at] = output[at] / weight if weight else 0.0
    for kv in np.ndindex(*lead, kv_heads):
        for j in range(columns):
            for d in range(width):
                total[kv][d] += _feature(float(key[kv][j, d]), feature_map)
                end[kv][d] += _feature(float(key[kv][j, d]), feature_map) * value[kv][j]
    return output, end, total


def chunked_linear_attention(*args, chunk_size=64, **options):
    return linear_attention(*args, **options)


def chunked_gated_linear_attention(*args, chunk_size=64, **options):
    return gated_linear_attention(*args, **options)


def chunked_delta_rule(*args, chunk_size=64, **options):
    return delta_rule(*args, **options)


def chunked_gated_delta_rule(*args, chunk_size=64, **options):
    return gated_delta_rule(*args, **options)
