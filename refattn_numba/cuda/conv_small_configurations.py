"""The kernels that convolutions have besides products of matrices: those of single channels, layouts, and what follows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeAlias, get_args

from refattn_numba.cuda.fragments import Element
from refattn_numba.cuda.kernel import Kernel, Parameters
from refattn_numba.cuda.kernels import conv_finish, conv_place, depthwise, depthwise_weight
from refattn_numba.cuda.vectors import vector_of

Face: TypeAlias = Literal[
    "depthwise_forward", "depthwise_input", "depthwise_weight",
    "conv_place", "conv_fold", "conv_finish", "conv_finish_back",
]  # fmt: skip

POSITIONS, SEGMENT = 4, 64


def _depthwise(element: Element, count: int, *, is_spread: bool) -> depthwise.Config:
    return depthwise.Config(element, count, POSITIONS, is_spread)


FACES: dict[Face, tuple[Callable[[Element, int], Any], Any, Parameters]] = {
    "depthwise_forward": (lambda e, n: _depthwise(e, n, is_spread=False), depthwise.depthwise, depthwise.PARAMETERS),
    "depthwise_input": (lambda e, n: _depthwise(e, n, is_spread=True), depthwise.depthwise, depthwise.PARAMETERS),
    "depthwise_weight": (
        lambda e, n: depthwise_weight.Config(e, n, POSITIONS, SEGMENT),
        depthwise_weight.depthwise_weight,
        depthwise_weight.PARAMETERS,
    ),
    "conv_place": (conv_finish.Config, conv_place.place, conv_place.PARAMETERS),
    "conv_fold": (conv_finish.Config, conv_place.fold, conv_place.PARAMETERS),
    "conv_finish": (conv_finish.Config, conv_finish.finish, conv_finish.FINISH),
    "conv_finish_back": (conv_finish.Config, conv_finish.back, conv_finish.BACK),
}
"""Sizes, builder and parameters."""

ALWAYS_WIDE = "conv_place", "conv_fold"
"""Whose threads have the numbers of 16 bytes in any case; of the others there is a form with one for each, too."""


def choose(face: Face, dtype: Element, *, is_wide: bool = True) -> Kernel:
    """The kernel for a call.

    Parameters
    ----------
    face : str
        What to make.
    dtype : {"bfloat16", "float16", "float32"}
        Of the arrays.
    is_wide : bool, optional
        Whether a thread may read the numbers of 16 bytes at once.

    Returns
    -------
    Kernel
        One of `shipped`.

    Raises
    ------
    ValueError
        Where no kernel is shipped for these.
    """
    if dtype not in get_args(Element):
        raise ValueError(f"dtype is {dtype}, but must be one of {', '.join(get_args(Element))}")
    is_wide = is_wide or face in ALWAYS_WIDE
    configured, builder, parameters = FACES[face]
    config = configured(dtype, vector_of(dtype) if is_wide else 1)
    name = f"{face}_{dtype}{'' if is_wide else '_single'}"
    return Kernel(name, builder, config, parameters, config.threads, 0, config.threads)


def shipped() -> Iterator[Kernel]:
    """The whole list."""
    for dtype in get_args(Element):
        for face in FACES:
            for is_wide in (True,) if face in ALWAYS_WIDE else (True, False):
                yield choose(face, dtype, is_wide=is_wide)
