"""What holds for every mechanism, by enumeration."""

from __future__ import annotations

import copy
import itertools
import pickle

import numpy as np
import pytest

import refattn
from refattn import testing
from refattn._core import dims, tree
from refattn._core.docstring import Leaf, record_facts
from refattn._core.mechanism import outputs
from refattn._core.random import Random
from tests.enumeration import CALLS, EACH, EXTENDED, MECHANISMS, frozen

TOLERANCE = 1e-9 if EXTENDED else 1e-7


@pytest.mark.parametrize(("m", "sample"), CALLS)
def test_gradients_are_the_derivative(m, sample):
    given = testing.in_precision(m, sample.arguments, np.longdouble)
    y, pullback = m.vjp(**frozen(given))
    ds = testing.cotangents(y)
    grads = pullback(*ds)
    leaves = testing.gradient_leaves(grads)
    assert leaves.keys() == m.spec.facts.differentiable(given).keys()
    stated = m.spec.gradient_of
    named = stated if isinstance(stated, dict) else dict.fromkeys(given, stated or m)
    of = {path: named.get(path.partition(".")[0], m) for path in leaves}
    errors = {path: e for f in set(of.values()) for path, e in testing.directional_errors(f, given, ds, grads).items() if of[path] is f}
    assert errors.keys() == leaves.keys()
    for path, g in leaves.items():
        if not errors[path] < TOLERANCE:
            numerical = testing.numerical_gradients(of[path], given, ds)
            np.testing.assert_allclose(g, numerical[path], rtol=1e-6, atol=1e-8, err_msg=path)
    assert all(e < TOLERANCE for e in errors.values()), errors


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_is_not_near(wrong):
    given = {"x": Random(0).normal((2, 3))}
    ds = testing.cotangents(refattn.softmax(**given))
    d = np.array(refattn.softmax.vjp(**given)[1](*ds)["x"])
    assert testing.directional_errors(refattn.softmax, given, ds, {"x": d})["x"] < 1e-6
    d[1, 2] = wrong
    assert not testing.directional_errors(refattn.softmax, given, ds, {"x": d})["x"] < 1


@pytest.mark.parametrize(("m", "sample"), CALLS)
def test_names_shapes_and_dtypes(m, sample):
    given = frozen(sample.arguments)
    y, pullback = m.vjp(**given)
    made = dict(zip(m.spec.output_names, outputs(y), strict=True))
    assert all(type(x) is np.ndarray and x.dtype == np.float64 for x in made.values())
    accepted = m.spec.accept(given)
    m.spec.sizes(accepted, made)  # raises where an output has not the stated shape
    grads = testing.gradient_leaves(pullback(*testing.cotangents(y)))
    wanted = m.spec.facts.differentiable(accepted)
    assert {n: (g.shape, g.dtype) for n, g in grads.items()} == {n: (x.shape, np.dtype(float)) for n, x in wanted.items()}


@pytest.mark.parametrize(("m", "sample"), CALLS)
def test_a_second_pullback_gives_the_same(m, sample):
    y, pullback = m.vjp(**frozen(sample.arguments))
    for a, b in zip(outputs(y), outputs(m(**sample.arguments)), strict=True):
        np.testing.assert_array_equal(a, b)
    ds = frozen({str(i): d for i, d in enumerate(testing.cotangents(y))}).values()
    first = testing.gradient_leaves(copy.deepcopy(pullback(*ds)))
    for x in outputs(y):
        x[...] = np.nan  # outputs are the caller's: what he does to them reaches no gradient
    for name, g in testing.gradient_leaves(pullback(*ds)).items():
        np.testing.assert_array_equal(g, first[name], err_msg=name)


@pytest.mark.parametrize("m", EACH)
def test_omitted_cotangents_are_zero(m):
    sample = next(testing.samples(m))
    y, pullback = m.vjp(**sample.arguments)
    names, ds = m.spec.output_names, testing.cotangents(y)
    for i, name in enumerate(names):
        alone = testing.gradient_leaves(pullback(**{f"d_{name}": ds[i]}))
        spelt = testing.gradient_leaves(pullback(*(d if j == i else np.zeros_like(d) for j, d in enumerate(ds))))
        assert alone.keys() == spelt.keys()
        for path, g in alone.items():
            np.testing.assert_array_equal(g, spelt[path])
    with pytest.raises(ValueError, match=f"d_{names[0]} has shape"):
        pullback(np.zeros((*ds[0].shape, 2)))


@pytest.mark.parametrize(("m", "sample"), CALLS)
def test_longdouble_goes_in_and_comes_out(m, sample):
    y, pullback = m.vjp(**testing.in_precision(m, sample.arguments, np.longdouble))
    low, low_pullback = m.vjp(**sample.arguments)
    for a, b in zip(outputs(y), outputs(low), strict=True):
        assert a.dtype == np.longdouble
        np.testing.assert_allclose(b, a.astype(float), rtol=1e-10, atol=1e-12)
    ds = testing.cotangents(y)
    low_grads = testing.gradient_leaves(low_pullback(*(d.astype(float) for d in ds)))
    for path, g in testing.gradient_leaves(pullback(*ds)).items():
        assert g.dtype == np.longdouble, path
        np.testing.assert_allclose(low_grads[path], g.astype(float), rtol=1e-9, atol=1e-11, err_msg=path)


@pytest.mark.parametrize("m", EACH)
def test_low_precision_is_converted_exactly(m):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    sample = next(testing.samples(m))
    for dtype in (np.float16, np.float32, ml_dtypes.bfloat16):
        low = testing.in_precision(m, sample.arguments, dtype)
        wide = testing.in_precision(m, low, np.float64)
        for a, b in zip(outputs(m(**low)), outputs(m(**wide)), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("m", EACH)
def test_every_parameter_is_sampled(m):
    sampled = {n for s in testing.samples(m) for n in s.arguments}
    assert sampled == set(m.spec.signature.parameters)


def matters(m, sample, option):
    """Whether leaving an option out changes an output by more than 1e-6 of it, a shape, or makes the call an error."""
    rest = {k: v for k, v in sample.arguments.items() if k != option}
    try:
        before, after = outputs(m(**rest)), outputs(m(**sample.arguments))
    except (ValueError, TypeError):
        return True
    if any(a.shape != b.shape for a, b in zip(before, after, strict=True)):
        return True
    same = (
        np.where(np.isfinite(a) & np.isfinite(b), np.abs(a - b), ~((a == b) | (np.isnan(a) & np.isnan(b))))
        for a, b in zip(before, after, strict=True)
    )
    return any(
        d.size and d.max() > 1e-6 * max(1.0, np.nanmax(np.abs(np.where(np.isfinite(a), a, 0)))) for d, a in zip(same, after, strict=True)
    )


OPTIONS = [pytest.param(m, n, id=f"{m.__name__}-{n}") for m in MECHANISMS for n in m.spec.defaults]


@pytest.mark.parametrize(("m", "option"), OPTIONS)
def test_every_option_matters(m, option):
    with np.errstate(invalid="ignore"):
        changes = [matters(m, s, option) for s in testing.samples(m) if option in s.arguments]
    assert any(changes) != (option in m.spec.inert)


@pytest.mark.parametrize("m", EACH)
def test_pickles(m):
    assert pickle.loads(pickle.dumps(m)) is m
    assert pickle.loads(pickle.dumps(m.vjp)) is m.vjp


@pytest.mark.parametrize("m", EACH)
def test_is_exported(m):
    if not m.spec.module.startswith("refattn._"):
        assert getattr(refattn, m.__name__) is m


@pytest.mark.parametrize("m", EACH)
def test_docstring_states_equation_and_source(m):
    assert m.spec.facts.equation
    assert "Examples\n" in m.__doc__
    if ".attention." in m.spec.module or ".positional." in m.spec.module:
        assert m.spec.facts.references


BAD = [pytest.param(m, b, id=f"{m.__name__}-{b.name}") for m in MECHANISMS if m.spec.bad_calls for b in m.spec.bad_calls(Random(0))]


@pytest.mark.parametrize(("m", "bad"), BAD)
def test_bad_calls_are_refused(m, bad):
    with pytest.raises(bad.error, match=bad.match):
        m(**bad.arguments)


def stated_arrays(path, fact):
    """Every array that an argument may have, by dotted path; of a tuple, those of its first item."""
    if isinstance(fact, Leaf):
        return {path: fact}
    parts = {"0": fact[0]} if isinstance(fact, tuple) else record_facts(fact)
    return {inner: leaf for name, part in parts.items() for inner, leaf in stated_arrays(f"{path}.{name}", part).items()}


ARRAYS = [
    pytest.param(m, path, leaf, id=f"{m.__name__}-{path}")
    for m in MECHANISMS
    for name, fact in m.spec.facts.arguments.items()
    for path, leaf in stated_arrays(name, fact).items()
]


def first_with(m, path):
    """A sample in which this is an array: its arguments, and this array."""
    calls = (
        ({a: x for a, x in s.arguments.items() if x is not None}, dict(tree.leaves(s.arguments)).get(path)) for s in testing.samples(m)
    )
    return next((given, x) for given, x in calls if isinstance(x, np.ndarray))


@pytest.mark.parametrize(("m", "path", "leaf"), ARRAYS)
def test_arrays_of_another_kind_are_refused(m, path, leaf):
    given, x = first_with(m, path)
    wrong = {"int": x.astype(float), "bool": x.astype(float)}.get(leaf.kind, x.astype(complex))
    for other in (wrong, x.astype(object), x.astype(str)):
        with pytest.raises(TypeError, match=f"{m.__name__}: {path} is"):
            m(**tree.replace(given, path, other))
    if leaf.is_real and leaf.kind != "int or real":
        with pytest.raises(TypeError, match=f"{m.__name__}: {path} is int64, but must be floating point"):
            m(**tree.replace(given, path, np.zeros(x.shape, int)))
    if not leaf.absent:
        with pytest.raises(TypeError, match=f"{m.__name__}: {path} is None, but must be an array"):
            m(**tree.replace(given, path, None))


@pytest.mark.parametrize(("m", "path", "leaf"), ARRAYS)
def test_axes_that_disagree_are_refused(m, path, leaf):
    given, x = first_with(m, path)
    others = [f.dims for other, f, _ in m.spec.facts.leaves(given) if other != path and f.exact]
    groups = [i for i, d in enumerate(leaf.dims) if dims.is_group(d)]
    for i, word in enumerate(leaf.dims):
        if leaf.exact and word.isidentifier() and any(word in d for d in others):
            axis = i if not groups or i < groups[0] else i - len(leaf.dims)
            longer = np.concatenate([x, x.take([0], axis)] if x.shape[axis] else [np.ones_like(x, shape=[n or 1 for n in x.shape])], axis)
            with pytest.raises(refattn.ShapeError, match=rf"{m.__name__}: {word} is"):
                m(**tree.replace(given, path, longer))
    if leaf.exact and not groups:
        with pytest.raises(refattn.ShapeError, match=f"{m.__name__}: {path} has {x.ndim + 1} axes, but needs {x.ndim}"):
            m(**tree.replace(given, path, x[None]))


@pytest.mark.parametrize("m", EACH)
def test_an_empty_axis_is_computed_or_refused(m):
    for sample in testing.samples(m):
        given = frozen({a: x for a, x in sample.arguments.items() if x is not None})
        stated = {a: f.dims for a, f in m.spec.facts.arguments.items() if isinstance(given.get(a), np.ndarray) and isinstance(f, Leaf)}
        for word in {d for dims_of in stated.values() for d in dims_of if d.isidentifier()}:
            axes = {a: dims_of.index(word) - len(dims_of) for a, dims_of in stated.items() if word in dims_of}
            empty = {a: given[a].take([], axis) for a, axis in axes.items() if -axis <= given[a].ndim and given[a].shape[axis] != 1}
            try:
                y, pullback = m.vjp(**{**given, **empty})
            except ValueError:
                continue
            grads = testing.gradient_leaves(pullback(*testing.cotangents(y)))
            assert {a: grads[a].shape for a in empty if a in grads} == {a: empty[a].shape for a in empty if a in grads}


EXTREME = [np.nan, np.inf, -np.inf, 1e300, 1e-300, -1e-310]


@pytest.mark.parametrize("m", EACH)
def test_no_number_is_an_error(m):
    sample = next(testing.samples(m))
    real = [a for a, f in m.spec.facts.arguments.items() if isinstance(f, Leaf) and f.is_real and hasattr(sample.arguments.get(a), "dtype")]
    for name, number in itertools.product(real, EXTREME):
        extreme = np.copy(sample.arguments[name])
        extreme.flat[0] = number
        with np.errstate(all="raise"):
            y, pullback = m.vjp(**{**sample.arguments, name: extreme})
            pullback(*(np.full_like(x, number) for x in outputs(y)))


@pytest.mark.parametrize("m", EACH)
def test_unknown_options_are_refused(m):
    given = next(testing.samples(m)).arguments
    with pytest.raises(TypeError, match=f"{m.__name__}: got an unexpected keyword argument 'no_such_option'"):
        m(**given, no_such_option=1)
    for name in m.spec.facts.options:
        with pytest.raises((TypeError, ValueError), match=f"{m.__name__}: {name} is"):
            m(**{**given, name: object()})


@pytest.mark.parametrize("m", EACH)
def test_the_hook_sees_arguments_outputs_and_gradients(m):
    seen = []
    sample = next(testing.samples(m))
    with refattn.hooked(seen.append):
        y, pullback = m.vjp(**sample.arguments)
        grads = pullback(*testing.cotangents(y))
    here = [(r.kind, r.name) for r in seen if r.path == (m.__name__,)]
    assert [n for k, n in here if k == "output"] == list(m.spec.output_names)
    assert {n for k, n in here if k == "gradient"} == {p for p, _ in tree.leaves(grads)}
    assert {n for k, n in here if k == "cotangent"} == set(m.spec.output_names)
