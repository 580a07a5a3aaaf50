"""Run somebody's test with a kernel in the place of their function, and see what the test says."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import refattn
from refattn.testing.faulty.catalogue import faults, honest
from refattn.testing.faulty.kernel import Fault
from refattn.testing.faulty.startup.sitecustomize import VARIABLE

Verdict: TypeAlias = Literal["accepted", "refused", "caught", "survived", "not exercised"]
STARTUP = Path(__file__).parent / "startup"
LEAST_SECONDS = 60.0
TIMES_HONEST = 10.0
"""A faulty run may take so many times as long as the honest one: the kernel runs twice, and others run beside it."""


@dataclass(frozen=True)
class Place:
    """Where a kernel goes, and how it is called there.

    Attributes
    ----------
    module, path : str
        The function: an importable module, and a dotted name in it.
    mechanism : str
        What it computes.
    dtype : str or None
        The kernel's precision; None is that of its arrays.
    tile : int
        Its tile; 0 is the kernel's own.
    arguments : mapping
        Their names of arguments to ours.
    options : mapping
        Ours, for every call.
    layout : str or None
        As of `refattn.testing.check`.
    """

    module: str
    path: str
    mechanism: str
    dtype: str | None = None
    tile: int = 0
    arguments: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    layout: str | None = None


@dataclass(frozen=True)
class Trial:
    """One run of the command.

    Attributes
    ----------
    name : str
        The fault's, or which honest kernel.
    verdict : {"accepted", "refused", "caught", "survived", "not exercised"}
        Of an honest kernel the first two. A fault that the command passes has survived, unless nothing that was returned differed from
        what the honest kernel returns: then the command has not exercised it.
    seconds : float
        How long it took.
    changes : dict of str to float
        The largest change of each output and gradient (``d_`` and its name), relative to the largest element of the honest one.
    called : bool
        Whether the function was called at all.
    timed_out : bool
        Whether it was stopped.
    said : str
        The end of what the command printed, where it failed.
    fault : Fault or None
        None of an honest kernel.
    """

    name: str
    verdict: Verdict
    seconds: float
    changes: dict[str, float]
    called: bool
    timed_out: bool
    said: str
    fault: Fault | None = None


class Runner:
    """Runs one command again and again, each time with another kernel in place.

    Parameters
    ----------
    place : Place
        Where the kernel goes.
    command : sequence of str
        What to run; its exit status says whether it accepts the kernel. ``pytest`` and ``python`` are those of this environment.
    timeout : float or None
        Seconds of a run; None is a minute, or ten times as long as the honest kernels took.
    """

    def __init__(self, place: Place, command: Sequence[str], timeout: float | None = None) -> None:
        if not command:
            raise ValueError("no command: give one after --, for example -- pytest tests/test_kernel.py")
        if command[0] in {"pytest", "python"}:  # of the environment that runs this, whatever PATH finds first
            command = [sys.executable, *(["-m", "pytest"] if command[0] == "pytest" else []), *command[1:]]
        elif shutil.which(command[0]) is None:
            raise FileNotFoundError(f"{command[0]}: no such command")
        self.place, self.command, self.timeout = place, list(command), timeout

    def honest(self) -> list[Trial]:
        """With each of the right kernels, which it must accept, until one is refused or never called."""
        trials: list[Trial] = []
        for i, right in enumerate(honest(self.place.mechanism, self.place.dtype, tile=self.place.tile)):
            trials.append(self._run(right.name, None, i))
            if trials[-1].verdict == "refused" or not trials[-1].called:
                return trials
        if self.timeout is None:
            self.timeout = max(LEAST_SECONDS, TIMES_HONEST * max(t.seconds for t in trials))
        return trials

    def faulty(self, planted: Sequence[Fault], jobs: int = 1) -> Iterator[Trial]:
        """With each fault, in the order in which they are done."""
        with ThreadPoolExecutor(jobs) as pool:
            waiting = [pool.submit(self._run, f.name, f) for f in planted]
            try:
                yield from (done.result() for done in as_completed(waiting))
            finally:
                pool.shutdown(cancel_futures=True)

    def _run(self, name: str, fault: Fault | None, which: int = 0) -> Trial:
        with tempfile.TemporaryDirectory() as folder:
            record = Path(folder) / "record"
            began = time.monotonic()
            status, said = self._command(self._environment(fault, which, record), Path(folder) / "output")
            seconds = time.monotonic() - began
            lines = [json.loads(line) for line in record.read_text("utf-8").splitlines()] if record.exists() else []
        changes: dict[str, float] = {}
        for what, change in lines:
            changes[what] = max(change, changes.get(what, 0.0))
        called = changes.pop("called", None) is not None
        passed = status == 0
        if fault is None:
            verdict: Verdict = "accepted" if passed else "refused"
        else:
            verdict = "caught" if not passed else "survived" if changes else "not exercised"
        return Trial(name, verdict, seconds, changes, called, status is None, "" if passed else said, fault)

    def _environment(self, fault: Fault | None, which: int, record: Path) -> dict[str, str]:
        planted = {
            **{n: getattr(self.place, n) for n in ("module", "path", "mechanism", "dtype", "tile", "layout")},
            "arguments": dict(self.place.arguments),
            "options": dict(self.place.options),
            "fault": None if fault is None else fault.name,
            "honest": which,
            "record": str(record),
            "refattn": str(Path(refattn.__file__).parent.parent),
        }
        paths = [str(STARTUP), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), VARIABLE: json.dumps(planted)}

    def _command(self, environment: dict[str, str], output: Path) -> tuple[int | None, str]:
        """The exit status, None where it was stopped, and the end of what it printed."""
        with output.open("w+b") as file:
            process = subprocess.Popen(
                self.command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                status: int | None = process.wait(self.timeout)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                _end(process)
            file.seek(0)
            return status, "\n".join(file.read().decode("utf-8", "replace").strip().splitlines()[-15:])


def _end(process: subprocess.Popen[bytes]) -> None:
    """The command and all that it has started, if it still runs."""
    if process.poll() is not None:
        return
    if hasattr(os, "killpg"):
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def select(mechanism: str, only: Sequence[str], direction: Any = None) -> list[Fault]:
    """The faults to plant; LookupError where there is none."""
    found = faults(mechanism, direction=direction, only=only)
    if not found:
        raise LookupError(f"no fault of {mechanism} has {' or '.join(map(repr, only))} in its name: see refattn mutants --list")
    return found
