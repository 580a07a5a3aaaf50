"""The one module that speaks to CUDA's driver, through the package cuda-bindings, which is imported on first use.

Kernels are launched in the context of the device on which their arrays lie: the current one, or the primary one, which PyTorch, CuPy,
Numba and JAX share.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from refattn_numba.cuda import cache

if TYPE_CHECKING:
    from refattn_numba.cuda.kernel import Cubin, Kernel
    from refattn_numba.cuda.tensor_map import Layout, TensorMaps

OLDEST = (8, 0)
"""The compute capability from which on the kernels run."""

ALWAYS_ALLOWED = 48 << 10
"""Bytes of dynamic shared memory for which a kernel needs no permission."""

C_TYPES: Mapping[str, Any] = {
    "pointer": ctypes.c_void_p,
    "int32": ctypes.c_int,
    "int64": ctypes.c_longlong,
    "float32": ctypes.c_float,
}


class CudaError(RuntimeError):
    """What CUDA's driver answered; or that there is none."""


class Facts(NamedTuple):
    """What a device is.

    Attributes
    ----------
    name : str
        Its trade name.
    capability : (int, int)
        Compute capability.
    processors, clock_khz : int
        Streaming multiprocessors, and the highest frequency of them.
    memory_bytes : int
        Of the whole device.
    shared_bytes : int
        Dynamic shared memory that a block may have.
    version : (int, int)
        Of CUDA, as the driver has it.
    """

    name: str
    capability: tuple[int, int]
    processors: int
    clock_khz: int
    memory_bytes: int
    shared_bytes: int
    version: tuple[int, int]

    @property
    def architecture(self) -> str:
        """What kernels are compiled for."""
        if self.capability < OLDEST:
            raise CudaError(
                f"{self.name} has compute capability {_dotted(self.capability)}, but the kernels need {_dotted(OLDEST)} or more"
            )
        major, minor = self.capability
        return {8: "sm_80", 9: "sm_90a"}.get(major, f"sm_{major}{minor}")


class Driver(Protocol):
    """What the rest of the package asks of a driver; tests have one that runs kernels in main memory."""

    def count(self) -> int:
        """How many devices there are."""
        ...

    def facts(self, device: int) -> Facts:
        """What a device is."""
        ...

    def device_of(self, address: int) -> int:
        """The device on which memory lies; the current one for the address 0."""
        ...

    def launch(self, kernel: Kernel, device: int, blocks: int, arguments: Mapping[str, int | float], stream: int) -> None:
        """Queue a kernel, with its arguments by name, on a stream of a device."""
        ...

    def tensor_map(self, device: int, layout: Layout) -> int:
        """Address of the description of a tensor in a device's memory."""
        ...

    def wait_for(self, device: int, stream: int, other: int) -> None:
        """Let a stream wait for what is queued on another one now."""
        ...

    def synchronize(self, device: int, stream: int) -> None:
        """Return when all that is queued on a stream has been done."""
        ...


class CudaDriver:
    """The driver itself; `bindings` is the module ``cuda.bindings.driver``."""

    def __init__(self, bindings: Any) -> None:
        self._cuda = bindings
        self._loaded: dict[tuple[Kernel, int], Any] = {}
        self._facts: dict[int, Facts] = {}
        self._primary: dict[int, Any] = {}
        self._maps: dict[int, TensorMaps] = {}
        try:
            self._call("cuInit", 0)
        except CudaError:
            raise
        except Exception as error:  # whatever the bindings raise where they find no library
            raise CudaError(f"no driver of CUDA was found: {error}") from None

    def count(self) -> int:  # noqa: D102
        return self._call("cuDeviceGetCount")

    def facts(self, device: int) -> Facts:  # noqa: D102
        if device not in self._facts:
            kinds, handle = self._cuda.CUdevice_attribute, self._call("cuDeviceGet", device)

            def attribute(name: str) -> int:
                return self._call("cuDeviceGetAttribute", getattr(kinds, f"CU_DEVICE_ATTRIBUTE_{name}"), handle)

            version = self._call("cuDriverGetVersion")
            self._facts[device] = Facts(
                self._call("cuDeviceGetName", 256, handle).decode().strip("\0 "),
                (attribute("COMPUTE_CAPABILITY_MAJOR"), attribute("COMPUTE_CAPABILITY_MINOR")),
                attribute("MULTIPROCESSOR_COUNT"),
                attribute("CLOCK_RATE"),
                int(self._call("cuDeviceTotalMem", handle)),
                attribute("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN"),
                (version // 1000, version % 1000 // 10),
            )
        return self._facts[device]

    def device_of(self, address: int) -> int:  # noqa: D102
        if address:
            return int(self._call("cuPointerGetAttribute", self._cuda.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, address))
        current = self._call("cuCtxGetCurrent")
        return int(self._call("cuCtxGetDevice")) if int(current) else 0

    def launch(self, kernel: Kernel, device: int, blocks: int, arguments: Mapping[str, int | float], stream: int) -> None:  # noqa: D102
        values, types = packed_arguments(kernel, arguments)
        with self._context(device):
            loaded = self._load(kernel, device)
            sizes = (blocks, 1, 1, kernel.threads, 1, 1, kernel.shared_bytes)
            self._call("cuLaunchKernel", loaded, *sizes, self._cuda.CUstream(stream), (values, types), 0)

    def tensor_map(self, device: int, layout: Layout) -> int:  # noqa: D102
        from refattn_numba.cuda.tensor_map import TensorMaps  # noqa: PLC0415  # which brings kernels' modules along

        with self._context(device):
            context = int(self._call("cuCtxGetCurrent"))
            if context not in self._maps:
                self._maps[context] = TensorMaps(self._cuda, self._call)
            return self._maps[context].address(layout)

    def wait_for(self, device: int, stream: int, other: int) -> None:  # noqa: D102
        with self._context(device):
            event = self._call("cuEventCreate", self._cuda.CUevent_flags.CU_EVENT_DISABLE_TIMING)
            try:
                self._call("cuEventRecord", event, self._cuda.CUstream(other))
                self._call("cuStreamWaitEvent", self._cuda.CUstream(stream), event, 0)
            finally:
                self._call("cuEventDestroy", event)

    def synchronize(self, device: int, stream: int) -> None:  # noqa: D102
        with self._context(device):
            self._call("cuStreamSynchronize", self._cuda.CUstream(stream))

    def _load(self, kernel: Kernel, device: int) -> Any:
        """The function to launch: from memory, from a file, or from the compiler."""
        if (kernel, device) not in self._loaded:
            cubin = cache.cubin_of(kernel, self.facts(device).architecture)
            self._loaded[kernel, device] = self._function_of(cubin, kernel, device)
        return self._loaded[kernel, device]

    def _function_of(self, cubin: Cubin, kernel: Kernel, device: int) -> Any:
        library = self._call("cuLibraryLoadData", cubin.code, [], [], 0, [], [], 0)
        found = self._call("cuLibraryGetKernel", library, cubin.entry.encode())
        if kernel.shared_bytes > ALWAYS_ALLOWED:
            attribute = self._cuda.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._call("cuKernelSetAttribute", attribute, kernel.shared_bytes, found, self._call("cuDeviceGet", device))
        return self._cuda.CUfunction(int(found))  # a launch takes either

    @contextmanager
    def _context(self, device: int) -> Iterator[None]:
        """The current context, if it is this device's, or else the primary one."""
        if int(self._call("cuCtxGetCurrent")) and int(self._call("cuCtxGetDevice")) == device:
            yield
            return
        if device not in self._primary:
            self._primary[device] = self._call("cuDevicePrimaryCtxRetain", self._call("cuDeviceGet", device))
        self._call("cuCtxPushCurrent", self._primary[device])
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent")

    def _call(self, function: str, *arguments: Any) -> Any:
        """What a function of the driver returns besides its status, which becomes an error."""
        status, *results = getattr(self._cuda, function)(*arguments)
        if int(status):
            name, text = (getattr(self._cuda, f"cuGetError{what}")(status)[1] for what in ("Name", "String"))
            raise CudaError(f"{function}: {_decoded(name)} ({int(status)}): {_decoded(text)}")
        return results[0] if results else None


LARGEST: Mapping[str, int] = {"int32": 1 << 31, "int64": 1 << 63}


@functools.lru_cache(maxsize=256)
def _types_of(parameters: tuple[tuple[str, str], ...]) -> tuple[Any, ...]:
    return tuple(C_TYPES[kind] for _, kind in parameters)


def packed_arguments(kernel: Kernel, arguments: Mapping[str, int | float]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Values and their C types, in the kernel's order; a TypeError where names differ, an OverflowError where a number does not fit."""
    values: list[int | float] = []
    for name, kind in kernel.parameters:
        x = arguments.get(name)
        if x is None:
            raise TypeError(f"{kernel.name}: {name} is absent")
        most = LARGEST.get(kind)
        if most is not None and not -most <= x < most:
            raise OverflowError(f"{kernel.name}: {name} is {x}, which {kind} does not hold")
        values.append(float(x) if kind == "float32" else x)
    if len(values) != len(arguments):
        raise TypeError(
            f"{kernel.name}: {', '.join(sorted(arguments.keys() - dict(kernel.parameters).keys()))}: no parameter has this name"
        )
    return tuple(values), _types_of(kernel.parameters)


_REPLACED: ContextVar[Driver | None] = ContextVar("refattn_cuda_driver", default=None)


@functools.cache
def _cuda_driver() -> CudaDriver:
    try:
        bindings = importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        raise CudaError(f"arrays on a device need the package cuda-bindings: pip install 'refattn[cuda]' ({error})") from None
    return CudaDriver(bindings)


def current() -> Driver:
    """The driver to use; a `CudaError` where there is none."""
    return _REPLACED.get() or _cuda_driver()


@contextmanager
def using(replacement: Driver) -> Iterator[None]:
    """Within the block, kernels are launched by another driver."""
    token = _REPLACED.set(replacement)
    try:
        yield
    finally:
        _REPLACED.reset(token)


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))


def _decoded(text: Any) -> str:
    return text.decode() if isinstance(text, bytes) else str(text)
