"""The conclusion says what is on the disk, in the words of the verdicts, and comes last."""

import dataclasses
import json
import math
import re
import subprocess
import sys

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
from test_chapters import tiny  # noqa: F401

from thesis_repro import artefacts, claims, conclusion, notebooks, paths, plan, published, settings
from thesis_repro.artefacts import Figure, Table
from thesis_repro.cli import main
from thesis_repro.conclusion import QUESTIONS, answers, became, effects, lead, shown
from thesis_repro.files import atomic_write
from thesis_repro.tables import SIGNS, Cell, compare

ASKED = [q for group in QUESTIONS.values() for q in group]
STAND_IN = "stand-in digits10"


@pytest.fixture
def smoke(tmp_path, monkeypatch):
    "The preset smoke with nothing on the disk."
    monkeypatch.setenv("THESIS_REPRO_OUTPUTS", str(tmp_path / "outputs"))
    return settings.load("smoke", chapter=8)


def leave(preset, number: str, cells, **facts):
    "Save a table with some cells, as a chapter does."
    frame = compare(number, [Cell(*c[:2], **c[2]) for c in cells])
    to = artefacts.folder(preset) / "tables"
    Table(number=number, title="t", preset=preset.name, frame=frame, to=to, **facts).save()


def accuracies(number: str, numbers: dict, stand_in: str = ""):
    "Cells of a table: (row, column) → values."
    return [(*place, {"values": v, "stand_in": stand_in}) for place, v in numbers.items()]


AVMIXUP, M2AT = (("CIFAR-10 / " + row, "PGD-20") for row in ("AVmixup", "M2AT"))


def by_id(found) -> pd.DataFrame:
    return found.set_index("id")


# ---- the questions


def test_there_are_three_aims_and_five_companions():
    aims = [subject for subject in QUESTIONS if subject.startswith("Aim")]
    chapter = published.claims().set_index("id").chapter
    asked_of = {s: {chapter[q.claim] for q in group} for s, group in QUESTIONS.items()}
    assert [asked_of[s] for s in aims] == [{"3", "4"}, {"5", "6"}, {"7"}]
    own = set().union(*(asked_of[s] for s in QUESTIONS if s not in aims))
    assert own == {p.stem for p in (paths.notebooks() / "companions").glob("*.ipynb")}
    assert len(QUESTIONS) == 3 + len(own)


def test_a_control_asks_for_cells_that_are_planned():
    "Of every control's table the cells exist, at the scale of the thesis."
    from thesis_repro import registry

    for q in (q for q in ASKED if q.quantity):
        for name, row, column in claims.quantity_cells(q.quantity):
            made = registry.find("table", name)
            assert (row, column) in made.plan(made.preset("thesis", device="cpu"), made.parts)


def test_leads_and_gains():
    q = lead("table_x", "a, b", ("c", "d, e"), "Top-1, %")
    assert claims.quantity_cells(q) == [("table_x", r, "Top-1, %") for r in ("a, b", "c", "d, e")]
    values = {("table_x", r, "k"): [v] for r, v in {"a": 5.0, "b": 3.0, "c": 4.0}.items()}
    for others, value in ((("b",), 2.0), (("b", "c"), 1.0)):
        assert claims.quantity_interval(lead("table_x", "a", others, "k"), values)[0] == value
    # on average over the attributes the generated faces change nothing, by the thesis's numbers
    printed = published.published("3.4").pivot(index="row", columns="column", values="value")
    gain = (printed.loc["ours (w/o AL)"] - printed.loc["Baseline"]).mean()
    quantity = conclusion.mean_gain("3.4", "ours (w/o AL)", "Baseline")
    found = claims.quantity_interval(quantity, published.thesis_values())[0]
    assert found == pytest.approx(gain) and abs(gain) < 0.1


# ---- what is on the disk, and what is not


def test_with_nothing_on_the_disk_every_line_says_what_to_run(smoke):
    found = answers(smoke)
    assert set(found.verdict) == {"not run"} and list(found.id) == [q.claim for q in ASKED]
    texts = shown(smoke, found)
    for chapter, text in zip(found.chapter, texts.measured, strict=True):
        assert text == f"not run: thesis-repro reproduce --preset smoke --chapter {chapter}"
    assert all(notebooks.chapters(c) for c in found.chapter)
    assert not texts["ahead of its control"].str.contains("thesis-repro").any()  # said once
    said = conclusion.conclusion(smoke)
    assert "Nothing is measured at `smoke` yet" in said
    assert said.count("open, nothing was measured here") == len(QUESTIONS)
    n = len(published.claims("virtual_positives"))
    assert f"virtual_positives ({n} of {n})" in said and "no difference" in said.lower()
    assert "holds" not in said and "Failed" not in said


def test_what_is_on_the_disk_is_told_with_its_interval(smoke):
    leave(smoke, "5.1", accuracies("5.1", {AVMIXUP: (30.0, 31.0), M2AT: (28.0, 28.5)}, STAND_IN))
    found = answers(smoke)
    line = by_id(found).loc["5.1-m2at-over-avmixup-pgd-20"]
    low, ours, high = (f"{line[k]:+.2f}".replace("-", "−") for k in ("low", "ours", "high"))
    assert line.verdict == "tried" and ours == "−2.25"
    row = shown(smoke, found).loc[(line.subject, line.claim)]
    assert row.measured == f"{ours} points [{low}, {high}], 2 runs"
    assert row.printed == "+15.65 points" and row.verdict == "○ tried"
    assert row["its control"] == "under AutoAttack"
    assert row["ahead of its control"].startswith("not run: thesis-repro reproduce")
    said = conclusion.conclusion(smoke)
    assert f"(claimed +15.65 points; here {row.measured}): open, only tried" in said
    assert "or seconds on a CPU: 1 of these" in said and "None is decided" in said


def test_a_judged_claim_is_no_stand_in_and_its_control_decides(smoke):
    leave(smoke, "5.1", accuracies("5.1", {AVMIXUP: (30.0, 31.0, 30.5), M2AT: (38.0, 39.0, 38.6)}))
    strong = {"M2AT": (20.0, 21.0), "AVmixup": (30.0, 31.1)}
    auto = {(row, "AutoAttack"): values for row, values in strong.items()}
    leave(smoke, "5.ours", accuracies("5.ours", auto))
    found = answers(smoke)
    line = by_id(found).loc["5.1-m2at-over-avmixup-pgd-20"]
    assert (line.verdict, line.control_verdict) == ("holds", "fails")
    row = shown(smoke, found).loc[(line.subject, line.claim)]
    assert row["ahead of its control"].endswith("✗ fails")
    said = conclusion.conclusion(smoke)
    assert "it is not the method's doing" in said and "Claims judged on the thesis's data" in said
    assert "stand-in" not in said and re.search(r"\d+ are decided", said)


def test_a_size_is_not_judged_on_a_claim_of_another_scale(smoke):
    "A claim about half a point is not comparable at a smaller scale, and is in no picture."
    cells = {"ours (w/o AL)": (90.0, 91.0), "Baseline": (80.0, 81.0)}
    own = [(r, "Rosy Cheeks", {"values": v, "reason": "width 1/8"}) for r, v in cells.items()]
    leave(smoke, "3.4", own)
    found = by_id(answers(smoke)).loc["3.4-half-a-point-rosy-cheeks"]
    assert found.verdict == "not comparable" and found.ours == pytest.approx(10)
    assert "cannot be compared" in conclusion.conclusion(smoke)
    judged = claims.claim_table(*artefacts.saved_values(smoke))
    assert effects(judged).empty


@pytest.mark.parametrize("reason", ["killed: out of memory", "glyphs has other attributes"])
def test_an_empty_cell_gives_its_own_reason(smoke, reason):
    "No command to make again what was made, and failed."
    cells = [
        (*AVMIXUP, {"values": (30.0,), "stand_in": STAND_IN}),
        (*M2AT, {"values": (math.nan,), "reason": reason}),
    ]
    failed = {"M2AT, seed 0": reason} if reason.startswith("killed") else {}
    leave(smoke, "5.1", cells, failed=failed)
    found = answers(smoke)
    line = by_id(found).loc["5.1-m2at-over-avmixup-pgd-20"]
    assert line.verdict == "not run"
    row = shown(smoke, found).loc[(line.subject, line.claim)]
    assert reason in row.measured and "thesis-repro" not in row.measured


def test_a_figure_that_failed_says_why(smoke):
    figure = plt.figure()
    facts = {"number": "4.6", "title": "t", "preset": "smoke", "failed": {"ACGAN": "killed"}}
    to = artefacts.folder(smoke) / "figures"
    Figure(figure=figure, frame=pd.DataFrame({"run": ["ACGAN"]}), to=to, **facts).save()
    found = answers(smoke)
    line = by_id(found).loc["4.6-svhn-70-points"]
    assert shown(smoke, found).loc[(line.subject, line.claim)].measured == "failed: ACGAN: killed"


def test_a_notebook_that_failed_is_named(smoke):
    facts = {"status": "failed", "error": "cell 4 (Table 5.1): ValueError: no"}
    document = nbformat.v4.new_notebook(metadata={"thesis_repro": facts})
    document.cells = [nbformat.v4.new_markdown_cell("# Chapter 5")]
    folder = artefacts.folder(smoke) / "notebooks"
    atomic_write(folder / "05_m2at.ipynb", nbformat.writes(document))
    found = answers(smoke)
    line = by_id(found).loc["5.1-m2at-over-avmixup-pgd-20"]
    why = f"05_m2at failed: {facts['error']}"
    assert shown(smoke, found).loc[(line.subject, line.claim)].measured == why
    assert f"**Failed:** {why}." in conclusion.conclusion(smoke)


def test_a_trial_is_made_by_its_own_command(smoke, monkeypatch):
    "A preset with something overridden has a folder of its own, and so a command of its own."
    trial = settings.load("smoke", chapter=8, seeds=2)
    command = "thesis-repro reproduce --preset smoke --chapter 7 --set seeds=2"
    assert conclusion.to_run(trial, "7") == command and conclusion.to_run("fast").endswith("fast")
    monkeypatch.setenv(settings.OUTSIDE, "width=0.5")
    trial = settings.load("smoke", chapter=8, seeds=2)
    words = conclusion.to_run(trial).split()
    assert sorted(words[4:]) == ["--set", "--set", "seeds=2", "width=0.5"]
    from thesis_repro.cli import parser

    args = parser().parse_args(words[1:])
    monkeypatch.delenv(settings.OUTSIDE)
    from thesis_repro.commands import overridden

    assert settings.load(args.preset, **overridden(args)).variant == trial.variant


# ---- the words


def test_every_verdict_has_its_words():
    words = [w for w in SIGNS if w in (*claims.JUDGED, *claims.ASIDE)]
    said = {(v, c): became(v, c) for v in words for c in ("", *words)}
    for verdict in words:
        about = {said[verdict, c] for c in ("", *words)}
        assert len(about) == (4 if verdict == "holds" else 1)  # a control says something of that
    others = [text for (v, _), text in said.items() if v not in ("holds", "fails")]
    assert others and all(text.startswith("open, ") for text in others)
    assert said["fails", "holds"] == "it does not hold here"
    assert said["holds", "tried"] == said["holds", "inconclusive"] == said["holds", "not run"]


def test_numbers_in_words():
    assert conclusion.told(-1.5, "points", n=1) == "−1.50 points, 1 run"
    assert conclusion.told(2.0, "points", -1.0, 5.0, 3) == "+2.00 points [−1.00, +5.00], 3 runs"
    assert conclusion.told(0.61, "share") == "0.6100 share"
    claim = {"thesis": math.nan, "size": math.nan, "direction": ">", "bound": 10.0}
    assert conclusion.printed(claim | {"unit": "points"}) == "in words, judged by > 10 points"
    assert conclusion.printed(claim | {"size": 6.0, "unit": "points"}) == "+6.00 points"


LINE = {"unit": "points", "bound": 0.0, "verdict": "tried", "low": math.nan, "high": math.nan}
LINE |= {"quantity": "t[a, x] - t[b, x]"}
BEST = "t[a, x] - max(t[b, x], t[c, x])"  # with three alike, a is ahead once in three times


def judged_lines(*lines) -> pd.DataFrame:
    return pd.DataFrame([{"id": str(i)} | LINE | line for i, line in enumerate(lines)])


def test_differences_are_turned_so_that_above_zero_is_as_claimed():
    seen = effects(
        judged_lines(
            {"direction": ">", "thesis": 2.0, "ours": 1.0, "low": 0.5, "high": 1.5},
            {"direction": "<", "thesis": -3.0, "ours": 4.0, "low": 1.0, "high": 7.0},
            {"direction": "<", "thesis": -1.0, "ours": -0.5},
            {"direction": ">", "thesis": 0.5, "ours": 0.0},
            {"direction": "=", "thesis": 0.0, "ours": 0.0},
            {"direction": ">", "thesis": 80.0, "ours": 25.0, "bound": 80.0},
            {"direction": ">", "thesis": 1.0, "ours": 2.0, "unit": "times"},
            {"direction": ">", "thesis": 1.0, "ours": math.nan},
            {"direction": ">", "thesis": 1.0, "ours": 5.0, "verdict": "not comparable"},
            {"direction": ">", "thesis": 1.0, "ours": -5.0, "quantity": BEST},
        )
    )
    assert seen.id.tolist() == ["0", "1", "2", "3", "9"]
    assert seen.printed.tolist() == [2.0, 3.0, 1.0, 0.5, 1.0]
    assert seen.measured.tolist() == [1.0, -4.0, 0.5, 0.0, -5.0]
    assert seen[["low", "high"]].iloc[1].tolist() == [-7.0, -1.0]
    said = conclusion.said_of_effects(seen)
    assert "Of 5 differences" in said and "2 are on the claimed side of zero and 2 on" in said
    assert "other. Exactly zero: 1. Of the 3 that take no best or worst of several" in said
    assert "zero, 2 are as claimed; chance alone would give about 1.5." in said
    assert "median of the printed ones is 1.00" in said and "2 intervals known is 1.75" in said
    alone = conclusion.said_of_effects(seen.iloc[2:3])
    assert "no interval is known" in alone and "zero:" not in alone
    assert "chance" not in conclusion.said_of_effects(seen.iloc[4:])


def test_the_count_of_what_was_measured_and_decided():
    words = ["holds"] * 2 + ["fails"] + ["inconclusive"] * 3 + ["tried"] * 4 + ["not run"] * 5
    said = conclusion.said_of_scale(pd.DataFrame({"verdict": words}), "fast")
    assert "At `fast`, 10 of 15 claims" in said and "seconds on a CPU: 4 of these." in said
    assert "3 are decided" in said
    tried = conclusion.said_of_scale(pd.DataFrame({"verdict": words[6:]}), "fast")
    assert "seconds on a CPU: all of these." in tried and "decided" not in tried
    open_ones = conclusion.said_of_scale(pd.DataFrame({"verdict": words[3:6]}), "fast")
    assert open_ones.endswith("None is decided.") and "stand-in" not in open_ones


def test_what_the_printed_numbers_speak_against():
    "By hand, and those that the notes of claims.csv name."
    found = conclusion.contradicted(claims.claim_table()).set_index("id")
    named = [c for c in found.index if "contradict its text here" in found.note[c]]
    noted = published.claims().set_index("id").note
    assert set(named) == {c for c in noted.index if "contradict its text here" in noted[c]}
    assert len(found) - len(named) <= 1 and found.thesis["5.1-wrn28-over-bat-cw-20"] < 0
    told_so = judged_lines(
        {"id": "5.1-m2at-over-pgd-pgd-20", "direction": ">", "thesis": 1.0},
        {"id": "5.1-m2at-best-fgsm", "direction": ">", "thesis": 0.0},
        {"id": "5.1-m2at-best-pgd-10", "direction": "<", "thesis": 0.1},
        {"id": "5.1-m2at-fgsm-equals-pgd-10", "direction": "=", "thesis": 2.9},
        {"id": "5.1-m2at-fgsm-equals-pgd-20", "direction": "=", "thesis": -3.1},
        {"id": "5.1-m2at-best-pgd-20", "direction": ">", "thesis": math.nan},
    )
    told_so = told_so.assign(claim="", note="")
    there = conclusion.contradicted(told_so).id.str.removeprefix("5.1-m2at-").tolist()
    assert there == ["best-fgsm", "best-pgd-10", "fgsm-equals-pgd-20"]


# ---- the picture


def test_the_picture_has_every_claim_and_an_empty_disk_says_what_to_run(smoke):
    made = conclusion.figure_8_ours(smoke)
    bars, points = made.figure.axes
    counts = published.claims().chapter.value_counts()
    assert sorted(int(t.get_text()) for t in bars.texts) == sorted(counts)
    assert "thesis-repro reproduce --preset smoke" in points.texts[0].get_text()
    assert len(made.frame) == len(published.claims()) and made.frame.measured.isna().all()
    assert made.frame.printed.isna().all() and not made.failed


def test_the_picture_shows_what_was_measured(smoke):
    leave(smoke, "5.1", accuracies("5.1", {AVMIXUP: (30.0, 31.0), M2AT: (28.0, 28.5)}, STAND_IN))
    made = conclusion.figure_8_ours(smoke)
    points = made.figure.axes[1]
    assert not points.texts
    there = made.frame.dropna(subset="measured").set_index("id")
    drawn = [line for line in points.lines if line.get_marker() == "o"]
    ys = sorted(y for line in drawn for y in line.get_ydata())
    assert ys == sorted(there.measured) and there.measured["5.1-m2at-over-avmixup-pgd-20"] == -2.25
    low, high = points.get_ylim()
    ends = there[["low", "high"]].stack()
    assert low == -high and low < ends.min() and ends.max() < high


# ---- the notebook


def test_it_is_chapter_8_and_comes_last():
    (own,) = notebooks.chapters("8")
    assert own == notebooks.chapters("conclusion")[0] and notebooks.faults(own) == []
    assert [n for n in notebooks.chapters() if notebooks.comes_last(n)] == [own]
    mine, theirs = (notebooks.parameters(n) for n in (own, *notebooks.chapters("7")))
    assert [(n, p.type, p.default) for n, p in mine.items()] == [
        (n, p.type, p.default) for n, p in theirs.items()
    ]


@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.parametrize("stems", [("05_m2at", "08_conclusion", "advprop"), ("08_conclusion",)])
def test_the_order_of_a_reproduction(monkeypatch, smoke, jobs, stems):
    from thesis_repro import commands

    done, preset = [], dataclasses.replace(smoke, jobs=jobs, device="cpu")

    def execute(chapter, *_):
        done.append(chapter.stem)
        return chapter.stem != "advprop", {}  # also when one of the others failed

    def side_by_side(preset, chapters, *how):
        assert jobs > 1 and "08_conclusion" not in [c.stem for c in chapters]
        yield from ((c, execute(c)) for c in reversed(chapters))

    monkeypatch.setattr(commands, "_execute", execute)
    monkeypatch.setattr(commands, "_side_by_side", side_by_side)
    chapters = notebooks.chapters(",".join(stems))
    outcomes = dict(commands._executed(preset, chapters, {}, None))
    assert done[-1] == "08_conclusion" and sorted(done) == sorted(stems)
    assert [c.stem for c, o in outcomes.items() if not o[0]] == [s for s in stems if s == "advprop"]


def test_it_is_executed_alone_with_nothing_on_the_disk(tmp_path, tiny):  # noqa: F811
    command = [sys.executable, "-m", "thesis_repro", "reproduce", "--preset", "tiny"]
    how = {"env": tiny, "cwd": tmp_path, "capture_output": True, "text": True}
    done = subprocess.run([*command, "--chapter", "8"], **how)
    assert done.returncode == 0, done.stderr[-2000:]
    home = tmp_path / "outputs" / "tiny"
    assert (home / "figures" / "figure_8_ours.png").exists() and not list(home.glob("runs/*"))
    cells = nbformat.read(home / "notebooks" / "08_conclusion.ipynb", 4).cells
    said = json.dumps([c.get("outputs", []) for c in cells], ensure_ascii=False)
    assert "Nothing is measured at `tiny` yet" in said
    assert "thesis-repro reproduce --preset tiny --chapter virtual_positives" in said
    assert (home / "report" / "chapter_08_conclusion.html").exists()


def test_a_plan_of_it_has_nothing_to_make(smoke, capsys):
    found = plan.plan("smoke", chapter="8", device="cpu")
    assert found["tasks"] == [] and found["not_predicted"] == ["figure 8.ours"]
    assert main(["plan", "--preset", "smoke", "--chapter", "8", "--device", "cpu"]) == 0
    assert "nothing" in capsys.readouterr().out.splitlines()


def test_references_that_travel_with_the_project_are_asked(monkeypatch, tmp_path):
    assert {"reference/adversarial-cpu", "reference/mixing-cpu"} <= {*conclusion.kept_references()}
    found = conclusion.shown_references().reset_index()
    own = found[found.preset == "reference/adversarial-cpu"]
    assert "Aim 2: robust, and accurate" in set(own.subject)
    mixing = found[found.preset == "reference/mixing-cpu"]
    assert "Aim 3: mixup with an adversary" in set(mixing.subject)
    # one run each: nothing is tried, and nothing is decided
    one_run = own[own.measured.str.endswith(", 1 run")]
    assert len(one_run) and set(one_run.verdict) == {"≈ inconclusive"}
    monkeypatch.setenv("THESIS_REPRO_OUTPUTS", str(tmp_path))
    assert conclusion.shown_references().empty
