"""Inputs of softmax attention, each of which makes one kind of fault large."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from refattn._core import Array
from refattn._core.random import Random
from refattn.testing.calls import cotangents
from refattn.testing.inputs.case import Case


def attention(random: Random, query_len: int, key_len: int) -> Iterator[Case]:
    """Inputs that make one kind of fault large each; key_len >= query_len.

    Where the two are equal no alignment is named, so that a kernel which knows but one is compared too.
    """
    align: dict[str, Any] = {} if query_len == key_len else {"align": "lower_right"}
    causal = {"causal": True, **align}
    query_shape, key_shape = (1, 4, query_len, 64), (1, 2, key_len, 64)
    value = random.normal(key_shape)
    small = {"query": random.integers(-3, 4, query_shape) * 1.0, "key": random.integers(-3, 4, key_shape) * 1.0, "value": value}
    signs = random.integers(0, 2, key_shape) * 2.0 - 1
    for name, options in (("", {}), (", causal", causal)):
        yield Case(f"exact scores{name}", {**small, **options}, exact_scores=True)
        # one key of each query takes nearly all weight: its own position's, the last ones', others
        yield Case(
            f"needle{name}", {"query": 1.5 * _at(signs, _needles(query_len, key_len)), "key": signs, "value": value, **options}, True
        )
        # an accumulator, a maximum or a masked score that starts at 0 or -5e4 is larger than every score
        for low, (q, k) in {"-272": (4.0, 8), "-1e5": (128.0, 100)}.items():
            negative = {"query": np.full(query_shape, q), "key": -random.integers(k, k + 2, key_shape) * 1.0, "value": value}
            yield Case(f"all scores near {low}{name}", {**negative, **options}, exact_scores=True)
    # every other query looks at the key just behind the causal edge
    edge = np.minimum(np.arange(query_len) + key_len - query_len + np.arange(query_len) % 2, key_len - 1)
    yield Case("causal edge", {"query": 2 * _at(signs, edge), "key": signs, "value": value, **causal}, exact_scores=True)
    for window in ((15, 0), (7, 9)):
        options = {"window": window, **align}
        yield Case(
            f"window {window}", {"query": _at(signs, np.minimum(edge + 9, key_len - 1)), "key": signs, "value": value, **options}, True
        )
    sinks = np.array([0.0, 8.0, 12.0, 16.0])
    for name, options in (("", {}), (", causal", causal)):
        yield Case(f"softcap that matters{name}", {**small, "query": 4 * small["query"], "softcap": 5.0, **options}, exact_scores=True)
        yield Case(f"sinks that matter{name}", {**small, "sinks": sinks, **options}, exact_scores=True)
    mask = random.booleans(0.5, (1, 4, query_len, key_len))
    mask[:, :, 1::7] = False  # rows that may attend nowhere, in every tile
    mask[:, 1, :, -(key_len % 64 or 64) :] = False  # a whole tile of one head
    yield Case("masked rows", {**small, "mask": mask}, exact_scores=True)
    yield Case("padded keys", {**small, "mask": np.arange(key_len)[None] < key_len - 70}, exact_scores=True)
    # what a tile adds is lost in an accumulator that is as coarse as the format
    many = {"query": random.integers(-1, 2, (1, 4, 5, 64)) * 1.0, "key": random.integers(-1, 2, (1, 2, 2055, 64)) * 1.0}
    yield Case("many keys", {**many, "value": np.abs(random.normal((1, 2, 2055, 64)))}, exact_scores=True)
    yield Case("bias per head and key", {**small, "bias": 4 * random.normal((4, 1, key_len))})
    yield Case("scale that is no power of two", {**small, "scale": 0.3})
    yield Case("random", {"query": random.normal(query_shape), "key": random.normal(key_shape), "value": value, **causal}, independent=True)


def lengths(random: Random) -> Iterator[Case]:
    """Sizes at which tiles, lanes and loops have their ends, in exact scores."""
    sizes = [(1, 1, 1, 1), (1, 65, 64, 64), (3, 129, 72, 72), (65, 64, 7, 5), (64, 63, 104, 40), (2, 17, 128, 16), (33, 48, 16, 3)]
    for query_len, key_len, head_dim, value_dim in sizes:
        arguments = {
            "query": random.integers(-3, 4, (2, 2, query_len, head_dim)) * 1.0,
            "key": random.integers(-3, 4, (2, 1, key_len, head_dim)) * 1.0,
            "value": random.normal((2, 1, key_len, value_dim)),
            "scale": 0.0625,  # its root is a power of two as well: some kernels multiply queries and keys by that
        }
        name = f"{query_len} queries, {key_len} keys of {head_dim}, values of {value_dim}"
        yield Case(name, arguments, exact_scores=True)
        if query_len <= key_len:
            align = {} if query_len == key_len else {"align": "lower_right"}
            yield Case(f"{name}, causal", {**arguments, "causal": True, **align}, exact_scores=True)


def edges(random: Random, *, quick: bool) -> Iterator[Case]:
    """Lengths 0 and around a tile, near-ties, subnormal numbers, heavy tails, and numbers that are none behind a mask."""
    for tile in (64,) if quick else (16, 32, 64, 128):
        for key_len in (tile - 1, tile, tile + 1):
            yield Case(f"{key_len} keys, tile of {tile}", _exact(random, (1, 2, 5, 16), (1, 1, key_len, 16)), exact_scores=True)
    for query_len, key_len in ((0, 3), (3, 0), (0, 0)):
        yield Case(f"{query_len} queries, {key_len} keys", _exact(random, (1, 2, query_len, 8), (1, 2, key_len, 8)), exact_scores=True)
    yield Case("more queries than keys", _exact(random, (2, 4, 67, 24), (2, 2, 9, 24)), exact_scores=True)
    for head_dim in (1, 7, 72, 104):
        yield Case(f"head_dim {head_dim}", {**_exact(random, (1, 3, 9, head_dim), (1, 1, 33, head_dim)), "scale": 0.25}, exact_scores=True)
    near = _exact(random, (1, 2, 33, 64), (1, 1, 65, 64))
    yield Case(
        "near ties", {**near, "key": np.broadcast_to(near["key"][:, :, :1], (1, 1, 65, 64)) + _one(random, (1, 1, 65, 64)) / 8}, True
    )
    tiny = {**near, "value": near["value"] * 2.0**-130, "query": near["query"] * 2.0**-64}
    yield Case("values below all normal numbers", tiny)
    tails = {name: x * 2.0 ** random.integers(-6, 7, (*x.shape[:-1], 1)) for name, x in near.items()}
    yield Case("heavy tails", {**tails, "query": near["query"], "key": near["key"] * 2.0 ** random.integers(-2, 2, (1, 1, 65, 1))}, True)
    yield from _behind_masks(random)
    yield from _sums_of_gradients(random)


def _sums_of_gradients(random: Random) -> Iterator[Case]:
    """Two sums of the backward pass that a kernel may not keep in its format, and little else that it may round."""
    # each tile adds the same to a query's gradient, and an accumulator as coarse as the format errs each time alike; terms come in pairs
    # of equal sums, so that they differ, and those of a long sum in float32 do not err alike
    half, low = np.repeat([1.0, -1.0], 1028)[:, None], np.arange(64) < 32
    apart = random.uniform(-0.5, 0.5, (1, 2, 1028, 1))
    paired = 1 + np.stack([apart, -apart], axis=-2).reshape(1, 2, 2056, 1)
    adding = {
        "query": np.where(low, 0.0, random.integers(-3, 4, (1, 4, 5, 64))),  # no score depends on where keys differ
        "key": np.where(low, random.integers(1, 4, (1, 2, 1, 64)), 0.0) * half,
        "value": random.normal((1, 2, 1, 64)) * half * paired + 1,
    }
    yield Case("many keys that add up to one gradient", adding, exact_scores=True)
    # where output and cotangent have one sign, the sum of their products is large beside what it loses by roundings of the output
    rows, many = (4, 2, 1, 256), (4, 2, 512, 256)
    outputs = np.sign(cotangents(np.empty(rows))[0]) * random.uniform(0.5, 1.5, rows)
    along = {
        "query": random.integers(-1, 2, rows) * 1.0,
        "key": random.integers(1, 3, many) * 1.0,
        "value": 1.3 * outputs * random.uniform(0.75, 1.25, (4, 2, 512, 1)),
        "scale": 2.0**-5,
    }
    yield Case("outputs along their cotangents", along, exact_scores=True)


def _behind_masks(random: Random) -> Iterator[Case]:
    """NaN and infinity where nobody may look: in masked keys, and in the padding behind a length."""
    exact = _exact(random, (2, 4, 33, 16), (2, 2, 70, 16))
    lengths = np.array([49, 64])
    allowed = (np.arange(70) < lengths[:, None])[:, None, None, :]
    for name, number in (("NaN", np.nan), ("infinity", np.inf)):
        spoilt = {n: np.where(allowed[:, 0, 0, :, None][:, None], exact[n], number) for n in ("key", "value")}
        yield Case(f"{name} behind the lengths", {**exact, **spoilt, "mask": allowed}, exact_scores=True)
        late = {n: np.where(np.arange(70)[:, None] < 33, exact[n], number) for n in ("key", "value")}
        yield Case(
            f"{name} that causal attention does not see", {**exact, **late, "causal": True, "align": "upper_left"}, exact_scores=True
        )


def _exact(random: Random, query_shape: tuple[int, ...], key_shape: tuple[int, ...]) -> dict[str, Any]:
    """Whole numbers, and a scale that is a power of two: given where that of the head's size is none."""
    small = {"query": random.integers(-3, 4, query_shape) * 1.0, "key": random.integers(-3, 4, key_shape) * 1.0}
    scale = {} if math.log2(query_shape[-1]) % 2 == 0 else {"scale": 0.25}
    return {**small, "value": random.normal(key_shape), **scale}


def _one(random: Random, shape: tuple[int, ...]) -> Array:
    """One element of each row is 1, the others 0."""
    return (np.arange(shape[-1]) == random.integers(0, shape[-1], (*shape[:-1], 1))) * 1.0


def _needles(query_len: int, key_len: int) -> Any:
    own = np.arange(query_len) + key_len - query_len
    at = np.minimum(np.arange(query_len) * 7919 % key_len, own)
    at[::5] = own[::5]
    at[-8:] = key_len - 1 - np.arange(min(8, query_len))[::-1]
    return at


def _at(keys: Array, places: Any) -> Array:
    """For each of twice as many query heads, the key of its group at these places."""
    return np.repeat(keys, 2, axis=1)[:, :, places]
