"""Mixing and its losses against float64 and plain arithmetic, also where float32 rounds."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from thesis_repro.mixup import (
    Beta,
    Fixed,
    Mixup,
    Pairs,
    binary_cross_entropy,
    mix,
    summed_binary_cross_entropy,
)


def exact(z: np.ndarray, t: np.ndarray) -> tuple[float, np.ndarray]:
    "The binary cross entropy of one softmax in long double, and its gradient by differences of z."

    def loss(z):
        e = np.exp(z - z.max())
        p = e / e.sum()
        rest = np.array([np.delete(e, k).sum() for k in range(len(z))]) / e.sum()
        return -(t * np.log(p) + (1 - t) * np.log(rest)).mean()

    z, small = z.astype(np.longdouble), np.longdouble(1e-6)
    slopes = [(loss(z + small * e) - loss(z - small * e)) / (2 * small) for e in np.eye(len(z))]
    return float(loss(z)), np.array(slopes, dtype=float)


@pytest.mark.parametrize("gap", [0.0, 3.0, 14.0, 17.0, 40.0, 80.0])
@pytest.mark.parametrize("target", [(0.0, 1.0, 0.0), (1.0, 0.0, 0.0), (0.3, 0.0, 0.7)])
def test_the_binary_cross_entropy_of_a_certain_network(gap, target):
    "A wrong class of which the network is sure, where p is 1 in float32, is learned away, too."
    z, t = torch.tensor([[gap, 0.0, -1.0]], requires_grad=True), torch.tensor([target])
    loss = binary_cross_entropy(z, t)
    (slope,) = torch.autograd.grad(loss.sum(), z)
    value, slopes = exact(np.array([gap, 0.0, -1.0]), np.array(target))
    assert loss.item() == pytest.approx(value, rel=1e-5, abs=1e-7)
    np.testing.assert_allclose(slope[0].numpy(), slopes, rtol=1e-4, atol=1e-6)


def test_it_is_that_of_torch_where_nothing_is_rounded():
    z = torch.randn(50, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.rand(50, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = F.binary_cross_entropy(z.softmax(1), t, reduction="none")
    torch.testing.assert_close(binary_cross_entropy(z, t), expected.mean(1))
    torch.testing.assert_close(summed_binary_cross_entropy(z, t), expected.sum(1))


@pytest.mark.parametrize("kind", [torch.int64, torch.uint8, torch.float32, torch.bfloat16])
def test_whole_numbers_are_mixed_and_not_cut_off(kind):
    a, b = torch.tensor([[1, 0]], dtype=kind), torch.tensor([[0, 1]], dtype=kind)
    found = mix(a, b, torch.tensor([0.7]))
    assert found.is_floating_point() and (found.dtype == kind or not kind.is_floating_point)
    torch.testing.assert_close(found.float(), torch.tensor([[0.7, 0.3]]), rtol=0, atol=2e-3)


def test_the_numbers_where_nothing_else_is_said():
    "mixup: at the image, λ ~ Beta(1, 1), one for the batch."
    assert Mixup() == Mixup((0,), Beta(1.0, "batch"))
    assert Beta() == Beta(1.0) and Fixed() == Fixed(0.5)


@pytest.mark.parametrize("bf16", [False, True])
def test_pairs_are_asked_in_float32(bf16):
    g = torch.Generator().manual_seed(0)
    h, lam = torch.rand(6, 3, 2, 2, generator=g), torch.rand(6, generator=g)
    places = torch.arange(6)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4))
    pairs = Pairs(net, 0, h, places.flip(0), places % 4)
    expected = net(mix(h, h.flip(0), lam)).detach()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        torch.testing.assert_close(pairs.logits_at(lam), expected)
