"""Pullbacks that read the output which the forward pass has stored, in place of the input.

The derivative of a sigmoid is y (1 - y), of a tanh 1 - y**2, and so on: kernels form them from the output, rounded to its format.
Where the output is near 1 that cancels, and errs by u |dy| however small the derivative is. The reference's own pullbacks
keep their digits there, so budgets are measured on these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from refattn._core import Array, Grads
from refattn.primitives.activation import elu_plus_one, gelu, relu, sigmoid, silu, softplus, tanh
from refattn.primitives.erf import erf, erfc
from refattn.primitives.softmax import log_softmax, logsumexp, softmax

Form = Callable[[Array, Array, Array], Array]
"""From the input, the stored output and its cotangent to the gradient."""


class Storing(Protocol):
    """An arithmetic that says what comes back from memory."""

    def keep(self, y: Any) -> Any:
        """A stored output, as it is read back."""
        ...


def _softmax(x: Array, y: Array, dy: Array) -> Array:
    return y * (dy - (y * dy).sum(axis=-1, keepdims=True))


def _log_softmax(x: Array, y: Array, dy: Array) -> Array:
    return dy - np.exp(y) * dy.sum(axis=-1, keepdims=True)


def _logsumexp(x: Array, y: Array, dy: Array) -> Array:
    shifted = x - np.where(np.isneginf(y), 0, y)[..., None]
    return np.exp(shifted) * dy[..., None]


FORMS: Mapping[Any, Form] = {
    sigmoid: lambda x, y, dy: y * (1 - y) * dy,
    tanh: lambda x, y, dy: (1 - y * y) * dy,
    softmax: _softmax,
    log_softmax: _log_softmax,
    logsumexp: _logsumexp,
}


POINTWISE = frozenset(m.spec.name for m in (elu_plus_one, erf, erfc, gelu, relu, sigmoid, silu, softplus, tanh))
"""Functions of single numbers: a kernel keeps all that they compute in registers."""


class FromOutput:
    """A mechanism whose pullback reads its output."""

    def __init__(self, mechanism: Any, form: Form, arithmetic: Storing) -> None:
        self.mechanism, self.form, self.arithmetic = mechanism, form, arithmetic

    def vjp(self, x: Any) -> tuple[Array, Callable[[Array], Grads]]:
        """The output, and the pullback."""
        y, _ = self.mechanism.vjp(x)
        stored = self.arithmetic.keep(y)
        return y, lambda dy: {"x": self.form(x, stored, dy)}


def stored_forms(arithmetic: Storing) -> dict[str, FromOutput]:
    """By the names of the mechanisms that they replace, for `refattn._core.mechanism.using`."""
    return {m.spec.name: FromOutput(m, form, arithmetic) for m, form in FORMS.items()}
