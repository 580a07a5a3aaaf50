"""Softmax, its logarithm, and the log-sum-exp, over the last axis."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from refattn._core import Array, Grads, Pullback, Random, Sample, mechanism


def _samples(random: Random) -> Iterator[Sample]:
    yield Sample("plain", {"x": random.normal((2, 3, 5))})
    yield Sample("far from zero", {"x": 700 + 100 * random.normal((2, 4))})
    yield Sample("one class", {"x": random.normal((3, 1))})


def _shifted(x: Array) -> tuple[Array, Array]:
    """The scores less their largest, which is returned too (0 where a row has nothing), so that no exponential overflows."""
    largest = x.max(axis=-1, keepdims=True, initial=-np.inf)
    shift = np.where(np.isneginf(largest), 0, largest)
    return x - shift, shift


@mechanism(tags={"weights"}, samples=_samples)
def softmax(x: Array) -> tuple[Array, Pullback]:
    r"""Normalised exponential of the last axis.

    Parameters
    ----------
    x : array, shape (..., classes)
        Scores.

    Returns
    -------
    array, shape (..., classes)
        Non-negative weights that sum to 1; zeros for a row that is entirely :math:`-\infty`.

    Notes
    -----
    .. math::

        y_i = \frac{e^{x_i}}{\sum_j e^{x_j}}, \qquad
        \bar x_i = y_i \Bigl(\bar y_i - \sum_j y_j \bar y_j\Bigr)

    References
    ----------
    .. [1] Bridle, "Probabilistic Interpretation of Feedforward Classification Network Outputs, with Relationships to Statistical
       Pattern Recognition", 1990.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.softmax(np.log([1.0, 2.0, 5.0]))
    array([0.125, 0.25 , 0.625])
    """
    shifted, _ = _shifted(x)
    exp = np.exp(shifted)
    total = exp.sum(axis=-1, keepdims=True)
    y = exp / np.where(total == 0, 1, total)

    def pullback(dy: Array) -> Grads:
        return {"x": y * (dy - (y * dy).sum(axis=-1, keepdims=True))}

    return y, pullback


@mechanism(samples=_samples)
def log_softmax(x: Array) -> tuple[Array, Pullback]:
    r"""Logarithm of the softmax of the last axis, without forming the softmax.

    Parameters
    ----------
    x : array, shape (..., classes)
        Scores.

    Returns
    -------
    array, shape (..., classes)
        Logarithms of the weights.

    Notes
    -----
    .. math::

        y_i = x_i - \log \sum_j e^{x_j}, \qquad
        \bar x_i = \bar y_i - e^{y_i} \sum_j \bar y_j

    References
    ----------
    .. [1] Blanchard, Higham, Higham, "Accurately Computing the Log-Sum-Exp and Softmax Functions", 2021: the exponent in eq. (1.5).

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.log_softmax(np.array([1000.0, 1000.0])) / np.log(2)
    array([-1., -1.])
    """
    shifted, _ = _shifted(x)
    total = np.exp(shifted).sum(axis=-1, keepdims=True)
    y = shifted - np.log(np.where(total == 0, 1, total))

    def pullback(dy: Array) -> Grads:
        return {"x": dy - np.exp(y) * dy.sum(axis=-1, keepdims=True)}

    return y, pullback


@mechanism(samples=_samples)
def logsumexp(x: Array) -> tuple[Array, Pullback]:
    r"""Logarithm of the sum of exponentials of the last axis.

    Parameters
    ----------
    x : array, shape (..., classes)
        Scores.

    Returns
    -------
    array, shape (...)
        Natural logarithm; :math:`-\infty` for a row that has nothing.

    Notes
    -----
    .. math::

        y = \log \sum_j e^{x_j}, \qquad \bar x_i = e^{x_i - y}\, \bar y

    References
    ----------
    .. [1] Blanchard, Higham, Higham, "Accurately Computing the Log-Sum-Exp and Softmax Functions", 2021, eq. (1.1).

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.logsumexp(np.full(8, 1000.0)).round(6)
    np.float64(1002.079442)
    """
    shifted, shift = _shifted(x)
    exp = np.exp(shifted)
    total = exp.sum(axis=-1)
    divisor = np.where(total == 0, 1, total)
    y = np.where(total == 0, -np.inf, shift[..., 0] + np.log(divisor))

    def pullback(dy: Array) -> Grads:
        return {"x": exp * (dy / divisor)[..., None]}

    return y, pullback
