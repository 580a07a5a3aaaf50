"""Arrays in a candidate's own framework, and its automatic derivatives. Nothing is imported before it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from refattn._core import Array, tree
from refattn._core.arrays import as_array, is_low_precision, is_real
from refattn._core.mechanism import outputs
from refattn.testing.precision import Format

Call = Callable[..., Any]
Vjp = Callable[..., tuple[Any, Callable[..., Mapping[str, Any]]]]


class NumPy:
    """NumPy arrays; bfloat16 by ml_dtypes."""

    name = "numpy"

    def make(self, x: Array, target: Format) -> Any:
        """The same values in the format; integers and booleans as they are."""
        return target.array(x) if x.dtype.kind == "f" else x

    def plain(self, x: Any, what: str = "argument") -> np.ndarray[Any, Any]:
        """The same numbers as NumPy's, without a copy where that can be."""
        return as_array(x, what)

    def value(self, x: Any) -> Array:
        """As NumPy, at least float64."""
        array = self.plain(x, "what was returned")
        if not is_real(array.dtype):
            raise TypeError(f"what was returned is {array.dtype}, but must be floating point")
        return array.astype(np.result_type(np.float64, np.float64 if is_low_precision(array.dtype) else array.dtype))

    def vjp(self, call: Call, wanted: list[str]) -> Vjp | None:
        """NumPy has no derivatives of its own."""
        return getattr(call, "vjp", None)


class Torch(NumPy):
    """CPU tensors of PyTorch."""

    name = "torch"

    def __init__(self) -> None:
        self.torch = importlib.import_module("torch")

    def make(self, x: Array, target: Format) -> Any:
        """A tensor of the format."""
        tensor = self.torch.from_numpy(np.array(x, dtype=np.float64 if x.dtype.kind == "f" else x.dtype, order="C"))
        return tensor.to(getattr(self.torch, target.name)) if x.dtype.kind == "f" else tensor

    def vjp(self, call: Call, wanted: list[str]) -> Vjp | None:
        """By autograd; None in place of a gradient is zero."""

        def vjp(**arguments: Any) -> tuple[Any, Callable[..., Mapping[str, Any]]]:
            leaves = {n: x.clone().requires_grad_() for n, x in tree.leaves(arguments) if n in wanted}
            given = arguments
            for path, leaf in leaves.items():
                given = tree.replace(given, path, leaf)
            y = call(**given)

            def pullback(*ds: Any) -> Mapping[str, Any]:
                pairs = [(x, d.to(x.dtype)) for x, d in zip(outputs(y), ds, strict=True) if x.requires_grad]
                if not pairs:
                    return {n: self.torch.zeros_like(x) for n, x in leaves.items()}
                found = self.torch.autograd.grad([x for x, _ in pairs], list(leaves.values()), [d for _, d in pairs], allow_unused=True)
                return {n: self.torch.zeros_like(x) if g is None else g for (n, x), g in zip(leaves.items(), found, strict=True)}

            return y, pullback

        return vjp


class Jax(NumPy):
    """Arrays of JAX on its default device."""

    name = "jax"

    def __init__(self) -> None:
        self.jax = importlib.import_module("jax")

    def make(self, x: Array, target: Format) -> Any:
        """An array of the format; float64 is switched on in JAX where it is asked for."""
        if target.name == "float64" and not self.jax.config.jax_enable_x64:
            self.jax.config.update("jax_enable_x64", True)
        return self.jax.numpy.asarray(x, dtype=target.name if x.dtype.kind == "f" else x.dtype)

    def vjp(self, call: Call, wanted: list[str]) -> Vjp | None:
        """By `jax.vjp`."""

        def vjp(**arguments: Any) -> tuple[Any, Callable[..., Mapping[str, Any]]]:
            moving = {n: x for n, x in tree.leaves(arguments) if n in wanted}

            def of(moved: Mapping[str, Any]) -> Any:
                given = arguments
                for path, leaf in moved.items():
                    given = tree.replace(given, path, leaf)
                return call(**given)

            y, back = self.jax.vjp(of, moving)
            return y, lambda *ds: back(type(y)(ds) if isinstance(y, tuple) else ds[0].astype(y.dtype))[0]

        return vjp


class CuPy(NumPy):
    """Arrays of CuPy on its current GPU; bfloat16 by ml_dtypes, which CuPy 14 knows."""

    name = "cupy"

    def __init__(self) -> None:
        self.cupy = importlib.import_module("cupy")

    def make(self, x: Array, target: Format) -> Any:
        """An array of the format."""
        return self.cupy.asarray(super().make(x, target))

    def plain(self, x: Any, what: str = "argument") -> np.ndarray[Any, Any]:
        """A copy in main memory, which CuPy makes only where it is asked to."""
        return x.get() if isinstance(x, self.cupy.ndarray) else super().plain(x, what)


class Mlx(NumPy):
    """Arrays of MLX on its default device; float64 where that is a CPU."""

    name = "mlx"

    def __init__(self) -> None:
        self.mlx = importlib.import_module("mlx.core")

    def make(self, x: Array, target: Format) -> Any:
        """An array of the format; every format but float64 by way of float32, which holds it exactly."""
        if x.dtype.kind != "f":
            return self.mlx.array(x)
        if not hasattr(self.mlx, target.name):
            raise TypeError(f"MLX has no {target.name}")
        if target.name == "float64":
            if self.mlx.default_device() != self.mlx.Device(self.mlx.cpu):
                raise TypeError("MLX has float64 on its CPU device alone: mlx.core.set_default_device(mlx.core.cpu)")
            return self.mlx.array(x.astype(np.float64), dtype=self.mlx.float64)
        return self.mlx.array(x.astype(np.float32)).astype(getattr(self.mlx, target.name))

    def plain(self, x: Any, what: str = "argument") -> np.ndarray[Any, Any]:
        """Through Python's buffers, which have no bfloat16."""
        low = isinstance(x, self.mlx.array) and x.dtype == self.mlx.bfloat16
        return super().plain(x.astype(self.mlx.float32) if low else x, what)

    def vjp(self, call: Call, wanted: list[str]) -> Vjp | None:
        """By `mlx.core.vjp`, which calls the candidate again for the gradients."""

        def vjp(**arguments: Any) -> tuple[Any, Callable[..., Mapping[str, Any]]]:
            moving = {n: x for n, x in tree.leaves(arguments) if n in wanted}

            def of(*moved: Any) -> list[Any]:
                given = arguments
                for path, leaf in zip(moving, moved, strict=True):
                    given = tree.replace(given, path, leaf)
                return [*outputs(call(**given))]

            def pullback(*ds: Any) -> Mapping[str, Any]:
                cotangents = [d.astype(x.dtype) for x, d in zip(outputs(y), ds, strict=True)]
                _, found = self.mlx.vjp(of, [*moving.values()], cotangents)
                return dict(zip(moving, found, strict=True))

            y = call(**arguments)
            return y, pullback

        return vjp


FRAMEWORKS: dict[str, type[NumPy]] = {"numpy": NumPy, "torch": Torch, "jax": Jax, "cupy": CuPy, "mlx": Mlx}


def framework(name: str) -> NumPy:
    """The framework of this name; ValueError for another, ImportError where it is not installed."""
    if name not in FRAMEWORKS:
        raise ValueError(f"framework is {name!r}, but must be one of {', '.join(FRAMEWORKS)}")
    return FRAMEWORKS[name]()
