"""Ask for memory before it is read: caches that are read once are far apart, and the processor looks ahead by a page at most."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LINE = 64  # bytes that arrive together


def _prefetch(typing: Any, array: Any, index: Any) -> Any:
    if not isinstance(array, types.Array):
        raise TypeError(f"prefetch takes an array, not {array}")

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        address = builder.bitcast(builder.gep(data, [arguments[1]]), byte)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [address, number(0), number(3), number(1)])  # to read, keep near, data
        return context.get_dummy_value()

    return types.void(array, types.intp), build


prefetch: Any = intrinsic(_prefetch)
"""``prefetch(array, index)`` brings the line of an element near, to be read; an element outside the array is no error."""
