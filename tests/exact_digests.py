"""Print the SHA-256 of what `refattn.exact` makes of samples: run by tests on processors made to look like others.

Arguments: how many samples of each mechanism, then names of mechanisms (none for all).
"""

from __future__ import annotations

import hashlib
import json
import sys

import numpy as np

import refattn
from refattn._core.mechanism import outputs
from refattn.testing import cotangents, gradient_leaves, samples


def digest(arrays):
    """Of the bytes in little-endian order, and the shapes; all NaN are one."""
    total = hashlib.sha256()
    for x in arrays:
        given = np.where(np.isnan(x), np.nan, x) if x.dtype.kind == "f" else x
        total.update(repr(x.shape).encode())
        total.update(np.ascontiguousarray(given, dtype=given.dtype.newbyteorder("<")).tobytes())
    return total.hexdigest()


def results(mechanism, sample):
    """Outputs and gradients, in the order of their names."""
    y, pullback = refattn.exact.vjp(mechanism, **sample.arguments)
    grads = gradient_leaves(pullback(*cotangents(y)))
    return [*(np.asarray(x) for x in outputs(y)), *(grads[name] for name in sorted(grads))]


def digests(names, count):
    """By mechanism and sample."""
    chosen = [getattr(refattn, name) for name in names] or refattn.mechanisms()
    return {f"{m.__name__}: {s.name}": digest(results(m, s)) for m in chosen for s in list(samples(m))[:count]}


if __name__ == "__main__":
    print(json.dumps(digests(sys.argv[2:], int(sys.argv[1]))))
