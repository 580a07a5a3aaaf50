"""Lines of the convolutions that are wrong, by algorithm, as in `planted`: the tests that come first are those of the oracle."""

from __future__ import annotations

from tests.twins.planted import Fault


def oracle(mechanism: str, algorithm: str, layout: str = "channels first") -> str:
    """The check of one algorithm."""
    return f"tests/twins/test_conv_oracle.py::test_passes_the_check[{mechanism}-{algorithm}-{layout}]"


def hard(algorithm: str, *names: str) -> str:
    """Tests of sizes that are hard for an algorithm."""
    return "|".join(f"tests/twins/test_conv_{algorithm}.py::test_hard_sizes[{name}]" for name in names)


LAST = "channels last"

DIRECT = oracle("conv2d", "direct")
DIRECT_BACK = oracle("conv_transpose2d", "direct")
WINOGRAD = oracle("conv2d", "winograd")
POINTWISE, POINTWISE_LAST = oracle("pointwise_conv2d", "pointwise"), oracle("pointwise_conv2d", "pointwise", LAST)
DEPTHWISE, DEPTHWISE_LAST = oracle("depthwise_conv2d", "depthwise"), oracle("depthwise_conv2d", "depthwise", LAST)
FFT = oracle("conv2d_fft", "fft")
CAUSAL, CAUSAL_LAST = oracle("causal_conv1d", "causal"), oracle("causal_conv1d", "causal", LAST)

MATRICES = "tests/twins/test_conv_winograd.py::test_matrices_follow_from_their_points"
OF_WINOGRAD = "tests/twins/test_conv_winograd.py::test_epilogue[False-relu]"
PLANES = "tests/twins/test_conv_depthwise.py::test_hard_sizes[float32]"
OF_CAUSAL = "tests/twins/test_conv_depthwise.py::test_causal"
OF_FFT = "tests/twins/test_conv_depthwise.py::test_transforms_stay_within_their_bound"
ACTIVATED = "tests/twins/test_conv_pointwise.py::test_activations_are_those_of_the_output_and_gradients_go_through_them"
RANDOM_POINTS = "tests/twins/test_conv_pointwise.py::test_random_problems"
FINISHED = "tests/twins/test_conv_epilogue.py"
OF_ALL = "tests/twins/test_convolution.py::test_activations"

BY_ALGORITHM: dict[str, tuple[Fault, ...]] = {
    "direct": (
        Fault("last position of a box reads no tap", "conv/direct_source.py", "smaller(row[2], -((row[0] - high) // row[1]))", "smaller(row[2], -((row[0] - high + 1) // row[1]))",
              f"{DIRECT}|{hard('direct', 'stem-float32-False')}"),
        Fault("second group reads the channels of the first", "conv/direct_source.py", "+ block // call.blocks * call.inner * call.source_c", "+ 0",
              f"{DIRECT}|{hard('direct', 'many groups-float32-False')}"),
        Fault("last row of a tile not set to the bias", "conv/direct_linear.py", "for row in range(1, _rows(begin, end)):", "for row in range(1, _rows(begin, end) - 1):",
              f"{DIRECT}|{hard('direct', 'more channels than a block-float32-False')}"),
        Fault("relu left out of the last position", "conv/direct_linear.py", "for i in range(0, rows * width, lanes):\n            numbers", "for i in range(0, rows * width - width, lanes):\n            numbers",
              f"{DIRECT}|tests/twins/test_conv_direct.py::test_bias_and_relu_are_fused"),
        Fault("last block of a sum left out", "conv/direct_linear.py", "for first in range(0, whole, depth):", "for first in range(0, whole - depth + 1, depth):",
              f"{DIRECT}|{hard('direct', 'sums of several blocks-float32-False')}"),
        Fault("dilation ignored along rows of taps", "conv/direct.py", '(problem.dilation[2] * x.strides[4] if by_taps', "(x.strides[4] if by_taps",
              f"{DIRECT}|{hard('direct', 'few channels, far apart-float32-False')}"),
        Fault("weight's gradient reads the first example again", "conv/direct_weight.py", "at_d, n = 0, n + 1", "at_d, n = 0, n", f"{DIRECT}|{hard('direct', 'stem-float32-False')}"),
        Fault("weight's gradient without its last part", "conv/direct_pack.py", "for part in range(1, call.parts):", "for part in range(1, call.parts - 1):",
              f"{DIRECT}|{hard('direct', 'several parts-float32-False')}"),
        Fault("residues of a stride in the wrong planes", "conv/direct_few.py", "shift = offset // call.stride_w", "shift = offset // call.stride_w + (offset < 0)",
              f"{DIRECT}|{hard('direct', 'stem-float32-False')}"),
        Fault("second block of channels overwrites the first", "conv/direct_few.py", "weight + first * lines, runs", "weight, runs", f"{DIRECT}|{hard('direct', 'few channels, long sums-float32-False')}"),
    ),
    "winograd": (
        Fault("sign in B^T of F(4, 3)", "conv/winograd_matrices.py", '"0 1/2 -1 -1/2 1 0"', '"0 1/2 -1 1/2 1 0"', f"{WINOGRAD}|{MATRICES}"),
        Fault("factor in G of F(2, 3)", "conv/winograd_matrices.py", '"1/2 -1/2 1/2"', '"1/2 -1/2 1/4"', f"{WINOGRAD}|{MATRICES}"),
        Fault("rows begin at the columns' padding", "conv/winograd_slabs.py", "at.row * m[1] - image.before_h", "at.row * m[1] - image.before_w",
              f"{WINOGRAD}|{hard('winograd', 'panels and registers that are not full-False')}"),
        Fault("gradient of the input with the output's padding", "conv/winograd_tiles.py", "tuple(k - 1 - b for k, b in", "tuple(b for k, b in",
              f"{WINOGRAD}|{hard('winograd', 'panels and registers that are not full-False')}"),
        Fault("second chunk of channels overwrites the first", "conv/winograd_kernels.py", "v + c, call.tiles, c, count, width", "v + c, call.tiles, 0, count, width",
              f"{WINOGRAD}|{hard('winograd', 'few tiles, several panels-False')}"),
        Fault("channels from the 129th on overwrite those before", "conv/winograd_kernels.py", "width, first + k > 0)", "width, first > 0)",
              f"{WINOGRAD}|tests/twins/test_conv_winograd.py::test_more_channels_than_one_sum_has"),
        Fault("weights of the first group for all", "conv/winograd_kernels.py", "pointer_to(call.weight, memory) + group * call.c * call.o * taps", "pointer_to(call.weight, memory) + 0",
              f"{WINOGRAD}|{hard('winograd', 'three groups-False')}"),
        Fault("bias after relu", "conv/winograd_slabs.py", "numbers = maximum(zero, numbers)", "numbers = maximum(zero, numbers - added) + added", f"{WINOGRAD}|{OF_WINOGRAD}"),
        Fault("later blocks of tiles overwrite the weight's gradient", "conv/winograd_weight.py", "channels, outputs, begin == slice_ * call.slice_slabs)", "channels, outputs, True)",
              f"{WINOGRAD}|{hard('winograd', 'many tiles-False')}|tests/twins/test_conv_winograd.py::test_more_channels_than_one_sum_has"),
        Fault("weight's gradient without the last slice", "conv/winograd_weight.py", "for s in range(1, call.slices):", "for s in range(1, call.slices - 1):",
              f"{WINOGRAD}|{hard('winograd', 'many tiles-False')}"),
    ),
    "pointwise": (
        Fault("second group reads the channels of the first", "conv/pointwise_planes.py", "pointer_to(call.source, memory) + group * call.depth * positions", "pointer_to(call.source, memory) + 0",
              f"{POINTWISE}|{RANDOM_POINTS}"),
        Fault("second part of the channels overwrites the first", "conv/pointwise_planes.py", "size, begun or k > 0,", "size, begun,", f"{POINTWISE}|{RANDOM_POINTS}"),
        Fault("activation left out of the last channel", "conv/pointwise_planes.py", "activate_rows(call.activation, sums, step, lines, count)", "activate_rows(call.activation, sums, step, lines - 1, count)",
              f"{POINTWISE}|{ACTIVATED}"),
        Fault("bias of the first group for all", "conv/pointwise_rows.py", "pointer_to(call.bias, memory) + (group * call.lines + o)", "pointer_to(call.bias, memory) + o", f"{POINTWISE_LAST}|{RANDOM_POINTS}"),
        Fault("last strip of channels is zeros", "conv/pointwise.py", "for strip in range(strips):", "for strip in range(max(1, strips - 1)):", f"{POINTWISE_LAST}|{RANDOM_POINTS}"),
        Fault("second share of a weight's gradient added to the first", "conv/pointwise_weights.py", "q > first)", "q > 0)", f"{POINTWISE}|{RANDOM_POINTS}"),
        Fault("last share of a weight's gradient left out", "conv/pointwise.py", "made.sum(axis=0)", "made[:-1].sum(axis=0)", f"{POINTWISE}|{RANDOM_POINTS}"),
        Fault("next example read behind one channel", "conv/blocks.py", "position // positions * example + position % positions", "position // positions * positions + position % positions",
              f"{POINTWISE}|{RANDOM_POINTS}"),
    ),
    "depthwise": (
        Fault("bias added twice", "conv/depthwise.py", "finish(made, epilogue._replace(bias=None))", "finish(made, epilogue)", f"{DEPTHWISE}|{PLANES}"),
        Fault("first part of a weight's gradient alone", "conv/depthwise.py", "sums[0] if len(sums) == 1 else sums.sum(axis=0)", "sums[0]", f"{DEPTHWISE}|{PLANES}"),
        Fault("dilation ignored along a sequence", "conv/depthwise.py", '"stride", "dilation", "before")}\n', '"stride", "before")}\n', PLANES),
        Fault("second group takes weights of the first", "conv/depthwise_planes.py", "channel = group % call.groups * call.outputs + j", "channel = group % call.groups + j", f"{DEPTHWISE}|{PLANES}"),
        Fault("rows begin at the columns' padding", "conv/depthwise_planes.py", "j = call.lowest1 + y * call.step_in1", "j = call.lowest2 + y * call.step_in1", f"{DEPTHWISE}|{PLANES}"),
        Fault("products of one example counted for the next", "conv/depthwise_planes.py", "fill(sums, call.taps * lanes_of(memory), 0.0)", "fill(sums, 0, 0.0)", f"{DEPTHWISE}|{PLANES}"),
        Fault("rows of padding hold what was there before", "conv/depthwise_pixels.py", "store(line, k * lanes, zero)", "store(line, k * lanes, load(line, k * lanes))", f"{DEPTHWISE_LAST}|{PLANES}"),
        Fault("last row of a band left out of a weight's gradient", "conv/depthwise_pixels.py", "range(rows // ROWS * ROWS, rows)", "range(rows // ROWS * ROWS, rows - 1)", f"{DEPTHWISE_LAST}|{PLANES}"),
        Fault("pixel beyond the right border is read", "conv/depthwise_there.py", "left + call.patch <= call.in2", "left + call.patch <= call.in2 + 1", f"{DEPTHWISE_LAST}|{PLANES}"),
    ),
    "causal": (
        Fault("state read from its end", "conv/causal_lines.py", "sequence * past)[i]", "sequence * past)[past - 1 - i]", f"{CAUSAL}|{OF_CAUSAL}"),
        Fault("state of a short sequence keeps its oldest positions", "conv/causal.py", "= state[..., new:]", "= state[..., : past - new]", f"{CAUSAL}|{OF_CAUSAL}"),
        Fault("state's cotangent to other positions of a short sequence", "conv/causal.py", "+= d_state[..., past - new :]", "+= d_state[..., :new]", f"{CAUSAL}|{OF_CAUSAL}"),
        Fault("state one position early", "conv/causal.py", "np.where(i >= p,", "np.where(i > p,", f"{CAUSAL_LAST}|{OF_CAUSAL}"),
        Fault("last position left out of a weight's gradient", "conv/causal_lines.py", "for i in range(at, count):\n        for tap", "for i in range(at, count - 1):\n        for tap", f"{CAUSAL}|{OF_CAUSAL}"),
        Fault("last example left out of a weight's gradient", "conv/causal_lines.py", "call.batch * (part + 1) // call.parts):", "call.batch * (part + 1) // call.parts - 1):", f"{CAUSAL}|{OF_CAUSAL}"),
        Fault("behind a cotangent stands what was there before", "conv/causal_lines.py", "if i < end else 0.0", "if i < end else memory[i]", f"{CAUSAL}|{OF_CAUSAL}"),
    ),
    "fft": (
        Fault("transform too short for the padding behind", "conv/fft.py", "o + k - 1) for", "o) for", f"{FFT}|{OF_FFT}"),
        Fault("padding before the image put behind it", "conv/fft.py", "[(b, 0) for b in problem.before]", "[(0, b) for b in problem.before]", f"{FFT}|{OF_FFT}"),
        Fault("kernel flipped", "conv/fft.py", "_kernels(problem, packed).conj()", "_kernels(problem, packed)", f"{FFT}|{OF_FFT}"),
        Fault("last channel left out", "conv/fft.py", "kernels[:, :, c] for c in range(problem.c)", "kernels[:, :, c] for c in range(max(1, problem.c - 1))", f"{FFT}|{OF_FFT}"),
        Fault("last example left out of a weight's gradient", "conv/fft.py", "for example in range(problem.batch):", "for example in range(problem.batch - 1):", f"{FFT}|{OF_FFT}"),
        Fault("gradient of the input begins in the padding", "conv/fft.py", "slice(b, b + n) for b, n in", "slice(0, n) for b, n in", f"{FFT}|{OF_FFT}"),
    ),
    "bias and activation": (
        Fault("no bias behind the last whole register", "conv/epilogue.py", "x = p[i] + (bias[0] if one_bias else bias[i])", "x = p[i]", f"{DEPTHWISE}|{FINISHED}"),
        Fault("last position left out of a bias's gradient", "conv/epilogue.py", "smaller((block + 1) * ROWS, rows)):", "smaller((block + 1) * ROWS, rows - 1)):", f"{oracle('conv2d', 'direct', LAST)}|{FINISHED}"),
        Fault("silu overwrites what its gradient is made of", "conv/epilogue.py", 'in {None, "relu"}', 'in {None, "relu", "silu"}', f"{DIRECT}|{OF_ALL}"),
        Fault("gradient of the activation missing behind the last whole register", "conv/epilogue.py", "c[i] = largest_of(before_activated(c, code, filled(c, a[i]), filled(c, b[i])))", "c[i] = b[i]", f"{DIRECT}|{FINISHED}"),
    ),
}  # fmt: skip

FAULTS = tuple(fault for faults in BY_ALGORITHM.values() for fault in faults)
