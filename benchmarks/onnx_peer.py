"""ONNX Runtime's attention: a model of one operator."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.cases import Call
from benchmarks.softmax import Given
from benchmarks.torch_peer import fastest


def onnx_call(onnx: Any, runtime: Any, given: Given) -> Call:
    """The standard's operator, or the runtime's own one where that is faster and does what is asked."""
    problem, arrays = given.problem, given[1:4]
    options = [given.options[n] for n in ("mask", "bias") if n in given.options]
    if problem.window is not None:
        options = [given.dense_mask()]
    standard = session(onnx, runtime, "Attention", "", [*arrays, *options], is_causal=int(problem.causal))
    ways: list[Call] = [lambda: standard()[0]]
    if problem.heads == problem.kv_heads and not options:
        # heads lie side by side in rows there, and arrays are laid out so before the clock runs
        rows = [x.swapaxes(1, 2).reshape(problem.batch, x.shape[2], -1) for x in arrays]
        attributes = {"num_heads": problem.heads, "unidirectional": int(problem.causal)}
        own = session(onnx, runtime, "MultiHeadAttention", "com.microsoft", rows, **attributes)
        shape = (problem.batch, problem.query_len, problem.heads, problem.head_dim)

        def in_rows() -> Any:
            y = own()[0]
            return lambda: y.reshape(shape).swapaxes(1, 2)

        ways.append(in_rows)
    return fastest(ways)


def session(onnx: Any, runtime: Any, operator: str, domain: str, inputs: Sequence[Any], **attributes: Any) -> Any:
    """A call that runs the operator on as many threads as every contender has."""
    kinds = {"float32": onnx.TensorProto.FLOAT, "bool": onnx.TensorProto.BOOL}
    names = [f"x{i}" for i in range(len(inputs))]
    node = onnx.helper.make_node(operator, names, ["y"], domain=domain, **attributes)
    described = [onnx.helper.make_tensor_value_info(n, kinds[x.dtype.name], x.shape) for n, x in zip(names, inputs, strict=True)]
    graph = onnx.helper.make_graph([node], "one", described, [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)])
    versions = [onnx.helper.make_opsetid("", 23), *([onnx.helper.make_opsetid(domain, 1)] if domain else [])]
    model = onnx.helper.make_model(graph, opset_imports=versions, ir_version=10)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "0"))
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    given = {n: np.ascontiguousarray(x) for n, x in zip(names, inputs, strict=True)}
    return lambda: session.run(None, given)
