"""The most memory that a process needs, with Python, its packages and the inputs, where a kernel may keep more than its results."""

from __future__ import annotations

from . import measured

CASES = (
    "attention, full",
    "attention, boolean mask",
    "attention, decode, 512 keys",
    "attention, varlen, 5 to 150 tokens",
    "linear, gated_delta_rule",
    "convolution, 2-D",
    "convolution, 3-D",
)


class Memory(measured.Measured):
    about = "forward and backward, of a process that has imported, drawn, and loaded or compiled nothing but what it needs"
    problems = {name: problem for name, problem in measured.problems_of(*measured.MODULES).items() if name in CASES or problem.twins_only}

    def peakmem_both(self, package: str, case: str) -> None:
        self.call.both()
