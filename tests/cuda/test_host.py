"""Whole public calls with arrays on a stand-in of a device, whose launches NumPy makes as their parameters say (`by_numpy`)."""

import numpy as np
import pytest

pytest.importorskip("numba")

import refattn
import refattn_numba
from benchmarks.gpu_battery import DENSE, VARLEN, candidate, own_cases
from refattn.testing import cases
from refattn.testing.checking import compare_case
from refattn.testing.frameworks import NumPy
from refattn.testing.precision import named_format
from refattn_numba.cuda import CudaError, explain, is_available
from tests.cuda import by_numpy, standins

KINDS = tuple(standins.KINDS)
SAMPLES = {name: {c.name: c for c in cases(getattr(refattn, name)) if c.arguments["query"].size < 5000} for name in (DENSE, VARLEN)}
BOTH = [(name, case) for name, found in SAMPLES.items() for case in found]
OWN = {case.name: (name, case) for name, case in own_cases() if case.name != "long"}
FULLY_WITH_ARRAYS = ("all at once", "packed, causal window", "head_dim 9, value_dim 1", "negative scale")


class StandIn(NumPy):
    """Arrays of a stand-in."""

    def __init__(self, kind):
        self.kind = kind

    def make(self, x, target):
        return standins.to_device(x, self.kind, dtype=target.name if x.dtype.kind == "f" else None)

    def plain(self, x, what="argument"):
        return standins.to_host(x)


@pytest.fixture
def recorder(monkeypatch):
    with standins.pretending(monkeypatch, by_numpy.launch) as found:
        yield found


@pytest.fixture
def noted(monkeypatch):
    """No launch does anything."""
    with standins.pretending(monkeypatch) as found:
        yield found


def judged(name, case, dtype="float32", kind="torch"):
    found = list(compare_case(candidate(name, StandIn(kind)), getattr(refattn, name), case, named_format(dtype)))
    assert [(r.what, r.error_over_budget, r.reason) for r in found if r.status == "fail"] == []
    return found


@pytest.mark.parametrize(("name", "case"), BOTH)
def test_the_oracles_cases(recorder, name, case):
    assert judged(name, SAMPLES[name][case])
    assert not (recorder.launches and case in {"masked row uniform", "temperature per head"})


@pytest.mark.parametrize("case", OWN)
def test_the_batterys_own_cases(recorder, case):
    assert any(r.status == "pass" for r in judged(*OWN[case]))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("case", FULLY_WITH_ARRAYS)
def test_numbers_of_16_bits(recorder, dtype, case):
    judged(*OWN[case], dtype)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "torch"])
@pytest.mark.parametrize("case", FULLY_WITH_ARRAYS)
def test_every_library(recorder, kind, case):
    judged(*OWN[case], kind=kind)


def operands(kind="torch", dtype="float32", shape=(2, 4, 5, 8), **options):
    random = np.random.default_rng(0)
    return [standins.to_device(random.normal(size=shape), kind, dtype=dtype, **options) for _ in range(3)]


@pytest.mark.parametrize("kind", KINDS)
def test_results_are_of_the_callers_kind_on_his_device_and_stream(noted, kind):
    q, k, v = operands(kind, device=1)
    (output, lse), pullback = refattn_numba.scaled_dot_product_attention_with_lse.vjp(q, k, v)
    grads = pullback(output)
    for x in (output, lse, *grads.values()):
        assert type(x) is standins.KINDS[kind]
        assert x.number == 1
    assert list(grads) == ["query", "key", "value"]
    assert output.a.dtype == lse.a.dtype == np.float32
    assert {launch.device for launch in noted.launches} == {1}
    assert {launch.stream for launch in noted.launches} == {{"torch": 7, "cupy": 11}.get(kind, 0)}


@pytest.mark.parametrize("kind", KINDS)
def test_who_knows_no_streams_waits(noted, kind):
    q, k, v = operands(kind)
    _, pullback = refattn_numba.scaled_dot_product_attention.vjp(q, k, v)
    before = noted.synchronized
    pullback(q)
    assert (before, noted.synchronized) == ((1, 2) if kind in {"jax", "somebody"} else (0, 0))


def test_launches_of_a_call_and_its_pullback(noted):
    q, k, v = operands()
    _, pullback = refattn_numba.scaled_dot_product_attention.vjp(q, k, v, causal=True, window=(2, None))
    assert [x.kernel.name.partition("_float32")[0] for x in noted.launches] == ["forward"]
    given = noted.launches[0].arguments
    assert (given["low"], given["high"], given["align_right"]) == (-2, 0, 0)
    assert given["scale"] == 1 / np.sqrt(8)
    pullback(q)
    assert [x.kernel.name.partition("_float32")[0] for x in noted.launches[1:]] == ["delta", "backward_keys", "backward_queries"]


@pytest.mark.parametrize(
    ("options", "has_options"),
    [({}, False), ({"softcap": 2.0}, True), ({"scale": 0.5}, False), ({"scale": 0.0}, True), ({"scale": -1.0}, True)],
)
def test_the_kernel_with_options_is_taken_where_it_is_needed(noted, options, has_options):
    refattn_numba.scaled_dot_product_attention(*operands(), **options)
    assert noted.launches[0].kernel.config.has_options == has_options


@pytest.mark.parametrize(
    ("sizes", "faces"),
    [((5, 0), ["forward", "delta", "backward_queries"]), ((0, 5), ["backward_keys"]), ((0, 0), [])],
)
def test_what_has_no_rows_is_not_launched(noted, sizes, faces):
    m, n = sizes
    q, k, v = (standins.to_device(np.ones((1, 2, size, 8), np.float32)) for size in (m, n, n))
    _, pullback = refattn_numba.scaled_dot_product_attention.vjp(q, k, v)
    assert pullback(q)["key"].shape == (1, 2, n, 8)
    assert [x.kernel.name.partition("_float32")[0] for x in noted.launches] == faces


@pytest.mark.parametrize("kind", ["cupy", "numba"])
def test_an_output_that_may_be_written_to_is_a_copy(noted, kind):
    q, k, v = operands(kind)
    output, pullback = refattn_numba.scaled_dot_product_attention.vjp(q, k, v)
    assert noted.launches[0].arguments["output"] != output.a.ctypes.data
    pullback(q)
    assert noted.launches[1].arguments["output"] == noted.launches[0].arguments["output"]


@pytest.mark.parametrize(("which", "name"), [(0, "query"), (2, "value"), (3, "output")])
def test_a_tensor_that_was_written_to_is_noticed(noted, which, name):
    q, k, v = operands()
    output, pullback = refattn_numba.scaled_dot_product_attention.vjp(q, k, v)
    (q, k, v, output)[which][...] = 0
    with pytest.raises(ValueError, match=f"{name} was written to after the call whose pullback reads it"):
        pullback(q)


BAD = [
    (name, bad.name, bad)
    for name in ("scaled_dot_product_attention", "varlen_attention_with_lse")
    for bad in getattr(refattn, name).spec.bad_calls(refattn._core.Random(0))
]


@pytest.mark.parametrize(("name", "bad"), [(name, bad) for name, _, bad in BAD], ids=[f"{n}-{c}" for n, c, _ in BAD])
def test_bad_calls_are_refused_in_the_same_words_before_any_launch(noted, name, bad):
    given = {n: x if n.startswith("cu_") or not isinstance(x, np.ndarray) else standins.to_device(x) for n, x in bad.arguments.items()}
    given |= {n: standins.to_device(bad.arguments[n], dtype="float32") for n in ("query", "key", "value")}
    with pytest.raises(bad.error, match=bad.match) as on_device:
        getattr(refattn_numba, name)(**given)
    with pytest.raises(bad.error) as in_memory:
        getattr(refattn_numba, name)(**bad.arguments)
    assert str(on_device.value) == str(in_memory.value)
    assert not noted.launches


def replaced(**change):
    q, k, v = operands()
    return {"query": q, "key": k, "value": v, **change}


def on(x, **options):
    return standins.to_device(x, **options)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda: {"key": np.ones((2, 4, 5, 8))}, TypeError, "key is a numpy.ndarray in main memory, but query is a torch.Tensor on a device"),
        (lambda: {"bias": on(np.ones((5, 5)), device=1)}, TypeError, "bias lies on device 1, but query on device 0"),
        (lambda: {"mask": on(np.ones((5, 5), bool), kind="cupy")}, TypeError, "mask is a cupy.CupyArray, but query is a torch.Tensor"),
        (lambda: {"key": on(np.ones((2, 4, 5, 8)), dtype="float16")}, TypeError, "key is float16, but query is float32: on a device both"),
        (lambda: {n: on(np.ones((2, 4, 5, 8))) for n in ("query", "key", "value")}, TypeError, "query is float64, but on a device must be"),
        (lambda: {"key": on(np.ones((2, 4, 5, 7), np.float32))}, ValueError, "head_dim is 7 in key, but 8 in query"),
        (lambda: {"mask": on(np.ones((5, 5), np.float32))}, TypeError, "mask is float32, but must be bool"),
        (lambda: {"bias": on(np.ones((5, 5), np.int32))}, TypeError, "bias is int32, but must be floating point"),
        (lambda: {"sinks": on(np.ones(3, np.float32))}, ValueError, "sinks"),
        (lambda: {"scale": on(np.ones(()))}, TypeError, "scale is an array, but on a device must be a number"),
        (lambda: {"masked_rows": "uniform"}, ValueError, "masked_rows is 'uniform', but on a device must be 'zero' or 'nan'"),
        (lambda: {"softcap": -1.0}, ValueError, "softcap is -1.0, but must be positive float or None"),
        (lambda: {"query": on(np.ones((2, 4, 5, 300), np.float32)), "key": on(np.ones((2, 4, 5, 300), np.float32))}, ValueError, "head_dim is 300"),
    ],
)  # fmt: skip
def test_what_is_refused_before_any_launch(noted, change, error, match):
    with pytest.raises(error, match=match):
        refattn_numba.scaled_dot_product_attention(**replaced(**change()))
    assert not noted.launches


def test_a_query_in_main_memory_and_a_key_on_a_device(noted):
    with pytest.raises(TypeError, match=r"query is a numpy.ndarray in main memory, but key is a torch.Tensor on a device"):
        refattn_numba.scaled_dot_product_attention(**replaced(query=np.ones((2, 4, 5, 8))))


def test_what_is_too_long_is_refused(noted):
    query = standins.to_device(np.ones((1, 1, 1, 8), np.float32))
    long = query.like(np.broadcast_to(query.a, (1, 1, (1 << 29) + 1, 8)))
    with pytest.raises(ValueError, match="key_len is 536870913, but on a device must be at most 536870912"):
        refattn_numba.scaled_dot_product_attention(query, long, long)


def test_more_blocks_than_a_device_starts_are_refused(noted):
    query = standins.to_device(np.ones((1, 1, 1, 8), np.float32))
    many = query.like(np.broadcast_to(query.a, (1, 1 << 31, 1, 8)))
    with pytest.raises(MemoryError):  # of the output, long before
        refattn_numba.scaled_dot_product_attention(many, query.like(np.broadcast_to(query.a, (1, 1 << 31, 1, 8))), many)


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        (np.ones((2, 4, 5, 8)), TypeError, "d_output is a numpy.ndarray in main memory, but output is on a device"),
        ((2, 4, 5, 7), ValueError, r"d_output has shape \(2, 4, 5, 7\), but output has \(2, 4, 5, 8\)"),
        (np.int32, TypeError, "d_output is int32, but must be floating point"),
        (1, TypeError, "d_output lies on device 1, but output on device 0"),
    ],
)
def test_cotangents_that_are_refused(noted, given, error, match):
    _, pullback = refattn_numba.scaled_dot_product_attention.vjp(*operands())
    if isinstance(given, tuple):
        given = standins.to_device(np.ones(given, np.float32))
    elif given is np.int32:
        given = standins.to_device(np.ones((2, 4, 5, 8), given))
    elif isinstance(given, int):
        given = standins.to_device(np.ones((2, 4, 5, 8), np.float32), device=given)
    with pytest.raises(error, match=match):
        pullback(given)
    with pytest.raises(TypeError, match=r"the pullback takes d_output; got 2 by position"):
        pullback(None, None)
    with pytest.raises(TypeError, match=r"\['d_lse'\]"):
        pullback(d_lse=None)
    assert len(noted.launches) == 1


def test_cotangents_come_in_any_type_and_by_name(recorder):
    (output, lse), pullback = refattn_numba.scaled_dot_product_attention_with_lse.vjp(*operands(dtype="bfloat16"))
    d = standins.to_device(np.random.default_rng(1).normal(size=output.shape))
    wide, none = pullback(d_output=d), pullback()
    narrow = pullback(standins.to_device(d.a, dtype="bfloat16"), None)
    for name, x in wide.items():
        assert x.a.dtype.name == "bfloat16"
        assert np.array_equal(x.a, narrow[name].a)
        assert not none[name].a.any()
    assert pullback(None, standins.to_device(np.ones(lse.shape)))["query"].a.any()


def test_steps_of_the_callers_arrays_are_passed_on(recorder):
    """Heads after positions, and a key that all heads share by a step of 0."""
    random = np.random.default_rng(2)
    numbers = random.normal(size=(2, 7, 4, 8)).astype(np.float32)
    q, shared = standins.to_device(numbers), standins.to_device(random.normal(size=(1, 1, 9, 8)).astype(np.float32))
    query, key = q.like(q.a.swapaxes(1, 2)), shared.like(np.broadcast_to(shared.a, (2, 4, 9, 8)))
    output = refattn_numba.scaled_dot_product_attention(query, key, key)
    given = recorder.launches[0].arguments
    assert given["query"] == q.a.ctypes.data
    assert [given[f"query_{axis}"] for axis in ("batch", "head", "row")] == [224, 8, 32]
    assert [given[f"key_{axis}"] for axis in ("batch", "head", "row")] == [0, 0, 8]
    wanted = refattn.scaled_dot_product_attention(query.a, key.a, key.a)
    assert np.allclose(output.a, wanted, atol=1e-6)


def test_backwards_rows_are_read_where_they_lie(recorder):
    q, k, v = operands("cupy")
    turned = k.like(k.a[:, :, ::-1])
    output = refattn_numba.scaled_dot_product_attention(q, turned, v)
    assert recorder.launches[0].arguments["key_row"] == -8
    assert np.allclose(output.a, refattn.scaled_dot_product_attention(q.a, turned.a, v.a), atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 2, 1, 5, 5), (2, 1, 5, 5), (3, 1, 4, 1, 5), (1, 1, 1, 1, 1), (5, 5)])
def test_a_bias_has_the_gradient_of_its_own_shape(recorder, shape):
    """Also where some of several leading axes share it."""
    random = np.random.default_rng(3)
    numbers = {n: random.normal(size=(3, 2, 4, 5, 8)) for n in ("query", "key", "value")} | {"bias": random.normal(size=shape)}
    given = {n: standins.to_device(x, dtype="float32") for n, x in numbers.items()}
    output, pullback = refattn_numba.scaled_dot_product_attention.vjp(**given)
    d = random.normal(size=output.shape).astype(np.float32)
    wanted = refattn.scaled_dot_product_attention.vjp(**numbers)[1](d)["bias"]
    got = pullback(standins.to_device(d))["bias"]
    assert got.shape == shape
    assert np.allclose(got.a, wanted, atol=1e-5)


def test_rows_that_see_nothing_may_be_no_numbers(recorder):
    random = np.random.default_rng(5)
    numbers = {n: random.normal(size=(2, 4, 5, 8)) for n in ("query", "key", "value")}
    mask = np.ones((5, 5), bool)
    mask[2] = False
    given = {n: standins.to_device(x, dtype="float32") for n, x in numbers.items()} | {"mask": standins.to_device(mask)}
    output, pullback = refattn_numba.scaled_dot_product_attention.vjp(**given, masked_rows="nan")
    d = random.normal(size=output.shape).astype(np.float32)
    wanted, exact = refattn.scaled_dot_product_attention.vjp(**numbers, mask=mask, masked_rows="nan")
    assert np.allclose(output.a, wanted, atol=1e-6, equal_nan=True)
    assert np.isnan(output.a[:, :, 2]).all()
    for name, grad in pullback(standins.to_device(d)).items():
        assert np.allclose(grad.a, exact(d)[name], atol=1e-5)


def packed():
    random = np.random.default_rng(4)
    starts = np.array([0, 3, 3, 11], np.int64), np.array([0, 5, 6, 9], np.int64)
    return random.normal(size=(4, 11, 8)), random.normal(size=(2, 9, 8)), random.normal(size=(2, 9, 8)), *starts


@pytest.mark.parametrize("kind", KINDS)
def test_lengths_in_main_memory_or_on_the_device(recorder, kind):
    q, k, v, *starts = packed()
    arrays = [standins.to_device(x, kind, dtype="float32") for x in (q, k, v)]
    options = {"causal": True, "align": "lower_right"}
    wanted = refattn.varlen_attention(q, k, v, *starts, **options)
    for given in (starts, [standins.to_device(x, kind) for x in starts], [standins.to_device(x, kind, dtype="int32") for x in starts]):
        output = refattn_numba.varlen_attention(*arrays, *given, **options)
        assert np.allclose(output.a, wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"cu_seqlens_k": None}, ValueError, "cu_seqlens_k is None, but query_len is 11 and key_len is 9"),
        ({"causal": True}, ValueError, "align is None, but lengths on the device are not compared"),
        ({"cu_seqlens_k": np.array([0, 5, 6, 9])}, TypeError, "lie on different sides"),
    ],
)
def test_lengths_on_the_device_that_are_refused(noted, change, error, match):
    q, k, v, *starts = (standins.to_device(x, dtype="float32" if x.dtype.kind == "f" else None) for x in packed())
    given = {"query": q, "key": k, "value": v, "cu_seqlens_q": starts[0], "cu_seqlens_k": starts[1], **change}
    with pytest.raises(error, match=match):
        refattn_numba.varlen_attention(**given)
    assert not noted.launches


def test_hooks_see_main_memory_alone(noted):
    with refattn.hooked(lambda result: None), pytest.raises(TypeError, match="a hook sees arrays in main memory alone"):
        refattn_numba.scaled_dot_product_attention(*operands())


def test_arrays_in_main_memory_stay_there(noted):
    x = np.ones((1, 2, 3, 4), np.float32)
    assert type(refattn_numba.scaled_dot_product_attention(x, x, x)) is np.ndarray
    assert not noted.launches


def test_a_device_is_there_where_it_is_new_enough(monkeypatch):
    for capability, devices, wanted in (((9, 0), 1, True), ((7, 5), 1, False), ((9, 0), 0, False)):
        with standins.pretending(monkeypatch, capability=capability, devices=devices):
            assert is_available() is wanted


def test_an_old_device_is_refused(monkeypatch):
    with standins.pretending(monkeypatch, capability=(7, 5)), pytest.raises(CudaError, match=r"compute capability 7.5"):
        refattn_numba.scaled_dot_product_attention(*operands())


def test_explain_wants_to_know_for_what():
    x = np.ones((1, 2, 3, 8), np.float32)
    with pytest.raises(ValueError, match="architecture is None, but must be one of sm_80"):
        explain(x, x, x)
    with pytest.raises(ValueError, match="architecture is 'sm_70'"):
        explain(x, x, x, architecture="sm_70")


def test_explain_names_what_a_call_takes(monkeypatch):
    from refattn_numba.cuda import cache
    from refattn_numba.cuda.kernel import Cubin

    monkeypatch.setattr(cache, "cubin_of", lambda kernel, architecture: Cubin(b"", kernel.name, architecture, 200, 16, 0))
    q, k, v = operands(dtype="bfloat16", shape=(1, 2, 3, 64))
    with standins.pretending(monkeypatch):
        found = explain(q, k, v, sinks=np.ones(2), bias=np.ones(3))
    assert [row.face for row in found] == ["forward", "delta", "backward_keys", "backward_queries", "sinks", "sum_bias"]
    assert found[0].kernel == "forward_bfloat16_64_options"
    assert (found[0].architecture, found[0].registers, found[0].stack_bytes) == ("sm_90a", 200, 0)
    assert str(found).splitlines()[0].split() == ["for", "kernel", "architecture", "tile", "warps", "registers", "shared", "bytes", "stack", "bytes"]  # fmt: skip
    assert len(str(found).splitlines()) == 7
