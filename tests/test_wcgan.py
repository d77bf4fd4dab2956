"""Chapter 3: its equations against references written here, what its methods are made of, how large
the published networks are, and that its tables and figures can be made small."""

import functools
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from thesis_repro import (
    atlas,
    claims,
    cli,
    gans,
    glyphs,
    notebooks,
    preferences,
    settings,
    wcgan,
    weighted,
)
from thesis_repro.conditional_gans import affordable, fitting, small_run, whole_run
from thesis_repro.draws import Draws
from thesis_repro.extractors import EfficientNetLite, Inception
from thesis_repro.face_attributes import FACES, SHOWN, played, wanted
from thesis_repro.files import BadInput
from thesis_repro.games import Judgement, NonSaturating, Wasserstein
from thesis_repro.gan_networks import AtInput, DcganGenerator, EveryLayer, Unseen
from thesis_repro.gan_progressive import ProgressiveGenerator
from thesis_repro.gans import Auxiliary, Drift, GradientPenalty
from thesis_repro.measures import Planned
from thesis_repro.paired import gap, paired_error
from thesis_repro.pieces import from_specification, specification
from thesis_repro.published import published
from thesis_repro.recogniser import Recognise
from thesis_repro.runs import Named, seeded, shortfall
from thesis_repro.selection import ByPeople
from thesis_repro.store import Store
from thesis_repro.tables import compare
from thesis_repro.wcgan import GRID, METHODS
from thesis_repro.weighted import WcLayer, Weighted


@pytest.fixture
def preset(tmp_path, monkeypatch):
    "The smallest preset, with a folder of its own for what it makes."
    monkeypatch.setenv("THESIS_REPRO_OUTPUTS", str(tmp_path))
    small = {"train_size": 32, "test_size": 40, "held_out": 10, "epochs": 1, "seeds": 1}
    return settings.load("smoke", chapter=3, jobs=1, width=0.01, **small)


@pytest.fixture
def whole():
    return settings.load("thesis", chapter=3)


# The Wc-layer


@pytest.mark.parametrize("printed", [False, True])
def test_the_layer_is_a_convolution_and_a_sigmoid(printed):
    "Eq. 3.1 in float64 with its gradients, against NumPy and finite differences."
    torch.manual_seed(0)
    layer = WcLayer(5, 7, printed).double()
    c = torch.randint(0, 2, (4, 5)).double()
    w, b = (p.detach().numpy() for p in (layer.weigh.weight, layer.weigh.bias))
    phi = c.numpy() @ w.T + b
    expected = 1 / (1 + np.exp(phi if printed else -phi))
    np.testing.assert_allclose(layer(c).detach().numpy(), expected, rtol=1e-12)
    assert torch.autograd.gradcheck(layer, (torch.rand(3, 5).double().requires_grad_(),))
    kernel = layer.weigh.weight[:, :, None, None]
    with torch.no_grad():
        maps = torch.nn.functional.conv2d(c[:, :, None, None], kernel, layer.weigh.bias)
    torch.testing.assert_close(torch.from_numpy(phi), maps[:, :, 0, 0])


def test_it_begins_as_in_the_authors_code():
    torch.manual_seed(0)
    layer = WcLayer(5, 4000)
    assert abs(layer.weigh.weight.std().item() - 0.02) < 0.001
    assert not layer.weigh.bias.any() and Weighted().width == 32


@pytest.mark.parametrize("kind", [DcganGenerator, ProgressiveGenerator])
def test_every_layer_hears_by_a_layer_of_its_own(kind):
    net = kind(8, (6, 6, 6), Weighted(4)).build((3, 32, 32), 5).double().eval()
    layers = [m for m in net.modules() if isinstance(m, WcLayer)]
    assert len(layers) == 4 and len({id(m.weigh.weight) for m in layers}) == 4
    z, c = torch.randn(2, 8).double(), torch.eye(5).double()[:2]
    net(z, c).square().sum().backward()
    assert all(m.weigh.weight.grad.abs().sum() > 0 for m in layers)


# The losses


def binary_cross_entropy(logits, y, printed):
    "Eq. 3.2, written down for one image and one attribute after another."
    total = 0.0
    for row, truth in zip(logits.tolist(), y.tolist(), strict=True):
        for x, t in zip(row, truth, strict=True):
            p = 1 / (1 + math.exp(-x))
            total -= t * math.log(p) + (0 if printed else (1 - t) * math.log(1 - p))
    return total / len(logits)


@pytest.mark.parametrize("printed", [False, True])
def test_the_recognition_loss(printed):
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 5, generator=draw, dtype=torch.float64).requires_grad_()
    y = torch.randint(0, 2, (6, 5), generator=draw)
    found = gans.class_loss(logits, y, printed)
    assert math.isclose(found.item(), binary_cross_entropy(logits, y, printed), rel_tol=1e-12)
    found.backward()
    p = logits.detach().sigmoid()
    slope = (p - 1) * y if printed else p - y
    torch.testing.assert_close(logits.grad, slope / 6)


class Quadratic(torch.nn.Module):
    "D(x) = a · x + b |x|² / 2, whose slope is known: a + b x."

    def __init__(self, a, b):
        super().__init__()
        self.a, self.b = torch.nn.Parameter(a), torch.nn.Parameter(b)

    def forward(self, x, c, grown=None):
        x = x.flatten(1)
        return Judgement(x @ self.a + self.b * x.square().sum(1) / 2)


def test_the_loss_of_the_progressive_base():
    "Eq. 3.3 in float64 with the gradient by the critic's weights, of the terms that WcPGGAN has."
    draw = torch.Generator().manual_seed(1)
    real, fake = torch.randn(2, 4, 1, 2, 2, generator=draw, dtype=torch.float64)
    a = torch.randn(4, generator=draw, dtype=torch.float64)
    b = torch.tensor(0.3, dtype=torch.float64)
    recipe, draws, c = METHODS["WcPGGAN"], Draws(0, step=3), torch.zeros(4, 5)
    share = torch.from_numpy(draws.numpy("between").random(4))[:, None]

    def by_hand(a, b):
        x, made = real.flatten(1), fake.flatten(1)
        said = [v @ a + b * v.square().sum(1) / 2 for v in (x, made)]
        between = share * x + (1 - share) * made
        slopes = (a + b * between).square().sum(1).sqrt()
        loss = said[1].mean() - said[0].mean() + 10 * (slopes - 1).square().mean()
        return loss + 0.001 * said[0].square().mean()

    critic = Quadratic(a, b)
    seen = gans.Seen(torch.nn.ModuleDict({"critic": critic}), real, fake, c, c, draws)
    seen.of_real, seen.of_fake = seen.judge(real), seen.judge(fake)
    terms = [t for t in recipe.terms if not isinstance(t, Auxiliary)]
    loss = recipe.game.critic(seen.of_real.score, seen.of_fake.score)
    loss = loss + sum(t.critic(seen) for t in terms)
    torch.testing.assert_close(loss, by_hand(a, b))
    found = torch.autograd.grad(loss, (critic.a, critic.b))
    a, b = a.requires_grad_(), b.requires_grad_()
    expected = torch.autograd.grad(by_hand(a, b), (a, b))
    torch.testing.assert_close(found, expected)


# Contributions


def test_contributions_are_shares():
    "Eq. 3.7 against three loops."
    draw = torch.Generator().manual_seed(0)
    w = torch.randn(7, 5, generator=draw)
    expected = []
    for t in range(5):
        shares = [
            abs(w[n, t].item()) / sum(abs(w[n, m].item()) for m in range(5)) for n in range(7)
        ]
        expected.append(sum(shares) / 7)
    found = weighted.contribution(w)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert math.isclose(found.sum(), 1) and found.dtype == torch.float64
    torch.testing.assert_close(weighted.contribution(-3 * w), found)


def test_contributions_go_from_input_to_output():
    net = DcganGenerator(8, (6, 6), Weighted(4)).build((3, 16, 16), 5)
    with torch.no_grad():
        for i, given in enumerate(net.given):
            given.weigh.weight.fill_(0.01)
            given.weigh.weight[:, i] = 100.0
    assert weighted.contributions(net).argmax(1).tolist() == [0, 1, 2]
    torch.testing.assert_close(weighted.contributions(net).sum(1), torch.ones(3).double())


def test_what_has_no_contribution_is_refused():
    with pytest.raises(BadInput, match="no Wc-layer"):
        weighted.contributions(DcganGenerator(8, (6, 6)).build((3, 16, 16), 5))
    with pytest.raises(BadInput, match="all zero"):
        weighted.contribution(torch.tensor([[1.0, 2.0], [0.0, 0.0]]))


def test_pictures_of_each_level_are_those_of_the_generator():
    net = ProgressiveGenerator(8, (6, 6, 6), Weighted(4)).build((3, 16, 12), 5)
    c = torch.eye(5)[:2]
    pictures = weighted.at_each_level(net, c, Draws(0))
    assert [tuple(x.shape[2:]) for x in pictures] == [(4, 3), (8, 6), (16, 12)]
    for prior in ("normal", "uniform"):
        last = gans.generate(net, c, Draws(0), prior=prior)
        assert torch.equal(weighted.at_each_level(net, c, Draws(0), prior)[-1], last)


# People, and recognition


def test_the_score_of_a_survey():
    assert preferences.subjective_score([[1, 0], [1, 1]]) == 75
    for wrong in ([], [0, 2], [0.5]):
        with pytest.raises(BadInput, match="must be 0"):
            preferences.subjective_score(wrong)


def test_its_interval_is_one_of_people():
    rng = np.random.default_rng(0)
    answers = (rng.random((21, 150)) < rng.normal(0.5, 0.1, (21, 1))).astype(int)
    score, low, high = preferences.score_interval(answers)
    shares = 100 * answers.mean(1)
    expected = stats.t.interval(0.95, 20, shares.mean(), stats.sem(shares))
    np.testing.assert_allclose((low, high), expected, rtol=1e-9)
    assert math.isclose(score, shares.mean())
    # everybody's answers twice change nothing; one person is no sample of people
    twice = preferences.score_interval(np.concatenate([answers, answers], 1))
    np.testing.assert_allclose(twice, (score, low, high))
    with pytest.raises(BadInput, match="at least two"):
        preferences.score_interval(answers[:1])


def test_the_interval_of_people_with_unequal_numbers_of_answers():
    "Against the linearised variance of a ratio, written down."
    people = [[1, 1, 0], [0], [1, 0, 0, 0, 1], [1, 1]]
    n, m = np.array([2, 0, 2, 2]), np.array([3, 1, 5, 2])
    share = n.sum() / m.sum()
    variance = 4 / 3 * ((n - share * m) ** 2).sum() / m.sum() ** 2
    score, low, high = preferences.score_interval(people)
    assert math.isclose(score, 100 * share)
    half = 100 * stats.t.ppf(0.975, 3) * variance**0.5
    np.testing.assert_allclose((low, high), (score - half, score + half), rtol=1e-9)


def test_accuracy_of_attributes():
    "Eq. 3.5 and 3.6 against a loop over images."
    draw = torch.Generator().manual_seed(0)
    p = torch.rand(50, 3, generator=draw, dtype=torch.float64)
    t = torch.randint(0, 2, (50, 3), generator=draw)
    hits = [sum((p[i, k] > 0.5) == bool(t[i, k]) for i in range(50)) for k in range(3)]
    found = wcgan.attribute_accuracy(wcgan.right(p, t))
    assert found.tolist() == [2.0 * h for h in hits]
    assert wcgan.right(torch.tensor([[0.5]]), torch.tensor([[0]])).item() == 1  # a tie: not there


# The methods


def test_what_the_methods_are_made_of():
    assert all(
        from_specification(specification(r)) == r for r in (*METHODS.values(), *GRID.values())
    )
    heads = {name for name, r in METHODS.items() if r.critic.classes}
    assert heads == {"ACGAN", "WcDCGAN", "WcPGGAN"}
    for name, r in METHODS.items():
        assert (Auxiliary() in r.terms) == (name in heads)
        assert (r.critic.condition == Unseen()) == (name in heads)
    for name in ("cPGGAN", "WcPGGAN"):
        r = METHODS[name]
        assert r.game == Wasserstein() and r.terms[:2] == (GradientPenalty(10.0), Drift(0.001))
        assert r.generator.latent == 512 and r.growth.fade == pytest.approx(8 / 15)
    for name in ("ACGAN", "cDCGAN", "WcDCGAN"):
        assert METHODS[name].game == NonSaturating() and METHODS[name].generator.latent == 100
        assert METHODS[name].critic.compare
    assert [METHODS[n].generator.condition for n in ("cDCGAN", "WcDCGAN", "cPGGAN", "WcPGGAN")] == [
        AtInput(),
        Weighted(),
        AtInput(),
        Weighted(),
    ]


def test_down_a_base_of_the_grid_only_the_condition_changes():
    for base in ("DCGAN", "PGGAN"):
        rows = [r for name, r in GRID.items() if name.startswith(base)]
        places = [r.generator.condition for r in rows]
        assert places == [AtInput(), EveryLayer(), Weighted()]
        same = [replace(r, generator=replace(r.generator, condition=Unseen())) for r in rows]
        assert same[0] == same[1] == same[2]


def test_the_rows_that_the_thesis_prints_twice_are_one_run():
    assert GRID["DCGAN / Input only"] == METHODS["ACGAN"] == wcgan.ROWS_3_2["Input only"]
    last = wcgan.ROWS_3_2["All layers+Wc-layer"]
    assert last == METHODS["WcPGGAN"] == wcgan.ROWS_3_3["Recognition branch: yes"]
    first, second, third = (
        published(t).set_index(["row", "column"]).value for t in ("3.1", "3.2", "3.3")
    )
    for column in ("IS", "FID"):
        assert first["ACGAN", column] == second["Input only", column]
        best = first["WcPGGAN (Proposed)", column]
        assert best == second["All layers+Wc-layer", column]
        assert best == third["Recognition branch: yes", column]


def test_without_the_branch_nothing_else_changes():
    cut, yes = (wcgan.ROWS_3_3[f"Recognition branch: {word}"] for word in ("no", "yes"))
    assert replace(cut.critic, classes=yes.critic.classes) == yes.critic
    assert (*cut.terms, Auxiliary()) == yes.terms and cut.generator == yes.generator
    theirs = wcgan.ROWS_3_3["As the author's code"]
    assert theirs.terms[-1] == Auxiliary(on_fake=False, to_generator=False)
    assert theirs.critic.condition == EveryLayer() and theirs.generator == yes.generator


def parameters(piece, side=128, labels=5):
    return sum(p.numel() for p in piece.build((3, side, side), labels).parameters())


def test_parameters_of_the_dcgan_base():
    "Counted by hand: six layers of the generator with batch norm, five of the critic, its heads."
    widths, told = [512, 256, 128, 64, 32], {"ACGAN": [5, 0, 0, 0, 0, 0], "WcDCGAN": [32] * 6}
    for name, more in told.items():
        sizes = [100, *widths, 3]
        count = sum((sizes[i] + more[i]) * sizes[i + 1] * 16 for i in range(6)) + 2 * sum(widths)
        count += 6 * (5 * 32 + 32) if name == "WcDCGAN" else 0
        assert parameters(METHODS[name].generator) == count
    up = [3, *widths[::-1]]
    convolutions = sum((up[i] + (i == 4)) * up[i + 1] * 16 for i in range(5)) + 2 * sum(up[2:])
    features = 512 * 4 * 4
    recognition = features * 512 + 512 + 512 * 5 + 5
    assert parameters(METHODS["WcDCGAN"].critic) == convolutions + features + recognition


def test_parameters_of_the_progressive_base():
    "Counted by hand; the widths are those of the author's code."
    widths = [512, 512, 256, 128, 64, 32]
    for name, more in (("cPGGAN", 0), ("WcPGGAN", 32)):
        first = 512 + (more or 5)
        count = first * widths[0] * 16 + widths[0] + widths[0] ** 2 * 9 + widths[0]
        for a, b in itertools.pairwise(widths):
            count += (a + more) * b * 9 + b + b * b * 9 + b
        count += sum(w * 3 + 3 for w in widths) + (6 * (5 * 32 + 32) if more else 0)
        whole = fitting(METHODS[name], (3, 128, 128))
        assert parameters(whole.generator) == count
    fitted = fitting(METHODS["WcPGGAN"], (3, 128, 128)).generator.channels
    assert fitted == (512, 512, 256, 128, 64, 32)


def test_networks_fit_images_of_any_size():
    for side, depth in ((16, 2), (32, 3), (64, 4), (128, 5)):
        for recipe in METHODS.values():
            r = fitting(recipe, (3, side, side))
            widths = len(r.generator.channels), len(r.critic.channels)
            assert widths == ((depth + 1,) * 2 if r.growth else (depth,) * 2)
            assert r.generator.channels[0] == r.critic.channels[0 if r.growth else -1] == 512
    assert fitting(METHODS["WcPGGAN"], (3, 256, 192)).generator.channels[-1] == 16


# The runs


def test_at_the_thesis_scale_nothing_is_missing(whole):
    for name, recipe in METHODS.items():
        run = whole_run(whole, name, recipe)
        assert affordable(whole, recipe) == whole
        assert shortfall(small_run(whole, name, recipe), run) in ("", "bf16")
        assert run.data == Named("celeba", attributes=FACES)
        assert run.recipe == fitting(recipe, (3, 128, 128))
        length = run.length
        assert (length.epochs, length.batch_size) == ((20, 16) if recipe.growth else (100, 100))
    # the author's 600,000 images a level
    assert abs(20 * 181_637 / 6 - 600_000) < 10_000
    run = wcgan.tall_run(whole)
    assert (run.data.name, run.length.epochs) == ("celeba_tall", 23)
    assert run.data.outline().shape == (3, 256, 192)
    assert len(run.recipe.generator.channels) == 7


def test_glyphs_play_the_attributes_of_faces(preset, whole):
    assert played(whole, SHOWN) == SHOWN
    five = ("Inverted", "Framed", "Red", "Dotted", "Striped")
    assert played(preset, FACES) == played(preset, SHOWN) == five
    c = wanted(preset, FACES, ("Male", "Goatee"), 2)
    assert c.tolist() == [[1, 0, 0, 1, 0]] * 2
    assert wanted(whole, SHOWN, ("Smiling",), 1).tolist() == [[0, 0, 0, 0, 1]]


def test_tall_images_are_the_middle(preset):
    run = wcgan.tall_run(preset)
    images, inner = run.data.images(), run.data.data.images()
    assert torch.equal(images.x_test, inner.x_test[..., 2:14])
    assert images.x_test.shape[1:] == run.data.outline().shape == (3, 16, 12)
    assert run.data.stands_in and "glyphs" in run.data.title


def test_the_plans(preset):
    plan = wcgan.plan_3_1(preset)
    printed = set(zip(published("3.1").row, published("3.1").column, strict=True))
    people = {(row, wcgan.PEOPLE) for row in wcgan.PRINTED if row != "ACGAN"}
    assert printed == people | (printed & set(plan)) and not people & set(plan)
    for number, rows in (("3.2", wcgan.ROWS_3_2), ("3.3", wcgan.ROWS_3_3)):
        plan = wcgan.planned(rows, preset)
        printed = set(zip(published(number).row, published(number).column, strict=True))
        assert printed <= set(plan)
        said = [p.reason for (_, column), p in plan.items() if column == "FID"]
        assert all(s.startswith("by resnet18 of digits10, not by Inception") for s in said)
    grid = wcgan.planned(GRID, preset)
    assert grid["DCGAN / Input only", "FID"].runs == (wcgan.plan_3_1(preset)["ACGAN", "FID"].runs)
    none = wcgan.planned(GRID, preset, ("MNIST",))
    assert not any(p.runs for p in none.values())


def test_the_claims_of_ours_name_cells_of_the_grid(preset):
    grid = wcgan.planned(GRID, preset)
    quantities = claims.published.claims(3).set_index("id").quantity
    quantities = quantities[quantities.index.str.startswith("3.2-grid")]
    cells = {c for quantity in quantities for c in claims.quantity_cells(quantity)}
    assert len(quantities) == 4 and {table for table, _, _ in cells} == {"table_3_2_grid_ours"}
    assert {(row, column) for _, row, column in cells} <= {p for p in grid if grid[p].runs}


class Told:
    "A measurement that is told its values, and what images make of them."

    def __init__(self, values, error=0.5, right=None):
        self.values, self.known, self.answers = values, error, right

    def value(self, store, seed):
        return self.values[seed]

    def error(self, store, seed):
        return self.known

    def right(self, store, seed):
        return self.answers


def told(*values, **how):
    return Planned(tuple(range(len(values))), Told(values, **how))


def test_above_zero_the_wc_layers_are_better(preset):
    "A lower distance, and more of what was asked; seed by seed."
    plan = {(row, c): told(20.0, 30.0) for row in GRID for c in wcgan.BETTER}
    plan["DCGAN / All layers+Wc-layer", "FID"] = told(18.0, 27.0)
    plan["DCGAN / All layers+Wc-layer", wcgan.ASKED] = told(24.0, 35.0)
    plan["DCGAN / Input only", wcgan.ASKED] = told(70.0, 70.0)
    plan["PGGAN / Input only", "FID"] = Planned(reason="not affordable")
    found = wcgan.help_of_wc(preset, plan)
    nearer, right = found["FID"], found[wcgan.ASKED]
    assert [*nearer] == [*right] and len(nearer) == 4
    assert nearer["DCGAN, against all layers"] == gap([20, 30], [18, 27])
    assert right["DCGAN, against all layers"] == gap([24, 35], [20, 30])
    assert right["DCGAN, against input only"] == gap([24, 35], [70, 70])
    assert math.isnan(nearer["PGGAN, against input only"].value)
    frame = wcgan.as_frame(found, ("number", "Wc-layers")).set_index(["number", "Wc-layers"])
    line = frame.loc["FID", "DCGAN, against all layers"]
    assert (line["better by"], line["n"], line["over"]) == (2.5, 2, "seeds")


def test_what_generated_images_add_is_paired_with_the_baseline(preset):
    "By seed; of one run image by image; a row without runs is left out."
    rng = np.random.default_rng(0)
    right = [rng.random(200) < share for share in (0.7, 0.8)]
    plan = {("Baseline", "Red"): told(70.0, right=right[0])}
    plan["Baseline", "Low"] = told(60.0, 62.0)
    plan["+ WcPGGAN", "Red"] = told(80.0, right=right[1])
    plan["+ WcPGGAN", "Low"] = told(65.0, 66.0)
    plan["kept", "Red"] = Planned(reason="no selection")
    found = wcgan.gains(preset, plan)
    assert {row: [*named] for row, named in found.items()} == {"+ WcPGGAN": ["Red", "Low"]}
    error = float(paired_error(right[1], right[0]))
    assert found["+ WcPGGAN"]["Red"] == gap([80.0], [70.0], error)
    assert found["+ WcPGGAN"]["Low"] == gap([65, 66], [60, 62])
    plan["Baseline", "Red"] = told(70.0)
    alone = wcgan.gains(preset, plan)["+ WcPGGAN"]["Red"]
    assert alone == gap([80.0], [70.0], math.hypot(0.5, 0.5))


@pytest.fixture
def few_faces(tmp_path):
    "A preset whose faces are 60 real images to test with, 16 × 16, with the attributes of CelebA."
    rng, names = np.random.default_rng(0), wcgan.printed_accuracies().columns
    arrays = {"attributes": np.array([name.replace(" ", "_") for name in names])}
    for split, n in (("train", 120), ("test", 60)):
        arrays[f"x_{split}"] = rng.integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)
        arrays[f"y_{split}"] = rng.integers(0, 2, (n, 40))
    np.savez(tmp_path / "faces.npz", **arrays)
    changed = {"celeba": f"npz:{tmp_path / 'faces.npz'}", "held_out": 10}
    return settings.load("smoke", chapter=3, **changed)


def test_fewer_images_than_features_are_refused_before_anything_is_trained(few_faces, monkeypatch):
    monkeypatch.setattr(wcgan, "extractor", lambda preset: EfficientNetLite())
    monkeypatch.setattr(EfficientNetLite, "there", lambda self: None)
    with pytest.raises(BadInput, match="60 images with 1,280 features: FD needs at least as many"):
        wcgan.plan_3_1(few_faces)


def test_fewer_glyphs_than_features_are_one_line_and_nothing_is_made(tmp_path, monkeypatch, capsys):
    "Of a classifier of ours too, which is not there yet: or else hours would be spent in vain."
    monkeypatch.setenv("THESIS_REPRO_OUTPUTS", str(tmp_path))
    assert cli.main(["table", "3.2", "--set", "test_size=20", "--device", "cpu"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "20 images with 64 features: FD needs at least as many images" in line
    assert not any(f.is_file() and f.name[0] != "." for f in tmp_path.rglob("*"))


def test_a_wrong_file_of_inception_is_not_replaced_by_another_extractor(
    few_faces, tmp_path, monkeypatch
):
    path = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
    path.write_bytes(b"other weights")
    monkeypatch.setenv("THESIS_REPRO_INCEPTION", str(path))
    with pytest.raises(BadInput, match="not Inception's weights: its SHA-256 begins with"):
        wcgan.plan_3_1(few_faces)
    monkeypatch.delenv("THESIS_REPRO_INCEPTION")
    other = wcgan.extractor(few_faces)  # where no file is named, it may be
    assert other == (Inception() if EfficientNetLite().missing() else EfficientNetLite())


@pytest.mark.parametrize("named", [(), ("torchvision",), ("TF",), ("torchvision", "TF")])
def test_both_scales_have_columns_where_both_files_are_named(whole, inception_files, named):
    "Of one file its own; what the printed columns show is never on TensorFlow's scale."
    inception_files(*named)
    tables = {"3.1": wcgan.plan_3_1(whole)}
    rows = (wcgan.ROWS_3_2, wcgan.ROWS_3_3, GRID)
    tables |= {i: wcgan.planned(r, whole) for i, r in enumerate(rows)}
    for plan in tables.values():
        columns = {column for _, column in plan} - {wcgan.ASKED}
        assert columns == {"IS", "FID"} | ({"IS (TF)", "FID (TF)"} if "TF" in named else set())
        for (row, column), p in plan.items():
            if column in ("IS (TF)", "FID (TF)"):
                assert p.runs and p.measurement.extractor == Inception("TF") and not p.reason
                assert p.measurement.title == column or row == "Real image"
                beside = plan[row, column.removesuffix(" (TF)")]
                assert beside.measurement.show == p.measurement.show
            elif column != wcgan.ASKED and "torchvision" in named:
                assert p.measurement.extractor == Inception() and not p.reason
            elif column != wcgan.ASKED:
                assert "by lite0, not by Inception" in p.reason or "no file of Inc" in p.reason
    assert ("Real image", "IS (TF)") in tables["3.1"] or "TF" not in named


def test_on_stand_ins_inception_is_not_asked(preset, inception_files):
    inception_files("torchvision", "TF")
    assert {c for _, c in wcgan.plan_3_1(preset)} == {"IS", "FID", wcgan.ASKED}


@pytest.mark.parametrize("number", ["3.1", "3.2", "3.3"])
def test_on_stand_ins_a_wrong_file_of_inception_is_refused(number, tmp_path, monkeypatch, capsys):
    "Before anything is made, in one line."
    path = tmp_path / "inception_v3_google-0cc3c7bd.pth"
    path.write_bytes(b"other weights")
    monkeypatch.setenv("THESIS_REPRO_INCEPTION", str(path))
    monkeypatch.setenv("THESIS_REPRO_OUTPUTS", str(tmp_path / "outputs"))
    assert cli.main(["table", number, "--device", "cpu"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"THESIS_REPRO_INCEPTION: {path}: not Inception's weights" in line
    assert "must with 0cc3c7bd (torchvision) or 6726825d (TF): name such a file" in line
    assert not any(f.is_file() and f.name[0] != "." for f in (tmp_path / "outputs").rglob("*"))


def test_table_3_4_at_both_scales(preset, whole):
    stand_in = wcgan.plan_3_4(preset)
    assert len(stand_in) == 200 and not any(p.runs for p in stand_in.values())
    plan = wcgan.plan_3_4(whole)
    asked = [row for (row, _), p in plan.items() if p.reason.startswith("no selection")]
    assert {row: asked.count(row) for row in asked} == dict.fromkeys(wcgan.BY_PEOPLE, 40)
    assert {row for (row, _), p in plan.items() if p.runs} == set(wcgan.ROWS_3_4)
    run = plan["ours (w/o AL)", "5 o Clock Shadow"].runs[0]
    assert isinstance(run.recipe, Recognise) and run.recipe.select == "test"
    assert run.length.epochs == 300 and run.length.batch_size == 100
    assert (run.data.count, len(run.data.asked)) == (267, 15) and "Big_Lips" in run.data.asked
    assert run.data.generator.recipe == fitting(METHODS["WcPGGAN"], (3, 128, 128))
    assert run.data.generator.data == run.data.real == Named("celeba")
    assert plan["Baseline", "Young"].runs[0].data == Named("celeba")
    assert {p.measurement.which for p in plan.values() if p.runs} == {"best"}
    clean = wcgan.plan_3_4_ours(whole)
    measured = [p for p in clean.values() if p.runs]
    assert (len(clean), len(measured)) == (200, 160)
    assert all(p.runs[0].recipe.select == "held-out" for p in measured)
    small = wcgan.plan_3_4_ours(preset)
    assert {c for _, c in small} == set(glyphs.ATTRIBUTES)
    data = small["+ WcPGGAN", "Low"].runs[0].data
    assert data.count == 32 and data.asked == ("Low", "Dotted", "Framed")


def test_every_recogniser_has_a_generator_a_draw_and_a_judge_of_its_own_seed(preset, whole):
    "One generator for all seeds was in no interval."
    for at in (whole, replace(preset, seeds=3)):
        plan = wcgan.plan_3_4_ours(at)
        runs = plan["+ WcPGGAN", plan_column(plan)].runs
        assert [r.data.generator.seed for r in runs] == [r.data.draw for r in runs]
        assert [r.seed for r in runs] == [r.data.draw for r in runs] == list(range(at.seeds))
        sure = plan[wcgan.SUREST, plan_column(plan)].runs
        assert [r.data.data.generator for r in sure] == [r.data.generator for r in runs]
        judges = plan["Baseline", plan_column(plan)].runs
        assert tuple(r.data.by.judge for r in sure) == judges
        assert all(r.key != runs[0].key for r in runs[1:])
        recipe = METHODS["WcPGGAN"]
        small = affordable(at, recipe)
        named = whole_run(at, "WcPGGAN, all attributes", recipe, ())
        assert runs[0].data.generator == seeded(small, named)[0]


def plan_column(plan: dict) -> str:
    "The first column of a plan."
    return next(column for _, column in plan)


def test_the_surest_half_is_as_many_as_without_a_choice(whole):
    for size in (0, 200, 300, 5000):
        plan = wcgan.plan_3_4_ours(replace(whole, train_size=size))
        plain = plan["+ WcPGGAN", "Male"].runs[0].data
        data = plan[wcgan.SUREST, "Male"].runs[0].data
        assert data.by.each(data.data) == plain.count == min(267, size or 267)


def test_who_says_what_an_image_shows(preset, whole):
    assert wcgan.measurements(preset)[wcgan.ASKED].classifier is None
    judge = wcgan.measurements(whole)[wcgan.ASKED].classifier
    assert judge.data == Named("celeba") and judge.recipe == Recognise()
    assert wcgan.plan_3_4_ours(whole)["Baseline", "Male"].runs[0] == judge


def test_the_recogniser():
    "Its logits are those of torchvision on enlarged images; small presets get a small network."
    from torchvision.models import resnet101

    images = Named("glyphs", 20, 20, 10).images()
    net = Recognise(size=32).networks(images, 3)["model"].eval()
    torch.manual_seed(3)
    other = resnet101(num_classes=10).eval()
    x = images.x_test[:2] / 255
    large = torch.nn.functional.interpolate(x, (32, 32), mode="bilinear", antialias=True)
    with torch.no_grad():
        torch.testing.assert_close(net(x), other(2 * large - 1))
    small = Recognise(select="test").scaled(settings.load("smoke", chapter=3))
    assert small == Recognise(network="resnet18", width=0.125, select="test")
    assert Recognise().scaled(settings.load("thesis", chapter=3)) == Recognise()


def test_a_recogniser_learns_from_real_and_generated_images(preset):
    preset, place = replace(preset, train_size=150), ("+ WcPGGAN", "Low")
    (cell,) = wcgan.measured_cells(preset, {place: wcgan.plan_3_4_ours(preset)[place]})
    assert "resnet18 in place of resnet101" in cell.reason and "Adam" not in cell.reason
    assert 0 <= cell.values[0] <= 100


def test_without_inception_a_distance_is_compared_with_nothing(preset):
    cells = wcgan.measured_cells(preset, wcgan.planned({"cDCGAN": METHODS["cDCGAN"]}, preset))
    frame = compare("3.1", cells).set_index(["row", "column"])
    assert frame.loc[("cDCGAN", "FID"), "verdict"] == "not comparable"
    assert math.isfinite(frame.loc[("cDCGAN", "FID"), "ours"])
    assert frame.loc[("cDCGAN", wcgan.ASKED), "verdict"] == "ours only"


# The printed numbers


def test_the_second_half_of_table_3_4_is_read_as_the_text_counts():
    frame = wcgan.printed_accuracies()
    assert frame.shape == (5, 40)
    up = (frame.sub(frame.loc["Baseline"]).round(1) > 0).sum(1)
    assert (up["ours (w/o AL)"], up["Fused-GAN"]) == (19, 9)
    lost = frame.columns[frame.loc["ours (w/ AL)"].isna()]
    assert len(lost) == 20 and lost[0] == "Male" and "Pointy Nose" in lost
    assert (
        frame.loc["Baseline", "Male"] == 98.2 and frame.loc["cPGGAN (w/ AL)", "Oval Face"] == 72.1
    )
    assert (frame.loc["Baseline"] < 90).sum() == 15


def test_the_thesis_own_numbers_have_the_signs_of_its_claims():
    judged = claims.claim_table(chapter=3).set_index("id")
    known = judged.dropna(subset="thesis")
    assert len(judged) == 32 and len(known) == 21
    for c in known.itertuples():
        off = c.thesis - c.bound
        assert abs(off) <= 0.05 if c.direction == "=" else off > 0, c.Index
    sized = known.dropna(subset="size")
    assert (sized.thesis - sized["size"]).abs().max() < 0.011
    assert set(judged.verdict) == {"not run"}


# The chapter


@pytest.mark.parametrize("number", range(1, 8))
def test_the_atlas_finds_every_equation(number):
    found = atlas.where(f"eq-3.{number}")
    assert found.state == "made" and found.function


def test_the_atlas_finds_tables_and_figures():
    items = {i.id: i for i in atlas.items()}
    for n in range(1, 5):
        assert items[f"tab-3.{n}"].function == f"thesis_repro.wcgan.table_3_{n}"
    for n in range(3, 7):
        assert items[f"fig-3.{n}"].function == f"thesis_repro.wcgan.figure_3_{n}"


def test_tables_and_figures_are_made(preset):
    made = wcgan.figure_3_3(preset)
    assert not made.failed and list(made.frame["method"]) == list(wcgan.PANELS)
    made = wcgan.figure_3_4(preset)
    assert not made.failed and set(made.frame["width"]) == {12}
    for figure in (wcgan.figure_3_5, wcgan.figure_3_6):
        made = figure(preset)
        shares = made.frame.set_index("attribute")
        assert not made.failed and shares.shape == (5, 3)
        assert np.allclose(shares.sum(), 1)
    made = wcgan.figure_3_2_wc_ours(preset)
    assert not made.failed and len(made.frame) == 8 and len(made.cells) == 18
    assert set(made.frame["number"]) == {"FD-resnet18 of digits10", wcgan.ASKED}
    known = made.frame["low"].notna()
    assert set(made.frame["over"][known]) == {"images"} and known.any()  # of one seed
    store = Store(preset)
    run = small_run(preset, "WcPGGAN", METHODS["WcPGGAN"])
    net = weighted.trained_generator(store, run)
    np.testing.assert_allclose(shares.to_numpy().T, weighted.contributions(net), rtol=1e-12)


def test_its_parameters_are_those_of_the_other_chapters():
    (own,), (other,) = notebooks.chapters("3"), notebooks.chapters("7")
    assert own.stem == "03_wcgan"
    mine, theirs = notebooks.parameters(own), notebooks.parameters(other)
    assert [(n, p.type, p.default) for n, p in mine.items()] == [
        (n, p.type, p.default) for n, p in theirs.items()
    ]
    assert notebooks.faults(own) == []


def test_people_choose_among_the_images_that_the_other_rows_have():
    preset, run_of = settings.load("smoke", 3), functools.partial(wcgan.recogniser, made="WcPGGAN")
    generators = [wcgan.shown_to_people(preset, "WcPGGAN").generator]
    for by in (ByPeople("a", "b", 1, 2), None):
        whole = run_of(preset, by=by)
        data = wcgan.with_own_images(preset, whole, seeded(preset, whole)[0]).data
        generators.append(data.data.generator if by else data.generator)
    assert len({g.key for g in generators}) == 1
