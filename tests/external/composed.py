"""Mechanisms against compositions of PyTorch's operations."""

from __future__ import annotations

import numpy as np

import refattn
from refattn import testing
from refattn._core import tree
from refattn._core.mechanism import outputs

CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def compare(name, theirs):
    """Every sample of a mechanism against the same call of `theirs`, which takes and returns tensors, in records where ours has records."""
    import torch  # the tests that call this are skipped without it

    mechanism = getattr(refattn, name)
    for sample in testing.samples(mechanism):
        if sample.arguments.get("masked_rows", "zero") != "zero":
            continue
        given, leaves = dict(sample.arguments), {}
        for path, x in tree.leaves(sample.arguments):  # records are walked too
            if isinstance(x, np.ndarray):
                tensor = torch.tensor(x, requires_grad=x.dtype == np.float64)
                given = tree.replace(given, path, tensor)
                leaves |= {path: tensor} if tensor.requires_grad else {}
        made = outputs(theirs(**given))
        y, pullback = mechanism.vjp(**sample.arguments)
        ds = testing.cotangents(y)
        for a, b in zip(outputs(y), made, strict=True):
            np.testing.assert_allclose(a, b.detach().numpy(), **CLOSE, err_msg=sample.name)
        wanted = torch.autograd.grad(made, list(leaves.values()), [torch.tensor(d) for d in ds], allow_unused=True)
        grads = testing.gradient_leaves(pullback(*ds))
        for n, g in zip(leaves, wanted, strict=True):
            np.testing.assert_allclose(
                grads[n], np.zeros_like(grads[n]) if g is None else g.numpy(), **CLOSE, err_msg=f"{sample.name}, {n}"
            )
