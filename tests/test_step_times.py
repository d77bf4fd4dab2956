"""What a training step costs: counted in multiplications, and timed at all of its layers."""

import dataclasses

import numpy as np
import pytest

from thesis_repro import mixup, models, step_times
from thesis_repro.aip import timed_methods
from thesis_repro.training import Compute

QUIET = Compute(progress=False)


def test_expected_cost_against_the_published_time():
    full = models.build("preactresnet18", 10)
    assert step_times.expected_cost(16, full, from_image=True) == pytest.approx(5.0)
    work = np.array(models.flops(full, 32), float)
    above = [work[layer:].sum() / work.sum() for layer in (1, 2, 3)]
    assert step_times.expected_cost(4, full) == pytest.approx((3 + 4 * sum(above) / 4) / 3)


@dataclasses.dataclass(frozen=True)
class Watched:
    "A method that notes its layer, the batch and a weight of the network in every step."

    layers: tuple = (0, 1, 2, 3)
    seen: list = dataclasses.field(default_factory=list)

    def __call__(self, model, x, y, draws):
        weight = model.stages[0][1].weight.detach().sum().item()
        self.seen.append((self.layers, tuple(x.shape), weight))
        return mixup.Plain("ce")(model, x, y, draws)


def test_a_timed_call_is_four_whole_steps_of_all_layers():
    "Of the same work in every call; the network learns in each."
    watched = Watched()
    steps = step_times.four_steps(watched, width=0.125, batch=8, size=16, compute=QUIET)
    steps(), steps()
    layers, shapes, weights = zip(*watched.seen, strict=True)
    assert layers == ((0,), (1,), (2,), (3,)) * 2
    assert set(shapes) == {(8, 3, 16, 16)} and len(set(weights)) == 8


def test_speed_is_a_row_a_round_and_a_column_a_method():
    methods = {name: timed_methods()[name] for name in ("mixup", "AIP fast")}
    small = {"width": 0.125, "batch": 8, "repeats": 2, "size": 16}
    seconds = step_times.step_seconds(methods, **small, compute=QUIET)
    assert list(seconds.columns) == ["mixup", "AIP fast"]
    assert len(seconds) == 2 and (seconds > 0).all(axis=None)
