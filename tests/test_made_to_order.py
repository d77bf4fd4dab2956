"""Images made to order: every equation against another way of writing it, and what is refused."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from thesis_repro.draws import Draws
from thesis_repro.files import BadInput
from thesis_repro.made_to_order import (
    MARGIN,
    TARGETS,
    WAYS,
    ToOrder,
    anything,
    bounded,
    cross_entropy_of,
    descent,
    distribution,
    high_frequencies,
    image_in,
    image_layer,
    kl,
    low_pass,
    mobility,
    momentum,
    one_by_one,
    targets,
    two_classes,
    unbounded,
)
from thesis_repro.models import Diverged

G = torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True)
def the_same_draws():
    "Whichever tests ran before."
    G.manual_seed(0)


def rand(*shape):
    return torch.rand(shape, generator=G, dtype=torch.float64)


@pytest.fixture(scope="module")
def net():
    "A small network that looks closely at its images."
    parts = [nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Tanh(), nn.AdaptiveAvgPool2d(4)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = nn.Sequential(*parts, nn.Flatten(), nn.Linear(96, 5)).double()
        model[-1].weight.data *= 20
    return model.eval()


# ---- equations 1 to 5


def test_pixels_to_weights_and_back_against_numpy():
    x = rand(2, 3, 4, 4)
    inner = np.clip(x.numpy(), MARGIN, 1 - MARGIN)
    np.testing.assert_allclose(unbounded(x), np.tan((inner - 0.5) * np.pi), rtol=1e-12)
    w = 100 * (rand(50) - 0.5)
    np.testing.assert_allclose(bounded(w), np.arctan(w.numpy()) / np.pi + 0.5, rtol=1e-12)
    assert 0 <= bounded(torch.tensor([-1e30, 1e30])).min() <= 1


def test_the_margin_is_a_quarter_of_a_grey_level_and_loses_no_grey_level():
    assert math.isclose(255 * MARGIN, 0.25)
    grey = torch.arange(256) / 255  # float32, as images are
    assert torch.equal((255 * bounded(unbounded(grey))).round().int(), torch.arange(256).int())
    assert unbounded(grey).abs().max() < 330


def test_mobility_is_the_square_of_the_slope():
    x = (0.02 + 0.96 * rand(20)).requires_grad_()
    w = torch.tan((x - 0.5) * math.pi).detach().requires_grad_()
    (slope,) = torch.autograd.grad((torch.arctan(w) / math.pi).sum(), w)
    torch.testing.assert_close(mobility(x.detach()), slope.square())


def test_the_layer_holds_the_image_in_the_order_of_eq_5():
    x = rand(3, 4, 5)
    layer = image_layer(x)
    assert layer.weight.shape == (60, 1) and layer.bias is None
    y = layer(torch.ones(1, dtype=torch.float64))
    z = image_in(layer, x.shape)[0]
    for i, j, k in ((1, 1, 1), (2, 3, 4), (3, 4, 5)):  # counted from one, as printed
        at = (i - 1) * 20 + (j - 1) * 5 + k
        assert z[i - 1, j - 1, k - 1] == torch.arctan(y[at - 1]) / math.pi + 0.5
    torch.testing.assert_close(z, x.clamp(MARGIN, 1 - MARGIN))


# ---- equations 6 to 8, the filter


def test_descent_is_torchs_sgd_with_weight_decay():
    w, g = rand(4), rand(4)
    p = nn.Parameter(w.clone())
    p.grad = g.clone()
    torch.optim.SGD([p], 0.05, weight_decay=5e-4).step()
    torch.testing.assert_close(descent(w, g, 0.05, 5e-4), p.detach())


@pytest.mark.parametrize("twice", [False, True])
def test_momentum_in_numpy(twice):
    w, v, gradients = rand(4), torch.zeros(4, dtype=torch.float64), rand(6, 4)
    mine, speed = w.numpy().copy(), np.zeros(4)
    for g in gradients:
        w, v = momentum(w, v, g, 0.05, 0.9, 5e-4, twice)
        speed = 0.9 * speed + 0.05 * g.numpy() + 0.05 * 5e-4 * mine
        mine = mine - (0.05 * speed if twice else speed)
    np.testing.assert_allclose(w, mine, rtol=1e-12)


def test_momentum_with_one_rate_is_torchs():
    w, v = rand(4), torch.zeros(4, dtype=torch.float64)
    p = nn.Parameter(w.clone())
    optimiser = torch.optim.SGD([p], 0.05, 0.9, weight_decay=5e-4)
    for g in rand(5, 4):
        w, v = momentum(w, v, g, 0.05, 0.9, 5e-4)
        p.grad = g
        optimiser.step()
    torch.testing.assert_close(w, p.detach())


@pytest.mark.parametrize("shape, radius", [((2, 3, 32, 32), 10), ((1, 1, 9, 12), 3.5)])
def test_the_filter_against_a_whole_fourier_plane(shape, radius):
    x = rand(*shape)
    plane = np.fft.fftshift(np.fft.fft2(x.numpy()), axes=(2, 3))
    h, w = shape[2:]
    row, column = np.arange(h) - h // 2, np.arange(w) - w // 2
    plane = plane * (row[:, None] ** 2 + column[None] ** 2 <= radius**2)
    expected = np.fft.ifft2(np.fft.ifftshift(plane, axes=(2, 3)))
    np.testing.assert_allclose(low_pass(x, radius), expected.real, atol=1e-12)
    assert np.abs(expected.imag).max() < 1e-12


def test_high_frequencies_of_waves():
    wave = torch.cos(2 * math.pi * 12 * torch.arange(32, dtype=torch.float64) / 32)
    low = torch.cos(2 * math.pi * 3 * torch.arange(32, dtype=torch.float64) / 32)
    x = (wave + low)[None, None, None].expand(1, 3, 32, 32) / 255
    share, rms = high_frequencies(x, 10)
    torch.testing.assert_close(share, torch.tensor([0.5], dtype=torch.float64))
    torch.testing.assert_close(rms, torch.tensor([0.5**0.5], dtype=torch.float64))
    assert high_frequencies(torch.zeros(1, 1, 4, 4), 1)[0].item() == 0


# ---- equations 10 and 11, targets


def test_divergence_and_cross_entropy_by_sums():
    p, q = (torch.softmax(4 * rand(6, 5), 1) for _ in range(2))
    for i in range(6):
        own = sum(a * math.log(a / b) for a, b in zip(p[i].tolist(), q[i].tolist(), strict=True))
        assert math.isclose(kl(p, q)[i], own, rel_tol=1e-9)
        cross = -sum(b * math.log(a) for a, b in zip(p[i].tolist(), q[i].tolist(), strict=True))
        assert math.isclose(cross_entropy_of(p, q)[i], cross, rel_tol=1e-9)
    t = torch.eye(5, dtype=torch.float64)[:3]
    torch.testing.assert_close(kl(t, p[:3]), cross_entropy_of(p[:3], t))
    with pytest.raises(BadInput, match=r"D_KL\(p, q\) is infinite: q is zero where p is not"):
        kl(p[:3], t)


@pytest.mark.parametrize(
    "rows, said",
    [
        ([[0.5, 0.4]], "row 0 sums to 0.9"),
        ([[0.5, 0.5], [1.5, -0.5]], "row 1 sums to 1, its least is -0.5"),
        ([[float("nan"), 1.0]], "row 0 sums to nan"),
    ],
)
def test_what_is_no_distribution_is_refused_in_one_line(rows, said):
    with pytest.raises(BadInput, match=said) as e:
        distribution(torch.tensor(rows), torch.zeros(len(rows), 1, 2, 2))
    assert "\n" not in str(e.value) and "sums to one" in str(e.value)


def test_a_target_has_a_row_for_each_image_and_a_number_for_each_class(net):
    with pytest.raises(BadInput, match=r"\(2, 5\) for 3 images"):
        ToOrder(1)(net, rand(3, 3, 8, 8), torch.full((2, 5), 0.2))
    with pytest.raises(BadInput, match="4 classes for a network of 5"):
        ToOrder(1)(net, rand(3, 3, 8, 8), torch.full((3, 4), 0.25))


def test_kinds_of_targets():
    y = torch.tensor([0, 3, 4])
    for kind in TARGETS:
        found = targets(kind, y, 5)
        torch.testing.assert_close(found.sum(1), torch.ones(3))
        assert torch.equal(found, targets(kind, y, 5))
    two = targets("two classes", y, 5)
    assert two.gather(1, y[:, None]).eq(0.9).all() and (two > 0).sum(1).tolist() == [2, 2, 2]
    assert torch.equal(two_classes(y, y, 5).argmax(1), y)
    assert anything(2000, 4, Draws(0)).mean(0).sub(0.25).abs().max() < 0.02


# ---- the whole


def test_a_batch_is_the_images_one_by_one(net):
    x, target = rand(4, 3, 8, 8), targets("at random", torch.arange(4), 5).double()
    for how in (ToOrder(4), ToOrder(4, momentum=0.9), ToOrder(4, lr=1.0)):
        whole = how(net, x, target)
        torch.testing.assert_close(whole.x, one_by_one(net, x, target, how), rtol=1e-9, atol=1e-9)
        alone = [how(net, x[i : i + 1], target[i : i + 1]).x for i in range(4)]
        torch.testing.assert_close(whole.x, torch.cat(alone), rtol=1e-9, atol=1e-9)


def test_loss_and_output_are_those_of_the_images_that_are_given_back(net):
    x, target = rand(3, 3, 8, 8), targets("two classes", torch.arange(3), 5).double()
    for how in (ToOrder(3, lr=2.0), WAYS["momentum, low-pass"]):
        made = how(net, x, target)
        assert made.x.min() >= 0 and made.x.max() <= 1
        p = net(made.x).softmax(1)
        torch.testing.assert_close(made.log_p.exp(), p.detach())
        torch.testing.assert_close(made.loss, kl(target, p).detach())


def test_it_gets_nearer_and_each_image_stops_at_its_own_loss(net):
    x, target = rand(6, 3, 8, 8), targets("two classes", torch.arange(6) % 5, 5).double()
    how = ToOrder(200, lr=2.0)
    start, end = replace(how, steps=0)(net, x, target), how(net, x, target)
    assert (end.loss < start.loss).all() and (end.steps == 200).all()
    stop = start.loss * torch.tensor([2.0, 0.9, 0.8, 0.95, 0.85, 2.0], dtype=torch.float64)
    own = how(net, x, target, stop)
    assert (own.loss <= stop).all() and own.steps[[0, 5]].tolist() == [0, 0]
    assert (own.steps[1:5] > 0).all() and (own.steps[1:5] < 200).all()
    for i in range(1, 5):  # and one update less was not enough
        less = replace(how, steps=int(own.steps[i]) - 1)(net, x[i : i + 1], target[i : i + 1])
        assert less.loss > stop[i]
        same = replace(how, steps=int(own.steps[i]))(net, x[i : i + 1], target[i : i + 1])
        torch.testing.assert_close(own.x[i], same.x[0], rtol=1e-9, atol=1e-9)


def test_the_filter_is_in_the_loop_and_at_the_end(net):
    x, target = rand(2, 3, 32, 32), targets("two classes", torch.arange(2), 5).double()
    how = ToOrder(2, lr=1.0, low_pass=10.0)
    w = unbounded(x)
    for _ in range(2):
        w = w.detach().requires_grad_()
        loss = F.cross_entropy(net(low_pass(bounded(w), 10)), target, reduction="sum")
        w = w - 1.0 * torch.autograd.grad(loss, w)[0] - 5e-4 * w
    torch.testing.assert_close(
        how(net, x, target).x, low_pass(bounded(w.detach()), 10).clamp(0, 1), rtol=1e-9, atol=1e-9
    )
    assert torch.equal(how.picture(w[..., :16, :16]), low_pass(bounded(w[..., :16, :16]), 5))


def test_the_network_is_left_as_it_was(net):
    before = {k: v.clone() for k, v in net.state_dict().items()}
    net.train()
    ToOrder(2)(net, rand(2, 3, 8, 8), targets("all alike", torch.arange(2), 5).double())
    assert net.training and all(p.requires_grad and p.grad is None for p in net.parameters())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    net.eval()


def test_numbers_that_are_not_finite_are_said_and_not_taken_for_an_arrival():
    class Broken(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :3] * float("nan")

    with pytest.raises(Diverged, match="not finite"):
        ToOrder(3)(Broken(), rand(2, 1, 2, 2), targets("all alike", torch.arange(2), 3).double())
