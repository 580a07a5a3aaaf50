"""The blocks of docs/pytest.md run as they stand there, for somebody's kernels; faults in these kernels are found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import refattn
from tests.test_examples import ROOT, blocks

KERNELS = """
import numpy as np
import refattn


def softmax(x):
    wide = x.astype(np.promote_types(x.dtype, np.float32))  # sums in float16 would be refused
    e = np.exp(wide - wide.max(axis=-1, keepdims=True))
    return (e / e.sum(axis=-1, keepdims=True)).astype(x.dtype)


def softmax_backward(d_output, x):
    return refattn.softmax.vjp(x)[1](d_output)["x"].astype(x.dtype)
"""
FAULT = "\n\nhonest = softmax\n\n\ndef softmax(x):\n    return honest(x) * np.float32(1.02).astype(x.dtype)\n"


@pytest.fixture
def session(tmp_path, monkeypatch):
    """A function that runs Python in a folder with somebody's kernels, and returns what it has printed."""
    path = os.pathsep.join([str(tmp_path), str(Path(refattn.__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    (tmp_path / "my_kernels.py").write_text(KERNELS)

    def run(*command):
        return subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True)

    return run


@pytest.mark.parametrize("number", [0, 1])
def test_the_tests_accept_a_right_kernel_and_no_wrong_one(session, tmp_path, number):
    block = blocks(ROOT / "docs" / "pytest.md", "python")[number]
    (tmp_path / "test_kernels.py").write_text(block)
    options = ["-m", "pytest", "-q", "-p", "refattn.pytest_plugin", "-p", "no:cacheprovider", "-W", "error"]
    right = session(*options)
    assert right.returncode == 0, right.stdout
    assert "mechanism  dtype" in right.stdout
    if number == 0:
        assert len(block.rstrip().splitlines()) == 5 + 1  # the blank line aside
    (tmp_path / "my_kernels.py").write_text(KERNELS + FAULT)
    wrong = session(*options)
    assert wrong.returncode == 1
    assert "times its budget" in wrong.stdout


def forward_alone(x):
    return refattn.softmax(x)


def test_the_script_runs(session, tmp_path):
    (script,) = [block for block in blocks(ROOT / "docs" / "pytest.md", "python") if "ProcessPoolExecutor" in block]
    few = script.replace("range(100)", "range(2)").replace("ProcessPoolExecutor, 4", "ProcessPoolExecutor, 1")
    (tmp_path / "script.py").write_text(few)
    units = 2 * (len(list(refattn.testing.cases(refattn.softmax))) + 1)
    calls = 2 * len(refattn.testing.check(forward_alone, refattn.softmax).results)
    for _ in range(2):
        done = session("script.py")
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{{'pass': {calls}, 'known_difference': 0, 'fail': 0, 'skipped': 0}}\n"
    assert len((tmp_path / "softmax.jsonl").read_text().splitlines()) == 1 + units


def test_the_cluster_differs_in_its_engine_alone():
    """Which tests/external/test_dask.py runs, on a cluster of its own."""
    (script,) = [block for block in blocks(ROOT / "docs" / "pytest.md", "python") if "dask" in block]
    compile(script, "script", "exec")
    assert "executor=client.get_executor()" in script
