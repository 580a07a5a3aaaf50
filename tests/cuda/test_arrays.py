"""Device arrays of each library: where they lie, new ones beside them, copies where kernels cannot read, and what is refused."""

import numpy as np
import pytest

pytest.importorskip("numba")

from refattn_numba.cuda import arrays, dlpack, libraries, library
from tests.cuda import standins

ALL = tuple(standins.KINDS)


@pytest.fixture
def recorder(monkeypatch):
    with standins.pretending(monkeypatch) as found:
        yield found


def of(kind, x, **options):
    owner = standins.to_device(x, kind, **options)
    return arrays.read("x", owner, libraries.library_of(type(owner)))


@pytest.mark.parametrize("kind", ALL)
def test_each_library_is_known_by_its_class(kind):
    found = libraries.library_of(standins.KINDS[kind])
    assert found.name == {"somebody": "other"}.get(kind, kind)
    assert arrays.is_on_device(standins.to_device(np.ones(3), kind))


@pytest.mark.parametrize("x", [np.ones(2), np.float32(1), 1.0, True, "zero", None, (1, None), [1.0]])
def test_what_lies_in_main_memory_belongs_to_none(x):
    assert not arrays.is_on_device(x)


def test_arrays_of_the_same_libraries_in_main_memory_are_on_no_device():
    jax, other = standins.to_device(np.ones(2), "jax"), standins.to_device(np.ones(2), "somebody")
    jax.platform, other.kind = "cpu", 1
    assert not arrays.is_on_device(jax)
    assert not arrays.is_on_device(other)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bool", "int32"])
def test_memory_is_read_as_it_lies(recorder, kind, dtype):
    x = np.arange(24).reshape(2, 3, 4).astype(dtype)
    owner = standins.to_device(x, kind, device=1)
    found = arrays.read("x", owner, libraries.library_of(type(owner)))
    assert found.memory == (owner.a.ctypes.data, (2, 3, 4), (12, 4, 1), dtype, 1)


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind != "jax"])  # whose arrays have no steps
def test_steps_are_in_numbers(recorder, kind):
    owner = standins.to_device(np.arange(24.0).reshape(2, 3, 4), kind)
    view = owner.like(owner.a[::-1, :, ::2].swapaxes(0, 1))
    found = arrays.read("x", view, libraries.library_of(type(owner)))
    assert (found.shape, found.memory.strides) == ((3, 2, 2), (4, -12, 2))
    assert found.memory.address == owner.a[1:].ctypes.data


@pytest.mark.parametrize("kind", ["torch", "cupy", "jax"])
def test_bfloat16_has_a_name_everywhere(recorder, kind):
    assert of(kind, np.ones((2, 8)), dtype="bfloat16").dtype == "bfloat16"


def test_bfloat16_comes_through_dlpack(recorder):
    assert of("somebody", np.ones((2, 8)), dtype="bfloat16").memory.strides == (8, 1)


def test_an_empty_array_has_no_address(recorder):
    for kind in ALL:
        assert not of(kind, np.ones((2, 0, 3))).memory.address or kind == "somebody"


def test_dlpack_is_asked_for_a_stream_and_gives_back_what_it_held(recorder):
    owner = standins.to_device(np.ones((2, 3)), "somebody")
    assert dlpack.read_dlpack("x", owner, 0)[1:3] == ((2, 3), (3, 1))
    assert owner.asked_stream == 1
    dlpack.read_dlpack("x", owner, 5)
    assert owner.asked_stream == 5


def test_dlpack_without_strides_is_in_order(recorder, monkeypatch):
    owner = standins.to_device(np.ones((2, 3)), "somebody")
    monkeypatch.setattr(type(owner), "__dlpack__", lambda self, stream: standins.capsule_of(self.a, 2, 0, with_strides=False))
    assert dlpack.read_dlpack("x", owner, 0)[2] == (3, 1)


@pytest.mark.parametrize(("lanes", "kind", "match"), [(2, 2, "2 lanes"), (1, 1, "device of DLPack's type 1")])
def test_dlpack_that_no_kernel_reads(recorder, monkeypatch, lanes, kind, match):
    owner = standins.to_device(np.ones((2, 3)), "somebody")
    monkeypatch.setattr(type(owner), "__dlpack__", lambda self, stream: standins.capsule_of(self.a, kind, 0, lanes=lanes))
    with pytest.raises(TypeError, match=match):
        dlpack.read_dlpack("x", owner, 0)


def test_dlpack_of_numpy_itself(monkeypatch):
    """The structure is that of a library which we did not write."""
    monkeypatch.setattr(dlpack, "CUDA_DEVICES", frozenset({1}))
    x = np.arange(12, dtype=np.float32).reshape(3, 4)[:, ::2]

    class Shown:
        def __dlpack__(self, stream):
            return x.__dlpack__()

    assert dlpack.read_dlpack("x", Shown(), 0) == (x.ctypes.data, (3, 2), (4, 2), "float32", 0)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"layout": "torch.sparse_coo"}, TypeError, "x is a sparse_coo tensor"),
        ({"requires_grad": True}, TypeError, "x requires a gradient, of which PyTorch would know nothing"),
        ({"negative": True}, TypeError, "resolve_neg"),
    ],
)
def test_tensors_that_are_refused(recorder, change, error, match):
    owner = standins.to_device(np.ones(3))
    vars(owner).update(change)
    with pytest.raises(error, match=match):
        libraries.Torch().read("x", owner)


def test_interfaces_that_are_refused(recorder):
    owner = standins.to_device(np.ones(3), "numba")
    owner.version = 1
    with pytest.raises(TypeError, match="version 1 of the CUDA array interface"):
        libraries.NumbaCuda().read("x", owner)
    owner.version, owner.mask = 2, owner
    with pytest.raises(TypeError, match="masked array"):
        libraries.NumbaCuda().read("x", owner)
    turned = standins.to_device(np.ones(3), "numba")
    turned.a = turned.a.view(turned.a.dtype.newbyteorder())
    with pytest.raises(TypeError, match="byte order"):
        libraries.NumbaCuda().read("x", turned)
    odd = standins.to_device(np.ones(24, np.uint8), "numba")
    odd.a = np.lib.stride_tricks.as_strided(odd.a.view(np.float32), (2,), (6,))
    with pytest.raises(TypeError, match="multiples of 4"):
        libraries.NumbaCuda().read("x", odd)


def test_arrays_in_parts_are_refused(recorder, monkeypatch):
    owner = standins.to_device(np.ones(3), "jax")
    monkeypatch.setattr(type(owner), "devices", lambda self: {1, 2})
    with pytest.raises(TypeError, match="x lies on 2 devices"):
        libraries.Jax().read("x", owner)


@pytest.mark.parametrize("kind", ALL)
def test_new_arrays_are_of_the_same_kind_and_device(recorder, kind):
    x = of(kind, np.ones((2, 3, 8), np.float32), device=1)
    made = x.made((2, 5, 8), "float16")
    assert type(made.owner) is type(x.owner)
    assert (made.memory.device, made.dtype, made.shape, made.memory.strides) == (1, "float16", (2, 5, 8), (40, 8, 1))
    assert made.result() is made.owner


@pytest.mark.parametrize("kind", ALL)
def test_rows_of_an_odd_size_have_room(recorder, kind):
    made = of(kind, np.ones((2, 3, 8), np.float32)).made((2, 3, 5), "float16")
    assert (made.shape, made.memory.strides) == ((2, 3, 5), (24, 8, 1))
    made.owner.a[...] = np.arange(48).reshape(2, 3, 8)
    result = made.result()
    assert result.a.flags.c_contiguous
    assert np.array_equal(result.a, np.arange(48).reshape(2, 3, 8)[..., :5])


@pytest.mark.parametrize("kind", ALL)
def test_what_lies_well_is_read_where_it_lies(recorder, kind):
    x = of(kind, np.ones((2, 3, 4, 8), np.float32))
    assert arrays.placed(x, "float32")[1:] == (x.memory.address, 96, 32, 8, 1)


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind != "jax"])
def test_heads_after_positions_are_read_where_they_lie(recorder, kind):
    owner = standins.to_device(np.ones((2, 4, 3, 8), np.float32), kind)
    x = arrays.read("x", owner.like(owner.a.swapaxes(1, 2)), libraries.library_of(type(owner)))
    assert arrays.placed(x, "float32")[1:] == (x.memory.address, 96, 8, 24, 1)


@pytest.mark.parametrize("kind", ALL)
def test_what_lies_badly_is_copied(recorder, kind):
    """Odd rows, a first address between others, and another type."""
    numbers = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    for x in (of(kind, numbers), of(kind, np.tile(numbers, (1, 1, 1, 8)), offset=4), of(kind, numbers.astype(np.float64))):
        found = arrays.placed(x, "float32")
        assert found.address != x.memory.address
        assert not found.address % 16
        assert not any(step * 4 % 16 for step in (found.batch, found.head, found.row))
        whole = np.lib.stride_tricks.as_strided(found.array.owner.a, x.shape, [s * 4 for s in found[2:]])
        assert np.array_equal(whole, x.owner.a.astype(np.float32))


def test_an_allocator_that_cannot_align_is_told(recorder, monkeypatch):
    x = of("torch", np.ones((1, 1, 2, 3), np.float32))
    monkeypatch.setattr(
        standins.FAKES["torch"], "empty", lambda shape, dtype, device: standins.Tensor(standins.allocated(shape, "float32", offset=4))
    )
    with pytest.raises(TypeError, match="kernels need multiples of 16"):
        arrays.placed(x, "float32")


def test_leading_axes_that_no_step_walks_are_copied(recorder):
    owner = standins.to_device(np.random.default_rng(1).normal(size=(3, 2, 2, 4, 8)).astype(np.float32))
    x = arrays.read("x", owner.like(owner.a.swapaxes(0, 1)), libraries.library_of(type(owner)))
    found = arrays.placed(x, "float32")
    assert found.batch == 64
    assert np.array_equal(found.array.owner.a.reshape(-1), x.owner.a.reshape(-1))


def test_an_axis_of_one_has_any_step(recorder):
    owner = standins.to_device(np.ones((1, 1, 4, 8), np.float32))
    owner.a = np.lib.stride_tricks.as_strided(owner.a, (1, 1, 4, 8), (3, 5, 32, 4))
    x = arrays.DeviceArray(owner, libraries.Torch(), library.Memory(owner.a.ctypes.data, (1, 1, 4, 8), (1, 1, 8, 1), "float32", 0))
    assert arrays.placed(x, "float32")[2:] == (0, 0, 8, 1)


PAIRS = (2, 3, 4, 5, 6)


@pytest.mark.parametrize(
    ("shape", "steps"),
    [
        ((6,), (0, 0, 0, 1)),
        ((5, 1), (0, 0, 1, 0)),
        ((4, 1, 6), (0, 6, 0, 1)),
        ((2, 3, 1, 5, 6), (30, 0, 6, 1)),
        ((2, 3, 4, 5, 6), (120, 30, 6, 1)),
        ((1, 1, 1, 1, 1), (0, 0, 0, 0)),
    ],
)
def test_options_of_pairs_have_a_step_of_0_where_they_are_broadcast(recorder, shape, steps):
    x = of("torch", np.ones(shape, bool))
    assert arrays.placed_pairs(x, PAIRS, "bool")[1:] == (x.memory.address, *steps)


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind != "numba"])
def test_options_that_some_of_several_leading_axes_share_are_copied(recorder, kind):
    x = of(kind, np.random.default_rng(2).normal(size=(3, 1, 5, 6)).astype(np.float32))
    found = arrays.placed_pairs(x, PAIRS, "float32")
    assert found[2:] == (30, 0, 6, 1)
    assert np.array_equal(found.array.owner.a, np.broadcast_to(x.owner.a, (2, 3, 1, 5, 6)))


def test_numba_says_that_it_broadcasts_nothing(recorder):
    with pytest.raises(TypeError, match="pass it in the whole shape"):
        arrays.placed_pairs(of("numba", np.ones((3, 1, 5, 6))), PAIRS, "float64")


def test_all_arrays_of_a_call_lie_on_one_side(recorder):
    a = standins.to_device(np.ones(3))
    with pytest.raises(TypeError, match=r"f: key is a numpy.ndarray in main memory, but query is a torch.Tensor on a device"):
        arrays.gathered("f", {"query": a, "key": np.ones(3)})
    with pytest.raises(TypeError, match=r"f: query is a builtins.list in main memory, but key is a torch.Tensor"):
        arrays.gathered("f", {"query": [1.0], "key": a})
    with pytest.raises(TypeError, match=r"f: key is a cupy.CupyArray, but query is a torch.Tensor: pass arrays of one library"):
        arrays.gathered("f", {"query": a, "key": standins.to_device(np.ones(3), "cupy")})
    with pytest.raises(TypeError, match="f: key lies on device 1, but query on device 0"):
        arrays.gathered("f", {"query": a, "key": standins.to_device(np.ones(3), device=1)})
    found = arrays.gathered("f", {"query": a, "starts": np.arange(2), "sinks": None, "scale": 0.5}, ["starts"])
    assert found["scale"] == 0.5
    assert found["sinks"] is None
    assert type(found["starts"]) is np.ndarray


def test_streams_wait_for_one_another(recorder):
    first, second = (standins.to_device(np.ones(3), "numba") for _ in range(2))
    first.on_stream, second.on_stream = 3, 4
    arrays.gathered("f", {"query": first, "key": second, "value": first})
    assert recorder.waits == [(0, 3, 4)]


def test_arrays_of_no_library_are_read_but_none_are_made(recorder):
    strange = standins.Strange(standins.to_device(np.ones((2, 3))).a)
    found = arrays.read("x", strange, libraries.library_of(type(strange)))
    assert found.shape == (2, 3)
    with pytest.raises(TypeError, match=r"a nobody.Strange has no library that makes arrays like it"):
        found.made((2, 3), "float32")
