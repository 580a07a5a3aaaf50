"""Read and write safetensors files: eight bytes with the length of a header, the header in JSON, then numbers.

The reader takes nothing on trust: every length, type, shape and offset is compared with what is there, and whatever is wrong is
one `ValueError`. The format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from refattn.testing.bits import NAMED_BY_TAG, Tensor, from_bytes, named_kind, size_in_bytes

LARGEST_HEADER = 100_000_000
"""As in the format's own implementation."""
METADATA = "__metadata__"


class Place(NamedTuple):
    """Where a tensor stands in a file: its bytes from `start` to `end`."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file by name.

    Parameters
    ----------
    path : str or Path
        A safetensors file.

    Returns
    -------
    dict of str to Tensor
        In the order of the header.

    Raises
    ------
    ValueError
        Where the file is not what the format says.
    """
    data = Path(path).read_bytes()
    try:
        return {name: from_bytes(p.dtype, p.shape, data[p.start : p.end]) for name, p in places(data).items()}
    except ValueError as error:
        raise ValueError(f"{Path(path).name}: {error}") from None


def places(data: bytes) -> dict[str, Place]:
    """Where each tensor stands; ValueError where the header is wrong."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(len(data) - 8, LARGEST_HEADER):
        raise ValueError(f"the header should have {length} bytes, the file has {len(data)}")
    header, begin = strict_json(data[8 : 8 + length]), 8 + length
    if not isinstance(header, dict) or not data[8:].startswith(b"{"):
        raise ValueError("the header is no object")
    metadata = header.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(x, str) for x in metadata.values()):
        raise ValueError(f"{METADATA} is not from text to text")
    found = {name: _place(name, entry, begin) for name, entry in header.items()}
    reached = begin
    for place in sorted(found.values(), key=lambda p: (p.start, p.end)):
        if place.start != reached:
            raise ValueError(f"tensors {'overlap' if place.start < reached else 'leave a gap'} at byte {min(place.start, reached)}")
        reached = place.end
    if reached != len(data):
        raise ValueError(f"tensors end at byte {reached}, the file at {len(data)}")
    return found


def _place(name: str, entry: Any, begin: int) -> Place:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name[:80]!r} has not dtype, shape and data_offsets")
    tag, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(tag, str) or tag not in NAMED_BY_TAG:
        raise ValueError(f"{name[:80]!r}: dtype is {str(tag)[:80]!r}, but must be one of {', '.join(NAMED_BY_TAG)}")
    size = size_in_bytes(NAMED_BY_TAG[tag], shape)
    if not isinstance(offsets, list) or len(offsets) != 2 or any(type(n) is not int or n < 0 for n in offsets):
        raise ValueError(f"{name[:80]!r}: data_offsets is {str(offsets)[:80]}, but must be two whole numbers from 0")
    if offsets[1] - offsets[0] != size:
        raise ValueError(f"{name[:80]!r}: data_offsets are {offsets[1] - offsets[0]} bytes apart, dtype and shape need {size}")
    return Place(NAMED_BY_TAG[tag], tuple(shape), begin + offsets[0], begin + offsets[1])


def strict_json(data: bytes) -> Any:
    """A JSON text in UTF-8 without repeated names; ValueError for anything else."""
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_distinct)
    except RecursionError:
        raise ValueError("the JSON text is nested too deep") from None
    except ValueError as error:
        raise ValueError(f"no JSON text: {str(error)[:120]}") from None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a name stands twice")
    return made


def write_safetensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> dict[str, Place]:
    """Write tensors; the same ones give the same bytes.

    Parameters
    ----------
    path : str or Path
        Where to.
    tensors : mapping of str to Tensor
        What; see `refattn.testing.bits.stored`.
    metadata : mapping of str to str or None, optional
        Text that goes into the header.

    Returns
    -------
    dict of str to Place
        Where each stands in the file.
    """
    header: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    # numbers of eight bytes first: then every tensor begins where its type may, as readers that map the file into memory need
    ordered = sorted(tensors.items(), key=lambda item: -named_kind(item[1].dtype).size)
    reached, chunks = 0, []
    for name, x in ordered:
        if name == METADATA:
            raise ValueError(f"a tensor is named {METADATA}")
        chunks.append(x.tobytes())
        offsets = [reached, reached + len(chunks[-1])]
        header[name] = {"dtype": named_kind(x.dtype).tag, "shape": list(x.shape), "data_offsets": offsets}
        reached = offsets[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    data = b"".join([len(text).to_bytes(8, "little"), text, *chunks])
    Path(path).write_bytes(data)
    return places(data)
