"""What must hold between attentions by different scores, by mathematics."""

from __future__ import annotations

import numpy as np
import pytest

import refattn
from refattn import testing
from refattn._core import tree
from refattn._core.random import Random
from tests.test_identities import EXACT, POISON, gradients, poisoned, same

PAIRS = ["additive_attention", "concat_attention", "perceptron_attention", "dot_attention", "general_attention"]


def first(mechanism):
    return dict(next(testing.samples(mechanism)).arguments)


def test_dot_is_scaled_dot_product_attention_without_a_scale():
    given = first(refattn.dot_attention)
    heads = {n: x[:, None] for n, x in given.items()}
    unscaled = gradients(refattn.scaled_dot_product_attention, {**heads, "scale": 1.0})
    wanted = (tuple(y[:, 0] for y in unscaled[0]), {n: g[:, 0] for n, g in unscaled[1].items()})
    same(gradients(refattn.dot_attention, given), wanted)
    assert np.abs(refattn.scaled_dot_product_attention(**heads)[:, 0] - wanted[0][0]).max() > 0.01  # the default scale is another


def test_general_with_the_identity_is_dot():
    given = first(refattn.dot_attention)
    general = gradients(refattn.general_attention, {**given, "w_score": np.eye(4)})
    del general[1]["w_score"]
    same(general, gradients(refattn.dot_attention, given), **EXACT)


def test_general_multiplies_the_query_as_well():
    given = first(refattn.general_attention)
    wanted = refattn.dot_attention(given["query"] @ given["w_score"], given["key"], given["value"])
    np.testing.assert_allclose(refattn.general_attention(**given), wanted, **EXACT)


def test_concat_is_additive_with_its_matrices_side_by_side():
    given = first(refattn.additive_attention)
    additive, wanted = gradients(refattn.additive_attention, given)
    w_query, w_key = given.pop("w_query"), given.pop("w_key")
    stacked = {**given, "w_hidden": np.concatenate([w_query, w_key], axis=1)}
    wanted["w_hidden"] = np.concatenate([wanted.pop("w_query"), wanted.pop("w_key")], axis=1)
    same(gradients(refattn.concat_attention, stacked), (additive, wanted), **EXACT)
    same(gradients(refattn.perceptron_attention, {**stacked, "activation": "tanh"}), (additive, wanted), **EXACT)


def test_the_bias_of_a_score_has_no_gradient():
    given = {**first(refattn.perceptron_attention), "b_score": np.array([3.0])}
    output, pullback = refattn.perceptron_attention.vjp(**given)
    np.testing.assert_allclose(pullback(*testing.cotangents(output))["b_score"], 0, atol=1e-14)


def test_location_is_dot_attention_whose_keys_are_the_rows_of_the_matrix():
    given = first(refattn.location_attention)
    keys = np.broadcast_to(given["w_score"], (2, 5, 4))
    (output,), grads = gradients(refattn.dot_attention, {"query": given["query"], "key": keys, "value": given["value"]})
    grads["w_score"] = grads.pop("key").sum(axis=0)
    same(gradients(refattn.location_attention, given), ((output,), grads), **EXACT)


def test_a_region_is_key_and_value_of_additive_attention():
    given = first(refattn.region_attention)
    regions, state, w_regions, w_state, w_score = given.values()
    (output, _), grads = gradients(refattn.region_attention, given)
    asked = refattn.additive_attention.vjp(state[:, None], regions, regions, w_state, w_regions, w_score)
    np.testing.assert_allclose(output, asked[0][:, 0], **EXACT)
    alone, pullback = refattn.region_attention.vjp(**given)
    d_output, _ = testing.cotangents(alone)
    wanted, grads = asked[1](d_output[:, None]), pullback(d_output)
    np.testing.assert_allclose(grads["regions"], wanted["key"] + wanted["value"], **EXACT)
    np.testing.assert_allclose(grads["state"], wanted["query"][:, 0], **EXACT)


def test_an_open_gate_leaves_the_context_as_it_is():
    given = {**first(refattn.region_attention), "w_gate": np.zeros((1, 6))}
    context = refattn.region_attention(**first(refattn.region_attention)).output
    np.testing.assert_array_equal(refattn.region_attention(**given, b_gate=np.array([1e3])).output, context)
    np.testing.assert_allclose(refattn.region_attention(**given).output, context / 2, **EXACT)


def test_weights_that_attend_to_each_region_once_cost_nothing():
    once = np.array([[0.25, 0.75, 0.0], [0.5, 0.25, 0.25], [0.25, 0.0, 0.75]])
    penalty, pullback = refattn.doubly_stochastic_penalty.vjp(once)
    assert (penalty, np.abs(pullback(np.array(1.0))["weights"]).max()) == (0, 0)
    assert refattn.doubly_stochastic_penalty(once[:2]) > 0


@POISON
@pytest.mark.parametrize("name", PAIRS)
def test_padding_is_not_read(name, poison):
    mechanism = getattr(refattn, name)
    there = np.array([True, True, False, True, False])
    clean = {**first(mechanism), "mask": there}
    dirty = {**clean, **{n: poisoned(clean[n], there[:, None], poison) for n in ("key", "value")}}
    one, other = gradients(mechanism, clean), gradients(mechanism, dirty)
    assert all(np.isfinite(g).all() for g in other[1].values())
    same(one, other)


@POISON
@pytest.mark.parametrize(("name", "padded"), [("location_attention", "value"), ("region_attention", "regions")])
def test_padding_of_what_is_looked_at_is_not_read(name, padded, poison):
    mechanism = getattr(refattn, name)
    there = np.array([True, True, False, True, False])
    clean = {**first(mechanism), "mask": there}
    one, other = gradients(mechanism, clean), gradients(mechanism, {**clean, padded: poisoned(clean[padded], there[:, None], poison)})
    assert all(np.isfinite(g).all() for g in other[1].values())
    same(one, other)


@pytest.mark.parametrize("axis", [0, 1], ids=["no batch", "no keys"])
@pytest.mark.parametrize("name", PAIRS)
def test_nothing_gives_zeros(name, axis):
    mechanism = getattr(refattn, name)
    given = {a: x.take([], axis) if a in {"key", "value"} or (axis == 0 and a == "query") else x for a, x in first(mechanism).items()}
    made, grads = gradients(mechanism, given)
    assert made[0].shape == (len(given["query"]), 3, 2)
    assert (made[0] == 0).all()
    assert all((g == 0).all() and g.shape == given[n].shape for n, g in grads.items())


def question_call(**options):
    given = {**list(testing.samples(refattn.question_attention))[1].arguments, **options}
    return given, refattn.QuestionWeights(*(given[n] for n in refattn.QuestionWeights._fields))


def test_a_hop_adds_what_region_attention_finds():
    given, weights = question_call()
    found = refattn.region_attention(given["regions"], given["question"], *weights)
    made = refattn.question_attention(**given)
    np.testing.assert_array_equal(made.output, given["question"] + found.output)
    np.testing.assert_array_equal(made.weights, found.weights)


def test_each_hop_asks_with_what_the_one_before_has_made_of_the_question():
    given, weights = question_call()
    regions, question = given["regions"], given["question"]
    other = weights._replace(w_score=-2 * weights.w_score, b_hidden=None)
    once = refattn.question_attention(regions, question, *weights)
    twice = refattn.question_attention(regions, once.output, *other)
    made = refattn.stacked_attention(regions, question, (weights, other))
    np.testing.assert_array_equal(made.output, twice.output)
    np.testing.assert_array_equal(made.weights, np.stack([once.weights, twice.weights], axis=1))
    same_question = refattn.question_attention(regions, question, *other)  # instead of the refined one
    assert np.abs(made.output - (once.output + same_question.output - question)).max() > 0.01
    assert np.abs(made.output - (twice.output - once.output)).max() > 0.01  # what was found last, without the question


def test_hops_that_share_weights_add_their_gradients():
    given, weights = question_call()
    start = {n: given[n] for n in ("regions", "question")}
    made, pullback = refattn.stacked_attention.vjp(**start, hops=(weights, weights))
    ds = testing.cotangents(made)
    one, other = pullback(*ds)["hops"]
    step = 1e-5 * Random(5).normal(weights.w_score.shape)
    up, down = (refattn.stacked_attention(**start, hops=(weights._replace(w_score=weights.w_score + s * step),) * 2) for s in (1, -1))
    moved = sum(((a - b) * d).sum() / 2 for a, b, d in zip(up, down, ds, strict=True))
    np.testing.assert_allclose(((one.w_score + other.w_score) * step).sum(), moved, rtol=1e-6)


def test_an_image_without_regions_leaves_the_question_as_it_is():
    given, weights = question_call(mask=np.zeros(5, bool))
    np.testing.assert_array_equal(refattn.question_attention(**given).output, given["question"])
    made = refattn.stacked_attention(given["regions"], given["question"], (weights, weights), mask=given["mask"])
    np.testing.assert_array_equal(made.output, given["question"])
    assert (made.weights == 0).all()


@POISON
def test_regions_that_are_missing_are_not_read_in_any_hop(poison):
    there = np.array([True, True, False, True, False])
    given, weights = question_call()
    clean = {"regions": given["regions"], "question": given["question"], "hops": (weights, weights), "mask": there}
    dirty = {**clean, "regions": poisoned(clean["regions"], there[:, None], poison)}
    (y, one), (z, other) = gradients(refattn.stacked_attention, clean), gradients(refattn.stacked_attention, dirty)
    for a, b in zip(y, z, strict=True):
        np.testing.assert_array_equal(a, b)
    for (path, g), (_, h) in zip(tree.leaves(one), tree.leaves(other), strict=True):
        assert np.isfinite(h).all()
        np.testing.assert_array_equal(g, h, err_msg=path)
