"""Inputs of functions of one number, of softmax and of normalisation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from refattn._core import Array
from refattn._core.random import Random
from refattn.testing.inputs.case import Case
from refattn.testing.stored import POINTWISE

SOFTMAX = {"softmax", "log_softmax", "logsumexp"}
BY_CHANNEL = {"batch_norm", "batch_norm_training", "group_norm", "instance_norm"}


def cases(name: str, random: Random) -> Iterator[Case]:
    """For a mechanism of this name; none for others."""
    if name in POINTWISE:
        yield Case("all of [-6, 6]", {"x": everywhere()}, independent=True)
    if name == "gelu":
        yield Case("tanh form on all of [-6, 6]", {"x": everywhere(), "approximate": "tanh"}, independent=True)
    elif name in SOFTMAX:
        yield from _softmax(random)
    elif name in {"layer_norm", "rms_norm"}:
        yield Case("many features", {"x": random.normal((3, 2055))})
        yield Case("mean far from zero", {"x": 8 + random.integers(-16, 17, (5, 40)) / 8.0})
    elif name in BY_CHANNEL:
        yield from _by_channel(name, random)


def everywhere() -> Array:
    """Numbers of 8 bits from 1/16 to 6 and their negatives, each once: exact in bfloat16, and as dense there as can be."""
    binades = [2.0**k * (1 + np.arange(128) / 128) for k in range(-4, 3)]
    x = np.concatenate(binades)
    x = x[x <= 6]
    return np.concatenate([-x[::-1], x])


def _softmax(random: Random) -> Iterator[Case]:
    """Many rows of few classes, for what is wrong by little everywhere; few rows of many, for the sum."""
    yield Case("few classes", {"x": 2 * random.normal((400, 5))}, independent=True)
    yield Case("many classes", {"x": random.normal((2, 2055))})
    yield Case("many classes, all alike", {"x": np.full((1, 2055), -272.0)})
    needle = np.full((3, 1027), -8.0)
    needle[np.arange(3), [0, 512, 1026]] = 8.0
    yield Case("needle", {"x": needle})
    yield Case("all scores near -5e4", {"x": -49152.0 + 256 * random.integers(0, 3, (4, 130))})


def _by_channel(name: str, random: Random) -> Iterator[Case]:
    options = {"group_norm": {"num_groups": 2}}.get(name, {})
    running = {"running_mean": random.normal(4), "running_var": random.uniform(0.5, 2.0, 4)} if name.startswith("batch_norm") else {}
    many = {"x": random.normal((3, 4, 17, 21)), "scale": random.uniform(0.5, 2.0, 4), "shift": random.normal(4)}
    yield Case("many positions", {**many, **running, **options})
