"""Convolution of a sequence that sees the past alone, chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from refattn._core import Array, BadCall, Grads, Pullback, Random, Sample, mechanism
from refattn.convolution.conv1d import conv1d


class CausalConvolved(NamedTuple):
    """Output, and the last inputs, which the next chunk sees."""

    output: Array
    state: Array


def _inputs(random: Random) -> dict[str, Any]:
    return {"x": random.normal((2, 3, 5)), "weight": random.normal((3, 4))}


def _samples(random: Random) -> Iterator[Sample]:
    inputs = _inputs(random)
    yield Sample("from zeros", inputs)
    yield Sample("state and bias", {**inputs, "bias": random.normal(3), "state": random.normal((2, 3, 3))})
    yield Sample("one step", {**inputs, "x": random.normal((2, 3, 1)), "state": random.normal((2, 3, 3))})
    yield Sample("one tap", {**inputs, "weight": random.normal((3, 1)), "state": random.normal((2, 3, 0))})


def _bad_calls(random: Random) -> Iterator[BadCall]:
    inputs = _inputs(random)
    yield BadCall("long state", {**inputs, "state": random.normal((2, 3, 4))}, ValueError, "kernel_size - 1 is 4 in state, but should be 3")
    yield BadCall("nothing new", {**inputs, "x": random.normal((2, 3, 0))}, ValueError, "length is 0, but must be at least 1")


@mechanism(tags={"convolution", "causal", "recurrent"}, samples=_samples, bad_calls=_bad_calls)
def causal_conv1d(x: Array, weight: Array, bias: Array | None = None, state: Array | None = None) -> tuple[CausalConvolved, Pullback]:
    r"""Slide one kernel over each channel of a sequence, so that an output sees its own position and those before it.

    A sequence may come in chunks: the state that one call returns is the state that the next one takes. No activation follows.

    Parameters
    ----------
    x : array, shape (batch, channels, length)
        Sequences, or the next chunk of them.
    weight : array, shape (channels, kernel_size)
        Kernels; the last tap is for an output's own position.
    bias : array or None, shape (channels), optional
        Added to each channel.
    state : array or None, shape (batch, channels, kernel_size - 1), optional
        The positions before the first; None is zeros.

    Returns
    -------
    output : array, shape (batch, channels, length)
        Filtered sequences.
    state : array, shape (batch, channels, kernel_size - 1)
        The last ``kernel_size - 1`` positions seen, earlier states included.

    Notes
    -----
    Sizes: ``channels >= 1``, ``length >= 1``, ``kernel_size >= 1``.

    With z the state followed by x, k the kernel size, n the length and S the new state:

    .. math::

        y_{c,p} = \beta_c + \sum_{t=0}^{k-1} w_{c,t}\, z_{c,p+t}, \quad S_{c,i} = z_{c,n+i}, \qquad
        \bar z_{c,q} = \sum_t w_{c,t}\, \bar y_{c,q-t} + [q \ge n]\, \bar S_{c,q-n}, \quad
        \bar w_{c,t} = \sum_p \bar y_{c,p}\, z_{c,p+t}

    References
    ----------
    .. [1] van den Oord et al., "WaveNet: A Generative Model for Raw Audio", 2016, section 2.1. arXiv:1609.03499.
    .. [2] Gu, Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023, section 3.4. arXiv:2312.00752.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> weight = np.array([[1.0, 10.0]])
    >>> output, state = refattn.causal_conv1d(np.array([[[1.0, 2.0]]]), weight)
    >>> output, state
    (array([[[10., 21.]]]), array([[[2.]]]))
    >>> refattn.causal_conv1d(np.array([[[3.0]]]), weight, state=state).output
    array([[[32.]]])
    """
    past = weight.shape[1] - 1
    before = np.zeros_like(x, shape=(*x.shape[:2], past)) if state is None else state
    seen = np.concatenate([before, x], axis=-1)
    output, conv_pullback = conv1d.vjp(seen, weight[:, None], bias, groups=len(weight))

    def pullback(d_output: Array, d_state: Array) -> Grads:
        grads = conv_pullback(d_output)
        d_seen = grads["x"].copy()
        d_seen[..., x.shape[2] :] += d_state
        return {
            "x": d_seen[..., past:],
            "weight": grads["weight"][:, 0],
            "bias": grads.get("bias"),
            "state": d_seen[..., :past],
        }

    return CausalConvolved(output, seen[..., x.shape[2] :]), pullback
