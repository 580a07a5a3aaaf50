"""Every fast function against its reference: values, gradients, memory layouts, refusals."""

from __future__ import annotations

import inspect
import pickle

import numpy as np
import pytest

pytest.importorskip("numba")

import refattn
import refattn_numba
from refattn import testing
from refattn._core import tree
from refattn._core.mechanism import outputs
from refattn._core.random import Random
from refattn_numba._twin import twin_of

TWINS = [pytest.param(twin, getattr(refattn, name), id=name) for name, twin in refattn_numba.twins().items()]
SAMPLES = [
    pytest.param(twin, getattr(refattn, name), s, id=f"{name}-{s.name}")
    for name, twin in refattn_numba.twins().items()
    for s in testing.samples(twin)
]
ATTENTION, REFERENCE = refattn_numba.scaled_dot_product_attention, refattn.scaled_dot_product_attention


def agree(twin, reference, arguments, tolerance=1e-12):
    """Outputs and all gradients, relative to the largest element of each."""
    y, pullback = twin.vjp(**arguments)
    want, want_pullback = reference.vjp(**arguments)
    ds = testing.cotangents(want)
    grads, want_grads = (dict(tree.leaves(back(*ds))) for back in (pullback, want_pullback))
    assert grads.keys() == want_grads.keys()
    pairs = [*zip(outputs(y), outputs(want), strict=True), *((grads[n], want_grads[n]) for n in grads)]
    for got, exact in pairs:
        scale = max(1.0, np.abs(exact[np.isfinite(exact)]).max(initial=0))
        np.testing.assert_allclose(got, exact, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize(("twin", "reference"), TWINS)
def test_has_the_face_of_its_reference(twin, reference):
    ours, theirs = (inspect.signature(f).parameters for f in (twin, reference))
    assert [*ours.items()][: len(theirs)] == [*theirs.items()]
    assert twin.__name__ == reference.__name__
    extras = [p for name, p in ours.items() if name not in theirs]
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in extras)
    if extras:
        assert all(f"\n{p.name} : " in twin.__doc__ for p in extras)
        assert twin.spec.facts.arguments == reference.spec.facts.arguments
    else:
        assert (twin.__doc__, twin.spec) == (reference.__doc__, reference.spec)
    assert pickle.loads(pickle.dumps(twin)) is twin


@pytest.mark.parametrize(("twin", "reference", "sample"), SAMPLES)
def test_agrees_with_its_reference(twin, reference, sample):
    agree(twin, reference, sample.arguments)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize(("twin", "reference"), TWINS)
def test_passes_the_check(twin, reference, dtype):
    pytest.importorskip("ml_dtypes")
    report = testing.check(twin, reference, dtype=dtype)
    report.raise_if_wrong()
    assert not [r for r in report.results if "not supported" in r.reason]


def across_tiles(random):
    """A call whose lengths and widths cross and do not divide any tile."""
    shapes = {"query": (2, 4, 131, 67), "key": (2, 2, 197, 67), "value": (2, 2, 197, 37)}
    return {name: random.normal(shape) for name, shape in shapes.items()}


OPTIONS = {
    "nothing": {},
    "causal, upper left": {"causal": True, "align": "upper_left"},
    "causal, lower right, window": {"causal": True, "align": "lower_right", "window": (50, 3)},
    "window": {"window": (7, 70), "align": "lower_right"},
    "softcap and scale": {"softcap": 2.0, "scale": 0.5},
    "mask of every pair": {"mask": Random(1).booleans(0.5, (2, 4, 131, 197))},
    "mask of padded keys, uniform": {"mask": Random(2).booleans(0.3, (2, 1, 1, 197)), "masked_rows": "uniform"},
    "rows that see nothing": {"mask": np.arange(131)[:, None] % 3 > 0, "masked_rows": "nan"},
    "bias of every pair": {"bias": Random(3).normal((2, 4, 131, 197))},
    "bias of heads": {"bias": Random(4).normal((4, 1, 1)), "sinks": Random(5).normal(4)},
    "bias of keys that masks": {"bias": np.where(Random(6).booleans(0.3, (1, 197)), -np.inf, Random(7).normal((1, 197)))},
    "temperature of queries": {"scale": Random(8).uniform(0.1, 0.3, (4, 131, 1))},
    "temperature of pairs": {"scale": Random(9).uniform(0.1, 0.3, (131, 197)), "softcap": 3.0},
    "dropout": {"keep": Random(10).booleans(0.7, (2, 4, 131, 197)), "dropout_rate": 0.3},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_agrees_across_tiles(name):
    agree(
        refattn_numba.scaled_dot_product_attention_with_lse,
        refattn.scaled_dot_product_attention_with_lse,
        {**across_tiles(Random(0)), **OPTIONS[name]},
    )


@pytest.mark.parametrize("lead", [(), (0,), (3,), (2, 0), (2, 2)])
@pytest.mark.parametrize(
    ("query_len", "key_len", "head_dim", "value_dim"), [(0, 5, 3, 2), (5, 0, 3, 2), (1, 1, 1, 1), (17, 16, 1, 65), (64, 65, 33, 0)]
)
def test_sizes_at_the_edges(lead, query_len, key_len, head_dim, value_dim):
    random = Random(11)
    sizes = {"query": (4, query_len, head_dim), "key": (2, key_len, head_dim), "value": (2, key_len, value_dim)}
    agree(ATTENTION, REFERENCE, {name: random.normal((*lead, *shape)) for name, shape in sizes.items()})


LAYOUTS = {
    "Fortran order": np.asfortranarray,
    "every second element": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "negative strides": lambda x: x[..., ::-1, ::-1].copy()[..., ::-1, ::-1],
    "offset by one": lambda x: np.concatenate([x[..., :1], x], axis=-1)[..., 1:],
    "heads and lengths exchanged": lambda x: np.ascontiguousarray(np.moveaxis(x, -2, -3)).swapaxes(-2, -3),
    "repeated by stride 0": lambda x: np.broadcast_to(x[:1], x.shape),
    "big endian": lambda x: x.astype(">f8"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_memory_layout(layout):
    given = {n: LAYOUTS[layout](x) for n, x in across_tiles(Random(12)).items()}
    plain = {n: np.array(x, dtype=float, order="C") for n, x in given.items()}
    for x in given.values():
        x.setflags(write=False)
    y, pullback = ATTENTION.vjp(**given)
    want, want_pullback = ATTENTION.vjp(**plain)
    d = Random(13).normal(y.shape)
    np.testing.assert_array_equal(y, want)
    grads, want_grads = pullback(d[::-1][::-1]), want_pullback(d)
    for name, g in grads.items():
        np.testing.assert_array_equal(g, want_grads[name], err_msg=name)


@pytest.mark.parametrize("queries", [3, 20])
@pytest.mark.parametrize("cap", [1e-42, 1e-30, 1e30, 1e300])
def test_caps_that_single_precision_cannot_hold(queries, cap):
    """A tiny one makes all weights equal, a huge one caps nothing."""
    random = Random(19)
    given = {name: random.normal((1, n, 8)).astype(np.float32) for name, n in (("query", queries), ("key", 30), ("value", 30))}
    np.testing.assert_allclose(ATTENTION(**given, softcap=cap), REFERENCE(**given, softcap=cap), rtol=0, atol=1e-6)


@pytest.mark.parametrize("queries", [3, 20])
@pytest.mark.parametrize("sink", [np.nan, np.inf])
def test_a_sink_that_is_no_number_gives_nothing_to_a_row_without_keys(queries, sink):
    random = Random(20)
    given = {name: random.normal((2, n, 8)) for name, n in (("query", queries), ("key", 30), ("value", 30))}
    given |= {"sinks": np.array([sink, 0.0]), "mask": np.arange(queries)[:, None] != 1}
    np.testing.assert_array_equal(np.isnan(ATTENTION(**given)), np.isnan(REFERENCE(**given)))


@pytest.mark.parametrize("queries", [3, 20])
def test_rows_without_any_key(queries):
    random = Random(21)
    given = {"query": random.normal((2, queries, 8)), "key": random.normal((2, 0, 8)), "value": random.normal((2, 0, 5))}
    for masked_rows in ("zero", "nan", "uniform"):
        agree(ATTENTION, REFERENCE, {**given, "bias": np.zeros((queries, 0)), "masked_rows": masked_rows})
    packed = {**given, "cu_seqlens_q": np.array([0, 1, queries]), "cu_seqlens_k": np.array([0, 0, 0]), "masked_rows": "nan"}
    agree(refattn_numba.varlen_attention, refattn.varlen_attention, packed)


def test_what_stands_behind_the_mask_reaches_nothing():
    given = {**across_tiles(Random(14)), "mask": np.arange(197) % 5 > 0}
    clean, clean_pullback = ATTENTION.vjp(**given)
    spoilt = {**given, "key": given["key"].copy(), "value": given["value"].copy()}
    spoilt["key"][..., ::5, :], spoilt["value"][..., ::10, :], spoilt["value"][..., 5::10, :] = np.nan, np.inf, np.nan
    y, pullback = ATTENTION.vjp(**spoilt)
    np.testing.assert_allclose(y, clean, rtol=0, atol=1e-13)  # another kernel runs, whose sums have another order
    d = Random(15).normal(y.shape)
    want = clean_pullback(d)
    for name, g in pullback(d).items():
        np.testing.assert_allclose(g, want[name], rtol=0, atol=1e-12, err_msg=name)


def test_threads_do_not_change_a_bit():
    import numba

    given = {**across_tiles(Random(16)), **OPTIONS["bias of heads"]}
    results, before = [], numba.get_num_threads()
    try:
        for threads in {1, before}:
            numba.set_num_threads(threads)
            y, pullback = ATTENTION.vjp(**given)
            results.append([y, *pullback(np.ones_like(y)).values()])
    finally:
        numba.set_num_threads(before)
    for first, second in zip(results[0], results[-1], strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("given", "made"),
    [
        (["float32"], "float32"),
        (["float64"], "float64"),
        (["float16"], "float16"),
        (["bfloat16"], "bfloat16"),
        (["float16", "bfloat16"], "float32"),
        (["bfloat16", "float32"], "float32"),
        (["float16", "float64"], "float64"),
    ],
)
def test_precision_is_that_of_the_arguments(given, made):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    dtypes = [np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name) for name in given]
    x, other = (Random(17).normal((2, 3, 4)).astype(dtype) for dtype in (dtypes[0], dtypes[-1]))
    (y, lse), pullback = refattn_numba.scaled_dot_product_attention_with_lse.vjp(x, x, other)
    assert {y.dtype.name, *(g.dtype.name for g in pullback(y, lse).values())} == {made}
    assert lse.dtype == ("float64" if made == "float64" else "float32")


def test_longdouble_is_refused():
    x = np.zeros((1, 2, 3), np.longdouble)
    with pytest.raises(TypeError, match="use the reference"):
        ATTENTION(x, x, x)


@pytest.mark.parametrize(("twin", "reference"), TWINS)
def test_bad_calls_of_the_reference_are_refused(twin, reference):
    for call in reference.spec.bad_calls(Random(0)) if reference.spec.bad_calls else ():
        with pytest.raises(call.error, match=call.match):
            twin(**call.arguments)


def test_bad_calls_are_refused_before_a_kernel_runs():
    for m in (ATTENTION, REFERENCE):
        x = np.zeros((2, 3, 4))
        with pytest.raises(refattn.ShapeError, match="key_len is 4 in value, but 3 in key"):
            m(x, x, np.zeros((2, 4, 4)))
        with pytest.raises(refattn.ShapeError, match="does not broadcast"):
            m(x, x, x, mask=np.ones((2, 3), bool))
        with pytest.raises(ValueError, match="align is None, but query_len = 3 and key_len = 4 differ"):
            m(x, np.zeros((2, 4, 4)), np.zeros((2, 4, 4)), causal=True)
        with pytest.raises(TypeError, match="query is int64, but must be floating point"):
            m(x.astype(int), x, x)
        _, pullback = m.vjp(x, x, x)
        with pytest.raises(ValueError, match="d_output has shape"):
            pullback(np.zeros((2, 3, 5)))


def test_composites_call_the_twin_within_using():
    random = Random(18)
    x, weights = random.normal((2, 5, 8)), [random.normal((8, 8)) for _ in range(4)]
    plain, plain_pullback = refattn.multi_head_attention.vjp(x, x, x, *weights, num_heads=2)
    dtypes = []
    with refattn_numba.using(), refattn.hooked(lambda r: dtypes.append(r.path) if r.name == "lse" else None):
        fast, pullback = refattn.multi_head_attention.vjp(x, x, x, *weights, num_heads=2)
    assert not dtypes  # the reference's own stages did not run
    np.testing.assert_allclose(fast, plain, atol=1e-13)
    want = plain_pullback(np.cos(plain))
    for name, g in pullback(np.cos(plain)).items():
        np.testing.assert_allclose(g, want[name], atol=1e-12, err_msg=name)


def test_another_signature_is_refused():
    def softmax(x, axis=-1):
        return x, lambda d: {"x": d}

    with pytest.raises(TypeError, match=r"softmax: name or parameters differ from refattn.primitives.softmax"):
        twin_of(refattn.softmax)(softmax)
    with pytest.raises(TypeError, match="softmax: name or parameters differ"):
        twin_of(refattn.softmax, like=refattn.linear)(softmax)
