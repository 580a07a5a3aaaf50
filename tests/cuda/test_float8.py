"""Attention of float8 (e4m3) on compute capability 9.0 under the emulator against the reference: emulated, not run on a GPU."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

import refattn
import refattn_numba
from benchmarks.gpu_battery import DENSE, VARLEN, results
from refattn.testing import Candidate, Case
from refattn.testing.checking import compare_case
from refattn.testing.precision import named_format
from refattn_numba.cuda import cache, explain, hopper
from refattn_numba.cuda.kernel import Cubin
from refattn_numba.cuda.kernels import hopper_tiles
from refattn_numba.cuda.kernels.hopper_tiles import Config
from tests.cuda import by_numpy, emulated_hopper, emulator, standins
from tests.cuda.calls import Band, numbers, stored
from tests.cuda.cases import PROBLEMS, Problem, problem
from tests.cuda.emulated_warpgroup import HopperWarp
from tests.cuda.emulator import FLOAT8
from tests.cuda.hopper_calls import hopper_forward_of, hopper_kernel
from tests.cuda.test_hopper import FITTING, ORDERS
from tests.cuda.test_host import StandIn

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


def run(kernel: Any, blocks: int, arguments: Any, buffers: Any) -> None:
    """By whichever emulator has what the kernel needs."""
    (emulated_hopper if "hopper" in kernel.name else emulator).launch(kernel, blocks, arguments, buffers)


def calls() -> Iterator[tuple[str, Case]]:
    """Public calls, of shapes and options of all kinds."""
    random = np.random.default_rng(1)

    def drawn(query: Any, key: Any, value: Any, **options: Any) -> dict[str, Any]:
        return {**{n: random.normal(size=s) for n, s in (("query", query), ("key", key), ("value", value))}, **options}

    lower = {"causal": True, "align": "lower_right"}
    starts = {"cu_seqlens_q": np.array([0, 3, 3, 21]), "cu_seqlens_k": np.array([0, 9, 10, 30])}
    yield DENSE, Case("grouped, causal", drawn((1, 2, 150, 64), (1, 1, 170, 64), (1, 1, 170, 64), **lower))
    yield DENSE, Case("wide values", drawn((1, 1, 20, 40), (1, 1, 140, 40), (1, 1, 140, 130)))
    yield (
        DENSE,
        Case(
            "odd sizes, sinks, window",
            drawn((2, 9, 23), (2, 14, 23), (2, 14, 7), sinks=random.normal(size=2), window=(5, 2), align="upper_left"),
        ),
    )
    yield DENSE, Case("leading axes", drawn((2, 3, 1, 5, 64), (2, 3, 1, 9, 64), (2, 3, 1, 9, 36), scale=0.3))
    yield VARLEN, Case("packed", drawn((2, 21, 40), (1, 30, 40), (1, 30, 40), **starts, **lower, window=(6, None)))
    yield VARLEN, Case("packed, two parts", drawn((2, 2, 21, 40), (2, 1, 30, 40), (2, 1, 30, 40), **starts))


CALLS = {case.name: (name, case) for name, case in calls()}


@pytest.mark.parametrize("name", CALLS)
def test_public_calls(name: str, monkeypatch: pytest.MonkeyPatch, record_property: Any) -> None:
    """Within the oracle's budget for float8."""
    function, case = CALLS[name]
    offered = Candidate(functools.partial(getattr(refattn_numba, function)), StandIn("torch"))  # without its vjp
    with standins.pretending(monkeypatch, run) as recorder:
        found = list(compare_case(offered, getattr(refattn, function), case, named_format(FLOAT8)))
    assert [(r.what, r.error_over_budget, r.reason) for r in found if r.status == "fail"] == []
    assert {r.what for r in found if r.status == "pass"} == {"output", "lse"}
    assert {x.kernel.name.rpartition("_float8")[0] for x in recorder.launches} <= {"by_columns", "forward_hopper"}
    record_property("emulated", name)


def given(*shapes: tuple[int, ...], kind: str = "torch", dtype: str = FLOAT8) -> list[Any]:
    random = np.random.default_rng(3)
    return [standins.to_device(random.normal(size=shape), kind, dtype=dtype) for shape in shapes]


def test_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = given((1, 2, 5, 64), (1, 2, 0, 64), (1, 2, 0, 64))
    with standins.pretending(monkeypatch, run) as recorder:
        output, lse = refattn_numba.scaled_dot_product_attention_with_lse(*arrays)
        with_sinks = refattn_numba.scaled_dot_product_attention_with_lse(*arrays, sinks=standins.to_device(np.ones(2, np.float32)))
    assert len(recorder.launches) == 2
    assert (standins.to_host(output) == 0).all()
    assert np.isneginf(standins.to_host(lse)).all()
    np.testing.assert_allclose(standins.to_host(with_sinks.lse), 1, rtol=0, atol=SUMS)


def test_no_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    with standins.pretending(monkeypatch, run):
        output: Any = refattn_numba.scaled_dot_product_attention(*given((1, 2, 0, 64), (1, 2, 5, 64), (1, 2, 5, 64)))
    assert (output.shape, output.a.dtype.name) == ((1, 2, 0, 64), "bfloat16")


@pytest.mark.parametrize("kind", ["torch", "jax", "somebody"])
def test_every_library_that_has_float8(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by DLPack, which numbers the type 10."""
    arrays = given((1, 2, 5, 9), (1, 1, 7, 9), (1, 1, 7, 12), kind=kind)
    with standins.pretending(monkeypatch, by_numpy.launch) as recorder:
        output, lse = (standins.to_host(x) for x in refattn_numba.scaled_dot_product_attention_with_lse(*arrays))
    expected = refattn.scaled_dot_product_attention_with_lse(*(standins.to_host(x) for x in arrays))
    assert [x.kernel.name.partition("_float8")[0] for x in recorder.launches] == ["by_columns", "forward_hopper"]
    np.testing.assert_allclose(output, expected.output, rtol=2.0**-8, atol=0)
    np.testing.assert_allclose(lse, expected.lse, rtol=0, atol=SUMS)


def test_rows_that_boxes_cannot_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that all places share, and rows backwards, are copied."""
    query, key, value = given((1, 2, 5, 64), (1, 2, 1, 64), (1, 2, 6, 64))
    key, value = key.expand((1, 2, 6, 64)), value[:, :, ::-1]
    with standins.pretending(monkeypatch, by_numpy.launch) as recorder:
        output = standins.to_host(refattn_numba.scaled_dot_product_attention(query, key, value))
    assert recorder.launches[1].arguments["key"] != key.data_ptr()
    expected = refattn.scaled_dot_product_attention(*(standins.to_host(x) for x in (query, key, value)))
    np.testing.assert_allclose(output, expected, rtol=2.0**-8, atol=1e-6)


PAIRS = np.ones((5, 6), np.float32)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"mask": PAIRS > 0}, "mask is given, but is no option where query is float8_e4m3fn: pass operands in bfloat16, which holds"),
        ({"bias": PAIRS}, "bias is given"),
        ({"keep": PAIRS > 0, "dropout_rate": 0.5}, "keep is given"),
        ({"softcap": 2.0}, "softcap is given"),
        ({"scale": -1.0}, "a scale that is not positive is given"),
        ({"scale": 0.0}, "a scale that is not positive is given"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], match: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = given((1, 2, 5, 64), (1, 2, 6, 64), (1, 2, 6, 64))
    on_device = {n: standins.to_device(x) if isinstance(x, np.ndarray) else x for n, x in options.items()}
    with standins.pretending(monkeypatch) as recorder, pytest.raises(ValueError, match=match):
        refattn_numba.scaled_dot_product_attention(*arrays, **on_device)
    assert not recorder.launches


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = (1, 2, 5, 64), (1, 2, 6, 64), (1, 2, 6, 64)
    attend = refattn_numba.scaled_dot_product_attention
    too_old = r"query is float8_e4m3fn, which needs compute capability 9.0 \(sm_90a\), but here is sm_80: pass operands in bfloat16"
    with standins.pretending(monkeypatch, capability=(8, 0)), pytest.raises(TypeError, match=too_old):
        attend(*given(*shapes))
    with standins.pretending(monkeypatch, shared_bytes=1000), pytest.raises(ValueError, match="1000 bytes of shared memory are too few"):
        attend(*given(*shapes))
    with standins.pretending(monkeypatch) as recorder:
        with pytest.raises(TypeError, match="key is bfloat16, but query is float8_e4m3fn: on a device both must be of one type"):
            attend(given(shapes[0])[0], *given(*shapes[1:], dtype="bfloat16"))
        with pytest.raises(ValueError, match="head_dim is 257, but must be 1 to 256"):
            attend(*given((1, 1, 2, 257), (1, 1, 2, 257), (1, 1, 2, 8)))
        with pytest.raises(TypeError, match="query is float8_e5m2, but on a device must be float32, float16, bfloat16 or float8_e4m3fn"):
            attend(*given(*shapes, dtype="float8_e5m2"))
        assert not recorder.launches
        output, pullback = attend.vjp(*given(*shapes))
        with pytest.raises(TypeError, match="query is float8_e4m3fn, of which there is no backward pass: pass operands in bfloat16"):
            pullback(output)


def test_explain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "cubin_of", lambda kernel, architecture: Cubin(b"", kernel.name, architecture, 168, 0, 0))
    arrays = [np.zeros(shape, standins.numpy_type(FLOAT8)) for shape in ((1, 2, 5, 100), (1, 2, 6, 100), (1, 2, 6, 40))]
    found = explain(*arrays, architecture="sm_90a", causal=True)
    assert [(x.face, x.kernel) for x in found] == [
        ("by_columns", "by_columns_float8_e4m3fn"),
        ("forward", "forward_hopper_float8_e4m3fn_128_128"),
    ]
    with pytest.raises(ValueError, match="softcap is given"):
        explain(*arrays, architecture="sm_90a", softcap=1.0)
    with pytest.raises(ValueError, match="a scale that is not positive is given"):
        explain(*arrays, architecture="sm_90a", scale=0.0)
    with pytest.raises(TypeError, match="but here is sm_80"):
        explain(*arrays, architecture="sm_80")


def test_the_battery(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the command that measures; launches are made by NumPy, from what they say of arrays."""
    with standins.pretending(monkeypatch, by_numpy.launch):
        found = list(results(StandIn("torch"), FLOAT8, level="quick"))
    assert [(r.case, r.what, r.error_over_budget, r.reason) for r in found if r.status == "fail"] == []
    assert sum(r.status == "pass" for r in found) > 30
    assert {r.what for r in found if r.status == "pass"} == {"output"}
