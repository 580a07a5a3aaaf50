"""What must hold between attentions in videos, by mathematics."""

from __future__ import annotations

import numpy as np
import pytest

import refattn
from refattn import testing
from refattn._core import tree
from refattn._core.random import Random
from tests.test_identities import EXACT, POISON, gradients, same

CLOSE = {"rtol": 1e-12, "atol": 1e-12}  # a norm, an attention and a projection after each other


def first(mechanism, **options):
    return {**next(testing.samples(mechanism)).arguments, **options}


def gradients_of(mechanism, given, turned=lambda d: d):
    """The outputs, and the gradients leaf by leaf, for cotangents that are turned as the input is."""
    y, pullback = mechanism.vjp(**given)
    return y, dict(tree.leaves(pullback(*map(turned, testing.cotangents(y)))))


def blind(weights):
    """The same attention, of which nothing comes out."""
    return weights._replace(w_output=0 * weights.w_output, b_output=0 * weights.b_output)


def residual(x, attention, norm, **options):
    """The tokens of a sequence, each with what it sees in all of them."""
    z = refattn.layer_norm(x, *norm)
    return x + refattn.multi_head_attention(z, z, z, *attention, **options)


def paper(weights):
    """Without the layer after the attention over time."""
    return weights._replace(w_time=None, b_time=None)


def test_joint_attention_is_multi_head_attention_over_all_patches():
    given = first(refattn.joint_space_time_attention)
    x, weights = given["x"], given["weights"]
    flat = residual(x.reshape(2, 6, 4), weights.attention, weights.norm, num_heads=2)
    np.testing.assert_allclose(refattn.joint_space_time_attention(**given), flat.reshape(x.shape), **EXACT)


def test_a_class_token_is_one_more_token_of_joint_attention():
    given = first(refattn.joint_space_time_attention_with_class_token)
    x, token, weights = given["x"], given["class_token"], given["weights"]
    flat = residual(np.concatenate([token[:, None], x.reshape(2, 6, 4)], axis=1), weights.attention, weights.norm, num_heads=2)
    made = refattn.joint_space_time_attention_with_class_token(**given)
    np.testing.assert_allclose(made.class_token, flat[:, 0], **EXACT)
    np.testing.assert_allclose(made.output, flat[:, 1:].reshape(x.shape), **EXACT)
    as_patch = refattn.joint_space_time_attention(
        np.concatenate([token[:, None], x.reshape(2, 6, 4)], axis=1)[:, None], weights, num_heads=2
    )
    np.testing.assert_array_equal(as_patch[:, 0, 0], made.class_token)


def test_divided_attention_is_time_then_space():
    """And not space then time, nor both at once."""
    given = first(refattn.divided_space_time_attention)
    x, weights = given["x"], paper(given["weights"])
    timed = np.stack([residual(x[:, :, p], weights.time, weights.norm_time, num_heads=2) for p in range(2)], axis=2)
    spaced = np.stack([residual(timed[:, t], weights.space, weights.norm_space, num_heads=2) for t in range(3)], axis=1)
    made = refattn.divided_space_time_attention(x, weights, num_heads=2)
    np.testing.assert_allclose(made, spaced, **CLOSE)
    exchanged = refattn.DividedWeights(weights.space, weights.time, weights.norm_space, weights.norm_time)
    other_order = refattn.divided_space_time_attention(x.swapaxes(1, 2), exchanged, num_heads=2).swapaxes(1, 2)
    assert np.abs(made - other_order).max() > 0.01


def test_without_time_divided_attention_is_joint_attention_of_each_frame():
    given = first(refattn.divided_space_time_attention)
    x, weights = given["x"], paper(given["weights"])
    alone = refattn.JointWeights(weights.space, weights.norm_space)
    divided = refattn.divided_space_time_attention(x, weights._replace(time=blind(weights.time)), num_heads=2)
    frames = refattn.joint_space_time_attention(x.reshape(6, 1, 2, 4), alone, num_heads=2).reshape(x.shape)
    np.testing.assert_allclose(divided, frames, **EXACT)
    assert np.abs(divided - refattn.joint_space_time_attention(x, alone, num_heads=2)).max() > 0.01


def test_without_space_divided_attention_is_joint_attention_of_each_place():
    given = first(refattn.divided_space_time_attention)
    x, weights = given["x"], paper(given["weights"])
    divided = refattn.divided_space_time_attention(x, weights._replace(space=blind(weights.space)), num_heads=2)
    places = x.swapaxes(1, 2).reshape(4, 3, 1, 4)
    seen = refattn.joint_space_time_attention(places, refattn.JointWeights(weights.time, weights.norm_time), num_heads=2)
    np.testing.assert_allclose(divided, seen.reshape(2, 2, 3, 4).swapaxes(1, 2), **EXACT)


@pytest.mark.parametrize(("kept", "part"), [((slice(None), slice(0, 1)), "time"), ((slice(None), slice(None), slice(0, 1)), "space")])
def test_a_token_that_is_alone_sees_itself(kept, part):
    """One frame over time, or one patch over space: what is compared no longer matters."""
    given = first(refattn.divided_space_time_attention)
    x, weights = given["x"][kept], given["weights"]
    sees_itself = getattr(weights, part)
    compared = sees_itself._replace(w_query=-3 * sees_itself.w_query, w_key=2 * sees_itself.w_key)
    y, pullback = refattn.divided_space_time_attention.vjp(x, weights, num_heads=2)
    np.testing.assert_array_equal(refattn.divided_space_time_attention(x, weights._replace(**{part: compared}), num_heads=2), y)
    d = getattr(pullback(*testing.cotangents(y))["weights"], part)
    for name in ("w_query", "w_key", "b_query", "b_key"):
        assert (getattr(d, name) == 0).all()
    others = refattn.divided_space_time_attention(given["x"], weights, num_heads=2)[kept]
    assert np.abs(others - y).max() > 0.01


@pytest.mark.parametrize("class_in_time", [False, True])
def test_a_class_token_is_the_mean_of_what_it_becomes_in_each_frame(class_in_time):
    given = first(refattn.divided_space_time_attention_with_class_token, class_in_time=class_in_time)
    x, token, weights = given["x"], given["class_token"], given["weights"]
    weights = weights._replace(time=blind(weights.time), b_time=None)
    made = refattn.divided_space_time_attention_with_class_token(**{**given, "weights": weights})
    alone, tokens = refattn.JointWeights(weights.space, weights.norm_space), np.repeat(token, 3, axis=0)
    frames = refattn.joint_space_time_attention_with_class_token(x.reshape(6, 1, 2, 4), tokens, alone, num_heads=2)
    np.testing.assert_allclose(made.class_token, frames.class_token.reshape(2, 3, 4).mean(axis=1), **EXACT)
    np.testing.assert_allclose(made.output, frames.output.reshape(x.shape), **EXACT)


def test_the_class_token_of_the_paper_is_a_key_over_time():
    """In the authors' program it is not; then patches see it over space alone."""
    given = first(refattn.divided_space_time_attention_with_class_token)
    weights = given["weights"]._replace(space=blind(given["weights"].space))
    given, other = {**given, "weights": weights}, given["class_token"] + np.array([3.0, 0.0, 0.0, 1.0])
    for class_in_time in (False, True):
        made, moved = (
            refattn.divided_space_time_attention_with_class_token(**{**given, "class_token": c, "class_in_time": class_in_time})
            for c in (given["class_token"], other)
        )
        assert (np.abs(made.output - moved.output).max() > 0.01) == class_in_time
        np.testing.assert_allclose(moved.class_token, other, **EXACT)  # it is asked, and does not ask


@pytest.mark.parametrize("axis", [1, 2], ids=["frames", "patches"])
@pytest.mark.parametrize("name", ["joint_space_time_attention", "divided_space_time_attention"])
def test_without_positions_the_order_does_not_matter(name, axis):
    mechanism = getattr(refattn, name)
    given, turned = first(mechanism), lambda x: np.flip(x, axis)
    one, other = gradients_of(mechanism, given), gradients_of(mechanism, {**given, "x": turned(given["x"])}, turned)
    np.testing.assert_allclose(one[0], turned(other[0]), **CLOSE)
    np.testing.assert_allclose(one[1].pop("x"), turned(other[1].pop("x")), **CLOSE)
    for path, g in one[1].items():
        np.testing.assert_allclose(g, other[1][path], **CLOSE, err_msg=path)


# Frames averaged


def test_frames_are_keys_and_values_of_additive_attention():
    given = dict(list(testing.samples(refattn.temporal_attention))[1].arguments)
    x, state, names = given["x"], given["state"], ("w_state", "w_frames", "w_score", "b_hidden")
    asked, pullback = refattn.additive_attention.vjp(state[:, None], x, x, *(given[n] for n in names))
    made, temporal_pullback = refattn.temporal_attention.vjp(**given)
    np.testing.assert_allclose(made.output, asked[:, 0], **EXACT)
    d_output, _ = testing.cotangents(made)
    wanted, grads = pullback(d_output[:, None]), temporal_pullback(d_output)
    np.testing.assert_allclose(grads["x"], wanted["key"] + wanted["value"], **EXACT)
    np.testing.assert_allclose(grads["state"], wanted["query"][:, 0], **EXACT)


def test_no_state_is_a_state_of_zeros():
    given = first(refattn.temporal_attention)
    (one, weights), grads = gradients(refattn.temporal_attention, given)
    zeros = {"w_state": Random(0).normal((3, 6)), "state": np.zeros((2, 6))}
    (other, other_weights), other_grads = gradients(refattn.temporal_attention, {**given, **zeros})
    same(((one, weights), grads), ((other, other_weights), {n: other_grads[n] for n in grads}))


def test_frames_that_score_alike_are_averaged():
    given = first(refattn.temporal_attention, w_score=np.zeros(3), mask=np.array([True, True, False, True, False]))
    np.testing.assert_allclose(refattn.temporal_attention(**given).output, given["x"][:, [0, 1, 3]].mean(axis=1), **EXACT)


@pytest.mark.parametrize("name", ["temporal_attention", "frame_cnn_temporal_attention"])
@POISON
def test_frames_that_fill_up_a_video_are_not_read(name, poison):
    mechanism = getattr(refattn, name)
    given = first(mechanism)
    x, frames = given["x"], given["x"].shape[1]
    longer = np.concatenate([x, np.full_like(x, poison)], axis=1)
    (output, weights), grads = gradients(mechanism, given)
    made, pullback = mechanism.vjp(**{**given, "x": longer, "mask": np.arange(2 * frames) < frames})
    np.testing.assert_allclose(made.output, output, **EXACT)
    np.testing.assert_allclose(made.weights, np.concatenate([weights, 0 * weights], axis=1), **EXACT)
    d_output, d_weights = testing.cotangents(mechanism(**given))
    longer_grads = pullback(d_output, np.concatenate([d_weights, d_weights], axis=1))
    assert (longer_grads["x"][:, frames:] == 0).all()
    np.testing.assert_allclose(longer_grads["x"][:, :frames], grads["x"], **EXACT)
    for n in grads.keys() - {"x"}:
        np.testing.assert_allclose(longer_grads[n], grads[n], **EXACT, err_msg=n)


def test_each_frame_is_convolved_by_itself():
    given = first(refattn.frame_cnn_temporal_attention)
    x, w_conv, w_frames, w_score = given.values()
    features = np.stack([refattn.global_avg_pool(refattn.relu(refattn.conv2d(x[:, t], w_conv))) for t in range(x.shape[1])], axis=1)
    wanted = refattn.temporal_attention(features, w_frames, w_score)
    made = refattn.frame_cnn_temporal_attention(**given)
    np.testing.assert_allclose(made.output, wanted.output, **EXACT)
    np.testing.assert_allclose(made.weights, wanted.weights, **EXACT)
    mixed = x.swapaxes(0, 1).reshape(x.shape)  # frames of several videos taken for those of one
    assert np.abs(refattn.frame_cnn_temporal_attention(**{**given, "x": mixed}).output - made.output).max() > 0.01


def test_frames_of_one_place_are_attended_over_time_alone():
    given = first(refattn.spatial_temporal_attention)
    x = given["x"][:, :, :1]
    made = refattn.spatial_temporal_attention(**{**given, "x": x})
    wanted = refattn.temporal_attention(x[:, :, 0], *given["temporal"])
    assert (made.spatial_weights == 1).all()
    np.testing.assert_array_equal(made.output, wanted.output)
    np.testing.assert_array_equal(made.temporal_weights, wanted.weights)


@POISON
def test_places_that_are_missing_are_not_read(poison):
    mechanism = refattn.spatial_temporal_attention
    mask = Random(3).booleans(0.6, (2, 3, 5))
    mask[0, 1] = False
    given = first(mechanism, mask=mask)
    y, grads = gradients_of(mechanism, given)
    dirty, dirty_grads = gradients_of(mechanism, {**given, "x": np.where(mask[..., None], given["x"], poison)})
    for a, b in zip(y, dirty, strict=True):
        np.testing.assert_array_equal(a, b)
    for path, g in grads.items():
        np.testing.assert_array_equal(g, dirty_grads[path], err_msg=path)
    assert (y.temporal_weights[0, 1], np.abs(grads["x"][~mask]).max()) == (0, 0)
