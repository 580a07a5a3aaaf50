"""Golden files: the same bytes each time, what the check would say, and no folder that leads elsewhere."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refattn
from refattn import testing
from refattn.__main__ import main, parser
from refattn._core.mechanism import outputs
from refattn.testing.battery import Case
from refattn.testing.bits import stored
from refattn.testing.golden import folder_name, input_items, write_golden_case
from refattn.testing.manifest import INDEX, MANIFEST, STORAGES, Item, index_text, inside, read_case, write_case
from refattn.testing.precision import FORMATS, Format, named_format
from refattn.testing.reference import rounded
from tests.enumeration import EACH

FLOAT32 = named_format("float32")


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


@pytest.fixture(params=STORAGES)
def storage(request):
    return request.param


@pytest.fixture
def golden(tmp_path, storage):
    """Cases of softmax, and the storage in which they are."""
    out = tmp_path / "golden"
    assert main(["golden", "softmax", "--out", str(out), "--format", storage, "--dtype", "bfloat16", "--dtype", "float32"]) == 0
    return out


def test_the_same_command_writes_the_same_bytes(golden, storage, tmp_path, capsys):
    again = ["golden", "softmax", "--out", str(tmp_path / "again"), "--format", storage, "--dtype", "bfloat16", "--dtype", "float32"]
    assert main(again) == 0
    assert files(golden) == files(tmp_path / "again")
    assert f"again/{MANIFEST}: 16 cases, 1.0 MB" in capsys.readouterr().out
    assert main(["golden", "--verify", str(golden)]) == 0
    assert capsys.readouterr().out == f"{golden}: 96 tensors are what they were\n"
    assert main(["golden", "--verify", str(golden / "bfloat16" / "plain")]) == 0


def test_every_changed_byte_is_found(golden, capsys):
    folder = golden / "float32" / "plain"
    for name, data in files(folder).items():
        (folder / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        for of in (folder, golden):
            assert main(["golden", "--verify", str(of)]) == 1, name
        (folder / name).unlink()
        assert main(["golden", "--verify", str(golden)]) == 1
        (folder / name).write_bytes(data)
    assert main(["golden", "--verify", str(golden)]) == 0
    assert "wrong: " in capsys.readouterr().out


def test_a_kernel_is_told_right_from_wrong_by_its_golden_files(golden):
    cases = [folder_name(case.name) for case in testing.cases(refattn.softmax)]
    assert (golden / "cases.txt").read_text().splitlines() == [f"{dtype}/{case}" for dtype in ("bfloat16", "float32") for case in cases]
    for case in ("plain", "far-from-zero"):
        found = read_case(golden / "float32" / case)
        assert found.inputs.keys() == {"x", "d_output"}
        assert found.inputs["x"].dtype == "float32"
        got, want, budget = softmax(found.inputs["x"].values()), found.expected["output"].values(), found.expected["output.budget"].values()
        assert (np.abs(got - want) <= budget).all()
        assert (np.abs(got * 1.001 - want) > budget).any()
        tolerance = next(t for t in found.manifest["tensors"] if t["name"] == "output")["tolerance"]
        assert tolerance == {"budget": "output.budget", "smallest": budget.min(), "largest": budget.max(), "decides": True}
    assert read_case(golden / "bfloat16" / "plain").inputs["x"].dtype == "bfloat16"


@pytest.mark.parametrize("name", ["scaled_dot_product_attention_with_lse", "conv2d", "gated_delta_rule", "multi_head_attention"])
def test_golden_values_are_those_of_the_check(name, tmp_path):
    """Cotangents, outputs, gradients and budgets: a candidate that returns what golden files hold passes, by the same numbers."""
    m, target = getattr(refattn, name), named_format("float64")
    for case in list(testing.cases(m))[:2]:
        write_golden_case(tmp_path / case.name, m, case, target, "bin")
        found = read_case(tmp_path / case.name)
        gradients = {n.removeprefix("d_"): x.values() for n, x in found.expected.items() if n.startswith("d_") and "budget" not in n}
        seen = []

        def vjp(found=found, gradients=gradients, seen=seen, **arguments):
            def pullback(*ds):
                for d, what in zip(ds, m.spec.output_names, strict=True):
                    np.testing.assert_array_equal(d, found.inputs[f"d_{what}"].values())
                seen.append(ds)
                return gradients

            return tuple(found.expected[n].values() for n in m.spec.output_names), pullback

        results = list(testing.checking.compare_case(testing.Candidate(vjp, vjp=vjp), m, case, target))
        assert seen
        assert {r.status for r in results} <= {"pass", "skipped"}  # skipped is a gradient that is zero by mathematics
        assert "pass" in {r.status for r in results if r.what.startswith("d_")}
        assert {r.what for r in results} == {n for n in found.expected if not n.endswith(".budget")}
        assert max(r.error_over_budget for r in results if r.passed) < 0.5


@pytest.mark.parametrize("m", EACH)
def test_every_mechanism_has_names_and_types_that_files_take(m, tmp_path):
    names = [folder_name(case.name) for case in testing.cases(m)]
    assert len(set(names)) == len(names)
    case = next(iter(testing.cases(m)))
    call = rounded(m, case.arguments, FLOAT32)
    y = outputs(m(**call))
    items = list(input_items(m, call, tuple(FLOAT32.round(x) for x in y), FLOAT32))
    items += [Item("output", n, stored(np.asarray(x))) for n, x in zip(m.spec.output_names, y, strict=True)]
    items += [Item("gradient", f"d_{n}", stored(np.asarray(x))) for n, x in m.spec.facts.differentiable(call).items()]
    assert len({(i.role in {"argument", "cotangent"}, i.name) for i in items}) == len(items)
    facts = testing.golden.about(m, case, FLOAT32)
    write_case(tmp_path, facts, items, "bin")
    found = read_case(tmp_path)
    assert {**found.inputs, **found.expected}.keys() == {i.name for i in items}
    lines = (tmp_path / INDEX).read_text().splitlines()
    assert lines[:4] == ["refattn-case 1", f"mechanism {m.spec.name}", f"case {case.name}", "dtype float32"]
    assert all(len(line.split()) == 7 + int(line.split()[6]) for line in lines if line.startswith("tensor "))


def test_exact_values_are_within_rounding_of_the_others(tmp_path):
    m, target = refattn.scaled_dot_product_attention, named_format("float64")
    case = next(testing.cases(m))
    for exactly in (False, True):
        write_golden_case(tmp_path / str(exactly), m, case, target, "bin", exactly=exactly)
    made, exact = (read_case(tmp_path / str(exactly)) for exactly in (False, True))
    assert exact.manifest["computed_in"] != made.manifest["computed_in"]
    for name in ("output", "d_query", "d_key", "d_value"):
        a, b = made.expected[name].values(), exact.expected[name].values()
        assert (np.abs(a - b) <= made.expected[f"{name}.budget"].values()).all()
    assert main(["golden", "softmax", "--case", "plain", "--exact", "--out", str(tmp_path / "command")]) == 0
    assert "exact" in read_case(tmp_path / "command" / "float32" / "plain").manifest["computed_in"]


def test_options_in_words():
    def words(**options):
        lines = index_text({"tensors": [], "options": options}).splitlines()[1:]
        return [line.removeprefix("option ") for line in lines]

    said = words(causal=True, align="lower_right", window=(15, None), padding=((1, 2), (0, 3)), scale=0.1, softcap=None)
    assert said == ["causal 1", "align lower_right", "window 15 none", "padding 1 2 0 3", "scale 0.1", "softcap none"]


def test_what_a_row_without_keys_gives_stays_what_it_is(tmp_path):
    """Golden files hold infinities and NaN: a log-sum-exp of nothing, and a policy."""
    lse = refattn.scaled_dot_product_attention_with_lse
    arguments = {"query": np.ones((1, 2, 3)), "key": np.ones((1, 2, 3)), "value": np.ones((1, 2, 3)), "mask": np.zeros((2, 2), bool)}
    for policy, expected in (("zero", 0.0), ("nan", np.nan)):
        write_golden_case(tmp_path / policy, lse, Case(policy, {**arguments, "masked_rows": policy}), FLOAT32, "safetensors")
        found = read_case(tmp_path / policy)
        np.testing.assert_array_equal(found.expected["output"].values(), np.full((1, 2, 3), expected))
        assert np.isneginf(found.expected["lse"].values()).all()
        json.loads((tmp_path / policy / MANIFEST).read_text(), parse_constant=pytest.fail)  # JSON has no infinity


def test_a_number_that_a_type_has_not_is_left_out(tmp_path, monkeypatch, capsys):
    """Minus infinity, as a bias that masks has it, in a type without infinities."""
    monkeypatch.setitem(FORMATS, "float64", Format("float8_e4m3fn", 4, -6, 448.0, 2.0**-24))
    patterns = ["--case", "bias that masks", "--case", "bias per head"]
    assert main(["golden", "scaled_dot_product_attention", *patterns, "--dtype", "float64", "--out", str(tmp_path / "g")]) == 0
    assert "float8_e4m3fn/bias-that-masks: left out: -inf is no number of float8_e4m3fn" in capsys.readouterr().out
    assert read_case(tmp_path / "g" / "float8_e4m3fn" / "bias-per-head").inputs["bias"].dtype == "float8_e4m3fn"
    assert [p.name for p in (tmp_path / "g" / "float8_e4m3fn").iterdir()] == ["bias-per-head"]


def edited(folder, **changes):
    """Another manifest in place of a case's."""
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["tensors"][0].update(changes.pop("first", {}))
    (folder / MANIFEST).write_text(json.dumps({**manifest, **changes}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"first": {"file": "../../secret.bin"}}, "is not within"),
        ({"first": {"file": "/etc/hostname.bin"}}, "is not within"),
        ({"first": {"file": "link.bin"}}, "is not within"),
        ({"first": {"file": "a\0.bin"}}, "is not within"),
        ({"first": {"file": "a.pkl"}}, "must be one of bin"),
        ({"first": {"file": "nothing.bin"}}, "is no file"),
        ({"first": {"offset": -4}}, "is not within"),
        ({"first": {"offset": 10**30}}, "is not within"),
        ({"first": {"offset": None}}, "is not within"),
        ({"first": {"shape": [2, 3, 10**9]}}, "is not within"),
        ({"first": {"shape": [2**63]}}, "shape is"),
        ({"first": {"shape": "x"}}, "a tensor is"),
        ({"first": {"dtype": "object"}}, "dtype is 'object'"),
        ({"first": {"role": "secret"}}, "a tensor is"),
        ({"first": {"sha256": "0"}}, "has not the SHA-256"),
        ({"first": {"name": "d_output"}}, "SHA-256|stands twice"),
        ({"tensors": 3}, "tensors is no list"),
        ({"tensors": [3]}, "a tensor is 3"),
        ({"format": "other"}, "format is not"),
        ({"format": ["refattn-case"]}, "format is not"),
        ({"format_version": 2}, "format_version is 2, but must be 1"),
        ({"format_version": True}, "format_version is True"),
    ],
)
def test_a_hostile_manifest_is_one_error(changes, said, tmp_path):
    folder = tmp_path / "case"
    (tmp_path / "secret.bin").write_bytes(bytes(100))
    write_golden_case(folder, refattn.softmax, next(iter(testing.cases(refattn.softmax))), FLOAT32, "bin")
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    edited(folder, **changes)
    with pytest.raises(ValueError, match=said):
        read_case(folder)


JSON = st.none() | st.booleans() | st.integers(-5, 2**70) | st.floats() | st.text(max_size=300) | st.lists(st.integers(-1, 9), max_size=4)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_manifests_drawn_at_random(data):
    with TemporaryDirectory() as name:
        folder = Path(name) / "case"
        storage = data.draw(st.sampled_from(STORAGES))
        write_case(folder, {}, [Item("argument", "x", stored(np.ones((2, 3)), "float16")), Item("output", "y", stored(True))], storage)
        manifest = json.loads((folder / MANIFEST).read_text())
        place = data.draw(st.sampled_from([manifest, *manifest["tensors"]]))
        for key in data.draw(st.lists(st.sampled_from(sorted(place)), min_size=1, max_size=2)):
            place[key] = data.draw(JSON | st.just([place[key]]))
        (folder / MANIFEST).write_text(json.dumps(manifest))
        for read in (read_case, testing.verify):
            with contextlib.suppress(ValueError):
                read(folder)


def test_links_in_a_circle(tmp_path):
    (tmp_path / "a.bin").symlink_to("a.bin")
    for name in ("a.bin", "b" * 5000 + ".bin", "\ud800.bin"):
        with pytest.raises(ValueError, match=r"is not within|is no file"):
            inside(tmp_path, name)


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"3", b"\xff", b"[" * 10**5, b'{"format": "refattn-case"}'])
def test_what_is_no_manifest(text, tmp_path):
    (tmp_path / MANIFEST).write_bytes(text)
    for read in (read_case, testing.verify):
        with pytest.raises(ValueError, match=MANIFEST):
            read(tmp_path)


def test_a_collection_that_leads_elsewhere_is_refused(tmp_path):
    facts = {"format": "refattn-golden", "format_version": 1, "files": {}}
    for cases, said in (([{"folder": ".."}], "is not within"), ([{"folder": 3}], "no list of folders"), (None, "no list of folders")):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / MANIFEST).write_text(json.dumps({**facts, "cases": cases}))
        (tmp_path / MANIFEST).write_text("{}")
        with pytest.raises(ValueError, match=said):
            testing.verify(tmp_path / "in")


def test_cases_are_chosen_by_pattern(tmp_path, capsys):
    assert main(["golden", "scaled_dot_product_attention", "--list", "--case", "causal*", "--case", "masked row"]) == 0
    assert capsys.readouterr().out.splitlines() == ["masked row", "causal", "causal window", "causal edge, 131x200", "causal edge, 131x131"]
    out = tmp_path / "chosen"
    assert main(["golden", "scaled_dot_product_attention", "--case", "causal window", "--seed", "5", "--out", str(out)]) == 0
    default = tmp_path / "default"
    assert main(["golden", "scaled_dot_product_attention", "--case", "causal window", "--out", str(default)]) == 0
    ours, theirs = (read_case(folder / "float32" / "causal-window") for folder in (out, default))
    assert ours.inputs["query"].tobytes() == theirs.inputs["query"].tobytes()
    assert ours.inputs["d_output"].tobytes() != theirs.inputs["d_output"].tobytes()
    assert ours.manifest["options"]["window"] == [1, None]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "NAME is missing"),
        (["softmax"], "--out is missing"),
        (["softmaks", "--out", "x"], "did you mean 'softmax'"),
        (["softmax", "--out", "x", "--case", "needles"], "no case is named 'needles': there are plain, far from zero, one class"),
        (["softmax", "--out", "."], "--out is '.', but must be a folder that is empty"),
        (["softmax", "--verify", "x"], "--verify reads golden files: it takes no NAME"),
        (["--verify", "no such folder"], "--verify is 'no such folder', but must be a folder"),
    ],
)
def test_what_cannot_be_written_is_status_2_and_one_line(arguments, said, tmp_path, monkeypatch, capsys):
    (tmp_path / "something").write_text("")
    monkeypatch.chdir(tmp_path)
    assert main(["golden", *arguments]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_onnx_says_that_it_is_needed(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert main(["golden", "softmax", "--format", "onnx", "--out", str(tmp_path / "x")]) == 2
    assert capsys.readouterr().err == "refattn: golden files for ONNX need the package onnx: pip install onnx\n"
    monkeypatch.setitem(sys.modules, "onnx", SimpleNamespace())
    assert main(["golden", "gated_delta_rule", "--format", "onnx", "--out", str(tmp_path / "y")]) == 2
    assert "gated_delta_rule is no operator of ONNX: those that are, are " in capsys.readouterr().err


DOCUMENT = (Path(__file__).parent.parent / "docs" / "golden.md").read_text(encoding="utf-8")


def test_the_document_shows_what_is_written(tmp_path):
    out = tmp_path / "golden"
    assert main(["golden", "scaled_dot_product_attention", "--case", "causal window", "--format", "bin", "--out", str(out)]) == 0
    folder = out / "float32" / "causal-window"
    block = DOCUMENT.partition("    refattn-case 1\n")[2].partition("\n\n")[0]
    shown, written = [line.strip() for line in block.splitlines()], (folder / INDEX).read_text().splitlines()
    assert len(shown) == 12
    assert [line for line in written if line in shown] == shown  # all of them, in this order
    manifest = json.loads((folder / MANIFEST).read_text())
    rows = [re.findall(r"`(\w+)`", line.split("|")[1]) for line in DOCUMENT.splitlines() if line.startswith("| `")]
    assert {key for row in rows for key in row} == manifest.keys()
    told = {key for t in manifest["tensors"] for key in t}
    assert told - {"shape_in_words"} == {"role", "name", "dtype", "shape", "file", "offset", "bytes", "sha256", "of", "tolerance"}
    assert {key for t in manifest["tensors"] for key in t.get("tolerance", ())} == {"budget", "smallest", "largest", "decides"}
    assert all(f"`{key}`" in DOCUMENT for key in told)


def test_commands_of_the_document_are_commands():
    lines = [line.strip() for line in DOCUMENT.splitlines() if line.startswith("      refattn ")]
    assert len(lines) == 3
    for line in lines:
        parser().parse_args(shlex.split(line)[1:])
