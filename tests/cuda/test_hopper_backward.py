"""The backward kernels of compute capability 9.0 under the emulator against the reference: emulated, not run on a GPU."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

pytest.importorskip("numba")

import refattn
from refattn_numba.cuda.kernel import Kernel
from refattn_numba.cuda.kernels.hopper_backward import Config
from tests.cuda.calls import Band, numbers, stored
from tests.cuda.cases import PROBLEMS, ROUNDING, Problem, problem
from tests.cuda.emulator import Fault
from tests.cuda.hopper_calls import backward_kernel, hopper_backward_of
from tests.cuda.test_backward import compare
from tests.cuda.test_hopper import FITTING, ORDERS


class Pair(NamedTuple):
    """The kernels of a backward pass."""

    queries: Kernel
    keys: Kernel


def small(element: Any = "bfloat16", size: int = 64, *, groups: int = 2, others: int = 16, **more: Any) -> Pair:
    """Kernels with the shipped ones' source and small tiles, so that a case has several."""
    sizes: dict[str, Any] = {"stages": 2, "few": 24, "many": 240, **more}
    queries, keys = (backward_kernel(Config(element, size, is_keys, groups, others, **sizes)) for is_keys in (False, True))
    return Pair(queries, keys)


def both(kernels: Pair, case: Problem, *, d_output: Any = None, seed: int = 5, **order: Any) -> tuple[dict[str, np.ndarray], Any]:
    """Cotangents by the kernels, and by the reference from the same cotangents of output and log-sum-exp."""
    rng = np.random.default_rng(seed)
    (output, lse), pullback = case.reference()
    d_lse = rng.standard_normal(lse.shape)
    d = stored(rng.standard_normal(output.shape) if d_output is None else d_output, case.element)
    with np.errstate(all="ignore"):
        delta = np.asarray((output * numbers(d)).sum(-1) - d_lse, np.float32, order="C")
    got = hopper_backward_of(*kernels, *case.operands, np.asarray(lse, np.float32, order="C"), delta, d, **case.options, **order)
    return got, pullback(numbers(d), d_lse)


@pytest.mark.parametrize("name", FITTING)
def test_backward(name: str, record_property: Any) -> None:
    case = problem(**PROBLEMS[name])
    record_property("emulated", "hopper_backward")
    compare(case.element, *both(small(case.element), case))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("causal", [None, "lower_right"])
def test_several_blocks(order: str, causal: str | None, record_property: Any) -> None:
    """With copies and warps in any order."""
    case = problem(heads=1, query_len=140, key_len=150, head_dim=64, causal=causal)
    record_property("emulated", "hopper_backward")
    compare(case.element, *both(small(), case, **ORDERS[order]))


@pytest.mark.parametrize(
    ("element", "size", "more"),
    [
        ("float16", 64, {"groups": 3, "others": 32, "stages": 3, "many": 160}),
        ("bfloat16", 128, {"others": 48}),
        ("float16", 128, {"others": 16, "stages": 3}),
        ("bfloat16", 128, {"shares_rows": True}),
        ("float16", 256, {"others": 32, "shares_rows": True}),
    ],
    ids=str,
)
def test_tiles_of_other_sizes(element: str, size: int, more: dict[str, Any], record_property: Any) -> None:
    case = problem(element, heads=2, group=2, head_dim=size - 8, query_len=70, key_len=100, causal="lower_right")
    record_property("emulated", "hopper_backward")
    compare(element, *both(small(element, size, **more), case))


def test_packed_sequences(record_property: Any) -> None:
    """Of many lengths, none and one among them; a box that reaches into the next sequence changes nothing."""
    lengths, others = [5, 0, 33, 1, 16], [7, 4, 60, 0, 16]
    cu = tuple(np.cumsum([0, *n]).astype(np.int32) for n in (lengths, others))
    rng, element = np.random.default_rng(1), "bfloat16"
    query, key, value = (stored(rng.standard_normal((1, h, n, 32)), element) for h, n in ((2, 55), (1, 87), (1, 87)))
    record_property("emulated", "hopper_backward")
    options: Any = {"causal": True, "align": "lower_right", "window": (20, None)}
    (output, lse), pullback = refattn.varlen_attention_with_lse.vjp(*(numbers(x)[0] for x in (query, key, value)), *cu, **options)
    d_output = stored(rng.standard_normal((1, *output.shape)), element)
    of_lse, delta = (np.asarray(x, np.float32, order="C")[None] for x in (lse, (output * numbers(d_output)[0]).sum(-1)))
    got = hopper_backward_of(*small(), query, key, value, of_lse, delta, d_output, band=Band(-20, 0, 1), cu=cu)
    compare(element, {name: x[0] for name, x in got.items()}, pullback(numbers(d_output)[0], np.zeros(lse.shape)))


def test_any_strides() -> None:
    """Lengths before heads, as frameworks pack them, and a head that all batches share."""
    rng, element = np.random.default_rng(2), "float16"
    packed = stored(rng.standard_normal((2, 40, 3 * 2, 32)), element)
    query, key, value = (packed[:, :, 2 * i : 2 * i + 2].swapaxes(1, 2) for i in range(3))
    value = np.broadcast_to(value[:1], value.shape)
    compare(element, *both(small(element), Problem(element, (query, key, value), {}, {})))


def test_rows_that_may_attend_nowhere() -> None:
    """Queries before the first key, and keys that no query may see."""
    case = problem("bfloat16", causal="lower_right", query_len=40, key_len=30)
    got, expected = both(small(), case)
    compare("bfloat16", got, expected)
    assert (numbers(got["query"])[:, :, :10] == 0).all()
    case = problem("bfloat16", causal="upper_left", query_len=20, key_len=150)
    got, expected = both(small(), case)
    compare("bfloat16", got, expected)
    assert (numbers(got["key"])[:, :, 20:] == 0).all()


@pytest.mark.parametrize(("element", "more"), [("bfloat16", {}), ("float16", {"size": 128, "shares_rows": True})], ids=str)
def test_what_is_masked_reaches_nothing(element: str, more: dict[str, Any]) -> None:
    """NaN or infinity in a key, a value, a query or a cotangent has an effect on pairs alone that are not masked."""
    case = problem(element, heads=2, group=2, query_len=22, key_len=25, head_dim=20, value_dim=70 if more else 20, causal="upper_left")
    operands = [numbers(x) for x in case.operands]
    operands[0][:, 1, 3, :], operands[1][..., 23, :], operands[2][..., 20, 3] = np.nan, np.nan, np.inf
    case = case._replace(operands=tuple(stored(x, element) for x in operands))
    cotangent = np.random.default_rng(7).standard_normal(case.reference()[0].output.shape)
    cotangent[:, 0, 10, 4] = np.inf
    with np.errstate(all="ignore"):
        got, expected = both(small(element, **more), case, d_output=cotangent)
    for name, x in got.items():
        wanted, made = np.isfinite(expected[name]), np.isfinite(numbers(x))
        assert wanted.any()
        np.testing.assert_array_equal(made, wanted, err_msg=name)
        largest = np.abs(expected[name][wanted]).max()
        allowed = 4 * ROUNDING[element] * largest
        np.testing.assert_allclose(numbers(x)[wanted], expected[name][wanted], rtol=0, atol=allowed, err_msg=name)


def hidden() -> tuple[Problem, np.ndarray]:
    """What is not finite in places that are masked for some: a key that the last query alone may attend to, and the first cotangent."""
    case = problem(heads=1, query_len=20, key_len=20, head_dim=12, causal="upper_left")
    case.operands[1].view("uint16")[..., 19, 3] = 0x7F80
    cotangent = np.random.default_rng(7).standard_normal((1, 1, 20, 12))
    cotangent[..., 0, 3] = np.inf
    return case, cotangent


def test_results_repeat() -> None:
    case = problem("bfloat16", heads=2, group=2, causal="lower_right")
    (first, _), (again, _) = (both(small(), case, **ORDERS[order]) for order in ("late", "last warps first"))
    assert all(first[name].tobytes() == again[name].tobytes() for name in first)


def test_registers_that_are_not_there() -> None:
    """More than a multiprocessor has would never come, and the emulator says so."""
    case = problem(heads=1)
    with pytest.raises(Fault, match=r"deadlock.*240 registers a thread"):
        both(small(groups=3), case)
