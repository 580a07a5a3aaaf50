"""The grammar of the docstrings: what it reads, and that it refuses what it cannot read."""

from __future__ import annotations

import inspect
import math
import re
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refattn._core import Array, dims
from refattn._core.docstring import SECTION, Leaf, parse_docstring, record_facts, with_parameters_of
from refattn._core.options import parse_option
from refattn._core.shapes import ShapeError, Unifier
from tests.enumeration import EACH


def parsed(*parameters, returns=("array, shape (batch)",), names=("x",), notes="Text.", outputs=("output",), hints=None):
    """The facts of a docstring with these lines."""
    doc = "Do.\n\nParameters\n----------\n" + "".join(f"{p}\n    Text.\n" for p in parameters)
    doc += "\nReturns\n-------\n" + "".join(f"{r}\n    Text.\n" for r in returns) + f"\nNotes\n-----\n{notes}\n"
    return parse_docstring("f", doc, {n: (hints or {}).get(n, Array) for n in names}, outputs)


@pytest.mark.parametrize(
    ("stated", "leaf"),
    [
        ("array, shape (batch, channels)", Leaf("", ("batch", "channels"))),
        ("array, shape ()", Leaf("", ())),
        ("array, shape (..., length)", Leaf("", ("...", "length"))),
        ("array, shape (rows, *features)", Leaf("", ("rows", "*features"))),
        ("array or None, shape (batch), optional", Leaf("", ("batch",), absent=True)),
        ("bool array or None, broadcastable to (batch, length), optional", Leaf("bool", ("batch", "length"), exact=False, absent=True)),
        ("constant array, shape (batch)", Leaf("constant", ("batch",))),
        ("float or array, broadcastable to (...)", Leaf("float or", ("...",), exact=False)),
        ("int or real array, shape (batch)", Leaf("int or real", ("batch",))),
        ("int array, shape (*picked), indexing rows", Leaf("int", ("*picked",), indexing="rows")),
        ("int array, shape (*picked), indexing rows or -1", Leaf("int", ("*picked",), indexing="rows", lowest=-1)),
        ("array, shape (kv_heads * group, 2 * length - 1)", Leaf("", ("kv_heads * group", "2 * length - 1"))),
        ("int array, shape (batch + 1)", Leaf("int", ("batch + 1",))),
    ],
)
def test_arrays_are_read(stated, leaf):
    assert parsed(f"x : {stated}").arguments == {"x": leaf}


@pytest.mark.parametrize(
    "line",
    [
        "x : ndarray, shape (batch)",
        "x : ndarray of float",
        "x : array_like, shape (batch)",
        "x : arrays, shape (batch)",
        "x : array",
        "x : array (batch)",
        "x : array, (batch)",
        "x : array, shape batch",
        "x : array, shape (batch",
        "x : array, shape (batch))",
        "x : array, shape (batch,)",
        "x : array, shape (batch, , length)",
        "x : array, shape [batch]",
        "x : array, shape(batch)",
        "x : array,  shape (batch)",
        "x : array , shape (batch)",
        "x : array, shape (batch) ",
        "x : array, shape (batch).",
        "x : array, shape (batch), optional, optional",
        "x : array, shape (batch), default None",
        "x : array or none, shape (batch)",
        "x : None or array, shape (batch)",
        "x : int  array, shape (batch)",
        "x : integer array, shape (batch)",
        "x : Bool array, shape (batch)",
        "x : array, broadcast to (batch)",
        "x : array, broadcastable (batch)",
        "x : int array, shape (batch), indexing",
        "x : int array, shape (batch), indexing rows or -2",
        "x : array, shape (batch / 2)",
        "x : array, shape (batch - 1.5)",
        "x : array, shape (-batch)",
        "x : array, shape (max(batch, 1))",
        "x: array, shape (batch)",
        "x :array, shape (batch)",
        "x  : array, shape (batch)",
        " x : array, shape (batch)",
        "x, y : array, shape (batch)",
        "x : array, shape (no_such_word)",
        "x : array, shape (*no_such_words)",
        "x : array, shape (2 * no_such_word)",
        "x : int array, shape (batch), indexing no_such_word",
    ],
)
def test_a_line_that_is_not_in_the_grammar_is_refused(line):
    with pytest.raises(ValueError, match=r"^f"):
        parsed(line)


def test_parameters_are_documented_in_order_and_all():
    x, y = "x : array, shape (batch)", "y : bool"
    assert list(parsed(x, y, names=("x", "y")).options) == ["y"]
    for lines, names in [((x,), ("x", "y")), ((x, y), ("x",)), ((y, x), ("x", "y")), ((x, x, y), ("x", "y")), ((), ("x",))]:
        with pytest.raises(ValueError, match="the docstring states"):
            parsed(*lines, names=names)


@pytest.mark.parametrize("returns", [(), ("array, shape (batch)", "lse : array, shape (batch)"), ("y : array, shape (batch)",)])
def test_outputs_are_documented_by_name(returns):
    with pytest.raises(ValueError, match="the docstring returns"):
        parsed("x : array, shape (batch)", returns=returns)


@pytest.mark.parametrize("line", ["ndarray, shape (batch)", "array of shape (batch)", "array, shape (no_such_word)"])
def test_outputs_are_held_to_the_grammar(line):
    with pytest.raises(ValueError, match=r"^f"):
        parsed("x : array, shape (batch)", returns=(line,))


def test_several_outputs():
    facts = parsed("x : array, shape (batch)", returns=("y : array, shape (batch)", "z : array, shape ()"), outputs=("y", "z"))
    assert list(facts.outputs) == ["y", "z"]


def test_summary_equations_and_references_are_read():
    notes = ".. math::\n\n    y = x,\n    \\quad z = 1\n\nText.\n\n.. math::\n\n    \\bar x = 0\n\nReferences\n----------\n.. [1] One,\n   two.\n.. [2] Three."
    facts = parsed("x : array, shape (batch)", notes=notes)
    assert facts.summary == "Do."
    assert facts.equation == "y = x, \\quad z = 1\n\\bar x = 0"
    assert facts.references == ("One, two.", "Three.")


class Part(NamedTuple):
    """A record.

    Attributes
    ----------
    weight : array, shape (out_features, in_features)
        Text.
    bias : array or None, shape (out_features), optional
        Text.
    """

    weight: Array
    bias: Array | None = None


class Whole(NamedTuple):
    """A record of records.

    Attributes
    ----------
    first : Part
        Text.
    rest : tuple of Part
        Text.
    """

    first: Part
    rest: tuple[Part, ...]


class Misnamed(NamedTuple):
    """A record whose attributes are not its fields.

    Attributes
    ----------
    weights : array, shape (out_features)
        Text.
    """

    weight: Array


class Undocumented(NamedTuple):
    """A record."""

    weight: Array


class Misspelt(NamedTuple):
    """A record.

    Attributes
    ----------
    weight : array, shape (out_fetaures)
        Text.
    """

    weight: Array


def test_records_state_their_fields_as_attributes():
    assert record_facts(Part) == {"weight": Leaf("", ("out_features", "in_features")), "bias": Leaf("", ("out_features",), absent=True)}
    assert record_facts(Whole) == {"first": Part, "rest": (Part,)}
    facts = parsed("x : Whole", hints={"x": Whole})
    given = {"x": Whole(Part(np.zeros((2, 3)), np.zeros(2)), (Part(np.zeros((1, 2))),))}
    assert [path for path, _, _ in facts.leaves(given)] == ["x.first.weight", "x.first.bias", "x.rest.0.weight"]


@pytest.mark.parametrize("record", [Misnamed, Undocumented, Misspelt])
def test_records_with_other_attributes_are_refused(record):
    with pytest.raises(ValueError, match=r"the fields are|are neither in the glossary nor options"):
        parsed("x : record", hints={"x": record})


def test_parameters_are_taken_from_another_docstring():
    parameters = "Parameters\n----------\nx : bool\n    Text.\n\n"
    own, other = "Do.\n\nReturns\n-------\narray, shape ()", f"Other.\n\n{parameters}Returns\n-------\nbool\n    Text."
    assert with_parameters_of(own, other) == f"Do.\n\n{parameters}Returns\n-------\narray, shape ()"
    assert with_parameters_of(other, own) == other


# Sizes


def sizes(notes, **shapes):
    """The sizes of a call of arrays x (height) and y (out_height) with an option `stride`."""
    facts = parsed(
        "x : array, shape (height)", "y : array, shape (out_height)", "stride : positive int", names=("x", "y", "stride"), notes=notes
    )
    arrays = {n: np.zeros(s) for n, s in shapes.items() if n != "stride"}
    return Unifier("f", facts.leaves(arrays), {"stride": shapes["stride"]}, facts.relations).run()


def test_derived_sizes():
    notes = "Sizes: ``out_height = (height - 1) // stride + 1``, ``height >= 1``,\n``height >= stride``."
    assert sizes(notes, x=5, y=3, stride=2)["out_height"] == 3
    with pytest.raises(ShapeError, match="out_height is 3 in the options, but 2 in y"):
        sizes(notes, x=5, y=2, stride=2)
    with pytest.raises(ShapeError, match="height is 0, but must be at least 1"):
        sizes(notes, x=0, y=0, stride=2)
    with pytest.raises(ShapeError, match="height is 1, but must be at least stride"):
        sizes(notes, x=1, y=1, stride=2)


@pytest.mark.parametrize(
    "notes",
    [
        "Sizes: height >= 1.",
        "Sizes: ``height > 1``.",
        "Sizes: ``height >= 1``, ``height < 3``.",
        "Sizes: ``height == 1``.",
        "Sizes: ``out_height * stride = height``.",
        "Sizes: ``height >= no_such_word``.",
        "Sizes: ``out_height = height / 2``.",
    ],
)
def test_sizes_that_cannot_be_read_are_refused(notes):
    with pytest.raises(ValueError, match=r"cannot read|is not a dimension|neither in the glossary"):
        sizes(notes, x=4, y=2, stride=2)


# Arithmetic


WORDS = ("a", "b", "c")
EXPRESSIONS = st.recursive(
    st.sampled_from(WORDS) | st.integers(0, 9).map(str),
    lambda inner: st.tuples(inner, st.sampled_from(["+", "-", "*", "//"]), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
    max_leaves=6,
)


@given(EXPRESSIONS, st.tuples(*[st.integers(1, 9)] * 3))
def test_value_is_python_arithmetic(text, numbers):
    known = dict(zip(WORDS, numbers, strict=True))
    try:
        expected = eval(text, {}, known)
    except ZeroDivisionError:
        with pytest.raises(ZeroDivisionError):
            dims.value(text, known)
    else:
        assert dims.value(text, known) == expected


@given(EXPRESSIONS, st.tuples(*[st.integers(1, 9)] * 3), st.sampled_from(WORDS))
def test_what_is_solved_gives_back_the_size(text, numbers, unknown):
    known = dict(zip(WORDS, numbers, strict=True))
    if unknown not in dims.names(text):
        return
    try:
        size = dims.value(text, known)
        solved = dims.solve(text, size, {k: v for k, v in known.items() if k != unknown})
    except ZeroDivisionError:
        return
    if solved is not None:
        word, found = solved
        assert word == unknown
        assert dims.value(text, {**known, unknown: found}) == size
    else:  # only a quotient, a product with 0, a repeated word or a number below 0 cannot be told
        assert "//" in text or text.count(unknown) > 1 or "*" in text


@pytest.mark.parametrize(
    ("text", "size", "known", "solved"),
    [
        ("a", 3, {}, ("a", 3)),
        ("kv_heads * group", 6, {"kv_heads": 2}, ("group", 3)),
        ("kv_heads * group", 6, {"group": 3}, ("kv_heads", 2)),
        ("kv_heads * group", 7, {"kv_heads": 2}, None),
        ("kv_heads * group", 0, {"kv_heads": 0}, None),
        ("2 * a - 1", 7, {}, ("a", 4)),
        ("2 * a - 1", 6, {}, None),
        ("5 - a", 3, {}, ("a", 2)),
        ("a - 5", 3, {}, ("a", 8)),
        ("a + 5", 3, {}, None),
        ("a // 2", 3, {}, None),
        ("a ** 2", 9, {}, None),
        ("a * a", 9, {}, None),
        ("a + a", 4, {}, None),
        ("2 * (a + b) * c", 24, {"a": 1, "c": 3}, ("b", 3)),
    ],
)
def test_solve(text, size, known, solved):
    assert dims.solve(text, size, known) == solved


def test_a_power_of_an_option_is_a_dimension():
    assert dims.value("(2 * window_size - 1) ** 2", {"window_size": 4}) == 49


@pytest.mark.parametrize("text", ["a b", "a.b", "f(a)", "a and b", "1.5", "'a'", "True", "a @ b", "-a", "[a]", "a if b else c", ""])
def test_other_expressions_are_no_dimensions(text):
    with pytest.raises(ValueError, match="is not a dimension"):
        dims.names(text)


# Options


def accepted(text, *values):
    option = parse_option("f, x", text)
    return [option.accepts(v) for v in values]


@pytest.mark.parametrize(
    ("text", "right", "wrong"),
    [
        ("None", [None], [0, False, ""]),
        ("bool", [True, np.False_], [0, 1.0, None, "True"]),
        ("int", [0, -3, np.int32(7)], [True, 1.0, "1", None]),
        ("positive int", [1, np.int64(3)], [0, -1, True, 1.0]),
        ("non-negative int", [0, 5], [-1, False]),
        ("float", [0.5, 1, -3, math.inf, np.float32(1)], [math.nan, True, "1", None, 1j]),
        ("positive float", [0.5, 2], [0.0, -1.0, math.inf, math.nan]),
        ("non-negative float", [0.0, 2], [-1e-9, math.inf]),
        ("probability", [0, 0.0, 0.999], [1.0, -0.1, math.nan]),
        ('{"zero", "nan"}', ["zero", "nan"], ["one", None, 0, ("zero",)]),
        ("positive int or None", [1, None], [0, "None"]),
        ("tuple of int", [(), (1, 2), [3]], [1, (1.0,), ("a",), "ab"]),
        ('(positive int, {"a", "b"} or None)', [(1, "a"), [2, None]], [(1,), (1, "c"), (0, "a"), (1, "a", 2)]),
        ("positive int or (int, int) or None", [1, (0, -1), None], [0, (1,), (1, 2, 3)]),
        ("(non-negative int or None, non-negative int or None) or None", [None, (None, None), (1, None)], [(-1, None), 3]),
        ("tuple of (int, int)", [((1, 2), (3, 4))], [((1, 2), 3)]),
    ],
)
def test_options_accept_what_they_state(text, right, wrong):
    assert accepted(text, *right) == [True] * len(right)
    assert accepted(text, *wrong) == [False] * len(wrong)


@pytest.mark.parametrize(
    "text",
    ["string", "str", "integer", "boolean", "int, None", "int | None", "positive", "int or", "", '{"a"', "{1, 2}", '{"a": 1}', "{}", "(int", "()",
     "tuple of", "tuple of str", "list of int", "a number", "int  or None", "Int", "none", "callable", "tuple of int or"],
)  # fmt: skip
def test_options_outside_the_grammar_are_refused(text):
    with pytest.raises(ValueError, match=r"^f, x: cannot read"):
        parse_option("f, x", text)


@pytest.mark.parametrize(
    ("text", "x", "error", "message"),
    [
        ("positive int", 0, ValueError, "x is 0, but must be positive int"),
        ("positive int", "1", TypeError, "x is '1', but must be positive int"),
        ("positive int", True, TypeError, "x is True, but must be positive int"),
        ("positive int", [0], TypeError, "x is a list, but must be positive int"),
        ('{"a", "b"}', "c", ValueError, 'x is \'c\', but must be {"a", "b"}'),
        ('{"a", "b"}', 1, TypeError, "x is 1, but must be"),
        ("bool", 1, TypeError, "x is 1, but must be bool"),
        ("(int, int)", (1, 2, 3), ValueError, r"x is \(1, 2, 3\), but must be"),
        ("float", math.nan, ValueError, "x is nan, but must be float"),
        ("int", object(), TypeError, "x is a object, but must be int"),
    ],
)
def test_a_wrong_option_names_itself_and_its_value(text, x, error, message):
    with pytest.raises(error, match=message):
        parse_option("f, x", text).check("x", x)


# What holds for the docstrings that stand


@pytest.mark.parametrize("m", EACH)
def test_defaults_are_what_the_docstring_states(m):
    section = dict(zip(*[iter(SECTION.split(inspect.cleandoc(m.__doc__))[1:])] * 2, strict=True))["Parameters"]
    optional = {name for name, text in re.findall(r"^(\w+) : (.*)$", section, re.MULTILINE) if text.endswith(", optional")}
    assert optional == set(m.spec.defaults)
    for name, default in m.spec.defaults.items():
        if name in m.spec.facts.options:
            assert m.spec.facts.options[name].accepts(default)
        elif isinstance(fact := m.spec.facts.arguments[name], Leaf):
            assert fact.absent if default is None else fact.kind == "float or"


@pytest.mark.parametrize("m", EACH)
def test_no_section_is_misspelt(m):
    sections = [s.strip() for s in SECTION.split(inspect.cleandoc(m.__doc__))[1::2]]
    assert set(sections) <= {"Parameters", "Returns", "Notes", "References", "Examples", "See Also", "Raises"}
    assert len(set(sections)) == len(sections)
