"""Optimisers on cases that are worked out by hand."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

import refattn
from refattn import optim


class Layer(NamedTuple):
    weight: np.ndarray
    bias: np.ndarray | None


def nested(value):
    return {"layers": (Layer(np.full(2, value), None), Layer(np.full((1, 2), value), np.full(1, value)))}


def test_sgd_with_momentum():
    """v = 1, then 0.5 * 1 + 0.75 * 1 = 1.25."""
    p, v = optim.sgd(np.array([1.0]), np.array([1.0]), learning_rate=0.1, momentum=0.5, dampening=0.25)
    np.testing.assert_allclose((p[0], v[0]), (0.9, 1.0), rtol=1e-15)
    p, v = optim.sgd(p, np.array([1.0]), v, learning_rate=0.1, momentum=0.5, dampening=0.25)
    np.testing.assert_allclose((p[0], v[0]), (0.775, 1.25), rtol=1e-15)


def test_sgd_nesterov_and_decay():
    """g = 1 + 0.5 * 2 = 2, v = 2, and the step is g + 0.5 * v = 3."""
    p, v = optim.sgd(np.array([2.0]), np.array([1.0]), learning_rate=0.1, momentum=0.5, nesterov=True, weight_decay=0.5)
    np.testing.assert_allclose((p[0], v[0]), (1.7, 2.0), rtol=1e-15)


def test_sgd_without_momentum_remembers_nothing():
    p, state = optim.sgd(np.array([2.0]), np.array([1.0]), learning_rate=0.5, dampening=0.75)
    assert (p[0], state) == (1.5, None)


def test_adam_by_hand():
    """Step 1: m / 0.5 = 2, v / 0.25 = 4, so 2 / (2 + 1). Step 2: m = 1.5, / 0.75 = 2; v = 0.75 + 0.25 * 4 = 1.75, / 0.4375 = 4."""
    options = {"learning_rate": 0.3, "betas": (0.5, 0.75), "eps": 1.0}
    p, state = optim.adam(np.array([1.0]), np.array([2.0]), **options)
    np.testing.assert_allclose((p[0], state.mean[0], state.square[0]), (0.8, 1.0, 1.0), rtol=1e-15)
    p, state = optim.adam(p, np.array([2.0]), state, **options)
    np.testing.assert_allclose((p[0], state.mean[0], state.square[0]), (0.6, 1.5, 1.75), rtol=1e-15)
    assert state.step == 2


def test_adamw_takes_the_decay_from_the_parameter():
    options = {"learning_rate": 0.3, "betas": (0.5, 0.75), "eps": 1.0}
    plain, state = optim.adam(np.array([1.0]), np.array([2.0]), **options)
    decayed, same = optim.adamw(np.array([1.0]), np.array([2.0]), **options, weight_decay=0.5)
    np.testing.assert_allclose(plain - decayed, 0.3 * 0.5 * 1.0, rtol=1e-14)
    assert same == state


@pytest.mark.parametrize("step", [optim.sgd, optim.adam, optim.adamw])
def test_any_nesting_and_nothing_in_place(step):
    parameters, gradients = nested(1.0), nested(0.5)
    for record in (parameters, gradients):
        for layer in record["layers"]:
            for x in layer:
                if x is not None:
                    x.setflags(write=False)
    extra = {"momentum": 0.5} if step is optim.sgd else {}
    state = None
    for _ in range(2):
        parameters, state = step(parameters, gradients, state, learning_rate=0.1, **extra)
    alone, state = np.ones(2), None
    for _ in range(2):
        alone, state = step(alone, np.full(2, 0.5), state, learning_rate=0.1, **extra)
    assert parameters["layers"][0].bias is None
    for x in (parameters["layers"][0].weight, parameters["layers"][1].weight[0], parameters["layers"][1].bias):
        np.testing.assert_array_equal(x, alone[: x.size])


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.longdouble])
@pytest.mark.parametrize("step", [optim.sgd, optim.adam, optim.adamw])
def test_parameters_keep_their_precision(step, dtype):
    p, _ = step(np.ones(2, dtype), np.ones(2), learning_rate=0.1)
    assert p.dtype == dtype


@pytest.mark.parametrize("step", [optim.sgd, optim.adam, optim.adamw])
def test_what_would_broadcast_or_be_left_out_is_refused(step):
    with pytest.raises(ValueError, match=r"gradients\.w has shape \(1, 2\), but the parameter has \(2,\)"):
        step({"w": np.ones(2)}, {"w": np.ones((1, 2))}, learning_rate=0.1)
    with pytest.raises(ValueError, match=r"gradients lacks \['w'\]"):
        step({"w": np.ones(2)}, {}, learning_rate=0.1)
    with pytest.raises(ValueError, match=r"gradients has \['x'\], which the parameters have not"):
        step({"w": np.ones(2)}, {"w": np.ones(2), "x": np.ones(2)}, learning_rate=0.1)
    with pytest.raises(ValueError, match="state"):
        state = optim.Moments(1, np.ones(3), np.ones(3)) if step is not optim.sgd else np.ones(3)
        step(np.ones(2), np.ones(2), state, learning_rate=0.1, **({"momentum": 0.5} if step is optim.sgd else {}))


@pytest.mark.parametrize("step", [optim.sgd, optim.adam, optim.adamw])
def test_what_is_no_number_or_no_array_of_numbers_is_refused(step):
    p = {"w": np.ones(2)}
    for rate in (None, "0.1", np.nan):
        with pytest.raises((TypeError, ValueError), match=f"{step.__name__}: learning_rate is"):
            step(p, p, learning_rate=rate)
    for leaf, kind in (([1.0, 2.0], "a list"), (1.0, "a float"), (np.ones(2, int), "int64"), (np.ones(2, complex), "complex128")):
        with pytest.raises(TypeError, match=rf"parameters\.w is {kind}, but must be a floating-point array"):
            step({"w": leaf}, p, learning_rate=0.1)
        with pytest.raises(TypeError, match=rf"gradients\.w is {kind}, but must be a floating-point array"):
            step(p, {"w": leaf}, learning_rate=0.1)


def test_what_is_no_state_of_adam_is_refused():
    with pytest.raises(TypeError, match="state is a dict, but must be the Moments of the last step"):
        optim.adam(np.ones(1), np.ones(1), {"step": 1})
    for betas in (0.9, (0.9,), (1.0, 0.9), (-0.1, 0.9)):
        with pytest.raises((TypeError, ValueError), match="adam: betas is"):
            optim.adam(np.ones(1), np.ones(1), betas=betas)


@pytest.mark.parametrize("step", [optim.sgd, optim.adam, optim.adamw])
@pytest.mark.parametrize("number", [np.nan, np.inf, 1e300])
def test_no_gradient_is_an_error(step, number):
    with np.errstate(all="raise"):
        p, _ = step(np.ones(2, np.float16), np.array([number, 0.0]), learning_rate=0.1)
    assert p[1] == np.float16(0.999 if step is optim.adamw else 1)


def test_nesterov_needs_a_momentum():
    with pytest.raises(ValueError, match="nesterov is True, but momentum is 0"):
        optim.sgd(np.ones(1), np.ones(1), learning_rate=0.1, nesterov=True)


def test_training_finds_the_line():
    x = np.linspace(-1, 1, 16)[:, None]
    target = 3 * x[:, 0:1] - 1
    weights, state = {"weight": np.zeros((1, 1)), "bias": np.zeros(1)}, None
    for _ in range(300):
        prediction, linear_pullback = refattn.linear.vjp(x, weights["weight"], weights["bias"])
        _, loss_pullback = refattn.mean_squared_error.vjp(prediction, target)
        grads = linear_pullback(loss_pullback(np.array(1.0))["prediction"])
        weights, state = optim.adam(weights, {n: grads[n] for n in weights}, state, learning_rate=0.1)
    np.testing.assert_allclose([weights["weight"][0, 0], weights["bias"][0]], [3, -1], atol=1e-5)
