"""What must hold of attention between pixels and of the residual attention module, by mathematics."""

from __future__ import annotations

import numpy as np
import pytest

import refattn
from refattn import testing
from refattn._core import tree
from refattn._core.random import Random
from refattn.blocks import residual_draws

EXACT = {"rtol": 1e-12, "atol": 1e-12}  # sums of at most 50 numbers near 1, in another order


def sample(mechanism, name):
    return {s.name: dict(s.arguments) for s in testing.samples(mechanism)}[name]


def gradients(mechanism, **given):
    y, pullback = mechanism.vjp(**given)
    return y, dict(tree.leaves(pullback(*testing.cotangents(y))))


# The non-local block


@pytest.mark.parametrize("pair", ["gaussian", "embedded gaussian", "dot product", "concatenation"])
@pytest.mark.parametrize("pooled", ["embeddings", "input"])
def test_windows_of_one_position_pool_nothing(pair, pooled):
    given = sample(refattn.non_local, pair)
    y, grads = gradients(refattn.non_local, **given)
    z, others = gradients(refattn.non_local, **given, pool=1, pooled=pooled)
    np.testing.assert_allclose(y, z, **EXACT)
    for name, g in grads.items():
        np.testing.assert_allclose(g, others[name], **EXACT, err_msg=name)


def test_a_maximum_does_not_commute_with_an_embedding():
    given = sample(refattn.non_local, "pooled")
    after, before = (refattn.non_local(**{**given, "pooled": pooled}) for pooled in ("embeddings", "input"))
    assert np.abs(after - before).max() > 0.1
    weights = ("w_theta", "w_phi", "w_g")  # unless it keeps the order: a diagonal one that is positive
    ordered = {**given, **{name: 0.5 * np.eye(4) for name in weights}, "w_output": np.eye(4)}
    ordered.update(dict.fromkeys(("b_theta", "b_phi", "b_g"), given["x"][0, :, 0, 0]))
    after, before = (refattn.non_local(**{**ordered, "pooled": pooled}) for pooled in ("embeddings", "input"))
    np.testing.assert_allclose(after, before, **EXACT)


def test_positions_that_fill_no_window_are_not_read():
    given = sample(refattn.non_local, "pooled")
    assert given["x"].shape[2] == 5
    changed = given["x"].copy()
    changed[:, :, 4] += 1
    y, z = refattn.non_local(**given), refattn.non_local(**{**given, "x": changed})
    np.testing.assert_array_equal(y[:, :, :4], z[:, :, :4])
    assert np.abs(y[:, :, 4] - z[:, :, 4]).min() > 0.01


def test_one_window_adds_the_same_everywhere():
    given = {**sample(refattn.non_local, "embedded gaussian"), "pool": (2, 3)}
    added = refattn.non_local(**given) - given["x"]
    np.testing.assert_allclose(added, np.broadcast_to(added[:, :, :1, :1], added.shape), **EXACT)


def test_non_local_and_sagan_are_self_attention_over_pixels():
    given = sample(refattn.non_local, "sequence")
    assert given.pop("pair") == "embedded_gaussian"
    names = {"theta": "query", "phi": "key", "g": "value", "output": "output"}
    renamed = {f"{kind}_{new}": given[f"{kind}_{old}"] for old, new in names.items() for kind in "wb"}
    x = given["x"]
    read = refattn.pixel_self_attention(x, **renamed, scale=1.0)
    np.testing.assert_allclose(refattn.non_local(**given), x + read, **EXACT)
    assert np.abs(read - refattn.pixel_self_attention(x, **renamed)).max() > 0.01  # which is scaled

    f, g, h, v = (given[name] for name in ("w_phi", "w_theta", "w_g", "w_output"))
    o = np.zeros_like(x)  # as SAGAN writes it, with keys before queries
    for n, image in enumerate(x):
        s = (f @ image).T @ (g @ image)
        beta = refattn.softmax(s.T)
        o[n] = v @ ((h @ image) @ beta.T)
    weights = {name: renamed[name] for name in ("w_query", "w_key", "w_value", "w_output")}
    np.testing.assert_allclose(o, refattn.pixel_self_attention(x, **weights, scale=1.0), **EXACT)


# Self-attention over pixels


def test_pixels_do_not_know_where_they_are():
    given = sample(refattn.pixel_self_attention, "two heads")
    x = given.pop("x")
    order = Random(1).permutation(6)

    def moved(a):
        return a.reshape(*a.shape[:2], 6)[..., order].reshape(a.shape)

    np.testing.assert_allclose(refattn.pixel_self_attention(moved(x), **given), moved(refattn.pixel_self_attention(x, **given)), **EXACT)


def test_without_an_output_projection_the_heads_stand_behind_each_other():
    given = sample(refattn.pixel_self_attention, "learned temperatures")
    y, grads = gradients(refattn.pixel_self_attention, **given)
    z, others = gradients(refattn.pixel_self_attention, **given, w_output=np.eye(6))
    np.testing.assert_array_equal(y, z)
    assert others.keys() - grads.keys() == {"w_output"}
    for name, g in grads.items():
        np.testing.assert_array_equal(g, others[name], err_msg=name)


# Non-local means


def test_non_local_means_is_attention_to_patches():
    given = sample(refattn.non_local_means, "for each image")
    x, h = given["x"], given["h"][:, None, None]
    batch, channels, height, width = x.shape
    padded = refattn.pad(x, padding=((1, 1), (1, 1)), mode="reflect")
    shifts = [padded[:, :, a : a + height, b : b + width].reshape(batch, channels, -1) for a in range(3) for b in range(3)]
    patches = np.concatenate(shifts, axis=1).swapaxes(1, 2) / np.sqrt(9 * channels)
    rows, columns = np.divmod(np.arange(height * width), width)
    near = (abs(rows[:, None] - rows) <= 2) & (abs(columns[:, None] - columns) <= 2)
    value = x.reshape(batch, channels, -1).swapaxes(1, 2)
    bias = -(patches**2).sum(axis=-1)[:, None] / h**2
    y = refattn.scaled_dot_product_attention(
        patches[:, None], patches[:, None], value[:, None], bias[:, None], scale=(2 / h**2)[:, None], mask=near
    )[:, 0]
    np.testing.assert_allclose(refattn.non_local_means(**given), y.swapaxes(1, 2).reshape(x.shape), **EXACT)


@pytest.mark.parametrize("self_weight", ["own", "largest"])
def test_a_large_h_takes_the_mean_of_the_window_and_a_small_one_the_nearest_patch(self_weight):
    x = Random(0).normal((1, 1, 5, 6))
    options = {"patch_size": 3, "window": (1, 2), "self_weight": self_weight}
    mean = np.zeros(x.shape)
    for i, j in np.ndindex(5, 6):
        mean[0, 0, i, j] = x[0, 0, max(i - 1, 0) : i + 2, max(j - 2, 0) : j + 3].mean()
    np.testing.assert_allclose(refattn.non_local_means(x, 1e9, **options), mean, **EXACT)
    sharp = refattn.non_local_means(x, 1e-2, **options)
    if self_weight == "own":
        np.testing.assert_array_equal(sharp, x)
    else:  # a pixel and its nearest have one weight, and no other has any
        nearest = 2 * sharp - x
        assert np.abs(nearest[..., None] - x.ravel()).min(axis=-1).max() < 1e-9
        assert np.abs(nearest - x).min() > 1e-6


def test_an_even_image_stays_as_it_is_and_its_h_has_no_gradient():
    y, grads = gradients(refattn.non_local_means, x=np.full((1, 2, 4, 4), 3.0), h=np.asarray(0.5), patch_size=3)
    np.testing.assert_allclose(y, 3.0, **EXACT)
    assert grads["h"] == 0


# Attention residual learning


@pytest.mark.parametrize(("logit", "factor"), [(-np.inf, 1), (0.0, 1.5), (np.inf, 2)])
def test_the_gate_is_between_the_trunk_and_twice_the_trunk(logit, factor):
    trunk = Random(0).normal((2, 3, 4))
    np.testing.assert_array_equal(refattn.residual_attention(trunk, np.full_like(trunk, logit)), factor * trunk)


def test_constraints_remove_what_they_are_said_to_remove():
    random = Random(0)
    one, logits = np.ones((2, 3, 4, 5)), random.normal((2, 3, 4, 5))
    channel, spatial = (refattn.residual_attention(one, logits, constraint=c, eps=0.0) - 1 for c in ("channel", "spatial"))
    np.testing.assert_allclose((channel**2).sum(axis=1), 1, **EXACT)
    scales, shifts = (random.uniform(0.5, 2.0, shape) for shape in ((2, 1, 4, 5), (2, 3, 1, 1)))
    scaled = refattn.residual_attention(one, logits * scales, constraint="channel", eps=0.0) - 1
    np.testing.assert_allclose(scaled, channel, **EXACT)
    moved = refattn.residual_attention(one, logits * shifts + shifts, constraint="spatial", eps=0.0) - 1
    np.testing.assert_allclose(moved, spatial, **EXACT)


def test_a_module_without_units_or_levels_is_its_gate():
    random = Random(0)
    weights = residual_draws.residual_attention_weights(random, 3, 2, levels=0, units=(0, 0, 0))
    x = random.normal((2, 3, 4, 5))
    logits = refattn.soft_mask_branch(x, weights.mask)
    assert np.abs(logits).min() > 0
    np.testing.assert_array_equal(refattn.residual_attention_module(x, weights), refattn.residual_attention(x, logits))


def test_units_that_add_nothing_leave_a_map_as_it_is():
    random = Random(0)
    unit = residual_draws.residual_unit_weights(random, 3, 2)
    x = random.normal((2, 3, 4, 5))
    still = unit._replace(w_expand=np.zeros_like(unit.w_expand))
    np.testing.assert_array_equal(refattn.residual_unit(x, still), x)
    assert np.abs(refattn.residual_unit(x, unit) - x).max() > 0.1


def test_examples_do_not_see_each_other():
    random = Random(0)
    weights = residual_draws.residual_attention_weights(random, 3, 2, levels=2)
    x = random.normal((2, 3, 8, 9))
    both = refattn.residual_attention_module(x, weights)
    np.testing.assert_allclose(both[1:], refattn.residual_attention_module(x[1:], weights), **EXACT)


@pytest.mark.parametrize(("pooling", "reads"), [("hanging", 2), ("padded", 1)])
def test_the_first_window_begins_at_the_border_or_before_it(pooling, reads):
    """With pooling alone, the corner of the mask sees as many rows as its window has inside the map."""
    random = Random(0)
    mask = residual_draws.soft_mask_weights(random, 2, 1)._replace(levels=(refattn.SoftMaskLevelWeights((), ()),))
    x = random.normal((1, 2, 8, 8)) / 4
    first = refattn.soft_mask_branch(x, mask, pooling=pooling)[0, :, 0, 0]
    for row in range(4):
        changed = x.copy()
        changed[0, :, row] += 10
        seen = np.abs(refattn.soft_mask_branch(changed, mask, pooling=pooling)[0, :, 0, 0] - first).max() > 1e-6
        assert seen == (row <= reads)


def test_equal_rows_have_distance_0():
    a = Random(0).normal((3, 5)) * 1e8
    assert (refattn.squared_distances(a, a.copy()).diagonal() == 0).all()


def test_a_pixel_outside_the_window_is_not_read():
    """A dead pixel spoils the means whose window has it, and neither the others nor their gradients."""
    x = Random(1).normal((1, 1, 4, 9))
    x[0, 0, 0, 0] = np.nan
    y, pullback = refattn.non_local_means.vjp(x, 1.25, patch_size=3, window=2)
    spoilt = np.isnan(y[0, 0])
    assert spoilt[:, :4].all() and not spoilt[:, 4:].any()  # patches of the second column have it, and two columns on they are seen
    dx = pullback(np.where(np.isnan(y), 0.0, 1.0))["x"][0, 0]
    assert np.isfinite(dx[:, 7:]).all()


def test_a_patch_as_narrow_as_its_middle():
    x = Random(2).normal((1, 1, 4, 4))
    narrow = refattn.non_local_means(x, 1.25, patch_size=3, patch_std=1e-200)
    np.testing.assert_array_equal(narrow, refattn.non_local_means(x, 1.25, patch_size=1))


def test_rows_that_are_not_compared_have_no_gradient():
    a, b, mask = Random(3).normal((3, 4)), Random(4).normal((2, 4)), np.array([[True, False], [False, False], [True, False]])
    a[1], b[1] = np.nan, np.inf
    y, pullback = refattn.squared_distances.vjp(a, b, mask=mask)
    d = pullback(np.ones_like(y))
    assert not y[~mask].any() and not d["a"][1].any() and not d["b"][1].any()
    np.testing.assert_allclose(d["a"][::2], 2 * (a[::2] - b[0]), **EXACT)
