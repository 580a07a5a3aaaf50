"""Attention by scores other than scaled inner products, index by index."""

import math

import numpy as np


def _layer(v, weight, bias=None):
    return [sum(weight[o, i] * v[i] for i in range(len(v))) + (0.0 if bias is None else bias[o]) for o in range(len(weight))]


def _sigmoid(t):
    return 1 / (1 + math.exp(-t))


def _attended(score, query, value, mask=None, masked_rows="zero"):
    """The outputs and weights where `score(at, j)` is that of a query, by its index, and the key j."""
    key_len = value.shape[-2]
    output, weights = np.zeros((*query.shape[:-1], value.shape[-1])), np.zeros((*query.shape[:-1], key_len))
    allowed = np.broadcast_to(True if mask is None else mask, weights.shape)
    for at in np.ndindex(output.shape[:-1]):
        scores = {j: score(at, j) for j in range(key_len) if allowed[(*at, j)]}
        total = sum(math.exp(s) for s in scores.values())
        row = {j: math.exp(s) / total for j, s in scores.items()}
        if not scores and masked_rows != "zero":
            row = dict.fromkeys(range(key_len), math.nan if masked_rows == "nan" else 1 / key_len)
        for j, p in row.items():
            weights[(*at, j)] = p
            output[at] += p * value[(*at[:-1], j)]
    return output, weights


def additive_attention(query, key, value, w_query, w_key, w_score, b_hidden=None, **options):
    def score(at, j):
        asked, offered = _layer(query[at], w_query, b_hidden), _layer(key[(*at[:-1], j)], w_key)
        return sum(w_score[u] * math.tanh(asked[u] + offered[u]) for u in range(len(w_score)))

    return _attended(score, query, value, **options)[0]


def dot_attention(query, key, value, **options):
    def score(at, j):
        return sum(query[at][d] * key[(*at[:-1], j)][d] for d in range(query.shape[-1]))

    return _attended(score, query, value, **options)[0]


def general_attention(query, key, value, w_score, **options):
    rows, columns = w_score.shape

    def score(at, j):
        return sum(query[at][r] * w_score[r, c] * key[(*at[:-1], j)][c] for r in range(rows) for c in range(columns))

    return _attended(score, query, value, **options)[0]


def concat_attention(query, key, value, w_hidden, w_score, **options):
    return perceptron_attention(query, key, value, w_hidden, w_score, activation="tanh", **options)


def perceptron_attention(query, key, value, w_hidden, w_score, b_hidden=None, b_score=None, *, activation="relu", **options):
    unit = {"tanh": math.tanh, "sigmoid": _sigmoid, "relu": lambda t: max(t, 0.0)}[activation]

    def score(at, j):
        hidden = _layer([*query[at], *key[(*at[:-1], j)]], w_hidden, b_hidden)
        return sum(w_score[u] * unit(hidden[u]) for u in range(len(w_score))) + (0.0 if b_score is None else b_score[0])

    return _attended(score, query, value, **options)[0]


def location_attention(query, value, w_score, **options):
    return _attended(lambda at, j: sum(w_score[j, d] * query[at][d] for d in range(query.shape[-1])), query, value, **options)[0]


def region_attention(regions, state, w_regions, w_state, w_score, b_hidden=None, w_gate=None, b_gate=None, *, mask=None):
    output, weights = np.zeros((*state.shape[:-1], regions.shape[-1])), np.zeros(regions.shape[:-1])
    there = np.broadcast_to(True if mask is None else mask, weights.shape)
    for at in np.ndindex(state.shape[:-1]):
        asked = _layer(state[at], w_state, b_hidden)
        exp = {}
        for i in (i for i in range(regions.shape[-2]) if there[(*at, i)]):
            offered = _layer(regions[(*at, i)], w_regions)
            exp[i] = math.exp(sum(w_score[u] * math.tanh(asked[u] + offered[u]) for u in range(len(w_score))))
        beta = 1.0 if w_gate is None else _sigmoid(_layer(state[at], w_gate, b_gate)[0])
        for i, e in exp.items():
            weights[(*at, i)] = e / sum(exp.values())
            output[at] += beta * weights[(*at, i)] * regions[(*at, i)]
    return output, weights


def doubly_stochastic_penalty(weights):
    penalty = np.zeros(weights.shape[:-2])
    for at in np.ndindex(penalty.shape):
        words, regions = weights[at].shape
        penalty[at] = sum((1 - sum(weights[at][t, i] for t in range(words))) ** 2 for i in range(regions))
    return penalty


def question_attention(regions, question, w_regions, w_question, w_score, b_hidden=None, *, mask=None):
    found, weights = region_attention(regions, question, w_regions, w_question, w_score, b_hidden, mask=mask)
    output = np.zeros(question.shape)
    for at in np.ndindex(question.shape):
        output[at] = question[at] + found[at]
    return output, weights


def stacked_attention(regions, question, hops, *, mask=None):
    weights = np.zeros((*regions.shape[:-2], len(hops), regions.shape[-2]))
    for k, hop in enumerate(hops):
        question, seen = question_attention(regions, question, *hop, mask=mask)
        for *at, i in np.ndindex(seen.shape):
            weights[(*at, k, i)] = seen[(*at, i)]
    return question, weights
