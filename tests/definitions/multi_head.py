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
