"""The weights of convolutions that attend, as records whose fields are named as in the equations; what may be absent is None."""

from __future__ import annotations

from typing import NamedTuple

from refattn._core import Array, Random


class ConvAttentionWeights(NamedTuple):
    """Weights of `attention_augmented_conv2d` and `conv_attention_sum`: of a convolution, and of the attention beside it.

    Attributes
    ----------
    w_conv : array, shape (out_channels, in_channels, kernel_height, kernel_width)
        Kernels of the convolution.
    w_query : array, shape (num_heads * head_dim, in_channels)
        Projection of each position to queries.
    w_key : array, shape (num_heads * head_dim, in_channels)
        Projection to keys.
    w_value : array, shape (num_heads * value_dim, in_channels)
        Projection to values.
    w_output : array, shape (out_features, num_heads * value_dim)
        Projection of all heads together.
    row_table : array or None, shape (2 * height - 1, head_dim)
        One vector for each distance in rows, as in `relative_logits_2d`; all heads share it.
    column_table : array or None, shape (2 * width - 1, head_dim)
        One vector for each distance in columns. Without both tables, the attention does not see positions.
    b_conv : array or None, shape (out_channels)
        Bias of the convolution.
    b_query : array or None, shape (num_heads * head_dim)
        Added to the queries.
    b_key : array or None, shape (num_heads * head_dim)
        Added to the keys: the same number for all keys of a query, so without effect.
    b_value : array or None, shape (num_heads * value_dim)
        Added to the values.
    b_output : array or None, shape (out_features)
        Added to what the attention gives.
    """

    w_conv: Array
    w_query: Array
    w_key: Array
    w_value: Array
    w_output: Array
    row_table: Array | None = None
    column_table: Array | None = None
    b_conv: Array | None = None
    b_query: Array | None = None
    b_key: Array | None = None
    b_value: Array | None = None
    b_output: Array | None = None


class AcmixWeights(NamedTuple):
    """Weights of `acmix`.

    Attributes
    ----------
    w_query : array, shape (num_heads * head_dim, in_channels)
        Projection of each position to queries.
    w_key : array, shape (num_heads * head_dim, in_channels)
        Projection to keys.
    w_value : array, shape (num_heads * head_dim, in_channels)
        Projection to values.
    w_mix : array, shape (kernel_height, kernel_width, 3 * num_heads)
        For each tap of the convolution, what its map takes of the heads' queries, then keys, then values.
    w_shift : array or None, shape (num_heads * head_dim, kernel_height * kernel_width, kernel_height, kernel_width)
        Kernels that gather the maps: output channel o reads those of feature ``o // num_heads``. None is the shift by which each
        map is moved to its tap, and with which the learned kernels begin.
    w_position : array or None, shape (head_dim, 2)
        What a key gets of the coordinates from it to the query, as in `local_attention_2d`; None adds nothing. A bias would cancel.
    b_query : array or None, shape (num_heads * head_dim)
        Added to the queries.
    b_key : array or None, shape (num_heads * head_dim)
        Added to the keys.
    b_value : array or None, shape (num_heads * head_dim)
        Added to the values.
    b_shift : array or None, shape (num_heads * head_dim)
        Bias of the convolution.
    """

    w_query: Array
    w_key: Array
    w_value: Array
    w_mix: Array
    w_shift: Array | None = None
    w_position: Array | None = None
    b_query: Array | None = None
    b_key: Array | None = None
    b_value: Array | None = None
    b_shift: Array | None = None


def conv_attention_weights(
    random: Random,
    channels: int,
    out: int,
    attended: int,
    features: int,
    size: tuple[int, int],
    kernel: tuple[int, int] = (3, 2),
    *,
    heads: int,
    bare: bool = False,
) -> ConvAttentionWeights:
    """Random ones, for samples and benchmarks; the bare ones have neither tables nor biases."""
    step = 1 / channels**0.5
    w_conv = step / 2 * random.normal((out, channels, *kernel))
    w_query, w_key, w_value = (step * random.normal((rows, channels)) for rows in (features, features, attended))
    weights = ConvAttentionWeights(w_conv, w_query, w_key, w_value, random.normal((attended, attended)) / max(attended, 1) ** 0.5)
    if bare:
        return weights
    row_table, column_table = (random.normal((2 * n - 1, features // heads)) for n in size)
    rows = {"conv": out, "query": features, "key": features, "value": attended, "output": attended}
    biases = {f"b_{name}": random.normal(n) for name, n in rows.items()}
    return weights._replace(row_table=row_table, column_table=column_table, **biases)


def acmix_weights(random: Random, channels: int, out: int, kernel: tuple[int, int], *, heads: int, bare: bool = False) -> AcmixWeights:
    """Random ones, for samples and benchmarks; the bare ones have what the paper's equations have."""
    step, taps = 1 / channels**0.5, kernel[0] * kernel[1]
    w_query, w_key, w_value = (step * random.normal((out, channels)) for _ in range(3))
    weights = AcmixWeights(w_query, w_key, w_value, random.normal((*kernel, 3 * heads)) / 2)
    if bare:
        return weights
    biases = {f"b_{name}": random.normal(out) for name in ("query", "key", "value", "shift")}
    w_shift, w_position = random.normal((out, taps, *kernel)) / taps, 2 * random.normal((out // heads, 2))
    return weights._replace(w_shift=w_shift, w_position=w_position, **biases)
