"""Budgets refuse no honest kernel and accept none that is wrong by little; where they tell nothing, the check says so."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import refattn
from refattn import testing
from refattn._core.mechanism import outputs
from refattn._core.random import Random
from refattn.testing import arithmetic, faulty
from refattn.testing.arithmetic import disturbed
from refattn.testing.battery import cases
from refattn.testing.budget import SOFTMAX, Allowances, forward_budgets, gradient_budgets
from refattn.testing.calls import cotangents, gradient_leaves
from refattn.testing.candidates import as_candidate
from refattn.testing.checking import compare_case
from refattn.testing.drift import Spread, drift
from refattn.testing.inputs.case import Case
from refattn.testing.precision import named_format
from refattn.testing.report import Result
from refattn.testing.vacuous import VACUOUS, is_vacuous, largest_beside, untold
from tests.tiled_backward import TiledGradients
from tests.tiled_kernel import TiledAttention
from tests.wrong_kernels import WRONG, rounded

ml_dtypes = pytest.importorskip("ml_dtypes")
ATTENTION = refattn.scaled_dot_product_attention
HALVES = ["float16", "bfloat16"]
EIGHTS = ["float8_e4m3fn", "float8_e5m2"]


def everything(m):
    return set(m.spec.signature.parameters)


def worst(report):
    return max(r.error_over_budget for r in report.results if r.passed)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("wrong", WRONG)
def test_kernels_that_are_wrong_by_little_are_found(wrong, dtype):
    name, make = WRONG[wrong]
    m = getattr(refattn, name)
    report = testing.check(rounded(make(dtype), dtype), m, dtype=dtype, supports=everything(m))
    if (wrong, dtype) == ("gelu, 0.0447", "bfloat16"):  # it differs by a tenth of a rounding where the output is normal: cannot be told
        report.raise_if_wrong()
    else:
        assert {r.what for r in report.failures} == {"output"}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", sorted({name for name, _ in WRONG.values()}))
def test_the_same_kernels_without_a_fault_pass(name, dtype):
    m = getattr(refattn, name)
    testing.check(rounded(m, dtype), m, dtype=dtype, supports=everything(m)).raise_if_wrong()


def honest_torch():
    pytest.importorskip("torch")
    from tests.torch_kernels import KERNELS

    return KERNELS


TORCH = [
    "cbam",
    "cbam_channel",
    "cbam_spatial",
    "erf",
    "gelu",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "linear",
    "log_softmax",
    "logsumexp",
    "relu",
    "rms_norm",
]
TORCH += ["rounded_linear", "sigmoid", "silu", "softmax", "tanh"]


SLOW = [pytest.param(dtype, marks=pytest.mark.slow) for dtype in ("float64", "float16")]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", *SLOW])
@pytest.mark.parametrize("name", TORCH)
def test_the_kernels_of_torch_pass(name, dtype):
    m = getattr(refattn, name.removeprefix("rounded_"))
    report = testing.check(honest_torch()[name], m, dtype=dtype, framework="torch", supports=everything(m))
    report.raise_if_wrong()
    if dtype in {"float32", "float64"}:  # elsewhere a result that is but rounded may use up all of its budget
        assert worst(report) < 0.9


@pytest.mark.parametrize("dtype", HALVES)
def test_normalisation_with_folded_statistics_passes(dtype):
    """One factor and one shift for each channel, stored in the format, as inference has them."""
    target = named_format(dtype)

    def folded(x, running_mean, running_var, scale=None, shift=None, *, eps=1e-5):
        wide = (-1, *(1,) * (x.ndim - 2))
        factor = (1.0 if scale is None else scale) / np.sqrt(running_var + eps)
        moved = (0.0 if shift is None else shift) - running_mean * factor
        return x * target.round(factor).reshape(wide) + target.round(moved).reshape(wide)

    report = testing.check(rounded(folded, dtype), refattn.batch_norm, dtype=dtype, supports=everything(refattn.batch_norm))
    report.raise_if_wrong()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_softmax_that_multiplies_before_it_subtracts_passes(dtype):
    def by_powers_of_two(x):
        one = x.dtype.type
        scaled = x * one(np.log2(np.e))
        exp = np.exp2(scaled - x.max(axis=-1, keepdims=True) * one(np.log2(np.e)))
        return exp / exp.sum(axis=-1, keepdims=True)

    report = testing.check(by_powers_of_two, refattn.softmax, dtype=dtype)
    report.raise_if_wrong()
    assert 0.01 < worst(report) < 0.9


@pytest.mark.parametrize("dtype", HALVES)
def test_a_transposed_convolution_that_adds_in_the_format_passes(dtype):
    """Each tap is a product in float32; what it gives to the output is added there."""
    target = named_format(dtype)

    def overlapping(x, weight, *, stride=1):
        (batch, _, length), (_, out, kernel) = x.shape, weight.shape
        stride = stride[0] if isinstance(stride, tuple) else stride
        y = np.zeros((batch, out, (length - 1) * stride + kernel))
        for t in range(kernel):
            here = (..., slice(t, t + (length - 1) * stride + 1, stride))
            y[here] = target.round(y[here] + target.round(np.einsum("bcl,co->bol", x, weight[:, :, t])))
        return y

    report = testing.check(rounded(overlapping, dtype), refattn.conv_transpose1d, dtype=dtype, supports={"x", "weight", "stride"})
    report.raise_if_wrong()
    assert report.counts["pass"] > 3


KERNELS = [{"tile": 16}, {"tile": 64, "reverse": True}, {"tile": 128, "round_weights": False}]


def few_of_attention(*names):
    return [c for c in cases(ATTENTION) if any(c.name.startswith(n) for n in names)]


def results(candidate, chosen, dtype):
    return [r for c in chosen for r in compare_case(candidate, ATTENTION, c, named_format(dtype))]


@pytest.mark.parametrize("dtype", ["float32", *HALVES])
@pytest.mark.parametrize("options", KERNELS, ids=str)
def test_honest_gradients_stay_below_their_budgets(options, dtype):
    honest = as_candidate(TiledAttention(dtype, **options), ATTENTION, gradients=TiledGradients(dtype, **options))
    found = results(honest, few_of_attention("random, 131x131", "needle, causal, 131x131", "head_dim 72", "heavy tails"), dtype)
    compared = [r for r in found if r.status != "skipped"]
    assert not [str(r) for r in compared if r.status != "pass"]
    assert {r.what for r in compared} == {"output", "d_query", "d_key", "d_value"}
    assert max(r.error_over_budget for r in compared) < 0.9


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100))
def test_honest_gradients_stay_below_their_budgets_over_seeds(seed):
    from refattn._core.random import Random
    from refattn.testing.inputs.attention import attention

    options, dtype = KERNELS[seed % len(KERNELS)], ["float32", *HALVES][seed // 3 % 3]
    honest = as_candidate(TiledAttention(dtype, **options), ATTENTION, gradients=TiledGradients(dtype, **options))
    found = results(honest, attention(Random(5000 + seed), 67, 131), dtype)
    assert max(r.error_over_budget for r in found if r.error_over_budget is not None) < 0.9


@pytest.mark.parametrize(("dtype", "factor"), [("float16", 1.002), ("bfloat16", 1.004)])
def test_a_factor_of_one_rounding_is_found_in_many_elements(dtype, factor):
    """Each element is in its budget: the sum of all errors is not."""
    target = named_format(dtype)

    def gradients(d, **given):
        grads = ATTENTION.vjp(**given)[1](d)
        return {n: target.round(g * (factor if n == "query" else 1)) for n, g in grads.items()}

    found = results(as_candidate(TiledAttention(dtype), ATTENTION, gradients=gradients), few_of_attention("random, 131x131"), dtype)
    assert [(r.what, r.wrong) for r in found if r.status == "fail"] == [("d_query", 0)]
    assert "point the same way" in next(r.reason for r in found if r.status == "fail")


def test_errors_that_point_the_same_way():
    target, random = named_format("bfloat16"), np.random.default_rng(0)
    exact = random.normal(size=(64, 64))
    spread = Spread(target.unit * np.abs(exact), [])
    assert drift(target.round(exact), exact, spread, target) < 0.5
    assert drift(target.round(exact * (1 + target.unit)), exact, spread, target) > 1
    part = exact.copy()
    part[:4] *= 1 + 16 * target.unit  # a 16th of all elements
    runs = [target.unit * np.abs(exact) * random.uniform(-1, 1, exact.shape) for _ in range(16)]
    assert drift(target.round(part), exact, Spread(runs[0], runs), target) > 1
    assert drift(part.astype(np.float32), exact, spread, named_format("float32")) == 0  # as coarse as its accumulator


def test_a_bound_is_vacuous_where_it_is_larger_than_what_it_bounds():
    exact = np.array([1.0, -2.0, 0.5])
    assert not is_vacuous(np.full(3, 1.9), exact)
    assert is_vacuous(np.full(3, 2.1), exact)
    zero = np.full(3, 1e-17)
    assert is_vacuous(np.full(3, 1e-15), zero)
    assert not is_vacuous(np.full(3, 1e-15), zero, beside=1.0)
    assert largest_beside("a.b_key", {"a.b_key": zero, "a.w": exact, "b.w": 9 * exact}) == 2


def test_a_gradient_that_is_zero_by_mathematics_is_compared():
    m = refattn.multi_head_attention
    report = testing.check(m, m, dtype="float32")
    told = [r for r in report.results if r.what == "d_b_key"]
    assert told
    assert {r.status for r in told} == {"pass"}

    def wrong(d, **given):
        grads = dict(m.vjp(**given)[1](d))
        return {**grads, "b_key": grads["b_query"]} if "b_key" in grads else grads

    assert "d_b_key" in {r.what for r in testing.check(m, m, gradients=wrong, dtype="float32").failures}


def test_what_is_compared_in_vain_is_named():
    def result(m, what, reason):
        return Result(m, "case", what, "float32", "skipped" if reason else "pass", reason=reason)

    found = [result("a", "output", VACUOUS), result("a", "d_x", VACUOUS), result("b", "output", ""), result("b", "d_x", VACUOUS)]
    found += [result("c", "output", VACUOUS), result("c", "output", ""), result("d", "all", "not supported")]
    assert untold(found) == ["a, float32", "b, float32: d_x"]


@pytest.mark.parametrize("dtype", EIGHTS)
def test_formats_of_8_bits(dtype):
    target, random = named_format(dtype), np.random.default_rng(0)
    x = random.normal(size=4000) * 2.0 ** random.integers(-20, 8, 4000)
    x = x[np.abs(x) < target.largest]
    np.testing.assert_array_equal(target.round(x), x.astype(target.numpy_dtype).astype(float))
    assert target.round(1e9) == target.largest
    chosen = few_of_attention("exact scores, 131x200", "needle, 131x200", "sinks that matter, 131x200", "bias that masks")
    for fault in ("", "causal off by one", "sink forgotten", "output not rescaled"):
        found = [r for r in results(as_candidate(TiledAttention(dtype, 16, fault), ATTENTION), chosen, dtype) if r.what == "output"]
        assert any(r.status == "fail" for r in found) == (fault not in {"", "causal off by one"})  # no case here is causal
    masks = [r for r in results(as_candidate(TiledAttention(dtype), ATTENTION), chosen, dtype) if r.case == "bias that masks"]
    assert [r.reason for r in masks] == (["infinity: float8_e4m3fn has none"] if dtype == "float8_e4m3fn" else [""])


def attention_of_8_bits(store=None, scale_of=lambda a: a["scale"], read=None):
    """Attention in float32 of arguments that come in 8 bits, and its gradients; `store` is what weights are stored as."""

    def given(arguments):
        wide = {n: (read or np.asarray)(x).astype(np.float32) if isinstance(x, np.ndarray) else x for n, x in arguments.items()}
        default = np.float32(wide["query"].shape[-1] ** -0.5)
        return {**wide, "scale": scale_of({"scale": default, **{n: x for n, x in wide.items() if x is not None}})}

    def forward(**arguments):
        return ATTENTION(**given(arguments)).astype(np.float32)

    def gradients(d, **arguments):
        return {n: np.asarray(g, np.float32) for n, g in ATTENTION.vjp(**given(arguments))[1](d).items()}

    return {"candidate": forward, "gradients": gradients}


MIXED = [f"{small}:{wide}" for small in EIGHTS for wide in ("bfloat16", "float32")]
FEW = ("exact scores, 131x131", "random, 131x131", "head_dim 72", "more queries than keys")


def of_8_bits(kernel, dtype, *names):
    return results(as_candidate(kernel["candidate"], ATTENTION, gradients=kernel["gradients"]), few_of_attention(*names or FEW), dtype)


@pytest.mark.parametrize("dtype", MIXED)
def test_arguments_of_8_bits_with_wider_results(dtype):
    found = of_8_bits(attention_of_8_bits(), dtype)
    assert {r.status for r in found} == {"pass"}
    assert {r.what for r in found} == {"output", "d_query", "d_key", "d_value"}
    assert {r.dtype for r in found} == {dtype}


def other_format(x):
    """The bits of one format of 8 bits, taken for the other's."""
    return x.view(ml_dtypes.float8_e5m2 if x.dtype == ml_dtypes.float8_e4m3fn else ml_dtypes.float8_e4m3fn)


WRONG_8 = {
    "scale forgotten": {"scale_of": lambda a: 1.0},
    "scale of a padded head": {"scale_of": lambda a: a["scale"] / np.float32(np.sqrt(2))},
    "formats confused": {"read": other_format},
    "subnormal numbers flushed": {"read": lambda x: np.where(np.abs(x.astype(np.float32)) < 2.0**-6, 0, x.astype(np.float32))},
}


@pytest.mark.parametrize("dtype", MIXED)
@pytest.mark.parametrize("fault", WRONG_8)
def test_wrong_kernels_of_8_bits_are_found(fault, dtype):
    if fault.startswith("subnormal") and "e5m2" in dtype:  # whose smallest normal number is 2**-14
        return  # 2**-6 is no limit of this format
    wrong = {r.what for r in of_8_bits(attention_of_8_bits(**WRONG_8[fault]), dtype) if r.status == "fail"}
    assert wrong >= {"output", "d_query", "d_key"}


@pytest.mark.parametrize("dtype", MIXED)
def test_a_scale_of_quantisation_that_only_the_backward_pass_forgets_is_found(dtype):
    """Keys are scaled to fill the format, as kernels of 8 bits do, and scaled back in the forward pass alone."""
    honest = attention_of_8_bits()

    def gradients(d, **arguments):
        factor = 2.0 ** np.floor(np.log2(448 / np.abs(arguments["key"].astype(np.float32)).max()))
        grads = honest["gradients"](d, **arguments)
        return {**grads, "query": grads["query"] * np.float32(factor)}

    assert {r.what for r in of_8_bits({**honest, "gradients": gradients}, dtype) if r.status == "fail"} == {"d_query"}


@pytest.mark.parametrize("dtype", EIGHTS)
def test_a_result_beyond_the_largest_number_is_that(dtype):
    target, m = named_format(dtype), refattn.linear
    large = Case("sums beyond the format", {"x": np.full((2, 300), 16.0), "weight": np.full((2, 300), 16.0)})

    def judged(stored):
        return {r.what: r.status for r in compare_case(as_candidate(lambda x, weight: stored(m(x, weight)), m), m, large, target)}

    assert judged(lambda y: target.array(target.round(y))) == {"output": "pass"}
    with np.errstate(all="ignore"):
        assert judged(lambda y: y.astype(np.float32).astype(target.numpy_dtype)) == {"output": "fail"}  # NaN, or infinity
    wrapped = judged(lambda y: np.where(np.abs(y) > target.largest, -target.largest, y))
    assert wrapped == {"output": "fail"}


def test_a_stored_output_is_part_of_the_budget():
    x = np.array([-40.0, 0.5, 40.0])
    y, pullback = refattn.sigmoid.vjp(x)
    d = np.ones(3)
    allowed = gradient_budgets(refattn.sigmoid, {"x": x}, (d,), gradient_leaves(pullback(d)), named_format("float64"))["x"]
    assert 2.0**-53 < allowed[2] < 20 * 2.0**-53  # y (1 - y) with y rounded to 1: a few roundings of 1
    assert allowed[0] < 1e-30  # where y is small, nothing cancels
    assert y[0] > 0


def test_the_last_rounding_counts_once():
    x = np.linspace(0.5, 6, 50)
    for m in (refattn.relu, refattn.sigmoid, refattn.softplus):
        y = m(x)
        allowed = forward_budgets(m, {"x": x}, {"output": y}, named_format("bfloat16"))["output"]
        assert (allowed < 1.01 * 2.0**-8 * y).all()


def test_cases_are_accepted_by_their_mechanisms():
    for name in ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "depthwise_conv2d", "pointwise_conv2d", "linear"):
        m = getattr(refattn, name)
        made = list(cases(m, "full"))
        assert len({c.name for c in made}) == len(made)
        for c in made:
            y, pullback = m.vjp(**c.arguments)
            assert all(np.isfinite(g).all() for g in gradient_leaves(pullback(*cotangents(y))).values())


def test_disturbed_runs_are_runs_of_the_same_function():
    """Otherwise a budget is what was left out: in the finest format, errors of all operations come to next to nothing."""
    target = named_format("float64")
    for m in refattn.mechanisms():
        if m.spec.name in SOFTMAX:
            continue
        given = next(testing.samples(m)).arguments
        with np.errstate(all="ignore"):
            y, pullback = m.vjp(**given)
            ds = tuple(d.astype(float) for d in cotangents(y))
            with disturbed(target, 0):
                near, near_pullback = m.vjp(**given)
                near_grads = gradient_leaves(near_pullback(*ds))
        pairs = list(zip(outputs(y), outputs(near), strict=True))
        pairs += [(g, near_grads[n]) for n, g in gradient_leaves(pullback(*ds)).items()]
        for exact, other in pairs:
            known, made = (np.where(np.isfinite(exact), a, 0) for a in (exact, other))
            assert np.abs(made - known).max(initial=0) < 1e-10 * max(np.abs(known).max(initial=0), 1), m.spec.name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["gather", "embedding", "max_pool2d", "resize_bilinear"])
def test_gradients_through_an_index_that_are_a_tenth_off_are_found(name, dtype):
    m, target = getattr(refattn, name), named_format(dtype)

    def gradients(d, **given):
        return {n: target.round(1.1 * g) for n, g in m.vjp(**given)[1](d).items()}

    failures = testing.check(m, m, gradients=gradients, dtype=dtype).failures
    assert failures
    assert {r.what[:2] for r in failures} == {"d_"}


def test_a_choice_within_a_rounding_may_fall_either_way():
    """What a rectifier is given is a few standard deviations of its error from 0: kernels get another sign, and another gradient."""
    m, target = refattn.squeeze_excitation, named_format("bfloat16")
    for seed in range(20):
        random = np.random.default_rng(seed)
        x, weight = (target.round(random.normal(size=shape)) for shape in ((1, 8, 2, 2), (1, 8)))
        terms = x.mean(axis=(2, 3))[0] * weight[0]
        error = target.unit * np.sqrt(2 / 3 * (terms**2).sum())
        given = {"x": x, "w_reduce": weight, "w_expand": target.round(random.normal(size=(8, 1))), "b_expand": np.zeros(8)}
        d = target.round(random.normal(size=x.shape))
        near, beyond = ({**given, "b_reduce": np.array([margin - terms.sum()])} for margin in (random.uniform(0.2, 3) * error, -1e-9))
        exact, other = (gradient_leaves(m.vjp(**call)[1](d)) for call in (near, beyond))
        allowed = Allowances(m, near, target).backward((d,), exact)
        assert all((np.abs(other[p] - exact[p]) <= allowed[p].budget).all() for p in exact)


def test_weights_that_are_flushed_to_zero_are_in_the_budget():
    """As matrix units do: a weight below the smallest normal number of float32 is 0, and adds nothing to its key's gradient."""
    target = named_format("bfloat16")
    for seed in (1, 2, 4):
        for c in cases(ATTENTION, "quick", seed):
            if c.name.startswith("all scores near -1e5"):
                given = dict(c.arguments) | {n: target.round(c.arguments[n]) for n in ("query", "key", "value")}
                y, pullback = ATTENTION.vjp(**given)
                ds = tuple(map(target.round, cotangents(y)))
                seen = refattn.scaled_dot_product_attention_with_weights(**given)[1] >= 2.0**-126
                flushed = ATTENTION.vjp(**given, mask=seen)[1](*ds)
                exact = gradient_leaves(pullback(*ds))
                allowed = Allowances(ATTENTION, given, target, exact_scores=True).backward(ds, exact)
                assert (np.abs(flushed["key"] - exact["key"]) < allowed["key"].budget / 2).all()


def test_numbers_behind_masks_reach_nothing():
    chosen = [c for c in cases(ATTENTION, "full") if c.name.startswith(("NaN", "infinity"))]
    assert len(chosen) == 4
    assert {r.status for r in results(as_candidate(ATTENTION, ATTENTION), chosen, "float32")} == {"pass"}
    for fault in ("nan of a masked key leaks", "nan of a masked value leaks"):
        with np.errstate(all="ignore"):
            leaking = results(as_candidate(faulty.kernel(ATTENTION.__name__, fault, "float32"), ATTENTION), chosen, "float32")
        assert "fail" in {r.status for r in leaking}, fault


def test_levels_grow():
    counts = [len(list(cases(refattn.conv1d, level))) for level in ("quick", "full", "torture")]
    assert counts[0] < counts[1] < counts[2]
    names = [c.name for c in cases(refattn.softmax, "torture")]
    assert len(set(names)) == len(names)


def test_independent_numbers_are_different():
    for name in ("sigmoid", "gelu", "softmax"):
        for c in cases(getattr(refattn, name)):
            if c.independent:
                x = named_format("bfloat16").round(c.arguments["x"])
                assert name == "softmax" or len(np.unique(x)) == x.size
    assert not Case("a", {}).independent


@pytest.mark.parametrize("level", ["quick", "full"])
def test_scores_that_are_called_exact_are_exact_in_float32(level):
    for case in cases(ATTENTION, level):
        if case.exact_scores:
            given = case.arguments
            scale = given.get("scale")
            factor = given["query"].shape[-1] ** -0.5 if scale is None else scale
            assert np.all(np.frexp(factor)[0] == 0.5), case.name  # a power of two
            query, key = (np.where(np.isfinite(given[n]), given[n], 0) for n in ("query", "key"))
            keys = np.repeat(key, query.shape[-3] // max(key.shape[-3], 1), axis=-3).swapaxes(-1, -2)
            for q, k in ((query, keys), (np.abs(query), np.abs(keys))):  # no sum of magnitudes is rounded, so none in any order is
                np.testing.assert_array_equal(q.astype(np.float32) @ k.astype(np.float32), q @ k, case.name)


def test_draws_do_not_depend_on_who_drew_before(monkeypatch):
    """The first numbers of a seed are kept, as far as one call has come, up to a limit; threads share them."""
    monkeypatch.setattr(arithmetic, "FIRST", 8)
    monkeypatch.setattr(arithmetic, "MOST", 4096)
    arithmetic._drawn.cache_clear()
    expected = Random(3).normal(60_000) / 2

    def drawn(sizes):
        following = arithmetic._noise(3, Random.normal, 0.5)
        return all(np.array_equal(following(n), expected[end - n : end]) for n, end in zip(sizes, np.cumsum(sizes), strict=True))

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(drawn, [[5, 3, 4], [1] * 3000, [7, 2000, 3000, 4500, 1], [10_000, 2], *[[n] * 300 for n in range(1, 14)]]))
    assert arithmetic._drawn(3, Random.normal, 0.5).numbers.size <= 1.5 * 4096
    arithmetic._drawn.cache_clear()
