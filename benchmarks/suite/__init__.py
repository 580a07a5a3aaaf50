"""What airspeed velocity measures of `refattn` and `refattn_numba`, in environments that hold nothing else of this repository.

This file is imported first, before anything imports NumPy: all libraries get one thread, as times of several swing by what else
the machine does. ``REFATTN_BENCH_THREADS=2`` gives more, ``REFATTN_BENCH=large`` adds problems of the size of real models.
"""

import contextlib
import importlib
import os
import sys

THREADS = os.environ.get("REFATTN_BENCH_THREADS", "1")
LARGE = os.environ.get("REFATTN_BENCH") == "large"
POOLS = ("OMP", "OPENBLAS", "MKL", "BLIS", "NUMEXPR", "NUMBA")

os.environ.update({f"{pool}_NUM_THREADS": THREADS for pool in POOLS} | {"VECLIB_MAXIMUM_THREADS": THREADS})

if "run_server" in sys.argv:  # of `asv run --launch-method forkserver`: the processes that it forks have imported already
    with contextlib.suppress(ImportError):
        importlib.import_module("refattn_numba")
