"""Whole public calls whose launches the emulator makes from the kernels' own source: host side and kernels together."""

import numpy as np
import pytest

pytest.importorskip("numba")

import refattn
from benchmarks.gpu_battery import DENSE, VARLEN, candidate
from refattn.testing import Case
from refattn.testing.checking import compare_case
from refattn.testing.precision import named_format
from tests.cuda import emulator, standins
from tests.cuda.test_host import SAMPLES, StandIn

LOWER = {"causal": True, "align": "lower_right"}


def dense(random, query_len=19, key_len=23, head_dim=8, value_dim=5, batch=1, **options):
    shapes = {"query": (batch, 2, query_len, head_dim), "key": (batch, 1, key_len, head_dim), "value": (batch, 1, key_len, value_dim)}
    return {**{name: random.normal(size=shape) for name, shape in shapes.items()}, **options}


def calls():
    random = np.random.default_rng(0)
    yield DENSE, Case("grouped, causal", dense(random, **LOWER))
    yield DENSE, Case("window and sinks", dense(random, window=(5, 2), align="upper_left", sinks=random.normal(size=2)))
    pairs = (1, 2, 19, 23)
    options = {"mask": random.random(pairs) < 0.7, "bias": random.normal(size=(2, 1, 23)), "softcap": 2.0, **LOWER}
    yield DENSE, Case("mask, bias, softcap, dropout", dense(random, keep=random.random(pairs) < 0.8, dropout_rate=0.2, **options))
    packed = {"query": random.normal(size=(2, 21, 8)), **{n: random.normal(size=(1, 17, 8)) for n in ("key", "value")}}
    starts = {"cu_seqlens_q": np.array([0, 3, 3, 21]), "cu_seqlens_k": np.array([0, 9, 10, 17])}
    yield VARLEN, Case("packed", {**packed, **starts, **LOWER})
    yield DENSE, SAMPLES[DENSE]["no keys"]


CALLS = {case.name: (name, case) for name, case in calls()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CALLS)
def test_public_calls(monkeypatch, record_property, case, dtype):
    name, given = CALLS[case]
    with standins.pretending(monkeypatch, emulator.launch) as recorder:
        found = list(compare_case(candidate(name, StandIn("torch")), getattr(refattn, name), given, named_format(dtype)))
    assert [(r.what, r.error_over_budget, r.reason) for r in found if r.status == "fail"] == []
    assert {x.kernel.name.split("_")[0] for x in recorder.launches} >= {"forward"}
    record_property("emulated", case)
