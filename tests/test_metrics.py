"""Spread, timing in turns and loss surfaces, against closed forms in float64."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from thesis_repro import data, metrics
from thesis_repro.metrics import filter_normalised_directions, loss_surface, paired_seconds, ratios
from thesis_repro.models import batch_statistics, build, frozen_statistics
from thesis_repro.settings import BadInput


def snapshot(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(model, before):
    return all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.fixture
def network():
    "A narrow network whose batch norms have seen something."
    model = build("preactresnet18", 4, width=0.125, channels=1, seed=1)
    with torch.no_grad():
        for i in range(3):
            model(torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(i)))
    return model


@pytest.fixture
def images():
    g = torch.Generator().manual_seed(9)
    return torch.rand(11, 1, 8, 8, generator=g), torch.randint(4, (11,), generator=g)


# ---- mean, deviation, interval


def test_mean_and_sample_deviation():
    values = [94.1, 95.3, 95.9, 93.0]
    mean = sum(values) / 4
    std = math.sqrt(sum((v - mean) ** 2 for v in values) / 3)
    assert metrics.mean_std(values) == pytest.approx((mean, std), rel=1e-14)
    assert metrics.mean_std(pd.Series(values)) == metrics.mean_std(iter(values))


def test_one_value_has_no_spread():
    mean, std = metrics.mean_std([95.0])
    assert mean == 95.0 and math.isnan(std)
    assert all(math.isnan(v) for v in metrics.confidence_interval([95.0]))


@pytest.mark.parametrize("n, t", [(2, 12.7062), (3, 4.30265), (5, 2.77645), (30, 2.04523)])
def test_interval_uses_the_tables_of_student(n, t):
    values = np.random.default_rng(n).normal(90, 2, n)
    low, high = metrics.confidence_interval(values)
    half = t * values.std(ddof=1) / math.sqrt(n)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), rel=1e-5)


def test_interval_covers_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(0.0, 1.0, (2000, 3))
    intervals = [metrics.confidence_interval(d, level=0.8) for d in draws]
    covered = np.mean([low < 0 < high for low, high in intervals])
    assert covered == pytest.approx(0.8, abs=0.03)  # three standard errors


@pytest.mark.parametrize(
    "call", [lambda: metrics.mean_std([]), lambda: metrics.confidence_interval([1, 2], level=95)]
)
def test_bad_statistics(call):
    with pytest.raises(BadInput) as e:
        call()
    assert "\n" not in str(e.value)


# ---- timing


def test_actions_take_turns_in_rotating_order():
    calls = []
    frame = paired_seconds({k: lambda k=k: calls.append(k) for k in "ABC"}, repeats=4, warmup=2)
    rounds = ["".join(calls[i : i + 3]) for i in range(0, len(calls), 3)]
    assert rounds == ["BCA", "CAB", "ABC", "BCA", "CAB", "ABC"]
    assert list(frame.columns) == list("ABC") and len(frame) == 4
    assert (frame >= 0).all(axis=None)


def test_seconds_are_seconds_of_the_right_column(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: clock[0])

    def takes(seconds):
        return lambda: clock.__setitem__(0, clock[0] + seconds)

    frame = paired_seconds({"slow": takes(3.0), "fast": takes(0.5)}, repeats=3)
    assert (frame["slow"] == 3.0).all() and (frame["fast"] == 0.5).all()
    assert ratios(frame, "fast").to_dict() == {"slow": 6.0, "fast": 1.0}


def test_the_clock_waits_for_the_gpu(monkeypatch):
    events = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: events.append("wait"))
    paired_seconds({"A": lambda: events.append("run")}, repeats=1, warmup=0)
    assert events == ["wait", "run", "wait"]


def test_ratios_are_medians_of_pairs():
    frame = pd.DataFrame({"A": [1.0, 10.0, 100.0], "B": [2.0, 20.0, 900.0]})
    assert ratios(frame, "A")["B"] == 2.0
    assert ratios(frame, "B")["A"] == 0.5


@pytest.mark.parametrize(
    "call",
    [
        lambda: paired_seconds({}, 3),
        lambda: paired_seconds({"A": int}, 0),
        lambda: ratios(pd.DataFrame({"A": [1.0]}), "B"),
    ],
)
def test_bad_timings(call):
    with pytest.raises(BadInput):
        call()


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
    "Filters before a batch norm may be rescaled without changing the function: the surface must not change either."
    scaled = build("preactresnet18", 4, width=0.125, channels=1)
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
                norm.eps = 0.0  # eps is what makes the invariance only nearly true
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
    loss = lambda out, y: (out[:, 0] - y).square().mean()
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
    assert alphas[3] == betas[3] == 0.0 and losses[3, 3] == expected


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
    disk = data.OnDisk(x.permute(0, 2, 3, 1).numpy(), order)
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
        ({"y": torch.zeros(3, dtype=torch.int64)}, "11 images, 3 labels"),
    ],
)
def test_bad_surfaces(network, images, options, says):
    given = {"x": images[0], "y": images[1], "directions": ({}, {})} | options
    with pytest.raises(BadInput, match=says):
        loss_surface(network, **given)
