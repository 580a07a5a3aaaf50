"""Kernels for NVIDIA GPUs, written in Python and compiled by numba-cuda, and all that it takes to call them.

The functions of `refattn_numba` take arrays on a device and return such arrays, of the caller's library, on its current stream, without
a copy to main memory. From a call to a launch: `faces` checks the arguments, `arrays` and `libraries` read where they lie, `attention`
or `convolving` makes of them the parameters of kernels, `configurations`, `hopper` and those of convolutions choose these, `cache` has them from a file or from the compiler, and `driver`
launches them.
"""

from refattn_numba.cuda.conv_explaining import explain_convolution
from refattn_numba.cuda.driver import CudaError
from refattn_numba.cuda.explaining import Explanation, explain, is_available

__all__ = ["CudaError", "Explanation", "explain", "explain_convolution", "is_available"]
