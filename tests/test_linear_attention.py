"""What must hold between the linear attentions by mathematics: one form of another, one rule of another, and what they remember."""

from __future__ import annotations

import numpy as np
import pytest

import refattn
from refattn._core.random import Random
from tests.test_identities import gradients, same

EXACT = {"rtol": 1e-12, "atol": 1e-12}  # sums of at most 100 numbers near 1, in another order
LENGTH = 11


def inputs(*names, seed=0, heads=4, kv_heads=2, length=LENGTH):
    random = Random(seed)
    given = {
        "query": random.normal((2, heads, length, 3)),
        "key": random.normal((2, kv_heads, length, 3)),
        "value": random.normal((2, kv_heads, length, 5)),
        "log_decays": -random.uniform(0.0, 1.0, (2, kv_heads, length, 3)),
        "log_decay": -random.uniform(0.0, 1.0, (2, kv_heads, length)),
        "beta": random.uniform(0.0, 1.0, (2, kv_heads, length)),
        "state": random.normal((2, kv_heads, 3, 5)),
        "normalizer": random.uniform(0.5, 2.0, (2, kv_heads, 3)),
    }
    return {name: given[name] for name in ("query", "key", "value", *names)}


def linear(**options):
    return refattn.linear_attention, refattn.chunked_linear_attention, {**inputs("state", "normalizer"), "causal": True, **options}


def gated(**options):
    given = inputs("log_decays", "state")
    decays = given.pop("log_decays")
    return refattn.gated_linear_attention, refattn.chunked_gated_linear_attention, {**given, "log_decay": decays, **options}


def delta(**options):
    return refattn.delta_rule, refattn.chunked_delta_rule, {**inputs("beta", "state"), **options}


def gated_delta(**options):
    return refattn.gated_delta_rule, refattn.chunked_gated_delta_rule, {**inputs("log_decay", "beta", "state"), **options}


FAMILY = [pytest.param(f, id=f.__name__) for f in (linear, gated, delta, gated_delta)]


def unit(key):
    return key / np.sqrt((key**2).sum(axis=-1, keepdims=True))


def part(given, at):
    """Some of the positions of a call, and the same state and options."""
    along = {"query", "key", "value", "log_decay", "beta"}
    return {n: x[:, :, at] if n in along else x for n, x in given.items()}


@pytest.mark.parametrize("chunk_size", [1, 2, 4, LENGTH - 1, LENGTH, LENGTH + 1, 64])
@pytest.mark.parametrize("case", FAMILY)
def test_chunks_give_what_steps_give(case, chunk_size):
    steps, chunks, given = case()
    same(gradients(chunks, {**given, "chunk_size": chunk_size}), gradients(steps, given), **EXACT)


@pytest.mark.parametrize("case", FAMILY)
def test_two_halves_with_the_state_between_are_the_whole(case):
    for form in case()[:2]:
        given = case()[2]
        random = Random(5)
        whole, pullback = form.vjp(**given)
        d_output, *d_memory = (random.normal(y.shape) for y in whole)
        grads = pullback(d_output, *d_memory)
        first, first_pullback = form.vjp(**part(given, slice(0, 4)))
        carried = first._asdict()
        del carried["output"]
        second, second_pullback = form.vjp(**{**part(given, slice(4, None)), **carried})
        np.testing.assert_allclose(np.concatenate([first.output, second.output], axis=2), whole.output, **EXACT)
        d_second = second_pullback(d_output[:, :, 4:], *d_memory)
        d_first = first_pullback(d_output[:, :, :4], *(d_second[name] for name in carried))
        for name, memory in zip(carried, second[1:], strict=True):
            np.testing.assert_allclose(memory, getattr(whole, name), **EXACT)
            np.testing.assert_allclose(d_first[name], grads[name], **EXACT, err_msg=name)
        for name in grads.keys() - carried.keys():
            np.testing.assert_allclose(np.concatenate([d_first[name], d_second[name]], axis=2), grads[name], **EXACT, err_msg=name)


def test_without_decay_a_gate_does_nothing():
    given = gated()[2]
    (output, state), grads = gradients(refattn.gated_linear_attention, {**given, "log_decay": np.zeros_like(given["log_decay"])})
    raw = {"feature_map": None, "normalize": False, "causal": True}
    plain, pullback = refattn.linear_attention.vjp(**{n: given[n] for n in ("query", "key", "value", "state")}, **raw)
    np.testing.assert_allclose(output, plain.output, **EXACT)
    np.testing.assert_allclose(state, plain.state, **EXACT)
    del grads["log_decay"]
    d_output, d_state = (np.ones_like(output), np.ones_like(state))
    of_gated = refattn.gated_linear_attention.vjp(**{**given, "log_decay": np.zeros_like(given["log_decay"])})[1](d_output, d_state)
    for name, g in pullback(d_output, d_state).items():
        np.testing.assert_allclose(of_gated[name], g, **EXACT, err_msg=name)


def test_without_decay_the_gated_delta_rule_is_the_delta_rule():
    given = gated_delta()[2]
    outputs, grads = gradients(refattn.gated_delta_rule, {**given, "log_decay": np.zeros_like(given["log_decay"])})
    del grads["log_decay"], given["log_decay"]
    same((outputs, grads), gradients(refattn.delta_rule, given))


def test_orthonormal_keys_are_never_erased():
    given = gated_delta(beta=np.ones((2, 2, 3)))[2]
    given = {**part(given, slice(0, 3)), "key": np.broadcast_to(np.eye(3), (2, 2, 3, 3)), "state": None}
    erasing = refattn.gated_delta_rule(**given)
    del given["beta"]
    decays = np.broadcast_to(given.pop("log_decay")[..., None], (2, 2, 3, 3))
    for a, b in zip(erasing, refattn.gated_linear_attention(**given, log_decay=decays), strict=True):
        np.testing.assert_allclose(a, b, **EXACT)


def test_with_a_rate_of_0_nothing_is_written():
    for form in delta()[:2]:
        given = delta(beta=np.zeros((2, 2, LENGTH)))[2]
        output, state = form(**given)
        np.testing.assert_array_equal(state, given["state"])
        read = np.einsum("bhgtk,bhkv->bhgtv", given["query"].reshape(2, 2, 2, LENGTH, 3), given["state"]) / np.sqrt(3)
        np.testing.assert_allclose(output, read.reshape(output.shape), **EXACT)


def test_with_unit_keys_and_a_rate_of_1_the_value_is_replaced():
    for case in (delta, gated_delta):
        for form in case()[:2]:
            given = case(beta=np.ones((2, 2, LENGTH)), scale=1.0)[2]
            given["key"] = unit(given["key"])
            given["query"] = given["key"].repeat(2, axis=1)
            output, state = form(**given)
            np.testing.assert_allclose(output, given["value"].repeat(2, axis=1), **EXACT)
            np.testing.assert_allclose(np.einsum("bhk,bhkv->bhv", given["key"][:, :, -1], state), given["value"][:, :, -1], **EXACT)


def test_a_rate_of_2_reflects():
    given = delta(beta=np.full((2, 2, LENGTH), 2.0), value=np.zeros((2, 2, LENGTH, 5)))[2]
    given["key"] = unit(given["key"])
    for form in delta()[:2]:
        state = form(**given).state
        np.testing.assert_allclose((state**2).sum(axis=-2), (given["state"] ** 2).sum(axis=-2), **EXACT)


def test_linear_attention_is_a_weighted_mean():
    given = inputs(kv_heads=4)
    query, key = refattn.elu_plus_one(given["query"]), refattn.elu_plus_one(given["key"])
    for causal in (False, True):
        weights = query @ key.swapaxes(-1, -2) * (np.tri(LENGTH) if causal else 1)
        expected = weights / weights.sum(axis=-1, keepdims=True) @ given["value"]
        np.testing.assert_allclose(refattn.linear_attention(**given, causal=causal).output, expected, **EXACT)


def test_the_last_causal_query_reads_everything():
    _, _, given = linear()
    causal, full = refattn.linear_attention(**given), refattn.linear_attention(**{**given, "causal": False})
    np.testing.assert_allclose(causal.output[:, :, -1], full.output[:, :, -1], **EXACT)
    np.testing.assert_allclose(causal.state, full.state, **EXACT)


def test_the_scale_cancels_where_weights_are_normalised():
    _, _, given = linear()
    np.testing.assert_allclose(*(refattn.linear_attention(**given, scale=s).output for s in (None, 7.0)), **EXACT)


def test_no_weight_gives_no_value_and_no_gradient():
    given = {"query": -np.ones((1, 2, 3)), "key": np.ones((1, 2, 3)), "value": np.ones((1, 2, 1)), "feature_map": "relu"}
    output, pullback = refattn.linear_attention.vjp(**given, causal=True)
    np.testing.assert_array_equal(output.output, 0)
    for g in pullback(np.ones((1, 2, 1))).values():
        np.testing.assert_array_equal(g, 0)


@pytest.mark.parametrize("case", [pytest.param(f, id=f.__name__) for f in (gated, gated_delta)])
@pytest.mark.parametrize("log_decay", [-30.0, -800.0, -1e30, -np.inf])
def test_strong_decays_neither_overflow_nor_lose_what_comes_after(case, log_decay):
    steps, chunks, given = case()
    decays = given["log_decay"].copy()
    decays[:, :, 1::3] = log_decay
    given["log_decay"] = decays
    (output, state), grads = by_steps = gradients(steps, given)
    assert all(np.isfinite(x).all() for x in (output, state, *grads.values()))
    for chunk_size in (3, 4, 64):
        same(gradients(chunks, {**given, "chunk_size": chunk_size}), by_steps, **EXACT)


@pytest.mark.parametrize("case", FAMILY)
@pytest.mark.parametrize("chunk_size", [4, 64])
def test_no_query_reads_what_comes_later(case, chunk_size):
    steps, chunks, given = case()
    for name in given.keys() & {"query", "key", "value", "log_decay", "beta"}:
        spoiled = given[name].copy()
        spoiled[:, :, 6:] = np.nan
        for form, options in ((steps, {}), (chunks, {"chunk_size": chunk_size})):
            with np.errstate(invalid="ignore"):
                output = form(**{**given, name: spoiled, **options}).output
            np.testing.assert_allclose(output[:, :, :6], form(**given, **options).output[:, :, :6], **EXACT)


@pytest.mark.parametrize("case", FAMILY)
def test_query_heads_of_a_group_share_one_state(case):
    for form in case()[:2]:
        given = case()[2]
        (output, *memory), grads = gradients(form, given)
        wide = {n: x if n == "query" or not isinstance(x, np.ndarray) else x.repeat(2, axis=1) for n, x in given.items()}
        spread, pullback = form.vjp(**wide)
        np.testing.assert_allclose(output, spread.output, **EXACT)
        d_output = np.random.default_rng(0).normal(size=output.shape)
        alone, together = pullback(d_output), form.vjp(**given)[1](d_output)
        for name in grads:
            expected = alone[name] if name == "query" else alone[name].reshape(2, 2, 2, *alone[name].shape[2:]).sum(axis=2)
            np.testing.assert_allclose(together[name], expected, **EXACT, err_msg=name)
        assert all(m.shape[1] == 2 for m in memory)


def test_a_triangular_solution_solves():
    random = Random(1)
    lower, b = random.normal((2, 6, 6)), random.normal((2, 6, 3))
    x = refattn.triangular_solve(lower, b)
    np.testing.assert_allclose((np.tril(lower, -1) + np.eye(6)) @ x, b, **EXACT)
    np.testing.assert_array_equal(refattn.triangular_solve(np.where(np.tri(6, k=-1) > 0, lower, np.nan), b), x)
