"""Vectors for rows and vectors for columns, as one feature map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import numpy as np

from refattn._core import Array

First: TypeAlias = Literal["height", "width"]


def spread(rows: Array, columns: Array, first: First) -> tuple[Array, Callable[[Array], tuple[Array, Array]]]:
    """A map (channels, height, width) with the row's vector and the column's at each position; `first` has the lower channels."""
    height, width = len(rows), len(columns)
    tall = np.broadcast_to(rows.swapaxes(0, 1)[:, :, None], (rows.shape[1], height, width))
    wide = np.broadcast_to(columns.swapaxes(0, 1)[:, None, :], (columns.shape[1], height, width))
    parts = (tall, wide) if first == "height" else (wide, tall)
    split = len(parts[0])

    def pullback(dy: Array) -> tuple[Array, Array]:
        d_tall, d_wide = (dy[:split], dy[split:]) if first == "height" else (dy[split:], dy[:split])
        return d_tall.sum(axis=2).swapaxes(0, 1), d_wide.sum(axis=1).swapaxes(0, 1)

    return np.concatenate(parts), pullback
