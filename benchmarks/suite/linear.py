"""Attention whose state has one size, however long the sequence."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from . import LARGE, measured


def arguments(random: np.random.Generator, name: str, length: int, heads: int, head_dim: int = 64) -> dict[str, Any]:
    """Keys are short and decays small, so that states stay bounded."""
    shape = (1, heads, length, head_dim)
    drawn = measured.normal(query=shape, key=shape, value=shape)(random)
    drawn["key"] /= np.sqrt(head_dim)
    if name == "chunked_linear_attention":
        return drawn | {"causal": True}
    return drawn | {"log_decay": -random.uniform(0, 0.25, shape[:3]), "beta": random.uniform(0, 1, shape[:3])}


class Linear(measured.Timed):
    about = "1 sequence, head_dim 64; the chunked forms"
    problems = {
        name.removeprefix("chunked_"): measured.Problem(
            name, partial(arguments, name=name, length=256, heads=2), partial(arguments, name=name, length=80, heads=1, head_dim=8)
        )
        for name in ("chunked_linear_attention", "chunked_gated_delta_rule")
    }
    if LARGE:
        problems |= {
            f"{name.removeprefix('chunked_')}, 4096 tokens": measured.Problem(
                name, partial(arguments, name=name, length=4096, heads=8), twins_only=True
            )
            for name in ("chunked_linear_attention", "chunked_gated_delta_rule")
        }
