"""What is asked of CUDA's driver, in which order and with which arguments, by a module in its place that takes notes."""

import ctypes
import sys
from enum import IntEnum
from types import SimpleNamespace
from typing import NamedTuple

import pytest

pytest.importorskip("numba")

from refattn_numba.cuda import cache, driver
from refattn_numba.cuda.kernel import Cubin, Kernel


class Config(NamedTuple):
    size: int = 64


def builder(ops, config):
    return None


PARAMETERS = (("query", "pointer"), ("heads", "int32"), ("query_row", "int64"), ("scale", "float32"))
SMALL = Kernel("small", builder, Config(), PARAMETERS, 128, 1024, 64)
LARGE = Kernel("large", builder, Config(), PARAMETERS, 256, 200_000, 64)
GIVEN = {"scale": 1, "query": 4096, "query_row": 1 << 40, "heads": 3}


class Handle:
    """A handle of the bindings: a number."""

    def __init__(self, number=0):
        self.number = int(number)

    def __int__(self):
        return self.number

    def __eq__(self, other):
        return int(self) == int(other)

    __hash__ = None


class Attribute(IntEnum):
    """The value of each stands for its number."""

    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 9
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 90
    CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 132
    CU_DEVICE_ATTRIBUTE_CLOCK_RATE = 1_980_000
    CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 232_448


class Bindings:
    """``cuda.bindings.driver`` with two devices; `fails` maps a function to the status that it returns."""

    CUdevice_attribute, CUstream, CUfunction = Attribute, Handle, Handle
    CUpointer_attribute = SimpleNamespace(CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL="ordinal")
    CUfunction_attribute = SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES="dynamic")
    CUevent_flags = SimpleNamespace(CU_EVENT_DISABLE_TIMING=2)

    def __init__(self, context=0, device=0, **fails):
        self.fails, self.calls, self.contexts = fails, [], [(context, device)]

    def __getattr__(self, name):
        def call(*arguments):
            self.calls.append((name, arguments))
            if name in self.fails:
                return (self.fails[name],) if name in {"cuInit", "cuLaunchKernel"} else (self.fails[name], None)
            return self.answer(name, arguments)

        return call

    def answer(self, name, arguments):
        if name == "cuCtxPushCurrent":
            self.contexts.append((int(arguments[0]), int(arguments[0]) - 100))
        if name == "cuCtxPopCurrent":
            return 0, Handle(self.contexts.pop()[0])
        if name == "cuDevicePrimaryCtxRetain":
            return 0, Handle(100 + arguments[0])
        answers = {
            "cuGetErrorName": (0, b"CUDA_ERROR_OUT_OF_LUCK"),
            "cuGetErrorString": (0, b"no luck is left"),
            "cuDeviceGetCount": (0, 2),
            "cuDeviceGet": (0, arguments[0] if arguments else None),
            "cuDeviceGetName": (0, b"NVIDIA Stand-in\0\0\0"),
            "cuDeviceGetAttribute": (0, int(arguments[0]) if arguments and isinstance(arguments[0], Attribute) else 0),
            "cuDeviceTotalMem": (0, 1 << 37),
            "cuDriverGetVersion": (0, 13010),
            "cuCtxGetCurrent": (0, Handle(self.contexts[-1][0])),
            "cuCtxGetDevice": (0, Handle(self.contexts[-1][1])),
            "cuPointerGetAttribute": (0, 1),
            "cuLibraryLoadData": (0, Handle(7)),
            "cuLibraryGetKernel": (0, Handle(8)),
            "cuEventCreate": (0, Handle(9)),
        }
        return answers.get(name, (0,))

    def named(self, *names):
        return [(name, arguments) for name, arguments in self.calls if name in names]


@pytest.fixture
def compiled(monkeypatch):
    found = []

    def cubin_of(kernel, architecture):
        found.append((kernel.name, architecture))
        return Cubin(b"code", f"entry_of_{kernel.name}", architecture, 100, 0, 0)

    monkeypatch.setattr(cache, "cubin_of", cubin_of)
    return found


def test_facts():
    facts = driver.CudaDriver(Bindings()).facts(1)
    assert facts.name == "NVIDIA Stand-in"
    assert facts[2:] == (132, 1_980_000, 1 << 37, 232_448, (13, 1))


@pytest.mark.parametrize(
    ("capability", "architecture"), [((8, 0), "sm_80"), ((8, 9), "sm_80"), ((9, 0), "sm_90a"), ((10, 0), "sm_100"), ((12, 1), "sm_121")]
)
def test_architectures(capability, architecture):
    assert driver.Facts("card", capability, 1, 1, 1, 1, (13, 0)).architecture == architecture


def test_an_old_device_is_refused():
    with pytest.raises(driver.CudaError, match=r"card has compute capability 7.5, but the kernels need 8.0 or more"):
        driver.Facts("card", (7, 5), 1, 1, 1, 1, (13, 0)).architecture  # noqa: B018


def test_a_launch_in_the_current_context(compiled):
    bindings = Bindings(context=5, device=0)
    driver.CudaDriver(bindings).launch(SMALL, 0, 12, GIVEN, 77)
    ((_, arguments),) = bindings.named("cuLaunchKernel")
    assert arguments[:8] == (8, 12, 1, 1, 128, 1, 1, 1024)
    assert int(arguments[8]) == 77
    assert arguments[9] == ((4096, 3, 1 << 40, 1.0), (ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong, ctypes.c_float))
    assert type(arguments[9][0][3]) is float
    assert not bindings.named("cuCtxPushCurrent", "cuKernelSetAttribute")
    assert bindings.named("cuLibraryGetKernel")[0][1][1] == b"entry_of_small"


@pytest.mark.parametrize(("context", "device"), [(0, 0), (5, 0)], ids=["none is current", "another device's is current"])
def test_a_launch_in_the_primary_context(compiled, context, device):
    bindings = Bindings(context, device)
    made = driver.CudaDriver(bindings)
    for _ in range(2):
        made.launch(SMALL, 1, 1, GIVEN, 0)
    assert [int(arguments[0]) for _, arguments in bindings.named("cuCtxPushCurrent")] == [101, 101]
    assert bindings.contexts == [(context, device)]
    assert len(bindings.named("cuDevicePrimaryCtxRetain")) == 1


def test_the_context_is_left_after_an_error(compiled):
    bindings = Bindings(cuLaunchKernel=700)
    with pytest.raises(driver.CudaError, match=r"cuLaunchKernel: CUDA_ERROR_OUT_OF_LUCK \(700\): no luck is left"):
        driver.CudaDriver(bindings).launch(SMALL, 1, 1, GIVEN, 0)
    assert bindings.contexts == [(0, 0)]


def test_much_shared_memory_needs_permission(compiled):
    bindings = Bindings()
    driver.CudaDriver(bindings).launch(LARGE, 1, 1, GIVEN, 0)
    ((_, arguments),) = bindings.named("cuKernelSetAttribute")
    assert arguments == ("dynamic", 200_000, 8, 1)


def test_a_kernel_is_loaded_once_for_each_device(compiled):
    bindings = Bindings()
    made = driver.CudaDriver(bindings)
    for device in (0, 1, 0, 1):
        made.launch(SMALL, device, 1, GIVEN, 0)
    made.launch(LARGE, 0, 1, GIVEN, 0)
    assert sorted(name for name, _ in compiled) == ["large", "small", "small"]
    assert len(bindings.named("cuLibraryLoadData")) == 3
    assert len(bindings.named("cuLaunchKernel")) == 5


def test_where_memory_lies():
    bindings = Bindings(context=5, device=1)
    made = driver.CudaDriver(bindings)
    assert made.device_of(4096) == 1
    assert made.device_of(0) == 1
    assert driver.CudaDriver(Bindings()).device_of(0) == 0
    assert bindings.named("cuPointerGetAttribute") == [("cuPointerGetAttribute", ("ordinal", 4096))]


def test_streams():
    bindings = Bindings()
    made = driver.CudaDriver(bindings)
    made.wait_for(0, 3, 4)
    made.synchronize(1, 3)
    events = bindings.named("cuEventCreate", "cuEventRecord", "cuStreamWaitEvent", "cuEventDestroy", "cuStreamSynchronize")
    assert [name for name, _ in events] == ["cuEventCreate", "cuEventRecord", "cuStreamWaitEvent", "cuEventDestroy", "cuStreamSynchronize"]
    assert int(events[1][1][1]) == 4
    assert int(events[2][1][0]) == 3
    assert bindings.contexts == [(0, 0)]


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"heads": 1 << 31}, OverflowError, "small: heads is 2147483648, which int32 does not hold"),
        ({"query_row": 1 << 63}, OverflowError, "query_row"),
        ({"more": 1}, TypeError, "small: more: no parameter has this name"),
    ],
)
def test_arguments_that_do_not_fit(change, error, match):
    with pytest.raises(error, match=match):
        driver.packed_arguments(SMALL, {**GIVEN, **change})


def test_an_argument_that_is_absent():
    with pytest.raises(TypeError, match="small: scale is absent"):
        driver.packed_arguments(SMALL, {name: x for name, x in GIVEN.items() if name != "scale"})


def test_errors_have_cudas_own_names():
    with pytest.raises(driver.CudaError, match=r"cuInit: CUDA_ERROR_OUT_OF_LUCK \(100\): no luck is left"):
        driver.CudaDriver(Bindings(cuInit=100))


def test_a_machine_without_a_driver():
    class Empty:
        def cuInit(self, _):  # noqa: N802  # CUDA's name
            raise RuntimeError("libcuda.so.1 is nowhere")

    with pytest.raises(driver.CudaError, match=r"no driver of CUDA was found: libcuda.so.1 is nowhere"):
        driver.CudaDriver(Empty())


def test_a_machine_without_the_bindings(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    driver._cuda_driver.cache_clear()
    try:
        with pytest.raises(driver.CudaError, match=r"need the package cuda-bindings: pip install 'refattn\[cuda\]'"):
            driver.current()
    finally:
        driver._cuda_driver.cache_clear()


def test_another_driver_for_a_while():
    other = SimpleNamespace()
    with driver.using(other):
        assert driver.current() is other


def test_the_bindings_have_all_that_is_called(monkeypatch):
    """Names of functions and constants, against the package itself where it is installed."""
    bindings = pytest.importorskip("cuda.bindings.driver")
    monkeypatch.setattr(cache, "cubin_of", lambda kernel, architecture: Cubin(b"code", "entry", architecture, 100, 0, 0))
    noted = Bindings()
    made = driver.CudaDriver(noted)
    made.facts(0)
    made.count()
    made.launch(LARGE, 1, 1, GIVEN, 0)
    made.wait_for(0, 3, 4)
    made.synchronize(1, 3)
    made.device_of(4096)
    made.device_of(0)
    assert all(hasattr(bindings, name) for name, _ in noted.calls)
    assert all(hasattr(bindings.CUdevice_attribute, name) for name in Attribute.__members__)
    assert hasattr(bindings.CUpointer_attribute, "CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL")
    assert hasattr(bindings.CUfunction_attribute, "CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES")
    assert bindings.CUevent_flags.CU_EVENT_DISABLE_TIMING == 2
    assert int(bindings.CUstream(77)) == 77
    assert int(bindings.CUfunction(int(bindings.CUkernel(8)))) == 8
    assert int(bindings.CUcontext(0)) == 0
