"""Says what was emulated, compiled or run, so that nobody takes one for the other."""

from __future__ import annotations

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    passed = [report for report in terminalreporter.stats.get("passed", []) if "tests/cuda/" in report.nodeid.replace("\\", "/")]
    if not passed:
        return
    done = {
        what: [value for report in passed for name, value in report.user_properties if name == what]
        for what in ("emulated", "compiled", "ran")
    }
    terminalreporter.write_line(
        f"CUDA: {len(done['emulated'])} comparisons emulated on NumPy; {len(done['compiled'])} kernels compiled to machine code, which was read; "
        f"{len(done['ran'])} run on a GPU."
    )
