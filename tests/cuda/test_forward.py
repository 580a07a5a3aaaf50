"""The forward kernel under the emulator against the reference: emulated, not run on a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import refattn
from refattn_numba.cuda.configurations import choose
from refattn_numba.cuda.kernels.forward import Config
from tests.cuda.calls import Band, forward, forward_kernel, numbers, read_only, stored
from tests.cuda.cases import PROBLEMS, ROUNDING, Problem, problem


def small(element: Any, size: int, *, has_options: bool, **more: Any) -> Any:
    """A kernel with the shipped ones' source and small tiles, so that a case has several."""
    sizes: dict[str, Any] = {"rows": 16, "row_warps": 2, "keys": 32, "stages": 2, **more}
    return forward_kernel(Config(element, size, **sizes, has_options=has_options))


def compare(case: Problem, output: np.ndarray, lse: np.ndarray) -> None:
    """A weight and the output are rounded once each, whatever the values are averaged over."""
    (expected, of_lse), _ = case.reference()
    largest = np.abs(np.nan_to_num(numbers(case.operands[2]), posinf=0, neginf=0)).max(initial=1)
    allowed = 2 * ROUNDING[case.element] * largest * case.options.get("keep_scale", 1 / (1 - case.options.get("dropout_rate", 0)))
    np.testing.assert_allclose(numbers(output), expected, rtol=0, atol=allowed)
    np.testing.assert_allclose(lse, of_lse, rtol=0, atol=2.0**-18)


@pytest.mark.parametrize("name", PROBLEMS)
def test_forward(name: str, record_property: Any) -> None:
    case = problem(**PROBLEMS[name])
    kernel = small(case.element, 64 if "64" in name else 32, has_options=case.has_options)
    record_property("emulated", kernel.name)
    compare(case, *forward(kernel, *case.operands, **case.options))


@pytest.mark.parametrize(
    "config",
    [
        Config("bfloat16", 64, 32, 1, 64, 3),
        Config("float16", 64, 16, 1, 48, 4),
        Config("float32", 64, 32, 1, 16, 3),
        Config("bfloat16", 128, 16, 1, 16, 2, has_options=True),
        Config("bfloat16", 64, 16, 2, 32, 2, parts=2),
    ],
    ids=str,
)
def test_tiles_of_other_sizes(config: Config, record_property: Any) -> None:
    case = problem(config.element, heads=1, head_dim=config.size - 8, query_len=40, key_len=100, causal="lower_right")
    record_property("emulated", "forward")
    compare(case, *forward(forward_kernel(config), *case.operands, **case.options))


@pytest.mark.parametrize(("element", "size"), [("bfloat16", 64), ("bfloat16", 128), ("float16", 256), ("float32", 256)])
def test_shipped_kernels(element: Any, size: int, record_property: Any) -> None:
    case = problem(element, heads=1, head_dim=size, query_len=20, key_len=90, causal="lower_right")
    kernel = choose("forward", element, size, size)
    record_property("emulated", kernel.name)
    compare(case, *forward(kernel, *case.operands, **case.options))


def test_float32_is_near_its_own_rounding() -> None:
    """Three products of TF32: no worse than twice what the same computation has in float32."""
    case = problem("float32", heads=1, head_dim=32, query_len=32, key_len=100)
    output, _ = forward(small("float32", 32, has_options=False), *case.operands)
    (expected, _), _ = case.reference()
    query, key, value = case.operands
    scores = query @ key.swapaxes(-1, -2) * np.float32(query.shape[-1] ** -0.5)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    in_float32 = (weights / weights.sum(axis=-1, keepdims=True)) @ value
    assert np.abs(output - expected).max() < 2 * np.abs(in_float32 - expected).max()


def test_packed_sequences() -> None:
    """Of many lengths, none and one among them; each is what it would be alone."""
    lengths, others = [5, 0, 33, 1, 16], [7, 4, 60, 0, 16]
    cu = tuple(np.cumsum([0, *n]).astype(np.int32) for n in (lengths, others))
    rng, element = np.random.default_rng(1), "bfloat16"
    query, key, value = (stored(rng.standard_normal((1, h, n, 32)), element) for h, n in ((2, 55), (1, 87), (1, 87)))
    band = Band(-20, 0, 1)
    output, lse = forward(small(element, 32, has_options=False), query, key, value, band=band, cu=cu)
    expected = refattn.varlen_attention_with_lse(
        *(numbers(x)[0] for x in (query, key, value)), *cu, causal=True, align="lower_right", window=(20, None)
    )
    np.testing.assert_allclose(numbers(output)[0], expected.output, rtol=0, atol=2 * ROUNDING[element] * 4)
    np.testing.assert_allclose(lse[0], expected.lse, rtol=0, atol=2.0**-18)


def test_any_strides() -> None:
    """Lengths before heads, as frameworks pack them, and a head that all batches share."""
    rng, element = np.random.default_rng(2), "float16"
    packed = stored(rng.standard_normal((2, 40, 3 * 2, 32)), element)
    query, key, value = (packed[:, :, 2 * i : 2 * i + 2].swapaxes(1, 2) for i in range(3))
    value = np.broadcast_to(value[:1], value.shape)
    case = Problem(element, (query, key, value), {}, {})
    compare(case, *forward(small(element, 32, has_options=False), query, key, value))


def test_rows_that_may_attend_nowhere() -> None:
    case = problem("bfloat16", causal="lower_right", query_len=40, key_len=30)
    output, lse = forward(small("bfloat16", 32, has_options=False), *case.operands, **case.options, empty=np.nan)
    assert np.isnan(numbers(output)[:, :, :10]).all()
    assert np.isneginf(lse[:, :, :10]).all()
    assert np.isfinite(numbers(output)[:, :, 10:]).all()


@pytest.mark.parametrize("element", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("option", ["causal", "mask", "bias"])
def test_what_is_masked_reaches_nothing(element: str, option: str) -> None:
    """NaN or infinity in a masked key or value has no effect; where it is not masked it has the reference's."""
    case = problem(element, heads=1, query_len=40, key_len=40, causal="upper_left" if option == "causal" else None, options=(option,))
    query, key, value = case.operands
    dirty = numbers(key), numbers(value)
    dirty[0][..., 20, :], dirty[1][..., 25, 3], dirty[1][..., 11, 5] = np.nan, np.inf, -np.inf
    if option == "bias":
        dirty[1][..., 2, :] = np.nan
    case = case._replace(operands=(query, stored(dirty[0], element), stored(dirty[1], element)))
    kernel = small(element, 32, has_options=case.has_options)
    compare(case, *forward(kernel, *map(read_only, case.operands), **case.options))


def test_results_repeat() -> None:
    case = problem("bfloat16", causal="lower_right")
    kernel = small("bfloat16", 32, has_options=False)
    first, again = (forward(kernel, *case.operands, **case.options) for _ in range(2))
    assert first[0].tobytes() == again[0].tobytes()
    assert first[1].tobytes() == again[1].tobytes()


def test_head_dim_is_checked() -> None:
    with pytest.raises(ValueError, match="head_dim is 257, but must be 1 to 256"):
        choose("forward", "bfloat16", 257, 64)
    with pytest.raises(ValueError, match="dtype is float64, but must be one of"):
        choose("forward", "float64", 64, 64)  # type: ignore[arg-type]
