"""Records of arrays in ``.npz`` files, one entry for each leaf, by its dotted path."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from refattn._core import tree

T = TypeVar("T")

UNREADABLE = (zipfile.BadZipFile, zlib.error, tokenize.TokenError, EOFError, OSError, RuntimeError, ValueError)
"""What reading a damaged, encrypted or hostile archive raises; pickled objects are never read."""


def save(path: str | Path, record: Any, dtype: Any = None) -> None:
    """Write a record; real leaves are rounded to `dtype` where one is given."""
    rounded = {name: x.astype(dtype) if dtype and x.dtype.kind == "f" else x for name, x in tree.leaves(record)}
    with Path(path).open("wb") as file:  # NumPy would add a suffix to a name without one
        np.savez_compressed(file, **cast("Mapping[str, Any]", rounded))


def load(path: str | Path, like: T) -> T:
    """Read a record with the structure, shapes and precision of `like`; ValueError where the file holds another, or is damaged.

    A leaf of `like` with no rows (shape ``(0, ...)``) takes as many as the file has.
    """
    with Path(path).open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise ValueError(f"{path} is no .npz file")
        file.seek(0)
        try:
            with np.load(file, allow_pickle=False) as arrays:
                found = dict(arrays)
        except UNREADABLE as error:
            raise ValueError(f"{path} cannot be read: {error}") from None
    wanted = dict(tree.leaves(like))
    if found.keys() != wanted.keys():
        lacking, unknown = (_some(names) for names in (wanted.keys() - found.keys(), found.keys() - wanted.keys()))
        raise ValueError(f"{path} holds another record: it lacks {lacking}, and has {unknown} besides")
    made = like
    for name, x in wanted.items():
        if not isinstance(found[name], np.ndarray) or not np.can_cast(found[name].dtype, x.dtype, "same_kind"):
            raise ValueError(f"{path}: {name} holds {getattr(found[name], 'dtype', 'no array')}, but should hold {x.dtype}")
        if found[name].ndim != x.ndim or found[name].shape[x.size == 0 :] != x.shape[x.size == 0 :]:
            raise ValueError(f"{path}: {name} has shape {found[name].shape}, but should have {x.shape}")
        made = tree.replace(made, name, found[name].astype(x.dtype))
    return made


def _some(names: Collection[str]) -> str:
    """The first of these, and how many there are besides."""
    if not names:
        return "nothing"
    return f"{min(names)!r}{f' and {len(names) - 1} more' if len(names) > 1 else ''}"
