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


def test_where_in_a_run_a_draw_is_if_nothing_else_is_said():
    "At its beginning; another epoch begins with its first step."
    assert Draws(3) == Draws(3, 0, 0, 0.0) and Draws(3).at(2) == Draws(3, 2, 0)
    assert Draws(3).progress == 0 and Draws(3).reached(0.0) and not Draws(3).reached(0.1)


def test_draws_are_values_of_what_decides_their_numbers():
    "Neither how far the run is nor which images are in the batch does."
    here = Draws(3, 1, 2, 0.5, torch.arange(3))
    assert len({here, Draws(3, 1, 2, 0.7), Draws(3, 1, 2, 0.5, torch.ones(4))}) == 1
    assert "tensor" not in repr(here)


def test_parts_of_a_run():
    "Four quarters, the last of which the end belongs to."
    parts = [Draws(0, progress=p).part(4) for p in (0.0, 0.2, 0.25, 0.5, 0.99, 1.0)]
    assert parts == [0, 0, 1, 2, 3, 3]
    assert [Draws(0, progress=p).reached(0.5) for p in (0.4, 0.5, 0.6)] == [False, True, True]
