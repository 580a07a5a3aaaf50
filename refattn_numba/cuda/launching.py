"""The launches of one call of softmax attention, forward and backward."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from refattn._core import Pullback
from refattn.attention.dot_product.scaled_dot_product import AttendedWithLse
from refattn_numba.cuda import configurations, driver, float8, hopper
from refattn_numba.cuda.arrays import ITEM_BYTES, DeviceArray, Placed, placed
from refattn_numba.cuda.fragments import FLOAT8
from refattn_numba.cuda.tensor_map import layouts_of

if TYPE_CHECKING:
    from refattn_numba.cuda.kernel import Kernel

NO_LIMIT = 1 << 30
LONGEST = 1 << 29
"""Differences of positions stay below the number that says that there is no limit."""

MOST_BLOCKS = (1 << 31) - 1
TYPES = ("float32", "float16", "bfloat16", FLOAT8)

choose = functools.lru_cache(maxsize=256)(configurations.choose)


def check_types(**operands: DeviceArray) -> None:
    """Refuse operands of different types, or of one that no kernel multiplies."""
    (first, given), *others = operands.items()
    if given.dtype not in TYPES:
        raise TypeError(f"{first} is {given.dtype}, but on a device must be {', '.join(TYPES[:-1])} or {TYPES[-1]}")
    for name, x in others:
        if x.dtype != given.dtype:
            raise TypeError(f"{name} is {x.dtype}, but {first} is {given.dtype}: on a device both must be of one type")


def launch(kernel: Kernel, device: int, stream: int, blocks: int, fields: Mapping[str, int | float]) -> None:
    """Start a kernel, whose parameters are among the fields, if there is anything to do."""
    if not blocks:
        return
    if blocks > MOST_BLOCKS:
        raise ValueError(f"{kernel.name} needs {blocks} blocks, but a device starts at most {MOST_BLOCKS}: cut the batch")
    driver.current().launch(kernel, device, blocks, {name: fields[name] for name, _ in kernel.parameters}, stream)


def watching(read: Mapping[str, DeviceArray]) -> Callable[[], None]:
    """A function that raises a ValueError where one of these was written to since, as far as its library tells."""
    versions = {name: x.version() for name, x in read.items()}

    def check() -> None:
        for name, x in read.items():
            if x.version() != versions[name]:
                raise ValueError(f"{name} was written to after the call whose pullback reads it: pass a copy")

    return check


class Options(NamedTuple):
    """What changes scores and weights besides positions: mask, bias and keep by name, a cap that is 0 where there is none."""

    pairs: Mapping[str, Placed]
    softcap: float
    keep_scale: float = 1.0

    def names(self) -> list[str]:
        """Of those that a call has."""
        return [*(name for name, x in self.pairs.items() if x.array is not None), *(["softcap"] if self.softcap else [])]

    def __bool__(self) -> bool:
        return bool(self.names())


class Launcher:
    """Operands as parameters of kernels, and where to launch them.

    `starts` are those of sequences of queries and keys that are packed one after another; the kernels then know no batch, and are
    launched for each part of it.
    """

    def __init__(
        self,
        query: DeviceArray,
        key: DeviceArray,
        value: DeviceArray,
        sinks: DeviceArray | None,
        *,
        scale: float,
        low: int,
        high: int,
        align_right: int,
        options: Options,
        starts: tuple[DeviceArray, ...] | None = None,
    ) -> None:
        *lead, heads, query_len, head_dim = query.shape
        kv_heads, key_len, value_dim = value.shape[-3:]
        for name, size in (("query_len", query_len), ("key_len", key_len)):
            if size > LONGEST:
                raise ValueError(f"{name} is {size}, but on a device must be at most {LONGEST}")
        self.query, self.key, self.value, self.dtype = query, key, value, query.dtype
        self.batch, self.heads, self.kv_heads = math.prod(lead), heads, kv_heads
        self.sequences = None if starts is None else starts[0].shape[0] - 1
        self.is_narrow = query.dtype == FLOAT8
        self.result = "bfloat16" if self.is_narrow else query.dtype
        self.sinks = None if sinks is None else sinks.as_type("float32" if self.is_narrow else query.dtype).contiguous()
        self.options = options
        self.kept = [self.sinks, *(starts or ())]
        self.fields: dict[str, int | float] = {
            "sinks": 0 if self.sinks is None else self.sinks.memory.address,
            "cu_query": 0 if starts is None else starts[0].memory.address,
            "cu_key": 0 if starts is None else starts[1].memory.address,
            "sequences": self.sequences or 0,
            "heads": heads,
            "kv_heads": kv_heads,
            "group": heads // max(kv_heads, 1),
            "query_len": query_len,
            "key_len": key_len,
            "head_dim": head_dim,
            "value_dim": value_dim,
            "align_right": align_right,
            "low": low,
            "high": high,
            "scale": scale,
            "lse_batch": heads * query_len,
            "lse_head": query_len,
            "softcap": options.softcap,
            "keep_scale": options.keep_scale,
        }
        for name, x in options.pairs.items():
            self.fields |= x.fields(name, "batch", "head", "row", "key")
        self.device, self.stream = query.memory.device, query.library.stream(query.owner)
        self.facts = driver.current().facts(self.device)
        self.architecture = self.facts.architecture  # an error where the device is too old
        self.narrow: Mapping[str, Kernel] = {}
        if self.is_narrow:
            names = [*options.names(), *([] if scale > 0 else [float8.NOT_POSITIVE])]
            self.narrow = float8.kernels(self.architecture, self.facts.shared_bytes, head_dim, value_dim, names)
        put = float8.placed_for_boxes if self.is_narrow else functools.partial(placed, dtype=query.dtype)
        self.operands = {name: put(x) for name, x in (("query", query), ("key", key), ("value", value))}
        for name, x in self.operands.items():
            self.fields |= x.fields(name)

    def kernel(self, face: str, places: Mapping[str, Placed] | None = None) -> Kernel:
        """The kernel of a face for these operands, and for others at some places, on this device."""
        if face in self.narrow:
            return self.narrow[face]
        if face in hopper.FACES and (found := self._hopper(face, places or {})) is not None:
            return found
        sizes = self.fields["head_dim"], self.fields["value_dim"]
        # scores are compared before they are scaled, but where the order could change
        return choose(
            face, self.dtype, *sizes, has_options=bool(self.options) or not self.fields["scale"] > 0, shared_limit=self.facts.shared_bytes
        )

    def _hopper(self, face: hopper.Face, places: Mapping[str, Placed]) -> Kernel | None:
        """The kernel of compute capability 9.0, where the device and the operands are such that it can be used."""
        fields = dict(self.fields)
        for name, x in places.items():
            fields |= x.fields(name)
        if self.facts.capability != hopper.CAPABILITY or self.options or not fields["scale"] > 0:
            return None
        has_limits = fields["low"] > -NO_LIMIT or fields["high"] < NO_LIMIT
        sizes = int(fields["head_dim"]), int(fields["value_dim"])
        found = hopper.fitting(self.dtype, *sizes, has_limits=has_limits, shared_limit=self.facts.shared_bytes, face=face)
        return None if found is None or layouts_of(found, fields, self._batch_of_kernels) is None else found

    @property
    def _batch_of_kernels(self) -> int:
        """What kernels know of the batch."""
        return self.batch if self.sequences is None else 1

    def run(
        self,
        bias: DeviceArray | None,
        *,
        not_a_number: bool,
        forward: Callable[[Launcher, DeviceArray, DeviceArray, float], None] | None = None,
    ) -> tuple[AttendedWithLse, Pullback]:
        """Output and log-sum-exp, and the pullback, where a cotangent of None is zero. `forward` may make the first two in another way."""
        rows = self.query.shape[:-1]
        output, lse = self.query.made((*rows, self.value.shape[-1]), self.result), self.query.packed(rows, "float32")
        made = {"output": placed(output, self.result)}
        if self.is_narrow:
            made["columns"] = float8.columns_of(self.value, self.batch, self.sequences)
            self._attention("by_columns", made, self.value.shape[-2], self.kv_heads)
        empty = math.nan if not_a_number else 0.0
        if forward is None:
            self._attention("forward", made, rows[-1], self.heads, lse=lse.memory.address, empty=empty)
        else:
            forward(self, output, lse, empty)
        self._finish()
        check = watching({"query": self.query, "key": self.key, "value": self.value, "output": output, "lse": lse})

        def pullback(d_output: DeviceArray | None, d_lse: DeviceArray | None) -> dict[str, DeviceArray | None]:
            if self.is_narrow:
                raise TypeError(f"query is {FLOAT8}, of which there is no backward pass: {float8.INSTEAD}")
            check()
            grads = self._gradients(output, lse, d_output, d_lse, bias)
            self._finish()
            return grads

        return AttendedWithLse(output, lse), pullback  # pyright: ignore[reportArgumentType]  # arrays, but on a device

    def _gradients(
        self, output: DeviceArray, lse: DeviceArray, d_output: DeviceArray | None, d_lse: DeviceArray | None, bias: DeviceArray | None
    ) -> dict[str, DeviceArray | None]:
        rows, key_len = self.query.shape[:-1], self.key.shape[-2]
        d = placed(self.query.zeros(output.shape, self.dtype) if d_output is None else d_output, self.dtype)
        d_lse = None if d_lse is None else d_lse.contiguous()
        delta = self.query.packed(rows, "float32")
        places = {"output": placed(output, self.dtype), "d_output": d}
        count = math.prod(rows)
        addresses = {"lse": lse.memory.address, "delta": delta.memory.address}
        self._launch(
            self.kernel("delta"),
            lambda kernel: -(-count // kernel.tile),
            places,
            **addresses,
            d_lse=0 if d_lse is None else d_lse.memory.address,
            rows=count,
        )
        grads = {name: x.made(x.shape, self.dtype) for name, x in (("query", self.query), ("key", self.key), ("value", self.value))}
        made = {f"d_{name}": placed(x, self.dtype) for name, x in grads.items()}
        d_bias = None if bias is None else self.query.packed((*rows, key_len), "float32")
        of_bias = {"d_bias": 0 if d_bias is None else d_bias.memory.address}
        of_bias |= {"d_bias_batch": self.heads * rows[-1] * key_len, "d_bias_head": rows[-1] * key_len, "d_bias_row": key_len}
        self._attention("backward_keys", {**places, **made}, key_len, self.kv_heads, **addresses)
        self._attention("backward_queries", {**places, **made}, rows[-1], self.heads, **addresses, **of_bias)
        d_sinks = None
        if self.sinks is not None:
            d_sinks = self.query.packed(self.sinks.shape, self.dtype)
            self._launch(self.kernel("sinks"), lambda _: self.heads, {}, **addresses, d_sinks=d_sinks.memory.address, batch=self.batch)
        of_pairs = None if bias is None or d_bias is None else self._summed(d_bias, bias)
        return {**grads, "bias": of_pairs, "sinks": d_sinks}

    def _summed(self, d_bias: DeviceArray, bias: DeviceArray) -> DeviceArray:
        """The gradient of a bias from those of all pairs: the sum over the axes along which it is broadcast."""
        lead = d_bias.shape[:-3]
        own = (1,) * (len(d_bias.shape) - len(bias.shape)) + bias.shape
        shared = [i for i, (size, whole) in enumerate(zip(own, d_bias.shape, strict=True)) if size != whole]
        of_lead = [i for i in shared if i < len(lead)]
        in_parts = bool(of_lead) and math.prod(own[: len(lead)]) > 1  # some of several leading axes, which the kernel takes for one
        kept_lead = tuple(lead) if in_parts or not of_lead else (1,) * len(lead)
        total = self.query.packed((*kept_lead, *own[-3:]) if in_parts else bias.shape, self.dtype)
        keeps = {"keeps_batch": int(in_parts or not of_lead)}
        keeps |= {f"keeps_{name}": int(len(lead) + i not in shared) for i, name in enumerate(("head", "row", "key"))}
        elements = math.prod(total.shape)
        self._launch(
            self.kernel("sum_bias"),
            lambda kernel: -(-elements // kernel.tile),
            {},
            d_bias=d_bias.memory.address,
            total=total.memory.address,
            batch=self.batch,
            **keeps,
        )
        if not in_parts:
            return total
        self._finish()
        return total.summed(tuple(of_lead), bias.shape)

    def _attention(self, face: str, places: Mapping[str, Placed], length: int, heads: int, **more: int | float) -> None:
        """Launch a kernel with a block for each tile of rows of each head."""
        kernel = self.kernel(face, places)
        if self.sequences is None:
            tiles = -(-length // kernel.tile)
            self._launch(kernel, lambda _: tiles * heads * self.batch, places, **more, tiles=tiles)
            return
        tiles = length // kernel.tile + self.sequences
        for part in range(self.batch):
            at = {name: x.of_part(part) for name, x in {**self.operands, **places}.items()}
            rows = part * self.heads * int(self.fields["query_len"]) * ITEM_BYTES["float32"]
            moved = {name: more[name] + rows for name in ("lse", "delta") if name in more}
            self._launch(kernel, lambda _: tiles * heads if length else 0, at, **{**more, **moved, "tiles": tiles})

    def _launch(self, kernel: Kernel, blocks_of: Callable[[Kernel], int], places: Mapping[str, Placed], **more: int | float) -> None:
        blocks = blocks_of(kernel)
        if not blocks:
            return
        fields = {**self.fields, **more}
        for name, x in places.items():
            fields |= x.fields(name)
        if ("query_map", "pointer") in kernel.parameters:
            layouts = layouts_of(kernel, fields, self._batch_of_kernels)
            assert layouts is not None  # or another kernel would have been chosen
            fields |= {name: driver.current().tensor_map(self.device, x) for name, x in layouts.items()}
        launch(kernel, self.device, self.stream, blocks, fields)

    def _finish(self) -> None:
        """Wait for the kernels where the caller's library would not."""
        if not self.query.library.in_order:
            driver.current().synchronize(self.device, self.stream)
