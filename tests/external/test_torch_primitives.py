"""Primitives against PyTorch in float64: values, and gradients by autograd.

What is called without samples of its own is run over the mechanism's own, so that a new sample is compared too.
"""

from __future__ import annotations

import numpy as np
import pytest

import refattn
from refattn import testing
from refattn._core.mechanism import outputs

torch = pytest.importorskip("torch")
from torch.nn import functional  # noqa: E402

RTOL = 1e-11  # some hundred operations a number, each good to 1.1e-16, and sums of terms of both signs


def tensors(arguments):
    """Real arrays as leaves of autograd, integer arrays as tensors, options as they are."""
    made = {}
    for name, x in arguments.items():
        made[name] = torch.tensor(x, requires_grad=x.dtype.kind == "f") if isinstance(x, np.ndarray) else x
    return made


def each_axis(function):
    """Pooling takes at most two leading axes: ours are folded into one."""

    def call(x, **options):
        axes = int(function.__name__.partition("pool")[2][0])
        y = function(x.reshape(-1, 1, *x.shape[x.ndim - axes :]), **options)
        return y.reshape(*x.shape[: x.ndim - axes], *y.shape[2:])

    return call


def global_pool(reduce):
    return lambda x: reduce(x.flatten(2)) if x.ndim > 2 else x


def max_over(x, axes, keepdims=False):
    """`torch.amax` shares the gradient among ties; the samples have none."""
    return torch.amax(x, dim=axes, keepdim=keepdims)


def resized(mode):
    def call(x, output_size, half_pixel=False, align_corners=None):
        size = output_size if isinstance(output_size, tuple) else (output_size,) * 2
        if mode == "bilinear":
            return functional.interpolate(x[None], size, mode=mode, align_corners=bool(align_corners))[0]
        return functional.interpolate(x[None], size, mode="nearest-exact" if half_pixel else "nearest")[0]

    return call


def layer_norm(x, scale=None, shift=None, normalized=1, eps=1e-5):
    return functional.layer_norm(x, x.shape[x.ndim - normalized :], scale, shift, eps)


def rms_norm(x, scale=None, normalized=1, eps=1e-6):
    return functional.rms_norm(x, x.shape[x.ndim - normalized :], scale, eps)


def batch_norm(x, running_mean, running_var, scale=None, shift=None, eps=1e-5):
    """`torch.nn.functional.batch_norm` gives the running statistics no gradient: they are compared by `OF_STATISTICS`."""
    return functional.batch_norm(x, running_mean.detach(), running_var.detach(), scale, shift, eps=eps)


def batch_norm_training(x, running_mean, running_var, scale=None, shift=None, momentum=0.1, eps=1e-5):
    """The statistics are buffers, moved in place: they are compared as values, and have no gradient."""
    mean, var = running_mean.detach().clone(), running_var.detach().clone()
    y = functional.batch_norm(x, mean, var, scale, shift, training=True, momentum=momentum, eps=eps)
    return y, mean, var


def group_norm(x, scale=None, shift=None, num_groups=1, eps=1e-5):
    """Autograd of PyTorch 2.13 fails where there is a shift without a scale ("tensor does not have a device")."""
    return functional.group_norm(x, num_groups, torch.ones(x.shape[1], dtype=x.dtype) if scale is None else scale, shift, eps)


def instance_norm(x, scale=None, shift=None, eps=1e-5):
    return functional.instance_norm(x, weight=scale, bias=shift, eps=eps)


def segments_of(x, segments):
    return segments.reshape(-1, *(1,) * (x.ndim - 1)).expand_as(x)


def segment_sum(x, segments, num_segments):
    return torch.zeros(num_segments, *x.shape[1:], dtype=x.dtype).scatter_add(0, segments_of(x, segments), x)


def segment_softmax(x, segments, num_segments):
    y = torch.zeros_like(x)
    for s in range(num_segments):
        y = torch.where(segments_of(x, segments) == s, torch.softmax(x.masked_fill(segments_of(x, segments) != s, -torch.inf), 0), y)
    return y


def cross_entropy(scores, targets, class_weights=None, label_smoothing=0.0, ignore_index=None, reduction="mean"):
    weight = None if class_weights is None else class_weights.detach()
    ignored = (targets == -1) | (targets == ignore_index) if ignore_index is not None else targets == -1
    flat = torch.where(ignored, -100, targets).reshape(-1)
    return functional.cross_entropy(
        scores.reshape(-1, scores.shape[-1]), flat, weight, label_smoothing=label_smoothing, reduction=reduction
    )


PEERS = {
    "adaptive_avg_pool1d": each_axis(functional.adaptive_avg_pool1d),
    "adaptive_avg_pool2d": each_axis(functional.adaptive_avg_pool2d),
    "adaptive_avg_pool3d": each_axis(functional.adaptive_avg_pool3d),
    "adaptive_max_pool1d": each_axis(functional.adaptive_max_pool1d),
    "adaptive_max_pool2d": each_axis(functional.adaptive_max_pool2d),
    "adaptive_max_pool3d": each_axis(functional.adaptive_max_pool3d),
    "avg_pool1d": each_axis(functional.avg_pool1d),
    "avg_pool2d": each_axis(functional.avg_pool2d),
    "avg_pool3d": each_axis(functional.avg_pool3d),
    "batch_norm": batch_norm,
    "batch_norm_training": batch_norm_training,
    "cross_entropy": cross_entropy,
    "embedding": lambda weight, indices, padding_idx=None: functional.embedding(indices, weight, padding_idx),
    "erf": torch.erf,
    "erfc": torch.erfc,
    "gather": lambda x, indices: x[indices],
    "gelu": lambda x, approximate="none": functional.gelu(x, approximate=approximate),
    "global_avg_pool": global_pool(lambda x: x.mean(-1)),
    "global_max_pool": global_pool(lambda x: x.amax(-1)),
    "group_norm": group_norm,
    "instance_norm": instance_norm,
    "layer_norm": layer_norm,
    "linear": functional.linear,
    "log_softmax": lambda x: torch.log_softmax(x, -1),
    "logsumexp": lambda x: torch.logsumexp(x, -1),
    "max_over": max_over,
    "max_pool1d": each_axis(functional.max_pool1d),
    "max_pool2d": each_axis(functional.max_pool2d),
    "max_pool3d": each_axis(functional.max_pool3d),
    "mean_over": lambda x, axes, keepdims=False: x.mean(axes, keepdim=keepdims),
    "mean_squared_error": lambda **given: functional.mse_loss(*given.values()),
    "relu": torch.relu,
    "resize_bilinear": resized("bilinear"),
    "resize_nearest": resized("nearest"),
    "rms_norm": rms_norm,
    "scatter_add": lambda x, updates, indices: x.index_put((indices,), updates, accumulate=True),
    "segment_softmax": segment_softmax,
    "segment_sum": segment_sum,
    "sigmoid": torch.sigmoid,
    "silu": lambda **given: functional.silu(given["x"]),
    "softmax": lambda x: torch.softmax(x, -1),
    "softplus": lambda x, beta=1.0: functional.softplus(x, beta=beta),
    "tanh": torch.tanh,
}

CALLS = [pytest.param(name, sample, id=f"{name}-{sample.name}") for name in PEERS for sample in testing.samples(getattr(refattn, name))]


def compare(name, sample, rtol=RTOL):
    m, theirs = getattr(refattn, name), tensors(sample.arguments)
    y, pullback = m.vjp(**sample.arguments)
    made = outputs(PEERS[name](**theirs))
    for ours, other in zip(outputs(y), made, strict=True):
        np.testing.assert_allclose(ours, other.detach().numpy(), rtol=rtol, atol=1e-13)
    ds = [d if other.requires_grad else np.zeros_like(d) for d, other in zip(testing.cotangents(y), made, strict=True)]
    grads = pullback(*ds)
    real = {n: t for n, t in theirs.items() if isinstance(t, torch.Tensor) and t.requires_grad}
    expected = torch.autograd.grad(
        [o for o in made if o.requires_grad],
        list(real.values()),
        [torch.tensor(d) for d, other in zip(ds, made, strict=True) if other.requires_grad],
        allow_unused=True,
    )
    compared = 0
    for path, g in zip(real, expected, strict=True):
        if g is not None:
            np.testing.assert_allclose(grads[path], g.numpy(), rtol=rtol, atol=1e-13, err_msg=path)
            compared += 1
    assert compared


@pytest.mark.parametrize(("name", "sample"), CALLS)
def test_agrees_with_torch(name, sample):
    compare(name, sample)


def test_softplus_has_no_threshold():
    x = np.array([21.0])
    np.testing.assert_array_equal(functional.softplus(torch.tensor(x)), x)  # PyTorch's answer where x > 20
    np.testing.assert_allclose(refattn.softplus(x) - x, np.exp(-x), rtol=1e-5)  # 21 is stored to 4e-15, exp(-21) is 8e-10


@pytest.mark.parametrize("sample", list(testing.samples(refattn.batch_norm)), ids=lambda s: s.name)
def test_statistics_of_batch_norm_have_gradients(sample):
    """The same by plain operations, in which the running statistics take part."""
    given = tensors(sample.arguments)
    wide = (-1, *(1,) * (given["x"].ndim - 2))
    scale, shift = given.get("scale", torch.tensor(1.0)).reshape(wide), given.get("shift", torch.tensor(0.0)).reshape(wide)
    z = (given["x"] - given["running_mean"].reshape(wide)) / (given["running_var"].reshape(wide) + given.get("eps", 1e-5)).sqrt()
    y, pullback = refattn.batch_norm.vjp(**sample.arguments)
    (d,) = testing.cotangents(y)
    names = ("x", "running_mean", "running_var")
    for name, g in zip(names, torch.autograd.grad(z * scale + shift, [given[n] for n in names], torch.tensor(d)), strict=True):
        np.testing.assert_allclose(pullback(d)[name], g.numpy(), rtol=RTOL, atol=1e-13, err_msg=name)


def test_ties_in_a_window_go_to_the_first_as_in_torch():
    x = np.zeros((4, 5))
    x[1:3, 1:4] = 1
    for options in ({"kernel_size": 3, "stride": 1, "padding": 1}, {"kernel_size": 2, "stride": 1, "dilation": 2}):
        y, pullback = refattn.max_pool2d.vjp(x, **options)
        t = torch.tensor(x[None, None], requires_grad=True)
        d = testing.cotangents(y)[0]
        functional.max_pool2d(t, **options).backward(torch.tensor(d[None, None]))
        np.testing.assert_allclose(pullback(d)["x"], t.grad[0, 0], rtol=1e-14, atol=1e-15)


def test_minus_infinity_in_a_padded_window_keeps_its_gradient():
    y, pullback = refattn.max_pool1d.vjp(np.full(3, -np.inf), kernel_size=3, stride=2, padding=1)
    t = torch.full((1, 1, 3), -torch.inf, dtype=torch.float64, requires_grad=True)
    functional.max_pool1d(t, 3, 2, 1).sum().backward()
    np.testing.assert_array_equal(pullback(np.ones_like(y))["x"], t.grad[0, 0])


@pytest.mark.parametrize("count_include_pad", [True, False])
@pytest.mark.parametrize("ceil_mode", [True, False])
def test_every_size_of_window(ceil_mode, count_include_pad):
    for size in range(1, 9):
        x = np.arange(1.0, size + 1)
        for kernel in range(1, 5):
            for stride in range(1, 5):
                for padding in range(kernel // 2 + 1):
                    if kernel > size + 2 * padding:
                        continue
                    options = {"kernel_size": kernel, "stride": stride, "padding": padding, "ceil_mode": ceil_mode}
                    ours = refattn.avg_pool1d(x, **options, count_include_pad=count_include_pad)
                    theirs = functional.avg_pool1d(torch.tensor(x[None]), **options, count_include_pad=count_include_pad)
                    np.testing.assert_allclose(ours, theirs[0], rtol=1e-14, err_msg=str((size, options)))
                    np.testing.assert_array_equal(
                        refattn.max_pool1d(x, **options), functional.max_pool1d(torch.tensor(x[None]), **options)[0]
                    )


def test_every_bin_of_adaptive_pooling():
    for size in range(1, 20):
        x = np.arange(1.0, size + 1) ** 2
        for out in range(1, 20):
            theirs = functional.adaptive_avg_pool1d(torch.tensor(x[None]), out)[0]
            np.testing.assert_allclose(refattn.adaptive_avg_pool1d(x, output_size=out), theirs, rtol=1e-14)


def test_nearest_position_is_a_ratio_of_whole_numbers():
    """PyTorch multiplies by a rounded scale, in float32 for float32 maps: position 87 of 145 then reads 482, not 87 * 805 / 145."""
    x = np.arange(805.0)
    ours = refattn.resize_nearest(x[None], output_size=(1, 145))[0]
    double, single = (functional.interpolate(torch.tensor(x[None, None], dtype=d), 145)[0, 0] for d in (torch.float64, torch.float32))
    np.testing.assert_array_equal(ours, double)
    assert ours[87] == 483
    assert single[87] == 482
