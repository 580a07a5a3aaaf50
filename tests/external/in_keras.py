"""Keras 3 on PyTorch in float64: its layers beside mechanisms, their outputs and the gradients of inputs and weights.

Importing this module skips the tests that do so where Keras or PyTorch is missing, or where another backend was chosen.
"""

from __future__ import annotations

import os
from contextlib import contextmanager

import numpy as np
import pytest

from refattn import testing
from refattn._core.mechanism import outputs
from refattn._core.random import Random

os.environ.setdefault("KERAS_BACKEND", "torch")  # read when Keras is imported, and never again
torch = pytest.importorskip("torch")
keras = pytest.importorskip("keras")
if keras.config.backend() != "torch":
    pytest.skip(f"Keras runs on {keras.config.backend()}", allow_module_level=True)
from keras.src.backend.common import dtypes  # noqa: E402

keras.config.set_floatx("float64")
dtypes.BIT64_TO_BIT32_DTYPE["float64"] = "float64"
"""As Keras has it on TensorFlow. On other backends products and sums of float64 arrays become float32: see `rounded`."""
keras.config.set_image_data_format("channels_last")

QUIET = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
"""Keras 3.15 reads tensors in a way that NumPy 2 calls deprecated."""

CLOSE = {"rtol": 1e-11, "atol": 1e-12}  # sums of some hundred products of numbers of size 1


@contextmanager
def rounded():
    """Keras as it is on backends other than TensorFlow, where operations on float64 give float32."""
    table = dtypes.BIT64_TO_BIT32_DTYPE
    table["float64"] = "float32"
    yield
    table["float64"] = "float64"


def leaf(x):
    """A tensor with a gradient where the array is real."""
    return torch.tensor(x.copy(), requires_grad=x.dtype.kind == "f")


def array(tensor):
    return tensor.detach().numpy()


def drawn(layer, *shapes, seed=3):
    """The layer, built for inputs of these shapes, with random weights: biases of 0 and scales of 1 would test nothing."""
    layer.build(*shapes)
    random = Random(seed)
    for w in layer.weights:
        shape = tuple(w.shape)
        w.assign(random.uniform(0.5, 2.0, shape) if w.path.endswith("moving_variance") else random.normal(shape))
    return layer


def weights(layer):
    return {w.path: w for w in layer.weights}


def gradients(layer):
    """After `backward`, by the paths of the weights."""
    return {w.path: w.value.grad.numpy() for w in layer.trainable_weights}


def nothing(weights):
    """What becomes of the weights of a layer without weights."""
    return {**weights}


def compare(mechanism, convert, layer, inputs, call, ours, layout=lambda x: x, back=lambda x: x):
    """A layer's outputs and gradients, and ours with its weights.

    `inputs` are ours by name and `call` takes their leaves in the layer's layout, which `back` makes; `layout` brings what the layer
    returns, and the gradients of its inputs, into ours.
    """
    y, pullback = mechanism.vjp(**inputs, **convert(weights(layer)), **ours)
    leaves = {name: leaf(back(x)) for name, x in inputs.items()}
    made = outputs(call(*leaves.values()))
    ds = testing.cotangents(y)
    for a, b in zip(outputs(y), made, strict=True):
        np.testing.assert_allclose(a, layout(array(b)), **CLOSE)
    for w in layer.trainable_weights:
        w.value.grad = None
    torch.autograd.backward(made, [torch.tensor(back(d).copy()) for d in ds])
    wanted = {**{n: layout(x.grad.numpy()) for n, x in leaves.items() if x.requires_grad}, **convert(gradients(layer))}
    grads = pullback(*ds)
    assert {n for n in grads if not n.startswith("running_")} == wanted.keys()
    for name, g in wanted.items():
        np.testing.assert_allclose(grads[name], g, **CLOSE, err_msg=name)
