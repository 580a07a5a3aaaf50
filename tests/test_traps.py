"""Mistakes that public texts and listings make: the right form and the wrong one, and that they differ.

A to F: heads by a reshape alone; a length read after it; labels that broadcast; gates of another map; what squeeze and excitation
costs; and the gates of CBAM.
"""

from __future__ import annotations

import numpy as np
import pytest

import refattn
from refattn import testing
from refattn._core.random import Random
from refattn.blocks import draws
from tests.test_identities import EXACT, gate

CLOSE = {"rtol": 1e-12, "atol": 1e-12}


# A: heads are split, or merged, by a reshape without a transpose


def self_attention_with(split, merge, x, weights, heads):
    """Multi-head self-attention in which splitting and merging are given."""
    w = weights
    query, key, value = (
        split(refattn.linear(x, *pair), heads) for pair in ((w.w_query, w.b_query), (w.w_key, w.b_key), (w.w_value, w.b_value))
    )
    return refattn.linear(merge(refattn.scaled_dot_product_attention(query, key, value)), w.w_output, w.b_output)


def right_split(x, heads):
    return x.reshape(*x.shape[:-1], heads, -1).swapaxes(-2, -3)


def right_merge(x):
    return x.swapaxes(-2, -3).reshape(x.shape[0], x.shape[2], -1)


def reshaped_split(x, heads):
    """Without the transpose: the rows of several time steps come into one head."""
    return x.reshape(x.shape[0], heads, x.shape[1], -1)


def reshaped_merge(x):
    """Without the transpose, the shape is the right one all the same."""
    return x.reshape(x.shape[0], x.shape[2], -1)


@pytest.mark.parametrize(
    ("split", "merge"),
    [(reshaped_split, right_merge), (right_split, reshaped_merge), (reshaped_split, reshaped_merge)],
    ids=["split", "merge", "both"],
)
def test_heads_by_reshape_alone_are_another_function(split, merge):
    random = Random(0)
    x, weights = random.normal((2, 8, 12)), draws.attention_weights(random, 12)
    ours = refattn.multi_head_attention(x, x, x, *weights, num_heads=4)
    np.testing.assert_allclose(ours, self_attention_with(right_split, right_merge, x, weights, 4), **CLOSE)
    wrong = self_attention_with(split, merge, x, weights, 4)
    assert wrong.shape == ours.shape
    assert np.abs(wrong - ours).max() > 0.1

    def kernel(query, key, value, w_query, w_key, w_value, w_output, b_query, b_key, b_value, b_output, num_heads):
        given = refattn.AttentionWeights(w_query, w_key, w_value, w_output, b_query, b_key, b_value, b_output)
        return self_attention_with(split, merge, query, given, num_heads)

    with pytest.raises(AssertionError):
        refattn.testing.assert_matches(
            kernel(x, x, x, *weights, 4),
            refattn.multi_head_attention,
            {"query": x, "key": x, "value": x, **weights._asdict(), "num_heads": 4},
            dtype="float64",
        )


def test_heads_split_and_merged_by_reshape_are_pieces_of_the_sequence():
    """Both errors together do not cancel: with two heads, the second half of the tokens never sees the first."""
    random = Random(1)
    x, weights = random.normal((1, 6, 4)), draws.attention_weights(random, 4)
    other = x.copy()
    other[0, 0] += 1
    for split, merge, sees in ((right_split, right_merge, True), (reshaped_split, reshaped_merge, False)):
        y, moved = (self_attention_with(split, merge, a, weights, 2) for a in (x, other))
        assert (np.abs(moved - y)[0, 3:].max() > 1e-3) == sees
        assert np.abs(moved - y)[0, :3].max() > 1e-3


def test_a_reshape_has_the_shape_of_split_heads_and_mixes_time_steps():
    x = np.broadcast_to(np.arange(8.0)[:, None], (8, 32))  # the features of a time step are its number
    right, wrong = refattn.split_heads(x, num_heads=4), x.reshape(4, 8, 8)
    assert right.shape == wrong.shape
    assert (right == np.arange(8)[:, None]).all()  # every head has all time steps
    assert [set(head.flat) for head in wrong] == [{0, 1}, {2, 3}, {4, 5}, {6, 7}]
    np.testing.assert_array_equal(refattn.merge_heads(right), x)


# B: the length is read after that reshape, and the merge is another reshape


def listing(x, heads):
    """Self-attention without projections, in which the two reshapes stand."""
    split = x.reshape(-1, heads, x.shape[1], x.shape[2] // heads)
    return refattn.scaled_dot_product_attention(split, split, split).reshape(-1, x.shape[1], x.shape[2])


def test_two_wrong_reshapes_do_not_cancel():
    """They would if nothing stood between them."""
    x = Random(0).normal((3, 8, 32))
    np.testing.assert_array_equal(x.reshape(-1, 4, 8, 8).reshape(x.shape), x)
    right, wrong = refattn.multi_head_attention_without_projections(x, x, x, num_heads=4), listing(x, 4)
    assert right.shape == wrong.shape
    assert np.abs(right - wrong).max() > 0.1
    for h in range(4):
        share = x[:, None, :, 8 * h : 8 * h + 8]
        attended = refattn.scaled_dot_product_attention(share, share, share)
        np.testing.assert_array_equal(right[:, :, 8 * h : 8 * h + 8], attended[:, 0])


def test_a_length_read_after_the_reshape_is_the_number_of_heads():
    """The -1 hides it: the batch becomes larger, and nothing fails."""
    x = Random(1).normal((3, 8, 32))
    split = x.reshape(-1, 4, 8, 8)
    wrong = x.reshape(-1, 4, split.shape[1], 8)
    assert split.shape[1] == 4 != x.shape[1]
    assert wrong.shape == (6, 4, 4, 8)
    assert refattn.split_heads(x, num_heads=4).shape == (3, 4, 8, 8)
    assert np.abs(refattn.split_heads(x, num_heads=4) - split).max() > 0.1


# C: labels (batch, 1) against outputs (batch, length, 1)


@pytest.mark.parametrize("batch", [8, 1])
def test_labels_that_broadcast_are_refused(batch):
    """With as many examples as time steps, or with one, NumPy takes the labels of examples for those of time steps."""
    output, labels = Random(2).normal((batch, 8, 1)), Random(3).normal((batch, 1))
    wrong = ((output - labels) ** 2).mean()
    with pytest.raises(ValueError, match="target has 2 axes, but needs 3"):
        refattn.mean_squared_error(output, labels)
    with pytest.raises(ValueError, match=r"the leading shape is \(\d, 1, 1\) in target, but \(\d, 8, 1\) in prediction"):
        refattn.mean_squared_error(output, labels[:, None])  # the right number of axes is not enough
    pooled = refattn.mean_squared_error(refattn.mean_over(output, axes=1), labels)
    each = refattn.mean_squared_error(output, np.repeat(labels[:, None], 8, axis=1))
    assert abs(wrong - pooled) > 0.01
    assert (abs(wrong - each) > 0.01) == (batch > 1)


def test_one_output_for_each_example_broadcasts_against_all_labels():
    """The same mistake without an axis of time: (5, 1) against (5) is every example against every label."""
    output, labels = Random(2).normal((5, 1)), Random(3).normal(5)
    assert (output - labels).shape == (5, 5)
    with pytest.raises(ValueError, match="target has 1 axes, but needs 2"):
        refattn.mean_squared_error(output, labels)
    right = refattn.mean_squared_error(output, labels[:, None])
    assert abs(((output - labels) ** 2).mean() - right) > 0.01


# D: the gates of one map multiply another, and one layer stands for two


def test_gates_of_another_map_are_refused():
    """A public listing squeezes the 128 channels of a hidden map, and multiplies the 3 of the input by these gates."""
    hidden, x = Random(0).normal((2, 128, 4, 4)), Random(1).normal((2, 3, 4, 4))
    w_gate = Random(2).normal((128, 128))
    with pytest.raises(ValueError, match="channels is 128 in w_gate, but 3 in x"):
        refattn.squeeze_excitation_one_layer(x, w_gate)
    gates = 1 / (1 + np.exp(-hidden.mean((2, 3)) @ w_gate.T))
    y = refattn.squeeze_excitation_one_layer(hidden, w_gate)
    np.testing.assert_allclose(y, gates[:, :, None, None] * hidden, rtol=1e-11)  # logits up to 30, of 128 products


def test_one_layer_is_squeeze_and_excitation_only_where_the_relu_does_nothing():
    """The same listing has neither the bottleneck nor the relu of the paper."""
    given = next(testing.samples(refattn.squeeze_excitation)).arguments
    x, w_reduce, w_expand = np.abs(given["x"]), given["w_reduce"], given["w_expand"]
    one_layer = refattn.squeeze_excitation_one_layer(x, w_expand @ w_reduce)
    assert np.abs(refattn.squeeze_excitation(x, w_reduce, w_expand) - one_layer).max() > 0.01
    positive = np.abs(w_reduce)
    one_layer = refattn.squeeze_excitation_one_layer(x, w_expand @ positive)
    np.testing.assert_allclose(refattn.squeeze_excitation(x, positive, w_expand), one_layer, **EXACT)


def test_both_layers_of_squeeze_and_excitation_count():
    given = next(testing.samples(refattn.squeeze_excitation)).arguments
    x, w_reduce, w_expand = given.values()
    y, means = refattn.squeeze_excitation(**given), x.mean((2, 3))
    np.testing.assert_allclose(y, gate(mlp(means, w_reduce, w_expand)) * x, **EXACT)
    assert np.abs(y - gate(means @ w_reduce.T @ w_expand.T) * x).max() > 0.01  # without the relu it is one layer
    assert np.abs(y - gate(means @ (w_expand @ w_reduce).T / 2) * x).max() > 0.01


# E: squeeze and excitation is said to reduce the number of parameters


def learned(mechanism, given):
    """How many numbers are learned: all that have a gradient, but the input."""
    y, pullback = mechanism.vjp(**given)
    return sum(g.size for name, g in pullback(*testing.cotangents(y)).items() if name != "x")


@pytest.mark.parametrize("ratio", [2, 16])
def test_squeeze_and_excitation_adds_parameters(ratio):
    """Twice the square of the channels over the ratio; what has fewer is its bottleneck, against one layer."""
    random, channels = Random(4), 64
    x, kernel = random.normal((1, channels, 2, 2)), random.normal((channels, channels, 3, 3))
    excitation = {"w_reduce": random.normal((channels // ratio, channels)), "w_expand": random.normal((channels, channels // ratio))}
    before = learned(refattn.conv2d, {"x": x, "weight": kernel, "padding": 1})
    added = learned(refattn.squeeze_excitation, {"x": x, **excitation})
    assert (before, added) == (9 * channels**2, 2 * channels**2 // ratio)
    assert added > 0
    biases = {"b_reduce": random.normal(channels // ratio), "b_expand": random.normal(channels)}
    assert learned(refattn.squeeze_excitation, {"x": x, **excitation, **biases}) == added + channels // ratio + channels
    one_layer = learned(refattn.squeeze_excitation_one_layer, {"x": x, "w_gate": random.normal((channels, channels))})
    assert (added < one_layer) == (ratio > 2)


# F: the gates of CBAM


def mlp(z, w_reduce, w_expand):
    return np.maximum(z @ w_reduce.T, 0) @ w_expand.T


def test_the_maxima_reach_the_channel_gate_of_cbam():
    """A public implementation adds the branch of the means twice."""
    given = next(testing.samples(refattn.cbam_channel)).arguments
    x, weights = given["x"], (given["w_reduce"], given["w_expand"])
    means, maxima = mlp(x.mean((2, 3)), *weights), mlp(x.max((2, 3)), *weights)
    y = refattn.cbam_channel(**given)
    np.testing.assert_allclose(y, gate(means + maxima) * x, **EXACT)
    assert np.abs(y - gate(means + means) * x).max() > 0.01
    assert np.abs(y - gate(mlp(x.mean((2, 3)) + x.max((2, 3)), *weights)) * x).max() > 0.01  # summed before the network


def test_means_and_maxima_behind_each_other_are_not_the_channel_gate_of_cbam():
    """Public texts concatenate the two before one layer; only without the relu does that agree with the paper."""
    given = next(testing.samples(refattn.cbam_channel)).arguments
    x, w_reduce, w_expand = np.abs(given["x"]), given["w_reduce"], given["w_expand"]
    both = np.concatenate([w_expand @ w_reduce] * 2, axis=1)
    assert np.abs(refattn.cbam_channel(x, w_reduce, w_expand) - refattn.cbam_channel_concat(x, both)).max() > 0.01
    positive = np.abs(w_reduce)  # so that every hidden unit is
    both = np.concatenate([w_expand @ positive] * 2, axis=1)
    np.testing.assert_allclose(refattn.cbam_channel(x, positive, w_expand), refattn.cbam_channel_concat(x, both), **EXACT)
    means_only = np.concatenate([both[:, :6], np.zeros((6, 6))], axis=1)
    squeezed = refattn.squeeze_excitation_one_layer(x, both[:, :6])
    np.testing.assert_allclose(refattn.cbam_channel_concat(x, means_only), squeezed, **EXACT)


@pytest.mark.parametrize("size", [3, 7])
def test_the_spatial_gate_of_cbam_depends_on_the_size_of_its_kernel(size):
    """A public listing has 3 where the paper has 7: the larger is the smaller only with zeros around it."""
    given = dict(next(testing.samples(refattn.cbam_spatial)).arguments)
    kernel = given.pop("w_spatial")
    border = ((0, 0), (0, 0), (size // 2 - 1, size // 2 - 1), (size // 2 - 1, size // 2 - 1))
    y = refattn.cbam_spatial(**given, w_spatial=np.pad(kernel, border))
    np.testing.assert_allclose(y, refattn.cbam_spatial(**given, w_spatial=kernel), **EXACT)
    larger = refattn.cbam_spatial(**given, w_spatial=np.pad(kernel, [(0, 0), (0, 0), (2, 2), (2, 2)], mode="edge"))
    assert np.abs(y - larger).max() > 0.01


def test_a_gate_is_not_the_gated_map():
    """Public code calls both a channel attention: one that returns the gate alone must multiply it by the map before the next."""
    given = next(testing.samples(refattn.cbam)).arguments
    x, channel = given["x"], {n: w for n, w in given.items() if n.endswith(("_reduce", "_expand"))}
    spatial = {n: w for n, w in given.items() if n.endswith("_spatial")}
    gated = refattn.cbam_channel(x, **channel)
    np.testing.assert_array_equal(refattn.cbam_spatial(gated, **spatial), refattn.cbam(**given))
    gates = np.broadcast_to((gated / x).mean((2, 3), keepdims=True), x.shape)
    np.testing.assert_allclose(gates * x, gated, rtol=1e-9)
    assert np.abs(refattn.cbam_spatial(gates, **spatial) - refattn.cbam(**given)).max() > 0.01
