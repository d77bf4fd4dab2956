"""Chapter 5: its equations against plain float64 loops, who gets which label, and when gradients count as masked."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn as nn

from thesis_repro import data, m2at, models, runs, settings
from thesis_repro.adversarial import Adversarial, Examples
from thesis_repro.attacks import PGD
from thesis_repro.data import Draws, pixels
from thesis_repro.m2at import MaskAndMix, masking_signs, masking_verdict
from thesis_repro.report import Cell, compare
from thesis_repro.settings import BadInput

rng = lambda seed=0: np.random.default_rng(seed)
tensor = lambda a: torch.as_tensor(np.asarray(a))
EDGES = [(0.0, 0.0), (1.0, 1.0), (0.0, 1.0), (0.5, 0.999), (0.25, 0.25)]


# The equations, written a second time as plain loops in float64


def box_of(lam, u, v, height, width):
    "Eq. 5.3 and 5.4 for one image."
    x1, y1 = u * width, v * height
    side = (1 - lam) ** 0.5
    return x1, y1, min(width, width * side + x1), min(height, height * side + y1)


def mask_of(box, height, width):
    "Eq. 5.5 for one image, by the pixels' centres."
    x1, y1, x2, y2 = box
    return np.array(
        [
            [float(x1 < j + 0.5 < x2 and y1 < i + 0.5 < y2) for j in range(width)]
            for i in range(height)
        ]
    )


def share_of(box, height, width):
    return (box[2] - box[0]) * (box[3] - box[1]) / (height * width)


def labels_of(y, chosen, share, classes):
    "Eq. 5.6 to 5.8 for one image, class by class."
    t, t_bar = [], []
    for k in range(classes):
        s = 1 / len(chosen) if k in chosen else 0.0
        true, other = float(k == y), float(k != y)
        t.append(share * true + other * (1 - share) * s)
        t_bar.append(other * share * s + (1 - share) * true)
    return np.array(t), np.array(t_bar)


@pytest.mark.parametrize("height,width", [(8, 8), (6, 10)])
@pytest.mark.parametrize("lam", [0.0, 0.3, 0.9, 1.0])
def test_the_rectangle_and_its_share_are_eq_5_3_and_5_4(height, width, lam):
    corners = np.array(EDGES + rng().random((20, 2)).tolist())
    boxes = m2at.rectangle(
        torch.full((25,), lam, dtype=torch.float64), tensor(corners), height, width
    )
    expected = [box_of(lam, u, v, height, width) for u, v in corners]
    np.testing.assert_allclose(boxes, expected, rtol=1e-12)
    shares = m2at.covered_share(boxes, height, width)
    np.testing.assert_allclose(shares, [share_of(b, height, width) for b in expected], atol=1e-12)
    assert (boxes[:, 2:] <= torch.tensor([width, height])).all() and (shares >= 0).all()


def test_the_mask_is_eq_5_5():
    lam, corners = rng(1).random(40), np.array(EDGES + rng(2).random((35, 2)).tolist())
    boxes = [box_of(m, u, v, 6, 10) for m, (u, v) in zip(lam, corners, strict=True)]
    masks = m2at.binary_mask(tensor(boxes), 6, 10)
    assert masks.shape == (40, 1, 6, 10)
    np.testing.assert_array_equal(masks[:, 0].double(), [mask_of(b, 6, 10) for b in boxes])


def test_edge_rectangles():
    "The whole image, nothing, and a corner on the far border."
    whole, empty, far = (
        m2at.rectangle(torch.tensor([m]), torch.tensor([[c, c]]), 8, 8)
        for m, c in ((0, 0.0), (1, 0.3), (0, 1.0))
    )
    assert m2at.binary_mask(whole, 8, 8).all() and m2at.covered_share(whole, 8, 8) == 1
    for box in (empty, far):
        assert not m2at.binary_mask(box, 8, 8).any() and m2at.covered_share(box, 8, 8) == 0


def test_the_masks_share_is_the_boxs_in_the_mean():
    corners, lam = rng(3).random((4000, 2)), rng(4).random(4000)
    boxes = m2at.rectangle(tensor(lam), tensor(corners), 8, 8)
    difference = m2at.binary_mask(boxes, 8, 8).double().mean((1, 2, 3)) - m2at.covered_share(
        boxes, 8, 8
    )
    assert abs(difference.mean()) < 0.004


def test_masked_perturbations_are_eq_5_1_and_5_2():
    x, moved = rng().random((5, 3, 4, 4)), rng(1).random((5, 3, 4, 4))
    mask = rng(2).random((5, 1, 4, 4)) < 0.5
    inside, outside = m2at.masked_perturbations(tensor(x), tensor(moved), tensor(mask))
    np.testing.assert_allclose(inside, x + (moved - x) * mask, rtol=1e-12)
    np.testing.assert_allclose(outside, x + (moved - x) * (1 - mask), rtol=1e-12)


def test_masking_never_leaves_the_pixels_by_a_rounding():
    x = tensor(rng().random((50, 3, 8, 8))).float()
    moved = (x + 8 / 255).clamp(0, 1)
    mask = tensor(rng(1).random((50, 1, 8, 8)) < 0.5)
    inside, outside = m2at.masked_perturbations(x, moved, mask)
    assert torch.equal(torch.maximum(inside, outside), moved) and torch.equal(
        torch.minimum(inside, outside), x
    )


@pytest.mark.parametrize("number", [1, 3, 9])
def test_labels_are_eq_5_6_to_5_8(number):
    y, share = rng().integers(0, 10, 30), np.concatenate([[0.0, 1.0], rng(1).random(28)])
    chosen = m2at.random_classes(tensor(y), 10, number, rng(2))
    s = m2at.smoothing_distribution(chosen, 10)
    t, t_bar = m2at.masked_labels(tensor(y), s, tensor(share))
    expected = [
        labels_of(a, set(c.tolist()), b, 10) for a, b, c in zip(y, share, chosen, strict=True)
    ]
    np.testing.assert_allclose(t, [e[0] for e in expected], atol=1e-6)
    np.testing.assert_allclose(t_bar, [e[1] for e in expected], atol=1e-6)
    np.testing.assert_allclose(t.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(t_bar.sum(1), 1, atol=1e-6)
    swapped = m2at.masked_labels(tensor(y), s, tensor(1 - share), "unperturbed")
    torch.testing.assert_close(swapped, (t, t_bar))


def test_as_printed_a_label_loses_mass_where_the_true_class_is_smoothed_over():
    "ȳ ⊙ s of eq. 5.6: why y is left out of 𝓜."
    s = m2at.smoothing_distribution(torch.tensor([[0, 1]]), 4)
    t, _ = m2at.masked_labels(torch.tensor([0]), s, torch.tensor([0.5]))
    torch.testing.assert_close(t, torch.tensor([[0.5, 0.25, 0.0, 0.0]]))


@pytest.mark.parametrize("number", [1, 4, 9])
def test_random_classes_are_distinct_never_the_label_and_all_alike(number):
    y = tensor(rng().integers(0, 10, 6000))
    chosen = m2at.random_classes(y, 10, number, rng(1))
    assert not (chosen == y[:, None]).any()
    assert all(len(set(row)) == number for row in chosen[:200].tolist())
    offsets = (chosen - y[:, None]) % 10
    share = np.bincount(offsets.flatten().numpy(), minlength=10)[1:] / offsets.numel()
    np.testing.assert_allclose(share, 1 / 9, atol=0.02)


def test_lowest_classes_are_the_least_probable_others_in_ascending_order():
    z, y = rng().normal(size=(50, 7)), rng(1).integers(0, 7, 50)
    z[np.arange(25), y[:25]] = -9  # here the label itself would be the lowest
    chosen = m2at.lowest_classes(tensor(z), tensor(y), 3)
    for row, scores, label in zip(chosen.tolist(), z, y, strict=True):
        assert row == sorted((k for k in range(7) if k != label), key=lambda k: scores[k])[:3]


def test_mixing_is_eq_5_9_and_5_10():
    a, b, lam = rng().random((6, 3, 4, 4)), rng(1).random((6, 3, 4, 4)), rng(2).random(6)
    expected = np.stack([m * p + (1 - m) * q for m, p, q in zip(lam, a, b, strict=True)])
    np.testing.assert_allclose(
        m2at.mixed_images(tensor(a), tensor(b), tensor(lam)), expected, rtol=1e-12
    )
    t, u = rng(3).random((6, 5)), rng(4).random((6, 5))
    expected = np.stack([m * p + (1 - m) * q for m, p, q in zip(lam, t, u, strict=True)])
    np.testing.assert_allclose(
        m2at.mixed_labels(tensor(t), tensor(u), tensor(lam)), expected, rtol=1e-12
    )


# The claim of section 5.2.3: λ₁ = 0 and λ₁ = 1 are AVmixup with γ = 1


def avmixup(x, moved, y, ratio, classes):
    "AVmixup with γ = 1 and label smoothing of the clean image 1, of the adversarial one 0: eq. 4 and 5 of Lee et al., one by one."
    image = np.stack(
        [r * a + (1 - r) * (a + 1.0 * (b - a)) for r, a, b in zip(ratio, x, moved, strict=True)]
    )
    label = np.full((len(y), classes), 0.0)
    for i, (r, k) in enumerate(zip(ratio, y, strict=True)):
        label[i] = (1 - r) / (classes - 1)
        label[i, k] = r
    return image, label


@pytest.mark.parametrize("lam1", [0.0, 1.0])
def test_the_ends_are_avmixup_in_the_images_and_in_the_labels_of_the_other_reading(lam1):
    x, moved, y = (
        rng().random((20, 3, 8, 8)),
        rng(1).random((20, 3, 8, 8)),
        rng(2).integers(0, 10, 20),
    )
    lam2 = rng(3).random(20)
    clean = (
        lam2 if lam1 else 1 - lam2
    )  # the weight of x: the empty rectangle makes ξ the clean image
    image, label = avmixup(x, moved, y, clean, 10)
    ends = lambda mass: m2at.at_the_end(
        tensor(x), tensor(moved), tensor(y), lam1, tensor(lam2), 10, mass
    )
    np.testing.assert_allclose(ends("unperturbed")[0], image, atol=1e-6)
    np.testing.assert_allclose(ends("unperturbed")[1], label, atol=1e-6)
    np.testing.assert_allclose(ends("perturbed")[0], image, atol=1e-6)
    mass = ends("perturbed")[1].numpy()[np.arange(20), y]
    np.testing.assert_allclose(mass, 1 - clean, atol=1e-6)  # as printed, the weight of x̂


# The piece on a batch


class FirstPixel(nn.Module):
    "Logits that depend on the image only through its first pixel."

    def __init__(self, classes=10):
        super().__init__()
        self.w = nn.Parameter(tensor(rng(5).normal(size=classes)).float())
        self.calls = []

    def forward(self, x):
        self.calls.append(torch.is_grad_enabled())
        return (x.flatten(1)[:, :1] - 0.5) * self.w


def batch(n=64, classes=10, size=8, seed=0):
    x = tensor(rng(7).random((n, 3, size, size))).float()
    x[:, 0, 0, 0] = 0.5  # FirstPixel then gives x itself no order of the classes, and x̂ one
    delta = tensor(rng(8).choice([-8 / 255, 8 / 255], x.shape)).float()
    y = tensor(rng(9).integers(0, classes, n))
    return Examples(
        FirstPixel(classes),
        x,
        y,
        Draws(seed, 1, 2),
        adversarial=(x + delta).clamp(0, 1),
        classes=classes,
    )


def strengths(e, inputs):
    "How much of δ each pixel of the inputs has, where δ is not cut."
    delta = e.adversarial - e.x
    return torch.where(delta.abs() > 0.02, (inputs - e.x) / delta, torch.nan)


@pytest.mark.parametrize("per", ["batch", "sample"])
def test_the_piece_follows_algorithm_1(per):
    e = batch()
    inputs, target = MaskAndMix(per=per)(e)
    box = m2at.mask_boxes(e, per).double().numpy()
    lam2 = m2at.ratios(e, "m2at mixing", 1.0, per).double().numpy()
    for i in range(64):
        mask, share = mask_of(box[i], 8, 8), share_of(box[i], 8, 8)
        x, moved, label = (v[i].double().numpy() for v in (e.x, e.adversarial, e.y))
        xi, xi_bar = x + (moved - x) * mask, x + (moved - x) * (1 - mask)
        t, t_bar = labels_of(int(label), set(range(10)) - {int(label)}, share, 10)
        np.testing.assert_allclose(inputs[i], lam2[i] * xi + (1 - lam2[i]) * xi_bar, atol=1e-6)
        np.testing.assert_allclose(target[i], lam2[i] * t + (1 - lam2[i]) * t_bar, atol=1e-5)


def test_lambdas_are_one_a_batch_or_one_a_sample_and_corners_one_a_sample():
    e = batch()
    sides = lambda box: (box[:, 2:] - box[:, :2]).numpy()
    uncut = lambda box: [
        round(float(v), 4)
        for v, cut in zip(sides(box).ravel(), box[:, 2:].numpy().ravel() >= 8, strict=True)
        if not cut
    ]
    one, many = m2at.mask_boxes(e, "batch"), m2at.mask_boxes(e, "sample")
    assert len(set(uncut(one))) == 1 and len(set(uncut(many))) > 5
    assert len({tuple(c) for c in one[:, :2].tolist()}) == 64
    assert len(set(m2at.ratios(e, "m2at mixing", 1.0, "batch").tolist())) == 1
    assert len(set(m2at.ratios(e, "m2at mixing", 1.0, "sample").tolist())) == 64


def test_corners_and_ratios_are_uniform_and_beta():
    n = 20_000
    e = dataclasses.replace(batch(), y=torch.zeros(n, dtype=torch.long), x=torch.zeros(n, 1, 4, 6))
    box = m2at.mask_boxes(e, "sample").double().numpy() / [6, 4, 6, 4]
    for column in box[:, :2].T:
        np.testing.assert_allclose(
            np.quantile(column, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.015
        )
    uncut = box[(box[:, 2] < 1) & (box[:, 0] < 0.05)]
    assert np.quantile((uncut[:, 2] - uncut[:, 0]) ** 2, 0.5) == pytest.approx(
        0.5, abs=0.1
    )  # 1 − λ₁, uniform
    lam = m2at.ratios(e, "m2at mixing", 5.0, "sample")
    assert lam.var().item() == pytest.approx(1 / 44, rel=0.05)  # Beta(5, 5)


def test_two_strengths_inside_and_outside():
    e = batch()
    inputs, _ = MaskAndMix()(e)
    lam2 = m2at.ratios(e, "m2at mixing", 1.0, "batch")
    mask = m2at.binary_mask(m2at.mask_boxes(e, "batch"), 8, 8).expand_as(inputs)
    found = strengths(e, inputs)
    there = ~found.isnan()
    expected = torch.where(mask, lam2[0], 1 - lam2[0])
    torch.testing.assert_close(found[there], expected[there], atol=1e-3, rtol=0)


def test_the_seven_rows_of_the_ablation():
    "What each row of table 5.3 learns from, against what section 5.3.3 says of it."
    e, rows = batch(), m2at.ablation()
    made = {name: piece(e) for name, piece in rows.items()}
    truth = torch.nn.functional.one_hot(e.y, 10).float()
    mass = {name: t.gather(1, e.y[:, None]).squeeze(1) for name, (_, t) in made.items()}
    share = m2at.covered_share(m2at.mask_boxes(e, "batch"), 8, 8)
    lam2, smooth = (
        m2at.ratios(e, "m2at mixing", 1.0, "batch"),
        m2at.ratios(e, "m2at smoothing", 1.0, "batch"),
    )
    inside, outside = m2at.halves(e, m2at.mask_boxes(e, "batch"))
    weight = lam2[:, None, None, None]
    line, patch = (
        weight * e.adversarial + (1 - weight) * e.x,
        weight * inside + (1 - weight) * outside,
    )
    images = [e.adversarial, line, line, inside, inside, patch, patch, patch]
    one = torch.ones(64)
    masses = [
        smooth,
        one,
        lam2 * smooth + 1 - lam2,
        one,
        share,
        one,
        lam2 * share + (1 - lam2) * (1 - share),
    ]
    masses.append(1 - masses[-1])
    for (name, (inputs, target)), image, expected in zip(made.items(), images, masses, strict=True):
        torch.testing.assert_close(inputs, image, atol=1e-6, rtol=0, msg=name)
        torch.testing.assert_close(mass[name], expected, atol=1e-5, rtol=0, msg=name)
        torch.testing.assert_close(target.sum(1), one, msg=name)
        others = target[truth == 0].view(64, 9)
        torch.testing.assert_close(others, others[:, :1].expand(64, 9), msg=name)
    assert list(rows)[:7] == list(dict.fromkeys(pd.read_csv(m2at_published()).row))


def m2at_published():
    from thesis_repro import paths

    return paths.published() / "table_5_3.csv"


def test_learned_images_stay_in_the_ball_and_among_the_pixels():
    e = batch()
    for piece in m2at.ablation().values():
        inputs, _ = piece(e)
        assert inputs.min() >= 0 and inputs.max() <= 1
        assert (inputs - e.x).abs().max() <= (e.adversarial - e.x).abs().max() + 1e-6
        assert not inputs.requires_grad


def test_a_step_is_a_function_of_its_draws():
    first, again, other = (MaskAndMix(smoothed=3)(batch(seed=s)) for s in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0]) and not torch.equal(first[1], other[1])
    e = batch()
    later = dataclasses.replace(e, draws=e.draws.at(1, 3))
    assert not torch.equal(MaskAndMix()(e)[0], MaskAndMix()(later)[0])


def test_the_lowest_classes_cost_one_forward_pass_without_a_graph():
    e = batch()
    e.model.train()
    _, target = MaskAndMix(smoothed=3, choice="lowest")(e)
    assert e.model.calls == [False] and e.model.training
    logits = (e.adversarial.flatten(1)[:, :1] - 0.5) * e.model.w
    for row, z, label in zip(target, logits.detach(), e.y.tolist(), strict=True):
        chosen = {k for k in range(10) if row[k] > 0 and k != label}
        assert chosen == set(
            sorted((k for k in range(10) if k != label), key=lambda k: z[k].item())[:3]
        )


@pytest.mark.parametrize(
    "how", [MaskAndMix(), MaskAndMix(smoothed=3), MaskAndMix(smoothed=9, choice="lowest")]
)
def test_nothing_else_asks_the_network(how):
    e = batch()
    how(e)
    assert e.model.calls == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"choice": "nearest"},
        {"per": "epoch"},
        {"label_mass": "both"},
        {"alpha": 0.0},
        {"alpha": float("nan")},
        {"smoothed": -1},
    ],
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises(BadInput, match=next(iter(wrong))):
        MaskAndMix(**wrong)


def test_more_smoothed_classes_than_there_are_is_refused():
    with pytest.raises(BadInput, match="smoothed = 10: with 10 classes at most 9"):
        MaskAndMix(smoothed=10)(batch())


# In training, and as a run


@pytest.fixture(scope="module")
def digits():
    return data.load("faint10", train_size=100, test_size=40, held_out=20)


def test_m2at_is_adversarial_training_with_a_mix(digits):
    "The loss of algorithm 1, line by line, from the pieces of this file."
    net = models.build("resnet18", 10, 0.0625, 3, digits.mean, digits.std)
    x, y, draws = pixels(digits.x_train[:16]), digits.y_train[:16], Draws(3)
    attack = PGD(steps=2)
    method = Adversarial(attack, mix=MaskAndMix())
    adversarial = attack(net.train(), x, y, draws)  # before a step moves the running statistics
    found = method(net, x, y, draws)
    e = Examples(net, x, y, draws, adversarial=adversarial, classes=10)
    box, lam2 = m2at.mask_boxes(e, "batch"), m2at.ratios(e, "m2at mixing", 1.0, "batch").numpy()
    inputs, targets = [], []
    for i in range(16):
        mask = tensor(mask_of(box[i].tolist(), 8, 8)).float()
        delta = e.adversarial[i] - x[i]
        inputs.append(x[i] + delta * (lam2[i] * mask + (1 - lam2[i]) * (1 - mask)))
        t, t_bar = labels_of(
            y[i].item(), set(range(10)) - {y[i].item()}, share_of(box[i].tolist(), 8, 8), 10
        )
        targets.append(lam2[i] * t + (1 - lam2[i]) * t_bar)
    log_p = net(torch.stack(inputs)).log_softmax(1)
    expected = -(tensor(np.stack(targets)) * log_p).sum(1).mean()
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    gradients = [torch.autograd.grad(v, list(net.parameters())) for v in (found, expected)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


def test_every_planned_run_is_a_run_that_can_be_written_down_and_made_again():
    preset = settings.load("smoke", chapter=5, wide_network="themselves")
    plans = [m2at.runs_5_1, m2at.runs_5_2, m2at.runs_5_3, m2at.runs_5_4, m2at.runs_5_ours]
    planned = {r for plan in plans for p in plan(preset).values() for r in p.runs}
    for run in planned:
        spec = json.loads(json.dumps(runs.specification(run)))
        assert runs.from_specification(spec) == run and runs.from_specification(spec).key == run.key
    assert len({r.key for r in planned}) == 20 * preset.seeds  # tables share their runs


def test_the_rows_are_those_that_are_printed():
    from thesis_repro.published import published

    preset = settings.load("smoke", chapter=5)
    plans = {"5.1": m2at.runs_5_1, "5.2": m2at.runs_5_2, "5.3": m2at.runs_5_3, "5.4": m2at.runs_5_4}
    for number, plan in plans.items():
        printed = published(number).query("cited == 0")
        missing = set(zip(printed.row, printed.column, strict=True)) - set(plan(preset))
        assert not missing


def test_the_wide_network_is_another_run_and_the_other_labels_another_method():
    preset = settings.load("thesis", chapter=5)
    plan, ablated = m2at.runs_5_1(preset), m2at.runs_5_3(preset)
    wide, usual = (plan[f"CIFAR-10 / {r}", "PGD-20"].runs[0] for r in ("M2AT (WRN28-10)", "M2AT"))
    assert wide.model == "wrn28_10" and usual.model == "wrn34_10" and wide.method == usual.method
    assert ablated["Masking + Mixing + LS", "PGD-20"].runs[0].key == usual.key
    assert (
        ablated["LS", "PGD-20"].runs[0].key == plan["CIFAR-10 / PGD with LS", "PGD-20"].runs[0].key
    )
    assert ablated[m2at.OTHER_LABELS, "PGD-20"].runs[0].key != usual.key
    s = usual.schedule
    assert (s.epochs, s.batch_size, s.lr, s.momentum, s.weight_decay, s.decay) == (
        200,
        128,
        0.1,
        0.9,
        2e-4,
        (0.5, 0.75),
    )
    assert plan["CIFAR-100 / M2AT (rand)", "PGD-20"].runs[0].schedule.kind == "cosine"


def test_transfer_is_from_another_network_of_the_same_seed():
    preset = settings.load("smoke", chapter=5)
    for (row, source), p in m2at.runs_5_4(preset).items():
        assert row != source
        for run in p.runs:
            other = p.metric.source(run)
            assert (
                other.key != run.key
                and other.seed == run.seed
                and other.label == f"CIFAR-10 / {source}"
            )
    for (row, column), p in m2at.runs_5_ours(preset).items():
        if column in m2at.TRANSFERS:
            assert all(p.metric.source(r).key != r.key for r in p.runs), row


def test_what_was_not_asked_for_is_not_trained():
    plan = m2at.runs_5_1(settings.load("smoke", chapter=5), ("CIFAR-100",))
    assert not any(p.runs for (row, _), p in plan.items() if row.startswith("CIFAR-10 /"))
    assert all(
        "was not asked for" in p.reason
        for (row, _), p in plan.items()
        if row.startswith("CIFAR-10 /")
    )


# Gradient masking

HONEST = {
    "PGD-20": 51.0,
    "FGSM": 57.0,
    "CW-PGD-100": 49.0,
    "PGD-20, logits scaled": 50.5,
    "AutoAttack": 47.5,
    "PGD-20 from Standard": 82.0,
    "PGD-20 from an adversarially trained network": 63.0,
    "PGD at ε = 1": 0.0,
    "random against gradient": 0.02,
}


def test_an_honest_network_raises_no_sign():
    assert set(masking_signs(HONEST).values()) == {False}
    assert masking_verdict(HONEST) == "no sign of masking"


@pytest.mark.parametrize(
    "changed",
    [
        {"CW-PGD-100": 40.9},
        {"PGD-20, logits scaled": 40.9},
        {"AutoAttack": 20.57},
        {"PGD-20 from Standard": 48.9},
        {"PGD-20 from an adversarially trained network": 48.9},
        {"FGSM": 48.9},
        {"PGD at ε = 1": 2.1},
        {"random against gradient": 0.51},
        {"random against gradient": float("inf")},
    ],
)
def test_each_sign_is_raised_alone(changed):
    signs = masking_signs(HONEST | changed)
    assert sum(bool(s) for s in signs.values()) == 1
    assert masking_verdict(HONEST | changed).startswith("gradients masked: ")


@pytest.mark.parametrize(
    "near",
    [
        {"AutoAttack": 41.1},
        {"FGSM": 49.1},
        {"PGD at ε = 1": 1.9},
        {"random against gradient": 0.49},
    ],
)
def test_within_the_rule_no_sign_is_raised(near):
    assert masking_verdict(HONEST | near) == "no sign of masking"


def test_what_is_not_measured_is_open_and_not_absent():
    verdict = masking_verdict(HONEST | {"AutoAttack": float("nan")})
    assert verdict.startswith("no sign of masking in 6 of 7 tests; open: AutoAttack")
    assert masking_verdict({}) == masking_verdict(
        dict.fromkeys(HONEST, float("nan"))
    ) and masking_verdict({}).startswith("not judged")
    weak = HONEST | {
        "PGD-20": 8.0,
        "CW-PGD-100": 0.0,
        "AutoAttack": 0.0,
        "PGD-20, logits scaled": 1.0,
    }
    assert (
        masking_signs(weak)["AutoAttack finds much more than PGD-20"] is None
    )  # 8 cannot fall by 10
    half = {k: v for k, v in HONEST.items() if k != "PGD-20 from Standard"}
    assert masking_signs(half)["transfer finds more than PGD-20"] is None
    assert (
        masking_signs(half | {"PGD-20 from an adversarially trained network": 10.0})[
            "transfer finds more than PGD-20"
        ]
        is True
    )


def test_the_loss_rises_along_the_gradient_and_not_along_random_directions(digits):
    net = models.build("resnet18", 10, 0.0625, 3, digits.mean, digits.std)
    x, y = pixels(digits.x_test), digits.y_test
    before = [b.clone() for b in net.buffers()]
    along = m2at.loss_along(net.train(), x, y, (0, 1 / 255, 2 / 255))
    with torch.no_grad():
        start = torch.nn.functional.cross_entropy(net.eval()(x), y).item()
    assert along.gradient[0] == along.random[0] == pytest.approx(start, rel=1e-5)
    assert along.gradient.is_monotonic_increasing and abs(m2at.random_share(along)) < 0.3
    assert all(torch.equal(a, b) for a, b in zip(before, net.buffers(), strict=True))
    assert all(p.grad is None for p in net.parameters())


def test_a_flat_gradient_counts_as_no_better_than_random():
    flat = pd.DataFrame({"distance": [0, 1], "gradient": [1.0, 1.0], "random": [1.0, 1.2]})
    assert m2at.random_share(flat) == np.inf
    assert m2at.random_share(flat.assign(gradient=[1.0, 1.4])) == pytest.approx(0.5)


# Figures


def test_runner_up_shares_are_counted_on_what_was_right_and_is_misled():
    p = {
        "clean": [[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1]],
        "FGSM": [[0.1, 0.8, 0.1], [0.1, 0.2, 0.7], [0.9, 0.05, 0.05]],
    }
    p["PGD"] = [[0.6, 0.3, 0.1], [0.8, 0.1, 0.1], [0.9, 0.05, 0.05]]
    labels = [0, 1, 2]  # the third is wrong from the start
    rows = [
        (s, c, v, name, labels[s])
        for name, table in p.items()
        for s, line in enumerate(table)
        for c, v in enumerate(line)
    ]
    o = m2at.outcomes(
        pd.DataFrame(rows, columns=["sample", "class", "probability", "input", "label"])
    )
    assert m2at.runner_up_shares(o) == {"FGSM": 0.5, "PGD": 1.0}
    assert m2at.shown_samples(o) == {"(a) FGSM and PGD mislead": 1}


def test_overfitting_is_the_fall_from_the_best_epoch():
    history = [
        {"epoch": i + 1, "held-out accuracy": 50.0, "held-out robust accuracy": v}
        for i, v in enumerate((10.0, 30.0, 25.0))
    ]
    frame = m2at.by_epoch({("PGD", 0): history, ("PGD", 1): history[:2]})
    assert m2at.overfitting(frame).tolist() == [5.0, 0.0]


def test_a_step_that_cannot_cross_its_ball_is_told_from_one_that_can():
    attacks = m2at.budget_attacks((8, 32))
    reach = {
        place: a.steps * a.step / a.epsilon for place, a in attacks.items() if "PGD" in place[0]
    }
    assert reach["PGD-10", 32] < 1 < reach["PGD-10, step ε/4", 32]
    assert attacks["PGD-10", 8] == attacks["PGD-10, step ε/4", 8] == PGD()
    assert m2at.wide_pgd(1.0).steps * m2at.wide_pgd(1.0).step == pytest.approx(2.5)


def test_the_thesis_transfer_numbers_are_its_white_box_numbers():
    "What the notebook says of table 5.4."
    assert m2at.printed_transfer()["largest difference"].max() < 0.3


def test_a_table_of_ours_keeps_its_reasons():
    frame = compare(
        "5.ours",
        [Cell("PGD", "PGD-20", (50.0, 52.0)), Cell("PGD", "AutoAttack", (), "switched off")],
    )
    assert frame.verdict.tolist() == ["ours only", "not measured"] and frame.reason.tolist() == [
        "",
        "switched off",
    ]
    assert frame.ours[0] == 51.0 and np.isnan(frame.ours[1])
