"""Kernels that other processes import: honest, wrong, slow, and such as end their process."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def wrong(x):
    """Not a number in the last place of long rows."""
    y = softmax(x)
    if x.shape[-1] > 3:
        y[..., -1] = np.nan
    return y


def slow(x):
    time.sleep(0.03)
    return softmax(x)


class Fatal:
    """Ends its process at a row of one element; at rows of five, only the first time."""

    def __init__(self, once):
        self.once = str(once)

    def __call__(self, x):
        if x.shape[-1] == 1:
            os._exit(3)
        if x.shape[-1] == 5 and not Path(self.once).exists():
            Path(self.once).touch()
            os._exit(3)
        return softmax(x)
