"""Kernels for CPU cores: vectors that stay in registers (`simd`, `products`), tiles of attention, and threads over these."""
