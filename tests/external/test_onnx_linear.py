"""Every test case of ONNX's operator ``LinearAttention`` that the installed `onnx` holds: none is left out."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx")

from refattn.attention.linear import rule
from tests.external.onnx_cases import node_cases

CASES = list(node_cases("LinearAttention"))


def heads(x, number):
    """(batch, length, heads * features) as (batch, heads, length, features)."""
    return x.reshape(*x.shape[:2], number, -1).swapaxes(1, 2)


def arguments(case):
    """The operator's inputs in float64, in the words of the rule."""
    given = [None if x is None else x.astype(np.float64) for x in (*case.inputs, *(None,) * 6)[:6]]
    query, key, value, state, decay, beta = given
    q_heads, kv_heads = case.attributes["q_num_heads"], case.attributes["kv_num_heads"]
    return {
        "query": heads(query, q_heads),
        "key": heads(key, kv_heads),
        "value": heads(value, kv_heads),
        "log_decay": None if decay is None else heads(decay, kv_heads),
        "beta": None if beta is None else np.broadcast_to(beta, (*beta.shape[:2], kv_heads)).swapaxes(1, 2),
        "state": state,
        "scale": case.attributes.get("scale", 0.0) or None,
    }


def magnitudes(query, key, value, log_decay, beta, state, scale):
    """Outputs and state where every term counts with its absolute value: what relative errors multiply."""
    size = np.zeros((*key.shape[:2], key.shape[-1], value.shape[-1])) if state is None else np.abs(state)
    outputs = []
    for t in range(key.shape[2]):
        k, v = np.abs(key[:, :, t, :, None]), np.abs(value[:, :, t, None, :])
        size = size * (1.0 if log_decay is None else np.exp(log_decay[:, :, t, :, None]))
        write = v if beta is None else np.abs(beta[:, :, t, None, None]) * (v + (k * size).sum(axis=-2, keepdims=True))
        size = size + k * write
        outputs.append(np.abs(query[:, :, t, None, :]) @ size.repeat(query.shape[1] // key.shape[1], axis=1))
    return np.concatenate(outputs, axis=2) * (query.shape[-1] ** -0.5 if scale is None else scale), size


def test_cases_are_found():
    assert len(CASES) >= 14


@pytest.mark.parametrize("chunk_size", [None, 1, 3])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name.removeprefix("test_linear_attention_"))
def test_case(case, chunk_size):
    given = arguments(case)
    form, options = (rule.recurrent, {}) if chunk_size is None else (rule.chunked, {"chunk_size": chunk_size})
    (output, state), _ = form(**given, **options)
    output = output.swapaxes(1, 2).reshape(case.outputs[0].shape)
    of_output, of_state = magnitudes(**given)
    of_output = of_output.swapaxes(1, 2).reshape(output.shape)
    # The operator computes in float32. A step passes a term through a decay (its exponential too), a product, and the sums over
    # head_dim of what is held, the correction, the write and the sum: head_dim + 8 roundings. The read is one more such sum.
    roundings = (given["key"].shape[-2] + 1) * (given["key"].shape[-1] + 8)
    for got, want, size in zip((output, state), case.outputs, (of_output, of_state), strict=True):
        stored = np.finfo(want.dtype).eps / 2 * np.abs(got)
        assert (np.abs(got - want) <= roundings * np.finfo(np.float32).eps / 2 * size + stored).all()
