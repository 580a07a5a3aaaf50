"""Each mechanism against an independent, index-by-index transcription of its equations."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import numpy as np
import pytest

from refattn import testing
from refattn._core.mechanism import outputs
from tests import definitions
from tests.enumeration import CALLS, MECHANISMS

DEFINITIONS = {}
for info in pkgutil.iter_modules(definitions.__path__, "tests.definitions."):
    module = importlib.import_module(info.name)
    for name, function in inspect.getmembers(module, inspect.isfunction):
        if function.__module__ == info.name and not name.startswith("_"):
            assert name not in DEFINITIONS, f"{name} is defined twice"
            DEFINITIONS[name] = function


def test_every_mechanism_has_a_definition():
    assert {m.__name__ for m in MECHANISMS} <= DEFINITIONS.keys()


@pytest.mark.parametrize("name", sorted(DEFINITIONS))
def test_definitions_do_not_use_the_package(name):
    source = inspect.getsource(inspect.getmodule(DEFINITIONS[name]))
    assert "refattn" not in source


TOLERANCE = 1e-12  # relative, and absolute where numbers are small: some thousand operations, each good to 1.1e-16


def both(m, sample):
    """The name of each output, ours, and that of the definition."""
    expected = outputs(DEFINITIONS[m.__name__](**sample.arguments))
    return list(zip(m.spec.output_names, outputs(m(**sample.arguments)), expected, strict=True))


def worst_error(m):
    """The largest ``|ours - definition| / (1 + |definition|)`` of all samples: what the tolerance bounds."""
    worst = 0.0
    for sample in testing.samples(m):
        for _, got, want in both(m, sample):
            counts = np.isfinite(want)  # infinities and NaN are equal or not, which the test says
            error = np.max(np.abs(got - want) / (1 + np.abs(want)), where=counts, initial=0.0)
            worst = np.maximum(worst, error)  # a NaN of ours stays
    return float(worst)


@pytest.mark.parametrize(("m", "sample"), CALLS)
def test_agrees_with_its_definition(m, sample):
    for name, got, want in both(m, sample):
        np.testing.assert_allclose(got, want, rtol=TOLERANCE, atol=TOLERANCE, err_msg=name)


def test_worst_error_is_measured():
    """Rounding of float64, and what a wrong definition has."""
    (softmax,) = [m for m in MECHANISMS if m.__name__ == "softmax"]
    assert 0 < worst_error(softmax) < TOLERANCE
    right = DEFINITIONS["softmax"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DEFINITIONS, "softmax", lambda x: right(x) + 0.5)
        assert worst_error(softmax) > 0.25
