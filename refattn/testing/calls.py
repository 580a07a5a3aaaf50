"""Sample calls of a mechanism, and its derivative by differences: what the reference is tested with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from refattn._core import Array, Mechanism, Sample, tree
from refattn._core.arrays import is_real
from refattn._core.mechanism import outputs
from refattn._core.random import Random


def samples(mechanism: Mechanism[..., Any], seed: int = 0) -> Iterator[Sample]:
    """The mechanism's own sample calls; the same on every machine.

    Parameters
    ----------
    mechanism : mechanism
        Any function of `refattn.mechanisms`.
    seed : int, optional
        Another seed gives other numbers in calls of the same shapes.

    Yields
    ------
    Sample
        A name, and the arguments by name.
    """
    return mechanism.spec.samples(Random(seed))


def in_precision(mechanism: Mechanism[..., Any], arguments: Mapping[str, Any], dtype: Any) -> dict[str, Any]:
    """The same call with every real array in another precision."""
    given = dict(arguments)
    for path, leaf, x in mechanism.spec.facts.leaves(given):
        if leaf.is_real and isinstance(x, np.ndarray) and is_real(x.dtype):
            given = tree.replace(given, path, x.astype(dtype))
    return given


def cotangents(y: Any, seed: int = 2) -> tuple[Array, ...]:
    """One random cotangent for each output, in its precision."""
    random = Random(seed)
    return tuple(random.normal(x.shape).astype(x.dtype) for x in outputs(y))


def gradient_leaves(grads: Mapping[str, Any]) -> dict[str, Array]:
    """Gradients by dotted path."""
    return dict(tree.leaves(grads))


def inner(y: Any, ds: tuple[Array, ...]) -> Any:
    """Sum of the inner products of outputs and cotangents; an output that is not finite counts nothing."""
    return sum((np.where(np.isfinite(x), x, 0) * d).sum() for x, d in zip(outputs(y), ds, strict=True))


def _differences(
    function: Callable[..., Any], arguments: Mapping[str, Any], path: str, x: Array, direction: Array, ds: tuple[Array, ...]
) -> Any:
    """The central difference of the inner product along one direction of one leaf."""
    step = np.asarray(2.0**-20 if np.finfo(x.dtype).eps < 2.0**-52 else 2.0**-17, x.dtype)
    up, down = (inner(function(**tree.replace(dict(arguments), path, x + s * direction)), ds) for s in (step, -step))
    return (up - down) / (2 * step)


def directional_errors(
    mechanism: Mechanism[..., Any], arguments: Mapping[str, Any], ds: tuple[Array, ...], grads: Mapping[str, Any], directions: int = 2
) -> dict[str, float]:
    """Analytic less numerical derivative along random directions of each leaf, relative to the gradient's norm.

    Parameters
    ----------
    mechanism : mechanism
        Whose outputs are differenced.
    arguments : mapping
        A call, best in longdouble.
    ds : tuple of array
        A cotangent for each output.
    grads : mapping
        What the pullback returned for them.
    directions : int, optional
        How many random directions of each leaf.

    Returns
    -------
    dict of str to float
        The largest error of each leaf; NaN where the gradient is not finite.
    """
    random, errors, found = Random(5), {}, gradient_leaves(grads)
    for path, x in mechanism.spec.facts.differentiable(arguments).items():
        size = max(1.0, float(np.sqrt((found[path] ** 2).sum())))
        for _ in range(directions):
            direction = random.normal(x.shape).astype(x.dtype)
            numerical = _differences(mechanism, arguments, path, x, direction, ds)
            error = abs(float((found[path] * direction).sum() - numerical)) / size
            errors[path] = float(np.maximum(errors.get(path, 0.0), error))  # unlike max, it keeps a NaN
    return errors


def numerical_gradients(mechanism: Mechanism[..., Any], arguments: Mapping[str, Any], ds: tuple[Array, ...]) -> dict[str, Array]:
    """Gradients by central differences, one element at a time: slow, to say where a pullback is wrong."""
    grads = {}
    for path, x in mechanism.spec.facts.differentiable(arguments).items():
        grads[path] = np.zeros_like(x)
        for i in np.ndindex(x.shape):
            direction = np.zeros_like(x)
            direction[i] = 1
            grads[path][i] = _differences(mechanism, arguments, path, x, direction, ds)
    return grads
