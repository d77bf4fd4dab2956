"Two features: center loss against NumPy, crowding, fewer classes, a network that is cut in two."

import numpy as np
import pytest
import torch

from thesis_repro import data, models
from thesis_repro.adversarial import Examples
from thesis_repro.draws import Draws
from thesis_repro.feature_space import CenterLoss, FewClasses, FlatClassify, crowding, feature_space
from thesis_repro.images import pixels
from thesis_repro.mixup import Plain


@pytest.fixture(scope="module")
def digits():
    return data.load("faint10", train_size=200, test_size=200, held_out=20)


def test_center_loss_and_its_gradients(digits):
    model = models.build("resnet18", 10, 0.0625, 3, digits.mean, digits.std, seed=1).eval()
    x, y = pixels(digits.x_test[:6]), digits.y_test[:6]
    piece = CenterLoss(weight=0.4)
    batch = Examples(model, x, y, Draws(0), inputs=x, nets=piece.networks(model, digits))
    centres = batch.nets["centres"].weight
    losses = piece(batch)
    last = model.stages[-1][-1]
    h = model.stages[-1][:-1](model(x, stop=3)).detach().double().numpy()
    c, w, b = (v.detach().double().numpy() for v in (centres, last.weight, last.bias))
    z = h @ w.T + b
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    expected = [
        -np.log(p[i, t]) + 0.2 * np.sum((h[i] - c[t]) ** 2) for i, t in enumerate(y.tolist())
    ]
    np.testing.assert_allclose(losses.detach(), expected, rtol=1e-4)
    slope = torch.autograd.grad(losses.sum(), centres)[0].numpy()
    by_hand = np.zeros_like(c)
    for i, t in enumerate(y.tolist()):
        by_hand[t] += 0.4 * (c[t] - h[i])
    np.testing.assert_allclose(slope, by_hand, rtol=1e-3, atol=1e-4)


def test_crowding_by_hand():
    g = np.random.default_rng(0)
    h, y = g.normal(size=(30, 2)) + 3 * (np.arange(30)[:, None] % 3), np.arange(30) % 3
    means = np.stack([h[y == c].mean(0) for c in range(3)])
    own = np.mean([np.linalg.norm(a - means[c]) for a, c in zip(h, y, strict=True)])
    near = np.mean(
        [min(np.linalg.norm(means[c] - means[o]) for o in range(3) if o != c) for c in range(3)]
    )
    found = crowding(torch.tensor(h), torch.tensor(y))
    assert found == pytest.approx(own / near, rel=1e-6)


def test_few_classes_keeps_images_with_their_labels(digits):
    few = FewClasses("faint10", 200, 200, 20, classes=3).images()
    assert few.classes == 3 and few.y_train.max() == 2 and few.y_val.max() == 2
    assert torch.equal(few.x_test, digits.x_test[digits.y_test < 3])
    assert torch.equal(few.y_test, digits.y_test[digits.y_test < 3])


def test_a_flat_network_reads_from_two_numbers(digits):
    recipe = FlatClassify("resnet18", Plain("ce"), width=0.0625)
    net = recipe.networks(digits, 0)["model"].eval()
    x = pixels(digits.x_test[:4])
    features = net(x, stop=4)
    assert features.shape == (4, 2)
    assert torch.allclose(net(features, start=4), net(x))


def test_the_plane_is_read_as_the_images_are(digits):
    "At its features an image is read as by the whole network; the grid lies around them."
    net = FlatClassify("resnet18", Plain("ce"), width=0.0625).networks(digits, 0)["model"].eval()
    found = feature_space(net, digits, grid=7)
    h = np.stack([found["features"][k] for k in ("h1", "h2")], 1)
    said = net(torch.tensor(h, dtype=torch.float32), start=4).argmax(1)
    assert torch.equal(said, net(pixels(digits.x_test)).argmax(1))
    assert found["features"]["class"] == digits.y_test.tolist()
    (left, right), (low, high) = ((a[0], a[-1]) for a in found["axes"])
    assert left < h[:, 0].min() and h[:, 0].max() < right
    assert low < h[:, 1].min() and h[:, 1].max() < high
    corner = net(torch.tensor([[right, low]]), start=4).argmax(1).item()
    assert found["regions"][0][-1] == corner
    assert found["crowding"] == pytest.approx(crowding(torch.tensor(h), digits.y_test), rel=1e-5)
