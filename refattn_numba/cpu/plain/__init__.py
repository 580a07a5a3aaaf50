"""The same attention in plain loops: for reading, and for what the vector kernels leave to it.

That is a scale for each pair of a query and a key, the gradient of a learned scale, masked rows that average all values, and
whatever is not finite where pairs are masked.
"""
