"""Packed sequences, caches and pages, index by index."""

import math

import numpy as np


def _row(query, keys, values, places, sink, *, scale=None, softcap=None, masked_rows="zero", value_dim=0):
    """One query over (position, key, value) triples that it may see."""
    scores = []
    for j in places:
        s = sum(a * b for a, b in zip(query, keys(j), strict=True)) * (1 / math.sqrt(len(query)) if scale is None else scale)
        scores.append(s if softcap is None else softcap * math.tanh(s / softcap))
    total = sum(math.exp(s) for s in scores) + (0 if sink is None else math.exp(sink))
    output = np.full(value_dim, math.nan if not total and masked_rows == "nan" else 0.0)
    for s, j in zip(scores, places, strict=True):
        output = output + math.exp(s) / total * np.asarray(values(j))
    return output, math.log(total) if total else -math.inf


def _near(i, j, causal, window):
    left, right = window or (None, None)
    return not ((causal and j > i) or (left is not None and j < i - left) or (right is not None and j > i + right))


def varlen_attention_with_lse(
    query, key, value, cu_seqlens_q, cu_seqlens_k=None, sinks=None, *, causal=False, align=None, window=None, **options
):
    *lead, heads, total, _ = query.shape
    group = heads // key.shape[-3]
    output, lse = np.zeros((*lead, heads, total, value.shape[-1])), np.zeros((*lead, heads, total))
    starts = cu_seqlens_q if cu_seqlens_k is None else cu_seqlens_k
    for at in np.ndindex(lse.shape):
        *b, h, t = at
        sequence = max(n for n in range(len(cu_seqlens_q) - 1) if cu_seqlens_q[n] <= t)
        first, end = int(starts[sequence]), int(starts[sequence + 1])
        i = t - cu_seqlens_q[sequence]
        if align == "lower_right":
            i += (end - first) - (cu_seqlens_q[sequence + 1] - cu_seqlens_q[sequence])
        kv = (*b, h // group)
        places = [j for j in range(first, end) if _near(i, j - first, causal, window)]
        sink = None if sinks is None else sinks[h]
        output[at], lse[at] = _row(
            query[at], lambda j, kv=kv: key[kv][j], lambda j, kv=kv: value[kv][j], places, sink, value_dim=value.shape[-1], **options
        )
    return output, lse


def varlen_attention(*args, **kwargs):
    return varlen_attention_with_lse(*args, **kwargs)[0]


def _cached(query, read_key, read_value, value_dim, group, lengths, sinks, *, causal=False, window=None, **options):
    *lead, heads, rows, _ = query.shape
    output, lse = np.zeros((*lead, heads, rows, value_dim)), np.zeros((*lead, heads, rows))
    for at in np.ndindex(lse.shape):
        *b, h, i = at
        sequence, kv = tuple(b), h // group
        length = int(lengths[sequence])
        places = [j for j in range(length) if _near(length - rows + i, j, causal, window)]
        output[at], lse[at] = _row(
            query[at],
            lambda j, sequence=sequence, kv=kv: read_key(sequence, kv, j),
            lambda j, sequence=sequence, kv=kv: read_value(sequence, kv, j),
            places,
            None if sinks is None else sinks[h],
            value_dim=value_dim,
            **options,
        )
    return output, lse


def decode_attention_with_lse(query, key, value, lengths, sinks=None, key_scale=None, value_scale=None, **options):
    def reader(codes, scale):
        factors = np.broadcast_to(1.0 if scale is None else scale, codes.shape)
        return lambda b, h, j: [codes[(*b, h, j, d)] * factors[(*b, h, j, d)] for d in range(codes.shape[-1])]

    group = query.shape[-3] // key.shape[-3]
    return _cached(query, reader(key, key_scale), reader(value, value_scale), value.shape[-1], group, lengths, sinks, **options)


def decode_attention(*args, **kwargs):
    return decode_attention_with_lse(*args, **kwargs)[0]


def paged_attention_with_lse(query, key_pages, value_pages, block_table, lengths, sinks=None, key_scale=None, value_scale=None, **options):
    def reader(pages, scale):
        factors = np.broadcast_to(1.0 if scale is None else scale, pages.shape)

        def read(b, h, j):
            page, offset = block_table[(*b, j // pages.shape[2])], j % pages.shape[2]
            return [pages[page, h, offset, d] * factors[page, h, offset, d] for d in range(pages.shape[3])]

        return read

    group, value_dim = query.shape[-3] // key_pages.shape[1], value_pages.shape[-1]
    return _cached(query, reader(key_pages, key_scale), reader(value_pages, value_scale), value_dim, group, lengths, sinks, **options)


def paged_attention(*args, **kwargs):
    return paged_attention_with_lse(*args, **kwargs)[0]


def append_to_cache(cache, new, lengths, *, circular=False):
    output = np.array(cache)
    for at in np.ndindex(new.shape):
        *b, h, i, d = at
        place = int(lengths[tuple(b)]) + i
        output[(*b, h, place % cache.shape[-2] if circular else place, d)] = new[at]
    return output
