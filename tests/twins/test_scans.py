"""Linear attentions in chunks: sizes that cross and do not divide them, decays of all strengths, what is not finite, layouts."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba")

import refattn
import refattn_numba
from refattn._core.random import Random
from refattn_numba.cpu.scan import scan
from tests.twins.test_twins import LAYOUTS, agree

NAMES = ("linear_attention", "gated_linear_attention", "delta_rule", "gated_delta_rule")
DECAYS = {
    "none": lambda x: 0 * x,
    "weak": lambda x: -0.05 * x,
    "strong": lambda x: -40 * x,
    "to nothing": lambda x: -800 * x,
    "all at once": lambda x: np.where(x > 0.9, -np.inf, -0.1 * x),
    "everywhere": lambda x: np.full_like(x, -np.inf),
    "growing": lambda x: 0.1 - 0.2 * x,
}


def call(name, random, *, length=131, head_dim=19, value_dim=37, lead=(2,), kv_heads=2, group=2, decay="weak"):
    """Arguments of one of `NAMES`."""
    heads = {"query": kv_heads * group, "key": kv_heads, "value": kv_heads}
    given = {n: random.normal((*lead, h, length, value_dim if n == "value" else head_dim)) for n, h in heads.items()}
    given |= {"key": given["key"] / np.sqrt(head_dim), "state": random.normal((*lead, kv_heads, head_dim, value_dim))}
    if name == "linear_attention":
        return {**given, "normalizer": random.uniform(1.0, 2.0, (*lead, kv_heads, head_dim)), "causal": True}
    if "gated" in name:
        rows = (head_dim,) if name == "gated_linear_attention" else ()
        given["log_decay"] = DECAYS[decay](random.uniform(0.0, 1.0, (*lead, kv_heads, length, *rows)))
    if "delta" in name:
        given["beta"] = random.uniform(0.0, 1.0, (*lead, kv_heads, length))
    return given


def compare(name, given, tolerance=1e-12):
    agree(getattr(refattn_numba, name), getattr(refattn, name), given, tolerance)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("length", "head_dim", "value_dim"), [(131, 67, 37), (257, 5, 130), (129, 1, 1), (33, 64, 64), (16, 130, 2)])
def test_sizes_that_cross_chunks_and_panels(name, length, head_dim, value_dim):
    compare(name, call(name, Random(0), length=length, head_dim=head_dim, value_dim=value_dim, group=3))


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("name", ["gated_linear_attention", "gated_delta_rule"])
def test_decays_of_all_strengths(name, decay):
    compare(name, call(name, Random(1), decay=decay, length=50))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("lead", [(), (0,), (3,), (2, 0), (2, 2)])
@pytest.mark.parametrize(("length", "value_dim"), [(0, 5), (1, 1), (5, 0), (0, 0)])
def test_sizes_at_the_edges(name, lead, length, value_dim):
    compare(name, call(name, Random(2), lead=lead, length=length, head_dim=3, value_dim=value_dim))


@pytest.mark.parametrize("name", NAMES)
def test_parts_of_a_sequence_continue_each_other(name):
    """Two calls, the second with the first one's state, and gradients that pass through it."""
    given, twin, cuts = call(name, Random(3)), getattr(refattn_numba, name), (slice(45), slice(45, None))
    whole, whole_pullback = twin.vjp(**given)
    along = {n: -1 if n == "beta" or (n == "log_decay" and name == "gated_delta_rule") else -2 for n in given}

    def part(cut, **memory):
        sequence = {
            n: (x[..., cut] if along[n] == -1 else x[..., cut, :])
            for n, x in given.items()
            if n in {"query", "key", "value", "log_decay", "beta"}
        }
        return twin.vjp(**{**given, **sequence, **memory})

    first, first_pullback = part(cuts[0])
    second, second_pullback = part(cuts[1], **dict(zip(("state", "normalizer"), first[1:], strict=False)))
    np.testing.assert_allclose(np.concatenate([first[0], second[0]], axis=-2), whole[0], rtol=0, atol=1e-12)
    d = [Random(4).normal(x.shape) for x in whole]
    late = second_pullback(d[0][..., cuts[1], :], *d[1:])
    early = first_pullback(d[0][..., cuts[0], :], *(late[n] for n in ("state", "normalizer") if n in late))
    want = whole_pullback(*d)
    for n in want:
        got = early[n] if n in {"state", "normalizer"} else np.concatenate([early[n], late[n]], axis=along[n])
        np.testing.assert_allclose(got, want[n], rtol=0, atol=1e-11, err_msg=n)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["gated_linear_attention", "gated_delta_rule"])
def test_any_memory_layout(name, layout):
    given = {n: LAYOUTS[layout](x) for n, x in call(name, Random(5), length=40).items()}
    plain = {n: np.array(x, dtype=float, order="C") for n, x in given.items()}
    for x in given.values():
        x.setflags(write=False)
    twin = getattr(refattn_numba, name)
    (y, pullback), (want, want_pullback) = twin.vjp(**given), twin.vjp(**plain)
    np.testing.assert_array_equal(y.output, want.output)
    d = Random(6).normal(y.output.shape)
    grads, want_grads = pullback(d[::-1][::-1]), want_pullback(d)
    for n, g in grads.items():
        np.testing.assert_array_equal(g, want_grads[n], err_msg=n)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("name", "spoilt"),
    [
        *(("gated_linear_attention", n) for n in ("query", "key", "value", "log_decay", "d_output")),
        *(("gated_delta_rule", n) for n in ("query", "key", "value", "log_decay", "beta", "d_output")),
    ],
)
def test_later_positions_reach_no_earlier_one(name, spoilt, poison):
    """Outputs before a position that is not a number are those without it; so are gradients where it alone is spoilt."""
    given, twin, reference = call(name, Random(7), length=50), getattr(refattn_numba, name), getattr(refattn, name)
    clean, d = twin(**given).output, Random(8).normal((2, 4, 50, 37))
    x = (d if spoilt == "d_output" else given[spoilt]).copy()
    x[0, 0, 40] = poison
    given |= {} if spoilt == "d_output" else {spoilt: x}
    (y, pullback), (_, want_pullback) = twin.vjp(**given), reference.vjp(**given)
    np.testing.assert_allclose(y.output[..., :40, :], clean[..., :40, :], rtol=0, atol=1e-12)
    ds = (x if spoilt == "d_output" else d,)
    got, want = pullback(*ds), want_pullback(*ds)
    for n in want:
        np.testing.assert_array_equal(np.isfinite(got[n]) | ~np.isfinite(want[n]), True, err_msg=n)


@pytest.mark.parametrize("name", ["gated_linear_attention", "gated_delta_rule"])
def test_few_heads_share_their_columns(name):
    """One head of many value columns is several tasks, each with its own share of what is summed over them."""
    compare(name, call(name, Random(9), lead=(), kv_heads=1, value_dim=200, length=40))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_halves_carry_a_state_in_float32(name, dtype):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    stored = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    given = {n: x if n == "causal" else x.astype(stored) for n, x in call(name, Random(10)).items()}
    y, pullback = getattr(refattn_numba, name).vjp(**given)
    want = getattr(refattn, name)(**given)
    assert {x.dtype for x in (*y, *pullback(y[0]).values())} == {np.dtype(np.float32)}
    for got, exact in zip(y, want, strict=True):
        np.testing.assert_allclose(got, exact, rtol=0, atol=1e-5 * np.abs(exact).max())


@pytest.mark.parametrize("name", NAMES)
def test_threads_do_not_change_a_bit(name):
    import numba

    given, before, results = call(name, Random(11), length=500, value_dim=130), numba.get_num_threads(), []
    try:
        for threads in {1, before}:
            numba.set_num_threads(threads)
            y, pullback = getattr(refattn_numba, name).vjp(**given)
            results.append([*y, *pullback(np.cos(y[0])).values()])
    finally:
        numba.set_num_threads(before)
    for first, second in zip(results[0], results[-1], strict=True):
        np.testing.assert_array_equal(first, second)


def test_arrays_that_do_not_fit_never_reach_a_kernel():
    fits = call("gated_delta_rule", Random(12))
    given = {**fits, "log_decay": fits["log_decay"][..., None]}
    scan(**given, scale=None)
    for name, x in given.items():
        for axis in range(x.ndim):
            if (name, axis) == ("query", 1):  # three times as many heads share each key head
                continue
            with pytest.raises(ValueError, match="do not fit together"):
                scan(**{**given, name: np.repeat(x, 3, axis=axis)}, scale=None)
