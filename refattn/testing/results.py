"""What a program has left in its folder of results."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refattn.testing.bits import Tensor, from_bytes, size_in_bytes, stored
from refattn.testing.manifest import INDEX, inside
from refattn.testing.npz import read_npy, read_npz
from refattn.testing.safetensors import read_safetensors

SPACE = 1 << 20
"""Bytes that headers and an index may have."""


class CommandError(RuntimeError):
    """A program has not done what it was run for."""


@dataclass(frozen=True)
class Results:
    """Tensors by name; in place of one that cannot be read, why."""

    found: Mapping[str, Tensor | str]
    wanted: Mapping[str, Mapping[str, Any]]

    def needed(self, name: str) -> Tensor:
        """A tensor that must be there."""
        x = self.optional(name)
        if x is None:
            want = self.wanted[name]
            size = size_in_bytes(want["dtype"], want["shape"])
            raise CommandError(f"wrote no {name}: expected {name}.bin of {size} bytes ({want['dtype']}, {want['shape']})")
        return x

    def optional(self, name: str) -> Tensor | None:
        """A tensor, or None where nothing of this name was written."""
        x = self.found.get(name)
        if isinstance(x, str):
            raise CommandError(x)
        return x


def read_results(out: Path, wanted: Sequence[Mapping[str, Any]]) -> Results:
    """Read ``index.txt``, or else all of NAME.bin, NAME.npy, ``*.safetensors`` and ``*.npz``.

    Raises
    ------
    CommandError
        Where a file of several tensors cannot be read, or there is more than results can be.
    """
    asked = {w["name"]: w for w in wanted}
    limit = SPACE + sum(64 + 8 * math.prod(w["shape"]) for w in wanted)
    files = {p.name: p for p in sorted(out.iterdir()) if p.is_file()}
    if (size := sum(p.stat().st_size for p in files.values())) > limit:
        raise CommandError(f"wrote {size} bytes, but results have at most {limit}")
    try:
        if INDEX in files:
            return Results(_indexed(out), asked)
        found: dict[str, Tensor | str] = {}
        for name, path in files.items():
            if name.endswith(".safetensors"):
                found.update(read_safetensors(path))
            elif name.endswith(".npz"):
                found.update(read_npz(path, most_bytes=limit))
    except ValueError as error:
        raise CommandError(str(error)) from None
    for name, want in asked.items():
        if f"{name}.bin" in files:
            found[name] = _read(files[f"{name}.bin"], lambda data, w=want: from_bytes(w["dtype"], w["shape"], data))
        elif f"{name}.npy" in files:
            found[name] = _read(files[f"{name}.npy"], lambda data: stored(read_npy(data)))
    return Results(found, asked)


def _read(path: Path, parse: Callable[[bytes], Tensor]) -> Tensor | str:
    try:
        return parse(path.read_bytes())
    except ValueError as error:
        return f"{path.name}: {error}"


def _indexed(out: Path) -> dict[str, Tensor | str]:
    """What the lines ``tensor ROLE NAME DTYPE FILE OFFSET NDIM DIMS...`` of an index name."""
    found: dict[str, Tensor | str] = {}
    for line in (out / INDEX).read_text(encoding="utf-8").splitlines():
        first, *words = line.split()[:40] or [""]
        if first != "tensor":
            continue
        if len(words) < 6 or not all(w.isdecimal() for w in words[4:]) or int(words[5]) != len(words) - 6:
            raise ValueError(f"{INDEX}: {line[:80]!r} is no tensor ROLE NAME DTYPE FILE OFFSET NDIM DIMS...")
        _, name, dtype, file, offset, _, *shape = words
        size, begin = size_in_bytes(dtype, [*map(int, shape)]), int(offset)
        path = inside(out, file)
        if begin + size > path.stat().st_size:
            raise ValueError(f"{INDEX}: {name[:80]} ends at byte {begin + size} of {file[:80]}, which has {path.stat().st_size}")
        with path.open("rb") as data:
            data.seek(begin)
            found[name] = from_bytes(dtype, [*map(int, shape)], data.read(size))
    return found
