"""Renaming of other libraries' weights, as far as it can be tested without them."""

from __future__ import annotations

import numpy as np
import pytest

from refattn._core.random import Random
from refattn.interop import keras

RANDOM = Random(1)
DENSE = {"model/dense/kernel": RANDOM.normal((4, 3)), "model/dense/bias": RANDOM.normal(3)}
SEPARABLE = {"s/depthwise_kernel": RANDOM.normal((3, 2, 4, 2)), "s/pointwise_kernel": RANDOM.normal((1, 1, 8, 5)), "s/bias": np.ones(5)}
HEADS = {
    **{f"a/{name}/kernel": RANDOM.normal((width, 2, 3)) for name, width in (("query", 6), ("key", 5), ("value", 4))},
    **{f"a/{name}/bias": RANDOM.normal((2, 3)) for name in ("query", "key", "value")},
    "a/attention_output/kernel": RANDOM.normal((2, 3, 6)),
    "a/attention_output/bias": RANDOM.normal(6),
}
LAYERS = [(keras.dense, DENSE), (keras.separable_conv, SEPARABLE), (keras.multi_head_attention, HEADS)]


@pytest.mark.parametrize(("convert", "weights"), LAYERS, ids=lambda x: getattr(x, "__name__", ""))
def test_the_way_back(convert, weights):
    back = keras.restored(convert, {path: np.zeros_like(w) for path, w in weights.items()}, convert(weights))
    assert list(back) == list(weights)
    for path, w in weights.items():
        np.testing.assert_array_equal(back[path], w)


def test_layouts_are_inverse():
    x = RANDOM.normal((2, 5, 6, 3))
    assert keras.channels_first(x).shape == (2, 3, 5, 6)
    np.testing.assert_array_equal(keras.channels_last(keras.channels_first(x)), x)


def test_what_is_not_there_or_there_twice_is_refused():
    with pytest.raises(ValueError, match="no path ends in kernel, only"):
        keras.dense({"dense/bias": np.ones(3)})
    with pytest.raises(ValueError, match=r"kernel is the end of \['a/kernel', 'b/kernel'\]"):
        keras.dense({"a/kernel": np.ones((2, 3)), "b/kernel": np.ones((2, 3))})
    with pytest.raises(ValueError, match="no path ends in kernel"):  # the end of a path is whole names
        keras.dense({"depthwise_kernel": np.ones((2, 3))})


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"weight": np.ones((3, 4))}, "arguments has .'weight'., but the layer has .'bias', 'weight'."),
        ({"weight": np.ones((4, 3)), "bias": np.ones(3)}, r"weight has shape \(4, 3\), but that of the layer has \(3, 4\)"),
    ],
)
def test_the_way_back_refuses_other_arguments(arguments, error):
    with pytest.raises(ValueError, match=error):
        keras.restored(keras.dense, DENSE, arguments)


def test_the_way_back_refuses_weights_that_it_would_forget():
    moving = {"gamma": np.ones(3), "moving_stddev": np.ones(3)}
    with pytest.raises(ValueError, match="of which normalization uses only a part"):
        keras.restored(keras.normalization, moving, {"scale": np.ones(3)})
