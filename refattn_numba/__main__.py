"""``python -m refattn_numba [--dtype DTYPE] [--jobs N]``: compile all kernels, or read them from disk, and print what that took."""

from __future__ import annotations

import os
import time
from argparse import ArgumentParser
from typing import get_args

from refattn.view.table import Table
from refattn_numba.cpu.specialisations import Precision, warm_up


def main() -> None:
    """Print a table with a row for each kernel, and the whole time."""
    parser = ArgumentParser(prog="python -m refattn_numba", description="Compile all kernels, or read them from disk.")
    parser.add_argument("--dtype", choices=get_args(Precision), action="append", help="may be given again; default: float32")
    parser.add_argument(
        "--jobs", metavar="N", type=int, default=os.cpu_count() or 1, help="compile in this many processes; default: all cores"
    )
    args, began = parser.parse_args(), time.perf_counter()
    done = warm_up(dtypes=args.dtype or ("float32",), jobs=args.jobs)
    took = time.perf_counter() - began
    table = Table("for", "dtype", "kernel", "from", "seconds")
    for row in done:
        table.row(row.group, row.precision, row.kernel, "compiler" if row.source == "compiled" else row.source, round(row.seconds, 2))
    table.print()
    print(f"\n{len(done)} kernels in {took:.1f} seconds")


if __name__ == "__main__":
    main()
