"""The same call, handed over in another way: as views, after others, a second time, on memory that holds NaN.

What a kernel returns must not depend on any of these. Each is a case that has been compared already, compared once more with
the same budgets, so that a kernel may add up in another order, but nothing else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import mmap
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from refattn._core import Array, Mechanism, tree
from refattn._core.docstring import Leaf
from refattn.testing.candidates import Candidate
from refattn.testing.frameworks import NumPy, Torch
from refattn.testing.inputs.case import Case
from refattn.testing.precision import Format

NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)
"""Linux's MAP_NORESERVE, which Python names since 3.12."""
LARGEST = 20_000
"""Elements of the case that is handed over again, so that this costs little beside all the others."""

Layout = Callable[[Array], tuple[Array, Any]]
"""From an array to a base that surrounds its numbers with others, and the index that cuts it out of that."""


def _filled(shape: tuple[int, ...], x: Array) -> Array:
    """NaN, or for whole numbers one that is there: a number that is read from here spoils what is made of it."""
    return np.full(shape, np.nan if x.dtype.kind == "f" else x.flat[0], dtype=x.dtype)


def _every_other(x: Array) -> tuple[Array, Any]:
    base, cut = _filled((*x.shape[:-1], 2 * x.shape[-1]), x), (..., slice(None, None, 2))
    base[cut] = x
    return base, cut


def _inside(x: Array) -> tuple[Array, Any]:
    base, cut = _filled(tuple(n + 2 for n in x.shape), x), (slice(1, -1),) * x.ndim
    base[cut] = x
    return base, cut


def _backwards(x: Array) -> tuple[Array, Any]:
    cut = (slice(None, None, -1),) * x.ndim
    return x[cut].copy(), cut


LAYOUTS: Mapping[str, Layout] = {"every other element": _every_other, "inside of NaN": _inside, "negative strides": _backwards}


class Viewed(NumPy):
    """A framework whose arrays are views of larger ones."""

    def __init__(self, inner: NumPy, layout: Layout | None) -> None:
        self.inner, self.layout, self.name = inner, layout, inner.name

    def make(self, x: Array, target: Format) -> Any:
        """A view; without a layout, one whose axes are stored in the opposite order."""
        if not x.size or not x.ndim:
            return self.inner.make(x, target)
        if self.layout is None:
            axes = tuple(range(x.ndim))[::-1]
            made = self.inner.make(np.ascontiguousarray(x.transpose(axes)), target)
            return made.permute(axes) if hasattr(made, "permute") else made.transpose(axes)
        base, cut = self.layout(x)
        return self.inner.make(base, target)[cut]

    def value(self, x: Any) -> Array:
        """As the framework itself does."""
        return self.inner.value(x)

    def vjp(self, call: Any, wanted: list[str]) -> Any:
        """Only a kernel's own: automatic derivatives copy their arguments."""
        return getattr(call, "vjp", None)


class FarApart(Viewed):
    """A framework whose arrays' rows lie so far apart that the last begins beyond 2**31 elements.

    The memory between them is promised by the system, and never touched: it costs nothing.
    """

    def __init__(self, inner: NumPy) -> None:
        super().__init__(inner, None)

    def make(self, x: Array, target: Format) -> Any:
        """A view of such memory; what has one row, or nothing, as the framework itself does."""
        made = self.inner.make(x, target)
        rows = x.size // x.shape[-1] if x.size and x.ndim > 1 else 0
        if rows < 2:
            return made
        apart = 2**31 // (rows - 1) + 64
        strides = (*(apart * rows // _rows_before(x.shape, i) for i in range(x.ndim - 1)), 1)
        view = _numpy_view(made, strides, apart * rows) if isinstance(made, np.ndarray) else _tensor_view(made, strides, apart * rows)
        view[...] = made
        return view


def _rows_before(shape: tuple[int, ...], axis: int) -> int:
    """How many steps along this axis, and the ones before it, there are to all rows."""
    return int(np.prod(shape[: axis + 1]))


def _promised(size: int) -> mmap.mmap:
    """As many bytes, of which a page exists once it is written to; OSError where the system has no such memory."""
    if sys.platform != "linux":
        raise OSError("memory is reserved as it is mapped")
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE)
    with contextlib.suppress(OSError):  # large pages would exist as a whole
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return memory


def _numpy_view(made: np.ndarray[Any, Any], strides: tuple[int, ...], count: int) -> Any:
    base = np.frombuffer(_promised(count * made.itemsize), made.dtype)
    return np.lib.stride_tricks.as_strided(base, made.shape, [s * made.itemsize for s in strides])


def _tensor_view(made: Any, strides: tuple[int, ...], count: int) -> Any:
    torch = Torch().torch
    return torch.frombuffer(_promised(count * made.element_size()), dtype=made.dtype).as_strided(made.shape, strides)


def _can_be_far_apart() -> bool:
    try:
        _promised(2**33).close()
    except (OSError, ValueError, OverflowError):
        return False
    return True


class Poisoned(NumPy):
    """A framework which, as it makes an array, leaves freed memory of its size full of NaN behind."""

    def __init__(self, inner: NumPy) -> None:
        self.inner, self.name = inner, inner.name

    def make(self, x: Array, target: Format) -> Any:
        """As the framework itself does."""
        freed = [self.inner.make(np.full(x.shape, np.nan), target) for _ in range(4)]
        del freed
        return self.inner.make(x, target)

    def value(self, x: Any) -> Array:
        """As the framework itself does."""
        return self.inner.value(x)

    def vjp(self, call: Any, wanted: list[str]) -> Any:
        """As the framework itself does."""
        return self.inner.vjp(call, wanted)


def handled(
    candidate: Candidate, mechanism: Mechanism[..., Any], cases: Iterable[Case], *, far: bool = False
) -> Iterator[tuple[Candidate, Case]]:
    """The largest of these cases that is small and that the candidate supports, once for each way to hand it over.

    With `far`, as rows that lie far apart too, where the system can promise so much memory.
    """
    case = _chosen(candidate, mechanism, cases)
    if case is None:
        return
    frame = candidate.framework
    if type(frame) in {NumPy, Torch}:
        for name, layout in LAYOUTS.items():
            if layout is not _backwards or type(frame) is NumPy:  # tensors have no negative strides
                yield _with(candidate, Viewed(frame, layout)), _named(case, f"views, {name}")
        yield _with(candidate, Viewed(frame, None)), _named(case, "views, axes stored backwards")
        if far and _can_be_far_apart():
            yield _with(candidate, FarApart(frame)), _named(case, "views, rows far apart")
        yield _with(candidate, Poisoned(frame)), _named(case, "freed memory full of NaN")
    yield candidate, _named(case, "once more")
    if (turned := _batch_turned(mechanism, case)) is not None:
        yield candidate, _named(turned, "batch backwards")


def runs(
    candidate: Candidate, mechanism: Mechanism[..., Any], cases: Iterable[Case], *, far: bool = False
) -> Iterator[tuple[Candidate, Case]]:
    """Every case, then one of them in all ways to hand it over."""
    every = list(cases)
    yield from ((candidate, case) for case in every)
    yield from handled(candidate, mechanism, every, far=far)


def _with(candidate: Candidate, frame: NumPy) -> Candidate:
    return dataclasses.replace(candidate, framework=frame)


def _named(case: Case, how: str) -> Case:
    return dataclasses.replace(case, name=f"{case.name}; {how}")


def _chosen(candidate: Candidate, mechanism: Mechanism[..., Any], cases: Iterable[Case]) -> Case | None:
    """Of cases without numbers that are none, which views surround with more of them."""
    sizes = {}
    for case in cases:
        given = case.arguments.keys() & mechanism.spec.defaults.keys()
        arrays = [x for _, x in tree.leaves(case.arguments) if isinstance(x, np.ndarray)]
        finite = all(np.isfinite(x).all() for x in arrays if x.dtype.kind == "f")
        supported = candidate.supports is None or given <= set(candidate.supports)
        size = sum(x.size for x in arrays)
        if supported and finite and 0 < size <= LARGEST:
            sizes.setdefault(size, case)
    return sizes[max(sizes)] if sizes else None


def _batch_turned(mechanism: Mechanism[..., Any], case: Case) -> Case | None:
    """The examples in the opposite order; None where an array may be shared by all of them."""
    turned, found = dict(case.arguments), False
    for name, x in case.arguments.items():
        fact = mechanism.spec.facts.arguments.get(name)
        if not isinstance(x, np.ndarray) or not isinstance(fact, Leaf) or fact.dims[:1] not in {("batch",), ("...",)}:
            continue
        if not fact.exact or (fact.dims[0] == "..." and x.ndim < len(fact.dims)):
            return None
        turned[name], found = x[::-1], True
    return dataclasses.replace(case, arguments=turned) if found else None
