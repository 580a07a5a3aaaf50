"""Dot-product attention, index by index."""

import math

import numpy as np


def _attended(
    query,
    key,
    value,
    bias=None,
    sinks=None,
    *,
    mask=None,
    causal=False,
    align=None,
    window=None,
    scale=None,
    softcap=None,
    keep=None,
    dropout_rate=0.0,
    masked_rows="zero",
):
    *lead, heads, rows, width = query.shape
    kv_heads, columns = key.shape[-3:-1]
    full = (*lead, heads, rows, columns)
    output, lse, weights = np.zeros((*lead, heads, rows, value.shape[-1])), np.zeros((*lead, heads, rows)), np.zeros(full)
    factor = np.broadcast_to(1 / math.sqrt(width) if scale is None else scale, full)
    added = np.broadcast_to(0.0 if bias is None else bias, full)
    seen_by_mask = np.broadcast_to(True if mask is None else mask, full)
    kept = np.broadcast_to(True if keep is None else keep, full)
    shift = columns - rows if align == "lower_right" else 0
    for at in np.ndindex(lse.shape):
        *b, h, i = at
        kv = (*b, h // (heads // kv_heads))
        scores = {}
        for j in range(columns):
            here = i + shift  # the key at this query's own position
            if not seen_by_mask[(*at, j)] or added[(*at, j)] == -math.inf:
                continue
            if causal and j > here:
                continue
            if window is not None and window[0] is not None and j < here - window[0]:
                continue
            if window is not None and window[1] is not None and j > here + window[1]:
                continue
            s = factor[(*at, j)] * sum(query[at][d] * key[kv][j, d] for d in range(width))
            if softcap is not None:
                s = softcap * math.tanh(s / softcap)
            scores[j] = s + added[(*at, j)]
        total = sum(math.exp(s) for s in scores.values()) + (0 if sinks is None else math.exp(sinks[h]))
        lse[at] = math.log(total) if total else -math.inf
        row = {j: math.exp(s) / total for j, s in scores.items()}
        if not total and masked_rows != "zero":
            row = dict.fromkeys(range(columns), math.nan if masked_rows == "nan" else 1 / columns)
        for j, p in row.items():
            weights[(*at, j)] = p
            if kept[(*at, j)]:
                output[at] += p / (1 - (0.0 if keep is None else dropout_rate)) * value[kv][j]
    return output, lse, weights


def scaled_dot_product_attention(*args, **options):
    return _attended(*args, **options)[0]


def scaled_dot_product_attention_with_lse(*args, **options):
    return _attended(*args, **options)[:2]


def scaled_dot_product_attention_with_weights(*args, **options):
    output, _, weights = _attended(*args, **options)
    return output, weights


def merge_attention(outputs, lses):
    output, lse = np.zeros(outputs.shape[1:]), np.full(lses.shape[1:], -math.inf)
    for at in np.ndindex(lse.shape):
        there = [p for p in range(len(lses)) if lses[(p, *at)] != -math.inf]
        if there:
            largest = max(lses[(p, *at)] for p in there)
            total = sum(math.exp(lses[(p, *at)] - largest) for p in there)
            lse[at] = largest + math.log(total)
            for d in range(outputs.shape[-1]):
                output[(*at, d)] = sum(math.exp(lses[(p, *at)] - largest) / total * outputs[(p, *at, d)] for p in there)
    return output, lse


def scaled_dot_product_attention_rows(
    query, key, value, bias=None, sinks=None, *, rows=None, mask=None, scale=None, keep=None, block_size=None, **options
):
    # Row by row: each is the last of a problem that has the same positions and this row's mask, bias, scale and keep.
    *lead, heads, query_len, _ = query.shape
    key_len = key.shape[-2]
    chosen = range(query_len) if rows is None else [int(r) for r in rows]

    def only(x, i):
        return None if x is None else np.broadcast_to(x, (*lead, heads, len(chosen), key_len))[..., i : i + 1, :]

    results = [
        _attended(query, key, value, only(bias, i), sinks, mask=only(mask, i), scale=only(scale, i), keep=only(keep, i), **options)
        for i in range(len(chosen))
    ]
    output = np.zeros((*lead, heads, len(chosen), value.shape[-1]))
    lse = np.zeros((*lead, heads, len(chosen)))
    for i, row in enumerate(chosen):
        output[..., i, :], lse[..., i] = results[i][0][..., row, :], results[i][1][..., row]
    return output, lse
