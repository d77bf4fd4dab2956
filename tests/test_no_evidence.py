"""When numbers are no evidence: stand-in images, and networks that have hardly learned."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from thesis_repro import registry
from thesis_repro.claims import claim_table, quantity_cells
from thesis_repro.measures import Planned
from thesis_repro.published import claims
from thesis_repro.verdicts import Measured


def record(accuracy, test=1000, **known):
    "The record of a run that reached this accuracy in percent on so many test images."
    return SimpleNamespace(metrics={"last": {"accuracy": accuracy}}, data={"test": test, **known})


class Kept:
    "A store of some records."

    def __init__(self, **records):
        self.records = records

    def record(self, run):
        return self.records.get(run.name)


def run(name, stands_in=False):
    data = SimpleNamespace(title="digits10", stands_in=stands_in)
    return SimpleNamespace(name=name, data=data, key=name)


@pytest.mark.parametrize(
    "classes, test, border",
    [
        (10, 1000, 10 + 3 * math.sqrt(0.1 * 0.9 / 1000) * 100),
        (200, 10_000, 0.5 + 3 * math.sqrt(0.005 * 0.995 / 10_000) * 100),
        (2, 400, 50 + 3 * math.sqrt(0.25 / 400) * 100),
    ],
)
def test_a_network_within_three_deviations_of_chance_has_not_learned(classes, test, border):
    "The accuracy of a guess on so many images has that deviation."
    below, above = (
        registry._unlearned(record(border + d, test, classes=classes)) for d in (-0.01, 0.01)
    )
    assert below.startswith("has not learned: ") and above == ""
    assert f"where chance is {100 / classes:.2g} %" in below


def test_a_run_may_say_itself_what_chance_gives():
    "Of attributes the most frequent answer; ten classes where nothing is known."
    assert registry._unlearned(record(80.0, chance=80.0, classes=10))
    assert not registry._unlearned(record(85.0, chance=80.0))
    assert registry._unlearned(record(10.0)) and not registry._unlearned(record(14.0))
    assert registry._unlearned(record(None)) == ""


def test_stand_ins_and_weak_networks_are_no_evidence():
    kept = Kept(good=record(60.0, classes=10), weak=record(10.1, classes=10))
    good, weak, absent = run("good"), run("weak"), run("absent")
    assert registry.no_evidence(kept, [good, absent]) == ""
    assert (
        registry.no_evidence(kept, [good, weak]) == "has not learned: 10.1 % where chance is 10 %"
    )
    assert registry.no_evidence(kept, [weak, run("good", True)]) == "stand-in digits10"


class Accuracy:
    "A measurement of a recorded accuracy."

    unit = "%"

    def value(self, store, run):
        return store.record(run).metrics["last"]["accuracy"]

    def images(self, store, run):
        return None

    def doubt(self, store, runs):
        return ""


def test_a_claim_on_a_network_at_chance_is_tried_and_in_no_score():
    "Both networks on real images; one of 200 classes at chance: what it gains there is no gain."
    name = "7.1-gain-grows-with-classes-tiny-imagenet"
    wanted = quantity_cells(claims(7).set_index("id").quantity[name])
    rng, values, weak = np.random.default_rng(0), {}, {}
    for i, place in enumerate(wanted):
        tiny = "Tiny" in place[2]
        runs = [run(f"{i} {seed}") for seed in range(5)]
        gained = 0.2 * (place[1] == "AIP") if tiny else 0.0
        reached = [(0.45 if tiny else 60.0) + gained + rng.normal(0, 0.001) for _ in runs]
        classes = {"classes": 200 if tiny else 10}
        kept = Kept(
            **{r.name: record(a, 10_000, **classes) for r, a in zip(runs, reached, strict=True)}
        )
        cell = registry._cell(kept, place[1:], Planned(tuple(runs), Accuracy()), {})
        values[place], weak[place] = Measured(cell.values), cell.stand_in
        assert bool(cell.stand_in) == tiny == ("has not learned" in cell.reason)
    judged = dict.fromkeys(wanted, "")
    assert claim_table(values, {}, judged, 7).set_index("id").verdict[name] == "holds"
    found = claim_table(values, {}, weak, 7).set_index("id").loc[name]
    assert found.verdict == "tried" and "no evidence: has not learned" in found.reason
