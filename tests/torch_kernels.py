"""PyTorch's own kernels under our names: honest in every precision, and none of them written by us."""

from __future__ import annotations

import torch
from torch.nn import functional


def silu(x):
    return functional.silu(x)


def linear(x, weight, bias=None):
    return functional.linear(x, weight, bias)


def softplus(x, *, beta=1.0):
    return functional.softplus(x, beta)


def layer_norm(x, scale=None, shift=None, *, normalized=1, eps=1e-5):
    return functional.layer_norm(x, x.shape[-normalized:], scale, shift, eps)


def rms_norm(x, scale=None, *, normalized=1, eps=1e-6):
    return functional.rms_norm(x, x.shape[-normalized:], scale, eps)


def group_norm(x, scale=None, shift=None, *, num_groups, eps=1e-5):
    if scale is None and shift is not None:
        raise NotImplementedError("its gradient fails for a shift without a scale")
    return functional.group_norm(x, num_groups, scale, shift, eps)


def instance_norm(x, scale=None, shift=None, *, eps=1e-5):
    return functional.instance_norm(x, weight=scale, bias=shift, eps=eps)


def batch_norm(x, running_mean, running_var, scale=None, shift=None, *, eps=1e-5):
    return functional.batch_norm(x, running_mean, running_var, scale, shift, False, 0.1, eps)


def softmax(x):
    return torch.softmax(x, -1)


def log_softmax(x):
    return torch.log_softmax(x, -1)


def logsumexp(x):
    return torch.logsumexp(x, -1)


def gelu(x, *, approximate="none"):
    return functional.gelu(x, approximate=approximate)


def rounded_linear(x, weight, bias=None):
    """Stored before the bias is added."""
    y = functional.linear(x, weight)
    return y if bias is None else y + bias


def cbam_channel(x, w_reduce, w_expand, b_reduce=None, b_expand=None):
    flat = x.flatten(2)

    def shared(summary):
        return functional.linear(torch.relu(functional.linear(summary, w_reduce, b_reduce)), w_expand, b_expand)

    gate = torch.sigmoid(shared(flat.mean(-1)) + shared(flat.amax(-1)))
    return x * gate.reshape(*gate.shape, *(1,) * (x.ndim - 2))


def cbam_spatial(x, w_spatial, b_spatial=None):
    summary = torch.stack([x.mean(1), x.amax(1)], 1)
    return x * torch.sigmoid(functional.conv2d(summary, w_spatial, b_spatial, padding=w_spatial.shape[-1] // 2))


def cbam(x, w_reduce, w_expand, w_spatial, b_reduce=None, b_expand=None, b_spatial=None):
    return cbam_spatial(cbam_channel(x, w_reduce, w_expand, b_reduce, b_expand), w_spatial, b_spatial)


KERNELS = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "silu": silu,
    "erf": torch.erf,
    "linear": linear,
    "rounded_linear": rounded_linear,
    "softplus": softplus,
    "gelu": gelu,
    "softmax": softmax,
    "log_softmax": log_softmax,
    "logsumexp": logsumexp,
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "group_norm": group_norm,
    "instance_norm": instance_norm,
    "batch_norm": batch_norm,
    "cbam_channel": cbam_channel,
    "cbam_spatial": cbam_spatial,
    "cbam": cbam,
}
