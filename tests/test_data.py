"""Data: genuine formats on disk, damage of every kind, and augmentation against a naive reference."""

import functools
import hashlib
import http.server
import io
import pickle
import re
import tarfile
import threading
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from thesis_repro import data
from thesis_repro.data import Draws, batches, load
from thesis_repro.settings import BadInput


@pytest.fixture
def folder(tmp_path, monkeypatch):
    "An empty data folder."
    monkeypatch.setenv("THESIS_REPRO_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def refused(call, *words):
    "The one-line message with which `call` is refused; it has all the words."
    with pytest.raises(BadInput) as e:
        call()
    message = str(e.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    return message


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


# --- randomness -------------------------------------------------------------------------------------------------


def test_draws_are_pinned():
    "These numbers must never change: every record of a run depends on them."
    assert Draws(0, 1, 2).numpy("order").integers(0, 1000, 5).tolist() == [18, 777, 781, 108, 825]
    drawn = torch.randint(0, 1000, (5,), generator=Draws(0, 1, 2).torch("order"))
    assert drawn.tolist() == [14, 895, 833, 167, 265]


def test_draws_differ_in_everything_they_depend_on():
    keys = [
        (s, e, t, p)
        for s in (0, 1, 12)
        for e in (0, 1, 12)
        for t in (0, 1, 12)
        for p in ("order", "augment", "")
    ]
    first = [Draws(s, e, t).numpy(p).integers(2**62) for s, e, t, p in keys]
    assert len(set(first)) == len(keys)
    assert [Draws(s).at(e, t).numpy(p).integers(2**62) for s, e, t, p in keys] == first


def test_draws_of_two_purposes_are_uncorrelated():
    a, b = (Draws(7).torch(p) for p in ("one", "two"))
    r = np.corrcoef(torch.rand(20000, generator=a), torch.rand(20000, generator=b))[0, 1]
    assert abs(r) < 0.03


# --- the digits -------------------------------------------------------------------------------------------------


def test_no_scan_is_in_both_train_and_test():
    pools = data._digits()
    train, test = ({x.tobytes() for x in pools[k][0]} for k in ("train", "test"))
    assert len(train) + len(test) == 1797
    assert not train & test
    assert all((np.bincount(pools[k][1]) > 30).all() for k in pools)


@pytest.mark.parametrize(
    ("name", "classes"),
    [("digits10", 10), ("digits10_cluttered", 10), ("digits100", 100), ("digits200", 200)],
)
def test_digits_are_repeatable_and_balanced(name, classes):
    made, again = data._read_digits(name), data._read_digits.__wrapped__(name)
    for k in ("x_train", "y_train", "x_test", "y_test"):
        assert np.array_equal(getattr(made, k), getattr(again, k))
    assert made.x_train.shape == (5000, 16, 16, 3) and made.x_test.shape == (2000, 16, 16, 3)
    assert set(np.bincount(made.y_train)) == {5000 // classes}
    assert len({x.tobytes() for x in (*made.x_train, *made.x_test)}) == 7000


def test_drawn_scan_at_its_own_size_is_the_scan():
    scan = np.random.default_rng(0).random((1, 8, 8))
    one = np.ones(1)
    ink = data._drawn(scan, 7.5 * one, 7.5 * one, 8 * one, 8 * one, 0 * one)
    assert np.allclose(ink[0, 4:12, 4:12], scan[0])
    assert ink.sum() == pytest.approx(scan.sum())
    moved = data._drawn(scan, 9.5 * one, 6.5 * one, 8 * one, 8 * one, 0 * one)
    assert np.allclose(moved[0, 3:11, 6:14], scan[0])


def test_classes_say_what_is_in_the_picture():
    "Without noise and looseness: left digit, right digit, inversion."
    scans = np.zeros((10, 8, 8))
    for d in range(10):
        scans[d].flat[: 6 * d + 5] = 1  # a digit that is known by its amount of ink
    pool = (scans, np.arange(10))
    label = np.array([7, 70, 170])
    x = data._two(np.random.default_rng(0), pool, label).astype(float).mean(-1)
    left, right = x[:, :, :8].mean((1, 2)), x[:, :, 8:].mean((1, 2))
    assert left[0] < right[0] and left[1] > right[1] and left[2] < right[2]


# --- subsets ----------------------------------------------------------------------------------------------------


def found(images):
    return {x.numpy().tobytes() for x in images}


def test_subsets_are_balanced_nested_and_disjoint():
    small, large = (
        load("digits10", train_size=n, test_size=200, held_out=100) for n in (505, 1000)
    )
    assert set(torch.bincount(small.y_train).tolist()) == {50, 51}
    assert (
        torch.bincount(small.y_val).tolist() == [10] * 10
        and torch.bincount(small.y_test).tolist() == [20] * 10
    )
    assert found(small.x_train) < found(large.x_train)
    assert found(small.x_val) == found(large.x_val)
    assert not found(large.x_train) & found(large.x_val)
    assert not found(large.x_train) & found(large.x_test)


def test_sizes_beyond_the_data_give_all_of_it():
    d = load("digits100", train_size=10**6, test_size=10**6, held_out=1000)
    assert (len(d.y_train), len(d.y_val), len(d.y_test)) == (4000, 1000, 2000)
    assert not found(d.x_train) & found(d.x_val)
    everything = data._read_digits("digits100").x_train.transpose(0, 3, 1, 2)
    assert found(d.x_train) | found(d.x_val) == {x.tobytes() for x in everything}


def test_labels_stay_with_their_images():
    source = data._read_digits("digits200")
    label = {
        x.transpose(2, 0, 1).tobytes(): y
        for x, y in zip(source.x_train, source.y_train, strict=True)
    }
    d = load("digits200", train_size=300, held_out=50)
    for x, y in [*zip(d.x_train, d.y_train, strict=True), *zip(d.x_val, d.y_val, strict=True)]:
        assert label[x.numpy().tobytes()] == y


def test_bad_sizes_and_names():
    refused(lambda: load("digits10", held_out=5000), "held_out = 5000", "5,000 training images")
    refused(lambda: load("digits10", train_size=-1), "negative")
    refused(
        lambda: load("mnist"), "unknown data set: mnist", "digits10", "tiny_imagenet", "npz:PATH"
    )
    refused(lambda: load("npz"), "unknown data set")
    refused(lambda: data.fetch("mnist"), "unknown data set: mnist")
    refused(lambda: data.verify(""), "unknown data set")


def test_a_stand_in_is_named_and_the_real_one_is_not(cifar10):
    assert load("digits10", stand_in="CIFAR-10").stand_in == "CIFAR-10"
    assert load("cifar10", stand_in="CIFAR-10").stand_in == ""
    assert load("cifar10", stand_in="SVHN").stand_in == "SVHN"


# --- batches ----------------------------------------------------------------------------------------------------


def naive(x, padding, top, left, mirror):
    "Crop and flip, pixel by pixel in float64."
    n, c, h, w = x.shape
    out = np.zeros((n, c, h, w))
    for i in range(n):
        for row in range(h):
            for column in range(w):
                y = row + top[i] - padding
                z = (w - 1 - column if mirror[i] else column) + left[i] - padding
                if 0 <= y < h and 0 <= z < w:
                    out[i, :, row, column] = x[i, :, y, z].astype(np.float64)
    return out


@pytest.mark.parametrize(
    ("shape", "padding", "flip"),
    [((40, 3, 12, 12), 4, True), ((20, 1, 9, 13), 2, False), ((8, 3, 6, 6), 0, True)],
)
def test_augmentation_against_a_naive_reference(shape, padding, flip):
    x, draws = torch.from_numpy(noise(*shape)), Draws(3, 1, 4)
    out = data.crop_and_flip(x, padding, flip, draws)
    assert out.dtype == torch.uint8 and out.shape == x.shape
    rng = draws.numpy("augment")
    places = [
        rng.integers(0, high, len(x)) for high in (2 * padding + 1, 2 * padding + 1, 1 + flip)
    ]
    expected = naive(x.numpy(), padding, *places)
    assert np.array_equal(out.numpy().astype(np.float64), expected)
    # The form for GPUs, which needs none to be right.
    on_gpu = data._windows_torch(x, padding, *map(torch.from_numpy, places))
    assert np.array_equal(on_gpu.numpy().astype(np.float64), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("stream", [False, True])
def test_batches_on_a_gpu_are_those_of_the_cpu(stream, folder):
    d = load("digits10", train_size=203, held_out=10)
    g = load("digits10", train_size=203, held_out=10, device="cuda", stream=stream)
    for (_, x, y), (_, x2, y2) in zip(
        batches(d, 50, Draws(0)), batches(g, 50, Draws(0)), strict=True
    ):
        assert x2.is_cuda and y2.is_cuda and torch.equal(y, y2.cpu())
        assert torch.equal((x * 255).round(), (x2 * 255).round().cpu())


def test_augmentation_reaches_every_place_and_both_sides():
    x = torch.zeros(4000, 1, 5, 5, dtype=torch.uint8)
    x[:, 0, 2, 1] = 255
    places = data.crop_and_flip(x, 1, True, Draws(0)).flatten(1).argmax(1)
    counts = torch.bincount(places, minlength=25).reshape(5, 5)[1:4]
    # Rows uniform over three; columns over 0, 1, 2 unflipped and 2, 3, 4 flipped.
    expected = torch.tensor([1, 1, 2, 1, 1]) / 18 * 4000
    assert ((counts - expected).abs() < 5 * expected.sqrt()).all()


def test_an_epoch_has_every_image_once_and_epochs_differ():
    d = load("digits10", train_size=203, held_out=10)
    orders = []
    for epoch in (0, 1):
        steps = list(batches(d, 50, Draws(0, epoch), augment=False))
        assert [len(y) for _, _, y in steps] == [50, 50, 50, 50, 3]
        x = torch.cat([x for _, x, _ in steps])
        assert x.dtype == torch.float32
        assert found((x * 255).round().to(torch.uint8)) == found(d.x_train)
        orders.append(x)
    assert not torch.equal(*orders)
    assert not torch.equal(
        orders[0], torch.cat([x for _, x, _ in batches(d, 50, Draws(1, 0), augment=False)])
    )


def test_pixels_are_those_of_torchvision():
    from torchvision.transforms.functional import to_tensor

    x = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    assert torch.equal(data.pixels(torch.from_numpy(x).permute(2, 0, 1)), to_tensor(x))


@pytest.mark.parametrize("start", [1, 3, 4, 5])
def test_resumed_batches_are_the_same(start):
    d = load("digits10_cluttered", train_size=203, held_out=10)
    whole = list(batches(d, 50, Draws(5, 2)))
    resumed = list(batches(d, 50, Draws(5, 2), start=start))
    assert [s for s, _, _ in resumed] == list(range(start, 5))
    for (_, x, y), (_, x2, y2) in zip(whole[start:], resumed, strict=True):
        assert torch.equal(x, x2) and torch.equal(y, y2)


def test_skipped_batches_cost_nothing():
    "No image is touched before the batch that was asked for."
    d = load("digits10", train_size=200)
    touched = []

    class Watched(data.OnDisk):
        def __getitem__(self, which):
            touched.append(len(which))
            return super().__getitem__(which)

    d.x_train = Watched(data._read_digits("digits10").x_train, np.arange(200))
    next(batches(d, 50, Draws(0), start=3))
    assert touched == [50]


@pytest.mark.parametrize("name", ["digits100", "npz", "cifar10"])
def test_streaming_gives_the_same_batches(name, folder, request, tmp_path):
    if name == "cifar10":
        request.getfixturevalue("cifar10")
    if name == "npz":
        name = write_npz(
            tmp_path / "a.npz", x_train=noise(90, 8, 12, 1), x_test=noise(30, 8, 12, 1)
        )
    sizes = {"train_size": 60, "test_size": 20, "held_out": 10}
    for _ in range(2):  # made, then found
        streamed, d = load(name, **sizes, stream=True), load(name, **sizes)
        assert isinstance(streamed.x_train, data.OnDisk) and isinstance(
            streamed.x_train.array, np.memmap
        )
        assert streamed.x_train.shape == d.x_train.shape and repr(streamed) == repr(d)
        assert (streamed.mean, streamed.std) == (d.mean, d.std)
        for (i, x, y), (j, x2, y2) in zip(
            batches(d, 16, Draws(1)), batches(streamed, 16, Draws(1)), strict=True
        ):
            assert i == j and torch.equal(x, x2) and torch.equal(y, y2)
        for k in ("x_val", "x_test"):
            assert torch.equal(getattr(streamed, k)[3:9], getattr(d, k)[3:9])
            assert torch.equal(
                getattr(streamed, k)[torch.tensor([4, 1])], getattr(d, k)[torch.tensor([4, 1])]
            )
    assert not list(folder.rglob("*.tmp"))


def test_a_changed_archive_is_streamed_anew(folder, tmp_path):
    name = write_npz(tmp_path / "a.npz")
    before = load(name, stream=True).x_train[:3]
    write_npz(tmp_path / "a.npz", x_train=noise(61, 8, 8, 3, seed=9), y_train=np.arange(61) % 3)
    after = load(name, stream=True)
    assert len(after.y_train) == 61 and not torch.equal(after.x_train[:3], before)


def test_a_damaged_stream_file_is_made_again(folder):
    whole = load("digits10", stream=True).x_train[:100]
    (file,) = folder.rglob("x_train.npy")
    file.write_bytes(file.read_bytes()[:-1000])
    assert torch.equal(load("digits10", stream=True).x_train[:100], whole)


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("THESIS_REPRO_DATA", str(tmp_path / "file"))
    refused(lambda: load("digits10", stream=True), "cannot be written", "THESIS_REPRO_DATA")


def test_mean_and_std_against_float64(tmp_path):
    x = noise(90, 8, 8, 3)
    x[..., 1] //= 3
    x[..., 2] = 7
    d = load(write_npz(tmp_path / "a.npz", x_train=x), held_out=10)
    reference = x.astype(np.float64) / 255
    assert d.mean == pytest.approx(reference.mean((0, 1, 2)).tolist(), abs=1e-12)
    assert d.std[:2] == pytest.approx(reference.std((0, 1, 2))[:2].tolist(), abs=1e-12)
    assert d.std[2] == 1 / 255  # a constant channel must not be divided by zero


# --- npz:PATH ---------------------------------------------------------------------------------------------------


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
    assert "keys, shapes, types and labels" in data.verify(name) and data.fetch(
        name
    ) == data.verify(name)


@pytest.mark.parametrize(("side", "crop"), [(16, 2), (28, 3), (32, 4), (64, 4)])
def test_npz_padding(tmp_path, side, crop):
    d = load(
        write_npz(
            tmp_path / "a.npz", x_train=noise(9, side, side, 1), x_test=noise(3, side, side, 1)
        )
    )
    assert d.crop == crop and len(d.mean) == 1


WRONG = {
    "no y_test": ({"y_test": None}, "has no array y_test"),
    "float images": ({"x_train": np.zeros((60, 8, 8, 3), np.float32)}, "x_train is float32"),
    "channels first": ({"x_train": noise(60, 3, 8, 8)}, "x_train has the shape (60, 3, 8, 8)"),
    "flat": ({"x_test": noise(30, 192)}, "x_test has the shape (30, 192)"),
    "four channels": ({"x_train": noise(60, 8, 8, 4)}, "x_train has the shape (60, 8, 8, 4)"),
    "no training images": ({"x_train": noise(0, 8, 8, 3)}, "empty"),
    "no test images": ({"x_test": noise(0, 8, 8, 3)}, "empty"),
    "two sizes": ({"x_test": noise(30, 9, 8, 3)}, "x_test of (9, 8, 3)"),
    "labels missing": ({"y_train": np.zeros(59, int)}, "59 labels for 60 images"),
    "float labels": ({"y_train": np.zeros(60)}, "y_train is float64"),
    "one-hot labels": ({"y_train": np.zeros((60, 3), int)}, "y_train is int64 of shape (60, 3)"),
    "negative label": ({"y_train": np.arange(60) % 3 - 1}, "label -1"),
    "single class": (
        {"y_train": np.zeros(60, int), "y_test": np.zeros(30, int)},
        "makes 1 classes",
    ),
    "absurd label": ({"y_train": np.arange(60) + 10**12}, "labels up to"),
    "unknown test label": ({"y_test": np.arange(30) % 4}, "y_test has the label 3"),
    "negative test label": ({"y_test": np.arange(30) % 4 - 1}, "y_test has the label -1"),
    "a pickle": ({"y_train": np.array([{}] * 60, object)}, "pickle"),
    "a pickle for images": ({"x_train": np.array([{}] * 60, object)}, "pickle"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("case", WRONG)
def test_wrong_npz(tmp_path, folder, case, stream):
    arrays, words = WRONG[case]
    name = write_npz(tmp_path / "mine.npz", **arrays)
    refused(lambda: load(name, stream=stream), "mine.npz: ", words)
    assert not folder.exists()  # nothing is written


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_npz(tmp_path, folder, save):
    name = write_npz(tmp_path / "mine.npz", save)
    whole = (tmp_path / "mine.npz").read_bytes()
    for share in (0, 0.01, 0.3, 0.7, 0.99):
        (tmp_path / "mine.npz").write_bytes(whole[: int(len(whole) * share)])
        refused(lambda: load(name), "mine.npz: damaged")
        refused(lambda: load(name, stream=True), "mine.npz: damaged")
    for place in (len(whole) // 3, len(whole) // 2):  # one flipped bit in the pixels
        (tmp_path / "mine.npz").write_bytes(
            whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :]
        )
        refused(lambda: load(name), "mine.npz: damaged")
        refused(lambda: load(name, stream=True), "mine.npz: damaged")


def test_things_that_are_no_npz(tmp_path):
    np.save(tmp_path / "a.npz.npy", noise(3, 3))
    refused(lambda: load(f"npz:{tmp_path}/a.npz.npy"), "damaged, or not a NumPy archive")
    refused(lambda: load(f"npz:{tmp_path}"), "no such file")
    refused(lambda: load(f"npz:{tmp_path}/missing.npz"), "missing.npz: no such file")
    refused(lambda: load("npz:"), "no such file")


def test_a_relative_path_starts_at_the_project(tmp_path, monkeypatch):
    monkeypatch.setenv("THESIS_REPRO_ROOT", str(tmp_path))
    write_npz(tmp_path / "a.npz")
    assert load("npz:a.npz").classes == 3


# --- CIFAR and SVHN in their own formats --------------------------------------------------------------------------


def cifar_files(kind):
    "The members of a tiny CIFAR archive in the published format, and the images and labels in them."
    x, y = noise(60, 3, 32, 32), np.arange(60) % 10
    fine = kind.base_folder == "cifar-100-python"
    batch = lambda part: pickle.dumps(
        {
            "data": x[part].reshape(-1, 3072),
            ("fine_labels" if fine else "labels"): y[part].tolist(),
            "batch_label": "a batch",
        }
    )
    trains = [name for name, _ in kind.train_list]
    parts = np.array_split(np.arange(50), len(trains))
    files = {name: batch(part) for name, part in zip(trains, parts, strict=True)}
    files[kind.test_list[0][0]] = batch(np.arange(50, 60))
    files[kind.meta["filename"]] = pickle.dumps(
        {kind.meta["key"]: [f"class {i}" for i in range(100 if fine else 10)]}
    )
    return files, x, y


def publish(monkeypatch, kind, files):
    "Make torchvision expect these files; the archive that holds them."
    for which in ("train_list", "test_list"):
        monkeypatch.setattr(
            kind, which, [[name, md5(files[name])] for name, _ in getattr(kind, which)]
        )
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
def cifar10(folder, monkeypatch):
    from torchvision.datasets import CIFAR10

    files, x, y = cifar_files(CIFAR10)
    archive = publish(monkeypatch, CIFAR10, files)
    write(folder / "cifar10" / CIFAR10.base_folder, files)
    return folder / "cifar10", archive, x, y


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar(name, folder, monkeypatch):
    from torchvision import datasets

    kind = getattr(datasets, name.upper())
    files, x, y = cifar_files(kind)
    publish(monkeypatch, kind, files)
    write(folder / name / kind.base_folder, files)
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
    for call in (load, data.verify, functools.partial(load, stream=True)):
        refused(
            lambda call=call: call("cifar10"),
            f"{file}: damaged",
            md5(whole),
            "thesis-repro data fetch cifar10",
        )
    path.unlink()
    refused(lambda: load("cifar10"), f"{file}: missing", "thesis-repro data fetch cifar10")


def test_missing_sets_name_the_command(folder):
    for name in ("cifar10", "cifar100", "svhn", "svhn_extra", "tiny_imagenet"):
        refused(
            lambda name=name: load(name),
            "missing",
            f"run: thesis-repro data fetch {name}",
            str(folder),
        )
    assert not folder.exists()  # nothing is written


def house_numbers(monkeypatch, split, n, seed):
    "A file of SVHN in the published format, that torchvision expects; its images and labels from 1 to 10."
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    x, y = noise(32, 32, 3, n, seed=seed), (np.arange(n) % 10 + 1).astype(np.uint8)[:, None]
    file = io.BytesIO()
    savemat(file, {"X": x, "y": y})
    url, name, _ = SVHN.split_list[split]
    monkeypatch.setitem(SVHN.split_list, split, [url, name, md5(file.getvalue())])
    return name, file.getvalue(), x.transpose(3, 2, 0, 1), y[:, 0] % 10


def test_svhn(folder, monkeypatch):
    made = {
        s: house_numbers(monkeypatch, s, n, n)
        for s, n in (("train", 30), ("test", 20), ("extra", 40))
    }
    write(folder / "svhn", {made[s][0]: made[s][1] for s in ("train", "test")})
    d = load("svhn")
    for x, y, split in ((d.x_train, d.y_train, "train"), (d.x_test, d.y_test, "test")):
        assert np.array_equal(x.numpy(), made[split][2]) and np.array_equal(
            y.numpy(), made[split][3]
        )
    assert (d.classes, d.flip, d.crop) == (10, False, 4)

    refused(
        lambda: load("svhn_extra"), "extra_32x32.mat: missing", "thesis-repro data fetch svhn_extra"
    )
    write(folder / "svhn", {made["extra"][0]: made["extra"][1]})
    more = load("svhn_extra")
    assert np.array_equal(
        more.x_train.numpy(), np.concatenate([made["train"][2], made["extra"][2]])
    )
    assert np.array_equal(
        more.y_train.numpy(), np.concatenate([made["train"][3], made["extra"][3]])
    )

    (folder / "svhn" / "test_32x32.mat").write_bytes(made["test"][1][:-100])
    refused(lambda: load("svhn"), "test_32x32.mat: damaged", "thesis-repro data fetch svhn")


# --- downloading --------------------------------------------------------------------------------------------------


class Server(http.server.ThreadingHTTPServer):
    "A web server on this machine that sends ranges, and breaks the connection after `patience` bytes of an answer."

    def __init__(self):
        self.files, self.asked, self.ranges, self.patience = {}, [], True, None
        super().__init__(("127.0.0.1", 0), Handler)

    def url(self, name):
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        content = self.server.files.get(self.path[1:])
        if content is None:
            return self.send_error(404)
        start = (
            int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and self.server.ranges else 0
        )
        if start and start >= len(content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:][: self.server.patience])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(data.time, "sleep", lambda seconds: None)
    with Server() as s:
        threading.Thread(target=s.serve_forever, args=(0.01,), daemon=True).start()
        yield s
        s.shutdown()


CONTENT = noise(1_000_000).tobytes()


def test_download_resumes_a_part(server, tmp_path):
    server.files["a.bin"], path = CONTENT, tmp_path / "sub" / "a.bin"
    path.parent.mkdir()
    (path.parent / "a.bin.part").write_bytes(CONTENT[:300_000])
    data._download(server.url("a.bin"), path, md5(CONTENT))
    assert path.read_bytes() == CONTENT and server.asked == ["bytes=300000-"]
    assert [p.name for p in path.parent.iterdir()] == ["a.bin"]
    data._download(server.url("a.bin"), path, md5(CONTENT))
    assert len(server.asked) == 1  # whole: not asked for again


def test_download_survives_lost_connections(server, tmp_path):
    server.files["a.bin"], server.patience = CONTENT, 150_000
    data._download(server.url("a.bin"), tmp_path / "a.bin", md5(CONTENT))
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert server.asked == [None] + [f"bytes={150_000 * i}-" for i in range(1, 7)]


def test_download_from_a_server_without_ranges(server, tmp_path):
    server.files["a.bin"], server.ranges = CONTENT, False
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:10])
    data._download(server.url("a.bin"), tmp_path / "a.bin", md5(CONTENT))
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


@pytest.mark.parametrize(
    "part", [b"something else", CONTENT + b"too long", CONTENT, CONTENT[:-1] + b"?"]
)
def test_download_recovers_from_a_wrong_part(server, tmp_path, part):
    server.files["a.bin"] = CONTENT
    (tmp_path / "a.bin.part").write_bytes(part)
    data._download(server.url("a.bin"), tmp_path / "a.bin", md5(CONTENT))
    assert (tmp_path / "a.bin").read_bytes() == CONTENT and not (tmp_path / "a.bin.part").exists()


def test_a_truncated_file_is_completed(server, tmp_path):
    server.files["a.bin"] = CONTENT
    (tmp_path / "a.bin").write_bytes(CONTENT[:900_000])
    data._download(server.url("a.bin"), tmp_path / "a.bin", md5(CONTENT))
    assert (tmp_path / "a.bin").read_bytes() == CONTENT and server.asked == ["bytes=900000-"]


def test_a_download_that_cannot_succeed(server, tmp_path):
    path = tmp_path / "a.bin"
    refused(
        lambda: data._download(server.url("a.bin"), path, md5(CONTENT)),
        "cannot be downloaded",
        "404",
        str(path),
    )
    assert len(server.asked) == 1  # a refusal is not repeated
    server.files["a.bin"] = CONTENT[:-1] + b"?"
    refused(
        lambda: data._download(server.url("a.bin"), path, md5(CONTENT)), "another MD5", str(path)
    )
    server.patience = 0
    refused(
        lambda: data._download(server.url("a.bin"), path, md5(CONTENT)), "the connection was lost"
    )
    assert not path.exists()
    server.shutdown()
    server.server_close()
    refused(
        lambda: data._download(server.url("a.bin"), path, md5(CONTENT)),
        "cannot be downloaded",
        "refused",
    )


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
    assert len(server.asked) == 1  # mended from the archive
    assert np.array_equal(load("cifar10").x_test.numpy(), x[50:])
    assert capsys.readouterr().out == ""


def test_fetch_svhn(folder, server, monkeypatch):
    from torchvision.datasets import SVHN

    for split, n in (("train", 30), ("test", 20)):
        name, content, _, _ = house_numbers(monkeypatch, split, n, n)
        monkeypatch.setitem(SVHN.split_list, split, [server.url(name), name, md5(content)])
        server.files[name] = content
    write(folder / "svhn", {"train_32x32.mat": server.files["train_32x32.mat"][:500]})
    assert "2 files" in data.fetch("svhn") and server.asked == ["bytes=500-", None]
    assert len(load("svhn").y_train) == 30


# --- Tiny ImageNet in its own format ------------------------------------------------------------------------------

WNIDS = ["n02124075", "n01443537", "n04067472"]  # as published: not in order


def jpeg(image, **options):
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def tiny_files():
    "The files of a tiny Tiny ImageNet: a colour for each class, one image grey, the validation list not in order."
    colour = {w: tuple(255 if i == c else 30 for c in range(3)) for i, w in enumerate(WNIDS)}
    one = lambda wnid: jpeg(Image.new("RGB", (64, 64), colour[wnid]))
    files = {"wnids.txt": "\n".join(WNIDS).encode(), "words.txt": b"n02124075\tEgyptian cat\n"}
    for w in WNIDS:
        files[f"train/{w}/{w}_boxes.txt"] = "".join(
            f"{w}_{i}.JPEG\t0\t10\t63\t58\n" for i in range(4)
        ).encode()
        files |= {f"train/{w}/images/{w}_{i}.JPEG": one(w) for i in range(4)}
    files[f"train/{WNIDS[2]}/images/{WNIDS[2]}_1.JPEG"] = jpeg(Image.new("L", (64, 64), 99))
    val = [WNIDS[i] for i in (1, 0, 2, 2, 1, 0)]
    files["val/val_annotations.txt"] = "".join(
        f"val_{i}.JPEG\t{w}\t0\t32\t44\t62\n" for i, w in enumerate(val)
    ).encode()
    files |= {f"val/images/val_{i}.JPEG": one(w) for i, w in enumerate(val)}
    return files | {f"test/images/test_{i}.JPEG": one(WNIDS[0]) for i in range(3)}


def zipped(files, top="tiny-imagenet-200/"):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as z:
        for name, content in files.items():
            z.writestr(top + name, content)
    return archive.getvalue()


@pytest.fixture
def tiny(folder, server, monkeypatch):
    monkeypatch.setattr(data, "_TINY_CLASSES", 3)
    monkeypatch.setattr(data, "_TINY_IMAGES", 4)
    monkeypatch.setattr(data, "_TINY_VAL", 6)
    monkeypatch.setattr(data, "_TINY_URL", server.url("tiny.zip"))

    def publish(archive):
        server.files["tiny.zip"] = archive
        monkeypatch.setattr(data, "_TINY_MD5", md5(archive))

    publish(zipped(tiny_files()))
    server.publish = publish
    return folder / "tiny_imagenet"


def test_fetch_and_load_tiny_imagenet(tiny, server):
    server.patience = 4000
    line = data.fetch("tiny_imagenet")
    assert "12 training and 6 test images, 64 × 64 × 3, 3 classes" in line and len(server.asked) > 2
    d = load("tiny_imagenet")
    assert d.y_train.tolist() == [0] * 4 + [1] * 4 + [2] * 4 and d.y_test.tolist() == [
        1,
        0,
        2,
        2,
        1,
        0,
    ]
    grey = [9]
    assert (d.x_train[grey] == 99).all()  # grey became three equal channels
    for x, y in ((d.x_train, d.y_train), (d.x_test, d.y_test)):
        shown = x.float().mean((2, 3)).argmax(1)
        assert [int(c) for i, c in enumerate(shown) if x is d.x_test or i not in grey] == [
            int(c) for i, c in enumerate(y) if x is d.x_test or i not in grey
        ]
    assert (d.classes, d.flip, d.crop) == (3, True, 4)
    assert not (tiny / "tiny-imagenet-200" / "test").exists() and not list(tiny.glob(".*"))
    asked = len(server.asked)
    assert data.fetch("tiny_imagenet") == line and len(server.asked) == asked
    for (_, x, _), (_, x2, _) in zip(
        batches(d, 5, Draws(0)),
        batches(load("tiny_imagenet", stream=True), 5, Draws(0)),
        strict=True,
    ):
        assert torch.equal(x, x2)


def edit_missing_image(root):
    (root / f"train/{WNIDS[1]}/images/{WNIDS[1]}_2.JPEG").unlink()


def edit_truncated_image(root):
    path = root / f"train/{WNIDS[1]}/images/{WNIDS[1]}_2.JPEG"
    path.write_bytes(path.read_bytes()[:-200])


def edit_no_image(root):
    (root / f"train/{WNIDS[1]}/images/{WNIDS[1]}_2.JPEG").write_bytes(b"<html>not found</html>")


def edit_other_size(root):
    (root / f"train/{WNIDS[1]}/images/{WNIDS[1]}_2.JPEG").write_bytes(
        jpeg(Image.new("RGB", (1, 64)))
    )


def edit_missing_val(root):
    (root / "val/images/val_3.JPEG").unlink()


def edit_short_list(root):
    path = root / "val/val_annotations.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def edit_repeated_line(root):
    path = root / "val/val_annotations.txt"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:-1], lines[0]]))


def edit_unknown_id(root):
    path = root / "val/val_annotations.txt"
    path.write_text(path.read_text().replace(WNIDS[1], "n00000000"))


def edit_no_list(root):
    (root / "val/val_annotations.txt").unlink()


def edit_no_ids(root):
    (root / "wnids.txt").unlink()


def edit_binary_ids(root):
    (root / "wnids.txt").write_bytes(b"\xff\xfe\x00")


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (edit_missing_image, ["n01443537: has 3 images, expected 4"]),
        (edit_truncated_image, ["n01443537_2.JPEG: damaged"]),
        (edit_no_image, ["n01443537_2.JPEG: damaged"]),
        (edit_other_size, ["n01443537_2.JPEG: is 1 × 64"]),
        (edit_missing_val, ["val_3.JPEG: missing"]),
        (edit_short_list, ["val_annotations.txt", "expected 6"]),
        (edit_repeated_line, ["val_annotations.txt", "expected 6 different"]),
        (edit_unknown_id, ["val_annotations.txt", "wnids.txt"]),
        (edit_no_list, ["val_annotations.txt: missing"]),
        (edit_no_ids, ["wnids.txt: missing"]),
        (edit_binary_ids, ["wnids.txt"]),
    ],
    ids=lambda v: v.__name__ if callable(v) else "",
)
def test_damaged_tiny_imagenet(tiny, edit, words):
    write_tiny(tiny)
    edit(tiny / "tiny-imagenet-200")
    refused(lambda: load("tiny_imagenet"), *words, "run: thesis-repro data fetch tiny_imagenet")
    assert sorted(p.name for p in tiny.iterdir()) == [
        "tiny-imagenet-200"
    ]  # nothing half-decoded stays
    assert "3 classes" in data.fetch("tiny_imagenet")  # and the command it names mends it
    assert len(load("tiny_imagenet").y_train) == 12


def write_tiny(root):
    for name, content in tiny_files().items():
        path = root / "tiny-imagenet-200" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def test_a_flipped_bit_among_the_decoded_images_is_noticed_by_verify(tiny, server):
    write_tiny(tiny)
    whole = load("tiny_imagenet").x_train
    file = tiny / "decoded" / "x_train.npy"
    content = bytearray(file.read_bytes())
    content[-1000] ^= 1
    file.write_bytes(content)
    refused(
        lambda: data.verify("tiny_imagenet"),
        "x_train.npy: damaged",
        "thesis-repro data fetch tiny_imagenet",
    )
    data.fetch("tiny_imagenet")
    assert torch.equal(load("tiny_imagenet").x_train, whole)


@pytest.mark.parametrize(
    "member",
    [
        "../evil.txt",
        "/tmp/evil.txt",
        "other/evil.txt",
        "tiny-imagenet-200/../../evil.txt",
        "..\\evil.txt",
    ],
)
def test_archives_that_reach_outside_are_refused(tiny, server, member):
    archive = io.BytesIO(zipped(tiny_files()))
    with zipfile.ZipFile(archive, "a") as z:
        z.writestr(zipfile.ZipInfo(member), "evil")
    server.publish(archive.getvalue())
    refused(lambda: data.fetch("tiny_imagenet"), "does not belong there")
    assert [p.name for p in tiny.rglob("*")] == ["tiny-imagenet-200.zip"]


def test_links_in_archives_are_refused(tiny, server):
    archive = io.BytesIO(zipped(tiny_files()))
    with zipfile.ZipFile(archive, "a") as z:
        link = zipfile.ZipInfo("tiny-imagenet-200/link")
        link.external_attr = 0o120777 << 16
        z.writestr(link, "/etc/passwd")
    server.publish(archive.getvalue())
    refused(lambda: data.fetch("tiny_imagenet"), "does not belong there")


def test_a_truncated_tiny_archive(tiny, server):
    "Offline, with half an archive: one line. Online: the other half is fetched."
    whole = server.files.pop("tiny.zip")
    write(tiny, {"tiny-imagenet-200.zip": whole[: len(whole) // 2]})
    refused(lambda: load("tiny_imagenet"), "missing", "thesis-repro data fetch tiny_imagenet")
    refused(lambda: data.fetch("tiny_imagenet"), "cannot be downloaded")
    server.files["tiny.zip"] = whole
    assert (
        "3 classes" in data.fetch("tiny_imagenet")
        and server.asked[-1] == f"bytes={len(whole) // 2}-"
    )


def test_fetch_of_what_ships_needs_no_network(monkeypatch):
    monkeypatch.setattr(data, "_download", None)
    assert "5,000 training and 2,000 test images" in data.fetch("digits200")
    assert list(data.names())[-1] == "npz:PATH" and set(data.names()) >= {
        "digits10",
        "cifar10",
        "svhn_extra",
        "tiny_imagenet",
    }


# --- speed --------------------------------------------------------------------------------------------------------


def test_both_speeds_measure_the_same_work():
    "The DataLoader that the data path is timed against gives the same kind of batch from the same images."
    d = data.synthetic_images(300)
    steps, seen = [], []
    loader = data.torch.utils.data.DataLoader

    class Watched(loader):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            steps.extend(type(t).__name__ for t in self.dataset.transform.transforms)
            seen.append(next(iter(loader(self.dataset, 7))))

    with pytest.MonkeyPatch.context() as m:
        m.setattr(data.torch.utils.data, "DataLoader", Watched)
        theirs = data.dataloader_speed(d, seconds=0.2, workers=0)
    assert steps == ["RandomCrop", "RandomHorizontalFlip", "ToTensor"]
    assert (
        seen[0].shape == (7, 3, 32, 32)
        and seen[0].dtype == torch.float32
        and 0 <= seen[0].min() < seen[0].max() <= 1
    )
    assert data.data_path_speed(d, seconds=0.2) > theirs > 0
