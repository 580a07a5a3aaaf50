"""The attention inside a call: the weights of every softmax and the gates of every gate, as named arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, ParamSpec, TypeAlias, TypeVar

import refattn
from refattn._core import Array, Mechanism
from refattn._core.hook import Result, hooked
from refattn.primitives.resize import resize_bilinear, resize_nearest

P = ParamSpec("P")
Y = TypeVar("Y")
Kind: TypeAlias = Literal["weights", "gate"]
Size: TypeAlias = tuple[int, int]

SEPARATOR = " > "
UNNAMED = {"masked_softmax", "softmax", "segment_softmax", "mean_weights", "sigmoid"}  # titles name who called these
ADDING = "residual_attention"  # multiplies by 1 plus its gate
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh", "twelfth")
SPELLED = {
    "transformer": "Transformer",
    "cbam": "CBAM",
    "dot product": "dot-product",
    "self attention": "self-attention",
    "multi head": "multi-head",
    "non local": "non-local",
    "squeeze excitation": "squeeze-and-excitation",
    "space time": "space-time",
    "spatial temporal": "spatial-temporal",
}


@dataclass(frozen=True, eq=False)
class AttentionMap:
    """What one mechanism attended to.

    Attributes
    ----------
    name : str
        The chain of mechanisms that ends in the one that made it, for example
        ``"transformer_encoder > transformer_encoder_layer[1] > multi_head_attention > scaled_dot_product_attention >
        masked_softmax"``; where a mechanism is called several times, which call it was, from 0.
    kind : {"weights", "gate"}
        Weights are shares of keys; a gate multiplies.
    array : array
        As the mechanism made it: weights have queries and keys last, a gate has the shape of what it multiplies, less the axes
        over which it is one number.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> name = "transformer_encoder > transformer_encoder_layer[1] > multi_head_attention > masked_softmax"
    >>> refattn.view.AttentionMap(name, "weights", np.ones((1, 4, 2, 2)) / 2).title
    'Second Transformer encoder layer: where each of its 4 heads looks'
    """

    name: str
    kind: Kind
    array: Array

    @property
    def chain(self) -> tuple[str, ...]:
        """The mechanisms that its name names."""
        return tuple(self.name.split(SEPARATOR))

    @property
    def heads(self) -> int:
        """How many heads the weights are of; 1 where no axis is one of heads."""
        has_heads = self.kind == "weights" and (
            self.array.ndim == 4 or (self.array.ndim == 3 and self.chain[-1].startswith("masked_softmax"))
        )
        return self.array.shape[-3] if has_heads else 1

    @property
    def adds(self) -> bool:
        """Whether the gate is added to 1, so that it takes nothing away."""
        return self.kind == "gate" and self.chain[-2:][0].partition("[")[0] == ADDING

    @property
    def title(self) -> str:
        """In plain words, which part of a model this is of, and what it says."""
        named = [c for c in self.chain if c.partition("[")[0] not in UNNAMED] or list(self.chain)
        place = ", ".join(map(_in_words, [c for c in named if c.endswith("]")] or named[:1]))
        if self.kind == "weights":
            says = f"where each of its {self.heads} heads looks" if self.heads > 1 else "where it looks"
        else:
            verb = "is added" if self.adds else "passes"
            says = f"how much of each channel {verb}" if self.array.ndim <= 2 else f"how much {verb} at each position"
        return f"{place[0].upper()}{place[1:]}: {says}" if place else says


def _in_words(call: str) -> str:
    """From ``transformer_encoder_layer[1]`` to ``second Transformer encoder layer``."""
    mechanism, _, index = call.rstrip("]").partition("[")
    words = mechanism.replace("_", " ")
    for ours, spelled in SPELLED.items():
        words = words.replace(ours, spelled)
    if not index.isdecimal():
        return words
    return f"{ORDINALS[int(index)]} {words}" if int(index) < len(ORDINALS) else f"{words} {int(index) + 1}"


@dataclass
class _Call:
    """One call of a mechanism that has attention in it."""

    path: tuple[str, ...]
    seen: int
    map: tuple[Kind, Array] | None
    inner: list[_Call] = field(default_factory=list)


def attention_maps(function: Callable[P, Y], *args: P.args, **kwargs: P.kwargs) -> tuple[Y, list[AttentionMap]]:
    """Call a function, and return with its output the attention of every mechanism in it.

    Weights are what mechanisms tagged "weights" return (`softmax`, `masked_softmax`, ...), before dropout. Gates are what a
    `sigmoid` returns that a mechanism tagged "gate" calls itself; a mask made without one is not found. What a pullback computes
    again is left out, and what runs in a twin is not seen.

    Parameters
    ----------
    function : callable
        A mechanism, its ``.vjp``, or any function that calls mechanisms.
    *args, **kwargs : Any
        Its arguments.

    Returns
    -------
    output : Any
        What the function returned.
    maps : list of AttentionMap
        In the order in which they were computed.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> query, key, value = np.zeros((1, 1, 4)), np.ones((1, 2, 4)), np.ones((1, 2, 3))
    >>> output, (weights,) = refattn.view.attention_maps(refattn.scaled_dot_product_attention, query, key, value)
    >>> weights.name, weights.array
    ('scaled_dot_product_attention > masked_softmax', array([[[0.5, 0.5]]]))
    """
    known = {m.__name__: m for m in refattn.mechanisms()}
    calls: list[_Call] = []

    def watch(result: Result) -> None:
        if result.kind == "output":
            _add(calls, result, known)
        elif result.kind == "gradient":
            _beneath(calls, result.path)

    with hooked(watch):
        output = function(*args, **kwargs)
    return output, _named(calls, "")


def _add(calls: list[_Call], result: Result, known: Mapping[str, Mechanism[..., Any]]) -> None:
    """Put an output to its call. A mechanism reports when it is done, so that its inner calls are the last ones of the list."""
    at = known[result.path[-1]].spec.output_names.index(result.name)
    if calls and calls[-1].path == result.path and at > calls[-1].seen:  # one more output of the same call
        calls[-1].seen = at
        return
    inner = _beneath(calls, result.path)
    kind = kind_of(result.path, at, known)
    if inner or kind:
        calls.append(_Call(result.path, at, (kind, result.value) if kind else None, inner))


def _beneath(calls: list[_Call], path: tuple[str, ...]) -> list[_Call]:
    """Take the last calls that were made within one of this path."""
    first = len(calls)
    while first and len(calls[first - 1].path) > len(path) and calls[first - 1].path[: len(path)] == path:
        first -= 1
    taken = calls[first:]
    del calls[first:]
    return taken


def kind_of(path: tuple[str, ...], output: int, known: Mapping[str, Mechanism[..., Any]]) -> Kind | None:
    """What an output of the last mechanism of a chain is; None where it is no attention."""
    if "weights" in known[path[-1]].spec.tags and output == 0:
        return "weights"
    if path[-1] == "sigmoid" and len(path) > 1 and "gate" in known[path[-2]].spec.tags:
        return "gate"
    return None


def _named(calls: list[_Call], before: str) -> list[AttentionMap]:
    """The maps of some calls, in order; calls of one mechanism are numbered."""
    found: list[AttentionMap] = []
    names = [call.path[-1] for call in calls]
    for i, call in enumerate(calls):
        own = f"{names[i]}[{names[:i].count(names[i])}]" if names.count(names[i]) > 1 else names[i]
        found += _named(call.inner, f"{before}{own}{SEPARATOR}")
        if call.map is not None:
            kind, array = call.map
            kept = array.copy()  # whoever called the mechanism may go on with its array in place
            kept.setflags(write=False)
            found.append(AttentionMap(f"{before}{own}", kind, kept))
    return found


def grid_of(count: int, size: Size) -> Size | None:
    """Height and width of so many positions that tile an image in equal squares, row by row; None where none do."""
    height, width = size
    if count <= 0 or (height * width) % count:
        return None
    side = math.isqrt(height * width // count)
    return None if side**2 * count != height * width or height % side or width % side else (height // side, width // side)


def upsampled(shown: AttentionMap, size: Size, *, grid: Size | None = None, method: Literal["nearest", "bilinear"] = "nearest") -> Array:
    """The map at the size of the image that was attended to.

    Parameters
    ----------
    shown : AttentionMap
        A gate for each position, shape (..., height, width), or weights of patches, shape (..., height * width).
    size : (int, int)
        Height and width of the image.
    grid : (int, int) or None, optional
        Rows and columns of the patches; None finds those that tile the image in squares.
    method : {"nearest", "bilinear"}, optional
        Whether an image's position takes its patch's number, or one between those of its neighbours.

    Returns
    -------
    array
        Shape (..., *size): weights keep the axis of queries.

    Raises
    ------
    ValueError
        For a gate that has no positions, or weights of something other than patches.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> weights = refattn.view.AttentionMap("softmax", "weights", np.array([[0.1, 0.2, 0.3, 0.4]]))
    >>> refattn.view.upsampled(weights, (2, 4), grid=(1, 4))
    array([[[0.1, 0.2, 0.3, 0.4],
            [0.1, 0.2, 0.3, 0.4]]])
    """
    array = shown.array
    if shown.kind == "weights":
        found = grid_of(array.shape[-1], size) if grid is None else grid
        if found is None or found[0] * found[1] != array.shape[-1]:
            raise ValueError(f"grid is {grid}, but {shown.name} has {array.shape[-1]} keys, and the image is {size[0]} by {size[1]}")
        array = array.reshape(*array.shape[:-1], *found)
    elif array.ndim < 4:
        raise ValueError(f"{shown.name} has shape {array.shape}: a gate for each channel has no positions")
    resize = {"nearest": resize_nearest, "bilinear": resize_bilinear}[method]
    return resize(array, output_size=size)
