"""ONNX operators, computed by this package; their inputs and outputs in the operator's order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from refattn import masks
from refattn._core.arrays import Array, Booleans, as_array
from refattn.attention.dot_product.multi_head import merge_heads, split_heads
from refattn.attention.dot_product.scaled_dot_product import scaled_dot_product_attention_with_weights


class AttentionOutputs(NamedTuple):
    """The outputs of ONNX ``Attention``."""

    Y: Array
    present_key: Any
    present_value: Any
    qk_matmul_output: Array


def attention(inputs: Sequence[Any], attributes: Mapping[str, Any] | None = None) -> AttentionOutputs:
    """ONNX ``Attention`` (opsets 23 to 25), in float64.

    The operator's own precisions are not imitated: ``softmax_precision`` and the rounding of intermediate results to the
    type of the inputs are the caller's tolerance.

    Parameters
    ----------
    inputs : sequence of array or None
        Q, K, V, attn_mask, past_key, past_value, nonpad_kv_seqlen; absent ones are None or left off the end.
    attributes : mapping or None, optional
        The node's attributes.

    Returns
    -------
    Y, present_key, present_value, qk_matmul_output : array
        As the operator defines them; the last in the stage that ``qk_matmul_output_mode`` names.
    """
    given = dict(attributes or {})
    q, k, v = (np.asarray(as_array(x), np.float64) for x in inputs[:3])
    attn_mask, past_key, past_value, nonpad_kv_seqlen = (
        None if x is None else as_array(x) for x in (*inputs[3:], *(None,) * (7 - len(inputs)))
    )
    flat = q.ndim == 3
    if flat:
        q = split_heads(q, given["q_num_heads"])
        k, v = (split_heads(x, given["kv_num_heads"]) for x in (k, v))
    keys, values = (x if past is None else np.concatenate([past.astype(x.dtype), x], -2) for x, past in ((k, past_key), (v, past_value)))
    query_len, key_len = q.shape[-2], keys.shape[-2]

    # Query i sits at key i + offset: after the cache, or at the end of what is not padding.
    offset = np.asarray(0) if past_key is None else np.asarray(past_key.shape[-2])
    allowed: Booleans = np.ones((query_len, key_len), bool)
    if nonpad_kv_seqlen is not None:
        allowed = allowed & masks.padding(nonpad_kv_seqlen, key_len)
        offset = nonpad_kv_seqlen.reshape(-1, 1, 1, 1) - query_len
    away = masks.distance(query_len, key_len, align="upper_left") - offset
    left, right = (given.get(f"{side}_window_size", -1) for side in ("left", "right"))
    if given.get("is_causal", 0):
        allowed = allowed & (away <= 0)
    if left >= 0:
        allowed = allowed & (away >= -left)
    if right >= 0:
        allowed = allowed & (away <= right)
    bias = None
    if attn_mask is not None:
        lacking = [(0, 0)] * (attn_mask.ndim - 1) + [(0, key_len - attn_mask.shape[-1])]  # keys beyond a short mask are masked
        boolean = attn_mask.dtype == bool
        padded = np.pad(attn_mask, lacking, constant_values=False if boolean else -np.inf)
        allowed, bias = (allowed & padded, None) if boolean else (allowed, padded.astype(q.dtype))
    scale, cap = given.get("scale", 1 / np.sqrt(q.shape[-1])), given.get("softcap", 0.0) or None
    output, weights = scaled_dot_product_attention_with_weights(q, keys, values, bias, mask=allowed, scale=scale, softcap=cap)
    mode = given.get("qk_matmul_output_mode", 0)
    scores = weights if mode == 3 else _scores(q, keys, bias, allowed, scale, cap, mode)
    return AttentionOutputs(merge_heads(output) if flat else output, keys, values, scores)


def _scores(q: Array, keys: Array, bias: Array | None, allowed: Booleans, scale: float, cap: float | None, mode: int) -> Array:
    """The scores after their scale (0), softcap (1), or bias and mask (2)."""
    scores = scale * (q @ keys.repeat(q.shape[-3] // keys.shape[-3], axis=-3).swapaxes(-1, -2))
    if mode >= 1 and cap is not None:
        scores = cap * np.tanh(scores / cap)
    if mode >= 2:
        scores = np.where(allowed, scores if bias is None else scores + bias, -np.inf)
    return scores
