"""Attention by kernels that Triton compiles, beside ours: those of Triton's tutorial on fused attention, and PyTorch's flex_attention.

The tutorial is no package. Who has its file (python/tutorials/06-fused-attention.py in Triton's repository) names it by ``--triton FILE``;
it offers ``attention(q, k, v, causal, scale)``. flex_attention comes with PyTorch, which compiles it by Triton. Shapes are the tutorial's.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import refattn_numba
from benchmarks.gpu_timing import Call, Shape, distance, is_right, medians, with_rates

FILE = "REFATTN_TRITON_TUTORIAL"
"""The environment's name for the tutorial's file, which processes of single rows get so."""

SHAPES = (Shape("float16", 4, 32, 32, 4096, 64, True), Shape("float16", 4, 32, 32, 4096, 128, False))


def beside_triton(torch: Any, shape: Shape) -> dict[str, Any]:
    """Times of both directions, and how far ours is from each of the others."""
    dtype, scale = getattr(torch, shape.dtype), shape.head_dim**-0.5
    torch.manual_seed(0)
    sizes = shape.batch, shape.heads, shape.length, shape.head_dim
    q, k, v, d = (torch.randn(*sizes, device="cuda", dtype=dtype) for _ in range(4))
    output, pullback = refattn_numba.scaled_dot_product_attention.vjp(q, k, v, causal=shape.causal)
    forward: dict[str, Call] = {"ours": lambda: refattn_numba.scaled_dot_product_attention(q, k, v, causal=shape.causal)}
    backward: dict[str, Call] = {"ours": lambda: pullback(d)}
    errors = {}
    for name, attend in _peers(torch, shape).items():
        leaves = tuple(x.detach().clone().requires_grad_() for x in (q, k, v))
        try:
            theirs = attend(*leaves, scale)
            grads = torch.autograd.grad(theirs, leaves, d, retain_graph=True)
        except Exception as error:  # whatever a compiler raises costs its own column alone
            print(f"{name}: {type(error).__name__}: {str(error).partition(chr(10))[0]}", flush=True)
            continue
        forward[name] = lambda attend=attend: attend(q, k, v, scale)
        backward[name] = lambda y=theirs, leaves=leaves: torch.autograd.grad(y, leaves, d, retain_graph=True)
        made = {"output": output, **pullback(d)}
        wanted = {"output": theirs, **dict(zip(("query", "key", "value"), grads, strict=True))}
        errors |= {f"{n}, {name}": distance(made[n], x) for n, x in wanted.items()}
    return {
        "shape": shape._asdict(),
        "forward": with_rates(medians(torch, forward), shape.operations),
        "backward": with_rates(medians(torch, backward), 2.5 * shape.operations),
        "errors": errors,
        "ok": is_right(errors, shape.dtype),
    }


def _peers(torch: Any, shape: Shape) -> Mapping[str, Any]:
    """Functions of query, key, value and scale."""
    found = {"flex": _flex(torch, shape)}
    if path := os.environ.get(FILE):
        attention = tutorial(Path(path)).attention
        found["triton"] = lambda q, k, v, scale: attention(q, k, v, shape.causal, scale)
    return found


def _flex(torch: Any, shape: Shape) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention  # noqa: PLC0415  # where there is a GPU

    lengths = shape.length, shape.length
    mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, *lengths, device="cuda") if shape.causal else None
    flex = torch.compile(flex_attention, dynamic=False)
    return lambda q, k, v, scale: flex(q, k, v, block_mask=mask, scale=scale)


def tutorial(path: Path) -> Any:
    """The module in that file."""
    spec = importlib.util.spec_from_file_location("triton_tutorial", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"--triton is {path}, which is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
