"""Every test case of ONNX's operator ``Attention`` that the installed `onnx` holds: none is left out."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx")
ml_dtypes = pytest.importorskip("ml_dtypes")

from refattn._core.arrays import as_array  # noqa: E402
from refattn.interop import onnx as interop  # noqa: E402
from tests.external.onnx_cases import node_cases  # noqa: E402

CASES = list(node_cases("Attention"))


def largest(*arrays):
    """The largest finite magnitude."""
    each = [np.abs(as_array(x).astype(float)) for x in arrays if x is not None and x.dtype != bool]
    return max((np.max(x, where=np.isfinite(x), initial=0.0) for x in each), default=0.0)


def norm(head_dim, *arrays):
    """The largest finite Euclidean norm of a query or key of one head."""
    each = [as_array(x).astype(float).reshape(-1, head_dim) for x in arrays if x is not None]
    return largest(*(np.sqrt((x**2).sum(axis=-1)) for x in each))


def bounds(case):
    """How far scores, weights and outputs may be off that were computed in the precision of the inputs.

    With u the unit roundoff, a score passes through at most seven roundings (scale twice, product, softcap three times,
    bias), and float32 rounds each of its head_dim additions too; narrower types are added up in float32. A weight has twice
    its scores' error relative to it, and three roundings and a sum more; an output has the weights' error times the largest
    value, and one more sum.
    """
    q, k, v, attn_mask, past_key, past_value = (*case.inputs, *(None,) * 6)[:6]
    narrow = q.dtype != np.float32
    u = float(ml_dtypes.finfo(q.dtype).eps) / 2
    head_dim = q.shape[-1] // (case.attributes["q_num_heads"] if q.ndim == 3 else 1)
    key_len = k.shape[-2] + (0 if past_key is None else past_key.shape[-2])
    factor = case.attributes.get("scale", 1 / np.sqrt(head_dim))
    size = factor * norm(head_dim, q) * norm(head_dim, k, past_key) + largest(attn_mask)
    score = (7 + (0 if narrow else head_dim)) * u * size
    weight = 2 * score + (3 + (0 if narrow else key_len)) * u
    return {"score": score, "weight": weight, "output": largest(v, past_value) * (weight + (1 + (0 if narrow else key_len)) * u)}


def test_cases_are_found():
    assert len(CASES) > 50


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name.removeprefix("test_attention_"))
def test_case(case):
    got = interop.attention(case.inputs, case.attributes)
    bound = bounds(case)
    of_scores = bound["weight" if case.attributes.get("qk_matmul_output_mode") == 3 else "score"]
    allowed = {"Y": bound["output"], "present_key": 0.0, "present_value": 0.0, "qk_matmul_output": of_scores}
    assert case.outputs[0] is not None
    for name, x, want in zip(got._fields, got, case.outputs, strict=False):
        if want is not None:
            np.testing.assert_allclose(x, as_array(want).astype(float), rtol=0, atol=allowed[name], err_msg=name)


@pytest.mark.parametrize(
    "wrong",
    [
        {"is_causal": 0},
        {"right_window_size": 1},
        {"is_causal": 1, "left_window_size": 2},
        {"is_causal": 1, "scale": 0.36},
        {"is_causal": 1, "softcap": 5.0},
    ],
    ids=" ".join,
)
def test_bounds_are_tight_enough_to_tell(wrong):
    """What another attribute changes is far beyond the bounds in float32."""
    case = next(c for c in CASES if c.name == "test_attention_4d_causal")
    changed = interop.attention(case.inputs, wrong).Y
    assert np.abs(changed - case.outputs[0]).max() > 100 * bounds(case)["output"]
