"""Known peers: their functions under our names, their differences by the convention's name.

An adapter is a module-like mapping from mechanisms to candidates. It maps names, layouts and options, and raises `Unsupported`
for what the peer does not offer; it never computes anything itself.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple

import numpy as np

import refattn
from refattn._core import Booleans, Mechanism
from refattn.attention.dot_product.scaled_dot_product import allowed_pairs
from refattn.testing import frameworks
from refattn.testing.candidates import Candidate, Unsupported, as_candidate, none_known

Candidates = dict[str, Candidate]


def targets() -> dict[str, Callable[[], Candidates]]:
    """The known peers whose packages are installed.

    Returns
    -------
    dict of str to callable
        Each returns its candidates by the names of mechanisms.
    """
    return {name: make for name, (package, make) in ADAPTERS.items() if importlib.util.find_spec(package) is not None}


def resolve(
    target: str,
    name: str | None = None,
    *,
    framework: str = "numpy",
    layout: str | None = None,
    arguments: Mapping[str, str] | None = None,
) -> list[tuple[Mechanism[..., Any], Candidate]]:
    """The candidates that a target names: a known peer, or ``module:callable``.

    Parameters
    ----------
    target : str
        ``"torch"``, ``"jax"``, ``"onnx"``, ``"refattn_numba"``, or an importable ``module:callable``.
    name : str or None, optional
        Only this mechanism; for a callable the default is its own name.
    framework, layout, arguments : optional
        Of a callable, as for `refattn.testing.check`.

    Returns
    -------
    list of (mechanism, Candidate)
        What to check.
    """
    known = {m.__name__: m for m in refattn.mechanisms()}
    if ":" in target:
        module, _, path = target.partition(":")
        made: Any = _imported(module)
        try:
            made = functools.reduce(getattr, path.split("."), made)
        except AttributeError as error:
            raise LookupError(str(error)) from None
        asked = name or path.rpartition(".")[2]
        if asked not in known:
            raise LookupError(f"no mechanism is named {asked!r}: say which one {target} should be")
        candidate = as_candidate(made, known[asked], framework=framework, layout=layout, arguments=arguments)
        return [(known[asked], candidate)]
    if target not in ADAPTERS:
        raise LookupError(f"no adapter is named {target!r}: known are {', '.join(ADAPTERS)}, or give module:callable")
    package, make = ADAPTERS[target]
    if importlib.util.find_spec(package) is None:
        raise ImportError(f"{target} is not installed")
    found = make()
    if name is not None and name not in found:
        raise LookupError(f"{target} has no {name}: it has {', '.join(found)}")
    return [(known[n], c) for n, c in found.items() if name in {None, n}]


def _imported(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except Exception as error:  # whatever a module does as it is imported, it cannot be checked
        said = str(error) if isinstance(error, ImportError) else f"{module}: {type(error).__name__}: {error}"
        raise ImportError(said) from error


def twin() -> Candidates:
    """Every function of `refattn_numba`."""
    fast = importlib.import_module("refattn_numba").twins()
    return {name: as_candidate(f, f) for name, f in fast.items()}


def torch() -> Candidates:
    """Attention and convolutions of ``torch.nn.functional``."""
    library = importlib.import_module("torch")
    functional = library.nn.functional
    made: dict[str, Callable[..., Any]] = {"scaled_dot_product_attention": _torch_attention(library)}
    for n in (1, 2, 3):
        made[f"conv{n}d"] = _TorchConvolution(functional, n)
        made[f"conv_transpose{n}d"] = _torch_transposed(getattr(functional, f"conv_transpose{n}d"))
    frame = frameworks.framework("torch")
    known = {"scaled_dot_product_attention": _known_of_torch}
    return {name: Candidate(call, frame, known_difference=known.get(name, none_known)) for name, call in made.items()}


def _allowed(query: Any, key: Any, bias: Any, options: Mapping[str, Any]) -> Booleans:
    """One boolean mask for all that masks."""
    mask, align = options.get("mask"), options.get("align")
    shape = (*query.shape[:-1], key.shape[-2])
    causal, window = bool(options.get("causal")), options.get("window")
    return allowed_pairs(shape, bias, mask=None if mask is None else np.asarray(mask), causal=causal, align=align, window=window)


class Asked(NamedTuple):
    """One call of softmax attention, in what all peers have: pairs as one boolean mask, numbers as options."""

    query: Any
    key: Any
    value: Any
    bias: Any
    allowed: Any  # a NumPy mask, or None where all pairs are allowed
    is_causal: bool  # whether the mask is the peer's own causal one, aligned at the upper left
    scale: float | None
    softcap: float | None


def _asked_of(peer: Callable[[Asked], Any], *, softcap: bool = False, empty: bool = True) -> Callable[..., Any]:
    """A function with the arguments of `scaled_dot_product_attention` that asks the peer for what it has and refuses the rest."""

    def attention(query: Any, key: Any, value: Any, bias: Any = None, **options: Any) -> Any:
        causal, scale = bool(options.get("causal")), options.get("scale")
        known = {"mask", "causal", "align", "window", "scale"} | ({"softcap"} if softcap else set())
        if lacking := sorted(options.keys() - known):
            raise Unsupported(f"{', '.join(lacking)}: not supported")
        if hasattr(scale, "shape"):
            raise Unsupported("scale as an array: not supported")
        if not empty and not (query.shape[-2] and key.shape[-2]):
            raise Unsupported("empty lengths: not supported")
        others = bias is not None or bool({"mask", "window"} & options.keys())
        allowed = _allowed(query, key, None, options) if causal or {"mask", "window"} & options.keys() else None
        own = causal and not others and (options.get("align") == "upper_left" or query.shape[-2] == key.shape[-2])
        return peer(Asked(query, key, value, bias, allowed, own, scale, options.get("softcap")))

    return attention


def _torch_attention(library: Any) -> Callable[..., Any]:
    """``torch.nn.functional.scaled_dot_product_attention``; what is neither its mask nor its causal flag as a float mask."""

    def attention(asked: Asked) -> Any:
        query, key, value, bias, allowed, is_causal, scale, _ = asked
        bound = None if allowed is None or is_causal else library.from_numpy(allowed)
        if bias is not None:
            bound = bias if bound is None else library.where(bound, bias, -library.inf).to(query.dtype)
        function = library.nn.functional.scaled_dot_product_attention
        grouped = query.shape[-3] != key.shape[-3]
        return function(query, key, value, attn_mask=bound, is_causal=is_causal, scale=scale, enable_gqa=grouped)

    return _asked_of(attention)


class _TorchConvolution:
    """``torch.nn.functional.conv1d`` to ``conv3d``; asymmetric padding and padding modes by ``pad`` before it."""

    def __init__(self, functional: Any, axes: int) -> None:
        self.functional, self.axes, self.convolve = functional, axes, getattr(functional, f"conv{axes}d")

    def __call__(
        self,
        x: Any,
        weight: Any,
        bias: Any = None,
        *,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
    ) -> Any:
        strides = (stride,) * self.axes if isinstance(stride, int) else stride
        if padding == "same" and any(s > 1 for s in strides):
            raise Unsupported("padding='same' with a stride: not supported")
        symmetric = isinstance(padding, (int, str)) or all(isinstance(p, int) for p in padding)
        if padding_mode == "zeros" and symmetric:
            return self.convolve(x, weight, bias, stride, padding, dilation, groups)
        x = self.functional.pad(x, self._pads(weight, padding, dilation), mode={"zeros": "constant"}.get(padding_mode, padding_mode))
        return self.convolve(x, weight, bias, stride, 0, dilation, groups)

    def _pads(self, weight: Any, padding: Any, dilation: Any) -> list[int]:
        """Numbers before and after, the last axis first."""
        if padding == "same":
            dilations = (dilation,) * self.axes if isinstance(dilation, int) else dilation
            totals = [d * (k - 1) for d, k in zip(dilations, weight.shape[2:], strict=True)]
            pairs = [(t // 2, t - t // 2) for t in totals]
        else:
            each = [0] * self.axes if padding == "valid" else [padding] * self.axes if isinstance(padding, int) else padding
            pairs = [(p, p) if isinstance(p, int) else tuple(p) for p in each]
        return [n for pair in reversed(pairs) for n in pair]


def _torch_transposed(convolve: Callable[..., Any]) -> Callable[..., Any]:
    def call(x: Any, weight: Any, bias: Any = None, *, padding: Any = 0, **options: Any) -> Any:
        if not isinstance(padding, int) and not all(isinstance(p, int) for p in padding):
            raise Unsupported("asymmetric padding of a transposed convolution: not supported")
        return convolve(x, weight, bias, padding=padding, **options)

    return call


def _known_of_torch(what: str, arguments: Mapping[str, Any], dtype: str) -> str:
    """In PyTorch, as in JAX and in ONNX's definition, a weight of 0 still multiplies its value."""
    finite = all(np.isfinite(arguments[name]).all() for name in ("query", "key", "value"))
    return "" if finite else "mask: a number that is not finite and is masked out reaches the output"


def _known_of_jax(what: str, arguments: Mapping[str, Any], dtype: str) -> str:
    """JAX gives a row without keys the mean of all values, and has float32 inside whatever it is given."""
    if unseen := _known_of_torch(what, arguments, dtype):
        return unseen
    if not _allowed(arguments["query"], arguments["key"], arguments.get("bias"), arguments).any(axis=-1).all():
        return 'masked_rows: a row that may attend nowhere is "uniform"'
    return "dtype: scores and softmax are float32 for float64 inputs" if dtype == "float64" and what != "all" else ""


def jax() -> Candidates:
    """``jax.nn.dot_product_attention``, whose layout is (batch, length, heads, head_dim)."""
    library = importlib.import_module("jax")

    def attention(asked: Asked) -> Any:
        query, key, value, bias, allowed, _, scale, _ = asked
        if value.shape[-1] != key.shape[-1]:
            raise Unsupported("value_dim that is not head_dim: not supported")
        full = (*query.shape[:-1], key.shape[-2])
        spread = None if bias is None else library.numpy.broadcast_to(bias, full)
        q, k, v = (x.swapaxes(-2, -3) for x in (query, key, value))
        return library.nn.dot_product_attention(q, k, v, bias=spread, mask=allowed, scale=scale).swapaxes(-2, -3)

    candidate = Candidate(_asked_of(attention, empty=False), frameworks.framework("jax"), known_difference=_known_of_jax)
    return {"scaled_dot_product_attention": candidate}


def onnx() -> Candidates:
    """The Attention operator of ONNX, by its reference evaluator; it has no gradients."""
    evaluator = importlib.import_module("onnx.reference").ReferenceEvaluator
    helper = importlib.import_module("onnx.helper")

    def attention(asked: Asked) -> Any:
        query, key, value, bias, allowed, _, scale, softcap = asked
        inputs = {"Q": query, "K": key, "V": value}
        if bias is not None:
            full = np.broadcast_to(bias, (*query.shape[:-1], key.shape[-2]))
            inputs["attn_mask"] = (full if allowed is None else np.where(allowed, full, -np.inf)).astype(query.dtype)
        elif allowed is not None:
            inputs["attn_mask"] = allowed
        attributes = {n: float(x) for n, x in (("scale", scale), ("softcap", softcap)) if x is not None}
        types = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape) for n, x in inputs.items()]
        output = helper.make_tensor_value_info("Y", helper.np_dtype_to_tensor_dtype(query.dtype), None)
        node = helper.make_node("Attention", list(inputs), ["Y"], **attributes)
        graph = helper.make_graph([node], "attention", types, [output])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)])
        return evaluator(model).run(None, inputs)[0]

    def known(what: str, arguments: Mapping[str, Any], dtype: str) -> str:
        if unseen := _known_of_torch(what, arguments, dtype):
            return unseen
        rounded = dtype == "float64" and what == "output" and arguments.get("scale") is not None
        return "scale: the attribute is float32, and so is its square root, which multiplies queries and keys" if rounded else ""

    return {"scaled_dot_product_attention": Candidate(_asked_of(attention, softcap=True, empty=False), known_difference=known)}


ADAPTERS: dict[str, tuple[str, Callable[[], Candidates]]] = {
    "refattn_numba": ("numba", twin),
    "torch": ("torch", torch),
    "jax": ("jax", jax),
    "onnx": ("onnx", onnx),
}


KERNELS = {"float32", "float64", "bfloat16", "float16"}
"""Formats that the twin has kernels for."""


def _compile_twin(dtypes: Sequence[str], level: str, executor: Executor) -> None:
    """What is left out here is compiled where it is called."""
    quick = level == "quick"
    groups = ("attention", "options", "linear", "convolution") if quick else ()  # of caches, quick cases have none of a smaller type
    warm_up = importlib.import_module("refattn_numba").warm_up
    warm_up(*groups, dtypes=[d for d in dtypes if d in KERNELS], large=not quick, executor=executor)


PREPARED: dict[str, Callable[[Sequence[str], str, Executor], None]] = {"refattn_numba": _compile_twin}
"""What is done before several processes check all of a known peer, each of which would do it again: given formats, level, and them."""
