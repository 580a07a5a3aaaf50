"""The short causal convolution of state-space models: one filter of k taps for each channel, reading no later position.

The backward pass is one call for the gradients of input and weight together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

import refattn
from benchmarks.cases import Call, installed, on_lines
from benchmarks.conv_ours import CORNER
from benchmarks.torch_peer import fastest


def causal(batch: int, channels: int, length: int, taps: int, direction: Literal["forward", "backward"]) -> Mapping[str, Call]:
    """All contenders of one case."""
    import refattn_numba  # noqa: PLC0415  (needs Numba, but the list of cases does not)

    random = np.random.default_rng(0)
    x, dy = map(on_lines, random.standard_normal((2, batch, channels, length), np.float32))
    weight = random.standard_normal((channels, taps), np.float32)
    calls = {"refattn_numba": _ours(refattn_numba, x, weight, dy, direction)}
    if (torch := installed("torch")) is not None:
        calls["torch"] = fastest(_torch_calls(torch, x, weight, dy, direction))
    few, taps_of_few, d_few = (a.astype(float) for a in (x[:, :CORNER], weight[:CORNER], dy[:, :CORNER]))
    return {**calls, "exact": _ours(refattn, few, taps_of_few, d_few, direction)}


def _ours(module: Any, x: np.ndarray, weight: np.ndarray, dy: np.ndarray, direction: str) -> Call:
    """By the function of that name, or as a convolution that is padded before."""
    if hasattr(module, "causal_conv1d"):
        convolve, given, options = module.causal_conv1d, weight, {}
    else:
        convolve, given = module.conv1d, weight[:, None]
        options = {"padding": ((weight.shape[1] - 1, 0),), "groups": len(weight)}

    def output(y: Any) -> Any:
        return y[0] if isinstance(y, tuple) else y

    if direction == "forward":
        return lambda: output(convolve(x, given, **options))
    y, pullback = convolve.vjp(x, given, **options)
    ds = (dy, None) if isinstance(y, tuple) else (dy,)

    def backward() -> Any:
        grads = pullback(*ds)
        return grads["x"], grads["weight"].reshape(weight.shape)

    return backward


def _torch_calls(torch: Any, x: np.ndarray, weight: np.ndarray, dy: np.ndarray, direction: str) -> list[Call]:
    """Padded on one side by a copy, or on both sides and cut off; the gradients are those of the first."""
    x, weight, dy = (torch.from_numpy(a) for a in (x, weight[:, None], dy))
    more, groups, length = weight.shape[-1] - 1, len(weight), x.shape[-1]
    pad, convolve = torch.nn.functional.pad, torch.nn.functional.conv1d
    if direction == "forward":
        return [
            lambda: convolve(pad(x, (more, 0)), weight, groups=groups),
            lambda: convolve(x, weight, padding=more, groups=groups)[..., :length],
        ]
    padded, backward = pad(x, (more, 0)), torch.ops.aten.convolution_backward

    def both() -> Any:
        dx, dw, _ = backward(dy, padded, weight, None, [1], [0], [1], False, [0], groups, [True, True, False])
        return dx[..., more:], dw[:, 0]

    return [both]
