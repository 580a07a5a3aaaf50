"""The instructions of compute capability 9.0: barriers in shared memory, boxes of tensors, and products of four warps at a time.

PTX ISA 9.0, "mbarrier", "cp.async.bulk.tensor", "wgmma" and "setmaxnreg": https://docs.nvidia.com/cuda/parallel-thread-execution/. What one
thread is to do is done by one that the hardware elects, so that a warp stays together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llvmlite import ir

if TYPE_CHECKING:
    from refattn_numba.cuda.warpgroups import Steps

INT, FLOAT, LONG, NOTHING = ir.IntType(32), ir.FloatType(), ir.IntType(64), ir.VoidType()
SHORT = {"bfloat16": "bf16", "float16": "f16", "float8_e4m3fn": "e4m3"}
DEEP = {"e4m3": 32}
"""How many numbers a product sums over, where these are not 16."""


def elected(text: str) -> str:
    """An instruction for one lane of a warp."""
    return f"{{ .reg .pred p; elect.sync _|p, 0xffffffff; @p {text} }}"


class HopperInstructions:
    """What `refattn_numba.cuda.ptx.Machine` has for the architecture sm_90a alone."""

    ptx: Any
    builder: Any

    # Barriers
    def barrier_init(self, address: Any, count: int) -> None:
        """A barrier of 8 bytes in shared memory whose phases end when `count` warps have arrived and all expected bytes have."""
        self.ptx(elected(f"mbarrier.init.shared::cta.b64 [$0], {count};"), NOTHING, address, changes=True)

    def barriers_made(self) -> None:
        """Copies may use the barriers that this thread has made, and other threads may after the next barrier of the block."""
        self.ptx("fence.mbarrier_init.release.cluster; fence.proxy.async.shared::cta;", NOTHING, changes=True)

    def barrier_arrive(self, address: Any) -> None:
        """A warp arrives."""
        self.ptx(f"bar.warp.sync 0xffffffff; {elected('mbarrier.arrive.shared::cta.b64 _, [$0];')}", NOTHING, address, changes=True)

    def barrier_expect(self, address: Any, size: int) -> None:
        """A warp arrives, and so many bytes will."""
        self.ptx(elected(f"mbarrier.arrive.expect_tx.shared::cta.b64 _, [$0], {size};"), NOTHING, address, changes=True)

    def barrier_wait(self, address: Any, parity: Any) -> None:
        """Until the phase of this parity has ended; the one before the first has parity 1."""
        text = "{ .reg .pred p; AGAIN: mbarrier.try_wait.parity.shared::cta.b64 p, [$0], $1; @p bra.uni DONE; bra.uni AGAIN; DONE: }"
        self.ptx(text, NOTHING, address, parity, changes=True)

    def show_copies(self) -> None:
        """What this thread has copied, and waited for, may be read by products after the next barrier."""
        self.ptx("fence.proxy.async.shared::cta;", NOTHING, changes=True)

    def warp_barrier(self) -> None:
        """What lanes of a warp have stored is seen by its other lanes."""
        self.ptx("bar.warp.sync 0xffffffff;", NOTHING, changes=True)

    def meet(self, number: Any, threads: int) -> None:
        """Wait at one of the block's 16 barriers until so many threads are there or have been announced."""
        self.ptx(f"bar.sync $0, {threads};", NOTHING, number, changes=True)

    def announce(self, number: Any, threads: int) -> None:
        """The same without waiting."""
        self.ptx(f"bar.arrive $0, {threads};", NOTHING, number, changes=True)

    # Boxes of tensors
    def map_acquire(self, tensor_map: Any) -> None:
        """What the host wrote to a tensor map is seen by copies of this warp."""
        self.ptx("fence.proxy.tensormap::generic.acquire.sys [$0], 128;", NOTHING, tensor_map, changes=True)

    def box_load(self, to: Any, tensor_map: Any, barrier: Any, places: Sequence[Any]) -> None:
        """Start to copy a box of a tensor of rank 4 to shared memory; its bytes arrive at a barrier."""
        text = "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [$0], [$1, {$3, $4, $5, $6}], [$2];"
        self.ptx(elected(text), NOTHING, to, tensor_map, barrier, *places, changes=True)

    # Registers
    def registers(self, count: int, *, more: bool) -> None:
        """Each thread of four warps has so many from now on."""
        self.ptx(f"setmaxnreg.{'inc' if more else 'dec'}.sync.aligned.u32 {count};", NOTHING, changes=True)

    # Numbers of 8 bits
    def packed_eights(self, numbers: Sequence[Any]) -> Any:
        """Four in e4m3, the first in the lowest bits; the largest there is, 448, for what is larger."""
        convert = "cvt.rn.satfinite.e4m3x2.f32"
        text = f"{{ .reg .b16 l, h; {convert} l, $2, $1; {convert} h, $4, $3; mov.b32 $0, {{l, h}}; }}"
        return self.ptx(text, INT, *numbers)

    def widened_eight(self, bits: Any) -> Any:
        """A float32 from the lowest 8 bits, which are e4m3."""
        text = "{ .reg .b16 l, h; .reg .b32 t; mov.b32 {l, h}, $1; cvt.rn.f16x2.e4m3x2 t, l; mov.b32 {l, h}, t; cvt.f32.f16 $0, l; }"
        return self.ptx(text, FLOAT, bits)

    # Products
    def products_begin(self, sums: Sequence[Any]) -> tuple[Any, ...]:
        """Sums, and other registers, may be used by the products that follow."""
        return self._in_place("wgmma.fence.sync.aligned;", sums)

    def products_start(self, dtype: str, steps: Steps, sums: Sequence[Any], left: Any, right: Any) -> tuple[Any, ...]:
        """A group of products of 64 rows by four warps; the sums are there after a wait, as are then the operands free."""
        kind = SHORT[dtype]
        count, given = steps.registers, [*left, right] if not steps.left else [left, right]
        first = count if steps.is_new else 2 * count
        places = [f"${first + i}" for i in range(len(given))]
        sums_text = f"{{{', '.join(f'${i}' for i in range(count))}}}"
        lines = ["{ .reg .pred no, yes; .reg .b64 l, r; setp.ne.b32 no, 0, 0; setp.ne.b32 yes, 1, 0;"]
        for i, right_step in enumerate(steps.right):
            a, how = f"{{{', '.join(places[4 * i : 4 * i + 4])}}}", "1, 1"
            if steps.left:
                lines.append(f"add.s64 l, {places[0]}, {steps.left[i]};")
                a = "l"
            if kind not in DEEP:  # whether operands are transposed, which those of 8 bits cannot be
                how += f"{f', {0 if steps.left_is_rows else 1}' if steps.left else ''}, {0 if steps.right_is_rows else 1}"
            lines.append(f"add.s64 r, {places[-1]}, {right_step};")
            adds = "no" if steps.is_new and i == 0 else "yes"
            name = f"wgmma.mma_async.sync.aligned.m64n{steps.columns}k{DEEP.get(kind, 16)}.f32.{kind}.{kind}"
            lines.append(f"{name} {sums_text}, {a}, r, {adds}, {how};")
        text = " ".join([*lines, "wgmma.commit_group.sync.aligned; }"])
        if steps.is_new:
            return self.ptx(text, FLOAT, *given, changes=True, count=count)
        return self._in_place(text, sums, *given)

    def products_wait(self, sums: Sequence[Any], running: int) -> tuple[Any, ...]:
        """Until at most so many groups are under way, of which none makes these sums."""
        return self._in_place(f"wgmma.wait_group.sync.aligned {running};", sums)

    def made_before(self, weight: Any) -> None:
        """A number that is not negative, and all that it was made of, is there before what follows: a branch depends on it."""
        self.ptx("{ .reg .pred p; setp.geu.f32 p, $0, 0f00000000; @p bra ON; nanosleep.u32 32; ON: }", NOTHING, weight, changes=True)

    def _in_place(self, text: str, values: Sequence[Any], *given: Any) -> tuple[Any, ...]:
        """An instruction that changes registers where they are; ``$0`` on are these, once more as given, and then the others."""
        count, registers = len(values), [x.register for x in (*values, *given)]
        letters = ["r" if x.register.type == INT else "l" for x in given]
        constraints = ",".join(["=f"] * count + [str(i) for i in range(count)] + letters + ["~{memory}"])
        made = ir.LiteralStructType([FLOAT] * count)
        assembly = ir.InlineAsm(ir.FunctionType(made, [x.type for x in registers]), text, constraints, True)
        result = self.builder.call(assembly, registers)
        return tuple(type(values[0])(self, self.builder.extract_value(result, i)) for i in range(count))
