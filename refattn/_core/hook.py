"""One hook over every intermediate result: observe it, round it, or go on in another arithmetic.

A mechanism, primitive or stage is always called through its decorator, which reports here. With no hook installed this
costs one look-up a call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple, TypeAlias

Kind: TypeAlias = Literal["argument", "output", "cotangent", "gradient"]


class Result(NamedTuple):
    """One named array on its way through a call.

    Attributes
    ----------
    path : tuple of str
        The chain of mechanisms, for example ``("multi_head_attention", "scaled_dot_product_attention")``.
    kind : {"argument", "output", "cotangent", "gradient"}
        Arguments and cotangents are reported of the outermost mechanism only: inside, they are another's outputs.
    name : str
        Its name in the mechanism's signature or outputs; a gradient has its argument's name.
    value : array
        The array itself.
    """

    path: tuple[str, ...]
    kind: Kind
    name: str
    value: Any


Hook: TypeAlias = Callable[[Result], Any]

CURRENT: ContextVar[Hook | None] = ContextVar("refattn_hook", default=None)
PATH: ContextVar[tuple[str, ...]] = ContextVar("refattn_path", default=())


@contextmanager
def hooked(hook: Hook) -> Iterator[None]:
    """Within the block, call `hook` with each `Result`; the array that it returns is used instead, None keeps it.

    A replacement is what the caller of a mechanism sees; the mechanism's own pullback keeps what it computed. A hook that
    returns a subclass of `numpy.ndarray` for the arguments (one that rounds each operation, say) has the whole call,
    inner mechanisms included, go on in that subclass's arithmetic.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> seen = []
    >>> with refattn.hooked(lambda result: seen.append((result.kind, result.name))):
    ...     y = refattn.relu(np.array([-1.0, 2.0]))
    >>> seen
    [('argument', 'x'), ('output', 'output')]
    """
    token = CURRENT.set(hook)
    try:
        yield
    finally:
        CURRENT.reset(token)


def passed(path: tuple[str, ...], kind: Kind, name: str, value: Any) -> Any:
    """The value, as the hook leaves it."""
    hook = CURRENT.get()
    if hook is None or value is None:
        return value
    outside = CURRENT.set(None), PATH.set(())  # a hook may itself call mechanisms: these are no part of the call
    try:
        replaced = hook(Result(path, kind, name, value))
    finally:
        CURRENT.reset(outside[0])
        PATH.reset(outside[1])
    return value if replaced is None else replaced
