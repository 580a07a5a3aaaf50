"""PyTorch's tensors in main memory in place of arrays, in and out, without a copy.

PyTorch is never imported: who passes a tensor has done so. NumPy alone has no bfloat16. Functions that return what they are given go in
and out by its bits; those that read caches in any type get the types of ml_dtypes, if it is there; all others get float32.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np

from refattn._core import Pullback, hook, tree
from refattn._core.arrays import LOW_PRECISION
from refattn._core.mechanism import outputs

CODED = np.dtype(np.float16)
"""What bits of bfloat16 pass the checks of shapes and types as."""
NO_TENSORS = frozenset({np.ndarray, type(None), bool, int, float, str})
"""Types that need no second look."""


def is_tensor(x: Any) -> bool:
    """Whether this is a tensor of PyTorch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def accepting_tensors(made: Any, coded: Any = None, *, stored: bool = False) -> Any:
    """The same function, which takes tensors too and then returns tensors.

    `coded` is the same again for bits of bfloat16, which it takes and returns as `CODED`. A function of what is `stored` takes arrays
    of any type.
    """
    spec = made.spec

    def arrays_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        """The arguments by name, and whether bfloat16 is coded in them."""
        bound = spec.bind(args, kwargs)
        is_coded = (
            coded is not None
            and hook.CURRENT.get() is None
            and _all_bfloat16({name: x for name, x in bound.items() if name in spec.facts.arguments})
        )
        return {
            name: _map(functools.partial(_array, f"{spec.name}: {name}", coded=is_coded, stored=stored), x) for name, x in bound.items()
        }, is_coded

    @functools.wraps(made)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not _any_tensor((args, kwargs)):
            return made(*args, **kwargs)
        given, is_coded = arrays_of(args, kwargs)
        return tree.map_leaves(functools.partial(_tensor, coded=is_coded), (coded if is_coded else made)(**given))

    @functools.wraps(made.vjp)
    def vjp(*args: Any, **kwargs: Any) -> tuple[Any, Pullback]:
        if not _any_tensor((args, kwargs)):
            return made.vjp(*args, **kwargs)
        given, is_coded = arrays_of(args, kwargs)
        tensor = functools.partial(_tensor, coded=is_coded)
        y, pullback = (coded if is_coded else made).vjp(**given)
        made_of = tree.map_leaves(tensor, y)
        dtypes = {f"d_{name}": t.dtype for name, t in zip(spec.output_names, outputs(made_of), strict=True)}

        def cotangent(name: str, d: Any) -> Any:
            """As the output is stored; bits of another type would be taken for it."""
            if d is None or name not in dtypes:
                return d
            d = sys.modules["torch"].as_tensor(d)
            if not d.is_floating_point():
                raise TypeError(f"{spec.name}: {name} is {_type_of(d)}, but must be floating point")
            return _array(f"{spec.name}: {name}", d.to(dtypes[name]), coded=is_coded)

        def pullback_of_tensors(*ds: Any, **by_name: Any) -> Mapping[str, Any]:
            by_place = [cotangent(name, d) for name, d in zip(dtypes, ds, strict=False)] + [*ds[len(dtypes) :]]
            return tree.map_leaves(tensor, pullback(*by_place, **{name: cotangent(name, d) for name, d in by_name.items()}))

        return made_of, pullback_of_tensors

    cast("Any", call).vjp = vjp
    return call


def _tensor(x: Any, *, coded: bool) -> Any:
    """A tensor that shares the array's memory."""
    torch, x = sys.modules["torch"], np.asarray(x)
    if not x.flags.writeable or any(step < 0 for step in x.strides):  # a tensor can be neither
        x = x.copy()
    if x.dtype.name == "bfloat16" or (coded and x.dtype == CODED):
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(x)


def _array(what: str, x: Any, *, coded: bool, stored: bool = False) -> Any:
    """A leaf of an argument as an array that shares its memory; what is no tensor as it is."""
    if not is_tensor(x):
        return x.view(CODED) if coded and _is_bfloat16(x) else x
    torch = sys.modules["torch"]
    if x.layout != torch.strided or x.device.type != "cpu":
        raise TypeError(f"{what} is a {str(x.layout).removeprefix('torch.')} tensor on {x.device}, but must be a dense one on the cpu")
    if x.requires_grad and torch.is_grad_enabled():
        raise TypeError(
            f"{what} requires a gradient, of which PyTorch would know nothing here: pass its detach(), or call under torch.no_grad(); "
            "the forward and the backward of an autograd.Function are what vjp returns"
        )
    x = x.detach().resolve_neg()
    name = _type_of(x)
    if not name.startswith(LOW_PRECISION):
        return x.numpy()
    kind = CODED if coded else _type_of_ml_dtypes(name) if stored else None
    return (
        x.float().numpy() if kind is None else x.view(torch.int16 if x.element_size() == CODED.itemsize else torch.int8).numpy().view(kind)
    )


def _type_of_ml_dtypes(name: str) -> np.dtype[Any] | None:
    """The type of this name, where the package is installed and has it."""
    try:
        import ml_dtypes  # noqa: PLC0415  # an extra, imported for caches of its types alone
    except ImportError:
        return None
    return np.dtype(getattr(ml_dtypes, name)) if hasattr(ml_dtypes, name) else None


def _type_of(x: Any) -> str:
    """The name of an array's or a tensor's type; nothing of what has none."""
    return str(getattr(x, "dtype", "")).removeprefix("torch.")


def _is_bfloat16(x: Any) -> bool:
    return _type_of(x) == "bfloat16"


def _all_bfloat16(arguments: Mapping[str, Any]) -> bool:
    """Whether every floating-point array or tensor is of bfloat16; what may be any array is not."""
    return all(
        _type_of(x) in {"bfloat16", "bool", "int64", "int32"} for x in arguments.values() if not isinstance(x, (float, int, type(None)))
    )


def _any_tensor(x: Any) -> bool:
    if type(x) in NO_TENSORS or "torch" not in sys.modules:
        return False
    if isinstance(x, (tuple, list, dict)):
        for part in x.values() if isinstance(x, dict) else x:  # noqa: SIM110  # a generator takes a microsecond to begin
            if type(part) not in NO_TENSORS and _any_tensor(part):
                return True
        return False
    return is_tensor(x)


def _map(function: Callable[[Any], Any], x: Any) -> Any:
    """`function` of each leaf of a record, of which a list may be one."""
    if isinstance(x, (tuple, list)):
        parts = [_map(function, part) for part in x]
        return type(x)(*parts) if hasattr(x, "_fields") else type(x)(parts)
    return function(x)
