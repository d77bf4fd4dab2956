"""The survey's pieces against references in float64, and every row of the zoo at work."""

import copy
import csv
import dataclasses
import itertools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from thesis_repro import data, models, paths, pieces, training, zoo, zoo_attacks
from thesis_repro import zoo_losses as losses
from thesis_repro import zoo_weights as weights
from thesis_repro.adversarial import Adversarial, CrossEntropy, Examples
from thesis_repro.attacks import PGD, distance
from thesis_repro.checkpoints import copy_weights
from thesis_repro.draws import Draws
from thesis_repro.files import BadInput
from thesis_repro.pieces import piece
from thesis_repro.recipes import SGD, Adam, Batch, Classify
from thesis_repro.training import Compute, Length

QUIET = Compute(progress=False, channels_last=False, checkpoint_seconds=1e9)
EPSILON = 8 / 255


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    "These networks are too small to be shared among cores."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits():
    return data.load("faint10", train_size=48, test_size=20, held_out=10)


def network(seed=0, name="resnet18", classes=10):
    return models.build(name, classes, 0.0625, seed=seed)


@pytest.fixture(scope="module")
def net():
    "Random weights: these tests ask what is computed, not what was learned."
    return network().eval()


class Linear(nn.Module):
    "Softmax regression in float64: rounding decides nothing."

    def __init__(self, classes=4, scale=0.3):
        super().__init__()
        self.weight = nn.Parameter(scale * some(classes, 192))
        self.bias = nn.Parameter(some(classes, seed=1))

    def forward(self, x):
        return x.flatten(1) @ self.weight.T + self.bias


def grey(n=16):
    "Float64 images away from black and white, and the answers of a linear network to them."
    x, model = 0.5 + 0.05 * some(n, 3, 8, 8, seed=2).clamp(-3, 3), Linear()
    return model, x, model(x).argmax(1)


def pictures(n=16, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, 8, 8, generator=g, dtype=dtype), torch.arange(n) % 10


def some(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def agrees(ours, reference, *arrays):
    "Values are those of `reference` (numpy), and gradients its differences."
    leaves = [torch.tensor(np.array(a), dtype=torch.float64, requires_grad=True) for a in arrays]
    values, weights = ours(*leaves), np.random.default_rng(9).uniform(0.5, 1.5, len(arrays[0]))
    assert values.detach().numpy() == pytest.approx(
        reference(*map(np.array, arrays)), rel=1e-9, abs=1e-12
    )
    (values * torch.from_numpy(weights)).sum().backward()
    for i, leaf in enumerate(leaves):
        for place in itertools.islice(np.ndindex(*leaf.shape), 0, None, max(1, leaf.numel() // 25)):
            sides = []
            for h in (1e-6, -1e-6):
                moved = [np.array(a, dtype=np.float64) for a in arrays]
                moved[i][place] += h
                sides.append(reference(*moved) @ weights)
            assert leaf.grad[place].item() == pytest.approx(
                (sides[0] - sides[1]) / 2e-6, rel=1e-4, abs=1e-6
            )


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def entropy_of_label(z, y):
    return -math.log(softmax(z)[y])


# Equations


def test_fosc_is_the_maximum_over_the_ball():
    x0, x, gradient = (some(5, 2, 3, seed=s) for s in range(3))
    x = x0 + 0.1 * torch.tanh(x)
    best = [
        max(
            float(((x0[i] + 0.1 * torch.tensor(corner).view(2, 3) - x[i]) * gradient[i]).sum())
            for corner in itertools.product((-1.0, 1.0), repeat=6)
        )
        for i in range(5)
    ]
    assert zoo_attacks.fosc(x, x0, gradient, 0.1).tolist() == pytest.approx(best)


def apart(a, b):
    return 1 - abs(a @ b) / np.sqrt((a @ a) * (b @ b))


def triplet(a, p, n, margin):
    return np.array(
        [max(0.0, apart(a[i], p[i]) - apart(a[i], n[i]) + margin) for i in range(len(a))]
    )


def test_triplet_loss():
    a, p, n = (some(12, 4, seed=s) for s in range(3))
    expected = triplet(*(t.numpy() for t in (a, p, n)), 0.03)
    assert (expected == 0).any() and (expected > 0).any()
    agrees(lambda *f: losses.triplet_loss(*f, 0.03), lambda *f: triplet(*f, 0.03), a, p, n)


def test_tla_loss():
    z, a, p, n = some(6, 3, seed=5), *(some(6, 4, seed=s) for s in range(3))
    y = torch.tensor([0, 1, 2, 0, 1, 2])

    def reference(z, a, p, n):
        def length(v):
            return np.sqrt((v * v).sum(1))

        entropy = np.array([entropy_of_label(z[i], y[i]) for i in range(6)])
        return entropy + 2.0 * triplet(a, p, n, 0.03) + 0.001 * (length(a) + length(p) + length(n))

    agrees(lambda z, *f: losses.tla_loss(z, y, *f), reference, z, a, p, n)


def test_dirichlet_labels_are_dirichlet():
    n, k, c = 20000, 5, 10.0
    y, epsilon = torch.arange(n) % k, torch.full((n,), 0.03, dtype=torch.float64)
    raw = torch.empty(n, k).exponential_(generator=torch.Generator().manual_seed(0))
    labels = zoo_attacks.dirichlet_labels(y, epsilon, c, raw).double()
    assert torch.allclose(labels.sum(1), torch.ones(n, dtype=torch.float64))
    drawn = (labels - 0.7 * F.one_hot(y, k)) / 0.3
    assert drawn.min() > -1e-6
    assert drawn.mean(0).tolist() == pytest.approx([1 / k] * k, abs=0.005)
    assert drawn.var(0).tolist() == pytest.approx([(k - 1) / (k * k * (k + 1))] * k, rel=0.05)
    none = zoo_attacks.dirichlet_labels(y, 0 * epsilon, c, raw)
    assert torch.equal(none, F.one_hot(y, k).double())
    assert zoo_attacks.dirichlet_labels(y[:9], epsilon[:9] * 100, c, raw[:9]).min() >= 0


def test_pc_loss():
    f, w, y = some(6, 3), some(4, 3, seed=1), [0, 1, 2, 3, 0, 1]

    def length(v):
        return math.sqrt((v * v).sum())

    def reference(f, w):
        total = []
        for i, own in enumerate(y):
            others = [length(f[i] - w[j]) + length(w[own] - w[j]) for j in range(4) if j != own]
            total.append(length(f[i] - w[own]) - sum(others) / 3)
        return np.array(total)

    agrees(lambda f, w: losses.pc_loss(f, w, torch.tensor(y)), reference, f, w)


def test_pc_lc_loss():
    z, y, xi, weight, limit = 2 * some(8, 4), [0, 1, 2, 3] * 2, 0.3, 0.7, 0.5

    def reference(z):
        total = []
        for i, own in enumerate(y):
            p, terms = softmax(z[i]), 0.0
            for j in range(4):
                if j != own:
                    terms += max(0, p[j] + xi - p[own]) + weight * max(
                        0, z[i][own] - z[i][j] - limit
                    )
            total.append(terms)
        return np.array(total)

    agrees(lambda z: losses.pc_lc_loss(z, torch.tensor(y), xi, weight, limit), reference, z)


def complement(z, y):
    others = softmax(np.delete(z, y))
    return -(others * np.log(others)).sum()


def test_complement_losses():
    z, y = some(6, 5), [0, 1, 2, 3, 4, 0]

    def ours(piece):
        def loss(z):
            e = Examples(None, None, torch.tensor(y), Draws(0))
            e.logits = z
            return piece(e)

        return loss

    def cot(z):
        return np.array(
            [entropy_of_label(z[i], c) - complement(z[i], c) / 4 for i, c in enumerate(y)]
        )

    def gce(z):
        return np.array(
            [
                -(softmax(z[i])[c] ** (1 / 3)) * complement(z[i], c) / math.log(4)
                for i, c in enumerate(y)
            ]
        )

    agrees(ours(losses.ComplementObjective()), cot, z)
    agrees(ours(losses.GuidedComplement()), gce, z)


def test_adversarial_labels():
    losses, y = some(6, 4).abs(), torch.tensor([0, 1, 2, 3, 0, 1])
    ours = zoo_attacks.adversarial_labels(losses, y, 0.4, 0.01)
    for i in range(6):
        others = [j for j in range(4) if j != y[i]]
        least = min(losses[i][j] for j in others)
        parts = {j: losses[i][j] - least + 0.01 for j in others}
        expected = [0.6 if j == y[i] else 0.4 * parts[j] / sum(parts.values()) for j in range(4)]
        assert ours[i].tolist() == pytest.approx([float(v) for v in expected])


# The attacks


@pytest.mark.parametrize(
    "attack",
    [
        zoo_attacks.Dynamic(),
        zoo_attacks.Friendly(),
        zoo_attacks.MostConfusing(),
        zoo_attacks.Growing(),
        zoo_attacks.Customized(),
    ],
    ids=lambda a: type(a).__name__,
)
def test_every_attack_stays_in_its_ball(attack, net, digits):
    (x, _), draws = pictures(), Draws(0, progress=0.5, samples=torch.arange(16))
    own = {"nets": attack.networks(net, digits)} if hasattr(attack, "networks") else {}
    moved = attack(net, x, net(x).argmax(1), draws, **own)
    assert moved.min() >= 0 and moved.max() <= 1
    assert 0 < distance(moved, x).max() <= EPSILON


def test_instance_adaptive_stays_in_the_wider_ball(net, digits):
    (x, y), attack = pictures(), zoo_attacks.InstanceAdaptive()
    draws, nets = Draws(0, samples=torch.arange(16)), attack.networks(net, digits)
    assert 0 < distance(attack(net, x, y, draws, nets=nets), x).max() <= EPSILON + 1.9 / 255 + 1e-7


def test_the_most_confusing_class_is_approached():
    model, x, y = grey()
    rival = losses.rivals(model(x), y)
    moved = zoo_attacks.MostConfusing()(model, x, y, Draws(0))
    before, after = (F.cross_entropy(model(z), rival, reduction="none") for z in (x, moved))
    assert (after < before).all() and (rival != y).all()
    near = PGD(targeted=True, steps=1, step=EPSILON)(model, x, rival, Draws(0))
    torch.testing.assert_close(moved, near, rtol=0, atol=0)


def test_the_curriculum_adds_steps(net):
    (x, y), taken = pictures(4), []
    for progress in (0.0, 0.09, 0.5, 0.99, 1.0):
        seen = []
        draws = Draws(0, progress=progress)
        zoo_attacks.Growing()(net, x, y, draws, lambda *c, seen=seen: seen.append(c))
        taken.append(len(seen))
    assert taken == [1, 1, 6, 10, 10]


def test_the_curriculum_passes_networks_on(net, digits):
    "A growing attack may be one with a memory."
    x, method = pictures()[0], Adversarial(zoo_attacks.Growing(zoo_attacks.Customized()))
    nets = method.networks(net, digits)
    method(net, x, net(x).argmax(1), Draws(0, samples=torch.arange(16)), nets)
    assert 0 < nets["radii"].values[:16].max() and not nets["radii"].values[16:].any()


@pytest.mark.parametrize("progress", [0.0, 0.25, 0.6])
def test_dynamic_stops_each_sample_at_its_own_time(progress):
    (model, x, _), y, draws = grey(), torch.arange(16) % 4, Draws(0, progress=progress)
    attack, seen = zoo_attacks.Dynamic(steps=8, c_max=1.0), []
    final = attack(model, x, y, draws, seen=lambda i, z, logits: seen.append(z.clone()))
    c, stopped, when = 1.0 * (1 - progress / (5 / 6)), torch.zeros(16, dtype=torch.bool), set()
    w, b = (p.detach().numpy() for p in model.parameters())
    for now, after in itertools.pairwise([*seen, final]):
        for i in range(16):
            z = now[i].flatten().numpy()
            slope = w.T @ (softmax(w @ z + b) - np.eye(4)[y[i]])
            left = EPSILON * np.abs(slope).sum() - (z - x[i].flatten().numpy()) @ slope
            stopped[i] |= bool(left <= c) and now is not seen[0]
        assert torch.equal((after == now).flatten(1).all(1), stopped)
        when.add(int(stopped.sum()))
    assert len(when) > 2, when  # not all at the same time


@pytest.mark.parametrize(
    ("progress", "tau"), [(0.0, 0), (0.41, 0), (50 / 120, 1), (0.74, 1), (90 / 120, 2), (1.0, 2)]
)
def test_friendly_takes_tau_steps_after_the_first_mistake(progress, tau):
    (model, x, y), seen = grey(32), []

    def watch(i, z, logits):
        seen.append((z, logits.argmax(1) != y))

    attack = zoo_attacks.Friendly(epsilon=0.1, step=0.02)
    final = attack(model, x, y, Draws(0, progress=progress), watch)
    images, wrong = [z for z, _ in seen] + [final], [w for _, w in seen]
    for i in range(32):
        mistakes = [int(w[i]) for w in wrong]
        moves = [not torch.equal(a[i], b[i]) for a, b in itertools.pairwise(images)]
        allowed = [sum(mistakes[: t + 1]) <= tau for t in range(len(mistakes))]
        assert moves == allowed
    assert any(w.any() for w in wrong)
    assert 0.08 < distance(images[0], x).min() and distance(images[0], x).max() <= 0.1 + 1e-12


def remembered(attack, n):
    "A memory of n images for an attack, and draws that ask for all of them."
    value = attack.networks(None, data_of(n))["radii"].values[0].item()
    return zoo_attacks.PerSample(n, value), Draws(0, samples=torch.arange(n), progress=0.5)


def data_of(n):
    "What a memory asks of a data set: how many images it trains on."
    return SimpleNamespace(y_train=torch.zeros(n))


def half(model, x, y):
    "Log of the odds of all other classes against the true one: zero where it has one half."
    p = model(x).softmax(1).gather(1, y[:, None]).squeeze(1)
    return ((1 - p) / p).log()


def test_smallest_lies_on_the_boundary():
    "Where the true class has one half; the next visit starts from there."
    model, x, y = grey(32)
    y[:4] = (y[:4] + 1) % 4
    attack = zoo_attacks.Smallest(epsilon=0.012, bisections=40)
    memory, draws = remembered(attack, 32)
    for _ in range(4):
        images = attack(model, x, y, draws, nets={"radii": memory})
    own, before = memory.values, half(model, x, y)
    reached = (before < 0) & (own < 0.012)
    assert reached.sum() > 4 and ((before < 0) & ~reached).sum() > 4 and (before >= 0).sum() >= 4
    assert half(model, images, y)[reached].abs().max() < 1e-4
    assert half(model, images, y)[(before < 0) & ~reached].max() < 0
    size = distance(images, x)
    torch.testing.assert_close(size[own > 0].float(), own[own > 0], rtol=1e-5, atol=1e-7)
    assert images.min() >= 0 and images.max() <= 1 and size.max() <= 1.05 * 0.012 + 1e-7
    assert torch.equal(own == 0, before >= 0) and (size[own == 0] == 0).all()
    wrong = (y + 1) % 4  # wrong already: stays, and is remembered as such
    assert torch.equal(attack(model, x, wrong, draws, nets={"radii": memory}), x)
    assert not memory.values.any()


def test_the_hinge_drops_what_is_far_and_keeps_what_is_wrong():
    memory = zoo_attacks.PerSample(6, 0.0)
    memory.values[:] = torch.tensor([0.0, 0.02, 0.0469, 0.0471, 0.049, 0.01])
    draws = Draws(0, samples=torch.tensor([5, 3, 0, 4, 2]))
    e = Examples(None, torch.zeros(5, 1, 1, 1), torch.zeros(5), draws, nets={"radii": memory})
    assert zoo_attacks.Within()(e).tolist() == [1, 0, 1, 0, 1]


class Answers(nn.Module):
    "Always says class 0, and has a gradient."

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return torch.stack([x.mean((1, 2, 3)) * self.scale * 0.01 + 5, 0 * x.mean((1, 2, 3))], 1)


def test_own_radii_follow_the_answers():
    x, draws = pictures(4)[0], Draws(0, samples=torch.tensor([7, 1, 5, 3]))
    y = torch.tensor([0, 1, 0, 1])  # right, wrong, right, wrong
    memory = zoo_attacks.PerSample(9, 0.02)
    attack = zoo_attacks.InstanceAdaptive(epsilon=0.04, gamma=0.01, rate=0.1)
    late = dataclasses.replace(draws, progress=0.5)
    for expected in ((0.021, 0.018), (0.022, 0.0162)):  # a tenth of the way to ε + γ, and to zero
        images = attack(Answers(), x, y, late, nets={"radii": memory})
        follows = [expected[0], expected[1]] * 2
        assert memory.values[draws.samples].tolist() == pytest.approx(follows)
        assert distance(images, x).tolist() == pytest.approx(follows, abs=1e-6)
    assert memory.values[[0, 2, 4, 6, 8]].tolist() == pytest.approx([0.02] * 5)
    attack(Answers(), x, y, dataclasses.replace(draws, progress=0.09), nets={"radii": memory})
    assert memory.values[draws.samples].tolist() == pytest.approx([0.04, 0, 0.04, 0])

    memory, attack = zoo_attacks.PerSample(9, 0.0), zoo_attacks.Customized(epsilon=0.008, eta=0.005)
    for expected in (0.005, 0.008, 0.008):
        images = attack(Answers(), x, y, draws, nets={"radii": memory})
        assert memory.values[draws.samples].tolist() == pytest.approx([expected, 0, expected, 0])
        assert (images - x).abs().amax((1, 2, 3)).tolist() == pytest.approx(
            [expected, 0.005, expected, 0.005], abs=1e-6
        )


def test_a_step_without_places_or_networks_names_the_remedy(net):
    (x, y), attack = pictures(4), zoo_attacks.Customized()
    with pytest.raises(BadInput, match="samples=indices"):
        attack(net, x, y, Draws(0), nets={"radii": zoo_attacks.PerSample(9, 0.0)})
    with pytest.raises(BadInput, match=r"radii: .*method\.networks"):
        attack(net, x, y, Draws(0, samples=torch.arange(4)))


@pytest.mark.parametrize(
    "wrong", [{"epsilon": 8.0}, {"epsilon": -0.1}, {"steps": 0}, {"step": 2.0}]
)
def test_walks_refuse_what_pgd_refuses(wrong):
    with pytest.raises(BadInput):
        zoo_attacks.Dynamic(**wrong)


# Losses that look inside


@pytest.mark.parametrize("name", ["resnet18", "preactresnet18", "wrn28_10"])
def test_features_are_what_the_last_layer_sees(name):
    net = network(name=name).eval()
    x, _ = pictures(4)
    logits, features, maps = losses.with_features(net, x, nn.Linear, nn.AdaptiveAvgPool2d)
    torch.testing.assert_close(logits, net(x))
    torch.testing.assert_close(net.stages[-1][-1](features), logits, rtol=1e-4, atol=1e-5)
    assert torch.allclose(maps.mean((2, 3)), features, atol=1e-6)
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_triplets_are_searched_in_the_batch():
    logits, anchors, others = some(20, 5), some(20, 3, seed=1), some(20, 3, seed=2)
    y = torch.tensor([0, 1, 2, 3] * 4 + [0, 1, 2, 4])
    positive, negative = losses.triplets(logits, y, anchors, others, Draws(0))
    for i in range(20):
        rival = max((j for j in range(5) if j != y[i]), key=lambda j: float(logits[i, j]))
        allowed = [j for j in range(20) if y[j] == rival] or [j for j in range(20) if y[j] != y[i]]
        nearest = min(allowed, key=lambda j: apart(anchors[i].numpy(), others[j].numpy()))
        assert negative[i] == nearest
        assert y[positive[i]] == y[i] and (positive[i] != i or (y == y[i]).sum() == 1)


def looks(net, x):
    "Where a network looks, in loops."
    maps, found = net.stages[-1][:-3](net(x, stop=3)).double(), []
    for m in maps:
        total = sum(m[c] for c in range(len(m))).flatten()
        found.append((total - total.min()) / (total.max() - total.min()))
    return torch.stack(found)


def test_attention_is_distilled_into_attacked_images_alone(net):
    x = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))  # maps of 4 × 4
    y, moved, draws = torch.arange(8), (x + 0.1).clamp(0, 1), Draws(0)
    piece = losses.BidirectionalMetric(lambda1=0.0, lambda2=0.0, beta=0.7, steps=1)
    n = losses.confused(net(x), y, draws)
    back = PGD(targeted=True, steps=1)(net, x[n], y, draws)
    clean = looks(net, x).detach()
    expected = F.cross_entropy(net(moved), y, reduction="none").double()
    for v, teacher in ((moved, clean), (back, clean[n])):
        expected = expected + 0.7 * (looks(net, v) - teacher).abs().mean(1)
    loss = piece(Examples(net, x, y, draws, inputs=moved))
    assert torch.allclose(loss.double(), expected, rtol=1e-4)
    same_gradients(net, loss.sum(), expected.sum())


def test_the_negative_is_attacked_towards_the_class_of_the_anchor(net):
    "The positive is the anchor's own clean image, the negative one of its most confusing class."
    x, y = pictures()
    moved, draws = (x + EPSILON).clamp(0, 1), Draws(0)
    h, clean = (losses.with_features(net, v, nn.Linear)[1] for v in (moved, x))
    n = losses.confused(net(x), y, draws)
    for i, z in enumerate(net(x)):
        rival = max((j for j in range(10) if j != y[i]), key=lambda j: float(z[j]))
        assert y[n[i]] == rival or (rival not in y and y[n[i]] != y[i])
    back = PGD(targeted=True)(net, x[n], y, draws)
    features = h, clean, losses.with_features(net, back, nn.Linear)[1]
    expected = losses.tla_loss(net(moved), y, *features, 0.03, 2.0, 0.001)
    piece = losses.BidirectionalMetric(lambda1=2.0, beta=0.0)
    loss = piece(Examples(net, x, y, draws, inputs=moved))
    assert torch.allclose(loss, expected, rtol=1e-4)
    assert F.cross_entropy(net(back), y) < F.cross_entropy(net(x[n]), y)


def test_a_batch_without_the_confusing_class_offers_another():
    z, y = torch.tensor([[0.0, 1.0, 9.0]]).repeat(4, 1), torch.tensor([0, 1, 0, 1])
    assert (y[losses.confused(z, y, Draws(0))] != y).all()  # class 2 is not in the batch
    many = {losses.confused(z, y, Draws(0, step=s))[0].item() for s in range(20)}
    assert many == {1, 3}


def test_the_natural_network_gets_no_adversarial_image(net):
    (x, y), natural = pictures(), losses.fresh(net)
    moved, twin = (x + EPSILON).clamp(0, 1), copy.deepcopy(natural)
    assert not torch.equal(natural.stages[0][1].weight, net.stages[0][1].weight)
    e = Examples(net, x, y, Draws(0), inputs=moved, nets={"natural": natural})
    loss = losses.LearnableBoundary()(e)
    z, z_natural = net(moved), twin(x)
    expected = ((z - z_natural) ** 2).sum(1) / 10 - z_natural.log_softmax(1)[range(16), y]
    assert torch.allclose(loss, expected, rtol=1e-5)
    same_gradients(net, loss.sum(), expected.sum())
    ours = torch.autograd.grad(loss.sum(), list(natural.parameters()))
    theirs = torch.autograd.grad(expected.sum(), list(twin.parameters()))
    close = (torch.allclose(g, h, rtol=1e-3, atol=1e-3) for g, h in zip(ours, theirs, strict=True))
    assert all(close)


# Perturbed weights


def examples(net, n=16):
    x, y = pictures(n)
    return Examples(net, x, y, Draws(0), inputs=x, target=F.one_hot(y, 10).float(), classes=10)


def copied(net, change=lambda name, p: p):
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for name, p in twin.named_parameters():
            p.copy_(change(name, p))
    return twin


def test_awp_goes_up_by_the_asked_share_and_leaves_the_network_alone():
    net = network().train()
    e, before = examples(net), copy_weights(net)
    shifted = weights.WeightPerturbation(gamma=0.03)(e)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    twin = copied(net)
    F.cross_entropy(twin(e.x), e.y).backward()
    for name, p in twin.named_parameters():
        if p.dim() == 1:
            assert name not in shifted.weights
            continue
        v = shifted.weights[name].detach() - dict(net.named_parameters())[name].detach()
        assert (v.norm() / p.norm()).item() == pytest.approx(0.03, rel=1e-3)
        assert F.cosine_similarity(v.flatten(), p.grad.flatten(), dim=0).item() == pytest.approx(
            1, abs=1e-3
        )


def test_awp_learns_from_the_loss_at_the_perturbed_weights():
    net = network().train()
    method = Adversarial(PGD(steps=1), perturb=weights.WeightPerturbation(gamma=0.05))
    x, y = pictures()
    moved = method.attack(net, x, y, Draws(0))
    e = Examples(
        net,
        x,
        y,
        Draws(0),
        adversarial=moved,
        inputs=moved,
        target=F.one_hot(y, 10).float(),
        classes=10,
    )
    shifted = method.perturb(e)
    twin = copied(net, lambda name, p: shifted.weights.get(name, p))
    loss = method(net, x, y, Draws(0))
    loss.backward()
    expected = F.cross_entropy(twin(moved), y)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, rtol=1e-3, atol=1e-5)
    for (name, b), (_, c) in zip(net.named_buffers(), twin.named_buffers(), strict=True):
        assert torch.allclose(b, c, atol=1e-6), (
            name
        )  # recorded once, and by the pass that is learned from
    assert net.stages[0][2].num_batches_tracked == 1


def test_awp_waits_for_its_share_of_the_schedule():
    net = network().train()
    piece, e = weights.WeightPerturbation(after=0.5), examples(net)
    early, late = (piece(dataclasses.replace(e, draws=Draws(0, progress=p))) for p in (0.49, 0.5))
    assert early is net and isinstance(late, weights.Shifted)


def test_rwp_steps_on_small_losses_at_the_perturbed_weights():
    net = network(seed=1).train()
    e = examples(net)
    v = {k: 0.3 * torch.randn_like(p) for k, p in weights.matrices(net).items()}
    twin = copied(net, lambda name, p: p + v[name] if name in v else p)
    losses = F.cross_entropy(twin(e.x), e.y, reduction="none")
    c_min = losses.sort().values[7:9].mean().item()  # half of them, and none of them just so
    at_theta = F.cross_entropy(copied(net)(e.x), e.y, reduction="none")
    assert ((losses <= c_min) != (at_theta <= c_min)).any()
    sum(loss for loss in losses if loss <= c_min).backward()
    ours = weights.weight_gradient(e, v, CrossEntropy(), c_min)
    for name, p in twin.named_parameters():
        if name in ours:
            assert torch.allclose(ours[name], p.grad, rtol=1e-3, atol=1e-5)
    assert weights.low_loss(torch.tensor([1.0, 1.7, 1.8]), 1.7).tolist() == [1, 1, 0]
    assert weights.weight_gradient(e, v, CrossEntropy(), -1.0) is None


def test_rwp_follows_summed_gradients_at_one_length_of_all_layers():
    net = network().train()
    e, radius = examples(net), 0.03
    own = {k: p.detach() for k, p in weights.matrices(net).items()}
    whole = math.sqrt(sum(float((p.double() ** 2).sum()) for p in own.values()))
    uphill, v = 0.0, {k: torch.zeros_like(p) for k, p in own.items()}
    for _ in range(3):
        twin = copied(net, lambda name, p, v=v: p + v[name] if name in v else p)
        entropies = F.cross_entropy(twin(e.x), e.y, reduction="none")
        sum(loss for loss in entropies if loss <= 2.3).backward()
        found = {k: p.grad for k, p in twin.named_parameters() if k in v}
        uphill = {k: g + (uphill[k] if uphill else 0) for k, g in found.items()}
        far = math.sqrt(sum(float((g.double() ** 2).sum()) for g in uphill.values()))
        v = {k: g * (radius * whole / far) for k, g in uphill.items()}
    piece = weights.RobustWeightPerturbation(gamma=radius, steps=3, c_min=2.3)
    moved = {k: w.detach() - own[k] for k, w in piece(e).weights.items()}
    flat, expected = (torch.cat([u[k].flatten() for k in own]).double() for u in (moved, v))
    assert (flat.norm() / whole).item() == pytest.approx(radius, rel=1e-3)
    assert F.cosine_similarity(flat, expected, dim=0).item() == pytest.approx(1, abs=1e-3)
    shares = [moved[k].norm().item() / own[k].norm().item() for k in own]
    assert max(shares) > 2 * min(shares)  # not layer by layer


def test_rwp_may_go_on_where_no_loss_is_small(monkeypatch):
    "On a GPU it does not ask: a gradient of zeros changes no bit."
    net = network().train()
    e, own, real = examples(net), {}, weights.weight_gradient
    zeros = {k: torch.zeros_like(p) for k, p in weights.matrices(net).items()}
    for small in (0, 2):  # so many gradients before no loss is small any more
        for name, after in (("stops", None), ("goes on", zeros)):
            turn = itertools.count()

            def answer(*asked, turn=turn, small=small, after=after):
                return real(*asked) if next(turn) < small else after

            monkeypatch.setattr(weights, "weight_gradient", answer)
            own[name] = weights.RobustWeightPerturbation(steps=5, c_min=2.3)(e).weights
        assert all(torch.equal(w, own["stops"][k]) for k, w in own["goes on"].items())


def test_rwp_stops_without_small_losses():
    net = network().train()
    still = weights.RobustWeightPerturbation(c_min=-1.0)(examples(net))
    assert all(torch.equal(still.weights[k], p) for k, p in weights.matrices(net).items())


# Weights


def test_small_losses_are_lifted_to_the_floor_and_left_out():
    "Below the floor the product is a constant: the sample has no gradient."
    z = torch.tensor([[4.0, 0, 0], [0, 4.0, 0], [0.0, 0, 0], [3.0, 1, 0]], requires_grad=True)
    y = torch.tensor([0, 0, 1, 0])
    e = Examples(None, None, y, Draws(0), target=F.one_hot(y, 3).float())
    e.logits = z
    entropies = F.cross_entropy(z, y, reduction="none")
    scaled = entropies * weights.MinimumLoss(1.0)(e)
    assert scaled.tolist() == pytest.approx([1.0, *entropies[1:3].tolist(), 1.0])
    scaled.sum().backward()
    plain = torch.autograd.grad(F.cross_entropy(z, y, reduction="sum"), z)[0]
    assert torch.allclose(z.grad[1:3], plain[1:3], atol=1e-6)
    assert z.grad[[0, 3]].abs().max() < 1e-5 < plain[[0, 3]].abs().max()


def test_lrat_weighs_within_the_pair(net):
    (x, y), piece = pictures(), weights.LocalReweighting(slope=2.0)
    e = Examples(net, x, y, Draws(0), inputs=pictures(seed=4)[0])
    z = [net(e.inputs), net(piece.other(net, x, y, Draws(0)))]
    numbers, total = [v.detach().numpy() for v in z], 0.0
    for i, loss in enumerate(piece(e)):
        margins = [np.delete(v[i], y[i]).max() - v[i, y[i]] for v in numbers]
        shares = softmax(2.0 * np.array(margins)).tolist()
        entropies = [F.cross_entropy(v[i : i + 1], y[i : i + 1]) for v in z]
        expected = sum(share * loss for share, loss in zip(shares, entropies, strict=True))
        assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
        total += expected
    same_gradients(net, piece(Examples(net, x, y, Draws(0), inputs=e.inputs)).sum(), total)


def same_gradients(net, loss, expected):
    "Both losses pull the weights the same way: nothing is a constant in one of them only."
    ours, theirs = (
        torch.autograd.grad(v, list(net.parameters()), retain_graph=True) for v in (loss, expected)
    )
    assert all(
        torch.allclose(g, h, rtol=1e-3, atol=1e-4) for g, h in zip(ours, theirs, strict=True)
    )
    assert any(g.abs().sum() > 0 for g in ours)


def test_the_weigher_learns_from_the_look_ahead_and_nothing_else():
    torch.manual_seed(0)
    net, k = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double(), 3
    weigher = nn.Sequential(nn.Linear(k - 1, 4), nn.Tanh(), nn.Linear(4, 1), nn.Sigmoid()).double()
    x, y, rate = some(8, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1]), 0.7
    weights.look_ahead(Examples(net, x, y, Draws(0), inputs=x), weigher, rate).backward()
    assert all(p.grad is None for p in net.parameters())

    def reference():
        "The same in plain loops: the gradient of softmax regression is known."
        w, b = (p.detach().numpy() for p in net.parameters())
        flat = x.flatten(1).numpy()
        p = np.stack([softmax(v) for v in flat @ w.T + b])
        others = [[p[i, j] - p[i, y[i]] for j in range(k) if j != y[i]] for i in range(4)]
        with torch.no_grad():
            margins = torch.tensor([sorted(row, reverse=True) for row in others])
            omega = weigher(margins.double()).squeeze(1).numpy()
        off = (p[:4] - np.eye(k)[y[:4].numpy()]) * (omega / omega.mean())[:, None]
        w, b = w - rate * off.T @ flat[:4] / 4, b - rate * off.sum(0) / 4
        return np.mean([entropy_of_label(w @ flat[i] + b, int(y[i])) for i in range(4, 8)])

    for p in weigher.parameters():
        for place in np.ndindex(*p.shape):
            sides = []
            for h in (1e-5, -1e-5):
                with torch.no_grad():
                    p[place] += h
                    sides.append(reference())
                    p[place] -= h
            slope = (sides[0] - sides[1]) / 2e-5
            assert p.grad[place].item() == pytest.approx(slope, rel=1e-4, abs=1e-9)


def bilaw(net, n=16):
    "A composition that weighs, its networks, and a batch."
    method = Adversarial(PGD(steps=1), loss=weights.Bilevel(hidden=4))
    images = data.load("faint10", train_size=20, test_size=10, held_out=0)
    nets = nn.ModuleDict({"model": net, **method.networks(net, images)})
    return method, nets, Batch(*pictures(n), Draws(0))


def test_the_network_of_bilaw_learns_weighted_losses_with_constant_weights():
    net = network().train()
    method, nets, batch = bilaw(net)
    e = method.examples(net, batch.x, batch.y, batch.draws, nets)
    with models.batch_statistics(net):
        z = net(e.inputs)
        p = z.detach().softmax(1).numpy()
        others = [[p[i, j] - p[i, e.y[i]] for j in range(10) if j != e.y[i]] for i in range(16)]
        margins = torch.tensor([sorted(row, reverse=True) for row in others]).float()
        omega = nets["weigher"](margins).squeeze(1).detach()
        expected = (omega / omega.mean()) * F.cross_entropy(z, e.y, reduction="none")
        loss = method.loss(e)
    assert torch.allclose(loss, expected, rtol=1e-4)
    same_gradients(net, loss.sum(), expected.sum())
    loss.sum().backward()
    assert all(p.grad is None for p in nets["weigher"].parameters())


def test_bilaw_has_a_phase_for_its_weigher():
    "Each phase moves its own network, by its own loss, on the same adversarial images."
    method, nets, batch = bilaw(network().train())
    recipe = Classify("resnet18", method, SGD(), 0.0625)
    first, second = recipe.phases(nets)
    assert first.trains == ("weigher",) and second.trains == ("model",)
    with training.learning(nets, first.trains):
        judged = first.loss(nets, batch)
        judged.backward()
    assert all(p.grad is None for p in nets["model"].parameters())
    e = batch.kept["examples"]
    expected = weights.look_ahead(e, nets["weigher"], method.loss.ahead)
    same_gradients(nets["weigher"], expected, first.loss(nets, batch))
    ours = [p.grad for p in nets["weigher"].parameters()]
    theirs = torch.autograd.grad(expected, list(nets["weigher"].parameters()))
    for g, h in zip(ours, theirs, strict=True):
        torch.testing.assert_close(g, h, rtol=1e-3, atol=1e-6)
    second.loss(nets, batch)
    assert batch.kept["examples"] is e


def test_a_look_ahead_at_one_picture_has_nothing_to_compare():
    net = small_network()
    method, nets, batch = bilaw(net, 1)
    for phase in Classify("resnet18", method).phases(nets):
        assert phase.loss(nets, batch).isfinite()


# Labels that are not known


def test_uat_follows_a_constant_and_learns_the_labels_it_has(net, digits):
    (x, y), piece = pictures(16), weights.Unsupervised(share=0.5, weight=3.0)
    moved, nets = (x + 0.05).clamp(0, 1), piece.networks(net, digits)
    draws = Draws(0, samples=torch.arange(16))
    loss = piece(Examples(net, x, y, draws, inputs=moved, nets=nets))
    z, log_p = net(moved), net(x).log_softmax(1).detach()
    expected = 3.0 * (log_p.exp() * (log_p - z.log_softmax(1))).sum(1)
    expected = expected - 2 * nets["labels"].known[:16] * z.log_softmax(1)[range(16), y]
    assert torch.allclose(loss, expected, rtol=1e-4, atol=1e-5)
    same_gradients(net, loss.sum(), expected.sum())


def test_rst_learns_the_teachers_answers(net, digits):
    (x, y), piece = pictures(16), weights.SelfTraining(beta=2.0)
    moved, nets = (x + 0.05).clamp(0, 1), piece.networks(net, digits)
    draws = Draws(0, samples=torch.arange(16))
    nets["teacher"].eval()
    loss = piece(Examples(net, x, y, draws, inputs=moved, nets=nets))
    teacher, known = nets["teacher"](x), nets["labels"].known[:16]
    answers = torch.tensor([int(y[i]) if known[i] else int(teacher[i].argmax()) for i in range(16)])
    assert (answers != y).any()
    log_p, log_q = (net(v).log_softmax(1) for v in (x, moved))
    expected = -log_p[range(16), answers] + 2.0 * (log_p.exp() * (log_p - log_q)).sum(1)
    expected = expected - 2 * known * teacher.log_softmax(1)[range(16), y]
    assert torch.allclose(loss, expected, rtol=1e-4, atol=1e-5)
    same_gradients(net, loss.sum(), expected.sum())


@pytest.mark.parametrize("piece", [weights.Unsupervised(), weights.SelfTraining()])
def test_hidden_labels_are_not_read(piece, net, digits):
    (x, y), nets = pictures(16), piece.networks(net, digits)
    known, draws = nets["labels"].known[:16], Draws(0, samples=torch.arange(16))
    assert known.any() and not known.all()
    for part in nets.values():
        part.eval()

    def loss(labels):
        inputs = (x + 0.01).clamp(0, 1)
        return piece(Examples(net, x, labels, draws, inputs=inputs, nets=nets))

    hidden, seen = torch.where(known, y, (y + 1) % 10), torch.where(known, (y + 1) % 10, y)
    assert torch.equal(loss(y), loss(hidden)) and not torch.equal(loss(y), loss(seen))


@pytest.mark.parametrize("name", ["UAT", "RST"])
def test_the_attack_does_not_read_hidden_labels_either(name, net, digits):
    (x, y), method = pictures(16), zoo.ZOO[name].method
    nets, draws = method.networks(net, digits), Draws(0, samples=torch.arange(16))
    for part in nets.values():
        part.eval()
    labels = y, torch.where(nets["labels"].known[:16], y, (y + 1) % 10)
    one, other = (method(net, x, v, draws, nets) for v in labels)
    assert torch.equal(one, other)


def test_half_of_the_images_are_labelled_always_the_same():
    keep = weights.Labels(1000, 0.3).known
    assert keep.sum() == 300 and torch.equal(keep, weights.Labels(1000, 0.3).known)


# Free AT


def published_free(net, batches, m, epsilon, lr):
    "Shafahi et al.'s loop: m replays of each batch, one backward pass for both gradients."
    sgd, delta = torch.optim.SGD(net.parameters(), lr), torch.zeros_like(batches[0][0])
    for x, y in batches:
        for _ in range(m):
            noise = delta[: len(x)].clone().requires_grad_()
            loss = F.cross_entropy(net((x + noise).clamp(0, 1)), y)
            sgd.zero_grad()
            loss.backward()
            delta[: len(x)] = (delta[: len(x)] + epsilon * noise.grad.sign()).clamp(
                -epsilon, epsilon
            )
            sgd.step()
    return net


def small_network():
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 10))


def test_free_at_is_the_published_loop():
    m, batches = 3, [pictures(n, seed=n) for n in (12, 5, 9)]
    theirs = published_free(small_network(), batches, m, EPSILON, 0.5)
    ours, method = small_network(), weights.Free(EPSILON, m)
    nets, sgd = method.networks(ours, None), torch.optim.SGD(ours.parameters(), 0.5)
    for i in range(m * len(batches)):
        # the loop goes on; the batch is kept
        x, y = batches[i // m] if i % m == 0 else pictures(7, seed=100 + i)
        loss = method(ours, x, y, Draws(0, step=i), nets)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6)


class Cut(Exception):
    "The run is killed."


@piece
class Killed:
    "A method whose run is cut at a step of the second epoch, after a checkpoint."

    method: object

    def networks(self, model, images):
        return self.method.networks(model, images)

    def judge(self, model, x, y):
        return self.method.judge(model, x, y)

    def phases(self):
        return getattr(self.method, "phases", tuple)()

    def joint_loss(self, nets, batch):
        if (batch.draws.epoch, batch.draws.step) == (1, 2):
            raise Cut
        return self.method.joint_loss(nets, batch)


REMEMBERING = ["Free AT", "IAAT", "MMA", "CAT (customized)", "RST", "PC loss", "BiLAW"]


def begin(method, digits, epochs=1, folder=None, compute=QUIET):
    recipe = Classify("resnet18", method, SGD(0.05), 0.0625)
    return training.start(recipe, digits, Length(epochs, 16), 0, compute, folder)


@pytest.mark.parametrize("name", REMEMBERING)
def test_a_killed_run_ends_with_the_same_weights(name, digits, tmp_path):
    method = short(zoo.ZOO[name].method)
    compute = dataclasses.replace(QUIET, checkpoint_seconds=0)
    whole = training.train(begin(method, digits, 2, None, compute))
    with pytest.raises(Cut):
        training.train(begin(Killed(method), digits, 2, tmp_path, compute))
    again = begin(method, digits, 2, tmp_path, compute)
    assert (again.at.epoch, again.at.step) == (1, 2)
    training.train(again)
    assert whole.at.history == again.at.history
    one, other = whole.nets.state_dict(), again.nets.state_dict()
    assert one.keys() == other.keys()
    for k, v in one.items():
        assert torch.equal(v, other[k]) if torch.is_tensor(v) else v.keys() == other[k].keys(), k


# The zoo


def short(method):
    "The same method, judged by a cheap attack."
    return dataclasses.replace(method, selection=PGD(steps=1))


def test_the_contract_is_in_the_zoo():
    lines = [
        line
        for line in paths.contract().read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    ]
    what = next(row["what"] for row in csv.DictReader(lines) if row["id"] == "met-at-zoo")
    names = [name.strip() for name in what.partition(": ")[2].split(";")]
    assert list(zoo.ZOO) == names and len(names) == 37


@pytest.mark.parametrize("name", zoo.ZOO)
def test_a_row_can_be_written_down(name):
    row = zoo.ZOO[name]
    text = json.dumps(pieces.specification(row.method))
    assert pieces.from_specification(json.loads(text)) == row.method
    assert row.pieces and row.place and row.cost >= 3


def test_every_note_belongs_to_a_row():
    assert zoo._NOTES.keys() <= zoo.ZOO.keys()
    without = {name for name, row in zoo.ZOO.items() if not row.note}
    assert without == {"Goodfellow AT", "Madry AT"}
    assert all(
        "code" in row.note or "the thesis's text" in row.note
        for row in zoo.ZOO.values()
        if row.note
    )


TRAIN_MODE = {"AVmixup", "Fast AT", "AWP", "RWP", "MLCAT", "IAAT"}


def test_a_row_says_where_the_published_attack_moves_other_statistics():
    "Ours attack in eval mode; TRADES's code passes the clean batch twice, which moves them too."
    said = {name for name, row in zoo.ZOO.items() if "in train mode" in row.note}
    assert said == TRAIN_MODE and "passes the clean batch twice" in zoo.ZOO["TRADES"].note
    for name in TRAIN_MODE:
        ways = [a for a in pieces.inside(zoo.ZOO[name].method) if hasattr(a, "bn")]
        assert ways and {a.bn for a in ways} == {"eval"}, name
    assert set(zoo.zoo_table().loc[[*TRAIN_MODE], "note"]) == {zoo.ZOO[n].note for n in TRAIN_MODE}


@pytest.mark.parametrize("name", zoo.ZOO)
def test_every_row_trains(name, digits):
    t = begin(short(zoo.ZOO[name].method), digits)
    before = copy_weights(t.nets)
    training.train(t)  # Diverged if a loss is not a number
    after = t.nets.state_dict()
    assert all(torch.isfinite(v).all() for v in after.values() if torch.is_tensor(v))
    assert all(not torch.equal(p, before[k]) for k, p in t.nets.named_parameters())
    assert after["model.stages.0.2.num_batches_tracked"] in (3, 6, 9)


class Watched(Draws):
    "Draws whose generators may be used by `tensor`, `noise` and `choice` alone."

    def _through(self, seam, *given):
        object.__setattr__(self, "open", True)
        try:
            return getattr(super(), seam)(*given)
        finally:
            object.__setattr__(self, "open", False)

    def tensor(self, *given):
        return self._through("tensor", *given)

    def noise(self, *given):
        return self._through("noise", *given)

    def choice(self, *given):
        return self._through("choice", *given)

    def numpy(self, purpose):
        assert self.open, f"{purpose} is drawn past the seams"
        return super().numpy(purpose)

    def torch(self, purpose, device="cpu"):
        assert self.open, f"{purpose} is drawn past the seams"
        return super().torch(purpose, device)

    open = False


@pytest.mark.parametrize("name", zoo.ZOO)
def test_every_draw_goes_through_the_seams(name, digits):
    "A step that is captured as a graph can be given other numbers only there."
    t = begin(short(zoo.ZOO[name].method), digits)
    batch = Batch(*pictures(), Watched(0, progress=0.7, samples=torch.arange(16)))
    for phase in t.phases:
        assert phase.loss(t.nets, batch).isfinite()
    with pytest.raises(AssertionError, match="past the seams"):
        batch.draws.numpy("order")


@pytest.mark.parametrize("name", zoo.ZOO)
def test_the_cost_is_what_is_counted(name):
    row = zoo.ZOO[name]
    counted = zoo.forward_units(row.method)
    assert counted == pytest.approx(row.cost, abs=0.5) or (
        "at most" in row.note and counted < row.cost
    )


OWN = {
    "LBGAT": {"natural"},
    "IAAT": {"radii"},
    "MMA": {"radii"},
    "CAT (customized)": {"radii"},
    "PC loss": {"centres"},
    "BiLAW": {"weigher"},
    "UAT": {"labels"},
    "RST": {"labels", "teacher"},
    "Free AT": {"replayed"},
}


def test_rows_with_networks_of_their_own(digits):
    for name, row in zoo.ZOO.items():
        assert set(row.method.networks(network(), digits)) == OWN.get(name, set()), name


def test_the_table_has_a_row_for_every_method():
    table = zoo.zoo_table()
    assert list(table.index) == list(zoo.ZOO) and table.loc["Madry AT", "cost"] == 23
    assert list(table.index[~table["claims robustness"]]) == ["COT"]


# Batches at the edge, and numbers that no loss shows


def test_a_class_that_is_not_in_the_batch_is_replaced_row_by_row():
    "Every second image is most confused with class 3, which none of them has."
    y, anchors, others = torch.tensor([0, 1, 2] * 4), some(12, 3, seed=1), some(12, 3, seed=2)
    logits = some(12, 4)
    logits[:, 3] = torch.tensor([9.0, -9.0] * 6)
    _, negative = losses.triplets(logits, y, anchors, others, Draws(0))
    drawn = torch.stack([losses.confused(logits, y, Draws(0, step=s)) for s in range(20)])
    for i in range(12):
        rival = max((j for j in range(4) if j != y[i]), key=lambda j: float(logits[i, j]))
        allowed = [j for j in range(12) if y[j] == rival] or [j for j in range(12) if y[j] != y[i]]
        nearest = min(allowed, key=lambda j: apart(anchors[i].numpy(), others[j].numpy()))
        assert negative[i] == nearest and set(drawn[:, i].tolist()) <= set(allowed)
        assert len({int(y[j]) for j in drawn[:, i]}) == (1 if rival < 3 else 2)


def test_the_positive_is_the_other_image_of_a_pair_at_every_step():
    logits, y, features = some(4, 3), torch.tensor([0, 1, 0, 1]), some(4, 3, seed=1)
    for step in range(60):
        draws = Draws(0, step=step)
        assert losses.triplets(logits, y, features, features, draws)[0].tolist() == [2, 3, 0, 1]


@pytest.mark.parametrize(
    "piece", [losses.TripletLossAdversarial(), losses.BidirectionalMetric(steps=1)]
)
def test_a_batch_of_one_class_has_no_triplet(piece, net):
    x, y = pictures(4)[0], torch.zeros(4, dtype=torch.long)
    found, without = (
        p(Examples(net, x, y, Draws(0), inputs=(x + EPSILON).clamp(0, 1)))
        for p in (piece, dataclasses.replace(piece, lambda1=0.0))
    )
    assert found.isfinite().all() and torch.equal(found, without)


@pytest.mark.parametrize("n, judged", [(4, slice(2, None)), (3, slice(None))])
def test_half_of_a_batch_judges_the_other_from_two_images_on(n, judged):
    "With no step made, the look ahead is the loss of the images that judge."
    model, x, y = grey(n)
    weigher = nn.Sequential(nn.Linear(3, 1), nn.Sigmoid()).double()
    found = weights.look_ahead(Examples(model, x, y, Draws(0), inputs=x), weigher, 0.0)
    assert found.item() == pytest.approx(F.cross_entropy(model(x[judged]), y[judged]).item())


def test_a_larger_batch_begins_at_zero_where_no_perturbation_was():
    kept, (x, y) = weights.Kept(), pictures(3)
    kept.renew(x[:2], y[:2])
    assert not kept.state["delta"].any()
    kept.state["delta"] = torch.full_like(x[:2], 0.01)
    for n in (3, 2):
        kept.renew(x[:n], y[:n])
        assert kept.state["delta"][:, 0, 0, 0].tolist() == pytest.approx([0.01, 0.01, 0])
        assert torch.equal(kept.state["x"], x[:n])


def test_numbers_that_no_reference_has():
    "Free AT: m 4 and the selection of all rows. The weigher of BiLAW: ours."
    assert weights.Free() == weights.Free(8 / 255, 4, PGD(8 / 255, 2 / 255, 20))
    assert weights.Bilevel() == weights.Bilevel(0.1, 32, Adam(1e-3, (0.9, 0.999)))


def test_instance_adaptive_begins_without_a_ball():
    "A first visit without warm-up: a tenth of the way to 0 + γ, where the sample stands."
    attack = zoo_attacks.InstanceAdaptive(warm_up=0.0)
    nets, draws = attack.networks(None, data_of(4)), Draws(0, samples=torch.arange(4))
    attack(Answers(), pictures(4)[0], torch.tensor([0, 1, 0, 1]), draws, nets=nets)
    assert nets["radii"].values.tolist() == pytest.approx([0.19 / 255, 0] * 2)


def test_at_most_is_the_cost_where_nothing_stops():
    "DAT and FAT take Madry's steps at most; RWP makes AWP's gradient ten times at most."
    cost = {name: row.cost for name, row in zoo.ZOO.items()}
    assert cost["DAT"] == cost["FAT"] == cost["Madry AT"]
    assert cost["RWP"] - cost["Madry AT"] == 10 * (cost["AWP"] - cost["Madry AT"])
