"""One query of each sequence against its cache; and sequences of different lengths, one after another in one array."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

import refattn
from benchmarks.cases import Call, installed
from benchmarks.ours import exact
from benchmarks.peers import peers
from benchmarks.softmax import Problem
from benchmarks.torch_peer import tensor


def decode(problem: Problem) -> Mapping[str, Call]:
    """By the function made for it; all caches are full."""
    import refattn_numba  # noqa: PLC0415  (the other suites do without)

    given, lengths = problem.drawn(), np.full(problem.batch, problem.key_len)
    ours = lambda: refattn_numba.decode_attention(given.query, given.key, given.value, lengths)  # noqa: E731
    return {"refattn_numba": ours, **peers(given), **exact(given)}


def quantised(problem: Problem) -> Mapping[str, Call]:
    """A cache of int8 with a scale for each head, beside the numbers that it stands for in float32."""
    import refattn_numba  # noqa: PLC0415

    given, lengths = problem.drawn(), np.full(problem.batch, problem.key_len)
    stored: dict[str, Any] = {}
    for name, x in (("key", given.key), ("value", given.value)):
        stored[f"{name}_scale"] = np.abs(x).max(axis=(0, 2, 3))[:, None, None] / np.float32(127)
        stored[name] = np.rint(x / stored[f"{name}_scale"]).astype(np.int8)
    given = given._replace(**{name: stored[name] * stored[f"{name}_scale"] for name in ("key", "value")})
    calls: dict[str, Call] = {
        "refattn_numba": lambda: refattn_numba.decode_attention(given.query, lengths=lengths, **stored),
        "refattn_numba float32": lambda: refattn_numba.decode_attention(given.query, given.key, given.value, lengths),
    }
    return {**calls, **{n: call for n, call in peers(given).items() if n == "torch"}, **exact(given)}


def packed(problem: Problem, lengths: tuple[int, ...]) -> Mapping[str, Call]:
    """Sequences that see themselves alone; PyTorch takes one after the other."""
    import refattn_numba  # noqa: PLC0415

    given, bounds = problem.drawn(), np.cumsum((0, *lengths))
    inputs, torch = given[1:4], installed("torch")
    packing = {"cu_seqlens_q": bounds, "causal": problem.causal}
    calls: dict[str, Call] = {
        "refattn_numba": lambda: refattn_numba.varlen_attention(*(x[0] for x in inputs), **packing),
        "exact": lambda: refattn.varlen_attention(*(x[0, :1].astype(float) for x in inputs), **packing),
    }
    if torch is not None:
        tensors = [tensor(torch, x) for x in inputs]
        spans = [slice(a, b) for a, b in pairwise(bounds.tolist())]

        def theirs() -> Any:
            attend = torch.nn.functional.scaled_dot_product_attention
            return torch.cat([attend(*(x[:, :, s] for x in tensors), is_causal=problem.causal) for s in spans], 2)[0]

        calls["torch"] = theirs
    return calls
