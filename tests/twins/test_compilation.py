"""What compilation costs and says."""

from __future__ import annotations

import importlib
import json
import logging
import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest

pytest.importorskip("numba")

import numpy as np

import refattn_numba
from refattn_numba.__main__ import main
from refattn_numba.cpu import couples, jit
from refattn_numba.cpu.instructions import HOST
from refattn_numba.cpu.specialisations import specialisations


def test_a_slow_compilation_is_noticed(caplog, monkeypatch):
    monkeypatch.setattr(jit.threading, "Timer", lambda seconds, *rest: original(seconds / 100, *rest))
    with jit.noticed("something"):
        time.sleep(0.2)
    assert [r.getMessage() for r in caplog.records] == ["refattn_numba compiles something: once on this machine, for some seconds"]
    caplog.clear()
    logging.getLogger("refattn_numba").setLevel(logging.ERROR)
    try:
        with jit.noticed("something"):
            time.sleep(0.2)
    finally:
        logging.getLogger("refattn_numba").setLevel(logging.NOTSET)
    assert not caplog.records


original = jit.threading.Timer


def test_a_quick_compilation_is_not(caplog):
    with jit.noticed("something"):
        pass
    assert not caplog.records


def test_the_specialisations_are_a_closed_list():
    """Whatever the shapes, layouts, types and options of calls, no kernel has other types than those that `warm_up` compiles."""
    random = np.random.default_rng(0)
    x, many = np.ones((2, 3, 5), np.float32), random.standard_normal((2, 4, 40, 6)).astype(np.float32)
    attend, scan = refattn_numba.scaled_dot_product_attention, refattn_numba.gated_linear_attention
    deform, moves, kernels = refattn_numba.deform_conv2d, many[:, :2], many[0, :, :4, :1, None]
    attend.vjp(x[:, ::-1], x.astype(">f4"), np.asfortranarray(x), causal=True, softcap=1.0)
    calls = [
        attend.vjp(*[x.astype(t) for x in (many, many, many)], causal=True, bias=b)
        for t in ("f2", "f4", "f8")
        for b in (None, many[0, 0, :, :1])
    ]
    calls += [attend.vjp(many[:, :, :1], many[:, :2], many[:, :2])]
    calls += [scan.vjp(*[x.astype(t)[..., ::-1] for x in (many, many, many, -np.abs(many))]) for t in ("f2", "f4", "f8")]
    calls += [refattn_numba.linear_attention.vjp(many, many[:, :2], many[:, :2], causal=True)]
    calls += [deform.vjp(*[x.astype(t) for x in (many[..., ::-1], moves, kernels)]) for t in ("f2", "f4", "f8")]
    calls += [refattn_numba.conv2d.vjp(many.astype(t)[..., ::-1], np.ones((6, 4, 3, 3), t)) for t in ("f2", "f4", "f8")]
    for y, pullback in calls:
        pullback(y[0] if isinstance(y, tuple) else y)
    listed = defaultdict(set)
    for s in specialisations():
        listed[s.kernel].add(tuple(map(str, s.types)))
    for kernel, types in listed.items():
        assert {tuple(map(str, given)) for given in kernel.signatures} <= types, kernel.__module__
    assert sum(len(types) for types in listed.values()) == 80 + 5 * HOST.has_bfloat16_dot + HOST.has_tiles


def test_every_kernel_is_on_the_list():
    """But for the plain ones."""
    listed = {s.kernel for s in specialisations()}
    package = Path(refattn_numba.__file__).parent / "cpu"
    paths = [path for path in (*package.glob("*.py"), *(package / "conv").glob("*.py")) if path.stem != "__init__"]
    names = [".".join(path.relative_to(package.parent.parent).with_suffix("").parts) for path in paths]
    made = {x for name in names for x in vars(importlib.import_module(name)).values() if getattr(x, "targetoptions", {}).get("nogil")}
    unused = [(couples.couple_rows, HOST.has_bfloat16_dot), (couples.tile_rows, HOST.has_tiles)]
    assert made - {kernel for kernel, is_used in unused if not is_used} == listed


def test_a_quick_check_prepares_the_kernels_that_it_reaches():
    """A kernel that it reaches and has not prepared is compiled by each of its processes."""
    code = (
        "import collections, warnings, numpy as np, refattn_numba\n"
        "from refattn.testing import adapters, battery, budget, checking, handling\n"
        "from refattn.testing.precision import FORMATS\n"
        "from refattn_numba.cpu import specialisations as listed\n"
        "named = lambda kernel, types: ' '.join((listed._full_name(kernel), *map(str, types)))\n"
        "note = lambda *groups, dtypes, large, executor: prepared.update(\n"
        "    named(s.kernel, s.types) for s in listed._asked(frozenset(groups), frozenset(dtypes), large))\n"
        "prepared, refattn_numba.warm_up = set(), note\n"
        "adapters._compile_twin(['float32'], 'quick', None)\n"
        "checking.latest = lambda *_: collections.defaultdict(lambda: budget.Allowance(np.array(np.inf)))\n"
        "warnings.simplefilter('ignore')\n"
        "compared = 0\n"
        "for m, candidate in adapters.resolve('refattn_numba'):\n"
        "    for run, case in handling.runs(candidate, m, battery.cases(m, 'quick')):\n"
        "        for result in checking.compare_case(run, m, case, FORMATS['float32']):\n"
        "            compared += result.status in {'pass', 'skipped'}\n"
        "reached = {named(s.kernel, types) for s in listed.specialisations() for types in s.kernel.signatures}\n"
        "print(__import__('json').dumps([compared, sorted(prepared), sorted(reached)]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    compared, prepared, reached = json.loads(done.stdout)
    assert compared > 1000
    assert prepared == reached


def test_warming_up_says_what_it_took(capsys, monkeypatch):
    """Compiled, read from disk or known already; by function and by command."""
    first = refattn_numba.warm_up("attention")
    assert [(row.group, row.precision, row.kernel) for row in first] == [
        ("attention", "float32", n) for n in ("forward", "backward", "decode")
    ]
    assert all(row.source in {"compiled", "disk", "memory"} and row.seconds >= 0 for row in first)
    monkeypatch.setattr(sys, "argv", ["refattn_numba", "--dtype", "float16"])
    main()
    said = capsys.readouterr().out
    count = sum(s.precision in {"float32", "float16"} for s in specialisations())
    assert "narrow_float16" in said and "backward_bias" in said and f"{count} kernels in " in said
    both = refattn_numba.warm_up("attention", jobs=2)
    assert [row[:3] for row in both] == [row[:3] for row in first]
    assert all(row.source in {"compiled", "disk"} for row in both)
    with pytest.raises(ValueError, match="jobs is 0"):
        refattn_numba.warm_up(jobs=0)
    with pytest.raises(ValueError, match="groups are"):
        refattn_numba.warm_up("forward")
    with pytest.raises(ValueError, match="dtypes are"):
        refattn_numba.warm_up(dtypes=["int8"])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_type_compiles_what_it_uses(dtype):
    """All that a first call needs is in `warm_up`; bfloat16 compiles for itself alone, and others nothing for it."""
    code = (
        "import numpy as np, refattn_numba\n"
        "from refattn_numba.cpu import attention, conversion, couples, decode\n"
        "kernels = [attention.forward, attention.backward, decode.decode, couples.couple_rows]\n"
        "kernels += [conversion.widen_bfloat16, conversion.narrow_bfloat16, conversion.widen_float16, conversion.narrow_float16]\n"
        "count = lambda: [len(k.signatures) for k in kernels]\n"
        f"refattn_numba.warm_up('attention', dtypes=['{dtype}']); before = count()\n"
        "x = np.ones((1, 20, 4), 'float32')\n"
        f"dtype = __import__('ml_dtypes').bfloat16 if '{dtype}' == 'bfloat16' else '{dtype}'\n"
        "y, pullback = refattn_numba.scaled_dot_product_attention.vjp(*[x.astype(dtype)] * 3); pullback(y)\n"
        "print(before, count(), sep='|')\n"
    )
    pytest.importorskip("ml_dtypes")
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    before, after = done.stdout.strip().split("|")
    assert before == after
    own = HOST.has_bfloat16_dot and dtype == "bfloat16"
    assert json.loads(before) == [1 + own, 1 + own, 1, int(own), *[int(dtype == "bfloat16")] * 2, *[int(dtype == "float16")] * 2]


def test_what_is_compiled_is_kept_on_disk(tmp_path):
    """A second process compiles nothing."""
    code = (
        "import numpy, refattn_numba; x = numpy.ones((1, 20, 3), 'float32'); refattn_numba.scaled_dot_product_attention(x, x, x);"
        "from refattn_numba.cpu.attention_forward import forward; print(sum(forward.stats.cache_hits.values()))"
    )
    hits = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        hits.append(int(done.stdout))
    assert hits == [0, 1]
