"""Write docs/exactness.md: what plain float64 promises and does, and what `refattn.exact` promises, does and costs.

Run as ``python -m docs.exactness`` in a clone, with the extra `test` installed; it takes a few minutes.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import refattn
from refattn.exact.evaluation import COMPONENTS

PAGE = Path(__file__).with_suffix(".md")
UNIT = 2.0**-53
MAGNITUDES = (1.0, 20.0, 1e3, 1e5)
LENGTHS = (64, 1024)
KERNELS = ((4, 3), (32, 3), (64, 7))
HEADS = 100
CONVOLUTIONS = 30
SPREADS = (0, 30, 200)

INTRODUCTION = """\
# How exact the reference is

u is 2<sup>-53</sup>, half of float64's relative spacing. The figures below were measured once, on one machine; `python -m docs.exactness`
measures them again, and writes this page. The promises are derived, and hold everywhere.

## Plain float64

An output of attention is a sum of weights times values, in which values of both signs cancel. Its error is small beside
the sum of `p |v|`, and not beside itself: no order of operations changes that. So the promise is, for each element,

    |output - exact| <= (2 (head_dim + 5) A + 2 key_len + 10) u sum_j p_j |v_j|,    A = max_j scale sum_c |q_c k_jc|

while `head_dim A u` is far below 1. The exponents, of which all come from a dot product of head_dim terms, a scale and a difference, err by
`(head_dim + 5) u A` at most, which moves a weight by at most twice as much; an exponential errs by 4 u at most (NumPy's own tests
allow it no more), in a weight and in the sum that it is divided by, the sums over keys by key_len u each, and the division by u.

"""

AFTER_ATTENTION = """\

Scores are a number of this magnitude for each query, and differ by about 1 from key to key: what they err by, which grows with them, moves
all weights. The columns hold the worst of 32 queries and 32 channels, with head_dim 64. A unit in the last place (ulp) is that of
the output itself, so cancellation makes an error as many of them as it likes.

A convolution is a sum of n products, one for each tap and input channel, and a bias. In any order of summation

    |output - exact| <= (n + 1) u (sum |w x| + |bias|)

"""

EXACT = """\

## `refattn.exact`

    y = refattn.exact.evaluate(refattn.scaled_dot_product_attention, query=q, key=k, value=v)
    y, pullback = refattn.exact.vjp(refattn.conv2d, x=x, weight=w)
    with refattn.exact.arithmetic(components=2): ...

evaluates any mechanism, and its gradients, in sums of several float64, and rounds once at the end. Arguments and cotangents count as exact
numbers. It promises

- **0.51 ulp**: each element of an output or gradient of a softmax attention or a convolution is within 0.51 units in the last place of the
  exact value, or within 2<sup>-1022</sup> of it where that is more. Every number carries a bound of its error, from the digits that each
  operation dropped; where a result's bound is more than 1/128 of its last place, the call is made again with 4 components in place of 2, and
  then 8. What 8 components cannot tell from 0, and is below 2<sup>-300</sup> of the largest element beside it (or of 1), is 0; if neither
  holds, the call is an `ArithmeticError`, and not a wrong number. The same bound holds for all other mechanisms, for what their bodies state
  with the float64 options that they are given; a comparison (a maximum, a rectifier's side) goes by the computed numbers, and so does its branch.
- **The same bits on every machine**: nothing but `+ - * / sqrt`, comparisons, rounding to whole numbers and integer operations is asked of the
  processor, all of which IEEE 754 fixes to the last bit. Exponentials, logarithms, tanh, sine, cosine and erf are made of these. Sums and products
  of matrices add halves to halves in an order that shapes alone decide, element by element: no BLAS, and no sum of NumPy's, whose order depends on
  strides and instruction sets. Thread counts have nothing to act on. Tests compare hashes of results between processes in which NumPy and
  OpenBLAS take the processor for another.

`longdouble` is another format on another machine, and is refused. `erf` and `erfc` are computed by series of their own, since their bodies
stop at 20 digits; `conv2d_fft` and `conv2d_winograd` are computed as the `conv2d` that they are ways to.

Measured against mpmath, and against fractions for convolutions; all gradients, of every option that has one, included:

"""

COST = """\

What it costs, for attention of 64 queries to 64 keys, head_dim and value_dim 32, on one core of a server; a gradient that is 0 by
mathematics, as that of a bias of the keys is, takes all three:

"""


def main() -> None:
    """Measure, and write the page."""
    PAGE.write_text(page(list(measured())), "utf-8")


def measured() -> Iterator[str]:
    """The cells of the tables that differ from machine to machine, row after row."""
    for magnitude in MAGNITUDES:
        for length in LENGTHS:
            yield from attention_error(magnitude, length, 32)
    for channels, kernel in KERNELS:
        yield from convolution_error(channels, kernel)
    yield from exact_errors()
    for seconds in costs():
        yield f"{seconds:.2g}"


def attention_error(magnitude: float, length: int, queries: int) -> tuple[str, str, str]:
    """The worst element in its own last places and in u sum p |v|, and the largest share of the promise."""
    random = np.random.default_rng(0)
    root = np.sqrt(magnitude)
    query = root * random.normal(size=(1, queries, 64))
    key = root * random.normal(size=(1, 1, 64)) + random.normal(size=(1, length, 64)) / root
    value = random.normal(size=(1, length, 32))
    exact = refattn.exact.evaluate(refattn.scaled_dot_product_attention_with_weights, query=query, key=key, value=value)
    error = np.abs(refattn.scaled_dot_product_attention(query, key, value) - exact.output)
    unit = UNIT * (exact.weights @ np.abs(value))
    largest = (np.abs(query) @ np.abs(key).swapaxes(-1, -2)).max(axis=-1, keepdims=True) / np.sqrt(64)
    promise = (2 * (64 + 5) * largest + 2 * length + 10) * unit
    return f"{(error / np.spacing(np.abs(exact.output))).max():.0f}", f"{(error / unit).max():.2g}", f"{(error / promise).max():.1g}"


def convolution_error(channels: int, kernel: int) -> tuple[str, str, str]:
    """As `attention_error`, in u (sum |w x| + |bias|)."""
    random = np.random.default_rng(0)
    x, weight, bias = random.normal(size=(1, channels, 12, 12)), random.normal(size=(8, channels, kernel, kernel)), random.normal(size=8)
    exact = refattn.exact.evaluate(refattn.conv2d, x=x, weight=weight, bias=bias)
    error = np.abs(refattn.conv2d(x, weight, bias) - exact)
    unit = UNIT * refattn.conv2d(np.abs(x), np.abs(weight), np.abs(bias))
    promise = (channels * kernel**2 + 1) * unit
    return f"{(error / np.spacing(np.abs(exact))).max():.0f}", f"{(error / unit).max():.2g}", f"{(error / promise).max():.1g}"


def exact_errors() -> Iterator[str]:
    """The worst distances of exact mode, in last places."""
    from tests.test_exact import CONVOLUTIONS as OPTIONS  # noqa: PLC0415  # the tests read this module too
    from tests.test_exact import worst_of_attention, worst_of_convolution  # noqa: PLC0415

    for magnitude in MAGNITUDES:
        yield f"{worst_of_attention(np.random.default_rng(1), HEADS, magnitude):.4f}"
    for spread in SPREADS:
        runs = (worst_of_convolution(np.random.default_rng(seed), OPTIONS[seed % len(OPTIONS)], spread) for seed in range(CONVOLUTIONS))
        yield f"{max(runs):.4f}"


def costs() -> Iterator[float]:
    """Processor seconds for output and gradients: of plain float64, and of each number of components."""
    random = np.random.default_rng(0)
    arrays = [random.normal(size=(1, 64, 32)) for _ in range(4)]

    def call() -> Any:
        output, pullback = refattn.scaled_dot_product_attention.vjp(*arrays[:3])
        return output, pullback(arrays[3])

    yield least_seconds(call)
    for components in COMPONENTS:
        with refattn.exact.arithmetic(components):
            yield least_seconds(call)


def least_seconds(call: Callable[[], Any]) -> float:
    """Of three calls, in processor seconds."""
    times = []
    for _ in range(3):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


def page(cells: Iterable[str]) -> str:
    """The whole page, with these cells as what was measured."""
    left = iter(cells)
    attention = [(f"{m:g}", str(n), next(left), next(left), next(left)) for m in MAGNITUDES for n in LENGTHS]
    convolution = [(str(c * k * k), next(left), next(left), next(left)) for c, k in KERNELS]
    exact = [("attention", f"scores of {m:g}", f"{HEADS} heads", next(left)) for m in MAGNITUDES]
    exact += [("conv2d", f"exponents within {s}", f"{CONVOLUTIONS} calls", next(left)) for s in SPREADS]
    cost = [(name, next(left)) for name in ("float64", *(f"{n} components" for n in COMPONENTS))]
    share = "largest share of the promise"
    return "".join(
        (
            INTRODUCTION,
            table(("scores", "key_len", "worst, ulp", "worst, u sum p abs(v)", share), attention),
            AFTER_ATTENTION,
            table(("n", "worst, ulp", "worst, u (sum abs(w x) + abs(b))", share), convolution),
            EXACT,
            table(("mechanism", "inputs", "cases", "worst, ulp"), exact),
            COST,
            table(("arithmetic", "processor seconds, forward and backward"), cost),
        )
    )


def measured_cells(text: str) -> list[str]:
    """The cells of a page that were measured."""
    found = []
    for line in text.splitlines():
        cells = [c.strip() for c in line.strip("|").split("|")]
        if line.startswith("|") and not re.match(r"\| *(-|scores|n |mechanism|arithmetic)", line):
            found += cells[-3:] if len(cells) == 5 or cells[0].isdigit() else cells[-1:]
    return found


def table(heading: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """In Markdown."""
    widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
    lines = [heading, tuple("-" * (w - 1) + ":" for w in widths), *rows]
    return "".join(f"| {' | '.join(c.rjust(w) for c, w in zip(line, widths, strict=True))} |\n" for line in lines)


if __name__ == "__main__":
    main()
