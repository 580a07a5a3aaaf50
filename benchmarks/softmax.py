"""Softmax attention as a problem to be solved: sizes, options, and the arrays drawn for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

import refattn
from benchmarks.cases import installed, on_lines

BLOCK, KEPT = 128, 6  # a block-sparse mask: each block of queries sees so many blocks of keys
ITEM_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "int8": 1}


@dataclass(frozen=True)
class Problem:
    """`option` is a random "mask", a "bias", or a mask of "blocks": of all pairs, and shared by the heads."""

    batch: int
    heads: int
    kv_heads: int
    query_len: int
    key_len: int
    head_dim: int
    dtype: str = "float32"
    causal: bool = False
    backward: bool = False
    window: int | None = None
    option: str = ""

    @property
    def pairs(self) -> int:
        """Scores of one head that count: half of them for a causal one; a random mask saves nobody any work."""
        if self.window is not None:
            return self.query_len * self.window
        if self.option == "blocks":
            return self.query_len * KEPT * BLOCK
        return self.query_len * self.key_len // (2 if self.causal else 1)

    @property
    def scores(self) -> int:
        """How many there are for those who compute all."""
        return self.batch * self.heads * self.query_len * self.key_len

    @property
    def operations(self) -> float:
        """Of two products forward and five backward."""
        return 4.0 * self.batch * self.heads * self.pairs * self.head_dim * (3.5 if self.backward else 1)

    @property
    def least_bytes(self) -> float:
        """Read and written by whoever does each once: queries, keys, values, output; backward these again, and what each has of gradients."""
        numbers = 2.0 * self.batch * self.head_dim * (self.heads * self.query_len + self.kv_heads * self.key_len)
        return numbers * ITEM_BYTES[self.dtype] * (3 if self.backward else 1)

    def read_bytes(self, stored: str = "") -> float:
        """Keys and values, once."""
        return 2.0 * self.batch * self.kv_heads * self.key_len * self.head_dim * ITEM_BYTES[stored or self.dtype]

    def drawn(self) -> Given:
        """Inputs, the same each time."""
        random, kind = np.random.default_rng(0), np.dtype(self.dtype) if self.dtype != "bfloat16" else installed("ml_dtypes").bfloat16
        kv = (self.batch, self.kv_heads, self.key_len, self.head_dim)
        queries, pairs = (self.batch, self.heads, self.query_len, self.head_dim), (self.query_len, self.key_len)
        query, key, value, d = (on_lines(random.standard_normal(shape, np.float32).astype(kind)) for shape in (queries, kv, kv, queries))
        options: dict[str, Any] = {"causal": True} if self.causal else {}
        if self.option == "mask":
            options["mask"] = random.random(pairs) < 0.8
        if self.option == "blocks":
            options["mask"] = _blocks(random, *pairs)
        if self.option == "bias":
            options["bias"] = on_lines(random.standard_normal(pairs).astype(kind))
        if self.window is not None:
            options["window"] = (self.window - 1, 0)
        return Given(self, query, key, value, d, options)


class Given(NamedTuple):
    """A problem, its arrays (`d` is the output's cotangent), and the options as our own function takes them."""

    problem: Problem
    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    d: np.ndarray
    options: dict[str, Any]

    def dense_mask(self) -> np.ndarray | None:
        """What those need who know masks alone, where there is a mask or a window."""
        if "window" in self.options:
            left, right = self.options["window"]
            return refattn.masks.sliding_window(self.problem.query_len, self.problem.key_len, left=left, right=right)
        return self.options.get("mask")


def _blocks(random: np.random.Generator, query_len: int, key_len: int) -> np.ndarray:
    """Each block of queries sees its own keys, and other blocks at random."""
    kept = np.zeros((query_len // BLOCK, key_len // BLOCK), bool)
    for i, row in enumerate(kept):
        others = np.delete(np.arange(row.size), i)
        row[[i, *random.choice(others, KEPT - 1, replace=False)]] = True
    return kept.repeat(BLOCK, 0).repeat(BLOCK, 1)
