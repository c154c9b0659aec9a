"""Claims: who measures a cell, between real processes and across machines that cannot be seen."""

import dataclasses
import json
import os
import subprocess
import sys
import time

import pytest

from harness.run.cellclaims import FOLDER, GRACE_S, Claims, this_process

CELL = "0123456789abcdef"

RIVAL = """
import sys, time
from pathlib import Path
from harness.run.cellclaims import Claims
claims = Claims(Path(sys.argv[1]))
cells = sys.argv[3].split(",")
while time.time() < float(sys.argv[2]): pass
print(",".join(cell for cell in cells if claims.take(cell, 60.0) is None), flush=True)
sys.stdin.read()
"""


def rival(folder, cells=(CELL,), start=0.0):
    return subprocess.Popen(
        [sys.executable, "-c", RIVAL, str(folder), str(start), ",".join(cells)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def edit(folder, **changes):
    """Change the owner that the claim file names."""
    path = folder / FOLDER / f"{CELL}.json"
    fields = json.loads(path.read_text())
    fields["until"] = changes.pop("until", fields["until"])
    fields["owner"].update(changes)
    path.write_text(json.dumps(fields))


def test_a_cell_is_claimed_once_until_it_is_released(tmp_path):
    first, second = Claims(tmp_path), Claims(tmp_path)
    assert first.take(CELL, 60.0) is None
    assert second.take(CELL, 60.0).owner.pid == os.getpid()
    assert second.holder(CELL) is not None
    first.release(CELL)
    assert second.holder(CELL) is None
    assert second.take(CELL, 60.0) is None


def test_many_processes_share_the_cells_without_overlap(tmp_path):
    cells = [f"{n:016x}" for n in range(40)]
    start = time.time() + 1.0
    rivals = [rival(tmp_path, cells, start) for _ in range(4)]
    won = [process.stdout.readline().strip().split(",") for process in rivals]
    for process in rivals:
        process.communicate()
    assert sorted(cell for cells_of_one in won for cell in cells_of_one if cell) == cells


@pytest.mark.parametrize("round_", range(3))
def test_a_killed_owners_claims_are_taken_over_by_one_of_many(tmp_path, round_):
    cells = [f"{n:016x}" for n in range(40)]
    owner = rival(tmp_path, cells)
    assert len(owner.stdout.readline().split(",")) == 40
    owner.kill()
    owner.communicate()
    start = time.time() + 0.8
    rivals = [rival(tmp_path, cells, start) for _ in range(3)]
    won = [process.stdout.readline().strip().split(",") for process in rivals]
    for process in rivals:
        process.communicate()
    assert sorted(cell for cells_of_one in won for cell in cells_of_one if cell) == cells


def test_a_reused_pid_is_not_the_owner(tmp_path):
    Claims(tmp_path).take(CELL, 60.0)
    edit(tmp_path, start=this_process().start - 1)
    assert Claims(tmp_path).take(CELL, 60.0) is None


def test_a_claim_from_before_a_reboot_is_stale(tmp_path):
    Claims(tmp_path).take(CELL, 60.0)
    edit(tmp_path, boot="another")
    assert Claims(tmp_path).take(CELL, 60.0) is None


@pytest.mark.parametrize("elsewhere", [{"host": "another"}, {"namespace": "pid:[1]"}])
def test_a_claim_whose_owner_cannot_be_seen_stands_until_its_time_is_over(tmp_path, elsewhere):
    Claims(tmp_path).take(CELL, 60.0)
    edit(tmp_path, pid=2**22 + 1, **elsewhere)
    assert Claims(tmp_path).take(CELL, 60.0) is not None
    edit(tmp_path, until=time.time() - 1)
    assert Claims(tmp_path).take(CELL, 60.0) is None


def test_a_claim_lasts_as_long_as_its_cell_may(tmp_path):
    claims = Claims(tmp_path)
    claims.take(CELL, 600.0)
    assert claims.holder(CELL).until == pytest.approx(time.time() + 600.0 + GRACE_S, abs=5)


def test_release_leaves_a_claim_that_somebody_took_over(tmp_path):
    first, second = Claims(tmp_path), Claims(tmp_path)
    first.take(CELL, 60.0)
    edit(tmp_path, boot="another")
    second.take(CELL, 60.0)
    first.release(CELL)
    assert second.holder(CELL) is not None


def test_an_unreadable_claim_is_no_claim(tmp_path):
    claims = Claims(tmp_path)
    claims.take(CELL, 60.0)
    (tmp_path / FOLDER / f"{CELL}.json").write_text("{")
    assert Claims(tmp_path).take(CELL, 60.0) is None


def test_nothing_but_claims_is_left_behind(tmp_path):
    claims = Claims(tmp_path)
    claims.take(CELL, 60.0)
    claims.take("f" * 16, 60.0)
    claims.release_all()
    assert {path.name for path in (tmp_path / FOLDER).iterdir()} <= {"takeover.lock"}


def test_owners_compare_by_value():
    assert dataclasses.replace(this_process()) == this_process()
