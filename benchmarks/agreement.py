"""Whether contenders compute the same, and how far each is from the exact result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def arrays(result: Any) -> list[Any]:
    """What a call has computed, in types that NumPy knows; a function that makes the result is called first."""
    result = result() if callable(result) else result
    return [_array(x) for x in (result if isinstance(result, tuple) else (result,))]


def _array(x: Any) -> Any:
    return x.detach().cpu().double().numpy() if hasattr(x, "detach") else x.astype(float) if x.dtype.kind == "V" else x


def refuse_difference(results: Mapping[str, Any], tolerance: float) -> None:
    """ValueError where two contenders do not compute the same."""
    named = {n: arrays(r) for n, r in results.items()}
    (ours, expected), *others = named.items()
    for name, got in others:
        for i, (a, b) in enumerate(zip(expected, got, strict=True)):
            error = np.max(np.abs(a - b), initial=0) / max(np.max(np.abs(a), initial=0), 1e-300)
            if not error <= tolerance:
                raise ValueError(f"result {i} of {name} differs from that of {ours} by {error:.1e} of its largest element")


def errors(exact: Any, result: Any) -> tuple[float, float]:
    """The largest error of any array, relative to its largest element; and the largest root mean square, relative to its own.

    Where the exact result is smaller, it is the corner of each array.
    """
    largest, mean = [], []
    for want, got in zip(arrays(exact), arrays(result), strict=True):
        error = np.abs(got[tuple(slice(n) for n in want.shape)] - want)
        largest.append(error.max(initial=0) / np.abs(want).max(initial=1e-300))
        mean.append(np.sqrt(np.mean(error**2) / max(np.mean(want**2), 1e-300)))
    return float(np.max(largest)), float(np.max(mean))
