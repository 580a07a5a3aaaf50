"""PyTorch's parameters under the names of this package.

Each function takes a layer's ``state_dict()`` and returns arguments. They rename and slice, and compute nothing, so that
a mapping of the same names to gradients, ``{name: p.grad for name, p in layer.named_parameters()}``, comes out as gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from refattn.blocks.weights import (
    AttentionWeights,
    DecoderLayerWeights,
    EncoderLayerWeights,
    FeedForwardWeights,
    NormWeights,
    TransformerWeights,
)


def multi_head_attention(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Weights and biases of ``torch.nn.MultiheadAttention`` as arguments of `refattn.multi_head_attention`.

    PyTorch's boolean masks are the opposite of this package's: pass ``mask=~attn_mask``, and
    ``mask=~key_padding_mask[:, None, None, :]``. PyTorch's layout is (length, batch, features) unless ``batch_first`` is set.

    Parameters
    ----------
    state_dict : mapping of str to array
        The layer's entries, or their gradients; ``bias_k`` and ``bias_v``, one more key and value, are refused.

    Returns
    -------
    dict of str to array
        ``w_query`` to ``w_output``, and ``b_query`` to ``b_output`` where the layer has biases.
    """
    names = ("query", "key", "value")
    if state_dict.get("bias_k") is not None or state_dict.get("bias_v") is not None:
        raise ValueError("bias_k and bias_v append a key and a value, which multi_head_attention does not have")
    if state_dict.get("in_proj_weight") is not None:
        weights = _thirds(state_dict["in_proj_weight"])
    else:
        weights = tuple(state_dict[f"{name[0]}_proj_weight"] for name in names)
    arguments = {f"w_{name}": w for name, w in zip(names, weights, strict=True)}
    arguments["w_output"] = state_dict["out_proj.weight"]
    if state_dict.get("in_proj_bias") is not None:
        arguments |= {f"b_{name}": b for name, b in zip(names, _thirds(state_dict["in_proj_bias"]), strict=True)}
        arguments["b_output"] = state_dict["out_proj.bias"]
    return arguments


def transformer_encoder_layer(state_dict: Mapping[str, Any]) -> dict[str, EncoderLayerWeights]:
    """Weights of ``torch.nn.TransformerEncoderLayer`` as an argument of `refattn.transformer_encoder_layer`.

    The layer's ``norm_first=True`` is ``norm="pre"``, and its ``nhead`` is ``num_heads``.

    Parameters
    ----------
    state_dict : mapping of str to array
        The layer's entries, or their gradients.

    Returns
    -------
    dict of str to EncoderLayerWeights
        ``weights``.
    """
    attention, network = _attention(state_dict, "self_attn"), _feed_forward(state_dict)
    return {"weights": EncoderLayerWeights(attention, network, _norm(state_dict, "norm1"), _norm(state_dict, "norm2"))}


def transformer_decoder_layer(state_dict: Mapping[str, Any]) -> dict[str, DecoderLayerWeights]:
    """Weights of ``torch.nn.TransformerDecoderLayer`` as an argument of `refattn.transformer_decoder_layer`.

    PyTorch's layer is causal only where it is given a mask: pass ``causal=False`` where it is given none.

    Parameters
    ----------
    state_dict : mapping of str to array
        The layer's entries, or their gradients.

    Returns
    -------
    dict of str to DecoderLayerWeights
        ``weights``.
    """
    itself, cross = _attention(state_dict, "self_attn"), _attention(state_dict, "multihead_attn")
    norms = (_norm(state_dict, f"norm{i}") for i in (1, 2, 3))
    return {"weights": DecoderLayerWeights(itself, cross, _feed_forward(state_dict), *norms)}


def transformer_encoder(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Weights of ``torch.nn.TransformerEncoder`` as arguments of `refattn.transformer_encoder`.

    Parameters
    ----------
    state_dict : mapping of str to array
        The stack's entries, or their gradients.

    Returns
    -------
    dict of str to tuple of EncoderLayerWeights and NormWeights
        ``layers``, and ``final_norm`` where the stack has one.
    """
    return _stack(state_dict, transformer_encoder_layer)


def transformer_decoder(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Weights of ``torch.nn.TransformerDecoder`` as arguments of `refattn.transformer_decoder`.

    Parameters
    ----------
    state_dict : mapping of str to array
        The stack's entries, or their gradients.

    Returns
    -------
    dict of str to tuple of DecoderLayerWeights and NormWeights
        ``layers``, and ``final_norm`` where the stack has one.
    """
    return _stack(state_dict, transformer_decoder_layer)


def transformer(state_dict: Mapping[str, Any]) -> dict[str, TransformerWeights]:
    """Weights of ``torch.nn.Transformer`` as an argument of `refattn.transformer`.

    PyTorch's is causal only where it is given a ``tgt_mask``: pass ``causal=False`` where it is given none.

    Parameters
    ----------
    state_dict : mapping of str to array
        The model's entries, or their gradients.

    Returns
    -------
    dict of str to TransformerWeights
        ``weights``.
    """
    encoder = transformer_encoder(_below(state_dict, "encoder"))
    decoder = transformer_decoder(_below(state_dict, "decoder"))
    norms = (encoder.get("final_norm"), decoder.get("final_norm"))
    return {"weights": TransformerWeights(encoder["layers"], decoder["layers"], *norms)}


def _stack(state_dict: Mapping[str, Any], layer: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> dict[str, Any]:
    count = 1 + max((int(key.split(".")[1]) for key in state_dict if key.startswith("layers.")), default=-1)
    layers = tuple(layer(_below(state_dict, f"layers.{n}"))["weights"] for n in range(count))
    has_norm = any(key.startswith("norm.") for key in state_dict)
    return {"layers": layers, **({"final_norm": _norm(state_dict, "norm")} if has_norm else {})}


def _below(state_dict: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The entries of one part of a layer, as the part itself names them."""
    return {key.removeprefix(f"{name}."): x for key, x in state_dict.items() if key.startswith(f"{name}.")}


def _attention(state_dict: Mapping[str, Any], name: str) -> AttentionWeights:
    return AttentionWeights(**multi_head_attention(_below(state_dict, name)))


def _feed_forward(state_dict: Mapping[str, Any]) -> FeedForwardWeights:
    weights = (state_dict[f"linear{i}.weight"] for i in (1, 2))
    return FeedForwardWeights(*weights, *(state_dict.get(f"linear{i}.bias") for i in (1, 2)))


def _norm(state_dict: Mapping[str, Any], name: str) -> NormWeights:
    return NormWeights(state_dict.get(f"{name}.weight"), state_dict.get(f"{name}.bias"))


def _thirds(x: Any) -> tuple[Any, Any, Any]:
    third = len(x) // 3
    return x[:third], x[third : 2 * third], x[2 * third :]
