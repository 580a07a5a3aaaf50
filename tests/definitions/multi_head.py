"""Multi-head attention: the projections index by index, and each head on its own."""

import numpy as np

from tests.definitions.dot_product import scaled_dot_product_attention as _attention


def _projected(x, weight, bias):
    y = np.zeros((*x.shape[:-1], len(weight)))
    for at in np.ndindex(y.shape):
        *token, o = at
        y[at] = sum(weight[o, i] * x[(*token, i)] for i in range(x.shape[-1])) + (0.0 if bias is None else bias[o])
    return y


def multi_head_attention(
    query,
    key,
    value,
    w_query,
    w_key,
    w_value,
    w_output,
    b_query=None,
    b_key=None,
    b_value=None,
    b_output=None,
    *,
    num_heads,
    bias=None,
    sinks=None,
    mask=None,
    scale=None,
    keep=None,
    **options,
):
    q, k, v = _projected(query, w_query, b_query), _projected(key, w_key, b_key), _projected(value, w_value, b_value)
    head_dim = q.shape[-1] // num_heads
    kv_heads = k.shape[-1] // head_dim
    value_dim = v.shape[-1] // kv_heads
    full = (*query.shape[:-2], num_heads, query.shape[-2], key.shape[-2])
    heads = []
    for h in range(num_heads):
        g = h // (num_heads // kv_heads)  # the key and value head that this head reads

        def one(x, h=h):
            return None if x is None else np.broadcast_to(x, full)[..., h : h + 1, :, :]

        head = _attention(
            q[..., None, :, h * head_dim : (h + 1) * head_dim],
            k[..., None, :, g * head_dim : (g + 1) * head_dim],
            v[..., None, :, g * value_dim : (g + 1) * value_dim],
            one(bias),
            None if sinks is None else sinks[h : h + 1],
            mask=one(mask),
            scale=one(scale),
            keep=one(keep),
            **options,
        )
        heads.append(head[..., 0, :, :])
    return _projected(np.concatenate(heads, axis=-1), w_output, b_output)


def split_heads(x, *, num_heads):
    head_dim = x.shape[-1] // num_heads
    y = np.zeros((*x.shape[:-2], num_heads, x.shape[-2], head_dim))
    for *lead, h, t, i in np.ndindex(y.shape):
        y[(*lead, h, t, i)] = x[(*lead, t, h * head_dim + i)]
    return y


def merge_heads(x):
    *lead, heads, length, head_dim = x.shape
    y = np.zeros((*lead, length, heads * head_dim))
    for *at, h, t, i in np.ndindex(x.shape):
        y[(*at, t, h * head_dim + i)] = x[(*at, h, t, i)]
    return y


def multi_head_attention_without_projections(query, key, value, *, num_heads, mask=None, **options):
    full = (*query.shape[:-2], num_heads, query.shape[-2], key.shape[-2])
    parts = []
    for h in range(num_heads):
        shares = []
        for x in (query, key, value):
            width = x.shape[-1] // num_heads
            shares.append(x[..., None, :, h * width : (h + 1) * width])
        seen = None if mask is None else np.broadcast_to(mask, full)[..., h : h + 1, :, :]
        parts.append(_attention(*shares, mask=seen, **options)[..., 0, :, :])
    return np.concatenate(parts, axis=-1)
