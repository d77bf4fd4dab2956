"""Published beside measured: order, verdicts, reasons, and labels that mean something elsewhere."""

import math
import re
import statistics

import pytest
from exhibits import NASTY, STAND_IN, Page, made

from thesis_repro import tables, verdicts
from thesis_repro.files import BadInput
from thesis_repro.published import published
from thesis_repro.tables import SIGNS, Cell, compare

PLACE = ("AIP", "Best / CIFAR-10")


def line_of(frame, row="AIP", column="Best / CIFAR-10"):
    "The line of one cell."
    (line,) = frame[(frame.row == row) & (frame.column == column)].to_dict("records")
    return line


# ---- the comparison


def test_order_numbers_and_verdicts_against_plain_statistics():
    ours = (96.1, 96.6, 96.2)
    cells = [Cell("new row", "Best / SVHN", (1.0,)), Cell(*PLACE, ours)]
    frame, printed = compare("7.1", cells), published("7.1")
    places = [*zip(printed.row, printed.column, strict=True), ("new row", "Best / SVHN")]
    assert list(zip(frame.row, frame.column, strict=True)) == places
    line = line_of(frame)
    mean, std = statistics.mean(ours), statistics.stdev(ours)
    assert line["ours"] == pytest.approx(mean) and line["ours_std"] == pytest.approx(std)
    assert line["n"] == 3 and line["delta"] == pytest.approx(mean - 96.97)
    margin = verdicts.cell_margin(printed, *PLACE)
    expected = verdicts.cell_verdict(ours, 96.97, 0.16, 5, margin)
    assert (line["verdict"], line["margin"]) == (expected.verdict, margin)
    assert frame.iloc[-1].verdict == "ours only" and math.isnan(frame.iloc[-1].thesis)
    assert set(frame.verdict) <= set(SIGNS)


def test_a_cell_that_cannot_be_compared_shows_its_number_without_a_verdict():
    line = line_of(compare("7.1", [Cell(*PLACE, (97.0, 97.1), STAND_IN)]))
    assert line["verdict"] == "not comparable" and line["ours"] == pytest.approx(97.05)
    assert line["reason"] == line["incomparable"] == STAND_IN
    assert line_of(compare("7.1", [Cell(*PLACE, (), STAND_IN)]))["verdict"] == "not run"


def test_lost_runs_are_named_and_keep_their_places():
    line = line_of(compare("7.1", [Cell(*PLACE, (97.0, None, float("inf"), 97.1))]))
    assert (line["n"], line["verdict"]) == (2, "not comparable")
    assert line["reason"] == "2 of 4 runs gave no number"
    assert [math.isnan(v) for v in line["values"]] == [False, True, True, False]


def test_bad_cells():
    twice = [Cell("AIP", "Best / SVHN", (1.0,)), Cell("AIP", "Best / SVHN", (2.0,))]
    with pytest.raises(BadInput, match=r"AIP, Best / SVHN is given twice"):
        compare("7.1", twice)
    with pytest.raises(BadInput, match="unknown table"):
        compare("9.9", [])


def test_a_quoted_number_is_marked_and_judged_only_with_runs_of_ours():
    assert line_of(compare("7.1", []), "MetaMixup")["verdict"] == "cited"
    cells = [Cell("MetaMixup", "Best / CIFAR-10", (20.0, 20.1))]
    t = made([*cells, Cell("MetaMixup", "Last / SVHN", (9.0,))])
    line = line_of(t.frame, "MetaMixup")
    assert line["verdict"] == "fails" and line["delta"] == pytest.approx(20.05 - 96.88)
    assert line_of(t.frame, "MetaMixup", "Last / SVHN")["verdict"] == "ours only"  # a dash there
    assert "MetaMixup†" in t._repr_html_() and "MetaMixup†" in tables.as_markdown(t)
    assert r"MetaMixup\textdagger{}" in tables.as_latex(t)


def test_the_thesis_own_method_is_not_taken_for_our_measurement():
    "In every format a row such as “Ours + MAIL” has a note; a row of ours alone has none."
    row, column = "ResNet-18 / Ours + MAIL", "CIFAR-10 / Clean"
    t = made([Cell(row, column, (80.0, 80.1)), Cell("ours", column, (70.0,))], "6.1")
    said = "“ours” in a row's name is the thesis's word for its own method"
    texts = (
        t._repr_html_().replace("&#39;", "'"),
        tables.as_markdown(t),
        tables.as_latex(t),
        t.text(),
    )
    signs = "<sup>{}</sup>", "<sup>{}</sup>", r"\textsuperscript{{{}}}", "  [{}]"
    number = len(tables.layout(t)["notes"])
    for text, sign in zip(texts, signs, strict=True):
        assert text.count(f"Ours + MAIL{sign.format(number)}") == 2, text  # of two networks
        assert said in text.replace("``", "“").replace("''", "”")
    (alone,) = (r for r in tables.layout(t)["rows"] if r["name"] == "ours")
    assert not alone["note"]


# ---- labels that mean something elsewhere


def cells_of(line):
    "The cells of a Markdown line."
    return re.split(r"(?<!\\)\|", line)[1:-1]


def test_nasty_labels_in_markdown():
    reason = "why | not\nthen"
    nasty = Cell(NASTY, "Best / SVHN", (1.0, 2.0), reason), Cell("AIP", "a | b_c", (1.0, 2.0))
    text = tables.as_markdown(made(nasty))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(cells_of(line)) for line in lines} == {10}
    row = next(line for line in lines if r"input\_layer" in line)
    for part in ("&amp; 100%", r"\|", r"\<b\>", r"\$x^2\$"):
        assert part in row
    assert "<b>" not in row and r"why \| not then" in text


def unescaped(text, character):
    return len(re.findall(r"(?<!\\)" + re.escape(character), text.replace("\\\\", "")))


def test_nasty_labels_in_latex():
    nasty = [Cell(NASTY, "Best / SVHN", (1.0, 2.0), "because_of {this} ^ & that")]
    text = tables.as_latex(made(nasty, title="100% & more_"))
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    row = next(line for line in body.splitlines() if r"input\_layer" in line)
    first = r"AIP (w/ input\_layer) \& 100\% \textbar{} "
    assert first + r"\textless{}b\textgreater{}\$x\textasciicircum{}2\$" in row
    assert r"\#1 \textbackslash{}\{\textasciitilde{}\}" in row
    lines = [s for s in body.splitlines() if s.endswith(r"\\") and "multicolumn" not in s]
    assert {unescaped(line, "&") for line in lines} == {9}
    assert unescaped(body, "{") == unescaped(body, "}") and unescaped(body, "$") % 2 == 0
    assert unescaped(body, "%") == 1  # the one that ends the line of \resizebox
    assert r"because\_of \{this\} \textasciicircum{} \& that" in text and r"100\% \& more\_" in text
    assert text.isascii()


CAPTIONS = {"7.1": "Thesis table 7.1", "7.1.ours": "Table 7.1.ours", "advprop.3": "Table advprop.3"}


@pytest.mark.parametrize("number", CAPTIONS)
def test_only_what_the_thesis_prints_is_called_the_thesis(number):
    t = made([Cell("a", "b", (1.0,))], number, where="")
    assert rf"\caption{{{CAPTIONS[number]}: accuracies}}" in tables.as_latex(t)
    assert number == "7.1" or "thesis" not in (t.text() + tables.as_html(t)).lower()


def test_nasty_labels_in_html():
    nasty = [Cell(NASTY, 'x" onload="y', (1.0, 2.0), 'a "reason" <i>')]
    page = Page(made(nasty, title="<script>alert(1)</script>")._repr_html_())
    for text in (NASTY, 'x" onload="y', 'a "reason" <i>', "<script>alert(1)"):
        assert text in page.text
    assert "script" not in page.tags and "i" not in page.tags


# ---- what is missing, and how numbers look


def test_reasons_are_notes_in_every_format():
    t = made([Cell("AIP", "Best / SVHN", (), "its run stopped: the disk is full")])
    said = "its run stopped: the disk is full"
    html, md, tex = t._repr_html_(), tables.as_markdown(t), tables.as_latex(t)
    assert f"<li>{said}</li>" in html and f'title="{said}"' in html
    number = re.search(rf"^(\d+)\. {said}$", md, re.M)[1]
    row = next(line for line in md.splitlines() if line.startswith("| AIP |"))
    assert f"97.91 ± 0.04<br>not run<sup>{number}</sup>" in row
    assert rf"\textsuperscript{{{number}}} {said}." in tex
    assert re.search(r"Best / SVHN +97\.91 ± 0\.04 +not run \[\d\]", t.text()), t.text()


def test_the_table_of_a_terminal_has_one_line_per_cell():
    text = made([Cell(*PLACE, (95.0, 95.1, 95.2))]).text()
    (line,) = [s for s in text.splitlines() if "95.10" in s]
    assert re.search(r"96\.97 ± 0\.16 +95\.10 ± 0\.10 \(3\) +−1\.87 +fails$", line)
    assert max(map(len, text.split("\n\n")[1].splitlines())) < 100


def test_a_row_with_nothing_printed_has_no_line_of_dashes():
    "One cell that was not run brought a line `published` of dashes back into every row of 5.ours."
    cells = [Cell("PGD", "Clean", (40.0,)), Cell("PGD", "AA", (), "not run yet")]
    cells += [Cell("none", "Clean", (), "not run yet"), Cell("none", "AA", (), "not run yet")]
    t = made(cells, "5.ours")
    rows = [[label for label, _ in row["lines"]] for row in tables.layout(t)["rows"]]
    assert rows == [["ours", "verdict"], ["verdict"]]
    assert ">published</th>" not in t.html("")
    assert re.search(r"^  Clean +40\.00 \(1\) +ours only$", t.text(), re.M), t.text()
    assert "| **40.00** (1)<br>ours only |" in tables.as_markdown(t)
    assert "& published &" not in tables.as_latex(t)


def test_no_column_is_a_line_of_dashes():
    "AutoAttack, which smoke leaves out, was a column of dashes in every table of chapter 6."
    t = made([Cell("AIP", "Best / CIFAR-10", (96.0,))])
    for text in (t.text(), t.html(""), tables.as_markdown(t), tables.as_latex(t)):
        assert "—" not in text and "& ---" not in text
    cells = [Cell("PGD", "Clean", (40.0,)), Cell("PGD", "AA", (), "not run yet")]
    cells += [Cell("TRADES", "Clean", (41.0,)), Cell("TRADES", "AA", (), "not run yet")]
    t = made(cells, "5.ours")
    assert "| PGD | **40.00** (1)<br>ours only | not run" in tables.as_markdown(t)
    assert "—" not in t.text()


def test_a_reason_says_for_how_many_runs_it_is():
    def of(reason, *values):
        return Cell("PGD", "Clean", values, reason).reason

    gone = float("nan")
    assert of("10 epochs; not run yet", 1.0, gone) == "10 epochs; 1 of 2 runs not run yet"
    assert of("not measured yet", gone, gone, 1.0) == "2 of 3 runs not measured yet"
    assert of("diverged: so", 1.0, gone) == "diverged: so; 1 of 2 runs gave no number"
    assert of("", 1.0, gone) == "1 of 2 runs gave no number"
    assert of("not run yet", gone) == of("not run yet", gone, gone) == "not run yet"
    for reason in ("10 epochs; not run yet", ""):  # a cell that is read again says it once
        assert of(once := of(reason, 1.0, gone), 1.0, gone) == once


def test_seconds_keep_their_digits():
    cells = [Cell("elapsed time [s]", "AIP", (0.0712, 0.0714), "another machine", unit="s")]
    text = made(cells, "7.5").text()
    assert re.search(r"0\.1758 +0\.07130 ± 0\.00014 \(2\) +−0\.10454 +not comparable", text), text
