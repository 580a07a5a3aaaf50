"""Residual units and the attention module made of them, from the definitions of their parts."""

import numpy as np

from tests.definitions.activation import relu as _relu
from tests.definitions.convolution import conv2d as _conv
from tests.definitions.normalization import batch_norm as _norm
from tests.definitions.pixels import residual_attention as _gate
from tests.definitions.pooling import max_pool2d as _pool
from tests.definitions.resize import resize_bilinear as _resize


def _sum(a, b):
    y = np.zeros(a.shape)
    for at in np.ndindex(a.shape):
        y[at] = a[at] + b[at]
    return y


def _layer(x, norm, weight, eps):
    active = _relu(_norm(x, norm.running_mean, norm.running_var, norm.scale, norm.shift, eps=eps))
    before = [(n - 1) // 2 for n in weight.shape[2:]]
    after = [n // 2 for n in weight.shape[2:]]
    return _conv(active, weight, padding=tuple(zip(before, after, strict=True)))


def residual_unit(x, weights, *, eps=1e-5):
    w = weights
    reduced = _layer(x, w.norm_reduce, w.w_reduce, eps)
    mixed = _layer(reduced, w.norm_spatial, w.w_spatial, eps)
    return _sum(x, _layer(mixed, w.norm_expand, w.w_expand, eps))


def _units(x, units, eps):
    for unit in units:
        x = residual_unit(x, unit, eps=eps)
    return x


def soft_mask_branch(x, weights, *, pooling="hanging", align_corners=True, eps=1e-5):
    pooled = {"padding": 1} if pooling == "padded" else {"ceil_mode": True}
    sizes, skipped, h = [], [], x
    for level in weights.levels:
        sizes.append(h.shape[2:])
        h = _units(_pool(h, kernel_size=3, stride=2, **pooled), level.down, eps)
        skipped.append(h)
    for size, before, level in list(zip(sizes, skipped, weights.levels, strict=True))[::-1]:
        if level.skip is not None:
            h = _sum(h, residual_unit(before, level.skip, eps=eps))
        h = _resize(_units(h, level.up, eps), output_size=size, align_corners=align_corners)
    return _layer(_layer(h, weights.norm_first, weights.w_first, eps), weights.norm_second, weights.w_second, eps)


def residual_attention_module(x, weights, *, constraint="mixed", pooling="hanging", align_corners=True, eps=1e-5):
    z = _units(x, weights.before, eps)
    logits = soft_mask_branch(z, weights.mask, pooling=pooling, align_corners=align_corners, eps=eps)
    return _units(_gate(_units(z, weights.trunk, eps), logits, constraint=constraint, eps=eps), weights.after, eps)
