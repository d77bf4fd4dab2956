"""The square attack: a reference image by image, the ball, and a network without gradients."""

import math

import numpy as np
import pytest
import torch

from thesis_repro.attacks import PGD
from thesis_repro.draws import Draws
from thesis_repro.files import BadInput
from thesis_repro.square_attack import HALVED, Square, side, squares, stripes


def network(classes=4, pixels=3 * 6 * 6):
    torch.manual_seed(0)
    inner = torch.nn.Linear(pixels, classes), torch.nn.Tanh(), torch.nn.Linear(classes, classes)
    return torch.nn.Sequential(torch.nn.Flatten(), *inner).double().eval()


def batch(n=5):
    g = torch.Generator().manual_seed(1)
    return torch.rand(n, 3, 6, 6, generator=g, dtype=torch.float64), torch.arange(n) % 4


def margins(net, z, y):
    "max of the others minus the right one, by a loop."
    found = []
    for logits, label in zip(net(z).tolist(), y.tolist(), strict=True):
        found.append(max(v for k, v in enumerate(logits) if k != label) - logits[label])
    return torch.tensor(found, dtype=torch.float64)


def by_hand(net, x, y, epsilon, steps, share):
    "The search with NumPy, one image after the other inside a step, from the same draws."
    draws = Draws(3).numpy("square")
    n, c, h, w = x.shape
    with torch.no_grad():
        first = draws.choice([-1.0, 1.0], (n, c, 1, w))
        z = np.clip(x.numpy() + epsilon * np.repeat(first, h, 2), 0, 1)
        best = margins(net, torch.from_numpy(z), y)
        for step in range(steps):
            halved = len([p for p in HALVED if p / 10_000 <= step / steps])
            a = min(max(1, round(math.sqrt(share * 0.5**halved * h * w))), h, w)
            top, left = (draws.integers(0, m - a + 1, (n, 1, 1, 1)) for m in (h, w))
            signs, tried = draws.choice([-1.0, 1.0], (n, c, 1, 1)), z.copy()
            for i in range(n):
                r, s = top[i].item(), left[i].item()
                window = x.numpy()[i, :, r : r + a, s : s + a] + epsilon * signs[i]
                tried[i, :, r : r + a, s : s + a] = np.clip(window, 0, 1)
            margin = margins(net, torch.from_numpy(tried), y)
            for i in range(n):
                if margin[i] > best[i]:
                    z[i], best[i] = tried[i], margin[i]
    return torch.from_numpy(z)


def test_the_search_against_a_loop():
    net, (x, y) = network(), batch()
    found = Square(0.1, 30, 0.6)(net, x, y, Draws(3))
    torch.testing.assert_close(found, by_hand(net, x, y, 0.1, 30, 0.6), rtol=0, atol=1e-12)


def test_it_mostly_gains_and_stays_in_the_ball():
    net, (x, y) = network(), batch()
    found = Square(0.05, 100)(net, x, y, Draws(0))
    with torch.no_grad():
        assert (margins(net, found, y) >= margins(net, x, y) - 1e-12).float().mean() > 0.5
    assert (found - x).abs().max() <= 0.05 and 0 <= found.min() and found.max() <= 1


def test_a_network_without_gradients_falls_all_the_same():
    class Steps(torch.nn.Module):
        "Rounds its image to eighths, so that its gradient is zero everywhere."

        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, x):
            return self.inner((8 * x).round() / 8)

    net, (x, _) = Steps(), batch(8)
    y = net(x).argmax(1)
    assert torch.equal(PGD(0.2, start="none")(net, x, y, Draws(0)), x)
    asked = Square(0.2, 100)(net, x, y, Draws(0))
    assert (net(asked).argmax(1) != y).any()


def test_parameters_are_left_alone():
    net, (x, y) = network(), batch()
    Square(0.1, 3)(net, x, y, Draws(0))
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_stripes_and_squares():
    g = Draws(0).numpy("square")
    signs = stripes(g, torch.zeros(4, 2, 5, 7))
    assert signs.abs().eq(1).all() and (signs == signs[:, :, :1]).all()
    drawn = squares(g, torch.zeros(50, 2, 5, 7), 3)
    assert drawn.abs().sum((2, 3)).eq(9).all()
    assert drawn.abs().amax((0, 1)).sum() == 35  # every pixel is reached
    assert [side(s, 10_000, 0.8, (32, 32)) for s in (0, 10, 9_999)] == [29, 20, 1]


def test_bad_input():
    net, (x, _) = network(), batch()
    with pytest.raises(BadInput, match="for 8 of 255 grey levels give 8/255"):
        Square(epsilon=8.0)
    with pytest.raises(BadInput, match="labels from 0 to 9"):
        Square(0.1, 1)(net, x, torch.tensor([0, 1, 2, 3, 9]), Draws(0))


def test_the_squares_halve_where_the_paper_halves_them():
    "Of 10,000 steps after 10, 50, 200, 500, 1,000, 2,000, 4,000, 6,000 and 8,000, not before."
    points = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
    for i, point in enumerate(points):
        before, after = (side(100 * point + k, 1_000_000, 0.8, (320, 320)) for k in (-1, 0))
        assert (before, after) == tuple(round(320 * (0.8 / 2**k) ** 0.5) for k in (i, i + 1))
    assert Square() == Square(8 / 255, 1000, 0.8)


def test_statistics_are_left_alone_and_are_the_running_ones():
    x, y = batch()
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(108), network()[1])
    before = {k: v.clone() for k, v in net.double().train().state_dict().items()}
    found = Square(0.1, 5)(net, x, y, Draws(0))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items()) and net.training
    assert torch.equal(found, Square(0.1, 5)(net.eval(), x, y, Draws(0)))


def test_no_image_out_of_range_is_asked_about():
    asked, (x, y) = [], batch()
    net = network()
    net.register_forward_pre_hook(lambda m, z: asked.append((z[0].min(), z[0].max())))
    Square(0.5, 3)(net, x, y, Draws(0))
    assert len(asked) == 4 and all(low >= 0 and high <= 1 for low, high in asked)
