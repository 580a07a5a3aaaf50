"""bfloat16 in couples: each piece on small integers, whose products and sums are exact; then attention in every layout."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba")
pytest.importorskip("ml_dtypes")

import ml_dtypes
import numba

import refattn_numba
from refattn._core.random import Random
from refattn_numba.cpu.attention_stages import Block
from refattn_numba.cpu.call import aligned
from refattn_numba.cpu.couples import (
    couple_lines,
    coupled_rows,
    couples_of,
    halves_of,
    load_couples,
    load_row_couples,
    narrow_lines,
    store_couples,
    tiled_rows,
)
from refattn_numba.cpu.instructions import HOST
from refattn_numba.cpu.matrix_tiles import SIDE, TILED, add_tiles_product, leave_tiles, take_tiles, tiles_product
from refattn_numba.cpu.products import SPARE, add_product, product, scaled_product
from refattn_numba.cpu.simd import get, lanes_of, load, pointer_to, put, store

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
TILE = 64

pytestmark = pytest.mark.skipif(not HOST.has_bfloat16_dot, reason="this processor has no dot product of bfloat16")


def bits(x):
    """As compiled code takes them."""
    return np.ascontiguousarray(x).astype(BFLOAT16).view(np.uint16).ravel()


def in_couples(low, high):
    """What two arrays are as couples."""
    pairs = np.stack([low.astype(BFLOAT16).view(np.uint16), high.astype(BFLOAT16).view(np.uint16)], axis=-1)
    return pairs.view(np.uint32)[..., 0]


def integers(shape, seed=0):
    return np.random.default_rng(seed).integers(-8, 9, shape).astype(np.float32)


def test_registers_and_numbers_are_widened_and_rounded():
    @numba.njit
    def run(x, y, z):
        p, q, r = pointer_to(x.ctypes.data, x), pointer_to(y.ctypes.data, y), pointer_to(z.ctypes.data, z)
        n = lanes_of(p)
        for i in range(0, x.size, n):
            store(q, i, load(p, i))
        for i in range(z.size):
            put(r, i, get(p, i) / np.float32(3))
        return n

    x = bits(np.random.default_rng(0).standard_normal(64))
    y, z = np.empty_like(x), np.empty(7, np.uint16)
    assert run(x, y, z) == HOST.register_bytes // 4
    np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(z.view(BFLOAT16), (x[:7].view(BFLOAT16).astype(np.float32) / np.float32(3)).astype(BFLOAT16))


def test_two_registers_become_one_of_couples():
    @numba.njit
    def run(x, y, out):
        p, q = pointer_to(x.ctypes.data, x), pointer_to(y.ctypes.data, y)
        store_couples(pointer_to(out.ctypes.data, out), 0, load(p, 0), load(q, 0))

    x, y = np.random.default_rng(1).standard_normal((2, HOST.register_bytes // 4)).astype(np.float32)
    out = np.empty_like(x)
    run(x, y, out)
    np.testing.assert_array_equal(out.view(np.uint32), in_couples(x, y))


@pytest.mark.parametrize("width", [1, 16, 17, 40, 64])
@pytest.mark.parametrize(("lines", "depth"), [(1, 1), (5, 3), (16, 7), (13, 0)])
def test_products_of_any_size(width, lines, depth):
    """From rows of bfloat16, as scores are made, and from couples of rows, as values are summed."""

    @numba.njit
    def run(which, a, b, b_line, b_step, lines, depth, c, factors, width):
        a, b = pointer_to(a.ctypes.data, a), pointer_to(b.ctypes.data, b)
        c, factors = pointer_to(c.ctypes.data, c), pointer_to(factors.ctypes.data, factors)
        if which == 0:
            product(a, 64, b, b_line, b_step, lines, depth, c, 64, width, factors)
        elif which == 1:
            scaled_product(a, 64, b, b_line, b_step, lines, depth, c, 64, width, factors)
        else:
            add_product(a, 64, b, b_line, b_step, lines, depth, c, 64, width, factors)

    left, right = integers((lines, depth, 2)), integers((depth, 2, TILE), 1)
    a = aligned(depth * TILE + TILE, np.float32)
    a[: depth * TILE] = in_couples(right[:, 0], right[:, 1]).view(np.float32).ravel()
    factors = aligned(TILE, np.float32)
    factors[:] = integers(TILE, 2)
    exact = np.einsum("lki, kir -> lr", left, right)
    for b, line, step in ((bits(left), 2 * depth, 2), (in_couples(left[..., 0], left[..., 1]).T.ravel(), 1, lines)):
        for which in range(3):
            c = aligned(-(-lines // SPARE) * SPARE * TILE, np.float32)
            c[:] = before = integers(c.size, 3)
            run(which, a, b, line, step, lines, depth, c, factors, width)
            want = exact * factors if which == 1 else exact + (before.reshape(-1, TILE)[:lines] if which == 2 else 0)
            np.testing.assert_array_equal(c.reshape(-1, TILE)[:lines, :width], want[:, :width])


@pytest.mark.parametrize(("rows", "size"), [(64, 64), (64, 32), (17, 38), (16, 2), (1, 66)])
def test_tiles_of_couples_of_rows(rows, size):
    @numba.njit
    def run(x, step, rows, size, out):
        load_couples(pointer_to(x.ctypes.data, x), step, rows, size, pointer_to(out.ctypes.data, out))

    x, out = integers((rows, size + 4)), aligned(size // 2 * TILE, np.float32)
    out[:] = np.nan
    run(bits(x), size + 4, rows, size, out)
    want = np.zeros((size // 2, TILE), np.uint32)
    want[:, :rows] = in_couples(x[:, 0:size:2], x[:, 1:size:2]).T
    np.testing.assert_array_equal(out.view(np.uint32).reshape(-1, TILE), want)


@pytest.mark.parametrize(("rows", "size", "row"), [(4, 16, 16), (5, 16, 32), (1, 3, 16), (7, 35, 48)])
def test_couples_of_two_rows(rows, size, row):
    @numba.njit
    def run(x, step, rows, size, out, row):
        load_row_couples(pointer_to(x.ctypes.data, x), step, rows, size, pointer_to(out.ctypes.data, out), row)

    x, out = integers((rows, size + 3)), np.full((-(-rows // 2), row), np.nan, np.float32)
    run(bits(x), size + 3, rows, size, out.reshape(-1), row)
    even = np.zeros((2 * len(out), row))
    even[:rows, :size] = x[:, :size]
    np.testing.assert_array_equal(out.view(np.uint32), in_couples(even[::2], even[1::2]))


@pytest.mark.skipif(not HOST.has_tiles, reason="this processor has no matrix tiles")
@pytest.mark.parametrize("width", [16, 17, 40, 64])
@pytest.mark.parametrize(("lines", "depth"), [(16, 16), (48, 32), (64, 48), (32, 7)])
def test_products_of_matrix_tiles(width, lines, depth):
    """Rows of bfloat16 and blocks of couples, to a new sum and to one that was there; what is beyond the depth is zero."""

    @numba.njit
    def run(bits, a, b, b_line, b_next, lines, depth, c, width, add):
        take_tiles(bits)
        p, q, r = pointer_to(a.ctypes.data, a), pointer_to(b.ctypes.data, b), pointer_to(c.ctypes.data, c)
        if add:
            add_tiles_product(p, 64, q, b_line, b_next, lines, depth, r, 64, width)
        else:
            tiles_product(p, 64, q, b_line, b_next, lines, depth, r, 64, width)
        leave_tiles(bits)

    whole = -(-depth // SIDE) * SIDE
    left, right = integers((lines, whole, 2)), integers((whole, 2, TILE), 1)
    left[:, depth:] = right[depth:] = 0
    a = aligned(whole * TILE, np.float32)
    a[:] = in_couples(right[:, 0], right[:, 1]).view(np.float32).ravel()
    rows = bits(left)
    blocks = in_couples(left[..., 0], left[..., 1]).reshape(lines, -1, SIDE).swapaxes(0, 1).ravel().copy()
    exact = np.einsum("lki, kir -> lr", left, right)
    for b, line, following in ((rows, 2 * whole, TILED), (blocks, SIDE, lines * SIDE)):
        for add in (False, True):
            c = aligned(lines * TILE, np.float32)
            c[:] = before = integers(c.size, 3)
            run(rows, a, b, line, following, lines, depth, c, width, add)
            want = exact + add * before.reshape(-1, TILE)
            np.testing.assert_array_equal(c.reshape(-1, TILE)[:, :width], want[:, :width])


@pytest.mark.skipif(not HOST.has_tiles, reason="this processor has no matrix tiles")
@pytest.mark.parametrize("shape", [(2, 33, 32), (1, 64, 96), (2, 3, 7, 64), (0, 4, 32), (2, 0, 32), (2, 3, 0)])
def test_couples_in_blocks_of_rows(shape):
    *heads, rows, size = shape
    x, count, blocks = integers(shape).astype(BFLOAT16), int(np.prod(heads)), -(-rows // TILED)
    whole = np.zeros((count, blocks * TILED, size), BFLOAT16)
    whole[:, :rows] = x.reshape(count, rows, size)
    want = in_couples(whole[:, ::2], whole[:, 1::2]).reshape(count, blocks, SIDE, size).swapaxes(-1, -2)
    for given in (x, np.asfortranarray(x), np.repeat(x, 2, axis=-1)[..., ::2]):
        np.testing.assert_array_equal(tiled_rows(given.view(np.uint16)), want)


@pytest.mark.parametrize("shape", [(2, 4, 6), (1, 5, 6), (2, 3, 8, 18), (0, 4, 6), (2, 0, 6), (2, 3, 0)])
def test_couples_of_whole_arrays(shape):
    *heads, rows, size = shape
    x = integers(shape).astype(BFLOAT16)
    want = np.concatenate([x, np.zeros_like(x[..., : rows % 2, :])], axis=-2).reshape(np.prod(heads), rows + rows % 2, size)
    for given in (x, np.asfortranarray(x), np.repeat(x, 2, axis=-1)[..., ::2], x.swapaxes(0, -2).copy().swapaxes(0, -2)):
        np.testing.assert_array_equal(coupled_rows(given.view(np.uint16)), in_couples(want[:, ::2], want[:, 1::2]))


@pytest.mark.parametrize(("keys", "queries"), [(64, 64), (5, 17), (1, 1), (32, 48)])
def test_tiles_are_rounded(keys, queries):
    @numba.njit
    def run(x, own, keys, queries, lines, couples):
        block = Block(0, 0, 0, queries, 0, keys)
        p = pointer_to(own.ctypes.data, own)
        couple_lines(p, block, pointer_to(couples.ctypes.data, couples))
        for i in range(x.size):
            lines[i] = x[i]
        narrow_lines(pointer_to(lines.ctypes.data, lines), block)
        couple_lines(p, block, p)

    x = np.random.default_rng(4).standard_normal((keys, TILE)).astype(np.float32)
    whole = np.full((max(keys, TILED), TILE), np.nan, np.float32)  # room for what fills a matrix tile
    whole[:keys] = x
    lines, couples, own = aligned(x.size, np.float32), np.full_like(whole, np.nan), whole.copy()
    run(x.reshape(-1), own.reshape(-1), keys, queries, lines, couples.reshape(-1))
    even = np.zeros((-(-keys // TILED) * TILED if HOST.has_tiles else keys + keys % 2, TILE))
    even[:keys] = x
    want = in_couples(even[::2], even[1::2])[:, :queries]
    for made in (couples, own):
        np.testing.assert_array_equal(made.view(np.uint32)[: len(want), :queries], want)
    narrow = lines.view(BFLOAT16).reshape(keys, 2 * TILE)
    np.testing.assert_array_equal(narrow[:, :queries], x[:, :queries].astype(BFLOAT16))
    end = -(-queries // TILED) * TILED if HOST.has_tiles else queries + queries % 2
    assert (narrow[:, queries:end] == 0).all()


def test_pointers_keep_their_place():
    @numba.njit
    def run(x):
        p = halves_of(couples_of(pointer_to(x.ctypes.data, x)) + 1)
        return get(p, 0)

    assert run(bits([1, 2, 3, 4])) == 3


LAYOUTS = {
    "rows of an odd step": lambda x: np.concatenate([x, x[..., :1]], axis=-1)[..., :-1],
    "offset by one": lambda x: np.concatenate([x[..., :1], x], axis=-1)[..., 1:],
    "offset by two": lambda x: np.concatenate([x[..., :2], x], axis=-1)[..., 2:],
    "Fortran order": np.asfortranarray,
    "every second element": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "negative strides": lambda x: x[..., ::-1, ::-1].copy()[..., ::-1, ::-1],
    "heads and lengths exchanged": lambda x: np.ascontiguousarray(np.moveaxis(x, -2, -3)).swapaxes(-2, -3),
    "repeated by stride 0": lambda x: np.broadcast_to(x[:1], x.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_memory_layout(layout):
    random = Random(12)
    shapes = {"query": (2, 4, 131, 66), "key": (2, 2, 197, 66), "value": (2, 2, 197, 38)}
    given = {name: LAYOUTS[layout](random.normal(shape).astype(BFLOAT16)) for name, shape in shapes.items()}
    y, pullback = refattn_numba.scaled_dot_product_attention.vjp(**given)
    want, want_pullback = refattn_numba.scaled_dot_product_attention.vjp(**{name: np.array(x, order="C") for name, x in given.items()})
    np.testing.assert_array_equal(y, want)
    d = LAYOUTS[layout](Random(13).normal(y.shape).astype(BFLOAT16))
    grads, want_grads = pullback(d), want_pullback(np.array(d, order="C"))
    for name, g in grads.items():
        np.testing.assert_array_equal(g, want_grads[name], err_msg=name)
