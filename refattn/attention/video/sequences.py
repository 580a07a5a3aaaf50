"""A layer over each of several sequences of a video's patches, with a token before each that stands for all of it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refattn._core import Array, Grads, Pullback
from refattn.blocks.sublayers import Sublayer, residual
from refattn.blocks.weights import NormWeights


class Video(NamedTuple):
    """The patches of a video, and the token that stands for all of it."""

    output: Array
    class_token: Array


def over_sequences(x: Array, class_token: Array | None, sublayer: Sublayer, norm: NormWeights, eps: float) -> tuple[Video, Pullback]:
    """A sublayer and its residual over each sequence of tokens, (..., sequences, length, model_dim).

    A class token is put before each sequence; what the sequences make of it comes out for each of them, in an axis of 1, or of 0
    where there is no class token.
    """
    lead, first = x.shape[:-2], 0 if class_token is None else 1
    copies = x[..., :0, :] if class_token is None else np.broadcast_to(class_token[..., None, None, :], (*lead, 1, x.shape[-1]))
    tokens = np.concatenate([copies, x], axis=-2)
    made, residual_pullback = residual(tokens, sublayer, norm, norm="pre", eps=eps, keep=None, dropout_rate=0.0)

    def pullback(d_x: Array, d_class: Array) -> Grads:
        d = residual_pullback(np.concatenate([d_class, d_x], axis=-2))
        return {**d, "x": d["x"][..., first:, :], "class_token": d["x"][..., :first, :].sum(axis=(-3, -2))}

    return Video(made[..., first:, :], made[..., :first, :]), pullback
