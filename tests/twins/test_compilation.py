"""What compilation costs and says."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("numba")

import numpy as np

import refattn_numba
from refattn_numba.cpu import jit
from refattn_numba.cpu.attention_backward import backward
from refattn_numba.cpu.attention_bias import backward_bias
from refattn_numba.cpu.attention_forward import forward
from refattn_numba.cpu.decode import Decoding, decode
from refattn_numba.cpu.threads import kernel_types


def test_a_slow_compilation_is_noticed(caplog, monkeypatch):
    monkeypatch.setattr(jit.threading, "Timer", lambda seconds, *rest: original(seconds / 100, *rest))
    with jit.noticed("something"):
        time.sleep(0.2)
    assert [r.getMessage() for r in caplog.records] == ["refattn_numba compiles something: once on this machine, for some seconds"]
    caplog.clear()
    logging.getLogger("refattn_numba").setLevel(logging.ERROR)
    try:
        with jit.noticed("something"):
            time.sleep(0.2)
    finally:
        logging.getLogger("refattn_numba").setLevel(logging.NOTSET)
    assert not caplog.records


original = jit.threading.Timer


def test_a_quick_compilation_is_not(caplog):
    with jit.noticed("something"):
        pass
    assert not caplog.records


def test_the_specialisations_are_a_closed_list():
    """Whatever the shapes and options of a call, no kernel has other types than these."""
    refattn_numba.warm_up()
    x = np.ones((2, 3, 5), np.float32)
    refattn_numba.scaled_dot_product_attention.vjp(x[:, ::-1], x.astype(">f4"), np.asfortranarray(x), causal=True, softcap=1.0)
    listed = {kernel_types(np.dtype(d), has_options=o) for d in ("float32", "float64") for o in (False, True)}
    for kernel in (forward, backward, backward_bias):
        assert set(kernel.signatures) <= listed
    refattn_numba.scaled_dot_product_attention(x[:, :1], x, x)
    for stored in ("float32", "float64", "float16", "int8"):
        cache = np.ones((2, 1, 3, 5), stored)
        refattn_numba.decode_attention(x[:, None], cache, cache[..., ::-1, :], np.array([3, 1]), key_scale=2.0)
    assert set(decode.signatures) <= {
        kernel_types(np.dtype(d), has_options=o, layout=Decoding) for d in ("float32", "float64") for o in (False, True)
    }


def test_what_is_compiled_is_kept_on_disk(tmp_path):
    """A second process compiles nothing."""
    code = (
        "import numpy, refattn_numba; x = numpy.ones((1, 20, 3), 'float32'); refattn_numba.scaled_dot_product_attention(x, x, x);"
        "from refattn_numba.cpu.attention_forward import forward; print(sum(forward.stats.cache_hits.values()))"
    )
    hits = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        hits.append(int(done.stdout))
    assert hits == [0, 1]


def test_python_threads_share_kernels():
    """Each call has memory of its own."""
    random = np.random.default_rng(0)
    inputs = [[random.standard_normal((2, 2, 70, 33)).astype("float32") for _ in range(3)] for _ in range(8)]

    def both(arrays):
        y, pullback = refattn_numba.scaled_dot_product_attention.vjp(*arrays)
        return [y, *pullback(y).values()]

    want = [both(x) for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(both, inputs * 10))
    for i, results in enumerate(got):
        for a, b in zip(results, want[i % 8], strict=True):
            np.testing.assert_array_equal(a, b)
