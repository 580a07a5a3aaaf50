"""Public calls in float8 (e4m3): whole ones, whose launches the emulators make, and what the host side does and refuses."""

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
from refattn_numba.cuda import cache, explain
from refattn_numba.cuda.kernel import Cubin
from tests.cuda import by_numpy, emulated_hopper, emulator, standins
from tests.cuda.emulator import FLOAT8
from tests.cuda.test_float8 import SUMS
from tests.cuda.test_host import StandIn


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
