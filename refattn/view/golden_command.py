"""``refattn golden``: calls, results and tolerances as files, for tests in any language."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from refattn._core import Mechanism
from refattn.testing.battery import Case, cases
from refattn.testing.bits import NotHeldError
from refattn.testing.golden import chosen_cases, distinct, folder_name, verify, write_collection, write_golden_case
from refattn.testing.manifest import MANIFEST, STORAGES
from refattn.testing.onnx_files import Unsuited, write_onnx_case
from refattn.testing.precision import FORMATS, Format, named_format
from refattn.view.catalogue import find
from refattn.view.table import progress


def add_arguments(parser: ArgumentParser) -> None:
    """The options of ``refattn golden``."""
    parser.add_argument("name", metavar="NAME", nargs="?", help="a name that `refattn list` prints")
    parser.add_argument("--out", metavar="DIR", type=Path, help="where to: a folder that is empty or does not exist")
    parser.add_argument("--dtype", choices=list(FORMATS), action="append", help="may be given again; default: float32")
    parser.add_argument(
        "--case", metavar="PATTERN", action="append", default=[], help="only these, as a shell's pattern; may be given again"
    )
    parser.add_argument("--level", choices=["quick", "full", "torture"], default="quick", help="how many cases there are to choose from")
    parser.add_argument("--format", choices=[*STORAGES, "onnx"], default="safetensors", help="how numbers are stored; default: safetensors")
    parser.add_argument("--seed", metavar="N", type=int, default=2, help="of the cotangents; default: 2, as refattn check has it")
    parser.add_argument("--exact", action="store_true", help="compute by refattn.exact: the same bits everywhere; slow for large cases")
    parser.add_argument("--list", action="store_true", help="print the names of the cases, and write nothing")
    parser.add_argument("--verify", metavar="DIR", type=Path, help="compare files that were written with their SHA-256")


def run_golden(args: Namespace) -> int:
    """Write golden files, or verify them; the exit status is 1 where a file is not what it was."""
    if args.verify is not None:
        if args.name is not None or args.out is not None:
            raise ValueError("--verify reads golden files: it takes no NAME and no --out")
        return _verify(args.verify)
    if args.name is None:
        raise ValueError("NAME is missing: say of which mechanism, or --verify DIR")
    mechanism = find(args.name)
    every = chosen_cases(list(cases(mechanism, args.level)), args.case)
    if args.list:
        print("\n".join(case.name for case in every))
        return 0
    if args.out is None:
        raise ValueError("--out is missing: say where to write")
    if args.exact and args.format == "onnx":
        raise ValueError("--exact is not for --format onnx, whose files hold results in the format that is tested")
    _write(args, mechanism, every, [named_format(d) for d in dict.fromkeys(args.dtype or ("float32",))])
    return 0


def _verify(folder: Path) -> int:
    if not folder.is_dir():
        raise ValueError(f"--verify is {str(folder)!r}, but must be a folder")
    try:
        count = verify(folder)
    except ValueError as error:
        print(f"{folder}: wrong: {error}")
        return 1
    print(f"{folder}: {count} tensors are what they were")
    return 0


def _write(args: Namespace, mechanism: Mechanism[..., Any], every: list[Case], targets: list[Format]) -> None:
    out: Path = args.out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out is {str(out)!r}, but must be a folder that is empty or does not exist")
    out.mkdir(parents=True, exist_ok=True)
    work = [(target, case) for target in targets for case in every]
    folders, left_out = [], {}
    for target, case in progress(work, len(work), f"writing {args.name}"):
        folder = distinct(f"{target.name}/{folder_name(case.name)}", [*folders, *left_out])
        try:
            if args.format == "onnx":
                write_onnx_case(out / folder, mechanism, case, target, seed=args.seed)
            else:
                write_golden_case(out / folder, mechanism, case, target, args.format, seed=args.seed, exactly=args.exact)
        except (Unsuited, NotHeldError) as error:  # the operator has not this option, or the type not this number
            left_out[folder] = str(error)
            continue
        folders.append(folder)
    for folder, why in left_out.items():
        print(f"{folder}: left out: {why}")
    if not folders:
        raise ValueError(f"nothing was written: no case of {args.name} can be")
    write_collection(out, mechanism, folders)
    size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    print(f"{out / MANIFEST}: {len(folders)} cases, {size / 1e6:.1f} MB")
