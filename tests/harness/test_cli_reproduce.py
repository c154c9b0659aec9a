"""What ``reproduce`` makes of two records of one cell."""

import pytest
from click.testing import CliRunner

from harness import cli
from harness.errors import UsageError
from harness.executors.server import ForkServer
from harness.run.interrupt import Interrupt
from harness.run.reproduce import Difference, compare, load_record, repeat
from harness.store import Store
from tests.harness.samples import sample_memory, sample_record, sample_spec


def test_a_record_equals_itself():
    found = compare(sample_record(), sample_record())
    assert (found.different, found.origin, found.same_fingerprint) == ([], [], True)
    assert found.equal > 50
    assert {difference.name for difference in found.timing} >= {"timing.step_time_s", "phases.build.seconds"}


def test_one_byte_more_is_found():
    memory = sample_memory()
    other = memory.model_copy(update={"peak_live_bytes": memory.peak_live_bytes + 1})
    (difference,) = compare(sample_record(), sample_record(memory=other)).different
    assert difference.name == "memory.peak_live_bytes"
    assert difference.after - difference.before == 1


def test_what_varies_from_run_to_run_is_no_difference():
    memory = sample_memory().model_copy(update={"host_peak_bytes": 1, "plan_seconds": 9.0})
    assert compare(sample_record(), sample_record(memory=memory)).different == []


def test_a_block_that_is_gone_and_another_status_are_differences():
    found = compare(sample_record(), sample_record(memory=None, status="oom"))
    names = {difference.name for difference in found.different}
    assert {"status", "memory", "memory.peak_live_bytes"} <= names


def test_code_environment_and_device_are_told():
    before = sample_record(provenance={"code": {"sha256": "a"}, "cpu": {"model": "x"}, "load_average": [1.0]})
    after = sample_record(
        provenance={"code": {"sha256": "b"}, "cpu": {"model": "x"}, "load_average": [9.0]}, fingerprint="f" * 16
    )
    found = compare(before, after)
    assert found.origin == [Difference("code.sha256", "a", "b")]
    assert not found.same_fingerprint


def test_differences_read_well():
    assert str(Difference("memory.events", 2, 3)) == "memory.events: 2 -> 3 (x 1.5)"
    assert str(Difference("status", "ok", "oom")) == "status: ok -> oom"
    assert str(Difference("memory.events", 0, 3)) == "memory.events: 0 -> 3"


@pytest.mark.parametrize("text", [None, "", "{}", '{"schema_version": 99}'])
def test_what_is_no_record_is_a_mistake(tmp_path, text):
    path = tmp_path / "record.json"
    if text is not None:
        path.write_text(text)
    said = CliRunner().invoke(cli.snnbench, ["reproduce", str(path)])
    assert said.exit_code == 2
    assert str(path) in said.stderr
    with pytest.raises(UsageError):
        load_record(path)


def test_a_gpu_record_cannot_be_reproduced_without_one(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    ForkServer(("harness.executors.child",)).begin()
    record = sample_record(spec=sample_spec(device="cuda"))
    with Interrupt() as interrupt, pytest.raises(UsageError, match="needs a CUDA device"):
        repeat(record, Store(tmp_path), 60.0, interrupt)
