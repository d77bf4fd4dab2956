"""The printed numbers are what was printed, and no change of them goes unseen."""

import hashlib
import math
import re
import shutil

import pytest

from thesis_repro import paths
from thesis_repro.claims import quantity_cells
from thesis_repro.files import BadInput
from thesis_repro.published import claims, columns, published, seal, tables, thesis_values

# One digest over every printed cell (row, column, value, std, cited): no number changes unseen.
DIGESTS = {
    "table_3_1": "7da85b503c1285fd139652d4956af7881e9da089eda2dead66bc97294afe1ccc",
    "table_3_2": "e6772aa65b7c9b546d589d86ba313d21587974f6cc07da95cb5e248777079f5c",
    "table_3_3": "9e6d618cc0dd1da9f3858939aca095e438f87894a37b918d98c1fe3c1d633e16",
    "table_3_4": "4805c55eec155e59055cff84215df19185a14a0b6b940c4469938de7398e1e86",
    "table_4_1": "5ebf34d8557f2a8e4982fe0a759ddc1333f1912510360621cf45261e1335024e",
    "table_4_2": "01bb8d5bed622af53ef7234b60adec47479f71eff2943fcaa28756627fe6612a",
    "table_5_1": "df00b3380d741b7881cd24a2842cb935ba24d3471c6719a1dda4b8d46e82f4d3",
    "table_5_2": "840194526e0716c71e7f2223bbc58e30a1b8e4110ba8f7e4ceaebb007d8e27e3",
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
    "table_advprop_1": "8edc03a9aa8001069b352847d2743fa428014c98d983f853ec6972e3c2c8a732",
    "table_advprop_2": "22182a67337fe5cd2cb7b654a1db4b948c0bbc31c8907582c3e222c19c42e5a4",
    "table_advprop_3": "4a9235e24e29f8bd765274ee30615f00e3c2428e9fbe3b87288d89cf37a39750",
    "table_output_control_1": "d2e4026181873a0387cffaf27de797b8394e1e3840c1fbdb1f3464697c41e412",
    "table_robust_detection_1": "1becf54264fc4ebc0abdfc4e6e558a86b34f7bfe03ce3bebaf5dbaee30cecf9e",
    "table_virtual_positives_1": "13da0d92471a97f7eeaea6ac660d120f38fccb5905cf013199dca1ac4af6595a",
}


def cell(table, row, column):
    t = published(table).set_index(["row", "column"])
    return t.loc[(row, column)]


# One digest over all numbers as version 0.1 read them (table, row, column, value, std).
ALL_NUMBERS = "c1a8b4258ba7eb5bafc9ceacfa2541c6348c880022da86cd4db267d5c89961ad"


def own(folder, monkeypatch, name, text):
    "A project whose data/published holds one file."
    (folder / "data" / "published").mkdir(parents=True, exist_ok=True)
    (folder / "data" / "published" / name).write_text(text, encoding="utf-8")
    monkeypatch.setenv("THESIS_REPRO_ROOT", str(folder))
    seal()


# ---- the files


def thesis_tables():
    "The tables of the thesis, without those of companions."
    return [t for t in tables() if re.fullmatch(r"table_\d+_\d+", t)]


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
        "table_3_1": (6, 3, 15),
        "table_3_2": (3, 2, 6),
        "table_3_3": (2, 2, 4),
        "table_3_4": (5, 40, 200),
        "table_4_1": (5, 3, 13),
        "table_4_2": (3, 4, 12),
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
        "table_advprop_1": (11, 1, 11),
        "table_advprop_2": (10, 2, 10),
        "table_advprop_3": (4, 3, 8),
        "table_output_control_1": (1, 6, 6),
        "table_robust_detection_1": (2, 1, 2),
        "table_virtual_positives_1": (9, 2, 18),
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
        for t in thesis_tables()
        if t.startswith(("table_5", "table_6"))
        for c in published(t).itertuples()
        if c.note and not c.cited and c.column != "CW-20"
    }
    assert set(noted) == {
        ("table_6_3", "ResNet-18 / Standard", "Clean"),
        ("table_6_4", "ResNet-18 / Ours + WMMR", "Clean"),
    }
    assert all("printed" in n for n in noted.values())


def test_the_column_cw_20_is_not_the_cw_pgd_of_chapter_6():
    t = published("5.1")
    own_rows = t[(t.column == "CW-20") & (t.cited == 0)]
    assert len(own_rows) == 6 and own_rows.note.str.startswith("not the CW-PGD of chapter 6").all()
    here = cell("5.1", "CIFAR-10 / PGD", "CW-20").value
    there = cell("6.1", "WRN34-10 / Standard", "CW-PGD").value
    assert (here, there) == (30.16, 49.33)
    assert own_rows.note.str.contains(f"{here} here and {there} there", regex=False).all()


def test_the_quotations_in_table_5_2_are_marked():
    t = published("5.2")
    quoted = t[t.cited == 1]
    assert list(dict.fromkeys(quoted.row)) == ["PGD", "TRADES (1/λ = 1)", "TRADES (1/λ = 6)"]
    assert len(quoted) == 6 and quoted.note.str.contains("not run by the thesis").all()


def test_every_printed_number_is_what_it_was_in_version_0_1():
    # Marks and notes may come to the tables, and tables to these; no number ever changes.
    lines = [
        f"{t}|{c.row}|{c.column}|{c.value:.6f}|{c.std:.3f}"
        for t in thesis_tables()
        if t >= "table_5"  # chapters 3 and 4 came later
        for c in published(t).dropna(subset="value").itertuples()
    ]
    assert len(lines) == 548
    assert hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest() == ALL_NUMBERS


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
    assert all(published(t)["std"].isna().all() for t in thesis_tables() if t.startswith("table_5"))
    assert all(
        published(t)["std"].notna().all() for t in thesis_tables() if t.startswith("table_6")
    )


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


# Tables 6.1 to 6.4 mark with an arrow where "Ours" is better than the method that it extends
# (first letters of FIVE; G: APGD-CE).
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
    for t in thesis_tables():
        empty = published(t)[published(t).value.isna()]
        assert (empty.note != "").all() and empty["std"].isna().all()
    assert (
        published("7.4").value.isna().all()
        and published("7.4").note.str.contains("not in the text that we have").all()
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
        BadInput, match=re.escape(f"unknown table: {name}: published are 3.1, 3.2, 3.3")
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


# ---- checksums


@pytest.fixture
def copied(tmp_path, monkeypatch):
    "A copy of data/published that may be damaged."
    shutil.copytree(paths.published(), tmp_path / "data" / "published")
    monkeypatch.setenv("THESIS_REPRO_ROOT", str(tmp_path))
    return tmp_path / "data" / "published"


def read_all():
    "Everything that can be read from the folder."
    for t in tables():
        published(t)
    claims()


def test_the_checksums_fit_the_files():
    read_all()
    listed = (paths.published() / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    names = {line.split("  ")[1] for line in listed}
    assert names == {p.name for p in paths.published().glob("*.csv")}


@pytest.mark.parametrize("file", sorted(p.name for p in paths.published().iterdir()))
def test_a_flipped_bit_is_found_when_the_file_is_read(copied, file):
    content = (copied / file).read_bytes()
    read_all()
    for place in range(0, len(content), max(1, len(content) // 8)):
        damaged = bytearray(content)
        damaged[place] ^= 1
        (copied / file).write_bytes(damaged)
        with pytest.raises(BadInput) as e:
            read_all()
        assert "\n" not in str(e.value)
    (copied / file).write_bytes(content)
    read_all()


def test_the_line_about_a_changed_file_names_it_and_the_remedy(copied):
    file = copied / "table_7_1.csv"
    file.write_text(file.read_text(encoding="utf-8").replace("96.97", "96.67"), encoding="utf-8")
    with pytest.raises(BadInput, match=r"table_7_1\.csv: is not the file that SHA256SUMS") as e:
        published("7.1")
    assert "restore it" in str(e.value) and "\n" not in str(e.value)
    remedy = re.search(r"python -c '(.*)'", str(e.value))[1]
    exec(remedy, {})
    assert published("7.1").query("row == 'AIP'").value.isin([96.67]).any()


def test_a_file_that_is_gone_or_new_is_named(copied):
    (copied / "table_6_2.csv").rename(copied / "table_6_9.csv")
    for name in ("table_6_2.csv", "table_6_9.csv"):
        with pytest.raises(BadInput, match=f"SHA256SUMS: {name} is only in this list or only in"):
            tables()
        shutil.copy(copied / "table_6_9.csv", copied / "table_6_2.csv")
    seal()
    assert len(published("6.9")) == 50
    (copied / "SHA256SUMS").unlink()
    with pytest.raises(BadInput, match="SHA256SUMS: cannot be read: restore it"):
        published("6.1")


# ---- the order of the columns


COLUMNS = {
    "5.1": "Clean FGSM PGD-10 PGD-20 CW-20".split(),
    "5.2": ["Clean", "PGD-20"],
    "5.3": ["Clean", "FGSM", "PGD-20"],
    "5.4": ["PGD", "PGD with LS", "AVmixup"],
    "6.1": ["Clean", "PGD-100", "CW-PGD", "APGD-CE", "AA"],
    "6.7": [
        f"{s} / {a}" for s in ("CIFAR-10", "CIFAR-100") for a in ("Clean", "CW-PGD", "APGD-CE")
    ],
    "7.2": [f"{m} / {s}" for m in ("Last", "Best") for s in ("CIFAR-10", "CIFAR-100", "SVHN")],
    "7.3": ["2", "4", "6", "8", "10", "20"],
    "7.5": ["mixup", "Manifold mixup", "AIP"],
}


@pytest.mark.parametrize("table", COLUMNS)
def test_columns_stand_in_the_order_of_the_thesis(table):
    assert columns(table) == COLUMNS[table]


MIXING = "Baseline; mixup; Manifold mixup; MetaMixup; AIP".split("; ")
ROWS = {
    "7.1": MIXING,
    "7.2": [f"{net} / {row}" for net in ("PreActResNet34", "WideResNet28-10") for row in MIXING],
    "7.3": ["SVHN", "CIFAR-10", "CIFAR-100", "Tiny ImageNet"],
}


@pytest.mark.parametrize("table", ROWS)
def test_rows_stand_in_the_order_of_the_thesis(table):
    "Those of chapters 3 and 4: test_gan_tables; of 5: test_m2at; of 6: test_margin_tables."
    assert [*dict.fromkeys(published(table).row)] == ROWS[table]


def test_every_row_keeps_to_the_order_of_the_columns():
    for t in thesis_tables():
        assert set(columns(t)) == set(published(t).column)
        for _, part in published(t).groupby("row", sort=False):
            places = [columns(t).index(c) for c in part.column]
            assert places == sorted(places), t


def test_every_number_is_there_with_its_spread_and_its_mark():
    numbers = {c: p for c, p in thesis_values().items() if c[0] in thesis_tables()}
    assert len(numbers) == 548 + 15 + 6 + 4 + 180 + 25
    aip = numbers["table_7_1", "AIP", "Best / Tiny ImageNet"]
    assert (aip.value, aip.std, aip.cited) == (64.27, 0.18, False)
    bat = numbers["table_5_1", "CIFAR-10 / BAT", "PGD-20"]
    assert (bat.value, bat.cited) == (57.5, True) and math.isnan(bat.std)


# ---- the claims


def test_every_claim_names_printed_cells_or_figures():
    printed = {(t, c.row, c.column) for t in thesis_tables() for c in published(t).itertuples()}
    chapters = claims()[claims().chapter.str.isdigit()]
    named = {c for q in chapters.quantity for c in quantity_cells(q)}
    ours = {c for c in named if c[0].endswith("_ours")}  # in the plans of their chapters' tests
    assert {c for c in named - ours if c[0].startswith("table")} <= printed
    assert {c[0] for c in named - printed} == {
        *(
            "table_3_2_grid_ours",
            "figure_3_5",
            "figure_3_6",
            "figure_4_4",
            "figure_4_6",
            "figure_4_7",
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
    for chapter, least in ((3, 28), (4, 34), (5, 70), (6, 110), (7, 60)):
        c = claims(chapter)
        assert (c.claim != "").all() and c.source.str.match(rf"T {chapter}\b.*\(.*\bline").all()
        assert (
            c.id.str.match(rf"(figure-)?{chapter}\.\d").all()
            and len(claims(str(chapter))) == len(c) >= least
        )
    with pytest.raises(
        BadInput, match="no claims of chapter 99: there are claims of chapter 3, 4, 5, 6"
    ):
        claims(99)


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
    [
        ("points", "yards"),
        (",7,", ",,"),
        (",>,", ",!,"),
        (",>,0,", ",=,0,"),
        ("0,,points", ",,points"),
    ],
)
def test_a_slip_in_a_claim_is_found_when_read(tmp_path, monkeypatch, change):
    header = (paths.published() / "claims.csv").read_text(encoding="utf-8").split("\n")[0]
    good = 'mine,7,one,T 7,"a[r, c] - a[r, d]",>,0,,points,,'
    own(tmp_path, monkeypatch, "claims.csv", f"{header}\n{good}\n")
    assert len(claims()) == 1
    own(tmp_path, monkeypatch, "claims.csv", f"{header}\n{good.replace(*change)}\n")
    with pytest.raises(BadInput, match=r"claims\.csv: mine: needs"):
        claims()
