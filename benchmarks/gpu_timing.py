"""Times on a device by CUDA events: contenders take turns, and a number is the median of the rounds."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import refattn_numba

ROUNDS, WARM_UPS, SECONDS = 25, 3, 1.0
BACK_ENDS = {"flash": "FLASH_ATTENTION", "cudnn": "CUDNN_ATTENTION", "efficient": "EFFICIENT_ATTENTION", "math": "MATH"}
MOST_SCORES = 1 << 32
"""Scores that the math back end may hold: it makes all of them."""

ALLOWED = {"bfloat16": 0.02, "float16": 0.004, "float32": 0.002, "float8_e4m3fn": 0.05}
"""The largest distance from the math back end, in root mean squares of what is compared, at which a time is believed.

In float8 from our own bfloat16: independent roundings of weights to e4m3 are 0.024 of what they are in root mean squares.
"""

Call = Callable[[], Any]


class Shape(NamedTuple):
    """One call of attention.

    Attributes
    ----------
    dtype : str
        Of all operands.
    batch, heads, kv_heads, length, head_dim : int
        As many queries as keys.
    causal : bool
        Whether later keys are hidden.
    """

    dtype: str
    batch: int
    heads: int
    kv_heads: int
    length: int
    head_dim: int
    causal: bool

    @property
    def operations(self) -> float:
        """Floating-point operations of the forward pass, of visible pairs alone."""
        pairs = self.length * (self.length + 1) / 2 if self.causal else self.length**2
        return 4.0 * self.batch * self.heads * pairs * self.head_dim

    def __str__(self) -> str:
        heads = f"{self.heads}" if self.heads == self.kv_heads else f"{self.heads}/{self.kv_heads}"
        return f"{self.dtype} {self.batch} x {heads} x {self.length} x {self.head_dim}{', causal' if self.causal else ''}"


def medians(torch: Any, contenders: Mapping[str, Call], rounds: int = ROUNDS, seconds: float = SECONDS) -> dict[str, dict[str, float]]:
    """Median and spread (half the distance of the quartiles over the median) of each in milliseconds; those that fail are left out."""
    able = {}
    for name, call in contenders.items():
        try:
            for _ in range(WARM_UPS):
                call()
            torch.cuda.synchronize()
            able[name] = call
        except (RuntimeError, TypeError, ValueError, ImportError, NotImplementedError) as error:
            print(f"{name}: {str(error).splitlines()[0] if str(error) else type(error).__name__}", flush=True)
    found: dict[str, list[float]] = {name: [] for name in able}
    end = time.monotonic() + seconds * len(able)
    for done in range(rounds):
        if done >= 5 and time.monotonic() > end:
            break
        for name, call in able.items():
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            call()
            last.record()
            torch.cuda.synchronize()
            found[name].append(first.elapsed_time(last))
    return {name: {"ms": statistics.median(times), "spread": _spread(times), "rounds": len(times)} for name, times in found.items()}


def _spread(times: list[float]) -> float:
    low, _, high = statistics.quantiles(times, n=4) if len(times) > 1 else (times[0],) * 3
    return (high - low) / 2 / statistics.median(times)


def attention(torch: Any, shape: Shape) -> dict[str, Any]:
    """Times of ours and of PyTorch's back ends, forward and backward, and how far ours is from PyTorch's results."""
    dtype = getattr(torch, shape.dtype)
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(shape.batch, heads, shape.length, shape.head_dim, device="cuda", dtype=dtype)
        for heads in (shape.heads, shape.kv_heads, shape.kv_heads)
    )
    d = torch.randn_like(q)
    forward: dict[str, Call] = {"ours": lambda: refattn_numba.scaled_dot_product_attention(q, k, v, causal=shape.causal)}
    output, pullback = refattn_numba.scaled_dot_product_attention.vjp(q, k, v, causal=shape.causal)
    backward: dict[str, Call] = {"ours": lambda: pullback(d)}
    scores = shape.batch * shape.heads * shape.length**2
    peers = {
        name: _peer(torch, back_end, (q, k, v), d, shape) for name, back_end in BACK_ENDS.items() if name != "math" or scores < MOST_SCORES
    }
    forward |= {name: peer[0] for name, peer in peers.items()}
    backward |= {name: peer[1] for name, peer in peers.items()}
    errors = _errors(torch, peers, output, pullback(d))
    made = {
        "forward": with_rates(medians(torch, forward), shape.operations),
        "backward": with_rates(medians(torch, backward), 2.5 * shape.operations),
    }
    return {
        "shape": shape._asdict(),
        **made,
        "host_us": host_microseconds(torch, forward["ours"]),
        "errors": errors,
        "ok": is_right(errors, shape.dtype),
    }


def float8_forward(torch: Any, shape: Shape) -> dict[str, Any]:
    """Times of our forward pass in float8, and in bfloat16 of the same numbers."""
    torch.manual_seed(0)
    heads = shape.heads, shape.kv_heads, shape.kv_heads
    narrow = [torch.randn(shape.batch, h, shape.length, shape.head_dim, device="cuda").to(getattr(torch, shape.dtype)) for h in heads]
    wide = [x.to(torch.bfloat16) for x in narrow]
    calls: dict[str, Call] = {
        name: lambda x=x: refattn_numba.scaled_dot_product_attention(*x, causal=shape.causal)
        for name, x in (("ours", narrow), ("ours, bfloat16", wide))
    }
    errors = {"output": distance(*(call() for call in calls.values()))}
    return {
        "shape": shape._asdict(),
        "forward": with_rates(medians(torch, calls), shape.operations),
        "host_us": host_microseconds(torch, calls["ours"]),
        "errors": errors,
        "ok": is_right(errors, shape.dtype),
    }


def _peer(torch: Any, back_end: str, operands: tuple[Any, ...], d: Any, shape: Shape) -> tuple[Call, Call]:
    """PyTorch's forward pass, and its backward pass alone, by one back end."""
    from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: PLC0415  # where there is a GPU

    attend = torch.nn.functional.scaled_dot_product_attention
    options = {"is_causal": shape.causal, "enable_gqa": shape.heads != shape.kv_heads}
    chosen = getattr(SDPBackend, back_end)
    leaves = tuple(x.detach().clone().requires_grad_() for x in operands)
    kept: list[Any] = []

    def forward() -> Any:
        with sdpa_kernel(chosen):
            return attend(*operands, **options)

    def backward() -> Any:
        if not kept:
            with sdpa_kernel(chosen):
                kept.append(attend(*leaves, **options))
        return torch.autograd.grad(kept[0], leaves, d, retain_graph=True)

    return forward, backward


def _errors(torch: Any, peers: Mapping[str, tuple[Call, Call]], output: Any, grads: Mapping[str, Any]) -> dict[str, float]:
    """The distance from the first back end that takes such a call, in root mean squares."""
    for name in ("math", "efficient", "flash", "cudnn"):
        try:
            forward, backward = peers[name]
            wanted = {"output": forward(), **dict(zip(("query", "key", "value"), backward(), strict=True))}
        except (RuntimeError, KeyError):
            continue
        got = {"output": output, **grads}
        return {n: distance(got[n], x) for n, x in wanted.items()}
    return {}


def distance(got: Any, wanted: Any) -> float:
    """Of two tensors, in root mean squares of the second."""
    got, wanted = got.detach().float(), wanted.detach().float()
    return float((got - wanted).norm() / wanted.norm())


def is_right(errors: Mapping[str, float], dtype: str) -> bool:
    """Whether times of such results are believed."""
    return bool(errors) and all(math.isfinite(x) and x < ALLOWED[dtype] for x in errors.values())


def with_rates(times: dict[str, dict[str, float]], operations: float) -> dict[str, dict[str, float]]:
    """With operations over time."""
    return {name: {**t, "tflops": operations / t["ms"] / 1e9} for name, t in times.items()}


def host_microseconds(torch: Any, call: Call, calls: int = 20) -> float:
    """What a call takes of the host before it returns, while the device still works."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    took = time.perf_counter() - start
    torch.cuda.synchronize()
    return 1e6 * took / calls


def limits(torch: Any) -> dict[str, Any]:
    """What the card does at best: bytes that a copy reads and writes, and a product of large matrices."""
    size = 1 << 30
    source = torch.empty(size, dtype=torch.uint8, device="cuda")
    target, n = torch.empty_like(source), 8192
    a, b = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times = medians(torch, {"copy": lambda: target.copy_(source), "matmul": lambda: a @ b})
    return {
        "copy_tb_per_s": 2 * size / times["copy"]["ms"] / 1e9,
        "matmul_tflops": 2.0 * n**3 / times["matmul"]["ms"] / 1e9,
        "times": times,
        "ok": True,
    }
