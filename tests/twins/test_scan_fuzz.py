"""Random calls of the compiled linear attentions against the reference, with guards around everything that they read or write."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba")

import refattn
import refattn_numba
from refattn_numba.cpu import call, scan, threads
from tests.twins.drawing import Drawn
from tests.twins.test_fuzz import Guarded, inside

NAMES = ("linear_attention", "gated_linear_attention", "delta_rule", "gated_delta_rule")
DECAYS = (0.0, -0.02, -0.3, -5.0, -200.0)


def size(random, most, edge):
    """Mostly small; often next to a multiple of `edge`, where registers, chunks, and spans end."""
    if random.random() < 0.4:
        return int(np.clip(edge * random.integers(1, most // edge + 1) + random.integers(-1, 2), 1, most))
    return int(min(random.integers(1, most), random.integers(1, most)))


def draw(random, name, dtype):
    """One call."""
    group, kv_heads = int(random.integers(1, 4)), int(random.integers(1, 4))
    lead = [(), (int(random.integers(1, 4)),), (2, 2)][random.integers(0, 3)]
    length, head_dim, value_dim = size(random, 300, [16, 32, 128][random.integers(0, 3)]), size(random, 100, 16), size(random, 100, 16)
    if random.random() < 0.15:  # columns for several threads
        lead, kv_heads, value_dim = (), 1, int(random.integers(128, 200))
    chance = lambda p=0.5: random.random() < p  # noqa: E731
    one = lambda *shape: random.standard_normal((*lead, kv_heads, *shape))  # noqa: E731
    given = {"query": random.standard_normal((*lead, kv_heads * group, length, head_dim)), "key": one(length, head_dim)}
    # longer keys would have the delta rule write more than it erases, and grow without end
    given |= {"key": given["key"] / np.linalg.norm(given["key"], axis=-1, keepdims=True), "value": one(length, value_dim)}
    if chance():
        given["state"] = one(head_dim, value_dim)
    if chance():
        given["scale"] = float(random.uniform(0.1, 0.5) * (-1 if name != "linear_attention" and chance() else 1))
    if name == "linear_attention":
        given |= {"causal": True, "normalize": chance(0.7)}
        given |= {"normalizer": random.uniform(1, 2, (*lead, kv_heads, head_dim))} if chance() else {}
        given |= {"eps": 0.1} if chance(0.3) else {}
        given |= {"feature_map": None, "normalize": False} if chance(0.3) else {}
    if "gated" in name:
        rows = (head_dim,) if name == "gated_linear_attention" else ()
        given["log_decay"] = DECAYS[random.integers(0, len(DECAYS))] * random.random((*lead, kv_heads, length, *rows))
        forgets = random.random(given["log_decay"].shape) < (0.1 if chance(0.3) else 0)
        given["log_decay"] = np.where(forgets, -np.inf, given["log_decay"])
    if "delta" in name:
        given["beta"] = random.uniform(0, 1, (*lead, kv_heads, length))
    return {n: inside(random, x.astype(dtype)) if isinstance(x, np.ndarray) else x for n, x in given.items()}


def run(random):
    """One call, of a mechanism and in a type that are drawn."""
    name, dtype, guarded = NAMES[random.integers(0, 4)], "float32" if random.random() < 0.5 else "float64", Guarded()
    arguments = draw(random, name, dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan, "np", guarded)
        patch.setattr(call, "aligned", guarded.aligned)
        patch.setattr(threads, "aligned", guarded.aligned)
        compare(random, name, dtype, arguments, guarded)


def compare(random, name, dtype, arguments, guarded):
    """Output, states and gradients."""
    y, pullback = getattr(refattn_numba, name).vjp(**arguments)
    want, want_pullback = getattr(refattn, name).vjp(
        **{n: np.asarray(x, float) if isinstance(x, np.ndarray) else x for n, x in arguments.items()}
    )
    d = [np.cos(x) for x in want]
    grads, want_grads = pullback(*(inside(random, x.astype(dtype)) for x in d)), want_pullback(*d)
    guarded.check()
    assert len(guarded.wholes) > 6
    assert grads.keys() == want_grads.keys()
    shown = f"{name}, {dtype}: { ({n: (x.shape if isinstance(x, np.ndarray) else x) for n, x in arguments.items()}) }"
    pairs = [*zip(want._fields, y, want, strict=True), *((n, grads[n], want_grads[n]) for n in grads)]
    for what, got, exact in pairs:
        assert got.shape == exact.shape
        assert got.dtype == dtype
        assert np.isfinite(got).all(), f"{shown}, {what}"
        scale = max(1.0, np.abs(exact).max(initial=0))
        assert np.abs(got - exact).max(initial=0) / scale < 100 * np.finfo(dtype).eps, f"{shown}, {what}"


@pytest.mark.parametrize("block", range(10))
def test_random_calls(block):
    for seed in range(10 * block, 10 * block + 10):
        run(np.random.default_rng(seed))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(data=st.data())
def test_drawn_calls(data):
    run(Drawn(data))


@pytest.mark.slow
@settings(max_examples=4000, deadline=None)
@given(data=st.data())
def test_thousands_of_drawn_calls(data):
    run(Drawn(data))
