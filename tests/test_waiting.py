"In a training step the processor only queues work for a GPU; where it waits, there is a reason."

import pytest
import torch
from waiting import Copies, Numbers, add_tiny, pretending, waits

from thesis_repro import bench, distributed, training
from thesis_repro.adversarial import Adversarial
from thesis_repro.aip import timed_methods
from thesis_repro.attacks import PGD
from thesis_repro.conditional_gans import dcgan, pggan
from thesis_repro.d2a2gan import d2a2gan
from thesis_repro.gan_speed import progressive
from thesis_repro.images import pixels, synthetic_images
from thesis_repro.learned_ratios import AdaMixup, MetaMixup
from thesis_repro.margin_reweighting import methods as reweighted
from thesis_repro.mixup import Mixup, Plain
from thesis_repro.pieces import piece
from thesis_repro.ratio_search import Golden, Parabolic
from thesis_repro.recipes import SGD, Classify
from thesis_repro.training import Compute, Length
from thesis_repro.wcgan import fused
from thesis_repro.zoo import ZOO

METHODS = {name: row.method for name, row in ZOO.items()} | bench.compared_methods()
METHODS |= timed_methods() | reweighted("resnet18", "CIFAR-10")
METHODS |= {"MetaMixup": MetaMixup(), "AdaMixup": AdaMixup()}
METHODS |= {"golden": Mixup((1,), Golden()), "parabolic": Mixup((1,), Parabolic())}
METHODS |= {"L1": Adversarial(PGD(epsilon=3.0, norm="l1"))}
GANS = {"DCGAN": dcgan(), "PGGAN": pggan(), "Fused-GAN": fused(), "D2A2GAN": d2a2gan()}

KEPT = {  # in whose steps the processor waits, and why
    "L2": "the projection goes on until no further pixel is stopped",
    "restarts": "an image replaces an earlier one only where it is worse, sample by sample",
    "fully grown": "a progressive GAN that does not grow asks its buffer for its level",
}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    "An architecture of two blocks; and `meta` is a device to compute on."
    add_tiny(monkeypatch)
    with pretending(monkeypatch):
        yield


def recipe(method) -> Classify:
    return Classify("tiny", method, SGD(1e-3))


WAITING = {
    "L2": (recipe(Adversarial(PGD(epsilon=0.5, norm="l2", steps=1))), 16),
    "restarts": (recipe(Adversarial(PGD(restarts=2))), 16),
    "fully grown": (progressive(8), 32),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_step_of_a_method_waits_for_nothing(name):
    assert waits(recipe(METHODS[name])) == []


@pytest.mark.parametrize("name", GANS)
def test_a_step_of_a_gan_waits_for_nothing(name):
    assert waits(GANS[name], 32) == []


@pytest.mark.parametrize("name", KEPT)
def test_what_waits_has_a_reason(name):
    "The list is no longer than it has to be."
    assert waits(*WAITING[name]) and WAITING.keys() == KEPT.keys()


def test_a_norm_that_processes_share_waits_for_no_number(monkeypatch):
    "It sends how many values it has seen with their mean and deviations, without a copy."
    monkeypatch.setattr(distributed, "_gathered", lambda part, n: part)
    norm, seen = distributed.SharedNorm(4).to("meta"), []
    with Numbers(seen), Copies(seen):
        norm(torch.rand(4, 4, 2, 2, device="meta"))
    assert seen == [] and norm.training


@piece
class Waiter(Plain):
    "A method that does one of the things that make the processor wait."

    how: str = "item"

    def __call__(self, model, x, y, draws):
        asks = {
            "item": lambda: x.mean().item(),
            "mask": lambda: x[x > 0.5],
            "nonzero": lambda: y.nonzero(),
            "truth": lambda: bool((y > 0).any()),
            "equal": lambda: torch.equal(x, x + 1),
            "back": lambda: x.cpu(),
            "copy": lambda: torch.arange(3).to(x.device),
            "copied": lambda: torch.zeros(3, device=x.device).copy_(torch.arange(3)),
            "numbers": lambda: torch.tensor([1.0, 2.0], device=x.device),
            "new": lambda: x.new_tensor([1.0]),
        }
        asks.get(self.how, lambda: draws.tensor("seam", lambda g: g.random(3), x.device))()
        return super().__call__(model, x, y, draws)


ASKED = ("item", "mask", "nonzero", "truth", "equal", "back", "copy", "copied", "numbers", "new")


@pytest.mark.parametrize("how", ASKED)
def test_the_eye_sees_whatever_waits(how):
    assert waits(recipe(Waiter(how=how)))


def test_draws_through_the_seam_do_not_wait():
    assert waits(recipe(Waiter(how="seam"))) == []


@pytest.mark.parametrize("name", sorted({"Madry AT", "RWP", "BiLAW", "AIP fast"} & METHODS.keys()))
def test_on_a_gpu_torch_agrees(name, device):
    "PyTorch itself raises where a step waits; only a GPU can show it."
    if torch.device(device).type != "cuda":
        pytest.skip("needs a GPU: pytest --device cuda")
    t = training.start(
        recipe(METHODS[name]), synthetic_images(8, 16), Length(4, 8), compute=Compute(device)
    )
    x, y = pixels(t.images.x_train), t.images.y_train
    training.step(t, x, y)  # the first one may wait: kernels are chosen, memory is asked for
    torch.cuda.set_sync_debug_mode("error")
    try:
        training.step(t, x, y)
    finally:
        torch.cuda.set_sync_debug_mode("default")
