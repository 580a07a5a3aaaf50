"""What every mechanism is written with: arrays, draws, records, the decorator and its hook."""

from __future__ import annotations

import hashlib
import sys
import threading
import traceback
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refattn
from refattn._core import Array, Grads, Pullback, Random, Sample, mechanism, tree, unbroadcast
from refattn._core.arrays import as_array, working_dtype
from refattn._core.hook import CURRENT, PATH

VALUES = [0.5, -1.75, 3.0, 0.0]  # all formats hold them

# Arrays from anywhere


class OnlyArray:
    """What has nothing but ``__array__``."""

    def __init__(self, x):
        self.x = x

    def __array__(self, dtype=None, copy=None):
        return self.x


class OnlyDLPack:
    """What has nothing but the two methods of DLPack."""

    def __init__(self, x):
        self.x = x

    def __dlpack__(self, **options):
        return self.x.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.x.__dlpack_device__()


class RefusesArray(OnlyDLPack):
    """As an array on a GPU does, which has ``__array__`` only to say that it will not."""

    def __array__(self, dtype=None, copy=None):
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")


class OnAnotherDevice(RefusesArray):
    """Leaves its device only where it is asked to."""

    def __dlpack__(self, *, dl_device=None, copy=None, **options):
        if dl_device != (1, 0) or not copy:
            raise BufferError("not in main memory")
        return self.x.__dlpack__()

    def __dlpack_device__(self):
        return 2, 0


class NoDLPackEither(RefusesArray):
    def __dlpack__(self, **options):
        raise BufferError("not on this machine")


class FailsToRead(OnlyArray):
    def __array__(self, *args, **kwargs):
        raise RuntimeError("the file is gone")


@pytest.mark.parametrize(
    "wrap", [list, tuple, OnlyArray, OnlyDLPack, RefusesArray, OnAnotherDevice, memoryview, lambda x: list(map(np.float32, x))]
)
def test_arrays_of_other_kinds(wrap):
    x = np.array(VALUES)
    np.testing.assert_array_equal(refattn.relu(wrap(x)), [0.5, 0, 3, 0])


def test_an_array_that_cannot_be_read_is_named():
    with pytest.raises(TypeError, match=r"relu: x is a tests\.test_core\.NoDLPackEither that NumPy cannot read: not on this machine"):
        refattn.relu(NoDLPackEither(np.array(VALUES)))
    with pytest.raises(ValueError, match="relu: x: setting an array element"):
        refattn.relu([[1.0], [1.0, 2.0]])
    with pytest.raises(TypeError, match="relu: x: the file is gone"):
        refattn.relu(FailsToRead([1.0]))


@pytest.mark.parametrize(
    "x", [{"a": 1.0}, object(), "text", [None], np.array([(1.0, 2)], dtype="f8,i4"), np.array([1j]), [True], [1], b"1"]
)
def test_what_holds_no_real_numbers_is_refused(x):
    with pytest.raises(TypeError, match=r"relu: x is .*, but must be floating point"):
        refattn.relu(x)


def test_masked_arrays_are_refused():
    with pytest.raises(TypeError, match="relu: x is a masked array: pass its data"):
        refattn.relu(np.ma.masked_array([1.0, 2.0], [True, False]))


@pytest.mark.parametrize("dtype", [">f8", ">f4", "<f2", "f4", np.longdouble])
def test_byte_orders_and_precisions(dtype):
    x = np.array(VALUES, dtype)
    x.setflags(write=False)
    y = refattn.relu(x)
    assert y.dtype == (np.longdouble if dtype is np.longdouble else np.dtype(float))
    assert y.dtype.isnative
    np.testing.assert_array_equal(y, [0.5, 0, 3, 0])


def test_big_endian_integers_index():
    table = np.eye(3)
    np.testing.assert_array_equal(refattn.embedding(table, np.array([2, 0], ">i4")), table[[2, 0]])


def test_views_with_any_strides():
    x = np.arange(24.0).reshape(4, 6)[::-2, ::3].T
    np.testing.assert_array_equal(refattn.softmax(x), refattn.softmax(x.copy()))


def test_what_is_passed_is_never_what_is_returned():
    x = np.array(VALUES)
    y, pullback = refattn.dropout.vjp(x, keep=None)
    d = np.ones(4)
    g = pullback(d)["x"]
    assert not np.shares_memory(x, y)
    assert not np.shares_memory(d, g)


def test_working_dtype():
    f16, f32, f64, wide = map(np.dtype, ("f2", "f4", "f8", np.longdouble))
    assert working_dtype() == working_dtype(f16, f32) == f64
    assert working_dtype(f16, wide) == wide


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3b11fnuz", "float6_e2m3fn", "float4_e2m1fn"])
def test_ml_dtypes(name):
    dtype = np.dtype(getattr(pytest.importorskip("ml_dtypes"), name))
    x = np.array([0.5, -1.5, 3.0, 0.0]).astype(dtype)
    np.testing.assert_array_equal(refattn.relu(x), [0.5, 0, 3, 0])


def test_integers_of_ml_dtypes_are_no_real_numbers():
    int4 = pytest.importorskip("ml_dtypes").int4
    with pytest.raises(TypeError, match="relu: x is int4, but must be floating point"):
        refattn.relu(np.array([1, 2]).astype(int4))


@pytest.mark.parametrize("name", ["float32", "float64", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_torch_tensors(name):
    torch = pytest.importorskip("torch")
    x = torch.tensor(VALUES, dtype=torch.float64).to(getattr(torch, name))
    np.testing.assert_array_equal(refattn.relu(x), [0.5, 0, 3, 0])


def test_torch_tensors_of_every_kind():
    torch = pytest.importorskip("torch")
    x = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    for tensor in (x.clone().requires_grad_(), x.requires_grad_() * 1, torch.nn.Parameter(x), x.detach().T.contiguous().T, x.double()):
        np.testing.assert_array_equal(as_array(tensor), np.arange(6.0).reshape(2, 3))
    negative = torch.complex(torch.zeros(3), torch.tensor([1.0, 2.0, 3.0])).conj().imag
    assert negative.is_neg()
    np.testing.assert_array_equal(as_array(negative), [-1, -2, -3])
    np.testing.assert_array_equal(as_array(torch.tensor([True, False])), [True, False])
    for unreadable in (torch.eye(2).to_sparse(), torch.empty(2, device="meta")):
        with pytest.raises(TypeError, match=r"relu: x is a torch\.Tensor that NumPy cannot read"):
            refattn.relu(unreadable)


def test_jax_arrays():
    jnp = pytest.importorskip("jax.numpy")
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        np.testing.assert_array_equal(refattn.relu(jnp.array(VALUES, dtype)), [0.5, 0, 3, 0])


def test_cotangents_come_from_anywhere_too():
    _, pullback = refattn.relu.vjp(VALUES)
    np.testing.assert_array_equal(pullback(OnlyDLPack(np.ones(4, "f4")))["x"], [1, 0, 1, 0])
    with pytest.raises(TypeError, match="relu: d_output is int64, but must be floating point"):
        pullback([1, 1, 1, 1])
    with pytest.raises(TypeError, match="relu: the pullback takes d_output; got 2 by position"):
        pullback(np.ones(4), np.ones(4))
    with pytest.raises(TypeError, match=r"relu: the pullback takes d_output; got 0 by position and \['d_x'\]"):
        pullback(d_x=np.ones(4))


def test_numpy_scalars_are_options():
    x = np.ones((1, 1, 4, 4))
    weight = np.ones((1, 1, 2, 2))
    np.testing.assert_array_equal(refattn.conv2d(x, weight, stride=np.int32(2)), refattn.conv2d(x, weight, stride=2))
    np.testing.assert_array_equal(refattn.conv2d(x, weight, stride=[2, 1]), refattn.conv2d(x, weight, stride=(2, 1)))
    with pytest.raises(ValueError, match="conv2d: stride is -1, but must be positive int"):
        refattn.conv2d(x, weight, stride=np.int64(-1))


# Draws

RECORDED = [
    ("normal", ((3, 4),), "e881283babc3c98b"),
    ("uniform", (-1.0, 2.5, (7,)), "17064eed4d2ab989"),
    ("integers", (-3, 9, (2, 5)), "92f8bad7cf9ac692"),
    ("booleans", (0.3, (11,)), "9eadbb0d111d859d"),
    ("permutation", ((2, 4),), "e0d4cb1edab4f93e"),
    ("normal", (), "3f13d7cba3dba792"),
]


def test_draws_never_change():
    random = Random(0)
    for method, arguments, digest in RECORDED:
        x = np.asarray(getattr(random, method)(*arguments))
        stored = x.astype(x.dtype.newbyteorder("<")).tobytes()
        assert hashlib.sha256(stored).hexdigest()[:16] == digest, method


def test_seeds_differ_and_repeat():
    np.testing.assert_array_equal(Random(3).normal(9), Random(3).normal(9))
    assert not np.array_equal(Random(3).normal(9), Random(4).normal(9))


@given(st.integers(0, 2**32), st.floats(-8, 7), st.floats(0.01, 1))
def test_real_draws_are_exact_in_float32(seed, low, width):
    random = Random(seed)
    for x in (random.normal(50), random.uniform(low, low + width, 50)):
        np.testing.assert_array_equal(x.astype(np.float32), x)


def test_normal_draws_are_bell_shaped():
    n = 200_000
    x = Random(1).normal(n)
    # Each word is the sum of four uniform draws: variance 4 / 12 of (2**15 steps of 56 * 2**-20)**2, excess kurtosis -1.2 / 4.
    variance = 4 / 12 * (2**15 * 56 * 2.0**-20) ** 2
    assert abs(x.mean()) < 5 * np.sqrt(variance / n)
    assert abs(x.var() - variance) < 5 * variance * np.sqrt((3 - 0.3 - 1) / n)
    assert abs((x**4).mean() / variance**2 - 2.7) < 0.05
    assert np.abs(x).max() <= 3.5


def test_other_draws():
    random = Random(2)
    n = 100_000
    u = random.uniform(-2, 3, n)
    assert -2 <= u.min() < u.max() <= 3
    assert abs(u.mean() - 0.5) < 5 * np.sqrt(25 / 12 / n)
    assert set(random.integers(-2, 3, n)) == {-2, -1, 0, 1, 2}
    assert abs(random.booleans(0.3, n).mean() - 0.3) < 5 * np.sqrt(0.21 / n)
    assert sorted(random.permutation((5, 7)).ravel()) == list(range(35))
    assert random.permutation((5, 7)).shape == (5, 7)


# Records


class Pair(NamedTuple):
    """Two leaves, one of which may be absent."""

    left: float | None
    right: float | None = None


NESTED = {"a": Pair(1, 2), "b": (Pair(3), (4, 5)), "c": None, "d": 6}


def test_leaves_have_dotted_paths():
    assert dict(tree.leaves(NESTED)) == {"a.left": 1, "a.right": 2, "b.0.left": 3, "b.1.0": 4, "b.1.1": 5, "d": 6}
    assert dict(tree.leaves(7, "x")) == {"x": 7}
    assert list(tree.leaves(None)) == []


def test_map_leaves_keeps_records():
    assert tree.map_leaves(lambda x: 10 * x, (Pair(1), (2,))) == (Pair(10), (20,))
    assert isinstance(tree.map_leaves(abs, Pair(1)), Pair)
    assert tree.map_leaves(lambda x, y: x - y, Pair(5, 3), Pair(1, 2)) == Pair(4, 1)
    with pytest.raises(ValueError, match=r"shorter|longer"):
        tree.map_leaves(lambda x, y: x - y, (1, 2), (1,))


def test_add_is_leaf_by_leaf():
    assert tree.add(Pair(1, 2), Pair(3, 4), Pair(5, 6)) == Pair(9, 12)
    assert tree.add(Pair(1), Pair(3)) == Pair(4)


def test_replace_gives_another_tree():
    assert tree.replace(NESTED, "b.1.0", 40)["b"] == (Pair(3), (40, 5))
    assert tree.replace(NESTED, "a.right", None)["a"] == Pair(1)
    assert NESTED["b"] == (Pair(3), (4, 5))
    assert tree.replace(1, "", 2) == 2
    for path, leaf in tree.leaves(NESTED):
        assert tree.replace(NESTED, path, leaf) == NESTED


def test_pick_takes_the_fields():
    assert tree.pick(Pair, {"right": 2, "other": 3}) == Pair(None, 2)


@given(st.lists(st.integers(0, 3), max_size=4), st.lists(st.booleans(), min_size=4, max_size=4), st.integers(0, 4), st.integers(0, 99))
def test_unbroadcast_is_the_transpose_of_broadcasting(full, single, dropped, seed):
    shape = tuple(1 if s else n for n, s in zip(full, single, strict=False))[min(dropped, len(full)) :]
    random = Random(seed)
    x, d = (random.integers(-9, 9, s).astype(float) * np.ones(s) for s in (shape, tuple(full)))
    g = unbroadcast(d, shape)
    assert g.shape == shape
    assert (g * x).sum() == (d * np.broadcast_to(x, full)).sum()


# Exports


def test_exports_are_what_the_stub_states():
    stub = (Path(refattn.__file__).parent / "__init__.pyi").read_text("utf-8")
    assert set(refattn.__all__) <= set(dir(refattn))
    for name in refattn.__all__:
        assert getattr(refattn, name) is not None
        assert f" as {name}\n" in stub


def test_what_is_not_exported_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'refattn' has no attribute 'no_such_mechanism'"):
        refattn.no_such_mechanism  # noqa: B018
    assert not hasattr(refattn, "Array")


def test_a_star_import_brings_all():
    found = {}
    exec("from refattn import *", found)
    assert set(refattn.__all__) <= found.keys()


# The decorator


@pytest.fixture
def registry(monkeypatch):
    """A registry of which the package does not know."""
    known = {}
    monkeypatch.setattr(sys.modules["refattn._core.mechanism"], "_REGISTRY", known)
    return known


def no_samples(random):
    yield Sample("none", {})


DOUBLE = """Twice.

Parameters
----------
x : array, shape (...)
    Input.

Returns
-------
array, shape (...)
    Output.
"""


def doubled(gradient):
    """A mechanism whose pullback returns this."""

    def double(x: Array) -> tuple[Array, Pullback]:
        return 2 * x, gradient

    double.__doc__ = DOUBLE
    return mechanism(samples=no_samples)(double)


def test_two_mechanisms_of_one_name_are_refused(registry):
    def double(x: Array) -> tuple[Array, Pullback]:
        return 2 * x, lambda dy: {"x": 2 * dy}

    double.__module__ = "elsewhere.double"
    mechanism(samples=no_samples)(double)
    with pytest.raises(ValueError, match=r"two mechanisms are named 'double': elsewhere\.double, tests\.test_core"):
        doubled(lambda dy: {"x": 2 * dy})


def test_entries_of_absent_arguments_are_dropped(registry):
    made = doubled(lambda dy: {"x": 2 * dy, "no_argument": dy})
    assert made.vjp(np.ones(2))[1](np.ones(2)).keys() == {"x"}
    assert list(registry) == ["double"]


def test_the_signature_is_the_rules():
    with pytest.raises(TypeError, match=r"^linear: missing a required argument: 'weight'"):
        refattn.linear(np.ones(2))
    with pytest.raises(TypeError, match=r"^linear: multiple values for argument 'x'"):
        refattn.linear(np.ones(2), x=np.ones(2))


# The hook


def attended(**options):
    random = Random(0)
    return {name: random.normal((2, 3, 4)) for name in ("query", "key", "value")} | options


def test_paths_name_the_chain_of_mechanisms():
    seen = []
    with refattn.hooked(lambda result: seen.append((result.path, result.kind, result.name))):
        _, pullback = refattn.scaled_dot_product_attention.vjp(**attended())
        pullback(np.ones((2, 3, 4)))
    outer = ("scaled_dot_product_attention",)
    inner = (*outer, "masked_softmax")
    assert seen.index((outer, "argument", "query")) < seen.index((inner, "output", "weights")) < seen.index((outer, "output", "output"))
    assert seen.index((outer, "cotangent", "output")) < seen.index((inner, "gradient", "scores")) < seen.index((outer, "gradient", "query"))
    assert not [s for s in seen if s[0] != outer and s[1] in {"argument", "cotangent"}]


def test_weights_are_observed_inside_multi_head_attention():
    seen = []
    arguments = next(refattn.multi_head_attention.spec.samples(Random(0))).arguments
    with refattn.hooked(seen.append):
        refattn.multi_head_attention(**arguments)
    weights = [r.value for r in seen if r.path[0] == "multi_head_attention" and r.path[-1] == "masked_softmax" and r.name == "weights"]
    assert len(weights) == 1
    assert weights[0].shape[-3] == arguments["num_heads"]
    np.testing.assert_allclose(weights[0].sum(axis=-1), 1, rtol=1e-14)


def test_a_replaced_output_is_what_the_rest_sees():
    def first_key_only(result):
        if result.name == "weights" and result.kind == "output":
            return np.eye(3)[[0, 0, 0]] * np.ones((2, 1, 1))
        return None

    arguments = attended()
    with refattn.hooked(first_key_only):
        output = refattn.scaled_dot_product_attention(**arguments)
    np.testing.assert_array_equal(output, arguments["value"][:, [0, 0, 0]])


def test_a_replaced_gradient_is_what_the_caller_gets():
    with refattn.hooked(lambda result: np.full_like(result.value, 7) if result.kind == "gradient" else None):
        y, pullback = refattn.linear.vjp(np.ones((1, 2)), np.ones((3, 2)))
        grads = pullback(y)
    assert {n: set(g.ravel()) for n, g in grads.items()} == {"x": {7.0}, "weight": {7.0}}


class Counting(np.ndarray):
    """An arithmetic that counts its operations."""

    operations = 0

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **kwargs):
        Counting.operations += 1
        plain = [x.view(np.ndarray) if isinstance(x, Counting) else x for x in inputs]
        kwargs = {k: v.view(np.ndarray) if isinstance(v, Counting) else v for k, v in kwargs.items()}
        made = getattr(ufunc, method)(*plain, **kwargs)
        return np.asarray(made).view(Counting)

    def __array_function__(self, function, types, args, kwargs):
        made = super().__array_function__(function, types, args, kwargs)
        return made.view(Counting) if type(made) is np.ndarray else made


def test_another_arithmetic_is_carried_through_a_whole_call():
    arguments = attended(softcap=2.0, mask=np.tri(3, dtype=bool))
    expected, expected_pullback = refattn.scaled_dot_product_attention.vjp(**arguments)
    kinds = []

    def hook(result):
        kinds.append(type(result.value))
        return result.value.view(Counting) if result.kind in {"argument", "cotangent"} else None

    Counting.operations = 0
    with refattn.hooked(hook):
        output, pullback = refattn.scaled_dot_product_attention.vjp(**arguments)
        forward = Counting.operations
        grads = pullback(expected)
    assert 10 < forward < Counting.operations
    assert kinds.count(Counting) > 8  # every inner output and gradient
    assert type(output) is np.ndarray  # what comes out is plain again
    np.testing.assert_array_equal(output, expected)
    for name, g in expected_pullback(expected).items():
        assert type(grads[name]) is np.ndarray
        np.testing.assert_array_equal(grads[name], g)


def test_hooks_nest_and_leave_nothing_behind():
    outer, inner = [], []
    with refattn.hooked(outer.append):
        refattn.relu([1.0])
        with refattn.hooked(inner.append):
            refattn.tanh([1.0])
        refattn.relu([1.0])
    refattn.relu([1.0])
    assert [r.path[0] for r in outer] == ["relu"] * 4
    assert [r.path[0] for r in inner] == ["tanh"] * 2


def test_an_exception_restores_everything():
    def fail(result):
        raise LookupError(result.name)

    with pytest.raises(LookupError, match="x"), refattn.hooked(fail):
        refattn.relu([1.0])
    assert CURRENT.get() is None
    with pytest.raises(ValueError, match="align is None"):
        refattn.scaled_dot_product_attention(np.ones((1, 2, 3)), np.ones((1, 4, 3)), np.ones((1, 4, 3)), causal=True)
    assert PATH.get() == ()


def test_a_hook_may_call_mechanisms_itself():
    seen = []
    with refattn.hooked(lambda result: seen.append((result.path, refattn.softmax(result.value)))):
        refattn.relu([1.0, 2.0])
    assert [path for path, _ in seen] == [("relu",), ("relu",)]
    assert all(type(p) is np.ndarray for _, p in seen)


def test_threads_have_hooks_of_their_own():
    seen, errors = {"a": [], "b": []}, []
    barrier = threading.Barrier(2)

    def work(name, function):
        try:
            with refattn.hooked(seen[name].append):
                for _ in range(20):
                    barrier.wait(10)
                    function([1.0])
        except Exception as error:
            errors.append(error)

    outside = []
    with refattn.hooked(outside.append):
        threads = [threading.Thread(target=work, args=a) for a in (("a", refattn.relu), ("b", refattn.tanh))]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    assert not errors
    assert outside == []
    assert {r.path for r in seen["a"]} == {("relu",)}
    assert {r.path for r in seen["b"]} == {("tanh",)}
    assert len(seen["a"]) == len(seen["b"]) == 40


# Faster twins


def twin(mark):
    """A stand-in for a fast softmax, which marks its output."""

    class Twin:
        @staticmethod
        def vjp(x):
            y, pullback = refattn.softmax.vjp(x)  # a twin may call its own reference
            return y + mark, pullback

    return Twin


def test_using_rebinds_within_its_block():
    x = np.zeros(2)
    with refattn.using(softmax=twin(1)):
        np.testing.assert_array_equal(refattn.softmax(x), [1.5, 1.5])
        with refattn.using(softmax=twin(2)):
            np.testing.assert_array_equal(refattn.softmax(x), [2.5, 2.5])
        with refattn.using(relu=refattn.relu):
            np.testing.assert_array_equal(refattn.softmax(x), [1.5, 1.5])
    np.testing.assert_array_equal(refattn.softmax(x), [0.5, 0.5])


def test_using_reaches_the_parts_of_composites_and_not_other_threads():
    calls, found = [], []

    class Twin:
        @staticmethod
        def vjp(*args, **kwargs):
            calls.append(kwargs.keys() | set(range(len(args))))
            return refattn.scaled_dot_product_attention.vjp(*args, **kwargs)

    arguments = next(refattn.multi_head_attention.spec.samples(Random(0))).arguments
    expected = refattn.multi_head_attention(**arguments)
    with refattn.using(scaled_dot_product_attention=Twin):
        np.testing.assert_array_equal(refattn.multi_head_attention(**arguments), expected)
        thread = threading.Thread(target=lambda: found.append(refattn.multi_head_attention(**arguments)))
        thread.start()
        thread.join()
    assert len(calls) == 1
    np.testing.assert_array_equal(found[0], expected)


def test_using_refuses_a_name_that_is_no_mechanism():
    with pytest.raises(ValueError, match="no mechanism is named sofmax"), refattn.using(sofmax=twin(1)):
        pass


def test_using_is_left_by_an_exception():
    with pytest.raises(LookupError), refattn.using(softmax=twin(1)):
        raise LookupError
    np.testing.assert_array_equal(refattn.softmax(np.zeros(2)), [0.5, 0.5])


# Errors


def frames(call):
    """The file of each frame between the caller and the place where it was refused, and the error."""
    try:
        call()
    except (ValueError, TypeError) as error:
        return [Path(f.filename).name for f in traceback.extract_tb(error.__traceback__)][2:], error
    raise AssertionError("nothing was refused")


def test_an_error_shows_the_caller_and_not_the_machinery():
    files, error = frames(lambda: refattn.linear(np.ones((2, 3)), np.ones((4, 5))))
    assert files == ["mechanism.py", "mechanism.py"]  # the call and its vjp
    assert error.__suppress_context__
    assert error.__cause__ is None


def test_a_shape_error_prints_declared_and_actual():
    _, error = frames(lambda: refattn.linear(np.ones((2, 3)), np.ones((4, 5)), np.ones(4)))
    assert str(error) == (
        "linear: in_features is 5 in weight, but 3 in x\n"
        "  x       (..., in_features)           = (2, 3)\n"
        "  weight  (out_features, in_features)  = (4, 5)"
    )


def test_an_error_inside_a_composite_names_the_chain(registry):
    def inner(x: Array) -> tuple[Array, Pullback]:
        return refattn.linear.vjp(x, np.ones((2, 9)))

    def outer(x: Array) -> tuple[Array, Pullback]:
        return parts[0].vjp(x)

    parts = []
    for rule in (inner, outer):
        rule.__doc__ = DOUBLE
        parts.append(mechanism(samples=no_samples)(rule))
    _, error = frames(lambda: parts[1](np.ones(3)))
    assert str(error).startswith("linear: in_features is 9 in weight, but 3 in x")
    assert error.__notes__ == ["in inner", "in outer"]


def test_an_error_of_a_body_names_the_chain_from_there(registry):
    """The names in its message are those of the innermost mechanism, which therefore is named too."""

    def outer(x: Array) -> tuple[Array, Pullback]:
        return refattn.max_pool1d.vjp(x, kernel_size=5)

    outer.__doc__ = DOUBLE
    made = mechanism(samples=no_samples)(outer)
    _, error = frames(lambda: made(np.ones(3)))
    assert str(error) == "kernel_size reaches over 5 positions, but the padded x has 3"
    assert error.__notes__ == ["in max_pool1d", "in outer"]


def test_an_error_at_the_outermost_has_no_notes():
    _, error = frames(lambda: refattn.linear(np.ones(3), np.ones(3)))
    assert not hasattr(error, "__notes__")


def grads_of(m: object) -> Grads:
    return m.vjp(np.ones(2))[1](np.ones(2))


def test_a_pullback_in_which_something_fails_leaves_no_path(registry):
    def fail(dy):
        raise LookupError("inside")

    with pytest.raises(LookupError, match="inside"):
        grads_of(doubled(fail))
    assert PATH.get() == ()
