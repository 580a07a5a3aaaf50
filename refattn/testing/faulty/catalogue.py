"""Which faults there are, and the kernels that have them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

from refattn.testing.faulty.attention import Attention
from refattn.testing.faulty.attention_backward import BACKWARD as ATTENTION_BACKWARD
from refattn.testing.faulty.attention_forward import FORWARD as ATTENTION_FORWARD
from refattn.testing.faulty.convolution import Convolution
from refattn.testing.faulty.convolution_faults import BACKWARD as CONVOLUTION_BACKWARD
from refattn.testing.faulty.convolution_faults import FORWARD as CONVOLUTION_FORWARD
from refattn.testing.faulty.kernel import Direction, Fault, Kernel
from refattn.testing.faulty.linear import Linear
from refattn.testing.faulty.linear_faults import BACKWARD as LINEAR_BACKWARD
from refattn.testing.faulty.linear_faults import FORWARD as LINEAR_FORWARD

FAULTS: tuple[Fault, ...] = (
    *ATTENTION_FORWARD,
    *ATTENTION_BACKWARD,
    *CONVOLUTION_FORWARD,
    *CONVOLUTION_BACKWARD,
    *LINEAR_FORWARD,
    *LINEAR_BACKWARD,
)
RECURRENT = ("linear_attention", "gated_linear_attention", "delta_rule", "gated_delta_rule")
MECHANISMS: dict[str, type[Kernel]] = {
    "scaled_dot_product_attention": Attention,
    "scaled_dot_product_attention_with_lse": Attention,
    **{f"conv{n}d": Convolution for n in (1, 2, 3)},
    "depthwise_conv2d": Convolution,
    **{f"conv_transpose{n}d": Convolution for n in (1, 2, 3)},
    "causal_conv1d": Convolution,
    **dict.fromkeys(RECURRENT, Linear),
    **dict.fromkeys([f"chunked_{name}" for name in RECURRENT], Linear),
}
"""What there are kernels of, by the name of the mechanism."""


class Honest(NamedTuple):
    """One way of several to compute the same, of which each must be accepted."""

    name: str
    kernel: Kernel


def faults(
    mechanism: str | None = None, *, family: str | None = None, direction: Direction | None = None, only: Collection[str] = ()
) -> list[Fault]:
    """The faults that can be planted.

    Parameters
    ----------
    mechanism : str or None, optional
        Only those of this mechanism.
    family : {"attention", "convolution", "linear"} or None, optional
        Only those of this family.
    direction : {"forward", "backward"} or None, optional
        Only those that outputs show, or gradients alone.
    only : collection of str, optional
        Only those whose name has one of these in it.

    Returns
    -------
    list of Fault
        In the order of the files.
    """
    kept = FAULTS
    if mechanism is not None:
        kind = _kind(mechanism)
        kept = tuple(f for f in kept if f.family == kind.family and _has(f, mechanism))
    return [
        f
        for f in kept
        if family in {None, f.family} and direction in {None, f.direction} and (not only or any(part in f.name for part in only))
    ]


def kernel(mechanism: str, fault: str | Fault | None = None, dtype: Any = None, *, tile: int = 0) -> Kernel:
    """A kernel of a mechanism with a fault, or an honest one.

    Parameters
    ----------
    mechanism : str
        One of `MECHANISMS`.
    fault : str, Fault or None, optional
        Which fault it has.
    dtype : str, dtype or None, optional
        The precision of what it returns; None is that of its first argument.
    tile : int, optional
        Positions of a tile; 0 is the family's own size.

    Returns
    -------
    Kernel
        Called with the arguments of the mechanism; its ``vjp`` has gradients.

    Examples
    --------
    >>> import refattn
    >>> from refattn.testing import faulty
    >>> broken = faulty.kernel("scaled_dot_product_attention", "causal one key too many", "float32")
    >>> refattn.testing.check(broken, refattn.scaled_dot_product_attention).passed
    False
    """
    kind = _kind(mechanism)
    if fault is None:
        return kind(mechanism, dtype, tile=tile)
    planted = fault if isinstance(fault, Fault) else next((f for f in FAULTS if f.name == fault and f.family == kind.family), None)
    if planted is None or not _has(planted, mechanism):
        raise LookupError(f"{mechanism} has no fault {fault if isinstance(fault, str) else fault.name!r}: see refattn mutants --list")
    return type(f"Faulty{kind.__name__}", (kind,), dict(planted.change))(mechanism, dtype, tile=tile)


def honest(mechanism: str, dtype: Any = None, *, tile: int = 0) -> list[Honest]:
    """Right kernels that differ as right kernels may: in tiles, in order, in what is rounded on the way.

    Parameters
    ----------
    mechanism, dtype, tile : optional
        As of `kernel`.

    Returns
    -------
    list of Honest
        The first is the one in which faults are planted.
    """
    kind = _kind(mechanism)
    own = tile or kind.own_tile
    return [
        Honest("honest", kind(mechanism, dtype, tile=own)),
        Honest("honest, small tiles in reverse", kind(mechanism, dtype, tile=max(own // 4, 1), reverse=True)),
        Honest("honest, one tile, nothing rounded inside", kind(mechanism, dtype, tile=2**30, store=False)),
    ]


def _kind(mechanism: str) -> type[Kernel]:
    if mechanism not in MECHANISMS:
        raise LookupError(f"no kernels of {mechanism!r} are made: there are {', '.join(MECHANISMS)}")
    return MECHANISMS[mechanism]


def _has(fault: Fault, mechanism: str) -> bool:
    return not fault.mechanisms or mechanism in fault.mechanisms
