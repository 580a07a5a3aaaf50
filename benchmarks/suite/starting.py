"""What comes before the first result: importing, compiling, and reading what an earlier process has compiled."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from typing import Any

from . import measured

FIRST_CALL = """
import time
import numpy as np
import refattn_numba
x = np.ones({shape}, np.float32)
start = time.perf_counter()
{call}
print(time.perf_counter() - start)
"""
CALLS = {
    "attention": ("scaled_dot_product_attention", (1, 1, 64, 64), "refattn_numba.scaled_dot_product_attention(x, x, x)"),
    "2-D convolution": ("conv2d", (1, 8, 8, 8), "refattn_numba.conv2d(x, np.ones((8, 8, 3, 3), np.float32))"),
}


class Import:
    """In a new process, NumPy's own import included."""

    params = list(measured.PRECISIONS)
    param_names = ["package"]
    rounds, repeat, number = 1, 5, 1

    def setup(self, package: str) -> None:
        if importlib.util.find_spec(package) is None or (package == "refattn_numba" and importlib.util.find_spec("numba") is None):
            raise NotImplementedError(f"{package} is not installed")

    def timeraw_import(self, package: str) -> str:
        return f"import {package}"


class FirstCall:
    """Seconds of the first call of a process that finds nothing on disk, and of one that finds what that has compiled."""

    params = list(CALLS)
    param_names = ["kernel"]
    timeout = 300.0

    def setup_cache(self) -> dict[str, tuple[float, float]]:
        """Each compiles once."""
        found = {}
        for kernel, (name, shape, call) in CALLS.items():
            try:
                measured.offered("refattn_numba", name)
            except NotImplementedError:
                continue
            with tempfile.TemporaryDirectory() as folder:
                found[kernel] = _first_call(folder, shape, call), _first_call(folder, shape, call)
        return found

    setup_cache.timeout = 600  # pyright: ignore[reportFunctionMemberAccess]

    def setup(self, found: Any, kernel: str) -> None:
        if kernel not in found:
            raise NotImplementedError(f"refattn_numba has no {kernel}")

    def track_compiling(self, found: Any, kernel: str) -> float:
        return found[kernel][0]

    def track_cached(self, found: Any, kernel: str) -> float:
        return found[kernel][1]

    track_compiling.unit = track_cached.unit = "seconds"  # pyright: ignore[reportFunctionMemberAccess]


def _first_call(cache: str, shape: tuple[int, ...], call: str) -> float:
    program = FIRST_CALL.format(shape=shape, call=call)
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "NUMBA_CACHE_DIR": cache}, stdout=subprocess.PIPE, text=True, check=True
    )
    return float(done.stdout)
