"""What is asked of PyTorch and JAX, of their own arrays in main memory: names, addresses, copies. No GPU is needed for that."""

import numpy as np
import pytest

pytest.importorskip("numba")

from refattn_numba.cuda import library
from refattn_numba.cuda.libraries import Jax, Torch, library_of


def test_tensors():
    torch, ours = pytest.importorskip("torch"), Torch()
    x = torch.arange(24.0, dtype=torch.bfloat16).reshape(2, 3, 4).transpose(0, 1)
    assert library_of(type(x)).name == library_of(torch.nn.Parameter).name == "torch"
    assert not ours.is_on_device(x)
    found = ours.read("x", x)
    assert found[:4] == (x.data_ptr(), (3, 2, 4), (4, 12, 1), "bfloat16")
    assert ours.empty(x, (2, 5), "float32").dtype == torch.float32
    wide = ours.copied(x, "float32", 8)
    assert wide.shape == (3, 2, 8)
    assert torch.equal(wide[..., :4], x.float())
    assert torch.equal(ours.trimmed(wide, 4), x.float())
    assert ours.trimmed(wide, 4).is_contiguous()
    assert not ours.zeros(x, (2, 2), "float16").any()
    assert ours.broadcast(x, (2, 3, 2, 4)).shape == (2, 3, 2, 4)
    assert ours.turned(x, (2, 0, 1)).data_ptr() == x.data_ptr()
    assert ours.turned(x, (2, 0, 1)).stride() == (1, 4, 12)
    assert torch.equal(ours.summed(x.float(), (0, 2), (1, 2)), x.float().sum((0, 2)).reshape(1, 2))
    assert ours.uploaded(np.arange(3), x).dtype == torch.int64
    before = ours.version(x)
    x.mul_(2)
    assert ours.version(x) == before + 1
    with torch.inference_mode():
        assert ours.version(torch.ones(1)) is None
    with pytest.raises(TypeError, match="x requires a gradient"):
        ours.read("x", torch.ones(2, requires_grad=True))
    with torch.no_grad():
        assert ours.read("x", torch.ones(2, requires_grad=True)).shape == (2,)
    with pytest.raises(TypeError, match="x is a sparse_coo tensor"):
        ours.read("x", torch.eye(2).to_sparse())
    with pytest.raises(TypeError, match="resolve_neg"):
        ours.read("x", torch.complex(torch.ones(2), torch.ones(2)).conj().imag)


def test_arrays_of_jax():
    jax, ours = pytest.importorskip("jax"), Jax()
    x = jax.numpy.arange(12.0, dtype=jax.numpy.bfloat16).reshape(3, 4)
    assert library_of(type(x)).name == "jax"
    assert not ours.is_on_device(x)
    found = ours.read("x", x)
    assert found[1:4] == ((3, 4), (4, 1), "bfloat16")
    assert found.address
    made = [ours.empty(x, (3, 4), "float32") for _ in range(2)]
    assert ours.read("x", made[0]).address != ours.read("x", made[1]).address
    assert made[0].devices() == x.devices()
    wide = ours.copied(x, "float32", 8)
    assert wide.shape == (3, 8)
    assert np.array_equal(ours.trimmed(wide, 4), np.asarray(x, np.float32))
    assert not np.asarray(ours.zeros(x, (2, 2), "float16")).any()
    assert ours.broadcast(x, (2, 3, 4)).shape == (2, 3, 4)
    assert ours.turned(x, (1, 0)) is None
    assert np.array_equal(ours.summed(wide, (1,), (3, 1)), np.asarray(wide).sum(1, keepdims=True))
    assert ours.uploaded(np.arange(3, dtype=np.int32), x).devices() == x.devices()


def test_numbers_of_8_bits():
    """Copies with room for whole rows, as kernels need them."""
    x, name = np.linspace(-3, 3, 10, dtype=np.float32).reshape(2, 5), "float8_e4m3fn"
    for package, ours in (("torch", Torch()), ("jax", Jax())):
        library = pytest.importorskip(package)
        eight = library.from_numpy(x).to(library.float8_e4m3fn) if package == "torch" else library.numpy.asarray(x).astype(name)
        assert ours.read("x", eight)[1:4] == ((2, 5), (5, 1), name)
        wide = ours.copied(eight, name, 16)
        assert ours.read("x", wide)[1:4] == ((2, 16), (16, 1), name)
        numbers = [np.asarray(ours.copied(y, "float32")) for y in (wide, eight)]
        assert np.array_equal(numbers[0][:, :5], numbers[1])
        assert np.abs(numbers[1] - x).max() <= 2.0**-3
        assert ours.read("x", ours.empty(eight, (2, 128), name)).dtype == name


def test_types_that_numpy_lacks():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    assert library.numpy_type("bfloat16") == ml_dtypes.bfloat16
    assert library.numpy_type("float32") == np.float32
