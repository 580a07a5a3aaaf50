"""What each kernel computes of its parameters, in NumPy: what a launch does where the host side alone is tested.

Every array is a view of a buffer at an address, with steps, as the parameters say; one that leaves its buffer, or whose rows kernels
could not read, is an error.
"""

import ctypes

import numpy as np

from refattn_numba.cuda.arrays import ROW_BYTES
from refattn_numba.cuda.fragments import FLOAT8
from tests.cuda.standins import numpy_type

PAIR_AXES = ("batch", "head", "row", "key")
FAR = 1 << 30
ABSENT = {"mask": 0, "bias": 0, "keep": 0, "softcap": 0.0, "keep_scale": 1.0, "d_bias": 0}
"""What a kernel has that knows no options."""


class Memory:
    """Buffers, and views of them."""

    def __init__(self, buffers):
        self.ranges = [(b.ctypes.data, b.ctypes.data + b.size) for b in buffers if b.size]

    def view(self, address, shape, steps, dtype):
        kind = numpy_type(dtype)
        if 0 in shape:
            return np.empty(shape, kind)
        reach = [(size - 1) * step * kind.itemsize for size, step in zip(shape, steps, strict=True)]
        low, high = address + sum(min(r, 0) for r in reach), address + sum(max(r, 0) for r in reach) + kind.itemsize
        if not any(first <= low and high <= end for first, end in self.ranges):
            raise AssertionError(f"{address:#x} with {shape} numbers in steps of {steps} leaves its buffer")
        bytes_of = np.ctypeslib.as_array((ctypes.c_uint8 * (high - low)).from_address(low))
        first = np.ndarray((), kind, bytes_of, address - low)
        return np.lib.stride_tricks.as_strided(first, shape, [step * kind.itemsize for step in steps])

    def packed(self, address, shape, dtype):
        steps = [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
        return self.view(address, shape, steps, dtype)


class Call:
    """The arrays of a launch, for a face of attention."""

    def __init__(self, kernel, blocks, arguments, buffers):
        self.kernel, self.blocks, self.memory, self.dtype = kernel, blocks, Memory(buffers), kernel.config.element
        self.result, self.of_sinks = ("bfloat16", "float32") if self.dtype == FLOAT8 else (self.dtype, self.dtype)
        self.names = {name for name, _ in kernel.parameters}
        self.given = {**ABSENT, **arguments}

    def __getattr__(self, name):
        """A parameter that no method is named like."""
        return self.given[name]

    def rows(self, name, batch, heads, length, dim, dtype=None):
        """An operand, or what is written, whose rows kernels can read."""
        address, item = self.given[name], numpy_type(dtype or self.dtype).itemsize
        steps = [self.given[f"{name}_{axis}"] for axis in ("batch", "head", "row")]
        assert not address % ROW_BYTES, name
        assert not any(step * item % ROW_BYTES for step in steps), (name, steps)
        return self.memory.view(address, (batch, heads, length, dim), (*steps, 1), dtype or self.dtype)

    def pairs(self, name, batch, dtype):
        address = self.given[name]
        if not address:
            return None
        shape = (batch, self.heads, self.query_len, self.key_len)
        return self.memory.view(address, shape, [self.given[f"{name}_{axis}"] for axis in PAIR_AXES], dtype)

    def numbers(self, name, batch, heads=None):
        """Log-sum-exp, delta and the like."""
        shape = (batch, heads or self.heads, self.query_len)
        return self.memory.view(self.given[name], shape, (self.lse_batch, self.lse_head, 1), "float32")


def launch(kernel, blocks, arguments, buffers):
    """Do what the kernel would do."""
    call = Call(kernel, blocks, arguments, buffers)
    face = next(face for name, face in FACES.items() if name in call.names)
    face(call)


def _sum_bias(call):
    full = (call.batch, call.heads, call.query_len, call.key_len)
    keeps = [call.keeps_batch, call.keeps_head, call.keeps_row, call.keeps_key]
    own = tuple(size if keep else 1 for size, keep in zip(full, keeps, strict=True))
    assert call.blocks == -(-int(np.prod(own)) // call.kernel.tile)
    given = call.memory.packed(call.d_bias, full, "float32").astype(np.float64)
    axes = tuple(i for i, keep in enumerate(keeps) if not keep)
    call.memory.packed(call.total, own, call.dtype)[...] = given.sum(axis=axes, keepdims=True)


def _delta(call):
    batch = call.given["rows"] // max(call.heads * call.query_len, 1)
    assert call.blocks == -(-call.given["rows"] // call.kernel.tile)
    output, d_output = (call.rows(name, batch, call.heads, call.query_len, call.value_dim) for name in ("output", "d_output"))
    total = (output.astype(np.float64) * d_output.astype(np.float64)).sum(axis=-1)
    call.numbers("delta", batch)[...] = total - (call.numbers("d_lse", batch) if call.d_lse else 0)


def _sinks(call):
    heads = call.blocks
    sinks = call.memory.packed(call.sinks, (heads,), call.dtype).astype(np.float64)
    lse, delta = (call.numbers(name, call.batch, heads).astype(np.float64) for name in ("lse", "delta"))
    weights = np.where(np.isneginf(lse), 0, np.exp(sinks[:, None] - lse))
    call.memory.packed(call.d_sinks, (heads,), call.dtype)[...] = -(weights * delta).sum(axis=(0, 2))


def _spans(call, of_queries):
    """Batch, heads as launched, and the queries and keys of each sequence; blocks are those that a kernel needs."""
    heads = call.heads if of_queries else call.heads // call.group
    length = call.query_len if of_queries else call.key_len
    if call.sequences or call.cu_query:
        starts = [call.memory.packed(x, (call.sequences + 1,), "int32") for x in (call.cu_query, call.cu_key)]
        assert call.tiles == length // call.kernel.tile + call.sequences
        assert call.blocks == call.tiles * heads
        return 1, [tuple(slice(s[i], s[i + 1]) for s in starts) for i in range(call.sequences)]
    assert call.tiles == -(-length // call.kernel.tile)
    assert call.blocks % (call.tiles * heads) == 0
    return call.blocks // (call.tiles * heads), [(slice(0, call.query_len), slice(0, call.key_len))]


class Weights:
    """Scores of one span of sequences and what follows from them."""

    def __init__(self, call, batch, queries, keys):
        self.call, self.batch, self.span = call, batch, (queries, keys)
        kv_heads = call.heads // call.group
        q = call.rows("query", batch, call.heads, call.query_len, call.head_dim)[:, :, queries]
        k, v = (
            call.rows(name, batch, kv_heads, call.key_len, dim)[:, :, keys]
            for name, dim in (("key", call.head_dim), ("value", call.value_dim))
        )
        self.q, self.k, self.v = q.astype(np.float64), *(x.repeat(call.group, axis=1).astype(np.float64) for x in (k, v))
        m, n = queries.stop - queries.start, keys.stop - keys.start
        position = np.arange(n) - np.arange(m)[:, None] - call.align_right * (n - m)
        allowed = np.broadcast_to((position >= call.low) & (position <= call.high), (batch, call.heads, m, n)).copy()
        mask, keep = (call.pairs(name, batch, "bool") for name in ("mask", "keep"))
        bias = call.pairs("bias", batch, call.dtype)
        if mask is not None:
            allowed &= mask
        if bias is not None:
            allowed &= ~np.isneginf(bias.astype(np.float64))
        self.allowed = allowed
        with np.errstate(all="ignore"):
            raw = np.where(allowed, self.q @ self.k.swapaxes(-1, -2), 0) * call.scale
            self.capped = np.tanh(raw / call.softcap) if call.softcap else None
            scores = raw if self.capped is None else call.softcap * self.capped
            scores = np.where(allowed, scores if bias is None else scores + bias.astype(np.float64), -np.inf)
        self.scores = scores
        self.kept = 1.0 if keep is None else keep * np.float64(call.keep_scale)

    def finish(self, lse):
        with np.errstate(all="ignore"):
            self.weights = np.where(self.allowed, np.exp(self.scores - lse[..., None]), 0)


def _seen(weights, x):
    """``weights @ x``, where what has no weight has no part."""
    if np.isfinite(x).all():
        return weights @ x
    with np.errstate(all="ignore"):
        return np.where(weights[..., None] != 0, weights[..., None] * x[:, :, None], 0).sum(axis=-2)


def _forward(call):
    batch, spans = _spans(call, True)
    output = call.rows("output", batch, call.heads, call.query_len, call.value_dim, call.result)
    made = call.numbers("lse", batch)
    for queries, keys in spans:
        lse, found = _attended(call, batch, queries, keys)
        made[:, :, queries] = lse
        output[:, :, queries] = np.where(np.isneginf(lse)[..., None], call.empty, found)


def _attended(call, batch, queries, keys):
    """Log-sum-exp and output."""
    of = Weights(call, batch, queries, keys)
    scores = of.scores
    if call.sinks:
        sinks = call.memory.packed(call.sinks, (call.heads,), call.of_sinks).astype(np.float64)
        scores = np.concatenate([scores, np.broadcast_to(sinks[:, None, None], (*scores.shape[:3], 1))], axis=-1)
    lse = _log_sum_exp(scores)
    of.finish(lse)
    return lse, _seen(of.weights * of.kept, of.v)


def _log_sum_exp(scores):
    with np.errstate(all="ignore"):
        largest = scores.max(axis=-1, initial=-np.inf)
        shift = np.where(np.isneginf(largest), 0, largest)
        return shift + np.log(np.exp(scores - shift[..., None]).sum(axis=-1))


def _decode(call):
    """Of full caches: the first split has all."""
    assert not (call.table or call.lengths)
    call.given |= {"heads": call.kv_heads * call.group, "align_right": 1}
    assert call.blocks == call.pages * call.kv_heads * call.tiles * call.splits
    lse, found = _attended(call, call.pages, slice(0, call.query_len), slice(0, call.key_len))
    shape, dtype = (call.splits, lse.size, call.value_dim), "float32" if call.splits > 1 else call.dtype
    output = call.memory.view(call.output, shape, (call.split_rows * call.output_row, call.output_row, 1), dtype)
    made = call.memory.packed(call.lse, shape[:2], "float32")
    output[1:], made[1:] = 0, -np.inf
    made[0] = lse.reshape(-1)
    empty = 0.0 if call.splits > 1 else call.empty
    output[0] = np.where(np.isneginf(made[0])[:, None], empty, found.reshape(shape[1:]))


def _merge(call):
    assert call.blocks == -(-call.given["rows"] * -(-call.value_dim // 32) // call.kernel.tile)
    shape = (call.splits, call.given["rows"], call.value_dim)
    parts = call.memory.view(call.parts, shape, (call.given["rows"] * call.parts_row, call.parts_row, 1), "float32")
    of_parts = call.memory.packed(call.parts_lse, shape[:2], "float32").astype(np.float64)
    lse = _log_sum_exp(of_parts.T)
    call.memory.packed(call.lse, shape[1:2], "float32")[...] = lse
    with np.errstate(all="ignore"):
        total = (np.exp(of_parts - lse)[..., None] * parts).sum(axis=0)
    output = call.memory.view(call.output, shape[1:], (call.output_row, 1), call.dtype)
    output[...] = np.where(np.isneginf(lse)[:, None], call.empty, total)


def _backward(call, of_queries):
    batch, spans = _spans(call, of_queries)
    call.rows("d_output", batch, call.heads, call.query_len, call.value_dim)
    names = [("d_query", call.heads, call.query_len, call.head_dim)] if of_queries else []
    if not of_queries:
        kv_heads = call.heads // call.group
        names = [("d_key", kv_heads, call.key_len, call.head_dim), ("d_value", kv_heads, call.key_len, call.value_dim)]
    made = {name: call.rows(name, batch, *size) for name, *size in names}
    for queries, keys in spans:
        of = Weights(call, batch, queries, keys)
        of.finish(call.numbers("lse", batch)[:, :, queries].astype(np.float64))
        d = call.rows("d_output", batch, call.heads, call.query_len, call.value_dim)[:, :, queries].astype(np.float64)
        delta = call.numbers("delta", batch)[:, :, queries].astype(np.float64)
        with np.errstate(all="ignore"):
            d_weights = (d @ of.v.swapaxes(-1, -2)) * of.kept - delta[..., None]
            d_scores = np.where(of.weights != 0, of.weights * d_weights, 0)
        if of_queries and call.d_bias:
            shape = (batch, call.heads, call.query_len, call.key_len)
            call.memory.view(call.d_bias, shape, (call.d_bias_batch, call.d_bias_head, call.d_bias_row, 1), "float32")[...] = d_scores
        d_scores = d_scores * call.scale * (1 if of.capped is None else 1 - of.capped**2)
        if of_queries:
            made["d_query"][:, :, queries] = _seen(d_scores, of.k)
            continue
        for name, x in (
            ("d_key", _seen(d_scores.swapaxes(-1, -2), of.q)),
            ("d_value", _seen((of.weights * of.kept).swapaxes(-1, -2), d)),
        ):
            grouped = x.reshape(batch, call.heads // call.group, call.group, *x.shape[-2:]).sum(axis=2)
            made[name][:, :, keys] = grouped


def _by_columns(call):
    """Where they come to; the forward pass has the values themselves too."""
    batch = call.blocks // max(call.tiles * call.kv_heads, 1)
    call.rows("columns", batch, call.kv_heads, call.value_dim, call.tiles * call.kernel.tile)[...] = np.nan


FACES = {
    "columns": _by_columns,
    "total": _sum_bias,
    "table": _decode,
    "parts": _merge,
    "rows": _delta,
    "d_sinks": _sinks,
    "empty": _forward,
    "d_query": lambda call: _backward(call, not getattr(call.kernel.config, "of_keys", False)),
    "d_key": lambda call: _backward(call, False),
}
"""By a parameter that no other kernel has, but for those of compute capability 9.0 that make either cotangent."""
