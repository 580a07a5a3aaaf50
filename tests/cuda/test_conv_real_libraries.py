"""Convolutions of real tensors of PyTorch and arrays of JAX, in main memory, which are taken for those on a device; NumPy does the launches."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("numba")

import refattn
import refattn_numba
from refattn_numba.cuda import driver, libraries
from tests.cuda import conv_by_numpy, standins

EVERYWHERE = SimpleNamespace(ctypes=SimpleNamespace(data=1), size=1 << 62)


def launch(kernel, blocks, arguments, buffers):
    conv_by_numpy.launch(kernel, blocks, arguments, [EVERYWHERE])


@pytest.fixture
def recorder(monkeypatch):
    """What is asked of a library, but for where its arrays lie, is asked of the real one."""
    for library in (libraries.Torch, libraries.Jax):
        monkeypatch.setattr(library, "is_on_device", lambda self, x: True)
    monkeypatch.setattr(libraries.Torch, "stream", lambda self, x: 0)
    found = standins.Recorder(launch, capability=(8, 0))
    with driver.using(found):
        yield found


def drawn(options):
    random = np.random.default_rng(0)
    shapes = (2, 8, 5, 6), (8 if options.get("groups") else 16, 1 if options.get("groups") else 8, 3, 3)
    return [random.normal(size=shape).astype(np.float32) for shape in (*shapes, shapes[1][:1])]


def compare(got, wanted, plain):
    for name, x in wanted.items():
        assert plain(got[name]).shape == x.shape
        assert np.allclose(plain(got[name]), x, atol=1e-3), name


OPTIONS = [{"padding": 1, "stride": (1, 2)}, {"padding": ((2, 0), (1, 1)), "padding_mode": "reflect"}, {"groups": 8, "padding": "same"}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("is_last", [False, True])
def test_tensors(recorder, options, is_last):
    torch = pytest.importorskip("torch")
    arrays = drawn(options)
    form = torch.channels_last if is_last else torch.contiguous_format
    x, weight = (torch.from_numpy(a).to(memory_format=form) for a in arrays[:2])
    output, pullback = refattn_numba.conv2d.vjp(x, weight, torch.from_numpy(arrays[2]), activation="relu", **options)
    before, exact = refattn.conv2d.vjp(*arrays, **options)
    wanted, of_relu = refattn.relu.vjp(before)
    d = np.random.default_rng(1).normal(size=wanted.shape).astype(np.float32)
    compare({"output": output}, {"output": wanted}, np.asarray)
    grads = pullback(torch.from_numpy(d))
    compare(grads, exact(of_relu(d)["x"]), np.asarray)
    for made in (output, grads["x"]):
        assert made.is_contiguous(memory_format=form)
        assert not made.requires_grad
    torch.from_numpy(arrays[0]).mul_(1)  # another tensor
    pullback(output)
    x.mul_(2)
    with pytest.raises(ValueError, match="x was written to after the call"):
        pullback(output)


def test_a_written_output_is_noticed_where_it_is_read(recorder):
    torch = pytest.importorskip("torch")
    x, weight, _ = map(torch.from_numpy, drawn({}))
    output, pullback = refattn_numba.conv2d.vjp(x.to(memory_format=torch.channels_last), weight, activation="relu")
    output.add_(1)
    with pytest.raises(ValueError, match="output was written to after the call"):
        pullback(output)
    output, pullback = refattn_numba.conv2d.vjp(x, weight, activation="relu")
    output.add_(1)
    assert set(pullback(output)) == {"x", "weight"}


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_arrays_of_jax(recorder, options, layout):
    jax = pytest.importorskip("jax")
    arrays = drawn(options)
    is_last = layout == "channels_last"
    given = [jax.numpy.asarray(np.moveaxis(a, 1, -1) if is_last and a is arrays[0] else a) for a in arrays]
    output, pullback = refattn_numba.conv2d.vjp(*given, layout=layout, **options)
    wanted, exact = refattn.conv2d.vjp(*arrays, **options)
    back = (lambda x: np.moveaxis(np.asarray(x), -1, 1)) if is_last else np.asarray
    compare({"output": output}, {"output": wanted}, back)
    grads = dict(pullback(output))
    compare({**grads, "x": back(grads["x"])}, exact(wanted), np.asarray)
