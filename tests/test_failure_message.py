"""What a failed check says: where, how far, which convention, and a line that repeats it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import refattn
from refattn import testing
from refattn.__main__ import main
from refattn.testing.attribution import key_tiles
from refattn.testing.candidates import as_candidate
from refattn.testing.checking import compare_case
from refattn.testing.patterns import ratios
from refattn.testing.precision import named_format
from tests.tiled_kernel import TiledAttention

ATTENTION = refattn.scaled_dot_product_attention


def flipped(x, weight, bias=None, *, stride=1, padding=0):
    return refattn.conv2d(x, weight[..., ::-1, ::-1], bias, stride=stride, padding=padding)


def flipped_gradients(d_output, **arguments):
    grads = dict(refattn.conv2d.vjp(**arguments)[1](d_output))
    grads["weight"] = grads["weight"][..., ::-1, ::-1]
    return grads


def run(line, folder):
    """What a line that somebody pastes into a shell does there, with this Python and this package."""
    line = line.replace("python -c", f"{sys.executable} -c").replace("refattn check", f"{sys.executable} -m refattn check")
    package = str(Path(refattn.__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": f"{package}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    return subprocess.run(line, shell=True, cwd=folder, env=environment, capture_output=True, text=True)


def test_a_message_has_all_that_is_known():
    with pytest.raises(testing.RefattnAssertionError) as caught:
        testing.check(flipped, refattn.conv2d, case="plain").raise_if_wrong()
    text = str(caught.value)
    assert "1 of 1 comparisons are wrong" in text
    assert "conv2d: output matches if the kernel is flipped: a true convolution, not a cross-correlation" in text
    assert re.search(r"conv2d, plain, float32: output differs at \d+ of \d+ elements: .* times its budget", text)
    assert re.search(r"worst at \(\d, \d, \d, \d\): got .*, expected .*, error", text)
    assert "to repeat the first of them:\n  " in text
    report = testing.check(flipped, refattn.conv2d, case="plain")
    assert "matches if" not in report.message(explain=False)
    assert testing.check(refattn.conv2d, refattn.conv2d, case="plain").message() == ""


def test_the_line_of_a_check_runs_and_fails_again():
    report = testing.check(flipped, refattn.conv2d, gradients=flipped_gradients, supports={"padding", "stride"}, case="padding alone")
    (line,) = {r.reproduce for r in report.failures}
    done = run(line, Path.cwd())  # where the line is printed
    assert done.returncode == 1, done.stderr
    assert "conv2d, padding alone, float32: d_weight differs" in done.stderr
    assert "RefattnAssertionError" in done.stderr


def test_the_line_of_the_command_runs_and_fails_again(tmp_path, monkeypatch, capsys):
    source = "import refattn\n\ndef conv(x, weight, bias=None):\n    return refattn.conv2d(x, weight[..., ::-1], bias)\n"
    (tmp_path / "my_kernels.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["check", "my_kernels:conv", "conv2d", "--dtype", "float32"]) == 1
    out = capsys.readouterr().out
    assert "conv2d: output matches if the kernel is flipped along its last axis alone" in out
    line = out.split("to repeat the first case that is wrong:\n")[1].splitlines()[0].strip()
    assert line.startswith("refattn check my_kernels:conv conv2d --case ")
    done = run(line, tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stdout.rstrip().endswith("my_kernels:conv: wrong")
    assert done.stdout.count("fail ") == 1


def test_what_no_other_process_can_import_says_so():
    report = testing.check(lambda x: refattn.softmax(x) * 2, refattn.softmax)
    assert {r.reproduce for r in report.failures if r.case == "plain"} == {"the same call of refattn.testing.check, with case='plain'"}


def test_one_case_and_its_name(capsys):
    assert {r.case for r in testing.check(ATTENTION, ATTENTION, case="needle, causal, 131x131").results} == {"needle, causal, 131x131"}
    with pytest.raises(
        ValueError, match=r"case is 'needle', but scaled_dot_product_attention has no such case at level 'quick'; close to it: "
    ):
        testing.check(ATTENTION, ATTENTION, case="needle")
    assert main(["check", "refattn:softmax", "softmax", "--case", "unheard of"]) == 2
    assert "case is 'unheard of', but softmax has no such case" in capsys.readouterr().err


def test_only_the_first_failing_cases_keep_their_arrays():
    results = testing.check(lambda x: refattn.softmax(x) * 2, refattn.softmax).results
    kept = testing.evidence.few([*results, *results], most=1)
    assert [r.evidence is not None for r in kept] == [True, *(len(results) - 1) * [False]] * 2
    assert len(kept) == 2 * len(results)


def test_a_report_explains_all_its_cases():
    kernel = as_candidate(TiledAttention("float32", fault="causal from the upper left"), ATTENTION)
    chosen = [
        c for c in testing.cases(ATTENTION) if c.name in {"causal", "2 queries, 17 keys of 128, values of 16, causal", "random, 131x200"}
    ]
    report = testing.Report([r for c in chosen for r in compare_case(kernel, ATTENTION, c, named_format("float32"))])
    (found,) = report.explain().values()
    (match,) = found.matches
    assert match.said == "it is aligned at the upper left: causal mask and window"
    assert match.what == ("output",)
    assert len(match.cases) == len(found.cases) == 3
    assert found.conventions == (f"output matches if {match.said} (in {len(found.cases)} of {len(found.cases)} cases)",)


FAULTS = {
    "key heads interleaved": "query head h reads key and value head h % kv_heads (tiled, not interleaved)",
    "softcap forgotten": "the soft cap is missing",
    "sink forgotten": "the sinks are missing",
    "causal off by one": "each query sees one key beyond the causal edge",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_that_are_conventions_are_named(fault):
    pytest.importorskip("ml_dtypes")
    kernel = TiledAttention("bfloat16", fault=fault)
    names = {"softcap": "bias per query", "sink": "sinks", "causal": "causal edge, 131x131", "key": "grouped"}
    case = names[fault.split()[0]]
    found = testing.check(kernel, ATTENTION, dtype="bfloat16", case=case).explain()[ATTENTION.__name__]
    assert FAULTS[fault] in found.names, found


@pytest.mark.parametrize(
    ("fault", "case"), [("scale 2% high", "grouped"), ("one element off", "sinks"), ("accumulator in low precision", "many keys, 131x200")]
)
def test_planted_faults_that_are_none_have_no_name(fault, case):
    pytest.importorskip("ml_dtypes")
    report = testing.check(TiledAttention("bfloat16", fault=fault), ATTENTION, dtype="bfloat16", case=case)
    (found,) = report.explain().values()
    assert found.wrong == ("output",)
    assert not found.matches, found


def test_the_keys_of_an_error_are_found():
    report = testing.check(TiledAttention("float32", fault="last tile dropped"), ATTENTION, case="exact scores, 131x200")
    (result,) = report.failures
    tiles = key_tiles(result.evidence, ratios(*result.evidence.arrays["output"]))
    assert tiles.ratio.shape == (1, 4, 9, 13)  # of 16 queries and of 16 keys
    assert (tiles.query_tile, tiles.key_tile) == (16, 16)
    assert (tiles.ratio[..., :12].mean(axis=-1) < 0.5 * tiles.ratio[..., 12]).all()  # the last 8 keys are what is missing
    assert (tiles.allowed == 1).all()


def page_data(html):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*)</script>', html)[1])


def test_the_page_holds_the_numbers(tmp_path):
    kernel = TiledAttention("float32", fault="one element off")
    report = testing.check(kernel, ATTENTION, case="exact scores, causal, 131x131")
    html = report.to_html("What <it> found")
    assert "<h1>What &lt;it&gt; found</h1>" in html
    assert "only head 0 of 4 is wrong (the first)".capitalize() in html
    ((tiles, heads, whole),) = page_data(html)["pictures"]
    assert (heads["rows"], heads["columns"]) == (4, 131)
    wrong = [i for i, x in enumerate(heads["panels"][0]["ratios"]) if x > 1]
    assert wrong == [131 // 2]
    assert heads["panels"][0]["ratios"][wrong[0]] == pytest.approx(report.failures[0].error_over_budget, rel=0.01)
    assert whole["axes"] == [{"one": "query", "many": "queries"}, {"one": "channel", "many": "channels"}]
    assert [p["name"] for p in tiles["panels"]] == ["head 0", "head 1", "head 2", "head 3"]
    assert min(tiles["panels"][0]["allowed"]) == 0  # above the diagonal


def test_the_page_of_a_report_without_failures_or_arrays():
    right = testing.check(refattn.softmax, refattn.softmax)
    assert "<dd>right</dd>" in right.to_html()
    wrong = testing.check(lambda x: x[..., :1], refattn.softmax)
    assert "has shape (2, 3, 1), expected" in wrong.to_html()
    small = testing.Report([r.without_evidence() for r in wrong.results])
    assert "has shape (2, 3, 1), expected" in small.to_html()
    assert small.explain() == {}


def test_numbers_that_are_not_finite_are_drawn():
    def kernel(x):
        y = refattn.softmax(x)
        y[0, 0] = np.nan
        return y

    html = testing.check(kernel, refattn.softmax, case="plain").to_html()
    assert "infinitely far beyond its budget" in html
    assert None in page_data(html)["pictures"][0][-1]["panels"][0]["ratios"]


def test_the_command_writes_a_page(tmp_path, capsys):
    path = tmp_path / "report.html"
    assert main(["check", f"{__name__}:flipped", "conv2d", "--report", str(path)]) == 1
    html = path.read_text(encoding="utf-8")
    assert html.startswith("<!doctype html>")
    assert f"refattn check {__name__}:flipped conv2d --case plain" in html
    assert "http" not in re.sub(r'http-equiv|"http://www.w3.org/[^"]*"', "", html)
