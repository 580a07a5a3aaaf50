"""Attention between pixels, and the residual attention module, against compositions in PyTorch: values, and gradients by its autograd."""

from __future__ import annotations

import pytest

from tests.external.composed import compare

torch = pytest.importorskip("torch")
F = torch.nn.functional

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def one_tap(x, weight, bias=None):
    """The paper's embeddings: convolutions with kernels of one tap."""
    axes = x.ndim - 2
    return x if weight is None else CONV[axes](x, weight[(..., *(None,) * axes)], bias)


def non_local(
    x,
    w_g,
    w_output,
    w_theta=None,
    w_phi=None,
    w_concat=None,
    b_g=None,
    b_output=None,
    b_theta=None,
    b_phi=None,
    pair="",
    pool=None,
    pooled="",
):
    def shrunk(map_):
        return map_ if pool is None else POOL[x.ndim - 2](map_, pool)

    read = shrunk(x) if pooled == "input" else x
    phi, g = one_tap(read, w_phi, b_phi), one_tap(read, w_g, b_g)
    if pooled != "input":
        phi, g = shrunk(phi), shrunk(g)
    theta = one_tap(x, w_theta, b_theta)
    left, right = theta.flatten(2).mT[:, :, None], phi.flatten(2).mT[:, None]
    if pair == "concatenation":
        both = torch.cat(torch.broadcast_tensors(left, right), dim=-1)
        weights = torch.relu(both @ w_concat) / right.shape[2]
    else:
        scores = (left * right).sum(-1)
        weights = scores / right.shape[2] if pair == "dot_product" else scores.softmax(-1)
    y = (weights @ g.flatten(2).mT).mT.reshape(len(x), len(w_g), *x.shape[2:])
    return one_tap(y, w_output, b_output) + x


def pixel_self_attention(
    x, w_query, w_key, w_value, w_output=None, b_query=None, b_key=None, b_value=None, b_output=None, num_heads=1, scale=None
):
    query, key, value = (
        one_tap(x, w, b).flatten(2).unflatten(1, (num_heads, -1)).mT for w, b in ((w_query, b_query), (w_key, b_key), (w_value, b_value))
    )
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    y = (scores.softmax(-1) @ value).mT.flatten(1, 2).reshape(len(x), len(w_value), *x.shape[2:])
    return one_tap(y, w_output, b_output)


MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


def non_local_means(x, h, patch_size=7, patch_std=None, window=None, padding_mode="reflect", self_weight="own"):
    channels, height, width = x.shape[1:]
    r = patch_size // 2
    away = torch.arange(-r, r + 1, dtype=x.dtype)
    taps = torch.ones(patch_size, patch_size, dtype=x.dtype)
    if patch_std is not None:
        taps = torch.exp(-(away[:, None] ** 2 + away**2) / (2 * patch_std**2))
    patches = F.unfold(F.pad(x, (r,) * 4, mode=MODES[padding_mode]), patch_size).unflatten(1, (channels, -1))
    apart = (patches[..., None] - patches[..., None, :]) ** 2
    distances = (apart * (taps / taps.sum()).flatten()[:, None, None]).sum(2).mean(1)
    weights = torch.exp(-distances / torch.as_tensor(h).reshape(-1, 1, 1) ** 2)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    most = (height, width) if window is None else (window, window) if isinstance(window, int) else window
    near = torch.ones(height * width, height * width, dtype=bool)
    for places, m in ((rows.flatten(), most[0]), (columns.flatten(), most[1])):
        near &= (places[:, None] - places).abs() <= m
    weights = weights * near
    if self_weight == "largest":
        eye = torch.eye(height * width, dtype=bool)
        largest = weights.masked_fill(eye, 0).amax(-1)
        weights = torch.where(eye, torch.diag_embed(largest), weights)
    return ((weights / weights.sum(-1, keepdim=True)) @ x.flatten(2).mT).mT.reshape(x.shape)


def squared_distances(a, b, mask=None):
    apart = a[..., :, None, :] - b[..., None, :, :]
    return ((apart if mask is None else apart.where(mask[..., None], 0)) ** 2).sum(-1)


def residual_attention(trunk, logits, constraint="mixed", eps=1e-5):
    if constraint == "channel":
        return (1 + logits / (logits.square().sum(1, keepdim=True) + logits.shape[1] * eps).sqrt()) * trunk
    return (1 + torch.sigmoid(F.instance_norm(logits, eps=eps) if constraint == "spatial" else logits)) * trunk


def layer(x, norm, weight, eps):
    """PyTorch's own batch norm takes the statistics for constants."""
    mean, var = norm.running_mean[:, None, None], norm.running_var[:, None, None]
    normal = (x - mean) / (var + eps).sqrt()
    if norm.scale is not None:
        normal = normal * norm.scale[:, None, None] + norm.shift[:, None, None]
    return F.conv2d(torch.relu(normal), weight, padding="same")


def residual_unit(x, weights, eps=1e-5):
    w = weights
    reduced = layer(x, w.norm_reduce, w.w_reduce, eps)
    return x + layer(layer(reduced, w.norm_spatial, w.w_spatial, eps), w.norm_expand, w.w_expand, eps)


def units(x, each, eps):
    for unit in each:
        x = residual_unit(x, unit, eps)
    return x


def soft_mask_branch(x, weights, pooling="hanging", align_corners=True, eps=1e-5):
    def hourglass(x, levels):
        small = F.max_pool2d(x, 3, 2, padding=1) if pooling == "padded" else F.max_pool2d(x, 3, 2, ceil_mode=True)
        down = units(small, levels[0].down, eps)
        inner = hourglass(down, levels[1:]) if levels[1:] else down
        joined = inner if levels[0].skip is None else inner + residual_unit(down, levels[0].skip, eps)
        return F.interpolate(units(joined, levels[0].up, eps), x.shape[2:], mode="bilinear", align_corners=align_corners)

    seen = hourglass(x, weights.levels) if weights.levels else x
    return layer(layer(seen, weights.norm_first, weights.w_first, eps), weights.norm_second, weights.w_second, eps)


def residual_attention_module(x, weights, constraint="mixed", eps=1e-5, **options):
    z = units(x, weights.before, eps)
    logits = soft_mask_branch(z, weights.mask, eps=eps, **options)
    return units(residual_attention(units(z, weights.trunk, eps), logits, constraint, eps), weights.after, eps)


PAIRS = (non_local, pixel_self_attention, squared_distances, non_local_means)
MODULES = (residual_attention, residual_unit, soft_mask_branch, residual_attention_module)


@pytest.mark.parametrize("theirs", PAIRS + MODULES, ids=lambda f: f.__name__)
def test_pixels(theirs):
    compare(theirs.__name__, theirs)
