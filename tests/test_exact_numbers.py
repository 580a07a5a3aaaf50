"""Expansions: their operations, functions and sums against mpmath and fractions, and their error bounds."""

from __future__ import annotations

import itertools
from fractions import Fraction

import mpmath
import numpy as np
import pytest

from refattn.exact.error_function import erf_and_complement
from refattn.exact.expansion import expansion
from refattn.exact.transforms import SLACK, distilled, two_product, two_sum

PRECISION = {"sin": 3000, "cos": 3000}
"""Binary, of the true values, if not 1200: x - pi k, for the largest x, needs 1024 + 1074 before the first digit."""


def spread(random, low, high, count):
    """Of both signs, with exponents from 2**low to 2**high."""
    return random.choice([-1.0, 1.0], count) * np.ldexp(random.uniform(1, 2, count), random.integers(low, high, count))


def arguments(name, random, count):
    """Random ones where the function has values, and the hard ones."""
    near_zero = spread(random, -300, 0, count)
    everywhere = spread(random, -1020, 1020, count)
    steps = np.log(2) / 64 * (random.integers(-400, 400, count) + 0.5)  # between two places of the table
    return {
        "exp": np.concatenate([random.uniform(-708, 709.7, count), near_zero, steps, [709.782712893384, -708.39, 1e-300, 5e-324]]),
        "expm1": np.concatenate([random.uniform(-60, 709.7, count), near_zero, steps, [0.00541, -0.00541, 1e-300]]),
        "log": np.concatenate([abs(everywhere), 1 + near_zero[np.abs(near_zero) < 0.1], np.linspace(0.6, 1.6, 99), [5e-324, 1.797e308]]),
        "log1p": np.concatenate([near_zero, abs(everywhere), [-0.9999999999999999, 2.0**-7, -(2.0**-7), 5e-324]]),
        "tanh": np.concatenate([near_zero, random.uniform(-20, 20, count), random.uniform(-400, 400, count)]),
        "sin": np.concatenate([near_zero, 100 * random.normal(size=count), spread(random, 20, 1020, 8), np.pi / 2 * np.arange(-9, 10)]),
        "cos": np.concatenate([near_zero, 100 * random.normal(size=count), spread(random, 20, 1020, 8), np.pi / 2 * np.arange(-9, 10)]),
        "sqrt": np.concatenate([abs(everywhere), [2.25, 5e-324, 1.797e308]]),
        "reciprocal": np.concatenate([spread(random, -900, 900, count), [3.0, 1.7e308]]),
        "cube": spread(random, -300, 300, count),
        "power": abs(spread(random, -100, 100, count)),
        "erf": np.concatenate([near_zero, random.uniform(-6, 6, count), [0.5, -0.5, 0.49999999999999994, 26.0]]),
        "erfc": np.concatenate([near_zero, random.uniform(-6, 26, count), [0.5, 0.49999999999999994, 10.05, 26.5]]),
    }[name]


OURS = {
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "tanh": np.tanh,
    "sin": np.sin,
    "cos": np.cos,
    "sqrt": np.sqrt,
    "reciprocal": lambda x: 1 / x,
    "cube": lambda x: x**3,
    "power": lambda x: x**-2.7,
    "erf": lambda x: erf_and_complement(x)[0],
    "erfc": lambda x: erf_and_complement(x)[1],
}
THEIRS = {
    **{name: getattr(mpmath, name) for name in ("exp", "expm1", "log", "log1p", "tanh", "sin", "cos", "sqrt", "erf", "erfc")},
    "reciprocal": lambda x: 1 / x,
    "cube": lambda x: x**3,
    "power": lambda x: x ** mpmath.mpf(-2.7),
}


def value(number, at):
    """The sum of the components."""
    return mpmath.fsum(mpmath.mpf(float(p[at])) for p in number.parts)


def worst_bits(name, x, components):
    """How many bits are right where fewest are, by the true error and by the bound; the bound must hold."""
    with np.errstate(all="ignore"):
        number = OURS[name](expansion(x, components)).number
    fewest = [np.inf, np.inf]
    with mpmath.workprec(PRECISION.get(name, 1200)):
        for i, given in enumerate(x):
            true = THEIRS[name](mpmath.mpf(float(given)))
            error, bound = abs(value(number, i) - true), mpmath.mpf(float(number.error[i]))
            assert error <= bound, (name, given)
            assert float(abs(number.head[i] - true)) <= np.spacing(abs(number.head[i])) * (0.5 + 2.0**-30)
            floor = mpmath.mpf(2) ** -1022  # what underflow may cost, beside which 100 bits cannot be asked for
            for k, off in enumerate((error, bound)):
                if off > floor:
                    fewest[k] = min(fewest[k], float(mpmath.log(abs(true) / off, 2)))
    return fewest


@pytest.mark.parametrize("components", [2, 3])
@pytest.mark.parametrize("name", OURS)
def test_functions(name, components):
    """Right to the last component but for some bits, which an argument of hundreds costs; and the bound is not much wider."""
    x = arguments(name, np.random.default_rng(7), 12)
    true, bound = worst_bits(name, x, components)
    assert bound > 53 * components - 14
    assert true >= bound  # as `worst_bits` asserts element by element


@pytest.mark.slow
@pytest.mark.parametrize("components", [2, 3, 4, 8])
@pytest.mark.parametrize("name", OURS)
def test_functions_everywhere(name, components):
    count = 1000 if components == 2 else 100
    x = arguments(name, np.random.default_rng(8), count)
    true, bound = worst_bits(name, x, components)
    print(f"{name}, {components} components: {len(x)} arguments, {true:.1f} bits right, {bound:.1f} bits bounded")
    assert bound > 53 * components - 14


SPECIAL = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 1e308, -1e308, 5e-324, -5e-324, 1e-310, 720.0, -760.0])


@pytest.mark.parametrize("name", [n for n in OURS if n not in {"erf", "erfc"}])
def test_special_values_are_those_of_numpy(name):
    with np.errstate(all="ignore"):
        ours = OURS[name](expansion(SPECIAL, 2)).number
        numpy = OURS[name](SPECIAL)
    np.testing.assert_allclose(ours.head, numpy, rtol=1e-15, atol=5e-324)  # NumPy's own error, but for infinities and NaN
    assert all((p[~np.isfinite(numpy)] == 0).all() for p in ours.parts[1:])


def test_special_values_of_two():
    a, b = (x.ravel() for x in np.meshgrid(SPECIAL, SPECIAL))
    for operation in (np.add, np.subtract, np.multiply, np.divide, np.maximum, np.minimum):
        with np.errstate(all="ignore"):
            ours, numpy = operation(expansion(a, 3), b), operation(a, b)
        np.testing.assert_array_equal(np.asarray(ours), numpy, operation.__name__)
    for comparison in (np.less, np.less_equal, np.greater, np.greater_equal, np.equal, np.not_equal):
        np.testing.assert_array_equal(comparison(expansion(a, 3), b), comparison(a, b), comparison.__name__)


def test_powers_are_those_of_numpy():
    x = np.delete(SPECIAL, 4)[:9]  # an expansion keeps no sign of 0
    for y in (0, 1, 2, -1, -3, 0.5, -0.5, 2.5, np.arange(9.0) - 4, np.array([0.5] * 9)):
        with np.errstate(all="ignore"):
            np.testing.assert_allclose(np.asarray(expansion(x, 2) ** y), x**y, rtol=1e-15)


def fraction(number, at=()):
    return sum((Fraction(float(p[at])) for p in number.parts), Fraction(0))


@pytest.mark.parametrize("components", [2, 3, 4, 8])
def test_operations_against_fractions(components):
    """Of numbers with all their components, of any signs and sizes, and of ones that cancel; the bound holds, and is tight."""
    random = np.random.default_rng(components)
    count = 40
    a, b = (
        sum(
            (expansion(spread(random, -8, 8, count) * 2.0 ** (-53 * i), components) for i in range(components)),
            expansion(np.zeros(count), components),
        )
        for _ in range(2)
    )
    b[: count // 4] = -a[: count // 4] * (1 + 2.0**-20)  # these cancel
    b[count // 4 : count // 2] = a[count // 4 : count // 2] * spread(random, -200, 200, count // 4)
    for operation, true in (
        (np.add, Fraction.__add__),
        (np.subtract, Fraction.__sub__),
        (np.multiply, Fraction.__mul__),
        (np.divide, Fraction.__truediv__),
    ):
        x, y = (expansion_without_error(n) for n in (a, b))
        number = operation(x, y).number
        for i in range(count):
            p, q = fraction(x.number, i), fraction(y.number, i)
            exact = true(p, q)
            size = abs(exact) if operation in {np.multiply, np.divide} else abs(p) + abs(q)
            assert abs(fraction(number, i) - exact) <= Fraction(float(number.error[i]))
            assert number.error[i] <= float(size) * 2.0 ** (8 - 53 * components)


def expansion_without_error(x):
    made = x.copy()
    made.error[...] = 0
    return made


def test_transformations_are_free_of_error():
    random = np.random.default_rng(3)
    a, b = spread(random, -60, 60, 500), spread(random, -60, 60, 500)
    for transformation, true in ((two_sum, Fraction.__add__), (two_product, Fraction.__mul__)):
        result, error = transformation(a, b)
        for x, y, r, e in zip(a, b, result, error, strict=True):
            assert Fraction(r) + Fraction(e) == true(Fraction(x), Fraction(y))


def test_products_of_the_largest_numbers_do_not_overflow():
    """Veltkamp's splitting would: it multiplies by 2**27 + 1."""
    p, e = two_product(np.array([1.5e308]), np.array([0.9]))
    assert Fraction(p[0]) + Fraction(e[0]) == Fraction(1.5e308) * Fraction(0.9)


@pytest.mark.parametrize("components", [2, 3, 5])
def test_components_are_rounded_from_what_follows(components):
    random = np.random.default_rng(5)
    terms = [spread(random, -100, 100, 300) for _ in range(7)]
    terms[3] = -terms[0]  # the largest may cancel
    parts, dropped = distilled(terms, components)
    for first, second in itertools.pairwise(parts):
        assert (first + second == first).all()
    for i in range(300):
        exact = sum((Fraction(t[i]) for t in terms), Fraction(0))
        assert abs(sum((Fraction(p[i]) for p in parts), Fraction(0)) - exact) <= Fraction(dropped[i] * SLACK)


@pytest.mark.parametrize("length", [0, 1, 2, 3, 7, 64, 1000])
def test_sums_that_cancel(length):
    """Terms whose sum is 2**-40 of the largest: 106 bits less 40 are enough; and 2**-80, of which the bound knows."""
    random = np.random.default_rng(length)
    for largest in (20, 60):
        x = spread(random, -20, largest, length)
        x = np.concatenate([x, -x[::-1], spread(random, -20, -19, 1)])
        made, exact = expansion(x, 2).sum(), sum(map(Fraction, x), Fraction(0))
        assert abs(fraction(made.number) - exact) <= Fraction(float(made.number.error))
        assert largest == 60 or float(made) == float(exact)


def test_order_of_sums_does_not_depend_on_memory():
    random = np.random.default_rng(1)
    x = spread(random, -30, 30, 3 * 5 * 7).reshape(3, 5, 7)
    transposed = np.ascontiguousarray(x.transpose(2, 0, 1)).transpose(1, 2, 0)
    backwards = np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1]
    for axis in (None, 0, 1, (0, 2)):
        sums = [expansion(a, 2).sum(axis=axis).number for a in (x, transposed, backwards)]
        for other in sums[1:]:
            assert all((p == q).all() for p, q in zip(sums[0].parts, other.parts, strict=True))


def test_products_of_matrices():
    random = np.random.default_rng(2)
    for a_shape, b_shape in (((3, 4), (4, 2)), ((2, 1, 3, 5), (4, 5, 2)), ((4,), (4, 3)), ((3, 4), (4,)), ((6,), (6,)), ((2, 0), (0, 3))):
        a, b = (
            spread(random, -20, 20, int(np.prod(a_shape))).reshape(a_shape),
            spread(random, -20, 20, int(np.prod(b_shape))).reshape(b_shape),
        )
        made = np.asarray(expansion(a, 3) @ b)
        exact = np.vectorize(Fraction, otypes=[object])
        true = (exact(a) @ exact(b)) if 0 not in a_shape else np.zeros((2, 3))
        assert np.shape(made) == np.shape(true)
        np.testing.assert_array_equal(made, np.asarray(true, float))


def test_blocks_of_long_products_add_up():
    x = np.ones((3, 100_000))
    assert np.asarray(expansion(x, 2) @ x.T).tolist() == [[1e5] * 3] * 3


@pytest.mark.parametrize("subscripts", ["...gtk,...tkv->...gtv", "bj,aj...->ab...", "ai,ij...->aj...", "ij,kj->ik", "ij,ij->i", "i,j->ij"])
def test_einsum(subscripts):
    random = np.random.default_rng(4)
    sizes = dict(zip("abgijktv", (2, 3, 2, 4, 3, 5, 3, 2), strict=True))
    names, _ = subscripts.split("->")
    arrays = []
    for name, lead in zip(names.split(","), ((2, 3), (3,)), strict=True):
        letters = [sizes[c] for c in name.replace("...", "")]
        shape = (*lead, *letters) if name.startswith("...") else (*letters, *lead) if name.endswith("...") else letters
        arrays.append(random.integers(-9, 10, tuple(shape)).astype(float))
    made = np.einsum(subscripts, expansion(arrays[0], 2), arrays[1])
    np.testing.assert_array_equal(np.asarray(made), np.einsum(subscripts, *arrays))
