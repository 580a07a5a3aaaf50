"""A convolution and an attention side by side: the attention sees all positions of the map, the convolution the near ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from refattn._core import Array, BadCall, Grads, Pullback, Random, Sample, like, mechanism
from refattn._core.tree import pick
from refattn.attention.dot_product.multi_head import merge_heads, split_heads
from refattn.attention.dot_product.scaled_dot_product import scaled_dot_product_attention
from refattn.attention.spatial.weights import ConvAttentionWeights, conv_attention_weights
from refattn.convolution.conv2d import conv2d
from refattn.positional.relative import relative_logits_2d
from refattn.primitives.arithmetic import weighted_sum
from refattn.primitives.attention_stages import scaled
from refattn.primitives.linear import linear


def _both(
    x: Array, weights: ConvAttentionWeights, num_heads: int
) -> tuple[tuple[Array, Array], Callable[[Array, Array], tuple[Array, ConvAttentionWeights]]]:
    """What the convolution makes of a map, and what the attention makes of it."""
    convolved, conv_pullback = conv2d.vjp(x, weights.w_conv, weights.b_conv, padding="same")
    attended, attention_pullback = _attended(x, weights, num_heads)

    def pullback(d_convolved: Array, d_attended: Array) -> tuple[Array, ConvAttentionWeights]:
        d_conv, d_attention = conv_pullback(d_convolved), attention_pullback(d_attended)
        own = {"w_conv": d_conv["weight"], "b_conv": d_conv.get("bias")}
        return d_conv["x"] + d_attention["x"], pick(ConvAttentionWeights, {**d_attention, **own})

    return (convolved, attended), pullback


def _attended(x: Array, weights: ConvAttentionWeights, num_heads: int) -> tuple[Array, Pullback]:
    """Self-attention over all positions of a map, which are its tokens in row-major order."""
    batch, channels, height, width = x.shape
    tokens = x.reshape(batch, channels, height * width).swapaxes(1, 2)
    queries, query_pullback = linear.vjp(tokens, weights.w_query, weights.b_query)
    keys, key_pullback = linear.vjp(tokens, weights.w_key, weights.b_key)
    values, value_pullback = linear.vjp(tokens, weights.w_value, weights.b_value)
    query = split_heads(queries, num_heads)
    bias, distance_pullback = _distances(query, weights, (height, width))
    heads, heads_pullback = scaled_dot_product_attention.vjp(query, split_heads(keys, num_heads), split_heads(values, num_heads), bias)
    projected, output_pullback = linear.vjp(merge_heads(heads), weights.w_output, weights.b_output)

    def pullback(dy: Array) -> Grads:
        d_output = output_pullback(dy.reshape(batch, projected.shape[-1], height * width).swapaxes(1, 2))
        d = heads_pullback(split_heads(d_output["x"], num_heads))
        d_distance = distance_pullback(d.get("bias"))
        d_query = query_pullback(merge_heads(d["query"] + d_distance["query"]))
        d_key, d_value = key_pullback(merge_heads(d["key"])), value_pullback(merge_heads(d["value"]))
        parts = {"query": d_query, "key": d_key, "value": d_value, "output": d_output}
        return {
            "x": (d_query["x"] + d_key["x"] + d_value["x"]).swapaxes(1, 2).reshape(x.shape),
            **{name: d_distance.get(name) for name in ("row_table", "column_table")},
            **{f"w_{name}": part["weight"] for name, part in parts.items()},
            **{f"b_{name}": part.get("bias") for name, part in parts.items()},
        }

    return projected.swapaxes(1, 2).reshape(batch, projected.shape[-1], height, width), pullback


def _distances(
    query: Array, weights: ConvAttentionWeights, size: tuple[int, int]
) -> tuple[Array | None, Callable[[Array | None], dict[str, Any]]]:
    """What the distances add to the scaled scores, or None where they have no tables."""
    rows, columns = weights.row_table, weights.column_table
    if rows is None and columns is None:
        return None, lambda _: {"query": 0}
    if rows is None or columns is None:
        raise ValueError(f"weights.{'row' if rows is None else 'column'}_table is None, but the other table is given")
    logits, logits_pullback = relative_logits_2d.vjp(query.reshape(*query.shape[:-2], *size, query.shape[-1]), rows, columns)
    bias, scale_pullback = scaled.vjp(logits, 1 / np.sqrt(like(query, query.shape[-1])))

    def pullback(d_bias: Array | None) -> dict[str, Any]:
        d = logits_pullback(scale_pullback(d_bias)["scores"])
        return {**d, "query": d["query"].reshape(query.shape)}

    return bias, pullback


def _samples(random: Random) -> Iterator[Sample]:
    given = {"x": random.normal((2, 3, 2, 3)), "num_heads": 2}
    yield Sample("relative", {**given, "weights": conv_attention_weights(random, 3, 2, 4, 6, (2, 3), heads=2)})
    yield Sample("no positions", {**given, "weights": conv_attention_weights(random, 3, 2, 2, 4, (2, 3), heads=2, bare=True)})
    relative = conv_attention_weights(random, 3, 1, 2, 3, (2, 3), heads=1)._replace(b_query=None, b_key=None, b_value=None)
    yield Sample("one head", {**given, "weights": relative, "num_heads": 1})


def _bad_calls(random: Random) -> Iterator[BadCall]:
    given = {"x": random.normal((2, 3, 2, 3)), "num_heads": 2}
    weights = conv_attention_weights(random, 3, 4, 4, 6, (2, 3), heads=2)
    one_table = weights._replace(column_table=None)
    yield BadCall("one table", {**given, "weights": one_table}, ValueError, "weights.column_table is None, but the other")
    yield BadCall("heads that do not divide", {**given, "weights": weights, "num_heads": 4}, ValueError, r"num_heads \* head_dim is 6")
    low = weights._replace(row_table=random.normal((5, 3)))
    yield BadCall("a table for other maps", {**given, "weights": low}, ValueError, r"2 \* height - 1 is 5 in weights.row_table")
    yield BadCall("no height", {**given, "x": random.normal((2, 3, 0, 3)), "weights": weights}, ValueError, "height")


def _benchmark(random: Random) -> dict[str, Any]:
    return {
        "x": random.normal((1, 64, 16, 16)),
        "weights": conv_attention_weights(random, 64, 48, 16, 16, (16, 16), (3, 3), heads=4),
        "num_heads": 4,
    }


@mechanism(tags={"softmax", "convolution", "quadratic"}, samples=_samples, bad_calls=_bad_calls, benchmark=_benchmark)
def attention_augmented_conv2d(x: Array, weights: ConvAttentionWeights, *, num_heads: int) -> tuple[Array, Pullback]:
    r"""Append to the channels of a convolution those of an attention over the whole map.

    Parameters
    ----------
    x : array, shape (batch, in_channels, height, width)
        Feature maps.
    weights : ConvAttentionWeights
        Of the convolution, which keeps the size of the map (padding "same"), and of the attention.
    num_heads : positive int
        Heads of the attention.

    Returns
    -------
    array, shape (batch, out_channels + out_features, height, width)
        The convolution's channels, then the attention's.

    Notes
    -----
    Sizes: ``height >= 1``, ``width >= 1``, ``head_dim >= 1``, ``kernel_height >= 1``, ``kernel_width >= 1``.

    With S the relative logits of `relative_logits_2d`, Q, K and V the projections of all positions in one head, and d the width
    of a head; the paper's projections have no biases:

    .. math::

        Y = [\operatorname{Conv}(X); [O_1 \dots O_n] W^O], \quad
        O_h = \operatorname{softmax}\Bigl(\frac{Q K^\top + S_H + S_W}{\sqrt d}\Bigr) V, \qquad
        \bar X = \operatorname{Conv}^*(\bar Y_{\mathrm{conv}}) + \operatorname{MHA}^*(\bar Y_{\mathrm{att}})

    where stars are pullbacks. The relative logits are scaled too, and all heads share the tables. Some public copies draw the
    tables anew at each call, or reshape what they should transpose: these compute something else.

    References
    ----------
    .. [1] Bello et al., "Attention Augmented Convolutional Networks", ICCV 2019, section 3.2. arXiv:1904.09925.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> one, far = np.ones((1, 1)), np.array([[-99.0], [0.0], [99.0]])
    >>> weights = refattn.ConvAttentionWeights(2 * np.ones((1, 1, 1, 1)), one, one, one, one, np.zeros((1, 1)), far)
    >>> refattn.attention_augmented_conv2d(np.array([[[[3.0, 4.0]]]]), weights, num_heads=1)  # twice x, and the right neighbour
    array([[[[6., 8.]],
    <BLANKLINE>
            [[4., 4.]]]])
    """
    (convolved, attended), both_pullback = _both(x, weights, num_heads)
    split = convolved.shape[1]

    def pullback(dy: Array) -> Grads:
        dx, d_weights = both_pullback(dy[:, :split], dy[:, split:])
        return {"x": dx, "weights": d_weights}

    return np.concatenate([convolved, attended], axis=1), pullback


def _sum_samples(random: Random) -> Iterator[Sample]:
    given = {"x": random.normal((2, 3, 2, 3)), "num_heads": 2}
    learned = {"alpha": np.asarray(random.normal()), "beta": np.asarray(random.normal())}
    yield Sample("relative", {**given, **learned, "weights": conv_attention_weights(random, 3, 4, 4, 6, (2, 3), heads=2)})
    each = {"alpha": random.normal((2, 1, 1)), "beta": 0.25}
    yield Sample("no positions", {**given, **each, "weights": conv_attention_weights(random, 3, 2, 2, 4, (2, 3), heads=2, bare=True)})


def _sum_bad_calls(random: Random) -> Iterator[BadCall]:
    given = {"x": random.normal((2, 3, 2, 3)), "num_heads": 2, "alpha": 0.5, "beta": 0.5}
    weights = conv_attention_weights(random, 3, 3, 4, 6, (2, 3), heads=2)
    message = "weights.w_output gives 4 channels, but weights.w_conv 3"
    yield BadCall("branches that do not match", {**given, "weights": weights}, ValueError, message)


def _sum_benchmark(random: Random) -> dict[str, Any]:
    weights = conv_attention_weights(random, 64, 64, 64, 64, (16, 16), (3, 3), heads=4)
    learned = {"alpha": np.asarray(random.normal()), "beta": np.asarray(random.normal())}
    return {"x": random.normal((1, 64, 16, 16)), "weights": weights, **learned, "num_heads": 4}


@mechanism(tags={"softmax", "convolution", "quadratic"}, samples=_sum_samples, bad_calls=_sum_bad_calls, benchmark=_sum_benchmark)
def conv_attention_sum(
    x: Array, weights: ConvAttentionWeights, alpha: Array | float, beta: Array | float, *, num_heads: int
) -> tuple[Array, Pullback]:
    r"""Add an attention over the whole map to a convolution of it, each with a learned weight.

    Parameters
    ----------
    x : array, shape (batch, in_channels, height, width)
        Feature maps.
    weights : ConvAttentionWeights
        Of the convolution, which keeps the size of the map (padding "same"), and of an attention with as many channels.
    alpha : float or array, broadcastable to (batch, out_channels, height, width)
        Weight of the attention; a number has no gradient, an array has one.
    beta : float or array, broadcastable to (batch, out_channels, height, width)
        Weight of the convolution.
    num_heads : positive int
        Heads of the attention.

    Returns
    -------
    array, shape (batch, out_channels, height, width)
        The weighted sum.

    Notes
    -----
    Sizes: ``height >= 1``, ``width >= 1``, ``head_dim >= 1``, ``kernel_height >= 1``, ``kernel_width >= 1``.

    The two branches are those that `attention_augmented_conv2d` concatenates; the weights are those of `acmix`, in which the
    branches share their projections.

    .. math::

        Y = \alpha \odot \operatorname{MHA}(X) + \beta \odot \operatorname{Conv}(X), \qquad
        \bar X = \operatorname{MHA}^*(\alpha \odot \bar Y) + \operatorname{Conv}^*(\beta \odot \bar Y), \quad
        \bar\alpha = \sum \operatorname{MHA}(X) \odot \bar Y, \quad \bar\beta = \sum \operatorname{Conv}(X) \odot \bar Y

    where stars are pullbacks.

    References
    ----------
    .. [1] Bello et al., "Attention Augmented Convolutional Networks", ICCV 2019, section 3.2, for the branches. arXiv:1904.09925.
    .. [2] Pan et al., "On the Integration of Self-Attention and Convolution", CVPR 2022, for the sum. arXiv:2111.14556.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> one = np.ones((1, 1))
    >>> weights = refattn.ConvAttentionWeights(np.ones((1, 1, 1, 1)), 0 * one, one, one, one)
    >>> refattn.conv_attention_sum(np.array([[[[3.0, 5.0]]]]), weights, 1.0, 10.0, num_heads=1)  # the mean, and ten times x
    array([[[[34., 54.]]]])
    """
    if len(weights.w_output) != len(weights.w_conv):
        raise ValueError(f"weights.w_output gives {len(weights.w_output)} channels, but weights.w_conv {len(weights.w_conv)}")
    (convolved, attended), both_pullback = _both(x, weights, num_heads)
    output, sum_pullback = weighted_sum.vjp(attended, convolved, alpha, beta)

    def pullback(dy: Array) -> Grads:
        d_sum = sum_pullback(dy)
        dx, d_weights = both_pullback(d_sum["b"], d_sum["a"])
        return {"x": dx, "weights": d_weights, "alpha": d_sum.get("alpha"), "beta": d_sum.get("beta")}

    return output, pullback
