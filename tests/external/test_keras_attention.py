"""Attention against Keras 3 in float64: outputs, and gradients of inputs and weights by its backend's autograd."""

from __future__ import annotations

import numpy as np
import pytest

import refattn
from refattn import testing
from refattn._core.random import Random
from refattn.interop import keras as interop
from tests.external.in_keras import CLOSE, QUIET, array, compare, drawn, keras, leaf, nothing, torch, weights

pytestmark = QUIET
layers = keras.layers
BATCH, QUERIES, KEYS = 2, 5, 7


def seen(shape, seed=7):
    """A mask without an empty row."""
    mask = Random(seed).booleans(0.6, shape)
    mask[..., 0] = True
    return mask


def triple(query_dim, key_dim, value_dim, queries=QUERIES, keys=KEYS):
    random = Random(4)
    shapes = {"query": (BATCH, queries, query_dim), "key": (BATCH, keys, key_dim), "value": (BATCH, keys, value_dim)}
    return {name: random.normal(shape) for name, shape in shapes.items()}


def shapes(inputs):
    return [inputs[name].shape for name in ("query", "value", "key")]


# Attention without projections: Keras's Attention and AdditiveAttention are called with [query, value, key]

MASK = seen((BATCH, KEYS))
MASKS = {
    "none": ({}, {}),
    "of values": ({"mask": [None, torch.tensor(MASK)]}, {"mask": MASK[:, None]}),
    "causal": ({"use_causal_mask": True}, {"mask": refattn.masks.causal(QUERIES, KEYS, align="upper_left")}),
    "both": (
        {"use_causal_mask": True, "mask": [None, torch.tensor(MASK)]},
        {"mask": MASK[:, None] & refattn.masks.causal(QUERIES, KEYS, align="upper_left")},
    ),
}


@pytest.mark.parametrize(("theirs", "ours"), MASKS.values(), ids=MASKS)
def test_dot_scores(theirs, ours):
    inputs = triple(3, 3, 6)
    layer = drawn(layers.Attention(), shapes(inputs))
    compare(refattn.dot_attention, nothing, layer, inputs, lambda q, k, v: layer([q, v, k], **theirs), ours)


@pytest.mark.parametrize(("theirs", "ours"), MASKS.values(), ids=MASKS)
def test_learned_scale(theirs, ours):
    inputs = triple(3, 3, 6)
    layer = drawn(layers.Attention(use_scale=True), shapes(inputs))
    renamed = lambda weights: {"scale": np.array(*weights.values())}  # noqa: E731
    compare(refattn.scaled_dot_product_attention, renamed, layer, inputs, lambda q, k, v: layer([q, v, k], **theirs), ours)


def test_weights_are_returned():
    inputs = triple(3, 3, 6)
    layer = drawn(layers.Attention(), shapes(inputs))
    call = lambda q, k, v: layer([q, v, k], return_attention_scores=True, **MASKS["of values"][0])  # noqa: E731
    compare(refattn.scaled_dot_product_attention_with_weights, nothing, layer, inputs, call, {**MASKS["of values"][1], "scale": 1.0})


@pytest.mark.parametrize(("theirs", "ours"), MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("use_scale", [True, False])
def test_additive_scores(use_scale, theirs, ours):
    """Keras's has no projections, as if those of query and key were identities, and its scale is the scoring vector."""
    inputs, layer = triple(3, 3, 6), layers.AdditiveAttention(use_scale=use_scale)
    drawn(layer, shapes(inputs))
    given = {"w_score": np.array(layer.scale) if use_scale else np.ones(3), "w_query": np.eye(3), "w_key": np.eye(3)}
    y, pullback = refattn.additive_attention.vjp(**inputs, **given, **ours)
    (d,) = testing.cotangents(y)
    leaves = {name: leaf(x) for name, x in inputs.items()}
    made = layer([leaves["query"], leaves["value"], leaves["key"]], **theirs)
    np.testing.assert_allclose(y, array(made), **CLOSE)
    made.backward(torch.tensor(d))
    for name, x in leaves.items():
        np.testing.assert_allclose(pullback(d)[name], x.grad.numpy(), **CLOSE, err_msg=name)
    if use_scale:
        np.testing.assert_allclose(pullback(d)["w_score"], layer.scale.value.grad.numpy(), **CLOSE)


@pytest.mark.parametrize("use_scale", [True, False])
def test_scores_that_keras_calls_concat(use_scale):
    """They add query and key: additive attention with one number before all of the tanh, and one after it."""
    inputs = triple(3, 3, 6)
    layer = drawn(layers.Attention(use_scale=use_scale, score_mode="concat"), shapes(inputs))
    inside, outside = (float(np.array(layer.scale)) if use_scale else 1.0), float(np.array(layer.concat_score_weight))
    given = {"w_score": np.full(3, outside), "w_query": inside * np.eye(3), "w_key": inside * np.eye(3)}
    y, pullback = refattn.additive_attention.vjp(**inputs, **given)
    (d,) = testing.cotangents(y)
    grads, leaves = pullback(d), {name: leaf(x) for name, x in inputs.items()}
    made = layer([leaves["query"], leaves["value"], leaves["key"]])
    np.testing.assert_allclose(y, array(made), **CLOSE)
    made.backward(torch.tensor(d))
    for name, x in leaves.items():
        np.testing.assert_allclose(grads[name], x.grad.numpy(), **CLOSE, err_msg=name)
    np.testing.assert_allclose(grads["w_score"].sum(), layer.concat_score_weight.value.grad.numpy(), **CLOSE)
    if use_scale:
        np.testing.assert_allclose(np.trace(grads["w_query"] + grads["w_key"]), layer.scale.value.grad.numpy(), **CLOSE)


def test_dropout_of_weights():
    """The weights that Keras returns are those after dropout, which tell what it drew."""
    inputs = triple(3, 3, 6)
    layer = drawn(layers.Attention(use_scale=True, dropout=0.25, seed=5), shapes(inputs))
    leaves = {name: leaf(x) for name, x in inputs.items()}
    made, dropped = layer([leaves["query"], leaves["value"], leaves["key"]], training=True, return_attention_scores=True)
    keep = array(dropped) != 0
    assert 0 < keep.sum() < keep.size
    options = {"keep": keep, "dropout_rate": 0.25, "scale": np.array(layer.scale)}
    y, pullback = refattn.scaled_dot_product_attention.vjp(**inputs, **options)
    (d,) = testing.cotangents(y)
    np.testing.assert_allclose(y, array(made), **CLOSE)
    made.backward(torch.tensor(d))
    for name, x in {**leaves, "scale": layer.scale.value}.items():
        np.testing.assert_allclose(pullback(d)[name], x.grad.numpy(), **CLOSE, err_msg=name)


def test_dropout():
    x = Random(1).normal((6, 5))
    theirs = leaf(x)
    made = layers.Dropout(0.25, seed=5)(theirs, training=True)
    y, pullback = refattn.dropout.vjp(x, keep=array(made) != 0, rate=0.25)
    (d,) = testing.cotangents(y)
    made.backward(torch.tensor(d))
    np.testing.assert_allclose(y, array(made), **CLOSE)
    np.testing.assert_allclose(pullback(d)["x"], theirs.grad.numpy(), **CLOSE)


# Multi-head attention: Keras calls layer(query, value, key)

WHERE = seen((BATCH, QUERIES, KEYS))
HEADS = {  # of the layer, widths, of their call, ours
    "plain": ({}, (6, 6, 6), {}, {}),
    "other widths": ({"value_dim": 5, "output_shape": 7}, (6, 3, 4), {}, {}),
    "no biases": ({"use_bias": False}, (6, 6, 6), {}, {}),
    "mask": ({}, (6, 6, 6), {"attention_mask": torch.tensor(WHERE)}, {"mask": WHERE[:, None]}),
    "mask of values": ({}, (6, 6, 6), {"value_mask": torch.tensor(MASK)}, {"mask": MASK[:, None, None]}),
    "mask of keys": ({}, (6, 6, 6), {"key_mask": torch.tensor(MASK)}, {"mask": MASK[:, None, None]}),
    "causal": ({}, (6, 6, 6), {"use_causal_mask": True}, {"causal": True, "align": "upper_left"}),
    "causal, mask": (
        {},
        (6, 6, 6),
        {"use_causal_mask": True, "attention_mask": torch.tensor(WHERE)},
        {"causal": True, "align": "upper_left", "mask": WHERE[:, None]},
    ),
    "window": ({"sliding_window": 2}, (6, 6, 6), {}, {"window": (1, 1), "align": "upper_left"}),
    "causal window": (
        {"sliding_window": 3},
        (6, 6, 6),
        {"use_causal_mask": True},
        {"window": (2, 0), "align": "upper_left"},
    ),
}


@pytest.mark.parametrize("scores", [False, True], ids=["fused", "with scores"])
@pytest.mark.parametrize(("of_layer", "widths", "theirs", "ours"), HEADS.values(), ids=HEADS)
def test_multi_head_attention(of_layer, widths, theirs, ours, scores):
    inputs = triple(*widths)
    layer = drawn(layers.MultiHeadAttention(3, 4, **of_layer), *shapes(inputs))

    def call(q, k, v):
        made = layer(q, v, k, return_attention_scores=scores, **theirs)
        return made[0] if scores else made

    compare(refattn.multi_head_attention, interop.multi_head_attention, layer, inputs, call, {"num_heads": 3, **ours})


GROUPED = {name: row for name, row in HEADS.items() if "value_dim" not in row[0]}


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("of_layer", "widths", "theirs", "ours"), GROUPED.values(), ids=GROUPED)
def test_grouped_query_attention(of_layer, widths, theirs, ours, kv_heads):
    inputs = triple(*widths)
    layer = drawn(layers.GroupQueryAttention(3, 4, kv_heads, **of_layer), *shapes(inputs))
    call = lambda q, k, v: layer(q, v, k, **theirs)  # noqa: E731
    compare(refattn.multi_head_attention, interop.multi_head_attention, layer, inputs, call, {"num_heads": 4, **ours})


def test_a_gate_is_refused():
    layer = drawn(layers.MultiHeadAttention(3, 4, use_gate=True), *shapes(triple(6, 6, 6)))
    with pytest.raises(ValueError, match="gate/kernel: the layer has a gate"):
        interop.multi_head_attention(weights(layer))


@pytest.mark.parametrize(
    "layer", [layers.MultiHeadAttention(3, 4, value_dim=5), layers.GroupQueryAttention(4, 6, 2)], ids=["all", "grouped"]
)
def test_weights_go_there_and_back(layer):
    drawn(layer, *shapes(triple(6, 3, 4)))
    kept = {path: np.array(w) for path, w in weights(layer).items()}
    back = interop.restored(interop.multi_head_attention, kept, interop.multi_head_attention(kept))
    for path, w in kept.items():
        np.testing.assert_array_equal(back[path], w)


# Softmax under a mask


def test_masked_softmax():
    x, mask = Random(1).normal((2, 3, 5)), seen((3, 5))
    mask[1] = False  # a row of nothing is 0 in both
    (y, _), pullback = refattn.masked_softmax.vjp(x, mask=mask)
    (d,) = testing.cotangents(y)
    theirs = leaf(x)
    made = layers.Softmax()(theirs, mask=torch.tensor(mask).expand(2, 3, 5))
    assert (array(made)[:, 1] == 0).all()
    np.testing.assert_allclose(y, array(made), **CLOSE)
    made.backward(torch.tensor(d))
    np.testing.assert_allclose(pullback(d)["scores"], theirs.grad.numpy(), **CLOSE)


# Where Keras differs


def test_a_row_that_may_attend_nowhere():
    """Keras has three answers: as if there were no mask; even weights, where it calls the fused kernel; and 0, where weights are asked for.

    0 is right: whoever may attend to nothing gets nothing, and no gradient reaches what was masked out.
    """
    inputs, mask = triple(3, 3, 3), seen((BATCH, KEYS))
    mask[1] = False
    q, k, v = (torch.tensor(x) for x in inputs.values())
    ours = refattn.dot_attention(**inputs, mask=mask[:, None])
    theirs = array(layers.Attention()([q, v, k], mask=[None, torch.tensor(mask)]))
    np.testing.assert_allclose(ours[0], theirs[0], **CLOSE)
    assert (ours[1] == 0).all()
    np.testing.assert_allclose(theirs[1], refattn.dot_attention(**inputs)[1], rtol=1e-6)  # scores near -1e9 have lost 1e-7 of theirs
    layer = drawn(layers.MultiHeadAttention(2, 3), *shapes(inputs))
    given = {**inputs, **interop.multi_head_attention(weights(layer)), "num_heads": 2, "mask": mask[:, None, None]}
    fused = layer(q, v, k, attention_mask=torch.tensor(mask[:, None]))
    np.testing.assert_allclose(refattn.multi_head_attention(**given, masked_rows="uniform"), array(fused), **CLOSE)
    zeros, _ = layer(q, v, k, attention_mask=torch.tensor(mask[:, None]), return_attention_scores=True)
    np.testing.assert_allclose(refattn.multi_head_attention(**given), array(zeros), **CLOSE)


def test_nan_in_a_key_that_is_masked_out():
    """It stays there in the reference; Keras subtracts a large number from its score, and multiplies its value by 0."""
    inputs, mask = triple(3, 3, 3), np.ones((BATCH, KEYS), bool)
    mask[:, 3] = False
    right = refattn.dot_attention(**inputs, mask=mask[:, None])
    inputs["key"][:, 3] = inputs["value"][:, 3] = np.nan
    np.testing.assert_array_equal(refattn.dot_attention(**inputs, mask=mask[:, None]), right)
    q, k, v = (torch.tensor(x) for x in inputs.values())
    assert np.isnan(array(layers.Attention()([q, v, k], mask=[None, torch.tensor(mask)]))).all()


def test_scores_below_minus_a_thousand_million():
    """Keras writes -1e9 where the mask is False: a smaller score, alone in its row, has no weight there, and all of it here."""
    scores, mask = np.array([[[-2e9, 1.0]]]), np.array([[[True, False]]])
    np.testing.assert_array_equal(array(layers.Softmax()(torch.tensor(scores), mask=torch.tensor(mask))), [[[0, 0]]])
    np.testing.assert_array_equal(refattn.masked_softmax(scores, mask=mask).weights, [[[1, 0]]])


def test_the_mask_of_queries_is_not_read():
    """Keras says that it is merged with the others, and takes the mask that is attached to the query in its place: there is none."""
    inputs, mask = triple(6, 6, 6), np.array([[True] * 3 + [False] * 2] * BATCH)
    layer = drawn(layers.MultiHeadAttention(2, 3), *shapes(inputs))
    q, k, v = (torch.tensor(x) for x in inputs.values())
    theirs = array(layer(q, v, k, query_mask=torch.tensor(mask)))
    given = {**inputs, **interop.multi_head_attention(weights(layer)), "num_heads": 2}
    np.testing.assert_allclose(theirs, refattn.multi_head_attention(**given), **CLOSE)
    asked = refattn.multi_head_attention(**given, mask=mask[:, None, :, None])
    np.testing.assert_array_equal(asked[:, 3:], np.broadcast_to(given["b_output"], asked[:, 3:].shape))
    assert not np.allclose(asked, theirs)
