"The composed digits: pinned bit for bit, balanced, and true to their labels."

import numpy as np
import pytest
from samples import bits

from thesis_repro import digits

# Every record of a run on digits depends on these pictures.
PINNED = {
    "digits10": (10, 1, "4df6ae8b91d51cb9"),
    "digits10_cluttered": (10, 1, "9e18efbd50cb22af"),
    "digits100": (100, 1, "9a3275923f901cbb"),
    "digits200": (200, 1, "ed8d40cae8cd1a5a"),
    "faint10": (10, 0, "17ffd4b14f24e055"),
    "faint100": (100, 0, "ebb9929b1b3eefed"),
    "plain10": (10, 1, "96e9779856fa2a27"),
}


@pytest.mark.parametrize("name", PINNED)
def test_every_picture_is_pinned(name):
    made = digits.composed.__wrapped__(name)
    found = bits(made.x_train, made.y_train, made.x_test, made.y_test)
    assert (made.classes, made.crop, found) == PINNED[name] and not made.flip
    assert digits.COMPOSED.keys() == PINNED.keys()


@pytest.mark.parametrize("name", PINNED)
def test_classes_are_balanced_and_no_picture_comes_twice(name):
    made, side = digits.composed(name), 8 if name.startswith("faint") else 16
    size = (side, side, 1 if name == "plain10" else 3)
    assert made.x_train.shape == (5000, *size) and made.x_test.shape == (2000, *size)
    assert set(np.bincount(made.y_train)) == {5000 // made.classes}
    assert len({x.tobytes() for x in (*made.x_train, *made.x_test)}) == 7000


def test_no_scan_is_in_both_train_and_test():
    pools = digits.pools()
    train, test = ({x.tobytes() for x in pools[k][0]} for k in ("train", "test"))
    assert len(train) + len(test) == 1797
    assert not train & test
    assert all((np.bincount(pools[k][1]) > 30).all() for k in pools)


def test_drawn_scan_at_its_own_size_is_the_scan():
    scan = np.random.default_rng(0).random((1, 8, 8))
    one = np.ones(1)
    ink = digits._drawn(scan, 7.5 * one, 7.5 * one, 8 * one, 8 * one, 0 * one)
    assert np.allclose(ink[0, 4:12, 4:12], scan[0])
    assert ink.sum() == pytest.approx(scan.sum())
    moved = digits._drawn(scan, 9.5 * one, 6.5 * one, 8 * one, 8 * one, 0 * one)
    assert np.allclose(moved[0, 3:11, 6:14], scan[0])


def marked_pool():
    "Ten scans, each known by its amount of ink."
    scans = np.zeros((10, 8, 8))
    for d in range(10):
        scans[d].flat[: 6 * d + 5] = 1
    return scans, np.arange(10)


def test_classes_say_what_is_in_the_picture():
    "Left digit, right digit, inversion."
    label = np.array([7, 70, 170])
    x = digits._two(np.random.default_rng(0), marked_pool(), label).astype(float).mean(-1)
    left, right = x[:, :, :8].mean((1, 2)), x[:, :, 8:].mean((1, 2))
    assert left[0] < right[0] and left[1] > right[1] and left[2] < right[2]


def test_faint_classes_say_digit_and_colour():
    "Class 10 × digit + colour: more ink is farther from the paper, in the colour's direction."
    label = np.array([15, 85, 81])
    x = digits._faint(np.random.default_rng(0), marked_pool(), label).astype(float)
    change = x.mean((1, 2)) - x[:, -1].mean(1)  # against the last row, which has no ink
    towards = (change * digits._TINTS[label % 10]).sum(1)
    assert towards[1] > towards[0] and towards[1] > 0 and towards[2] > 0
