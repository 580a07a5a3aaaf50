"""Folders of one call: ``manifest.json``, the same as lines of text in ``index.txt``, and the numbers.

Golden files have this form, and so has what ``refattn check --command`` hands to a program, except that there the expected
results are left out. `docs/golden.md` describes it for those who read it from another language.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from refattn.testing.bits import Tensor, from_bytes, named_kind, size_in_bytes
from refattn.testing.npz import read_npz, write_npz
from refattn.testing.safetensors import read_safetensors, strict_json, write_safetensors

FORMAT, VERSION = "refattn-case", 1
MANIFEST, INDEX = "manifest.json", "index.txt"
LARGEST_MANIFEST = 100_000_000
Storage: TypeAlias = Literal["bin", "safetensors", "npz"]
FLAT_LIST = re.compile(r"\[\n[^\[\]{}\"]+\n *\]")
STORAGES = ("bin", "safetensors", "npz")
GROUPS = {"argument": "inputs", "cotangent": "inputs", "output": "expected", "gradient": "expected", "budget": "expected"}
"""For each role of a tensor, the part of the folder in which it stands: a program reads the inputs and writes the expected."""


@dataclass(frozen=True)
class Item:
    """One tensor of a case.

    Attributes
    ----------
    role : str
        A key of `GROUPS`.
    name : str
        Of an argument or an output, or ``d_`` and that; of a budget, what it is the budget of and ``.budget``.
    tensor : Tensor
        The numbers.
    facts : dict
        What else the manifest says of it.
    """

    role: str
    name: str
    tensor: Tensor
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CaseFolder:
    """A case that was read.

    Attributes
    ----------
    manifest : dict
        All that is not numbers.
    inputs, expected : dict of str to Tensor
        The tensors by name: arguments and cotangents; outputs, gradients and budgets.
    """

    manifest: dict[str, Any]
    inputs: dict[str, Tensor]
    expected: dict[str, Tensor]


def write_case(folder: Path, about: Mapping[str, Any], items: Sequence[Item], storage: Storage) -> None:
    """Write a case into a folder that is empty or does not exist.

    Parameters
    ----------
    folder : Path
        Where to.
    about : mapping
        What the manifest says besides the tensors; ``options`` and ``wanted`` are repeated in the index.
    items : sequence of Item
        The tensors.
    storage : {"bin", "safetensors", "npz"}
        Raw numbers with a file for each tensor, or one file for the inputs and one for what is expected.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for group in dict.fromkeys(GROUPS.values()):
        own = {i.name: i for i in items if GROUPS[i.role] == group}
        where = _write_group(folder, group, {name: i.tensor for name, i in own.items()}, storage)
        entries += [_entry(i, *where[name]) for name, i in own.items()]
    files = {f: sha256((folder / f).read_bytes()) for f in sorted({e["file"] for e in entries})}
    manifest = {"format": FORMAT, "format_version": VERSION, **about, "storage": storage, "tensors": entries}
    (folder / INDEX).write_text(index_text(manifest), encoding="utf-8", newline="\n")
    files[INDEX] = sha256((folder / INDEX).read_bytes())
    write_json(folder / MANIFEST, {**manifest, "files": files})


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """The same value, the same bytes; a list of numbers on one line."""
    text = FLAT_LIST.sub(lambda m: " ".join(m[0].split()), json.dumps(value, indent=1, allow_nan=False))
    path.write_text(text + "\n", encoding="utf-8", newline="\n")


def sha256(data: bytes) -> str:
    """The digest in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def _write_group(folder: Path, group: str, tensors: Mapping[str, Tensor], storage: Storage) -> dict[str, tuple[str, int | None]]:
    """Write what belongs together; for each tensor its file and where in it its numbers begin."""
    if not tensors:
        return {}
    if storage == "bin":
        (folder / group).mkdir(exist_ok=True)
        for name, x in tensors.items():
            (folder / group / f"{name}.bin").write_bytes(x.tobytes())
        return {name: (f"{group}/{name}.bin", 0) for name in tensors}
    file = f"{group}.{storage}"
    if storage == "npz":
        write_npz(folder / file, tensors)
        return dict.fromkeys(tensors, (file, None))
    return {name: (file, place.start) for name, place in write_safetensors(folder / file, tensors).items()}


def _entry(item: Item, file: str, offset: int | None) -> dict[str, Any]:
    x = item.tensor
    stands = {"file": file, "offset": offset, "bytes": x.bits.nbytes, "sha256": sha256(x.tobytes())}
    return {"role": item.role, "name": item.name, "dtype": x.dtype, "shape": list(x.shape), **stands, **item.facts}


def index_text(manifest: Mapping[str, Any]) -> str:
    """The manifest as lines of words, for programs that read no JSON."""
    lines = [(FORMAT, VERSION), *((key, manifest[key]) for key in ("mechanism", "case", "dtype") if key in manifest)]
    lines += [("option", name, *_words(x)) for name, x in manifest.get("options", {}).items()]
    for t in manifest["tensors"]:
        place = (t["file"], "-" if t["offset"] is None else t["offset"])
        lines.append(("tensor", t["role"], t["name"], t["dtype"], *place, len(t["shape"]), *t["shape"]))
    lines += [("want", w["role"], w["name"], w["dtype"], len(w["shape"]), *w["shape"]) for w in manifest.get("wanted", ())]
    return "".join(" ".join(map(str, line)) + "\n" for line in lines)


def _words(x: Any) -> Iterable[Any]:
    """An option in words: nested tuples flat, truth as 1 and 0."""
    if isinstance(x, (list, tuple)):
        return [word for part in x for word in _words(part)]
    return ["none" if x is None else int(x) if isinstance(x, bool) else x]


def read_case(folder: str | Path) -> CaseFolder:
    """Read a case, and compare every tensor with its SHA-256.

    Parameters
    ----------
    folder : str or Path
        That of a manifest.

    Returns
    -------
    CaseFolder
        What it holds.

    Raises
    ------
    ValueError
        Where the folder is not what its manifest says.
    """
    folder = Path(folder)
    manifest = read_manifest(folder, FORMAT)
    found: dict[str, dict[str, Tensor]] = {"inputs": {}, "expected": {}}
    files: dict[Any, dict[str, Tensor]] = {}
    for entry in _tensor_entries(manifest):
        group, name = found[GROUPS[entry["role"]]], entry["name"]
        if name in group:
            raise ValueError(f"{MANIFEST}: {name!r} stands twice")
        path = inside(folder, entry["file"])
        if path.suffix == ".bin":
            group[name] = _slice(path, entry)
        else:
            if path not in files:
                files[path] = {".npz": read_npz, ".safetensors": read_safetensors}[path.suffix](path)
            group[name] = _held(files[path], entry)
        if sha256(group[name].tobytes()) != entry["sha256"]:
            raise ValueError(f"{entry['file']}: {name} has not the SHA-256 of the manifest")
    return CaseFolder(manifest, found["inputs"], found["expected"])


def read_manifest(folder: Path, *formats: str) -> dict[str, Any]:
    """A manifest of one of these formats; ValueError for anything else."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(f"{folder} has no {MANIFEST}")
    if path.stat().st_size > LARGEST_MANIFEST:
        raise ValueError(f"{path} has more than {LARGEST_MANIFEST} bytes")
    try:
        manifest = strict_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") not in formats:
        raise ValueError(f"{path}: format is not {' or '.join(formats)}")
    if type(manifest.get("format_version")) is not int or manifest["format_version"] != VERSION:
        raise ValueError(f"{path}: format_version is {str(manifest.get('format_version'))[:40]}, but must be {VERSION}")
    return manifest


def _tensor_entries(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    entries = manifest.get("tensors")
    if not isinstance(entries, list):
        raise ValueError(f"{MANIFEST}: tensors is no list")
    for e in entries:
        texts = isinstance(e, dict) and all(isinstance(e.get(k), str) for k in ("role", "name", "dtype", "file", "sha256"))
        if not texts or e["role"] not in GROUPS or not isinstance(e.get("shape"), list):
            raise ValueError(f"{MANIFEST}: a tensor is {str(e)[:120]}")
        if Path(e["file"]).suffix not in {f".{s}" for s in STORAGES}:
            raise ValueError(f"{MANIFEST}: a tensor's file is {e['file'][:80]!r}, but must be one of {', '.join(STORAGES)}")
        size_in_bytes(named_kind(e["dtype"]).name, e["shape"])
    return entries


def inside(folder: Path, file: str) -> Path:
    """A file within a folder; ValueError where its name or a link leads out."""
    path = folder / file
    try:
        within, there = path.resolve().is_relative_to(folder.resolve()), path.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle, names that no file can have
        raise ValueError(f"{file[:80]!r} is not within {folder}: {error}") from None
    if not within:
        raise ValueError(f"{file[:80]!r} is not within {folder}")
    if not there:
        raise ValueError(f"{file[:80]!r} in {folder} is no file")
    return path


def _slice(path: Path, entry: Mapping[str, Any]) -> Tensor:
    offset, size = entry.get("offset"), size_in_bytes(entry["dtype"], entry["shape"])
    if type(offset) is not int or not 0 <= offset <= path.stat().st_size - size:
        raise ValueError(f"{path} has {path.stat().st_size} bytes: {entry['name'][:80]} is not within")
    with path.open("rb") as file:
        file.seek(offset)
        return from_bytes(entry["dtype"], entry["shape"], file.read(size))


def _held(tensors: Mapping[str, Tensor], entry: Mapping[str, Any]) -> Tensor:
    x = tensors.get(entry["name"])
    if x is None or (x.dtype, list(x.shape)) != (entry["dtype"], entry["shape"]):
        raise ValueError(f"{entry['file'][:80]} holds no {entry['name'][:80]} of {entry['dtype']} and shape {entry['shape']}")
    return x
