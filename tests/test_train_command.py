"""`refattn train`: tables, JSON and exit status."""

from __future__ import annotations

import json
import sys

import pytest

from refattn.__main__ import main
from refattn.examples import digits, series
from tests.test_training import few_images


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(digits, "dataset", few_images)


def test_series_prints_its_losses(capsys):
    assert main(["train", "series", "--epochs", "12"]) == 0
    heading, *rows, empty, last = capsys.readouterr().out.splitlines()
    assert heading.split() == ["step", "loss"]
    assert [row.split()[0] for row in rows] == ["1", "6", "11", "12"]
    losses = [float(row.split()[1]) for row in rows]
    assert losses[-1] < losses[0]
    assert len({len(line) for line in (heading, *rows)}) == 1
    assert (empty, last) == ("", f"series: loss {losses[-1]:.4f} after 12 steps")


@pytest.mark.parametrize(("factor", "status"), [(1 + 1e-12, 0), (1 + 1e-8, 1), (float("nan"), 1)])
def test_series_against_other_losses(factor, status, monkeypatch, capsys):
    assert main(["train", "series", "--epochs", "8", "--json"]) == 0
    ours = json.loads(capsys.readouterr().out)["losses"]
    theirs = [*ours[:-2], ours[-2] * factor, ours[-1]]
    monkeypatch.setattr(series, "torch_losses", lambda *_: theirs)
    assert main(["train", "series", "--epochs", "8", "--against", "torch"]) == status
    heading, *rows, _, last = capsys.readouterr().out.splitlines()
    assert heading.split() == ["step", "loss", "loss", "in", "torch", "difference"]
    assert len(rows) == 3
    assert last.startswith("series: differs from torch" if status else "series: agrees with torch")
    assert main(["train", "series", "--epochs", "8", "--against", "torch", "--json"]) == status
    said = json.loads(capsys.readouterr().out)
    assert said["agrees"] == (not status)
    assert said["losses"] == ours


@pytest.mark.parametrize("name", digits.RECIPES)
def test_digits_print_a_line_an_epoch_and_are_saved(name, few, tmp_path, capsys):
    saved = tmp_path / "weights.npz"
    assert main(["train", f"digits-{name}", "--epochs", "2", "--save", str(saved)]) == 0
    heading, *rows, empty, file, last = capsys.readouterr().out.splitlines()
    assert heading.split() == ["epoch", "loss", "train", "accuracy", "test", "accuracy", "seconds"]
    assert [row.split()[0] for row in rows] == ["1", "2"]
    assert len({len(line) for line in (heading, *rows)}) == 1
    assert (empty, file) == ("", f"saved {saved}")
    assert last.startswith(f"digits-{name}: test accuracy {rows[-1].split()[3]} after ")
    assert digits.load(name, saved).images.shape == (digits.SHIPPED, 1, 8, 8)


def test_digits_as_json(few, capsys):
    assert main(["train", "digits-cnn", "--epochs", "1", "--seed", "2", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["model"], said["seed"]) == ("digits-cnn", 2)
    (epoch,) = said["epochs"]
    assert epoch.keys() == {"epoch", "loss", "train_accuracy", "test_accuracy", "seconds"}
    assert said["test_accuracy"] == epoch["test_accuracy"]


def test_a_file_that_cannot_be_written_is_known_before_the_training(few, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(digits, "train", None)
    missing = tmp_path / "no_such_folder" / "weights.npz"
    for path, why in ((missing, "No such file or directory"), (tmp_path, "Is a directory")):
        assert main(["train", "digits-cnn", "--save", str(path)]) == 2
        assert capsys.readouterr().err == f"refattn: {path}: {why}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits-cnn", "--against", "torch"], "--against is for series, not for digits-cnn"),
        (["series", "--save", "weights.npz"], "--save is for the digits"),
    ],
)
def test_options_that_do_not_belong_are_status_2_and_one_line(arguments, message, capsys):
    assert main(["train", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["digits"], ["series", "--epochs", "0"], ["series", "--epochs", "many"], ["series", "--seed", "-1"]])
def test_a_command_line_that_cannot_be_read_is_status_2(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["train", *arguments])
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("lacking", "arguments", "message"),
    [
        ("sklearn.datasets", ["digits-cnn"], "pip install 'refattn[train]'"),
        ("torch", ["series", "--against", "torch"], "pip install torch"),
    ],
)
def test_what_is_not_installed_is_named(lacking, arguments, message, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, lacking, None)
    assert main(["train", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1
