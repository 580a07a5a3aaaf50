"""Numbers in files: exact, whatever their type, and nothing but ValueError for what is not what it should be."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refattn.testing.bits import KINDS, Tensor, from_bytes, size_in_bytes, stored
from refattn.testing.npz import read_npy, read_npz, write_npz
from refattn.testing.safetensors import places, read_safetensors, strict_json, write_safetensors

LOW = ["bfloat16", "float8_e4m3fn", "float8_e5m2"]


def one_of_each():
    """A tensor of every type, of several shapes."""
    made = {f"{name} {i}": stored(np.ones(s), name) for i, s in enumerate([(2, 3), (), (0, 4), (5,)]) for name in KINDS if name != "bool"}
    return {**made, "truth": stored(np.array([True, False, True]))}


@pytest.mark.parametrize("name", LOW)
def test_every_number_is_that_of_ml_dtypes(name):
    theirs = np.dtype(getattr(pytest.importorskip("ml_dtypes"), name))
    bits = np.arange(256 ** KINDS[name].size).astype(KINDS[name].bits)
    with np.errstate(invalid="ignore"):
        want = bits.view(theirs).astype(np.float64)
    got = Tensor(name, bits).values()
    np.testing.assert_array_equal(got, want)
    number = ~np.isnan(want)
    np.testing.assert_array_equal(np.signbit(got[number]), np.signbit(want[number]))
    again = stored(want, name)
    np.testing.assert_array_equal(again.bits[number], bits[number])
    assert np.isnan(again.values()[~number]).all()


@pytest.mark.parametrize(
    ("x", "dtype"),
    [
        (0.1, "float32"),
        (1 + 2.0**-8, "bfloat16"),
        (449.0, "float8_e4m3fn"),
        (np.inf, "float8_e4m3fn"),
        (1e5, "float8_e5m2"),
        (1e5, "float16"),
        (1.5, "int32"),
        (300, "uint8"),
        (-1, "uint64"),
        (2.0, "bool"),
        (np.nan, "int64"),
    ],
)
def test_what_a_type_cannot_hold_is_refused(x, dtype):
    with pytest.raises(ValueError, match=f"is no number of {dtype}"):
        stored(np.array([1, x]), dtype)


def test_types_and_shapes_that_are_none():
    for shape in ([-1], [True], [1.0], "23", None, [1] * 33, [2**40, 2**40], [0, 2**70]):
        with pytest.raises(ValueError, match="shape is"):
            size_in_bytes("float32", shape)
    with pytest.raises(ValueError, match="dtype is 'complex128', but must be one of"):
        stored(np.zeros(2, complex))
    with pytest.raises(ValueError, match="has 8 bytes, here are 7"):
        from_bytes("float32", (2,), bytes(7))
    with pytest.raises(ValueError, match="neither 0 nor 1"):
        from_bytes("bool", (2,), b"\0\2")


def test_safetensors_are_read_as_written_and_aligned(tmp_path):
    tensors = one_of_each()
    where = write_safetensors(tmp_path / "a.safetensors", tensors, {"by": "refattn"})
    data, found = (tmp_path / "a.safetensors").read_bytes(), read_safetensors(tmp_path / "a.safetensors")
    assert found.keys() == tensors.keys()
    for name, x in tensors.items():
        assert (found[name].dtype, found[name].shape, found[name].tobytes()) == (x.dtype, x.shape, x.tobytes())
        assert data[where[name].start : where[name].end] == x.tobytes()
        assert where[name].start % KINDS[x.dtype].size == 0
    write_safetensors(tmp_path / "b.safetensors", tensors, {"by": "refattn"})
    assert (tmp_path / "b.safetensors").read_bytes() == data


def file_of(header, numbers=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + numbers


def entry(shape, offsets, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_a_file_written_by_hand():
    x = np.array([[1.5, -2.0]], np.float32)
    data = file_of(b'{"__metadata__":{"a":"b"},"x":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}}   ', x.tobytes())
    assert places(data)["x"] == ("float32", (1, 2), len(data) - 8, len(data))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "should have 0 bytes"),
        (b"\1\0\0", "should have 1 bytes"),
        (file_of({}, length=2**63), "should have"),
        (file_of({}, length=3), "should have 3 bytes"),
        (file_of(b"[]"), "no object"),
        (file_of(b' {"a": 1}'), "no object"),
        (file_of(b"{'a': 1}"), "no JSON"),
        (file_of(b"\xff\xfe{}"), "no JSON"),
        (file_of(b"[" * 100_000), "too deep"),
        (file_of(b'{"x":' * 100_000), "too deep"),
        (file_of(b'{"x": {}, "x": {}}'), "stands twice"),
        (file_of(b'{"x": ' + b"9" * 5000 + b"}"), "no JSON"),
        (file_of({"x": {"dtype": "F32", "shape": [1]}}), "has not dtype"),
        (file_of({"x": {**entry([1], [0, 4]), "more": 1}}, bytes(4)), "has not dtype"),
        (file_of({"x": entry([1], [0, 4], "F31")}, bytes(4)), "dtype is 'F31'"),
        (file_of({"x": entry([1], [0, 4], ["F32"])}, bytes(4)), "dtype is"),
        (file_of({"x": entry([1.0], [0, 4])}, bytes(4)), "shape is"),
        (file_of({"x": entry([-1], [0, 4])}, bytes(4)), "shape is"),
        (file_of({"x": entry([2**62, 2], [0, 4])}, bytes(4)), "shape is"),
        (file_of({"x": entry([0, 2**62], [0, 0])}), "shape is"),
        (file_of({"x": entry([1], [4, 0])}, bytes(4)), "bytes apart"),
        (file_of({"x": entry([1], [-4, 0])}, bytes(4)), "data_offsets is"),
        (file_of({"x": entry([1], [0, 4.0])}, bytes(4)), "data_offsets is"),
        (file_of({"x": entry([1], [0, 4, 8])}, bytes(4)), "data_offsets is"),
        (file_of({"x": entry([1], [0, 8])}, bytes(8)), "bytes apart"),
        (file_of({"x": entry([1], [0, 4])}, bytes(3)), "end at byte"),
        (file_of({"x": entry([1], [0, 4])}, bytes(5)), "end at byte"),
        (file_of({"x": entry([1], [4, 8])}, bytes(8)), "leave a gap"),
        (file_of({"x": entry([2], [0, 8]), "y": entry([1], [4, 8])}, bytes(8)), "overlap"),
        (file_of({"x": entry([1], [0, 4]), "y": entry([1], [8, 12])}, bytes(12)), "leave a gap"),
        (file_of({"__metadata__": {"a": 1}}), "from text to text"),
        (file_of({"__metadata__": []}), "from text to text"),
    ],
)
def test_a_hostile_safetensors_file_is_one_error(data, said, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=said):
        read_safetensors(tmp_path / "x.safetensors")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.sampled_from(["F32", "BF16", "BOOL", "x"]) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "x", "__metadata__"]), inner)
    ),
    max_leaves=12,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "BOOL", "F8_E4M3", "I64", 3]),
        "shape": st.lists(st.integers(-1, 3) | st.just(2**62), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(-1, 40), min_size=2, max_size=2) | JSON,
    }
)


def fuzzed(*strategies):
    """Twice: a few examples in the default run, thousands in the slow one."""

    def decorate(function):
        def made(examples):
            drawn = given(*strategies)(function)
            return settings(deadline=None, max_examples=examples, suppress_health_check=[HealthCheck.too_slow])(drawn)

        @pytest.mark.parametrize("examples", [50, pytest.param(5000, marks=pytest.mark.slow)])
        def test(examples):
            made(examples)()

        return test

    return decorate


HEADERS = st.dictionaries(st.text(max_size=3), ENTRY | JSON, max_size=3)


@fuzzed(HEADERS, st.binary(max_size=40), st.none() | st.integers(0, 80))
def test_headers_drawn_at_random(header, numbers, length):
    data = file_of(header, numbers, length)
    try:
        found = places(data)
    except ValueError:
        return
    for place in found.values():
        from_bytes(place.dtype, place.shape, data[place.start : place.end]) if place.dtype != "bool" else None
    assert sum(p.end - p.start for p in found.values()) == len(data) - 8 - int.from_bytes(data[:8], "little")


def changed(data, places_and_bytes, cut):
    made = bytearray(data)
    for at, byte in places_and_bytes:
        made[at % len(made)] = byte
    return bytes(made[: len(made) - cut])


def read_changed(write, read, changes, cut):
    with TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        write(path, {"a": stored(np.ones((2, 3)), "bfloat16"), "b": stored(np.array([True, False]))})
        path.write_bytes(changed(path.read_bytes(), changes, cut))
        try:
            read(path)
        except ValueError as error:
            assert str(error)


CHANGES = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6)
CUTS = st.integers(0, 3) | st.integers(0, 300)


@fuzzed(CHANGES, CUTS)
def test_a_safetensors_file_with_changed_bytes(changes, cut):
    read_changed(write_safetensors, read_safetensors, changes, cut)


@fuzzed(CHANGES, CUTS, st.booleans())
def test_an_archive_with_changed_bytes(changes, cut, compressed):
    def of_numpy(path, tensors):
        with path.open("wb") as file:
            np.savez_compressed(file, **{n: x.bits for n, x in tensors.items()})

    read_changed(of_numpy if compressed else write_npz, read_npz, changes, cut)


@fuzzed(st.sampled_from(["<f4", "|b1", ">i8", "<U8", "|O", "<M8[s]"]), st.lists(st.integers(-1, 3), max_size=3), CHANGES, CUTS)
def test_an_array_file_with_changed_bytes(descr, shape, changes, cut):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": tuple(shape)})
    try:
        made = read_npy(changed(file.getvalue() + bytes(24), changes, cut))
    except ValueError as error:
        assert str(error)
    else:
        assert made.dtype.kind in "biufVU"


def test_archives_are_read_as_written_and_by_numpy(tmp_path):
    tensors = one_of_each()
    write_npz(tmp_path / "a.npz", tensors)
    write_npz(tmp_path / "b.npz", tensors)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    found = read_npz(tmp_path / "a.npz")
    assert {n: (x.dtype, x.shape, x.tobytes()) for n, x in found.items()} == {
        n: (x.dtype, x.shape, x.tobytes()) for n, x in tensors.items()
    }
    with np.load(tmp_path / "a.npz", allow_pickle=False) as theirs:
        assert theirs["bfloat16 0"].dtype == np.uint16
        assert str(theirs["bfloat16 0.dtype"]) == "bfloat16"
        np.testing.assert_array_equal(theirs["float32 0"], np.ones((2, 3)))


def test_archives_of_numpy_are_read(tmp_path):
    x = np.arange(6, dtype=">f4").reshape(2, 3)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", x=x, by_columns=np.asfortranarray(x), truth=x > 2)
        found = read_npz(tmp_path / "a.npz")
        np.testing.assert_array_equal(found["x"].values(), x)
        np.testing.assert_array_equal(found["by_columns"].values(), x)
        np.testing.assert_array_equal(found["truth"].values(), x > 2)


def test_archives_that_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x=np.array([{}, None], object))
    with pytest.raises(ValueError, match="not of numbers"):
        read_npz(path)
    np.savez_compressed(path, x=np.zeros(100_000))
    with pytest.raises(ValueError, match="unpacks to more than 1000 bytes"):
        read_npz(path, most_bytes=1000)
    with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        for _ in range(2):
            archive.writestr("x.npy", b"")
    with pytest.raises(ValueError, match="stands twice"):
        read_npz(path)
    path.write_bytes(b"PK\3\4 but no archive")
    with pytest.raises(ValueError, match=r"a\.npz: "):
        read_npz(path)
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (2**60,)})
    with pytest.raises(ValueError, match=r"shape is|bytes, here are 0"):
        read_npy(file.getvalue())
    np.savez(path, **{"x": np.zeros(3, np.uint16), "x.dtype": np.array("float32")})
    with pytest.raises(ValueError, match="uint16 should be float32"):
        read_npz(path)


def test_json_without_end_or_twice():
    assert strict_json(b'{"a": [1, 2.5, null]}') == {"a": [1, 2.5, None]}
    for text in (b"{", b'{"a": 1, "a": 1}', b"\xff", b"[" * 10**6):
        with pytest.raises(ValueError, match="JSON"):
            strict_json(text)
