"""Attention and decoding for the instruction set that the environment names: ``python -m tests.twins.other_processor DTYPE ...``.

Prints one JSON object: the row of the table, and the largest errors against the reference; for ``convolution``, those of each of its
algorithms; or, for ``arm`` or ``tiles``, assembly for ARM or for matrix tiles, which need not run here.
"""

from __future__ import annotations

import json
import re
import sys

import ml_dtypes
import numpy as np
from llvmlite import binding
from numba import njit, types

import refattn
import refattn_numba
from refattn._core.random import Random
from refattn.testing.precision import named_format
from refattn_numba.cpu import matrix_tiles
from refattn_numba.cpu.attention_stages import Block, advance
from refattn_numba.cpu.instructions import HOST
from refattn_numba.cpu.products import product
from refattn_numba.cpu.stored_numbers import KINDS


def errors(dtypes):
    """Largest error of each output and gradient, relative to its largest element."""
    found = {}
    for dtype in dtypes:
        random = Random(3)
        shapes = {"query": (2, 137, 18), "key": (1, 170, 18), "value": (1, 170, 12)}
        kind = named_format(dtype).numpy_dtype
        given = {name: random.normal(shape).astype(kind) for name, shape in shapes.items()}
        options = {"causal": True, "align": "lower_right", "softcap": 3.0, "mask": random.booleans(0.8, (137, 170))}
        d, results = random.normal((2, 137, 12)), []
        for module in (refattn_numba, refattn):
            y, pullback = module.scaled_dot_product_attention.vjp(**given, **options)
            made = {"output": y, **pullback(d.astype(kind))}
            results.append({name: x.astype(float) for name, x in made.items()})
        got, want = results
        found |= {f"{dtype} {n}": float(np.abs(got[n] - want[n]).max() / np.abs(want[n]).max()) for n in want}
    return found


def decode_errors(dtypes):
    """Largest error of a cache's attention, for each type in which it may be stored."""
    found = {}
    for dtype in dtypes:
        random = Random(4)
        query = random.normal((2, 6, 2, 19)).astype(dtype)
        numbers = {name: 8 * random.normal((2, 2, 150, n)) for name, n in (("key", 19), ("value", 11))}
        for stored in dict.fromkeys([dtype, *KINDS]):
            caches = {name: x.astype(getattr(ml_dtypes, stored, stored)) for name, x in numbers.items()}
            given = {**caches, "lengths": np.array([150, 70]), "key_scale": 0.125, "causal": True, "softcap": 3.0}
            got = refattn_numba.decode_attention(query, **given)
            want = refattn.decode_attention(query.astype(float), **given)
            found[f"{dtype} of {stored}"] = float(np.abs(got - want).max() / np.abs(want).max())
    return found


CONVOLUTIONS = {
    "direct": ((2, 5, 9, 21), (19, 5, 3, 3), {"stride": 2, "padding": 1}),
    "direct, channels last": ((2, 18, 9, 21), (19, 18, 3, 2), {"dilation": 2, "padding": 1, "layout": "channels_last"}),
    "winograd": ((2, 18, 12, 21), (19, 18, 3, 3), {"padding": 1}),
    "pointwise": ((2, 37, 9, 11), (19, 37, 1, 1), {}),
    "pointwise, channels last": ((2, 37, 9, 11), (19, 37, 1, 1), {"layout": "channels_last"}),
    "depthwise": ((2, 19, 9, 21), (19, 1, 3, 3), {"padding": 1, "groups": 19}),
    "depthwise, channels last": ((2, 37, 9, 11), (37, 1, 3, 3), {"padding": 1, "groups": 37, "layout": "channels_last"}),
}
"""Sizes that fill no register: x, weight, options."""


def convolution_errors():
    """Largest error of each algorithm's output and gradients in float32, relative to the largest element."""
    found = {}
    for name, (size, kernel, options) in CONVOLUTIONS.items():
        random, algorithm = Random(5), name.partition(",")[0]
        given = [random.normal(shape).astype(np.float32) for shape in (size, kernel, kernel[:1])]
        last = options.get("layout") == "channels_last"
        turned = [np.moveaxis(given[0], 1, -1), *given[1:]] if last else given
        y, pullback = refattn_numba.conv2d.vjp(*turned, **options, algorithm=algorithm, activation="relu")
        rest = {key: value for key, value in options.items() if key != "layout"}
        before, exact = refattn.conv2d.vjp(*(x.astype(float) for x in given), **rest)
        d = random.normal(before.shape)
        got = {"output": y, **pullback(np.moveaxis(d, 1, -1).astype(np.float32) if last else d.astype(np.float32))}
        want = {"output": np.maximum(before, 0), **exact(d * (before > 0))}
        if last:
            got |= {key: np.moveaxis(got[key], -1, 1) for key in ("output", "x")}
        found |= {f"float32 {name} {n}": float(np.abs(got[n] - want[n]).max() / np.abs(want[n]).max()) for n in want}
    return found


@njit((types.CPointer(types.float32), types.intp), no_cpython_wrapper=True)
def tile(p, n):
    """A product and a step of the softmax: what a kernel spends its time in."""
    block = Block(0, 0, 0, n, 0, n)
    product(p, n, p + n * n, n, 1, n, n, p + 2 * n * n, n, n, p)
    advance(p + 2 * n * n, block, p, p + n, p + 2 * n)


def arm_assembly():
    """The vectors of this process's instruction set, compiled for ARM."""
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    machine = binding.Target.from_triple("aarch64-linux-gnu").create_target_machine(cpu="generic", features="+neon", opt=3)
    text = re.sub(r"^target (triple|datalayout).*$", "", tile.inspect_llvm(tile.signatures[0]), flags=re.MULTILINE)
    module = binding.parse_assembly(re.sub(r'"(target-cpu|target-features|tune-cpu)"="[^"]*"', "", text))
    module.triple, module.data_layout = machine.triple, str(machine.target_data)
    return machine.emit_assembly(module)


def tiles_assembly():
    """A block of two by two matrix tiles."""
    block = matrix_tiles._block(2, 2, add=True)

    @njit(no_cpython_wrapper=True)
    def run(a, b, c, step):
        block(a, step, b, 32, 32, step, c, step)

    pointers = [types.CPointer(x) for x in (types.float32, types.uint16, types.float32)]
    run.compile((*pointers, types.intp))
    return run.inspect_asm(run.signatures[0])


ASSEMBLY = {"arm": arm_assembly, "tiles": tiles_assembly}

if __name__ == "__main__":
    if make := ASSEMBLY.get(sys.argv[1]):
        what = {"assembly": make()}
    else:
        what = {"errors": convolution_errors() if sys.argv[1] == "convolution" else {**errors(sys.argv[1:]), **decode_errors(sys.argv[1:])}}
    print(json.dumps({"name": HOST.name, **what}))
