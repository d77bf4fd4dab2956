"""What the author's public code does otherwise, against the plainest loop in torch."""

import copy

import pytest
import torch
import torch.nn.functional as F

from thesis_repro import data, m2at, margin_reweighting, models, settings
from thesis_repro.adversarial import Adversarial, Examples, Mail
from thesis_repro.attacks import BATCH_NORM, FGSM, PGD
from thesis_repro.author_code import Unstandardised
from thesis_repro.draws import Draws
from thesis_repro.files import BadInput
from thesis_repro.images import pixels
from thesis_repro.mixup import Plain
from thesis_repro.recipes import Classify


@pytest.fixture(scope="module")
def digits():
    return data.load("faint10", train_size=64, test_size=64)


@pytest.fixture
def net(digits):
    return models.build("resnet18", 10, 0.125, 3, digits.mean, digits.std, seed=1).train()


def norms(model) -> dict:
    return {k: v.clone() for k, v in model.state_dict().items() if "running" in k or "num_" in k}


def plain_pgd(model, x, y, steps=3, epsilon=8 / 255, step=2 / 255):
    "PGD without a random start on a network in training mode, as one would write it by hand."
    z = x.clone()
    for _ in range(steps):
        z.requires_grad_(True)
        loss = F.cross_entropy(model(z), y, reduction="sum")
        gradient = torch.autograd.grad(loss, z)[0]
        z = z.detach() + step * gradient.sign()
        z = torch.min(torch.max(z, x - epsilon), x + epsilon).clamp(0, 1)
    return z


def test_every_pass_of_the_attack_is_recorded_as_in_a_loop_written_by_hand(net, digits):
    x, y, twin = pixels(digits.x_train[:16]), digits.y_train[:16], copy.deepcopy(net)
    net, twin, x = net.double(), twin.double(), x.double()
    by_hand = plain_pgd(twin, x, y)
    ours = PGD(steps=3, start="none", bn="record")(net, x, y, Draws(0))
    # a sign can turn where a gradient is as good as zero, and nowhere else
    assert ((ours - by_hand).abs() > 1e-9).double().mean() < 0.01
    for name, value in norms(twin).items():
        torch.testing.assert_close(norms(net)[name], value, rtol=1e-3, atol=1e-6)
    counts = [v for k, v in norms(net).items() if "num_" in k]
    assert counts and all(int(n) == 3 for n in counts)


@pytest.mark.parametrize("attack", [PGD(steps=2, bn="record"), FGSM(bn="record")])
def test_a_network_that_is_evaluated_records_nothing(attack, net, digits):
    before = norms(net.eval())
    attack(net, pixels(digits.x_train[:8]), digits.y_train[:8], Draws(0))
    assert all(torch.equal(v, before[k]) for k, v in norms(net).items())


def test_parameters_get_no_gradient_while_passes_are_recorded(net, digits):
    PGD(steps=2, bn="record")(net, pixels(digits.x_train[:8]), digits.y_train[:8], Draws(0))
    assert all(p.grad is None and p.requires_grad for p in net.parameters()) and net.training


def test_a_training_step_records_the_attack_and_its_own_pass(net, digits):
    x, y = pixels(digits.x_train[:8]), digits.y_train[:8]
    for bn, passes in {"eval": 1, "train": 1, "record": 4}.items():
        model = copy.deepcopy(net)
        Adversarial(PGD(steps=3, bn=bn))(model, x, y, Draws(0))
        assert {int(v) for k, v in norms(model).items() if "num_" in k} == {passes}, bn


def test_an_unknown_way_is_refused_with_the_known_ones():
    with pytest.raises(BadInput, match=", ".join(BATCH_NORM)):
        PGD(bn="frozen")


@pytest.mark.parametrize("y", [torch.zeros(4), torch.zeros(4, dtype=torch.int32), [0] * 4])
def test_labels_of_another_type_are_refused_in_one_line(y, net):
    with pytest.raises(BadInput, match="int64"):
        PGD()(net.eval(), torch.rand(4, 3, 8, 8), y, Draws(0))


def test_the_weights_gradient_is_that_of_the_product(net, digits):
    "d/dθ of mean(w(θ) ℓ(θ)), by the product rule; without `detach` its first half is missing."
    x, y = pixels(digits.x_train[:8]).double(), digits.y_train[:8]
    net = net.double().eval()

    def gradient(make):
        return torch.autograd.grad(make(Examples(net, x, y, Draws(0), inputs=x)), p)[0]

    def weighted(weight, constant=False):
        def loss(e):
            losses, w = F.cross_entropy(e.logits, y, reduction="none"), weight(e)
            return (w * (losses.detach() if constant else losses)).mean()

        return loss

    p = next(reversed(list(net.parameters())))
    moving, constant = Mail(detach=False), Mail()
    whole, kept = gradient(weighted(moving)), gradient(weighted(constant))
    through = gradient(weighted(moving, constant=True))
    assert through.norm() > 1e-6
    torch.testing.assert_close(whole, kept + through)


def test_pixels_as_they_are(digits):
    raw = Unstandardised("resnet18", Plain(), width=0.125)
    network = raw.networks(raw.prepared(digits), 0)["model"].eval()
    by_hand = models.build("resnet18", 10, 0.125, 3, (0.0,), (1.0,), 0).eval()
    x = pixels(digits.x_test[:8])
    assert torch.equal(network(x), by_hand(x))
    ordinary = Classify("resnet18", Plain(), width=0.125)
    standardised = ordinary.networks(ordinary.prepared(digits), 0)["model"].eval()
    assert not torch.equal(standardised(x), by_hand(x))
    assert isinstance(raw.scaled(settings.load("smoke")), Unstandardised)


def test_each_row_differs_from_the_thesis_row_in_one_thing():
    plain, recorded, raw = m2at.habits().values()
    assert plain is m2at.ROWS["CIFAR-10 / M2AT"]
    one, other = plain.recipe, recorded.recipe
    assert other.method.attack.bn == "record" and one.method.attack.bn == "eval"
    assert other.method.selection == one.method.selection  # judged as ever
    assert vars(raw.recipe) == vars(one) and type(raw.recipe) is Unstandardised
    assert len({plain.key, recorded.key, raw.key}) == 3

    cells = margin_reweighting.plan_habits(settings.load("thesis"))
    assert not any(p.reason for p in cells.values())
    constant, moving = {row: p.runs[0] for (row, _), p in cells.items()}.values()
    weights = [run.recipe.method.weight for run in (constant, moving)]
    assert [w.weight.detach for w in weights] == [True, False]
    assert weights[0].fraction == weights[1].fraction
    assert constant.recipe.optimiser == moving.recipe.optimiser and constant.key != moving.key
