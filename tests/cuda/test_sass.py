"""Every shipped kernel compiles without a GPU, and its machine code is what was meant: tensor cores, asynchronous copies, no spills."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import NamedTuple

import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda compiles kernels, and is not installed")

from refattn_numba.cuda import cache, toolchain
from refattn_numba.cuda.configurations import ATTENTION, SHARED_LIMIT, choose, shipped
from refattn_numba.cuda.kernel import Cubin, Kernel
from tests.cuda import sass

ARCHITECTURES = "sm_80", "sm_90a"
REGISTERS_OF_PROCESSOR, REGISTERS_OF_THREAD = 65_536, 255
STATIC_LIMIT = 1024
"""What the toolchain itself keeps of shared memory on compute capability 9.0."""

SPILLED_BYTES = {
    **dict.fromkeys([f"backward_keys_float32_{size}_options" for size in (64, 128, 256)], 64),
    "backward_queries_float32_128_options": 64,
    "decode_float32_256": 128,
}
"""These keep a few numbers of each thread in local memory: addresses and strides of mask, bias and dropout, beside 3xTF32's operands;
or of pages, beside 128 sums."""

KERNELS = {kernel.name: kernel for kernel in shipped()}
CASES = [pytest.param(name, ARCHITECTURES[i % 2], id=f"{name}-{ARCHITECTURES[i % 2]}") for i, name in enumerate(KERNELS)]
OTHERS = [
    pytest.param(name, ARCHITECTURES[1 - i % 2], id=f"{name}-{ARCHITECTURES[1 - i % 2]}", marks=pytest.mark.slow)
    for i, name in enumerate(KERNELS)
]


class Compiled(NamedTuple):
    cubin: Cubin
    instructions: Counter[str]


def compiled(name: str, architecture: str) -> Compiled:
    cubin = toolchain.compile(KERNELS[name], architecture)
    return Compiled(cubin, sass.instructions(cubin.code))


@pytest.fixture(scope="module")
def pool(request: pytest.FixtureRequest) -> Iterator[dict[tuple[str, str], Future[Compiled]]]:
    """Kernels compile on all cores while the first are looked at."""
    if sass.folder() is None:
        pytest.skip("cuobjdump is not installed")
    items = [getattr(item, "callspec", None) for item in request.session.items if item.path == request.path]
    wanted = [spec.params for spec in items if spec is not None]
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as workers:
        jobs = {(p["name"], p["architecture"]): workers.submit(compiled, p["name"], p["architecture"]) for p in wanted}
        yield jobs
        workers.shutdown(cancel_futures=True)


def products(kernel: Kernel) -> int:
    """Instructions of the tensor cores in one turn of the loop: 16 by 8 by 32 bytes each, three times as many of float32.

    Backward kernels with options make the scores once more where there is a cap.
    """
    c, face = kernel.config, kernel.name.split("_bfloat16")[0].split("_float")[0]
    depth, times = (8, 3) if c.element == "float32" else (16, 1)
    rows, others = (16, c.queries) if face == "backward_keys" else (getattr(c, "rows", 16), c.keys)
    scores = rows // 16 * (others // 8) * (c.size // depth)
    sums = rows // 16 * (c.size // getattr(c, "parts", 1) // 8) * (others // depth)
    again = getattr(c, "has_options", False)
    faces = {"forward": (1, 1), "decode": (1, 1), "backward_queries": (2 + again, 1), "backward_keys": (2 + again, 2)}
    per_pair, per_sum = faces[face]
    return times * (per_pair * scores + per_sum * sums)


@pytest.mark.parametrize(("name", "architecture"), CASES + OTHERS)
def test_code_is_what_was_meant(name: str, architecture: str, pool: dict[tuple[str, str], Future[Compiled]], record_property) -> None:
    kernel, (cubin, found) = KERNELS[name], pool[name, architecture].result()
    record_property("compiled", f"{name} {architecture}")
    assert cubin.architecture == architecture
    if name in SPILLED_BYTES:
        assert 0 < cubin.stack_bytes <= SPILLED_BYTES[name]
        assert max(found["STL"], found["LDL"]) <= SPILLED_BYTES[name] // 2
    else:
        assert (cubin.stack_bytes, found["STL"], found["LDL"]) == (0, 0, 0), "registers are spilled"
    assert 0 < cubin.registers <= REGISTERS_OF_THREAD
    assert cubin.registers * kernel.threads * kernel.blocks_per_processor <= REGISTERS_OF_PROCESSOR
    assert cubin.shared_bytes <= STATIC_LIMIT
    assert kernel.shared_bytes <= SHARED_LIMIT
    assert not {"DADD", "DMUL", "DFMA", "RET"} & set(found), "arithmetic in float64, or a function that was not inlined"
    if any(name.startswith(face) for face in (*ATTENTION, "decode")):
        assert found["HMMA"] == products(kernel)
        assert (found["LDSM"] > 0) != name.endswith("_codes")
        assert found["LDGSTS"] > 0
        assert found["MUFU"] > 0


def test_the_gate_sees_spills() -> None:
    """A tile that cannot fit in registers is caught."""
    kernel = choose("forward", "bfloat16", 128, 128)
    config = kernel.config._replace(rows=64, row_warps=2)
    made = Kernel("too_large", kernel.builder, config, kernel.parameters, config.threads, config.shared_bytes, config.tile)
    assert toolchain.compile(made, "sm_80").stack_bytes > 0


def test_architecture_is_checked() -> None:
    with pytest.raises(ValueError, match="architecture is 'hopper', but must be"):
        toolchain.compile(choose("sinks", "float32", 1, 1), "hopper")


def test_source_of_a_kernel_has_its_constants() -> None:
    text = cache.source_of(choose("forward", "bfloat16", 128, 128))
    assert "Config(element='bfloat16', size=128" in text
    assert text != cache.source_of(choose("forward", "float16", 128, 128))
