"""The direct method against the reference, within the rounding errors of its sums."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("numba")

import numba

import refattn
import refattn_numba
from refattn_numba.cpu.conv import direct, direct_few, direct_weight, layouts
from refattn_numba.cpu.conv.direct_tables import CLASS, tables
from refattn_numba.cpu.conv.problem import Problem

HARD = {
    "one pixel": ("conv2d", (1, 1, 1, 1), (1, 1, 1, 1), {}),
    "padding beyond the image": ("conv2d", (2, 3, 2, 3), (5, 3, 3, 3), {"padding": 7, "stride": 2}),
    "stride beyond the kernel": ("conv2d", (2, 4, 17, 19), (6, 4, 2, 3), {"stride": 5}),
    "taps that never read": ("conv2d", (2, 4, 3, 3), (6, 4, 3, 3), {"padding": 4, "dilation": 4}),
    "outputs that read nothing": ("conv1d", (2, 3, 4), (2, 3, 2), {"padding": 9, "dilation": 3}),
    "many groups": ("conv2d", (2, 18, 6, 7), (36, 2, 3, 3), {"groups": 9, "padding": 1}),
    "more channels than a block": ("conv2d", (1, 70, 6, 5), (130, 70, 3, 3), {"padding": 1}),
    "sums of several blocks": ("conv3d", (1, 40, 4, 5, 6), (33, 40, 3, 2, 3), {"padding": ((1, 0), (0, 2), (1, 1))}),
    "stem": ("conv2d", (2, 3, 45, 39), (20, 3, 7, 7), {"stride": 2, "padding": 3}),
    "few channels, far apart": ("conv2d", (1, 4, 30, 41), (32, 2, 3, 4), {"stride": 3, "dilation": 2, "padding": 5, "groups": 2}),
    "few channels, long sums": ("conv2d", (1, 2, 9, 50), (150, 2, 3, 3), {"padding": 1}),
    "one example in bands": ("conv3d", (1, 2, 9, 10, 20), (16, 2, 3, 3, 3), {"padding": 1}),
    "channels pages apart": ("conv2d", (2, 70, 31, 35), (66, 70, 3, 3), {"stride": 2, "padding": 1, "dilation": 2}),
    "groups pages apart": ("conv2d", (2, 36, 24, 40), (20, 18, 3, 2), {"groups": 2, "padding": 3}),
    "volumes pages apart": ("conv3d", (1, 20, 9, 12, 11), (9, 20, 2, 3, 3), {"padding": ((1, 0), (1, 1), (0, 2)), "stride": (1, 2, 1)}),
    "transposed, pages apart": ("conv_transpose2d", (2, 20, 30, 28), (20, 18, 3, 3), {"stride": 2, "padding": 1}),
    "several boxes of a row": ("conv1d", (2, 20, 1000), (17, 20, 4), {"stride": 2, "padding": 3}),
    "several parts": ("conv2d", (3, 5, 40, 41), (9, 5, 3, 3), {"padding": 1}),
    "transposed": ("conv_transpose2d", (2, 20, 9, 8), (20, 6, 3, 4), {"stride": 2, "padding": 1, "output_padding": 1}),
    "transposed, few channels": ("conv_transpose2d", (1, 40, 12, 20), (40, 3, 5, 5), {"stride": 3, "padding": 2, "dilation": 2}),
    "transposed, gaps": ("conv_transpose1d", (2, 16, 30), (16, 9, 2), {"stride": 5}),
}


def draw(random):
    """One call: a function's name and its arguments."""
    axes = int(random.integers(1, 4))
    transposed, groups = bool(random.random() < 0.3), int(random.choice([1, 1, 2, 3]))
    most = {1: 200, 2: 24, 3: 8}[axes]
    kernel, stride, dilation = (tuple(int(n) for n in random.integers(1, high, axes)) for high in (6 - axes, 4, 4))
    c, o = (int(random.choice([1, 2, 3, 8, 16, 17, 40, 65])) for _ in range(2))
    if transposed:
        size = tuple(int(n) for n in random.integers(1, most // 2, axes))
        padding = tuple((int(random.integers(0, 1 + d * (k - 1) // 2)), 0) for k, d in zip(kernel, dilation, strict=True))
        padding = tuple((a, a) for a, _ in padding)
        full = [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip(size, stride, dilation, kernel, strict=True)]
        padding = tuple(p if 2 * p[0] < n else (0, 0) for p, n in zip(padding, full, strict=True))
        channels = groups * o
    else:
        padding = tuple(tuple(int(n) for n in random.integers(0, 5, 2)) for _ in range(axes))
        reach = [d * (k - 1) + 1 - a - b for d, k, (a, b) in zip(dilation, kernel, padding, strict=True)]
        size = tuple(int(random.integers(max(1, r), max(1, r) + most)) for r in reach)
        channels = groups * c
    given = {"x": random.standard_normal((int(random.integers(0, 4)) or 1, channels, *size), np.float32)}
    given["weight"] = random.standard_normal((groups * o, c, *kernel), np.float32)
    if random.random() < 0.5:
        given["bias"] = random.standard_normal(groups * (c if transposed else o), np.float32)
    return f"conv{'_transpose' * transposed}{axes}d", {
        **given, "stride": stride, "padding": padding, "dilation": dilation, "groups": groups
    }  # fmt: skip


def compare(name, given, dtype, *, channels_last):
    """Output and gradients against the reference in float64.

    A sum of n products has an error of at most n * eps / 2 times the sum of their sizes; here each product is in one sum of at most
    256, whose result is in one of all such blocks.
    """
    arrays = {n: x.astype(dtype) for n, x in given.items() if isinstance(x, np.ndarray)}
    options = {n: x for n, x in given.items() if n not in arrays}
    exact = {n: x.astype(float) for n, x in arrays.items()}
    if channels_last:
        arrays["x"] = np.moveaxis(np.ascontiguousarray(np.moveaxis(arrays["x"], 1, -1)), -1, 1)
    for x in arrays.values():
        x.flags.writeable = False
    y, pullback = getattr(refattn_numba, name).vjp(**arrays, **options, algorithm="direct")
    want, want_pullback = getattr(refattn, name).vjp(**exact, **options)
    sizes, sizes_pullback = getattr(refattn, name).vjp(**{n: abs(x) for n, x in exact.items()}, **options)
    d = np.random.default_rng(0).standard_normal(want.shape).astype(dtype)
    got = {"output": y, **pullback(d)}
    wanted, scale = {"output": want, **want_pullback(d.astype(float))}, {"output": sizes, **sizes_pullback(abs(d.astype(float)))}
    assert got.keys() == wanted.keys()
    terms = max(exact["weight"].size, want.size, exact["x"].size)
    steps = 256 + terms // 64
    for what, exactly in wanted.items():
        assert got[what].shape == exactly.shape
        assert got[what].dtype == dtype
        off = abs(got[what] - exactly) - steps * np.finfo(dtype).eps / 2 * scale[what]
        assert off.max(initial=0) <= 0, f"{name} {dtype}, {what}: {off.max()} too far; { {n: np.shape(x) or x for n, x in given.items()} }"


def arguments(shape, weight, options):
    random = np.random.default_rng(0)
    return {"x": random.standard_normal(shape), "weight": random.standard_normal(weight), **options}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", HARD)
def test_hard_sizes(case, dtype, channels_last):
    name, shape, weight, options = HARD[case]
    compare(name, arguments(shape, weight, options), dtype, channels_last=channels_last)


@pytest.mark.parametrize("seed", range(60))
def test_random_calls(seed):
    random = np.random.default_rng(seed)
    name, given = draw(random)
    compare(name, given, ("float32", "float64")[seed % 2], channels_last=random.random() < 0.5)


def test_both_ways_to_spread_are_tried():
    assert direct_few.suits(_problem(*HARD["stem"][1:], channels_last=False))
    assert not direct_few.suits(_problem(*HARD["several parts"][1:], channels_last=False))


def _problem(shape, weight, options, *, channels_last):
    s, p = options.get("stride", 1), options.get("padding", 0)
    out = tuple((n + 2 * p - k) // s + 1 for n, k in zip(shape[2:], weight[2:], strict=True))
    return Problem(
        np.dtype(np.float32), channels_last, shape[0], 1, weight[1], weight[0], (1, *shape[2:]), (1, *weight[2:]), (1, *out),
        (1, s, s), (1, 1, 1), (0, p, p),
    )  # fmt: skip


@pytest.mark.parametrize("case", ["more channels than a block", "stem", "several parts", "channels pages apart"])
def test_results_do_not_depend_on_the_number_of_threads(case, monkeypatch):
    name, shape, weight, options = HARD[case]
    given = {n: x.astype(np.float32) if isinstance(x, np.ndarray) else x for n, x in arguments(shape, weight, options).items()}
    made = []
    for threads in (1, 2, 64):  # the last makes the smallest tasks
        monkeypatch.setattr(numba, "get_num_threads", lambda threads=threads: threads)
        y, pullback = getattr(refattn_numba, name).vjp(**given, algorithm="direct")
        made.append({"output": y, **pullback(np.cos(y))})
    for other in made[1:]:
        for what, x in made[0].items():
            np.testing.assert_array_equal(x, other[what])


@pytest.mark.parametrize("together", [None, (1, 1, 1), (1, 1, 2)])
@pytest.mark.parametrize("face", ["correlate", "spread"])
def test_tables_hold_every_pair_once(face, together):
    random = np.random.default_rng(3)
    for _ in range(200):
        n, k, s, d, b = (int(random.integers(low, high)) for low, high in ((1, 9), (1, 5), (1, 5), (1, 4), (0, 6)))
        out = max(1, (n + 2 * b - d * (k - 1) - 1) // s + 1)
        problem = Problem(np.dtype(np.float32), False, 1, 1, 1, 1, (1, 1, n), (1, 1, k), (1, 1, out), (1, 1, s), (1, 1, d), (0, 0, b))
        found, pairs = tables(problem, face, together), []
        for row in found.classes[found.begin[2] :]:
            at = dict(zip(CLASS, row.tolist(), strict=True))
            for j in range(at["count"]):
                for tap, offset in found.taps[at["begin"] : at["end"]].tolist():
                    pairs.append((at["first"] + j * at["step"], tap, at["source"] + j * at["pace"] + offset))
        assert sum(found.groups) == found.cuts.size - 1 == 2 + (1 if together is None else -(-k // together[2]))
        xs = [(i, t, s * i + d * t - b) for i in range(out) for t in range(k) if 0 <= s * i + d * t - b < n]
        assert sorted(pairs) == sorted(xs if face == "correlate" else [(x, t, i) for i, t, x in xs])


def test_no_batch_makes_nothing_and_zero_gradients():
    x, w = np.zeros((0, 3, 9, 9), np.float32), np.ones((4, 3, 3, 3), np.float32)
    y, pullback = refattn_numba.conv2d.vjp(x, w, algorithm="direct")
    grads = pullback(y)
    assert y.shape == (0, 4, 7, 7)
    assert not grads["weight"].any()


def test_bias_and_relu_are_fused():
    random = np.random.default_rng(0)
    x, w, b = (random.standard_normal(s).astype(np.float32) for s in ((2, 5, 8, 9), (7, 5, 3, 3), 7))
    y = refattn_numba.conv2d(x, w, b, padding=1, activation="relu", algorithm="direct")
    np.testing.assert_array_equal(y, np.maximum(refattn_numba.conv2d(x, w, b, padding=1, algorithm="direct"), 0))
    x[0, 0, 0, 0] = np.nan
    assert np.isnan(refattn_numba.conv2d(x, w, b, padding=1, activation="relu", algorithm="direct")).any()


@pytest.mark.parametrize("shape", [(2, 3, 1, 5, 7), (1, 16, 1, 4, 4), (2, 65, 2, 9, 15), (1, 1, 1, 1, 1), (3, 40, 1, 20, 20)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_panels(shape, dtype):
    x = np.arange(math.prod(shape), dtype=dtype).reshape(shape)
    batch, channels, *size = shape
    first, last = (
        Problem(np.dtype(dtype), is_last, batch, 1, channels, 1, tuple(size), (1,) * 3, tuple(size), (1,) * 3, (1,) * 3, (0,) * 3)
        for is_last in (False, True)
    )
    same = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    for problem, given in ((first, x), (last, same)):
        panels = layouts.panels(problem, given, 32)
        blocks = np.zeros((-(-channels // 32) * 32, batch * math.prod(size)), dtype)
        blocks[:channels] = np.moveaxis(x, 1, 0).reshape(channels, -1)
        np.testing.assert_array_equal(panels, blocks.reshape(-1, 32, blocks.shape[1]).swapaxes(1, 2))


def test_errors_are_those_of_short_sums():
    """Where sums ran on over all products, they would be several times these."""
    random = np.random.default_rng(0)
    x, w = random.standard_normal((2, 256, 8, 8)).astype(np.float32), (random.standard_normal((64, 256, 3, 3)) / 48).astype(np.float32)
    off = refattn_numba.conv2d(x, w, padding=1, algorithm="direct") - refattn.conv2d(x.astype(float), w.astype(float), padding=1)
    long = np.zeros(off.shape, np.float32)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    for i in range(3):
        for j in range(3):
            for c in range(256):
                long += w[:, c, i, j].reshape(1, -1, 1, 1) * padded[:, c : c + 1, i : i + 8, j : j + 8]
    sequential = long - refattn.conv2d(x.astype(float), w.astype(float), padding=1)
    assert np.sqrt(np.mean(off**2)) < np.sqrt(np.mean(sequential**2)) / 1.8
    assert direct.DEPTH <= 192
    assert direct_weight.DEPTH <= 256
