"""Mechanisms that exact mode computes otherwise than their bodies do, with the same values.

The bodies of `refattn.erf` and `refattn.erfc` stop at the digits of an 80-bit longdouble; transforms of Fourier and Winograd are
ways to a convolution, which is computed as stated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refattn._core import Array, Grads, Pullback
from refattn._core.mechanism import with_vjp
from refattn.convolution import conv2d, conv2d_fft, conv2d_winograd
from refattn.exact.error_function import erf_and_complement, slope
from refattn.exact.expansion import Expansion, expansion
from refattn.primitives.erf import erf, erfc


def _expanded(x: Array) -> Expansion:
    return x if isinstance(x, Expansion) else expansion(x, 2)


def _erf(x: Array) -> tuple[Array, Pullback]:
    z = _expanded(x)

    def pullback(dy: Array) -> Grads:
        return {"x": slope(z) * dy}

    return erf_and_complement(z)[0], pullback


def _erfc(x: Array) -> tuple[Array, Pullback]:
    z = _expanded(x)

    def pullback(dy: Array) -> Grads:
        return {"x": -slope(z) * dy}

    return erf_and_complement(z)[1], pullback


def _conv2d(x: Array, weight: Array, bias: Array | None = None, *, tile: int = 4, **options: Any) -> tuple[Array, Pullback]:
    return conv2d.vjp(x, weight, bias, **options)


BY_DEFINITION: Mapping[str, Any] = {
    "erf": with_vjp(erf.spec, _erf),
    "erfc": with_vjp(erfc.spec, _erfc),
    "conv2d_fft": with_vjp(conv2d_fft.spec, _conv2d),
    "conv2d_winograd": with_vjp(conv2d_winograd.spec, _conv2d),
}
