"""Attention to caches under the emulator, kernels and whole public calls, against the reference: emulated, not run on a GPU."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

import refattn
import refattn_numba
from benchmarks.gpu_battery import DECODE, PAGED, candidate, decode_cases
from refattn.testing import cases
from refattn.testing.checking import compare_case
from refattn.testing.precision import named_format
from refattn_numba.cuda import cache, codes, decode_configurations, explain
from refattn_numba.cuda.kernel import Cubin
from refattn_numba.cuda.kernels import decode as source
from refattn_numba.cuda.kernels import merge as of_splits
from tests.cuda import by_numpy, emulator, standins
from tests.cuda.calls import numbers
from tests.cuda.cases import ROUNDING
from tests.cuda.decode_calls import PROBLEMS, Problem, decoded, problem, small
from tests.cuda.emulator import Fault
from tests.cuda.test_host import KINDS, StandIn
from tests.cuda.test_planted import mutated


def compare(case: Problem, output: np.ndarray, lse: np.ndarray) -> None:
    """A weight and the output are rounded once each, and a weight once more where a scale is in it."""
    expected = case.expected()
    largest = np.abs(np.nan_to_num(numbers(case.arrays["value"]), posinf=0, neginf=0)).max(initial=2.0**-7)
    largest *= np.abs(case.given.get("value_scale", 1.0)).max()
    np.testing.assert_allclose(numbers(output), expected.output, rtol=0, atol=2 * ROUNDING[case.element] * largest)
    np.testing.assert_allclose(lse, expected.lse, rtol=0, atol=2.0**-18)


def sizes_of(case: Problem) -> dict[str, Any]:
    """Codes are multiplied in rows of 64."""
    return {"size": 64, "has_codes": True} if case.arrays["key"].dtype == np.int8 else {}


@pytest.mark.parametrize("name", PROBLEMS)
def test_decode(name: str, record_property: Any) -> None:
    case = problem(**PROBLEMS[name])
    record_property("emulated", "decode")
    compare(case, *decoded(small(case.element, **sizes_of(case)), case))


@pytest.mark.parametrize(("element", "size"), [("bfloat16", 64), ("float16", 128), ("bfloat16", 256), ("float32", 128), ("float32", 256)])
@pytest.mark.parametrize("has_codes", [False, True])
def test_shipped_kernels(element: Any, size: int, record_property: Any, *, has_codes: bool) -> None:
    if has_codes and element == "float32":
        pytest.skip("codes are multiplied by numbers of 16 bits")
    options = ("codes",) if has_codes else ()
    case = problem(
        element,
        options=options,
        lengths=(300,),
        head_dim=size,
        value_dim=size - 8,
        key_len=320,
        page_size=32,
        splits=9,
        kv_heads=1,
        group=3,
    )
    kernels = decode_configurations.choose(element, size, size, has_codes=has_codes), decode_configurations.merging(element)
    record_property("emulated", kernels[0].name)
    compare(case, *decoded(kernels, case))


def test_results_repeat_and_splits_change_little() -> None:
    case = problem(splits=3)
    first, again, whole = (decoded(small("bfloat16"), case._replace(splits=n)) for n in (3, 3, 1))
    assert first[0].tobytes() == again[0].tobytes()
    assert first[1].tobytes() == again[1].tobytes()
    np.testing.assert_allclose(first[1], whole[1], rtol=0, atol=2.0**-20)


@pytest.mark.parametrize("splits", [1, 2])
def test_rows_that_may_attend_nowhere(splits: int) -> None:
    case = problem(lengths=(0, 40), splits=splits)
    output, lse = decoded(small("bfloat16"), case, empty=np.nan)
    assert np.isnan(numbers(output)[0]).all()
    assert np.isneginf(lse[0]).all()
    assert np.isfinite(numbers(output)[1]).all()


@pytest.mark.parametrize("wrong", [99, -1, -(2**31), 2**31 - 1])
def test_a_page_that_there_is_not_is_no_number_and_is_not_read(wrong: int) -> None:
    """The emulator refuses a read outside the pool."""
    case = problem(page_size=8, splits=2)
    case.arrays["table"][0, 3] = wrong
    output, lse = decoded(small("bfloat16"), case)
    assert np.isnan(numbers(output)[0]).all()
    assert np.isnan(lse[0]).all()
    compare(case._replace(given={**case.given, "block_table": problem(page_size=8).arrays["table"]}), *_second(case, output, lse))


def _second(case: Problem, output: np.ndarray, lse: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the reference has in place of the first sequence's results."""
    expected = problem(page_size=8).expected()
    output, lse = numbers(output), lse.copy()
    output[0], lse[0] = expected.output[0], expected.lse[0]
    return output, lse


@pytest.mark.parametrize("page_size", [0, 8])
@pytest.mark.parametrize(("given", "taken"), [((500, -5), (80, 0)), ((2**31 - 1, -(2**31)), (80, 0))])
def test_lengths_that_no_cache_has_are_taken_within_it(page_size: int, given: tuple[int, ...], taken: tuple[int, ...]) -> None:
    case = problem(lengths=taken, page_size=page_size)
    case.arrays["lengths"][:] = given
    compare(case._replace(given={**case.given, "lengths": np.asarray(taken)}), *decoded(small("bfloat16"), case))


FAULTS: dict[str, tuple[str, str, str, str]] = {
    "sums not rescaled": ("scale_sums(sums, decay)", "sums", "one query", "wrong"),
    "warps not merged by their largest": ("parts = shares_of(found, most)", "parts = shares_of(found, nothing)", "one query", "wrong"),
    "splits not merged by their largest": ("shares_of(in_base_2(found, log2_e), most)", "ones(one)", "splits", "wrong"),
    "last split left out": ("range(0, splits, at_once):\n            found = load_lse(parts_lse + (first * rows + row) * 4, rows * 4, splits - first, 1)\n            shares",
                            "range(0, splits - 1, at_once):\n            found = load_lse(parts_lse + (first * rows + row) * 4, rows * 4, splits - first - 1, 1)\n            shares", "splits", "wrong"),
    "a split ends one tile late": ("stop = min(start + share, stop)", "stop = min(start + share + 1, stop)", "splits", "wrong"),
    "a split begins one tile late": ("start = min(start + split * share, stop)", "start = min(start + split * share + min(split, 1), stop)", "splits", "wrong"),
    "last tile left out": ("(end + keys_in_tile - 1) // keys_in_tile", "end // keys_in_tile", "one query", "wrong"),
    "page of another sequence": ("table + sequence * table_len * 4", "table", "pages", "wrong"),
    "page of the next tile": ("fetch(i + 1, following)", "fetch(i + 1, find(position_of(i + 2)))", "pages", "wrong"),
    "rows of a page": ("row = position - quotient(position, page_size) * page_size", "row = position", "pages of odd sizes", "fault"),
    "one key past the end": ("end = min(max(load(lengths + 4 * sequence), 0), key_len)", "end = min(max(load(lengths + 4 * sequence) + 1, 0), key_len)", "one query", "wrong"),
    "queries at each other's places": ("mask(scores, positions,", "mask(scores, positions_of(0 * row, query_len, nearest),", "causal", "wrong"),
    "one sink for all heads": ("sinks + (kv_head * group + head) * width", "sinks + kv_head * group * width", "sinks", "wrong"),
    "a sink in each split": ("if sinks != 0 and split == 0", "if sinks != 0", "sinks", "wrong"),
    "scales of other keys": ("of_columns(key_factor, column)", "of_columns(key_factor, 0 * column)", "scales", "wrong"),
    "scale of values left out": ("weights = scale_weights(weights, of_columns(value_factor_of, column))", "pass", "scales", "wrong"),
    "hidden values stay": ("has_hidden | make_finite(here + tile_bytes, lane)", "0", "not finite behind masks", "wrong"),
    "hidden values are lost": ("has_hidden = barrier_any(has_hidden)", "has_hidden = barrier_any(0)", "not finite behind masks", "wrong"),
    "copies not waited for": ("            wait()\n            meet()\n", "            meet()\n", "one query", "fault"),
    "lanes do not meet": ("            wait()\n            meet()\n", "            wait()\n", "one query", "fault"),
    "queries not waited for": ("        wait_queries()\n        barrier()\n", "        wait_queries()\n", "one query", "fault"),
    "sums over tiles that lanes still read": ("        wait()\n        meet()\n        totals", "        wait()\n        totals", "one query", "fault"),
    "warps not waited for": ("has_hidden = barrier_any(has_hidden)", "has_hidden = 0", "one query", "fault"),
    "one slot of the ring": ("here = (start + warp + i * warps) * keys_in_tile, ring + i % 2", "here = (start + warp + i * warps) * keys_in_tile, ring + (i + 1) % 2", "one query", "fault or wrong"),
    "codes of a word in another order": ("(2, 0x7362)", "(2, 0x6372)", "codes", "wrong"),
    "codes off by their offset": ("-0x1B7F1B80", "-0x1B801B80", "codes of odd sizes", "wrong"),
    "codes without a sign": ("x & -0x800081", "x & -0x800001", "codes", "wrong"),
    "columns of codes in the order of sums": ("block // 4 * 32 + place * 4 + block % 4, 4", "right, 1", "codes", "wrong"),
    "codes of other rows": ("row in (0, 1, 8, 9)", "row in (0, 8, 1, 9)", "codes", "wrong"),
    "codes of a row in another order than the queries": ("2 * k + 4 * i)", "2 * k + 4 * (1 - i))", "codes", "wrong"),
}  # fmt: skip
"""Text and what takes its place, the problem that shows it, and how."""


MODULES: dict[Any, tuple[str, ...]] = {
    source: ("decode",),
    of_splits: ("merge",),
    codes: ("column_of_code", "product_of_codes", "product_of_weights_and_codes"),
}
"""What a kernel takes of each."""


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_caught(name: str, monkeypatch: pytest.MonkeyPatch, record_property: Any) -> None:
    old, new, on, how = FAULTS[name]
    record_property("emulated", "fault")
    module, names = next((m, names) for m, names in MODULES.items() if old in inspect.getsource(m))
    faulty = mutated(module, old, new)
    for part in names:
        monkeypatch.setattr(module, part, getattr(faulty, part))
    case = problem(**PROBLEMS[on])
    with pytest.raises((Fault, AssertionError)) as caught:
        compare(case, *decoded(small(case.element, **sizes_of(case)), case))
    assert ("fault" if isinstance(caught.value, Fault) else "wrong") in how


@pytest.fixture
def recorder(monkeypatch):
    """Calls are launched by the emulator, and caches cut into small splits."""
    monkeypatch.setattr(decode_configurations, "SPLIT_KEYS", 256)
    with standins.pretending(monkeypatch, emulator.launch) as found:
        yield found


SAMPLES = {
    f"{name}, {c.name}": (name, c) for name in (DECODE, PAGED) for c in cases(getattr(refattn, name)) if c.arguments["query"].size < 5000
}
OWN = {f"{name}, {c.name}": (name, c) for name, c in decode_cases()}


def judged(name: str, case: Any, dtype: str, kind: str = "torch") -> None:
    found = list(compare_case(candidate(name, StandIn(kind)), getattr(refattn, name), case, named_format(dtype)))
    assert [(r.what, r.error_over_budget, r.reason) for r in found if r.status == "fail"] == []
    assert any(r.status == "pass" for r in found) or "channel" in case.name or "head" in case.name


@pytest.mark.parametrize("case", SAMPLES)
def test_the_oracles_cases(recorder, case, record_property):
    record_property("emulated", case)
    judged(*SAMPLES[case], "float32")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("case", SAMPLES)
def test_numbers_of_16_bits(recorder, case, dtype, record_property):
    record_property("emulated", case)
    judged(*SAMPLES[case], dtype)


@pytest.mark.parametrize("case", [name for name in OWN if "20" in name or "window, pages of 7" in name])
def test_the_batterys_own_cases(recorder, case, record_property):
    record_property("emulated", case)
    judged(*OWN[case], "bfloat16")
    is_split = recorder.launches[0].arguments["splits"] > 1
    assert is_split == ("20" in case) == ("merge_bfloat16" in {x.kernel.name for x in recorder.launches})


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "torch"])
def test_every_library(recorder, kind):
    judged(*SAMPLES[f"{PAGED}, causal"], "float32", kind)


def operands(kind="torch", dtype="float32", page_size=0, room=600, **options):
    random = np.random.default_rng(0)
    query = standins.to_device(random.normal(size=(2, 4, 1, 8)), kind, dtype=dtype, **options)
    shape = (3, 2, page_size, 8) if page_size else (2, 2, room, 8)
    caches = [standins.to_device(random.normal(size=shape), kind, dtype=dtype, **options) for _ in range(2)]
    names = ("key_pages", "value_pages") if page_size else ("key", "value")
    table = {"block_table": np.array([[2, 0], [1, -1]])} if page_size else {}
    return {
        "query": query,
        **dict(zip(names, caches, strict=True)),
        **table,
        "lengths": np.array([room if not page_size else 2 * page_size, 3]),
    }


@pytest.fixture
def noted(monkeypatch):
    """No launch does anything."""
    with standins.pretending(monkeypatch) as found:
        yield found


@pytest.mark.parametrize("kind", KINDS)
def test_results_are_of_the_callers_kind_on_his_device_and_stream(noted, kind):
    output, lse = refattn_numba.decode_attention_with_lse(**operands(kind, device=1))
    assert type(output) is type(lse) is standins.KINDS[kind]
    assert (output.shape, lse.shape, output.number) == ((2, 4, 1, 8), (2, 4, 1), 1)
    assert [x.kernel.name for x in noted.launches] == ["decode_float32_64", "merge_float32"]
    assert {(x.device, x.stream) for x in noted.launches} == {(1, {"torch": 7, "cupy": 11}.get(kind, 0))}
    assert noted.synchronized == (kind in {"jax", "somebody"})


def test_lengths_and_tables_lie_on_either_side(recorder):
    given = operands(page_size=5)
    wanted = refattn_numba.paged_attention(**given).a
    for names in (["lengths"], ["block_table"], ["lengths", "block_table"]):
        moved = {name: standins.to_device(given[name]) for name in names}
        assert np.array_equal(refattn_numba.paged_attention(**{**given, **moved}).a, wanted)


def test_a_number_as_scale_goes_into_the_others(noted):
    refattn_numba.decode_attention(**operands(room=8), key_scale=0.5, value_scale=-2.0, scale=3.0)
    (launch,) = noted.launches
    assert (launch.arguments["scale"], launch.arguments["value_factor"], launch.arguments["key_scale"]) == (1.5, -2.0, 0)


@pytest.mark.parametrize(
    ("blocks", "key_len", "room", "splits"),
    [(1, 255, 100, 1), (1, 512, 100, 2), (8, 1 << 20, 396, 49), (200, 1 << 20, 396, 1), (1000, 1 << 20, 396, 1), (1, 1 << 20, 396, 128)],
)
def test_how_many_splits(blocks, key_len, room, splits):
    """All run at once, none has fewer than 256 keys, and there are at most 128."""
    assert decode_configurations.splits_for(blocks, key_len, room) == splits


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("head_dim", [8, 64])
def test_codes(recorder, dtype, head_dim):
    """Rows that no copy to shared memory could begin at are copied first."""
    random = np.random.default_rng(1)
    query = on(random.normal(size=(2, 4, 1, head_dim)), dtype=dtype)
    pools = {f"{name}_pages": random.integers(-128, 128, (5, 2, 16, head_dim), dtype=np.int8) for name in ("key", "value")}
    scales = {"key_scale": random.uniform(0.002, 0.004, (5, 2, 16, 1)), "value_scale": random.uniform(0.002, 0.004, (2, 1, 1))}
    rest = {"block_table": np.array([[3, 0], [4, 1]]), "lengths": np.array([32, 19])}
    given = {**{n: on(x) for n, x in pools.items()}, **{n: on(x, dtype="float32") for n, x in scales.items()}}
    output = refattn_numba.paged_attention(query, **given, **rest)
    wanted = refattn.paged_attention(query.a.astype(np.float64), **pools, **{n: x.astype(np.float32) for n, x in scales.items()}, **rest)
    assert output.a.dtype.name == dtype
    assert recorder.launches[0].kernel.name == f"decode_{dtype}_64_codes"
    assert (recorder.launches[0].arguments["key"] == given["key_pages"].a.ctypes.data) == (head_dim == 64)
    assert np.abs(output.a.astype(np.float64) - wanted).max() < 2 * ROUNDING[dtype] * 128 * 0.004


def on(x, **options):
    return standins.to_device(x, **options)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda: {"lengths": np.array([601, 0])}, ValueError, "lengths runs from 0 to 601, but key_len is 600"),
        (lambda: {"lengths": np.array([3, -1])}, ValueError, "lengths runs from -1 to 3, but key_len is 600"),
        (lambda: {"lengths": on(np.ones(2, np.float32))}, TypeError, "lengths"),
        (lambda: {"key": on(np.ones((2, 2, 600, 8), np.int8))}, TypeError, "key is int8, but value is float32: on a device both must be of one type"),
        (lambda: {n: on(np.ones((2, 2, 600, 8), np.int8)) for n in ("key", "value")}, TypeError, "key is int8, but query is float32: on a device codes need"),
        (lambda: {n: on(np.ones((2, 2, 600, 8), np.uint8)) for n in ("key", "value")}, TypeError, "key is uint8, but query is float32: on a device"),
        (lambda: {"value": on(np.ones((2, 2, 600, 8)), dtype="float16")}, TypeError, "key is float32, but value is float16"),
        (lambda: {"key_scale": on(np.ones((2, 1, 8), np.float32))}, ValueError, r"key_scale has shape \(2, 1, 8\), but on a device its last axis must have 1"),
        (lambda: {"value_scale": np.ones((2, 1, 1))}, TypeError, "value_scale is a numpy.ndarray in main memory, but query is a torch.Tensor"),
        (lambda: {n: on(np.ones((2, h, m, 8))) for n, h, m in (("query", 4, 1), ("key", 2, 600), ("value", 2, 600))}, TypeError, "query is float64, but"),
        (lambda: {n: on(np.ones((2, h, m, 300), np.float32)) for n, h, m in (("query", 4, 1), ("key", 2, 600))}, ValueError, "head_dim is 300, but must be 1"),
        (lambda: {"softcap": -1.0}, ValueError, "softcap is -1.0"),
    ],
)  # fmt: skip
def test_what_is_refused_before_any_launch(noted, change, error, match):
    with pytest.raises(error, match=match):
        refattn_numba.decode_attention(**{**operands(), **change()})
    assert not noted.launches


@pytest.mark.parametrize("name", [DECODE, PAGED])
def test_bad_calls_are_refused_in_the_same_words_before_any_launch(noted, name):
    for bad in getattr(refattn, name).spec.bad_calls(refattn._core.Random(0)):
        integers = ("lengths", "block_table")
        given = {n: x if n in integers or not isinstance(x, np.ndarray) else on(x, dtype="float32") for n, x in bad.arguments.items()}
        with pytest.raises(bad.error, match=bad.match) as on_device:
            getattr(refattn_numba, name)(**given)
        with pytest.raises(bad.error) as in_memory:
            getattr(refattn_numba, name)(**bad.arguments)
        assert str(on_device.value) == str(in_memory.value)
    assert not noted.launches


@pytest.mark.parametrize(
    ("options", "query_len"),
    [
        ({}, 1),
        ({"sinks": np.arange(4.0), "softcap": 2.0}, 2),
        ({"causal": True, "align": "lower_right", "window": (700, None)}, 3),
        ({"scale": -0.3, "masked_rows": "nan"}, 1),
    ],
)
def test_few_queries_of_many_keys_are_cut_into_splits(recorder, options, query_len):
    """And have a pullback, of the log-sum-exp that these kernels make."""
    random = np.random.default_rng(2)
    given = {n: random.normal(size=(1, h, m, 8)) for n, h, m in (("query", 4, query_len), ("key", 1, 1030), ("value", 1, 1030))}
    given |= {n: x for n, x in options.items() if isinstance(x, np.ndarray)}
    rest = {n: x for n, x in options.items() if n not in given}
    arrays = {n: on(x, dtype="float32") for n, x in given.items()}
    (output, lse), pullback = refattn_numba.scaled_dot_product_attention_with_lse.vjp(**arrays, **rest)
    assert [x.kernel.name for x in recorder.launches] == ["decode_float32_64", "merge_float32"]
    recorder.run = by_numpy.launch
    grads = pullback(output)
    (wanted, of_lse), exact = refattn.scaled_dot_product_attention_with_lse.vjp(**given, **rest)
    assert np.allclose(output.a, wanted, atol=1e-6)
    assert np.allclose(lse.a, of_lse, atol=1e-5)
    for name, d in exact(wanted, None).items():
        assert np.allclose(grads[name].a, d, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [{"mask": np.ones((1, 1030), bool)}, {"causal": True, "align": "upper_left"}, {"query": (1, 4, 5, 8)}, {"key": (1, 1, 1000, 8)}],
    ids=lambda change: next(iter(change)),
)
def test_other_calls_are_not(noted, change):
    shapes = {"query": (1, 4, 1, 8), "key": (1, 1, 1030, 8)}
    shapes |= {name: x for name, x in change.items() if name in shapes}
    given = {n: on(np.ones(shape, np.float32)) for n, shape in shapes.items()}
    given |= {n: on(x) if isinstance(x, np.ndarray) else x for n, x in change.items() if n not in shapes}
    refattn_numba.scaled_dot_product_attention(**given, value=given["key"])
    assert [x.kernel.name.partition("_")[0] for x in noted.launches] == ["forward"]


def test_there_is_no_pullback(noted):
    with pytest.raises(TypeError, match="attention to a cache on a device has no pullback"):
        refattn_numba.decode_attention.vjp(**operands())
    assert not noted.launches


def test_what_has_no_rows_is_not_launched(noted):
    given = {**operands(), "query": on(np.ones((2, 4, 0, 8), np.float32))}
    assert refattn_numba.decode_attention(**given).shape == (2, 4, 0, 8)
    assert not noted.launches


def test_explain_names_what_a_call_takes(noted, monkeypatch):
    monkeypatch.setattr(cache, "cubin_of", lambda kernel, architecture: Cubin(b"", kernel.name, architecture, 168, 16, 0))
    found = explain(**operands(dtype="bfloat16"))
    assert [(row.face, row.kernel, row.tile, row.warps) for row in found] == [
        ("decode", "decode_bfloat16_64", 16, 4),
        ("merge", "merge_bfloat16", 4, 4),
    ]
    x, y = (on(np.ones((1, 2, m, 8), np.float32)) for m in (1, 1024))
    assert [row.kernel for row in explain(x, y, y)][:3] == ["decode_float32_64", "merge_float32", "delta_float32"]
    assert explain(x, y, y, mask=y)[0].kernel == "forward_float32_32_options"
