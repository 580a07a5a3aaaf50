"""Other libraries' weights, layouts and operators in the terms of this one; none of them is imported here.

`torch` renames the entries of a ``state_dict``, and those of its gradients alike. `onnx` maps operators.
"""
