"""An honest attention kernel: online softmax over tiles of keys, and its backward pass from the output and log-sum-exp alone.

Written as a GPU kernel computes it, one method a step, so that a fault is one method replaced. Scores, weights and sums are in
the accumulator's precision; weights, and the gradients of scores, are rounded to the format before a matrix product reads them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refattn import masks
from refattn._core import Array, Booleans, Integers, unbroadcast
from refattn.testing.faulty.kernel import Arguments, Kernel, times

NOTHING = -np.inf


class Saved(NamedTuple):
    """What the backward pass reads of the forward."""

    output: Array
    lse: Array


class Attention(Kernel):
    """`refattn.scaled_dot_product_attention`, with or without its log-sum-exp."""

    family = "attention"
    unsupported = frozenset({"masked_rows"})

    def forward(self, a: Arguments) -> tuple[tuple[Array, ...], Saved]:
        """One tile of keys after another."""
        keys, values = self.spread(a, a.key), self.spread(a, a.value)
        largest = np.full((*a.query.shape[:-1], 1), self.start(), self.wide)
        total = np.zeros_like(largest)
        output = np.zeros((*a.query.shape[:-1], values.shape[-1]), self.wide)
        for at in self.tiles_of_keys(a):
            allowed = self.allowed(a, at)
            scores = self.scores(a, self.scaled(a, keys, at), allowed, at)
            higher = np.maximum(largest, scores.max(axis=-1, keepdims=True, initial=NOTHING))
            shift = np.where(np.isfinite(higher), higher, 0)
            rescale = self.rescale(largest, shift)
            weights = self.exponential(scores - shift)
            total = self.sum_so_far(total, rescale) + self.row_sum(weights)
            read = self.stored(self.dropped(a, weights, at))
            output = self.accumulated(self.output_so_far(output, rescale) + self.weighed(read, values[..., at, :], allowed))
            largest = higher
        output, lse = self.finish(*self.with_sinks(a, largest, total, output))
        saved = Saved(self.rounded(self.written(a, output)), lse)
        return (saved.output, self.stated(lse)[..., 0])[: len(self.mechanism.spec.output_names)], saved

    def spread(self, a: Arguments, x: Array) -> Array:
        """The key or value head that each query head reads."""
        return np.repeat(x, self.group(a), axis=-3)

    def group(self, a: Arguments) -> int:
        """Query heads of a key head."""
        return a.query.shape[-3] // max(a.key.shape[-3], 1)

    def start(self) -> float:
        """The running maximum before the first tile."""
        return NOTHING

    def tiles_of_keys(self, a: Arguments) -> list[slice]:
        """The tiles that are gone through."""
        return self.tiles(a.key.shape[-2])

    def allowed(self, a: Arguments, at: slice) -> Booleans:
        """Where queries may attend to the keys of a tile: positions, mask, and a bias of minus infinity."""
        shape = (*a.query.shape[:-1], a.key.shape[-2])
        allowed = np.broadcast_to(self.near(a, at), (*shape[:-1], at.stop - at.start))
        if a.mask is not None:
            allowed = allowed & np.broadcast_to(a.mask, shape)[..., at]
        if a.bias is not None:
            allowed = allowed & ~np.isneginf(np.broadcast_to(a.bias, shape)[..., at])
        return allowed

    def near(self, a: Arguments, at: slice) -> Booleans:
        """What the causal mask and the window leave."""
        near = np.ones((a.query.shape[-2], at.stop - at.start), bool)
        if a.causal:
            near &= self.ahead(a, at) <= self.reach()
        if a.window is not None:
            left, right = self.window(a)
            near &= (self.ahead(a, at) >= (-np.inf if left is None else -left)) & (
                self.ahead(a, at) <= (np.inf if right is None else right)
            )
        return near

    def ahead(self, a: Arguments, at: slice) -> Integers:
        """How many positions each key is after each query."""
        return masks.distance(a.query.shape[-2], a.key.shape[-2], align=self.align(a))[:, at]

    def align(self, a: Arguments) -> Any:
        """Which corner of the square the diagonal starts from."""
        return a.align

    def reach(self) -> int:
        """How many positions ahead the causal mask lets a query look."""
        return 0

    def window(self, a: Arguments) -> tuple[int | None, int | None]:
        """Keys before and after the own position."""
        return a.window

    def scaled(self, a: Arguments, keys: Array, at: slice) -> Array:
        """Products of queries and keys, scaled."""
        return self.products(a.query, keys[..., at, :]) * self.factor(a, at)

    def products(self, query: Array, keys: Array) -> Array:
        """Of each query with each key of a tile."""
        return query @ keys.swapaxes(-1, -2)

    def factor(self, a: Arguments, at: slice) -> Any:
        """The scale, or the part of it that belongs to the tile."""
        scale = a.query.shape[-1] ** -0.5 if a.scale is None else a.scale
        return self.wide(scale) if np.ndim(scale) == 0 else self.part(a, scale, at)

    def part(self, a: Arguments, x: Any, at: slice) -> Any:
        """What belongs to a tile of something that is broadcast over scores."""
        return np.broadcast_to(x, (*a.query.shape[:-1], a.key.shape[-2]))[..., at]

    def scores(self, a: Arguments, scaled: Array, allowed: Booleans, at: slice) -> Array:
        """What goes into the softmax: softcap, then bias, then the mask."""
        return self.masked(self.biased(a, self.capped(a, scaled), at), allowed)

    def capped(self, a: Arguments, scores: Array) -> Array:
        """Bounded by the softcap."""
        return scores if a.softcap is None else self.wide(a.softcap) * np.tanh(scores / self.wide(a.softcap))

    def biased(self, a: Arguments, scores: Array, at: slice) -> Array:
        """With the bias."""
        return scores if a.bias is None else scores + self.part(a, a.bias, at)

    def masked(self, scores: Array, allowed: Booleans) -> Array:
        """Nothing where a query may not attend."""
        return np.where(allowed, scores, self.wide(NOTHING))

    def rescale(self, largest: Array, shift: Array) -> Array:
        """By how much what was summed so far shrinks when the maximum rises."""
        return np.where(np.isfinite(largest), np.exp(largest - shift), 0).astype(self.wide)

    def exponential(self, x: Array) -> Array:
        """The weights of a tile before their division by the sum."""
        return np.exp(x)

    def row_sum(self, weights: Array) -> Array:
        """Of a tile."""
        return weights.sum(axis=-1, keepdims=True)

    def sum_so_far(self, total: Array, rescale: Array) -> Array:
        """The sum of the tiles before, for the new maximum."""
        return total * rescale

    def output_so_far(self, output: Array, rescale: Array) -> Array:
        """The output of the tiles before, for the new maximum."""
        return output * rescale

    def weighed(self, weights: Array, values: Array, allowed: Booleans) -> Array:
        """The values of a tile, weighted."""
        return times(weights, values, allowed)

    def accumulated(self, x: Array) -> Array:
        """What an accumulator holds after a tile."""
        return x

    def dropped(self, a: Arguments, weights: Array, at: slice) -> Array:
        """Weights after dropout."""
        return weights if a.keep is None else weights * self.part(a, a.keep, at) / self.wide(1 - a.dropout_rate)

    def with_sinks(self, a: Arguments, largest: Array, total: Array, output: Array) -> tuple[Array, Array, Array]:
        """Maximum, sum and output with the sink's weight in the sum."""
        if a.sinks is None:
            return largest, total, output
        sink = self.sink(a)
        higher = np.maximum(largest, sink)
        shift = np.where(np.isfinite(higher), higher, 0)
        rescale = self.rescale(largest, shift)
        return higher, total * rescale + np.exp(sink - shift), output * rescale

    def sink(self, a: Arguments) -> Array:
        """The sink of each head."""
        return a.sinks[:, None, None]

    def finish(self, largest: Array, total: Array, output: Array) -> tuple[Array, Array]:
        """The output and the log-sum-exp; a row of nothing is 0, and minus infinity."""
        nothing = total == 0
        lse = np.where(nothing, NOTHING, np.where(np.isfinite(largest), largest, 0) + np.log(np.where(nothing, 1, total)))
        return output / np.where(nothing, 1, total), lse.astype(self.wide)

    def written(self, a: Arguments, output: Array) -> Array:
        """What reaches memory."""
        return output

    def stated(self, lse: Array) -> Array:
        """The log-sum-exp that is returned."""
        return lse

    def backward(self, a: Arguments, saved: Saved, *ds: Array) -> dict[str, Array | None]:
        """One tile of keys after another; scores and weights are computed again."""
        d_output = ds[0]
        keys, values = self.spread(a, a.key), self.spread(a, a.value)
        delta = self.delta(saved.output, d_output) - self.from_lse(d_output, *ds[1:])
        d_query, d_keys, d_values = (np.zeros(x.shape, self.wide) for x in (a.query, keys, values))
        d_scores, d_factor = (np.zeros((*a.query.shape[:-1], a.key.shape[-2]), self.wide) for _ in range(2))
        for at in self.tiles(a.key.shape[-2]):
            allowed = self.allowed_again(a, at)
            scaled = self.scaled(a, keys, at)
            weights = self.weights_again(self.scores(a, scaled, allowed, at), self.lse_again(a, saved.lse))
            d_weights = self.d_dropped(a, self.d_weights(d_output, values[..., at, :]), at)
            d_tile = self.d_softmax(weights, d_weights, delta, allowed)
            d_scaled = self.d_capped(a, d_tile, scaled)
            d_read = self.stored(d_scaled)
            d_values[..., at, :] = self.d_value_tile(self.stored(self.d_kept(a, weights, at)), d_output, allowed)
            d_keys[..., at, :] = self.d_key_tile(a, d_read, allowed, at)
            d_query = self.d_accumulated(d_query + self.d_query_tile(a, d_read, keys, allowed, at))
            d_scores[..., at] = self.to_bias(a, d_tile, d_scaled)
            d_factor[..., at] = np.where(allowed, d_scaled * self.products(a.query, keys[..., at, :]), 0)
        d_query, d_keys, d_values = self.d_written(saved, d_query, d_keys, d_values)
        return {
            "query": d_query,
            "key": self.gathered(d_keys, a.key),
            "value": self.gathered(d_values, a.value),
            "bias": None if a.bias is None else self.d_bias(d_scores, a.bias),
            "sinks": None if a.sinks is None else self.d_sinks(self.sink(a), saved.lse, delta),
            "scale": unbroadcast(d_factor, a.scale.shape) if isinstance(a.scale, np.ndarray) else None,
        }

    def delta(self, output: Array, d_output: Array) -> Array:
        """The inner product of each row of the output with its cotangent."""
        return (output * d_output).sum(axis=-1, keepdims=True)

    def from_lse(self, d_output: Array, *d_lse: Array) -> Any:
        """What the cotangent of the log-sum-exp takes from it."""
        return d_lse[0][..., None] if d_lse else 0

    def allowed_again(self, a: Arguments, at: slice) -> Booleans:
        """Where queries may attend, in the backward pass."""
        return self.allowed(a, at)

    def lse_again(self, a: Arguments, lse: Array) -> Array:
        """The log-sum-exp that weights are computed from again."""
        return lse

    def weights_again(self, scores: Array, lse: Array) -> Array:
        """The weights, divided by their sum."""
        return np.where(np.isneginf(lse), 0, self.exponential(scores - np.where(np.isneginf(lse), 0, lse)))

    def d_weights(self, d_output: Array, values: Array) -> Array:
        """The gradient of the weights that meet the values."""
        return d_output @ values.swapaxes(-1, -2)

    def d_dropped(self, a: Arguments, d_weights: Array, at: slice) -> Array:
        """The gradient of the weights before dropout."""
        return self.dropped(a, d_weights, at)

    def d_kept(self, a: Arguments, weights: Array, at: slice) -> Array:
        """The weights that meet the cotangents of the output."""
        return self.dropped(a, weights, at)

    def d_softmax(self, weights: Array, d_weights: Array, delta: Array, allowed: Booleans) -> Array:
        """The gradient of what goes into the softmax."""
        return np.where(allowed, weights * (d_weights - delta), 0).astype(self.wide)

    def d_capped(self, a: Arguments, d_scores: Array, scaled: Array) -> Array:
        """The gradient of the scaled scores."""
        if a.softcap is None:
            return d_scores
        return np.where(d_scores == 0, 0, d_scores * (1 - np.tanh(scaled / self.wide(a.softcap)) ** 2))

    def d_value_tile(self, weights: Array, d_output: Array, allowed: Booleans) -> Array:
        """Of the values of a tile."""
        return times(weights.swapaxes(-1, -2), d_output, allowed.swapaxes(-1, -2))

    def d_key_tile(self, a: Arguments, d_scaled: Array, allowed: Booleans, at: slice) -> Array:
        """Of the keys of a tile."""
        return times((d_scaled * self.d_factor(a, at)).swapaxes(-1, -2), a.query, allowed.swapaxes(-1, -2))

    def d_query_tile(self, a: Arguments, d_scaled: Array, keys: Array, allowed: Booleans, at: slice) -> Array:
        """What a tile gives to the queries."""
        return times(d_scaled * self.d_factor(a, at), keys[..., at, :], allowed)

    def d_factor(self, a: Arguments, at: slice) -> Any:
        """The scale, in the backward pass."""
        return self.factor(a, at)

    def d_accumulated(self, x: Array) -> Array:
        """What the accumulator of the query's gradient holds after a tile."""
        return x

    def to_bias(self, a: Arguments, d_scores: Array, d_scaled: Array) -> Array:
        """The gradient of each score to which a bias was added."""
        return d_scores

    def d_written(self, saved: Saved, d_query: Array, d_keys: Array, d_values: Array) -> tuple[Array, Array, Array]:
        """What reaches memory, still one gradient of keys and values for each query head."""
        return d_query, d_keys, d_values

    def gathered(self, d: Array, like: Array) -> Array:
        """Summed over the query heads of each key head."""
        return d.reshape(*like.shape[:-2], -1, *like.shape[-2:]).sum(axis=-3) if d.size else np.zeros(like.shape, self.wide)

    def d_bias(self, d_scores: Array, bias: Array) -> Array:
        """Summed over the axes along which the bias was broadcast."""
        return unbroadcast(d_scores, bias.shape)

    def d_sinks(self, sink: Array, lse: Array, delta: Array) -> Array:
        """Of each head."""
        weight = np.exp(sink - np.where(np.isneginf(lse), 0, lse))
        terms = -weight * delta
        return terms.sum(axis=(*range(terms.ndim - 3), -2, -1))
