"""The attention of other libraries on a CPU, where they are installed."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from benchmarks.cases import Call, installed
from benchmarks.softmax import Given
from benchmarks.torch_peer import fastest, torch_call

SCORES = 1 << 28  # JAX and ONNX Runtime hold all scores: of more than so many they are not asked for


def peers(given: Given) -> dict[str, Call]:
    """By name: first PyTorch, which is the baseline."""
    calls = {}
    if (torch := installed("torch")) is not None:
        calls["torch"] = torch_call(torch, given)
    if given.problem.scores > SCORES:
        return calls
    if (
        installed("onnxruntime")
        and installed("onnx")
        and given.problem.dtype == "float32"
        and not given.problem.backward
        and given.problem.window is None
    ):
        calls["onnxruntime"] = onnx_call(given)
    if (jax := installed("jax")) is not None:
        calls["jax"] = jax_call(jax, given)
    return calls


def jax_call(jax: Any, given: Given) -> Call:
    """Compiled; heads follow positions there, and arrays are laid out so before the clock runs."""
    if given.problem.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    query, key, value, d_output = (jax.numpy.asarray(x.swapaxes(1, 2)) for x in given[1:5])
    options: dict[str, Any] = {"is_causal": given.problem.causal}
    if given.problem.window is not None:
        options["local_window_size"] = (given.problem.window - 1, 0)
    if "mask" in given.options:
        options["mask"] = jax.numpy.asarray(given.options["mask"])[None, None]
    bias = [jax.numpy.asarray(given.options["bias"])] if "bias" in given.options else []

    def attend(query: Any, key: Any, value: Any, *bias: Any) -> Any:
        more = {"bias": bias[0][None, None]} if bias else {}
        return jax.nn.dot_product_attention(query, key, value, **options, **more)

    def both(d_output: Any, *inputs: Any) -> Any:
        y, pullback = jax.vjp(attend, *inputs)
        return (y, *pullback(d_output))

    inputs = (query, key, value, *bias)
    run = jax.jit(both if given.problem.backward else lambda _, *inputs: (attend(*inputs),))

    def call() -> Any:
        made = jax.block_until_ready(run(d_output, *inputs))
        return lambda: tuple(np.asarray(x).swapaxes(1, 2) if x.ndim == 4 else np.asarray(x) for x in made)

    return call


def onnx_call(given: Given) -> Call:
    """The standard's operator, or its older own one where that is faster and does what is asked."""
    ways = [_standard(given)]
    if given.problem.heads == given.problem.kv_heads and not given.options.keys() - {"causal"}:
        ways.append(_own(given))
    return fastest(ways)


def _standard(given: Given) -> Call:
    extra = [x for n in ("mask", "bias") if (x := given.options.get(n)) is not None]
    attributes = {"is_causal": int(given.problem.causal)}
    run = _session("Attention", "", 23, [*given[1:4], *extra], attributes)
    return lambda: run()[0]


def _own(given: Given) -> Call:
    """Heads lie side by side in rows there, and arrays are laid out so before the clock runs."""
    rows = [x.swapaxes(1, 2).reshape(given.problem.batch, x.shape[2], -1) for x in given[1:4]]
    run = _session(
        "MultiHeadAttention", "com.microsoft", 1, rows, {"num_heads": given.problem.heads, "unidirectional": int(given.problem.causal)}
    )
    shape = (given.problem.batch, given.problem.query_len, given.problem.heads, given.problem.head_dim)

    def call() -> Any:
        y = run()[0]
        return lambda: y.reshape(shape).swapaxes(1, 2)

    return call


def _session(operator: str, domain: str, version: int, inputs: list[np.ndarray], attributes: dict[str, int]) -> Any:
    """A call that runs one operator on as many threads as every contender has."""
    onnx, runtime = installed("onnx"), installed("onnxruntime")
    kinds = {"float32": onnx.TensorProto.FLOAT, "bool": onnx.TensorProto.BOOL}
    names = [f"x{i}" for i in range(len(inputs))]
    node = onnx.helper.make_node(operator, names, ["y"], domain=domain, **attributes)
    described = [onnx.helper.make_tensor_value_info(n, kinds[x.dtype.name], x.shape) for n, x in zip(names, inputs, strict=True)]
    graph = onnx.helper.make_graph([node], "one", described, [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)])
    sets = [onnx.helper.make_opsetid("", 23), *([onnx.helper.make_opsetid(domain, version)] if domain else [])]
    model = onnx.helper.make_model(graph, opset_imports=sets, ir_version=10)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "0"))
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    given = {n: np.ascontiguousarray(x) for n, x in zip(names, inputs, strict=True)}
    return lambda: session.run(None, given)
