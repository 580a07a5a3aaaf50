"""Kernels for CPU cores: plain Numba loops that LLVM turns into vector instructions, and threads over independent tiles."""
