"""Attention over the channels of a feature map.

A map is squeezed to one number a channel, a small network turns these into gates, and each channel is multiplied by its own.
`cbam` adds the maximum to the mean, and a second gate for each position.
"""

from refattn.attention.channel.cbam import cbam, cbam_channel, cbam_channel_concat, cbam_spatial
from refattn.attention.channel.squeeze_excitation import squeeze_excitation, squeeze_excitation_one_layer

__all__ = [
    "cbam",
    "cbam_channel",
    "cbam_channel_concat",
    "cbam_spatial",
    "squeeze_excitation",
    "squeeze_excitation_one_layer",
]
