"""A question that looks at an image several times, and after each look asks with what it has seen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from refattn._core import Array, Booleans, Grads, Pullback, Random, Sample, mechanism
from refattn._core.tree import pick
from refattn.attention.score.region import region_attention
from refattn.attention.score.rule import Attended
from refattn.primitives.arithmetic import add


class QuestionWeights(NamedTuple):
    """Weights of `question_attention`.

    Attributes
    ----------
    w_regions : array, shape (hidden_dim, model_dim)
        Weights of a region.
    w_question : array, shape (hidden_dim, model_dim)
        Weights of the question.
    w_score : array, shape (hidden_dim)
        Weights of the hidden units.
    b_hidden : array or None, shape (hidden_dim)
        Added before the tanh.
    """

    w_regions: Array
    w_question: Array
    w_score: Array
    b_hidden: Array | None = None


def _weights(random: Random, model: int = 4, hidden: int = 3, *, bias: bool = True) -> QuestionWeights:
    w_regions, w_question = random.normal((hidden, model)), random.normal((hidden, model))
    return QuestionWeights(w_regions, w_question, random.normal(hidden), random.normal(hidden) if bias else None)


def _inputs(random: Random) -> dict[str, Any]:
    return {"regions": random.normal((2, 5, 4)), "question": random.normal((2, 4))}


def _mask(random: Random) -> Booleans:
    mask = random.booleans(0.6, (2, 5))
    mask[1] = False
    return mask


def _samples(random: Random) -> Iterator[Sample]:
    inputs, weights = _inputs(random), _weights(random)
    bare = {**inputs, **weights._replace(b_hidden=None)._asdict()}
    yield Sample("plain", {n: x for n, x in bare.items() if x is not None})
    yield Sample("bias", {**inputs, **weights._asdict()})
    yield Sample("masked", {**inputs, **weights._asdict(), "mask": _mask(random)})
    yield Sample("one image", {**bare, "regions": inputs["regions"][0], "question": inputs["question"][0]})


def _stacked_samples(random: Random) -> Iterator[Sample]:
    inputs = _inputs(random)
    yield Sample("two hops", {**inputs, "hops": (_weights(random), _weights(random))})
    yield Sample("three hops", {**inputs, "hops": tuple(_weights(random, bias=k != 1) for k in range(3))})
    yield Sample("masked", {**inputs, "hops": (_weights(random), _weights(random)), "mask": _mask(random)})
    yield Sample("no hops", {**inputs, "hops": ()})


def _benchmark(random: Random) -> dict[str, Any]:
    weights = _weights(random, 512, 256)._asdict()
    return {"regions": random.normal((16, 196, 512)), "question": random.normal((16, 512)), **weights}


def _stacked_benchmark(random: Random) -> dict[str, Any]:
    hops = tuple(_weights(random, 512, 256) for _ in range(2))
    return {"regions": random.normal((16, 196, 512)), "question": random.normal((16, 512)), "hops": hops}


@mechanism(tags={"softmax"}, samples=_samples, benchmark=_benchmark)
def question_attention(
    regions: Array,
    question: Array,
    w_regions: Array,
    w_question: Array,
    w_score: Array,
    b_hidden: Array | None = None,
    *,
    mask: Booleans | None = None,
) -> tuple[Attended, Pullback]:
    r"""Add to a question what it finds in the regions of an image: one hop of `stacked_attention`.

    Parameters
    ----------
    regions : array, shape (..., key_len, model_dim)
        Features of the image's regions.
    question : array, shape (..., model_dim)
        What the question says, or what an earlier hop made of it.
    w_regions : array, shape (hidden_dim, model_dim)
        Weights of a region: one row for each hidden unit.
    w_question : array, shape (hidden_dim, model_dim)
        Weights of the question.
    w_score : array, shape (hidden_dim)
        Weights of the hidden units.
    b_hidden : array or None, shape (hidden_dim), optional
        Added before the tanh.
    mask : bool array or None, broadcastable to (..., key_len), optional
        True where there is a region. An image that has none leaves the question as it is.

    Returns
    -------
    output : array, shape (..., model_dim)
        The refined question.
    weights : array, shape (..., key_len)
        How much each region counted.

    Notes
    -----
    The paper adds one more number to all scores of an image; the softmax takes it away again, so that it is left out here.

    .. math::

        h_i = \tanh(W_I v_i + W_Q q + b), \quad p = \operatorname{softmax}_i(w^\top h_i), \quad u = q + \sum_i p_i v_i, \qquad
        \bar q = \bar u + W_Q^\top \sum_i \bar h_i \odot (1 - h_i^2), \quad
        \bar v_i = p_i \bar u + W_I^\top (\bar h_i \odot (1 - h_i^2)), \quad
        \bar h_i = (\bar p_i - \textstyle\sum_j p_j \bar p_j)\, p_i\, w

    where :math:`\bar p_i` is its own cotangent plus :math:`v_i^\top \bar u`.

    References
    ----------
    .. [1] Yang, He, Gao, Deng, Smola, "Stacked Attention Networks for Image Question Answering", CVPR 2016, eqs. (15) to (18).
       arXiv:1511.02274.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> regions, eye = np.array([[-1e9, 0.0], [1e9, 8.0]]), np.eye(2)
    >>> refattn.question_attention(regions, np.zeros(2), eye, eye, np.array([np.log(3.0) / 2, 0.0])).weights
    array([0.25, 0.75])
    """
    attended, region_pullback = region_attention.vjp(regions, question, w_regions, w_question, w_score, b_hidden, mask=mask)
    refined, add_pullback = add.vjp(question, attended.output)

    def pullback(d_output: Array, d_weights: Array) -> Grads:
        d_sum = add_pullback(d_output)
        d = region_pullback(d_sum["b"], d_weights)
        return {**d, "question": d_sum["a"] + d["state"], "w_question": d["w_state"]}

    return Attended(refined, attended.weights), pullback


@mechanism(tags={"softmax"}, samples=_stacked_samples, benchmark=_stacked_benchmark)
def stacked_attention(
    regions: Array, question: Array, hops: tuple[QuestionWeights, ...], *, mask: Booleans | None = None
) -> tuple[Attended, Pullback]:
    r"""Look at an image several times, each time with the question that the look before has refined.

    Parameters
    ----------
    regions : array, shape (..., key_len, model_dim)
        Features of the image's regions; all hops read the same.
    question : array, shape (..., model_dim)
        What the question says.
    hops : tuple of QuestionWeights
        Weights of each hop, first to last.
    mask : bool array or None, broadcastable to (..., key_len), optional
        True where there is a region.

    Returns
    -------
    output : array, shape (..., model_dim)
        The refined question, from which the answer is inferred; without hops, the question.
    weights : array, shape (..., hops, key_len)
        How much each region counted in each hop.

    Notes
    -----
    With the hop :math:`f_k` of `question_attention`:

    .. math::

        u_0 = q, \quad u_k = u_{k-1} + \sum_i p_{k i} v_i, \quad p_k = \operatorname{softmax}(f_k(v, u_{k-1})), \qquad
        \bar u_{k-1} = \bar u_k + \Bigl(\frac{\partial p_k}{\partial u_{k-1}}\Bigr)^\top \bar p_k, \quad
        \bar v_i = \sum_k \Bigl(p_{k i} \bar u_k + \Bigl(\frac{\partial p_k}{\partial v_i}\Bigr)^\top \bar p_k\Bigr)

    where :math:`\bar p_{k i}` is its own cotangent and :math:`v_i^\top \bar u_k`.

    References
    ----------
    .. [1] Yang, He, Gao, Deng, Smola, "Stacked Attention Networks for Image Question Answering", CVPR 2016, eqs. (19) to (22).
       arXiv:1511.02274.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> regions, blind = np.array([[1.0], [3.0]]), refattn.QuestionWeights(np.zeros((1, 1)), np.zeros((1, 1)), np.zeros(1))
    >>> refattn.stacked_attention(regions, np.zeros(1), (blind, blind)).output  # two looks at the mean
    array([4.])
    """
    asked, weights, pullbacks = question, [np.zeros_like(regions, shape=(*regions.shape[:-2], 0, regions.shape[-2]))], []
    for hop in hops:
        (asked, seen), hop_pullback = question_attention.vjp(regions, asked, *hop, mask=mask)
        weights.append(seen[..., None, :])
        pullbacks.append(hop_pullback)

    def pullback(d_output: Array, d_weights: Array) -> Grads:
        d_asked, d_regions, d_hops = d_output, np.zeros_like(regions), []
        for k, hop_pullback in reversed(list(enumerate(pullbacks))):
            d = hop_pullback(d_asked, d_weights[..., k, :])
            d_asked, d_regions = d["question"], d_regions + d["regions"]
            d_hops.insert(0, pick(QuestionWeights, d))
        return {"regions": d_regions, "question": d_asked, "hops": tuple(d_hops)}

    return Attended(asked, np.concatenate(weights, axis=-2)), pullback
