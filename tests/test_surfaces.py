"Loss surfaces against closed forms in float64."

import math

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from thesis_repro.files import BadInput
from thesis_repro.images import OnDisk
from thesis_repro.models import batch_statistics, build, frozen_statistics
from thesis_repro.surfaces import filter_normalised_directions, loss_surface, surface_columns


def snapshot(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(model, before):
    return all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.fixture
def network(device):
    "A narrow network whose batch norms have seen something."
    model = build("preactresnet18", 4, width=0.125, channels=1, seed=1)
    with torch.no_grad():
        for i in range(3):
            model(torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(i)))
    return model.to(device)


@pytest.fixture
def images(device):
    g = torch.Generator().manual_seed(9)
    made = torch.rand(11, 1, 8, 8, generator=g), torch.randint(4, (11,), generator=g)
    return tuple(t.to(device) for t in made)


# ---- directions


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_filters_have_the_norms_of_the_weights(network, dtype):
    network = network.to(dtype)
    directions = filter_normalised_directions(network, seed=3)
    for name, w in network.named_parameters():
        for d in directions:
            assert d[name].shape == w.shape and d[name].dtype == dtype and not d[name].requires_grad
            if w.ndim == 1:
                assert not d[name].any()  # biases and batch norm stay
                continue
            for ours, theirs in zip(d[name], w.detach(), strict=True):  # filter by filter
                assert ours.norm().item() == pytest.approx(theirs.norm().item(), rel=1e-5)


def test_directions_are_gaussian_functions_of_the_seed(network):
    one, two = filter_normalised_directions(network, seed=3)
    again, _ = filter_normalised_directions(network, seed=3)
    other, _ = filter_normalised_directions(network, seed=4)
    name = max(one, key=lambda k: one[k].numel())
    a, b = one[name].flatten(), two[name].flatten()
    assert torch.equal(a, again[name].flatten()) and not torch.equal(a, other[name].flatten())
    assert abs(F.cosine_similarity(a, b, dim=0)) < 5 / math.sqrt(a.numel())  # independent
    within = (one[name].flatten(1) / one[name].flatten(1).std(dim=1, keepdim=True)).flatten()
    assert within.pow(4).mean().item() == pytest.approx(3, rel=0.1)  # the kurtosis of a Gaussian


def test_directions_leave_the_generator_alone(network):
    before = torch.get_rng_state()
    filter_normalised_directions(network)
    assert torch.equal(torch.get_rng_state(), before)


def test_directions_remove_the_scale_of_filters(network, images):
    "Filters before a batch norm may be rescaled: neither the function nor its surface changes."
    scaled = build("preactresnet18", 4, width=0.125, channels=1).to(images[0].device)
    scaled.load_state_dict(network.state_dict())
    network, scaled = network.double(), scaled.double()
    block, factor = scaled.stages[1][0], 10.0
    with torch.no_grad():
        block.conv1.weight *= factor
        block.norm2.running_mean *= factor
        block.norm2.running_var *= factor**2
    surfaces = []
    for m in (network, scaled):
        for norm in m.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.eps = 1e-14  # eps is what makes the invariance only nearly true
        x, y = images[0].double(), images[1]
        surfaces.append(
            loss_surface(m, x, y, filter_normalised_directions(m), points=3, progress=False)[2]
        )
    np.testing.assert_allclose(surfaces[0], surfaces[1], rtol=1e-9)
    assert surfaces[0].std() > 0.01


# ---- surfaces


def test_a_quadratic_bowl():
    model = nn.Linear(2, 1, bias=False).double()
    model.weight.data = torch.tensor([[1.5, -2.0]], dtype=torch.float64)
    d = {"weight": torch.tensor([[1.0, 0.5]], dtype=torch.float64)}
    e = {"weight": torch.tensor([[-0.25, 2.0]], dtype=torch.float64)}
    x = torch.tensor(np.random.default_rng(0).normal(size=(7, 2)))
    y = torch.tensor(np.random.default_rng(1).normal(size=7))

    def loss(out, y):
        return (out[:, 0] - y).square().mean()

    alphas, betas, losses = loss_surface(
        model, x, y, (d, e), 2.0, 5, batch_size=3, loss=loss, progress=False
    )
    assert alphas.tolist() == betas.tolist() == [-2, -1, 0, 1, 2]
    for i, a in enumerate(alphas):
        for j, b in enumerate(betas):
            w = np.array([1.5, -2.0]) + a * np.array([1.0, 0.5]) + b * np.array([-0.25, 2.0])
            assert losses[i, j] == pytest.approx(
                ((x.numpy() @ w - y.numpy()) ** 2).mean(), rel=1e-12
            )


def test_cross_entropy_of_a_linear_model():
    rng = np.random.default_rng(5)
    model = nn.Linear(6, 3).double()
    x, y = rng.normal(size=(10, 6)), rng.integers(3, size=10)
    directions = filter_normalised_directions(model, seed=2)
    alphas, betas, losses = loss_surface(
        model,
        torch.tensor(x),
        torch.tensor(y),
        directions,
        radius=1.5,
        points=4,
        batch_size=4,
        progress=False,
    )
    w, bias = model.weight.detach().numpy(), model.bias.detach().numpy()
    d, e = (v["weight"].numpy() for v in directions)
    for i, j in np.ndindex(4, 4):
        logits = x @ (w + alphas[i] * d + betas[j] * e).T + bias
        expected = (np.log(np.exp(logits).sum(1)) - logits[np.arange(10), y]).mean()
        assert losses[i, j] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "statistics, context", [("running", frozen_statistics), ("batch", batch_statistics)]
)
def test_the_middle_is_the_network_itself(network, images, statistics, context):
    x, y = images
    with torch.no_grad(), context(network):
        expected = F.cross_entropy(network(x), y).item()
    directions = filter_normalised_directions(network)
    alphas, betas, losses = loss_surface(
        network, x, y, directions, points=7, radius=0.3, statistics=statistics, progress=False
    )
    assert alphas[3] == betas[3] == 0.0
    assert losses[3, 3] == pytest.approx(expected, rel=1e-6)  # of the same passes


def test_batches_and_bytes_change_nothing(network, images):
    x, y = (images[0] * 255).round().to(torch.uint8), images[1]
    directions = filter_normalised_directions(network)
    whole, parts, floats = (
        loss_surface(network, v, y, directions, points=3, batch_size=size, progress=False)[2]
        for v, size in ((x, 500), (x, 4), (x.float() / 255, 500))
    )
    np.testing.assert_allclose(parts, whole, rtol=1e-4)
    assert np.array_equal(floats, whole)


def test_images_on_disk(network, images):
    x, y = (images[0] * 255).round().to(torch.uint8), images[1]
    order = np.array([4, 2, 10, 0, 7])
    disk = OnDisk(x.permute(0, 2, 3, 1).cpu().numpy(), order)
    directions = filter_normalised_directions(network)
    surfaces = [
        loss_surface(network, v, y[order], directions, points=2, batch_size=2, progress=False)[2]
        for v in (disk, x[order])
    ]
    assert np.array_equal(*surfaces)


@pytest.mark.parametrize("statistics", ["running", "batch"])
def test_the_network_is_untouched(network, images, statistics):
    before, modes = snapshot(network), [m.training for m in network.modules()]
    pointers = [p.data_ptr() for p in network.parameters()]
    loss_surface(
        network,
        *images,
        filter_normalised_directions(network),
        points=3,
        statistics=statistics,
        progress=False,
    )
    assert same(network, before) and [m.training for m in network.modules()] == modes
    assert pointers == [p.data_ptr() for p in network.parameters()]
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


def test_the_network_is_untouched_after_an_interruption(network, images):
    before, modes, calls = snapshot(network), [m.training for m in network.modules()], []

    def interrupted(logits, y):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return F.cross_entropy(logits, y)

    with pytest.raises(KeyboardInterrupt):
        loss_surface(
            network, *images, filter_normalised_directions(network), points=3, loss=interrupted
        )
    assert same(network, before) and [m.training for m in network.modules()] == modes


@pytest.mark.parametrize(
    "options, says",
    [
        ({"points": 1}, "points = 1"),
        ({"radius": 0.0}, "radius = 0.0"),
        ({"statistics": "frozen"}, "running or batch"),
        ({"y": torch.zeros(3, dtype=torch.int64)}, "11 images with 3 labels"),
    ],
)
def test_bad_surfaces(network, images, options, says):
    given = {"x": images[0], "y": images[1], "directions": ({}, {})} | options
    with pytest.raises(BadInput, match=says):
        loss_surface(network, **given)


def test_the_columns_of_a_surface_are_its_points(network, images):
    found = surface_columns(network, *images, radius=0.5, points=3, seed=4)
    directions = filter_normalised_directions(network, 4)
    axis, _, losses = loss_surface(network, *images, directions, 0.5, 3, progress=False)
    assert found["alpha"] == [a for a in axis for _ in range(3)]
    assert found["beta"] == [*axis] * 3 and found["loss"] == losses.ravel().tolist()
