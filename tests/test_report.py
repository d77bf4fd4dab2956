"""What a report says: tables by their records, what failed, what was stopped, what is missing."""

import dataclasses
import json
import math
import shutil

import pandas as pd
import pytest
from exhibits import DATA, MACHINE, STAND_IN, TINY, drawn, made, plan

from thesis_repro import artefacts, published, records, redrawing, registry, report, settings
from thesis_repro.artefacts import read_table
from thesis_repro.files import atomic_json, atomic_write, sha256
from thesis_repro.store import Store
from thesis_repro.tables import Cell, compare

CELL = ("mixup", "Best / CIFAR-10")


@pytest.fixture(autouse=True)
def no_chapters(monkeypatch):
    "Nothing is registered but what a test registers."
    monkeypatch.setattr(registry, "TABLES", {})
    monkeypatch.setattr(registry, "load_chapters", lambda chapter="": None)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    "The outputs of a preset with four runs."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THESIS_REPRO_OUTPUTS", str(tmp_path_factory.mktemp("original")))
        tiny = settings.load("smoke", 7, **TINY)
        Store(tiny).ensure(r for p in plan(tiny, ("CIFAR-10",)).values() for r in p.runs)
        return artefacts.folder("smoke")


@pytest.fixture
def table(original, outputs, registered):
    "The table that these runs give, saved."
    shutil.copytree(original, outputs)
    return registered(registered.preset("smoke", **TINY), train=False)


@pytest.fixture
def tiny():
    "Their preset, without a chapter, as a report has it."
    return settings.load("smoke", **TINY)


def values(t, place=CELL):
    "What a table has for a cell."
    return t.frame.set_index(["row", "column"])["values"][place]


def saved(table):
    "The table as it is on the disk."
    return read_table(table.to / "table_7_1.json")


def redrawn(tiny):
    "What is found when its tables are compared with the records."
    return redrawing.redraw(tiny, report.Archive(tiny))


# ---- tables are drawn from records


def test_a_table_that_fits_its_records_is_left_alone(table, tiny):
    before = {f: f.stat().st_mtime_ns for f in table.files()}
    assert redrawn(tiny) == {}
    assert {f: f.stat().st_mtime_ns for f in table.files()} == before


def test_a_table_with_other_numbers_than_its_records_is_named_and_drawn_again(table, tiny):
    cells = [Cell(*CELL, (99.0, 99.5)), Cell("Baseline", CELL[1], (1.0, 2.0))]
    made(cells, to=table.to).save()  # whole, with its checksums, and not true
    said = redrawn(tiny)["table_7_1"]
    assert said.startswith("2 of its numbers were not those of the records (Baseline, Best")
    assert said.endswith(redrawing.AGAIN) and "1.50 in the file" in said
    assert values(saved(table)) == values(table)
    assert redrawn(tiny) == {}


@pytest.mark.parametrize("suffix", [".csv", ".md", ".json"])
def test_a_changed_file_is_named_and_drawn_again(table, tiny, suffix):
    file = table.to / f"table_7_1{suffix}"
    file.write_text(file.read_text(encoding="utf-8").replace("mixup", "mixed", 1)[:-3])
    said = redrawn(tiny)["table_7_1"]
    assert f"table_7_1{suffix}" in said or "table_7_1.json: cannot be used" in said
    assert said.endswith(redrawing.AGAIN) and values(saved(table)) == values(table)


def test_without_its_runs_a_table_is_shown_as_it_was_saved(table, tiny):
    shutil.rmtree(Store(tiny).folder / "runs")
    said = "4 of 4 measured cells are as saved: their runs are not here."
    assert redrawn(tiny) == {"table_7_1": said}
    assert values(saved(table)) == values(table)


def test_without_its_runs_a_changed_file_stays_wrong(table, tiny):
    shutil.rmtree(Store(tiny).folder / "runs")
    (table.to / "table_7_1.csv").write_text("row,column\n")
    (e,) = [e for e in report.exhibits(tiny, redrawn(tiny)) if e.id == "table_7_1"]
    assert "table_7_1.csv was changed after it was made" in e.wrong and e.table is None


def test_cells_without_runs_keep_what_was_saved_and_are_counted(table, tiny):
    for folder in Store(tiny).folders():
        if folder.name.startswith("plain"):
            shutil.rmtree(folder)
    assert redrawn(tiny) == {
        "table_7_1": "2 of 4 measured cells are as saved: their runs are not here."
    }
    place = ("Baseline", "Best / CIFAR-10")
    assert values(saved(table), place) == values(table, place)


def at_other_settings(tiny):
    "The same preset as if settings.ini had another number of epochs, of which there is no run."
    other = settings.load("smoke", **TINY | {"epochs": 2})
    return dataclasses.replace(other, variant=tiny.variant)


def test_cells_of_other_settings_are_shown_and_judge_nothing(table, tiny):
    before = saved(table).frame
    marks = f"{before.stand_in.iloc[0]}; {redrawing.OTHER}".split("; ")
    said = redrawing.redraw(at_other_settings(tiny), report.Archive(at_other_settings(tiny)))
    assert "4 cells were made at other settings than those of today" in said["table_7_1"]
    now = saved(table).frame
    measured = now[now.n > 0]
    assert len(measured) == 4 and values(saved(table)) == values(table)
    assert all(set(s.split("; ")) == set(marks) for s in measured.stand_in)
    assert all(redrawing.OTHER in s for s in measured.reason)
    assert "holds" not in {*measured.verdict} and "fails" not in {*measured.verdict}
    assert redrawn(tiny) == {}  # back at its settings it is as it was
    pd.testing.assert_frame_equal(saved(table).frame, before)


def test_a_report_plans_each_table_once(table, tiny, monkeypatch):
    planned, plan_of = [], redrawing._plan
    monkeypatch.setattr(redrawing, "_plan", lambda *a: (planned.append(a), plan_of(*a))[1])
    report.collect(tiny)
    assert len(planned) == 1
    other = at_other_settings(tiny)
    archive = report.Archive(other)
    redrawing.redraw(other, archive)
    assert redrawing.values_today(other, archive.plans) == redrawing.values_today(other)


def test_cells_of_other_settings_are_known_before_a_report(table, tiny):
    before = {f: f.stat().st_mtime_ns for f in table.files()}
    assert redrawing.values_today(tiny) == artefacts.saved_values(tiny)
    *_, weak = redrawing.values_today(at_other_settings(tiny))
    assert len(weak) == 4 and set(weak.values()) == {redrawing.OTHER}
    assert {f: f.stat().st_mtime_ns for f in table.files()} == before


def test_a_seed_that_is_gone_costs_no_saved_number(table, tiny):
    before, (gone, *_) = values(saved(table)), Store(tiny).folders()
    shutil.rmtree(gone)
    assert "2 of 4 measured cells are as saved" in redrawn(tiny)["table_7_1"]
    assert values(saved(table)) == before


def test_cells_that_are_as_saved_keep_their_machine(table, tiny):
    elsewhere = saved(table).origin | {"hardware": "another machine"}
    more = [tuple(x + 1 for x in v) for v in saved(table).frame["values"]]
    frame = saved(table).frame.assign(values=more)
    dataclasses.replace(saved(table), origin=elsewhere, frame=frame).save()
    for folder in Store(tiny).folders():
        if folder.name.startswith("plain"):
            shutil.rmtree(folder)
    assert redrawn(tiny)["table_7_1"].endswith(redrawing.AGAIN)
    made_on = saved(table).origin["hardware"].split("; ")
    assert made_on[-1] == "another machine" and len(made_on) == 2


def test_a_figure_of_other_settings_judges_nothing(table, tiny):
    preset = settings.load("smoke", 7, **TINY)
    at = {k: getattr(preset, k) for k in settings.results_in(settings.KEYS)}
    cells = (Cell("AIP", "loss", (1.0, 1.1)),)
    drawn(to=table.to.with_name("figures"), cells=cells, made_at=at).save()
    assert redrawn(tiny) == {}
    other, place = at_other_settings(tiny), ("figure_7_2", "AIP", "loss")
    assert redrawing.values_today(other)[2][place] == redrawing.OTHER
    assert "epochs = 1" in redrawing.redraw(other, report.Archive(other))["figure_7_2"]
    assert artefacts.saved_values(tiny)[2][place] == redrawing.OTHER
    assert redrawn(tiny) == {} and artefacts.saved_values(tiny)[2][place] == ""


def test_what_the_environment_says_is_not_the_thesis(outputs, monkeypatch, tmp_path):
    monkeypatch.setenv("THESIS_REPRO_SET", "width=0.5")
    assert report.scale(settings.load("thesis"), []) == ["width = 0.5"]
    own = tmp_path / "own.ini"
    own.write_text(settings.settings_file().read_text().replace("[thesis]", "[mine]"))
    monkeypatch.setenv("THESIS_REPRO_SETTINGS", str(own))
    assert "no preset thesis" in report.scale(settings.load("mine"), [])[0]


def test_cells_of_other_settings_are_marked_beside_new_ones(table, tiny):
    preset = at_other_settings(tiny)
    new = next(p.runs for (row, _), p in plan(preset, ("CIFAR-10",)).items() if row == CELL[0])
    Store(preset).ensure(new)
    said = redrawing.redraw(preset, report.Archive(preset))["table_7_1"]
    assert "2 of 4 measured cells are as saved" in said and "2 cells were made at other" in said
    lines = saved(table).frame.set_index(["row", "column"])
    of_others = lines.stand_in.str.contains(redrawing.OTHER)
    assert {row for row, _ in lines.index[of_others]} == {"Baseline"}
    assert lines["values"][CELL] == tuple(
        Store(preset).record(r).metrics["last"]["accuracy"] for r in new
    )
    keys = saved(table).keys
    assert redrawing.redraw(preset, report.Archive(preset))["table_7_1"] == said
    assert saved(table).keys == keys and len(keys) == 4


def test_a_figure_whose_runs_were_made_again_is_named(table, tiny):
    archive = report.Archive(tiny)
    weights = {key: record.weights["last"] for key, record in archive.found.items()}
    drawn(to=table.to.with_name("figures"), weights=weights | {"gone": "0"}).save()
    assert redrawn(tiny) == {}
    one, *_ = weights
    drawn(to=table.to.with_name("figures"), weights=weights | {one: "another"}).save()
    said = redrawn(tiny)["figure_7_2"]
    assert said.startswith("1 of its 4 runs was made again after it was drawn: thesis-repro figure")
    found = report.exhibits(tiny, {"figure_7_2": said})
    assert ("Figure 7.2", said) in report.failures(archive, found, [])


def test_runs_that_came_later_are_shown_without_a_word(table, tiny):
    made([], to=table.to).save()
    assert redrawn(tiny) == {} and values(saved(table)) == values(table)


def test_cells_that_are_measured_in_another_way_stay(table, tiny, registered):
    timed = Cell("our row", "Best / CIFAR-10", (0.5, 0.6), unit="s")
    frame = compare("7.1", [*registered.cells(Store(tiny), plan(tiny, ("CIFAR-10",)), {}), timed])
    more = [tuple(x + 1 for x in v) for v in frame["values"]]
    made([], to=table.to, frame=frame.assign(values=more)).save()
    said = redrawn(tiny)["table_7_1"]
    assert "of its numbers were not those of the records" in said
    assert values(saved(table), ("our row", "Best / CIFAR-10")) == (1.5, 1.6)
    assert values(saved(table)) == values(table)


def test_a_chapter_that_cannot_be_imported_costs_the_check_and_not_the_report(
    table, tiny, monkeypatch
):
    monkeypatch.setattr(registry, "load_chapters", lambda: 1 / 0)
    with pytest.warns(UserWarning, match="tables are not checked: ZeroDivisionError"):
        assert redrawn(tiny) == {}


def test_published_numbers_that_were_changed_cost_the_check_and_not_the_report(
    table, tiny, tmp_path, monkeypatch
):
    shutil.copytree(published.paths.published(), tmp_path / "data" / "published")
    shutil.copy(published.paths.contract(), tmp_path / "data")
    monkeypatch.setenv("THESIS_REPRO_SETTINGS", str(settings.settings_file()))
    monkeypatch.setattr(published.paths, "root", lambda: tmp_path)
    file = tmp_path / "data" / "published" / "table_7_1.csv"
    file.write_text(file.read_text().replace("96.97", "96.98"))
    assert "is not the file that SHA256SUMS describes" in redrawn(tiny)["table_7_1"]


def test_claims_are_judged_by_what_the_records_say(table, tiny, monkeypatch):
    seen, judge, true = [], report.judge, values(table)
    monkeypatch.setattr(
        report, "judge", lambda *p: (seen.append(artefacts.saved_values(p[0])[0]), judge(*p))[1]
    )
    made([Cell(*CELL, tuple(v + 50 for v in true))], to=table.to).save()
    said = report.collect(tiny)
    assert seen[0][("table_7_1", *CELL)] == true
    kept = json.loads((table.to.parent / "claims.json").read_text())
    assert len(kept) == len(said["claims"]) == len(published.claims())


# ---- provenance


def test_runs_of_other_code_are_counted(table, tiny):
    (folder, *_) = Store(tiny).folders()
    assert report.collect(tiny)["code"] == ""
    records.accept(folder, {"mixup": "of yesterday"})
    said = report.collect(tiny)["code"]
    assert said.startswith("1 of 4 runs were made by other code (") and "mixup" in said


def rewrite(folder, **changes):
    "Change a run's record, with its checksum."
    file = folder / "record.json"
    text = json.dumps(json.loads(file.read_text()) | changes)
    file.write_text(text)
    marks = json.loads((folder / "done").read_text())
    (folder / "done").write_text(json.dumps(marks | {"record.json": sha256(text.encode())}))


def test_records_that_are_odd_or_damaged_cost_nothing_else(table, tiny):
    odd, foreign, damaged, _ = Store(tiny).folders()
    rewrite(odd, environment={}, cost={}, news={"of": "a newer version"})
    rewrite(foreign, run={"is": "os.system", "command": "touch OWNED"})
    (damaged / "record.json").write_text("{")
    (damaged / "record.json.copy").unlink(missing_ok=True)
    said = report.collect(tiny)
    assert (
        said["runs"] == 3
        and ("Records", "1 cannot be read: those runs are made again") in (said["failures"])
    )
    assert "1 of 3 runs have pieces that are not known here." in said["code"]
    assert any(line["machine"] == "?, ? cores" for line in said["cost"])


def test_hours_of_two_kinds_are_added_up_apart():
    cpu = {"seconds": 1800.0, "device": "cpu", "threads": 2}
    gpu = {"seconds": 3600.0, "device": "cuda:1", "threads": 8, "processes": 2}
    assert report.totals([cpu, gpu, cpu]) == "2.00 GPU-hours and 2.00 core-hours"
    assert report.totals([{}, {"seconds": "many"}]) == "no time that is known"


# ---- what failed, what was stopped, what is missing


def notebook(status="completed", **facts):
    "An executed notebook with a heading."
    cell = {"cell_type": "markdown", "metadata": {}, "source": "# A chapter\n\n## Its idea"}
    about = {"thesis_repro": {"status": status, **facts}}
    return json.dumps({"cells": [cell], "metadata": about, "nbformat": 4, "nbformat_minor": 5})


def test_what_was_stopped_has_not_failed(outputs):
    books = {
        "05_a": notebook("failed", error="cell 3 (FGSM): AssertionError"),
        "06_b": notebook("stopped", error="cell 9 (Table 6.1): stopped by SIGINT"),
        "07_c": notebook("running"),
        "08_d": notebook(),
        "09_e": "{",
    }
    for name, text in books.items():
        atomic_write(outputs / "notebooks" / f"{name}.ipynb", text)
    said = report.collect(settings.load("smoke"))
    assert said["failures"] == [
        ("A chapter", "cell 3 (FGSM): AssertionError"),
        ("09_e", "09_e.ipynb cannot be read: JSONDecodeError"),
    ]
    stopped = ["cell 9 (Table 6.1): stopped by SIGINT", "it did not run to its end"]
    assert said["stopped"] == [("A chapter", why) for why in stopped]
    assert [b.page for b in said["books"]][-1] == "" and said["books"][0].headings == ["Its idea"]


def test_runs_that_failed_or_diverged_are_listed(outputs):
    failed = {"a-seed-0: Robustness": "out of memory", "b": "diverged: the loss is nan"}
    made([Cell("AIP", "Best / SVHN", (97.0, None))], failed=failed).save()
    facts = {"reason": "the loss is inf", "run": {}}
    digest = sha256(json.dumps(facts, sort_keys=True).encode())
    lost = outputs / "runs" / "aip" / "table_7_1" / "c-seed-1-0123456789ab"
    atomic_json(lost / "diverged.json", facts | {"sha256": digest})
    found = report.collect(settings.load("smoke"))["failures"]
    assert found == [*failed.items(), (lost.name, "diverged: the loss is inf")]


def test_reasons_are_counted_with_the_tables_that_they_concern(outputs):
    cells = [Cell("AIP", f"{w} / SVHN", (97.0, 97.2), "width 1/8") for w in ("Best", "Last")]
    made([*cells, Cell("mixup", "Best / SVHN", (), "the disk was full")]).save()
    found = report.reasons(report.exhibits(settings.load("smoke"), {}))
    lines = {(r["verdict"], r["reason"]): r["cells"] for r in found}
    assert lines["not comparable", "width 1/8"] == 2 and lines["not run", "the disk was full"] == 1
    assert found[0]["verdict"] == "not run" and found[-1]["reason"] == "width 1/8"
    assert [e.name for e in found[-1]["exhibits"]] == ["Table 7.1"]


@pytest.mark.parametrize(
    ("preset", "cells", "said"),
    [
        ("thesis", [], []),
        ("thesis", [Cell("AIP", "Best / SVHN", (97.0, 97.2))], []),
        ("fast", [], ["epochs = 8", "train_size = 20000", "width = 0.5", "seeds = 2"]),
        (
            "fast",
            [Cell("AIP", "Best / SVHN", (97.0, 97.2), "width 0.5, 8 of 500 epochs")],
            ["width 0.5 (1 cells)", "8 of 500 epochs (1 cells)"],
        ),
        (
            "smoke",
            [Cell("AIP", "Best / SVHN", (97.0, 97.2), STAND_IN, "%", STAND_IN)],
            ["digits10 stands in for CIFAR-10"],
        ),
    ],
)
def test_every_preset_but_the_thesis_says_in_what_it_is_smaller(outputs, preset, cells, said):
    data = {"data": DATA} if preset == "smoke" else {"data": ""}
    if cells:
        made(cells, preset=preset, **data).save()
    chosen = settings.load(preset)
    found = report.scale(chosen, report.exhibits(chosen, {}))
    assert set(said) <= set(found) and bool(said) == bool(found)


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        ("", "Nothing is decided: none of 3 claims has been asked at this preset."),
        ("c", "Nothing is decided: 1 of 3 claims were measured at another scale."),
        ("tt", "Nothing is decided: 2 of 3 claims were only tried, and in 1 of them the number is"),
        ("it", "Judged 1 of 3 claims, and none is decided: in 0 of them the number is on the th"),
        ("hhi", "Judged 3 of 3 claims: 2 hold (such as: claim 0)."),
        ("hfi", "Judged 3 of 3 claims: 1 fails (such as: claim 1); 1 holds."),
    ],
)
def test_a_chapter_has_one_sentence_of_what_was_found(verdicts, said):
    words = {"h": "holds", "f": "fails", "i": "inconclusive", "t": "tried", "c": "not comparable"}
    found = [words[v] for v in verdicts] + ["not run"] * (3 - len(verdicts))
    own = [{"verdict": v, "claim": f"claim {i}", "agrees": i == 1} for i, v in enumerate(found)]
    assert report.sentence(own).startswith(said) and report.sentence(own).count(". ") == 0


def test_claims_know_what_they_rest_on_and_are_scored_by_chapter(outputs):
    row = [Cell("AIP", "Best / SVHN", (97.5, 97.6)), Cell("mixup", "Best / SVHN", (90.0, 90.1))]
    made([*row, Cell("Manifold mixup", "Best / SVHN", (98.5, 98.7))]).save()
    drawn().save()
    said = report.collect(settings.load("smoke"))
    (c,) = [c for c in said["claims"] if c["id"] == "7.1-aip-over-manifold-best-svhn"]
    assert c["verdict"] == "fails" and [e.name for e in c["exhibits"]] == ["Table 7.1"]
    assert c["hardware"] == artefacts.provenance(MACHINE)["hardware"] and c["chapter"] == "7"
    found = {f["chapter"]: f for f in said["findings"]}
    words = [c["verdict"] for c in found["7"]["decided"]]
    assert "fails" in words and words == sorted(words) and not found["5"]["decided"]
    assert not c["agrees"] and "AIP is more accurate than" in found["7"]["sentence"]
    assert found["5"]["sentence"].startswith("Nothing is decided: none of 73 claims")
    for c in said["claims"]:  # nan, where there is no number, is on no side
        if c["direction"] != "=":
            above = c["ours"] >= c["bound"] if c["direction"] == ">" else c["ours"] <= c["bound"]
            assert c["agrees"] == above
    assert found["7"]["score"].judged["fails"] == words.count("fails")
    total = sum(n for f in said["findings"] for n in f["score"].judged.values())
    assert total == sum(said["score"].judged.values()) > 0
    (e,) = [e for e in said["exhibits"] if e.id == "table_7_1"]
    (c,) = [c for c in said["claims"] if c["id"] == "7.1-aip-over-manifold-best-svhn"]
    assert c in e.claims and not math.isnan(c["ours"])


def test_everything_of_the_thesis_is_there_in_its_order(outputs):
    made([], "7.5").save()
    made([], "7.1").save()
    found = report.exhibits(settings.load("smoke"), {})
    names = [e.name for e in found if e.number.startswith("7.")]
    assert names.index("Table 7.1") < names.index("Table 7.2") < names.index("Table 7.5")
    assert [e.name for e in found if e.page] == ["Table 7.1", "Table 7.5"]


def test_a_trial_with_other_settings_has_a_report_of_its_own(table, tiny):
    assert dict(tiny.given) == TINY
    (e,) = [e for e in report.collect(tiny)["exhibits"] if e.page]
    assert e.path.parents[1].name == tiny.variant
    assert not [e for e in report.collect(settings.load("smoke"))["exhibits"] if e.page]
