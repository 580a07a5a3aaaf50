"""What the driver is asked to describe, and where the descriptions go, by a stand-in; no driver or GPU."""

import ctypes
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("numba")

import refattn
from refattn_numba.cuda import cache, driver, explain, hopper
from refattn_numba.cuda.kernel import Cubin
from refattn_numba.cuda.tensor_map import Layout, TensorMaps, layout_of
from tests.cuda import emulated_block, emulated_hopper, emulator, standins
from tests.cuda.test_driver import Bindings

SHAPE = (2, 4, 100, 72)


def test_layouts():
    assert layout_of("bfloat16", 4096, SHAPE, (28_800, 7200, 72), 64) == Layout(
        "bfloat16", 4096, (72, 100, 4, 2), (144, 14_400, 57_600), 64
    )
    by_length = layout_of("float16", 4096, SHAPE, (28_800, 72, 288), 128)
    assert by_length is not None
    assert by_length.strides == (576, 144, 57_600)
    assert by_length.box == (64, 128, 1, 1)
    shared = layout_of("float16", 4096, SHAPE, (0, 0, 72), 64)
    assert shared is not None
    assert (shared.sizes, shared.strides) == ((72, 100, 1, 1), (144, 16, 16))
    one_row = layout_of("float16", 4096, (2, 4, 1, 72), (288, 72, 0), 64)
    assert one_row is not None
    assert one_row.sizes == (72, 1, 4, 2)


@pytest.mark.parametrize(
    ("address", "shape", "strides", "rows"),
    [
        (4104, SHAPE, (28_800, 7200, 72), 64),
        (4096, SHAPE, (28_800, 7200, 73), 64),
        (4096, SHAPE, (28_800, 7200, 0), 64),
        (4096, SHAPE, (28_800, -7200, 72), 64),
        (4096, SHAPE, (1 << 40, 7200, 72), 64),
        (4096, (2, 4, 0, 72), (28_800, 7200, 72), 64),
        (4096, SHAPE, (28_800, 7200, 72), 264),
    ],
)
def test_layouts_that_the_hardware_does_not_know(address, shape, strides, rows):
    assert layout_of("bfloat16", address, shape, strides, rows) is None


class Maps(Bindings):
    """The driver's functions for tensor maps, in main memory."""

    CUtensorMapDataType = SimpleNamespace(CU_TENSOR_MAP_DATA_TYPE_BFLOAT16=2, CU_TENSOR_MAP_DATA_TYPE_FLOAT16=2)
    CUtensorMapInterleave = SimpleNamespace(CU_TENSOR_MAP_INTERLEAVE_NONE="not interleaved")
    CUtensorMapSwizzle = SimpleNamespace(CU_TENSOR_MAP_SWIZZLE_128B="by 128 bytes")
    CUtensorMapL2promotion = SimpleNamespace(CU_TENSOR_MAP_L2_PROMOTION_L2_256B="by 256 bytes")
    CUtensorMapFloatOOBfill = SimpleNamespace(CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE="zeros")
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_RELAXED="relaxed")
    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=1)
    cuuint64_t = cuuint32_t = int

    def __init__(self, **fails):
        super().__init__(**fails)
        self.kept = []

    def answer(self, name, arguments):
        if name == "cuTensorMapEncodeTiled":
            itemsize, rank, address, sizes, strides, box, *rest = arguments
            assert (rank, *rest) == (4, [1] * 4, "not interleaved", "by 128 bytes", "by 256 bytes", "zeros")
            made = ctypes.create_string_buffer(emulated_block.encoded_map(itemsize, address, sizes, strides, box), 128)
            self.kept.append(made)
            return 0, SimpleNamespace(getPtr=lambda: ctypes.addressof(made))
        if name == "cuMemAlloc":
            self.kept.append(np.zeros(arguments[0] + 64, np.uint8))
            return 0, self.kept[-1].ctypes.data + -self.kept[-1].ctypes.data % 64
        if name == "cuMemcpyHtoDAsync":
            ctypes.memmove(arguments[0], arguments[1], arguments[2])
        answers = {"cuThreadExchangeStreamCaptureMode": (0, "as before"), "cuStreamCreate": (0, 11)}
        return answers.get(name) or super().answer(name, arguments)


def test_maps_are_written_once():
    bindings = Maps()
    maps = driver.CudaDriver(bindings)
    layouts = [layout_of("bfloat16", 4096 * i, SHAPE, (28_800, 7200, 72), 64) for i in (1, 2)]
    first, second, again = (maps.tensor_map(0, layout) for layout in [*layouts, layouts[0]] if layout is not None)
    assert (second, again) == (first + 128, first)
    assert ctypes.string_at(first, 128) == emulated_block.encoded_map(2, 4096, (72, 100, 4, 2), (144, 14_400, 57_600), (64, 64, 1, 1))
    assert len(bindings.named("cuMemAlloc")) == 1
    assert bindings.named("cuThreadExchangeStreamCaptureMode")[:2] == [
        ("cuThreadExchangeStreamCaptureMode", ("relaxed",)),
        ("cuThreadExchangeStreamCaptureMode", ("as before",)),
    ]
    assert [name for name, _ in bindings.named("cuMemcpyHtoDAsync", "cuStreamSynchronize")] == [
        "cuMemcpyHtoDAsync",
        "cuStreamSynchronize",
    ] * 2


def test_what_the_driver_refuses_is_an_error():
    bindings = Maps(cuTensorMapEncodeTiled=1)
    layout = layout_of("float16", 4096, SHAPE, (28_800, 7200, 72), 64)
    assert layout is not None
    with pytest.raises(driver.CudaError, match="cuTensorMapEncodeTiled: CUDA_ERROR_OUT_OF_LUCK"):
        driver.CudaDriver(bindings).tensor_map(0, layout)
    assert isinstance(TensorMaps(bindings, lambda *_: None), TensorMaps)


def test_the_bindings_have_all_that_is_called():
    """Names of functions and constants, against the package itself where it is installed."""
    bindings = pytest.importorskip("cuda.bindings.driver")
    noted = Maps()
    driver.CudaDriver(noted).tensor_map(0, Layout("float16", 4096, (72, 100, 4, 2), (144, 14_400, 57_600), 64))
    assert all(hasattr(bindings, name) for name, _ in noted.calls)
    for kind, names in vars(Maps).items():
        if isinstance(names, SimpleNamespace):
            assert all(hasattr(getattr(bindings, kind), name) for name in vars(names)), kind
    assert int(bindings.cuuint64_t(1 << 40)) == 1 << 40
    assert bindings.CUtensorMap().getPtr() % 8 == 0


def run(kernel, blocks, arguments, buffers):
    """By whichever emulator has what the kernel needs."""
    (emulated_hopper if "hopper" in kernel.name else emulator).launch(kernel, blocks, arguments, buffers)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({}, "forward_hopper_bfloat16_64_128"),
        ({"causal": True}, "forward_hopper_bfloat16_64_128"),
        ({"softcap": 2.0}, "forward_bfloat16_64_options"),
        ({"scale": -1.0}, "forward_bfloat16_64_options"),
    ],
)
def test_public_calls(monkeypatch, record_property, change, name):
    """A call on compute capability 9.0 gets the kernel for it where it fits, and the portable one where not."""
    import refattn_numba  # which the stand-ins come before

    random = np.random.default_rng(0)
    operands = [random.normal(size=(1, h, n, 40)) for h, n in ((2, 20), (1, 30), (1, 30))]
    with standins.pretending(monkeypatch, run) as recorder:
        given = [standins.to_device(x, dtype="bfloat16") for x in operands]
        rounded = [standins.to_host(x) for x in given]
        align = {"align": "upper_left"} if change.get("causal") else {}
        found = standins.to_host(refattn_numba.scaled_dot_product_attention(*given, **change, **align))
    assert [x.kernel.name for x in recorder.launches] == [name]
    expected = refattn.scaled_dot_product_attention(*rounded, **change, **align)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2.0**-8 * np.abs(rounded[2]).max())
    record_property("emulated", name)


def test_portable_can_be_asked_for(monkeypatch):
    monkeypatch.setenv("REFATTN_CUDA_PORTABLE", "1")
    assert all(hopper.fitting("bfloat16", 128, 128, has_limits=False, face=face) is None for face in hopper.FACES)


def test_explanations_name_these_kernels(monkeypatch):
    monkeypatch.setattr(cache, "cubin_of", lambda kernel, architecture: Cubin(b"", kernel.name, architecture, 168, 0, 0))
    x = np.ones((1, 2, 8, 100), np.float16)
    found = {row.face: row.kernel for row in explain(x, x, x, architecture="sm_90a", causal=True, align="upper_left")}
    assert found == {
        "forward": "forward_hopper_float16_128_128",
        "delta": "delta_float16",
        "backward_keys": "backward_keys_hopper_float16_128",
        "backward_queries": "backward_queries_hopper_float16_128",
    }
    assert not any("hopper" in row.kernel for row in explain(x, x, x, architecture="sm_80"))
    assert not any("hopper" in row.kernel for row in explain(x, x, x, architecture="sm_90a", softcap=2.0))


def calls():
    """Public calls that the kernel of compute capability 9.0 takes, in parts where it cannot take them whole."""
    random = np.random.default_rng(1)

    def drawn(*shapes):
        return [random.normal(size=shape) for shape in shapes]

    starts = np.array([0, 3, 3, 21]), np.array([0, 9, 10, 17])
    limits = {"causal": True, "align": "lower_right"}
    yield "packed", "varlen_attention", [*drawn((2, 21, 40), (1, 17, 40), (1, 17, 40)), *starts], {**limits, "window": (6, None)}, 1
    yield "packed, two parts", "varlen_attention", [*drawn((2, 2, 21, 40), (2, 1, 17, 40), (2, 1, 17, 40)), *starts], limits, 2
    leading = drawn((2, 3, 1, 5, 64), (2, 3, 1, 9, 64), (2, 3, 1, 9, 36))
    yield "leading axes", "scaled_dot_product_attention", leading, {}, 1
    yield "sinks", "scaled_dot_product_attention", [*drawn((2, 5, 64), (2, 9, 64), (2, 9, 64)), None, *drawn((2,))], limits, 1
    yield "no keys", "scaled_dot_product_attention", drawn((2, 5, 64), (2, 0, 64), (2, 0, 64)), {}, 0


CALLS = {name: call for name, *call in calls()}


@pytest.mark.parametrize("name", CALLS)
def test_public_calls_of_all_kinds(monkeypatch, record_property, name):
    import refattn_numba

    function, given, options, launches = CALLS[name]
    with standins.pretending(monkeypatch, run) as recorder:
        arrays = [x if x is None or x.dtype.kind == "i" else standins.to_device(x, dtype="float16") for x in given]
        rounded = [standins.to_host(x) if isinstance(x, standins.Tensor) else x for x in arrays]
        found = standins.to_host(getattr(refattn_numba, function)(*arrays, **options))
    assert sum("hopper" in x.kernel.name for x in recorder.launches) == launches
    np.testing.assert_allclose(found, getattr(refattn, function)(*rounded, **options), rtol=0, atol=2.0**-10 * 4)
    record_property("emulated", name)


@pytest.mark.parametrize("name", CALLS)
def test_pullbacks_of_all_kinds(monkeypatch, record_property, name):
    """By the kernels of compute capability 9.0, both of them in each part."""
    import refattn_numba

    function, given, options, launches = CALLS[name]
    with standins.pretending(monkeypatch, run) as recorder:
        arrays = [x if x is None or x.dtype.kind == "i" else standins.to_device(x, dtype="float16") for x in given]
        rounded = [standins.to_host(x) if isinstance(x, standins.Tensor) else x for x in arrays]
        output, pullback = getattr(refattn_numba, function).vjp(*arrays, **options)
        cotangent = standins.to_device(np.random.default_rng(5).normal(size=output.shape), dtype="float16")
        found = {key: standins.to_host(x) for key, x in pullback(cotangent).items()}
    assert sum("hopper" in x.kernel.name for x in recorder.launches) == 3 * launches
    _, pullback = getattr(refattn, function).vjp(*rounded, **options)
    for key, expected in pullback(standins.to_host(cotangent)).items():
        np.testing.assert_allclose(found[key], expected, rtol=0, atol=2.0**-10 * max(np.abs(expected).max(initial=0), 1), err_msg=key)
    record_property("emulated", name)


def test_a_cotangent_that_the_hardware_does_not_know(monkeypatch):
    """Rows of it share a place, so that the portable kernels make the gradients."""
    import refattn_numba

    random = np.random.default_rng(0)
    with standins.pretending(monkeypatch, run) as recorder:
        query, key, value = (standins.to_device(random.normal(size=(1, 2, 9, 40)), dtype="float16") for _ in range(3))
        _, pullback = refattn_numba.scaled_dot_product_attention.vjp(query, key, value)
        row = standins.to_device(random.normal(size=(1, 2, 1, 40)), dtype="float16")
        pullback(row.expand((1, 2, 9, 40)))
    assert [x.kernel.name for x in recorder.launches] == [
        "forward_hopper_float16_64_128",
        "delta_float16",
        "backward_keys_float16_64",
        "backward_queries_float16_64",
    ]
