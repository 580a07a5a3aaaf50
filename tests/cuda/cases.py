"""Problems on which CUDA kernels are compared with the reference, and what rounding allows."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

import refattn
from refattn_numba.cuda.kernels.place import FAR
from tests.cuda.calls import Band, numbers, stored
from tests.cuda.emulator import FLOAT8

ROUNDING = {"bfloat16": 2.0**-9, "float16": 2.0**-12, "float32": 2.0**-21}
"""Half a unit in the last place of 16-bit types. Of float32 eight units, as a score's error of 2**-24 of its largest product goes through
an exponential, and three products of TF32 leave out 2**-22."""


class Problem(NamedTuple):
    """Operands as a device holds them, and options for the kernels and for the reference."""

    element: str
    operands: tuple[np.ndarray, np.ndarray, np.ndarray]
    options: dict[str, Any]
    of_reference: dict[str, Any]

    @property
    def has_options(self) -> bool:
        return any(name in self.options for name in ("mask", "bias", "keep", "softcap")) or self.options.get("scale", 1) <= 0

    def reference(self) -> Any:
        """Output and log-sum-exp, and the pullback."""
        return refattn.scaled_dot_product_attention_with_lse.vjp(*map(numbers, self.operands), **self.of_reference)


def problem(
    element: str = "bfloat16", *, batch: int = 1, heads: int = 2, group: int = 1, query_len: int = 40, key_len: int = 70, head_dim: int = 32,
    value_dim: int | None = None, causal: str | None = None, window: tuple[int | None, int | None] | None = None, align: str = "upper_left",
    options: tuple[str, ...] = (), scale: float | None = None, seed: int = 0, hides: bool = False,
) -> Problem:  # fmt: skip
    """Drawn operands and options."""
    rng = np.random.default_rng(seed)
    lead, pairs = (batch, heads), (batch, heads, query_len, key_len)
    query = rng.standard_normal((*lead, query_len, head_dim))
    key, value = (rng.standard_normal((batch, heads // group, key_len, n)) for n in (head_dim, value_dim or head_dim))
    if hides:  # from all: row 3 by the mask, keys past the last query by their places
        query[:, :, 3], key[:, :, query_len + 1], value[:, :, query_len] = np.nan, np.nan, np.inf
    made: dict[str, Any] = {}
    reference: dict[str, Any] = {}
    if causal or window:
        left, right = window or (None, None)
        made["band"] = Band(
            -FAR if left is None else -left, 0 if causal else FAR if right is None else right, int((causal or align) == "lower_right")
        )
        reference |= {"causal": bool(causal), "align": causal or align, "window": window}
    if scale is not None:
        made["scale"] = reference["scale"] = scale
    if "mask" in options:
        mask = rng.random((batch, 1, query_len, key_len)) < 0.6
        mask[:, :, 3] = False
        made["mask"] = reference["mask"] = mask
    if "bias" in options:
        bias = rng.standard_normal((heads, 1, key_len))
        bias[:, 0, 2] = -np.inf
        made["bias"] = stored(bias, element)
        reference["bias"] = numbers(made["bias"])
    if "softcap" in options:
        made["softcap"] = reference["softcap"] = 1.5
    if "keep" in options:
        made |= {"keep": rng.random(pairs) < 0.7, "dropout_rate": 0.3}
        reference |= {name: made[name] for name in ("keep", "dropout_rate")}
    if "sinks" in options:
        made["sinks"] = stored(rng.standard_normal(heads), "float32" if element == FLOAT8 else element)
        reference["sinks"] = numbers(made["sinks"])
    return Problem(element, (stored(query, element), stored(key, element), stored(value, element)), made, reference)


PROBLEMS: dict[str, dict[str, Any]] = {
    "full": {},
    "float16": {"element": "float16"},
    "float32": {"element": "float32"},
    "two batches, head_dim 64": {"batch": 2, "heads": 1, "head_dim": 64, "query_len": 33},
    "odd sizes": {"head_dim": 23, "value_dim": 9, "query_len": 17, "key_len": 33},
    "odd sizes in float32": {"element": "float32", "head_dim": 23, "value_dim": 9, "query_len": 17, "key_len": 33},
    "one query": {"query_len": 1},
    "one key": {"key_len": 1},
    "no keys": {"key_len": 0},
    "grouped": {"heads": 4, "group": 2},
    "causal, upper left": {"causal": "upper_left"},
    "causal, lower right": {"causal": "lower_right"},
    "causal, more queries than keys": {"causal": "lower_right", "query_len": 75, "key_len": 30},
    "window": {"window": (9, 3), "align": "lower_right"},
    "window to one side": {"window": (None, 3), "element": "float32"},
    "causal window, grouped": {"window": (9, None), "causal": "upper_left", "heads": 2, "group": 2, "query_len": 70},
    "sinks": {"options": ("sinks",), "causal": "lower_right"},
    "mask": {"options": ("mask",), "element": "float32"},
    "bias": {"options": ("bias",), "element": "float32"},
    "softcap": {"options": ("softcap",), "element": "float32"},
    "dropout": {"options": ("keep",), "element": "float32"},
    "negative scale": {"scale": -0.4, "element": "float32"},
    "not finite behind masks": {"causal": "upper_left", "options": ("mask",), "hides": True, "query_len": 25, "key_len": 40},
    "all options": {"options": ("mask", "bias", "softcap", "keep", "sinks"), "causal": "lower_right", "batch": 2, "group": 2},
}
