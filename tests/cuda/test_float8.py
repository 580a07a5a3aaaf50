"""Attention of float8 (e4m3) on compute capability 9.0 under the emulator against the reference: emulated, not run on a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

import refattn
from refattn.testing.precision import named_format
from refattn_numba.cuda import hopper
from refattn_numba.cuda.kernels import hopper_tiles
from refattn_numba.cuda.kernels.hopper_tiles import Config
from tests.cuda.calls import Band, numbers, stored
from tests.cuda.cases import PROBLEMS, Problem, problem
from tests.cuda.emulated_warpgroup import HopperWarp
from tests.cuda.emulator import FLOAT8
from tests.cuda.hopper_calls import hopper_forward_of, hopper_kernel
from tests.cuda.test_hopper import FITTING, ORDERS

WEIGHT, LOST, OUTPUT, SUMS = 2.0**-4, 2.0**-10 / 2**8, 2.0**-9, 2.0**-18
"""What rounding a weight to e4m3 changes of it at most, and of one that is subnormal there, of which the largest of its row is 2**8 times 1;
and what rounding the output to bfloat16 does, and sums in float32."""


def small(size: int = 64, **more: Any) -> Any:
    """A kernel with the shipped ones' source and small tiles, so that a case has several."""
    sizes: dict[str, Any] = {"groups": 2, "keys": 32, "stages": 2, "few": 24, "many": 240, **more}
    return hopper_kernel(Config(FLOAT8, size, **sizes))


def drawn(**how: Any) -> Problem:
    return problem(**{**how, "element": FLOAT8})


def compare(case: Problem, output: np.ndarray, lse: np.ndarray) -> None:
    """Each weight is rounded once and the output too; the sum of weights is that before they are rounded."""
    (expected, of_lse), _ = case.reference()
    query, key, value = (numbers(x) for x in case.operands)
    magnitudes = np.abs(np.nan_to_num(value))
    weighed = refattn.scaled_dot_product_attention(query, np.nan_to_num(key), magnitudes, **case.of_reference)
    reached = np.repeat(magnitudes, query.shape[1] // value.shape[1], axis=1).sum(axis=-2, keepdims=True)
    allowed = OUTPUT * np.abs(expected) + (1 + OUTPUT) * ((WEIGHT + SUMS) * weighed + LOST * reached)
    error = np.abs(numbers(output) - expected)
    assert (np.isnan(expected) == np.isnan(numbers(output))).all()
    assert (np.nan_to_num(error) <= np.nan_to_num(allowed)).all(), np.nanmax(error / allowed)
    np.testing.assert_allclose(lse, of_lse, rtol=0, atol=SUMS)


@pytest.mark.parametrize("name", [name for name in FITTING if PROBLEMS[name].get("element") != "float16"])
def test_forward(name: str, record_property: Any) -> None:
    case = drawn(**PROBLEMS[name])
    record_property("emulated", "hopper_forward in float8")
    compare(case, *hopper_forward_of(small(), *case.operands, **case.options))


@pytest.mark.parametrize("size", [128, 256])
@pytest.mark.parametrize("order", ORDERS)
def test_wide_rows(size: int, order: str, record_property: Any) -> None:
    """Several tiles of queries and of keys, with copies and warps in any order; of 256, products are made in the sums."""
    case = drawn(heads=1, head_dim=size - 8, value_dim=size, query_len=140, key_len=150, causal="lower_right")
    record_property("emulated", "hopper_forward in float8")
    compare(case, *hopper_forward_of(small(size), *case.operands, **case.options, **ORDERS[order]))


def test_shipped_tiles(record_property: Any) -> None:
    """More than one of 128 keys."""
    case = drawn(heads=1, head_dim=64, query_len=20, key_len=300)
    kernel = hopper.fitting(FLOAT8, 64, 64, has_limits=False)
    assert kernel is not None
    record_property("emulated", kernel.name)
    compare(case, *hopper_forward_of(kernel, *case.operands, **case.options))


def packed() -> tuple[Any, ...]:
    """Sequences of many lengths, none and one among them; values of the next one are not numbers at last."""
    cu = tuple(np.cumsum([0, *n]).astype(np.int32) for n in ([5, 0, 33, 1, 16], [7, 4, 160, 0, 16]))
    rng = np.random.default_rng(1)
    made = [rng.standard_normal((1, h, n, 32)) for h, n in ((2, 55), (1, 187), (1, 187))]
    made[2][:, :, 171:, 3] = np.nan
    return tuple(stored(x, FLOAT8) for x in made), cu


def compare_packed(**order: Any) -> None:
    operands, cu = packed()
    output, lse = hopper_forward_of(small(), *operands, band=Band(-20, 0, 1), cu=cu, **order)
    options: dict[str, Any] = {"causal": True, "align": "lower_right", "window": (20, None)}
    query, key, value = (numbers(x)[0] for x in operands)
    expected = refattn.varlen_attention_with_lse(query, key, value, *cu, **options)
    weighed = refattn.varlen_attention(query, key, np.abs(value), *cu, **options)
    allowed = OUTPUT * np.abs(expected.output) + (1 + OUTPUT) * (WEIGHT + SUMS) * weighed + LOST * 21 * np.nanmax(np.abs(value))
    wrong = np.abs(numbers(output)[0] - expected.output) > allowed
    assert (np.isnan(numbers(output)[0]) == np.isnan(expected.output)).all()
    assert not wrong.any()
    np.testing.assert_allclose(lse[0], expected.lse, rtol=0, atol=SUMS)


@pytest.mark.parametrize("order", ORDERS)
def test_packed_sequences(order: str, record_property: Any) -> None:
    record_property("emulated", "hopper_forward in float8")
    compare_packed(**ORDERS[order])


def with_small_weights() -> tuple[Problem, np.ndarray]:
    """A key with value 0 has almost all weight of each query, so that outputs are made of weights of 2**-12 or so alone."""
    case = drawn(heads=1, query_len=20, key_len=65, scale=1.0)
    query, key, value = (np.zeros(x.shape) for x in case.operands)
    query[..., 0], key[..., 0, 0], value[..., 1:, :] = 1, 12 * np.log(2), 1
    case = case._replace(operands=tuple(stored(x, FLOAT8) for x in (query, key, value)))
    return case, numbers(case.operands[1])[0, 0, 0, 0]


def compare_small_weights() -> None:
    case, largest = with_small_weights()
    output, _ = hopper_forward_of(small(), *case.operands, **case.options)
    exact = 64 / (np.exp(largest) + 64)
    np.testing.assert_allclose(numbers(output), exact, rtol=WEIGHT + OUTPUT, atol=0)


def test_small_weights_are_not_lost() -> None:
    compare_small_weights()


def test_what_is_masked_reaches_nothing() -> None:
    """NaN in a masked key or value has no effect; where it is not masked it has the reference's."""
    case = drawn(heads=1, query_len=40, key_len=40, causal="upper_left")
    query, key, value = case.operands
    dirty = numbers(key), numbers(value)
    dirty[0][..., 20, :], dirty[1][..., 25, 3], dirty[1][..., 11, 5] = np.nan, np.nan, np.nan
    case = case._replace(operands=(query, stored(dirty[0], FLOAT8), stored(dirty[1], FLOAT8)))
    compare(case, *hopper_forward_of(small(), *case.operands, **case.options))


def test_errors_average() -> None:
    """Roundings of weights are independent: each errs by 2**-4 / sqrt(3) of its power of two, which is 2.4 % in root mean squares."""
    case = drawn(heads=2, head_dim=64, query_len=64, key_len=600)
    output, _ = hopper_forward_of(small(keys=128), *case.operands)
    (expected, _), _ = case.reference()
    rms = np.sqrt(np.square(numbers(output) - expected).mean() / np.square(expected).mean())
    assert 0.015 < rms < 0.035


def test_which_sum_of_weights_is_nearer(record_property: Any) -> None:
    """That of rounded weights, where values have a mean; the kernel has the other, which the log-sum-exp needs anyway."""
    case = drawn(heads=1, head_dim=64, query_len=64, key_len=128)
    query, key, value = (numbers(x) for x in case.operands)
    value = np.abs(value)
    case = case._replace(operands=(*case.operands[:2], stored(value, FLOAT8)))
    (expected, _), _ = case.reference()
    scores = query @ key.swapaxes(-1, -2) / 8
    weights = 2.0**8 * np.exp(scores - scores.max(axis=-1, keepdims=True))
    rounded = named_format(FLOAT8).round(weights)
    by_exact, by_rounded = (rounded @ value / x.sum(axis=-1, keepdims=True) for x in (weights, rounded))
    assert np.square(by_rounded - expected).mean() < 0.6 * np.square(by_exact - expected).mean()
    output, _ = hopper_forward_of(small(keys=128), *case.operands)
    record_property("emulated", "hopper_forward in float8")
    np.testing.assert_allclose(numbers(output), by_exact, rtol=2.0**-8)


@pytest.mark.parametrize("largest_apart", [128, 0])
def test_sums_that_keep_14_bits(largest_apart: int, monkeypatch: pytest.MonkeyPatch, record_property: Any) -> None:
    """As tensor cores are said to: in one tile of 128 keys they are cut four times, by less than 2**-13; over all keys, that adds up."""
    case = drawn(heads=1, head_dim=32, query_len=1, key_len=2048)
    query, key, value = case.operands
    case = case._replace(operands=(stored(np.zeros(query.shape), FLOAT8), key, stored(np.abs(numbers(value)), FLOAT8)))
    monkeypatch.setattr(HopperWarp, "kept_bits", 14)
    monkeypatch.setattr(hopper_tiles, "LARGEST_APART", largest_apart)
    output, _ = hopper_forward_of(small(keys=128), *case.operands)
    (expected, _), _ = case.reference()
    record_property("emulated", "hopper_forward in float8")
    error = np.abs(numbers(output) / expected - 1).max()
    is_within = error < 4 * 2.0**-13 + OUTPUT
    assert is_within == (largest_apart > 0)
