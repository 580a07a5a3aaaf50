"""The table of conventions: each entry changes something, says so once, and has the gradients of what it computes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

import refattn
from refattn import testing
from refattn._core import Random, tree
from refattn._core.mechanism import outputs
from refattn.testing.calls import gradient_leaves
from refattn.testing.explaining.alternative import DoesNotApply
from refattn.testing.explaining.attention_gradients import ATTENTION_GRADIENTS
from refattn.testing.explaining.convolution import CONVOLUTION_GRADIENTS
from refattn.testing.explaining.tables import known
from tests.test_explain import CONVOLUTIONS, LAYERS, PLANTED, STATE, recurrent

NAMES = [
    "scaled_dot_product_attention_with_lse",
    "conv2d",
    "conv_transpose2d",
    "linear_attention",
    "gated_linear_attention",
    "gated_delta_rule",
    "layer_norm",
    "batch_norm_training",
    "group_norm",
    "softmax",
    "masked_softmax",
    "logsumexp",
]
OF_GRADIENTS = {a.said for a in (*ATTENTION_GRADIENTS, *CONVOLUTION_GRADIENTS)}


def calls(m):
    """Samples, and the inputs of tests, of a mechanism."""
    yield from (dict(s.arguments) for s in testing.samples(m))
    if m.spec.name.startswith("scaled"):
        yield from (given for given, _ in PLANTED.values())
    if m.spec.name == "conv2d":
        yield from (given for given, _ in CONVOLUTIONS.values())
    if m.spec.name == "gated_linear_attention":
        yield recurrent(state=STATE)
    yield from (given for of, given, _ in LAYERS.values() if of is m)


def reference(m):
    def call(arguments):
        y, pullback = m.vjp(**arguments)
        names = m.spec.output_names
        return dict(zip(names, outputs(y), strict=True)), lambda ds: gradient_leaves(pullback(*(ds.get(n) for n in names)))

    return call


def applied(alternative, call, arguments):
    """What an alternative makes of a call; None where there is nothing to change, or no such call."""
    try:
        return alternative.change(call)(arguments)
    except (DoesNotApply, ValueError, TypeError, KeyError):
        return None


def differs(one, other):
    return one.shape != other.shape or not np.allclose(one, other, rtol=1e-6, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("name", NAMES)
def test_no_two_alternatives_of_a_mechanism_say_the_same(name):
    assert not [said for said, n in Counter(a.said for a in known(getattr(refattn, name))).items() if n > 1]


def test_every_alternative_changes_the_result_of_some_call():
    left = {}
    for name in NAMES:
        m = getattr(refattn, name)
        call = reference(m)
        waiting = {a.said: a for a in known(m)}
        left |= {said: name for said in waiting if said not in left}
        for arguments in calls(m):
            y, pullback = call(arguments)
            ds = {n: Random(3).normal(x.shape) for n, x in y.items()}
            exact = {**y, **pullback(ds)}
            for said, a in list(waiting.items()):
                made = applied(a, call, arguments)
                if made is None:
                    continue
                found = {**made[0], **(made[1](ds) if said in OF_GRADIENTS else {})}
                if any(differs(x, exact[n]) for n, x in found.items() if n in exact):
                    del waiting[said]
                    left[said] = ""
    assert {said: name for said, name in left.items() if name} == {}


@pytest.mark.parametrize("name", NAMES[:6])
def test_gradients_are_those_of_what_an_alternative_computes(name):
    m = getattr(refattn, name)
    call, checked = reference(m), set()
    for arguments in calls(m):
        for a in known(m):
            if a.said in OF_GRADIENTS or a.said in checked or (made := applied(a, call, arguments)) is None:
                continue
            y, pullback = made
            if not all(np.isfinite(x).all() and x.size for x in y.values()):
                continue
            ds = {n: Random(3).normal(x.shape) for n, x in y.items()}
            grads = pullback(ds)
            leaves = dict(tree.leaves(arguments))
            for path, g in grads.items():
                assert g.shape == leaves[path].shape, (a.said, path)
                direction = Random(4).normal(g.shape)

                def moved(step, path=path, a=a, direction=direction, ds=ds, leaves=leaves, arguments=arguments):
                    other, _ = a.change(call)(tree.replace(dict(arguments), path, leaves[path] + step * direction))
                    return sum((other[n] * d).sum() for n, d in ds.items())

                numerical = (moved(1e-6) - moved(-1e-6)) / 2e-6
                assert (g * direction).sum() == pytest.approx(numerical, rel=1e-5, abs=1e-5), (a.said, path)
            if grads:
                checked.add(a.said)
    assert len(checked) >= 5
