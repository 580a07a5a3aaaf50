"""OpenBLAS has one thread while a check computes, and as many as before afterwards."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import refattn
from refattn import testing
from refattn.testing import one_thread as module
from refattn.testing.one_thread import Library, library, one_thread


@pytest.fixture
def blas(monkeypatch):
    """A library that remembers how it was set."""
    history = [4]
    monkeypatch.setattr(module, "library", lambda: Library(lambda: history[-1], history.append))
    return history


def test_the_last_block_to_end_restores_the_number(blas):
    with one_thread():
        assert blas == [4, 1]
        with one_thread():
            pass
        assert blas == [4, 1]
    assert blas == [4, 1, 4]


def test_a_block_that_raises_restores_it_too(blas):
    with pytest.raises(ValueError, match="inside"), one_thread():
        raise ValueError("inside")
    assert blas == [4, 1, 4]


def test_blocks_of_threads_may_overlap(blas):
    inside, leave = threading.Event(), threading.Event()

    def other():
        with one_thread():
            inside.set()
            leave.wait(10)

    with one_thread():
        thread = threading.Thread(target=other)
        thread.start()
        assert inside.wait(10)
    assert blas[-1] == 1
    leave.set()
    thread.join()
    assert blas == [4, 1, 4]


def test_without_openblas_nothing_happens(monkeypatch):
    monkeypatch.setattr(module, "library", lambda: None)
    with one_thread():
        pass


def test_a_kernel_computes_on_as_many_threads_as_it_is_given(blas):
    seen = []

    def kernel(x):
        seen.append(blas[-1])
        return refattn.softmax(x)

    assert testing.check(kernel, refattn.softmax).passed
    assert set(seen) == {4}
    assert 1 in blas
    assert blas[-1] == 4


@pytest.mark.skipif(library() is None, reason="NumPy has no OpenBLAS that can be reached")
def test_openblas_itself():
    found = library()
    before = found.get()
    try:
        found.set(2)
        with one_thread():
            assert found.get() == 1
            np.testing.assert_allclose(np.ones((90, 80)) @ np.ones((80, 70)), 80)
        assert found.get() == 2
    finally:
        found.set(before)
