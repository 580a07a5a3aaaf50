"""Attention on a device against the reference in main memory: every element of outputs and gradients within the oracle's budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

import refattn
import refattn_numba
from refattn.testing import Candidate, Case, Result, Unsupported, cases
from refattn.testing.checking import compare_case
from refattn.testing.frameworks import NumPy
from refattn.testing.precision import Format, named_format

FLOAT8 = "float8_e4m3fn"
DTYPES = ("bfloat16", "float16", "float32", FLOAT8)
DENSE, VARLEN = "scaled_dot_product_attention_with_lse", "varlen_attention_with_lse"
DECODE, PAGED = "decode_attention_with_lse", "paged_attention_with_lse"
MECHANISMS = (DENSE, VARLEN, DECODE, PAGED)
SCALES = ("key_scale", "value_scale")
NOT_IN_FLOAT8 = ("mask", "bias", "keep", "softcap")


class OnCuda(NumPy):
    """Tensors of PyTorch on the first CUDA device."""

    name = "torch on cuda"

    def __init__(self, torch: Any) -> None:
        self.torch = torch

    def make(self, x: Any, target: Format) -> Any:
        """A tensor of the format; integers and booleans as they are."""
        tensor = self.torch.from_numpy(np.array(x, np.float64 if x.dtype.kind == "f" else x.dtype, order="C")).cuda()
        return tensor.to(getattr(self.torch, target.name)) if x.dtype.kind == "f" else tensor

    def plain(self, x: Any, what: str = "argument") -> np.ndarray[Any, Any]:
        """Back in main memory, in float64."""
        return x.detach().double().cpu().numpy()


def candidate(name: str, framework: NumPy, dtype: str = "") -> Candidate:
    """A function of `refattn_numba` with arrays on a device; what is only for main memory, or not in this type, is listed as skipped."""
    function = getattr(refattn_numba, name)

    def offered(call: Callable[..., Any]) -> Callable[..., Any]:
        def with_what_is_offered(**given: Any) -> Any:
            if given.get("masked_rows") == "uniform":
                raise Unsupported("masked_rows='uniform' is for main memory")
            if not isinstance(given.get("scale"), (float, int, type(None))):
                raise Unsupported("a scale that is an array is for main memory")
            if dtype == FLOAT8 and (any(given.get(n) is not None for n in NOT_IN_FLOAT8) or (given.get("scale") or 1) <= 0):
                raise Unsupported(f"no such option in {FLOAT8}")
            if any(getattr(given.get(n), "shape", ()) and given[n].shape[-1] != 1 for n in SCALES):
                raise Unsupported("scales of channels are for main memory")
            return call(**given)

        return with_what_is_offered

    has_vjp = dtype != FLOAT8 and name not in {DECODE, PAGED}
    return Candidate(offered(function), framework, vjp=offered(function.vjp) if has_vjp else None)


class Sizes(NamedTuple):
    """Of one dense call."""

    batch: int = 1
    heads: int = 4
    kv_heads: int = 2
    query_len: int = 130
    key_len: int = 203
    head_dim: int = 64
    value_dim: int = 64


LOWER = {"causal": True, "align": "lower_right"}
PLAIN: Mapping[str, tuple[Sizes, Mapping[str, Any]]] = {
    **{f"head_dim {d}, value_dim {v}": (Sizes(head_dim=d, value_dim=v), LOWER) for d, v in ((32, 32), (128, 128), (256, 256))},
    **{f"head_dim {d}, value_dim {v}": (Sizes(head_dim=d, value_dim=v), {}) for d, v in ((40, 24), (72, 128), (9, 1), (136, 250))},
    "no option": (Sizes(), {}),
    "causal, upper left": (Sizes(), {"causal": True, "align": "upper_left"}),
    "causal, more queries than keys": (Sizes(query_len=203, key_len=66), LOWER),
    "window": (Sizes(), {"window": (17, 5), "align": "lower_right"}),
    "window beside all keys": (Sizes(query_len=200, key_len=20), {"window": (3, 0), "align": "upper_left"}),
    "causal window": (Sizes(batch=2), {**LOWER, "window": (31, None)}),
    "one query": (Sizes(query_len=1, key_len=333), {}),
    "one key": (Sizes(query_len=257, key_len=1), {}),
    "whole tiles": (Sizes(query_len=256, key_len=256), LOWER),
    "heads in groups of 8": (Sizes(heads=8, kv_heads=1), LOWER),
    "negative scale": (Sizes(), {"scale": -0.25}),
    "softcap": (Sizes(), {"softcap": 1.5, **LOWER}),
    "long": (Sizes(heads=2, kv_heads=1, query_len=777, key_len=1541), LOWER),
}
"""Calls with options that are numbers."""

WITH_ARRAYS = ("sinks", "mask", "bias", "bias of each head", "dropout", "all at once")


def own_cases() -> Iterator[tuple[str, Case]]:
    """Mechanism and case, in sizes that take kernels past their tiles."""
    for index, (name, (sizes, options)) in enumerate(PLAIN.items()):
        yield DENSE, Case(name, {**_operands(sizes, index), **options})
    for index, name in enumerate(WITH_ARRAYS):
        yield DENSE, Case(name, _with_arrays(name, np.random.default_rng(100 + index)))
    lengths = np.array([0, 1, 1, 130, 131, 300]), np.array([0, 90, 95, 95, 340, 411])
    random = np.random.default_rng(200)
    packed = {
        "query": random.normal(size=(4, 300, 64)),
        **{n: random.normal(size=(2, 411, 64)) for n in ("key", "value")},
        "cu_seqlens_q": lengths[0],
        "cu_seqlens_k": lengths[1],
    }
    yield VARLEN, Case("packed", packed)
    yield VARLEN, Case("packed, causal window", {**packed, **LOWER, "window": (40, None)})


def decode_cases() -> Iterator[tuple[str, Case]]:
    """The same of attention to caches: several splits, a group of one tile and of more, pages of odd sizes, and what is not to be read."""
    yield DENSE, Case("few queries of many keys", {**_operands(Sizes(query_len=4, key_len=2100), 290), **LOWER})
    shapes = {
        "one query": ((3, 4, 1, 64), (3, 2, 1400, 64), {}),
        "heads in groups of 20": ((2, 20, 2, 128), (2, 1, 700, 128), {"causal": True}),
        "a few queries in a window": ((2, 4, 5, 40), (2, 4, 900, 40), {"causal": True, "window": (300, None), "softcap": 2.0}),
        "head_dim 256": ((2, 8, 1, 256), (2, 1, 600, 256), {}),
    }
    for index, (name, (of_query, of_key, options)) in enumerate(shapes.items()):
        random, (count, kv_heads, room, _) = np.random.default_rng(300 + index), of_key
        query, key, value = (random.normal(size=shape) for shape in (of_query, of_key, of_key))
        lengths = np.array([room, 3, room // 2])[:count]
        key[1, :, 3:], value[1, :, 3:] = np.nan, np.inf
        given = {"query": query, "lengths": lengths, "sinks": random.normal(size=of_query[1]), **options}
        yield DECODE, Case(name, {**given, "key": key, "value": value})
        for page_size in (16, 7):
            pages = -(-room // page_size)
            order = random.permutation(count * pages).reshape(count, pages)
            pools = []
            for cache in (key, value):
                padded = np.pad(cache, ((0, 0), (0, 0), (0, pages * page_size - room), (0, 0)))
                pool = np.empty((count * pages, kv_heads, page_size, cache.shape[-1]))
                pool[order] = padded.reshape(count, kv_heads, pages, page_size, -1).swapaxes(1, 2)
                pools.append(pool)
            order[1, -(-3 // page_size) :] = -1
            scales = {
                "key_scale": random.uniform(0.5, 1, (kv_heads, 1, 1)),
                "value_scale": random.normal(size=(len(pools[0]), 1, page_size, 1)),
            }
            pages_of = {"key_pages": pools[0], "value_pages": pools[1], "block_table": order}
            yield PAGED, Case(f"{name}, pages of {page_size}", {**given, **pages_of, **scales})


def _operands(sizes: Sizes, seed: int) -> dict[str, Any]:
    random, s = np.random.default_rng(seed), sizes
    return {
        "query": random.normal(size=(s.batch, s.heads, s.query_len, s.head_dim)),
        "key": random.normal(size=(s.batch, s.kv_heads, s.key_len, s.head_dim)),
        "value": random.normal(size=(s.batch, s.kv_heads, s.key_len, s.value_dim)),
    }


def _with_arrays(name: str, random: np.random.Generator) -> dict[str, Any]:
    sizes = Sizes(batch=2)
    pairs = (sizes.batch, sizes.heads, sizes.query_len, sizes.key_len)
    mask = random.random((sizes.batch, 1, *pairs[2:])) < 0.7
    mask[0, 0, 7] = False
    every = {
        "sinks": {"sinks": random.normal(size=sizes.heads)},
        "mask": {"mask": mask},
        "bias": {"bias": random.normal(size=pairs)},
        "bias of each head": {"bias": random.normal(size=(sizes.heads, 1, sizes.key_len))},
        "dropout": {"keep": random.random(pairs) < 0.8, "dropout_rate": 0.2},
    }
    every["all at once"] = {**every["sinks"], **every["mask"], **every["bias of each head"], **every["dropout"], **LOWER, "softcap": 3.0}
    return {**_operands(sizes, int(random.integers(1 << 30))), **every[name]}


def results(framework: NumPy, dtype: str, *, level: Any = "full") -> Iterator[Result]:
    """The oracle's cases, and our own. In float8 of the output alone, as that format has no infinity for a log-sum-exp."""
    target = named_format(dtype)
    of_type = (DENSE, VARLEN) if dtype == FLOAT8 else MECHANISMS
    names = {name: name.removesuffix("_with_lse") if dtype == FLOAT8 else name for name in of_type}
    made = {name: candidate(name, framework, dtype) for name in names.values()}
    for name in names.values():
        for case in cases(getattr(refattn, name), level=level):
            yield from compare_case(made[name], getattr(refattn, name), case, target)
    for own, case in own_cases() if dtype == FLOAT8 else (*own_cases(), *decode_cases()):
        name = names[own]
        yield from compare_case(made[name], getattr(refattn, name), case, target)


def summary(found: list[Result]) -> dict[str, Any]:
    """What a row of the report says of results."""
    failed = [r for r in found if r.status == "fail"]
    return {
        "compared": sum(r.status == "pass" for r in found) + len(failed),
        "failed": len(failed),
        "skipped": sum(r.status == "skipped" for r in found),
        "worst": max((r.error_over_budget for r in found if r.status in {"pass", "fail"} and r.error_over_budget is not None), default=0.0),
        "failures": [f"{r.mechanism}, {r.case}, {r.what}: {r.reason or r.error_over_budget}" for r in failed[:20]],
    }
