"""Linear attentions in float32: the compiled twins beside PyTorch's matrix products and autograd in the same chunked algorithm."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

import refattn
from benchmarks.cases import Call, Case, installed

CHUNK = 64


def inputs(name: str, batch: int, heads: int, length: int, head_dim: int) -> dict[str, Any]:
    """Arguments of a mechanism; decays of a quarter at most, so that running sums of them are harmless."""
    random = np.random.default_rng(0)
    given: dict[str, Any] = dict(zip(("query", "key", "value"), random.standard_normal((3, batch, heads, length, head_dim)), strict=True))
    given["key"] /= np.sqrt(head_dim)
    if "gated" in name:
        given["log_decay"] = -random.uniform(0, 0.25, (batch, heads, length, *((head_dim,) if "delta" not in name else ())))
    if "delta" in name:
        given["beta"] = random.uniform(0, 1, (batch, heads, length))
    return {n: x.astype(np.float32) for n, x in given.items()}


def in_chunks(torch: Any, query: Any, key: Any, value: Any, log_decay: Any = None, beta: Any = None) -> Any:
    """The chunked form as it is written for devices with fast matrix products: all chunks at once, but for the state."""
    size = min(CHUNK, key.shape[-2])
    query, key, value = (x.unflatten(-2, (-1, size)) for x in (query, key, value))
    key_start = key_end = minus_key = key
    kept = for_keys = None
    if log_decay is not None:
        running = (log_decay if log_decay.ndim == 4 else log_decay[..., None]).unflatten(-2, (-1, size)).cumsum(-2)
        last, since = running[..., -1:, :], running.exp()
        query, key_start = query * since, key * since
        minus_key, key_end = key * (-running).exp(), key * (last - running).exp()
        kept = last.exp().transpose(-1, -2)
    scores = (query @ minus_key.transpose(-1, -2)).tril()
    if beta is not None:
        rate = beta.unflatten(-1, (-1, size))[..., None]
        lower = ((rate * key_start) @ minus_key.transpose(-1, -2)).tril(-1)
        sides = torch.cat([rate * key_start, rate * value], dim=-1)
        solved = torch.linalg.solve_triangular(lower, sides, upper=False, unitriangular=True)
        for_keys, value = solved.split([key.shape[-1], value.shape[-1]], dim=-1)
    state, outputs = torch.zeros_like(key[..., 0, 0, :, None] * value[..., 0, 0, None, :]), []
    for n in range(key.shape[-3]):
        writes = value[..., n, :, :] if for_keys is None else value[..., n, :, :] - for_keys[..., n, :, :] @ state
        outputs.append(query[..., n, :, :] @ state + scores[..., n, :, :] @ writes)
        state = (state if kept is None else kept[..., n, :, :] * state) + key_end[..., n, :, :].transpose(-1, -2) @ writes
    return torch.cat(outputs, dim=-2)


def theirs(torch: Any, name: str, **given: Any) -> Any:
    """The output of a mechanism."""
    if name != "linear_attention":
        return in_chunks(torch, **given) / given["query"].shape[-1] ** 0.5
    query, key = (torch.nn.functional.elu(given[n]) + 1 for n in ("query", "key"))
    total = (query * key.cumsum(-2)).sum(-1, keepdim=True)
    return in_chunks(torch, query, key, given["value"]) / total


def scan(name: str, *sizes: int, backward: bool, reference: bool = False) -> Mapping[str, Call]:
    """The output of a mechanism, and with `backward` its gradients too."""
    import refattn_numba  # noqa: PLC0415  (needs Numba, but the list of cases does not)

    given = inputs(name, *sizes)
    options = {"causal": True} if name == "linear_attention" else {}
    d = np.random.default_rng(1).standard_normal(given["value"].shape).astype(np.float32)

    def made(mechanism: Any) -> Any:
        y, pullback = mechanism.vjp(**given, **options)
        grads = pullback(d)
        return (y.output, *(grads[n] for n in given))

    def ours(mechanism: Any) -> Call:
        return partial(made, mechanism) if backward else lambda: mechanism(**given, **options).output

    calls = {"refattn_numba": ours(getattr(refattn_numba, name))}
    torch = installed("torch")
    if torch is not None:
        tensors = {n: torch.tensor(x, requires_grad=backward) for n, x in given.items()}
        d_torch = torch.from_numpy(d)

        def torchs() -> Any:
            y = theirs(torch, name, **tensors)
            return (y, *torch.autograd.grad(y, list(tensors.values()), d_torch)) if backward else y

        calls["torch"] = torchs
    if reference:
        calls["refattn"] = ours(getattr(refattn, f"chunked_{name}"))
    return calls


NAMES = ("linear_attention", "gated_linear_attention", "delta_rule", "gated_delta_rule")

CASES = (
    *(
        Case(
            f"{name}, 2 x 8 heads, 2048 positions, head_dim {head_dim}, {'forward and backward' if backward else 'forward'}",
            partial(scan, name, 2, 8, 2048, head_dim, backward=backward),
            tolerance=1e-4,
        )
        for name in NAMES
        for head_dim in (64, 128)
        for backward in (False, True)
    ),
    *(
        Case(
            f"{name}, 1 x 4 heads, 256 positions, head_dim 64, forward and backward",
            partial(scan, name, 1, 4, 256, 64, backward=True, reference=True),
            tolerance=1e-4,
        )
        for name in NAMES
    ),
)
