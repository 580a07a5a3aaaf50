"""The oracle: sample calls, gradients by differences, and the check of somebody's kernel."""

from refattn.testing.calls import cotangents, directional_errors, gradient_leaves, in_precision, numerical_gradients, samples

__all__ = ["cotangents", "directional_errors", "gradient_leaves", "in_precision", "numerical_gradients", "samples"]
