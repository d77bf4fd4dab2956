"""Corruptions against their definitions written a second time, one image at a time."""

import io
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from methods import small, store_at
from PIL import Image

from thesis_repro import corruptions, data
from thesis_repro.corruptions import (
    ALEXNET,
    CORRUPTIONS,
    SEVERITIES,
    CorruptionError,
    corrupted,
    mean_corruption_error,
)
from thesis_repro.draws import Draws
from thesis_repro.files import BadInput


@pytest.fixture(scope="module")
def images():
    x = data.load("digits10_cluttered", 20, 10, 10).x_test[:4].clone()
    x[0, :, :3, :3] = 0  # some black
    return x


def rng(kind, severity, seed=0):
    return Draws(seed).numpy(f"{kind} {severity}")


def finished(found):
    "As the benchmark saves it: NHWC in [0, 1] → uint8 NCHW, cut."
    cut = np.floor(255 * np.clip(found, 0, 1) + 1e-6).astype(np.uint8)
    return torch.from_numpy(cut).permute(0, 3, 1, 2)


def as_is(images):
    return images.permute(0, 2, 3, 1).numpy() / 255


@pytest.mark.parametrize("severity", SEVERITIES)
def test_noises_are_what_their_numbers_say(severity):
    "Of a grey image, large enough that mean and deviation are known."
    x = torch.full((1, 3, 200, 200), 100, dtype=torch.uint8)[:, :, :120]
    n, mean = x.numel(), 100 / 255
    for kind, place in (("gaussian_noise", 1), ("shot_noise", 1)):
        c = CORRUPTIONS[kind][place][severity - 1]
        std = c if kind == "gaussian_noise" else math.sqrt(mean / c)
        found = corrupted(x, kind, severity).double() / 255
        assert abs(found.mean() - mean) < 5 * std / math.sqrt(n) + 1 / 255
        assert abs(found.std() / std - 1) < 0.03 or severity > 3  # cut at black
    c = CORRUPTIONS["impulse_noise"][1][severity - 1]
    found = corrupted(x, "impulse_noise", severity)
    black, white = ((found == v).double().mean() for v in (0, 255))
    slack = 5 * math.sqrt(c / n)
    assert abs(black - c / 2) < slack and abs(white - c / 2) < slack
    assert ((found == 0) | (found == 255) | (found == 100)).all()


@pytest.mark.parametrize("severity", SEVERITIES)
def test_brightness_is_the_value_of_hsv(images, severity):
    c = CORRUPTIONS["brightness"][1][severity - 1]
    hsv = rgb_to_hsv(as_is(images))
    hsv[..., 2] = np.clip(hsv[..., 2] + c, 0, 1)
    found, expected = corrupted(images, "brightness", severity), finished(hsv_to_rgb(hsv))
    assert (found.int() - expected.int()).abs().max() <= 1  # the last bit of a whole number
    assert (found != expected).double().mean() < 0.02


@pytest.mark.parametrize("severity", SEVERITIES)
def test_contrast_pulls_towards_the_mean(images, severity):
    c, found = CORRUPTIONS["contrast"][1][severity - 1], []
    for image in as_is(images):
        means = image.mean(axis=(0, 1), keepdims=True)
        found.append((image - means) * c + means)
    assert torch.equal(corrupted(images, "contrast", severity), finished(np.stack(found)))


@pytest.mark.parametrize("severity", SEVERITIES)
def test_pixels_and_jpeg_are_pillows(images, severity):
    side = images.shape[-1]
    share, quality = (CORRUPTIONS[k][1][severity - 1] for k in ("pixelate", "jpeg_compression"))
    for i, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        picture = Image.fromarray(image)
        few = picture.resize((int(side * share),) * 2, Image.Resampling.BOX)
        expected = np.asarray(few.resize((side, side), Image.Resampling.BOX))
        found = corrupted(images, "pixelate", severity)[i].permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(found, expected)
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        found = corrupted(images, "jpeg_compression", severity)[i].permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(found, np.asarray(Image.open(file)))


def kernel_of(radius, softness):
    "The benchmark's disk, its blur written as a sum over neighbours with mirrored borders."
    reach = 8 if radius <= 8 else radius
    taps = 1 if radius <= 8 else 2
    L = np.arange(-reach, reach + 1)
    X, Y = np.meshgrid(L, L)
    inside = (X**2 + Y**2 <= radius**2).astype(float)
    inside /= inside.sum()
    bell = np.exp(-(np.arange(-taps, taps + 1) ** 2) / (2 * softness**2))
    weights = np.outer(bell, bell) / bell.sum() ** 2
    wide = np.pad(inside, taps, mode="reflect")
    n = len(L)
    return sum(
        weights[i, j] * wide[i : i + n, j : j + n]
        for i in range(2 * taps + 1)
        for j in range(2 * taps + 1)
    )


@pytest.mark.parametrize("place", [1, 2])
@pytest.mark.parametrize("severity", SEVERITIES)
def test_defocus_is_a_mean_over_a_disk(place, severity):
    c = CORRUPTIONS["defocus_blur"][place][severity - 1]
    kernel = kernel_of(*c)
    ours = corruptions.disk(*c)
    rim = (len(kernel) - len(ours)) // 2
    assert abs(ours.sum() - 1) < 0.02  # a disk that touches the border is mirrored there
    np.testing.assert_allclose(np.pad(ours, rim), kernel, atol=1e-15)
    x = np.random.default_rng(0).random((1, 2, 40, 30))
    found = corruptions.defocus_blur(x, c, None)
    half = len(kernel) // 2
    wide = np.pad(x, ((0, 0), (0, 0), (half, half), (half, half)), mode="reflect")
    for i, j in ((0, 0), (20, 15), (39, 29), (5, 28)):
        area = wide[0, 1, i : i + len(kernel), j : j + len(kernel)]
        assert found[0, 1, i, j] == pytest.approx((area * kernel).sum(), abs=1e-12)


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_corruption_is_a_function_of_its_draws(kind, channels):
    x = torch.randint(0, 256, (3, channels, 12, 10), dtype=torch.uint8)
    before = x.clone()
    found = corrupted(x, kind, 3)
    assert found.shape == x.shape and found.dtype == torch.uint8 and torch.equal(x, before)
    assert torch.equal(found, corrupted(x, kind, 3, Draws(0)))
    random = not torch.equal(found, corrupted(x, kind, 3, Draws(1)))
    assert random == kind.endswith("noise")


def test_large_images_have_the_strengths_of_imagenet():
    x = torch.full((1, 3, 128, 128), 128, dtype=torch.uint8)
    large, little = (corrupted(x[:, :, :n, :n], "gaussian_noise", 1) for n in (128, 64))
    assert large.double().std() == pytest.approx(255 * 0.08, rel=0.03)
    assert little.double().std() == pytest.approx(255 * 0.04, rel=0.05)


def test_the_mean_corruption_error_is_its_formula():
    errors = {"gaussian_noise": [10, 20, 30, 40, 50], "fog": [5, 5, 5, 5, 90]}
    reference = {"gaussian_noise": 50.0, "fog": 80.0}
    by_hand = 100 * (150 / (5 * 50) + 110 / (5 * 80)) / 2
    assert mean_corruption_error(errors, reference) == pytest.approx(by_hand)
    assert len(ALEXNET) == 15 and set(CORRUPTIONS) < set(ALEXNET)


def test_the_strengths_and_the_reference_are_the_benchmarks():
    "make_cifar_c.py and make_imagenet_c.py of hendrycks/robustness; AlexNet's errors from there."
    assert {kind: how[1:] for kind, how in CORRUPTIONS.items()} == {
        "gaussian_noise": ((0.04, 0.06, 0.08, 0.09, 0.1), (0.08, 0.12, 0.18, 0.26, 0.38)),
        "shot_noise": ((500, 250, 100, 75, 50), (60, 25, 12, 5, 3)),
        "impulse_noise": ((0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27)),
        "defocus_blur": (
            ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
            ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        ),
        "brightness": ((0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),
        "contrast": ((0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
        "pixelate": ((0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25)),
        "jpeg_compression": ((80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),
    }
    noise, blur = (88.6428, 89.4468, 92.2640), (81.9880, 82.6268, 78.5948, 79.8360)
    weather, digital = (86.6816, 82.6572, 81.9324, 56.4592), (85.3204, 64.6056, 71.7840, 60.6500)
    assert tuple(ALEXNET.values()) == noise + blur + weather + digital


def test_it_is_measured_of_a_run_and_kept(tmp_path):
    store, run = store_at(tmp_path), small(epochs=1)
    store.ensure([run])
    how = CorruptionError(("contrast", "shot_noise"), size=20)
    assert math.isnan(how.value(store, run)) and how.absent(store, run)
    errors = how.make(store, run)
    assert set(errors) == {"contrast", "shot_noise"} and len(errors["contrast"]) == 5
    assert how.value(store, run) == pytest.approx(mean_corruption_error(errors))
    net, images = store.weights(run), store.images(run.data)
    x, y = corrupted(images.x_test[:20], "contrast", 5), images.y_test[:20]
    with torch.no_grad():
        wrong = (net(x.float() / 255).argmax(1) != y).double().mean()
    assert errors["contrast"][4] == pytest.approx(100 * wrong)


def test_a_part_of_the_images_or_of_the_corruptions_is_told(tmp_path):
    store, run = store_at(tmp_path), small(epochs=1)
    assert not CorruptionError(size=20).doubt(store, [run])  # it is not there yet
    store.ensure([run])
    n = len(store.images(run.data).y_test)
    every = tuple(ALEXNET)
    assert CorruptionError(every, 20).doubt(store, [run]) == f"mCE of 20 of {n} test images"
    told = f"mCE of 20 of {n} test images, 2 of 15 corruptions"
    assert CorruptionError(("fog", "contrast"), 20).doubt(store, [run]) == told
    for size in (0, n):
        assert CorruptionError(every, size).doubt(store, [run]) == ""
    # ImageNet-C is always measured whole
    whole = SimpleNamespace(data=SimpleNamespace(real=True))
    there = SimpleNamespace(record=lambda r: SimpleNamespace(data={"test": 50_000}))
    assert CorruptionError(every, 20).doubt(there, [whole]) == ""


def test_bad_input_is_one_line():
    x = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    for kind, severity in (("rain", 1), ("contrast", 6)):
        with pytest.raises(BadInput, match=f"corruption {kind}, severity {severity}: must be one"):
            corrupted(x, kind, severity)
    with pytest.raises(BadInput, match="rain: unknown corruption: known are gaussian_noise"):
        CorruptionError(("rain",))


# Edges, and what is not said


def test_severities_and_what_is_not_said(tmp_path):
    assert SEVERITIES == (1, 2, 3, 4, 5)
    assert CorruptionError() == CorruptionError(tuple(CORRUPTIONS), 0)
    assert CorruptionError(("fog", "snow")).passes(small()) == (10, 0)


def test_white_stays_white_where_noise_goes_beyond():
    "Cut at 255, and not wrapped round."
    x = torch.full((1, 3, 64, 64), 255, dtype=torch.uint8)
    found = corrupted(x, "gaussian_noise", 5)
    assert (found == 255).double().mean() == pytest.approx(0.5, abs=0.03) and found.min() > 120


def test_an_image_that_is_too_small_to_shrink_keeps_a_pixel():
    "The mean of both, along either side."
    x = torch.full((1, 3, 1, 2), 100, dtype=torch.uint8)
    x[..., 1] = 200
    for image in (x, x.mT.contiguous()):
        assert corrupted(image, "pixelate", 5).flatten().tolist() == [150] * 6


@pytest.mark.parametrize("radius", [7, 8, 9])
def test_a_disk_beyond_eight_pixels_is_blurred_further(radius):
    ours, kernel = corruptions.disk(radius, 0.5), kernel_of(radius, 0.5)
    np.testing.assert_allclose(np.pad(ours, (len(kernel) - len(ours)) // 2), kernel, atol=1e-15)
