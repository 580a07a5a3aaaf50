"""What is made of fast parts: the body is the reference's, in the precision of its arguments, with each part the fast one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import refattn
from refattn import Mechanism
from refattn._core import Pullback
from refattn_numba._twin import twin_of, using
from refattn_numba.cuda.faces import convolution_on_device

P = ParamSpec("P")
Y = TypeVar("Y")


def composite(reference: Mechanism[P, Y], finished: Callable[[Any], Any] = lambda made: made) -> Mechanism[P, Y]:
    """The reference's own rule, whose parts are looked up among the fast ones; each of these compiles on its first call."""
    rule = cast("Any", reference).spec.rule

    @functools.wraps(rule)
    def fast(*args: Any, **kwargs: Any) -> tuple[Any, Pullback]:
        with using():
            return rule(*args, **kwargs)

    fast.__module__ = __name__
    return twin_of(reference, like=reference, makes_new=False, finished=finished)(fast)


separable_conv2d = composite(refattn.separable_conv2d, convolution_on_device)
squeeze_excitation = composite(refattn.squeeze_excitation)
cbam = composite(refattn.cbam)
non_local = composite(refattn.non_local)
acmix = composite(refattn.acmix)
multi_head_attention = composite(refattn.multi_head_attention)
transformer_encoder_layer = composite(refattn.transformer_encoder_layer)
transformer_decoder_layer = composite(refattn.transformer_decoder_layer)
transformer_encoder = composite(refattn.transformer_encoder)
transformer_decoder = composite(refattn.transformer_decoder)
transformer = composite(refattn.transformer)
