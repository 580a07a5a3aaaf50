"""Reference values to the last bit: mechanisms evaluated in sums of several float64, rounded once at the end.

`evaluate` and `vjp` take any mechanism and give what it states, forward and backward, within 0.51 units in the last place of
float64: in double-double first, and in more components where cancellation needs it, which a bound carried with every number
tells. They use nothing but operations that IEEE 754 fixes to the last bit, in an order that shapes alone decide, so that
every machine gives the same bits. `arithmetic` is the same as a context, with a number of components of one's choice.
"""

from refattn.exact.evaluation import arithmetic, evaluate, vjp

__all__ = ["arithmetic", "evaluate", "vjp"]
