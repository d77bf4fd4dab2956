"""Tables and figures: escaping, what is missing, where they were made, repeatability."""

import json
import math
import os
import re
import statistics
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from thesis_repro import published, report
from thesis_repro.report import Cell, Figure, Table, compare, provenance
from thesis_repro.settings import BadInput

MACHINE = {
    "processor": "A <fast> CPU & co",
    "cores": 2,
    "gpu": "",
    "commit": "abc123",
    "versions": {"torch": "2.11"},
}
STAND_IN = "digits10 stands in for CIFAR-10"
NASTY = r"AIP (w/ input_layer) & 100% | <b>$x^2$</b> #1 \{~}"
VOID = {"meta", "link", "img", "br", "input"}


def made(cells, table="7.1", **more):
    return Table(
        **{
            "number": table,
            "title": "accuracies",
            "where": "Thesis, section 7.3.2",
            "preset": "smoke",
            "sets": {"CIFAR-10": "digits10"},
            "origin": provenance(MACHINE),
            "frame": compare(table, cells),
        }
        | more
    )


def drawn(**more):
    with report.style():
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(3, 2))
        axes.plot([0, 1], [0, 1], label="λ")
        axes.set_xlabel("λ of $L'$")
    data = pd.DataFrame({"λ": [0.0, 1.0], "loss": [1 / 3, 2 / 3]})
    about = {"number": "7.2", "title": "a line", "preset": "smoke", "origin": provenance(MACHINE)}
    return Figure(figure=figure, data=data, **about | more)


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    monkeypatch.setenv("THESIS_REPRO_OUTPUTS", str(tmp_path / "outputs"))
    return tmp_path / "outputs" / "smoke"


class Page(HTMLParser):
    "Links, ids, texts and whether every tag is closed where it should be."

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.sources, self.ids, self.tags, self.text = (
            [],
            [],
            [],
            set(),
            [],
            "",
        )
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        facts = dict(attributes)
        self.tags.append(tag)
        self.ids.add(facts.get("id"))
        self.links += [facts["href"]] if "href" in facts else []
        self.sources += [facts["src"]] if "src" in facts else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.text += data if self.open and self.open[-1] != "style" else ""


# ---- the comparison


def test_order_numbers_and_verdicts_against_plain_statistics():
    ours = (96.1, 96.6, 96.2)
    frame = compare(
        "7.1", [Cell("new row", "Best / SVHN", (1.0,)), Cell("AIP", "Best / CIFAR-10", ours)]
    )
    printed = published.published("7.1")
    assert list(zip(frame.row, frame.column, strict=True)) == [
        *zip(printed.row, printed.column, strict=True),
        ("new row", "Best / SVHN"),
    ]
    line = frame[(frame.row == "AIP") & (frame.column == "Best / CIFAR-10")].iloc[0]
    mean, std = statistics.mean(ours), statistics.stdev(ours)
    assert (line.ours, line.ours_std, line.n) == (pytest.approx(mean), pytest.approx(std), 3)
    assert line.delta == pytest.approx(mean - 96.97)
    assert line.verdict == published.evaluate_cell(96.97, 0.16, ours).verdict
    assert frame.iloc[-1].verdict == "ours only" and math.isnan(frame.iloc[-1].thesis)
    assert set(frame.verdict) <= {
        "holds",
        "fails",
        "inconclusive",
        "not measured",
        "cited",
        "ours only",
    }


def test_margin_decides():
    cell = [Cell("AIP", "Best / CIFAR-10", (96.5, 96.6, 96.55))]
    of = lambda frame: frame[frame.n > 0].verdict.item()
    assert of(compare("7.1", cell)) == "holds" and of(compare("7.1", cell, margin=0.1)) == "fails"


def test_a_cell_that_cannot_be_compared_shows_its_number_without_a_verdict():
    frame = compare("7.1", [Cell("AIP", "Best / CIFAR-10", (97.0, 97.1), STAND_IN)])
    line = frame[frame.n > 0].iloc[0]
    assert (line.verdict, line.reason) == ("not measured", STAND_IN) and line.ours == pytest.approx(
        97.05
    )


def test_lost_runs_are_said_and_keep_their_seats():
    cell = Cell("AIP", "Best / CIFAR-10", (97.0, None, float("inf"), 97.1))
    line = compare("7.1", [cell]).query("n > 0").iloc[0]
    assert (line.n, line.verdict, line.reason) == (2, "not measured", "2 of 4 runs gave no number")
    assert [math.isnan(v) for v in line["values"]] == [False, True, True, False]


def test_bad_cells():
    with pytest.raises(BadInput, match=r"AIP, Best / SVHN is given twice"):
        compare("7.1", [Cell("AIP", "Best / SVHN", (1.0,)), Cell("AIP", "Best / SVHN", (2.0,))])
    with pytest.raises(BadInput, match="unknown table"):
        compare("9.9", [])


def test_quoted_numbers_are_never_judged():
    frame = compare(
        "7.1",
        [
            Cell("MetaMixup", "Best / CIFAR-10", (20.0, 20.1)),
            Cell("MetaMixup", "Last / SVHN", (9.0,)),
        ],
    )
    meta = frame[frame.row == "MetaMixup"].set_index("column")
    assert meta.verdict["Best / CIFAR-10"] == "cited" and meta.delta[
        "Best / CIFAR-10"
    ] == pytest.approx(20.05 - 96.88)
    assert meta.verdict["Last / SVHN"] == "ours only"  # the thesis prints a dash there
    assert "MetaMixup†" in made([])._repr_html_() and "MetaMixup†" in report._markdown(made([]), "")
    assert r"MetaMixup\textdagger{}" in report._latex(made([]))


# ---- escaping


def cells_of(line):
    "A Markdown table row without its escaped bars."
    return re.split(r"(?<!\\)\|", line)[1:-1]


def test_nasty_labels_in_markdown():
    t = made(
        [
            Cell(NASTY, "Best / SVHN", (1.0, 2.0), "why | not\nthen"),
            Cell("AIP", "a | b_c", (1.0, 2.0)),
        ]
    )
    lines = [line for line in report._markdown(t, "").splitlines() if line.startswith("|")]
    assert {len(cells_of(line)) for line in lines} == {10} and len(lines) == 2 + 6
    row = next(line for line in lines if r"input\_layer" in line)
    assert (
        "&amp; 100%" in row
        and r"\|" in row
        and r"\<b\>" in row
        and r"\$x^2\$" in row
        and "<b>" not in row
    )
    assert r"why \| not then" in report._markdown(t, "")


def unescaped(text, character):
    return len(re.findall(r"(?<!\\)" + re.escape(character), text.replace("\\\\", "")))


def test_nasty_labels_in_latex():
    t = made(
        [Cell(NASTY, "Best / SVHN", (1.0, 2.0), "because_of {this} ^ & that")], title="100% & more_"
    )
    text = report._latex(t)
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    row = next(line for line in body.splitlines() if r"input\_layer" in line)
    assert (
        r"AIP (w/ input\_layer) \& 100\% \textbar{} \textless{}b\textgreater{}\$x\textasciicircum{}2\$"
        in row
    )
    assert r"\#1 \textbackslash{}\{\textasciitilde{}\}" in row
    lines = [
        line for line in body.splitlines() if line.endswith(r"\\") and "multicolumn" not in line
    ]
    assert {unescaped(line, "&") for line in lines} == {9}
    assert unescaped(body, "{") == unescaped(body, "}") and unescaped(body, "$") % 2 == 0
    assert unescaped(body, "%") == 1  # the one that ends the line of \resizebox
    assert r"because\_of \{this\} \textasciicircum{} \& that" in text and r"100\% \& more\_" in text
    assert text.isascii()


def test_nasty_labels_in_html():
    t = made(
        [Cell(NASTY, 'x" onload="y', (1.0, 2.0), 'a "reason" <i>')],
        title="<script>alert(1)</script>",
    )
    page = Page(t._repr_html_())
    assert NASTY in page.text and 'x" onload="y' in page.text and 'a "reason" <i>' in page.text
    assert "script" not in page.tags and "i" not in page.tags and "<script>alert(1)" in page.text


# ---- what is missing


def test_reasons_are_notes_in_every_format():
    t = made([Cell("AIP", "Best / SVHN", (), "its run stopped: the disk is full")])
    html, md, tex = t._repr_html_(), report._markdown(t, ""), report._latex(t)
    assert (
        "<li>its run stopped: the disk is full</li>" in html
        and 'title="its run stopped: the disk is full"' in html
    )
    number = re.search(r"^(\d+)\. its run stopped: the disk is full$", md, re.M)[1]
    row = next(line for line in md.splitlines() if line.startswith("| AIP |"))
    assert cells_of(row)[7].strip() == f"97.91 ± 0.04<br>not measured<sup>{number}</sup>"
    assert rf"\textsuperscript{{{number}}} its run stopped: the disk is full." in tex
    assert t.wide().loc["AIP", "Best / SVHN"] == "97.91 ± 0.04 | — | — | not measured"


def test_wide_is_readable():
    t = made([Cell("AIP", "Best / CIFAR-10", (95.0, 95.1, 95.2))])
    assert (
        t.wide().loc["AIP", "Best / CIFAR-10"] == "96.97 ± 0.16 | 95.10 ± 0.10 (3) | −1.87 | fails"
    )
    assert list(t.wide().index) == list(dict.fromkeys(published.published("7.1").row))


def test_seconds_keep_their_digits():
    t = made(
        [Cell("elapsed time [s]", "AIP", (0.0712, 0.0714), "another machine", unit="s")], "7.5"
    )
    assert (
        t.wide().loc["elapsed time [s]", "AIP"]
        == "0.1758 | 0.07130 ± 0.00014 (2) | −0.1045 | not measured"
    )


# ---- where it was made


def test_every_file_of_a_table_says_where_it_was_made(tmp_path):
    files = {
        p.suffix: p.read_text()
        for p in made([Cell("AIP", "Best / SVHN", (97.0, 97.2))]).save(tmp_path)
    }
    assert set(files) == {".csv", ".md", ".tex", ".json"}
    for text in files.values():
        words = re.sub(r'[\\"]', "", text)
        assert (
            "smoke" in words and "digits10" in words and "CIFAR-10" in words and "abc123" in words
        )
        assert "fast" in words and "CPU" in words and not re.search(r"\b20\d\d-\d\d-\d\d", text)
    assert json.loads(files[".json"])["runs"] == "2 runs a cell."


def test_machines_of_several_records_are_all_named():
    other = MACHINE | {
        "gpu": "NVIDIA H100",
        "cores": 1,
        "commit": "def456",
        "versions": {"torch": "2.15"},
    }
    facts = provenance(MACHINE, other, MACHINE)
    assert (
        facts["hardware"]
        == "A <fast> CPU & co, 2 cores; A <fast> CPU & co, 1 core with NVIDIA H100"
    )
    assert facts["commit"] == "abc123, def456" and facts["versions"] == {"torch": "2.11, 2.15"}


def test_real_data_is_not_called_a_stand_in():
    sets = {
        "CIFAR-10": "cifar10",
        "SVHN": "svhn_extra",
        "CIFAR-100": "cifar10",
        "Tiny ImageNet": "npz:a/b.npz",
    }
    assert report.stand_ins(sets) == {"CIFAR-100": "cifar10"}
    assert report.stand_ins({"CIFAR-10": "cifar100"}) == {"CIFAR-10": "cifar100"}
    words = "Data: the real CIFAR-10, SVHN; cifar10 stands in for CIFAR-100; the file b.npz as Tiny ImageNet."
    assert report.data_words(sets) == words


# ---- files


def test_a_table_comes_back_from_its_files(tmp_path):
    cells = [Cell(NASTY, "NA", (1 / 3, None), STAND_IN), Cell("AIP", "Best / SVHN", (97.0, 97.2))]
    before = made(cells)
    before.save(tmp_path)
    after = report.read_table(tmp_path / "table_7_1.json")
    pd.testing.assert_frame_equal(after.frame, before.frame)
    assert after._repr_html_() == before._repr_html_() and after.facts() == before.facts()


def test_figures_carry_their_facts_and_no_date(tmp_path):
    from PIL import Image

    files = {p.suffix: p for p in drawn(n=2, sets={"CIFAR-10": "digits10"}).save(tmp_path)}
    text = Image.open(files[".png"]).text
    assert (
        text["Title"] == "Figure 7.2: a line"
        and "digits10" in text["Description"]
        and "abc123" in text["Description"]
    )
    assert "2 runs" in text["Description"]
    pdf = files[".pdf"].read_bytes()
    assert b"CreationDate" not in pdf and b"digits10" in pdf
    assert pd.read_csv(files[".csv"]).loss.tolist() == [1 / 3, 2 / 3]


MAKE = """
import sys
sys.path.insert(0, sys.argv[1])
from test_report import drawn, made, Cell
drawn().save(sys.argv[2])
made([Cell("AIP", "Best / SVHN", (97.0, 97.2))]).save(sys.argv[2])
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
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    with report.style():
        assert mpl.rcParams["font.family"] == ["DejaVu Sans"]
    assert dict(mpl.rcParams) == before


def test_a_figure_is_shown_once():
    import matplotlib.pyplot as plt

    figure = drawn()
    assert not plt.get_fignums() and figure._repr_png_().startswith(b"\x89PNG")
    again = Figure(
        number="7.2",
        title="a line",
        figure=figure.figure,
        data=figure.data,
        origin=provenance(MACHINE),
    )
    assert sum(t.get_gid() == "made" for t in again.figure.texts) == 1


@pytest.mark.parametrize("artefact", [made([]), drawn()])
def test_a_folder_that_cannot_be_written(tmp_path, artefact):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BadInput, match="cannot be written") as error:
        artefact.save(tmp_path / "file" / "tables")
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)
    assert (tmp_path / "file").read_text() == "in the way"


# ---- values for the claims


def test_claims_read_what_was_saved(outputs):
    cells = [
        Cell("AIP", "Best / SVHN", (97.0, None, 97.4)),
        Cell("Manifold mixup", "Best / SVHN", (96.0, 96.1), STAND_IN),
    ]
    made(cells).save()
    drawn(cells=(Cell("pairs", "one maximum", (0.9, float("nan")), unit="share"),)).save()
    values, why = report.saved_values("smoke")
    assert values["figure_7_2", "pairs", "one maximum"][0] == 0.9 and len(values) == 3
    assert values["table_7_1", "Manifold mixup", "Best / SVHN"] == (96.0, 96.1)
    assert why["table_7_1", "Manifold mixup", "Best / SVHN"] == STAND_IN
    claims = published.claim_table(values, 7, why).set_index("id")
    line = claims.loc["7.1-aip-over-manifold-best-svhn"]
    assert (
        line.n > 0 and line.ours == pytest.approx(97.2 - 96.05, abs=0.2) and STAND_IN in line.reason
    )


def test_damaged_artefacts_are_left_out_of_the_claims_and_named(outputs):
    made([Cell("AIP", "Best / SVHN", (97.0, 97.2))]).save()
    made([], "7.5").save()
    drawn().save()
    (outputs / "tables" / "table_7_5.csv").write_text("row,column\n1,2\n")
    figure = json.loads((outputs / "figures" / "figure_7_2.json").read_text())
    (outputs / "figures" / "figure_7_2.json").write_text(
        json.dumps(figure | {"cells": [{"rows": 1}]})
    )
    with pytest.warns(UserWarning, match="cannot be used") as said:
        values, _ = report.saved_values("smoke")
    assert {Path(str(w.message).split(":")[0]).stem for w in said} == {"table_7_5", "figure_7_2"}
    assert {name for name, _, _ in values} == {"table_7_1"}
