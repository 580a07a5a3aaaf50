"""The convolutional block attention module: a gate for each channel, then one for each position."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from refattn._core import Array, BadCall, Grads, Pullback, Random, Sample, mechanism
from refattn.attention.channel.squeeze_excitation import bottleneck, gate_channels
from refattn.convolution.conv2d import conv2d
from refattn.primitives.activation import sigmoid
from refattn.primitives.arithmetic import add, multiply
from refattn.primitives.linear import linear
from refattn.primitives.reductions import global_avg_pool, global_max_pool, max_over, mean_over


def _channel_inputs(random: Random) -> dict[str, Any]:
    return {"x": random.normal((2, 6, 3, 4)), "w_reduce": random.normal((3, 6)) / 2, "w_expand": random.normal((6, 3)) / 2}


def _spatial_inputs(random: Random) -> dict[str, Any]:
    return {"x": random.normal((2, 4, 4, 5)), "w_spatial": random.normal((1, 2, 3, 3))}


def _biases(random: Random) -> dict[str, Any]:
    return {"b_reduce": random.normal(3), "b_expand": random.normal(6)}


def _channel_samples(random: Random) -> Iterator[Sample]:
    inputs = _channel_inputs(random)
    yield Sample("plain", inputs)
    yield Sample("biases", {**inputs, **_biases(random)})
    yield Sample("sequence", {**inputs, "x": random.normal((2, 6, 5))})


def _concat_samples(random: Random) -> Iterator[Sample]:
    inputs = {"x": random.normal((2, 6, 3, 4)), "w_gate": random.normal((6, 12))}
    yield Sample("plain", inputs)
    yield Sample("bias", {**inputs, "b_gate": random.normal(6)})
    yield Sample("sequence", {**inputs, "x": random.normal((2, 6, 5))})


def _spatial_samples(random: Random) -> Iterator[Sample]:
    inputs = _spatial_inputs(random)
    yield Sample("kernel of 3", inputs)
    yield Sample("kernel of 7 and bias", {**inputs, "w_spatial": random.normal((1, 2, 7, 7)), "b_spatial": random.normal(1)})


def _samples(random: Random) -> Iterator[Sample]:
    inputs = {**_channel_inputs(random), "w_spatial": random.normal((1, 2, 3, 3))}
    yield Sample("kernel of 3", inputs)
    more = {"w_spatial": random.normal((1, 2, 7, 7)), "b_spatial": random.normal(1)}
    yield Sample("kernel of 7 and biases", {**inputs, **_biases(random), **more})


def _bad_calls(random: Random) -> Iterator[BadCall]:
    inputs = {**_channel_inputs(random), "w_spatial": random.normal((1, 2, 3, 3))}
    yield BadCall("one summary", {**inputs, "w_spatial": random.normal((1, 1, 3, 3))}, ValueError, "w_spatial")
    yield BadCall("empty map", {**inputs, "x": random.normal((2, 6, 0, 4))}, ValueError, "height is 0, but must be at least 1")


def _benchmark(random: Random) -> dict[str, Any]:
    mlp = {"w_reduce": random.normal((4, 64)), "w_expand": random.normal((64, 4))}
    return {"x": random.normal((8, 64, 56, 56)), **mlp, "w_spatial": random.normal((1, 2, 7, 7))}


@mechanism(tags={"gate"}, samples=_channel_samples)
def cbam_channel(
    x: Array, w_reduce: Array, w_expand: Array, b_reduce: Array | None = None, b_expand: Array | None = None
) -> tuple[Array, Pullback]:
    r"""The first half of `cbam`: multiply each channel by a gate, from the means and the maxima of all channels.

    Parameters
    ----------
    x : array, shape (batch, channels, *positions)
        Feature maps.
    w_reduce : array, shape (reduced, channels)
        First layer of the network that means and maxima share.
    w_expand : array, shape (channels, reduced)
        Its second layer.
    b_reduce : array or None, shape (reduced), optional
        Bias of the first layer.
    b_expand : array or None, shape (channels), optional
        Bias of the second layer; it counts twice, once for the means and once for the maxima.

    Returns
    -------
    array, shape (batch, channels, *positions)
        Gated feature maps: the product, not the gate alone.

    Notes
    -----
    .. math::

        m(z) = W_1 \operatorname{relu}(W_0 z + b_0) + b_1, \quad
        y_{ci} = \sigma\bigl(m(\operatorname{mean} x) + m(\max x)\bigr)_c\, x_{ci}, \qquad
        \bar s_c = \sum_i x_{ci} \bar y_{ci}, \quad \bar x_{ci} = s_c \bar y_{ci} + \dots

    References
    ----------
    .. [1] Woo et al., "CBAM: Convolutional Block Attention Module", ECCV 2018, section 3. arXiv:1807.06521.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.cbam_channel(np.array([[[2.0, 4.0]]]), np.zeros((1, 1)), np.zeros((1, 1)))
    array([[[1., 2.]]])
    """
    means, mean_pullback = global_avg_pool.vjp(x)
    maxima, max_pullback = global_max_pool.vjp(x)
    both, mlp_pullback = bottleneck(np.stack([means, maxima]), w_reduce, w_expand, b_reduce, b_expand)
    total, add_pullback = add.vjp(both[0], both[1])
    output, gate_pullback = gate_channels(x, total)

    def pullback(dy: Array) -> Grads:
        d_gated = gate_pullback(dy)
        d_total = add_pullback(d_gated["logits"])
        d_mlp = mlp_pullback(np.stack([d_total["a"], d_total["b"]]))
        d_means, d_maxima = d_mlp["x"]
        return {**d_mlp, "x": d_gated["x"] + mean_pullback(d_means)["x"] + max_pullback(d_maxima)["x"]}

    return output, pullback


@mechanism(tags={"gate"}, samples=_concat_samples)
def cbam_channel_concat(x: Array, w_gate: Array, b_gate: Array | None = None) -> tuple[Array, Pullback]:
    r"""Multiply each channel by a gate that one layer makes of the means and the maxima of all channels, behind each other.

    It is told of as CBAM's, but is not: the paper's two summaries share a network of two layers, and what that makes of them is
    added (`cbam_channel`).

    Parameters
    ----------
    x : array, shape (batch, channels, *positions)
        Feature maps.
    w_gate : array, shape (channels, 2 * channels)
        A row for each gate: first the weights of the means, then those of the maxima.
    b_gate : array or None, shape (channels), optional
        Bias of the layer.

    Returns
    -------
    array, shape (batch, channels, *positions)
        Gated feature maps: the product, not the gate alone.

    Notes
    -----
    .. math::

        y_{ci} = \sigma\bigl(W [\operatorname{mean} x; \max x] + b\bigr)_c\, x_{ci}, \qquad
        \bar s_c = \sum_i x_{ci} \bar y_{ci}, \quad \bar x_{ci} = s_c \bar y_{ci} + \dots

    References
    ----------
    .. [1] Woo et al., "CBAM: Convolutional Block Attention Module", ECCV 2018, section 3: from which this differs. arXiv:1807.06521.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.cbam_channel_concat(np.array([[[2.0, 4.0]]]), np.array([[4.0, -3.0]]))  # 4 * 3 - 3 * 4 opens a gate halfway
    array([[[1., 2.]]])
    """
    means, mean_pullback = global_avg_pool.vjp(x)
    maxima, max_pullback = global_max_pool.vjp(x)
    logits, linear_pullback = linear.vjp(np.concatenate([means, maxima], axis=1), w_gate, b_gate)
    output, gate_pullback = gate_channels(x, logits)

    def pullback(dy: Array) -> Grads:
        d_gated = gate_pullback(dy)
        d_linear = linear_pullback(d_gated["logits"])
        d_means, d_maxima = d_linear["x"][:, : x.shape[1]], d_linear["x"][:, x.shape[1] :]
        d_x = d_gated["x"] + mean_pullback(d_means)["x"] + max_pullback(d_maxima)["x"]
        return {"x": d_x, "w_gate": d_linear["weight"], "b_gate": d_linear.get("bias")}

    return output, pullback


@mechanism(tags={"gate"}, samples=_spatial_samples)
def cbam_spatial(x: Array, w_spatial: Array, b_spatial: Array | None = None) -> tuple[Array, Pullback]:
    r"""The second half of `cbam`: multiply each position by a gate, from the mean and the maximum over the channels around it.

    Parameters
    ----------
    x : array, shape (batch, channels, height, width)
        Feature maps.
    w_spatial : array, shape (1, 2, kernel_height, kernel_width)
        Kernel over the map of means (first) and the map of maxima; the paper's is 7 by 7.
    b_spatial : array or None, shape (1), optional
        Bias of the convolution.

    Returns
    -------
    array, shape (batch, channels, height, width)
        Gated feature maps: the product, not the gate alone.

    Notes
    -----
    Sizes: ``channels >= 1``.

    .. math::

        y_{cp} = \sigma\bigl(K * [\operatorname{mean}_c x; \max_c x]\bigr)_p\, x_{cp}, \qquad
        \bar s_p = \sum_c x_{cp} \bar y_{cp}, \quad \bar x_{cp} = s_p \bar y_{cp} + \dots

    The paper's equation has no normalization; the authors' code has one between convolution and sigmoid.

    References
    ----------
    .. [1] Woo et al., "CBAM: Convolutional Block Attention Module", ECCV 2018, section 3. arXiv:1807.06521.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.cbam_spatial(np.array([[[[2.0, 4.0]]]]), np.zeros((1, 2, 7, 7)))
    array([[[[1., 2.]]]])
    """
    means, mean_pullback = mean_over.vjp(x, axes=1, keepdims=True)
    maxima, max_pullback = max_over.vjp(x, axes=1, keepdims=True)
    logits, conv_pullback = conv2d.vjp(np.concatenate([means, maxima], axis=1), w_spatial, b_spatial, padding="same")
    gate, sigmoid_pullback = sigmoid.vjp(logits)
    output, gate_pullback = multiply.vjp(x, gate)

    def pullback(dy: Array) -> Grads:
        d_output = gate_pullback(dy)
        d_conv = conv_pullback(sigmoid_pullback(d_output["b"])["x"])
        d_means, d_maxima = d_conv["x"][:, :1], d_conv["x"][:, 1:]
        return {
            "x": d_output["a"] + mean_pullback(d_means)["x"] + max_pullback(d_maxima)["x"],
            "w_spatial": d_conv["weight"],
            "b_spatial": d_conv.get("bias"),
        }

    return output, pullback


@mechanism(tags={"gate"}, samples=_samples, bad_calls=_bad_calls, benchmark=_benchmark)
def cbam(
    x: Array,
    w_reduce: Array,
    w_expand: Array,
    w_spatial: Array,
    b_reduce: Array | None = None,
    b_expand: Array | None = None,
    b_spatial: Array | None = None,
) -> tuple[Array, Pullback]:
    r"""Gate the channels of an image, then its positions.

    Parameters
    ----------
    x : array, shape (batch, channels, height, width)
        Feature maps.
    w_reduce : array, shape (reduced, channels)
        First layer of the network that means and maxima share.
    w_expand : array, shape (channels, reduced)
        Its second layer.
    w_spatial : array, shape (1, 2, kernel_height, kernel_width)
        Kernel over the map of means (first) and the map of maxima; the paper's is 7 by 7.
    b_reduce : array or None, shape (reduced), optional
        Bias of the first layer.
    b_expand : array or None, shape (channels), optional
        Bias of the second layer; it counts twice, once for the means and once for the maxima.
    b_spatial : array or None, shape (1), optional
        Bias of the convolution.

    Returns
    -------
    array, shape (batch, channels, height, width)
        Gated feature maps; there is no residual.

    Notes
    -----
    Sizes: ``channels >= 1``, ``height >= 1``, ``width >= 1``.

    .. math::

        x' = M_c(x) \odot x, \quad y = M_s(x') \odot x', \qquad \bar x = \overline{M_c}(\overline{M_s}(\bar y))

    with the gates and pullbacks of `cbam_channel` and `cbam_spatial`.

    References
    ----------
    .. [1] Woo et al., "CBAM: Convolutional Block Attention Module", ECCV 2018, section 3. arXiv:1807.06521.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.cbam(np.array([[[[4.0, 8.0]]]]), np.zeros((1, 1)), np.zeros((1, 1)), np.zeros((1, 2, 7, 7)))
    array([[[[1., 2.]]]])
    """
    gated, channel_pullback = cbam_channel.vjp(x, w_reduce, w_expand, b_reduce, b_expand)
    output, spatial_pullback = cbam_spatial.vjp(gated, w_spatial, b_spatial)

    def pullback(dy: Array) -> Grads:
        d_spatial = spatial_pullback(dy)
        return {**d_spatial, **channel_pullback(d_spatial["x"])}

    return output, pullback
