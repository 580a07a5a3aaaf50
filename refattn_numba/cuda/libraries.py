"""The libraries whose arrays kernels take.

None is imported here: who passes an array of one has done so, and an object's class says whose it is.
"""
# ruff: noqa: D102  # what each function does stands in `Library`

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from refattn_numba.cuda import driver
from refattn_numba.cuda.dlpack import CUDA_DEVICES, read_dlpack
from refattn_numba.cuda.library import (
    LEGACY_STREAM,
    Assigning,
    Library,
    Memory,
    c_strides,
    from_interface,
    in_numbers,
    module_of,
    native,
    numpy_type,
)


class Torch(Assigning):
    """Tensors of PyTorch."""

    name, in_order, tells_changes = "torch", True, True

    def is_on_device(self, x: Any) -> bool:
        return x.device.type == "cuda"

    def read(self, what: str, x: Any) -> Memory:
        torch = module_of("torch")
        if x.layout != torch.strided:
            raise TypeError(f"{what} is a {str(x.layout).removeprefix('torch.')} tensor, but must be a dense one")
        if x.requires_grad and torch.is_grad_enabled():
            raise TypeError(
                f"{what} requires a gradient, of which PyTorch would know nothing here: pass its detach(), or call under torch.no_grad(); "
                "the forward and the backward of an autograd.Function are what vjp returns"
            )
        if x.is_conj() or x.is_neg():
            raise TypeError(f"{what} is a view that is negated or conjugated when it is read: pass its resolve_neg()")
        dtype = str(x.dtype).removeprefix("torch.")
        return Memory(x.data_ptr() if x.numel() else 0, tuple(x.shape), tuple(x.stride()), dtype, x.device.index)

    def stream(self, x: Any) -> int:
        return module_of("torch").cuda.current_stream(x.device).cuda_stream

    def empty(self, x: Any, shape: tuple[int, ...], dtype: str) -> Any:
        torch = module_of("torch")
        return torch.empty(shape, dtype=getattr(torch, dtype), device=x.device)

    def broadcast(self, x: Any, shape: tuple[int, ...]) -> Any:
        return x.expand(shape)

    def turned(self, x: Any, axes: tuple[int, ...]) -> Any:
        return x.permute(axes)

    def version(self, x: Any) -> int | None:
        return None if x.is_inference() else x._version  # what autograd itself compares

    def uploaded(self, x: Any, like: Any) -> Any:
        return module_of("torch").as_tensor(x, device=like.device)


class Cupy(Assigning):
    """Arrays of CuPy."""

    name, in_order = "cupy", True

    def is_on_device(self, x: Any) -> bool:
        return True

    def read(self, what: str, x: Any) -> Memory:
        steps = in_numbers(what, x.strides, x.dtype.itemsize)
        return Memory(x.data.ptr if x.size else 0, tuple(x.shape), steps, native(what, x.dtype), x.device.id)

    def stream(self, x: Any) -> int:
        with x.device:
            return module_of("cupy").cuda.get_current_stream().ptr

    def empty(self, x: Any, shape: tuple[int, ...], dtype: str) -> Any:
        with x.device:
            return module_of("cupy").empty(shape, numpy_type(dtype))

    def copied(self, x: Any, dtype: str, width: int | None = None) -> Any:
        with x.device:
            return super().copied(x, dtype, width)

    def broadcast(self, x: Any, shape: tuple[int, ...]) -> Any:
        return module_of("cupy").broadcast_to(x, shape)

    def uploaded(self, x: Any, like: Any) -> Any:
        with like.device:
            return module_of("cupy").asarray(x)


class NumbaCuda(Assigning):
    """Device arrays of Numba, which have the default stream unless they were made on another or bound to one."""

    name, in_order = "numba", True

    def is_on_device(self, x: Any) -> bool:
        return hasattr(x, "__cuda_array_interface__")

    def read(self, what: str, x: Any) -> Memory:
        return from_interface(what, x)

    def stream(self, x: Any) -> int:
        return x.__cuda_array_interface__.get("stream") or LEGACY_STREAM

    def empty(self, x: Any, shape: tuple[int, ...], dtype: str) -> Any:
        with self._device(x) as cuda:
            return cuda.device_array(shape, numpy_type(dtype), stream=x.stream)

    def copied(self, x: Any, dtype: str, width: int | None = None) -> Any:
        with self._device(x):
            return super().copied(x, dtype, width)

    def broadcast(self, x: Any, shape: tuple[int, ...]) -> Any:
        raise TypeError(f"Numba does not broadcast an array of shape {tuple(x.shape)} to {shape}: pass it in the whole shape")

    def turned(self, x: Any, axes: tuple[int, ...]) -> Any:
        return None

    def summed(self, x: Any, axes: tuple[int, ...], shape: tuple[int, ...]) -> Any:
        raise TypeError(f"Numba does not sum an array over its axes {axes}: pass a bias with the leading axes of the query, or with none")

    def uploaded(self, x: Any, like: Any) -> Any:
        with self._device(like) as cuda:
            return cuda.to_device(x, stream=like.stream)

    @contextmanager
    def _device(self, x: Any) -> Iterator[Any]:
        cuda = module_of("numba").cuda
        with cuda.gpus[driver.current().device_of(x.__cuda_array_interface__["data"][0])]:
            yield cuda


class Jax:
    """Arrays of JAX, whose own streams are its secret: it has finished before a kernel starts, and the kernel before it goes on."""

    name, in_order, tells_changes = "jax", False, True

    def is_on_device(self, x: Any) -> bool:
        return any(d.platform in {"gpu", "cuda"} for d in x.devices())

    def read(self, what: str, x: Any) -> Memory:
        if len(x.devices()) > 1:
            raise TypeError(f"{what} lies on {len(x.devices())} devices, but must lie on one")
        x.block_until_ready()
        (device,) = x.devices()
        return Memory(
            x.unsafe_buffer_pointer() if x.size else 0, tuple(x.shape), c_strides(x.shape), x.dtype.name, device.local_hardware_id
        )

    def stream(self, x: Any) -> int:
        return LEGACY_STREAM

    def empty(self, x: Any, shape: tuple[int, ...], dtype: str) -> Any:
        (device,) = x.devices()
        return module_of("jax").numpy.empty(shape, dtype, device=device).block_until_ready()

    def zeros(self, x: Any, shape: tuple[int, ...], dtype: str) -> Any:
        (device,) = x.devices()
        return module_of("jax").numpy.zeros(shape, dtype, device=device).block_until_ready()

    def copied(self, x: Any, dtype: str, width: int | None = None) -> Any:
        made = x.astype(dtype)
        spare = 0 if width is None else width - x.shape[-1]
        return module_of("jax").numpy.pad(made, [(0, 0)] * (x.ndim - 1) + [(0, spare)]) if spare else made

    def trimmed(self, x: Any, width: int) -> Any:
        return x[..., :width]

    def broadcast(self, x: Any, shape: tuple[int, ...]) -> Any:
        return module_of("jax").numpy.broadcast_to(x, shape)

    def turned(self, x: Any, axes: tuple[int, ...]) -> Any:
        return None  # its arrays have one layout

    def summed(self, x: Any, axes: tuple[int, ...], shape: tuple[int, ...]) -> Any:
        return x.sum(axis=axes).reshape(shape)

    def version(self, x: Any) -> int | None:
        return None

    def uploaded(self, x: Any, like: Any) -> Any:
        (device,) = like.devices()
        return module_of("jax").device_put(x, device)


class Others(Assigning):
    """Arrays of any library that follows the array API standard, read by the CUDA array interface or DLPack."""

    name, in_order = "other", False

    def is_on_device(self, x: Any) -> bool:
        if hasattr(x, "__cuda_array_interface__"):
            return True
        return hasattr(x, "__dlpack_device__") and int(x.__dlpack_device__()[0]) in CUDA_DEVICES

    def read(self, what: str, x: Any) -> Memory:
        if hasattr(x, "__cuda_array_interface__"):
            return from_interface(what, x)
        return Memory(*read_dlpack(what, x, LEGACY_STREAM))

    def stream(self, x: Any) -> int:
        return (getattr(x, "__cuda_array_interface__", None) or {}).get("stream") or LEGACY_STREAM

    def empty(self, x: Any, shape: tuple[int, ...], dtype: str) -> Any:
        library = self._library(x)
        return library.empty(shape, dtype=getattr(library, dtype), device=x.device)

    def broadcast(self, x: Any, shape: tuple[int, ...]) -> Any:
        return self._library(x).broadcast_to(x, shape)

    def turned(self, x: Any, axes: tuple[int, ...]) -> Any:
        return self._library(x).permute_dims(x, axes)

    def summed(self, x: Any, axes: tuple[int, ...], shape: tuple[int, ...]) -> Any:
        library = self._library(x)
        return library.reshape(library.sum(x, axis=axes), shape)

    def uploaded(self, x: Any, like: Any) -> Any:
        return self._library(like).asarray(x, device=like.device)

    def _library(self, x: Any) -> Any:
        if not hasattr(x, "__array_namespace__"):
            raise TypeError(
                f"a {type(x).__module__}.{type(x).__name__} has no library that makes arrays like it: pass arrays of torch, cupy, numba, jax, "
                "or of another library of the array API standard"
            )
        return x.__array_namespace__()


LIBRARIES: dict[str, Library] = {
    **{library.name: library for library in (Torch(), Cupy(), NumbaCuda(), Jax())},
    "jaxlib": Jax(),
    "numba_cuda": NumbaCuda(),
}
HOST_MODULES = frozenset({"numpy", "ml_dtypes", "builtins"})


@functools.lru_cache(maxsize=256)
def library_of(kind: type) -> Library | None:
    """Whose class this is, where its objects may lie on a device."""
    owners = [c.__module__.partition(".")[0] for c in kind.__mro__ if c is not object]
    if any(owner in LIBRARIES for owner in owners):
        return next(LIBRARIES[owner] for owner in owners if owner in LIBRARIES)
    if any(owner in HOST_MODULES for owner in owners):
        return None
    return Others() if hasattr(kind, "__cuda_array_interface__") or hasattr(kind, "__dlpack_device__") else None
