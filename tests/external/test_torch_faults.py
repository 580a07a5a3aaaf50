"""Where the check calls PyTorch wrong, it is: small whole numbers, whose sums are exact, computed in every way that there is."""

from __future__ import annotations

import numpy as np
import pytest

import refattn
from docs.verdicts import FAULTS, exactly, in_torch, why, wrong
from refattn import testing
from refattn.testing import adapters
from refattn.testing.checking import compare_case
from refattn.testing.inputs.case import Case
from refattn.testing.precision import named_format

torch = pytest.importorskip("torch")
ATTENTION = refattn.scaled_dot_product_attention


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.mechanism)
def test_the_reference_is_right(fault):
    assert wrong(fault, in_torch(fault, "float64"), "float64") == 0
    assert wrong(fault, in_torch(fault, "float32"), "float32") == 0
    assert wrong(fault, in_torch(fault, "bfloat16", onednn=False), "bfloat16") == 0


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.mechanism)
@pytest.mark.parametrize("onednn", [True, False])
def test_the_verdict_is_right_whatever_the_processor(fault, onednn):
    """The very numbers that PyTorch has returned, which change from run to run, are judged and counted."""
    m, got = getattr(refattn, fault.mechanism), in_torch(fault, "bfloat16", onednn=onednn)
    ones = np.ones_like(m(**fault.arguments()))
    judged = {"got": got} if fault.what == "output" else {"got": m(**fault.arguments())}
    grads = m.vjp(**fault.arguments())[1](ones)
    gradients = None if fault.what == "output" else {**grads, "weight": got}
    if wrong(fault, got, "bfloat16"):
        with pytest.raises(testing.RefattnAssertionError):
            testing.assert_matches(judged["got"], m, fault.arguments(), gradients=gradients, cotangents=ones, dtype="bfloat16")
    else:
        testing.assert_matches(judged["got"], m, fault.arguments(), gradients=gradients, cotangents=ones, dtype="bfloat16")
    assert (exactly(fault) == np.round(exactly(fault))).all()


@pytest.mark.parametrize("name", [f"conv{n}d" for n in (1, 2, 3)] + [f"conv_transpose{n}d" for n in (1, 2, 3)])
@pytest.mark.filterwarnings("ignore")  # of PyTorch, about what is slow
def test_nothing_else_is_wrong_in_bfloat16(name):
    [(m, candidate)] = adapters.resolve("torch", name)
    found = [r for c in testing.cases(m, "full") for r in compare_case(candidate, m, c, named_format("bfloat16"))]
    assert [str(r) for r in found if r.status == "fail" and not why(r)] == []
    assert sum(r.status == "pass" for r in found) > 30


def test_numbers_behind_masks_that_reach_an_output_are_all_that_differs():
    """The known difference: whatever is not as it should be is NaN, and nothing else."""
    seen = []

    def watched(**given):
        y = candidate.call(**given)
        seen.append(y)
        return y

    [(m, candidate)] = adapters.resolve("torch", ATTENTION.__name__)
    for case in testing.cases(m, "full"):
        if case.name.startswith(("NaN", "infinity")):
            y = watched(**{n: torch.from_numpy(np.array(x)) if isinstance(x, np.ndarray) else x for n, x in case.arguments.items()})
            exact = m(**case.arguments)
            differs = ~np.isclose(y.numpy(), exact, rtol=1e-9, atol=1e-12)
            assert differs.any()
            assert np.isnan(y.numpy()[differs]).all()
    assert len(seen) == 4


@pytest.mark.parametrize("seed", [1, 2])
def test_weights_that_a_processor_flushes_are_no_fault(seed):
    """PyTorch's flash kernel takes weights below the smallest normal number for 0 in bfloat16."""
    [(m, candidate)] = adapters.resolve("torch", ATTENTION.__name__)
    chosen: list[Case] = [c for c in testing.cases(m, "full", seed) if c.name.startswith("all scores near -1e5")]
    found = [r for c in chosen for r in compare_case(candidate, m, c, named_format("bfloat16"))]
    assert {r.status for r in found} <= {"pass", "skipped"}
    assert max(r.error_over_budget for r in found if r.status == "pass" and r.what == "d_key") < 0.9
