"""The attention of other libraries on a CPU, where they are installed and do what is asked."""

from __future__ import annotations

import os

from benchmarks.cases import Call, installed
from benchmarks.jax_peer import jax_call
from benchmarks.onnx_peer import onnx_call
from benchmarks.softmax import Given
from benchmarks.torch_peer import torch_call

SCORES = 1 << 28  # JAX and ONNX Runtime hold all scores: of more than so many they are not asked for


def peers(given: Given) -> dict[str, Call]:
    """By name: first PyTorch, which is the baseline."""
    problem, calls = given.problem, {}
    if (torch := installed("torch")) is not None:
        calls["torch"] = torch_call(torch, given)
    if problem.scores > SCORES:
        return calls
    runtime, onnx = installed("onnxruntime"), installed("onnx")
    if runtime is not None and onnx is not None and problem.dtype == "float32" and not problem.backward:
        calls["onnxruntime"] = onnx_call(onnx, runtime, given)
    all_cores = os.environ.get("OMP_NUM_THREADS") in {None, str(os.cpu_count())}  # JAX takes no other number of threads
    if all_cores and problem.dtype != "float64" and (jax := installed("jax")) is not None:  # its softmax is computed in float32
        calls["jax"] = jax_call(jax, given)
    return calls
