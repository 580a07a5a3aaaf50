"""A sweep on a cluster of dask, of which one worker is killed midway: the report of one process, nothing lost."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from refattn import testing

pytest.importorskip("distributed")

SOFTMAX = {"mechanisms": "softmax", "dtypes": ["float32", "float64"], "seeds": range(8)}


@pytest.fixture(scope="module")
def client():
    """Two workers in processes of their own; a task whose worker ends is not tried again by dask itself."""
    import dask
    from distributed import Client, LocalCluster

    settings = {"distributed.scheduler.allowed-failures": 0, "distributed.admin.tick.limit": "1h"}
    with (
        dask.config.set(settings),
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.mark.filterwarnings("default")  # of sockets and loops that a killed process leaves
def test_a_worker_is_killed_midway(client, tmp_path):
    ledger, killed = tmp_path / "ledger", []
    alone = testing.sweep("tests.kernels:slow", **SOFTMAX, ledger=tmp_path / "alone")
    units = (tmp_path / "alone").read_bytes().count(b"\n") - 1

    def kill():
        while not ledger.exists() or ledger.read_bytes().count(b"\n") < units // 4:
            time.sleep(0.01)
        pid = next(iter(client.run(os.getpid).values()))
        os.kill(pid, signal.SIGKILL)
        killed.append(ledger.read_bytes().count(b"\n"))

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    report = testing.sweep("tests.kernels:slow", **SOFTMAX, executor=client.get_executor(), ledger=ledger)
    killer.join(30)
    assert killed
    assert killed[0] < units  # midway
    assert report.to_json() == alone.to_json()
    assert report.passed
    assert ledger.read_bytes().count(b"\n") == 1 + units
    with pytest.raises(TypeError, match=r"executor is a Client, but must be .*: give its get_executor\(\)"):
        testing.sweep("tests.kernels:slow", **SOFTMAX, executor=client)


@pytest.mark.filterwarnings("default")
def test_a_kernel_that_kills_every_worker_fails_its_own_case(client, tmp_path, monkeypatch):
    from tests.kernels import Fatal

    monkeypatch.setattr("refattn.testing.engines.PATIENCE", 15.0)  # dask loses a result whose worker ends before it is fetched
    report = testing.sweep(Fatal(tmp_path / "once"), "softmax", executor=client.get_executor())
    lost = [r for r in report.results if r.what == "all"]
    assert [r.case for r in lost] == ["one class"]
    assert lost[0].reason.startswith("no result in 3 attempts: KilledWorker")
    assert report.counts["fail"] == 1
    assert report.counts["pass"] >= 2


@pytest.mark.filterwarnings("default")
def test_a_function_that_dask_pickles_itself(client):
    assert testing.sweep(lambda x: __import__("refattn").softmax(x), "softmax", executor=client.get_executor()).passed
