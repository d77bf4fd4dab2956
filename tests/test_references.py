"""What travels with the project in outputs/reference: found, pinned, from committed code."""

import json
import re
import shutil

import pytest
from kept_results import noting, places_in

from thesis_repro import aip, data, m2at, paths, records, registry, settings
from thesis_repro.runs import run_of
from thesis_repro.store import Store

REFERENCES = paths.root() / "outputs" / "reference"
KEPT = {  # folder → the part that its data play, its tables
    "adversarial-cpu": ("CIFAR-10", ["5.1", "5.ours", "5.author.ours", "6.1"]),
    "cars196-cpu": ("Cars196", ["virtual_positives.controls.ours", "virtual_positives.1"]),
    "evolution-cpu": ("CIFAR-10", ["transferability.1.ours"]),
    "faces-cpu": ("CelebA", ["3.2.grid.ours"]),
    "mixing-cpu": ("CIFAR-10", ["7.1"]),
}
MEASURED = {  # and its figures, with what draws them
    "adversarial-cpu": {"5.3": (m2at, "draw_figure_5_3"), "5.ours": (m2at, "draw_masking")},
    "mixing-cpu": {
        "7.1": (aip, "draw_ratios"),
        "7.2": (aip, "draw_trace"),
        "7.3": (aip, "draw_surfaces"),
    },
}
OLD = {"speed-cpu"}  # without runs
FILES = [f for name in KEPT for f in sorted((REFERENCES / name).rglob("*")) if f.is_file()]


def recorded(name: str) -> list[records.Record]:
    "The records of a reference."
    files = sorted((REFERENCES / name).glob("runs/*/*/*/record.json"))
    return [records.read(f.parent) for f in files]


def test_every_reference_is_looked_at():
    assert {f.name for f in REFERENCES.iterdir() if f.is_dir()} == KEPT.keys() | OLD


@pytest.mark.parametrize("name", KEPT)
def test_its_records_and_measurements_are_those_of_its_tables(name, tmp_path, monkeypatch):
    part, numbers = KEPT[name]
    shutil.copytree(REFERENCES / name, tmp_path / "reference" / name)
    monkeypatch.setenv("THESIS_REPRO_OUTPUTS", str(tmp_path))
    faces = 40, (11_266, 32, 32, 3), (1_683, 32, 32, 3)  # the plan of a GAN asks for their size
    own = data.outline
    monkeypatch.setattr(data, "outline", lambda n: faces if "faces32" in n else own(n))
    runs, seen = set(), noting(monkeypatch)
    registry.load_chapters()
    with Store.training(False):
        for made in (registry.TABLES[number] for number in numbers):
            preset = made.preset(f"reference/{name}")
            plan, store = made.plan(preset, (part,)), Store(preset)
            there = [(r, p) for p in plan.values() for r in p.runs if store.record(r)]
            asked = [s for r, p in there for s in (r, *p.measurement.needs(r))]
            runs |= {s.key for s in asked if store.record(s)}
            made.cells(store, plan, {})
            for run in (r for p in plan.values() for r in p.runs if hasattr(r.data, "keeps")):
                run.data.keeps().kept(store, run)  # how its data were found
        for number, (module, drawing) in MEASURED.get(name, {}).items():
            monkeypatch.setattr(module, drawing, lambda *columns: None)
            made = registry.FIGURES[number]
            made.draw(made.preset(f"reference/{name}"), (part,))
    assert runs == {r.key for r in recorded(name)}
    assert seen == {f.name for f in (REFERENCES / name).glob("measurements/*.json")}


@pytest.mark.parametrize("name", KEPT)
def test_its_images_are_pinned_and_its_code_is_committed(name):
    pinned = settings.dataset(settings.load(f"reference/{name}"), KEPT[name][0])
    found = recorded(name)
    assert found and "@" in pinned
    for record in found:
        assert run_of(record.run).key == record.key
        assert record.data["name"] == pinned and record.environment["gpu"] == ""
        assert not record.environment["commit"].endswith(("-dirty", "unknown"))
    chapters = {(r.folder.parts[-3], r.environment["commit"]) for r in found}
    assert len(chapters) == len({chapter for chapter, _ in chapters})  # one commit each


def test_every_measurement_is_of_committed_code():
    found = {}
    for file in REFERENCES.glob("*/measurements/*.json"):
        environment = json.loads(file.read_text("utf-8"))["environment"]
        found[f"{file.parts[-3]}/{file.name}"] = environment.get("commit", "")
    assert len(found) > 200
    assert not {f for f, c in found.items() if not re.fullmatch("[0-9a-f]{12}", c)}


@pytest.mark.parametrize("file", FILES, ids=lambda f: f"{f.parent.name}/{f.name}")
def test_nothing_in_it_names_a_place_or_shows_a_face(file):
    if file.suffix in (".json", ".csv", ".md", ".tex"):
        assert not places_in(file)
        json.loads(file.read_text("utf-8")) if file.suffix == ".json" else None
    allowed = {".json", ".csv", ".md", ".tex", ".png", ".pdf", ".copy", ""}
    assert file.suffix in allowed and file.stat().st_size < 1_000_000


def test_the_speed_page_says_what_was_measured():
    "Two ratios of an earlier one, 3.02498 and 2.75461, were printed as 3.03 and 2.76."
    folder = REFERENCES / "speed-cpu"
    figures = json.loads((folder / "bench.json").read_text("utf-8"))["figures"]
    row = r"^\| ([a-z ]+) \| [^|]+ \| ([\d.,; ]+) \|"
    rows = re.findall(row, (folder / "README.md").read_text("utf-8"), re.M)
    said = [(b, n.replace(",", "")) for b, numbers in rows for n in numbers.split("; ")]
    assert len(said) == 33
    for bench, number in said:
        digits = len(number.partition(".")[2])
        found = [f"{f['value']:.{digits}f}" for f in figures if f["bench"] == bench]
        assert number.strip() in found, (bench, number)
