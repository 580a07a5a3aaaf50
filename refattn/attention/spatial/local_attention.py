"""Attention of each position of a map to a square of neighbours around it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

import numpy as np

from refattn._core import Array, BadCall, Booleans, Grads, Pullback, Random, Sample, like, mechanism
from refattn.attention.dot_product.scaled_dot_product import scaled_dot_product_attention
from refattn.convolution.unfold import unfold2d
from refattn.primitives.arithmetic import add
from refattn.primitives.linear import linear

Border: TypeAlias = Literal["reflect", "masked"]


def _samples(random: Random) -> Iterator[Sample]:
    maps = {name: random.normal((2, 4, 4, 3)) for name in ("query", "key")}
    given = {**maps, "value": random.normal((2, 2, 4, 3)), "num_heads": 2, "kernel_size": 3}
    yield Sample("no positions", given)
    yield Sample("reflect", {**given, "w_position": random.normal((2, 2))})
    yield Sample("masked", {**given, "w_position": random.normal((2, 2)), "border": "masked", "kernel_size": 5})
    yield Sample("stride", {**given, "stride": 2, "w_position": random.normal((2, 2))})
    yield Sample("one head", {**given, "stride": 3, "border": "masked", "num_heads": 1})
    row = {name: random.normal((1, 1, 1, 4)) for name in ("query", "key", "value")}
    yield Sample("one row", {**row, "w_position": random.normal((1, 2)), "num_heads": 1, "kernel_size": 3, "border": "masked"})


def _bad_calls(random: Random) -> Iterator[BadCall]:
    given = {name: random.normal((2, 4, 4, 3)) for name in ("query", "key", "value")} | {"num_heads": 2, "kernel_size": 3}
    yield BadCall("no middle", {**given, "kernel_size": 2}, ValueError, "kernel_size is 2, but must be odd")
    yield BadCall("far reflection", {**given, "kernel_size": 7}, ValueError, r"kernel_size is 7, but .* of \(4, 3\) allows at most 5")
    yield BadCall("heads that do not divide", {**given, "num_heads": 3}, ValueError, r"num_heads \* head_dim is 4 in query")
    yield BadCall("another size", {**given, "key": random.normal((2, 4, 3, 3))}, ValueError, "height is")
    yield BadCall("no width", {**given, **{n: random.normal((2, 4, 4, 0)) for n in ("query", "key", "value")}}, ValueError, "width is 0")


def _benchmark(random: Random) -> dict[str, Any]:
    maps = {name: random.normal((1, 64, 28, 28)) for name in ("query", "key", "value")}
    return {**maps, "w_position": random.normal((16, 2)), "num_heads": 4, "kernel_size": 7}


@mechanism(tags={"softmax"}, samples=_samples, bad_calls=_bad_calls, benchmark=_benchmark)
def local_attention_2d(
    query: Array,
    key: Array,
    value: Array,
    w_position: Array | None = None,
    *,
    num_heads: int,
    kernel_size: int,
    stride: int = 1,
    border: Border = "reflect",
) -> tuple[Array, Pullback]:
    r"""Let each position of a map attend to the square of positions around it.

    Parameters
    ----------
    query : array, shape (batch, num_heads * head_dim, height, width)
        Queries, head after head; with a stride, some of them are not read.
    key : array, shape (batch, num_heads * head_dim, height, width)
        Keys.
    value : array, shape (batch, num_heads * value_dim, height, width)
        Values.
    w_position : array or None, shape (head_dim, 2), optional
        Makes of the coordinates from neighbour to query, first the horizontal ones, what is added to the key; all heads share it.
        Both coordinates run from -1 to 1 over the map.
    num_heads : positive int
        Heads.
    kernel_size : positive int
        Height and width of the square, an odd number.
    stride : positive int, optional
        Step from one query that is answered to the next.
    border : {"reflect", "masked"}, optional
        What a square has beyond the edge: the mirror image of the map (key, value and position), as in the authors' code, or
        nothing, as where the neighbours are the positions that there are.

    Returns
    -------
    array, shape (batch, num_heads * value_dim, out_height, out_width)
        What the squares give; each axis has ``ceil(size / stride)`` positions.

    Notes
    -----
    Sizes: ``height >= 1``, ``width >= 1``, ``head_dim >= 1``.

    With N(i) the square around i, d the width of a head, c the coordinates and W the weight of positions, in each head:

    .. math::

        o_i = \sum_{j \in N(i)} p_{ij} v_j, \quad
        p_{ij} = \operatorname{softmax}_{j \in N(i)} \frac{q_i^\top (k_j + W (c_i - c_j))}{\sqrt d}, \qquad
        \bar v_j = \sum_{i : j \in N(i)} p_{ij} \bar o_i, \quad
        \bar s_{ij} = \frac{p_{ij}}{\sqrt d} (v_j - o_i)^\top \bar o_i, \quad
        \bar k_j = \sum_{i : j \in N(i)} \bar s_{ij} q_i

    .. math::

        \bar q_i = \sum_{j \in N(i)} \bar s_{ij} (k_j + W (c_i - c_j)), \quad
        \bar W = \sum_{i, j \in N(i)} \bar s_{ij} q_i (c_i - c_j)^\top

    References
    ----------
    .. [1] Pan et al., "On the Integration of Self-Attention and Convolution", CVPR 2022, section 3. arXiv:2111.14556.
    .. [2] Ramachandran et al., "Stand-Alone Self-Attention in Vision Models", NeurIPS 2019. arXiv:1906.05909.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> x = np.array([[[[1.0, 2.0, 6.0]]]])
    >>> refattn.local_attention_2d(0 * x, x, x, num_heads=1, kernel_size=3, border="masked")  # equal weights: means
    array([[[[1.5, 3. , 4. ]]]])
    """
    height, width = query.shape[2:]
    reach = kernel_size // 2
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size is {kernel_size}, but must be odd: a square has its query in the middle")
    if border == "reflect" and reach >= min(height, width):
        raise ValueError(
            f"kernel_size is {kernel_size}, but the mirror image of {height, width} allows at most {2 * min(height, width) - 1}"
        )
    window: dict[str, Any] = {"kernel_size": kernel_size, "stride": stride, "padding": reach}
    mode = "reflect" if border == "reflect" else "zeros"
    keys, key_pullback = unfold2d.vjp(key, **window, padding_mode=mode)
    values, value_pullback = unfold2d.vjp(value, **window, padding_mode=mode)
    out, answered = keys.shape[3:], (slice(None), slice(None), None, slice(None, None, stride), slice(None, None, stride))
    offsets, inside = _neighbours((height, width), kernel_size, stride, key)
    placed, place_pullback = _placed(_squares(keys, num_heads), w_position, offsets)
    mask = inside[:, None, None] if border == "masked" else None
    asked = _squares(query[answered], num_heads)
    attended, attention_pullback = scaled_dot_product_attention.vjp(asked, placed, _squares(values, num_heads), mask=mask)

    def pullback(dy: Array) -> Grads:
        d = attention_pullback(_squares(dy[:, :, None], num_heads))
        d_placed = place_pullback(d["key"])
        d_query = np.zeros_like(query)
        d_query[answered] = _maps(d["query"], out)
        return {
            "query": d_query,
            "key": key_pullback(_maps(d_placed["a"], out))["x"],
            "value": value_pullback(_maps(d["value"], out))["x"],
            "w_position": d_placed.get("w_position"),
        }

    return _maps(attended, out)[:, :, 0], pullback


def _squares(x: Array, heads: int) -> Array:
    """From (batch, heads * width, taps, *out) to (batch, positions, heads, taps, width): each position is a query with its own keys."""
    batch, channels, taps, *out = x.shape
    return x.reshape(batch, heads, channels // heads, taps, math.prod(out)).transpose(0, 4, 1, 3, 2)


def _maps(x: Array, out: tuple[int, ...]) -> Array:
    """Undo `_squares`."""
    batch, _, heads, taps, width = x.shape
    return x.transpose(0, 2, 4, 3, 1).reshape(batch, heads * width, taps, *out)


def _placed(keys: Array, w_position: Array | None, offsets: Array) -> tuple[Array, Pullback]:
    """The keys with what their coordinates add, as they are where there are no weights."""
    if w_position is None:
        return keys, lambda dy: {"a": dy}
    steps, step_pullback = linear.vjp(offsets, w_position)
    placed, add_pullback = add.vjp(keys, steps[:, None])

    def pullback(dy: Array) -> Grads:
        d_add = add_pullback(dy)
        return {"a": d_add["a"], "w_position": step_pullback(d_add["b"][:, 0])["weight"]}

    return placed, pullback


def _neighbours(size: tuple[int, int], kernel: int, stride: int, x: Array) -> tuple[Array, Booleans]:
    """For each position and tap: the coordinates from neighbour to query, horizontal ones first, and whether it is in the map."""
    (down, rows), (across, columns) = (_along(n, kernel, stride, x) for n in size)
    shape = (len(down), len(across), kernel, kernel)
    both = [np.broadcast_to(coordinates, shape) for coordinates in (across[:, None], down[:, None, :, None])]
    inside = rows[:, None, :, None] & columns[:, None]
    return np.stack(both, axis=-1).reshape(-1, kernel**2, 2), inside.reshape(-1, kernel**2)


def _along(size: int, kernel: int, stride: int, x: Array) -> tuple[Array, Booleans]:
    """The same along one axis (out, kernel), on which a position beyond the edge has the coordinate of its mirror image."""
    queries, last = np.arange(0, size, stride)[:, None], size - 1
    beside = queries + np.arange(kernel) - kernel // 2
    mirrored = last - np.abs(last - np.abs(beside))
    return like(x, 2 * (queries - mirrored)) / max(last, 1), (beside >= 0) & (beside <= last)
