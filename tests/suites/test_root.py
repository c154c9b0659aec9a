import logging
from pathlib import Path

import numpy as np
import pytest

from harness.contracts import Unavailable
from suites.datasets import root


def test_the_data_root_follows_the_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("SNNBENCH_DATA", str(tmp_path))
    assert root.data_root() == tmp_path
    monkeypatch.setenv("SNNBENCH_DATA", "~/somewhere")
    assert root.data_root() == Path.home() / "somewhere"


@pytest.mark.parametrize("value", [None, ""])
def test_the_default_root_is_in_the_users_cache(monkeypatch, value):
    monkeypatch.delenv("SNNBENCH_DATA", raising=False)
    if value is not None:
        monkeypatch.setenv("SNNBENCH_DATA", value)
    assert root.data_root() == Path.home() / ".cache" / "snnbench"


def test_folders_are_made(empty):
    assert root.make_folder("a", "b") == empty / "a" / "b"
    assert (empty / "a" / "b").is_dir()
    assert not list((empty / "a" / "b").iterdir())


def test_a_folder_that_cannot_be_made_is_unavailable_with_the_way_out(no_folder):
    with pytest.raises(Unavailable, match=r"cannot write to the data folder .*; point \$SNNBENCH_DATA to"):
        root.make_folder("digits")


def test_a_missing_file_is_unavailable_with_its_place(empty):
    with pytest.raises(Unavailable) as caught:
        root.need_file("cifar", "data.tar", remedy="download it from the authors' page")
    assert str(empty / "cifar" / "data.tar") in caught.value.what
    assert "authors' page" in caught.value.remedy
    root.make_folder("cifar").joinpath("data.tar").write_text("")
    assert root.need_file("cifar", "data.tar", remedy="") == empty / "cifar" / "data.tar"


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    root.write_atomically(path, lambda file: file.write(b"old"))

    def stop(file):
        file.write(b"new")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        root.write_atomically(path, stop)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_unavailable(tmp_path):
    def full(file):
        raise OSError(28, "No space left on device")

    with pytest.raises(Unavailable, match="No space left"):
        root.write_atomically(tmp_path / "file", full)
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_kept_and_named(tmp_path, caplog):
    path = tmp_path / "file"
    path.write_text("x")
    with caplog.at_level(logging.WARNING):
        moved = root.set_aside(path, "it is too short")
    assert moved.read_text() == "x"
    assert not path.exists()
    assert "it is too short" in caplog.text
    assert moved.name in caplog.text


def test_a_file_that_someone_else_moved_is_no_error(tmp_path):
    assert root.set_aside(tmp_path / "gone", "") is None


def test_file_hash_is_sha256(tmp_path):
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    assert root.sha256_file(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_array_hashes_see_content_name_shape_and_type_but_not_order_or_endianness():
    a, b = np.arange(6, dtype="<i4"), np.ones(2)
    reference = root.sha256_arrays({"a": a, "b": b})
    assert reference == root.sha256_arrays({"b": b, "a": a.astype(">i4")})
    others = [{"a": a + 1, "b": b}, {"c": a, "b": b}, {"a": a.reshape(2, 3), "b": b}, {"a": a.astype("i8"), "b": b}]
    assert reference not in [root.sha256_arrays(other) for other in others]


def test_a_file_that_cannot_be_read_is_unavailable(tmp_path):
    with pytest.raises(Unavailable, match="cannot read"):
        root.read_file(tmp_path)
    with pytest.raises(FileNotFoundError):
        root.read_file(tmp_path / "nothing")
