"""Kernels for compute capability 9.0 compile without a GPU to what was meant: products by four warps, boxes, phases, no spills."""

from __future__ import annotations

import multiprocessing
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import NamedTuple

import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda compiles kernels, and is not installed")

from refattn_numba.cuda import cache, hopper, toolchain
from refattn_numba.cuda.fragments import FLOAT8
from refattn_numba.cuda.kernel import Cubin, Kernel
from refattn_numba.cuda.kernels import by_columns, hopper_backward, hopper_forward
from refattn_numba.cuda.kernels.hopper_forward import Config
from refattn_numba.cuda.warpgroups import DEPTH
from tests.cuda import sass
from tests.cuda.hopper_calls import hopper_kernel
from tests.cuda.test_sass import STATIC_LIMIT

REGISTERS_OF_PROCESSOR, GROUP = 65_536, 128
KERNELS = {kernel.name: kernel for kernel in hopper.shipped() if kernel.builder is not by_columns.by_columns}
SLOW = re.compile(r"hopper_float16|float8_e4m3fn_(64|256)")
NAMES = [pytest.param(name, marks=[pytest.mark.slow] if SLOW.search(name) else []) for name in KERNELS]
FORWARD, BACKWARD = ([x for x in NAMES if str(x.values[0]).startswith(face)] for face in ("forward", "backward"))


class Compiled(NamedTuple):
    cubin: Cubin
    notes: str
    order: list[str]
    registers: tuple[int, int]
    """Of the warps that copy, and of all."""


def compiled(name: str) -> Compiled:
    cubin, notes = toolchain.compile_with_notes(KERNELS[name], "sm_90a")
    text = sass.text_of(cubin.code)
    copying = text[text.index("USETMAXREG.DEALLOC") : text.rindex("EXIT")]
    return Compiled(cubin, notes, sass.listing(cubin.code), (sass.registers(copying), sass.registers(text)))


@pytest.fixture(scope="module")
def pool(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Compiled]]]:
    """Kernels compile on two cores while the first are looked at."""
    if sass.folder() is None:
        pytest.skip("cuobjdump is not installed")
    items = [getattr(item, "callspec", None) for item in request.session.items if "hopper_sass" in item.nodeid]
    wanted = [spec.params["name"] for spec in items if spec is not None]
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as workers:
        yield {name: workers.submit(compiled, name) for name in dict.fromkeys(wanted)}
        workers.shutdown(cancel_futures=True)


def products_of(kernel: Kernel) -> int:
    """Of the forward pass in the first or last tile and in those between, of the backward pass in the one loop."""
    c = kernel.config
    if kernel.builder is hopper_forward.forward:
        return 2 * (c.size + c.keys) // c.depth
    return 2 * (c.size // DEPTH) + (2 if c.of_keys else 1) * (c.others // DEPTH)


@pytest.mark.parametrize("name", NAMES)
def test_code_is_what_was_meant(name: str, pool: dict[str, Future[Compiled]], record_property) -> None:
    kernel, (cubin, notes, order, registers) = KERNELS[name], pool[name].result()
    record_property("compiled", f"{name} sm_90a")
    c = kernel.config
    assert "Performance Loss" not in notes, "products are made one after the other"
    assert "ignored" not in notes
    found = Counter(x.partition(".")[0] for x in order)
    count = {what: found[what] for what in ("STL", "LDL", "HGMMA", "QGMMA", "UTMALDG", "USETMAXREG", "HMMA", "CALL")}
    assert (cubin.stack_bytes, count["STL"], count["LDL"]) == (0, 0, 0), "registers are spilled"
    assert cubin.registers * kernel.threads <= REGISTERS_OF_PROCESSOR
    assert 1 < registers[0] <= c.few
    assert registers[0] < registers[1] <= c.many
    assert GROUP * (c.few + c.groups * c.many) <= REGISTERS_OF_PROCESSOR
    assert cubin.shared_bytes <= STATIC_LIMIT
    assert cubin.shared_bytes + kernel.shared_bytes <= hopper.SHARED_LIMIT
    narrow = c.element == FLOAT8
    assert (count["HGMMA"], count["QGMMA"]) == ((0, products_of(kernel)) if narrow else (products_of(kernel), 0))
    assert count["UTMALDG"] >= len(c.boxes) * (c.size // 128 if narrow else c.size // 64)
    assert found["SYNCS"] > c.barriers
    assert (count["USETMAXREG"], count["HMMA"], count["CALL"]) == (2, 0, 0)


def products_and_waits(order: list[str]) -> str:
    """A letter for each product, wait and exponential, in the order of the code."""
    signs = {"HGMMA": "H", "QGMMA": "H", "WARPGROUP.DEPBAR": "w", "MUFU.EX2": "e"}
    return "".join(sign for x in order for what, sign in signs.items() if x.startswith(what))


@pytest.mark.parametrize("name", FORWARD)
def test_exponentials_overlap_with_products(name: str, pool: dict[str, Future[Compiled]]) -> None:
    """In the loop they stand before the wait for the products that they need not wait for."""
    text = products_and_waits(pool[name].result().order)
    runs = re.findall(r"(H+)([^H]*)", text)
    c = KERNELS[name].config
    (after,) = [after for products, after in runs if len(products) == (c.size + c.keys) // c.depth]
    assert re.match(rf"we{{{c.keys // 2 + 2}}}w", after), after


@pytest.mark.parametrize("name", BACKWARD)
def test_products_overlap(name: str, pool: dict[str, Future[Compiled]]) -> None:
    """In the loop, exponentials while the weights' cotangents are made; the last sums are not waited for before the next scores."""
    c = KERNELS[name].config
    of_scores, of_sums, exponentials = 2 * c.size // DEPTH, c.others // DEPTH, c.others // 2
    values = rf"H{{{of_sums}}}" if c.of_keys else ""
    loop = rf"H{{{of_scores}}}we{{{exponentials}}}{values}wH{{{of_sums}}}{'w' if c.of_keys else ''}w"
    found = products_and_waits(pool[name].result().order)
    assert re.search(loop, found), found


def test_the_gate_sees_products_made_one_after_the_other() -> None:
    """More sums than there are registers for."""
    kernel = hopper_kernel(Config("bfloat16", 64, groups=3, keys=192, stages=2, few=32, many=160))
    cubin, notes = toolchain.compile_with_notes(kernel, "sm_90a")
    assert "Performance Loss" in notes
    assert cubin.stack_bytes > 0


def test_source_of_a_kernel_has_its_constants() -> None:
    assert "groups=2, keys=128" in cache.source_of(KERNELS["forward_hopper_bfloat16_128_128"])


def test_hosts_find_their_kernel() -> None:
    assert hopper.fitting("bfloat16", 128, 128, has_limits=True).tile == 128  # type: ignore[union-attr]
    assert hopper.fitting("bfloat16", 40, 64, has_limits=False).config.size == 64  # type: ignore[union-attr]
    assert hopper.fitting("float32", 128, 128, has_limits=False) is None
    assert hopper.fitting("float16", 32, 32, has_limits=False) is None
    assert hopper.fitting("float16", 257, 32, has_limits=False) is None
    assert hopper.fitting("float16", 128, 128, has_limits=False, shared_limit=101_376) is None
    assert hopper.fitting("float8_e4m3fn", 8, 200, has_limits=False).config.size == 256  # type: ignore[union-attr]
    builders = {
        hopper_forward.forward: hopper_forward.PARAMETERS,
        hopper_backward.backward: hopper_backward.PARAMETERS,
        by_columns.by_columns: by_columns.PARAMETERS,
    }
    assert all(kernel.parameters == builders[kernel.builder] for kernel in hopper.shipped())
    keys, queries = (hopper.fitting("bfloat16", 100, 128, has_limits=True, face=face) for face in ("backward_keys", "backward_queries"))
    assert (keys.name, queries.name) == ("backward_keys_hopper_bfloat16_128", "backward_queries_hopper_bfloat16_128")  # type: ignore[union-attr]
    assert hopper.fitting("float32", 128, 128, has_limits=False, face="backward_keys") is None
    assert hopper.fitting("float8_e4m3fn", 128, 128, has_limits=False, face="backward_keys") is None


def test_values_by_columns_are_stored_in_chunks() -> None:
    """16 bytes at a time, without local memory."""
    kernel = hopper.values_by_columns()
    cubin, _ = toolchain.compile_with_notes(kernel, "sm_90a")
    stored = Counter(name for name in sass.listing(cubin.code) if name.startswith(("STG", "LDL", "STL")))
    assert stored == {"STG.E.128": 8}, "two chunks of each of four columns"
    assert cubin.stack_bytes == 0
    assert cubin.shared_bytes + kernel.shared_bytes <= hopper.SHARED_LIMIT
