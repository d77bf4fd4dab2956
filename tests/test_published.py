"""The printed numbers are what was printed, and the verdicts are what statistics says they should be."""

import hashlib
import itertools
import math
import re

import numpy as np
import pytest
from scipy import stats

from thesis_repro import paths
from thesis_repro.published import (
    Moments,
    claim_table,
    claims,
    difference,
    evaluate_cell,
    evaluate_claim,
    moments,
    published,
    quantity_cells,
    quantity_interval,
    tables,
    thesis_values,
    verdict_rule,
)
from thesis_repro.settings import BadInput

# One digest over every printed cell (row, column, value, std, cited), so that no number can change unseen.
DIGESTS = {
    "table_5_1": "df00b3380d741b7881cd24a2842cb935ba24d3471c6719a1dda4b8d46e82f4d3",
    "table_5_2": "406ccc4614e161365bcd18d6102208e9990f137a2484d1f4fd1296c83219e5d5",
    "table_5_3": "34832611acb8914b69372d2d3feacc5585ce534c6cedf3160ff3b01070f17a83",
    "table_5_4": "4365bcc6afd8bff690cd030853736255b71ef797080ac95e13cf6a0eca030095",
    "table_6_1": "e4ab08f0d11d106e42f5a301a2370a4402f33c236a34a393cc99b7f1b038c7ac",
    "table_6_2": "6824c8f7bf00f9a288f6b48ba5ab561bf81a833da17909fa2132416ddcee5eff",
    "table_6_3": "bd005d2545382e8c1689986417802b935d6b71c7b557c1afe8d7d2cfae8fb60e",
    "table_6_4": "ce05fa7beeb7b67f6f1eb14060900b8c1692616d334da019007b7549c94e0edf",
    "table_6_5": "2270cae778465053aa82a869f422b4e2fda3ee63a4f3d7d537078acd708a1f7d",
    "table_6_6": "4bb26f2d615cc1c32b009bbcc6ac465aa6b51873ef4de7618e7b3b014cfe7381",
    "table_6_7": "e86d32df5680f1ed87e199a79066b51030c4136becf3ea8594a17a336b6917bf",
    "table_6_8": "d62df17b61c7a8ddf4b110f589cd81bf9efef1a587aa24bc71a08abdced24bc1",
    "table_7_1": "64b6d6b5a047ce822e1626008dadbfcb53f4951a88588b271d233d2207ca4356",
    "table_7_2": "5761966da377d2f0f7cbe507609b66cb2603701df34f8773fa7c363fb780c361",
    "table_7_3": "f3ba1c4b81d0af499729110c012c394cb52c2f2207fba27e44a59aa65edbddfb",
    "table_7_4": "3427dcf4f1524efa86a1c206e7365095de3dbe55442faa1ebb0096c3812b8873",
    "table_7_5": "f52aab33f8e89bdab28fadb265d86836e86555fbcb07072ce975437015962d4e",
}


def cell(table, row, column):
    t = published(table).set_index(["row", "column"])
    return t.loc[(row, column)]


def own(folder, monkeypatch, name, text):
    "A project whose data/published holds one file."
    (folder / "data" / "published").mkdir(parents=True, exist_ok=True)
    (folder / "data" / "published" / name).write_text(text, encoding="utf-8")
    monkeypatch.setenv("THESIS_REPRO_ROOT", str(folder))


# ---- the files


@pytest.mark.parametrize("table", DIGESTS)
def test_no_printed_number_changes(table):
    lines = [
        f"{c.row}|{c.column}|{c.value:.6f}|{c.std:.2f}|{c.cited}"
        for c in published(table).itertuples()
    ]
    assert hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest() == DIGESTS[table]


def test_tables_have_the_cells_that_the_thesis_prints():
    shape = {
        t: (published(t).row.nunique(), published(t).column.nunique(), len(published(t)))
        for t in DIGESTS
    }
    assert shape == {
        "table_5_1": (13, 5, 56),
        "table_5_2": (5, 2, 10),
        "table_5_3": (7, 3, 21),
        "table_5_4": (4, 3, 9),
        "table_6_1": (10, 5, 50),
        "table_6_2": (10, 5, 50),
        "table_6_3": (10, 5, 50),
        "table_6_4": (10, 5, 50),
        "table_6_5": (8, 5, 40),
        "table_6_6": (8, 5, 40),
        "table_6_7": (6, 6, 36),
        "table_6_8": (4, 5, 20),
        "table_7_1": (5, 8, 40),
        "table_7_2": (10, 6, 60),
        "table_7_3": (4, 6, 24),
        "table_7_4": (2, 4, 8),
        "table_7_5": (1, 3, 3),
    }
    assert set(tables()) == set(shape)
    assert not any(published(t).duplicated(["row", "column"]).any() for t in shape)


def test_pinned_cells():
    c = cell("7.1", "AIP", "Best / Tiny ImageNet")
    assert (c.value, c["std"]) == (64.27, 0.18)
    assert cell("7.2", "WideResNet28-10 / AIP", "Last / SVHN")["std"] == 0.20
    assert cell("7.2", "PreActResNet34 / MetaMixup", "Best / CIFAR-10").value == 97.49
    assert cell("7.3", "CIFAR-100", "20").value == 79.38
    assert cell("7.5", "elapsed time [s]", "AIP").value == 0.175844
    assert cell("5.1", "CIFAR-10 / M2AT", "PGD-20").value == 80.66
    assert cell("5.1", "CIFAR-100 / M2AT (a.s.)", "FGSM").value == 43.05
    assert cell("5.2", "TRADES (1/λ = 6)", "PGD-20").value == 56.61
    assert cell("5.3", "Masking + LS", "PGD-20").value == 42.46
    assert cell("5.4", "M2AT", "AVmixup").value == 80.82
    for table, row, column, value, std in (
        ("6.1", "WRN34-10 / Ours + WMMR", "AA", 47.50, 0.17),
        ("6.2", "ResNet-18 / MAIL", "CW-PGD", 25.68, 0.26),
        ("6.3", "ResNet-18 / Standard", "Clean", 83.84, 0.171),
        ("6.4", "ResNet-18 / Ours + WMMR", "Clean", 58.07, 1.35),
        ("6.5", "WRN34-10 / EWAT", "CW-PGD", 52.55, 1.16),
        ("6.6", "ResNet-18 / GAIRAT", "AA", 15.66, 0.20),
        ("6.7", "WRN34-10 / τ = 4", "CIFAR-10 / APGD-CE", 62.09, 0.47),
        ("6.8", "Best / w/o sim.", "PGD-100", 61.35, 0.17),
    ):
        c = cell(table, row, column)
        assert (c.value, c["std"]) == (value, std)


def test_a_misprint_stays_as_it_is_printed_and_is_noted():
    noted = {
        (t, c.row, c.column): c.note
        for t in tables()
        if t < "table_7"
        for c in published(t).itertuples()
        if c.note and not c.cited
    }
    assert set(noted) == {
        ("table_6_3", "ResNet-18 / Standard", "Clean"),
        ("table_6_4", "ResNet-18 / Ours + WMMR", "Clean"),
    }
    assert all("printed" in n for n in noted.values())


def test_what_chapter_5_quotes_is_marked_and_what_it_leaves_out_is_left_out():
    t = published("5.1")
    quoted = {"CIFAR-10 / BAT", "CIFAR-10 / AVmixup (quoted)", "CIFAR-100 / AVmixup (quoted)"}
    assert set(t[t.cited == 1].row) == quoted and t[t.row.isin(quoted)].cited.all()
    assert t[t.cited == 1].note.str.startswith("quoted by the thesis from its reference").all()
    there = {row: set(part.column) for row, part in t.groupby("row")}
    assert there.pop("CIFAR-10 / BAT") == {"Clean", "FGSM", "PGD-20", "CW-20"}
    assert all(len(v) == 5 for r, v in there.items() if r.startswith("CIFAR-10 /"))
    assert {r: len(v) for r, v in there.items() if r.startswith("CIFAR-100 /")} == {
        "CIFAR-100 / PGD": 3,
        "CIFAR-100 / AVmixup (quoted)": 3,
        "CIFAR-100 / AVmixup": 3,
        "CIFAR-100 / M2AT (a.s.)": 4,
        "CIFAR-100 / M2AT (rand)": 4,
    }
    assert not (published("5.4").row == published("5.4").column).any()
    assert all(published(t)["std"].isna().all() for t in tables() if t.startswith("table_5"))
    assert all(published(t)["std"].notna().all() for t in tables() if t.startswith("table_6"))


# The same runs are printed in more than one table: (table, row, column) of one and of the other.
FIVE = ["Clean", "PGD-100", "CW-PGD", "APGD-CE", "AA"]
NETS, OURS = ("ResNet-18", "WRN34-10"), ("Ours + WMMR", "Ours + MAIL")


def twice_printed():
    for ablated, row in (("LS", "PGD with LS"), ("Masking + Mixing + LS", "M2AT")):
        yield from (
            (("5.3", ablated, c), ("5.1", f"CIFAR-10 / {row}", c))
            for c in ("Clean", "FGSM", "PGD-20")
        )
    for late, early in (("6.5", "6.1"), ("6.6", "6.2")):
        yield from (
            ((late, f"{n} / {m}", c), (early, f"{n} / {m}", c))
            for n in NETS
            for m in OURS
            for c in FIVE
        )
    chosen = {
        (n, s): 3 if (n, s) == ("ResNet-18", "CIFAR-100") else 2
        for n in NETS
        for s in ("CIFAR-10", "CIFAR-100")
    }
    for (n, s), tau in chosen.items():
        late = {
            c: ("6.7", f"{n} / τ = {tau}", f"{s} / {c}") for c in ("Clean", "CW-PGD", "APGD-CE")
        }
        yield from (
            (place, ("6.1" if s == "CIFAR-10" else "6.2", f"{n} / Ours + MAIL", c))
            for c, place in late.items()
        )
    for model, early in (("Last", "6.1"), ("Best", "6.3")):
        yield from (
            (("6.8", f"{model} / w/ sim.", c), (early, "WRN34-10 / Ours + MAIL", c)) for c in FIVE
        )


def test_what_is_printed_twice_is_the_same_number():
    pairs = list(twice_printed())
    assert len(pairs) == 6 + 40 + 12 + 10
    for late, early in pairs:
        a, b = cell(*late), cell(*early)
        assert a.value == b.value and (a["std"] == b["std"] or late[0] == "5.3"), (late, early)


# Tables 6.1 to 6.4 mark with an arrow where "Ours" is better than the method that it extends (first letters of FIVE; G: APGD-CE).
ARROWS = {
    "6.1": ("PG", "CPG", "PWGA", "CPG"),
    "6.2": ("CPWGA", "CG", "CWA", "CP"),
    "6.3": ("CPG", "CPG", "CWA", "CPG"),
    "6.4": ("CWA", "C", "CPWGA", "C"),
}


@pytest.mark.parametrize("table", ARROWS)
def test_the_numbers_bear_out_the_printed_arrows(table):
    rows = [(n, m) for n in NETS for m in OURS]
    for (network, ours), arrows in zip(rows, ARROWS[table], strict=True):
        base = ours.removeprefix("Ours + ")
        for letter, c in zip("CPWGA", FIVE, strict=True):
            up = (
                cell(table, f"{network} / {ours}", c).value
                > cell(table, f"{network} / {base}", c).value
            )
            assert up == (letter in arrows), (table, network, ours, c)


@pytest.mark.parametrize(
    ("table", "row", "column"),
    [
        ("6.1", "ResNet-18 / Ours + MAIL", "PGD-100"),
        ("6.1", "ResNet-18 / Ours + MAIL", "APGD-CE"),
        ("6.1", "WRN34-10 / MAIL", "AA"),
        ("6.1", "WRN34-10 / Ours + MAIL", "PGD-100"),
        ("6.2", "ResNet-18 / Ours + WMMR", "Clean"),
        ("6.2", "ResNet-18 / Ours + MAIL", "APGD-CE"),
        ("6.2", "WRN34-10 / Ours + MAIL", "PGD-100"),
        ("6.3", "ResNet-18 / Ours + MAIL", "PGD-100"),
        ("6.3", "WRN34-10 / Ours + MAIL", "APGD-CE"),
        ("6.4", "ResNet-18 / Ours + WMMR", "Clean"),
        ("6.4", "WRN34-10 / Ours + MAIL", "Clean"),
        ("6.6", "ResNet-18 / Ours + WMMR", "CW-PGD"),
        ("6.6", "WRN34-10 / Ours + MAIL", "AA"),
        ("6.7", "WRN34-10 / τ = 2", "CIFAR-100 / CW-PGD"),
        ("6.7", "WRN34-10 / τ = 4", "CIFAR-10 / APGD-CE"),
        ("6.7", "ResNet-18 / τ = 3", "CIFAR-100 / APGD-CE"),
    ],
)
def test_what_is_printed_bold_is_the_best_of_its_network(table, row, column):
    t = published(table)
    rivals = t[(t.column == column) & t.row.str.startswith(row.split(" / ")[0])]
    assert len(rivals) == {"6.6": 4, "6.7": 3}.get(table, 5)
    assert (rivals.value >= cell(table, row, column).value).sum() == 1


def test_what_is_not_printed_is_empty_and_says_why():
    for t in tables():
        empty = published(t)[published(t).value.isna()]
        assert (empty.note != "").all() and empty["std"].isna().all()
    assert (
        published("7.4").value.isna().all()
        and published("7.4").note.str.contains("not in the seed's text").all()
    )
    seven = published("7.1")
    assert (
        set(seven[seven.cited == 1].row) == {"MetaMixup"}
        and (seven[seven.value.isna()].note == "not printed").all()
    )
    assert seven[seven.value.isna()].cited.all() and len(seven[seven.value.isna()]) == 5


def test_table_7_3_repeats_the_best_models_of_table_7_1():
    for data, rounds in {
        "SVHN": "8",
        "CIFAR-10": "6",
        "CIFAR-100": "4",
        "Tiny ImageNet": "4",
    }.items():
        a, b = cell("7.1", "AIP", f"Best / {data}"), cell("7.3", data, rounds)
        assert (a.value, a["std"]) == (b.value, b["std"])
        assert published("7.3").query("row == @data").value.max() == b.value


@pytest.mark.parametrize(
    "name", ["7.1", "table_7_1", "table 7.1", "Table 7.1", "tab-7.1", "tab. 7.1", "7_1"]
)
def test_a_table_answers_to_its_names(name):
    assert len(published(name)) == 40


@pytest.mark.parametrize("name", ["", "7", "7.9", "../claims", "claims", "table_7_1.csv"])
def test_an_unknown_table_is_named_with_what_there_is(name):
    with pytest.raises(
        BadInput, match=re.escape(f"unknown table: {name}: published are 5.1, 5.2, 5.3")
    ):
        published(name)


def test_a_damaged_file_is_named(tmp_path, monkeypatch):
    own(tmp_path, monkeypatch, "table_7_1.csv", "row,column,value,std,cited\nAIP,x,1,0,0\n")
    with pytest.raises(BadInput, match=r"table_7_1\.csv: has no column note"):
        published("7.1")
    own(
        tmp_path,
        monkeypatch,
        "table_7_1.csv",
        "row,column,value,std,cited,note\nAIP,x,ninety,0,0,\n",
    )
    with pytest.raises(BadInput, match=r"table_7_1\.csv: cannot be read: .*ninety"):
        published("7.1")


# ---- the claims


def test_every_claim_names_printed_cells_or_figures():
    printed = {(t, c.row, c.column) for t in tables() for c in published(t).itertuples()}
    named = {c for q in claims().quantity for c in quantity_cells(q)}
    assert {c for c in named if c[0].startswith("table")} <= printed
    assert {c[0] for c in named - printed} == {
        *(
            "figure_5_1",
            "figure_5_3",
            "figure_5_4",
            "figure_6_2",
            "figure_6_4",
            "figure_7_2",
            "figure_7_3",
        )
    }


def test_claims_are_well_formed():
    assert claims().id.is_unique
    for chapter, least in ((5, 70), (6, 110), (7, 60)):
        c = claims(chapter)
        assert (c.claim != "").all() and c.source.str.match(rf"T {chapter}\b.*\(.*\bline").all()
        assert (
            c.id.str.match(rf"(figure-)?{chapter}\.\d").all()
            and len(claims(str(chapter))) == len(c) >= least
        )
    with pytest.raises(
        BadInput, match="no claims of chapter 99: there are claims of chapter 5, 6, 7"
    ):
        claims(99)


def test_every_stated_size_is_the_difference_of_the_printed_numbers():
    sized = [c for c in claims(7).to_dict("records") if not math.isnan(c["size"])]
    assert sorted(c["size"] for c in sized) == [
        0.03,
        0.04,
        0.29,
        0.41,
        0.68,
        0.74,
        1.0,
        2.43,
        2.56,
        5.02,
    ]
    for c in sized:
        value, _, _ = quantity_interval(c["quantity"], thesis_values())
        # printed differences agree to the last digit; 0.034844 / 0.035004 = 0.995 is "as much"
        assert abs(value - c["size"]) < (0.006 if c["unit"] == "times" else 1e-9)


def test_the_thesis_contradicts_itself_in_one_place_only():
    t = claim_table(chapter=7).set_index("id")
    sign = {">": 1, "<": -1}
    wrong = [
        i
        for i, c in t.iterrows()
        if c.direction in sign and sign[c.direction] * (c.thesis - c.bound) < 0
    ]
    assert (
        sorted(wrong)
        == sorted(i for i in t.index if i.startswith("7.2-manifold-worse-when-deeper"))
        and len(wrong) == 4
    )
    assert (t.in_thesis[wrong] == "fails").all() and t.note[wrong].str.contains("contradict").all()
    assert set(t.in_thesis[t.index.str.startswith("7.4")]) == {"not measured"}
    assert set(t.verdict) == {"not measured"} and t.reason.str.startswith("no run of").all()


# Claims of chapters 5 and 6 that the thesis's own tables contradict, with what the tables give instead.
CONTRADICTED = {
    "5.1-wrn28-over-bat-cw-20": -1.16,
    "5.1-m2at-wrn28-fgsm-equals-pgd-20": 10.61,
    "5.1-gap-of-ten-avmixup": 15.27,
    "5.1-cifar-100-over-avmixup-clean": -8.39,
    "5.1-cifar-100-over-avmixup-fgsm": -8.41,
    "5.3-smoothing-alone-equals-avmixup-clean": -8.48,
    "5.3-smoothing-alone-equals-avmixup-fgsm": -18.61,
    "5.3-smoothing-alone-equals-avmixup-pgd-20": -10.23,
    "6.1-resnet-18-mail-over-wmmr": -0.60,
    "6.1-resnet-18-wmmr-clean": -0.06,
    "6.1-resnet-18-wmmr-cw-pgd": -0.37,
    "6.1-resnet-18-wmmr-aa": -0.44,
    "6.3-resnet-18-wmmr-apgd-ce-by-half-a-point": 0.47,
    "6.5-wrn34-10-ours-wmmr-second-apgd-ce": -2.92,
    "6.6-gairat-over-standard-pgd-100": -5.55,
    "6.7-resnet-18-cifar-10-apgd-ce-rises": -0.24,
    "6.7-resnet-18-cifar-10-clean-falls": 0.12,
    "6.7-resnet-18-cifar-100-apgd-ce-falls": 0.10,
    "6.7-loses-a-point-apgd-ce": -2.45,
}


def test_chapters_5_and_6_contradict_themselves_where_their_claims_say_so():
    found = {}
    for chapter in (5, 6):
        judged = claim_table(chapter=chapter).merge(claims(chapter)[["id", "tolerance"]], on="id")
        for c in judged.dropna(subset="thesis").itertuples():
            off = c.thesis - c.bound
            wrong = (
                abs(off) > c.tolerance
                if c.direction == "="
                else off * {">": 1, "<": -1}[c.direction] <= 0
            )
            assert wrong == ("contradict" in c.note), c.id
            found |= {c.id: round(c.thesis, 2)} if wrong else {}
    assert found == CONTRADICTED


def test_the_sizes_of_chapters_5_and_6_are_those_of_the_tables_but_for_five():
    sized = [c for n in (5, 6) for c in claims(n).to_dict("records") if not math.isnan(c["size"])]
    off = {}
    for c in sized:
        if c["quantity"].startswith("figure"):
            continue
        value, _, _ = quantity_interval(c["quantity"], thesis_values())
        off |= {c["id"]: round(value, 2)} if abs(value - c["size"]) > c["tolerance"] + 1e-9 else {}
    assert off == {
        "5.1-m2at-over-avmixup-pgd-10": 13.00,
        "5.1-m2at-clean-below-avmixup": 1.65,
        "5.1-m2at-over-avmixup-cw-20": 2.10,
        "5.1-gap-of-ten-avmixup": 15.27,
        "6.3-wrn34-10-wmmr-aa": 0.37,
    }
    exact = sorted(c["size"] for c in sized if c["tolerance"] <= 0.01)
    assert exact == [0.1, 0.13, 0.16, 0.44, 0.63, 0.73, 0.82, 0.98, 15.65]


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("5.1-m2at-over-avmixup-by-15-pgd-20", 80.66 - 65.01),
        ("5.1-m2at-fgsm-equals-pgd-20", 83.35 - 80.66),
        ("5.1-m2at-narrows-the-gap", (94.81 - 80.28) - (93.16 - 83.35)),
        ("5.1-cifar-100-ascending-below-random", 33.80 - 34.66),
        ("5.2-m2at-over-avmixup-pgd-20", 69.76 - 58.27),
        ("5.3-mixing-below-smoothing-elsewhere", 90.21 - 93.36),
        ("5.4-m2at-best-against-pgd", 80.77 - 64.86),
        ("6.1-wrn34-10-wmmr-aa", 47.50 - 47.37),
        ("6.3-wrn34-10-mail-overfits-less", (54.17 - 48.11) - (59.77 - 59.30)),
        ("6.5-resnet-18-ours-mail-best-pgd-100-and-apgd-ce", 57.96 - 52.67),
        ("6.7-wrn34-10-cifar-100-cw-pgd-falls", 26.87 - 27.79),
        ("6.8-best-similarity-helps-aa", 49.26 - 48.77),
        ("6.8-last-similarity-costs-pgd", 59.64 - 59.91),
    ],
)
def test_what_the_thesis_gives_for_a_claim_worked_out_by_hand(name, size):
    quantity = claims().set_index("id").quantity[name]
    assert quantity_interval(quantity, thesis_values())[0] == pytest.approx(size)


def test_no_verdict_is_given_on_numbers_that_are_printed_without_a_spread():
    # Chapter 5 prints one number a cell: its own tables cannot show what they claim, only say on which side they lie.
    assert set(claim_table(chapter=5).in_thesis) == {"inconclusive", "not measured"}
    assert set(claim_table(chapter=6).in_thesis) == {
        "holds",
        "fails",
        "inconclusive",
        "not measured",
    }


def test_the_claims_keep_the_exceptions_of_the_text():
    i = set(claims(7).id)
    assert "7.2-preactresnet34-aip-best-of-all-best-cifar-10" not in i
    assert {
        "7.2-preactresnet34-aip-below-metamixup-best-cifar-10",
        "7.2-wideresnet-aip-below-manifold-last-svhn",
    } <= i
    assert not any(x.startswith("7.2-wideresnet-aip-best-of-all-last") for x in i)


@pytest.mark.parametrize(
    "change",
    [("points", "yards"), (",7,", ",,"), (",>,", ",!,"), (",>,0,", ",=,0,"), ("a[r", "a{r")],
)
def test_a_slip_in_a_claim_is_found_when_read(tmp_path, monkeypatch, change):
    header = (paths.published() / "claims.csv").read_text(encoding="utf-8").split("\n")[0]
    good = 'mine,7,one,T 7,"a[r, c] - a[r, d]",>,0,,points,,'
    own(tmp_path, monkeypatch, "claims.csv", f"{header}\n{good}\n")
    assert len(claims()) == 1
    own(tmp_path, monkeypatch, "claims.csv", f"{header}\n{good.replace(*change)}\n")
    with pytest.raises(BadInput, match=r"claims\.csv: mine: needs|not a quantity"):
        claims()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1 + 1",
        "AIP - mixup",
        "a[r, c] ** 2",
        "a[r, c].real",
        "a[r, c](1)",
        "max",
        "max(a[r, c])",
        "max(a[r, c], key=b[r, c])",
        "max(*a[r, c], b[r, c])",
        "abs(a[r, c])",
        "a[r, c] if a[r, c] else 1",
        "[a[r, c] for _ in 1]",
        "a[r, c] + _7",
        "a[r, c] + max + 1",
        "a[r, c] + 'x'",
        "a[r, c] + 1j",
        "a[r, c] + True",
        "a[r, c]; import os",
        "(" * 500 + "a[r, c]" + ")" * 500,
        "a[r, c] - " + "-" * 20_000 + "1",
    ],
)
def test_a_quantity_is_never_run_as_python(text):
    with pytest.raises(BadInput, match="not a quantity"):
        quantity_cells(text)


def test_cells_with_brackets_commas_and_slashes():
    q = "table_7_5[elapsed time [s], AIP] / table_7_4[AIP (w/ input layer), a, b]"
    assert quantity_cells(q) == [
        ("table_7_5", "elapsed time [s]", "AIP"),
        ("table_7_4", "AIP (w/ input layer)", "a, b"),
    ]


# ---- the statistics, against scipy and by simulation


def test_difference_is_welch():
    rng = np.random.default_rng(0)
    for n, m in itertools.product((2, 3, 5), (2, 5)):
        a, b = rng.normal(97, 0.3, n), rng.normal(96, 0.1, m)
        ci = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.9)
        assert np.allclose(difference(moments(a), moments(b), 0.9), (a.mean() - b.mean(), *ci))


def test_paired_and_unpaired_quantities_against_scipy():
    rng = np.random.default_rng(1)
    a, b = rng.normal(97, 0.3, 4), rng.normal(96, 0.1, 4)
    values = {("t", "a", "x"): a, ("t", "b", "x"): b}
    paired = stats.ttest_rel(a, b).confidence_interval()
    assert np.allclose(quantity_interval("t[a, x] - t[b, x]", values)[1:], paired)
    values["t", "b", "x"] = [*b, 96.05]  # another number of seeds: no longer pairs
    loose = stats.ttest_ind(a, [*b, 96.05], equal_var=False).confidence_interval()
    assert np.allclose(quantity_interval("t[a, x] - t[b, x]", values)[1:], loose)
    one = stats.ttest_1samp(a, 0).confidence_interval()
    assert np.allclose(quantity_interval("t[a, x]", values)[1:], one)


def test_a_missing_seed_breaks_the_pairing_only_where_it_is_missing_alone():
    a, b = [97.0, 96.5, None, 97.2], [96.0, 95.9, 96.4, 96.1]
    q, cells = "t[a, x] - t[b, x]", [("t", "a", "x"), ("t", "b", "x")]
    there = [97.0, 96.5, 97.2]
    loose = stats.ttest_ind(there, b, equal_var=False).confidence_interval()
    assert np.allclose(quantity_interval(q, dict(zip(cells, (a, b), strict=True)))[1:], loose)
    b = [96.0, 95.9, math.nan, 96.1]
    paired = stats.ttest_rel(there, [96.0, 95.9, 96.1]).confidence_interval()
    assert np.allclose(quantity_interval(q, dict(zip(cells, (a, b), strict=True)))[1:], paired)


def test_a_ratio_of_independent_means_by_the_delta_method():
    a, b = Moments(0.176, 0.004, 6), Moments(0.035, 0.001, 4)
    value, low, high = quantity_interval(
        "t[a, x] / t[b, x]", {("t", "a", "x"): a, ("t", "b", "x"): b}
    )
    va, vb = (a.std / b.mean) ** 2 / a.n, (a.mean * b.std / b.mean**2) ** 2 / b.n
    half = stats.t.ppf(0.975, (va + vb) ** 2 / (va**2 / 5 + vb**2 / 3)) * math.sqrt(va + vb)
    assert np.allclose(
        (value, low, high), (a.mean / b.mean, a.mean / b.mean - half, a.mean / b.mean + half)
    )


def test_a_cell_that_is_named_twice_is_one_sample():
    m = {("t", "a", "x"): Moments(10, 1, 5), ("t", "b", "x"): Moments(9, 1, 5)}
    twice = quantity_interval("t[a, x] + t[a, x] - t[b, x] - t[b, x]", m)
    assert np.allclose(twice, np.multiply(2, quantity_interval("t[a, x] - t[b, x]", m)))


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng, hits, trials = (
        np.random.default_rng(2),
        {"welch": 0, "few": 0, "paired": 0, "ratio": 0},
        1500,
    )
    names = [("t", "a", "x"), ("t", "b", "x")]
    for _ in range(trials):
        a, b, c = rng.normal(97, 0.3, 5), rng.normal(96, 0.1, 5), rng.normal(96, 0.1, 3)
        seed = rng.normal(0, 2, 5)
        for kind, x, y, q, truth in (
            ("welch", moments(a), moments(b), "t[a, x] - t[b, x]", 1),
            ("few", moments(a), moments(c), "t[a, x] - t[b, x]", 1),
            ("paired", a + seed, b + seed, "t[a, x] - t[b, x]", 1),
            ("ratio", moments(a), moments(b), "t[a, x] / t[b, x]", 97 / 96),
        ):
            _, low, high = quantity_interval(q, dict(zip(names, (x, y), strict=True)))
            hits[kind] += low <= truth <= high
    # 95 % of 1,500, give or take three standard errors (Welch with three runs is known to be a little off)
    assert all(0.93 < h / trials < 0.975 for h in hits.values()), hits


def test_better_than_the_best_is_not_claimed_by_luck():
    rng, trials = np.random.default_rng(3), 1000
    q = "t[a, x] - max(t[b, x], t[c, x], t[d, x], t[e, x])"
    cells = quantity_cells(q)
    tied = {"holds": 0, "fails": 0}
    for _ in range(
        trials
    ):  # five equal methods: neither verdict is right, and neither may come up often
        _, low, high = quantity_interval(
            q,
            {c: moments(rng.normal(90, s, 5)) for c, s in zip(cells, (1, 1, 1, 1, 3), strict=True)},
        )
        tied["holds"] += low > 0
        tied["fails"] += high < 0
    assert tied["holds"] <= 0.025 * trials and tied["fails"] <= 0.05 * trials, tied


def test_a_noisy_rival_is_not_forgotten():
    values = {
        ("t", "a", "x"): Moments(91, 0.1, 5),
        ("t", "b", "x"): Moments(90, 0.1, 5),
        ("t", "c", "x"): Moments(89.9, 5, 5),
    }
    value, low, _ = quantity_interval("t[a, x] - max(t[b, x], t[c, x])", values)
    assert value == pytest.approx(1) and low < 0
    assert quantity_interval("t[a, x] - t[b, x]", values)[1] > 0


def test_to_beat_the_best_is_to_beat_each():
    x = {
        ("t", "a", "x"): Moments(8, 0.5, 4),
        ("t", "b", "x"): Moments(7, 0.5, 4),
        ("t", "c", "x"): Moments(6, 0.1, 4),
    }
    _, low, high = quantity_interval("t[a, x] - max(t[b, x], t[c, x])", x)
    _, alone_low, alone_high = quantity_interval("t[a, x] - t[b, x]", x)
    assert low == alone_low and high > alone_high  # only the other end pays for having two chances


@pytest.mark.parametrize(
    ("q", "value"),
    [
        ("max(t[a, x], t[b, x]) - t[c, x]", 4),
        ("t[a, x] - min(t[b, x], t[c, x])", 2),
        ("min(t[a, x] - max(t[b, x], t[c, x]), t[c, x])", -2),
        ("-max(t[a, x], t[b, x])", -10),
        ("-1 * max(t[a, x], t[b, x])", -10),
        ("(t[c, x] - t[a, x]) * max(t[a, x], t[b, x]) / -2", 10),
        ("(t[c, x] - t[b, x]) / max(t[a, x], t[b, x])", -0.4),
        ("t[a, x] / max(t[b, x], t[c, x])", 0.8),
        ("2 * max(t[a, x], t[b, x]) / 4", 5),
    ],
)
def test_max_and_min_pull_the_right_way(q, value):
    x = {
        ("t", "a", "x"): Moments(8, 0.5, 4),
        ("t", "b", "x"): Moments(10, 0.5, 4),
        ("t", "c", "x"): Moments(6, 0.5, 4),
    }
    found, low, high = quantity_interval(q, x)
    assert found == pytest.approx(value) and low < found < high


@pytest.mark.parametrize(
    "q",
    [
        "max(t[a, x], t[b, x]) - max(t[a, x], t[c, x])",
        "max(t[a, x], t[b, x]) * min(t[a, x], t[c, x])",
    ],
)
def test_max_and_min_that_pull_both_ways_are_refused(q):
    for b in (10, 8):  # 8: where a tie hides it
        x = {
            ("t", "a", "x"): Moments(8, 0.5, 4),
            ("t", "b", "x"): Moments(b, 0.5, 4),
            ("t", "c", "x"): Moments(6, 0.5, 4),
        }
        with pytest.raises(BadInput, match="must all pull the same way"):
            quantity_interval(q, x)


# ---- the verdicts


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([96.8, 97.1, 96.9, 97.0, 96.7], "holds"),
        ([94.8, 95.1, 94.9, 95.0, 94.7], "fails"),
        ([99.1, 99.2, 99.0], "fails"),
        ([95.9, 96.1, 95.8, 96.0, 96.2], "inconclusive"),
        ([96.5, 97.3], "inconclusive"),
        ([96.97], "inconclusive"),
        ([96.9, 96.9], "inconclusive"),
        ([], "not measured"),
        ([None, math.nan], "not measured"),
    ],
)
def test_the_verdict_on_a_cell(values, verdict):
    v = evaluate_cell(96.97, 0.16, values)
    assert (
        v.verdict == verdict and v.reason and v.n == sum(x is not None and x == x for x in values)
    )


def test_the_interval_of_a_cell_is_that_of_five_published_runs():
    ours = [96.8, 97.1, 96.9]
    theirs = 96.97 + 0.16 * np.array(
        [-1.0, -1.0, 0.0, 1.0, 1.0]
    )  # mean 96.97, sample deviation 0.16, five runs
    assert theirs.std(ddof=1) == pytest.approx(0.16)
    v, ci = (
        evaluate_cell(96.97, 0.16, ours),
        stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(),
    )
    assert np.allclose((v.low, v.high), ci)


def test_equivalence_is_not_granted_for_want_of_runs():
    # Far apart in truth, but two noisy runs: no test of a difference would reject, and this one does not accept.
    assert evaluate_cell(96.97, 0.16, [94.0, 99.5]).verdict == "inconclusive"


def test_what_cannot_be_compared_is_not_measured_but_shown():
    v = evaluate_cell(96.97, 0.16, [98.0, 98.4], comparable="stand-in digits10")
    assert (v.verdict, v.reason, v.n) == (
        "not measured",
        "stand-in digits10",
        2,
    ) and v.estimate == pytest.approx(1.23)
    assert (
        evaluate_cell(math.nan, math.nan, [98.0, 98.4]).reason == "the thesis's number is not known"
    )
    assert evaluate_cell(0.035, math.nan, [0.03, 0.04]).reason == "the thesis prints no spread"
    for margin in (0, -1, math.nan):
        with pytest.raises(BadInput, match="margin"):
            evaluate_cell(96.97, 0.16, [96.0, 97.0], margin=margin)


def claim(**changes):
    base = {
        "quantity": "t[a, x] - t[b, x]",
        "direction": ">",
        "bound": 0.0,
        "size": math.nan,
        "unit": "points",
        "tolerance": math.nan,
    }
    return base | changes


@pytest.mark.parametrize(
    ("changes", "shift", "verdict"),
    [
        ({}, 2, "holds"),
        ({}, -2, "fails"),
        ({}, 0.02, "inconclusive"),
        ({"direction": "<"}, -2, "holds"),
        ({"direction": "<"}, 2, "fails"),
        ({"bound": 1.0}, 2, "holds"),
        ({"bound": 1.0}, 0.3, "fails"),
        ({"direction": "=", "tolerance": 0.5}, 0.02, "holds"),
        ({"direction": "=", "tolerance": 0.5}, 2, "fails"),
        ({"direction": "=", "tolerance": 0.05}, 0.02, "inconclusive"),
    ],
)
def test_the_verdict_on_a_claim(changes, shift, verdict):
    b = np.array([90.0, 91.0, 90.5])
    values = {("t", "a", "x"): b + shift + np.array([0.05, -0.05, 0.01]), ("t", "b", "x"): b}
    assert evaluate_claim(claim(**changes), values).verdict == verdict


def test_sizes_and_stand_ins():
    values = {("t", "a", "x"): [92.0, 92.3, 92.5], ("t", "b", "x"): [90.0, 90.4, 90.3]}
    assert evaluate_claim(claim(size=2.1, tolerance=0.01), values).size_agrees is True
    assert evaluate_claim(claim(size=4.0, tolerance=0.01), values).size_agrees is False
    v = evaluate_claim(claim(size=2.1), values, comparable="stand-in digits10")
    assert (v.verdict, v.size_agrees) == ("holds", None) and v.reason.endswith(
        "judged on: stand-in digits10"
    )
    for stated in ({"bound": 1.0}, {"direction": "=", "tolerance": 5.0}):
        v = evaluate_claim(claim(**stated), values, comparable="stand-in digits10")
        assert (
            v.verdict == "not measured"
            and v.reason == "a size in points is not comparable: stand-in digits10"
        )
    assert (
        evaluate_claim(claim(bound=1.0, unit="times"), values, comparable="a laptop").verdict
        == "holds"
    )


def test_a_printed_size_has_the_slack_of_its_rounding():
    values = {("t", "a", "x"): [92.0, 92.3, 92.5], ("t", "b", "x"): [90.0, 90.4, 90.3]}
    _, low, high = quantity_interval("t[a, x] - t[b, x]", values)
    for size, agrees in (
        (low - 0.009, True),
        (low - 0.011, False),
        (high + 0.009, True),
        (high + 0.011, False),
    ):
        assert evaluate_claim(claim(size=size, tolerance=0.01), values).size_agrees is agrees
    assert evaluate_claim(claim(size=low - 0.009), values).size_agrees is False


def test_rounding_is_not_a_spread():
    a, b = [0.1 + 0.2, 1.1 + 0.2, 2.1 + 0.2], [0.1, 1.1, 2.1]
    assert len(set(np.subtract(a, b))) > 1  # equal but for the last bit
    v = evaluate_claim(claim(), {("t", "a", "x"): a, ("t", "b", "x"): b})
    assert v.verdict == "inconclusive" and v.estimate == pytest.approx(0.2)


def test_one_run_or_equal_runs_are_inconclusive():
    for a, b in (
        ([92.0], [90.0]),
        ([92.2, 91.8], [90.2, 89.8]),
        ([math.inf, 92.0], [90.0, 90.5]),
        ([92.0], [0.0]),
    ):
        values = {("t", "a", "x"): a, ("t", "b", "x"): b}
        with np.errstate(all="ignore"):
            for q in ("t[a, x] - t[b, x]", "t[a, x] - max(t[b, x], t[b, x] / 2)"):
                assert evaluate_claim(claim(quantity=q), values).verdict == "inconclusive"


def test_the_claim_table_takes_reasons_by_table_and_by_cell():
    rng, values = np.random.default_rng(4), {}
    for q in claims(7).quantity:
        values |= {c: rng.normal(90, 1, 3) for c in quantity_cells(q)}
    t = claim_table(
        values, 7, {"table_7_1": "stand-in digits10", ("table_7_3", "SVHN", "8"): "width 1/8"}
    ).set_index("id")
    assert t.reason["7.1-aip-over-manifold-last-svhn"].endswith("judged on: stand-in digits10")
    assert t.reason["7.3-best-rounds-svhn"].endswith("judged on: width 1/8")
    assert "judged on" not in t.reason["7.3-best-rounds-cifar-100"]
    assert set(t.verdict) <= {"holds", "fails", "inconclusive"} and (t.n == 3).all()
    assert claim_table(values, 7, "all stand-ins").reason.str.contains("all stand-ins").all()


def test_the_rule_names_every_verdict_and_its_margin():
    assert all(
        w in verdict_rule(2.5)
        for w in ("holds", "fails", "inconclusive", "not measured", "±2.5", "Welch", "95 %")
    )
