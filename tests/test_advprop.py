"""AdvProp: its step against two networks and a loop by hand, controls, costs, tables, claims."""

import math
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from thesis_repro import advprop, atlas, bench, claims, costs, data, models, settings
from thesis_repro.adversarial import Adversarial, Examples, other_classes
from thesis_repro.advprop import (
    CRAFT,
    METHODS,
    STRENGTHS,
    TIMED,
    VARIANTS,
    AdvProp,
    RandomSigns,
    Reused,
    Together,
)
from thesis_repro.attacks import PGD
from thesis_repro.draws import Draws
from thesis_repro.files import BadInput
from thesis_repro.images import pixels
from thesis_repro.pieces import from_specification, specification
from thesis_repro.published import published
from thesis_repro.recipes import SGD, Batch, Classify
from thesis_repro.registry import TABLES
from thesis_repro.split_norms import Branch
from thesis_repro.tables import Cell
from thesis_repro.zoo_losses import LearnableBoundary


@pytest.fixture(scope="module")
def digits():
    return data.load("faint10", 60, 40, 20)


@pytest.fixture
def batch(digits):
    return Batch(pixels(digits.x_test[:12]).double(), digits.y_test[:12], Draws(5))


def networks(method, digits):
    nets = Classify("resnet18", method, SGD(), 0.0625).networks(digits, 0)
    return nets.double().train()


def gradients(module):
    return {k: p.grad for k, p in module.named_parameters()}


def crafted(net, x, aim, epsilon, step, steps, start):
    "Targeted PGD by hand, through running statistics."
    net.eval()
    z = start
    for _ in range(steps):
        z = z.detach().requires_grad_()
        gradient = torch.autograd.grad(F.cross_entropy(net(z), aim, reduction="sum"), z)[0]
        z = z - step * gradient.sign()
        z = torch.minimum(torch.maximum(z, x - epsilon), x + epsilon).clamp(0, 1)
    net.train()
    return z.detach()


def assert_both_learned(nets, one, two):
    "Gradients and statistics of a network with auxiliary norms are those of two networks apart."
    both, (first, second) = gradients(nets["model"]), map(gradients, (one, two))
    places = {n for names in nets["auxiliary"].places for n in names}
    for k, found in both.items():
        norm = k.rpartition(".")[0] in places
        torch.testing.assert_close(found, first[k] + (0 if norm else second[k]))
    for names, norm in zip(nets["auxiliary"].places, nets["auxiliary"].norms(1), strict=True):
        torch.testing.assert_close(norm.weight.grad, second[f"{names[0]}.weight"])
        torch.testing.assert_close(norm.running_mean, two.get_submodule(names[0]).running_mean)
    for k, v in nets["model"].state_dict().items():
        torch.testing.assert_close(v, one.state_dict()[k])


@pytest.mark.parametrize("name", STRENGTHS)
def test_the_step_is_that_of_two_networks(name, digits, batch):
    "Loss, gradients and statistics: crafted on the auxiliary network, learned there; clean apart."
    attack, (x, y, draws) = STRENGTHS[name], (batch.x, batch.y, batch.draws)
    method = AdvProp((Adversarial(attack),))
    nets = networks(method, digits)
    with torch.no_grad():  # else both branches are the same network
        for p in nets["auxiliary"].parameters():
            p.mul_(0.8).add_(0.05)
        Branch(nets["model"], nets["auxiliary"])(1 - x)
    one = models.build("resnet18", 10, 0.0625, 3, digits.mean, digits.std).double().train()
    one.load_state_dict(nets["model"].state_dict())
    two = Branch(nets["model"], nets["auxiliary"]).alone()
    shift = draws.tensor("target", lambda g: g.integers(1, 10, len(y)))
    aim = (y + shift) % 10
    assert not (aim == y).any()
    start = x
    if attack.start == "uniform":
        noise = torch.rand(x.shape, generator=draws.torch("attack"), dtype=x.dtype) * 2 - 1
        start = (x + attack.epsilon * noise).clamp(0, 1)
    adversarial = crafted(two, x, aim, attack.epsilon, attack.stride, attack.steps, start)
    expected = F.cross_entropy(one(x), y) + F.cross_entropy(two(adversarial), y)
    expected.backward()
    loss = method.joint_loss(nets, batch)
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    assert_both_learned(nets, one, two)


def test_a_reused_step_moves_images_up_the_clean_loss_and_learns_both(digits, batch):
    "Against two networks and three ways back: the second one's images by the first one's gradient."
    x, y = batch.x, batch.y
    nets = networks(Reused(0.05), digits)
    with torch.no_grad():  # else both branches are the same network
        for p in nets["auxiliary"].parameters():
            p.mul_(0.8).add_(0.05)
    one = models.build("resnet18", 10, 0.0625, 3, digits.mean, digits.std).double().train()
    one.load_state_dict(nets["model"].state_dict())
    two = Branch(nets["model"], nets["auxiliary"]).alone()
    z = x.clone().requires_grad_()
    clean = F.cross_entropy(one(z), y)
    (slope,) = torch.autograd.grad(clean, z, retain_graph=True)
    expected = clean + F.cross_entropy(two((x + 0.05 * slope.sign()).clamp(0, 1)), y)
    (3 * expected).backward()
    loss = Reused(0.05).joint_loss(nets, batch)
    (3 * loss).backward()  # as a scaled loss
    torch.testing.assert_close(loss, expected)
    assert_both_learned(nets, one, two)


def test_plain_adversarial_training_is_one_batch_or_two(digits, batch):
    x, y, draws = batch.x, batch.y, batch.draws
    for passes in ("one", "two"):
        net, other = (networks(Together(), digits)["model"] for _ in range(2))
        loss = Together(passes=passes)(net, x, y, draws)
        e = Examples(other, x, y, draws)
        adversarial = CRAFT(other, x, other_classes(e), draws)
        if passes == "one":
            a, b = other(torch.cat([x, adversarial])).chunk(2)
        else:
            a, b = other(x), other(adversarial)
        torch.testing.assert_close(loss, F.cross_entropy(a, y) + F.cross_entropy(b, y))
        for k, v in net.state_dict().items():
            torch.testing.assert_close(v, other.state_dict()[k])


def test_a_target_is_never_the_label():
    net, x = torch.nn.Flatten(), torch.rand(400, 1, 1, 3)
    y = torch.arange(400) % 3
    aims = torch.stack([other_classes(Examples(net, x, y, Draws(s))) for s in range(5)])
    assert not (aims == y).any() and set(aims.flatten().tolist()) == {0, 1, 2}
    assert all(a.targeted for a in STRENGTHS.values())


def test_the_strengths_are_those_of_the_errata():
    assert CRAFT == PGD(4 / 255, 1 / 255, 5, targeted=True) and CRAFT.bn == "eval"
    assert [STRENGTHS[f"PGD-{n}"].steps for n in (1, 3, 5)] == [1, 3, 5]
    x = torch.rand(4, 3, 8, 8, dtype=torch.float64)
    net = models.build("resnet18", 10, 0.0625).double()
    free = STRENGTHS["no bound"](net, x, torch.arange(4), Draws(0))
    assert 4.5 / 255 < (free - x).abs().max() <= 5 / 255 + 1e-9


def test_the_fine_grained_variant_has_three_branches(digits, batch):
    nets = networks(advprop.FINE, digits)
    before = {k: v.clone() for k, v in nets["auxiliary"].state_dict().items()}
    advprop.FINE.joint_loss(nets, batch).backward()
    assert len(nets["auxiliary"].sets) == 3
    counts = [s[0].num_batches_tracked.item() for s in nets["auxiliary"].sets]
    assert counts == [1, 1, 1] and not before["sets.0.0.num_batches_tracked"]
    assert all(p.grad is not None for p in nets.parameters())


def test_random_signs_are_of_one_size():
    x = torch.full((8, 3, 8, 8), 0.5)
    moved = RandomSigns(0.1)(None, x, None, Draws(0)) - x
    torch.testing.assert_close(moved.abs(), torch.full_like(x, 0.1))
    assert abs(moved.sign().mean()) < 0.1
    assert RandomSigns(0.1)(None, torch.ones(1, 1, 2, 2), None, Draws(0)).max() <= 1


def test_what_a_step_costs():
    "Passes by hand: forward, to inputs and to weights are one each; an attack's step has two."
    steps = {name: advprop.steps(method) for name, method in VARIANTS.items()}
    assert steps["vanilla"] == 1
    for name, n in (("AdvProp", 5), ("AdvProp, PGD-3", 3), ("AdvProp, PGD-1", 1)):
        assert steps[name] == pytest.approx((6 + 2 * n) / 3, rel=0.03), name
    assert steps["AT"] == pytest.approx(steps["AdvProp"]) == pytest.approx(advprop.BUDGET, rel=0.01)
    assert steps["AdvProp, clean again"] == pytest.approx(2, rel=0.03)
    # two losses, and one layer more on the way back to the images
    assert 2 < advprop.steps(Reused()) < 2.01
    assert steps["AdvProp, fine-grained"] == pytest.approx((12 + 2 * 9) / 3, rel=0.03)


def test_methods_are_pieces_and_refuse_what_they_cannot():
    for method in (*VARIANTS.values(), Reused()):
        assert from_specification(specification(method)) == method
    with pytest.raises(BadInput, match="AdvProp: branches: must be at least one"):
        AdvProp(())
    with pytest.raises(BadInput, match="AdvProp: 3: must be such as Adversarial"):
        AdvProp((3,))
    with pytest.raises(BadInput, match="LearnableBoundary: a branch cannot have networks"):
        AdvProp((Adversarial(loss=LearnableBoundary()),))
    for method in (AdvProp(), Reused()):
        with pytest.raises(BadInput, match=r"^Flatten: has no batch norm"):
            method.networks(torch.nn.Flatten(), None)
    with pytest.raises(BadInput, match="RandomSigns: epsilon = 4: must be at most 1"):
        RandomSigns(4.0)


def test_the_tables_have_the_printed_rows_and_a_reason_for_every_hole():
    for preset in ("smoke", "thesis"):
        chosen = settings.load(preset, chapter="advprop", device="cpu")
        for number in ("advprop.1", "advprop.2", "advprop.3"):
            made = TABLES[number]
            plan = made.plan(chosen, made.parts)
            printed = published(number)
            assert {*zip(printed.row, printed.column, strict=True)} <= plan.keys(), number
            assert all(p.runs or p.reason for p in plan.values())
    smoke = settings.load("smoke", chapter="advprop")
    plan = advprop.plan_1(smoke)
    assert not plan["EfficientNet-B5 / AT", "Top-1"].runs
    assert plan["EfficientNet-B8 / AT", "Top-1"].reason == "torchvision has no EfficientNet-B8"
    assert "needs ImageNet" in advprop.plan_2(smoke)["ResNet-50 / AT", "ImageNet-A"].reason


def test_what_training_cost_stands_beside_every_accuracy_by_size():
    smoke = settings.load("smoke", chapter="advprop")
    first, second = advprop.plan_1(smoke), advprop.plan_2(smoke)
    columns = {row: {c for r, c in second if r == row} for row, _ in second}
    assert all("vanilla steps" in c for c in columns.values())
    assert all(second[row, "vanilla steps"] == first[row, "vanilla steps"] for row in columns)


def test_an_accuracy_of_some_test_images_says_of_how_many():
    store = SimpleNamespace(record=lambda run: SimpleNamespace(data={"test": 50}))
    assert advprop.OnBranch(size=20).images(store, None) == (20, 50)
    assert advprop.OnBranch().images(store, None) is None
    assert advprop.OnBranch(size=50).images(store, None) is None


def test_whole_runs_are_the_articles_networks():
    whole = settings.load("thesis", chapter="advprop", device="cpu", precision="fp32")
    plan = advprop.plan_1(whole)
    runs = {row: p.runs for (row, column), p in plan.items() if column == "Top-1"}
    for k in range(8):
        for name, method in METHODS.items():
            (run, *_) = runs[f"EfficientNet-B{k} / {name}"]
            assert (run.recipe.network, run.recipe.method) == (f"efficientnet_b{k}", method)
            side = (224, 240, 260, 300, 380, 456, 528, 600)[k]  # Tan & Le (2019)
            assert run.data.real and run.data.side == side and run.length.epochs == 350
    assert not runs["ResNet-200 / AT"] and len(runs["ResNet-152 / AT"]) == whole.seeds


def test_equal_budgets_are_equal():
    whole = settings.load("thesis", chapter="advprop", device="cpu")
    plan = advprop.plan_3(whole)
    epochs = {row: p.runs[0].length.epochs for (row, _), p in plan.items() if p.runs}
    assert epochs["vanilla"] == epochs["AdvProp"] == 90
    assert epochs["vanilla, equal budget"] == round(90 * 5.4) == 486
    assert epochs["AdvProp, equal budget"] == round(90 / 5.4) == 17
    spent = {r: plan[r, "vanilla steps"] for r in epochs}
    spent = {r: p.measurement.value(None, p.runs[0]) for r, p in spent.items()}
    assert spent["vanilla"] == 1
    assert spent["vanilla, equal budget"] == pytest.approx(spent["AdvProp"], rel=0.01)
    assert spent["AdvProp, equal budget"] == pytest.approx(spent["vanilla"], rel=0.03)
    assert plan["vanilla", "auxiliary, clean"].reason == "it has no auxiliary branch"


def test_gains_are_differences_by_size_and_seed():
    values = {"vanilla": (80.0, 81.0), "AT": (79.0, 82.0), "AdvProp": (83.0, 83.0)}
    cells = [Cell(f"EfficientNet-B0 / {m}", "Top-1", v) for m, v in values.items()]
    error = [Cell(c.row, "mCE", tuple(100 - v for v in c.values)) for c in cells]
    frame = advprop.gains(cells, error).set_index(["what", "seed"])
    assert frame.AT["Top-1"].tolist() == [-1, 1] and frame.AdvProp["Top-1"].tolist() == [3, 2]
    assert frame["AdvProp over AT"]["mCE"].tolist() == [-4, -1]


def test_claims_are_of_this_companion_and_the_printed_numbers_answer_some():
    judged = claims.claim_table(chapter="advprop")
    assert len(judged) == 9 and judged.id.str.startswith("advprop-").all()
    by_id = judged.set_index("id")
    assert by_id.thesis["advprop-b7-improves"] == pytest.approx(0.7)
    assert by_id.thesis["advprop-b7-natural"] == pytest.approx(7.5)
    assert math.isnan(by_id.thesis["advprop-separation-shrinks"])


def test_the_atlas_finds_it():
    found = atlas.where("sys-advprop")
    assert found.state == "made" and found.function == "thesis_repro.advprop.AdvProp"


def test_the_bench_times_a_step_of_each_method_in_steps_of_vanilla(monkeypatch):
    made = {name: [] for name in TIMED}
    real = bench.training_step
    names = {method: name for name, method in TIMED.items()}

    def training_step(method, *size, **how):
        step = real(method, *size, **how)
        return lambda: made[names[method]].append(1) or step()

    monkeypatch.setattr(bench, "training_step", training_step)
    tiny = settings.load("smoke", device="cpu", timing_batch=2, timing_repeats=2)
    found = {f["name"]: f for f in advprop.bench(tiny, width=0.0625)}
    assert all(len(calls) >= 2 for calls in made.values())
    assert {f"seconds a step: {name}" for name in TIMED} <= found.keys()
    seconds = pd.DataFrame({"vanilla": [1.0, 2.0], "AT": [6.0, 12.0], "AdvProp": [8.0, 16.0]})
    seconds["AdvProp, reused"] = [2.0, 5.0]  # twice as slow a round: 2 and 2.5
    monkeypatch.setattr(advprop, "paired_seconds", lambda *_, **__: seconds)
    found = {f["name"]: f for f in advprop.bench(tiny, width=0.0625)}
    assert found["AT in vanilla steps"]["value"] == pytest.approx(6)
    assert found["AT in vanilla steps"]["ok"] is None
    assert found["AdvProp in vanilla steps"]["ok"] is False  # published are 7
    reused = found["AdvProp, reused in vanilla steps"]
    assert reused["value"] == pytest.approx(2.25) and reused["ok"] and reused["bar"]
    assert bench.BENCHES["advprop"] == ("thesis_repro.advprop", "bench")


def test_it_is_planned_without_a_network_of_ours():
    "A step of torchvision's network is counted on a smaller one of its family."
    recipe = advprop.run_of("ResNet-50", METHODS["vanilla"]).recipe
    done = costs.step(recipe, 10, (3, 32, 32))
    assert done.shape == (3, 3) and (done[:, 2] > 0).all()
