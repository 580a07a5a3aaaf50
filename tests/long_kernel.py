"""Softmax attention as a fused kernel computes it, forward and backward, in low precision: honest, or with one fault planted."""

from __future__ import annotations

import numpy as np

from refattn.attention.dot_product.scaled_dot_product import within_reach
from refattn.testing.precision import named_format

FAULTS = (
    "delta wrong on 10 rows",
    "one row of d_key stale",
    "backward mask off by one",
    "last tile dropped",
    "one row 5% high",
    "log-sum-exp in base 2",
    "scale 2% high in d_query and d_key",
)


class FusedAttention:
    """Called with the arguments of `refattn.scaled_dot_product_attention`; `gradients` takes a cotangent and these."""

    def __init__(self, dtype, tile=64, fault="", *, row=None, reverse=False):
        self.format, self.tile, self.fault, self.row, self.reverse = named_format(dtype), tile, fault, row, reverse

    def store(self, x):
        with np.errstate(over="ignore"):
            return self.format.round(x).astype(np.float32)

    def pairs(self, q, k, *, bias=None, mask=None, causal=False, align=None, window=None, scale=None, softcap=None, off=0):
        k = np.repeat(k, q.shape[-3] // k.shape[-3], axis=-3)
        factor = np.float32(q.shape[-1] ** -0.5 if scale is None else scale)
        scores = q @ k.swapaxes(-1, -2) * factor
        slope = factor
        if softcap is not None:
            bounded = np.tanh(scores / np.float32(softcap))
            scores, slope = np.float32(softcap) * bounded, factor * (1 - bounded**2)
        if bias is not None:
            scores = scores + np.asarray(bias, np.float32)
        n, m = scores.shape[-2:]
        near = np.broadcast_to(within_reach(n, m, causal=causal, window=window, align=align), (n, m))
        if off:  # each query sees one key less than it should
            near = near & np.roll(near, -1, axis=-1) if m > 1 else near
        allowed = near if mask is None else near & mask
        return np.where(allowed, scores, -np.inf).astype(np.float32), slope

    def __call__(self, query, key, value, bias=None, sinks=None, **options):
        return self.forward(query, key, value, bias, sinks, **options)[0]

    def forward(self, query, key, value, bias=None, sinks=None, **options):
        """Output and log-sum-exp."""
        q, k, v = (np.asarray(x, np.float32) for x in (query, key, value))
        v = np.repeat(v, q.shape[-3] // v.shape[-3], axis=-3)
        scores, _ = self.pairs(q, k, bias=bias, **options)
        start = -np.inf if sinks is None else np.asarray(sinks, np.float32)[:, None, None]
        largest = np.broadcast_to(start, (*scores.shape[:-1], 1)).astype(np.float32)
        total = np.ones_like(largest) if sinks is not None else np.zeros_like(largest)
        output = np.zeros((*scores.shape[:-1], v.shape[-1]), np.float32)
        tiles = [slice(j, j + self.tile) for j in range(0, k.shape[-2], self.tile)]
        if self.fault == "last tile dropped":
            tiles.pop()
        for at in tiles[::-1] if self.reverse else tiles:
            higher = np.maximum(largest, scores[..., at].max(axis=-1, keepdims=True))
            shift = np.where(np.isfinite(higher), higher, 0)
            rescale = np.where(np.isfinite(largest), np.exp(largest - shift), 0).astype(np.float32)
            weights = np.exp(scores[..., at] - shift)
            total = total * rescale + weights.sum(axis=-1, keepdims=True)
            output = output * rescale + self.store(weights) @ v[..., at, :]
            largest = higher
        output = self.store(output / np.where(total == 0, 1, total))
        with np.errstate(divide="ignore"):
            lse = (np.where(np.isfinite(largest), largest, 0) + np.log(total))[..., 0]
        if self.fault == "one row 5% high":
            output[..., 0, self.row, :] *= np.float32(1.05)
        return output, lse / np.float32(np.log(2)) if self.fault == "log-sum-exp in base 2" else lse

    def gradients(self, d_output, query, key, value, bias=None, sinks=None, **options):
        """Of query, key, value and sinks."""
        q, k, v, d = (np.asarray(x, np.float32) for x in (query, key, value, d_output))
        group = q.shape[-3] // k.shape[-3]
        keys, values = (np.repeat(x, group, axis=-3) for x in (k, v))
        honest = FusedAttention(self.format.name, self.tile)
        output, lse = honest.forward(query, key, value, bias, sinks, **options)
        scores, slope = self.pairs(q, k, bias=bias, off=self.fault == "backward mask off by one", **options)
        weights = np.where(np.isneginf(scores), 0, np.exp(scores - np.where(np.isneginf(lse), 0, lse)[..., None])).astype(np.float32)
        delta = (output * d).sum(axis=-1)
        used = delta.copy()
        if self.fault == "delta wrong on 10 rows":
            used[..., -10:] = 0
        raw = self.store(weights * (d @ values.swapaxes(-1, -2) - used[..., None]) * slope)
        factor = np.float32(1.02 if self.fault == "scale 2% high in d_query and d_key" else 1)
        split = (*k.shape[:-2], group)
        d_query, d_key = raw @ keys * factor, raw.swapaxes(-1, -2) @ q * factor
        d_value = self.store(weights).swapaxes(-1, -2) @ d
        d_key, d_value = (x.reshape(*split, *x.shape[-2:]).sum(axis=-3) for x in (d_key, d_value))
        if self.fault == "one row of d_key stale":
            d_key[..., 0, self.row, :] = d_key[..., 0, self.row - 1, :]
        found = {n: self.store(x) for n, x in (("query", d_query), ("key", d_key), ("value", d_value))}
        if sinks is not None:
            taken = np.exp(np.asarray(sinks, np.float32)[:, None] - lse)
            found["sinks"] = -(taken * delta).sum(axis=(*range(delta.ndim - 2), -1))
        return found
