"""Plant one-line faults, one at a time, in a copy of the package: the tests of the mutated file's mechanisms must catch each.

Run as ``python -m tests.faults [--twins | --convolutions] [WORDS]`` (only the faults whose file or description contains these words)
or ``pytest -m slow``. Otherwise faults are those of compiled kernels (`tests.twins.planted`, `tests.twins.planted_conv`), which name the
tests that have to catch them; a run of all those of convolutions writes docs/planted.md.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple

import refattn
from refattn.view.table import Table, progress
from tests.twins import planted as twins
from tests.twins import planted_conv as convolutions

ROOT = Path(__file__).parent.parent
PACKAGE = Path(refattn.__file__).parent
PROCESSES = 2
TESTS = ("tests/test_mechanisms.py", "tests/test_definitions.py")
PAGE = ROOT / "docs" / "planted.md"
ORACLE = "test_conv_oracle.py"


class Fault(NamedTuple):
    """One line that is wrong."""

    what: str
    file: str
    old: str
    new: str
    mechanisms: str


SDPA = "attention/dot_product/scaled_dot_product.py"
STAGES = "primitives/attention_stages.py"
RULE = "convolution/rule.py"
NORM = "primitives/normalization.py"
SCORE = "attention/score/rule.py"
SQUEEZE = "attention/channel/squeeze_excitation.py"
HARD = "attention/stochastic/hard.py"
PAIRS = "attention/spatial/pairs.py"
MEANS = "attention/spatial/non_local_means.py"
RESIDUAL = "attention/spatial/residual_attention.py"
RELATIVE = "positional/relative.py"
BESIDE = "attention/spatial/conv_attention.py"
LOCAL = "attention/spatial/local_attention.py"
ACMIX = "attention/spatial/acmix.py"
DEFORMED, SAMPLING = "convolution/deformable.py", "primitives/sampling.py"
RECURRENT = "attention/linear/rule.py"

FAULTS = (
    Fault("scale is 1 / head_dim", SDPA, "1 / np.sqrt(like(query, head_dim))", "1 / head_dim", "scaled_dot_product_attention"),
    Fault("grouped heads tiled, not repeated", SDPA, "x.repeat(group, axis=-3)", "np.concatenate([x] * group, axis=-3)", "scaled_dot_product_attention"),
    Fault("heads of a group summed as if tiled", SDPA, "d_keys.reshape(*lead, kv_heads, group, *key.shape[-2:]).sum(axis=-3)",
          "d_keys.reshape(*lead, group, kv_heads, *key.shape[-2:]).sum(axis=-4)", "scaled_dot_product_attention"),
    Fault("mask dropped", SDPA, "np.broadcast_to(True if mask is None else mask, shape)", "np.broadcast_to(True, shape)", "scaled_dot_product_attention"),
    Fault("mask inverted", SDPA, "True if mask is None else mask", "True if mask is None else ~mask", "scaled_dot_product_attention"),
    Fault("bias before the soft cap", SDPA, "softcapped.vjp(scores, cap=softcap)", "softcapped.vjp(scores if bias is None else scores + np.where(allowed, bias, 0), cap=softcap)",
          "scaled_dot_product_attention"),
    Fault("bias not in the scores", SDPA, "capped + np.where(allowed, bias, 0), 0)", "capped, 0)", "scaled_dot_product_attention"),
    Fault("soft cap left out of the pullback", SDPA, 'scale_pullback(softcap_pullback(d_softmax["scores"])["scores"])', 'scale_pullback(d_softmax["scores"])',
          "scaled_dot_product_attention"),
    Fault("dropout left out of the pullback", SDPA, 'dropout_pullback(d_kept)["x"]', "d_kept", "scaled_dot_product_attention"),
    Fault("weights before dropout in d_value", SDPA, "np.where(read, kept, 0)", "np.where(read, weights, 0)", "scaled_dot_product_attention"),
    Fault("no gradient through the weights", SDPA, "softmax_pullback(d_weights + dropout_pullback", "softmax_pullback(0 * d_weights + dropout_pullback", "scaled_dot_product_attention"),
    Fault("window one key too long", "masks.py", "(-np.inf if left is None else -left)", "(-np.inf if left is None else -left - 1)", "scaled_dot_product_attention"),
    Fault("window without a right end", "masks.py", "(np.inf if right is None else right)", "np.inf", "scaled_dot_product_attention"),
    Fault("no sink in the softmax", STAGES, "total = exp.sum(axis=-1) + sink_exp", "total = exp.sum(axis=-1)", "masked_softmax"),
    Fault("log-sum-exp without its shift", STAGES, "shift + np.log(divisor)", "np.log(divisor)", "masked_softmax"),
    Fault("log-sum-exp has no gradient", STAGES, "(d_attended + (d_lse - inner)[..., None])", "(d_attended - inner[..., None])", "masked_softmax"),
    Fault("sink's gradient without the weights", STAGES, "sink_weight * (d_lse - inner)", "sink_weight * d_lse", "masked_softmax"),
    Fault("dropout without 1 / (1 - rate)", STAGES, "factor = like(x, keep) / (1 - like(x, rate))", "factor = like(x, keep)", "dropout"),
    Fault("dropout divides by the rate", STAGES, "factor = like(x, keep) / (1 - like(x, rate))", "factor = like(x, keep) / rate", "dropout"),
    Fault("soft cap not multiplied back", STAGES, "return cap * bounded,", "return bounded,", "softcap"),
    Fault("soft cap's slope not squared", STAGES, "(1 - bounded**2)", "(1 - bounded)", "softcap"),
    Fault("softmax's pullback without its sum", "primitives/softmax.py", "y * (dy - (y * dy).sum(axis=-1, keepdims=True))", "y * dy", "softmax"),
    Fault("wrong head order", "attention/dot_product/multi_head.py", "heads, x.shape[-1] // heads).swapaxes(-2, -3)",
          "x.shape[-1] // heads, heads).swapaxes(-1, -3).swapaxes(-1, -2)", "multi_head_attention"),
    Fault("parts merged without their shares", "attention/dot_product/merge.py", '"outputs": shares_first * d_output', '"outputs": d_output + 0 * read', "merge_attention"),
    Fault("half of d_x", "primitives/linear.py", '"x": dy @ weight', '"x": 0.5 * dy @ weight', "linear"),
    Fault("linear's bias counted twice", "primitives/linear.py", '"bias": rows.sum(axis=0)', '"bias": 2 * rows.sum(axis=0)', "linear"),
    Fault("kernel flipped", RULE, "for t in itertools.product(*map(range, kernel)):", "for t in itertools.product(*(range(k)[::-1] for k in kernel)):", "conv1d conv2d conv3d"),
    Fault("dilation is the stride", RULE, "slice(i * d, i * d + s * (n - 1) + 1, s)", "slice(i * s, i * s + s * (n - 1) + 1, s)", "conv1d conv2d conv3d"),
    Fault("one position too few", RULE, "(n - d * (k - 1) - 1) // s + 1 for", "(n - d * (k - 1) - 1) // s for", "conv1d conv2d conv3d"),
    Fault("same: odd padding before", RULE, "(max(m, 0) // 2, (max(m, 0) + 1) // 2)", "((max(m, 0) + 1) // 2, max(m, 0) // 2)", "conv1d conv2d conv3d"),
    Fault("bias's gradient of one example", RULE, "return dy.sum(axis=(0, *range(2, dy.ndim)))", "return dy[:1].sum(axis=(0, *range(2, dy.ndim)))", "conv1d conv2d conv3d"),
    Fault("weight's gradient upside down", RULE, "np.moveaxis(np.moveaxis(d_matrices, 0, -1)", "np.moveaxis(np.moveaxis(d_matrices[::-1], 0, -1)", "conv2d conv3d"),
    Fault("groups interleaved with channels", RULE, "groups, x.shape[axis] // groups, *x.shape[axis + 1 :])", "x.shape[axis] // groups, groups, *x.shape[axis + 1 :]).swapaxes(axis, axis + 1)",
          "conv1d conv2d conv3d"),
    Fault("transposed: cut at the wrong ends", RULE, "slice(before, n - after)", "slice(after, n - before)", "conv_transpose1d conv_transpose2d conv_transpose3d"),
    Fault("state's gradient dropped", "convolution/causal.py", "d_seen[..., x.shape[2] :] += d_state", "d_seen[..., x.shape[2] :] += 0 * d_state", "causal_conv1d"),
    Fault("reflection repeats the edge", "primitives/padding.py", 'source = np.pad(np.arange(size), pair, mode=NUMPY_MODES[mode])',
          'source = np.pad(np.arange(size), pair, mode="edge")', "pad conv2d"),
    Fault("eps outside the root", NORM, "inverse = 1 / np.sqrt(var + eps)", "inverse = 1 / (np.sqrt(var) + eps)", "layer_norm rms_norm group_norm"),
    Fault("normalisation's pullback without z * mean(z dz)", NORM, "inverse * (dz - z * mean_of(z * dz))", "inverse * dz", "layer_norm rms_norm group_norm"),
    Fault("normalisation's pullback without the mean", NORM, "return d_moved - mean_of(d_moved) + d_mean / count if center", "return d_moved + d_mean / count if center", "layer_norm group_norm"),
    Fault("running variance is biased", NORM, "unbiased = count / (count - 1)", "unbiased = 1.0", "batch_norm_training"),
    Fault("momentum the other way", NORM, "(1 - momentum) * running_mean + momentum * mean", "momentum * running_mean + (1 - momentum) * mean", "batch_norm_training"),
    Fault("gelu's tail of x, not -x", "primitives/activation.py", "erfc.vjp(-root * x)", "erfc.vjp(root * x)", "gelu"),
    Fault("tanh gelu without its cubic slope", "primitives/activation.py", "slope * (1 + 3 * CUBIC * finite**2)", "slope", "gelu"),
    Fault("softplus not divided by beta", "primitives/activation.py", "np.log1p(np.exp(-np.abs(steep)))) / beta", "np.log1p(np.exp(-np.abs(steep))))", "softplus"),
    Fault("squeezed map not in d_x", SQUEEZE, 'd_gated["x"] + squeeze_pullback(d_excited["x"])["x"]', 'd_gated["x"]', "squeeze_excitation"),
    Fault("squeezed map not in d_x, one layer", SQUEEZE, 'd_gated["x"] + squeeze_pullback(d_linear["x"])["x"]', 'd_gated["x"]', "squeeze_excitation_one_layer"),
    Fault("means and maxima swapped", "attention/channel/cbam.py", "np.concatenate([means, maxima], axis=1), w_gate", "np.concatenate([maxima, means], axis=1), w_gate",
          "cbam_channel_concat"),
    Fault("both gates on x", "attention/channel/cbam.py", "cbam_spatial.vjp(gated, w_spatial, b_spatial)", "cbam_spatial.vjp(x, w_spatial, b_spatial)", "cbam"),
    Fault("a scale where there is none", PAIRS, "scale=1.0", "scale=None", "non_local"),
    Fault("halves of the weights swapped", PAIRS, "np.concatenate([d_left[\"weight\"][0], d_right[\"weight\"][0]])",
          "np.concatenate([d_right[\"weight\"][0], d_left[\"weight\"][0]])", "non_local"),
    Fault("divided by all positions, not by the pooled", PAIRS, "count = max(scores.shape[-1], 1)", "count = max(scores.shape[-2], 1)", "non_local mean_weights"),
    Fault("a mean's gradient not divided", PAIRS, 'lambda dy: {"scores": dy / count}', 'lambda dy: {"scores": dy}', "mean_weights"),
    Fault("pooled before the embeddings, whatever is asked", "attention/spatial/non_local.py", '(pool, None) if pooled == "input" else (None, pool)', "(pool, None)", "non_local"),
    Fault("pixels as keys not in d_x", "attention/spatial/pixel_self_attention.py", 'd["query"] + d["key"] + d["value"]', 'd["query"] + d["value"]', "pixel_self_attention"),
    Fault("distances summed over channels", MEANS, "np.sqrt(taps / channels)", "np.sqrt(taps)", "non_local_means"),
    Fault("gradient of h of another sign", MEANS, "2 / bandwidth**3", "-2 / bandwidth**3", "non_local_means"),
    Fault("a pixel is the largest of its others", MEANS, "others = near & (pixels[:, None] != pixels)", "others = near & (pixels >= 0)", "non_local_means"),
    Fault("rows that are not compared reach gradients", "primitives/distance.py", "masked_matmul(d, b, compared)", "d @ b", "squared_distances"),
    Fault("a distance has one end", "primitives/distance.py", '"b": 2 * (d.sum(axis=-2)[..., None] * of_b - ', '"b": 0 * (b - ', "squared_distances"),
    Fault("mask's length is not 1", RESIDUAL, "1 / np.sqrt(like(logits, logits.shape[1]))", "1.0", "residual_attention"),
    Fault("no gradient beside the mask", RESIDUAL, '"trunk": d_sum["a"] + d_product["b"]', '"trunk": d_product["b"]', "residual_attention"),
    Fault("skip's gradient dropped", "blocks/soft_mask_branch.py", 'd_deep["x"] + d_skip.get("x", 0)', 'd_deep["x"]', "soft_mask_branch"),
    Fault("levels of the mask in backward order", "blocks/soft_mask_branch.py", '(here, *d_deep["levels"])', '(*d_deep["levels"], here)', "soft_mask_branch"),
    Fault("norms of a unit swapped", "blocks/residual_unit.py", "mixed, weights.norm_expand, weights.w_expand", "mixed, weights.norm_spatial, weights.w_expand", "residual_unit"),
    Fault("mask has no gradient to the input", "blocks/residual_attention_module.py", 'd_trunk["x"] + d_mask["x"]', 'd_trunk["x"] + 0 * d_mask["x"]', "residual_attention_module"),
    Fault("distance from key to query", RELATIVE, "np.arange(length) - rows + length - 1", "rows - np.arange(length) + length - 1", "relative_logits_1d relative_logits_2d"),
    Fault("tables of rows and columns swapped", RELATIVE, '"row_table": d_down["table"]', '"row_table": d_across["table"]', "relative_logits_2d"),
    Fault("distances of rows across", RELATIVE, "total, add_pullback = add.vjp(down.swapaxes(-2, -3)[..., :, None]", "total, add_pullback = add.vjp(down.swapaxes(-2, -3)[..., None, :]", "relative_logits_2d"),
    Fault("relative logits not scaled", BESIDE, "scaled.vjp(logits, 1 / np.sqrt(like(query, query.shape[-1])))", "scaled.vjp(logits, 1.0)", "attention_augmented_conv2d conv_attention_sum"),
    Fault("distances not in the query's gradient", BESIDE, 'd["query"] + d_distance["query"]', 'd["query"] + 0 * d_distance["query"]', "attention_augmented_conv2d conv_attention_sum"),
    Fault("attention before convolution", BESIDE, "np.concatenate([convolved, attended], axis=1)", "np.concatenate([attended, convolved], axis=1)", "attention_augmented_conv2d"),
    Fault("branches of the sum swapped", BESIDE, "weighted_sum.vjp(attended, convolved, alpha, beta)", "weighted_sum.vjp(convolved, attended, alpha, beta)", "conv_attention_sum"),
    Fault("tokens scrambled with channels", BESIDE, "projected.swapaxes(1, 2).reshape(batch, projected", "projected.reshape(batch, projected", "attention_augmented_conv2d conv_attention_sum"),
    Fault("zeros for the mirror image", LOCAL, 'mode = "reflect" if border == "reflect" else "zeros"', 'mode = "zeros"', "local_attention_2d acmix"),
    Fault("border takes part", LOCAL, 'mask = inside[:, None, None] if border == "masked" else None', "mask = None", "local_attention_2d"),
    Fault("coordinates from query to neighbour", LOCAL, "2 * (queries - mirrored)", "2 * (mirrored - queries)", "local_attention_2d"),
    Fault("vertical coordinate first", LOCAL, "(across[:, None], down[:, None, :, None])", "(down[:, None, :, None], across[:, None])", "local_attention_2d"),
    Fault("heads interleaved with features", ACMIX, "pieces = maps.reshape(batch, 3 * heads, width, math.prod(size))",
          "pieces = maps.reshape(batch, width, 3 * heads, math.prod(size)).swapaxes(1, 2)", "acmix"),
    Fault("shift the other way", ACMIX, "own = (taps[:, None] == taps)", "own = (taps[:, None] == taps[::-1])", "acmix"),
    Fault("maps of a group apart", ACMIX, "mixed.swapaxes(1, 2).reshape", "mixed.reshape", "acmix"),
    Fault("a projection's gradient from the attention alone", ACMIX, "back(d_attention[name] + d_map)", "back(d_attention[name] + 0 * d_map)", "acmix"),
    Fault("overlap of windows kept once", "convolution/im2col.py", "x[seen] += columns[:, :, :, i]", "x[seen] = columns[:, :, :, i]", "unfold2d"),
    Fault("taps moved to the right first", DEFORMED, "(batch, offset_groups, taps, 2, *out), 3, 2)", "(batch, offset_groups, taps, 2, *out), 3, 2)[:, :, ::-1]", "deform_conv2d modulated_deform_conv2d"),
    Fault("offsets of all taps down, then all to the right", DEFORMED, "offset.reshape(batch, offset_groups, taps, 2, *out), 3, 2)", "offset.reshape(batch, offset_groups, 2, taps, *out).swapaxes(2, 3), 3, 2)",
          "deform_conv2d modulated_deform_conv2d"),
    Fault("taps not moved by the padding", DEFORMED, "s * np.arange(n) - before +", "s * np.arange(n) +", "deform_conv2d"),
    Fault("taps column by column", DEFORMED, "both.reshape(2, math", "both.swapaxes(1, 2).reshape(2, math", "deform_conv2d"),
    Fault("channels of offset groups in turns: taps of others", DEFORMED, "maps = x.reshape(batch, offset_groups, channels // offset_groups, *x.shape[2:])",
          "maps = x.reshape(batch, channels // offset_groups, offset_groups, *x.shape[2:]).swapaxes(1, 2)", "deform_conv2d"),
    Fault("a tap outside reads the first pixel", SAMPLING, "seen = np.where(inside, read, 0)", "seen = read", "sample_bilinear deform_conv2d"),
    Fault("a tap outside gives to the first pixel", SAMPLING, "np.where(inside, _times(weights, d_y), 0)", "_times(weights, d_y)", "sample_bilinear"),
    Fault("slopes of a tap from the nearest row alone", SAMPLING, "_times(rows.weights, d_weights[:, 1] - d_weights[:, 0])", "d_weights[:, 1] - d_weights[:, 0]", "sample_bilinear"),
    Fault("weights of a sum swapped in the pullback", "primitives/arithmetic.py", '"alpha": unbroadcast(a * dy', '"alpha": unbroadcast(b * dy', "weighted_sum"),
    Fault("smoothing not spread", "primitives/loss.py", "(label_smoothing / classes)", "label_smoothing", "cross_entropy"),
    Fault("tanh left out of the pullback", SCORE, "activation_pullback(d_score[\"x\"])[\"x\"]", "d_score[\"x\"]", "additive_attention concat_attention"),
    Fault("gradients of query and key swapped", SCORE, 'np.concatenate([d["w_query"], d["w_key"]], axis=1)', 'np.concatenate([d["w_key"], d["w_query"]], axis=1)',
          "concat_attention perceptron_attention"),
    Fault("a gradient through the weights dropped", SCORE, "(d_weights + d_read)", "(0 * d_weights + d_read)", "region_attention"),
    Fault("unscaled inner products scaled", "attention/score/dot.py", "scale=1.0", "scale=None", "dot_attention general_attention"),
    Fault("regions not read as values", "attention/score/region.py", 'd["key"] + d["value"]', 'd["key"]', "region_attention"),
    Fault("no gradient of the log-probability", HARD, "np.where(taken, d_log_probability[..., None], 0) -", "np.where(taken, 0 * d_log_probability[..., None], 0) -", "hard_attention"),
    Fault("entropy of another sign", HARD, "-np.where(allowed, weights * log_weights, 0)", "np.where(allowed, weights * log_weights, 0)", "hard_attention"),
    Fault("values learn as if averaged", "attention/stochastic/straight_through.py", '"value": masked_matmul(', '"other": masked_matmul(', "straight_through_attention"),
    Fault("noise not divided by the temperature", "attention/stochastic/gumbel.py", "value, noise / temperature", "value, noise", "gumbel_softmax_attention"),
    Fault("the gate's state dropped", "attention/score/region.py", '+ d_gate["state"]', '+ 0 * d_gate["state"]', "region_attention"),
    Fault("window not divided in the pullback", "primitives/windows.py", "wide * np.moveaxis(dy, axis, 0)[:, None]", "np.moveaxis(dy, axis, 0)[:, None] + 0 * wide", "avg_pool1d avg_pool2d"),
    Fault("tokens as keys not in d_x", "blocks/sublayers.py", 'd["query"] + d["key"] + d["value"]', 'd["query"] + d["value"]', "transformer_encoder_layer"),
    Fault("residual not in d_x", "blocks/sublayers.py", 'd_add["a"] + d_before["x"]', 'd_before["x"]', "transformer_encoder_layer"),
    Fault("dropout of a sublayer left out of the pullback", "blocks/sublayers.py", 'dropout_pullback(d_add["b"])["x"]', 'd_add["b"]', "transformer_encoder_layer"),
    Fault("gradients of the layers in backward order", "blocks/stacks.py", "d_layers.insert(0, d_layer", "d_layers.append(d_layer", "transformer_encoder"),
    Fault("memory's gradient of one layer alone", "blocks/stacks.py", "add(*d_memories)", "add(*d_memories[:1])", "transformer_decoder"),
    Fault("values of the memory doubled", "blocks/sublayers.py", "vjp(x, memory, memory", "vjp(x, memory, 2 * memory", "transformer_decoder_layer"),
    Fault("norms of a layer swapped", "blocks/transformer_encoder_layer.py", 'd_attention["norm"], d_network["norm"])', 'd_network["norm"], d_attention["norm"])', "transformer_encoder_layer"),
    Fault("question not in the refined one", "attention/score/stacked.py", 'add.vjp(question, attended.output)', 'add.vjp(0 * question, attended.output)', "question_attention stacked_attention"),
    Fault("every hop asks the first question", "attention/score/stacked.py", "question_attention.vjp(regions, asked, *hop", "question_attention.vjp(regions, question, *hop", "stacked_attention"),
    Fault("regions of the first hop alone", "attention/score/stacked.py", 'd_regions + d["regions"]', 'd["regions"]', "stacked_attention"),
    Fault("heads by a reshape alone", "attention/dot_product/heads.py", "return multi_head.split_heads(x, num_heads), lambda",
          "return x.reshape(*x.shape[:-2], num_heads, x.shape[-2], x.shape[-1] // num_heads), lambda", "split_heads multi_head_attention_without_projections"),
    Fault("merged heads' pullback by a reshape alone", "attention/dot_product/heads.py", "multi_head.split_heads(dy, x.shape[-3])", "dy.reshape(x.shape)",
          "merge_heads multi_head_attention_without_projections"),
    Fault("class token summed over frames", "attention/video/divided.py", "token, mean_pullback = mean_over.vjp(made.class_token[..., 0, :], axes=-2)",
          "_, mean_pullback = mean_over.vjp(made.class_token[..., 0, :], axes=-2); token = made.class_token.sum(axis=(-3, -2))", "divided_space_time_attention_with_class_token"),
    Fault("class token always a key over time", "attention/video/divided.py", "class_token if class_in_time else None", "class_token", "divided_space_time_attention_with_class_token"),
    Fault("space before the sum over time", "attention/video/divided.py", "over_sequences(timed.output.swapaxes(-3, -2), class_token", "over_sequences(x, class_token", "divided_space_time_attention"),
    Fault("gradients of time and space swapped", "attention/video/divided.py", 'd_time["weights"], d_space["weights"], d_time["norm"]', 'd_space["weights"], d_time["weights"], d_time["norm"]',
          "divided_space_time_attention"),
    Fault("frames of all patches as one axis", "attention/video/divided.py", "over_sequences(x.swapaxes(-3, -2), in_time", "over_sequences(x.reshape(*x.shape[:-3], *x.shape[-2:-4:-1], x.shape[-1]), in_time",
          "divided_space_time_attention"),
    Fault("class token's copies not summed", "attention/video/sequences.py", 'd["x"][..., :first, :].sum(axis=(-3, -2))', 'd["x"][..., 0, :first, :].sum(axis=-2)',
          "divided_space_time_attention_with_class_token"),
    Fault("frames missing over space alone", "attention/video/spatial_temporal.py", "*temporal, of_video, mask=there)", "*temporal, of_video)", "spatial_temporal_attention"),
    Fault("state's gradient over time alone", "attention/video/spatial_temporal.py", 'd_states += [d_places["state"].sum(axis=-2)]', 'd_states += [0 * d_places["state"].sum(axis=-2)]', "spatial_temporal_attention"),
    Fault("missing frames averaged in", "attention/video/frame_cnn.py", "w_frames, w_score, None, b_hidden, mask=mask)", "w_frames, w_score, None, b_hidden)", "frame_cnn_temporal_attention"),
    Fault("frames folded before videos", "attention/video/frame_cnn.py", "features = vectors.reshape(batch, frames, vectors.shape[-1])",
          "features = vectors.reshape(frames, batch, vectors.shape[-1]).swapaxes(0, 1)", "frame_cnn_temporal_attention"),
    Fault("frequencies of odd features", "positional/sinusoidal.py", "np.arange(0, model_dim, 2)", "np.arange(1, model_dim + 1, 2)", "sinusoidal_encoding"),
    Fault("gradient of the rows upside down", "positional/maps.py", 'return d_tall.sum(axis=2).swapaxes(0, 1), d_wide', 'return d_tall.sum(axis=2).swapaxes(0, 1)[::-1], d_wide', "add_learned_2d"),
    Fault("sinks of the first packed sequence only", "attention/cached/varlen.py", 'sum((d["sinks"] for d in parts), np.zeros_like(sinks))', 'parts[0]["sinks"]', "varlen_attention"),
    Fault("queries of a cache at its first key", "attention/cached/decode.py", "lengths[..., None, None, None] - query_len + np", "0 * lengths[..., None, None, None] + np", "decode_attention"),
    Fault("codes without their scale in the pullback", "attention/cached/decode.py", 'return {"codes": d["a"],', 'return {"codes": d_numbers,', "decode_attention"),
    Fault("heads and pages in the wrong order", "attention/cached/paged.py", "in_order = picked.swapaxes(-4, -3)", "in_order = picked", "paged_attention"),
    Fault("what was overwritten keeps its gradient", "attention/cached/append.py", "d_cache[sequence][:, rows] = 0", "d_cache[sequence][:, rows] *= 1", "append_to_cache"),
    Fault("erases before the decay", RECURRENT, "(v - (k * decayed)", "(v - (k * states[t])", "gated_delta_rule"),
    Fault("what is erased not in the state's gradient", RECURRENT, "d_decayed = d_after - k * d_v[..., None, :]", "d_decayed = d_after", "delta_rule"),
    Fault("rate's gradient without what is held", RECURRENT, "(value[..., t, :] - (k * decayed).sum(axis=-2))).sum(axis=-1))", "value[..., t, :]).sum(axis=-1))", "delta_rule"),
    Fault("no decay back through time", RECURRENT, "d_after = decay[..., t, :, None] * d_decayed", "d_after = d_decayed", "gated_linear_attention"),
    Fault("query's gradient without the scale", RECURRENT, "factor * flat(d_queries)", "flat(d_queries)", "linear_attention gated_linear_attention"),
    Fault("a chunk reads one position ahead", RECURRENT, "np.tri(length, dtype=bool)", "np.tri(length, k=1, dtype=bool)", "chunked_linear_attention"),
    Fault("a position's own decay left out of a chunk", RECURRENT, "decays[..., None, 1:, 0, :])", "decays[..., None, :-1, 0, :])", "chunked_gated_linear_attention"),
    Fault("writes not decayed to the end of a chunk", RECURRENT, "kept + key_end.swapaxes", "kept + key.swapaxes", "chunked_gated_linear_attention"),
    Fault("the state not erased in a chunk", RECURRENT, "return U - W @ state, pullback", "return U, pullback", "chunked_delta_rule"),
    Fault("a triangular matrix of which the gradient is not solved for", RECURRENT, 'd_w["lower"] + d_u["lower"]', 'd_u["lower"]', "chunked_delta_rule"),
    Fault("normaliser has no gradient", "attention/linear/linear.py", "d_total = -(d_sum * output)", "d_total = -(0 * d_sum * output)", "linear_attention"),
    Fault("features of the queries as keys", "attention/linear/linear.py", "run(features, key_features, values", "run(features, key, values", "linear_attention"),
    Fault("the diagonal has a gradient", "primitives/triangular_solve.py", "np.tri(lower.shape[-1], k=-1, dtype=bool)", "np.tri(lower.shape[-1], dtype=bool)", "triangular_solve"),
    Fault("a running sum's gradient runs forward", "primitives/cumsum.py", "np.flip(np.cumsum(np.flip(dy, axis), axis=axis), axis)", "np.cumsum(dy, axis=axis)", "cumsum"),
    Fault("slope of elu above 1", "primitives/activation.py", "np.minimum(y, 1) * dy", "y * dy", "elu_plus_one"),
)  # fmt: skip


class Group(NamedTuple):
    """Faults of one package: where their files are, and the arguments of pytest, a run each, for what a fault names."""

    faults: tuple[Any, ...]
    folder: str
    runs: Callable[[str], list[list[str]]]


class Outcome(NamedTuple):
    """Of a fault: the tests that fail, or why they could not be run."""

    caught: tuple[str, ...]
    error: str = ""


def _of_mechanisms(named: str) -> list[list[str]]:
    """Gradients and definitions of these mechanisms."""
    names = " or ".join(f"[{m}" for m in named.split())
    return [[*TESTS, "-k", f"(gradients_are or agrees_with) and ({names})"]]


def _of_ids(named: str) -> list[list[str]]:
    return [[test] for test in named.split("|")]


REFERENCE = Group(FAULTS, "refattn", _of_mechanisms)
TWINS = Group(twins.FAULTS, "refattn_numba/cpu", _of_ids)
CONVOLUTIONS = Group(convolutions.FAULTS, "refattn_numba/cpu", _of_ids)
GROUPS = {"": REFERENCE, "--twins": TWINS, "--convolutions": CONVOLUTIONS}


def plant(copy: Path, fault: Any, group: Group = REFERENCE) -> None:
    """Put the fault into a copy; ValueError where its text does not stand there exactly once."""
    path = copy / group.folder / fault.file
    right = path.read_text("utf-8")
    if (found := right.count(fault.old)) != 1:
        raise ValueError(f"{fault.what}: {fault.old!r} stands {found} times in {fault.file}")
    path.write_text(right.replace(fault.old, fault.new), "utf-8")


PROGRAM = """
import json, sys, pytest
for run in json.loads(sys.argv[1]):
    print("ended with", int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "--no-header", "--tb=no", *run])), flush=True)
"""


def tested(copy: Path, runs: Sequence[Sequence[str]]) -> list[tuple[int, str]]:
    """Of each run of pytest the exit status, and the first test that fails; one process, which compiles a kernel once."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OPENBLAS_NUM_THREADS": "1", "NUMBA_CACHE_DIR": ""}
    done = subprocess.run([sys.executable, "-c", PROGRAM, json.dumps(runs)], cwd=copy, env=environment, capture_output=True, text=True)
    *parts, rest = re.split(r"^ended with (\d+)$", done.stdout, flags=re.MULTILINE)
    found = []
    for text, status in zip(parts[::2], parts[1::2], strict=True):
        first = re.search(r"^(?:FAILED|ERROR) [\w/.]*?(\w+\.py::\S.*?)(?: - .*)?$", text, re.MULTILINE)
        found.append((int(status), first[1] if first else text[-400:]))
    return found if len(found) == len(runs) else [*found, (done.returncode or 4, (rest + done.stderr)[-400:])]


@contextmanager
def copied(root: Path = PACKAGE.parent) -> Iterator[Path]:
    """The packages and their tests in another folder, with what has been compiled: of a kernel that a fault changes, that is not read."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for part in (PACKAGE.name, "refattn_numba", "tests"):
            source = ROOT / part if part == "tests" and root == PACKAGE.parent else root / part
            shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("*.pyc"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        yield folder


def outcome(right: Path, fault: Any, group: Group) -> Outcome:
    """What catches a fault that is planted in a copy of `right`."""
    try:
        with copied(right) as copy:
            plant(copy, fault, group)
            found = tested(copy, group.runs(fault[-1]))
    except ValueError as error:
        return Outcome((), str(error))
    # a signal is caught too: what is read or written outside an array may end the process
    failed = tuple(by if status == 1 else f"signal {-status}" for status, by in found if status == 1 or status < 0)
    return Outcome(failed, next((f"{status}: {by.strip()}" for status, by in found if status > 1), ""))


def main(words: str = "", group: Group = REFERENCE) -> int:
    """Print what caught each fault; 1 where one was not caught, 2 where one could not be planted."""
    chosen = [f for f in group.faults if words in f"{f.file}: {f.what}"]
    if not chosen:
        print(f"no fault has {words!r} in its name", file=sys.stderr)
        return 2
    began = time.perf_counter()
    with copied() as right:
        runs = sorted({tuple(run) for f in chosen for run in group.runs(f[-1])})
        if wrong := [why for status, why in tested(right, runs) if status]:
            print(f"without a fault the tests fail: {wrong[0]}", file=sys.stderr)
            return 2
        with ThreadPool(PROCESSES) as pool:
            found = pool.imap(lambda fault: outcome(right, fault, group), chosen)
            outcomes = list(progress(found, len(chosen), "planting faults"))
    table = Table("fault", "file", "caught by")
    for fault, (by, error) in zip(chosen, outcomes, strict=True):
        result = f"could not run: {error}" if error else ", ".join(by) or "NOT CAUGHT"
        table.row(fault.what, fault.file, result.replace("\n", " "), style="bold red" if error or not by else "")
    table.print()
    caught = sum(bool(o.caught) and not o.error for o in outcomes)
    print(f"{caught} of {len(chosen)} faults caught in {time.perf_counter() - began:.0f} s")
    if group is CONVOLUTIONS and len(chosen) == len(group.faults):
        PAGE.write_text(page(dict(zip(chosen, outcomes, strict=True))), "utf-8")
    return 2 if any(o.error for o in outcomes) else int(caught < len(chosen))


INTRODUCTION = """# Which faults of our own convolutions are found

Each fault is one place in `refattn_numba` that is changed in a copy: a tap, a border, a group, a sum that is not cleared. The *check* is
`refattn.testing.check`, quick and in float32, of the algorithm that has the fault; *tests* are those of `tests/twins` that the fault
names. Transforms are held to what `conv2d_fft` may err. Mechanisms have no activation, which the check therefore does not see. The faults
were chosen by the authors of the tests, who know them: this shows that tests can fail, not that nothing else is wrong.

`python -m tests.faults --convolutions` writes this page.

| algorithm | faults | of which were run | found by the check | found by tests | found by neither |
| --- | ---: | ---: | ---: | ---: | ---: |
"""


def page(outcomes: dict[Any, Outcome]) -> str:
    """The page of convolutions, of the faults that were planted."""
    lines, missed = [], []
    for algorithm, faults in convolutions.BY_ALGORITHM.items():
        by = {f: outcomes[f].caught for f in faults if f in outcomes}
        checked = {f for f, tests in by.items() if any(test.startswith(ORACLE) for test in tests)}
        tested = sum(any(not test.startswith(ORACLE) for test in tests) for tests in by.values())
        lines.append(f"| {algorithm} | {len(faults)} | {len(by)} | {len(checked)} | {tested} | {sum(not tests for tests in by.values())} |")
        missed += [f"- {algorithm}: {f.what} (`{f.file}`)." for f in by if f not in checked]
    return INTRODUCTION + "\n".join([*lines, "", "## What the check does not see", "", *missed]) + "\n"


if __name__ == "__main__":
    flags = [word for word in sys.argv[1:] if word in GROUPS]
    asked = " ".join(word for word in sys.argv[1:] if word not in GROUPS)
    sys.exit(main(asked, GROUPS[flags[0] if flags else ""]))
