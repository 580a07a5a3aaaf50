"""The compiled attention beside PyTorch and NumPy, and beside what the machine can do at most."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

import refattn
from benchmarks.cases import Call, Case, Work, installed

NUMPY_PAIRS = 1 << 21  # beyond so many scores NumPy is not waited for, nor for the exact result beyond 16 times as many


def attention(
    batch: int, heads: int, kv_heads: int, query_len: int, key_len: int, head_dim: int, *,
    dtype: str = "float32", causal: bool = False, backward: bool = False, window: int | None = None, option: str = "",
) -> Mapping[str, Call]:  # fmt: skip
    """The calls of one case; ``option`` is "mask" or "bias", of all pairs and shared by the heads."""
    import refattn_numba  # noqa: PLC0415  (the other suites do without)

    random = np.random.default_rng(0)
    shapes = ((heads, query_len), (kv_heads, key_len), (kv_heads, key_len), (heads, query_len))
    exact = [random.standard_normal((batch, h, n, head_dim)) for h, n in shapes]
    kind = dtype
    if dtype == "bfloat16":
        kind = installed("ml_dtypes").bfloat16
    query, key, value, d = given = [x.astype(kind) for x in exact]
    options: dict[str, Any] = {"causal": causal}
    if option == "mask":
        options["mask"] = random.random((query_len, key_len)) < 0.8
    if option == "bias":
        options["bias"] = random.standard_normal((query_len, key_len)).astype(kind)
    if window is not None:
        options["window"] = (window - 1, 0)

    def call(module: Any, arrays: Any, **more: Any) -> Any:
        *inputs, d_output = arrays
        if not backward:
            return module.scaled_dot_product_attention(*inputs, **{**options, **more})
        y, pullback = module.scaled_dot_product_attention.vjp(*inputs, **{**options, **more})
        grads = pullback(d_output)
        return (y, *(grads[n] for n in ("query", "key", "value", "bias") if n in grads))

    calls: dict[str, Call] = {"refattn_numba": lambda: call(refattn_numba, given)}
    if (torch := installed("torch")) is not None:
        calls["torch"] = _torch(torch, given, options, backward=backward, dtype=dtype, query_len=query_len, key_len=key_len)
    wide = {"bias": options["bias"].astype(float)} if option == "bias" else {}
    if batch * heads * query_len * key_len <= NUMPY_PAIRS:
        calls["numpy"] = lambda: call(refattn, given)
    calls["exact"] = lambda: call(refattn, [x.astype(float) for x in (query, key, value, d)], **wide)
    if batch * heads * query_len * key_len > 16 * NUMPY_PAIRS:
        del calls["exact"]
    return calls


def _torch(torch: Any, given: Any, options: Any, *, backward: bool, dtype: str, query_len: int, key_len: int) -> Call:
    """PyTorch's own function; a window is a mask to it."""

    def tensor(x: Any) -> Any:
        if dtype != "bfloat16":
            return torch.from_numpy(np.ascontiguousarray(x))
        return torch.from_numpy(np.ascontiguousarray(x).view(np.int16)).view(torch.bfloat16)

    *inputs, d_output = map(tensor, given)
    more: dict[str, Any] = {"is_causal": options["causal"], "enable_gqa": inputs[0].shape[1] != inputs[1].shape[1]}
    if "mask" in options:
        more["attn_mask"] = torch.from_numpy(options["mask"])
    if "bias" in options:
        more["attn_mask"] = tensor(options["bias"])
    if "window" in options:
        allowed = refattn.masks.sliding_window(query_len, key_len, left=options["window"][0], right=0)
        more["attn_mask"] = torch.from_numpy(allowed)
        more["is_causal"] = False
    attend = torch.nn.functional.scaled_dot_product_attention
    if not backward:
        return lambda: attend(*inputs, **more)
    leaves = [x.requires_grad_() for x in inputs] + ([more["attn_mask"].requires_grad_()] if "bias" in options else [])

    def both() -> Any:
        y = attend(*inputs, **more)
        return (y, *torch.autograd.grad(y, leaves, d_output))

    return both


def _case(name: str, floor: float, batch: int, heads: int, kv_heads: int, length: int, head_dim: int, **options: Any) -> Case:
    key_len = options.pop("key_len", length)
    pairs = length * key_len
    if options.get("window"):
        pairs = length * options["window"]
    elif options.get("causal"):
        pairs //= 2
    dtype, itemsize = options.get("dtype", "float32"), {"float64": 8, "float32": 4, "bfloat16": 2}[options.get("dtype", "float32")]
    work = Work(
        "float64" if dtype == "float64" else "float32", 4.0 * batch * heads * pairs * head_dim * (3.5 if options.get("backward") else 1)
    )
    if length == 1:
        work = Work("read", 2.0 * batch * kv_heads * key_len * head_dim * itemsize)
    tolerance = {"float64": 1e-12, "float32": 1e-4, "bfloat16": 0.1}[dtype]
    make = partial(attention, batch, heads, kv_heads, length, key_len, head_dim, **options)
    return Case(name, make, tolerance, floor=floor, work=work, quick=pairs * heads * batch <= 2 * NUMPY_PAIRS)


CASES = (
    *(
        _case(f"forward, {'causal' if causal else 'full'}, 1x8x{n}x64", 1.4, 1, 8, 8, n, 64, causal=causal)
        for n in (128, 256, 512)
        for causal in (False, True)
    ),
    _case("forward, full, 1x8x2048x64", 1.2, 1, 8, 8, 2048, 64),
    _case("forward, causal, 1x8x2048x64", 1.35, 1, 8, 8, 2048, 64, causal=True),
    _case("forward, full, 2x12x1024x64", 1.2, 2, 12, 12, 1024, 64),
    _case("forward, causal, 2x12x1024x64", 1.35, 2, 12, 12, 1024, 64, causal=True),
    _case("forward, full, 1x32:8x1024x128", 1.2, 1, 32, 8, 1024, 128),
    _case("forward, causal, 1x32:8x1024x128", 1.35, 1, 32, 8, 1024, 128, causal=True),
    _case("forward, full, 1x8x4096x128", 1.2, 1, 8, 8, 4096, 128),
    _case("forward, causal, 1x8x4096x128", 1.35, 1, 8, 8, 4096, 128, causal=True),
    _case("forward and backward, full, 1x8x512x64", 1.2, 1, 8, 8, 512, 64, backward=True),
    _case("forward and backward, causal, 1x8x512x64", 1.4, 1, 8, 8, 512, 64, backward=True, causal=True),
    _case("forward and backward, full, 1x8x2048x64", 1.2, 1, 8, 8, 2048, 64, backward=True),
    _case("forward and backward, causal, 1x8x2048x64", 1.4, 1, 8, 8, 2048, 64, backward=True, causal=True),
    _case("forward and backward, full, 1x32:8x1024x128", 1.2, 1, 32, 8, 1024, 128, backward=True),
    _case("forward and backward, causal, 1x32:8x1024x128", 1.4, 1, 32, 8, 1024, 128, backward=True, causal=True),
    _case("forward, bfloat16, full, 1x8x1024x64", 2.3, 1, 8, 8, 1024, 64, dtype="bfloat16"),
    _case("forward and backward, bfloat16, full, 1x8x1024x64", 1.8, 1, 8, 8, 1024, 64, dtype="bfloat16", backward=True),
    _case("forward and backward, float64, full, 1x8x1024x64", 1.5, 1, 8, 8, 1024, 64, dtype="float64", backward=True),
    _case("forward, boolean mask, 1x8x2048x64", 1.5, 1, 8, 8, 2048, 64, option="mask"),
    _case("forward and backward, bias, 1x8x1024x64", 1.5, 1, 8, 8, 1024, 64, option="bias", backward=True),
    _case("forward, window of 256, 1x8x8192x64", 25.0, 1, 8, 8, 8192, 64, window=256),
    _case("decode, 8x32, 4096 keys, 128", 1.0, 8, 32, 32, 1, 128, key_len=4096),
    _case("decode, 8x32:8, 4096 keys, 128", 1.0, 8, 32, 8, 1, 128, key_len=4096),
)
