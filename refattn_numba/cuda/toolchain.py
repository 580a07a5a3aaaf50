"""From a kernel to an object for one architecture, with neither a GPU nor a driver: all that knows numba-cuda's compiler."""

# pyright: reportAttributeAccessIssue=false, reportMissingImports=false, reportPrivateImportUsage=false

from __future__ import annotations

import re
import struct
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from threading import Lock
from types import SimpleNamespace
from typing import Any

import numpy as np

from refattn_numba.cuda.kernel import Cubin, Kernel

TESTED = "0.30"
"""The numba-cuda whose compiler this calls, which is not its public interface."""

PARTS = "numba-cuda", "numba", "llvmlite", "nvidia-nvvm", "nvidia-nvjitlink"
"""What decides the code, apart from the source."""

_ONE_AT_A_TIME = Lock()


@cache
def versions() -> tuple[str, ...]:
    """Names and versions of the tools that make code.

    Raises
    ------
    ImportError
        Where numba-cuda is absent, or another version than this was tested with.
    """
    found = {name: _version(name) for name in PARTS}
    installed = found["numba-cuda"]
    if not (installed or "").startswith(f"{TESTED}."):
        raise ImportError(
            f"numba-cuda is {installed or 'not installed'}, but must be {TESTED}.*: pip install 'numba-cuda[cu13]=={TESTED}.*'",
            name="numba_cuda",
        )
    return tuple(f"{name} {found[name]}" for name in PARTS)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def compile(kernel: Kernel, architecture: str) -> Cubin:  # noqa: A001  # the word for it
    """Machine code of a kernel.

    Parameters
    ----------
    kernel : Kernel
        What to compile.
    architecture : str
        Such as ``"sm_80"``, or ``"sm_90a"`` for what later cards do not run.

    Returns
    -------
    Cubin
        Its registers and memory are read from the code.

    Raises
    ------
    ImportError
        Where numba-cuda is absent, or another version than this was tested with.
    ValueError
        Where the architecture is no such name.
    """
    return compile_with_notes(kernel, architecture)[0]


def compile_with_notes(kernel: Kernel, architecture: str) -> tuple[Cubin, str]:
    """The same, and what the toolchain remarked on it: that it did not do what was meant, or did it slowly."""
    versions()
    found = re.fullmatch(r"sm_(\d+)(\d)([af]?)", architecture)
    if found is None:
        raise ValueError(f"architecture is {architecture!r}, but must be such as 'sm_80' or 'sm_90a'")
    major, minor = int(found[1]), int(found[2])
    if not hasattr(np, "row_stack"):  # removed in NumPy 2.5, which numba-cuda overloads as it is imported
        setattr(np, "row_stack", np.vstack)  # noqa: B010
    from numba.cuda import dispatcher, types  # noqa: PLC0415  # takes 0.3 s, and is an extra
    from numba.cuda.compiler import _compile_pyfunc_with_fixup  # noqa: PLC0415

    from refattn_numba.cuda.ptx import Compiled  # noqa: PLC0415

    of_numba: dict[str, Any] = {"pointer": types.int64, "int32": types.int32, "int64": types.int64, "float32": types.float32}
    function = kernel.builder(Compiled(), kernel.config)
    function.__name__ = function.__qualname__ = kernel.name
    asked, device = dispatcher.get_current_device, SimpleNamespace(compute_capability=(major, minor), id=0)
    with _ONE_AT_A_TIME:
        dispatcher.get_current_device = lambda: device  # which functions that kernels call ask for
        try:
            library, _ = _compile_pyfunc_with_fixup(
                function,
                types.void(*(of_numba[kind] for _, kind in kernel.parameters)),
                device=False,
                cc=(major, minor),
                abi="numba",
                launch_bounds=(kernel.threads, kernel.blocks_per_processor),
                lto=True,
            )
        finally:
            dispatcher.get_current_device = asked
    library._lto = True  # else ptxas ignores setmaxnreg
    library._nvvm_options.pop("gen-lto", None)
    target = (major, minor, found[3]) if found[3] else (major, minor)
    code = bytes(library.get_cubin(cc=target).code)
    made = Cubin(code, library._entry_name, architecture, *resources(code, library._entry_name))
    return made, library.get_linkerinfo(target)


def resources(code: bytes, entry: str) -> tuple[int, int, int]:
    """Registers of a thread, static shared memory of a block and stack of a thread, as the object (ELF) states them."""
    sections = _sections(code)
    content, found, i = sections[".nv.info"][0], {}, 0
    while i + 4 <= len(content):  # a format, an attribute, and a number or the size of what follows
        form, attribute, size = struct.unpack_from("<BBH", content, i)
        i += 4
        if form == _SIZED:
            if size == 8:  # of a function, and there is one
                found[attribute] = struct.unpack_from("<II", content, i)[1]
            i += size
    return found[_REGISTERS], sections.get(f".nv.shared.{entry}", (b"", 0))[1], found[_FRAME]


_SIZED, _REGISTERS, _FRAME = 0x04, 0x2F, 0x11


def _sections(code: bytes) -> dict[str, tuple[bytes, int]]:
    """Content and size of each section."""
    (start,) = struct.unpack_from("<Q", code, 0x28)
    size, count, names = struct.unpack_from("<HHH", code, 0x3A)
    headers = [struct.unpack_from("<IIQQQQIIQQ", code, start + i * size) for i in range(count)]
    text, nothing_stored = headers[names][4], 8

    def name(offset: int) -> str:
        return code[text + offset : code.index(b"\0", text + offset)].decode()

    return {name(h[0]): (b"" if h[1] == nothing_stored else code[h[4] : h[4] + h[5]], h[5]) for h in headers}
