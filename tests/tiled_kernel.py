"""`refattn.testing.faulty`'s attention kernel as tests call it: by format, tile and a fault's short name."""

from __future__ import annotations

import numpy as np

from refattn.testing import faulty
from refattn.testing.faulty.attention import Arguments, Attention

NAME = "scaled_dot_product_attention"
SHORT = {
    "scale 2% high": "scale 2 percent high",
    "scale 10% high": "scale 10 percent high",
    "output not rescaled": "output not rescaled",
    "causal off by one": "causal one key too many",
    "causal from the upper left": "causal from the upper left",
    "last tile dropped": "last tile dropped",
    "key heads interleaved": "key heads interleaved",
    "softcap forgotten": "softcap forgotten",
    "sink forgotten": "sink forgotten",
    "maximum starts at 0": "maximum starts at 0",
    "maximum starts at -5e4": "maximum starts at minus 5e4",
    "masked scores are -10": "masked scores are minus 10",
    "accumulator in low precision": "accumulator in low precision",
    "one row 5% high": "one row 5 percent high",
    "one element off": "one element off",
    "last row stale": "last row stale",
}
FAULTS = tuple(SHORT)


class TiledAttention:
    """Called with the arguments of `refattn.scaled_dot_product_attention`, without dropout; it has no gradients."""

    def __init__(self, dtype, tile=64, fault="", *, round_weights=True, reverse=False):
        self.kernel = Attention(NAME, dtype, tile=tile, reverse=reverse, store=round_weights)
        if fault:
            self.kernel = faulty.kernel(NAME, SHORT[fault], dtype, tile=tile)
        self.format, self.tile, self.fault = self.kernel.format, tile, fault
        self.round_weights, self.reverse = round_weights, reverse

    def allowed(self, query_len, key_len, causal, align, window):
        lengths = {"query": np.zeros((query_len, 1)), "key": np.zeros((key_len, 1))}
        return self.kernel.near(Arguments(**lengths, causal=causal, align=align, window=window), slice(0, key_len))

    def __call__(
        self, query, key, value, bias=None, sinks=None, *, mask=None, causal=False, align=None, window=None, scale=None, softcap=None
    ):
        options = {"mask": mask, "causal": causal, "align": align, "window": window, "scale": scale, "softcap": softcap}
        return self.format.array(self.kernel(query, key, value, bias, sinks, **options))
