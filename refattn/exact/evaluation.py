"""Calls of mechanisms in expansions, with as many components as their results need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from refattn._core import Array, Mechanism, Pullback, tree
from refattn._core.hook import Result, hooked
from refattn._core.mechanism import using
from refattn.exact.expansion import Expansion, expansion
from refattn.exact.replaced import BY_DEFINITION

COMPONENTS = (2, 4, 8)
CLOSE = 2.0**-7
"""How many units in the last place an error bound may be, besides the half that rounding costs: together below 0.51."""
FLOOR = 2.0**-1022
"""The least normal number: an error that underflow may cause."""
NOTHING = 2.0**-300
"""A result within an error of so little, of the largest beside it or of 1, is 0: what mathematics makes 0 stays in no bound."""


@contextmanager
def arithmetic(components: int = 2) -> Iterator[None]:
    """Within the block, all mechanisms compute in sums of so many float64, and return the nearest float64.

    Parameters
    ----------
    components : int, optional
        2 for double-double, of about 106 bits; more for more.

    Raises
    ------
    ValueError
        For fewer than 2.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> x, y = np.array([1e20, 1.0, -1e20]), np.ones((1, 3))
    >>> with refattn.exact.arithmetic():
    ...     refattn.linear(x, y)
    array([1.])
    """
    if components < 2:
        raise ValueError(f"components is {components}, but must be 2 or more")
    with _computing(components, lambda result: None):
        yield


@contextmanager
def _computing(components: int, returned: Callable[[Result], Array | None]) -> Iterator[None]:
    def hook(result: Result) -> Any:
        if result.kind in {"output", "gradient"}:
            return returned(result) if len(result.path) == 1 else None
        if result.value.dtype.kind != "f":
            return None
        if result.value.dtype != np.float64:
            raise TypeError(f"{result.path[0]}: {result.name} is {result.value.dtype}, but refattn.exact computes from float64")
        return expansion(result.value, components)

    with hooked(hook), using(**BY_DEFINITION):
        yield


class _Rounding:
    """What a call in so many components returns, and whether all of it is near enough."""

    def __init__(self, components: int) -> None:
        self.components = components
        self.unsure: list[str] = []

    def __call__(self, call: Callable[[], Any]) -> Any:
        self.unsure = []
        with _computing(self.components, self._returned):
            return call()

    def _returned(self, result: Result) -> Array | None:
        if not isinstance(result.value, Expansion):
            return None
        parts, error = result.value.number
        head = np.array(parts[0])
        near = error <= np.maximum(CLOSE * np.spacing(np.nextafter(np.abs(np.where(np.isfinite(head), head, 0)), 0)), FLOOR)
        sure = near | ~np.isfinite(head)
        if self.components == COMPONENTS[-1] and not sure.all():
            finite = np.where(np.isfinite(head), np.abs(head), 0)
            zero = (np.abs(head) <= error) & (error <= NOTHING * finite.max(initial=1.0))
            head, sure = np.where(zero & ~sure, 0, head), sure | zero
        if not sure.all():
            self.unsure.append(result.name)
        return head


def evaluate(mechanism: Mechanism[..., Any], /, **arguments: Any) -> Any:
    """The outputs of a mechanism to 0.51 units in the last place, the same bits on every machine.

    Parameters
    ----------
    mechanism : mechanism
        Any function of `refattn.mechanisms`.
    **arguments
        Its arguments by name. Their values count as exact.

    Returns
    -------
    array or named tuple of array
        As the mechanism returns, in float64.

    Raises
    ------
    TypeError
        For arguments in longdouble, which is another format on another machine.
    ArithmeticError
        For a result that cancels further than 8 components hold, and is not 0.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.exact.evaluate(refattn.softmax, x=np.array([0.0, 1.0, 2.0]))
    array([0.09003057, 0.24472847, 0.66524096])
    """
    return vjp(mechanism, **arguments)[0]


def vjp(mechanism: Mechanism[..., Any], /, **arguments: Any) -> tuple[Any, Pullback]:
    """The outputs as of `evaluate`, and a pullback whose gradients are as near.

    Parameters
    ----------
    mechanism : mechanism
        Any function of `refattn.mechanisms`.
    **arguments
        Its arguments by name. Their values count as exact.

    Returns
    -------
    outputs : array or named tuple of array
        As the mechanism returns, in float64.
    pullback : callable
        From cotangents, which count as exact, to gradients by name. It raises `ArithmeticError` as `evaluate` does.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> y, pullback = refattn.exact.vjp(refattn.softmax, x=np.array([0.0, 200.0]))
    >>> pullback(np.array([0.0, 1.0]))["x"]
    array([-1.38389653e-87,  1.38389653e-87])
    """
    held = tree.map_leaves(_copied, arguments)  # a pullback may have to go back to them
    forward: dict[int, Any] = {}

    def in_components(components: int) -> list[str]:
        """Run it, and return which outputs are unsure."""
        rounding = _Rounding(components)
        forward[components] = rounding(lambda: mechanism.vjp(**held))
        return rounding.unsure

    y, _ = forward[_sufficient(mechanism, in_components)]

    def pullback(*cotangents: Any, **by_name: Any) -> Any:
        grads: dict[int, Any] = {}

        def back(components: int) -> list[str]:
            if components not in forward:
                in_components(components)
            rounding = _Rounding(components)
            grads[components] = rounding(lambda: forward[components][1](*cotangents, **by_name))
            return rounding.unsure

        return grads[_sufficient(mechanism, back)]

    return y, pullback


def _copied(x: Any) -> Any:
    return x.copy() if isinstance(x, np.ndarray) else x


def _sufficient(mechanism: Mechanism[..., Any], unsure: Callable[[int], list[str]]) -> int:
    """The least number of components with which nothing is unsure."""
    names: list[str] = []
    for components in COMPONENTS:
        names = unsure(components)
        if not names:
            return components
    raise ArithmeticError(f"{mechanism.__name__}: {', '.join(names)} cancels further than {COMPONENTS[-1]} components of float64 reach")
