"""Squeeze-and-excitation: a gate for each channel, from the means of all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from refattn._core import Array, BadCall, Grads, Pullback, Random, Sample, mechanism
from refattn.primitives.activation import relu, sigmoid
from refattn.primitives.arithmetic import multiply
from refattn.primitives.linear import linear
from refattn.primitives.reductions import global_avg_pool


def _inputs(random: Random) -> dict[str, Any]:
    return {"x": random.normal((2, 6, 3, 4)), "w_reduce": 2 * random.normal((3, 6)), "w_expand": random.normal((6, 3))}


def _samples(random: Random) -> Iterator[Sample]:
    inputs = _inputs(random)
    yield Sample("image", inputs)
    yield Sample("biases", {**inputs, "b_reduce": random.normal(3), "b_expand": random.normal(6)})
    yield Sample("sequence", {**inputs, "x": random.normal((2, 6, 5))})
    yield Sample("volume", {**inputs, "x": random.normal((1, 6, 2, 2, 3))})


def _bad_calls(random: Random) -> Iterator[BadCall]:
    inputs = _inputs(random)
    yield BadCall("empty map", {**inputs, "x": random.normal((2, 6, 0, 4))}, ValueError, "holds nothing")
    yield BadCall("another width", {**inputs, "w_expand": random.normal((6, 2))}, ValueError, "reduced is 2 in w_expand")


def _one_layer_samples(random: Random) -> Iterator[Sample]:
    inputs = {"x": random.normal((2, 6, 3, 4)), "w_gate": 2 * random.normal((6, 6))}
    yield Sample("image", inputs)
    yield Sample("bias", {**inputs, "b_gate": random.normal(6)})
    yield Sample("sequence", {**inputs, "x": random.normal((2, 6, 5))})


def _one_layer_bad_calls(random: Random) -> Iterator[BadCall]:
    call = {"x": random.normal((2, 3, 4, 4)), "w_gate": random.normal((6, 6))}
    yield BadCall("gates of another map", call, ValueError, "channels is 6 in w_gate, but 3 in x")


def _benchmark(random: Random) -> dict[str, Any]:
    return {"x": random.normal((8, 64, 56, 56)), "w_reduce": random.normal((4, 64)), "w_expand": random.normal((64, 4))}


def bottleneck(x: Array, w_reduce: Array, w_expand: Array, b_reduce: Array | None, b_expand: Array | None) -> tuple[Array, Pullback]:
    """The two layers that all channel gates share: channels to fewer, relu, and back."""
    reduced, reduce_pullback = linear.vjp(x, w_reduce, b_reduce)
    active, relu_pullback = relu.vjp(reduced)
    expanded, expand_pullback = linear.vjp(active, w_expand, b_expand)

    def pullback(dy: Array) -> Grads:
        d_expand = expand_pullback(dy)
        d_reduce = reduce_pullback(relu_pullback(d_expand["x"])["x"])
        return {
            "x": d_reduce["x"],
            "w_reduce": d_reduce["weight"],
            "w_expand": d_expand["weight"],
            "b_reduce": d_reduce.get("bias"),
            "b_expand": d_expand.get("bias"),
        }

    return expanded, pullback


def gate_channels(x: Array, logits: Array) -> tuple[Array, Pullback]:
    """Each channel times the gate that its logit opens."""
    gate, sigmoid_pullback = sigmoid.vjp(logits)
    output, multiply_pullback = multiply.vjp(x, gate.reshape(*gate.shape, *(1,) * (x.ndim - 2)))

    def pullback(dy: Array) -> Grads:
        d_product = multiply_pullback(dy)
        return {"x": d_product["a"], "logits": sigmoid_pullback(d_product["b"].reshape(gate.shape))["x"]}

    return output, pullback


@mechanism(tags={"gate"}, samples=_samples, bad_calls=_bad_calls, benchmark=_benchmark)
def squeeze_excitation(
    x: Array, w_reduce: Array, w_expand: Array, b_reduce: Array | None = None, b_expand: Array | None = None
) -> tuple[Array, Pullback]:
    r"""Multiply each channel by a gate that a small network makes of the means of all channels.

    Parameters
    ----------
    x : array, shape (batch, channels, *positions)
        Feature maps.
    w_reduce : array, shape (reduced, channels)
        The paper's first layer, into the bottleneck.
    w_expand : array, shape (channels, reduced)
        The paper's second layer.
    b_reduce : array or None, shape (reduced), optional
        Bias of the first layer; the paper's equation has neither.
    b_expand : array or None, shape (channels), optional
        Bias of the second layer.

    Returns
    -------
    array, shape (batch, channels, *positions)
        Gated feature maps.

    Notes
    -----
    With N positions,

    .. math::

        z_c = \frac1N \sum_i x_{ci}, \quad s = \sigma(W_2 \operatorname{relu}(W_1 z + b_1) + b_2), \quad y_{ci} = s_c x_{ci}, \qquad
        \bar s_c = \sum_i x_{ci} \bar y_{ci}, \quad \bar x_{ci} = s_c \bar y_{ci} + \bar z_c / N

    References
    ----------
    .. [1] Hu, Shen, Sun, "Squeeze-and-Excitation Networks", CVPR 2018, section 3. arXiv:1709.01507.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> x, zero = np.array([[[2.0, 4.0], [6.0, 8.0]]]), np.zeros((2, 2))
    >>> refattn.squeeze_excitation(x, zero, zero)
    array([[[1., 2.],
            [3., 4.]]])
    """
    squeezed, squeeze_pullback = global_avg_pool.vjp(x)
    excited, excite_pullback = bottleneck(squeezed, w_reduce, w_expand, b_reduce, b_expand)
    output, gate_pullback = gate_channels(x, excited)

    def pullback(dy: Array) -> Grads:
        d_gated = gate_pullback(dy)
        d_excited = excite_pullback(d_gated["logits"])
        return {**d_excited, "x": d_gated["x"] + squeeze_pullback(d_excited["x"])["x"]}

    return output, pullback


@mechanism(tags={"gate"}, samples=_one_layer_samples, bad_calls=_one_layer_bad_calls)
def squeeze_excitation_one_layer(x: Array, w_gate: Array, b_gate: Array | None = None) -> tuple[Array, Pullback]:
    r"""Multiply each channel by a gate that one layer makes of the means of all channels, without a bottleneck.

    Parameters
    ----------
    x : array, shape (batch, channels, *positions)
        Feature maps: those that are squeezed are those that are gated.
    w_gate : array, shape (channels, channels)
        A row for each gate.
    b_gate : array or None, shape (channels), optional
        Bias of the layer; the paper's equation has none.

    Returns
    -------
    array, shape (batch, channels, *positions)
        Gated feature maps.

    Notes
    -----
    With N positions,

    .. math::

        z_c = \frac1N \sum_i x_{ci}, \quad s = \sigma(W z + b), \quad y_{ci} = s_c x_{ci}, \qquad
        \bar s_c = \sum_i x_{ci} \bar y_{ci}, \quad \bar x_{ci} = s_c \bar y_{ci} + \bar z_c / N

    References
    ----------
    .. [1] Wang et al., "ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks", CVPR 2020: SE-Var3, with which
       squeeze-and-excitation is compared. arXiv:1910.03151.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> x = np.array([[[2.0, 4.0], [6.0, 8.0]]])
    >>> refattn.squeeze_excitation_one_layer(x, np.zeros((2, 2)), np.array([1e9, 0.0]))
    array([[[2., 4.],
            [3., 4.]]])
    """
    squeezed, squeeze_pullback = global_avg_pool.vjp(x)
    logits, linear_pullback = linear.vjp(squeezed, w_gate, b_gate)
    output, gate_pullback = gate_channels(x, logits)

    def pullback(dy: Array) -> Grads:
        d_gated = gate_pullback(dy)
        d_linear = linear_pullback(d_gated["logits"])
        d_x = d_gated["x"] + squeeze_pullback(d_linear["x"])["x"]
        return {"x": d_x, "w_gate": d_linear["weight"], "b_gate": d_linear.get("bias")}

    return output, pullback
