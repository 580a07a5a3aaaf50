"""Winograd's minimal filtering, for kernels of 3 taps in steps of 1 (`winograd_matrices` has the mathematics and the bound of errors)."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any, NamedTuple

import numba
import numpy as np

from refattn._core import Array
from refattn_numba.cpu.call import Record
from refattn_numba.cpu.conv import winograd_kernels as kernels
from refattn_numba.cpu.conv import winograd_weight
from refattn_numba.cpu.conv.epilogue import finish
from refattn_numba.cpu.conv.problem import Algorithm, Axes, Epilogue, Face, Finished, Problem
from refattn_numba.cpu.conv.winograd_matrices import GROWTH, TAPS
from refattn_numba.cpu.instructions import HOST
from refattn_numba.cpu.products import REGISTERS, SPARE
from refattn_numba.cpu.threads import run_tasks

FIELDS = (
    "x", "y", "weight", "panels_at", "u", "v", "bias", "sums",
    "x_batch", "x_channel", "x_position", "x_d", "x_h", "x_w", "y_batch", "y_channel", "y_position", "y_d", "y_h", "y_w",
    "before_d", "before_h", "before_w", "m_d", "m_h", "m_w", "tiles_d", "tiles_h", "tiles_w",
    "groups", "c", "o", "taps", "points", "tiles", "panel", "panels", "is_flipped", "is_relu", "o_step", "c_step",
    "rows", "columns", "slabs_h", "slabs_w", "slabs", "block", "chunk", "slices", "slice_slabs", "slice_step",
    "c_block", "c_blocks", "store_block", "v_point", "v_tile", "m_point", "m_tile", "s_point", "sums_size",
    "at_dense", "at_slab", "at_one", "at_two", "at_v", "at_m", "at_u", "at_sums", "memory_size", "end_task",
)  # fmt: skip

WinogradCall = np.dtype([(name, np.int64) for name in FIELDS], align=True)

NEAR, FAR = 40 * 2**10, 720 * 2**10
"""Bytes of a slab in the first cache, and of a block of products in the second one."""

LARGEST_GROWTH = GROWTH[4] ** 2
"""Of the bound of errors: what two axes of F(4, 3) have. With three axes that have 3 taps, one is F(4, 3) at most."""

FEW, LARGEST_GROWTH_OF_FEW = 8, GROWTH[4]
"""Products of a sum whose rounding errors do not outweigh those of the transforms, and the growth that these may have then."""


def lanes(dtype: Any) -> int:
    """Numbers of a register."""
    return HOST.register_bytes // np.dtype(dtype).itemsize


def up(n: int, step: int) -> int:
    """The smallest multiple of `step` that holds n."""
    return -(-n // step) * step


def points_of(m: int) -> int:
    """As in kernels."""
    return m + TAPS - 1 if m > 1 else 1


class Tiling(NamedTuple):
    """How the outputs of a problem are cut.

    Attributes
    ----------
    m, tiles : (int, int, int)
        Outputs of a tile, and tiles, along each axis.
    rows, columns : int
        Tiles of a slab.
    """

    m: Axes
    tiles: Axes
    rows: int
    columns: int

    @property
    def points(self) -> int:
        """Of a tile."""
        return math.prod(map(points_of, self.m))

    def slabs(self, batch: int) -> tuple[int, int, int]:
        """Down, across, and in all."""
        down, across = -(-self.tiles[1] // self.rows), -(-self.tiles[2] // self.columns)
        return down, across, batch * self.tiles[0] * down * across


def even(whole: int, most: int) -> int:
    """The size of parts of almost one size, none above `most`."""
    return -(-whole // -(-whole // max(1, min(most, whole))))


@functools.lru_cache(256)
def tiled(problem: Problem, m: Axes) -> Tiling:
    """Slabs that fit the first cache."""
    d, h, w = (-(-n // k) for n, k in zip(problem.out, m, strict=True))
    columns = even(w, 32)
    line = points_of(m[0]) * (columns * m[2] + 2) * HOST.register_bytes
    rows = even(h, max(1, min((NEAR // line - 2) // m[1], 64 // columns)))
    return Tiling(m, (d, h, w), rows, columns)


def mirrored(problem: Problem) -> Problem:
    """The convolution that computes the gradient of the input from the cotangent of the output."""
    before = tuple(k - 1 - b for k, b in zip(problem.kernel, problem.before, strict=True))
    return problem._replace(c=problem.o, o=problem.c, size=problem.out, out=problem.size, before=before)


def takes(problem: Problem, face: Face) -> str | None:
    """Kernels of 3 taps."""
    axes = list(zip(problem.kernel, problem.stride, problem.dilation, strict=True))
    if any(k not in {1, TAPS} or s != 1 or (k == TAPS and d != 1) for k, s, d in axes) or TAPS not in problem.kernel:
        return (
            "it is for kernels with 3 taps, stride 1 and dilation 1 along some axes, and 1 tap along others, but here kernel, stride and "
            f"dilation are {problem.kernel}, {problem.stride} and {problem.dilation}"
        )
    return None if min(problem.c, problem.o) else "there are no channels"


@functools.cache
def allowed(kernel: Axes, largest: float) -> list[Axes]:
    """Outputs of a tile along each axis whose bound of errors is not larger."""
    found = itertools.product(*((2, 4) if k == TAPS else (1,) for k in kernel))
    return [m for m in found if math.prod(GROWTH[i] for i in m) <= largest] or [tuple(min(2, k) for k in kernel)]


def candidates(problem: Problem, face: Face) -> list[Axes]:
    """Outputs of a tile along each axis, as the bound of errors allows, which is stricter where few products are summed."""
    terms = problem.batch * math.prod(problem.out) // 16 if face == "weight_gradient" else problem.c
    return allowed(problem.kernel, LARGEST_GROWTH if terms >= FEW else LARGEST_GROWTH_OF_FEW)


def seconds(problem: Problem, face: Face) -> float:
    """Of the best tile."""
    problem = mirrored(problem) if face == "spread" else problem
    return min(seconds_of(problem, face, m) for m in candidates(problem, face))


def seconds_of(problem: Problem, face: Face, m: Axes) -> float:
    """Products, transforms of both arrays, and of the weights."""
    cut, width = tiled(problem, m), lanes(problem.dtype)
    tiles, c, o = problem.batch * math.prod(cut.tiles), up(problem.c, width), up(problem.o, width)
    products = tiles * problem.c * o / 70e9
    again = -(-problem.c // 64) + -(-problem.o // 64) if face == "weight_gradient" else 2
    transforms = tiles * (c + o) * again / 2 / 3e9
    weights = problem.c * o / 3e9
    return 20e-6 + problem.groups * cut.points * (products + transforms + weights) * problem.dtype.itemsize / 4


@functools.lru_cache(256)
def best(problem: Problem, face: Face) -> Axes:
    """The tile that should be the fastest."""
    return min(candidates(problem, face), key=lambda m: seconds_of(problem, face, m))


@functools.lru_cache(256)
def fields_of(problem: Problem, cut: Tiling) -> dict[str, Any]:
    """What all kernels are told."""
    axes = ("d", "h", "w")
    down, across, slabs = cut.slabs(problem.batch)
    panel = REGISTERS * lanes(problem.dtype)
    fields: dict[str, Any] = {"groups": problem.groups, "c": problem.c, "o": problem.o, "taps": math.prod(problem.kernel)}
    fields |= {"panel": panel, "panels": -(-problem.o // panel), "points": cut.points, "tiles": problem.batch * math.prod(cut.tiles)}
    fields |= {"rows": cut.rows, "columns": cut.columns, "slabs_h": down, "slabs_w": across, "slabs": slabs}
    for name, numbers in (("m", cut.m), ("tiles", cut.tiles), ("before", problem.before), ("x", problem.size), ("y", problem.out)):
        fields |= {f"{name}_{axis}": n for axis, n in zip(axes, numbers, strict=True)}
    for name, channels, size in (("x", problem.c, problem.size), ("y", problem.o, problem.out)):
        channels, positions = channels * problem.groups, math.prod(size)
        fields |= {f"{name}_batch": channels * positions, f"{name}_channel": 1 if problem.channels_last else positions}
        fields |= {f"{name}_position": channels if problem.channels_last else 1}
    return fields


@functools.lru_cache(256)
def memory_of(problem: Problem, cut: Tiling, **more: int) -> dict[str, int]:
    """Where a thread's parts of memory begin, and its size, in numbers."""
    width, taps = lanes(problem.dtype), math.prod(problem.kernel)
    p_d, p_h, p_w = map(points_of, cut.m)
    wide = [n * m + (2 if m > 1 else 0) for n, m in zip((1, cut.rows, cut.columns), cut.m, strict=True)]
    lines = {
        "dense": wide[1] * wide[2] + width,
        "slab": math.prod(wide),
        "one": max(p_d * wide[1] * wide[2], cut.points, 2 * cut.points),
        "two": max(p_d * p_h * wide[2], 2 * cut.points),
    }
    sizes = {name: n * width for name, n in lines.items()}
    sizes["dense"] = max(sizes["dense"], more.pop("dense", 0), (up(taps, width) + width) * width)
    sizes |= more
    places, at = {}, 0
    for name, size in sizes.items():
        places[f"at_{name}"] = at
        at += up(size, 16 * width // lanes(np.float64) + width)
    return {**places, "memory_size": up(at, width)}


def run(kernel: Any, fields: dict[str, Any], tasks: int, cost: float, dtype: Any, **arrays: Any) -> None:
    """Call a kernel with arrays that outlive the call."""
    record = Record(fields, layout=WinogradCall)
    record.add(**{name: x for name, x in arrays.items() if x is not None})
    run_tasks(kernel, record, False, tasks, int(cost), dtype)


def pack(problem: Problem, face: Face, weight: Array) -> Any:
    """Panels of output channels, which lie side by side; the transform is left to each call, which knows the size of its tiles."""
    taps, flipped = math.prod(problem.kernel), face == "spread"
    steps = {"o_step": problem.c * taps, "c_step": taps}
    if flipped:
        problem, steps = mirrored(problem), {"o_step": taps, "c_step": problem.c * taps}
    cut = tiled(problem, best(problem, face))
    fields = {**fields_of(problem, cut), **steps, "is_flipped": int(flipped)}
    fields |= memory_of(problem, cut, dense=(kernels.NEAR * taps + lanes(problem.dtype)) * lanes(problem.dtype))
    made = np.empty((problem.groups, fields["panels"], problem.c, taps, fields["panel"]), problem.dtype)
    tasks = problem.groups * fields["panels"] * -(-problem.c // kernels.DEPTH)
    run(kernels.pack, fields, tasks, 4 * made.size, problem.dtype, weight=weight, panels_at=made)
    return made


def correlate(problem: Problem, x: Array, packed: Any, epilogue: Epilogue) -> Finished:
    """The output."""
    return convolved(problem, best(problem, "correlate"), x, packed, epilogue)


def spread(problem: Problem, dy: Array, packed: Any, epilogue: Epilogue) -> Finished:
    """The gradient of the input, from weights that `pack` has flipped."""
    problem = mirrored(problem)
    return convolved(problem, best(problem, "spread"), dy, packed, epilogue)


def convolved(problem: Problem, m: Axes, x: Array, packed: Array, epilogue: Epilogue) -> Finished:
    """The output, in the order that moves less memory."""
    dtype, cut, y = problem.dtype, tiled(problem, m), problem.empty(problem.groups * problem.o, problem.out)
    if not y.size:
        return finish(y, epilogue)
    fields, width = dict(fields_of(problem, cut)), lanes(dtype)
    panel, panels, points, tiles = (fields[name] for name in ("panel", "panels", "points", "tiles"))
    c = up(problem.c, width)
    fields |= {"v_point": c, "v_tile": points * c + width, "m_point": panel, "m_tile": points * panel + width}
    fields["is_relu"] = int(epilogue.activation == "relu")
    bias = np.zeros((problem.groups, panels * panel), dtype)
    if epilogue.bias is not None:
        bias[:, : problem.o] = epilogue.bias.reshape(problem.groups, problem.o)
    cost = 2 * tiles * points * problem.groups * problem.c * problem.o
    arrays = {"x": x, "y": y, "bias": bias, "panels_at": packed}
    of_v, of_u, of_m = tiles * fields["v_tile"], points * problem.c * panels * panel, up(tiles, SPARE) * fields["m_tile"]
    blocks = blocks_of(fields, dtype)
    if panels * of_v < (blocks + 1) * of_u and of_m * dtype.itemsize <= 2 * FAR:
        few_tiles(problem, cut, fields, arrays, cost, of_m)
    else:
        many_tiles(problem, cut, fields, arrays, cost, blocks)
    return finish(y, Epilogue(None, None if fields["is_relu"] else epilogue.activation))


def blocks_of(fields: dict[str, Any], dtype: Any) -> int:
    """Blocks of slabs whose products fit the second cache, and that keep all threads busy to the end."""
    slab = fields["rows"] * fields["columns"]
    most = max(1, FAR // (fields["m_tile"] * dtype.itemsize) // slab)
    threads = numba.get_num_threads()
    blocks = -(-fields["slabs"] // most)
    return min(fields["slabs"], up(blocks * fields["groups"], threads) // fields["groups"] if blocks * fields["groups"] < 4 * threads else blocks)


def many_tiles(problem: Problem, cut: Tiling, fields: dict[str, Any], arrays: dict[str, Any], cost: float, blocks: int) -> None:
    """Blocks of tiles, from transformed weights."""
    dtype, points = problem.dtype, fields["points"]
    block = -(-fields["slabs"] // blocks)
    most = block * cut.rows * cut.columns
    u = np.empty(problem.groups * fields["panels"] * points * problem.c * fields["panel"], dtype)
    given = {**fields, "block": block, **memory_of(problem, cut, v=most * fields["v_tile"], m=up(most + SPARE, SPARE) * fields["m_tile"])}
    of_weights = {**fields, **memory_of(problem, cut)}
    tasks = problem.groups * fields["panels"] * -(-problem.c // kernels.DEPTH)
    run(kernels.transform_weights, of_weights, tasks, 8 * u.size, dtype, panels_at=arrays["panels_at"], u=u)
    run(kernels.by_tiles, given, problem.groups * -(-fields["slabs"] // block), cost, dtype, **arrays, u=u)


def few_tiles(problem: Problem, cut: Tiling, fields: dict[str, Any], arrays: dict[str, Any], cost: float, of_m: int) -> None:
    """Panels of channels, from transformed inputs."""
    dtype, points = problem.dtype, fields["points"]
    a_channel = points * fields["panel"] * dtype.itemsize
    chunk = next(n for n in (128, 64, 32) if n == 32 or n * a_channel + of_m * dtype.itemsize <= 3 * FAR)
    chunk = min(chunk, problem.c)
    v = np.empty(problem.groups * fields["tiles"] * fields["v_tile"], dtype)
    registers = -(-problem.c // lanes(dtype))
    of_inputs = {**fields, **memory_of(problem, cut)}
    run(kernels.transform_inputs, of_inputs, problem.groups * fields["slabs"] * registers, 8 * v.size, dtype, x=arrays["x"], v=v)
    given = {**fields, "chunk": chunk, **memory_of(problem, cut, m=of_m, u=points * chunk * fields["panel"])}
    run(kernels.by_panels, given, problem.groups * fields["panels"], cost, dtype, **arrays, v=v)


def weight_gradient(problem: Problem, x: Array, dy: Array) -> Array:
    """Its transform, summed over blocks of tiles, and over slices of these that are as many whatever the threads."""
    dtype = problem.dtype
    dw = np.empty((problem.groups * problem.o, problem.c, *problem.kernel), dtype)
    if not x.size or not dy.size:
        dw[...] = 0
        return dw
    cut = tiled(problem, best(problem, "weight_gradient"))
    fields, width = dict(fields_of(problem, cut)), lanes(dtype)
    panel, panels, points, slabs, taps = (fields[name] for name in ("panel", "panels", "points", "slabs", "taps"))
    c_block = min(panel, problem.c)
    block = max(1, 2 * FAR // ((panel + up(c_block, width)) * points * dtype.itemsize) // (cut.rows * cut.columns))
    most = min(block, slabs) * cut.rows * cut.columns
    c_blocks = -(-problem.c // c_block)
    tasks = problem.groups * c_blocks * panels
    slices = max(1, min(-(-8 // tasks), fields["tiles"] // 64, slabs))
    slice_slabs = -(-slabs // slices)
    slices = -(-slabs // slice_slabs)
    fields |= {"block": block, "slices": slices, "slice_slabs": slice_slabs, "c_block": c_block, "c_blocks": c_blocks, "store_block": 8}
    fields |= {"v_point": most * (up(c_block, width)), "v_tile": up(c_block, width), "m_point": most * panel, "m_tile": panel}
    s_point = up(c_block, SPARE) * panel + width
    fields |= {"s_point": s_point, "sums_size": points * s_point, "slice_step": tasks * points * s_point}
    dense = (8 * taps + width) * width
    memory = memory_of(
        problem, cut, dense=dense, v=points * fields["v_point"], m=points * max(fields["m_point"], width),
        sums=points * s_point if slices == 1 else 0,
    )  # fmt: skip
    sums = np.empty(slices * tasks * points * s_point, dtype) if slices > 1 else None
    cost = 2 * fields["tiles"] * points * problem.groups * problem.c * problem.o
    run(winograd_weight.add_tiles, {**fields, **memory}, slices * tasks, cost, dtype, x=x, y=dy, weight=dw, sums=sums)
    if sums is not None:
        parts = -(-c_block // 8)
        small = memory_of(problem, cut, dense=dense, m=points * width)
        run(winograd_weight.add_slices, {**fields, **small}, tasks * parts, sums.size, dtype, weight=dw, sums=sums)
    return dw


WINOGRAD = Algorithm("winograd", False, takes, seconds, pack, correlate, spread, weight_gradient)
