"""A kernel in the place of somebody's function: their names, layout and framework outside, the kernel inside."""

from __future__ import annotations

import functools
import inspect
import itertools
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from refattn._core import Array
from refattn._core.mechanism import outputs
from refattn.testing.candidates import _layouts
from refattn.testing.faulty import bridges
from refattn.testing.faulty.catalogue import honest, kernel
from refattn.testing.faulty.kernel import Kernel, mechanism_named
from refattn.testing.precision import named_format


def install(module: Any, planted: Mapping[str, Any]) -> None:
    """Replace the function that ``planted["path"]`` names in a module that has just been imported."""
    *owners, name = planted["path"].split(".")
    owner = functools.reduce(getattr, owners, module)
    replaced = Replacement(getattr(owner, name), planted).function()
    setattr(owner, name, staticmethod(replaced) if isinstance(owner, type) else replaced)


class Replacement:
    """What stands in a function's place.

    Parameters
    ----------
    original : callable
        Whose signature the call keeps.
    planted : mapping
        ``mechanism``, ``honest`` (which of the honest kernels) or ``fault``, ``dtype``, ``tile``, ``arguments`` (theirs to ours, "" for
        those to ignore), ``options`` (ours, for every call), ``layout`` and ``record``, a file to which findings are appended.
    """

    def __init__(self, original: Callable[..., Any], planted: Mapping[str, Any]) -> None:
        self.original, self.planted = original, planted
        self.mechanism = mechanism_named(planted["mechanism"])
        self.layouts = _layouts(self.mechanism, planted["layout"])
        self.record = Record(planted["record"])

    def function(self) -> Callable[..., Any]:
        """A plain function with the name and signature of the original."""

        @functools.wraps(self.original)
        def replaced(*args: Any, **kwargs: Any) -> Any:
            return self.call(self.ours(args, kwargs))

        return replaced

    def ours(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call by our names; TypeError for one that is not ours and not its default."""
        parameters = self.mechanism.spec.signature.parameters
        named, defaults = self._bound(args, kwargs)
        given: dict[str, Any] = dict(self.planted["options"])
        for theirs, x in named.items():
            name = self.planted["arguments"].get(theirs, theirs)
            if name in parameters:
                given[name] = x
            elif name and not _same(x, defaults.get(theirs)) and x is not None:
                raise TypeError(
                    f"refattn mutants: {theirs!r} is no argument of {self.mechanism.__name__}: say --argument {theirs}=NAME, "
                    f"or --argument {theirs}= where it changes nothing; it has {', '.join(parameters)}"
                )
        return given

    def call(self, given: dict[str, Any]) -> Any:
        """Through the framework of the arrays."""
        first = given[next(iter(self.mechanism.spec.signature.parameters))]
        bridge = bridges.bridge(first)
        target = named_format(self.planted["dtype"] or bridge.dtype(first))
        pair = Pair(self.planted, target.name, self.record)
        self.record.called()
        y = bridge.apply(functools.partial(self._vjp, pair), given, first, self.mechanism.spec.output_names)
        return y[0] if len(y) == 1 else y

    def _vjp(
        self, pair: Pair, arrays: Mapping[str, Any], *, quietly: bool = False
    ) -> tuple[tuple[Array, ...], Callable[..., dict[str, Array]]]:
        """The kernel on NumPy arrays in their layout."""
        to, back = self.layouts
        names = self.mechanism.spec.output_names
        y, pullback = pair.vjp({n: back(n, x) if isinstance(x, np.ndarray) else x for n, x in arrays.items()}, quietly=quietly)

        def theirs(*ds: Array) -> dict[str, Array]:
            return {n: to(n, g) for n, g in pullback(*map(back, names, ds)).items()}

        return tuple(map(to, names, y)), theirs

    def _bound(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Arguments by their names, and defaults; a function that states no signature has the mechanism's order."""
        try:
            signature = inspect.signature(self.original)
        except (TypeError, ValueError):
            return {**dict(zip(self.mechanism.spec.signature.parameters, args, strict=False)), **kwargs}, {}
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        named: dict[str, Any] = {}
        for name, x in bound.arguments.items():
            named |= x if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD else {name: x}
        return named, {n: p.default for n, p in signature.parameters.items()}


class Pair:
    """The planted kernel, and beside it the honest one: what the fault changed in what was returned is recorded."""

    def __init__(self, planted: Mapping[str, Any], dtype: str, record: Record) -> None:
        mechanism, fault, tile = planted["mechanism"], planted["fault"], planted["tile"]
        if fault is None:
            self.kernels: list[Kernel] = [honest(mechanism, dtype, tile=tile)[planted["honest"]].kernel]
        else:
            self.kernels = [kernel(mechanism, fault, dtype, tile=tile), kernel(mechanism, None, dtype, tile=tile)]
        self.names, self.record = self.kernels[0].mechanism.spec.output_names, record

    def vjp(self, given: Mapping[str, Any], *, quietly: bool = False) -> tuple[tuple[Array, ...], Callable[..., dict[str, Array]]]:
        """Outputs and pullback of the planted kernel; quietly, of the honest one."""
        runs = [k.vjp(**given) for k in (self.kernels[-1:] if quietly else self.kernels)]
        for y, right in itertools.pairwise(runs):
            for name, x, exact in zip(self.names, outputs(y[0]), outputs(right[0]), strict=True):
                self.record.changed(name, x, exact)

        def pullback(*ds: Array) -> dict[str, Array]:
            grads = [back(*ds) for _, back in runs]
            for got, right in itertools.pairwise(grads):
                for name, exact in right.items():
                    self.record.changed(f"d_{name}", got[name], exact)
            return grads[0]

        return outputs(runs[0][0]), pullback


class Record:
    """Lines of JSON in a file that many processes append to: that the function was called, and the largest changes."""

    def __init__(self, path: str) -> None:
        self.path, self.largest = path, dict[str, float]()

    def called(self) -> None:
        """Once."""
        self._largest("called", 0.0)

    def changed(self, what: str, got: Array, exact: Array) -> None:
        """How far a fault has moved an array, relative to its largest element; NaN and infinity count as infinitely far."""
        same = (got == exact) | (np.isnan(got) & np.isnan(exact))
        if same.all():
            return
        with np.errstate(all="ignore"):
            size = np.abs(np.where(np.isfinite(exact), exact, 0)).max()
            far = np.where(same, 0, np.abs(got - exact)).max() / (size or 1)
        self._largest(what, float(far) if np.isfinite(far) else float("inf"))

    def _largest(self, what: str, change: float) -> None:
        if what in self.largest and change <= self.largest[what]:
            return
        self.largest[what] = change
        line = json.dumps([what, change]) + "\n"
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)


def _same(x: Any, default: Any) -> bool:
    return x is default or (type(x) is type(default) and not hasattr(x, "shape") and x == default)
