"""What is found inside a call, how it is brought to the size of an image, and the page that shows it."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import json
import math
import re

import numpy as np
import pytest

import refattn
from refattn import testing
from refattn._core import Random
from refattn._core.mechanism import outputs
from refattn.blocks.weights import AttentionWeights, EncoderLayerWeights, FeedForwardWeights, NormWeights
from refattn.view import AttentionMap, attention_maps, page, upsampled
from refattn.view.colours import LIGHTNESS, scale
from refattn.view.maps import grid_of, kind_of
from refattn.view.view_command import digits_page
from tests.enumeration import CALLS, MECHANISMS

ATTENDING = [c for c in CALLS if {"softmax", "gate", "weights"} & c.values[0].spec.tags]
HOSTILE = ["</script><script>alert(1)</script>", "<!--", '"quoted"', "a&amp;b", "'", "\u2028", "</li>", "é"]


def attended(function, *args, **kwargs):
    return {m.name: m.array for m in attention_maps(function, *args, **kwargs)[1]}


def qkv(seed=0, shape=(2, 3, 4, 5)):
    random = Random(seed)
    return [random.normal(shape) for _ in range(3)]


# Maps


def has_none(m, sample):
    """A call without a sequence or a look, or with a mask that is no sigmoid."""
    return sample.name in {"no sequence", "no hops"} or sample.arguments.get("constraint") == "channel"


@pytest.mark.parametrize(("m", "sample"), ATTENDING)
def test_every_softmax_and_every_gate_is_found(m, sample):
    output, maps = attention_maps(m, **sample.arguments)
    for got, expected in zip(outputs(output), outputs(m(**sample.arguments)), strict=True):
        np.testing.assert_array_equal(got, expected)
    kinds = {x.kind for x in maps}
    if has_none(m, sample):
        assert not maps
        return
    assert "weights" in kinds if {"softmax", "weights"} & m.spec.tags else kinds == {"gate"}
    assert all(x.name.split(" > ")[0] == m.__name__ for x in maps)
    assert all(((x.array >= 0) & (x.array <= 1)).all() for x in maps if x.kind == "gate")


def test_what_attends_to_nothing_has_no_maps():
    quiet = [m for m in MECHANISMS if m.spec.family in {"convolution", "positional"}]
    for m in quiet:
        sample = next(iter(testing.samples(m)))
        assert attention_maps(m, **sample.arguments)[1] == []
    assert attended(refattn.silu, np.ones(3)) == {}  # a sigmoid, but of no gate
    assert attention_maps(lambda: 3) == (3, [])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"causal": True},
        {"softcap": 0.5, "scale": 2.0},
        {"bias": Random(7).normal((3, 4, 4)), "sinks": Random(8).normal(3)},
        {"keep": Random(9).booleans(0.5, (4, 4)), "dropout_rate": 0.5},
        {"mask": np.tri(4, dtype=bool)[::-1].copy(), "masked_rows": "nan"},
    ],
    ids=lambda options: " ".join(options) or "plain",
)
def test_weights_are_those_that_the_mechanism_returns(options):
    arguments = qkv()
    (weights,) = attended(refattn.scaled_dot_product_attention, *arguments, **options).values()
    expected = refattn.scaled_dot_product_attention_with_weights(*arguments, **options).weights
    np.testing.assert_array_equal(weights, expected)


def test_weights_of_additive_attention_give_its_output():
    random = Random(1)
    query, key, value = (random.normal((2, n, 4)) for n in (3, 5, 5))
    layers = [random.normal((6, 4)), random.normal((6, 4)), random.normal(6)]
    output, (found,) = attention_maps(refattn.additive_attention, query, key, value, *layers)
    np.testing.assert_allclose(found.array[:, 0] @ value, getattr(output, "output", output), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pair", ["gaussian", "embedded_gaussian", "dot_product", "concatenation"])
def test_weights_of_pixel_pairs_give_the_output(pair):
    random = Random(2)
    x, w_g, w_output = 0.5 * random.normal((2, 4, 2, 3)), random.normal((3, 4)), random.normal((4, 3))
    more = {} if pair == "gaussian" else {"w_theta": random.normal((3, 4)), "w_phi": random.normal((3, 4))}
    more |= {"w_concat": random.normal(6)} if pair == "concatenation" else {}
    output, (found,) = attention_maps(refattn.non_local, x, w_g, w_output, **more, pair=pair)
    tokens = x.reshape(2, 4, 6).swapaxes(1, 2)
    added = (found.array.reshape(2, 6, 6) @ (tokens @ w_g.T) @ w_output.T).swapaxes(1, 2).reshape(x.shape)
    np.testing.assert_allclose(x + added, output, rtol=1e-12, atol=1e-12)


def logistic(x):
    return 1 / (1 + np.exp(-x))


def test_gates_of_squeeze_and_excitation():
    random = Random(3)
    x, w_reduce, w_expand = random.normal((2, 6, 3, 4)), random.normal((3, 6)), random.normal((6, 3))
    output, (gate,) = attention_maps(refattn.squeeze_excitation, x, w_reduce, w_expand)
    expected = logistic(np.maximum(x.mean((2, 3)) @ w_reduce.T, 0) @ w_expand.T)
    assert (gate.name, gate.kind) == ("squeeze_excitation > sigmoid", "gate")
    np.testing.assert_allclose(gate.array, expected, rtol=1e-13)
    np.testing.assert_allclose(output, x * expected[:, :, None, None], rtol=1e-13)


def test_gates_of_cbam():
    random = Random(4)
    x, w_reduce, w_expand = random.normal((2, 6, 3, 4)), random.normal((3, 6)), random.normal((6, 3))
    w_spatial = random.normal((1, 2, 3, 3))
    output, (channel, position) = attention_maps(refattn.cbam, x, w_reduce, w_expand, w_spatial)

    def mlp(z):
        return np.maximum(z @ w_reduce.T, 0) @ w_expand.T

    np.testing.assert_allclose(channel.array, logistic(mlp(x.mean((2, 3))) + mlp(x.max((2, 3)))), rtol=1e-12)
    assert [m.name for m in (channel, position)] == ["cbam > cbam_channel > sigmoid", "cbam > cbam_spatial > sigmoid"]
    np.testing.assert_allclose(output, x * channel.array[:, :, None, None] * position.array, rtol=1e-12)


def test_weights_and_gate_of_one_mechanism():
    random = Random(5)
    arguments = [random.normal((2, 5, 4)), random.normal((2, 3)), random.normal((6, 4)), random.normal((6, 3)), random.normal(6)]
    maps = attention_maps(refattn.region_attention, *arguments, w_gate=random.normal((1, 3)))[1]
    assert sorted(m.kind for m in maps) == ["gate", "weights"]


def encoder_layers(random, number, size=4):
    def drawn(*shape):
        return random.normal(shape)

    return tuple(
        EncoderLayerWeights(
            AttentionWeights(*(drawn(size, size) for _ in range(4)), *(drawn(size) for _ in range(4))),
            FeedForwardWeights(drawn(6, size), drawn(size, 6), drawn(6), drawn(size)),
            NormWeights(drawn(size), drawn(size)),
            NormWeights(drawn(size), drawn(size)),
        )
        for _ in range(number)
    )


def test_names_tell_layers_and_calls_apart():
    random = Random(6)
    x, layers = random.normal((1, 3, 4)), encoder_layers(random, 2)
    stem = "multi_head_attention > scaled_dot_product_attention > masked_softmax"
    whole = attended(refattn.transformer_encoder, x, layers, num_heads=2)
    assert list(whole) == [f"transformer_encoder > transformer_encoder_layer[{i}] > {stem}" for i in range(2)]
    one = attended(refattn.transformer_encoder, x, layers[:1], num_heads=2)
    assert list(one) == [f"transformer_encoder > transformer_encoder_layer > {stem}"]
    np.testing.assert_array_equal(next(iter(one.values())), next(iter(whole.values())))


def test_a_function_may_call_several_mechanisms_and_name_none():
    query, key, value = qkv()

    def twice(query):
        first = refattn.scaled_dot_product_attention(query, key, value)
        return refattn.squeeze_excitation_one_layer(refattn.scaled_dot_product_attention(first, key, value), np.eye(3))

    assert list(attended(twice, query)) == [
        "scaled_dot_product_attention[0] > masked_softmax",
        "scaled_dot_product_attention[1] > masked_softmax",
        "squeeze_excitation_one_layer > sigmoid",
    ]


def test_two_calls_in_a_row_are_two():
    assert list(attended(lambda: [refattn.softmax(np.zeros(2)) for _ in range(3)])) == ["softmax[0]", "softmax[1]", "softmax[2]"]
    scores = np.zeros((1, 2, 2))  # with two outputs
    assert list(attended(lambda: [refattn.masked_softmax(scores), refattn.masked_softmax(scores)])) == [
        "masked_softmax[0]",
        "masked_softmax[1]",
    ]


def test_a_gate_is_a_sigmoid_that_the_gate_itself_calls():
    known = {m.__name__: m for m in MECHANISMS}
    assert kind_of(("transformer", "cbam_channel", "sigmoid"), 0, known) == "gate"
    assert kind_of(("cbam", "silu", "sigmoid"), 0, known) is None
    assert kind_of(("sigmoid",), 0, known) is None
    assert kind_of(("cbam", "masked_softmax"), 0, known) == "weights"
    assert kind_of(("cbam", "masked_softmax"), 1, known) is None  # the log-sum-exp


def test_what_a_pullback_computes_again_is_left_out():
    arguments = qkv()

    def both_ways():
        output, pullback = refattn.scaled_dot_product_attention_rows.vjp(*arguments, block_size=2)
        pullback(*map(np.ones_like, output))
        return refattn.softmax(np.ones((1, 2)))

    forward = attended(refattn.scaled_dot_product_attention_rows, *arguments, block_size=2)
    assert list(attended(both_ways)) == [*forward, "softmax"]


def test_maps_are_copies_and_the_hook_is_gone_afterwards():
    seen = []
    with refattn.hooked(lambda result: seen.append(result.name)):
        _, (weights,) = attention_maps(refattn.softmax, np.zeros(2))
        assert seen == []
        refattn.softmax(np.zeros(2))
        assert seen == ["x", "output"]
    assert not weights.array.flags.writeable
    with pytest.raises(ValueError, match="head_dim"):
        attention_maps(refattn.scaled_dot_product_attention, *qkv()[:2], np.ones((2, 3, 4, 5)), scale=None, mask=None, bias=np.ones((9, 9)))
    assert attended(refattn.softmax, np.zeros(2))["softmax"].tolist() == [0.5, 0.5]


def test_the_example_of_the_documents():
    query, key, value = np.zeros((1, 1, 4)), np.ones((1, 2, 4)), np.ones((1, 2, 3))
    _, (weights,) = attention_maps(refattn.scaled_dot_product_attention, query, key, value)
    assert weights.array.tolist() == [[[0.5, 0.5]]]


# The size of the image


def test_a_grid_tiles_the_image_in_squares():
    assert grid_of(16, (8, 8)) == (4, 4)
    assert grid_of(8, (4, 8)) == (2, 4)
    assert grid_of(64, (8, 8)) == (8, 8)
    assert grid_of(1, (8, 8)) == (1, 1)
    assert [grid_of(n, (8, 8)) for n in (0, 2, 8, 17, 256)] == [None] * 5
    assert grid_of(9, (8, 8)) is None


def test_weights_of_patches_at_the_size_of_the_image():
    weights = Random(0).normal((1, 2, 4, 4))
    found = upsampled(AttentionMap("softmax", "weights", weights), (4, 4))
    expected = weights.reshape(1, 2, 4, 2, 2).repeat(2, axis=-2).repeat(2, axis=-1)
    np.testing.assert_array_equal(found, expected)


def test_gates_of_positions_at_the_size_of_the_image():
    gate = AttentionMap("sigmoid", "gate", np.array([[[[0.0, 1.0]]]]))
    np.testing.assert_array_equal(upsampled(gate, (1, 4), method="bilinear"), [[[[0.0, 0.25, 0.75, 1.0]]]])
    np.testing.assert_array_equal(upsampled(gate, (2, 4)), [[[[0, 0, 1, 1]] * 2]])


def test_what_has_no_positions_is_refused():
    with pytest.raises(ValueError, match="no positions"):
        upsampled(AttentionMap("sigmoid", "gate", np.ones((1, 6))), (8, 8))
    weights = AttentionMap("softmax", "weights", np.ones((1, 5)))
    with pytest.raises(ValueError, match="grid is None, but softmax has 5 keys, and the image is 8 by 8"):
        upsampled(weights, (8, 8))
    with pytest.raises(ValueError, match=r"grid is \(2, 3\)"):
        upsampled(weights, (8, 8), grid=(2, 3))


# Colours


def linear(colour):
    encoded = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return np.array([c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in encoded])


def lightness(colour):
    """CIE L*, in 0 to 100."""
    y = float(np.array([0.2126, 0.7152, 0.0722]) @ linear(colour))
    return 116 * math.cbrt(y) - 16 if y > 216 / 24389 else y * 24389 / 27


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_equal_steps_of_the_scale_are_equal_steps_of_lightness(theme):
    seen = np.array([lightness(c) for c in scale(theme)])
    steps = np.diff(seen) * (1 if theme == "dark" else -1)
    assert steps.min() > 0.6 * steps.mean()
    assert steps.max() < 1.4 * steps.mean()
    first, last = LIGHTNESS[theme]
    assert (seen[-1] - seen[0]) / 100 == pytest.approx(last - first, abs=0.15)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_scale_is_ordered_for_who_sees_two_kinds_of_colours(theme):
    # Viénot, Brettel, Mollon 1999: the colours that a protanope and a deuteranope confuse with these, in linear RGB.
    protan = np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]])
    deutan = np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]])
    for confused in (protan, deutan):
        y = [float(np.array([0.2126, 0.7152, 0.0722]) @ confused @ linear(c)) for c in scale(theme)]
        assert (np.diff(y) > 0).all() == (theme == "dark")
        assert (np.diff(y) < 0).all() == (theme == "light")


# The page


class Elements(html.parser.HTMLParser):
    """Every element and its attributes, and the text of those that are looked for."""

    def __init__(self, text):
        super().__init__()
        self.found, self.text, self.open = [], {}, []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in {"meta", "link"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.text.setdefault(self.open[-1], []).append(data)


def data_of(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def words_page():
    query, key, value = qkv(shape=(1, 2, len(HOSTILE), 4))
    _, maps = attention_maps(refattn.scaled_dot_product_attention, query, key, value, causal=True)
    facts = {"<b>fact</b>": "</dd>"}
    return page("A <title> & more", maps, tokens=HOSTILE, facts=facts, probabilities={"<i>": 0.25, "&": 0.75}), maps


def test_text_is_escaped():
    text, _ = words_page()
    elements = Elements(text)
    tags = [tag for tag, _ in elements.found]
    assert tags.count("script") == 2
    assert not {"b", "i", "img"} & set(tags)
    assert elements.text["title"] == ["A <title> & more"]
    assert elements.text["li"] == HOSTILE
    assert elements.text["dt"] == ["<b>fact</b>"]
    assert data_of(text)["tokens"] == HOSTILE
    assert not {"<", ">", "&"} & set(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])


PAGES = {"words": lambda: words_page()[0], "cnn": lambda: digits_page("cnn", 0)[0], "transformer": lambda: digits_page("transformer", 3)[0]}


@pytest.mark.parametrize("make", PAGES.values(), ids=PAGES)
def test_a_page_needs_nothing_else(make):
    text = make()
    elements = Elements(text)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text.replace("// ", ""))
    assert not [a for _, a in elements.found if {"src", "style", "onclick"} & set(a)]
    assert [a["href"] for _, a in elements.found if "href" in a] == ["data:,"]
    policy = next(a["content"] for _, a in elements.found if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';")
    for tag, content in (("style", elements.text["style"]), ("script", elements.text["script"][-1:])):
        (whole,) = content
        assert f"{tag}-src 'sha256-{base64.b64encode(hashlib.sha256(whole.encode()).digest()).decode()}'" in policy
    assert len(text.encode()) < 300_000
    assert text == make()


@pytest.mark.parametrize("make", PAGES.values(), ids=PAGES)
def test_a_page_says_what_it_is(make):
    elements = Elements(make())
    tags = [tag for tag, _ in elements.found]
    assert elements.found[0] == ("html", {"lang": "en"})
    assert [tags.count(t) for t in ("title", "h1", "main", "header", "noscript")] == [1] * 5
    names = [a["id"] for _, a in elements.found if "id" in a]
    assert len(names) == len(set(names))
    assert {a["aria-labelledby"] for _, a in elements.found if "aria-labelledby" in a} <= set(names)
    assert any(a.get("name") == "viewport" for _, a in elements.found)


def test_the_numbers_of_a_page_are_those_of_the_maps():
    text, (weights,) = words_page()
    (shown,) = data_of(text)["maps"]
    assert (shown["form"], shown["rows"], shown["columns"], shown["low"]) == ("pairs", 8, 8, 0)
    assert [p["name"] for p in shown["panels"]] == ["head 0", "head 1"]
    np.testing.assert_allclose([p["values"] for p in shown["panels"]], weights.array.reshape(2, 64), rtol=5e-5)


def test_the_page_of_the_cnn():
    text, maps, said = digits_page("cnn", 0)
    assert [m.array.ndim for m in maps] == [2, 4] * (len(maps) // 2)
    shown = data_of(text)["maps"]
    for m, s in zip(maps, shown, strict=True):
        if s is None:
            assert all(f'<span class="number">{x:.3f}</span>' in text for x in m.array.ravel())
        else:
            assert (s["form"], s["over"], s["low"], s["high"]) == ("positions", True, 0, 1)
            np.testing.assert_allclose(s["panels"][0]["values"], m.array.ravel(), rtol=5e-5)
    assert re.fullmatch(r"image 0 is a \d; the model says \d \(\d+\.\d %\)", said)


def test_the_page_of_the_transformer():
    text, maps, _ = digits_page("transformer", 3)
    for m, s in zip(maps, data_of(text)["maps"], strict=True):
        assert (s["form"], s["rows"], s["columns"], s["queries"]) == ("patches", 4, 4, 16)
        assert [p["name"] for p in s["panels"]] == [f"head {h}" for h in range(m.array.shape[1])]
        np.testing.assert_allclose([p["values"] for p in s["panels"]], m.array.reshape(-1, 256), rtol=5e-5)


def test_what_is_not_finite_is_no_number():
    text = page("NaN", [AttentionMap("softmax", "weights", np.array([[0.5, np.nan], [np.inf, 0.25]]))])
    (shown,) = data_of(text)["maps"]
    assert shown["panels"][0]["values"] == [0.5, None, None, 0.25]
    assert (shown["low"], shown["high"]) == (0, 0.5)


@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 4), (0,)])
def test_an_empty_map_is_said_to_be_empty(shape):
    assert "There is nothing in it." in page("empty", [AttentionMap("softmax", "weights", np.ones(shape))])


def test_leading_axes_are_told_apart():
    shown = data_of(page("two", [AttentionMap("softmax", "weights", np.ones((2, 3, 1, 4)))]))["maps"][0]
    assert [p["name"] for p in shown["panels"]][:4] == ["example 0, head 0", "example 0, head 1", "example 0, head 2", "example 1, head 0"]
    shown = data_of(page("video", [AttentionMap("sigmoid", "gate", np.ones((1, 1, 2, 3, 4)))]))["maps"][0]
    assert [p["name"] for p in shown["panels"]] == ["frame 0", "frame 1"]
    shown = data_of(page("channels", [AttentionMap("sigmoid", "gate", np.ones((1, 2, 3, 4)))]))["maps"][0]
    assert [p["name"] for p in shown["panels"]] == ["channel 0", "channel 1"]
    shown = data_of(page("frames of heads", [AttentionMap("softmax", "weights", np.ones((1, 2, 2, 3, 4)))]))["maps"][0]
    assert [p["name"] for p in shown["panels"]][1] == "axis 0, axis 1"
    shown = data_of(page("sequence", [AttentionMap("sigmoid", "gate", np.ones((1, 1, 5)))]))["maps"][0]
    assert (shown["rows"], shown["columns"]) == (1, 5)


def test_channels_of_several_examples_stand_below_each_other():
    elements = Elements(page("two", [AttentionMap("sigmoid", "gate", np.array([[0.25, 1.0], [0.0, 0.125]]))]))
    assert elements.text["h3"] == ["Example 0", "Example 1"]
    assert elements.text["span"] == ["0", "0.250", "1", "1.000", "0", "0.000", "1", "0.125"]
    assert [a["width"] for tag, a in elements.found if tag == "rect"] == ["25.00", "100.00", "0.00", "12.50"]


def test_weights_below_zero_have_colours_too():
    (shown,) = data_of(page("mean", [AttentionMap("mean_weights", "weights", np.array([[-0.5, 0.25]]))]))["maps"]
    assert (shown["low"], shown["high"]) == (-0.5, 0.25)


def test_a_heading_is_in_plain_words_and_the_chain_below_it():
    chain = "transformer_encoder > transformer_encoder_layer[1] > multi_head_attention > masked_softmax"
    text = page("names", [AttentionMap(chain, "weights", np.ones((1, 4, 1, 1))), AttentionMap("softmax", "weights", np.ones((1, 1)))])
    assert Elements(text).text["h2"] == ["Second Transformer encoder layer: where each of its 4 heads looks", "Softmax: where it looks"]
    assert Elements(text).text["code"] == [*chain.split(" > "), "softmax"]


@pytest.mark.parametrize(
    ("name", "kind", "shape", "title"),
    [
        ("cbam[0] > cbam_channel > sigmoid", "gate", (1, 6), "First CBAM: how much of each channel passes"),
        ("cbam > cbam_spatial > sigmoid", "gate", (1, 1, 2, 3), "CBAM: how much passes at each position"),
        ("residual_attention > sigmoid", "gate", (1, 2, 3, 4), "Residual attention: how much is added at each position"),
        ("softmax[2]", "weights", (3,), "Third softmax: where it looks"),
        ("softmax[2] > masked_softmax", "weights", (2, 3, 4), "Third softmax: where each of its 2 heads looks"),
        ("non_local > mean_weights", "weights", (2, 3, 3), "Non-local: where it looks"),
        ("squeeze_excitation[12] > sigmoid", "gate", (1, 6), "Squeeze-and-excitation 13: how much of each channel passes"),
        (
            "transformer_decoder_layer[0] > multi_head_attention[1] > scaled_dot_product_attention > masked_softmax",
            "weights",
            (1, 2, 3, 4),
            "First Transformer decoder layer, second multi-head attention: where each of its 2 heads looks",
        ),
        ("mine[a] > masked_softmax", "weights", (3, 4), "Mine: where it looks"),
        ("", "weights", (3, 4), "where it looks"),
    ],
)
def test_titles(name, kind, shape, title):
    assert AttentionMap(name, kind, np.ones(shape)).title == title


def test_notes_say_what_is_so():
    def note(name, kind, array, **more):
        return re.search('<p class="note">(.*?)</p>', page("note", [AttentionMap(name, kind, array)], **more))[1]

    half, image = np.full((1, 4, 2), 0.5), np.zeros((4, 4))
    assert "one row add up to 1" in note("softmax", "weights", half)
    assert "add up" not in note("mean_weights", "weights", half / 2)
    assert "add up" not in note("masked_softmax", "weights", np.full((1, 2), np.nan))
    assert note("softmax", "weights", np.full((4, 4), 0.25), image=image).startswith("The framed patch, the query, looks")
    assert note("softmax", "weights", np.full((3, 4), 0.25), image=image).startswith("The framed query looks")
    assert note("softmax", "weights", np.full((1, 4), 0.25), image=image).startswith("One query looks")
    assert "1 lets all of it through" in note("cbam_spatial > sigmoid", "gate", np.ones((1, 1, 2, 2)))
    assert "1 doubles it" in note("residual_attention > sigmoid", "gate", np.ones((1, 1, 2, 2)))


def test_examples_are_no_heads():
    shown = data_of(page("two", [AttentionMap("non_local > mean_weights", "weights", np.ones((2, 1, 4)))]))["maps"][0]
    assert [p["name"] for p in shown["panels"]] == ["example 0", "example 1"]


def test_what_a_page_is_about_is_text():
    assert '<p class="about">&lt;b&gt;</p>' in page("a", [], about="<b>")
    assert 'class="about"' not in page("a", [])


@pytest.mark.parametrize("shape", [(4,), (2, 4, 4), (1, 1, 4, 4), (0, 4)])
def test_an_image_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match="image has shape"):
        page("no image", [], image=np.ones(shape))


def test_an_image_of_three_colours():
    shown = data_of(page("colours", [], image=np.arange(12.0).reshape(3, 2, 2)))["image"]
    assert (shown["rows"], shown["columns"], shown["low"], shown["high"]) == (2, 2, 0, 11)
    assert shown["channels"] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
