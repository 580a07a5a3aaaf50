"""Attention by other scores against compositions in PyTorch: values, and gradients by its autograd, in float64."""

from __future__ import annotations

import pytest

from tests.external.composed import compare

torch = pytest.importorskip("torch")


def softmax(scores, mask=None):
    """Weights that are 0 where the mask is False, in whole rows too."""
    if mask is None:
        return torch.softmax(scores, dim=-1)
    return torch.softmax(scores.masked_fill(~mask, -1e300), dim=-1) * mask


def dot(query, key, value, *, mask=None):
    return softmax(query @ key.mT, mask) @ value


def general(query, key, value, w_score, *, mask=None):
    return softmax(torch.einsum("...qr,rc,...kc->...qk", query, w_score, key), mask) @ value


def perceptron(query, key, value, w_hidden, w_score, b_hidden=None, b_score=None, *, activation="relu", mask=None):
    queries = query[..., :, None, :].expand(*query.shape[:-1], key.shape[-2], -1)
    keys = key[..., None, :, :].expand(*query.shape[:-1], *key.shape[-2:])
    hidden = torch.nn.functional.linear(torch.cat([queries, keys], dim=-1), w_hidden, b_hidden)
    scores = torch.nn.functional.linear(getattr(torch, activation)(hidden), w_score[None], b_score)[..., 0]
    return softmax(scores, mask) @ value


def concat(*args, **kwargs):
    return perceptron(*args, **kwargs, activation="tanh")


def additive(w_query, w_key, **kwargs):
    return concat(w_hidden=torch.cat([w_query, w_key], dim=1), **kwargs)


def location(query, value, w_score, *, mask=None):
    return softmax(query @ w_score.mT, mask) @ value


def region(regions, state, w_regions, w_state, w_score, b_hidden=None, w_gate=None, b_gate=None, *, mask=None):
    hidden = torch.tanh(torch.nn.functional.linear(state, w_state, b_hidden)[..., None, :] + regions @ w_regions.mT)
    weights = softmax(hidden @ w_score, mask)
    context = (weights[..., None] * regions).sum(dim=-2)
    return (context if w_gate is None else context * torch.sigmoid(torch.nn.functional.linear(state, w_gate, b_gate))), weights


def question(regions, question, w_regions, w_question, w_score, b_hidden=None, *, mask=None):
    found, weights = region(regions, question, w_regions, w_question, w_score, b_hidden, mask=mask)
    return found + question, weights


def stacked(regions, question, hops, *, mask=None):
    weights = [regions.mT[..., :0, :]]
    for hop in hops:
        found, seen = region(regions, question, *hop, mask=mask)
        question = question + found
        weights.append(seen.unsqueeze(-2))
    return question, torch.cat(weights, dim=-2)


def penalty(weights):
    return ((1 - weights.sum(dim=-2)) ** 2).sum(dim=-1)


SCORES = {
    "additive_attention": additive,
    "concat_attention": concat,
    "perceptron_attention": perceptron,
    "dot_attention": dot,
    "general_attention": general,
    "location_attention": location,
    "region_attention": region,
    "doubly_stochastic_penalty": penalty,
    "question_attention": question,
    "stacked_attention": stacked,
}


@pytest.mark.parametrize(("name", "theirs"), SCORES.items(), ids=SCORES)
def test_scores(name, theirs):
    compare(name, theirs)
