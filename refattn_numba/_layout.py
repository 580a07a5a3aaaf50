"""``layout="channels_last"``: the axes of arrays and tensors are renamed at the border, and no number is moved."""

from __future__ import annotations

import functools
from typing import Any, cast

from refattn._core import Grads, Pullback


def accepting_layouts(made: Any) -> Any:
    """The same function, whose x, output and cotangent have their channels last where it is asked for."""
    spec = made.spec

    def moved(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        bound = spec.bind(args, kwargs)
        return {**bound, "x": channels_second(f"{spec.name}: x", bound["x"])}

    @functools.wraps(made)
    def call(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("layout") != "channels_last":
            return made(*args, **kwargs)
        return channels_last(made(**moved(args, kwargs)))

    @functools.wraps(made.vjp)
    def vjp(*args: Any, **kwargs: Any) -> tuple[Any, Pullback]:
        if kwargs.get("layout") != "channels_last":
            return made.vjp(*args, **kwargs)
        y, pullback = made.vjp(**moved(args, kwargs))

        def pullback_of_moved(d_output: Any = None) -> Grads:
            d = None if d_output is None else channels_second(f"{spec.name}: d_output", d_output)
            grads = dict(pullback(d))
            return {**grads, "x": channels_last(grads["x"])}

        return channels_last(y), pullback_of_moved

    cast("Any", call).vjp = vjp
    return call


def channels_last(x: Any) -> Any:
    """A view with axis 1 as the last one."""
    return _permuted(x, (0, *range(2, x.ndim), 1))


def channels_second(name: str, x: Any) -> Any:
    """A view with the last axis as axis 1."""
    if not hasattr(x, "ndim") or x.ndim < 3:
        raise ValueError(f"{name} is {getattr(x, 'shape', x)}, but must be an array (batch, positions, channels)")
    return _permuted(x, (0, x.ndim - 1, *range(1, x.ndim - 1)))


def _permuted(x: Any, axes: tuple[int, ...]) -> Any:
    return x.permute(axes) if hasattr(x, "permute") else x.transpose(axes)
