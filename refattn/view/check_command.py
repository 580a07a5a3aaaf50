"""``refattn check``: a table of what a check found."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """The options of ``refattn check``."""
    parser.add_argument("target", metavar="TARGET", nargs="?", help="a package, or module:callable")
    parser.add_argument("name", metavar="NAME", nargs="?", help="only this mechanism")


def run_check(args: Namespace) -> int:
    """Check a target; the exit status is 0 where it is right, 1 where it is wrong."""
    raise LookupError(f"no adapter knows {args.target!r}")
