"""Running sums along one axis."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from refattn._core import Array, BadCall, Grads, Pullback, Random, Sample, mechanism


def _samples(random: Random) -> Iterator[Sample]:
    yield Sample("last axis", {"x": random.normal((2, 3, 5))})
    yield Sample("first axis", {"x": random.normal((4, 3)), "axis": 0})
    yield Sample("nothing to sum", {"x": random.normal((2, 0))})


def _bad_calls(random: Random) -> Iterator[BadCall]:
    yield BadCall("no such axis", {"x": random.normal((2, 3)), "axis": 2}, ValueError, "axis is 2, but x has 2 axes")


@mechanism(samples=_samples, bad_calls=_bad_calls)
def cumsum(x: Array, *, axis: int = -1) -> tuple[Array, Pullback]:
    r"""Sum of each element of an axis and all before it.

    Parameters
    ----------
    x : array, shape (...)
        Input.
    axis : int, optional
        Along which; a negative one counts from the last.

    Returns
    -------
    array, shape (...)
        Running sums.

    Notes
    -----
    .. math::

        y_i = \sum_{j \le i} x_j, \qquad \bar x_j = \sum_{i \ge j} \bar y_i

    Examples
    --------
    >>> import numpy as np, refattn
    >>> y, pullback = refattn.cumsum.vjp(np.array([1.0, 2.0, 4.0]))
    >>> y, pullback(np.ones(3))["x"]
    (array([1., 3., 7.]), array([3., 2., 1.]))
    """
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"axis is {axis}, but x has {x.ndim} axes")

    def pullback(dy: Array) -> Grads:
        return {"x": np.flip(np.cumsum(np.flip(dy, axis), axis=axis), axis)}

    return np.cumsum(x, axis=axis), pullback
