"""Attention residual learning: a mask adds to the features that it weighs, instead of taking from them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

import numpy as np

from refattn._core import Array, BadCall, Grads, Pullback, Random, Sample, like, mechanism
from refattn.primitives.activation import sigmoid
from refattn.primitives.arithmetic import add, multiply
from refattn.primitives.attention_stages import scaled
from refattn.primitives.normalization import instance_norm, rms_norm

Constraint: TypeAlias = Literal["mixed", "channel", "spatial"]


def _samples(random: Random) -> Iterator[Sample]:
    inputs = {"trunk": random.normal((2, 3, 2, 4)), "logits": random.normal((2, 3, 2, 4))}
    yield Sample("mixed", inputs)
    yield Sample("channel", {**inputs, "constraint": "channel"})
    yield Sample("spatial", {**inputs, "constraint": "spatial", "eps": 0.25})
    yield Sample("channel, eps", {**inputs, "constraint": "channel", "eps": 0.25})
    yield Sample("sequence", {"trunk": random.normal((2, 3, 5)), "logits": random.normal((2, 3, 5)), "constraint": "spatial"})


def _bad_calls(random: Random) -> Iterator[BadCall]:
    inputs = {"trunk": random.normal((2, 3, 2, 4)), "logits": random.normal((2, 3, 2, 4))}
    yield BadCall("a mask for each position", {**inputs, "logits": random.normal((2, 1, 2, 4))}, ValueError, "channels is 1 in logits")
    yield BadCall("another constraint", {**inputs, "constraint": "none"}, ValueError, "constraint is 'none'")


def _benchmark(random: Random) -> dict[str, Any]:
    return {"trunk": random.normal((8, 64, 56, 56)), "logits": random.normal((8, 64, 56, 56))}


@mechanism(tags={"gate"}, samples=_samples, bad_calls=_bad_calls, benchmark=_benchmark)
def residual_attention(trunk: Array, logits: Array, *, constraint: Constraint = "mixed", eps: float = 1e-5) -> tuple[Array, Pullback]:
    r"""Multiply features by 1 plus a soft mask, so that a mask of 0 leaves them as they are.

    Parameters
    ----------
    trunk : array, shape (batch, channels, *positions)
        Features, the paper's T(x) or F(x).
    logits : array, shape (batch, channels, *positions)
        What the mask is made of: `soft_mask_branch`, or any map of this shape.
    constraint : {"mixed", "channel", "spatial"}, optional
        How logits become a mask: by a sigmoid each for itself; divided by the length of the vector of all channels at a position,
        without a sigmoid; by a sigmoid after each channel got mean 0 and deviation 1 over the positions of its own example.
    eps : non-negative float, optional
        Added to the mean square ("channel") or the variance ("spatial") inside the root; the paper has none.

    Returns
    -------
    array, shape (batch, channels, *positions)
        Between the trunk and twice the trunk; with "channel" between 0 and twice the trunk.

    Notes
    -----
    Sizes: ``channels >= 1``.

    .. math::

        H_{ic} = (1 + M_{ic})\, T_{ic}, \quad M_{ic} = \sigma(m_{ic}),\; \frac{m_{ic}}{\|m_i\|},\;
        \sigma\Bigl(\frac{m_{ic} - \operatorname{mean}_c}{\operatorname{std}_c}\Bigr), \qquad
        \bar T_{ic} = (1 + M_{ic})\, \bar H_{ic}, \quad \bar M_{ic} = T_{ic} \bar H_{ic}

    for position i and channel c, with :math:`\bar m` as in `sigmoid`, `rms_norm` and `instance_norm`. The first version of the
    networks that the authors published has a tanh in the place of the sigmoid.
    A public class of the name ResidualAttention is another mechanism, the class-specific residual attention of Zhu and Wu (2021).

    References
    ----------
    .. [1] Wang et al., "Residual Attention Network for Image Classification", CVPR 2017, section 3. arXiv:1704.06904.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.residual_attention(np.array([[[2.0, 4.0]]]), np.array([[[-np.inf, 0.0]]]))
    array([[[2., 6.]]])
    """
    mask, mask_pullback = MASKED[constraint](logits, eps)
    masked, multiply_pullback = multiply.vjp(mask, trunk)
    output, add_pullback = add.vjp(trunk, masked)

    def pullback(dy: Array) -> Grads:
        d_sum = add_pullback(dy)
        d_product = multiply_pullback(d_sum["b"])
        return {"trunk": d_sum["a"] + d_product["b"], "logits": mask_pullback(d_product["a"])["x"]}

    return output, pullback


def _mixed(logits: Array, eps: float) -> tuple[Array, Pullback]:
    return sigmoid.vjp(logits)


def _channel(logits: Array, eps: float) -> tuple[Array, Pullback]:
    """Length 1 is a mean square of 1 over as many channels as there are, times one over the root of their number."""
    unit, norm_pullback = rms_norm.vjp(np.moveaxis(logits, 1, -1), eps=eps)
    mask, scale_pullback = scaled.vjp(unit, 1 / np.sqrt(like(logits, logits.shape[1])))

    def pullback(d_mask: Array) -> Grads:
        d_unit = scale_pullback(np.moveaxis(d_mask, 1, -1))["scores"]
        return {"x": np.moveaxis(norm_pullback(d_unit)["x"], -1, 1)}

    return np.moveaxis(mask, -1, 1), pullback


def _spatial(logits: Array, eps: float) -> tuple[Array, Pullback]:
    standard, norm_pullback = instance_norm.vjp(logits, eps=eps)
    mask, sigmoid_pullback = sigmoid.vjp(standard)
    return mask, lambda d_mask: norm_pullback(sigmoid_pullback(d_mask)["x"])


MASKED: dict[str, Any] = {"mixed": _mixed, "channel": _channel, "spatial": _spatial}
