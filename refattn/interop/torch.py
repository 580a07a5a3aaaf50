"""PyTorch's parameters under the names of this package.

Each function takes a layer's ``state_dict()`` and returns arguments. They rename and slice, and compute nothing, so that
a mapping of the same names to gradients, ``{name: p.grad for name, p in layer.named_parameters()}``, comes out as gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


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


def _thirds(x: Any) -> tuple[Any, Any, Any]:
    third = len(x) // 3
    return x[:third], x[third : 2 * third], x[2 * third :]
