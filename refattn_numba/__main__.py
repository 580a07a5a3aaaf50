"""``python -m refattn_numba [--dtype DTYPE]``: compile all kernels, or read them from disk, and print what that took."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import get_args

from refattn.view.table import Table
from refattn_numba.cpu.specialisations import Precision, warm_up


def main() -> None:
    """Print a table with a row for each kernel, and the whole time."""
    parser = ArgumentParser(prog="python -m refattn_numba", description="Compile all kernels, or read them from disk.")
    parser.add_argument("--dtype", choices=get_args(Precision), action="append", help="may be given again; default: float32")
    done = warm_up(dtypes=parser.parse_args().dtype or ("float32",))
    table = Table("for", "dtype", "kernel", "from", "seconds")
    for row in done:
        table.row(row.group, row.precision, row.kernel, "compiler" if row.source == "compiled" else row.source, round(row.seconds, 2))
    table.print()
    print(f"\n{len(done)} kernels in {sum(row.seconds for row in done):.1f} seconds")


if __name__ == "__main__":
    main()
