import logging
import os
import tarfile
import zipfile

import pytest

from harness.contracts import Unavailable
from suites.datasets import integrity
from suites.datasets.integrity import Damaged, Missing, check_md5, compare, files_below, md5_of, members, stamp
from suites.datasets.source import unpack
from tests.suites.datafiles import md5, pack, snapshot, touch_later

pytestmark = pytest.mark.usefixtures("empty")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "raw" / "data_batch_1"
    path.parent.mkdir()
    path.write_bytes(b"content")
    return path


def test_a_published_file_passes(file):
    found = check_md5({file: md5(file)}, allow_variant=False)
    assert found.variant is None
    assert found.checksums == {"data_batch_1": f"md5:{md5(file)}"}
    assert found.size == 7


def test_another_checksum_is_refused_with_both_and_the_file(file):
    expected = "0" * 32
    with pytest.raises(Damaged) as caught:
        check_md5({file: expected}, allow_variant=False)
    text = str(caught.value)
    assert str(file) in text
    assert md5(file) in text
    assert expected in text
    assert "\n" not in text
    assert file.read_bytes() == b"content"


def test_another_checksum_is_a_variant_when_told(file):
    found = check_md5({file: "0" * 32}, allow_variant=True)
    assert found.variant == "checksums differ from the published ones: data_batch_1"
    assert found.checksums == {"data_batch_1": f"md5:{md5(file)}"}


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(Missing, match="gone"):
        check_md5({tmp_path / "gone": "0" * 32}, allow_variant=True)


def test_other_content_gives_another_hash(file):
    before = check_md5({file: "0" * 32}, allow_variant=True).sha256()
    file.write_bytes(b"other content")
    assert check_md5({file: "0" * 32}, allow_variant=True).sha256() != before


def test_a_checksum_is_remembered_until_the_file_is_written_to(file, monkeypatch):
    first = md5_of(file)
    monkeypatch.setattr("torchvision.datasets.utils.calculate_md5", lambda path: "read again")
    assert md5_of(file) == first
    assert md5_of(file, fresh=True) == "read again"
    file.write_bytes(b"CONTENT")
    touch_later(file)
    assert md5_of(file) == "read again"


def test_a_change_that_keeps_size_and_time_is_noticed(file):
    facts, first = file.stat(), md5_of(file)
    while file.stat().st_ctime_ns == facts.st_ctime_ns:  # the kernel's clock moves in steps of milliseconds
        file.write_bytes(b"CONTENT")
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert md5_of(file) != first


def test_a_damaged_note_of_a_checksum_is_ignored(file, empty):
    first = md5_of(file)
    (note,) = (empty / integrity.FOLDER).iterdir()
    note.write_bytes(note.read_bytes()[:20])
    assert md5_of(file) == first


def test_a_checksum_needs_no_folder_to_be_noted_in(file, no_folder):
    assert md5_of(file) == md5(file)


def test_a_stamp_follows_files_and_folders(file):
    before = stamp([file.parent, file])
    assert stamp([file.parent, file]) == before
    (file.parent / "another").write_bytes(b"")
    touch_later(file.parent)
    assert stamp([file.parent, file]) != before


def test_archives_list_their_files(tmp_path, file):
    pack(tmp_path / "a.zip", file.parent, "inner")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.add(file.parent, "inner")
    assert members(tmp_path / "a.zip") == members(tmp_path / "a.tar.gz") == {"inner/data_batch_1": 7}


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_a_truncated_archive_is_damaged_and_stays(tmp_path, file, name):
    file.write_bytes(os.urandom(20_000))
    if name.endswith("zip"):
        pack(tmp_path / name, file.parent)
    else:
        with tarfile.open(tmp_path / name, "w:gz") as tar:
            tar.add(file.parent, "inner")
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[:5000])
    before = snapshot(tmp_path)
    with pytest.raises(Damaged, match=name):
        members(tmp_path / name)
    with pytest.raises(Damaged, match=name):
        unpack(tmp_path / name, tmp_path / "out")
    assert snapshot(tmp_path) == before


def test_unpacking_makes_the_folder_whole(tmp_path, file):
    pack(tmp_path / "a.zip", file.parent, "Train")
    unpack(tmp_path / "a.zip", tmp_path / "set" / "Train", "Train")
    assert files_below(tmp_path / "set" / "Train", "") == {"data_batch_1": 7}
    assert [p.name for p in (tmp_path / "set").iterdir()] == ["Train"]


def test_an_archive_with_a_wrong_sum_inside_is_damaged_and_leaves_no_folder(tmp_path, file):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("Train/a", b"a" * 1000)
    content = bytearray((tmp_path / "a.zip").read_bytes())
    content[200] ^= 1
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(Damaged, match=r"a\.zip cannot be unpacked"):
        unpack(tmp_path / "a.zip", tmp_path / "Train", "Train")
    assert not (tmp_path / "Train").exists()


def test_unpacking_where_nothing_can_be_written_says_so(tmp_path, file):
    pack(tmp_path / "a.zip", file.parent)
    (tmp_path / "blocked").write_text("")
    with pytest.raises(Unavailable, match="cannot unpack"):
        unpack(tmp_path / "a.zip", tmp_path / "blocked" / "out")


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"a": 1, "b": 2, "c": 3}, None),
        ({"a": 1}, r"2 of 3 files are missing \(b, c\)"),
        ({"a": 1, "b": 2, "c": 1}, r"1 of 3 files have another size than in the archive \(c\)"),
        ({"a": 1, "b": 2, "c": 3, "d": 4}, r"1 files are not in the archive \(d\)"),
    ],
)
def test_unpacked_files_are_compared_with_the_archive(found, words):
    import re

    told = compare({"a": 1, "b": 2, "c": 3}, found)
    assert told is None if words is None else re.fullmatch(words, told)


def test_nothing_is_logged_for_whole_files(file, caplog):
    with caplog.at_level(logging.WARNING):
        check_md5({file: md5(file)}, allow_variant=False)
    assert not caplog.records
