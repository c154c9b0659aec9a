"""Downloading, from a server on this machine."""

import http.server
import tarfile
import threading
from dataclasses import replace
from functools import partial

import pytest

from suites.datasets.cifar import CIFAR10
from suites.datasets.event_sets import NMNIST
from suites.datasets.integrity import Damaged, Missing
from suites.datasets.mnist import MNIST
from suites.datasets.root import VARIABLE
from tests.suites import datafiles
from tests.suites.datafiles import md5, pack
from tests.suites.test_cifar import canonical, root  # noqa: F401  fixtures

CLOSED = "http://127.0.0.1:9"
"""A port that nothing listens on."""


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    """A folder and the address that it is served under."""
    folder = tmp_path / "served"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{found.server_port}"
        found.shutdown()


@pytest.fixture
def digits(empty, server, monkeypatch):
    """MNIST's four archives on the server; its first mirror is down."""
    folder, address = server
    datafiles.mnist(folder)
    raw = folder / "MNIST" / "raw"
    downloads = tuple(
        replace(d, md5=md5(raw / d.name), urls=tuple(f"{a}/MNIST/raw/{d.name}" for a in (CLOSED, address)))
        for d in MNIST.downloads
    )
    monkeypatch.setattr(MNIST, "downloads", downloads)
    return raw


def test_torchvisions_downloader_gets_all_files_and_shows_progress(digits, empty, capfd):
    MNIST().fetch()
    assert MNIST().status().state == "present"
    assert len(MNIST().load(1).train) == 30
    assert sorted(p.name for p in (empty / "MNIST" / "raw").iterdir()) == sorted(p.name for p in digits.iterdir())
    assert "100%" in capfd.readouterr().err


def test_what_is_here_is_not_downloaded_again(digits, empty):
    MNIST().fetch()
    for path in digits.iterdir():
        path.unlink()
    MNIST().fetch()
    assert MNIST().status().state == "present"


def test_a_damaged_file_is_set_aside_and_downloaded_again(digits, empty, caplog):
    MNIST().fetch()
    broken = empty / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz"
    broken.write_bytes(b"broken")
    MNIST().fetch()
    assert MNIST().status().state == "present"
    (aside,) = broken.parent.glob("*.damaged-*")
    assert aside.read_bytes() == b"broken"


def test_a_download_with_another_checksum_is_refused(digits, empty):
    (digits / "train-images-idx3-ubyte.gz").write_bytes(b"something else")
    with pytest.raises(Missing, match="cannot download train-images-idx3-ubyte"):
        MNIST().fetch()
    assert list((empty / "MNIST" / "raw").rglob("*")) == []


def test_without_a_network_the_message_says_which_file_goes_where(empty, monkeypatch):
    downloads = tuple(replace(d, urls=(f"{CLOSED}/{d.name}",)) for d in MNIST.downloads)
    monkeypatch.setattr(MNIST, "downloads", downloads)
    with pytest.raises(Missing) as caught:
        MNIST().fetch()
    text = str(caught.value)
    assert not empty.exists()  # no empty folder that would hide the set in another one
    assert "\n" not in text
    for download in downloads:
        assert download.urls[0] in text
    assert f"into {empty / 'MNIST' / 'raw'}" in text
    assert VARIABLE in text


def test_tonics_downloader_gets_recordings_and_they_are_unpacked(empty, server, monkeypatch):
    folder, address = server
    datafiles.nmnist(folder)
    pools = {}
    for (name, pool), count in zip(NMNIST.pools.items(), (20, 10), strict=True):
        archive = folder / pool.download.name
        pack(archive, folder / "NMNIST" / pool.folder, pool.folder)
        download = replace(pool.download, urls=(f"{address}/{archive.name}",), md5=md5(archive))
        pools[name] = replace(pool, count=count, download=download)
    monkeypatch.setattr(NMNIST, "pools", pools)
    monkeypatch.setattr(NMNIST, "downloads", tuple(pool.download for pool in pools.values()))
    NMNIST().fetch()
    assert NMNIST().status().state == "present"
    assert len(NMNIST().load(2).train) == 20


def test_an_archive_is_downloaded_and_unpacked(canonical, server, monkeypatch):  # noqa: F811
    folder, address = server
    archive = folder / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(canonical / "cifar-10-batches-py", "cifar-10-batches-py")
    (canonical / "cifar-10-batches-py").rename(canonical / "away")
    download = replace(CIFAR10.downloads[0], urls=(f"{address}/{archive.name}",), md5=md5(archive))
    monkeypatch.setattr(CIFAR10, "downloads", (download,))
    CIFAR10().fetch()
    assert CIFAR10().status().state == "present"
    assert (canonical / "cifar-10-python.tar.gz").is_file()


def test_a_set_that_is_here_but_not_whole_is_not_overwritten(root):  # noqa: F811
    before = datafiles.snapshot(root)
    with pytest.raises(Damaged, match="move it away"):
        CIFAR10().fetch()
    assert datafiles.snapshot(root) == before
