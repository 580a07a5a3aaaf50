"""What a DLPack capsule says of an array, read from the structure that it holds, without taking the array over.

Source: the DLPack specification, https://dmlc.github.io/dlpack/latest/c_api.html (`DLManagedTensor`).
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

CUDA_DEVICES = frozenset({2, 13})
"""kDLCUDA and kDLCUDAManaged."""

CAPSULE = b"dltensor"
TYPES = {
    (0, 32): "int32",
    (0, 64): "int64",
    (2, 16): "float16",
    (2, 32): "float32",
    (2, 64): "float64",
    (4, 16): "bfloat16",
    (6, 8): "bool",
    (10, 8): "float8_e4m3fn",
}
"""Names of types by code and bits."""


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.restype, _pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


def read_dlpack(what: str, x: Any, stream: int) -> tuple[int, tuple[int, ...], tuple[int, ...], str, int]:
    """Address, shape, strides in numbers, type and device; `x` is ready on the stream afterwards.

    The capsule is not renamed, so that it gives back what it holds when it is deleted: `x` itself keeps the memory.
    """
    capsule = x.__dlpack__(stream=stream or 1)  # 1 is the legacy default stream; 0 is not allowed
    tensor = _Tensor.from_address(_pointer_of(capsule, CAPSULE))
    if tensor.device_type not in CUDA_DEVICES:
        raise TypeError(f"{what} lies on a device of DLPack's type {tensor.device_type}, but must lie on a CUDA device")
    name = TYPES.get((tensor.code, tensor.bits)) if tensor.lanes == 1 else None
    if name is None:
        raise TypeError(f"{what} has DLPack's type {tensor.code} with {tensor.bits} bits and {tensor.lanes} lanes, which no kernel reads")
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    steps = (
        tuple(tensor.strides[i] for i in range(tensor.ndim))
        if tensor.strides
        else tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
    )
    return (tensor.data or 0) + tensor.byte_offset, shape, steps, name, tensor.device_id
