"""The forward kernel of compute capability 9.0 under the emulator against the reference: emulated, not run on a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

import refattn
from refattn_numba.cuda.kernels.hopper_forward import Config
from tests.cuda.calls import Band, numbers, stored
from tests.cuda.cases import PROBLEMS, ROUNDING, Problem, problem
from tests.cuda.emulator import Fault
from tests.cuda.hopper_calls import hopper_forward_of, hopper_kernel
from tests.cuda.test_forward import compare

FITTING = [
    name
    for name, how in PROBLEMS.items()
    if how.get("element") != "float32" and {*how.get("options", ())} <= {"sinks"} and how.get("key_len") != 0
]
ORDERS = {"late": {}, "at once": {"late": False}, "last warps first": {"last_first": True}}


def small(element: Any = "bfloat16", size: int = 64, **more: Any) -> Any:
    """A kernel with the shipped ones' source and small tiles, so that a case has several."""
    sizes: dict[str, Any] = {"groups": 2, "keys": 16, "stages": 2, "few": 24, "many": 240, **more}
    return hopper_kernel(Config(element, size, **sizes))


@pytest.mark.parametrize("name", FITTING)
def test_forward(name: str, record_property: Any) -> None:
    case = problem(**PROBLEMS[name])
    record_property("emulated", "hopper_forward")
    compare(case, *hopper_forward_of(small(case.element), *case.operands, **case.options))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("causal", [None, "lower_right"])
def test_several_tiles_of_queries(order: str, causal: str | None, record_property: Any) -> None:
    """With copies and warps in any order."""
    case = problem(heads=1, query_len=140, key_len=150, head_dim=64, causal=causal)
    record_property("emulated", "hopper_forward")
    compare(case, *hopper_forward_of(small(), *case.operands, **case.options, **ORDERS[order]))


@pytest.mark.parametrize(
    "config",
    [
        Config("float16", 64, 3, 32, 3, 32, 160),
        Config("bfloat16", 128, 2, 48, 2, 24, 240),
        Config("float16", 128, 2, 16, 3, 24, 240),
        Config("bfloat16", 256, 2, 16, 2, 24, 240),
    ],
    ids=str,
)
def test_tiles_of_other_sizes(config: Config, record_property: Any) -> None:
    case = problem(config.element, heads=1, head_dim=config.size - 8, query_len=70, key_len=100, causal="lower_right")
    record_property("emulated", "hopper_forward")
    compare(case, *hopper_forward_of(hopper_kernel(config), *case.operands, **case.options))


def test_packed_sequences(record_property: Any) -> None:
    """Of many lengths, none and one among them; a box that reaches into the next sequence changes nothing."""
    lengths, others = [5, 0, 33, 1, 16], [7, 4, 60, 0, 16]
    cu = tuple(np.cumsum([0, *n]).astype(np.int32) for n in (lengths, others))
    rng, element = np.random.default_rng(1), "bfloat16"
    query, key, value = (stored(rng.standard_normal((1, h, n, 32)), element) for h, n in ((2, 55), (1, 87), (1, 87)))
    record_property("emulated", "hopper_forward")
    output, lse = hopper_forward_of(small(), query, key, value, band=Band(-20, 0, 1), cu=cu)
    expected = refattn.varlen_attention_with_lse(
        *(numbers(x)[0] for x in (query, key, value)), *cu, causal=True, align="lower_right", window=(20, None)
    )
    np.testing.assert_allclose(numbers(output)[0], expected.output, rtol=0, atol=2 * ROUNDING[element] * 4)
    np.testing.assert_allclose(lse[0], expected.lse, rtol=0, atol=2.0**-18)


def test_any_strides() -> None:
    """Lengths before heads, as frameworks pack them, and a head that all batches share."""
    rng, element = np.random.default_rng(2), "float16"
    packed = stored(rng.standard_normal((2, 40, 3 * 2, 32)), element)
    query, key, value = (packed[:, :, 2 * i : 2 * i + 2].swapaxes(1, 2) for i in range(3))
    value = np.broadcast_to(value[:1], value.shape)
    compare(Problem(element, (query, key, value), {}, {}), *hopper_forward_of(small(element), query, key, value))


def test_rows_that_may_attend_nowhere() -> None:
    case = problem("bfloat16", causal="lower_right", query_len=40, key_len=30)
    output, lse = hopper_forward_of(small(), *case.operands, **case.options, empty=np.nan)
    assert np.isnan(numbers(output)[:, :, :10]).all()
    assert np.isneginf(lse[:, :, :10]).all()
    assert np.isfinite(numbers(output)[:, :, 10:]).all()


@pytest.mark.parametrize("element", ["bfloat16", "float16"])
def test_what_is_masked_reaches_nothing(element: str) -> None:
    """NaN or infinity in a masked key or value has no effect; where it is not masked it has the reference's."""
    case = problem(element, heads=1, query_len=40, key_len=40, causal="upper_left")
    query, key, value = case.operands
    dirty = numbers(key), numbers(value)
    dirty[0][..., 20, :], dirty[1][..., 25, 3], dirty[1][..., 11, 5] = np.nan, np.inf, -np.inf
    case = case._replace(operands=(query, stored(dirty[0], element), stored(dirty[1], element)))
    compare(case, *hopper_forward_of(small(element), *case.operands, **case.options))


def test_hidden_from_all() -> None:
    """Rows that attend nowhere, before values that are not finite."""
    case = problem("bfloat16", heads=1, causal="lower_right", query_len=40, key_len=30)
    query, key, value = case.operands
    dirty = numbers(value)
    dirty[..., 29, :] = np.nan
    case = case._replace(operands=(query, key, stored(dirty, "bfloat16")))
    compare(case, *hopper_forward_of(small(), *case.operands, **case.options))


def test_results_repeat() -> None:
    case = problem("bfloat16", causal="lower_right")
    first, again = (hopper_forward_of(small(), *case.operands, **case.options, **ORDERS[order]) for order in ("late", "last warps first"))
    assert first[0].tobytes() == again[0].tobytes()
    assert first[1].tobytes() == again[1].tobytes()


def test_registers_that_are_not_there() -> None:
    """More than a multiprocessor has would never come, and the emulator says so."""
    case = problem(heads=1)
    with pytest.raises(Fault, match=r"deadlock.*240 registers a thread"):
        hopper_forward_of(small(groups=3), *case.operands)
