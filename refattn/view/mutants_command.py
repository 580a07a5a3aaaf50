"""``refattn mutants``: the wrong kernels that somebody's own test lets through."""

from __future__ import annotations

import ast
import json
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Sequence
from typing import Any

from refattn.testing.faulty import MECHANISMS, Fault, faults
from refattn.testing.faulty.trial import Place, Runner, Trial, select
from refattn.testing.precision import FORMATS
from refattn.view.table import Table, progress

ORDER = {"survived": 0, "not exercised": 1, "caught": 2}
STYLES = {"survived": "bold red", "refused": "bold red", "not exercised": "yellow", "caught": "green", "accepted": "green"}


def add_arguments(parser: ArgumentParser) -> None:
    """The options of ``refattn mutants``."""
    parser.add_argument("--replace", metavar="MODULE:FUNCTION", help="the function under test, named where the test looks it up")
    parser.add_argument("--as", dest="mechanism", metavar="NAME", choices=list(MECHANISMS), help="which mechanism it is")
    parser.add_argument(
        "--argument", metavar="THEIRS=OURS", action="append", default=[], help="its own name of an argument; nothing: ignore"
    )
    parser.add_argument("--option", metavar="OURS=VALUE", action="append", default=[], help="an option of every call: align=lower_right")
    parser.add_argument("--layout", help="bshd for (batch, length, heads, head_dim), nhwc for channels last")
    parser.add_argument("--dtype", choices=list(FORMATS), help="precision of the kernels; default: that of the arrays")
    parser.add_argument("--tile", type=int, default=0, help="positions of a tile; default: 64 in attention, 16 elsewhere")
    parser.add_argument(
        "--only", metavar="WORDS", action="append", default=[], help="only faults whose name has this in it; again for more"
    )
    parser.add_argument("--direction", choices=["forward", "backward"], help="only what outputs show, or what gradients alone do")
    parser.add_argument("--jobs", type=int, default=1, help="how many runs at the same time; default: 1")
    parser.add_argument("--timeout", type=float, help="seconds of one run; default: ten times the honest one's, at least 60")
    parser.add_argument("--list", action="store_true", help="the faults, and nothing is run")
    parser.add_argument("--json", action="store_true", help="print an object")
    parser.add_argument(
        "command", metavar="COMMAND", nargs="*", help="after --: what tests the function, for example pytest tests/test_it.py"
    )


def run_mutants(args: Namespace) -> int:
    """Run the command; the exit status is 0 where all faults are caught, 1 where one survives, 2 where nothing can be told."""
    if args.list:
        _list(faults(args.mechanism, direction=args.direction, only=args.only), as_json=args.json)
        return 0
    for name in ("replace", "mechanism"):
        if getattr(args, name) is None:
            raise ValueError(f"--{'as' if name == 'mechanism' else name} is missing")
    if args.jobs < 1 or args.tile < 0 or (args.timeout is not None and not args.timeout > 0):
        raise ValueError("--jobs and --timeout must be positive, --tile not negative")
    planted = select(args.mechanism, args.only, args.direction)
    runner = Runner(_place(args), args.command, args.timeout)
    honest = runner.honest()
    refused = [t for t in honest if t.verdict == "refused" or not t.called]
    trials: list[Trial] = [] if refused else list(progress(runner.faulty(planted, args.jobs), len(planted), "planting faults"))
    trials.sort(key=lambda t: (ORDER[t.verdict], planted.index(t.fault) if t.fault in planted else 0))
    counts = Counter(t.verdict for t in trials)
    if args.json:
        print(json.dumps(_as_dict(args, honest, trials), indent=1))
    elif refused:
        _print_refused(refused)
    else:
        _print(trials, counts)
    if refused or not counts["caught"] + counts["survived"]:
        return 2
    return 1 if counts["survived"] else 0


def _place(args: Namespace) -> Place:
    module, colon, path = args.replace.partition(":")
    if not (module and colon and path):
        raise ValueError(f"--replace is {args.replace!r}, but must be MODULE:FUNCTION")
    arguments, options = _pairs("--argument", args.argument), _pairs("--option", args.option)
    parameters = MECHANISMS[args.mechanism](args.mechanism).__signature__.parameters
    for what, names in (("--argument", arguments.values()), ("--option", options)):
        if unknown := [n for n in names if n and n not in parameters]:
            raise ValueError(f"{what} names {unknown[0]!r}, which {args.mechanism} does not have: it has {', '.join(parameters)}")
    values = {n: _value(x) for n, x in options.items()}
    return Place(module, path, args.mechanism, args.dtype, args.tile, arguments, values, args.layout)


def _pairs(what: str, given: Sequence[str]) -> dict[str, str]:
    if wrong := [pair for pair in given if pair.count("=") != 1]:
        raise ValueError(f"{what} is {wrong[0]!r}, but must be NAME=VALUE")
    return {name: value for name, _, value in (pair.partition("=") for pair in given)}


def _value(text: str) -> Any:
    """A number, a word, True, False or None."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _list(found: Sequence[Fault], *, as_json: bool) -> None:
    if as_json:
        shown = ("name", "what", "family", "direction", "needs", "mirrors", "mechanisms")
        print(json.dumps([{n: getattr(f, n) for n in shown} for f in found], indent=1))
        return
    table = Table("family", "direction", "fault", "needs", "what is wrong")
    for f in found:
        table.row(f.family, f.direction, f.name, ", ".join(f.needs), f.what + (f" Like {f.mirrors}." if f.mirrors else ""))
    table.print(wrap=True)
    print(f"\n{len(found)} faults")


def _print_refused(refused: Sequence[Trial]) -> None:
    for t in refused:
        if t.verdict == "refused":
            print(f"The command refuses an honest kernel ({t.name}), so its verdict on broken ones says nothing:\n")
            print(t.said or "it printed nothing" if not t.timed_out else f"it was stopped after {t.seconds:.0f} seconds\n{t.said}")
        else:
            print(
                f"The command passes, but never calls the function ({t.name}): name it as the module in which the test looks it up has it."
            )
        print()


def _print(trials: Sequence[Trial], counts: Counter[str]) -> None:
    shown = [t for t in trials if t.verdict != "caught"]
    if shown:
        table = Table("verdict", "direction", "fault", "largest change", "what is wrong")
        for t in shown:
            what, change = max(t.changes.items(), key=lambda item: item[1], default=("", None))
            largest = "" if change is None else f"{what} {change:.2g}"
            fault = t.fault
            table.row(t.verdict, *(("", t.name, largest, "") if fault is None else (fault.direction, t.name, largest, fault.what)),
                      style=STYLES[t.verdict])  # fmt: skip
        table.print(wrap=True)
        print()
    exercised = counts["caught"] + counts["survived"]
    print(f"{exercised} faults changed what the function returned: {counts['caught']} caught, {counts['survived']} survived")
    if counts["not exercised"]:
        print(f"{counts['not exercised']} changed nothing that was returned: the command uses no input or gradient that shows them")


def _as_dict(args: Namespace, honest: Sequence[Trial], trials: Sequence[Trial]) -> dict[str, Any]:
    def one(t: Trial) -> dict[str, Any]:
        about = {} if t.fault is None else {n: getattr(t.fault, n) for n in ("what", "direction", "needs", "mirrors")}
        changes = {n: x if x < float("inf") else "inf" for n, x in t.changes.items()}
        return {
            "name": t.name,
            "verdict": t.verdict,
            "seconds": round(t.seconds, 3),
            "changes": changes,
            "called": t.called,
            "timed_out": t.timed_out,
            "said": t.said,
            **about,
        }

    counts = Counter(t.verdict for t in trials)
    return {
        "replaced": args.replace,
        "mechanism": args.mechanism,
        "command": args.command,
        "honest": [one(t) for t in honest],
        "faults": [one(t) for t in trials],
        "counts": {v: counts[v] for v in ("caught", "survived", "not exercised")},
    }
