"""The backward kernels under the emulator against the reference's pullback: emulated, not run on a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

import refattn
from refattn_numba.cuda.configurations import choose
from refattn_numba.cuda.kernels import backward_keys, backward_queries
from tests.cuda.calls import Band, Kernels, backward, backward_kernels, forward, numbers, read_only, stored
from tests.cuda.cases import PROBLEMS, ROUNDING, Problem, problem
from tests.cuda.test_forward import small


def small_backward(element: Any, size: int, *, has_options: bool, parts: int = 1) -> Kernels:
    """Kernels with the shipped ones' source and small tiles, so that a case has several."""
    return backward_kernels(
        backward_queries.Config(element, size, 16, 2 // parts, parts, 32, 2, has_options),
        backward_keys.Config(element, size, 2 // parts, parts, 32, 2, has_options),
    )


def both(kernels: Kernels, case: Problem, *, seed: int = 5) -> tuple[dict[str, np.ndarray], Any]:
    """Cotangents by the kernels, and by the reference from the same cotangents of output and log-sum-exp."""
    rng = np.random.default_rng(seed)
    size = 64 if case.operands[0].shape[-1] > 32 else 32
    output, lse = forward(small(case.element, size, has_options=case.has_options), *case.operands, **case.options)
    d_output, d_lse = stored(rng.standard_normal(output.shape), case.element), rng.standard_normal(lse.shape).astype(np.float32)
    got = backward(kernels, *case.operands, output, lse, d_output, d_lse, **case.options)
    _, pullback = case.reference()
    return got, pullback(numbers(d_output), d_lse.astype(np.float64))


def compare(element: str, got: dict[str, np.ndarray], expected: Any) -> None:
    """Weights, their cotangents, output and result are rounded once each; sums of such errors stay below four of the largest result."""
    for name, x in got.items():
        largest = np.abs(expected[name][np.isfinite(expected[name])]).max(initial=1e-3)
        np.testing.assert_allclose(numbers(x), expected[name], rtol=0, atol=4 * ROUNDING[element] * largest, err_msg=name)


@pytest.mark.parametrize("name", PROBLEMS)
def test_backward(name: str, record_property: Any) -> None:
    case = problem(**PROBLEMS[name])
    record_property("emulated", "backward")
    kernels = small_backward(case.element, 64 if "64" in name else 32, has_options=case.has_options)
    got, expected = both(kernels, case)
    assert {"query", "key", "value"} <= set(got)
    compare(case.element, got, expected)


@pytest.mark.parametrize("element", ["bfloat16", "float32"])
def test_warps_that_share_columns(element: str, record_property: Any) -> None:
    record_property("emulated", "backward_keys")
    case = problem(element, heads=1, head_dim=64, query_len=40, key_len=30, causal="upper_left")
    compare(element, *both(small_backward(element, 64, has_options=False, parts=2), case))


@pytest.mark.parametrize(("element", "size"), [("bfloat16", 64), ("float32", 64)])
def test_shipped_kernels(element: Any, size: int, record_property: Any) -> None:
    case = problem(element, heads=1, head_dim=size, query_len=70, key_len=20, causal="lower_right")
    faces: Any = ("delta", "backward_queries", "backward_keys", "sinks", "sum_bias")
    kernels = Kernels(*(choose(face, element, size, size) for face in faces))
    record_property("emulated", kernels.keys.name)
    compare(element, *both(kernels, case))


@pytest.mark.parametrize("shape", [(1, 1, 40, 70), (2, 1, 1), (1, 40, 1), (2, 40, 70), (1, 1, 70)], ids=str)
def test_bias_of_every_shape(shape: tuple[int, ...]) -> None:
    """Its cotangent is summed over the axes along which it was broadcast."""
    case = problem("float32")
    bias = stored(np.random.default_rng(3).standard_normal(shape), "float32")
    case = case._replace(options={"bias": bias}, of_reference={"bias": numbers(bias)})
    compare("float32", *both(small_backward("float32", 32, has_options=True), case))


def test_packed_sequences() -> None:
    lengths, others = [5, 0, 33, 1, 16], [7, 4, 40, 0, 16]
    cu = tuple(np.cumsum([0, *n]).astype(np.int32) for n in (lengths, others))
    rng, element = np.random.default_rng(1), "float32"
    query, key, value = (stored(rng.standard_normal((1, h, n, 32)), element) for h, n in ((2, 55), (1, 67), (1, 67)))
    options: dict[str, Any] = {"band": Band(-20, 0, 1), "cu": cu}
    output, lse = forward(small(element, 32, has_options=False), query, key, value, **options)
    d_output = stored(rng.standard_normal(output.shape), element)
    got = backward(small_backward(element, 32, has_options=False), query, key, value, output, lse, d_output, **options)
    _, pullback = refattn.varlen_attention.vjp(
        *(numbers(x)[0] for x in (query, key, value)), *cu, causal=True, align="lower_right", window=(20, None)
    )
    expected = pullback(numbers(d_output)[0])
    compare(element, {name: x[0] for name, x in got.items()}, expected)


WRONG_LENGTHS = [[0, 9, 5, 20], [0, 5, 9, 50], [-7, 5, 9, 20], [3, -5, 90, -2], [0, 2**31 - 1, 0, 20], [20, 20, 0, 0]]


@pytest.mark.parametrize("wrong", WRONG_LENGTHS, ids=str)
@pytest.mark.parametrize("of_keys", [False, True])
def test_wrong_lengths_on_the_device_touch_nothing_outside(wrong: list[int], *, of_keys: bool, record_property: Any) -> None:
    """The emulator ends at an access outside of the arrays; what is in the results is not said."""
    right = np.array([0, 5, 9, 20], np.int32)
    cu = (right, np.array(wrong, np.int32)) if of_keys else (np.array(wrong, np.int32), right)
    rng, element = np.random.default_rng(1), "bfloat16"
    query, key, value = (stored(rng.standard_normal((1, 1, 20, 32)), element) for _ in range(3))
    options: dict[str, Any] = {"band": Band(-12, 3, 1), "cu": cu}
    kernel = small(element, 32, has_options=False)
    record_property("emulated", kernel.name)
    output, _ = forward(kernel, query, key, value, **options)
    assert output.shape == query.shape
    whole, ones = forward(kernel, query, key, value), stored(np.ones(query.shape), element)
    made = backward(small_backward(element, 32, has_options=False), query, key, value, *whole, ones, **options)
    assert {x.shape for x in made.values()} == {query.shape}


@pytest.mark.parametrize("element", ["bfloat16", "float32"])
@pytest.mark.parametrize("option", ["causal", "mask"])
def test_what_is_masked_reaches_nothing(element: str, option: str) -> None:
    """NaN in a key, a value, a query or a cotangent has an effect on pairs alone that are not masked."""
    case = problem(element, heads=1, query_len=30, key_len=40, causal="upper_left" if option == "causal" else None, options=(option,))
    operands = [numbers(x) for x in case.operands]
    operands[0][..., 3, :], operands[1][..., 31, :], operands[2][..., 30, 3] = np.nan, np.nan, np.inf
    if option == "mask":
        case.options["mask"][..., 30:32] = False
    case = case._replace(operands=tuple(stored(x, element) for x in operands))
    has_options, rng = case.has_options, np.random.default_rng(7)
    output, lse = forward(small(element, 32, has_options=has_options), *case.operands, **case.options)
    cotangent = rng.standard_normal(output.shape)
    cotangent[..., 10, 4] = np.inf
    d_output = stored(cotangent, element)
    got = backward(
        small_backward(element, 32, has_options=has_options), *map(read_only, case.operands), output, lse, d_output, **case.options
    )
    _, pullback = case.reference()
    expected = pullback(numbers(d_output), np.zeros(lse.shape))
    for name, x in got.items():
        wanted, made = np.isfinite(expected[name]), np.isfinite(numbers(x))
        np.testing.assert_array_equal(made, wanted, err_msg=name)
        largest = np.abs(expected[name][wanted]).max()
        np.testing.assert_allclose(numbers(x)[wanted], expected[name][wanted], rtol=0, atol=4 * ROUNDING[element] * largest, err_msg=name)


def test_results_repeat() -> None:
    case = problem("bfloat16", heads=2, group=2, causal="lower_right")
    kernels = small_backward("bfloat16", 32, has_options=False)
    (first, _), (again, _) = both(kernels, case), both(kernels, case)
    assert all(first[name].tobytes() == again[name].tobytes() for name in first)
