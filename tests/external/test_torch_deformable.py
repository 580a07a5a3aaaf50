"""Deformable convolutions, and their gradients by autograd, against PyTorch's grid_sample and conv2d."""

from __future__ import annotations

import pytest

from tests.external.composed import compare
from tests.external.test_torch_convolution import pairs

torch = pytest.importorskip("torch")
F = torch.nn.functional


def torch_sample(x, positions):
    """grid_sample wants columns before rows, as parts of the image, and pictures of points."""
    height, width = x.shape[-2:]
    lead, picked = x.shape[:-3], positions.shape[len(x.shape[:-3]) + 1 :]
    maps, at = x.reshape(-1, *x.shape[-3:]), positions.reshape(max(1, lead.numel()), 2, -1, 1)
    at = torch.stack([(2 * at[:, 1] + 1) / width - 1, (2 * at[:, 0] + 1) / height - 1], dim=-1)
    sampled = F.grid_sample(maps, at, mode="bilinear", padding_mode="zeros", align_corners=False)
    return sampled.reshape(*lead, x.shape[-3], *picked)


def torch_deform_conv2d(x, offset, weight, bias=None, *, modulation=None, stride=1, padding=0, dilation=1, groups=1, offset_groups=1):
    size, kernel, out = x.shape[2:], weight.shape[2:], offset.shape[2:]
    steps, gaps = ([o, o] if isinstance(o, int) else o for o in (stride, dilation))
    before = [pair[0] for pair in pairs(padding, size, kernel, steps, gaps)]
    taps = kernel[0] * kernel[1]
    grid = torch.stack(
        torch.meshgrid(
            *(
                (torch.arange(n)[None] * s - a + torch.arange(k)[:, None] * d).flatten().to(x.dtype)
                for n, s, a, k, d in zip(out, steps, before, kernel, gaps, strict=True)
            ),
            indexing="ij",
        )
    ).reshape(2, kernel[0], out[0], kernel[1], out[1])
    grid = grid.transpose(2, 3).reshape(2, taps, *out)
    positions = offset.reshape(len(x), offset_groups, taps, 2, *out).transpose(2, 3) + grid
    sampled = torch_sample(x.reshape(len(x), offset_groups, -1, *size), positions)
    if modulation is not None:
        sampled = sampled * modulation.reshape(len(x), offset_groups, 1, taps, *out)
    columns = sampled.reshape(len(x), -1, *out)
    return F.conv2d(columns, weight.reshape(len(weight), -1, 1, 1), bias, groups=groups)


def torch_modulated_deform_conv2d(x, offset, modulation, weight, bias=None, **options):
    return torch_deform_conv2d(x, offset, weight, bias, modulation=modulation, **options)


THEIRS = {
    "sample_bilinear": torch_sample,
    "deform_conv2d": torch_deform_conv2d,
    "modulated_deform_conv2d": torch_modulated_deform_conv2d,
}


@pytest.mark.parametrize("name", THEIRS)
def test_agrees_with_pytorch(name):
    compare(name, THEIRS[name])
