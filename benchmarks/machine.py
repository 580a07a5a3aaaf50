"""What the figures were measured on, in words."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("numpy", "numba", "torch", "onnxruntime", "jax")


def processor() -> str:
    """Its name, where the system tells."""
    listed = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in listed.read_text().splitlines() if "model name" in line] if listed.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def versions(packages: Sequence[str] = PACKAGES) -> str:
    """Of the contenders that are installed."""
    found = []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)
