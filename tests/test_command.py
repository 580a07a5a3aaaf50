"""The command: what it prints, and its exit status."""

from __future__ import annotations

import io
import json
import math
import os
import pty
import subprocess
import sys
import webbrowser
from pathlib import Path

import pytest

import refattn
from refattn.__main__ import main
from refattn.examples import digits
from refattn.view import catalogue, table
from refattn.view.core import CORE
from tests.enumeration import EACH, MECHANISMS


def refattn_command(*arguments, **more):
    return subprocess.run([sys.executable, "-m", "refattn", *arguments], capture_output=True, text=True, **more)


def test_list_prints_every_mechanism_in_aligned_columns(capsys):
    assert main(["list"]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split() == ["name", "family", "summary"]
    assert {line.split()[0] for line in lines} == {m.__name__ for m in MECHANISMS}
    at = heading.index("family")
    assert all(line[at - 2 : at] == "  " and line[at] != " " for line in lines)


def test_list_chooses_by_family_and_tag(capsys):
    assert main(["list", "--family", "dot_product", "--tag", "softmax", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {"scaled_dot_product_attention", "scaled_dot_product_attention_with_lse"} <= {x["name"] for x in listed}
    assert all(x["family"] == "dot_product" and "softmax" in x["tags"] for x in listed)


@pytest.mark.parametrize("option", ["family", "tag"])
def test_list_refuses_what_is_not_there(option, capsys):
    assert main(["list", f"--{option}", "nowhere"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"refattn: --{option} is 'nowhere', but must be one of ")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("m", EACH)
def test_show_prints_what_the_docstring_states(m, capsys):
    assert main(["show", m.__name__]) == 0
    shown = capsys.readouterr().out
    for fact in (m.spec.facts.summary, m.spec.module.replace(".", os.sep), *m.spec.facts.references, *m.spec.facts.equation.split("\n")):
        assert fact in shown
    assert all(name in shown for name in m.spec.signature.parameters)


@pytest.mark.parametrize("m", EACH)
def test_show_as_json_names_every_parameter(m, capsys):
    assert main(["show", m.__name__, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    named = {row["name"].partition(".")[0].removesuffix("[i]") for row in (*shown["arguments"], *shown["options"])}
    assert named == set(m.spec.signature.parameters)
    assert {row["name"].partition(".")[0] for row in shown["outputs"]} == set(m.spec.output_names)
    assert "'Array" not in shown["signature"]


def test_show_points_at_the_line_of_the_source():
    shown = catalogue.described(refattn.linear)
    assert "@mechanism" in Path(shown["source"]).read_text("utf-8").splitlines()[shown["line"] - 1]


def test_show_suggests_the_closest_name(capsys):
    assert main(["show", "sofmax"]) == 2
    assert capsys.readouterr().err == "refattn: no mechanism is named 'sofmax'; did you mean 'softmax'?\n"
    assert main(["show", "12345"]) == 2
    assert capsys.readouterr().err == "refattn: no mechanism is named '12345'\n"


@pytest.mark.parametrize("arguments", [[], ["show"], ["no_such_command"], ["list", "--no-such-option"]])
def test_a_command_line_that_cannot_be_read_is_one_line_and_status_2(arguments):
    done = refattn_command(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("refattn")
    assert done.stderr.count("\n") == 1


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "refattn check torch" in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"refattn {refattn.__version__}\n"


@pytest.mark.parametrize("arguments", [["list"], ["show", "softmax", "--json"], ["--help"]])
def test_a_closed_pipe_is_no_traceback(arguments):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as gone:
        done = subprocess.run([sys.executable, "-m", "refattn", *arguments], stdout=gone, stderr=subprocess.PIPE, text=True)
    assert done.stderr == ""
    assert done.returncode == (0 if arguments == ["--help"] else 2)  # argparse itself says nothing of what it could not write


def on_a_terminal(*arguments, **environment):
    """What the command writes where it believes that a person looks on."""
    ours, theirs = pty.openpty()
    asked = {k: v for k, v in os.environ.items() if k not in {"NO_COLOR", "FORCE_COLOR", "COLUMNS"}}
    asked |= {"TERM": "xterm-256color", **environment}
    process = subprocess.Popen([sys.executable, "-m", "refattn", *arguments], stdout=theirs, stderr=theirs, env=asked)
    os.close(theirs)
    written = b""
    while True:
        try:
            some = os.read(ours, 65536)
        except OSError:  # Linux says so at the end of a terminal
            break
        if not some:
            break
        written += some
    os.close(ours)
    assert process.wait() == 0
    return written.decode()


@pytest.mark.parametrize("columns", [60, 100])
def test_text_wraps_on_a_terminal(columns):
    lines = on_a_terminal("list", "--tag", "core", COLUMNS=str(columns), NO_COLOR="1").splitlines()
    assert max(map(len, lines)) <= columns
    words = " ".join(lines).replace(",", "").split()
    assert {name for system in CORE for name in system.mechanisms} <= set(words)


def test_the_last_column_stands_below_where_there_is_no_room():
    made = table.Table("name", "what")
    made.row("a" * 20, "one two three")
    made.row("b", None)
    assert list(made.wrapped(22)) == [["name", "    what"], ["a" * 20, "    one two three"], ["b"]]
    assert list(made.wrapped(60))[1:] == [[f"{'a' * 20}  one two three"], ["b"]]


def test_an_error_of_the_system_is_said_as_other_commands_say_it(tmp_path, capsys):
    assert main(["view", "--output", str(tmp_path / "no" / "x.html")]) == 2
    assert capsys.readouterr().err == f"refattn: {tmp_path / 'no' / 'x.html'}: No such file or directory\n"


def test_lines_are_cut_to_a_terminal_and_not_to_a_pipe():
    cut = on_a_terminal("show", "acmix", COLUMNS="60", NO_COLOR="1").splitlines()
    assert {len(line) for line in cut if line.endswith("…")} == {60}
    assert "…" not in refattn_command("show", "acmix", env={**os.environ, "COLUMNS": "60"}).stdout


def test_no_color_is_respected():
    assert "\x1b[" not in on_a_terminal("list", NO_COLOR="1")


def test_a_terminal_has_colours():
    pytest.importorskip("rich")
    assert "\x1b[1m" in on_a_terminal("list")


def test_a_pipe_has_no_colours():
    assert "\x1b" not in refattn_command("list", env={**os.environ, "FORCE_COLOR": "1"}).stdout


@pytest.mark.parametrize("model", ["cnn", "transformer"])
def test_view_writes_a_page_and_says_what_it_shows(model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["view", "--model", model]) == 0
    written = tmp_path / f"attention_{model}.html"
    heading, *lines, said, path = capsys.readouterr().out.splitlines()
    assert heading.split() == ["what", "kind", "shape", "mechanisms"]
    kind = "gate" if model == "cnn" else "weights"
    assert all(line.startswith(("First ", "Second ")) and f" {kind} " in line for line in lines if line)
    assert said.startswith("image 0 is a ")
    assert path == str(written)
    assert written.read_text("utf-8").startswith("<!doctype html>")


def test_view_takes_an_image_a_file_and_weights(tmp_path, capsys):
    own = Path(digits.__file__).with_name("digits_cnn.npz")
    first, second = tmp_path / "first.html", tmp_path / "second.html"
    assert main(["view", "--image", "4", "--output", str(first), "--weights", str(own)]) == 0
    assert main(["view", "--image", "4", "--output", str(second)]) == 0
    assert first.read_bytes() == second.read_bytes()
    assert "image 4 is a " in capsys.readouterr().out


def test_view_opens_the_browser(tmp_path, monkeypatch, capsys):
    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda address: opened.append(address) or len(opened) == 1)
    call = ["view", "--open", "--output", str(tmp_path / "a page.html")]
    assert main(call) == 0
    assert opened == [(tmp_path / "a page.html").as_uri()]
    assert main(call) == 2
    assert "no browser could be opened" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--image", "-1"], "--image is -1, but must be in 0 to "),
        (["--image", "999"], "--image is 999"),
        (["--output", "/no/where.html"], "/no/"),
    ],
)
def test_view_says_what_it_cannot_show(arguments, error, capsys):
    assert main(["view", *arguments]) == 2
    assert error in capsys.readouterr().err


def test_decimal_points_stand_below_each_other():
    made = table.Table("what", "error", "of")
    made.row("query", 12.5, 3)
    made.row("key", 0.0625, 1000)
    made.row("value", 1.5e-7, None)
    made.row("bias", math.inf, 20)
    _, *lines = str(made).splitlines()
    points = {line.index(".") for line in lines[:3]}
    assert len(points) == 1
    assert lines[0].endswith("   3")
    assert lines[1].endswith("1000")
    assert str(made).splitlines()[0].split() == ["what", "error", "of"]


def test_text_is_on_the_left_and_no_line_ends_in_blanks():
    made = table.Table("a", "b")
    made.row("x", "long text")
    made.row("yy", None)
    assert str(made) == "a   b\nx   long text\nyy"


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="the table has 2 columns, the row 1 cells"):
        table.Table("a", "b").row(1)


def test_a_table_without_rows_is_its_heading():
    out = io.StringIO()
    table.Table("a", "b").print(out)
    assert out.getvalue() == "a  b\n"


def test_progress_gives_the_items():
    assert list(table.progress(iter("abc"), 3)) == ["a", "b", "c"]
