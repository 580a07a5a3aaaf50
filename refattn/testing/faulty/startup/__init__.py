"""A folder for PYTHONPATH: `sitecustomize` replaces a function as Python starts."""
