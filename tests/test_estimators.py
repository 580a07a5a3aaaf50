"""Estimators of gradients through a draw, against all draws: their mean is the sum over every choice, weighted by its probability."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import refattn
from refattn import testing
from refattn._core.random import Random

QUERIES, KEYS = 2, 3
EXACT = {"rtol": 1e-12, "atol": 1e-13}  # sums of nine products of numbers near 1


def inputs():
    random = Random(0)
    lengths = {"query": QUERIES, "key": KEYS, "value": KEYS}
    return {name: random.normal((1, length, 2)) for name, length in lengths.items()}


def loss(output):
    """A number that depends on all draws at once, and its derivative."""
    total = output.sum()
    return np.sin(total) + (output**2).sum(), np.cos(total) + 2 * output


def draws(given):
    """Every choice of a key for each query: its probability, its outputs and its pullback."""
    for chosen in itertools.product(range(KEYS), repeat=QUERIES):
        drawn, pullback = refattn.hard_attention.vjp(**given, chosen=np.array([chosen]))
        yield np.exp(drawn.log_probability.sum()), drawn, pullback


def expected(given):
    """The derivative of the mean loss: by the product of the weights for query and key, with the draw held fixed for the values."""
    (_, weights), pullback = refattn.scaled_dot_product_attention_with_weights.vjp(**given)
    d_weights, d_value = np.zeros_like(weights), np.zeros_like(given["value"])
    for chosen in itertools.product(range(KEYS), repeat=QUERIES):
        value, d_output = loss(given["value"][:, chosen])
        for i, j in enumerate(chosen):
            others = [weights[0, r, c] for r, c in enumerate(chosen) if r != i]
            d_weights[0, i, j] += value * np.prod(others)
            d_value[0, j] += np.prod([weights[0, r, c] for r, c in enumerate(chosen)]) * d_output[0, i]
    grads = pullback(d_weights=d_weights)
    return {"query": grads["query"], "key": grads["key"], "value": d_value}


def reinforce(drawn, pullback, baseline):
    value, d_output = loss(drawn.output)
    return pullback(d_output, np.full(drawn.log_probability.shape, value - baseline))


def test_the_choices_have_probability_1_and_the_outputs_mean_soft_attention():
    given = inputs()
    every = list(draws(given))
    np.testing.assert_allclose(sum(p for p, _, _ in every), 1, **EXACT)
    mean = sum(p * drawn.output for p, drawn, _ in every)
    np.testing.assert_allclose(mean, refattn.scaled_dot_product_attention(**given), **EXACT)


@pytest.mark.parametrize("baseline", [0.0, -1.5, 10.0])
def test_reinforce_is_unbiased_whatever_the_baseline(baseline):
    given, mean = inputs(), dict.fromkeys(("query", "key", "value"), 0.0)
    for p, drawn, pullback in draws(given):
        grads = reinforce(drawn, pullback, baseline)
        mean = {name: mean[name] + p * grads[name] for name in mean}
    for name, g in expected(given).items():
        np.testing.assert_allclose(mean[name], g, **EXACT, err_msg=name)


def test_without_the_log_probability_query_and_key_learn_nothing():
    given = inputs()
    for _, drawn, pullback in draws(given):
        grads = pullback(loss(drawn.output)[1])
        assert (grads["query"] == 0).all()
        assert (grads["key"] == 0).all()
    assert np.abs(expected(given)["query"]).max() > 0.01


def test_the_mean_loss_as_baseline_makes_the_estimates_vary_less():
    given = inputs()
    mean_loss = sum(p * loss(drawn.output)[0] for p, drawn, _ in draws(given))

    def variance(baseline):
        found = [(p, reinforce(drawn, pullback, baseline)["query"]) for p, drawn, pullback in draws(given)]
        mean = sum(p * g for p, g in found)
        return sum(p * ((g - mean) ** 2).sum() for p, g in found)

    assert variance(mean_loss) < variance(0.0) < variance(-10.0)


def test_the_entropy_is_that_of_the_weights_whatever_was_drawn():
    given = inputs()
    weights = refattn.scaled_dot_product_attention_with_weights(**given).weights
    grads = []
    for _, drawn, pullback in draws(given):
        np.testing.assert_allclose(drawn.entropy, -(weights * np.log(weights)).sum(axis=-1), **EXACT)
        grads.append(pullback(d_entropy=np.ones_like(drawn.entropy)))
    for g in grads[1:]:
        np.testing.assert_array_equal(g["query"], grads[0]["query"])
        assert (g["value"] == 0).all()


def test_the_largest_sum_with_gumbel_noise_is_drawn_as_the_softmax_says():
    """Noise -log(-log u) of an even grid of u, for two classes."""
    u = (np.arange(400) + 0.5) / 400
    noise = -np.log(-np.log(np.stack(np.meshgrid(u, u), axis=-1)))
    drawn = refattn.straight_through_gumbel_softmax(np.broadcast_to(np.log([1.0, 3.0]), noise.shape), noise)
    np.testing.assert_allclose(drawn.mean(axis=(0, 1)), [0.25, 0.75], atol=2 / 400)  # the grid's step on each axis


def test_a_low_temperature_makes_a_soft_draw_hard():
    given = dict(next(testing.samples(refattn.gumbel_softmax)).arguments)
    hard = refattn.straight_through_gumbel_softmax(**given)
    np.testing.assert_allclose(refattn.gumbel_softmax(**given, temperature=1e-4), hard, atol=1e-12)
    assert np.abs(refattn.gumbel_softmax(**given) - hard).max() > 0.1
    np.testing.assert_allclose(refattn.gumbel_softmax(**given, temperature=1e14), 0.2, atol=1e-12)


def test_no_noise_and_a_temperature_of_1_is_attention():
    given = {name: x[:, None] for name, x in inputs().items()}
    noise = np.zeros((1, 1, QUERIES, KEYS))
    soft = refattn.scaled_dot_product_attention(**given)
    np.testing.assert_array_equal(refattn.gumbel_softmax_attention(**given, noise=noise), soft)
    steep = refattn.gumbel_softmax_attention(**given, noise=noise, temperature=1e-5)
    np.testing.assert_allclose(steep, refattn.straight_through_attention(**given), **EXACT)


def test_straight_through_attention_takes_one_value_and_learns_as_if_it_had_averaged():
    given = inputs()
    output, pullback = refattn.straight_through_attention.vjp(**given)
    best = (given["query"] @ given["key"].swapaxes(1, 2)).argmax(axis=-1)
    np.testing.assert_array_equal(output, given["value"][:, best[0]])
    (d_output,) = testing.cotangents(output)
    grads, soft = pullback(d_output), refattn.scaled_dot_product_attention.vjp(**given)[1](d_output)
    for name in ("query", "key"):
        np.testing.assert_array_equal(grads[name], soft[name])
    assert np.abs(grads["value"] - soft["value"]).max() > 0.01  # the values are read with one-hot weights
    hard = refattn.hard_attention.vjp(**given, chosen=best)[1](d_output)
    np.testing.assert_array_equal(grads["value"], hard["value"])


NAMES = ["hard_attention", "straight_through_attention", "gumbel_softmax_attention"]


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", NAMES)
def test_padding_is_not_read(name, poison):
    mechanism = getattr(refattn, name)
    there = np.array([True, True, False, True, False])
    clean = {**next(testing.samples(mechanism)).arguments, "mask": there}
    if name == "hard_attention":
        clean["chosen"] = np.array([0, 1, 3])[clean["chosen"] % 3]
    dirty = {**clean, **{n: np.where(there[:, None], clean[n], poison) for n in ("key", "value")}}
    results = []
    for given in (clean, dirty):
        y, pullback = mechanism.vjp(**given)
        ds = testing.cotangents(y)
        results.append((*(y if isinstance(y, tuple) else (y,)), *pullback(*ds).values()))
    for a, b in zip(*results, strict=True):
        assert np.isfinite(b).all()
        np.testing.assert_array_equal(a, b)
