"""Other libraries' weights, layouts and operators in the terms of this one; none of them is imported here.

`torch` renames the entries of a ``state_dict``, and those of its gradients alike; `keras` does the same with weights by
their paths, and knows the way back. `onnx` maps operators.
"""
