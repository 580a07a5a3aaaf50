"""Faults of a kernel of linear attention, gated or with the delta rule."""

from __future__ import annotations

from typing import Any

import numpy as np

from refattn._core import Array
from refattn.testing.faulty.kernel import Arguments, Faults
from refattn.testing.faulty.linear import Inner, Linear, Saved

FORWARD = fault = Faults("linear", "forward")
BACKWARD = fault_of_gradient = Faults("linear", "backward")
HONEST = Linear
GATED = "gated_linear_attention chunked_gated_linear_attention gated_delta_rule chunked_gated_delta_rule"
DELTA = "delta_rule chunked_delta_rule gated_delta_rule chunked_gated_delta_rule"
PLAIN = "linear_attention chunked_linear_attention"


@fault("factor")
def scale_forgotten(self: Linear, a: Arguments) -> Any:
    """Queries are not scaled."""
    return self.wide(1)


@fault("factor")
def scale_2_percent_high(self: Linear, a: Arguments) -> Any:
    """Queries are scaled by 2 % too much."""
    return self.wide(1.02) * HONEST.factor(self, a)


@fault("grouped", needs="groups")
def key_heads_interleaved(self: Linear, a: Arguments, query: Array) -> Array:
    """Query head h reads the state of key head h % kv_heads."""
    group = query.shape[-3] // max(a.key.shape[-3], 1)
    return query.reshape(*query.shape[:-3], group, a.key.shape[-3], *query.shape[-2:]).swapaxes(-4, -3)


@fault("decays", mechanisms=GATED)
def decay_applied_after_the_write(self: Linear, logs: Array) -> Array:
    """A position's own write decays with it, as if the decay came last."""
    decays = HONEST.decays(self, logs).copy()
    decays[..., 1:, :] *= np.exp(logs)[..., None, :, :]
    return decays


@fault("decays", needs="tiles", mechanisms=GATED)
def gates_summed_without_the_first(self: Linear, logs: Array) -> Array:
    """The running sum of a chunk's gates is exclusive: its first decay is left out of what comes from the state."""
    decays = HONEST.decays(self, logs).copy()
    without = HONEST.decays(self, np.concatenate([np.zeros_like(logs[..., :1, :]), logs[..., 1:, :]], axis=-2))
    decays[..., :, 0, :] = without[..., :, 0, :]
    return decays


@fault("logs", mechanisms=GATED)
def gates_in_base_2(self: Linear, a: Arguments) -> Array:
    """Log decays are taken for logarithms in base 2."""
    return HONEST.logs(self, a) * self.wide(np.log(2))


@fault("logs", mechanisms=GATED)
def gates_clamped(self: Linear, a: Arguments) -> Array:
    """No log decay is below -5, so that nothing is ever forgotten at once."""
    return np.maximum(HONEST.logs(self, a), self.wide(-5))


@fault("first", needs="state")
def first_state_ignored(self: Linear, a: Arguments) -> Array:
    """Every sequence starts from an empty state."""
    return np.zeros_like(HONEST.first(self, a))


@fault("carried", needs="tiles")
def state_not_carried(self: Linear, decays: Array, state: Array, key: Array, writes: Array) -> Array:
    """A chunk's state lacks what the chunks before it left."""
    return HONEST.carried(self, decays, np.zeros_like(state), key, writes)


@fault("carried", needs="tiles", mechanisms=GATED)
def state_carried_without_decay(self: Linear, decays: Array, state: Array, key: Array, writes: Array) -> Array:
    """What comes from the chunks before does not decay over a whole chunk."""
    whole = decays.copy()
    whole[..., -1, 0, :] = 1
    return HONEST.carried(self, whole, state, key, writes)


@fault("carried", needs="tiles")
def state_in_low_precision(self: Linear, decays: Array, state: Array, key: Array, writes: Array) -> Array:
    """The state between chunks is kept in the format."""
    return self.rounded(HONEST.carried(self, decays, state, key, writes))


@fault("seen")
def own_position_not_read(self: Linear, length: int) -> Array:
    """A query reads its chunk up to the position before its own."""
    return np.tri(length, k=-1, dtype=bool)


@fault("scores", needs="tiles")
def later_positions_read(self: Linear, x: Array, y: Array, decays: Array, seen: Array) -> Array:
    """A query reads the position after its own."""
    later = np.eye(seen.shape[-1], k=1, dtype=bool)
    own = np.broadcast_to(np.where(later[..., None], 1, decays), (*decays.shape[:-1], x.shape[-1]))
    return np.where(seen | later, np.einsum("...id,...jd,...ijd->...ij", x, y, own), 0)


@fault("from_state", needs="state")
def state_read_without_decay(self: Linear, query: Array, since: Array, state: Array) -> Array:
    """Queries read the state as it was at the start of the chunk, whatever has decayed since."""
    return HONEST.from_state(self, query, np.ones_like(since), state)


@fault("beta", mechanisms=DELTA)
def beta_ignored(self: Linear, a: Arguments) -> Array:
    """Everything is erased and written at the full rate."""
    return np.ones_like(a.beta)


@fault("writes", mechanisms=DELTA)
def beta_twice(self: Linear, key: Array, value: Array, within: Array, since: Array, beta: Array, state: Array) -> Array:
    """The values are multiplied by beta before the system is solved, and again in it."""
    return HONEST.writes(self, key, beta[..., None] * value, within, since, beta, state)


@fault("earlier", mechanisms=DELTA)
def writes_of_the_chunk_ignored(self: Linear, length: int) -> Array:
    """A position erases what the chunks before have written, not what its own chunk has."""
    return np.zeros((length, length), bool)


@fault("writes", mechanisms=DELTA)
def nothing_erased_from_the_state(self: Linear, key: Array, value: Array, within: Array, since: Array, beta: Array, state: Array) -> Array:
    """A position erases what its own chunk has written, not what the chunks before have."""
    return HONEST.writes(self, key, value, within, since, beta, np.zeros_like(state))


@fault("writes", mechanisms="gated_delta_rule chunked_gated_delta_rule")
def erased_before_the_decay(self: Linear, key: Array, value: Array, within: Array, since: Array, beta: Array, state: Array) -> Array:
    """What is erased is what the state held before it decayed."""
    return HONEST.writes(self, key, value, within, np.ones_like(since), beta, state)


@fault("total", mechanisms=PLAIN)
def normalizer_missing(self: Linear, a: Arguments, read: Array) -> Array:
    """Sums are divided by nothing."""
    return np.ones_like(read[..., -1:])


@fault("total", needs="eps", mechanisms=PLAIN)
def eps_ignored(self: Linear, a: Arguments, read: Array) -> Array:
    """Nothing is added to what is divided by."""
    return read[..., -1:]


@fault("features", mechanisms=PLAIN)
def features_without_plus_one(self: Linear, a: Arguments, x: Array) -> Array:
    """The feature map elu(x) + 1 lacks its 1 where x is positive."""
    return np.where(x > 0, x, HONEST.features(self, a, x)) if a.feature_map == "elu_plus_one" else HONEST.features(self, a, x)


@fault("last")
def last_write_missing_in_the_state(self: Linear, saved: Saved) -> Array:
    """The returned state is that before the last chunk, where there are several."""
    return saved.starts[-1] if len(saved.starts) > 1 else saved.end


@fault_of_gradient("d_carried", needs="tiles")
def state_gradient_not_carried(self: Linear, d_state: Array) -> Array:
    """A chunk's writes have no gradient from the chunks after it."""
    return np.zeros_like(d_state)


@fault_of_gradient("d_first", needs="state")
def state_gradient_missing(self: Linear, d_state: Array) -> Array:
    """The gradient of the first state is 0."""
    return np.zeros_like(d_state)


@fault_of_gradient("d_last", needs="state")
def cotangent_of_the_state_ignored(self: Linear, d_state: Array) -> Array:
    """What depends on the returned state has no gradient."""
    return np.zeros_like(d_state)


@fault_of_gradient("d_factor")
def query_gradient_not_scaled(self: Linear, a: Arguments) -> Any:
    """The gradient of the queries lacks the scale."""
    return self.wide(1)


@fault_of_gradient("d_query")
def query_gradient_of_the_state_before(self: Linear, d_read: Array, before: Array, after: Array) -> Array:
    """The gradient of a query reads the state before its own position has written."""
    return HONEST.d_query(self, d_read, before, before)


@fault_of_gradient("over_group", needs="groups")
def grouped_heads_not_summed(self: Linear, x: Array) -> Array:
    """Of the query heads of a key head, only the last one has gradients of keys and values."""
    return x[..., -1, :, :]


@fault_of_gradient("d_logs", mechanisms=GATED)
def gate_gradient_2_percent_high(self: Linear, d_decayed: Array, decayed: Array) -> Array:
    """The gradient of the log decays is 2 % too large."""
    return self.wide(1.02) * HONEST.d_logs(self, d_decayed, decayed)


@fault_of_gradient("d_erased", mechanisms=DELTA)
def key_gradient_without_what_it_erased(self: Linear, decayed: Array, d_write: Array) -> Array:
    """The gradient of a key is that of its write alone."""
    return np.zeros_like(HONEST.d_erased(self, decayed, d_write))


@fault_of_gradient("through_erasing", mechanisms=DELTA)
def state_gradient_not_erased(self: Linear, d_after: Array, key: Array, d_write: Array) -> Array:
    """The gradient passes a position as if nothing had been erased there."""
    return d_after


@fault_of_gradient("d_total", mechanisms=PLAIN)
def normalizer_gradient_missing(self: Linear, a: Arguments, d_sum: Array, output: Array) -> Array:
    """What is divided by counts as a constant."""
    return np.zeros_like(HONEST.d_total(self, a, d_sum, output))


@fault_of_gradient("again", needs="tiles")
def states_of_the_first_chunk_again(self: Linear, inner: Inner, at: slice, start: Array) -> tuple[list[Array], list[Array]]:
    """In the backward pass every chunk starts from the state before the first."""
    return HONEST.again(self, inner, at, inner.state)
