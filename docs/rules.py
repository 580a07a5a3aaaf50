"""How projects decide whether a kernel is right: their rule, their inputs, the features that their tests have.

Each rule is restated from the project's own tests, of which the commit or the date of reading stands beside it; none is run.
Read in November 2026. Where a test has many rules, it is the one for the format that is named here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np

from refattn._core import Array

Draw: TypeAlias = Callable[[np.random.Generator, tuple[int, ...], str], Array]
"""The numbers of an argument of this name."""


class Compared(NamedTuple):
    """One output or gradient: what it is, what the kernel gives, what is exact, and what the format's own arithmetic gives."""

    what: str
    got: Array
    exact: Array
    low: Callable[[], Array]


class Project(NamedTuple):
    """One project's way to test."""

    name: str
    family: str
    dtype: str
    rule: str
    inputs: str
    source: str
    draw: Draw
    accepts: Callable[[Compared], bool]
    has: frozenset[str]
    backward: bool = True
    align: str = "lower_right"
    softcap: float = 30.0
    equal: bool = False  # whether queries are as many as keys


def normal(std: float = 1.0) -> Draw:
    """N(0, std)."""
    return lambda random, shape, _: random.normal(0, std, shape)


def uniform(low: float, high: float) -> Draw:
    """U(low, high)."""
    return lambda random, shape, _: random.uniform(low, high, shape)


def close(atol: float, rtol: float, d_atol: float | None = None, d_rtol: float | None = None) -> Callable[[Compared], bool]:
    """``|got - exact| <= atol + rtol |exact|`` everywhere; other numbers for gradients."""

    def accepts(c: Compared) -> bool:
        of_gradient = c.what.startswith("d_") and d_atol is not None
        a, r = (d_atol or 0, d_rtol or 0) if of_gradient else (atol, rtol)
        return bool(np.all(np.abs(c.got - c.exact) <= a + r * np.abs(c.exact)))

    return accepts


def twice_the_format(c: Compared) -> bool:
    """The largest error is at most twice that of the format's own arithmetic, and what adding and subtracting 0.3 costs."""
    shaken = np.abs((c.exact + 0.3 - 0.3) - c.exact).max()
    return bool(np.abs(c.got - c.exact).max() <= 2 * np.abs(c.low() - c.exact).max() + 2 * shaken)


def root_mean_square(c: Compared) -> bool:
    """The root mean square of the error is a share of that of what is exact."""
    share = 0.005 if not c.what.startswith("d_") else 0.02 if c.what in {"d_log_decay", "d_beta"} else 0.008
    return bool(_rms(c.got - c.exact) / (_rms(c.exact) + 1e-8) < share)


def only_a_warning(c: Compared) -> bool:
    """As its workflows run it: a ratio below 0.01 or a largest error up to 0.3 only warns."""
    small = np.abs(c.got - c.exact).max() <= 0.3 or _rms(c.got - c.exact) / (_rms(c.exact) + 1e-8) < 0.01
    return bool(small) or root_mean_square(c)


def fudged(c: Compared) -> bool:
    """Tolerances are the largest absolute and relative errors of the format's own arithmetic, times a factor."""
    factor = {"d_query": 180.0, "d_key": 16.0}.get(c.what, 4.0)
    low = c.low()
    with np.errstate(all="ignore"):
        relative = np.nan_to_num(np.abs((c.exact - low) / c.exact), nan=1e-3).max()
    rtol = factor * max(relative, 1e-3)
    atol = factor * max(np.abs(c.exact - low).max(), 1e-3)
    return bool(np.all(np.abs(c.got - c.exact) <= atol + (1e-3 if rtol > 1e30 else rtol) * np.abs(c.exact)))


def mean_square(c: Compared) -> bool:
    """The mean square of the error over that of what is exact."""
    return bool(np.mean((c.got - c.exact) ** 2) / np.mean(c.exact**2) <= 5e-4)


def balanced(c: Compared) -> bool:
    """Relative to the sum of both."""
    return bool(np.all(np.abs(c.got - c.exact) < np.maximum(0.005 * np.abs(c.got + c.exact), 1e-5)))


def _rms(x: Array) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


def _mlx(random: np.random.Generator, shape: tuple[int, ...], what: str) -> Array:
    if what in {"query", "key"}:
        return random.uniform(0, 0.5, shape)
    return random.uniform(0, shape[-1] ** -0.5, shape) if what == "value" else random.normal(0, 1, shape)


def _ggml(random: np.random.Generator, shape: tuple[int, ...], what: str) -> Array:
    return random.uniform(-10, 10, shape) if what == "sinks" else random.uniform(-1, 1, shape)


def _flashinfer(random: np.random.Generator, shape: tuple[int, ...], what: str) -> Array:
    return random.uniform(0, 5, shape) if what == "sinks" else random.normal(0, 1, shape)


def _flash(random: np.random.Generator, shape: tuple[int, ...], what: str) -> Array:
    return random.normal(0, 1, shape) * (30.0 / 4 if what == "query, softcap" else 1)


def _natten(random: np.random.Generator, shape: tuple[int, ...], what: str) -> Array:
    return random.normal(0, 1, shape) * (0.05 if what.startswith("d_") else 1)


BASIC = {"causal", "masked", "tiles", "tail", "batch"}
FLASH, FLASHINFER = "flash-attention 0251105a, tests/cute/test_flash_attn.py", "flashinfer fb28d724, tests/attention"

PROJECTS = (
    Project("FlashAttention", "attention", "bfloat16", "largest error <= 2 x that of bfloat16 PyTorch + 2 x that of adding 0.3",
            "N(0, 1); queries x softcap / 4", FLASH, _flash, twice_the_format,
            frozenset(BASIC | {"lengths", "window", "softcap", "keep", "groups", "head_dim", "value_dim"})),
    Project("flashinfer", "attention", "bfloat16", "atol 1e-2, rtol 1e-2", "N(0, 1); sinks U(0, 5)", FLASHINFER, _flashinfer,
            close(1e-2, 1e-2), frozenset(BASIC | {"lengths", "window", "softcap", "sinks", "groups", "mask", "lse", "scale"}), False),
    Project("flashinfer", "attention", "float16", "atol 1e-3, rtol 1e-3", "N(0, 1); sinks U(0, 5)", FLASHINFER, _flashinfer,
            close(1e-3, 1e-3), frozenset(BASIC | {"lengths", "window", "softcap", "sinks", "groups", "mask", "lse", "scale"}), False),
    Project("NATTEN", "attention", "bfloat16", "atol 5e-2", "N(0, 1); cotangents x 0.05", "NATTEN 8c8729f, tests/utils.py", _natten,
            close(5e-2, 0), frozenset(BASIC | {"lengths", "groups", "head_dim", "value_dim"})),
    Project("NATTEN", "attention", "float16", "atol 1e-2", "N(0, 1); cotangents x 0.05", "NATTEN 8c8729f, tests/utils.py", _natten,
            close(1e-2, 0), frozenset(BASIC | {"lengths", "groups", "head_dim", "value_dim"})),
    Project("xformers", "attention", "bfloat16", "atol 2e-2, rtol 5e-3; gradients atol 0.9, rtol 0.1", "N(0, 1)",
            "xformers, ops/fmha/common.py: AttentionFwOpBase, AttentionBwOpBase", normal(), close(2e-2, 5e-3, 0.9, 0.1),
            frozenset(BASIC | {"lengths", "bias", "window", "keep", "groups", "scale", "head_dim", "value_dim"})),
    Project("PyTorch", "attention", "float16", "tolerances of float16 PyTorch x 4; gradients of queries x 180, of keys x 16",
            "N(0, 1)", "PyTorch, test/test_transformers.py: get_tolerances", normal(), fudged,
            frozenset(BASIC | {"lengths", "keep", "groups", "scale", "head_dim", "value_dim"}), align="upper_left"),
    Project("Triton tutorial 06", "attention", "float16", "atol 1e-2; gradients of queries and keys the same", "N(0, 0.5), scale 0.5",
            "triton, python/tutorials/06-fused-attention.py", normal(0.5), close(1e-2, 0),
            frozenset({"causal", "masked", "tiles", "batch", "scale"}), equal=True),
    Project("MLX", "attention", "bfloat16", "atol 5e-3, rtol 5e-3", "queries, keys U(0, 0.5); values U(0, 1 / sqrt(head_dim))",
            "mlx, python/tests/test_fast_sdpa.py", _mlx, close(5e-3, 5e-3),
            frozenset(BASIC | {"lengths", "mask", "sinks", "groups", "scale"}), False),
    Project("ggml", "attention", "float16", "mean square of errors <= 5e-4 of that of the result", "U(-1, 1), sinks U(-10, 10), cap 10",
            "ggml, tests/test-backend-ops.cpp", _ggml, mean_square,
            frozenset(BASIC | {"lengths", "softcap", "mask", "bias", "sinks", "groups", "scale", "head_dim"}), False, softcap=10.0),
    Project("fla", "linear", "float16", "root mean square of errors < 0.005 of that of the result; gradients 0.008, of gates 0.02",
            "N(0, 1), gates log sigmoid", "flash-linear-attention bc3b101d, fla/utils/_testing.py", normal(), root_mean_square,
            frozenset({"tiles", "groups", "state", "eps"})),
    Project("fla, as its CI runs it", "linear", "float16", "the same, or a largest error <= 0.3, or a ratio < 0.01",
            "N(0, 1), gates log sigmoid", "the same, FLA_CI_ENV=1", normal(), only_a_warning,
            frozenset({"tiles", "groups", "state", "eps"})),
    Project("tinygrad", "convolution", "float32", "atol 1e-6, rtol 1e-3; gradients atol 1e-4", "U(-2, 2)", "tinygrad, test/test_ops.py",
            uniform(-2, 2), close(1e-6, 1e-3, 1e-4, 1e-3),
            frozenset({"padding", "stride", "dilation", "groups", "bias", "batch", "tail", "channels", "3x3", "output_padding"})),
    Project("burn", "convolution", "float16", "|a - b| < max(0.005 |a + b|, 1e-5)", "N(0, 1)", "burn, crates/burn-tensor-testgen",
            normal(), balanced,
            frozenset({"padding", "stride", "dilation", "groups", "bias", "batch", "tail", "channels", "3x3", "output_padding"})),
)  # fmt: skip
