"""The cases of the other suites on tiny inputs: shows in seconds that everything runs."""

from __future__ import annotations

from functools import partial

from benchmarks.cases import Case
from benchmarks.reference import attention_rows, conv2d

CASES = (
    Case("conv2d 3x3, 3 to 3 channels, 5x5, batch 2, forward and backward", partial(conv2d, 2, 3, 5)),
    Case("attention of 4 rows over 50 keys, head_dim 3, causal, forward", partial(attention_rows, 50, 4, 3)),
)
