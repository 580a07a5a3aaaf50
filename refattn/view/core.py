"""The core of the field: the 34 systems that introductions to attention name, and what gives each of them here."""

from __future__ import annotations

import contextlib
import io
import json
import pkgutil
from argparse import ArgumentParser
from collections.abc import Iterator
from typing import Any, NamedTuple

import refattn
from refattn.view.table import Table


class System(NamedTuple):
    """One system of the core.

    Attributes
    ----------
    name : str
        What the field calls it.
    mechanisms : tuple of str, optional
        Mechanisms that are it, the most telling first.
    functions : tuple of str, optional
        Other modules and functions of the package, without ``refattn.`` before them.
    commands : tuple of str, optional
        Command lines, without ``refattn`` before them.
    tests : tuple of str, optional
        Comparisons, as patterns of paths in the repository; an installed package does not have them.
    """

    name: str
    mechanisms: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()


CORE = (
    System("dot-product attention", ("dot_attention",)),
    System("scaled dot-product attention", ("scaled_dot_product_attention",)),
    System("additive (Bahdanau) attention", ("additive_attention",)),
    System("concatenation score", ("concat_attention",)),
    System("perceptron score", ("perceptron_attention",)),
    System("soft attention", ("region_attention", "doubly_stochastic_penalty")),
    System(
        "hard attention, its REINFORCE gradient and relaxations",
        ("hard_attention", "straight_through_attention", "gumbel_softmax_attention"),
        tests=("tests/test_estimators.py",),
    ),
    System("self-attention over a sequence", ("multi_head_attention", "scaled_dot_product_attention")),
    System("self-attention over pixels", ("pixel_self_attention",)),
    System("multi-head attention", ("multi_head_attention",)),
    System("multi-head attention without projections", ("multi_head_attention_without_projections",), tests=("tests/test_traps.py",)),
    System("positional encoding of sequences and feature maps", ("add_sinusoidal", "add_sinusoidal_2d", "add_learned", "add_learned_2d")),
    System("Transformer encoder layer", ("transformer_encoder_layer", "transformer_encoder")),
    System("Transformer decoder layer", ("transformer_decoder_layer", "transformer_decoder", "transformer")),
    System("residual connection, layer norm, feed-forward network", ("layer_norm", "feed_forward", "add")),
    System("attention dropout", ("dropout", "multi_head_attention")),
    System("global average and max pooling", ("global_avg_pool", "global_max_pool")),
    System("squeeze-and-excitation", ("squeeze_excitation",)),
    System("squeeze-and-excitation of one layer", ("squeeze_excitation_one_layer",), tests=("tests/test_traps.py",)),
    System("CBAM channel attention", ("cbam_channel", "cbam_channel_concat")),
    System("CBAM spatial attention", ("cbam_spatial",)),
    System("CBAM", ("cbam",), tests=("tests/test_traps.py",)),
    System("non-local block", ("non_local",)),
    System("non-local means", ("non_local_means",)),
    System("ACmix", ("acmix",)),
    System("self-attention with convolution, concatenated or added", ("attention_augmented_conv2d", "conv_attention_sum")),
    System("residual attention network", ("residual_attention_module", "residual_attention")),
    System(
        "spatial-temporal attention",
        (
            "frame_cnn_temporal_attention",
            "temporal_attention",
            "spatial_temporal_attention",
            "joint_space_time_attention",
            "divided_space_time_attention",
        ),
    ),
    System("question-guided image attention", ("stacked_attention", "question_attention")),
    System("convolution and ReLU", ("conv1d", "conv2d", "relu")),
    System(
        "dense layer, mean squared error, Adam",
        ("linear", "mean_squared_error"),
        ("optim.adam",),
        tests=("tests/external/test_torch_optim.py", "tests/external/test_keras_training.py"),
    ),
    System(
        "training of convolution, attention and dense layer",
        functions=("examples.series",),
        commands=("train series",),
        tests=("tests/external/test_torch_training.py",),
    ),
    System("views of attention maps", functions=("view.attention_maps", "view.page"), commands=("view",), tests=("tests/test_view.py",)),
    System(
        "parity with PyTorch and Keras",
        functions=("interop.torch", "interop.keras"),
        commands=("check torch",),
        tests=("tests/external/test_torch_*.py", "tests/external/test_keras_*.py"),
    ),
)


def missing(system: System) -> list[str]:
    """What a system names and the package does not have; tests are not in the package, and the repository's tests look for them."""
    known = {m.__name__ for m in refattn.mechanisms()}
    commands = {f"refattn {c}": _is_command(c) for c in system.commands}
    return [name for name in given_by(system) if not (name in known or commands.get(name) or _resolves(name))]


def rows() -> Iterator[dict[str, Any]]:
    """The core as plain data, with the status that it has now."""
    for number, system in enumerate(CORE, 1):
        lacking = missing(system)
        yield {"number": number, **system._asdict(), "status": "missing" if lacking else "done", "missing": lacking}


def print_core(as_json: bool) -> None:
    """What ``refattn list --tag core`` prints."""
    if as_json:
        print(json.dumps(list(rows()), indent=2))
        return
    table = Table("#", "status", "system", "given by")
    for system, row in zip(CORE, rows(), strict=True):
        lacking = set(row["missing"])
        named = (f"{name} (missing)" if name in lacking else name for name in given_by(system))
        table.row(row["number"], row["status"], row["name"], ", ".join(named), style="yellow" if lacking else "green")
    table.print(wrap=True)


def given_by(system: System) -> list[str]:
    """What gives a system in the package, as one would type it."""
    return [*system.mechanisms, *(f"refattn.{f}" for f in system.functions), *(f"refattn {c}" for c in system.commands)]


def _resolves(dotted: str) -> bool:
    """Whether this is a module of the package, or something in one."""
    if not dotted.startswith("refattn."):
        return False
    try:
        pkgutil.resolve_name(dotted)
    except (ImportError, AttributeError):
        return False
    return True


def _is_command(line: str) -> bool:
    """Whether the command line is one that can be read."""
    from refattn.__main__ import parser  # noqa: PLC0415  # which imports this module

    return _reads(parser(), line.split())


def _reads(parser: ArgumentParser, words: list[str]) -> bool:
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            parser.parse_args(words)
    except SystemExit:
        return False
    return True
