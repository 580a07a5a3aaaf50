"""Layers against Keras 3 in float64: outputs, and gradients of inputs and weights by its backend's autograd."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest

import refattn
from refattn import testing
from refattn._core.random import Random
from refattn.interop import keras as interop
from tests.external.in_keras import CLOSE, QUIET, array, compare, drawn, keras, leaf, nothing, rounded, torch, weights

pytestmark = QUIET
layers = keras.layers
IMAGES = {"layout": interop.channels_first, "back": interop.channels_last}
SIZES = (9, 8, 7)


def image(axes, channels=4, seed=1):
    return Random(seed).normal((2, channels, *SIZES[:axes]))


def keras_shape(x):
    return interop.channels_last(x).shape


# Dense layers and embeddings


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("leading", [(3,), (2, 3), (2, 1, 3)])
def test_dense(leading, use_bias):
    x = Random(1).normal((*leading, 4))
    layer = drawn(layers.Dense(5, use_bias=use_bias), x.shape)
    compare(refattn.linear, interop.dense, layer, {"x": x}, layer, {})


def test_embedding():
    indices = np.array([[0, 2, 2], [5, 1, 0]])
    layer = drawn(layers.Embedding(6, 3), indices.shape)
    compare(refattn.embedding, interop.embedding, layer, {}, lambda: layer(indices), {"indices": indices})


def two_layers(weights):
    """Those of two dense layers as those of a feed-forward network."""
    items = list(weights.items())
    (w_expand, b_expand), (w_reduce, b_reduce) = (interop.dense(dict(half)).values() for half in (items[:2], items[2:]))
    return {"w_expand": w_expand, "w_reduce": w_reduce, "b_expand": b_expand, "b_reduce": b_reduce}


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_feed_forward(activation):
    x = Random(1).normal((2, 3, 4))
    network = drawn(keras.Sequential([layers.Dense(6, activation), layers.Dense(4)]), x.shape)
    compare(refattn.feed_forward, two_layers, network, {"x": x}, network, {"activation": activation})


def test_residual_connection():
    inputs = {"a": Random(1).normal((2, 3, 4)), "b": Random(2).normal((2, 3, 4))}
    compare(refattn.add, nothing, layers.Add(), inputs, lambda a, b: layers.Add()([a, b]), {})


# Convolutions

CONVOLUTIONS = list(itertools.product((1, 2, 3), ("valid", "same"), ((1, 1), (2, 1), (3, 1), (1, 2)), (1, 2), (True, False)))


@pytest.mark.parametrize(("axes", "padding", "steps", "groups", "use_bias"), CONVOLUTIONS)
def test_convolutions(axes, padding, steps, groups, use_bias):
    stride, dilation = steps
    x, kernel = image(axes), (3, 2, 4)[:axes]
    made = getattr(layers, f"Conv{axes}D")
    layer = drawn(made(6, kernel, stride, padding, dilation_rate=dilation, groups=groups, use_bias=use_bias), keras_shape(x))
    ours = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    compare(getattr(refattn, f"conv{axes}d"), interop.conv, layer, {"x": x}, layer, ours, **IMAGES)


def test_causal_convolution():
    x = image(1)
    layer = drawn(layers.Conv1D(6, 3, padding="causal", dilation_rate=2), keras_shape(x))
    compare(refattn.conv1d, interop.conv, layer, {"x": x}, layer, {"padding": ((4, 0),), "dilation": 2}, **IMAGES)


def transposed_padding(padding, kernel, stride):
    """What Keras cuts off, or adds after the end: the result has ``size * stride`` positions ("same"), or no fewer ("valid")."""
    over = kernel - stride
    cut = ((over // 2, over - over // 2) if over > 0 else (0, 0)) if padding == "same" else (0, 0)
    return cut, max(-over, 0)


@pytest.mark.parametrize(
    ("axes", "padding", "stride", "kernel"), list(itertools.product((1, 2, 3), ("valid", "same"), (1, 2, 3), (2, 3, 4)))
)
def test_transposed_convolutions(axes, padding, stride, kernel):
    x = Random(1).normal((2, 4, *(4, 3, 2)[:axes]))
    layer = drawn(getattr(layers, f"Conv{axes}DTranspose")(3, kernel, stride, padding), keras_shape(x))
    cut, more = transposed_padding(padding, kernel, stride)
    ours = {"stride": stride, "padding": (cut,) * axes, "output_padding": more}
    compare(getattr(refattn, f"conv_transpose{axes}d"), interop.conv, layer, {"x": x}, layer, ours, **IMAGES)


OF_CHANNELS = list(itertools.product(("valid", "same"), ((1, 1), (2, 1), (1, 2)), (1, 2), (True, False)))


@pytest.mark.parametrize(("padding", "steps", "multiplier", "use_bias"), OF_CHANNELS)
def test_depthwise_convolution(padding, steps, multiplier, use_bias):
    x, (stride, dilation) = image(2), steps
    options = {"strides": stride, "padding": padding, "dilation_rate": dilation, "use_bias": use_bias}
    ours = {"stride": stride, "padding": padding, "dilation": dilation}
    layer = drawn(layers.DepthwiseConv2D((3, 2), depth_multiplier=multiplier, **options), keras_shape(x))
    compare(refattn.depthwise_conv2d, interop.depthwise_conv, layer, {"x": x}, layer, ours, **IMAGES)
    layer = drawn(layers.SeparableConv2D(5, (3, 2), depth_multiplier=multiplier, **options), keras_shape(x))
    compare(refattn.separable_conv2d, interop.separable_conv, layer, {"x": x}, layer, ours, **IMAGES)


# Pooling

POOLS = list(itertools.product((1, 2, 3), (2, 3), (1, 2, 3)))


@pytest.mark.parametrize(("axes", "size", "stride"), POOLS)
@pytest.mark.parametrize("kind", ["max", "avg"])
def test_pooling(kind, axes, size, stride):
    x = image(axes)
    layer = getattr(layers, f"{'Max' if kind == 'max' else 'Average'}Pooling{axes}D")(size, stride)
    ours = {"kernel_size": size, "stride": stride}
    compare(getattr(refattn, f"{kind}_pool{axes}d"), nothing, layer, {"x": x}, layer, ours, **IMAGES)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize(("kind", "name"), [("avg", "Average"), ("max", "Max")])
def test_global_pooling(kind, name, axes):
    layer = getattr(layers, f"Global{name}Pooling{axes}D")()
    compare(getattr(refattn, f"global_{kind}_pool"), nothing, layer, {"x": image(axes)}, layer, {}, **IMAGES)


SAME = list(itertools.product((1, 2, 3), (2, 3, 4), (1, 2, 3)))


def as_same(x, size, stride):
    """Padding before each axis, and after it, for ceil(size / stride) windows."""
    needed = [max((-(-n // stride) - 1) * stride + size - n, 0) for n in x.shape[2:]]
    return [(n // 2, n - n // 2) for n in needed]


@pytest.mark.parametrize(("axes", "size", "stride"), SAME)
def test_max_pooling_of_the_same_size(axes, size, stride):
    """The padding is below all numbers here, and repeats the edge there."""
    x = image(axes)
    pairs = as_same(x, size, stride)
    lowest = refattn.pad(x - x.min() + 1, padding=pairs)  # above 0, which is what is padded
    layer = getattr(layers, f"MaxPooling{axes}D")(size, stride, "same")
    made = layer(leaf(interop.channels_last(x)))
    pooled = getattr(refattn, f"max_pool{axes}d")(lowest, kernel_size=size, stride=stride) + x.min() - 1
    np.testing.assert_allclose(pooled, interop.channels_first(array(made)), **CLOSE)
    if all(before == after for before, after in pairs):
        ours = {"kernel_size": size, "stride": stride, "padding": pairs[0][0] if axes == 1 else tuple(before for before, _ in pairs)}
        compare(getattr(refattn, f"max_pool{axes}d"), nothing, layer, {"x": x}, layer, ours, **IMAGES)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_average_pooling_of_the_same_size(axes):
    """As many zeros before as after: they do not count."""
    layer = getattr(layers, f"AveragePooling{axes}D")(3, 1, "same")
    ours = {"kernel_size": 3, "stride": 1, "padding": 1, "count_include_pad": False}
    compare(getattr(refattn, f"avg_pool{axes}d"), nothing, layer, {"x": image(axes)}, layer, ours, **IMAGES)


ON_JAX = """
import keras, numpy as np
print(*np.asarray(keras.layers.AveragePooling1D(4, 1, "same")(np.arange(1.0, 6.0)[None, :, None] ** 2)).ravel())
"""


def test_average_pooling_repeats_the_edge_where_it_pads_unevenly():
    """Keras's two backends disagree. JAX's leaves the padding out, as the reference does."""
    x = np.arange(1.0, 6.0)[None] ** 2
    right = [(1 + 4 + 9) / 3, (1 + 4 + 9 + 16) / 4, (4 + 9 + 16 + 25) / 4, (9 + 16 + 25) / 3, (16 + 25) / 2]
    ours = refattn.avg_pool1d(x, kernel_size=4, stride=1, padding=2, count_include_pad=False)[0, 1:]  # 1 before and 2 after
    np.testing.assert_allclose(ours, right, rtol=1e-15)
    theirs = array(layers.AveragePooling1D(4, 1, "same")(torch.tensor(x[..., None])))[0, :, 0]
    repeated = [(1 + 1 + 4 + 9) / 4, *right[1:3], (9 + 16 + 25 + 25) / 4, (16 + 25 + 25 + 25) / 4]
    np.testing.assert_allclose(theirs, repeated, rtol=1e-15)
    pytest.importorskip("jax")
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", ON_JAX], capture_output=True, text=True, check=True, env=environment)
    np.testing.assert_allclose(np.array(done.stdout.split(), float), right, rtol=1e-6)


# Padding and upsampling


def test_zero_padding():
    layer = layers.ZeroPadding2D(((1, 2), (0, 3)))
    compare(refattn.pad, nothing, layer, {"x": image(2)}, layer, {"padding": ((1, 2), (0, 3))}, **IMAGES)


@pytest.mark.parametrize("size", [(2, 2), (3, 1)])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_upsampling(interpolation, size):
    x = image(2)
    layer = layers.UpSampling2D(size, interpolation=interpolation)
    ours = {"output_size": (x.shape[2] * size[0], x.shape[3] * size[1])}
    compare(getattr(refattn, f"resize_{interpolation}"), nothing, layer, {"x": x}, layer, ours, **IMAGES)


# Normalisation


@pytest.mark.parametrize("parts", list(itertools.product((True, False), (True, False))))
@pytest.mark.parametrize("normalized", [1, 2])
def test_layer_normalization(normalized, parts):
    x = Random(1).normal((2, 3, 4))
    center, scale = parts
    layer = drawn(layers.LayerNormalization(tuple(range(-normalized, 0)), 1e-3, center, scale), x.shape)
    compare(refattn.layer_norm, interop.normalization, layer, {"x": x}, layer, {"eps": 1e-3, "normalized": normalized})


def test_rms_normalization():
    x = Random(1).normal((2, 3, 4))
    layer = drawn(layers.RMSNormalization(epsilon=1e-3), x.shape)
    compare(refattn.rms_norm, interop.normalization, layer, {"x": x}, layer, {"eps": 1e-3})


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_group_normalization(groups, axes):
    x = image(axes)
    layer = drawn(layers.GroupNormalization(groups, epsilon=1e-3), keras_shape(x))
    compare(refattn.group_norm, interop.normalization, layer, {"x": x}, layer, {"num_groups": groups, "eps": 1e-3}, **IMAGES)
    if groups == 4:
        compare(refattn.instance_norm, interop.normalization, layer, {"x": x}, layer, {"eps": 1e-3}, **IMAGES)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_batch_normalization_at_inference(axes):
    x = image(axes)
    layer = drawn(layers.BatchNormalization(epsilon=1e-3), keras_shape(x))
    compare(refattn.batch_norm, interop.normalization, layer, {"x": x}, lambda x: layer(x, training=False), {"eps": 1e-3}, **IMAGES)


def test_batch_normalization_in_training():
    """Keras keeps the variance of the batch as it is; the paper's algorithm 2, and the reference, have n - 1 in place of n."""
    x = image(2)
    layer = drawn(layers.BatchNormalization(momentum=0.75, epsilon=1e-3), keras_shape(x))
    before = interop.normalization({path: np.array(w) for path, w in weights(layer).items()})
    (y, mean, var), pullback = refattn.batch_norm_training.vjp(x, **before, momentum=0.25, eps=1e-3)
    theirs = leaf(interop.channels_last(x))
    made = layer(theirs, training=True)
    np.testing.assert_allclose(y, interop.channels_first(array(made)), **CLOSE)
    d = testing.cotangents(y)[0]
    made.backward(torch.tensor(interop.channels_last(d).copy()))
    np.testing.assert_allclose(pullback(d)["x"], interop.channels_first(theirs.grad.numpy()), **CLOSE)
    after = interop.normalization({path: np.array(w) for path, w in weights(layer).items()})
    np.testing.assert_allclose(mean, after["running_mean"], **CLOSE)
    n = x[:, 0].size
    np.testing.assert_allclose(
        var - 0.75 * before["running_var"], (after["running_var"] - 0.75 * before["running_var"]) * n / (n - 1), **CLOSE
    )
    assert not np.allclose(var, after["running_var"], rtol=1e-4)


# Functions of one array

FUNCTIONS = {
    "erf": keras.ops.erf,
    "gelu": lambda x, approximate="none": keras.activations.gelu(x, approximate=approximate == "tanh"),
    "log_softmax": keras.activations.log_softmax,
    "logsumexp": lambda x: keras.ops.logsumexp(x, axis=-1),
    "relu": keras.activations.relu,
    "sigmoid": keras.activations.sigmoid,
    "silu": keras.activations.silu,
    "softmax": keras.activations.softmax,
    "softplus": keras.activations.softplus,
    "tanh": keras.activations.tanh,
}
PLAIN = [
    pytest.param(name, s, id=f"{name}-{s.name}")
    for name in FUNCTIONS
    for s in testing.samples(getattr(refattn, name))
    if s.arguments.keys() <= ({"x", "approximate"} if name == "gelu" else {"x"})
]


@pytest.mark.filterwarnings("ignore:You are using a softmax over axis")  # of one class
@pytest.mark.parametrize(("name", "sample"), PLAIN)
def test_functions(name, sample):
    options = {n: v for n, v in sample.arguments.items() if n != "x"}
    call = lambda x: FUNCTIONS[name](x, **options)  # noqa: E731
    compare(getattr(refattn, name), nothing, layers.Identity(), {"x": sample.arguments["x"]}, call, options)


# Precision


def test_float64_is_rounded_unless_keras_is_told_to_keep_it():
    """The layer says that it computes in float64, on every backend; outside TensorFlow's, its product is one of float32."""
    x = Random(1).normal((2, 4))
    layer = drawn(layers.Dense(5), x.shape)
    right = refattn.linear(x, **interop.dense(weights(layer)))
    with rounded():
        theirs = layer(torch.tensor(x))
    assert layer.compute_dtype == "float64"
    np.testing.assert_allclose(array(layer(torch.tensor(x))), right, rtol=1e-15, atol=1e-15)
    assert 1e-9 < abs(array(theirs) - right).max() < 1e-6


# Weights there and back

LAYERS = {
    "dense": (interop.dense, layers.Dense(5), (2, 4)),
    "conv1d": (interop.conv, layers.Conv1D(6, 3, groups=2), (2, 9, 4)),
    "conv2d": (interop.conv, layers.Conv2D(6, (3, 2)), (2, 9, 8, 4)),
    "conv3d transposed": (interop.conv, layers.Conv3DTranspose(6, (3, 2, 4), use_bias=False), (2, 9, 8, 7, 4)),
    "depthwise": (interop.depthwise_conv, layers.DepthwiseConv2D((3, 2), depth_multiplier=2), (2, 9, 8, 4)),
    "separable": (interop.separable_conv, layers.SeparableConv2D(5, (3, 2), depth_multiplier=2), (2, 9, 8, 4)),
    "layer normalisation": (interop.normalization, layers.LayerNormalization(), (2, 4)),
    "batch normalisation": (interop.normalization, layers.BatchNormalization(), (2, 4)),
    "embedding": (interop.embedding, layers.Embedding(6, 3), (2, 4)),
}


@pytest.mark.parametrize(("convert", "layer", "shape"), LAYERS.values(), ids=LAYERS)
def test_weights_go_there_and_back(convert, layer, shape):
    drawn(layer, shape)
    kept = {path: np.array(w) for path, w in weights(layer).items()}
    back = interop.restored(convert, kept, convert(kept))
    assert back.keys() == kept.keys()
    for path, w in kept.items():
        np.testing.assert_array_equal(back[path], w)
