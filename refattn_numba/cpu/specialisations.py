"""All kernels, and the types that each is compiled for: whatever the shapes and options of calls, there are no others.

Left out are the kernels below `plain`, the readable form, which calls with a scale for each pair alone still need.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from contextlib import nullcontext
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numba
import numpy as np

from refattn_numba.cpu import (
    attention_backward,
    attention_bias,
    attention_forward,
    conversion,
    couples,
    decode,
    scan_backward,
    scan_features,
    scan_forward,
)
from refattn_numba.cpu.conv.kernels import kernels as kernels_of_convolution
from refattn_numba.cpu.instructions import HOST
from refattn_numba.cpu.jit import Source, compile_once
from refattn_numba.cpu.scan_call import ScanCall
from refattn_numba.cpu.threads import kernel_types

Group: TypeAlias = Literal["attention", "options", "caches", "linear", "convolution"]
"""Softmax attention; the same with bias, mask, dropout or softcap; caches of smaller types; attention whose state has one size;
convolution."""

Precision: TypeAlias = Literal["float32", "float64", "bfloat16", "float16"]
"""As arrays are stored; float16, and bfloat16 where the processor does not multiply it, are those of float32 and conversions."""

LARGE = frozenset({"depthwise_pixels", "strided", "winograd_kernels", "winograd_weight", "depthwise_planes.plane_gradients"})
"""Modules whose kernels, and kernels that, are chosen for large arrays alone: by no quick check, which a test holds."""
FUSED = frozenset({"epilogue.finish_rows", "epilogue.pull_back", "epilogue.sum_columns"})
"""Kernels for activations after a convolution, and for a bias of channels that lie last: no mechanism has these, so that no check reaches them."""


class Specialisation(NamedTuple):
    """A kernel for one set of types."""

    group: Group
    precision: Precision
    kernel: Any
    types: tuple[Any, ...]


class Compiled(NamedTuple):
    """What compiling a kernel took."""

    group: Group
    precision: Precision
    kernel: str
    source: Source
    seconds: float


def specialisations() -> Iterator[Specialisation]:
    """The whole list."""
    attention = attention_forward.forward, attention_backward.backward
    for precision in ("float32", "float64"):
        dtype = np.dtype(precision)
        alone, with_options = (kernel_types(dtype, has_options=has_options) for has_options in (False, True))
        scans = kernel_types(dtype, has_options=False, layout=ScanCall)
        for kernel in attention:
            yield Specialisation("attention", precision, kernel, alone)
        in_place, stored = (kernel_types(dtype, has_options=has_options, layout=decode.Decoding) for has_options in (False, True))
        yield Specialisation("attention", precision, decode.decode, in_place)
        yield Specialisation("caches", precision, decode.decode, stored)
        for kernel in (*attention, attention_bias.backward_bias):
            yield Specialisation("options", precision, kernel, with_options)
        for kernel in (scan_forward.forward, scan_backward.backward):
            yield Specialisation("linear", precision, kernel, scans)
        for kernel, types in kernels_of_convolution(dtype):
            yield Specialisation("convolution", precision, kernel, types)
        yield Specialisation("linear", precision, scan_features.elu_plus_one, _from_to(precision, precision))
    stored: tuple[tuple[Precision, str], ...] = (("bfloat16", "uint16"), ("float16", "float16"))
    for precision, name in stored:
        widen, narrow = conversion.STORED[name]
        yield Specialisation("attention", precision, widen, _from_to("uint16", "uint32"))
        yield Specialisation("attention", precision, narrow, _from_to("uint32", "uint16"))
    if HOST.has_bfloat16_dot:
        for kernel in attention:
            yield Specialisation("attention", "bfloat16", kernel, kernel_types(np.dtype(np.uint16), has_options=False))
            yield Specialisation("options", "bfloat16", kernel, kernel_types(np.dtype(np.uint16), has_options=True))
        numbers = (numba.types.int64,) * 7
        for kernel in (couples.couple_rows, *([couples.tile_rows] if HOST.has_tiles else [])):
            yield Specialisation("attention", "bfloat16", kernel, (*numbers, numba.types.uint32[:, ::1], *numbers[:2]))


def _from_to(given: str, made: str) -> tuple[Any, ...]:
    """Numbers in a row that are only read, those that are made of them, and the shares."""
    types = numba.types
    arrays = (types.Array(numba.from_dtype(np.dtype(x)), 1, "C", readonly=x_is_given) for x, x_is_given in ((given, True), (made, False)))
    return *arrays, types.int64, types.int64


def warm_up(
    *groups: Group,
    dtypes: Iterable[Precision] = ("float32",),
    jobs: int = 1,
    large: bool = True,
    executor: Executor | None = None,
) -> list[Compiled]:
    """Compile kernels now, so that no later call has to wait; what is on disk already is only read.

    ``python -m refattn_numba`` does so for all, and prints what it took.

    Parameters
    ----------
    *groups : {"attention", "options", "caches", "linear", "convolution"}
        Softmax attention; the same with bias, mask, dropout or softcap; caches of smaller types; linear attention and the delta rule;
        convolution. All, where none is named.
    dtypes : iterable of {"float32", "float64", "bfloat16", "float16"}, optional
        The types in which arrays are stored. Kernels for float16 are those for float32 and conversions; so are those for bfloat16
        where the processor does not multiply it.
    jobs : int, optional
        How many processes compile. With more than one, kernels are on disk afterwards, and this process has read none of them.
    large : bool, optional
        Whether to compile, too, what no quick check reaches: kernels for large arrays, and for activations after a convolution.
    executor : concurrent.futures.Executor or None, optional
        Whose processes compile, in place of `jobs` new ones: what they have compiled they need not read.

    Returns
    -------
    list of Compiled
        For each kernel its group, precision and name, its source ("compiled", "disk", or "memory" where it was there) and the seconds.
    """
    if unknown := [g for g in groups if g not in get_args(Group)]:
        raise ValueError(f"groups are {unknown}, but there are {', '.join(get_args(Group))}")
    wanted = set(dtypes)
    if unknown := sorted(wanted - set(get_args(Precision))):
        raise ValueError(f"dtypes are {unknown}, but there are {', '.join(get_args(Precision))}")
    if jobs < 1:
        raise ValueError(f"jobs is {jobs}, but must be at least 1")
    wanted |= {"float32"} if wanted & {"float16", "bfloat16"} else set()
    asked = frozenset(groups or get_args(Group)), frozenset(wanted), large
    places = range(len(_by_kernel(*asked)))
    if jobs == 1 and executor is None:
        made = [_compiled(*asked, place) for place in places]
    else:
        import multiprocessing  # noqa: PLC0415  # it renames __main__, which nobody who imports this has asked for
        from concurrent.futures import ProcessPoolExecutor  # noqa: PLC0415

        new = ProcessPoolExecutor(max(1, min(jobs, len(places))), multiprocessing.get_context("spawn"))
        with new if executor is None else nullcontext(executor) as processes:
            made = [task.result() for task in [processes.submit(_compiled, *asked, place) for place in places]]
    found = {(row.group, row.precision, name): row for rows in made for name, row in rows}
    return [found[s.group, s.precision, _full_name(s.kernel)] for s in _asked(*asked)]


def _full_name(kernel: Any) -> str:
    return f"{kernel.__module__}.{kernel.__name__}"


def _asked(groups: frozenset[Group], precisions: frozenset[Precision], large: bool) -> Iterator[Specialisation]:
    for s in specialisations():
        if s.group in groups and s.precision in precisions and (large or not _parts(s.kernel) & (LARGE | FUSED)):
            yield s


def _parts(kernel: Any) -> set[str]:
    """The last name of its module, and the kernel's own with it."""
    module = kernel.__module__.rpartition(".")[2]
    return {module, f"{module}.{kernel.__name__}"}


def _by_kernel(*asked: Any) -> list[list[Specialisation]]:
    """Those of one kernel together: they share an index on disk, which two processes cannot write at once."""
    found: dict[Any, list[Specialisation]] = {}
    for s in _asked(*asked):
        found.setdefault(s.kernel, []).append(s)
    return list(found.values())


def _compiled(groups: frozenset[Group], precisions: frozenset[Precision], large: bool, place: int) -> list[tuple[str, Compiled]]:
    """What compiling one of these kernels took, for all of its types."""
    return [
        (_full_name(s.kernel), Compiled(s.group, s.precision, s.kernel.__name__, *compile_once(s.kernel, *s.types)))
        for s in _by_kernel(groups, precisions, large)[place]
    ]
