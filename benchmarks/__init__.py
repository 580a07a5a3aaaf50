"""Measurements: `side_by_side` sets this package beside others on the same machine, in the same minutes."""
