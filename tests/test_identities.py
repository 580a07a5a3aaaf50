"""What must hold between mechanisms, or between two calls of one, by mathematics."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

import refattn
from refattn import masks, testing
from refattn._core.mechanism import outputs
from refattn._core.random import Random

EXACT = {"rtol": 1e-13, "atol": 1e-13}  # sums of at most 50 numbers near 1, in another order


def qkv(seed=0, *, heads=4, kv_heads=4, query_len=5, key_len=7):
    random = Random(seed)
    return {
        "query": random.normal((2, heads, query_len, 3)),
        "key": random.normal((2, kv_heads, key_len, 3)),
        "value": random.normal((2, kv_heads, key_len, 6)),
    }


def gradients(mechanism, given):
    y, pullback = mechanism.vjp(**given)
    return outputs(y), dict(pullback(*testing.cotangents(y)))


def same(one, other, **tolerance):
    """Outputs and gradients agree; with no tolerance, exactly."""
    for a, b in zip(one[0], other[0], strict=True):
        np.testing.assert_allclose(a, b, **(tolerance or {"rtol": 0, "atol": 0}))
    assert one[1].keys() == other[1].keys()
    for name, g in one[1].items():
        np.testing.assert_allclose(g, other[1][name], **(tolerance or {"rtol": 0, "atol": 0}), err_msg=name)


# Scaled dot-product attention


def test_one_key_head_is_multi_query_attention():
    given = qkv(kv_heads=1)
    (output,), grads = gradients(refattn.scaled_dot_product_attention, given)
    (d_output,) = testing.cotangents(output)
    summed = {"key": 0, "value": 0}
    for h in range(4):
        alone, pullback = refattn.scaled_dot_product_attention.vjp(given["query"][:, h : h + 1], given["key"], given["value"])
        np.testing.assert_allclose(output[:, h : h + 1], alone, **EXACT)
        d = pullback(d_output[:, h : h + 1])
        np.testing.assert_allclose(grads["query"][:, h : h + 1], d["query"], **EXACT)
        summed = {name: summed[name] + d[name] for name in summed}
    for name, total in summed.items():
        np.testing.assert_allclose(grads[name], total, **EXACT)


def test_grouped_heads_are_repeated_keys_and_values():
    given = qkv(kv_heads=2)
    grouped = gradients(refattn.scaled_dot_product_attention, given)
    repeated = gradients(refattn.scaled_dot_product_attention, {**given, **{n: given[n].repeat(2, axis=1) for n in ("key", "value")}})
    for name in ("key", "value"):
        repeated[1][name] = repeated[1][name].reshape(2, 2, 2, *given[name].shape[2:]).sum(axis=2)
    same(grouped, repeated, **EXACT)


@pytest.mark.parametrize("align", ["upper_left", "lower_right"])
def test_a_window_as_long_as_everything_is_none(align):
    given = qkv()
    same(
        gradients(refattn.scaled_dot_product_attention, {**given, "window": (7, 7), "align": align}),
        gradients(refattn.scaled_dot_product_attention, given),
    )
    same(
        gradients(refattn.scaled_dot_product_attention, {**given, "window": (7, 0), "align": align}),
        gradients(refattn.scaled_dot_product_attention, {**given, "causal": True, "align": align}),
    )


def test_a_mask_is_a_bias_of_minus_infinity():
    given, mask = qkv(), Random(3).booleans(0.6, (2, 1, 5, 7))
    mask[0, 0, 2] = False
    masked = gradients(refattn.scaled_dot_product_attention, {**given, "mask": mask})
    biased = gradients(refattn.scaled_dot_product_attention, {**given, "bias": np.where(mask, 0.0, -np.inf)})
    assert (biased[1].pop("bias")[~mask] == 0).all()
    same(masked, biased)


def test_gradients_of_the_values_sum_to_those_of_the_outputs():
    given = qkv()
    output, pullback = refattn.scaled_dot_product_attention.vjp(**given, causal=True, align="lower_right")
    (d_output,) = testing.cotangents(output)
    np.testing.assert_allclose(pullback(d_output)["value"].sum(axis=-2), d_output.sum(axis=-2), **EXACT)


def test_the_order_of_the_keys_does_not_matter():
    given, order = qkv(), Random(4).permutation(7)
    bias = Random(5).normal((4, 5, 7))
    plain = gradients(refattn.scaled_dot_product_attention, {**given, "bias": bias})
    moved = {**given, "key": given["key"][..., order, :], "value": given["value"][..., order, :], "bias": bias[..., order]}
    permuted = gradients(refattn.scaled_dot_product_attention, moved)
    expected = {**plain[1], **{n: plain[1][n][..., order, :] for n in ("key", "value")}, "bias": plain[1]["bias"][..., order]}
    same((plain[0], expected), permuted, **EXACT)


def test_the_order_of_the_queries_is_that_of_the_outputs():
    given, order = qkv(), Random(4).permutation(5)
    output = refattn.scaled_dot_product_attention(**given)
    moved = refattn.scaled_dot_product_attention(**{**given, "query": given["query"][..., order, :]})
    np.testing.assert_allclose(moved, output[..., order, :], **EXACT)


def test_a_number_added_to_a_row_of_scores_changes_its_lse_alone():
    given, shift = qkv(), 30 * Random(6).normal((4, 5, 1))
    output, lse = refattn.scaled_dot_product_attention_with_lse(**given)
    (moved, moved_lse), pullback = refattn.scaled_dot_product_attention_with_lse.vjp(**given, bias=shift)
    np.testing.assert_allclose(moved, output, rtol=1e-12, atol=1e-12)  # scores up to 100 have 50 times the rounding
    np.testing.assert_allclose(moved_lse, lse + shift[..., 0], rtol=1e-13)
    d_output, _ = testing.cotangents((output, lse))
    np.testing.assert_allclose(pullback(d_output)["bias"], 0, atol=1e-12)


def test_a_bias_of_the_keys_has_no_effect_on_plain_multi_head_attention():
    given = next(s.arguments for s in testing.samples(refattn.multi_head_attention) if s.name == "cross")
    (plain,), _ = gradients(refattn.multi_head_attention, given)
    (biased,), grads = gradients(refattn.multi_head_attention, {**given, "b_key": Random(7).normal(8)})
    np.testing.assert_allclose(biased, plain, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(grads["b_key"], 0, atol=1e-11)


def test_multi_head_attention_of_one_head_and_identities_is_attention():
    x, eye = Random(8).normal((2, 5, 4)), np.eye(4)
    whole = refattn.multi_head_attention(x, x, x, eye, eye, eye, eye, num_heads=1, causal=True)
    np.testing.assert_allclose(whole, refattn.scaled_dot_product_attention(*[x[:, None]] * 3, causal=True)[:, 0], **EXACT)


@pytest.mark.parametrize("num_heads", [1, 2, 4])
def test_heads_without_projections_are_multi_head_attention_with_identities(num_heads):
    random, eye = Random(9), np.eye(8)
    given = {"query": random.normal((2, 3, 8)), "key": random.normal((2, 5, 8)), "value": random.normal((2, 5, 8)), "num_heads": num_heads}
    given |= {"mask": random.booleans(0.6, (2, num_heads, 3, 5)), "scale": 0.3}
    alone = gradients(refattn.multi_head_attention_without_projections, given)
    projected, grads = gradients(refattn.multi_head_attention, {**given, **dict.fromkeys(("w_query", "w_key", "w_value", "w_output"), eye)})
    same(alone, (projected, {n: grads[n] for n in alone[1]}), **EXACT)


# Blocks of keys, and some rows of queries

WHOLE = {
    "plain": {},
    "causal": {"causal": True, "align": "lower_right"},
    "window": {"window": (2, 1), "align": "upper_left"},
    "scores": {"scale": 0.7, "softcap": 1.5, "sinks": Random(1).normal(4), "bias": Random(2).normal((4, 5, 7))},
    "mask": {"mask": Random(3).booleans(0.4, (2, 4, 5, 7)), "bias": Random(2).normal((4, 1, 7))},
    "temperature": {"scale": Random(4).uniform(0.5, 1.0, (5, 1))},
    "dropout": {"keep": Random(5).booleans(0.7, (4, 5, 7)), "dropout_rate": 0.3},
    "masked row": {"mask": np.arange(5)[:, None] != 2, "masked_rows": "nan"},
}


@pytest.mark.parametrize("block_size", [1, 3, 7, 100])
@pytest.mark.parametrize("options", WHOLE.values(), ids=WHOLE)
def test_blocks_of_keys_are_the_whole(options, block_size):
    given = {**qkv(kv_heads=2), **options}
    whole = gradients(refattn.scaled_dot_product_attention_with_lse, given)
    same(gradients(refattn.scaled_dot_product_attention_rows, {**given, "block_size": block_size}), whole, **EXACT)


@pytest.mark.parametrize("options", WHOLE.values(), ids=WHOLE)
def test_rows_are_rows_of_the_whole(options):
    rows = np.array([3, 0, 2])
    given = {**qkv(kv_heads=2), **options}
    of_rows = {n: x[..., rows, :] for n, x in options.items() if isinstance(x, np.ndarray) and x.ndim > 1 and x.shape[-2] == 5}
    (output, lse), pullback = refattn.scaled_dot_product_attention_rows.vjp(**{**given, **of_rows}, rows=rows, block_size=3)
    whole, whole_pullback = refattn.scaled_dot_product_attention_with_lse.vjp(**given)
    np.testing.assert_allclose(output, whole.output[..., rows, :], **EXACT)
    np.testing.assert_allclose(lse, whole.lse[..., rows], **EXACT)
    ds = testing.cotangents((output, lse))
    full = [np.zeros_like(x) for x in whole]
    full[0][..., rows, :], full[1][..., rows] = ds
    wanted = dict(whole_pullback(*full))
    for name, g in pullback(*ds).items():
        np.testing.assert_allclose(g, wanted[name][..., rows, :] if name in of_rows else wanted[name], **EXACT, err_msg=name)


def test_merged_parts_may_be_merged_again():
    random = Random(9)
    parts, lses = random.normal((4, 2, 3, 5)), 5 * random.normal((4, 2, 3))
    lses[1, 0, 0] = -np.inf
    whole = refattn.merge_attention(parts, lses)
    halves = [refattn.merge_attention(parts[i : i + 2], lses[i : i + 2]) for i in (0, 2)]
    again = refattn.merge_attention(*(np.stack(x) for x in zip(*halves, strict=True)))
    reverse = refattn.merge_attention(parts[::-1], lses[::-1])
    for other in (again, reverse):
        for a, b in zip(whole, other, strict=True):
            np.testing.assert_allclose(a, b, **EXACT)


def test_rows_hold_blocks_and_no_copy_of_the_inputs():
    random = Random(10)
    query, key, value = (random.normal((1, 2**16, 16)) for _ in range(3))  # 8 MiB each
    rows = np.arange(0, 2**16, 2**13)
    tracemalloc.start()
    (output, lse), pullback = refattn.scaled_dot_product_attention_rows.vjp(query, key, value, rows=rows, causal=True)
    _, forward = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    grads = pullback(*testing.cotangents((output, lse)))
    _, backward = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert forward < query.nbytes / 2  # a few arrays of 8 rows by 8192 keys
    assert backward < sum(g.nbytes for g in grads.values()) + query.nbytes * 1.5  # one gradient is copied at a time


# What stands behind a mask

POISON = pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
PADDED = np.arange(7) < np.array([5, 4])[:, None]  # keys that count, for each of two examples


def poisoned(x, there, poison):
    return np.where(there, x, poison)


HIDDEN = {
    "scaled_dot_product_attention": {},
    "scaled_dot_product_attention_with_lse": {"sinks": Random(1).normal(4), "softcap": 2.0},
    "scaled_dot_product_attention_with_weights": {"bias": Random(2).normal((4, 5, 7)), "causal": True, "align": "lower_right"},
    "scaled_dot_product_attention_rows": {"bias": Random(2).normal((4, 5, 7)), "block_size": 3},
}


@POISON
@pytest.mark.parametrize(("name", "options"), HIDDEN.items(), ids=HIDDEN)
def test_padding_of_keys_and_values_is_not_read(name, options, poison):
    clean = {**qkv(kv_heads=2), **options, "mask": PADDED[:, None, None, :]}
    there = PADDED[:, None, :, None]
    dirty = {**clean, **{n: poisoned(clean[n], there, poison) for n in ("key", "value")}}
    one, other = gradients(getattr(refattn, name), clean), gradients(getattr(refattn, name), dirty)
    assert all(np.isfinite(g).all() for g in other[1].values())
    same(one, other)


@POISON
def test_a_query_that_sees_a_poisoned_key_does_not_spoil_the_others(poison):
    clean = {**qkv(), "causal": True, "align": "upper_left"}
    dirty = {**clean, "value": clean["value"].copy()}
    dirty["value"][..., 3, :] = poison
    one, other = (refattn.scaled_dot_product_attention(**given) for given in (clean, dirty))
    np.testing.assert_array_equal(one[..., :3, :], other[..., :3, :])
    assert not np.isfinite(other[..., 3:, :]).any()


@POISON
@pytest.mark.parametrize("spoilt", ["query", "key", "value"])
def test_what_a_row_sees_spoils_no_pair_behind_its_mask(spoilt, poison):
    given = {**qkv(), "mask": np.arange(7) < 5}
    given[spoilt] = np.full_like(given[spoilt], poison)
    output, pullback = refattn.scaled_dot_product_attention_with_weights.vjp(**given)
    assert np.isnan(pullback(np.cos(np.arange(output.output.size)).reshape(output.output.shape))["key"][..., :5, :]).any()
    assert (output.weights[..., 5:] == 0).all()
    for name in ("key", "value"):
        assert (pullback(np.ones_like(output.output))[name][..., 5:, :] == 0).all()


@POISON
def test_padding_of_tokens_reaches_no_gradient_of_multi_head_attention(poison):
    random = Random(11)
    clean = {
        "query": random.normal((2, 5, 4)),
        "key": random.normal((2, 7, 4)),
        "value": random.normal((2, 7, 4)),
        **{f"w_{n}": random.normal((4, 4)) for n in ("query", "key", "value", "output")},
        **{f"b_{n}": random.normal(4) for n in ("query", "key", "value", "output")},
        "num_heads": 2,
        "mask": PADDED[:, None, None, :],
    }
    dirty = {**clean, **{n: poisoned(clean[n], PADDED[:, :, None], poison) for n in ("key", "value")}}
    one, other = gradients(refattn.multi_head_attention, clean), gradients(refattn.multi_head_attention, dirty)
    assert all(np.isfinite(g).all() for g in other[1].values())
    same(one, other)


EMPTY = {"no batch": {"batch": 0}, "no queries": {"query_len": 0}, "no keys": {"key_len": 0}}


@pytest.mark.parametrize("sizes", EMPTY.values(), ids=EMPTY)
@pytest.mark.parametrize("name", ["scaled_dot_product_attention", *HIDDEN, "multi_head_attention"])
def test_nothing_gives_zeros(name, sizes):
    batch, query_len, key_len = ({"batch": 2, "query_len": 5, "key_len": 7} | sizes).values()
    random = Random(12)
    heads = (2,) if name.startswith("scaled") else ()
    lengths = {"query": query_len, "key": key_len, "value": key_len}
    given = {n: random.normal((batch, *heads, length, 4)) for n, length in lengths.items()}
    if name == "multi_head_attention":
        given |= {f"w_{n}": random.normal((4, 4)) for n in ("query", "key", "value", "output")} | {"num_heads": 2}
    made, grads = gradients(getattr(refattn, name), given)
    assert made[0].shape == (batch, *heads, query_len, 4)
    assert (made[0] == 0).all()
    assert all((g == 0).all() and g.shape == given[n].shape for n, g in grads.items())


# Gates and maps


def gate(t):
    return (1 / (1 + np.exp(-t)))[:, :, None, None]


def test_non_local_is_unscaled_attention_or_a_mean():
    samples = {s.name: dict(s.arguments) for s in testing.samples(refattn.non_local)}
    given = samples["embedded gaussian"]
    x = given["x"]
    tokens = x.reshape(2, 4, 6).swapaxes(1, 2)
    theta, phi, g = (tokens @ given[f"w_{n}"].T for n in ("theta", "phi", "g"))
    attended = {
        "unscaled": refattn.scaled_dot_product_attention(theta[:, None], phi[:, None], g[:, None], scale=1.0)[:, 0],
        "scaled": refattn.scaled_dot_product_attention(theta[:, None], phi[:, None], g[:, None])[:, 0],
        "mean": theta @ phi.swapaxes(1, 2) @ g / 6,
    }
    wanted = {n: x + (y @ given["w_output"].T).swapaxes(1, 2).reshape(x.shape) for n, y in attended.items()}
    z, mean = refattn.non_local(**given), refattn.non_local(**{**given, "pair": "dot_product"})
    np.testing.assert_allclose(z, wanted["unscaled"], **EXACT)
    np.testing.assert_allclose(mean, wanted["mean"], **EXACT)
    assert min(np.abs(z - wanted["scaled"]).max(), np.abs(z - mean).max()) > 0.01


# The hook


def test_the_hook_sees_the_weights_inside_multi_head_attention():
    given = next(testing.samples(refattn.multi_head_attention)).arguments
    seen = {}
    with refattn.hooked(lambda r: seen.update({(r.path, r.name): r.value})):
        refattn.multi_head_attention(**given)
    weights = seen[("multi_head_attention", "scaled_dot_product_attention", "masked_softmax"), "weights"]
    assert weights.shape == (2, 4, 3, 4)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, **EXACT)


def rounded_to(bits):
    """Round to so many significant bits, to nearest, ties to even."""

    def round_(x):
        mantissa, exponent = np.frexp(x)
        return np.ldexp(np.rint(mantissa * 2.0**bits), exponent - bits)

    return round_


@pytest.mark.parametrize("bits", [24, 8], ids=["float32", "bfloat16"])
def test_the_hook_rounds_every_intermediate_of_cbam(bits):
    """The same steps in NumPy, each of them rounded, give the same bits: so no step escapes the hook."""
    *_, sample = testing.samples(refattn.cbam)
    r, order = rounded_to(bits), []

    def hook(result):
        if result.kind == "output":
            order.append(result.path[1:])
        return r(result.value)

    with refattn.hooked(hook):
        y = refattn.cbam(**sample.arguments)
    a = {name: r(x) for name, x in sample.arguments.items()}

    def network(z):
        return r(np.maximum(r(z @ a["w_reduce"].T + a["b_reduce"]), 0) @ a["w_expand"].T + a["b_expand"])

    x = a["x"]
    total = r(network(r(x.mean((2, 3)))) + network(x.max((2, 3))))
    x = r(x * r(gate(total)))
    maps = np.concatenate([r(x.mean(axis=1, keepdims=True)), x.max(axis=1, keepdims=True)], axis=1)
    padded = np.pad(maps, ((0, 0), (0, 0), (3, 3), (3, 3)))
    patches = np.lib.stride_tricks.sliding_window_view(padded, (7, 7), axis=(2, 3))
    logits = r(np.einsum("nchwij,cij->nhw", patches, a["w_spatial"][0]) + a["b_spatial"])[:, None]
    np.testing.assert_array_equal(y, r(x * r(1 / (1 + np.exp(-logits)))))

    steps = {
        "cbam_channel": ["global_avg_pool", "global_max_pool", "linear", "relu", "linear", "add", "sigmoid", "multiply"],
        "cbam_spatial": ["mean_over", "max_over", "conv2d", "sigmoid", "multiply"],
    }
    assert [path for path in order if len(path) == 2] == [(half, step) for half, names in steps.items() for step in names]
    exact = refattn.cbam(**sample.arguments)
    error = np.abs(y - exact).max() / np.abs(exact).max()
    assert 2.0**-bits / 16 < error < 16 * 2.0**-bits


def test_masks_of_some_rows_and_columns_are_those_of_the_whole():
    rows, columns = np.array([4, 1]), np.array([0, 5, 6])
    for align in ("upper_left", "lower_right"):
        whole, part = ({"align": align}, {"align": align, "rows": rows, "columns": columns})
        np.testing.assert_array_equal(masks.causal(5, 7, **part), masks.causal(5, 7, **whole)[rows[:, None], columns])
        window = {"left": 2, "right": 0}
        np.testing.assert_array_equal(
            masks.sliding_window(5, 7, **window, **part), masks.sliding_window(5, 7, **window, **whole)[rows[:, None], columns]
        )
