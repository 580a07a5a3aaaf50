"""Models that are trained with the gradients of this package, and with nothing else.

A model is a plain function of its input and of a record of weights, that returns its output and a pullback, like the mechanisms
that it is composed of. `training.descend` makes a loss smaller; `series` is the smallest model; `digits` has a convolutional
network with gates and a Transformer that read handwritten digits. ``refattn train`` trains them.
"""

from refattn.examples import digits, series, training

__all__ = ["digits", "series", "training"]
