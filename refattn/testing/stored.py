"""What kernels compute otherwise than the reference, with more error: budgets are measured on these forms.

The reference keeps its digits where it can. The derivative of a sigmoid is y (1 - y), of a tanh 1 - y**2, and so on: kernels form
them from the output that the forward pass has stored, rounded to its format, which errs by u |dy| however small the derivative
is where the output is near 1. And gelu is x (1 + erf) / 2 in most libraries, which errs by e |x| however small its negative tail. Batch normalisation with known statistics is
one factor and one shift in inference, where what is left after the shift is as small as it happens to be.

Where a rectifier's input is within a rounding of 0, or two numbers of a maximum within a rounding of each other, kernels are free to
choose, and the gradient jumps by what hangs on the choice. No multiple of the errors that some runs have shown bounds that, unless one
of them has chosen otherwise. So pullbacks of `CHOOSING` choose by inputs whose errors are `FURTHER` times as large: with a margin of
z standard deviations a kernel chooses otherwise with probability P = Phi(-z), and none of 16 runs does with Phi(z / 5)**16; the product
is below 1 in 30,000 for every z. One run is enough: 5 standard deviations of 16 runs, one of which errs by d, are 1.25 d.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from refattn._core import Array, Grads
from refattn._core.mechanism import using
from refattn.primitives.activation import CUBIC, elu_plus_one, gelu, relu, sigmoid, silu, softplus, tanh
from refattn.primitives.erf import erf, erfc
from refattn.primitives.normalization import batch_norm
from refattn.primitives.reductions import max_over
from refattn.primitives.softmax import log_softmax, logsumexp, softmax

Form = Callable[[Array, Array, Array], Array]
"""From the input, the stored output and its cotangent to the gradient."""


class Storing(Protocol):
    """An arithmetic that says what comes back from memory."""

    def kept(self, y: Any) -> Array:
        """A stored output, as it is read back."""
        ...

    def stored(self, x: Any) -> Any:
        """As read back from memory."""
        ...

    def given(self, x: Any) -> Array:
        """A number that is exact, in this arithmetic."""
        ...

    def turn(self) -> None:
        """The backward pass begins."""
        ...

    def next_choice(self) -> Array | None:
        """The exact input of the next function that chooses; None where it is not known."""
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
CHOOSING = (relu, max_over)
"""Functions that are linear but for a choice, on which the derivative depends; pooling is made of the second."""
FURTHER = 5.0


class FromOutput:
    """A mechanism whose pullback reads its output."""

    def __init__(self, mechanism: Any, form: Form, arithmetic: Storing) -> None:
        self.mechanism, self.form, self.arithmetic = mechanism, form, arithmetic

    def vjp(self, x: Any) -> tuple[Array, Callable[[Array], Grads]]:
        """The output, and the pullback."""
        y, _ = self.mechanism.vjp(x)
        stored = self.arithmetic.kept(y)

        def pullback(dy: Array) -> Grads:
            self.arithmetic.turn()
            return {"x": self.form(self.arithmetic.given(x), stored, self.arithmetic.given(dy))}

        return y, pullback


class CancellingGelu:
    """Gelu by 1 + erf or 1 + tanh, which nothing stores."""

    def __init__(self, arithmetic: Storing) -> None:
        self.arithmetic = arithmetic

    def vjp(self, x: Any, *, approximate: str = "none") -> tuple[Array, Callable[[Array], Grads]]:
        """The output, and the pullback."""
        plain = np.asarray(x)
        if approximate == "none":
            inner, slope = erf(plain * math.sqrt(0.5)), math.sqrt(2 / math.pi) * np.exp(-(plain**2) / 2)
        else:
            root = math.sqrt(2 / math.pi)
            inner, slope = np.tanh(root * (plain + CUBIC * plain**3)), root * (1 + 3 * CUBIC * plain**2)
        finite = np.where(np.isneginf(plain), 0, plain)

        def pullback(dy: Array) -> Grads:
            self.arithmetic.turn()
            near = self.arithmetic.given(inner)
            rise = self.arithmetic.given(slope) * ((1 - near * near) if approximate == "tanh" else 1)
            return {"x": ((1 + near) + self.arithmetic.given(finite) * rise) / 2 * self.arithmetic.given(dy)}

        return self.arithmetic.given(finite) * ((1 + self.arithmetic.given(inner)) / 2), pullback


class FoldedBatchNorm:
    """Normalisation with known statistics as one factor and one shift for each channel, both stored."""

    def __init__(self, arithmetic: Storing) -> None:
        self.arithmetic = arithmetic

    def vjp(
        self, x: Any, running_mean: Any, running_var: Any, scale: Any = None, shift: Any = None, *, eps: float = 1e-5
    ) -> tuple[Array, Callable[[Array], Grads]]:
        """The output, and the reference's pullback."""
        y, pullback = batch_norm.vjp(x, running_mean, running_var, scale, shift, eps=eps)
        wide = (-1, *(1,) * (np.ndim(x) - 2))
        factor = np.asarray(1.0 if scale is None else scale) / np.sqrt(np.asarray(running_var) + eps)
        moved = np.asarray(0.0 if shift is None else shift) - np.asarray(running_mean) * factor
        errors = (np.reshape(self.arithmetic.stored(a) - a, wide) for a in (factor, moved))
        return y + next(errors) * np.asarray(x) + next(errors), pullback


class Choosing:
    """A function whose pullback chooses by an input that is further from the exact one."""

    def __init__(self, mechanism: Any, arithmetic: Storing) -> None:
        self.mechanism, self.arithmetic = mechanism, arithmetic

    def vjp(self, x: Any, **options: Any) -> tuple[Array, Callable[[Array], Grads]]:
        """The output of this input, and the pullback of the other."""
        y, pullback = self.mechanism.vjp(x, **options)
        plain, exact = np.asarray(x), self.arithmetic.next_choice()
        if exact is None or exact.shape != plain.shape or np.array_equal(exact, plain):
            return y, pullback
        with np.errstate(invalid="ignore"):
            further = exact + FURTHER * (plain - exact)
        return y, self.mechanism.vjp(np.where(np.isfinite(further), further, plain), **options)[1]


class Noted:
    """A function whose inputs are noted."""

    def __init__(self, mechanism: Any, inputs: list[Array]) -> None:
        self.mechanism, self.inputs = mechanism, inputs

    def vjp(self, x: Any, **options: Any) -> tuple[Array, Callable[[Array], Grads]]:
        """As the function itself does."""
        self.inputs.append(np.array(x))
        return self.mechanism.vjp(x, **options)


def choices(mechanism: Any, arguments: Mapping[str, Any]) -> Sequence[Array]:
    """The inputs of all functions that choose, in the order of their calls."""
    inputs: list[Array] = []
    with using(**{m.spec.name: Noted(m, inputs) for m in CHOOSING}):
        mechanism.vjp(**arguments)
    return inputs


def stored_forms(arithmetic: Storing) -> dict[str, Any]:
    """By the names of the mechanisms that they replace, for `refattn._core.mechanism.using`."""
    forms: dict[str, Any] = {m.spec.name: FromOutput(m, form, arithmetic) for m, form in FORMS.items()}
    forms |= {m.spec.name: Choosing(m, arithmetic) for m in CHOOSING}
    return {**forms, "gelu": CancellingGelu(arithmetic), "batch_norm": FoldedBatchNorm(arithmetic)}
