"""A query and a key behind each other, read by a network of one hidden layer: of tanh, or of other units and with biases."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

from refattn._core import Array, Booleans, Pullback, Random, Sample, mechanism
from refattn.attention.score.rule import compare_concatenated
from refattn.primitives.activation import relu, sigmoid, tanh
from refattn.primitives.attention_stages import MaskedRows

Activation: TypeAlias = Literal["relu", "sigmoid", "tanh"]


def _inputs(random: Random) -> dict[str, Any]:
    return {
        "query": random.normal((2, 3, 4)),
        "key": random.normal((2, 5, 6)),
        "value": random.normal((2, 5, 2)),
        "w_hidden": random.normal((3, 10)),
        "w_score": random.normal(3),
    }


def _samples(random: Random) -> Iterator[Sample]:
    inputs = _inputs(random)
    mask = random.booleans(0.6, (2, 3, 5))
    mask[0, 1] = False
    yield Sample("plain", inputs)
    yield Sample("masked", {**inputs, "mask": mask})
    yield Sample("masked row uniform", {**inputs, "mask": mask, "masked_rows": "uniform"})
    yield Sample("one sentence", {**inputs, **{n: inputs[n][0] for n in ("query", "key", "value")}, "mask": mask[1]})


def _perceptron_samples(random: Random) -> Iterator[Sample]:
    yield from _samples(random)
    biases = {"b_hidden": random.normal(3), "b_score": random.normal(1)}
    yield Sample("biases", {**_inputs(random), **biases})
    yield Sample("sigmoid", {**_inputs(random), **biases, "activation": "sigmoid"})
    yield Sample("tanh", {**_inputs(random), "activation": "tanh"})


def _benchmark(random: Random) -> dict[str, Any]:
    tokens = {name: random.normal((8, 50, 256)) for name in ("query", "key", "value")}
    return {**tokens, "w_hidden": random.normal((256, 512)), "w_score": random.normal(256)}


@mechanism(tags={"softmax", "quadratic"}, samples=_samples, benchmark=_benchmark)
def concat_attention(
    query: Array,
    key: Array,
    value: Array,
    w_hidden: Array,
    w_score: Array,
    *,
    mask: Booleans | None = None,
    masked_rows: MaskedRows = "zero",
) -> tuple[Array, Pullback]:
    r"""Average the values, weighted by a hidden layer of tanh that reads a query and a key behind each other.

    Parameters
    ----------
    query : array, shape (..., query_len, query_dim)
        Decoder states.
    key : array, shape (..., key_len, key_dim)
        Encoder states that are compared with.
    value : array, shape (..., key_len, value_dim)
        Encoder states that are read: the paper's are the keys.
    w_hidden : array, shape (hidden_dim, query_dim + key_dim)
        The paper's W: in each row first the weights of the query, then those of the key.
    w_score : array, shape (hidden_dim)
        The paper's v.
    mask : bool array or None, broadcastable to (..., query_len, key_len), optional
        True where the query may attend.
    masked_rows : {"zero", "nan", "uniform"}, optional
        Weights of a query that may attend nowhere.

    Returns
    -------
    array, shape (..., query_len, value_dim)
        The attended values.

    Notes
    -----
    It is `additive_attention` with the matrices of query and key side by side.

    .. math::

        e_{ij} = v^\top \tanh(W [q_i; k_j]), \quad \alpha_i = \operatorname{softmax}(e_i), \quad c_i = \sum_j \alpha_{ij} x_j, \qquad
        \bar h_{ij} = \bar e_{ij}\, v \odot (1 - \tanh^2 h_{ij}), \quad \bar W = \sum_{ij} \bar h_{ij} [q_i; k_j]^\top

    References
    ----------
    .. [1] Luong, Pham, Manning, "Effective Approaches to Attention-based Neural Machine Translation", EMNLP 2015: the score
       "concat". arXiv:1508.04025.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> query, key, value = np.zeros((1, 1)), np.array([[-1e9], [1e9]]), np.array([[2.0], [4.0]])
    >>> refattn.concat_attention(query, key, value, np.ones((1, 2)), np.log([2.0]) / 2)  # weights 1 to 2
    array([[3.33333333]])
    """
    return compare_concatenated(query, key, value, w_hidden, w_score, mask=mask, masked_rows=masked_rows)


@mechanism(tags={"softmax", "quadratic"}, samples=_perceptron_samples, benchmark=_benchmark, inert={"b_score"})
def perceptron_attention(
    query: Array,
    key: Array,
    value: Array,
    w_hidden: Array,
    w_score: Array,
    b_hidden: Array | None = None,
    b_score: Array | None = None,
    *,
    activation: Activation = "relu",
    mask: Booleans | None = None,
    masked_rows: MaskedRows = "zero",
) -> tuple[Array, Pullback]:
    r"""Average the values, weighted by a multilayer perceptron that reads a query and a key behind each other.

    Parameters
    ----------
    query : array, shape (..., query_len, query_dim)
        What asks.
    key : array, shape (..., key_len, key_dim)
        What is compared with.
    value : array, shape (..., key_len, value_dim)
        What is read.
    w_hidden : array, shape (hidden_dim, query_dim + key_dim)
        First layer: in each row first the weights of the query, then those of the key.
    w_score : array, shape (hidden_dim)
        Second layer.
    b_hidden : array or None, shape (hidden_dim), optional
        Bias of the first layer.
    b_score : array or None, shape (1), optional
        Bias of the second layer. The softmax takes it away again: it has no effect, and its gradient is 0.
    activation : {"relu", "sigmoid", "tanh"}, optional
        The hidden units.
    mask : bool array or None, broadcastable to (..., query_len, key_len), optional
        True where the query may attend.
    masked_rows : {"zero", "nan", "uniform"}, optional
        Weights of a query that may attend nowhere.

    Returns
    -------
    array, shape (..., query_len, value_dim)
        The attended values.

    Notes
    -----
    The paper makes the alignment model a feedforward network; its own is that of `additive_attention`, of tanh and without biases.

    .. math::

        h_{ij} = W_1 [q_i; k_j] + b_1, \quad e_{ij} = w_2^\top a(h_{ij}) + b_2, \quad \alpha_i = \operatorname{softmax}(e_i), \quad
        c_i = \sum_j \alpha_{ij} x_j, \qquad
        \bar h_{ij} = \bar e_{ij}\, w_2 \odot a'(h_{ij}), \quad \bar W_1 = \sum_{ij} \bar h_{ij} [q_i; k_j]^\top, \quad
        \bar b_2 = \sum_{ij} \bar e_{ij} = 0

    References
    ----------
    .. [1] Bahdanau, Cho, Bengio, "Neural Machine Translation by Jointly Learning to Align and Translate", ICLR 2015, section 3.1.
       arXiv:1409.0473.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> query, key, value = np.zeros((1, 1)), np.array([[-1.0], [1.0]]), np.array([[2.0], [4.0]])
    >>> refattn.perceptron_attention(query, key, value, np.ones((1, 2)), np.log([3.0]))  # relu: weights 1 to 3
    array([[3.5]])
    """
    units = {"relu": relu, "sigmoid": sigmoid, "tanh": tanh}[activation]
    biases = (b_hidden, b_score)
    return compare_concatenated(query, key, value, w_hidden, w_score, *biases, activation=units, mask=mask, masked_rows=masked_rows)
