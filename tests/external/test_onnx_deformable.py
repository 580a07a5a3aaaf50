"""Every ONNX test case of the operator DeformConv, and its reference evaluator with random offsets."""

from __future__ import annotations

import numpy as np
import pytest

import refattn
from refattn._core.random import Random

pytest.importorskip("onnx")
import onnx

from tests.external.onnx_cases import node_cases
from tests.external.test_onnx_convolution import agrees, explicit


def deform_conv(
    x, weight, offset, bias=None, mask=None, *, kernel_shape=None, pads=None, strides=None, dilations=None, group=1, offset_group=1
):
    assert kernel_shape is None or tuple(kernel_shape) == weight.shape[2:]
    options = {"stride": tuple(strides or (1, 1)), "dilation": tuple(dilations or (1, 1)), "groups": group}
    options |= {"padding": explicit(pads or [0] * 4), "offset_groups": offset_group}
    if mask is None:
        return refattn.deform_conv2d(x, offset, weight, bias, **options)
    return refattn.modulated_deform_conv2d(x, offset, mask, weight, bias, **options)


@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in node_cases("DeformConv")])
def test_deform_conv(case):
    agrees(case, deform_conv(*case.inputs, **case.attributes))


def test_the_specification_is_covered():
    assert len(list(node_cases("DeformConv"))) >= 4


RANDOM = {
    "plain": {},
    "stride and pads": {"strides": [2, 1], "pads": [1, 0, 2, 1]},
    "dilation": {"dilations": [1, 2], "pads": [1, 1, 1, 1]},
    "groups": {"group": 2, "offset_group": 4},
    "offset groups": {"group": 4, "offset_group": 2, "pads": [1, 1, 1, 1]},
}


@pytest.mark.parametrize("name", RANDOM)
def test_agrees_with_the_evaluator(name):
    """Which is in float32, but for offsets; they reach beyond the borders."""
    attributes, random = RANDOM[name], Random(0)
    x, weight, bias = random.normal((2, 4, 5, 6)), random.normal((4, 4 // attributes.get("group", 1), 3, 2)), random.normal(4)
    grid = {"stride": "strides", "dilation": "dilations"}
    options = {ours: tuple(attributes.get(theirs, (1, 1))) for ours, theirs in grid.items()}
    out = refattn.conv2d(x, weight[:, :1], groups=4, padding=explicit(attributes.get("pads", [0] * 4)), **options).shape[2:]
    taps = 6 * attributes.get("offset_group", 1)
    offset, mask = 1.5 * random.normal((2, 2 * taps, *out)), random.uniform(0, 1, (2, taps, *out))
    inputs = {"X": x, "W": weight, "offset": offset, "B": bias, "mask": mask}
    node = onnx.helper.make_node("DeformConv", list(inputs), ["Y"], **attributes)
    kind = onnx.TensorProto.FLOAT
    values = [onnx.helper.make_tensor_value_info(n, kind, v.shape) for n, v in inputs.items()]
    graph = onnx.helper.make_graph([node], "deform", values, [onnx.helper.make_tensor_value_info("Y", kind, None)])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)])
    (want,) = onnx.reference.ReferenceEvaluator(model).run(None, {n: v.astype(np.float32) for n, v in inputs.items()})
    np.testing.assert_allclose(deform_conv(*inputs.values(), **attributes), want, rtol=0, atol=1e-4)
