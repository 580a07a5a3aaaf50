"""What convolution is in other hands: flipped kernels, sides of padding, orders of groups and of weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import numpy as np

from refattn._core import Array
from refattn.convolution.rule import border, pairs_of, per_axis
from refattn.primitives.padding import PaddingMode
from refattn.testing.explaining.alternative import (
    Alternative,
    Arguments,
    Change,
    Map,
    Named,
    family,
    flipped,
    given,
    gradient_of,
    into,
    out_of,
    reordered,
    reread,
    swapped,
)

MODES = get_args(PaddingMode)


def _spatial(a: Arguments) -> int:
    return a["x"].ndim - 2


def _flip(axes: Callable[[int], tuple[int, ...]]) -> Change:
    """The kernel in reverse order along some of its spatial axes, which are counted from the last."""

    def maps(a: Arguments) -> dict[str, Map] | None:
        chosen = tuple(i for i in axes(_spatial(a)) if -i <= _spatial(a))
        return {"weight": flipped(chosen)} if chosen else None

    return into(maps)


def _pairs(a: Arguments) -> tuple[tuple[int, int], ...]:
    """Padding before and after each axis, as the call has it."""
    n, size, kernel = _spatial(a), a["x"].shape[2:], a["weight"].shape[2:]
    if "output_padding" in a or isinstance(a.get("padding", 0), (int, tuple)):
        return pairs_of(a.get("padding", 0), n)
    steps, gaps = (per_axis(name, a.get(name, 1), n) for name in ("stride", "dilation"))
    return border(a.get("padding", 0), size, kernel, steps, gaps)


def _padded(change: Callable[[Arguments, tuple[tuple[int, int], ...]], Any]) -> Change:
    def changed(a: Arguments) -> dict[str, Any] | None:
        pairs = _pairs(a)
        made = change(a, pairs)
        return None if made is None or made == pairs else {"padding": made}

    return given(changed)


def _of_stride_1(a: Arguments, pairs: Any) -> Any:
    """What "same" adds where no stride is taken into account: for the whole reach of the kernel."""
    if a.get("padding") != "same":
        return None
    n = _spatial(a)
    return border("same", a["x"].shape[2:], a["weight"].shape[2:], (1,) * n, per_axis("dilation", a.get("dilation", 1), n))


def _reversed_axes(name: str) -> Change:
    """The numbers of the axes in reverse order."""
    return given(lambda a: {name: a[name][::-1]} if isinstance(a.get(name), tuple) and a[name] != a[name][::-1] else None)


def _stride_and_dilation(a: Arguments) -> dict[str, Any] | None:
    stride, dilation = a.get("stride", 1), a.get("dilation", 1)
    return None if stride == dilation else {"stride": dilation, "dilation": stride}


def _interleaved(length: int, groups: int) -> Any:
    """Channel g of group c where channel c of group g stood."""
    return np.arange(length).reshape(groups, -1).T.ravel()


def _input_groups(a: Arguments) -> dict[str, Map] | None:
    groups = a.get("groups", 1)
    return {"x": reordered(_interleaved(a["x"].shape[1], a["x"].shape[1] // groups), 1)} if groups > 1 else None


def _output_groups(a: Arguments) -> dict[str, Map] | None:
    groups = a.get("groups", 1)
    if groups < 2:
        return None

    def back(d: Array) -> Array:
        return np.take(d, np.argsort(_interleaved(d.shape[1], groups)), 1)

    return {"output": Map(lambda x: np.take(x, _interleaved(x.shape[1], groups), 1), back)}


def _weight_groups(a: Arguments) -> dict[str, Map] | None:
    groups = a.get("groups", 1)
    return {"weight": reordered(_interleaved(a["weight"].shape[0], groups), 0)} if groups > 1 else None


def _weights(first: int, second: int) -> Change:
    """Two axes of the kernel swapped, where they have one size."""
    return into(
        lambda a: (
            {"weight": swapped(first, second)}
            if a["weight"].ndim > max(first, second) and a["weight"].shape[first] == a["weight"].shape[second] > 1
            else None
        )
    )


def _weight_memory(order: Callable[[int], tuple[int, ...]]) -> Change:
    """The memory of the kernel read with its axes in another order; `order` says which of ours each of theirs is."""

    def maps(a: Arguments) -> dict[str, Map]:
        shape, axes = a["weight"].shape, order(a["weight"].ndim)
        return {"weight": reread(tuple(shape[i] for i in axes), tuple(np.argsort(axes)))}

    return into(maps)


def _x_memory(a: Arguments) -> dict[str, Map]:
    shape = a["x"].shape
    return {"x": reread((shape[0], *shape[2:], shape[1]), (0, a["x"].ndim - 1, *range(1, a["x"].ndim - 1)))}


def _flipped_gradient(a: Arguments, g: Named) -> Named:
    return {"weight": np.flip(g["weight"], tuple(range(2, g["weight"].ndim)))} if "weight" in g else {}


CONVOLUTION: tuple[Alternative, ...] = (
    *family(
        "flip",
        [
            ("the kernel is flipped: a true convolution, not a cross-correlation", _flip(lambda n: tuple(range(-n, 0)))),
            ("the kernel is flipped along its last axis alone", _flip(lambda n: (-1,) if n > 1 else ())),
            ("the kernel is flipped along its last axis but one alone", _flip(lambda n: (-2,) if n > 1 else ())),
        ],
    ),
    *family(
        "padding",
        [
            (
                "the padding of the two sides is swapped: an odd number puts the extra one before",
                _padded(lambda a, p: tuple(pair[::-1] for pair in p)),
            ),
            ("the padding is missing", _padded(lambda a, p: 0 if any(map(any, p)) else None)),
            ("all of the padding stands before", _padded(lambda a, p: tuple((before + after, 0) for before, after in p))),
            ("all of the padding stands after", _padded(lambda a, p: tuple((0, before + after) for before, after in p))),
            ("the padding of the axes is swapped", _padded(lambda a, p: p[::-1] if len(p) > 1 else None)),
            ('"same" padding does not take the stride into account', _padded(_of_stride_1)),
        ],
    ),
    *family(
        "padding_mode",
        [
            (
                f"the padding holds {mode}",
                given(lambda a, m=mode: {"padding_mode": m} if any(map(any, _pairs(a))) and m != a.get("padding_mode", "zeros") else None),
            )
            for mode in MODES
        ],
    ),
    *family(
        "stride",
        [
            ("stride and dilation are swapped", given(_stride_and_dilation)),
            ("the strides of the axes are swapped", _reversed_axes("stride")),
            ("the stride is missing", given(lambda a: {"stride": 1} if a.get("stride", 1) != 1 else None)),
        ],
    ),
    *family(
        "dilation",
        [
            ("the dilations of the axes are swapped", _reversed_axes("dilation")),
            ("the dilation is missing", given(lambda a: {"dilation": 1} if a.get("dilation", 1) != 1 else None)),
        ],
    ),
    *family(
        "groups",
        [
            ("input channel c belongs to group c % groups", into(_input_groups)),
            ("output channel o belongs to group o % groups", out_of(_output_groups)),
            ("the kernels of the groups are interleaved", into(_weight_groups)),
        ],
    ),
    *family(
        "weight",
        [
            ("the kernel's first two axes, of its channels, are swapped (IOHW for OIHW)", _weights(0, 1)),
            ("the kernel's height and width are swapped", _weights(2, 3)),
            ("memory of the kernel is read as (height, width, input, output) (HWIO)", _weight_memory(lambda n: (*range(2, n), 1, 0))),
            ("memory of the kernel is read as (input, output, height, width) (IOHW)", _weight_memory(lambda n: (1, 0, *range(2, n)))),
            ("memory of the kernel is read as (output, height, width, input) (OHWI)", _weight_memory(lambda n: (0, *range(2, n), 1))),
        ],
    ),
    *family(
        "layout",
        [
            ("the output's last two axes are swapped", out_of(lambda a: {"output": swapped(-1, -2)} if _spatial(a) > 1 else None)),
            (
                "the output has its channels last",
                out_of(lambda a: {"output": Map(lambda x: np.moveaxis(x, 1, -1), lambda d: np.moveaxis(d, -1, 1))}),
            ),
            ("memory of the input is read with its channels last", into(_x_memory)),
        ],
    ),
    *family("bias", [("the bias is missing", given(lambda a: None if a.get("bias") is None else {"bias": None}))]),
    *family(
        "output_padding",
        [("the output padding is missing", given(lambda a: {"output_padding": 0} if a.get("output_padding") else None))],
    ),
)

CONVOLUTION_GRADIENTS: tuple[Alternative, ...] = family(
    "gradient flip", [("the gradient of the kernel is flipped", gradient_of(_flipped_gradient))]
)
