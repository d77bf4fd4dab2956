"""The penalty on the angle of input gradients in float64, and what counts as transferred."""

import math

import pytest
import torch
import torch.nn.functional as F

from thesis_repro import misalignment, settings
from thesis_repro.attacks import PGD
from thesis_repro.draws import Draws
from thesis_repro.files import BadInput
from thesis_repro.genomes import Genome, Grown, Layer
from thesis_repro.images import pixels
from thesis_repro.misalignment import (
    Angle,
    Misaligned,
    Transfer,
    losses_and_gradients,
    misaligned_loss,
    squared_cosine,
    transfer,
)
from thesis_repro.mixup import Plain
from thesis_repro.recipes import Adam, Batch
from thesis_repro.replaced import Taught
from thesis_repro.runs import Named, Run
from thesis_repro.store import Store
from thesis_repro.training import Length


def mlp(seed, inputs=8, hidden=6, classes=3):
    torch.manual_seed(seed)
    layers = torch.nn.Linear(inputs, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, classes)
    return torch.nn.Sequential(torch.nn.Flatten(), *layers).double()


def batch(n=4):
    g = torch.Generator().manual_seed(5)
    return torch.rand(n, 2, 2, 2, generator=g, dtype=torch.float64), torch.arange(n) % 3


def gradient_by_hand(net, x, y):
    "∂ CE / ∂ x of a network with one hidden layer, by the chain rule."
    _, first, _, second = net
    h = torch.tanh(x.flatten(1) @ first.weight.T + first.bias)
    p = (h @ second.weight.T + second.bias).softmax(1)
    back = (p - F.one_hot(y, 3)) @ second.weight * (1 - h**2)
    return back @ first.weight


def loss_by_hand(net, reference, x, y, weight):
    "The mean over images of CE + λ cos², by loops, with the reference's gradient as a number."
    total, own = 0.0, gradient_by_hand(net, x, y)
    theirs = gradient_by_hand(reference, x, y).detach()
    for i in range(len(x)):
        dot = (own[i] * theirs[i]).sum()
        cos2 = dot**2 / (own[i].square().sum() * theirs[i].square().sum())
        total = total - net(x[i : i + 1]).log_softmax(1)[0, y[i]] + weight * cos2
    return total / len(x)


@pytest.mark.parametrize("weight", [0.0, 1.0, 7.0])
def test_loss_and_gradients_of_the_weights(weight):
    net, reference, (x, y) = mlp(0), mlp(1), batch()
    mine, theirs = (
        misaligned_loss(net, reference, x, y, weight),
        loss_by_hand(net, reference, x, y, weight),
    )
    torch.testing.assert_close(mine, theirs)
    parameters = list(net.parameters())
    for a, b in zip(*(torch.autograd.grad(v, parameters) for v in (mine, theirs)), strict=True):
        torch.testing.assert_close(a, b)


def test_a_step_turns_the_gradients_apart():
    net, reference, (x, y) = mlp(0), mlp(1), batch()

    def cosine():
        own = losses_and_gradients(net, x, y)[1]
        return squared_cosine(own, losses_and_gradients(reference, x, y)[1]).mean()

    before, optimiser = cosine(), torch.optim.SGD(net.parameters(), 0.05)
    for _ in range(20):
        optimiser.zero_grad()
        misaligned_loss(net, reference, x, y, 50.0).backward()
        optimiser.step()
    assert cosine() < before


def test_the_reference_is_left_alone():
    net, (x, y) = mlp(0), batch()
    reference = torch.nn.Sequential(
        torch.nn.Conv2d(2, 3, 2).double(), torch.nn.BatchNorm2d(3).double()
    )
    reference = torch.nn.Sequential(*reference, torch.nn.Flatten()).train()
    before = {k: v.clone() for k, v in reference.state_dict().items()}
    misaligned_loss(net, reference, x, y, 1.0).backward()
    assert all(torch.equal(v, before[k]) for k, v in reference.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in reference.parameters())


def test_an_images_gradient_does_not_depend_on_its_neighbours():
    net, (x, y) = mlp(0), batch()
    whole = losses_and_gradients(net, x, y)[1]
    one = losses_and_gradients(net, x[1:2], y[1:2])[1]
    torch.testing.assert_close(whole[1:2], one)


def test_cosine_and_its_second_derivative_where_a_gradient_is_zero():
    a = torch.tensor([[0.0, 0.0], [1e-9, 0.0]], dtype=torch.float64, requires_grad=True)
    found = squared_cosine(a, torch.ones(2, 2, dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor([0.0, 0.5], dtype=torch.float64))
    (gradient,) = torch.autograd.grad(found.sum(), a)
    assert gradient.isfinite().all()


class Table(torch.nn.Module):
    "Answers by the first pixel: the class that stands in a table for it."

    def __init__(self, answers):
        super().__init__()
        self.answers = torch.nn.Parameter(torch.tensor(answers).float())

    def forward(self, x):
        place = (10 * x[:, 0, 0, 0]).round().long()
        return F.one_hot(self.answers[place].long(), 3).float()


def test_what_counts_as_transferred():
    # pixels 0 … 4 are five images of class 1; the attack adds 5
    x = torch.arange(5).view(5, 1, 1, 1) / 10
    y = torch.ones(5, dtype=torch.long)
    source = Table([1, 1, 1, 1, 0, 0, 0, 0, 1, 0])  # right: 0–3; fooled: 0–2
    target = Table([1, 1, 0, 1, 1, 2, 1, 2, 2, 2])  # right: 0, 1, 3, 4; of the fooled ones: 0 moves

    def attack(model, x, y, draws):
        assert model is source
        return x + 0.5

    expected = {"right": 3, "fooled": 2, "moved": 1, "accuracy": 80.0, "transfer": 50.0}
    for size in (500, 2, 1):
        assert transfer(source, target, x, y, attack, size) == expected
    found = transfer(source, target, x, y, lambda model, x, y, draws: x)
    assert math.isnan(found["transfer"]) and found["fooled"] == 0


SHAPE = Genome((Layer(4, pool="max"), Layer(6, pool="max")))
REAL = Named("digits10", 60, 40, 20)
HOW = {"length": Length(1, 20), "home": "own/misaligned"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    store = Store(settings.load("smoke", device="cpu", jobs=1), tmp_path_factory.mktemp("store"))
    plain = Grown(SHAPE, Plain(), Adam(1e-3))
    teacher = Run(REAL, plain, seed=9, label="R", **HOW)
    run = Run(Taught(REAL, teacher), Grown(SHAPE, Misaligned(), Adam(1e-3)), label="own", **HOW)
    store.ensure([run])
    return store, run, teacher


def test_a_run_asks_its_teacher(made):
    store, run, teacher = made
    images = store.images(run.data)
    nets = run.recipe.networks(images, 0).train()
    x, y = pixels(images.x_train[:8]), images.y_train[:8]
    found = run.recipe.loss(nets, Batch(x, y, Draws(0)))
    (held,) = nets["reference"].held
    assert held is images.teacher and not list(nets["reference"].parameters())
    wanted = misaligned_loss(nets["model"], store.weights(teacher), x, y, run.recipe.method.weight)
    torch.testing.assert_close(found, wanted)
    found.backward()
    assert all(p.grad.isfinite().all() for p in nets["model"].parameters())


def test_measurements_of_a_run(made):
    store, run, teacher = made
    for split in ("test", "val"):
        measurement = Transfer(PGD(steps=2), split, 15)
        x, y = store.batch(run, 15, split)
        wanted = transfer(store.weights(teacher), store.weights(run), x, y, PGD(steps=2))
        found = measurement.make(store, run)
        assert {k: found[k] for k in ("right", "fooled", "accuracy")} == {
            k: wanted[k] for k in ("right", "fooled", "accuracy")
        }
    assert 0 <= Angle(10).make(store, run)["cosine"] <= 1
    assert Angle(10).value(store, run) == Angle(10).make(store, run)["cosine"]
    with pytest.raises(BadInput, match="its data have no teacher"):
        Transfer().needs(teacher)


def test_the_angle_of_gradients_that_float32_would_lose(made, monkeypatch):
    "A network that is sure of its answers has gradients whose squares are zero in float32."
    store, run, _ = made
    plainly = Angle(10).compute(store, run)["cosine"]

    def tiny(net, x, y):
        losses, gradients = losses_and_gradients(net, x, y)
        return losses, gradients * 1e-24

    monkeypatch.setattr(misalignment, "losses_and_gradients", tiny)
    assert Angle(10).compute(store, run)["cosine"] == pytest.approx(plainly, rel=1e-3)


def test_a_share_of_some_test_images_says_of_how_many(made):
    store, run, _ = made
    there = store.record(run).data["test"]

    class Known(Transfer):
        def number(self, store, run, name):
            return {"fooled": 10.0}[name]

    assert Known(size=15).images(store, run) == (10, round(10 * there / 15))
    for whole in (Known(), Known(size=there), Known(split="val", size=15)):
        assert whole.images(store, run) is None


# Edges, and what is not said


def test_what_is_not_said_of_a_penalty_and_of_an_angle():
    assert Misaligned() == Misaligned(4.0) and Angle() == Angle(0) and Angle.margin == 0.05
    net, (x, y) = mlp(0), batch()
    graphs = [losses_and_gradients(net, x, y, *graph)[1].requires_grad for graph in ((), (True,))]
    assert graphs == [False, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_cosine_is_above_one(dtype):
    "Also of a vector whose squares are zero."
    length = torch.finfo(dtype).tiny ** 0.75
    a = torch.tensor([[length, length]], dtype=dtype)
    assert 0 <= squared_cosine(a, torch.ones(1, 2, dtype=dtype)).item() <= 1


def test_a_share_of_one_image_or_none(made):
    store, run, _ = made
    there = store.record(run).data["test"]

    class Known(Transfer):
        fooled = 1.0

        def number(self, store, run, name):
            return self.fooled

    measured = Known(size=15)
    assert measured.images(store, run) == (1, round(there / 15))
    for fooled in (0.0, math.nan):
        Known.fooled = fooled
        assert measured.images(store, run) is None


def test_the_angle_is_the_mean_over_all_images(monkeypatch):
    "Of 501, a few at a time."
    nets, (x, y) = (mlp(0), mlp(1)), batch(501)
    monkeypatch.setattr(Angle, "given", lambda *how: (*nets, x, y))
    each = squared_cosine(*(gradient_by_hand(net, x, y) for net in nets)).sqrt()
    assert Angle().compute(None, None)["cosine"] == pytest.approx(each.mean().item())


def test_two_of_two_that_are_fooled_are_a_hundred_percent():
    x, y = torch.arange(5).view(5, 1, 1, 1) / 10, torch.ones(5, dtype=torch.long)
    source = Table([1, 1, 1, 1, 0, 0, 0, 0, 1, 0])
    target = Table([1, 1, 0, 1, 1, 2, 2, 1, 1, 2])
    found = transfer(source, target, x, y, lambda model, x, y, draws: x + 0.5)
    expected = {"right": 3, "fooled": 2, "moved": 2, "accuracy": 80.0, "transfer": 100.0}
    assert found == expected
