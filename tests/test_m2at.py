"""Chapter 5: its equations against plain float64 loops, who gets which label, and its tables."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import torch.nn as nn

from thesis_repro import data, m2at, models, pieces, settings
from thesis_repro.adversarial import Adversarial, Examples, ratios
from thesis_repro.artefacts import Table
from thesis_repro.attacks import PGD
from thesis_repro.draws import Draws
from thesis_repro.files import BadInput
from thesis_repro.images import pixels
from thesis_repro.m2at import MaskAndMix
from thesis_repro.mixup import mix
from thesis_repro.published import published
from thesis_repro.registry import TABLES
from thesis_repro.tables import Cell, compare, layout


def rng(seed=0):
    return np.random.default_rng(seed)


def tensor(a):
    return torch.as_tensor(np.asarray(a))


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
    chosen = m2at.random_classes(tensor(y), 10, number, Draws(2))
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
    chosen = m2at.random_classes(y, 10, number, Draws(1))
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


# The claim of section 5.2.3: λ₁ = 0 and λ₁ = 1 are AVmixup with γ = 1


def avmixup(x, moved, y, ratio, classes):
    "AVmixup with γ = 1, clean labels kept, adversarial ones smoothed to 0 (Lee et al., eq. 4, 5)."
    pairs = zip(ratio, x, moved, strict=True)
    image = np.stack([r * a + (1 - r) * (a + 1.0 * (b - a)) for r, a, b in pairs])
    label = np.full((len(y), classes), 0.0)
    for i, (r, k) in enumerate(zip(ratio, y, strict=True)):
        label[i] = (1 - r) / (classes - 1)
        label[i, k] = r
    return image, label


def mixed_from_the_origin(x, moved, y, lam1, lam2, label_mass):
    "x̃ and ỹ of eq. 5.9 and 5.10 for one λ₁ and rectangles from the origin."
    n, _, height, width = x.shape
    box = m2at.rectangle(torch.full((n,), lam1), torch.zeros(n, 2), height, width)
    halves = m2at.masked_perturbations(x, moved, m2at.binary_mask(box, height, width))
    s = m2at.smoothing_distribution(m2at.random_classes(y, 10, 9, Draws(0)), 10)
    labels = m2at.masked_labels(y, s, m2at.covered_share(box, height, width), label_mass)
    return mix(*halves, lam2), mix(*labels, lam2)


@pytest.mark.parametrize("lam1", [0.0, 1.0])
def test_the_ends_are_avmixup_in_the_images_and_in_the_labels_of_the_other_reading(lam1):
    x, moved = rng().random((20, 3, 8, 8)), rng(1).random((20, 3, 8, 8))
    y, lam2 = rng(2).integers(0, 10, 20), rng(3).random(20)
    clean = lam2 if lam1 else 1 - lam2  # the weight of x: without a rectangle ξ is the clean image
    image, label = avmixup(x, moved, y, clean, 10)
    given = tensor(x), tensor(moved), tensor(y), lam1, tensor(lam2)
    other, printed = (mixed_from_the_origin(*given, mass) for mass in ("unperturbed", "perturbed"))
    np.testing.assert_allclose(other[0], image, atol=1e-6)
    np.testing.assert_allclose(other[1], label, atol=1e-6)
    np.testing.assert_allclose(printed[0], image, atol=1e-6)
    mass = printed[1].numpy()[np.arange(20), y]
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
    lam2 = ratios(e, "m2at mixing", 1.0, per).double().numpy()
    for i in range(64):
        mask, share = mask_of(box[i], 8, 8), share_of(box[i], 8, 8)
        x, moved, label = (v[i].double().numpy() for v in (e.x, e.adversarial, e.y))
        xi, xi_bar = x + (moved - x) * mask, x + (moved - x) * (1 - mask)
        t, t_bar = labels_of(int(label), set(range(10)) - {int(label)}, share, 10)
        np.testing.assert_allclose(inputs[i], lam2[i] * xi + (1 - lam2[i]) * xi_bar, atol=1e-6)
        np.testing.assert_allclose(target[i], lam2[i] * t + (1 - lam2[i]) * t_bar, atol=1e-5)


def test_lambdas_are_one_a_batch_or_one_a_sample_and_corners_one_a_sample():
    e = batch()

    def sides(box):
        return (box[:, 2:] - box[:, :2]).numpy()

    def uncut(box):
        return [
            round(float(v), 4)
            for v, cut in zip(sides(box).ravel(), box[:, 2:].numpy().ravel() >= 8, strict=True)
            if not cut
        ]

    one, many = m2at.mask_boxes(e, "batch"), m2at.mask_boxes(e, "sample")
    assert len(set(uncut(one))) == 1 and len(set(uncut(many))) > 5
    assert len({tuple(c) for c in one[:, :2].tolist()}) == 64
    assert len(set(ratios(e, "m2at mixing", 1.0, "batch").tolist())) == 1
    assert len(set(ratios(e, "m2at mixing", 1.0, "sample").tolist())) == 64


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
    lam = ratios(e, "m2at mixing", 5.0, "sample")
    assert lam.var().item() == pytest.approx(1 / 44, rel=0.05)  # Beta(5, 5)


def test_two_strengths_inside_and_outside():
    e = batch()
    inputs, _ = MaskAndMix()(e)
    lam2 = ratios(e, "m2at mixing", 1.0, "batch")
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
        ratios(e, "m2at mixing", 1.0, "batch"),
        ratios(e, "m2at smoothing", 1.0, "batch"),
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
    assert list(rows)[:7] == list(dict.fromkeys(published("5.3").row))


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
    with pytest.raises(BadInput, match="MaskAndMix: smoothed = 10: with 10 classes at most 9"):
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
    box, lam2 = m2at.mask_boxes(e, "batch"), ratios(e, "m2at mixing", 1.0, "batch").numpy()
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


# The tables, against section 5.3 as it was read by hand: no setting below comes from the library

NUMBERS = ("5.1", "5.2", "5.3", "5.4", "5.ours")


def plan_of(number, preset, parts=m2at.PARTS):
    return TABLES[number].plan(preset, parts)


def fields(piece):
    "A piece as its class and all its fields, those with default values, too."
    if not dataclasses.is_dataclass(piece):
        return piece
    own = {f.name: fields(getattr(piece, f.name)) for f in dataclasses.fields(piece)}
    own |= {"step": piece.stride} if hasattr(piece, "stride") else {}
    return {"is": type(piece).__name__, **own}


def pgd(steps=10, loss="ce", **more):
    "PGD in L∞ from a uniform start: ε = 8/255, α = 2/255."
    own = {"is": "PGD", "epsilon": 8 / 255, "step": 2 / 255, "steps": steps, "norm": "linf"}
    own |= {"loss": loss, "start": "uniform", "restarts": 1, "targeted": False, "bn": "eval"}
    return own | {"logit_scale": 1.0, "fill": 1.0} | more


def mask_and_mix(masking=True, mixing=True, smoothing=True, **more):
    own = {"is": "MaskAndMix", "alpha": 1.0, "smoothed": 0, "choice": "random", "per": "batch"}
    switches = {"masking": masking, "mixing": mixing, "smoothing": smoothing}
    return own | switches | {"label_mass": "perturbed"} | more


def trained(mix=None, loss=None, attack=None):
    "Adversarial training by PGD with k = 10."
    own = {"is": "Adversarial", "attack": attack or pgd(), "mix": mix, "weight": None}
    return own | {"loss": loss or {"is": "CrossEntropy"}, "perturb": None, "selection": pgd()}


def trades(beta, mix=None):
    return trained(mix, {"is": "Trades", "beta": beta}, pgd(loss="kl", start="normal"))


FGSM = {"is": "FGSM", "epsilon": 8 / 255, "bn": "eval"}
UNDER = {"Clean": None, "FGSM": FGSM, "PGD-10": pgd(), "PGD-20": pgd(20), "CW-20": pgd(20, "cw")}
AVMIXUP = {"is": "AVmixup", "gamma": 2.0, "lambda1": 1.0, "lambda2": 0.1, "alpha": 1.0}  # its code
LS = mask_and_mix(masking=False, mixing=False)  # the label of x̂, by a parameter from Beta(1, 1)
A_S, RAND = (mask_and_mix(smoothed=10, choice=c) for c in ("lowest", "random"))

TABLE_5_1 = {  # the rows that the thesis ran
    "CIFAR-10 / Standard": {"is": "Plain", "loss": "ce"},
    "CIFAR-10 / PGD": trained(),
    "CIFAR-10 / PGD with LS": trained(LS),
    "CIFAR-10 / AVmixup": trained(AVMIXUP),
    "CIFAR-10 / M2AT (WRN28-10)": trained(mask_and_mix()),
    "CIFAR-10 / M2AT": trained(mask_and_mix()),
    "CIFAR-100 / PGD": trained(),
    "CIFAR-100 / AVmixup": trained(AVMIXUP),
    "CIFAR-100 / M2AT (a.s.)": trained(A_S),
    "CIFAR-100 / M2AT (rand)": trained(RAND),
}
TABLE_5_2 = {
    "PGD": trained(),
    "TRADES (1/λ = 1)": trades(1.0),
    "TRADES (1/λ = 6)": trades(6.0),
    "AVmixup": trades(1.0, AVMIXUP),
    "M2AT": trades(1.0, mask_and_mix()),
}
TABLE_5_3 = {  # the ticks below Masking, Mixing, LS; and the row of ours
    "LS": trained(mask_and_mix(False, False, True)),
    "Mixing": trained(mask_and_mix(False, True, False)),
    "Mixing + LS": trained(mask_and_mix(False, True, True)),
    "Masking": trained(mask_and_mix(True, False, False)),
    "Masking + LS": trained(mask_and_mix(True, False, True)),
    "Masking + Mixing": trained(mask_and_mix(True, True, False)),
    "Masking + Mixing + LS": trained(mask_and_mix(True, True, True)),
    m2at.OTHER_LABELS: trained(mask_and_mix(label_mass="unperturbed")),
}
TABLE_5_4 = {  # defence: the networks whose images it is shown
    "PGD": ("PGD with LS", "AVmixup"),
    "PGD with LS": ("PGD", "AVmixup"),
    "AVmixup": ("PGD", "PGD with LS"),
    "M2AT": ("PGD", "PGD with LS", "AVmixup"),
}


@pytest.fixture(scope="module")
def thesis():
    return settings.load("thesis", chapter=5, device="cpu")


def check_run(run, method, part="CIFAR-10", network="wrn34_10"):
    "WRN34-10, 200 epochs of batches of 128, SGD with momentum, a tenth at ½ and ¾ or a cosine."
    assert fields(run.data) == {
        "is": "Named",
        "name": {"CIFAR-10": "cifar10", "CIFAR-100": "cifar100"}[part],
        **{"train": 0, "test": 0, "held_out": 1000, "part": part},
        **{"attributes": (), "shrink": 1},
    }
    assert fields(run.length) == {"is": "Length", "epochs": 200, "batch_size": 128}
    assert (run.recipe.network, run.recipe.width, run.precision) == (network, 1.0, "fp32")
    optimiser, decay = fields(run.recipe.optimiser), fields(run.recipe.optimiser.decay)
    rates = {"lr": 0.1, "momentum": 0.9, "weight_decay": 2e-4, "nesterov": False, "clip": 0.0}
    assert optimiser == {"is": "SGD", **rates, "decay": decay}
    assert decay["kind"] == ("cosine" if part == "CIFAR-100" else "steps")
    assert part == "CIFAR-100" or (decay["points"], decay["factor"]) == ((0.5, 0.75), 0.1)
    assert fields(run.recipe.method) == method


UNLIKE = {"CW-20": "ours is PGD-20 on the margin, the thesis's CW-20 another attack"}


def check_cell(planned, attack, sources=(), reason=""):
    "Five seeds at the thesis's own scale; the last weights under an attack, on all test images."
    assert planned.reason == reason and [r.seed for r in planned.runs] == [0, 1, 2, 3, 4]
    if attack is None:
        assert fields(planned.measurement) == {"is": "Recorded", "path": "last.accuracy"}
    else:
        found = fields(planned.measurement)
        assert {k: found[k] for k in ("is", "attack", "which", "size")} == {
            "is": "Robustness",
            "attack": attack,
            "which": "last",
            "size": 0,
        }
        assert found["sources"] == tuple(sources)


@pytest.mark.parametrize(
    "number, rows, columns",
    [
        ("5.1", TABLE_5_1, tuple(UNDER)),
        ("5.2", TABLE_5_2, ("Clean", "PGD-20")),
        ("5.3", TABLE_5_3, ("Clean", "FGSM", "PGD-20")),
    ],
)
def test_the_table_is_that_of_the_thesis(thesis, number, rows, columns):
    plan = plan_of(number, thesis)
    assert list(plan) == [(row, column) for row in rows for column in columns]
    for (row, column), planned in plan.items():
        part = "CIFAR-100" if row.startswith("CIFAR-100") else "CIFAR-10"
        network = "wrn28_10" if row == "CIFAR-10 / M2AT (WRN28-10)" else "wrn34_10"
        check_cell(planned, UNDER[column], reason=UNLIKE.get(column, ""))
        for run in planned.runs:
            check_run(run, rows[row], part, network)


def test_table_5_4_is_that_of_the_thesis(thesis):
    "Both networks are those of table 5.1, attacked by PGD-20 and of the same seed."
    plan, first = plan_of("5.4", thesis), plan_of("5.1", thesis)
    assert list(plan) == [(row, source) for row, of in TABLE_5_4.items() for source in of]
    for (row, source), planned in plan.items():
        others = first[f"CIFAR-10 / {source}", "PGD-20"].runs
        check_cell(planned, pgd(20), others)
        assert planned.runs == first[f"CIFAR-10 / {row}", "PGD-20"].runs
        assert [planned.measurement.source(r) for r in planned.runs] == list(others)


PRINTED = {  # rows from top to bottom, with the quotations, and columns from left to right
    "5.1": (
        "CIFAR-10 / Standard; CIFAR-10 / PGD; CIFAR-10 / PGD with LS; CIFAR-10 / BAT;"
        " CIFAR-10 / AVmixup (quoted); CIFAR-10 / AVmixup; CIFAR-10 / M2AT (WRN28-10);"
        " CIFAR-10 / M2AT; CIFAR-100 / PGD; CIFAR-100 / AVmixup (quoted); CIFAR-100 / AVmixup;"
        " CIFAR-100 / M2AT (a.s.); CIFAR-100 / M2AT (rand)",
        "Clean; FGSM; PGD-10; PGD-20; CW-20",
    ),
    "5.2": ("PGD; TRADES (1/λ = 1); TRADES (1/λ = 6); AVmixup; M2AT", "Clean; PGD-20"),
    "5.3": (
        "LS; Mixing; Mixing + LS; Masking; Masking + LS; Masking + Mixing; Masking + Mixing + LS;"
        f" {m2at.OTHER_LABELS}",
        "Clean; FGSM; PGD-20",
    ),
    "5.4": ("PGD; PGD with LS; AVmixup; M2AT", "PGD; PGD with LS; AVmixup"),
}


@pytest.mark.parametrize("number", PRINTED)
def test_rows_and_columns_stand_in_the_order_of_the_thesis(thesis, number):
    cells = [Cell(*place) for place in plan_of(number, thesis)]
    shown = layout(Table(number=number, title="", frame=compare(number, cells)))
    rows, columns = PRINTED[number]
    assert [row["name"] for row in shown["rows"]] == rows.split("; ")
    assert [column["name"] for column in shown["columns"]] == columns.split("; ")


def test_every_printed_cell_that_the_thesis_ran_is_planned(thesis):
    for number in PRINTED:
        own = published(number).query("cited == 0")
        assert not set(zip(own.row, own.column, strict=True)) - set(plan_of(number, thesis))


def test_tables_share_their_runs(thesis):
    runs = {n: {p.runs[0].key for p in plan_of(n, thesis).values() if p.runs} for n in NUMBERS}
    assert {n: len(keys - runs["5.1"]) for n, keys in runs.items()} == {
        **{"5.1": 0, "5.2": 4, "5.3": 6, "5.4": 0, "5.ours": 1},
    }


def test_every_planned_run_can_be_written_down_and_made_again(thesis):
    for run in {r for n in NUMBERS for p in plan_of(n, thesis).values() for r in p.runs}:
        made = pieces.from_specification(json.loads(json.dumps(pieces.specification(run))))
        assert made == run and made.key == run.key


def test_transfer_is_from_another_network_of_the_same_seed():
    preset = settings.load("smoke", chapter=5)
    for (row, source), p in plan_of("5.4", preset).items():
        assert row != source
        for run in p.runs:
            other = p.measurement.source(run)
            assert other.key != run.key and other.seed == run.seed
            assert other.label == f"CIFAR-10 / {source}"
    for (row, column), p in plan_of("5.ours", preset).items():
        if " from " in column:
            assert all(p.measurement.source(r).key != r.key for r in p.runs), row


def test_what_was_not_asked_for_is_not_trained():
    plan = plan_of("5.1", settings.load("smoke", chapter=5), ("CIFAR-100",))
    left_out = {row: p for (row, _), p in plan.items() if row.startswith("CIFAR-10 /")}
    assert left_out and not any(p.runs for p in left_out.values())
    assert all("was not asked for" in p.reason for p in left_out.values())


# Figures


class Store:
    "A store with one record."

    def __init__(self, history):
        self.history = history

    def record(self, run):
        return self


@pytest.mark.parametrize("robust, fallen", [((10.0, 30.0, 25.0), 5.0), ((10.0, 30.0), 0.0)])
def test_overfitting_is_the_fall_from_the_best_epoch(robust, fallen):
    history = [{"epoch": i, "held-out robust accuracy": v} for i, v in enumerate(robust)]
    assert m2at.Fallen().value(Store(history), None) == fallen and m2at.Fallen().unit == "points"


def test_the_thesis_transfer_numbers_are_its_white_box_numbers():
    "What the notebook says of table 5.4."
    itself = published("5.1").query("column == 'PGD-20'").set_index("row").value
    others = published("5.4").dropna(subset="value")
    assert len(others) == 9
    for cell in others.itertuples():
        assert abs(cell.value - itself[f"CIFAR-10 / {cell.row}"]) < 0.3


def test_a_table_of_ours_keeps_its_reasons():
    absent = Cell("PGD", "AutoAttack", (), "switched off")
    frame = compare("5.ours", [Cell("PGD", "PGD-20", (50.0, 52.0)), absent])
    assert frame.verdict.tolist() == ["ours only", "not run"]
    assert frame.reason.tolist() == ["no number is printed here", "switched off"]
    assert frame.ours[0] == 51.0 and np.isnan(frame.ours[1])


# What is drawn, what figures show, and the numbers of table 5.ours


def test_the_size_of_a_rectangle_is_uniform():
    "1 − λ₁ by its quantiles: the longer side of a box near a border is not cut below 0.98."
    n = 20_000
    e = dataclasses.replace(batch(), y=torch.zeros(n, dtype=torch.long), x=torch.zeros(n, 1, 4, 6))
    box = m2at.mask_boxes(e, "sample").double().numpy() / [6, 4, 6, 4]
    near = box[(box[:, :2] < 0.02).any(1)]
    side = (near[:, 2:] - near[:, :2]).max(1)
    np.testing.assert_allclose(np.quantile(side**2, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.05)


@pytest.mark.parametrize("size, behind", [(0, 1000), (500, 500), (10_000, 1000)])
def test_a_thousand_images_at_most_stand_behind_a_figure(thesis, size, behind):
    assert m2at.few(dataclasses.replace(thesis, attack_size=size)) == behind


def test_table_5_ours_has_the_attacks_that_its_columns_name(thesis):
    "Each row is attacked from the plain network and from an adversarially trained one of others."
    plan = plan_of("5.ours", thesis)
    attacks = {"FGSM": FGSM, "PGD-20": pgd(20), "CW-PGD-100": pgd(100, "cw")}
    attacks["PGD-20, logits scaled"] = pgd(20, logit_scale=10.0)
    attacks["PGD at ε = 1"] = pgd(20, epsilon=1.0, step=0.125)
    sources = {"PGD-20 from Standard": {}, "PGD-20 from an adversarially trained network": {}}
    for row in ("PGD", "AVmixup", "M2AT", "M2AT, unperturbed share"):
        for column, attack in attacks.items():
            assert fields(plan[row, column].measurement)["attack"] == attack
        for column, seen in sources.items():
            p = plan[row, column]
            seen[row] = p.measurement.source(p.runs[0]).label
            assert fields(p.measurement)["attack"] == pgd(20)
        assert plan[row, "random against gradient"].measurement.size == 1000
    plain, trained = sources.values()
    assert set(plain.values()) == {"CIFAR-10 / Standard"}
    assert trained.pop("PGD") == "CIFAR-10 / PGD with LS"
    assert set(trained.values()) == {"CIFAR-10 / PGD"}


def test_epsilon_grows_from_the_thesiss_to_the_whole_range():
    "Doubled each time; in 255ths."
    assert m2at.GROWN == tuple(min(8 * 2**i, 255) for i in range(6))


def test_the_stages_of_an_example_are_its_equations():
    e, how = batch(), MaskAndMix(per="sample")
    pictures, labels = m2at.stages(e, how)
    delta, mask, x = pictures["δ"], pictures["M"], pictures["x"]
    torch.testing.assert_close(x + delta, e.adversarial)
    torch.testing.assert_close(pictures["ξ"], x + delta * mask)
    torch.testing.assert_close(pictures["ξ̄"], x + delta * (1 - mask))
    lam = ratios(e, "m2at mixing", 1.0, "sample")
    torch.testing.assert_close(pictures["x̃"], mix(pictures["ξ"], pictures["ξ̄"], lam))
    torch.testing.assert_close(labels["ỹ"], mix(labels["t"], labels["t̄"], lam))


def test_a_perturbation_is_shown_around_grey():
    "−ε black, nothing grey, ε white; x as it is, and M in black and white."
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("agg")
    x, shades = tensor(rng().random((1, 3, 2, 6))), tensor([-2.0, -1.0, 0.0, 0.5, 1.0, 2.0])
    delta = (shades * 8 / 255).expand_as(x)
    pictures = {"x": x, "δ": delta, "M": (x > 0.5).double()}
    pictures |= {"ξ": x + delta, "ξ̄": x, "x̃": x + delta / 2}
    fig = m2at.draw_figure_5_2(pictures, dict.fromkeys(("t", "t̄", "ỹ"), torch.eye(3)[:1]))
    shown = [np.asarray(ax.images[0].get_array(), dtype=float) for ax in fig.axes[:6]]
    full, half = [0, 0, 0.5, 0.75, 1, 1], [0, 0.25, 0.5, 0.625, 0.75, 1]
    rows = {"δ": full, "ξ": full, "ξ̄": [0.5] * 6, "x̃": half}
    for name, found in zip(pictures, shown, strict=True):
        expected = pictures[name][0].permute(1, 2, 0).numpy()
        if name in rows:
            expected = np.broadcast_to(np.array(rows[name])[None, :, None], (2, 6, 3))
        np.testing.assert_allclose(found, expected, atol=1e-6, err_msg=name)
    plt.close(fig)
