"""Two outputs folders: a changed number is found and named, seed noise is no change."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from arithmetic import MARGIN, furthest
from exhibits import drawn, made

from thesis_repro import artefacts, diff, paths
from thesis_repro.cli import main
from thesis_repro.files import BadInput
from thesis_repro.tables import Cell

ROWS = ("Baseline", "mixup", "Manifold mixup", "AIP")
COLUMNS = ("Best / CIFAR-10", "Best / SVHN")
X = np.arange(20.0)
CURVE = np.exp(-X / 5)


def figure(folder, aip=CURVE, less=0):
    "Save a figure with a curve per method; `less`: points that are lost at the end."
    cell = Cell("pairs", "share", (0.5, 0.52), unit="share")
    curves = [pd.DataFrame({"x": X, "loss": CURVE, "method": m}) for m in ROWS[:-1]]
    last = pd.DataFrame({"x": X, "loss": aip, "method": "AIP"})
    frame = pd.concat([*curves, last]).iloc[: 4 * len(X) - less]
    drawn(cells=(cell,), frame=frame, to=folder / "figures").save()


def preset(folder, seed=0, shift=None, machine=None, **curve):
    "A folder with a figure, and a table of two seeds per cell, which scatter by 2 points."
    rng, shift, cells = np.random.default_rng(seed), shift or {}, []
    for i, row in enumerate(ROWS):
        for column in COLUMNS:
            mean = 60 + 5 * i + shift.get((row, column), 0.0)
            cells.append(Cell(row, column, tuple(mean + rng.normal(0, 2, 2))))
    how = {"origin": machine} if machine else {}
    made(cells, to=folder / "tables", **how).save()
    figure(folder, **curve)
    return folder


def states(a, b, **how):
    "(artefact, row, column) → state."
    found = diff.moved(diff.numbers(a), diff.numbers(b), **how)
    return {(c.artefact, c.row, c.column): c.state for c in found.itertuples()}


def numbers(*lines, **made):
    "Numbers from lines (artefact, row, column, unit, values)."
    return diff.Numbers("", pd.DataFrame(lines, columns=[*diff._PLACE, "unit", "values"]), made)


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
    beyond = {k for k, s in states(before, after).items() if s == "beyond"}
    assert beyond == {("table_7_1", row, "Best / SVHN") for row in ("AIP", "all 4 rows")}
    assert main(["diff", str(before), str(after)]) == 1
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if "[AIP, Best / SVHN]" in line)
    assert "→" in line and "seeds ±" in line and "2 beyond" in out


def test_a_small_shift_of_a_whole_column_is_found(before, tmp_path):
    shift = {(r, "Best / SVHN"): -12.0 for r in ROWS}
    found = states(before, preset(tmp_path / "after", 1, shift))
    assert found["table_7_1", "all 4 rows", "Best / SVHN"] == "beyond"
    assert found["table_7_1", "all 4 rows", "Best / CIFAR-10"] != "beyond"


@pytest.mark.parametrize(("what", "curve"), [("mean", CURVE + 1), ("slope", CURVE[::-1])])
def test_a_changed_curve_of_a_figure_is_found_and_named(before, tmp_path, what, curve):
    after = preset(tmp_path / "after", aip=curve)
    found = states(before, after, strict=what == "slope")
    beyond = {k for k, s in found.items() if s == "beyond"}
    assert ("figure_7_2", "points: AIP", f"{what} of loss") in beyond
    assert not any("points: mixup" in row for _, row, _ in beyond)


def test_a_lost_point_or_artefact_is_gone_and_a_new_one_is_only_named(before, tmp_path, capsys):
    after = preset(tmp_path / "after", less=1)
    assert states(before, after)["figure_7_2", "points: AIP", "lines"] == "beyond"
    figure(after)
    shutil.rmtree(after / "tables")
    assert {s for (a, _, _), s in states(before, after).items() if a == "table_7_1"} == {"gone"}
    assert main(["diff", str(before), str(after)]) == 1
    assert "gone: table_7_1 (" in capsys.readouterr().out
    assert main(["diff", str(after), str(before)]) == 0
    assert "new: table_7_1 (" in capsys.readouterr().out
    assert main(["diff", str(before), str(after), "--common"]) == 0


def test_strict_counts_what_noise_would_hide(before, tmp_path):
    after = preset(tmp_path / "after", shift={("AIP", "Best / SVHN"): 0.01})
    place = ("table_7_1", "AIP", "Best / SVHN")
    assert states(before, after)[place] == "within seed noise"
    assert states(before, after, strict=True)[place] == "beyond"


KINDS = {
    "%": (80.0, 82.9, 83.1),
    "s": (0.1, 0.4, 0.6),
    "share": (0.5, 0.58, 0.61),
    "times": (2.0, 3.9, 4.1),
    "": (2.0, 2.4, 2.6),
    "±0.5": (7.0, 7.4, 7.6),
    "count": (7.0, 7.0, 8.0),
}


def alone(unit, a, b, **machines):
    "The state of a number without seeds; `machines`: the hardware of both sides."
    sides = [numbers(("table_9_1", "a", "b", unit, (v,))) for v in (a, b)]
    for side, hardware in zip(sides, machines.get("machines", ("", "")), strict=True):
        side.made["hardware"] = hardware
    return diff.moved(*sides).state[0]


@pytest.mark.parametrize("unit", KINDS)
def test_one_seed_is_judged_by_the_tolerance_of_its_kind(unit):
    before, near, far = KINDS[unit]
    assert alone(unit, before, near) in ("within tolerance", "same")
    assert alone(unit, before, far) == "beyond"
    assert alone(unit, before, float("nan")) == "gone"


def test_another_machine_may_move_as_far_as_was_measured(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("THESIS_REPRO_ROOT", str(tmp_path))
    file, kinds = tmp_path / "data" / "elsewhere.csv", [*diff.TOLERANCE]
    lines = [f"{k},14,6,one machine" if k == "%" else f"{k},,," for k in kinds]
    file.write_text("\n".join(["kind,cell,column,measured", *lines]))
    assert alone("%", 60.0, 73.0) == "beyond"
    assert alone("%", 60.0, 73.0, machines=("a", "b")) == "within tolerance"
    assert alone("%", 60.0, 75.0, machines=("a", "b")) == "beyond"
    assert alone("share", 0.5, 0.61, machines=("a", "b")) == "beyond"
    rows = [[("t", f"r{i}", "c", "%", (50.0 + by,)) for i in range(3)] for by in (0, 7)]
    found = diff.moved(numbers(*rows[0], hardware="a"), numbers(*rows[1], hardware="b"))
    assert found.set_index("row").state["all 3 rows"] == "beyond"
    for wrong in ("kind,cell\n%,1", "\n".join(["kind,cell,column", *lines[1:]])):
        file.write_text(wrong)
        with pytest.raises(BadInput, match=r"elsewhere\.csv"):
            diff.elsewhere()


def test_the_projects_own_measurements_can_be_read():
    assert set(diff.elsewhere().index) == set(diff.TOLERANCE)
    assert (paths.root() / "data" / "elsewhere.csv").is_file()


def test_how_far_numbers_move_elsewhere_is_not_what_the_worst_did():
    moves = [*[1.0] * 98, 4.0, 400.0]
    lines = pd.DataFrame({"a": 10.0, "b": 10.0, "delta": moves, "unit": "%", "rows": 1})
    whole = lines.head(2).assign(rows=5, delta=2.0, unit="")
    found = furthest(pd.concat([lines, whole], ignore_index=True))
    assert list(found.index) == list(diff.TOLERANCE)
    assert found.loc["%", "cell"] == MARGIN and found.loc["", "column"] == pytest.approx(
        0.2 * MARGIN
    )
    assert found.loc["points"].isna().all() and np.isnan(found.loc["%", "column"])


def test_a_number_without_seeds_scatters_like_the_others_of_its_unit():
    def side(lonely):
        cells = [("table_9_1", f"r{i}", "c", "%", (50.0 + i, 58.0 + i)) for i in range(6)]
        return numbers(*cells, ("figure_9_1", "a run", "clean", "%", (lonely,)))

    def of(lonely):
        return diff.moved(side(70.0), side(lonely)).set_index("artefact").loc["figure_9_1"]

    assert of(62.0).state == "within seed noise" and 20 < of(62.0).noise < 50
    assert of(20.0).state == "beyond"


def test_false_alarms_are_as_rare_as_promised():
    "Of 200 pairs of folders that differ by their seeds only, about 5 % may raise an alarm."
    alarms, rng = 0, np.random.default_rng(0)
    for _ in range(200):
        places = [("t", f"r{i}", f"c{j}", "%") for i in range(10) for j in range(4)]
        sides = [numbers(*((*p, tuple(rng.normal(50, 5, 2))) for p in places)) for _ in "ab"]
        alarms += (diff.moved(*sides).state == "beyond").any()
    assert alarms <= 20


def test_kept_numbers_stand_for_the_folder(before, tmp_path, capsys):
    file = tmp_path / "numbers.csv"
    assert main(["diff", str(before), "--keep", str(file)]) == 0
    assert main(["diff", str(file), str(before), "--json"]) == 0
    found = json.loads(capsys.readouterr().out.partition("\n")[2])
    assert set(found["counts"]) == {"same"} and not found["moved"] and not found["failed"]
    assert found["a"] == found["b"] and found["a"]["preset"] == "smoke"


def test_a_number_that_is_not_there_on_either_side_is_no_change(tmp_path):
    for name in "ab":
        made([Cell("AIP", "Best / SVHN", (None, None))], to=tmp_path / name / "tables").save()
    assert set(states(tmp_path / "a", tmp_path / "b").values()) == {"same"}


@pytest.mark.parametrize(
    "words, message",
    [
        (["nowhere", "BEFORE"], "nowhere: neither"),
        (["BEFORE"], "with what?"),
        (["BEFORE", "README"], "not a file of numbers"),
        (["BEFORE", "README", "--keep", "README"], "keeps the numbers of one side"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(before, tmp_path, capsys, words, message):
    (tmp_path / "README").write_text("nothing")
    places = {"BEFORE": str(before), "README": str(tmp_path / "README")}
    assert main(["diff", *(places.get(w, w) for w in words)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and message in err


def test_an_artefact_that_was_changed_by_hand_is_not_compared(before):
    (before / "figures" / "figure_7_2.csv").write_text("x,loss\n1,2\n")
    with pytest.raises(BadInput, match=r"figure_7_2\.csv was changed after it was made"):
        diff.numbers(before)
    (before / "tables" / "table_7_1.json").write_text("{")
    with pytest.raises(BadInput, match=r"table_7_1\.json: cannot be used"):
        diff.numbers(before)
    assert artefacts.saved(str(before), "figure")[0][2]


def test_a_figure_whose_numbers_are_no_numbers_is_named(before):
    drawn(frame=pd.DataFrame(), to=before / "figures").save()
    with pytest.raises(BadInput, match=r"figure_7_2\.csv: cannot be used: No columns"):
        diff.numbers(before)


# On another machine


def beyond(share: float, n: int = 200) -> pd.DataFrame:
    states = ["beyond"] * round(share * n) + ["same"] * round((1 - share) * n)
    return pd.DataFrame({"artefact": "table_7_1", "state": states})


def test_on_another_machine_a_few_numbers_may_end_anywhere_and_no_artefact_may_go():
    assert diff.failed(beyond(0.01)) and not diff.failed(beyond(0.01), elsewhere=True)
    assert diff.failed(beyond(0.06), elsewhere=True) and not diff.failed(beyond(0.0))
    for lost, elsewhere in {"table_7_1": False, "figure_7_1": True}.items():
        line = pd.DataFrame({"artefact": [lost], "state": ["gone"]})
        gone = pd.concat([beyond(0.0), line], ignore_index=True)
        assert diff.failed(gone) and diff.failed(gone, elsewhere=True) is elsewhere
    few = pd.DataFrame({"artefact": "table_7_1", "state": ["gone"] * 7})
    assert diff.failed(pd.concat([beyond(0.02), few], ignore_index=True), elsewhere=True)
    assert not diff.failed(beyond(0.0).head(0), elsewhere=True)


def test_a_machine_of_the_same_name_with_other_sums_is_another(tmp_path, capsys):
    where = {"hardware": "a CPU, AVX512, sums 1", "commit": "", "versions": {"torch": "2.15"}}
    a = preset(tmp_path / "a", machine=where)
    shift = dict.fromkeys([("AIP", COLUMNS[0])], -70.0)
    for sums, code in (("1", 1), ("2", 0)):
        made_there = where | {"hardware": f"a CPU, AVX512, sums {sums}"}
        b = preset(tmp_path / f"b{sums}", shift=shift, machine=made_there)
        assert main(["diff", str(a), str(b)]) == code, capsys.readouterr().out


def test_a_point_alone_is_measured_by_the_spread_of_its_column():
    frame = pd.DataFrame({"method": ["a", "b"], "gain": [1.0, 3.0], "level": [2.0, 2.0]})
    units = {(row, column): unit for row, column, unit, _ in diff._points(frame)}
    assert units["points: a", "mean of gain"] == units["points: b", "mean of gain"] == "±1"
    assert units["points: a", "mean of level"] == ""
