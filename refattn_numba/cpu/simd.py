"""Vector registers as values in compiled code.

In a kernel, ``load(p, i)`` is a `Vector`: as many elements as a register holds (`lanes_of`), from ``p[i]`` on, where p is a
pointer (`pointer_to`, ``p + n``). ``+ - * /`` work lane by lane, and a comparison makes a `Lanes`, one bit for each, for
`select`::

    x = load(logits, i)
    store(weights, i, select(x < low, zero, exp(x - load(largest, r))))

Nothing is checked: the caller sees to it that all lanes lie within an array. All of it is plain LLVM, lowered to whatever the
processor has; only `multiply_add` asks the table (`instructions`), since LLVM calls a slow C function where there is no such
instruction.

`strip` is the one long piece of LLVM: the sums of a matrix product, which stay in registers.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, TypeAlias, cast

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import models
from numba.core.datamodel.registry import register_default
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic

from refattn_numba.cpu.instructions import HOST

Builder: TypeAlias = Any  # LLVM's values know their types only when they run
Value: TypeAlias = Any

I1, I16, I32, I64 = ir.IntType(1), ir.IntType(16), ir.IntType(32), ir.IntType(64)

TILE_BYTES = 256  # one line of a tile: 64 queries in float32


class Vector(types.Type):
    """One register of floating-point numbers; those of bfloat16 are in float32."""

    def __init__(self, element: Any) -> None:
        self.element: types.Float = types.float32 if element == types.uint16 else element
        self.lanes = HOST.register_bytes * 8 // self.element.bitwidth
        super().__init__(f"vector of {self.lanes} {self.element}")

    @property
    def ir(self) -> ir.VectorType:
        """LLVM's type."""
        return ir.VectorType(ir.FloatType() if self.element.bitwidth == 32 else ir.DoubleType(), self.lanes)

    @property
    def bits(self) -> ir.VectorType:
        """Integers as wide as the elements."""
        return ir.VectorType(ir.IntType(self.element.bitwidth), self.lanes)


class Lanes(types.Type):
    """One bit for each lane."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        super().__init__(f"bits of {lanes} lanes")


@register_default(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, of: Vector) -> None:
        super().__init__(manager, of, of.ir)


@register_default(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, of: Lanes) -> None:
        super().__init__(manager, of, ir.VectorType(I1, of.lanes))


def instruction(build: Callable[..., Any]) -> Callable[..., Any]:
    """What compiled code may call: a function from the arguments' types to the result's, and to the LLVM that computes it."""
    return cast("Callable[..., Any]", intrinsic(build))


def constant(vector: ir.VectorType, number: Any) -> ir.Constant:
    """The same number in all lanes."""
    return ir.Constant(vector, [number] * vector.count)


def splat(builder: Builder, vector: ir.VectorType, number: Value) -> Value:
    """The same value in all lanes."""
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, number, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, undefined, constant(ir.VectorType(I32, vector.count), 0))


def call_llvm(builder: Builder, name: str, result: ir.Type, *arguments: Value) -> Value:
    """Call an LLVM intrinsic."""
    of = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, of, name), arguments)


def fused(builder: Builder, a: Value, b: Value, c: Value) -> Value:
    """``a * b + c``, rounded once where the processor can."""
    if not HOST.has_fma:
        return builder.fadd(builder.fmul(a, b), c)
    element = "f32" if isinstance(c.type.element, ir.FloatType) else "f64"
    return call_llvm(builder, f"llvm.fma.v{c.type.count}{element}", c.type, a, b, c)


def load_from(builder: Builder, address: Value, vector: ir.VectorType, size: int) -> Value:
    """A register from any address of an element."""
    return builder.load(builder.bitcast(address, vector.as_pointer()), align=size)


def store_to(builder: Builder, value: Value, address: Value, size: int) -> None:
    """Likewise."""
    builder.store(value, builder.bitcast(address, value.type.as_pointer()), align=size)


def store_past_caches(builder: Builder, value: Value, address: Value) -> None:
    """To an address that is a multiple of the register's size; its cache line is not read before."""
    made = builder.store(value, builder.bitcast(address, value.type.as_pointer()), align=HOST.register_bytes)
    made.set_metadata("nontemporal", builder.module.add_metadata([I32(1)]))


def _size(pointer: Any) -> int:
    return pointer.dtype.bitwidth // 8


def bfloat16_of(builder: Builder, *numbers: Value) -> Value:
    """One register of float32, rounded, or two: the first one's numbers and then the other's. The bits, in integers.

    LLVM's own type has come into what these instructions take, but it still reads them as they were.
    """
    count = sum(x.type.count for x in numbers)
    name = f"llvm.x86.avx512bf16.cvtne{'2' * (len(numbers) - 1)}ps2bf16.{8 * HOST.register_bytes}"
    return call_llvm(builder, name, ir.VectorType(I16, count), *reversed(numbers))


def couple_dot(builder: Builder, a: Value, b: Value, sums: Value) -> Value:
    """To each sum the two products of a couple of bfloat16, of which one stands in the bits of each float32 of a and b."""
    words = ir.VectorType(I32, sums.type.count)
    name = f"llvm.x86.avx512bf16.dpbf16ps.{8 * HOST.register_bytes}"
    return call_llvm(builder, name, sums.type, sums, builder.bitcast(a, words), builder.bitcast(b, words))


@instruction
def pointer_to(typing: Any, address: Any, like: Any) -> Any:
    """A pointer to elements like those of an array or pointer."""
    made = types.CPointer(like.dtype)

    def build(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
        return builder.inttoptr(args[0], context.get_value_type(made))

    return made(types.int64, like), build


def _pointers_to(element: Any) -> Callable[..., Any]:
    """A pointer to elements of one type, from an address."""

    @instruction
    def pointer_at(typing: Any, address: Any) -> Any:
        made = types.CPointer(element)
        return made(types.int64), lambda context, builder, sig, args: builder.inttoptr(args[0], context.get_value_type(made))

    return pointer_at


bytes_at = _pointers_to(types.uint8)
"""To booleans."""
signed_bytes_at, halves_at = _pointers_to(types.int8), _pointers_to(types.uint16)
"""To 8-bit integers, and to the bits of bfloat16."""
integers_at = _pointers_to(types.int64)
"""To 64-bit integers."""
codes_at = _pointers_to(types.uint32)
"""To couples of bfloat16, as integers of 32 bits."""


@instruction
def accumulators(typing: Any, address: Any, like: Any) -> Any:
    """A pointer to numbers in which sums of what an array or pointer has are made: float32 for bfloat16."""
    made = types.CPointer(types.float32 if like.dtype == types.uint16 else like.dtype)
    return made(types.int64, like), lambda context, builder, sig, args: builder.inttoptr(args[0], context.get_value_type(made))


@instruction
def load(typing: Any, p: Any, i: Any) -> Any:
    """As many elements as a register holds."""
    made = Vector(p.dtype)

    def build(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
        address = builder.gep(args[0], [args[1]])
        if p.dtype != types.uint16:
            return load_from(builder, address, made.ir, _size(p))
        halves = load_from(builder, address, ir.VectorType(I16, made.lanes), 2)
        return builder.bitcast(builder.shl(builder.zext(halves, made.bits), constant(made.bits, 16)), made.ir)

    return made(p, types.intp), build


@instruction
def store(typing: Any, p: Any, i: Any, vector: Any) -> Any:
    """Write all lanes."""

    def build(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
        numbers = bfloat16_of(builder, args[2]) if p.dtype == types.uint16 else args[2]
        store_to(builder, numbers, builder.gep(args[0], [args[1]]), _size(p))
        return context.get_dummy_value()

    return types.void(p, types.intp, vector), build


@instruction
def get(typing: Any, p: Any, i: Any) -> Any:
    """One number; of bfloat16 as float32."""
    made = types.float32 if p.dtype == types.uint16 else p.dtype

    def build(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
        number = builder.load(builder.gep(args[0], [args[1]]))
        return number if made == p.dtype else builder.bitcast(builder.shl(builder.zext(number, I32), I32(16)), ir.FloatType())

    return made(p, types.intp), build


@instruction
def put(typing: Any, p: Any, i: Any, number: Any) -> Any:
    """Write one number, rounded to what p points to."""
    kind = types.float32 if p.dtype == types.uint16 else p.dtype

    def build(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
        address, given = builder.gep(args[0], [args[1]]), context.cast(builder, args[2], number, kind)
        if kind != p.dtype:
            given = builder.extract_element(bfloat16_of(builder, splat(builder, Vector(kind).ir, given)), I32(0))
        builder.store(given, address)
        return context.get_dummy_value()

    return types.void(p, types.intp, number), build


@instruction
def filled(typing: Any, like: Any, number: Any) -> Any:
    """A number in all lanes, in the precision of what a pointer points to."""
    made = Vector(like.dtype)

    def build(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
        return splat(builder, made.ir, context.cast(builder, args[1], sig.args[1], made.element))

    return made(like, number), build


@instruction
def lanes_of(typing: Any, like: Any) -> Any:
    """How many elements a register holds."""
    return types.intp(like), lambda context, builder, sig, args: I64(Vector(like.dtype).lanes)


@instruction
def tile_of(typing: Any, like: Any) -> Any:
    """How many elements make `TILE_BYTES`."""
    return types.intp(like), lambda context, builder, sig, args: I64(TILE_BYTES // _size(like))


@instruction
def multiply_add(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """``a * b + c``."""
    return c(c, c, c), lambda context, builder, sig, args: fused(builder, *args)


@instruction
def select(typing: Any, lanes: Any, yes: Any, no: Any) -> Any:
    """The first where the bit is set, else the second."""
    return yes(lanes, yes, yes), lambda context, builder, sig, args: builder.select(*args)


@instruction
def maximum(typing: Any, a: Any, b: Any) -> Any:
    """The larger; b where a is NaN."""
    return a(a, a), lambda context, builder, sig, args: builder.select(builder.fcmp_ordered(">", *args), *args)


@instruction
def between(typing: Any, like: Any, first: Any, last: Any) -> Any:
    """The lanes with ``first <= lane <= last``; both fit 32 bits."""
    made, numbers = Lanes(like.lanes), ir.VectorType(I32, like.lanes)

    def build(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
        lane = ir.Constant(numbers, list(range(like.lanes)))
        low, high = (splat(builder, numbers, builder.trunc(a, I32)) for a in args[1:])
        return builder.and_(builder.icmp_signed(">=", lane, low), builder.icmp_signed("<=", lane, high))

    return made(like, types.intp, types.intp), build


def _halved(builder: Builder, value: Value, join: Callable[[Value, Value], Value]) -> Value:
    """One number from all lanes, pairwise."""
    lanes = value.type.count
    while lanes > 1:
        lanes //= 2
        parts = (ir.Constant(ir.VectorType(I32, lanes), [*range(start, start + lanes)]) for start in (0, lanes))
        value = join(*[builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), part) for part in parts])
    return builder.extract_element(value, I32(0))


@instruction
def total_of(typing: Any, vector: Any) -> Any:
    """The sum of all lanes, pairwise."""
    return vector.element(vector), lambda context, builder, sig, args: _halved(builder, args[0], builder.fadd)


@instruction
def largest_of(typing: Any, vector: Any) -> Any:
    """The largest lane; NaN may be passed over."""

    def build(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
        return _halved(builder, args[0], lambda a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b))

    return vector.element(vector), build


@instruction
def transpose(typing: Any, source: Any, step: Any, out: Any, out_step: Any) -> Any:
    """``out[i * out_step + j] = source[j * step + i]`` for as many i and j as a register has lanes; source may hold booleans."""
    made = Vector(out.dtype)

    def build(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
        lanes, order = made.lanes, ir.VectorType(I32, made.lanes)
        rows = []
        for j in range(lanes):
            address = builder.gep(args[0], [builder.mul(args[1], I64(j))])
            if isinstance(source.dtype, types.Float):
                rows.append(load_from(builder, address, made.ir, _size(source)))
            else:
                rows.append(builder.uitofp(load_from(builder, address, ir.VectorType(ir.IntType(8), lanes), 1), made.ir))
        half = lanes // 2
        while half:  # exchange the off-diagonal quarters of all squares of 2 * half
            for i in (i for i in range(lanes) if not i & half):
                top, bottom = rows[i], rows[i + half]
                low = [lane + lanes - half if lane & half else lane for lane in range(lanes)]
                high = [lane + lanes if lane & half else lane + half for lane in range(lanes)]
                rows[i], rows[i + half] = (builder.shuffle_vector(top, bottom, ir.Constant(order, m)) for m in (low, high))
            half //= 2
        for i in range(lanes):
            store_to(builder, rows[i], builder.gep(args[2], [builder.mul(args[3], I64(i))]), _size(out))
        return context.get_dummy_value()

    return types.void(source, types.intp, out, types.intp), build


def fetch_line(builder: Builder, place: Value, to_write: bool = False, cache: int = 1) -> None:
    """Begin to read a cache line, which need not exist, to read it again or to write, into the first or second cache."""
    place = builder.bitcast(place, ir.IntType(8).as_pointer())
    of = ir.FunctionType(ir.VoidType(), [place.type, I32, I32, I32])
    builder.call(
        cgutils.get_or_insert_function(builder.module, of, "llvm.prefetch.p0"), [place, I32(int(to_write)), I32(4 - cache), I32(1)]
    )


@instruction
def prefetch(typing: Any, p: Any, i: Any) -> Any:
    """Begin to read the cache line of ``p[i]``, which need not exist."""

    def build(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
        fetch_line(builder, builder.gep(args[0], [args[1]]))
        return context.get_dummy_value()

    return types.void(p, types.intp), build


@instruction
def prefetch_to_write(typing: Any, p: Any, i: Any) -> Any:
    """Likewise, where it is to be written."""

    def build(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
        fetch_line(builder, builder.gep(args[0], [args[1]]), to_write=True)
        return context.get_dummy_value()

    return types.void(p, types.intp), build


@instruction
def next_of(typing: Any, counters: Any, i: Any) -> Any:
    """What ``counters[i]`` was before one was added, by all threads in turn."""

    def build(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
        place = builder.gep(context.make_array(sig.args[0])(context, builder, args[0]).data, [args[1]])
        return builder.atomic_rmw("add", place, I64(1), "monotonic")

    return types.int64(counters, types.intp), build


def _by_lane(symbol: Callable[..., Any], instruction: str, makes: Callable[[Vector], types.Type], *given: Any) -> None:
    """Let a Python operator take vectors."""

    class Typed(AbstractTemplate):
        key = symbol

        def generic(self, args: Any, kws: Any) -> Any:
            if len(args) == 2 and isinstance(args[0], Vector) and args[0] == args[1]:
                return signature(makes(args[0]), *args)
            return None

    def build(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
        return getattr(builder, instruction)(*given, *args)

    cast(Any, infer_global)(symbol)(Typed)
    lower_builtin(symbol, Vector, Vector)(build)


for _symbol, _instruction in ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul"), (operator.truediv, "fdiv")):
    _by_lane(_symbol, _instruction, lambda vector: vector)
for _symbol, _name in ((operator.lt, "<"), (operator.eq, "==")):
    _by_lane(_symbol, "fcmp_ordered", lambda vector: Lanes(vector.lanes), _name)


@cast(Any, infer_global)(operator.add)
class _PointerPlus(AbstractTemplate):
    def generic(self, args: Any, kws: Any) -> Any:
        if len(args) == 2 and isinstance(args[0], types.CPointer) and isinstance(args[1], types.Integer):
            return signature(args[0], args[0], types.intp)
        return None


@lower_builtin(operator.add, types.CPointer, types.intp)
def _pointer_plus(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
    return builder.gep(args[0], [args[1]])
