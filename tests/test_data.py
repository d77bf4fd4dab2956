"Data sets by name: the published formats on disk, archives of one's own, and damage of every kind."

import functools
import gzip
import io
import os
import pickle
import tarfile
import time
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from samples import md5, noise, refused

from thesis_repro import archives, data, digits
from thesis_repro.draws import Draws
from thesis_repro.images import OnDisk, batches

load = data.load


# Names


def test_unknown_names():
    for name in ("fmnist", "npz", "", "digits10:x", "cifar10_extra", "../digits10"):
        for call in (load, data.fetch, data.verify, functools.partial(load, stream=True)):
            refused(
                lambda name=name, call=call: call(name),
                f"unknown data set: {name}",
                "digits10",
                "tiny_imagenet",
                "npz:PATH",
            )


def test_every_name_has_a_line():
    "`thesis-repro data list` prints them; one's own archive comes last."
    assert list(data.names())[-1] == "npz:PATH" and set(data.names()) >= {
        *digits.COMPOSED,
        "cifar10",
        "svhn_extra",
        "tiny_imagenet",
    }
    assert all(len(f"{name:18} {text}") <= 100 for name, text in data.names().items())


def test_a_stand_in_is_named_and_the_real_one_is_not(cifar10):
    assert load("digits10", stand_in="CIFAR-10").stand_in == "CIFAR-10"
    assert load("cifar10", stand_in="CIFAR-10").stand_in == ""
    assert load("cifar10", stand_in="SVHN").stand_in == "SVHN"
    assert load("digits10").stand_in == ""


def test_fetch_of_what_ships_needs_no_network(monkeypatch, data_folder):
    monkeypatch.setattr(archives, "download", None)
    assert "5,000 training and 2,000 test images" in data.fetch("digits200")
    assert not data_folder.exists()


# Streams


@pytest.mark.parametrize("name", ["digits100", "npz", "cifar10"])
def test_streaming_gives_the_same_images(name, data_folder, request, tmp_path):
    if name == "cifar10":
        request.getfixturevalue("cifar10")
    if name == "npz":
        x, x_test = noise(90, 8, 12, 1), noise(30, 8, 12, 1, seed=1)
        name = write_npz(tmp_path / "a.npz", x_train=x, x_test=x_test)
    sizes = {"train_size": 60, "test_size": 20, "held_out": 10}
    for _ in range(2):  # made, then found
        streamed, d = load(name, **sizes, stream=True), load(name, **sizes)
        assert isinstance(streamed.x_train, OnDisk)
        assert isinstance(streamed.x_train.array, np.memmap)
        assert streamed.x_train.shape == d.x_train.shape and repr(streamed) == repr(d)
        assert (streamed.mean, streamed.std) == (d.mean, d.std)
        both = zip(batches(d, 16, Draws(1)), batches(streamed, 16, Draws(1)), strict=True)
        for (i, x, y), (j, x2, y2) in both:
            assert i == j and torch.equal(x, x2) and torch.equal(y, y2)
        for k in ("x_val", "x_test"):
            assert torch.equal(getattr(streamed, k)[:], getattr(d, k))
    assert not [*data_folder.rglob(".*")]
    assert "and what was unpacked has its SHA-256" in data.verify(name)


def test_a_changed_archive_is_unpacked_again(data_folder, tmp_path):
    name = write_npz(tmp_path / "a.npz")
    before = load(name, stream=True).x_train[:3]
    write_npz(tmp_path / "a.npz", x_train=noise(61, 8, 8, 3, seed=9), y_train=np.arange(61) % 3)
    after = load(name, stream=True)
    assert len(after.y_train) == 61 and not torch.equal(after.x_train[:3], before)


def test_an_archive_under_another_path_is_the_same_data_set(data_folder, tmp_path, monkeypatch):
    load(write_npz(tmp_path / "a.npz"), stream=True)
    (tmp_path / "moved").mkdir()
    (tmp_path / "a.npz").rename(tmp_path / "moved" / "a.npz")
    monkeypatch.setattr(archives, "_fill", None)
    load(f"npz:{tmp_path}/moved/a.npz", stream=True)


@pytest.mark.parametrize("name", ["digits10", "npz"])
def test_zeroed_images_are_noticed_when_training_starts_and_by_verify(name, data_folder, tmp_path):
    name = write_npz(tmp_path / "a.npz") if name == "npz" else name
    whole = load(name, stream=True).x_train[:50]
    (file,) = data_folder.rglob("x_train.npy")

    def damage():
        time.sleep(0.01)
        file.write_bytes(file.read_bytes()[:128] + bytes(file.stat().st_size - 128))

    damage()
    refused(lambda: data.verify(name), "x_train.npy: damaged", f"data fetch {name}")
    assert "what was unpacked" not in data.fetch(name)  # the damaged copy is gone
    assert torch.equal(load(name, stream=True).x_train[:50], whole)
    damage()
    with pytest.warns(UserWarning, match=r"x_train.npy: damaged.*: it is made again"):
        assert torch.equal(load(name, stream=True).x_train[:50], whole)
    assert "what was unpacked has its SHA-256" in data.verify(name)


# npz:PATH


def write_npz(path, save=np.savez, **changed):
    "A small good archive, with some arrays changed (None: left out)."
    n, m = len(changed.get("x_train", range(60))), len(changed.get("x_test", range(30)))
    arrays = {
        "x_train": noise(60, 8, 8, 3),
        "y_train": np.arange(n) % 3,
        "x_test": noise(30, 8, 8, 3, seed=1),
        "y_test": np.arange(m) % 3,
    }
    arrays |= changed
    save(path, **{k: v for k, v in arrays.items() if v is not None})
    return f"npz:{path}"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("labels", [np.uint8, np.int32, np.uint64])
def test_npz(tmp_path, save, labels):
    name = write_npz(tmp_path / "a.npz", save, y_train=(np.arange(60) % 3).astype(labels))
    d = load(name)
    assert torch.equal(d.x_train, torch.from_numpy(noise(60, 8, 8, 3)).permute(0, 3, 1, 2))
    assert d.y_train.tolist() == [0, 1, 2] * 20 and d.y_train.dtype == torch.int64
    assert (d.classes, d.flip, d.crop) == (3, True, 1)
    assert data.outline(name) == (3, (60, 8, 8, 3), (30, 8, 8, 3))
    said = data.verify(name)
    assert "keys, shapes, types and labels" in said and data.fetch(name) == said


@pytest.mark.parametrize(("side", "crop"), [(8, 1), (16, 2), (28, 3), (32, 4), (64, 4)])
def test_npz_padding(tmp_path, side, crop):
    x, x_test = noise(9, side, side, 1), noise(3, side, side, 1, seed=1)
    d = load(write_npz(tmp_path / "a.npz", x_train=x, x_test=x_test))
    assert d.crop == crop and len(d.mean) == 1


def labelled(*labels):
    "Training labels, repeated for 60 images, and the same for the test images."
    y = np.resize(labels, 60)
    return {"y_train": y, "y_test": y[:30]}


RENUMBER = "y = np.searchsorted(np.unique(y_train), y)"

# What is wrong with the heads or the labels, and what is said.
WRONG = {
    "no y_test": ({"y_test": None}, "has no array y_test"),
    "float images": ({"x_train": np.zeros((60, 8, 8, 3), np.float32)}, "x_train is float32"),
    "channels first": ({"x_train": noise(60, 3, 8, 8)}, "x_train has the shape (60, 3, 8, 8)"),
    "flat": ({"x_test": noise(30, 192)}, "x_test has the shape (30, 192)"),
    "four channels": ({"x_train": noise(60, 8, 8, 4)}, "x_train has the shape (60, 8, 8, 4)"),
    "no training images": ({"x_train": noise(0, 8, 8, 3)}, "empty"),
    "no test images": ({"x_test": noise(0, 8, 8, 3)}, "empty"),
    "two sizes": ({"x_test": noise(30, 9, 8, 3)}, "x_test of (9, 8, 3)"),
    "single pixels": (
        {"x_train": noise(60, 1, 1, 3), "x_test": noise(30, 1, 1, 3, seed=1)},
        "x_train has the shape (60, 1, 1, 3): images need at least 8 × 8 pixels",
    ),
    "labels missing": ({"y_train": np.zeros(59, int)}, "59 labels for 60 images"),
    "no labels": ({"y_train": np.zeros(0, int)}, "0 labels for 60 images"),
    "one label": ({"y_train": np.array(3)}, "y_train is int64 of shape ()"),
    "float labels": ({"y_train": np.zeros(60)}, "y_train is float64"),
    "missing values": ({"y_train": np.full(60, np.nan)}, "y_train is float64"),
    "true or false": ({"y_train": np.arange(60) > 30}, "y_train is bool"),
    "names": (
        labelled("cat", "dog", "ox"),
        "y_train is <U3 of shape (60,): expected one whole number",
    ),
    "bytes": (labelled(b"cat", b"dog"), RENUMBER),
    "dates": ({"y_train": np.arange(60).astype("datetime64[D]")}, "y_train is datetime64[D]"),
    "records": ({"y_train": np.zeros(60, [("a" * 99, int)])}, "y_train is [('aaaa"),
    "one-hot labels": (
        {"y_train": np.zeros((60, 3), int)},
        "y_train has rows of (3,), y_test of (): expected the same attributes",
    ),
    "negative label": ({"y_train": np.arange(60) % 3 - 1}, "label -1"),
    "single class": (labelled(0), "y_train has the label 0 only"),
    "huge labels": (
        {"y_train": (np.arange(60) % 3).astype(np.uint64) + np.uint64(2**63)},
        "class 0 has no training image",
    ),
    "absurd label": ({"y_train": np.arange(60) + 10**12}, "class 0 has no training image"),
    "from one": (labelled(*range(1, 11)), "class 0 has no training image, but labels go up to 10"),
    "with holes": (labelled(0, 7, 23), "class 1 has no training image, but labels go up to 23"),
    "255 to ignore": (
        labelled(*range(10), 255),
        "class 10 has no training image, but labels go up",
    ),
    "how to renumber": (labelled(0, 7, 23), f"leave out images without a class; {RENUMBER}"),
    "unknown test label": ({"y_test": np.arange(30) % 4}, "y_test has the label 3"),
    "negative test label": ({"y_test": np.arange(30) % 4 - 1}, "y_test has the label -1"),
    "a pickle": ({"y_train": np.array([{}] * 60, object)}, "pickle"),
    "a pickle for images": ({"x_train": np.array([{}] * 60, object)}, "pickle"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_npz(tmp_path, data_folder, case):
    arrays, words = WRONG[case]
    name = write_npz(tmp_path / "mine.npz", **arrays)
    calls = (load, functools.partial(load, stream=True), data.verify, data.fetch, data.outline)
    for call in calls:
        refused(lambda call=call: call(name), "mine.npz: ", words)
    assert not data_folder.exists()  # nothing is written


def test_renumbered_labels_are_right(tmp_path):
    "What the message advises works."
    arrays = {k: np.searchsorted([0, 7, 23], y) for k, y in labelled(0, 7, 23).items()}
    d = load(write_npz(tmp_path / "a.npz", **arrays))
    assert d.classes == 3 and torch.bincount(d.y_train).tolist() == [20, 20, 20]


@pytest.mark.parametrize("stream", [False, True])
def test_training_images_are_no_test_images(tmp_path, data_folder, stream):
    x = noise(60, 8, 8, 3)
    name = write_npz(tmp_path / "a.npz", x_test=x[:30])
    refused(lambda: load(name, stream=stream), "30 of 30 test images are training images as well")
    few = np.concatenate([x[:10], noise(20, 8, 8, 3, seed=1)])  # photographs do come twice
    assert len(load(write_npz(tmp_path / "a.npz", x_test=few), stream=stream).y_test) == 30
    assert not data_folder.exists() or not [*data_folder.rglob(".*")]


def test_images_that_do_not_fit_into_memory(tmp_path, data_folder, monkeypatch):
    memory = {"SC_PAGE_SIZE": 1000, "SC_PHYS_PAGES": 100}
    monkeypatch.setattr(archives.os, "sysconf", memory.__getitem__)
    x_test = noise(30, 99, 99, 3)
    name = write_npz(tmp_path / "a.npz", x_train=noise(60, 99, 99, 3, seed=1), x_test=x_test)
    refused(lambda: load(name), "x_train takes 0.0 GB", "this machine's memory", "stream = yes")
    assert data.outline(name) == (3, (60, 99, 99, 3), (30, 99, 99, 3))
    assert len(load(name, stream=True).y_train) == 60


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_npz(tmp_path, data_folder, save):
    name = write_npz(tmp_path / "mine.npz", save)
    whole = (tmp_path / "mine.npz").read_bytes()
    damaged = [whole[: int(len(whole) * share)] for share in (0, 0.01, 0.3, 0.7, 0.99)]
    for place in (len(whole) // 3, len(whole) // 2):  # one flipped bit in the pixels
        damaged.append(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
    for content in damaged:
        (tmp_path / "mine.npz").write_bytes(content)
        refused(lambda: load(name), "mine.npz: damaged")
        refused(lambda: load(name, stream=True), "mine.npz: damaged")
    assert not data_folder.exists()


@pytest.mark.parametrize(
    "compression", [0, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_wrong_bytes_anywhere_are_one_line(tmp_path, compression):
    "Whatever bytes an archive has: it is read or refused, by nothing but BadInput."
    arrays = {"x_train": noise(6, 8, 8, 1) // 64, "x_test": noise(3, 8, 8, 1, seed=1) // 64}
    arrays |= {"y_train": np.arange(6) % 3, "y_test": np.arange(3)}
    with zipfile.ZipFile(tmp_path / "a.npz", "w", compression) as z:
        for key, value in arrays.items():
            with z.open(f"{key}.npy", "w") as f:
                np.save(f, value)
    whole, rng, said = (tmp_path / "a.npz").read_bytes(), np.random.default_rng(0), 0
    for _ in range(300):
        content = bytearray(whole)
        for place in rng.integers(0, len(whole), 1 + rng.integers(3)):
            content[place] = rng.integers(256)
        (tmp_path / "a.npz").write_bytes(content)
        try:
            load(f"npz:{tmp_path}/a.npz")
        except data.BadInput as e:
            said += str(e).isprintable()
    assert said > 150


def test_things_that_are_no_npz(tmp_path):
    np.save(tmp_path / "a.npz.npy", noise(3, 3))
    refused(lambda: load(f"npz:{tmp_path}/a.npz.npy"), "damaged, or not a NumPy archive")
    others = ("npz:", "npz:~no-such-user/a", "npz:\0", f"npz:{'x' * 300}")
    for name in (f"npz:{tmp_path}", f"npz:{tmp_path}/none.npz", *others):
        for call in (load, data.content, data.verify, data.fetch, data.outline):
            with pytest.raises(data.BadInput, match="no such file"):
                call(name)


def test_a_relative_path_starts_at_the_project(tmp_path, monkeypatch):
    monkeypatch.setenv("THESIS_REPRO_ROOT", str(tmp_path))
    write_npz(tmp_path / "a.npz")
    assert load("npz:a.npz").classes == 3


# Pinned content


def test_content_is_that_of_the_pin_or_of_the_file(tmp_path):
    name = write_npz(tmp_path / "a.npz")
    found = archives.sha256(tmp_path / "a.npz")
    assert data.content(name) == found[:12]
    assert data.content("npz:no/such.npz@0123456789AB") == "0123456789ab"
    assert data.content("npz:no/such.npz@" + "0123456789ab" * 3) == "0123456789ab"
    assert data.content("cifar10") == data.content("digits10") == ""
    assert f"SHA-256 {found[:12]}…" in data.verify(name)


@pytest.mark.parametrize("stream", [False, True])
def test_a_pinned_file_is_that_file_or_refused(tmp_path, data_folder, stream):
    name = write_npz(tmp_path / "a.npz")
    found = archives.sha256(tmp_path / "a.npz")
    for pin in (found[:12], found[:12].upper(), found[:20], found):
        d = load(f"{name}@{pin}", stream=stream)
        assert d.classes == 3 and d.name == f"{name}@{pin}"
        assert data.outline(f"{name}@{pin}") == data.outline(name)
        assert f"SHA-256 {found[:12]}" in data.verify(f"{name}@{pin}")
    calls = (functools.partial(load, stream=stream), data.verify, data.fetch, data.outline)
    for call in calls:
        for pin in ("0" * 12, found[:20] + "0" * 8 if found[20:28] != "0" * 8 else "1" * 12):
            refused(
                lambda call=call, pin=pin: call(f"{name}@{pin}"),
                "a.npz: is another file",
                f"begins with {found[: len(pin)]}, the name pins {pin}",
            )
    refused(lambda: load(f"{name}@{found[:8]}"), "no such file", "12 to 64 hexadecimal digits")
    before = (tmp_path / "a.npz").stat()
    time.sleep(0.01)
    write_npz(tmp_path / "a.npz", x_train=noise(60, 8, 8, 3, seed=5))  # as large, and as old
    os.utime(tmp_path / "a.npz", ns=(before.st_atime_ns, before.st_mtime_ns))
    refused(lambda: load(f"{name}@{found[:12]}", stream=stream), "is another file")
    assert data.content(name) != found[:12] == data.content(f"{name}@{found[:12]}")


# CIFAR and SVHN in their own formats


def cifar_files(kind):
    "The members of a tiny CIFAR archive in the published format, and its images and labels."
    x, y = noise(60, 3, 32, 32), np.arange(60) % 10
    fine = kind.base_folder == "cifar-100-python"

    def batch(part):
        labels = {("fine_labels" if fine else "labels"): y[part].tolist()}
        return pickle.dumps({"data": x[part].reshape(-1, 3072), "batch_label": "a batch"} | labels)

    trains = [name for name, _ in kind.train_list]
    parts = np.array_split(np.arange(50), len(trains))
    files = {name: batch(part) for name, part in zip(trains, parts, strict=True)}
    files[kind.test_list[0][0]] = batch(np.arange(50, 60))
    meta = {kind.meta["key"]: [f"class {i}" for i in range(100 if fine else 10)]}
    return files | {kind.meta["filename"]: pickle.dumps(meta)}, x, y


def publish(monkeypatch, kind, files):
    "Make torchvision expect these files; the archive that holds them."
    for which in ("train_list", "test_list"):
        listed = [[name, md5(files[name])] for name, _ in getattr(kind, which)]
        monkeypatch.setattr(kind, which, listed)
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": md5(files[kind.meta["filename"]])})
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{kind.base_folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    monkeypatch.setattr(kind, "tgz_md5", md5(archive.getvalue()))
    return archive.getvalue()


def write(root, files):
    root.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (root / name).write_bytes(content)


@pytest.fixture
def cifar10(data_folder, monkeypatch):
    from torchvision.datasets import CIFAR10

    files, x, y = cifar_files(CIFAR10)
    archive = publish(monkeypatch, CIFAR10, files)
    write(data_folder / "cifar10" / CIFAR10.base_folder, files)
    return data_folder / "cifar10", archive, x, y


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar(name, data_folder, monkeypatch):
    from torchvision import datasets

    kind = getattr(datasets, name.upper())
    files, x, y = cifar_files(kind)
    publish(monkeypatch, kind, files)
    write(data_folder / name / kind.base_folder, files)
    d = load(name)
    assert np.array_equal(d.x_train.numpy(), x[:50]) and np.array_equal(d.x_test.numpy(), x[50:])
    assert np.array_equal(d.y_train.numpy(), y[:50]) and np.array_equal(d.y_test.numpy(), y[50:])
    assert (d.classes, d.crop, d.flip) == ({"cifar10": 10, "cifar100": 100}[name], 4, True)
    assert "published MD5; 50 training and 10 test images" in data.verify(name)


@pytest.mark.parametrize("file", ["data_batch_1", "data_batch_4", "test_batch", "batches.meta"])
def test_damaged_cifar_names_the_file(cifar10, file):
    path = cifar10[0] / "cifar-10-batches-py" / file
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    command = "thesis-repro data fetch cifar10"
    for call in (load, data.verify, functools.partial(load, stream=True)):
        refused(lambda call=call: call("cifar10"), f"{file}: damaged", md5(whole), command)
    path.unlink()
    refused(lambda: load("cifar10"), f"{file}: missing", command)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn", "svhn_extra", "tiny_imagenet"])
def test_missing_sets_name_the_command(data_folder, name, stream):
    command = f"run: thesis-repro data fetch {name}"
    refused(lambda: load(name, stream=stream), "missing", command, str(data_folder))
    assert not data_folder.exists()  # nothing is written


def house_numbers(monkeypatch, split, n, seed):
    "A file of SVHN in the published format; its images and its labels, there from 1 to 10."
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    x, y = noise(32, 32, 3, n, seed=seed), (np.arange(n) % 10 + 1).astype(np.uint8)[:, None]
    file = io.BytesIO()
    savemat(file, {"X": x, "y": y})
    url, name, _ = SVHN.split_list[split]
    monkeypatch.setitem(SVHN.split_list, split, [url, name, md5(file.getvalue())])
    return name, file.getvalue(), x.transpose(3, 2, 0, 1), y[:, 0] % 10


def test_svhn(data_folder, monkeypatch):
    sizes = (("train", 30), ("test", 20), ("extra", 40))
    made = {s: house_numbers(monkeypatch, s, n, n) for s, n in sizes}
    write(data_folder / "svhn", {made[s][0]: made[s][1] for s in ("train", "test")})
    d = load("svhn")
    for x, y, split in ((d.x_train, d.y_train, "train"), (d.x_test, d.y_test, "test")):
        assert np.array_equal(x.numpy(), made[split][2])
        assert np.array_equal(y.numpy(), made[split][3])
    assert (d.classes, d.flip, d.crop) == (10, False, 4)

    command = "thesis-repro data fetch svhn"
    refused(lambda: load("svhn_extra"), "extra_32x32.mat: missing", f"{command}_extra")
    write(data_folder / "svhn", {made["extra"][0]: made["extra"][1]})
    more = load("svhn_extra", stand_in="SVHN")
    assert more.stand_in == "" and len(more.y_test) == 20
    for found, part in ((more.x_train, 2), (more.y_train, 3)):
        both = np.concatenate([made["train"][part], made["extra"][part]])
        assert np.array_equal(found.numpy(), both)

    (data_folder / "svhn" / "test_32x32.mat").write_bytes(made["test"][1][:-100])
    refused(lambda: load("svhn"), "test_32x32.mat: damaged", command)


def test_fetch_cifar(cifar10, server, monkeypatch, capsys):
    from torchvision.datasets import CIFAR10

    folder, archive, x, _ = cifar10
    monkeypatch.setattr(CIFAR10, "url", server.url("c.tar.gz"))
    server.files["c.tar.gz"] = archive
    assert "published MD5" in data.fetch("cifar10") and not server.asked  # it is there already
    (folder / "cifar-10-batches-py" / "data_batch_2").unlink()
    (folder / CIFAR10.filename).write_bytes(archive[:1000])  # a download that broke off
    assert "7 files" in data.fetch("cifar10") and server.asked == ["bytes=1000-"]
    assert np.array_equal(load("cifar10").x_train.numpy(), x[:50])
    (folder / "cifar-10-batches-py" / "test_batch").write_bytes(b"damaged")
    data.fetch("cifar10")
    assert len(server.asked) == 1  # repaired from the archive
    assert np.array_equal(load("cifar10").x_test.numpy(), x[50:])
    assert capsys.readouterr().out == ""


def test_fetch_svhn(data_folder, server, monkeypatch):
    from torchvision.datasets import SVHN

    for split, n in (("train", 30), ("test", 20)):
        name, content, _, _ = house_numbers(monkeypatch, split, n, n)
        monkeypatch.setitem(SVHN.split_list, split, [server.url(name), name, md5(content)])
        server.files[name] = content
    write(data_folder / "svhn", {"train_32x32.mat": server.files["train_32x32.mat"][:500]})
    assert "2 files" in data.fetch("svhn") and server.asked == ["bytes=500-", None]
    assert len(load("svhn").y_train) == 30


# Tiny ImageNet in its own format

WNIDS = ["n02124075", "n01443537", "n04067472"]  # as published: not in order
IMAGE = f"train/{WNIDS[1]}/images/{WNIDS[1]}_2.JPEG"
LISTED = "val/val_annotations.txt"


def jpeg(image):
    file = io.BytesIO()
    image.save(file, "JPEG")
    return file.getvalue()


def tiny_files():
    "A tiny Tiny ImageNet: one colour per class, one grey image, the validation list unordered."
    colour = {w: tuple(255 if i == c else 30 for c in range(3)) for i, w in enumerate(WNIDS)}
    image = {w: jpeg(Image.new("RGB", (64, 64), colour[w])) for w in WNIDS}
    files = {"wnids.txt": "\n".join(WNIDS).encode(), "words.txt": b"n02124075\tEgyptian cat\n"}
    for w in WNIDS:
        boxes = [f"{w}_{i}.JPEG\t0\t10\t63\t58\n" for i in range(4)]
        files[f"train/{w}/{w}_boxes.txt"] = "".join(boxes).encode()
        files |= {f"train/{w}/images/{w}_{i}.JPEG": image[w] for i in range(4)}
    files[f"train/{WNIDS[2]}/images/{WNIDS[2]}_1.JPEG"] = jpeg(Image.new("L", (64, 64), 99))
    val = [WNIDS[i] for i in (1, 0, 2, 2, 1, 0)]
    lines = [f"val_{i}.JPEG\t{w}\t0\t32\t44\t62\n" for i, w in enumerate(val)]
    files[LISTED] = "".join(lines).encode()
    files |= {f"val/images/val_{i}.JPEG": image[w] for i, w in enumerate(val)}
    return files | {f"test/images/test_{i}.JPEG": image[WNIDS[0]] for i in range(3)}


def zipped(files, top="tiny-imagenet-200/"):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as z:
        for name, content in files.items():
            z.writestr(top + name, content)
    return archive.getvalue()


def write_tiny(root):
    for name, content in tiny_files().items():
        path = root / "tiny-imagenet-200" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@pytest.fixture
def tiny(data_folder, server, monkeypatch):
    monkeypatch.setattr(data, "_TINY_CLASSES", 3)
    monkeypatch.setattr(data, "_TINY_IMAGES", 4)
    monkeypatch.setattr(data, "_TINY_VAL", 6)
    monkeypatch.setattr(data, "_TINY_URL", server.url("tiny.zip"))

    def publish(archive):
        server.files["tiny.zip"] = archive
        monkeypatch.setattr(data, "_TINY_MD5", md5(archive))

    publish(zipped(tiny_files()))
    server.publish = publish
    return data_folder / "tiny_imagenet"


def test_fetch_and_load_tiny_imagenet(tiny, server):
    server.patience = 4000
    line = data.fetch("tiny_imagenet")
    assert "12 training and 6 test images, 64 × 64 × 3, 3 classes" in line and len(server.asked) > 2
    d = load("tiny_imagenet")
    assert d.y_train.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert d.y_test.tolist() == [1, 0, 2, 2, 1, 0]
    assert (d.x_train[9] == 99).all()  # grey became three equal channels
    shown = d.x_train.float().mean((2, 3)).argmax(1)
    coloured = torch.arange(12) != 9
    assert torch.equal(shown[coloured], d.y_train[coloured])
    assert torch.equal(d.x_test.float().mean((2, 3)).argmax(1), d.y_test)
    assert (d.classes, d.flip, d.crop) == (3, True, 4)
    assert not (tiny / "tiny-imagenet-200" / "test").exists() and not list(tiny.glob(".*"))
    asked = len(server.asked)
    assert "12 training" in data.fetch("tiny_imagenet") and len(server.asked) == asked
    streamed = load("tiny_imagenet", stream=True)
    both = zip(batches(d, 5, Draws(0)), batches(streamed, 5, Draws(0)), strict=True)
    assert all(torch.equal(x, x2) for (_, x, _), (_, x2, _) in both)


def edited(name, change):
    "Change the bytes of a file of Tiny ImageNet, or remove it (None)."

    def edit(root):
        content = change((root / name).read_bytes())
        (root / name).unlink() if content is None else (root / name).write_bytes(content)

    return edit


def without_last(content):
    return b"".join(content.splitlines(keepends=True)[:-1])


EDITS = {
    "missing image": (IMAGE, lambda c: None, "n01443537: has 3 images, expected 4"),
    "truncated image": (IMAGE, lambda c: c[:-200], "n01443537_2.JPEG: damaged"),
    "no image": (IMAGE, lambda c: b"<html>not found</html>", "n01443537_2.JPEG: damaged"),
    "other size": (IMAGE, lambda c: jpeg(Image.new("RGB", (1, 64))), "n01443537_2.JPEG: is 1 × 64"),
    "missing validation image": ("val/images/val_3.JPEG", lambda c: None, "val_3.JPEG: missing"),
    "short list": (LISTED, without_last, "val_annotations.txt: expected 6 different"),
    "repeated line": (
        LISTED,
        lambda c: without_last(c) + c.splitlines()[0],
        "expected 6 different",
    ),
    "unknown id": (LISTED, lambda c: c.replace(b"n01443537", b"n00000000"), "id of wnids.txt"),
    "empty line": (LISTED, lambda c: without_last(c) + b"\n", "val_annotations.txt: expected 6"),
    "no list": (LISTED, lambda c: None, "val_annotations.txt: missing"),
    "no ids": ("wnids.txt", lambda c: None, "wnids.txt: missing"),
    "binary ids": ("wnids.txt", lambda c: b"\xff\xfe\x00", "wnids.txt: expected 3 different"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_damaged_tiny_imagenet(tiny, edit):
    write_tiny(tiny)
    file, change, words = EDITS[edit]
    edited(file, change)(tiny / "tiny-imagenet-200")
    refused(lambda: load("tiny_imagenet"), words, "run: thesis-repro data fetch tiny_imagenet")
    assert [p.name for p in tiny.iterdir()] == ["tiny-imagenet-200"]  # nothing half-decoded stays
    assert "3 classes" in data.fetch("tiny_imagenet")  # the command that is named repairs it
    assert len(load("tiny_imagenet").y_train) == 12


def test_a_flipped_bit_among_the_decoded_images_is_noticed(tiny, server):
    write_tiny(tiny)
    whole = load("tiny_imagenet").x_train
    file = tiny / "decoded" / "x_train.npy"

    def flip():
        time.sleep(0.01)
        content = bytearray(file.read_bytes())
        content[-1000] ^= 1
        file.write_bytes(content)

    flip()
    command = "thesis-repro data fetch tiny_imagenet"
    refused(lambda: data.verify("tiny_imagenet"), "x_train.npy: damaged", command)
    data.fetch("tiny_imagenet")
    assert torch.equal(load("tiny_imagenet").x_train, whole)
    flip()
    with pytest.warns(UserWarning, match="it is made again"):
        assert torch.equal(load("tiny_imagenet").x_train, whole)


def test_an_image_that_changed_after_it_was_decoded_is_noticed(tiny):
    write_tiny(tiny)
    before = load("tiny_imagenet").x_train
    assert "3 classes" in data.verify("tiny_imagenet")
    time.sleep(0.01)
    (tiny / "tiny-imagenet-200" / IMAGE).write_bytes(jpeg(Image.new("RGB", (64, 64), "white")))
    refused(lambda: data.verify("tiny_imagenet"), "JPEG: was changed", "remove that folder")
    assert "3 classes" in data.fetch("tiny_imagenet")
    assert (load("tiny_imagenet").x_train != before).any()


def test_an_archive_that_reaches_outside_is_refused(tiny, server):
    archive = io.BytesIO(zipped(tiny_files()))
    with zipfile.ZipFile(archive, "a") as z:
        z.writestr("tiny-imagenet-200/../../evil.txt", "evil")
    server.publish(archive.getvalue())
    refused(lambda: data.fetch("tiny_imagenet"), "does not belong there")
    assert [p.name for p in tiny.rglob("*")] == ["tiny-imagenet-200.zip"]


def test_a_truncated_tiny_archive(tiny, server):
    "Offline, with half an archive: one line. Online: the other half is fetched."
    whole = server.files.pop("tiny.zip")
    write(tiny, {"tiny-imagenet-200.zip": whole[: len(whole) // 2]})
    refused(lambda: load("tiny_imagenet"), "missing", "thesis-repro data fetch tiny_imagenet")
    refused(lambda: data.fetch("tiny_imagenet"), "cannot be downloaded")
    server.files["tiny.zip"] = whole
    assert "3 classes" in data.fetch("tiny_imagenet")
    assert server.asked[-1] == f"bytes={len(whole) // 2}-"


def test_every_data_set_by_name_has_an_outline():
    "Known without a file; of those that are made here, it is what is made."
    named = [name for name in data.names() if not name.startswith("npz:")]
    shapes = {name: data.outline(name) for name in named}
    assert shapes["mnist"] == (10, (60_000, 28, 28, 1), (10_000, 28, 28, 1))
    assert shapes["celeba_tall"][1:] == ((182_637, 256, 192, 3), (19_962, 256, 192, 3))
    for name in ("glyphs", "plain10"):
        made = data._source(name)
        assert shapes[name] == (made.classes, made.x_train.shape, made.x_test.shape)


# MNIST, of which torchvision checks the archives when they are fetched, and the rest by name


def idx(x: np.ndarray) -> bytes:
    "An array of bytes in the format of MNIST."
    head = np.array([0x0800 + x.ndim, *x.shape], ">i4").tobytes()
    return head + x.astype(np.uint8).tobytes()


@pytest.fixture
def mnist(tmp_path, monkeypatch):
    "A folder with a few digits in MNIST's files, packed and unpacked; its listed MD5s."
    monkeypatch.setenv("THESIS_REPRO_DATA", str(tmp_path))
    raw, listed = tmp_path / "mnist" / "MNIST" / "raw", []
    raw.mkdir(parents=True)
    for part, n in (("train", 30), ("t10k", 20)):
        for kind, x in (("images-idx3", noise(n, 28, 28)), ("labels-idx1", np.arange(n) % 10)):
            name, content = f"{part}-{kind}-ubyte", idx(x)
            (raw / name).write_bytes(content)
            (raw / f"{name}.gz").write_bytes(gzip.compress(content, mtime=0))
            listed.append((raw / f"{name}.gz", md5((raw / f"{name}.gz").read_bytes())))
    monkeypatch.setattr(data, "_published_files", lambda name: ([], listed))
    return raw


def test_mnist_in_its_own_format(mnist):
    said = data.verify("mnist")
    assert "4 files" in said and "30 training and 20 test images" in said
    images = load("mnist", 30, 20, 0)
    np.testing.assert_array_equal(images.x_test[:, 0].numpy(), noise(20, 28, 28))
    assert images.y_test.tolist() == [k % 10 for k in range(20)]


@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_an_unpacked_file_of_mnist_is_what_its_archive_holds(mnist, file):
    "Zeros of the right length were trained on, and called verified."
    whole = (mnist / file).read_bytes()
    for damaged in (whole[:16] + bytes(len(whole) - 16), whole[:-1]):
        (mnist / file).write_bytes(damaged)
        for call in (lambda: data.verify("mnist"), lambda: load("mnist")):
            refused(call, file, "not what its archive holds", "thesis-repro data fetch mnist")
    (mnist / file).unlink()
    refused(lambda: load("mnist"), file, "missing")
    (mnist / f"{file}.gz").write_bytes(b"x")
    refused(lambda: load("mnist"), f"{file}.gz", "damaged")


def test_what_was_unpacked_is_made_again_by_the_command_that_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("THESIS_REPRO_DATA", str(tmp_path))
    load("glyphs", 20, 10, 10, stream=True)
    (file,) = tmp_path.glob("glyphs/decoded-*/x_train.npy")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    refused(lambda: data.verify("glyphs"), "thesis-repro data fetch glyphs")
    assert "none of them in both" in data.fetch("glyphs")
