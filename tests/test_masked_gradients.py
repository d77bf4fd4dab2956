"""Masked gradients: when the signs are raised, what stays open, and the loss along directions."""

import numpy as np
import pandas as pd
import pytest
import torch

from thesis_repro import data, m2at, masked_gradients, models, settings
from thesis_repro.images import pixels
from thesis_repro.masked_gradients import loss_along, masking_signs, masking_verdict, random_share
from thesis_repro.robustness import robust_accuracy


@pytest.fixture(scope="module")
def digits():
    return data.load("faint10", train_size=100, test_size=40, held_out=20)


HONEST = {
    "PGD-20": 51.0,
    "FGSM": 57.0,
    "CW-PGD-100": 49.0,
    "PGD-20, logits scaled": 50.5,
    "PGD-20, logits × 0.1": 52.0,
    "AutoAttack": 47.5,
    "PGD-20 from Standard": 82.0,
    "PGD-20 from an adversarially trained network": 63.0,
    "PGD at ε = 1": 0.0,
    "random against gradient": 0.02,
}


def test_an_honest_network_raises_no_sign():
    assert set(masking_signs(HONEST).values()) == {False}
    assert masking_verdict(HONEST) == "no sign of masking"


@pytest.mark.parametrize(
    "changed",
    [
        {"CW-PGD-100": 40.9},
        {"PGD-20, logits scaled": 40.9},
        {"PGD-20, logits × 0.1": 40.9},
        {"AutoAttack": 20.57},
        {"PGD-20 from Standard": 48.9},
        {"PGD-20 from an adversarially trained network": 48.9},
        {"FGSM": 48.9},
        {"PGD at ε = 1": 2.1},
        {"random against gradient": 0.51},
        {"random against gradient": float("inf")},
    ],
)
def test_each_sign_is_raised_alone(changed):
    signs = masking_signs(HONEST | changed)
    assert sum(bool(s) for s in signs.values()) == 1
    assert masking_verdict(HONEST | changed).startswith("gradients masked: ")


@pytest.mark.parametrize(
    "near",
    [
        {"AutoAttack": 41.1},
        {"FGSM": 49.1},
        {"PGD at ε = 1": 1.9},
        {"random against gradient": 0.49},
    ],
)
def test_within_the_rule_no_sign_is_raised(near):
    assert masking_verdict(HONEST | near) == "no sign of masking"


def test_what_is_not_measured_is_open_and_not_absent():
    verdict = masking_verdict(HONEST | {"AutoAttack": float("nan")})
    assert verdict.startswith("no sign of masking in 6 of 7 tests; open: AutoAttack")
    assert masking_verdict({}) == masking_verdict(
        dict.fromkeys(HONEST, float("nan"))
    ) and masking_verdict({}).startswith("not judged")
    weak = HONEST | {
        "PGD-20": 8.0,
        "CW-PGD-100": 0.0,
        "AutoAttack": 0.0,
        "PGD-20, logits scaled": 1.0,
        "PGD-20, logits × 0.1": 1.0,
    }
    assert (
        masking_signs(weak)["AutoAttack finds much more than PGD-20"] is None
    )  # 8 cannot fall by 10
    half = {k: v for k, v in HONEST.items() if k != "PGD-20 from Standard"}
    assert masking_signs(half)["transfer finds more than PGD-20"] is None
    assert (
        masking_signs(half | {"PGD-20 from an adversarially trained network": 10.0})[
            "transfer finds more than PGD-20"
        ]
        is True
    )


def test_the_loss_rises_along_the_gradient_and_not_along_random_directions(digits):
    net = models.build("resnet18", 10, 0.0625, 3, digits.mean, digits.std)
    x, y = pixels(digits.x_test), digits.y_test
    before = [b.clone() for b in net.buffers()]
    along = loss_along(net.train(), x, y, (0, 1 / 255, 2 / 255))
    with torch.no_grad():
        start = torch.nn.functional.cross_entropy(net.eval()(x), y).item()
    assert along.gradient[0] == along.random[0] == pytest.approx(start, rel=1e-5)
    assert along.gradient.is_monotonic_increasing and abs(random_share(along)) < 0.3
    assert all(torch.equal(a, b) for a, b in zip(before, net.buffers(), strict=True))
    assert all(p.grad is None for p in net.parameters())


def test_a_flat_gradient_counts_as_no_better_than_random():
    flat = pd.DataFrame({"distance": [0, 1], "gradient": [1.0, 1.0], "random": [1.0, 1.2]})
    assert random_share(flat) == np.inf
    assert random_share(flat.assign(gradient=[1.0, 1.4])) == pytest.approx(0.5)


def test_a_sign_that_cannot_be_raised_is_open():
    "An attack leaves over two points less: where PGD-20 leaves two, no attack can."
    for left, found in ((2.0, None), (1.9, None), (2.1, False)):
        assert masked_gradients._found_more({"PGD-20": left, "FGSM": left}, ("FGSM",), 2.0) is found
    assert masked_gradients._found_more({"PGD-20": 9.0, "FGSM": 6.9}, ("FGSM",), 2.0) is True


def test_a_saturated_softmax_is_noticed():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 2))
    with torch.no_grad():  # logits so far apart that no rival's probability is above zero
        net[1].weight.copy_(torch.tensor([[12.5], [-12.5]]).expand(2, 768))
        net[1].bias.copy_(net[1].weight.sum(1) * -128 / 255)
    x, y = torch.full((4, 3, 16, 16), 132, dtype=torch.uint8), torch.zeros(4, dtype=torch.long)
    columns = m2at.real_columns(settings.load("smoke", 5), "M2AT").items()
    asked = {n: m.attack for n, m in columns if n == "PGD-20" or n.startswith("PGD-20, logits")}
    found = {n: robust_accuracy(net, x, y, a, progress=False)["accuracy"] for n, a in asked.items()}
    assert found["PGD-20"] == 100  # and yet four grey levels of eight mislead it
    signs = masking_signs(HONEST | found)
    assert signs["PGD-20, logits scaled finds much more than PGD-20"]
