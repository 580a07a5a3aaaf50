"""Write docs/faults.md: which wrong kernels pass the tests of projects, and which pass `refattn.testing.check`.

Run as ``python -m docs.faults [--wrong-seeds N] [--seeds N]`` in a clone, with ml_dtypes installed: over how many seeds wrong kernels
are checked, and honest ones. Three and a hundred take about 20 minutes of two cores.
"""

from __future__ import annotations

import functools
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from docs.fault_calls import OPTIONS, call_of
from docs.rules import PROJECTS, Compared, Project
from refattn import testing
from refattn._core import Array
from refattn._core.mechanism import outputs
from refattn.testing.battery import Case
from refattn.testing.candidates import as_candidate
from refattn.testing.checking import compare_case
from refattn.testing.faulty import MECHANISMS, Fault, faults, honest, kernel
from refattn.testing.faulty.kernel import mechanism_named
from refattn.testing.one_thread import one_thread
from refattn.testing.precision import Format, named_format
from refattn.testing.reference import rounded
from refattn.view.table import progress

PAGE = Path(__file__).with_suffix(".md")
FORMATS = ("bfloat16", "float16", "float32")
TILES = {"attention": 64, "convolution": 4, "linear": 2}
"""Of the kernels that `check` sees: its inputs have at least two tiles of these."""
TRIED = {
    "attention": ("scaled_dot_product_attention", "scaled_dot_product_attention_with_lse"),
    "convolution": ("conv2d", "conv_transpose2d", "causal_conv1d"),
    "linear": ("gated_delta_rule", "delta_rule", "gated_linear_attention", "linear_attention"),
}
INTRODUCTION = """\
# Which wrong kernels pass

The library makes {count} wrong kernels, each an honest one with one method replaced (`refattn mutants --list` says what each does).
Here each meets the rule by which a project's own tests accept a kernel, on numbers drawn as these tests draw them, and
`refattn.testing.check`. A fault counts for a project where its tests have what the fault needs (masks, sinks, gradients, ...) and
where it changes something that was returned. Rules are restated from the projects' sources, kernels are simulated in NumPy, and a
project has more tests than one rule: this says how much a rule can see, not whether a project's kernels are right. The faults were
chosen by the authors of `check`, who know its inputs: its row is a floor, not a proof.

`python -m docs.faults` writes this page; `refattn mutants` does the same with your test. [Faults of our own convolutions](planted.md) have
a page of their own.
"""


class Verdict(NamedTuple):
    """Of one project: the faults that it was shown, those that it accepts, and whether it accepts honest kernels."""

    project: Project
    shown: list[Fault]
    accepted: list[Fault]
    accepts_honest: bool


class Setting:
    """One call of a project's tests: what is exact, what the format's own arithmetic gives, and what an honest kernel returns."""

    def __init__(self, mechanism: str, project: Project, needs: Sequence[str], seed: int) -> None:
        self.mechanism, self.project = mechanism_named(mechanism), project
        self.call, self.tile = call_of(mechanism, project, needs, seed), {"attention": 64}.get(project.family, 16)
        target, random = named_format(project.dtype), np.random.default_rng(seed + 1)
        y, pullback = self.mechanism.vjp(**self.call)
        self.names = self.mechanism.spec.output_names
        ds = (target.round(project.draw(random, x.shape, "d_output")) for x in outputs(y))
        self.ds = [np.zeros_like(d) if n == "lse" else d for n, d in zip(self.names, ds, strict=True)]
        self.exact = self._named(y, pullback)
        self.right = self.returned(kernel(mechanism, None, project.dtype, tile=self.tile))

    def returned(self, run: Any) -> dict[str, Array]:
        """Outputs, and gradients where the project compares them, by name."""
        return self._named(*run.vjp(**self.call))

    @functools.cached_property
    def low(self) -> dict[str, Array]:
        """The reference with every single operation rounded to the format."""
        with testing.rounding(self.project.dtype):
            return self._named(*self.mechanism.vjp(**self.call))

    def accepts(self, got: Mapping[str, Array]) -> bool:
        """Whether the project's rule accepts all of it."""
        return all(self.project.accepts(Compared(n, got[n], exact, lambda n=n: self.low[n])) for n, exact in self.exact.items())

    def _named(self, y: Any, pullback: Callable[..., Mapping[str, Any]]) -> dict[str, Array]:
        made = dict(zip(self.names, outputs(y), strict=True))
        if self.project.backward:
            made |= {f"d_{n}": g for n, g in pullback(*self.ds).items()}
        return {n: np.asarray(x).astype(float) for n, x in made.items()}


setting = functools.lru_cache(maxsize=64)(Setting)


def mechanism_for(fault: Fault, project: Project) -> str | None:
    """What the project tests of the mechanisms that can have the fault."""
    candidates = [n for n in TRIED[fault.family] if not fault.mechanisms or n in fault.mechanisms]
    left_out = {"scaled_dot_product_attention_with_lse": "lse" not in project.has, "causal_conv1d": True}
    return next((n for n in candidates if not left_out.get(n, False)), None)


def of_project(project: Project, seeds: Sequence[int] = (0,)) -> Verdict:
    """Which faults its rule accepts on every seed."""
    shown, accepted = [], []
    for fault in faults(family=project.family):
        mechanism = mechanism_for(fault, project)
        if mechanism is None or not set(fault.needs) <= project.has or (fault.direction == "backward" and not project.backward):
            continue
        settings = [setting(mechanism, project, tuple(n for n in fault.needs if n in OPTIONS), seed) for seed in seeds]
        runs = [s.returned(kernel(mechanism, fault, project.dtype, tile=s.tile)) for s in settings]
        if any(not np.array_equal(got[n], s.right[n], equal_nan=True) for s, got in zip(settings, runs, strict=True) for n in got):
            shown.append(fault)
            accepted += [fault] if all(s.accepts(got) for s, got in zip(settings, runs, strict=True)) else []
    plain = [setting(TRIED[project.family][0], project, (), seed) for seed in seeds]
    return Verdict(project, shown, accepted, all(s.accepts(s.right) for s in plain))


def _of_project_at(index: int) -> tuple[Any, ...]:
    """What can leave a process: rules are functions of functions, and stay."""
    return tuple(of_project(PROJECTS[index]))[1:]


class Met(NamedTuple):
    """What `refattn.testing.check` says of a fault in one format and with one seed."""

    fault: Fault
    dtype: str
    seed: int
    found: str | None
    """Where it is found first; "" where it is accepted, None where it changes nothing that is returned."""


def found_by_check(name: str, family: str, dtype: str, seed: int = 0) -> str | None:
    """Where check first finds a fault: each mechanism, then each case; "" and None as of `Met`."""
    fault, target = next(f for f in faults(family=family) if f.name == name), named_format(dtype)
    mechanisms = [n for n in MECHANISMS if not n.startswith("chunked_") and fault in faults(n)]
    with one_thread():
        for m in map(mechanism_named, mechanisms):
            candidate = as_candidate(kernel(m.spec.name, fault, dtype, tile=TILES[family]), m)
            for case in testing.cases(m, seed=seed):
                if any(r.status == "fail" for r in compare_case(candidate, m, case, target)):
                    return f"{m.spec.name}, {case.name}"
        changes = (_changes(n, fault, target, case) for n in mechanisms for case in testing.cases(mechanism_named(n), seed=seed))
        return "" if any(changes) else None


def _changes(mechanism: str, fault: Fault, target: Format, case: Case) -> bool:
    """Whether a fault changes a bit of what is returned."""
    wrong, right = (kernel(mechanism, f, target.name, tile=TILES[fault.family]) for f in (fault, None))
    call = rounded(mechanism_named(mechanism), case.arguments, target)
    if wrong.unsupported & call.keys():
        return False
    (y, pullback), (z, exact_pullback) = wrong.vjp(**call), right.vjp(**call)
    ds = [target.round(d) for d in testing.cotangents(tuple(np.asarray(x, float) for x in outputs(z)))]
    got, exact = ([*outputs(made), *back(*ds).values()] for made, back in ((y, pullback), (z, exact_pullback)))
    return any(not np.array_equal(a, b, equal_nan=True) for a, b in zip(got, exact, strict=True))


def refused_by_check(seed: int) -> list[str]:
    """The comparisons in which check refuses an honest kernel, on samples of this seed.

    Ways to compute, and formats, take turns; of chunked mechanisms, which have the kernels of the others, one at a time.
    """
    chunked = [n for n in MECHANISMS if n.startswith("chunked_")]
    asked = [n for n in MECHANISMS if n not in chunked] + [chunked[seed % len(chunked)]]
    with one_thread():
        return [line for name in asked for line in _refused(name, seed)]


def _refused(name: str, seed: int) -> Iterator[str]:
    family, m, dtype = MECHANISMS[name].family, mechanism_named(name), FORMATS[seed % len(FORMATS)]
    right = honest(name, dtype, tile=TILES[family])[seed // len(FORMATS) % 3]
    candidate = as_candidate(right.kernel, m)
    drawn = [Case(s.name, dict(s.arguments)) for s in testing.samples(m, seed)]
    if family == "attention":
        projects = [p for p in PROJECTS if p.family == "attention" and p.dtype == dtype]
        drawn += [Case(p.name, call_of(name, p, ("softcap", "sinks") * (seed % 2), seed)) for p in projects]
    for case in drawn:
        for r in compare_case(candidate, m, case, named_format(dtype)):
            if r.status == "fail":
                yield f"{right.name}, seed {seed}: {r}"


def accepted_by_check(met: Sequence[Met], dtype: str) -> tuple[list[Fault], list[Fault]]:
    """The faults that show in a format, and those of them that one seed at least accepts."""
    here = [m for m in met if m.dtype == dtype]
    shown = {m.fault.name + m.fault.family: m.fault for m in here if m.found is not None}
    return list(shown.values()), [f for n, f in shown.items() if any(m.found == "" for m in here if m.fault.name + m.fault.family == n)]


def missed_by_check(met: Sequence[Met]) -> list[Fault]:
    """The faults that some seed finds in no format."""
    caught = {(m.fault.name, m.fault.family, m.seed) for m in met if m.found}
    return list({(m.fault.name, m.fault.family): m.fault for m in met if (m.fault.name, m.fault.family, m.seed) not in caught}.values())


def table(verdicts: Sequence[Verdict], met: Sequence[Met] = (), honest_too: str = "yes") -> Iterator[str]:
    """The first table of the page."""
    yield "| tests of | in | rule | inputs | accepts the honest kernel | wrong kernels accepted |"
    yield "| --- | --- | --- | --- | --- | ---: |"
    for v in verdicts:
        p = v.project
        yield (
            f"| {p.name} | {p.dtype} | {p.rule.replace('|', chr(92) + '|')} | {p.inputs} | {'yes' if v.accepts_honest else 'no'} | "
            f"{len(v.accepted)} of {len(v.shown)} |"
        )
    for dtype in dict.fromkeys(m.dtype for m in met):
        shown, accepted = accepted_by_check(met, dtype)
        yield f"| `refattn.testing.check` | {dtype} | a budget for each element | its cases | {honest_too} | {len(accepted)} of {len(shown)} |"


def page(verdicts: Sequence[Verdict], met: Sequence[Met], seeds: int, refused: Sequence[str]) -> str:
    """The whole page."""
    missed, tried = missed_by_check(met), len({m.seed for m in met})
    lines = [INTRODUCTION.format(count=len(faults())), *table(verdicts, met, "no" if refused else "yes"), ""]
    lines.append(
        f"Faults that `check`, at its level `quick`, accepts in every format: {len(missed)} of {len(faults())} (seeds: {tried}). "
        "A row counts those that it accepts in this format, with one seed or more, of those that change a bit of what is returned there.\n"
    )
    lines.append(
        f"Honest comparisons that it refuses: {len(refused)} (seeds: {seeds}). Each seed draws the samples of {len(MECHANISMS)} mechanisms, "
        "of the four chunked ones one in turn, and the inputs of the projects above; three ways to compute and three formats take turns.\n"
    )
    lines += ["## What is let through", ""]
    for v in verdicts:
        names = ", ".join(f.name for f in v.accepted) or "nothing"
        lines.append(f"- **{v.project.name}, {v.project.dtype}** ({v.project.source}): {names}.")
    for dtype in FORMATS:
        names = ", ".join(f"{f.name} ({f.family})" for f in accepted_by_check(met, dtype)[1]) or "nothing"
        lines.append(f"- **`refattn.testing.check`, {dtype}**: {names}.")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page; the exit status is 1 where check accepts a fault in every format or refuses an honest kernel."""
    parser = ArgumentParser("docs.faults", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="over how many seeds honest kernels are checked; default: 100")
    parser.add_argument("--wrong-seeds", type=int, default=3, help="over how many seeds wrong kernels are checked; default: 3")
    parser.add_argument("--jobs", type=int, default=1, help="how many processes")
    args = parser.parse_args(arguments)
    asked = [(f, dtype, seed) for seed in range(args.wrong_seeds) for f in faults() for dtype in FORMATS]
    with ProcessPoolExecutor(args.jobs) as pool:
        places = pool.map(found_by_check, *zip(*((f.name, f.family, dtype, seed) for f, dtype, seed in asked), strict=True))
        met = [Met(*task, place) for task, place in zip(asked, progress(places, len(asked), "wrong kernels"), strict=True)]
        found = progress(pool.map(refused_by_check, range(args.seeds)), args.seeds, "honest kernels")
        refused = [line for lines in found for line in lines]
        verdicts = [Verdict(p, *said) for p, said in zip(PROJECTS, pool.map(_of_project_at, range(len(PROJECTS))), strict=True)]
    PAGE.write_text(page(verdicts, met, args.seeds, refused), encoding="utf-8")
    missed = missed_by_check(met)
    print(f"{PAGE.name}: {len(faults())} faults, {len(missed)} missed, {len(refused)} comparisons of honest kernels refused")
    print("\n".join([*(f"missed: {f.family}, {f.name}" for f in missed), *refused]))
    return 1 if missed or refused else 0


if __name__ == "__main__":
    sys.exit(main())
