"""What tests train: small runs, stores for them, and methods of their own.

The methods are pieces, so that their runs can be written down and made in other processes.
"""

import math
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

from thesis_repro import checkpoints, settings
from thesis_repro.mixup import Plain
from thesis_repro.models import batch_statistics, full
from thesis_repro.pieces import field, piece
from thesis_repro.recipes import SGD, Adam, Classify, Phase
from thesis_repro.runs import Named, Run
from thesis_repro.store import Store
from thesis_repro.training import Length

NEVER = 86_400.0  # seconds between two checkpoints: only what stops a run saves it


def small(method=Plain(), seed=0, epochs=3, label="small", train=150, batch=50, **sgd) -> Run:
    "A run of a second: three steps an epoch."
    data = Named("faint10", train, 50, 50, part="CIFAR-10")
    recipe = Classify("resnet18", method, SGD(**sgd), 0.0625)
    return Run(data, recipe, Length(epochs, batch), seed, home="tests/runs", label=label)


def store_at(folder, **changes) -> Store:
    "A store on the device that the tests were asked to use."
    how = {"device": os.environ.get("DEVICE_OF_TESTS", "cpu"), "precision": "fp32", "jobs": 1}
    return Store(settings.load("smoke", **how | changes), folder)


def left_by(folder, run) -> tuple[dict, dict]:
    "The record of a run without what differs from day to day, and all its weights by name."
    record = store_at(folder).record(run)
    weights = checkpoints.read_checkpoint(record.folder / "weights.ckpt")
    told = {"metrics": record.metrics, "history": record.history, "weights": record.weights}
    told |= {"run": record.run, "data": record.data, "code": record.code}
    return told, {f"{which} {k}": v for which, state in weights.items() for k, v in state.items()}


def same(a, b) -> bool:
    "Whether two runs left the same, to the last bit."
    pairs = [(a[1][k], b[1].get(k)) for k in a[1]]
    return a[0] == b[0] and a[1].keys() == b[1].keys() and all(torch.equal(*p) for p in pairs)


@piece
class Weighed:
    "Two networks, two optimisers: a policy weighs each image and learns in every second step."

    optimiser: object = Adam(3e-3, (0.9, 0.999))
    every: int = field(2, low=1)
    turns: tuple[int, int] = (1, 0)

    def networks(self, model, images) -> dict:
        pixels = math.prod(images.x_train.shape[1:])
        layers = (nn.Linear(pixels, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
        return {"policy": nn.Sequential(nn.Flatten(), *layers)}

    def phases(self):
        how = self.optimiser, self.policy_loss, self.every, self.turns
        return (Phase("policy", ("policy",), *how),)

    def weights(self, nets, batch):
        "The weight of each image, (n,), on average one."
        x = batch.x.to(next(nets["policy"].parameters()).dtype)
        return len(x) * full(nets["policy"](x)).squeeze(1).softmax(0)

    def policy_loss(self, nets, batch):
        "Large weights for large losses, but not too large."
        with torch.no_grad(), batch_statistics(nets["model"]):
            losses = F.cross_entropy(full(nets["model"](batch.x)), batch.y, reduction="none")
        weights = self.weights(nets, batch)
        return (weights.square() - weights * losses).mean()

    def joint_loss(self, nets, batch):
        losses = F.cross_entropy(full(nets["model"](batch.x)), batch.y, reduction="none")
        return (self.weights(nets, batch).detach() * losses).mean()


@piece
class Counted:
    "Plain training that adds a line to a file when it begins."

    file: str

    def __call__(self, model, x, y, draws):
        if (draws.epoch, draws.step) == (0, 0):
            with open(self.file, "a") as f:
                f.write("begun\n")
        return Plain()(model, x, y, draws)


@piece
class Telling:
    "Plain training that writes down the process that does it, in the folder $TELLING."

    def __call__(self, model, x, y, draws):
        if (draws.epoch, draws.step) in ((0, 0), (0, 1)):
            Path(os.environ["TELLING"], f"{draws.seed}-{draws.step}").write_text(str(os.getpid()))
        return Plain()(model, x, y, draws)


@piece
class Dawdling(Telling):
    "The same, a second a step while there is a file `slowly`: it is not over before a fault comes."

    def __call__(self, model, x, y, draws):
        if Path(os.environ["TELLING"], "slowly").exists():
            time.sleep(1)
        return super().__call__(model, x, y, draws)


@piece
class Fails:
    "A method that cannot work."

    def __call__(self, model, x, y, draws):
        raise ValueError("this method cannot work")


@dataclass
class Exact:
    "The loss of a phase, of images in float64."

    loss: object

    def __call__(self, nets, batch):
        return self.loss(nets, replace(batch, x=batch.x.double()))


@piece
class Doubled:
    "A recipe whose networks compute in float64."

    recipe: object

    def networks(self, images, seed):
        return self.recipe.networks(images, seed).double()

    def phases(self, nets):
        return tuple(replace(p, loss=Exact(p.loss)) for p in self.recipe.phases(nets))

    def prepared(self, images):
        return self.recipe.prepared(images)

    def judge(self, nets, images):
        return self.recipe.judge(nets, images)

    def results(self, nets, images):
        return self.recipe.results(nets, images)

    def scaled(self, preset):
        return Doubled(self.recipe.scaled(preset))


@piece
class Made:
    "Data that another run makes: its images, which are there only if that run is."

    by: Run
    folder: str

    def images(self, stream=False):
        record = store_at(self.folder).record(self.by)
        if record is None:
            raise FileNotFoundError(f"{self.by.name} was to be made first")
        return self.by.data.images(stream)


@piece
class Halved:
    "Plain training on half the loss: other weights, whose run has another key."

    def __call__(self, model, x, y, draws):
        return 0.5 * Plain()(model, x, y, draws)
