"""JAX's own attention, compiled."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.cases import Call
from benchmarks.softmax import Given


def jax_call(jax: Any, given: Given) -> Call:
    """Heads follow positions there, and arrays are laid out so before the clock runs."""
    options: dict[str, Any] = {"is_causal": given.problem.causal}
    if given.problem.window is not None:
        options["local_window_size"] = (given.problem.window - 1, 0)
    if "mask" in given.options:
        options["mask"] = jax.numpy.asarray(given.options["mask"])[None, None]
    query, key, value, d = (jax.numpy.asarray(x.swapaxes(1, 2)) for x in given[1:5])
    inputs = (query, key, value, *([jax.numpy.asarray(given.options["bias"])] if "bias" in given.options else []))

    def attend(query: Any, key: Any, value: Any, *bias: Any) -> Any:
        more = {"bias": bias[0][None, None]} if bias else {}
        return jax.nn.dot_product_attention(query, key, value, **options, **more)

    def both(d: Any, *inputs: Any) -> Any:
        y, pullback = jax.vjp(attend, *inputs)
        return (y, *pullback(d))

    run = jax.jit(both if given.problem.backward else lambda _, *inputs: (attend(*inputs),))

    def call() -> Any:
        made = jax.block_until_ready(run(d, *inputs))
        return lambda: tuple(np.asarray(x).swapaxes(1, 2) if x.ndim == 4 else np.asarray(x) for x in made)

    return call
