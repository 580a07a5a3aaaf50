"""Arrays of other frameworks: made from exact numbers, and read back without a change.

CuPy needs a GPU even to make an array. A module stands in for it here that has what `refattn` uses of it, and refuses, as CuPy
does, to become an array of NumPy by itself. MLX is tested in `tests/external`.
"""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest

import refattn
from refattn import testing
from refattn.testing import frameworks
from refattn.testing.command import Stored
from refattn.testing.precision import FORMATS, Format

EIGHTS = [Format("float8_e4m3fn", 4, -6, 448.0, 2.0**-24), Format("float8_e5m2", 3, -14, 57344.0, 2.0**-24)]
EVERY = [pytest.param(f, id=f.name) for f in (*(f for f in FORMATS.values() if not f.name.startswith("float8")), *EIGHTS)]


def numbers(target):
    """Numbers of a format: ordinary, subnormal, largest, signed zeros, NaN."""
    x = np.random.default_rng(0).normal(size=(4, 5)) * 2.0 ** np.random.default_rng(1).integers(target.lowest - target.digits, 6, (4, 5))
    x[0, :5] = 0.0, -0.0, target.largest, -target.largest, np.nan
    return target.round(x)


@pytest.mark.parametrize("target", EVERY)
@pytest.mark.parametrize("name", ["files", "numpy", "torch"])
def test_numbers_come_back_as_they_were(name, target):
    if name == "numpy" and target in EIGHTS:
        pytest.skip("float8 of NumPy is that of ml_dtypes, which knows its own names")
    if name == "numpy":
        pytest.importorskip("ml_dtypes")
    if name == "torch":
        pytest.importorskip("torch")
    frame = Stored() if name == "files" else frameworks.framework(name)
    x = numbers(target)
    made = frame.make(x, target)
    assert str(made.dtype).rpartition(".")[2] == target.name
    back = frame.value(made)
    np.testing.assert_array_equal(back, x)
    np.testing.assert_array_equal(np.signbit(back[0, :4]), np.signbit(x[0, :4]))
    for other in (np.array([True, False]), np.array([3, -1])):
        np.testing.assert_array_equal(np.asarray(frame.make(other, target)), other)


class OnGpu:
    """An array that is not in main memory."""

    def __init__(self, held):
        self.held = held

    dtype = property(lambda self: self.held.dtype)
    shape = property(lambda self: self.held.shape)

    def get(self):
        return self.held.copy()

    def __array__(self, dtype=None, copy=None):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array explicitly.")


@pytest.fixture
def cupy(monkeypatch):
    """A module with what is used of CuPy."""
    module = types.ModuleType("cupy")
    module.ndarray, module.asarray = OnGpu, lambda x: OnGpu(np.array(x))
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


def softmax_on_gpu(x):
    held = x.held.astype(np.float64)
    e = np.exp(held - held.max(axis=-1, keepdims=True))
    return OnGpu((e / e.sum(axis=-1, keepdims=True)).astype(x.dtype))


def gradients_on_gpu(d, x):
    grads = refattn.softmax.vjp(x.held)[1](d.held)
    return {"x": OnGpu(grads["x"].astype(x.dtype))}


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_a_kernel_of_cupy_is_checked(cupy, dtype):
    pytest.importorskip("ml_dtypes")
    report = testing.check(softmax_on_gpu, refattn.softmax, gradients=gradients_on_gpu, framework="cupy", dtype=dtype)
    report.raise_if_wrong()
    assert {r.what for r in report.results if r.passed} == {"output", "d_x"}
    assert not testing.check(lambda x: OnGpu(softmax_on_gpu(x).held * 1.02), refattn.softmax, framework="cupy", dtype=dtype).passed


def test_a_kernel_of_cupy_that_writes_to_its_arguments_is_found(cupy):
    def careless(x):
        y = softmax_on_gpu(x)
        x.held[...] = 0
        return y

    report = testing.check(careless, refattn.softmax, framework="cupy")
    assert {r.reason for r in report.failures} == {"changed in place: x"}


@pytest.mark.parametrize("name", ["cupy", "mlx"])
def test_a_framework_that_is_not_installed_is_named(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlx.core" if name == "mlx" else name, None)
    with pytest.raises(ImportError, match=name):
        testing.check(softmax_on_gpu, refattn.softmax, framework=name)
