"""What softmax attention is in other hands: alignments, windows, scales, caps, masks, sinks, heads and layouts."""

from __future__ import annotations

import numpy as np

from refattn.testing.explaining.alternative import (
    Alternative,
    factor,
    family,
    given,
    into,
    out_of,
    swapped,
    when,
    without_gradients,
)
from refattn.testing.explaining.attention_changes import (
    LN2,
    added_mask,
    as_bias,
    capped_after_bias,
    causal_too,
    heads_and_length,
    is_limited,
    lowered,
    lse_without_sinks,
    moved_edge,
    moved_window,
    other_scale,
    over_queries,
    read_as_bshd,
    read_transposed,
    reversed_window,
    scale_of,
    set_to,
    tiled_heads,
    unnormalised,
    written_as_bshd,
)

ATTENTION: tuple[Alternative, ...] = (
    *family(
        "align",
        [
            (
                f"it is aligned at the {corner.replace('_', ' ')}: causal mask and window",
                given(lambda a, c=corner: {"align": c} if is_limited(a) else None),
            )
            for corner in ("upper_left", "lower_right")
        ],
    ),
    *family(
        "causal",
        [
            ("the causal mask is missing", given(lambda a: {"causal": False} if a.get("causal") else None)),
            ("each query sees one key beyond the causal edge", moved_edge(1)),
            ("the causal mask hides a query's own key", moved_edge(-1)),
            ("it is causal", given(lambda a: causal_too(a, None))),
            ("it is causal, aligned at the upper left", given(lambda a: causal_too(a, "upper_left"))),
            ("it is causal, aligned at the lower right", given(lambda a: causal_too(a, "lower_right"))),
        ],
    ),
    *family(
        "window",
        [
            ("the window is missing", given(lambda a: None if a.get("window") is None else {"window": None})),
            ("the window reaches one key further to the left", moved_window(1, 0)),
            ("the window reaches one key less to the left", moved_window(-1, 0)),
            ("the window reaches one key further to the right", moved_window(0, 1)),
            ("the window reaches one key less to the right", moved_window(0, -1)),
            ("the window reaches one key further on both sides", moved_window(1, 1)),
            ("the window reaches one key less on both sides", moved_window(-1, -1)),
            ("the window has no limit to the left", moved_window(None, 0)),
            ("the window has no limit to the right", moved_window(0, None)),
            ("the window's left and right are swapped", given(reversed_window)),
        ],
    ),
    *family(
        "scale",
        [
            ("the scale is missing", other_scale(lambda s, a: 1.0)),
            ("the scale is 1 / head_dim", other_scale(lambda s, a: 1 / a["query"].shape[-1])),
            ("the scale is sqrt(head_dim)", other_scale(lambda s, a: a["query"].shape[-1] ** 0.5)),
            ("the scale is 1 / sqrt(head_dim), whatever was given", given(lambda a: None if a.get("scale") is None else {"scale": None})),
            ("the scale is 1 / sqrt(value_dim)", other_scale(lambda s, a: a["value"].shape[-1] ** -0.5)),
            ("the scale is 1 / sqrt(heads * head_dim)", other_scale(lambda s, a: (a["query"].shape[-1] * a["query"].shape[-3]) ** -0.5)),
            ("the scale is applied twice", other_scale(lambda s, a: s * s)),
            ("scores are divided by the scale", other_scale(lambda s, a: 1 / s)),
            ("log2(e) is missing before a power of 2", other_scale(lambda s, a: s * LN2)),
            ("log2(e) multiplies scores of which the natural exponential is taken", other_scale(lambda s, a: s / LN2)),
        ],
    ),
    *family(
        "softcap",
        [
            ("the soft cap is missing", given(lambda a: None if a.get("softcap") is None else {"softcap": None})),
            ("the soft cap comes after the bias", capped_after_bias),
            ("the soft cap comes before the scale", given(lambda a: {"softcap": a["softcap"] * scale_of(a)} if a.get("softcap") else None)),
            (
                "the soft cap is tanh(score / cap), without the factor cap",
                given(lambda a: {"softcap": 1.0, "scale": scale_of(a) / a["softcap"]} if a.get("softcap") else None),
            ),
        ],
    ),
    *family(
        "mask",
        [
            ("False in the mask means may attend", given(lambda a: None if a.get("mask") is None else {"mask": ~a["mask"]})),
            ("the mask is missing", given(lambda a: None if a.get("mask") is None else {"mask": None})),
            ("the mask is added to the scores as 0 and 1", given(added_mask)),
            ("masked scores are lowered by 10000, not to minus infinity", lowered(-10000.0)),
            ("masked scores are set to 0", set_to(lambda a: 0.0)),
            ("masked scores are set to -10", set_to(lambda a: -10.0)),
            ("masked scores are set to -10000", set_to(lambda a: -10000.0)),
            ("masked scores are set to -1e9", set_to(lambda a: -1e9)),
            ("the soft cap comes after the mask", set_to(lambda a: None if a.get("softcap") is None else -a["softcap"])),
        ],
    ),
    *family("masked_rows", [(f"a row without keys is {p}", given(lambda a, p=p: {"masked_rows": p})) for p in ("zero", "nan", "uniform")]),
    *family(
        "bias",
        [
            ("the bias is missing", given(lambda a: None if a.get("bias") is None else {"bias": None})),
            ("the bias is subtracted", when(lambda a: not np.isneginf(as_bias(a)).any(), into(lambda a: {"bias": factor(-1)}))),
            ("the bias is added before the scale", when(lambda a: np.isscalar(scale_of(a)), into(lambda a: {"bias": factor(scale_of(a))}))),
            ("the bias is in units of base 2", into(lambda a: {"bias": factor(LN2)})),
        ],
    ),
    *family(
        "sinks",
        [
            ("the sinks are missing", given(lambda a: None if a.get("sinks") is None else {"sinks": None})),
            ("the sinks are scaled like scores", when(lambda a: np.isscalar(scale_of(a)), into(lambda a: {"sinks": factor(scale_of(a))}))),
            ("the sinks are in units of base 2", into(lambda a: {"sinks": factor(LN2)})),
        ],
    ),
    *family(
        "lse",
        [
            ("the log-sum-exp is of base 2", out_of(lambda a: {"lse": factor(1 / LN2)})),
            ("the log-sum-exp leaves out the sink", without_gradients(lse_without_sinks)),
            ("the log-sum-exp has the other sign", out_of(lambda a: {"lse": factor(-1)})),
        ],
    ),
    *family(
        "heads",
        [
            ("query head h reads key and value head h % kv_heads (tiled, not interleaved)", tiled_heads(("key", "value"))),
            ("query head h reads key head h % kv_heads, and value head h // group", tiled_heads(("key",))),
            ("query head h reads value head h % kv_heads, and key head h // group", tiled_heads(("value",))),
        ],
    ),
    *family(
        "layout",
        [
            ("it takes (batch, length, heads, head_dim): query, key and value", into(heads_and_length)),
            (
                "it takes and returns (batch, length, heads, head_dim)",
                lambda call: out_of(lambda a: {"output": swapped(-3, -2)})(into(heads_and_length)(call)),
            ),
            ("the output is (batch, length, heads, value_dim)", out_of(lambda a: {"output": swapped(-3, -2)})),
            ("memory is read as (batch, length, heads, head_dim)", into(read_as_bshd)),
            (
                "memory is read and written as (batch, length, heads, head_dim)",
                lambda call: out_of(written_as_bshd)(into(read_as_bshd)(call)),
            ),
            ("memory of the output is written as (batch, length, heads, value_dim)", out_of(written_as_bshd)),
            ("keys are read as (head_dim, length)", into(lambda a: {"key": read_transposed(a["key"].shape)})),
            ("values are read as (value_dim, length)", into(lambda a: {"value": read_transposed(a["value"].shape)})),
        ],
    ),
    *family(
        "dropout",
        [
            ("dropout is missing", given(lambda a: None if a.get("keep") is None else {"keep": None})),
            (
                "dropout does not divide by 1 - rate",
                given(lambda a: {"dropout_rate": 0.0} if a.get("keep") is not None and a.get("dropout_rate") else None),
            ),
            ("dropout drops where keep is True", given(lambda a: None if a.get("keep") is None else {"keep": ~a["keep"]})),
        ],
    ),
    *family(
        "softmax",
        [
            ("the softmax runs over the queries", without_gradients(over_queries)),
            ("weights are not divided by their sum", without_gradients(unnormalised)),
        ],
    ),
)
