"Section 2.2: what its figures measure, against NumPy; the zoo against the contract; the atlas."

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from thesis_repro import adversarial, atlas, background, data, models, runs, settings, training
from thesis_repro.adversarial import AVmixup, Examples
from thesis_repro.artefacts import Table
from thesis_repro.attacks import FGSM, PGD
from thesis_repro.background import UNDEFENDED
from thesis_repro.draws import Draws
from thesis_repro.images import pixels
from thesis_repro.mixup import Plain
from thesis_repro.recipes import SGD, Classify, Decay
from thesis_repro.tables import Cell, compare
from thesis_repro.training import Compute, Length
from thesis_repro.zoo import ZOO, zoo_table

QUIET = Compute(progress=False)
EQUATIONS = [f"eq-2.{n}" for n in range(18, 40)]
FIGURES = [f"fig-2.{n}" for n in (8, 11, 13, 14, 15, 16)]


@pytest.fixture(scope="module")
def digits():
    return data.load("faint10", train_size=200, test_size=200, held_out=20)


@pytest.fixture(scope="module")
def net(digits):
    "A small network that has learned something, in eval mode."
    recipe = Classify("resnet18", Plain("ce"), SGD(lr=0.05, decay=Decay(kind="cosine")), 0.0625)
    t = training.start(recipe, replace(digits, crop=0), Length(8, 20), compute=QUIET)
    return training.train(t).nets["model"].eval()


@pytest.fixture(scope="module")
def e(net, digits):
    batch = Examples(net, pixels(digits.x_test[:100]), digits.y_test[:100], Draws(0))
    batch = adversarial.attacked(PGD(steps=4), batch)
    batch.inputs = batch.adversarial
    return batch


@pytest.fixture
def preset(tmp_path, monkeypatch):
    "The smallest preset, with a folder of its own for what it makes."
    monkeypatch.setenv("THESIS_REPRO_OUTPUTS", str(tmp_path))
    small = {
        "train_size": 60,
        "test_size": 60,
        "held_out": 10,
        "epochs": 1,
        "batch_size": 20,
        "attack_size": 30,
    }
    return settings.load("smoke", chapter=2, jobs=1, surface_points=3, **small)


# The contract


@pytest.fixture(scope="module")
def items():
    return {i.id: i for i in atlas.items()}


@pytest.mark.parametrize("item", [*EQUATIONS, *FIGURES, "met-attacks", "met-at-zoo"])
def test_the_atlas_finds_every_item_of_section_2_2(items, item):
    found = items[item]
    assert found.state == "made" and found.notebook.endswith(".ipynb")
    if item in FIGURES:
        assert found.function == f"thesis_repro.background.figure_{item[4:].replace('.', '_')}"


MAKERS = """\
2.19 szegedy, 2.20 FGSM, 2.21 PGD, 2.23 fosc, 2.24 alp, 2.25 trades, 2.26 mart, 2.27 triplet,
2.28 tla, 2.29 dirichlet, 2.30 pc_loss, 2.31 pc_lc, 2.36 gairat, 2.37 margin, 2.38 mail,
2.39 wmmr"""


@pytest.mark.parametrize("equation,word", [pair.split() for pair in MAKERS.split(",")])
def test_an_equation_leads_to_what_computes_it(equation, word):
    found = atlas.where(f"eq {equation}")
    assert any(
        word.lower() in name.rpartition(".")[2].lower() for name in (found.function, *found.also)
    )


def test_the_zoo_has_a_row_for_every_method_of_the_contract():
    title = next(i.title for i in atlas.contract() if i.id == "met-at-zoo")
    named = title.partition("works as a row of the zoo: ")[2].split("; ")
    assert len(named) > 30
    assert set(named) == set(ZOO) == set(zoo_table().index)


def test_every_row_can_be_a_run(preset):
    zoo = {name: background.zoo_run(preset, name) for name in (UNDEFENDED, *ZOO)}
    assert len({r.key for r in zoo.values()}) == len(zoo)
    plan = background.plan_2_ours(replace(preset, seeds=3), background.DATASETS)
    assert {row for row, _ in plan} == set(zoo)
    assert {column for _, column in plan} == {"clean", "PGD-20"}
    assert all(p.runs == (zoo[row],) for (row, _), p in plan.items())
    assert all(r.seed == 0 for r in zoo.values())


# Attacks and what is read


def test_right_images_are_right_and_in_order(net, digits):
    x, y = background.right_images(net, digits, 30)
    assert (net(x).argmax(1) == y).all() and len(y) == 30
    right = (net(pixels(digits.x_test)).argmax(1) == digits.y_test).nonzero().squeeze(1)[:30]
    assert torch.equal(x, pixels(digits.x_test)[right])


def test_most_striking_must_have_been_right_before_and_wrong_after():
    y = torch.tensor([0, 1, 2, 3])
    before = torch.tensor([5, 1, 2, 3]), torch.tensor([1.0, 0.8, 0.9, 1.0])
    after = torch.tensor([5, 7, 7, 3]), torch.tensor([1.0, 0.9, 0.5, 1.0])
    assert background.most_striking(before, after, y) == 1


def test_attack_table_measures_changes(net, digits):
    x, y = pixels(digits.x_test[:20]), digits.y_test[:20]
    moved = x.clone()
    moved[:, 0, 0, 0] += torch.where(x[:, 0, 0, 0] > 0.5, -0.1, 0.1)
    line = background.attack_table(net, x, y, {"one pixel": moved, "none": x[:5]}).loc
    np.testing.assert_allclose(
        line["one pixel", ["L∞ × 255", "L2", "L1"]].astype(float), [25.5, 0.1, 0.1], rtol=1e-5
    )
    assert line["none", "images"] == 5 and line["none", "L2"] == 0
    right = (net(x[:5]).argmax(1) == y[:5]).float().mean().item()
    assert line["none", "accuracy"] == pytest.approx(100 * right)


def test_transfer_table_attacks_rows_and_reads_columns(net, digits):
    x, y = pixels(digits.x_test[:60]), digits.y_test[:60]
    other = models.build("resnet18", 10, 0.0625, 3, digits.mean, digits.std, seed=1).eval()
    table = background.transfer_table({"a": net, "b": other}, x, y, FGSM())
    for source, column in (("a", "b"), ("b", "a"), ("a", "a")):
        made = FGSM()({"a": net, "b": other}[source], x, y, Draws(0))
        expected = ({"a": net, "b": other}[column](made).argmax(1) == y).float().mean().item()
        assert table.loc[source, column] == pytest.approx(100 * expected)


# Figure 2.11


def test_labels_are_linear_from_image_to_vertex():
    mix = AVmixup(gamma=2.0, lambda1=0.9, lambda2=0.3)
    for t in (0.0, 0.5, 1.0, 2.0):
        mass = 0.9 + (0.3 - 0.9) * t / 2
        expected = np.full(5, (1 - mass) / 4)
        expected[2] = mass
        np.testing.assert_allclose(background.label_at(t, 2, 5, mix), expected, rtol=1e-6)


def test_drawn_labels_lie_where_the_labels_of_the_line_are(e):
    drawn = background.drawn_labels(e)
    assert drawn.t.between(0, 2 + 1e-6).all() and drawn.t.std() > 0.3
    expected = [background.label_at(t, y, 10)[y].item() for t, y in zip(drawn.t, e.y, strict=True)]
    np.testing.assert_allclose(drawn["mass"], expected, atol=1e-4)


def test_along_perturbation_begins_at_the_image_and_passes_the_adversarial_one(e):
    line = background.along_perturbation(e.model, e, 2.0, points=5)

    def p(x):
        return e.model(x).softmax(1)[range(100), e.y].mean().item()

    assert line["mass"][0] == pytest.approx(p(e.x), abs=1e-6)
    assert line["mass"][2] == pytest.approx(p(e.adversarial), abs=1e-6)


# Figure 2.15


def test_real_data_keeps_its_labels(digits):
    thesis, smoke = (settings.load(name, chapter=2) for name in ("thesis", "smoke"))
    ours, whole = background.long_run(thesis, "AWP", "CIFAR-10")
    assert ours == whole and ours.length == Length(200, 128)
    assert (ours.data.name, ours.data.train, ours.data.wrong_labels) == ("cifar10", 0, 0)
    small, _ = background.long_run(smoke, "AWP", "CIFAR-10")
    assert small.data.stands_in and small.data.train == 300
    told, true = small.data.images(), runs.Named(*background_sizes(small.data)).images()
    assert (told.y_train != true.y_train).any() and told.crop == 0
    kept = replace(small.data, wrong_labels=0.0).images()
    assert torch.equal(kept.y_train, true.y_train) and kept.crop == true.crop


def background_sizes(named):
    "Name and sizes of a data set, without what a figure makes of it."
    return named.name, named.train, named.test, named.held_out


# Figure 2.16


def test_importance(e):
    samples = background.importance(e.model, e.x, e.y)
    assert samples[["GAIRAT", "MAIL", "WMMR"]].mean().to_numpy() == pytest.approx(
        [1, 1, 1], rel=1e-5
    )
    x = adversarial.attacked(PGD(), Examples(e.model, e.x, e.y, Draws(0))).adversarial
    p = e.model(x).softmax(1).detach().double().numpy()
    y = e.y.numpy()
    other = np.array(
        [max(v for j, v in enumerate(row) if j != t) for row, t in zip(p, y, strict=True)]
    )
    np.testing.assert_allclose(samples.true, p[range(100), y], atol=1e-5)
    np.testing.assert_allclose(samples.margin, other - p[range(100), y], atol=1e-5)
    ordered = samples.sort_values("margin")
    assert (ordered.MAIL.diff().dropna() >= -1e-6).all() and (
        ordered.WMMR.diff().dropna() >= -1e-6
    ).all()
    by_steps = samples.groupby("kappa").GAIRAT.agg(["min", "max"])
    assert (by_steps["max"] - by_steps["min"]).max() < 1e-5
    assert (by_steps["max"].diff().dropna() <= 1e-6).all()


# Whole figures and the table, at the smallest size


def test_figure_2_8_shows_a_real_adversarial_example(preset):
    made = background.figure_2_8(preset)
    shown = made.frame[made.frame.shown]
    right = made.frame.label == made.frame.read
    misled = right & (made.frame["read after"] != made.frame.label)
    assert len(shown) == 1 and len(made.frame) == 60
    assert misled[made.frame.shown].all() or not misled.any()
    assert made.cells[0].values[0] == pytest.approx(100 * misled.sum() / right.sum(), abs=1e-3)
    assert made.files()[0].with_suffix(".png").stat().st_size > 5000


def test_figures_are_measured_once(preset, monkeypatch):
    own, asked = background.margin_updates, []

    def counted():
        asked.append(len(asked))
        return own(epsilons=(0.1, 1.0))

    monkeypatch.setattr(background, "margin_updates", counted)
    first = background.figure_2_13(preset)
    again = background.figure_2_13(preset)
    assert asked == [0]
    pd.testing.assert_frame_equal(first.frame, again.frame)
    grew = {c.row: c.values[0] for c in first.cells}
    gain = (first.frame.after - first.frame.before)[first.frame.epsilon.isna()]
    assert grew["boundary"] == pytest.approx(100 * (gain > 0).mean())


def test_the_table_of_the_zoo(preset):
    few, scores = (
        ["Fast AT", "COT", "MART", "Free AT"],
        {UNDEFENDED: 10.0, "Fast AT": 12.0, "COT": 30.0, "MART": 10.0},
    )
    cells = [Cell(m, "clean", (50.0,)) for m in (UNDEFENDED, *few)]
    cells += [
        Cell(m, "PGD-20", (scores[m],)) if m in scores else Cell(m, "PGD-20")
        for m in (UNDEFENDED, *few)
    ]
    table = background.shown_zoo(Table(number="2.ours", title="", frame=compare("2.ours", cells)))
    assert list(table.index) == [UNDEFENDED, *few]
    assert table["beats undefended"].tolist() == ["—", "yes", "—", "no", "—"]
    assert table["PGD-20"].tolist()[:4] == [10.0, 12.0, 30.0, 10.0] and (table.clean == 50).all()
    assert table.loc["Fast AT", "cost"] == ZOO["Fast AT"].cost


def test_the_changes_are_labelled_by_their_size(net, digits):
    x, y = pixels(digits.x_test[:3]), digits.y_test[:3]
    figure = background.draw_attack(net, x, y, (x + 8 / 255).clamp(0, 1))
    rows = [[ax.get_title() for ax in row] for row in np.array(figure.axes).reshape(3, 3)]
    assert rows[1] == ["± 8/255"] * 3
    assert all(title.endswith(" %)") for row in (rows[0], rows[2]) for title in row)
