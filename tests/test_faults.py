"""Planted faults are caught; outside the default run, since it takes minutes."""

import pytest

from tests import faults
from tests.twins import planted_conv

GROUPS = pytest.mark.parametrize("group", faults.GROUPS.values(), ids=["reference", "twins", "convolutions"])


@pytest.mark.slow
@GROUPS
def test_every_planted_fault_is_caught(capsys, group):
    status = faults.main(group=group)
    assert status == 0, capsys.readouterr().out


@GROUPS
def test_at_least_twenty_faults_stand_ready(group):
    assert len(group.faults) >= 20
    astray = [f.what for f in group.faults if (faults.PACKAGE.parent / group.folder / f.file).read_text("utf-8").count(f.old) != 1]
    assert astray == []


def test_each_algorithm_of_convolution_has_four_faults():
    assert min(map(len, planted_conv.BY_ALGORITHM.values())) >= 4
