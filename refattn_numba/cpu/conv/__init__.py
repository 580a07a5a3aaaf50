"""Convolution on CPU cores: one problem, three faces, several algorithms.

`problem` states the sizes once for all dimensions (three axes, of which some have one position), `run` is the rule that the public
functions share, `choice` picks an algorithm for each face of a problem. A face is what is left out of the trilinear form of
`refattn.convolution.rule`: "correlate" makes the output, "spread" the gradient of the input (or a transposed convolution), and
"weight_gradient" that of the kernel.
"""
