"""Channel and spatial gates against compositions in PyTorch: values, and gradients by its autograd, in float64."""

from __future__ import annotations

import pytest

from tests.external.composed import compare

torch = pytest.importorskip("torch")


def means(x):
    return x.flatten(2).mean(dim=2)


def maxima(x):
    return x.flatten(2).amax(dim=2)


def network(z, w_reduce, w_expand, b_reduce=None, b_expand=None):
    hidden = torch.relu(torch.nn.functional.linear(z, w_reduce, b_reduce))
    return torch.nn.functional.linear(hidden, w_expand, b_expand)


def gated(x, logits):
    return x * torch.sigmoid(logits).reshape(*logits.shape, *(1,) * (x.ndim - 2))


def squeeze_excitation(x, **weights):
    return gated(x, network(means(x), **weights))


def squeeze_excitation_one_layer(x, w_gate, b_gate=None):
    return gated(x, torch.nn.functional.linear(means(x), w_gate, b_gate))


def cbam_channel(x, **weights):
    return gated(x, network(means(x), **weights) + network(maxima(x), **weights))


def cbam_channel_concat(x, w_gate, b_gate=None):
    return gated(x, torch.nn.functional.linear(torch.cat([means(x), maxima(x)], dim=1), w_gate, b_gate))


def cbam_spatial(x, w_spatial, b_spatial=None):
    both = torch.cat([x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)], dim=1)
    return x * torch.sigmoid(torch.nn.functional.conv2d(both, w_spatial, b_spatial, padding="same"))


def cbam(x, w_spatial, b_spatial=None, **weights):
    return cbam_spatial(cbam_channel(x, **weights), w_spatial, b_spatial)


GATES = (squeeze_excitation, squeeze_excitation_one_layer, cbam_channel, cbam_channel_concat, cbam_spatial, cbam)


@pytest.mark.parametrize("theirs", GATES, ids=lambda f: f.__name__)
def test_gates(theirs):
    compare(theirs.__name__, theirs)
