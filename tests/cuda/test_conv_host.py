"""Whole public calls of convolutions with arrays on a stand-in of a device, whose launches NumPy makes as their parameters say."""

import numpy as np
import pytest

pytest.importorskip("numba")

import refattn
import refattn_numba
from benchmarks.gpu_conv_battery import CONVOLUTIONS, OWN, candidate, own_cases
from refattn.testing import cases
from refattn.testing.checking import compare_case
from refattn.testing.precision import named_format
from refattn_numba.cuda import CudaError
from tests.cuda import conv_by_numpy, standins
from tests.cuda.test_host import StandIn

KINDS = tuple(standins.KINDS)
LARGEST = 20_000
SAMPLES = {
    (name, case.name): case
    for name in CONVOLUTIONS
    for case in cases(getattr(refattn, name))
    if case.arguments["x"].size < LARGEST and (name != "conv3d" or case.arguments["x"].size < LARGEST / 20)
}
CASES = {case.name: (name, case) for name, case in own_cases()}
WITH_ALL_LIBRARIES = ("reflected", "transposed, in groups", "depthwise 3x3", "more after than before")


def lying_last(x):
    """The same array, whose channels are the last axis in memory."""
    made = standins.to_device(np.moveaxis(x.a, 1, -1))
    return x.like(np.moveaxis(made.a, -1, 1))


@pytest.fixture
def recorder(monkeypatch):
    with standins.pretending(monkeypatch, conv_by_numpy.launch) as found:
        yield found


@pytest.fixture
def noted(monkeypatch):
    """No launch does anything."""
    with standins.pretending(monkeypatch) as found:
        yield found


def judged(name, case, dtype="float32", kind="torch", prepare=lambda x: x):
    found = list(compare_case(candidate(name, StandIn(kind), prepare), getattr(refattn, name), case, named_format(dtype)))
    assert [(r.what, r.error_over_budget, r.reason) for r in found if r.status == "fail"] == []
    assert any(r.status == "pass" for r in found)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_oracles_cases(recorder, name):
    for (mechanism, _), case in SAMPLES.items():
        if mechanism == name:
            judged(name, case)


@pytest.mark.parametrize("case", CASES)
def test_the_batterys_own_cases(recorder, case):
    judged(*CASES[case])


@pytest.mark.parametrize("case", CASES)
def test_channels_last_in_memory(recorder, case):
    """As PyTorch has it: the axes are the same, and so is the output's memory."""
    name, given = CASES[case]
    judged(name, given, "bfloat16", prepare=lying_last)
    x, weight = (standins.to_device(given.arguments[n], dtype="float16") for n in ("x", "weight"))
    options = {n: v for n, v in given.arguments.items() if n not in {"x", "weight", "bias"}}
    output, pullback = getattr(refattn_numba, name).vjp(lying_last(x), weight, **options)
    for made in (output, pullback(output)["x"]):
        assert np.moveaxis(made.a, 1, -1).flags.c_contiguous
    assert pullback(output)["weight"].a.flags.c_contiguous


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "torch"])
@pytest.mark.parametrize("case", WITH_ALL_LIBRARIES)
def test_every_library(recorder, kind, case):
    judged(*CASES[case], kind=kind)


LAYOUTS, ACTIVATIONS = ("channels_first", "channels_last"), (None, "relu", "silu", "gelu")
TOGETHER = [
    *(
        (case, layout, activation, "torch")
        for case in ("depthwise 3x3", "transposed, stride 2")
        for layout in LAYOUTS
        for activation in ACTIVATIONS
    ),
    *(("more after than before", layout, activation, kind) for layout in LAYOUTS for activation in ("relu", "silu") for kind in KINDS),
]


@pytest.mark.parametrize(("case", "layout", "activation", "kind"), TOGETHER)
def test_activations_and_layouts(recorder, case, layout, activation, kind):
    """Against the twin in main memory, to which the oracle's cases hold it."""
    name, found = CASES[case]
    given, random, is_last = dict(found.arguments), np.random.default_rng(1), layout == "channels_last"
    if is_last:
        given["x"] = np.ascontiguousarray(np.moveaxis(given["x"], 1, -1))
    given = {n: v.astype(np.float32) if isinstance(v, np.ndarray) else v for n, v in given.items()}
    given |= {"activation": activation, "layout": layout}
    wanted, exact = getattr(refattn_numba, name).vjp(**given)
    on_device = {n: standins.to_device(v, kind) if isinstance(v, np.ndarray) else v for n, v in given.items()}
    output, pullback = getattr(refattn_numba, name).vjp(**on_device)
    assert type(output) is standins.KINDS[kind]
    assert output.shape == wanted.shape
    assert output.a.flags.c_contiguous
    d = random.normal(size=wanted.shape).astype(np.float32)
    assert np.allclose(output.a, wanted, rtol=1e-5, atol=1e-4)
    assert np.allclose(getattr(refattn_numba, name)(**on_device).a, wanted, rtol=1e-5, atol=1e-4)
    if kind in {"cupy", "numba", "somebody"}:
        output[...] = np.nan  # which nobody tells
    grads = pullback(standins.to_device(d, kind))
    for n, g in exact(d).items():
        assert grads[n].shape == g.shape
        assert np.allclose(grads[n].a, g, rtol=1e-4, atol=2e-3), n


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("case", WITH_ALL_LIBRARIES)
def test_numbers_of_16_bits(recorder, dtype, case):
    judged(*CASES[case], dtype)


def operands(kind="torch", dtype="float32", **options):
    random = np.random.default_rng(0)
    return [standins.to_device(random.normal(size=size), kind, dtype=dtype, **options) for size in ((2, 8, 5, 6), (16, 8, 3, 3), (16,))]


def names(found):
    return [launch.kernel.name.partition("_float32")[0] for launch in found]


@pytest.mark.parametrize("kind", KINDS)
def test_results_are_of_the_callers_kind_on_his_device_and_stream(noted, kind):
    output, pullback = refattn_numba.conv2d.vjp(*operands(kind, device=1), padding=1)
    grads = pullback(output)
    for x in (output, *grads.values()):
        assert type(x) is standins.KINDS[kind]
        assert x.number == 1
    assert list(grads) == ["x", "weight", "bias"]
    assert {launch.device for launch in noted.launches} == {1}
    assert {launch.stream for launch in noted.launches} == {{"torch": 7, "cupy": 11}.get(kind, 0)}


@pytest.mark.parametrize("kind", KINDS)
def test_who_knows_no_streams_waits(noted, kind):
    output, pullback = refattn_numba.conv2d.vjp(*operands(kind))
    before = noted.synchronized
    pullback(output)
    assert (before, noted.synchronized) == ((1, 2) if kind in {"jax", "somebody"} else (0, 0))


def test_launches_with_channels_first(noted):
    """x, the weight and the output are moved; so are their gradients."""
    output, pullback = refattn_numba.conv2d.vjp(*operands(), padding=1)
    assert names(noted.launches) == ["conv_place", "conv_place", "conv_forward", "conv_place"]
    del noted.launches[:]
    pullback(output)
    assert names(noted.launches) == [
        "conv_place", "conv_input", "conv_place", "conv_weight", "conv_sum", "conv_place", "conv_bias", "conv_sum",
    ]  # fmt: skip


def test_nothing_is_moved_where_channels_are_last_in_memory(noted):
    x, weight, bias = operands()
    output, pullback = refattn_numba.conv2d.vjp(lying_last(x), lying_last(weight), bias, padding=1, activation="relu")
    assert names(noted.launches) == ["conv_forward"]
    assert noted.launches[0].arguments["activation"] == 1
    pullback(output)
    assert names(noted.launches[1:]) == ["conv_finish_back", "conv_input", "conv_weight", "conv_sum", "conv_bias", "conv_sum"]


def test_channels_on_their_own_have_kernels_of_their_own(noted):
    x = standins.to_device(np.ones((1, 5, 6, 8), np.float32))
    weight = standins.to_device(np.ones((8, 1, 3, 3), np.float32))
    output, pullback = refattn_numba.depthwise_conv2d.vjp(x, weight, layout="channels_last")
    pullback(output)
    assert names(noted.launches) == ["conv_place", "depthwise_forward", "depthwise_input", "depthwise_weight", "conv_sum", "conv_place"]


def test_steps_of_the_callers_arrays_are_passed_on(noted):
    """Every second example of an array with channels last, cut to some of its columns."""
    x = standins.to_device(np.ones((4, 5, 9, 8), np.float32))
    _, weight, _ = operands()
    refattn_numba.conv2d(x.like(x.a[::2, :, 1:7]), weight, layout="channels_last")
    given = noted.launches[-1].arguments
    assert given["x"] == x.a.ctypes.data + 8 * 4
    assert [given[f"x_{axis}"] for axis in ("batch", "d", "h", "w")] == [720, 0, 72, 8]
    assert given["in_w"] == 6


@pytest.mark.parametrize(("which", "name"), [(0, "x"), (1, "weight"), (2, "output")])
def test_a_tensor_that_was_written_to_is_noticed(noted, which, name):
    x, weight, bias = operands()
    x = lying_last(x)
    output, pullback = refattn_numba.conv2d.vjp(x, weight, bias, activation="relu")
    (x, weight, output)[which][...] = 0
    with pytest.raises(ValueError, match=f"{name} was written to after the call whose pullback reads it"):
        pullback(output)


BAD = [(name, bad.name, bad) for name in CONVOLUTIONS for bad in getattr(refattn, name).spec.bad_calls(refattn._core.Random(0))]


@pytest.mark.parametrize(("name", "bad"), [(name, bad) for name, _, bad in BAD], ids=[f"{n}-{c}" for n, c, _ in BAD])
def test_bad_calls_are_refused_in_the_same_words_before_any_launch(noted, name, bad):
    given = {n: standins.to_device(x, dtype="float32") if isinstance(x, np.ndarray) else x for n, x in bad.arguments.items()}
    with pytest.raises(bad.error, match=bad.match) as on_device:
        getattr(refattn_numba, name)(**given)
    with pytest.raises(bad.error) as in_memory:
        getattr(refattn_numba, name)(**bad.arguments)
    assert str(on_device.value) == str(in_memory.value)
    assert not noted.launches


def on(shape, **options):
    return standins.to_device(np.ones(shape, np.float32), **options)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda: {"weight": np.ones((16, 8, 3, 3))}, TypeError, "weight is a numpy.ndarray in main memory, but x is a torch.Tensor on a device"),
        (lambda: {"bias": on(16, device=1)}, TypeError, "bias lies on device 1, but x on device 0"),
        (lambda: {"weight": on((16, 8, 3, 3), dtype="float16")}, TypeError, "weight is float16, but x is float32: on a device both"),
        (lambda: {n: on(s, dtype="float64") for n, s in (("x", (2, 8, 5, 6)), ("weight", (16, 8, 3, 3)))}, TypeError, "x is float64, but on a device must be"),
        (lambda: {"algorithm": "winograd"}, ValueError, "algorithm is 'winograd', but on a device must be 'auto'"),
        (lambda: {"algorithm": "wrong"}, ValueError, "algorithm is 'wrong', but must be {"),
        (lambda: {"activation": "tanh"}, ValueError, "activation is 'tanh', but must be"),
        (lambda: {"x": on((2, 5, 6, 9)), "layout": "channels_last"}, ValueError, "9 in x"),
        (lambda: {"x": on((2, 5)), "layout": "channels_last"}, ValueError, r"conv2d: x is \(2, 5\), but must be an array"),
        (lambda: {"padding": 1 << 29, "stride": 1 << 29}, ValueError, "reach over 1610612736 positions, but on a device must reach over fewer than"),
    ],
)  # fmt: skip
def test_what_is_refused_before_any_launch(noted, change, error, match):
    x, weight, bias = operands()
    with pytest.raises(error, match=match):
        refattn_numba.conv2d(**{"x": x, "weight": weight, "bias": bias, **change()})
    assert not noted.launches


def test_too_many_positions_are_refused(noted):
    x, weight, _ = operands()
    many = x.like(np.broadcast_to(x.a[:1], (1 << 26, 8, 5, 6)))
    with pytest.raises(ValueError, match="x has 2013265920 positions, but on a device must have fewer than 1073741824: cut the batch"):
        refattn_numba.conv2d(many, weight)


def test_strict_accuracy_is_what_there_is(recorder):
    x, weight, _ = operands()
    assert np.array_equal(refattn_numba.conv2d(x, weight, accuracy="strict").a, refattn_numba.conv2d(x, weight).a)


def test_plans_are_for_main_memory(noted):
    x, weight, bias = operands()
    with pytest.raises(TypeError, match=r"conv2d.plan: weight lies on a device, but must be in main memory: call the function instead"):
        refattn_numba.conv2d.plan(weight)
    with pytest.raises(TypeError, match=r"conv2d.plan: bias lies on a device"):
        refattn_numba.conv2d.plan(weight.a, bias)
    with pytest.raises(TypeError, match=r"weight is a numpy\.ndarray in main memory, but x is a torch\.Tensor on a device"):
        refattn_numba.conv2d.plan(weight.a)(x)


def test_a_cotangent_may_be_absent_and_lie_as_it_likes(recorder):
    x, weight, bias = operands()
    output, pullback = refattn_numba.conv2d.vjp(x, weight, bias, padding=1)
    d = standins.to_device(np.random.default_rng(1).normal(size=output.shape))
    for name, grad in pullback().items():
        assert not grad.a.any(), name
    wanted = pullback(d)
    for name, grad in pullback(lying_last(d)).items():
        assert np.array_equal(grad.a, wanted[name].a)


def test_an_old_device_is_refused(monkeypatch):
    with standins.pretending(monkeypatch, capability=(7, 5)), pytest.raises(CudaError, match=r"compute capability 7.5"):
        refattn_numba.conv2d(*operands())


def test_own_cases_take_kernels_past_their_tiles():
    assert len(CASES) == len(OWN)
    assert {name for name, _ in CASES.values()} >= set(CONVOLUTIONS) - {"conv_transpose1d", "conv_transpose3d", "separable_conv2d"}


def test_explain_names_what_a_call_takes(monkeypatch):
    from refattn_numba.cuda import cache, explain_convolution
    from refattn_numba.cuda.kernel import Cubin

    monkeypatch.setattr(cache, "cubin_of", lambda kernel, architecture: Cubin(b"", kernel.name, architecture, 200, 16, 0))
    x, weight, bias = (np.ones(shape, np.float16) for shape in ((2, 6, 6, 64), (64, 64, 3, 3), 64))
    found = explain_convolution(refattn_numba.conv2d, x, weight, bias, layout="channels_last", activation="silu", architecture="sm_80")
    assert [row.face for row in found] == [
        "conv_place", "conv_forward", "conv_finish", "conv_finish_back", "conv_input", "conv_weight", "conv_sum", "conv_bias",
    ]  # fmt: skip
    assert (found[1].kernel, found[1].architecture, found[1].registers) == ("conv_forward_float16_64", "sm_80", 200)
    with standins.pretending(monkeypatch) as recorder:
        x, weight, _ = operands(dtype="bfloat16")
        of_device = explain_convolution(refattn_numba.conv2d, lying_last(x), lying_last(weight))
        assert not recorder.launches
        _, pullback = refattn_numba.conv2d.vjp(lying_last(x), lying_last(weight))
        pullback(lying_last(standins.to_device(np.ones((2, 16, 3, 4)), dtype="bfloat16")))
    assert [row.kernel for row in of_device] == list(dict.fromkeys(launch.kernel.name for launch in recorder.launches))
    assert of_device[0].architecture == "sm_90a"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"architecture": None}, "architecture is None, but must be one of sm_80, sm_86, sm_89, sm_90a where x is in main memory"),
        ({"architecture": "sm_70"}, "architecture is 'sm_70'"),
        ({"stride": 0}, "stride is 0, but must be positive int"),
        ({"groups": 2}, "in_group|groups"),
    ],
)
def test_what_explain_refuses(change, match):
    from refattn_numba.cuda import explain_convolution

    with pytest.raises(ValueError, match=match):
        explain_convolution(refattn_numba.conv2d, np.ones((1, 3, 4, 4)), np.ones((2, 3, 3, 3)), **{"architecture": "sm_80", **change})
