"""Write docs/verdicts.md: what `refattn check torch --level full` says of PyTorch, and why: `python -m docs.verdicts [--seeds N]`."""

from __future__ import annotations

import argparse
import collections
import importlib
import platform
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import refattn
from refattn import testing
from refattn._core.random import Random
from refattn.testing import adapters
from refattn.testing.checking import compare_case
from refattn.testing.handling import runs
from refattn.testing.precision import named_format
from refattn.testing.report import Result
from refattn.testing.vacuous import VACUOUS

PAGE = Path(__file__).with_name("verdicts.md")
DTYPES = ("float32", "bfloat16")


class Fault(NamedTuple):
    """A fault of PyTorch in a call of small whole numbers, whose sums are exact in float32: all ways to compute it must agree."""

    title: str
    mechanism: str
    x: tuple[int, ...]
    weight: tuple[int, ...]
    options: dict[str, Any]
    what: str
    cases: tuple[str, ...]
    known: str

    def arguments(self) -> dict[str, Any]:
        """The call."""
        random = Random(0)
        return {"x": random.integers(1, 3, self.x) * 1.0, "weight": random.integers(1, 3, self.weight) * 1.0, **self.options}


FAULTS = (
    Fault(
        "one output along the last axis, of which the stride is more than 1",
        "conv2d",
        (1, 4, 8, 4),
        (4, 4, 1, 3),
        {"stride": (1, 2)},
        "output",
        ("one output along the last axis", "circular"),
        "PyTorch issue 169688 names it for conv3d",
    ),
    Fault(
        "an input of one position along the first axis, with padding before and after, and an odd number of channels",
        "conv3d",
        (1, 3, 1, 4, 8),
        (2, 3, 2, 2, 2),
        {"padding": (1, 0, 0)},
        "output",
        ("one position between padding",),
        "not found in its issues",
    ),
    Fault(
        "a tap of the kernel that meets padding alone, whose gradient is 0: it is memory that nobody has written",
        "conv1d",
        (1, 6, 2),
        (6, 3, 2),
        {"stride": 3, "padding": 1, "groups": 2},
        "d_weight",
        ("a tap that meets padding alone",),
        "not found in its issues",
    ),
)


def in_torch(fault: Fault, dtype: str, *, onednn: bool = True) -> np.ndarray[Any, Any]:
    """What PyTorch computes in this type, with or without oneDNN, for a cotangent of ones."""
    torch: Any = importlib.import_module("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of settings for other devices
        flags = torch.backends.mkldnn.flags(enabled=onednn)
        with flags:
            given = fault.arguments()
            x, weight = (torch.from_numpy(given[n]).to(getattr(torch, dtype)).requires_grad_() for n in ("x", "weight"))
            y = getattr(torch.nn.functional, fault.mechanism)(x, weight, **fault.options)
            made = y if fault.what == "output" else torch.autograd.grad(y, weight, torch.ones_like(y))[0]
    return made.detach().double().numpy()


def exactly(fault: Fault) -> np.ndarray[Any, Any]:
    """What is right, and exact."""
    y, pullback = getattr(refattn, fault.mechanism).vjp(**fault.arguments())
    return y if fault.what == "output" else pullback(np.ones_like(y))["weight"]


def wrong(fault: Fault, got: np.ndarray[Any, Any], dtype: str) -> int:
    """How many elements are not the exact ones, rounded once."""
    return int((got != named_format(dtype).round(exactly(fault))).sum())


def results(dtype: str, seeds: int) -> Iterator[Result]:
    """Everything that is compared."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for m, candidate in adapters.resolve("torch"):
            for seed in range(seeds):
                for run, case in runs(candidate, m, testing.cases(m, "full", seed), far=True):
                    yield from compare_case(run, m, case, named_format(dtype))


def why(r: Result) -> str:
    """The fault that a failure belongs to; an empty string is a failure that nobody has explained."""
    name = r.case.partition(" (seed")[0].partition(";")[0]
    return next((f.title for f in FAULTS if name in f.cases and r.what == f.what and r.dtype == "bfloat16"), "")


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(["| " + " | ".join(head) + " |", "| " + " | ".join(["---"] * len(head)) + " |", *lines])


def _counted(found: list[Result]) -> str:
    rows = []
    for key in dict.fromkeys((r.mechanism, r.dtype) for r in found):
        of = [r for r in found if (r.mechanism, r.dtype) == key]
        status = collections.Counter(r.status for r in of)
        untold = sum(r.reason == VACUOUS for r in of)
        worst = max((r.error_over_budget or 0 for r in of if r.status == "pass"), default=0)
        rows.append((*key, status["pass"], status["known_difference"], status["fail"], status["skipped"] - untold, untold, f"{worst:.2f}"))
    head = (
        "mechanism",
        "dtype",
        "right",
        "known difference",
        "wrong",
        "not offered",
        "cannot be told",
        "largest error / budget, where right",
    )
    return _table(head, rows)


def page(seeds: int) -> str:
    """The page."""
    torch: Any = importlib.import_module("torch")
    found = [r for dtype in DTYPES for r in results(dtype, seeds)]
    failures = collections.Counter(
        (why(r) or "NOT EXPLAINED", f"{r.mechanism}, {r.what}, {r.case.partition(' (seed')[0]}") for r in found if r.status == "fail"
    )
    shown = [
        (
            f"`{f.mechanism}`",
            f.title,
            exactly(f).size,
            wrong(f, in_torch(f, "bfloat16"), "bfloat16"),
            wrong(f, in_torch(f, "bfloat16", onednn=False), "bfloat16"),
            wrong(f, in_torch(f, "float32"), "float32"),
            f.known,
        )
        for f in FAULTS
    ]
    config = torch.__config__.show()
    onednn = next((line.strip("- ").split(" (")[0] for line in config.splitlines() if "MKL-DNN" in line), "without oneDNN")
    known = sorted({r.reason for r in found if r.status == "known_difference"})
    vain = collections.Counter(
        f"{r.dtype}: {r.what} of {r.case.partition(', ')[0].partition(' (seed')[0]}" for r in found if r.reason == VACUOUS
    )
    texts = {
        "torch": f"PyTorch {torch.__version__}, {onednn}, {torch.backends.cpu.get_cpu_capability()} on {platform.machine()}",
        "seeds": seeds,
        "counted": _counted(found),
        "failures": _table(("because of", "comparison", "times"), [(*k, n) for k, n in sorted(failures.items())]) if failures else "None.",
        "evidence": _table(("", "when", "elements", "wrong, bfloat16", "wrong, bfloat16 without oneDNN", "wrong, float32", "known"), shown),
        "known": "\n".join(f"- {k}" for k in known),
        "vain": "\n".join(f"- {k} ({n})" for k, n in sorted(vain.items())),
    }
    return TEXT.format(**texts)


TEXT = """# What the check says of PyTorch, and why

    refattn check torch --level full --dtype float32 --dtype bfloat16

Seeds below {seeds}; {torch}. Forward and backward, by autograd. `python -m docs.verdicts` writes this page.

{counted}

## Wrong

{failures}

These are faults of PyTorch. Each is shown with small whole numbers, whose sums are exact in float32 and bfloat16's products in it, so that
every way to compute them must give the same numbers, rounded once. `tests/external/test_torch_faults.py` holds that the verdict of the check
is right for them on any processor. Counts of wrong elements on this one:

{evidence}

All go through oneDNN and read memory that nobody has written: counts and errors change from run to run. On the machine of this table, which
has Intel's matrix tiles, all three were right with `ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16`, which switches the kernels for these off.

## Known differences

{known}

A weight of 0 multiplies its value there, and 0 times NaN is NaN; every element that differs is NaN (`tests/external/test_torch_faults.py`).

## What cannot be told

A gradient of scores is nearly 0 where one key has all the weight or all keys are alike: what an honest kernel rounds is larger than what
is left. Values below the smallest normal number may be flushed. Comparisons that tell nothing for this reason:

{vain}

Every output and every gradient is told by other cases.
"""


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=4)
    PAGE.write_text(page(parser.parse_args().seeds), encoding="utf-8")


if __name__ == "__main__":
    main()
