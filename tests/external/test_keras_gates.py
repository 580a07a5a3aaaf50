"""Channel gates against compositions of Keras's layers in float64: outputs, and gradients of inputs and weights."""

from __future__ import annotations

import pytest

import refattn
from refattn._core.random import Random
from refattn.interop import keras as interop
from tests.external.in_keras import QUIET, compare, drawn, keras

pytestmark = QUIET
layers = keras.layers
CHANNELS, HIDDEN = 4, 3
X = Random(1).normal((2, CHANNELS, 6, 5))


def network(use_bias):
    """Two layers that the mean and the maximum may share."""
    options = {"use_bias": use_bias}
    return layers.Dense(HIDDEN, "relu", name="reduce", **options), layers.Dense(CHANNELS, name="expand", **options)


def pooled(kind, x):
    return getattr(layers, f"Global{kind}Pooling2D")(keepdims=True)(x)


def squeeze_excitation(use_bias):
    x = keras.Input((6, 5, CHANNELS))
    reduce, expand = network(use_bias)
    return keras.Model(x, layers.Multiply()([x, layers.Activation("sigmoid")(expand(reduce(pooled("Average", x))))]))


def cbam_channel(use_bias):
    x = keras.Input((6, 5, CHANNELS))
    reduce, expand = network(use_bias)
    logits = layers.Add()([expand(reduce(pooled("Average", x))), expand(reduce(pooled("Max", x)))])
    return keras.Model(x, layers.Multiply()([x, layers.Activation("sigmoid")(logits)]))


def squeeze_excitation_one_layer(use_bias):
    x = keras.Input((6, 5, CHANNELS))
    gate = layers.Dense(CHANNELS, "sigmoid", use_bias=use_bias, name="gate")
    return keras.Model(x, layers.Multiply()([x, gate(pooled("Average", x))]))


def cbam_channel_concat(use_bias):
    x = keras.Input((6, 5, CHANNELS))
    gate = layers.Dense(CHANNELS, "sigmoid", use_bias=use_bias, name="gate")
    return keras.Model(x, layers.Multiply()([x, gate(layers.Concatenate()([pooled("Average", x), pooled("Max", x)]))]))


def named(weights):
    """A dense layer called `gate` has the weights ``w_gate`` and ``b_gate``."""
    parts = {path.split("/")[-2] for path in weights}
    made = {}
    for part in parts:
        of_part = interop.dense({path: w for path, w in weights.items() if path.split("/")[-2] == part})
        made |= {f"{name[0]}_{part}": w for name, w in of_part.items()}
    return made


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("theirs", [squeeze_excitation, squeeze_excitation_one_layer, cbam_channel, cbam_channel_concat])
def test_channel_gates(theirs, use_bias):
    model = drawn(theirs(use_bias), (None, 6, 5, CHANNELS))
    mechanism = getattr(refattn, theirs.__name__)
    compare(mechanism, named, model, {"x": X}, model, {}, interop.channels_first, interop.channels_last)
