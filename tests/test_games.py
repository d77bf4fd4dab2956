"""Losses of the two players, in float64: each formula written a second time from its paper, slopes
by finite differences, and what is differentiated again once more."""

import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from thesis_repro import games
from thesis_repro.files import BadInput
from thesis_repro.games import (
    Hinge,
    Judgement,
    LeastSquares,
    NonSaturating,
    Saturating,
    Wasserstein,
)


def drawn(*shape, seed=0, size=2.0):
    return size * torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def probability(scores):
    return 1 / (1 + np.exp(-scores))


def log_d(scores):
    return np.log(probability(scores)).mean()


def log_not_d(scores):
    return np.log(1 - probability(scores)).mean()


# game → loss of the critic (real, fake), loss of the generator (fake): Goodfellow et al., eq. 1 and
# section 3; LSGAN, eq. 9 (a = 0, b = c = 1); WGAN, eq. 2; Lim and Ye, eq. 7
REFERENCES = {
    Saturating(): (lambda r, f: -log_d(r) - log_not_d(f), log_not_d),
    NonSaturating(): (lambda r, f: -log_d(r) - log_not_d(f), lambda f: -log_d(f)),
    LeastSquares(): (
        lambda r, f: 0.5 * np.mean((r - 1) ** 2) + 0.5 * np.mean((f - 0) ** 2),
        lambda f: 0.5 * np.mean((f - 1) ** 2),
    ),
    Wasserstein(): (lambda r, f: -(np.mean(r) - np.mean(f)), lambda f: -np.mean(f)),
    Hinge(): (
        lambda r, f: -np.minimum(0, r - 1).mean() - np.minimum(0, -f - 1).mean(),
        lambda f: -np.mean(f),
    ),
}


def difference(function, x, h=1e-6):
    "The gradient of a function of an array by central differences."
    found = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i] = h
        found[i] = (function(x + step) - function(x - step)) / (2 * h)
    return found


def test_the_value_by_probabilities():
    "Eq. 2.1 with D = σ(score), from unequal numbers of scores."
    real, fake = drawn(7), drawn(5, seed=1)
    expected = log_d(real.numpy()) + log_not_d(fake.numpy())
    assert math.isclose(games.value(real, fake).item(), expected, rel_tol=1e-12)


def test_scores_of_any_size_have_a_value():
    "Where a probability is 0 or 1 in float64 its logarithm is still the score."
    far = torch.tensor([800.0], dtype=torch.float64)
    assert games.value(far, -far).item() == 0
    assert games.value(-far, far).item() == -1600
    assert NonSaturating().generator(-far).item() == 800


@pytest.mark.parametrize("game", REFERENCES, ids=lambda g: type(g).__name__)
def test_losses_and_their_gradients(game):
    real, fake = drawn(6, seed=2), drawn(4, seed=3)
    of_critic, of_generator = REFERENCES[game]
    r, f = (x.clone().requires_grad_() for x in (real, fake))
    loss = game.critic(r, f)
    assert math.isclose(loss.item(), of_critic(real.numpy(), fake.numpy()), rel_tol=1e-12)
    found = torch.autograd.grad(loss, (r, f))
    by_real = difference(lambda x: of_critic(x, fake.numpy()), real.numpy())
    by_fake = difference(lambda x: of_critic(real.numpy(), x), fake.numpy())
    np.testing.assert_allclose(found[0].numpy(), by_real, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found[1].numpy(), by_fake, rtol=1e-6, atol=1e-9)
    loss = game.generator(f)
    assert math.isclose(loss.item(), of_generator(fake.numpy()), rel_tol=1e-12)
    (found,) = torch.autograd.grad(loss, f)
    expected = difference(of_generator, fake.numpy())
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("game", REFERENCES, ids=lambda g: type(g).__name__)
def test_losses_can_be_differentiated_twice(game):
    scores = [drawn(4, seed=s).requires_grad_() for s in (4, 5)]
    assert all((x.detach().abs() - 1).abs().min() > 1e-2 for x in scores)  # no kink of the hinge
    assert gradgradcheck(lambda r, f: game.critic(r.tanh(), f.tanh()), scores)
    assert gradgradcheck(lambda f: game.generator(f.tanh()), scores[1:])


def test_the_hinge_does_not_pull_beyond_one():
    real = torch.tensor([1.5, 0.5], dtype=torch.float64, requires_grad=True)
    fake = torch.tensor([-1.5, -0.5], dtype=torch.float64, requires_grad=True)
    found = torch.autograd.grad(Hinge().critic(real, fake), (real, fake))
    assert found[0].tolist() == [0, -0.5] and found[1].tolist() == [0, 0.5]


def test_where_the_generator_still_learns():
    "The pull on an image that the critic is sure of: none in eq. 2.1, nearly one in the other."
    sure = torch.tensor([-30.0], dtype=torch.float64, requires_grad=True)
    pulls = [
        torch.autograd.grad(game.generator(sure), sure)[0].item()
        for game in (Saturating(), NonSaturating())
    ]
    np.testing.assert_allclose(pulls, [-np.exp(-30), -1], rtol=1e-9)


def test_a_bound_is_not_negative():
    assert Wasserstein().clip == 0
    with pytest.raises(BadInput, match="clip"):
        Wasserstein(-0.01)


# Slopes


def curved(w, v):
    "A small network that is smooth: images (n, 2, 3) to scores."
    return lambda x: torch.tanh(x.flatten(1) @ w) @ v


def test_slopes_by_finite_differences():
    w, v, x = drawn(6, 4, size=0.5), drawn(4, seed=1), drawn(3, 2, 3, seed=2)
    scores_of = curved(w, v)

    def score(image):
        return scores_of(torch.from_numpy(image[None])).item()

    expected = [np.linalg.norm(difference(score, image)) for image in x.numpy()]
    found = games.slopes(scores_of, x)
    assert found.shape == (3,)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-7)
    assert not x.requires_grad and x.grad is None  # the images stay as they were


def test_slopes_have_derivatives_by_the_weights():
    "A penalty is differentiated again: by finite differences, and its own derivative too."
    w, v, x = drawn(6, 3, size=0.5), drawn(3, seed=1), drawn(2, 2, 3, seed=2)

    def penalty(w, v):
        return (games.slopes(curved(w, v), x) - 1).square().mean()

    weights = w.requires_grad_(), v.requires_grad_()
    assert gradcheck(penalty, weights)
    assert gradgradcheck(penalty, weights)


def test_a_flat_critic_has_a_finite_derivative():
    "At a slope of zero the length has no derivative; nan would end the run."
    w = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    found = games.slopes(lambda x: x.flatten(1) @ w, drawn(2, 2, 3))
    assert found.tolist() == [0, 0]
    (gradient,) = torch.autograd.grad((found - 1).square().mean(), w)
    assert gradient.isfinite().all()


def test_places_between_two_images():
    x, other = drawn(3, 2, 4, 5), drawn(3, 2, 4, 5, seed=1)
    share = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    found = games.between(x, other, share)
    for i, s in enumerate(share.tolist()):
        np.testing.assert_allclose(found[i], s * x[i] + (1 - s) * other[i], rtol=1e-14)
    assert torch.equal(found[0], other[0]) and torch.equal(found[2], x[2])
    assert games.between(x.float(), other.float(), share).dtype == torch.float32


def test_what_a_critic_does_not_say_is_left_empty():
    said = Judgement(torch.zeros(2))
    assert said.logits is None and said.attention is None
