"""Resizing, pixel by pixel, with positions as fractions."""

import math
from fractions import Fraction

import numpy as np


def _sizes(x, output_size):
    return x.shape[-2:], (output_size,) * 2 if isinstance(output_size, int) else output_size


def resize_nearest(x, *, output_size, half_pixel=False):
    size, out = _sizes(x, output_size)
    y = np.zeros((*x.shape[:-2], *out))
    shift = Fraction(1, 2) if half_pixel else 0
    for at in np.ndindex(y.shape):
        *lead, i, j = at
        y[at] = x[(*lead, math.floor((i + shift) * Fraction(size[0], out[0])), math.floor((j + shift) * Fraction(size[1], out[1])))]
    return y


def resize_bilinear(x, *, output_size, align_corners=False):
    size, out = _sizes(x, output_size)
    y = np.zeros((*x.shape[:-2], *out))

    def neighbours(o, n, m):
        half = Fraction(1, 2)
        s = (Fraction(o * (n - 1), m - 1) if m > 1 else Fraction(0)) if align_corners else (o + half) * Fraction(n, m) - half
        s = min(max(s, 0), n - 1)
        low = math.floor(s)
        return [(low, 1 - float(s - low)), (min(low + 1, n - 1), float(s - low))]

    for at in np.ndindex(y.shape):
        *lead, i, j = at
        y[at] = sum(float(x[(*lead, r, c)]) * u * v for r, u in neighbours(i, size[0], out[0]) for c, v in neighbours(j, size[1], out[1]))
    return y
