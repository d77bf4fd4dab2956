"""A plan is the same work that is then done, once each, at a cost that can be checked."""

import contextlib
import dataclasses
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from gan import TinyGan

from thesis_repro import (
    ceilings,
    costs,
    devices,
    durations,
    measures,
    paths,
    pieces,
    plan,
    registry,
    settings,
    store,
)
from thesis_repro.adversarial import Adversarial, After, Mail
from thesis_repro.attacks import PGD
from thesis_repro.cli import main
from thesis_repro.files import BadInput, atomic_json, sha256
from thesis_repro.measures import Kept, Measurement, Planned, Recorded, Robustness, planned_row
from thesis_repro.mixup import Mixup, Plain
from thesis_repro.pieces import field, piece
from thesis_repro.recipes import Classify
from thesis_repro.runs import Named, Outline, Run
from thesis_repro.square_attack import Square
from thesis_repro.store import Store
from thesis_repro.training import Length

TINY = {
    "cifar10": "faint10", "cifar100": "faint100", "svhn": "digits10_cluttered",
    "tiny_imagenet": "digits200", "epochs": 1, "batch_size": 50, "train_size": 100,
    "test_size": 50, "held_out": 50, "width": 0.03, "seeds": 2, "device": "cpu",
    "precision": "fp32", "jobs": 1, "attack_size": 20, "autoattack_size": "none",
    "wide_network": "resnet18",
}  # fmt: skip
MAIL = Adversarial(weight=After(0.5, Mail()))
SMALL_PGD = Robustness(PGD(steps=20), size=20)


def thesis_run(method, part="CIFAR-10", network="resnet18", home="tests/plan"):
    recipe = Classify(network, method)
    data = Named(settings.PARTS[part], part=part)
    return Run(data, recipe, Length(200, 128), home=home, label=type(method).__name__)


def rows(preset, parts, columns):
    "Two methods on two data sets."
    found = {}
    for part in ("CIFAR-10", "SVHN"):
        for name, method in {"mixup": Mixup(), "MAIL": MAIL}.items():
            run = thesis_run(method, part)
            found |= planned_row(preset, f"{part} / {name}", run, columns, parts)
    return found


def first(preset, parts):
    return rows(preset, parts, {"Clean": Recorded(), "PGD": SMALL_PGD})


def second(preset, parts):
    "The same runs under another attack, and a transfer from a network of its own."
    found = rows(preset, parts, {"FGSM": Robustness(PGD(steps=1), "best", 20), "PGD": SMALL_PGD})
    source = measures.seeded(preset, thesis_run(Plain()))
    moved = Robustness(PGD(steps=20), size=20, sources=source)
    run = thesis_run(MAIL)
    return found | planned_row(preset, "transfer", run, {"PGD": moved}, parts)


@piece
class Pictures:
    "Data that the generator of another run makes."

    by: Run
    count: int = field(100, low=1)

    def outline(self):
        return Outline(10, (3, 16, 16), self.count, 20, 20)

    def images(self, stream=False):
        return self.by.data.images(stream)


@piece
class Distance(Measurement):
    "A distance to the images of another run."

    other: Run

    def needs(self, run):
        return (self.other,)

    def make(self, store, run):
        raise AssertionError("a plan makes nothing")

    def absent(self, store, run):
        return True

    def passes(self, run):
        return 5, 0


def third(preset, parts):
    "Two networks each, runs that need runs, and a measurement that needs another."
    gan = Run(Named("digits10", 100, 20, 20), TinyGan(), Length(2, 50), label="gan")
    other = dataclasses.replace(gan, recipe=TinyGan(8), label="other")
    student = Run(
        Pictures(gan), Classify("resnet18", Plain(), width=0.1), Length(1, 50), label="made"
    )
    return {
        ("GAN", "accuracy"): Planned((student,)),
        ("GAN", "d"): Planned((gan,), Distance(other)),
    }


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    "A tiny preset, outputs in a temporary folder, and three tables and a figure of our own."
    own = "\n[tiny]\n" + "\n".join(f"{k} = {v}" for k, v in TINY.items()) + "\n"
    text = (paths.root() / "settings.ini").read_text(encoding="utf-8") + own
    (tmp_path / "settings.ini").write_text(text, encoding="utf-8")
    monkeypatch.setenv("THESIS_REPRO_SETTINGS", str(tmp_path / "settings.ini"))
    monkeypatch.setenv("THESIS_REPRO_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setattr(registry, "TABLES", {})
    monkeypatch.setattr(registry, "FIGURES", {})
    monkeypatch.setattr(registry, "load_chapters", lambda chapter="": None)
    tables = {"90.1": first, "90.2": second, "90.10": third, "91.1": lambda preset, parts: {}}
    for number, cells in tables.items():
        registry.table(number, "a table", "a test", cells)
    registry.figure("91.2", "a figure")(lambda preset, parts: None)
    plan.outline.cache_clear()
    return tmp_path


def cells_of(number, **how):
    made = registry.find("table", number)
    return made.plan(made.preset("tiny", **how), made.parts)


# The same work as is done


def would_be_made(monkeypatch, number):
    "The keys of the runs that a table would train, and of what it would measure."
    trained, measured = set(), set()
    made = registry.find("table", number)
    cells = made.plan(made.preset("tiny"), made.parts)
    asked = [(r, p.measurement) for p in cells.values() for r in p.runs]

    def side_by_side(at, attempt, tasks, **words):
        if attempt is store._attempt:
            trained.update(t[0].key for t in tasks)
        else:
            named = ((r.key, pieces.key(pieces.specification(m))) for r, m in tasks)
            measured.update("-".join(names) for names in named)
        return {}

    with monkeypatch.context() as m:
        m.setattr(store.launch, "side_by_side", side_by_side)
        at = Store(made.preset("tiny"))
        at.ensure([*(r for r, _ in asked), *(s for r, k in asked for s in k.needs(r))])
        m.setattr(Store, "record", lambda self, run: run)  # as if they were there
        m.setattr(Robustness, "absent", lambda self, at, run: True)
        measures.ensure_measured(at, asked)
    return trained, measured


@pytest.mark.parametrize("number", ["90.1", "90.2", "90.10"])
def test_a_plan_is_what_a_table_would_make(monkeypatch, number):
    tasks = plan.plan("tiny", table=number)["tasks"]
    runs, rest = ([t for t in tasks if t["kind"] == k] for k in ("run", "measurement"))
    trained, measured = would_be_made(monkeypatch, number)
    assert {t["key"] for t in runs} == trained and trained
    assert {t["key"] for t in rest} == measured and measured
    assert not any(t["present"] for t in tasks)
    assert all(t["seconds"] > 0 and t["bytes"] > 0 for t in tasks)


def test_what_is_needed_comes_first():
    tasks = [t for t in plan.plan("tiny", table="90.10")["tasks"] if t["kind"] == "run"]
    assert [t["name"].split("-")[0] for t in tasks] == ["gan", "made", "other"]


def test_shared_work_is_counted_once_for_the_first_table():
    both = plan.plan("tiny")
    keys = [t["key"] for t in both["tasks"]]
    assert len(keys) == len(set(keys))
    table = {t["table"]: t for t in both["tables"]}
    assert list(table) == ["90.1", "90.2", "90.10"]
    assert (table["90.1"]["runs_to_make"], table["90.1"]["measurements_to_make"]) == (8, 8)
    assert table["90.2"]["runs_to_make"] == 2  # the source of the transfer, twice
    assert table["90.2"]["measurements_to_make"] == 8 + 2
    assert plan.plan("tiny", table="90.2")["total"]["runs_to_make"] == 10
    for k in ("runs_to_make", "measurements_to_make", "seconds", "wall_seconds", "bytes"):
        total = sum(t[k] for t in table.values())
        assert both["total"][k] == pytest.approx(total) == pytest.approx(both["chapters"][0][k])
    assert both["total"]["seconds"] == pytest.approx(sum(t["seconds"] for t in both["tasks"]))
    assert both["not_predicted"] == ["table 91.1", "figure 91.2"]


def test_the_wall_clock_sees_jobs_but_never_less_than_the_longest_task():
    one, four, many = (plan.plan("tiny", table="90.1", jobs=j)["total"] for j in (1, 4, 4096))
    assert one["wall_seconds"] == pytest.approx(one["seconds"])
    assert four["wall_seconds"] < one["wall_seconds"]
    tasks = plan.plan("tiny", table="90.1")["tasks"]
    longest = [max(t["seconds"] for t in tasks if t["kind"] == k) for k in ("run", "measurement")]
    assert many["wall_seconds"] == pytest.approx(sum(longest))


def test_cost_grows_with_epochs_and_seeds():
    def cost(**how):
        return plan.plan("tiny", table="90.1", **how)["tasks"]

    def seconds(tasks):
        return sum(t["seconds"] for t in tasks if t["kind"] == "run")

    base = cost()
    assert seconds(cost(epochs=10)) == pytest.approx(10 * seconds(base))
    assert seconds(cost(seeds=6)) == pytest.approx(3 * seconds(base))
    assert sum(t["bytes"] for t in cost(seeds=6)) == 3 * sum(t["bytes"] for t in base)


def test_parts_are_planned_alone():
    whole, part = (plan.plan("tiny", table="90.1", parts=p) for p in ((), ("SVHN",)))
    assert 2 * part["total"]["runs_to_make"] == whole["total"]["runs_to_make"]


# What has been recorded


@pytest.fixture
def made(elsewhere):
    "One run of table 90.1, trained and attacked."
    cells = cells_of("90.1")
    at = Store(registry.find("table", "90.1").preset("tiny"))
    zero, one = cells["CIFAR-10 / MAIL", "PGD"].runs
    record = at.make(zero, progress=False)
    SMALL_PGD.make(at, zero)
    return at, zero, one, record


def by_key(found):
    return {t["key"]: t for t in found["tasks"]}


def test_what_is_there_is_not_made_again_and_tells_what_the_rest_costs(made):
    at, zero, one, record = made
    found = plan.plan("tiny", table="90.1")
    by = by_key(found)
    assert by[zero.key]["present"] and by[zero.key]["seconds"] == 0
    assert by[one.key]["source"] == "recorded"
    assert by[one.key]["seconds"] == pytest.approx(record.cost["seconds"])
    others = [t["source"] for t in found["tasks"] if t["kind"] == "run"]
    assert others.count("nearby record") == 6 and others.count("recorded") == 1
    name = pieces.key(pieces.specification(SMALL_PGD))
    assert by[f"{zero.key}-{name}"]["present"]
    kept = json.loads(next((at.folder / "measurements").glob("*.json")).read_text())
    attacked = by[f"{one.key}-{name}"]
    assert attacked["source"] == "recorded"
    assert attacked["seconds"] == pytest.approx(kept["cost"]["seconds"])
    longer = plan.plan("tiny", table="90.1", epochs=5)  # other runs, alike in cost
    run = next(t for t in longer["tasks"] if "adversarial-seed-0" in t["name"])
    assert run["source"] == "recorded"
    assert run["seconds"] == pytest.approx(5 * record.cost["seconds"])
    assert longer["code"] == found["code"] == ""


def test_what_is_counted_to_judge_the_records_is_kept(made, monkeypatch):
    now, seen, judge = [], [], plan.checked

    @contextlib.contextmanager
    def remembering(file):
        now.append(file)
        yield
        now.clear()

    monkeypatch.setattr(costs, "remembering", remembering)
    monkeypatch.setattr(plan, "checked", lambda *how: seen.append(bool(now)) or judge(*how))
    assert plan.plan("tiny", table="90.1")["checked"]
    assert seen == [True]


def test_runs_that_other_code_made_are_counted(made):
    *_, record = made
    store.records.accept(record.folder, {"mixup": "another"})
    found = plan.plan("tiny", table="90.1")
    assert found["code"].startswith("1 of 1 runs were made by other code")
    assert found["code"] in plan.shown(found)


def rewritten(record, **changes):
    "The record's file with changes, and a marker that fits."
    file = record.folder / "record.json"
    atomic_json(file, json.loads(file.read_text()) | changes)
    marks = json.loads((record.folder / "done").read_text())
    atomic_json(record.folder / "done", marks | {"record.json": sha256(file)})


def test_a_damaged_record_counts_as_absent(made):
    _, zero, _, record = made
    whole = (record.folder / "record.json").read_text()
    (record.folder / "record.json.copy").unlink()
    rewritten(record, run="a run")
    assert not by_key(plan.plan("tiny", table="90.1"))[zero.key]["present"]
    rewritten(record, run=json.loads(whole)["run"])
    assert by_key(plan.plan("tiny", table="90.1"))[zero.key]["present"]
    (record.folder / "record.json").write_text("{}")
    assert not by_key(plan.plan("tiny", table="90.1"))[zero.key]["present"]


ODD = {
    "of a newer version": {"run": {"is": "Run", "data": {"is": "Dreamed"}, "later": 5}},
    "of another library": {"run": {"is": "os.system", "command": "true"}},
    "without a machine": {"environment": {}},
    "without a device": {"cost": {}},
    "with a word for seconds": {"cost": {"seconds": "many", "device": "cpu"}},
    "on data that are not here": {
        "run": {
            "is": "Run",
            "data": {"is": "Named", "name": "npz:nowhere.npz@0123456789ab"},
            "recipe": {"is": "Classify", "network": "resnet18", "method": {"is": "Plain"}},
        }
    },
    "of a piece that is no run": {"run": {"is": "Plain"}},
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_record_is_left_out(made, elsewhere, name):
    "In this preset's folder and in another's."
    _, zero, one, record = made
    rewritten(record, **ODD[name])
    at_home = by_key(plan.plan("tiny", table="90.1"))
    assert at_home[zero.key]["present"]  # it is there, whatever it says
    assert at_home[one.key]["source"] == "counted operations"
    (elsewhere / "outputs" / "tiny").rename(elsewhere / "outputs" / "other")
    by = by_key(plan.plan("tiny", table="90.1"))
    assert not by[zero.key]["present"] and by[zero.key]["source"] == "counted operations"


def test_records_of_another_preset_are_evidence(made, elsewhere):
    _, zero, *_ = made
    (elsewhere / "outputs" / "reference").mkdir()
    (elsewhere / "outputs" / "tiny").rename(elsewhere / "outputs" / "reference" / "x")
    by = by_key(plan.plan("tiny", table="90.1"))
    assert not by[zero.key]["present"] and by[zero.key]["source"] == "recorded"


def on(record, device, **environment):
    rewritten(
        record,
        cost=record.cost | {"device": device},
        environment=record.environment | environment,
    )


@pytest.mark.parametrize(
    "device, names, source",
    [
        ("cpu", {"processor": "another one"}, "counted operations"),
        ("cpu", {}, "recorded"),
        ("cuda:0", {"gpu": "A100"}, "counted operations"),
    ],
)
def test_another_processor_has_its_own_records(made, device, names, source):
    *_, one, record = made
    on(record, device, **names)
    assert by_key(plan.plan("tiny", table="90.1"))[one.key]["source"] == source


def test_gpus_are_not_mixed(made, monkeypatch):
    "Planned for on a machine without one: those of the model with the most records."
    at, *_, record = made
    cells = cells_of("90.1")
    more = cells["CIFAR-10 / mixup", "PGD"].runs + cells["SVHN / mixup", "PGD"].runs[:1]
    named = {}
    for run, gpu, seconds in zip(more, ("A", "B", "B"), (10.0, 1000.0, 2000.0), strict=True):
        found = at.make(run, progress=False)
        rewritten(found, cost=found.cost | {"device": "cuda:1", "seconds": seconds},
                  environment=found.environment | {"gpu": gpu})  # fmt: skip
        named[run.key] = gpu
    known = plan.paid()
    monkeypatch.setattr(plan.Path, "glob", lambda self, pattern: iter(()))  # no GPU here
    evidence = plan.Evidence("cuda", known)
    assert evidence.chip == "B" and {named[p.key] for p in evidence.paid} == {"B"}
    seconds, source = evidence.predict(more[0])
    assert source == "recorded" and seconds == pytest.approx(1000)  # the other seed's
    assert {p.chip for p in plan.Evidence("cpu", known).paid} == {record.environment["processor"]}


def test_a_gpu_that_is_not_here_can_be_planned_for(made):
    if plan.torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    found = plan.plan("tiny", table="90.1", device="cuda", precision="fp32")
    assert found["device"] == "cuda" and found["jobs"] == 1 and found["chip"] == ""
    assert set(found["total"]["rests_on"]) == {"counted operations"}
    assert found["total"]["gpu_hours"] == pytest.approx(found["total"]["seconds"] / 3600) != 0
    assert found["total"]["runs_present"] == 1  # a record is the same wherever it was made
    assert "on a GPU" in plan.shown(found)


@pytest.fixture
def no_gpu(monkeypatch):
    "A machine without a GPU, and without records of one."
    monkeypatch.setattr(plan, "chip", lambda device, known: "")
    monkeypatch.setattr(plan.torch.cuda, "is_available", lambda: False)


def on_a_gpu(**how):
    return plan.plan("tiny", table="90.1", device="cuda", **how)


def test_what_is_counted_for_a_gpu_is_a_range(no_gpu):
    found = on_a_gpu()
    for t in found["tasks"]:
        assert 0 < t["low"] < t["seconds"] < t["high"]
    for s in (*found["tables"], *found["chapters"], found["total"]):
        assert 0 < s["gpu_hours_low"] < s["gpu_hours"] < s["gpu_hours_high"]
        for end in ("low", "high"):
            whole = sum(t[end] for t in found["tasks"]) / 3600
            assert s[f"gpu_hours_{end}"] == pytest.approx(whole)
    many = on_a_gpu(epochs=10_000)
    ends = [f"{many['total'][f'gpu_hours_{end}']:,.1f}" for end in ("low", "high")]
    (line, *_) = (s for s in plan.shown(many).splitlines() if s.startswith("table 90.1"))
    assert f" {'–'.join(ends)} " in line and ends[0] != ends[1]
    (said,) = (s for s in plan.shown(many).splitlines() if s.startswith("GPU-hours: "))
    for words in (
        "a range from",
        "an A100 (from its data sheet: thesis-repro bench gpu",
        "250 TFLOP/s",
    ):
        assert words in said
    here = plan.plan("tiny", table="90.1")
    assert here["ceilings"] == {} and here["total"]["gpu_hours_high"] == 0
    assert all(t["low"] == t["seconds"] == t["high"] for t in here["tasks"])
    assert "GPU-hours: " not in plan.shown(here)


def test_measured_ceilings_take_the_place_of_a_data_sheet(no_gpu, elsewhere, monkeypatch):
    "Of the GPU that is planned for; where none is known, of the one that was measured."
    before = on_a_gpu()
    numbers = (0.5 * getattr(ceilings.A100, p) for p in devices.PRECISIONS)
    asked = {
        f"TFLOP/s of a product, {p}": v for p, v in zip(devices.PRECISIONS, numbers, strict=True)
    }
    asked |= {"GB/s of a copy": ceilings.A100.copied / 2, "device": {"name": "B", "cuda": "13.2"}}
    file = elsewhere / "outputs" / "fast" / ceilings.ANSWERS
    atomic_json(file, {"parts": {"machine": {"found": asked}}})
    after = on_a_gpu()
    assert after["chip"] == after["ceilings"]["chip"] == "B" and before["chip"] == ""
    for a, b in zip(before["tasks"], after["tasks"], strict=True):
        assert a["seconds"] < b["seconds"] < 2 * a["seconds"]  # the launches are as before
    said = plan.shown(after)
    assert "Preset tiny on B" in said and f"those of B ({file}): 125 TFLOP/s in bf16" in said
    monkeypatch.setattr(plan, "chip", lambda device, known: "C")
    assert on_a_gpu()["total"] == before["total"] and on_a_gpu()["chip"] == "C"


def test_records_of_a_gpu_take_the_place_of_the_range(made, no_gpu, monkeypatch):
    *_, record = made
    on(record, "cuda:0", gpu="B")
    monkeypatch.setattr(plan, "chip", lambda device, known: "B")
    found = on_a_gpu()
    runs = [t for t in found["tasks"] if t["kind"] == "run" and not t["present"]]
    assert {t["source"] for t in runs} == {"recorded", "nearby record"}
    assert all(t["low"] == t["seconds"] == t["high"] for t in runs)
    assert found["total"]["gpu_hours_low"] == found["total"]["gpu_hours_high"] > 0
    assert "GPU-hours: " not in plan.shown(found)


def known(*runs_and_seconds):
    "Evidence that holds these costs alone."
    chip = plan.records.processor()
    return plan.Evidence("cpu", [plan.Paid(r.key, r, "cpu", chip, s) for r, s in runs_and_seconds])


def test_each_record_is_judged_without_itself():
    cells = cells_of("90.1")
    a, b = cells["CIFAR-10 / mixup", "PGD"].runs
    other = cells["CIFAR-10 / MAIL", "PGD"].runs[0]
    evidence = known((a, 10.0), (b, 20.0), (other, 3 * durations.training(other)))
    assert evidence.predict(a) == (pytest.approx(15.0), "recorded")
    assert evidence.predict(a, but=a.key) == (pytest.approx(20.0), "recorded")
    checked = plan.checked(evidence, [a.key, b.key])
    assert checked.pop("rests_on") == {"recorded": 2} and checked.pop("runs") == 2
    assert checked == pytest.approx({"total": 1.0, "median": 1.25, "worst": 2.0})
    alone = known((other, 3 * durations.training(other)))
    seconds, source = alone.predict(a)
    assert source == "nearby record" and seconds == pytest.approx(3 * durations.training(a))
    assert alone.predict(other, but=other.key)[1] == "counted operations"
    assert plan.checked(evidence, ["nothing"]) is None
    about = {"chapter": "90", "runs": 2, **checked}
    found = {"code": "", "chapters": [], "checked": [about], "not_predicted": []}
    numbers = "total 1.00, median 1.25, worst 2.00"
    how = "predicted ÷ recorded seconds of its 2 runs, each predicted without its own record"
    assert plan._said(found) == [f"Chapter 90: {how}: {numbers}."]


def test_neighbours_are_those_whose_layers_are_nearest_in_size():
    def of(row, **how):
        return cells_of("90.1", **how)[f"CIFAR-10 / {row}", "PGD"].runs

    many, far = of("mixup", seeds=20), of("mixup", width=1.0, seeds=20)
    small = [(r, 2 * durations.training(r)) for r in many]
    evidence = known(*small, *((r, 50 * durations.training(r)) for r in far))
    assert evidence.ratio(of("MAIL", width=0.9)[0]) == pytest.approx(50)
    assert evidence.ratio(of("MAIL", width=0.1)[0]) == pytest.approx(2)
    gan = cells_of("90.10")["GAN", "d"].runs[0]
    assert known(*small).predict(gan)[1] == "nearby record"


def test_fewer_images_standing_cost_less():
    run = cells_of("90.1", width=1.0, test_size=500)["CIFAR-10 / MAIL", "PGD"].runs[0]
    attack, evidence = Robustness(PGD(steps=100)), known()
    shelf = plan.Shelf(registry.find("table", "90.1").preset("tiny"))

    def predicted(*stood):
        measured = plan.Measured(shelf)
        place = plan._text(pieces.specification(attack.attack)), plan._data(run)
        measured.shares |= {place: list(stood)} if stood else {}
        return measured.predict(attack, run, evidence)

    (unknown, source), (every, _), (half, _), (none, _) = (
        predicted(), predicted(1.0), predicted(0.4, 0.6), predicted(0.0)
    )  # fmt: skip
    assert source == "counted operations" and none < unknown < half < every
    assert half == pytest.approx(every / 2, rel=0.2)


@piece
class OfSome(Kept):
    "What is kept under how it is measured, of some test images, perhaps under an attack."

    size: int = field(10, low=0)
    attack: object = None

    def compute(self, store, run):
        return 1.0

    def value(self, store, run):
        return 1.0


@pytest.mark.parametrize("attack", [None, PGD(steps=3)])
def test_what_was_measured_of_some_images_tells_what_they_cost(made, attack):
    "Its seconds were taken for those of all test images, and found without an attack alone."
    at, zero, one, _ = made
    for size in (10, 20):
        OfSome(size, attack).make(at, zero)
    took = {}
    for file in at.folder.glob("measurements/ofsome-*.json"):
        kept = json.loads(file.read_text())
        kept["cost"]["seconds"] = 3.0 * kept["on"]["how"].get("size", 10)  # of fifty test images
        took[kept["on"]["how"].get("size", 10)] = kept["cost"]["seconds"]
        atomic_json(file, kept)
    measured = plan.Measured(plan.Shelf(at.preset))
    for size, seconds in took.items():
        found = measured.predict(OfSome(size, attack), one, plan.Evidence())
        assert found == (pytest.approx(seconds), "recorded")
    other = OfSome(20, PGD(steps=4))
    assert measured.predict(other, one, plan.Evidence())[1] != "recorded"


def test_an_attack_that_leaves_no_image_alone_is_counted_for_all(made):
    at, zero, *_ = made
    run = dataclasses.replace(zero, seed=7)
    measured = plan.Measured(plan.Shelf(at.preset))
    assert measured._share(Square(), run) == measured._share(None, run) == 1
    assert measured._share(PGD(), run) == plan.STANDING
    o, m = plan.outline(run.data), Robustness(Square(steps=50), size=20)
    done = costs.looked(run.recipe, o.classes, o.shape, 53, 0)
    assert measured.counted(m, run, durations.rates_of()) == durations.seconds(done, 20)


def test_a_measurement_says_what_it_costs():
    gan = cells_of("90.10")["GAN", "d"].runs[0]
    few = [costs.looked(gan.recipe, 10, (3, 16, 16), n)[0] for n in (1, 5)]
    assert np.allclose(5 * few[0], few[1])
    task = plan.plan("tiny", table="90.10")["tasks"][-1]
    assert task["name"] == "Distance on gan, seed 0" and task["seconds"] > 0


# The command


def test_the_command_prints_a_table_and_json(capsys):
    assert main(["plan", "--preset", "tiny"]) == 0
    text = capsys.readouterr().out
    for words in ("table 90.2", "chapter 90", "core time", "counted operations", "table 91.1, fi"):
        assert words in text
    assert "Still to be made (what several tables share is counted under the first):\n" in text
    assert main(["plan", "--preset", "tiny", "--table", "90.2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [t["table"] for t in found["tables"]] == ["90.2"] and found["not_predicted"] == []
    assert math.isfinite(found["total"]["seconds"])
    assert main(["plan", "--preset", "tiny", "--table", "91.1"]) == 0
    assert "Not predicted" in capsys.readouterr().out
    assert not paths.outputs("tiny").exists()


@pytest.mark.parametrize(
    "words, said",
    [
        (["--table", "9.9"], "there are 90.1, 90.2, 90.10, 91.1"),
        (["--chapter", "99"], "unknown chapter"),
        (["--preset", "none"], "unknown preset"),
        (["--parts", "ImageNet"], "unknown data set"),
        (["--table", "90.1", "--seeds", "0"], "seeds"),
        (["--table", "90.1", "--chapter", "7"], "--table 90.1: it is one table"),
    ],
)
def test_bad_input_is_one_line(capsys, words, said):
    assert main(["plan", "--preset", "tiny", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and said in err


def test_an_archive_is_read_by_its_heads(tmp_path):
    x, y = np.zeros((40, 12, 14, 3), np.uint8), np.arange(40) % 7
    np.savez_compressed(tmp_path / "own.npz", x_train=x, y_train=y, x_test=x[:9], y_test=y[:9])
    own = Named(f"npz:{tmp_path}/own.npz", train=20, held_out=5)
    assert plan.outline(own) == Outline(7, (3, 12, 14), 20, 5, 9)
    assert plan.outline(dataclasses.replace(own, train=0)).train == 35
    with pytest.raises(BadInput):
        plan.outline(Named("mnist_of_nobody"))


def test_nothing_heavy_is_imported_and_no_gpu_is_woken(elsewhere):
    code = (
        "import sys\nfrom thesis_repro import cli, registry\nimport test_plan\n"
        "registry.load_chapters = lambda chapter='': None\n"
        "registry.table('90.1', 'a', 'b', test_plan.first)\n"
        "sys.modules.pop('_pytest', None)\n"
        "assert cli.main(['plan', '--preset', 'tiny', '--json']) == 0\n"
        "import torch\nheavy = {'torchvision', 'matplotlib', 'seaborn', 'papermill', 'nbconvert',"
        " 'torch._dynamo', 'sympy', 'sklearn'}\n"
        "print(sorted(heavy & sys.modules.keys()), torch.cuda.is_initialized(), file=sys.stderr)"
    )
    here = {"cwd": paths.root() / "tests", "capture_output": True, "text": True, "check": True}
    done = subprocess.run([sys.executable, "-c", code], **here)
    assert done.stderr.strip().endswith("[] False")
    assert json.loads(done.stdout)["total"]["runs_to_make"] > 0


def test_a_chapters_time_is_that_of_all_its_notebooks(tmp_path):
    for name, facts in {
        "02_1_first": {"status": "completed", "seconds": 20.0},
        "02_second": {"status": "completed", "seconds": 300.0},
        "02_third": {"status": "failed", "seconds": 1.0},
        "03_other": {"status": "completed", "seconds": 7.0},
        "a_companion": {"status": "completed", "seconds": 60.0},
        "another": {"status": "failed", "seconds": 60.0},
    }.items():
        about = {"metadata": {"thesis_repro": facts}}
        atomic_json(tmp_path / "notebooks" / f"{name}.ipynb", about)
    assert plan._executed(tmp_path, "2") == 320
    assert plan._executed(tmp_path, "4") is None
    assert plan._executed(tmp_path, "a_companion") == 60
    assert plan._executed(tmp_path, "another") is None


def test_a_plan_waits_for_no_statistics():
    "They were imported with every chapter, for intervals that no plan computes."
    code = """
import sys
from thesis_repro import plan, registry
registry.load_chapters()
assert "scipy.stats" not in sys.modules"""
    subprocess.run([sys.executable, "-c", code], check=True)
