"""Checks of very many tokens: honest kernels pass, planted faults are seen by rows or by laws, as docs/long.md states."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refattn
from refattn import testing
from refattn._core.random import Random
from refattn.testing.long.choice import chosen, missed, smallest_seen
from refattn.testing.precision import named_format
from tests.long_kernel import FAULTS, FusedAttention

pytest.importorskip("ml_dtypes")
ATTENTION = refattn.scaled_dot_product_attention
WITH_LSE = refattn.scaled_dot_product_attention_with_lse
DTYPES = ["float32", "float16", "bfloat16"]
CAUSAL = {"causal": True, "align": "lower_right"}


def drawn(seed, query_len, key_len, *, heads=4, kv_heads=2, head_dim=16, value_dim=12, dtype="float32"):
    random, target = Random(seed), named_format(dtype)
    sizes = {"query": (heads, query_len, head_dim), "key": (kv_heads, key_len, head_dim), "value": (kv_heads, key_len, value_dim)}
    inputs = {name: target.round(random.normal((1, *size))) for name, size in sizes.items()}
    return inputs, target.round(random.normal((1, heads, query_len, value_dim)))


def checked(kernel, inputs, d, dtype, **options):
    """The reports of rows and of laws."""
    output, lse = kernel.forward(**inputs)
    given = {"gradients": kernel.gradients(d, **inputs), "cotangents": d, "dtype": dtype, "lse": lse}
    rows = testing.check_rows(output, ATTENTION, inputs, **given, **options)
    return rows, testing.check_laws(output, ATTENTION, inputs, **given)


OPTIONS = {
    "plain": {},
    "causal": CAUSAL,
    "causal from the upper left": {"causal": True, "align": "upper_left"},
    "window": {**CAUSAL, "window": (37, None)},
    "both sides": {"window": (50, 20), "align": "upper_left"},
    "softcap": {**CAUSAL, "softcap": 2.0},
    "sinks": {**CAUSAL, "sinks": np.asarray([0.0, 1.0, 4.0, -2.0])},
    "bias": {"bias": Random(3).normal((4, 1, 300))},
    "mask": {"mask": Random(4).booleans(0.3, (1, 1, 290, 300))},
    "scale": {**CAUSAL, "scale": 1.5},
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPTIONS)
def test_honest_kernels_pass(name, dtype):
    inputs, d = drawn(1, 290, 300, dtype=dtype)
    inputs |= OPTIONS[name]
    if "bias" in inputs:
        inputs["bias"] = named_format(dtype).round(inputs["bias"])
    for kernel in (FusedAttention(dtype), FusedAttention(dtype, 16, reverse=True)):
        for report in checked(kernel, inputs, d, dtype):
            report.raise_if_wrong()
            assert max(r.error_over_budget for r in report.results if r.passed) < 0.9
            assert {r.reason for r in report.results if r.status == "skipped"} <= {
                "is no sum over one row or column",
                "does not hold with a soft cap, or a scale that is an array",
            }


@settings(max_examples=20)
@given(
    dtype=st.sampled_from(DTYPES),
    sizes=st.tuples(st.integers(256, 330), st.integers(256, 330)),
    heads=st.sampled_from([(1, 1), (2, 1), (3, 3)]),
    head_dim=st.sampled_from([1, 7, 16]),
    option=st.sampled_from(sorted(OPTIONS.keys() - {"bias", "mask", "sinks"})),
    growth=st.sampled_from([0.0, 2.0**-8, 1.0, 4.0]),  # flat weights, nearly flat ones, and peaked ones
    tile=st.sampled_from([16, 64, 128]),
    seed=st.integers(0, 2**20),
)
def test_honest_kernels_of_any_shape_pass(dtype, sizes, heads, head_dim, option, growth, tile, seed):
    inputs, d = drawn(seed, *sizes, heads=heads[0], kv_heads=heads[1], head_dim=head_dim, value_dim=5, dtype=dtype)
    inputs = {**inputs, **OPTIONS[option], "query": inputs["query"] * growth}
    for report in checked(FusedAttention(dtype, tile), inputs, d, dtype, rows=16, seed=seed):
        assert not report.failures, str(report)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_stored_weights_that_err_alike_are_honest(dtype):
    """All weights within one rounding step, and values that follow the scores: their errors do not cancel."""
    inputs, _ = drawn(2, 256, 2048, heads=1, kv_heads=1, head_dim=4, value_dim=4, dtype=dtype)
    target = named_format(dtype)
    inputs |= {"query": target.round(0.004 * inputs["query"]), "value": inputs["key"]}
    output, lse = FusedAttention(dtype).forward(**inputs)
    testing.check_rows(output, ATTENTION, inputs, dtype=dtype, lse=lse).raise_if_wrong()


ROW = 100
SEEN = {  # by rows that contain the fault, and by laws; what does neither, no one claims
    "delta wrong on 10 rows": ({"d_query", "d_key"}, {"sum of d_key = 0"}),
    "one row of d_key stale": ({"d_key"}, {"sum of d_key = 0", "<query, d_query> = <key, d_key>"}),
    "backward mask off by one": ({"d_query", "d_key", "d_value"}, {"sum of d_value = sum of d_output", "sum of d_key = 0"}),
    "last tile dropped": ({"output", "lse"}, set()),
    "one row 5% high": ({"output"}, set()),
    "log-sum-exp in base 2": ({"lse"}, set()),
    "scale 2% high in d_query and d_key": ({"d_query", "d_key"}, set()),
}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_seen_as_stated(fault, dtype):
    inputs, d = drawn(1, 300, 300, heads=2, kv_heads=1, dtype=dtype)
    inputs |= CAUSAL
    rows, laws = checked(FusedAttention(dtype, fault=fault, row=ROW), inputs, d, dtype, rows=[ROW, 150, 299], columns=[5, ROW, 299])
    by_rows, by_laws = SEEN[fault]
    assert by_rows <= {r.what for r in rows.failures}
    assert by_laws == {r.what for r in laws.failures}
    with pytest.raises(testing.RefattnAssertionError):
        rows.raise_if_wrong()


def test_a_wrong_row_is_missed_where_it_is_not_looked_at_and_named_where_it_is():
    inputs, _ = drawn(1, 300, 300, heads=2, kv_heads=1)
    kernel = FusedAttention("float32", fault="one row 5% high", row=ROW)
    output, lse = kernel.forward(**inputs)
    assert testing.check_rows(output, ATTENTION, inputs, rows=[1, 99, 101], lse=lse).passed
    (failure,) = testing.check_rows(output, ATTENTION, inputs, rows=[1, 99, 100], lse=lse).failures
    assert failure.worst_index[:3] == (0, 0, ROW)
    assert failure.got == pytest.approx(1.05 * failure.expected, rel=1e-3)


def looked_at(mechanism, inputs, rows, *, gradients=(), **options):
    """The exact outputs and gradients as a candidate, of which each element is then moved by 1e-9 of its size."""
    y, pullback = mechanism.vjp(**inputs)
    ds = tuple(Random(9).normal(x.shape) for x in y)
    grads = {n: pullback(*ds)[n] for n in gradients}
    return testing.check_rows(tuple(y), mechanism, inputs, rows=rows, gradients=grads, cotangents=ds, dtype="float64", **options)


EXACT = {
    **{n: x for n, x in OPTIONS.items() if n not in {"bias", "mask"}},
    "dropout": {"keep": Random(5).booleans(0.7, (1, 4, 41, 53)), "dropout_rate": 0.25},
    "masked rows": {"mask": Random(6).booleans(0.04, (1, 1, 41, 53)), "bias": Random(7).normal((4, 1, 53))},
    "bias that masks": {"bias": np.where(Random(8).booleans(0.5, (41, 53)), -np.inf, 0.5)},
    "temperatures": {"scale": Random(8).uniform(0.25, 1.0, (4, 1, 53)), "softcap": 1.5},
    "not a number": {"mask": Random(6).booleans(0.04, (1, 1, 41, 53)), "masked_rows": "nan"},
}


@pytest.mark.parametrize("name", EXACT)
def test_rows_and_columns_are_those_of_the_reference(name):
    inputs, _ = drawn(3, 41, 53)
    inputs = {**inputs, **EXACT[name]}
    report = looked_at(WITH_LSE, inputs, np.arange(41), columns=np.arange(53), gradients=("query", "key", "value"))
    assert {r.what: r.status for r in report.results} == dict.fromkeys(("output", "lse", "d_query", "d_key", "d_value"), "pass")
    assert all(r.worst_error < 1e-13 for r in report.results)


def test_packed_sequences():
    inputs, _ = drawn(4, 41, 53)
    inputs |= {"cu_seqlens_q": np.asarray([0, 7, 7, 30, 41]), "cu_seqlens_k": np.asarray([0, 9, 12, 12, 53]), **CAUSAL}
    mechanism = refattn.varlen_attention_with_lse
    report = looked_at(mechanism, inputs, np.arange(41), columns=np.arange(53), gradients=("query", "key", "value"))
    report.raise_if_wrong()
    assert all(r.worst_error < 1e-13 for r in report.results if r.passed)


def test_masks_and_biases_may_be_functions():
    inputs, _ = drawn(3, 41, 53)
    mask, bias = Random(6).booleans(0.5, (1, 4, 41, 53)), Random(7).normal((4, 41, 53))
    output = ATTENTION(**inputs, mask=mask, bias=bias)
    asked = []

    def some(rows, columns):
        asked.append(rows.size * columns.size)
        return mask[..., rows, :][..., columns]

    given = {**inputs, "mask": some, "bias": lambda rows, columns: bias[:, rows][..., columns]}
    testing.check_rows(output, ATTENTION, given, rows=5, dtype="float64").raise_if_wrong()
    assert 0 < max(asked) <= 5 * 53
    output[0, 2, 40] += 1e-6
    assert testing.check_rows(output, ATTENTION, given, rows=5, dtype="float64").failures


def test_hidden_numbers_that_are_not_finite_reach_no_row():
    inputs, d = drawn(3, 300, 300)
    inputs |= CAUSAL
    output, pullback = ATTENTION.vjp(**inputs)
    grads = dict(pullback(d))
    hidden = {"mask": np.arange(300) != 280, **inputs}
    masked_output, masked_pullback = ATTENTION.vjp(**hidden)
    masked = {"gradients": dict(masked_pullback(d)), "cotangents": d, "dtype": "float64"}
    hidden["key"], hidden["value"] = (np.where((np.arange(300) == 280)[:, None], np.nan, inputs[n]) for n in ("key", "value"))
    testing.check_rows(masked_output, ATTENTION, hidden, rows=[5, 299], columns=[7, 280, 299], **masked).raise_if_wrong()
    inputs["key"][..., 290:, :], inputs["value"][..., 290:, :] = np.nan, np.inf
    given = {"gradients": {"query": grads["query"]}, "cotangents": d, "dtype": "float64"}
    testing.check_rows(output, ATTENTION, inputs, rows=[0, 17, 289], **given).raise_if_wrong()
    report = testing.check_rows(output, ATTENTION, inputs, rows=[1, 17, 295], **given)
    assert [r.what for r in report.failures] == ["output"]  # what should be NaN there is a number; its gradient cannot be told
    assert "the budget of 4 rows is larger" in next(r.reason for r in report.results if r.what == "d_query")


def test_a_budget_beyond_the_signal_is_not_a_pass():
    inputs, _ = drawn(5, 4, 4096, heads=1, kv_heads=1, dtype="bfloat16")
    inputs["value"] = np.ones_like(inputs["value"])
    inputs["value"][..., 1::2, :] = -1  # what is left of 4096 weighted signs is below what their rounding may make
    inputs["query"] = np.zeros_like(inputs["query"])
    report = testing.check_rows(ATTENTION(**inputs) + 1e-7, ATTENTION, inputs, dtype="bfloat16")
    assert report.counts["pass"] + report.counts["skipped"] + report.counts["fail"] == 1
    assert not report.passed


def test_torch_tensors_of_16_bits_are_read_in_parts():
    torch = pytest.importorskip("torch")
    inputs, d = drawn(1, 300, 300, heads=2, kv_heads=1, dtype="bfloat16")
    kernel = FusedAttention("bfloat16")
    output, lse = kernel.forward(**inputs)
    grads = kernel.gradients(d, **inputs)
    tensors = {n: torch.from_numpy(x).to(torch.bfloat16) for n, x in inputs.items()}
    given = {
        "gradients": {n: torch.from_numpy(x).to(torch.bfloat16) for n, x in grads.items()},
        "cotangents": torch.from_numpy(d).to(torch.bfloat16),
        "lse": torch.from_numpy(lse),
        "dtype": torch.bfloat16,
    }
    for check in (testing.check_rows, testing.check_laws):
        found = check(torch.from_numpy(output).to(torch.bfloat16), ATTENTION, tensors, **given)
        plain = check(output, ATTENTION, inputs, gradients=grads, cotangents=d, lse=lse, dtype="bfloat16")
        found.raise_if_wrong()
        assert [r.error_over_budget for r in found.results] == [r.error_over_budget for r in plain.results]


def test_no_array_of_all_pairs_is_made():
    import tracemalloc

    inputs, d = drawn(1, 40_000, 40_000, heads=1, kv_heads=1, head_dim=4, value_dim=4)
    output, lse = np.zeros_like(d), np.zeros(d.shape[:-1])
    tracemalloc.start()
    testing.check_rows(output, ATTENTION, {**inputs, **CAUSAL}, rows=8, lse=lse)
    testing.check_laws(output, ATTENTION, {**inputs, **CAUSAL}, lse=lse, gradients=inputs, cotangents=d)
    assert tracemalloc.get_traced_memory()[1] < 40e6  # of all pairs, one bit each would be 200 MB
    tracemalloc.stop()


# Which rows are looked at


def test_edges_are_among_the_chosen_rows():
    rows, count = chosen(10_000, 32, [123, 124], Random(0))
    assert {0, 9_999, 123, 124} <= set(rows)
    assert len(rows) == 32
    assert count >= 10
    for tile in (16, 64, 128, 256):
        assert any({m - 1, m, m + 1} <= set(rows) for m in range(tile, 10_000, tile))
    again, _ = chosen(10_000, 32, [123, 124], Random(0))
    np.testing.assert_array_equal(rows, again)
    np.testing.assert_array_equal(chosen(20, 32, [], Random(0))[0], np.arange(20))


def test_windows_and_causal_edges_are_among_them():
    inputs, _ = drawn(1, 300, 280)
    inputs |= {**CAUSAL, "window": (37, None)}
    seen = []
    mask = lambda rows, columns: (seen.extend(rows), np.ones((1, 1), bool))[1]  # noqa: E731
    testing.check_rows(ATTENTION(**inputs), ATTENTION, {**inputs, "mask": mask}, dtype="float64").raise_if_wrong()
    assert {299, 20, 57, 58} <= set(seen)  # query 20 is the first to see a key, 57 the last to see key 0


@pytest.mark.parametrize("spread", [True, False])
def test_the_probability_of_missing_a_fault_is_as_stated(spread):
    length, fraction, wrong = 5_000, 0.08, 400
    draws = {chosen(length, 32, [], Random(s))[1] for s in range(3)}
    places = np.arange(0, length, length // wrong)[:wrong] + 3 if spread else np.arange(2_300, 2_300 + wrong)
    bad = np.zeros(length, bool)
    bad[places] = True
    escaped = np.mean([not bad[chosen(length, 32, [], Random(s))[0]].any() for s in range(1500)])
    bound = missed(fraction, min(draws))
    assert 0.01 < escaped < bound  # it is possible, and edges of tiles and equal parts make it rarer than the bound
    assert missed(smallest_seen(11), 11) == pytest.approx(0.05)


def test_reports_say_what_was_looked_at():
    inputs, _ = drawn(1, 300, 300)
    report = testing.check_rows(ATTENTION(**inputs), ATTENTION, inputs, dtype="float64")
    assert "of 300 rows, " in report.results[0].reason
    assert "is missed with probability 0.05 at most" in str(report)
    assert testing.check_rows(ATTENTION(**inputs), ATTENTION, inputs, rows=400, dtype="float64").results[0].reason == "all 300 rows"


def test_columns_need_a_right_log_sum_exp():
    inputs, d = drawn(1, 300, 300)
    kernel = FusedAttention("float32")
    output, lse = kernel.forward(**inputs)
    given = {"gradients": kernel.gradients(d, **inputs), "cotangents": d}
    small = testing.check_rows(output, ATTENTION, inputs, **given)
    assert {r.what for r in small.results if r.passed} == {"output", "d_query", "d_key", "d_value"}  # computed here
    wrong = testing.check_rows(output, ATTENTION, inputs, lse=lse / np.log(2), **given)
    assert [r.what for r in wrong.failures] == ["lse"]
    assert {r.reason for r in wrong.results if r.status == "skipped"} == {
        "the log-sum-exp, from which this would be computed, is wrong or cannot be told"
    }


# Laws


def test_euler_holds_with_every_option_and_the_sinks_have_a_law():
    inputs, d = drawn(1, 300, 300)
    inputs |= {**CAUSAL, "softcap": 2.0, "sinks": np.asarray([0.0, 1.0, 4.0, -2.0]), "bias": Random(3).normal((4, 1, 300))}
    inputs["scale"] = np.asarray([0.25, 0.5, 0.75, 1.0])[:, None, None]
    (output, lse), pullback = WITH_LSE.vjp(**inputs)
    grads = {n: g for n, g in pullback(d, 0 * lse).items() if n != "bias"}
    given = {"cotangents": (d, 0 * lse), "dtype": "float64"}
    report = testing.check_laws((output, lse), WITH_LSE, inputs, gradients=grads, **given)
    status = {r.what: r.status for r in report.results}
    assert status == {
        "sum of d_value = sum of d_output": "pass",
        "sum of d_key = what the sinks take": "skipped",
        "<query, d_query> = <key, d_key>": "pass",
        "<scale, d_scale> = <query, d_query>": "pass",
        "d_sinks = -sum of sink weight * delta": "pass",
        "outputs within the values": "pass",
    }
    for name, law in (("scale", "<scale, d_scale> = <query, d_query>"), ("sinks", "d_sinks = -sum of sink weight * delta")):
        wrong = testing.check_laws((output, lse), WITH_LSE, inputs, gradients={**grads, name: grads[name] * 1.001}, **given)
        assert [r.what for r in wrong.failures] == [law]


def test_outputs_beyond_the_values_and_of_blind_queries_are_seen():
    inputs, _ = drawn(1, 300, 280)
    inputs |= CAUSAL
    output = ATTENTION(**inputs)
    assert testing.check_laws(output, ATTENTION, inputs, dtype="float64").passed
    for index, value, law in (((0, 1, 150, 2), 40.0, "outputs within the values"), ((0, 1, 19, 2), 1e-3, "queries that see nothing are 0")):
        wrong = output.copy()
        wrong[index] = value
        assert [r.what for r in testing.check_laws(wrong, ATTENTION, inputs, dtype="float64").failures] == [law]


def test_laws_of_few_tokens_are_not_tried():
    inputs, d = drawn(1, 100, 100)
    output, pullback = ATTENTION.vjp(**inputs)
    report = testing.check_laws(output, ATTENTION, inputs, gradients=pullback(d), cotangents=d)
    assert {r.what for r in report.results if r.passed} == {"outputs within the values"}
    assert {r.reason for r in report.results if r.status == "skipped"} == {
        "needs 256 queries and keys: gradients of fewer are for assert_matches"
    }


def test_laws_that_need_the_kernel():
    inputs, _ = drawn(1, 300, 300)
    inputs |= CAUSAL
    kernel = FusedAttention("float32")

    def looks_ahead(**given):
        off = {**given, "causal": False, "window": (None, 1)}
        return kernel(**off)

    def unnormalised(**given):
        return 1.01 * kernel(**given)

    output = kernel(**inputs)
    ones, later = "values of 1 give the sum of the weights", "later keys change no earlier output"
    for call, failing in ((kernel, set()), (looks_ahead, {later}), (unnormalised, {ones})):
        report = testing.check_laws(output, ATTENTION, inputs, kernel=call)
        assert {r.what for r in report.failures} == failing
        assert {ones, later} <= {r.what for r in report.results if r.status != "skipped"}


LINEAR = ["linear_attention", "gated_linear_attention", "delta_rule", "gated_delta_rule", "chunked_gated_delta_rule"]


def linear_inputs(name, length=150):
    random = Random(1)
    inputs = {n: random.normal((1, 2, length, 8)) for n in ("query", "key", "value")}
    inputs["key"] = inputs["key"] / 3
    if name == "linear_attention":
        inputs["causal"] = True
    if "gated" in name:
        inputs["log_decay"] = -random.uniform(0.0, 0.03125, (1, 2, length, 8) if name == "gated_linear_attention" else (1, 2, length))
    if "delta" in name:
        inputs["beta"] = random.uniform(0.0, 1.0, (1, 2, length))
    return inputs


@pytest.mark.parametrize("name", LINEAR)
def test_laws_of_linear_attention(name):
    mechanism, inputs = getattr(refattn, name), linear_inputs(name)

    def in_float32(**given):
        return tuple(x.astype(np.float32) for x in mechanism(**given))

    def forgetful(**given):
        return mechanism(**{**given, "state": None})

    def not_linear(**given):
        return tuple(x + 1e-3 for x in mechanism(**given))

    def acausal(**given):
        y = mechanism(**given)
        return (y[0] + 1e-3 * y[1].sum(), *y[1:])

    split = {"output of two parts with the carried state", "state of two parts with the carried state"}
    cases = {
        in_float32: set(),
        forgetful: split,
        not_linear: {"output of doubled values is doubled", "state of doubled values is doubled"},
        acausal: {"later tokens change no earlier output"},
    }
    for kernel, failing in cases.items():
        report = testing.check_laws(None, mechanism, inputs, kernel=kernel)
        assert failing <= {r.what for r in report.failures}
        assert bool(failing) == bool(report.failures), str(report)
        assert report.counts["skipped"] == 0


CONVOLUTIONS = {
    "conv1d": ({"x": (2, 4, 60), "weight": (6, 2, 5)}, {"groups": 2, "stride": 2, "padding": 3}),
    "conv2d": ({"x": (2, 4, 17, 19), "weight": (6, 4, 3, 2)}, {"dilation": 2, "padding": "same"}),
    "conv2d_winograd": ({"x": (2, 4, 17, 19), "weight": (6, 4, 3, 3)}, {"padding": 1}),
    "conv_transpose2d": ({"x": (2, 4, 7, 9), "weight": (4, 3, 3, 2)}, {"stride": 2, "padding": 1}),
    "depthwise_conv2d": ({"x": (2, 4, 17, 19), "weight": (4, 1, 3, 3)}, {"padding_mode": "reflect", "padding": 1}),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_laws_of_convolution(name, dtype):
    mechanism, target, random = getattr(refattn, name), named_format(dtype), Random(1)
    sizes, options = CONVOLUTIONS[name]
    inputs = {**{n: target.round(random.normal(s)) for n, s in sizes.items()}, **options}
    y = mechanism(**inputs)
    inputs["bias"] = target.round(random.normal(y.shape[1]))
    y, pullback = mechanism.vjp(**inputs)
    d = target.round(random.normal(y.shape))
    grads = {n: target.round(g) for n, g in pullback(d).items()}

    def kernel(**given):
        return target.array(mechanism(**given))

    laws = {"x": "<x, d_x> = <y - bias, d_y>", "weight": "<weight, d_weight> = <y - bias, d_y>", "bias": "d_bias = sum of d_y"}
    report = testing.check_laws(target.round(y), mechanism, inputs, gradients=grads, cotangents=d, dtype=dtype, kernel=kernel)
    report.raise_if_wrong()
    assert set(laws.values()) <= {r.what for r in report.results if r.passed}
    for n, law in laws.items():
        wrong = {**grads, n: grads[n] * 2}
        found = testing.check_laws(target.round(y), mechanism, inputs, gradients=wrong, cotangents=d, dtype=dtype)
        assert {r.what for r in found.failures} == {law}


def test_convolutions_that_are_not_linear_or_depend_on_the_place_are_seen():
    random = Random(1)
    inputs = {"x": random.normal((2, 4, 60)), "weight": random.normal((6, 4, 5))}

    def placed(**given):
        y = refattn.conv1d(**given)
        return y * (1 + 1e-3 * np.arange(y.shape[-1]))

    shift, doubled = "a shift of x shifts the output", "output of doubled x is doubled"
    for kernel, law in ((placed, shift), (lambda **given: refattn.conv1d(**given) ** 3, doubled)):
        report = testing.check_laws(refattn.conv1d(**inputs), refattn.conv1d, inputs, kernel=kernel)
        assert law in {r.what for r in report.failures}
    assert testing.check_laws(refattn.conv1d(**inputs), refattn.conv1d, inputs, kernel=refattn.conv1d).passed


def test_bad_calls():
    inputs, d = drawn(1, 20, 20)
    output = ATTENTION(**inputs)
    for check in (testing.check_rows, testing.check_laws):
        with pytest.raises(ValueError, match="mechanism is softmax"):
            check(output, refattn.softmax, inputs)
        with pytest.raises(TypeError, match="mechanism is a str"):
            check(output, "softmax", inputs)
        with pytest.raises(ValueError, match="cotangents is None, but gradients are given"):
            check(output, ATTENTION, inputs, gradients={"query": inputs["query"]})
        with pytest.raises(TypeError, match="inputs: missing a required argument"):
            check(output, ATTENTION, {"query": output})
        with pytest.raises(ValueError, match="got has 1 outputs, but scaled_dot_product_attention_with_lse has 2"):
            check(output, WITH_LSE, inputs)
        with pytest.raises(ValueError, match="align is None"):
            check(output, ATTENTION, {**inputs, "key": inputs["key"][..., :9, :], "value": inputs["value"][..., :9, :], "causal": True})
        with pytest.raises(ValueError, match="mask has shape"):
            check(output, ATTENTION, {**inputs, "mask": np.ones((3, 7), bool)})
        with pytest.raises(TypeError, match="gradients is a list, but must be a mapping"):
            check(output, ATTENTION, inputs, gradients=[d], cotangents=d)
        report = check(output[..., :3], ATTENTION, inputs)
        assert [r.reason for r in report.failures] == ["has shape (1, 4, 20, 3), expected (1, 4, 20, 12)"]
    for rows, error in (([20], "rows runs from 20 to 20"), (0, "rows is 0, but must be at least 1")):
        with pytest.raises(ValueError, match=error):
            testing.check_rows(output, ATTENTION, inputs, rows=rows)
    with pytest.raises(TypeError, match="rows is float64"):
        testing.check_rows(output, ATTENTION, inputs, rows=[0.5])
    uniform = testing.check_rows(output, ATTENTION, {**inputs, "masked_rows": "uniform"})
    assert [r.reason for r in uniform.results] == ["masked_rows='uniform': not supported"]
