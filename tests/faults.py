"""Plant one-line faults, one at a time, in a copy of the package: the tests of the mutated file's mechanisms must catch each.

Run as ``python -m tests.faults [WORDS]`` (only the faults whose description contains these words) or ``pytest -m slow``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from pathlib import Path
from queue import Queue
from typing import NamedTuple

import refattn
from refattn.view.table import Table, progress

ROOT = Path(__file__).parent.parent
PACKAGE = Path(refattn.__file__).parent
PROCESSES = 2
TESTS = ("tests/test_mechanisms.py", "tests/test_definitions.py")


class Fault(NamedTuple):
    """One line that is wrong."""

    what: str
    file: str
    old: str
    new: str
    mechanisms: str


SDPA = "attention/dot_product/scaled_dot_product.py"
STAGES = "primitives/attention_stages.py"
RULE = "convolution/rule.py"
NORM = "primitives/normalization.py"
SCORE = "attention/score/rule.py"
SQUEEZE = "attention/channel/squeeze_excitation.py"
HARD = "attention/stochastic/hard.py"

FAULTS = (
    Fault("scale is 1 / head_dim", SDPA, "1 / np.sqrt(head_dim)", "1 / head_dim", "scaled_dot_product_attention"),
    Fault("grouped heads tiled, not repeated", SDPA, "x.repeat(group, axis=-3)", "np.concatenate([x] * group, axis=-3)", "scaled_dot_product_attention"),
    Fault("heads of a group summed as if tiled", SDPA, "d_keys.reshape(*lead, kv_heads, group, *key.shape[-2:]).sum(axis=-3)",
          "d_keys.reshape(*lead, group, kv_heads, *key.shape[-2:]).sum(axis=-4)", "scaled_dot_product_attention"),
    Fault("mask dropped", SDPA, "np.broadcast_to(True if mask is None else mask, shape)", "np.broadcast_to(True, shape)", "scaled_dot_product_attention"),
    Fault("mask inverted", SDPA, "True if mask is None else mask", "True if mask is None else ~mask", "scaled_dot_product_attention"),
    Fault("bias before the soft cap", SDPA, "softcapped.vjp(scores, cap=softcap)", "softcapped.vjp(scores if bias is None else scores + np.where(allowed, bias, 0), cap=softcap)",
          "scaled_dot_product_attention"),
    Fault("bias not in the scores", SDPA, "capped + np.where(allowed, bias, 0), 0)", "capped, 0)", "scaled_dot_product_attention"),
    Fault("soft cap left out of the pullback", SDPA, 'scale_pullback(softcap_pullback(d_softmax["scores"])["scores"])', 'scale_pullback(d_softmax["scores"])',
          "scaled_dot_product_attention"),
    Fault("dropout left out of the pullback", SDPA, 'dropout_pullback(d_kept)["x"]', "d_kept", "scaled_dot_product_attention"),
    Fault("weights before dropout in d_value", SDPA, "np.where(read, kept, 0)", "np.where(read, weights, 0)", "scaled_dot_product_attention"),
    Fault("no gradient through the weights", SDPA, "softmax_pullback(d_weights + dropout_pullback", "softmax_pullback(0 * d_weights + dropout_pullback", "scaled_dot_product_attention"),
    Fault("window one key too long", "masks.py", "(-np.inf if left is None else -left)", "(-np.inf if left is None else -left - 1)", "scaled_dot_product_attention"),
    Fault("window without a right end", "masks.py", "(np.inf if right is None else right)", "np.inf", "scaled_dot_product_attention"),
    Fault("no sink in the softmax", STAGES, "total = exp.sum(axis=-1) + sink_exp", "total = exp.sum(axis=-1)", "masked_softmax"),
    Fault("log-sum-exp without its shift", STAGES, "shift + np.log(divisor)", "np.log(divisor)", "masked_softmax"),
    Fault("log-sum-exp has no gradient", STAGES, "(d_attended + (d_lse - inner)[..., None])", "(d_attended - inner[..., None])", "masked_softmax"),
    Fault("sink's gradient without the weights", STAGES, "sink_weight * (d_lse - inner)", "sink_weight * d_lse", "masked_softmax"),
    Fault("dropout without 1 / (1 - rate)", STAGES, "factor = keep / (1 - rate)", "factor = keep * 1.0", "dropout"),
    Fault("dropout divides by the rate", STAGES, "factor = keep / (1 - rate)", "factor = keep / rate", "dropout"),
    Fault("soft cap not multiplied back", STAGES, "return cap * bounded,", "return bounded,", "softcap"),
    Fault("soft cap's slope not squared", STAGES, "(1 - bounded**2)", "(1 - bounded)", "softcap"),
    Fault("softmax's pullback without its sum", "primitives/softmax.py", "y * (dy - (y * dy).sum(axis=-1, keepdims=True))", "y * dy", "softmax"),
    Fault("wrong head order", "attention/dot_product/multi_head.py", "heads, x.shape[-1] // heads).swapaxes(-2, -3)",
          "x.shape[-1] // heads, heads).swapaxes(-1, -3).swapaxes(-1, -2)", "multi_head_attention"),
    Fault("parts merged without their shares", "attention/dot_product/merge.py", '"outputs": shares_first * d_output', '"outputs": d_output + 0 * read', "merge_attention"),
    Fault("half of d_x", "primitives/linear.py", '"x": dy @ weight', '"x": 0.5 * dy @ weight', "linear"),
    Fault("linear's bias counted twice", "primitives/linear.py", '"bias": rows.sum(axis=0)', '"bias": 2 * rows.sum(axis=0)', "linear"),
    Fault("kernel flipped", RULE, "for t in itertools.product(*map(range, kernel)):", "for t in itertools.product(*(range(k)[::-1] for k in kernel)):", "conv1d conv2d conv3d"),
    Fault("dilation is the stride", RULE, "slice(i * d, i * d + s * (n - 1) + 1, s)", "slice(i * s, i * s + s * (n - 1) + 1, s)", "conv1d conv2d conv3d"),
    Fault("one position too few", RULE, "(n - d * (k - 1) - 1) // s + 1 for", "(n - d * (k - 1) - 1) // s for", "conv1d conv2d conv3d"),
    Fault("same: odd padding before", RULE, "(max(m, 0) // 2, (max(m, 0) + 1) // 2)", "((max(m, 0) + 1) // 2, max(m, 0) // 2)", "conv1d conv2d conv3d"),
    Fault("bias's gradient of one example", RULE, "return dy.sum(axis=(0, *range(2, dy.ndim)))", "return dy[:1].sum(axis=(0, *range(2, dy.ndim)))", "conv1d conv2d conv3d"),
    Fault("weight's gradient upside down", RULE, "np.moveaxis(np.moveaxis(d_matrices, 0, -1)", "np.moveaxis(np.moveaxis(d_matrices[::-1], 0, -1)", "conv2d conv3d"),
    Fault("groups interleaved with channels", RULE, "groups, x.shape[axis] // groups, *x.shape[axis + 1 :])", "x.shape[axis] // groups, groups, *x.shape[axis + 1 :]).swapaxes(axis, axis + 1)",
          "conv1d conv2d conv3d"),
    Fault("transposed: cut at the wrong ends", RULE, "slice(before, n - after)", "slice(after, n - before)", "conv_transpose1d conv_transpose2d conv_transpose3d"),
    Fault("state's gradient dropped", "convolution/causal.py", "d_seen[..., x.shape[2] :] += d_state", "d_seen[..., x.shape[2] :] += 0 * d_state", "causal_conv1d"),
    Fault("reflection repeats the edge", "primitives/padding.py", 'source = np.pad(np.arange(size), pair, mode=NUMPY_MODES[mode])',
          'source = np.pad(np.arange(size), pair, mode="edge")', "pad conv2d"),
    Fault("eps outside the root", NORM, "inverse = 1 / np.sqrt(var + eps)", "inverse = 1 / (np.sqrt(var) + eps)", "layer_norm rms_norm group_norm"),
    Fault("normalisation's pullback without z * mean(z dz)", NORM, "inverse * (dz - z * mean_of(z * dz))", "inverse * dz", "layer_norm rms_norm group_norm"),
    Fault("normalisation's pullback without the mean", NORM, "return d_moved - mean_of(d_moved) + d_mean / count if center", "return d_moved + d_mean / count if center", "layer_norm group_norm"),
    Fault("running variance is biased", NORM, "unbiased = count / (count - 1)", "unbiased = 1.0", "batch_norm_training"),
    Fault("momentum the other way", NORM, "(1 - momentum) * running_mean + momentum * mean", "momentum * running_mean + (1 - momentum) * mean", "batch_norm_training"),
    Fault("gelu's tail of x, not -x", "primitives/activation.py", "erfc.vjp(-root * x)", "erfc.vjp(root * x)", "gelu"),
    Fault("tanh gelu without its cubic slope", "primitives/activation.py", "slope * (1 + 3 * CUBIC * finite**2)", "slope", "gelu"),
    Fault("softplus not divided by beta", "primitives/activation.py", "np.log1p(np.exp(-np.abs(steep)))) / beta", "np.log1p(np.exp(-np.abs(steep))))", "softplus"),
    Fault("squeezed map not in d_x", SQUEEZE, 'd_gated["x"] + squeeze_pullback(d_excited["x"])["x"]', 'd_gated["x"]', "squeeze_excitation"),
    Fault("squeezed map not in d_x, one layer", SQUEEZE, 'd_gated["x"] + squeeze_pullback(d_linear["x"])["x"]', 'd_gated["x"]', "squeeze_excitation_one_layer"),
    Fault("means and maxima swapped", "attention/channel/cbam.py", "np.concatenate([means, maxima], axis=1), w_gate", "np.concatenate([maxima, means], axis=1), w_gate",
          "cbam_channel_concat"),
    Fault("both gates on x", "attention/channel/cbam.py", "cbam_spatial.vjp(gated, w_spatial, b_spatial)", "cbam_spatial.vjp(x, w_spatial, b_spatial)", "cbam"),
    Fault("a scale where there is none", "attention/spatial/non_local.py", "scale=1.0", "scale=None", "non_local"),
    Fault("a mean's gradient not divided", "attention/spatial/non_local.py", 'lambda dy: {"scores": dy / count}', 'lambda dy: {"scores": dy}', "mean_weights"),
    Fault("halves of the weights swapped", "attention/spatial/non_local.py", "np.concatenate([d_left[\"weight\"][0], d_right[\"weight\"][0]])",
          "np.concatenate([d_right[\"weight\"][0], d_left[\"weight\"][0]])", "non_local"),
    Fault("smoothing not spread", "primitives/loss.py", "(label_smoothing / classes)", "label_smoothing", "cross_entropy"),
    Fault("tanh left out of the pullback", SCORE, "activation_pullback(d_score[\"x\"])[\"x\"]", "d_score[\"x\"]", "additive_attention concat_attention"),
    Fault("gradients of query and key swapped", SCORE, 'np.concatenate([d["w_query"], d["w_key"]], axis=1)', 'np.concatenate([d["w_key"], d["w_query"]], axis=1)',
          "concat_attention perceptron_attention"),
    Fault("a gradient through the weights dropped", SCORE, "(d_weights + d_read)", "(0 * d_weights + d_read)", "region_attention"),
    Fault("unscaled inner products scaled", "attention/score/dot.py", "scale=1.0", "scale=None", "dot_attention general_attention"),
    Fault("regions not read as values", "attention/score/region.py", 'd["key"] + d["value"]', 'd["key"]', "region_attention"),
    Fault("no gradient of the log-probability", HARD, "np.where(taken, d_log_probability[..., None], 0) -", "np.where(taken, 0 * d_log_probability[..., None], 0) -", "hard_attention"),
    Fault("entropy of another sign", HARD, "-np.where(allowed, weights * log_weights, 0)", "np.where(allowed, weights * log_weights, 0)", "hard_attention"),
    Fault("values learn as if averaged", "attention/stochastic/straight_through.py", '"value": masked_matmul(', '"other": masked_matmul(', "straight_through_attention"),
    Fault("noise not divided by the temperature", "attention/stochastic/gumbel.py", "value, noise / temperature", "value, noise", "gumbel_softmax_attention"),
    Fault("the gate's state dropped", "attention/score/region.py", '+ d_gate["state"]', '+ 0 * d_gate["state"]', "region_attention"),
    Fault("window not divided in the pullback", "primitives/windows.py", "wide * np.moveaxis(dy, axis, 0)[:, None]", "np.moveaxis(dy, axis, 0)[:, None] + 0 * wide", "avg_pool1d avg_pool2d"),
    Fault("tokens as keys not in d_x", "blocks/sublayers.py", 'd["query"] + d["key"] + d["value"]', 'd["query"] + d["value"]', "transformer_encoder_layer"),
    Fault("residual not in d_x", "blocks/sublayers.py", 'd_add["a"] + d_before["x"]', 'd_before["x"]', "transformer_encoder_layer"),
    Fault("dropout of a sublayer left out of the pullback", "blocks/sublayers.py", 'dropout_pullback(d_add["b"])["x"]', 'd_add["b"]', "transformer_encoder_layer"),
    Fault("gradients of the layers in backward order", "blocks/stacks.py", "d_layers.insert(0, d_layer", "d_layers.append(d_layer", "transformer_encoder"),
    Fault("memory's gradient of one layer alone", "blocks/stacks.py", "add(*d_memories)", "add(*d_memories[:1])", "transformer_decoder"),
    Fault("values of the memory doubled", "blocks/sublayers.py", "vjp(x, memory, memory", "vjp(x, memory, 2 * memory", "transformer_decoder_layer"),
    Fault("norms of a layer swapped", "blocks/transformer_encoder_layer.py", 'd_attention["norm"], d_network["norm"])', 'd_network["norm"], d_attention["norm"])', "transformer_encoder_layer"),
    Fault("frequencies of odd features", "positional/sinusoidal.py", "-np.arange(0, model_dim, 2,", "-np.arange(1, model_dim + 1, 2,", "sinusoidal_encoding"),
    Fault("gradient of the rows upside down", "positional/maps.py", 'return d_tall.sum(axis=2).swapaxes(0, 1), d_wide', 'return d_tall.sum(axis=2).swapaxes(0, 1)[::-1], d_wide', "add_learned_2d"),
)  # fmt: skip


@contextmanager
def planted(copy: Path, fault: Fault) -> Iterator[None]:
    """Within the block, the copy has the fault; ValueError where its text does not stand there exactly once."""
    path = copy / "refattn" / fault.file
    right = path.read_text("utf-8")
    if (found := right.count(fault.old)) != 1:
        raise ValueError(f"{fault.what}: {fault.old!r} stands {found} times in {fault.file}")
    path.write_text(right.replace(fault.old, fault.new), "utf-8")
    try:
        yield
    finally:
        path.write_text(right, "utf-8")


def tested(copy: Path, mechanisms: str) -> tuple[int, str]:
    """The exit status of pytest over these mechanisms' gradients and definitions, and the first test that fails."""
    names = " or ".join(f"[{m}" for m in mechanisms.split())
    wanted = f"(gradients_are or agrees_with) and ({names})"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--no-header", "--tb=no", *TESTS, "-k", wanted]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    first = re.search(r"^FAILED [\w/.]+::(\S.*?)(?: - .*)?$", done.stdout, re.MULTILINE)
    return done.returncode, first[1] if first else done.stdout[-400:]


def copied(folder: Path) -> Path:
    """The package and its tests in another folder."""
    for part in (PACKAGE, ROOT / "tests"):
        shutil.copytree(part, folder / part.name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def main(words: str = "") -> int:
    """Print what caught each fault; 1 where one was not caught, 2 where one could not be planted."""
    chosen = [f for f in FAULTS if words in f.what]
    if not chosen:
        print(f"no fault has {words!r} in its name", file=sys.stderr)
        return 2
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        copies: Queue[Path] = Queue()
        for i in range(PROCESSES):
            copies.put(copied(Path(folder, str(i))))

        def outcome(fault: Fault | None) -> tuple[int, str]:
            copy = copies.get()
            try:
                if fault is None:
                    return tested(copy, " ".join(sorted({m for f in chosen for m in f.mechanisms.split()})))
                with planted(copy, fault):
                    return tested(copy, fault.mechanisms)
            except ValueError as error:
                return 2, str(error)
            finally:
                copies.put(copy)

        with ThreadPool(PROCESSES) as pool:
            (right, why), *outcomes = progress(pool.imap(outcome, [None, *chosen]), len(chosen) + 1, "planting faults")
    if right:
        print(f"without a fault the tests fail: {why}", file=sys.stderr)
        return 2
    table = Table("fault", "file", "caught by")
    for fault, (status, by) in zip(chosen, outcomes, strict=True):
        result = by if status == 1 else f"NOT CAUGHT: {by.strip()}" if status == 0 else f"could not run: {by.strip()}"
        table.row(fault.what, fault.file, result.replace("\n", " "), style="" if status == 1 else "bold red")
    table.print()
    caught = sum(status == 1 for status, _ in outcomes)
    print(f"{caught} of {len(chosen)} faults caught in {time.perf_counter() - began:.0f} s")
    return 2 if any(status > 1 for status, _ in outcomes) else int(caught < len(chosen))


if __name__ == "__main__":
    sys.exit(main(" ".join(sys.argv[1:])))
