"""Runs the kernels for decoding under the emulator on arrays of NumPy, and problems on which they are compared with the reference."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

import refattn
from refattn_numba.cuda.kernel import Kernel
from refattn_numba.cuda.kernels import decode as source
from refattn_numba.cuda.kernels import merge as of_splits
from refattn_numba.cuda.kernels.place import FAR
from tests.cuda.calls import address, numbers, read_only, steps, stored
from tests.cuda.emulator import launch


def decode_kernel(config: source.Config) -> Kernel:
    return Kernel("decode", source.decode, config, source.PARAMETERS, config.threads, config.shared_bytes, source.ROWS)


def merge_kernel(config: of_splits.Config) -> Kernel:
    return Kernel("merge", of_splits.merge, config, of_splits.PARAMETERS, config.threads, 0, config.warps)


def small(element: Any, size: int = 32, **more: Any) -> tuple[Kernel, Kernel]:
    """Kernels with the shipped ones' source and small tiles, so that a case has several."""
    config = source.Config(element, size, **{"warps": 2, "keys": 16, **more})
    return decode_kernel(config), merge_kernel(of_splits.Config(element, 2, 2))


class Problem(NamedTuple):
    """What a device holds, options for the kernels, and the reference's arguments."""

    element: str
    arrays: dict[str, Any]
    options: dict[str, Any]
    splits: int
    reference: Any
    given: dict[str, Any]

    def expected(self) -> Any:
        """Output and log-sum-exp."""
        return self.reference(**self.given)


def decoded(kernels: tuple[Kernel, Kernel], case: Problem, *, empty: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Output and log-sum-exp."""
    kernel, merge = kernels
    arrays = case.arrays
    query, value, table = arrays["query"], arrays["value"], arrays.get("table")
    sequences, heads, query_len, head_dim = query.shape
    pages, kv_heads, page_size, value_dim = value.shape
    group = heads // kv_heads
    rows, tiles = sequences * heads * query_len, -(-group * query_len // source.ROWS)
    output = stored(np.full((sequences, heads, query_len, value_dim), np.nan), case.element)
    lse = np.full((sequences, heads, query_len), np.nan, np.float32)
    parts, parts_lse = np.full((case.splits, rows, value_dim), np.nan, np.float32), np.full((case.splits, rows), np.nan, np.float32)
    is_split = case.splits > 1
    arguments: dict[str, Any] = {
        "kv_heads": kv_heads, "group": group, "query_len": query_len, "head_dim": head_dim, "value_dim": value_dim,
        "key_len": page_size * (1 if table is None else table.shape[1]), "page_size": max(page_size, 1), "pages": pages,
        "table_len": 0 if table is None else table.shape[1], "tiles": tiles, "splits": case.splits, "split_rows": rows,
        "output": address(parts if is_split else output), "lse": address(parts_lse if is_split else lse),
        "output_row": value_dim if is_split else output.strides[-2] // output.itemsize,
        "low": -FAR, "high": FAR, "scale": head_dim**-0.5, "value_factor": 1.0, "softcap": 0.0, "empty": empty, **case.options,
    }  # fmt: skip
    for name in ("table", "lengths", "sinks", "key_scale", "value_scale"):
        arguments[name] = address(arrays.get(name))
    for name in ("query", "key", "value"):
        arguments |= {name: address(arrays[name]), **steps(name, arrays[name])}
    for name in ("key_scale", "value_scale"):
        arguments |= steps(name, arrays.get(name), shape=(pages, kv_heads, page_size))
    made = [parts, parts_lse] if is_split else [output, lse]
    launch(kernel, sequences * kv_heads * tiles * case.splits, arguments, [*(read_only(x) for x in arrays.values()), *made])
    if is_split:
        of_merge = {"parts": address(parts), "parts_lse": address(parts_lse), "output": address(output), "lse": address(lse)}
        of_merge |= {"rows": rows, "splits": case.splits, "value_dim": value_dim, "parts_row": value_dim, "empty": empty}
        of_merge["output_row"] = output.strides[-2] // output.itemsize
        blocks = -(-rows * -(-value_dim // 32) // merge.tile)
        launch(merge, blocks, of_merge, [read_only(parts), read_only(parts_lse), output, lse])
    return output, lse


def stored_codes(x: np.ndarray) -> np.ndarray:
    """As `stored`, of 8 bits: what lies behind a row is 85."""
    width = -(-x.shape[-1] // 16) * 16
    whole = np.full(x.size // max(x.shape[-1], 1) * width + 16, 85, np.int8)
    start = -whole.ctypes.data % 16
    made = whole[start : whole.size - 16 + start].reshape(*x.shape[:-1], width)[..., : x.shape[-1]]
    made[...] = x
    return made


def problem(
    element: str = "bfloat16", *, lengths: tuple[int, ...] = (70, 33), kv_heads: int = 2, group: int = 2, query_len: int = 1,
    key_len: int = 80, head_dim: int = 32, value_dim: int | None = None, splits: int = 1, page_size: int = 0, causal: bool = False,
    window: tuple[int | None, int | None] | None = None, options: tuple[str, ...] = (), seed: int = 0, **more: Any,
) -> Problem:  # fmt: skip
    """Drawn operands: what no kernel may use is NaN. With a page size, pages lie in any order, and some are nobody's."""
    rng, count = np.random.default_rng(seed), len(lengths)
    heads, value_dim = kv_heads * group, value_dim or head_dim
    query = stored(rng.standard_normal((count, heads, query_len, head_dim)), element)
    table = None
    shape = (count, kv_heads, key_len)
    if page_size:
        each = -(-key_len // page_size)
        shape = (count * each + 2, kv_heads, page_size)
        table = rng.permutation(count * each + 2)[: count * each].astype(np.int32).reshape(count, each)
    key, value = (rng.standard_normal((*shape, n)) for n in (head_dim, value_dim))
    left = None if window is None else window[0]
    for i, length in enumerate(lengths):
        reach = 0 if left is None else max(length - query_len - left, 0)
        for place in range(key_len):
            if reach <= place < length:
                continue
            at = (i, slice(None), place) if table is None else (table[i, place // page_size], slice(None), place % page_size)
            key[at], value[at] = np.nan, np.inf
        if table is not None:
            first, last = reach // page_size, -(-length // page_size)
            table[i, [*range(first), *range(last, table.shape[1])]] = -1
    if "hides" in options:  # from the first query, by the others' later places
        value[0, :, lengths[0] - 1, 3] = np.nan
        key[1, :, lengths[1] - 1, 1] = np.nan
    arrays: dict[str, Any] = {"query": query, "key": stored(key, element), "value": stored(value, element)}
    arrays["lengths"] = np.asarray(lengths, np.int32)
    given: dict[str, Any] = {"query": numbers(query), "lengths": arrays["lengths"], "causal": causal, "window": window, **more}
    names = ("key", "value") if table is None else ("key_pages", "value_pages")
    given |= {name: numbers(arrays[of]) for name, of in zip(names, ("key", "value"), strict=True)}
    right = None if window is None else window[1]
    made: dict[str, Any] = {"low": -FAR if left is None else -left, "high": 0 if causal else FAR if right is None else right}
    made |= {name: more[name] for name in ("scale", "softcap") if name in more}
    if "sinks" in options:
        arrays["sinks"] = stored(rng.standard_normal(heads), element)
        given["sinks"] = numbers(arrays["sinks"])
    if "codes" in options:
        for name in ("key", "value"):
            arrays[name] = stored_codes(rng.integers(-128, 128, (*shape, given["query"].shape[-1] if name == "key" else value_dim)))
            given[names[name == "value"]] = arrays[name].astype(np.int64)
        made |= {"scale": 2.0**-9, "value_factor": 2.0**-7}
        given |= {"scale": 2.0**-9, "value_scale": 2.0**-7}
    if "scales" in options:
        for name, of in (("key_scale", (shape[0], kv_heads, shape[2])), ("value_scale", (kv_heads, 1))):
            arrays[name] = rng.standard_normal(of).astype(np.float32)
            given[name] = arrays[name][..., None].astype(np.float64)
        made["value_factor"] = 1.0
        if "codes" in options:
            given["value_scale"] *= 2.0**-7
            arrays["value_scale"] *= np.float32(2.0**-7)
    if table is not None:
        arrays["table"] = given["block_table"] = table
    reference = refattn.decode_attention_with_lse if table is None else refattn.paged_attention_with_lse
    return Problem(element, arrays, made, splits, reference, given)


PROBLEMS: dict[str, dict[str, Any]] = {
    "one query": {},
    "float16": {"element": "float16"},
    "float32": {"element": "float32", "lengths": (70, 16)},
    "splits": {"splits": 3},
    "more splits than tiles": {"splits": 7, "lengths": (70, 3)},
    "odd sizes": {"head_dim": 23, "value_dim": 9, "lengths": (61, 1), "splits": 2},
    "odd sizes in float32": {"element": "float32", "head_dim": 23, "value_dim": 9, "key_len": 40, "lengths": (39, 1)},
    "nothing yet": {"lengths": (0, 5), "splits": 2},
    "no cache": {"lengths": (0, 0), "key_len": 0},
    "more rows than a tile": {"group": 5, "query_len": 4, "kv_heads": 1, "lengths": (37, 2), "causal": True},
    "causal": {"query_len": 5, "causal": True, "lengths": (40, 3), "splits": 2},
    "not causal": {"query_len": 5, "lengths": (40, 3)},
    "window": {"query_len": 3, "window": (9, 1), "lengths": (75, 20), "splits": 2},
    "window of one query": {"window": (20, None), "lengths": (80, 5)},
    "softcap": {"softcap": 1.5, "element": "float32", "splits": 2, "lengths": (50,)},
    "negative scale": {"scale": -0.4, "element": "float32", "lengths": (50,)},
    "sinks": {"options": ("sinks",), "splits": 2, "lengths": (40, 0)},
    "not finite behind masks": {"options": ("hides",), "causal": True, "query_len": 3, "lengths": (37, 30), "splits": 2},
    "scales": {"options": ("scales",), "splits": 2, "lengths": (40, 20)},
    "pages": {"page_size": 16, "splits": 2},
    "pages of odd sizes": {"page_size": 5, "lengths": (63, 12), "splits": 2},
    "pages of one position": {"page_size": 1, "lengths": (33,), "key_len": 40},
    "pages before a window": {"page_size": 8, "window": (20, 0), "query_len": 2, "lengths": (75, 11), "splits": 2},
    "codes": {"options": ("codes",), "splits": 2},
    "codes of odd sizes": {"options": ("codes", "sinks"), "element": "float16", "head_dim": 43, "value_dim": 9, "lengths": (61, 1)},
    "codes in a causal window": {"options": ("codes",), "query_len": 3, "causal": True, "window": (30, None), "page_size": 16},
    "codes with scales in pages": {"options": ("codes", "scales"), "page_size": 5, "lengths": (33, 12), "softcap": 30.0},
    "scales in pages": {"page_size": 8, "options": ("scales", "sinks"), "lengths": (30, 0), "softcap": 2.0, "element": "float32"},
}
