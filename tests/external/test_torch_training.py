"""The series model, trained here and by PyTorch: fifty losses in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from refattn._core.random import Random
from refattn.examples import series, training

pytest.importorskip("torch")

STEPS = 50


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_fifty_losses_agree(seed):
    random = Random(seed)
    weights = series.first_weights(random)
    x, labels = series.windows(random)
    batches = itertools.repeat((x, labels), STEPS)
    ours = [step.loss for step in training.descend(series.loss, weights, batches, series.LEARNING_RATE)]
    theirs = series.torch_losses(weights, x, labels, STEPS)
    assert len(theirs) == STEPS
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=0)
    assert ours[-1] < 0.1 * ours[0]
