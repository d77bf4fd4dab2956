"""ImageNet and its relatives on small folders of the official form, and torchvision's networks."""

import dataclasses
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from thesis_repro import corruptions, data, imagenet, lookups, models, registry, settings
from thesis_repro.draws import Draws
from thesis_repro.files import BadInput
from thesis_repro.imagenet import ClassifyPhotographs, OnRelative, Photographs, class_ids, listed
from thesis_repro.images import pixels, synthetic_images
from thesis_repro.mixup import Plain
from thesis_repro.pieces import from_specification, specification
from thesis_repro.recipes import SGD, Batch
from thesis_repro.runs import Run, shortfall
from thesis_repro.store import Store
from thesis_repro.training import Length

IDS = ["n01440764", "n01443537", "n01484850", "n02007558"]
SIDE = 32


def photograph(path, shade, size=(60, 44), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(shade).integers(0, 40, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise + np.uint8(shade)).convert(mode).save(path)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    "data/ with a few photographs of four classes, brighter from class to class, in every layout."
    monkeypatch.setenv("THESIS_REPRO_DATA", str(tmp_path))
    for k, wnid in enumerate(IDS):
        for i in range(6):
            file = tmp_path / "imagenet" / "train" / wnid / f"{wnid}_{i}.JPEG"
            photograph(file, 50 * k + i, mode=("RGB", "L", "CMYK")[i % 3])
        for i in range(2):
            name = f"ILSVRC2012_val_{4 * i + k:08d}.JPEG"
            photograph(tmp_path / "imagenet" / "val" / wnid / name, 50 * k + i)
            painted = tmp_path / "imagenet-stylized" / "val" / wnid / f"{wnid}_{i}.png"
            photograph(painted, 50 * k + i)
            for kind in corruptions.ALEXNET:
                for severity in "12345":
                    file = tmp_path / "imagenet-c" / kind / severity / wnid / name
                    photograph(file, 50 * k + i, size=(224, 224))
        if k in (1, 3):
            photograph(tmp_path / "imagenet-a" / wnid / "0.001_fox _ bald eagle_0.9.jpg", 50 * k)
    (tmp_path / "imagenet-a" / "README.txt").write_text("200 classes")
    return tmp_path


def test_classes_are_numbered_by_their_sorted_ids(folders):
    assert class_ids(folders / "imagenet" / "train") == IDS
    found = listed(folders / "imagenet-a", IDS)
    assert [label for _, label in found] == [1, 3] and all(f.suffix == ".jpg" for f, _ in found)
    assert len(listed(folders / "imagenet" / "val", IDS)) == 8


def test_the_centre_is_torchvisions(folders):
    from torchvision.transforms import CenterCrop, Compose, Resize

    whole = Compose([Resize(round(SIDE * 256 / 224)), CenterCrop(SIDE)])
    for size in ((60, 44), (44, 60), (37, 37), (300, 41)):
        file = folders / "one.png"
        across = np.linspace(0, 255, size[0])[None, :, None]
        down = np.linspace(0, 255, size[1])[:, None, None]
        ramps = np.concatenate(np.broadcast_arrays(across, down, (across + down) / 2), 2)
        Image.fromarray(ramps.astype(np.uint8)).save(file)
        with Image.open(file) as picture:
            expected = np.asarray(whole(picture)).astype(int)
        found = imagenet.centre(file, SIDE).astype(int)
        # rounding of the longer side, and of half a pixel of the cut
        assert found.shape == (SIDE, SIDE, 3) and abs(found - expected).max() <= 8
    file = folders / "square.png"
    photograph(file, 90, (40, 40))
    with Image.open(file) as picture:
        np.testing.assert_array_equal(imagenet.centre(file, SIDE), np.asarray(whole(picture)))


def test_imagenet_is_read_once_and_streamed(folders, monkeypatch):
    data = Photographs(side=SIDE, held_out=4)
    images = data.images()
    assert images.classes == 4 and images.x_train.shape == (20, 3, SIDE, SIDE)
    assert len(images.x_val) == 4 and sorted(images.y_test.tolist()) == sorted([0, 1, 2, 3] * 2)
    shade = images.x_test[torch.arange(8)].float().mean((1, 2, 3))
    assert all(
        shade[images.y_test == k].mean() > shade[images.y_test == k - 1].mean() for k in (1, 2, 3)
    )
    monkeypatch.setattr(imagenet, "decoded", None)  # it is not decoded again
    again = data.images()
    assert torch.equal(again.x_test[torch.arange(8)], images.x_test[torch.arange(8)])


def test_photographs_that_changed_after_they_were_decoded_are_noticed(folders, monkeypatch):
    monkeypatch.setenv("THESIS_REPRO_OUTPUTS", str(folders / "outputs"))
    images, store = Photographs(side=SIDE, held_out=4), Store(settings.load("smoke"))
    run = Run(images, ClassifyPhotographs("resnet18", Plain()))
    assert not data.stale("imagenet")  # nothing was decoded yet
    images.images()
    registry.warn_of_changes(store, [run])  # a warning is an error in the tests
    assert not data.stale("imagenet")
    copy = folders / "imagenet" / f"decoded-{SIDE}"
    os.utime(copy / "labels.npz", (1, 1))  # as of long ago
    for folder, _, files in os.walk(folders / "imagenet"):
        for path in map(Path(folder).joinpath, ("", *files)):
            os.utime(path, (0, 0)) if copy not in (path, path.parent) else None
    assert not data.stale("imagenet")
    photograph(folders / "imagenet" / "val" / IDS[2] / "more.JPEG", 7)
    with pytest.warns(UserWarning, match=f"old images.*val/{IDS[2]}.*{copy}: remove that folder"):
        registry.warn_of_changes(store, [run])
    with pytest.raises(BadInput, match="was changed after it was decoded"):
        lookups._looked_at("verify", "imagenet")
    os.utime(folders / "imagenet" / "val" / IDS[2], (0, 0))
    assert data.stale("imagenet").startswith(str(folders / "imagenet" / "val" / IDS[2] / "more"))
    shutil.rmtree(copy)
    assert images.images().x_test.shape[0] == 9 and not data.stale("imagenet")


class Shade(torch.nn.Module):
    "Says the class by the brightness: class k is near 50 k + 20 of 255."

    def __init__(self, classes=4):
        super().__init__()
        self.places = torch.nn.Parameter((50 * torch.arange(classes) + 20.0) / 255)

    def forward(self, x):
        return -(x.mean((1, 2, 3))[:, None] - self.places).abs()


def test_only_the_classes_that_occur_may_be_answered(folders):
    found = listed(folders / "imagenet-a", IDS)
    assert imagenet.accuracy_among(Shade(), found, SIDE, batch=1) == 100
    shifted = Shade()
    with torch.no_grad():  # looks like class 0 and 2: of 1 and 3 the nearer is still right
        shifted.places += 45 / 255
    x = torch.stack([torch.tensor(imagenet.centre(f, SIDE)) for f, _ in found])
    free = shifted(x.permute(0, 3, 1, 2) / 255).argmax(1)
    assert free.tolist() == [0, 2]
    assert imagenet.accuracy_among(shifted, found, SIDE) == 100
    everything = listed(folders / "imagenet" / "val", IDS)
    assert imagenet.accuracy_among(shifted, everything, SIDE) < 100


def test_a_run_is_measured_on_every_relative(folders, tmp_path):
    recipe = ClassifyPhotographs("resnet18", Plain(), SGD(0.01), width=0.0625)
    run = Run(Photographs(side=SIDE, held_out=4), recipe, Length(1, 10))
    store = Store(settings.load("thesis", device="cpu", jobs=1, precision="fp32"), tmp_path / "out")
    store.ensure([run])
    for folder in ("imagenet-a", "imagenet-stylized/val"):
        how = OnRelative(folder)
        assert how.absent(store, run) and math.isnan(how.value(store, run))
        ids = class_ids(folders / "imagenet" / "train")
        expected = imagenet.accuracy_among(store.weights(run), listed(folders / folder, ids), SIDE)
        assert how.make(store, run) == expected == how.value(store, run)
    errors = corruptions.CorruptionError(tuple(corruptions.ALEXNET)).make(store, run)
    assert set(errors) == set(corruptions.ALEXNET)
    right = run.data.accuracy_on(store.weights(run), "fog", 2)
    assert errors["fog"][1] == 100 - right


@pytest.mark.parametrize("name", ["efficientnet_b0", "resnet50"])
def test_networks_are_torchvisions(name):
    ours = imagenet.torchvision_network(name, 7, (0.4,) * 3, (0.2,) * 3, seed=3)
    again = imagenet.torchvision_network(name, 7, (0.4,) * 3, (0.2,) * 3, seed=3)
    assert all(
        torch.equal(a, b) for a, b in zip(ours.parameters(), again.parameters(), strict=True)
    )
    theirs = torchvision.models.get_model(name, num_classes=7).eval()
    theirs.load_state_dict(ours.stages[0][1].state_dict())
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), theirs((x - 0.4) / 0.2))


def test_published_sizes():
    "Parameters of EfficientNet-B0 to B7 as torchvision documents them."
    known = [5288548, 7794184, 9109994, 12233232, 19341616, 30389784, 43040704, 66347960]
    for k, count in enumerate(known):
        with torch.device("meta"):
            net = torchvision.models.get_model(f"efficientnet_b{k}")
        assert models.parameter_count(net) == count


def test_a_stand_in_takes_the_place_where_one_plays_cifar_10():
    smoke, whole = settings.load("smoke"), settings.load("thesis", device="cpu")
    recipe = ClassifyPhotographs("efficientnet_b7", Plain(), small=4.0)
    run = Run(Photographs(side=600), recipe, Length(350, 256))
    data, ours = run.data.scaled(smoke), recipe.scaled(smoke)
    assert data.name == "digits10" and data.stands_in and data.part == "ImageNet"
    assert ours.network == "resnet18" and ours.width == 4 * smoke.width
    assert ours.classifier(data.images(), 0)(torch.rand(2, 3, 16, 16)).shape == (2, 10)
    assert run.data.scaled(whole).real and recipe.scaled(whole) == recipe
    assert run.data.outline().shape == (3, 600, 600) and run.data.outline().classes == 1000
    short = shortfall(dataclasses.replace(run, data=data, recipe=ours), run)
    assert "stand-in digits10" in short and "resnet18 in place of efficientnet_b7" in short
    assert from_specification(specification(run)) == run


def test_bad_input_is_one_line(folders):
    with pytest.raises(BadInput, match=r"nowhere: missing or empty: see nbs/science/106_imagenet"):
        class_ids(folders / "nowhere")
    (folders / "bare" / "cats").mkdir(parents=True)
    with pytest.raises(BadInput, match="bare: has no folder of a class such as n01440764"):
        class_ids(folders / "bare")
    (folders / "imagenet-a" / "n99999999").mkdir()
    with pytest.raises(BadInput, match="n99999999: not one of the 4 classes that are known"):
        listed(folders / "imagenet-a", IDS)
    (folders / "imagenet" / "val" / "n99999999").mkdir()
    with pytest.raises(BadInput, match="n99999999: has no image"):
        listed(folders / "imagenet" / "val", [*IDS, "n99999999"])
    bad = folders / "bad.JPEG"
    bad.write_bytes(b"no photograph")
    with pytest.raises(BadInput, match=r"bad\.JPEG: cannot be read"):
        imagenet.centre(bad, SIDE)
    with pytest.raises(BadInput, match="resnet200: torchvision has no such network"):
        imagenet.torchvision_network("resnet200", 10, (0.5,), (0.25,))


def test_corrupted_photographs_are_cut_out_already(tmp_path):
    "They are 224 × 224 on the disk: enlarged and cut again, a third of their noise was gone."
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "n.png")
    asked = []

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, x):
            asked.append(x)
            return torch.eye(3)[:1] * self.weight

    found = [(tmp_path / "n.png", 0)]
    assert imagenet.accuracy_among(Net(), found, 64, among=(0, 1, 2), share=1.0) == 100
    seen = (255 * asked[0][0]).round().byte().permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(seen, pixels)


@pytest.mark.parametrize("asked, used", [(28, 28), (4, 4)])
def test_crops_are_as_far_as_the_images_ask(asked, used):
    images = dataclasses.replace(synthetic_images(2, 32), crop=asked)
    assert ClassifyPhotographs("resnet50", Plain()).prepared(images).crop == used


def test_what_a_network_drops_is_a_function_of_the_step():
    "Else a run that was stopped would not end as the one that was not."
    images, recipe = synthetic_images(2, 32), ClassifyPhotographs("efficientnet_b0", Plain())
    nets, losses = recipe.networks(images, 0), []
    for seed, step in ((1, 0), (2, 0), (2, 1)):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        batch = Batch(pixels(images.x_train), images.y_train, Draws(0, 0, step))
        losses.append(recipe.loss(nets, batch).item())
        assert torch.equal(torch.get_rng_state(), before)
    assert losses[0] == losses[1] != losses[2]
