"""Convolutions with attention against PyTorch in float64: values, and gradients by its autograd.

The compositions are written as the published code is: the relative logits by padding and reshaping, neighbourhoods by `unfold`
of a mirrored map, and positions as a map of their own that is unfolded too.
"""

from __future__ import annotations

import pytest

from tests.external.composed import compare

torch = pytest.importorskip("torch")
F = torch.nn.functional


def weighted_sum(a, b, alpha, beta):
    return torch.add(torch.mul(a, alpha), torch.mul(b, beta))


def rel_to_abs(x):
    """The trick of the paper: one zero after each row, and rows that are one shorter, so that each begins one further."""
    batch, length, _ = x.shape
    flat = F.pad(F.pad(x, (0, 1)).flatten(1), (0, length - 1))
    return flat.reshape(batch, length + 1, 2 * length - 1)[:, :length, length - 1 :]


def relative_logits_1d(query, table):
    scores = query @ table.T
    lead = scores.shape[:-2]
    return rel_to_abs(scores.reshape(-1, *scores.shape[-2:])).reshape(*lead, query.shape[-2], query.shape[-2])


def relative_logits_2d(query, row_table, column_table):
    height, width = query.shape[-3:-1]
    across = relative_logits_1d(query, column_table)[..., :, :, None, :].expand(*query.shape[:-1], height, width)
    down = relative_logits_1d(query.transpose(-2, -3), row_table)[..., None].transpose(-3, -4)
    return (across + down.expand(*query.shape[:-1], height, width)).flatten(-2).flatten(-3, -2)


def same_conv(x, weight, bias):
    """The odd zero after: PyTorch's own "same"."""
    return F.conv2d(x, weight, bias, padding="same")


def global_attention(x, w, heads):
    batch, _, height, width = x.shape

    def split(weight, bias):
        projected = F.conv2d(x, weight[:, :, None, None], bias)
        return projected.reshape(batch, heads, len(weight) // heads, height * width).transpose(2, 3)

    query, key, value = split(w.w_query, w.b_query), split(w.w_key, w.b_key), split(w.w_value, w.b_value)
    query = query * query.shape[-1] ** -0.5
    logits = query @ key.transpose(-1, -2)
    if w.row_table is not None:
        logits = logits + relative_logits_2d(query.reshape(batch, heads, height, width, -1), w.row_table, w.column_table)
    read = torch.softmax(logits, dim=-1) @ value
    return F.conv2d(read.transpose(2, 3).reshape(batch, -1, height, width), w.w_output[:, :, None, None], w.b_output)


def attention_augmented_conv2d(x, weights, num_heads):
    return torch.cat([same_conv(x, weights.w_conv, weights.b_conv), global_attention(x, weights, num_heads)], dim=1)


def conv_attention_sum(x, weights, alpha, beta, num_heads):
    return alpha * global_attention(x, weights, num_heads) + beta * same_conv(x, weights.w_conv, weights.b_conv)


def position(height, width):
    across = torch.linspace(-1.0, 1.0, width, dtype=torch.float64).repeat(height, 1)
    down = torch.linspace(-1.0, 1.0, height, dtype=torch.float64)[:, None].repeat(1, width)
    return torch.stack([across, down])[None]


def local_attention_2d(query, key, value, w_position=None, *, num_heads, kernel_size, stride=1, border="reflect"):
    batch, channels, height, width = query.shape
    features, reach = channels // num_heads, kernel_size // 2
    out = (-(-height // stride), -(-width // stride))

    def squares(x, mode=None):
        around = F.pad(x, (reach,) * 4, mode=mode or ("reflect" if border == "reflect" else "constant"))
        return F.unfold(around, kernel_size, stride=stride).reshape(len(x), -1, kernel_size**2, *out)

    def by_head(x):
        return x.reshape(batch * num_heads, -1, height, width)

    encoded = torch.zeros(1, features, height, width, dtype=torch.float64)
    if w_position is not None:
        encoded = F.conv2d(position(height, width), w_position[:, :, None, None])
    asked, own = (x[:, :, ::stride, ::stride][:, :, None] for x in (by_head(query) * features**-0.5, encoded))
    logits = (asked * (squares(by_head(key)) + own - squares(encoded))).sum(dim=1)
    if border == "masked":
        inside = squares(torch.ones(1, 1, height, width, dtype=torch.float64), "constant")[:, 0]
        logits = logits.masked_fill(inside == 0, -torch.inf)
    weights = torch.softmax(logits, dim=1)
    return (weights[:, None] * squares(by_head(value))).sum(dim=2).reshape(batch, -1, *out)


def acmix(x, weights, alpha, beta, *, num_heads, kernel_size=7, stride=1, border="reflect"):
    w = weights
    biases = zip((w.w_query, w.w_key, w.w_value), (w.b_query, w.b_key, w.b_value), strict=True)
    maps = [F.conv2d(x, weight[:, :, None, None], bias) for weight, bias in biases]
    attended = local_attention_2d(*maps, w.w_position, num_heads=num_heads, kernel_size=kernel_size, stride=stride, border=border)
    batch, channels, height, width = maps[0].shape
    tall, wide, features = *w.w_mix.shape[:2], channels // num_heads
    pieces = torch.cat([m.reshape(batch, num_heads, features, height * width) for m in maps], dim=1)
    mixed = F.conv2d(pieces, w.w_mix.flatten(0, 1)[:, :, None, None])
    mixed = mixed.permute(0, 2, 1, 3).reshape(batch, -1, height, width)
    shift = w.w_shift
    if shift is None:
        kernel = torch.zeros(tall * wide, tall, wide, dtype=torch.float64)
        for i in range(tall * wide):
            kernel[i, i // wide, i % wide] = 1.0
        shift = kernel.repeat(channels, 1, 1, 1)
    around = F.pad(mixed, ((wide - 1) // 2, wide // 2, (tall - 1) // 2, tall // 2))
    return alpha * attended + beta * F.conv2d(around, shift, w.b_shift, stride=stride, groups=features)


PEERS = (
    weighted_sum,
    relative_logits_1d,
    relative_logits_2d,
    attention_augmented_conv2d,
    conv_attention_sum,
    local_attention_2d,
    acmix,
)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # it copies the input
@pytest.mark.parametrize("theirs", PEERS, ids=lambda f: f.__name__)
def test_agrees_with_torch(theirs):
    compare(theirs.__name__, theirs)
