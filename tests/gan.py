"""Two networks with two optimisers each: a small conditional GAN of the tests' own, which tells
how costs and plans treat what is no classifier, and runs of the library's."""

import copy
import dataclasses
import os
import time
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

from thesis_repro import gans
from thesis_repro.games import Hinge, Wasserstein
from thesis_repro.gan_networks import (
    ClassHead,
    DcganCritic,
    DcganGenerator,
    Projection,
    SplitGenerator,
)
from thesis_repro.images import pixels
from thesis_repro.pieces import field, piece
from thesis_repro.recipes import Adam, Phase
from thesis_repro.runs import Named, Run
from thesis_repro.training import Length

SMALL = DcganGenerator(8, (16,))  # with batch normalisation
SPLIT = SplitGenerator(9, (8, 8))  # with conditional batch normalisation
NAMING = (gans.Auxiliary(),)
NORMED = DcganCritic((8, 16), classes=ClassHead())
SPECTRAL = DcganCritic((8, 16), Projection(), norm="spectral", compare=True)
BARE = DcganCritic((8, 16), classes=ClassHead(), norm="none")
FREE = (*NAMING, gans.GradientPenalty(), gans.Drift())


@piece
class Waits(gans.Term):
    "Adds nothing; half a second a step while there is a file `slowly` in the folder $TELLING."

    def critic(self, seen):
        if Path(os.environ.get("TELLING", ""), "slowly").exists():
            time.sleep(0.5)
        return 0.0


GANS = {
    "ACGAN": gans.Gan(SMALL, NORMED, terms=NAMING, average=0.9),
    "spectral norm": gans.Gan(SPLIT, SPECTRAL, Hinge(), terms=(gans.R1(1.0),)),
    "WGAN-GP": gans.Gan(SMALL, BARE, Wasserstein(), FREE, critic_steps=2, average=0.9),
}


def two(gan="ACGAN", epochs=3, seed=0, train=150, batch=50, **changes) -> Run:
    "A run of a generator and a critic on images of 8 × 8 pixels: three steps an epoch."
    data = Named("faint10", train, 50, 50, part="CIFAR-10")
    recipe = dataclasses.replace(GANS[gan], **changes)
    return Run(data, recipe, Length(epochs, batch), seed, home="tests/gans", label=gan)


class Generator(nn.Module):
    "Noise and a label to an image of 16 × 16 pixels."

    def __init__(self, classes, channels, noise, width):
        super().__init__()
        self.classes = classes
        self.layers = nn.Sequential(
            nn.ConvTranspose2d(noise + classes, 2 * width, 4, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 4, 2, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.ConvTranspose2d(width, channels, 4, 2, 1),
            nn.Sigmoid(),
        )

    def forward(self, z, y):
        label = F.one_hot(y, self.classes).to(z)
        return self.layers(torch.cat([z, label], 1)[:, :, None, None])


class Critic(nn.Module):
    "A score for an image, and logits for its class."

    def __init__(self, classes, channels, width):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(channels, width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
        )
        self.score, self.label = nn.Linear(32 * width, 1), nn.Linear(32 * width, classes)

    def forward(self, x):
        h = self.trunk(x)
        return self.score(h).squeeze(1), self.label(h)


@piece
class TinyGan:
    "An auxiliary classifier GAN, with a gradient penalty if asked for."

    width: int = field(16, low=1)
    noise: int = field(8, low=1)
    critic: object = Adam()
    generator: object = Adam()
    critic_steps: int = field(1, low=1)
    penalty: float = field(0.0, low=0)

    def prepared(self, images):
        return images

    def networks(self, images, seed):
        channels = images.x_train.shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            generator = Generator(images.classes, channels, self.noise, self.width)
            nets = {"generator": generator, "average": copy.deepcopy(generator)}
            nets["average"].requires_grad_(False)
            return nn.ModuleDict(nets | {"critic": Critic(images.classes, channels, self.width)})

    def phases(self, nets):
        critic = Phase("critic", ("critic",), self.critic, self.critic_loss)
        how = ("generator", ("generator",), self.generator, self.generator_loss)
        return critic, Phase(*how, every=self.critic_steps)

    def made(self, nets, batch, purpose):
        def drawn(g):
            return torch.randn(len(batch.y), self.noise, generator=g, device=batch.y.device)

        return nets["generator"](batch.draws.noise(purpose, drawn, batch.y.device), batch.y)

    def critic_loss(self, nets, batch):
        with torch.no_grad():
            fake = self.made(nets, batch, "critic")
        (real_score, label), (fake_score, _) = nets["critic"](batch.x), nets["critic"](fake)
        loss = F.softplus(-real_score).mean() + F.softplus(fake_score).mean()
        if self.penalty:
            between = torch.lerp(fake, batch.x, 0.5).requires_grad_()
            score = nets["critic"](between)[0].sum()
            (slope,) = torch.autograd.grad(score, between, create_graph=True)
            loss = loss + self.penalty * (slope.flatten(1).norm(dim=1) - 1).square().mean()
        return loss + F.cross_entropy(label, batch.y)

    def generator_loss(self, nets, batch):
        score, label = nets["critic"](self.made(nets, batch, "generator"))
        return F.softplus(-score).mean() + F.cross_entropy(label, batch.y)

    @torch.no_grad()
    def after(self, nets, batch):
        pairs = zip(nets["average"].parameters(), nets["generator"].parameters(), strict=True)
        for average, now in pairs:
            average.lerp_(now, 0.01)

    @torch.no_grad()
    def judge(self, nets, images):
        "Minus the squared distance of the mean images, made and real."
        y, average = images.y_val, nets["average"].eval()
        z = torch.zeros(len(y), self.noise, device=y.device)
        apart = average(z, y).mean(0) - pixels(images.x_val).mean(0)
        average.train()
        return {"score": -apart.square().sum().item()}

    def results(self, nets, images):
        return self.judge(nets, images)

    def scaled(self, preset):
        return self
