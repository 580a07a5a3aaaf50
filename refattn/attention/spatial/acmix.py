"""ACmix: attention to the neighbours and a convolution, made of the same three projections."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from refattn._core import Array, BadCall, Grads, Pullback, Random, Sample, mechanism
from refattn._core.tree import pick
from refattn.attention.spatial.local_attention import Border, local_attention_2d
from refattn.attention.spatial.weights import AcmixWeights, acmix_weights
from refattn.convolution.conv2d import conv2d
from refattn.convolution.pointwise import pointwise_conv2d
from refattn.convolution.rule import in_groups
from refattn.primitives.arithmetic import weighted_sum

PROJECTIONS = ("query", "key", "value")


def _samples(random: Random) -> Iterator[Sample]:
    learned = {"alpha": np.asarray(random.normal()), "beta": np.asarray(random.normal())}
    given = {"x": random.normal((2, 3, 4, 3)), **learned, "num_heads": 2, "kernel_size": 3}
    yield Sample("learned", {**given, "weights": acmix_weights(random, 3, 4, (3, 3), heads=2)})
    yield Sample("shifts", {**given, "weights": acmix_weights(random, 3, 4, (3, 3), heads=2, bare=True), "kernel_size": 5})
    yield Sample("stride", {**given, "weights": acmix_weights(random, 3, 2, (3, 2), heads=2), "stride": 2})
    masked = acmix_weights(random, 3, 2, (1, 2), heads=1)._replace(b_query=None, w_shift=None)
    wide = {"x": random.normal((2, 3, 8, 7)), "alpha": random.normal((2, 1, 1)), "beta": 0.25}
    yield Sample("masked", {**given, **wide, "weights": masked, "num_heads": 1, "border": "masked"})
    yield Sample("default square", {**wide, "weights": masked, "num_heads": 1, "alpha": 1.0})


def _bad_calls(random: Random) -> Iterator[BadCall]:
    given = {"x": random.normal((2, 3, 4, 3)), "alpha": 0.5, "beta": 0.5, "num_heads": 2, "kernel_size": 3}
    weights = acmix_weights(random, 3, 4, (3, 3), heads=2)
    yield BadCall("map too small", {**given, "weights": weights, "kernel_size": 7}, ValueError, "kernel_size is 7, but the mirror image")
    yield BadCall(
        "another number of heads",
        {**given, "weights": weights, "num_heads": 1},
        ValueError,
        r"num_heads \* head_dim is 4 in weights.w_query",
    )
    one = weights._replace(w_position=random.normal((2, 1)))
    yield BadCall("one coordinate", {**given, "weights": one}, ValueError, "2 is 1 in weights.w_position, but should be 2")


def _benchmark(random: Random) -> dict[str, Any]:
    learned = {"alpha": np.asarray(random.normal()), "beta": np.asarray(random.normal())}
    return {"x": random.normal((1, 64, 28, 28)), "weights": acmix_weights(random, 64, 64, (3, 3), heads=4), **learned, "num_heads": 4}


@mechanism(tags={"softmax", "convolution"}, samples=_samples, bad_calls=_bad_calls, benchmark=_benchmark)
def acmix(
    x: Array,
    weights: AcmixWeights,
    alpha: Array | float,
    beta: Array | float,
    *,
    num_heads: int,
    kernel_size: int = 7,
    stride: int = 1,
    border: Border = "reflect",
) -> tuple[Array, Pullback]:
    r"""Project a map once, and make of the projections both an attention to the neighbours and a convolution.

    Parameters
    ----------
    x : array, shape (batch, in_channels, height, width)
        Feature maps.
    weights : AcmixWeights
        Of the projections, of the convolution that is made of them, and of positions.
    alpha : float or array, broadcastable to (batch, num_heads * head_dim, out_height, out_width)
        Weight of the attention, which begins at 1/2 in the authors' code; a number has no gradient, an array has one.
    beta : float or array, broadcastable to (batch, num_heads * head_dim, out_height, out_width)
        Weight of the convolution, which begins at 1/2 too.
    num_heads : positive int
        Heads of the attention.
    kernel_size : positive int, optional
        Height and width of the square that a position attends to, an odd number; the convolution's kernel has the size of `w_mix`.
    stride : positive int, optional
        Step from one output position to the next.
    border : {"reflect", "masked"}, optional
        What the attention sees beyond the edge, as in `local_attention_2d`; the convolution sees zeros.

    Returns
    -------
    array, shape (batch, num_heads * head_dim, out_height, out_width)
        Each axis has ``ceil(size / stride)`` positions.

    Notes
    -----
    Sizes: ``height >= 1``, ``width >= 1``, ``head_dim >= 1``, ``kernel_height >= 1``, ``kernel_width >= 1``,
    ``out_height := (height + stride - 1) // stride``, ``out_width := (width + stride - 1) // stride``.

    Stage 1 projects: Q, K and V have N heads of d features each, 3N maps :math:`z_m` of every feature. Stage 2 has a map
    :math:`f_t` for each tap t of the convolution, moves it there by kernels :math:`\sigma` of the same taps, sums, and adds the
    attention A of `local_attention_2d`:

    .. math::

        f_{t,e} = \sum_{m=1}^{3N} M_{t,m} z_{m,e}, \quad
        C_{o,p} = b_o + \sum_{t, u} \sigma_{o,t,u} f_{t, \lfloor o / N \rfloor, sp + u}, \quad
        Y = \alpha A(Q, K, V) + \beta C, \qquad
        \bar f_{t,e,q} = \sum_{\lfloor o / N \rfloor = e}\ \sum_{sp + u = q} \sigma_{o,t,u} \beta \bar Y_{o,p}, \quad
        \bar z_{m,e} = A^*_m(\alpha \bar Y)_e + \sum_t M_{t,m} \bar f_{t,e}

    where :math:`A^*` is the pullback of the attention. A shift is :math:`\sigma_{o,t,u} = [t = u]`, and
    so C is a convolution of x, whose kernel has the weights :math:`\sum_m M_{t,m} W_m` at tap t. Output channel o is
    feature ``o // num_heads`` of the convolution, but feature ``o % head_dim`` of head ``o // head_dim`` of the attention; with
    learned kernels the order is a convention, here that of the authors' code.

    References
    ----------
    .. [1] Pan et al., "On the Integration of Self-Attention and Convolution", CVPR 2022; eqs. (1) to (3) take a convolution
       apart. arXiv:2111.14556.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> x, one = np.array([[[[1.0, 2.0, 6.0]]]]), np.ones((1, 1))
    >>> weights = refattn.AcmixWeights(0 * one, one, one, w_mix=np.array([[[0.0, 0.0, 10.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]]))
    >>> options = {"num_heads": 1, "kernel_size": 3, "border": "masked"}
    >>> refattn.acmix(x, weights, 1.0, 0.0, **options)  # the mean of the neighbours
    array([[[[1.5, 3. , 4. ]]]])
    >>> refattn.acmix(x, weights, 0.0, 1.0, **options)  # ten times the left neighbour
    array([[[[ 0., 10., 20.]]]])
    """
    biases = (weights.b_query, weights.b_key, weights.b_value)
    given = zip((weights.w_query, weights.w_key, weights.w_value), biases, strict=True)
    maps, pullbacks = zip(*(pointwise_conv2d.vjp(x, w[:, :, None, None], b) for w, b in given), strict=True)
    options: dict[str, Any] = {"num_heads": num_heads, "kernel_size": kernel_size, "stride": stride, "border": border}
    query, key, value = maps
    attended, attention_pullback = local_attention_2d.vjp(query, key, value, weights.w_position, **options)
    convolved, conv_pullback = _convolved(np.concatenate(maps, axis=1), weights, num_heads, stride)
    output, sum_pullback = weighted_sum.vjp(attended, convolved, alpha, beta)

    def pullback(dy: Array) -> Grads:
        d_sum = sum_pullback(dy)
        d_attention, d_conv = attention_pullback(d_sum["a"]), conv_pullback(d_sum["b"])
        d_maps = zip(PROJECTIONS, in_groups(d_conv["x"], 3, axis=1).swapaxes(0, 1), strict=True)
        d = {name: back(d_attention[name] + d_map) for (name, d_map), back in zip(d_maps, pullbacks, strict=True)}
        projections = {f"w_{name}": part["weight"][:, :, 0, 0] for name, part in d.items()}
        own = {**d_conv, "w_position": d_attention.get("w_position"), **{f"b_{name}": part.get("bias") for name, part in d.items()}}
        rates = {name: d_sum.get(name) for name in ("alpha", "beta")}
        return {"x": sum(part["x"] for part in d.values()), "weights": pick(AcmixWeights, {**projections, **own}), **rates}

    return output, pullback


def _convolved(maps: Array, weights: AcmixWeights, heads: int, stride: int) -> tuple[Array, Pullback]:
    """Mix the heads of all projections (batch, 3 * heads * width, *size) into a map for each tap, and gather these."""
    batch, channels, *size = maps.shape
    kernel = weights.w_mix.shape[:2]
    taps, width = math.prod(kernel), channels // (3 * heads)
    pieces = maps.reshape(batch, 3 * heads, width, math.prod(size))
    mixed, mix_pullback = pointwise_conv2d.vjp(pieces, weights.w_mix.reshape(taps, 3 * heads, 1, 1))
    grouped = mixed.swapaxes(1, 2).reshape(batch, width * taps, *size)
    shifts = _shifts(kernel, heads * width, maps.dtype) if weights.w_shift is None else weights.w_shift
    around = tuple(((n - 1) // 2, n // 2) for n in kernel)
    output, shift_pullback = conv2d.vjp(grouped, shifts, weights.b_shift, stride=stride, padding=around, groups=width)

    def pullback(dy: Array) -> Grads:
        d_shift = shift_pullback(dy)
        d_mix = mix_pullback(d_shift["x"].reshape(batch, width, taps, math.prod(size)).swapaxes(1, 2))
        return {
            "x": d_mix["x"].reshape(maps.shape),
            "w_mix": d_mix["weight"].reshape(weights.w_mix.shape),
            "w_shift": None if weights.w_shift is None else d_shift["weight"],
            "b_shift": d_shift.get("bias"),
        }

    return output, pullback


def _shifts(kernel: tuple[int, ...], channels: int, dtype: Any) -> Array:
    """For each output channel and map, the kernel whose only tap that is not 0 is the map's own."""
    taps = np.arange(math.prod(kernel))
    own = (taps[:, None] == taps).astype(dtype)
    return np.broadcast_to(own.reshape(-1, *kernel), (channels, len(taps), *kernel))
