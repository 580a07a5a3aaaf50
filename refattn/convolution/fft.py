"""Convolution as a product of spectra: the larger the kernel, the more this saves.

A discrete Fourier transform turns the sum over taps into one product for each frequency, but takes both axes for circles. At
the positions where the whole kernel lies within the input nothing wraps around, and these are all that a convolution keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refattn._core import Array, Pullback, mechanism
from refattn.convolution.conv2d import bad_calls, conv2d, samples
from refattn.convolution.rule import Axes, convolve, out_size


def by_spectra(x: Array, weight: Array, stride: Axes, dilation: Axes) -> tuple[Array, Callable[[Array], tuple[Array, Array]]]:
    """Transform, multiply, transform back, and keep every `stride`-th of the positions at which nothing wraps around."""
    size, kernel = x.shape[3:], weight.shape[3:]
    kept = tuple(slice(0, s * (n - 1) + 1, s) for n, s in zip(out_size(size, kernel, stride, dilation), stride, strict=True))
    spaced = tuple(slice(0, d * (k - 1) + 1, d) for k, d in zip(kernel, dilation, strict=True))
    X, W = spectrum(x.swapaxes(0, 1)), spectrum(placed(weight, size, spaced))
    y = signal(X @ W.conj().swapaxes(-1, -2), size)[..., *kept]

    def pullback(dy: Array) -> tuple[Array, Array]:
        D = spectrum(placed(dy.swapaxes(0, 1), size, kept))
        return signal(D @ W, size).swapaxes(0, 1), signal(D.conj().swapaxes(-1, -2) @ X, size)[..., *spaced]

    return y.swapaxes(0, 1), pullback


def placed(x: Array, size: Axes, at: tuple[slice, ...]) -> Array:
    """Zeros of this size in the last two axes, with `x` at those positions."""
    z = np.zeros_like(x, shape=(*x.shape[:-2], *size))
    z[..., *at] = x
    return z


def spectrum(x: Array) -> Any:
    """From (groups, m, n, *size) to one matrix (m, n) for each frequency and group."""
    return np.moveaxis(np.fft.rfft2(x), (-2, -1), (0, 1))


def signal(spectra: Any, size: Axes) -> Array:
    """The inverse of `spectrum`."""
    return np.fft.irfft2(np.moveaxis(spectra, (0, 1), (-2, -1)), s=size)


@mechanism(tags={"convolution", "algorithm"}, samples=samples, bad_calls=bad_calls, like=conv2d)
def conv2d_fft(*args: Any, **kwargs: Any) -> tuple[Array, Pullback]:
    r"""`conv2d` by fast Fourier transforms.

    Returns
    -------
    array, shape (batch, groups * out_group, out_height, out_width)
        As of `conv2d`.

    Notes
    -----
    Sizes: ``height >= 1``, ``width >= 1``, ``kernel_height >= 1``, ``kernel_width >= 1``.

    F is the Fourier transform over an array of the padded input's size, in which the taps of w and the positions of
    :math:`\bar y` lie dilation and stride apart, with zeros between. A star is the complex conjugate: without it the kernel
    would be flipped.

    .. math::

        F y_{b,o} = \sum_c (F w_{o,c})^*\, F x_{b,c}, \qquad
        F \bar x_{b,c} = \sum_o F w_{o,c}\, F \bar y_{b,o}, \quad
        F \bar w_{o,c} = \sum_b (F \bar y_{b,o})^*\, F x_{b,c}

    References
    ----------
    .. [1] Mathieu, Henaff, LeCun, "Fast Training of Convolutional Networks through FFTs", ICLR 2014. arXiv:1312.5851.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.conv2d_fft(np.ones((1, 1, 3, 3)), np.ones((1, 1, 2, 2)))[0, 0].round(12)
    array([[4., 4.],
           [4., 4.]])
    """
    return convolve(by_spectra, *args, **kwargs)
