"""Write the pages of docs/benchmarks, which need no network: ``python -m benchmarks.publish [--local] [--output FOLDER]``.

index.html has the tables and rooflines of what `record` keeps, history.html is the site of ``asv publish`` as one page, of what
`history` keeps; with ``--local``, of what was measured in this clone too.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.history import COMMITTED, HERE, LOCAL, asv, copied
from benchmarks.publish_page import page
from benchmarks.record import RESULTS
from benchmarks.self_contained import one_page

OUTPUT = HERE.parent / "docs" / "benchmarks"


def history_page(*sources: Path) -> str:
    """The page of asv."""
    with tempfile.TemporaryDirectory() as folder:
        results, site = Path(folder) / "results", Path(folder) / "site"
        for source in sources:
            copied(source, results)
        done = asv("publish", "--no-pull", results=results, site=site)
        if done.returncode:
            raise RuntimeError(f"asv publish failed; has this clone all commits that were measured?\n{done.stdout}{done.stderr}")
        return one_page(site)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.publish", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FOLDER", help="where to write (default docs/benchmarks)")
    parser.add_argument("--local", action="store_true", help="with what asv has measured in this clone")
    given = parser.parse_args(arguments)
    given.output.mkdir(parents=True, exist_ok=True)
    sources = [source for source in (COMMITTED, *([LOCAL] if given.local else [])) if (source / "benchmarks.json").exists()]
    suites = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(RESULTS.glob("*.json"))}
    pages = {"index.html": page(suites)} | ({"history.html": history_page(*sources)} if sources else {})
    for name, text in pages.items():
        path = given.output / name
        path.write_text(text, "utf-8")
        print(f"{len(text.encode()) / 1024:.0f} KiB in {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
