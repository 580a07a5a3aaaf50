"""Compiled code that lies on disk is not taken for that of another source."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba")

import refattn
import refattn_numba
from refattn_numba._sources import digest, texts
from refattn_numba.cpu.instructions import HOST
from refattn_numba.cpu.specialisations import specialisations

ASK = """
import numpy as np
from refattn_numba.cpu.conversion import widen_bfloat16 as kernel
given, made = np.arange(40, dtype=np.uint16), np.empty(40, np.uint32)
given.flags.writeable = False
kernel(given, made, 0, 1)
print(sum(kernel.stats.cache_hits.values()), sum(kernel.stats.cache_misses.values()))
"""


def counted(folder):
    """Kernels that a new process reads from disk, and those that it compiles."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "NUMBA_CACHE_DIR": str(folder / "kernels")}
    done = subprocess.run([sys.executable, "-c", ASK], env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return tuple(map(int, done.stdout.split()))


def test_a_change_in_what_a_kernel_imports_compiles_it_again(tmp_path):
    """With the time and size of each file as they were, as in two wheels."""
    for package in (refattn, refattn_numba):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(Path(package.__file__).parent, tmp_path / package.__name__, ignore=ignored)
    assert counted(tmp_path) == (0, 1)
    assert counted(tmp_path) == (1, 0)
    helper = tmp_path / "refattn_numba" / "cpu" / "sizes.py"
    before, text = helper.stat(), helper.read_text(encoding="utf-8")
    assert "takes Numba a second" in text
    helper.write_text(text.replace("takes Numba a second", "costs Numba a second"), encoding="utf-8")
    os.utime(helper, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (helper.stat().st_size, helper.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert counted(tmp_path) == (0, 1)
    assert counted(tmp_path) == (1, 0)


def test_each_kernel_is_known_by_all_that_it_imports():
    for one in specialisations():
        module = one.kernel.py_func.__module__
        assert one.kernel._cache._cache_file._source_stamp == (HOST.name, digest(module))
        assert {"refattn_numba.cpu.jit", "refattn_numba.cpu.instructions", module} <= texts(module).keys()


def test_imports_are_found_in_whatever_form_they_are_written():
    of_attention = texts("refattn_numba.cpu.attention_forward")
    imported = {name for name in sys.modules if name.startswith("refattn_numba.cpu.") and name in of_attention}
    names = {name for name in of_attention if name.startswith("refattn_numba.")}
    assert imported | {"refattn_numba._sources"} == names  # nothing is looked for that is not there
    assert "refattn_numba.cpu.matrix_tiles" in of_attention
    assert "refattn_numba.cpu.conv.activation" in texts("refattn_numba.cpu.conv.epilogue")
    assert "refattn_numba.cpu.conv.winograd_kernels" in texts("refattn_numba.cpu.conv.winograd")  # a member of a package
