"""Section 2.1: its equations against closed forms and NumPy, what the rows of its zoo are made of,
and that its figure and table can be made small."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from thesis_repro import (
    atlas,
    data,
    gan_blocks,
    generative,
    notebooks,
    quality,
    settings,
    tables,
    training,
)
from thesis_repro.draws import Draws
from thesis_repro.files import BadInput
from thesis_repro.games import Hinge, LeastSquares, NonSaturating, Wasserstein
from thesis_repro.gan_networks import (
    AtInput,
    DcganCritic,
    DcganGenerator,
    EveryLayer,
    Middle,
    MlpCritic,
    MlpGenerator,
    Projection,
    Unseen,
)
from thesis_repro.gans import Auxiliary, Drift, Gan, GradientPenalty
from thesis_repro.generative import DCGAN, GANS
from thesis_repro.images import pixels
from thesis_repro.pieces import from_specification, specification
from thesis_repro.recipes import Batch
from thesis_repro.runs import shortfall
from thesis_repro.store import Store
from thesis_repro.training import Compute, Length

DX = 0.005
X = torch.arange(-14, 14, DX, dtype=torch.float64)


def density(mean, std):
    return torch.from_numpy(stats.norm(mean, std).pdf(X.numpy()))


@pytest.fixture(scope="module")
def digits():
    return data.load("plain10", 80, 60, 20)


@pytest.fixture
def preset(tmp_path, monkeypatch):
    "The smallest preset, with a folder of its own for what it makes."
    monkeypatch.setenv("THESIS_REPRO_OUTPUTS", str(tmp_path))
    small = {"train_size": 40, "test_size": 80, "held_out": 10, "epochs": 1, "batch_size": 40}
    return settings.load("smoke", chapter=2, jobs=1, width=0.02, **small)


# The game, on a line


def test_the_value_is_the_integral_over_x():
    "Against numerical quadrature of eq. 2.1 over x and over z, for a critic that is no optimum."

    def score(x):
        return np.sin(x) - 0.3 * x

    def integrand(x):
        return stats.norm(0, 1).pdf(x) * -np.logaddexp(0, -score(x))

    def over_z(z):
        return stats.norm(0, 1).pdf(z) * -np.logaddexp(0, score(1.5 + 0.7 * z))

    expected = integrate.quad(integrand, -12, 12)[0] + integrate.quad(over_z, -12, 12)[0]
    scores = torch.from_numpy(score(X.numpy()))
    found = generative.value_on_grid(scores, density(0, 1), density(1.5, 0.7), DX)
    assert math.isclose(found, expected, rel_tol=1e-8)


@pytest.mark.parametrize("mean, std", [(0.0, 1.0), (1.5, 0.7), (-3.0, 1.4)])
def test_no_critic_is_better_than_the_best(mean, std):
    p, q = density(0, 1), density(mean, std)
    best = (p.log() - q.log()).clamp(-700, 700)
    torch.testing.assert_close(generative.best_critic(p, q), best.sigmoid(), rtol=1e-9, atol=1e-12)
    value = generative.value_on_grid(best, p, q, DX)
    draw = torch.Generator().manual_seed(0)
    for size in (1e-3, 0.1, 3.0):
        other = best + size * torch.randn(len(X), generator=draw, dtype=X.dtype)
        assert generative.value_on_grid(other, p, q, DX) < value
    torch.testing.assert_close(generative.value_of(p, q, DX), value, rtol=1e-8, atol=1e-10)
    trained = generative.trained_critic(X, p, q, DX)
    assert abs(generative.value_on_grid(trained, p, q, DX) - value) < 1e-5


def test_the_divergence_has_its_limits():
    p = density(0, 1)
    assert abs(generative.divergence(p, p, DX)) < 1e-12
    apart = generative.divergence(density(-6, 0.5), density(6, 0.5), DX)
    assert math.isclose(apart, math.log(2), rel_tol=1e-9)
    assert generative.value_of(p, p, DX) == pytest.approx(-2 * math.log(2), abs=1e-9)
    left, right = (((X > at) & (X <= at + 1)).to(X.dtype) for at in (-2, 1))  # mostly, neither is
    even = generative.divergence(left / (left.sum() * DX), right / (right.sum() * DX), DX)
    assert math.isclose(even, math.log(2), rel_tol=1e-9)
    one, other = density(0, 1), density(1, 2)
    parts = [stats.entropy(d, (one + other) / 2) for d in (one, other)]  # SciPy's KL
    assert math.isclose(generative.divergence(one, other, DX), sum(parts) / 2, rel_tol=1e-6)


@pytest.mark.parametrize("equation", [f"eq-2.{n}" for n in range(1, 18)])
def test_the_atlas_finds_every_equation(equation):
    found = atlas.where(equation)
    assert found.state == "made" and found.function
    named = [p for p in atlas.places() if equation in p.names]
    assert named, equation


def test_the_atlas_leads_to_what_computes_the_inception_score():
    assert atlas.where("eq-2.12").function == "thesis_repro.quality.ClassScore"


def test_the_atlas_finds_the_figure_and_the_zoo():
    items = {i.id: i for i in atlas.items()}
    assert items["fig-2.2"].function == "thesis_repro.generative.figure_2_2"
    assert items["met-gan-zoo"].function == "thesis_repro.generative.gan_zoo"


# The rows


def test_the_zoo_has_the_methods_of_the_contract():
    title = next(i.title for i in atlas.contract() if i.id == "met-gan-zoo")
    known = {"spectral normalisation": "SN-GAN", "projection discriminator": "projection"}
    named = {known.get(name, name) for name in title.split("; ")}
    assert named <= set(GANS)
    assert all(from_specification(specification(recipe)) == recipe for recipe in GANS.values())


def test_what_the_rows_are_made_of():
    "Every row differs from DCGAN by what its paper adds, and by nothing else."
    assert DCGAN == Gan(
        DcganGenerator(100, (256, 128), Unseen()), DcganCritic((128, 256)), NonSaturating()
    )
    free, spectral = (replace(DCGAN.critic, norm=n) for n in ("none", "spectral"))
    told = replace(DCGAN.generator, condition=AtInput())

    def changed(**changes):
        return replace(DCGAN, **changes)

    def critic(condition):
        return replace(DCGAN.critic, condition=condition)

    assert GANS["LSGAN"] == changed(game=LeastSquares())
    assert GANS["WGAN"] == changed(game=Wasserstein(0.01))
    penalised = changed(critic=free, game=Wasserstein(), terms=(GradientPenalty(10.0),))
    assert GANS["WGAN-GP"] == penalised
    assert GANS["SN-GAN"] == changed(critic=spectral, game=Wasserstein())
    assert GANS["cGAN"] == changed(generator=told, critic=critic(AtInput()))
    assert GANS["Reed et al."] == changed(generator=told, critic=critic(Middle()))
    assert GANS["projection"] == changed(generator=told, critic=critic(Projection()))
    everywhere = replace(DCGAN.generator, condition=EveryLayer())
    assert GANS["Sage et al."] == changed(generator=everywhere, critic=critic(AtInput()))
    assert GANS["ACGAN"].terms == (Auxiliary(),) and GANS["ACGAN"].critic.classes
    assert GANS["PGGAN"].terms == (GradientPenalty(), Drift()) and GANS["PGGAN"].growth
    assert GANS["SAGAN"].game == Hinge() and GANS["SAGAN"].critic.norm == "spectral"
    fused = GANS["Fused-GAN"]
    assert fused.terms == (generative.PlainBranch(),) and fused.critic == critic(AtInput())
    assert generative.PlainBranch().judge == DCGAN.critic
    perceptrons = (GANS["GAN"].generator, GANS["GAN"].critic)
    assert [type(p) for p in perceptrons] == [MlpGenerator, MlpCritic]


def test_attention_is_at_half_the_side_of_the_images(preset):
    for name, side in (("plain10", 8), ("mnist", 14)):
        chosen = replace(preset, mnist=name)
        run = generative.gan_run(chosen, "SAGAN", GANS["SAGAN"])
        assert (run.recipe.generator.attention, run.recipe.critic.attention) == (side, side)
        shape = run.data.outline().shape
        for piece in (run.recipe.generator, run.recipe.critic):
            net = piece.build(shape, 10)
            found = [m for m in net.modules() if isinstance(m, gan_blocks.SelfAttention)]
            assert len(found) == 1
    assert generative.gan_run(preset, "DCGAN", DCGAN).recipe.critic.attention == 0


@pytest.mark.parametrize("piece", [DcganGenerator(8, (8, 8)), DcganCritic((8, 8))])
def test_attention_at_a_map_that_is_not_there_is_refused(piece):
    with pytest.raises(BadInput, match=r"attention = 5: its maps have sides of (4, 8|8, 4)"):
        replace(piece, attention=5).build((1, 16, 16), 10)


@pytest.mark.parametrize("kind", [MlpGenerator, MlpCritic])
def test_a_perceptron_is_told_at_its_input_or_not_at_all(kind):
    sizes = {}
    for condition in (Unseen(), AtInput()):
        net = replace(kind(), condition=condition).build((1, 4, 4), 10)
        sizes[type(condition)] = net.body[0].in_features
    assert sizes[AtInput] - sizes[Unseen] == 10
    assert kind() == kind(condition=AtInput()) and "condition" not in specification(kind())
    with pytest.raises(BadInput, match="condition = Projection: must be AtInput or Unseen"):
        kind(condition=Projection())


def test_the_same_numbers_on_mnist_are_those_of_the_thesis(preset):
    "On real MNIST nothing is enlarged; a stand-in gets what the notebook says."
    real, small = replace(preset, mnist="mnist"), generative.larger(preset)
    assert generative.larger(real) == replace(real, seeds=1)
    assert (small.epochs, small.train_size, small.width) == (2, 80, 0.08)
    whole = settings.load("thesis", chapter=2)
    run = generative.gan_run(whole, "WGAN", GANS["WGAN"])
    assert shortfall(run, generative.whole_run(whole, "WGAN", GANS["WGAN"])) == ""


def test_costs_are_counted_against_dcgan(preset):
    base = generative.gan_run(preset, "DCGAN", DCGAN)
    assert generative.cost(base, base)["step"] == 1
    by_hand = 100 * 20 * 16 + 20 * 10 * 16 + 10 * 16
    by_hand += 2 * (20 + 10)  # batch normalisation
    generator = base.recipe.generator
    assert generator.channels == (20, 10)
    net = generator.build((1, 16, 16), 10)
    assert sum(p.numel() for p in net.parameters()) == by_hand
    penalised = generative.gan_run(preset, "WGAN-GP", GANS["WGAN-GP"])
    assert generative.cost(penalised, base)["step"] > 1.2


# Fused-GAN


def test_the_branches_of_a_fused_generator_share_their_trunk():
    net = generative.FusedGenerator(8, (6, 4)).build((1, 16, 16), 10)
    own = {id(p) for p in net.plain.parameters()} & {id(p) for p in net.told.parameters()}
    trunk = [*net.plain.layers[0].parameters(), *net.plain.after[0].parameters()]
    assert own == {id(p) for p in trunk} and len(trunk) == 3
    other = generative.FusedGenerator(8, (6, 4)).build((1, 16, 16), 10)
    other.load_state_dict(net.state_dict())
    z, c = torch.randn(3, 8), torch.eye(10)[:3]
    assert torch.equal(net.eval()(z, c), other.eval()(z, c))
    assert torch.equal(net.plain(z, c), net.plain(z, c.roll(1, 1)))
    assert not torch.equal(net(z, c), net(z, c.roll(1, 1)))


@pytest.mark.parametrize("prior", ["normal", "uniform"])
def test_both_branches_are_given_z_of_the_same_prior(digits, preset, prior):
    recipe = replace(GANS["Fused-GAN"].scaled(preset), prior=prior)
    nets, seen = recipe.networks(digits, 0), []
    for branch in (nets["generator"].plain, nets["generator"].told):
        branch.register_forward_pre_hook(lambda net, given: seen.append(given[0]))
    batch = Batch(pixels(digits.x_train[:40]), digits.y_train[:40], Draws(0))
    for phase in recipe.phases(nets):
        phase.loss(nets, batch)
    assert len(seen) == 3 and {bool(z.abs().max() <= 1) for z in seen} == {prior == "uniform"}


def test_both_critics_and_both_branches_learn(digits, preset):
    recipe = GANS["Fused-GAN"].scaled(preset)
    t = training.start(recipe, digits, Length(1, 40), compute=Compute(progress=False))
    before = {name: p.detach().clone() for name, p in t.nets.named_parameters()}
    assert {name.partition(".")[0] for name in before} == {"generator", "critic", "plain"}
    training.train(t)
    moved = {name for name, p in t.nets.named_parameters() if not torch.equal(p, before[name])}
    for part in ("generator.plain.layers.2", "generator.told.layers.2", "critic.", "plain."):
        assert any(name.startswith(part) for name in moved), part


# What is made


def test_the_plan_asks_only_what_can_be_asked(preset):
    plan = generative.plan_2_gans(preset, ("MNIST",))
    assert {row for row, _ in plan} == set(GANS)
    (distance,) = {c for _, c in plan} - {"digits", "asked for"}
    assert distance.startswith("FD-resnet18")
    told = {row for (row, c), p in plan.items() if c == "asked for" and p.runs}
    assert told == {*generative.ASKED, *generative.BRANCHED}
    assert all(p.runs[0].seed == 0 and len(p.runs) == 1 for p in plan.values() if p.runs)
    none = generative.plan_2_gans(preset, ("CelebA",))
    assert not any(p.runs for p in none.values())


def test_fewer_digits_than_features_are_refused_by_the_plan(preset):
    features = quality.features_of(generative.classifier(preset))
    enough = replace(preset, test_size=features)
    assert generative.plan_2_gans(enough, ("MNIST",), {"GAN": GANS["GAN"]})
    with pytest.raises(BadInput, match=f"images with {features} features"):
        generative.plan_2_gans(replace(preset, test_size=features - 1), ("MNIST",))


def test_the_balanced_gan_of_the_figure_is_the_zoos(preset):
    figure = generative.plan_figure_2_2(preset)
    zoo = generative.plan_2_gans(preset, ("MNIST",))
    assert figure["balanced", "digits"].runs == zoo["DCGAN", "digits"].runs
    one, other = (r for r in generative.COLLAPSE.values())
    assert replace(other, optimiser=one.optimiser, critic_optimiser=one.critic_optimiser) == one


def test_a_sheet_has_its_images_in_order():
    images = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 1, 2, 3)
    found = generative.sheet(images, 2)
    assert found.tolist() == [[0, 0, 0, 1, 1, 1]] * 2 + [[2, 2, 2, 3, 3, 3]] * 2


def test_figure_and_table_are_made(preset):
    made = generative.figure_2_2(preset)
    assert not made.failed and list(made.frame["row"]) == ["balanced", "collapsed"]
    assert made.frame["digits"].between(1, 10).all() and made.frame["KL"].between(0, 2.31).all()
    record = Store(preset).record(generative.gan_run(preset, "DCGAN", DCGAN))
    before = record.folder.stat().st_mtime_ns
    rows = {name: GANS[name] for name in ("DCGAN", "projection")}
    plan = generative.plan_2_gans(preset, ("MNIST",), rows)
    cells = generative.measured_cells(preset, plan)
    assert record.folder.stat().st_mtime_ns == before
    frame = tables.compare(generative.table_2_gans_ours.number, cells)
    assert list(frame["row"].unique()) == ["DCGAN", "projection"]
    values = {(c.row, c.column): c.values for c in cells if c.column != "asked for"}
    assert all(math.isfinite(v[0]) for v in values.values()) and len(values) == 4
    asked = {c.row: c for c in cells if c.column == "asked for"}
    assert asked["DCGAN"].values == () and 0 <= asked["projection"].values[0] <= 100


# The notebook


def test_its_parameters_are_those_of_the_other_chapters():
    (own,), others = notebooks.chapters("generative"), notebooks.chapters("7")
    assert [p.stem for p in notebooks.chapters("2")] == ["02_1_generative", "02_background"]
    mine, theirs = (notebooks.parameters(path) for path in (own, *others))
    assert list(mine) == list(theirs)
    for name, parameter in mine.items():
        assert (parameter.type, parameter.default) == (theirs[name].type, theirs[name].default)
    assert notebooks.faults(own) == []
