"""Handwritten digits, read by a convolutional network with gates and by a Transformer.

The images are those of scikit-learn, 8 by 8 pixels between 0 and 1; `dataset` splits them always in the same way. Weights of
both models, trained by ``refattn train``, and the first images of the test set come with the package: `load` needs NumPy only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np

from refattn._core import Array, Grads, Integers, Pullback, Random, archive, tree
from refattn.attention.channel.cbam import cbam
from refattn.blocks.transformer_encoder import transformer_encoder
from refattn.blocks.weights import AttentionWeights, EncoderLayerWeights, FeedForwardWeights, NormWeights
from refattn.convolution.conv2d import conv2d
from refattn.examples.training import descend
from refattn.positional.learned import add_learned
from refattn.primitives.activation import relu
from refattn.primitives.linear import linear
from refattn.primitives.loss import cross_entropy
from refattn.primitives.max_pooling import max_pool2d
from refattn.primitives.reductions import mean_over

Name: TypeAlias = Literal["cnn", "transformer"]
Model: TypeAlias = Callable[[Array, Any], tuple[Array, Pullback]]

SIZE, CLASSES = 8, 10
PATCH, HEADS = 2, 4
TEST, SHIPPED = 360, 20
BATCH, SMOOTHING, SHIFTED = 32, 0.1, 0.25


class Gates(NamedTuple):
    """Weights of `cbam`.

    Attributes
    ----------
    w_reduce, w_expand, w_spatial : array
        Of the network that gates channels, and of the convolution that gates positions.
    b_reduce, b_expand, b_spatial : array
        Biases.
    """

    w_reduce: Array
    w_expand: Array
    w_spatial: Array
    b_reduce: Array
    b_expand: Array
    b_spatial: Array


class Stage(NamedTuple):
    """Weights of one stage of the convolutional network.

    Attributes
    ----------
    weight, bias : array
        Of the convolution.
    gates : Gates
        Of what gates its result.
    """

    weight: Array
    bias: Array
    gates: Gates


class CnnWeights(NamedTuple):
    """Weights of `digits_cnn`.

    Attributes
    ----------
    stages : tuple of Stage
        One after another, each at half the resolution of the one before.
    w_classes, b_classes : array
        From the channels to the scores of the classes.
    """

    stages: tuple[Stage, ...]
    w_classes: Array
    b_classes: Array


class TransformerWeights(NamedTuple):
    """Weights of `digits_transformer`.

    Attributes
    ----------
    w_patch, b_patch : array
        Of the convolution that makes the tokens.
    positions : array
        One vector for each token.
    layers : tuple of EncoderLayerWeights
        The encoder.
    final_norm : NormWeights
        Norm after its last layer.
    w_classes, b_classes : array
        From the mean token to the scores of the classes.
    """

    w_patch: Array
    b_patch: Array
    positions: Array
    layers: tuple[EncoderLayerWeights, ...]
    final_norm: NormWeights
    w_classes: Array
    b_classes: Array


class Shipped(NamedTuple):
    """What a file of weights holds.

    Attributes
    ----------
    weights : CnnWeights or TransformerWeights
        Trained weights.
    images : array, shape (n, 1, 8, 8)
        Images of the test set, in 0 to 1.
    labels : int array, shape (n)
        The digits that they show.
    """

    weights: Any
    images: Array
    labels: Integers


class Trained(NamedTuple):
    """A trained model, and what to show it.

    Attributes
    ----------
    weights : CnnWeights or TransformerWeights
        Trained weights.
    images : array, shape (n, 1, 8, 8)
        Images of the test set, in 0 to 1.
    labels : int array, shape (n)
        The digits that they show.
    forward : callable
        `digits_cnn` or `digits_transformer`: ``forward(images, weights)`` gives scores and their pullback.
    """

    weights: Any
    images: Array
    labels: Integers
    forward: Model


class Dataset(NamedTuple):
    """All images.

    Attributes
    ----------
    train_images, train_labels : array
        What models learn from: shapes (n, 1, 8, 8) and (n).
    test_images, test_labels : array
        What they are judged by.
    """

    train_images: Array
    train_labels: Integers
    test_images: Array
    test_labels: Integers


def digits_cnn(images: Array, weights: CnnWeights) -> tuple[Array, Pullback]:
    """Scores of the ten digits: in each stage convolution, relu, channel and spatial gates, pooling; then the mean over positions.

    Parameters
    ----------
    images : array, shape (batch, 1, 8, 8)
        Images, in 0 to 1.
    weights : CnnWeights
        Weights.

    Returns
    -------
    scores : array, shape (batch, 10)
        Before the softmax.
    pullback : callable
        From the cotangent of the scores to gradients of "images" and "weights".
    """
    x, pullbacks = images, []
    for stage in weights.stages:
        x, stage_pullback = _stage(x, stage)
        pullbacks.append(stage_pullback)
    pooled, pool_pullback = mean_over.vjp(x, axes=(2, 3))
    scores, linear_pullback = linear.vjp(pooled, weights.w_classes, weights.b_classes)

    def pullback(d_scores: Array) -> Grads:
        d_linear = linear_pullback(d_scores)
        d_x, d_stages = pool_pullback(d_linear["x"])["x"], []
        for stage_pullback in reversed(pullbacks):
            d_stage = stage_pullback(d_x)
            d_x = d_stage["x"]
            d_stages.insert(0, d_stage["weights"])
        return {"images": d_x, "weights": CnnWeights(tuple(d_stages), d_linear["weight"], d_linear["bias"])}

    return scores, pullback


def _stage(x: Array, weights: Stage) -> tuple[Array, Pullback]:
    """Convolve, rectify, gate, and halve the resolution."""
    convolved, conv_pullback = conv2d.vjp(x, weights.weight, weights.bias, padding="same")
    rectified, relu_pullback = relu.vjp(convolved)
    gated, gate_pullback = cbam.vjp(rectified, *weights.gates)
    output, pool_pullback = max_pool2d.vjp(gated, kernel_size=2)

    def pullback(dy: Array) -> Grads:
        d_gate = gate_pullback(pool_pullback(dy)["x"])
        d_conv = conv_pullback(relu_pullback(d_gate["x"])["x"])
        return {"x": d_conv["x"], "weights": Stage(d_conv["weight"], d_conv["bias"], tree.pick(Gates, d_gate))}

    return output, pullback


def digits_transformer(images: Array, weights: TransformerWeights) -> tuple[Array, Pullback]:
    """Scores of the ten digits: 4 by 4 patches, two pixels apart, are tokens that know their positions and pass a pre-norm encoder.

    Parameters
    ----------
    images : array, shape (batch, 1, 8, 8)
        Images, in 0 to 1.
    weights : TransformerWeights
        Weights.

    Returns
    -------
    scores : array, shape (batch, 10)
        Before the softmax, from the mean of all tokens.
    pullback : callable
        From the cotangent of the scores to gradients of "images" and "weights".
    """
    maps, patch_pullback = conv2d.vjp(images, weights.w_patch, weights.b_patch, stride=PATCH, padding=PATCH // 2)
    tokens = maps.reshape(*maps.shape[:2], -1).swapaxes(1, 2)
    placed, place_pullback = add_learned.vjp(tokens, weights.positions)
    encoded, encoder_pullback = transformer_encoder.vjp(placed, weights.layers, weights.final_norm, num_heads=HEADS, norm="pre")
    pooled, pool_pullback = mean_over.vjp(encoded, axes=1)
    scores, linear_pullback = linear.vjp(pooled, weights.w_classes, weights.b_classes)

    def pullback(d_scores: Array) -> Grads:
        d_linear = linear_pullback(d_scores)
        d_encoder = encoder_pullback(pool_pullback(d_linear["x"])["x"])
        d_place = place_pullback(d_encoder["x"])
        d_patch = patch_pullback(d_place["x"].swapaxes(1, 2).reshape(maps.shape))
        d_weights = TransformerWeights(
            w_patch=d_patch["weight"],
            b_patch=d_patch["bias"],
            positions=d_place["table"],
            layers=d_encoder["layers"],
            final_norm=d_encoder["final_norm"],
            w_classes=d_linear["weight"],
            b_classes=d_linear["bias"],
        )
        return {"images": d_patch["x"], "weights": d_weights}

    return scores, pullback


def cnn_weights(random: Random, channels: tuple[int, ...] = (16, 32), reduced: int = 4) -> CnnWeights:
    """Where the training of `digits_cnn` begins; gates are half open."""
    stages = []
    for before, after in zip((1, *channels), channels, strict=False):
        zeros = [np.zeros(n, dtype=float) for n in (reduced, after, 1)]
        gates = Gates(_drawn(random, reduced, after), _drawn(random, after, reduced), _drawn(random, 1, 2, 3, 3), *zeros)
        stages.append(Stage(_drawn(random, after, before, 3, 3), np.zeros(after, dtype=float), gates))
    return CnnWeights(tuple(stages), _drawn(random, CLASSES, channels[-1]), np.zeros(CLASSES, dtype=float))


def transformer_weights(random: Random, model: int = 32, hidden: int = 64, layers: int = 2) -> TransformerWeights:
    """Where the training of `digits_transformer` begins."""
    zeros = np.zeros(model, dtype=float)
    norm = NormWeights(zeros + 1, zeros)
    encoder = []
    for _ in range(layers):
        attention = AttentionWeights(*(_drawn(random, model, model) for _ in range(4)), *[zeros] * 4)
        network = FeedForwardWeights(_drawn(random, hidden, model), _drawn(random, model, hidden), np.zeros(hidden, dtype=float), zeros)
        encoder.append(EncoderLayerWeights(attention, network, norm, norm))
    return TransformerWeights(
        w_patch=_drawn(random, model, 1, 2 * PATCH, 2 * PATCH),
        b_patch=zeros,
        positions=random.normal(((SIZE // PATCH) ** 2, model)) / 2,
        layers=tuple(encoder),
        final_norm=norm,
        w_classes=_drawn(random, CLASSES, model),
        b_classes=np.zeros(CLASSES, dtype=float),
    )


def _drawn(random: Random, *shape: int) -> Array:
    """Weights that keep the size of what they multiply: variance 1 / (number of inputs of one output)."""
    return random.normal(shape) / math.prod(shape[1:]) ** 0.5


class Recipe(NamedTuple):
    """A model, and how it is trained.

    Attributes
    ----------
    model, first_weights : callable
        The function, and where its training begins.
    epochs : int
        How often to see all images.
    learning_rate : float
        Of the first step.
    """

    model: Model
    first_weights: Callable[[Random], Any]
    epochs: int
    learning_rate: float


RECIPES: dict[str, Recipe] = {
    "cnn": Recipe(digits_cnn, cnn_weights, 15, 1e-2),
    "transformer": Recipe(digits_transformer, transformer_weights, 20, 4e-3),
}


def dataset() -> Dataset:
    """All images, always split in the same way; needs scikit-learn.

    Returns
    -------
    Dataset
        1437 images to learn from and 360 to be judged by.

    Raises
    ------
    ImportError
        Where scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits  # noqa: PLC0415  # an extra
    except ImportError:
        raise ImportError("the digits are scikit-learn's, which is not installed: pip install 'refattn[train]'") from None
    pixels, digits = load_digits(return_X_y=True)
    images, labels = np.reshape(pixels, (-1, 1, SIZE, SIZE)) / 16.0, np.asarray(digits, dtype=int)
    order = Random(0).permutation(len(labels))
    test, train = order[:TEST], order[TEST:]
    return Dataset(images[train], labels[train], images[test], labels[test])


def shifted(random: Random, images: Array) -> Array:
    """The images, some of them moved by a pixel: what leaves on one side is lost, and what comes in on the other is black."""
    moved = random.booleans(SHIFTED, (len(images), 1, 1))
    down, right = random.integers(-1, 2, (2, len(images), 1, 1)) * moved
    framed = np.pad(images[:, 0], ((0, 0), (1, 1), (1, 1)))
    each, row, column = np.arange(len(images))[:, None, None], np.arange(SIZE)[:, None], np.arange(SIZE)
    return framed[each, 1 + row + down, 1 + column + right][:, None]


def loss(model: Model) -> Callable[..., tuple[Array, Pullback]]:
    """The cross-entropy of a model's scores, with smoothed labels, as a function of weights, images and labels."""

    def of(weights: Any, images: Array, labels: Integers) -> tuple[Array, Pullback]:
        scores, scores_pullback = model(images, weights)
        value, loss_pullback = cross_entropy.vjp(scores, labels, label_smoothing=SMOOTHING)
        return value, lambda d_loss: scores_pullback(loss_pullback(d_loss)["scores"])

    return of


def accuracy(model: Model, weights: Any, images: Array, labels: Integers) -> float:
    """Share of the images whose digit has the largest score."""
    right = [model(images[i : i + 256], weights)[0].argmax(axis=-1) == labels[i : i + 256] for i in range(0, len(labels), 256)]
    return float(np.concatenate(right).mean())


class Epoch(NamedTuple):
    """How far a training has come.

    Attributes
    ----------
    epoch : int
        How often all images were seen.
    loss : float
        Mean over the batches of this epoch.
    train_accuracy, test_accuracy : float
        Shares of the images that are read right after it: of the first 360 to learn from, and of the test set.
    weights : record
        What has been learned.
    """

    epoch: int
    loss: float
    train_accuracy: float
    test_accuracy: float
    weights: Any


def train(name: Name, data: Dataset, *, epochs: int | None = None, seed: int = 0) -> Iterator[Epoch]:
    """Train a model from the start, with Adam and a step size that falls along half a cosine.

    Parameters
    ----------
    name : {"cnn", "transformer"}
        Which model.
    data : Dataset
        What to learn from and to be judged by.
    epochs : int or None, optional
        How often to see all images; None is enough for 95 % of the test set.
    seed : int, optional
        Of the first weights and of the order of the images: one seed gives one result.

    Yields
    ------
    Epoch
        After each of them.
    """
    model, first_weights, enough, learning_rate = RECIPES[name]
    random, epochs = Random(seed), enough if epochs is None else epochs
    weights, count = first_weights(random), len(data.train_labels)
    per_epoch = -(-count // BATCH)

    def batches() -> Iterator[tuple[Array, Integers]]:
        for _ in range(epochs):
            order = random.permutation(count)
            for i in range(0, count, BATCH):
                chosen = order[i : i + BATCH]
                yield shifted(random, data.train_images[chosen]), data.train_labels[chosen]

    def rate(step: int) -> float:
        return learning_rate / 2 * float(1 + np.cos(np.pi * step / (epochs * per_epoch)))

    losses = []
    for number, step in enumerate(descend(loss(model), weights, batches(), rate), start=1):
        losses.append(step.loss)
        if number % per_epoch == 0:
            train_accuracy = accuracy(model, step.weights, data.train_images[:TEST], data.train_labels[:TEST])
            test_accuracy = accuracy(model, step.weights, data.test_images, data.test_labels)
            yield Epoch(number // per_epoch, sum(losses) / len(losses), train_accuracy, test_accuracy, step.weights)
            losses.clear()


def save(path: str | Path, weights: Any, data: Dataset) -> None:
    """Write weights in float16, with the first images of the test set, as `load` reads them."""
    archive.save(path, Shipped(weights, data.test_images[:SHIPPED], data.test_labels[:SHIPPED]), "float16")


def load(name: Name, path: str | Path | None = None) -> Trained:
    """A trained model: the one that comes with the package, or one that ``refattn train --save`` has written.

    Parameters
    ----------
    name : {"cnn", "transformer"}
        Which model.
    path : path or None, optional
        A file of weights.

    Returns
    -------
    Trained
        Weights, some images that the model has not learned from, and the function.
    """
    if name not in get_args(Name):
        raise ValueError(f"name is {name!r}, but must be one of {', '.join(get_args(Name))}")
    model, first_weights, *_ = RECIPES[name]
    none = np.zeros((0, 1, SIZE, SIZE), dtype=float)
    like = Shipped(first_weights(Random(0)), none, np.zeros(0, dtype=int))
    path = path or Path(__file__).with_name(f"digits_{name}.npz")
    found = archive.load(path, like)
    if len(found.images) != len(found.labels):
        raise ValueError(f"{path} has {len(found.images)} images, but {len(found.labels)} labels")
    return Trained(*found, model)
