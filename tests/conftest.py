"""One thread for matrix products: the tests' arrays are tiny, and several test processes may share the machine."""

import os

for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
