"""``refattn check``: a table of what a check found, the worst result of each mechanism first."""

from __future__ import annotations

import dataclasses
import os
import sys
import warnings
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from refattn._core import Mechanism
from refattn.testing import adapters
from refattn.testing.battery import Case
from refattn.testing.candidates import Candidate, refuse_unknown_options
from refattn.testing.checking import compare_case
from refattn.testing.command import command_candidate
from refattn.testing.evidence import few
from refattn.testing.frameworks import FRAMEWORKS
from refattn.testing.manifest import STORAGES
from refattn.testing.precision import FORMATS, MIXED, named_format
from refattn.testing.report import Report, Result
from refattn.testing.reproducing import chosen, command_line, with_lines
from refattn.testing.vacuous import untold
from refattn.view import sweep_command
from refattn.view.catalogue import find
from refattn.view.table import Table, progress

REPEATED: dict[str, Any] = {
    "level": "quick", "seed": 0, "framework": "numpy", "layout": None, "argument": [], "supports": None, "timeout": 60.0, "format": "bin",
}  # fmt: skip
"""Options that one case alone needs as well, and their defaults."""
MOST = 8
"""Processes, unless more are asked for: each reads all kernels first."""
STYLES = {"pass": "green", "known_difference": "yellow", "fail": "bold red", "skipped": "dim"}


def add_arguments(parser: ArgumentParser) -> None:
    """The options of ``refattn check``."""
    known = ", ".join(adapters.ADAPTERS)
    parser.add_argument("target", metavar="TARGET", nargs="?", help=f"{known}, or module:callable; default: what is installed of these")
    parser.add_argument("name", metavar="NAME", nargs="?", help="only this mechanism; what a callable should be")
    parser.add_argument("--dtype", choices=[*FORMATS, *MIXED], action="append", help="may be given again; default: float32")
    parser.add_argument("--level", choices=["quick", "full", "torture"], default="quick", help="how many sizes and seeds")
    parser.add_argument("--case", metavar="CASE", help="only this case, by the name that a table gives it")
    parser.add_argument("--framework", choices=list(FRAMEWORKS), default="numpy", help="whose arrays a callable takes; default: numpy")
    parser.add_argument("--layout", help="bshd for (batch, length, heads, head_dim), nhwc for channels last")
    parser.add_argument("--argument", metavar="THEIRS=OURS", action="append", default=[], help="a callable's own name of an argument")
    parser.add_argument("--command", metavar="COMMAND", help="check a program: './kernel {case} {out}'; then NAME alone follows")
    parser.add_argument("--supports", metavar="A,B", help="the optional arguments that a program or callable takes; default: all")
    parser.add_argument("--timeout", metavar="S", type=float, default=60.0, help="seconds for one run of a program; default: 60")
    parser.add_argument("--format", choices=STORAGES, default="bin", help="how a program is given numbers; default: bin")
    parser.add_argument("--keep", metavar="DIR", type=Path, help="leave the folders that a program reads and writes here")
    parser.add_argument("--seed", type=int, default=0, help="other numbers in all cases; default: 0")
    parser.add_argument(
        "--jobs", metavar="N", type=int, help="work in this many processes; default: this one, or all cores for all of refattn_numba"
    )
    parser.add_argument("--ledger", metavar="FILE", help="write each finished case here; what it holds already is not done again")
    parser.add_argument("--verbose", action="store_true", help="a line for every comparison, not only for those that are not right")
    parser.add_argument("--report", metavar="FILE", help="write a page that shows where what failed is wrong")
    parser.add_argument("--json", action="store_true", help="print a list of objects")


def run_check(args: Namespace) -> int:
    """Check a target; the exit status is 0 where it is right, 1 where it is wrong, 2 where nothing can be told of a mechanism."""
    sys.path.insert(0, str(Path.cwd()))  # module:callable is looked for here first, as `python -m` does
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if args.ledger and not args.target:
        raise ValueError("--ledger needs a TARGET: it belongs to one")
    if args.command and (args.ledger or args.jobs not in {None, 1}):
        raise ValueError("--command takes no --jobs or --ledger: each case of a program is a process already")
    names = [args.command or args.target] if args.command or args.target else list(adapters.targets())
    if not names:
        raise LookupError(f"nothing to check: none of {', '.join(adapters.ADAPTERS)} is installed")
    reports = {name: _checked(name, Namespace(**{**vars(args), "jobs": _jobs(name, args)})) for name in names}
    every = [r for report in reports.values() for r in report.results]
    if args.report:
        Path(args.report).write_text(Report(every).to_html(f"What the check of {', '.join(names)} found"), encoding="utf-8")
    if args.json:
        print(Report(every).to_json())
    else:
        for name, report in reports.items():
            _print(name, report, args.verbose)
    if not any(r.passed for r in every) and not any(report.failures for report in reports.values()):
        print("refattn: nothing was compared", file=sys.stderr)
        return 2
    if any(report.failures for report in reports.values()):
        return 1
    return 2 if any(":" not in name for name in untold(every)) else 0


def _checked(target: str, args: Namespace) -> Report:
    if args.jobs != 1 or args.ledger:
        if args.case is not None:
            raise ValueError("--case takes no --jobs or --ledger: it is one alone")
        swept = sweep_command.swept_with(target, args, _names(args.argument))
        return Report([r for one in swept.results for r in with_lines([one], _again(target, one.mechanism, args))])
    dtypes = [named_format(d) for d in args.dtype or ("float32",)]
    work: list[tuple[Mechanism[..., Any], Candidate, Case, Any]] = [
        (m, run, case, dtype)
        for m, candidate in (_program(args) if args.command else _resolved(target, args))
        for dtype in dtypes
        for run, case in chosen(candidate, m, args.level, args.seed, args.case)
    ]
    results: list[Result] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a candidate's own warnings are not what was asked
        for m, candidate, case, dtype in progress(work, len(work), f"checking {target}"):
            results += with_lines(compare_case(candidate, m, case, dtype), _again(target, m.spec.name, args))
    return Report(few(results))


def _jobs(target: str, args: Namespace) -> int:
    """Peers that have much to prepare are checked on all cores; one mechanism, or a page with what no process sends, is not."""
    if args.jobs is not None:
        return args.jobs
    one = any(x is not None for x in (args.name, args.case, args.supports, args.report))
    return 1 if one or target not in adapters.PREPARED else min(os.cpu_count() or 1, MOST)


def _again(target: str, mechanism: str, args: Namespace) -> Callable[[str, str], str]:
    """From a case and a dtype to the command that repeats them alone."""
    what = ["--command", target] if args.command else [target]
    return command_line([*what, mechanism], {n: getattr(args, n) for n in REPEATED}, REPEATED)


def _print_explanation(report: Report) -> None:
    """Which conventions match, and how to repeat the first failure of each mechanism."""
    found = report.explain()
    for name in dict.fromkeys(r.mechanism for r in report.failures):
        for said in found[name].conventions if name in found else ():
            print(f"{name}: {said}")
        again = next((r.reproduce for r in report.failures if r.mechanism == name), "")
        print(f"{name}: to repeat the first case that is wrong:\n    {again}\n")


def _resolved(target: str, args: Namespace) -> list[tuple[Mechanism[..., Any], Candidate]]:
    found = adapters.resolve(target, args.name, framework=args.framework, layout=args.layout, arguments=_names(args.argument))
    if args.supports is None:
        return found
    for m, _ in found:
        refuse_unknown_options(m, _supports(args))
    return [(m, dataclasses.replace(candidate, supports=_supports(args))) for m, candidate in found]


def _program(args: Namespace) -> list[tuple[Mechanism[..., Any], Candidate]]:
    """A command line, and the mechanism that is named in place of a target."""
    if args.target is None or args.name is not None:
        raise ValueError("--command needs one NAME after it: what the program should compute")
    if args.framework != "numpy" or args.layout or args.argument:
        raise ValueError("--command takes no --framework, --layout or --argument: a program reads files")
    m = find(args.target)
    supports = None if args.supports is None else _supports(args)
    program = command_candidate(args.command, m, supports=supports, timeout=args.timeout, storage=args.format, keep=args.keep)
    return [(m, program)]


def _supports(args: Namespace) -> list[str]:
    return [name.strip() for name in args.supports.split(",") if name.strip()]


def _names(pairs: list[str]) -> dict[str, str]:
    """From ``q=query`` to a mapping."""
    if wrong := [pair for pair in pairs if pair.count("=") != 1]:
        raise ValueError(f"--argument is {wrong[0]!r}, but must be THEIRS=OURS")
    return {theirs: ours for theirs, _, ours in (pair.partition("=") for pair in pairs)}


def _print(target: str, report: Report, verbose: bool) -> None:
    shown = [r for r in report.results if verbose or r.status in {"fail", "known_difference"}]
    if shown:
        details = Table("status", "mechanism", "case", "what", "dtype", "error", "error/budget", "reason")
        for r in shown:
            where = f"{r.wrong} of {r.elements} wrong, worst at {r.worst_index}" if r.worst_index is not None else ""
            reason = r.reason or ("; ".join(filter(None, (where, *r.pattern))) if r.status == "fail" else "")
            cells = (r.status, r.mechanism, r.case, r.what, r.dtype, r.worst_error, r.error_over_budget, reason)
            details.row(*cells, style=STYLES[r.status])
        details.print()
        print()
    _print_explanation(report)
    summary = Table(target, "dtype", "right", "known difference", "wrong", "skipped", "worst error/budget")
    for mechanism, dtype in dict.fromkeys((r.mechanism, r.dtype) for r in report.results):
        part = Report([r for r in report.results if (r.mechanism, r.dtype) == (mechanism, dtype)])
        counts = part.counts
        compared = (r for r in part.results if r.status in {"pass", "fail"})
        worst = max((r.error_over_budget for r in compared if r.error_over_budget is not None), default=None)
        style = STYLES["fail" if counts["fail"] else "pass" if counts["pass"] else "skipped"]
        cells = (counts["pass"], counts["known_difference"], counts["fail"], counts["skipped"])
        summary.row(mechanism, dtype, *cells, None if worst is None else round(worst, 3), style=style)
    summary.print()
    reasons = Counter(r.reason for r in report.results if r.status == "skipped")
    if reasons:
        print()
        skipped = Table("skipped", "because")
        for reason, count in reasons.most_common():
            skipped.row(count, reason, style=STYLES["skipped"])
        skipped.print()
    vain = untold(report.results)
    if vain:
        print(f"\nnothing could be told of {len(vain)}, whose budgets are larger than the signal in every case:")
        print("\n".join(f"  {name}" for name in vain))
    whole = [name for name in vain if ":" not in name]
    verdict = "wrong" if report.failures else "right" if report.passed else "not compared"
    print(f"\n{target}: {verdict}{f', but for {len(whole)} mechanisms of which nothing can be told' if whole and report.passed else ''}\n")
