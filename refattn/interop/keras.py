"""Keras's parameters and layouts under the names and in the layouts of this package.

Each function takes a layer's weights by their paths, ``{w.path: w for w in layer.weights}``, and returns arguments. Of a path the
end counts, so that the layer may have any name and stand in any model. The functions rename, move axes and join them, and compute
nothing, so that a mapping of the same paths to gradients comes out as gradients. `restored` is the way back, for each of them.

Keras's boolean masks have this package's sense: True may attend.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from refattn._core import Array

Convert = Callable[[Mapping[str, Any]], Mapping[str, Array]]


def channels_first(x: Any) -> Array:
    """From Keras's default layout (batch, *positions, channels) to (batch, channels, *positions).

    Parameters
    ----------
    x : array
        Sequences, images or volumes.

    Returns
    -------
    array
        The same, as a view where that is possible.
    """
    return np.moveaxis(np.asarray(x), -1, 1)


def channels_last(x: Any) -> Array:
    """From (batch, channels, *positions) to Keras's default layout (batch, *positions, channels).

    Parameters
    ----------
    x : array
        Sequences, images or volumes.

    Returns
    -------
    array
        The same, as a view where that is possible.
    """
    return np.moveaxis(np.asarray(x), 1, -1)


def dense(weights: Mapping[str, Any]) -> dict[str, Array]:
    """Weights of ``keras.layers.Dense`` as arguments of `refattn.linear`.

    Parameters
    ----------
    weights : mapping of str to array
        The layer's weights by their paths, or their gradients.

    Returns
    -------
    dict of str to array
        ``weight``, and ``bias`` where the layer has one.
    """
    return _present(weight=_named(weights, "kernel").T, bias=_optional(weights, "bias"))


def conv(weights: Mapping[str, Any]) -> dict[str, Array]:
    """Weights of ``keras.layers.Conv1D``, ``Conv2D`` or ``Conv3D``, or of their transposes, as arguments of `refattn.conv1d` and so on.

    Keras writes a kernel (*kernel_size, in, out), and that of a transpose (*kernel_size, out, in). ``padding="valid"`` and "same" of
    a convolution mean the same here; "causal" is ``padding=((dilation * (kernel_size - 1), 0),)``. Of a transpose "same" cuts
    ``max(kernel_size - stride, 0)`` positions, the smaller half of them before, and "valid" none; both add
    ``output_padding=max(stride - kernel_size, 0)``.

    Parameters
    ----------
    weights : mapping of str to array
        The layer's weights by their paths, or their gradients.

    Returns
    -------
    dict of str to array
        ``weight``, and ``bias`` where the layer has one.
    """
    return _present(weight=_moved_to_front(_named(weights, "kernel")), bias=_optional(weights, "bias"))


def depthwise_conv(weights: Mapping[str, Any]) -> dict[str, Array]:
    """Weights of ``keras.layers.DepthwiseConv2D`` as arguments of `refattn.depthwise_conv2d`.

    Parameters
    ----------
    weights : mapping of str to array
        The layer's weights by their paths, or their gradients.

    Returns
    -------
    dict of str to array
        ``weight``, and ``bias`` where the layer has one.
    """
    return _present(weight=_by_channel(_named(weights, "kernel")), bias=_optional(weights, "bias"))


def separable_conv(weights: Mapping[str, Any]) -> dict[str, Array]:
    """Weights of ``keras.layers.SeparableConv2D`` as arguments of `refattn.separable_conv2d`.

    Parameters
    ----------
    weights : mapping of str to array
        The layer's weights by their paths, or their gradients.

    Returns
    -------
    dict of str to array
        ``w_depthwise`` and ``w_pointwise``, and ``bias`` where the layer has one.
    """
    return _present(
        w_depthwise=_by_channel(_named(weights, "depthwise_kernel")),
        w_pointwise=_moved_to_front(_named(weights, "pointwise_kernel")),
        bias=_optional(weights, "bias"),
    )


def normalization(weights: Mapping[str, Any]) -> dict[str, Array]:
    """Weights of Keras's normalisation layers as arguments of `refattn.layer_norm`, `batch_norm`, `group_norm` and so on.

    Keras's ``epsilon`` is 0.001 by default, this package's ``eps`` 0.00001.

    Parameters
    ----------
    weights : mapping of str to array
        The layer's weights by their paths, or their gradients.

    Returns
    -------
    dict of str to array
        What the layer has of ``running_mean``, ``running_var``, ``scale`` and ``shift``.
    """
    gamma = _optional(weights, "gamma")
    return _present(
        running_mean=_optional(weights, "moving_mean"),
        running_var=_optional(weights, "moving_variance"),
        scale=_optional(weights, "scale") if gamma is None else gamma,
        shift=_optional(weights, "beta"),
    )


def embedding(weights: Mapping[str, Any]) -> dict[str, Array]:
    """The table of ``keras.layers.Embedding`` as an argument of `refattn.embedding`.

    Parameters
    ----------
    weights : mapping of str to array
        The layer's weights by their paths, or their gradients.

    Returns
    -------
    dict of str to array
        ``weight``.
    """
    return {"weight": _named(weights, "embeddings")}


def multi_head_attention(weights: Mapping[str, Any]) -> dict[str, Array]:
    """Weights of ``keras.layers.MultiHeadAttention`` or ``GroupQueryAttention`` as arguments of `refattn.multi_head_attention`.

    Keras calls ``layer(query, value, key)``, with the value before the key. Pass ``num_heads``; ``key_dim`` and ``head_dim`` follow
    from the weights. A mask (batch, query_len, key_len) of Keras is ``mask[:, None]`` here.

    Parameters
    ----------
    weights : mapping of str to array
        The layer's weights by their paths, or their gradients.

    Returns
    -------
    dict of str to array
        ``w_query`` to ``w_output``, and ``b_query`` to ``b_output`` where the layer has biases.
    """
    if _optional(weights, "gate/kernel") is not None:
        raise ValueError("gate/kernel: the layer has a gate, which multi_head_attention does not have")
    arguments: dict[str, Array | None] = {}
    for name in ("query", "key", "value"):
        kernel, bias = _named(weights, f"{name}/kernel"), _optional(weights, f"{name}/bias")
        arguments[f"w_{name}"] = kernel.reshape(len(kernel), -1).T
        arguments[f"b_{name}"] = None if bias is None else bias.reshape(-1)
    kernel = _named(weights, "attention_output/kernel")
    arguments["w_output"] = kernel.reshape(-1, kernel.shape[-1]).T
    arguments["b_output"] = _optional(weights, "attention_output/bias")
    return _present(**arguments)


def restored(convert: Convert, weights: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Array]:
    """The weights that a function of this module would convert to these arguments: the way back to Keras.

    Parameters
    ----------
    convert : callable
        A function of this module that takes weights.
    weights : mapping of str to array
        The layer's weights by their paths, for the shapes that they have; their values do not matter.
    arguments : mapping of str to array
        What `convert` returns, with other values: trained weights, for instance.

    Returns
    -------
    dict of str to array
        New weights by their paths, for ``w.assign``.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn.interop import keras
    >>> kernel = np.zeros((2, 3))
    >>> keras.restored(keras.dense, {"dense/kernel": kernel}, {"weight": np.arange(6).reshape(3, 2)})
    {'dense/kernel': array([[0, 2, 4],
           [1, 3, 5]])}
    """
    shapes = {path: np.shape(w) for path, w in weights.items()}
    starts = np.cumsum([0, *(int(np.prod(s)) for s in shapes.values())])
    numbers = {path: np.arange(a, b).reshape(s) for (path, s), a, b in zip(shapes.items(), starts[:-1], starts[1:], strict=True)}
    places = convert(numbers)  # where each number of the arguments comes from
    if places.keys() != arguments.keys():
        raise ValueError(f"arguments has {sorted(arguments)}, but the layer has {sorted(places)}")
    found = np.concatenate([np.ravel(x) for x in places.values()])
    if len(found) != starts[-1]:
        raise ValueError(f"weights has {list(weights)}, of which {convert.__name__} uses only a part")
    for name, place in places.items():
        if np.shape(arguments[name]) != place.shape:
            raise ValueError(f"{name} has shape {np.shape(arguments[name])}, but that of the layer has {place.shape}")
    values = np.concatenate([np.ravel(arguments[name]) for name in places])[np.argsort(found)]
    return {path: values[n] for path, n in numbers.items()}


def _optional(weights: Mapping[str, Any], name: str) -> Array | None:
    """The entry whose path ends in this name, or None."""
    paths = [path for path in weights if f"/{path}".endswith(f"/{name}")]
    if len(paths) > 1:
        raise ValueError(f"{name} is the end of {paths}: give the weights of one layer")
    return np.asarray(weights[paths[0]]) if paths else None


def _named(weights: Mapping[str, Any], name: str) -> Array:
    if (found := _optional(weights, name)) is None:
        raise ValueError(f"no path ends in {name}, only {list(weights)}")
    return found


def _present(**arguments: Array | None) -> dict[str, Array]:
    return {name: x for name, x in arguments.items() if x is not None}


def _moved_to_front(kernel: Array) -> Array:
    """From (*kernel_size, a, b) to (b, a, *kernel_size)."""
    return np.moveaxis(kernel, (-1, -2), (0, 1))


def _by_channel(kernel: Array) -> Array:
    """From (height, width, channels, multiplier) to (channels * multiplier, 1, height, width)."""
    moved = np.moveaxis(kernel, (-2, -1), (0, 1))
    return moved.reshape(-1, 1, *moved.shape[2:])
