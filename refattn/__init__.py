"""The reference for attention and convolution kernels: forward and backward, in NumPy, one file a mechanism.

Every function has a ``.vjp`` that returns the output together with its pullback::

    output, pullback = refattn.scaled_dot_product_attention.vjp(query, key, value)
    grads = pullback(d_output)  # {"query": ..., "key": ..., "value": ...}

The public names and their types are listed in ``__init__.pyi``; they are imported on first use.
(PYTEST_DONT_REWRITE: pytest finds its plugin in this package, which may have been imported before.)
"""

from refattn._lazy import lazy_exports

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_exports(__name__)
