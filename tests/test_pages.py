"""The report as files: every link and anchor, what is missing, damage, repeatability, and nothing from the network."""

import json
import re
import shutil
from urllib.parse import unquote

import pandas as pd
import pytest
from test_report import NASTY, STAND_IN, Page, drawn, made, outputs  # noqa: F401

from thesis_repro import cli, pages, published, report
from thesis_repro.report import Cell
from thesis_repro.runs import environment

MATH = "Before $x^2$ and\n\n$$\\min_\\theta \\frac{a}{b}$$\n\n[the rule](../evidence/50_published.ipynb), [here](#The-idea)"
RECORD = {
    "cost": {"seconds": 1800.0, "device": "cpu", "threads": 2},
    "environment": environment(),
    "repeatable": "bitwise on this machine",
}


def notebook(*cells, **facts):
    "A notebook of (kind, source) cells with the facts of its execution."
    code = {"execution_count": 1, "outputs": []}
    listed = [
        {
            "id": f"c{i}",
            "cell_type": kind,
            "metadata": {},
            "source": source,
            **(code if kind == "code" else {}),
        }
        for i, (kind, source) in enumerate(cells)
    ]
    return json.dumps(
        {"cells": listed, "metadata": {"thesis_repro": facts}, "nbformat": 4, "nbformat_minor": 5}
    )


def filled(outputs):  # noqa: F811
    "A preset with two tables, a figure, two notebooks (one failed), two records (one damaged) and judged claims."
    made(
        [
            Cell("AIP", "Best / SVHN", (97.0, 97.2)),
            Cell("AIP", "Best / CIFAR-10", (97.0, 97.2), STAND_IN),
        ]
    ).save()
    made([], "7.5").save()
    drawn(sets={"CIFAR-10": "digits10"}).save()
    cells = ("markdown", "# Chapter 7: AIP\n\n## The idea\n\n" + MATH), ("code", "#| export\n1 < 2")
    texts = {"07_aip": notebook(*cells, status="completed", seconds=95.0, commit="abc123")}
    texts["08 more & more"] = notebook(status="failed", error="its kernel died")
    for name, text in texts.items():
        report.atomic_write(outputs / "notebooks" / f"{name}.ipynb", text)
    report.atomic_json(outputs / "runs" / "aip" / "table_7_1" / "a" / "record.json", RECORD)
    report.atomic_write(outputs / "runs" / "aip" / "table_7_1" / "b" / "record.json", "{")
    report.atomic_json(
        outputs / "runs" / "aip" / "table_7_1" / "c" / "diverged.json",
        {"reason": "the loss is nan"},
    )
    cost = {"seconds": 3600.0, "device": "cuda", "threads": 8}
    report.atomic_json(outputs / "measurements" / "robustness-0.json", {"value": 1, "cost": cost})
    report.atomic_json(outputs / "measurements" / "robustness-1.json", {"value": 1})
    claims = published.claim_table(*report.saved_values("smoke")[:1], chapter=7)
    report.atomic_json(outputs / "claims.json", claims.to_dict("records"))
    return pages.write_report("smoke")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    "The outputs of a filled preset, made once."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THESIS_REPRO_OUTPUTS", str(tmp_path_factory.mktemp("original")))
        return filled(report.folder("smoke")).parents[1]


@pytest.fixture
def front(original, outputs):  # noqa: F811
    "The front page of a copy of them."
    shutil.copytree(original, outputs)
    return outputs / "report" / "index.html"


def parsed(front):
    "Every page of a report by its name."
    return {p.name: Page(p.read_text(encoding="utf-8")) for p in front.parent.glob("*.html")}


def dead(front):
    "The links of a report that lead nowhere."
    found, lost = parsed(front), []
    for name, page in found.items():
        for link in [*page.links, *page.sources]:
            file, _, anchor = unquote(link).partition("#")
            if link.startswith(("data:", "https:")):
                continue
            there = (front.parent / (file or name)).is_file()
            lost += (
                []
                if there and (not anchor or anchor in found[file or name].ids)
                else [f"{name}: {link}"]
            )
    return lost


def test_every_link_and_permalink_leads_somewhere(front):
    assert not dead(front)
    assert {p.name for p in front.parent.glob("*.html")} == {
        "index.html", "table_7_1.html", "table_7_5.html", "figure_7_2.html", "chapter_07_aip.html", "chapter_08_more_more.html",
    }  # fmt: skip
    names = {unquote(link) for page in parsed(front).values() for link in page.links}
    assert {f"files/table_7_1.{s}" for s in ("csv", "md", "tex", "json")} <= names
    assert {
        f"files/figure_7_2.{s}" for s in ("png", "pdf", "csv", "json")
    } <= names and "files/07_aip.ipynb" in names
    assert {
        "#table_7_1",
        "#table_7_2",
        "#figure_7_2",
        "#claim-7.1-aip-over-manifold-best-svhn",
        "#eq-7.12",
    } <= names


def test_the_old_front_page_leads_to_the_report(front, outputs):  # noqa: F811
    page = Page((outputs / "index.html").read_text(encoding="utf-8"))
    assert [(outputs / link).resolve() for link in page.links] == [front.resolve()]


def test_the_folder_is_complete_without_what_is_around_it(front, tmp_path):
    moved = front.parent.rename(tmp_path / "sent")
    assert not dead(moved / "index.html")


def test_nothing_comes_from_the_network_and_the_page_is_whole_without_its_script(front):
    for file in front.parent.glob("*.html"):
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"(src|srcset|<link[^>]*href)=\"?(https?:)?//|@import|url\(", text), (
            file.name
        )
        assert 'name="viewport"' in text and "prefers-color-scheme:dark" in text
    text = front.read_text(encoding="utf-8")
    rows = re.findall(r'<tr id="claim-[^>]*>', text)
    assert len(rows) == len(published.claims(7)) and not any("hidden" in r for r in rows)
    assert (
        '<div class="controls" hidden>' in text
    )  # what only the script can serve is shown by the script


def test_the_report_says_what_is_what(front):
    found = parsed(front)
    text = found["index.html"].text
    for said in (
        "digits10 stands in for CIFAR-10",
        "A <fast> CPU & co, 2 cores",
        "abc123",
        "Chapter 7: AIP",
    ):
        assert said in text
    for absent in ("Table 7.2", "Table 7.4", "Figure 7.1", "Figure 7.3"):
        command = f"thesis-repro {absent.lower()} --preset smoke"
        assert re.search(rf"{absent}#[^#]+Not made at this preset yet: {command}", text), absent
    atlas = text[text.index("Atlas\n") :]
    assert atlas.index("Table 7.1") < atlas.index("Table 7.2") < atlas.index("Table 7.5")
    assert (
        "failed: its kernel died" in text
        and "AIP is more accurate than manifold mixup on SVHN" in text
    )
    assert "1.00 core-hours of training in 1 runs" in text and "1 cannot be read" in text
    assert "diverged: the loss is nan" in text and "1.00 GPU-hours of attacks" in text
    assert "2 attacks and other measurements" in text
    assert "Executed in 95 s" in text and f"{STAND_IN} — 1 cell of Table 7.1" in text
    assert (
        "table 5.1" in text and "Table 5.1" not in text
    )  # a chapter of which nothing is there is one line
    assert "AIP is more accurate than manifold mixup on SVHN" in found["table_7_1.html"].text
    assert "thesis_repro.aip.table_7_1" in found["table_7_1.html"].text


def test_a_chapter_is_readable_offline(front):
    page = parsed(front)["chapter_07_aip.html"]
    assert page.tags.count("math") == 2 and "mfrac" in page.tags and "$" not in page.text
    assert (
        "#The-idea" in page.links
        and not any("50_published" in link for link in page.links)
        and "the rule" in page.text
    )


def test_a_report_of_nothing_says_so(outputs):  # noqa: F811
    front = pages.write_report("smoke")
    text = Page(front.read_text(encoding="utf-8")).text
    assert "No claim has been judged" in text and "No table or figure has been made" in text
    assert "No notebook has been executed" in text and not dead(front)


def test_nasty_labels(outputs):  # noqa: F811
    t = made(
        [Cell(NASTY, 'x" onload="y', (1.0, 2.0), 'a "reason" <i>')],
        title="<script>alert(1)</script>",
    )
    t.save()
    found = parsed(pages.write_report("smoke"))
    for page in (found["index.html"], found["table_7_1.html"]):
        assert (
            "<script>alert(1)" in page.text
            and "i" not in page.tags
            and page.tags.count("script") <= 1
        )
    assert NASTY in found["table_7_1.html"].text and 'x" onload="y' in found["table_7_1.html"].text


def test_damage_is_shown_and_the_rest_remains(front, outputs):  # noqa: F811
    (outputs / "tables" / "table_7_1.json").write_text('{"kind": "table"')
    (outputs / "tables" / "table_7_5.csv").write_text("row,column\n1,2\n")
    (outputs / "figures" / "figure_7_2.pdf").unlink()
    (outputs / "figures" / "figure_7_2.png").write_bytes(b"\x89PNG no more")
    (outputs / "claims.json").write_text("[1, 2]")
    (outputs / "notebooks" / "07_aip.ipynb").write_text("{")
    front = pages.write_report("smoke")
    text = Page(front.read_text(encoding="utf-8")).text
    for said in (
        "table_7_1.json: cannot be used",
        "table_7_5.csv: cannot be used",
        "figure_7_2.png is damaged",
    ):
        assert said in text
    assert "claims.json cannot be used" in text and "07_aip.ipynb cannot be read" in text
    assert not dead(front) and not (front.parent / "chapter_07_aip.html").exists()


def test_the_report_repeats_byte_for_byte_and_leaves_nothing_stale(front, outputs):  # noqa: F811
    contents = lambda: {p: p.read_bytes() for p in (outputs / "report").rglob("*") if p.is_file()}
    (outputs / "report" / "files" / "old.png").write_text("of an earlier report")
    pages.write_report("smoke")
    before = contents()
    pages.write_report("smoke")
    assert contents() == before and not any(p.name == "old.png" for p in before)


def test_claims_may_be_given(outputs):  # noqa: F811
    claims = pd.DataFrame(
        [{"claim": "seven is a number", "verdict": "holds", "unit": "points", "ours": 7.0}]
    )
    text = Page(pages.write_report("smoke", claims).read_text(encoding="utf-8")).text
    assert "seven is a number" in text and "7.00 points" in text


def test_the_command(outputs, capsys, monkeypatch):  # noqa: F811
    assert cli.main(["report"]) == 2
    assert "thesis-repro reproduce --preset smoke" in capsys.readouterr().err
    made([Cell("AIP", "Best / SVHN", (97.0, 97.2))]).save()
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)
    assert cli.main(["report", "--open"]) == 0
    front = outputs / "report" / "index.html"
    assert capsys.readouterr().out.strip() == str(front) and opened == [front.as_uri()]
    assert len(json.loads((outputs / "claims.json").read_text())) == len(published.claims())
    monkeypatch.setattr("webbrowser.open", lambda url: False)
    assert cli.main(["report", "--open"]) == 2 and str(front) in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["report", "--shut"])
