import json
import os
import shutil

import pytest

from harness.errors import UsageError
from harness.store import Store
from tests.harness.samples import sample_record, sample_spec

SERIES = {"timeline": [(i, i * i) for i in range(3000)]}


def contents(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture
def source(tmp_path):
    """Two cells, one with a series."""
    store = Store(tmp_path / "source")
    store.write(sample_record(run_id="a"), SERIES)
    store.write(sample_record(run_id="b", spec=sample_spec(T=2)))
    return store


@pytest.fixture
def here(tmp_path):
    return Store(tmp_path / "here")


class TestMerge:
    def test_copies_records_with_their_series_and_leaves_the_source(self, here, source):
        before = contents(source.root)
        done = here.merge([source.root])
        assert len(done.copied) == 2
        assert (done.skipped, done.conflicts, done.damaged) == (0, [], [])
        assert contents(here.root) == before == contents(source.root)
        assert len(here.series(done.copied[0]) or here.series(done.copied[1])) == 1

    def test_is_idempotent_and_joins_several(self, here, source, tmp_path):
        other = Store(tmp_path / "other")
        other.write(sample_record(run_id="c", suite="wide"))
        shutil.copytree(source.root / "quick", other.root / "quick")
        done = here.merge([source.root, other.root])
        assert (len(done.copied), done.skipped) == (3, 2)
        again = here.merge([source.root, other.root])
        assert (len(again.copied), again.skipped, again.conflicts) == (0, 5, [])
        assert here.verify() == []

    def test_layout_of_the_json_is_no_conflict(self, here, source):
        here.merge([source.root])
        path = here.files()[0]
        path.write_text(json.dumps(json.loads(path.read_text()), indent=2, sort_keys=True))
        assert here.merge([source.root]).skipped == 2

    def test_same_run_id_with_other_content_is_reported_and_both_are_kept(self, here, source):
        mine = here.write(sample_record(run_id="a", status="error"), {"timeline": [1]})
        before = contents(here.root)
        done = here.merge([source.root])
        (conflict,) = done.conflicts
        assert conflict.here == mine
        assert conflict.there == source.path_of(sample_record(run_id="a"))
        assert conflict.kept_as.read_bytes() == conflict.there.read_bytes()
        assert (
            conflict.kept_as.with_suffix(".parquet").read_bytes() == conflict.there.with_suffix(".parquet").read_bytes()
        )
        assert before.items() <= contents(here.root).items()
        assert "differs from" in str(conflict)
        assert len(here.records()) == 2
        assert here.damaged == []
        again = here.merge([source.root])
        assert again.conflicts == done.conflicts
        assert len(list((here.root / "_conflicts").rglob("*.json"))) == 1

    def test_same_record_with_other_series_is_a_conflict(self, here, source):
        here.write(sample_record(run_id="a"), {"timeline": [1]})
        assert len(here.merge([source.root]).conflicts) == 1

    def test_a_series_that_is_missing_here_is_added(self, here, source):
        path = here.write(sample_record(run_id="a"))
        assert here.merge([source.root]).skipped == 1
        assert len(here.series(path)["timeline"]) == 3000

    def test_damaged_and_newer_files_of_a_source_are_reported_and_stay(self, here, source):
        one, other = source.files()
        one.write_text("{")
        other.write_text(other.read_text().replace('"schema_version": 1', '"schema_version": 7'))
        before = contents(source.root)
        done = here.merge([source.root])
        assert done.copied == []
        assert [d.moved_to for d in done.damaged] == [None, None]
        assert "newer snnbench" in " ".join(d.reason for d in done.damaged)
        assert contents(source.root) == before

    def test_refuses_what_is_no_store(self, here, source, tmp_path):
        with pytest.raises(UsageError, match="absent: no such folder"):
            here.merge([tmp_path / "absent"])
        with pytest.raises(UsageError, match=r"it has files, but no <suite>/<cell>/<run id>\.json"):
            here.merge([tmp_path])
        with pytest.raises(UsageError, match="cannot be merged into itself"):
            source.merge([tmp_path / "source" / ".." / "source"])
        assert not here.root.exists()

    def test_an_empty_folder_adds_nothing(self, here, tmp_path):
        (tmp_path / "empty" / ".runs").mkdir(parents=True)
        assert here.merge([tmp_path / "empty"]).copied == []


class TestVerify:
    def reasons(self, store):
        return [problem.reason for problem in store.verify()]

    def test_a_sound_store_has_no_problem(self, source):
        assert self.reasons(source) == []

    def test_no_store(self, tmp_path):
        with pytest.raises(UsageError, match="no such folder"):
            Store(tmp_path / "absent").verify()

    def test_wrong_names(self, source):
        path = source.files()[0]
        record = json.loads(path.read_text())
        (source.root / "wide" / "0123456789abcdef").mkdir(parents=True)
        path.rename(source.root / "wide" / "0123456789abcdef" / "z.json")
        assert set(self.reasons(source)) >= {
            f"the file is called z, its run id is {record['run_id']}",
            f"the folder is 0123456789abcdef, its cell is {record['cell']}",
            "the folder is wide, its suite is quick",
        }

    def test_damage_is_told_and_nothing_is_moved(self, source):
        source.files()[0].write_text("{")
        before = contents(source.root)
        assert "not JSON" in " ".join(self.reasons(source))
        assert contents(source.root) == before

    @pytest.mark.parametrize("where", [100, -100, -3])
    def test_one_changed_byte_of_a_series(self, source, where):
        (series,) = source.root.rglob("*.parquet")
        data = bytearray(series.read_bytes())
        data[where] ^= 0xFF
        series.write_bytes(data)
        assert [r for r in self.reasons(source) if "its series cannot be read" in r]

    def test_leftovers_orphans_and_files_set_aside(self, source):
        (series,) = source.root.rglob("*.parquet")
        series.with_suffix(".json").unlink()
        (series.parent / ".a.json.1-ff.tmp").write_text("")
        source.files()[0].write_text("")
        source.records()
        assert sorted(self.reasons(source)) == [
            "a series without its record",
            "left by a writer that was killed, or is being written now",
            "was set aside as damaged",
        ]

    def test_conflicts_ask_for_a_decision(self, here, source):
        here.write(sample_record(run_id="a", status="error"))
        here.merge([source.root])
        assert {r for r in self.reasons(here) if "decide which is right" in r}
        assert str(here.verify()[0]).startswith(str(here.root / "_conflicts") + os.sep)
