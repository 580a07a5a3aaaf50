"""Measure one case in a process of its own: the time of its calls in turns, or the peak memory of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.cases import Call, Case, suite
from benchmarks.rounds import middle_and_spread, timed

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
KEEP_MEMORY = {"GLIBC_TUNABLES": f"glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold={1 << 40}"}
"""Glibc keeps freed memory: else each large output is new to the system, which zeroes it page by page at the contender's expense."""
ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median, and the quartiles' distance relative to it."""

    seconds: float
    spread: float
    rounds: int


@dataclass(frozen=True)
class Row:
    """What was measured of one case, by contender."""

    case: str
    timings: Mapping[str, Timing]
    peak_bytes: int | None

    @property
    def ratios(self) -> dict[str, float]:
        """Our time over each peer's."""
        ours, *peers = self.timings
        return {p: self.timings[ours].seconds / self.timings[p].seconds for p in peers}


def timings(calls: Mapping[str, Call], rounds: int, tolerance: float) -> dict[str, Timing]:
    """One call of each after the other, so that a slow minute of the machine slows all; the first, untimed, must agree."""
    from benchmarks.agreement import refuse_difference  # noqa: PLC0415  (the parent process stays small)

    refuse_difference({name: call() for name, call in calls.items()}, tolerance)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            seconds[name].append(timed(call))
    return {name: Timing(*middle_and_spread(s), len(s)) for name, s in seconds.items()}


def peak_bytes() -> int | None:
    """The most memory that this process has held; None where the system does not say."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the parent before the exec
        return int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1]) * 1024
    try:
        import resource  # noqa: PLC0415
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measured(suite_name: str, index: int, *, rounds: int, threads: int) -> Row:
    """One row, by two processes: one times all contenders, one runs only ours and reports its memory."""
    times = in_a_process("time", suite_name, index, rounds, threads)
    peak = in_a_process("peak", suite_name, index, rounds, threads)
    return Row(times["case"], {n: Timing(**t) for n, t in times["timings"].items()}, peak["peak_bytes"])


def in_a_process(what: str, suite_name: str, index: int, rounds: int, threads: int) -> dict[str, Any]:
    """What a fresh process measures."""
    command = [sys.executable, "-m", "benchmarks.measure", what, suite_name, str(index), str(rounds), str(threads)]
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads)), **(KEEP_MEMORY if what == "hold" else {})}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def child(what: str, case: Case, rounds: int, threads: int) -> dict[str, Any]:
    """What one process measures."""
    calls = case.make()
    if what == "peak":
        next(iter(calls.values()))()
        return {"peak_bytes": peak_bytes()}
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    if what == "hold":
        from benchmarks.held import hold  # noqa: PLC0415

        return asdict(hold(case, calls, rounds, threads))
    return {"case": case.name, "timings": {n: asdict(t) for n, t in timings(calls, rounds, case.tolerance).items()}}


if __name__ == "__main__":
    what, suite_name, *numbers = sys.argv[1:]
    index, rounds, threads = map(int, numbers)
    print(json.dumps(child(what, suite(suite_name)[index], rounds, threads)))
