"""Golden files in the layout of ONNX's node tests: ``model.onnx``, ``test_data_set_0/input_0.pb``, ``output_0.pb``.

Only what one ONNX operator computes can be written so; the rest of the folder is that of every golden case.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refattn._core import Mechanism
from refattn.attention.dot_product.scaled_dot_product import allowed_pairs
from refattn.testing.battery import Case
from refattn.testing.bits import Tensor, stored
from refattn.testing.golden import write_golden_case
from refattn.testing.manifest import MANIFEST, Item, sha256, write_json
from refattn.testing.precision import Format
from refattn.testing.reference import rounded
from refattn.testing.safetensors import strict_json

OPSET = 24
"""The first with Attention whose rows may see no key, bfloat16 and grouped heads."""
DATA = "test_data_set_0"


class Unsuited(ValueError):  # noqa: N818  # it is an answer, not an error
    """Raised for a call that the operator has not."""


class Node(NamedTuple):
    """One node: its operator, inputs in order (None is left out) and attributes."""

    operator: str
    inputs: list[tuple[str, Any]]
    attributes: dict[str, Any]


def _attention(arguments: Mapping[str, Any]) -> Node:
    """All that masks as one mask, except a causal mask alone, which is an attribute."""
    given = dict(arguments)
    query, key, value, bias = given.pop("query"), given.pop("key"), given.pop("value"), given.pop("bias", None)
    names = ("mask", "causal", "align", "window")
    mask, causal, align, window = (given.pop(n, None) for n in names)
    scale, softcap = given.pop("scale", None), given.pop("softcap", None)
    if given:
        raise Unsuited(f"{', '.join(sorted(given))}: not in Attention")
    if query.ndim != 4 or not query.size * key.size * value.size:
        raise Unsuited("Attention has four dimensions, none of them empty")
    if isinstance(scale, np.ndarray):
        raise Unsuited("scale as an array: not in Attention")
    shape = (*query.shape[:-1], key.shape[-2])
    allowed = allowed_pairs(shape, bias, mask=mask, causal=bool(causal), align=align, window=window)
    if not allowed.any(axis=-1).all():
        raise Unsuited("a query that may attend nowhere: runtimes differ")
    alone = mask is None and window is None and bias is None
    own = bool(causal) and alone and (align == "upper_left" or shape[-2] == shape[-1])
    inputs = [("Q", query), ("K", key), ("V", value)]
    if bias is not None:
        inputs.append(("attn_mask", np.where(allowed, np.broadcast_to(bias, shape), -np.inf)))
    elif not own and not allowed.all():
        inputs.append(("attn_mask", np.ascontiguousarray(allowed)))
    numbers = {n: float(x) for n, x in (("scale", scale), ("softcap", softcap)) if x is not None}
    return Node("Attention", inputs, {**numbers, **({"is_causal": 1} if own else {})})


def _convolution(operator: str, arguments: Mapping[str, Any]) -> Node:
    given, axes = dict(arguments), arguments["x"].ndim - 2
    if given.pop("padding_mode", "zeros") != "zeros":
        raise Unsuited(f"padding_mode: not in {operator}")
    if not all(x.size for x in given.values() if isinstance(x, np.ndarray)):
        raise Unsuited(f"{operator} of nothing: runtimes differ")
    inputs = [("X", given.pop("x")), ("W", given.pop("weight"))]
    if (bias := given.pop("bias", None)) is not None:
        inputs.append(("B", bias))
    padding = given.pop("padding", 0)
    if isinstance(padding, str):
        attributes: dict[str, Any] = {"auto_pad": {"same": "SAME_UPPER", "valid": "VALID"}[padding]}
    else:
        pairs = [(p, p) if isinstance(p, int) else tuple(p) for p in _each(padding, axes)]
        attributes = {"pads": [before for before, _ in pairs] + [after for _, after in pairs]}
    for ours, theirs in (("stride", "strides"), ("dilation", "dilations"), ("output_padding", "output_padding")):
        if ours in given:
            attributes[theirs] = list(_each(given.pop(ours), axes))
    if "groups" in given:
        attributes["group"] = given.pop("groups")
    if given:
        raise Unsuited(f"{', '.join(sorted(given))}: not in {operator}")
    return Node(operator, inputs, attributes)


def _each(x: Any, axes: int) -> tuple[Any, ...]:
    return (x,) * axes if isinstance(x, int) else tuple(x)


def _convolve(arguments: Mapping[str, Any]) -> Node:
    return _convolution("Conv", arguments)


def _transposed(arguments: Mapping[str, Any]) -> Node:
    return _convolution("ConvTranspose", arguments)


def _softmax(arguments: Mapping[str, Any]) -> Node:
    return Node("Softmax", [("input", arguments["x"])], {"axis": -1})


OPERATORS: dict[str, Callable[[Mapping[str, Any]], Node]] = {
    "scaled_dot_product_attention": _attention,
    "softmax": _softmax,
    **{f"conv{n}d": _convolve for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": _transposed for n in (1, 2, 3)},
}


def onnx() -> Any:
    """The package, or one ImportError that says what it is needed for."""
    try:
        return importlib.import_module("onnx")
    except ImportError:
        raise ImportError("golden files for ONNX need the package onnx: pip install onnx") from None


def write_onnx_case(folder: Path, mechanism: Mechanism[..., Any], case: Case, target: Format, *, seed: int = 2) -> list[Item]:
    """Write one call as a node test, beside the files of every golden case.

    Raises
    ------
    Unsuited
        Where the operator has not what this call asks for; nothing is written then.
    """
    library, name = onnx(), mechanism.spec.name
    if name not in OPERATORS:
        raise ValueError(f"{name} is no operator of ONNX: those that are, are {', '.join(OPERATORS)}")
    node = OPERATORS[name](rounded(mechanism, case.arguments, target))
    if inexact := [n for n, x in node.attributes.items() if isinstance(x, float) and target.name == "float64" and np.float32(x) != x]:
        raise Unsuited(f"{', '.join(inexact)}: attributes are float32")
    inputs = [(n, stored(x, None if x.dtype == bool else target.name)) for n, x in node.inputs]
    items = write_golden_case(folder, mechanism, case, target, "safetensors", seed=seed)
    exact = next(i.tensor for i in items if i.role == "output").values()
    outputs = [("Y", stored(target.round(exact), target.name))]
    files = {"model.onnx": _model(library, node, inputs, outputs)}
    for kind, tensors in (("input", inputs), ("output", outputs)):
        files |= {f"{DATA}/{kind}_{i}.pb": _tensor(library, *named).SerializeToString() for i, named in enumerate(tensors)}
    (folder / DATA).mkdir()
    for file, data in files.items():
        (folder / file).write_bytes(data)
    manifest = strict_json((folder / MANIFEST).read_bytes())
    manifest["files"] |= {file: sha256(data) for file, data in files.items()}
    write_json(folder / MANIFEST, manifest)
    return items


def _type(library: Any, dtype: str) -> int:
    names = {"float64": "DOUBLE", "float32": "FLOAT", "float8_e4m3fn": "FLOAT8E4M3FN", "float8_e5m2": "FLOAT8E5M2"}
    return getattr(library.TensorProto, names.get(dtype, dtype.upper()))


def _tensor(library: Any, name: str, x: Tensor) -> Any:
    return library.TensorProto(name=name, data_type=_type(library, x.dtype), dims=x.shape, raw_data=x.tobytes())


def _model(library: Any, node: Node, inputs: list[tuple[str, Tensor]], outputs: list[tuple[str, Tensor]]) -> bytes:
    helper = library.helper
    typed = [[helper.make_tensor_value_info(n, _type(library, x.dtype), x.shape) for n, x in each] for each in (inputs, outputs)]
    made = helper.make_node(node.operator, [n for n, _ in inputs], [n for n, _ in outputs], **node.attributes)
    model = helper.make_model(
        helper.make_graph([made], node.operator, *typed),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=11,
        producer_name="refattn",
    )
    try:
        library.checker.check_model(model, full_check=True)
    except Exception as error:  # types or shapes that the operator has not
        raise Unsuited(" ".join(str(error).split())[:160]) from None
    return model.SerializeToString()
