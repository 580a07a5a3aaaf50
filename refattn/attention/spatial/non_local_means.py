"""Non-local means: a pixel becomes the mean of all pixels whose surroundings are like its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

import numpy as np

from refattn._core import Array, BadCall, Booleans, Grads, Integers, Pullback, Random, Sample, like, mechanism
from refattn.attention.score.rule import average
from refattn.primitives.arithmetic import multiply
from refattn.primitives.attention_stages import scaled
from refattn.primitives.distance import squared_distances
from refattn.primitives.indexing import gather
from refattn.primitives.padding import PaddingMode, pad
from refattn.primitives.reductions import max_over

SelfWeight: TypeAlias = Literal["own", "largest"]


def _samples(random: Random) -> Iterator[Sample]:
    inputs = {"x": random.normal((2, 2, 4, 5)), "h": 1.25, "patch_size": 3}
    yield Sample("plain", {"x": random.normal((1, 1, 4, 4)), "h": 1.5})
    yield Sample("all pixels", {**inputs, "h": np.asarray(random.uniform(1.0, 1.5))})
    yield Sample("for each image", {**inputs, "h": random.uniform(1.0, 1.5, 2), "window": 2})
    yield Sample("gaussian patches", {**inputs, "patch_std": 0.75, "padding_mode": "replicate"})
    yield Sample("largest", {**inputs, "self_weight": "largest", "window": (1, 2)})
    yield Sample("nothing to compare", {**inputs, "x": random.normal((1, 1, 3, 3)), "self_weight": "largest", "window": (0, 1)})
    yield Sample("zeros", {**inputs, "padding_mode": "zeros", "window": 1})
    yield Sample("circular", {"x": random.normal((1, 1, 7, 5)), "h": 1.5, "padding_mode": "circular"})


def _bad_calls(random: Random) -> Iterator[BadCall]:
    inputs = {"x": random.normal((2, 1, 4, 5)), "h": 1.25, "patch_size": 3}
    yield BadCall("no middle", {**inputs, "patch_size": 4}, ValueError, "patch_size is 4, but must be odd")
    yield BadCall("h of 0", {**inputs, "h": 0.0}, ValueError, "h is 0.0, but must not be 0")
    yield BadCall("h of nearly 0", {**inputs, "h": np.asarray([1.0, 1e-200])}, ValueError, "h is .*, but must not be 0")
    yield BadCall("far reflection", {**inputs, "patch_size": 9}, ValueError, "padding is .*, but reflect allows at most 3")
    yield BadCall("three bandwidths", {**inputs, "h": random.uniform(1.0, 2.0, 3)}, ValueError, r"h \(3,\) does not broadcast to \(2,\)")


def _benchmark(random: Random) -> dict[str, Any]:
    return {"x": random.normal((1, 1, 32, 32)), "h": 1.0, "patch_size": 5, "window": 10}


@mechanism(tags={"softmax", "quadratic"}, samples=_samples, bad_calls=_bad_calls, benchmark=_benchmark)
def non_local_means(
    x: Array,
    h: Array | float,
    *,
    patch_size: int = 7,
    patch_std: float | None = None,
    window: int | tuple[int, int] | None = None,
    padding_mode: PaddingMode = "reflect",
    self_weight: SelfWeight = "own",
) -> tuple[Array, Pullback]:
    r"""Replace each pixel by a mean of pixels, weighted by how near their patches are to its patch.

    Parameters
    ----------
    x : array, shape (batch, channels, height, width)
        Images with noise.
    h : float or array, broadcastable to (batch)
        How far patches may be apart, in the unit of the image; 10 times the deviation of the noise in the paper. A number has no
        gradient, an array has one.
    patch_size : positive int, optional
        Odd number of rows and of columns around a pixel that are compared.
    patch_std : positive float or None, optional
        Deviation in pixels, the paper's a, of a Gaussian by which the pixels of a patch count; None counts them alike.
    window : non-negative int or (non-negative int, non-negative int) or None, optional
        How many rows and columns away a pixel may lie that is compared with; None is no limit. The paper computes with 10.
    padding_mode : {"zeros", "reflect", "replicate", "circular"}, optional
        What patches hold beyond the border; such pixels are compared, but never averaged.
    self_weight : {"own", "largest"}, optional
        Weight of a pixel in its own mean before the division by the sum: 1 by the paper's equation, which no other exceeds; or
        the largest of the others', as is common practice.

    Returns
    -------
    array, shape (batch, channels, height, width)
        Images with less noise.

    Notes
    -----
    Sizes: ``channels >= 1``, ``height >= 1``, ``width >= 1``.

    .. math::

        y_i = \sum_j w_{ij} x_j, \quad w_{ij} = \operatorname{softmax}_j \Bigl(-\frac{d_{ij}^2}{h^2}\Bigr), \quad
        d_{ij}^2 = \frac{1}{C} \sum_{c, t} a_t\, (x_{c, i + t} - x_{c, j + t})^2, \quad \sum_t a_t = 1

    .. math::

        \bar s_{ij} = w_{ij}\, \bar y_i^\top (x_j - y_i), \quad \bar h = \frac{2}{h^3} \sum_{ij} d_{ij}^2 \bar s_{ij}, \quad
        \bar x_j = \sum_i w_{ij} \bar y_i + \dots

    for grey images in the paper; several channels have one distance, the mean of theirs. Where several others are the largest, the
    first of them takes the gradient.

    This is attention whose queries and keys are the patches p: since :math:`-\|p_i - p_j\|^2 = 2 p_i^\top p_j - \|p_j\|^2 - \|p_i\|^2`
    and a softmax does not see what all keys have in common, it is `scaled_dot_product_attention` with a scale of 2 / h^2 and a bias
    of :math:`-\|p_j\|^2 / h^2`.

    scikit-image, with a `patch_std` of a quarter of the patch's size less 1, gives weight 0 to patches that are far apart, takes the
    noise that it is told of off the distances, and has an exponential that is exact to some per cent.

    References
    ----------
    .. [1] Buades, Coll, Morel, "A Non-local Algorithm for Image Denoising", CVPR 2005, section 3; window and h, section 5.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> x = np.array([[[[0.0, 0.0, 9.0, 9.0]]]])
    >>> refattn.non_local_means(x, 0.1, patch_size=1)  # far pixels count nothing, and like ones count alike
    array([[[[0., 0., 9., 9.]]]])
    >>> refattn.non_local_means(x, 1e9, patch_size=1)
    array([[[[4.5, 4.5, 4.5, 4.5]]]])
    """
    if patch_size % 2 == 0:
        raise ValueError(f"patch_size is {patch_size}, but must be odd")
    if not np.isfinite(1 / np.square(h)).all():
        raise ValueError(f"h is {h}, but must not be 0, nor so near to it that 1 / h ** 2 is infinite")
    batch, channels, height, width = x.shape
    radius, pixels = patch_size // 2, height * width
    bandwidth = h[..., None, None] if isinstance(h, np.ndarray) else like(x, h)
    taps = _tap_weights(patch_size, patch_std, x)

    padded, pad_pullback = pad.vjp(x, padding=((radius, radius),) * 2, mode=padding_mode)
    flat = np.moveaxis(padded.reshape(batch, channels, (height + 2 * radius) * (width + 2 * radius)), -1, 0)
    patches, gather_pullback = gather.vjp(flat, _tap_positions(height, width, patch_size))
    counted, count_pullback = multiply.vjp(patches, np.sqrt(taps / channels)[:, None, None])
    vectors = np.moveaxis(counted, 2, 0).reshape(batch, pixels, len(taps) * channels)
    near = np.broadcast_to(_near(height, width, window), (batch, pixels, pixels))
    distances, distance_pullback = squared_distances.vjp(vectors, vectors, mask=near)
    own_scores, scale_pullback = scaled.vjp(distances, -1 / bandwidth**2)
    scores, self_pullback = _self_scored(own_scores, near, self_weight)
    (means, weights), average_pullback = average(scores, x.reshape(batch, channels, pixels).swapaxes(1, 2), near, "zero")

    def pullback(dy: Array) -> Grads:
        d = average_pullback(dy.reshape(batch, channels, pixels).swapaxes(1, 2), np.zeros_like(weights))
        d_scaled = scale_pullback(self_pullback(d["scores"]))
        d_vectors = distance_pullback(d_scaled["scores"])
        d_counted = np.moveaxis((d_vectors["a"] + d_vectors["b"]).reshape(batch, *counted.shape[:2], channels), 0, 2)
        d_flat = gather_pullback(count_pullback(d_counted)["a"])["x"]
        d_padded = pad_pullback(np.moveaxis(d_flat, 0, -1).reshape(padded.shape))
        d_bandwidth = 2 / bandwidth**3 * d_scaled.get("scale", 0)
        return {
            "x": d_padded["x"] + d["value"].swapaxes(1, 2).reshape(x.shape),
            "h": np.reshape(d_bandwidth, np.shape(h)) if "scale" in d_scaled else None,
        }

    return means.swapaxes(1, 2).reshape(x.shape), pullback


def _tap_weights(patch_size: int, patch_std: float | None, x: Array) -> Array:
    """How much each pixel of a patch counts, row after row; the sum is 1."""
    away = like(x, np.arange(patch_size) - patch_size // 2) / (np.inf if patch_std is None else patch_std)
    kernel = np.exp(-(away[:, None] ** 2 + away**2) / 2).reshape(patch_size**2)
    return kernel / kernel.sum()


def _tap_positions(height: int, width: int, patch_size: int) -> Integers:
    """Where the pixels of each patch stand in the padded image, row after row: an array (height * width, patch_size ** 2)."""
    rows, columns = (np.arange(n)[:, None] + np.arange(patch_size) for n in (height, width))
    positions = rows[:, None, :, None] * (width + patch_size - 1) + columns[None, :, None, :]
    return positions.reshape(height * width, patch_size**2)


def _near(height: int, width: int, window: int | tuple[int, int] | None) -> Booleans:
    """Which pixels a pixel is compared with."""
    most = (height, width) if window is None else (window, window) if isinstance(window, int) else window
    rows, columns = (abs(np.arange(n)[:, None] - np.arange(n)) <= m for n, m in zip((height, width), most, strict=True))
    return (rows[:, None, :, None] & columns[None, :, None, :]).reshape(height * width, height * width)


def _self_scored(scores: Array, near: Booleans, self_weight: SelfWeight) -> tuple[Array, Any]:
    """The scores, of which a pixel's own may be the largest of the others', where there are any."""
    if self_weight == "own":
        return scores, lambda d: d
    pixels = np.arange(scores.shape[-1])
    others = near & (pixels[:, None] != pixels)
    own = (pixels[:, None] == pixels) & others.any(axis=-1)[..., None]
    largest, max_pullback = max_over.vjp(np.where(others, scores, -np.inf), axes=-1)

    def pullback(d: Array) -> Array:
        d_largest = np.where(own, d, 0).sum(axis=-1)
        return np.where(own, 0, d) + np.where(others, max_pullback(d_largest)["x"], 0)

    return np.where(own, largest[..., None], scores), pullback
