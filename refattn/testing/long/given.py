"""What a candidate has made, as it was given to a check of very many tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from refattn._core import Mechanism
from refattn.testing.long.arrays import large, named
from refattn.testing.long.parts import Long


class Given(NamedTuple):
    """What a candidate has made: outputs, gradients, and what these were made from."""

    output: Any
    lse: Any
    gradients: Mapping[str, Any]
    d_output: Any
    d_lse: Any


def given(mechanism: Mechanism[..., Any], got: Any, gradients: Mapping[str, Any] | None, cotangents: Any, lse: Any) -> Given:
    """What was given, in one place; errors name the argument."""
    names = mechanism.spec.output_names
    outputs = list(got) if isinstance(got, (tuple, list)) else [got]
    if len(outputs) != len(names):
        raise ValueError(f"got has {len(outputs)} outputs, but {mechanism.spec.name} has {len(names)}: {', '.join(names)}")
    if gradients is not None and cotangents is None:
        raise ValueError("cotangents is None, but gradients are given: say what they were computed from")
    ds = [None] * len(names) if cotangents is None else list(cotangents) if isinstance(cotangents, (tuple, list)) else [cotangents]
    if len(ds) != len(names):
        raise ValueError(f"cotangents are {len(ds)}, but {mechanism.spec.name} has {len(names)}: {', '.join(names)}")
    sums = outputs[1] if len(names) > 1 else lse
    found = {n: large(f"gradients: {n}", g) for n, g in named("gradients", gradients or {}).items() if g is not None and np.ndim(g) > 1}
    found |= {n: g for n, g in (gradients or {}).items() if n not in found and g is not None}
    d_output = None if ds[0] is None else large("cotangents", ds[0])
    return Given(large("got", outputs[0]), None if sums is None else large("lse", sums), found, d_output, ds[1] if len(ds) > 1 else None)


def wrong_shapes(call: Long, have: Given) -> Iterator[tuple[str, dict[str, Any]]]:
    """What has another shape than it must have, with the fields of its result."""
    output = (*call.query.shape[:-1], call.value.shape[-1])
    wanted: dict[str, tuple[Any, tuple[int, ...]]] = {"output": (have.output, output), "lse": (have.lse, tuple(call.query.shape[:-1]))}
    wanted |= {"cotangents": (have.d_output, output), "cotangents of lse": (have.d_lse, tuple(call.query.shape[:-1]))}
    wanted |= {f"d_{n}": (have.gradients.get(n), tuple(getattr(call, n).shape)) for n in ("query", "key", "value")}
    for what, (x, shape) in wanted.items():
        if x is not None and tuple(x.shape) != shape:
            yield what, {"status": "fail", "reason": f"has shape {tuple(x.shape)}, expected {shape}"}
