"""Attention between the positions of a map, position by position."""

import itertools
import math

import numpy as np


def _layer(v, weight, bias=None):
    return [sum(weight[o, i] * v[i] for i in range(len(v))) + (0.0 if bias is None else bias[o]) for o in range(len(weight))]


def _largest(at, pool):
    """`at` has the channels of each place; a window that is not full has none."""
    places = list(at)
    axes = len(places[0])
    sizes = (pool,) * axes if isinstance(pool, int) else pool
    counts = [(max(p[a] for p in places) + 1) // sizes[a] for a in range(axes)]
    found = []
    for window in itertools.product(*map(range, counts)):
        taps = [at[tuple(w * s + t for w, s, t in zip(window, sizes, tap, strict=True))] for tap in itertools.product(*map(range, sizes))]
        found.append([max(column) for column in zip(*taps, strict=True)])
    return found


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
    pool=None,
    pooled="embeddings",
):
    z = np.zeros(x.shape)
    for n in range(len(x)):
        at = {p: x[(n, slice(None), *p)] for p in np.ndindex(x.shape[2:])}

        def compared_with(weight, bias, at=at):
            def embed(v):
                return v if weight is None else _layer(v, weight, bias)

            if pool is None:
                return [embed(v) for v in at.values()]
            if pooled == "input":
                return [embed(v) for v in _largest(at, pool)]
            return _largest({p: embed(v) for p, v in at.items()}, pool)

        phi, g = compared_with(w_phi, b_phi), compared_with(w_g, b_g)
        for p, v in at.items():
            theta = v if w_theta is None else _layer(v, w_theta, b_theta)
            f = []
            for other in phi:
                dot = sum(s * t for s, t in zip(theta, other, strict=True))
                if pair == "concatenation":
                    f.append(max(sum(w * t for w, t in zip(w_concat, [*theta, *other], strict=True)), 0.0))
                else:
                    f.append(dot if pair == "dot_product" else math.exp(dot))
            c = sum(f) if "gaussian" in pair else len(phi)
            y = [sum(f[j] / c * g[j][d] for j in range(len(g))) for d in range(len(w_g))]
            z[(n, slice(None), *p)] = np.array(_layer(y, w_output, b_output)) + v
    return z


def pixel_self_attention(
    x,
    w_query,
    w_key,
    w_value,
    w_output=None,
    b_query=None,
    b_key=None,
    b_value=None,
    b_output=None,
    *,
    num_heads=1,
    scale=None,
):
    head_dim, value_dim = len(w_query) // num_heads, len(w_value) // num_heads
    scales = np.broadcast_to(1 / math.sqrt(head_dim) if scale is None else scale, (len(x), num_heads, 1, 1))
    places = list(np.ndindex(x.shape[2:]))
    y = np.zeros((len(x), len(w_value) if w_output is None else len(w_output), *x.shape[2:]))
    for n in range(len(x)):
        at = [x[(n, slice(None), *p)] for p in places]
        query, key, value = ([_layer(v, w, b) for v in at] for w, b in ((w_query, b_query), (w_key, b_key), (w_value, b_value)))
        for i, p in enumerate(places):
            heads = []
            for h in range(num_heads):
                of_head = range(h * head_dim, (h + 1) * head_dim)
                f = [math.exp(scales[n, h, 0, 0] * sum(query[i][d] * key[j][d] for d in of_head)) for j in range(len(places))]
                for d in range(h * value_dim, (h + 1) * value_dim):
                    heads.append(sum(f[j] / sum(f) * value[j][d] for j in range(len(places))))
            y[(n, slice(None), *p)] = heads if w_output is None else _layer(heads, w_output, b_output)
    return y


def _sigmoid(t):
    return 1 / (1 + math.exp(-t))


def residual_attention(trunk, logits, *, constraint="mixed", eps=1e-5):
    y = np.zeros(trunk.shape)
    channels = trunk.shape[1]
    for n, c, *p in np.ndindex(trunk.shape):
        m = logits[(n, c, *p)]
        if constraint == "channel":
            mask = m / math.sqrt(sum(logits[(n, k, *p)] ** 2 for k in range(channels)) + channels * eps)
        elif constraint == "spatial":
            values = [float(v) for v in logits[n, c].ravel()]
            mean = sum(values) / len(values)
            variance = sum((v - mean) ** 2 for v in values) / len(values)
            mask = _sigmoid((m - mean) / math.sqrt(variance + eps))
        else:
            mask = _sigmoid(m)
        y[(n, c, *p)] = (1 + mask) * trunk[(n, c, *p)]
    return y


def non_local_means(x, h, *, patch_size=7, patch_std=None, window=None, padding_mode="reflect", self_weight="own"):
    batch, channels, height, width = x.shape
    radius = patch_size // 2
    most = (height, width) if window is None else (window, window) if isinstance(window, int) else window
    taps = list(itertools.product(range(-radius, radius + 1), repeat=2))
    counts = [1.0 if patch_std is None else math.exp(-(a * a + b * b) / (2 * patch_std**2)) for a, b in taps]
    bandwidths = np.broadcast_to(h, batch)

    def inside(i, size):
        if padding_mode == "circular":
            return i % size
        if padding_mode == "replicate":
            return min(max(i, 0), size - 1)
        return abs(i) if i < size else 2 * (size - 1) - i

    def value(channel, i, j):
        if padding_mode == "zeros":
            return channel[i, j] if 0 <= i < height and 0 <= j < width else 0.0
        return channel[inside(i, height), inside(j, width)]

    y = np.zeros(x.shape)
    places = list(itertools.product(range(height), range(width)))
    for n in range(batch):

        def distance(p, q, image=x[n]):
            total = 0.0
            for (a, b), count in zip(taps, counts, strict=True):
                for channel in image:
                    u, v = (value(channel, i + a, j + b) for i, j in (p, q))
                    total += count / sum(counts) / channels * (u - v) ** 2
            return total

        for p in places:
            near = [q for q in places if abs(p[0] - q[0]) <= most[0] and abs(p[1] - q[1]) <= most[1]]
            weights = {q: math.exp(-distance(p, q) / bandwidths[n] ** 2) for q in near}
            if self_weight == "largest" and len(near) > 1:
                weights[p] = max(w for q, w in weights.items() if q != p)
            for c in range(channels):
                y[(n, c, *p)] = sum(w * x[(n, c, *q)] for q, w in weights.items()) / sum(weights.values())
    return y
