"""PyTorch's own attention, called as who knows it well would call it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.cases import Call
from benchmarks.rounds import timed
from benchmarks.softmax import Given


def tensor(torch: Any, x: np.ndarray) -> Any:
    """The same memory, as a tensor."""
    if x.dtype.kind != "V":
        return torch.from_numpy(np.ascontiguousarray(x))
    return torch.from_numpy(np.ascontiguousarray(x).view(np.int16)).view(torch.bfloat16)


def fastest(calls: Sequence[Call]) -> Call:
    """Of several ways to the same result, by three calls of each."""
    return calls[0] if len(calls) == 1 else min(calls, key=lambda call: min(timed(call) for _ in range(3)))


def torch_call(torch: Any, given: Given) -> Call:
    """A window is a mask to it, of booleans or of numbers to be added, and shared heads may be rows where queries are few."""
    problem, attend = given.problem, torch.nn.functional.scaled_dot_product_attention
    *inputs, d_output = (tensor(torch, x) for x in given[1:5])
    shared = problem.heads != problem.kv_heads
    options: dict[str, Any] = {"is_causal": problem.causal, "enable_gqa": shared}
    leaves = [x.requires_grad_(problem.backward) for x in inputs]
    if "bias" in given.options:
        options["attn_mask"] = tensor(torch, given.options["bias"]).requires_grad_(problem.backward)
        leaves.append(options["attn_mask"])
    mask = given.dense_mask()
    if mask is not None:
        options["attn_mask"] = torch.from_numpy(mask)
    if problem.backward:

        def both() -> Any:
            y = attend(*inputs, **options)
            return (y, *torch.autograd.grad(y, leaves, d_output))

        return both
    ways: list[Call] = [lambda: attend(*inputs, **options)]
    if mask is not None and "mask" not in given.options:  # how the window is written is ours to choose
        added = {**options, "attn_mask": torch.zeros(mask.shape).masked_fill_(~options["attn_mask"], -torch.inf)}
        ways.append(lambda: attend(*inputs, **added))
    if shared and problem.query_len == 1 and mask is None:
        query, key, value = inputs
        rows = query.view(problem.batch, problem.kv_heads, -1, problem.head_dim)
        ways.append(lambda: attend(rows, key, value).view(query.shape))
    return fastest(ways)
