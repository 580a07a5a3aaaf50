"""The oracle's battery for each algorithm of convolution, in either layout of memory: for sizes so small "auto" takes others."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba")

import refattn
import refattn_numba
from refattn import testing

CASES = [
    ("conv2d", "direct"),
    ("conv_transpose2d", "direct"),
    ("conv2d", "winograd"),
    ("pointwise_conv2d", "pointwise"),
    ("depthwise_conv2d", "depthwise"),
    ("causal_conv1d", "causal"),
    ("conv2d_fft", "fft"),  # whose errors are in proportion to all numbers of an image
]


class Forced:
    """A fast convolution by one algorithm; what that does not take is unsupported."""

    def __init__(self, name, algorithm, *, channels_last):
        self.twin, self.channels_last = getattr(refattn_numba, name.removesuffix("_fft")), channels_last
        self.options = {} if algorithm == "causal" else {"algorithm": algorithm}

    def __call__(self, **given):
        return self.vjp(**given)[0]

    def vjp(self, x, **given):
        if self.channels_last:
            x = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
        try:
            return self.twin.vjp(x, **given, **self.options)
        except ValueError as error:
            if "algorithm is" not in str(error):
                raise
            raise testing.Unsupported(str(error)) from None


@pytest.mark.parametrize("channels_last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize(("name", "algorithm"), CASES)
def test_passes_the_check(name, algorithm, channels_last):
    report = testing.check(Forced(name, algorithm, channels_last=channels_last), getattr(refattn, name), dtype="float32")
    report.raise_if_wrong(explain=False)
    compared = {r.case for r in report.results if r.status == "pass"}
    assert len(compared) >= 5
