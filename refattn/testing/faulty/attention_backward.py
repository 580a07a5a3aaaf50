"""Faults of an attention kernel that its gradients show."""

from __future__ import annotations

from typing import Any

import numpy as np

from refattn._core import Array, Booleans
from refattn.testing.faulty.attention import Attention, Saved
from refattn.testing.faulty.kernel import Arguments, Faults

BACKWARD = fault = Faults("attention", "backward")
HONEST = Attention


@fault("delta")
def delta_missing(self: Attention, output: Array, d_output: Array) -> Array:
    """The inner product of output and cotangent is not subtracted."""
    return np.zeros_like(output[..., :1])


@fault("delta", needs="tiles", mirrors="flash-attention#2481")
def delta_stale(self: Attention, output: Array, d_output: Array) -> Array:
    """Behind the first tile of queries, delta is still that of the tile before."""
    delta = HONEST.delta(self, output, d_output)
    return np.concatenate([delta[..., : self.tile, :], delta], axis=-2)[..., : delta.shape[-2], :]


@fault("delta", needs="value_dim")
def delta_of_half_a_row(self: Attention, output: Array, d_output: Array) -> Array:
    """The inner product stops at the last multiple of 8 of value_dim."""
    whole = output.shape[-1] // 8 * 8
    return HONEST.delta(self, output[..., :whole], d_output[..., :whole])


@fault("from_lse", mechanisms="scaled_dot_product_attention_with_lse")
def cotangent_of_lse_ignored(self: Attention, d_output: Array, *d_lse: Array) -> Any:
    """What depends on the log-sum-exp has no gradient."""
    return 0


@fault("from_lse", mechanisms="scaled_dot_product_attention_with_lse")
def cotangent_of_lse_negated(self: Attention, d_output: Array, *d_lse: Array) -> Any:
    """The cotangent of the log-sum-exp is taken with the wrong sign."""
    return -HONEST.from_lse(self, d_output, *d_lse)


@fault("lse_again")
def weights_without_the_maximum(self: Attention, a: Arguments, lse: Array) -> Array:
    """Weights are computed again as the exponential of the scores, divided by nothing."""
    return np.where(np.isneginf(lse), lse, 0)


@fault("lse_again", needs="sinks")
def weights_without_the_sink(self: Attention, a: Arguments, lse: Array) -> Array:
    """Weights are divided by a sum that lacks the sink."""
    return lse if a.sinks is None else (lse + np.log1p(-np.minimum(np.exp(self.sink(a) - lse), 1 - 2.0**-20))).astype(self.wide)


@fault("allowed_again", needs="causal")
def causal_one_key_too_many_in_backward(self: Attention, a: Arguments, at: slice) -> Booleans:
    """In the backward pass a query sees the key just after its own position."""
    if not a.causal:
        return HONEST.allowed(self, a, at)
    rest = HONEST.allowed(self, Arguments(**{**vars(a), "causal": False}), at)
    return rest & (HONEST.ahead(self, a, at) <= 1)


@fault("allowed_again", needs="causal lengths")
def causal_from_the_upper_left_in_backward(self: Attention, a: Arguments, at: slice) -> Booleans:
    """In the backward pass the first query sits at the first key."""
    return HONEST.allowed(self, Arguments(**{**vars(a), "align": "upper_left"}), at)


@fault("allowed_again", needs="window")
def window_ignored_in_backward(self: Attention, a: Arguments, at: slice) -> Booleans:
    """The backward pass knows no window."""
    return HONEST.allowed(self, Arguments(**{**vars(a), "window": None}), at)


@fault("allowed_again", needs="mask")
def mask_ignored_in_backward(self: Attention, a: Arguments, at: slice) -> Booleans:
    """The backward pass does not read the mask."""
    return HONEST.allowed(self, Arguments(**{**vars(a), "mask": None}), at)


@fault("d_written", needs="row", mirrors="brevitas#1591")
def row_without_keys_has_nan_gradients(
    self: Attention, saved: Saved, d_query: Array, d_keys: Array, d_values: Array
) -> tuple[Array, Array, Array]:
    """The weights of a row that may attend nowhere are the exponential of minus infinity less minus infinity."""
    return np.where(np.isneginf(saved.lse), np.nan, d_query), d_keys, d_values


@fault("d_query_tile", needs="NaN", mirrors="pytorch#101967")
def nan_of_a_masked_key_reaches_gradients(
    self: Attention, a: Arguments, d_scaled: Array, keys: Array, allowed: Booleans, at: slice
) -> Array:
    """The gradient of a masked score, 0, is multiplied by NaN in the key."""
    return (d_scaled * self.d_factor(a, at)) @ keys[..., at, :]


@fault("d_softmax")
def gradient_of_scores_in_low_precision(self: Attention, weights: Array, d_weights: Array, delta: Array, allowed: Booleans) -> Array:
    """The gradient of the weights is rounded to the format before delta is subtracted, and so is delta."""
    return HONEST.d_softmax(self, weights, self.rounded(self.rounded(d_weights) - self.rounded(delta)), np.zeros_like(delta), allowed)


@fault("d_dropped", needs="keep")
def dropout_ignored_in_backward(self: Attention, a: Arguments, d_weights: Array, at: slice) -> Array:
    """The gradient of a dropped weight passes."""
    return d_weights


@fault("d_kept", needs="keep")
def values_read_weights_before_dropout(self: Attention, a: Arguments, weights: Array, at: slice) -> Array:
    """The gradient of the values is that without dropout."""
    return weights


@fault("d_capped", needs="softcap")
def softcap_derivative_missing(self: Attention, a: Arguments, d_scores: Array, scaled: Array) -> Array:
    """The gradient passes the softcap unchanged."""
    return d_scores


@fault("d_capped", needs="softcap")
def softcap_derivative_of_the_bounded_score(self: Attention, a: Arguments, d_scores: Array, scaled: Array) -> Array:
    """The derivative of the softcap is taken where the score was bounded already."""
    return HONEST.d_capped(self, a, d_scores, self.capped(a, scaled))


@fault("d_factor")
def gradients_not_scaled(self: Attention, a: Arguments, at: slice) -> Any:
    """The gradients of queries and keys lack the scale."""
    return self.wide(1)


@fault("d_factor")
def gradients_2_percent_high(self: Attention, a: Arguments, at: slice) -> Any:
    """The gradients of queries and keys are 2 % too large."""
    return self.wide(1.02) * HONEST.factor(self, a, at)


@fault("d_key_tile")
def key_gradient_not_scaled(self: Attention, a: Arguments, d_scaled: Array, allowed: Booleans, at: slice) -> Array:
    """The gradient of the keys lacks the scale."""
    return HONEST.d_key_tile(self, Arguments(**{**vars(a), "scale": 1.0}), d_scaled, allowed, at)


@fault("d_query_tile")
def query_gradient_scaled_twice(self: Attention, a: Arguments, d_scaled: Array, keys: Array, allowed: Booleans, at: slice) -> Array:
    """The gradient of the queries is scaled when it is added up and when it is written."""
    once = HONEST.d_query_tile(self, a, d_scaled, keys, allowed, at)
    return once * self.wide(a.query.shape[-1] ** -0.5)


@fault("d_query_tile", needs="tail")
def query_gradient_misses_the_last_tile(self: Attention, a: Arguments, d_scaled: Array, keys: Array, allowed: Booleans, at: slice) -> Array:
    """Keys behind the last whole tile give nothing to the gradient of the queries."""
    return HONEST.d_query_tile(self, a, d_scaled, keys, allowed, at) * self.wide(at.stop - at.start == self.tile)


@fault("d_accumulated", needs="tiles")
def query_gradient_in_low_precision(self: Attention, x: Array) -> Array:
    """The gradient of the queries is kept in the format from tile to tile."""
    return self.rounded(x)


@fault("d_written", needs="tiles")
def key_gradient_of_one_tile_stale(
    self: Attention, saved: Saved, d_query: Array, d_keys: Array, d_values: Array
) -> tuple[Array, Array, Array]:
    """The second tile of the key's gradient holds that of the first, of which the accumulator was not cleared."""
    second = d_keys[..., self.tile : 2 * self.tile, :]
    second += d_keys[..., : second.shape[-2], :]
    return d_query, d_keys, d_values


@fault("d_written")
def last_row_of_the_key_gradient_stale(
    self: Attention, saved: Saved, d_query: Array, d_keys: Array, d_values: Array
) -> tuple[Array, Array, Array]:
    """The last key's gradient is that of the key before it."""
    d_keys[..., -1:, :] = d_keys[..., -2:-1, :] if d_keys.shape[-2] > 1 else 2 * d_keys[..., -1:, :]
    return d_query, d_keys, d_values


@fault("d_written")
def one_row_of_the_query_gradient_added_twice(
    self: Attention, saved: Saved, d_query: Array, d_keys: Array, d_values: Array
) -> tuple[Array, Array, Array]:
    """As by a race, one row of the query's gradient is added twice."""
    d_query[..., d_query.shape[-2] // 2 : d_query.shape[-2] // 2 + 1, :] *= 2
    return d_query, d_keys, d_values


@fault("d_written")
def value_gradient_2_percent_high(
    self: Attention, saved: Saved, d_query: Array, d_keys: Array, d_values: Array
) -> tuple[Array, Array, Array]:
    """The gradient of the values is 2 % too large."""
    return d_query, d_keys, self.wide(1.02) * d_values


@fault("gathered", needs="groups")
def grouped_heads_not_summed(self: Attention, d: Array, like: Array) -> Array:
    """Of the query heads of a key head, the last one's gradient overwrites the others'."""
    return d.reshape(*like.shape[:-2], -1, *like.shape[-2:])[..., -1, :, :] if d.size else HONEST.gathered(self, d, like)


@fault("gathered", needs="groups")
def grouped_heads_averaged(self: Attention, d: Array, like: Array) -> Array:
    """The gradients of the query heads of a key head are averaged."""
    summed = HONEST.gathered(self, d, like)
    return summed * self.wide(like.shape[-3] / d.shape[-3]) if d.size else summed


@fault("d_bias", needs="bias")
def bias_gradient_not_summed(self: Attention, d_scores: Array, bias: Array) -> Array:
    """Along an axis over which the bias was broadcast, its gradient is that of the first place."""
    d = d_scores[(0,) * (d_scores.ndim - bias.ndim)] if d_scores.size else np.zeros(bias.shape, self.wide)
    return d[tuple(slice(n) for n in bias.shape)] if d.size else np.zeros(bias.shape, self.wide)


@fault("to_bias", needs="bias")
def bias_gradient_scaled(self: Attention, a: Arguments, d_scores: Array, d_scaled: Array) -> Array:
    """The gradient of the bias is multiplied by the scale, as that of the products is."""
    return d_scores * self.wide(a.query.shape[-1] ** -0.5)


@fault("to_bias", needs="bias softcap")
def bias_gradient_through_the_softcap(self: Attention, a: Arguments, d_scores: Array, d_scaled: Array) -> Array:
    """The gradient of the bias is taken behind the softcap, which it never went through."""
    return d_scaled


@fault("d_sinks", needs="sinks")
def sink_gradient_missing(self: Attention, sink: Array, lse: Array, delta: Array) -> Array:
    """The gradient of the sinks is 0."""
    return np.zeros_like(HONEST.d_sinks(self, sink, lse, delta))


@fault("d_sinks", needs="sinks")
def sink_gradient_negated(self: Attention, sink: Array, lse: Array, delta: Array) -> Array:
    """The gradient of the sinks has the wrong sign."""
    return -HONEST.d_sinks(self, sink, lse, delta)
