"""Arrays on a device in place of arrays, in and out: checked as the reference's docstring states, without a look at their numbers."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from refattn._core import Grads, Pullback, hook
from refattn._core.mechanism import Spec
from refattn_numba._layout import channels_second
from refattn_numba.cuda.arrays import DeviceArray, gathered, is_on_device, read

ATTENTION, DECODING = "refattn_numba.cuda.attention", "refattn_numba.cuda.decoding"
CONVOLUTION = "refattn_numba.cuda.convolving"
"""Modules that have a function for each of these, by name; imported on the first call with an array on a device."""

IN_MAIN_MEMORY = frozenset({np.ndarray, type(None), bool, int, float, str, tuple})
"""Types that are not asked where they lie."""

KINDS: Mapping[str, str] = {"bfloat16": "float16", "float8_e4m3fn": "float16"}
"""What stands for a type that NumPy lacks where shapes and kinds are checked."""


def on_device(made: Any, rules: str = ATTENTION) -> Any:
    """The same function, which takes arrays on a device too and then returns such arrays, of the caller's library."""
    spec = made.spec
    run = functools.partial(_run, spec, rules)

    @functools.wraps(made)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not _any_on_device(args, kwargs):
            return made(*args, **kwargs)
        return run(args, kwargs, differentiate=False)[0]

    @functools.wraps(made.vjp)
    def vjp(*args: Any, **kwargs: Any) -> tuple[Any, Pullback]:
        if not _any_on_device(args, kwargs):
            return made.vjp(*args, **kwargs)
        return run(args, kwargs, differentiate=True)

    cast("Any", call).vjp = vjp
    return call


def _any_on_device(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    return any(type(x) not in IN_MAIN_MEMORY and is_on_device(x) for x in (*args, *kwargs.values()))


def convolution_on_device(made: Any) -> Any:
    """The same for convolutions."""
    return on_device(made, CONVOLUTION)


def decoding_on_device(made: Any) -> Any:
    """The same for attention to caches."""
    return on_device(made, DECODING)


def _run(spec: Spec, rules: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, differentiate: bool) -> tuple[Any, Pullback]:
    """Outputs of the caller's kind, and a pullback that takes and returns such arrays."""
    if hook.CURRENT.get() is not None:
        raise TypeError(f"{spec.name}: a hook sees arrays in main memory alone, but this call has arrays on a device")
    arrays, options = _accepted(spec, spec.bind(args, kwargs))
    told = {} if rules == ATTENTION else {"differentiate": differentiate}
    y, pullback = getattr(importlib.import_module(rules), spec.name)(**arrays, **options, **told)
    named = {f"d_{name}": array for name, array in zip(spec.output_names, _each(y), strict=True)}
    wanted = spec.facts.differentiable(arrays).keys()

    def pull_back(*cotangents: Any, **by_name: Any) -> Grads:
        places = list(named)
        if len(cotangents) > len(named) or by_name.keys() - set(places[len(cotangents) :]):
            raise TypeError(f"{spec.name}: the pullback takes {', '.join(named)}; got {len(cotangents)} by position and {sorted(by_name)}")
        given = {**dict(zip(places, cotangents, strict=False)), **by_name}
        grads = pullback(*(_cotangent(spec.name, name, given.get(name), output) for name, output in named.items()))
        return {name: g.result() for name, g in grads.items() if name in wanted}

    is_read = differentiate and getattr(pullback, "reads_outputs", True)
    results = [x.result(copied=is_read and not x.library.tells_changes) for x in _each(y)]
    return results[0] if isinstance(y, DeviceArray) else type(y)(*results), pull_back


def _each(y: Any) -> tuple[DeviceArray, ...]:
    """The outputs, one or several."""
    return (y,) if isinstance(y, DeviceArray) else tuple(y)


def _accepted(spec: Spec, bound: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arrays and options of a call that the docstring allows; its errors are those of a call in main memory."""
    facts = spec.facts.arguments
    indices = [name for name, leaf in facts.items() if getattr(leaf, "kind", "") == "int"]
    return checked(spec, bound, gathered(spec.name, {name: bound[name] for name in facts if name in bound}, indices))


def checked(spec: Spec, bound: Mapping[str, Any], arrays: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same of arguments that are gathered."""
    stand_ins = {name: _shape_alone(x.shape, x.dtype) if isinstance(x, DeviceArray) else x for name, x in arrays.items()}
    if bound.get("layout") == "channels_last":
        stand_ins["x"] = channels_second(f"{spec.name}: x", stand_ins["x"])
    accepted = spec.accept({**bound, **stand_ins}, precision=None)
    return {name: x if isinstance(x, DeviceArray) else accepted[name] for name, x in arrays.items()}, {
        name: x for name, x in accepted.items() if name not in arrays
    }


@functools.lru_cache(maxsize=256)
def _shape_alone(shape: tuple[int, ...], dtype: str) -> Any:
    """An array of this shape and type that takes no memory."""
    try:
        kind = np.dtype(KINDS.get(dtype, dtype))
    except TypeError:
        kind = np.dtype(np.float16)  # another type of 8 bits, which is refused where it is read
    return np.broadcast_to(np.zeros((), kind), shape)


def _cotangent(caller: str, name: str, given: Any, output: DeviceArray) -> DeviceArray | None:
    """As the output is stored; None is zero."""
    if given is None:
        return None
    if not is_on_device(given):
        raise TypeError(
            f"{caller}: {name} is a {type(given).__module__}.{type(given).__name__} in main memory, but {name[2:]} is on a device"
        )
    found = read(f"{caller}: {name}", given, output.library)
    if found.memory.device != output.memory.device and given.shape:
        raise TypeError(f"{caller}: {name} lies on device {found.memory.device}, but {name[2:]} on device {output.memory.device}")
    if found.shape != output.shape:
        raise ValueError(f"{caller}: {name} has shape {found.shape}, but {name[2:]} has {output.shape}")
    if not found.dtype.startswith(("float", "bfloat")):
        raise TypeError(f"{caller}: {name} is {found.dtype}, but must be floating point")
    return found.as_type(output.dtype)
