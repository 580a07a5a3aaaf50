"""Winograd's minimal filtering, for kernels of 3 taps in steps of 1 (`winograd_matrices` has the mathematics and the bound of errors).

Root-mean-square errors in float32 of normal data, relative to that of the result, in units of 1e-7, for the output, the gradient of the
input and that of the weight; "sums" are those of PyTorch's sums of products:

====================  ==============  ==============  ================  =================
channels, positions   sums            F(2, 3)         F(4, 3)           2 x 2 x 4 outputs
====================  ==============  ==============  ================  =================
64, 400               2.5  1.5  2.6   1.9  2.0  2.2   4.1   4.0   5.0
64, 56 x 56           3.0  1.6  3.5   2.6  2.6  3.4   11    11    9.9
256, 14 x 14          2.2  2.2  3.4   3.6  3.6  3.2   14    14    8.2
512, 7 x 7            2.3  2.1  2.3   3.5  3.5  2.5   14    14    6.3
64, 8 x 28 x 28       3.2  1.7  3.5   3.5  3.4  3.2   30    30    21      7.0  7.0  5.7
====================  ==============  ==============  ================  =================

So F(2, 3) is as exact as sums are. F(4, 3) has 3 to 7 times their error in two dimensions, which is allowed, and 6 to 17 times in three,
which is not (`LARGEST_GROWTH`). Errors are of one size all over a tile, so that an output that is much smaller than its neighbours,
and one of a tile that reads NaN, is worse than a sum's. A tile of F(4, 3) takes 36 multiplications for 16 outputs in two dimensions,
where sums take 144.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

from refattn._core import Array
from refattn_numba.cpu.call import Record, aligned, empty
from refattn_numba.cpu.conv import winograd_kernels as kernels
from refattn_numba.cpu.conv import winograd_weight
from refattn_numba.cpu.conv.epilogue import finish
from refattn_numba.cpu.conv.problem import Algorithm, Axes, Epilogue, Face, Finished, Problem
from refattn_numba.cpu.conv.winograd_matrices import TAPS
from refattn_numba.cpu.conv.winograd_tiles import (
    FAR,
    ROOM,
    Tiling,
    WinogradCall,
    best,
    fields_of,
    lanes,
    memory_of,
    mirrored,
    seconds,
    tiled,
    up,
)
from refattn_numba.cpu.products import SPARE
from refattn_numba.cpu.threads import run_tasks


def takes(problem: Problem, face: Face) -> str | None:
    """Kernels of 3 taps."""
    axes = list(zip(problem.kernel, problem.stride, problem.dilation, strict=True))
    if any(k not in {1, TAPS} or s != 1 or (k == TAPS and d != 1) for k, s, d in axes) or TAPS not in problem.kernel:
        return (
            "it is for kernels with 3 taps, stride 1 and dilation 1 along some axes, and 1 tap along others, but here kernel, stride and "
            f"dilation are {problem.kernel}, {problem.stride} and {problem.dilation}"
        )
    return None if min(problem.c, problem.o) else "there are no channels"


def run(kernel: Any, fields: dict[str, Any], tasks: int, cost: float, dtype: Any, **arrays: Any) -> None:
    """Call a kernel with arrays that outlive the call."""
    record = Record(fields, layout=WinogradCall)
    record.add(**{name: x for name, x in arrays.items() if x is not None})
    run_tasks(kernel, record, False, tasks, int(cost), dtype)


def pack(problem: Problem, face: Face, weight: Array) -> Array:
    """Itself: each call transforms it where it is read, as it knows the size of its tiles."""
    return weight


def correlate(problem: Problem, x: Array, packed: Array, epilogue: Epilogue) -> Finished:
    """The output."""
    steps = {"o_step": problem.c * math.prod(problem.kernel), "c_step": math.prod(problem.kernel)}
    return convolved(problem, best(problem, "correlate"), x, packed, steps, epilogue)


def spread(problem: Problem, dy: Array, packed: Array, epilogue: Epilogue) -> Finished:
    """The gradient of the input, from weights that are flipped."""
    steps = {"o_step": math.prod(problem.kernel), "c_step": problem.c * math.prod(problem.kernel), "is_flipped": 1}
    problem = mirrored(problem)
    return convolved(problem, best(problem, "spread"), dy, packed, steps, epilogue)


def convolved(problem: Problem, m: Axes, x: Array, weight: Array, steps: dict[str, int], epilogue: Epilogue) -> Finished:
    """The output, in the order that moves less memory; `steps` say how the weight lies."""
    dtype, cut, y = problem.dtype, tiled(problem, m), problem.empty(problem.groups * problem.o, problem.out)
    if not y.size:
        return finish(y, epilogue)
    fields, width = dict(fields_of(problem, cut)), lanes(dtype)
    panel, panels, points, tiles = (fields[name] for name in ("panel", "panels", "points", "tiles"))
    c = up(problem.c, width)
    fields |= {**steps, "v_tile": c, "m_tile": panel, "is_relu": int(epilogue.activation == "relu")}
    bias = np.zeros((problem.groups, panels * panel), dtype)
    if epilogue.bias is not None:
        bias[:, : problem.o] = epilogue.bias.reshape(problem.groups, problem.o)
    cost = 2 * tiles * points * problem.groups * problem.c * problem.o
    arrays = {"x": x, "y": y, "bias": bias, "weight": weight}
    of_v, of_u, of_m = tiles * points * c, points * problem.c * panels * panel, up(tiles, SPARE) * points * panel
    block = block_of(fields, dtype)
    if panels * of_v < (-(-fields["slabs"] // block) + 1) * of_u and of_m * dtype.itemsize <= 2 * FAR:
        few_tiles(problem, cut, fields, arrays, cost, of_m)
    else:
        many_tiles(problem, cut, fields, arrays, cost, block)
    return finish(y, Epilogue(None, None if fields["is_relu"] else epilogue.activation))


def of_points(fields: dict[str, Any], tiles: int, dtype: Any) -> dict[str, int]:
    """From one point to the next, where all tiles of a point lie side by side: an odd number of registers, so that no cache set fills up."""
    width = lanes(dtype)
    v, m = tiles * fields["v_tile"], up(tiles, SPARE) * fields["m_tile"]
    return {"v_point": v + width, "m_point": m + width}


def block_of(fields: dict[str, Any], dtype: Any) -> int:
    """Slabs of a block: inputs and products fit the second cache, with the weights if these are few, and all threads are busy to the end."""
    points, panel, c, width = fields["points"], fields["panel"], fields["c"], lanes(dtype)
    weights = points * c * fields["panels"] * panel * dtype.itemsize
    room = ROOM - (weights if weights <= ROOM // 2 else 0)
    slab = fields["rows"] * fields["columns"] * points * (up(c, width) + panel) * dtype.itemsize
    most = max(1, min(room // slab, fields["slabs"]))
    threads = numba.get_num_threads()

    def longest(block: int) -> int:
        return -(-fields["groups"] * -(-fields["slabs"] // block) // threads) * block

    return min(range(most, most // 2, -1), key=longest)


def of_weights(problem: Problem) -> int:
    """Room for weights before they are transformed."""
    width = lanes(problem.dtype)
    return (kernels.NEAR * math.prod(problem.kernel) + width) * width


def many_tiles(problem: Problem, cut: Tiling, fields: dict[str, Any], arrays: dict[str, Any], cost: float, block: int) -> None:
    """Blocks of tiles, from transformed weights."""
    dtype, points = problem.dtype, fields["points"]
    most = block * cut.rows * cut.columns
    u = aligned(problem.groups * fields["panels"] * points * problem.c * fields["panel"], dtype)
    fields |= of_points(fields, most, dtype)
    given = {**fields, "block": block, **memory_of(problem, cut, v=points * fields["v_point"], m=points * fields["m_point"])}
    small = {**fields, **memory_of(problem, cut, dense=of_weights(problem))}
    tasks = problem.groups * fields["panels"] * -(-problem.c // kernels.NEAR)
    run(kernels.transform_weights, small, tasks, 8 * u.size, dtype, weight=arrays["weight"], u=u)
    run(kernels.by_tiles, given, problem.groups * -(-fields["slabs"] // block), cost, dtype, **arrays, u=u)


def few_tiles(problem: Problem, cut: Tiling, fields: dict[str, Any], arrays: dict[str, Any], cost: float, of_m: int) -> None:
    """Panels of channels, from transformed inputs."""
    dtype, points = problem.dtype, fields["points"]
    a_channel = points * fields["panel"] * dtype.itemsize
    chunk = next(n for n in (128, 64, 32) if n == 32 or n * a_channel + of_m * dtype.itemsize <= 4 * FAR)
    chunk = min(chunk, problem.c)
    fields |= of_points(fields, fields["tiles"], dtype)
    of_m = points * fields["m_point"]
    v = aligned(problem.groups * points * fields["v_point"], dtype)
    registers = -(-problem.c // lanes(dtype))
    of_inputs = {**fields, **memory_of(problem, cut)}
    run(kernels.transform_inputs, of_inputs, problem.groups * fields["slabs"] * registers, 8 * v.size, dtype, x=arrays["x"], v=v)
    given = {**fields, "chunk": chunk, **memory_of(problem, cut, dense=of_weights(problem), m=of_m, u=points * chunk * fields["panel"])}
    run(kernels.by_panels, given, problem.groups * fields["panels"], cost, dtype, **arrays, v=v)


def weight_gradient(problem: Problem, x: Array, dy: Array) -> Array:
    """Its transform, summed over blocks of tiles, and over slices of these that are as many whatever the threads."""
    dtype = problem.dtype
    dw = empty((problem.groups * problem.o, problem.c, *problem.kernel), dtype)
    if not x.size or not dy.size:
        dw[...] = 0
        return dw
    cut = tiled(problem, best(problem, "weight_gradient"))
    fields, width = dict(fields_of(problem, cut)), lanes(dtype)
    panel, panels, points, slabs, taps = (fields[name] for name in ("panel", "panels", "points", "slabs", "taps"))
    c_block = min(panel, problem.c)
    block = max(1, FAR // ((panel + up(c_block, width)) * points * dtype.itemsize) // (cut.rows * cut.columns))
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
    sums = aligned(slices * tasks * points * s_point, dtype) if slices > 1 else None
    cost = 2 * fields["tiles"] * points * problem.groups * problem.c * problem.o
    run(winograd_weight.add_tiles, {**fields, **memory}, slices * tasks, cost, dtype, x=x, y=dy, weight=dw, sums=sums)
    if sums is not None:
        parts = -(-c_block // 8)
        small = memory_of(problem, cut, dense=dense, m=points * width)
        run(winograd_weight.add_slices, {**fields, **small}, tasks * parts, sums.size, dtype, weight=dw, sums=sums)
    return dw


WINOGRAD = Algorithm("winograd", False, takes, seconds, pack, correlate, spread, weight_gradient)
