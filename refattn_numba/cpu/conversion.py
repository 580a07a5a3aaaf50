"""float16 and bfloat16 to float32 and back, on all cores and on any processor.

They come as their bits, in integers: NumPy alone has no bfloat16. Both ways keep infinities, NaN and subnormal numbers; the way back
rounds to nearest, ties to even.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np

from refattn._core import Array
from refattn_numba.cpu.call import empty
from refattn_numba.cpu.jit import compiled, kernel
from refattn_numba.cpu.sizes import smaller
from refattn_numba.cpu.threads import run

Bits = np.ndarray[Any, np.dtype[np.unsignedinteger[Any]]]

Function = TypeVar("Function", bound=Callable[..., Any])

OPERANDS = ("query", "key", "value")

BLOCK = 1 << 14  # numbers of one task


@compiled
def _shares(size: int, share: int, shares: int) -> tuple[int, int]:
    blocks = (size + BLOCK - 1) // BLOCK
    return share * blocks // shares * BLOCK, smaller(size, (share + 1) * blocks // shares * BLOCK)


@kernel
def widen_bfloat16(source: Bits, out: Bits, share: int, shares: int) -> None:
    """The bits of float32: those of bfloat16 and zeros."""
    first, end = _shares(source.size, share, shares)
    a, b = source[first:end], out[first:end]
    for i in range(a.size):
        b[i] = np.uint32(a[i]) << np.uint32(16)


@kernel
def narrow_bfloat16(source: Bits, out: Bits, share: int, shares: int) -> None:
    """Rounded in integers: half a unit less one is added, and one more where the last bit that stays is 1."""
    first, end = _shares(source.size, share, shares)
    a, b = source[first:end], out[first:end]
    for i in range(a.size):
        x = a[i]
        rounded = (x + np.uint32(0x7FFF) + ((x >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        quiet = (x >> np.uint32(16)) | np.uint32(0x40)
        b[i] = np.uint16(quiet if (x & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000) else rounded)


@kernel
def widen_float16(source: Bits, out: Bits, share: int, shares: int) -> None:
    """The exponent's bias is corrected by a product, which makes subnormal numbers normal too."""
    first, end = _shares(source.size, share, shares)
    a, b = source[first:end], out[first:end]
    for i in range(a.size):
        x = np.uint32(a[i])
        size = np.uint32((x & np.uint32(0x7FFF)) << np.uint32(13))
        number = np.float32(np.uint32(size).view(np.float32) * np.float32(2.0**112)).view(np.uint32)
        infinite = size | np.uint32(0x7F800000)
        b[i] = (infinite if size >= np.uint32(0x0F800000) else number) | ((x & np.uint32(0x8000)) << np.uint32(16))


@kernel
def narrow_float16(source: Bits, out: Bits, share: int, shares: int) -> None:
    """As for bfloat16 where the result is normal; else a sum with 0.5 rounds, whose last bit is worth the smallest number."""
    first, end = _shares(source.size, share, shares)
    a, b = source[first:end], out[first:end]
    for i in range(a.size):
        x = a[i]
        size = np.uint32(x & np.uint32(0x7FFFFFFF))
        normal = (size - np.uint32(112 << 23) + np.uint32(0xFFF) + ((size >> np.uint32(13)) & np.uint32(1))) >> np.uint32(13)
        tiny = np.float32(np.uint32(size).view(np.float32) + np.float32(0.5)).view(np.uint32) - np.uint32(126 << 23)
        kept = tiny if size < np.uint32(113 << 23) else normal
        large = np.uint32(0x7E00) if size > np.uint32(0x7F800000) else np.uint32(0x7C00)
        b[i] = np.uint16((large if size >= np.uint32(143 << 23) else kept) | ((x >> np.uint32(16)) & np.uint32(0x8000)))


class Storage(NamedTuple):
    """Kernels to float32 and back."""

    widen: Callable[..., None]
    narrow: Callable[..., None]


STORED = {"uint16": Storage(widen_bfloat16, narrow_bfloat16), "float16": Storage(widen_float16, narrow_float16)}
"""By the names of NumPy's types; bfloat16 comes as uint16."""


def widened(x: np.ndarray[Any, Any]) -> Array:
    """Numbers of 16 bits as float32."""
    given = np.require(x, requirements=("C", "A"))
    made = empty(x.shape, np.float32)
    _convert(STORED[x.dtype.name].widen, given.view(np.uint16), made.view(np.uint32))
    return made


def narrowed(x: Array, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """float32 as numbers of 16 bits."""
    given = np.require(x, np.float32, ("C", "A"))
    made = empty(x.shape, dtype)
    _convert(STORED[dtype.name].narrow, given.view(np.uint32), made.view(np.uint16))
    return made


def _convert(convert: Callable[..., None], source: Bits, out: Bits) -> None:
    given = source.reshape(-1).view()
    given.flags.writeable = False  # one type, whether or not the caller's may be written
    run(convert, given, out.reshape(-1), tasks=-(-out.size // BLOCK), cost=out.size)


def never(**_: Any) -> bool:
    """For no arguments."""
    return False


def in_single(attend: Function, *, but_for: Callable[..., bool] = never) -> Function:
    """The same function for numbers of 16 bits, which are computed in float32; the log-sum-exp stays so.

    `but_for` says of arguments by name whether the function takes queries, keys and values as they are stored.
    """

    @functools.wraps(attend)
    def attend_single(*args: Any, **kwargs: Any) -> Any:
        given = dict(zip(OPERANDS, args, strict=False)) | kwargs
        dtype = given["query"].dtype
        if dtype.itemsize != 2:
            return attend(**given)
        kept = OPERANDS if but_for(**given) else ()

        def single(x: Any) -> Any:
            return widened(x) if isinstance(x, np.ndarray) and x.dtype == dtype else x

        def narrow(x: Any) -> Any:
            return x if x is None or x.dtype == dtype else narrowed(x, dtype)

        attended, pullback = attend(**{name: x if name in kept else single(x) for name, x in given.items()})

        def narrow_pullback(d_output: Array | None, d_lse: Array | None) -> dict[str, Array | None]:
            return {name: narrow(g) for name, g in pullback(d_output if kept else single(d_output), d_lse).items()}

        return attended._replace(output=narrow(attended.output)), narrow_pullback

    return cast("Function", attend_single)
