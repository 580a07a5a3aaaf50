"""The layers of a Transformer, sublayer by sublayer, from the definitions of their parts."""

import numpy as np

from tests.definitions.activation import gelu as _gelu
from tests.definitions.activation import relu as _relu
from tests.definitions.multi_head import multi_head_attention as _attention
from tests.definitions.normalization import layer_norm as _norm
from tests.definitions.primitives import dropout as _dropout
from tests.definitions.primitives import linear as _linear


def feed_forward(x, w_expand, w_reduce, b_expand=None, b_reduce=None, *, activation="relu", keep=None, dropout_rate=0.0):
    hidden = {"relu": _relu, "gelu": _gelu}[activation](_linear(x, w_expand, b_expand))
    return _linear(_dropout(hidden, keep=keep, rate=dropout_rate), w_reduce, b_reduce)


def _sublayer(x, function, scale, shift, norm, eps, keep, rate):
    y = np.zeros(x.shape)
    inside = function(_norm(x, scale, shift, eps=eps) if norm == "pre" else x)
    dropped = _dropout(inside, keep=keep, rate=rate)
    for at in np.ndindex(x.shape):
        y[at] = x[at] + dropped[at]
    return _norm(y, scale, shift, eps=eps) if norm == "post" else y


def _kept(keep, name):
    return None if keep is None else getattr(keep, name)


def _attending(w, num_heads, keep, rate, memory=None, **options):
    def attend(x):
        read = x if memory is None else memory
        return _attention(x, read, read, *w, num_heads=num_heads, keep=keep, dropout_rate=rate, **options)

    return attend


def transformer_encoder_layer(
    x, weights, *, num_heads, norm="post", activation="relu", mask=None, causal=False, eps=1e-5, keep=None, dropout_rate=0.0
):
    rate = dropout_rate
    attend = _attending(weights.self_attention, num_heads, _kept(keep, "weights"), rate, mask=mask, causal=causal)
    x = _sublayer(x, attend, *weights.norm_attention, norm, eps, _kept(keep, "attended"), rate)

    def transform(h):
        return feed_forward(h, *weights.feed_forward, activation=activation, keep=_kept(keep, "hidden"), dropout_rate=rate)

    return _sublayer(x, transform, *weights.norm_feed_forward, norm, eps, _kept(keep, "transformed"), rate)


def transformer_decoder_layer(
    x,
    memory,
    weights,
    *,
    num_heads,
    norm="post",
    activation="relu",
    mask=None,
    memory_mask=None,
    causal=True,
    eps=1e-5,
    keep=None,
    dropout_rate=0.0,
):
    rate = dropout_rate
    attend = _attending(weights.self_attention, num_heads, _kept(keep, "weights"), rate, mask=mask, causal=causal)
    cross = _attending(weights.cross_attention, num_heads, _kept(keep, "cross_weights"), rate, memory, mask=memory_mask)
    x = _sublayer(x, attend, *weights.norm_attention, norm, eps, _kept(keep, "attended"), rate)
    x = _sublayer(x, cross, *weights.norm_cross, norm, eps, _kept(keep, "crossed"), rate)

    def transform(h):
        return feed_forward(h, *weights.feed_forward, activation=activation, keep=_kept(keep, "hidden"), dropout_rate=rate)

    return _sublayer(x, transform, *weights.norm_feed_forward, norm, eps, _kept(keep, "transformed"), rate)


def transformer_encoder(x, layers, final_norm=None, *, eps=1e-5, keep=None, **options):
    for n, weights in enumerate(layers):
        x = transformer_encoder_layer(x, weights, eps=eps, keep=None if keep is None else keep[n], **options)
    return x if final_norm is None else _norm(x, *final_norm, eps=eps)


def transformer_decoder(x, memory, layers, final_norm=None, *, eps=1e-5, keep=None, **options):
    for n, weights in enumerate(layers):
        x = transformer_decoder_layer(x, memory, weights, eps=eps, keep=None if keep is None else keep[n], **options)
    return x if final_norm is None else _norm(x, *final_norm, eps=eps)


def transformer(
    source, target, weights, *, source_mask=None, target_mask=None, memory_mask=None, causal=True, keep=None, dropout_rate=0.0, **options
):
    encoder_keep, decoder_keep = _kept(keep, "encoder"), _kept(keep, "decoder")
    options["dropout_rate"] = dropout_rate
    memory = transformer_encoder(source, weights.encoder, weights.encoder_norm, mask=source_mask, keep=encoder_keep, **options)
    masks = {"mask": target_mask, "memory_mask": memory_mask, "causal": causal}
    return transformer_decoder(target, memory, weights.decoder, weights.decoder_norm, keep=decoder_keep, **masks, **options)
