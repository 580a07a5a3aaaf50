"""Every ONNX test case of the operators Conv, ConvTranspose and CausalConvWithState."""

from __future__ import annotations

import numpy as np
import pytest

import refattn

pytest.importorskip("onnx")
from tests.external.onnx_cases import node_cases

KINDS = ("node", "pytorch-converted", "pytorch-operator")


def cases(op_type):
    found = [c for kind in KINDS for c in node_cases(op_type, kind)]
    return [pytest.param(c, id=c.name) for c in found]


def same(total, auto_pad):
    """ONNX's SAME_UPPER puts the extra position after, SAME_LOWER before."""
    small, large = total // 2, total - total // 2
    return (large, small) if auto_pad == "SAME_LOWER" else (small, large)


def explicit(pads):
    """Pads as ONNX lists them: all before, then all after."""
    axes = len(pads) // 2
    return tuple(zip(pads[:axes], pads[axes:], strict=True))


def conv(x, weight, bias=None, *, kernel_shape=None, pads=None, strides=None, dilations=None, group=1, auto_pad="NOTSET"):
    size, kernel = x.shape[2:], weight.shape[2:]
    assert kernel_shape is None or tuple(kernel_shape) == kernel
    stride, dilation = strides or [1] * len(size), dilations or [1] * len(size)
    padding = explicit(pads or [0] * 2 * len(size))
    if auto_pad.startswith("SAME"):
        totals = [max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0) for n, k, s, d in zip(size, kernel, stride, dilation, strict=True)]
        padding = tuple(same(total, auto_pad) for total in totals)
    ours = getattr(refattn, f"conv{len(size)}d")
    return ours(x, weight, bias, stride=tuple(stride), padding=padding, dilation=tuple(dilation), groups=group)


def conv_transpose(
    x,
    weight,
    bias=None,
    *,
    kernel_shape=None,
    pads=None,
    strides=None,
    dilations=None,
    group=1,
    auto_pad="NOTSET",
    output_padding=None,
    output_shape=None,
):
    size, kernel = x.shape[2:], weight.shape[2:]
    assert kernel_shape is None or tuple(kernel_shape) == kernel
    stride, dilation = strides or [1] * len(size), dilations or [1] * len(size)
    more, padding = list(output_padding or [0] * len(size)), explicit(pads or [0] * 2 * len(size))
    if output_shape is None and auto_pad.startswith("SAME"):
        output_shape = [n * s for n, s in zip(size, stride, strict=True)]
    if output_shape is not None:  # what is too long is cut off at both ends; what is too short is an output padding
        whole = [(n - 1) * s + d * (k - 1) + 1 for n, k, s, d in zip(size, kernel, stride, dilation, strict=True)]
        more = [max(wanted - n, 0) for wanted, n in zip(output_shape, whole, strict=True)]
        padding = tuple(same(max(n - wanted, 0), auto_pad) for wanted, n in zip(output_shape, whole, strict=True))
    ours = getattr(refattn, f"conv_transpose{len(size)}d")
    return ours(x, weight, bias, stride=tuple(stride), padding=padding, output_padding=tuple(more), dilation=tuple(dilation), groups=group)


def causal_conv_with_state(x, weight, bias=None, past_state=None, *, activation="none"):
    output, state = refattn.causal_conv1d(x, weight[:, 0], bias, past_state)
    return (refattn.silu(output) if activation in {"silu", "swish"} else output), state


def agrees(case, output):
    for got, want in zip(output if isinstance(output, tuple) else (output,), case.outputs, strict=True):
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want.astype(float), rtol=case.rtol, atol=case.atol)


@pytest.mark.parametrize("case", cases("Conv"))
def test_conv(case):
    agrees(case, conv(*case.inputs, **case.attributes))


@pytest.mark.parametrize("case", cases("ConvTranspose"))
def test_conv_transpose(case):
    agrees(case, conv_transpose(*case.inputs, **case.attributes))


@pytest.mark.parametrize("case", cases("CausalConvWithState"))
def test_causal_conv_with_state(case):
    agrees(case, causal_conv_with_state(*case.inputs, **case.attributes))


def test_the_specification_is_covered():
    counts = {op: len(list(node_cases(op))) for op in ("Conv", "ConvTranspose")}
    assert counts["Conv"] >= 6
    assert counts["ConvTranspose"] >= 11
