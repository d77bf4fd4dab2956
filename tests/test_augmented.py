"""Real and generated images as one data set, and what learns from labels that are no classes."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gan import GANS, two
from methods import left_by, same, store_at

from thesis_repro import augmented, durations, plan, settings
from thesis_repro.augmented import Augmented, MultiLabel, Recognised, Targets, few_of, recognition
from thesis_repro.files import BadInput
from thesis_repro.games import Judgement
from thesis_repro.mixup import Plain
from thesis_repro.pieces import specification
from thesis_repro.recipes import SGD, Classify
from thesis_repro.runs import Named, Run, run_of, scaled, seeded, shortfall
from thesis_repro.store import RunsFailed
from thesis_repro.training import Length

REAL = Named("faint10", 150, 50, 50, part="CIFAR-10")
SMALL = Classify("resnet18", Targets(), SGD(0.05), width=0.03)
FACES = Named("glyphs", 120, 60, 20, attributes=("Red", "Framed", "Large"))


def learner(data, method=None, **changes) -> Run:
    "A classifier's run of one epoch."
    recipe = replace(SMALL, method=method or SMALL.method)
    return Run(data, recipe, Length(1, 50), home="tests/augmented", **changes)


@pytest.mark.parametrize("few, k", [(8, 4), (20, 10), (10, 10)])
def test_a_few_are_equally_many_of_each_class_and_another_draw_is_another_choice(few, k):
    y = torch.arange(20 * k).remainder(k)[torch.randperm(20 * k)]
    found = few_of(y, few)
    assert torch.bincount(y[found], minlength=k).tolist() == [few // k] * k
    assert torch.equal(found, few_of(y, few)) and len(found.unique()) == few
    assert len({tuple(few_of(y, few, draw).tolist()) for draw in range(5)}) == 5


@pytest.mark.parametrize("few", [7, 4, 800])
def test_too_few_or_too_many_are_refused(few):
    with pytest.raises(BadInput, match=f"{few} real images of 400: not as many of each class"):
        few_of(torch.arange(400) % 10, few)


def test_any_few_images_are_taken_where_there_are_attributes():
    assert len(few_of(torch.zeros(30, 3), 7)) == 7
    with pytest.raises(BadInput, match="40 real images of 30"):
        few_of(torch.zeros(30, 3), 40)


@pytest.mark.parametrize("targets", ["hard", "soft"])
def test_the_images_are_the_few_and_then_what_the_generator_makes(tmp_path, targets):
    store, generator = store_at(tmp_path), two("ACGAN", epochs=1)
    data = Augmented(REAL, generator, 30, few=20, targets=targets)
    images, own = store.images(data), REAL.images()
    index = few_of(own.y_train, 20)
    assert len(images.x_train) == data.outline().train == 50
    assert torch.equal(images.x_train[:20], own.x_train[index])
    assert torch.equal(images.x_test, own.x_test) and torch.equal(images.y_val, own.y_val)
    wanted = torch.arange(30) % 10
    if targets == "hard":
        assert torch.equal(images.y_train, torch.cat([own.y_train[index], wanted]))
        return
    assert torch.equal(images.y_train[:20], F.one_hot(own.y_train[index], 10).float())
    critic, x = store.networks(generator)["critic"], images.x_train[20:]
    logits = critic(x.float() / 127.5 - 1, F.one_hot(wanted, 10).float()).logits
    torch.testing.assert_close(images.y_train[20:], logits.softmax(1), rtol=1e-3, atol=1e-4)


def test_a_critic_that_compares_images_in_fours_sees_mixed_classes(tmp_path):
    "As in training, where a batch is in random order; and each image keeps its own answer."
    generator, seen = two("ACGAN", epochs=1), []

    def critic(x, c):
        seen.append(c.argmax(1))
        return Judgement(c.sum(1), 9 * c)

    critic.labels, critic.parameters = 10, lambda: iter([torch.zeros(1)])
    store = SimpleNamespace(networks=lambda run: {"critic": critic})
    y = torch.arange(500) % 10
    p = augmented.posterior(store, generator, torch.zeros(500, 3, 2, 2, dtype=torch.uint8), y)
    assert torch.equal(p.argmax(1), y) and [len(c) for c in seen] == [240, 240, 20]
    alike = [(c.unflatten(0, (4, -1)).unique(dim=0).shape[0] == 1) for c in seen]
    assert not any(alike)


@pytest.mark.parametrize("count", [0, 30])
def test_a_teacher_labels_all_training_images(tmp_path, count):
    store, made, knows = store_at(tmp_path), two("ACGAN", epochs=1), learner(REAL)
    generator = made if count else None
    data = Augmented(REAL, generator, count, few=20, targets="soft", teacher=knows)
    images, alone = store.images(data), replace(data, teacher=None)
    assert set(learner(data).needs()) == {knows, *[made] * bool(count)}
    assert torch.equal(images.x_train, store.images(alone).x_train)
    net = store.weights(knows, "last").eval()
    with torch.no_grad():
        expected = net(images.x_train.float() / 255).softmax(1)
    torch.testing.assert_close(images.y_train, expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(images.y_test, REAL.images().y_test)


def test_a_run_makes_its_generator_first_and_is_the_same_from_another_start(tmp_path):
    data = Augmented(REAL, two("ACGAN", epochs=1), 20, few=20, targets="soft")
    run = learner(data)
    assert run.needs() == (data.generator,) and run_of(specification(run)).key == run.key
    for folder in ("a", "b"):
        store = store_at(tmp_path / folder)
        store.ensure([run])
        assert store.record(data.generator)
    assert same(left_by(tmp_path / "a", run), left_by(tmp_path / "b", run))
    keys = {replace(run, data=replace(data, **d)).key for d in ({}, {"draw": 1}, {"few": 10})}
    assert len(keys) == 3


def test_other_weights_of_the_generator_are_other_images(tmp_path, monkeypatch):
    store, generator = store_at(tmp_path), two("ACGAN", epochs=1)
    data = Augmented(REAL, generator, 10)
    first = store.images(data).x_train
    assert store.images(data).x_train is first  # made once
    store.renew([generator])
    assert torch.equal(store.images(data).x_train, first)  # trained again to the same weights
    store.renew([generator])
    kind, networks = type(generator.recipe), type(generator.recipe).networks

    def others(self, images, seed):
        return networks(self, images, seed + 1)

    monkeypatch.setattr(kind, "networks", others)
    assert not torch.equal(store.images(data).x_train, first)


def test_a_critic_without_classes_has_no_soft_targets(tmp_path):
    generator = two("spectral norm", epochs=1)
    data = Augmented(REAL, generator, 10, targets="soft")
    with pytest.raises(BadInput, match="names no class: hard targets only"):
        store_at(tmp_path).images(data)
    assert len(store_at(tmp_path).images(replace(data, targets="hard")).x_train) == 160


def test_without_its_generator_nothing_is_made_when_nothing_is_to_be_trained(tmp_path):
    store = store_at(tmp_path)
    with store.training(False), pytest.raises(RunsFailed, match="not run yet"):
        store.ensure([learner(Augmented(REAL, two(), 10))])


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"count": 10}, "images need the run of a generator"),
        ({"generator": two()}, "images need the run of a generator"),
        ({"real": "faint10"}, "must be such as Named"),
        ({"few": -1}, "few = -1"),
        ({"targets": "softer"}, "targets = softer"),
        ({"teacher": two()}, "a teacher is a run"),
        ({"teacher": "somebody", "targets": "soft"}, "a teacher is a run"),
    ],
)
def test_what_cannot_be_is_refused(wrong, said):
    with pytest.raises(BadInput, match=said):
        Augmented(**({"real": REAL} | wrong))


def test_a_preset_scales_the_data_the_generator_and_the_count():
    whole = Named("cifar10", part="CIFAR-10")
    made = Run(whole, GANS["ACGAN"], Length(100, 100))
    run = learner(Augmented(whole, made, 50_000, few=100))
    preset = replace(settings.load("smoke", 5), train_size=300, test_size=40, held_out=50, seeds=2)
    ours, other = seeded(preset, run)
    assert ours.data.count == 300 and ours.data.few == 100
    assert ours.data.real.name == ours.data.generator.data.name == preset.cifar10
    assert ours.data.generator == scaled(preset, made) == other.data.generator
    said = shortfall(ours, run)
    assert "300 of 50,000 generated images" in said and said.count("stand-in") == 1
    assert run.part == "CIFAR-10" and ours.data.stands_in and not run.data.stands_in


def test_a_plan_counts_the_generator(tmp_path):
    run = learner(Augmented(REAL, two("ACGAN", epochs=1), 20, few=20))
    assert plan._needed(run.needs()) == {run.data.generator.key: run.data.generator}


def test_what_learns_attributes_has_a_cost():
    assert durations.training(learner(FACES, MultiLabel())) > 0


def test_generated_images_with_rare_attributes(tmp_path):
    images = FACES.images()
    y = augmented.wanted(images, 25, ("Large", "Red"))
    assert y.shape == (50, 3) and (y[:25, 2] == 1).all() and (y[25:, 0] == 1).all()
    known = {tuple(row) for row in images.y_train.tolist()}
    assert {tuple(row) for row in y.tolist()} <= known  # no combination that no image has
    assert augmented.wanted(images, 25).shape == (25, 3)
    with pytest.raises(BadInput, match="Beard: not among the attributes of glyphs: Red, Framed"):
        augmented.wanted(images, 25, ("Beard",))


def test_targets_are_the_mean_cross_entropy():
    torch.manual_seed(0)
    z = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    p = torch.rand(6, 4, dtype=torch.float64).softmax(1)
    loss = Targets()(torch.nn.Identity(), z, p, None)
    torch.testing.assert_close(loss, F.cross_entropy(z, p).float(), check_dtype=False)
    y = torch.arange(6) % 4
    assert torch.equal(Targets()(torch.nn.Identity(), z, y, None), Plain()(lambda _: z, z, y, None))


@pytest.mark.parametrize("printed", [False, True])
def test_the_loss_of_attributes_is_eq_3_2(printed):
    z = torch.tensor([[0.3, -1.2, 2.0], [1.0, 0.0, -0.5]])
    y = torch.tensor([[1, 0, 1], [0, 0, 1]])
    total = 0.0
    for logits, labels in zip(z.tolist(), y.tolist(), strict=True):
        for logit, label in zip(logits, labels, strict=True):
            p = 1 / (1 + math.exp(-logit))
            total -= label * math.log(p) + (not printed) * (1 - label) * math.log(1 - p)
    assert math.isclose(
        MultiLabel(printed)(lambda x: z, z, y, None).item(), total / 2, rel_tol=1e-5
    )


def test_each_attribute_has_an_accuracy(tmp_path):
    class Says(torch.nn.Module):
        "Always the same logits, in the order in which it is asked."

        def __init__(self):
            super().__init__()
            self.logits = torch.nn.Parameter(torch.tensor([[1.0, -1.0], [-1.0, -1.0], [2.0, 3.0]]))
            self.at = 0

        def forward(self, x):
            self.at += len(x)
            return self.logits[self.at - len(x) : self.at]

    x, y = torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.tensor([[1, 0], [1, 1], [1, 1]])
    found = recognition(Says(), x, y, batch_size=2)
    torch.testing.assert_close(found, torch.tensor([200 / 3, 200 / 3]).double())
    classes = recognition(Says(), x, torch.tensor([0, 0, 1]), batch_size=2)
    torch.testing.assert_close(classes, torch.tensor([100 / 3, 100.0]).double())
    store, run = store_at(tmp_path), learner(FACES, MultiLabel())
    [record] = store.ensure([run])
    measured = [Recognised(name) for name in FACES.attributes]
    made = measured[0].make(store, run)
    values = [m.value(store, run) for m in measured]
    assert values == [made[name] for name in FACES.attributes]
    assert math.isclose(sum(values) / 3, record.metrics["last"]["accuracy"], rel_tol=1e-9)
    images, net = store.images(run.data), store.weights(run, "last")
    with torch.no_grad():
        direct = (net(images.x_test / 255) > 0) == images.y_test
    right = [m.right(store, run) for m in measured]
    assert np.array_equal(np.stack(right, 1), direct.numpy())
    assert Recognised("Red", "best").right(store, run) is None  # not measured


def test_attributes_need_a_method_for_them(tmp_path):
    with pytest.raises(RunsFailed, match=r"glyphs has attributes.*MultiLabel"):
        store_at(tmp_path).ensure([learner(FACES, Plain())])
