"""Costs are counted on real steps: by hand on one layer, and the same in both ways on a network."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn as nn
from gan import BARE, GANS, TinyGan, two
from gan import SMALL as GENERATOR
from torch.utils.flop_counter import FlopCounterMode

from thesis_repro import (
    checkpoints,
    costs,
    data,
    durations,
    models,
    settings,
    timing,
    training,
    transferability,
)
from thesis_repro.adversarial import Adversarial
from thesis_repro.attacks import FGSM, PGD
from thesis_repro.counting import FORWARD, INPUTS, WEIGHTS, Counter, work
from thesis_repro.gan_blocks import ScaledConv
from thesis_repro.gan_networks import AtInput
from thesis_repro.gans import Gan
from thesis_repro.imagenet import ClassifyPhotographs
from thesis_repro.images import pixels
from thesis_repro.m2at import MaskAndMix
from thesis_repro.misalignment import Angle, Transfer
from thesis_repro.mixup import Beta, Mixup, Plain
from thesis_repro.pieces import field, piece
from thesis_repro.recipes import SGD, Adam, Classify, Phase
from thesis_repro.replaced import Halves
from thesis_repro.runs import Named, Run
from thesis_repro.saliency import Attention
from thesis_repro.square_attack import Square
from thesis_repro.strong_attacks import APGD
from thesis_repro.training import Length
from thesis_repro.zoo import ZOO

SMALL = (3, 16, 16)

# Single layers


def seen(layer, x, frozen=False):
    "The products of a layer's way forward and back."
    for p in layer.parameters():
        p.requires_grad_(not frozen)
    with Counter() as counter:
        layer(x).square().sum().backward()
    return counter.products


def test_what_is_no_product_is_counted_by_what_it_writes():
    x = torch.rand(2, 3, 4, 5)
    with Counter() as counter:
        y = x.relu().flatten(1)  # a view of the same numbers
        (y[:, :10] + 1).sum()
    assert not counter.products and counter.others.tolist() == [3, x.numel() + 20 + 1, 0]


def test_transposed_convolutions_are_counted_apart():
    x = torch.rand(2, 6, 4, 4, requires_grad=True)
    for layer, n in ((nn.ConvTranspose2d(6, 4, 4), 3), (nn.Conv2d(6, 4, 4), 0)):
        with Counter() as counter:
            layer(x).sum().backward()
        assert counter.others[2] == n and len(counter.products) == 3


LAYERS = {
    "convolution": (nn.Conv2d(3, 8, 3, 2, 1), (5, 3, 9, 9), 8 * 5 * 5, 3 * 9),
    "transposed": (nn.ConvTranspose2d(6, 4, 4, 2, 1), (5, 6, 4, 4), 6 * 4 * 4, 4 * 16),
    "groups": (nn.Conv2d(8, 8, 3, groups=8), (5, 8, 6, 6), 8 * 4 * 4, 9),
    "linear": (nn.Linear(12, 7), (5, 12), 7, 12),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_by_hand(name):
    layer, shape, places, weights = LAYERS[name]
    x = torch.rand(shape)
    each = len(x) * places * weights
    assert [(p.kind, p.multiplications) for p in seen(layer, x)] == [
        (FORWARD, each),
        (WEIGHTS, each),
    ]
    both = seen(layer, x.clone().requires_grad_())
    assert [(p.kind, p.multiplications) for p in both] == [
        (k, each) for k in (FORWARD, INPUTS, WEIGHTS)
    ]
    attacked = seen(layer, x.clone().requires_grad_(), frozen=True)
    assert [p.kind for p in attacked] == [FORWARD, INPUTS]
    assert len({p.layer for p in both}) == 1
    assert {p.outputs for p in both} == {layer(x).numel()}


def test_a_function_is_counted_like_a_layer():
    x, weight = torch.rand(2, 3, 8, 8, requires_grad=True), torch.rand(4, 3, 3, 3)
    with Counter() as counter:
        torch.nn.functional.conv2d(x, 2 * weight).sum().backward()
    assert [p.kind for p in counter.products] == [FORWARD, INPUTS]


@pytest.mark.parametrize("of", [nn.Conv2d(3, 4, 3), nn.Conv2d(3, 3, 1)])
def test_a_gradient_that_is_differentiated_costs_more(of):
    "Twice back through one convolution: its input's gradient is a convolution of its own."
    x = torch.rand(2, 3, 8, 8, requires_grad=True)
    with Counter() as counter:
        (slope,) = torch.autograd.grad(of(x).square().sum(), x, create_graph=True)
        once = len(counter.products)
        slope.square().sum().backward()
    assert once == 2 and work(counter.products[once:])[:, 2].sum() >= 4 * (
        counter.products[0].multiplications
    )


@pytest.mark.parametrize("name", models.ARCHITECTURES)
@pytest.mark.parametrize("width, size", [(0.125, 32), (0.0625, 8), (0.25, 64)])
def test_a_network_is_what_torch_counts(name, width, size):
    net, x = models.build(name, 10, width).eval(), torch.rand(1, 3, size, size)
    found = costs.network(name, width, 10, (3, size, size))
    with torch.no_grad(), Counter() as counter, FlopCounterMode(display=False) as flops:
        net(x)
    assert 2 * found.multiplications.sum() == flops.get_total_flops()
    assert [found.layers.sum(), found.outputs.sum(), found.multiplications.sum()] == list(
        work(counter.products)[FORWARD]
    )
    assert found.multiplications[0] == counter.products[0].multiplications
    flat = models.flops(net, size)
    assert [found.multiplications[:2].sum(), *found.multiplications[2:]] == flat
    assert found.bytes == sum(t.numel() * t.element_size() for t in net.state_dict().values())


# Methods on the miniature


@piece
class Looks:
    "A ratio that looks at the loss a number of times."

    times: int = field(3, low=1)

    def __call__(self, pairs, draws):
        lam = torch.full((len(pairs.y),), 0.5)
        for _ in range(self.times):
            pairs.loss_at(lam)
        return lam


@pytest.mark.parametrize("times", [1, 5])
def test_a_search_passes_only_what_lies_above_its_layer(times):
    found = costs.passes(Mixup((0, 1, 2, 3), Looks(times), input_ratio=Beta(1.0)))
    above = [0, 0, 1, 2, 3]  # of four layers, those that begin below this column
    assert found.passed[FORWARD].tolist() == [1 + times * n / 4 for n in above]
    assert found.passed[WEIGHTS].tolist() == [1] * 5
    assert found.passed[INPUTS].tolist() == [0, 1, 1, 1, 1]


@pytest.mark.parametrize("steps", [1, 7])
def test_weights_are_reached_once_a_step_and_never_by_an_attack(steps):
    found = costs.passes(Adversarial(PGD(steps=steps)))
    assert found.passed[:, 1:].T.tolist() == [[steps + 1, steps + 1, 1]] * 4
    assert found.passed[:, 0].tolist() == [steps + 1, steps, 1]
    assert np.array_equal(found.launched, found.passed) and not found.own.any()


def test_part_of_a_batch_is_part_of_a_pass():
    found = costs.passes(ZOO["COT"].method)  # looks at one image for the number of classes
    assert found.passed[FORWARD].tolist() == [1 + 1 / costs.FEW] * 5
    assert found.launched[FORWARD].tolist() == [2] * 5


def test_what_changes_along_a_run_is_averaged():
    method = ZOO["CAT (curriculum)"].method
    ends = [costs.passes(method, progress=p).passed[FORWARD, 1] for p in (0.0, 0.99)]
    mean = costs.passes(method).passed[FORWARD, 1]
    assert ends == [2, 11] and 5 < mean < 8
    mixed = [costs.passes(Mixup(layers, Looks())).passed[FORWARD] for layers in ((0,), (3,))]
    both = costs.passes(Mixup((0, 3), Looks())).passed[FORWARD]
    assert np.allclose(both, np.mean(mixed, 0))


METHODS = {
    "plain": Plain(),
    "manifold": Mixup((0, 1, 2)),
    "search": Mixup((0, 1, 2, 3), Looks(2)),
    "PGD": Adversarial(PGD(steps=2)),
    "FGSM, train mode": Adversarial(FGSM(bn="train")),
    "TRADES": ZOO["TRADES"].method,
    "a second network": ZOO["LBGAT"].method,
    "weights perturbed": ZOO["AWP"].method,
}


def test_a_method_meets_as_many_classes_as_the_data_have():
    "Ten classes beside the true one are smoothed: a network of ten classes does not have them."
    five, ten = (Adversarial(PGD(steps=2), MaskAndMix(smoothed=n)) for n in (5, 10))
    done = [costs.step(Classify("resnet18", m, width=0.03), 100, SMALL) for m in (five, ten)]
    np.testing.assert_array_equal(*done)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("network", ["resnet18", "preactresnet18", "wrn28_10"])
def test_both_ways_of_counting_agree(name, network):
    recipe = Classify(network, METHODS[name], width=0.03)
    whole = costs.counted_step(recipe, 10, SMALL)
    apart = costs.passes(recipe.method, SMALL).through(costs.network(network, 0.03, 10, SMALL))
    assert np.allclose(whole, apart)


@piece
class Guided:
    "A method with a small network of its own, which learns in every fourth step."

    every: int = field(4, low=1)

    def networks(self, model, images):
        channels = images.x_train.shape[1]
        guide = (nn.Conv2d(channels, 16, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return {"guide": nn.Sequential(*guide, nn.Linear(16, 1))}

    def phases(self):
        return (Phase("guide", ("guide",), Adam(), self.guide_loss, self.every),)

    def guide_loss(self, nets, batch):
        return nets["guide"](batch.x).square().mean()

    def joint_loss(self, nets, batch):
        return Plain()(nets["model"], batch.x, batch.y, batch.draws)


@pytest.mark.parametrize("every", [1, 4])
def test_networks_of_a_methods_own_are_counted_as_often_as_they_learn(every):
    found = costs.passes(Guided(every), SMALL)
    size = 16 * 8 * 8 * 27
    assert found.own[:, 0].tolist() == [2 / every, 1 / every, 2 / every]
    assert found.own[WEIGHTS, 2] == (size + 16) / every
    assert found.passed[FORWARD].tolist() == [1] * 5


def test_recipes_that_are_alike_are_counted_once(monkeypatch):
    method = Adversarial(PGD(steps=3))
    one = Classify("resnet18", method, SGD(0.1))
    same = Classify("resnet18", dataclasses.replace(method, selection=FGSM()), Adam(0.2))
    assert costs.alike(one) == costs.alike(same)
    assert costs.alike(one) != costs.alike(Classify("resnet18", Adversarial(PGD(steps=4))))
    done = costs.step(one, 10, SMALL)
    monkeypatch.setattr(costs, "_phases", None)
    assert np.array_equal(costs.step(same, 10, SMALL), done)
    assert costs.step(dataclasses.replace(same, width=0.5), 10, SMALL)[0, 2] < done[0, 2]


def test_steps_are_compared():
    plain = Classify("resnet18", Plain())
    searched = dataclasses.replace(plain, method=Mixup((1,), Looks(6)))
    net = costs.network("resnet18", 1.0, 10, (3, 32, 32)).multiplications
    step = 3 * net.sum() - net[0]  # nobody asks for the gradient of the image
    assert costs.times(searched, plain) == pytest.approx((step + 6 * net[2:].sum()) / step)


# Recipes with several networks


def test_a_gan_by_hand():
    "Of 16 × 16 pixels and 10 classes: three layers of the generator, four of the critic."
    gan = TinyGan(width=16, noise=8)
    made = [18 * 32 * 16, 32 * 16 * 16 * 16, 16 * 3 * 16 * 64]
    judged = [3 * 16 * 16 * 64, 16 * 32 * 16 * 16, 512 * 1, 512 * 10]
    done = costs.step(gan, 10, SMALL)
    assert done[FORWARD, 2] == 2 * sum(made) + 3 * sum(judged)
    # on two batches the critic's weights learn, on one the generator's; `label` sees one of two
    weights = 2 * sum(judged) - judged[3] + sum(made)
    assert done[WEIGHTS, 2] == weights
    below = 2 * sum(judged[1:]) - judged[3] + sum(judged) + sum(made[1:])
    assert done[INPUTS, 2] == below


def test_a_phase_that_is_due_less_often_costs_less():
    one, five = (costs.step(TinyGan(critic_steps=n), 10, SMALL) for n in (1, 5))
    generator = (one - five) / (1 - 1 / 5)
    assert (generator >= 0).all() and np.allclose(one - generator, five - generator / 5)
    assert (one - generator)[FORWARD, 0] == 3 + 2 * 4  # of the critic: made once, two batches


def test_a_penalty_on_a_gradient_is_counted():
    with_it, without = (costs.step(TinyGan(penalty=p), 10, SMALL) for p in (10.0, 0.0))
    assert (with_it[: costs.OTHERS, 2] > without[: costs.OTHERS, 2]).all()
    assert (with_it[costs.OTHERS] > without[costs.OTHERS])[:2].all()


@pytest.mark.parametrize("optimiser, writes", [(SGD(momentum=0.9), 4), (Adam(), 7)])
def test_the_updates_of_weights_are_counted(optimiser, writes):
    "SGD: decay, momentum (twice), step. Adam: two moments (three), a root (three), step."
    gan = TinyGan(critic=optimiser, generator=optimiser)
    nets = gan.networks(costs._noise(10, SMALL), 0)
    weights = sum(models.parameter_count(nets[n]) for n in ("generator", "critic"))
    operations, _, numbers = costs.whole_step(gan, 10, SMALL)[costs.HELD]
    assert writes - 0.5 < numbers / weights < writes + 0.5
    tensors = sum(len([*nets[n].parameters()]) for n in ("generator", "critic"))
    assert operations >= writes * tensors


def test_averaged_weights_are_counted():
    gan = GANS["ACGAN"]
    nets = gan.networks(costs._noise(10, SMALL), 0)
    averaged, plain = (
        costs.whole_step(dataclasses.replace(gan, average=a), 10, SMALL)[costs.HELD, 2]
        for a in (0.9, 0.0)
    )
    buffers = sum(b.numel() for b in nets["generator"].buffers())
    assert averaged - plain == models.parameter_count(nets["generator"]) + buffers


def test_what_is_written_whatever_the_batch_is_counted_apart():
    "Weights that are scaled at run time are written in every pass; a layer's own are not."
    whole = {}
    for scaled, layer in ((True, ScaledConv), (False, nn.Conv2d)):
        gan = Scaled(scaled)
        whole[scaled] = costs.whole_step(gan, 10, SMALL)[[costs.OTHERS, costs.HELD], 1]
        weights = layer(3, 64, 3).weight.numel()
    (per_image, held), (same, none) = whole[True], whole[False]
    assert held - none == 2 * weights and none < 10  # forward, and the gradient
    assert per_image == same == 2 * 64 * 14 * 14  # ReLU and its way back; no gradient is added


@piece
class Scaled:
    "One convolution, perhaps with weights that are scaled at run time, and a loss."

    scaled: bool = False

    def networks(self, images, seed):
        return nn.ModuleDict({"one": (ScaledConv if self.scaled else nn.Conv2d)(3, 64, 3)})

    def phases(self, nets):
        return (
            Phase("one", ("one",), SGD(), lambda nets, batch: nets["one"](batch.x).relu().sum()),
        )


@piece
class Planned(TinyGan):
    "The same, with a stand-in of a quarter of its width."

    def planned(self):
        return TinyGan(self.width // 4, self.noise)


def test_what_a_judge_does_whatever_the_images_is_no_work_for_each():
    "The parts of the losses are told of a hundred images; that was counted for every eighth."
    gan = Gan(GENERATOR, dataclasses.replace(BARE, condition=AtInput()), parts=True)
    (once, each), (less, as_much) = (
        costs.judged(dataclasses.replace(gan, parts=parts), 10, SMALL) for parts in (True, False)
    )
    made = each[FORWARD, 2]  # the generator, for an image
    assert np.allclose(each, as_much) and not each[:, 0].any()
    assert (once - less)[FORWARD, 2] > 100 * made > 0


def test_a_stand_in_is_scaled_to_the_recipe():
    real, scaled = costs.step(TinyGan(128), 10, SMALL), costs.step(Planned(128), 10, SMALL)
    assert np.array_equal(real[:, 0], scaled[:, 0])
    assert scaled[costs.OTHERS, 2] == real[costs.OTHERS, 2] > 0  # launches, too
    ratio = scaled[:, 1:] / real[:, 1:]
    assert 0.6 < ratio.min() and ratio.max() < 1.6, ratio


@pytest.mark.parametrize("method", [Plain(), Adversarial(PGD(steps=2)), Mixup()], ids=repr)
@pytest.mark.parametrize("name", ["resnet50", "efficientnet_b0"])
def test_a_network_of_another_library_is_counted_apart_from_the_method(name, method):
    recipe, shape = ClassifyPhotographs(name, method), (3, 64, 64)
    assert np.allclose(costs.step(recipe, 10, shape), costs.counted_step(recipe, 10, shape))


def test_seconds_of_a_gan_are_about_as_right_as_those_of_a_classifier():
    "On this machine, whatever it is, in turns: how far both predictions are off is alike."
    images = data.load("digits10", train_size=200, test_size=20, held_out=20)
    recipes = {"classifier": Classify("resnet18", Plain(), width=0.25), "gan": TinyGan(64)}
    x, y, actions = pixels(images.x_train[:64]), images.y_train[:64], {}
    for name, recipe in recipes.items():
        t = training.start(recipe, images, Length(1, 64))
        actions[name] = lambda t=t: training.step(t, x, y)
    seconds = timing.paired_seconds(actions, 9).median()
    counted = {n: durations.seconds(costs.step(r, 10, SMALL), 64) for n, r in recipes.items()}
    off = {name: seconds[name] / (counted[name] + durations.STEP) for name in recipes}
    assert 1 / 2 < off["gan"] / off["classifier"] < 2, off


# Attacks, seconds, runs


@pytest.mark.parametrize(
    "attack, forward, backward",
    [
        (None, 1, 0),
        (FGSM(), 3, 1),
        (PGD(steps=20), 22, 20),
        (PGD(steps=5, restarts=3), 19, 15),
        (APGD(steps=50), 52, 50),
        (Square(steps=30), 33, 0),
    ],
)
def test_passes_of_an_attack(attack, forward, backward):
    assert costs.attack_passes(attack) == (forward, backward)


def test_seconds_follow_launches_and_images():
    done = np.ones((3, 3))
    none, one, many = (durations.seconds(done, n) for n in (0, 1, 1001))
    assert none == pytest.approx((68 + 109 + 97) * 1e-6)
    assert many - none == pytest.approx(1001 * (one - none))
    assert durations.seconds(done, 0, launched=3) == pytest.approx(3 * none)


def test_seconds_of_a_whole_step_by_hand():
    rates = durations.WHOLE[False]
    units = [[1, 1e-6, 1e-9]] * 3 + [[1, 1e-6, 1], [1, 1e-6, 1e-6]]
    for i in range(5):
        for k in range(3):
            done = np.zeros((5, 3))
            done[i, k] = 1
            one = rates[i][k] * units[i][k]
            many = 1 if k == 0 or i == costs.HELD or (i, k) == (costs.OTHERS, 2) else 20
            assert durations.seconds(done, 20) == pytest.approx(many * one)
            again = 1 if many == 20 else 3
            assert durations.seconds(done, 20, launched=3) == pytest.approx(again * many * one)


def test_on_a_gpu_a_layer_stands_for_what_follows_it():
    done, rates = np.arange(15.0).reshape(5, 3), durations.rates_of("cuda")
    assert durations.seconds(done, 20, rates) == durations.seconds(done[: costs.OTHERS], 20, rates)
    run, here = run_of(TinyGan(), 1), durations.rates_of()
    assert rates.whole == () and len(here.whole) == len(done)
    o, steps = run.data.outline(), 10  # of fifty images
    one = costs.step(run.recipe, o.classes, o.shape)
    for device, rest in (("cpu", here.batch), ("cuda", rates.step)):
        times = durations.rates_of(device)
        judging = durations._look(run, times)
        whole = steps * (durations.seconds(one, 50, times) + rest) + judging
        assert durations.training(run, device) == pytest.approx(whole)


# Measurements of several networks


STEPS = 7
COMPARED = {  # of R, and of the network that is compared: passes forward, and back
    "PGD": (Transfer(PGD(steps=STEPS)), STEPS + 2 + 2, STEPS),
    "a few steps": (Transfer(PGD(steps=3)), 3 + 2 + 2, 3),
    "FGSM": (Transfer(FGSM()), 1 + 2 + 2, 1),
    "square": (Transfer(Square(steps=STEPS)), STEPS + 1 + 2 + 2, 0),
    "angle": (Angle(), 2, 2),
    "attention": (Attention(copies=3), 6, 6),
}


@pytest.mark.parametrize("name", COMPARED)
def test_a_measurement_of_two_networks_is_counted_as_a_whole(name):
    "They were planned as one pass of the network that is compared."
    m, forward, back = COMPARED[name]
    run = transferability.ours(settings.load("smoke", "transferability"), "R′")[0]
    o = run.data.outline()
    once, way_back = (
        costs.looked(run.recipe, o.classes, o.shape, 1),
        costs.looked(run.recipe, o.classes, o.shape, 0, 1),
    )
    found = costs.compared(m, run)
    assert found[FORWARD, 2] == pytest.approx(forward * once[FORWARD, 2])
    assert found[INPUTS, 2] == pytest.approx(back * way_back[INPUTS, 2])
    assert not found[WEIGHTS].any() and (found[costs.OTHERS, 1] > 0)
    assert found[FORWARD, 0] == pytest.approx(forward * once[FORWARD, 0])
    seconds = [durations.comparing(m, run, n) for n in (100, 200)]
    assert 0 < seconds[0] < seconds[1] < 2 * seconds[0]


def test_what_is_compared_is_counted_once(monkeypatch):
    run = transferability.ours(settings.load("smoke", "transferability"), "R′")[0]
    found = costs.compared(Angle(20), run)
    monkeypatch.setattr(costs, "_compared", None)
    again = costs.compared(Angle(20), dataclasses.replace(run, seed=5))
    assert np.array_equal(found, again)


def run_of(recipe, epochs=10, **how):
    return Run(Named("digits10", 500, 200, 100), recipe, Length(epochs, 50), **how)


def test_a_run_is_its_steps_and_its_judgements():
    plain, attacked = (Classify("resnet18", m, width=0.1) for m in (Plain(), Adversarial()))
    for recipe in (plain, attacked, TinyGan()):
        assert durations.training(run_of(recipe)) == pytest.approx(
            10 * durations.training(run_of(recipe, 1))
        )
    kinder = dataclasses.replace(attacked.method, selection=PGD(steps=1))
    assert durations.training(
        run_of(dataclasses.replace(attacked, method=kinder))
    ) < durations.training(run_of(attacked))
    watching = dataclasses.replace(plain, watch="test")
    by_test = dataclasses.replace(watching, select="test")
    looks = {r: durations.training(run_of(r)) for r in (plain, watching, by_test)}
    assert looks[plain] < looks[by_test] < looks[watching]
    more = run_of(TinyGan()).data
    more = dataclasses.replace(run_of(TinyGan()), data=dataclasses.replace(more, held_out=1000))
    assert durations.training(more) > durations.training(run_of(TinyGan()))


@pytest.mark.parametrize("recipe", [Classify("preactresnet18", Plain(), width=0.25), TinyGan(48)])
def test_the_bytes_of_a_run_are_those_of_its_weights(recipe, tmp_path):
    run = run_of(recipe, 1)
    nets = recipe.networks(run.data.images(), 0)
    weights = {which: checkpoints.copy_weights(nets) for which in ("last", "best")}
    checkpoints.save_checkpoint(tmp_path / "weights.ckpt", weights)
    size = (tmp_path / "weights.ckpt").stat().st_size
    assert costs.disk(run) - 60_000 == pytest.approx(size, rel=0.05)


def test_counting_imports_no_compiler():
    code = (
        "import sys\nfrom thesis_repro import costs, zoo\nzoo.forward_units(zoo.Adversarial())\n"
        "heavy = {'torchvision', 'matplotlib', 'torch._dynamo', 'sympy', 'sklearn'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("gan", GANS)
def test_what_is_counted_on_shapes_is_what_is_counted_on_numbers(gan, monkeypatch):
    recipe, to, went = two(gan).recipe, torch.nn.Module.to, []

    def noted(module, device):
        went.append(device)
        return to(module, device)

    monkeypatch.setattr(torch.nn.Module, "to", noted)
    found = []
    for small in (False, True):
        monkeypatch.setattr(costs, "_small", lambda nets, shape, small=small: small)
        found.append(costs.counted_step(recipe, 10, SMALL))
    assert np.allclose(*found) and found[0].sum() > 0
    assert set(went) == {"meta", "cpu"}


def test_what_cannot_be_counted_on_shapes_is_counted_on_numbers(monkeypatch):
    recipe, to = two(next(iter(GANS))).recipe, torch.nn.Module.to
    expected = costs.counted_step(recipe, 10, SMALL)

    def refused(module, device):
        if device == "meta":
            raise RuntimeError("numbers are needed")
        return to(module, device)

    monkeypatch.setattr(torch.nn.Module, "to", refused)
    monkeypatch.setattr(costs, "_small", lambda nets, shape: False)
    assert np.allclose(costs.counted_step(recipe, 10, SMALL), expected)


def test_labels_of_another_form_are_counted_like_the_classes():
    "Hirano's eq. 9 takes two distributions an image; the passes are those of plain training."
    one, other = (costs.passes(m) for m in (Halves(), Plain()))
    assert np.array_equal(one.launched, other.launched) and one.passed.sum() > 0


def test_a_network_of_its_own_is_judged_by_one_pass_without_computing(monkeypatch):
    recipe = ClassifyPhotographs("efficientnet_b0", Plain())

    def computed(*args):
        raise AssertionError("a pass was computed")

    monkeypatch.setattr("thesis_repro.recipes.evaluate", computed)
    forward = costs.judged(recipe, 10, (3, 64, 64))
    assert forward[0, 2] > 0 and not forward[1:].any()
    step = costs.step(recipe, 10, (3, 64, 64))  # of one forward pass, in training
    assert forward[0, 2] == pytest.approx(step[0, 2])


# Counts that are kept


@pytest.fixture
def counting(monkeypatch):
    "A count that notes what it counted, in a process that has counted nothing yet."
    seen = []

    def forgetting():
        monkeypatch.setattr(costs, "_COUNTED", {})
        monkeypatch.setattr(costs, "_KEPT", {})

    def passes(method, shape, classes):
        seen.append(method)
        return costs.Passes(*np.ones((2, 3, 5)), np.full((3, 3), len(seen) / 3))

    forgetting()
    return passes, seen, forgetting


def test_what_was_counted_is_kept_for_the_next_process(counting, tmp_path):
    passes, seen, forgetting = counting
    file, found = tmp_path / "new" / "counted.json", []
    for method in (Plain(), Plain(), Mixup()):
        with costs.remembering(file):
            found.append(costs._once(passes, method, (3, 8, 8), 10))
        forgetting()
    assert len(seen) == 2 and isinstance(found[1], costs.Passes)
    for one, other in zip(vars(found[0]).values(), vars(found[1]).values(), strict=True):
        assert np.array_equal(one, other)
    assert not np.array_equal(found[1].own, found[2].own)


def test_what_was_counted_until_a_stop_is_kept(counting, tmp_path):
    passes, seen, forgetting = counting
    with pytest.raises(KeyboardInterrupt), costs.remembering(tmp_path / "counted.json"):
        costs._once(passes, Plain(), (3, 8, 8), 10)
        raise KeyboardInterrupt
    forgetting()
    with costs.remembering(tmp_path / "counted.json"):
        costs._once(passes, Plain(), (3, 8, 8), 10)
    assert len(seen) == 1


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe", b'{"a": 1}', "a bit"])
def test_a_damaged_file_of_counts_is_no_file(counting, tmp_path, damage):
    passes, seen, forgetting = counting
    file = tmp_path / "counted.json"
    with costs.remembering(file):
        costs._once(passes, Plain(), (3, 8, 8), 10)
    whole = file.read_bytes()
    at = whole.index(b"0.33")
    file.write_bytes(whole[:at] + b"0.43" + whole[at + 4 :] if damage == "a bit" else damage)
    for _ in range(2):
        forgetting()
        with costs.remembering(file):
            costs._once(passes, Plain(), (3, 8, 8), 10)
    assert len(seen) == 2


def test_counts_of_other_code_are_made_again(counting, tmp_path, monkeypatch):
    passes, seen, forgetting = counting
    for code in ("then", "now", "now"):
        monkeypatch.setattr(costs, "_code", lambda count, kinds, code=code: code)
        with costs.remembering(tmp_path / "counted.json"):
            costs._once(passes, Plain(), (3, 8, 8), 10)
        forgetting()
    assert len(seen) == 2


def test_what_counting_rests_on_names_the_code_of_the_pieces():
    plain, mixup = (costs._code(costs.passes, frozenset({k})) for k in (Plain, Mixup))
    assert plain != mixup and '"costs"' in plain and torch.__version__ in plain


def test_a_place_that_cannot_be_written_costs_only_time(counting, tmp_path):
    passes, seen, _ = counting
    (tmp_path / "file").write_text("not a folder")
    with costs.remembering(tmp_path / "file" / "counted.json"):
        costs._once(passes, Plain(), (3, 8, 8), 10)
    assert len(seen) == 1
