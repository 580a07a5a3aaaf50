"""Attention over the regions of an image, asked by the state of a decoder or by a question."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from refattn._core import Array, BadCall, Booleans, Grads, Pullback, Random, Sample, mechanism
from refattn.attention.score.rule import Attended, compare
from refattn.primitives.activation import sigmoid
from refattn.primitives.arithmetic import multiply
from refattn.primitives.linear import linear


def _inputs(random: Random) -> dict[str, Any]:
    return {
        "regions": random.normal((2, 5, 4)),
        "state": random.normal((2, 6)),
        "w_regions": random.normal((3, 4)),
        "w_state": random.normal((3, 6)),
        "w_score": random.normal(3),
    }


def _samples(random: Random) -> Iterator[Sample]:
    inputs = _inputs(random)
    mask = random.booleans(0.6, (2, 5))
    mask[1] = False
    yield Sample("plain", inputs)
    yield Sample("bias", {**inputs, "b_hidden": random.normal(3)})
    yield Sample("gate", {**inputs, "w_gate": random.normal((1, 6))})
    yield Sample("gate with bias", {**inputs, "w_gate": random.normal((1, 6)), "b_gate": random.normal(1)})
    yield Sample("masked", {**inputs, "mask": mask, "w_gate": random.normal((1, 6))})
    yield Sample("one image", {**inputs, "regions": inputs["regions"][0], "state": inputs["state"][0]})


def _bad_calls(random: Random) -> Iterator[BadCall]:
    yield BadCall("no gate to add to", {**_inputs(random), "b_gate": random.normal(1)}, ValueError, "b_gate is given, but w_gate is None")


def _benchmark(random: Random) -> dict[str, Any]:
    weights = {"w_regions": random.normal((512, 512)), "w_state": random.normal((512, 512)), "w_score": random.normal(512)}
    return {"regions": random.normal((16, 196, 512)), "state": random.normal((16, 512)), **weights}


def _gated(context: Array, state: Array, w_gate: Array | None, b_gate: Array | None) -> tuple[Array, Pullback]:
    """The context times a gate that the state opens; the context itself where there is no gate."""
    if w_gate is None:
        return context, lambda dy: {"context": dy, "state": np.zeros_like(state)}
    logit, linear_pullback = linear.vjp(state, w_gate, b_gate)
    gate, sigmoid_pullback = sigmoid.vjp(logit)
    output, multiply_pullback = multiply.vjp(context, gate)

    def pullback(dy: Array) -> Grads:
        d_product = multiply_pullback(dy)
        d_linear = linear_pullback(sigmoid_pullback(d_product["b"])["x"])
        return {"context": d_product["a"], "state": d_linear["x"], "w_gate": d_linear["weight"], "b_gate": d_linear.get("bias")}

    return output, pullback


@mechanism(tags={"softmax", "gate"}, samples=_samples, bad_calls=_bad_calls, benchmark=_benchmark)
def region_attention(
    regions: Array,
    state: Array,
    w_regions: Array,
    w_state: Array,
    w_score: Array,
    b_hidden: Array | None = None,
    w_gate: Array | None = None,
    b_gate: Array | None = None,
    *,
    mask: Booleans | None = None,
) -> tuple[Attended, Pullback]:
    r"""Average the features of an image's regions, weighted by a network that reads a state and a region.

    Parameters
    ----------
    regions : array, shape (..., key_len, value_dim)
        The paper's annotation vectors: one for each region.
    state : array, shape (..., query_dim)
        Hidden state of the decoder before this word; or what a question says.
    w_regions : array, shape (hidden_dim, value_dim)
        Weights of a region: one row for each hidden unit.
    w_state : array, shape (hidden_dim, query_dim)
        Weights of the state.
    w_score : array, shape (hidden_dim)
        Weights of the hidden units.
    b_hidden : array or None, shape (hidden_dim), optional
        Added before the tanh.
    w_gate : array or None, shape (1, query_dim), optional
        Weights of the gate, by which a state says how much the image counts; None is no gate.
    b_gate : array or None, shape (1), optional
        Bias of the gate.
    mask : bool array or None, broadcastable to (..., key_len), optional
        True where there is a region. An image that has none gives 0.

    Returns
    -------
    output : array, shape (..., value_dim)
        The paper's context vector.
    weights : array, shape (..., key_len)
        The weights of the regions, before the gate: `doubly_stochastic_penalty` takes those of all words.

    Notes
    -----
    The paper asks for a multilayer perceptron; its one hidden layer is here that of `additive_attention`.

    .. math::

        e_i = v^\top \tanh(W a_i + U h + b), \quad \alpha = \operatorname{softmax}(e), \quad \beta = \sigma(f_\beta(h)), \quad
        z = \beta \sum_i \alpha_i a_i, \qquad
        \bar\alpha_i \mathrel{+}= \beta\, a_i^\top \bar z, \quad \bar\beta = \sum_i \alpha_i\, a_i^\top \bar z, \quad
        \bar a_i = \beta\, \alpha_i \bar z + W^\top \bar h_i

    References
    ----------
    .. [1] Xu et al., "Show, Attend and Tell: Neural Image Caption Generation with Visual Attention", ICML 2015: deterministic
       "soft" attention. arXiv:1502.03044.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> regions, state = np.array([[-1e9], [1e9]]), np.zeros(1)
    >>> refattn.region_attention(regions, state, np.ones((1, 1)), np.ones((1, 1)), np.log([3.0]) / 2).weights
    array([0.25, 0.75])
    """
    if b_gate is not None and w_gate is None:
        raise ValueError("b_gate is given, but w_gate is None")
    asked = None if mask is None else np.broadcast_to(mask, regions.shape[:-1])[..., None, :]
    attended, compare_pullback = compare(state[..., None, :], regions, regions, w_state, w_regions, w_score, b_hidden, mask=asked)
    output, gate_pullback = _gated(attended.output[..., 0, :], state, w_gate, b_gate)

    def pullback(d_output: Array, d_weights: Array) -> Grads:
        d_gate = gate_pullback(d_output)
        d = compare_pullback(d_gate["context"][..., None, :], d_weights[..., None, :])
        return {
            "regions": d["key"] + d["value"],
            "state": d["query"][..., 0, :] + d_gate["state"],
            "w_regions": d["w_key"],
            "w_state": d["w_query"],
            "w_score": d["w_score"],
            "b_hidden": d["b_hidden"],
            "w_gate": d_gate.get("w_gate"),
            "b_gate": d_gate.get("b_gate"),
        }

    return Attended(output, attended.weights[..., 0, :]), pullback


def _penalty_samples(random: Random) -> Iterator[Sample]:
    yield Sample("two captions", {"weights": random.uniform(0.0, 0.5, (2, 3, 5))})
    yield Sample("one caption", {"weights": random.uniform(0.0, 0.5, (3, 5))})


@mechanism(samples=_penalty_samples)
def doubly_stochastic_penalty(weights: Array) -> tuple[Array, Pullback]:
    r"""How far each region is from being attended to once in all.

    Parameters
    ----------
    weights : array, shape (..., length, key_len)
        Weights of the regions at each word; those of padding set to 0.

    Returns
    -------
    array, shape (...)
        The penalty of each caption, to be multiplied by the paper's :math:`\lambda`.

    Notes
    -----
    .. math::

        y = \sum_i \Bigl(1 - \sum_t \alpha_{ti}\Bigr)^2, \qquad \bar\alpha_{ti} = -2 \Bigl(1 - \sum_s \alpha_{si}\Bigr)\, \bar y

    References
    ----------
    .. [1] Xu et al., "Show, Attend and Tell: Neural Image Caption Generation with Visual Attention", ICML 2015: doubly stochastic
       attention. arXiv:1502.03044.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.doubly_stochastic_penalty(np.array([[0.5, 0.5], [0.5, 0.0]]))
    array(0.25)
    """
    missing = 1 - weights.sum(axis=-2)
    penalty = np.asarray((missing**2).sum(axis=-1))
    return penalty, lambda dy: {"weights": np.broadcast_to((-2 * missing * dy[..., None])[..., None, :], weights.shape)}
