"""One version of the packages, led by `guard`: it reads the name of a kernel, and writes the seconds of the shortest of some calls.

It imports nothing of `benchmarks`, which the other version may not have.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import refattn

TURN = 0.02  # seconds of calls, one at least


def kernels(tree: Path) -> dict[str, Callable[[], Any]]:
    """By name, a call of each that this version has; what is compiled is compiled by a first call."""
    _refuse_another(tree, refattn)
    random = np.random.default_rng(0)
    normal = lambda *shape: random.standard_normal(shape)  # noqa: E731
    q, k, v = normal(3, 1, 4, 256, 64)
    query, key, value, d = (x.astype(np.float32) for x in normal(4, 1, 8, 512, 64))
    one, lengths = query[:, :, :1].copy(), np.array([512])
    x, weight = normal(2, 16, 28, 28), normal(32, 16, 3, 3)
    calls: dict[str, Callable[[], Any]] = {
        "refattn attention, forward and backward": lambda: _both(refattn.scaled_dot_product_attention, q, k, v),
        "refattn conv2d, forward and backward": lambda: _both(refattn.conv2d, x, weight, padding=1),
    }
    try:
        import refattn_numba as fast  # noqa: PLC0415
    except ImportError:
        return _that_run(calls)
    _refuse_another(tree, fast)
    few = x.astype(np.float32), weight.astype(np.float32)
    calls |= {
        "refattn_numba attention, forward": lambda: fast.scaled_dot_product_attention(query, key, value),
        "refattn_numba attention, causal, forward and backward": lambda: fast.scaled_dot_product_attention.vjp(
            query, key, value, causal=True
        )[1](d),
        "refattn_numba decode": lambda: fast.decode_attention(one, key, value, lengths),
        "refattn_numba conv2d, forward": lambda: fast.conv2d(*few, padding=1),
        "refattn_numba conv2d, forward and backward": lambda: _both(fast.conv2d, *few, padding=1),
    }
    return _that_run(calls)


def _refuse_another(tree: Path, package: Any) -> None:
    if tree not in Path(package.__file__).resolve().parents:
        raise SystemExit(f"{package.__name__} is that of {package.__file__}, but must be that of {tree}")


def _both(mechanism: Any, *inputs: Any, **options: Any) -> Any:
    y, pullback = mechanism.vjp(*inputs, **options)
    return pullback(y)


def _that_run(calls: dict[str, Callable[[], Any]]) -> dict[str, Callable[[], Any]]:
    """Those that this version has; any other failure ends the process, and with it the comparison."""
    found = {}
    for name, call in calls.items():
        try:
            call()
        except (AttributeError, NotImplementedError):
            continue
        found[name] = call
    return found


def turn(call: Callable[[], Any]) -> float:
    """Seconds of the shortest call."""
    least, end = float("inf"), time.perf_counter() + TURN
    while True:
        start = time.perf_counter()
        call()
        now = time.perf_counter()
        least = min(least, now - start)
        if now >= end:
            return least


def main() -> None:
    """Answer until the input ends."""
    calls = kernels(Path(sys.argv[1]).resolve())
    print(json.dumps(list(calls)), flush=True)
    for line in sys.stdin:
        print(json.dumps(turn(calls[line.strip()])), flush=True)


if __name__ == "__main__":
    main()
