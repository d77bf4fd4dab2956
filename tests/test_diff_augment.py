"""DiffAugment against the description of Zhao et al. (2020), section 3.2, image by image."""

import dataclasses

import numpy as np
import pytest
import torch
from gan import GANS

from thesis_repro import gan_blocks
from thesis_repro.draws import Draws
from thesis_repro.files import BadInput
from thesis_repro.gan_blocks import ALTERATIONS, diff_augment
from thesis_repro.gans import Gan
from thesis_repro.recipes import Batch


def by_hand(x: np.ndarray, u: np.ndarray, policy) -> np.ndarray:
    "One image (c, h, w): brightness, saturation, contrast, translation by loops, cutout by loops."
    c, h, w = x.shape
    if "colour" in policy:
        x = x + (u[0] - 0.5)
        mean = x.sum(0) / c
        x = np.stack([(channel - mean) * (2 * u[1]) + mean for channel in x])
        mean = x.sum() / x.size
        x = (x - mean) * (0.5 + u[2]) + mean
    if "translation" in policy:
        most = [int(side / 8 + 0.5) for side in (h, w)]
        dy, dx = (int(v * (2 * m + 1)) - m for v, m in zip(u[3:5], most, strict=True))
        there = np.zeros_like(x)
        for i in range(h):
            for j in range(w):
                if 0 <= i + dy < h and 0 <= j + dx < w:
                    there[:, i + dy, j + dx] = x[:, i, j]
        x = there
    if "cutout" in policy:
        sizes = [int(side / 2 + 0.5) for side in (h, w)]
        middle = [int(v * (n + 1 - k % 2)) for v, n, k in zip(u[5:], (h, w), sizes, strict=True)]
        x = x.copy()
        for i in range(sizes[0]):
            for j in range(sizes[1]):
                place = middle[0] + i - sizes[0] // 2, middle[1] + j - sizes[1] // 2
                if 0 <= place[0] < h and 0 <= place[1] < w:
                    x[:, place[0], place[1]] = 0
    return x


@pytest.mark.parametrize("policy", [(), *((name,) for name in ALTERATIONS), tuple(ALTERATIONS)])
@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 8, 12), (3, 6, 4)])
def test_images_are_altered_as_described(policy, shape):
    rng = np.random.default_rng(0)
    x, u = rng.uniform(-1, 1, (40, *shape)), rng.random((40, 7))
    u[0], u[1] = 0, 1 - 1e-12  # both ends
    expected = np.stack([by_hand(*pair, policy) for pair in zip(x, u, strict=True)])
    found = diff_augment(torch.from_numpy(x), torch.from_numpy(u), policy)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-12)


def test_gradients_pass_twice():
    torch.manual_seed(0)
    x = torch.rand(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    u = torch.rand(2, 7, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: diff_augment(x, u), (x,))
    assert torch.autograd.gradgradcheck(lambda x: diff_augment(x, u).square(), (x,))


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return Batch(torch.rand(6, 3, 8, 8), torch.arange(6) % 10, Draws(0, step=3))


def plain(gan, **changes):
    "A GAN of the tests without normalisation over the batch."
    return dataclasses.replace(GANS[gan], **changes)


def nets_of(recipe, batch):
    images = type("Images", (), {"x_train": batch.x, "classes": 10})
    return recipe.networks(images, 0)


def test_both_players_see_altered_images_and_the_same_generated_ones(batch, monkeypatch):
    recipe = plain("WGAN-GP", augment=tuple(ALTERATIONS))
    nets, seen = nets_of(recipe, batch), []
    nets["critic"].register_forward_hook(lambda m, given, out: seen.append(given[0].detach()))
    recipe.critic_loss(nets, batch), recipe.generator_loss(nets, batch)
    real, fake, *_, again = seen
    for images in (real, fake):
        holes = (images == 0).all(1).flatten(1).sum(1)
        assert (holes >= 4).all()  # a quarter of 4 × 4 pixels is inside, wherever the middle is
    assert torch.equal(fake, again)
    u = batch.draws.tensor("altered real", lambda rng: rng.random((6, 7)))
    expected = diff_augment(batch.x * 2 - 1, u)
    torch.testing.assert_close(real, expected)


def test_the_generator_learns_through_what_was_done_to_its_images(batch):
    recipe = plain("WGAN-GP", augment=("cutout",))
    nets = nets_of(recipe, batch)
    recipe.critic_loss(nets, batch)
    recipe.generator_loss(nets, batch).backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() for p in nets["generator"].parameters()
    )
    assert max(p.grad.abs().max() for p in nets["generator"].parameters()) > 0


def test_without_it_nothing_is_drawn_and_nothing_altered(batch, monkeypatch):
    monkeypatch.setattr(gan_blocks, "diff_augment", None)
    recipe = plain("WGAN-GP")
    look = recipe.look(nets_of(recipe, batch), batch)
    assert torch.equal(look.real, batch.x * 2 - 1)


def test_what_is_no_alteration_is_refused():
    with pytest.raises(BadInput, match="augment = .*must be one of colour, translation, cutout"):
        Gan(augment=("rotation",))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_moves_images_no_further(dtype):
    "A number just below one is one in bfloat16."
    x = torch.ones(1, 1, 8, 8, dtype=dtype)
    for u in (0.999, 0.9999, 1 - 2**-24):
        found = diff_augment(x, torch.full((1, 7), u), ("translation",))
        assert found.dtype == dtype and found.sum() == 49
        assert diff_augment(x, torch.full((1, 7), u), ("colour",)).dtype == dtype
