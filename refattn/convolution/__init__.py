"""Convolution: a small kernel slides over a sequence, an image or a volume.

Every output position sees the same few neighbours through the same weights. `rule` has what all of them share; `conv2d` is
the one to read first. A convolution is linear in its input, so that the gradient of its input is again a convolution, spread
out instead of gathered: `conv_transpose2d`. With as many groups as channels it mixes positions alone (`depthwise_conv2d`),
with a kernel of one tap channels alone (`pointwise_conv2d`), and `separable_conv2d` does one after the other.
`causal_conv1d` sees the past alone, and carries its last positions from one chunk of a sequence to the next. The taps of
`deform_conv2d` stand where the input has them, and `modulated_deform_conv2d` gives each a weight besides.

`conv2d_im2col`, `conv2d_fft` and `conv2d_winograd` compute `conv2d` as the classic kernels do: by one large matrix product,
by products of spectra, and with fewer multiplications; `unfold2d` is the first step of the first of them, what each position
sees.
"""

from refattn.convolution.causal import causal_conv1d
from refattn.convolution.conv1d import conv1d
from refattn.convolution.conv2d import conv2d
from refattn.convolution.conv3d import conv3d
from refattn.convolution.conv_transpose1d import conv_transpose1d
from refattn.convolution.conv_transpose2d import conv_transpose2d
from refattn.convolution.conv_transpose3d import conv_transpose3d
from refattn.convolution.deformable import deform_conv2d
from refattn.convolution.deformable_modulated import modulated_deform_conv2d
from refattn.convolution.depthwise import depthwise_conv2d
from refattn.convolution.fft import conv2d_fft
from refattn.convolution.im2col import conv2d_im2col
from refattn.convolution.pointwise import pointwise_conv2d
from refattn.convolution.separable import separable_conv2d
from refattn.convolution.unfold import unfold2d
from refattn.convolution.winograd import conv2d_winograd

__all__ = [
    "causal_conv1d",
    "conv1d",
    "conv2d",
    "conv2d_fft",
    "conv2d_im2col",
    "conv2d_winograd",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "deform_conv2d",
    "depthwise_conv2d",
    "modulated_deform_conv2d",
    "pointwise_conv2d",
    "separable_conv2d",
    "unfold2d",
]
