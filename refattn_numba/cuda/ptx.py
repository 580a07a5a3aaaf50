"""The instructions of one thread and one warp, as numba-cuda compiles them: PTX where LLVM has none of its own.

PTX ISA 9.0, chapters 9.7.1-9.7.15: https://docs.nvidia.com/cuda/parallel-thread-execution/. Whatever touches memory, or waits, is marked as
such, so that the compiler keeps its order.
"""

# pyright: reportAttributeAccessIssue=false, reportMissingImports=false
# numba-cuda's modules stand in for Numba's as they are imported, which no checker sees.

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from llvmlite import ir
from numba import cuda
from numba.cuda import cgutils, types
from numba.cuda.extending import intrinsic
from numba.cuda.typing import signature

from refattn_numba.cuda.hopper_ptx import HopperInstructions
from refattn_numba.cuda.operations import Kind, Many, Operation

INT, LONG, FLOAT, BIT, NOTHING = ir.IntType(32), ir.IntType(64), ir.FloatType(), ir.IntType(1), ir.VoidType()
REGISTER = {INT: "r", LONG: "l", FLOAT: "f"}
OF_NUMBA: dict[str, Any] = {"int32": types.int32, "int64": types.int64, "bits": types.uint32, "float32": types.float32}
ALL_LANES = "0xffffffff"
SHARED_SPACE = 3


class Value:
    """A register, with the operators of the numbers in it. An integer constant takes the other operand's type."""

    def __init__(self, machine: Machine, register: Any) -> None:
        self.machine, self.register = machine, register

    def _binary(self, other: Any, of_integers: str, of_floats: str = "", *, is_swapped: bool = False) -> Value:
        builder = self.machine.builder
        a, b = self.machine.alike(self, other)
        if is_swapped:
            a, b = b, a
        return Value(self.machine, getattr(builder, of_floats if a.type == FLOAT else of_integers)(a, b))

    def _compared(self, other: Any, sign: str) -> Value:
        a, b = self.machine.alike(self, other)
        builder = self.machine.builder
        of_floats = builder.fcmp_unordered if sign == "!=" else builder.fcmp_ordered
        return Value(self.machine, of_floats(sign, a, b) if a.type == FLOAT else builder.icmp_signed(sign, a, b))

    def __add__(self, other: Any) -> Value:
        return self._binary(other, "add", "fadd")

    def __mul__(self, other: Any) -> Value:
        return self._binary(other, "mul", "fmul")

    def __and__(self, other: Any) -> Value:
        return self._binary(other, "and_")

    def __or__(self, other: Any) -> Value:
        return self._binary(other, "or_")

    def __xor__(self, other: Any) -> Value:
        return self._binary(other, "xor")

    def __sub__(self, other: Any) -> Value:
        return self._binary(other, "sub", "fsub")

    def __rsub__(self, other: Any) -> Value:
        return self._binary(other, "sub", "fsub", is_swapped=True)

    def __lshift__(self, other: Any) -> Value:
        return self._binary(other, "shl")

    def __rshift__(self, other: Any) -> Value:
        return self._binary(other, "ashr")

    def __lt__(self, other: Any) -> Value:
        return self._compared(other, "<")

    def __le__(self, other: Any) -> Value:
        return self._compared(other, "<=")

    def __gt__(self, other: Any) -> Value:
        return self._compared(other, ">")

    def __ge__(self, other: Any) -> Value:
        return self._compared(other, ">=")

    def __eq__(self, other: Any) -> Value:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._compared(other, "==")

    def __ne__(self, other: Any) -> Value:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._compared(other, "!=")

    def __neg__(self) -> Value:
        return self * -1.0 if self.register.type == FLOAT else 0 - self

    __radd__, __rmul__, __rand__, __ror__ = __add__, __mul__, __and__, __or__
    __hash__ = None  # pyright: ignore[reportAssignmentType]


class Machine(HopperInstructions):
    """Makes code at one place of a function."""

    def __init__(self, context: Any, builder: Any) -> None:
        self.context, self.builder = context, builder

    # Numbers
    def alike(self, a: Any, b: Any) -> tuple[Any, Any]:
        """Two registers of one type."""
        a, b = (x.register if isinstance(x, Value) else x for x in (a, b))
        if not hasattr(a, "type"):
            return b.type(a), b
        if not hasattr(b, "type"):
            return a, a.type(b)
        if {a.type, b.type} == {INT, LONG}:
            return tuple(self.builder.sext(x, LONG) if x.type == INT else x for x in (a, b))  # pyright: ignore[reportReturnType]
        return a, b

    def number(self, x: float) -> Value:
        """A float32."""
        return Value(self, FLOAT(x))

    def integer(self, x: int) -> Value:
        """An int32."""
        return Value(self, INT(x))

    def wide(self, x: Value) -> Value:
        """An int32 as int64."""
        return Value(self, self.builder.sext(x.register, LONG))

    def float_of(self, x: Value) -> Value:
        """The float32 with these bits."""
        return Value(self, self.builder.bitcast(x.register, FLOAT))

    def bits_of(self, x: Value) -> Value:
        """The bits of a float32."""
        return Value(self, self.builder.bitcast(x.register, INT))

    def select(self, condition: Value, a: Any, b: Any) -> Value:
        """One or the other, without a branch."""
        return Value(self, self.builder.select(condition.register, *self.alike(a, b)))

    def quotient(self, a: Value, b: Value) -> Value:
        """Of non-negative int32."""
        return Value(self, self.builder.udiv(a.register, b.register))

    def ptx(self, text: str, gives: Any, *given: Value, changes: bool = False, count: int = 1) -> Any:
        """The result of one instruction, `count` registers of one type where there are more; ``$0`` on are the results, then the given."""
        registers = [x.register if x.register.type != BIT else self.builder.zext(x.register, INT) for x in given]
        results = [] if gives == NOTHING else [f"={REGISTER[gives]}"] * count
        constraints = ",".join([*results, *(REGISTER[x.type] for x in registers), *(["~{memory}"] if changes else [])])
        made = ir.LiteralStructType([gives] * count) if count > 1 else gives
        assembly = ir.InlineAsm(ir.FunctionType(made, [x.type for x in registers]), text, constraints, changes)
        result = self.builder.call(assembly, registers)
        if count == 1:
            return Value(self, result)
        return tuple(Value(self, self.builder.extract_value(result, i)) for i in range(count))

    def multiply_add(self, a: Any, b: Any, c: Any) -> Value:
        """``a * b + c`` with one rounding."""
        return self.ptx("fma.rn.f32 $0, $1, $2, $3;", FLOAT, *map(self._float, (a, b, c)))

    def below(self, a: Value, b: Value) -> Value:
        """Whether ``0 <= a < b``, where b is not negative."""
        return Value(self, self.builder.icmp_unsigned("<", a.register, b.register))

    def smallest(self, a: Any, b: Any) -> Value:
        """Of two integers."""
        a, b = self.alike(a, b)
        return Value(self, self.builder.select(self.builder.icmp_signed("<", a, b), a, b))

    def stepped(self, address: Value, step: Value, count: int) -> Value:
        """``address + step * count`` at once: the product is not kept from one turn of a loop to the next."""
        return self.ptx(f"mad.lo.s64 $0, $2, {count}, $1;", LONG, address, step) if count else address

    def multiply_add_wide(self, a: Value, b: Value, c: Value) -> Value:
        """``a * b + c`` of an int32 and two int64."""
        return self.ptx("mad.lo.s64 $0, $1, $2, $3;", LONG, self.wide(a), b, c)

    def multiply_add_longer(self, a: Value, b: Value, c: Value) -> Value:
        """``a * b + c`` of two int32 and an int64."""
        return self.ptx("mad.wide.s32 $0, $1, $2, $3;", LONG, a, b, c)

    def largest(self, a: Any, b: Any) -> Value:
        """The other where one is NaN."""
        return self.ptx("max.f32 $0, $1, $2;", FLOAT, *map(self._float, (a, b)))

    def _float(self, x: Any) -> Value:
        return x if isinstance(x, Value) else self.number(x)

    def exp2(self, x: Value) -> Value:
        """To two units in the last place."""
        return self.ptx("ex2.approx.ftz.f32 $0, $1;", FLOAT, x)

    def log2(self, x: Value) -> Value:
        """To 2**-22 or so."""
        return self.ptx("lg2.approx.f32 $0, $1;", FLOAT, x)

    def reciprocal(self, x: Value) -> Value:
        """To one unit in the last place."""
        return self.ptx("rcp.approx.ftz.f32 $0, $1;", FLOAT, x)

    def packed(self, low: Value, high: Value, dtype: str) -> Value:
        """Two numbers of 16 bits."""
        return self.ptx(f"cvt.rn.{_SHORT[dtype]}x2.f32 $0, $2, $1;", INT, low, high)

    def bytes_chosen(self, a: Any, b: Any, which: int) -> Value:
        """Four bytes, of which each digit of `which` (the last is the lowest byte's) names one of the eight of `a` and `b`."""
        return self.ptx(f"prmt.b32 $0, $1, $2, {which:#06x};", INT, *self._bits(a, b))

    def multiply_add_pairs(self, a: Any, b: Any, c: Any, dtype: str) -> Value:
        """``a * b + c`` of two numbers of 16 bits each, with one rounding."""
        return self.ptx(f"fma.rn.{_SHORT[dtype]}x2 $0, $1, $2, $3;", INT, *self._bits(a, b, c))

    def _bits(self, *given: Any) -> list[Value]:
        return [x if isinstance(x, Value) else self.integer(x) for x in given]

    def narrowed(self, x: Value) -> Value:
        """Bits of the nearest TF32, ties away from zero."""
        return self.ptx("cvt.rna.tf32.f32 $0, $1;", INT, x)

    def widened(self, x: Value, dtype: str) -> Value:
        """A float32 from the lower 16 bits."""
        if dtype == "bfloat16":
            return self.float_of(x << 16)
        return self.ptx("{ .reg .b16 l, h; mov.b32 {l, h}, $1; cvt.f32.f16 $0, l; }", FLOAT, x)

    # Where a thread is
    def thread(self) -> Value:
        """Of the block."""
        return self.ptx("mov.u32 $0, %tid.x;", INT)

    def block(self) -> Value:
        """Of the grid."""
        return self.ptx("mov.u32 $0, %ctaid.x;", INT)

    def shared(self) -> Value:
        """Address at which dynamic shared memory begins."""
        module, name = self.builder.module, "dynamic_shared_memory"
        if name in module.globals:
            found = module.globals[name]
        else:
            found = cgutils.add_global_variable(module, ir.ArrayType(ir.IntType(8), 0), name, SHARED_SPACE)
            found.linkage, found.align = "external", 128
        return Value(self, self.builder.ptrtoint(found, INT))

    # Together with other threads
    def barrier(self) -> None:
        """Of the whole block."""
        self.ptx("bar.sync 0;", NOTHING, changes=True)

    def barrier_any(self, condition: Value) -> Value:
        """A barrier that tells every thread whether the condition held in one."""
        text = "{ .reg .pred p, q; setp.ne.b32 p, $1, 0; bar.red.or.pred q, 0, p; selp.b32 $0, 1, 0, q; }"
        return self.ptx(text, INT, condition, changes=True)

    def any_lane(self, condition: Value) -> Value:
        """Whether the condition holds in a lane of the warp."""
        text = f"{{ .reg .pred p, q; setp.ne.b32 p, $1, 0; vote.sync.any.pred q, p, {ALL_LANES}; selp.b32 $0, 1, 0, q; }}"
        return self.ptx(text, INT, condition, changes=True)

    def warp_barrier(self) -> None:
        """The lanes of the warp wait for each other, and see what the others have stored."""
        self.ptx(f"bar.warp.sync {ALL_LANES};", NOTHING, changes=True)

    def from_lane(self, x: Value, lane: Value) -> Value:
        """What another lane of the warp holds, whose number each lane gives."""
        kind, shuffle = x.register.type, "shfl.sync.idx.b32"
        if kind != LONG:
            return self.ptx(f"{shuffle} $0, $1, $2, 31, {ALL_LANES};", kind, x, lane, changes=True)
        halves = "".join(f"{shuffle} {half}, {half}, $2, 31, {ALL_LANES}; " for half in ("l", "h"))
        return self.ptx(f"{{ .reg .b32 l, h; mov.b64 {{l, h}}, $1; {halves}mov.b64 $0, {{l, h}}; }}", LONG, x, lane, changes=True)

    def first_lane(self, x: Value) -> Value:
        """The integer of the warp's first lane."""
        return self.ptx(f"shfl.sync.idx.b32 $0, $1, 0, 31, {ALL_LANES};", INT, x, changes=True)

    def shuffled(self, x: Value, distance: int) -> Value:
        """The value of the lane whose number differs in these bits."""
        return self.ptx(f"shfl.sync.bfly.b32 $0, $1, {distance}, 31, {ALL_LANES};", FLOAT, x, changes=True)

    # Memory
    def load(self, address: Value, dtype: str, valid: Value) -> Value:
        """A number from global memory as float32, 0 where not valid; of ``int8`` as int32."""
        width, make = _LOADS[dtype]
        text = f"{{ .reg .pred p; .reg .b32 t; setp.ne.b32 p, $2, 0; mov.b32 t, 0; {width} mov.b32 $0, t; }}"
        return make(self, self.ptx(text, INT, address, valid, changes=True))

    def store(self, address: Value, bits: Value, width: int, valid: Value) -> None:
        """The lower bytes of 32 bits to global memory, where valid."""
        texts = {2: "{ .reg .pred p; .reg .b16 l, h; setp.ne.b32 p, $2, 0; mov.b32 {l, h}, $1; @p st.global.b16 [$0], l; }"}
        text = texts.get(width, "{ .reg .pred p; setp.ne.b32 p, $2, 0; @p st.global.b32 [$0], $1; }")
        self.ptx(text, NOTHING, address, bits, valid, changes=True)

    def load_vector(self, address: Value, valid: Value) -> tuple[Value, ...]:
        """Four registers of bits from 16 bytes of global memory, 0 where not valid."""
        text = (
            "{ .reg .pred p; .reg .b32 a, b, c, d; setp.ne.b32 p, $5, 0; mov.b32 a, 0; mov.b32 b, 0; mov.b32 c, 0; mov.b32 d, 0; "
            "@p ld.global.v4.b32 {a, b, c, d}, [$4]; mov.b32 $0, a; mov.b32 $1, b; mov.b32 $2, c; mov.b32 $3, d; }"
        )
        return self.ptx(text, INT, address, valid, changes=True, count=4)

    def store_vector(self, address: Value, bits: Sequence[Value], valid: Value) -> None:
        """Four registers to 16 bytes of global memory, where valid."""
        text = "{ .reg .pred p; setp.ne.b32 p, $5, 0; @p st.global.v4.b32 [$0], {$1, $2, $3, $4}; }"
        self.ptx(text, NOTHING, address, *bits, valid, changes=True)

    def copy_async(self, to: Value, address: Value, size: Value, wanted: Value | None = None, width: int = 16) -> None:
        """16 or 4 bytes from global to shared memory, the last of them zeros where `size` is smaller; nothing at all where not wanted."""
        copy = f"cp.async.{'cg' if width == 16 else 'ca'}.shared.global [$0], [$1], {width}, $2;"
        if wanted is None:
            self.ptx(copy, NOTHING, to, address, size, changes=True)
        else:
            text = f"{{ .reg .pred p; setp.ne.b32 p, $3, 0; @p {copy} }}"
            self.ptx(text, NOTHING, to, address, size, wanted, changes=True)

    def commit(self) -> None:
        """Copies since the last one are a group."""
        self.ptx("cp.async.commit_group;", NOTHING, changes=True)

    def wait(self, running: int) -> None:
        """Until at most so many of this thread's groups are under way."""
        self.ptx(f"cp.async.wait_group {running};", NOTHING, changes=True)

    def load_shared(self, address: Value, count: int = 1) -> Any:
        """One, two or four registers of bits."""
        if count == 1:
            return self.ptx("ld.shared.b32 $0, [$1];", INT, address, changes=True)
        results = ", ".join(f"${i}" for i in range(count))
        return self.ptx(f"ld.shared.v{count}.b32 {{{results}}}, [${count}];", INT, address, changes=True, count=count)

    def store_shared(self, address: Value, bits: Sequence[Value], valid: Value) -> None:
        """One, two or four registers, where valid."""
        count, how = len(bits), "" if len(bits) == 1 else f".v{len(bits)}"
        given = ", ".join(f"${i + 1}" for i in range(count))
        text = f"{{ .reg .pred p; setp.ne.b32 p, ${count + 1}, 0; @p st.shared{how}.b32 [$0], {{{given}}}; }}"
        self.ptx(text, NOTHING, address, *bits, valid, changes=True)

    def load_matrices(self, address: Value, *, transposed: bool) -> tuple[Value, ...]:
        """Four matrices of 8 by 8 numbers of 16 bits (ldmatrix); lane 8 i + j gives the address of row j of matrix i."""
        how = ".trans" if transposed else ""
        text = f"ldmatrix.sync.aligned.m8n8.x4{how}.shared.b16 {{$0, $1, $2, $3}}, [$4];"
        return self.ptx(text, INT, address, changes=True, count=4)

    # Products
    def product(self, dtype: str, sums: Sequence[Value], a: Sequence[Value], b: Sequence[Value]) -> tuple[Value, ...]:
        """``sums + a @ b`` of 16 by 8 numbers in float32 (mma); 16 deep, or 8 of float32 in TF32."""
        shape, short = ("m16n8k8", "tf32") if dtype == "float32" else ("m16n8k16", _SHORT[dtype])
        text = f"mma.sync.aligned.{shape}.row.col.f32.{short}.{short}.f32 {{$0, $1, $2, $3}}, {{$8, $9, $10, $11}}, {{$12, $13}}, {{$4, $5, $6, $7}};"
        return self.ptx(text, FLOAT, *sums, *a, *b, count=4)


_SHORT = {"bfloat16": "bf16", "float16": "f16"}


def _of_half(dtype: str, machine: Machine, bits: Value) -> Value:
    return machine.widened(bits, dtype)


_LOADS: dict[str, tuple[str, Callable[[Machine, Value], Value]]] = {
    "float32": ("@p ld.global.b32 t, [$1];", Machine.float_of),
    "int32": ("@p ld.global.b32 t, [$1];", lambda machine, bits: bits),
    "int8": ("@p ld.global.u8 t, [$1];", lambda machine, bits: bits),
    "bfloat16": ("@p ld.global.u16 t, [$1];", partial(_of_half, "bfloat16")),
    "float16": ("@p ld.global.u16 t, [$1];", partial(_of_half, "float16")),
    "float8_e4m3fn": ("@p ld.global.u8 t, [$1];", lambda machine, bits: machine.widened_eight(bits)),
}


class Compiled:
    """What a kernel's builder calls to get functions that compile."""

    @staticmethod
    def function(source: Callable[..., Any]) -> Any:
        """A Python function that kernels may call."""
        return cuda.jit(source, device=True, forceinline=True)

    def __call__(self, operation: Operation) -> Any:
        """An operation as a function that kernels may call."""
        return _intrinsic(operation)


def _intrinsic(operation: Operation) -> Any:
    takes, gives = tuple(map(_of_numba, operation.takes)), types.void if operation.gives is None else _of_numba(operation.gives)
    made = signature(gives, *takes)

    def code(context: Any, builder: Any, _: Any, given: Sequence[Any]) -> Any:
        machine = Machine(context, builder)
        values = [_values(machine, kind, x) for kind, x in zip(operation.takes, given, strict=True)]
        result = operation.run(machine, *values)
        if isinstance(operation.gives, Many):
            return context.make_tuple(builder, gives, [x.register for x in result])
        return context.get_dummy_value() if operation.gives is None else result.register

    def typed(*_: Any) -> Any:
        return made, code

    names = [f"x{i}" for i in range(len(takes))]
    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    vars(typed)["__signature__"] = inspect.Signature([inspect.Parameter(name, positional) for name in ("context", *names)])
    return intrinsic(typed)


def _of_numba(kind: Kind) -> Any:
    return types.UniTuple(OF_NUMBA[kind.kind], kind.count) if isinstance(kind, Many) else OF_NUMBA[kind]


def _values(machine: Machine, kind: Kind, x: Any) -> Any:
    if isinstance(kind, Many):
        return tuple(Value(machine, r) for r in cgutils.unpack_tuple(machine.builder, x, kind.count))
    return Value(machine, x)
