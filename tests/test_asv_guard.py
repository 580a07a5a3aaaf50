"""The guard against slow-downs, on packages that take as long as they are told to."""

from __future__ import annotations

import pytest

from benchmarks import guard

PACKAGE = """
import time

class Mechanism:
    def vjp(self, *inputs, **options):
        time.sleep({seconds})
        return inputs[0], lambda d: None

scaled_dot_product_attention = conv2d = Mechanism()
{more}
"""


def tree(folder, seconds, more=""):
    for name in guard.MEASURED:
        (folder / name).mkdir(parents=True)
    (folder / "refattn" / "__init__.py").write_text(PACKAGE.format(seconds=seconds, more=more), "utf-8")
    (folder / "refattn_numba" / "__init__.py").write_text("", "utf-8")  # none of the kernels that are asked for
    return folder


def test_a_slower_version_is_found_and_kernels_of_one_alone_are_left_out(tmp_path):
    old, new = tree(tmp_path / "old", 0.001), tree(tmp_path / "new", 0.005, "del conv2d")
    with pytest.raises(RuntimeError, match="ended with status 1"):
        guard.ratios(old, tmp_path)
    found = guard.ratios(old, new, turns=2)
    assert list(found) == ["refattn attention, forward and backward"]
    assert guard.slower(found) == list(found)
    assert guard.slower({k: (b, a) for k, (a, b) in found.items()}) == []
    assert "after / before" in guard.table(found)


def run(monkeypatch, capsys, *found):
    answers, asked = iter(found), []
    monkeypatch.setattr(guard, "unpacked", lambda revision, folder: folder)
    monkeypatch.setattr(guard, "ratios", lambda old, new, kernels=(): asked.append(list(kernels)) or next(answers))
    monkeypatch.setattr(guard, "_git", lambda *arguments: b"a file")
    monkeypatch.setattr(guard.subprocess, "run", lambda *a, **k: type("Done", (), {"returncode": 0}))
    status = guard.main([])
    return status, asked, capsys.readouterr().out


def test_it_fails_only_beyond_the_limit_twice_in_a_row(monkeypatch, capsys):
    fine, slow = {"a": (1.0, 1.4), "b": (1.0, 0.5)}, {"a": (1.0, 1.6), "b": (1.0, 1.0)}
    assert run(monkeypatch, capsys, fine)[:2] == (0, [[]])
    status, asked, out = run(monkeypatch, capsys, slow, {"a": (1.0, 1.1)})
    assert (status, asked) == (0, [[], ["a"]])
    assert "nothing is more than 1.5 times" in out
    status, asked, out = run(monkeypatch, capsys, slow, {"a": (1.0, 1.7)})
    assert (status, asked) == (1, [[], ["a"]])
    assert "a is more than 1.5 times as slow as at HEAD^, twice in a row" in out


def test_where_there_is_nothing_to_compare_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(guard, "_git", lambda *arguments: b"\n")
    answer = type("Done", (), {"returncode": 0})
    monkeypatch.setattr(guard.subprocess, "run", lambda *a, **k: answer)
    assert guard.main([]) == 0
    assert "are those of HEAD^" in capsys.readouterr().out
    answer.returncode = 1
    assert guard.main(["--against", "nowhere"]) == 0
    assert "has no nowhere" in capsys.readouterr().out
