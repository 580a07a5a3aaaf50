"""The values that golden files hold, behind one function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from refattn import exact
from refattn._core import Array, Mechanism, tree
from refattn._core.mechanism import outputs
from refattn.testing.calls import gradient_leaves, in_precision
from refattn.testing.precision import Format


class Values(NamedTuple):
    """Outputs by name and gradients by dotted path, in float64."""

    outputs: dict[str, Array]
    gradients: dict[str, Array]


def reference_values(
    mechanism: Mechanism[..., Any], arguments: Mapping[str, Any], cotangents: tuple[Array, ...] | None, *, exactly: bool = False
) -> Values:
    """Outputs and gradients, rounded to float64.

    Parameters
    ----------
    mechanism : mechanism
        What is computed.
    arguments : mapping
        By the mechanism's names, in float64.
    cotangents : tuple of array or None
        One for each output; None is no gradients.
    exactly : bool, optional
        Compute by `refattn.exact`, which takes seconds for thousands of products, and minutes for more.

    Returns
    -------
    outputs, gradients : dict of str to array
        Of longdouble where not exact: where that is wider than float64 (x86), rounded once in nearly all elements.
    """
    y, pullback = exact.vjp(mechanism, **arguments) if exactly else mechanism.vjp(**in_precision(mechanism, arguments, np.longdouble))
    made = dict(zip(mechanism.spec.output_names, outputs(y), strict=True))
    grads: Mapping[str, Any] = {}
    if cotangents is not None:
        grads = gradient_leaves(pullback(*(d.astype(x.dtype) for d, x in zip(cotangents, outputs(y), strict=True))))
    return Values({n: x.astype(float) for n, x in made.items()}, {n: g.astype(float) for n, g in grads.items()})


def rounded(mechanism: Mechanism[..., Any], arguments: Mapping[str, Any], target: Format) -> dict[str, Any]:
    """The same call with every real array rounded to the format."""
    given = dict(arguments)
    for path, leaf, x in mechanism.spec.facts.leaves(given):
        if leaf.is_real and isinstance(x, np.ndarray):
            given = tree.replace(given, path, target.round(x))
    return given
