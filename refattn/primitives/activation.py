"""Pointwise nonlinearities; none overflows, and each has its limits at plus and minus infinity."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, TypeAlias

import numpy as np

from refattn._core import Array, Grads, Pullback, Random, Sample, like, mechanism
from refattn.primitives.erf import PI, erfc

Approximation: TypeAlias = Literal["none", "tanh"]

CUBIC = 0.044715
"""The coefficient of the cubic in the tanh form of gelu."""


def _samples(random: Random) -> Iterator[Sample]:
    yield Sample("plain", {"x": random.normal((3, 4))})
    yield Sample("far from zero", {"x": 1000 * random.normal((2, 4))})


@mechanism(samples=_samples)
def relu(x: Array) -> tuple[Array, Pullback]:
    r"""Rectifier: the positive part.

    Parameters
    ----------
    x : array, shape (...)
        Input.

    Returns
    -------
    array, shape (...)
        Output; NaN stays NaN.

    Notes
    -----
    The subgradient at 0 is 0.

    .. math::

        y = \max(x, 0), \qquad \bar x = [x > 0]\, \bar y

    References
    ----------
    .. [1] Nair, Hinton, "Rectified Linear Units Improve Restricted Boltzmann Machines", ICML 2010.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.relu(np.array([-1.0, 2.0]))
    array([0., 2.])
    """
    return np.maximum(x, 0), lambda dy: {"x": np.where(x <= 0, 0, dy)}


@mechanism(samples=_samples)
def elu_plus_one(x: Array) -> tuple[Array, Pullback]:
    r"""Exponential linear unit, raised by 1: positive everywhere.

    Parameters
    ----------
    x : array, shape (...)
        Input.

    Returns
    -------
    array, shape (...)
        Output.

    Notes
    -----
    .. math::

        y = \begin{cases} x + 1 & x > 0 \\ e^x & x \le 0 \end{cases}, \qquad \bar x = \min(y, 1)\, \bar y

    References
    ----------
    .. [1] Katharopoulos et al., "Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention", ICML 2020: the
       feature map. arXiv:2006.16236.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.elu_plus_one(np.array([-np.inf, 0.0, 2.0]))
    array([0., 1., 3.])
    """
    y = np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))
    return y, lambda dy: {"x": np.minimum(y, 1) * dy}


@mechanism(samples=_samples)
def sigmoid(x: Array) -> tuple[Array, Pullback]:
    r"""Logistic function.

    Parameters
    ----------
    x : array, shape (...)
        Input.

    Returns
    -------
    array, shape (...)
        Between 0 and 1.

    Notes
    -----
    .. math::

        y = \sigma(x) = \frac{1}{1 + e^{-x}}, \qquad \bar x = \sigma(x)\, \sigma(-x)\, \bar y

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.sigmoid(np.array([-1000.0, 0.0, 1000.0]))
    array([0. , 0.5, 1. ])
    """
    exp = np.exp(-np.abs(x))
    return np.where(x < 0, exp, 1) / (1 + exp), lambda dy: {"x": exp / (1 + exp) ** 2 * dy}


@mechanism(samples=_samples)
def tanh(x: Array) -> tuple[Array, Pullback]:
    r"""Hyperbolic tangent.

    Parameters
    ----------
    x : array, shape (...)
        Input.

    Returns
    -------
    array, shape (...)
        Between -1 and 1.

    Notes
    -----
    The derivative is written so that it does not cancel where the output is near 1.

    .. math::

        y = \tanh(x), \qquad \bar x = (1 - y^2)\, \bar y = \frac{4 e^{-2|x|}}{(1 + e^{-2|x|})^2}\, \bar y

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.tanh(np.array([-1000.0, 0.0, 1000.0]))
    array([-1.,  0.,  1.])
    """
    exp = np.exp(-2 * np.abs(x))
    return np.tanh(x), lambda dy: {"x": 4 * exp / (1 + exp) ** 2 * dy}


def _softplus_samples(random: Random) -> Iterator[Sample]:
    yield from _samples(random)
    yield Sample("steep", {"x": random.normal((3, 4)), "beta": 4.0})


@mechanism(samples=_softplus_samples)
def softplus(x: Array, *, beta: float = 1.0) -> tuple[Array, Pullback]:
    r"""Smooth rectifier.

    Parameters
    ----------
    x : array, shape (...)
        Input.
    beta : positive float, optional
        The larger, the nearer to the rectifier.

    Returns
    -------
    array, shape (...)
        Positive output.

    Notes
    -----
    Nothing is replaced by its asymptote: PyTorch returns x itself where :math:`\beta x > 20`.

    .. math::

        y = \frac{\log(1 + e^{\beta x})}{\beta}, \qquad \bar x = \sigma(\beta x)\, \bar y

    References
    ----------
    .. [1] Dugas et al., "Incorporating Second-Order Functional Knowledge for Better Option Pricing", NIPS 2000.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.softplus(np.array([-1000.0, 1000.0]))
    array([   0., 1000.])
    """
    steep = beta * x
    y = (np.maximum(steep, 0) + np.log1p(np.exp(-np.abs(steep)))) / beta
    return y, lambda dy: {"x": sigmoid(steep) * dy}


def _gated(x: Array, gate: Array, gate_pullback: Callable[[Array], Array]) -> tuple[Array, Pullback]:
    """An input times a gate that depends on it; the gate wins at minus infinity."""
    finite = np.where(np.isfinite(x), x, 0)

    def pullback(dy: Array) -> Grads:
        return {"x": gate * dy + gate_pullback(finite * dy)}

    return np.where(np.isneginf(x), 0, x) * gate, pullback


@mechanism(samples=_samples)
def silu(x: Array) -> tuple[Array, Pullback]:
    r"""Sigmoid-weighted linear unit, also called swish.

    Parameters
    ----------
    x : array, shape (...)
        Input.

    Returns
    -------
    array, shape (...)
        Output.

    Notes
    -----
    .. math::

        y = x\, \sigma(x), \qquad \bar x = \sigma(x)\, (1 + x\, \sigma(-x))\, \bar y

    References
    ----------
    .. [1] Elfwing, Uchibe, Doya, "Sigmoid-Weighted Linear Units for Neural Network Function Approximation in Reinforcement
       Learning", 2017. arXiv:1702.03118.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.silu(np.array([-np.inf, 0.0, 1000.0]))
    array([   0.,    0., 1000.])
    """
    gate, gate_pullback = sigmoid.vjp(x)
    return _gated(x, gate, lambda d_gate: gate_pullback(d_gate)["x"])


def _gelu_samples(random: Random) -> Iterator[Sample]:
    yield from _samples(random)
    yield Sample("tanh form", {"x": random.normal((3, 4)), "approximate": "tanh"})
    yield Sample("tanh form far from zero", {"x": 1000 * random.normal((2, 4)), "approximate": "tanh"})


@mechanism(samples=_gelu_samples)
def gelu(x: Array, *, approximate: Approximation = "none") -> tuple[Array, Pullback]:
    r"""Gaussian error linear unit: an input times the probability that a normal variable is smaller.

    Parameters
    ----------
    x : array, shape (...)
        Input.
    approximate : {"none", "tanh"}, optional
        The normal distribution function itself, or its tanh approximation.

    Returns
    -------
    array, shape (...)
        Output; its negative tail keeps its digits, where ``1 + erf`` and ``1 + tanh`` would cancel.

    Notes
    -----
    .. math::

        y = x\, \Phi(x), \quad \Phi(x) = \tfrac12 \operatorname{erfc}(-x / \sqrt 2), \qquad
        \bar x = \Bigl(\Phi(x) + x \frac{e^{-x^2 / 2}}{\sqrt{2 \pi}}\Bigr) \bar y

    .. math::

        \Phi(x) \approx \tfrac12 (1 + \tanh u) = \sigma(2 u), \quad u = \sqrt{2 / \pi}\, (x + 0.044715\, x^3)

    References
    ----------
    .. [1] Hendrycks, Gimpel, "Gaussian Error Linear Units (GELUs)", 2016, section 2. arXiv:1606.08415.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.gelu(np.array([-np.inf, 0.0, 1000.0]))
    array([   0.,    0., 1000.])
    """
    if approximate == "none":
        root = np.sqrt(like(x, 0.5))
        tail, tail_pullback = erfc.vjp(-root * x)
        return _gated(x, tail / 2, lambda d_gate: -root * tail_pullback(d_gate / 2)["x"])
    slope = np.sqrt(8 / like(x, PI))
    gate, gate_pullback = sigmoid.vjp(slope * (x + CUBIC * x**3))
    finite = np.where(np.isfinite(x), x, 0)
    return _gated(x, gate, lambda d_gate: slope * (1 + 3 * CUBIC * finite**2) * gate_pullback(d_gate)["x"])
