"""Padding: more positions at both ends of the last axes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

import numpy as np

from refattn._core import Array, BadCall, Grads, Pullback, Random, Sample, mechanism

PaddingMode: TypeAlias = Literal["zeros", "reflect", "replicate", "circular"]
NUMPY_MODES: dict[str, Any] = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def _samples(random: Random) -> Iterator[Sample]:
    x = random.normal((2, 3, 4))
    yield Sample("zeros", {"x": x, "padding": ((1, 2), (0, 3))})
    yield Sample("reflect", {"x": x, "padding": ((1, 2), (3, 0)), "mode": "reflect"})
    yield Sample("replicate", {"x": x, "padding": ((1, 5),), "mode": "replicate"})
    yield Sample("circular", {"x": x, "padding": ((3, 2), (4, 1)), "mode": "circular"})


def _bad_calls(random: Random) -> Iterator[BadCall]:
    x = random.normal((2, 3))
    yield BadCall("too many pairs", {"x": x, "padding": ((0, 0),) * 3}, ValueError, "padding has 3 pairs, but x has 2 axes")
    yield BadCall(
        "far reflection", {"x": x, "padding": ((3, 0),), "mode": "reflect"}, ValueError, "padding is .*, but reflect allows at most 2"
    )
    yield BadCall(
        "twice around", {"x": x, "padding": ((0, 4),), "mode": "circular"}, ValueError, "padding is .*, but circular allows at most 3"
    )
    yield BadCall(
        "no edge", {"x": x[:, :0], "padding": ((1, 0),), "mode": "replicate"}, ValueError, "padding is .*, but replicate allows at most 0"
    )


@mechanism(samples=_samples, bad_calls=_bad_calls)
def pad(x: Array, *, padding: tuple[tuple[int, int], ...], mode: PaddingMode = "zeros") -> tuple[Array, Pullback]:
    r"""Put more positions before and after the last axes.

    Parameters
    ----------
    x : array, shape (...)
        Input.
    padding : tuple of (non-negative int, non-negative int)
        How many positions before and after, for each of the last ``len(padding)`` axes.
    mode : {"zeros", "reflect", "replicate", "circular"}, optional
        What stands there: zeros; the mirror image, in which the first and last position stand once (less than the size of the
        axis); the first and last position again; the positions from the other end (at most the size).

    Returns
    -------
    array, shape (*out_positions)
        Input with its borders.

    Notes
    -----
    Along each axis, `\sigma(p)` is the position of the input that stands at position p of the output; zeros have none.

    .. math::

        y_p = x_{\sigma(p)}, \qquad \bar x_q = \sum_{p:\, \sigma(p) = q} \bar y_p

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.pad(np.array([1.0, 2.0, 3.0]), padding=((2, 1),), mode="reflect")
    array([3., 2., 1., 2., 3., 2.])
    """
    if len(padding) > x.ndim:
        raise ValueError(f"padding has {len(padding)} pairs, but x has {x.ndim} axes")
    axes = tuple(range(x.ndim - len(padding), x.ndim))
    for axis, pair in zip(axes, padding, strict=True):
        n = x.shape[axis]
        most = {"reflect": max(n - 1, 0), "circular": n, "replicate": max(pair) if n else 0}.get(mode)
        if most is not None and max(pair) > most:
            raise ValueError(f"padding is {padding}, but {mode} allows at most {most} along an axis of {n}")
    y = np.pad(x, ((0, 0),) * (x.ndim - len(padding)) + padding, mode=NUMPY_MODES[mode]) if any(map(any, padding)) else x

    def pullback(dy: Array) -> Grads:
        d = dy
        for axis, pair in zip(axes, padding, strict=True):
            d = _fold(d, axis, pair, x.shape[axis], mode)
        return {"x": d}

    return y, pullback


def _fold(dy: Array, axis: int, pair: tuple[int, int], size: int, mode: PaddingMode) -> Array:
    """Each border position along one axis, added to the position that it is a copy of."""
    along = np.moveaxis(dy, axis, -1)
    inner = along[..., pair[0] : pair[0] + size].copy()
    if mode != "zeros" and size:
        source = np.pad(np.arange(size), pair, mode=NUMPY_MODES[mode])
        for p in (*range(pair[0]), *range(pair[0] + size, len(source))):
            inner[..., source[p]] += along[..., p]
    return np.moveaxis(inner, -1, axis)
