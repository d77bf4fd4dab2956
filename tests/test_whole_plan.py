"""The whole of a preset can be planned before anything is there: every table of every notebook."""

import math

import pytest

from thesis_repro import plan, registry


@pytest.mark.parametrize("preset", ["smoke", pytest.param("thesis", marks=pytest.mark.long)])
def test_every_table_of_every_notebook_can_be_planned(outputs, preset):
    found = plan.plan(preset)
    planned = {t["table"] for t in found["tables"]}
    left = {n.removeprefix("table ") for n in found["not_predicted"]}
    assert planned | left >= set(registry.TABLES) and len(planned) > 40
    runs = [t for t in found["tasks"] if t["kind"] == "run"]
    assert len(runs) == found["total"]["runs_to_make"] > 300
    assert all(t["seconds"] > 0 and math.isfinite(t["seconds"]) for t in runs)
