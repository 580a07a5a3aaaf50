"""Planted faults are caught; outside the default run, since it takes minutes."""

import pytest

from tests import faults


@pytest.mark.slow
def test_every_planted_fault_is_caught(capsys):
    status = faults.main()
    assert status == 0, capsys.readouterr().out


def test_at_least_twenty_faults_stand_ready():
    assert len(faults.FAULTS) >= 20
    astray = [f.what for f in faults.FAULTS if (faults.PACKAGE / f.file).read_text("utf-8").count(f.old) != 1]
    assert astray == []
