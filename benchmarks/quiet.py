"""Whether other programs run, so that measuring can wait until they do not; Linux tells, elsewhere nobody is waited for."""

from __future__ import annotations

import os
import time
from pathlib import Path

LOAD, STAT = Path("/proc/loadavg"), Path("/proc/stat")
STEP = 0.004  # seconds between two looks
LOOKS = 3  # that must find nobody, one after the other
BUSY = slice(0, 8)  # columns of /proc/stat: all that processors did
IDLE = slice(3, 5)  # of which they idled, or waited for a disk
TOLERATED = 0.05  # of one core's time
COARSE = 0.02  # seconds: the system counts time in ticks of a hundredth, for each core


def running(load: str) -> int:
    """How many tasks of all programs run or want to, but for the one that asks: "0.39 0.28 0.69 1/87 5120" are none."""
    return int(load.split()[3].partition("/")[0]) - 1


def busy_ticks(stat: str) -> int:
    """Ticks for which any core has done anything, by the first line of /proc/stat."""
    columns = [int(n) for n in stat.partition("\n")[0].split()[1:]]
    return sum(columns[BUSY]) - sum(columns[IDLE])


def others_seconds() -> float:
    """Processor time of all other programs since the machine has started; only differences say anything."""
    if not STAT.exists():
        return 0.0
    return busy_ticks(STAT.read_text()) / os.sysconf("SC_CLK_TCK") - time.process_time()


class Watch:
    """Waits for quiet, for `patience` seconds in all, and sums up what others took of the time that was measured."""

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self.others = self.measured = 0.0

    def wait(self) -> None:
        """Until nobody runs: neither other programs nor threads of the contender before, which may spin for a while."""
        start, quiet = time.perf_counter(), 0
        while quiet < LOOKS and time.perf_counter() - start <= self.patience:
            time.sleep(STEP)
            quiet = 0 if LOAD.exists() and running(LOAD.read_text()) > 0 else quiet + 1
        self.patience -= time.perf_counter() - start

    def __enter__(self) -> None:
        self._start = time.perf_counter(), others_seconds()

    def __exit__(self, *_: object) -> None:
        now, others = time.perf_counter(), others_seconds()
        self.measured += now - self._start[0]
        self.others += others - self._start[1]

    def disturbed(self) -> bool:
        """Whether others took a share of what has been measured since this was asked last."""
        share = self.others > COARSE + TOLERATED * self.measured
        self.others = self.measured = 0.0
        return share
