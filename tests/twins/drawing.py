"""Random calls as hypothesis draws them, so that it can look for a smaller one that fails too."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st


class Drawn:
    """`numpy.random.Generator`, but single numbers are drawn by hypothesis; those in arrays come from a seed."""

    def __init__(self, data: st.DataObject) -> None:
        self._data = data
        self._generator = np.random.default_rng(data.draw(st.integers(0, 1 << 16)))

    def random(self, shape: Any = None) -> Any:
        """A simpler call draws larger numbers: options are there where a number is small."""
        return (99 - self._data.draw(st.integers(0, 99))) / 100 if shape is None else self._generator.random(shape)

    def integers(self, low: int, high: int, shape: Any = None) -> Any:
        """From `low` to before `high`."""
        return self._data.draw(st.integers(int(low), int(high) - 1)) if shape is None else self._generator.integers(low, high, shape)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generator, name)
