"""A program as a candidate: it is given a folder with a case, and leaves its results in another."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from refattn._core import Array, Mechanism, tree
from refattn._core.mechanism import outputs
from refattn.testing.battery import Case
from refattn.testing.bits import Tensor, named_kind, stored
from refattn.testing.candidates import Candidate, Unsupported, refuse_unknown_options, refuse_what_is_no_mechanism
from refattn.testing.frameworks import NumPy
from refattn.testing.golden import about, drawn_cotangents, folder_name, input_items, wanted
from refattn.testing.manifest import STORAGES, Storage, write_case
from refattn.testing.precision import Format, named_format
from refattn.testing.results import CommandError, Results, read_results

NOT_SUPPORTED = 77
"""The exit status by which a program says that it does not offer this; that of skipped tests in Automake."""
LINES, LETTERS = 3, 150


class Stored(NumPy):
    """Arrays as they stand in files, so that no library need have their type."""

    name = "files"

    def make(self, x: Array, target: Format) -> Any:
        """The same values in the format; integers and booleans as they are."""
        return stored(target.round(x), target.name) if x.dtype.kind == "f" else stored(x)

    def value(self, x: Any) -> Array:
        """As float64."""
        if not named_kind(x.dtype).is_real:
            raise TypeError(f"what was written is {x.dtype}, but must be floating point")
        return x.values().astype(np.float64)

    def vjp(self, call: Any, wanted: list[str]) -> None:
        """Programs have no derivatives but those that they write."""


def command_candidate(
    command: str,
    mechanism: Mechanism[..., Any],
    *,
    supports: Collection[str] | None = None,
    timeout: float = 60.0,
    storage: Storage = "bin",
    keep: str | Path | None = None,
) -> Candidate:
    """A program, for `refattn.testing.check`.

    Parameters
    ----------
    command : str
        Split into words as a shell does, and run without one. ``{case}`` is replaced by the folder that it reads, ``{out}`` by
        the one that it writes to. Exit status 0 is done and 77 is "not supported", with the reason as the last line of its
        standard error; anything else is a failure. `docs/golden.md` describes the folders.
    mechanism : mechanism
        What it should compute.
    supports : collection of str or None, optional
        The optional arguments that it takes; cases with others are skipped and listed. None is all.
    timeout : float, optional
        Seconds after which one run is ended, and counts as a failure.
    storage : {"bin", "safetensors", "npz"}, optional
        How the numbers of a case are stored.
    keep : str, Path or None, optional
        A folder in which the folders of all cases stay.

    Returns
    -------
    Candidate
        What runs the program, once a case.

    Examples
    --------
    >>> import refattn
    >>> from refattn.testing import check, command_candidate
    >>> report = check(command_candidate("./kernel {case} {out}", refattn.softmax), refattn.softmax)  # doctest: +SKIP
    """
    refuse_what_is_no_mechanism(mechanism)
    refuse_unknown_options(mechanism, supports)
    if storage not in STORAGES:
        raise ValueError(f"storage is {storage!r}, but must be one of {', '.join(STORAGES)}")
    if not timeout > 0:
        raise ValueError(f"timeout is {timeout}, but must be more than 0")
    program = Program(words(command), mechanism, timeout, storage, None if keep is None else Path(keep))
    return Candidate(program.call, Stored(), program.vjp, supports, begin=program.begin)


def words(command: str) -> list[str]:
    """The words of a command line; ValueError where they cannot be run."""
    try:
        found = shlex.split(command)
    except ValueError as error:
        raise ValueError(f"command is {command!r}: {error}") from None
    for place in ("{case}", "{out}"):
        if not any(place in word for word in found):
            raise ValueError(f"command is {command!r}, but must contain {place}")
    if shutil.which(found[0]) is None:
        raise ValueError(f"command is {command!r}, but {found[0]!r} is no program that can be run")
    return found


class Program:
    """One program and the mechanism that it should compute."""

    def __init__(self, command: list[str], mechanism: Mechanism[..., Any], timeout: float, storage: Storage, keep: Path | None) -> None:
        self.command, self.mechanism, self.timeout, self.keep = command, mechanism, timeout, keep
        self.storage: Storage = storage
        self.case, self.runs = "case", 0

    def begin(self, case: Case) -> None:
        """Be told what the next case is called."""
        self.case = case.name

    def call(self, **arguments: Any) -> tuple[Tensor, ...]:
        """The outputs alone."""
        return self.vjp(**arguments)[0]

    def vjp(self, **arguments: Any) -> tuple[tuple[Tensor, ...], Callable[..., Mapping[str, Any]]]:
        """Run the program once for both, with the cotangents that the check will draw; again where it has drawn others."""
        given: dict[str, Any] = tree.map_leaves(lambda x: x.values() if isinstance(x, Tensor) else x, arguments)
        target = named_format(next((x.dtype for _, x in tree.leaves(arguments) if isinstance(x, Tensor) and _real(x)), "float64"))
        made = outputs(self.mechanism(**given))  # for their shapes, and those of cotangents
        exact = dict(zip(self.mechanism.spec.output_names, made, strict=True))
        moving = self.mechanism.spec.facts.differentiable(self.mechanism.spec.accept(given))
        ds = drawn_cotangents(made, target) if moving else None
        results = self.run(given, exact, moving, ds, target)

        def pullback(*cotangents: Tensor) -> dict[str, Any]:
            asked = tuple(d.values() for d in cotangents)
            same = ds is not None and all(np.array_equal(a, b) for a, b in zip(asked, ds, strict=True))
            found = results if same else self.run(given, exact, moving, asked, target)
            return {path: found.optional(f"d_{path}") for path in moving}

        return tuple(results.needed(name) for name in exact), pullback

    def run(
        self,
        given: Mapping[str, Any],
        exact: Mapping[str, Array],
        moving: Mapping[str, Any],
        ds: tuple[Array, ...] | None,
        target: Format,
    ) -> Results:
        """Write a case, run the program, read what it wrote."""
        with self._folder(target) as folder:
            case, out = folder / "case", folder / "out"
            out.mkdir()
            asked = wanted(exact, {path: x for path, x in moving.items() if ds is not None}, target)
            facts = about(self.mechanism, Case(self.case, dict(given)), target)
            write_case(case, {**facts, "wanted": asked}, [*input_items(self.mechanism, given, ds, target)], self.storage)
            replaced = {"{case}": str(case), "{out}": str(out)}
            status, said = run_words([_replaced(word, replaced) for word in self.command], folder / "stderr", self.timeout)
            if status == NOT_SUPPORTED:
                raise Unsupported(said.rpartition(" | ")[2] or "not supported")
            if status is None:
                raise CommandError(f"ended after {self.timeout:g} s without a result{f': {said}' if said else ''}")
            if status != 0:
                raise CommandError(f"{_status(status)}{f': {said}' if said else ''}")
            return read_results(out, asked)

    @contextmanager
    def _folder(self, target: Format) -> Iterator[Path]:
        """An empty folder for one run."""
        if self.keep is None:
            with tempfile.TemporaryDirectory(prefix="refattn-", ignore_cleanup_errors=True) as name:
                yield Path(name)
            return
        self.runs += 1
        folder = (self.keep / f"{self.mechanism.spec.name}-{target.name}-{self.runs:03d}-{folder_name(self.case)}").absolute()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        yield folder


def _real(x: Tensor) -> bool:
    return named_kind(x.dtype).is_real


def _replaced(word: str, by: Mapping[str, str]) -> str:
    for place, text in by.items():
        word = word.replace(place, text)
    return word


def run_words(command: list[str], log: Path, timeout: float) -> tuple[int | None, str]:
    """The exit status of a program, None where it had to be ended, and the last lines of its standard error."""
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=os.name == "posix"
        )
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _end(process)
    return status, _last_lines(log)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a program, and on POSIX all that it has started, where it still runs."""
    if process.poll() is None:
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()


def _last_lines(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(log.stat().st_size - 4096, 0))
        lines = [" ".join(line.split()) for line in file.read().decode(errors="replace").splitlines()]
    said = [line for line in lines if line][-LINES:]
    return " | ".join(line[-LETTERS:] for line in said)[-LETTERS:]


def _status(status: int) -> str:
    if status > 0:
        return f"exit status {status}"
    try:
        return f"ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"ended by signal {-status}"
