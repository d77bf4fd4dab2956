"Wrong labels, a training that is watched under attack, and what figure 2.15 says in numbers."

import pandas as pd
import pytest
import torch

from thesis_repro import data, training
from thesis_repro.adversarial import Adversarial
from thesis_repro.attacks import PGD
from thesis_repro.overfitting import (
    Mislabelled,
    WatchedClassify,
    overfitted,
    under_attack,
    with_wrong_labels,
)
from thesis_repro.recipes import SGD, Classify
from thesis_repro.training import Compute, Length

QUIET = Compute(progress=False)


def test_wrong_labels_are_wrong_and_as_many_as_said():
    d = data.load("faint10", train_size=1000, test_size=20, held_out=20)
    told = with_wrong_labels(d, 0.2)
    share = (told.y_train != d.y_train).float().mean().item()
    assert (
        0.16 < share < 0.24
        and torch.equal(told.x_train, d.x_train)
        and torch.equal(told.y_test, d.y_test)
    )
    assert told.y_train.min() >= 0 and told.y_train.max() <= 9
    assert torch.equal(with_wrong_labels(d, 0.0).y_train, d.y_train)


def test_a_watched_training_is_the_training():
    "Looking at it under attack every second epoch changes nothing, and finds the best of these."
    images = Mislabelled("faint10", 100, 200, 20, wrong_labels=0.2).images()
    method = Adversarial(PGD(steps=1), selection=None)
    watching = WatchedClassify("resnet18", method, SGD(weight_decay=5e-4), 0.0625, every=2)
    plain = Classify("resnet18", watching.method, watching.optimiser, watching.width)
    starts = [training.start(r, images, Length(4, 50), compute=QUIET) for r in (plain, watching)]
    whole, seen = (training.train(t) for t in starts)
    assert whole.at.epoch == seen.at.epoch == 4
    for k, v in whole.nets.state_dict().items():
        assert torch.equal(v, seen.nets.state_dict()[k]), k
    rows = [r for r in seen.at.history if "test loss" in r]
    assert [r["epoch"] for r in rows] == [2, 4]
    best = max(range(2), key=lambda i: (rows[i]["test accuracy"], -i))
    last, at_best = seen.nets.state_dict(), seen.at.best["weights"]
    for weights, row in ((at_best, rows[best]), (last, rows[-1])):
        nets = watching.networks(images, 0)
        nets.load_state_dict(weights)
        found = under_attack(nets["model"], images.x_test, images.y_test)
        expected = {k: row[f"test {k}"] for k in ("accuracy", "loss")}
        assert found == pytest.approx(expected, rel=1e-4)


def test_what_figure_2_15_says_in_numbers():
    rows = pd.DataFrame({"test accuracy": [40.0, 52.0, 47.0], "test loss": [1.5, 1.3, 1.9]})
    grid = pd.DataFrame({"alpha": [-1, 0, 1, 0], "beta": [0, 0, 0, 1], "loss": [3.0, 1.0, 5.0, 7]})
    told = overfitted(rows.assign(method="AT"), grid.assign(network="AT, last"))
    assert [(row, unit) for row, _, _, unit in told] == [
        ("AT", "points"),
        ("AT", ""),
        ("AT, last", ""),
    ]
    assert [value for _, _, value, _ in told] == pytest.approx([5.0, 0.6, 3.0])
