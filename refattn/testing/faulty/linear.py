"""An honest kernel of linear attention, gated or with the delta rule: chunks of positions, and a state between them.

Forward, all positions of a chunk are computed at once, from decayed scores and the state that the chunk before has left, as fast
kernels do. Backward, the states inside a chunk are computed again from the one before it, and gone through from the last.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refattn._core import Array, unbroadcast
from refattn.testing.faulty.kernel import Arguments, Kernel


class Inner(NamedTuple):
    """One call without its feature maps: queries by key heads and scaled, decays of all rows or of one for all."""

    query: Array
    key: Array
    value: Array
    logs: Array
    beta: Array | None
    state: Array


class Saved(NamedTuple):
    """What the backward pass reads."""

    inner: Inner
    starts: list[Array]
    read: Array
    end: Array


class Linear(Kernel):
    """`refattn.linear_attention`, `gated_linear_attention`, `delta_rule` and `gated_delta_rule`, and the same in chunks."""

    family = "linear"
    own_tile = 16

    def __init__(self, mechanism: str, dtype: Any = None, *, tile: int = 0, reverse: bool = False, store: bool = True) -> None:
        super().__init__(mechanism, dtype, tile=tile, reverse=False, store=store)  # a state has one order

    def forward(self, a: Arguments) -> tuple[tuple[Array, ...], Saved]:
        """The output and the state; of linear attention the normalizer too."""
        inner = self.inner(a)
        if self.sees_all(a):
            end = inner.state + sum(_turned(inner.key[..., at, :]) @ inner.value[..., at, :] for at in self.chunks(a))
            saved = Saved(inner, [], inner.query @ end[..., None, :, :], end)
        else:
            saved = self.run(a, inner)
        output = self.returned(a, saved)
        if self.plain:
            return (self.rounded(output), self.rounded(saved.end[..., :-1]), self.rounded(saved.end[..., -1])), saved
        return (self.rounded(output), self.rounded(self.last(saved))), saved

    @property
    def plain(self) -> bool:
        """Whether this is linear attention with feature maps."""
        return self.mechanism.spec.name.removeprefix("chunked_") == "linear_attention"

    def sees_all(self, a: Arguments) -> bool:
        """Whether every query reads all keys."""
        return self.plain and not a.causal

    def chunks(self, a: Arguments) -> list[slice]:
        """The parts of a sequence."""
        size = getattr(a, "chunk_size", self.tile)
        return [slice(i, min(i + size, a.key.shape[-2])) for i in range(0, a.key.shape[-2], size)]

    def inner(self, a: Arguments) -> Inner:
        """Features, the scale, and a column of ones for the normalizer."""
        query, key, value, state = self.features(a, a.query), self.features(a, a.key), a.value, self.first(a)
        if self.plain:
            normalizer = np.zeros(state.shape[:-1], self.wide) if a.normalizer is None else a.normalizer
            value = np.concatenate([value, np.ones_like(value, shape=(*value.shape[:-1], 1))], axis=-1)
            state = np.concatenate([state, normalizer[..., None]], axis=-1)
        return Inner(self.grouped(a, self.factor(a) * query), key, value, self.logs(a), self.beta(a), state)

    def features(self, a: Arguments, x: Array) -> Array:
        """The feature map of linear attention."""
        if not self.plain or a.feature_map is None:
            return x
        return np.maximum(x, 0) if a.feature_map == "relu" else np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))

    def factor(self, a: Arguments) -> Any:
        """The scale."""
        return self.wide(a.query.shape[-1] ** -0.5 if a.scale is None else a.scale)

    def grouped(self, a: Arguments, query: Array) -> Array:
        """Query heads beside the key head that they share."""
        kv_heads = a.key.shape[-3]
        return query.reshape(*query.shape[:-3], kv_heads, query.shape[-3] // max(kv_heads, 1), *query.shape[-2:])

    def logs(self, a: Arguments) -> Array:
        """Log decays with an axis of rows."""
        if not hasattr(a, "log_decay"):
            return np.zeros_like(a.key[..., :1])
        return a.log_decay[..., None] if a.log_decay.ndim < a.key.ndim else a.log_decay

    def beta(self, a: Arguments) -> Array | None:
        """How much is erased and written."""
        return getattr(a, "beta", None)

    def first(self, a: Arguments) -> Array:
        """The state before the first position."""
        empty = np.zeros((*a.key.shape[:-2], a.key.shape[-1], a.value.shape[-1]), self.wide)
        return empty if a.state is None else a.state

    def run(self, a: Arguments, inner: Inner) -> Saved:
        """Chunk by chunk."""
        state, starts = inner.state, []
        read = np.zeros((*inner.query.shape[:-1], inner.value.shape[-1]), self.wide)
        for at in self.chunks(a):
            starts.append(state)
            query, key, value = inner.query[..., at, :], inner.key[..., at, :], inner.value[..., at, :]
            decays = self.decays(inner.logs[..., at, :])
            since, within = decays[..., 1:, 0, :], decays[..., 1:, 1:, :]
            writes = self.writes(key, value, within, since, None if inner.beta is None else inner.beta[..., at], state)
            seen = self.scores(query, key[..., None, :, :], within[..., None, :, :, :], self.seen(key.shape[-2]))
            read[..., at, :] = self.from_state(query, since, state) + seen @ writes[..., None, :, :]
            state = self.carried(decays, state, key, writes)
        return Saved(inner, starts, read, state)

    def decays(self, logs: Array) -> Array:
        """The factor from position j (columns) to i (rows), 0 where i < j; position 0 is the place of the state."""
        size = logs.shape[-2] + 1
        steps = np.concatenate([np.zeros_like(logs[..., :1, :]), logs], axis=-2)
        sums = np.cumsum(np.where(np.tri(size, k=-1, dtype=bool)[..., None], steps[..., :, None, :], 0), axis=-3, dtype=self.wide)
        return np.where(np.tri(size, dtype=bool)[..., None], np.exp(sums), 0).astype(self.wide)

    def seen(self, length: int) -> Array:
        """Which positions of its chunk a query reads."""
        return np.tri(length, dtype=bool)

    def scores(self, x: Array, y: Array, decays: Array, seen: Array) -> Array:
        """Decayed inner products."""
        return np.where(seen, np.einsum("...id,...jd,...ijd->...ij", x, y, np.broadcast_to(decays, (*decays.shape[:-1], x.shape[-1]))), 0)

    def writes(self, key: Array, value: Array, within: Array, since: Array, beta: Array | None, state: Array) -> Array:
        """What each position adds at its key; with the delta rule, less what the state holds there."""
        if beta is None:
            return value
        before = self.scores(key, key, within, self.earlier(key.shape[-2]))
        held = (key * since) @ state
        found: Any = np.zeros_like(value)
        for i in range(key.shape[-2]):
            erased = held[..., i, :] + (before[..., i, :i, None] * found[..., :i, :]).sum(axis=-2)
            found[..., i, :] = beta[..., i, None] * (value[..., i, :] - erased)
        return found

    def earlier(self, length: int) -> Array:
        """Which positions of its chunk a write depends on."""
        return np.tri(length, k=-1, dtype=bool)

    def from_state(self, query: Array, since: Array, state: Array) -> Array:
        """What queries read of the chunks before."""
        return (query * since[..., None, :, :]) @ state[..., None, :, :]

    def carried(self, decays: Array, state: Array, key: Array, writes: Array) -> Array:
        """The state after a chunk."""
        return decays[..., -1, 0, :, None] * state + _turned(key * decays[..., -1, 1:, :]) @ writes

    def returned(self, a: Arguments, saved: Saved) -> Array:
        """What was read, in the order of query heads; of linear attention, divided by the normalizer."""
        read = self.flat(saved.read)
        if not self.plain:
            return read
        total = self.total(a, read)
        return np.where(total == 0, 0, read[..., :-1] / np.where(total == 0, 1, total)) if a.normalize else read[..., :-1]

    def total(self, a: Arguments, read: Array) -> Array:
        """What linear attention divides by."""
        return read[..., -1:] + self.wide(a.eps)

    def last(self, saved: Saved) -> Array:
        """The state that is returned."""
        return saved.end

    def flat(self, x: Array) -> Array:
        """Undo `grouped`."""
        return x.reshape(*x.shape[:-4], x.shape[-4] * x.shape[-3], *x.shape[-2:])

    def backward(self, a: Arguments, saved: Saved, *ds: Array) -> dict[str, Array | None]:
        """From the last chunk to the first."""
        d_read, d_end = self.d_returned(a, saved, *ds)
        d = self.d_all(a, saved, d_read, d_end) if self.sees_all(a) else self.d_run(a, saved, d_read, d_end)
        grads: dict[str, Array | None] = {
            "query": self.d_features(a, a.query, self.flat(d["query"]) * self.d_factor(a)),
            "key": self.d_features(a, a.key, d["key"]),
            "value": d["value"][..., : a.value.shape[-1]],
            "state": None if a.state is None else d["state"][..., : a.value.shape[-1]],
        }
        if self.plain:
            return {**grads, "normalizer": None if a.normalizer is None else d["state"][..., -1]}
        if hasattr(a, "log_decay"):
            grads["log_decay"] = unbroadcast(d["logs"], saved.inner.logs.shape).reshape(a.log_decay.shape)
        return {**grads, "beta": d["beta"]} if hasattr(a, "beta") else grads

    def d_factor(self, a: Arguments) -> Any:
        """The scale, in the backward pass."""
        return self.factor(a)

    def d_features(self, a: Arguments, x: Array, d: Array) -> Array:
        """Through the feature map."""
        if not self.plain or a.feature_map is None:
            return d
        return d * (x > 0) if a.feature_map == "relu" else d * np.where(x > 0, 1, np.exp(np.minimum(x, 0)))

    def d_returned(self, a: Arguments, saved: Saved, d_output: Array, *ds: Array) -> tuple[Array, Array]:
        """The gradients of what was read, and of the last state."""
        if not self.plain:
            return self.grouped(a, d_output), self.d_last(ds[0])
        read = self.flat(saved.read)
        total = self.total(a, read)
        d_sum = np.where(total == 0, 0, d_output / np.where(total == 0, 1, total)) if a.normalize else d_output
        d_total = self.d_total(a, d_sum, self.returned(a, saved))
        d_end = np.concatenate([self.d_last(ds[0]), ds[1][..., None]], axis=-1)
        return self.grouped(a, np.concatenate([d_sum, d_total], axis=-1)), d_end

    def d_total(self, a: Arguments, d_sum: Array, output: Array) -> Array:
        """The gradient of what linear attention divides by."""
        return -(d_sum * output).sum(axis=-1, keepdims=True) * self.wide(a.normalize)

    def d_last(self, d_state: Array) -> Array:
        """The cotangent of the returned state."""
        return d_state

    def d_all(self, a: Arguments, saved: Saved, d_read: Array, d_end: Array) -> dict[str, Any]:
        """Where every query reads all keys."""
        inner = saved.inner
        d_state = d_end + self.over_group(_turned(inner.query) @ d_read)
        return {
            "query": d_read @ _turned(saved.end[..., None, :, :]),
            "key": inner.value @ _turned(d_state),
            "value": inner.key @ d_state,
            "state": d_state,
        }

    def d_run(self, a: Arguments, saved: Saved, d_read: Array, d_end: Array) -> dict[str, Any]:
        """Chunk by chunk, from the last; inside a chunk, position by position."""
        inner, d_after = saved.inner, d_end
        d: dict[str, Any] = {name: np.zeros_like(getattr(inner, name)) for name in ("query", "key", "value")}
        d_beta: Any = None if inner.beta is None else np.zeros_like(inner.beta)
        d["logs"] = np.zeros((*inner.key.shape[:-1], inner.key.shape[-1]), self.wide)
        for at, start in zip(self.chunks(a)[::-1], saved.starts[::-1], strict=True):
            states, writes = self.again(inner, at, start)
            for t in reversed(range(at.start, at.stop)):
                before, after, write = states[t - at.start], states[t - at.start + 1], writes[t - at.start]
                key, decay = inner.key[..., t, :], np.exp(inner.logs[..., t, :, None])
                d["query"][..., t, :] = self.d_query(d_read[..., t, :], before, after)
                d_after = d_after + self.over_group(inner.query[..., t, :, None] * d_read[..., t, None, :])
                d_write, d_decayed, decayed = _read(d_after, key), d_after, decay * before
                d_key = self.d_key(d_after, write)
                if inner.beta is not None:
                    rate = inner.beta[..., t, None]
                    d_beta[..., t] = (d_write * (inner.value[..., t, :] - _read(decayed, key))).sum(axis=-1)
                    d_write = rate * d_write
                    d_key = d_key - self.d_erased(decayed, d_write)
                    d_decayed = self.through_erasing(d_after, key, d_write)
                d["key"][..., t, :], d["value"][..., t, :] = d_key, d_write
                d["logs"][..., t, :] = self.d_logs(d_decayed, decayed)
                d_after = decay * d_decayed
            d_after = self.d_carried(d_after)
        return {**d, "beta": d_beta, "state": self.d_first(d_after)}

    def again(self, inner: Inner, at: slice, start: Array) -> tuple[list[Array], list[Array]]:
        """The states before, between and after the positions of a chunk, and what each has written."""
        states, writes = [start], []
        for t in range(at.start, at.stop):
            key, decayed = inner.key[..., t, :], np.exp(inner.logs[..., t, :, None]) * states[-1]
            value = inner.value[..., t, :]
            writes.append(value if inner.beta is None else inner.beta[..., t, None] * (value - _read(decayed, key)))
            states.append(decayed + key[..., :, None] * writes[-1][..., None, :])
        return states, writes

    def d_query(self, d_read: Array, before: Array, after: Array) -> Array:
        """Of one position."""
        return (after[..., None, :, :] * d_read[..., None, :]).sum(axis=-1)

    def d_key(self, d_after: Array, write: Array) -> Array:
        """Of one position, by what it wrote."""
        return (d_after * write[..., None, :]).sum(axis=-1)

    def d_erased(self, decayed: Array, d_write: Array) -> Array:
        """Of the key, by what it erased."""
        return (decayed * d_write[..., None, :]).sum(axis=-1)

    def through_erasing(self, d_after: Array, key: Array, d_write: Array) -> Array:
        """The gradient of the decayed state, of which a part was erased."""
        return d_after - key[..., :, None] * d_write[..., None, :]

    def d_logs(self, d_decayed: Array, decayed: Array) -> Array:
        """Of the log decays of one position."""
        return (d_decayed * decayed).sum(axis=-1)

    def d_carried(self, d_state: Array) -> Array:
        """What the gradient of the state is where a chunk begins."""
        return d_state

    def d_first(self, d_state: Array) -> Array:
        """Of the state before the first position."""
        return d_state

    def over_group(self, x: Array) -> Array:
        """Summed over the query heads of each key head."""
        return x.sum(axis=-3)


def _turned(x: Array) -> Array:
    return x.swapaxes(-1, -2)


def _read(state: Array, key: Array) -> Array:
    """What the state holds for a key."""
    return (key[..., :, None] * state).sum(axis=-2)
