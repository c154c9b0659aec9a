"""Records of cells that several devices share, in the reports."""

from __future__ import annotations

from pathlib import Path

from harness.record import RankMemory, RankTiming, Record
from harness.spec import CellSpec
from reports.cells import MIB, mib, milliseconds
from reports.groups import Item, group
from reports.headings import facts
from reports.labels import Labels
from reports.measures import byte_count, step_time
from tests.harness.samples import sample_memory, sample_record, sample_spec, sample_timing


def shared(devices: int) -> Record:
    spec = CellSpec.model_validate({**sample_spec().model_dump(), "devices": devices})
    held = dict.fromkeys(name for name in RankMemory.model_fields if name != "rank")
    memory = sample_memory(
        ranks=[
            RankMemory(rank=rank, **{**held, "peak_live_bytes": (rank + 1) * MIB})
            for rank in range(devices)
            if devices > 1
        ]
    )
    timing = sample_timing(
        ranks=[RankTiming(rank=rank, step_time_s=0.02 + rank / 1000) for rank in range(devices) if devices > 1]
    )
    return sample_record(spec=spec, memory=memory, timing=timing)


def test_a_shared_batch_is_a_group_of_its_own_and_tells_of_its_ranks(tmp_path: Path) -> None:
    items = [Item(tmp_path / f"{n}.json", shared(n)) for n in (1, 2)]
    one, two = group(items)
    labels = Labels([item.record.spec for item in items])
    assert [facts(found, labels)["device"] for found in (one, two)] == ["cpu", "2 x cpu"]
    peak = byte_count("peak_live_bytes")(two, two.rows[0])
    assert f"; rank 0: {mib(MIB)} MiB; rank 1: {mib(2 * MIB)} MiB" in peak.title
    assert "rank" not in byte_count("peak_live_bytes")(one, one.rows[0]).title
    assert f"; rank 0: {milliseconds(0.02)} ms; rank 1: {milliseconds(0.021)} ms" in step_time(two, two.rows[0]).title
