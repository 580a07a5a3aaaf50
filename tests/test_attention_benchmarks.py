"""The contenders of the attention suite compute the same, on small problems of every kind that is measured."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from benchmarks import caches, ours, peers
from benchmarks.agreement import errors, refuse_difference
from benchmarks.cases import installed, suite
from benchmarks.softmax import BLOCK, KEPT, Problem

pytest.importorskip("numba")
pytest.importorskip("ml_dtypes")

SMALL = Problem(1, 4, 2, 32, 32, 16)
KINDS = {
    "shared heads": partial(ours.attention, SMALL),
    "causal, both passes": partial(ours.attention, Problem(1, 2, 2, 32, 32, 16, causal=True, backward=True)),
    "bfloat16": partial(ours.attention, Problem(1, 2, 2, 32, 32, 16, dtype="bfloat16", backward=True)),
    "float64": partial(ours.attention, Problem(1, 2, 2, 32, 32, 16, dtype="float64")),
    "mask": partial(ours.attention, Problem(1, 2, 2, 32, 32, 16, option="mask")),
    "bias, both passes": partial(ours.attention, Problem(2, 2, 2, 32, 32, 16, option="bias", backward=True)),
    "window": partial(ours.attention, Problem(1, 2, 2, 32, 32, 16, window=5)),
    "blocks": partial(ours.attention, Problem(1, 1, 1, 8 * BLOCK, 8 * BLOCK, 16, option="blocks")),
    "decoding": partial(caches.decode, Problem(2, 4, 2, 1, 64, 16)),
    "int8 cache": partial(caches.quantised, Problem(2, 4, 2, 1, 64, 16)),
    "sequences": partial(caches.packed, Problem(1, 2, 2, 32, 32, 16, causal=True), (5, 0, 20, 7)),
}


@pytest.mark.parametrize("everybody", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_contenders_agree_and_errors_are_those_of_rounding(monkeypatch, kind, everybody):
    if not everybody:  # JAX compiles each
        monkeypatch.setattr(peers, "installed", lambda name: installed(name) if name == "torch" else None)
    calls = dict(KINDS[kind]())
    exact = calls.pop("exact")()
    assert next(iter(calls)) == "refattn_numba"
    results = {name: call() for name, call in calls.items()}
    coarse = 0.05 if kind == "bfloat16" else 1e-5
    refuse_difference(results, coarse)
    assert all(0 <= rms <= largest * 4 < coarse * 4 for largest, rms in (errors(exact, r) for r in results.values()))


def test_a_mask_of_blocks_keeps_as_many_as_it_is_said_to():
    problem = Problem(1, 1, 1, 8 * BLOCK, 8 * BLOCK, 16, option="blocks")
    mask = problem.drawn().options["mask"]
    assert mask.sum() == problem.pairs
    assert (mask.sum(axis=1) == KEPT * BLOCK).all()
    assert mask[np.arange(len(mask)), np.arange(len(mask))].all()


def test_the_work_of_a_problem_is_that_of_its_products():
    full, causal = Problem(2, 4, 2, 8, 8, 16), Problem(2, 4, 2, 8, 8, 16, causal=True, backward=True)
    assert full.operations == 2 * 2 * (2 * 4 * 8 * 8 * 16)
    assert causal.operations == full.operations / 2 * 3.5
    assert full.read_bytes() == 2 * (2 * 2 * 8 * 16) * 4
    assert full.read_bytes("int8") == full.read_bytes() / 4


def test_every_row_has_work_and_the_targets_have_floors():
    rows = suite("attention")
    assert all(case.work is not None for case in rows)
    assert {case.baseline for case in rows} == {"torch", "refattn_numba float32"}
    assert sum(case.floor is not None for case in rows) >= 28
    assert [case.percent_floor for case in rows if case.name.startswith("decode, 8x32")] == [80, 70]
    assert all(case.quick is False for case in rows if "4096" in case.name)
