"""Losses and optimisers against Keras 3 in float64: values, gradients, and twenty steps."""

from __future__ import annotations

import numpy as np
import pytest

import refattn
from refattn import optim, testing
from refattn._core.random import Random
from tests.external.in_keras import CLOSE, QUIET, array, compare, keras, leaf, nothing, torch

pytestmark = QUIET
losses, optimizers = keras.losses, keras.optimizers

# Losses


def test_mean_squared_error():
    inputs = {name: Random(seed).normal((3, 4)) for seed, name in enumerate(("prediction", "target"))}
    call = lambda prediction, target: losses.MeanSquaredError()(target, prediction)  # noqa: E731
    compare(refattn.mean_squared_error, nothing, keras.layers.Identity(), inputs, call, {})


def one_hot(targets, classes):
    return torch.tensor(np.eye(classes)[targets])


CLASSES = 4
SCORES, TARGETS = Random(1).normal((2, 3, CLASSES)), np.array([[0, 3, 1], [2, 1, 2]])


@pytest.mark.parametrize("label_smoothing", [0.0, 0.25])
@pytest.mark.parametrize(("theirs", "ours"), [("sum_over_batch_size", "mean"), ("sum", "sum")])
def test_categorical_cross_entropy(theirs, ours, label_smoothing):
    loss = losses.CategoricalCrossentropy(from_logits=True, label_smoothing=label_smoothing, reduction=theirs)
    call = lambda scores: loss(one_hot(TARGETS, CLASSES), scores)  # noqa: E731
    options = {"targets": TARGETS, "label_smoothing": label_smoothing, "reduction": ours}
    compare(refattn.cross_entropy, nothing, keras.layers.Identity(), {"scores": SCORES}, call, options)


def test_cross_entropy_that_ignores_a_class():
    """A mean over what counts, in both."""
    loss = losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=1, reduction="mean_with_sample_weight")
    call = lambda scores: loss(torch.tensor(TARGETS), scores)  # noqa: E731
    options = {"targets": TARGETS, "ignore_index": 1}
    compare(refattn.cross_entropy, nothing, keras.layers.Identity(), {"scores": SCORES}, call, options)


def test_weights_of_classes():
    """Keras weighs examples and divides by their number, unless it is asked for a mean by weight, which is what the reference has."""
    class_weights = Random(2).uniform(0.5, 2.0, CLASSES)
    for reduction, divisor in (("sum_over_batch_size", TARGETS.size), ("mean_with_sample_weight", class_weights[TARGETS].sum())):
        loss = losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction)
        theirs = array(loss(torch.tensor(TARGETS), torch.tensor(SCORES), sample_weight=torch.tensor(class_weights[TARGETS])))
        ours = refattn.cross_entropy(SCORES, TARGETS, class_weights, reduction="sum")
        np.testing.assert_allclose(ours / divisor, theirs, **CLOSE)
    np.testing.assert_allclose(refattn.cross_entropy(SCORES, TARGETS, class_weights), theirs, **CLOSE)


def test_keras_clips_probabilities():
    """Given probabilities it keeps them above 1e-7, so that being surely wrong costs 16 and has no gradient."""
    scores = np.array([[0.0, 40.0]])
    ours, pullback = refattn.cross_entropy.vjp(scores, np.array([0]))
    (d,) = testing.cotangents(ours)
    theirs = leaf(scores)
    made = losses.SparseCategoricalCrossentropy()(torch.tensor([0]), torch.softmax(theirs, -1))
    made.backward()
    np.testing.assert_allclose(array(made), -np.log(1e-7), rtol=1e-6)
    np.testing.assert_array_equal(theirs.grad.numpy(), [[0, 0]])
    np.testing.assert_allclose(ours, 40, rtol=1e-15)
    np.testing.assert_allclose(pullback(d)["scores"], [[-d, d]], rtol=1e-15)


def test_shapes_that_broadcast():
    """Keras drops an axis of one to make ranks equal; the reference wants one shape, and neither forms a table of differences."""
    column, row = Random(1).normal((4, 1)), Random(2).normal(4)
    made = losses.MeanSquaredError()(torch.tensor(row), torch.tensor(column))
    np.testing.assert_allclose(refattn.mean_squared_error(column[:, 0], row), array(made), **CLOSE)
    with pytest.raises(ValueError, match="target has 1 axes, but needs 2"):
        refattn.mean_squared_error(column, row)


# Optimisers

STEPS, RATE = 20, 0.05


def twenty_steps(ours, theirs, rates=(RATE,) * STEPS):
    """Parameters after the steps of both, from the same gradients; `ours` takes the number of the step."""
    random = Random(0)
    parameters, state = {"weight": random.normal((3, 4)), "bias": random.normal(3)}, None
    variables = {name: keras.Variable(x, dtype="float64") for name, x in parameters.items()}
    theirs.build(list(variables.values()))
    for t, rate in enumerate(rates, 1):
        gradients = {name: random.normal(x.shape) for name, x in parameters.items()}
        parameters, state = ours(t, parameters, gradients, state, learning_rate=rate)
        theirs.learning_rate = rate
        theirs.apply([torch.tensor(g) for g in gradients.values()])
    return parameters, {name: np.array(v) for name, v in variables.items()}


def agree(ours, theirs, **more):
    a, b = twenty_steps(ours, theirs, **more)
    return all(np.allclose(a[name], b[name], rtol=1e-12, atol=1e-12) for name in a)


def with_options(optimizer, **options):
    return lambda t, *given, **rate: optimizer(*given, **rate, **options)


SGD = [({}, {}), ({"momentum": 0.9}, {"momentum": 0.9}), ({"momentum": 0.5, "nesterov": True}, {"momentum": 0.5, "nesterov": True})]


@pytest.mark.parametrize(("ours", "theirs"), SGD, ids=["plain", "momentum", "nesterov"])
def test_sgd(ours, theirs):
    assert agree(with_options(optim.sgd, **ours), optimizers.SGD(RATE, **theirs))


def test_a_learning_rate_that_changes():
    """Keras keeps velocities with the rate inside, as Sutskever et al. wrote it, and the reference without, as PyTorch does."""
    rates = [RATE / t for t in range(1, STEPS + 1)]
    ours = with_options(optim.sgd, momentum=0.9)
    assert not agree(ours, optimizers.SGD(RATE, momentum=0.9), rates=rates)

    def rate_inside(t, parameters, gradients, state, *, learning_rate):
        scaled = {name: learning_rate * g for name, g in gradients.items()}
        return optim.sgd(parameters, scaled, state, learning_rate=1.0, momentum=0.9)

    assert agree(rate_inside, optimizers.SGD(RATE, momentum=0.9), rates=rates)


def test_weight_decay_of_sgd():
    """Keras takes it from the parameters, as AdamW does, and the reference adds it to the gradients, as PyTorch does.

    Both are the same without momentum.
    """
    ours = {"weight_decay": 0.1}
    assert agree(with_options(optim.sgd, **ours), optimizers.SGD(RATE, **ours))
    assert not agree(with_options(optim.sgd, momentum=0.9, **ours), optimizers.SGD(RATE, momentum=0.9, **ours))


ADAM = [(optim.adam, optimizers.Adam, {}), (optim.adamw, optimizers.AdamW, {"weight_decay": 0.5})]
BETAS = (0.8, 0.9)


@pytest.mark.parametrize(("ours", "theirs", "more"), ADAM, ids=["adam", "adamw"])
@pytest.mark.parametrize("eps", [0.0, 1e-7, 0.1])
def test_adam(ours, theirs, more, eps):
    """Keras adds epsilon before it corrects the root, the form just before section 2.1 of the paper: ours with a larger epsilon in early steps."""

    def corrected(t, *given, **rate):
        return ours(*given, **rate, betas=BETAS, eps=eps / np.sqrt(1 - BETAS[1] ** t), **more)

    def make():
        return theirs(RATE, beta_1=BETAS[0], beta_2=BETAS[1], epsilon=eps, **more)

    assert agree(corrected, make())
    assert agree(with_options(ours, betas=BETAS, eps=eps, **more), make()) == (eps == 0.0)
