"""Inputs under which a wrong kernel cannot pass.

Random inputs give flat weights, and flat weights forgive: a dropped tile, a wrong maximum or a scale that is 2 % off stays
below any tolerance that rounding needs. Each case here makes one kind of fault large. In most, queries and keys are small
integers and the scale is a power of two, so that every score is exact in float32 and the budget has no term for it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np

from refattn._core import Array, Mechanism
from refattn._core.random import Random
from refattn.testing.calls import samples

Level: TypeAlias = Literal["quick", "full", "torture"]

ATTENTION = {"scaled_dot_product_attention", "scaled_dot_product_attention_with_lse"}


@dataclass(frozen=True)
class Case:
    """One call to compare.

    Attributes
    ----------
    name : str
        What the report calls it.
    arguments : dict
        By the mechanism's names.
    exact_scores : bool
        Whether every score is exact in the accumulator, so that the budget needs no term for it.
    """

    name: str
    arguments: dict[str, Any]
    exact_scores: bool = False


def cases(mechanism: Mechanism[..., Any], level: Level = "quick", seed: int = 0) -> Iterator[Case]:
    """The mechanism's samples, then the adversarial inputs for it.

    Parameters
    ----------
    mechanism : mechanism
        Any function of `refattn.mechanisms`.
    level : {"quick", "full", "torture"}, optional
        Quick is one size of each, full has three, torture ten seeds of these.
    seed : int, optional
        Another seed gives other numbers in cases of the same shapes, and stands in their names.

    Yields
    ------
    Case
        In an order that never changes.
    """
    if level not in {"quick", "full", "torture"}:
        raise ValueError(f'level is {level!r}, but must be one of "quick", "full", "torture"')
    if seed < 0:
        raise ValueError(f"seed is {seed}, but must not be negative")
    for case in _cases(mechanism, level, seed):
        yield case if seed == 0 else replace(case, name=f"{case.name} (seed {seed})")


def _cases(mechanism: Mechanism[..., Any], level: Level, seed: int) -> Iterator[Case]:
    apart = 10_000 * seed  # more than the numbers below lie apart, so that no two seeds share draws
    for sample in samples(mechanism, seed):
        yield Case(sample.name, dict(sample.arguments))
    if mechanism.spec.name in ATTENTION:
        sizes = [(131, 200), (131, 131)] if level == "quick" else [(131, 200), (200, 200), (67, 321)]
        for again, (query_len, key_len) in itertools.product(range(10 if level == "torture" else 1), sizes):
            label = f", {query_len}x{key_len}" + f", seed {again}" * (level == "torture")
            for case in attention(Random(1000 + again + apart), query_len, key_len):
                if level != "quick" or query_len != key_len or case.arguments.get("causal"):
                    yield Case(case.name + label, case.arguments, case.exact_scores)
        yield from lengths(Random(7 + apart))


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
    yield Case("random", {"query": random.normal(query_shape), "key": random.normal(key_shape), "value": value, **causal})


def lengths(random: Random) -> Iterator[Case]:
    """Sizes at which tiles, lanes and loops have their ends, in exact scores."""
    sizes = [(1, 1, 1, 1), (1, 65, 64, 64), (3, 129, 72, 72), (65, 64, 7, 5), (64, 63, 104, 40), (2, 17, 128, 16), (33, 48, 16, 3)]
    for query_len, key_len, head_dim, value_dim in sizes:
        arguments = {
            "query": random.integers(-3, 4, (2, 2, query_len, head_dim)) * 1.0,
            "key": random.integers(-3, 4, (2, 1, key_len, head_dim)) * 1.0,
            "value": random.normal((2, 1, key_len, value_dim)),
            "scale": 0.125,
        }
        name = f"{query_len} queries, {key_len} keys of {head_dim}, values of {value_dim}"
        yield Case(name, arguments, exact_scores=True)
        if query_len <= key_len:
            align = {} if query_len == key_len else {"align": "lower_right"}
            yield Case(f"{name}, causal", {**arguments, "causal": True, **align}, exact_scores=True)


def _needles(query_len: int, key_len: int) -> Any:
    own = np.arange(query_len) + key_len - query_len
    at = np.minimum(np.arange(query_len) * 7919 % key_len, own)
    at[::5] = own[::5]
    at[-8:] = key_len - 1 - np.arange(min(8, query_len))[::-1]
    return at


def _at(keys: Array, places: Any) -> Array:
    """For each of twice as many query heads, the key of its group at these places."""
    return np.repeat(keys, 2, axis=1)[:, :, places]
