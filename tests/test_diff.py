"""Two outputs folders: a changed number is found and named, the seeds' own scatter is not taken for a change."""

import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from test_report import Cell, drawn, made

from thesis_repro import diff, report
from thesis_repro.cli import main
from thesis_repro.files import BadInput

ROWS = ("Baseline", "mixup", "Manifold mixup", "AIP")
COLUMNS = ("Best / CIFAR-10", "Best / SVHN")


def preset(folder, seed=0, shift=None, curve=0.0, unit="%"):
    "A folder with a table of two seeds a cell, which scatter by 2 points, and a figure with a curve a method."
    rng, shift = np.random.default_rng(seed), shift or {}
    cells = [
        Cell(r, c, tuple(60 + 5 * i + shift.get((r, c), 0.0) + rng.normal(0, 2, 2)), unit=unit)
        for i, r in enumerate(ROWS)
        for c in COLUMNS
    ]
    made(cells).save(folder / "tables")
    x = np.arange(20.0)
    curves = [
        pd.DataFrame({"x": x, "loss": np.exp(-x / 5) + curve * (m == "AIP"), "method": m})
        for m in ROWS
    ]
    picture = drawn(cells=(Cell("pairs", "share", (0.5, 0.52), unit="share"),))
    dataclasses.replace(picture, data=pd.concat(curves)).save(folder / "figures")
    return folder


def states(a, b, **how):
    "(artefact, row, column) → state."
    found = diff.moved(diff.numbers(a), diff.numbers(b), **how)
    return {(c.artefact, c.row, c.column): c.state for c in found.itertuples()}


@pytest.fixture
def before(tmp_path):
    return preset(tmp_path / "before")


def test_the_same_folder_twice_is_the_same(before, tmp_path):
    shutil.copytree(before, tmp_path / "copy")
    assert set(states(before, tmp_path / "copy").values()) == {"same"}


def test_other_seeds_are_noise(before, tmp_path):
    for seed in range(1, 4):
        found = states(before, preset(tmp_path / f"seed{seed}", seed))
        cells = {k: s for k, s in found.items() if k[0] == "table_7_1"}
        assert set(cells.values()) <= {"within seed noise", "within tolerance"}, seed


def test_a_changed_cell_is_found_named_and_fails(before, tmp_path, capsys):
    after = preset(tmp_path / "after", shift={("AIP", "Best / SVHN"): 40.0})
    found = states(before, after)
    beyond = {k for k, s in found.items() if s == "beyond"}
    assert beyond == {
        ("table_7_1", "AIP", "Best / SVHN"),
        ("table_7_1", "all 4 rows", "Best / SVHN"),
    }
    assert main(["diff", str(before), str(after)]) == 1
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if "[AIP, Best / SVHN]" in line)
    assert "→" in line and "seeds ±" in line and "2 beyond" in out


def test_a_small_shift_of_a_whole_column_is_found(before, tmp_path):
    shift = {(r, "Best / SVHN"): -12.0 for r in ROWS}
    found = states(before, preset(tmp_path / "after", 1, shift))
    assert found["table_7_1", "all 4 rows", "Best / SVHN"] == "beyond"
    assert found["table_7_1", "all 4 rows", "Best / CIFAR-10"] != "beyond"


@pytest.mark.parametrize("change", ["mean", "order"])
def test_a_changed_curve_of_a_figure_is_found_and_named(before, tmp_path, change):
    after = preset(tmp_path / "after", curve=1.0 if change == "mean" else 0.0)
    if change == "order":
        file = after / "figures" / "figure_7_2.csv"
        data = pd.read_csv(file)
        data.loc[data.method == "AIP", "loss"] = data.loss[data.method == "AIP"].to_numpy()[::-1]
        data.to_csv(file, index=False)
    moved = {k for k, s in states(before, after, strict=change == "order").items() if s == "beyond"}
    what = "mean" if change == "mean" else "slope"
    assert ("figure_7_2", "points: AIP", f"{what} of loss") in moved
    assert not any("points: mixup" in row for _, row, _ in moved)


def test_a_lost_point_cell_or_artefact_is_gone_and_a_new_one_is_only_named(
    before, tmp_path, capsys
):
    after = preset(tmp_path / "after")
    file = after / "figures" / "figure_7_2.csv"
    pd.read_csv(file).iloc[:-1].to_csv(file, index=False)
    assert states(before, after)["figure_7_2", "points: AIP", "lines"] == "beyond"
    for suffix in (".json", ".csv"):
        (after / "tables" / f"table_7_1{suffix}").unlink()
    assert {s for (a, _, _), s in states(before, after).items() if a == "table_7_1"} == {"gone"}
    assert (
        main(["diff", str(before), str(after)]) == 1
        and "gone: table_7_1 (" in capsys.readouterr().out
    )
    drawn().save(after / "figures")
    shutil.copytree(before, tmp_path / "less")
    for file in (tmp_path / "less" / "tables").iterdir():
        file.unlink()
    assert (
        main(["diff", str(tmp_path / "less"), str(before)]) == 0
        and "new: table_7_1 (" in capsys.readouterr().out
    )
    assert main(["diff", str(before), str(tmp_path / "less"), "--common"]) == 0


def test_strict_counts_what_noise_would_hide(before, tmp_path):
    after = preset(tmp_path / "after", shift={("AIP", "Best / SVHN"): 0.01})
    place = ("table_7_1", "AIP", "Best / SVHN")
    assert (
        states(before, after)[place] == "within seed noise"
        and states(before, after, strict=True)[place] == "beyond"
    )


def test_one_seed_is_judged_by_the_tolerance_of_its_kind():
    line = lambda v, unit: [("table_9_1", "a", "b", unit, (v,))]
    of = lambda v, unit: diff.Numbers(
        "", pd.DataFrame(line(v, unit), columns=[*diff._PLACE, "unit", "values"]), {}
    )
    state = lambda unit, a, b: diff.moved(of(a, unit), of(b, unit)).state[0]
    assert state("%", 80.0, 82.9) == "within tolerance" and state("%", 80.0, 83.1) == "beyond"
    assert state("s", 0.1, 0.4) == "within tolerance" and state("s", 0.1, 0.6) == "beyond"
    assert state("share", 0.5, 0.58) == "within tolerance" and state("share", 0.5, 0.61) == "beyond"
    assert state("times", 2.0, 3.9) == "within tolerance" and state("times", 2.0, 4.1) == "beyond"
    assert state("", 2.0, 2.4) == "within tolerance" and state("", 2.0, 2.6) == "beyond"
    assert state("±0.5", 7.0, 7.4) == "within tolerance" and state("±0.5", 7.0, 7.6) == "beyond"
    assert state("count", 7.0, 8.0) == "beyond" and state("%", 80.0, float("nan")) == "gone"


def test_a_number_without_seeds_scatters_like_the_others_of_its_unit():
    def side(alone):
        cells = [("table_9_1", f"r{i}", "c", "%", (50.0 + i, 58.0 + i)) for i in range(6)]
        lines = [*cells, ("figure_9_1", "a run", "clean", "%", (alone,))]
        return diff.Numbers("", pd.DataFrame(lines, columns=[*diff._PLACE, "unit", "values"]), {})

    of = lambda alone: diff.moved(side(70.0), side(alone)).set_index("artefact").loc["figure_9_1"]
    assert (
        of(62.0).state == "within seed noise"
        and of(20.0).state == "beyond"
        and 20 < of(62.0).noise < 50
    )


def test_false_alarms_are_as_rare_as_promised():
    "Of 200 pairs of folders that differ by their seeds only, about 5 % may raise an alarm by noise alone."
    alarms, columns = 0, [*diff._PLACE, "unit", "values"]
    rng = np.random.default_rng(0)
    for _ in range(200):
        sides = []
        for _ in "ab":
            lines = [
                ("t", f"r{i}", f"c{j}", "%", tuple(rng.normal(50, 5, 2)))
                for i in range(10)
                for j in range(4)
            ]
            sides.append(diff.Numbers("", pd.DataFrame(lines, columns=columns), {}))
        alarms += (diff.moved(*sides).state == "beyond").any()
    assert alarms <= 20


def test_kept_numbers_stand_for_the_folder(before, tmp_path, capsys):
    file = tmp_path / "numbers.csv"
    assert main(["diff", str(before), "--keep", str(file)]) == 0
    assert main(["diff", str(file), str(before), "--json"]) == 0
    said = json.loads(capsys.readouterr().out.partition("\n")[2])
    assert set(said["counts"]) == {"same"} and not said["moved"] and not said["failed"]
    assert said["a"] == said["b"] and said["a"]["preset"] == "smoke"


def test_a_number_that_is_not_there_on_either_side_is_no_change(tmp_path):
    for name in "ab":
        made([Cell("AIP", "Best / SVHN", (None, None))]).save(tmp_path / name / "tables")
    assert set(states(tmp_path / "a", tmp_path / "b").values()) == {"same"}


@pytest.mark.parametrize(
    "words, said",
    [
        (["nowhere", "BEFORE"], "nowhere: neither"),
        (["BEFORE"], "with what?"),
        (["BEFORE", "README"], "not a file of numbers"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(before, tmp_path, capsys, words, said):
    (tmp_path / "README").write_text("nothing")
    places = {"BEFORE": str(before), "README": str(tmp_path / "README")}
    assert main(["diff", *(places.get(w, w) for w in words)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and said in err


def test_damage_is_said(before):
    (before / "figures" / "figure_7_2.csv").write_bytes(b"\xff\xfe\x00,")
    with pytest.raises(BadInput, match=r"figure_7_2\.csv: cannot be used"):
        diff.numbers(before)
    (before / "tables" / "table_7_1.json").write_text("{")
    with pytest.raises(BadInput, match=r"table_7_1\.json: cannot be used"):
        diff.numbers(before)
    assert report.saved(str(before), "figure")[0][2] == ""
