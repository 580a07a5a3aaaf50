"""Descent: from a loss, weights and batches to better weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeAlias

from refattn import optim
from refattn._core import Pullback

Loss: TypeAlias = Callable[..., tuple[Any, Pullback]]
"""From weights and a batch to the loss, and a pullback whose gradients hold ``"weights"``."""


class Step(NamedTuple):
    """One step of a descent.

    Attributes
    ----------
    loss : float
        What the loss was before it.
    weights : record
        What the weights are after it.
    """

    loss: float
    weights: Any


def descend(loss: Loss, weights: Any, batches: Iterable[tuple[Any, ...]], learning_rate: float | Callable[[int], float]) -> Iterator[Step]:
    """One step of Adam for each batch.

    Parameters
    ----------
    loss : callable
        ``loss(weights, *batch)`` is a number and its pullback.
    weights : record
        Where to begin.
    batches : iterable of tuple
        What the loss is of.
    learning_rate : float or callable
        Step size, or a function that gives it for each step, the first of which is 0.

    Yields
    ------
    Step
        The loss before the step, and the weights after it.
    """
    state = None
    for number, batch in enumerate(batches):
        value, pullback = loss(weights, *batch)
        rate = learning_rate(number) if callable(learning_rate) else learning_rate
        weights, state = optim.adam(weights, pullback(1.0)["weights"], state, learning_rate=rate)
        yield Step(float(value), weights)
