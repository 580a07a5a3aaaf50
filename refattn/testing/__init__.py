"""The oracle: point it at a kernel, and be told whether it is right.

`check` runs a callable on a mechanism's samples and on inputs under which wrong kernels cannot pass, and compares every
element of every output and gradient with a budget of its own. `assert_matches` does so for arrays that you have already.
"""

from refattn.testing.arithmetic import rounding
from refattn.testing.battery import Case, cases
from refattn.testing.calls import cotangents, directional_errors, gradient_leaves, in_precision, numerical_gradients, samples
from refattn.testing.candidates import Candidate, Unsupported
from refattn.testing.checking import assert_matches, check
from refattn.testing.laws import check_laws
from refattn.testing.report import RefattnAssertionError, Report, Result
from refattn.testing.rows import check_rows

__all__ = [
    "Candidate",
    "Case",
    "RefattnAssertionError",
    "Report",
    "Result",
    "Unsupported",
    "assert_matches",
    "cases",
    "check",
    "check_laws",
    "check_rows",
    "cotangents",
    "directional_errors",
    "gradient_leaves",
    "in_precision",
    "numerical_gradients",
    "rounding",
    "samples",
]
