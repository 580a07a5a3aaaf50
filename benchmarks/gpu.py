"""Attention and convolution on an NVIDIA GPU, held to the reference and timed beside PyTorch: ``python -m benchmarks.gpu [--quick] [--carry FOLDER]``.

One call does all, in less than ten minutes: a table of the machine, the battery of cases that are compared with the reference in main
memory, then times of PyTorch's back ends and ours, which take turns. Each row runs in a process of its own with a limit of time, so that
one that hangs costs its row alone. The rows go to a JSON file below benchmarks/results/gpu. Where there is no GPU it says so, with exit
status 2; exit status 1 is a row that is wrong, failed or hung.

``--build FOLDER`` compiles all kernels without a GPU, and ``--carry FOLDER`` runs with what was compiled so, on a machine that needs no
compiler.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import gpu_conv_timing, gpu_triton
from benchmarks.gpu_rows import START_SECONDS, Row, rows, run
from benchmarks.machine import versions
from benchmarks.tables import Rows, aligned
from refattn_numba.cuda import CudaError, cache, driver

RESULTS = Path(__file__).parent / "results" / "gpu"
ARCHITECTURES = ("sm_80", "sm_90a")
PACKAGES = ("numpy", "torch", "numba", "numba-cuda", "llvmlite", "cuda-bindings", "nvidia-nvvm", "nvidia-nvjitlink", "nvidia-cudnn-cu13")
MARK = "refattn row: "
WRONG, NO_GPU = 1, 2


def environment() -> dict[str, Any]:
    """The card and what runs on it; a CudaError where there is none."""
    current = driver.current()
    if not current.count():
        raise CudaError("no device of CUDA was found")
    facts = current.facts(0)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "card": facts.name,
        "architecture": facts.architecture,
        "capability": ".".join(map(str, facts.capability)),
        "processors": facts.processors,
        "clock_mhz": facts.clock_khz // 1000,
        "memory_gib": round(facts.memory_bytes / 2**30, 1),
        "cuda_of_driver": ".".join(map(str, facts.version)),
        "driver": _driver_version(),
        "python": platform.python_version(),
        "versions": versions(PACKAGES),
    }


def _driver_version() -> str:
    """As the system's tool tells; empty where it is not there."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()[0].strip()
    except (OSError, subprocess.SubprocessError, IndexError):
        return ""


def in_a_process(row: Row, *, limit: float, command: Sequence[str] | None = None) -> dict[str, Any]:
    """What a row's own process made of it, or why it made nothing."""
    start = time.monotonic()
    command = command or [sys.executable, "-m", "benchmarks.gpu", "--row", row.name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"ok": False, "error": f"hung: not done after {limit:.0f} seconds", "seconds": limit}
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    took = {"seconds": round(time.monotonic() - start, 1)}
    if not lines:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return {"ok": False, "error": f"exit status {done.returncode}: {last}", **took}
    notes = [line for line in done.stdout.splitlines() if not line.startswith(MARK)]
    return {**json.loads(lines[-1].removeprefix(MARK)), **took, **({"notes": notes} if notes else {})}


def measured(chosen: Sequence[Row], minutes: float) -> dict[str, dict[str, Any]]:
    """The rows as far as the time lasts: first those that may run together, then the others one after another."""
    end = time.monotonic() + 60 * minutes

    def made_of(row: Row) -> dict[str, Any]:
        left = end - time.monotonic()
        if left < START_SECONDS:
            return {"ok": False, "error": "not started: the time is over"}
        print(row.name, file=sys.stderr, flush=True)
        return in_a_process(row, limit=min(row.seconds + START_SECONDS, left))

    together = [row for row in chosen if not row.alone]
    with ThreadPoolExecutor(max(len(together), 1)) as pool:
        found = dict(zip((row.name for row in together), pool.map(made_of, together), strict=True))
    return {**found, **{row.name: made_of(row) for row in chosen if row.alone}}


def tables(found: Mapping[str, Mapping[str, Any]]) -> str:
    """What was found, in a few lines each."""
    times = [_times_table(found, which) for which in ("forward", "backward")]
    layers, limits = found.get("convolutions", {}), found.get("limits", {})
    of_layers = [gpu_conv_timing.table(layers, limits, which) for which in ("forward", "backward")]
    of_decoding = _decode_table(found.get("decode", {}))
    parts = [_battery_table(found), _limits_line(found), of_decoding, *times, *of_layers, _failures(found)]
    return "\n\n".join(part for part in parts if part)


def _battery_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    body: list[list[str]] = []
    for name, row in found.items():
        if name.startswith("battery") and "compared" in row:
            body.append([name, *(str(row[n]) for n in ("compared", "failed", "skipped")), f"{row['worst']:.2g}", f"{row['seconds']:.0f}"])
    return aligned([["against the reference", "compared", "failed", "skipped", "worst error / budget", "seconds"], *body]) if body else ""


def _limits_line(found: Mapping[str, Mapping[str, Any]]) -> str:
    row = found.get("limits", {})
    if "copy_tb_per_s" not in row:
        return ""
    return (
        f"limits: a copy moves {row['copy_tb_per_s']:.2f} TB/s, a product of matrices makes {row['matmul_tflops']:.0f} TFLOP/s (bfloat16)"
    )


def _decode_table(row: Mapping[str, Any]) -> str:
    shapes = row.get("shapes", {})
    names = list(dict.fromkeys(name for shape in shapes.values() for name in shape["times"]))
    body: list[list[str]] = []
    for title, shape in shapes.items():
        rates = [f"{shape['times'][name]['tb_per_s']:.2f}" if name in shape["times"] else "-" for name in names]
        share = f"{100 * shape['share_of_copy']['ours']:.0f}" if "ours" in shape["share_of_copy"] else "-"
        body.append([title, *rates, share, f"{shape['host_us']:.0f}", "yes" if shape["ok"] else "NO"])
    return aligned([["decode, TB/s", *names, "ours, % of a copy", "host us", "right"], *body]) if body else ""


def _times_table(found: Mapping[str, Mapping[str, Any]], which: str) -> str:
    timed = {name.removeprefix("attention "): row for name, row in found.items() if name.startswith("attention") and row.get(which)}
    if not timed:
        return ""
    names = list(dict.fromkeys(n for row in timed.values() for n in row[which]))
    peers = [n for n in names if n != "ours"]
    body: list[list[str]] = []
    for name, row in timed.items():
        times = row[which]
        ours = times.get("ours", {}).get("ms")
        ratios = [f"{times[p]['ms'] / ours:.2f}" if ours and p in times else "-" for p in peers]
        body.append([name, *(f"{times[n]['tflops']:.0f}" if n in times else "-" for n in names), *ratios, "yes" if row["ok"] else "NO"])
    head: list[str] = [f"{which}, TFLOP/s", *names, *(f"ours over {p}" for p in peers), "right"]
    table: Rows = [head, *body]
    return aligned(table)


def _failures(found: Mapping[str, Mapping[str, Any]]) -> str:
    lines = []
    for name, row in found.items():
        if not row["ok"]:
            lines.append(f"{name}: {row.get('error') or row.get('errors') or 'wrong'}")
            lines += [f"    {text}" for text in row.get("failures", ())]
    return "\n".join(lines)


def write(about: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]], into: Path) -> Path:
    """A file whose name has the day and the card."""
    card = "-".join(str(about["card"]).lower().split())
    path = into / f"{str(about['date'])[:10]}-{card}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**about, "rows": found}, indent=1) + "\n", "utf-8")
    return path


def build(into: Path, architectures: Sequence[str], jobs: int) -> str:
    """Compile all kernels, which needs no GPU."""
    from refattn_numba.cuda import configurations, conv_configurations, conv_small_configurations, hopper  # noqa: PLC0415  # the kernels

    start = time.monotonic()
    portable = (*configurations.shipped(), *conv_configurations.shipped(), *conv_small_configurations.shipped())
    made = cache.build(portable, architectures, into, jobs)
    if hopper.ARCHITECTURE in architectures:
        made += cache.build((*hopper.shipped(), *conv_configurations.shipped_for_hopper()), [hopper.ARCHITECTURE], into, jobs)
    size = sum(path.stat().st_size for path in made) / 2**20
    return f"{len(made)} kernels for {' and '.join(architectures)}, {size:.1f} MiB, in {into}: {time.monotonic() - start:.0f} seconds"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer shapes")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose names contain this")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which no row is started; default 9")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER", help="where the JSON goes")
    parser.add_argument("--carry", type=Path, metavar="FOLDER", help="compiled kernels to run with, as --build makes them")
    parser.add_argument(
        "--build", type=Path, metavar="FOLDER", help="compile all kernels into a folder, without a GPU, and do nothing else"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes that build; default: one for each core")
    parser.add_argument("--triton", type=Path, metavar="FILE", help="Triton's tutorial 06-fused-attention.py, to be timed too")
    parser.add_argument("--architecture", action="append", choices=ARCHITECTURES, help="to build for; default: all")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.row:
        print(MARK + json.dumps(run(given.row)))
        return 0
    if given.build:
        print(build(given.build, given.architecture or ARCHITECTURES, max(given.jobs, 1)))
        return 0
    if given.carry:
        if not given.carry.is_dir():
            parser.error(f"--carry is {given.carry}, which is no folder")
        os.environ["REFATTN_PREBUILT"] = str(given.carry.resolve())
    if given.triton:
        if not given.triton.is_file():
            parser.error(f"--triton is {given.triton}, which is no file")
        os.environ[gpu_triton.FILE] = str(given.triton.resolve())
    chosen = [row for row in rows() if given.only in row.name and (row.quick or not given.quick)]
    if not chosen:
        parser.error(f"no row's name contains {given.only!r}: {', '.join(row.name for row in rows())}")
    try:
        about = environment()
    except CudaError as error:
        print(f"no GPU: {error}", file=sys.stderr)
        return NO_GPU
    print(aligned([["machine", ""], *([name, str(x)] for name, x in about.items())]), flush=True)
    found = measured(chosen, given.minutes)
    print(f"\n{tables(found)}\n\n{write(about, found, given.out)}")
    return 0 if all(row["ok"] for row in found.values()) else WRONG


if __name__ == "__main__":
    raise SystemExit(main())
