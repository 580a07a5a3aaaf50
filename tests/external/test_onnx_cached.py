"""ONNX's cache operator, and its attention over caches that are filled to different lengths."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx")

import refattn
from tests.external.onnx_cases import node_cases

WRITES = list(node_cases("TensorScatter"))


def test_cases_are_found():
    assert len(WRITES) >= 3


@pytest.mark.parametrize("case", WRITES, ids=lambda c: c.name)
def test_tensor_scatter(case):
    cache, new, *places = case.inputs
    axis = case.attributes.get("axis", -2)
    lengths = places[0] if places else np.zeros(len(cache), int)
    # One head between the sequences and the positions: what is before the axis, or nothing.
    shapes = [np.moveaxis(x, axis, 1).reshape(len(x), 1, x.shape[axis], -1) for x in (cache, new)]
    got = refattn.append_to_cache(*shapes, lengths, circular=case.attributes.get("mode") == "circular")
    want = np.moveaxis(case.outputs[0], axis, 1).reshape(got.shape)
    np.testing.assert_array_equal(got, want)
