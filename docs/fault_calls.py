"""Calls as the tests of projects make them, with the options that a fault needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from docs.rules import Project
from refattn.testing.precision import named_format

OPTIONS = {
    *("window", "softcap", "sinks", "bias", "mask", "keep", "scale", "head_dim", "value_dim", "eps"),
    *("groups", "padding", "stride", "dilation", "3x3", "output_padding"),
}
"""Needs that change a call; calls have all others anyway, or never."""


def attention_call(project: Project, needs: Sequence[str], random: np.random.Generator) -> dict[str, Any]:
    """One call as the project's tests make it, with the options that a fault needs."""
    query_len, key_len = (128, 128) if project.equal else (127, 136) if "lengths" in project.has else (136, 136)
    heads, kv_heads, head_dim = 4, 2 if "groups" in project.has else 4, 59 if {"head_dim", "value_dim"} & set(needs) else 64
    shapes = {"query": (2, heads, query_len, head_dim), "key": (2, kv_heads, key_len, head_dim), "value": (2, kv_heads, key_len, head_dim)}
    call: dict[str, Any] = {n: project.draw(random, shape, n) for n, shape in shapes.items()}
    pairs = (2, heads, query_len, key_len)
    call |= {"causal": True} | ({} if query_len == key_len else {"align": project.align})
    if "window" in needs:
        call = {**call, "causal": False, "window": (20, 5)}
    if "softcap" in needs:
        call |= {"softcap": project.softcap, "query": project.draw(random, shapes["query"], "query, softcap")}
    if "sinks" in needs:
        call["sinks"] = project.draw(random, (heads,), "sinks")
    if "bias" in needs:
        call["bias"] = project.draw(random, (heads, query_len, key_len), "bias")
    if "mask" in needs:
        call["mask"] = random.random(pairs) < 0.7
    if "keep" in needs:
        call |= {"keep": random.random(pairs) >= 0.17, "dropout_rate": 0.17}
    if "scale" in needs or project.name.startswith("Triton"):
        call["scale"] = 0.5
    return call


def linear_call(mechanism: str, project: Project, needs: Sequence[str], random: np.random.Generator) -> dict[str, Any]:
    """One call with gates of a log sigmoid, keys of length 1, and a first state."""
    shape = (2, 2, 63, 32)
    call: dict[str, Any] = {n: project.draw(random, (2, 4 if n == "query" else 2, *shape[2:]), n) for n in ("query", "key", "value")}
    call["state"] = project.draw(random, (2, 2, 32, 32), "state")
    if mechanism == "linear_attention":
        return {**call, "causal": True, "normalizer": random.uniform(0.5, 1, shape[:2] + shape[3:])} | (
            {"eps": 1.0} if "eps" in needs else {}
        )
    call["key"] /= np.linalg.norm(call["key"], axis=-1, keepdims=True)
    if "gated" in mechanism:
        call["log_decay"] = -np.log1p(np.exp(-random.normal(size=shape if mechanism == "gated_linear_attention" else shape[:3])))
    return call | ({"beta": 1 / (1 + np.exp(-random.normal(size=shape[:3])))} if "delta" in mechanism else {})


def convolution_call(mechanism: str, project: Project, needs: Sequence[str], random: np.random.Generator) -> dict[str, Any]:
    """One call with all options that a fault needs."""
    groups = 2 if "groups" in needs else 1
    square = "3x3" in needs
    weight = (12, 6, 3, 2) if mechanism == "conv_transpose2d" else (8, 12 // groups, 3, 3 if square else 2)
    call: dict[str, Any] = {
        "x": project.draw(random, (2, 12, 9, 22), "x"),
        "weight": project.draw(random, weight, "weight"),
        "groups": groups,
    }
    if "bias" in needs:
        call["bias"] = project.draw(random, (weight[1] * groups if mechanism == "conv_transpose2d" else weight[0],), "bias")
    call |= {"padding": ((1, 2), (1, 0))} if "padding" in needs else {}
    call |= {"stride": 2} if {"stride", "output_padding"} & set(needs) else {}
    call |= {"dilation": (1, 3) if mechanism == "conv2d" else 2} if "dilation" in needs else {}
    return call | ({"output_padding": 1, "padding": 2} if "output_padding" in needs else {})


def call_of(mechanism: str, project: Project, needs: Sequence[str], seed: int) -> dict[str, Any]:
    """Rounded to the project's format."""
    random = np.random.default_rng(seed)
    made = {
        "attention": lambda: attention_call(project, needs, random),
        "linear": lambda: linear_call(mechanism, project, needs, random),
        "convolution": lambda: convolution_call(mechanism, project, needs, random),
    }[project.family]()
    target = named_format(project.dtype)
    return {n: target.round(x) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x for n, x in made.items()}
