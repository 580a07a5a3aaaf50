"""The instruction sets that kernels are compiled for: which is chosen, and that each computes the same."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba")
pytest.importorskip("ml_dtypes")

from llvmlite import binding
from numba.core.codegen import get_host_cpu_features

from refattn.testing.precision import named_format
from refattn_numba.cpu.conv.winograd_tiles import LARGEST_GROWTH
from refattn_numba.cpu.instructions import AVX512, HOST, TABLE, chosen, compiled_for

X86 = platform.machine().lower() in {"x86_64", "amd64"}
AVX2 = "+avx,+avx2,+fma,+bmi,+bmi2,+sse4.1,+sse4.2,+ssse3,+popcnt"


def process(*arguments, **environment):
    """What `other_processor` prints for the instruction set that the environment names."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.twins.other_processor", *arguments],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("features", "name"),
    [
        (AVX512 | {"avx2", "fma", "avx512bf16", "amx-tile", "amx-bf16"}, "AVX-512 with AMX"),
        (AVX512 | {"avx2", "fma", "avx512bf16", "amx-tile"}, "AVX-512 with bfloat16"),
        (AVX512 | {"avx2", "fma", "avx512bf16"}, "AVX-512 with bfloat16"),
        (AVX512 | {"avx2", "fma"}, "AVX-512"),
        ({"avx512f", "avx2", "fma"}, "AVX2"),  # the first processors with AVX-512 lack a part of it
        ({"avx2"}, "generic"),
        ({"neon"}, "NEON"),
        (set(), "generic"),
    ],
)
def test_the_first_row_that_a_processor_can_run_is_chosen(features, name):
    assert chosen(features).name == name


def test_no_row_needs_more_than_numba_compiles_for():
    assert compiled_for() >= HOST.features


def test_sums_and_operands_fit_the_registers():
    for row in TABLE:
        registers, lines = row.panel
        assert registers * lines + registers + 1 <= (32 if row.register_bytes == 64 or row.name == "NEON" else 16)
        assert row.register_bytes % 16 == 0


HASWELL = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": AVX2}
GENERIC = {"NUMBA_CPU_NAME": "generic"}


@pytest.mark.skipif(not X86, reason="the processors that are named are x86")
@pytest.mark.parametrize(
    ("name", "environment"),
    [
        ("AVX2", HASWELL),
        ("generic", GENERIC),
        pytest.param(
            "AVX-512 with bfloat16",
            {"NUMBA_CPU_NAME": "cooperlake", "NUMBA_CPU_FEATURES": get_host_cpu_features().replace("+amx", "-amx")},
            marks=pytest.mark.skipif(not HOST.has_tiles, reason="this processor's own row, or more than it has"),
        ),
        pytest.param("NEON", {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "+neon"}, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("dtypes", [["float32", "bfloat16"], pytest.param(["float64"], marks=pytest.mark.slow)])
def test_other_processors_compute_the_same(name, environment, dtypes):
    """bfloat16 in float32, where nothing multiplies it."""
    pytest.importorskip("ml_dtypes")
    if name != "generic" and not compiled_for() >= {"avx2", "fma"}:
        pytest.skip("this machine has no AVX2")
    made = process(*dtypes, **environment)
    assert made["name"] == name
    for what, error in made["errors"].items():
        target = named_format(what.split()[0])
        assert error < max(32 * target.accumulator, 2 * target.unit)


@pytest.mark.skipif(not X86, reason="the processors that are named are x86")
@pytest.mark.parametrize(("name", "environment"), [("AVX2", HASWELL), pytest.param("generic", GENERIC, marks=pytest.mark.slow)])
def test_other_processors_convolve_the_same(name, environment):
    """Each algorithm, with sizes that fill no register."""
    if name != "generic" and not compiled_for() >= {"avx2", "fma"}:
        pytest.skip("this machine has no AVX2")
    made, target = process("convolution", **environment), named_format("float32")
    assert made["name"] == name
    for what, error in made["errors"].items():
        assert error < 32 * target.accumulator * (LARGEST_GROWTH if "winograd" in what else 1), what


@pytest.mark.skipif(not X86, reason="the processor that is named is x86")
def test_products_of_couples_become_matrix_instructions():
    made = process("tiles", NUMBA_CPU_NAME="sapphirerapids", NUMBA_CPU_FEATURES=f"{AVX2},+amx-tile,+amx-bf16")
    assert made["name"] == "AVX2"  # what is not all there is not taken
    found = re.findall(r"\b(tdpbf16ps|tileloadd|tilestored)\b.*tmm", made["assembly"])
    sums, products = found.count("tilestored"), found.count("tdpbf16ps")
    assert sums == 4
    assert products and products % sums == 0  # however often the loop is unrolled
    assert found.count("tileloadd") == sums + products  # the sums, and two tiles of each operand for four products


def test_vectors_become_fused_instructions_on_arm():
    try:
        binding.initialize_all_targets()
        binding.Target.from_triple("aarch64-linux-gnu")
    except RuntimeError:
        pytest.skip("this LLVM does not compile for ARM")
    made = process("arm", NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="+neon")
    assert made["name"] == "NEON"
    registers, lines = next(row for row in TABLE if row.name == "NEON").panel
    assert made["assembly"].count("fmla\tv") >= registers * lines
    assert not re.findall(r"\bbl\s+(fmaf?|expf?)\b", made["assembly"])
