"""What every mechanism file is written with."""

from refattn._core.arrays import Array, Booleans, Grads, Integers, Pullback, like
from refattn._core.broadcasting import unbroadcast
from refattn._core.mechanism import BadCall, Mechanism, Sample, mechanism
from refattn._core.random import Random

__all__ = [
    "Array",
    "BadCall",
    "Booleans",
    "Grads",
    "Integers",
    "Mechanism",
    "Pullback",
    "Random",
    "Sample",
    "like",
    "mechanism",
    "unbroadcast",
]
