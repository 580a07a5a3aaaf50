"""Layers and stacks of the Transformer against PyTorch in float64: outputs, and the gradient of every input and every weight."""

from __future__ import annotations

import numpy as np
import pytest

import refattn
from refattn import testing
from refattn._core import tree
from refattn._core.random import Random
from refattn.interop import torch as interop

torch = pytest.importorskip("torch")

CLOSE = {"rtol": 1e-11, "atol": 1e-11}  # some thousand operations a number, on numbers of size 10
WIDTH, HEADS, HIDDEN = 6, 3, 7
NORMS = [pytest.param(False, id="post"), pytest.param(True, id="pre")]
OPTIONS = {"dropout": 0.0, "batch_first": True, "dtype": torch.float64}


def drawn(layer):
    """The layer with random parameters: biases of 0 and scales of 1 would test nothing."""
    random = Random(3)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.tensor(random.normal(tuple(p.shape)) / 2))
    return layer


def seen(shape):
    mask = Random(8).booleans(0.6, shape)
    mask[..., 0] = True
    return mask


def compare(mechanism, renamed, layer, inputs, theirs, ours):
    """Ours with the layer's weights, and the layer with the inputs: outputs, and all gradients by name."""
    output, pullback = mechanism.vjp(**inputs, **renamed(layer.state_dict()), **ours)
    (d_output,) = testing.cotangents(output)
    leaves = {name: torch.tensor(x, requires_grad=True) for name, x in inputs.items()}
    made = layer(*leaves.values(), **{n: torch.tensor(x) if isinstance(x, np.ndarray) else x for n, x in theirs.items()})
    np.testing.assert_allclose(output, made.detach().numpy(), **CLOSE)
    made.backward(torch.tensor(d_output))
    their_weights = renamed({name: p.grad for name, p in layer.named_parameters()})
    wanted = dict(tree.leaves({**{name: x.grad for name, x in leaves.items()}, **their_weights}))
    got = dict(tree.leaves(pullback(d_output)))
    assert got.keys() == wanted.keys()
    assert len(wanted) == len(inputs) + sum(3 if "in_proj" in name else 1 for name, _ in layer.named_parameters())
    for name, g in wanted.items():
        np.testing.assert_allclose(got[name], g.numpy(), **CLOSE, err_msg=name)


PADDING = np.array([[False] * 5, [False] * 3 + [True] * 2])  # PyTorch's sense: True is left out
SOURCE = {
    "no mask": ({}, {}),
    "mask": ({"src_mask": ~seen((5, 5))}, {"mask": seen((5, 5))}),
    "padding": ({"src_key_padding_mask": PADDING}, {"mask": ~PADDING[:, None, None]}),
    "causal": ({"src_mask": ~refattn.masks.causal(5, 5), "is_causal": True}, {"causal": True}),
}


@pytest.mark.parametrize("norm_first", NORMS)
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize(("theirs", "ours"), SOURCE.values(), ids=SOURCE)
def test_encoder_layer(norm_first, activation, theirs, ours):
    layer = drawn(torch.nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, activation=activation, norm_first=norm_first, **OPTIONS))
    ours = {"num_heads": HEADS, "norm": "pre" if norm_first else "post", "activation": activation, **ours}
    inputs = {"x": Random(1).normal((2, 5, WIDTH))}
    compare(refattn.transformer_encoder_layer, interop.transformer_encoder_layer, layer, inputs, theirs, ours)


TARGET = {
    "no mask": ({}, {"causal": False}),
    "causal": ({"tgt_mask": ~refattn.masks.causal(4, 4), "tgt_is_causal": True}, {}),
    "masks": (
        {"tgt_mask": ~seen((4, 4)), "memory_mask": ~seen((4, 5))},
        {"mask": seen((4, 4)), "memory_mask": seen((4, 5)), "causal": False},
    ),
    "padding": (
        {"tgt_mask": ~refattn.masks.causal(4, 4), "tgt_key_padding_mask": PADDING[:, 1:], "memory_key_padding_mask": PADDING},
        {"mask": ~PADDING[:, None, None, 1:], "memory_mask": ~PADDING[:, None, None]},
    ),
}


@pytest.mark.parametrize("norm_first", NORMS)
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize(("theirs", "ours"), TARGET.values(), ids=TARGET)
def test_decoder_layer(norm_first, activation, theirs, ours):
    layer = drawn(torch.nn.TransformerDecoderLayer(WIDTH, HEADS, HIDDEN, activation=activation, norm_first=norm_first, **OPTIONS))
    ours = {"num_heads": HEADS, "norm": "pre" if norm_first else "post", "activation": activation, **ours}
    inputs = {"x": Random(1).normal((2, 4, WIDTH)), "memory": Random(2).normal((2, 5, WIDTH))}
    compare(refattn.transformer_decoder_layer, interop.transformer_decoder_layer, layer, inputs, theirs, ours)


@pytest.mark.parametrize("norm_first", NORMS)
def test_layers_without_biases_and_with_another_eps(norm_first):
    options = {"norm_first": norm_first, "bias": False, "layer_norm_eps": 0.25, **OPTIONS}
    ours = {"num_heads": HEADS, "norm": "pre" if norm_first else "post", "eps": 0.25}
    layer = drawn(torch.nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, **options))
    x, memory = Random(1).normal((2, 4, WIDTH)), Random(2).normal((2, 5, WIDTH))
    compare(refattn.transformer_encoder_layer, interop.transformer_encoder_layer, layer, {"x": x}, {}, ours)
    layer = drawn(torch.nn.TransformerDecoderLayer(WIDTH, HEADS, HIDDEN, **options))
    given = {"x": x, "memory": memory}
    compare(refattn.transformer_decoder_layer, interop.transformer_decoder_layer, layer, given, {}, {**ours, "causal": False})


class Kept(torch.nn.Module):
    """Dropout with a mask that was drawn before."""

    def __init__(self, keep, rate):
        super().__init__()
        self.keep, self.rate = torch.tensor(keep), rate

    def forward(self, x):
        return x * self.keep / (1 - self.rate)


@pytest.mark.parametrize("norm_first", NORMS)
def test_dropout(norm_first):
    """Of sublayers and of the inner layer; PyTorch's attention draws the mask of its weights itself."""
    random = Random(5)
    masks = {name: random.booleans(0.7, (2, 4, n)) for name, n in {"attended": WIDTH, "hidden": HIDDEN, "transformed": WIDTH}.items()}
    masks["crossed"] = random.booleans(0.7, (2, 4, WIDTH))
    ours = {"num_heads": HEADS, "norm": "pre" if norm_first else "post", "dropout_rate": 0.25}
    x, memory = Random(1).normal((2, 4, WIDTH)), Random(2).normal((2, 5, WIDTH))

    def with_masks(layer, **places):
        for place, name in places.items():
            setattr(layer, place, Kept(masks[name], 0.25))
        return drawn(layer)

    layer = torch.nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, norm_first=norm_first, **OPTIONS)
    layer = with_masks(layer, dropout1="attended", dropout="hidden", dropout2="transformed")
    keep = refattn.EncoderLayerKeep(None, masks["attended"], masks["hidden"], masks["transformed"])
    compare(refattn.transformer_encoder_layer, interop.transformer_encoder_layer, layer, {"x": x}, {}, {**ours, "keep": keep})

    layer = torch.nn.TransformerDecoderLayer(WIDTH, HEADS, HIDDEN, norm_first=norm_first, **OPTIONS)
    layer = with_masks(layer, dropout1="attended", dropout2="crossed", dropout="hidden", dropout3="transformed")
    keep = refattn.DecoderLayerKeep(None, masks["attended"], None, masks["crossed"], masks["hidden"], masks["transformed"])
    ours |= {"keep": keep, "causal": False}
    compare(refattn.transformer_decoder_layer, interop.transformer_decoder_layer, layer, {"x": x, "memory": memory}, {}, ours)


@pytest.mark.parametrize("norm_first", NORMS)
@pytest.mark.parametrize("final_norm", [False, True], ids=["no norm", "norm"])
def test_stacks(norm_first, final_norm):
    """Every layer has weights of its own, so that an exchange of layers would be seen."""
    ours = {"num_heads": HEADS, "norm": "pre" if norm_first else "post"}

    def last():
        return torch.nn.LayerNorm(WIDTH, dtype=torch.float64) if final_norm else None

    x, memory = Random(1).normal((2, 5, WIDTH)), Random(2).normal((2, 4, WIDTH))
    layer = torch.nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, norm_first=norm_first, **OPTIONS)
    stack = drawn(torch.nn.TransformerEncoder(layer, 3, last(), enable_nested_tensor=False))
    theirs, masked = SOURCE["mask"][0]["src_mask"], {"mask": SOURCE["mask"][1]["mask"]}
    compare(refattn.transformer_encoder, interop.transformer_encoder, stack, {"x": x}, {"mask": theirs}, {**ours, **masked})

    layer = torch.nn.TransformerDecoderLayer(WIDTH, HEADS, HIDDEN, norm_first=norm_first, **OPTIONS)
    stack = drawn(torch.nn.TransformerDecoder(layer, 3, last()))
    theirs, masked = {"memory_mask": ~seen((5, 4))}, {"memory_mask": seen((5, 4)), "causal": False}
    inputs = {"x": x, "memory": memory}
    compare(refattn.transformer_decoder, interop.transformer_decoder, stack, inputs, theirs, {**ours, **masked})


WHOLE = {
    "no mask": ({}, {"causal": False}),
    "causal": ({"tgt_mask": ~refattn.masks.causal(4, 4)}, {}),
    "masks": (
        {"src_mask": ~seen((5, 5)), "tgt_mask": ~seen((4, 4)), "memory_mask": ~seen((4, 5))},
        {"source_mask": seen((5, 5)), "target_mask": seen((4, 4)), "memory_mask": seen((4, 5)), "causal": False},
    ),
    "padding": (
        {
            "src_key_padding_mask": PADDING,
            "tgt_key_padding_mask": PADDING[:, 1:],
            "memory_key_padding_mask": PADDING,
            "tgt_mask": ~refattn.masks.causal(4, 4),
        },
        {
            "source_mask": ~PADDING[:, None, None],
            "target_mask": ~PADDING[:, None, None, 1:],
            "memory_mask": ~PADDING[:, None, None],
        },
    ),
}


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.parametrize("norm_first", NORMS)
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize(("theirs", "ours"), WHOLE.values(), ids=WHOLE)
def test_transformer(norm_first, activation, theirs, ours):
    model = drawn(torch.nn.Transformer(WIDTH, HEADS, 2, 2, HIDDEN, activation=activation, norm_first=norm_first, **OPTIONS))
    ours = {"num_heads": HEADS, "norm": "pre" if norm_first else "post", "activation": activation, **ours}
    inputs = {"source": Random(1).normal((2, 5, WIDTH)), "target": Random(2).normal((2, 4, WIDTH))}
    compare(refattn.transformer, interop.transformer, model, inputs, theirs, ours)
