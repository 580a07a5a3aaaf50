"""Kernels on several threads: as many as asked for, from any number of Python's, after a fork, and for few heads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba")

import numba

import refattn
import refattn_numba
from refattn_numba.cpu import attention, cached, scan, threads
from refattn_numba.cpu.call import Record

ATTENTION, SCAN = refattn_numba.scaled_dot_product_attention, refattn_numba.gated_linear_attention


def both(function, arrays):
    """The output, and the gradients."""
    y, pullback = function.vjp(*arrays)
    y = y[0] if isinstance(y, tuple) else y
    return [y, *pullback(y).values()]


@pytest.mark.parametrize(("function", "count"), [(ATTENTION, 3), (SCAN, 4)])
def test_python_threads_share_kernels(function, count):
    """Each call has memory of its own."""
    random = np.random.default_rng(0)
    inputs = [[-np.abs(random.standard_normal((2, 2, 70, 33)).astype("float32")) for _ in range(count)] for _ in range(8)]
    want = [both(function, x) for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(both, [function] * 80, inputs * 10))
    for i, results in enumerate(got):
        for a, b in zip(results, want[i % 8], strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.fixture
def set_threads():
    before = numba.get_num_threads()
    yield numba.set_num_threads
    numba.set_num_threads(before)


@pytest.mark.parametrize("asked", sorted({1, min(2, numba.config.NUMBA_NUM_THREADS), numba.config.NUMBA_NUM_THREADS}))
def test_as_many_threads_run_as_were_asked_for(asked, set_threads, monkeypatch):
    set_threads(asked)
    together, ran = threading.Barrier(asked), []

    def kernel(*_):
        together.wait(timeout=60)  # so that no thread can stand in for another
        ran.append(threading.get_ident())

    monkeypatch.setattr(threads, "_compile", lambda *_: None)
    threads.run_tasks(kernel, Record({"memory_size": 1}), False, 100, threads.SMALL + 1, np.float32)
    assert len(set(ran)) == len(ran) == asked


def test_no_more_threads_than_tasks_and_one_for_little_work(monkeypatch):
    calls = []
    monkeypatch.setattr(threads, "_compile", lambda *_: None)
    threads.run_tasks(lambda *_: calls.append("one task"), Record({"memory_size": 1}), False, 1, threads.SMALL + 1, np.float32)
    threads.run_tasks(lambda *_: calls.append("little work"), Record({"memory_size": 1}), False, 100, threads.SMALL, np.float32)
    threads.run_tasks(lambda *_: calls.append("no task"), Record({"memory_size": 1}), False, 0, threads.SMALL + 1, np.float32)
    assert calls == ["one task", "little work"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_a_forked_process_calls_again():
    """After calls on several threads; in a process of its own, since one that hangs or dies would take this one with it."""
    code = """
import os, warnings, numba, numpy as np, refattn_numba
warnings.simplefilter("ignore")  # newer Pythons warn of a fork beside threads
numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)
x = np.random.default_rng(0).standard_normal((2, 4, 256, 32)).astype("float32")
def both():
    y, pullback = refattn_numba.scaled_dot_product_attention.vjp(x, x, x, causal=True)
    return [y, *pullback(y).values()]
before = both()
child = os.fork()
same = all(np.array_equal(a, b) for a, b in zip(before, both()))
if not child:
    os._exit(0 if same else 1)
assert same
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def tasks(monkeypatch):
    """How many tasks each kernel had, by its module."""
    seen = {}

    def run_tasks(kernel, call, has_options, count, *rest):
        seen[kernel.__module__.rpartition(".")[2]] = int(np.sum(count))
        threads.run_tasks(kernel, call, has_options, count, *rest)

    for module in (attention, cached, scan):
        monkeypatch.setattr(module, "run_tasks", run_tasks)
    return seen


def test_one_head_is_work_for_many_cores(tasks, monkeypatch):
    """Tasks are tiles of queries, chunks of them, parts of the keys, or columns of the values."""
    monkeypatch.setattr(attention, "TASKS", 16)
    random = np.random.default_rng(1)
    x, values = (random.standard_normal((1, 2048, n)).astype(np.float32) for n in (16, 256))
    both(ATTENTION, [x, x, x])
    both(SCAN, [x[:, :100], x[:, :100], values[:, :100], -np.abs(x[:, :100])])
    attention.attend(x[:, :1], *(random.standard_normal((2, 1, 1 << 14, 16)).astype(np.float32)))
    assert tasks == {"attention_forward": 32, "attention_backward": 8, "scan_forward": 4, "scan_backward": 4, "decode": 32}


def test_a_call_like_an_earlier_one_reads_its_own_arrays():
    """Where they lie in another way, or at another place, or options differ, too."""
    random = np.random.default_rng(2)
    wide = random.standard_normal((4, 2, 40, 32)).astype(np.float32)
    for x in (wide[0, :, :, :16], wide[1, :, :, :16], wide[2, :, :, 16:], np.ascontiguousarray(wide[3, :, :, :16]), wide[0, :, :, ::2]):
        for options in ({}, {"causal": True}, {"scale": 0.5}, {"softcap": 2.0}):
            expected = refattn.scaled_dot_product_attention(x, x[:, ::-1], x, **options)
            np.testing.assert_allclose(ATTENTION(x, x[:, ::-1], x, **options), expected, rtol=1e-4, atol=1e-5)


def test_all_helpers_are_waited_for():
    """Where one of them fails, nobody reads or writes after the error has come."""
    begun, ended = [], []

    def work():
        begun.append(threading.current_thread())
        if len(begun) == 2:
            raise MemoryError("one of three")
        time.sleep(0.2)
        ended.append(threading.current_thread())

    with pytest.raises(MemoryError, match="one of three"):
        threads.on_threads(3, work)
    assert (len(begun), len(ended)) == (3, 2)
    assert len(threads._IDLE) >= 2


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="this system has no such signals")
def test_an_interrupt_waits_for_helpers():
    ended = []

    def work():
        if threading.current_thread() is threading.main_thread():
            return
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(0.3)
        ended.append(True)

    with pytest.raises(KeyboardInterrupt):
        threads.on_threads(2, work)
    assert ended == [True]


def test_where_no_thread_can_begin_this_one_does_it_all(monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads, "_IDLE", [])
    monkeypatch.setattr(threads.Thread, "start", refuse)
    x = np.ones((2, 200, 64), np.float32)
    np.testing.assert_allclose(ATTENTION(x, x, x), x, rtol=1e-6)
