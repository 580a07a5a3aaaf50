"""What training makes small."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeAlias

import numpy as np

from refattn._core import Array, BadCall, Grads, Integers, Pullback, Random, Sample, mechanism
from refattn.primitives.softmax import log_softmax

Reduction: TypeAlias = Literal["mean", "sum"]


def _squared_samples(random: Random) -> Iterator[Sample]:
    yield Sample("batch", {"prediction": random.normal((3, 4)), "target": random.normal((3, 4))})


def _squared_bad_calls(random: Random) -> Iterator[BadCall]:
    column, row = random.normal((4, 1)), random.normal(4)
    yield BadCall("shapes that broadcast", {"prediction": column, "target": row}, ValueError, "target has 1 axes, but needs 2")
    yield BadCall("nothing", {"prediction": row[:0], "target": row[:0]}, ValueError, r"prediction has shape \(0,\): no mean")


@mechanism(samples=_squared_samples, bad_calls=_squared_bad_calls)
def mean_squared_error(prediction: Array, target: Array) -> tuple[Array, Pullback]:
    r"""Mean of the squared differences.

    Both have one shape: a prediction (n, 1) against a target (n), which would broadcast to (n, n), is refused.

    Parameters
    ----------
    prediction : array, shape (...)
        What a model says.
    target : array, shape (...)
        What it should say.

    Returns
    -------
    array, shape ()
        Mean over all elements.

    Notes
    -----
    .. math::

        L = \frac{1}{n} \sum_i (p_i - t_i)^2, \qquad \bar p_i = \frac{2}{n} (p_i - t_i)\, \bar L, \quad \bar t_i = -\bar p_i

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.mean_squared_error(np.array([1.0, 2.0]), np.array([1.0, 4.0]))
    array(2.)
    """
    if prediction.size == 0:
        raise ValueError(f"prediction has shape {prediction.shape}: no mean")
    difference = prediction - target

    def pullback(d_loss: Array) -> Grads:
        d_prediction = 2 * difference / difference.size * d_loss
        return {"prediction": d_prediction, "target": -d_prediction}

    return (difference**2).sum() / difference.size, pullback


def _entropy_inputs(random: Random) -> dict[str, Any]:
    return {"scores": random.normal((2, 3, 4)), "targets": np.asarray([[0, 3, 1], [-1, 1, 2]])}


def _entropy_samples(random: Random) -> Iterator[Sample]:
    inputs, class_weights = _entropy_inputs(random), random.uniform(0.5, 2.0, 4)
    yield Sample("plain", inputs)
    yield Sample("weights", {**inputs, "class_weights": class_weights})
    yield Sample("smoothing", {**inputs, "label_smoothing": 0.25})
    yield Sample("padding", {**inputs, "ignore_index": 1})
    yield Sample("sum", {**inputs, "reduction": "sum"})
    yield Sample("all", {**inputs, "class_weights": class_weights, "label_smoothing": 0.25, "ignore_index": 3})
    yield Sample("one", {"scores": random.normal(4), "targets": np.asarray(2), "class_weights": class_weights, "reduction": "sum"})


def _entropy_bad_calls(random: Random) -> Iterator[BadCall]:
    inputs = _entropy_inputs(random)
    yield BadCall(
        "no such class", {**inputs, "targets": inputs["targets"] + 1}, ValueError, "targets runs from 0 to 4, but indexes classes"
    )
    yield BadCall("nothing counts", {**inputs, "targets": np.full_like(inputs["targets"], -1)}, ValueError, "targets: none of the 6 counts")


def _entropy_benchmark(random: Random) -> Mapping[str, Any]:
    return {"scores": random.normal((4096, 1000)), "targets": random.integers(0, 1000, 4096)}


@mechanism(samples=_entropy_samples, bad_calls=_entropy_bad_calls, benchmark=_entropy_benchmark)
def cross_entropy(
    scores: Array,
    targets: Integers,
    class_weights: Array | None = None,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    reduction: Reduction = "mean",
) -> tuple[Array, Pullback]:
    r"""Negative logarithm of the weight that a softmax gives to the right class.

    Parameters
    ----------
    scores : array, shape (..., classes)
        Scores before the softmax; the classes are the last axis, not the second as in PyTorch.
    targets : int array, shape (...), indexing classes or -1
        The right classes; -1, for which PyTorch writes -100, does not count.
    class_weights : constant array or None, shape (classes), optional
        How much each class counts.
    label_smoothing : probability, optional
        Share of the target that is spread evenly over all classes.
    ignore_index : int or None, optional
        Another class that does not count, such as that of padding.
    reduction : {"mean", "sum"}, optional
        Whether the sum is divided by what its targets count: by their number, or by the sum of their class weights.

    Returns
    -------
    array, shape ()
        Loss.

    Notes
    -----
    Sizes: ``classes >= 1``.

    With targets :math:`t_n`, class weights w, smoothing :math:`\epsilon`, C classes, and sums over the targets that count:

    .. math::

        L = -\frac{1}{D} \sum_{n, c} a_{n c} \log p_{n c}, \quad p_n = \operatorname{softmax}(s_n), \quad
        a_{n c} = (1 - \epsilon)\, w_{t_n} [c = t_n] + \frac{\epsilon}{C} w_c, \quad D = \sum_n w_{t_n} \text{ or } 1, \qquad
        \bar s_{n c} = \frac{\bar L}{D} \Bigl(p_{n c} \sum_k a_{n k} - a_{n c}\Bigr)

    References
    ----------
    .. [1] Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016, section 7. arXiv:1512.00567.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.cross_entropy(np.zeros((3, 2)), np.array([0, 1, -1])) / np.log(2)
    np.float64(1.0)
    """
    classes = scores.shape[-1]
    counts = (targets != -1) & (True if ignore_index is None else targets != ignore_index)
    weights = np.ones_like(scores, shape=(classes,)) if class_weights is None else class_weights
    of_target = np.where(counts, weights[targets], 0)
    total = of_target.sum()
    if reduction == "mean" and not total:
        raise ValueError(f"targets: none of the {targets.size} counts, so that there is no mean")
    divisor = total if reduction == "mean" else 1
    is_target = np.arange(classes) == targets[..., None]
    smooth = np.where(counts[..., None], weights, 0) * (label_smoothing / classes)
    shares = ((1 - label_smoothing) * np.where(is_target, of_target[..., None], 0) + smooth) / divisor
    logs, logs_pullback = log_softmax.vjp(scores)

    def pullback(d_loss: Array) -> Grads:
        return {"scores": logs_pullback(-shares * d_loss)["x"]}

    return -(np.where(shares == 0, 0, logs) * shares).sum(), pullback
