"""Is this kernel right at a million tokens? The sums that must agree over all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from refattn._core import Mechanism
from refattn.testing.candidates import refuse_what_is_no_mechanism
from refattn.testing.long.arrays import named
from refattn.testing.long.attention_laws import AttentionLaws
from refattn.testing.long.conserved import Law, fields, skipped
from refattn.testing.long.parts import DENSE, PACKED, long_call
from refattn.testing.precision import named_format
from refattn.testing.report import Report, Result
from refattn.testing.rows import given, wrong_shapes

MANY = 256
"""Queries and keys from which on probable errors are to be relied upon."""


def check_laws(
    got: Any,
    mechanism: Mechanism[..., Any],
    inputs: Mapping[str, Any],
    *,
    gradients: Mapping[str, Any] | None = None,
    cotangents: Any = None,
    dtype: Any = "float32",
    lse: Any = None,
    kernel: Callable[..., Any] | None = None,
) -> Report:
    call = long_call(mechanism, named("inputs", inputs))
    have = given(mechanism, got, gradients, cotangents, lse)
    target = named_format(dtype)
    out = []
    for w, l in AttentionLaws(call, have, target).laws():
        out.append(Result(mechanism.spec.name, "laws", w, target.name, **(skipped(l) if isinstance(l, str) else fields(l))))
    return Report(out)
