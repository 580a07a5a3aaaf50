"""The format's own implementation reads what is written here, and writes what is read here."""

from __future__ import annotations

import numpy as np
import pytest

from refattn.testing import read_safetensors, write_safetensors
from refattn.testing.bits import KINDS, stored

library = pytest.importorskip("safetensors")
from safetensors.numpy import save_file  # noqa: E402


def test_it_reads_every_type(tmp_path):
    truth = stored(np.array([[True, False], [False, True]]))
    tensors = {name: truth if name == "bool" else stored(np.arange(4.0).reshape(2, 2), name) for name in KINDS}
    write_safetensors(tmp_path / "x.safetensors", tensors, {"by": "refattn"})
    with library.safe_open(tmp_path / "x.safetensors", "numpy") as file:
        assert set(file.keys()) == set(KINDS)
        assert file.metadata() == {"by": "refattn"}
        for name, x in tensors.items():
            assert (file.get_slice(name).get_dtype(), file.get_slice(name).get_shape()) == (KINDS[name].tag, [2, 2])
            if not name.startswith("float8"):  # of which its NumPy side has no type
                np.testing.assert_array_equal(np.asarray(file.get_tensor(name)).astype(float), x.values().astype(float))


def test_what_it_writes_is_read(tmp_path):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = {n: np.arange(6).reshape(2, 3).astype(t) for n, t in (("a", np.float16), ("b", ml_dtypes.bfloat16), ("c", np.int64), ("d", bool))}
    save_file(x, tmp_path / "x.safetensors", metadata={"format": "np"})
    found = read_safetensors(tmp_path / "x.safetensors")
    assert {n: t.dtype for n, t in found.items()} == {n: a.dtype.name for n, a in x.items()}
    for name, a in x.items():
        np.testing.assert_array_equal(found[name].values().astype(float), a.astype(float))
