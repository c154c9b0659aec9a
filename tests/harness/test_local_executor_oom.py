"""Host OOM: the counters of both cgroup versions, and a real kill by the kernel where a cgroup can be made."""

import os
from pathlib import Path

import pytest

from harness.executors.cgroup import OomCounter, find, read
from harness.executors.local import LocalExecutor
from harness.executors.server import ForkServer
from tests.harness import cells


def tree(root, membership, **files):
    """A procfs and a cgroup file system in ``root``."""
    proc, cgroups = root / "proc", root / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text(membership)
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return proc, cgroups


V2 = "low 0\nhigh 0\nmax 3\noom 1\noom_kill 4\noom_group_kill 0\n"
V1 = "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n"


@pytest.mark.parametrize(
    ("membership", "file", "text", "count"),
    [
        ("0::/user.slice/run\n", "cgroup/user.slice/run/memory.events", V2, 4),
        ("0::/host/only/path\n", "cgroup/memory.events", V2, 4),
        ("4:memory:/jobs/7\n0::/\n", "cgroup/memory/jobs/7/memory.oom_control", V1, 5),
        ("4:hugetlb,memory:/gone\n", "cgroup/memory/memory.oom_control", V1, 5),
        ("0::/\n", "proc/vmstat", "nr_free_pages 1\noom_kill 6\n", 6),
    ],
)
def test_the_counter_is_found_in_every_layout(tmp_path, membership, file, text, count):
    proc, cgroups = tree(tmp_path, membership, **{file: text})
    assert find(proc, cgroups) == tmp_path / file
    assert read(tmp_path / file) == count


def test_without_any_counter_nothing_counts_as_oom(tmp_path):
    proc, cgroups = tree(tmp_path, "0::/\n")
    counter = OomCounter(proc, cgroups)
    assert not counter.struck(counter.mark())


def test_one_kill_is_attributed_to_one_process(tmp_path):
    proc, cgroups = tree(tmp_path, "0::/\n", **{"proc/vmstat": "oom_kill 6\n"})
    counter = OomCounter(proc, cgroups)
    first, second = counter.mark(), counter.mark()
    (proc / "vmstat").write_text("oom_kill 7\n")
    assert counter.struck(first)
    assert not counter.struck(second)
    third = counter.mark()
    assert not counter.struck(third)
    (proc / "vmstat").write_text("oom_kill 8\n")
    assert counter.struck(third)


@pytest.fixture
def small_cgroup():
    """A v1 or v2 cgroup of 128 MiB below this process's own; needs the right to make one."""
    counter = find(Path("/proc"), Path("/sys/fs/cgroup"))
    folder = counter.parent / f"snnbench-test-{os.getpid()}" if counter is not None else Path("/nonexistent/x")
    try:
        folder.mkdir()
        limit = "memory.max" if counter.name == "memory.events" else "memory.limit_in_bytes"
        (folder / limit).write_text(str(128 << 20))
        swap = folder / ("memory.swap.max" if limit == "memory.max" else "memory.swappiness")
        if swap.exists():
            swap.write_text("0")
    except OSError as error:
        if folder.exists():
            folder.rmdir()
        pytest.skip(f"no memory cgroup can be made here: {error}")
    yield folder
    folder.rmdir()


def test_a_real_oom_kill_is_told_from_other_kills(small_cgroup, tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_CGROUP", str(small_cgroup))
    executor = LocalExecutor(1, entry=cells.entry("too_much_memory"), server=ForkServer(("harness.executors.child",)))
    # v1 counts a kill in the victim's own cgroup only
    executor._oom.file = next(small_cgroup.glob("memory.oom_control"), executor._oom.file)
    (outcome,) = executor.run([cells.job(tmp_path)])
    assert (outcome.signal, outcome.oom_killed, outcome.status) == (9, True, "oom")
