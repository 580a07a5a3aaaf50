"""Inputs under which a wrong kernel cannot pass.

Random inputs give flat weights, and flat weights forgive: a dropped tile, a wrong maximum or a scale that is 2 % off stays
below any tolerance that rounding needs. Each case here makes one kind of fault large. In most, queries and keys are small
integers and the scale is a power of two, so that every score is exact in float32 and the budget has no term for it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

from refattn._core import Mechanism
from refattn._core.random import Random
from refattn.testing.calls import samples
from refattn.testing.inputs import convolution, functions, sums
from refattn.testing.inputs.attention import attention, edges, lengths
from refattn.testing.inputs.case import Case

Level: TypeAlias = Literal["quick", "full", "torture"]

ATTENTION = {"scaled_dot_product_attention", "scaled_dot_product_attention_with_lse"}
SEEDS = 10


def cases(mechanism: Mechanism[..., Any], level: Level = "quick", seed: int = 0) -> Iterator[Case]:
    """The mechanism's samples, then the adversarial inputs for it.

    Parameters
    ----------
    mechanism : mechanism
        Any function of `refattn.mechanisms`.
    level : {"quick", "full", "torture"}, optional
        Quick is one size of each, full has three and inputs of extreme size, torture ten seeds of these.
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
        yield case if seed == 0 else dataclasses.replace(case, name=f"{case.name} (seed {seed})")


def _cases(mechanism: Mechanism[..., Any], level: Level, seed: int) -> Iterator[Case]:
    for sample in samples(mechanism, seed):
        yield Case(sample.name, dict(sample.arguments))
    name, apart = mechanism.spec.name, 10_000 * seed  # more than the numbers below lie apart, so that no two seeds share draws
    for again in range(SEEDS if level == "torture" else 1):
        random = Random(1000 + again + apart)
        made = (
            _of_attention(random, level)
            if name in ATTENTION
            else itertools.chain(
                functions.cases(name, random), sums.cases(name, random), convolution.cases(name, random, quick=level == "quick")
            )
        )
        for case in made:
            yield dataclasses.replace(case, name=f"{case.name}, seed {again}") if level == "torture" else case


def _of_attention(random: Random, level: Level) -> Iterator[Case]:
    sizes = [(131, 200), (131, 131)] if level == "quick" else [(131, 200), (200, 200), (67, 321)]
    for query_len, key_len in sizes:
        for case in attention(random, query_len, key_len):
            if level != "quick" or query_len != key_len or case.arguments.get("causal"):
                yield dataclasses.replace(case, name=f"{case.name}, {query_len}x{key_len}")
    yield from lengths(random)
    yield from edges(random, quick=level == "quick")
