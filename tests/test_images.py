"From a source to batches: subsets, augmentation against a naive reference, order, speed."

import numpy as np
import pytest
import torch
from samples import bits, noise, refused
from torchvision.transforms.functional import to_tensor

from thesis_repro import digits, images
from thesis_repro.draws import Draws
from thesis_repro.images import OnDisk, Source, batches, take


def taken(name="digits10", **sizes):
    return take(digits.composed(name), name, **sizes)


def found(x):
    return {image.numpy().tobytes() for image in x}


def as_bytes(x):
    return (x * 255).round().to(torch.uint8)


def test_choices_are_pinned():
    "Subsets, orders and crops are the same in every version: records of runs depend on them."
    d = taken(train_size=505, test_size=200, held_out=103)
    parts = bits(d.x_train, d.y_train, d.x_val, d.y_val, d.x_test, d.y_test)
    steps = [*batches(d, 64, Draws(5, 3))]
    epoch = bits(as_bytes(torch.cat([x for _, x, _ in steps])), torch.cat([y for *_, y in steps]))
    assert (parts, epoch) == ("aeac4d6cbff889fe", "a6a59b4a5fcbfd4d")
    assert bits(images.epoch_order(1000, Draws(3, 5))) == "93bb8c07958dc07d"
    assert bits(images.epoch_order(1000, Draws(3, 5, step=9))) == "93bb8c07958dc07d"
    x, draws = torch.from_numpy(noise(64, 3, 32, 32)), Draws(3, 1, 4)
    assert bits(images.crop_and_flip(x, 4, True, draws)) == "cf0f9c9e7b1134af"
    assert bits(images.crop_and_flip(x, 4, False, draws)) == "7757822b64a3dc37"
    assert bits(images.crop_and_flip(x, 0, True, draws)) == "4ed24a8149f6f291"
    assert bits(images.synthetic_images(100).x_train) == "42bad6ce634f88d3"


# Subsets


def test_subsets_are_balanced_nested_and_disjoint():
    small, large = (taken(train_size=n, test_size=200, held_out=100) for n in (505, 1000))
    assert set(torch.bincount(small.y_train).tolist()) == {50, 51}
    assert torch.bincount(small.y_val).tolist() == [10] * 10
    assert torch.bincount(small.y_test).tolist() == [20] * 10
    assert found(small.x_train) < found(large.x_train)
    assert found(small.x_val) == found(large.x_val)
    assert not found(large.x_train) & found(large.x_val)
    assert not found(large.x_train) & found(large.x_test)


def test_sizes_beyond_the_data_give_all_of_it():
    d = taken("digits100", train_size=10**6, test_size=10**6, held_out=1000)
    assert (len(d.y_train), len(d.y_val), len(d.y_test)) == (4000, 1000, 2000)
    assert not found(d.x_train) & found(d.x_val)
    everything = digits.composed("digits100").x_train.transpose(0, 3, 1, 2)
    assert found(d.x_train) | found(d.x_val) == {x.tobytes() for x in everything}


def test_more_images_than_are_copied_at_once():
    x, y = noise(12_001, 2, 2, 1), np.arange(12_001) % 3
    d = take(Source(x, y, x[:9], y[:9], 3), "noise")
    assert np.array_equal(d.x_train.numpy(), x.transpose(0, 3, 1, 2))
    assert images.value_counts(x).sum() == x.size


def test_labels_stay_with_their_images():
    source = digits.composed("digits200")
    pairs = zip(source.x_train, source.y_train, strict=True)
    label = {x.transpose(2, 0, 1).tobytes(): y for x, y in pairs}
    d = taken("digits200", train_size=300, held_out=50)
    for x, y in [*zip(d.x_train, d.y_train, strict=True), *zip(d.x_val, d.y_val, strict=True)]:
        assert label[x.numpy().tobytes()] == y


def test_bad_sizes():
    refused(lambda: taken(held_out=5000), "held_out = 5000", "5,000 training images")
    for size in ("train_size", "test_size", "held_out"):
        refused(lambda size=size: taken(**{size: -1}), "digits10", "negative")


def test_mean_and_std_against_float64():
    x = noise(90, 8, 8, 3)
    x[..., 1] //= 3
    x[..., 2] = 7
    d = take(Source(x, np.arange(90) % 3, x[:9], np.arange(9) % 3, 3), "noise", held_out=10)
    reference = x.astype(np.float64) / 255
    assert d.mean == pytest.approx(reference.mean((0, 1, 2)).tolist(), abs=1e-12)
    assert d.std[:2] == pytest.approx(reference.std((0, 1, 2))[:2].tolist(), abs=1e-12)
    assert d.std[2] == 1 / 255  # a constant channel must not be divided by zero


# Crop and flip


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


CASES = [((40, 3, 12, 12), 4, True), ((20, 1, 9, 13), 2, False), ((8, 3, 6, 6), 0, True)]


@pytest.mark.parametrize(("shape", "padding", "flip"), CASES)
def test_augmentation_against_a_naive_reference(shape, padding, flip):
    x, draws = torch.from_numpy(noise(*shape)), Draws(3, 1, 4)
    out = images.crop_and_flip(x, padding, flip, draws)
    assert out.dtype == torch.uint8 and out.shape == x.shape
    rng, highs = draws.numpy("augment"), (2 * padding + 1, 2 * padding + 1, 1 + flip)
    places = [rng.integers(0, high, len(x)) for high in highs]
    expected = naive(x.numpy(), padding, *places)
    assert np.array_equal(out.numpy().astype(np.float64), expected)
    # the form for GPUs, which works without one as well
    on_gpu = images._windows_torch(x, padding, *map(torch.from_numpy, places))
    assert np.array_equal(on_gpu.numpy().astype(np.float64), expected)


def test_augmentation_reaches_every_place_and_both_sides():
    x = torch.zeros(4000, 1, 5, 5, dtype=torch.uint8)
    x[:, 0, 2, 1] = 255
    places = images.crop_and_flip(x, 1, True, Draws(0)).flatten(1).argmax(1)
    counts = torch.bincount(places, minlength=25).reshape(5, 5)[1:4]
    # rows uniform over three; columns over 0, 1, 2 unflipped and 2, 3, 4 flipped
    expected = torch.tensor([1, 1, 2, 1, 1]) / 18 * 4000
    assert ((counts - expected).abs() < 5 * expected.sqrt()).all()


def test_pixels_are_those_of_torchvision():
    x = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    assert torch.equal(images.pixels(torch.from_numpy(x).permute(2, 0, 1)), to_tensor(x))


# Batches


def test_an_epoch_has_every_image_once_and_epochs_differ():
    d = taken(train_size=203, held_out=10)
    orders = []
    for draws in (Draws(0, 0), Draws(0, 1), Draws(1, 0)):
        steps = list(batches(d, 50, draws, augment=False))
        assert [len(y) for _, _, y in steps] == [50, 50, 50, 50, 3]
        x = torch.cat([x for _, x, _ in steps])
        assert x.dtype == torch.float32 and found(as_bytes(x)) == found(d.x_train)
        orders.append(x)
    assert not torch.equal(orders[0], orders[1]) and not torch.equal(orders[0], orders[2])


@pytest.mark.parametrize("start", [1, 3, 4, 5])
def test_resumed_batches_are_the_same(start):
    d = taken("digits10_cluttered", train_size=203, held_out=10)
    whole = list(batches(d, 50, Draws(5, 2)))
    resumed = list(batches(d, 50, Draws(5, 2), start=start))
    assert [s for s, _, _ in resumed] == list(range(start, 5))
    for (_, x, y), (_, x2, y2) in zip(whole[start:], resumed, strict=True):
        assert torch.equal(x, x2) and torch.equal(y, y2)


def test_skipped_batches_cost_nothing():
    "No image is touched before the batch that was asked for."
    d = taken(train_size=200)
    touched = []

    class Watched(OnDisk):
        def __getitem__(self, which):
            touched.append(len(which))
            return super().__getitem__(which)

    d.x_train = Watched(digits.composed("digits10").x_train, np.arange(200))
    next(batches(d, 50, Draws(0), start=3))
    assert touched == [50]


def test_streamed_images_are_indexed_like_a_tensor():
    sizes = {"train_size": 60, "test_size": 20, "held_out": 10}
    d, streamed = taken("digits100", **sizes), taken("digits100", **sizes, stream=True)
    assert repr(streamed) == repr(d) and (streamed.mean, streamed.std) == (d.mean, d.std)
    for k in ("x_train", "x_val", "x_test"):
        here, there = getattr(d, k), getattr(streamed, k)
        assert isinstance(there, OnDisk) and there.shape == here.shape and len(there) == len(here)
        for which in (slice(3, 9), torch.tensor([4, 1]), np.array([0])):
            assert torch.equal(there[which], here[which])
    both = zip(batches(d, 16, Draws(1)), batches(streamed, 16, Draws(1)), strict=True)
    for (i, x, y), (j, x2, y2) in both:
        assert i == j and torch.equal(x, x2) and torch.equal(y, y2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("stream", [False, True])
def test_batches_on_a_gpu_are_those_of_the_cpu(stream):
    here = taken(train_size=203, held_out=10)
    there = taken(train_size=203, held_out=10, stream=stream).to("cuda")
    both = zip(batches(here, 50, Draws(0)), batches(there, 50, Draws(0)), strict=True)
    for (_, x, y), (_, x2, y2) in both:
        assert x2.is_cuda and y2.is_cuda and torch.equal(y, y2.cpu())
        assert torch.equal(as_bytes(x), as_bytes(x2).cpu())


# Speed


def test_both_speeds_measure_the_same_work(monkeypatch):
    "The DataLoader that is timed gives the same kind of batch from the same images."
    d = images.synthetic_images(300)
    steps, seen = [], []
    loader = torch.utils.data.DataLoader

    class Watched(loader):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            steps.extend(type(t).__name__ for t in self.dataset.transform.transforms)
            seen.append(next(iter(loader(self.dataset, 7))))

    with monkeypatch.context() as m:
        m.setattr(images.torch.utils.data, "DataLoader", Watched)
        theirs = images.dataloader_speed(d, seconds=0.2, workers=0)
    assert steps == ["RandomCrop", "RandomHorizontalFlip", "ToTensor"]
    assert seen[0].shape == (7, 3, 32, 32) and seen[0].dtype == torch.float32
    assert 0 <= seen[0].min() < seen[0].max() <= 1
    # some twelve times as fast; once in five times the machine has as much time for it
    assert any(images.data_path_speed(d, seconds=0.2) > theirs > 0 for _ in range(5))


def test_test_images_that_are_sorted_by_class_are_mixed():
    "The first thousand, which an attack takes, were those of the first classes."
    y = np.repeat(np.arange(4), 10)
    x = np.broadcast_to(y[:, None, None, None], (40, 4, 4, 3)).astype(np.uint8)
    own = take(Source(x, y, x, y, 4), "sorted")
    assert len(own.y_test[:10].unique()) > 2 and own.y_test.bincount().tolist() == [10] * 4
    assert torch.equal(own.x_test[:, 0, 0, 0].long(), own.y_test)  # each with its label
    assert torch.equal(own.y_train, torch.from_numpy(y))
    mixed = np.random.default_rng(0).permutation(y)
    kept = take(Source(x, y, x[mixed * 10], mixed, 4), "not sorted")
    assert torch.equal(kept.y_test, torch.from_numpy(mixed))
