"""Modulated deformable convolution 3x3, beside grid_sample and conv2d of PyTorch, which has no such function itself."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from benchmarks.cases import Call, Case, installed


def layer(batch: int, channels: int, size: int, *, backward: bool) -> Mapping[str, Call]:
    """As many channels out as in, of one size; forward, or the gradients of all four arrays alone."""
    import refattn_numba  # noqa: PLC0415  (the other suites do without)

    random = np.random.default_rng(0)
    square = (size, size)
    shapes = ((batch, channels, *square), (batch, 18, *square), (batch, 9, *square), (channels, channels, 3, 3), (batch, channels, *square))
    *given, d = (random.standard_normal(shape, np.float32) for shape in shapes)
    _, pullback = refattn_numba.modulated_deform_conv2d.vjp(*given, padding=1)
    ours: Call = (lambda: tuple(pullback(d).values())) if backward else (lambda: refattn_numba.modulated_deform_conv2d(*given, padding=1))
    torch = installed("torch")
    if torch is None:
        return {"refattn_numba": ours}
    tensors = [torch.tensor(a, requires_grad=backward) for a in given]
    made, d_made = composed(torch, *tensors), torch.from_numpy(d)
    grads: Call = lambda: torch.autograd.grad(made, tensors, d_made, retain_graph=True)  # noqa: E731
    return {"refattn_numba": ours, "torch": grads if backward else lambda: composed(torch, *tensors)}


def composed(torch: Any, x: Any, offset: Any, modulation: Any, weight: Any) -> Any:
    """All samples, tap after tap along the height, and a convolution of one tap."""
    batch, channels, height, width = x.shape
    steps = torch.arange(9) // 3 - 1, torch.arange(9) % 3 - 1
    moves = offset.view(batch, 9, 2, height, width)
    rows = torch.arange(height)[:, None] + steps[0][:, None, None] + moves[:, :, 0]
    columns = torch.arange(width) + steps[1][:, None, None] + moves[:, :, 1]
    grid = torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], dim=-1).view(batch, 9 * height, width, 2)
    sampled = torch.nn.functional.grid_sample(x, grid, align_corners=False).view(batch, channels, 9, height, width)
    modulated = (sampled * modulation[:, None]).view(batch, 9 * channels, height, width)
    return torch.nn.functional.conv2d(modulated, weight.view(len(weight), -1, 1, 1))


CASES = tuple(
    Case(
        f"{channels} channels, {size}x{size}, batch 4, {way}", partial(layer, 4, channels, size, backward=way == "backward"), tolerance=1e-4
    )
    for channels, size in ((64, 56), (128, 28), (256, 28), (512, 14))
    for way in ("forward", "backward")
)
