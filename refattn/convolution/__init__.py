"""Convolution: a small kernel slides over a sequence, an image or a volume.

Every output position sees the same few neighbours through the same weights. `rule` has what all of them share; `conv2d` is
the one to read first. A convolution is linear in its input, so that the gradient of its input is again a convolution, spread
out instead of gathered: `conv_transpose2d`. With as many groups as channels it mixes positions alone (`depthwise_conv2d`),
with a kernel of one tap channels alone (`pointwise_conv2d`), and `separable_conv2d` does one after the other.
`causal_conv1d` sees the past alone, and carries its last positions from one chunk of a sequence to the next.

`conv2d_im2col`, `conv2d_fft` and `conv2d_winograd` compute `conv2d` as the classic kernels do: by one large matrix product,
by products of spectra, and with fewer multiplications.
"""

from refattn.convolution.conv1d import conv1d
from refattn.convolution.conv2d import conv2d
from refattn.convolution.conv3d import conv3d

__all__ = ["conv1d", "conv2d", "conv3d"]
