"""The layers of generators and critics in float64, against NumPy, loops and exact decompositions;
those that a gradient penalty passes are differentiated twice."""

import math

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from scipy import stats
from torch.autograd import gradcheck, gradgradcheck

from thesis_repro import gan_blocks
from thesis_repro.gan_blocks import (
    MinibatchStd,
    PixelNorm,
    ScaledConv,
    ScaledLinear,
    SelfAttention,
    StdMap,
    adaptive_instance_norm,
    appended,
    conditional_batch_norm,
    latent,
    spectral,
)


def drawn(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def twice(layer, *inputs):
    "Whether a layer's first and second derivatives are those of finite differences."
    inputs = [x.clone().requires_grad_() for x in inputs]
    return gradcheck(layer, inputs) and gradgradcheck(layer, inputs)


def random_weights(module, seed=0):
    "The module in float64 with other weights than it began with."
    with torch.no_grad():
        for i, p in enumerate(module.double().parameters()):
            p.copy_(drawn(*p.shape, seed=seed + i) * 0.5)
    return module


# Normalisation


def test_pixel_norm_is_equation_2_10():
    a = drawn(2, 5, 3, 4).numpy()
    expected = np.empty_like(a)
    for n, x, y in np.ndindex(2, 3, 4):
        expected[n, :, x, y] = a[n, :, x, y] / np.sqrt((a[n, :, x, y] ** 2).sum() / 5 + 1e-8)
    np.testing.assert_allclose(PixelNorm()(torch.from_numpy(a)).numpy(), expected, rtol=1e-12)
    z = drawn(3, 7)  # latent vectors have no places
    expected = z / (z.square().mean(1, keepdim=True) + 1e-8).sqrt()
    torch.testing.assert_close(PixelNorm()(z), expected)


def test_pixel_norm_of_features_near_zero():
    "ε is inside the root: at a mean square of ε features are divided by the root of 2 ε."
    a = torch.full((1, 4, 1, 1), 1e-4, dtype=torch.float64)
    assert math.isclose(PixelNorm()(a)[0, 0].item(), 1e-4 / math.sqrt(2e-8), rel_tol=1e-12)
    assert not PixelNorm()(torch.zeros(1, 4, 1, 1)).any()
    assert twice(PixelNorm(), drawn(2, 3, 2, 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_squared_in_float32(dtype):
    "A feature of 1000 has no square in float16."
    a = torch.full((1, 4, 2, 2), 1000.0).to(dtype)
    found = PixelNorm()(a)
    assert found.dtype == dtype and torch.allclose(found.float(), torch.ones(1, 4, 2, 2))
    x = torch.cat([a, -a])
    for layer in (MinibatchStd(), StdMap()):
        found = layer(x)
        assert found.dtype == dtype and torch.allclose(found[:, 4].float(), torch.tensor(1e3))
    kinds = [gan_blocks.full(a.to(d)).dtype for d in (dtype, torch.float32, torch.float64)]
    assert kinds == [torch.float32, torch.float32, torch.float64]


def test_adaptive_instance_norm_is_that_of_the_paper():
    "y_s (x − μ(x)) / σ(x) + y_b of each image and channel (StyleGAN, eq. 1), with y_s = 1 + …."
    layer = random_weights(adaptive_instance_norm(3, 2))
    x, w = drawn(4, 2, 3, 5), drawn(4, 3, seed=1)
    y = w.numpy() @ layer.affine.weight.detach().numpy().T + layer.affine.bias.detach().numpy()
    expected = np.empty(x.shape)
    for n, c in np.ndindex(4, 2):
        a = x[n, c].numpy()
        normed = (a - a.mean()) / np.sqrt(a.var() + 1e-5)
        expected[n, c] = (1 + y[n, c]) * normed + y[n, 2 + c]
    np.testing.assert_allclose(layer(x, w).detach().numpy(), expected, rtol=1e-10)
    by_torch = F.instance_norm(x) * (1 + y[:, :2, None, None]) + y[:, 2:, None, None]
    torch.testing.assert_close(layer(x, w).detach(), by_torch)
    assert twice(layer, drawn(2, 2, 2, 2), drawn(2, 3, seed=1))


def test_conditional_batch_norm_is_batch_norm_that_is_told():
    layer = random_weights(conditional_batch_norm(3, 2))
    x, told = drawn(4, 2, 3, 5), drawn(4, 3, seed=1)
    y = (told @ layer.affine.weight.T + layer.affine.bias)[..., None, None]
    expected = F.batch_norm(x, None, None, training=True) * (1 + y[:, :2]) + y[:, 2:]
    torch.testing.assert_close(layer(x, told), expected)
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))  # torch keeps the unbiased variance
    torch.testing.assert_close(layer.norm.running_mean, 0.1 * mean)
    torch.testing.assert_close(layer.norm.running_var, 0.9 + 0.1 * var)
    layer.eval()
    normed = (x - (0.1 * mean)[:, None, None]) / (0.9 + 0.1 * var + 1e-5).sqrt()[:, None, None]
    torch.testing.assert_close(layer(x, told), normed * (1 + y[:, :2]) + y[:, 2:])


@pytest.mark.parametrize("make", [adaptive_instance_norm, conditional_batch_norm])
def test_what_is_told_begins_small(make):
    torch.manual_seed(0)
    layer = make(50, 40)
    assert abs(layer.affine.weight.std().item() - 0.02) < 0.002
    assert abs(layer.affine.weight.mean().item()) < 0.002 and not layer.affine.bias.any()
    x = torch.randn(2, 40, 3, 3)
    told = layer(x, torch.zeros(2, 50))
    torch.testing.assert_close(told, layer.norm(x))


# Weights scaled at run time


@pytest.mark.parametrize("gain", [2**0.5, 1.0])
def test_a_scaled_convolution_is_one_with_hes_constant(gain):
    torch.manual_seed(0)
    layer = ScaledConv(3, 4, 5, padding=2, gain=gain).double()
    with torch.no_grad():
        layer.bias.copy_(drawn(4))
    x = drawn(2, 3, 6, 5)
    he = gain / math.sqrt(3 * 5 * 5)
    expected = F.conv2d(x, he * layer.weight, layer.bias, padding=2)
    torch.testing.assert_close(layer(x), expected)
    # the optimiser sees the weight before it is scaled, so its gradient is scaled too
    weight = (he * layer.weight).detach().requires_grad_()
    (theirs,) = torch.autograd.grad(F.conv2d(x, weight, padding=2).square().sum(), weight)
    with torch.no_grad():
        layer.bias.zero_()
    (ours,) = torch.autograd.grad(layer(x).square().sum(), layer.weight)
    torch.testing.assert_close(ours, he * theirs)
    assert ScaledConv(3, 4, 3)(x.float()).shape == (2, 4, 4, 3)  # no padding unless asked for
    assert math.isclose(ScaledConv(3, 4, 3).scale, math.sqrt(2 / 27))  # He's gain


@pytest.mark.parametrize("rate", [1.0, 0.01])
def test_a_scaled_layer_begins_the_same_at_any_rate(rate):
    torch.manual_seed(0)
    layer = ScaledLinear(200, 300, rate=rate)
    assert abs(layer.weight.std().item() * rate - 1) < 0.02 and not layer.bias.any()
    layer = layer.double()
    with torch.no_grad():
        layer.bias.copy_(drawn(300))
    x = drawn(3, 200)
    he = math.sqrt(2 / 200) * rate
    torch.testing.assert_close(layer(x), x @ (he * layer.weight).T + rate * layer.bias)
    assert ScaledLinear(4, 3, bias=False).bias is None
    assert math.isclose(ScaledLinear(9, 3, gain=1.0).scale, 1 / 3)
    assert math.isclose(ScaledLinear(8, 3).scale, 1 / 2)


def test_a_rate_slows_what_adam_learns():
    "Adam moves every weight by its rate, so what the layer computes moves by as much less."
    moved = []
    for rate in (1.0, 0.01):
        torch.manual_seed(0)
        layer = ScaledLinear(50, 1, rate=rate).double()
        x = torch.ones(1, 50, dtype=torch.float64)
        before = layer(x)
        optimiser = torch.optim.Adam(layer.parameters(), 1e-3)
        layer(x).sum().backward()
        optimiser.step()
        moved.append((layer(x) - before).item())
    assert math.isclose(moved[1] / moved[0], 0.01, rel_tol=1e-4)


# Comparing images


def deviation(images):
    "Steps 1 to 3 of section 3 of Karras et al. (2018): one number for a group (g, c, h, w)."
    per_place = np.sqrt(np.mean((images - images.mean(0)) ** 2, 0) + 1e-8)
    return per_place.mean()


@pytest.mark.parametrize("n, group", [(8, 4), (12, 4), (4, 4), (3, 4), (6, 4), (6, 0), (6, 3)])
def test_the_minibatch_standard_deviation_is_that_of_groups(n, group):
    "A batch that does not fit is one group."
    x = drawn(n, 2, 3, 5) * torch.arange(1, n + 1).view(-1, 1, 1, 1)
    found = MinibatchStd(group)(x)
    assert found.shape == (n, 3, 3, 5) and torch.equal(found[:, :2], x)
    count = n // group if group and n % group == 0 else 1  # of groups
    for i in range(n):
        members = x.numpy()[i % count :: count]
        expected = np.full((3, 5), deviation(members))
        np.testing.assert_allclose(found[i, 2].numpy(), expected, rtol=1e-10)


def test_the_deviation_is_a_number_or_a_map():
    x = drawn(5, 3, 4, 6)
    std = np.sqrt(x.numpy().var(0) + 1e-8)
    number, places = MinibatchStd(0)(x)[:, 3], StdMap()(x)[:, 3:]
    np.testing.assert_allclose(number.numpy(), np.full((5, 4, 6), std.mean()), rtol=1e-9)
    expected = np.broadcast_to(std.mean(0), (5, 1, 4, 6))
    np.testing.assert_allclose(places.numpy(), expected, rtol=1e-9)
    assert MinibatchStd().group == 4  # as Karras et al. publish it


@pytest.mark.parametrize("layer", [MinibatchStd(2), MinibatchStd(), StdMap()])
def test_comparisons_can_be_differentiated_twice(layer):
    assert twice(layer, drawn(4, 2, 1, 2))
    alike = torch.ones(4, 2, 1, 2, dtype=torch.float64, requires_grad=True)  # nothing differs
    (first,) = torch.autograd.grad(layer(alike).square().sum(), alike, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), alike)
    assert first.isfinite().all() and second.isfinite().all()


# Self-attention


@pytest.mark.parametrize("channels, narrow, half", [(16, 2, 8), (4, 1, 2), (1, 1, 1)])
def test_self_attention_is_that_of_sagan(channels, narrow, half):
    "β of eq. 1 of Zhang et al. (2019) by loops over places, on a map that is no square."
    layer = random_weights(SelfAttention(channels))
    x = drawn(2, channels, 2, 3)
    f, g, h, v = (
        m.weight.detach().numpy()[:, :, 0, 0]
        for m in (layer.query, layer.key, layer.value, layer.out)
    )
    assert f.shape == g.shape == (narrow, channels) and h.shape == (half, channels)
    found, gamma = layer(x).detach().numpy(), layer.gamma.item()
    for n in range(2):
        places = x[n].numpy().reshape(channels, 6)
        for j in range(6):
            s = np.array([(f @ places[:, j]) @ (g @ places[:, i]) for i in range(6)])
            beta = np.exp(s) / np.exp(s).sum()
            o = v @ sum(beta[i] * (h @ places[:, i]) for i in range(6))
            expected = gamma * o + places[:, j]
            np.testing.assert_allclose(found[n].reshape(channels, 6)[:, j], expected, rtol=1e-9)
    assert SelfAttention(channels).gamma.item() == 0


def test_self_attention_can_be_differentiated_twice():
    assert twice(random_weights(SelfAttention(2)), drawn(1, 2, 2, 2))


# Conditions, and spectral normalisation


def test_a_condition_becomes_maps_of_one_value():
    maps, vector = drawn(2, 3, 4, 5), drawn(2, 2, seed=1)
    found = appended(maps, vector)
    assert found.shape == (2, 5, 4, 5) and torch.equal(found[:, :3], maps)
    for n, k in np.ndindex(2, 2):
        assert (found[n, 3 + k] == vector[n, k]).all()
    assert appended(maps, torch.zeros(2, 0)) is maps
    assert appended(maps.to(torch.bfloat16), vector).dtype == torch.bfloat16


LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), (3, 6), 0),
    "convolution": (lambda: nn.Conv2d(3, 4, 2), (2, 3, 3, 3), 0),
    "transposed": (lambda: nn.ConvTranspose2d(3, 4, 2), (2, 3, 3, 3), 1),
}


@pytest.mark.parametrize("name", LAYERS)
def test_spectral_normalisation_divides_by_the_largest_singular_value(name):
    "After many passes the estimate is NumPy's exact value; its gradient is eq. 12 of the paper."
    make, shape, outputs = LAYERS[name]
    torch.manual_seed(0)
    net = spectral(nn.Sequential(make(), nn.ReLU())).double()
    layer, x = net[0], drawn(*shape)
    for _ in range(200):
        net(x)
    net.eval()  # no more steps of the power iteration
    weight = layer.parametrizations.weight.original
    matrix = weight.detach().movedim(outputs, 0).flatten(1).numpy()
    u, s, v = np.linalg.svd(matrix)
    normed = layer.weight.detach().movedim(outputs, 0).flatten(1).numpy()
    np.testing.assert_allclose(normed, matrix / s[0], rtol=1e-6, atol=1e-9)
    pull = drawn(*layer.weight.shape, seed=3)
    (found,) = torch.autograd.grad((layer.weight * pull).sum(), weight)
    g = pull.movedim(outputs, 0).flatten(1).numpy()
    expected = (g - (g * normed).sum() * np.outer(u[:, 0], v[0])) / s[0]
    found = found.movedim(outputs, 0).flatten(1).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_spectral_normalisation_reaches_every_layer():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Sequential(nn.Linear(2, 2)))
    assert spectral(net) is net
    reached = [hasattr(m, "parametrizations") for m in (net[0], net[1], net[2][0])]
    assert reached == [True, False, True]


# Latent vectors


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("edge", [0.3, 1.0, 2.5])
def test_truncated_numbers_are_scipys_quantiles(edge):
    found = latent((500, 4), generator(), truncation=edge)
    assert found.dtype == torch.float32 and found.shape == (500, 4)
    share = torch.rand((500, 4), generator=generator(), dtype=torch.float64).numpy()
    expected = stats.truncnorm(-edge, edge).ppf(share)
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-6, atol=1e-7)
    assert found.abs().max() <= edge
    assert stats.kstest(found.flatten().numpy(), stats.truncnorm(-edge, edge).cdf).pvalue > 0.001


def test_priors_have_their_distributions():
    found = latent((4000,), generator())
    assert stats.kstest(found.numpy(), stats.norm.cdf).pvalue > 0.001
    found = latent((4000,), generator(), "uniform")
    assert stats.kstest(found.numpy(), stats.uniform(-1, 2).cdf).pvalue > 0.001
    assert found.abs().max() <= 1
    assert torch.equal(found, latent((4000,), generator(), "uniform"))


def test_uniform_numbers_are_truncated_too():
    "Those beyond the edge drawn again: uniform between the edges; an edge beyond one cuts nothing."
    found = latent((4000,), generator(), "uniform", 0.5)
    assert stats.kstest(found.numpy(), stats.uniform(-0.5, 1).cdf).pvalue > 0.001
    whole = latent((4000,), generator(), "uniform")
    assert torch.equal(latent((4000,), generator(), "uniform", 2.0), whole)
