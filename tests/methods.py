"Methods that tests train with: pieces, so that their runs are written down and made elsewhere."

import math
import os
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

from thesis_repro.mixup import Plain
from thesis_repro.models import batch_statistics, full
from thesis_repro.pieces import field, piece
from thesis_repro.recipes import Adam, Phase


@piece
class Weighed:
    "Two networks, two optimisers: a policy weighs each image and learns in every second step."

    optimiser: object = Adam(3e-3, (0.9, 0.999))
    every: int = field(2, low=1)

    def networks(self, model, images) -> dict:
        pixels = math.prod(images.x_train.shape[1:])
        layers = (nn.Linear(pixels, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
        return {"policy": nn.Sequential(nn.Flatten(), *layers)}

    def phases(self):
        return (Phase("policy", ("policy",), self.optimiser, self.policy_loss, self.every),)

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
class Fails:
    "A method that cannot work."

    def __call__(self, model, x, y, draws):
        raise ValueError("this method cannot work")


@piece
class Doubled:
    "A recipe whose networks compute in float64."

    recipe: object

    def networks(self, images, seed):
        return self.recipe.networks(images, seed).double()

    def phases(self, nets):
        return self.recipe.phases(nets)

    def after(self, nets, batch):
        self.recipe.after(nets, batch)

    def judge(self, nets, images):
        return self.recipe.judge(nets, images)

    def results(self, nets, images):
        return self.recipe.results(nets, images)

    def scaled(self, preset):
        return Doubled(self.recipe.scaled(preset))
