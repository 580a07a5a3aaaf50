"""Kernels for convolution compile without a GPU to what was meant: tensor cores, asynchronous copies, no spills."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, NamedTuple

import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda compiles kernels, and is not installed")

from refattn_numba.cuda import conv_configurations, hopper, toolchain
from refattn_numba.cuda.configurations import SHARED_LIMIT
from refattn_numba.cuda.kernel import Cubin
from refattn_numba.cuda.warpgroups import DEPTH
from tests.cuda import sass
from tests.cuda.test_sass import ARCHITECTURES, REGISTERS_OF_PROCESSOR, REGISTERS_OF_THREAD, STATIC_LIMIT

PORTABLE = {kernel.name: kernel for kernel in conv_configurations.shipped()}
HOPPER = {kernel.name: kernel for kernel in conv_configurations.shipped_for_hopper()}
KERNELS = PORTABLE | HOPPER
CASES = [
    pytest.param(name, architecture, marks=[pytest.mark.slow] if "_float16" in name or i % 2 != j else [])
    for i, name in enumerate(PORTABLE)
    for j, architecture in enumerate(ARCHITECTURES)
]
"""By default each source once for each width of numbers, on one architecture or the other."""

HOPPER_CASES = [pytest.param(name, "sm_90a", marks=[pytest.mark.slow] if "_float16" in name else []) for name in HOPPER]


class Compiled(NamedTuple):
    cubin: Cubin
    notes: str
    text: str

    @property
    def instructions(self) -> Counter[str]:
        return sass.counted(self.text)


def compiled(name: str, architecture: str) -> Compiled:
    cubin, notes = toolchain.compile_with_notes(KERNELS[name], architecture)
    return Compiled(cubin, notes, sass.text_of(cubin.code))


@pytest.fixture(scope="module")
def pool(request: pytest.FixtureRequest) -> Iterator[dict[tuple[str, str], Future[Compiled]]]:
    """Kernels compile on two cores while the first are looked at."""
    if sass.folder() is None:
        pytest.skip("cuobjdump is not installed")
    items = [getattr(item, "callspec", None) for item in request.session.items if item.path == request.path]
    wanted = [spec.params for spec in items if spec is not None]
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as workers:
        yield {(p["name"], p["architecture"]): workers.submit(compiled, p["name"], p["architecture"]) for p in wanted}
        workers.shutdown(cancel_futures=True)


def products(c: Any) -> int:
    """Instructions of the tensor cores in one turn of the loop."""
    rows, columns = (c.size, c.size) if hasattr(c, "size") else (c.rows, c.columns)
    step, times = (8, 3) if c.element == "float32" else (16, 1)
    return times * (rows // c.row_warps // 16) * (columns // c.column_warps // 8) * (c.depth // step)


@pytest.mark.parametrize(("name", "architecture"), CASES)
def test_code_is_what_was_meant(name: str, architecture: str, pool: dict[tuple[str, str], Future[Compiled]], record_property) -> None:
    kernel, made = KERNELS[name], pool[name, architecture].result()
    cubin, found = made.cubin, made.instructions
    record_property("compiled", f"{name} {architecture}")
    assert cubin.architecture == architecture
    assert (cubin.stack_bytes, found["STL"], found["LDL"]) == (0, 0, 0), "registers are spilled"
    assert 0 < cubin.registers <= REGISTERS_OF_THREAD
    assert 2 * cubin.registers * kernel.threads <= REGISTERS_OF_PROCESSOR, "two blocks fit on a multiprocessor"
    assert kernel.shared_bytes <= SHARED_LIMIT
    assert cubin.shared_bytes <= STATIC_LIMIT
    assert not {"DADD", "DMUL", "DFMA", "RET"} & set(found), "arithmetic in float64, or a function that was not inlined"
    if hasattr(kernel.config, "depth"):
        assert found["HMMA"] == products(kernel.config)
        assert found["LDSM"] + found["LDS"] > 0
        assert (found["LDGSTS"] > 0) != kernel.config.is_odd


@pytest.mark.parametrize(("name", "architecture"), HOPPER_CASES)
def test_hopper_code_is_what_was_meant(
    name: str, architecture: str, pool: dict[tuple[str, str], Future[Compiled]], record_property
) -> None:
    kernel, made = KERNELS[name], pool[name, architecture].result()
    cubin, found, c = made.cubin, made.instructions, kernel.config
    record_property("compiled", f"{name} {architecture}")
    assert "Performance Loss" not in made.notes, "products are made one after the other"
    assert "ignored" not in made.notes
    assert (cubin.stack_bytes, found["STL"], found["LDL"]) == (0, 0, 0), "registers are spilled"
    assert not {"DADD", "DMUL", "DFMA", "RET", "CALL", "HMMA"} & set(found)
    assert found["HGMMA"] % (c.depth // DEPTH) == 0 < found["HGMMA"]
    assert found["LDGSTS"] == (c.rows + c.columns) * 8 // 128, "one copy for each 16 bytes of a pair of tiles"
    assert found["USETMAXREG"] == 2
    copying = made.text[made.text.index("USETMAXREG.DEALLOC") : made.text.rindex("EXIT")]
    assert sass.registers(copying) <= c.few
    assert sass.registers(made.text) <= c.many
    assert 128 * (c.few + c.groups * c.many) <= REGISTERS_OF_PROCESSOR
    assert cubin.shared_bytes <= STATIC_LIMIT
    assert kernel.shared_bytes + STATIC_LIMIT <= hopper.SHARED_LIMIT


def test_names_are_its_own() -> None:
    assert len(KERNELS) == len([*conv_configurations.shipped(), *conv_configurations.shipped_for_hopper()])
