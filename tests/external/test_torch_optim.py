"""Optimisers against `torch.optim`, twenty steps in float64."""

from __future__ import annotations

import numpy as np
import pytest

from refattn import optim
from refattn._core.random import Random

torch = pytest.importorskip("torch")

SGD = [
    {},
    {"weight_decay": 0.1},
    {"momentum": 0.9},
    {"momentum": 0.9, "dampening": 0.25, "weight_decay": 0.01},
    {"momentum": 0.5, "nesterov": True},
]
CASES = [
    *((optim.sgd, torch.optim.SGD, options) for options in SGD),
    (optim.adam, torch.optim.Adam, {}),
    (optim.adam, torch.optim.Adam, {"betas": (0.5, 0.75), "eps": 0.1}),
    (optim.adamw, torch.optim.AdamW, {}),
    (optim.adamw, torch.optim.AdamW, {"weight_decay": 0.5, "betas": (0.8, 0.9), "eps": 1e-3}),
]


@pytest.mark.parametrize(("ours", "theirs", "options"), CASES, ids=lambda x: getattr(x, "__name__", str(x)))
def test_twenty_steps_agree(ours, theirs, options):
    random = Random(0)
    parameters, state = {"weight": random.normal((3, 4)), "bias": random.normal(3)}, None
    tensors = {name: torch.tensor(x, requires_grad=True) for name, x in parameters.items()}
    optimizer = theirs(tensors.values(), lr=0.05, **options)
    for _ in range(20):
        gradients = {name: random.normal(x.shape) for name, x in parameters.items()}
        parameters, state = ours(parameters, gradients, state, learning_rate=0.05, **options)
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(gradients[name])
        optimizer.step()
    for name, tensor in tensors.items():
        np.testing.assert_allclose(parameters[name], tensor.detach().numpy(), rtol=1e-12, atol=1e-12)
