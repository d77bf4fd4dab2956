"A table, a figure, and a page that was taken apart: for the tests of what shows results."

from html.parser import HTMLParser

import pandas as pd

from thesis_repro import artefacts
from thesis_repro.artefacts import Figure, Table, provenance
from thesis_repro.measures import Recorded, planned_row
from thesis_repro.mixup import Mixup, Plain
from thesis_repro.recipes import Classify
from thesis_repro.runs import Named, Run
from thesis_repro.tables import compare
from thesis_repro.training import Length

MACHINE = {"processor": "A <fast> CPU & co", "cores": 2, "gpu": "", "commit": "abc123"}
MACHINE |= {"versions": {"torch": "2.11"}}
DATA = "Data: digits10 stands in for CIFAR-10."
STAND_IN = "stand-in digits10"
NASTY = r"AIP (w/ input_layer) & 100% | <b>$x^2$</b> #1 \{~}"
VOID = {"meta", "link", "img", "br", "input", "rect"}


def made(cells, table="7.1", **more):
    "A Table of some cells."
    about = {"number": table, "title": "accuracies", "where": "Section 7.3.2", "preset": "smoke"}
    about |= {"data": DATA, "origin": provenance(MACHINE), "frame": compare(table, cells)}
    return Table(**about | more)


def drawn(**more):
    "A Figure with two numbers behind it."
    with artefacts.style():
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(3, 2))
        axes.plot([0, 1], [0, 1], label="λ")
        axes.set_xlabel("λ of $L'$")
    about = {"number": "7.2", "title": "a line", "preset": "smoke", "origin": provenance(MACHINE)}
    numbers = pd.DataFrame({"λ": [0.0, 1.0], "loss": [1 / 3, 2 / 3]})
    return Figure(**about | {"figure": figure, "frame": numbers} | more)


class Page(HTMLParser):
    "Links, ids and texts of a page; each of its tags must be closed where it should be."

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.sources, self.tags = [], [], [], []
        self.ids, self.text = set(), ""
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        facts = dict(attributes)
        self.tags.append(tag)
        self.ids.add(facts.get("id"))
        self.links += [facts[k] for k in ("href", "data-link") if k in facts]
        self.sources += [facts["src"]] if "src" in facts else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.text += data if self.open and self.open[-1] not in ("style", "script") else ""


# A table of two rows for the register, whose runs take a second each.
COLUMNS = {"Last / CIFAR-10": Recorded("last.accuracy"), "Best / CIFAR-10": Recorded()}
TINY = {
    "seeds": 2,
    "epochs": 1,
    "train_size": 100,
    "test_size": 50,
    "width": 0.03,
    "device": "cpu",
    "jobs": 1,
}


def thesis_run(method):
    "A run as the thesis has it."
    recipe = Classify("preactresnet18", method)
    home = {"home": "tests/table_7_1", "label": type(method).__name__}
    return Run(Named("cifar10", part="CIFAR-10"), recipe, Length(500), **home)


def plan(preset, parts):
    "The cells of the table."
    rows = {"Baseline": Plain(), "mixup": Mixup()}
    found = [planned_row(preset, r, thesis_run(m), COLUMNS, parts) for r, m in rows.items()]
    return {place: planned for row in found for place, planned in row.items()}
