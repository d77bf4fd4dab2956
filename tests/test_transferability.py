"""The companion on evolution: its rows, whose the gap is, its claims and its place."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from thesis_repro import settings
from thesis_repro import transferability as tr
from thesis_repro.atlas import where
from thesis_repro.claims import quantity_cells
from thesis_repro.evolution import Evolved
from thesis_repro.misalignment import Misaligned
from thesis_repro.mixup import Plain
from thesis_repro.models import parameter_count
from thesis_repro.published import claims
from thesis_repro.replaced import Taught

WHOLE, SMOKE = (settings.load(name, "transferability") for name in ("thesis", "smoke"))


def test_rows_differ_in_what_they_say_they_do():
    rows = tr.networks(3)
    for row, run in rows.items():
        plain = "without the penalty" in row
        assert isinstance(run.recipe.method, Plain if plain else Misaligned)
        grown = row not in ("R′", "R's architecture without the penalty")
        assert isinstance(run.data, Evolved if grown else Taught)
        assert run.data.teacher == tr.reference(3) and run.seed == 3 != run.data.teacher.seed
        assert (run.recipe.width, run.length.epochs, run.part) == (1.0, 40, "CIFAR-10")
    r = tr.reference(3).recipe
    same = ("R′", "R's architecture without the penalty")
    assert all(rows[row].recipe.network == r.network for row in same)
    e = rows["E"].data.evolution
    assert rows["E's architecture without the penalty"].data == rows["E"].data
    other = rows["random architecture"].data
    assert rows["random architecture without the penalty"].data == other
    searched = rows["best of as many random ones"].data.evolution
    assert (e.aim, other.evolution.aim, searched.aim) == ("transfer", "accuracy", "transfer")
    for random in (other.evolution, searched):
        assert random.candidates == e.candidates == 72 and not random.generations
        assert random.first() == other.evolution.first()
        assert r.network not in random.first() and len(random.first()) == 72


def test_R_is_the_network_that_we_say():
    net = tr.PLAIN_NET.build(10)
    assert (
        parameter_count(net)
        == 9 * (3 * 32 + 32 * 32 + 32 * 64 + 64 * 64 + 64 * 128)
        + 2 * (32 + 32 + 64 + 64 + 128)
        + 128 * 10
        + 10
    )


@pytest.mark.parametrize("preset", [WHOLE, SMOKE])
def test_the_plan(preset):
    assert preset.seeds >= 3
    cells = tr.plan_networks(preset)
    assert {row for row, _ in cells} == {"R", *tr.networks(0)}
    for (row, column), cell in cells.items():
        none = row == "R" and column not in ("accuracy", "accuracy under PGD")
        assert bool(cell.runs) != none
        assert none or len(cell.runs) == preset.seeds
        assert bool(cell.reason) == (none or preset is SMOKE)
    seeds = [(run.seed, run.data.teacher.seed) for run in cells["E", "accuracy"].runs]
    assert seeds == [(s, 100 + s) for s in range(preset.seeds)]


def test_claims_are_about_cells_that_are_planned():
    there = {("table_transferability_1_ours", *place) for place in tr.plan_networks(SMOKE)}
    ours = claims("transferability")
    assert len(ours) == 5 and ours.id.str.startswith("transferability-").all()
    assert all(set(quantity_cells(q)) <= there for q in ours.quantity)
    gap = ours.set_index("id").loc["transferability-gap"]
    assert (gap.direction, gap.bound, gap.unit) == (">", 10, "points")


def table_of(**shares):
    "A table in which rows have these transfers for both attacks."
    rows = [
        (row, f"transfer by {a}", tuple(values))
        for row, values in shares.items()
        for a in ("PGD", "Square")
    ]
    return SimpleNamespace(frame=pd.DataFrame(rows, columns=["row", "column", "values"]))


def measured(same, other, evolved):
    rest = {row: () for row in tr.networks(0) if row not in ("R′", "E", "random architecture")}
    return table_of(**{"R′": same, "random architecture": other, "E": evolved}, **rest)


def test_the_gap_is_taken_apart():
    found = tr.gaps(measured((40, 44, 48), (25, 30, 29), (20, 21, 22)))
    of = found[found.attack == "Square"].set_index("difference").points
    assert of["the gap: R′ − E"] == pytest.approx(23)
    parts = of["any other architecture: R′ − random"] + of["evolution: random − E"]
    assert parts == pytest.approx(of["the gap: R′ − E"])
    assert np.isnan(of["the penalty on E's"])


@pytest.mark.parametrize(
    ("other", "evolved", "says"),
    [
        ((30, 31, 32), (10, 11, 12.5), "the evolution's own"),
        ((10, 11, 12), (20, 21, 22.5), "a random architecture does better"),
        ((10, 20, 30), (12, 15, 25), "not decided"),
        ((40, 44, 48), (30, 44, 60), "no gap is shown"),
    ],
)
def test_what_is_said_of_it(other, evolved, says):
    found = tr.gaps(measured((40.0, 44.0, 48.0), other, evolved))
    assert says in tr.said_of(found) and says in tr.said_of(found, "Square")


def test_a_gap_without_a_random_architecture_is_not_taken_apart():
    found = tr.gaps(measured((40.0, 44.0, 48.0), (), (20.0, 21.0, 22.5)))
    said = tr.said_of(found)
    assert "the gap is 22.8 points" in said and "not decided, as this has no interval" in said


def test_its_place():
    item = where("sys-evolve")
    assert item.state == "made" and item.notebook == "nbs/companions/transferability.ipynb"
