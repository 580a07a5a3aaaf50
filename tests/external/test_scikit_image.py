"""Non-local means against scikit-image, whose exponential is exact to some per cent."""

from __future__ import annotations

import numpy as np
import pytest

import refattn
from refattn._core.random import Random

restoration = pytest.importorskip("skimage.restoration")

CHANNELS = [pytest.param(1, id="grey"), pytest.param(3, id="colours")]


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize(("size", "window"), [(3, 3), (5, 2), (3, 30)])
def test_non_local_means(channels, size, window):
    """Its Gaussian has a deviation of a quarter of the patch's width less 1, and a distance is the mean over the channels.

    The image is so flat that no patch is left out: it gives weight 0 where a squared distance is more than 5 h^2, and in grey images
    where the middle of the patch alone has more than h^2 of it. Its fast mode is another sum, and is not compared.
    """
    h, spread = 0.1, 0.125
    x = Random(0).uniform(0.0, spread, (1, channels, 13, 12))
    theirs = restoration.denoise_nl_means(
        np.moveaxis(x[0], 0, -1), patch_size=size, patch_distance=window, h=h, fast_mode=False, channel_axis=-1
    )
    ours = {"h": h, "patch_size": size, "patch_std": (size - 1) / 4, "window": window}

    def apart(**other):
        mean = refattn.non_local_means(x, **{**ours, **other})[0]
        return np.abs(np.moveaxis(mean, 0, -1).reshape(theirs.shape) - theirs).max() / spread

    tolerance = 0.005  # wrong weights shift a mean by less than they are wrong themselves: a part of the spread
    assert apart() < tolerance
    others = [{"patch_std": None}, {"h": h * 2**0.5}, {"h": h / 2**0.5}, *([{"window": window + 1}] if window < 12 else [])]
    assert all(apart(**other) > 1.5 * tolerance for other in others)
