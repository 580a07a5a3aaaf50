"""Rows by number, one row at a time."""

import math

import numpy as np


def gather(x, indices):
    y = np.zeros((*indices.shape, *x.shape[1:]))
    for at in np.ndindex(indices.shape):
        y[at] = x[int(indices[at])]
    return y


def scatter_add(x, updates, indices):
    y = x.copy()
    for at in np.ndindex(indices.shape):
        y[int(indices[at])] += updates[at]
    return y


def embedding(weight, indices, *, padding_idx=None):
    return gather(weight, indices)


def padded_embedding(weight, indices, *, padding_idx=None):
    y = np.zeros((*indices.shape, weight.shape[1]))
    for at in np.ndindex(indices.shape):
        if indices[at] != padding_idx:
            y[at] = weight[int(indices[at])]
    return y


def segment_sum(x, segments, *, num_segments):
    y = np.zeros((num_segments, *x.shape[1:]))
    for i, s in enumerate(segments):
        y[int(s)] += x[i]
    return y


def segment_softmax(x, segments, *, num_segments):
    y = np.zeros(x.shape)
    for at in np.ndindex(x.shape):
        same = [float(x[(j, *at[1:])]) for j in range(len(x)) if segments[j] == segments[at[0]]]
        largest = max(same)
        y[at] = math.exp(float(x[at]) - largest) / sum(math.exp(v - largest) for v in same)
    return y
