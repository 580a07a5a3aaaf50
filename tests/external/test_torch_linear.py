"""Linear attentions against recurrent loops in PyTorch: values, and gradients by its autograd, in float64."""

from __future__ import annotations

import pytest

from tests.external.composed import compare

torch = pytest.importorskip("torch")


def scan(query, key, value, state, scale, step):
    """One position after another: `step` makes the next state of the last one, from keys and values of one position."""
    group = query.shape[-3] // key.shape[-3]
    S = torch.zeros(*key.shape[:-2], key.shape[-1], value.shape[-1], dtype=key.dtype) if state is None else state
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    read = []
    for t in range(key.shape[-2]):
        S = step(S, t, key[..., t, :, None], value[..., t, None, :])
        read.append((query[..., t, None, :] * factor) @ S.repeat_interleave(group, dim=-3))
    nothing = query[..., :0, :1] * value.new_zeros(value.shape[-1])
    return torch.cat([nothing, *read], dim=-2), S


def gated_linear_attention(query, key, value, log_decay, state=None, *, scale=None):
    return scan(query, key, value, state, scale, lambda S, t, k, v: log_decay[..., t, :, None].exp() * S + k * v)


def delta_rule(query, key, value, beta, state=None, *, scale=None):
    def step(S, t, k, v):
        b = beta[..., t, None, None]
        return (torch.eye(k.shape[-2], dtype=k.dtype) - b * k @ k.mT) @ S + b * k @ v

    return scan(query, key, value, state, scale, step)


def gated_delta_rule(query, key, value, log_decay, beta, state=None, *, scale=None):
    def step(S, t, k, v):
        b, decay = beta[..., t, None, None], log_decay[..., t, None, None].exp()
        return decay * (torch.eye(k.shape[-2], dtype=k.dtype) - b * k @ k.mT) @ S + b * k @ v

    return scan(query, key, value, state, scale, step)


def features(x, feature_map):
    return torch.nn.functional.elu(x) + 1 if feature_map == "elu_plus_one" else torch.relu(x) if feature_map == "relu" else x


def linear_attention(
    query, key, value, state=None, normalizer=None, *, causal=False, feature_map="elu_plus_one", normalize=True, eps=0.0, scale=None
):
    # The quadratic form: a masked matrix of weights, and what the memory adds.
    q, k = features(query, feature_map) * (query.shape[-1] ** -0.5 if scale is None else scale), features(key, feature_map)
    group = q.shape[-3] // k.shape[-3]
    weights = q @ k.mT.repeat_interleave(group, dim=-3)
    if causal:
        weights = weights.tril()
    output, total = weights @ value.repeat_interleave(group, dim=-3), weights.sum(dim=-1, keepdim=True) + eps
    end, keys = k.mT @ value, k.sum(dim=-2)
    if state is not None:
        output, end = output + q @ state.repeat_interleave(group, dim=-3), end + state
    if normalizer is not None:
        total, keys = total + q @ normalizer.repeat_interleave(group, dim=-2)[..., None], keys + normalizer
    if normalize:
        nothing = total == 0
        output = torch.where(nothing, 0.0, output / torch.where(nothing, 1.0, total))
    return output, end, keys


EACH = (linear_attention, gated_linear_attention, delta_rule, gated_delta_rule)


@pytest.mark.parametrize("theirs", EACH, ids=lambda f: f.__name__)
def test_step_by_step(theirs):
    compare(theirs.__name__, theirs)


@pytest.mark.parametrize("theirs", EACH, ids=lambda f: f.__name__)
def test_chunk_by_chunk(theirs):
    compare(f"chunked_{theirs.__name__}", lambda chunk_size=64, **given: theirs(**given))
