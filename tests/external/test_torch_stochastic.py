"""Attention that takes one value, against PyTorch's distributions, its Gumbel softmax, and its autograd, in float64."""

from __future__ import annotations

import numpy as np
import pytest

import refattn
from refattn import testing
from refattn._core.random import Random

torch = pytest.importorskip("torch")

CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def tensors(arguments, names):
    return {n: torch.tensor(arguments[n], requires_grad=True) for n in names}


def same(ours, theirs, leaves, ds, pullback):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b.detach().numpy(), **CLOSE)
    wanted = torch.autograd.grad(theirs, list(leaves.values()), [torch.tensor(d) for d in ds])
    grads = pullback(*ds)
    for name, g in zip(leaves, wanted, strict=True):
        np.testing.assert_allclose(grads[name], g.numpy(), **CLOSE, err_msg=name)


def test_hard_attention():
    given = next(testing.samples(refattn.hard_attention)).arguments
    drawn, pullback = refattn.hard_attention.vjp(**given)
    leaves, chosen = tensors(given, ("query", "key", "value")), torch.tensor(given["chosen"])
    draw = torch.distributions.Categorical(logits=leaves["query"] @ leaves["key"].mT / 2)
    output = torch.gather(leaves["value"], -2, chosen[..., None].expand(*chosen.shape, 2))
    same(drawn, (output, draw.log_prob(chosen), draw.entropy()), leaves, testing.cotangents(drawn), pullback)


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_straight_through_attention(scale):
    given = next(testing.samples(refattn.straight_through_attention)).arguments
    y, pullback = refattn.straight_through_attention.vjp(**given, scale=scale)
    leaves = tensors(given, ("query", "key", "value"))
    soft = torch.softmax(scale * leaves["query"] @ leaves["key"].mT, dim=-1)
    one_hot = torch.nn.functional.one_hot(soft.argmax(dim=-1), 5).to(soft.dtype)
    made = (one_hot + soft - soft.detach()) @ leaves["value"]
    same((y,), (made,), leaves, testing.cotangents(y), pullback)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
@pytest.mark.parametrize(("name", "hard"), [("gumbel_softmax", False), ("straight_through_gumbel_softmax", True)])
def test_gumbel_softmax(name, hard, temperature):
    """PyTorch draws the noise inside; the same seed gives the same noise outside."""
    scores = Random(3).normal((2, 3, 5))
    torch.manual_seed(0)
    noise = -torch.empty(2, 3, 5, dtype=torch.float64).exponential_().log()
    y, pullback = getattr(refattn, name).vjp(scores, noise.numpy(), temperature=temperature)
    leaves = tensors({"scores": scores}, ("scores",))
    torch.manual_seed(0)
    made = torch.nn.functional.gumbel_softmax(leaves["scores"], tau=temperature, hard=hard)
    same((y,), (made,), leaves, testing.cotangents(y), pullback)


def test_gumbel_softmax_attention():
    given = dict(next(testing.samples(refattn.gumbel_softmax_attention)).arguments)
    y, pullback = refattn.gumbel_softmax_attention.vjp(**given, temperature=0.7, scale=np.array(0.8))
    leaves = tensors({**given, "scale": np.array(0.8)}, ("query", "key", "value", "scale"))
    scores = leaves["scale"] * leaves["query"] @ leaves["key"].mT + torch.tensor(given["noise"])
    made = torch.softmax(scores / 0.7, dim=-1) @ leaves["value"]
    same((y,), (made,), leaves, testing.cotangents(y), pullback)
