"""Object detection: boxes, VOC's files, the loss, the attack, alignment, average precision."""

import itertools
import math
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.models.detection._utils import BoxCoder, SSDMatcher
from torchvision.models.detection.ssd import SSD
from torchvision.ops import box_iou

from thesis_repro import costs, detection_data, scenes, training
from thesis_repro.alignment import Align, Unlabelled, turned, whole_loss
from thesis_repro.average_precision import area, hits, precisions
from thesis_repro.boxes import (
    CLASS,
    PLACE,
    anchors,
    as_objects,
    decoded,
    detections,
    edges,
    encoded,
    matched,
    objects,
)
from thesis_repro.detection import Detect, OnDetector, RandomNoise, mirrored
from thesis_repro.detection_data import FORMS, VOC, Scenes, annotated
from thesis_repro.detector import SmallDetector, Ssd300, begun_with, mean_loss, multibox
from thesis_repro.draws import Draws
from thesis_repro.files import BadInput
from thesis_repro.images import pixels
from thesis_repro.recipes import Batch
from thesis_repro.runs import Named
from thesis_repro.training import Compute, Length

LAID = anchors((6, 3), ((0.3, 0.4), (0.5, 0.65)))


def some(*shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=g, dtype=torch.float64)


def random_objects(n=4, m=5, classes=3, seed=0):
    "Objects in n images, from one to m."
    rng, rows = np.random.default_rng(seed), []
    for _ in range(n):
        corner, size = rng.uniform(0, 0.6, (2, m)), rng.uniform(0.15, 0.4, (2, m))
        low, high = corner, corner + size
        of = zip(rng.integers(0, classes, m), *low, *high, rng.integers(0, 2, m), strict=True)
        rows.append(list(of)[: rng.integers(1, m + 1)])
    return objects(rows)


# ---- boxes


def test_matching_and_corrections_are_torchvisions():
    y, matcher = random_objects(20), SSDMatcher(0.5)
    coder, ours = BoxCoder((10.0, 10.0, 5.0, 5.0)), matched(y, LAID)
    for rows, own in zip(y, ours, strict=True):
        rows = rows[rows[:, CLASS] >= 0]
        which = matcher(box_iou(rows[:, PLACE], edges(LAID)))
        there = which >= 0
        expected = torch.where(there, rows[which.clamp(min=0), CLASS] + 1, 0)
        assert torch.equal(own[:, 0], expected)
        moved = coder.encode_single(rows[which.clamp(min=0), PLACE], edges(LAID))
        torch.testing.assert_close(own[there, 1:], moved[there], atol=1e-5, rtol=1e-4)
        assert not own[~there, 1:].any()


def test_every_object_has_an_anchor_and_rows_that_fill_up_have_none():
    far = [(1, 0.0, 0.0, 0.02, 0.02, 0)]  # overlaps no anchor by a half
    wanted = matched(objects([far, []], 3), LAID)
    assert (wanted[0, :, 0] == 2).sum() == 1 and not wanted[1].any()


def test_corrections_are_undone():
    boxes = some(3, len(LAID), 4).cumsum(-1) / 4
    torch.testing.assert_close(decoded(encoded(boxes, LAID.double()), LAID.double()), boxes)


def test_suppression_is_that_of_a_loop():
    said = 4 * some(1, len(LAID), 8) - 2
    (found,) = detections(said, LAID.double(), least=0.2, overlap=0.45)
    scores, boxes = said[0, :, :-4].softmax(-1)[:, 1:], decoded(said[0, :, -4:], LAID.double())
    expected = []
    for c in range(3):
        left = [(s.item(), b.clamp(0, 1)) for s, b in zip(scores[:, c], boxes, strict=True)]
        left = sorted((p for p in left if p[0] > 0.2), key=lambda p: -p[0])
        kept = []
        for score, box in left:
            if all(box_iou(box[None], k[None]).item() <= 0.45 for _, k in kept):
                kept.append((score, box))
        expected += [(c, s) for s, _ in kept]
    assert sorted((int(c), round(s, 9)) for c, s, *_ in found.tolist()) == sorted(
        (c, round(s, 9)) for c, s in expected
    )
    assert (found[:, 1].diff() <= 0).all()


def test_a_class_alone_is_an_object_as_large_as_the_image():
    y = as_objects(torch.tensor([2, 0]))
    assert y[:, 0].tolist() == [[2, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 0]]
    assert as_objects(y) is y


# ---- official files


def xml(*found, size=(100, 50), parts="") -> str:
    rows = "".join(
        f"<object><name>{n}</name><difficult>{d}</difficult><bndbox><xmin>{a}</xmin>"
        f"<ymin>{b}</ymin><xmax>{c}</xmax><ymax>{e}</ymax></bndbox>{parts}</object>"
        for n, d, (a, b, c, e) in found
    )
    w, h = size
    head = f"<folder>VOC</folder><size><width>{w}</width><height>{h}</height></size>"
    return f"<annotation>{head}{rows}</annotation>"


WHOLE = ("cat", 0, (1, 1, 100, 50))
PART = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"


def test_an_annotation_with_parts_and_difficult_objects(tmp_path):
    file = tmp_path / "a.xml"
    file.write_text(xml(WHOLE, ("dog", 1, (11, 6, 20, 10)), parts=PART))
    cat, dog = annotated(file)
    assert cat == (VOC.index("cat"), 0, 0, 1, 1, 0)
    assert dog == pytest.approx((VOC.index("dog"), 0.1, 0.1, 0.2, 0.2, 1))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (xml(), "has no object with a box"),
        (xml(("cat", 0, (1, 1, 101, 50))), "must be inside the image of 100 × 50"),
        (xml(("cat", 0, (0, 1, 10, 50))), "must be inside"),
        (xml(("cat", 0, (10, 1, 9, 50))), "must be inside"),
        (xml(("unicorn", 0, (1, 1, 10, 10))), "unknown class"),
        (xml(("cat", 0, ("x", 1, 10, 10))), "xmin = x: must be a number"),
        (xml(("cat", 0, ("nan", 1, 10, 10))), "must be a number"),
        (xml(WHOLE, size=("", 50)), "width = "),
        (xml(WHOLE).replace("<bndbox>", "<box>").replace("</bndbox>", "</box>"), "xmin = None"),
        (xml(WHOLE)[:-20], "cannot be read"),
        ("", "cannot be read"),
    ],
)
def test_a_fault_in_an_annotation_is_told_in_one_line(tmp_path, content, said):
    file = tmp_path / "a.xml"
    file.write_text(content)
    with pytest.raises(BadInput, match=said) as e:
        annotated(file)
    assert str(file) in str(e.value) and "\n" not in str(e.value)


def official(top, name, content=None, nested=True):
    "A data set of four images in its official form."
    form = FORMS[name]
    for (folder, part), names in zip(
        form.train + form.test, (("a", "b"), ("c",), ("d",)), strict=False
    ):
        place = top / name / (folder if nested else "")
        for sub in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (place / sub).mkdir(parents=True, exist_ok=True)
        (place / "ImageSets/Main" / f"{part}.txt").write_text("".join(f"{n} 1\n" for n in names))
        for n in names:
            (place / "Annotations" / f"{n}.xml").write_text(
                content or xml(("cat", 0, (1, 1, 50, 25)))
            )
            Image.new("RGB", (100, 50), (200, 10, 10)).save(place / "JPEGImages" / f"{n}.jpg")


def test_the_folders_are_those_of_the_archives():
    seven, twelve = "VOCdevkit/VOC2007", "VOCdevkit/VOC2012"
    assert FORMS["voc"].train == ((seven, "trainval"), (twelve, "trainval"))
    assert FORMS["voc"].test == ((seven, "test"),)
    archives = {"clipart1k": "clipart", "watercolor2k": "watercolor", "comic2k": "comic"}
    for name, folder in archives.items():
        assert (FORMS[name].train, FORMS[name].test) == (((folder, "train"),), ((folder, "test"),))


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("nested", [True, False])
def test_official_folders(data_folder, name, nested):
    if name == "voc" and not nested:
        pytest.skip("VOC has two folders")
    official(data_folder, name, nested=nested)
    images = Scenes(name, side=32).images()
    n = 3 if name == "voc" else 2
    assert images.x_train.shape == (n, 3, 32, 32) and images.classes == 20
    assert images.y_train[0, 0].tolist() == pytest.approx([VOC.index("cat"), 0, 0, 0.5, 0.5, 0])
    assert images.x_train[:1].float().mean((0, 2, 3))[0] == pytest.approx(200, abs=6)
    detection_data._loaded.cache_clear()


def test_one_folder_does_not_pass_for_both_years_of_voc(data_folder):
    "Both years were read from it, so every training image came twice."
    official(data_folder, "voc")
    (data_folder / "voc/VOCdevkit/VOC2007").rename(data_folder / "year")
    shutil.rmtree(data_folder / "voc")
    (data_folder / "year").rename(data_folder / "voc")
    with pytest.raises(BadInput, match=r"voc/VOCdevkit/VOC2007/\S*trainval\.txt: cannot be read"):
        detection_data.listed("voc", "train")


def test_only_the_classes_of_a_set_are_known_in_it(data_folder):
    official(data_folder, "comic2k", xml(("cow", 0, (1, 1, 50, 25))))
    with pytest.raises(BadInput, match="cow: unknown class: known are bicycle, bird, car"):
        Scenes("comic2k", side=32).images()


def test_what_is_missing_is_named(data_folder):
    with pytest.raises(BadInput, match="train.txt: cannot be read"):
        Scenes("clipart1k", side=32).images()
    official(data_folder, "clipart1k")
    (data_folder / "clipart1k/clipart/JPEGImages/a.jpg").write_bytes(b"no picture")
    with pytest.raises(BadInput, match="a.jpg: cannot be read"):
        Scenes("clipart1k", side=32).images()
    (data_folder / "clipart1k/clipart/ImageSets/Main/train.txt").write_text("\n")
    with pytest.raises(BadInput, match="names no image"):
        Scenes("clipart1k", side=32).images()


def test_data_that_there_are_not():
    with pytest.raises(BadInput, match="no such data set"):
        Scenes("coco")
    with pytest.raises(BadInput, match="other sides and classes"):
        Scenes("voc", "scenes_far")
    voc = Scenes("voc", "clipart1k").outline()
    assert (voc.train, voc.test, voc.classes, voc.shape) == (16551, 4952, 20, (3, 300, 300))


# ---- drawn scenes


@pytest.mark.parametrize("name", scenes.STYLES)
def test_a_box_ends_where_the_digit_does(name):
    s = scenes.drawn(name)
    there = s.y_train[s.y_train[..., 0] >= 0]
    assert (there[:, 3:5] - there[:, 1:3] > 0.1).all() and len(there) > len(s.y_train)
    assert s.x_train.shape[1:] == (48, 48, 3) and s.x_train.std() > 10


def test_only_the_planted_texture_depends_on_the_class():
    ink, kind = scenes.inked(np.random.default_rng(0), scenes.pools()["train"], 8)
    for name, style in scenes.STYLES.items():
        other = np.where(kind < 0, kind, (kind + 1) % 5)
        one, two = (style(np.random.default_rng(1), ink, k) for k in (kind, other))
        assert np.array_equal(one, two) == (name != "scenes_planted")


# ---- the loss


def torchvisions_loss(said, y):
    "The loss as torchvision's SSD computes it."
    like = SimpleNamespace(box_coder=BoxCoder((10.0, 10.0, 5.0, 5.0)), neg_to_pos_ratio=3)
    rows = [r[r[:, CLASS] >= 0].double() for r in y]
    targets = [{"boxes": r[:, PLACE], "labels": r[:, CLASS].long() + 1} for r in rows]
    laid = edges(LAID.double())
    which = [SSDMatcher(0.5)(box_iou(t["boxes"], laid)) for t in targets]
    heads = {"bbox_regression": said[..., -4:], "cls_logits": said[..., :-4]}
    return sum(SSD.compute_loss(like, targets, heads, [laid] * len(y), which).values())


def test_the_loss_is_torchvisions():
    y = random_objects(6)
    said = (4 * some(6, len(LAID), 8) - 2).requires_grad_()
    wanted = matched(y.double(), LAID.double())
    ours, theirs = mean_loss(said, wanted), torchvisions_loss(said, y)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    pair = [torch.autograd.grad(v, said)[0] for v in (ours, theirs)]
    torch.testing.assert_close(*pair, atol=1e-5, rtol=1e-5)


def test_an_image_without_objects_has_no_loss():
    said, wanted = some(2, len(LAID), 8), matched(objects([[(0, 0.1, 0.1, 0.4, 0.4, 0)], []]), LAID)
    total, n = multibox(said, wanted)
    assert total[1] == 0 and n[1] == 0 and total[0] > 0
    assert mean_loss(said[1:], wanted[1:]) == 0


# ---- networks


def pictures(**how):
    return Scenes("scenes", **{"train": 32, "test": 32} | how).images()


def test_a_step_of_ssd300():
    images = replace(pictures(), x_train=torch.zeros(1, 3, 300, 300, dtype=torch.uint8))
    recipe = Detect(Ssd300(pretrained=False), OnDetector(), Align(hidden=8))
    recipe_images = replace(images, x_target=images.x_train, y_train=images.y_train[:1])
    nets = recipe.networks(recipe.prepared(recipe_images), 0).train()
    net = nets["model"]
    assert net.anchors.shape == (8732, 4)
    batch = Batch(torch.rand(1, 3, 300, 300), images.y_train[:1], Draws(0))
    recipe.loss(nets, batch).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in nets.parameters())


def test_ssd300_begins_with_vgg16():
    from torchvision.models import vgg16

    images = replace(pictures(), x_train=torch.zeros(1, 3, 300, 300, dtype=torch.uint8))
    net = Ssd300().build(images)
    state = vgg16(weights=None).state_dict()
    begun_with(net, state)
    mine = [m for m in net.trunk.modules() if isinstance(m, torch.nn.Conv2d)]
    assert torch.equal(mine[0].weight, state["features.0.weight"])
    assert torch.equal(mine[12].weight, state["features.28.weight"])
    with pytest.raises(BadInput, match="VGG16 has 13"):
        begun_with(net, {"features.0.weight": state["features.0.weight"]})
    with pytest.raises(BadInput, match="must be square"):
        Ssd300().build(replace(images, x_train=torch.zeros(1, 3, 300, 200)))


def test_weights_that_cannot_be_had_are_told(monkeypatch):
    from torchvision.models import VGG16_Weights

    def offline(self, **how):
        raise OSError("no network")

    monkeypatch.setattr(VGG16_Weights, "get_state_dict", offline)
    with pytest.raises(BadInput, match="ssd300 = small"):
        Detect().prepared(pictures())


@pytest.mark.parametrize("side", [(48, 48), (64, 64), (70, 70)])
def test_an_anchor_for_each_answer(side):
    images = replace(pictures(), x_train=torch.zeros(1, 3, *side))
    net = SmallDetector().build(images)
    assert net(torch.rand(2, 3, *side)).shape[1] == len(net.anchors)
    with pytest.raises(BadInput, match="must be square"):
        SmallDetector().build(replace(images, x_train=torch.zeros(1, 3, 48, 50)))


# ---- the attack


def a_step(**how):
    images = pictures(target="scenes_far")
    recipe = Detect(SmallDetector(), flip=False, **how)
    nets = recipe.networks(recipe.prepared(images), 0).train()
    return recipe, nets, Batch(pixels(images.x_train[:8]), images.y_train[:8], Draws(0))


def test_the_attack_is_a_step_from_a_random_point():
    recipe, nets, batch = a_step(attack=OnDetector(8 / 255, 10 / 255, bn="eval"))
    net, x = nets["model"].double().eval(), batch.x.double()
    wanted = net.matched(batch.y).double()
    made = recipe.attack(net, x, wanted, Draws(3))
    drawn = Draws(3).torch("attack")
    start = torch.rand(x.shape, generator=drawn, dtype=x.dtype) * 2 - 1
    z = (x + 8 / 255 * start).clamp(0, 1).requires_grad_()
    total, _ = multibox(net(z), wanted)
    (slope,) = torch.autograd.grad(total.sum(), z)
    z = (z + 10 / 255 * slope.sign()).clamp(x - 8 / 255, x + 8 / 255).clamp(0, 1)
    clear = slope.abs() > 1e-12
    torch.testing.assert_close(made[clear], z[clear], atol=1e-7, rtol=0)
    assert not torch.equal(made, recipe.attack(net, x, wanted, Draws(4)))
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


def test_the_attack_raises_the_loss_more_than_noise_of_its_size():
    _, nets, batch = a_step()
    net = nets["model"].eval()
    wanted = net.matched(batch.y)
    kinds = (OnDetector(bn="eval", steps=3, step=4 / 255), RandomNoise())
    made = [kind(net, batch.x, wanted, Draws(0)) for kind in kinds]
    losses = [mean_loss(net(z), wanted) for z in (*made, batch.x)]
    assert losses[0] > max(losses[1:])
    for z in made:
        assert (z - batch.x).abs().max() <= 8 / 255 + 1e-6 and 0 <= z.min() and z.max() <= 1
    inside = (batch.x > 0.04) & (batch.x < 0.96)
    torch.testing.assert_close(
        (made[1] - batch.x).abs()[inside], torch.full_like(batch.x[inside], 8 / 255)
    )


def test_only_source_images_are_attacked(monkeypatch):
    seen = []

    def attack(net, x, wanted, draws):
        seen.append(x)
        return x

    recipe, nets, batch = a_step(align=Align())
    object.__setattr__(recipe, "attack", attack)
    recipe.loss(nets, batch)
    assert len(seen) == 1 and torch.equal(seen[0], batch.x)


@pytest.mark.parametrize("how", [{"epsilon": 8}, {"step": 2.0}, {"steps": 0}, {"start": "far"}])
def test_an_attack_that_cannot_be(how):
    with pytest.raises(BadInput):
        OnDetector(**how)


# ---- alignment


def test_the_gradient_is_turned_round_on_its_way_to_the_features_only():
    align = Align(weight=0.3, hidden=4)
    maps = [[some(2, 3, 4, 4, seed=s), some(2, 5, 2, 2, seed=s + 1)] for s in (0, 5)]
    torch.manual_seed(0)
    critics = align.critics(maps[0]).double()
    leaves = [[m.clone().requires_grad_() for m in of] for of in maps]
    flat = [m for of in leaves for m in of]
    ours = torch.autograd.grad(align(critics, *leaves), [*flat, *critics.parameters()])
    plain = 0.0
    for of, target in zip(leaves, (0.0, 1.0), strict=True):
        places, whole = critics(of)
        p = whole.sigmoid() if target else 1 - whole.sigmoid()
        plain = plain + (places.sigmoid() - target).square().mean()
        plain = plain - ((1 - p) ** 5 * p.log()).mean()
    theirs = torch.autograd.grad(0.3 * plain / 2, [*flat, *critics.parameters()])
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert b.abs().max() > 0
        torch.testing.assert_close(a, -b if i < 4 else b, atol=1e-12, rtol=1e-6)


def test_focal_loss_without_focus_is_cross_entropy():
    said = 4 * some(9) - 2
    for target in (True, False):
        label = torch.full_like(said, float(target))
        expected = F.binary_cross_entropy_with_logits(said, label)
        torch.testing.assert_close(whole_loss(said, target, 0.0), expected)
    assert turned(said) is not said and torch.equal(turned(said), said)


def test_target_images_are_drawn_and_not_kept():
    x = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1)
    beside = Unlabelled(x)
    first, other = (beside.drawn(6, Draws(0, 0, s), "cpu") for s in (0, 1))
    assert sorted((255 * first).flatten().round().tolist()) == [0, 1, 2, 3, 4, 5]
    assert not torch.equal(first, other) and not beside.state_dict()


# ---- the recipe


def test_a_stopped_run_goes_on_with_the_same_bits(tmp_path):
    images = pictures(target="scenes_far")
    full = Detect(SmallDetector((8, 8, 16, 16)), OnDetector(), Align(hidden=8), flip=True)
    how = {"compute": Compute(progress=False, checkpoint_seconds=0)}
    whole = training.train(training.start(full, images, Length(2, 8), **how))
    first, steps = training.start(full, images, Length(2, 8), folder=tmp_path, **how), [0]

    def broken(nets, batch):
        steps[0] += 1
        if steps[0] == 6:
            raise RuntimeError("the power fails")
        return full.loss(nets, batch)

    first.phases = (replace(first.phases[0], loss=broken),)
    with pytest.raises(RuntimeError, match="power"):
        training.train(first)
    again = training.start(full, images, Length(2, 8), folder=tmp_path, **how)
    assert 0 < again.at.steps < 8
    training.train(again)
    for a, b in zip(
        whole.nets.state_dict().values(), again.nets.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)


def test_what_a_detector_cannot_learn_from():
    digits = Named("digits10", 20, 10, 10, part="CIFAR-10").images()
    with pytest.raises(BadInput, match="has no boxes"):
        Detect(SmallDetector()).prepared(digits)
    with pytest.raises(BadInput, match="align needs images of a target"):
        Detect(SmallDetector(), align=Align()).prepared(pictures())
    with pytest.raises(BadInput, match="network = resnet18"):
        Detect("resnet18")
    with pytest.raises(BadInput, match="must be such as OnDetector"):
        Detect(SmallDetector(), attack="PGD")


def test_mirrored_boxes_stay_on_their_objects():
    images = pictures()
    x, y = pixels(images.x_train), images.y_train
    z, moved = mirrored(x, y, Draws(0))
    turned_round = (z != x).flatten(1).any(1)
    assert 4 < turned_round.sum() < 28
    torch.testing.assert_close(moved[~turned_round], y[~turned_round])
    there = y[..., CLASS] >= 0
    widths = [v[..., 3] - v[..., 1] for v in (y, moved)]
    torch.testing.assert_close(widths[0][there], widths[1][there])
    assert not moved[~there][:, 1:].any() and torch.equal(moved[..., CLASS], y[..., CLASS])


def test_a_step_is_counted():
    plain = Detect(SmallDetector(), flip=False)
    one = costs.times(replace(plain, attack=OnDetector()), plain, 5, (3, 48, 48))
    assert 1.6 < one < 1.75  # one pass forward and one to the inputs beside three
    aligned = costs.times(replace(plain, align=Align()), plain, 5, (3, 48, 48))
    assert 1.5 < aligned < 2.5


# ---- average precision


def reference(seen, y, kind, points):
    "Average precision of a class, counted object by object, without sorting by image."
    rows = sorted(
        (
            (s, i, torch.tensor(b))
            for i, d in enumerate(seen)
            for c, s, *b in d.tolist()
            if c == kind
        ),
        key=lambda r: -r[0],
    )
    there = {i: [r for r in of.tolist() if r[0] == kind] for i, of in enumerate(y)}
    n = sum(not r[5] for of in there.values() for r in of)
    used, right, wrong, curve = set(), 0, 0, []
    for _, i, box in rows:
        shared = [
            box_iou(box[None].double(), torch.tensor([r[1:5]]).double()).item() for r in there[i]
        ]
        best = max(range(len(shared)), key=shared.__getitem__, default=None)
        if best is None or shared[best] < 0.5:
            wrong += 1
        elif there[i][best][5]:
            continue
        elif (i, best) in used:
            wrong += 1
        else:
            used.add((i, best))
            right += 1
        curve.append((right / n, right / (right + wrong)))
    if points:
        grid = [k / (points - 1) for k in range(points)]
        return sum(max((p for r, p in curve if r >= g - 1e-12), default=0) for g in grid) / points
    total, before = 0.0, 0.0
    for r, _ in curve:
        total += (r - before) * max(p for q, p in curve if q >= r)
        before = r
    return total


def guesses(y, classes=3, seed=1):
    "Boxes near the objects and boxes anywhere, with scores."
    rng, found = np.random.default_rng(seed), []
    for of in y:
        rows = []
        for c, *box, _ in of[of[:, 0] >= 0].tolist():
            for _ in range(rng.integers(0, 3)):
                moved = np.array(box) + rng.normal(0, 0.03, 4)
                rows.append(
                    (c if rng.random() < 0.8 else rng.integers(classes), rng.random(), *moved)
                )
        low = rng.uniform(0, 0.5, 2)
        rows.append((rng.integers(classes), rng.random(), *low, *(low + 0.3)))
        found.append(torch.tensor(rows, dtype=torch.float32).view(-1, 6))
    return found


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_is_that_of_a_loop(seed):
    y = random_objects(12, seed=seed)
    seen = guesses(y, seed=seed + 10)
    found = precisions(seen, y, 3)
    for points, name in ((0, "mAP"), (11, "mAP 11 points")):
        each = [100 * reference(seen, y, kind, points) for kind in range(3)]
        assert math.isclose(found[name], np.mean(each), abs_tol=1e-9)
        if not points:
            assert found["AP"] == pytest.approx(each)


def test_average_precision_with_101_points_is_that_of_torchmetrics():
    pytest.importorskip("pycocotools")
    from torchmetrics.detection import MeanAveragePrecision

    y = random_objects(30)
    y[..., 5] = 0
    seen, metric = guesses(y), MeanAveragePrecision(iou_thresholds=[0.5])
    for d, of in zip(seen, y, strict=True):
        of = of[of[:, 0] >= 0]
        made = {"boxes": 1000 * d[:, 2:], "scores": d[:, 1], "labels": d[:, 0].int()}
        true = {"boxes": 1000 * of[:, PLACE], "labels": of[:, 0].int()}
        metric.update([made], [true])
    ours = []
    for kind in range(3):
        n = int((y[..., 0] == kind).sum())
        each = itertools.chain(*(hits(d, of, kind) for d, of in zip(seen, y, strict=True)))
        ours.append(area(list(each), n, 101))
    assert math.isclose(np.mean(ours), metric.compute()["map_50"], abs_tol=1e-6)


def test_the_second_box_on_an_object_is_a_false_alarm():
    box = [0.1, 0.1, 0.5, 0.5]
    y = objects([[(0, *box, 0)]])
    seen = [torch.tensor([[0, 0.9, *box], [0, 0.8, *box]])]
    assert hits(seen[0], y[0], 0) == [(pytest.approx(0.9), 1), (pytest.approx(0.8), 0)]
    assert precisions(seen, y, 1)["mAP"] == 100
    y[..., 5] = 1  # difficult: nobody's task
    assert hits(seen[0], y[0], 0) == [] and math.isnan(precisions(seen, y, 1)["mAP"])
    with pytest.raises(BadInput, match="must be as many"):
        precisions([], y, 1)


def test_half_of_the_area_is_enough():
    "A box that shares exactly half is a hit; one that shares less is not."
    y = objects([[(0, 0.0, 0.0, 1.0, 1.0, 0)]])
    seen = torch.tensor([[0, 0.9, 0.0, 0.0, 1.0, 0.499], [0, 0.8, 0.0, 0.0, 1.0, 0.5]])
    assert [hit for _, hit in hits(seen, y[0], 0)] == [0, 1]
    assert [hit for _, hit in hits(seen, y[0], 0, 0.6)] == [0, 0]
    elsewhere = hits(seen, y[0], 1) + hits(seen + torch.tensor([1, 0, 0, 0, 0, 0]), y[0], 1)
    assert elsewhere == [(pytest.approx(0.9), 0), (pytest.approx(0.8), 0)]


def test_a_recall_on_a_point_of_the_grid_counts():
    "One of two objects, at once: precision one from recall 0 to 0.5, both included."
    for points, expected in ((0, 0.5), (11, 6 / 11), (101, 51 / 101)):
        assert area([(0.9, 1)], 2, points) == pytest.approx(expected)
        assert area([], 2, points) == 0 and math.isnan(area([], 0, points))
