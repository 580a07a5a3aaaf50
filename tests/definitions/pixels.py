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
