"""Attention to caches on a device, of which each sequence holds its own part: operands, splits, and two launches. There is no pullback."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, cast

import numpy as np

from refattn._core import Integers, Pullback
from refattn.attention.cached.paged import refuse_missing_pages
from refattn.attention.dot_product.scaled_dot_product import AttendedWithLse
from refattn_numba.cpu.packing import cap_of
from refattn_numba.cuda import decode_configurations, driver
from refattn_numba.cuda.arrays import DeviceArray, Placed, placed, placed_pairs
from refattn_numba.cuda.kernels.decode import ROWS
from refattn_numba.cuda.launching import LONGEST, MOST_BLOCKS, NO_LIMIT, Launcher

Window: TypeAlias = tuple[int | None, int | None]
Factor: TypeAlias = DeviceArray | float | None
Fields: TypeAlias = dict[str, int | float]

TYPES = ("float32", "float16", "bfloat16")
MANY_KEYS = 1024
"""From so many on a few queries are worth a second launch: a tile of the other kernels would read all keys in one block."""

choose = functools.lru_cache(maxsize=256)(decode_configurations.choose)
merging = functools.lru_cache(maxsize=16)(decode_configurations.merging)


def decode_attention_with_lse(
    query: DeviceArray,
    key: DeviceArray,
    value: DeviceArray,
    lengths: DeviceArray | Integers,
    sinks: DeviceArray | None = None,
    key_scale: Factor = None,
    value_scale: Factor = None,
    **options: Any,
) -> tuple[AttendedWithLse, Pullback]:
    """`refattn.decode_attention_with_lse`; the log-sum-exp is float32.

    Lengths in main memory are checked and sent to the device. Those on the device are read by the kernel alone, which takes them between 0
    and the room in the cache.
    """
    key_len = key.shape[-2]
    if not isinstance(lengths, DeviceArray) and lengths.size and not 0 <= lengths.min() <= lengths.max() <= key_len:
        raise ValueError(f"lengths runs from {lengths.min()} to {lengths.max()}, but key_len is {key_len}")
    return _attended(query, key, value, None, lengths, sinks, key_scale, value_scale, **options)


def paged_attention_with_lse(
    query: DeviceArray,
    key_pages: DeviceArray,
    value_pages: DeviceArray,
    block_table: DeviceArray | Integers,
    lengths: DeviceArray | Integers,
    sinks: DeviceArray | None = None,
    key_scale: Factor = None,
    value_scale: Factor = None,
    **options: Any,
) -> tuple[AttendedWithLse, Pullback]:
    """`refattn.paged_attention_with_lse`; the log-sum-exp is float32.

    A table and lengths in main memory are checked and sent to the device. Where the table lies on the device, a sequence that reaches a
    page that there is not gets NaN; no such page is read.
    """
    page_size, room = key_pages.shape[-2], block_table.shape[-1] * key_pages.shape[-2]
    if not isinstance(lengths, DeviceArray):
        if not isinstance(block_table, DeviceArray):
            refuse_missing_pages(block_table, lengths, page_size, query.shape[-2], options.get("window"))
        elif lengths.size and not 0 <= lengths.min() <= lengths.max() <= room:
            raise ValueError(f"lengths runs from {lengths.min()} to {lengths.max()}, but block_table has room for {room}")
    return _attended(query, key_pages, value_pages, block_table, lengths, sinks, key_scale, value_scale, **options)


def decode_attention(*args: Any, **kwargs: Any) -> tuple[DeviceArray, Pullback]:
    """The output alone."""
    attended, pullback = decode_attention_with_lse(*args, **kwargs)
    return cast("Any", attended.output), pullback


def paged_attention(*args: Any, **kwargs: Any) -> tuple[DeviceArray, Pullback]:
    """The output alone."""
    attended, pullback = paged_attention_with_lse(*args, **kwargs)
    return cast("Any", attended.output), pullback


def _attended(
    query: DeviceArray,
    key: DeviceArray,
    value: DeviceArray,
    table: DeviceArray | Integers | None,
    lengths: DeviceArray | Integers,
    sinks: DeviceArray | None,
    key_scale: Factor,
    value_scale: Factor,
    *,
    causal: bool = False,
    window: Window | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    masked_rows: Literal["zero", "nan"] = "zero",
    differentiate: bool = False,
) -> tuple[AttendedWithLse, Pullback]:
    """Both kernels, or the first alone where there is one split."""
    if differentiate:
        raise TypeError("attention to a cache on a device has no pullback: scaled_dot_product_attention has one")
    dtype: Any = query.dtype
    has_codes = _are_codes(query, key, value)
    *_, heads, query_len, head_dim = query.shape
    kv_heads, page_size, value_dim = value.shape[-3:]
    sequences, group = math.prod(query.shape[:-3]), heads // max(kv_heads, 1)
    key_len = page_size * (1 if table is None else table.shape[-1])
    for name, size in (("query_len", query_len), ("key_len", key_len)):
        if size > LONGEST:
            raise ValueError(f"{name} is {size}, but on a device must be at most {LONGEST}")
    kernel = choose(dtype, head_dim, value_dim, has_codes=has_codes)
    factors, of_scales, kept = _scales(value.shape[:-1], key_scale=key_scale, value_scale=value_scale)
    left, right = window or (None, None)
    after = 0 if causal else NO_LIMIT if right is None else min(right, NO_LIMIT)
    operands = {name: placed(x, x.dtype) for name, x in (("query", query), ("key", key), ("value", value))}
    indices = {name: _int32(x, query) for name, x in (("table", table), ("lengths", lengths)) if x is not None}
    if sinks is not None:
        indices["sinks"] = sinks.as_type(dtype).contiguous()
    kept = [*kept, *operands.values(), *indices.values()]
    fields: Fields = {
        "table": 0, "sinks": 0, **{name: x.memory.address for name, x in indices.items()}, **of_scales,
        "kv_heads": kv_heads, "group": group, "query_len": query_len, "key_len": key_len, "head_dim": head_dim, "value_dim": value_dim,
        "page_size": max(page_size, 1), "pages": sequences if table is None else key.shape[0],
        "table_len": 0 if table is None else table.shape[-1], "low": -NO_LIMIT if left is None else -min(left, NO_LIMIT), "high": after,
        "scale": (1 / math.sqrt(head_dim) if scale is None else float(scale)) * factors["key_scale"],
        "value_factor": factors["value_scale"], "softcap": cap_of(softcap, np.float32),
        "empty": math.nan if masked_rows == "nan" else 0.0,
    }  # fmt: skip
    for name, x in operands.items():
        fields |= x.fields(name)
    output, lse = query.made((*query.shape[:-1], value_dim), dtype), query.packed(query.shape[:-1], "float32")
    launches = _Launches(query)
    launches.decode(kernel, fields, output, lse, rows=sequences * heads * query_len)
    launches.finish()
    del kept  # until here, for the kernels read them
    return AttendedWithLse(output, lse), lambda *_: {}  # pyright: ignore[reportArgumentType]  # arrays, but on a device


def _are_codes(query: DeviceArray, key: DeviceArray, value: DeviceArray) -> bool:
    """Whether the caches hold codes; a TypeError where they hold what no kernel multiplies by the query."""
    if key.dtype != value.dtype:
        raise TypeError(f"key is {key.dtype}, but value is {value.dtype}: on a device both must be of one type")
    if query.dtype not in TYPES:
        raise TypeError(f"query is {query.dtype}, but on a device must be {', '.join(TYPES[:-1])} or {TYPES[-1]}")
    if key.dtype == "int8" and query.dtype == "float32":
        raise TypeError("key is int8, but query is float32: on a device codes need float16 or bfloat16")
    if key.dtype not in {"int8", query.dtype}:
        raise TypeError(f"key is {key.dtype}, but query is {query.dtype}: on a device both must be of one type, or the key int8")
    return key.dtype == "int8"


def _int32(x: DeviceArray | Integers, query: DeviceArray) -> DeviceArray:
    """Indices as the kernel reads them."""
    return x.as_type("int32").contiguous() if isinstance(x, DeviceArray) else query.beside(np.asarray(x, np.int32))


def _scales(shape: tuple[int, ...], **given: Factor) -> tuple[dict[str, float], Fields, list[Placed]]:
    """What are numbers, and where the others lie; one for each position at most."""
    numbers, fields, kept = {}, {}, []
    for name, x in given.items():
        numbers[name], where = 1.0 if x is None else x, Placed(None)
        if isinstance(x, DeviceArray):
            if x.shape and x.shape[-1] != 1:
                raise ValueError(f"{name} has shape {x.shape}, but on a device its last axis must have 1 number: no scales of channels")
            numbers[name], where = 1.0, placed_pairs(x, (*shape, 1), "float32")
            kept.append(where)
        fields |= where.fields(name)
    return numbers, fields, kept


def is_cut(*, group: int, query_len: int, key_len: int, has_pairs: bool, has_limits: bool, is_aligned_right: bool) -> bool:
    """Whether a call of softmax attention has so few queries and so many keys that these are better cut into splits.

    Positions count from the last key here, so that limits need the queries to be aligned so.
    """
    return not has_pairs and (is_aligned_right or not has_limits) and 0 < group * query_len <= ROWS and key_len >= MANY_KEYS


def takes(launcher: Launcher) -> bool:
    """The same of one that is about to be launched."""
    fields = launcher.fields
    return launcher.dtype in TYPES and is_cut(
        group=int(fields["group"]),
        query_len=int(fields["query_len"]),
        key_len=int(fields["key_len"]),
        has_pairs=any(x.array is not None for x in launcher.options.pairs.values()),
        has_limits=fields["low"] > -NO_LIMIT or fields["high"] < NO_LIMIT,
        is_aligned_right=bool(fields["align_right"]),
    )


def of_whole_caches(launcher: Launcher, output: DeviceArray, lse: DeviceArray, empty: float) -> None:
    """Make the output and the log-sum-exp of such a call, where all caches are full."""
    value_dim, key_len = int(launcher.fields["value_dim"]), int(launcher.fields["key_len"])
    kernel = choose(launcher.dtype, int(launcher.fields["head_dim"]), value_dim)  # pyright: ignore[reportArgumentType]  # it is one of three
    fields: Fields = {
        **launcher.fields, **Placed(None).fields("key_scale"), **Placed(None).fields("value_scale"), "table": 0, "lengths": 0, "table_len": 0,
        "kv_heads": launcher.kv_heads, "page_size": key_len, "pages": launcher.batch, "value_factor": 1.0, "empty": empty,
    }  # fmt: skip
    _Launches(launcher.query).decode(kernel, fields, output, lse, rows=math.prod(lse.shape))


class _Launches:
    """Where kernels for caches are launched."""

    def __init__(self, query: DeviceArray) -> None:
        self.query = query
        self.device, self.stream = query.memory.device, query.library.stream(query.owner)
        self.facts = driver.current().facts(self.device)
        self.architecture = self.facts.architecture  # an error where the device is too old

    def decode(self, kernel: Any, fields: Fields, output: DeviceArray, lse: DeviceArray, *, rows: int) -> None:
        """Launch what makes `rows` rows of the output."""
        if not rows:
            return
        tiles = -(-int(fields["group"] * fields["query_len"]) // kernel.tile)
        blocks = rows // int(fields["group"] * fields["query_len"]) * tiles
        room = self.facts.processors * max(self.facts.shared_bytes // kernel.shared_bytes, 1)
        splits = decode_configurations.splits_for(blocks, int(fields["key_len"]), room)
        value_dim, row = int(fields["value_dim"]), placed(output, output.dtype).row or output.owner.shape[-1]
        made: Fields = {"output": output.memory.address, "lse": lse.memory.address}
        fields |= {"tiles": tiles, "splits": splits, "split_rows": rows}
        if splits == 1:
            self._launch(kernel, blocks, {**fields, **made, "output_row": row})
            return
        parts, parts_lse = (self.query.packed((splits, rows, *more), "float32") for more in ((value_dim,), ()))
        of_parts = {"output": parts.memory.address, "lse": parts_lse.memory.address, "output_row": value_dim}
        self._launch(kernel, blocks * splits, {**fields, **of_parts})
        merge = merging(output.dtype)  # pyright: ignore[reportArgumentType]  # it is one of three
        of_merge = {"parts": parts.memory.address, "parts_lse": parts_lse.memory.address, "parts_row": value_dim, "rows": rows}
        self._launch(merge, -(-rows * -(-value_dim // 32) // merge.tile), {**fields, **made, **of_merge, "output_row": row})

    def _launch(self, kernel: Any, blocks: int, fields: Mapping[str, int | float]) -> None:
        if blocks > MOST_BLOCKS:
            raise ValueError(f"{kernel.name} needs {blocks} blocks, but a device starts at most {MOST_BLOCKS}: cut the batch")
        driver.current().launch(kernel, self.device, blocks, {name: fields[name] for name, _ in kernel.parameters}, self.stream)

    def finish(self) -> None:
        """Wait for the kernels where the caller's library would not."""
        if not self.query.library.in_order:
            driver.current().synchronize(self.device, self.stream)
