"""A kernel that is right only for arguments of one kind is found by handing them over in other ways."""

from __future__ import annotations

import numpy as np
import pytest

import refattn
from refattn import testing
from refattn.testing import frameworks
from refattn.testing.frameworks import NumPy
from refattn.testing.handling import LAYOUTS, FarApart, Poisoned, Viewed
from refattn.testing.precision import named_format


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def ways(report):
    return {r.case.partition("; ")[2] for r in report.failures}


def test_an_honest_kernel_passes_however_it_is_called():
    report = testing.check(softmax, refattn.softmax)
    report.raise_if_wrong()
    assert {r.case.partition("; ")[2] for r in report.results} >= {f"views, {name}" for name in LAYOUTS} | {
        "views, axes stored backwards",
        "batch backwards",
        "once more",
        "freed memory full of NaN",
    }


def test_a_kernel_that_ignores_strides_is_found():
    def raw(x):
        begin = np.lib.stride_tricks.as_strided(x, x.shape, [x.itemsize * int(np.prod(x.shape[i + 1 :])) for i in range(x.ndim)])
        return softmax(begin) if min(x.strides) > 0 else softmax(x)

    assert ways(testing.check(raw, refattn.softmax)) >= {
        "views, every other element",
        "views, axes stored backwards",
        "views, inside of NaN",
    }


def test_a_kernel_that_reads_beyond_its_argument_is_found():
    def greedy(x):
        base = x.base if isinstance(x.base, np.ndarray) and x.base.shape[-1] == x.shape[-1] + 2 else None
        beyond = 0.0 if base is None else base[(*(slice(1, -1),) * (x.ndim - 1), -1)][..., None]
        return softmax(x) + 0 * beyond

    assert ways(testing.check(greedy, refattn.softmax)) == {"views, inside of NaN"}


def test_a_kernel_that_remembers_is_found():
    known = {}

    def cached(x):
        return known.setdefault(x.shape, softmax(x))

    assert {"batch backwards"} <= ways(testing.check(cached, refattn.softmax))


def test_a_kernel_that_changes_with_each_call_is_found():
    calls = []

    def tired(x):
        calls.append(x.shape)
        return softmax(x) * (1 + 1e-3 * (calls.count(x.shape) > 6))

    assert "once more" in ways(testing.check(tired, refattn.softmax))


def test_memory_that_a_kernel_gets_next_is_poisoned():
    x = np.ones((3, 5), np.float32)  # so small that NumPy hands out again what was freed last
    made = Poisoned(NumPy()).make(x, named_format("float32"))
    next_one = np.empty_like(made)
    assert np.isnan(next_one).all()
    np.testing.assert_array_equal(made, x)


@pytest.mark.parametrize("name", ["float32", "float16"])
@pytest.mark.parametrize("layout", [*LAYOUTS.values(), None], ids=[*LAYOUTS, "backwards axes"])
def test_views_hold_the_same_numbers(layout, name):
    x = named_format(name).round(np.random.default_rng(0).normal(size=(2, 3, 4)))
    view = Viewed(NumPy(), layout).make(x, named_format(name))
    np.testing.assert_array_equal(view.astype(float), x)
    assert not view.flags.c_contiguous
    assert Viewed(NumPy(), layout).make(np.zeros((0, 2)), named_format(name)).shape == (0, 2)


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_rows_may_lie_far_apart(framework):
    if framework == "torch":
        pytest.importorskip("torch")
    inner = frameworks.framework(framework)
    x = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32).astype(float)
    view = FarApart(inner).make(x, named_format("float32"))
    last = (view.strides[0] // view.itemsize, view.strides[1] // view.itemsize) if framework == "numpy" else view.stride()[:2]
    assert last[0] + 2 * last[1] >= 2**31
    np.testing.assert_array_equal(inner.value(view), x)
    assert inner.value(FarApart(inner).make(x[:0], named_format("float32"))).shape == (0, 3, 5)


def test_a_kernel_that_counts_in_32_bits_is_found():
    def narrow(x):
        step = x.strides[-2] // x.itemsize if x.ndim > 1 else 0
        offsets = np.arange(x.size // x.shape[-1]) * step
        lost = (offsets.astype(np.int32) != offsets).reshape(*x.shape[:-1], 1)
        return softmax(np.where(lost, 0, x))

    report = testing.check(narrow, refattn.softmax, level="full", supports=())
    assert ways(report) == {"views, rows far apart"}
    testing.check(softmax, refattn.softmax, level="full").raise_if_wrong()


def test_tensors_are_viewed_too():
    torch = pytest.importorskip("torch")
    seen = []

    def watched(x):
        seen.append(x.is_contiguous())
        return torch.softmax(x, -1)

    testing.check(watched, refattn.softmax, framework="torch").raise_if_wrong()
    assert False in seen
