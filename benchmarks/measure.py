"""Time the calls of one case in turns, and find the peak memory of one call; each in a process of its own."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.cases import Call, Case, suite

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
PAUSE, SHORT, SLOW = 0.01, 0.02, 1.0  # seconds
ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median, and the quartiles' distance relative to it."""

    seconds: float
    spread: float
    rounds: int


@dataclass(frozen=True)
class Held:
    """What a case with a floor is held to; every ratio is the median of those of the rounds.

    Attributes
    ----------
    baseline, ratio, floor : str, float, float
        Whom we are measured against, its time over ours, and the least that this may be.
    limit, percent : str, float
        The machine's own limit, measured in the same rounds, and how much of it is reached.
    errors : dict of str to float
        Of each contender against the float64 reference, relative to the largest element; empty where that is too slow.
    """

    baseline: str
    ratio: float
    floor: float
    limit: str
    percent: float
    errors: Mapping[str, float]


@dataclass(frozen=True)
class Row:
    """What was measured of one case, by contender."""

    case: str
    timings: Mapping[str, Timing]
    peak_bytes: int | None
    held: Held | None = None

    @property
    def ratios(self) -> dict[str, float]:
        """Our time over each peer's."""
        ours, *peers = self.timings
        return {p: self.timings[ours].seconds / self.timings[p].seconds for p in peers}


def timings(calls: Mapping[str, Call], rounds: int, tolerance: float) -> dict[str, Timing]:
    """One call of each after the other, so that a slow minute of the machine slows all; the first, untimed, must agree."""
    refuse_difference({name: call() for name, call in calls.items()}, tolerance)
    return {name: _timing(s) for name, s in in_turns(calls, rounds).items()}


def in_turns(calls: Mapping[str, Call], rounds: int, pause: float = 0.0) -> dict[str, list[float]]:
    """Seconds of each call in each round; before each a pause, in which the threads of the one before fall asleep.

    With a pause, what takes longer than `SLOW` runs once.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            if pause and seconds[name] and seconds[name][0] > SLOW:
                continue  # once is enough
            if pause:
                time.sleep(pause)
                if seconds[name] and seconds[name][-1] < SHORT:
                    call()  # what the pause has put to sleep wakes up
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def _timing(seconds: list[float]) -> Timing:
    middle = statistics.median(seconds)
    low, _, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else (middle,) * 3
    return Timing(middle, (high - low) / middle, len(seconds))


def refuse_difference(results: Mapping[str, Any], tolerance: float) -> None:
    """ValueError where two contenders do not compute the same."""
    import numpy as np  # noqa: PLC0415  (the parent process stays small)

    named = {n: [_array(x) for x in (r if isinstance(r, tuple) else (r,))] for n, r in results.items()}
    (ours, expected), *others = named.items()
    for name, got in others:
        for i, (a, b) in enumerate(zip(expected, got, strict=True)):
            error = np.max(np.abs(a - b), initial=0) / max(np.max(np.abs(a), initial=0), 1e-300)
            if not error <= tolerance:
                raise ValueError(f"result {i} of {name} differs from that of {ours} by {error:.1e} of its largest element")


def _array(x: Any) -> Any:
    return x.detach().cpu().double().numpy() if hasattr(x, "detach") else x.astype(float) if x.dtype.kind == "V" else x


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
    timed = _in_a_process("time", suite_name, index, rounds, threads)
    if timed.get("held"):
        return Row(timed["case"], {n: Timing(**t) for n, t in timed["timings"].items()}, None, Held(**timed["held"]))
    peak = _in_a_process("peak", suite_name, index, rounds, threads)
    return Row(timed["case"], {n: Timing(**t) for n, t in timed["timings"].items()}, peak["peak_bytes"])


def _in_a_process(what: str, suite_name: str, index: int, rounds: int, threads: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.measure", what, suite_name, str(index), str(rounds), str(threads)]
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))}
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
    if case.work is None:
        return {"case": case.name, "timings": {n: asdict(t) for n, t in timings(calls, rounds, case.tolerance).items()}}
    return held(case, dict(calls), rounds, threads)


def held(case: Case, calls: dict[str, Call], rounds: int, threads: int) -> dict[str, Any]:
    """Timings beside the machine's limit, and errors."""
    from benchmarks.limits import limit  # noqa: PLC0415  (compiles)

    assert case.work is not None
    assert case.floor is not None
    exact = calls.pop("exact", None)
    results = {name: call() for name, call in calls.items()}
    refuse_difference(results, case.tolerance)
    errors = {}
    if exact is not None:
        wanted = exact()
        errors = {name: _error(wanted, result) for name, result in results.items()}
        del wanted
    del results
    at_limit, amount = limit(case.work.limit, threads)
    at_limit()
    ours, *peers = calls
    seconds = in_turns({**calls, "limit": at_limit}, rounds, PAUSE)
    share = [case.work.amount / amount * at / own for own, at in zip(seconds[ours], seconds.pop("limit"), strict=False)]
    baseline = peers[0] if peers else ours
    ratio = statistics.median(b / a for a, b in zip(seconds[ours], seconds[baseline], strict=False))
    made = Held(baseline, ratio, case.floor, case.work.limit, 100 * statistics.median(share), errors)
    return {"case": case.name, "timings": {n: asdict(_timing(s)) for n, s in seconds.items()}, "held": asdict(made)}


def _error(exact: Any, result: Any) -> float:
    """The largest error of any output, relative to its largest element."""
    import numpy as np  # noqa: PLC0415

    pairs = zip(*(r if isinstance(r, tuple) else (r,) for r in (exact, result)), strict=True)
    return max(float(np.abs(_array(got) - want).max(initial=0) / np.abs(want).max(initial=1e-300)) for want, got in pairs)


if __name__ == "__main__":
    what, suite_name, *numbers = sys.argv[1:]
    index, rounds, threads = map(int, numbers)
    print(json.dumps(child(what, suite(suite_name)[index], rounds, threads)))
