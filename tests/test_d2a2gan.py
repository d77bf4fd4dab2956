"""Chapter 4: its equations against references of the tests' own, the sizes of its networks, who
learns when, and that its tables and figures are made of the runs that they name."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from thesis_repro import (
    atlas,
    cli,
    d2a2gan,
    data,
    gan_runs,
    notebooks,
    published,
    quality,
    settings,
    training,
)
from thesis_repro.attention_branch import (
    AttentionNetwork,
    Branch,
    LearnedMap,
    both_losses,
    convolutions,
)
from thesis_repro.augmented import Augmented, Targets
from thesis_repro.certainty import Certainty, Posterior, RealScore, entropy, summary
from thesis_repro.claims import claim_table
from thesis_repro.d2a2gan import (
    ABLATION,
    AUTHOR,
    D2A2GAN,
    GANS,
    AttentionCritic,
    Consistency,
    MapError,
    attended,
    attention_map,
    feature_extractor,
    map_distance,
    map_error,
    taught,
)
from thesis_repro.draws import Draws
from thesis_repro.extractors import Inception, Looking, Own, Prepared
from thesis_repro.files import BadInput
from thesis_repro.gan_networks import DcganCritic, DcganGenerator
from thesis_repro.gan_runs import (
    afforded,
    as_long,
    classifier,
    in_turns,
    larger,
    row_of,
    too_few,
    trained_on,
    whole_classifier,
)
from thesis_repro.gans import Auxiliary, Gan
from thesis_repro.images import pixels
from thesis_repro.measures import Recorded
from thesis_repro.mixup import Mixup
from thesis_repro.models import parameter_count
from thesis_repro.pieces import from_specification, specification
from thesis_repro.quality import Quality
from thesis_repro.recipes import Batch, Decay
from thesis_repro.registry import measured_cells
from thesis_repro.runs import shortfall
from thesis_repro.store import Store
from thesis_repro.training import Compute, Length

PART = "CIFAR-10"
TEACHER = AttentionNetwork((8, 8, 8), 1)
SMALL = replace(
    D2A2GAN,
    generator=DcganGenerator(8, (8, 8, 8, 8)),
    critic=AttentionCritic((8, 8), (8, 8), (8, 8)),
    terms=(Auxiliary(), Consistency(teacher=TEACHER)),
)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits10", 80, 60, 20)


@pytest.fixture
def preset(tmp_path, monkeypatch):
    "The smallest preset, with a folder of its own for what it makes."
    monkeypatch.setenv("THESIS_REPRO_OUTPUTS", str(tmp_path))
    small = {"train_size": 100, "test_size": 80, "held_out": 10, "epochs": 1, "batch_size": 50}
    return settings.load("smoke", chapter=4, jobs=1, width=0.02, **small)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch_of(images, n=20):
    return Batch(pixels(images.x_train[:n]), images.y_train[:n], Draws(0))


# The equations


def test_features_are_those_of_the_equation():
    "Eq. 4.2–4.3, by hand: leaky ReLUs, and a plain one at the end."
    net = feature_extractor(3, (4, 5, 6), 0.1).double().eval()
    x = draw(2, 3, 16, 16)
    convs = [m for m in net if isinstance(m, torch.nn.Conv2d)]
    h = F.leaky_relu(F.conv2d(x, convs[0].weight, None, 2, 1), 0.1)
    h = F.leaky_relu(F.conv2d(h, convs[1].weight, None, 2, 1) / math.sqrt(1 + 1e-5), 0.1)
    h = F.conv2d(h, convs[2].weight, None, 2, 1) / math.sqrt(1 + 1e-5)
    torch.testing.assert_close(net(x), h.clamp(min=0))
    assert net(x).min() == 0


def test_the_map_is_that_of_the_equation_and_has_its_gradient():
    g = draw(3, 4, 5, 6).exp()
    total = g.numpy().sum(1)
    low, high = (f(total, axis=(1, 2), keepdims=True) for f in (np.min, np.max))
    expected = torch.from_numpy((total - low) / (high - low))
    torch.testing.assert_close(attention_map(g, eps=0.0), expected)
    torch.testing.assert_close(attention_map(g), expected, rtol=1e-4, atol=1e-5)
    g.requires_grad_()
    assert torch.autograd.gradcheck(attention_map, (g,))
    torch.testing.assert_close(attention_map(g), attention_map(g.flip(1)))  # all count alike


@pytest.mark.parametrize("value", [0.0, 0.5, 1e6])
def test_a_flat_map_is_zero_and_has_a_finite_gradient(value):
    g = torch.full((2, 3, 4, 4), value, requires_grad=True)
    attention = attention_map(g)
    (slope,) = torch.autograd.grad(attention.square().sum() + attention.sum(), g)
    assert not attention.any() and slope.isfinite().all()


def test_attention_multiplies_by_one_plus_the_map():
    f, m = draw(2, 3, 4, 4), torch.rand(2, 4, 4, dtype=torch.float64)
    expected = torch.stack([f[:, k] * (1 + m) for k in range(3)], 1)
    torch.testing.assert_close(attended(f, m), expected)


def test_class_logits_are_averages_of_maps():
    "Eq. 4.4: nothing stands behind the average; the 1 × 1 convolution before it can be left out."
    h = draw(3, 6, 4, 4)
    branch = Branch(torch.nn.Identity(), 6, 5).double().eval()
    g, logits = branch(h)
    w = branch.classes.weight[:, :, 0, 0]
    torch.testing.assert_close(logits, g.mean((2, 3)) @ w.T)
    bare = Branch(torch.nn.Identity(), 6, 5, mixed=False).double().eval()
    g, logits = bare(h)
    torch.testing.assert_close(logits, g.mean((2, 3)))
    assert parameter_count(branch) - parameter_count(bare) == 25


@pytest.mark.parametrize("kernel, weights", [(1, 5), (3, 45)])
def test_the_learned_map_is_a_sigmoid_of_a_convolution(kernel, weights):
    "Eq. 4.5, with the batch norm of ABN's code."
    net, g = LearnedMap(5, kernel).double().eval(), draw(2, 5, 4, 4)
    by_hand = F.conv2d(g, net.conv.weight, padding=kernel // 2)[:, 0] / math.sqrt(1 + 1e-5)
    torch.testing.assert_close(net(g), 1 / (1 + (-by_hand).exp()))
    assert net.conv.weight.numel() == weights and net.conv.bias is None


def test_the_distance_is_a_sum_that_depends_on_batch_and_map():
    a, b = draw(6, 4, 5), draw(6, 4, 5, seed=1)
    expected = sum(
        abs(x - y) for x, y in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True)
    )
    assert math.isclose(map_distance(a, b).item(), expected, rel_tol=1e-12)
    assert math.isclose(map_distance(a, b, "mean").item(), expected / 120, rel_tol=1e-12)
    twice = map_distance(torch.cat([a, a]), torch.cat([b, b]))
    assert math.isclose(twice.item(), 2 * expected, rel_tol=1e-12)
    with pytest.raises(BadInput, match="maps of 4 × 5 and 4 × 4"):
        map_distance(a, b[..., :4])


def test_the_error_of_maps_per_place_and_as_printed():
    a, b = draw(6, 4, 5), draw(6, 4, 5, seed=1)
    squares = (a - b).numpy() ** 2
    assert math.isclose(map_error(a, b).item(), squares.mean(), rel_tol=1e-12)
    assert math.isclose(map_error(a, b, True).item(), squares.sum() / 6, rel_tol=1e-12)


def test_the_entropy_of_answers():
    p = draw(50, 7).softmax(1)
    stats = pytest.importorskip("scipy.stats")
    np.testing.assert_allclose(entropy(p).numpy(), stats.entropy(p.numpy(), axis=1), rtol=1e-12)
    sure = torch.eye(7)
    assert not entropy(sure).any()
    found = summary(entropy(p))
    assert found["n"] == 50 and found["quantiles"] == sorted(found["quantiles"])


# The networks


def test_the_sizes_of_the_authors_code():
    shape = (3, 32, 32)
    assert parameter_count(DcganGenerator().build(shape, 10)) == 803_264
    assert parameter_count(AttentionCritic().build(shape, 10)) == 1_063_677
    assert parameter_count(AttentionCritic(spread="map").build(shape, 10)) == 1_063_677
    assert parameter_count(AttentionCritic(mixed=False).build(shape, 10)) == 1_063_677 - 100


def test_the_critic_is_made_of_its_equations():
    critic = AttentionCritic((4, 6), (8, 8), (8, 10)).build((3, 16, 16), 5).double().eval()
    x, c = draw(6, 3, 16, 16), torch.eye(5, dtype=torch.float64)[[0, 1, 2, 3, 4, 0]]
    said = critic(x, c)
    f = critic.features(x)
    g = critic.branch.evidence(critic.branch.body(f))
    total = g.sum(1)
    low, high = total.amin((1, 2), True), total.amax((1, 2), True)
    m = (total - low) / (high - low + 1e-5)
    h = critic.rest(f + m[:, None] * f)
    std = (h.var(0, correction=0) + 1e-8).sqrt().mean().expand(6, 1, 1, 1)
    score = F.conv2d(torch.cat([h, std], 1), critic.score.weight, critic.score.bias).flatten()
    torch.testing.assert_close(said.attention, m)
    torch.testing.assert_close(said.logits, critic.branch.classes(g).mean((2, 3)))
    torch.testing.assert_close(said.score, score)
    assert said.score.shape == (6,)


def test_the_map_brings_the_game_to_the_branch():
    "Without weights of its own the map still passes the game's gradient on to g."
    critic = AttentionCritic((4, 6), (8, 8), (8, 10)).build((3, 16, 16), 5).double()
    critic(
        draw(6, 3, 16, 16), torch.eye(5, dtype=torch.float64)[[0, 1, 2, 3, 4, 0]]
    ).score.sum().backward()
    assert critic.branch.evidence[0].weight.grad.abs().max() > 0
    assert critic.branch.classes.weight.grad is None


def test_a_critic_without_classes_or_a_wrong_condition_is_refused():
    with pytest.raises(BadInput, match="images without classes"):
        AttentionCritic().build((3, 32, 32), 0)
    critic = AttentionCritic((4, 4), (4, 4), (4, 4)).build((3, 16, 16), 5)
    with pytest.raises(BadInput, match="must have 5 numbers"):
        critic(torch.rand(2, 3, 16, 16), torch.zeros(2, 4))
    with pytest.raises(BadInput, match="must be three numbers"):
        AttentionNetwork((8, 8))


@pytest.mark.parametrize("side", [16, 32])
def test_critic_and_teacher_have_maps_of_one_size(side, digits):
    x = torch.rand(2, 3, side, side)
    critic = AttentionCritic((4, 4), (4, 4), (4, 4)).build((3, side, side), 10)
    said, teacher = critic(x, torch.eye(10)[:2]), TEACHER.build(digits)
    assert said.attention.shape == taught(teacher, x).shape == (2, side // 4, side // 4)


def test_the_teacher_looks_harder_where_its_map_is_large(digits):
    net = TEACHER.build(digits).double().eval()
    x = torch.rand(3, 3, 16, 16, dtype=torch.float64)
    h = net.trunk(net.first(x))
    g, branch = net.branch(h)
    m = net.attention(g)
    said = net(x)
    torch.testing.assert_close(said.logits, net.last(h * m[:, None] + h))
    torch.testing.assert_close(said.attention, m)
    y = torch.tensor([0, 1, 2])
    expected = F.cross_entropy(said.logits, y) + F.cross_entropy(branch, y)
    torch.testing.assert_close(both_losses(said, y), expected)
    assert net(x, only_map=True).logits is None


def test_rows_of_convolutions():
    net = convolutions(3, (4, 5), (4, 2, 1), 0.1)
    kinds = [type(m).__name__ for m in net]
    assert kinds == ["Conv2d", "BatchNorm2d", "LeakyReLU"] * 2
    assert net(torch.rand(2, 3, 16, 16)).shape == (2, 5, 4, 4)


# The losses


def test_the_loss_is_the_sum_of_eq_4_1(digits):
    nets, batch = SMALL.networks(digits, 0).double(), batch_of(digits)
    batch.x = batch.x.double()
    loss = SMALL.critic_loss(nets, batch)
    seen = batch.kept["seen"]
    real, fake, y = seen.of_real, seen.of_fake, batch.y
    expected = F.softplus(-real.score).mean() + F.softplus(fake.score).mean()
    expected = expected + F.cross_entropy(real.logits, y) + F.cross_entropy(fake.logits, y)
    with torch.no_grad():
        nets["teacher"].eval()
        maps = [nets["teacher"]((x + 1) / 2).attention for x in (seen.real, seen.fake)]
        nets["teacher"].train()
    pairs = zip((real, fake), maps, strict=True)
    expected = expected + 1e-4 * sum((said.attention - m).abs().sum() for said, m in pairs)
    torch.testing.assert_close(loss, expected)
    loss = SMALL.generator_loss(nets, batch)
    expected = F.softplus(-seen.of_fake.score).mean() + F.cross_entropy(seen.of_fake.logits, y)
    expected = expected + 1e-4 * (seen.of_fake.attention - maps[1]).abs().sum()
    torch.testing.assert_close(loss, expected)


def test_the_options_of_the_consistency_loss(digits):
    nets = SMALL.networks(digits, 0)

    def parts(**changes):
        term = replace(SMALL.terms[1], **changes)
        recipe, batch = replace(SMALL, terms=(term,)), batch_of(digits)
        recipe.critic_loss(nets, batch)
        seen = batch.kept["seen"]
        critic = term.critic(seen)
        return float(critic), float(term.generator(seen))

    both = parts()
    only_real = parts(on_fake=False)
    assert both[0] > only_real[0] > 0 and both[1] == pytest.approx(both[0] - only_real[0], rel=1e-4)
    assert parts(to_generator=False)[1] == 0 and parts(weight=0.0) == (0, 0)
    assert parts(weight=1e-4 * 20 * 16, over="mean") == pytest.approx(both, rel=1e-5)
    other = replace(SMALL, critic=DcganCritic((8, 8)), terms=SMALL.terms[1:])
    with pytest.raises(BadInput, match="a critic without attention"):
        other.critic_loss(other.networks(digits, 0), batch_of(digits))


def test_no_gradient_goes_through_the_teacher(digits):
    nets, x = SMALL.networks(digits, 0), torch.rand(4, 3, 16, 16, requires_grad=True)
    before = {k: v.clone() for k, v in nets["teacher"].state_dict().items()}
    assert not taught(nets["teacher"], x).requires_grad
    assert all(torch.equal(v, before[k]) for k, v in nets["teacher"].state_dict().items())


def test_without_the_class_loss_the_class_head_never_learns(digits):
    recipe = replace(SMALL, terms=SMALL.terms[1:])
    nets, batch = recipe.networks(digits, 0), batch_of(digits)
    recipe.critic_loss(nets, batch).backward()
    assert nets["critic"].branch.classes.weight.grad is None
    SMALL.critic_loss(nets, batch).backward()
    assert nets["critic"].branch.classes.weight.grad.abs().max() > 0


def test_teacher_and_gan_learn_in_turns_and_the_history_keeps_the_parts(digits):
    t = training.start(SMALL, digits, Length(3, 40), compute=Compute(progress=False))
    training.train(t)
    rows = t.at.history
    assert [["teacher loss" in r, "critic loss" in r] for r in rows] == [
        [True, False],
        [False, True],
        [True, False],
    ]
    names = {
        f"{who} {n}"
        for who in ("critic", "generator")
        for n in ("game", "Auxiliary", "Consistency")
    }
    assert all(names <= row.keys() for row in rows)
    assert all(math.isfinite(row[n]) for row in rows for n in names)


def test_all_rows_of_the_ablation_have_the_same_teacher(digits):
    "The teacher learns from real images alone, and is drawn before anything depends on the row."

    def teacher(*terms):
        recipe = replace(SMALL, terms=terms)
        t = training.start(recipe, digits, Length(1, 40), compute=Compute(progress=False))
        return training.train(t).nets["teacher"].state_dict()

    quiet = replace(SMALL.terms[1], weight=0.0)
    one, *others = teacher(*SMALL.terms), teacher(Auxiliary(), quiet), teacher(SMALL.terms[1])
    assert all(torch.equal(one[k], other[k]) for other in others for k in one)


def test_parts_are_not_for_networks_that_grow():
    with pytest.raises(BadInput, match="not for networks that grow"):
        replace(GANS["PGGAN"], parts=True)


# The rows


def test_the_methods_differ_by_what_the_text_says():
    cdcgan, acgan, ours = (GANS[n] for n in ("cDCGAN", "ACGAN", "D2A2GAN"))
    assert cdcgan.generator == acgan.generator == ours.generator == DcganGenerator()
    assert len({r.optimiser for r in (cdcgan, acgan, ours)} | {ours.critic_optimiser}) == 1
    assert (ours.optimiser.lr, ours.optimiser.betas) == (2e-4, (0.5, 0.999))
    assert {r.critic.slope for r in (cdcgan, acgan, ours)} == {0.01}
    assert cdcgan.terms == () and acgan.terms == (Auxiliary(),)
    assert ours.terms == (Auxiliary(), Consistency()) and Consistency().weight == 1e-4
    assert ABLATION["Baseline"] == ours
    assert ABLATION["w/o L_att"].terms == (Auxiliary(), Consistency(0.0))
    assert ABLATION["w/o L_cls"].terms == (Consistency(),)
    rows = {**GANS, **ABLATION, "author": AUTHOR}
    assert all(from_specification(specification(recipe)) == recipe for recipe in rows.values())


def test_the_authors_code_is_named_and_never_the_default():
    assert AUTHOR.critic == AttentionCritic(spread="map")
    decay = AUTHOR.terms[1].optimiser.decay
    assert decay == Decay((0.5,), 2e-4) and 0.1 * decay(0.6) == pytest.approx(2e-5)
    assert AUTHOR not in GANS.values() and AttentionCritic().spread == "number"


def test_every_gan_has_a_hundred_epochs_of_its_own():
    whole = settings.load("thesis", chapter=4)
    for part in d2a2gan.PARTS:
        for name, recipe in GANS.items():
            run = d2a2gan.whole_run(part, name, recipe)
            assert run.length == Length(200 if name == "D2A2GAN" else 100, 100)
            assert in_turns(recipe) == (name == "D2A2GAN")
            assert shortfall(afforded(whole, run), run) == ""


def steps(run) -> int:
    "How many steps a run takes."
    return run.length.epochs * -(-run.data.outline().train // run.length.batch_size)


@pytest.mark.parametrize("name", ["smoke", "fast", "thesis"])
def test_few_images_are_seen_many_times_at_every_preset(name):
    "At `fast` the GAN of 100 images took 8 steps, and its row was evidence."
    at = settings.load(name, chapter=4, device="cpu")
    for few in (100, 1000):
        own = afforded(at, d2a2gan.within(PART, "D2A2GAN", few))
        all_of_them = afforded(at, d2a2gan.whole_run(PART, "D2A2GAN", GANS["D2A2GAN"]))
        times = own.length.epochs / all_of_them.length.epochs
        assert times == {"smoke": max(1, 640 // few), "fast": 20, "thesis": 20}[name]
        if name != "smoke" or few == 100:
            assert 0.02 <= steps(own) / steps(all_of_them) <= 1.25  # whole batches


def test_the_average_of_weights_forgets_the_beginning_of_each_level():
    "At `fast` two thirds of the measured generator were its first random weights."
    for name, short in (("smoke", True), ("fast", True), ("thesis", False)):
        at = settings.load(name, chapter=4, device="cpu")
        run = afforded(at, d2a2gan.whole_run(PART, "PGGAN", GANS["PGGAN"]))
        left = run.recipe.average ** (steps(run) / 4)  # 4 × 4 to 32 × 32
        assert left < (0.2 if name == "smoke" else 1e-4)
        assert (run.recipe.average < 0.999) == short


def test_a_stand_in_is_hurried_and_every_cell_says_so(preset):
    run = d2a2gan.whole_run(PART, "D2A2GAN", D2A2GAN)
    assert larger(preset, run).epochs == 4 and larger(preset, run).width == pytest.approx(0.08)
    said = shortfall(afforded(preset, run), run)
    for word in ("stand-in digits10", "lr 0.001 in place of 0.0002", "4 of 200 epochs"):
        assert word in said
    assert "Auxiliary(" not in said
    growing = afforded(preset, d2a2gan.whole_run(PART, "PGGAN", GANS["PGGAN"]))
    assert growing.recipe.average == 0.9 and growing.recipe.optimiser.lr == 1e-3


# The plans


def test_what_learns_from_generated_images_contains_the_generator_of_the_table(preset):
    plan = d2a2gan.plan_4_2(preset)
    for part in d2a2gan.PARTS:
        for row in ABLATION:
            (made,) = plan[row, f"{part} / MSE"].runs
            (learner,) = plan[row, f"{part} / Acc."].runs
            assert learner.data.generator == made and learner.data.targets == "soft"
            assert learner.data.few == 100 and learner.part == part
    table = d2a2gan.plan_4_1(preset)
    (one,) = {
        p.runs[0] for (row, c), p in table.items() if row == "D2A2GAN" and p.runs and PART in c
    }
    assert one == plan["Baseline", f"{PART} / MSE"].runs[0]


def test_printed_columns_stay_empty_without_inception(preset, monkeypatch):
    monkeypatch.delenv("THESIS_REPRO_INCEPTION", raising=False)
    plan = d2a2gan.plan_4_1(preset)
    printed = {(c.row, c.column) for c in published.published("4.1").itertuples()}
    assert printed <= plan.keys()
    assert all(
        not plan[place].runs and "no file of Inception" in plan[place].reason for place in printed
    )
    ours = {place: p for place, p in plan.items() if place not in printed}
    assert all(p.runs and "resnet18 of digits10" in c for (_, c), p in ours.items())
    assert isinstance(plan["D2A2GAN", f"{PART} / FID"].measurement, Quality)


@pytest.mark.parametrize("named", [(), ("torchvision",), ("TF",), ("torchvision", "TF")])
def test_both_scales_have_columns_where_both_files_are_named(inception_files, named):
    inception_files(*named)
    plan = d2a2gan.plan_4_1(settings.load("thesis", chapter=4))
    columns = {c for _, c in plan if "resnet18 of" not in c}
    scales = ("", " (TF)") if "TF" in named else ("",)
    kinds = (f"{PART} / IS", f"{PART} / FID", "SVHN / FID")
    assert columns == {f"{kind}{scale}" for kind in kinds for scale in scales}
    assert {c for r, c in plan if r == "Real"} >= {f"{PART} / IS{scale}" for scale in scales}
    for (_, column), p in plan.items():
        weights = "TF" if column.endswith(" (TF)") else "torchvision"
        if column not in columns:
            assert isinstance(p.measurement.extractor, Own)
        elif weights in named:
            assert p.runs and p.measurement.extractor == Inception(weights)
        else:
            assert not p.runs and p.reason.startswith("no file of Inception's torchvision weights")


def test_few_images_of_a_stand_in_leave_inceptions_columns_empty(preset, inception_files):
    "Chapter 4 at `smoke` was refused where the files are named, whose numbers it has no use for."
    inception_files("torchvision", "TF")
    plan = d2a2gan.plan_4_1(preset)
    said = "on a stand-in: 80 images with 2,048 features: FD needs at least as many images"
    for scale in ("", " (TF)"):
        cell = plan["cDCGAN", f"{PART} / FID{scale}"]
        assert not cell.runs and cell.reason.startswith(said)
        assert plan["Real", f"{PART} / IS{scale}"].runs


def test_few_of_the_thesiss_images_are_refused_before_anything_is_trained(
    inception_files, tmp_path
):
    inception_files("TF")
    arrays = {f"x_{s}": np.zeros((30, 32, 32, 3), np.uint8) for s in ("train", "test")}
    arrays |= {f"y_{s}": np.arange(30) % 10 for s in ("train", "test")}
    np.savez(tmp_path / "few.npz", **arrays)
    few = settings.load("smoke", chapter=4, cifar10=f"npz:{tmp_path / 'few.npz'}", held_out=10)
    with pytest.raises(BadInput, match="^30 images with 2,048 features"):
        d2a2gan.plan_4_1(few, (PART,))


def test_a_wrong_file_of_inception_is_refused(tmp_path, monkeypatch, capsys):
    "Before anything is made, in one line."
    path = tmp_path / "inception_v3_google-0cc3c7bd.pth"
    path.write_bytes(b"other weights")
    monkeypatch.setenv("THESIS_REPRO_INCEPTION", str(path))
    monkeypatch.setenv("THESIS_REPRO_OUTPUTS", str(tmp_path / "outputs"))
    assert cli.main(["table", "4.1", "--device", "cpu"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"THESIS_REPRO_INCEPTION: {path}: not Inception's weights" in line
    assert not any(f.is_file() and f.name[0] != "." for f in (tmp_path / "outputs").rglob("*"))


class Seeing(torch.nn.Module):
    "In Inception's place: a few weighted sums of pixels, and what class they are."

    def __init__(self, seed):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.sums = torch.randn(3 * 16 * 16, 8, generator=draw)

    def forward(self, x):
        return (x.flatten(1) / 255) @ self.sums


def test_both_scales_are_measured_each_by_its_own_network(preset, inception_files, monkeypatch):
    inception_files("torchvision", "TF")
    seeds = {"torchvision": 1, "TF": 2}

    def build(self, store=None):
        head = torch.nn.Linear(8, 4, bias=False)
        torch.nn.init.eye_(head.weight)
        return Looking(Prepared((16, 16), 0.0, 1.0), Seeing(seeds[self.weights]), head)

    monkeypatch.setattr(Inception, "build", build)
    monkeypatch.setattr(Inception, "features", 8)
    plan = d2a2gan.plan_4_1(preset, (PART,))
    columns = [f"{PART} / {n}{s}" for n in ("IS", "FID") for s in ("", " (TF)")]
    cells = measured_cells(preset, {("cDCGAN", c): plan["cDCGAN", c] for c in columns})
    values = {c.column: c.values[0] for c in cells}
    assert all(map(math.isfinite, values.values())) and len({*values.values()}) == 4


def test_fewer_images_than_features_are_refused_by_the_plan(preset):
    features = quality.features_of(gan_runs.classifier(preset, PART))
    assert d2a2gan.plan_4_1(replace(preset, test_size=features), (PART,))
    with pytest.raises(BadInput, match=f"images with {features} features"):
        d2a2gan.plan_4_1(replace(preset, test_size=features - 1), (PART,))


def test_the_printed_cells_of_table_4_2_are_planned(preset):
    plan = d2a2gan.plan_4_2(preset, (PART,))
    printed = {(c.row, c.column) for c in published.published("4.2").itertuples()}
    assert printed <= plan.keys()
    left = {p.reason for (_, column), p in plan.items() if column.startswith("SVHN")}
    assert left == {"SVHN was not asked for"}


def test_the_figure_has_all_series_on_the_thesiss_data():
    whole = settings.load("thesis", chapter=4)
    plan = d2a2gan.plan_figure_4_6(whole, (PART,))
    series = {row.split(" / ", 2)[2] for row, _ in plan} - {"none"}
    assert series == {"cDCGAN / hard"} | {
        f"{n} / {t}" for n in ("ACGAN", "PGGAN", "D2A2GAN") for t in ("hard", "soft")
    }
    assert {int(c) for _, c in plan} == {0, 100, 1000, 10_000, 50_000}
    runs = plan[f"{PART} / 100 / D2A2GAN / soft", "50000"].runs
    assert [r.data.draw for r in runs] == [r.data.generator.seed for r in runs] == list(range(5))


def test_protocols_differ_in_what_the_gan_has_seen(preset):
    whole = d2a2gan.protocols(PART, 100)
    printed, clean = (whole[n].data.generator for n in ("as printed", "leakage-free"))
    assert clean.data.few == 100 and not hasattr(printed.data, "few")
    assert whole["mixup"].recipe.method == Mixup() and not whole["mixup"].data.count
    helped = whole["leakage-free, DiffAugment"].data.generator
    assert replace(helped, recipe=replace(helped.recipe, augment=())) == clean
    assert helped.recipe.augment == ("colour", "translation", "cutout")
    knows = whole_classifier(PART)
    alone, both = (whole[n].data for n in ("distilled", "distilled, generated images"))
    assert alone == Augmented(printed.data, few=100, targets="soft", teacher=knows)
    assert both == replace(whole["as printed"].data, teacher=knows)
    plan = d2a2gan.plan_4_6_ours(preset, (PART,))
    (ours,) = plan[f"{PART} / 100 real / leakage-free", "accuracy"].runs
    assert ours.data.generator.data.draw == ours.data.draw and ours.data.generator.data.few == 100
    (printed,), (mixed,) = (
        plan[f"{PART} / 100 real / {n}", "accuracy"].runs for n in ("as printed", "mixup")
    )
    assert mixed.length.epochs == 2 * printed.length.epochs  # 200 images, and 100
    (taught,) = plan[f"{PART} / 100 real / distilled", "accuracy"].runs
    assert taught.length.epochs == mixed.length.epochs
    assert taught.data.teacher == classifier(preset, PART)
    assert (
        plan[f"{PART} / 1000 real / mixup", "accuracy"].reason
        == "1,000 real images: the preset has 100"
    )


def test_as_long_counts_steps():
    like = trained_on(d2a2gan.whole_run(PART, "ACGAN", GANS["ACGAN"]), PART, 100, 50_000)
    assert as_long(trained_on(None, PART, 100), like).length.epochs == 100 * 501
    assert as_long(trained_on(None, PART, 1000), like).length.epochs == 100 * 501 / 10
    assert too_few(settings.load("thesis"), 1000) == ""


def test_a_row_says_why_a_cell_is_empty(preset):
    whole = trained_on(None, PART, 100, method=Targets())
    columns = {"a": Recorded("last.accuracy"), "b": "because"}
    assert [p.reason for p in row_of(preset, "r", whole, columns, ("SVHN",)).values()] == [
        f"{PART} was not asked for"
    ] * 2
    assert row_of(preset, "r", whole, columns)["r", "b"].reason == "because"


# The numbers


def test_the_printed_accuracy_is_a_constant_answer():
    found = d2a2gan.constant_answers()
    assert found["images"].sum() == 26_032
    printed = (
        published.published("4.2").set_index(["row", "column"]).value["w/o L_cls", "SVHN / Acc."]
    )
    assert [k for k, a in found["accuracy"].items() if round(a, 1) == printed] == [9]


def test_claims_of_the_chapter_are_readable_and_tried_on_the_printed_numbers():
    found = claim_table(chapter=4).set_index("id")
    assert len(found) == 34
    assert found.loc["4.2-att-halves-error-svhn", "thesis"] == pytest.approx(0.0885 / 0.0419)
    assert found.loc["4.1-second-to-pggan-svhn", "thesis"] > 1
    assert found.loc["4.1-second-to-pggan-cifar-10", "thesis"] < 1


@pytest.mark.parametrize("equation", [f"eq-4.{n}" for n in range(1, 11)])
def test_the_atlas_finds_every_equation(equation):
    found = atlas.where(equation)
    assert found.state == "made" and found.function


def test_the_atlas_leads_to_the_class_loss():
    assert atlas.where("eq-4.4").function == "thesis_repro.attention_branch.both_losses"


def test_the_atlas_finds_tables_figures_and_the_system():
    items = {i.id: i for i in atlas.items()}
    wanted = ["tab-4.1", "tab-4.2", *(f"fig-4.{n}" for n in (1, 4, 5, 6, 7)), "sys-d2a2gan"]
    assert [items[name].state for name in wanted] == ["made"] * len(wanted)


# What is made


def test_measurements_of_a_small_gan(preset, digits):
    small = replace(preset, width=0.1)
    run = afforded(small, d2a2gan.whole_run(PART, "D2A2GAN", SMALL))
    judge = classifier(small, PART)
    store = Store(small)
    store.ensure([run, judge])
    error = MapError()
    kept = error.make(store, run)
    assert 0 <= kept["MSE"] <= 1 and kept["printed"] == pytest.approx(16 * kept["MSE"], rel=1e-4)
    belief = Posterior(60).make(store, run)
    assert sum(belief["ranked"]) == pytest.approx(1, rel=1e-5) and belief["n"] == 60
    assert belief["ranked"] == sorted(belief["ranked"], reverse=True)
    for of, on in (("generated", run), ("train", judge), ("test", judge)):
        found = Certainty(judge, of, 60).make(store, on)
        assert 0 <= found["mean"] <= math.log(10) + 1e-6 and found["n"] == 60
    assert 1 <= RealScore(Own(judge), 60).make(store, judge)["IS"] <= 10
    with pytest.raises(BadInput, match="has no teacher"):
        plain = Gan(SMALL.generator, SMALL.critic, terms=(Auxiliary(),))
        other = afforded(small, d2a2gan.whole_run(PART, "other", plain))
        store.ensure([other])
        error.make(store, other)


def test_its_parameters_are_those_of_the_other_chapters():
    (own,), (theirs,) = notebooks.chapters("4"), notebooks.chapters("7")
    assert list(notebooks.parameters(own)) == list(notebooks.parameters(theirs))
    assert notebooks.faults(own) == []
