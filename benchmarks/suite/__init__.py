"""What airspeed velocity measures of `refattn` and `refattn_numba`, in environments that hold nothing else of this repository.

This file is imported first, before anything imports NumPy: all libraries get one thread, as times of several swing by what else
the machine does. ``REFATTN_BENCH_THREADS=2`` gives more, ``REFATTN_BENCH=large`` adds problems of the size of real models.
"""

import os

THREADS = os.environ.get("REFATTN_BENCH_THREADS", "1")
LARGE = os.environ.get("REFATTN_BENCH") == "large"
POOLS = ("OMP", "OPENBLAS", "MKL", "BLIS", "NUMEXPR", "NUMBA")

os.environ.update({f"{pool}_NUM_THREADS": THREADS for pool in POOLS} | {"VECLIB_MAXIMUM_THREADS": THREADS})
