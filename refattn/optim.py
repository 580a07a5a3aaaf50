"""Optimisers: enough to train in examples and tests.

An optimiser is a function from parameters, gradients and a state to new parameters and a new state; nothing is changed in
place. Parameters are any nesting of named tuples, tuples and mappings of arrays; gradients are the same nesting, with the
same shapes.

>>> import numpy as np, refattn
>>> weights, state = {"w": np.array([4.0, -2.0])}, None
>>> for _ in range(3):
...     weights, state = refattn.optim.sgd(weights, {"w": 2 * weights["w"]}, state, learning_rate=0.25)
>>> weights
{'w': array([ 0.5 , -0.25])}
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import numpy as np

from refattn._core import Array, tree
from refattn._core.arrays import is_real
from refattn._core.stated import stated

T = TypeVar("T")


class Moments(NamedTuple):
    """What Adam remembers from one step to the next.

    Attributes
    ----------
    step : int
        Steps taken.
    mean : parameters
        Moving average of the gradients.
    square : parameters
        Moving average of their squares.
    """

    step: int
    mean: Any
    square: Any


@stated
def sgd(
    parameters: T,
    gradients: T,
    state: T | None = None,
    *,
    learning_rate: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> tuple[T, T | None]:
    r"""One step of stochastic gradient descent.

    Parameters
    ----------
    parameters : named tuple, tuple, mapping or array
        What is learned.
    gradients : same as `parameters`
        Gradient of each array.
    state : same as `parameters` or None, optional
        The velocity that the last step returned; None for the first step.
    learning_rate : float
        Step size.
    momentum : non-negative float, optional
        Share of the last velocity that is kept.
    dampening : float, optional
        Share of the gradient that does not enter the velocity; the first step has none.
    nesterov : bool, optional
        Whether to step along the gradient as it would be one velocity on. Needs a momentum, and no dampening.
    weight_decay : float, optional
        Multiple of the parameters that is added to their gradients.

    Returns
    -------
    parameters : same as `parameters`
        One step on, in their own precision.
    state : same as `parameters` or None
        Velocity; None without momentum.

    Notes
    -----
    .. math::

        g \leftarrow g + \lambda \theta, \quad v \leftarrow \mu v + (1 - \tau) g, \quad
        \theta \leftarrow \theta - \eta v \quad \text{or, with Nesterov,} \quad \theta \leftarrow \theta - \eta (g + \mu v)

    Sutskever et al. have the learning rate inside the velocity, which differs where the learning rate changes; this is
    PyTorch's form.

    References
    ----------
    .. [1] Sutskever et al., "On the Importance of Initialization and Momentum in Deep Learning", ICML 2013, eqs. (1) to (4).

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.optim.sgd(np.array([1.0]), np.array([2.0]), learning_rate=0.25, momentum=0.5)
    (array([0.5]), array([2.]))
    """
    _refuse_other_shapes("gradients", gradients, parameters)
    if nesterov and (not momentum or dampening):
        raise ValueError(f"nesterov is True, but momentum is {momentum} and dampening is {dampening}")

    decayed = tree.map_leaves(lambda g, p: g + weight_decay * p, gradients, parameters)
    if not momentum:
        return _stepped(parameters, decayed, learning_rate), None
    if state is None:
        velocity = decayed
    else:
        _refuse_other_shapes("state", state, parameters)
        velocity = tree.map_leaves(lambda g, v: momentum * v + (1 - dampening) * g, decayed, state)
    step = tree.map_leaves(lambda g, v: g + momentum * v, decayed, velocity) if nesterov else velocity
    return _stepped(parameters, step, learning_rate), velocity


@stated
def adam(
    parameters: T,
    gradients: T,
    state: Moments | None = None,
    *,
    learning_rate: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> tuple[T, Moments]:
    r"""One step of Adam.

    Parameters
    ----------
    parameters : named tuple, tuple, mapping or array
        What is learned.
    gradients : same as `parameters`
        Gradient of each array.
    state : Moments or None, optional
        What the last step returned; None for the first step.
    learning_rate : float, optional
        Step size.
    betas : (probability, probability), optional
        Share of the moving averages that is kept: of the gradients, and of their squares.
    eps : non-negative float, optional
        Added to the root of the corrected square, as in the paper's algorithm 1.

    Returns
    -------
    parameters : same as `parameters`
        One step on, in their own precision.
    state : Moments
        Moving averages.

    Notes
    -----
    .. math::

        m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \quad
        \theta \leftarrow \theta - \eta \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    References
    ----------
    .. [1] Kingma, Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, algorithm 1. arXiv:1412.6980.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> weights, state = refattn.optim.adam(np.array([1.0, 1.0]), np.array([5.0, -0.1]), learning_rate=0.5, eps=0.0)
    >>> weights, state.step
    (array([0.5, 1.5]), 1)
    """
    return adamw(parameters, gradients, state, learning_rate=learning_rate, betas=betas, eps=eps, weight_decay=0.0)


@stated
def adamw(
    parameters: T,
    gradients: T,
    state: Moments | None = None,
    *,
    learning_rate: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
) -> tuple[T, Moments]:
    r"""One step of Adam, with a weight decay that does not pass through its averages.

    Parameters
    ----------
    parameters : named tuple, tuple, mapping or array
        What is learned.
    gradients : same as `parameters`
        Gradient of each array.
    state : Moments or None, optional
        What the last step returned; None for the first step.
    learning_rate : float, optional
        Step size.
    betas : (probability, probability), optional
        Share of the moving averages that is kept: of the gradients, and of their squares.
    eps : non-negative float, optional
        Added to the root of the corrected square.
    weight_decay : float, optional
        Share of the parameters that a step of size 1 takes away.

    Returns
    -------
    parameters : same as `parameters`
        One step on, in their own precision.
    state : Moments
        Moving averages.

    Notes
    -----
    The decay is multiplied by the whole learning rate, as in PyTorch; the paper multiplies it by the schedule alone, and not by
    the step size of Adam.

    .. math::

        m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \quad
        \theta \leftarrow \theta - \eta \Bigl(\frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon} + \lambda \theta\Bigr)

    References
    ----------
    .. [1] Loshchilov, Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, algorithm 2. arXiv:1711.05101.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> weights, _ = refattn.optim.adamw(np.array([1.0]), np.array([5.0]), learning_rate=0.5, eps=0.0, weight_decay=0.5)
    >>> weights
    array([0.25])
    """
    _refuse_other_shapes("gradients", gradients, parameters)
    if state is None:
        zeros = tree.map_leaves(np.zeros_like, gradients)
        state = Moments(0, zeros, zeros)
    elif not isinstance(state, Moments):
        raise TypeError(f"state is a {type(state).__name__}, but must be the Moments of the last step, or None")
    _refuse_other_shapes("state.mean", state.mean, parameters)
    _refuse_other_shapes("state.square", state.square, parameters)
    step = state.step + 1
    mean = tree.map_leaves(lambda g, m: betas[0] * m + (1 - betas[0]) * g, gradients, state.mean)
    square = tree.map_leaves(lambda g, v: betas[1] * v + (1 - betas[1]) * g**2, gradients, state.square)

    def direction(p: Array, m: Array, v: Array) -> Array:
        return m / (1 - betas[0] ** step) / (np.sqrt(v / (1 - betas[1] ** step)) + eps) + weight_decay * p

    return _stepped(parameters, tree.map_leaves(direction, parameters, mean, square), learning_rate), Moments(step, mean, square)


def _stepped(parameters: T, step: T, learning_rate: float) -> T:
    return tree.map_leaves(lambda p, d: np.asarray(p - learning_rate * d, dtype=p.dtype), parameters, step)


def _refuse_other_shapes(name: str, given: Any, parameters: Any) -> None:
    """Raise where a leaf is no array of numbers, or where another nesting or shape would broadcast, or be left out, in silence."""
    for tree_name, nested in (("parameters", parameters), (name, given)):
        for path, x in tree.leaves(nested, tree_name):
            dtype = getattr(x, "dtype", None)
            if not isinstance(dtype, np.dtype) or not is_real(dtype):
                raise TypeError(f"{path} is {dtype or f'a {type(x).__name__}'}, but must be a floating-point array")
    shapes, wanted = ({path: np.shape(x) for path, x in tree.leaves(t)} for t in (given, parameters))
    if lacking := wanted.keys() - shapes.keys():
        raise ValueError(f"{name} lacks {sorted(lacking)}")
    if unknown := shapes.keys() - wanted.keys():
        raise ValueError(f"{name} has {sorted(unknown)}, which the parameters have not")
    for path, shape in wanted.items():
        if shapes[path] != shape:
            raise ValueError(f"{name}{'.' * bool(path)}{path} has shape {shapes[path]}, but the parameter has {shape}")
