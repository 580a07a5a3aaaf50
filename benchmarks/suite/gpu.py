"""The same calls on tensors of a GPU, in bfloat16; left out where there is none, or where the package has no kernels for it."""

from __future__ import annotations

import importlib.util
from typing import Any

from . import LARGE, measured

LENGTHS = (1024, 4096, 16384) if LARGE else (1024,)


class Attention:
    """8 heads of 128; a call ends when the device has."""

    params = [[False, True], list(LENGTHS), ["forward", "both"]]
    param_names = ["causal", "length", "direction"]
    timeout = 120.0

    def setup(self, causal: bool, length: int, direction: str) -> None:
        self.torch = _torch_on_a_gpu()
        mechanism = measured.offered("refattn_numba", "scaled_dot_product_attention")
        query, key, value, d = self.torch.randn((4, 1, 8, length, 128), device="cuda", dtype=self.torch.bfloat16)

        def both() -> Any:
            _, pullback = mechanism.vjp(query, key, value, causal=causal)
            return pullback(d)

        self.call = both if direction == "both" else lambda: mechanism(query, key, value, causal=causal)
        self.time_call(causal, length, direction)

    def time_call(self, causal: bool, length: int, direction: str) -> None:
        self.call()
        self.torch.cuda.synchronize()


class Convolution:
    """64 channels, 56 x 56, batch 8, 3 x 3."""

    params = [["forward", "both"]]
    param_names = ["direction"]
    timeout = 120.0

    def setup(self, direction: str) -> None:
        self.torch = _torch_on_a_gpu()
        mechanism = measured.offered("refattn_numba", "conv2d")
        x, d = self.torch.randn((2, 8, 64, 56, 56), device="cuda", dtype=self.torch.bfloat16)
        weight = self.torch.randn((64, 64, 3, 3), device="cuda", dtype=self.torch.bfloat16)

        def both() -> Any:
            _, pullback = mechanism.vjp(x, weight, padding=1)
            return pullback(d)

        self.call = both if direction == "both" else lambda: mechanism(x, weight, padding=1)
        self.time_call(direction)

    def time_call(self, direction: str) -> None:
        self.call()
        self.torch.cuda.synchronize()


def _torch_on_a_gpu() -> Any:
    """PyTorch, where it finds a GPU and `refattn_numba` has kernels for one."""
    if any(importlib.util.find_spec(name) is None for name in ("torch", "refattn_numba")):
        raise NotImplementedError("PyTorch or refattn_numba is not installed")
    if importlib.util.find_spec("refattn_numba.cuda") is None:
        raise NotImplementedError("refattn_numba has no kernels for a GPU")
    import torch  # noqa: PLC0415

    if not torch.cuda.is_available():
        raise NotImplementedError("no GPU")
    return torch
