"""Faults of an attention kernel that its output or its log-sum-exp shows."""

from __future__ import annotations

from typing import Any

import numpy as np

from refattn._core import Array, Booleans
from refattn.testing.faulty.attention import NOTHING, Attention
from refattn.testing.faulty.kernel import Arguments, Faults

FORWARD = fault = Faults("attention", "forward")
WITH_LSE = "scaled_dot_product_attention_with_lse"
HONEST = Attention


@fault("factor")
def scale_2_percent_high(self: Attention, a: Arguments, at: slice) -> Any:
    """Scores are scaled by 2 % too much."""
    return self.wide(1.02) * HONEST.factor(self, a, at)


@fault("factor")
def scale_10_percent_high(self: Attention, a: Arguments, at: slice) -> Any:
    """Scores are scaled by 10 % too much."""
    return self.wide(1.1) * HONEST.factor(self, a, at)


@fault("factor")
def scale_forgotten(self: Attention, a: Arguments, at: slice) -> Any:
    """Scores are not scaled."""
    return self.wide(1)


@fault("factor", needs="scale")
def scale_of_the_caller_ignored(self: Attention, a: Arguments, at: slice) -> Any:
    """The scale is 1 / sqrt(head_dim) whatever was asked for."""
    return self.wide(a.query.shape[-1] ** -0.5)


@fault("factor", needs="head_dim")
def scale_of_the_padded_head(self: Attention, a: Arguments, at: slice) -> Any:
    """The default scale is that of the head_dim rounded up to a multiple of 16, as the tile is padded."""
    padded = -(-a.query.shape[-1] // 16) * 16
    return self.wide(padded**-0.5) if a.scale is None else HONEST.factor(self, a, at)


@fault("products", needs="head_dim")
def tail_of_the_head_left_out(self: Attention, query: Array, keys: Array) -> Array:
    """Products of queries and keys stop at the last multiple of 8 of head_dim."""
    whole = query.shape[-1] // 8 * 8
    return query[..., :whole] @ keys[..., :whole].swapaxes(-1, -2)


@fault("products")
def scores_in_low_precision(self: Attention, query: Array, keys: Array) -> Array:
    """Products of queries and keys are stored in the format, not in the accumulator's precision."""
    return self.rounded(HONEST.products(self, query, keys))


@fault("output_so_far", needs="tiles")
def output_not_rescaled(self: Attention, output: Array, rescale: Array) -> Array:
    """The output of earlier tiles keeps its size when the maximum rises."""
    return output


@fault("sum_so_far", needs="tiles")
def sum_not_rescaled(self: Attention, total: Array, rescale: Array) -> Array:
    """The sum of earlier tiles keeps its size when the maximum rises."""
    return total


@fault("start")
def maximum_starts_at_0(self: Attention) -> float:
    """The running maximum starts at 0, so that rows of low scores vanish."""
    return 0.0


@fault("start", mirrors="flashinfer#4267")
def maximum_starts_at_minus_5e4(self: Attention) -> float:
    """The running maximum starts at -5e4 in place of minus infinity."""
    return -5e4


@fault("sum_so_far", needs="tiles")
def sum_in_low_precision(self: Attention, total: Array, rescale: Array) -> Array:
    """The sum of the weights is kept in the format from tile to tile."""
    return self.rounded(HONEST.sum_so_far(self, total, rescale))


@fault("accumulated", needs="tiles", mirrors="mlir-air#1600")
def accumulator_in_low_precision(self: Attention, x: Array) -> Array:
    """The output is kept in the format from tile to tile."""
    return self.rounded(x)


@fault("exponential")
def exponential_in_base_2(self: Attention, x: Array) -> Array:
    """The weights are powers of 2, without the factor log2(e) in the scale."""
    return np.exp2(x)


@fault("exponential")
def small_weights_flushed(self: Attention, x: Array) -> Array:
    """Weights below 1e-3 of the largest are taken for 0."""
    return np.where(x < np.log(1e-3), 0, np.exp(x)).astype(self.wide)


@fault("tiles_of_keys", needs="tail")
def last_tile_dropped(self: Attention, a: Arguments) -> list[slice]:
    """Keys behind the last whole tile are left out."""
    return [at for at in HONEST.tiles_of_keys(self, a) if at.stop - at.start == self.tile]


@fault("tiles_of_keys", needs="tiles")
def first_tile_read_twice(self: Attention, a: Arguments) -> list[slice]:
    """The loop over tiles starts before the tile that the prologue has done."""
    tiles = HONEST.tiles_of_keys(self, a)
    return tiles[:1] + tiles if len(tiles) > 1 else tiles


@fault("near", needs="tail")
def last_key_left_out(self: Attention, a: Arguments, at: slice) -> Booleans:
    """The bound of the last tile is off by one."""
    return HONEST.near(self, a, at) & (np.arange(at.start, at.stop) < max(a.key.shape[-2] - 1, 1))


@fault("reach", needs="causal")
def causal_one_key_too_many(self: Attention) -> int:
    """A query sees the key just after its own position."""
    return 1


@fault("reach", needs="causal")
def causal_own_key_hidden(self: Attention) -> int:
    """A query does not see its own position."""
    return -1


@fault("align", needs="causal lengths", mirrors="flash-attention#282")
def causal_from_the_upper_left(self: Attention, a: Arguments) -> Any:
    """The first query sits at the first key, where the last should sit at the last."""
    return "upper_left"


@fault("align", needs="causal lengths", mirrors="onnx#8068")
def causal_from_the_lower_right(self: Attention, a: Arguments) -> Any:
    """The last query sits at the last key, where the first should sit at the first."""
    return "lower_right"


@fault("near", needs="causal tail")
def tile_of_the_diagonal_skipped(self: Attention, a: Arguments, at: slice) -> Booleans:
    """How many tiles of keys a tile of queries needs is rounded down, not up."""
    near = HONEST.near(self, a, at)
    if not a.causal or not near.size:
        return near
    last = np.minimum(np.arange(a.query.shape[-2]) // self.tile * self.tile + self.tile, a.query.shape[-2]) - 1
    seen = at.start - HONEST.ahead(self, a, at)[last, :1] + 1
    return near & (np.arange(at.start, at.stop) < seen // self.tile * self.tile)


@fault("window", needs="window", mirrors="transformers#39408")
def window_one_key_too_wide(self: Attention, a: Arguments) -> tuple[int | None, int | None]:
    """The left bound of the window lets one more key in."""
    left, right = a.window
    return None if left is None else left + 1, right


@fault("window", needs="window", mirrors="mlx#3552")
def window_one_key_too_narrow(self: Attention, a: Arguments) -> tuple[int | None, int | None]:
    """The left bound of the window counts the own position."""
    left, right = a.window
    return None if left is None else max(left - 1, 0), right


@fault("window", needs="window")
def window_open_at_the_right(self: Attention, a: Arguments) -> tuple[int | None, int | None]:
    """The right bound of the window is ignored."""
    return a.window[0], None


@fault("allowed", needs="mask")
def mask_ignored(self: Attention, a: Arguments, at: slice) -> Booleans:
    """The boolean mask is never read."""
    return HONEST.allowed(self, Arguments(**{**vars(a), "mask": None}), at)


@fault("allowed", needs="mask")
def mask_of_the_first_head(self: Attention, a: Arguments, at: slice) -> Booleans:
    """All heads read the mask of the first."""
    mask = a.mask if a.mask is None or a.mask.ndim < 3 else a.mask[..., :1, :, :]
    return HONEST.allowed(self, Arguments(**{**vars(a), "mask": mask}), at)


@fault("masked", needs="masked")
def masked_scores_are_minus_10(self: Attention, scores: Array, allowed: Booleans) -> Array:
    """A masked score is -10, not minus infinity."""
    return np.where(allowed, scores, self.wide(-10))


@fault("masked", needs="masked")
def masked_scores_are_lowered_by_1e4(self: Attention, scores: Array, allowed: Booleans) -> Array:
    """The mask is added as -1e4, which a row of lower scores does not notice."""
    return np.where(np.isfinite(scores), scores, 0) + np.where(allowed, 0, self.wide(-1e4))


@fault("masked", needs="NaN", mirrors="pytorch#101967")
def nan_of_a_masked_key_leaks(self: Attention, scores: Array, allowed: Booleans) -> Array:
    """The mask is added as minus infinity, so that NaN in a masked key stays NaN."""
    return scores + np.where(allowed, 0, self.wide(NOTHING))


@fault("weighed", needs="NaN")
def nan_of_a_masked_value_leaks(self: Attention, weights: Array, values: Array, allowed: Booleans) -> Array:
    """A masked value is multiplied by a weight of 0, so that NaN stays NaN."""
    return weights @ values


@fault("finish", needs="row", mirrors="pytorch#103963")
def row_without_keys_is_nan(self: Attention, largest: Array, total: Array, output: Array) -> tuple[Array, Array]:
    """A row that may attend nowhere divides 0 by 0."""
    return output / total, HONEST.finish(self, largest, total, output)[1]


@fault("masked", needs="row", mirrors="mlx#2608")
def row_without_keys_is_a_mean(self: Attention, scores: Array, allowed: Booleans) -> Array:
    """Masked scores are the lowest number of the format, so that a row which may attend nowhere averages all values."""
    return np.where(allowed, scores, self.wide(-self.format.largest))


@fault("spread", needs="groups", mirrors="native-sparse-attention-triton#27")
def key_heads_interleaved(self: Attention, a: Arguments, x: Array) -> Array:
    """Query head h reads key head h % kv_heads."""
    return np.concatenate([x] * self.group(a), axis=-3) if x.size else HONEST.spread(self, a, x)


@fault("spread", needs="groups")
def first_key_head_for_all(self: Attention, a: Arguments, x: Array) -> Array:
    """All query heads read the first key head."""
    return np.repeat(x[..., :1, :, :], a.query.shape[-3], axis=-3)


@fault("capped", needs="softcap")
def softcap_forgotten(self: Attention, a: Arguments, scores: Array) -> Array:
    """Scores are not bounded."""
    return scores


@fault("capped", needs="softcap")
def softcap_by_clipping(self: Attention, a: Arguments, scores: Array) -> Array:
    """Scores are clipped at the cap, not bent."""
    return scores if a.softcap is None else np.clip(scores, self.wide(-a.softcap), self.wide(a.softcap))


@fault("scores", needs="softcap bias", mirrors="onnx#7865")
def softcap_after_the_bias(self: Attention, a: Arguments, scaled: Array, allowed: Booleans, at: slice) -> Array:
    """The bias is added before scores are bounded."""
    return self.masked(self.capped(a, self.biased(a, scaled, at)), allowed)


@fault("scores", needs="softcap masked", mirrors="onnxruntime#28379")
def minus_infinity_through_tanh(self: Attention, a: Arguments, scaled: Array, allowed: Booleans, at: slice) -> Array:
    """Masked before it is bounded, a score of minus infinity becomes minus the cap."""
    return self.capped(a, self.masked(self.biased(a, scaled, at), allowed))


@fault("scores", needs="softcap")
def softcap_before_the_scale(self: Attention, a: Arguments, scaled: Array, allowed: Booleans, at: slice) -> Array:
    """Products are bounded and then scaled."""
    factor = 1 if a.softcap is None else self.factor(a, at)
    return self.masked(self.biased(a, self.capped(a, scaled / factor) * factor, at), allowed)


@fault("biased", needs="bias")
def bias_ignored(self: Attention, a: Arguments, scores: Array, at: slice) -> Array:
    """The bias is never read."""
    return scores


@fault("biased", needs="bias")
def bias_of_the_first_head(self: Attention, a: Arguments, scores: Array, at: slice) -> Array:
    """All heads read the bias of the first: its stride over heads is taken for 0."""
    if a.bias is None or a.bias.ndim < 3:
        return HONEST.biased(self, a, scores, at)
    first = np.broadcast_to(a.bias[..., :1, :, :], a.bias.shape)
    return HONEST.biased(self, Arguments(**{**vars(a), "bias": first}), scores, at)


@fault("biased", needs="bias")
def bias_scaled(self: Attention, a: Arguments, scores: Array, at: slice) -> Array:
    """The bias is multiplied by the scale, as the scores are."""
    return scores if a.bias is None else scores + self.part(a, a.bias, at) * self.factor(a, at)


@fault("with_sinks", needs="sinks", mirrors="kekzl/imp#1303")
def sink_forgotten(self: Attention, a: Arguments, largest: Array, total: Array, output: Array) -> tuple[Array, Array, Array]:
    """The sink takes no weight."""
    return largest, total, output


@fault("with_sinks", needs="sinks")
def sink_not_rescaled(self: Attention, a: Arguments, largest: Array, total: Array, output: Array) -> tuple[Array, Array, Array]:
    """The sink's weight is its exponential, not that of its distance from the maximum."""
    return largest, total + (0 if a.sinks is None else np.exp(self.sink(a))), output


@fault("sink", needs="sinks")
def sink_of_the_next_head(self: Attention, a: Arguments) -> Array:
    """Each head reads the sink of the one after it."""
    return np.roll(a.sinks, -1)[:, None, None]


@fault("sink", needs="sinks")
def sink_scaled(self: Attention, a: Arguments) -> Array:
    """The sink is multiplied by the scale, as the scores are."""
    return HONEST.sink(self, a) * self.wide(a.query.shape[-1] ** -0.5)


@fault("stated", mirrors="rocMLIR#1882", mechanisms=WITH_LSE)
def lse_in_base_2(self: Attention, lse: Array) -> Array:
    """The log-sum-exp is a logarithm in base 2."""
    return lse * self.wide(np.log2(np.e))


@fault("finish", mechanisms=WITH_LSE)
def lse_without_the_maximum(self: Attention, largest: Array, total: Array, output: Array) -> tuple[Array, Array]:
    """The log-sum-exp is the logarithm of the sum that was shifted by the maximum."""
    made, lse = HONEST.finish(self, largest, total, output)
    return made, np.where(np.isfinite(largest), lse - largest, lse)


@fault("stated", needs="row", mechanisms=WITH_LSE)
def lse_of_nothing_is_0(self: Attention, lse: Array) -> Array:
    """The log-sum-exp of a row that may attend nowhere is 0, as if its sum were 1."""
    return np.where(np.isneginf(lse), 0, lse)


@fault("dropped", needs="keep")
def dropout_not_scaled(self: Attention, a: Arguments, weights: Array, at: slice) -> Array:
    """What dropout keeps is not divided by the share that it keeps."""
    return weights if a.keep is None else weights * self.part(a, a.keep, at)


@fault("dropped", needs="keep")
def dropout_inverted(self: Attention, a: Arguments, weights: Array, at: slice) -> Array:
    """What should be dropped is kept."""
    return weights if a.keep is None else weights * ~self.part(a, a.keep, at) / self.wide(1 - a.dropout_rate)


@fault("dropped", needs="keep", mirrors="flash-attention#2439")
def dropout_of_the_first_head(self: Attention, a: Arguments, weights: Array, at: slice) -> Array:
    """All heads drop what the first drops."""
    if a.keep is None:
        return weights
    return weights * self.part(a, a.keep, at)[..., :1, :, :] / self.wide(1 - a.dropout_rate)


@fault("written")
def one_row_5_percent_high(self: Attention, a: Arguments, output: Array) -> Array:
    """One row in the middle of the first head is 5 % too large."""
    output[..., 0, output.shape[-2] // 2 : output.shape[-2] // 2 + 1, :] *= self.wide(1.05)
    return output


@fault("written")
def one_element_off(self: Attention, a: Arguments, output: Array) -> Array:
    """One element of each first head is off by 0.05."""
    output[..., 0, output.shape[-2] // 2 : output.shape[-2] // 2 + 1, 0] += self.wide(0.05)
    return output


@fault("written")
def last_row_stale(self: Attention, a: Arguments, output: Array) -> Array:
    """The last row holds what was computed for the row before."""
    return np.concatenate([output[..., :-1, :], output[..., -2:-1, :]], axis=-2) if output.shape[-2] > 1 else output


@fault("written", needs="value_dim")
def tail_of_the_values_not_written(self: Attention, a: Arguments, output: Array) -> Array:
    """Columns behind the last multiple of 8 of value_dim stay 0."""
    output[..., output.shape[-1] // 8 * 8 :] = 0
    return output


@fault("written", needs="batch", mirrors="TransformerEngine#3216")
def batch_of_the_first(self: Attention, a: Arguments, output: Array) -> Array:
    """The last row of every batch entry is that of the first."""
    if output.ndim > 3:
        output[:, ..., -1:, :] = output[:1, ..., -1:, :]
    return output
