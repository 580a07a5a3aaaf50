"""Positions as sines and cosines of many frequencies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

import numpy as np

from refattn._core import Array, BadCall, Grads, Pullback, Random, Sample, like, mechanism
from refattn.positional.maps import First, spread
from refattn.primitives.arithmetic import add

Order: TypeAlias = Literal["interleaved", "halves"]


def _samples(random: Random) -> Iterator[Sample]:
    inputs = {"positions": random.uniform(0.0, 8.0, (2, 3)), "model_dim": 6}
    yield Sample("interleaved", inputs)
    yield Sample("halves", {**inputs, "order": "halves"})
    yield Sample("another base", {**inputs, "base": 50.0, "model_dim": 4})
    yield Sample("one position", {**inputs, "positions": np.asarray(2.5)})


def _bad_calls(random: Random) -> Iterator[BadCall]:
    odd = {"positions": random.normal(3), "model_dim": 5}
    yield BadCall("odd number of features", odd, ValueError, "model_dim is 5, but must be even")


@mechanism(samples=_samples, bad_calls=_bad_calls)
def sinusoidal_encoding(positions: Array, *, model_dim: int, base: float = 10000.0, order: Order = "interleaved") -> tuple[Array, Pullback]:
    r"""Sines and cosines of a position, with wavelengths in geometric progression.

    Parameters
    ----------
    positions : array, shape (...)
        Positions; they need not be whole numbers.
    model_dim : non-negative int
        How many features a position becomes; even, since each frequency has a sine and a cosine.
    base : positive float, optional
        The longest wavelength approaches ``2 * pi * base``; the shortest is ``2 * pi``.
    order : {"interleaved", "halves"}, optional
        Sine and cosine of one frequency beside each other, as the paper has them, or all sines before all cosines.

    Returns
    -------
    array, shape (..., model_dim)
        Encoding.

    Notes
    -----
    With :math:`\omega_i = b^{-2 i / d}`, and columns :math:`2i, 2i + 1` being :math:`i, i + d / 2` where `order` is
    ``"halves"``,

    .. math::

        y_{p, 2i} = \sin \omega_i p, \quad y_{p, 2i + 1} = \cos \omega_i p, \qquad
        \bar p = \sum_i \omega_i (\cos(\omega_i p)\, \bar y_{p, 2i} - \sin(\omega_i p)\, \bar y_{p, 2i + 1})

    References
    ----------
    .. [1] Vaswani et al., "Attention Is All You Need", NeurIPS 2017, section 3.5. arXiv:1706.03762.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.sinusoidal_encoding(np.array([0.0, np.pi / 2]), model_dim=2).round(6)
    array([[0., 1.],
           [1., 0.]])
    """
    if model_dim % 2:
        raise ValueError(f"model_dim is {model_dim}, but must be even: each frequency has a sine and a cosine")
    frequencies = like(positions, base) ** (-like(positions, np.arange(0, model_dim, 2)) / model_dim)
    angles = positions[..., None] * frequencies
    sines, cosines = np.sin(angles), np.cos(angles)
    axis = -1 if order == "interleaved" else -2
    both = np.stack([sines, cosines], axis=axis)

    def pullback(dy: Array) -> Grads:
        d_sines, d_cosines = np.moveaxis(dy.reshape(both.shape), axis, 0)
        return {"positions": ((cosines * d_sines - sines * d_cosines) * frequencies).sum(axis=-1)}

    return both.reshape(*positions.shape, model_dim), pullback


def _add_samples(random: Random) -> Iterator[Sample]:
    inputs = {"x": random.normal((2, 3, 6))}
    yield Sample("plain", inputs)
    yield Sample("later", {**inputs, "offset": 5, "order": "halves"})
    yield Sample("another base", {**inputs, "base": 50.0})


def _add_bad_calls(random: Random) -> Iterator[BadCall]:
    yield BadCall("odd number of features", {"x": random.normal((3, 5))}, ValueError, "model_dim is 5, but must be even")


def _benchmark(random: Random) -> dict[str, Any]:
    return {"x": random.normal((8, 512, 768))}


@mechanism(samples=_add_samples, bad_calls=_add_bad_calls, benchmark=_benchmark)
def add_sinusoidal(x: Array, *, base: float = 10000.0, order: Order = "interleaved", offset: int = 0) -> tuple[Array, Pullback]:
    r"""Add to each token the sines and cosines of its position.

    Parameters
    ----------
    x : array, shape (..., length, model_dim)
        Tokens, an even number of features each. The paper multiplies its embeddings by ``sqrt(model_dim)`` before.
    base : positive float, optional
        The longest wavelength approaches ``2 * pi * base``.
    order : {"interleaved", "halves"}, optional
        Sine and cosine of one frequency beside each other, as the paper has them, or all sines before all cosines.
    offset : non-negative int, optional
        Position of the first token.

    Returns
    -------
    array, shape (..., length, model_dim)
        Tokens that know their position.

    Notes
    -----
    .. math::

        y_t = x_t + \operatorname{PE}(t_0 + t), \qquad \bar x = \bar y

    with the encoding of `sinusoidal_encoding`.

    References
    ----------
    .. [1] Vaswani et al., "Attention Is All You Need", NeurIPS 2017, section 3.5. arXiv:1706.03762.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.add_sinusoidal(np.zeros((2, 2))).round(2)
    array([[0.  , 1.  ],
           [0.84, 0.54]])
    """
    positions = like(x, offset + np.arange(x.shape[-2]))
    encoding, _ = sinusoidal_encoding.vjp(positions, model_dim=x.shape[-1], base=base, order=order)
    output, add_pullback = add.vjp(x, encoding)
    return output, lambda dy: {"x": add_pullback(dy)["a"]}


def _map_samples(random: Random) -> Iterator[Sample]:
    inputs = {"x": random.normal((2, 8, 3, 4))}
    yield Sample("plain", inputs)
    yield Sample("column first", {**inputs, "first": "width", "order": "halves"})
    yield Sample("to the extent", {**inputs, "extent": 6.25, "base": 50.0})


def _map_bad_calls(random: Random) -> Iterator[BadCall]:
    yield BadCall("half an encoding", {"x": random.normal((1, 6, 2, 2))}, ValueError, "x has 6 channels, but needs a multiple of 4")


def _map_benchmark(random: Random) -> dict[str, Any]:
    return {"x": random.normal((8, 256, 32, 32))}


def _coordinates(count: int, extent: float | None, x: Array) -> Array:
    steps = like(x, np.arange(count))
    return steps if extent is None else (steps + 1) * extent / count


@mechanism(samples=_map_samples, bad_calls=_map_bad_calls, benchmark=_map_benchmark)
def add_sinusoidal_2d(
    x: Array, *, base: float = 10000.0, order: Order = "interleaved", first: First = "height", extent: float | None = None
) -> tuple[Array, Pullback]:
    r"""Add to each position of a feature map the sines and cosines of its row and of its column.

    Parameters
    ----------
    x : array, shape (batch, channels, height, width)
        Feature maps, a multiple of four channels each.
    base : positive float, optional
        The longest wavelength approaches ``2 * pi * base``.
    order : {"interleaved", "halves"}, optional
        Within the half of the channels that tells one coordinate: sine and cosine of one frequency beside each other, or all
        sines before all cosines.
    first : {"height", "width"}, optional
        Which coordinate the lower half of the channels tells.
    extent : positive float or None, optional
        The coordinate of the last row and of the last column; the first row then has ``extent / height``. None counts 0, 1, 2, ...

    Returns
    -------
    array, shape (batch, channels, height, width)
        Feature maps that know their positions.

    Notes
    -----
    DETR's code is ``extent=2 * pi``, but for 1e-6 that it adds to the height and the width that it divides by. MAE's is
    ``order="halves", first="width"``.

    .. math::

        y_{c, i, j} = x_{c, i, j} + \begin{cases}
            \operatorname{PE}_c(r_i) & c < C / 2 \\ \operatorname{PE}_{c - C / 2}(s_j) & c \ge C / 2
        \end{cases}, \qquad \bar x = \bar y

    with the encoding of `sinusoidal_encoding` in C / 2 features.

    References
    ----------
    .. [1] Vaswani et al., "Attention Is All You Need", NeurIPS 2017, section 3.5. arXiv:1706.03762.
    .. [2] Carion et al., "End-to-End Object Detection with Transformers", ECCV 2020. arXiv:2005.12872.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.add_sinusoidal_2d(np.zeros((1, 4, 1, 2)), first="width").round(2)[0, :, 0]
    array([[0.  , 0.84],
           [1.  , 0.54],
           [0.  , 0.  ],
           [1.  , 1.  ]])
    """
    _, channels, height, width = x.shape
    if channels % 4:
        raise ValueError(f"x has {channels} channels, but needs a multiple of 4: a sine and a cosine for each of two coordinates")
    options: dict[str, Any] = {"model_dim": channels // 2, "base": base, "order": order}
    rows, _ = sinusoidal_encoding.vjp(_coordinates(height, extent, x), **options)
    columns, _ = sinusoidal_encoding.vjp(_coordinates(width, extent, x), **options)
    encoding, _ = spread(rows, columns, first)
    output, add_pullback = add.vjp(x, encoding)
    return output, lambda dy: {"x": add_pullback(dy)["a"]}
