"""The contenders of the convolution suite compute the same, on small problems of every kind that is measured."""

from __future__ import annotations

from functools import partial
from itertools import islice

import numpy as np
import pytest

from benchmarks import conv_peers
from benchmarks.agreement import errors, refuse_difference
from benchmarks.cases import installed, suite
from benchmarks.conv import one_face
from benchmarks.conv_causal import causal
from benchmarks.conv_layer import FACES, Layer
from benchmarks.conv_networks import convnext_tiny, network, operations, resnet50

pytest.importorskip("numba")

LAYERS = {
    "3x3": Layer(2, 10, 12, (6, 6), 3, padding=1),
    "1x1": Layer(2, 12, 10, (5, 5), 1),
    "stride": Layer(2, 3, 9, (11, 11), 7, stride=2, padding=3),
    "depthwise": Layer(2, 10, 10, (6, 6), 5, padding=2, groups=10),
    "channels last": Layer(2, 10, 10, (6, 6), 3, padding=1, groups=10, channels_last=True),
    "1-D": Layer(2, 9, 10, (12,), 3, padding=1),
    "3-D": Layer(1, 9, 10, (4, 5, 5), 3, padding=1),
}
KINDS = {
    **{f"{face}, {name}": partial(one_face, layer, face) for name, layer in LAYERS.items() for face in FACES},
    "strict": partial(one_face, LAYERS["3x3"], "forward", accuracy="strict"),
    **{f"causal, {direction}": partial(causal, 2, 10, 12, 4, direction) for direction in ("forward", "backward")},
}


@pytest.mark.parametrize("kind", KINDS)
def test_contenders_agree_and_errors_are_those_of_rounding(monkeypatch, kind):
    if "3x3" not in kind:  # its sessions take as long as all the rest
        monkeypatch.setattr(conv_peers, "installed", lambda name: installed(name) if name == "torch" else None)
    calls = dict(KINDS[kind]())
    exact = calls.pop("exact")()
    assert next(iter(calls)) == "refattn_numba"
    results = {name: call() for name, call in calls.items()}
    refuse_difference(results, 1e-5)
    assert all(0 <= rms <= largest * 4 < 4e-5 for largest, rms in (errors(exact, r) for r in results.values()))


def test_exact_results_are_corners_in_float64():
    for face in FACES:
        wanted = one_face(LAYERS["3x3"], face)["exact"]()
        assert wanted.dtype == np.float64
        assert wanted.shape[:2] == ((8, 8) if face == "dW" else (1, 8))


@pytest.mark.parametrize("layers", [resnet50, convnext_tiny])
def test_contenders_of_a_network_agree(layers):
    some = partial(lambda: islice(layers(1, image=32, width=8), 6))
    results = {name: call() for name, call in network(some).items()}
    assert len(results["refattn_numba"]) == 3 * len(set(some())) - 1
    refuse_difference(results, 1e-5)


def test_networks_have_the_convolutions_that_their_papers_give():
    assert len(list(resnet50(1))) == 53
    assert len(list(convnext_tiny(1))) == 4 + 3 * (3 + 3 + 9 + 3)
    weights = [sum(layer.filters * layer.channels // layer.groups * layer.kernel**2 for layer in of(1)) for of in (resnet50, convnext_tiny)]
    # torchvision's 25,557,032 and 28,589,128 less the classifier, biases, normalizations and, in ConvNeXt, scales of layers
    assert weights == [25_557_032 - 2_049_000 - 53_120, 28_589_128 - 769_000 - 59_616 - 4_512]
    without_padding = operations(partial(resnet50, 1)) / 3
    assert 7.4e9 < without_padding < 2 * 4.1e9


def test_taps_on_padding_are_no_work():
    full = Layer(1, 1, 1, (5, 5), 3)
    assert full.operations == 2 * 9 * 3 * 3
    assert Layer(1, 1, 1, (7, 7), 3, padding=1).operations == 2 * (7 * 3 - 2) ** 2
    layer = Layer(2, 4, 4, (5,), 3, groups=2, channels_last=True)
    x, weight, dy = layer.drawn()[1:]
    assert (x.shape, weight.shape, dy.shape) == ((2, 4, 5), (4, 2, 3), (2, 4, 3))
    assert layer.least_bytes == x.nbytes + weight.nbytes + dy.nbytes
    assert np.moveaxis(x, 1, -1).flags.c_contiguous


def test_every_row_has_work_and_the_targets_have_floors():
    rows = suite("conv")
    assert len({case.name for case in rows}) == len(rows)
    assert all(case.work is not None and case.floor is not None for case in rows)
    floors = {case.name: case.floor for case in rows}
    assert [floors[f"{face}, 3x3, 64 to 64, 56 px"] for face in FACES] == [1.5, 1.4, 1.05]
    assert [floors[f"{face}, 3x3, 512 to 512, 7 px"] for face in FACES] == [1.05, 0.95, 0.9]
    assert [floors[f"{face}, 7x7 stride 2, 3 to 64, 224 px"] for face in FACES] == [1.0, 3.0, 1.05]
    assert [floors[f"{face}, depthwise 7x7, 96, 56 px"] for face in FACES] == [1.05, 1.2, 1.5]
    assert sum(case.quick for case in rows) <= 10
