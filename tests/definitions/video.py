"""Attention in videos, frame by frame and place by place, from the definitions of its parts."""

import numpy as np

from tests.definitions.activation import relu as _relu
from tests.definitions.convolution import conv2d as _conv2d
from tests.definitions.multi_head import multi_head_attention as _attention
from tests.definitions.normalization import layer_norm as _norm
from tests.definitions.primitives import linear as _linear
from tests.definitions.scores import region_attention as _regions


def _seen(tokens, weights, norm, num_heads, eps):
    """What each of the tokens, (length, model_dim), sees in all of them."""
    z = _norm(tokens, *norm, eps=eps)
    return _attention(z, z, z, *weights, num_heads=num_heads)


def _videos(x, class_token):
    """The index of each video, with its patches and its class token."""
    for at in np.ndindex(x.shape[:-3]):
        yield at, x[at], None if class_token is None else class_token[at]


def _joint(x, class_token, weights, num_heads, eps):
    y, token = np.zeros(x.shape), None if class_token is None else np.zeros(class_token.shape)
    for at, video, c in _videos(x, class_token):
        places = list(np.ndindex(video.shape[:-1]))
        tokens = [*([] if c is None else [c]), *(video[p] for p in places)]
        seen = _seen(np.stack(tokens), weights.attention, weights.norm, num_heads, eps)
        for p, s in zip(places, seen[len(tokens) - len(places) :], strict=True):
            y[(*at, *p)] = video[p] + s
        if c is not None:
            token[at] = c + seen[0]
    return y, token


def joint_space_time_attention(x, weights, *, num_heads, eps=1e-5):
    return _joint(x, None, weights, num_heads, eps)[0]


def joint_space_time_attention_with_class_token(x, class_token, weights, *, num_heads, eps=1e-5):
    return _joint(x, class_token, weights, num_heads, eps)


def _divided(x, class_token, weights, num_heads, class_in_time, eps):
    y, token = np.zeros(x.shape), None if class_token is None else np.zeros(class_token.shape)
    for at, video, c in _videos(x, class_token):
        frames, patches, _ = video.shape
        timed = np.zeros(video.shape)
        for p in range(patches):
            before = [c] if class_in_time else []
            seen = _seen(np.stack([*before, *video[:, p]]), weights.time, weights.norm_time, num_heads, eps)[len(before) :]
            if weights.w_time is not None:
                seen = _linear(seen, weights.w_time, weights.b_time)
            for t in range(frames):
                timed[t, p] = video[t, p] + seen[t]
        if c is not None:
            token[at] = c
        for t in range(frames):
            before = [] if c is None else [c]
            seen = _seen(np.stack([*before, *timed[t]]), weights.space, weights.norm_space, num_heads, eps)
            for p in range(patches):
                y[(*at, t, p)] = timed[t, p] + seen[len(before) + p]
            if c is not None:
                token[at] += seen[0] / frames
    return y, token


def divided_space_time_attention(x, weights, *, num_heads, eps=1e-5):
    return _divided(x, None, weights, num_heads, False, eps)[0]


def divided_space_time_attention_with_class_token(x, class_token, weights, *, num_heads, class_in_time=False, eps=1e-5):
    return _divided(x, class_token, weights, num_heads, class_in_time, eps)


def temporal_attention(x, w_frames, w_score, w_state=None, b_hidden=None, state=None, *, mask=None):
    if state is None:
        state, w_state = np.zeros((*x.shape[:-2], 1)), np.zeros((len(w_frames), 1))
    return _regions(x, state, w_frames, w_state, w_score, b_hidden, mask=mask)


def spatial_temporal_attention(x, spatial, temporal, state=None, *, mask=None):
    features, spatial_weights = np.zeros((*x.shape[:-2], x.shape[-1])), np.zeros(x.shape[:-1])
    there = np.broadcast_to(True if mask is None else mask, x.shape[:-1])
    for *at, t in np.ndindex(x.shape[:-2]):
        asked = None if spatial.w_state is None else state[tuple(at)]
        one = temporal_attention(x[(*at, t)], *spatial, asked, mask=there[(*at, t)])
        features[(*at, t)], spatial_weights[(*at, t)] = one
    frames = np.zeros(x.shape[:-2], bool)
    for at in np.ndindex(frames.shape):
        frames[at] = any(there[(*at, p)] for p in range(x.shape[-2]))
    output, weights = temporal_attention(features, *temporal, None if temporal.w_state is None else state, mask=frames)
    return output, spatial_weights, weights


def frame_cnn_temporal_attention(x, w_conv, w_frames, w_score, b_conv=None, b_hidden=None, *, mask=None):
    features = np.zeros((*x.shape[:2], len(w_conv)))
    for b, t in np.ndindex(x.shape[:2]):
        maps = _relu(_conv2d(x[b, t][None], w_conv, b_conv))[0]
        for c, values in enumerate(maps):
            features[b, t, c] = sum(float(v) for v in values.flat) / values.size
    return temporal_attention(features, w_frames, w_score, None, b_hidden, mask=mask)
