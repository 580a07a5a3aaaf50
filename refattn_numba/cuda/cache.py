"""Compiled kernels in files, so that each is compiled once on a machine, or on another one.

A file is one line of JSON, with a hash of what follows, and the object itself. Its name holds what the code depends on: the text of the
modules that make it, its constants, the architecture, and the versions of the compiler. Files are looked for in two folders. One is only
read: what was compiled elsewhere, by whatever compiler, so that a machine without one runs too. The other belongs to the user.

REFATTN_PREBUILT
    The folder that is only read; none where it is not set.
REFATTN_CUBINS
    The user's; default: ``refattn/cubins`` in the folder where the system keeps caches.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refattn_numba import _sources

if TYPE_CHECKING:
    from refattn_numba.cuda.kernel import Cubin, Kernel

LAYOUT = "refattn cubin 1"
FACTS = ("entry", "architecture", "registers", "shared_bytes", "stack_bytes")
DIGITS = 24
COMPILER = f"{__package__}.toolchain"


def folder() -> Path:
    """Where the user's compiled kernels are kept."""
    given = os.environ.get("REFATTN_CUBINS")
    if given:
        return Path(given)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "refattn" / "cubins"


def prebuilt_folder() -> Path | None:
    """Where kernels lie that were compiled elsewhere."""
    given = os.environ.get("REFATTN_PREBUILT")
    return Path(given) if given else None


def cubin_of(kernel: Kernel, architecture: str) -> Cubin:
    """A compiled kernel: out of a file where one holds it, else from the compiler, and then kept in a file.

    Raises
    ------
    ImportError
        Where no file holds it and the compiler is not installed.
    """
    source = source_of(kernel)
    elsewhere = prebuilt_folder()
    found = None if elsewhere is None else read(elsewhere / file_name(kernel, architecture, source))
    if found is not None:
        return found
    from refattn_numba.cuda import toolchain  # noqa: PLC0415  # the compiler may not be installed

    path = folder() / file_name(kernel, architecture, source, toolchain.versions())
    found = read(path)
    if found is None:
        found = toolchain.compile(kernel, architecture)
        with suppress(OSError):  # a folder that cannot be written costs the next process a compilation
            write(path, found)
    return found


def build(kernels: Iterable[Kernel], architectures: Iterable[str], into: Path, jobs: int = 1) -> list[Path]:
    """Compile kernels into a folder that can be carried to another machine, in some processes; needs no GPU."""
    wanted = [(kernel, architecture, into) for kernel, architecture in itertools.product(kernels, architectures)]
    if jobs == 1:
        return [_built(*each) for each in wanted]
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as workers:
        return list(workers.map(_built, *zip(*wanted, strict=True)))


def _built(kernel: Kernel, architecture: str, into: Path) -> Path:
    from refattn_numba.cuda import toolchain  # noqa: PLC0415  # as above

    path = into / file_name(kernel, architecture, source_of(kernel))
    if read(path) is None:
        write(path, toolchain.compile(kernel, architecture))
    return path


@functools.cache
def digest_of(module: str) -> str:
    """A hash of the text of a kernel's module, of the compiler's, and of all that these import.

    The package itself is left out: it imports the host side for its users, and no kernel asks it for more than a module.
    """
    return _sources.joined(_sources.texts(module, COMPILER, without=(__package__,)))


def source_of(kernel: Kernel) -> str:
    """What decides a kernel's code besides the compiler; read as text, so that no compiler is needed to find a file."""
    module = kernel.builder.__module__
    facts = module, kernel.builder.__qualname__, kernel.config, kernel.parameters, kernel.blocks_per_processor
    return f"{digest_of(module)} {facts!r}"


def file_name(kernel: Kernel, architecture: str, source: str, versions: Iterable[str] = ()) -> str:
    """The name of the file that holds a kernel, compiled for an architecture; without versions, by any compiler."""
    facts = [LAYOUT, kernel.name, architecture, repr((kernel.threads, kernel.shared_bytes)), source, *versions]
    digest = hashlib.sha256("\0".join(facts).encode()).hexdigest()
    return f"{kernel.name}-{architecture}-{digest[:DIGITS]}.cubin"


def write(path: Path, cubin: Cubin) -> None:
    """Keep a compiled kernel; another process sees the whole file or none."""
    head = {"layout": LAYOUT, "sha256": hashlib.sha256(cubin.code).hexdigest(), **{name: getattr(cubin, name) for name in FACTS}}
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(json.dumps(head).encode() + b"\n" + cubin.code)
        Path(temporary).chmod(0o644)  # others may read what is carried to them
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read(path: Path) -> Cubin | None:
    """What a file holds; None where there is none, or where it is not as it was written."""
    from refattn_numba.cuda.kernel import Cubin  # noqa: PLC0415  # as above

    try:
        line, _, code = path.read_bytes().partition(b"\n")
        head: dict[str, Any] = json.loads(line)
        if head["layout"] != LAYOUT or head["sha256"] != hashlib.sha256(code).hexdigest():
            return None
        return Cubin(code, **{name: head[name] for name in FACTS})
    except (OSError, ValueError, KeyError, TypeError):
        return None
