"""A tiled online-softmax attention in low precision, as a GPU kernel computes it, honest or with one fault planted."""

from __future__ import annotations

import math

import numpy as np

from refattn import masks
from refattn.testing.precision import named_format

FAULTS = (
    "scale 2% high",
    "scale 10% high",
    "output not rescaled",
    "causal off by one",
    "causal from the upper left",
    "last tile dropped",
    "key heads interleaved",
    "softcap forgotten",
    "sink forgotten",
    "maximum starts at 0",
    "maximum starts at -5e4",
    "masked scores are -10",
    "accumulator in low precision",
    "one row 5% high",
    "one element off",
    "last row stale",
)


class TiledAttention:
    """Called with the arguments of `refattn.scaled_dot_product_attention`."""

    def __init__(self, dtype, tile=64, fault="", *, round_weights=True, reverse=False):
        self.format, self.tile, self.fault = named_format(dtype), tile, fault
        self.round_weights, self.reverse = round_weights, reverse

    def allowed(self, query_len, key_len, causal, align, window):
        allowed = np.ones((query_len, key_len), bool)
        if causal:
            align = "upper_left" if self.fault == "causal from the upper left" else align
            allowed &= masks.distance(query_len, key_len, align=align) <= (self.fault == "causal off by one")
        if window is not None:
            allowed &= masks.sliding_window(query_len, key_len, left=window[0], right=window[1], align=align)
        return allowed

    def __call__(
        self, query, key, value, bias=None, sinks=None, *, mask=None, causal=False, align=None, window=None, scale=None, softcap=None
    ):
        q, k, v = (np.asarray(x, np.float32) for x in (query, key, value))
        *lead, heads, query_len, head_dim = q.shape
        group, key_len = heads // k.shape[-3], k.shape[-2]
        if self.fault == "key heads interleaved":
            k, v = (np.concatenate([x] * group, axis=-3) for x in (k, v))
        else:
            k, v = (np.repeat(x, group, axis=-3) for x in (k, v))
        factor = np.asarray(head_dim**-0.5 if scale is None else scale, np.float32)
        factor = factor * np.float32({"scale 2% high": 1.02, "scale 10% high": 1.1}.get(self.fault, 1))
        allowed = np.broadcast_to(self.allowed(query_len, key_len, causal, align, window), (*lead, heads, query_len, key_len))
        if mask is not None:
            allowed = allowed & mask
        added = np.zeros(1, np.float32) if bias is None else np.asarray(bias, np.float32)
        added = np.broadcast_to(added, allowed.shape)

        start = {"maximum starts at 0": 0.0, "maximum starts at -5e4": -5e4}.get(self.fault, -math.inf)
        largest = np.full((*lead, heads, query_len, 1), start, np.float32)
        total, output = np.zeros_like(largest), np.zeros((*lead, heads, query_len, v.shape[-1]), np.float32)
        tiles = [slice(j, min(j + self.tile, key_len)) for j in range(0, key_len, self.tile)]
        if self.fault == "last tile dropped" and key_len % self.tile:
            tiles.pop()
        for here in tiles[::-1] if self.reverse else tiles:
            scores = (
                q @ k[..., here, :].swapaxes(-1, -2) * np.broadcast_to(factor, (*allowed.shape[:-1], key_len))[..., here]
                if factor.ndim
                else (q @ k[..., here, :].swapaxes(-1, -2) * factor)
            )
            if softcap is not None and self.fault != "softcap forgotten":
                scores = np.float32(softcap) * np.tanh(scores / np.float32(softcap))
            lowest = np.float32(-10 if self.fault == "masked scores are -10" else -math.inf)
            scores = np.where(allowed[..., here], scores + added[..., here], lowest).astype(np.float32)
            higher = np.maximum(largest, scores.max(axis=-1, keepdims=True, initial=-math.inf))
            shift = np.where(np.isfinite(higher), higher, 0)
            rescale = np.where(np.isfinite(largest), np.exp(largest - shift), 0).astype(np.float32)
            weights = np.exp(scores - shift)
            total = total * rescale + weights.sum(axis=-1, keepdims=True)
            stored = self.format.round(weights).astype(np.float32) if self.round_weights else weights
            output = output * (1 if self.fault == "output not rescaled" else rescale) + stored @ v[..., here, :]
            if self.fault == "accumulator in low precision":
                output = self.format.round(output).astype(np.float32)
            largest = higher
        if sinks is not None and self.fault != "sink forgotten":
            sink = np.asarray(sinks, np.float32)[:, None, None]
            higher = np.maximum(largest, sink)
            shift = np.where(np.isfinite(higher), higher, 0)
            rescale = np.where(np.isfinite(largest), np.exp(largest - shift), 0)
            total, output = total * rescale + np.exp(sink - shift), output * rescale
        output = output / np.where(total == 0, 1, total)
        if query_len:
            self.spoil(output)
        return self.format.array(self.format.round(output))

    def spoil(self, output):
        row = output.shape[-2] // 2
        if self.fault == "one row 5% high":
            output[..., 0, row, :] *= 1.05
        elif self.fault == "one element off":
            output[..., 0, row, 0] += 0.05
        elif self.fault == "last row stale" and output.shape[-2] > 1:
            output[..., -1, :] = output[..., -2, :]
