"""The test cases that the installed `onnx` package holds for one operator."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests


class NodeCase(NamedTuple):
    """One node, what goes in and what must come out; None where an optional input or output is left out."""

    name: str
    attributes: dict[str, Any]
    inputs: tuple[np.ndarray | None, ...]
    outputs: tuple[np.ndarray | None, ...]
    rtol: float
    atol: float


def node_cases(op_type: str, kind: str = "node") -> Iterator[NodeCase]:
    """All cases that consist of one node of this operator.

    `kind` is "node" for the cases of the operator's specification; "pytorch-converted" and "pytorch-operator" are files
    that were exported from PyTorch, with weights as initializers.
    """
    for case in _all_cases(kind):
        model, data_sets = case.model, case.data_sets
        if case.model_dir is not None:
            folder = Path(case.model_dir)
            model = onnx.load(folder / "model.onnx")
            data_sets = [(_tensors(d, "input"), _tensors(d, "output")) for d in sorted(folder.glob("test_data_set_*"))]
        if len(model.graph.node) != 1 or model.graph.node[0].op_type != op_type:
            continue
        node = model.graph.node[0]
        weights = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
        fed = [i.name for i in model.graph.input if i.name not in weights]
        for inputs, outputs in data_sets:
            given = {**weights, **dict(zip(fed, inputs, strict=True))}
            made = dict(zip((o.name for o in model.graph.output), outputs, strict=True))
            yield NodeCase(
                case.name,
                {a.name: _plain(onnx.helper.get_attribute_value(a)) for a in node.attribute},
                tuple(given.get(name) for name in node.input),
                tuple(made.get(name) for name in node.output),
                case.rtol,
                case.atol,
            )


@functools.cache
def _all_cases(kind: str) -> list[Any]:
    with warnings.catch_warnings():  # some other operators' cases overflow on purpose while they are made
        warnings.simplefilter("ignore")
        return load_model_tests(kind=kind)


def _tensors(folder: Path, what: str) -> list[np.ndarray]:
    files = sorted(folder.glob(f"{what}_*.pb"), key=lambda f: int(f.stem.rpartition("_")[2]))
    return [numpy_helper.to_array(onnx.TensorProto.FromString(f.read_bytes())) for f in files]


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else list(value) if isinstance(value, (list, tuple)) else value
