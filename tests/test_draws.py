"Random numbers: pinned, and different in everything that they depend on."

import numpy as np
import torch

from thesis_repro.draws import Draws


def test_draws_are_pinned():
    "These numbers must never change: every record of a run depends on them."
    assert Draws(0, 1, 2).numpy("order").integers(0, 1000, 5).tolist() == [18, 777, 781, 108, 825]
    drawn = torch.randint(0, 1000, (5,), generator=Draws(0, 1, 2).torch("order"))
    assert drawn.tolist() == [14, 895, 833, 167, 265]


def test_draws_differ_in_everything_they_depend_on():
    numbers, purposes = (0, 1, 12), ("order", "augment", "")
    keys = [(s, e, t, p) for s in numbers for e in numbers for t in numbers for p in purposes]
    first = [Draws(s, e, t).numpy(p).integers(2**62) for s, e, t, p in keys]
    assert len(set(first)) == len(keys)
    assert [Draws(s).at(e, t).numpy(p).integers(2**62) for s, e, t, p in keys] == first


def test_draws_of_two_purposes_are_uncorrelated():
    a, b = (Draws(7).torch(p) for p in ("one", "two"))
    r = np.corrcoef(torch.rand(20000, generator=a), torch.rand(20000, generator=b))[0, 1]
    assert abs(r) < 0.03
