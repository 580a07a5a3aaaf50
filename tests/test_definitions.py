"""Each mechanism against an independent, index-by-index transcription of its equations."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import numpy as np
import pytest

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


@pytest.mark.parametrize(("m", "sample"), CALLS)
def test_agrees_with_its_definition(m, sample):
    expected = outputs(DEFINITIONS[m.__name__](**sample.arguments))
    for name, got, want in zip(m.spec.output_names, outputs(m(**sample.arguments)), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12, err_msg=name)
