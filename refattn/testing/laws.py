"""Is this kernel right at a million tokens? The sums that must agree over all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from refattn._core import Mechanism
from refattn.testing.candidates import refuse_what_is_no_mechanism
from refattn.testing.long import convolution_laws, metamorphic
from refattn.testing.long.arrays import named
from refattn.testing.long.attention_laws import AttentionLaws
from refattn.testing.long.conserved import fields, skipped
from refattn.testing.long.given import given, wrong_shapes
from refattn.testing.long.parts import DENSE, PACKED, long_call
from refattn.testing.precision import Format, named_format
from refattn.testing.report import Report, Result

Found = Iterator[tuple[str, dict[str, Any]]]


def check_laws(
    got: Any,
    mechanism: Mechanism[..., Any],
    inputs: Mapping[str, Any],
    *,
    gradients: Mapping[str, Any] | None = None,
    cotangents: Any = None,
    dtype: Any = "float32",
    lse: Any = None,
    kernel: Callable[..., Any] | None = None,
) -> Report:
    """Hold outputs and gradients over very many tokens to the laws that connect them, in time proportional to their size.

    Which laws these are, where they hold, how far an honest kernel may be off, and what they cannot see stands in docs/long.md.

    Parameters
    ----------
    got : array or tuple of array
        The outputs.
    mechanism : mechanism
        Softmax attention, dense or packed, with or without log-sum-exp; a linear attention or delta rule, of which `kernel` is
        needed; or a convolution of `x` with `weight`.
    inputs : mapping
        The arguments by name, as the kernel saw them; as for `check_rows`.
    gradients : mapping or None, optional
        Gradients by name.
    cotangents : array or tuple of array or None, optional
        What the gradients were computed from; needed with `gradients`.
    dtype : str or dtype, optional
        The precision of the kernel.
    lse : array or None, optional
        The kernel's natural log-sum-exp of every row, where the outputs do not contain it. Laws that concern sinks, masks and
        biases need it.
    kernel : callable or None, optional
        The kernel, called with NumPy arrays by the mechanism's names, for the laws about what it makes of other inputs: it is called
        two to four times more.

    Returns
    -------
    Report
        One result for each law, with what it sees; those that do not hold for this call, or lack an argument, are skipped.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> query, key, value, d = (np.sin(np.arange(4000.0) * k).reshape(1, 1000, 4) for k in (1, 2, 3, 5))
    >>> inputs = {"query": query, "key": key, "value": value, "causal": True}
    >>> output, pullback = refattn.scaled_dot_product_attention.vjp(**inputs)
    >>> gradients = dict(pullback(d))
    >>> check = refattn.testing.check_laws
    >>> check(output, refattn.scaled_dot_product_attention, inputs, gradients=gradients, cotangents=d).passed
    True
    >>> gradients["value"][0, 500] = 0
    >>> [r.what for r in check(output, refattn.scaled_dot_product_attention, inputs, gradients=gradients, cotangents=d).failures]
    ['sum of d_value = sum of d_output']
    """
    refuse_what_is_no_mechanism(mechanism)
    if kernel is not None and not callable(kernel):
        raise TypeError(f"kernel is a {type(kernel).__name__}, but must be callable")
    call, target, name = named("inputs", inputs), named_format(dtype), mechanism.spec.name
    if name in (*DENSE, *PACKED):
        found = _attention(got, mechanism, call, gradients, cotangents, target, lse, kernel)
    elif convolution_laws.is_bilinear(mechanism):
        found = _convolution(got, mechanism, call, gradients or {}, cotangents, target, kernel)
    elif mechanism.spec.family == "linear":
        found = _linear(mechanism, call, target, kernel)
    else:
        raise ValueError(
            f"mechanism is {name}, of which no laws are known: there are some of softmax and linear attention and of convolution"
        )
    return Report([Result(name, "laws", what, target.name, **made) for what, made in found])


def _attention(
    got: Any,
    mechanism: Mechanism[..., Any],
    inputs: Mapping[str, Any],
    gradients: Mapping[str, Any] | None,
    cotangents: Any,
    target: Format,
    lse: Any,
    kernel: Callable[..., Any] | None,
) -> Found:
    call, have = long_call(mechanism, inputs), given(mechanism, got, gradients, cotangents, lse)
    wrong = list(wrong_shapes(call, have))
    yield from wrong
    if wrong:
        return
    laws = AttentionLaws(call, have, target)
    for what, law in laws.laws():
        yield what, skipped(law) if isinstance(law, str) else fields(law)
    if kernel is not None:
        sums = laws.sums
        known = call.options.get("keep") is None and (have.lse is not None or not (sums.hides or call.sinks is not None))
        mass, slack = sums.masses() if known else (None, None)
        yield from metamorphic.attention(kernel, inputs, sums.last, mass, slack, target)


def _convolution(
    got: Any,
    mechanism: Mechanism[..., Any],
    inputs: Mapping[str, Any],
    gradients: Mapping[str, Any],
    cotangents: Any,
    target: Format,
    kernel: Callable[..., Any] | None,
) -> Found:
    ds = cotangents[0] if isinstance(cotangents, (tuple, list)) else cotangents
    for what, law in convolution_laws.laws(mechanism, inputs, got, ds, named("gradients", gradients), target):
        yield what, skipped(law) if isinstance(law, str) else fields(law)
    if kernel is not None:
        yield from metamorphic.convolution(mechanism, kernel, inputs, target)


def _linear(mechanism: Mechanism[..., Any], inputs: Mapping[str, Any], target: Format, kernel: Callable[..., Any] | None) -> Found:
    if kernel is None:
        yield "all", skipped("kernel is None: the laws of a linear attention are about what it makes of other inputs")
        return
    yield from metamorphic.linear(mechanism, kernel, inputs, target)
