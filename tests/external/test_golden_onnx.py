"""Golden files in the layout of ONNX's node tests: the specification's own evaluator agrees with them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import refattn
from refattn import testing
from refattn.__main__ import main
from refattn.testing.golden import folder_name
from refattn.testing.onnx_files import DATA, OPERATORS, Unsuited, write_onnx_case
from refattn.testing.precision import named_format

onnx = pytest.importorskip("onnx")
from onnx import numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402


def read(path):
    tensor = onnx.TensorProto()
    tensor.ParseFromString(path.read_bytes())
    return tensor.name, numpy_helper.to_array(tensor)


def evaluated(model, inputs):
    """What the specification's evaluator returns; of ConvTranspose, which it refuses with groups or dilation, what PyTorch does."""
    node = model.graph.node[0]
    if node.op_type != "ConvTranspose":
        return ReferenceEvaluator(model).run(None, inputs)[0]
    torch = pytest.importorskip("torch")
    x, *weights = (torch.from_numpy(np.array(i)) for i in inputs.values())
    given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    pads = given.pop("pads")
    names = {"strides": "stride", "dilations": "dilation", "group": "groups", "output_padding": "output_padding"}
    whole = getattr(torch.nn.functional, f"conv_transpose{x.ndim - 2}d")(x, *weights, **{names[n]: a for n, a in given.items()})
    kept = [slice(before, size - after) for before, after, size in zip(*np.split(np.array(pads), 2), whole.shape[2:], strict=True)]
    return whole.numpy()[(..., *kept)]


TELLING = ("causal edge", "window", "bias", "padded", "softcap")
"""The cases of attention with longer sequences that show what a mask, a bias or an attribute means; the rest show rounding."""


@pytest.mark.parametrize("name", OPERATORS)
def test_the_evaluator_agrees_in_float32(name, tmp_path):
    m, target, written = getattr(refattn, name), named_format("float32"), 0
    for case in testing.cases(m):
        if "131x" in case.name and not case.name.startswith(TELLING):
            continue
        folder = tmp_path / folder_name(case.name)
        try:
            write_onnx_case(folder, m, case, target)
        except Unsuited:
            assert not folder.exists() or not (folder / DATA).exists()
            continue
        written += 1
        model = onnx.load(folder / "model.onnx")
        onnx.checker.check_model(model, full_check=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            got = evaluated(model, dict(map(read, sorted((folder / DATA).glob("input_*.pb")))))
        if case.name.startswith(("NaN", "infinity")):  # in ONNX's definition a weight of 0 still multiplies its value
            assert np.isnan(got).any(), case.name
            continue
        expected = testing.read_case(folder).expected
        want, budget = expected["output"].values(), expected["output.budget"].values()
        assert (np.abs(got - want) <= budget).all(), case.name
        _, stored = read(folder / DATA / "output_0.pb")
        np.testing.assert_array_equal(stored, want.astype(np.float32))
    assert written >= {"scaled_dot_product_attention": 20, "conv1d": 9, "conv2d": 12, "conv3d": 10}.get(name, 3)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_types_are_those_of_the_case(dtype, tmp_path):
    assert main(["golden", "softmax", "--format", "onnx", "--dtype", dtype, "--out", str(tmp_path / "a")]) == 0
    assert main(["golden", "softmax", "--format", "onnx", "--dtype", dtype, "--out", str(tmp_path / "b")]) == 0
    for folder in (tmp_path / "a", tmp_path / "b"):
        name, x = read(folder / dtype / "plain" / DATA / "input_0.pb")
        assert (name, x.dtype.name) == ("input", dtype)
    model = "plain/model.onnx"
    assert (tmp_path / "a" / dtype / model).read_bytes() == (tmp_path / "b" / dtype / model).read_bytes()
    assert main(["golden", "--verify", str(tmp_path / "a")]) == 0
    (tmp_path / "a" / dtype / model).write_bytes(b"")
    assert main(["golden", "--verify", str(tmp_path / "a")]) == 1


def test_what_the_operator_has_not_is_left_out_and_named(tmp_path, capsys):
    arguments = ["golden", "scaled_dot_product_attention", "--case", "sinks", "--case", "causal", "--case", "masked row"]
    assert main([*arguments, "--format", "onnx", "--out", str(tmp_path / "a")]) == 0
    out = capsys.readouterr().out
    assert "float32/sinks: left out: sinks: not in Attention" in out
    assert "float32/masked-row: left out: a query that may attend nowhere: runtimes differ" in out
    assert [p.name for p in (tmp_path / "a" / "float32").iterdir()] == ["causal"]
