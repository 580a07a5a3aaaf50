"""``refattn train``: a model learns, line by line."""

from __future__ import annotations

import itertools
import json
import math
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from refattn._core import Random
from refattn.view.table import Lines

DIGITS = "digits-"
AGREEMENT = 1e-9
STEPS, EVERY = 50, 5


def add_arguments(parser: ArgumentParser) -> None:
    """The options of ``refattn train``."""
    models = ["series", *(DIGITS + name for name in ("cnn", "transformer"))]
    parser.add_argument("model", metavar="MODEL", choices=models, help=", ".join(models))
    parser.add_argument("--epochs", metavar="N", type=_at_least(1), help=f"passes over the data; of series, {STEPS} of one step each")
    parser.add_argument("--seed", metavar="N", type=_at_least(0), default=0, help="of first weights and order; default: 0")
    parser.add_argument("--save", metavar="FILE.npz", type=Path, help="write the weights, as refattn view reads them (digits only)")
    parser.add_argument("--against", choices=["torch"], help="let PyTorch train the same model beside it (series only)")
    parser.add_argument("--json", action="store_true", help="print one object instead of a table")


def _at_least(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise ArgumentTypeError(f"{text!r} is no whole number of at least {least}")
        return number

    return parse


def run_train(args: Namespace) -> int:
    """Train a model; the exit status is 1 where PyTorch finds another loss."""
    if args.model == "series":
        if args.save:
            raise ValueError("--save is for the digits: series is trained to compare its losses")
        return _series(args)
    if args.against:
        raise ValueError(f"--against is for series, not for {args.model}")
    return _digits(args)


def _digits(args: Namespace) -> int:
    from refattn.examples import digits  # noqa: PLC0415  # so that other commands start as fast as without it

    data, name, began = digits.dataset(), args.model.removeprefix(DIGITS), time.perf_counter()
    if args.save:
        args.save.open("ab").close()  # a file that cannot be written is better known before the training than after it
    columns = {"epoch": "5d", "loss": "7.4f", "train accuracy": "9.1%", "test accuracy": "9.1%", "seconds": "7.1f"}
    table, rows, weights = None if args.json else Lines(columns), [], None
    for done in digits.train(name, data, epochs=args.epochs, seed=args.seed):
        weights = done.weights
        rows.append([done.epoch, done.loss, done.train_accuracy, done.test_accuracy, round(time.perf_counter() - began, 1)])
        if table:
            table.row(*rows[-1])
    if args.save:
        digits.save(args.save, weights, data)
    *_, accuracy, seconds = rows[-1]
    if args.json:
        epochs = [dict(zip(("epoch", "loss", "train_accuracy", "test_accuracy", "seconds"), row, strict=True)) for row in rows]
        print(json.dumps({"model": args.model, "seed": args.seed, "test_accuracy": accuracy, "epochs": epochs}, indent=2))
    else:
        print(f"\n{f'saved {args.save}' if args.save else ''}".rstrip())
        print(f"{args.model}: test accuracy {accuracy:.1%} after {seconds:.0f} s")
    return 0


def _series(args: Namespace) -> int:
    from refattn.examples import series  # noqa: PLC0415  # as above
    from refattn.examples.training import descend  # noqa: PLC0415

    random, steps = Random(args.seed), args.epochs or STEPS
    weights = series.first_weights(random)
    x, labels = series.windows(random)
    theirs = series.torch_losses(weights, x, labels, steps) if args.against else None
    columns = {"step": "5d", "loss": ".16f", **({"loss in torch": ".16f", "difference": "10.1e"} if theirs else {})}
    table, losses, worst = None if args.json else Lines(columns), [], 0.0
    for number, step in enumerate(descend(series.loss, weights, itertools.repeat((x, labels), steps), series.LEARNING_RATE)):
        losses.append(step.loss)
        beside = (theirs[number], abs(step.loss - theirs[number]) / abs(theirs[number])) if theirs else ()
        worst = max(worst, *beside[1:], key=lambda d: (math.isnan(d), d)) if beside else worst
        if table and (number % EVERY == 0 or number == steps - 1):
            table.row(number + 1, step.loss, *beside)
    agrees = worst < AGREEMENT
    if args.json:
        made: dict[str, Any] = {"model": args.model, "seed": args.seed, "losses": losses}
        if theirs:
            made |= {"torch_losses": theirs, "relative_difference": worst, "agrees": agrees}
        print(json.dumps(made, indent=2))
    elif theirs:
        verdict = "agrees with" if agrees else "differs from"
        print(
            f"\nseries: {verdict} torch: relative difference up to {worst:.1e} in {steps} steps, where less than {AGREEMENT:.0e} is right"
        )
    else:
        print(f"\nseries: loss {losses[-1]:.4f} after {steps} steps")
    return 0 if agrees else 1
