"""Which alternatives concern a mechanism."""

from __future__ import annotations

from collections.abc import Iterator

from refattn._core import Mechanism
from refattn.testing.explaining.alternative import Alternative, Arguments
from refattn.testing.explaining.anything import anything
from refattn.testing.explaining.attention import ATTENTION
from refattn.testing.explaining.attention_gradients import ATTENTION_GRADIENTS
from refattn.testing.explaining.convolution import CONVOLUTION, CONVOLUTION_GRADIENTS
from refattn.testing.explaining.layers import BATCH_NORM, SOFTMAX, norm
from refattn.testing.explaining.recurrent import RECURRENT

SOFTMAX_ATTENTION = {f"scaled_dot_product_attention{suffix}" for suffix in ("", "_with_lse", "_with_weights")}
OF_ANY_ATTENTION = {"align", "causal", "window", "mask", "masked_rows", "dropout"}
NORMS = {"layer_norm", "rms_norm", "group_norm", "instance_norm", "batch_norm_training"}
SOFTMAXES = {"softmax", "log_softmax", "logsumexp", "masked_softmax", "gumbel_softmax"}


def known(mechanism: Mechanism[..., object]) -> tuple[Alternative, ...]:
    """The alternatives that the tables have for it."""
    spec = mechanism.spec
    if spec.name in SOFTMAX_ATTENTION:
        return (*ATTENTION, *ATTENTION_GRADIENTS)
    if spec.family == "linear":
        return RECURRENT
    if {"x", "weight"} <= spec.signature.parameters.keys() and spec.family == "convolution":
        return (*CONVOLUTION, *CONVOLUTION_GRADIENTS)
    if spec.name in NORMS:
        return (*norm(spec.name), *(BATCH_NORM if spec.name == "batch_norm_training" else ()))
    if spec.name in SOFTMAXES:
        return SOFTMAX
    if {"query", "key"} <= spec.signature.parameters.keys():
        return tuple(a for a in ATTENTION if a.about in OF_ANY_ATTENTION)
    return ()


def alternatives(mechanism: Mechanism[..., object], arguments: Arguments) -> Iterator[Alternative]:
    """All that may be tried for one call: what the tables say, then what follows from the signature."""
    found = known(mechanism)
    yield from found
    covered = {a.about for a in found} | ({"keep", "dropout_rate"} if any(a.about == "dropout" for a in found) else set())
    yield from anything(mechanism, arguments, covered)
