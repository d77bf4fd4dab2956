"""Chapter 7's tables against the thesis's section 7.3.1 and 7.4, read by hand."""

import dataclasses
import re
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from thesis_repro import aip, artefacts, data, measured_facts, registry, settings, step_times
from thesis_repro.claims import quantity_cells
from thesis_repro.files import BadInput
from thesis_repro.images import pixels
from thesis_repro.measures import Planned
from thesis_repro.mixup import Beta, Fixed, Mixup
from thesis_repro.published import claims, published
from thesis_repro.tables import as_latex, as_markdown, layout

THESIS = settings.load("thesis", 7, device="cpu", precision="fp32")
PARTS = ("CIFAR-10", "CIFAR-100", "SVHN", "Tiny ImageNet")
FILES = dict(zip(PARTS, ("cifar10", "cifar100", "svhn", "tiny_imagenet"), strict=True))

# "CIFAR-10/100 and SVHN: mixup Beta(1, 1), Manifold mixup Beta(2, 2). Tiny ImageNet: both
# Beta(0.2, 0.2). K = 8 on SVHN, 6 on CIFAR-10, 4 on CIFAR-100 and Tiny ImageNet; at the input layer
# as mixup. Tiny ImageNet cross entropy, the others binary cross entropy."
MIXUP = {"CIFAR-10": 1.0, "CIFAR-100": 1.0, "SVHN": 1.0, "Tiny ImageNet": 0.2}
MANIFOLD = {"CIFAR-10": 2.0, "CIFAR-100": 2.0, "SVHN": 2.0, "Tiny ImageNet": 0.2}
ROUNDS = {"CIFAR-10": 6, "CIFAR-100": 4, "SVHN": 8, "Tiny ImageNet": 4}
LOSS = {"CIFAR-10": "bce", "CIFAR-100": "bce", "SVHN": "bce", "Tiny ImageNet": "ce"}

# "500 epochs for PreActResNet, 400 for WRN28-10; SGD, rate 0.1, momentum 0.9; a tenth at 250 and
# 375 (WRN: 200 and 300); weight decay 1e-4; five seeds." Batches of 128 are those of table 7.5.
LONG = {"epochs": 500, "drops": (250, 375)}
SHORT = {"epochs": 400, "drops": (200, 300)}


def training_of(cell):
    "What is trained for a planned cell, and what is read, as plain values; not the method."
    run = cell.runs[0]
    how, decay, images = run.recipe.optimiser, run.recipe.optimiser.decay, run.data
    return {
        "seeds": [r.seed for r in cell.runs],
        "data": (images.name, images.part, images.train, images.test, images.held_out),
        "network": (run.recipe.network, run.recipe.width, run.recipe.select, run.recipe.crop),
        "epochs": run.length.epochs,
        "batch": run.length.batch_size,
        "optimiser": (type(how).__name__, how.lr, how.momentum, how.weight_decay),
        "plain": (how.nesterov, how.clip, decay.kind, decay.factor, run.precision),
        "drops": tuple(round(p * run.length.epochs) for p in decay.points),
        "read": cell.measurement.path,
        "reason": cell.reason,
    }


def as_the_thesis(dataset, network, read, length):
    """What training_of must give.

    The public manifold mixup code has Nesterov's momentum, crops padded by 2 (Tiny ImageNet: 4,
    and a first stride of 2), all training images, and the best epoch by the test images.
    """
    tiny = dataset == "Tiny ImageNet"
    return {
        "seeds": [0, 1, 2, 3, 4],
        "data": (FILES[dataset], dataset, 0, 0, 0),
        "network": (network + "_stride2" * tiny, 1.0, "test", 4 if tiny else 2),
        "batch": 128,
        "optimiser": ("SGD", 0.1, 0.9, 1e-4),
        "plain": (True, 0.0, "steps", 0.1, "fp32"),
        "read": read,
        "reason": "",
        **length,
    }


def ratio_of(ratio):
    "A ratio piece as plain values."
    kind = type(ratio).__name__
    fields = {
        "Beta": ("alpha", "per"),
        "Ternary": ("rounds", "zeta"),
        "LogitCurve": ("passes", "points"),
    }
    return (kind, *(getattr(ratio, f) for f in fields.get(kind, ())))


def method_of(cell):
    "The method of a planned cell as plain values."
    method = cell.runs[0].recipe.method
    kind = type(method).__name__
    if kind == "Mixup":
        return (
            kind,
            method.layers,
            ratio_of(method.ratio),
            ratio_of(method.input_ratio),
            method.loss,
        )
    if kind in ("MetaMixup", "AdaMixup"):
        adam = method.optimiser
        return kind, type(adam).__name__, adam.lr, adam.betas, method.loss
    return kind, method.loss


NONE = ("NoneType",)
ALL, SOME = (0, 1, 2, 3), (0, 1, 2)  # Algorithm 4, line 3; manifold mixup as published


def mixed(layers, ratio, at_image, dataset):
    return ("Mixup", layers, ratio, at_image, LOSS[dataset])


def searched(dataset, rounds=None, at_image=False):
    "AIP with ζ = 1, at the image a blind ratio per pair (Algorithm 4 writes λᵢ)."
    blind = NONE if at_image else ("Beta", MIXUP[dataset], "pair")
    return mixed(ALL, ("Ternary", rounds or ROUNDS[dataset], 1.0), blind, dataset)


def as_described(dataset):
    "Row → the method."
    return {
        "Baseline": ("Plain", LOSS[dataset]),
        "mixup": mixed((0,), ("Beta", MIXUP[dataset], "batch"), NONE, dataset),
        "Manifold mixup": mixed(SOME, ("Beta", MANIFOLD[dataset], "batch"), NONE, dataset),
        "AIP": searched(dataset),
    }


def ours_only(dataset):
    "The rows of table 7.1 that the thesis did not run."
    blind = ("Beta", MIXUP[dataset], "pair")
    return {
        "MetaMixup": ("MetaMixup", "Adam", 1e-3, (0.9, 0.999), LOSS[dataset]),
        "AIP (fast search)": mixed(ALL, ("LogitCurve", 3, 65), blind, dataset),
        "AdaMixup": ("AdaMixup", "Adam", 1e-3, (0.9, 0.999), LOSS[dataset]),
    }


def printed(number):
    "The (row, column) that the thesis prints, quotations apart."
    frame = published(number)
    return {(c.row, c.column) for c in frame[frame.cited == 0].itertuples()}


def test_table_7_1():
    "PreActResNet18 on four data sets, last and best model."
    plan, expected = aip.table_7_1.plan(THESIS, PARTS), {}
    for dataset in PARTS:
        for row, method in {**as_described(dataset), **ours_only(dataset)}.items():
            for which in ("Last", "Best"):
                how = as_the_thesis(dataset, "preactresnet18", f"{which.lower()}.accuracy", LONG)
                expected[row, f"{which} / {dataset}"] = (how, method)
    assert {k: (training_of(c), method_of(c)) for k, c in plan.items()} == expected
    assert printed("7.1") <= plan.keys() and aip.table_7_1.along == "rows"


def test_table_7_2():
    "PreActResNet34 and WideResNet28-10 on three data sets, last and best model."
    plan, expected = aip.table_7_2.plan(THESIS, PARTS), {}
    networks = {"PreActResNet34": ("preactresnet34", LONG), "WideResNet28-10": ("wrn28_10", SHORT)}
    for name, (network, length) in networks.items():
        for dataset in PARTS[:3]:
            for row, method in as_described(dataset).items():
                for which in ("Last", "Best"):
                    how = as_the_thesis(dataset, network, f"{which.lower()}.accuracy", length)
                    expected[f"{name} / {row}", f"{which} / {dataset}"] = (how, method)
    assert {k: (training_of(c), method_of(c)) for k, c in plan.items()} == expected
    assert printed("7.2") == plan.keys() and aip.table_7_2.along == "rows"


def test_table_7_3():
    "The best PreActResNet18 after 2, 4, 6, 8, 10 or 20 rounds."
    plan, expected = aip.table_7_3.plan(THESIS, PARTS), {}
    for dataset in PARTS:
        for rounds in (2, 4, 6, 8, 10, 20):
            how = as_the_thesis(dataset, "preactresnet18", "best.accuracy", LONG)
            expected[dataset, str(rounds)] = (how, searched(dataset, rounds))
    assert {k: (training_of(c), method_of(c)) for k, c in plan.items()} == expected
    assert printed("7.3") == plan.keys() and aip.table_7_3.along == "columns"


def test_table_7_4():
    "The best PreActResNet18 with the search at the input layer, and without (as in table 7.1)."
    plan, expected = aip.table_7_4.plan(THESIS, PARTS), {}
    for dataset in PARTS:
        how = as_the_thesis(dataset, "preactresnet18", "best.accuracy", LONG)
        expected["AIP", dataset] = (how, searched(dataset))
        expected["AIP (w/ input layer)", dataset] = (how, searched(dataset, at_image=True))
    assert {k: (training_of(c), method_of(c)) for k, c in plan.items()} == expected
    assert printed("7.4") == plan.keys() and aip.table_7_4.along == "rows"
    shared = aip.table_7_1.plan(THESIS, PARTS)["AIP", "Best / CIFAR-10"].runs
    assert plan["AIP", "CIFAR-10"].runs == shared


def test_table_7_1_ours():
    "Runs as those of table 7.1, with 1,000 images to choose by, that watch the test images."
    plan = aip.table_7_1_ours.plan(THESIS, PARTS[:1])
    assert list(plan) == [(m, c) for m in aip.WATCHED for c in aip.CHOOSING]
    for (row, _), cell in plan.items():
        other = aip.table_7_1.plan(THESIS, PARTS)[row, "Best / CIFAR-10"]
        for run, same in zip(cell.runs, other.runs, strict=True):
            assert (run.recipe.select, run.recipe.watch, run.data.held_out) == (
                "held-out",
                "test",
                1000,
            )
            recipe = dataclasses.replace(run.recipe, select="test", watch="")
            data = dataclasses.replace(run.data, held_out=0)
            assert dataclasses.replace(run, recipe=recipe, data=data) == same
    none = dataclasses.replace(THESIS, held_out=0)
    cells = aip.table_7_1_ours.plan(none, PARTS[:1])
    assert cells.keys() == plan.keys()
    assert all(not c.runs and "no images are held out" in c.reason for c in cells.values())


@pytest.mark.parametrize("by, expected", [("held-out", 61.0), ("test", 64.0)])
def test_the_epoch_is_chosen_by_the_images_that_are_named(by, expected):
    "The first of two equal epochs; the accuracy is that on the test images."
    accuracies = [(50, 60), (70, 61), (70, 62), (65, 64)]
    names = "held-out accuracy", "test accuracy"
    history = [dict(zip(names, map(float, a), strict=True)) for a in accuracies]
    store = SimpleNamespace(record=lambda run: SimpleNamespace(history=history))
    assert aip.ChosenBy(by).value(store, None) == expected
    assert aip.Optimism().value(store, None) == 3.0


def test_the_clean_recipe_has_no_habits_of_public_code():
    "`recipe = papers`: what a reader of the papers alone would run; it says how it differs."
    papers = dataclasses.replace(THESIS, recipe="papers")
    for dataset in PARTS:
        cell = aip.table_7_1.plan(papers, PARTS)["AIP", f"Best / {dataset}"]
        how = as_the_thesis(dataset, "preactresnet18", "best.accuracy", LONG)
        how |= {"data": (FILES[dataset], dataset, 0, 0, 1000), "reason": cell.reason}
        how |= {"network": ("preactresnet18", 1.0, "held-out", 4)}
        how |= {"plain": (False, 0.0, "steps", 0.1, "fp32")}
        assert training_of(cell) == how
        for word in ("1,000 images held out", "best epoch by held-out images", "plain momentum"):
            assert word in cell.reason, cell.reason
        assert ("preactresnet18_stride2" in cell.reason) == (dataset == "Tiny ImageNet")
        assert ("crops padded by 4" in cell.reason) == (dataset != "Tiny ImageNet")


def test_table_7_5(tmp_path, monkeypatch):
    "Seconds of a batch of 128 CIFAR-10 images (32 × 32), PreActResNet18, K = 8."
    monkeypatch.setenv("THESIS_REPRO_OUTPUTS", str(tmp_path))
    started = []

    def timed(actions, repeats, device):
        assert (repeats, device) == (20, "cpu")
        return pd.DataFrame({name: [4.0 * (i + 1)] * repeats for i, name in enumerate(actions)})

    monkeypatch.setattr(step_times, "paired_seconds", timed)
    monkeypatch.setattr(step_times, "synthetic_images", lambda n, size: (n, size))
    monkeypatch.setattr(step_times, "pixels", lambda x: x)
    monkeypatch.setattr(
        step_times.training, "start", lambda *a, **k: started.append((*a, k["compute"])) or Images
    )
    cells = {(c.row, c.column): c for c in aip.cells_7_5(THESIS, {})}
    for recipe, images, length, compute in started:
        assert (recipe.network, recipe.width, length.batch_size) == ("preactresnet18", 1.0, 128)
        assert images == (512, 32)
        assert (compute.bf16, compute.channels_last, compute.compile) == (False, True, False)
    made = {c.column: c.values[0] for c in cells.values() if c.row == "elapsed time [s]"}
    mixup, manifold, described, ternary, fast = (recipe.method.method for recipe, *_ in started)
    assert list(made.values()) == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert list(made)[:3] == ["mixup", "Manifold mixup", "AIP"]
    assert (mixup.layers, ratio_of(mixup.ratio), mixup.loss) == (
        (0,),
        ("Beta", 1.0, "batch"),
        "bce",
    )
    assert (ratio_of(manifold.ratio), manifold.loss) == (("Beta", 2.0, "batch"), "bce")
    assert (type(described).__name__, described.rounds) == ("AsDescribed", 8)
    assert (ratio_of(ternary.ratio), ratio_of(fast.ratio)) == (
        ("Ternary", 8, 1.0),
        ("LogitCurve", 3, 65),
    )
    assert [m.layers for m in (manifold, described, ternary, fast)] == [(0, 1, 2, 3)] * 4
    assert printed("7.5") <= cells.keys() and aip.table_7_5.along == "columns"
    assert cells["mixup batches", "AIP"].values[0] == 3.0
    assert {c.unit for k, c in cells.items() if k[0] == "elapsed time [s]"} == {"s"}


@pytest.mark.parametrize("number", ["7.1", "7.2", "7.3", "7.4", "7.1.ours", "7.5"])
def test_a_table_names_its_search(number):
    assert "ternary search" in registry.TABLES[number].title


def test_adamixup_says_in_what_it_differs_from_its_public_code(tmp_path, monkeypatch):
    "SITE5039/AdaMixUp, read: each difference once, below the table, also where it was saved."
    monkeypatch.setenv("THESIS_REPRO_OUTPUTS", str(tmp_path))
    smoke = settings.load("smoke", 7, device="cpu")
    table = aip.table_7_1(smoke, ("CIFAR-10",), train=False)
    again = artefacts.read_table(tmp_path / "smoke" / "tables" / "table_7_1.json")
    for made in (table, again):
        marked = [row["name"] for row in layout(made)["rows"] if row["note"]]
        assert sorted(marked) == sorted(made.notes) == ["AdaMixup", "MetaMixup"]
        assert "only the abstract was read" in made.text()
        for text in (made.text(), made._repr_html_(), as_markdown(made), as_latex(made)):
            for word in ("ResNet that sees a noisy mean", "another end", "and as many others"):
                assert text.count(word) == 1
            for word in ("their mean, of half as many", "SGD for all"):
                assert text.count(word) == 1


class Images:
    "What training.start gives, as far as making the timed steps needs it."

    class images:
        x_train, y_train = range(512), range(512)


@pytest.mark.parametrize("row", ["mixup", "Manifold mixup", "AIP"])
def test_figures_are_of_preactresnet18_on_cifar10(row, monkeypatch):
    "Figure 7.3's caption."
    monkeypatch.setattr(aip.Store, "ensure", lambda self, runs: None)
    found = aip.row_of(THESIS, row, PARTS)
    how = as_the_thesis("CIFAR-10", "preactresnet18", "last.accuracy", LONG)
    assert (training_of(found), method_of(found)) == (how, as_described("CIFAR-10")[row])


# What the figures, the facts and the bench are made with


def test_a_search_is_what_its_name_says():
    "The numbers of rounds are those of table 7.3."
    rounds = [f"ternary K = {k}" for k in dict.fromkeys(published("7.3").column)]
    few, fewer = ([f"{{}}, {n} passes" for n in counts] for counts in ((4, 6, 8), (2, 3, 4)))
    counted = {"golden section": few, "parabolic": few, "logit curve": fewer}
    names = [text.format(kind) for kind, texts in counted.items() for text in texts]
    assert list(aip.COMPARED) == ["λ = 0.5", *rounds, *names]
    said = {name: int(re.search(r"[0-9]+(?= pass|$)", name)[0]) for name in [*rounds, *names]}
    assert {name: aip.COMPARED[name].rounds for name in rounds} == {n: said[n] for n in rounds}
    assert {name: aip.COMPARED[name].passes for name in names} == {n: said[n] for n in names}
    assert aip.COMPARED["λ = 0.5"] == Fixed(0.5) and set(aip.SHOWN) <= set(aip.COMPARED)


def test_the_stages_are_manifold_mixup_at_a_constant_rate():
    for run in aip.stages(THESIS).values():
        how = run.recipe.optimiser
        assert run.recipe.method == Mixup((0, 1, 2, 3), Beta(2.0), loss="bce")
        assert (run.recipe.network, run.length.batch_size, how.lr) == ("preactresnet18", 128, 0.1)
        assert how.decay(0.0) == how.decay(0.99) == 1


def test_the_panels_of_figure_7_1():
    "mixup at the image, manifold mixup at the image and above, AIP searched above it."
    found = {t: (ratio_of(ratio), layers) for t, (ratio, layers) in aip.sampled_ways().items()}
    searched = {f"AIP, K = 6: λ searched at l = {k}": (("Ternary", 6, 1.0), (k,)) for k in ALL[1:]}
    assert found == {
        "mixup: λ ~ Beta(1, 1)": (("Beta", 1.0, "pair"), (0,)),
        "Manifold mixup: λ ~ Beta(2, 2)": (("Beta", 2.0, "pair"), ALL),
        **searched,
    }


def test_the_facts_of_figure_7_2_are_those_that_claims_ask_for(monkeypatch):
    asked = []
    monkeypatch.setattr(aip, "facts_of", lambda *given: asked.append(given[-1]))
    aip.kept_facts(THESIS, None, "frozen")
    cells = {cell for q in claims(7).quantity for cell in quantity_cells(q)}
    rows = {row for table, row, _ in cells if table == "figure_7_2" and row.startswith("ternary")}
    assert rows and asked == [{row: aip.Ternary(int(row.partition("=")[2])) for row in rows}]


@pytest.mark.parametrize("epochs", (0, 3, 500))
def test_the_bars_of_the_bench(epochs, monkeypatch):
    "Measured afresh, on one run of three epochs."
    seconds = {"mixup": 1.0, "Manifold mixup": 1.1, "AIP as described": 6.0}
    seconds |= {"AIP ternary": 3.0, "AIP fast": 1.5}
    method = SimpleNamespace(loss="ce")
    run = SimpleNamespace(recipe=SimpleNamespace(method=method))

    def timed(preset, fresh):
        return {"value": {k: [v] * 3 for k, v in seconds.items()}} if fresh else None

    def trained(preset, row):
        assert (preset.seeds, preset.epochs, row) == (1, 3, "AIP")
        return SimpleNamespace(runs=(run,))

    monkeypatch.setattr(aip, "timings", timed)
    monkeypatch.setattr(aip, "row_of", trained)
    monkeypatch.setattr(aip, "network_and_images", lambda preset, run: ("net", "images"))
    shares = {("net", "images", "ce"): {"fast": 0.97}}
    monkeypatch.setattr(aip, "search_loss_shares", lambda n, d, loss: shares[n, d, loss])
    found = {f["name"]: f for f in aip.bench(dataclasses.replace(THESIS, epochs=epochs))}
    bars = {"AIP ternary against mixup": "at most 3.3", "AIP fast against mixup": "at most 1.8"}
    bars["loss that AIP fast reaches, of ternary K = 8"] = "at least 0.98"
    assert {name: f["bar"] for name, f in found.items() if f["bar"]} == bars
    assert [found[name]["ok"] for name in bars] == [True, True, False]
    assert found["AIP as described against mixup"]["value"] == 6.0


@pytest.mark.parametrize("classes, drawn", [(2, True), (3, False)])
def test_images_that_are_sorted_by_class_are_drawn(classes, drawn):
    "Where the first are of fewer than a quarter of ten classes."
    d = data.load("faint10", train_size=48, test_size=20, held_out=0)
    d = dataclasses.replace(d, y_train=torch.arange(48) % classes)
    x, y = measured_facts.some_images(d, 40)
    assert len(x) == len(y) == 40 and torch.equal(x, pixels(d.x_train[:40])) != drawn


def test_facts_are_of_128_images_at_three_layers_and_surfaces_of_256(monkeypatch):
    method, asked = SimpleNamespace(loss="ce"), []
    run = SimpleNamespace(recipe=SimpleNamespace(method=method), seed=3)
    preset = SimpleNamespace(search_points=9, surface_points=5, surface_pairs=2)

    def measured(store, name, on, compute, by=()):
        asked.append((on, [*by]))
        return compute()

    made = {"Store": lambda preset: None, "network_and_images": lambda *given: ("net", "images")}
    made |= {"some_images": lambda d, n: (n, n), "measure": measured}
    made |= {"pairs_at": lambda net, x, y, layer, **how: (x, layer, *how.values())}
    made |= {"search_facts": lambda pairs, searches, points: (list(pairs), points)}
    made |= {"surface_columns": lambda net, x, y, *how: {"how": [(x, *how)]}}
    for name, made_up in made.items():
        monkeypatch.setattr(measured_facts, name, made_up)
    facts = measured_facts.facts_of(preset, "facts", run, "frozen", {"K=6": aip.Ternary(6)})
    assert facts == ([(128, layer, "frozen", "ce") for layer in (1, 2, 3)], 9)
    surfaces = measured_facts.surfaces_of(preset, run)
    assert [s.how[0] for s in surfaces] == [(256, 0.5, 5, pair) for pair in (0, 1)]
    (_, by), *of_surfaces = asked
    assert by == [aip.Ternary]  # whose code makes the facts stale
    assert [on["radius"] for on, _ in of_surfaces] == [0.5, 0.5]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "tf32"])
def test_seconds_are_kept_with_what_they_were_measured_with(precision, monkeypatch):
    asked = []
    monkeypatch.setattr(measured_facts, "Store", lambda preset: None)
    monkeypatch.setattr(measured_facts, "kept_file", lambda *of: None)
    monkeypatch.setattr(measured_facts, "read_kept", lambda file: None)
    monkeypatch.setattr(measured_facts, "measure", lambda *given, by: asked.append(given))
    preset = dataclasses.replace(THESIS, precision=precision)
    measured_facts.kept_seconds(preset, "seconds", {})
    ((_, name, on, _, fresh),) = asked
    how = {"batch": preset.timing_batch, "repeats": preset.timing_repeats, "device": "cpu"}
    how |= {"progress": False, "channels_last": preset.channels_last, "methods": {}}
    how |= {"bf16": precision == "bf16"} | ({"tf32": True} if precision == "tf32" else {})
    assert (name, on, fresh) == ("seconds", how, False)


def test_facts_of_weights_that_are_elsewhere_are_not_measured(tmp_path, monkeypatch):
    "Where they are here, what is wrong with them is said."
    monkeypatch.setattr(
        measured_facts, "Store", lambda preset: SimpleNamespace(home=tmp_path.joinpath)
    )
    monkeypatch.setattr(measured_facts, "no_evidence", lambda store, runs: "")

    def kept(preset, run, statistics):
        raise BadInput("weights.ckpt: damaged")

    cells = measured_facts.search_cells(THESIS, Planned(("run",)), kept)
    assert len(cells) == 8 and not any(cell.values for cell in cells)
    assert {cell.reason for cell in cells} == {"not measured: the weights are not here"}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "weights.ckpt").touch()
    with pytest.raises(BadInput, match="damaged"):
        measured_facts.search_cells(THESIS, Planned(("run",)), kept)
