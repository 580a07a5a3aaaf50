"""Kernels for NVIDIA GPUs, written in Python and compiled by numba-cuda."""
