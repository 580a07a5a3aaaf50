"""Samples that the recurrent forms share, and the same in chunks of several sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from refattn._core import BadCall, Random, Sample


def samples(random: Random, inputs: Mapping[str, Any]) -> Iterator[Sample]:
    """Of inputs with 2 batch entries, 4 query heads on 2 others, 5 positions, keys of width 3 and values of width 4."""
    state = random.normal((2, 2, 3, 4))
    yield Sample("grouped", inputs)
    yield Sample("state", {**inputs, "state": state, "scale": 0.75})
    yield Sample("one head", {n: x[:, :1] for n, x in inputs.items()})
    if "log_decay" in inputs:
        forgotten = inputs["log_decay"].copy()
        forgotten[:, 0, 2] = -np.inf
        yield Sample("almost forgotten", {**inputs, "state": state, "log_decay": inputs["log_decay"] * 500})
        yield Sample("forgotten", {**inputs, "state": state, "log_decay": forgotten})
    yield Sample("one step", {**{n: x[:, :, :1] for n, x in inputs.items()}, "state": state})
    yield Sample("nothing yet", {**{n: x[:, :, :0] for n, x in inputs.items()}, "state": state})


def in_chunks(whole: Iterator[Sample]) -> Iterator[Sample]:
    """The first in chunks of the default size, the next in chunks of 1 to 4 positions, so that what is forgotten stands inside one."""
    for i, sample in enumerate(whole):
        yield Sample(sample.name, {**sample.arguments, "chunk_size": 1 + (i - 1) % 4} if i else sample.arguments)


def bad_calls(random: Random, inputs: Mapping[str, Any]) -> Iterator[BadCall]:
    """Heads of the wrong number."""
    three = {**inputs, "query": random.normal((2, 3, 5, 3))}
    yield BadCall("heads that do not divide", three, ValueError, r"kv_heads \* group is 3")
