"""The oracle: point it at a kernel, and be told whether it is right.

`check` runs a callable on a mechanism's samples and on inputs under which wrong kernels cannot pass, and compares every
element of every output and gradient with a budget of its own. `assert_matches` does so for arrays that you have already,
`command_candidate` makes a program in any language one to check, and `read_case` reads golden files. `sweep` does many checks, on any
executor; `parametrize_cases` and the fixture ``refattn_check`` make them tests of pytest.
"""

from refattn.testing.arithmetic import rounding
from refattn.testing.battery import Case, cases
from refattn.testing.bits import Tensor
from refattn.testing.calls import cotangents, directional_errors, gradient_leaves, in_precision, numerical_gradients, samples
from refattn.testing.candidates import Candidate, Unsupported
from refattn.testing.checking import assert_matches, check
from refattn.testing.command import command_candidate
from refattn.testing.explaining import Explanation, explain
from refattn.testing.golden import verify
from refattn.testing.laws import check_laws
from refattn.testing.manifest import CaseFolder, read_case
from refattn.testing.pytest_cases import parametrize_cases
from refattn.testing.report import RefattnAssertionError, Report, Result
from refattn.testing.rows import check_rows
from refattn.testing.safetensors import read_safetensors, write_safetensors
from refattn.testing.sweeping import sweep

__all__ = [
    "Candidate",
    "Case",
    "CaseFolder",
    "Explanation",
    "RefattnAssertionError",
    "Report",
    "Result",
    "Tensor",
    "Unsupported",
    "assert_matches",
    "cases",
    "check",
    "check_laws",
    "check_rows",
    "command_candidate",
    "cotangents",
    "directional_errors",
    "explain",
    "gradient_leaves",
    "in_precision",
    "numerical_gradients",
    "parametrize_cases",
    "read_case",
    "read_safetensors",
    "rounding",
    "samples",
    "sweep",
    "verify",
    "write_safetensors",
]
