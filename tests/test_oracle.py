"""The check accepts no wrong kernel and refuses no honest one."""

from __future__ import annotations

import numpy as np
import pytest

import refattn
from refattn import testing
from refattn.testing.budget import Allowances
from refattn.testing.precision import named_format
from refattn.testing.reference import rounded
from refattn.testing.report import compare
from refattn.testing.vacuous import VACUOUS
from tests.enumeration import EACH
from tests.tiled_kernel import FAULTS, TiledAttention

pytest.importorskip("ml_dtypes")
ATTENTION = refattn.scaled_dot_product_attention
HALVES = ["float16", "bfloat16"]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("fault", FAULTS)
def test_every_planted_fault_is_found(fault, dtype):
    assert len(FAULTS) == 16
    report = testing.check(TiledAttention(dtype, fault=fault), ATTENTION, dtype=dtype)
    assert report.failures
    assert max(r.error_over_budget for r in report.failures) > 2  # not by a hair


@pytest.mark.parametrize("dtype", ["float32", *HALVES])
@pytest.mark.parametrize(("tile", "options"), [(16, {}), (64, {}), (128, {"round_weights": False}), (64, {"reverse": True})])
def test_honest_kernels_pass(dtype, tile, options):
    report = testing.check(TiledAttention(dtype, tile, **options), ATTENTION, dtype=dtype)
    report.raise_if_wrong()
    assert max(r.error_over_budget for r in report.results if r.passed) < 0.95
    assert {r.reason for r in report.results if r.status == "skipped"} - {VACUOUS} == {
        "dropout_rate, keep: not supported",
        "mask, masked_rows: not supported".replace("mask, ", ""),
    }


def test_a_wrong_gradient_is_found():
    def wrong(d_output, **arguments):
        _, pullback = refattn.scaled_dot_product_attention.vjp(**arguments)
        grads = dict(pullback(d_output))
        return {**grads, "key": grads["key"] * 1.02}

    report = testing.check(refattn.scaled_dot_product_attention, ATTENTION, gradients=wrong, dtype="float32")
    assert {r.what for r in report.failures} == {"d_key"}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("m", EACH)
def test_the_reference_passes_its_own_check(m, dtype):
    testing.check(m, m, dtype=dtype).raise_if_wrong()


@pytest.mark.parametrize("name", ["conv2d", "conv2d_fft"])
def test_transforms_in_float32_are_honest(name):
    """A transform errs by the same in all elements, a sum of products in proportion to its terms: by how much of the second's budget
    depends on the smallest sum beside a large one, and has no bound. Of its own budget, 5 standard deviations, 4 are out of reach.
    """

    def by_spectra(x, weight, factor=1.0):
        size, kernel = x.shape[-2:], weight.shape[-2:]
        spectra = np.einsum("bcij,ocij->boij", np.fft.rfft2(x), np.fft.rfft2(weight, s=size).conj())
        return (factor * np.fft.irfft2(spectra, s=size)[..., : size[0] - kernel[0] + 1, : size[1] - kernel[1] + 1]).astype(x.dtype)

    m, target = getattr(refattn, name), named_format("float32")
    testing.check(by_spectra, m, dtype="float32").raise_if_wrong()
    shares = []
    for case in testing.cases(m):
        if case.arguments.keys() == {"x", "weight"}:
            exact = refattn.conv2d(**(given := rounded(m, case.arguments, target)))
            error = np.abs(by_spectra(*(given[n].astype(np.float32) for n in ("x", "weight"))) - exact)
            shares.append((error / Allowances(refattn.conv2d_fft, given, target).forward({"output": exact})["output"].budget).max())
    assert 0.01 < max(shares) < 0.8
    assert not testing.check(lambda x, weight: by_spectra(x, weight, 1 + 1e-5), m, dtype="float32").passed


def test_every_operation_of_a_transform_is_rounded():
    given = next(testing.samples(refattn.conv2d_fft)).arguments
    exact = refattn.conv2d_fft(**given)
    with testing.rounding("bfloat16"):
        rounded = refattn.conv2d_fft(**given)
    error = np.abs(rounded - exact).max() / np.abs(exact).max()
    assert 2.0**-9 < error < 2.0**-5


@pytest.mark.parametrize("m", [p for p in EACH if p.id != "non_local"])  # which needs the weights of its kind of pair
def test_a_kernel_without_options_has_a_case(m):
    needed = {n for n in m.spec.signature.parameters if n not in m.spec.defaults}
    assert any(set(case.arguments) == needed for case in testing.cases(m))


@pytest.mark.parametrize("name", ["conv1d", "conv2d", "conv3d", "separable_conv2d"])
def test_the_odd_position_of_same_padding_on_the_wrong_side_is_found(name):
    m, weight = getattr(refattn, name), "w_depthwise" if name == "separable_conv2d" else "weight"

    def wrong(**given):
        if given.get("padding") != "same" or "stride" in given:
            return m(**given)
        return m(**{**given, "x": given["x"][..., ::-1], weight: given[weight][..., ::-1]})[..., ::-1]

    report = testing.check(wrong, m, dtype="float64")
    assert report.counts["pass"] >= 2
    assert report.failures


def test_a_gradient_that_is_not_offered_is_skipped():
    def offered(d_output, **arguments):
        _, pullback = refattn.linear.vjp(**arguments)
        return {**pullback(d_output), "bias": None}

    report = testing.check(refattn.linear, refattn.linear, gradients=offered, dtype="float64")
    report.raise_if_wrong()
    assert {(r.what, r.reason) for r in report.results if r.status == "skipped"} == {("d_bias", "gradient of bias: not supported")}


def test_more_outputs_than_there_are_is_a_failure():
    report = testing.check(lambda x: (softmax(x), x), refattn.softmax)
    assert {r.reason for r in report.failures} == {"returned 2 outputs, expected 1"}


def test_a_missing_gradient_is_a_failure():
    report = testing.check(refattn.softmax, refattn.softmax, gradients=lambda _, x: {}, dtype="float64")
    assert {r.reason for r in report.failures} == {"no such gradient was returned"}


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def test_an_exception_is_a_failure_and_not_implemented_is_skipped():
    def broken(x):
        raise RuntimeError("no kernel image")

    def partial(x):
        raise NotImplementedError("only on Tuesdays")

    assert {r.reason for r in testing.check(broken, refattn.softmax).failures} == {"raised RuntimeError: no kernel image"}
    skipped = testing.check(partial, refattn.softmax)
    assert {(r.status, r.reason) for r in skipped.results} == {("skipped", "only on Tuesdays")}
    with pytest.raises(testing.RefattnAssertionError, match="nothing was compared: only on Tuesdays"):
        skipped.raise_if_wrong()


def test_wrong_shapes_and_counts_are_failures():
    assert "has shape (5,)" in testing.check(lambda x: softmax(x).ravel()[:5], refattn.softmax).failures[0].reason
    lse = refattn.scaled_dot_product_attention_with_lse
    found = testing.check(ATTENTION, lse, gradients=lambda *_: {})
    assert {r.reason for r in found.failures} == {"returned 1 outputs, expected 2"}


def test_the_message_names_the_worst_element():
    def off(x):
        y = softmax(x)
        y[..., -1] *= 1.5
        return y

    with pytest.raises(testing.RefattnAssertionError) as caught:
        testing.check(off, refattn.softmax, dtype="float64").raise_if_wrong()
    text = str(caught.value)
    assert "softmax, plain, float64: output differs at 6 of 30 elements" in text
    assert "worst at (" in text
    assert ", expected " in text


def test_names_and_layout_are_converted():
    def theirs(q, k, v, sm_scale=None):
        q, k, v = (np.moveaxis(x, 1, 2) for x in (q, k, v))
        return np.moveaxis(refattn.scaled_dot_product_attention(q, k, v, scale=sm_scale), 1, 2).astype(q.dtype)

    names = {"q": "query", "k": "key", "v": "value", "sm_scale": "scale"}
    report = testing.check(theirs, ATTENTION, arguments=names, layout="bshd")
    report.raise_if_wrong()
    assert not testing.check(theirs, ATTENTION, arguments=names).passed


def test_bad_calls_of_check():
    with pytest.raises(TypeError, match="candidate is a int, but must be callable"):
        testing.check(3, refattn.softmax)
    with pytest.raises(ValueError, match="dtype is 'int8', but must be one of"):
        testing.check(softmax, refattn.softmax, dtype="int8")
    with pytest.raises(ValueError, match="layout is 'xyz'"):
        testing.check(softmax, refattn.softmax, layout="xyz")
    with pytest.raises(ValueError, match="framework is 'caffe'"):
        testing.check(softmax, refattn.softmax, framework="caffe")
    with pytest.raises(ValueError, match=r"arguments names \['y'\], which softmax does not have"):
        testing.check(softmax, refattn.softmax, arguments={"x": "y"})
    with pytest.raises(ValueError, match="level is 'most'"):
        testing.check(softmax, refattn.softmax, level="most")
    for other in ("softmax", None, softmax):
        with pytest.raises(TypeError, match=r"mechanism is a .*, but must be a function of refattn\.mechanisms"):
            testing.check(softmax, other)
    with pytest.raises(TypeError, match="gradients is a int, but must be callable"):
        testing.check(softmax, refattn.softmax, gradients=3)
    with pytest.raises(TypeError, match="arguments is a list, but must be a mapping"):
        testing.check(softmax, refattn.softmax, arguments=["x"])
    with pytest.raises(ValueError, match=r"arguments names one of \['x'\] twice"):
        testing.check(softmax, refattn.softmax, arguments={"a": "x", "b": "x"})
    with pytest.raises(ValueError, match=r"supports names \['masks'\], which .* does not have"):
        testing.check(softmax, ATTENTION, supports=["masks"])
    with pytest.raises(TypeError, match="supports is a str, but must be a collection"):
        testing.check(softmax, ATTENTION, supports="mask")
    with pytest.raises(ValueError, match="layout is 'nhwc', but no array of scaled_dot_product_attention has these axes"):
        testing.check(ATTENTION, ATTENTION, layout="nhwc")
    with pytest.raises(ValueError, match="dtype is None, but must be one of"):
        testing.check(softmax, refattn.softmax, dtype=None)


@pytest.mark.parametrize(
    ("returned", "what"),
    [(object(), "object"), ("y", "<U1"), (lambda x: softmax(x) + 0j, "complex"), (lambda x: softmax(x).astype(int), "int64")],
)
def test_what_is_no_array_of_real_numbers_is_a_failure(returned, what):
    kernel = returned if callable(returned) else lambda x: returned
    assert all(f"what was returned is {what}" in r.reason for r in testing.check(kernel, refattn.softmax).results)
    found = testing.check(softmax, refattn.softmax, gradients=lambda d, x: {"x": kernel(x)}).failures
    assert found
    assert all(f"what was returned is {what}" in r.reason for r in found)
    found = testing.check(softmax, refattn.softmax, gradients=lambda d, x: [d]).failures
    assert {r.reason for r in found} == {"raised TypeError: gradients are a list, but must be a mapping by name"}


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_a_kernel_that_writes_to_its_arguments_is_wrong(framework):
    if framework == "torch":
        pytest.importorskip("torch")

    def forward(x):
        y = refattn.softmax(x)
        x[...] = 0
        return y

    def gradients(d, x):
        found = refattn.softmax.vjp(x)[1](d)
        x[...] = 0
        return found

    options = {"framework": framework, "dtype": "float64"}
    found = testing.check(forward, refattn.softmax, **options, gradients=gradients)
    assert {(r.what, r.reason) for r in found.results} == {("all", "changed in place: x")}
    found = testing.check(refattn.softmax, refattn.softmax, **options, gradients=gradients)
    assert {(r.what, r.reason) for r in found.failures} == {("gradients", "changed in place: x")}


def test_assert_matches():
    x = np.linspace(-1, 1, 12).reshape(3, 4).astype(np.float32)
    d = np.ones((3, 4), np.float32) * np.arange(4, dtype=np.float32)
    y, pullback = refattn.softmax.vjp(x)
    grads = {"x": pullback(d)["x"].astype(np.float32)}
    testing.assert_matches(softmax(x), refattn.softmax, {"x": x}, gradients=grads, cotangents=d)
    with pytest.raises(testing.RefattnAssertionError, match="output differs at 12 of 12"):
        testing.assert_matches(softmax(x) * 1.001, refattn.softmax, {"x": x})
    with pytest.raises(testing.RefattnAssertionError, match="d_x differs"):
        testing.assert_matches(y, refattn.softmax, {"x": x}, gradients={"x": -grads["x"]}, cotangents=d)
    with pytest.raises(ValueError, match="cotangents is None"):
        testing.assert_matches(y, refattn.softmax, {"x": x}, gradients=grads)
    with pytest.raises(TypeError, match="softmax: inputs: got an unexpected keyword argument 'y'"):
        testing.assert_matches(y, refattn.softmax, {"x": x, "y": x})
    with pytest.raises(ValueError, match="cotangents are 2, but softmax has 1: output"):
        testing.assert_matches(y, refattn.softmax, {"x": x}, gradients=grads, cotangents=(d, d))
    with pytest.raises(TypeError, match="gradients is a list, but must be a mapping by name"):
        testing.assert_matches(y, refattn.softmax, {"x": x}, gradients=[d], cotangents=d)


def test_nan_and_infinity_are_compared():
    exact, budget = np.array([1.0, np.nan, np.inf, -np.inf]), np.full(4, 0.5)
    assert compare(exact.copy(), exact, budget)["status"] == "pass"
    for i, other in ((0, np.nan), (0, np.inf), (1, 1.0), (2, np.nan), (2, -np.inf), (3, 1e300)):
        got = exact.copy()
        got[i] = other
        fields = compare(got, exact, budget)
        assert (fields["status"], fields["wrong"], fields["worst_index"]) == ("fail", 1, (i,))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rounding_is_that_of_the_library(dtype):
    import ml_dtypes

    theirs = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    bits = np.random.default_rng(0).integers(0, 2**64, 20000, dtype=np.uint64).view(np.float64)
    near = np.random.default_rng(1).normal(size=20000) * 2.0 ** np.random.default_rng(2).integers(-30, 20, 20000)
    for x in (bits, near, np.array([0.0, -0.0, np.inf, np.nan, 65504, 65519.99, 65520, 2**-24, 2**-25, 1.5 * 2**-24])):
        near_range = ~(np.abs(x) > 1e38) | np.isinf(x)
        with np.errstate(invalid="ignore"):  # ml_dtypes goes through float32, so it is given numbers of float32
            given = x[near_range].astype(np.float32) if dtype == "bfloat16" else x
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            want = given.astype(theirs).astype(np.float64)
        np.testing.assert_array_equal(named_format(dtype).round(given.astype(float)), want)


@pytest.mark.parametrize("policy", ["zero", "nan", "uniform"])
def test_a_row_that_may_attend_nowhere_spoils_no_budget(policy):
    """Whatever its output is: an honest kernel passes, and one whose gradients are 2 per cent off does not."""
    random = np.random.default_rng(2)
    inputs = {name: random.standard_normal((1, 2, 6, 8)).astype(np.float32) for name in ("query", "key", "value")}
    inputs |= {"mask": np.arange(6)[:, None] != 3, "masked_rows": policy}
    d = random.standard_normal((1, 2, 6, 8)).astype(np.float32)
    attend = refattn.scaled_dot_product_attention
    y, pullback = attend.vjp(**{n: x.astype(float) if n in {"query", "key", "value"} else x for n, x in inputs.items()})
    grads = {n: np.asarray(x, np.float32) for n, x in pullback(d.astype(float)).items()}
    given = {"cotangents": d, "dtype": "float32"}
    testing.assert_matches(y.astype(np.float32), attend, inputs, gradients=grads, **given)
    for name in ("key", "value"):
        wrong = {**grads, name: grads[name] * np.float32(1.02)}
        with pytest.raises(AssertionError, match=name):
            testing.assert_matches(y.astype(np.float32), attend, inputs, gradients=wrong, **given)
