"""Compiled deformable convolution: random calls between guards, positions that are no places, and threads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba")

import refattn
import refattn_numba
from refattn._core.random import Random
from refattn_numba.cpu import deformable, deformable_call, threads
from tests.twins.drawing import Drawn
from tests.twins.test_fuzz import Guarded, inside
from tests.twins.test_twins import LAYOUTS, agree

NAMES = ("deform_conv2d", "modulated_deform_conv2d")
STRANGE = (np.nan, np.inf, -np.inf, 1e30, -1e30, 3e9, -3e9, -1.0, 1e-30)
"""Offsets: no number, no place, a place beyond 32 and 64 bits, a kink, and nearly one."""


def draw(random, name, dtype, *, strange=0.3):
    """One call; channels next to a multiple of a register, more positions than a tile has."""
    chance = lambda p=0.5: random.random() < p  # noqa: E731
    groups, offset_groups = int(random.integers(1, 4)), int(random.integers(1, 4))
    channels = groups * offset_groups * int(random.integers(1, 24 if chance(0.3) else 6))
    kernel = tuple(int(n) for n in random.integers(1, 5, 2))
    steps, gaps = (tuple(int(n) for n in random.integers(1, 4, 2)) for _ in range(2))
    padding = tuple((int(a), int(b)) for a, b in random.integers(0, 4, (2, 2)))
    size = [int(random.integers(d * (k - 1) + 1, d * (k - 1) + 1 + (25 if chance(0.3) else 6))) for d, k in zip(gaps, kernel, strict=True)]
    out = [(n + sum(p) - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in zip(size, padding, gaps, kernel, steps, strict=True)]
    batch, taps = int(random.integers(0 if chance(0.1) else 1, 4)), offset_groups * kernel[0] * kernel[1]
    outputs = groups * int(random.integers(1, 40 if chance(0.3) else 6))
    offset = random.standard_normal((batch, 2 * taps, *out)) * [0.0, 0.3, 2.0, 20.0][random.integers(0, 4)]
    if chance(strange) and offset.size:
        for _ in range(5):
            offset.flat[random.integers(0, offset.size)] = STRANGE[random.integers(0, len(STRANGE))]
    made = {"x": random.standard_normal((batch, channels, *size)), "offset": offset}
    if name == "modulated_deform_conv2d":
        made["modulation"] = random.uniform(-1, 1, (batch, taps, *out))
    made["weight"] = random.standard_normal((outputs, channels // groups, *kernel))
    made |= {"bias": random.standard_normal(outputs)} if chance() else {}
    made = {n: inside(random, x.astype(dtype)) for n, x in made.items()}
    return {**made, "stride": steps, "dilation": gaps, "padding": padding, "groups": groups, "offset_groups": offset_groups}


def run(random):
    """One call, of a mechanism and in a type that are drawn."""
    name, dtype, guarded = NAMES[random.integers(0, 2)], "float32" if random.random() < 0.5 else "float64", Guarded()
    arguments = draw(random, name, dtype)
    with pytest.MonkeyPatch.context() as patch:
        for module in (deformable, deformable_call):
            patch.setattr(module, "np", guarded)
        patch.setattr(threads, "aligned", guarded.aligned)
        compare(random, name, dtype, arguments, guarded)


def compare(random, name, dtype, arguments, guarded):
    """Output and gradients; NaN and infinities in the same places."""
    y, pullback = getattr(refattn_numba, name).vjp(**arguments)
    want, want_pullback = getattr(refattn, name).vjp(**arguments)
    d = np.cos(np.arange(want.size).reshape(want.shape)).astype(dtype)
    grads, want_grads = pullback(inside(random, d)), want_pullback(d)
    guarded.check()
    assert len(guarded.wholes) > 5 or not len(want)
    assert grads.keys() == want_grads.keys()
    shown = f"{name}, {dtype}: { ({n: (x.shape if isinstance(x, np.ndarray) else x) for n, x in arguments.items()}) }"
    for what, got, exact in [("output", y, want), *((n, grads[n], want_grads[n]) for n in grads)]:
        assert (got.shape, got.dtype) == (exact.shape, dtype)
        finite = np.isfinite(exact)
        np.testing.assert_array_equal(np.isfinite(got), finite, err_msg=f"{shown}, {what}")
        scale = max(1.0, np.abs(exact[finite]).max(initial=0))
        assert np.abs(got - exact)[finite].max(initial=0) / scale < 100 * np.finfo(dtype).eps, f"{shown}, {what}"


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


def call(*, channels=70, outputs=37, size=(13, 11), offset_groups=1, batch=3):
    """More channels than a block has of this kernel, more positions than a tile."""
    random, taps = Random(0), 9 * offset_groups
    return {
        "x": random.normal((batch, channels, *size)),
        "offset": random.normal((batch, 2 * taps, *size)),
        "modulation": random.uniform(0, 1, (batch, taps, *size)),
        "weight": random.normal((outputs, channels, 3, 3)),
        "padding": 1,
        "offset_groups": offset_groups,
    }


@pytest.mark.parametrize(("channels", "offset_groups"), [(1, 1), (70, 1), (70, 2), (150, 3), (300, 1)])
def test_several_blocks_and_parts(channels, offset_groups):
    agree(
        refattn_numba.modulated_deform_conv2d,
        refattn.modulated_deform_conv2d,
        call(channels=channels, offset_groups=offset_groups, batch=2, outputs=5),
        1e-12,
    )


@pytest.mark.parametrize("number", STRANGE)
@pytest.mark.parametrize("name", ["offset", "x", "modulation", "weight"])
def test_a_strange_number_anywhere_is_that_of_the_reference(name, number):
    """In value and gradient, and nothing is read or written outside."""
    arguments = call(channels=5, outputs=4, size=(4, 5), batch=2)
    spoilt = arguments[name].copy()
    spoilt.flat[[0, spoilt.size // 2, -1]] = number
    arguments[name] = spoilt
    agree_but_for_the_infinite(refattn_numba.modulated_deform_conv2d, refattn.modulated_deform_conv2d, arguments)


def agree_but_for_the_infinite(twin, reference, arguments):
    """Which of NaN and infinity a sum has, the order of its terms decides."""
    y, pullback = twin.vjp(**arguments)
    want, want_pullback = reference.vjp(**arguments)
    d = np.cos(np.arange(want.size)).reshape(want.shape)
    grads, want_grads = pullback(d), want_pullback(d)
    for what, got, exact in [("output", y, want), *((n, grads[n], want_grads[n]) for n in grads)]:
        finite = np.isfinite(exact)
        np.testing.assert_array_equal(np.isfinite(got), finite, err_msg=what)
        np.testing.assert_allclose(got[finite], exact[finite], rtol=1e-11, atol=1e-11, err_msg=what)


def test_all_positions_may_be_strange():
    for number in STRANGE:
        arguments = call(channels=5, outputs=4, size=(4, 5), batch=2)
        arguments["offset"] = np.full_like(arguments["offset"], number)
        agree_but_for_the_infinite(refattn_numba.modulated_deform_conv2d, refattn.modulated_deform_conv2d, arguments)


def test_a_small_offset_counts_far_from_the_origin():
    """In float32, 2000 - 1e-5 is 2000; the gradient is that of the pixels before, not behind."""
    x, offset = np.zeros((1, 1, 1, 2002), np.float32), np.zeros((1, 2, 1, 2002), np.float32)
    x[..., 1999], x[..., 2001], offset[:, 1] = 1, 5, -1e-5
    y, pullback = refattn_numba.deform_conv2d.vjp(x, offset, np.ones((1, 1, 1, 1), np.float32))
    assert pullback(np.ones_like(y))["offset"][0, 1, 0, 2000] == -1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_memory_layout(layout):
    plain = call(channels=20, outputs=6, size=(5, 6))
    views = {n: LAYOUTS[layout](x) if isinstance(x, np.ndarray) else x for n, x in plain.items()}
    plain = {n: np.array(x, dtype=float, order="C") if isinstance(x, np.ndarray) else x for n, x in views.items()}
    y, pullback = refattn_numba.modulated_deform_conv2d.vjp(**views)
    want, want_pullback = refattn_numba.modulated_deform_conv2d.vjp(**plain)
    np.testing.assert_array_equal(y, want)
    want_grads = want_pullback(np.cos(want))
    for name, g in pullback(np.cos(want)[::-1][::-1]).items():
        np.testing.assert_array_equal(g, want_grads[name], err_msg=name)


def test_threads_do_not_change_a_bit(monkeypatch):
    import numba

    before, results = numba.get_num_threads(), []
    arguments = {n: x.astype(np.float32) if isinstance(x, np.ndarray) else x for n, x in call(channels=130).items()}
    monkeypatch.setattr(threads, "SMALL", 0)
    try:
        for count in (1, before):
            numba.set_num_threads(count)
            y, pullback = refattn_numba.modulated_deform_conv2d.vjp(**arguments)
            results.append([y, *pullback(np.cos(y)).values()])
    finally:
        numba.set_num_threads(before)
    for first, second in zip(*results, strict=True):
        np.testing.assert_array_equal(first, second)
