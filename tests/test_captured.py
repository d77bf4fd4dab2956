"A recorded step gives the bits of an ordinary one, or says why it cannot be recorded."

import pytest
import torch
from test_waiting import GANS, METHODS, recipe

from thesis_repro import attacks, captured, models, pieces, settings, training
from thesis_repro.adversarial import Adversarial
from thesis_repro.attacks import PGD
from thesis_repro.draws import Draws
from thesis_repro.files import BadInput
from thesis_repro.gans import Gan
from thesis_repro.images import synthetic_images
from thesis_repro.mixup import Mixup, Plain
from thesis_repro.pieces import piece
from thesis_repro.recipes import SGD, Adam, Batch, Classify, Phase
from thesis_repro.training import Compute, Length

EAGER = {  # what cannot be recorded, and a word of the reason that is given
    "Free AT": "used again",
    "BiLAW": "second derivatives",
    "MetaMixup": "second derivatives",
}
GROWING = {"PGGAN": "progress", "Fused-GAN": "", "D2A2GAN": "progress"}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    "An architecture of two blocks; a CPU does not leave an attack early, as a GPU does not."
    small = models.Architecture(models.PostActivation, 8, (1, 1), (8, 8))
    monkeypatch.setitem(models.ARCHITECTURES, "tiny", small)
    monkeypatch.setattr(attacks.Search, "over", False)
    monkeypatch.setattr(captured, "WARM", 2)


def after(recipe, steps: int, side: int, epochs: int = 2, **how) -> training.Training:
    "A training after so many of its steps, two in an epoch, with eight images in a batch."
    images = synthetic_images(16, side)
    compute = Compute(captured=True, progress=False, **how)
    t = training.start(recipe, images, Length(epochs, 8), compute=compute)
    for _ in range(steps):
        take_one(t)
    return t


def take_one(t: training.Training) -> None:
    "One step of a training."
    if t.at.step * t.length.batch_size >= len(t.images.y_train):
        t.at.step, t.at.epoch = 0, t.at.epoch + 1
    index = training._place(t).samples
    training.step(t, t.images.x_train[index].float() / 255, t.images.y_train[index])


def state(t: training.Training) -> list[torch.Tensor]:
    "All tensors that a step changes, and its losses."
    memory = [v for o in t.optimisers.values() for s in o.state.values() for v in s.values()]
    kept = [v for v in t.nets.state_dict().values() if torch.is_tensor(v)]
    return [*kept, *memory, *(loss for _, _, loss, _ in t.pending)]


def ordinary(monkeypatch, *what, **how) -> training.Training:
    "The same training with the same optimisers, and nothing recorded."
    with monkeypatch.context() as m:
        m.setattr(captured, "WARM", 10**9)
        return after(*what, **how)


def equal(a: training.Training, b: training.Training) -> bool:
    return all(torch.equal(x, y) for x, y in zip(state(a), state(b), strict=True))


def same(monkeypatch, *what, **how) -> training.Training:
    "A recorded training, after it was found equal to the ordinary one."
    found = after(*what, **how)
    assert equal(ordinary(monkeypatch, *what, **how), found)
    return found


@pytest.mark.parametrize("name", METHODS)
def test_a_recorded_step_of_a_method_gives_the_same_bits(name, monkeypatch):
    t = same(monkeypatch, recipe(METHODS[name]), 6, 16, epochs=3)
    assert EAGER.get(name, "nothing") in (t.recorder.why or "nothing")
    assert t.recorder.counts["replayed"] or len(t.recorder.ways) > 1 or name in EAGER


SMALL = settings.load("smoke", width=1 / 32)


@pytest.mark.parametrize("name", GANS)
def test_a_recorded_step_of_a_gan_gives_the_same_bits(name, monkeypatch):
    "One that grows asks for its progress and stays as it is."
    t = same(monkeypatch, GANS[name].scaled(SMALL), 6, 32, epochs=3)
    grows = bool(getattr(GANS[name], "growth", None))
    print(name, t.recorder.said(), grows)
