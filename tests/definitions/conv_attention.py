"""Convolutions with attention, index by index."""

import itertools
import math

import numpy as np


def _project(x, weight, bias=None):
    """A matrix at each position of one map (channels, height, width)."""
    y = np.zeros((len(weight), *x.shape[1:]))
    for o, i, j in np.ndindex(y.shape):
        y[o, i, j] = (0.0 if bias is None else bias[o]) + sum(weight[o, c] * x[c, i, j] for c in range(len(x)))
    return y


def _convolve(x, weight, bias, stride=1, groups=1):
    """One map with zeros around it, so that every position has a kernel around it; the odd zero is after."""
    _, height, width = x.shape
    out, each, tall, wide = weight.shape
    y = np.zeros((out, -(-height // stride), -(-width // stride)))
    for o, i, j in np.ndindex(y.shape):
        total = 0.0 if bias is None else bias[o]
        first = o // (out // groups) * each
        for c, u, v in itertools.product(range(each), range(tall), range(wide)):
            p, q = i * stride + u - (tall - 1) // 2, j * stride + v - (wide - 1) // 2
            if 0 <= p < height and 0 <= q < width:
                total += weight[o, c, u, v] * x[first + c, p, q]
        y[o, i, j] = total
    return y


def _average(scores, values):
    exp = [math.exp(s) for s in scores]
    return [sum(e * v[d] for e, v in zip(exp, values, strict=True)) / sum(exp) for d in range(len(values[0]))]


def _global_attention(x, w, heads):
    """Attention of all positions to all, in which distances have vectors."""
    _, height, width = x.shape
    query, key, value = _project(x, w.w_query, w.b_query), _project(x, w.w_key, w.b_key), _project(x, w.w_value, w.b_value)
    d, dv = len(query) // heads, len(value) // heads
    places = list(itertools.product(range(height), range(width)))
    gathered = np.zeros((len(value), height, width))
    for h, (iy, ix) in itertools.product(range(heads), places):
        scores = []
        for jy, jx in places:
            s = 0.0
            for e in range(d):
                k = key[h * d + e, jy, jx]
                if w.row_table is not None:
                    k += w.row_table[jy - iy + height - 1, e] + w.column_table[jx - ix + width - 1, e]
                s += query[h * d + e, iy, ix] * k
            scores.append(s / math.sqrt(d))
        gathered[h * dv : (h + 1) * dv, iy, ix] = _average(scores, [value[h * dv : (h + 1) * dv, p, q] for p, q in places])
    return _project(gathered, w.w_output, w.b_output)


def attention_augmented_conv2d(x, weights, *, num_heads):
    maps = [[*_convolve(m, weights.w_conv, weights.b_conv), *_global_attention(m, weights, num_heads)] for m in x]
    return np.array(maps)


def conv_attention_sum(x, weights, alpha, beta, *, num_heads):
    y = np.zeros((len(x), len(weights.w_conv), *x.shape[2:]))
    alphas, betas = np.broadcast_to(alpha, y.shape), np.broadcast_to(beta, y.shape)
    for n, m in enumerate(x):
        convolved, attended = _convolve(m, weights.w_conv, weights.b_conv), _global_attention(m, weights, num_heads)
        for at in np.ndindex(y.shape[1:]):
            y[(n, *at)] = alphas[(n, *at)] * attended[at] + betas[(n, *at)] * convolved[at]
    return y


def _coordinate(i, size):
    return 0.0 if size == 1 else -1 + 2 * i / (size - 1)


def _mirror(i, size):
    """The position whose mirror image stands at i, which is less than a size beyond the edge."""
    return -i if i < 0 else 2 * (size - 1) - i if i >= size else i


def _local(query, key, value, w_position, heads, kernel, stride, border):
    _, height, width = query.shape
    d, dv = len(query) // heads, len(value) // heads
    y = np.zeros((len(value), -(-height // stride), -(-width // stride)))
    for h, a, b in itertools.product(range(heads), range(y.shape[1]), range(y.shape[2])):
        i, j, scores, values = a * stride, b * stride, [], []
        for u, v in itertools.product(range(-(kernel // 2), kernel // 2 + 1), repeat=2):
            p, q = i + u, j + v
            if border == "reflect":
                p, q = _mirror(p, height), _mirror(q, width)
            if not (0 <= p < height and 0 <= q < width):
                continue
            right, down = _coordinate(j, width) - _coordinate(q, width), _coordinate(i, height) - _coordinate(p, height)
            s = 0.0
            for e in range(d):
                step = 0.0 if w_position is None else w_position[e, 0] * right + w_position[e, 1] * down
                s += query[h * d + e, i, j] * (key[h * d + e, p, q] + step)
            scores.append(s / math.sqrt(d))
            values.append(value[h * dv : (h + 1) * dv, p, q])
        y[h * dv : (h + 1) * dv, a, b] = _average(scores, values)
    return y


def local_attention_2d(query, key, value, w_position=None, *, num_heads, kernel_size, stride=1, border="reflect"):
    maps = zip(query, key, value, strict=True)
    return np.array([_local(q, k, v, w_position, num_heads, kernel_size, stride, border) for q, k, v in maps])


def acmix(x, weights, alpha, beta, *, num_heads, kernel_size=7, stride=1, border="reflect"):
    w, maps = weights, []
    tall, wide, pieces = w.w_mix.shape
    d = len(w.w_query) // num_heads
    shift = w.w_shift
    if shift is None:
        shift = np.zeros((len(w.w_query), tall * wide, tall, wide))
        for o, u, v in itertools.product(range(len(shift)), range(tall), range(wide)):
            shift[o, u * wide + v, u, v] = 1.0
    for m in x:
        query, key, value = _project(m, w.w_query, w.b_query), _project(m, w.w_key, w.b_key), _project(m, w.w_value, w.b_value)
        attended = _local(query, key, value, w.w_position, num_heads, kernel_size, stride, border)
        mixed = np.zeros((d * tall * wide, *m.shape[1:]))
        for e, u, v, z in itertools.product(range(d), range(tall), range(wide), range(pieces)):
            part = (query, key, value)[z // num_heads][z % num_heads * d + e]
            for at in np.ndindex(part.shape):
                mixed[(e * tall * wide + u * wide + v, *at)] += w.w_mix[u, v, z] * part[at]
        maps.append((attended, _convolve(mixed, shift, w.b_shift, stride, d)))
    y = np.zeros((len(x), *maps[0][0].shape))
    alphas, betas = np.broadcast_to(alpha, y.shape), np.broadcast_to(beta, y.shape)
    for n, *at in np.ndindex(y.shape):
        attended, convolved = (part[tuple(at)] for part in maps[n])
        y[(n, *at)] = alphas[(n, *at)] * attended + betas[(n, *at)] * convolved
    return y
