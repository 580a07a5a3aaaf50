"""From the arrays of a framework to NumPy's and back, with derivatives where the framework has them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from refattn._core import Array
from refattn._core.arrays import as_array, is_real

Vjp: TypeAlias = Callable[..., tuple[tuple[Array, ...], Callable[..., dict[str, Array]]]]
"""From NumPy arguments by name to outputs and pullback; with ``quietly`` nothing of it is recorded."""

WIDE = {"lse"}
"""Outputs that kernels return in the accumulator's precision."""


class NumPy:
    """NumPy arrays."""

    def dtype(self, x: Any) -> Any:
        """The format of an array."""
        return as_array(x).dtype

    def arrays(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments as NumPy arrays, what is none as it is."""
        return {n: as_array(x) if hasattr(x, "shape") else x for n, x in given.items()}

    def apply(self, vjp: Vjp, given: Mapping[str, Any], like: Any, names: Sequence[str]) -> tuple[Any, ...]:
        """The outputs, as arrays like the first argument."""
        y, _ = vjp(self.arrays(given))
        return tuple(x if n in WIDE else x.astype(as_array(like).dtype) for n, x in zip(names, y, strict=True))


class Torch(NumPy):
    """Tensors of PyTorch; autograd goes through the kernel's backward pass."""

    def __init__(self) -> None:
        self.torch = importlib.import_module("torch")

    def dtype(self, x: Any) -> Any:
        """The format of a tensor."""
        return x.dtype

    def apply(self, vjp: Vjp, given: Mapping[str, Any], like: Any, names: Sequence[str]) -> tuple[Any, ...]:
        """A function of autograd with one backward pass."""
        torch = self.torch
        leaves = {n: x for n, x in given.items() if isinstance(x, torch.Tensor) and x.is_floating_point()}

        def forward(ctx: Any, *tensors: Any) -> tuple[Any, ...]:
            y, ctx.pullback = vjp(self.arrays({**given, **dict(zip(leaves, tensors, strict=True))}))
            return tuple(self._tensor(x, like, None if n in WIDE else like.dtype) for n, x in zip(names, y, strict=True))

        def backward(ctx: Any, *ds: Any) -> tuple[Any, ...]:
            grads = ctx.pullback(*(as_array(d).astype(np.float64) for d in ds))
            return tuple(self._tensor(grads[n], x, x.dtype) if n in grads else None for n, x in leaves.items())

        made = type("Planted", (torch.autograd.Function,), {"forward": staticmethod(forward), "backward": staticmethod(backward)})
        return made.apply(*leaves.values())

    def _tensor(self, x: Array, like: Any, dtype: Any) -> Any:
        return self.torch.from_numpy(np.array(x, order="C")).to(device=like.device, dtype=dtype)


class Jax(NumPy):
    """Arrays of JAX, traced or not: the kernel runs in a callback."""

    def __init__(self) -> None:
        self.jax = importlib.import_module("jax")

    def dtype(self, x: Any) -> Any:
        """The format of an array, or of what is traced in its place."""
        return x.dtype

    def apply(self, vjp: Vjp, given: Mapping[str, Any], like: Any, names: Sequence[str]) -> tuple[Any, ...]:
        """A function with a derivative of its own."""
        leaves = {n: x for n, x in given.items() if hasattr(x, "shape") and is_real(np.dtype(x.dtype))}
        zeros = self.arrays({**given, **{n: np.zeros(x.shape, x.dtype) for n, x in leaves.items()}})
        stated = tuple(
            self.jax.ShapeDtypeStruct(x.shape, x.dtype if n in WIDE else like.dtype)
            for n, x in zip(names, vjp(zeros, quietly=True)[0], strict=True)
        )

        def run(*arrays: Any) -> Any:
            return vjp(self.arrays({**given, **dict(zip(leaves, arrays, strict=True))}))

        def host_forward(*arrays: Any) -> tuple[Array, ...]:
            return tuple(x.astype(s.dtype) for x, s in zip(run(*arrays)[0], stated, strict=True))

        def host_backward(arrays: Any, ds: Any) -> tuple[Array, ...]:
            grads = run(*arrays)[1](*(as_array(d).astype(np.float64) for d in ds))
            return tuple(grads.get(n, np.zeros(x.shape)).astype(x.dtype) for n, x in leaves.items())

        def forward(*arrays: Any) -> tuple[Any, ...]:
            return self.jax.pure_callback(host_forward, stated, *arrays)

        def backward(arrays: Any, ds: Any) -> Any:
            return self.jax.pure_callback(
                host_backward, tuple(self.jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves.values()), arrays, ds
            )

        call = self.jax.custom_vjp(forward)
        call.defvjp(lambda *arrays: (forward(*arrays), arrays), backward)
        return call(*leaves.values())


def bridge(x: Any) -> NumPy:
    """That of an array's own library."""
    library = type(x).__module__.partition(".")[0]
    return {"torch": Torch, "jax": Jax, "jaxlib": Jax}.get(library, NumPy)()
