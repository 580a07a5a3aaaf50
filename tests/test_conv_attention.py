"""What must hold of convolutions with attention, and of their parts, by mathematics."""

from __future__ import annotations

import numpy as np
import pytest

import refattn
from refattn import masks, testing
from refattn._core import tree
from refattn._core.random import Random
from refattn.attention.spatial.weights import acmix_weights, conv_attention_weights

CLOSE = {"rtol": 1e-12, "atol": 1e-12}  # sums of some hundred products of numbers near 1, in another order


def tokens(x):
    """Positions of a map, in row-major order."""
    return x.reshape(*x.shape[:2], -1).swapaxes(1, 2)


# Windows


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"dilation": (1, 2), "padding": "same"}], ids=str)
def test_a_convolution_is_a_product_with_what_a_window_sees(options):
    x, weight = Random(0).normal((2, 3, 5, 6)), Random(1).normal((4, 3, 3, 2))
    seen = refattn.unfold2d(x, kernel_size=(3, 2), **options)
    y = np.einsum("octp,bctij->boij", weight.reshape(4, 3, 6, 1), seen)
    np.testing.assert_allclose(refattn.conv2d(x, weight, **options), y, **CLOSE)


def test_what_is_seen_several_times_has_several_gradients():
    x = Random(0).normal((1, 1, 4, 4))
    y, pullback = refattn.unfold2d.vjp(x, kernel_size=3, padding=1)
    edge = np.array([2.0, 3, 3, 2])
    np.testing.assert_array_equal(pullback(np.ones_like(y))["x"][0, 0], np.outer(edge, edge))


# Relative logits


def test_relative_logits_depend_on_the_distance_alone():
    row_table, column_table = Random(0).normal((5, 4)), Random(1).normal((7, 4))
    query = np.broadcast_to(Random(2).normal(4), (3, 4, 4))
    logits = refattn.relative_logits_2d(query, row_table, column_table).reshape(3, 4, 3, 4)
    np.testing.assert_allclose(logits[1:, 1:, 1:, 1:], logits[:-1, :-1, :-1, :-1], **CLOSE)
    assert np.abs(logits[0, 0, 0, 1] - logits[0, 1, 0, 0]) > 0.01  # right is not left


def test_a_map_of_one_row_has_the_logits_of_a_sequence():
    query, row_table, column_table = Random(0).normal((2, 1, 5, 3)), Random(1).normal((1, 3)), Random(2).normal((9, 3))
    one = refattn.relative_logits_1d(query[:, 0], column_table) + (query[:, 0] @ row_table[0])[..., None]
    np.testing.assert_allclose(refattn.relative_logits_2d(query, row_table, column_table), one, **CLOSE)


# Attention beside a convolution


def augmented(*, bare=False, out=2, attended=4):
    return {
        "x": Random(0).normal((2, 3, 4, 3)),
        "weights": conv_attention_weights(Random(1), 3, out, attended, 6, (4, 3), heads=2, bare=bare),
    }


def multi_head(x, weights):
    """The same attention, of the tokens of a map, without positions."""
    names = ("query", "key", "value", "output")
    given = {f"{kind}_{n}": getattr(weights, f"{kind}_{n}") for n in names for kind in "wb"}
    y = refattn.multi_head_attention(*[tokens(x)] * 3, **given, num_heads=2)
    return y.swapaxes(1, 2).reshape(len(x), -1, *x.shape[2:])


def test_the_parts_of_an_augmented_convolution():
    given = augmented()
    weights = given["weights"]
    zero = weights._replace(row_table=0 * weights.row_table, column_table=0 * weights.column_table)
    y, without = refattn.attention_augmented_conv2d(**given, num_heads=2), refattn.attention_augmented_conv2d(given["x"], zero, num_heads=2)
    convolved = refattn.conv2d(given["x"], weights.w_conv, weights.b_conv, padding="same")
    np.testing.assert_array_equal(y[:, :2], convolved)
    np.testing.assert_allclose(without, np.concatenate([convolved, multi_head(given["x"], weights)], axis=1), **CLOSE)
    assert np.abs(y - without).max() > 0.01
    absent = weights._replace(row_table=None, column_table=None)
    np.testing.assert_allclose(refattn.attention_augmented_conv2d(given["x"], absent, num_heads=2), without, **CLOSE)


def test_all_or_none_of_the_channels_attend():
    convolution, attention = augmented(attended=0), augmented(out=0, bare=True)
    weights = convolution["weights"]
    y, pullback = refattn.attention_augmented_conv2d.vjp(**convolution, num_heads=2)
    conv, conv_pullback = refattn.conv2d.vjp(convolution["x"], weights.w_conv, weights.b_conv, padding="same")
    (dy,) = testing.cotangents(y)
    np.testing.assert_array_equal(y, conv)
    np.testing.assert_array_equal(pullback(dy)["x"], conv_pullback(dy)["x"])
    y, pullback = refattn.attention_augmented_conv2d.vjp(**attention, num_heads=2)
    np.testing.assert_allclose(y, multi_head(**attention), **CLOSE)
    assert pullback(y)["weights"].w_conv.shape == (0, 3, 3, 2)


def test_the_weighted_sum_adds_what_the_augmented_convolution_appends():
    given = augmented(out=4)
    both = refattn.attention_augmented_conv2d(**given, num_heads=2)
    for alpha, beta in ((1.0, 0.0), (0.0, 1.0), (0.25, -3.0)):
        y = refattn.conv_attention_sum(**given, alpha=alpha, beta=beta, num_heads=2)
        np.testing.assert_allclose(y, alpha * both[:, 4:] + beta * both[:, :4], **CLOSE)
    _, pullback = refattn.conv_attention_sum.vjp(**given, alpha=np.asarray(0.0), beta=1.0, num_heads=2)
    d = pullback(np.ones_like(y))
    np.testing.assert_allclose(d["alpha"], both[:, 4:].sum(), **CLOSE)
    assert "beta" not in d
    assert not np.any(d["weights"].w_output)


def test_only_with_tables_does_the_attention_see_positions():
    """Attention without positions moves with the pixels, in whatever order they stand."""
    order = Random(4).permutation(12)

    def shuffled(x):
        return x.reshape(2, -1, 12)[..., order].reshape(2, -1, 4, 3)

    for bare in (True, False):
        given = augmented(bare=bare)
        one, other = (
            refattn.attention_augmented_conv2d(x, given["weights"], num_heads=2)[:, 2:] for x in (given["x"], shuffled(given["x"]))
        )
        assert (np.abs(shuffled(one) - other).max() < 1e-12) == bare


# Attention to a square


def local(seed=0, channels=4):
    return {name: Random(seed + i).normal((2, channels, 4, 5)) for i, name in enumerate(("query", "key", "value"))}


def dense(maps, mask=None, heads=2):
    """All positions attend, or those of a mask."""
    split = [tokens(x).reshape(2, 20, heads, -1).swapaxes(1, 2) for x in maps.values()]
    y = refattn.scaled_dot_product_attention(*split, mask=mask)
    return y.swapaxes(1, 2).reshape(2, 20, -1).swapaxes(1, 2).reshape(2, -1, 4, 5)


@pytest.mark.parametrize("kernel_size", [1, 3, 5, 9])
def test_attention_to_a_square_is_attention_with_a_mask(kernel_size):
    maps = local()
    down, across = (masks.sliding_window(n, n, left=kernel_size // 2, right=kernel_size // 2) for n in (4, 5))
    mask = (down[:, None, :, None] & across[:, None]).reshape(20, 20)
    y = refattn.local_attention_2d(**maps, num_heads=2, kernel_size=kernel_size, border="masked")
    np.testing.assert_allclose(y, dense(maps, mask), **CLOSE)
    if kernel_size == 9:  # a square that holds the map, wherever its middle is
        np.testing.assert_allclose(y, dense(maps), **CLOSE)


def test_a_mirrored_border_is_a_larger_map():
    maps, w_position = local(), Random(9).normal((2, 2))
    given = {"num_heads": 2, "kernel_size": 5, "border": "masked"}
    larger = {name: refattn.pad(x, padding=((2, 2), (2, 2)), mode="reflect") for name, x in maps.items()}
    inner = refattn.local_attention_2d(**larger, **given)[:, :, 2:-2, 2:-2]
    y = refattn.local_attention_2d(**maps, **{**given, "border": "reflect"})
    np.testing.assert_allclose(y, inner, **CLOSE)
    with_positions = refattn.local_attention_2d(**maps, w_position=w_position, **{**given, "border": "reflect"})
    assert np.abs(with_positions - y).max() > 0.01
    small = [refattn.local_attention_2d(**maps, **{**given, "kernel_size": 3, "border": border}) for border in ("reflect", "masked")]
    np.testing.assert_allclose(*(y[:, :, 1:-1, 1:-1] for y in small), **CLOSE)  # where no square reaches beyond the edge
    assert min(np.abs(small[0] - small[1])[:, :, i].max() for i in (0, -1)) > 0.01


def test_positions_are_scaled_as_keys_are():
    """Four times the features, three quarters of them 0, halve all scores; a query of twice the size undoes it."""
    maps, w_position = local(channels=1), Random(9).normal((1, 2))
    y = refattn.local_attention_2d(**maps, w_position=w_position, num_heads=1, kernel_size=3)
    wide = {name: np.concatenate([2 * x if name == "query" else x, *[0 * x] * 3], axis=1) for name, x in maps.items()}
    wide_position = np.concatenate([w_position, Random(3).normal((3, 2))])
    np.testing.assert_allclose(refattn.local_attention_2d(**wide, w_position=wide_position, num_heads=1, kernel_size=3)[:, :1], y, **CLOSE)
    alone = refattn.local_attention_2d(**maps, w_position=w_position, num_heads=1, kernel_size=1)
    np.testing.assert_array_equal(alone, maps["value"])


def test_a_stride_leaves_queries_out():
    maps, w_position = local(), Random(9).normal((2, 2))
    for border in ("reflect", "masked"):
        given = {**maps, "w_position": w_position, "num_heads": 2, "kernel_size": 3, "border": border}
        y = refattn.local_attention_2d(**given)
        for stride in (2, 3):
            np.testing.assert_array_equal(refattn.local_attention_2d(**given, stride=stride), y[:, :, ::stride, ::stride])


# ACmix


def composed(weights, heads):
    """The kernel of the convolution that ACmix makes of its projections."""
    projections = np.concatenate([w.reshape(heads, -1, w.shape[1]) for w in (weights.w_query, weights.w_key, weights.w_value)])
    of_tap = np.einsum("uvm,mec->ecuv", weights.w_mix, projections)  # a kernel for each feature
    if weights.w_shift is None:
        return of_tap.repeat(heads, axis=0)
    maps = of_tap.reshape(*of_tap.shape[:2], -1).repeat(heads, axis=0)
    return np.einsum("oct,otuv->ocuv", maps, weights.w_shift)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bare", [True, False], ids=["shifts", "learned"])
def test_acmix_without_attention_is_a_convolution(bare, stride):
    weights = acmix_weights(Random(1), 3, 4, (3, 3), heads=2, bare=bare)._replace(b_query=None, b_key=None, b_value=None)
    x = Random(0).normal((2, 3, 5, 4))
    y, pullback = refattn.acmix.vjp(x, weights, 0.0, 1.0, num_heads=2, stride=stride, kernel_size=3)
    conv, conv_pullback = refattn.conv2d.vjp(x, composed(weights, 2), weights.b_shift, stride=stride, padding=1)
    np.testing.assert_allclose(y, conv, **CLOSE)
    (dy,) = testing.cotangents(y)
    np.testing.assert_allclose(pullback(dy)["x"], conv_pullback(dy)["x"], **CLOSE)


def test_acmix_without_a_convolution_is_attention_to_a_square():
    weights = acmix_weights(Random(1), 3, 4, (3, 3), heads=2)
    x = Random(0).normal((2, 3, 5, 4))
    given = zip((weights.w_query, weights.w_key, weights.w_value), (weights.b_query, weights.b_key, weights.b_value), strict=True)
    maps = [refattn.pointwise_conv2d(x, w[:, :, None, None], b) for w, b in given]
    y, pullback = refattn.acmix.vjp(x, weights, 1.0, 0.0, num_heads=2, kernel_size=3)
    local_attention = refattn.local_attention_2d(*maps, weights.w_position, num_heads=2, kernel_size=3)
    np.testing.assert_array_equal(y, local_attention)
    d = pullback(np.ones_like(y))["weights"]
    assert not any(np.any(g) for g in (d.w_mix, d.w_shift, d.b_shift))


def test_learned_kernels_begin_as_shifts():
    bare = acmix_weights(Random(1), 3, 4, (3, 3), heads=2, bare=True)
    begin = np.broadcast_to(np.eye(9).reshape(9, 3, 3), (4, 9, 3, 3))
    given = {"x": Random(0).normal((2, 3, 5, 4)), "alpha": 0.5, "beta": 0.5, "num_heads": 2, "kernel_size": 3}
    one, other = (refattn.acmix.vjp(**given, weights=w) for w in (bare, bare._replace(w_shift=begin)))
    np.testing.assert_array_equal(one[0], other[0])
    grads = [dict(tree.leaves(pullback(np.ones_like(one[0])))) for _, pullback in (one, other)]
    assert grads[1].keys() - grads[0].keys() == {"weights.w_shift"}
    for name, g in grads[0].items():
        np.testing.assert_array_equal(g, grads[1][name])


def test_a_convolution_is_a_sum_of_shifted_projections():
    """Section 3.1 of the paper: one projection for each tap, shifted and summed."""
    x, weight = Random(0).normal((2, 3, 5, 4)), Random(1).normal((6, 3, 3, 3))
    total = np.zeros((2, 6, 5, 4))
    for u, v in np.ndindex(3, 3):
        projected = refattn.pointwise_conv2d(x, weight[:, :, u, v, None, None])
        total += refattn.pad(projected, padding=((1, 1), (1, 1)))[:, :, u : u + 5, v : v + 4]
    np.testing.assert_allclose(refattn.conv2d(x, weight, padding=1), total, **CLOSE)
