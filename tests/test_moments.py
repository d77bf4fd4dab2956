"""Means, covariances and the Fréchet distance, against NumPy and SciPy's root of a matrix."""

import math

import numpy as np
import pytest
import torch
from scipy import linalg

from thesis_repro.files import BadInput
from thesis_repro.moments import Moments, frechet_distance, frechet_distances


def features(n, d=5, seed=0, shift=0.0):
    "Features that depend on each other and are not normal."
    rng = np.random.default_rng(seed)
    return rng.exponential(size=(n, d)) @ rng.normal(size=(d, d)) + shift


def seen(x, *sizes):
    "Moments of an array, seen in batches of these sizes; the rest in one."
    cuts = np.cumsum(sizes)
    found = Moments()
    for part in np.split(x, cuts):
        found.add(torch.from_numpy(part))
    return found


def by_scipy(x, y):
    "Eq. 2.15 as it is printed, of two arrays of features."
    s, t = np.cov(x.T), np.cov(y.T)
    root = np.real(linalg.sqrtm(s @ t))
    apart = x.mean(0) - y.mean(0)
    return apart @ apart + np.trace(s + t - 2 * root)


@pytest.mark.parametrize("sizes", [(), (1,), (10, 10), (3, 1, 0, 20)])
def test_mean_and_covariance_are_numpys(sizes):
    x = features(40)
    found = seen(x, *sizes)
    assert found.n == 40
    np.testing.assert_allclose(found.mean.numpy(), x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance.numpy(), np.cov(x.T), rtol=1e-11, atol=1e-13)


def test_nothing_is_lost_far_from_zero():
    "Features of a million that vary by one: sums of squares would have lost their digits."
    x = features(60, 3)
    found = seen(x + 1e6, 7, 20)
    np.testing.assert_allclose(found.covariance.numpy(), np.cov(x.T), rtol=1e-8)


def test_two_clouds_join_in_either_order():
    x, y = features(12), features(30, seed=1, shift=3)
    both = np.concatenate([x, y])
    for first, second in ((x, y), (y, x)):
        one, other = seen(first), seen(second, 5)
        kept = other.mean.clone(), other.scatter.clone(), other.n
        found = one.join(other)
        assert found is one and one.n == 42
        np.testing.assert_allclose(one.mean.numpy(), both.mean(0), rtol=1e-12)
        np.testing.assert_allclose(one.covariance.numpy(), np.cov(both.T), rtol=1e-11, atol=1e-13)
        assert torch.equal(other.mean, kept[0]) and torch.equal(other.scatter, kept[1])
        assert other.n == kept[2]


def test_joining_nothing_changes_nothing():
    x = features(9)
    found = seen(x).join(Moments())
    np.testing.assert_allclose(found.covariance.numpy(), np.cov(x.T), rtol=1e-12, atol=1e-14)
    assert Moments().join(Moments()).n == 0


def test_maps_are_flattened_and_float32_is_summed_in_float64():
    x = torch.from_numpy(features(8, 6)).float()
    maps = Moments().add(x.view(8, 2, 3).requires_grad_())
    assert maps.mean.dtype == torch.float64 and not maps.mean.requires_grad
    np.testing.assert_allclose(maps.covariance.numpy(), np.cov(x.double().numpy().T), rtol=1e-11)


@pytest.mark.parametrize("n", [0, 1])
def test_a_covariance_needs_two(n):
    with pytest.raises(BadInput, match=f"moments of {n} feature vectors: at least two"):
        seen(features(n)).covariance  # noqa: B018
    assert seen(features(2)).covariance.shape == (5, 5)


@pytest.mark.parametrize("shift", [0.0, 2.5])
def test_the_distance_is_that_of_scipys_root(shift):
    x, y = features(50), features(40, seed=1, shift=shift)
    found = frechet_distance(seen(x), seen(y, 13))
    assert math.isclose(found, by_scipy(x, y), rel_tol=1e-9)
    assert math.isclose(found, frechet_distance(seen(y), seen(x)), rel_tol=1e-9)


def test_fewer_images_than_features():
    "Covariances without full rank, where the root of a product is hard to find."
    x, y = features(4, 7), features(5, 7, seed=1)
    # the trace of the root by its other definition: the singular values of A Bᵀ, Σ = AᵀA
    a, b = ((v - v.mean(0)) / math.sqrt(len(v) - 1) for v in (x, y))
    shared = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    apart = x.mean(0) - y.mean(0)
    expected = apart @ apart + (a**2).sum() + (b**2).sum() - 2 * shared
    assert math.isclose(frechet_distance(seen(x), seen(y)), expected, rel_tol=1e-6)


def test_covariances_that_commute_have_a_closed_form():
    "The sum of (μ − ν)² + (σ − τ)² over axes that both share."
    rng = np.random.default_rng(0)
    axes, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    cross = np.concatenate([np.eye(4), -np.eye(4)])  # its covariance is a multiple of one
    cross = cross / cross.std(0, ddof=1)
    one, other = np.array([1.0, 2, 3, 4]), np.array([2.0, 2, 1, 0.5])
    x, y = (cross * one) @ axes, (cross * other) @ axes + 3
    expected = 4 * 9 + ((one - other) ** 2).sum()
    assert math.isclose(frechet_distance(seen(x), seen(y)), expected, rel_tol=1e-9)


def test_a_turn_of_both_clouds_changes_nothing_and_a_scale_its_square():
    x, y = features(30), features(20, seed=1, shift=1)
    turn, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(5, 5)))
    found = frechet_distance(seen(x), seen(y))
    turned = frechet_distance(seen(x @ turn), seen(y @ turn))
    assert math.isclose(turned, found, rel_tol=1e-9)
    assert math.isclose(frechet_distance(seen(3 * x), seen(3 * y)), 9 * found, rel_tol=1e-9)
    assert abs(frechet_distance(seen(x), seen(x))) < 1e-9 * np.trace(np.cov(x.T))


def test_one_root_serves_for_all():
    x, others = features(30), [features(20, seed=s, shift=s) for s in (1, 2, 3)]
    found = frechet_distances(seen(x), [seen(y) for y in others])
    np.testing.assert_allclose(found, [by_scipy(x, y) for y in others], rtol=1e-9)
    assert frechet_distances(seen(x), []) == []


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_what_is_not_finite_has_no_distance(wrong):
    "On either side, in the first or in one of the others."
    x, bad = features(10), features(10, seed=1)
    bad[3, 2] = wrong
    assert math.isnan(frechet_distance(seen(x), seen(bad)))
    assert math.isnan(frechet_distance(seen(bad), seen(x)))
    mixed = frechet_distances(seen(x), [seen(bad), seen(x + 1)])
    assert math.isnan(mixed[0]) and math.isclose(mixed[1], 5, rel_tol=1e-9)
