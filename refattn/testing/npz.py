"""Read and write ``.npz`` archives without pickle: types that NumPy has not are their bits, and their name stands beside them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refattn.testing.bits import KINDS, Tensor, from_bytes, named_kind, size_in_bytes, stored

LARGEST_HEADER = 10_000
UNIX = 3
"""The system that an archive names as its own: the same everywhere."""
DEFLATE = 1032
"""How many bytes one byte of a compressed archive can stand for, by the format: 258 for two bits."""
ENDING, TYPE = ".npy", ".dtype"
EPOCH = (1980, 1, 1, 0, 0, 0)
"""The oldest date of a zip archive: with the time of writing, no two would be equal."""


def write_npz(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as an archive that `numpy.load` reads; the same tensors give the same bytes.

    Parameters
    ----------
    path : str or Path
        Where to.
    tensors : mapping of str to Tensor
        What. A bfloat16 or float8 tensor ``x`` is an array of unsigned integers, beside which ``x.dtype`` is its type's name.
    """
    with zipfile.ZipFile(path, "w") as archive:
        for name, x in tensors.items():
            _write(archive, name, x.bits)
            if named_kind(x.dtype).is_real and x.bits.dtype.kind == "u":
                _write(archive, name + TYPE, np.array(x.dtype))


def _write(archive: zipfile.ZipFile, name: str, x: np.ndarray[Any, Any]) -> None:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, x, allow_pickle=False)
    info = zipfile.ZipInfo(name + ENDING, EPOCH)
    info.create_system = UNIX
    archive.writestr(info, buffer.getvalue())


def read_npz(path: str | Path, *, most_bytes: int | None = None) -> dict[str, Tensor]:
    """The tensors of an archive by name.

    Parameters
    ----------
    path : str or Path
        An archive of `write_npz`, `numpy.savez` or `numpy.savez_compressed`.
    most_bytes : int or None, optional
        How much it may unpack to; by default as much as an honest archive of its size can.

    Returns
    -------
    dict of str to Tensor
        In the order of the archive.

    Raises
    ------
    ValueError
        Where it is no such archive, holds objects, or is larger than it may be.
    """
    data = Path(path).read_bytes()
    limit = DEFLATE * len(data) if most_bytes is None else most_bytes
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
            if sum(i.file_size for i in infos) > limit:
                raise ValueError(f"it unpacks to more than {limit} bytes")
            if len({i.filename for i in infos}) < len(infos):
                raise ValueError("a name stands twice")
            arrays = {i.filename.removesuffix(ENDING): read_npy(archive.read(i)) for i in infos}
    except Exception as error:  # whatever a parser says of a file that somebody has made to break it
        raise ValueError(f"{Path(path).name}: {str(error)[:160] or type(error).__name__}") from None
    names = {n.removesuffix(TYPE): str(x) for n, x in arrays.items() if n.endswith(TYPE) and x.dtype.kind == "U" and x.ndim == 0}
    try:
        return {n: _typed(x, names.get(n)) for n, x in arrays.items() if not n.endswith(TYPE)}
    except ValueError as error:
        raise ValueError(f"{Path(path).name}: {error}") from None


def _typed(x: np.ndarray[Any, Any], name: str | None) -> Tensor:
    if name is None:
        return stored(x)
    if x.dtype.kind not in "uV" or x.dtype.itemsize != named_kind(name).size:
        raise ValueError(f"an array of {x.dtype} should be {name}")
    return from_bytes(name, x.shape, x.tobytes())


def read_npy(data: bytes) -> np.ndarray[Any, Any]:
    """An array from the bytes of a ``.npy`` file; ValueError where they are not one, or hold objects."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = read(file, max_header_size=LARGEST_HEADER)
    except Exception as error:
        raise ValueError(f"no .npy file: {str(error)[:120] or type(error).__name__}") from None
    rest = data[file.tell() :]
    if dtype.kind == "U" and shape == () and 0 < dtype.itemsize == len(rest) <= 4 * max(map(len, KINDS)):
        return np.frombuffer(rest, dtype).reshape(())
    if dtype.hasobject or dtype.names is not None or dtype.kind not in "biufV" or dtype.shape:
        raise ValueError(f"an array of {str(dtype)[:80]} is not of numbers")
    count = size_in_bytes("uint8", tuple(shape))
    if count * dtype.itemsize != len(rest):
        raise ValueError(f"{count} numbers of {dtype} have {count * dtype.itemsize} bytes, here are {len(rest)}")
    return np.frombuffer(rest, dtype).reshape(shape, order="F" if by_columns else "C")
