"""The smallest model with attention: what comes next, from a window of several series.

A convolution over time, relu, attention of the time steps to each other in four heads, the mean over time, and a linear layer;
mean squared error and Adam. The model is often shown with heads that are split by a reshape alone, which mixes time steps, and
without the mean over time: its scores (batch, time, 1) then broadcast against labels (batch, 1) into a loss that means nothing.
Here heads are split along the channels, and the loss refuses what would broadcast.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from refattn._core import Array, Grads, Pullback, Random, tree
from refattn.attention.dot_product.heads import multi_head_attention_without_projections
from refattn.convolution.conv1d import conv1d
from refattn.primitives.activation import relu
from refattn.primitives.linear import linear
from refattn.primitives.loss import mean_squared_error
from refattn.primitives.reductions import mean_over

LENGTH, SERIES, CHANNELS, HEADS, KERNEL = 10, 5, 32, 4, 3
LEARNING_RATE = 0.01


class SeriesWeights(NamedTuple):
    """Weights of `series_model`.

    Attributes
    ----------
    w_conv : array, shape (32, 5, 3)
        Kernels over three time steps of all series.
    b_conv : array, shape (32)
        Bias of the convolution.
    w_dense : array, shape (1, 32)
        From the channels to the prediction.
    b_dense : array, shape (1)
        Its bias.
    """

    w_conv: Array
    b_conv: Array
    w_dense: Array
    b_dense: Array


def series_model(x: Array, weights: SeriesWeights) -> tuple[Array, Pullback]:
    """One prediction for each window.

    Parameters
    ----------
    x : array, shape (batch, 10, 5)
        Windows: ten time steps of five series.
    weights : SeriesWeights
        Weights.

    Returns
    -------
    prediction : array, shape (batch, 1)
        Predictions.
    pullback : callable
        From the cotangent of the predictions to gradients of "x" and "weights".
    """
    convolved, conv_pullback = conv1d.vjp(x.swapaxes(1, 2), weights.w_conv, weights.b_conv)  # (batch, channels, time)
    rectified, relu_pullback = relu.vjp(convolved)
    steps = rectified.swapaxes(1, 2)
    attended, attention_pullback = multi_head_attention_without_projections.vjp(steps, steps, steps, num_heads=HEADS)
    pooled, pool_pullback = mean_over.vjp(attended, axes=1)
    prediction, linear_pullback = linear.vjp(pooled, weights.w_dense, weights.b_dense)

    def pullback(d_prediction: Array) -> Grads:
        d_linear = linear_pullback(d_prediction)
        d_attention = attention_pullback(pool_pullback(d_linear["x"])["x"])
        d_steps = d_attention["query"] + d_attention["key"] + d_attention["value"]
        d_conv = conv_pullback(relu_pullback(d_steps.swapaxes(1, 2))["x"])
        d_weights = SeriesWeights(d_conv["weight"], d_conv["bias"], d_linear["weight"], d_linear["bias"])
        return {"x": d_conv["x"].swapaxes(1, 2), "weights": d_weights}

    return prediction, pullback


def loss(weights: SeriesWeights, x: Array, labels: Array) -> tuple[Array, Pullback]:
    """The mean squared error of the predictions, and its pullback."""
    prediction, model_pullback = series_model(x, weights)
    value, loss_pullback = mean_squared_error.vjp(prediction, labels)
    return value, lambda d_loss: model_pullback(loss_pullback(d_loss)["prediction"])


def first_weights(random: Random) -> SeriesWeights:
    """Where training begins: weights that keep the size of what they multiply, and small biases."""
    w_conv, w_dense = random.normal((CHANNELS, SERIES, KERNEL)), random.normal((1, CHANNELS))
    step = (SERIES * KERNEL) ** -0.5, CHANNELS**-0.5
    return SeriesWeights(step[0] * w_conv, random.normal(CHANNELS) / 8, step[1] * w_dense, random.normal(1) / 8)


def windows(random: Random, count: int = 64) -> tuple[Array, Array]:
    """Windows of noise (count, 10, 5), and labels (count, 1): how far apart the first two series are, on average."""
    x = random.normal((count, LENGTH, SERIES))
    return x, abs(x[:, :, 0] - x[:, :, 1]).sum(axis=1, keepdims=True) / LENGTH


def torch_losses(weights: SeriesWeights, x: Array, labels: Array, steps: int) -> Sequence[float]:
    """The losses before each step where PyTorch trains the same model, in float64, from the same weights.

    Raises
    ------
    ImportError
        Where PyTorch is not installed.
    """
    try:
        import torch  # noqa: PLC0415  # not a dependency
    except ImportError:
        raise ImportError("PyTorch is not installed: pip install torch") from None
    functional: Any = torch.nn.functional
    theirs: Any = tree.map_leaves(lambda w: torch.tensor(w, requires_grad=True), weights)
    inputs, wanted = torch.tensor(x), torch.tensor(labels)
    optimizer = torch.optim.Adam(theirs, lr=LEARNING_RATE)
    losses = []
    for _ in range(steps):
        channels = functional.relu(functional.conv1d(inputs.mT, theirs.w_conv, theirs.b_conv))
        heads = channels.unflatten(1, (HEADS, -1)).mT
        attended = functional.scaled_dot_product_attention(heads, heads, heads)
        pooled = attended.transpose(1, 2).flatten(2).mean(1)
        value = functional.mse_loss(functional.linear(pooled, theirs.w_dense, theirs.b_dense), wanted)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses
