"""Non-local means against scikit-image, whose exponential is exact to some per cent."""

from __future__ import annotations

import numpy as np
import pytest

import refattn
from refattn._core.random import Random

restoration = pytest.importorskip("skimage.restoration")

CHANNELS = [pytest.param(1, id="grey"), pytest.param(3, id="colours")]


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize(("size", "window", "h"), [(3, 3, 0.1), (5, 2, 0.15), (3, 30, 0.1)])
def test_non_local_means(channels, size, window, h):
    """Its Gaussian has a deviation of a quarter of the patch's width less 1, and a distance is the mean over the channels.

    Patches are so near that it leaves none out: it does where a distance, divided by h squared, is more than 5, and in grey
    images where that of the middle alone is more than 1.
    """
    spread = 0.1
    x = Random(0).uniform(0.0, spread, (1, channels, 13, 12))
    theirs = restoration.denoise_nl_means(
        np.moveaxis(x[0], 0, -1), patch_size=size, patch_distance=window, h=h, fast_mode=False, channel_axis=-1
    )
    ours = {"patch_size": size, "patch_std": (size - 1) / 4, "window": window}

    def apart(**other):
        return np.abs(np.moveaxis(refattn.non_local_means(x, h, **{**ours, **other})[0], 0, -1) - theirs).max() / spread

    tolerance = 0.01  # weights that are wrong by 3 per cent change a mean by less than that of the spread, and cancel in part
    assert apart() < tolerance
    assert min(apart(patch_std=None), apart(padding_mode="zeros"), apart(patch_size=size + 2)) > tolerance
    if window < 12:
        assert apart(window=window + 1) > 2 * tolerance
