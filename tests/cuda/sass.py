"""Reads machine code: which instructions a cubin holds, as cuobjdump of the CUDA toolkit (13) prints them."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*(?:\.\w+)*)")


def folder() -> Path | None:
    """Where the tool is: in the path, or in a wheel (nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm)."""
    if found := shutil.which("cuobjdump"):
        return Path(found).parent
    spec = importlib.util.find_spec("nvidia")
    places = [Path(p) / "cu13" / "bin" for p in (spec.submodule_search_locations or ())] if spec else []
    return next((p for p in places if (p / "cuobjdump").exists()), None)


def instructions(code: bytes) -> Counter[str]:
    """How often each instruction occurs, without its modifiers."""
    return counted(text_of(code))


def counted(text: str) -> Counter[str]:
    """The same of what is printed."""
    return Counter(name.partition(".")[0] for name in _INSTRUCTION.findall(text))


def listing(code: bytes) -> list[str]:
    """The instructions in order, with their modifiers."""
    return _INSTRUCTION.findall(text_of(code))


def registers(text: str) -> int:
    """How many the instructions need, as the highest number among them says."""
    return 1 + max(int(n) for n in re.findall(r"\bR(\d+)\b", text))


def text_of(code: bytes) -> str:
    """All that is printed."""
    where = folder()
    if where is None:
        raise FileNotFoundError("cuobjdump")
    with tempfile.TemporaryDirectory() as made:
        path = Path(made) / "kernel.cubin"
        path.write_bytes(code)
        environment = {**os.environ, "PATH": f"{where}{os.pathsep}{os.environ.get('PATH', '')}"}
        told = subprocess.run(["cuobjdump", "-sass", str(path)], capture_output=True, text=True, check=True, env=environment)
    return told.stdout
