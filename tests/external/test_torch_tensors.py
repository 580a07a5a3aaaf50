"""PyTorch's tensors in and out of the compiled functions, in the memory in which they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("numba")

import torch

import refattn_numba
from refattn_numba import _tensors

ATTENTION, WITH_LSE = refattn_numba.scaled_dot_product_attention, refattn_numba.scaled_dot_product_attention_with_lse
TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def inputs(dtype, *, lengths=(5, 7, 7), size=6):
    torch.manual_seed(0)
    return [torch.randn(2, 3, n, size).to(dtype) for n in lengths]


@pytest.mark.parametrize("dtype", TYPES)
def test_outputs_and_gradients_are_tensors_of_the_query_s_type(dtype):
    query, key, value = inputs(dtype)
    mask = torch.ones(5, 7, dtype=torch.bool).tril(2)
    (y, lse), pullback = WITH_LSE.vjp(query, key, value, mask=mask)
    grads = pullback(y, lse)
    assert lse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert {x.dtype for x in (y, WITH_LSE(query, key, value).output, *grads.values())} == {dtype}
    exact, exact_pullback = WITH_LSE.vjp(*(x.double() for x in (query, key, value)), mask=mask)
    want = exact_pullback(y.double(), lse.double())
    for name, got, expected in [("output", y, exact.output), ("lse", lse, exact.lse), *((n, g, want[n]) for n, g in grads.items())]:
        tolerance = 4 * torch.finfo(dtype).eps * float(expected.abs().max())
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=tolerance, msg=lambda s, name=name: f"{name}: {s}")


@pytest.mark.parametrize("dtype", TYPES)
def test_results_are_those_of_arrays(dtype):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    tensors = inputs(dtype)
    name = str(dtype).removeprefix("torch.")
    arrays = [x.double().numpy().astype(ml_dtypes.bfloat16 if name == "bfloat16" else name) for x in tensors]
    (y, pullback), (want, want_pullback) = (
        ATTENTION.vjp(*tensors, causal=True, align="lower_right"),
        ATTENTION.vjp(*arrays, causal=True, align="lower_right"),
    )
    np.testing.assert_array_equal(y.double().numpy(), want.astype(float))
    grads, want_grads = pullback(d_output=y), want_pullback(d_output=want)
    for name, g in grads.items():
        np.testing.assert_array_equal(g.double().numpy(), want_grads[name].astype(float), err_msg=name)


@pytest.mark.parametrize("dtype", [*TYPES, torch.bool, torch.int64])
def test_a_tensor_and_its_array_share_memory(dtype):
    x = torch.ones(3, 4).to(dtype)
    array = _tensors._array("x", x, coded=True)
    assert array.ctypes.data == x.data_ptr()
    back = _tensors._tensor(array, coded=dtype == torch.bfloat16)
    assert (back.data_ptr(), back.dtype) == (x.data_ptr(), dtype)


@pytest.mark.parametrize("dtype", TYPES)
def test_no_input_is_copied_and_none_is_written_to(dtype, monkeypatch):
    """The arrays that the kernels' face gets are the tensors themselves, whatever their strides."""
    seen, array_of = [], _tensors._array
    monkeypatch.setattr(_tensors, "_array", lambda what, x, **kwargs: seen.append((x, array_of(what, x, **kwargs))) or seen[-1][1])
    query, key, value = (x.transpose(-2, -3).contiguous().transpose(-2, -3) for x in inputs(dtype))
    key = key.flip(-1)[..., ::2]
    query = query[..., ::2]
    before = [x.clone() for x in (query, key, value)]
    y, pullback = ATTENTION.vjp(query, key, value)
    pullback(y)
    for x, array in seen:
        assert array.ctypes.data == x.data_ptr()
        assert tuple(s // array.itemsize for s in array.strides) == x.stride()
    assert len(seen) == 4
    assert all(torch.equal(x, b) for x, b in zip((query, key, value), before, strict=True))
    want = ATTENTION(*(x.contiguous() for x in (query, key, value)))
    assert torch.equal(y, want)


def test_types_that_differ_are_computed_and_returned_in_single_precision():
    query, key, value = inputs(torch.bfloat16)
    y, pullback = ATTENTION.vjp(query, key.float(), value)
    assert {x.dtype for x in (y, *pullback(y).values())} == {torch.float32}
    assert ATTENTION(query, key.double(), value).dtype == torch.float64
    assert ATTENTION(query, key.half(), value).dtype == torch.float32
    assert ATTENTION(query, key.float().numpy(), value).dtype == torch.float32


def test_bfloat16_arrays_may_stand_beside_tensors():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    query, key, value = inputs(torch.bfloat16)
    y = ATTENTION(query, key.float().numpy().astype(ml_dtypes.bfloat16), value)
    assert torch.equal(y, ATTENTION(query, key, value))
    assert y.dtype == torch.bfloat16


def test_records_and_other_functions_take_tensors():
    random = torch.Generator().manual_seed(1)
    x, *weights = (torch.randn(s, generator=random) for s in [(2, 5, 8)] + [(8, 8)] * 4)
    y, pullback = refattn_numba.multi_head_attention.vjp(x, x, x, *weights, num_heads=2)
    want, want_pullback = refattn_numba.multi_head_attention.vjp(*(t.numpy() for t in (x, x, x, *weights)), num_heads=2)
    np.testing.assert_array_equal(y, want)
    grads, want_grads = pullback(y), want_pullback(want)
    for name, g in grads.items():
        assert isinstance(g, torch.Tensor)
        np.testing.assert_array_equal(g, want_grads[name], err_msg=name)
    narrow = refattn_numba.multi_head_attention(*(t.bfloat16() for t in (x, x, x, *weights)), num_heads=2)
    assert narrow.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int8])
def test_caches_are_read_as_they_are_stored(dtype, monkeypatch):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    query, key, value = inputs(torch.float32, lengths=(1, 9, 9))
    key, value = ((8 * x).to(dtype) for x in (key, value))
    name = str(dtype).removeprefix("torch.")
    arrays = [x.double().numpy().astype(getattr(ml_dtypes, name, name)) for x in (key, value)]
    seen, array_of = [], _tensors._array
    monkeypatch.setattr(_tensors, "_array", lambda what, x, **kwargs: seen.append((x, array_of(what, x, **kwargs))) or seen[-1][1])
    y = refattn_numba.decode_attention(query, key, value, torch.tensor([9, 4]), key_scale=0.1)
    np.testing.assert_array_equal(y.numpy(), refattn_numba.decode_attention(query.numpy(), *arrays, np.array([9, 4]), key_scale=0.1))
    assert all(array.ctypes.data == x.data_ptr() for x, array in seen if isinstance(x, torch.Tensor))


def test_packed_sequences_keep_their_type():
    query, key, value = (x[0] for x in inputs(torch.bfloat16, lengths=(7, 7, 7)))
    y, pullback = refattn_numba.varlen_attention.vjp(query, key, value, torch.tensor([0, 3, 7]), causal=True)
    assert {x.dtype for x in (y, *pullback(y).values())} == {torch.bfloat16}
    torch.testing.assert_close(y[:, 3:], ATTENTION(query[:, 3:], key[:, 3:], value[:, 3:], causal=True), rtol=0, atol=2**-7)


def test_cotangents_of_another_type_are_rounded_to_the_output_s():
    y, pullback = ATTENTION.vjp(*inputs(torch.bfloat16))
    d = torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
    want = pullback(d.bfloat16())
    for given in (d, d.double(), d.bfloat16().float().numpy()):
        for name, g in pullback(given).items():
            assert torch.equal(g, want[name])
    with pytest.raises(ValueError, match="d_output has shape"):
        pullback(d[..., :1])
    with pytest.raises(TypeError, match="the pullback takes d_output"):
        pullback(d, d)


def test_an_option_may_be_a_list():
    x = torch.ones(2, 20, 8, dtype=torch.bfloat16)
    assert refattn_numba.scaled_dot_product_attention(x, x, x, window=[1, 0]).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_a_cotangent_is_a_floating_point_tensor(dtype):
    x = torch.ones(2, 20, 8)
    _, pullback = refattn_numba.scaled_dot_product_attention.vjp(x, x, x)
    with pytest.raises(TypeError, match="but must be floating point"):
        pullback(torch.ones(2, 20, 8, dtype=dtype))


def test_what_has_a_graph_or_is_elsewhere_is_refused():
    query, key, value = inputs(torch.float32)
    leaf = query.clone().requires_grad_()
    with pytest.raises(TypeError, match=r"attention: query requires a gradient.*detach"):
        ATTENTION(leaf, key, value)
    with torch.no_grad():
        assert torch.equal(ATTENTION(leaf, key, value), ATTENTION(query, key, value))
    with pytest.raises(TypeError, match="key is a strided tensor on meta, but must be a dense one on the cpu"):
        ATTENTION(query, key.to("meta"), value)
    with pytest.raises(TypeError, match="value is a sparse_coo tensor on cpu"):
        ATTENTION(query, key, value.to_sparse())
    with pytest.raises(TypeError, match="query is int64, but must be floating point"):
        ATTENTION(query.long(), key, value)
    with pytest.raises(TypeError, match="missing a required argument: 'value'"):
        ATTENTION(query, key)


def test_an_autograd_function_is_made_of_vjp():
    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(context, query, key, value):
            y, context.pullback = ATTENTION.vjp(query, key, value)
            return y

        @staticmethod
        def backward(context, d):
            return tuple(context.pullback(d)[name] for name in ("query", "key", "value"))

    leaves = [x.requires_grad_() for x in inputs(torch.float64)]
    assert torch.autograd.gradcheck(Attention.apply, leaves)


def test_bfloat16_needs_no_package_but_torch():
    """NumPy alone has no such type; and without tensors nothing of torch is imported."""
    code = (
        "import sys; sys.modules['ml_dtypes'] = None\n"
        "import refattn_numba; assert 'torch' not in sys.modules\n"
        "import torch\n"
        "x = torch.linspace(-2, 2, 96).reshape(2, 8, 6).bfloat16()\n"
        "y, pullback = refattn_numba.scaled_dot_product_attention.vjp(x, x, x)\n"
        "want = torch.nn.functional.scaled_dot_product_attention(x.double(), x.double(), x.double())\n"
        "assert y.dtype == torch.bfloat16 and (y.double() - want).abs().max() < 0.02\n"
        "assert {g.dtype for g in pullback(y).values()} == {torch.bfloat16}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
