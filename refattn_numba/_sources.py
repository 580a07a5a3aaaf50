"""What decides a kernel's code: the text of its module, and of all in this package that it imports, directly or not."""

from __future__ import annotations

import re
from collections.abc import Container
from functools import cache
from hashlib import blake2b
from pathlib import Path

PACKAGE = __package__ or ""
ROOT = Path(__file__).parent
IMPORTED = re.compile(rf"^[ \t]*(?:from ({PACKAGE}[\w.]*) import (\([^)]*\)|.*)|import ({PACKAGE}[\w.]*))", re.MULTILINE)


def texts(*modules: str, without: Container[str] = ()) -> dict[str, str]:
    """Of each module its text, by name; `without` some, and what they alone import."""
    found: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        if (name := waiting.pop()) in found or name in without or (text := _text(name)) is None:
            continue
        found[name] = text
        waiting += _imported(name)
    return found


@cache
def digest(module: str) -> str:
    """A hash of them."""
    return joined(texts(module))


def joined(found: dict[str, str]) -> str:
    """One hash of several modules' texts."""
    return _hash("\0".join(f"{name}\0{_hash(text)}" for name, text in sorted(found.items())))


@cache
def _hash(text: str) -> str:
    """Of a text, which many modules may import, once."""
    return blake2b(text.encode(), digest_size=16).hexdigest()


@cache
def _imported(module: str) -> tuple[str, ...]:
    """Names of modules, and of what is imported from packages, which may be modules or not."""
    found = [part for names in IMPORTED.findall(_text(module) or "") for part in _named(*names)]
    return tuple(dict.fromkeys(found))


def _named(package: str, members: str, whole: str) -> list[str]:
    members = re.sub(r"#.*", "", members).strip("()")
    return [whole] if whole else [package, *(f"{package}.{member.split()[0]}" for member in members.split(",") if member.strip())]


@cache
def _text(module: str) -> str | None:
    """Of a module, or of a package's `__init__`; None where there is no such file."""
    place = ROOT.joinpath(*module.split(".")[1:])
    for path in (place.with_suffix(".py"), place / "__init__.py"):
        if path.is_file():
            return path.read_text(encoding="utf-8")
    return None
