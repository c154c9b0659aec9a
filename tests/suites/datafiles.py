"""Small data sets in the formats that torchvision and tonic read, written into a folder."""

import gzip
import hashlib
import os
import pickle
import struct
import zipfile

import h5py
import numpy as np
from PIL import Image


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def touch_later(path):
    """Give a file or folder another time: a kernel's clock may stand still between two writes."""
    facts = path.stat()
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1_000_000_000))


def snapshot(folder):
    """Every file below a folder and its content, caches left out."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.relative_to(folder).parts[0] not in ("cache", "verified")
    }


def cifar10(root, per_batch=10, test=20, shape=(3, 32, 32)):
    """``cifar-10-batches-py`` with ``per_batch`` images in each of the five training batches."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)

    def batch(name, count):
        data = draw.integers(0, 256, (count, int(np.prod(shape))), dtype=np.uint8)
        content = {"data": data, "labels": [i % 10 for i in range(count)]}
        (folder / name).write_bytes(pickle.dumps(content))
        return content

    made = [batch(f"data_batch_{i}", per_batch) for i in range(1, 6)]
    made.append(batch("test_batch", test))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {i}" for i in range(10)]}))
    return made


def cifar100(root, train=100, test=100):
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    draw = np.random.default_rng(1)
    for name, count in (("train", train), ("test", test)):
        data = draw.integers(0, 256, (count, 3072), dtype=np.uint8)
        content = {"data": data, "fine_labels": [i % 100 for i in range(count)], "coarse_labels": [0] * count}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"class {i}" for i in range(100)]}))


def mnist(root, name="MNIST", train=30, test=20):
    """``NAME/raw/*.gz``; returns the images and labels."""
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    draw = np.random.default_rng(2)
    made = {}
    for part, count in (("train", train), ("t10k", test)):
        images = draw.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        header = struct.pack(">IIII", 2051, count, 28, 28)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + images.tobytes()))
        header = struct.pack(">II", 2049, count)
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(header + labels.tobytes()))
        made[part] = (images, labels)
    return made


def events(count, width, height, seed):
    """Random events sorted by time: x, y, t in microseconds, p."""
    draw = np.random.default_rng(seed)
    t = np.sort(draw.integers(0, 300_000, count))
    return draw.integers(0, width, count), draw.integers(0, height, count), t, draw.integers(0, 2, count)


def write_bin(path, x, y, t, p):
    """A recording in the format of N-MNIST and N-Caltech101: 40 bits an event."""
    content = np.zeros((len(x), 5), dtype=np.uint8)
    content[:, 0], content[:, 1] = x, y
    content[:, 2] = (p << 7) | (t >> 16)
    content[:, 3], content[:, 4] = (t >> 8) & 255, t & 255
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.tobytes())


def nmnist(root, train=2, test=1, count=200):
    """``NMNIST/{Train,Test}/<label>/<id>.bin`` with so many recordings of each class."""
    for folder, many in (("Train", train), ("Test", test)):
        for label in range(10):
            for i in range(many):
                path = root / "NMNIST" / folder / str(label) / f"{i:05d}.bin"
                write_bin(path, *events(count, 34, 34, 1000 * label + i + (500 if folder == "Test" else 0)))


def pack(archive, folder, inside=""):
    """A zip file of all files below ``folder``, under the name ``inside``."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            file.write(path, f"{inside}/{path.relative_to(folder)}" if inside else str(path.relative_to(folder)))


def dvs_gesture(root, users=2, count=300):
    """``DVSGesture/ibmGesture{Train,Test}/userNN_light/<label>.npy``."""
    for part in ("Train", "Test"):
        for user in range(users):
            for label in range(11):
                x, y, t, p = events(count, 128, 128, 100 * user + label)
                path = root / "DVSGesture" / f"ibmGesture{part}" / f"user{user:02d}_led" / f"{label}.npy"
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, np.stack([x, y, p, t // 1000], axis=1).astype(np.float64))


def ncaltech101(root, classes=101, per_class=10, count=60):
    for label in range(classes):
        for i in range(per_class):
            path = root / "NCALTECH101" / "Caltech101" / f"class_{label:03d}" / f"image_{i:04d}.bin"
            write_bin(path, *events(count, 200, 150, 1000 * label + i))


def shd(root, train=40, test=20):
    """``SHD/shd_{train,test}.h5``; returns times in seconds and channels of all recordings."""
    (root / "SHD").mkdir(parents=True)
    draw = np.random.default_rng(3)
    made = {}
    for part, count in (("train", train), ("test", test)):
        times = [np.sort(draw.uniform(0, 1.3, 50)) for _ in range(count)]
        units = [draw.integers(0, 700, 50) for _ in range(count)]
        with h5py.File(root / "SHD" / f"shd_{part}.h5", "w") as file:
            ragged = h5py.vlen_dtype(np.float16), h5py.vlen_dtype(np.uint16)
            for name, values, kind in (("times", times, ragged[0]), ("units", units, ragged[1])):
                data = file.create_dataset(f"spikes/{name}", (count,), kind)
                for i, value in enumerate(values):
                    data[i] = value
            file["labels"] = np.arange(count) % 20
            file["extra/keys"] = np.array([b"digit"] * 20)
            file["extra/speaker"] = np.zeros(count, dtype=np.uint16)
        made[part] = list(zip(times, units, strict=True))
    return made


def photographs(folder, classes, per_class, size=(20, 30), below=""):
    """JPEG files in class folders."""
    draw = np.random.default_rng(4)
    for label in range(classes):
        for i in range(per_class):
            path = folder / f"n{label:08d}" / below / f"n{label:08d}_{i}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = draw.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)


def braille(root, samples=54):
    draw = np.random.default_rng(5)
    root.mkdir(parents=True, exist_ok=True)
    x = draw.integers(0, 256, (samples, 76, 12), dtype=np.uint8)
    np.savez_compressed(root / "braille_letters.npz", x=x, y=np.arange(samples) % 27)


AEDAT_STREAM = (
    '<dv version="2.0"><node name="outInfo" path="/mainloop/Recorder/outInfo/">'
    '<node name="0" path="/mainloop/Recorder/outInfo/0/"><attr key="compression" type="string">NONE</attr>'
    '<attr key="typeIdentifier" type="string">EVTS</attr><node name="info" path="/mainloop/Recorder/outInfo/0/info/">'
    '<attr key="sizeX" type="int">128</attr><attr key="sizeY" type="int">128</attr></node></node></node></dv>'
)
AEDAT_EVENT = np.dtype({"names": ["t", "x", "y", "p"], "formats": ["<i8", "<i2", "<i2", "?"],
                        "offsets": [0, 8, 10, 12], "itemsize": 16})  # fmt: skip


def write_aedat4(path, x, y, t, p):
    """A recording in AEDAT 4: two flatbuffers, the description of the stream and one uncompressed packet of events."""
    text = AEDAT_STREAM.encode()
    # Offset of the root table, identifier, vtable (size, table's size, places of its fields), table, content.
    header = struct.pack("<I4sHHHHHxxiIi", 20, b"IOHE", 10, 12, 8, 0, 4, 12, 8, 0)
    header += struct.pack("<I", len(text)) + text + bytes(4)
    made = np.zeros(len(x), AEDAT_EVENT)
    made["x"], made["y"], made["t"], made["p"] = x, y, t, p
    packet = struct.pack("<I4sHHHxxiI", 16, b"EVTS", 6, 8, 4, 8, 12) + bytes(8)
    packet += struct.pack("<I", len(made)) + made.tobytes()
    packet = struct.pack("<I", len(packet)) + packet
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = struct.pack("<II", 0, len(packet)) + packet
    path.write_bytes(b"#!AER-DAT4.0\r\n" + struct.pack("<I", len(header)) + header + stream)
