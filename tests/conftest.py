"""One thread for matrix products, since the tests' arrays are tiny and several test processes may share the machine."""

import os

for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import hypothesis  # noqa: E402  # it may import NumPy, which reads the above

hypothesis.settings.register_profile("refattn", deadline=None, derandomize=True)  # the same examples on every machine
hypothesis.settings.load_profile("refattn")
