"""The backward pass of a tiled attention in low precision, as GPU kernels compute it; its products are added in float32."""

from __future__ import annotations

import numpy as np

from refattn.testing.precision import named_format
from tests.tiled_kernel import TiledAttention


class TiledGradients(TiledAttention):
    """Called with the cotangent, then the arguments of `refattn.scaled_dot_product_attention`; gradients of query, key and value.

    The forward pass leaves its rounded output and float32 log-sum-exp; weights are computed again, tile by tile, and what goes
    into a matrix product (weights, gradients of scores) is rounded to the format.
    """

    def __call__(self, d_output, query, key, value, *, causal=False, align=None, window=None, scale=None, **others):
        if others:
            raise NotImplementedError(f"{', '.join(sorted(others))}: not supported")
        q, k, v, do = (np.asarray(x, np.float32) for x in (query, key, value, d_output))
        heads, query_len, head_dim = q.shape[-3:]
        group = heads // k.shape[-3]
        k, v = (np.repeat(x, group, axis=-3) for x in (k, v))
        factor = np.float32(head_dim**-0.5 if scale is None else scale)
        output = TiledAttention(self.format.name, self.tile)(
            query, key, value, causal=causal, align=align, window=window, scale=scale
        ).astype(np.float32)
        allowed = self.allowed(query_len, k.shape[-2], causal, align, window)
        scores = np.where(allowed, q @ k.swapaxes(-1, -2) * factor, np.float32(-np.inf))
        largest = scores.max(axis=-1, keepdims=True, initial=-np.inf)
        shift = np.where(np.isfinite(largest), largest, 0)
        lse = np.log(np.exp(scores - shift).sum(axis=-1, keepdims=True), dtype=np.float32) + shift
        lse = np.where(np.isfinite(lse), lse, 0)
        row_sum = (output * do).sum(axis=-1, keepdims=True)
        dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
        tiles = [slice(j, min(j + self.tile, k.shape[-2])) for j in range(0, k.shape[-2], self.tile)]
        for here in tiles[::-1] if self.reverse else tiles:
            weights = np.exp(scores[..., here] - lse)
            d_scores = weights * (do @ v[..., here, :].swapaxes(-1, -2) - row_sum)
            dv[..., here, :] = self.low(weights).swapaxes(-1, -2) @ do
            dk[..., here, :] = self.low(d_scores).swapaxes(-1, -2) @ q * factor
            dq += self.low(d_scores) @ k[..., here, :] * factor
        shape = (*np.shape(key)[:-2], group)
        dk, dv = (x.reshape(*shape[:-1], group, *x.shape[-2:]).sum(axis=-3) for x in (dk, dv))
        return {"query": self.returned(dq), "key": self.returned(dk), "value": self.returned(dv)}

    def low(self, x):
        return self.format.round(x).astype(np.float32) if self.round_weights else x

    def returned(self, x):
        return named_format(self.format.name).array(self.format.round(x))
