"""docs/exactness.md: its text is that of its script, and what it promises holds."""

from __future__ import annotations

import pytest

from docs import exactness as document


def test_page_is_that_of_its_script():
    """All but what was measured, which differs from machine to machine: where this fails, run `python -m docs.exactness`."""
    text = document.PAGE.read_text("utf-8")
    assert document.page(document.measured_cells(text)) == text


def test_page_keeps_its_promises():
    cells = document.measured_cells(document.PAGE.read_text("utf-8"))
    plain = 3 * (len(document.MAGNITUDES) * len(document.LENGTHS) + len(document.KERNELS))
    assert all(float(share) < 1 for share in cells[2:plain:3])
    exact = cells[plain : plain + len(document.MAGNITUDES) + len(document.SPREADS)]
    assert all(0.4 < float(worst) <= 0.51 for worst in exact)


@pytest.mark.parametrize("magnitude", document.MAGNITUDES)
def test_attention_in_float64_keeps_its_promise(magnitude):
    *_, share = document.attention_error(magnitude, 48, 4)
    assert 0 < float(share) < 1


def test_convolution_in_float64_keeps_its_promise():
    *_, share = document.convolution_error(4, 3)
    assert 0 < float(share) < 1
