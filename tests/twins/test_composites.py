"""Blocks of convolution and attention in one precision, with the fast one in place of each part that has one."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("numba")

import refattn
import refattn_numba
from refattn import testing
from refattn._core import tree
from refattn_numba import _twin

PARTS = {"squeeze_excitation": "linear", "cbam": "conv2d", "non_local": "linear", "acmix": "pointwise_conv2d"}


def in_float32(name):
    return testing.in_precision(getattr(refattn, name), next(testing.samples(getattr(refattn, name))).arguments, np.float32)


@pytest.mark.parametrize("name", PARTS)
def test_the_precision_is_that_of_the_arguments(name):
    y, pullback = getattr(refattn_numba, name).vjp(**in_float32(name))
    grads = dict(tree.leaves(pullback(np.ones_like(y))))
    assert len(grads) > 2
    assert {y.dtype, *(g.dtype for g in grads.values())} == {np.dtype(np.float32)}


@pytest.mark.parametrize(("name", "part"), PARTS.items())
def test_parts_are_the_fast_ones(name, part, monkeypatch):
    calls = []

    def vjp(*args, **kwargs):
        calls.append(args)
        return getattr(refattn, part).vjp(*args, **kwargs)

    given = in_float32(name)
    want = getattr(refattn_numba, name)(**given)
    monkeypatch.setitem(_twin._TWINS, part, SimpleNamespace(vjp=vjp))
    np.testing.assert_allclose(getattr(refattn_numba, name)(**given), want, rtol=0, atol=1e-5)  # a sum's order differs
    assert calls
