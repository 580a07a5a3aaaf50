"""Options of plain functions, held to their docstrings as those of mechanisms are."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from refattn._core.docstring import options_in
from refattn._core.mechanism import SILENT

P = ParamSpec("P")
T = TypeVar("T")


def stated(function: Callable[P, T]) -> Callable[P, T]:
    """Refuse what the docstring does not state of an option; what it states of other arguments is the function's to check."""
    signature, name = inspect.signature(function), function.__name__
    options = functools.cache(lambda: options_in(function.__doc__ or ""))

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            bound: dict[str, Any] = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(f"{name}: {error}") from None
        for option, statement in options().items():
            if option in bound:
                statement.check(f"{name}: {option}", bound[option])
        with SILENT():
            return function(*args, **kwargs)

    cast("Any", checked).options = options
    return checked
