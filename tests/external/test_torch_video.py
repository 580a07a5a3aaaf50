"""Attention in videos, and in heads without projections, against compositions in PyTorch: values, and gradients by its autograd."""

from __future__ import annotations

import pytest

from tests.external.composed import compare
from tests.external.test_torch_scores import region

torch = pytest.importorskip("torch")
functional = torch.nn.functional


def split(x, *, num_heads):
    return x.unflatten(-1, (num_heads, -1)).movedim(-2, -3)


def merge(x):
    return x.movedim(-3, -2).flatten(-2)


def heads_alone(query, key, value, *, num_heads, mask=None, causal=False, align=None, scale=None):
    pairs = (query.shape[-2], key.shape[-2])
    if causal:
        mask = torch.ones(pairs, dtype=torch.bool).tril(pairs[1] - pairs[0] if align == "lower_right" else 0)
    heads = (split(x, num_heads=num_heads) for x in (query, key, value))
    return merge(functional.scaled_dot_product_attention(*heads, attn_mask=mask, scale=scale).nan_to_num(0.0))


def attend(tokens, weights, norm, num_heads, eps):
    """What tokens, (sequences, length, model_dim), see in their sequence."""
    z = functional.layer_norm(tokens, tokens.shape[-1:], *norm, eps=eps)
    w = weights
    pairs = ((w.w_query, w.b_query), (w.w_key, w.b_key), (w.w_value, w.b_value))
    seen = heads_alone(*(functional.linear(z, *pair) for pair in pairs), num_heads=num_heads)
    return functional.linear(seen, w.w_output, w.b_output)


def joint(x, weights, *, num_heads, eps=1e-5, class_token=None):
    tokens = x.flatten(-3, -2)
    if class_token is None:
        return (tokens + attend(tokens, weights.attention, weights.norm, num_heads, eps)).reshape(x.shape)
    tokens = torch.cat([class_token.unsqueeze(-2), tokens], dim=-2)
    made = tokens + attend(tokens, weights.attention, weights.norm, num_heads, eps)
    return made[..., 1:, :].reshape(x.shape), made[..., 0, :]


def divided(x, weights, *, num_heads, eps=1e-5, class_token=None, class_in_time=False):
    """In the order of the authors' program: residuals of the patches, and the mean of the frames' residuals of the class token."""
    over_time = x.transpose(-3, -2)
    if class_in_time:
        copies = class_token[..., None, None, :].expand(*over_time.shape[:-2], 1, -1)
        seen = attend(torch.cat([copies, over_time], dim=-2), weights.time, weights.norm_time, num_heads, eps)[..., 1:, :]
    else:
        seen = attend(over_time, weights.time, weights.norm_time, num_heads, eps)
    if weights.w_time is not None:
        seen = functional.linear(seen, weights.w_time, weights.b_time)
    timed = x + seen.transpose(-3, -2)
    if class_token is None:
        return timed + attend(timed, weights.space, weights.norm_space, num_heads, eps)
    copies = class_token[..., None, None, :].expand(*timed.shape[:-2], 1, -1)
    seen = attend(torch.cat([copies, timed], dim=-2), weights.space, weights.norm_space, num_heads, eps)
    return timed + seen[..., 1:, :], class_token + seen[..., 0, :].mean(dim=-2)


def pooled(x, w_frames, w_score, w_state=None, b_hidden=None, state=None, *, mask=None):
    if state is None:
        state, w_state = x.new_zeros(*x.shape[:-2], 1), x.new_zeros(len(w_frames), 1)
    return region(x, state, w_frames, w_state, w_score, b_hidden, mask=mask)


def spatial_temporal(x, spatial, temporal, state=None, *, mask=None):
    asked = None if spatial.w_state is None else state[..., None, :].expand(*x.shape[:-2], -1)
    frames, places = pooled(x, *spatial, asked, mask=mask)
    whole = None if temporal.w_state is None else state
    output, weights = pooled(frames, *temporal, whole, mask=None if mask is None else mask.any(dim=-1))
    return output, places, weights


def frame_cnn(x, w_conv, w_frames, w_score, b_conv=None, b_hidden=None, *, mask=None):
    features = functional.conv2d(x.flatten(0, 1), w_conv, b_conv).relu().mean(dim=(2, 3)).unflatten(0, x.shape[:2])
    return pooled(features, w_frames, w_score, None, b_hidden, mask=mask)


VIDEO = {
    "split_heads": split,
    "merge_heads": merge,
    "multi_head_attention_without_projections": heads_alone,
    "joint_space_time_attention": joint,
    "joint_space_time_attention_with_class_token": joint,
    "divided_space_time_attention": divided,
    "divided_space_time_attention_with_class_token": divided,
    "temporal_attention": pooled,
    "spatial_temporal_attention": spatial_temporal,
    "frame_cnn_temporal_attention": frame_cnn,
}


@pytest.mark.parametrize(("name", "theirs"), VIDEO.items(), ids=VIDEO)
def test_video(name, theirs):
    compare(name, theirs)
