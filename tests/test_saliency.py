"""SmoothGrad against a loop in float64, and correlations of ranks."""

import torch
from scipy.stats import spearmanr

from thesis_repro.draws import Draws
from thesis_repro.saliency import rank_correlation, smooth_gradient


def test_the_map_is_the_size_of_the_mean_gradient():
    torch.manual_seed(0)
    layers = torch.nn.Linear(18, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)
    net = torch.nn.Sequential(torch.nn.Flatten(), *layers).double()
    x, y = torch.rand(2, 2, 3, 3, dtype=torch.float64), torch.tensor([2, 0])
    total = torch.zeros_like(x)
    for i in range(4):
        noise = Draws(0, 0, i).noise("noise", lambda g: torch.randn(x.shape, generator=g))
        for j in range(2):
            z = (x[j : j + 1] + 0.2 * noise[j : j + 1].double()).requires_grad_()
            net(z)[0, y[j]].backward()
            total[j] += z.grad[0]
    wanted = (total / 4).abs().sum(1)
    torch.testing.assert_close(smooth_gradient(net, x, y, 0.2, 4), wanted)
    assert all(p.requires_grad for p in net.parameters())


def test_ranks_as_scipy_has_them():
    g = torch.Generator().manual_seed(0)
    a, b = torch.rand(3, 4, 5, generator=g), torch.rand(3, 4, 5, generator=g)
    found = rank_correlation(a, b)
    for i in range(3):
        wanted = spearmanr(a[i].flatten(), b[i].flatten()).statistic
        torch.testing.assert_close(found[i].item(), float(wanted))
