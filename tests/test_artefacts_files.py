"""Artefacts as files: where they were made, the same bytes, damage, own rows, other code."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import pytest
from exhibits import COLUMNS, MACHINE, NASTY, STAND_IN, TINY, drawn, made, plan, thesis_run
from PIL import Image
from test_store import ODD, forge

from thesis_repro import artefacts, claims, files, measures, records, registry
from thesis_repro.artefacts import Figure, provenance
from thesis_repro.attacks import PGD
from thesis_repro.files import BadInput, atomic_json
from thesis_repro.measures import Robustness, planned_row
from thesis_repro.mixup import Mixup, Plain
from thesis_repro.registry import Drawn
from thesis_repro.runs import Named, Run
from thesis_repro.store import Store
from thesis_repro.tables import Cell
from thesis_repro.training import Length

# ---- where it was made


def test_every_file_of_a_table_tells_where_it_was_made(tmp_path):
    t = made([Cell("AIP", "Best / SVHN", (97.0, 97.2))], to=tmp_path)
    files = {p.suffix: p.read_text() for p in t.save()}
    assert set(files) == {".csv", ".md", ".tex", ".json"}
    for text in files.values():
        for word in ("smoke", "digits10", "CIFAR-10", "abc123"):
            assert word in text
    facts = json.loads(files[".json"])
    assert facts["runs"] == "2 runs per cell." and facts["hardware"] == "A <fast> CPU & co, 2 cores"


def test_machines_of_several_records_are_all_named():
    other = MACHINE | {"gpu": "NVIDIA H100", "cores": 1, "commit": "def456"}
    facts = provenance(MACHINE, other | {"versions": {"torch": "2.15"}}, MACHINE)
    with_gpu = "A <fast> CPU & co, 1 core with NVIDIA H100"
    assert facts["hardware"] == f"A <fast> CPU & co, 2 cores; {with_gpu}"
    assert facts["commit"] == "abc123, def456" and facts["versions"] == {"torch": "2.11, 2.15"}


def test_a_record_that_knows_nothing_of_its_machine_does_no_harm():
    assert provenance({})["hardware"] == "?, ? cores"


def test_real_data_are_not_called_a_stand_in():
    named = {"CIFAR-10": "cifar10", "SVHN": "svhn_extra", "CIFAR-100": "cifar10"}
    found = [(part, Named(name, part=part)) for part, name in named.items()]
    photos = Named("npz:a/b.npz@0123456789ab", part="Tiny ImageNet")
    words = "the real CIFAR-10, SVHN; cifar10 stands in for CIFAR-100; the file b.npz as"
    said = artefacts.data_words([*found, ("Tiny ImageNet", photos)])
    assert said == f"Data: {words} Tiny ImageNet."


# ---- files


def test_a_table_comes_back_from_its_files(tmp_path):
    cells = [Cell(NASTY, "NA", (1 / 3, None), STAND_IN), Cell("AIP", "Best / SVHN", (97.0, 97.2))]
    before = made(cells, to=tmp_path)
    before.save()
    after = artefacts.read_table(tmp_path / "table_7_1.json")
    pd.testing.assert_frame_equal(after.frame, before.frame, check_dtype=False)
    assert after._repr_html_() == before._repr_html_() and after.made == before.made


@pytest.mark.parametrize("suffix", [".csv", ".md", ".tex"])
def test_a_file_that_was_changed_by_hand_is_named_and_not_used(tmp_path, suffix):
    made([Cell("AIP", "Best / SVHN", (97.0, 97.2))], to=tmp_path).save()
    file = tmp_path / f"table_7_1{suffix}"
    file.write_text(file.read_text().replace("97.1", "99.1", 1))
    with pytest.raises(BadInput, match=rf"table_7_1\{suffix} was changed after it was made"):
        artefacts.read_table(tmp_path / "table_7_1.json")


def test_figures_carry_their_facts_and_no_date(tmp_path):
    files = {p.suffix: p for p in drawn(n=2, data="Data: digits10.", to=tmp_path).save()}
    text = Image.open(files[".png"]).text
    assert text["Title"] == "Figure 7.2: a line"
    for word in ("digits10", "abc123", "2 runs"):
        assert word in text["Description"]
    pdf = files[".pdf"].read_bytes()
    assert b"CreationDate" not in pdf and b"digits10" in pdf
    assert pd.read_csv(files[".csv"]).loss.tolist() == [1 / 3, 2 / 3]


MAKE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from exhibits import drawn, made
from thesis_repro.tables import Cell
drawn(to=Path(sys.argv[2])).save()
made([Cell("AIP", "Best / SVHN", (97.0, 97.2))], to=Path(sys.argv[2])).save()
"""


def test_two_processes_make_the_same_bytes(tmp_path):
    processes = []
    for seed in "12":  # the order of sets and of strings' hashes differs between the two
        arguments = [sys.executable, "-c", MAKE, str(Path(__file__).parent), str(tmp_path / seed)]
        environment = os.environ | {"PYTHONHASHSEED": seed, "TZ": f"UTC-{seed}"}
        processes.append(subprocess.Popen(arguments, env=environment))
    assert [p.wait() for p in processes] == [0, 0]
    names = sorted(p.name for p in (tmp_path / "1").iterdir())
    assert len(names) == 8
    for name in names:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name


def test_style_leaves_no_trace():
    before = dict(mpl.rcParams)
    with artefacts.style():
        assert mpl.rcParams["font.family"] == ["DejaVu Sans"]
    assert dict(mpl.rcParams) == before


def test_a_figure_is_shown_once():
    import matplotlib.pyplot as plt

    figure = drawn()
    assert not plt.get_fignums() and figure.png.startswith(b"\x89PNG")
    about = {"number": "7.2", "title": "a line", "origin": provenance(MACHINE)}
    again = Figure(figure=figure.figure, frame=figure.frame, **about)
    assert sum(t.get_gid() == "made" for t in again.figure.texts) == 1


@pytest.mark.parametrize("artefact", [made, drawn])
def test_a_folder_that_cannot_be_written(tmp_path, artefact):
    (tmp_path / "file").write_text("in the way")
    how = {"cells": []} if artefact is made else {}
    with pytest.raises(BadInput, match="cannot be written") as error:
        artefact(**how, to=tmp_path / "file" / "tables").save()
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)
    assert (tmp_path / "file").read_text() == "in the way"


# ---- values for the claims


@pytest.mark.parametrize("late", [-3600, -5, 0, 5])
def test_what_failed_is_told_whatever_the_clock_of_a_file_server_says(outputs, late):
    "Fault of round 2: with a date five seconds behind, failures went unreported."
    old, new = (outputs / "tables" / f"table_7_{i}.json" for i in (1, 2))
    for file in (old, new):
        atomic_json(file, {"failed": {"a-seed-0": "diverged"}})
    before, date = artefacts.written(outputs), new.stat().st_mtime_ns
    assert artefacts.holes(outputs, before) == {}
    atomic_json(new, {"failed": {"b-seed-0": "diverged"}})
    os.utime(new, ns=(0, date + late * 10**9))
    assert artefacts.holes(outputs, before) == {"b-seed-0": "diverged"}


def test_claims_read_what_was_saved(outputs):
    cells = [Cell("AIP", "Best / SVHN", (97.0, None, 97.4))]
    cells.append(Cell("Manifold mixup", "Best / SVHN", (96.0, 96.1), "width 1/8", "%", STAND_IN))
    made(cells).save()
    drawn(cells=(Cell("pairs", "one maximum", (0.9, float("nan")), unit="share"),)).save()
    values, why, stand_ins = artefacts.saved_values("smoke")
    assert values["figure_7_2", "pairs", "one maximum"][0] == 0.9 and len(values) == 3
    place = ("table_7_1", "Manifold mixup", "Best / SVHN")
    assert (values[place], why[place], stand_ins[place]) == ((96.0, 96.1), "width 1/8", STAND_IN)
    judged = claims.claim_table(values, why, stand_ins, 7).set_index("id")
    line = judged.loc["7.1-aip-over-manifold-best-svhn"]
    assert line.n > 0 and line.ours == pytest.approx(97.2 - 96.05, abs=0.2)
    assert line.verdict == "tried" and STAND_IN in line.reason


def test_damaged_artefacts_are_left_out_of_the_claims_and_named(outputs):
    made([Cell("AIP", "Best / SVHN", (97.0, 97.2))]).save()
    made([], "7.5").save()
    drawn().save()
    (outputs / "tables" / "table_7_5.csv").write_text("row,column\n1,2\n")
    file = outputs / "figures" / "figure_7_2.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"cells": [{"rows": 1}]}))
    with pytest.warns(UserWarning) as said:
        values, *_ = artefacts.saved_values("smoke")
    assert {Path(str(w.message).split(":")[0]).stem for w in said} == {"table_7_5", "figure_7_2"}
    assert {name for name, _, _ in values} == {"table_7_1"}


# ---- the register


def test_what_is_registered_is_found_by_its_number(registered):
    for asked in ("7.1", "table 7.1", "table_7_1"):
        assert registry.find("table", asked) is registered
    with pytest.raises(BadInput, match=r"table 7.9: there is none: near it are 7.1"):
        registry.find("table", "7.9")


def test_a_companions_table_is_found_by_its_number_and_by_its_file(registered):
    made = registry.table("my_own.1", "Ours", "", plan, ("CIFAR-10",))
    assert made.name == "table_my_own_1"
    for asked in ("my_own.1", "table my_own.1", "table_my_own_1"):
        assert registry.find("table", asked) is made


def test_a_table_of_one_data_set_keeps_the_cells_of_another(outputs, monkeypatch):
    def two(preset, parts):
        rows = {}
        for part, key in (("CIFAR-10", "cifar10"), ("SVHN", "svhn")):
            run = replace(thesis_run(Plain()), data=Named(key, part=part))
            columns = {c.replace("CIFAR-10", part): m for c, m in COLUMNS.items()}
            rows |= planned_row(preset, "Baseline", run, columns, parts)
        return rows

    monkeypatch.setattr(registry, "TABLES", {})
    own = registry.table("7.1", "two data sets", "Section 7.3.2", two, ("CIFAR-10", "SVHN"))
    tiny = own.preset("smoke", **{**TINY, "seeds": 1})

    def row(frame):
        return frame[frame.row == "Baseline"].set_index("column")

    assert own(tiny, train=False).data == ""  # the data sets are those of the records
    asked = own(tiny, ("CIFAR-10",))
    first, said = row(asked.frame), "Data: digits10 stands in for CIFAR-10."
    assert asked.data == own(tiny, train=False).data == said
    assert first.n["Last / CIFAR-10"] == 1 and first.n["Last / SVHN"] == 0
    assert first.reason["Last / SVHN"] == "SVHN was not asked for"
    then = row(own(tiny, ("SVHN",), train=False).frame)
    assert then.ours["Last / CIFAR-10"] == first.ours["Last / CIFAR-10"]
    assert then.reason["Last / SVHN"].endswith("not run yet")
    saved = pd.read_csv(artefacts.folder(tiny) / "tables" / "table_7_1.csv")
    assert row(saved).n["Last / CIFAR-10"] == 1


def test_a_table_is_made_saved_and_made_again_without_training(registered, outputs):
    tiny = registered.preset("smoke", **TINY)
    first = registered(tiny)
    assert first.to == outputs / tiny.variant / "tables"
    assert tiny.variant.startswith("with-epochs-1") and first.frame.n.max() == 2
    runs = {r for p in plan(tiny, ("CIFAR-10",)).values() for r in p.runs}
    ours = {r.key: Store(tiny).record(r) for r in runs}
    row = first.frame.set_index(["row", "column"]).loc[("mixup", "Best / CIFAR-10")]
    assert sorted(row["values"]) == sorted(
        r.value("best.accuracy") for r in ours.values() if "Mixup" in json.dumps(r.run)
    )
    again = registered(tiny, train=False)
    pd.testing.assert_frame_equal(again.frame, first.frame)
    assert not (outputs / "tables").exists()  # a trial never overwrites the preset's own table


def test_an_attack_that_never_moved_is_in_doubt_beside_its_number(registered, outputs):
    "Logits so loud that the cross entropy is flat look robust, as in a network of saturated ones."
    tiny = registered.preset("smoke", **TINY | {"seeds": 1})
    ways = {"Last": PGD(steps=4), "Best": PGD(steps=4, logit_scale=1e9)}
    columns = {f"{n} / CIFAR-10": Robustness(a, size=20) for n, a in ways.items()}
    made = replace(
        registered, plan=lambda p, parts: planned_row(p, "x", thesis_run(Plain()), columns)
    )
    frame = made(tiny).frame.set_index(["row", "column"])
    said = "100 % of the attacked images had no gradient at the first step"
    assert said in frame.incomparable["x", "Best / CIFAR-10"]
    assert "gradient" not in frame.incomparable["x", "Last / CIFAR-10"]
    assert said in (made(tiny).to / "table_7_1.md").read_text("utf-8")


def test_an_odd_record_costs_a_table_its_cells_and_nothing_else(registered, outputs, recwarn):
    "Fault of round 2: one that was merged from elsewhere ended `table` in a traceback."
    tiny = registered.preset("smoke", **TINY | {"seeds": 1})
    whole = registered(tiny).frame.set_index(["row", "column"]).ours
    run = next(p.runs[0] for place, p in plan(tiny, ("CIFAR-10",)).items() if place[0] == "mixup")
    home = Store(tiny).home(run)
    texts = {name: (home / name).read_text("utf-8") for name in ("record.json", "done")}
    for odd in ODD:
        forge(home, **odd)
        ours = registered(tiny, train=False).frame.set_index(["row", "column"]).ours
        assert (ours["Baseline"] == whole["Baseline"]).sum() == len(COLUMNS), odd
        for name, text in texts.items():
            (home / name).write_text(text, "utf-8")
    again = registered(tiny, train=False).frame.set_index(["row", "column"]).ours
    pd.testing.assert_series_equal(again, whole)


def test_where_nothing_can_be_written_what_is_there_is_shown(registered, outputs, monkeypatch):
    "Fault of round 2: in a folder that is read-only `table --no-train` refused."
    tiny = registered.preset("smoke", **TINY | {"seeds": 1})
    columns = {"Last / CIFAR-10": Robustness(PGD(steps=4), size=20)}
    way = replace(
        registered, plan=lambda p, parts: planned_row(p, "x", thesis_run(Plain()), columns)
    )
    first = way(tiny)

    def read_only(path, *how):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(files, "_write_through", read_only)
    monkeypatch.setattr(measures, "locked", read_only)
    with pytest.warns(UserWarning, match="shown and not saved: .*table_7_1.csv: cannot be written"):
        again = way(tiny, train=False)
    pd.testing.assert_frame_equal(again.frame, first.frame)
    [run] = next(iter(way.plan(tiny, ("CIFAR-10",)).values())).runs
    assert columns["Last / CIFAR-10"].make(Store(tiny), run)["n"] == 20  # what is kept asks no lock
    with pytest.raises(BadInput, match="cannot be written"):
        way(tiny)


def test_without_training_it_tells_what_is_not_there(registered, outputs):
    frame = registered(registered.preset("smoke", **TINY), train=False).frame
    reasons = set(frame.reason[frame.row == "Baseline"])
    assert any("not run yet" in r for r in reasons) and (frame.n == 0).all()


def test_rows_of_ones_own_stand_beside_the_thesis_and_leave_its_table_alone(registered, outputs):
    tiny = registered.preset("smoke", **TINY)
    own = {"Mixed (deep)": thesis_run(Mixup(layers=(0, 1)))}
    t = registered(tiny, also=own)
    line = t.frame[(t.frame.row == "Mixed (deep)") & (t.frame.column == "Best / CIFAR-10")]
    assert line.verdict.item() == "ours only" and line.n.item() == 2
    assert t.to == outputs / tiny.variant / "also-Mixed-deep" / "tables"
    again = artefacts.read_table(t.to / "table_7_1.json")
    assert again.own == t.own == ("Mixed (deep)",)
    assert again.heading.endswith(", with a row of your own: Mixed (deep)")
    assert "Mixed (deep)  your own" in again.text()
    for suffix, mark in ((".md", "<br>*your own*"), (".tex", "(your own)")):
        assert mark in (t.to / f"table_7_1{suffix}").read_text(encoding="utf-8")
    assert not (outputs / tiny.variant / "tables").exists()


@pytest.mark.parametrize(
    ("name", "part", "said"),
    [
        ("mixup", "CIFAR-10", "it has a row mixup: give yours another name"),
        ("MetaMixup", "CIFAR-10", "it has a row MetaMixup: give yours another name"),
        ("Disk", "SVHN", "Disk: no row of it is on SVHN"),
    ],
)
def test_a_row_of_ones_own_that_does_not_fit_is_refused_before_anything_is_trained(
    registered, outputs, name, part, said
):
    run = Run(Named("cifar10", part=part), thesis_run(Plain()).recipe, Length(500))
    with pytest.raises(BadInput, match=said):
        registered(registered.preset("smoke", **TINY), also={name: run})
    assert not (outputs / "runs").exists()


def test_a_table_of_our_own_has_no_thesis_beside_it(registered, outputs):
    ours = registry.table("7.ours", "our own", "", plan, ("CIFAR-10",))
    frame = ours(registered.preset("smoke", **TINY), train=False).frame
    assert len(frame) == 4 and frame.thesis.isna().all()
    assert artefacts.order("7.ours") > artefacts.order("7.10") > artefacts.order("7.2")
    numbers = ["one.1", "other.1", "one.2", "7.1", "one.new.ours", "other.2"]
    by_companion = ["7.1", "one.1", "one.2", "one.new.ours", "other.1", "other.2"]
    assert sorted(numbers, key=artefacts.order) == by_companion


def test_runs_of_other_code_are_counted_and_made_again_when_asked(registered, outputs):
    tiny = registered.preset("smoke", **TINY)
    assert registered(tiny).code == ""
    (folder, *others) = Store(tiny).folders()
    before = [records.read(f).cost["seconds"] for f in (folder, *others)]
    records.accept(folder, records.read(folder).code | {"mixup": "of yesterday"})
    said = registered(tiny, train=False).code
    assert said == "1 of 4 runs were made by other code (mixup): --fresh changed makes them again."
    assert registered(tiny, fresh="changed").code == ""
    after = [records.read(f).cost["seconds"] for f in (folder, *others)]
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, True, True, True]


def test_a_figure_whose_runs_fail_tells_which(registered, outputs):
    tiny = registered.preset("smoke", **TINY)

    @registry.figure("7.2", "a history", ("CIFAR-10",))
    def history(preset, parts):
        Store(preset).ensure(r for p in plan(preset, parts).values() for r in p.runs)
        return Drawn(None, pd.DataFrame())

    with pytest.warns(UserWarning, match="4 failed"):
        made = history(tiny, train=False)
    assert len(made.failed) == 4 and all("not run yet" in why for why in made.failed.values())
    assert list(made.frame.columns) == ["run", "why"] and made.files()


def test_a_figure_whose_runs_other_code_made_is_drawn_of_new_ones_when_asked(registered, outputs):
    tiny, drawn = registered.preset("smoke", **TINY), []

    @registry.figure("7.2", "a history", ("CIFAR-10",))
    def history(preset, parts):
        import matplotlib.pyplot as plt

        chosen = [r for p in plan(preset, parts).values() for r in p.runs][:1]
        (record,) = Store(preset).ensure(chosen)
        drawn.append(record.cost["seconds"])
        return Drawn(plt.figure(), pd.DataFrame(record.history), chosen)

    made = history(tiny, fresh="changed")
    assert made.code == "" and len(drawn) == 1
    (folder,) = Store(tiny).folders()
    weights = json.loads((made.to / "figure_7_2.json").read_text(encoding="utf-8"))["weights"]
    assert weights == {records.read(folder).key: records.read(folder).weights["last"]}
    records.accept(folder, records.read(folder).code | {"mixup": "of yesterday"})
    assert history(tiny).code.startswith("1 of 1 runs were made by other code")
    assert history(tiny, fresh="changed").code == ""
    assert len(drawn) == 4 and drawn[0] == drawn[1] == drawn[2] != drawn[3]


# ---- the style in a kernel


def test_a_notebook_shows_pictures_after_the_first_in_our_style():
    "The first figure of a kernel chooses how all are shown; within a style that was forgotten."
    from nbclient import NotebookClient
    from nbformat.v4 import new_code_cell, new_notebook

    drawing = "with style():\n    plt.subplots()"
    first = f"import matplotlib.pyplot as plt\nfrom thesis_repro.artefacts import style\n{drawing}"
    cells = [new_code_cell(source) for source in (first, drawing, "plt.subplots();")]
    nb = new_notebook(cells=cells)
    NotebookClient(nb, timeout=120, kernel_name="python3").execute()
    assert all(any("image/png" in o.get("data", {}) for o in c.outputs) for c in nb.cells)
