"""The emulator finds what a GPU would do wrong without a word, and multiplies as the instructions' documentation says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from refattn_numba.cuda import fragments, memory
from refattn_numba.cuda.fragments import Tile, stride_of
from refattn_numba.cuda.kernel import Kernel
from refattn_numba.cuda.operations import Operation
from tests.cuda.calls import numbers, stored
from tests.cuda.emulator import SHARED_START, Fault, launch


class Nothing(NamedTuple):
    """No constants."""


def run(body: Callable[[Any], Callable[..., None]], *arrays: np.ndarray, threads: int = 64, shared: int = 4096) -> None:
    """A kernel that gets the arrays' addresses."""
    parameters = tuple((f"x{i}", "pointer") for i in range(len(arrays)))
    kernel = Kernel("small", lambda ops, _: body(ops), Nothing(), parameters, threads, shared, 1)
    launch(kernel, 1, {f"x{i}": x.ctypes.data for i, x in enumerate(arrays)}, arrays)


LOAD_SHARED = Operation(lambda e, address: e.load_shared(address), ("int32",), "bits")
STORE_SHARED = Operation(lambda e, address, wanted: e.store_shared(address, [address] * 4, wanted > 0), ("int32", "int32"), None)
COPY = Operation(lambda e, to, address: e.copy_async(to, address, e.integer(16)), ("int32", "int64"), None)
STORE = Operation(lambda e, address, x: e.store(address, e.bits_of(x), 4, address != 0), ("int64", "float32"), None)


def zeros() -> np.ndarray:
    whole = np.zeros(1028, np.float32)
    return whole[-whole.ctypes.data % 16 // 4 :][:1024]


def test_loads_outside_an_array() -> None:
    def body(ops: Any) -> Any:
        load, thread = ops(memory.load("float32")), ops(memory.thread())
        return lambda x: load(x + 4 * (thread() + 961))

    with pytest.raises(Fault, match="outside every buffer"):
        run(body, zeros())


def test_misaligned_loads() -> None:
    def body(ops: Any) -> Any:
        load = ops(memory.load("float32"))
        return lambda x: load(x + 2)

    with pytest.raises(Fault, match="not aligned"):
        run(body, zeros())


def test_stores_to_what_is_only_read() -> None:
    def body(ops: Any) -> Any:
        store, thread = ops(STORE), ops(memory.thread())
        return lambda x: store(x + 4 * thread(), 1.0)

    x = zeros()
    run(body, x)
    assert x[:65].tolist() == [1.0] * 64 + [0.0]
    x.flags.writeable = False
    with pytest.raises(Fault, match="only read"):
        run(body, x)


def test_two_lanes_store_to_one_place() -> None:
    def body(ops: Any) -> Any:
        store, lane = ops(STORE), ops(memory.lane_of())
        thread = ops(memory.thread())
        return lambda x: store(x + 4 * (lane(thread()) // 2), 1.0)

    with pytest.raises(Fault, match="two lanes"):
        run(body, zeros())


def test_shared_memory_that_was_never_written() -> None:
    def body(ops: Any) -> Any:
        load, thread = ops(LOAD_SHARED), ops(memory.thread())
        return lambda: load(SHARED_START + 4 * thread())

    with pytest.raises(Fault, match="never written"):
        run(body)


def test_shared_memory_outside_the_block() -> None:
    def body(ops: Any) -> Any:
        load, thread = ops(LOAD_SHARED), ops(memory.thread())
        return lambda: load(SHARED_START + 4 * thread() + 4000)

    with pytest.raises(Fault, match="outside shared"):
        run(body)


@pytest.mark.parametrize(
    ("has_wait", "has_barrier", "fault"), [(True, True, ""), (False, True, "waited"), (True, False, "race|never written")]
)
def test_copies(has_wait: bool, has_barrier: bool, fault: str) -> None:
    """What one warp copies another may read after a wait and a barrier."""

    def body(ops: Any) -> Any:
        copy, load, thread = ops(COPY), ops(LOAD_SHARED), ops(memory.thread())
        commit, wait, barrier = ops(memory.commit()), ops(memory.wait(0)), ops(memory.barrier())

        def kernel(x: int) -> None:
            copy(SHARED_START + 16 * thread(), x + 16 * thread())
            commit()
            if has_wait:
                wait()
            if has_barrier:
                barrier()
            load(SHARED_START + 16 * (63 - thread()))
            wait()

        return kernel

    if not fault:
        run(body, zeros())
    else:
        with pytest.raises(Fault, match=fault):
            run(body, zeros())


def test_writing_what_another_warp_still_reads() -> None:
    def body(ops: Any) -> Any:
        store, load, thread, barrier = ops(STORE_SHARED), ops(LOAD_SHARED), ops(memory.thread()), ops(memory.barrier())

        def kernel() -> None:
            store(SHARED_START + 16 * thread(), 1)
            barrier()
            load(SHARED_START + 16 * (63 - thread()))
            store(SHARED_START + 16 * thread(), 1)

        return kernel

    with pytest.raises(Fault, match=r"written that another warp has read|read that another warp has written"):
        run(body)


def test_a_barrier_that_one_warp_does_not_reach() -> None:
    def body(ops: Any) -> Any:
        barrier, warp, thread = ops(memory.barrier()), ops(memory.warp_of()), ops(memory.thread())

        def kernel() -> None:
            if warp(thread()) == 0:
                barrier()

        return kernel

    with pytest.raises(Fault, match="deadlock: 1 of 2 warps"):
        run(body)


def test_a_branch_that_lanes_take_differently() -> None:
    def body(ops: Any) -> Any:
        thread = ops(memory.thread())

        def kernel() -> None:
            if thread() > 3:
                pass

        return kernel

    with pytest.raises(ValueError, match="truth value"):
        run(body)


def test_copies_under_way_at_the_end() -> None:
    def body(ops: Any) -> Any:
        copy, commit, thread = ops(COPY), ops(memory.commit()), ops(memory.thread())

        def kernel(x: int) -> None:
            copy(SHARED_START + 16 * thread(), x + 16 * thread())
            commit()

        return kernel

    with pytest.raises(Fault, match="under way"):
        run(body, zeros())


def test_a_number_that_does_not_fit() -> None:
    def body(ops: Any) -> Any:
        first = ops(memory.first_row())
        return lambda: first(2**31 + 5)

    with pytest.raises(Fault, match="int32 does not hold"):
        run(body)


@pytest.mark.parametrize(("element", "error"), [("bfloat16", 2**-20), ("float16", 2**-20), ("float32", 2**-19)])
def test_both_products(element: Any, error: float) -> None:
    """``left @ right.T`` and ``(left @ right.T) @ right`` of one warp; the second rounds its left operand to the element."""
    rows, columns, depth = 32, 48, 32
    stride, tile, of_second = stride_of(element, depth), Tile(32, 48), Tile(32, 32)
    rng = np.random.default_rng(0)
    left, right = (stored(rng.standard_normal((n, depth)), element) for n in (rows, columns))
    first, second = stored(np.zeros((rows, columns)), "float32"), stored(np.zeros((rows, depth)), "float32")

    def body(ops: Any) -> Any:
        thread, commit, wait, barrier = ops(memory.thread()), ops(memory.commit()), ops(memory.wait(0)), ops(memory.barrier())
        copy_left, copy_right = (ops(memory.copy_rows(element, n, depth, 32)) for n in (rows, columns))
        row, column = ops(memory.first_row()), ops(memory.first_column())
        of_rows, no_rows = ops(fragments.product_of_rows(element, tile, depth, stride, stride)), ops(fragments.zeros(tile.kind))
        of_weights = ops(fragments.product_of_weights(element, of_second, columns, stride))
        no_weights = ops(fragments.zeros(of_second.kind))
        store_first, store_second = (ops(memory.store_rows("float32", t)) for t in (tile, of_second))

        def kernel(a: int, b: int, c: int, d: int) -> None:
            copy_left(SHARED_START, a, left.strides[0], rows, depth, thread())
            copy_right(SHARED_START + rows * stride, b, right.strides[0], columns, depth, thread())
            commit()
            wait()
            barrier()
            sums = of_rows(no_rows(), SHARED_START, SHARED_START + rows * stride, thread())
            store_first(sums, c, columns * 4, row(thread()), column(thread()), rows, columns)
            sums = of_weights(no_weights(), sums, SHARED_START + rows * stride, thread())
            store_second(sums, d, depth * 4, row(thread()), column(thread()), rows, depth)

        return kernel

    run(body, left, right, first, second, threads=32, shared=(rows + columns) * stride)
    a, b = numbers(left), numbers(right)
    scale = np.abs(a) @ np.abs(b).T
    assert (np.abs(first - a @ b.T) <= error * scale).all()
    weights = first.astype(np.float64) if element == "float32" else numbers(stored(first, element))
    assert (np.abs(second - weights @ b) <= error * (np.abs(weights) @ np.abs(b))).all()
