"""Losses, term by term."""

import math

import numpy as np


def mean_squared_error(prediction, target):
    return np.array(math.fsum((float(p) - float(t)) ** 2 for p, t in zip(prediction.flat, target.flat, strict=True)) / prediction.size)


def cross_entropy(scores, targets, class_weights=None, *, label_smoothing=0.0, ignore_index=None, reduction="mean"):
    classes = scores.shape[-1]
    w = [1.0] * classes if class_weights is None else [float(v) for v in class_weights]
    loss = total = 0.0
    for at in np.ndindex(targets.shape):
        t = int(targets[at])
        if t in {-1, ignore_index}:
            continue
        norm = math.log(sum(math.exp(v) for v in scores[at]))
        loss -= (1 - label_smoothing) * w[t] * (scores[at][t] - norm)
        loss -= label_smoothing * sum(w[c] * (scores[at][c] - norm) for c in range(classes)) / classes
        total += w[t]
    return np.array(loss / total if reduction == "mean" else loss)
