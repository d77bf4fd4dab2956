"""The survey's pieces against references written anew in float64, and every row of the zoo at work."""

import copy
import csv
import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from thesis_repro import data, models, paths, runs, training, zoo
from thesis_repro.adversarial import Adversarial, CrossEntropy, Examples
from thesis_repro.attacks import PGD
from thesis_repro.data import Draws
from thesis_repro.settings import BadInput
from thesis_repro.training import Compute, Schedule

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
def learned():
    images = data.load("faint10", train_size=400, test_size=20, held_out=20)
    schedule = Schedule(epochs=4, batch_size=40, decay=())
    t = training.start(network(), CleanOnly(), images, schedule, 0, QUIET)
    return training.train(t).model.eval()


@dataclasses.dataclass(frozen=True)
class CleanOnly:
    def __call__(self, model, x, y, draws):
        return F.cross_entropy(model(x), y)


def pictures(n=16, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, 8, 8, generator=g, dtype=dtype), torch.arange(n) % 10


def some(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def agrees(ours, reference, *arrays):
    "The values of `ours` are those of `reference` (numpy), and its gradients the differences of `reference`."
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
    assert zoo.fosc(x, x0, gradient, 0.1).tolist() == pytest.approx(best)


def distance(a, b):
    return 1 - abs(a @ b) / np.sqrt((a @ a) * (b @ b))


def triplet(a, p, n, margin):
    return np.array(
        [max(0.0, distance(a[i], p[i]) - distance(a[i], n[i]) + margin) for i in range(len(a))]
    )


def test_triplet_loss():
    a, p, n = (some(12, 4, seed=s) for s in range(3))
    expected = triplet(*(t.numpy() for t in (a, p, n)), 0.03)
    assert (expected == 0).any() and (expected > 0).any()
    agrees(lambda *f: zoo.triplet_loss(*f, 0.03), lambda *f: triplet(*f, 0.03), a, p, n)


def test_tla_loss():
    z, a, p, n = some(6, 3, seed=5), *(some(6, 4, seed=s) for s in range(3))
    y = torch.tensor([0, 1, 2, 0, 1, 2])

    def reference(z, a, p, n):
        length = lambda v: np.sqrt((v * v).sum(1))
        entropy = np.array([entropy_of_label(z[i], y[i]) for i in range(6)])
        return entropy + 2.0 * triplet(a, p, n, 0.03) + 0.001 * (length(a) + length(p) + length(n))

    agrees(lambda z, *f: zoo.tla_loss(z, y, *f), reference, z, a, p, n)


def test_dirichlet_labels_are_dirichlet():
    n, k, c = 20000, 5, 10.0
    y, epsilon = torch.arange(n) % k, torch.full((n,), 0.03, dtype=torch.float64)
    labels = zoo.dirichlet_labels(y, epsilon, c, k, torch.Generator().manual_seed(0)).double()
    assert torch.allclose(labels.sum(1), torch.ones(n, dtype=torch.float64))
    drawn = (labels - 0.7 * F.one_hot(y, k)) / 0.3
    assert drawn.min() > -1e-6
    assert drawn.mean(0).tolist() == pytest.approx([1 / k] * k, abs=0.005)
    assert drawn.var(0).tolist() == pytest.approx([(k - 1) / (k * k * (k + 1))] * k, rel=0.05)
    assert torch.equal(zoo.dirichlet_labels(y, 0 * epsilon, c, k), F.one_hot(y, k).double())
    assert zoo.dirichlet_labels(y[:9], epsilon[:9] * 100, c, k).min() >= 0


def test_pc_loss():
    f, w, y = some(6, 3), some(4, 3, seed=1), [0, 1, 2, 3, 0, 1]
    length = lambda v: math.sqrt((v * v).sum())

    def reference(f, w):
        total = []
        for i, own in enumerate(y):
            others = [length(f[i] - w[j]) + length(w[own] - w[j]) for j in range(4) if j != own]
            total.append(length(f[i] - w[own]) - sum(others) / 3)
        return np.array(total)

    agrees(lambda f, w: zoo.pc_loss(f, w, torch.tensor(y)), reference, f, w)


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

    agrees(lambda z: zoo.pc_lc_loss(z, torch.tensor(y), xi, weight, limit), reference, z)


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

    cot = lambda z: np.array(
        [entropy_of_label(z[i], c) - complement(z[i], c) / 4 for i, c in enumerate(y)]
    )
    gce = lambda z: np.array(
        [
            -(softmax(z[i])[c] ** (1 / 3)) * complement(z[i], c) / math.log(4)
            for i, c in enumerate(y)
        ]
    )
    agrees(ours(zoo.ComplementObjective()), cot, z)
    agrees(ours(zoo.GuidedComplement()), gce, z)


def test_adversarial_labels():
    losses, y = some(6, 4).abs(), torch.tensor([0, 1, 2, 3, 0, 1])
    ours = zoo.adversarial_labels(losses, y, 0.4, 0.01)
    for i in range(6):
        others = [j for j in range(4) if j != y[i]]
        least = min(losses[i][j] for j in others)
        parts = {j: losses[i][j] - least + 0.01 for j in others}
        expected = [0.6 if j == y[i] else 0.4 * parts[j] / sum(parts.values()) for j in range(4)]
        assert ours[i].tolist() == pytest.approx([float(v) for v in expected])


# The attacks


def test_ascent_with_one_radius_is_pgd(learned):
    x, y = pictures()
    ours = zoo.ascend(learned, x, y, Draws(3), EPSILON, 2 / 255, 10)
    assert torch.allclose(ours, PGD()(learned, x, y, Draws(3)), atol=1e-6)


def test_every_attack_stays_in_its_ball(learned):
    x, y = pictures()
    samples = torch.arange(16)
    memory = zoo.PerSample(16, EPSILON)
    for attack in (
        zoo.Dynamic(),
        zoo.Friendly(),
        zoo.MostConfusing(),
        zoo.Smallest(epsilon=EPSILON),
        zoo.Growing(),
    ):
        moved = attack(learned, x, y, Draws(0, progress=0.5, samples=samples))
        assert (
            moved.min() >= 0 and moved.max() <= 1 and 0 < (moved - x).abs().max() <= EPSILON + 1e-7
        )
    moved = zoo.InstanceAdaptive()(learned, x, y, Draws(0, samples=samples), companion=memory)
    assert (moved - x).abs().max() <= EPSILON + 1.9 / 255 + 1e-7


def test_going_towards_a_class_raises_it(learned):
    x, y = pictures()
    target = (y + 3) % 10
    moved = zoo.ascend(learned, x, y, Draws(0), EPSILON, 2 / 255, 10, towards=target)
    before, after = (F.cross_entropy(learned(v), target) for v in (x, moved))
    assert after < before


def test_the_curriculum_adds_steps(learned):
    x, y = pictures(4)
    taken = []
    for progress in (0.0, 0.09, 0.5, 0.99, 1.0):
        seen = []
        zoo.Growing()(
            learned,
            x,
            y,
            Draws(0, progress=progress),
            lambda i, z, logits, seen=seen: seen.append(i),
        )
        taken.append(len(seen))
    assert taken == [1, 1, 6, 10, 10]


def test_dynamic_stops_each_sample_at_its_own_time(learned):
    x, y = pictures()
    seen, draws, attack = [], Draws(0, progress=0.25), zoo.Dynamic(steps=6)
    final = attack(learned, x, y, draws, seen=lambda i, z, logits: seen.append(z.detach().clone()))
    c = 0.5 * (1 - 0.25 / (5 / 6))
    stopped = torch.zeros(16, dtype=torch.bool)
    for now, after in itertools.pairwise([*seen, final]):
        z = now.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(learned(z), y, reduction="sum"), z)
        inner = ((now - x) * gradient).sum((1, 2, 3))
        stopped |= EPSILON * gradient.abs().sum((1, 2, 3)) - inner <= c
        assert torch.equal((after == now).all(3).all(2).all(1), stopped)
    assert stopped.any()


@pytest.mark.parametrize(("progress", "tau"), [(0.0, 0), (0.5, 1), (1.0, 2)])
def test_friendly_takes_tau_steps_after_the_first_mistake(learned, progress, tau):
    x, y = pictures(32)
    seen, draws = [], Draws(0, progress=progress)
    final = zoo.Friendly(epsilon=0.1)(
        learned, x, y, draws, seen=lambda i, z, logits: seen.append((z, logits.argmax(1) != y))
    )
    images, wrong = [z for z, _ in seen] + [final], [w for _, w in seen]
    for i in range(32):
        mistakes = [int(w[i]) for w in wrong]
        moves = [not torch.equal(a[i], b[i]) for a, b in itertools.pairwise(images)]
        allowed = [sum(mistakes[: t + 1]) <= tau for t in range(len(mistakes))]
        assert moves == allowed


def test_smallest_lies_on_the_boundary(learned):
    x, _ = pictures(32)
    y = learned(x).argmax(1)
    attack = zoo.Smallest(epsilon=0.2, step=0.05, bisections=20)
    images = attack(learned, x, y, Draws(0))
    fooled = learned(images).argmax(1) != y
    assert fooled.any()
    nearer = x + 0.99 * (images - x)
    assert (learned(nearer).argmax(1) == y)[fooled].float().mean() > 0.9
    assert torch.allclose(
        attack(learned, x, (y + 1) % 10, Draws(0)), x, atol=1e-3
    )  # wrong already: stays


class Answers(nn.Module):
    "Always says class 0, and has a gradient."

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return torch.stack([x.mean((1, 2, 3)) * self.scale * 0.01 + 5, 0 * x.mean((1, 2, 3))], 1)


def test_own_radii_follow_the_answers():
    x, samples = pictures(4)[0], torch.tensor([7, 1, 5, 3])
    y = torch.tensor([0, 1, 0, 1])  # right, wrong, right, wrong
    memory = zoo.PerSample(9, 0.02)
    zoo.InstanceAdaptive(gamma=0.01, rate=0.1)(
        Answers(), x, y, Draws(0, samples=samples), companion=memory
    )
    assert memory.values[samples].tolist() == pytest.approx([0.021, 0.019, 0.021, 0.019])
    assert memory.values[[0, 2, 4, 6, 8]].tolist() == pytest.approx([0.02] * 5)

    memory, attack = zoo.PerSample(9, 0.0), zoo.Customized(epsilon=0.008, eta=0.005)
    for expected in (0.005, 0.008, 0.008):
        images = attack(Answers(), x, y, Draws(0, samples=samples), companion=memory)
        assert memory.values[samples].tolist() == pytest.approx([expected, 0, expected, 0])
        assert (images - x).abs().amax((1, 2, 3)).tolist() == pytest.approx(
            [expected, 0.005, expected, 0.005], abs=1e-6
        )


def test_a_step_without_places_says_what_to_do():
    x, y = pictures(4)
    with pytest.raises(BadInput, match="samples=indices"):
        zoo.Customized()(network().eval(), x, y, Draws(0), companion=zoo.PerSample(9, 0.0))


@pytest.mark.parametrize(
    "wrong", [{"epsilon": 8.0}, {"epsilon": -0.1}, {"steps": 0}, {"step": 2.0}]
)
def test_walks_refuse_what_pgd_refuses(wrong):
    with pytest.raises(BadInput):
        zoo.Dynamic(**wrong)


# Losses that look inside


@pytest.mark.parametrize("name", ["resnet18", "preactresnet18", "wrn28_10"])
def test_inside_sees_what_the_last_layer_sees(name):
    net = network(name=name).eval()
    x, _ = pictures(4)
    logits, features, maps = zoo.inside(net, x, nn.Linear, nn.AdaptiveAvgPool2d)
    assert torch.allclose(logits, net(x)) and torch.allclose(net.stages[-1][-1](features), logits)
    assert torch.allclose(maps.mean((2, 3)), features, atol=1e-6)
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_triplets_are_searched_in_the_batch():
    logits, anchors, others = some(20, 5), some(20, 3, seed=1), some(20, 3, seed=2)
    y = torch.tensor([0, 1, 2, 3] * 4 + [0, 1, 2, 4])
    positive, negative = zoo.triplets(logits, y, anchors, others, Draws(0))
    for i in range(20):
        rival = max((j for j in range(5) if j != y[i]), key=lambda j: float(logits[i, j]))
        allowed = [j for j in range(20) if y[j] == rival] or [j for j in range(20) if y[j] != y[i]]
        nearest = min(allowed, key=lambda j: distance(anchors[i].numpy(), others[j].numpy()))
        assert negative[i] == nearest
        assert y[positive[i]] == y[i] and (positive[i] != i or (y == y[i]).sum() == 1)


def test_attention_is_distilled_into_the_adversarial_image_alone(learned):
    x = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))  # maps of 4 × 4
    y, moved = torch.arange(8), (x + 0.1).clamp(0, 1)
    pure = zoo.BidirectionalMetric(lambda1=0.0, lambda2=0.0, beta=1.0, steps=1)
    e = Examples(learned, x, y, Draws(0), inputs=moved)
    maps = [learned.stages[-1][:-3](learned(v, stop=3)).double() for v in (moved, x)]
    flat = [m.pow(2).mean(1).flatten(1) for m in maps]
    unit = [f / f.pow(2).sum(1, keepdim=True).sqrt() for f in flat]
    expected = F.cross_entropy(learned(moved), y, reduction="none") + (
        unit[0] - unit[1].detach()
    ).pow(2).sum(1)
    loss = pure(e)
    assert torch.allclose(loss.double(), expected.double(), rtol=1e-4)
    same_gradients(learned, loss.sum(), expected.sum())


def test_the_negative_is_attacked_towards_the_class_of_the_anchor(learned):
    x, y = pictures()
    moved, draws = (x + EPSILON).clamp(0, 1), Draws(0)
    h, clean = (zoo.inside(learned, v, nn.Linear)[1] for v in (moved, x))
    p, n = zoo.triplets(learned(moved), y, h, clean, draws)
    back = zoo.ascend(learned, x[n], y[n], draws, EPSILON, 2 / 255, 10, towards=y)
    expected = zoo.tla_loss(
        learned(moved), y, h, clean[p], zoo.inside(learned, back, nn.Linear)[1], 0.03, 2.0, 0.001
    )
    loss = zoo.BidirectionalMetric(lambda1=2.0, beta=0.0)(
        Examples(learned, x, y, draws, inputs=moved)
    )
    assert torch.allclose(loss, expected, rtol=1e-4)
    assert F.cross_entropy(learned(back), y) < F.cross_entropy(learned(x[n]), y)


def test_the_natural_network_gets_no_adversarial_image(learned):
    x, y = pictures()
    natural, moved = zoo.fresh(learned), (x + EPSILON).clamp(0, 1)
    assert not torch.equal(natural.stages[0][1].weight, learned.stages[0][1].weight)
    twin = copy.deepcopy(natural)
    loss = zoo.LearnableBoundary()(
        Examples(learned, x, y, Draws(0), inputs=moved, companion=natural)
    )
    z, z_natural = learned(moved), twin(x)
    expected = ((z - z_natural) ** 2).sum(1) / 10 - z_natural.log_softmax(1)[range(16), y]
    assert torch.allclose(loss, expected, rtol=1e-5)
    same_gradients(learned, loss.sum(), expected.sum())
    ours = torch.autograd.grad(loss.sum(), list(natural.parameters()))
    theirs = torch.autograd.grad(expected.sum(), list(twin.parameters()))
    assert all(
        torch.allclose(g, h, rtol=1e-3, atol=1e-3) for g, h in zip(ours, theirs, strict=True)
    )


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
    e, before = examples(net), training.copy_weights(net)
    shifted = zoo.WeightPerturbation(gamma=0.03)(e)
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
    method = Adversarial(PGD(steps=1), perturb=zoo.WeightPerturbation(gamma=0.05))
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
    piece, e = zoo.WeightPerturbation(after=0.5), examples(net)
    early, late = (piece(dataclasses.replace(e, draws=Draws(0, progress=p))) for p in (0.49, 0.5))
    assert early is net and isinstance(late, zoo.Shifted)


def test_rwp_steps_on_small_losses_at_the_perturbed_weights():
    net = network(seed=1).train()
    e = examples(net)
    v = {k: 0.3 * torch.randn_like(p) for k, p in zoo.matrices(net).items()}
    twin = copied(net, lambda name, p: p + v[name] if name in v else p)
    losses = F.cross_entropy(twin(e.x), e.y, reduction="none")
    c_min = losses.median().item()
    at_theta = F.cross_entropy(copied(net)(e.x), e.y, reduction="none")
    assert ((losses <= c_min) != (at_theta <= c_min)).any()
    sum(loss for loss in losses if loss <= c_min).backward()
    ours = zoo.weight_gradient(e, v, CrossEntropy(), c_min + 1e-6)
    for name, p in twin.named_parameters():
        if name in ours:
            assert torch.allclose(ours[name], p.grad, rtol=1e-3, atol=1e-5)
    assert zoo.low_loss(torch.tensor([1.0, 1.7, 1.8]), 1.7).tolist() == [1, 1, 0]
    assert zoo.weight_gradient(e, v, CrossEntropy(), -1.0) is None


def test_rwp_stays_inside_its_radius_and_stops_without_small_losses():
    net = network().train()
    e, radius = examples(net), 0.01
    moved = zoo.RobustWeightPerturbation(gamma=radius, step=0.008, steps=4, c_min=99.0)(e)
    shares = [
        (moved.weights[k] - p).norm().item() / p.norm().item() for k, p in zoo.matrices(net).items()
    ]
    assert max(shares) <= radius * 1.001 and max(shares) > 0.9 * radius
    once = zoo.RobustWeightPerturbation(gamma=radius, step=0.004, steps=1, c_min=99.0)(e)
    shares = [
        (once.weights[k] - p).norm().item() / p.norm().item() for k, p in zoo.matrices(net).items()
    ]
    assert shares == pytest.approx([0.004] * len(shares), rel=1e-2)
    still = zoo.RobustWeightPerturbation(c_min=-1.0)(e)
    assert all(torch.equal(still.weights[k], p) for k, p in zoo.matrices(net).items())


# Weights


def test_small_losses_are_lifted_to_the_floor_as_constants():
    z, y = (
        torch.tensor([[4.0, 0, 0], [0, 4.0, 0], [0.0, 0, 0]], requires_grad=True),
        torch.tensor([0, 0, 1]),
    )
    e = Examples(None, None, y, Draws(0), target=F.one_hot(y, 3).float())
    e.logits = z
    losses, weights = F.cross_entropy(z, y, reduction="none"), zoo.MinimumLoss(1.0)(e)
    assert not weights.requires_grad
    assert (losses * weights).tolist() == pytest.approx([1.0, losses[1].item(), losses[2].item()])


def test_lrat_weighs_within_the_pair(learned):
    x, y = pictures()
    piece, e = (
        zoo.LocalReweighting(slope=2.0),
        Examples(learned, x, y, Draws(0), inputs=pictures(seed=4)[0]),
    )
    z = [learned(e.inputs), learned(piece.other(learned, x, y, Draws(0)))]
    numbers, total = [v.detach().numpy() for v in z], 0.0
    for i, loss in enumerate(piece(e)):
        margins = [np.delete(v[i], y[i]).max() - v[i, y[i]] for v in numbers]
        weights = softmax(2.0 * np.array(margins))
        terms = [
            w * F.cross_entropy(v[i : i + 1], y[i : i + 1])
            for w, v in zip(weights.tolist(), z, strict=True)
        ]
        assert loss.item() == pytest.approx(sum(terms).item(), rel=1e-4)
        total += sum(terms)
    same_gradients(learned, piece(Examples(learned, x, y, Draws(0), inputs=e.inputs)).sum(), total)


def same_gradients(net, loss, expected):
    "Both losses pull the network's weights the same way: nothing is a constant in one and not in the other."
    ours, theirs = (
        torch.autograd.grad(v, list(net.parameters()), retain_graph=True) for v in (loss, expected)
    )
    assert all(
        torch.allclose(g, h, rtol=1e-3, atol=1e-4) for g, h in zip(ours, theirs, strict=True)
    )
    assert any(g.abs().sum() > 0 for g in ours)


def test_the_weighing_network_learns_from_the_look_ahead_and_nothing_else():
    torch.manual_seed(0)
    net, k = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double(), 3
    weigher = nn.Sequential(nn.Linear(k - 1, 4), nn.Tanh(), nn.Linear(4, 1), nn.Sigmoid()).double()
    x, y, rate = some(8, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1]), 0.7
    zoo.look_ahead(Examples(net, x, y, Draws(0), inputs=x, companion=weigher), rate).backward()
    assert all(p.grad is None for p in net.parameters())

    def reference():
        "The same in plain loops: the gradient of softmax regression is known."
        w, b = (p.detach().numpy() for p in net.parameters())
        flat = x.flatten(1).numpy()
        z = flat @ w.T + b
        p = np.stack([softmax(v) for v in z])
        margins = np.array(
            [
                sorted((p[i, j] - p[i, y[i]] for j in range(k) if j != y[i]), reverse=True)
                for i in range(4)
            ]
        )
        with torch.no_grad():
            omega = weigher(torch.from_numpy(margins)).squeeze(1).float().double().numpy()
        omega = omega / omega.mean()
        off = p[:4] - np.eye(k)[y[:4].numpy()]
        w = w - rate * (off * omega[:, None]).T @ flat[:4] / 4
        b = b - rate * (off * omega[:, None]).sum(0) / 4
        return np.mean([entropy_of_label(w @ flat[i] + b, int(y[i])) for i in range(4, 8)])

    for p in weigher.parameters():
        for place in np.ndindex(*p.shape):
            sides = []
            for h in (1e-2, -1e-2):  # float32 inside: a coarse difference
                with torch.no_grad():
                    p[place] += h
                    sides.append(reference())
                    p[place] -= h
            assert p.grad[place].item() == pytest.approx(
                (sides[0] - sides[1]) / 2e-2, rel=0.02, abs=2e-4
            )


def test_bilevel_changes_the_value_by_its_weights_alone():
    net = network().train()
    weigher = zoo.Bilevel(hidden=4)
    companion, e = (
        weigher.companion(net, data.load("faint10", train_size=20, test_size=10, held_out=0)),
        examples(net),
    )
    e.companion = companion
    with models.batch_statistics(net):
        z = net(e.x)
        p = z.detach().softmax(1).numpy()
        margins = [
            sorted((p[i, j] - p[i, e.y[i]] for j in range(10) if j != e.y[i]), reverse=True)
            for i in range(16)
        ]
        omega = companion(torch.tensor(np.array(margins))).squeeze(1).detach()
        expected = (omega / omega.mean()) * F.cross_entropy(z, e.y, reduction="none")
        loss = weigher(e)
        ahead = zoo.look_ahead(e, weigher.ahead)
    assert torch.allclose(loss, expected, rtol=1e-4)
    same_gradients(companion, loss.mean(), ahead)
    same_gradients(net, loss.sum(), expected.sum())


def test_a_look_ahead_at_one_picture_has_nothing_to_compare():
    net = small_network()
    weigher = zoo.Bilevel(hidden=4).companion(
        net, data.load("faint10", train_size=20, test_size=10, held_out=0)
    )
    x, y = pictures(1)
    assert (
        zoo.Bilevel()(Examples(net, x, y, Draws(0), inputs=x, companion=weigher)).isfinite().all()
    )


# Labels that are not known


def test_uat_follows_a_constant_and_learns_the_labels_it_has(learned, digits):
    x, y = pictures(16)
    piece, samples, moved = (
        zoo.Unsupervised(share=0.5, weight=3.0),
        torch.arange(16),
        (x + 0.05).clamp(0, 1),
    )
    companion = piece.companion(learned, digits)
    loss = piece(
        Examples(learned, x, y, Draws(0, samples=samples), inputs=moved, companion=companion)
    )
    z, log_p = learned(moved), learned(x).log_softmax(1).detach()
    expected = 3.0 * (log_p.exp() * (log_p - z.log_softmax(1))).sum(1)
    expected = expected - 2 * companion.known[:16] * z.log_softmax(1)[range(16), y]
    assert torch.allclose(loss, expected, rtol=1e-4, atol=1e-5)
    same_gradients(learned, loss.sum(), expected.sum())


def test_rst_learns_the_teachers_answers(learned, digits):
    x, y = pictures(16)
    piece, samples, moved = zoo.SelfTraining(beta=2.0), torch.arange(16), (x + 0.05).clamp(0, 1)
    companion = piece.companion(learned, digits).eval()
    loss = piece(
        Examples(learned, x, y, Draws(0, samples=samples), inputs=moved, companion=companion)
    )
    teacher, known = companion.teacher(x), companion.known[:16]
    answers = torch.tensor([int(y[i]) if known[i] else int(teacher[i].argmax()) for i in range(16)])
    assert (answers != y).any()
    log_p, log_q = (learned(v).log_softmax(1) for v in (x, moved))
    expected = -log_p[range(16), answers] + 2.0 * (log_p.exp() * (log_p - log_q)).sum(1)
    expected = expected - 2 * known * teacher.log_softmax(1)[range(16), y]
    assert torch.allclose(loss, expected, rtol=1e-4, atol=1e-5)
    same_gradients(learned, loss.sum(), expected.sum())


@pytest.mark.parametrize("piece", [zoo.Unsupervised(), zoo.SelfTraining()])
def test_hidden_labels_are_not_read(piece, learned, digits):
    x, y = pictures(16)
    companion, samples = piece.companion(learned, digits).eval(), torch.arange(16)
    known = companion.known[:16]
    assert known.any() and not known.all()

    def loss(labels):
        e = Examples(
            learned,
            x,
            labels,
            Draws(0, samples=samples),
            inputs=(x + 0.01).clamp(0, 1),
            companion=companion,
        )
        return piece(e)

    hidden, seen = torch.where(known, y, (y + 1) % 10), torch.where(known, (y + 1) % 10, y)
    assert torch.equal(loss(y), loss(hidden)) and not torch.equal(loss(y), loss(seen))


@pytest.mark.parametrize("name", ["UAT", "RST"])
def test_the_attack_does_not_read_hidden_labels_either(name, learned, digits):
    (x, y), method, samples = pictures(16), zoo.ZOO[name].method, torch.arange(16)
    companion = method.companion(learned, digits).eval()
    labels = y, torch.where(companion.known[:16], y, (y + 1) % 10)
    one, other = (method(learned, x, v, Draws(0, samples=samples), companion) for v in labels)
    assert torch.equal(one, other)


def test_half_of_the_images_are_labelled_always_the_same():
    keep = zoo.labelled(1000, 0.3)
    assert keep.sum() == 300 and torch.equal(keep, zoo.labelled(1000, 0.3))


# Free AT


def published_free(net, batches, m, epsilon, lr):
    "Shafahi et al.'s loop: minibatches outside, m replays inside, one backward pass for both gradients."
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
    ours, method = small_network(), zoo.Free(EPSILON, m)
    companion, sgd = method.companion(ours, None), torch.optim.SGD(ours.parameters(), 0.5)
    for i in range(m * len(batches)):
        x, y = (
            batches[i // m] if i % m == 0 else pictures(7, seed=100 + i)
        )  # the loop goes on; the batch is kept
        loss = method(ours, x, y, Draws(0, step=i), companion)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6)


class Cut(Exception):
    "The run is killed."


@dataclasses.dataclass(frozen=True)
class Killed:
    "A method whose run is cut at a step of the second epoch, after a checkpoint of the step before."

    method: object

    def companion(self, model, images):
        return self.method.companion(model, images)

    def __call__(self, model, x, y, draws, companion):
        if (draws.epoch, draws.step) == (1, 2):
            raise Cut
        return self.method(model, x, y, draws, companion)


REMEMBERING = ["Free AT", "IAAT", "CAT (customized)", "RST", "PC loss"]


@pytest.mark.parametrize("name", REMEMBERING)
def test_a_killed_run_ends_with_the_same_weights(name, digits, tmp_path):
    method = short(zoo.ZOO[name].method)
    compute = dataclasses.replace(QUIET, checkpoint_seconds=0)
    begin = lambda m, folder: training.start(
        network(), m, digits, Schedule(epochs=2, batch_size=16), 0, compute, folder
    )
    whole = training.train(begin(method, None))
    with pytest.raises(Cut):
        training.train(begin(Killed(method), tmp_path))
    again = begin(method, tmp_path)
    assert (again.at.epoch, again.at.step) == (1, 2)
    training.train(again)
    for (k, v), (_, w) in zip(
        whole.model.state_dict().items(), again.model.state_dict().items(), strict=True
    ):
        assert torch.equal(v, w), k


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
    text = json.dumps(runs.specification(row.method))
    assert runs.from_specification(json.loads(text)) == row.method
    assert row.pieces and row.place and row.cost >= 3


@pytest.mark.parametrize("name", zoo.ZOO)
def test_every_row_trains(name, digits):
    method = short(zoo.ZOO[name].method)
    t = training.start(
        network(), method, digits, Schedule(epochs=1, batch_size=16, lr=0.05), 0, QUIET
    )
    before = training.copy_weights(t.model)
    training.train(t)  # Diverged if a loss is not a number
    after = t.model.state_dict()
    assert all(torch.isfinite(v).all() for v in after.values())
    moved = [k for k, v in t.model.named_parameters() if not torch.equal(v.detach(), before[k])]
    assert len(moved) == len(list(t.model.parameters()))
    assert after["stages.0.2.num_batches_tracked"] in (3, 6, 9)


@pytest.mark.parametrize("name", zoo.ZOO)
def test_the_cost_is_what_is_counted(name, digits):
    row = zoo.ZOO[name]
    counted = zoo.forward_units(row.method, network(), digits)
    assert counted == pytest.approx(row.cost, abs=0.51) or (
        name in ("DAT", "FAT", "RWP") and counted < row.cost
    )


def test_only_methods_with_a_memory_have_companions(digits):
    for row in zoo.ZOO.values():
        pieces = [getattr(row.method, f.name) for f in dataclasses.fields(row.method)]
        assert hasattr(row.method, "companion") == (
            any(hasattr(p, "companion") for p in pieces) or isinstance(row.method, zoo.Free)
        )
    with pytest.raises(BadInput, match="0 pieces"):
        zoo.Accompanied().companion(network(), digits)


def test_the_table_has_a_line_for_every_method():
    table = zoo.zoo_table()
    assert list(table.index) == list(zoo.ZOO) and table.loc["Madry AT", "cost"] == 23
