"""What masks take, and what they refuse by name."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from refattn import masks

FUNCTIONS = [masks.causal, masks.sliding_window, masks.padding, masks.documents, masks.blocks, masks.distance, masks.summary]
LAYOUT = np.eye(2, dtype=bool)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_is_no_array_is_checked_as_stated(function):
    hints = {n: p.annotation for n, p in inspect.signature(function).parameters.items()}
    plain = {n for n, hint in hints.items() if not any(word in hint for word in ("Integers", "Booleans", "Any"))}
    assert set(function.options()) == plain


@pytest.mark.parametrize(
    ("function", "arguments", "error", "match"),
    [
        (masks.causal, {"query_len": -1, "key_len": 3, "align": "lower_right"}, ValueError, "causal: query_len is -1, but must be non-neg"),
        (masks.causal, {"query_len": 3, "key_len": "3"}, TypeError, "causal: key_len is '3', but must be"),
        (masks.causal, {"query_len": 3, "key_len": 3, "align": ["upper_left"]}, TypeError, "causal: align is a list, but must be"),
        (masks.causal, {"query_len": 3}, TypeError, "causal: missing a required argument: 'key_len'"),
        (masks.causal, {"query_len": 3, "key_len": 3, "rows": [3]}, ValueError, "rows runs from 3 to 3, but there are 3"),
        (masks.causal, {"query_len": 3, "key_len": 3, "columns": [-1]}, ValueError, "columns runs from -1 to -1, but there are 3"),
        (masks.causal, {"query_len": 3, "key_len": 3, "rows": [0.5]}, TypeError, "rows is float64, but must be an integer array"),
        (masks.causal, {"query_len": 3, "key_len": 3, "rows": [[1]]}, ValueError, "rows has 2 axes, but must have 1"),
        (masks.sliding_window, {"query_len": 3, "key_len": 3, "left": -1}, ValueError, "left is -1, but must be non-negative int or None"),
        (
            masks.sliding_window,
            {"query_len": 3, "key_len": 3, "right": 1.5},
            ValueError,
            "right is 1.5, but must be non-negative int or None",
        ),
        (masks.padding, {"lengths": [4], "key_len": 3}, ValueError, "lengths runs from 4 to 4, but key_len is 3"),
        (masks.padding, {"lengths": [1], "key_len": None}, TypeError, "padding: key_len is None, but must be non-negative int"),
        (masks.documents, {"query_ids": 0, "key_ids": [1]}, ValueError, "query_ids has 0 axes, but needs at least 1"),
        (masks.documents, {"query_ids": [0], "key_ids": [1.0]}, TypeError, "key_ids is float64, but must be an integer array"),
        (masks.blocks, {"layout": LAYOUT, "block": (0, 1)}, ValueError, r"block is \(0, 1\), but must be \(positive int, positive int\)"),
        (masks.blocks, {"layout": LAYOUT[0], "block": (1, 1)}, ValueError, "layout has 1 axes, but needs at least 2"),
        (masks.blocks, {"layout": LAYOUT * 1.0, "block": (1, 1)}, TypeError, "layout is float64, but must be bool"),
        (masks.summary, {"mask": LAYOUT, "block": (2,)}, ValueError, r"block is \(2,\), but must be"),
        (masks.summary, {"mask": LAYOUT * 1, "block": (1, 1)}, TypeError, "mask is int64, but must be bool"),
        (masks.picture, {"mask": LAYOUT * 1.0}, TypeError, "mask is float64, but must be bool"),
        (masks.picture, {"mask": LAYOUT[None]}, ValueError, "mask has 3 axes, but must have 2"),
    ],
)
def test_bad_calls_are_refused_by_name(function, arguments, error, match):
    with pytest.raises(error, match=match):
        function(**arguments)


def test_lists_and_other_integers_are_taken():
    np.testing.assert_array_equal(masks.causal(3, 3, rows=[2], columns=np.array([0, 2], np.uint8)), [[True, True]])
    np.testing.assert_array_equal(masks.causal(3, np.int64(3), rows=[0], columns=np.array([2], np.uint8)), [[False]])
    np.testing.assert_array_equal(masks.blocks(LAYOUT.tolist(), [1, 2]), [[True, True, False, False], [False, False, True, True]])
    assert masks.summary(LAYOUT.tolist(), (1, 1))[1:] == (2, 2, 0)
    assert masks.summary(np.ones((0, 3), bool), (1, 1))[1:] == (0, 0, 0)
    assert masks.sliding_window(2, 2, left=2**62, right=0).tolist() == [[True, False], [True, True]]
