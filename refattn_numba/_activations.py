"""What kernels for activations share, on processors and on devices: names, codes and coefficients."""

from __future__ import annotations

from typing import Literal, TypeAlias

Activation: TypeAlias = Literal["relu", "silu", "gelu"]

CODES: dict[Activation | None, int] = {None: 0, "relu": 1, "silu": 2, "gelu": 3}

DENSITY = 0.3989422804014327  # of the normal distribution at 0: 1 / sqrt(2 pi)

# (1 + 1.25 t) exp(t**2 / 2) Q(t), where Q is the upper tail of the normal distribution, as a polynomial of (t - K) / (t + K), which
# is between -1 and 1 for all t above 0; highest power first. It agrees at the Chebyshev points up to where Q is below the normal numbers:
# to 2.5e-8 in float32, to 6e-17 in float64. The form is that of Shepherd and Laframboise, Mathematics of Computation 36, 1981.
SINGLE_K, SINGLE = 3.5, (
    0.00019009241523066866, 8.982412064647394e-05, -0.0018254027218533725, 0.0007112903820152189, 0.01335205646870593,
    -0.042594826233228196, 0.06297094834500629, -0.030479646305236693, -0.07535584650256506, 0.5716051936789734,
)  # fmt: skip
DOUBLE_K, DOUBLE = 4.0, (
    3.450328425768589e-10, 5.790211812076155e-09, 1.3960531328710577e-08, -2.639005245496188e-08, -1.284499950310412e-07,
    1.659601335757012e-08, 7.023065698680039e-07, 4.5114511296454285e-07, -3.425291257416889e-06, -4.08083086501242e-06,
    1.810725446978696e-05, 2.540387384994793e-05, -0.00011697805246134346, -0.00010664891090405889, 0.0009154173733561731,
    -0.0005167323598474394, -0.006379863751129684, 0.024543145721883788, -0.04796349781197593, 0.05367730690131523,
    -0.013595270429278928, -0.07827991627104286, 0.5664638478118136,
)  # fmt: skip
