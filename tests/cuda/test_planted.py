"""Faults planted in the kernels' source are caught: by the emulator's checks, or by a wrong result."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

import pytest

from refattn_numba.cuda import fragments
from refattn_numba.cuda.kernels import backward_keys, backward_queries, forward, place
from tests.cuda import calls, test_backward, test_forward
from tests.cuda.cases import PROBLEMS, problem
from tests.cuda.emulator import Fault

WAIT = "            wait()\n            barrier()\n            fetch(step + stages - 1)\n"

HIDDEN = "not finite behind masks"

FAULTS: dict[str, tuple[ModuleType, str, str, str, str]] = {
    "sums not rescaled": (forward, "scale_sums(sums, decay)", "sums", "full", "wrong"),
    "weights' sum not rescaled": (forward, "scale_totals(totals, decay)", "totals", "full", "wrong"),
    "factor 2 in place of e": (forward, "factor = unit * log2_e", "factor = unit * one", "full", "wrong"),
    "sink in base 2": (forward, "inverse(unit)", "inverse(factor)", "sinks", "wrong"),
    "mask off by one": (forward, "mask_by_place(scores, row,", "mask_by_place(scores, row + 1,", "causal, lower right", "wrong"),
    "alignment ignored": (
        forward,
        "align_right * (keys - queries), high + align_right",
        "0 * (keys - queries), high + 0",
        "causal, lower right",
        "wrong",
    ),
    "last tile of keys left out": (forward, "keys) + keys_in_tile - 1) //", "keys)) //", "full", "wrong"),
    "first tile of a window too late": (
        forward,
        "begin = max(first + lowest, 0)",
        "begin = max(first + lowest + 40, 0)",
        "window",
        "wrong",
    ),
    "edge taken for inside": (forward, "there + keys_in_tile > keys", "there > keys", "odd sizes", "wrong"),
    "copies not waited for": (forward, WAIT, WAIT.replace("            wait()\n", ""), "full", "fault"),
    "no barrier": (forward, WAIT, WAIT.replace("            barrier()\n", ""), "full", "fault"),
    "stage of the ring": (forward, "left, ring + step % stages", "left, ring + (step + 1) % stages", "full", "fault"),
    "fetched one too early": (forward, "fetch(step + stages - 1)", "fetch(step + stages)", "full", "fault"),
    "fetch left out": (forward, "            fetch(step + stages)\n", "", "full", "wrong"),
    "copies past the last key": (
        forward,
        "key_row * width, keys - there, head_dim",
        "key_row * width, keys_in_tile, head_dim",
        "odd sizes",
        "fault",
    ),
    "columns past head_dim": (forward, "keys - there, head_dim, thread", "keys - there, size, thread", "odd sizes", "fault or wrong"),
    "rows stored past the last": (
        forward,
        "queries - first, value_dim - of_part)",
        "tile_rows, value_dim - of_part)",
        "odd sizes",
        "fault",
    ),
    "key heads not shared": (forward, "kv_head = quotient(head, group)", "kv_head = head", "grouped", "fault"),
    "heads grouped the other way": (forward, "quotient(head, group)", "head % (heads // group)", "grouped", "wrong"),
    "dropped before it is summed": (forward, "keep_scale)\n            wait()", "keep_scale * 2)\n            wait()", "dropout", "wrong"),
    "hidden values not made finite": (forward, "has_hidden | make_finite(values, thread)", "0", HIDDEN, "wrong"),
    "keys: hidden cotangents not made finite": (backward_keys, "make_finite(queries_at, thread)\n", "pass\n", HIDDEN, "wrong"),
    "small halves left out": (fragments, "sums = e.product(element, sums, a_small, b_large)", "", "float32", "wrong"),
    "columns of weights": (fragments, "for i in (0, 2, 1, 3)]", "for i in (0, 1, 2, 3)]", "float32", "wrong"),
    "transposed where it is not": (fragments, "transposed=True", "transposed=False", "full", "wrong"),
    "one head for all": (place, "head = rest - batch * heads", "head = rest * 0", "full", "wrong"),
    "queries: delta left out": (
        backward_queries,
        "scores_cotangent(weights, d_weights, of_delta)",
        "scores_cotangent(weights, d_weights, of_lse)",
        "full",
        "wrong",
    ),
    "queries: slope left out": (
        backward_queries,
        "d_scores = multiply(d_scores, slopes(products, scale, over_cap))",
        "pass",
        "softcap",
        "wrong",
    ),
    "queries: scale left out": (backward_queries, "all_rows(scale)", "all_rows(one)", "full", "wrong"),
    "queries: no barrier": (backward_queries, "barrier()  # after", "pass  # after", HIDDEN, "fault"),
    "keys: band not turned": (
        backward_keys,
        "-(high + shift), -(low + shift)",
        "low + shift, high + shift",
        "causal, lower right",
        "wrong",
    ),
    "keys: one head of a group": (
        backward_keys,
        "of_keys, of_values, has_hidden = no_sums(), no_sums(), 0",
        "of_keys, of_values, has_hidden, group = no_sums(), no_sums(), 0, 1",
        "grouped",
        "fault or wrong",
    ),
    "keys: copies not waited for": (backward_keys, "                wait()\n", "", "full", "fault"),
    "keys: no barrier": (backward_keys, "barrier()  # after", "pass  # after", HIDDEN, "fault"),
}
"""Module, text and what takes its place, the problem that shows it, and how."""


def mutated(module: ModuleType, old: str, new: str) -> ModuleType:
    """A copy of a module with a fault in it."""
    text = inspect.getsource(module)
    assert text.count(old) == 1, f"{module.__name__} has {old!r} {text.count(old)} times"
    made = ModuleType(module.__name__)
    vars(made)["__file__"] = module.__file__
    exec(compile(text.replace(old, new), str(module.__file__), "exec"), vars(made))
    return made


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_caught(name: str, monkeypatch: pytest.MonkeyPatch, record_property: Any) -> None:
    module, old, new, on, how = FAULTS[name]
    record_property("emulated", "fault")
    faulty = mutated(module, old, new)
    if module in (fragments, place):
        for part, function in vars(faulty).items():
            if callable(function) and getattr(function, "__module__", "") == module.__name__ and not isinstance(function, type):
                monkeypatch.setattr(module, part, function)
                if hasattr(forward, part):
                    monkeypatch.setattr(forward, part, function)
    else:
        builder = module.__name__.rpartition(".")[2]
        monkeypatch.setattr(module, builder, getattr(faulty, builder))
    case = problem(**PROBLEMS[on])
    size = 64 if "64" in on else 32
    if module in (backward_keys, backward_queries):
        kernels = test_backward.small_backward(case.element, size, has_options=case.has_options)

        def check() -> None:
            test_backward.compare(case.element, *test_backward.both(kernels, case))
    else:

        def check() -> None:
            kernel = test_forward.small(case.element, size, has_options=case.has_options)
            test_forward.compare(case, *calls.forward(kernel, *case.operands, **case.options))

    with pytest.raises((Fault, AssertionError)) as caught:
        check()
    assert ("fault" if isinstance(caught.value, Fault) else "wrong") in how
