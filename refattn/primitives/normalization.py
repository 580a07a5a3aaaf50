"""Normalisation over the features of a token, the examples of a batch, or the channels of a group.

All are one rule: subtract the mean of some axes (or not), divide by the root of their mean square, scale, shift.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from refattn._core import Array, BadCall, Grads, Pullback, Random, Sample, mechanism, unbroadcast

Affine = tuple[Array, Callable[[Array], tuple[Array, Grads]]]


class Standardized(NamedTuple):
    """What was made of an input, and the mean and mean square that it was made with, which keep their axes."""

    output: Array
    mean: Array
    var: Array


def _standardized(x: Array, axes: tuple[int, ...], eps: float, *, center: bool = True) -> tuple[Standardized, Callable[..., Array]]:
    r"""Mean 0 (where `center`) and mean square 1 over some axes.

    With :math:`z = (x - \mu) / r` and :math:`r = \sqrt{v + \epsilon}`, the pullback is
    :math:`\bar x = (\bar z - \operatorname{mean} \bar z - z \operatorname{mean}(z \bar z)) / r + (\bar \mu + 2 (x - \mu) \bar v) / n`.
    """
    count = math.prod(x.shape[axis] for axis in axes)
    if count == 0:
        raise ValueError(f"x has shape {x.shape}, so that there is nothing to normalise")

    def mean_of(a: Array) -> Array:
        return a.sum(axis=axes, keepdims=True) / count

    mean = mean_of(x) if center else np.zeros_like(mean_of(x))
    moved = x - mean
    var = mean_of(moved**2)
    inverse = 1 / np.sqrt(var + eps)
    z = moved * inverse

    def pullback(dz: Array, d_mean: Array | float = 0.0, d_var: Array | float = 0.0) -> Array:
        d_moved = inverse * (dz - z * mean_of(z * dz)) + 2 * moved * d_var / count
        return d_moved - mean_of(d_moved) + d_mean / count if center else d_moved

    return Standardized(z, mean, var), pullback


def _affine(z: Array, scale: Array | None, shift: Array | None, shape: tuple[int, ...]) -> Affine:
    """Scale and shift, each a vector that stands in `z` with this shape; None leaves its part out."""
    factor = 1.0 if scale is None else scale.reshape(shape)
    y = z * factor
    if shift is not None:
        y = y + shift.reshape(shape)

    def pullback(dy: Array) -> tuple[Array, Grads]:
        return dy * factor, {
            "scale": None if scale is None else unbroadcast(dy * z, shape).reshape(scale.shape),
            "shift": None if shift is None else unbroadcast(dy, shape).reshape(shift.shape),
        }

    return y, pullback


def _normalized(
    x: Array, axes: tuple[int, ...], scale: Array | None, shift: Array | None, shape: tuple[int, ...], eps: float, *, center: bool = True
) -> tuple[Array, Pullback]:
    made, z_pullback = _standardized(x, axes, eps, center=center)
    y, affine_pullback = _affine(made.output, scale, shift, shape)

    def pullback(dy: Array) -> Grads:
        dz, grads = affine_pullback(dy)
        return {"x": z_pullback(dz), **grads}

    return y, pullback


def _layer_samples(random: Random) -> Iterator[Sample]:
    inputs = {"x": random.normal((2, 3, 4)), "scale": random.normal(4)}
    yield Sample("plain", {"x": inputs["x"]})
    yield Sample("eps", {**inputs, "eps": 0.25})
    yield Sample("two axes", {"x": inputs["x"], "scale": random.normal((3, 4)), "normalized": 2})


def _layer_samples_with_shift(random: Random) -> Iterator[Sample]:
    yield from _layer_samples(random)
    yield Sample("shift", {"x": random.normal((2, 3, 4)), "scale": random.normal(4), "shift": random.normal(4)})
    yield Sample("shift alone", {"x": random.normal((2, 3, 4)), "shift": random.normal(4)})


def _layer_bad_calls(random: Random) -> Iterator[BadCall]:
    x = random.normal((2, 3, 4))
    yield BadCall("nothing", {"x": x[..., :0]}, ValueError, r"x has shape \(2, 3, 0\), so that there is nothing to normalise")
    yield BadCall("too many axes", {"x": x, "normalized": 4}, ValueError, "x has 3 axes, but needs at least 4")
    yield BadCall("too few axes", {"x": x, "scale": random.normal((3, 4))}, ValueError, "scale has 2 axes, but needs 1")


def _layer_benchmark(random: Random) -> Mapping[str, Any]:
    return {"x": random.normal((8, 512, 768)), "scale": random.normal(768)}


@mechanism(samples=_layer_samples_with_shift, bad_calls=_layer_bad_calls, benchmark=_layer_benchmark)
def layer_norm(
    x: Array, scale: Array | None = None, shift: Array | None = None, *, normalized: int = 1, eps: float = 1e-5
) -> tuple[Array, Pullback]:
    r"""Give the last axis, or the last axes together, mean 0 and variance 1; then a learned scale and shift.

    Parameters
    ----------
    x : array, shape (..., *normalized)
        Input.
    scale : array or None, shape (*normalized), optional
        Learned scale; None is 1.
    shift : array or None, shape (*normalized), optional
        Learned shift; None is 0.
    normalized : positive int, optional
        How many of the last axes are normalised together.
    eps : non-negative float, optional
        Added to the variance.

    Returns
    -------
    array, shape (..., *normalized)
        Output.

    Notes
    -----
    The variance is that of the n values themselves: their squares are divided by n.

    .. math::

        z = \frac{x - \mu}{r}, \quad \mu = \operatorname{mean} x, \quad r = \sqrt{\operatorname{mean} (x - \mu)^2 + \epsilon}, \quad
        y = \gamma \odot z + \beta

    .. math::

        \bar z = \gamma \odot \bar y, \quad
        \bar x = \frac{\bar z - \operatorname{mean} \bar z - z \operatorname{mean}(z \odot \bar z)}{r}, \quad
        \bar \gamma = \sum z \odot \bar y, \quad \bar \beta = \sum \bar y

    References
    ----------
    .. [1] Ba, Kiros, Hinton, "Layer Normalization", 2016, eq. (3). arXiv:1607.06450.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.layer_norm(np.array([1.0, 3.0]), eps=0.0)
    array([-1.,  1.])
    """
    axes = tuple(range(x.ndim - normalized, x.ndim))
    return _normalized(x, axes, scale, shift, x.shape[x.ndim - normalized :], eps)


@mechanism(samples=_layer_samples, bad_calls=_layer_bad_calls, benchmark=_layer_benchmark)
def rms_norm(x: Array, scale: Array | None = None, *, normalized: int = 1, eps: float = 1e-6) -> tuple[Array, Pullback]:
    r"""Give the last axis, or the last axes together, mean square 1; then a learned scale.

    Parameters
    ----------
    x : array, shape (..., *normalized)
        Input.
    scale : array or None, shape (*normalized), optional
        Learned scale; None is 1. Where a model stores it less 1, add 1 first.
    normalized : positive int, optional
        How many of the last axes are normalised together.
    eps : non-negative float, optional
        Added to the mean square, inside the root. PyTorch's default is the machine epsilon of the precision in which it computes:
        float32 for half precision.

    Returns
    -------
    array, shape (..., *normalized)
        Output.

    Notes
    -----
    .. math::

        z = \frac{x}{r}, \quad r = \sqrt{\operatorname{mean} x^2 + \epsilon}, \quad y = \gamma \odot z, \qquad
        \bar z = \gamma \odot \bar y, \quad \bar x = \frac{\bar z - z \operatorname{mean}(z \odot \bar z)}{r}, \quad
        \bar \gamma = \sum z \odot \bar y

    References
    ----------
    .. [1] Zhang, Sennrich, "Root Mean Square Layer Normalization", NeurIPS 2019, eq. (4). arXiv:1910.07467.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.rms_norm(np.array([1.0, 7.0]), eps=0.0)
    array([0.2, 1.4])
    """
    axes = tuple(range(x.ndim - normalized, x.ndim))
    return _normalized(x, axes, scale, None, x.shape[x.ndim - normalized :], eps, center=False)


def _by_channel(x: Array) -> tuple[int, ...]:
    """The shape in which a vector over channels stands in `x`."""
    return (-1, *(1,) * (x.ndim - 2))


def _running(random: Random, channels: int) -> dict[str, Any]:
    return {"running_mean": random.normal(channels), "running_var": random.uniform(0.5, 2.0, channels)}


def _batch_samples(random: Random) -> Iterator[Sample]:
    inputs = {"x": random.normal((3, 2, 2, 2)), **_running(random, 2)}
    yield Sample("plain", inputs)
    yield Sample("scale", {**inputs, "scale": random.normal(2), "shift": random.normal(2), "eps": 0.25})
    yield Sample("shift", {**inputs, "shift": random.normal(2)})
    yield Sample("vectors", {"x": random.normal((4, 3)), **_running(random, 3), "scale": random.normal(3)})


def _batch_benchmark(random: Random) -> Mapping[str, Any]:
    return {"x": random.normal((8, 64, 56, 56)), "scale": random.normal(64), "shift": random.normal(64), **_running(random, 64)}


@mechanism(samples=_batch_samples, benchmark=_batch_benchmark)
def batch_norm(
    x: Array,
    running_mean: Array,
    running_var: Array,
    scale: Array | None = None,
    shift: Array | None = None,
    *,
    eps: float = 1e-5,
) -> tuple[Array, Pullback]:
    r"""Normalise each channel with statistics that were gathered in training: batch normalisation at inference.

    Parameters
    ----------
    x : array, shape (batch, channels, *positions)
        Input.
    running_mean : array, shape (channels)
        Mean of each channel.
    running_var : array, shape (channels)
        Variance of each channel.
    scale : array or None, shape (channels), optional
        Learned scale; None is 1.
    shift : array or None, shape (channels), optional
        Learned shift; None is 0.
    eps : non-negative float, optional
        Added to the variance.

    Returns
    -------
    array, shape (batch, channels, *positions)
        Output.

    Notes
    -----
    .. math::

        z = \frac{x - m}{r}, \quad r = \sqrt{v + \epsilon}, \quad y = \gamma z + \beta, \qquad \bar x = \frac{\gamma \bar y}{r}, \quad
        \bar m = -\sum \bar x, \quad \bar v = -\frac{1}{2 r} \sum z \bar x, \quad
        \bar \gamma = \sum z \bar y, \quad \bar \beta = \sum \bar y

    References
    ----------
    .. [1] Ioffe, Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift",
       ICML 2015, algorithm 2. arXiv:1502.03167.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.batch_norm(np.array([[1.0], [5.0]]), np.array([3.0]), np.array([4.0]), eps=0.0)
    array([[-1.],
           [ 1.]])
    """
    shape = _by_channel(x)
    wide_mean, inverse = running_mean.reshape(shape), (1 / np.sqrt(running_var + eps)).reshape(shape)
    z = (x - wide_mean) * inverse
    y, affine_pullback = _affine(z, scale, shift, wide_mean.shape)

    def pullback(dy: Array) -> Grads:
        dz, grads = affine_pullback(dy)
        dx = dz * inverse
        return {
            "x": dx,
            "running_mean": -unbroadcast(dx, wide_mean.shape).reshape(running_mean.shape),
            "running_var": -unbroadcast(dx * z * inverse / 2, wide_mean.shape).reshape(running_var.shape),
            **grads,
        }

    return y, pullback


class BatchNormalized(NamedTuple):
    """The output, and the statistics to be used at inference, one step on."""

    output: Array
    running_mean: Array
    running_var: Array


def _training_samples(random: Random) -> Iterator[Sample]:
    yield from _batch_samples(random)
    yield Sample("momentum", {"x": random.normal((3, 2, 4)), **_running(random, 2), "momentum": 0.5})


def _training_bad_calls(random: Random) -> Iterator[BadCall]:
    call = {"x": random.normal((1, 2)), **_running(random, 2)}
    yield BadCall("one value", call, ValueError, r"x has shape \(1, 2\), but must have more than one value of each channel")


@mechanism(samples=_training_samples, bad_calls=_training_bad_calls, benchmark=_batch_benchmark)
def batch_norm_training(
    x: Array,
    running_mean: Array,
    running_var: Array,
    scale: Array | None = None,
    shift: Array | None = None,
    *,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[BatchNormalized, Pullback]:
    r"""Normalise each channel over the batch, and move the running statistics towards those of the batch.

    Parameters
    ----------
    x : array, shape (batch, channels, *positions)
        Input.
    running_mean : array, shape (channels)
        Mean of each channel so far.
    running_var : array, shape (channels)
        Variance of each channel so far.
    scale : array or None, shape (channels), optional
        Learned scale; None is 1.
    shift : array or None, shape (channels), optional
        Learned shift; None is 0.
    momentum : non-negative float, optional
        Weight of this batch in the running statistics; Keras calls 1 less this the momentum.
    eps : non-negative float, optional
        Added to the variance.

    Returns
    -------
    output : array, shape (batch, channels, *positions)
        Output.
    running_mean : array, shape (channels)
        New mean.
    running_var : array, shape (channels)
        New variance.

    Notes
    -----
    The n values of a channel are divided by the root of their mean square, but their variance enters the running one with
    n - 1. The running statistics do not change the output.

    .. math::

        z = \frac{x - \mu}{r}, \quad r = \sqrt{\sigma^2 + \epsilon}, \quad y = \gamma z + \beta, \quad
        m' = (1 - \rho) m + \rho \mu, \quad v' = (1 - \rho) v + \rho \tfrac{n}{n - 1} \sigma^2

    .. math::

        \bar z = \gamma \bar y, \quad
        \bar x = \frac{\bar z - \operatorname{mean} \bar z - z \operatorname{mean}(z \bar z)}{r}
        + \frac{\rho}{n} \bar m' + \frac{2 \rho}{n - 1} (x - \mu) \bar v', \quad
        \bar m = (1 - \rho) \bar m', \quad \bar v = (1 - \rho) \bar v'

    References
    ----------
    .. [1] Ioffe, Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift",
       ICML 2015, algorithms 1 and 2. arXiv:1502.03167.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.batch_norm_training(np.array([[1.0], [5.0]]), np.zeros(1), np.ones(1), eps=0.0, momentum=0.5)
    BatchNormalized(output=array([[-1.],
           [ 1.]]), running_mean=array([1.5]), running_var=array([4.5]))
    """
    shape, channels = _by_channel(x), running_mean.shape
    count = math.prod((x.shape[0], *x.shape[2:]))
    if count < 2:
        raise ValueError(f"x has shape {x.shape}, but must have more than one value of each channel")
    unbiased = count / (count - 1)
    (z, mean, var), z_pullback = _standardized(x, (0, *range(2, x.ndim)), eps)
    output, affine_pullback = _affine(z, scale, shift, (channels[0], *shape[1:]))
    new_mean = (1 - momentum) * running_mean + momentum * mean.reshape(channels)
    new_var = (1 - momentum) * running_var + momentum * unbiased * var.reshape(channels)

    def pullback(d_output: Array, d_running_mean: Array, d_running_var: Array) -> Grads:
        dz, grads = affine_pullback(d_output)
        d_mean, d_var = momentum * d_running_mean, momentum * unbiased * d_running_var
        return {
            "x": z_pullback(dz, d_mean.reshape(shape), d_var.reshape(shape)),
            "running_mean": (1 - momentum) * d_running_mean,
            "running_var": (1 - momentum) * d_running_var,
            **grads,
        }

    return BatchNormalized(output, new_mean, new_var), pullback


def _group_samples(random: Random) -> Iterator[Sample]:
    inputs = {"x": random.normal((2, 4, 3, 2)), "num_groups": 2}
    yield Sample("plain", inputs)
    yield Sample("one group", {**inputs, "num_groups": 1, "scale": random.normal(4)})
    yield Sample("shift", {**inputs, "scale": random.normal(4), "shift": random.normal(4), "eps": 0.25})
    yield Sample("vectors", {"x": random.normal((3, 6)), "num_groups": 3, "shift": random.normal(6)})


def _group_bad_calls(random: Random) -> Iterator[BadCall]:
    call = {"x": random.normal((2, 4, 3)), "num_groups": 3}
    yield BadCall("groups that do not divide", call, ValueError, r"num_groups \* in_group is 4 in x, which no whole number solves")


@mechanism(samples=_group_samples, bad_calls=_group_bad_calls)
def group_norm(
    x: Array, scale: Array | None = None, shift: Array | None = None, *, num_groups: int, eps: float = 1e-5
) -> tuple[Array, Pullback]:
    r"""Normalise the channels of each group together, over all positions of one example.

    Parameters
    ----------
    x : array, shape (batch, num_groups * in_group, *positions)
        Input.
    scale : array or None, shape (num_groups * in_group), optional
        Learned scale of each channel; None is 1.
    shift : array or None, shape (num_groups * in_group), optional
        Learned shift of each channel; None is 0.
    num_groups : positive int
        How many groups of consecutive channels there are.
    eps : non-negative float, optional
        Added to the variance.

    Returns
    -------
    array, shape (batch, num_groups * in_group, *positions)
        Output.

    Notes
    -----
    .. math::

        z = \frac{x - \mu_g}{r_g}, \quad r_g = \sqrt{\operatorname{mean}_g (x - \mu_g)^2 + \epsilon}, \quad y = \gamma z + \beta, \qquad
        \bar z = \gamma \bar y, \quad \bar x = \frac{\bar z - \operatorname{mean}_g \bar z - z \operatorname{mean}_g(z \bar z)}{r_g}

    References
    ----------
    .. [1] Wu, He, "Group Normalization", ECCV 2018, eqs. (1), (2), (6) and (7). arXiv:1803.08494.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.group_norm(np.array([[1.0, 3.0, 10.0, 30.0]]), num_groups=2, eps=0.0)
    array([[-1.,  1., -1.,  1.]])
    """
    batch, channels, *positions = x.shape
    split = x.reshape(batch, num_groups, channels // num_groups, *positions)
    made, z_pullback = _standardized(split, tuple(range(2, split.ndim)), eps)
    y, affine_pullback = _affine(made.output.reshape(x.shape), scale, shift, (channels, *(1,) * len(positions)))

    def pullback(dy: Array) -> Grads:
        dz, grads = affine_pullback(dy)
        return {"x": z_pullback(dz.reshape(split.shape)).reshape(x.shape), **grads}

    return y, pullback


def _instance_samples(random: Random) -> Iterator[Sample]:
    inputs = {"x": random.normal((2, 3, 2, 3))}
    yield Sample("plain", inputs)
    yield Sample("shift", {**inputs, "scale": random.normal(3), "shift": random.normal(3), "eps": 0.25})


@mechanism(samples=_instance_samples)
def instance_norm(x: Array, scale: Array | None = None, shift: Array | None = None, *, eps: float = 1e-5) -> tuple[Array, Pullback]:
    r"""Normalise each channel of each example over its positions: `group_norm` with one channel in a group.

    Parameters
    ----------
    x : array, shape (batch, channels, *positions)
        Input.
    scale : array or None, shape (channels), optional
        Learned scale; None is 1.
    shift : array or None, shape (channels), optional
        Learned shift; None is 0.
    eps : non-negative float, optional
        Added to the variance.

    Returns
    -------
    array, shape (batch, channels, *positions)
        Output.

    Notes
    -----
    Sizes: ``channels >= 1``.

    .. math::

        z = \frac{x - \mu}{r}, \quad r = \sqrt{\operatorname{mean} (x - \mu)^2 + \epsilon}, \quad y = \gamma z + \beta, \qquad
        \bar z = \gamma \bar y, \quad \bar x = \frac{\bar z - \operatorname{mean} \bar z - z \operatorname{mean}(z \bar z)}{r}

    References
    ----------
    .. [1] Ulyanov, Vedaldi, Lempitsky, "Instance Normalization: The Missing Ingredient for Fast Stylization", 2016.
       arXiv:1607.08022.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.instance_norm(np.array([[[1.0, 3.0], [10.0, 30.0]]]), eps=0.0)
    array([[[-1.,  1.],
            [-1.,  1.]]])
    """
    return group_norm.vjp(x, scale, shift, num_groups=x.shape[1], eps=eps)
