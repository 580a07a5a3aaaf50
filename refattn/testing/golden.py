"""Golden files: calls, what they give and how far an honest kernel may be from it, for tests in any language."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import refattn
from refattn._core import Array, Mechanism
from refattn._core.docstring import walk
from refattn._core.mechanism import outputs
from refattn.testing.battery import Case
from refattn.testing.bits import stored
from refattn.testing.budget import Allowance, Allowances
from refattn.testing.calls import cotangents
from refattn.testing.manifest import FORMAT, MANIFEST, Item, Storage, inside, read_case, read_manifest, sha256, write_case, write_json
from refattn.testing.precision import Format
from refattn.testing.reference import reference_values, rounded
from refattn.testing.vacuous import is_vacuous

COLLECTION, LIST = "refattn-golden", "cases.txt"
BUDGET = ".budget"
CONVENTIONS = (
    "A boolean mask is True where a query may attend.",
    "A causal mask or a window is aligned at the upper left (query i sits at key i) or at the lower right (the last query at the last key).",
    "A window (left, right) counts the keys besides the diagonal; none is no limit.",
    "A query that may attend nowhere gives 0, and gradients of exactly 0, unless masked_rows says otherwise.",
    "The order is scale, soft cap, bias, mask, softmax, dropout, value; the scale is 1 / sqrt(head_dim) unless given.",
    "Query head h reads key and value head h // group.",
    "A log-sum-exp is natural, includes the sink, and is -inf for a row without keys.",
    'Convolution is cross-correlation; padding="same" gives ceil(size / stride), the odd one after.',
    "What stands in a masked key or value reaches no output and no gradient.",
)
TOLERANCE = (
    "Right is |got - expected| <= budget in every element; where expected is not finite, got is the same. The budget is what an honest "
    "kernel of this dtype, with sums in float32 (float64 for float64), may be off by, derived element by element in refattn.testing.budget. "
    "smallest and largest are those of its elements: a kernel within smallest is right, one beyond largest is wrong. Where decides is "
    "false, most of the budget is larger than the signal, and no kernel can be told right by it."
)


EXACT = "refattn.exact: the same bits on every machine"
LONGDOUBLE = "NumPy's longdouble, rounded to float64"


def about(mechanism: Mechanism[..., Any], case: Case, target: Format) -> dict[str, Any]:
    """What a manifest says of a call besides its tensors."""
    facts, options = mechanism.spec.facts, {}
    for name, x in case.arguments.items():
        if name in facts.options:
            options[name] = x
        else:
            options.update({path: x for path, _, x in walk(name, facts.arguments[name], x) if not is_array(x)})
    chosen = {**{n: x for n, x in mechanism.spec.defaults.items() if n in facts.options}, **options}
    return {
        "refattn_version": refattn.__version__,
        "mechanism": mechanism.spec.name,
        "summary": facts.summary,
        "equation": facts.equation,
        "case": case.name,
        "dtype": target.name,
        "conventions": list(CONVENTIONS),
        "options": chosen,
    }


def is_array(x: Any) -> bool:
    """Whether this is a tensor in a manifest, and no option."""
    return isinstance(x, (np.ndarray, np.generic))


def input_items(
    mechanism: Mechanism[..., Any], arguments: Mapping[str, Any], ds: tuple[Array, ...] | None, target: Format
) -> Iterator[Item]:
    """Arguments, which the format holds already, and cotangents."""
    for path, leaf, given in mechanism.spec.facts.leaves(arguments):
        if is_array(given):
            x, facts = np.asarray(given), {"shape_in_words": list(leaf.dims)} if leaf.exact else {}
            yield Item("argument", path, stored(x, target.name if leaf.is_real and x.dtype.kind == "f" else None), facts)
    for name, d in zip(mechanism.spec.output_names, ds or (), strict=ds is not None):
        yield Item("cotangent", f"d_{name}", stored(d, target.name), {"of": name})


def wanted(made: Mapping[str, Any], gradients: Mapping[str, Any], target: Format) -> list[dict[str, Any]]:
    """What a program should compute: names, types and shapes."""
    named = [("output", n, x) for n, x in made.items()] + [("gradient", f"d_{n}", x) for n, x in gradients.items()]
    return [{"role": role, "name": name, "dtype": target.name, "shape": list(x.shape)} for role, name, x in named]


def drawn_cotangents(y: tuple[Array, ...], target: Format, seed: int = 2) -> tuple[Array, ...]:
    """Those which `refattn.testing.check` draws for these outputs, as the format holds them."""
    return tuple(target.round(d) for d in cotangents(y, seed))


def write_golden_case(
    folder: Path, mechanism: Mechanism[..., Any], case: Case, target: Format, storage: Storage, *, seed: int = 2, exactly: bool = False
) -> list[Item]:
    """Write one call with its results, gradients and budgets; what was written."""
    given = rounded(mechanism, case.arguments, target)
    moving = mechanism.spec.facts.differentiable(mechanism.spec.accept(given))
    ds = drawn_cotangents(outputs(mechanism(**given)), target, seed) if moving else None
    values = reference_values(mechanism, given, ds, exactly=exactly)
    allowances = Allowances(mechanism, given, target, exact_scores=case.exact_scores)
    allowed = allowances.forward(values.outputs)
    items = [*input_items(mechanism, given, ds, target)]
    items += _expected("output", "", values.outputs, allowed)
    if ds is not None:
        bounds = allowances.backward(ds, values.gradients)
        items += _expected("gradient", "d_", values.gradients, bounds)
    facts = {
        **about(mechanism, case, target),
        "computed_in": EXACT if exactly else LONGDOUBLE,
        "wanted": wanted(values.outputs, values.gradients, target),
        "tolerance": TOLERANCE,
    }
    write_case(folder, facts, items, storage)
    return items


def _expected(role: str, prefix: str, exact: Mapping[str, Array], allowed: Mapping[str, Allowance]) -> Iterator[Item]:
    for path, x in exact.items():
        name, budget = prefix + path, np.where(np.isfinite(x), allowed[path].budget, 0.0)
        summary = {"smallest": budget.min() if budget.size else 0.0, "largest": budget.max(initial=0.0)}
        numbers = {n: float(b) if np.isfinite(b) else None for n, b in summary.items()}
        tolerance = {"budget": name + BUDGET, **numbers, "decides": not is_vacuous(budget, x)}
        yield Item(role, name, stored(x, "float64"), {"tolerance": tolerance, **({"of": path} if prefix else {})})
        yield Item("budget", name + BUDGET, stored(budget, "float64"), {"of": name})


def folder_name(case: str) -> str:
    """A case's name in letters that every file system and shell takes."""
    return re.sub(r"[^a-z0-9.]+", "-", case.lower().replace(" -", " minus ")).strip("-.") or "case"


def distinct(name: str, taken: Collection[str]) -> str:
    """The name, with a number where it is taken."""
    return next(n for n in (name, *(f"{name}-{i}" for i in range(2, len(taken) + 3))) if n not in taken)


def chosen_cases(every: Sequence[Case], patterns: Sequence[str]) -> list[Case]:
    """The cases that a pattern names; LookupError for a pattern that names none."""
    if not patterns:
        return list(every)
    for pattern in patterns:
        if not fnmatch.filter([c.name for c in every], pattern):
            raise LookupError(f"no case is named {pattern!r}: there are {', '.join(c.name for c in every)}")
    return [c for c in every if any(fnmatch.fnmatchcase(c.name, p) for p in patterns)]


def write_collection(out: Path, mechanism: Mechanism[..., Any], folders: Sequence[str]) -> None:
    """Write what names the cases of a folder, each with the SHA-256 of its manifest."""
    listed = [{"folder": f, "sha256": sha256((out / f / MANIFEST).read_bytes())} for f in folders]
    text = "".join(f + "\n" for f in folders)
    (out / LIST).write_text(text, encoding="utf-8", newline="\n")
    facts = {"format": COLLECTION, "format_version": 1, "refattn_version": refattn.__version__, "mechanism": mechanism.spec.name}
    write_json(out / MANIFEST, {**facts, "cases": listed, "files": {LIST: sha256(text.encode())}})


def verify(folder: str | Path) -> int:
    """Compare every file of golden files with its SHA-256.

    Parameters
    ----------
    folder : str or Path
        That of a collection, or of one case.

    Returns
    -------
    int
        How many tensors were read.

    Raises
    ------
    ValueError
        For the first file that is not what the manifest says.
    """
    folder = Path(folder)
    manifest = read_manifest(folder, COLLECTION, FORMAT)
    if manifest["format"] == FORMAT:
        case = read_case(folder)
        _verify_files(folder, case.manifest)
        return len(case.inputs) + len(case.expected)
    _verify_files(folder, manifest)
    cases, count = manifest.get("cases"), 0
    if not isinstance(cases, list) or not all(isinstance(c, dict) and isinstance(c.get("folder"), str) for c in cases):
        raise ValueError(f"{folder / MANIFEST}: cases is no list of folders")
    for c in cases:
        path = inside(folder, f"{c['folder']}/{MANIFEST}")
        if sha256(path.read_bytes()) != c.get("sha256"):
            raise ValueError(f"{path} has not its SHA-256")
        case = read_case(path.parent)
        _verify_files(path.parent, case.manifest)
        count += len(case.inputs) + len(case.expected)
    return count


def _verify_files(folder: Path, manifest: Mapping[str, Any]) -> None:
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise ValueError(f"{folder / MANIFEST}: files is no object")
    for file, digest in files.items():
        if sha256(inside(folder, file).read_bytes()) != digest:
            raise ValueError(f"{folder / file} has not its SHA-256")
