"""Kernels that are wrong on purpose are wrong, honest ones are right, and `refattn mutants` tells which a test lets through."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import refattn
from docs import faults as page
from docs.rules import PROJECTS
from refattn import testing
from refattn.__main__ import main
from refattn._core.mechanism import outputs
from refattn.testing import faulty
from refattn.testing.battery import Case
from refattn.testing.candidates import as_candidate
from refattn.testing.checking import compare_case
from refattn.testing.faulty.replacing import Replacement
from refattn.testing.precision import named_format

TILES = {"attention": 4, "convolution": 4, "linear": 2}
"""So small that the mechanisms' own samples have several tiles, and a last one that is shorter."""
FAULTS = [pytest.param(f, id=f"{f.family}, {f.name}") for f in faulty.faults()]


def extra(name):
    """What samples lack: many keys, low scores, NaN in masked places, 3 x 3 kernels, many channels."""
    random = np.random.default_rng(0)
    if name.startswith("scaled_dot"):
        q, k, v = (np.asarray(random.normal(size=(2, 2, n, 9)) * 2) for n in (7, 302, 302))
        yield {"query": q, "key": k, "value": np.abs(v), "mask": random.random((2, 1, 302)) < 0.5}
        yield {"query": np.full_like(q, 400.0), "key": -100 - np.abs(k), "value": v, "causal": True, "align": "lower_right"}
        yield {"query": q, "key": k, "value": v, "causal": True, "align": "lower_right", "bias": random.normal(size=(2, 7, 302))}
        k, v = k.copy(), v.copy()
        k[..., 5, :] = v[..., 5, :] = np.nan
        yield {"query": q, "key": k, "value": v, "mask": np.arange(302) != 5}
    elif name == "conv2d":
        x = random.normal(size=(2, 12, 6, 23)) * 3
        yield {"x": x, "weight": random.normal(size=(4, 6, 3, 3)), "groups": 2, "bias": random.normal(size=4)}
        yield {"x": x, "weight": random.normal(size=(4, 12, 3, 3)), "padding": ((0, 1), (2, 1)), "stride": (2, 3)}
    elif name == "linear_attention":
        q, k, v = (np.abs(random.normal(size=(1, 1, 300, 4))) for _ in range(3))
        yield {"query": q, "key": k, "value": v, "causal": True, "normalize": False}


def difference(broken, right, call, target):
    """The largest change of an output or gradient, in units of the format, relative to its largest element."""
    rounded = {n: target.round(x) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x for n, x in call.items()}
    (y, pullback), (z, exact_pullback) = broken.vjp(**rounded), right.vjp(**rounded)
    ds = [target.round(d) for d in testing.cotangents(tuple(np.asarray(x, float) for x in outputs(z)))]
    got, exact = (dict(enumerate(outputs(made))) | back(*ds) for made, back in ((y, pullback), (z, exact_pullback)))
    assert {n: x.shape for n, x in got.items()} == {n: x.shape for n, x in exact.items()}
    return max(_far(got[n], exact[n]) for n in exact) / target.unit


def _far(got, exact):
    same = (got == exact) | (np.isnan(got) & np.isnan(exact))
    with np.errstate(all="ignore"):
        far = np.where(same, 0, np.abs(got - exact)).max(initial=0) / max(np.abs(exact[np.isfinite(exact)]).max(initial=0), 1e-30)
    return far if np.isfinite(far) else np.inf


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_changes_more_than_rounding_does(fault):
    target = named_format("bfloat16")
    for name in (n for n in faulty.MECHANISMS if fault in faulty.faults(n)):
        broken, right = (faulty.kernel(name, f, "bfloat16", tile=TILES[fault.family]) for f in (fault, None))
        samples = (s.arguments for s in testing.samples(getattr(refattn, name)))
        usable = (c for c in itertools.chain(samples, extra(name)) if not set(broken.unsupported) & set(c))
        if any(difference(broken, right, call, target) > 2 for call in usable):
            return
    raise AssertionError(f"{fault.name} changes nothing that can be seen")


@pytest.mark.parametrize("name", faulty.MECHANISMS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_honest_kernels_pass_on_samples(name, dtype):
    m, kind = getattr(refattn, name), faulty.MECHANISMS[name]
    for (label, kernel), sample in zip(
        itertools.cycle(faulty.honest(name, dtype, tile=TILES[kind.family])), testing.samples(m), strict=False
    ):
        results = list(compare_case(as_candidate(kernel, m), m, Case(sample.name, dict(sample.arguments)), named_format(dtype)))
        assert [str(r) for r in results if r.status == "fail"] == [], label


def test_there_are_enough_and_each_says_what_it_is():
    count = {family: len(faulty.faults(family=family)) for family in ("attention", "convolution", "linear")}
    assert count["attention"] >= 40
    assert count["convolution"] >= 20
    assert count["linear"] >= 10
    assert len(faulty.faults(family="attention", direction="backward")) >= 15
    for family in count:
        found = faulty.faults(family=family)
        assert len({f.name for f in found}) == len(found)
    for f in faulty.faults():
        assert f.what.endswith(".")
        assert "\n" not in f.what
        kind = next(kind for kind in faulty.MECHANISMS.values() if kind.family == f.family)
        assert all(callable(getattr(kind, method)) for method in f.change)
        assert set(f.mechanisms) <= faulty.MECHANISMS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_check_finds_every_fault(fault):
    assert any(page.found_by_check(fault.name, fault.family, dtype) for dtype in page.FORMATS)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100))
def test_check_refuses_no_honest_kernel(seed):
    assert page.refused_by_check(seed) == []


def test_the_catalogue_refuses_what_it_does_not_have():
    with pytest.raises(LookupError, match="no kernels of 'softmax' are made"):
        faulty.kernel("softmax")
    with pytest.raises(LookupError, match="conv2d has no fault 'sink forgotten'"):
        faulty.kernel("conv2d", "sink forgotten")
    with pytest.raises(LookupError, match="has no fault 'state ignored'"):
        faulty.kernel("conv2d", "state ignored")  # of causal_conv1d alone


@pytest.mark.parametrize("name", ["MLX", "fla"])
def test_the_page_is_what_is_measured(name):
    project = next(p for p in PROJECTS if p.name == name)
    found = page.of_project(project)
    (row,) = [line for line in page.PAGE.read_text("utf-8").splitlines() if line.startswith(f"| {name} |")]
    assert row in list(page.table([found]))
    assert found.accepted
    assert len(found.accepted) < len(found.shown)


KERNEL = """
import numpy as np

def attention(q, k, v, is_causal=False, block=64, out=None):
    raise AssertionError("the original is never called")
"""
TEST = """
import numpy as np
import refattn
from mine import attention

rng = np.random.default_rng(0)
q, k, v = (rng.normal(size=(1, 2, 40, 16)).astype(np.float32) for _ in range(3))
exact = refattn.scaled_dot_product_attention(q, k, v, causal=True)
got = attention(q, k, v, True)
assert got.dtype == np.float32
assert np.abs(got - exact).max() < TOLERANCE
"""
NAMES = ["q=query", "k=key", "v=value", "is_causal=causal"]


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(KERNEL)
    (tmp_path / "it.py").write_text(TEST.replace("TOLERANCE", "0.1"))
    (tmp_path / "strict.py").write_text(TEST.replace("TOLERANCE", "1e-12"))
    (tmp_path / "other.py").write_text("import mine\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(refattn.__file__).parent.parent))
    return tmp_path


def mutants(*more, names=NAMES):
    arguments = [x for pair in names for x in ("--argument", pair)]
    return main(["mutants", "--replace", "mine:attention", "--as", "scaled_dot_product_attention", *arguments, *more])


def test_mutants_that_survive_are_told_from_those_that_are_caught_or_not_exercised(mine, capsys):
    only = ["--only", "scale 2 percent high", "--only", "causal one key too many", "--only", "sink forgotten", "--tile", "16"]
    assert mutants(*only, "--json", "--jobs", "2", "--", "python", "it.py") == 1
    found = json.loads(capsys.readouterr().out)
    assert [t["verdict"] for t in found["honest"]] == ["accepted"] * 3
    verdicts = {t["name"]: t["verdict"] for t in found["faults"]}
    assert verdicts == {
        "scale 2 percent high": "survived",
        "causal one key too many": "caught",
        "causal one key too many in backward": "not exercised",
        "sink forgotten": "not exercised",
    }
    survivor = found["faults"][0]
    assert survivor["name"] == "scale 2 percent high"
    assert 1e-4 < survivor["changes"]["output"] < 1e-1
    assert found["counts"] == {"caught": 1, "survived": 1, "not exercised": 2}


def test_a_command_that_catches_all_is_status_0(mine, capsys):
    assert mutants("--only", "causal one key too many", "--direction", "forward", "--", sys.executable, "it.py") == 0
    assert capsys.readouterr().out == "1 faults changed what the function returned: 1 caught, 0 survived\n"


def test_a_command_that_refuses_honest_kernels_is_status_2(mine, capsys):
    assert mutants("--", "python", "strict.py") == 2
    out = capsys.readouterr().out
    assert "refuses an honest kernel" in out
    assert "AssertionError" in out


def test_a_command_that_never_calls_the_function_is_status_2(mine, capsys):
    assert mutants("--", "python", "other.py") == 2
    assert "never calls the function" in capsys.readouterr().out


def test_a_command_that_hangs_is_stopped(mine, capsys):
    (mine / "hangs.py").write_text("import time, mine\ntime.sleep(600)\n")
    assert mutants("--timeout", "3", "--", "python", "hangs.py") == 2
    assert "it was stopped after" in capsys.readouterr().out


def test_an_argument_that_is_not_known_is_named(mine, capsys):
    (mine / "it.py").write_text(TEST.replace("TOLERANCE", "1").replace("k, v, True", "k, v, True, 32"))
    assert mutants("--", "python", "it.py") == 2
    assert "'block' is no argument of scaled_dot_product_attention: say --argument block=NAME" in capsys.readouterr().out
    assert mutants("--only", "scale forgotten", "--", "python", "it.py", names=[*NAMES, "block="]) in {0, 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--as", "conv2d", "--", "true"], "--replace is missing"),
        (["--replace", "a:b", "--", "true"], "--as is missing"),
        (["--replace", "a.b", "--as", "conv2d", "--", "true"], "--replace is 'a.b', but must be MODULE:FUNCTION"),
        (["--replace", "a:b", "--as", "conv2d"], "no command: give one after --"),
        (["--replace", "a:b", "--as", "conv2d", "--", "no_such_command"], "no such command"),
        (["--replace", "a:b", "--as", "conv2d", "--argument", "x", "--", "true"], "--argument is 'x'"),
        (["--replace", "a:b", "--as", "conv2d", "--option", "causal=1", "--", "true"], "--option names 'causal', which conv2d"),
        (["--replace", "a:b", "--as", "conv2d", "--only", "sinks", "--", "true"], "no fault of conv2d has 'sinks' in its name"),
    ],
)
def test_what_cannot_run_is_status_2_and_one_line(arguments, message, capsys):
    assert main(["mutants", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_the_list(capsys):
    assert main(["mutants", "--list", "--as", "causal_conv1d"]) == 0
    out = capsys.readouterr().out
    assert "state ignored" in out
    assert f"{len(faulty.faults('causal_conv1d'))} faults" in out
    assert main(["mutants", "--list", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == len(faulty.faults())


def test_another_sitecustomize_still_runs(mine):
    (mine / "theirs").mkdir()
    (mine / "theirs" / "sitecustomize.py").write_text("import builtins\nbuiltins.theirs = True\n")
    startup = Path(faulty.__file__).parent / "startup"
    environment = {"PYTHONPATH": f"{startup}:{mine / 'theirs'}"}
    code = "import sys; print(theirs, any('startup' in p for p in sys.path), 'refattn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False", "False"]


def planted(tmp_path, **more):
    return {
        "mechanism": "scaled_dot_product_attention",
        "fault": None,
        "honest": 0,
        "dtype": None,
        "tile": 0,
        "arguments": {},
        "options": {},
        "layout": None,
        "record": str(tmp_path / "record"),
        **more,
    }


def test_tensors_go_through_autograd(tmp_path):
    torch = pytest.importorskip("torch")

    def original(query, key, value, *, causal=False): ...

    q, k, v = (torch.randn(2, 5, 2, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    y = Replacement(original, planted(tmp_path, layout="bshd")).function()(q, k, v, causal=True)
    exact = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True).transpose(1, 2)
    assert y.dtype == torch.float64
    torch.testing.assert_close(y, exact)
    d = torch.randn_like(y)
    for got, want in zip(torch.autograd.grad(y, (q, k, v), d), torch.autograd.grad(exact, (q, k, v), d), strict=True):
        torch.testing.assert_close(got, want)
    half = Replacement(original, planted(tmp_path)).function()(*(x.detach().bfloat16() for x in (q, k, v)))
    assert half.dtype == torch.bfloat16


def test_a_fault_of_the_gradient_is_recorded_when_gradients_are_asked_for(tmp_path):
    torch = pytest.importorskip("torch")

    def original(query, key, value): ...

    q = torch.randn(1, 1, 6, 4, requires_grad=True)
    y = Replacement(original, planted(tmp_path, fault="delta missing")).function()(q, q, q)
    lines = [json.loads(line) for line in (tmp_path / "record").read_text().splitlines()]
    assert lines == [["called", 0.0]]
    (y**2).sum().backward()
    changed = {what for what, _ in map(json.loads, (tmp_path / "record").read_text().splitlines())}
    assert changed == {"called", "d_query", "d_key"}


def test_options_are_given_in_every_call(tmp_path):
    def original(query, key, value): ...

    x = np.random.default_rng(0).normal(size=(1, 1, 3, 4))
    function = Replacement(original, planted(tmp_path, options={"causal": True})).function()
    np.testing.assert_allclose(function(x, x, x), refattn.scaled_dot_product_attention(x, x, x, causal=True))
    assert function.__name__ == "original"
