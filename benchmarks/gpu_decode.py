"""Decoding on a device: one new query of each sequence against its cache, beside PyTorch and a copy of as many bytes.

Calls are captured as graphs and replayed, so that times are the device's alone; what a call takes of the host is told beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import refattn_numba
from benchmarks.gpu_timing import BACK_ENDS, Call, distance, host_microseconds, is_right, medians

SECONDS = 0.3
PAGE_SIZE = 16
WARM_UPS = 3


class CacheShape(NamedTuple):
    """One call.

    Attributes
    ----------
    dtype : str
        Of all operands.
    sequences, heads, kv_heads, length, head_dim : int
        All caches are full.
    """

    dtype: str
    sequences: int
    heads: int
    kv_heads: int
    length: int
    head_dim: int

    @property
    def bytes(self) -> int:
        """Of both caches, which are read once; queries and outputs are left out."""
        return 2 * self.sequences * self.kv_heads * self.length * self.head_dim * (4 if self.dtype == "float32" else 2)

    def __str__(self) -> str:
        return f"{self.dtype} {self.sequences} x {self.heads}/{self.kv_heads} x {self.length} x {self.head_dim}"


SHAPES: Sequence[CacheShape] = (
    CacheShape("bfloat16", 16, 32, 8, 8192, 128),
    CacheShape("bfloat16", 1, 32, 8, 131072, 128),
    CacheShape("bfloat16", 128, 16, 16, 1024, 128),
    CacheShape("bfloat16", 16, 64, 8, 16384, 64),
    CacheShape("bfloat16", 1, 32, 8, 8192, 128),
)
"""Half a gigabyte each, far more than caches of processors hold, but for the last, which shows what a call takes at least."""


def decode(torch: Any, shapes: Sequence[CacheShape] = SHAPES) -> dict[str, Any]:
    """Times and rates of ours, of PyTorch's back ends and of a copy, and how far ours is from PyTorch's results."""
    found = {str(shape): _measured(torch, shape) for shape in shapes}
    return {"shapes": found, "ok": all(row["ok"] for row in found.values())}


def _measured(torch: Any, shape: CacheShape) -> dict[str, Any]:
    operands = _operands(torch, shape)
    calls: dict[str, Call] = {**_ours(torch, operands), **{name: _peer(torch, kind, operands) for name, kind in BACK_ENDS.items()}}
    source = torch.empty(shape.bytes // 2, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    calls["copy"] = lambda: target.copy_(source)
    errors = _errors(calls)
    times = medians(torch, _captured(torch, calls), seconds=SECONDS)
    rates = {name: {**t, "tb_per_s": shape.bytes / t["ms"] / 1e9} for name, t in times.items()}
    copied = rates.get("copy", {}).get("tb_per_s")
    return {
        "shape": shape._asdict(),
        "times": rates,
        "share_of_copy": {name: r["tb_per_s"] / copied for name, r in rates.items() if copied and name.startswith("ours")},
        "host_us": host_microseconds(torch, calls["ours"]),
        "errors": errors,
        "ok": is_right(errors, shape.dtype),
    }


def _operands(torch: Any, shape: CacheShape) -> dict[str, Any]:
    torch.manual_seed(0)
    dtype = getattr(torch, shape.dtype)
    made = {"query": torch.randn(shape.sequences, shape.heads, 1, shape.head_dim, device="cuda", dtype=dtype)}
    for name in ("key", "value"):
        made[name] = torch.randn(shape.sequences, shape.kv_heads, shape.length, shape.head_dim, device="cuda", dtype=dtype)
    return made


def _ours(torch: Any, operands: Mapping[str, Any]) -> dict[str, Call]:
    """With one cache for each sequence, and with the same numbers in pages in a random order."""
    count, kv_heads, length, head_dim = operands["key"].shape
    lengths = torch.full((count,), length, dtype=torch.int32, device="cuda")
    pages = length // PAGE_SIZE
    order = torch.randperm(count * pages, device="cuda")
    table, pools = order.argsort().to(torch.int32).reshape(count, pages), {}
    for name in ("key", "value"):
        in_order = operands[name].reshape(count, kv_heads, pages, PAGE_SIZE, head_dim).transpose(1, 2)
        pools[f"{name}_pages"] = in_order.reshape(count * pages, kv_heads, PAGE_SIZE, head_dim)[order]
    return {
        "ours": lambda: refattn_numba.decode_attention(**operands, lengths=lengths),
        "ours, pages": lambda: refattn_numba.paged_attention(operands["query"], **pools, block_table=table, lengths=lengths),
    }


def _peer(torch: Any, back_end: str, operands: Mapping[str, Any]) -> Call:
    from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: PLC0415  # where there is a GPU

    attend, given = torch.nn.functional.scaled_dot_product_attention, (operands["query"], operands["key"], operands["value"])
    is_grouped = given[0].shape[1] != given[1].shape[1]

    def call() -> Any:
        with sdpa_kernel(getattr(SDPBackend, back_end)):
            return attend(*given, enable_gqa=is_grouped)

    return call


def _captured(torch: Any, calls: Mapping[str, Call]) -> dict[str, Call]:
    """Each call as a graph; those that PyTorch refuses are left out."""
    found: dict[str, Call] = {}
    for name, call in calls.items():
        try:
            for _ in range(WARM_UPS):
                call()
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                call()
        except (RuntimeError, TypeError, ValueError) as error:
            print(f"{name}: {str(error).splitlines()[0] if str(error) else type(error).__name__}", flush=True)
            continue
        found[name] = graph.replay
    return found


def _errors(calls: Mapping[str, Call]) -> dict[str, float]:
    """The distance from the first back end that takes such a call, in root mean squares."""
    for name in ("math", "efficient", "flash", "cudnn"):
        try:
            wanted = calls[name]()
        except RuntimeError:
            continue
        return {ours: distance(calls[ours](), wanted) for ours in ("ours", "ours, pages")}
    return {}
