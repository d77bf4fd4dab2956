"""The report as files: links, order, hostile texts, a reader's own files, no network."""

import json
import re
import shutil
from urllib.parse import unquote

import pandas as pd
import pytest
from exhibits import DATA, MACHINE, NASTY, STAND_IN, TINY, Page, drawn, made

from thesis_repro import artefacts, cli, pages, published, registry, report, settings
from thesis_repro.files import atomic_json, atomic_write, sha256
from thesis_repro.store import Store
from thesis_repro.tables import Cell

MATH = "Before $x^2$ and\n\n$$\\min_\\theta \\frac{a}{b}$$\n\n"
LINKS = "[the rule](../evidence/051_verdicts.ipynb), [here](#The-idea), [one more](08_more.ipynb)"
LIBRARY = "#| export\n#| slow\ndef half(x):\n    return x / 2"


def notebook(*cells, **facts):
    "An executed notebook of (kind, source) cells."
    code, listed = {"execution_count": 1, "outputs": []}, []
    for i, (kind, source) in enumerate(cells):
        cell = {"id": f"c{i}", "cell_type": kind, "metadata": {}, "source": source}
        listed.append(cell | (code if kind == "code" else {}))
    about = {"metadata": {"thesis_repro": facts}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps({"cells": listed, **about})


def diverged(folder, reason):
    "A run that diverged."
    facts = {"reason": reason, "run": {}}
    digest = sha256(json.dumps(facts, sort_keys=True).encode())
    atomic_json(folder / "diverged.json", facts | {"sha256": digest})


def filled(outputs):
    "A preset with tables, a figure, notebooks, runs that diverged or are damaged; its front page."
    cells = [Cell("AIP", "Best / SVHN", (97.5, 97.6))]
    cells.append(Cell("Manifold mixup", "Best / SVHN", (98.5, 98.7)))
    cells.append(Cell("AIP", "Best / CIFAR-10", (97.0, 97.2), STAND_IN, "%", STAND_IN))
    made(cells).save()
    made([], "7.5").save()
    drawn(data=DATA).save()
    idea = (
        "markdown",
        f"# Chapter 7: AIP\n\n## The idea\n\n{MATH}{LINKS}\n\n## Table 7.1: accuracy",
    )
    hidden = ("code", "#| hide\nimport os"), ("code", "#| default_exp aip")
    facts = {"status": "completed", "seconds": 95.0, "commit": "abc123"}
    texts = {"07_aip": notebook(idea, *hidden, ("code", LIBRARY), **facts)}
    texts["08_more"] = notebook(status="stopped", error="cell 9: stopped by SIGINT")
    texts["09 more & more"] = notebook(status="failed", error="its kernel died")
    for name, text in texts.items():
        atomic_write(outputs / "notebooks" / f"{name}.ipynb", text)
    runs = outputs / "runs" / "aip" / "table_7_1"
    diverged(runs / "a-seed-0-0123456789ab", "the loss is nan")
    for name in ("done", "record.json"):
        atomic_write(runs / "b-seed-0-0123456789ab" / name, "{")
    cost = {"seconds": 3600.0, "device": "cuda", "threads": 8}
    atomic_json(outputs / "measurements" / "robustness-0.json", {"value": 1, "cost": cost})
    atomic_json(outputs / "measurements" / "robustness-1.json", {"value": 1})
    return pages.write_report("smoke")


@pytest.fixture(autouse=True)
def no_chapters(monkeypatch):
    "Nothing is registered but what a test registers."
    monkeypatch.setattr(registry, "TABLES", {})
    monkeypatch.setattr(registry, "load_chapters", lambda chapter="": None)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    "The outputs of a filled preset, made once."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "load_chapters", lambda chapter="": None)
        patch.setenv("THESIS_REPRO_OUTPUTS", str(tmp_path_factory.mktemp("original")))
        return filled(artefacts.folder("smoke")).parents[1]


@pytest.fixture
def front(original, outputs):
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
            if not there or (anchor and anchor not in found[file or name].ids):
                lost.append(f"{name}: {link}")
    return lost


# ---- links


def test_every_link_and_permalink_leads_somewhere(front):
    assert not dead(front)
    names = "index table_7_1 table_7_5 figure_7_2 chapter_07_aip chapter_08_more"
    expected = {f"{n}.html" for n in [*names.split(), "chapter_09_more_more"]}
    assert {p.name for p in front.parent.glob("*.html")} == expected
    links = {unquote(link) for page in parsed(front).values() for link in page.links}
    assert {f"files/table_7_1.{s}" for s in ("csv", "md", "tex", "json")} <= links
    assert {f"files/figure_7_2.{s}" for s in ("png", "pdf", "csv", "json")} <= links
    claim = "#claim-7.1-aip-over-manifold-best-svhn"
    inside = {"#table_7_1", "#table_7_2", "#figure_7_2", claim, "#eq-7.12", "#findings-7"}
    assert inside <= links and "files/07_aip.ipynb" in links


def test_a_row_of_ones_own_has_a_page_of_its_own_and_changes_nothing_else(front, outputs):
    "It was on the disk and nowhere in the report."
    before = {f: f.read_bytes() for f in (outputs / "tables").iterdir()}
    counted = re.findall(r"<b>(\d+(?: of \d+)?)</b>", front.read_text(encoding="utf-8"))
    cells = [Cell("AIP", "Best / SVHN", (97.5, 97.6)), Cell("Soft <&>", "Best / SVHN", (1.0, 2.0))]
    to = outputs / "also-Soft" / "tables"
    made(cells, own=("Soft <&>",), to=to).save()
    pages.write_report("smoke")
    name = "table_7_1_also-Soft.html"
    found = parsed(front)
    assert not dead(front) and name in found["index.html"].links
    own, thesis = found[name], found["table_7_1.html"]
    assert "Soft <&>: a row of your own, not the thesis’s and in no score" in own.text
    assert "Soft <&>your own" in own.text and name in thesis.links
    assert "Soft" not in thesis.text.replace("Table 7.1 with Soft <&>, a row of your own", "")
    again = front.read_text(encoding="utf-8")
    assert re.findall(r"<b>(\d+(?: of \d+)?)</b>", again) == counted
    assert before == {f: f.read_bytes() for f in (outputs / "tables").iterdir()}
    copied = front.parent / "files"
    assert (copied / "table_7_1.csv").read_bytes() == before[outputs / "tables" / "table_7_1.csv"]
    assert "Soft" in (copied / "table_7_1_also-Soft.csv").read_text(encoding="utf-8")
    assert "Soft" not in (outputs / "results.csv").read_text(encoding="utf-8")
    shutil.rmtree(outputs / "also-Soft")
    pages.write_report("smoke")
    assert not (front.parent / name).exists()


def test_every_page_has_a_box_that_leads_to_every_table_and_equation(front):
    "It is hidden until the script shows it; that its links lead somewhere, `dead` checks."
    for file in front.parent.glob("*.html"):
        text = file.read_text(encoding="utf-8")
        places = dict(re.findall(r'<option value="([^"]*)" data-link="([^"]*)">', text))
        assert '<form class="jump" role="search" hidden>' in text and len(places) > 150
        assert places["Table 7.1"] == "table_7_1.html"  # made
        assert places["Table 6.7"] == "index.html#table_6_7"  # not made
        assert places["Equation 6.7"] == "index.html#eq-6.4"  # a part of another's item
        assert places["Chapter 7"] == "chapter_07_aip.html" and "sys-aip" in places


def test_the_old_front_page_leads_to_the_report(front, outputs):
    page = Page((outputs / "index.html").read_text(encoding="utf-8"))
    assert [(outputs / link).resolve() for link in page.links] == [front.resolve()]


def test_the_folder_is_complete_without_what_is_around_it(front, tmp_path):
    moved = front.parent.rename(tmp_path / "sent")
    assert not dead(moved / "index.html")


def test_nothing_comes_from_the_network_and_the_page_is_whole_without_its_script(front):
    foreign = re.compile(r"(src|srcset|<link[^>]*href)=\"?(https?:)?//|@import|url\(")
    for file in front.parent.glob("*.html"):
        text = file.read_text(encoding="utf-8")
        assert not foreign.search(text), file.name
        assert 'name="viewport"' in text and "prefers-color-scheme: dark" in text
    text = front.read_text(encoding="utf-8")
    rows = re.findall(r'<tr id="claim-[^>]*>', text)
    assert len(rows) == len(published.claims()) and not any("hidden" in r for r in rows)
    assert '<div class="controls" hidden>' in text  # only the script shows what only it can serve


# ---- what the pages say, and in which order


def test_what_failed_comes_first_and_findings_come_before_claims(front):
    page = Page(front.read_text(encoding="utf-8"))
    text = page.text
    order = [
        "What failed",
        "Stopped",
        "Not the thesis’s scale",
        "Findings\n",
        "Claims\n",
        "Atlas\n",
    ]
    places = [text.index(title) for title in order]
    assert places == sorted(places)
    failed, stopped = text[places[0] : places[1]], text[places[1] : places[2]]
    assert "its kernel died" in failed and "diverged: the loss is nan" in failed
    assert "1 cannot be read" in failed and "SIGINT" not in failed
    assert "stopped by SIGINT" in stopped and "goes on where it was stopped" in stopped
    assert "digits10 stands in for CIFAR-10" in text[places[2] : places[3]]
    findings = text[places[3] : places[4]]
    claim = "AIP is more accurate than manifold mixup on SVHN"
    assert claim in findings and "fails" in findings and "fails 1" in findings


def test_the_report_tells_what_is_what(front):
    found = parsed(front)
    text = found["index.html"].text
    for said in ("A <fast> CPU & co, 2 cores", "abc123", "Chapter 7: AIP", "Executed in 95 s"):
        assert said in text
    for absent in ("Table 7.2", "Table 7.4", "Figure 7.1", "Figure 7.3"):
        words = "(Not made at this preset yet: thesis-repro|Not written yet)"
        assert re.search(rf"{absent}#[^#]+{words}", text), absent
    atlas = text[text.index("Atlas\n") :]
    assert atlas.index("Table 7.1") < atlas.index("Table 7.2") < atlas.index("Table 7.5")
    assert "1.00 GPU-hours of 2 attacks" in text and f"{STAND_IN}: 1 cell of Table 7.1" in text
    assert "table 5.1" in text and "Table 5.1" not in text  # a chapter with nothing is one line
    assert "Chapter 7" in text and "Chapter advprop" not in text  # a companion is no chapter
    page = found["table_7_1.html"].text
    assert "AIP is more accurate than manifold mixup on SVHN" in page and "97.55" in page
    links = {n: found[f"{n}.html"].links for n in ("table_7_1", "table_7_5")}
    assert "chapter_07_aip.html#Table-7.1:-accuracy" in links["table_7_1"]
    assert "chapter_07_aip.html" in links["table_7_5"]  # it has no heading of its own


def test_a_chapter_is_readable_offline_and_without_what_is_meant_for_nbdev(front):
    page = parsed(front)["chapter_07_aip.html"]
    assert page.tags.count("math") == 2 and "mfrac" in page.tags and "$" not in page.text
    assert "#The-idea" in page.links and "chapter_08_more.html" in page.links
    assert "the rule" in page.text and not any("051_verdicts" in link for link in page.links)
    assert "half" in page.text and "Code · library" in page.text
    assert "#|" not in page.text and "import os" not in page.text and "default_exp" not in page.text


def test_a_report_of_nothing_tells_that(outputs):
    front = pages.write_report("smoke")
    text = Page(front.read_text(encoding="utf-8")).text
    assert "Nothing here decides a claim" in text and "No table or figure was made" in text
    assert "No notebook was executed" in text and not dead(front) and "What failed" not in text


def test_a_report_at_the_thesis_scale_has_no_banner(outputs):
    made([Cell("AIP", "Best / SVHN", (97.0, 97.2))], preset="thesis", data="").save()
    text = pages.write_report("thesis").read_text(encoding="utf-8")
    assert "Not the thesis’s scale" not in text
    assert "Not the thesis’s scale" in pages.write_report("fast").read_text(encoding="utf-8")


def test_a_trial_with_other_settings_tells_which(outputs, registered):
    registered(registered.preset("smoke", **TINY), train=False)
    front = pages.write_report(settings.load("smoke", **TINY))
    assert front.parents[1].name == settings.load("smoke", **TINY).variant
    text = Page(front.read_text(encoding="utf-8")).text
    assert "--preset smoke --set epochs=1" in text and "trial with other settings" in text
    assert not (outputs / "report").exists()


# ---- damage and hostile texts

SCRIPT = '"><script>alert(1)</script><i>'


def scripts(front):
    "How many scripts and italics the pages of a report have."
    found = [page.tags for page in parsed(front).values()]
    return sum(t.count("script") for t in found), sum(t.count("i") for t in found)


def test_nasty_labels(outputs):
    made([Cell(NASTY, 'x" onload="y', (1.0, 2.0), 'a "reason" <i>')], title=SCRIPT).save()
    front = pages.write_report("smoke")
    found = parsed(front)
    for page in (found["index.html"], found["table_7_1.html"]):
        assert "<script>alert(1)" in page.text
    text = found["table_7_1.html"].text
    assert NASTY in text and 'x" onload="y' in text and scripts(front) == (len(found), 0)


def test_a_script_in_any_text_that_comes_from_outside_is_only_shown(outputs, registered):
    tiny = registered.preset("smoke", **TINY)
    registered(tiny)
    for folder in Store(tiny).folders():
        file, record = folder / "record.json", json.loads((folder / "record.json").read_text())
        machine = dict.fromkeys(("processor", "gpu", "commit", "cores"), SCRIPT)
        record |= {"environment": machine | {"versions": {SCRIPT: SCRIPT}}, "label": SCRIPT}
        record |= {"repeatable": SCRIPT, "cost": {"device": SCRIPT, "seconds": SCRIPT}}
        record |= {"home": SCRIPT, "code": {SCRIPT: SCRIPT}}
        record["data"] |= {"name": SCRIPT, "stand_in": SCRIPT}
        file.write_text(json.dumps(record))
        marks = json.loads((folder / "done").read_text())
        marks["record.json"] = sha256(file.read_bytes())
        (folder / "done").write_text(json.dumps(marks))
    diverged(outputs / "runs" / "a" / "b" / "c-seed-0-0123456789ab", SCRIPT)
    registered(tiny, train=False)
    error = {"status": "failed", "error": SCRIPT, "hardware": SCRIPT, "commit": SCRIPT}
    book = json.loads(notebook(("markdown", "# A & B"), ("code", SCRIPT), **error))
    said = {"output_type": "stream", "name": "stdout", "text": SCRIPT}
    book["cells"][1]["outputs"] = [said, said | {"name": "stderr"}]
    book = json.dumps(book)
    atomic_write(artefacts.folder(tiny) / "notebooks" / "07_aip.ipynb", book)
    made([], "7.5", where=SCRIPT, failed={SCRIPT: SCRIPT}, data=SCRIPT, code=SCRIPT).save()
    drawn(data=SCRIPT, origin=artefacts.provenance(MACHINE | {"commit": SCRIPT})).save()
    for front in (pages.write_report(settings.load("smoke", **TINY)), pages.write_report("smoke")):
        found = parsed(front)
        text = "".join(page.text for page in found.values())
        assert scripts(front) == (len(found), 0) and text.count("<script>alert(1)") > 5


def test_half_a_character_in_a_record_costs_nothing(outputs):
    atomic_write(outputs / "notebooks" / "07_aip.ipynb", notebook(status="failed", error="\ud800"))
    assert "What failed" in pages.write_report("smoke").read_text(encoding="utf-8")


def test_damage_is_shown_and_the_rest_remains(front, outputs):
    (outputs / "tables" / "table_7_1.json").write_text('{"kind": "table"')
    (outputs / "tables" / "table_7_5.csv").write_text("row,column\n1,2\n")
    (outputs / "figures" / "figure_7_2.pdf").unlink()
    (outputs / "notebooks" / "07_aip.ipynb").write_text("{")
    with pytest.warns(UserWarning):
        front = pages.write_report("smoke")
    text = Page(front.read_text(encoding="utf-8")).text
    failed = text[text.index("What failed") : text.index("Stopped")]
    for said in ("table_7_1.json: cannot be used", "table_7_5.csv was changed after it was made"):
        assert said in failed
    assert "figure_7_2.pdf" in failed and "07_aip.ipynb cannot be read" in failed
    assert not dead(front) and not (front.parent / "chapter_07_aip.html").exists()


# ---- files


def test_the_report_repeats_byte_for_byte(front, outputs):
    def contents():
        return {p: p.read_bytes() for p in (outputs / "report").rglob("*") if p.is_file()}

    pages.write_report("smoke")
    before = contents()
    pages.write_report("smoke")
    assert contents() == before


def test_what_a_report_left_is_removed_and_what_a_reader_put_there_is_not(front, outputs):
    own = [front.parent / name for name in ("notes.txt", "files/mine.csv", "own/figure.png")]
    for file in own:
        file.parent.mkdir(exist_ok=True)
        file.write_text("mine")
    for file in (outputs / "tables").glob("table_7_5.*"):
        file.unlink()
    pages.write_report("smoke")
    assert [file.read_text() for file in own] == ["mine"] * 3
    assert not (front.parent / "table_7_5.html").exists()
    assert not (front.parent / "files" / "table_7_5.csv").exists()
    assert (front.parent / "table_7_1.html").exists()


@pytest.mark.parametrize("listed", ['["../tables/table_7_1.csv", "/etc/hostname"]', "{", "[[1]]"])
def test_a_list_of_files_that_was_changed_removes_nothing_elsewhere(front, outputs, listed):
    (front.parent / "files.json").write_text(listed)
    before = (outputs / "tables" / "table_7_1.csv").read_bytes()
    pages.write_report("smoke")
    assert (outputs / "tables" / "table_7_1.csv").read_bytes() == before


def test_the_command(outputs, capsys, monkeypatch):
    assert cli.main(["report"]) == 2
    assert "thesis-repro reproduce --preset smoke" in capsys.readouterr().err
    made([Cell("AIP", "Best / SVHN", (97.0, 97.2))]).save()
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)
    assert cli.main(["report", "--open"]) == 0
    front = outputs / "report" / "index.html"
    assert capsys.readouterr().out.strip() == str(front) and opened == [front.as_uri()]
    assert len(json.loads((outputs / "claims.json").read_text())) == len(published.claims())
    [cell] = (
        pd.read_csv(outputs / "results.csv", dtype=str).query("ours == ours").to_dict("records")
    )
    assert cell["table"] == "7.1" and (cell["row"], cell["column"]) == ("AIP", "Best / SVHN")
    assert cell["values"] == "97.0 97.2" and cell["preset"] == "smoke"
    monkeypatch.setattr("webbrowser.open", lambda url: False)
    assert cli.main(["report", "--open"]) == 2 and str(front) in capsys.readouterr().err
    assert cli.main(["claims"]) == 0
    assert "Claims judged on the thesis's data: " in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["report", "--shut"])


@pytest.mark.parametrize(
    "function, number, chapter",
    [
        ("thesis_repro.second.figure_2_2", "2.2", "02_second"),
        ("thesis_repro.first.table_2_9", "2.9", "02_1_first"),
        ("", "2.7", "02_1_first"),
        ("thesis_repro.second.figure_2_2", "3.1", None),
    ],
)
def test_an_exhibit_leads_to_the_notebook_that_makes_it(tmp_path, function, number, chapter):
    books = []
    for stem in ("02_1_first", "02_second"):
        atomic_write(tmp_path / f"{stem}.ipynb", notebook(("markdown", "# It"), status="failed"))
        books.append(report.book(tmp_path / f"{stem}.ipynb"))
    found = pages._book_of(report.Exhibit("figure", number, "It", function=function), books)
    assert (found and found.path.stem) == chapter
