"""Positions, feature by feature."""

import math

import numpy as np


def _feature(position, c, features, base, order):
    """One feature of the encoding of one position."""
    if order == "interleaved":
        i, wave = c // 2, (math.sin, math.cos)[c % 2]
    else:
        i, wave = c % (features // 2), (math.sin, math.cos)[c // (features // 2)]
    return wave(position / base ** (2 * i / features))


def sinusoidal_encoding(positions, *, model_dim, base=10000.0, order="interleaved"):
    y = np.zeros((*positions.shape, model_dim))
    for at in np.ndindex(y.shape):
        y[at] = _feature(float(positions[at[:-1]]), at[-1], model_dim, base, order)
    return y


def add_sinusoidal(x, *, base=10000.0, order="interleaved", offset=0):
    y = np.zeros(x.shape)
    for at in np.ndindex(y.shape):
        y[at] = x[at] + _feature(offset + at[-2], at[-1], x.shape[-1], base, order)
    return y


def add_sinusoidal_2d(x, *, base=10000.0, order="interleaved", first="height", extent=None):
    y = np.zeros(x.shape)
    _, channels, height, width = x.shape
    for b, c, i, j in np.ndindex(y.shape):
        tells_row = (c < channels // 2) == (first == "height")
        step, count = (i, height) if tells_row else (j, width)
        position = step if extent is None else extent * (step + 1) / count
        y[b, c, i, j] = x[b, c, i, j] + _feature(position, c % (channels // 2), channels // 2, base, order)
    return y


def add_learned(x, table, *, offset=0):
    y = np.zeros(x.shape)
    for at in np.ndindex(y.shape):
        y[at] = x[at] + table[offset + at[-2], at[-1]]
    return y


def add_learned_2d(x, row_table, column_table, *, first="height"):
    y = np.zeros(x.shape)
    for b, c, i, j in np.ndindex(y.shape):
        vectors = [*row_table[i], *column_table[j]] if first == "height" else [*column_table[j], *row_table[i]]
        y[b, c, i, j] = x[b, c, i, j] + vectors[c]
    return y


def relative_logits_1d(query, table):
    *lead, length, head_dim = query.shape
    y = np.zeros((*lead, length, length))
    for at in np.ndindex(y.shape):
        *n, i, j = at
        y[at] = sum(query[(*n, i, d)] * table[j - i + length - 1, d] for d in range(head_dim))
    return y


def relative_logits_2d(query, row_table, column_table):
    *lead, height, width, head_dim = query.shape
    y = np.zeros((*lead, height * width, height * width))
    for at in np.ndindex(y.shape):
        *n, i, j = at
        (iy, ix), (jy, jx) = divmod(i, width), divmod(j, width)
        row, column = row_table[jy - iy + height - 1], column_table[jx - ix + width - 1]
        y[at] = sum(query[(*n, iy, ix, d)] * (row[d] + column[d]) for d in range(head_dim))
    return y
