"""What fast convolutions take besides: layouts, activations, algorithms, plans; and all of it at random."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("numba")

import refattn
import refattn_numba
from refattn import testing
from refattn_numba.cpu.conv.choice import ALGORITHMS

DIMENSIONS = (1, 2, 3)


def twin_and_reference(axes, transposed=False):
    """The functions of so many dimensions."""
    name = f"conv{'_transpose' * transposed}{axes}d"
    return getattr(refattn_numba, name), getattr(refattn, name)


def drawn(random, axes, *, transposed=False):
    """A call with whatever fits."""
    groups, c, o = (int(random.integers(1, n)) for n in (4, 9, 20))
    kernel = [int(random.integers(1, 5)) for _ in range(axes)]
    stride, dilation = ([int(random.integers(1, 4)) for _ in range(axes)] for _ in range(2))
    if random.random() < 0.4:
        stride = dilation = [1] * axes
    pairs = [(int(random.integers(0, 4)), int(random.integers(0, 4))) for _ in range(axes)]
    if (form := random.random()) < 0.4:
        kernel = [3] * axes
    elif form < 0.6:
        kernel, pairs = [1] * axes, [(0, 0)] * axes
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    most = {1: 90, 2: 23, 3: 9}[axes]
    size = [max(1, r - a - b) + int(random.integers(0, most)) for r, (a, b) in zip(reach, pairs, strict=True)]
    if transposed:
        pairs = [(min(a, (r - 1) // 2), min(b, (r - 1) // 2)) for r, (a, b) in zip(reach, pairs, strict=True)]
    batch = int(random.integers(0, 4)) if random.random() < 0.3 else 2
    arguments = {
        "x": random.standard_normal((batch, groups * c, *size)),
        "weight": random.standard_normal((groups * o if not transposed else groups * c, c if not transposed else o, *kernel)),
        "stride": tuple(stride),
        "dilation": tuple(dilation),
        "padding": tuple(pairs),
        "groups": groups,
    }
    if random.random() < 0.5:
        arguments["bias"] = random.standard_normal(groups * o)
    return arguments


def agree(twin, reference, arguments, tolerance, **more):
    """The output and all gradients, against the reference in float64, relative to sums of sizes."""
    exact = {n: x.astype(float) if isinstance(x, np.ndarray) else x for n, x in arguments.items()}
    y, pullback = twin.vjp(**arguments, **more)
    want, want_pullback = reference.vjp(**exact)
    d = np.random.default_rng(1).standard_normal(want.shape).astype(y.dtype)
    grads, want_grads = pullback(d), want_pullback(d.astype(float))
    sizes = {n: abs(x) if n in {"x", "weight", "bias"} else x for n, x in exact.items()}
    bound, bound_pullback = reference.vjp(**sizes)
    bounds = bound_pullback(abs(d).astype(float))
    assert grads.keys() == want_grads.keys()
    for name, got, right, size in [("y", y, want, bound), *((n, grads[n], want_grads[n], bounds[n]) for n in grads)]:
        assert got.shape == right.shape
        assert (abs(got - right) <= tolerance * size.max(initial=0)).all(), name


TOLERANCE = {"float32": 2e-6, "float64": 4e-15}
"""Of the sum of the sizes of all terms: some units of rounding, which blocked sums of a few thousand terms stay below."""


@pytest.mark.parametrize("transposed", [False, True], ids=["", "transposed"])
@pytest.mark.parametrize("axes", DIMENSIONS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_random_calls(dtype, axes, transposed):
    for seed in range(25):
        random = np.random.default_rng(1000 * axes + seed)
        arguments = drawn(random, axes, transposed=transposed)
        given = {n: x.astype(dtype) if isinstance(x, np.ndarray) else x for n, x in arguments.items()}
        agree(*twin_and_reference(axes, transposed), given, TOLERANCE[dtype], accuracy="strict")


@pytest.mark.parametrize("algorithm", [a.name for a in ALGORITHMS])
@pytest.mark.parametrize("axes", DIMENSIONS)
def test_each_algorithm_where_it_applies(axes, algorithm):
    found = 0
    for seed in range(60):
        arguments = drawn(np.random.default_rng(2000 * axes + seed), axes)
        try:
            twin_and_reference(axes)[0].vjp(**arguments, algorithm=algorithm)
        except ValueError as error:
            assert f"algorithm is '{algorithm}', but " in str(error)
            continue
        found += 1
        agree(*twin_and_reference(axes), arguments, 1e-13, algorithm=algorithm)
    assert found


def last(x):
    """With the channels as the last axis."""
    return np.ascontiguousarray(np.moveaxis(x, 1, -1))


@pytest.mark.parametrize("axes", DIMENSIONS)
@pytest.mark.parametrize("transposed", [False, True], ids=["", "transposed"])
def test_channels_last(axes, transposed):
    twin, reference = twin_and_reference(axes, transposed)
    for seed in range(10):
        arguments = drawn(np.random.default_rng(3000 * axes + seed), axes, transposed=transposed)
        y, pullback = twin.vjp(**{**arguments, "x": last(arguments["x"])}, layout="channels_last")
        want, want_pullback = reference.vjp(**arguments)
        d = np.random.default_rng(2).standard_normal(want.shape)
        grads, want_grads = pullback(last(d)), want_pullback(d)
        np.testing.assert_allclose(y, last(want), rtol=0, atol=1e-11)
        np.testing.assert_allclose(grads["x"], last(want_grads["x"]), rtol=0, atol=1e-11)
        np.testing.assert_allclose(grads["weight"], want_grads["weight"], rtol=0, atol=1e-10)


def test_memory_says_the_layout():
    """An array whose channels lie together gives one whose channels do, whatever axis they are."""
    random = np.random.default_rng(4)
    x, weight = random.standard_normal((2, 8, 9, 10)), random.standard_normal((16, 8, 3, 3))
    seen = np.moveaxis(last(x), -1, 1)
    y, pullback = refattn_numba.conv2d.vjp(seen, weight)
    assert np.moveaxis(y, 1, -1).flags.c_contiguous
    assert np.moveaxis(pullback(np.ones_like(y))["x"], 1, -1).flags.c_contiguous
    np.testing.assert_allclose(y, refattn.conv2d(x, weight), rtol=0, atol=1e-12)


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("bad", [np.zeros((3, 4)), [1.0]])
def test_a_layout_needs_axes(axes, bad):
    twin, _ = twin_and_reference(axes)
    with pytest.raises(ValueError, match=rf"conv{axes}d: x is .*, but must be an array \(batch, positions, channels\)"):
        twin(bad, np.zeros((1,) * (axes + 2)), layout="channels_last")


ACTIVATIONS = {"relu": refattn.relu, "silu": refattn.silu, "gelu": refattn.gelu}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("transposed", [False, True], ids=["", "transposed"])
def test_activations(activation, layout, transposed):
    twin, reference = twin_and_reference(2, transposed)
    arguments = {**drawn(np.random.default_rng(5), 2, transposed=transposed)}
    moved = last if layout == "channels_last" else np.asarray
    y, pullback = twin.vjp(**{**arguments, "x": moved(arguments["x"])}, activation=activation, layout=layout)
    before, linear_pullback = reference.vjp(**arguments)
    want, function_pullback = ACTIVATIONS[activation].vjp(before)
    d = np.random.default_rng(6).standard_normal(want.shape)
    np.testing.assert_allclose(y, moved(want), rtol=0, atol=1e-11)
    y[...] = np.nan  # the caller's own
    grads, want_grads = pullback(moved(d)), linear_pullback(function_pullback(d)["x"])
    for name, right in want_grads.items():
        np.testing.assert_allclose(grads[name], moved(right) if name == "x" else right, rtol=0, atol=1e-10, err_msg=name)


def test_a_plan_computes_the_same_and_keeps_what_it_made():
    random = np.random.default_rng(7)
    x, weight, bias = random.standard_normal((2, 4, 12, 13)), random.standard_normal((8, 4, 3, 3)), random.standard_normal(8)
    want, want_pullback = refattn_numba.conv2d.vjp(x, weight, bias, padding=1, activation="relu")
    given = weight.copy()
    plan = refattn_numba.conv2d.plan(given, bias, padding=1, activation="relu")
    given[...] = np.nan
    d = random.standard_normal(want.shape)
    for _ in range(2):
        y, pullback = plan.vjp(x)
        np.testing.assert_array_equal(y, want)
        np.testing.assert_array_equal(plan(x), want)
        for name, g in pullback(d).items():
            np.testing.assert_array_equal(g, want_pullback(d)[name])
    smaller = random.standard_normal((1, 4, 5, 5))
    np.testing.assert_array_equal(plan(smaller), refattn_numba.conv2d(smaller, weight, bias, padding=1, activation="relu"))


def test_options_are_checked():
    x, weight = np.ones((1, 2, 5, 5)), np.ones((2, 2, 3, 3))
    with pytest.raises(ValueError, match=r"conv2d: algorithm is 'fastest', but must be"):
        refattn_numba.conv2d(x, weight, algorithm="fastest")
    with pytest.raises(ValueError, match=r"conv2d: layout is 'nhwc', but must be"):
        refattn_numba.conv2d(x, weight, layout="nhwc")
    with pytest.raises(TypeError, match=r"conv2d: accuracy is 1, but must be"):
        refattn_numba.conv2d(x, weight, accuracy=1)


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_tensors_keep_their_type_and_layout(name, layout):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    dtype, memory = getattr(torch, name), torch.channels_last if layout == "channels_last" else torch.contiguous_format
    x = torch.randn(2, 8, 9, 10, dtype=dtype).contiguous(memory_format=memory)
    weight = torch.randn(16, 8, 3, 3, dtype=dtype)
    y, pullback = refattn_numba.conv2d.vjp(x, weight, padding=1)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=memory)
    exact = torch.nn.functional.conv2d(x.double(), weight.double(), padding=1)
    unit = {"float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}[name]
    bound = torch.nn.functional.conv2d(x.double().abs(), weight.double().abs(), padding=1)
    assert (abs(y.double() - exact) <= unit * abs(exact) + 16 * 2.0**-24 * bound).all()
    assert pullback(torch.ones_like(y))["x"].dtype == dtype


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2000))
def test_many_random_calls(seed):
    random = np.random.default_rng(10_000 + seed)
    axes, transposed = 1 + seed % 3, bool(seed // 3 % 2)
    dtype, strict = ("float32", "float64")[seed // 6 % 2], bool(seed // 12 % 2)
    arguments = drawn(random, axes, transposed=transposed)
    given = {n: x.astype(dtype) if isinstance(x, np.ndarray) else x for n, x in arguments.items()}
    agree(*twin_and_reference(axes, transposed), given, TOLERANCE[dtype] * (1 if strict else 16), accuracy="strict" if strict else "fast")


def test_what_is_sampled_has_a_random_part():
    """Of the draws above, each option occurs."""
    calls = [drawn(np.random.default_rng(i), 2) for i in range(40)]
    assert any(math.prod(c["stride"]) > 1 for c in calls)
    assert any(c["weight"].shape[2:] == (3, 3) and c["stride"] == (1, 1) for c in calls)
    assert any(c["x"].shape[0] == 0 for c in calls)
    assert any("bias" in c for c in calls)
    assert testing.samples(refattn_numba.conv2d)
