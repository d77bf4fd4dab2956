"""The companion on robust detection: its rows, its measurements, its claims and its place."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from thesis_repro import robust_detection as rd
from thesis_repro import settings
from thesis_repro.alignment import Align
from thesis_repro.atlas import where
from thesis_repro.claims import quantity_cells
from thesis_repro.detection import OnDetector, RandomNoise
from thesis_repro.detection_data import Scenes
from thesis_repro.detector import SmallDetector, Ssd300
from thesis_repro.domains import Apart, Gain, Likeness, OnDomain, attacked, likeness
from thesis_repro.files import BadInput
from thesis_repro.published import claims, published
from thesis_repro.runs import scaled
from thesis_repro.store import Store

WHOLE, SMOKE = (settings.load(name, "robust_detection") for name in ("thesis", "smoke"))
PLANS = {
    "map_ours": rd.plan_map,
    "eleven_ours": rd.plan_eleven,
    "1": rd.plan_gains,
    "distance_ours": rd.plan_distance,
    "classes_ours": rd.plan_classes,
    "controls_ours": rd.plan_controls,
    "planted_ours": rd.plan_planted,
}


def test_rows_differ_in_what_they_say_they_do():
    for row, how in rd.ROWS.items():
        run = rd.run_of(row, "Clipart1k", **how)
        recipe, aligned = run.recipe, "alignment" in row
        assert isinstance(recipe.network, Ssd300) and run.length.epochs == 232
        assert isinstance(recipe.attack, OnDetector) == row.startswith("adversarial")
        assert isinstance(recipe.align, Align) == aligned
        assert run.data.target == ("clipart1k" if aligned else "") and run.part == "VOC"
    assert rd.ROWS["adversarial"]["attack"] == rd.ROWS["adversarial + alignment"]["attack"]
    # without alignment a run is the same for every target
    assert rd.run_of("standard", "Clipart1k").key == rd.run_of("standard", "Comic2k").key


@pytest.mark.parametrize("preset", [WHOLE, SMOKE])
@pytest.mark.parametrize("plan", PLANS.values())
def test_the_plans(preset, plan):
    cells = plan(preset)
    for place, cell in cells.items():
        assert len(cell.runs) == preset.seeds or place == ("correlation", "distance")
        for run in cell.runs:
            assert run.recipe.network == (
                Ssd300() if run.part and preset is WHOLE else SmallDetector()
            )
            assert (run.data.name == "voc") == bool(run.part and preset is WHOLE)


def test_the_stand_ins_are_told():
    run = scaled(SMOKE, rd.run_of("x", "Clipart1k", **rd.ROWS["standard + alignment"]))
    assert (run.data.name, run.data.target, run.data.stands_in) == ("scenes", "scenes_far", True)
    assert rd.domain(SMOKE, "Comic2k").name == "scenes_middle"
    for place, cell in rd.plan_map(SMOKE).items():
        assert "stand-in scenes" in cell.reason, place
    assert not any(cell.reason for cell in rd.plan_map(WHOLE).values())


def test_what_is_published():
    frame = published("robust_detection.1").set_index(["row", "column"]).value
    assert frame.to_dict() == {
        ("adversarial", "Clipart1k"): 6,
        ("adversarial + alignment", "Clipart1k"): 12,
    }
    assert {*frame.index} <= {*rd.plan_gains(SMOKE)}


def test_claims_are_about_cells_that_are_planned():
    there = {(f"table_robust_detection_{n}", *p) for n, f in PLANS.items() for p in f(SMOKE)}
    ours = claims("robust_detection")
    assert len(ours) == 8 and ours.id.str.startswith("robust_detection-").all()
    assert all(set(quantity_cells(q)) <= there for q in ours.quantity)


def test_controls_are_as_large_and_cost_as_much():
    cells = rd.plan_controls(WHOLE)
    noise = cells["random noise", "VOC"].runs[0].recipe.attack
    attack = cells["adversarial", "VOC"].runs[0].recipe.attack
    assert isinstance(noise, RandomNoise) and noise.epsilon == attack.epsilon
    steps = rd.StandardSteps(232)
    spent = [steps.value(None, cells[row, "VOC"].runs[0]) for row in
             ("adversarial", "standard at equal compute")]  # fmt: skip
    assert spent[0] == pytest.approx(spent[1], rel=0.01) and spent[0] > 1.5
    assert steps.value(None, cells["standard", "VOC"].runs[0]) == 1


def test_the_planted_texture_is_in_one_source_only():
    cells = rd.plan_planted(WHOLE)
    names = {row: cell.runs[0].data.name for (row, _), cell in cells.items()}
    assert {n for row, n in names.items() if row.startswith("planted")} == {"scenes_planted"}
    assert {n for row, n in names.items() if row.startswith("no")} == {"scenes"}
    assert all(cells[row, "clip art"].measurement.data.name == "scenes_far" for row in names)


# ---- measurements on trained networks


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A store with two seeds of two small trainings."
    few = {"train_size": 24, "test_size": 40, "epochs": 1, "batch_size": 12, "seeds": 2, "jobs": 1}
    preset = settings.load("smoke", "robust_detection", **few)
    store = Store(preset, tmp_path_factory.mktemp("store"))
    runs = {}
    for row in ("standard", "adversarial"):
        run = rd.run_of(row, **rd.ROWS[row])
        run = replace(run, recipe=replace(run.recipe, network=SmallDetector((8, 8, 16, 16))))
        runs[row] = tuple(replace(scaled(preset, run), seed=s) for s in range(2))
        store.ensure(runs[row])
    return store, runs


def test_a_gain_is_the_difference_of_the_same_seed(trained):
    store, runs = trained
    seen = OnDomain(rd.domain(store.preset, "Clipart1k"))
    gain = Gain(seen, runs["standard"])
    for run, base in zip(runs["adversarial"], runs["standard"], strict=True):
        assert gain.needs(run) == (base,) and gain.absent(store, run)
        assert math.isnan(gain.value(store, run))
        gain.make(store, run)
        difference = seen.value(store, run) - seen.value(store, base)
        assert not gain.absent(store, run) and gain.value(store, run) == pytest.approx(difference)
    with pytest.raises(BadInput, match="nothing with seed 7"):
        gain.needs(replace(run, seed=7))
    gain.forget(store, run)
    assert gain.absent(store, run)


def test_numbers_of_a_domain_and_its_distance(trained):
    store, runs = trained
    run = runs["standard"][0]
    home, far = (rd.domain(store.preset, part) for part in ("VOC", "Clipart1k"))
    found = OnDomain(home).make(store, run)
    assert found["images"] == 40 and {"mAP", "mAP 11 points", *home.classes} <= found.keys()
    recorded = store.record(run).metrics["last"]
    assert OnDomain(home).value(store, run) == pytest.approx(recorded["mAP"])
    assert OnDomain(home, show="zero").value(store, run) == pytest.approx(recorded["AP"][0])
    distances = [Apart(data).make(store, run)["distance"] for data in (home, far)]
    assert abs(distances[0]) < 1e-6 < distances[1]


def test_the_correlation_of_gain_and_distance(trained, monkeypatch):
    store, runs = trained
    gains = {"VOC": -1.0, "Watercolor2k": 0.0, "Comic2k": 2.0, "Clipart1k": 3.0}
    far = {"VOC": 0.0, "Watercolor2k": 1.0, "Comic2k": 2.0, "Clipart1k": 5.0}
    part = {rd.domain(store.preset, p): p for p in gains}
    monkeypatch.setattr(Gain, "value", lambda self, store, run: gains[part[self.of.data]])
    monkeypatch.setattr(Apart, "value", lambda self, store, run: far[part[self.data]])
    of = rd.GainsByDistance(
        tuple(Gain(OnDomain(d), runs["standard"]) for d in part), tuple(Apart(d) for d in part)
    )
    run = runs["adversarial"][0]
    expected = np.corrcoef(list(gains.values()), list(far.values()))[0, 1]
    assert of.value(store, run) == pytest.approx(expected)
    assert of.needs(run) == (runs["standard"][0],)
    gains["VOC"] = math.nan
    assert math.isnan(of.value(store, run))


def test_attacked_test_images_are_near(trained):
    store, runs = trained
    images = store.images(runs["standard"][0].data)
    x, y = images.x_test[:7], images.y_test[:7]
    made = attacked(store.weights(runs["standard"][0]), x, y, OnDetector(), batch=3)
    assert made.dtype == torch.uint8 and 0 < (made.int() - x.int()).abs().max() <= 8


def test_likeness_is_a_correlation(trained):
    store, runs = trained
    x = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(likeness(x, 1 - x), -torch.ones(3).double())
    found = Likeness(size=2).make(store, runs["standard"][0])
    assert -1 <= found["likeness"] <= 1 and found["images"] == 2


def test_what_is_seen_is_drawn_of_images_on_the_disk(tmp_path, monkeypatch):
    "Photographs are always read from there."

    class Untrained(Store):
        def ensure(self, runs):
            pass

        def weights(self, run):
            images = run.recipe.prepared(self.images(run.data))
            return run.recipe.networks(images, run.seed)["model"].eval()

    monkeypatch.setattr(rd, "Store", lambda preset: Untrained(preset, tmp_path))
    preset = settings.load("smoke", "robust_detection", stream=True)
    drawn = rd.figure_seen.draw(preset, rd.PARTS)
    shown = [image for ax in drawn.figure.axes for image in ax.images]
    assert len(shown) == 8 and all(image.get_array().shape == (48, 48, 3) for image in shown)


def test_another_network_plays_ssd300_where_the_preset_says_so():
    with pytest.raises(BadInput, match="ssd300"):
        settings.load("smoke", "robust_detection", ssd300="yolo")
    run = rd.run_of("standard")
    assert scaled(replace(SMOKE, ssd300="itself"), run).recipe.network == Ssd300()
    assert isinstance(Scenes("voc").scaled(SMOKE), Scenes)


def test_its_place():
    item = where("sys-robust-detector")
    assert item.state == "made" and item.notebook == "nbs/companions/robust_detection.ipynb"


def test_a_detector_is_attacked_as_it_is_judged():
    "With the statistics of a batch, the attack on an image would depend on its neighbours."
    cells = rd.plan_controls(settings.load("smoke", "robust_detection"))
    assert cells["standard", "VOC, attacked"].measurement.attack.bn == "eval"
