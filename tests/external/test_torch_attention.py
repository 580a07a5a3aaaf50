"""Attention against PyTorch: values, and gradients by its autograd, in float64."""

from __future__ import annotations

import numpy as np
import pytest

import refattn
from refattn import testing
from refattn._core.random import Random
from refattn.interop import torch as interop

torch = pytest.importorskip("torch")

CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def leaf(x):
    return torch.tensor(x, requires_grad=True)


def compare(output, grads, theirs, their_leaves, d_output):
    """Our output and gradients against a tensor and the gradients of its leaves."""
    np.testing.assert_allclose(output, theirs.detach().numpy(), **CLOSE)
    wanted = torch.autograd.grad(theirs, list(their_leaves.values()), torch.tensor(d_output))
    for name, g in zip(their_leaves, wanted, strict=True):
        np.testing.assert_allclose(grads[name], g.numpy(), **CLOSE, err_msg=name)


# Scaled dot-product attention

TRIPLE = {"query": (2, 4, 5, 3), "key": (2, 4, 5, 3), "value": (2, 4, 5, 6)}
CROSS = {**TRIPLE, "key": (2, 4, 7, 3), "value": (2, 4, 7, 6)}
GROUPED = {**TRIPLE, "key": (2, 2, 7, 3), "value": (2, 2, 7, 6)}


def seen(shape, seed=7):
    """A mask without an empty row."""
    mask = Random(seed).booleans(0.6, shape)
    mask[..., 0] = True
    return mask


SDPA = {  # shapes, our options, theirs
    "plain": (TRIPLE, {}, {}),
    "cross": (CROSS, {}, {}),
    "causal": (TRIPLE, {"causal": True}, {"is_causal": True}),
    "causal, more keys": (CROSS, {"causal": True, "align": "upper_left"}, {"is_causal": True}),
    "boolean mask": (CROSS, {"mask": seen((2, 1, 5, 7))}, {"attn_mask": seen((2, 1, 5, 7))}),
    "scale": (CROSS, {"scale": 0.3}, {"scale": 0.3}),
    "grouped": (GROUPED, {}, {"enable_gqa": True}),
    "grouped, causal": (GROUPED, {"causal": True, "align": "upper_left"}, {"enable_gqa": True, "is_causal": True}),
    "bias": ({**CROSS, "bias": (2, 4, 5, 7)}, {}, {}),
    "bias of each key": ({**CROSS, "bias": (4, 1, 7)}, {}, {}),
    "bias, grouped": ({**GROUPED, "bias": (4, 5, 7)}, {"scale": 0.3}, {"enable_gqa": True, "scale": 0.3}),
}


@pytest.mark.parametrize(("shapes", "options", "theirs"), SDPA.values(), ids=SDPA)
def test_scaled_dot_product_attention(shapes, options, theirs):
    random = Random(1)
    inputs = {name: random.normal(shape) for name, shape in shapes.items()}
    output, pullback = refattn.scaled_dot_product_attention.vjp(**inputs, **options)
    (d_output,) = testing.cotangents(output)
    leaves = {name: leaf(x) for name, x in inputs.items()}
    theirs = {name: torch.tensor(x) if isinstance(x, np.ndarray) else x for name, x in theirs.items()}
    if "bias" in leaves:
        theirs["attn_mask"] = leaves["bias"]
    made = torch.nn.functional.scaled_dot_product_attention(leaves["query"], leaves["key"], leaves["value"], **theirs)
    compare(output, pullback(d_output), made, leaves, d_output)


def explicit(query, key, value, bias=None, sinks=None, *, mask, scale, softcap):
    """Output and log-sum-exp in PyTorch's elementary operations."""
    group = query.shape[-3] // key.shape[-3]
    keys, values = (x.repeat_interleave(group, dim=-3) for x in (key, value))
    scores = softcap * torch.tanh(scale * query @ keys.mT / softcap) + bias
    scores = scores.masked_fill(~torch.tensor(mask), -torch.inf)
    sink = sinks[:, None, None].expand(*scores.shape[:-1], 1)
    lse = torch.logsumexp(torch.cat([scores, sink], dim=-1), dim=-1)
    return torch.exp(scores - lse[..., None]) @ values, lse


@pytest.mark.parametrize("rows", [None, [4, 0, 4, 2]], ids=["whole", "rows"])
def test_with_lse(rows):
    random = Random(2)
    inputs = {name: random.normal(shape) for name, shape in {**GROUPED, "bias": (4, 5, 7), "sinks": (4,)}.items()}
    leaves = {name: leaf(x) for name, x in inputs.items()}
    mask = seen((2, 1, 5, 7))
    options = {"scale": 0.4, "softcap": 1.5}
    made, made_lse = explicit(**leaves, mask=mask, **options)
    if rows is None:
        (output, lse), pullback = refattn.scaled_dot_product_attention_with_lse.vjp(**inputs, mask=mask, **options)
    else:
        made, made_lse = made[..., rows, :], made_lse[..., rows]
        given = {**inputs, "bias": inputs["bias"][:, rows], "mask": mask[:, :, rows]}
        picked = refattn.scaled_dot_product_attention_rows.vjp(**given, rows=np.array(rows), block_size=3, **options)
        (output, lse), pullback = picked
    d_output, d_lse = testing.cotangents((output, lse))
    np.testing.assert_allclose(lse, made_lse.detach().numpy(), **CLOSE)
    np.testing.assert_allclose(output, made.detach().numpy(), **CLOSE)
    ds = (torch.tensor(d_output), torch.tensor(d_lse))
    wanted = dict(zip(leaves, torch.autograd.grad((made, made_lse), list(leaves.values()), ds), strict=True))
    grads = dict(pullback(d_output, d_lse))
    if rows is not None:  # the bias of a row that was picked twice is two rows here
        summed = np.zeros((4, 5, 7))
        np.add.at(summed, (slice(None), rows), grads["bias"])
        grads["bias"] = summed
    for name, g in wanted.items():
        np.testing.assert_allclose(grads[name], g.numpy(), **CLOSE, err_msg=name)


def test_a_row_that_may_attend_nowhere():
    """PyTorch's own two answers: 0 from scaled_dot_product_attention, NaN from MultiheadAttention that returns its weights."""
    random = Random(3)
    query, key, value = (random.normal((1, 2, 3, 4)) for _ in range(3))
    mask = np.ones((3, 3), bool)
    mask[1] = False
    leaves = {"query": leaf(query), "key": leaf(key), "value": leaf(value)}
    made = torch.nn.functional.scaled_dot_product_attention(*leaves.values(), attn_mask=torch.tensor(mask))
    output, pullback = refattn.scaled_dot_product_attention.vjp(query, key, value, mask=mask)
    (d_output,) = testing.cotangents(output)
    assert (output[..., 1, :] == 0).all()
    compare(output, pullback(d_output), made, leaves, d_output)

    layer, x = torch.nn.MultiheadAttention(4, 2, batch_first=True, dtype=torch.float64), torch.tensor(query[0, :1])
    made, _ = layer(x, x, x, attn_mask=torch.tensor(~mask), need_weights=True)
    given = {"query": query[0, :1], "key": query[0, :1], "value": query[0, :1], **interop.multi_head_attention(layer.state_dict())}
    ours = refattn.multi_head_attention(**given, num_heads=2, mask=mask, masked_rows="nan")
    np.testing.assert_allclose(ours, made.detach().numpy(), **CLOSE)
    assert np.isnan(ours[:, 1]).all() and np.isfinite(ours[:, ::2]).all()


# Multi-head attention

PADDING = np.array([[False] * 7, [False] * 4 + [True] * 3])  # PyTorch's sense: True is left out
HIDDEN = ~seen((5, 7))
SCORES = Random(9).normal((5, 7))
LAYERS = {  # of the layer, query_len and key_len, their options, ours
    "self": ({}, (5, 5), {}, {}),
    "no biases": ({"bias": False}, (5, 7), {}, {}),
    "other widths": ({"kdim": 3, "vdim": 4}, (5, 7), {}, {}),
    "boolean mask": ({}, (5, 7), {"attn_mask": HIDDEN}, {"mask": ~HIDDEN}),
    "float mask": ({}, (5, 7), {"attn_mask": SCORES}, {"bias": SCORES}),
    "key padding": ({}, (5, 7), {"key_padding_mask": PADDING}, {"mask": ~PADDING[:, None, None, :]}),
    "both": (
        {},
        (5, 7),
        {"attn_mask": HIDDEN, "key_padding_mask": PADDING},
        {"mask": ~HIDDEN & ~PADDING[:, None, None, :]},
    ),
    "causal": ({}, (5, 5), {"attn_mask": ~refattn.masks.causal(5, 5), "is_causal": True}, {"causal": True}),
}


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize(("of_layer", "lengths", "theirs", "ours"), LAYERS.values(), ids=LAYERS)
def test_multi_head_attention(of_layer, lengths, theirs, ours, need_weights):
    torch.manual_seed(0)
    layer = torch.nn.MultiheadAttention(6, 3, batch_first=True, dtype=torch.float64, **of_layer)
    with torch.no_grad():  # biases start at zero: nothing would be tested
        for p in layer.parameters():
            p.normal_()
    random = Random(4)
    widths = {"query": 6, "key": of_layer.get("kdim", 6), "value": of_layer.get("vdim", 6)}
    inputs = {name: random.normal((2, lengths[name != "query"], width)) for name, width in widths.items()}
    weights = interop.multi_head_attention(layer.state_dict())
    output, pullback = refattn.multi_head_attention.vjp(**inputs, **weights, num_heads=3, **ours)
    (d_output,) = testing.cotangents(output)
    leaves = {name: leaf(x) for name, x in inputs.items()}
    theirs = {name: torch.tensor(x) if isinstance(x, np.ndarray) else x for name, x in theirs.items()}
    made, _ = layer(*leaves.values(), need_weights=need_weights, **theirs)
    grads = pullback(d_output)
    compare(output, grads, made, leaves, d_output)
    made, _ = layer(*leaves.values(), need_weights=need_weights, **theirs)
    made.backward(torch.tensor(d_output))
    wanted = interop.multi_head_attention({name: p.grad for name, p in layer.named_parameters()})
    assert wanted.keys() == grads.keys() - {"query", "key", "value", "bias"}
    for name, g in wanted.items():
        np.testing.assert_allclose(grads[name], g.numpy(), **CLOSE, err_msg=name)


def test_an_extra_key_is_refused():
    layer = torch.nn.MultiheadAttention(4, 2, add_bias_kv=True)
    with pytest.raises(ValueError, match="bias_k and bias_v append a key"):
        interop.multi_head_attention(layer.state_dict())
