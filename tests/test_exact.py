"""Exact mode: attention and convolution to 0.51 units in the last place, everything else too, and the same bits everywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager

import mpmath
import numpy as np
import pytest

import refattn
from refattn._core.mechanism import outputs
from refattn.exact.expansion import Expansion, expansion
from refattn.testing import cotangents, gradient_leaves, in_precision, samples
from tests.enumeration import EACH, EXTENDED
from tests.exact_truth import attention, convolution, worst_ulps

PROMISE = 0.51


def heads(random, count, magnitude):
    """Attention of so many heads that have nothing in common, with every option that has a gradient, and scores of this size."""
    draw = random.normal
    grown = np.sqrt(magnitude)
    given = {
        "query": grown * draw(size=(count, 3, 4)),
        "key": grown * draw(size=(count, 5, 4)) * np.sqrt(2.0),
        "value": draw(size=(count, 5, 3)) * np.ldexp(1.0, random.integers(-20, 20, (count, 5, 3))),
        "bias": magnitude / 4 * draw(size=(count, 3, 5)),
        "sinks": magnitude / 4 * draw(size=count),
    }
    mask = random.random((count, 3, 5)) < 0.7
    mask[..., 2] = True
    d_output, d_lse = draw(size=(count, 3, 3)), draw(size=(count, 3))
    return given, mask, 2.0 * magnitude, d_output, d_lse


def worst_of_attention(random, count, magnitude):
    """In units in the last place, of outputs and gradients."""
    given, mask, cap, d_output, d_lse = heads(random, count, magnitude)
    mechanism = refattn.scaled_dot_product_attention_with_lse
    y, pullback = refattn.exact.vjp(mechanism, **given, mask=mask, softcap=cap)
    got = {"output": y.output, "lse": y.lse, **pullback(d_output, d_lse)}
    worst = 0.0
    for h in range(count):
        true = attention(
            *(given[name][h] for name in ("query", "key", "value")),
            d_output[h],
            d_lse[h],
            bias=given["bias"][h],
            mask=mask[h],
            cap=cap,
            sink=given["sinks"][h],
        )
        worst = max(worst, *(worst_ulps(got[name][h], true[name]) for name in true))
    return worst


@pytest.mark.parametrize("magnitude", [1.0, 20.0, 1e3, 1e5])
def test_attention_to_the_last_bit(magnitude):
    assert worst_of_attention(np.random.default_rng(1), 6, magnitude) <= PROMISE


@pytest.mark.slow
@pytest.mark.parametrize("magnitude", [1e-3, 1.0, 20.0, 200.0, 1e3, 1e5])
def test_attention_to_the_last_bit_on_many(magnitude):
    worst = max(worst_of_attention(np.random.default_rng(seed), 100, magnitude) for seed in range(5))
    print(f"scores of {magnitude:g}: 500 heads, {worst:.6f} units in the last place")
    assert worst <= PROMISE


CONVOLUTIONS = (
    {"stride": 1, "padding": 0, "dilation": 1, "groups": 1},
    {"stride": 2, "padding": 1, "dilation": 1, "groups": 2},
    {"stride": 1, "padding": 2, "dilation": 2, "groups": 2},
)


def worst_of_convolution(random, options, spread):
    """In units in the last place, of output and gradients; elements have exponents in so wide a range, and cancel."""

    def draw(*shape):
        return random.normal(size=shape) * np.ldexp(1.0, random.integers(-spread, spread + 1, shape))

    x, weight, bias = draw(2, 4, 6, 5), draw(4, 4 // options["groups"], 3, 2), draw(4)
    x[:, 1] = -x[:, 0]
    weight[:, 1] = weight[:, 0] * (1 + 2.0**-52)
    y, pullback = refattn.exact.vjp(refattn.conv2d, x=x, weight=weight, bias=bias, **options)
    d_output = draw(*y.shape)
    got = {"output": y, **pullback(d_output)}
    true = convolution(x, weight, bias, d_output, **options)
    return max(worst_ulps(got[name], true[name]) for name in true)


@pytest.mark.parametrize("options", CONVOLUTIONS)
def test_convolution_to_the_last_bit(options):
    assert worst_of_convolution(np.random.default_rng(2), options, 30) <= PROMISE


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0, 30, 200])
def test_convolution_to_the_last_bit_on_many(spread):
    worst = max(worst_of_convolution(np.random.default_rng(seed), CONVOLUTIONS[seed % 3], spread) for seed in range(100))
    print(f"exponents within {spread}: 100 convolutions, {worst:.6f} units in the last place")
    assert worst <= PROMISE


PROCESSORS_OWN = ("exp", "expm1", "log", "log1p", "tanh", "sin", "cos", "matmul", "einsum", "sum", "cumsum")
"""Functions whose last bits depend on the processor, or whose order of summation does."""


@contextmanager
def nothing_plain():
    """Within the block, these functions of NumPy refuse arrays of float64."""

    def refusing(function):
        def called(*args, **kwargs):
            if not any(isinstance(x, Expansion) for x in args) and any(
                np.asarray(x).dtype.kind == "f" for x in args if not isinstance(x, str)
            ):
                raise AssertionError(f"{function.__name__} of plain float64")
            return function(*args, **kwargs)

        return called

    with pytest.MonkeyPatch.context() as patch:
        for name in PROCESSORS_OWN:
            patch.setattr(np, name, refusing(getattr(np, name)))
        yield


def far_off(mechanism, sample):
    """Where exact mode and the longdouble reference differ by more than they may.

    Float64 rounds the first by half a unit; the second errs 2**11 times less than float64 does on the same call, which is what the
    plain reference in float64 says, or no more than some units of its own of the largest element.
    """
    with nothing_plain():
        y, pullback = refattn.exact.vjp(mechanism, **sample.arguments)
    ds = cotangents(y)
    with nothing_plain():
        grads = gradient_leaves(pullback(*ds))
    found = {**dict(zip(mechanism.spec.output_names, outputs(y), strict=True)), **grads}
    others = []
    for dtype in (np.float64, np.longdouble):
        made, back = mechanism.vjp(**in_precision(mechanism, sample.arguments, dtype))
        grads = gradient_leaves(back(*(d.astype(dtype) if d.dtype.kind == "f" else d for d in ds)))
        others.append({**dict(zip(mechanism.spec.output_names, outputs(made), strict=True)), **grads})
    plain, wide = others
    assert found.keys() == wide.keys()
    largest = max((float(np.abs(x[np.isfinite(x)]).max(initial=0)) for x in wide.values() if x.dtype.kind == "f"), default=0.0)
    for name, x in found.items():
        if x.dtype.kind != "f":
            assert (x == wide[name]).all()
            continue
        usual = np.isfinite(wide[name])
        np.testing.assert_array_equal(x[~usual], wide[name][~usual].astype(x.dtype))
        off = np.abs(x[usual] - wide[name][usual])
        float64_error = np.abs(plain[name][usual] - wide[name][usual]).max(initial=0)
        may = 2.0**-53 * np.abs(wide[name][usual]) + 2.0**-7 * float64_error + 2.0**-58 * largest
        if not (off <= may).all():
            yield name, float((off / may).max())


needs_longdouble = pytest.mark.skipif(not EXTENDED, reason="longdouble is float64 here")


@needs_longdouble
@pytest.mark.slow
@pytest.mark.parametrize("mechanism", EACH)
def test_every_sample_evaluates(mechanism):
    for sample in samples(mechanism):
        assert not list(far_off(mechanism, sample)), sample.name


FAMILIES_OF_LAYERS = {"blocks", "video"}
"""Whose keys have biases without effect: their gradients cancel to 0, which takes all components and seconds to see."""


@needs_longdouble
@pytest.mark.parametrize("mechanism", [m for m in EACH if m.values[0].spec.family not in FAMILIES_OF_LAYERS])
def test_every_mechanism_evaluates(mechanism):
    assert not list(far_off(mechanism, next(iter(samples(mechanism)))))


def run_elsewhere(count, names, **environment):
    """The digests of another process."""
    command = [sys.executable, "-m", "tests.exact_digests", str(count), *names]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


OLD_PROCESSOR = "X86_V3 X86_V4 AVX512_ICL AVX512_SPR AVX2 FMA3 AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL ASIMDHP ASIMDDP ASIMDFHM"
"""Names that NumPy does not know it warns of."""

ELSEWHERE = (
    {"OPENBLAS_NUM_THREADS": "1", "OPENBLAS_CORETYPE": "Prescott", "NPY_DISABLE_CPU_FEATURES": OLD_PROCESSOR},
    {"OPENBLAS_NUM_THREADS": "2", "OPENBLAS_CORETYPE": "Haswell"},
)

RECORDED = {
    "conv2d: groups": "a809130dfa2816766be615d49bed92d0d1e0e77c04036b8f7fb459b5b7561026",
    "conv2d: bias and stride": "49ae36071309d2c87d9ddaca1cb954bb06fe6b500d7c175cd39fe25f3a8a14de",
    "gated_linear_attention: grouped": "b257d2c39fada76b3b4a254d3ad60fec51e32c9c9e0ad968b993f413a60b6c6f",
    "gated_linear_attention: state": "a5bcc94cac12ac807fcb1ef1d7e14872d697a800131b5c61ad0857a7d11519dd",
    "gelu: plain": "cdb568ccbfc3e6dd2a1cbd49b82104dc754f50185a6578e91f95024b6a49462f",
    "gelu: far from zero": "f5cce3b4b51389ad305467e6f0e1181f79919421ebcd767c9a87a439a7765cfa",
    "layer_norm: plain": "8654381c77799424ec9bed19fc8bb840df11e869e58109e578fae5847dded79e",
    "layer_norm: eps": "8518574c3df61ae81c740783d4f3aa3cba03092f92b5b323233deea28fd390cf",
    "scaled_dot_product_attention_with_lse: grouped": "14d9f17476443e0bbca73886d147fa4a7bde73de48378eff60506bf9dd918c48",
    "scaled_dot_product_attention_with_lse: bias per head": "2d39ef2750dfd4d56c8e978a76c4cfb0c4c2f890c14bc07ab3ce3783123aebef",
    "sinusoidal_encoding: interleaved": "ec55fb54f303ad18ade562690b263c51118cc13e51a1c105f466320626e0e4cc",
    "sinusoidal_encoding: halves": "3acc4983088d9c3c8868ddb1d1a4fdc8da8c1eee44691bb1289e7c7cdb469d32",
    "softplus: plain": "8ae7c8386a443cd9f0c684985541d8358f1bd9068573acc60a04bea5fa211c51",
    "softplus: far from zero": "6945f14bf5e8db6cd9f6699d36e2ef69db8bbd78851f22053fe2d4a6d68e8da6",
}


@pytest.mark.parametrize("environment", ELSEWHERE, ids=["old", "other"])
def test_same_bits_on_other_processors(environment):
    names = sorted({key.partition(":")[0] for key in RECORDED})
    assert run_elsewhere(2, names, **environment) == RECORDED


@pytest.mark.slow
def test_same_bits_of_everything():
    """All samples of all mechanisms, as if on three processors."""
    first, *others = (run_elsewhere(99, [], **environment) for environment in (*ELSEWHERE, {}))
    for other in others:
        assert other == first


def test_gradients_that_cancel_to_nothing_are_nothing():
    """A softmax's gradients sum to 0; in float64 they leave some 1e-17."""
    random = np.random.default_rng(0)
    x = {"query": random.normal(size=(1, 3, 4)), "key": random.normal(size=(1, 5, 4)), "value": random.normal(size=(1, 5, 2))}
    bias = random.normal(size=(1, 3, 1))
    plain = refattn.scaled_dot_product_attention.vjp(**x, bias=bias)[1](np.ones((1, 3, 2)) / 3)["bias"]
    exact = refattn.exact.vjp(refattn.scaled_dot_product_attention, **x, bias=bias)[1](np.ones((1, 3, 2)) / 3)["bias"]
    assert plain.any()
    assert not exact.any()


def test_weights_of_certainty_have_gradients():
    """exp(-200) of the weight is elsewhere, and that is the gradient: components escalate until it is seen."""
    y, pullback = refattn.exact.vjp(refattn.softmax, x=np.array([0.0, 200.0]))
    assert y.tolist() == [float(1 / (1 + mpmath.exp(200))), 1.0]
    assert pullback(np.array([0.0, 1.0]))["x"].tolist() == [-y[0], y[0]]


def test_what_no_components_hold_is_refused():
    """Thirty numbers, each 2**-60 of the one before, and their opposites, far from them: one small number is left."""
    steps = 2.0 ** (900 - 60 * np.arange(30.0))
    x = np.concatenate([steps, [1e-200], -steps[::-1]])
    with pytest.raises(ArithmeticError, match="linear: output cancels further than 8 components"):
        refattn.exact.evaluate(refattn.linear, x=x, weight=np.ones((1, x.size)))
    assert refattn.exact.evaluate(refattn.linear, x=x[25:36], weight=np.ones((1, 11))) == [1e-200]


def test_arithmetic_is_the_context_form():
    x = np.array([1e20, 1.0, -1e20])
    assert refattn.linear(x, np.ones((1, 3))) == [0.0]
    with refattn.exact.arithmetic():
        y, pullback = refattn.linear.vjp(x, np.ones((1, 3)))
        assert y == [1.0]
        assert type(y) is np.ndarray
        assert pullback(np.ones(1))["weight"].tolist() == [x.tolist()]
    assert refattn.linear(x, np.ones((1, 3))) == [0.0]
    with pytest.raises(ValueError, match="components is 1, but must be 2 or more"), refattn.exact.arithmetic(1):
        pass


def test_longdouble_is_refused():
    with pytest.raises(TypeError, match=r"softmax: x is (float128|float96|longdouble), but refattn.exact computes from float64"):
        refattn.exact.evaluate(refattn.softmax, x=np.ones(3, np.longdouble))


def test_lower_precisions_are_exact():
    x = np.array([0.1, 0.7], np.float16)
    assert refattn.exact.evaluate(refattn.softmax, x=x).tolist() == refattn.exact.evaluate(refattn.softmax, x=x.astype(float)).tolist()


def test_errors_are_those_of_the_mechanism():
    with pytest.raises(refattn.ShapeError, match="head_dim"):
        refattn.exact.evaluate(
            refattn.scaled_dot_product_attention, query=np.ones((1, 2, 3)), key=np.ones((1, 2, 4)), value=np.ones((1, 2, 4))
        )
    _, pullback = refattn.exact.vjp(refattn.softmax, x=np.ones(3))
    with pytest.raises(ValueError, match="d_output has shape"):
        pullback(np.ones(2))


def test_a_pullback_may_be_called_twice():
    _, pullback = refattn.exact.vjp(refattn.softmax, x=np.array([0.5, 1.0, -2.0]))
    first, second = (pullback(np.array([1.0, 2.0, 4.0]))["x"] for _ in range(2))
    assert first.tolist() == second.tolist()


def test_a_pullback_knows_the_arguments_as_they_were():
    """Its gradient is 0 by mathematics, for which it goes back to them with more components."""
    x = np.array([0.5, 1.0, -2.0])
    _, pullback = refattn.exact.vjp(refattn.softmax, x=x)
    x[...] = np.nan
    assert not pullback(np.ones(3))["x"].any()


def test_arguments_are_left_alone():
    x = np.array([1.0, 2.0, 4.0])
    x.flags.writeable = False
    refattn.exact.vjp(refattn.softmax, x=x)[1](x)
    assert x.tolist() == [1.0, 2.0, 4.0]


def test_components_are_never_lost_in_silence():
    x = expansion(np.ones((2, 3)), 2) / 3
    for operation in (
        lambda: np.cbrt(x),
        lambda: np.var(x),
        lambda: x.astype(np.longdouble),
        lambda: np.add(np.ones((2, 3)), x, out=np.ones((2, 3))),
    ):
        with pytest.raises(TypeError):
            operation()
    dropped = x.view(Expansion)
    with pytest.raises(TypeError, match="has dropped the components"):
        dropped + 1
