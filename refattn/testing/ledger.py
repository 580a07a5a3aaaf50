"""A record of finished units, one line of JSON each, from which an interrupted sweep goes on.

The first line says what the results belong to: the package, the candidate and its options. Another candidate, or the same with
other bytes in its file, is refused. A last line without an end is what a crash leaves; it is cut off, and its unit done again.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from refattn.testing.report import Result
from refattn.testing.units import Unit

FORMAT = 1
NOT_FINITE = {"inf", "-inf", "nan"}
TEXTS = {f.name for f in dataclasses.fields(Result) if "str" in str(f.type) or f.name == "status"}


def result_of(stated: Mapping[str, Any]) -> Result:
    """The result that `Result.as_dict` has stated, after a way through JSON.

    Parameters
    ----------
    stated : mapping
        Its fields; others are passed over.

    Returns
    -------
    Result
        Equal to the one that was stated.
    """
    names = [f.name for f in dataclasses.fields(Result) if f.name in stated]
    return Result(**{n: _value(stated[n], text=n in TEXTS) for n in names})


def _value(x: Any, *, text: bool) -> Any:
    if isinstance(x, (list, tuple)):
        return tuple(_value(part, text=text) for part in x)
    return float(x) if isinstance(x, str) and not text and x in NOT_FINITE else x


class Ledger:
    """A file of finished units.

    Parameters
    ----------
    path : str or path
        Made where it is not there.
    about : mapping
        What its results belong to, for JSON; ValueError where the file's differs.
    """

    def __init__(self, path: str | os.PathLike[str], about: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.about = {"ledger": "refattn", "format": FORMAT, **about}
        self.done: dict[Unit, list[Result]] = {}
        kept = self._read() if self.path.exists() else 0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file: TextIO = self.path.open("a", encoding="utf-8", newline="\n")
        self.file.truncate(kept)
        if not kept:
            self._write(self.about)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def add(self, unit: Unit, results: list[Result]) -> None:
        """Write one unit's line, and hand it to the system."""
        self._write({"unit": unit._asdict(), "results": [r.as_dict() for r in results]})
        self.done[unit] = results

    def _write(self, line: Mapping[str, Any]) -> None:
        self.file.write(json.dumps(line, allow_nan=False) + "\n")
        self.file.flush()

    def _read(self) -> int:
        """Take in all whole lines; how many bytes they are."""
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        first, *lines = whole.decode("utf-8", "replace").removesuffix("\n").split("\n")
        if not whole and json.dumps(self.about).encode().startswith(content):  # torn while it was made
            return 0
        self._hold(_parsed(first))
        for number, line in enumerate(lines, 2):
            stated = _parsed(line)
            try:
                self.done[Unit(**stated["unit"])] = [result_of(r) for r in stated["results"]]
            except (KeyError, TypeError):
                raise ValueError(f"ledger {self.path}: line {number} is no unit and its results") from None
        return len(whole)

    def _hold(self, first: Mapping[str, Any]) -> None:
        """ValueError where the file belongs to something else."""
        if first.get("ledger") != "refattn":
            raise ValueError(f"ledger {self.path} is a file of something else: it does not begin with what a ledger belongs to")
        differing = [n for n in {**first, **self.about} if first.get(n) != self.about.get(n)]
        if differing:
            said = "; ".join(f"{n} is {self.about.get(n)!r}, but {first.get(n)!r} in the ledger" for n in differing)
            raise ValueError(f"ledger {self.path} belongs to another check: {said}. Name a new file, or remove this one")


def _parsed(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
