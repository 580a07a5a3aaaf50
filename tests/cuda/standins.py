"""Arrays of main memory with the faces of each library's device arrays, and a driver that launches nothing or an emulator."""

import ctypes
import math
import weakref
from contextlib import contextmanager
from types import SimpleNamespace

import ml_dtypes
import numpy as np

from refattn_numba.cuda import driver, libraries
from refattn_numba.cuda.fragments import bytes_of
from tests.cuda.emulated_block import encoded_map

WHOLE = {}
"""What any stand-in has allocated, by address: a weak reference to the memory, where it begins there, its size and its device."""
SPARE = 64


def numpy_type(name):
    return np.dtype(getattr(ml_dtypes, name) if name == "bfloat16" or name.startswith("float8_") else name)


def allocated(shape, dtype, device=0, offset=0):
    """Memory that begins at a multiple of 64 bytes, and `offset` bytes after that."""
    size = math.prod(shape) * numpy_type(dtype).itemsize
    whole = np.full(size + 2 * SPARE, 0xFF, np.uint8)  # whatever was there before: not a number
    at = -whole.ctypes.data % SPARE + offset
    part = whole[at : at + size]
    if size:
        WHOLE[part.ctypes.data] = weakref.ref(whole), at, size, device
    return part.view(numpy_type(dtype)).reshape(shape)


def buffers():
    """All that is alive, byte by byte."""
    found = [(whole(), at, size) for whole, at, size, _ in WHOLE.values()]
    return [whole[at : at + size] for whole, at, size in found if whole is not None]


def device_at(address):
    """The device of the buffer in which an address lies."""
    for first, (whole, _, size, device) in WHOLE.items():
        if first <= address < first + size and whole() is not None:
            return device
    raise driver.CudaError(f"cuPointerGetAttribute: CUDA_ERROR_INVALID_VALUE (1): {address:#x} is no memory of a device")


class Host:
    """An array that another class shows in its library's way."""

    def __init__(self, a, device=0, stream=0):
        self.a, self.number, self.on_stream = a, device, stream
        self.writes = 0

    @property
    def shape(self):
        return self.a.shape

    @property
    def ndim(self):
        return self.a.ndim

    @property
    def size(self):
        return self.a.size

    def like(self, a):
        return type(self)(a, self.number, self.on_stream)

    def __getitem__(self, key):
        return self.like(self.a[key])

    def __setitem__(self, key, value):
        self.a[key] = value.a if isinstance(value, Host) else value
        self.writes += 1

    def sum(self, axis):
        return self.made(self.a.astype(np.float64).sum(axis=axis).astype(self.a.dtype))

    def reshape(self, shape):
        return self.like(self.a.reshape(shape))

    def made(self, a):
        new = allocated(a.shape, a.dtype.name, self.number)
        new[...] = a
        return self.like(new)


class TorchType(str):
    def __str__(self):
        return f"torch.{str.__str__(self)}"

    __slots__ = ()


class Tensor(Host):
    __module__ = "torch"
    layout, requires_grad, negative, conjugated, inference = "torch.strided", False, False, False, False

    @property
    def device(self):
        return SimpleNamespace(type="cuda", index=self.number)

    @property
    def dtype(self):
        return TorchType(self.a.dtype.name)

    @property
    def _version(self):
        return self.writes

    def stride(self):
        return tuple(s // self.a.itemsize for s in self.a.strides)

    def data_ptr(self):
        return self.a.ctypes.data

    def numel(self):
        return self.a.size

    def is_conj(self):
        return self.conjugated

    def is_neg(self):
        return self.negative

    def is_inference(self):
        return self.inference

    def expand(self, shape):
        return self.like(np.broadcast_to(self.a, shape))

    def permute(self, axes):
        return self.like(self.a.transpose(axes))


class CupyArray(Host):
    __module__ = "cupy"

    @property
    def dtype(self):
        return self.a.dtype

    @property
    def strides(self):
        return self.a.strides

    def transpose(self, axes):
        return self.like(self.a.transpose(axes))

    @property
    def data(self):
        return SimpleNamespace(ptr=self.a.ctypes.data)

    @property
    def device(self):
        return CupyDevice(self.number)


class CupyDevice:
    def __init__(self, number):
        self.id = number

    def __enter__(self):
        FAKES["cupy"].entered.append(self.id)

    def __exit__(self, *_):
        FAKES["cupy"].entered.pop()


class NumbaArray(Host):
    __module__ = "numba.cuda.cudadrv.devicearray"
    version, mask = 3, None

    @property
    def dtype(self):
        return self.a.dtype

    @property
    def stream(self):
        return self.on_stream

    @property
    def __cuda_array_interface__(self):
        return {
            "shape": self.a.shape,
            "strides": None if self.a.flags.c_contiguous else self.a.strides,
            "data": (self.a.ctypes.data if self.a.size else 0, False),
            "typestr": self.a.dtype.str,
            "stream": self.on_stream or None,
            "version": self.version,
            "mask": self.mask,
        }


class JaxArray(Host):
    __module__ = "jaxlib._jax"
    platform = "gpu"
    waits = 0

    @property
    def dtype(self):
        return self.a.dtype

    def devices(self):
        return {JaxDevice(self.platform, self.number)}

    def unsafe_buffer_pointer(self):
        return self.a.ctypes.data

    def block_until_ready(self):
        JaxArray.waits += 1
        return self

    def astype(self, dtype):
        return self.made(self.a.astype(numpy_type(dtype)))

    def __getitem__(self, key):
        return self.made(self.a[key])

    def __setitem__(self, key, value):
        raise TypeError("JAX arrays are immutable")


class JaxDevice:
    def __init__(self, platform, number):
        self.platform, self.local_hardware_id = platform, number


class StandardArray(Host):
    """Of a library that only follows the array API standard."""

    __module__ = "somebody"
    kind = 2

    @property
    def dtype(self):
        return self.a.dtype

    @property
    def device(self):
        return self.number

    def __array_namespace__(self):
        return FAKES["somebody"]

    def __dlpack_device__(self):
        return self.kind, self.number

    def __dlpack__(self, *, stream):
        self.asked_stream = stream
        return capsule_of(self.a, self.kind, self.number)


class Strange(Host):
    """A device array of no library."""

    __module__ = "nobody"

    @property
    def __cuda_array_interface__(self):
        return NumbaArray.__cuda_array_interface__.fget(self)

    version, mask = 2, None


_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype, _new_capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
CODES = {"f": 2, "i": 0, "b": 6}
KEPT = []


def capsule_of(a, kind, device, *, lanes=1, with_strides=True):
    from refattn_numba.cuda.dlpack import _Tensor

    code = 10 if a.dtype.name == "float8_e4m3fn" else CODES.get(a.dtype.kind, 4)
    sizes, steps = (ctypes.c_int64 * a.ndim)(*a.shape), (ctypes.c_int64 * a.ndim)(*(s // a.itemsize for s in a.strides))
    tensor = _Tensor(a.ctypes.data, kind, device, a.ndim, code, 8 * a.itemsize, lanes, sizes, steps if with_strides else None, 0)
    KEPT.append((tensor, sizes, steps, a))
    return _new_capsule(ctypes.addressof(tensor), b"dltensor", None)


def _fake_torch():
    current = SimpleNamespace(cuda_stream=7)
    names = ("float32", "float16", "bfloat16", "float64", "bool", "int8", "int32", "int64", "float8_e4m3fn")
    return SimpleNamespace(
        strided="torch.strided",
        is_grad_enabled=lambda: True,
        cuda=SimpleNamespace(current_stream=lambda device: current, current=current),
        empty=lambda shape, dtype, device: Tensor(allocated(shape, str.__str__(dtype), device.index), device.index),
        as_tensor=lambda x, device: Tensor(_filled(x, device.index), device.index),
        **{name: TorchType(name) for name in names},
    )


def _filled(x, device=0, offset=0):
    made = allocated(x.shape, x.dtype.name, device, offset)
    made[...] = x
    return made


def _fake_cupy():
    fake = SimpleNamespace(entered=[], cuda=SimpleNamespace(get_current_stream=lambda: SimpleNamespace(ptr=11)))
    fake.empty = lambda shape, dtype: CupyArray(allocated(shape, dtype.name, fake.entered[-1]), fake.entered[-1])
    fake.broadcast_to = lambda x, shape: x.like(np.broadcast_to(x.a, shape))
    fake.asarray = lambda x: CupyArray(_filled(x, fake.entered[-1]), fake.entered[-1])
    return fake


def _fake_numba():
    fake = SimpleNamespace(entered=[])

    class Gpus:
        @contextmanager
        def __getitem__(self, number):
            fake.entered.append(number)
            yield
            fake.entered.pop()

    def device_array(shape, dtype, stream=0):
        return NumbaArray(allocated(shape, dtype.name, fake.entered[-1]), fake.entered[-1], stream)

    fake.cuda = SimpleNamespace(
        gpus=Gpus(),
        device_array=device_array,
        to_device=lambda x, stream: NumbaArray(_filled(x, fake.entered[-1]), fake.entered[-1], stream),
    )
    return fake


def _fake_jax():
    def made(shape, dtype, device):
        new = allocated(shape, dtype, device.local_hardware_id)
        new[...] = 0
        return JaxArray(new, device.local_hardware_id)

    def pad(x, widths):
        return x.made(np.pad(x.a, widths))

    namespace = SimpleNamespace(empty=made, zeros=made, pad=pad, broadcast_to=lambda x, shape: x.made(np.broadcast_to(x.a, shape)))
    return SimpleNamespace(
        numpy=namespace, device_put=lambda x, device: JaxArray(_filled(x, device.local_hardware_id), device.local_hardware_id)
    )


def _fake_standard():
    names = ("float32", "float16", "bfloat16", "float64", "bool", "int32", "int64", "float8_e4m3fn")
    return SimpleNamespace(
        empty=lambda shape, dtype, device: StandardArray(allocated(shape, dtype, device), device),
        asarray=lambda x, device: StandardArray(_filled(x, device), device),
        broadcast_to=lambda x, shape: x.like(np.broadcast_to(x.a, shape)),
        permute_dims=lambda x, axes: x.like(x.a.transpose(axes)),
        reshape=lambda x, shape: x.reshape(shape),
        sum=lambda x, axis: x.sum(axis),
        **{name: name for name in names},
    )


FAKES = {"torch": _fake_torch(), "cupy": _fake_cupy(), "numba": _fake_numba(), "jax": _fake_jax(), "somebody": _fake_standard()}
KINDS = {"torch": Tensor, "cupy": CupyArray, "numba": NumbaArray, "jax": JaxArray, "somebody": StandardArray}


def to_device(x, kind="torch", device=0, dtype=None, offset=0):
    """A NumPy array as one of a library."""
    x = np.asarray(x)
    return KINDS[kind](_filled(x.astype(numpy_type(dtype or x.dtype.name)), device, offset), device)


def to_host(x):
    """The numbers of a stand-in, in float64 where they are real."""
    return x.a.astype(np.float64) if x.a.dtype.kind in "fV" or x.a.dtype.name == "bfloat16" else x.a.copy()


class Recorder:
    """A driver that notes what it is asked for; `run` is what becomes of a launch."""

    def __init__(self, run=None, capability=(9, 0), shared_bytes=232_448, devices=2):
        self.run, self.launches, self.waits, self.synchronized = run, [], [], 0
        self.known = driver.Facts("stand-in", capability, 4, 1_000_000, 1 << 34, shared_bytes, (13, 0))
        self.devices, self.maps = devices, {}

    def count(self):
        return self.devices

    def facts(self, device):
        return self.known

    def device_of(self, address):
        return device_at(address) if address else 0

    def launch(self, kernel, device, blocks, arguments, stream):
        driver.packed_arguments(kernel, arguments)
        self.launches.append(SimpleNamespace(kernel=kernel, device=device, blocks=blocks, arguments=dict(arguments), stream=stream))
        if self.run is not None:
            self.run(kernel, blocks, dict(arguments), buffers())

    def tensor_map(self, device, layout):
        if layout not in self.maps:
            self.maps[layout] = allocated((128,), "uint8", device)
            self.maps[layout][:] = list(encoded_map(bytes_of(layout.element), layout.address, layout.sizes, layout.strides, layout.box))
        return self.maps[layout].ctypes.data

    def wait_for(self, device, stream, other):
        self.waits.append((device, stream, other))

    def synchronize(self, device, stream):
        self.synchronized += 1


@contextmanager
def pretending(monkeypatch, run=None, **facts):
    """Within the block, stand-ins are taken for arrays on a device, and launches for launches."""
    monkeypatch.setattr(libraries, "module_of", FAKES.__getitem__)
    recorder = Recorder(run, **facts)
    with driver.using(recorder):
        yield recorder
