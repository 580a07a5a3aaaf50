"""What must hold of the Transformer's layers by mathematics."""

from __future__ import annotations

import numpy as np
import pytest

import refattn
from refattn import testing
from refattn._core import tree
from refattn._core.random import Random
from refattn.blocks import draws

CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def encoder_call(**options):
    random = Random(2)
    layers = tuple(draws.encoder_layer_weights(random) for _ in range(3))
    return {"x": random.normal((2, 5, 4)), "layers": layers, "num_heads": 2, **options}


def decoder_call(**options):
    random = Random(3)
    layers = tuple(draws.decoder_layer_weights(random) for _ in range(2))
    return {"x": random.normal((2, 5, 4)), "memory": random.normal((2, 3, 4)), "layers": layers, "num_heads": 2, **options}


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_an_encoder_without_positions_does_not_see_the_order(norm):
    given = encoder_call(norm=norm)
    order = Random(4).permutation(5)
    y, moved = refattn.transformer_encoder(**given), refattn.transformer_encoder(**{**given, "x": given["x"][:, order]})
    np.testing.assert_allclose(moved, y[:, order], **CLOSE)
    placed = [refattn.transformer_encoder(**{**given, "x": refattn.add_sinusoidal(x)}) for x in (given["x"], given["x"][:, order])]
    assert np.abs(placed[1] - placed[0][:, order]).max() > 0.01


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize(("mechanism", "call"), [(refattn.transformer_encoder, encoder_call), (refattn.transformer_decoder, decoder_call)])
def test_a_causal_stack_sees_nothing_later(mechanism, call, norm):
    given = call(norm=norm, causal=True)
    y, pullback = mechanism.vjp(**given)
    later = given["x"].copy()
    later[:, 3:] = np.nan
    np.testing.assert_array_equal(mechanism(**{**given, "x": later})[:, :3], y[:, :3])
    d_output = np.zeros_like(y)
    d_output[:, :3] = 1
    assert (pullback(d_output)["x"][:, 3:] == 0).all()


def test_a_stack_is_its_layers_one_after_another():
    given = encoder_call(norm="pre", final_norm=draws.norm_weights(Random(5), 4))
    x = given["x"]
    for layer in given["layers"]:
        x = refattn.transformer_encoder_layer(x, layer, num_heads=2, norm="pre")
    np.testing.assert_array_equal(refattn.transformer_encoder(**given), refattn.layer_norm(x, *given["final_norm"]))


def test_layers_that_share_weights_add_their_gradients():
    """One record in two places: its gradient is the sum of the two."""
    given = encoder_call()
    shared = {**given, "layers": (given["layers"][0],) * 2}
    y, pullback = refattn.transformer_encoder.vjp(**shared)
    (d_output,) = testing.cotangents(y)
    total = tree.add(*pullback(d_output)["layers"])
    step = 1e-6 * Random(6).normal((4, 4))

    def moved(sign):
        layer = tree.replace(given["layers"][0], "self_attention.w_value", given["layers"][0].self_attention.w_value + sign * step)
        return (refattn.transformer_encoder(**{**shared, "layers": (layer,) * 2}) * d_output).sum()

    np.testing.assert_allclose((moved(1) - moved(-1)) / 2, (total.self_attention.w_value * step).sum(), rtol=1e-6)


def test_a_memory_that_no_query_may_see_has_no_gradient_and_no_effect():
    given = decoder_call(memory_mask=np.array([True, False, True]))
    y, pullback = refattn.transformer_decoder.vjp(**given)
    hidden = given["memory"].copy()
    hidden[:, 1] = np.nan
    np.testing.assert_array_equal(refattn.transformer_decoder(**{**given, "memory": hidden}), y)
    d_memory = pullback(*testing.cotangents(y))["memory"]
    assert (d_memory[:, 1] == 0).all()
    assert (d_memory[:, [0, 2]] != 0).any()


def test_the_whole_is_encoder_and_decoder():
    encoder, decoder = encoder_call(), decoder_call()
    weights = refattn.TransformerWeights(encoder["layers"], decoder["layers"])
    memory = refattn.transformer_encoder(**encoder)
    expected = refattn.transformer_decoder(**{**decoder, "memory": memory})
    np.testing.assert_array_equal(refattn.transformer(encoder["x"], decoder["x"], weights, num_heads=2), expected)


def test_dropout_of_everything_leaves_the_residuals():
    given = encoder_call(norm="pre")
    nothing = np.zeros((5, 4), bool)
    keep = (refattn.EncoderLayerKeep(attended=nothing, transformed=nothing),) * 3
    np.testing.assert_array_equal(refattn.transformer_encoder(**given, keep=keep, dropout_rate=0.5), given["x"])


def test_a_kernel_with_records_is_checked():
    """Records reach a candidate as they are, and its gradients are compared leaf by leaf."""
    layer = refattn.transformer_encoder_layer

    class Kernel:
        __signature__ = layer.spec.signature

        def __call__(self, **given):
            return layer(**given)

        def vjp(self, **given):
            return layer.vjp(**given)

    report = testing.check(Kernel(), layer, dtype="float64")
    assert report.passed
    assert any(r.what == "d_weights.feed_forward.w_expand" and r.status == "pass" for r in report.results)

    class Swapped(Kernel):
        def vjp(self, **given):
            y, pullback = layer.vjp(**given)

            def swapped(d_output):
                grads = pullback(d_output)
                w = grads["weights"]
                return {**grads, "weights": w._replace(norm_attention=w.norm_feed_forward, norm_feed_forward=w.norm_attention)}

            return y, swapped

    wrong = {r.what for r in testing.check(Swapped(), layer, dtype="float64").results if r.status == "fail"}
    assert (
        {"d_weights.norm_attention.scale", "d_weights.norm_feed_forward.scale"}
        <= wrong
        <= {f"d_weights.norm_{part}.{name}" for part in ("attention", "feed_forward") for name in ("scale", "shift")}
    )


def test_the_hook_names_every_weight_and_every_part():
    seen = []
    random = Random(7)
    given = {"x": random.normal((3, 4)), "weights": draws.encoder_layer_weights(random), "num_heads": 2}
    with refattn.hooked(seen.append):
        y, pullback = refattn.transformer_encoder_layer.vjp(**given)
        pullback(*testing.cotangents(y))
    arguments = {r.name for r in seen if r.kind == "argument"}
    assert arguments == {"x"} | {path for path, _ in tree.leaves(given["weights"], "weights")}
    paths = {r.path for r in seen}
    assert ("transformer_encoder_layer", "multi_head_attention", "scaled_dot_product_attention", "masked_softmax") in paths
    assert ("transformer_encoder_layer", "feed_forward", "relu") in paths
