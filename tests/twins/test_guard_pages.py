"""Kernels touch no byte outside the arrays that they are given."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba")
pytest.importorskip("ml_dtypes")
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is protected by Linux's mprotect")


CALLS = ["decode", "attention", "scans", "deformable", "convolutions", "depthwise"]


def process(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "tests.twins.guard_pages", *map(str, arguments)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_fence_ends_a_process_that_reads_outside():
    assert process("outside", 1).returncode < 0


@pytest.mark.parametrize("what", CALLS)
def test_random_calls_stay_inside(what):
    done = process(what, 60)
    assert done.returncode == 0, f"the call before which it ended: {done.stdout.split()[-1:]}\n{done.stderr}"


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 6000, 1000))
@pytest.mark.parametrize("what", CALLS)
def test_thousands_of_random_calls_stay_inside(what, first):
    done = process(what, first, first + 1000)
    assert done.returncode == 0, f"the call before which it ended: {done.stdout.split()[-1:]}\n{done.stderr}"
