"""The attacks against formulas in NumPy, against other libraries, and against misuse."""

import dataclasses
import itertools
import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from thesis_repro import attacks, data, models, robustness, speed, strong_attacks
from thesis_repro.attacks import FGSM, LOSSES, PGD, Ball, MomentumFGSM, distance
from thesis_repro.draws import Draws
from thesis_repro.files import BadInput
from thesis_repro.images import pixels
from thesis_repro.models import Diverged
from thesis_repro.pieces import from_specification, specification
from thesis_repro.robustness import evaluate, robust_accuracy
from thesis_repro.strong_attacks import APGD, LBFGS, AutoAttack, CarliniWagner

EPSILON = {"linf": 8 / 255, "l2": 0.5, "l1": 3.0}


class Linear(torch.nn.Module):
    "Softmax regression on flat images: whatever an attack should find of it is known."

    def __init__(self, classes=4, inputs=12, seed=0, scale=1.0):
        super().__init__()
        rng = np.random.default_rng(seed)
        self.weight = torch.nn.Parameter(torch.tensor(scale * rng.normal(size=(classes, inputs))))
        self.bias = torch.nn.Parameter(torch.tensor(rng.normal(size=classes)))

    def forward(self, x):
        return x.flatten(1) @ self.weight.to(x.dtype).T + self.bias.to(x.dtype)

    def arrays(self):
        return self.weight.detach().numpy(), self.bias.detach().numpy()


def inner(n=6, shape=(3, 2, 2), seed=0, low=0.3, high=0.7):
    "Float64 images away from black and white, and labels of four classes."
    rng = np.random.default_rng(seed)
    return torch.tensor(rng.uniform(low, high, (n, *shape))), torch.tensor(rng.integers(0, 4, n))


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def gradient_of_ce(model, flat, y):
    "∇_x of the cross entropy of softmax regression: Wᵀ(p − e_y), row by row."
    w, b = model.arrays()
    return np.stack(
        [w.T @ (softmax(w @ v + b) - np.eye(len(b))[t]) for v, t in zip(flat, y, strict=True)]
    )


# Networks that read digits, without a training whose outcome rounding could change


class Reader(torch.nn.Module):
    "Fixed random features and ridge regression, in closed form; a large `decay` is a defence."

    def __init__(self, images, decay, features=256):
        super().__init__()
        x = images.x_train.numpy().reshape(len(images.y_train), -1) / 255
        w = 6 * np.random.default_rng(0).normal(size=(x.shape[1], features)) / x.shape[1] ** 0.5
        h, target = np.tanh((x - x.mean(0)) @ w), np.eye(10)[images.y_train.numpy()] - 0.1
        v = 20 * np.linalg.solve(h.T @ h + decay * np.eye(features), h.T @ target)
        parts = (torch.tensor(a, dtype=torch.float32) for a in (x.mean(0), w, v))
        self.mean, self.w, self.v = map(torch.nn.Parameter, parts)

    def forward(self, x):
        return torch.tanh((x.flatten(1) - self.mean) @ self.w) @ self.v


@pytest.fixture(scope="session")
def digits():
    return data.load("faint10", train_size=1000, test_size=1000)


@pytest.fixture(scope="session")
def defended(digits):
    return Reader(digits, 1000.0)


@pytest.fixture(scope="session")
def plain(digits):
    return Reader(digits, 1.0)


# The losses, in plain Python


def reference_losses(z, y, p):
    "Every loss of one sample of float64 logits."
    k, others = len(z), [z[j] for j in range(len(z)) if j != y]
    ordered, q = sorted(z, reverse=True), softmax(z)
    return {
        "ce": -math.log(q[y]),
        "cw": max(others) - z[y],
        "kl": sum(p[j] * (math.log(p[j]) - math.log(q[j])) for j in range(k)),
        "dlr": -(z[y] - max(others)) / (ordered[0] - ordered[2]),
    }


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_their_gradients(name):
    rng = np.random.default_rng(0)
    z, y, p = (
        rng.normal(size=(20, 5)) * 2,
        rng.integers(0, 5, 20),
        softmax(rng.normal(size=(20, 5))),
    )
    logits = torch.tensor(z, requires_grad=True)
    ours = LOSSES[name](logits, torch.tensor(y), torch.tensor(p))
    expected = [reference_losses(*row)[name] for row in zip(z, y, p, strict=True)]
    np.testing.assert_allclose(ours.detach(), expected, rtol=1e-8, atol=1e-9)
    slopes, h = torch.autograd.grad(ours.sum(), logits)[0].numpy(), 1e-6
    for i in range(20):
        for j in range(5):
            ahead, behind = z[i].copy(), z[i].copy()
            ahead[j], behind[j] = ahead[j] + h, behind[j] - h
            slope = (
                reference_losses(ahead, y[i], p[i])[name]
                - reference_losses(behind, y[i], p[i])[name]
            ) / (2 * h)
            assert slopes[i, j] == pytest.approx(slope, abs=1e-5)


def test_targeted_dlr():
    rng = np.random.default_rng(1)
    z, y = rng.normal(size=(20, 6)), rng.integers(0, 6, 20)
    target = (y + rng.integers(1, 6, 20)) % 6
    ours = attacks.targeted_dlr_loss(torch.tensor(z), torch.tensor(y), torch.tensor(target))
    for loss, row, right, wrong in zip(ours, z, y, target, strict=True):
        o = sorted(row, reverse=True)
        assert loss.item() == pytest.approx(-(row[right] - row[wrong]) / (o[0] - (o[2] + o[3]) / 2))


def test_ratios_need_enough_classes():
    z, y = torch.zeros(1, 2), torch.zeros(1, dtype=torch.long)
    with pytest.raises(BadInput, match="at least 3 classes"):
        attacks.dlr_loss(z, y)
    with pytest.raises(BadInput, match="at least 4 classes"):
        attacks.targeted_dlr_loss(torch.zeros(1, 3), y, y)


# The ball


@pytest.mark.parametrize("norm", EPSILON)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("epsilon", [0.0, 1e-3, 0.1, 8 / 255, 0.7, 1.0])
def test_projection_stays_inside_exactly(norm, dtype, epsilon):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((200, 3, 6, 6), generator=generator, dtype=dtype)
    x[:50] = x[:50].round()  # black and white
    x[50:100] = (255 * x[50:100]).round() / 255  # what images on a disk have
    for size in (1e-4, 0.1, 10):
        z = Ball(x, epsilon, norm).project(
            x + size * torch.randn(x.shape, generator=generator, dtype=dtype)
        )
        assert z.dtype == dtype and z.min() >= 0 and z.max() <= 1
        if norm == "linf":
            assert ((z.double() - x.double()).abs() <= epsilon).all() and (
                (z - x).abs() <= epsilon
            ).all()
        assert (distance(z, x, norm) <= epsilon).all()
        own = torch.linalg.vector_norm(
            (z - x).flatten(1), {"linf": torch.inf, "l2": 2, "l1": 1}[norm], dim=1
        )
        assert (own <= epsilon).all()  # also when added up in float32


@pytest.mark.parametrize("norm", EPSILON)
def test_projection_is_the_nearest_point(norm):
    "(z − p) · (q − p) ≤ 0 for every q of a convex set: only the projection p of z has that."
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.uniform(0, 1, (40, 1, 3, 3)))
    x[:10] = x[:10].round()
    z = x + torch.tensor(rng.normal(size=x.shape)) * 0.4
    epsilon = {"linf": 0.2, "l2": 0.5, "l1": 1.0}[norm]
    ball = Ball(x, epsilon, norm)
    p = ball.project(z)
    assert (distance(p, x, norm) > epsilon * 0.999).any()
    for i in range(300):
        direction = torch.tensor(rng.normal(size=x.shape)) * rng.uniform(0, 1, (40, 1, 1, 1)) ** 3
        if i % 3 == 0:
            direction *= torch.tensor(rng.integers(0, 2, x.shape))
        q = (x + direction).clamp(0, 1)
        q = x + (q - x) * (epsilon / distance(q, x, norm).clamp(min=1e-9)).clamp(max=1).view(
            -1, 1, 1, 1
        )
        assert (((z - p) * (q - p)).flatten(1).sum(1) <= 1e-5).all()


def test_projection_leaves_what_is_inside():
    x, _ = inner()
    z = x + 1e-3
    assert all(
        torch.allclose(Ball(x, 0.5, norm).project(z), z, atol=1e-12, rtol=0) for norm in EPSILON
    )


def begun(ball: Ball, how: str, fill: float = 1.0) -> torch.Tensor:
    "Where an attack starts in a ball."
    return ball.start(how, ball.drawn(how, torch.Generator().manual_seed(0)), fill)


@pytest.mark.parametrize("norm", EPSILON)
def test_uniform_starts_fill_the_ball(norm):
    x = torch.full((4000, 1, 2, 2), 0.5, dtype=torch.float64)
    z = begun(Ball(x, 0.1, norm), "uniform")
    share = distance(z, x, norm) / 0.1
    # of a d-dimensional ball the part within the share r of the radius is r^d
    for r in (0.5, 0.8, 0.9):
        assert (share <= r).double().mean().item() == pytest.approx(r**4, abs=0.03)
    assert (z - x).mean((0, 1, 2, 3)).abs() < 0.002


def test_normal_start_is_that_of_trades():
    x = torch.full((2000, 1, 2, 2), 0.5)
    z = begun(Ball(x, 8 / 255), "normal")
    assert (z - x).std().item() == pytest.approx(0.001, rel=0.05)


ALL = [
    FGSM(),
    PGD(steps=3),
    PGD(steps=2, step=1.0, loss="cw"),
    PGD(steps=2, loss="kl", start="normal", restarts=2),
    PGD(steps=2, loss="dlr", targeted=True),
    PGD(0.5, 0.2, 3, norm="l2"),
    PGD(3.0, 1.0, 3, norm="l1"),
    PGD(0.0, 0.1, 2),
    MomentumFGSM(steps=3),
    APGD(steps=4),
    APGD(0.5, 4, norm="l2"),
    APGD(steps=2, loss="dlr-targeted", targets=2),
    LBFGS(searches=2, steps=4, epsilon=0.3),
    CarliniWagner(searches=2, steps=5, epsilon=8 / 255, norm="linf"),
    CarliniWagner(searches=2, steps=5, c=1.0, lr=0.05, epsilon=0.3),
]


@pytest.mark.parametrize("attack", ALL, ids=repr)
def test_every_result_is_in_the_ball(attack, digits, plain):
    x, y = pixels(digits.x_test[:4]), digits.y_test[:4]
    x[:2] = x[:2].round()
    before = x.clone()
    found = attack(plain, x, y, Draws(0))
    strong = hasattr(attack, "defeat")
    again = attack.defeat(plain, x, y, Draws(0)).found if strong else found
    for z in (found, again):
        assert z.min() >= 0 and z.max() <= 1 and not z.requires_grad and z.grad_fn is None
        assert (distance(z, x, attack.norm) <= attack.epsilon).all()
    assert torch.equal(x, before)
    assert torch.equal(found, attack(plain, x, y, Draws(0)))
    assert from_specification(json.loads(json.dumps(specification(attack)))) == attack


# Equations 2.18 to 2.21


def test_fgsm_is_equation_2_20():
    model, (x, y) = Linear(), inner()
    flat = x.flatten(1).numpy()
    expected = np.clip(flat + 0.05 * np.sign(gradient_of_ce(model, flat, y)), 0, 1)
    np.testing.assert_allclose(FGSM(0.05)(model, x, y, Draws(0)).flatten(1), expected, atol=1e-12)


def project_in_numpy(z, x, epsilon, norm):
    "The ball alone; the tests' images are so grey that the box is never met."
    d = z - x
    if norm == "linf":
        return x + np.clip(d, -epsilon, epsilon)
    if norm == "l2":
        return x + d * min(1, epsilon / np.linalg.norm(d))
    if np.abs(d).sum() <= epsilon:
        return z
    sizes = np.sort(np.abs(d))[::-1]
    t = max((sizes[: i + 1].sum() - epsilon) / (i + 1) for i in range(len(d)))
    return x + np.sign(d) * np.maximum(np.abs(d) - t, 0)


@pytest.mark.parametrize(
    "norm, epsilon, step", [("linf", 0.05, 0.02), ("l2", 0.1, 0.04), ("l1", 0.2, 0.08)]
)
def test_pgd_is_equation_2_21(norm, epsilon, step):
    model, (x, y) = Linear(), inner()
    flat = x.flatten(1).numpy()
    z = flat.copy()
    for _ in range(6):
        g = gradient_of_ce(model, z, y)
        for i in range(len(z)):
            if norm == "linf":
                move = np.sign(g[i])
            elif norm == "l2":
                move = g[i] / np.linalg.norm(g[i])
            else:  # a twentieth of 12 pixels is less than one: the steepest alone
                move = np.zeros(12)
                move[np.abs(g[i]).argmax()] = np.sign(g[i][np.abs(g[i]).argmax()])
            z[i] = project_in_numpy(z[i] + step * move, flat[i], epsilon, norm)
    ours = PGD(epsilon, step, 6, norm=norm, start="none")(model, x, y, Draws(0))
    np.testing.assert_allclose(ours.flatten(1), z, atol=1e-6)


@pytest.mark.parametrize("norm", EPSILON)
def test_equation_2_18_reaches_the_dual_norm(norm):
    "Over the p-ball, a linear margin w·x + b rises by ε‖w‖ in the dual norm, and not more."
    model, (x, _) = Linear(classes=2, inputs=300, scale=0.1), inner(5, (3, 10, 10))
    y, (w, b) = torch.zeros(5, dtype=torch.long), model.arrays()
    dual = {
        "linf": np.abs(w[1] - w[0]).sum(),
        "l2": np.linalg.norm(w[1] - w[0]),
        "l1": np.abs(w[1] - w[0]).max(),
    }[norm]
    epsilon = {"linf": 0.05, "l2": 0.3, "l1": 0.3}[norm]
    expected = x.flatten(1).numpy() @ (w[1] - w[0]) + b[1] - b[0] + epsilon * dual
    for a in [PGD(epsilon, epsilon, 200, norm=norm, loss="cw")] + (
        [APGD(epsilon, 50, norm, "cw")] if norm != "l1" else []
    ):
        reached = attacks.margin_loss(model(a(model, x, y, Draws(0))), y).detach()
        # a step of L1 is shared by 15 pixels where a single one would be best: it comes near
        short = 1e-4 if norm != "l1" else 0.25 * epsilon * dual
        np.testing.assert_allclose(reached, expected, atol=short, rtol=0)
        assert (reached.numpy() <= expected + 1e-9).all()


def test_szegedys_objective_is_equation_2_19():
    model, (x, _) = Linear(), inner()
    z, target = x + 0.01 * torch.arange(12).view(3, 2, 2), torch.tensor([1, 2, 3, 0, 1, 2])
    values, slopes = strong_attacks.szegedy_objective(model, x, z, target, 0.7)
    w, b = model.arrays()
    for i in range(6):
        r, v = (z - x)[i].flatten().numpy(), z[i].flatten().numpy()
        p = softmax(w @ v + b)
        assert values[i].item() == pytest.approx(0.7 * np.linalg.norm(r) - math.log(p[target[i]]))
        slope = 0.7 * r / np.linalg.norm(r) + w.T @ (p - np.eye(4)[target[i]])
        np.testing.assert_allclose(slopes[i].flatten(), slope, atol=1e-10)
    _, at_x = strong_attacks.szegedy_objective(model, x, x, target, 0.7)
    np.testing.assert_allclose(
        at_x.flatten(1), gradient_of_ce(model, x.flatten(1).numpy(), target), atol=1e-10
    )


def nearest_change(model, x, y, target=None):
    "Each image's L2 distance to the plane where `target`, or any class, overtakes y; no box."
    (w, b), far = model.arrays(), []
    for v, right in zip(x.flatten(1).numpy(), y.tolist(), strict=True):
        z = w @ v + b
        wrong = [j for j in range(len(z)) if j != right] if target is None else [target]
        far.append(min((z[right] - z[j]) / np.linalg.norm(w[j] - w[right]) for j in wrong))
    return np.array(far)


def test_lbfgs_and_carlini_wagner_find_the_smallest_change():
    model, (x, _) = Linear(classes=2, scale=0.5), inner(3)
    y = model(x).argmax(1)
    found = LBFGS(searches=10)(model, x, y, Draws(0))
    assert (model(found).argmax(1) != y).all()
    np.testing.assert_allclose(distance(found, x, "l2"), nearest_change(model, x, y), rtol=0.05)
    model, (x, _) = Linear(scale=0.5), inner(5)
    y = model(x).argmax(1)
    found = CarliniWagner(searches=6, steps=300, c=0.1)(model, x, y, Draws(0))
    assert (model(found).argmax(1) != y).all()
    np.testing.assert_allclose(distance(found, x, "l2"), nearest_change(model, x, y), rtol=0.05)


def test_lbfgs_goes_to_the_class_asked_for():
    model, (x, _) = Linear(scale=0.5), inner(3)
    target = (model(x).argmax(1) + 1) % 4
    assert torch.equal(model(LBFGS(targeted=True)(model, x, target, Draws(0))).argmax(1), target)


def test_carlini_wagners_objective():
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(4, 5)), np.array([0, 1, 2, 3])
    x = rng.uniform(size=(2, 4, 1, 2, 2))
    ours = strong_attacks.cw_objective(
        *map(torch.tensor, (z, y, x[0], x[1])), c=3.0, confidence=0.5
    )
    for i in range(4):
        lead = z[i][y[i]] - max(z[i][j] for j in range(5) if j != y[i])
        assert ours[i].item() == pytest.approx(
            ((x[1][i] - x[0][i]) ** 2).sum() + 3 * max(lead, -0.5)
        )


@pytest.mark.parametrize("norm", EPSILON)
@pytest.mark.parametrize("epsilon", [0.02, 0.3, 1.0])
def test_the_default_step_reaches_the_whole_ball(norm, epsilon):
    "Fault of round 2: with a step of 2/255 in every norm, an L2 ball of radius 1 was not crossed."
    model, (x, _) = Linear(classes=2, inputs=300, scale=0.01), inner(5, (3, 10, 10))
    y, (w, b) = torch.zeros(5, dtype=torch.long), model.arrays()
    d = w[1] - w[0]
    dual = {"linf": np.abs(d).sum(), "l2": np.linalg.norm(d), "l1": np.abs(d).max()}[norm]
    attack = PGD(epsilon, steps=100, norm=norm, loss="cw")
    assert attack.stride == epsilon / 4
    reached = attacks.margin_loss(model(attack(model, x, y, Draws(0))), y).detach().numpy()
    before = x.flatten(1).numpy() @ d + b[1] - b[0]
    inside = norm != "linf" or epsilon < 0.3  # else the box, and not the ball, is the limit
    share = (reached - before) / (epsilon * dual)
    assert (share <= 1 + 1e-9).all() and (not inside or (share > 0.7).all())


def test_a_quarter_of_the_radius_is_the_default_step():
    assert PGD(step=2 / 255) == PGD() and specification(PGD(step=2 / 255)) == {"is": "PGD"}
    assert PGD().stride == 2 / 255 and PGD(step=0.01).stride == 0.01
    assert PGD(1.0, norm="l2").stride == 0.25


@pytest.mark.parametrize("norm", EPSILON)
def test_a_radius_of_its_own_for_every_sample(norm):
    model, (x, y) = Linear(), inner()
    radii = torch.tensor([0.0, 0.01, 0.02, 0.05, 0.1, 0.2], dtype=torch.float64)
    attack = PGD(0.08, norm=norm, steps=20, start="none")
    together = attack(model, x, y, Draws(0), radius=radii)
    for i, radius in enumerate(radii.tolist()):
        alone = dataclasses.replace(attack, epsilon=radius, step=attack.stride)
        expected = alone(model, x[i : i + 1], y[i : i + 1], Draws(0))
        torch.testing.assert_close(together[i : i + 1], expected, rtol=0, atol=1e-9)
    assert (distance(together, x, norm) <= radii + 1e-12).all()
    drawn = PGD(0.08, norm=norm, steps=1, step=0.0)(model, x, y, Draws(0), radius=radii)
    assert (distance(drawn, x, norm) <= radii).all() and (distance(drawn, x, norm) > 0).sum() == 5


@pytest.mark.parametrize("norm", EPSILON)
def test_a_search_that_drops_keeps_each_sample_in_its_own_ball(norm, digits, plain):
    x, y = pixels(digits.x_test[:80]), digits.y_test[:80]
    radii = torch.linspace(0, EPSILON[norm], 80)
    attack = PGD(EPSILON[norm], norm=norm)
    found = attack.search(plain, x, y, Draws(0), drop=True, radius=radii)
    assert 0 < found.hit.sum() < 80
    assert (distance(found.found, x, norm) <= radii.double()).all()


def test_a_rule_stops_each_sample_for_good():
    "Sample i stops at step i; the others go on, and those that stopped do not move again."
    model, (x, y), steps = Linear(scale=0.1), inner(), []

    def rule(z, logits, gradient):
        assert z.shape == x.shape and logits.shape == (6, 4) and gradient.shape == x.shape
        steps.append(z)
        return torch.arange(6) == len(steps) - 1  # says so once: it must be remembered

    last = PGD(0.2, 0.01, 5, start="none")(model, x, y, Draws(0), stop=rule)
    for k, (now, after) in enumerate(itertools.pairwise([*steps, last])):
        moved = (after != now).flatten(1).any(1)
        assert torch.equal(moved, torch.arange(6) > k)
    calls = []
    PGD()(model, x, y, Draws(0), seen=lambda *c: calls.append(c), stop=lambda z, *_: y > -1)
    assert len(calls) == 1  # nobody moves: nothing is left to do


def test_a_start_may_fill_a_share_of_the_ball():
    x = torch.full((500, 1, 2, 2), 0.5, dtype=torch.float64)
    z = begun(Ball(x, 0.1), "uniform", 0.1)
    assert 0.0095 < distance(z, x).max() <= 0.01 + 1e-12


def test_momentum_adds_up_normalised_gradients():
    model, (x, y) = Linear(), inner()
    flat = x.flatten(1).numpy()
    z, velocity = flat.copy(), np.zeros_like(flat)
    for _ in range(5):
        g = gradient_of_ce(model, z, y)
        velocity = 0.8 * velocity + g / np.abs(g).sum(1, keepdims=True)
        z = np.clip(z + 0.01 * np.sign(velocity), flat - 0.05, flat + 0.05)
    ours = MomentumFGSM(0.05, 5, decay=0.8)(model, x, y, Draws(0))
    np.testing.assert_allclose(ours.flatten(1), z, atol=1e-9)


# APGD's own parts


def test_checkpoints_of_the_paper():
    assert strong_attacks.checkpoints(100) == [0, 22, 41, 57, 70, 80, 87, 93, 99]


def ascent(**changes):
    z = torch.zeros(4, 1, 1, 1)
    state = {
        "z": z + 2,
        "before": z,
        "gradient": z + 3,
        "best": z + 7,
        "best_gradient": z + 9,
        "step": z + 1,
    }
    state |= {"loss": torch.full((4,), 1.0), "best_loss": torch.tensor([5.0, 6, 5, 6])}
    state |= {"rises": torch.tensor([8.0, 7, 8, 8]), "checked_loss": torch.full((4,), 5.0)}
    state |= {"halved": torch.tensor([False, False, True, False])}
    return strong_attacks._Ascent(**{**state, **changes})


def test_look_back_halves_on_either_condition():
    a = ascent()
    strong_attacks._look_back(a, 10)
    # 8 of 10 rises, no better best: halved unless it was before; 7 of 10: halved; a better best
    # and 8: not (three in four exactly are enough: below)
    assert a.halved.tolist() == [True, True, False, False]
    assert a.step.flatten().tolist() == [0.5, 0.5, 1, 1]
    assert a.z.flatten().tolist() == [7, 7, 2, 2] and a.gradient.flatten().tolist() == [9, 9, 3, 3]
    assert (
        a.loss.tolist() == [5, 6, 1, 1]
        and not a.rises.any()
        and a.checked_loss.tolist() == [5, 6, 5, 6]
    )
    a = ascent(rises=torch.tensor([3.0, 3, 3, 3]))
    strong_attacks._look_back(a, 4)
    assert a.halved.tolist() == [True, False, False, False]


def test_advance_has_momentum():
    x = torch.full((4, 1, 1, 1), 0.5)
    a = ascent(
        z=x + 0.1, before=x + 0.02, gradient=-torch.ones_like(x), step=torch.full_like(x, 0.04)
    )
    strong_attacks._advance(a, Ball(x, 0.2), first=False)
    # plain: 0.6 − 0.04; then 0.6 + 0.75 (−0.04) + 0.25 (0.08)
    assert a.z.flatten().tolist() == pytest.approx(
        [0.59] * 4
    ) and a.before.flatten().tolist() == pytest.approx([0.6] * 4)
    strong_attacks._advance(a, Ball(x, 0.2), first=True)
    assert a.z.flatten().tolist() == pytest.approx([0.55] * 4)


def test_record_keeps_the_best():
    a = ascent(loss=torch.tensor([1.0, 1, 1, 1]), rises=torch.zeros(4))
    new = torch.full((4, 1, 1, 1), 4.0)
    strong_attacks._record(a, new, torch.tensor([6.0, 4, 1, 0.5]))
    assert a.best.flatten().tolist() == [2, 7, 7, 7] and a.best_gradient.flatten().tolist() == [
        4,
        9,
        9,
        9,
    ]
    assert a.rises.tolist() == [1, 1, 0, 0] and a.best_loss.tolist() == [6, 6, 5, 6]


# Against other libraries


def same_start(shape):
    "One pattern for every sample: two attacks can also differ by their luck with the start."
    pattern = np.random.default_rng(0).random((1, *shape[1:]), dtype=np.float32)
    return torch.from_numpy(pattern).expand(shape).clone()


@pytest.mark.parametrize(
    "norm, epsilon, loss",
    [("linf", 8 / 255, "ce"), ("l2", 0.4, "ce"), ("linf", 8 / 255, "dlr-targeted")],
)
def test_apgd_is_not_weaker_than_pyautoattack(norm, epsilon, loss, digits, defended, monkeypatch):
    base = pytest.importorskip(
        "pyautoattack.autopgd_base", reason='needs the reference: pip install "thesis-repro[eval]"'
    )
    kind, name = (
        (base.APGDAttack if loss == "ce" else base.APGDAttack_targeted),
        norm.replace("l", "L", 1),
    )
    steps, size = (20, 1000) if loss == "ce" else (20, 500)
    x, y = digits.x_test[:size], digits.y_test[:size]
    with monkeypatch.context() as m, torch.random.fork_rng(), torch.no_grad():
        m.setattr(torch, "rand", same_start)
        m.setattr(torch, "randn", lambda shape: 2 * same_start(shape) - 1)
        reference = kind(defended, n_iter=steps, norm=name, eps=epsilon, seed=0, device="cpu")
        theirs = (defended(reference.perturb(pixels(x), y)).argmax(1) == y).sum().item()

    def unit(x, norm, generator):
        t = 2 * same_start(x.shape) - 1
        return t / torch.linalg.vector_norm(t.flatten(1), attacks.NORMS[norm], dim=1).view(
            -1, 1, 1, 1
        )

    monkeypatch.setattr(attacks, "_uniform", unit)
    ours = sum(
        robust_accuracy(defended, x, y, APGD(epsilon, steps, norm, loss), batch_size=1000)[
            "correct"
        ]
    )
    assert 0.1 * size < ours < 0.8 * size  # else nothing is compared
    assert ours <= theirs + 0.002 * size
    # in L2 our projection is the exact one, and finds more
    assert ours >= theirs - (0.002 if norm == "linf" else 0.01) * size


def test_pgd_is_foolboxes(digits, defended):
    foolbox = pytest.importorskip("foolbox", reason="an independent PGD: the extra peers has it")
    x, y = pixels(digits.x_test), digits.y_test
    other = foolbox.PyTorchModel(defended, bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.LinfPGD(abs_stepsize=2 / 255, steps=10, random_start=False)
    _, theirs, _ = attack(other, x, y, epsilons=8 / 255)
    last = PGD(start="none")(defended, x, y, Draws(0))
    theirs, share = (
        100 * (defended(theirs).argmax(1) == y).float().mean().item(),
        (last - theirs).abs() < 1e-6,
    )
    assert share.float().mean() > 0.99
    assert 100 * (defended(last).argmax(1) == y).float().mean().item() == pytest.approx(
        theirs, abs=0.2
    )
    found = robust_accuracy(defended, digits.x_test, y, PGD(start="none"))["accuracy"]
    assert found <= theirs + 0.2


def test_autoattack_is_pyautoattacks(digits, plain):
    pytest.importorskip(
        "pyautoattack", reason='needs the reference: pip install "thesis-repro[eval]"'
    )
    state = torch.get_rng_state()
    outcome = robust_accuracy(plain, digits.x_test[:12], digits.y_test[:12], AutoAttack(0.4))
    assert outcome["accuracy"] == 0
    x, y = pixels(digits.x_test[:12]), digits.y_test[:12]
    found = AutoAttack(0.4)(plain, x, y, Draws(0))
    assert (distance(found, x) <= 0.4).all() and torch.equal(
        found, AutoAttack(0.4)(plain, x, y, Draws(0))
    )
    assert torch.equal(state, torch.get_rng_state())


def test_autoattack_gives_the_library_images_and_gradients_that_it_can_view(monkeypatch):
    class Library:
        def __init__(self, model, **_):
            self.model, self.fab = model, SimpleNamespace(n_target_classes=9)
            self.apgd_targeted = self.fab

        def run_standard_evaluation(self, x, y, batch_size):
            z = x.clone().requires_grad_()
            gradient = torch.autograd.grad(self.model(z).sum(), z)[0]
            return x + 0.01 * gradient.view(len(x), -1).sign().view(x.shape), y

    monkeypatch.setattr(strong_attacks, "pyautoattack", lambda: SimpleNamespace(AutoAttack=Library))
    x = torch.rand(4, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    net = models.build("resnet18", 10, 0.0625)
    assert not torch.equal(AutoAttack()(net, x, torch.arange(4), Draws(0)), x)


@pytest.mark.parametrize("classes", [10, 4])
def test_autoattack_is_the_standard_ensemble(monkeypatch, classes):
    told = {}

    class Library:
        def __init__(self, model, **how):
            told.update(how)
            self.apgd_targeted, self.fab = (SimpleNamespace(n_target_classes=9) for _ in "ab")

        def run_standard_evaluation(self, x, y, batch_size):
            told["targets"] = self.apgd_targeted.n_target_classes, self.fab.n_target_classes
            return x, y

    monkeypatch.setattr(strong_attacks, "pyautoattack", lambda: SimpleNamespace(AutoAttack=Library))
    net = models.build("resnet18", classes, 0.0625)
    AutoAttack()(net, torch.rand(4, 3, 8, 8), torch.arange(4), Draws(0))
    assert told["targets"] == (classes - 1, classes - 1)
    assert (told["norm"], told["eps"], told["version"]) == ("Linf", 8 / 255, "standard")


def test_autoattack_says_what_to_install(monkeypatch, digits, plain):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(BadInput, match=r'pip install "thesis-repro\[eval\]"'):
        robust_accuracy(plain, digits.x_test[:4], digits.y_test[:4], AutoAttack())


# What an attack leaves behind


@pytest.mark.parametrize("bn", ["eval", "train"])
@pytest.mark.parametrize("mode", [True, False])
def test_no_traces(bn, mode, digits):
    model = models.build("preactresnet18", 10, 0.125, seed=0).train(mode)
    x, y = pixels(digits.x_test[:16]), digits.y_test[:16]
    frozen, *others = model.parameters()
    frozen.requires_grad_(False)
    model.stages[1].eval()
    F.cross_entropy(model(x), y).backward()
    gradients = [p.grad.clone() for p in others]
    state, modes = (
        {k: v.clone() for k, v in model.state_dict().items()},
        [m.training for m in model.modules()],
    )

    def untouched():
        assert (
            not frozen.requires_grad
            and frozen.grad is None
            and all(p.requires_grad for p in others)
        )
        assert all(torch.equal(p.grad, g) for p, g in zip(others, gradients, strict=True))
        assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
        assert modes == [m.training for m in model.modules()]
        assert all(
            m.track_running_stats for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)
        )

    for attack in (
        PGD(steps=2, bn=bn),
        APGD(steps=2, bn=bn),
        CarliniWagner(steps=2, searches=1, bn=bn),
    ):
        attack(model, x, y, Draws(0))
        untouched()
        robust_accuracy(model, digits.x_test[:16], y, attack)
        untouched()
    with pytest.raises(ZeroDivisionError):
        PGD(bn=bn)(model, x, y, Draws(0), seen=lambda *_: 1 / 0)
    untouched()
    with torch.no_grad():  # as inside an evaluation
        assert not torch.equal(PGD(steps=2, bn=bn, start="none")(model, x, y, Draws(0)), x)


def test_no_gradient_goes_to_the_parameters(digits, plain):
    "A pass backwards to them would nearly double the cost under torch.compile, unseen in .grad."
    asked = []
    handle = plain.register_forward_hook(
        lambda m, *_: asked.extend(p.requires_grad for p in m.parameters())
    )
    for attack in (
        FGSM(),
        PGD(steps=1),
        APGD(steps=1),
        CarliniWagner(steps=1, searches=1),
        LBFGS(searches=1, steps=1),
    ):
        attack(plain, pixels(digits.x_test[:2]), digits.y_test[:2], Draws(0))
    handle.remove()
    assert asked and sum(asked) <= len(
        list(plain.parameters())
    )  # L-BFGS's look at the number of classes


def test_bn_decides_the_statistics(digits):
    model = models.build("resnet18", 10, 0.125, seed=0)
    x, y = pixels(digits.x_test[:16]), digits.y_test[:16]
    logits = {}
    for bn in ("eval", "train"):
        PGD(steps=1, start="none", bn=bn)(
            model, x, y, Draws(0), seen=lambda i, z, out, bn=bn: logits.update({bn: out})
        )
    with torch.no_grad():
        torch.testing.assert_close(logits["eval"], model.eval()(x))
        torch.testing.assert_close(logits["train"], model.train()(x), rtol=1e-4, atol=1e-4)


def test_seen_is_called_at_every_iterate(plain, digits):
    x, y, calls = pixels(digits.x_test[:8]), digits.y_test[:8], []
    found = PGD(steps=4)(plain, x, y, Draws(3), seen=lambda *c: calls.append(c))
    assert [c[0] for c in calls] == [0, 1, 2, 3]
    with torch.no_grad():
        for _, z, logits in calls:
            torch.testing.assert_close(plain(z), logits)
    low, high = Ball(x, 8 / 255).faces
    step = ((found - calls[-1][1]).abs() - 2 / 255).abs() < 1e-6
    assert (step | (found == low) | (found == high)).float().mean() > 0.99


def test_a_hit_is_worse_than_any_loss():
    logits = torch.tensor(
        [[3.0, 2.9, 2.9], [2.0, 2.1, -9.0], [0.0, 0.1, -9.0], [5.0, 0.0, 0.0]]
    )  # of y = 0
    x, y = torch.zeros(1, 1, 1, 4), torch.zeros(1, dtype=torch.long)

    def loss(z, y):
        return F.cross_entropy(z, y, reduction="none")

    for order in itertools.permutations(range(4)):
        s = attacks.Search(lambda z: logits[z[:, 0, 0, 0].long()], loss, x, y, (y,), remember=True)
        for i in order:
            attacks.look(s, torch.full_like(x, i))
        # the first has the highest loss (1.03) but is right; of the two that are wrong, the worse
        worst = max((1, 2), key=lambda i: loss(logits[i : i + 1], y).item())
        assert s.hit.all() and s.found[0, 0, 0, 0] == worst


# Restarts, targets, scale


def test_restarts_keep_the_worst(digits, defended):
    x, y = pixels(digits.x_test[:300]), digits.y_test[:300]

    def stands(z):
        return (defended(z).argmax(1) == y).sum().item()

    one, three = (PGD(steps=3, restarts=r)(defended, x, y, Draws(0)) for r in (1, 3))
    assert stands(three) <= stands(one)

    def loss(z):
        return F.cross_entropy(defended(z), y, reduction="none")

    same = (defended(one).argmax(1) == y) == (defended(three).argmax(1) == y)
    assert (loss(three) >= loss(one) - 1e-4)[same].all() and (loss(three) > loss(one) + 1e-4).any()


def test_targeted_goes_towards_the_class(digits, plain):
    x, y = pixels(digits.x_test[:100]), digits.y_test[:100]
    target = (y + 1) % 10
    found = PGD(0.2, 0.05, targeted=True)(plain, x, target, Draws(0))
    assert (plain(found).argmax(1) == target).float().mean() > 0.7
    aimed = attacks.random_targets(plain, x, y, Draws(0))
    assert (aimed != y).all() and aimed.unique().numel() == 10
    assert (
        robust_accuracy(plain, digits.x_test[:100], y, PGD(0.2, 0.05, targeted=True))["accuracy"]
        < 10
    )


def test_scaled_logits_undo_a_mask(digits, defended):
    class Loud(torch.nn.Module):
        def forward(self, z):
            return 1e4 * defended(z)

    loud = Loud()
    loud.inner = defended
    x, y = digits.x_test[:200], digits.y_test[:200]
    open_, masked, scaled = (
        robust_accuracy(m, x, y, PGD(logit_scale=s))["correct"]
        for m, s in ((defended, 1.0), (loud, 1.0), (loud, 1e-4))
    )
    assert sum(masked) > sum(open_) and sum(scaled) == pytest.approx(sum(open_), abs=1)


def test_zero_gradients_do_no_harm(digits):
    class Flat(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.p = torch.nn.Parameter(torch.zeros(1))

        def forward(self, z):
            return z.flatten(1)[:, :10] * 0 + torch.arange(10.0)

    x, y = pixels(digits.x_test[:4]), torch.full((4,), 9)
    for attack in ALL:
        if not isinstance(attack, LBFGS):
            assert attack(Flat(), x, y, Draws(0)).isfinite().all()


# Evaluation


class Counting(torch.nn.Module):
    "A network that counts the images it sees."

    def __init__(self, inner):
        super().__init__()
        self.inner, self.images = inner, 0

    def forward(self, x):
        self.images += len(x)
        return self.inner(x)


@pytest.mark.parametrize(
    "attack",
    [PGD(steps=20), APGD(steps=20), MomentumFGSM(steps=20)],
    ids=lambda a: type(a).__name__,
)
def test_the_fallen_leave(attack, digits, plain, defended):
    x, y = digits.x_test[:200], digits.y_test[:200]
    weak, strong = Counting(plain), Counting(defended)
    fallen, standing = robust_accuracy(weak, x, y, attack), robust_accuracy(strong, x, y, attack)
    assert fallen["accuracy"] < standing["accuracy"]
    clean = [sum(robust_accuracy(m, x, y, None)["correct"]) for m in (plain, defended)]
    # all the way, each correct image would pass 20 times, and twice to see where it ended
    assert weak.images < 0.85 * (200 + 22 * clean[0]) and strong.images < 0.95 * (
        200 + 22 * clean[1]
    )
    whole = attack(defended, pixels(x), y, Draws(0, step=0))  # nobody leaves: not stronger
    with torch.no_grad():
        alone = (defended(whole).argmax(1) == y) & (defended(pixels(x)).argmax(1) == y)
    assert sum(standing["correct"]) <= alone.sum().item() + 2


def test_outcomes_do_not_depend_on_who_leaves(digits, plain):
    x, y = pixels(digits.x_test[:64]), digits.y_test[:64]
    found = PGD(2 / 255, 0.5 / 255).defeat(plain, x, y, Draws(0)).found
    course = []
    last = PGD(2 / 255, 0.5 / 255)(
        plain, x, y, Draws(0), seen=lambda i, z, logits: course.append((z, logits.argmax(1) != y))
    )
    course.append((last, plain(last).argmax(1) != y))
    expected = x.clone()
    for z, wrong in reversed(course):  # the first at which it fell
        expected[wrong] = z[wrong]
    ever = torch.stack([w for _, w in course]).any(0)
    expected[~ever] = last[~ever]
    assert 0 < ever.sum() < 64
    assert ((found - expected).abs() < 1e-6).flatten(1).all(1).float().mean() > 0.95


def test_an_evaluation_stops_and_goes_on(tmp_path, digits, plain):
    x, y, file = digits.x_test[:90], digits.y_test[:90], tmp_path / "deep" / "outcomes.json"

    @dataclasses.dataclass(frozen=True)
    class Mortal:
        fail_at: int = -1

        def __call__(self, model, x, y, draws, seen=None):
            if draws.step == self.fail_at:
                raise KeyboardInterrupt
            calls.append(draws.step)
            return PGD()(model, x, y, draws)

        def __repr__(self):
            return "Mortal"

    calls = []
    whole = robust_accuracy(plain, x, y, Mortal(), batch_size=30)
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        robust_accuracy(plain, x, y, Mortal(60), batch_size=30, file=file)
    assert calls == [0, 30]
    assert robust_accuracy(plain, x, y, Mortal(), batch_size=30, file=file) == whole
    assert calls == [0, 30, 60]
    assert robust_accuracy(plain, x, y, Mortal(), batch_size=30, file=file) == whole and calls == [
        0,
        30,
        60,
    ]
    assert [f.name for f in file.parent.iterdir()] == ["outcomes.json"]
    with pytest.raises(BadInput, match="another evaluation"):
        robust_accuracy(plain, x, y, Mortal(), batch_size=30, seed=1, file=file)
    other = models.build("resnet18", 10, 0.125, 3, digits.mean, digits.std, seed=9)
    with pytest.raises(BadInput, match="another evaluation"):
        robust_accuracy(other, x, y, Mortal(), batch_size=30, file=file)
    with pytest.raises(BadInput, match="another evaluation"):
        robust_accuracy(plain, x.flip(0), y, Mortal(), batch_size=30, file=file)
    file.write_text("{")
    with pytest.raises(BadInput, match="remove it"):
        robust_accuracy(plain, x, y, Mortal(), batch_size=30, file=file)


def test_transfer_is_judged_by_the_target(digits, plain, defended):
    x, y = digits.x_test[:200], digits.y_test[:200]
    own = robust_accuracy(defended, x, y, PGD())
    transferred = robust_accuracy(defended, x, y, PGD(), source=plain)
    assert own["accuracy"] < transferred["accuracy"]
    with torch.no_grad():
        clean = defended(pixels(x)).argmax(1) == y
        where = clean.nonzero().squeeze(1)
        made = PGD()(plain, pixels(x)[where], y[where], Draws(0))
        clean[where] = defended(made).argmax(1) == y[where]
    assert abs(clean.sum().item() - sum(transferred["correct"])) <= 1


class Wavering(torch.nn.Module):
    "Under autocast it answers wrongly whatever it sees; in float32 never."

    def __init__(self):
        super().__init__()
        self.p = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        sign = -1 if torch.is_autocast_enabled("cpu") else 1
        return sign * torch.stack(
            [1 + 0 * x.flatten(1).sum(1), 0.1 * x.flatten(1).sum(1), -x.flatten(1).sum(1)], 1
        )


def test_bf16_alone_cannot_make_a_sample_fall():
    x, y = torch.zeros(5, 1, 2, 2, dtype=torch.uint8), torch.zeros(5, dtype=torch.long)
    for attack in (PGD(), APGD(steps=3)):
        assert robust_accuracy(Wavering(), x, y, attack, bf16=True)["accuracy"] == 100
    s = attacks.Search(Wavering(), LOSSES["ce"], pixels(x), y, (y, y), drop=True)
    with torch.autocast("cpu", torch.bfloat16):
        attacks.look(s, pixels(x))  # else it would be left alone from here on
    assert not s.hit.any()


def test_bf16_gives_float32s_verdict(digits, defended):
    for attack in (PGD(), APGD(steps=20)):
        full, half = (
            robust_accuracy(defended, digits.x_test, digits.y_test, attack, bf16=b)
            for b in (False, True)
        )
        assert half["accuracy"] <= full["accuracy"] + 0.3


def test_accuracy_falls_with_the_radius(digits, defended):
    x, y = digits.x_test[:100], digits.y_test[:100]
    rows = robustness.accuracy_over_epsilon(defended, x, y, PGD(), [8 / 255, 0.0, 1.0, 2 / 255])
    assert [r["epsilon"] for r in rows] == [0.0, 2 / 255, 8 / 255, 1.0] and all(
        r["n"] == 100 for r in rows
    )
    assert rows[0]["accuracy"] == robust_accuracy(defended, x, y, None)["accuracy"]
    assert rows[0]["accuracy"] > rows[2]["accuracy"] > rows[3]["accuracy"] == 0
    assert all(a["accuracy"] >= b["accuracy"] for a, b in itertools.pairwise(rows))


def test_compiled_and_channels_last_networks(digits):
    x, net = digits.x_test[:100], models.build("resnet18", 10, 0.125, seed=0).eval()
    y = net(pixels(x)).argmax(1)
    outcomes = []
    for model in (net, torch.compile(net, backend="eager", dynamic=True)):
        outcomes.append(robust_accuracy(model, x, y, PGD(0.5 / 255))["correct"])
    assert 0 < sum(outcomes[0]) < 100 and sum(a != b for a, b in zip(*outcomes, strict=True)) <= 1
    images = pixels(x).contiguous(memory_format=torch.channels_last)
    for attack in (PGD(steps=2), PGD(0.5, 0.1, 2, norm="l2"), APGD(steps=3), MomentumFGSM(steps=2)):
        iterates = []
        attack(net, images, y, Draws(0), seen=lambda i, z, _, to=iterates: to.append(z))
        assert all(z.is_contiguous(memory_format=torch.channels_last) for z in iterates), attack


class Loud(torch.nn.Module):
    "A network a billion times as loud where the first pixel is white: its cross entropy is flat."

    def __init__(self, quiet):
        super().__init__()
        self.quiet = quiet

    def forward(self, z):
        return self.quiet(z) * torch.where(z[:, :1, 0, 0] > 0.5, 1e9, 1.0)


def test_samples_without_a_gradient_are_counted(tmp_path, digits, plain):
    x = digits.x_test[:90].clone()
    x[:, :, 0, 0] = 0
    y = plain(pixels(x)).argmax(1)
    x[:45, 0, 0, 0] = 255
    loud, half = Loud(plain), PGD(4 / 255, start="none")
    y[:45] = loud(pixels(x[:45])).argmax(1)
    y[:5], y[45:55] = (y[:5] + 1) % 10, (y[45:55] + 1) % 10  # wrong already: never attacked
    outcome = robust_accuracy(loud, x, y, half)
    assert outcome["flat"] == pytest.approx(100 * 40 / 75) and outcome["n"] == 90
    assert outcome["correct"][5:45] == [True] * 40 and not all(outcome["correct"][55:])
    assert (
        robust_accuracy(loud, x, y, PGD(4 / 255, logit_scale=1e-9))["correct"][5:45] != [True] * 40
    )
    assert robust_accuracy(plain, x[45:], y[45:], APGD(steps=2))["flat"] == 0
    for attack in (None, CarliniWagner(steps=2, searches=1)):
        assert robust_accuracy(plain, x[:9], y[:9], attack)["flat"] is None
    file = tmp_path / "outcomes.json"
    whole = robust_accuracy(loud, x, y, half, batch_size=30)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(PGD, "defeat", stops_at(60, PGD.defeat))
        with pytest.raises(KeyboardInterrupt):
            robust_accuracy(loud, x, y, half, batch_size=30, file=file)
    assert robust_accuracy(loud, x, y, half, batch_size=30, file=file) == whole == outcome


def stops_at(step, defeat):
    "A `defeat` that is interrupted at the batch that begins at `step`."

    def interrupted(self, model, x, y, draws):
        if draws.step == step:
            raise KeyboardInterrupt
        return defeat(self, model, x, y, draws)

    return interrupted


def test_every_flipped_character_of_the_outcomes_is_noticed(tmp_path, digits, plain):
    x, y, file = digits.x_test[:40], digits.y_test[:40], tmp_path / "outcomes.json"
    whole = robust_accuracy(plain, x, y, PGD(4 / 255), batch_size=20, file=file)
    written = json.loads(file.read_text())
    assert robust_accuracy(plain, x, y, PGD(4 / 255), batch_size=20, file=file) == whole
    for part in ("outcomes", "flat"):
        for i in range(40):
            other = "0" if written[part][i] == "1" else "1"
            changed = written[part][:i] + other + written[part][i + 1 :]
            file.write_text(json.dumps({**written, part: changed}))
            with pytest.raises(BadInput, match=r"damaged .*: remove it"):
                robust_accuracy(plain, x, y, PGD(4 / 255), batch_size=20, file=file)
    del written["checksum"]  # as version 0.1 wrote it
    file.write_text(json.dumps(written))
    with pytest.raises(BadInput, match="remove it"):
        robust_accuracy(plain, x, y, PGD(4 / 255), batch_size=20, file=file)


@pytest.mark.parametrize("attack", [PGD(steps=3), PGD(1.0, 0.2, 4, "l2"), PGD(steps=1)], ids=repr)
def test_steps_that_cannot_cross_the_ball_are_named(attack, digits, plain):
    with pytest.warns(UserWarning, match=r"steps = \d of .* do not reach the .*: more steps"):
        robust_accuracy(plain, digits.x_test[:4], digits.y_test[:4], attack)


@pytest.mark.parametrize(
    "attack",
    [PGD(), PGD(steps=4), PGD(1.0, norm="l2"), PGD(8 / 255, 8 / 255, 1), FGSM(), APGD(steps=2)],
    ids=repr,
)
def test_other_steps_are_not(attack, digits, plain, recwarn):
    robust_accuracy(plain, digits.x_test[:4], digits.y_test[:4], attack)
    assert not recwarn.list


def test_evaluation_is_exact_in_odd_batches_and_restores_every_mode(digits):
    net = models.build("resnet18", 10, 0.125, seed=0).train()
    net.stages[2].eval()
    modes = [m.training for m in net.modules()]
    one, odd = (evaluate(net, digits.x_test[:90], digits.y_test[:90], n) for n in (90, 7))
    assert modes == [m.training for m in net.modules()]
    with torch.no_grad():
        logits = net.eval()(pixels(digits.x_test[:90])).double()
    assert one["accuracy"] == odd["accuracy"]
    expected = F.cross_entropy(logits, digits.y_test[:90]).item()
    assert one["loss"] == pytest.approx(expected, rel=1e-5) == odd["loss"]


def test_speed_is_measured_in_pairs():
    pytest.importorskip(
        "pyautoattack", reason='needs the reference: pip install "thesis-repro[eval]"'
    )
    subject = speed.speed_subject(32, width=0.125)
    result = speed.attack_speed(subject, steps=5)
    assert set(result) == {"ours", "ours accuracy", "pyautoattack", "pyautoattack accuracy"}
    assert (
        10 < result["ours accuracy"] < 90
        and abs(result["ours accuracy"] - result["pyautoattack accuracy"]) < 15
    )


# Misuse


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: PGD(epsilon=8), "8/255"),
        (lambda: PGD(step=2), "2/255"),
        (lambda: FGSM(epsilon=-0.1), "epsilon = -0.1"),
        (lambda: PGD(epsilon=math.nan), "epsilon = nan"),
        (lambda: PGD(norm="l2", epsilon=-1.0), "epsilon"),
        (lambda: PGD(steps=0), "steps = 0"),
        (lambda: PGD(steps=2.5), "steps = 2.5"),
        (lambda: PGD(restarts=0), "restarts = 0"),
        (lambda: PGD(norm="l3"), "linf, l2, l1"),
        (lambda: PGD(loss="mse"), "ce, cw, kl, dlr"),
        (lambda: PGD(start="zero"), "uniform, normal, none"),
        (lambda: PGD(bn="test"), "eval, train"),
        (lambda: PGD(logit_scale=0), "logit_scale"),
        (lambda: MomentumFGSM(steps=0), "steps = 0"),
        (lambda: APGD(norm="l1"), "linf, l2"),
        (lambda: APGD(loss="kl"), "dlr-targeted"),
        (lambda: APGD(targets=0), "targets = 0"),
        (lambda: APGD(epsilon=8), "8/255"),
        (lambda: LBFGS(c=0), "c = 0"),
        (lambda: LBFGS(epsilon=-1), "epsilon = -1"),
        (lambda: CarliniWagner(steps=0), "steps = 0"),
        (lambda: CarliniWagner(confidence=-1), "confidence = -1"),
        (lambda: AutoAttack(epsilon=8), "8/255"),
        (lambda: AutoAttack(version="fast"), "standard, plus, rand"),
    ],
)
def test_bad_fields(make, message):
    with pytest.raises(BadInput, match=message) as e:
        make()
    assert "\n" not in str(e.value)


def test_numbers_of_numpy_are_numbers():
    one = PGD(np.float32(0.5), steps=np.int64(3), norm="l2")
    assert (one.epsilon, one.steps) == (0.5, 3) and type(one.steps) is int
    json.dumps(specification(one))


@pytest.mark.parametrize("attack", ALL, ids=repr)
def test_attacks_work_in_inference_mode(attack, digits):
    net = models.build("resnet18", 10, 0.0625, seed=0).eval()
    outside = attack(net, pixels(digits.x_test[:4]), digits.y_test[:4], Draws(0))
    with torch.inference_mode():
        x, y = pixels(digits.x_test[:4]), digits.y_test[:4] + 0
        assert x.is_inference() and y.is_inference()
        inside = attack(net, x, y, Draws(0))
        robust_accuracy(net, digits.x_test[:4], y, attack)
        made_inside = models.build("resnet18", 10, 0.0625)
        with pytest.raises(BadInput, match="make it outside"):
            attack(made_inside, x, y, Draws(0))
    assert torch.equal(inside, outside) and all(p.requires_grad for p in net.parameters())


def test_an_l2_radius_may_exceed_one():
    assert PGD(norm="l2", epsilon=2.0, step=1.5) and APGD(norm="l2", epsilon=3)


@pytest.mark.parametrize(
    "attack",
    [PGD(steps=1), APGD(steps=1), CarliniWagner(steps=1), FGSM()],
    ids=lambda a: type(a).__name__,
)
def test_bad_batches(attack, digits, plain):
    x, y = pixels(digits.x_test[:4]), digits.y_test[:4]
    for images, labels in ((digits.x_test[:4], y), (255 * x, y), (x, y[:2]), (x - 1, y)):
        with pytest.raises(BadInput, match=r"\[0, 1\]"):
            attack(plain, images, labels, Draws(0))


def test_a_mixture_may_be_off_by_rounding(digits, plain):
    x, y = pixels(digits.x_test[:4]), digits.y_test[:4]
    x[:2], x[2:] = 1 + 1e-7, -1e-7
    for attack in (
        PGD(steps=2),
        PGD(0.5, 0.1, 2, norm="l2"),
        PGD(2.0, 1.0, 2, norm="l1"),
        CarliniWagner(steps=2),
    ):
        z = attack(plain, x, y, Draws(0))
        assert z.min() >= 0 and z.max() <= 1 and z.isfinite().all()


def test_labels_out_of_range(digits, plain):
    x = digits.x_test[:4]
    for y in (torch.tensor([0, 1, 2, 10]), torch.tensor([-1, 1, 2, 3])):
        with pytest.raises(BadInput, match="from 0 to 9"):
            robust_accuracy(plain, x, y, PGD())
        with pytest.raises(BadInput, match="from 0 to 9"):
            PGD()(plain, pixels(x), y, Draws(0))
    with pytest.raises(BadInput, match="at least one"):
        robust_accuracy(plain, x[:0], torch.zeros(0, dtype=torch.long), PGD())
    with pytest.raises(BadInput, match="uint8"):
        robust_accuracy(plain, pixels(x), torch.zeros(4, dtype=torch.long), PGD())


class Failing(torch.nn.Module):
    "Logits that are not numbers from a call on."

    def __init__(self, inner, call):
        super().__init__()
        self.inner, self.call, self.calls = inner, call, 0

    def forward(self, x):
        self.calls += 1
        return self.inner(x) * (torch.nan if self.calls > self.call else 1)


def test_not_a_number_names_the_step(digits, defended):
    x, y = pixels(digits.x_test[:20]), digits.y_test[:20]
    for attack in (PGD(steps=5), APGD(steps=5), MomentumFGSM(steps=5)):
        with pytest.raises(Diverged, match="at step 3 of the attack"):
            attack(Failing(defended, 3), x, y, Draws(0))
        model = Failing(defended, 4)
        with pytest.raises(
            Diverged, match="at step 3 of the attack"
        ):  # one call was for the clean images
            robust_accuracy(model, digits.x_test[:20], y, attack)
        assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(Diverged, match="before any step"):
        robust_accuracy(Failing(defended, 0), digits.x_test[:20], y, PGD())
    with pytest.raises(Diverged):
        CarliniWagner(steps=2)(Failing(defended, 0), x, y, Draws(0))
    with pytest.raises(Diverged):
        LBFGS()(Failing(defended, 1), x[:1], y[:1], Draws(0))


# A radius of its own, and samples that stop


@pytest.mark.parametrize("attack", [FGSM(), MomentumFGSM(), PGD(steps=40), APGD(steps=40)])
def test_a_radius_of_its_own_is_reached(attack):
    "The corner of each sample's own box, where two classes are told apart by a plane."
    model, (x, y) = Linear(classes=2), inner()
    radius = torch.linspace(2 / 255, 32 / 255, len(x), dtype=x.dtype)
    found = attack(model, x, y % 2, Draws(0), radius=radius) - x
    torch.testing.assert_close(found.abs(), radius.view(-1, 1, 1, 1).expand_as(x))


@pytest.mark.parametrize("attack", [MomentumFGSM(), PGD(start="none")])
def test_a_sample_that_stopped_stays_where_it_is(attack):
    model, (x, y) = Linear(classes=2), inner()
    path, even, y = [], torch.arange(len(x)) % 2 == 0, y % 2

    def stop(images, logits, gradient):
        path.append(images.clone())
        return even if len(path) == 3 else torch.zeros_like(even)

    found = attack(model, x, y, Draws(0), stop=stop)
    assert torch.equal(found[even], path[2][even])
    assert not any(torch.equal(a, b) for a, b in zip(found[~even], path[2][~even], strict=True))


def test_apgd_has_no_sample_that_stops_alone():
    model, (x, y) = Linear(), inner()
    with pytest.raises(BadInput, match="use PGD"):
        APGD(steps=5)(model, x, y, Draws(0), stop=lambda z, logits, gradient: y < 0)


def test_accuracy_is_measured_in_float32_within_autocast(digits):
    torch.manual_seed(0)
    model, (x, y) = models.build("resnet18", 10, 0.0625), (digits.x_test[:100], digits.y_test[:100])
    plain = evaluate(model, x, y)
    with torch.autocast("cpu", torch.bfloat16):
        assert evaluate(model, x, y) == plain


# Numbers and rules that no ascent above rests on


def test_the_numbers_where_nothing_else_is_said():
    "8/255 in L∞; APGD's hundred steps, nine targets; C&W's nine searches of a thousand steps."
    assert FGSM() == FGSM(8 / 255) and FGSM().steps == 1
    assert PGD() == PGD(8 / 255, 2 / 255, 10, restarts=1, logit_scale=1.0, fill=1.0)
    assert MomentumFGSM() == MomentumFGSM(8 / 255, 10, 1.0)
    assert APGD() == APGD(8 / 255, 100, restarts=1, targets=9)
    assert LBFGS() == LBFGS(1.0, 8, 50)
    assert CarliniWagner() == CarliniWagner(0.0, 0.001, 9, 1000, 0.01)
    assert AutoAttack() == AutoAttack(8 / 255)


@pytest.mark.parametrize("norm", EPSILON)
def test_what_is_inside_stays_to_the_last_bit(norm):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((20, 3, 4, 4), generator=generator)
    z = (x + 1e-3 * torch.randn(x.shape, generator=generator)).clamp(0, 1)
    assert torch.equal(Ball(x, 0.5, norm).project(z), z)


def test_a_step_in_l1_is_shared_by_the_steepest_twentieth_that_can_move():
    "Of 40 pixels two; the steepest two are white and pushed up, or black and pushed down."
    x = torch.full((1, 1, 5, 8), 0.5, dtype=torch.float64)
    gradient, expected = torch.full_like(x, 0.01), torch.zeros_like(x)
    x[0, 0, 0, :2] = torch.tensor([1.0, 0.0])
    gradient[0, 0, 0, :5] = torch.tensor([0.5, -0.4, 0.3, -0.2, 0.1])
    expected[0, 0, 0, 2:4] = torch.tensor([0.05, -0.05])
    torch.testing.assert_close(Ball(x, 1.0, "l1").climb(x, gradient, 0.1) - x, expected)


@pytest.mark.parametrize("norm", EPSILON)
def test_one_image_starts_anywhere_in_the_whole_ball(norm):
    x = torch.full((1, 1, 2, 2), 0.5)
    ball, z = Ball(x, 0.1, norm), begun(Ball(x, 0.1, norm), "uniform")
    assert 0 < distance(z, x, norm) <= 0.1
    noise = ball.drawn("uniform", torch.Generator().manual_seed(0))
    assert torch.equal(ball.start("uniform", noise), z)


def test_ratios_of_logits_that_tie_keep_their_sign():
    "The first logits are all equal, and the right one is below them: misclassified."
    z, y, target = torch.tensor([[1.0, 1, 1, 1, 0]]), torch.tensor([4]), torch.tensor([0])
    assert attacks.dlr_loss(z, y) > 0 and attacks.targeted_dlr_loss(z, y, target) > 0


@pytest.mark.parametrize("pixel", [-0.1, 1.1])
def test_one_pixel_a_little_out_of_range(pixel):
    x, y = inner()
    x[0, 0, 0, 0] = pixel
    with pytest.raises(BadInput, match=r"must be in \[0, 1\]"):
        FGSM()(Linear(), x, y, Draws(0))


def test_a_search_notes_only_what_it_is_asked_to():
    model, (x, _) = Linear(), inner()
    y = (model(x).argmax(1) + 1) % 4
    s = attacks.Search(model, LOSSES["ce"], x, y, (y, y))
    attacks.climb(s, x + 0.01)
    assert torch.equal(s.found, x) and not s.hit.any()
    attacks.look(s, x + 0.01)
    assert torch.equal(s.found, x + 0.01) and s.hit.all()


class Hill(torch.nn.Module):
    "Two classes; the second is the likelier, the nearer the first pixel is to 0.5."

    def forward(self, x):
        height = 1 - 100 * (x.flatten(1)[:, 0] - 0.5) ** 2
        return torch.stack([torch.zeros_like(height), height], 1)


def over_the_hill(attack, x):
    "What an attack finds, and the images that it showed."
    y, shown = torch.zeros(len(x), dtype=torch.long), []
    found = attack(Hill(), x, y, Draws(0), seen=lambda i, z, _: shown.append(z))
    return found, shown


def test_pgd_gives_its_last_image_and_of_two_restarts_the_worse():
    x = torch.full((8, 1, 1, 1), 0.45, dtype=torch.float64)
    found, _ = over_the_hill(PGD(0.2, 0.2, 1, start="none"), x)
    torch.testing.assert_close(found, x + 0.2)  # beyond the top: lower than where it began
    found, (one, two) = over_the_hill(PGD(0.2, 0.0, 1, restarts=2), x)
    nearer = (one - 0.5).abs() < (two - 0.5).abs()
    assert 0 < nearer.sum() < 8 and torch.equal(found, torch.where(nearer, one, two))


@pytest.mark.parametrize("attack", [FGSM(), MomentumFGSM(steps=3), PGD(steps=3)], ids=repr)
def test_an_attack_begins_once_where_nothing_else_is_said(attack):
    _, shown = over_the_hill(attack, torch.full((2, 1, 1, 1), 0.4))
    assert len(shown) == attack.steps


def test_apgd_gives_the_worst_of_its_images():
    x = torch.full((20, 1, 1, 1), 0.45, dtype=torch.float64)
    found, shown = over_the_hill(APGD(0.2, 2), x)
    nearest = torch.stack([(z - 0.5).abs() for z in shown]).amin(0)
    assert len(shown) == 2 and ((found - 0.5).abs() <= nearest).all()


def test_the_clean_prediction_is_scaled_like_the_attacked_one():
    model, (x, y) = Linear(), inner()
    known = PGD(loss="kl", logit_scale=0.5).known(model, x, y)
    torch.testing.assert_close(known, (0.5 * model(x)).softmax(1).detach())


def test_every_wrong_class_can_be_the_target():
    x, _ = inner(200)
    targets = attacks.random_targets(Linear(), x, torch.zeros(200, dtype=torch.long), Draws(0))
    assert targets.unique().tolist() == [1, 2, 3]


def test_apgd_takes_the_course_of_its_paper(monkeypatch):
    "From 2ε on, the first step plain, and it looks back at every w_j; one gradient an image."
    (x, y), begun_at, gaps, shown = inner(), [], [], []
    advance, look_back = strong_attacks._advance, strong_attacks._look_back

    def noted_advance(a, ball, first):
        begun_at.append((a.step.clone(), a.halved.clone(), first))
        advance(a, ball, first)

    def noted_look_back(a, steps):
        gaps.append(steps)
        look_back(a, steps)

    monkeypatch.setattr(strong_attacks, "_advance", noted_advance)
    monkeypatch.setattr(strong_attacks, "_look_back", noted_look_back)
    radius = torch.linspace(0.01, 0.06, 6, dtype=x.dtype)
    how = {"seen": lambda *c: shown.append(c), "radius": radius}
    APGD(steps=100)(Linear(), x, y, Draws(0), **how)
    step, halved, _ = begun_at[0]
    torch.testing.assert_close(step, 2 * radius.view(-1, 1, 1, 1))
    assert not halved.any() and [f for *_, f in begun_at] == [True] + 99 * [False]
    assert gaps == [22, 19, 16, 13, 10, 7, 6, 6] and len(shown) == 100


def test_targets_of_apgd_are_the_wrong_classes_the_likeliest_first():
    model, (x, y) = Linear(classes=5), inner()
    known = APGD(loss="dlr-targeted").known(model, x, y).tolist()
    for row, z, right in zip(known, model(x).tolist(), y.tolist(), strict=True):
        assert row == sorted((k for k in range(5) if k != right), key=lambda k: -z[k])


def test_lbfgs_asks_for_no_image_out_of_range():
    class Asked(Linear):
        def forward(self, x):
            ends.extend([x.min().item(), x.max().item()])
            return super().forward(x)

    ends, (x, y) = [], inner(2, low=0.9, high=1.0)
    LBFGS(0.01, 1, 20)(Asked(), x, y, Draws(0))
    assert min(ends) >= 0 and max(ends) <= 1


class Brighter(torch.nn.Module):
    "Two classes: the second where the one pixel is above zero."

    def forward(self, x):
        return torch.cat([torch.zeros_like(x), x], 1).flatten(1)


@pytest.mark.parametrize(
    ("largest", "course"),
    [
        (10.0, [1.0, 4.0, 16.0, 8.0, 128**0.5]),
        (0.3, [1.0, 0.25, 0.5, 0.125**0.5, (0.25 * 0.125**0.5) ** 0.5]),
    ],
)
def test_lbfgs_brackets_the_largest_c_that_reaches_its_class(monkeypatch, largest, course):
    "By fours, and then by geometric means; the nearest image is kept."
    asked = []

    def minimised(model, x, target, c, steps):
        asked.append(c)
        return x + (0.01 / c if c <= largest else 0.0)

    monkeypatch.setattr(strong_attacks, "_minimised", minimised)
    x, y = torch.zeros(1, 1, 1, 1), torch.tensor([0])
    found = LBFGS(searches=5)(Brighter(), x, y, Draws(0))
    assert asked == pytest.approx(course)
    assert found.item() == pytest.approx(0.01 / max(c for c in course if c <= largest))


def test_carlini_wagner_brackets_the_smallest_c_of_each_sample(monkeypatch):
    "Tenfold until the class is wrong, then by halves, from zero if the first c was enough."
    asked = []

    def descended(self, model, x, y, c, best, nearest):
        asked.append(c.tolist())
        return c >= torch.tensor([0.3, 0.0002])

    monkeypatch.setattr(CarliniWagner, "_descended", descended)
    CarliniWagner(searches=6)(Linear(), *inner(2), Draws(0))
    one, two = zip(*asked, strict=True)
    assert one == pytest.approx([0.001, 0.01, 0.1, 1.0, 0.55, 0.325])
    assert two == pytest.approx([0.001, 0.0005, 0.00025, 0.000125, 0.0001875, 0.00021875])


def test_carlini_wagners_confidence_is_zero_where_nothing_else_is_said():
    z, x = torch.tensor([[0.0, 1.0]]), torch.zeros(1, 1, 1, 1)
    assert strong_attacks.cw_objective(z, torch.tensor([0]), x, x, 3.0).item() == 0


def test_autoattack_computes_in_float32_within_autocast(monkeypatch):
    asked = []

    class Library:
        def __init__(self, model, **how):
            self.fab = self.apgd_targeted = SimpleNamespace(n_target_classes=9)

        def run_standard_evaluation(self, x, y, batch_size):
            asked.append(torch.is_autocast_enabled("cpu"))
            return x, y

    monkeypatch.setattr(strong_attacks, "pyautoattack", lambda: SimpleNamespace(AutoAttack=Library))
    with torch.autocast("cpu", torch.bfloat16):
        AutoAttack()(Linear(), *inner(), Draws(0))
    assert asked == [False]


def grey(n, model):
    "Random uint8 images, and what the model says of them."
    x = torch.randint(0, 256, (n, 3, 2, 2), generator=torch.Generator().manual_seed(0))
    return x.to(torch.uint8), model(x / 255).argmax(1)


def test_an_evaluation_where_nothing_else_is_said(monkeypatch):
    "Batches of 500, seed 0, float32, a bar; an attack that is not targeted is told the labels."
    model, calls, bars, bar = Linear(), [], [], robustness.Bar
    x, y = grey(501, model)

    def attack(model, x, y, draws, seen=None):
        calls.append((y, draws.seed, draws.step, torch.is_autocast_enabled("cpu")))
        return x

    def noted(**how):
        bars.append(how)
        return bar(**how | {"disable": True})

    monkeypatch.setattr(robustness, "Bar", noted)
    assert robust_accuracy(model, x, y, attack)["accuracy"] == 100
    assert [how for _, *how in calls] == [[0, 0, False], [0, 500, False]]
    assert all(torch.equal(a, b) for (a, *_), b in zip(calls, y.split(500), strict=True))
    assert bars[0]["disable"] is False
    assert robust_accuracy(model, x[:2], y[:2], None, batch_size=1)["n"] == 2
    y[:101] = (y[:101] + 1) % 4
    assert evaluate(model, x, y)["accuracy"] == 100 * 400 / 501


class Twice(torch.nn.Module):
    "Its margin is − 2 times the pixel."

    def __init__(self):
        super().__init__()
        self.p = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return torch.cat([2 * x, 0 * x + self.p.view(1, 1, 1, 1)], 1).flatten(1)


@pytest.mark.parametrize(("bf16", "made"), [(True, [(True, 3), (False, 1)]), (False, [(False, 3)])])
def test_what_nearly_fell_in_bf16_is_attacked_in_float32(bf16, made):
    "Of a margin of − 2 on the clean image a twentieth is left, more than a tenth, and a half."
    calls, left = [], torch.tensor([0.05, 0.15, 0.5]).view(3, 1, 1, 1)

    def attack(model, x, y, draws, seen=None):
        calls.append((torch.is_autocast_enabled("cpu"), len(x)))
        return left[: len(x)]

    x, y = torch.full((3, 1, 1, 1), 255, dtype=torch.uint8), torch.zeros(3, dtype=torch.long)
    assert robust_accuracy(Twice(), x, y, attack, bf16=bf16)["accuracy"] == 100
    assert calls == made


def test_every_image_decides_which_evaluation_it_is():
    marks = set()
    for places in ([], [0], [1], [999], [1000]):
        x, y = torch.zeros((1001, 1, 1, 1), dtype=torch.uint8), torch.zeros(1001, dtype=torch.long)
        x[places] = 1
        marks.add(robustness._fingerprint((Linear(),), x, y))
    assert len(marks) == 5


def test_the_warning_about_steps_names_who_asked():
    model = Linear()
    with pytest.warns(UserWarning, match="do not reach the radius") as found:
        robust_accuracy(model, *grey(2, model), PGD(steps=1))
    assert found[0].filename == __file__


def test_a_step_that_is_named_grows_with_the_radius(monkeypatch):
    asked = []

    def noted(model, x, y, attack, **options):
        asked.append((attack.epsilon, attack.step))
        return {"correct": [True] * len(y)}

    monkeypatch.setattr(robustness, "robust_accuracy", noted)
    x, y = torch.zeros(2, 1, 1, 1), torch.zeros(2, dtype=torch.long)
    robustness.accuracy_over_epsilon(None, x, y, PGD(0.1, 0.2), [0.8, 0.04, 0.2])
    assert asked == [(0.04, pytest.approx(0.08)), (0.2, pytest.approx(0.4)), (0.8, 1.0)]


def test_probabilities_of_attacked_images():
    model, (x, y), attack = Linear(), inner(), PGD(steps=2)
    found = attack(model, x, y, Draws(0))
    for images, how in ((x, ()), (found, (attack,))):
        expected = model(images).softmax(1).detach()
        torch.testing.assert_close(robustness.probabilities(model, x, y, *how), expected)


@pytest.mark.parametrize("attack", [FGSM(), PGD(steps=1), APGD(steps=1)], ids=repr)
def test_images_with_a_graph_give_images_without(attack):
    x, y = inner()
    assert not attack(Linear(), x.requires_grad_(), y, Draws(0)).requires_grad


def test_an_evaluation_that_fails_leaves_every_mode_as_it_was():
    def attack(*_):
        assert not model.training
        raise KeyboardInterrupt

    model = Linear().train()
    with pytest.raises(KeyboardInterrupt):
        robust_accuracy(model, *grey(4, model), attack)
    assert model.training
