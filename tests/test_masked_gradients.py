"""Masked gradients: when the signs are raised, what stays open, and the loss along directions."""

import numpy as np
import pandas as pd
import pytest
import torch

from thesis_repro import data, masked_gradients, models
from thesis_repro.images import pixels
from thesis_repro.masked_gradients import loss_along, masking_signs, masking_verdict, random_share


@pytest.fixture(scope="module")
def digits():
    return data.load("faint10", train_size=100, test_size=40, held_out=20)


HONEST = {
    "PGD-20": 51.0,
    "FGSM": 57.0,
    "CW-PGD-100": 49.0,
    "PGD-20, logits scaled": 50.5,
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
