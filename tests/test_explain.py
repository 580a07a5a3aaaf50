"""A failure is explained by the convention that was followed, and by no other; facts about where it is wrong are true."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import refattn
from refattn import testing
from refattn._core import Random
from refattn.testing.patterns import patterns

ATTENTION = refattn.scaled_dot_product_attention
WITH_LSE = refattn.scaled_dot_product_attention_with_lse
LN2 = np.log(2)


def normal(*shape, seed=0):
    return Random(seed).normal(shape)


def attention_inputs(**options):
    """Grouped heads, and as many queries as keys unless said otherwise."""
    given = {"query": normal(2, 4, 9, 8, seed=1), "key": normal(2, 2, 9, 8, seed=2), "value": normal(2, 2, 9, 8, seed=3)}
    return {**given, **options}


def short_queries(**options):
    return attention_inputs(query=normal(2, 4, 5, 8, seed=1), **options)


def rounded(x):
    return np.asarray(x).astype(np.float32)


def named(got, m, inputs, **more):
    return testing.explain(got, m, inputs, **more).names


mask = Random(5).booleans(0.6, (9, 9))
mask[4] = False
BIAS = normal(4, 9, 9, seed=6)


def replaced(score, cap=1e9):
    """Attention whose masked scores are a number."""

    def attend(query, key, value, mask):
        scores = query @ np.repeat(key, 2, axis=1).swapaxes(-1, -2) * query.shape[-1] ** -0.5
        return refattn.softmax(np.where(mask, cap * np.tanh(scores / cap), score)) @ np.repeat(value, 2, axis=1)

    return attend


def over_queries(query, key, value):
    scores = query @ np.repeat(key, 2, axis=1).swapaxes(-1, -2) * query.shape[-1] ** -0.5
    return refattn.softmax(scores.swapaxes(-1, -2)).swapaxes(-1, -2) @ np.repeat(value, 2, axis=1)


def capped_late(query, key, value, bias, softcap):
    scores = query @ np.repeat(key, 2, axis=1).swapaxes(-1, -2) * query.shape[-1] ** -0.5 + bias
    return refattn.softmax(softcap * np.tanh(scores / softcap)) @ np.repeat(value, 2, axis=1)


def changed(**other):
    return lambda **given: ATTENTION(**{**given, **other})


def swap(x):
    return x.swapaxes(1, 2)


PLANTED = {
    "aligned at the upper left": (short_queries(causal=True, align="lower_right"), changed(align="upper_left")),
    "aligned at the lower right": (short_queries(causal=True, align="upper_left"), changed(align="lower_right")),
    "the causal mask is missing": (attention_inputs(causal=True), changed(causal=False)),
    "it is causal": (attention_inputs(), changed(causal=True)),
    "one key beyond the causal edge": (attention_inputs(causal=True), changed(causal=False, window=(None, 1))),
    "hides a query's own key": (attention_inputs(causal=True), changed(causal=False, mask=np.tri(9, k=-1, dtype=bool))),
    "one key further to the left": (attention_inputs(window=(2, 1)), changed(window=(3, 1))),
    "one key less to the left": (attention_inputs(window=(2, 1)), changed(window=(1, 1))),
    "one key further to the right": (attention_inputs(window=(2, 1)), changed(window=(2, 2))),
    "one key less to the right": (attention_inputs(window=(2, 1)), changed(window=(2, 0))),
    "no limit to the left": (attention_inputs(window=(2, 1)), changed(window=(None, 1))),
    "left and right are swapped": (attention_inputs(window=(4, 1)), changed(window=(1, 4))),
    "the scale is missing": (attention_inputs(), changed(scale=1.0)),
    "the scale is 1 / head_dim": (attention_inputs(), changed(scale=1 / 8)),
    "the scale is applied twice": (attention_inputs(scale=0.3), changed(scale=0.09)),
    "whatever was given": (attention_inputs(scale=0.3), changed(scale=None)),
    "log2(e) is missing": (attention_inputs(), changed(scale=8**-0.5 * LN2)),
    "log2(e) multiplies": (attention_inputs(), changed(scale=8**-0.5 / LN2)),
    "the soft cap is missing": (attention_inputs(softcap=0.5), changed(softcap=None)),
    "the soft cap comes after the bias": (attention_inputs(softcap=0.5, bias=BIAS), capped_late),
    "the soft cap comes after the mask": (
        attention_inputs(mask=mask, softcap=2.0),
        lambda query, key, value, mask, softcap: replaced(-softcap, softcap)(query, key, value, mask),
    ),
    "without the factor cap": (attention_inputs(softcap=0.5), changed(softcap=1.0, scale=8**-0.5 / 0.5)),
    "False in the mask means may attend": (attention_inputs(mask=mask), changed(mask=~mask)),
    "the mask is added to the scores": (attention_inputs(mask=mask), changed(mask=None, bias=mask * 1.0)),
    "masked scores are set to -10000": (attention_inputs(mask=mask), replaced(-10000.0)),
    "masked scores are set to -10,": (attention_inputs(mask=mask), replaced(-10.0)),
    "a row without keys is uniform": (attention_inputs(mask=mask), changed(masked_rows="uniform")),
    "a row without keys is nan": (attention_inputs(mask=mask), changed(masked_rows="nan")),
    "the bias is missing": (attention_inputs(bias=BIAS), changed(bias=None)),
    "the bias is added before the scale": (attention_inputs(bias=BIAS), changed(bias=BIAS * 8**-0.5)),
    "the sinks are missing": (attention_inputs(sinks=np.arange(4.0)), changed(sinks=None)),
    "h % kv_heads (tiled": (
        attention_inputs(),
        lambda query, key, value: ATTENTION(query, np.concatenate([key] * 2, axis=1), np.concatenate([value] * 2, axis=1)),
    ),
    "dropout does not divide": (attention_inputs(keep=mask, dropout_rate=0.25), changed(dropout_rate=0.0)),
    "dropout drops where keep is True": (attention_inputs(keep=mask, dropout_rate=0.25), changed(keep=~mask)),
    "the softmax runs over the queries": (attention_inputs(), over_queries),
    "key and value are in each other's place": (
        attention_inputs(),
        lambda query, key, value: ATTENTION(query, value, key),
    ),
    "the output is (batch, length, heads, value_dim)": (attention_inputs(), lambda **given: swap(ATTENTION(**given))),
    "memory of the output is written as": (attention_inputs(), lambda **given: swap(ATTENTION(**given)).reshape(2, 4, 9, 8)),
    "it takes and returns (batch, length, heads, head_dim)": (
        {n: normal(2, 4, 4, 8, seed=i) for i, n in enumerate(("query", "key", "value"))},
        lambda query, key, value: swap(ATTENTION(swap(query), swap(key), swap(value))),
    ),
}


@pytest.mark.parametrize("said", PLANTED)
def test_a_planted_convention_of_attention_is_named(said):
    inputs, kernel = PLANTED[said]
    found = testing.explain(rounded(kernel(**inputs)), ATTENTION, inputs)
    assert found.wrong == ("output",)
    assert any(said in name + "," for name in found.names), found
    assert len(found.names) <= 2, found  # what is named beside it gives the same numbers


def test_the_log_sum_exp_is_explained_by_itself():
    inputs = attention_inputs(sinks=np.arange(4.0))
    output, lse = WITH_LSE(**inputs)
    assert named((rounded(output), rounded(lse / LN2)), WITH_LSE, inputs) == ("the log-sum-exp is of base 2",)
    without = WITH_LSE(**{**inputs, "sinks": None}).lse
    assert named((rounded(output), rounded(without)), WITH_LSE, inputs) == ("the log-sum-exp leaves out the sink",)


def test_two_conventions_at_once():
    inputs = short_queries(causal=True, align="lower_right", softcap=0.5)
    got = rounded(ATTENTION(**{**inputs, "align": "upper_left", "softcap": None}))
    (name,) = named(got, ATTENTION, inputs)
    assert name == "it is aligned at the upper left: causal mask and window, and the soft cap is missing"


def conv(m, x, weight, **options):
    return {"x": normal(*x, seed=1), "weight": normal(*weight, seed=2), **options}


CONV = refattn.conv2d
CONVOLUTIONS = {
    "a true convolution": (conv(CONV, (2, 3, 6, 7), (4, 3, 3, 2)), lambda x, weight: CONV(x, weight[..., ::-1, ::-1])),
    "puts the extra one before": (
        conv(CONV, (2, 3, 6, 7), (4, 3, 2, 2), padding="same"),
        lambda x, weight, padding: CONV(x, weight, padding=((1, 0), (1, 0))),
    ),
    "does not take the stride into account": (
        conv(CONV, (2, 3, 6, 6), (4, 3, 3, 3), padding="same", stride=2),
        lambda x, weight, padding, stride: CONV(x, weight, padding=1, stride=2),
    ),
    "the padding holds reflect": (
        conv(CONV, (2, 3, 6, 7), (4, 3, 3, 3), padding=1),
        lambda x, weight, padding: CONV(x, weight, padding=1, padding_mode="reflect"),
    ),
    "stride and dilation are swapped": (
        conv(CONV, (2, 3, 7, 7), (4, 3, 3, 3), stride=2, dilation=1, padding=1),
        lambda x, weight, stride, dilation, padding: CONV(x, weight, dilation=2, padding=1),
    ),
    "input channel c belongs to group c % groups": (
        conv(CONV, (2, 4, 6, 7), (6, 2, 3, 2), groups=2),
        lambda x, weight, groups: CONV(x[:, [0, 2, 1, 3]], weight, groups=2),
    ),
    "output channel o belongs to group o % groups": (
        conv(CONV, (2, 4, 6, 7), (6, 2, 3, 2), groups=2),
        lambda x, weight, groups: CONV(x, weight, groups=2)[:, [0, 3, 1, 4, 2, 5]],
    ),
    "(IOHW for OIHW)": (conv(CONV, (2, 3, 6, 7), (3, 3, 3, 2)), lambda x, weight: CONV(x, weight.swapaxes(0, 1))),
    "(HWIO)": (
        conv(CONV, (2, 3, 6, 7), (4, 3, 3, 2)),
        lambda x, weight: CONV(x, weight.reshape(3, 2, 3, 4).transpose(3, 2, 0, 1)),
    ),
    "height and width are swapped": (conv(CONV, (2, 3, 6, 7), (4, 3, 3, 3)), lambda x, weight: CONV(x, weight.swapaxes(-1, -2))),
    "the dilation is missing": (
        conv(CONV, (2, 3, 6, 6), (4, 3, 3, 3), dilation=2, padding="same"),
        lambda x, weight, **_: CONV(x, weight, padding="same"),
    ),
    "channels last": (conv(CONV, (2, 3, 6, 7), (4, 3, 3, 2)), lambda x, weight: np.moveaxis(CONV(x, weight), 1, -1)),
}


@pytest.mark.parametrize("said", CONVOLUTIONS)
def test_a_planted_convention_of_convolution_is_named(said):
    inputs, kernel = CONVOLUTIONS[said]
    found = testing.explain(rounded(kernel(**inputs)), CONV, inputs)
    assert found.wrong == ("output",)
    assert any(said in name for name in found.names), found
    assert len(found.names) <= 3, found  # an odd position can be on the wrong side for several reasons


def recurrent(**more):
    shape = (2, 3, 7, 4)
    given = {
        "query": normal(*shape, seed=1),
        "key": normal(*shape, seed=2),
        "value": normal(*shape, seed=3),
        "log_decay": -np.abs(normal(*shape, seed=4)),
    }
    return {**given, **more}


def decay_after(query, key, value, log_decay):
    state, output = np.zeros((2, 3, 4, 4)), np.zeros((2, 3, 7, 4))
    for t in range(7):
        state = np.exp(log_decay[:, :, t, :, None]) * (state + key[:, :, t, :, None] * value[:, :, t, None, :])
        output[:, :, t] = 0.5 * (query[:, :, t, None, :] @ state)[..., 0, :]
    return output, state


def read_before(query, key, value, log_decay):
    state, output = np.zeros((2, 3, 4, 4)), np.zeros((2, 3, 7, 4))
    for t in range(7):
        output[:, :, t] = 0.5 * (query[:, :, t, None, :] @ state)[..., 0, :]
        state = np.exp(log_decay[:, :, t, :, None]) * state + key[:, :, t, :, None] * value[:, :, t, None, :]
    return output, state


@pytest.mark.parametrize(
    ("said", "kernel"),
    [
        ("the state decays after a position has written to it", decay_after),
        ("a query reads the state before its own position is written", read_before),
        (
            "the state that comes out is (value_dim, head_dim)",
            lambda **a: ((y := refattn.gated_linear_attention(**a)).output, y.state.swapaxes(-1, -2)),
        ),
        ("the scale is missing", lambda **a: refattn.gated_linear_attention(**a, scale=1.0)),
        ("decays are logarithms of base 2", lambda **a: refattn.gated_linear_attention(**{**a, "log_decay": a["log_decay"] * LN2})),
    ],
)
def test_a_planted_convention_of_linear_attention_is_named(said, kernel):
    inputs = recurrent()
    assert said in named(tuple(map(rounded, kernel(**inputs))), refattn.gated_linear_attention, inputs)


STATE = normal(2, 3, 4, 4, seed=8)


def test_a_transposed_state_is_named():
    inputs = recurrent(state=STATE)
    output, state = refattn.gated_linear_attention(**{**inputs, "state": STATE.swapaxes(-1, -2)})
    found = named((rounded(output), rounded(state)), refattn.gated_linear_attention, inputs)
    assert "the state that goes in is (value_dim, head_dim)" in found
    found = named((rounded(output), rounded(state.swapaxes(-1, -2))), refattn.gated_linear_attention, inputs)
    assert "the state is (value_dim, head_dim), in and out" in found


X = normal(5, 6, seed=9)
LAYERS = {
    "divided by n - 1": (
        refattn.layer_norm,
        {"x": X},
        lambda x: (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, ddof=1, keepdims=True) + 1e-5),
    ),
    "eps is added to the root": (
        refattn.layer_norm,
        {"x": X, "eps": 0.1},
        lambda x, eps: (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + eps),
    ),
    "the scale is 1 + scale": (refattn.rms_norm, {"x": X, "scale": X[0]}, lambda x, scale: refattn.rms_norm(x, scale + 1)),
    "approximate is 'tanh'": (refattn.gelu, {"x": X}, lambda x: refattn.gelu(x, approximate="tanh")),
    "it runs over the last axis but one": (refattn.softmax, {"x": X}, lambda x: refattn.softmax(x.T).T),
    "the exponential is of base 2": (refattn.softmax, {"x": X}, lambda x: refattn.softmax(x * LN2)),
    "the logarithm is of base 2": (refattn.logsumexp, {"x": X}, lambda x: refattn.logsumexp(x) / LN2),
}


@pytest.mark.parametrize("said", LAYERS)
def test_a_planted_convention_of_a_layer_is_named(said):
    m, inputs, kernel = LAYERS[said]
    found = testing.explain(rounded(kernel(**inputs)), m, inputs)
    assert any(said in name for name in found.names), found


def test_one_number_is_named_where_it_has_digits_enough():
    """A mean and a sum over five are told apart by one number, which carries 18 bits in float64 and not in float32."""
    inputs = {"scores": X, "targets": np.arange(5)}
    got = refattn.cross_entropy(**inputs, reduction="sum")
    found = testing.explain(got, refattn.cross_entropy, inputs, dtype="float64")
    assert any("reduction is 'sum'" in name for name in found.names), found
    assert not testing.explain(rounded(got), refattn.cross_entropy, inputs).names


def gradients_of(wrong, m=ATTENTION, **options):
    """The explanation of gradients beside a right output."""
    inputs = attention_inputs(**options)
    y, pullback = m.vjp(**inputs)
    ds = tuple(normal(*x.shape, seed=20 + i) for i, x in enumerate(y if isinstance(y, tuple) else (y,)))
    grads = {n: rounded(g) for n, g in {**pullback(*ds), **wrong(inputs, ds, pullback(*ds))}.items()}
    got = tuple(map(rounded, y)) if isinstance(y, tuple) else rounded(y)
    return testing.explain(got, m, inputs, gradients=grads, cotangents=ds)


def without_row_sum(inputs, ds, grads):
    (output, _), pullback = WITH_LSE.vjp(**inputs)
    return pullback(*ds, (output * ds[0]).sum(-1))


def first_of_group(inputs, ds, grads):
    wide = {n: np.repeat(inputs[n], 2, axis=1) for n in ("key", "value")}
    _, pullback = ATTENTION.vjp(**{**inputs, **wide})
    return {n: pullback(*ds)[n][:, ::2] for n in wide}


@pytest.mark.parametrize(
    ("said", "what", "wrong"),
    [
        (
            "the gradients of query and key lack the scale",
            ("d_query", "d_key"),
            lambda a, ds, g: {n: g[n] * 8**0.5 for n in ("query", "key")},
        ),
        ("the gradient of the key has the scale twice", ("d_key",), lambda a, ds, g: {"key": g["key"] * 8**-0.5}),
        ("no gradient goes through the sum of the softmax", ("d_query", "d_key"), without_row_sum),
        ("the first is taken", ("d_key", "d_value"), first_of_group),
    ],
)
def test_a_planted_convention_of_gradients_is_named(said, what, wrong):
    found = gradients_of(wrong)
    assert set(found.wrong) == set(what)
    assert any(said in m.said and set(m.what) == set(what) for m in found.matches), found


def test_an_ignored_cotangent_of_the_log_sum_exp_is_named():
    found = gradients_of(lambda a, ds, g: WITH_LSE.vjp(**a)[1](ds[0]), WITH_LSE)
    assert found.names == ("the cotangent of the log-sum-exp is ignored",)


EVERY = [
    *((f"attention: {said}", ATTENTION, inputs) for said, (inputs, _) in PLANTED.items()),
    *((f"convolution: {said}", CONV, inputs) for said, (inputs, _) in CONVOLUTIONS.items()),
    *((f"layer: {said}", m, inputs) for said, (m, inputs, _) in LAYERS.items()),
    ("linear attention", refattn.gated_linear_attention, recurrent()),
]


@pytest.mark.parametrize(("m", "inputs"), [pytest.param(m, inputs, id=i) for i, m, inputs in EVERY[::3]])
def test_what_is_right_or_wrong_at_random_has_no_name(m, inputs):
    exact = m(**inputs)
    exact = exact if isinstance(exact, tuple) else (exact,)
    right = tuple(map(rounded, exact))
    assert not testing.explain(right, m, inputs).wrong
    random = Random(77)
    got = tuple(rounded(x + 0.01 * random.normal(x.shape)) for x in exact)
    found = testing.explain(got, m, inputs)
    assert found.wrong
    assert not found.matches, found


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_coarse_formats_are_no_accidents(dtype):
    pytest.importorskip("ml_dtypes")
    inputs = {n: testing.precision.named_format(dtype).round(normal(1, 2, 3, 2, seed=i)) for i, n in enumerate(("query", "key", "value"))}
    exact = ATTENTION(**inputs)
    for seed in range(4):
        got = exact * (1 + 0.1 * normal(*exact.shape, seed=seed))
        assert not testing.explain(got, ATTENTION, inputs, dtype=dtype).matches


def test_an_alternative_that_changes_nothing_is_not_named():
    inputs = attention_inputs(mask=np.ones((9, 9), bool), sinks=np.full(4, -1e9), window=(8, 8), softcap=1e9)
    assert named(rounded(ATTENTION(**inputs)) * 2, ATTENTION, inputs) == ()


def facts(got, exact, *axes):
    return patterns(got, exact, np.full(exact.shape, 1e-6), axes)


def test_facts_about_values():
    exact = normal(2, 4, 6) + 0.01
    axes = ("example", "head", "query")
    assert facts(exact * 0.5, exact, *axes) == ("it is 0.5 times what is expected",)
    assert facts(exact * LN2, exact, *axes) == ("it is 0.6931 = ln(2) times what is expected",)
    assert facts(exact / np.sqrt(72), exact, *axes) == ("it is 0.1179 = 1/sqrt(72) times what is expected",)
    assert facts(exact + 3, exact, *axes) == ("it is what is expected plus 3",)
    assert facts(exact * 0, exact, *axes) == ("everywhere it is 0",)
    assert facts(exact * np.nan, exact, *axes) == ("everywhere it is NaN",)
    some = exact.copy()
    some[1, 2] = np.nan
    assert facts(some, exact, *axes) == (
        "where it is wrong, it is NaN",
        "only example 1 of 2 is wrong (the last)",
        "only head 2 of 4 is wrong",
    )


def test_facts_about_places():
    exact = normal(3, 200, 5) + 0.01
    axes = ("head", "query", "channel")

    def spoiled(*at):
        got = exact.copy()
        got[at] += normal(*got[at].shape, seed=4) ** 2 + 1
        return facts(got, exact, *axes)

    assert spoiled(slice(None), slice(192, None)) == ("only queries 192 to 199 of 200 are wrong (the last, incomplete tile of 64)",)
    assert spoiled(slice(None), slice(64, 128)) == ("only queries 64 to 127 of 200 are wrong (a tile of 64)",)
    assert spoiled(1, slice(3, None, 16)) == (
        "only head 1 of 3 is wrong",
        "queries are wrong in stripes of period 16: query 3, 19, 35, ...",
    )
    assert spoiled(0, 199) == ("only head 0 of 3 is wrong (the first)", "only query 199 of 200 is wrong (the last)")
    square = normal(2, 7, 7)
    got = square.copy()
    for i in range(6):
        got[:, i, i + 1] += 1 + i
    assert facts(got, square, "head", "query", "key") == ("only the diagonal where key = query +1 is wrong",)


def test_facts_about_what_has_moved():
    exact = normal(2, 4, 6)
    axes = ("example", "head", "query")
    assert "shifted by one: query i holds what is expected of query i - 1" in facts(np.roll(exact, 1, -1), exact, *axes)
    assert "the heads are in reverse order" in facts(exact[:, ::-1], exact, *axes)
    assert "the heads have changed places: head 1 that of 2, 2 that of 1" in facts(exact[:, [0, 2, 1, 3]], exact, *axes)
    stale = exact.copy()
    stale[:, 3] = exact[:, 2]
    assert "the heads have changed places: head 3 that of 2" in facts(stale, exact, *axes)
    assert facts(exact.swapaxes(1, 2), exact, *axes) == ("it is what is expected with the axes of head and query swapped",)
    assert "the elements lie in memory with the axes of head and query swapped" in facts(
        exact.swapaxes(1, 2).reshape(2, 4, 6), exact, *axes
    )
    assert facts(exact.ravel(), exact, *axes) == ("it has the expected elements in the expected order, but another shape",)


def test_random_errors_have_no_pattern():
    exact = normal(3, 50, 5)
    got = exact + normal(3, 50, 5, seed=1)
    assert facts(got, exact, "head", "query", "channel") == ()


def test_results_are_small_data():
    report = testing.check(lambda x: refattn.softmax(x) * 1.5, refattn.softmax)
    (result, *_) = report.failures
    copy = pickle.loads(pickle.dumps(result))
    assert copy == result
    assert copy.evidence.arrays.keys() == result.evidence.arrays.keys()
    assert result.without_evidence().evidence is None
    assert '"it is 1.5 times what is expected"' in report.to_json()
    assert "evidence" not in report.to_json()
