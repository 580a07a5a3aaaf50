"""Softmax attention, with each kind of mask; sequences packed into one array; and one query of each sequence against its cache."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from . import LARGE, measured


def attention(
    random: np.random.Generator,
    length: int,
    *,
    heads: int = 4,
    kv_heads: int = 4,
    masked: bool = False,
    biased: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Arguments of scaled dot-product attention; a random mask keeps four of five pairs, and saves nobody any work."""
    drawn = measured.normal(query=(1, heads, length, 64), key=(1, kv_heads, length, 64), value=(1, kv_heads, length, 64))(random)
    if masked:
        options["mask"] = random.random((length, length)) < 0.8
    if biased:
        options["bias"] = random.standard_normal((length, length))
    return drawn | options


def decode(random: np.random.Generator, length: int, kv_heads: int) -> dict[str, Any]:
    """Four sequences whose caches are full, half full, and so on."""
    drawn = measured.normal(query=(4, 8, 1, 64), key=(4, kv_heads, length, 64), value=(4, kv_heads, length, 64))(random)
    return drawn | {"lengths": np.array([length, length // 2, length // 4, 1])}


def varlen(random: np.random.Generator, lengths: tuple[int, ...]) -> dict[str, Any]:
    """Causal sequences, one after another."""
    shape = (4, sum(lengths), 64)
    return measured.normal(query=shape, key=shape, value=shape)(random) | {"cu_seqlens_q": np.cumsum((0, *lengths)), "causal": True}


KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "causal": {"causal": True},
    "window of 64": {"causal": True, "window": (63, 0)},
    "grouped heads": {"kv_heads": 1},
    "boolean mask": {"masked": True},
    "bias": {"biased": True},
}


SDPA, DECODE, VARLEN = "scaled_dot_product_attention", "decode_attention", "varlen_attention"


class Attention(measured.Timed):
    about = "1 sequence, head_dim 64; float64 in refattn, float32 in refattn_numba"
    problems = {
        kind: measured.Problem(SDPA, partial(attention, length=256, **options), partial(attention, length=96, **options))
        for kind, options in KINDS.items()
    }
    if LARGE:
        problems |= {
            f"{kind}, 2048 tokens": measured.Problem(
                SDPA, partial(attention, length=2048, **{"heads": 8, "kv_heads": 8} | options), twins_only=True
            )
            for kind, options in KINDS.items()
        }


class Caches(measured.Timed):
    about = "decoding, with grouped heads, of full, half full and almost empty caches; packed sequences"
    problems = {
        "decode, 512 keys": measured.Problem(DECODE, partial(decode, length=512, kv_heads=2), partial(decode, length=48, kv_heads=2)),
        "varlen, 5 to 150 tokens": measured.Problem(
            VARLEN, partial(varlen, lengths=(64, 5, 150, 37)), partial(varlen, lengths=(16, 5, 40, 19))
        ),
    }
    if LARGE:
        problems |= {
            "decode, 16384 keys": measured.Problem(DECODE, partial(decode, length=16384, kv_heads=8), twins_only=True),
            "varlen, 12 to 2048 tokens": measured.Problem(VARLEN, partial(varlen, lengths=(2048, 12, 702, 1024)), twins_only=True),
        }
