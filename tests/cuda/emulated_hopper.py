"""Runs kernels of compute capability 9.0 on NumPy: warps go on as barriers let them, and boxes arrive at once or as late as they can.

Warps that wait for each other are a fault, as are those of one group of four that do not multiply together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tests.cuda.emulated_block import Block
from tests.cuda.emulated_warpgroup import HopperWarp
from tests.cuda.emulator import Buffers, Emulated, Fault, converted, give_turn, waiting_for_turns


class EmulatedHopper(Emulated):
    """Operations, none of which touches registers that products are about to write, but those that say so."""

    current: HopperWarp  # pyright: ignore[reportIncompatibleVariableOverride]

    def __call__(self, operation: Any) -> Callable[..., Any]:
        run = super().__call__(operation)

        def checked(*given: Any) -> Any:
            warp = self.current
            warp.operations += 1
            before = warp.under_way()
            is_wait = any(name in operation.run.__code__.co_names for name in ("products_wait", "products_begin", "products_start"))
            touched = [x for values in given if isinstance(values, tuple) for x in values if id(x) in before]
            if touched and not is_wait:
                raise Fault("registers are used while products that write them are under way")
            made = run(*given)
            after = warp.under_way()
            if is_wait and "products_wait" in operation.run.__code__.co_names and any(id(x) in after for x in given[0]):
                raise Fault("sums are taken for ready that products under way will write")
            if isinstance(made, tuple) and not is_wait:
                warp.born.update((id(x), (warp.operations, x)) for x in made)
            return made

        return checked


def launch(
    kernel: Any, blocks: int, arguments: Mapping[str, Any], buffers: Sequence[np.ndarray], *, late: bool = True, last_first: bool = False
) -> None:
    """Run all blocks of a kernel, one after the other; `late` boxes arrive when nothing else can go on, and warps go in either order."""
    if sorted(arguments) != sorted(name for name, _ in kernel.parameters):
        wrong = set(arguments) ^ {name for name, _ in kernel.parameters}
        raise TypeError(f"{kernel.name}: missing or unknown arguments {sorted(wrong)}")
    machine = EmulatedHopper()
    function = kernel.builder(machine, kernel.config)
    values = [converted(arguments[name], "int64" if kind == "pointer" else kind) for name, kind in kernel.parameters]
    values = [x if kind == "float32" else int(x) for x, (_, kind) in zip(values, kernel.parameters, strict=True)]
    memory = Buffers(buffers)
    for index in range(blocks):
        block = Block(kernel, late=late)
        run_block(
            machine, function, values, block, [HopperWarp(i, index, block, memory) for i in range(block.warps)], last_first=last_first
        )


def run_block(
    machine: EmulatedHopper, function: Callable[..., None], values: list[Any], block: Block, running: list[HopperWarp], *, last_first: bool
) -> None:
    """Give turns to whichever warps can go on, until all have ended."""
    block.running = running
    with waiting_for_turns(machine, function, values, running):
        while alive := [warp for warp in running if warp.state != "ended"]:
            able = [warp for warp in alive if warp.can_go()]
            if not able and not block.land():
                raise Fault("deadlock: " + "; ".join(f"warp {warp.place} waits for {warp.what}" for warp in alive))
            for warp in reversed(able) if last_first else able:
                if warp.can_go():  # still
                    give_turn(machine, warp)
    _check_end(block)


def _check_end(block: Block) -> None:
    """Nothing is under way, nobody is awaited, and warps of a group have multiplied together."""
    if block.loads:
        raise Fault("a block ends while boxes are on their way")
    if any(warp.groups_of_products for warp in block.running):
        raise Fault("a warp ends while its products are under way")
    if any(warp.copies or any(warp.groups) for warp in block.running):
        raise Fault("a thread ends while its copies are under way")
    if block.numbered:
        raise Fault(f"a block ends while warps are awaited at its barriers {sorted(block.numbered)}")
    for first in range(0, block.warps, 4):
        if any(warp.together != block.running[first].together for warp in block.running[first : first + 4]):
            raise Fault("warps of one group have not done the same together")
