"""One attention over all keys, out of attentions over parts of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from refattn._core import Array, Grads, Pullback, Random, Sample, mechanism
from refattn.attention.dot_product.scaled_dot_product import AttendedWithLse
from refattn.primitives.softmax import logsumexp, softmax


def _samples(random: Random) -> Iterator[Sample]:
    outputs, lses = random.normal((3, 2, 4, 5)), random.normal((3, 2, 4))
    yield Sample("three parts", {"outputs": outputs, "lses": lses})
    lses = lses.copy()
    lses[1, 0], lses[:, 1, 2] = -np.inf, -np.inf
    yield Sample("a part and a row with nothing", {"outputs": outputs, "lses": lses})
    yield Sample("far apart", {"outputs": outputs, "lses": 400 * lses})
    yield Sample("no part", {"outputs": outputs[:0], "lses": lses[:0]})


@mechanism(tags={"softmax"}, samples=_samples)
def merge_attention(outputs: Array, lses: Array) -> tuple[AttendedWithLse, Pullback]:
    r"""Attention over all keys, from its outputs and log-sum-exps over disjoint parts of them.

    The parts may be blocks of keys, devices, a shared prefix, or a sink (output 0, its score as log-sum-exp). The order
    of the parts does not matter, and merged parts may be merged again.

    Parameters
    ----------
    outputs : array, shape (parts, ..., value_dim)
        What each part gives.
    lses : array, shape (parts, ...)
        Natural logarithm of each part's sum of exponentials; :math:`-\infty` for a part with nothing, whose output is not read.

    Returns
    -------
    output : array, shape (..., value_dim)
        The attended values; 0 where no part has anything.
    lse : array, shape (...)
        Natural logarithm of the whole sum; :math:`-\infty` where no part has anything.

    Notes
    -----
    .. math::

        \ell = \log \sum_p e^{\ell_p}, \quad o = \sum_p e^{\ell_p - \ell} o_p, \qquad
        \bar o_p = e^{\ell_p - \ell}\, \bar o, \quad
        \bar \ell_p = e^{\ell_p - \ell} \bigl(\bar o \cdot (o_p - o) + \bar \ell\bigr)

    References
    ----------
    .. [1] FlashInfer documentation, "Attention States and Recursive Attention", the n-ary merge operator.
       https://docs.flashinfer.ai/tutorials/recursive_attention.html
    .. [2] Liu, Zaharia, Abbeel, "Ring Attention with Blockwise Transformers for Near-Infinite Context", 2023: parts on
       devices. arXiv:2310.01889.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.merge_attention(np.array([[1.0], [5.0]]), np.log([3.0, 1.0])).output
    array([2.])
    """
    last = np.moveaxis(lses, 0, -1)
    lse, lse_pullback = logsumexp.vjp(last)
    shares, shares_pullback = softmax.vjp(last)
    shares_first = np.moveaxis(shares, -1, 0)[..., None]
    read = np.where(np.isneginf(lses)[..., None], 0, outputs)
    output = (shares_first * read).sum(axis=0)

    def pullback(d_output: Array, d_lse: Array) -> Grads:
        d_shares = np.moveaxis((read * d_output).sum(axis=-1), 0, -1)
        d_last = shares_pullback(d_shares)["x"] + lse_pullback(d_lse)["x"]
        return {"outputs": shares_first * d_output, "lses": np.moveaxis(d_last, -1, 0)}

    return AttendedWithLse(output, lse), pullback
