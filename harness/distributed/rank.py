"""One rank of a cell, in a process that the launcher started."""

from __future__ import annotations

from multiprocessing.connection import Connection
from pathlib import Path

from harness import announce, worker
from harness.distributed import ranks
from harness.executors.job import Job


def main(job: str, folder: str, channel: Connection | None) -> None:
    """Measure this rank's part of a cell.

    Args:
        job: :meth:`Job.to_json`.
        folder: takes the outcome of a phase that failed here while the others went on.
        channel: takes what the first rank announces.

    Raises:
        SystemExit: this rank cannot go on; the launcher then ends the others.
    """
    found = Job.from_json(job)
    mine = ranks.join(found.spec.device)
    announce.connect(channel if mine.first else None)
    try:
        worker.measure(found, mine)
    except ranks.LostRanksError as lost:
        draft = Path(folder, f"rank-{mine.rank}.draft")
        draft.write_text(str(lost))
        draft.rename(draft.with_suffix(".json"))
        raise SystemExit(1) from lost
    ranks.leave()
