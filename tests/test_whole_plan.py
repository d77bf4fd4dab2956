"""The whole of a preset can be planned before anything is there: every table of every notebook."""

import json
import math

import pytest

from thesis_repro import paths, plan, registry


@pytest.mark.parametrize("preset", ["smoke", pytest.param("thesis", marks=pytest.mark.long)])
def test_every_table_of_every_notebook_can_be_planned(outputs, preset):
    found = plan.plan(preset)
    planned = {t["table"] for t in found["tables"]}
    left = {n.removeprefix("table ") for n in found["not_predicted"]}
    assert planned | left >= set(registry.TABLES) and len(planned) > 40
    runs = [t for t in found["tasks"] if t["kind"] == "run"]
    assert len(runs) == found["total"]["runs_to_make"] > 300
    assert all(t["seconds"] > 0 and math.isfinite(t["seconds"]) for t in runs)


# What is said of the cost is what the plan says


LARGEST = {"5": "05_m2at", "6": "06_margin_reweighting", "7": "07_aip"}


def gpu_hours(preset: str) -> dict[str, float]:
    "The GPU-hours of the chapters that train most, by counted operations."
    found = plan.plan(preset, ",".join(LARGEST), device="cuda")
    assert set(found["total"]["rests_on"]) == {"counted operations"}
    return {c["chapter"]: c["gpu_hours"] for c in found["chapters"]}


def said(name: str) -> str:
    "The first cell of a chapter."
    chapter = json.loads((paths.root() / "nbs/chapters" / f"{name}.ipynb").read_text("utf-8"))
    return "".join(chapter["cells"][0]["source"])


def test_fast_takes_an_hour_or_so_a_chapter(outputs):
    hours = gpu_hours("fast")
    assert hours.keys() == LARGEST.keys() and all(0.5 < h < 1.5 for h in hours.values()), hours
    assert "an hour or so a chapter" in (paths.root() / "docs/presets.md").read_text("utf-8")
    assert all("about an hour" in said(name) for name in LARGEST.values())


@pytest.mark.long
def test_the_thesis_takes_thousands_of_gpu_hours_a_chapter(outputs):
    hours = gpu_hours("thesis")
    assert hours.keys() == LARGEST.keys()
    assert all(1_000 < h < 10_000 for h in hours.values()), hours
    assert "| thousands of GPU-hours |" in (paths.root() / "docs/presets.md").read_text("utf-8")
    assert all("thousands of GPU-hours" in said(name) for name in LARGEST.values())
