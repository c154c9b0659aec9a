"""Whether the kernel's OOM killer struck: its counters, of cgroup v2, cgroup v1 or the whole machine."""

from __future__ import annotations

from pathlib import Path


class OomCounter:
    """Counts the OOM killer's victims; each rise is attributed to one process only.

    Args:
        proc: where procfs is mounted.
        cgroups: where cgroups are mounted.
    """

    def __init__(self, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> None:
        self.file = find(proc, cgroups)
        self._attributed = 0

    def mark(self) -> int:
        """A mark to be given to :meth:`struck` later."""
        return self._total() - self._attributed

    def struck(self, mark: int) -> bool:
        """Whether the OOM killer had a victim since ``mark`` that no earlier call has claimed; claims it."""
        if self._total() - self._attributed <= mark:
            return False
        self._attributed += 1
        return True

    def _total(self) -> int:
        return 0 if self.file is None else read(self.file)


def read(file: Path) -> int:
    """The ``oom_kill`` counter in a file of ``key value`` lines; 0 where there is none."""
    try:
        lines = file.read_text().splitlines()
    except OSError:  # the cgroup was removed
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def find(proc: Path, cgroups: Path) -> Path | None:
    """The counter's file: ``memory.events`` (v2), ``memory.oom_control`` (v1) of this process's cgroup, or vmstat.

    Source: kernel documentation, admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
    """
    candidates = [*_of_cgroup(proc, cgroups), proc / "vmstat"]
    return next((file for file in candidates if _counts(file)), None)


def _of_cgroup(proc: Path, cgroups: Path) -> list[Path]:
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:  # no procfs
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            roots, name = [cgroups, cgroups / "unified"], "memory.events"
        elif "memory" in controllers.split(","):
            roots, name = [cgroups / "memory"], "memory.oom_control"
        else:
            continue
        # in a container the path can be the host's, and the mount shows our own cgroup as its root
        found += [root / inner / name for root in roots for inner in (path.lstrip("/"), "")]
    return found


def _counts(file: Path) -> bool:
    try:
        return any(line.startswith("oom_kill ") for line in file.read_text().splitlines())
    except OSError:
        return False
