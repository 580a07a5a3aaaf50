"""The models of `refattn.examples`: their gradients, their files, and that they learn.

The whole trainings are a tier of their own: ``pytest -m training``.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import zipfile
from typing import NamedTuple

import numpy as np
import pytest

import refattn
from refattn._core import archive, tree
from refattn._core.random import Random
from refattn.examples import digits, series, training
from tests.enumeration import EXTENDED

STEP, TOLERANCE = (1e-6, 1e-8) if EXTENDED else (1e-5, 1e-6)
"""Central differences leave out what is of order STEP ** 2 times the third derivative, and rounding adds what is of order eps / STEP."""


def small_models():
    random = Random(1)
    images, labels = random.uniform(0.0, 1.0, (2, 1, 8, 8)), np.array([3, 7])
    yield "series", series.loss, (series.first_weights(random), *series.windows(random, 3))
    cnn, transformer = digits.cnn_weights(random, (3, 4), 2), digits.transformer_weights(random, 8, 6)
    for name, weights in (("cnn", cnn), ("transformer", transformer)):
        drawn = tree.map_leaves(lambda w: w + random.normal(w.shape) / 8, weights)  # biases of zero and norms of one hide mistakes
        yield name, digits.loss(digits.RECIPES[name].model), (drawn, images, labels)


SMALL = [pytest.param(loss, given, id=name) for name, loss, given in small_models()]


@pytest.mark.parametrize(("loss", "given"), SMALL)
def test_gradients_are_the_derivative(loss, given):
    weights, *batch = tree.map_leaves(lambda x: x.astype(np.longdouble) if x.dtype.kind == "f" else x, given)
    value, pullback = loss(weights, *batch)
    grads = pullback(1.0)
    inputs = "images" if "images" in grads else "x"
    assert grads[inputs].shape == batch[0].shape
    gradient, at = {"weights": grads["weights"], "x": grads[inputs]}, {"weights": weights, "x": batch[0]}
    assert [path for path, _ in tree.leaves(gradient)] == [path for path, _ in tree.leaves(at)]
    random, h = Random(2), np.longdouble(STEP)
    for path, g in tree.leaves(gradient):
        leaf = dict(tree.leaves(at))[path]
        assert (g.shape, g.dtype) == (leaf.shape, np.longdouble), path
        direction = random.normal(leaf.shape)
        values = []
        for step in (h, -h):
            moved = tree.replace(at, path, leaf + step * direction)
            values.append(loss(moved["weights"], moved["x"], *batch[1:])[0])
        numerical = (values[0] - values[1]) / (2 * h)
        assert abs((g * direction).sum() - numerical) < TOLERANCE * max(1.0, abs(float(numerical))), path
    assert value.dtype == np.longdouble


@pytest.mark.parametrize(("loss", "given"), SMALL)
def test_a_few_steps_make_the_loss_smaller(loss, given):
    weights, *batch = given
    losses = [step.loss for step in training.descend(loss, weights, itertools.repeat(tuple(batch), 20), 0.01)]
    assert losses[-1] < 0.8 * losses[0]


def test_the_step_size_may_change_with_each_step():
    loss, (weights, *batch) = series.loss, SMALL[0].values[1]
    seen = []
    steps = list(training.descend(loss, weights, [tuple(batch)] * 3, lambda step: seen.append(step) or 0.0))
    assert seen == [0, 1, 2]
    for (_, before), (_, after) in zip(tree.leaves(weights), tree.leaves(steps[-1].weights), strict=True):
        np.testing.assert_array_equal(before, after)


def test_a_prediction_for_each_time_step_is_refused_and_not_broadcast():
    """Without the mean over time, scores (batch, 8, 1) meet labels (batch, 1): NumPy would compare each with every label."""
    random = Random(0)
    scores, labels = random.normal((8, 8, 1)), random.normal((8, 1))
    assert ((scores - labels) ** 2).shape == (8, 8, 1)
    assert not np.isclose(((scores - labels) ** 2).mean(), ((scores.mean(axis=1) - labels) ** 2).mean(), rtol=0.1)
    with pytest.raises(refattn.ShapeError, match="target has 2 axes, but needs 3"):
        refattn.mean_squared_error(scores, labels)
    x, _ = series.windows(random, 8)
    assert series.series_model(x, series.first_weights(random))[0].shape == labels.shape


@pytest.mark.parametrize("name", digits.RECIPES)
def test_the_models_that_come_along_read_their_images(name):
    trained = digits.load(name)
    assert trained.images.shape == (digits.SHIPPED, 1, 8, 8)
    assert (trained.images.min(), trained.images.max()) == (0.0, 1.0)
    scores, _ = trained.forward(trained.images, trained.weights)
    assert (scores.argmax(axis=-1) == trained.labels).sum() >= 19
    assert digits.accuracy(trained.forward, trained.weights, trained.images, trained.labels) >= 0.95


def test_the_hook_sees_gates_and_attention():
    seen = {}
    for name in digits.RECIPES:
        trained = digits.load(name)
        with refattn.hooked(lambda result: seen.setdefault((*result.path, result.name), []).append(result.value.shape)):
            trained.forward(trained.images[:2], trained.weights)
    assert seen["cbam", "cbam_channel", "sigmoid", "output"] == [(2, 16), (2, 32)]
    assert seen["cbam", "cbam_spatial", "sigmoid", "output"] == [(2, 1, 8, 8), (2, 1, 4, 4)]
    weights = [shapes for path, shapes in seen.items() if path[-2:] == ("masked_softmax", "weights")]
    assert weights == [[(2, 4, 16, 16)] * 2]


def few_images():
    """Something to learn from where scikit-learn is not installed."""
    trained = digits.load("cnn")
    return digits.Dataset(trained.images, trained.labels, trained.images, trained.labels)


@pytest.mark.parametrize("name", digits.RECIPES)
def test_one_seed_gives_one_training(name):
    first, again, other = (list(digits.train(name, few_images(), epochs=2, seed=seed)) for seed in (3, 3, 4))
    assert [e[:4] for e in first] == [e[:4] for e in again]
    assert [e.epoch for e in first] == [1, 2]
    assert first[0].loss != other[0].loss
    for (path, a), (_, b) in zip(tree.leaves(first[-1].weights), tree.leaves(again[-1].weights), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=path)


def test_shifted_images_lose_what_leaves():
    images = np.ones((400, 1, 8, 8))
    made = digits.shifted(Random(0), images)
    assert made.shape == images.shape
    lost = 64 - made.sum(axis=(1, 2, 3))
    assert set(lost) == {0.0, 8.0, 15.0}  # nothing, a row or a column, both
    assert 0.1 < (lost > 0).mean() < 0.35


@pytest.mark.parametrize("name", digits.RECIPES)
def test_weights_are_saved_and_read(name, tmp_path):
    data, weights = few_images(), digits.RECIPES[name].first_weights(Random(5))
    digits.save(tmp_path / "weights", weights, data)
    read = digits.load(name, tmp_path / "weights")
    assert read.forward is digits.RECIPES[name].model
    np.testing.assert_array_equal(read.labels, data.test_labels)
    for (path, a), (_, b) in zip(tree.leaves(weights), tree.leaves(read.weights), strict=True):
        assert b.dtype == np.float64
        np.testing.assert_allclose(a, b, rtol=2**-11, atol=2**-24, err_msg=path)  # half a step of float16, normal and subnormal


def test_another_file_is_refused(tmp_path):
    digits.save(tmp_path / "cnn.npz", digits.cnn_weights(Random(0)), few_images())
    with pytest.raises(
        ValueError, match=r"cnn.npz holds another record: it lacks 'weights.b_patch' and 36 more, and has 'weights.stages.0.bias' and 15"
    ):
        digits.load("transformer", tmp_path / "cnn.npz")
    digits.save(tmp_path / "small.npz", digits.cnn_weights(Random(0), (4, 32)), few_images())
    with pytest.raises(ValueError, match=r"small.npz: weights.stages.0.weight has shape \(4, 1, 3, 3\), but should have \(16, 1, 3, 3\)"):
        digits.load("cnn", tmp_path / "small.npz")
    np.save(tmp_path / "array.npy", np.ones(2))
    with pytest.raises(ValueError, match=r"array.npy is no .npz file"):
        digits.load("cnn", tmp_path / "array.npy")
    (tmp_path / "text.npz").write_text("weights")
    with pytest.raises(ValueError, match=r"text.npz is no .npz file"):
        digits.load("cnn", tmp_path / "text.npz")
    with pytest.raises(ValueError, match="name is 'rnn', but must be one of cnn, transformer"):
        digits.load("rnn")


def test_damaged_and_hostile_files_are_refused(tmp_path):
    like, path = {"a": np.zeros((0, 3)), "b": np.zeros(2)}, tmp_path / "file.npz"

    def refused(why):
        with pytest.raises(ValueError, match=why):
            archive.load(path, like)

    np.savez(path, a=np.ones((2, 3)), b=np.ones(2))
    whole = path.read_bytes()
    path.write_bytes(whole.replace(np.ones(2).tobytes(), np.zeros(2).tobytes()))
    refused("file.npz cannot be read: Bad CRC-32")
    path.write_bytes(whole[:-30])
    refused("file.npz is no .npz file")
    np.savez(path, a=np.ones((2, 3), object), b=np.ones(2))
    refused("cannot be read: Object arrays cannot be loaded")
    np.savez(path, a=np.ones((2, 3), complex), b=np.ones(2))
    refused("a holds complex128, but should hold float64")
    for member in (b"plain", b"\x93NUMPY\x01\x00\x02\x00{("):
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("a" if member == b"plain" else "a.npy", member)
            file.writestr("b", b"")
        refused("a holds no array" if member == b"plain" else "cannot be read")
    archive.save(path, {"a": np.ones((2, 3))})
    refused("it lacks 'b', and has nothing besides")


def test_images_without_labels_are_refused(tmp_path):
    data, weights = few_images(), digits.cnn_weights(Random(0))
    digits.save(tmp_path / "w.npz", weights, data._replace(test_labels=data.test_labels[:3]))
    with pytest.raises(ValueError, match=r"w.npz has \d+ images, but 3 labels"):
        digits.load("cnn", tmp_path / "w.npz")


class Pair(NamedTuple):
    left: np.ndarray
    right: tuple[np.ndarray, ...]


def test_a_record_keeps_its_nesting_in_a_file(tmp_path):
    record = Pair(np.arange(3.0) / 3, (np.ones((2, 2), np.float32), np.array([1, 2])))
    archive.save(tmp_path / "record.npz", record)
    read = archive.load(tmp_path / "record.npz", tree.map_leaves(np.zeros_like, record))
    assert type(read) is Pair
    for (path, a), (_, b) in zip(tree.leaves(record), tree.leaves(read), strict=True):
        assert a.dtype == b.dtype, path
        np.testing.assert_array_equal(a, b, err_msg=path)


def test_images_are_always_split_in_the_same_way():
    pytest.importorskip("sklearn")
    data = digits.dataset()
    assert [len(x) for x in data] == [1437, 1437, 360, 360]
    for name in digits.RECIPES:
        trained = digits.load(name)
        np.testing.assert_array_equal(trained.images, data.test_images[: digits.SHIPPED])
        np.testing.assert_array_equal(trained.labels, data.test_labels[: digits.SHIPPED])
        assert digits.accuracy(trained.forward, trained.weights, data.test_images, data.test_labels) > 0.95


@pytest.mark.training
@pytest.mark.parametrize("name", digits.RECIPES)
def test_a_whole_training_reads_more_than_95_percent(name, tmp_path):
    pytest.importorskip("sklearn")
    saved = tmp_path / "weights.npz"
    command = [sys.executable, "-m", "refattn", "train", f"digits-{name}", "--json", "--save", str(saved)]
    before = os.times()
    done = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    after = os.times()
    assert done["test_accuracy"] > 0.95
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    assert spent < 120  # seconds of one core; a clock on the wall would blame the training for its neighbours
    data, trained = digits.dataset(), digits.load(name, saved)
    assert digits.accuracy(trained.forward, trained.weights, data.test_images, data.test_labels) > 0.95
