"""The peers whose adapters are here are right, up to the differences that the adapters name."""

from __future__ import annotations

import importlib.util
import warnings

import pytest

from refattn import testing
from refattn.testing import adapters
from refattn.testing.checking import compare_case
from refattn.testing.precision import FORMATS

PEERS = {"torch": {"float32", "float64"}, "jax": {"float32", "float64"}, "onnx": {"float32", "float64"}}


@pytest.mark.parametrize(("peer", "dtype"), [(p, d) for p, dtypes in PEERS.items() for d in sorted(dtypes)])
def test_peer_is_right(peer, dtype):
    if importlib.util.find_spec(peer) is None:
        pytest.skip(f"{peer} is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peers' own
        results = [
            r
            for m, candidate in adapters.resolve(peer)
            for case in testing.cases(m)
            for r in compare_case(candidate, m, case, FORMATS[dtype])
        ]
    report = testing.Report(results)
    report.raise_if_wrong()
    assert report.counts["pass"] > 5
    if peer == "torch":
        assert {r.case.partition(" ")[0] for r in results if r.status == "known_difference"} == {"NaN", "infinity"}
        compared = {(r.mechanism, r.what) for r in results if r.passed}
        expected = {"output", "d_query", "d_key", "d_value", "d_bias"}
        assert {what for m, what in compared if m == "scaled_dot_product_attention"} == expected
        for name in ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"):
            assert {what for m, what in compared if m == name} == {"output", "d_x", "d_weight", "d_bias"}


def test_a_row_without_keys_is_a_known_difference_of_jax():
    pytest.importorskip("jax")
    [(m, candidate)] = adapters.resolve("jax")
    case = next(c for c in testing.cases(m) if c.name.startswith("masked rows"))
    results = list(compare_case(candidate, m, case, FORMATS["float32"]))
    differences = {r.reason for r in results if r.status == "known_difference"}
    assert differences == {'masked_rows: a row that may attend nowhere is "uniform"'}
