"""Random calls of the compiled attention against the reference, with guards around everything that it reads or writes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba")
pytest.importorskip("ml_dtypes")

import refattn
import refattn_numba
from refattn.testing.precision import named_format
from refattn_numba.cpu import attention, call, couples, threads
from tests.twins.drawing import Drawn

GUARD = 64
"""Elements on either side of an array: a register beyond its end."""

EDGE = 1024
"""What stands there: a number of every type."""


@pytest.fixture(scope="module", autouse=True)
def _compiled():
    """Guards stand in for a module's NumPy, of which Numba knows nothing."""
    refattn_numba.warm_up("attention", dtypes=["bfloat16", "float16"])


def broadcast_shape(random, shape):
    """A shape that broadcasts to this one, perhaps with fewer axes."""
    made = [n if random.random() < 0.6 else 1 for n in shape]
    return tuple(made[random.integers(0, len(shape) - 1) if random.random() < 0.3 else 0 :])


def inside(random, x):
    """The same numbers in some layout, between NaNs (or bytes that are neither 0 nor 1)."""
    order = list(range(x.ndim))
    if x.ndim > 2 and random.random() < 0.5:
        order[-2], order[-3] = order[-3], order[-2]  # length before heads, as many models have it
    shape, wide = [x.shape[i] for i in order], random.random() < 0.3
    if wide:
        shape[-1] += 3  # rows that do not follow one another
    whole = np.full(math.prod(shape) + 2 * GUARD, 1 if x.dtype == bool else np.nan, x.dtype)
    if x.dtype == bool:
        whole.view(np.uint8)[:] = 0xAA
    view = whole[GUARD : GUARD + math.prod(shape)].reshape(shape)[..., : x.shape[-1] if x.ndim else None]
    view = view.transpose(np.argsort(order)) if x.ndim else view.reshape(())
    view[...] = x
    view.setflags(write=False)
    return view


def draw(random, dtype):
    """One call."""
    group, kv_heads = random.integers(1, 4), random.integers(1, 4)
    lead = [(), (int(random.integers(1, 4)),), (2, 2)][random.integers(0, 3)]
    size = lambda most: int(min(random.integers(1, most), random.integers(1, most)))  # noqa: E731
    query_len, key_len = size(200), size(300)
    head_dim, value_dim = size(150), size(150)
    if dtype.itemsize == 2 and random.random() < 0.8:  # of bfloat16, couples are read as they are stored
        head_dim, value_dim = head_dim + head_dim % 2, value_dim + value_dim % 2
    heads = int(group * kv_heads)
    shapes = {
        "query": (*lead, heads, query_len, head_dim),
        "key": (*lead, int(kv_heads), key_len, head_dim),
        "value": (*lead, int(kv_heads), key_len, value_dim),
    }
    pairs = (*lead, heads, query_len, key_len)
    given = {name: random.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    chance = lambda p=0.3: random.random() < p  # noqa: E731
    if chance():
        given["bias"] = random.standard_normal(broadcast_shape(random, pairs)).astype(dtype)
        given["bias"] = np.where(random.random(given["bias"].shape) < 0.1, -np.inf, given["bias"]).astype(dtype)
    if chance():
        given["mask"] = random.random(broadcast_shape(random, pairs)) < 0.7
    if chance():
        given["sinks"] = random.standard_normal(heads).astype(dtype)
    if chance():
        given |= {"keep": random.random(broadcast_shape(random, pairs)) < 0.8, "dropout_rate": 0.2}
    if chance(0.15):
        # no infinite keys: to the kernels a score of -inf is a masked pair, to the reference one whose weight is 0
        name = ["key", "value"][random.integers(0, 2)]
        place = random.integers(0, key_len, 3), random.integers(0, given[name].shape[-1], 3)
        given[name][..., *place] = np.nan if name == "key" else random.choice([np.nan, np.inf, -np.inf], 3)
    if chance(0.2):
        blocks = random.random((-(-query_len // 32), -(-key_len // 32))) < 0.3
        given["mask"] = np.kron(blocks, np.ones((32, 32), bool))[:query_len, :key_len]
    given = {n: inside(random, x) if isinstance(x, np.ndarray) else x for n, x in given.items()}
    if chance(0.5):
        given["causal"] = True
    if chance():
        given["window"] = tuple(int(random.integers(0, 90)) if chance(0.7) else None for _ in "lr")
    if query_len != key_len:
        given["align"] = ["upper_left", "lower_right"][random.integers(0, 2)]
    if chance(0.2):
        given["softcap"] = 2.0
    if chance(0.2):
        given["scale"] = 0.3
    if chance(0.1):
        given["scale"] = random.uniform(0.1, 0.5, broadcast_shape(random, pairs)).astype(dtype)
    if chance(0.1):
        given["masked_rows"] = "uniform"
    if chance(0.1):
        given["masked_rows"] = "nan"
    return given


def draw_packed(random, dtype):
    """One call of several sequences, some of them empty."""
    group, kv_heads, sequences = random.integers(1, 4), random.integers(1, 4), random.integers(0, 9)
    lead = [(), (2,)][random.integers(0, 2)]
    lengths = random.integers(0, 150, (2, sequences)) * (random.random((2, sequences)) < 0.8)
    head_dim, value_dim = random.integers(1, 100, 2)
    given = {"cu_seqlens_q": np.concatenate([[0], np.cumsum(lengths[0])])}
    if random.random() < 0.3:
        lengths[1] = lengths[0]
    else:
        given["cu_seqlens_k"] = np.concatenate([[0], np.cumsum(lengths[1])])
    query_len, key_len = lengths.sum(axis=1)
    heads = int(group * kv_heads)
    shapes = {
        "query": (*lead, heads, query_len, head_dim),
        "key": (*lead, kv_heads, key_len, head_dim),
        "value": (*lead, kv_heads, key_len, value_dim),
    }
    given |= {name: inside(random, random.standard_normal(shape).astype(dtype)) for name, shape in shapes.items()}
    chance = lambda p=0.3: random.random() < p  # noqa: E731
    if chance():
        given["sinks"] = random.standard_normal(heads).astype(dtype)
    if chance(0.5):
        given |= {"causal": True, "align": "lower_right"}
    if chance():
        given |= {"window": tuple(int(random.integers(0, 90)) if chance(0.7) else None for _ in "lr"), "align": "upper_left"}
    if chance(0.2):
        given["softcap"] = 2.0
    if chance(0.2):
        given |= {"scale": 0.3, "masked_rows": "nan"}
    return given


class Guarded:
    """Memory as NumPy gives it, but full of NaN and with numbers around it that nobody may change."""

    def __init__(self):
        self.wholes = []

    def __getattr__(self, name):
        return getattr(np, name)

    def empty(self, shape, dtype):
        size = math.prod(shape) if isinstance(shape, (tuple, list)) else shape
        whole = np.full(size + 2 * GUARD, EDGE, dtype)
        self.wholes.append(whole)
        inner = whole[GUARD : GUARD + size]
        inner[:] = np.nan if inner.dtype.kind == "f" else np.uint64(0x7FC17FC17FC17FC1).astype(inner.dtype)  # NaN in bfloat16 too
        return inner.reshape(shape)

    def zeros(self, shape, dtype):
        made = self.empty(shape, dtype)
        made[...] = 0
        return made

    def aligned(self, size, dtype):
        return self.empty(size, dtype)

    def check(self):
        for whole in self.wholes:
            assert (whole[:GUARD] == EDGE).all()
            assert (whole[-GUARD:] == EDGE).all()


def differences(name, given, dtype, guarded):
    """For each output and gradient: where it is not a number against where it should not be, and the largest error."""
    y, pullback = getattr(refattn_numba, name).vjp(**given)
    want, want_pullback = getattr(refattn, name).vjp(**given)
    d = [np.cos(np.where(np.isfinite(x), x, 0)).astype(kind) for x, kind in ((want.output, dtype), (want.lse, y.lse.dtype))]
    grads, want_grads = pullback(*d), want_pullback(*d)
    guarded.check()
    assert grads.keys() == want_grads.keys()
    for what, made, exact in [("output", y.output, want.output), ("lse", y.lse, want.lse), *((n, grads[n], want_grads[n]) for n in grads)]:
        assert made.shape == exact.shape
        finite, got = np.isfinite(exact), made.astype(np.float64)
        np.testing.assert_array_equal(np.isfinite(got), finite, err_msg=what)
        # a sum of n terms has an error of about sqrt(n) units of its largest
        scale = max(1.0, np.abs(exact[finite]).max(initial=0))
        yield what, float(np.abs(got[finite] - exact[finite]).max(initial=0) / scale)


def run(random):
    """One call, in a type and of a kind that are drawn."""
    target = named_format(random.choice(["float32", "bfloat16", "float16", "float64"], p=[0.5, 0.2, 0.1, 0.2]))
    dtype = target.numpy_dtype
    packed, guarded = random.random() < 0.2, Guarded()
    given = (draw_packed if packed else draw)(random, dtype)
    shown = f"{target.name}, { ({n: (x.shape if isinstance(x, np.ndarray) else x) for n, x in given.items()}) }"
    # rows that average all values add equal numbers one by one to a gradient, whose rounding errors have one sign
    units = 60 + (given["query"].shape[-2] * given["query"].shape[-3] if given.get("masked_rows") == "uniform" else 0)
    allowed = max(2 * units * target.accumulator, 4 * target.unit)  # weights and results are rounded to the format
    pairs = math.prod(given["query"].shape[:-1]) * given["key"].shape[-2]
    twin = "varlen_attention_with_lse" if packed else "scaled_dot_product_attention_with_lse"
    with pytest.MonkeyPatch.context() as patch:
        for module in (attention, couples):  # no kernel of theirs, compiled meanwhile, knows NumPy by this name
            patch.setattr(module, "np", guarded)
        patch.setattr(call, "aligned", guarded.aligned)
        patch.setattr(threads, "aligned", guarded.aligned)
        for what, error in differences(twin, given, dtype, guarded):
            # what n pairs share has the sum of their errors, which have either sign
            shared = pairs / given[what].size if what in {"bias", "scale"} else 1
            assert error < allowed * math.sqrt(shared), f"{what}: {shown}"


@pytest.mark.parametrize("block", range(8))
def test_random_calls(block):
    for seed in range(10 * block, 10 * block + 10):
        run(np.random.default_rng(seed))


def test_the_guards_see_a_write_outside(monkeypatch):
    guarded = Guarded()
    made = guarded.empty((2, 3), "float32")
    guarded.check()
    guarded.wholes[0][GUARD + made.size] = 0
    with pytest.raises(AssertionError):
        guarded.check()
    monkeypatch.setattr(attention, "np", guarded)
    monkeypatch.setattr(call, "aligned", guarded.aligned)
    x = np.ones((1, 5, 7), np.float32)
    refattn_numba.scaled_dot_product_attention(x, x, x)
    assert len(guarded.wholes) > 3


@settings(max_examples=20, deadline=None, derandomize=True)
@given(data=st.data())
def test_drawn_calls(data):
    run(Drawn(data))


@pytest.mark.slow
@settings(max_examples=5000, deadline=None)
@given(data=st.data())
def test_thousands_of_drawn_calls(data):
    run(Drawn(data))
