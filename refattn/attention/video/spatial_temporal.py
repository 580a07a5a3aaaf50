"""The places of each frame of a video averaged with learned weights, and then its frames."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from refattn._core import Array, BadCall, Booleans, Grads, Pullback, Random, Sample, mechanism
from refattn._core.tree import pick
from refattn.attention.video.temporal import PoolingWeights, temporal_attention


class Seen(NamedTuple):
    """The attended features, how much each place counted in its frame, and each frame in its video."""

    output: Array
    spatial_weights: Array
    temporal_weights: Array


def _weights(random: Random, *, state: bool = True) -> PoolingWeights:
    w_frames, w_score, w_state, b_hidden = random.normal((3, 4)), random.normal(3), random.normal((3, 6)), random.normal(3)
    return PoolingWeights(w_frames, w_score, w_state if state else None, b_hidden)


def _samples(random: Random) -> Iterator[Sample]:
    inputs = {"x": random.normal((2, 3, 5, 4)), "spatial": _weights(random, state=False), "temporal": _weights(random, state=False)}
    asked = {**inputs, "spatial": _weights(random), "temporal": _weights(random)._replace(b_hidden=None), "state": random.normal((2, 6))}
    mask = random.booleans(0.6, (2, 3, 5))
    mask[0, 1] = False
    mask[1] = False
    yield Sample("plain", inputs)
    yield Sample("state", asked)
    yield Sample("state over time alone", {**asked, "spatial": inputs["spatial"]})
    yield Sample("state over space alone", {**asked, "temporal": inputs["temporal"]})
    yield Sample("places and frames missing", {**asked, "mask": mask})
    yield Sample("one video", {**inputs, "x": inputs["x"][0]})


def _bad_calls(random: Random) -> Iterator[BadCall]:
    inputs = {"x": random.normal((2, 3, 5, 4)), "spatial": _weights(random), "temporal": _weights(random)}
    neither = {name: _weights(random, state=False) for name in ("spatial", "temporal")}
    yield BadCall("no state", inputs, ValueError, "w_state is given, but state is None")
    yield BadCall("a state for neither", {**inputs, **neither, "state": random.normal((2, 6))}, ValueError, "state is given, but neither")


def _benchmark(random: Random) -> dict[str, Any]:
    spatial, temporal = (PoolingWeights(random.normal((128, 256)), random.normal(128)) for _ in range(2))
    return {"x": random.normal((4, 16, 49, 256)), "spatial": spatial, "temporal": temporal}


@mechanism(tags={"softmax"}, samples=_samples, bad_calls=_bad_calls, benchmark=_benchmark)
def spatial_temporal_attention(
    x: Array, spatial: PoolingWeights, temporal: PoolingWeights, state: Array | None = None, *, mask: Booleans | None = None
) -> tuple[Seen, Pullback]:
    r"""Average the places of each frame, then the frames of the video, each with learned weights.

    Parameters
    ----------
    x : array, shape (..., frames, patches, value_dim)
        Features at each place of each frame.
    spatial : PoolingWeights
        Weights of the attention over the places of a frame.
    temporal : PoolingWeights
        Weights of the attention over the frames.
    state : array or None, shape (..., query_dim), optional
        Read by each of the two whose weights have a `w_state`.
    mask : bool array or None, broadcastable to (..., frames, patches), optional
        True where there is a place. A frame that has none is missing.

    Returns
    -------
    output : array, shape (..., value_dim)
        The attended features.
    spatial_weights : array, shape (..., frames, patches)
        How much each place counted in its frame.
    temporal_weights : array, shape (..., frames)
        How much each frame counted.

    Notes
    -----
    Both are `temporal_attention`, with places in the part of frames in the first.

    .. math::

        f_t = \sum_p \alpha_{t p} x_{t p}, \quad y = \sum_t \beta_t f_t, \qquad
        \bar f_t = \beta_t \bar y + \Bigl(\frac{\partial \beta}{\partial f_t}\Bigr)^\top \bar\beta, \quad
        \bar x_{t p} = \alpha_{t p} \bar f_t + \Bigl(\frac{\partial \alpha_t}{\partial x_{t p}}\Bigr)^\top \bar\alpha_t

    where :math:`\bar\beta_t` is its own cotangent and :math:`f_t^\top \bar y`, and :math:`\bar\alpha_{t p}` likewise.

    References
    ----------
    .. [1] Xu et al., "Show, Attend and Tell: Neural Image Caption Generation with Visual Attention", ICML 2015, for the places.
       arXiv:1502.03044.
    .. [2] Yao et al., "Describing Videos by Exploiting Temporal Structure", ICCV 2015, for the frames. arXiv:1502.08029.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> x, mean = np.array([[[0.0], [2.0]], [[6.0], [8.0]]]), refattn.PoolingWeights(np.zeros((1, 1)), np.zeros(1))
    >>> refattn.spatial_temporal_attention(x, mean, mean).output
    array([4.])
    """
    if state is not None and spatial.w_state is None and temporal.w_state is None:
        raise ValueError("state is given, but neither spatial nor temporal has a w_state")
    of_frames = None if state is None or spatial.w_state is None else np.broadcast_to(state[..., None, :], (*x.shape[:-2], state.shape[-1]))
    of_video = None if temporal.w_state is None else state
    places = None if mask is None else np.broadcast_to(mask, x.shape[:-1])
    there = None if places is None else np.asarray(places.any(axis=-1))
    seen, spatial_pullback = temporal_attention.vjp(x, *spatial, of_frames, mask=places)
    attended, temporal_pullback = temporal_attention.vjp(seen.output, *temporal, of_video, mask=there)

    def pullback(d_output: Array, d_spatial: Array, d_temporal: Array) -> Grads:
        d_frames = temporal_pullback(d_output, d_temporal)
        d_places = spatial_pullback(d_frames["x"], d_spatial)
        d_states = [d_frames["state"]] if "state" in d_frames else []
        d_states += [d_places["state"].sum(axis=-2)] if "state" in d_places else []
        grads = {"x": d_places["x"], "spatial": pick(PoolingWeights, d_places), "temporal": pick(PoolingWeights, d_frames)}
        return {**grads, "state": sum(d_states[1:], d_states[0])} if d_states else grads

    return Seen(attended.output, seen.weights, attended.weights), pullback
