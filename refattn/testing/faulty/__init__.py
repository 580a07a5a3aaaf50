"""Kernels that are wrong on purpose, and honest ones: what a test of a kernel is tested with.

One honest kernel a family computes in tiles, in low precision with wider accumulators, forward and backward, as a GPU does;
a fault is one of its methods, replaced. A test that accepts an honest kernel and a broken one alike cannot tell them apart.

>>> [fault.name for fault in faults("causal_conv1d", direction="backward")][:1]
['weight gradient of the last example']
"""

from refattn.testing.faulty.catalogue import MECHANISMS, Honest, faults, honest, kernel
from refattn.testing.faulty.kernel import Fault, Kernel

__all__ = ["MECHANISMS", "Fault", "Honest", "Kernel", "faults", "honest", "kernel"]
