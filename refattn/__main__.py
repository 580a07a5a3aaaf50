"""The command ``refattn``: list the mechanisms, show one, check somebody's kernel, write golden files, train a model, look at what it attends to."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from typing import NoReturn

import refattn
from refattn.view import catalogue, check_command, golden_command, mutants_command, train_command, view_command

EXAMPLES = """\
examples:
  refattn list --family convolution            what there is
  refattn list --tag core                      what introductions name, and what gives each
  refattn show scaled_dot_product_attention    its signature, shapes, equation, paper and source
  refattn check torch                          is the installed PyTorch right?
  refattn check my_module:my_kernel softmax    is this function a softmax?
  refattn check --command './kernel {case} {out}' softmax    and is this program?
  refattn golden softmax --out golden          calls and results as files, for tests in any language
  refattn mutants --replace my_module:attention --as scaled_dot_product_attention -- pytest test_mine.py
                                               which wrong kernels does this test let through?
  refattn train digits-transformer             a model that learns to read digits, in seconds
  refattn view --model transformer --open      what do the heads look at?

exit status: 0 all is right, 1 something is wrong, 2 the command could not run
"""


class _Parser(ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def parser() -> ArgumentParser:
    """The command line."""
    whole = _Parser(
        "refattn",
        description="The reference for attention and convolution kernels, and the check of yours.",
        epilog=EXAMPLES,
        formatter_class=RawDescriptionHelpFormatter,
    )
    whole.add_argument("--version", action="version", version=f"refattn {refattn.__version__}")
    commands = whole.add_subparsers(metavar="COMMAND", title="commands", required=True)
    for name, text, arguments, run in (
        ("list", "what there is", catalogue.add_list_arguments, catalogue.run_list),
        ("show", "everything about one mechanism", catalogue.add_show_arguments, catalogue.run_show),
        ("check", "compare kernels with the reference", check_command.add_arguments, check_command.run_check),
        (
            "golden",
            "write calls, results and tolerances as files, for tests in any language",
            golden_command.add_arguments,
            golden_command.run_golden,
        ),
        ("mutants", "try a test of a kernel on kernels that are wrong", mutants_command.add_arguments, mutants_command.run_mutants),
        ("train", "train a small model with the gradients of this package", train_command.add_arguments, train_command.run_train),
        ("view", "a page that shows what a model attends to", view_command.add_arguments, view_command.run_view),
    ):
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        arguments(command)
        command.set_defaults(run=run)
    return whole


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0 (right), 1 (wrong) or 2 (could not run)."""
    try:
        try:
            args = parser().parse_args(arguments)
            return args.run(args)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe has gone: nothing more to say, and nothing to say it to
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    except (LookupError, ValueError, TypeError, ImportError, OSError) as error:
        said = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        print(f"refattn: {' '.join(said.split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("refattn: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
