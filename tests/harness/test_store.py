import contextlib
import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.errors import UsageError
from harness.record import SCHEMA_VERSION, PhaseResult
from harness.store import Store, new_run_id
from harness.store.disk import sweep, write_atomic
from harness.store.recordfile import DamagedRecordError, decode, encode
from tests.harness.samples import sample_record, sample_spec, sample_training

FLOATS = st.floats()
TEXTS = st.text(st.characters(codec=None), max_size=20)  # half surrogates too: file names can hold them
KEYS = st.text(max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | FLOATS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


def stored(store, count, **changes):
    """Write ``count`` runs of different cells; gives their paths."""
    return [
        store.write(sample_record(run_id=f"r{i}", spec=sample_spec(T=i + 1), **changes)) for i in range(count)
    ]  # fmt: skip


def plain(text):
    """JSON as text with NaN equal to NaN, and half surrogates as the store writes them."""
    return json.dumps(json.loads(text), sort_keys=True, ensure_ascii=False).encode("utf-8", "replace")


class TestRoundTrip:
    @given(loss=FLOATS, text=TEXTS, extra=st.dictionaries(KEYS, JSON, max_size=3), seconds=st.none() | FLOATS)
    @settings(max_examples=100, deadline=None)
    def test_what_is_written_is_read(self, loss, text, extra, seconds):
        training = sample_training()
        training.epochs[0].train_loss = loss
        phases = {"build": PhaseResult(status="error", seconds=seconds, reason=text, traceback=text)}
        record = sample_record(training=training, phases=phases, data={"extra": extra}, plan={"x": text})
        once = encode(record)
        read = decode(once)
        assert encode(read) == once
        assert plain(once) == plain(json.dumps(record.model_dump()))

    def test_a_loss_that_is_no_number_stays_one(self):
        training = sample_training()
        training.epochs[1].train_loss = float("nan")
        training.epochs[2].train_loss = float("inf")
        epochs = decode(encode(sample_record(training=training))).training.epochs
        assert epochs[1].train_loss != epochs[1].train_loss
        assert epochs[2].train_loss == float("inf")

    def test_values_from_outside_json_in_free_fields(self):
        plan = {
            "n": np.int64(3),
            "x": np.float32(0.5),
            "a": np.arange(2),
            "where": Path("a/b"),
            "t": (1, 2),
            "s": {2, 1},
        }
        expected = {"n": 3, "x": 0.5, "a": [0, 1], "where": "a/b", "t": [1, 2], "s": [1, 2]}
        assert decode(encode(sample_record(plan=plan))).plan == expected

    def test_half_surrogates_become_question_marks(self):
        assert decode(encode(sample_record(plan={"a\udc80": ["\ud800b"]}))).plan == {"a?": ["?b"]}

    def test_free_fields_that_cannot_be_written(self):
        with pytest.raises(DamagedRecordError, match="run 20261121T065101Z-0a1b2c3d: keys must be str"):
            encode(sample_record(plan={"widths": {(1, 2): 3}}))

    def test_a_record_that_could_not_be_read_is_refused_at_writing(self, tmp_path):
        record = sample_record()
        record.memory.saved_bytes = None
        with pytest.raises(DamagedRecordError, match="saved_bytes is null without a reason"):
            Store(tmp_path).write(record)
        assert list(tmp_path.rglob("*.json")) == []

    @given(
        series=st.dictionaries(
            st.text(min_size=1, max_size=8, alphabet="abc_"),
            st.lists(st.integers(-(2**62), 2**62))
            | st.lists(FLOATS)
            | st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9))),
            min_size=1,
            max_size=3,
        )
    )
    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def test_series_come_back_in_full(self, series):
        with tempfile.TemporaryDirectory() as folder:
            store = Store(folder)
            path = store.write(sample_record(), series)
            expected = {
                name: [list(p) if isinstance(p, tuple) else p for p in points] for name, points in series.items()
            }
            assert repr(store.series(path)) == repr(expected)


class TestWrite:
    def test_layout(self, tmp_path):
        record = sample_record()
        path = Store(tmp_path / "new" / "store").write(record, {"timeline": [(0, 1), (1, 5)]})
        assert path == tmp_path / "new" / "store" / "quick" / record.cell / f"{record.run_id}.json"
        assert sorted(p.suffix for p in path.parent.iterdir()) == [".json", ".parquet"]
        assert Store(tmp_path / "new" / "store").series(path) == {"timeline": [[0, 1], [1, 5]]}

    def test_no_series_no_file(self, tmp_path):
        path = Store(tmp_path).write(sample_record(), {})
        assert [p.name for p in path.parent.iterdir()] == [path.name]
        assert Store(tmp_path).series(path) == {}

    def test_a_run_is_written_once(self, tmp_path):
        path = Store(tmp_path).write(sample_record())
        before = path.read_bytes()
        with pytest.raises(FileExistsError, match="a run is written once"):
            Store(tmp_path).write(sample_record(status="error"))
        assert path.read_bytes() == before

    @pytest.mark.parametrize("change", [{"suite": "../up"}, {"suite": "_damaged"}, {"run_id": "a/b"}, {"run_id": ""}])
    def test_names_that_are_no_file_names(self, tmp_path, change):
        with pytest.raises(UsageError, match="allowed are letters, digits"):
            Store(tmp_path).write(sample_record(**change))

    def test_run_ids(self):
        moment = datetime(2026, 11, 21, 6, 51, 1, tzinfo=UTC)
        assert new_run_id(moment).startswith("20261121T065101Z-")
        assert len({new_run_id(moment) for _ in range(1000)}) == 1000

    def test_unwritable_store_names_the_folder(self, tmp_path):
        (tmp_path / "file").write_text("")
        store = Store(tmp_path / "file")
        for attempt in (store.check_writable, lambda: store.write(sample_record())):
            with pytest.raises(UsageError, match=r"store .*file: cannot write: .*--store"):
                attempt()

    def test_check_writable_leaves_nothing(self, tmp_path):
        Store(tmp_path / "s").check_writable()
        assert list((tmp_path / "s").iterdir()) == []

    def test_failing_series_leaves_nothing(self, tmp_path):
        with pytest.raises(ValueError, match="series mixed"):
            Store(tmp_path).write(sample_record(), {"mixed": [1, "a"]})
        assert [p for p in tmp_path.rglob("*") if p.is_file()] == []

    def test_a_write_that_fails_half_way_leaves_nothing(self, tmp_path):
        def half(file):
            file.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

        with pytest.raises(OSError, match="No space left"):
            write_atomic(tmp_path / "r.json", half)
        assert list(tmp_path.iterdir()) == []

    def test_hidden_files_of_other_programs_are_no_records(self, tmp_path):
        (path,) = stored(Store(tmp_path), 1)
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7")
        store = Store(tmp_path)
        assert len(store.records()) == 1
        assert store.damaged == []


WRITER = """
import sys
from harness.store import Store, new_run_id
from tests.harness.samples import sample_record
store = Store(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for _ in range(int(sys.argv[2])):
    store.write(sample_record(run_id=new_run_id()), {"timeline": [(i, i) for i in range(500)]})
    print("wrote", flush=True)
"""

HALF_WRITER = """
import sys, time
from pathlib import Path
from harness.store.disk import write_atomic
def half(path):
    with path.open("wb") as file:
        file.write(b'{"schema_version": 1, "run_id":')
        file.flush()
        print("half", flush=True)
        time.sleep(600)
write_atomic(Path(sys.argv[1]), half)
"""


def started(script, *arguments):
    """A Python process that has said its first word."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    return process


class TestProcesses:
    def test_two_writers_at_once_into_one_cell(self, tmp_path):
        writers = [started(WRITER, tmp_path, 25) for _ in range(2)]
        for writer in writers:
            writer.stdin.write("go\n")
            writer.stdin.flush()
        for writer in writers:
            writer.communicate(timeout=60)
            assert writer.returncode == 0
        store = Store(tmp_path)
        assert len(store.records("quick")) == 50
        assert store.damaged == store.verify() == []

    def test_killed_writer_loses_at_most_the_record_being_written(self, tmp_path):
        writer = started(WRITER, tmp_path, 100_000)
        writer.stdin.write("go\n")
        writer.stdin.flush()
        for _ in range(20):
            writer.stdout.readline()
        writer.kill()
        rest, _ = writer.communicate(timeout=60)
        store = Store(tmp_path)
        assert len(store.records()) >= 20 + rest.count("wrote")
        assert store.damaged == []

    def test_half_a_record_never_has_a_final_name(self, tmp_path):
        store = Store(tmp_path)
        path = store.path_of(sample_record())
        writer = started(HALF_WRITER, path)
        writer.kill()
        writer.communicate(timeout=60)
        (left,) = path.parent.iterdir()
        assert left.name.endswith(".tmp")
        assert left.stat().st_size > 0
        assert store.records() == []
        assert store.damaged == []
        store.write(sample_record())
        assert len(store.finished("quick")) == 1
        assert left.exists()  # young: its writer may be alive
        os.utime(left, (time.time() - 2 * 86400,) * 2)
        store.finished("quick")
        assert not left.exists()

    def test_sweep_counts_and_spares_the_young(self, tmp_path):
        for name, age in (("old", 7200), ("young", 10)):
            file = tmp_path / f".{name}.json.1-aa.tmp"
            file.write_text("")
            os.utime(file, (time.time() - age,) * 2)
        assert sweep(tmp_path, older_s=3600) == 1
        assert [p.name for p in tmp_path.iterdir()] == [".young.json.1-aa.tmp"]


def damage_truncated(text):
    return text[: len(text) // 2]


def damage_hash(text):
    return text.replace(b'"T": 1,', b'"T": 3,')


def damage_status(text):
    return text.replace(b'"status": "ok"', b'"status": "fine"', 1)


DAMAGES = [
    (damage_truncated, "not JSON: Invalid JSON: EOF while parsing"),
    (damage_hash, "but the spec hashes to"),
    (damage_status, "status: Input should be 'ok'"),
    (lambda _: b"", "the file is empty"),
    (lambda text: text.replace(b"checkpoint", b"check\xffpoint"), "not UTF-8: "),
    (lambda _: b"[" * 100_000, "not JSON: "),
    (lambda _: b"[]", "Input should be an object"),
    (lambda _: b"\0" * 4096, "not JSON: "),
]


class TestDamaged:
    @pytest.mark.parametrize(("damage", "reason"), DAMAGES)
    def test_is_set_aside_with_its_reason_and_the_rest_is_read(self, tmp_path, damage, reason):
        store = Store(tmp_path)
        bad, *_ = stored(store, 3)
        shutil.copy(bad, bad.with_suffix(".parquet"))
        content = damage(bad.read_bytes())
        assert content != bad.read_bytes()
        bad.write_bytes(content)
        assert [r.run_id for _, r in store.records()] != []
        assert len(store.records()) == 2
        (found,) = store.damaged
        assert found.path == bad
        assert reason in found.reason
        assert found.moved_to == tmp_path / "_damaged" / bad.relative_to(tmp_path)
        assert found.moved_to.read_bytes() == content
        assert reason in found.moved_to.with_name("r0.json.reason.txt").read_text()
        assert found.moved_to.with_suffix(".parquet").exists()
        assert not bad.with_suffix(".parquet").exists()
        assert "set aside as" in str(found)

    def test_the_cell_counts_as_unfinished(self, tmp_path):
        store = Store(tmp_path)
        bad, *_ = stored(store, 2)
        bad.write_text("{")
        assert len(store.finished("quick")) == 1

    def test_nothing_set_aside_is_overwritten(self, tmp_path):
        store = Store(tmp_path)
        for content in ("first", "second", "third"):
            (path,) = stored(store, 1)
            path.write_text(content)
            store.records()
        folder = tmp_path / "_damaged" / path.parent.relative_to(tmp_path)
        assert {p.read_text() for p in folder.glob("r0.json*") if "reason" not in p.name} == {
            "first",
            "second",
            "third",
        }
        assert store.suites() == ["quick"]

    def test_a_newer_schema_is_left_in_place_and_explained(self, tmp_path):
        store = Store(tmp_path)
        (path,) = stored(store, 1)
        newer = json.loads(path.read_text()) | {"schema_version": SCHEMA_VERSION + 1, "moods": []}
        path.write_text(json.dumps(newer))
        assert store.records() == []
        store.records()
        (found,) = store.damaged
        assert found.moved_to is None
        assert f"written by a newer snnbench (record schema {SCHEMA_VERSION + 1}; this one reads up to" in found.reason
        assert "left in place" in str(found)
        assert json.loads(path.read_text()) == newer

    def test_a_schema_version_that_is_no_number_is_damage(self, tmp_path):
        (path,) = stored(Store(tmp_path), 1)
        path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": "two"'))
        store = Store(tmp_path)
        store.records()
        assert store.damaged[0].reason.startswith("schema_version: ")
        assert store.damaged[0].moved_to is not None


@contextlib.contextmanager
def ordinary_user():
    """Root may write anywhere: become nobody for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def read_only():
    """A store with three records, one damaged, one with an old temporary file, that may only be read."""
    root = Path(tempfile.mkdtemp())
    bad, _, good = stored(Store(root), 3)
    bad.write_text("{")
    left = good.with_name(".x.json.1-aa.tmp")
    left.write_text("")
    os.utime(left, (0, 0))
    folders = [root, *(p for p in root.rglob("*") if p.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    yield root
    for folder in folders:
        folder.chmod(stat.S_IRWXU)
    shutil.rmtree(root)


class TestReadOnly:
    def test_can_be_read_and_damage_stays_in_place(self, read_only):
        store = Store(read_only)
        with ordinary_user():
            assert len(store.finished("quick")) == 2
            assert len(store.frame()) == 2
        (found,) = store.damaged
        assert found.moved_to is None
        assert "it cannot be moved: Permission denied" in found.reason
        assert found.path.exists()

    def test_cannot_be_written(self, read_only):
        with ordinary_user():
            for attempt in (Store(read_only).check_writable, lambda: Store(read_only).write(sample_record())):
                with pytest.raises(UsageError, match="cannot write: Permission denied"):
                    attempt()

    def test_a_record_that_may_not_be_read_is_reported(self, tmp_path):
        root = Path(tempfile.mkdtemp())
        (path,) = stored(Store(root), 1)
        path.chmod(0)
        for folder in (root, *path.parents[:2]):
            folder.chmod(0o755)
        store = Store(root)
        with ordinary_user():
            assert store.records() == []
        assert "Permission denied" in store.damaged[0].reason
        assert path.exists()
        shutil.rmtree(root)


class TestFinished:
    def test_latest_run_of_each_cell(self, tmp_path):
        store = Store(tmp_path)
        phases = {"memory": PhaseResult(status="oom")}
        store.write(sample_record(run_id="a", created="2026-11-21T06:00:00+00:00"))
        store.write(
            sample_record(
                run_id="b", created="2026-11-21T07:00:00+00:00", status="oom", phases=phases, fingerprint="f" * 16
            )
        )
        store.write(sample_record(run_id="c", created="2026-11-21T05:00:00+00:00"))
        store.write(sample_record(run_id="d", spec=sample_spec(seed=1)))
        store.write(sample_record(run_id="e", suite="other"))
        found = store.finished("quick")
        assert len(found) == 2
        latest = found[sample_spec().hash]
        assert (latest.run_id, latest.status, latest.phases) == ("b", "oom", {"memory": "oom"})
        assert latest.fingerprint == "f" * 16
        assert latest.path.name == "b.json"

    def test_nothing_yet(self, tmp_path):
        assert Store(tmp_path / "absent").finished("quick") == {}
        assert Store(tmp_path).records() == []
        with pytest.raises(UsageError, match="no such folder"):
            Store(tmp_path / "absent").records()
        assert Store(tmp_path / "absent").suites() == []
        assert not (tmp_path / "absent").exists()

    def test_records_of_one_suite_or_all(self, tmp_path):
        store = Store(tmp_path)
        stored(store, 2)
        store.write(sample_record(suite="other"))
        assert store.suites() == ["other", "quick"]
        assert len(store.records()) == 3
        assert {p.suite for _, p in store.records("other")} == {"other"}
        assert [path for path, _ in store.records()] == store.files()
