"""Convolutions against PyTorch in float64: outputs, and gradients by its autograd."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

import refattn
from refattn import testing
from refattn._core import Random
from refattn.testing import cotangents

torch = pytest.importorskip("torch")
F = torch.nn.functional

DENSE = ["conv1d", "conv2d", "conv3d", "conv2d_im2col", "conv2d_fft", "conv2d_winograd", "depthwise_conv2d", "pointwise_conv2d"]
TRANSPOSED = ["conv_transpose1d", "conv_transpose2d", "conv_transpose3d"]


def pairs(padding, size, kernel, stride, dilation):
    """Padding as pairs, by PyTorch's rule for "same", and TensorFlow's where there is a stride."""
    if padding == "same":
        needed = [
            max((math.ceil(n / s) - 1) * s + d * (k - 1) + 1 - n, 0) for n, k, s, d in zip(size, kernel, stride, dilation, strict=True)
        ]
        return [(m // 2, m - m // 2) for m in needed]
    entries = padding if isinstance(padding, tuple) else [0 if padding == "valid" else padding] * len(size)
    return [p if isinstance(p, tuple) else (p, p) for p in entries]


def padded(x, sides, mode):
    """All modes by F.pad, which takes the last axis first."""
    flat = [n for pair in reversed(sides) for n in pair]
    return x if not any(flat) else F.pad(x, flat) if mode == "zeros" else F.pad(x, flat, mode=mode)


def torch_conv(x, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1, padding_mode="zeros", tile=None):
    size, kernel = x.shape[2:], weight.shape[2:]
    steps, gaps = ([o] * len(size) if isinstance(o, int) else o for o in (stride, dilation))
    x = padded(x, pairs(padding, size, kernel, steps, gaps), padding_mode)
    return getattr(F, f"conv{len(size)}d")(x, weight, bias, stride=tuple(steps), dilation=tuple(gaps), groups=groups)


def torch_depthwise_conv2d(x, *args, **options):
    return torch_conv(x, *args, groups=x.shape[1], **options)


def torch_separable_conv2d(x, w_depthwise, w_pointwise, bias=None, **options):
    return F.conv2d(torch_depthwise_conv2d(x, w_depthwise, **options), w_pointwise, bias)


def torch_conv_transpose(x, weight, bias=None, *, padding=0, **options):
    axes = x.dim() - 2
    whole = getattr(F, f"conv_transpose{axes}d")(x, weight, None, **options)
    for axis, (before, after) in enumerate(pairs(padding, (None,) * axes, *(None,) * 3), start=2):
        whole = whole.narrow(axis, before, whole.shape[axis] - before - after)
    return whole if bias is None else whole + bias.reshape(-1, *(1,) * axes)


def torch_causal_conv1d(x, weight, bias=None, state=None):
    taps = weight.shape[1]
    seen = F.pad(x, (taps - 1, 0)) if state is None else torch.cat([state, x], dim=-1)
    return F.conv1d(seen, weight[:, None], bias, groups=len(weight)), seen[..., seen.shape[-1] - taps + 1 :]


def torch_pad(x, *, padding, mode="zeros"):
    for axis, pair in enumerate(padding, start=x.dim() - len(padding)):  # F.pad does not pad every axis of every tensor
        moved = x.movedim(axis, -1).reshape(1, -1, x.shape[axis])
        done = padded(moved, [pair], mode)
        x = done.reshape(*x.movedim(axis, -1).shape[:-1], done.shape[-1]).movedim(-1, axis)
    return x


def torch_unfold2d(x, kernel_size, stride=1, padding=0, dilation=1, padding_mode="zeros"):
    kernel, steps, gaps = ((o, o) if isinstance(o, int) else o for o in (kernel_size, stride, dilation))
    x = padded(x, pairs(padding, x.shape[2:], kernel, steps, gaps), padding_mode)
    out = [(n - g * (k - 1) - 1) // s + 1 for n, k, s, g in zip(x.shape[2:], kernel, steps, gaps, strict=True)]
    shape = (*x.shape[:2], math.prod(kernel), *out)
    if not len(x):  # F.unfold takes no empty batch
        return x.new_zeros(shape) + 0 * x.sum()
    return F.unfold(x, kernel, dilation=gaps, stride=steps).reshape(shape)


THEIRS = {
    **dict.fromkeys(DENSE, torch_conv),
    **dict.fromkeys(TRANSPOSED, torch_conv_transpose),
    "depthwise_conv2d": torch_depthwise_conv2d,
    "separable_conv2d": torch_separable_conv2d,
    "causal_conv1d": torch_causal_conv1d,
    "unfold2d": torch_unfold2d,
    "pad": torch_pad,
}


def agrees(name, arguments):
    """Outputs and gradients of all arrays, to a few units in the last place of the largest."""
    m = getattr(refattn, name)
    y, pullback = m.vjp(**arguments)
    ours = y if isinstance(y, tuple) else (y,)
    ds = cotangents(y)
    grads = pullback(*ds)
    tensors = {n: torch.tensor(a, requires_grad=True) if isinstance(a, np.ndarray) else a for n, a in arguments.items()}
    z = THEIRS[name](**tensors)
    theirs = z if isinstance(z, tuple) else (z,)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b.detach().numpy(), rtol=1e-12, atol=1e-12)
    leaves = [n for n, t in tensors.items() if isinstance(t, torch.Tensor)]
    assert set(leaves) == set(grads)
    wanted = torch.autograd.grad(theirs, [tensors[n] for n in leaves], [torch.tensor(d) for d in ds], allow_unused=True)
    for n, g in zip(leaves, wanted, strict=True):
        np.testing.assert_allclose(grads[n], np.zeros_like(arguments[n]) if g is None else g.numpy(), rtol=1e-11, atol=1e-11, err_msg=n)


def test_every_convolution_is_compared():
    elsewhere = {"deform_conv2d", "modulated_deform_conv2d"}  # test_torch_deformable
    assert {m.__name__ for m in refattn.mechanisms("convolution")} <= THEIRS.keys() | elsewhere


SAMPLES = [pytest.param(n, s, id=f"{n}-{s.name}") for n in THEIRS for s in testing.samples(getattr(refattn, n))]


@pytest.mark.parametrize(("name", "sample"), SAMPLES)
def test_samples_agree_with_torch(name, sample):
    agrees(name, sample.arguments)


OPTIONS = list(itertools.product((1, 2, 3), ((1, 1), (2, 3)), ((1, 1), (2, 1)), (1, 2), (0, 2, "same"), ("zeros", "reflect", "circular")))


@pytest.mark.parametrize(("axes", "stride", "dilation", "groups", "padding", "padding_mode"), OPTIONS)
def test_options_combine(axes, stride, dilation, groups, padding, padding_mode):
    random = Random(axes)
    x, weight = random.normal((2, 4, *(6, 5, 4)[-axes:])), random.normal((6, 4 // groups, *(2, 3, 2)[-axes:]))
    agrees(
        f"conv{axes}d",
        {
            "x": x,
            "weight": weight,
            "bias": random.normal(6),
            "stride": (*stride, 1)[:axes],
            "dilation": (*dilation, 1)[:axes],
            "groups": groups,
            "padding": padding,
            "padding_mode": padding_mode,
        },
    )


@pytest.mark.parametrize(
    ("axes", "stride", "dilation", "groups", "more"), list(itertools.product((1, 2, 3), (1, 3), (1, 2), (1, 2), (0, 1)))
)
def test_options_of_transposed_ones_combine(axes, stride, dilation, groups, more):
    if more >= max(stride, dilation):
        with pytest.raises(ValueError, match="output_padding is 1"):
            getattr(refattn, f"conv_transpose{axes}d")(np.ones((1, 1, *(2,) * axes)), np.ones((1, 1, *(2,) * axes)), output_padding=more)
        return
    random = Random(axes)
    x, weight = random.normal((2, 4, *(4, 3, 2)[-axes:])), random.normal((4, 3, *(2, 3, 2)[-axes:]))
    options = {"stride": stride, "dilation": dilation, "groups": groups, "output_padding": more}
    agrees(f"conv_transpose{axes}d", {"x": x, "weight": weight, "bias": random.normal(3 * groups), **options})


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_same_is_what_torch_calls_same(dilation):
    random = Random(0)
    x, weight = random.normal((1, 2, 6, 7)), random.normal((3, 2, 4, 3))
    theirs = F.conv2d(torch.tensor(x), torch.tensor(weight), padding="same", dilation=dilation).numpy()
    np.testing.assert_allclose(refattn.conv2d(x, weight, padding="same", dilation=dilation), theirs, rtol=1e-12, atol=1e-12)


def test_bounds_of_padding_are_those_of_torch():
    x, weight = np.ones((1, 1, 4)), np.ones((1, 1, 1))
    for mode, most in (("reflect", 3), ("circular", 4)):
        y = refattn.conv1d(x, weight, padding=most, padding_mode=mode)
        assert y.shape == padded(torch.tensor(x), [(most, most)], mode).shape
        with pytest.raises(ValueError, match=f"padding is .*, but {mode} allows at most {most}"):
            refattn.conv1d(x, weight, padding=most + 1, padding_mode=mode)
        with pytest.raises(RuntimeError):
            padded(torch.tensor(x), [(most + 1, most + 1)], mode)
