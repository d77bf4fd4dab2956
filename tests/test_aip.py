"""Chapter 7: its equations in float64 NumPy, what its searches promise, who learns from what."""

import contextlib
import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn as nn

from thesis_repro import (
    aip,
    artefacts,
    claims,
    data,
    fast_search,
    former,
    learned_ratios,
    measured_facts,
    mixup,
    models,
    pieces,
    ratio_search,
    records,
    search_facts,
    settings,
    surfaces,
    training,
    workers,
)
from thesis_repro.aip import AsDescribed, Ternary
from thesis_repro.draws import Draws
from thesis_repro.fast_search import LogitCurve
from thesis_repro.files import BadInput
from thesis_repro.images import batches, pixels, random_batch
from thesis_repro.learned_ratios import AdaMixup, MetaMixup
from thesis_repro.mixup import Beta, Fixed, Mixup, Pairs, mix, mixed_loss
from thesis_repro.ratio_search import Golden, Parabolic
from thesis_repro.recipes import SGD, Adam, Batch, Classify, Decay
from thesis_repro.store import Store
from thesis_repro.training import Compute, Length

QUIET = Compute(progress=False)
SEARCHES = [Ternary(8), Ternary(4, zeta=0.0), Golden(5), Parabolic(5), LogitCurve(2), LogitCurve(4)]


def rng(seed=0):
    return np.random.default_rng(seed)


def tensor(a):
    return torch.as_tensor(np.asarray(a))


@pytest.fixture(scope="module")
def digits():
    return data.load("digits10", train_size=1000, test_size=200, held_out=100)


@pytest.fixture(scope="module")
def trained(digits):
    "A small network that has learned most of the digits."
    recipe = Classify(
        "preactresnet18", Mixup((0, 1, 2, 3), Beta(2.0)), SGD(decay=Decay(kind="cosine")), 0.125
    )
    run = training.start(recipe, digits, Length(8, 64), compute=QUIET)
    return training.train(run).nets["model"]


@pytest.fixture
def net(trained):
    return copy.deepcopy(trained).train()


@pytest.fixture(scope="module")
def batch(digits):
    return pixels(digits.x_train[:128]), digits.y_train[:128]


@contextlib.contextmanager
def counted(net):
    "Collects the layer that every forward pass of `net` starts from."
    starts, own = [], net.forward

    def forward(x, start=0, stop=None):
        starts.append((start, stop))
        return own(x, start, stop)

    net.forward = forward
    yield starts
    del net.forward


# The equations, written a second time with NumPy in float64, one number at a time


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def ce(z, y):
    return -np.log(softmax(z)[y])


def bce(z, y):
    p, t = softmax(z), np.eye(len(z))[y]
    return -np.mean(t * np.log(p) + (1 - t) * np.log(1 - p))


class Linear(nn.Module):
    "A network of one linear layer, which NumPy can follow."

    def __init__(self, inputs, classes, scale=1.0):
        super().__init__()
        self.w = nn.Parameter(tensor(rng(5).normal(size=(inputs, classes)) * scale).float())

    def forward(self, x, start=0, stop=None):
        return x.flatten(1) @ self.w.to(x.dtype)


def linear_pairs(n=40, classes=5, loss="ce", scale=1.0):
    g = rng(1)
    x, y, partner = g.normal(size=(n, 2, 3)), g.integers(0, classes, n), g.permutation(n)
    model = Linear(6, classes, scale)
    pairs = Pairs(model, 0, tensor(x), tensor(partner), tensor(y), loss)
    w = model.w.detach().double().numpy()

    def loss_of(i, lam):
        "L′ of pair i, eq. 7.2 and 7.4."
        j, one = partner[i], ce if loss == "ce" else bce
        z = (lam * x[i] + (1 - lam) * x[j]).ravel() @ w
        return lam * one(z, y[i]) + (1 - lam) * one(z, y[j])

    return pairs, loss_of


def reference_ternary(loss_of, rounds, zeta):
    "Algorithm 3 for one pair, line by line, with the text's clipping."
    lower, upper = 0 - zeta, 1 + zeta
    for _ in range(rounds):
        c1, c2 = (2 * lower + upper) / 3, (lower + 2 * upper) / 3
        if loss_of(c1) >= loss_of(c2):
            upper = c2
        else:
            lower = c1
        lower, upper = min(max(lower, 0.0), 1.0), min(max(upper, 0.0), 1.0)
    return (upper + lower) / 2


def test_cross_entropy_is_eq_7_1():
    z, y = rng().normal(size=(9, 7)) * 3, rng(1).integers(0, 7, 9)
    ours = mixup.Plain("ce")(lambda x: x, tensor(z).float(), tensor(y), Draws(0))
    np.testing.assert_allclose(
        ours, np.mean([ce(a, b) for a, b in zip(z, y, strict=True)]), rtol=1e-6
    )


@pytest.mark.parametrize("shape", [(4, 3, 5, 5), (4, 10)])
def test_mixing_is_eq_7_2_and_7_3(shape):
    a, b, lam = rng().normal(size=shape), rng(1).normal(size=shape), rng(2).random(4)
    expected = np.stack([lam[i] * a[i] + (1 - lam[i]) * b[i] for i in range(4)])
    np.testing.assert_allclose(mix(tensor(a), tensor(b), tensor(lam)), expected, rtol=1e-12)


@pytest.mark.parametrize("kind,one", [("ce", ce), ("bce", bce)])
def test_mixed_loss_is_eq_7_4(kind, one):
    g = rng(3)
    z, y, y2, lam = (
        g.normal(size=(20, 6)) * 2,
        g.integers(0, 6, 20),
        g.integers(0, 6, 20),
        g.random(20),
    )
    expected = [
        m * one(a, b) + (1 - m) * one(a, c) for a, b, c, m in zip(z, y, y2, lam, strict=True)
    ]
    ours = mixed_loss(tensor(z).float(), tensor(y), tensor(y2), tensor(lam).float(), kind)
    np.testing.assert_allclose(ours, expected, rtol=2e-6)


@pytest.mark.parametrize("kind", ["ce", "bce"])
def test_worst_case_is_the_inner_maximum_of_eq_7_5(kind):
    pairs, loss_of = linear_pairs(loss=kind)
    lam, loss = ratio_search.worst_case(pairs, points=101)
    grid = np.linspace(0, 1, 101)
    table = np.array([[loss_of(i, v) for v in grid] for i in range(40)])
    np.testing.assert_allclose(loss, table.max(1), rtol=1e-5)
    np.testing.assert_allclose(
        loss, [loss_of(i, v) for i, v in enumerate(lam.double().numpy())], rtol=1e-5
    )


def test_training_minimises_the_inner_maximum_eq_7_5():
    "A step of AIP lowers the largest loss over λ."
    pairs, _ = linear_pairs(scale=3.0)
    before = ratio_search.worst_case(pairs)[1].mean()
    sgd = torch.optim.SGD(pairs.model.parameters(), 0.1)
    mixed_loss(
        pairs.model(mix(pairs.h, pairs.h[pairs.partner], Ternary()(pairs, Draws(0)))),
        pairs.y,
        pairs.y2,
        Ternary()(pairs, Draws(0)),
    ).mean().backward()
    sgd.step()
    assert ratio_search.worst_case(pairs)[1].mean() < before


def test_candidates_are_eq_7_6_and_7_7():
    lower = rng().random(50) - 0.5
    upper = lower + rng(1).random(50)
    c1, c2 = aip.candidates(tensor(lower), tensor(upper))
    np.testing.assert_allclose(c1, (2 * lower + upper) / 3, rtol=1e-12)
    np.testing.assert_allclose(c2, (lower + 2 * upper) / 3, rtol=1e-12)
    assert (c1 < c2).all()


@pytest.mark.parametrize("kind", ["ce", "bce"])
def test_candidate_losses_are_eq_7_8_to_7_11(kind):
    pairs, loss_of = linear_pairs(loss=kind)
    c1, c2 = rng(8).random(40), rng(9).random(40)
    loss1, loss2 = aip.candidate_losses(pairs.loss_at, tensor(c1), tensor(c2))
    np.testing.assert_allclose(loss1, [loss_of(i, v) for i, v in enumerate(c1)], rtol=1e-5)
    np.testing.assert_allclose(loss2, [loss_of(i, v) for i, v in enumerate(c2)], rtol=1e-5)


def test_bounds_are_eq_7_12_with_clipping():
    g = rng(4)
    lower, upper = -g.random(60), 1 + g.random(60)
    c1, c2 = (2 * lower + upper) / 3, (lower + 2 * upper) / 3
    loss1, loss2 = (
        g.integers(0, 3, 60).astype(float),
        g.integers(0, 3, 60).astype(float),
    )  # with ties
    ours = aip.update_bounds(*map(tensor, (lower, upper, c1, c2, loss1, loss2)))
    for i in range(60):
        u = c2[i] if loss1[i] >= loss2[i] else upper[i]
        low = c1[i] if loss1[i] < loss2[i] else lower[i]
        assert (ours[0][i], ours[1][i]) == (np.clip(low, 0, 1), np.clip(u, 0, 1))


def test_the_answer_is_the_midpoint_of_eq_7_13():
    lower, upper = rng().random(9), 1 + rng(1).random(9)
    np.testing.assert_allclose(
        aip.midpoint(tensor(lower), tensor(upper)), (upper + lower) / 2, rtol=1e-12
    )


@pytest.mark.parametrize("zeta", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("rounds", [1, 2, 5, 8])
@pytest.mark.parametrize("every_round", [False, True])
def test_ternary_search_is_algorithm_3(rounds, zeta, every_round):
    top = rng(6).random(200) * 1.6 - 0.3  # some beyond the ends
    top = top[
        np.abs(np.modf(top * 3**8)[0] - 0.5) > 0.01
    ]  # float32 and float64 must not differ on a near tie
    ours = aip.ternary_search(
        lambda lam: -((lam - tensor(top).float()) ** 2),
        len(top),
        rounds,
        zeta,
        every_round=every_round,
    )
    expected = [reference_ternary(lambda v, t=t: -((v - t) ** 2), rounds, zeta) for t in top]
    assert (np.abs(ours.numpy() - expected) < 1e-5).mean() > 0.99


@pytest.mark.parametrize("kind", ["ce", "bce"])
def test_algorithm_3_on_a_network(kind):
    pairs, loss_of = linear_pairs(loss=kind, scale=2.0)
    expected = [reference_ternary(lambda v, i=i: loss_of(i, v), 8, 1.0) for i in range(40)]
    close = np.abs(Ternary(8)(pairs, Draws(0)).numpy() - expected) < 1e-4
    reached = [
        [loss_of(i, v) for i, v in enumerate(lam)]
        for lam in (Ternary(8)(pairs, Draws(0)).double().numpy(), expected)
    ]
    assert close.mean() > 0.9  # elsewhere two candidates tie in float32
    np.testing.assert_allclose(reached[0], reached[1], rtol=1e-4)


# What the searches promise


@pytest.mark.parametrize("rounds", [2, 4, 8, 12])
def test_ternary_search_ends_within_the_bracket(rounds):
    top = torch.rand(500, generator=torch.Generator().manual_seed(0))

    def concave(lam):
        return -(lam - top).abs() * torch.where(lam > top, 3.0, 1.0)

    error = (aip.ternary_search(concave, 500, rounds) - top).abs().max()
    bound = (2 / 3) ** (rounds - 1) / 2  # the first round decides nothing
    assert 0.5 * bound < error <= bound + 1e-6


def test_a_tie_moves_the_upper_bound():
    lam = aip.ternary_search(lambda lam: torch.zeros_like(lam), 3, rounds=6)
    torch.testing.assert_close(lam, torch.full((3,), (2 / 3) ** 5 / 2))


def test_golden_and_parabolic_find_known_tops():
    top = torch.linspace(0.05, 0.95, 50)

    def quadratic(lam):
        return -((lam - top) ** 2)

    assert (ratio_search.golden_search(quadratic, 50, 12) - top).abs().max() < 0.618**11
    assert (ratio_search.parabolic_search(quadratic, 50, 6) - top).abs().max() < 0.01

    def entropy(lam):
        return -(lam.clamp_min(1e-9).log() * lam * top)

    assert (ratio_search.parabolic_search(entropy, 50, 8) - np.exp(-1)).abs().max() < 0.01


@pytest.mark.parametrize("passes", [1, 2, 3, 5])
def test_lagrange_weights_reproduce_polynomials(passes):
    nodes, at = torch.linspace(1, 0, passes + 1).double(), torch.linspace(0, 1, 33).double()
    coefficients = rng(passes).normal(size=passes + 1)
    values = np.polyval(coefficients, nodes.numpy())
    np.testing.assert_allclose(
        fast_search.lagrange_weights(nodes, at) @ tensor(values),
        np.polyval(coefficients, at.numpy()),
        atol=1e-9,
    )


@pytest.mark.parametrize("kind", ["ce", "bce"])
@pytest.mark.parametrize("passes", [1, 2, 4])
def test_logit_curve_is_exact_where_logits_are_polynomials(passes, kind):
    pairs, _ = linear_pairs(loss=kind, scale=2.0)
    lam, best = ratio_search.worst_case(pairs, points=65)
    found = LogitCurve(passes, points=65)(pairs, Draws(0))
    assert (found == lam).float().mean() > 0.95  # the others tie in float32
    torch.testing.assert_close(pairs.loss_at(found), best, rtol=1e-5, atol=1e-6)


def test_interleaved_logits_are_the_logits_at_their_ratios(net, batch):
    pairs = ratio_search.pairs_at(net, *batch, layer=2, statistics="frozen")
    ratios, logits = fast_search.interleaved_logits(pairs, 3)
    for ratio, ours in zip(ratios, logits, strict=True):
        torch.testing.assert_close(ours, pairs.logits_at(ratio.expand(128)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_a_search_is_a_guest(net, batch, search):
    "No graph; modes, flags and running statistics bitwise as before; nothing for the parameters."
    net.stages[2].eval()
    pairs = ratio_search.pairs_at(net, *batch, layer=1)

    def flags():
        return [(m.training, getattr(m, "track_running_stats", None)) for m in net.modules()]

    before = {k: v.clone() for k, v in net.state_dict().items()}, flags()
    lam = search(pairs, Draws(0))
    assert lam.shape == (128,) and lam.dtype == torch.float32 and not lam.requires_grad
    assert 0 <= lam.min() and lam.max() <= 1
    assert flags() == before[1] and all(
        torch.equal(v, before[0][k]) for k, v in net.state_dict().items()
    )
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_a_search_needs_as_many_passes_as_it_says(net, batch, search):
    pairs = ratio_search.pairs_at(net, *batch, layer=3)
    with counted(net) as starts:
        search(pairs, Draws(0))
    assert starts == [(3, None)] * search.passes


def test_as_described_passes_the_whole_network_sixteen_times(net, batch):
    x, y = batch
    pairs = ratio_search.pairs_at(net, x, y, layer=2)
    with counted(net) as starts:
        AsDescribed(8).search(pairs, x)
    assert starts == [(0, 2), (2, None)] * 16


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_ternary_gives_what_the_description_gives(net, batch, layer):
    x, y = batch
    described, ours = (
        replace(AsDescribed(8), layers=(layer,)),
        replace(aip.aip(rounds=8), layers=(layer,)),
    )
    pairs = ratio_search.pairs_at(net, x, y, layer, loss="bce")
    close = (described.search(pairs, x) - Ternary(8)(pairs, Draws(0))).abs() < 1e-5
    assert close.float().mean() > 0.98  # a float tie may go either way
    torch.testing.assert_close(
        described(net, x, y, Draws(3)), ours(net, x, y, Draws(3)), rtol=1e-4, atol=0
    )


def test_pairs_do_not_see_each_other_under_frozen_statistics(net, batch):
    x, y = batch
    other = x.clone()
    partner = ratio_search.pairs_at(net, x, y, 1).partner
    kept = torch.zeros(128, dtype=torch.bool)
    kept[:8] = kept[partner[:8]] = True
    other[~kept] = 1 - other[~kept]

    def answers(x, statistics):
        return Ternary(8)(ratio_search.pairs_at(net, x, y, 1, statistics=statistics), Draws(0))[:8]

    torch.testing.assert_close(answers(x, "frozen"), answers(other, "frozen"), atol=1e-5, rtol=0)
    assert not torch.allclose(answers(x, "batch"), answers(other, "batch"), atol=1e-5)


@pytest.mark.parametrize("kind", ["ce", "bce"])
def test_the_fast_search_reaches_98_percent(net, digits, kind):
    shares = aip.search_loss_shares(net, digits, batches=3, loss=kind)
    assert shares["fast"] >= 0.98 > shares["λ = 0.5"]


def test_unimodal_against_a_plain_loop():
    draws = rng(7)
    losses = tensor(draws.random((12, 300))).cumsum(0).float()
    losses[6:] = losses[6:].flip(0)
    losses[1:-1] -= tensor(2 * draws.random((10, 300)) ** 20).float()  # some have a valley

    def one_top(curve, dip):
        return not any(
            curve[j] < min(curve[:j].max(), curve[j + 1 :].max()) - dip * curve.max()
            for j in range(1, len(curve) - 1)
        )

    counts = []
    for dip in (0.0, 0.01, 0.2):
        expected = [one_top(c, dip) for c in losses.T.numpy()]
        assert ratio_search.unimodal(losses, dip).tolist() == expected
        counts.append(sum(expected))
    assert 0 < counts[0] < counts[1] < counts[2] < 300


def test_search_quality_against_plain_sums(net, batch):
    pairs = ratio_search.pairs_at(net, *batch, layer=2)
    quality = ratio_search.search_quality(
        ratio_search.search_losses(pairs, {"middle": Fixed(0.5)}, points=21)
    )
    _, best = ratio_search.worst_case(pairs, 21)
    reached, real = pairs.loss_at(torch.full((128,), 0.5)), pairs.partner != torch.arange(128)
    row = quality.loc["middle"]
    assert row.n == real.sum() and row.mean_loss_share == pytest.approx(
        (reached[real].sum() / best[real].sum()).item(), rel=1e-5
    )
    assert row.within_1_percent == pytest.approx(
        (reached >= 0.99 * best)[real].float().mean().item()
    )


# The searches under bf16, and the options of Algorithms 3 and 4


def bf16(on=True):
    return torch.autocast("cpu", torch.bfloat16, enabled=on)


@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_a_search_stays_in_float32_under_autocast(net, batch, search):
    "The same pairs get the same ratios, bit for bit."
    pairs = ratio_search.pairs_at(net, *batch, layer=1)
    expected = search(pairs, Draws(0))
    with bf16():
        assert torch.equal(search(pairs, Draws(0)), expected)


def test_features_of_a_bf16_step_are_searched_in_float32(net, batch):
    found = []

    def remember(pairs, draws):
        found.append((pairs, Ternary(6)(pairs, draws)))
        return found[0][1]

    with bf16():
        replace(aip.aip(), layers=(2,), ratio=remember)(net, *batch, Draws(0))
    [(pairs, ratios)] = found
    assert pairs.h.dtype == ratios.dtype == torch.float32
    assert torch.equal(Ternary(6)(pairs, Draws(0)), ratios)


def test_the_ratio_is_not_rounded_to_bf16():
    "0.5 and 0.501 are one number in bf16; between 0 and 256 they are a quarter of a unit apart."
    a, b = torch.full((2, 1), 256.0).bfloat16(), torch.zeros(2, 1).bfloat16()
    lam = torch.tensor([0.5, 0.501])
    mixed = mix(a, b, lam)
    assert mixed.dtype == torch.bfloat16 and lam.bfloat16()[0] == lam.bfloat16()[1]
    assert mixed.tolist() == [[128.0], [128.0]]  # the features may be rounded
    a, b = torch.full((1, 1), 1.0).bfloat16(), torch.full((1, 1), -1.0).bfloat16()
    assert mix(a, b, torch.tensor([0.501])).item() == pytest.approx(0.002, rel=0.01)


def test_the_searched_loss_is_an_option(net, batch):
    "Algorithm 3 writes the cross entropy; by default it is the loss of the training."
    x, y = batch
    by_bce, by_ce = (ratio_search.pairs_at(net, x, y, 2, loss=loss) for loss in ("bce", "ce"))
    for search in ("ternary", "fast"):
        default, ce = (aip.aip(search, searched=loss).ratio for loss in ("", "ce"))
        assert torch.equal(ce(by_bce, Draws(0)), default(by_ce, Draws(0)))
        assert not torch.equal(default(by_bce, Draws(0)), default(by_ce, Draws(0)))
    assert by_bce.loss == "bce"


@pytest.mark.parametrize("per,distinct", [("pair", 32), ("batch", 1)])
def test_the_ratio_at_the_image_is_one_per_pair_or_as_mixup_s(batch, net, per, distinct):
    x, y = (v[:32] for v in batch)
    ratio = aip.aip(alpha=2.0, per=per).input_ratio
    pairs = ratio_search.pairs_at(net, x, y, 0)
    assert len(ratio(pairs, Draws(0)).unique()) == distinct
    if per == "batch":
        assert torch.equal(ratio(pairs, Draws(0)), Mixup(ratio=Beta(2.0)).ratio(pairs, Draws(0)))


def test_the_options_do_not_change_the_keys_of_what_was_run_before():
    blind = {"is": "Beta", "per": "pair"}
    common = {"is": "Mixup", "layers": [0, 1, 2, 3], "input_ratio": blind, "loss": "bce"}
    ternary = {**common, "ratio": {"is": "Ternary", "rounds": 6}}
    assert pieces.specification(aip.searching("CIFAR-10")) == ternary
    fast = {**common, "ratio": {"is": "LogitCurve"}}
    assert pieces.specification(aip.searching("CIFAR-10", search="fast")) == fast


# AIP as a training method


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("search", ["ternary", "fast"])
def test_the_gradient_is_that_of_the_mix_at_the_ratios_found(net, batch, search, bf16):
    "The search leaves no trace in the step: not in the graph, not in the cache of autocast."
    x, y = batch
    method, gradients = replace(aip.aip(search), layers=(2,)), []
    pairs = ratio_search.pairs_at(net, x, y, 2, loss="bce")
    pairs.partner = tensor(Draws(0).numpy("partner").permutation(128))
    found = []

    def remember(pairs, draws):
        found.append(method.ratio(pairs, draws))
        return found[0]

    for ratio in (remember, lambda pairs, draws: found[0]):
        model = copy.deepcopy(net)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            replace(method, ratio=ratio)(model, x, y, Draws(0)).backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(g is not None and torch.equal(g, h) for g, h in zip(*gradients, strict=True))


def test_aip_draws_at_the_image_and_searches_above(net, batch):
    x, y = batch
    for at_input, searches_at in ((False, {1, 2, 3}), (True, {0, 1, 2, 3})):
        seen = set()
        for seed in range(16):
            method = aip.aip(rounds=2, at_input=at_input)
            layer = int(Draws(seed).numpy("layer").choice(method.layers))
            with counted(net) as starts:
                method(net, x[:16], y[:16], Draws(seed))
            seen |= {layer} if starts.count((layer, None)) > 1 else set()
        assert seen == searches_at


def test_an_unknown_choice_is_one_line(net, batch):
    with pytest.raises(BadInput, match="search = brent: must be ternary or fast"):
        aip.aip("brent")
    with pytest.raises(BadInput, match="statistics = running: must be batch or frozen"):
        ratio_search.pairs_at(net, *batch, layer=1, statistics="running")


def tiny(**changes):
    small = {"train_size": 96, "test_size": 20, "held_out": 20, "width": 0.0625, "search_points": 5}
    small |= {"device": "cpu", "jobs": 1, "threads": 1, "seeds": 1}
    return settings.load("smoke", 7, **small | changes)


def test_the_stages_are_one_training(tmp_path):
    "The run of one epoch is the beginning of the run of three."
    store, runs = Store(tiny(), tmp_path), aip.stages(tiny())
    assert [run.length.epochs for run in runs.values()] == [1, 3, 10]
    one, three, _ = runs.values()
    assert replace(one, length=three.length) == three
    t = training.start(three.recipe, three.data.images(), three.length, three.seed, QUIET)
    with workers.threads(1):  # as the store's run has: more add up in another order
        for _, x, y in take_epoch(t):
            training.step(t, x, y)
    store.ensure([one])
    found = store.networks(one).state_dict()
    assert all(torch.equal(v, found[k]) for k, v in t.nets.state_dict().items())


def take_epoch(t):
    t.nets.train()
    return batches(t.images, t.length.batch_size, Draws(t.seed))


def test_a_table_of_searches_belongs_to_what_it_was_measured_on(tmp_path, monkeypatch):
    "Another number of grid points, another recipe, another precision: another measurement."
    monkeypatch.setenv("THESIS_REPRO_OUTPUTS", str(tmp_path))
    monkeypatch.setattr(aip, "SHOWN", ("λ = 0.5", "ternary K = 4"))
    variants = [
        {},
        {"search_points": 6},
        {"recipe": "papers"},
        {"precision": "bf16"},
        {"width": 0.125},
    ]
    for i, changes in enumerate(variants, 1):
        frame = aip.search_table(tiny(**changes))
        assert set(frame.stage) == {0, 1, 3, 10} and set(frame.statistics) == {"batch", "frozen"}
        assert len(list(tmp_path.glob("*/measurements/search_quality-*.json"))) == i


# MetaMixup and AdaMixup: who learns from what


def woken(method, model, images, seed=0):
    "The networks of a method beside its model, their weights drawn at random."
    g, own = torch.Generator().manual_seed(seed), method.networks(model, images)
    for network in own.values():
        for p in network.parameters():
            p.data.normal_(0, 0.3, generator=g)
    return nn.ModuleDict({"model": model, **own})


def split(x, y, draws, held):
    partner = tensor(draws.numpy("partner").permutation(len(y) - held))
    return x[held:], y[held:], partner, x[:held], y[:held]


def gradients(net):
    return {k: p.grad for k, p in net.named_parameters()}


def test_metamixup_trains_the_classifier_on_the_mix_only(net, batch, digits):
    x, y = (v[:32] for v in batch)
    method, plain = MetaMixup(held_back=0.25), copy.deepcopy(net)
    nets = woken(method, net, digits)
    method.policy_loss(nets, Batch(x, y, Draws(0)))
    total = method.joint_loss(nets, Batch(x, y, Draws(0)))
    total.backward()
    xs, ys, partner, *_ = split(x, y, Draws(0), 8)
    lam = nets["policy"](torch.cat([xs, xs[partner]], 1)).sigmoid().squeeze(1).detach()
    assert lam.std() > 0.005
    loss = mixed_loss(plain(mix(xs, xs[partner], lam)), ys, ys[partner], lam, "bce").mean()
    loss.backward()
    assert torch.equal(total, loss)
    expected = gradients(plain)
    for k, grad in gradients(net).items():
        torch.testing.assert_close(grad, expected[k], msg=k)
    assert all(grad is None for grad in gradients(nets["policy"]).values())
    # One real forward pass has moved the running statistics, the virtual step has not.
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), plain.buffers(), strict=True))


class Smooth(nn.Module):
    "A network with batch normalisation whose loss has derivatives that finite differences can see."

    def __init__(self, inputs):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(inputs, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Linear(12, 10)
        )

    def forward(self, x, start=0, stop=None):
        return self.layers(x)


def test_metamixup_trains_the_policy_on_the_held_back_images_only(batch, digits):
    "Its gradient against finite differences through a virtual step that is really made."
    x, y = batch[0][:24].double(), batch[1][:24]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Smooth(x[0].numel()).double()
    method = MetaMixup(held_back=0.25, virtual_lr=0.5, loss="ce")
    nets = woken(method, model, digits).double()
    policy, (xs, ys, partner, x_held, y_held) = nets["policy"], split(x, y, Draws(0), 6)

    def held_back_loss():
        stepped = copy.deepcopy(model)
        lam = policy(torch.cat([xs, xs[partner]], 1)).sigmoid().squeeze(1).detach()
        mixed_loss(stepped(mix(xs, xs[partner], lam)), ys, ys[partner], lam, "ce").mean().backward()
        torch.optim.SGD(stepped.parameters(), 0.5).step()
        with torch.no_grad():
            return -stepped(x_held).log_softmax(1).gather(1, y_held[:, None]).mean().item()

    method.policy_loss(nets, Batch(x, y, Draws(0))).backward()
    assert all(grad is None for grad in gradients(model).values())
    for p in (policy[-1].bias, policy[-1].weight):
        at = np.unravel_index(p.grad.abs().argmax(), p.shape)
        before, values = p.data[at].item(), []
        for moved in (before + 1e-2, before - 1e-2):
            p.data[at] = moved
            values.append(held_back_loss())
        p.data[at] = before
        slope = (values[0] - values[1]) / 2e-2
        assert abs(slope) > 1e-3 and p.grad[at].item() == pytest.approx(slope, rel=0.02)


def test_adamixup_is_the_sum_of_three_losses(net, batch, digits):
    "The gradients of its two phases together are those of the sum."
    x, y = (v[:32] for v in batch)
    method = AdaMixup(loss="ce")
    nets = woken(method, net, digits)
    whole = copy.deepcopy(nets)
    before = [b.clone() for b in net.buffers()]
    for phase in Classify("preactresnet18", method).phases(nets):
        with training.learning(nets, phase.trains):
            phase.loss(nets, Batch(x, y, Draws(0))).backward()
        if phase.name == "policy":  # it looks at the classifier and leaves nothing in it
            assert all(torch.equal(a, b) for a, b in zip(before, net.buffers(), strict=True))
    partner = tensor(Draws(0).numpy("partner").permutation(32))
    draw = tensor(Draws(0).numpy("ratio").random(32)).float()
    lower, width, _ = whole["policy"](torch.cat([x, x[partner]], 1)).softmax(1).unbind(1)
    lam, says = lower + width * draw, whole["intrusion"]
    mixed = lam[:, None, None, None] * x + (1 - lam)[:, None, None, None] * x[partner]
    with models.batch_statistics(whole["model"]):
        real = -whole["model"](x).log_softmax(1).gather(1, y[:, None]).mean()
        torn = mixed_loss(whole["model"](mixed), y, y[partner], lam).mean()
    judged = -(says(x).sigmoid().log().mean() + (1 - says(mixed).sigmoid()).log().mean()) / 2
    (real + torn + judged).backward()
    expected = gradients(whole)
    for k, grad in gradients(nets).items():
        assert expected[k].abs().sum() > 0
        scale = expected[k].abs().max().item()
        torch.testing.assert_close(grad, expected[k], rtol=1e-3, atol=1e-4 * scale, msg=k)


def test_the_mixing_region_stays_inside():
    lam = learned_ratios.mixing_region(
        torch.randn(1000, 3, generator=torch.Generator().manual_seed(0)) * 5, torch.rand(1000)
    )
    assert 0 <= lam.min() and lam.max() <= 1
    torch.testing.assert_close(
        learned_ratios.mixing_region(torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([0.25])),
        torch.tensor([1 / 3 + 1 / 12]),
    )


@pytest.mark.parametrize("method", [MetaMixup(), AdaMixup()], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("bf16", [False, True])
def test_the_second_networks_are_trained_beside_the_first(method, bf16):
    "By an optimiser of their own, which knows no weight of the classifier."
    few = data.load("digits10", train_size=96, test_size=20, held_out=20)
    recipe = Classify("preactresnet18", method, SGD(), 0.125)
    compute = replace(QUIET, precision="bf16" if bf16 else "fp32")
    run = training.start(recipe, few, Length(2, 32), compute=compute)
    own = {k for k in run.nets if k != "model"}
    assert {p.name: set(p.trains) for p in run.phases} == {"policy": own, "model": {"model"}}
    assert isinstance(run.optimisers["policy"], torch.optim.Adam)
    before = {k: p.detach().clone() for k, p in run.nets.named_parameters()}
    training.train(run)
    assert all(np.isfinite([row["loss"], row["policy loss"]]).all() for row in run.at.history)
    moved = {k for k, p in run.nets.named_parameters() if not torch.equal(p, before[k])}
    assert moved >= {k for k in before if k.endswith("weight")}


def test_a_run_of_version_0_1_is_not_taken_for_one_with_an_optimiser_of_its_own():
    schedule = {"epochs": 3, "batch_size": 32, "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}
    schedule |= {"nesterov": False, "decay": [0.5, 0.75], "factor": 0.1, "kind": "steps", "clip": 0}
    method = {"class": "thesis_repro.aip.MetaMixup", "held_back": 0.25, "virtual_lr": 0.1}
    spec = {
        "class": "thesis_repro.runs.Run",
        "dataset": "digits10",
        "model": "preactresnet18",
        "method": {**method, "loss": "bce"},
        "schedule": {"class": "thesis_repro.training.Schedule", **schedule},
        **{"seed": 0, "width": 0.125, "train_size": 0, "test_size": 0, "held_out": 100},
        **{"select": "held-out", "bf16": False},
    }
    run = former.read_former(spec)
    assert run.recipe.method == MetaMixup(optimiser=SGD())
    assert run != replace(run, recipe=replace(run.recipe, method=MetaMixup()))


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_a_batch_too_small_to_be_divided_is_used_twice(n, digits, net):
    x, y = random_batch(digits, n, Draws(0))
    nets = woken(MetaMixup(), net.eval(), digits)
    batch = Batch(x, y, Draws(0))
    *_, x_held, y_held = MetaMixup().pairs(nets, batch)
    assert len(x_held) == len(y_held) == (n if n < 3 else 1)
    assert MetaMixup().joint_loss(nets, batch).isfinite()


# The figures' numbers


def test_the_trace_is_the_search(net, batch):
    pairs = ratio_search.pairs_at(net, *batch, layer=2)
    trace = aip.ternary_trace(pairs, 6, which=(3, 5), points=11)
    answers = trace[trace.kind == "answer"].set_index("pair").lam
    assert answers.to_numpy() == pytest.approx(
        Ternary(6)(pairs, Draws(0))[[3, 5]].numpy(), abs=1e-6
    )
    widths = trace[(trace.kind == "bracket") & (trace.pair == 3)].groupby("round").lam.agg(np.ptp)
    assert widths.to_numpy() == pytest.approx([3] + [(2 / 3) ** i for i in range(5)], abs=1e-5)


def test_the_figures_show_their_numbers(net, digits):
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("agg")
    ways = aip.sampled_ways("CIFAR-100")
    samples = search_facts.ratio_samples(net, digits, ways, batches=1, batch=32)
    assert (
        samples.lam.between(0, 1).all()
        and samples.groupby("method").size().to_dict().pop("mixup: λ ~ Beta(1, 1)") == 32
    )
    pairs = ratio_search.pairs_at(net, pixels(digits.x_train[:32]), digits.y_train[:32], layer=1)
    grid = [
        (m, a, b, 1 + a * a + b * b)
        for m in ("mixup", "AIP")
        for a in (-1, 0, 1)
        for b in (-1, 0, 1)
    ]
    frame = pd.DataFrame(grid, columns=["method", "alpha", "beta", "loss"])
    drawn = (
        search_facts.draw_ratios(samples),
        search_facts.draw_trace(aip.ternary_trace(pairs, 3, points=11)),
        surfaces.draw_surfaces(frame),
    )
    assert [len(f.axes) for f in drawn] == [5, 6, 4]
    bars = [p.get_height() for p in drawn[0].axes[0].patches]
    assert sum(bars) / len(bars) == pytest.approx(1, rel=1e-6)
    plt.close("all")


def bowl(height=0.0, steep=1.0):
    grid = [(a, b) for a in (-1.0, 0.0, 1.0) for b in (-1.0, 0.0, 1.0)]
    frame = pd.DataFrame(grid, columns=["alpha", "beta"])
    return frame.assign(loss=height + steep * (frame.alpha**2 + frame.beta**2))


def test_flatness_is_counted_from_the_centre():
    "A higher valley is not a narrower one; a steeper one is."
    assert surfaces.flatness(bowl()) == {"share within 1": 5 / 9, "mean rise": pytest.approx(4 / 3)}
    for height in (0.5, 1.0, 2.0, 64.0):
        assert surfaces.flatness(bowl(height)) == pytest.approx(surfaces.flatness(bowl()))
    steep = surfaces.flatness(bowl(steep=3.0))
    assert steep == {"share within 1": 1 / 9, "mean rise": pytest.approx(4.0)}
    even = pd.DataFrame({"alpha": [-1, 1] * 2, "beta": [-1, -1, 1, 1], "loss": [1.0, 1, 1, 5]})
    assert surfaces.flatness(even) == {"share within 1": 0.75, "mean rise": 0.0}  # no centre point


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    monkeypatch.setenv("THESIS_REPRO_OUTPUTS", str(tmp_path))
    return tmp_path


def short(**changes):
    return tiny(epochs=1, surface_points=3, surface_pairs=2, **changes)


def verdict(preset, name):
    table = claims.claim_table(*artefacts.saved_values(preset), chapter=7)
    return table.set_index("id").loc[name]


def test_figure_7_3_is_flatness_over_several_directions(outputs, monkeypatch):
    "Surfaces that rise alike from different heights are equally flat, and their mean counts."
    kept = {"mixup": (0.0, 1.0), "Manifold mixup": (0.1, 3.0), "AIP": (5.0, 1.0)}
    own = aip.surfaces_of

    def made(preset, run):
        assert len(own(preset, run)) == 2
        height, steep = kept[names[run.recipe.method]]
        how = [{"seed": run.seed, "directions": pair} for pair in range(2)]
        return [bowl(height, s).assign(**h) for s, h in zip((steep, 0.1), how, strict=True)]

    names = {m: row for row, m in aip.methods("CIFAR-10").items()}
    names |= {replace(m, loss="bce_sum"): row for m, row in names.items() if m.loss == "bce"}
    monkeypatch.setattr(aip, "surfaces_of", made)
    figure = aip.figure_7_3(short(), ("CIFAR-10",))
    cells = {(c.row, c.column): c for c in figure.cells}
    column = "share within 1 of the centre"
    shares = {row: cells[row, column].values for row in kept}
    wide, narrow = (pytest.approx(((s + 1) / 2,)) for s in (5 / 9, 1 / 9))
    assert shares == {"mixup": wide, "Manifold mixup": narrow, "AIP": wide}
    assert cells["AIP", "mean rise over the centre"].values == pytest.approx(
        ((4 / 3 + 0.4 / 3) / 2,)
    )
    assert all(c.stand_in == "stand-in digits10" for c in figure.cells)
    assert len(list(outputs.glob("smoke/measurements/figure_7_3-*.json"))) == 6
    flatter = verdict(short(), "7.3.4-flatter-than-manifold")
    assert flatter.ours == pytest.approx(2 / 9) and flatter.verdict == "tried"
    assert verdict(short(), "7.3.4-flatter-than-mixup").ours == pytest.approx(0)


@pytest.mark.parametrize("name, pairs", [("smoke", 2), ("fast", 5), ("thesis", 5)])
def test_a_preset_has_several_pairs_of_directions(name, pairs):
    assert settings.load(name, 7).surface_pairs == pairs


@pytest.mark.parametrize("grid,word", [(0.7, "cannot answer"), (1.0, "for > 0.95")])
def test_figure_7_2_says_when_it_cannot_decide(outputs, monkeypatch, grid, word):
    "Where the dense grid's own answers do not pass, nothing is said about the search."
    own, asked = aip.kept_facts, []

    def facts(preset, run, statistics):
        asked.append(statistics)
        found = own(preset, run, statistics)
        assert statistics == "batch" or found["dense grid"] > 0.99
        return {"ternary K=6": 0.9, "ternary K=8": 0.97, "dense grid": grid, "one maximum": 0.99}

    monkeypatch.setattr(aip, "kept_facts", facts)
    aip.figure_7_2(short(seeds=2), ("CIFAR-10",))
    assert asked == ["frozen"] * 2 + ["batch"] * 2
    found = verdict(short(seeds=2), "7.2.2-search-converges-8")
    assert found.verdict == "tried" and found.ours == pytest.approx(0.97)
    expected = "the measurement cannot answer: the dense grid's own answers pass for 70%"
    assert (expected in found.reason) == (word == "cannot answer")


def test_table_7_5_names_the_machine_that_measured(outputs, monkeypatch):
    "A measurement that was brought here from another machine is not this one's."
    preset, frame = short(), pd.DataFrame({m: [2.0, 2.0] for m in aip.timed_methods()})
    monkeypatch.setattr(measured_facts, "step_seconds", lambda methods, **how: frame)
    there = records.environment() | {"processor": "Another CPU", "cores": 7, "commit": "abc"}
    there["kernels"] = ""
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(records, "environment", lambda: there)
        aip.timings(preset)
    monkeypatch.setattr(measured_facts, "step_seconds", None)  # it is not measured again
    table = aip.table_7_5(preset)
    assert "Made on Another CPU, 7 cores; commit abc." in table.made
    cell = table.frame.set_index(["row", "column"]).loc["elapsed time [s]", "AIP"]
    assert cell.verdict == "not comparable" and cell.reason.startswith(
        "Another CPU, 7 cores, batches"
    )
    assert artefacts.read_table(table.save()[-1]).origin["hardware"] == "Another CPU, 7 cores"
    batches = settings.load("smoke", 7, timing_batch=4)
    with pytest.raises(TypeError):  # of other batches it is another measurement
        aip.timings(batches)


TIMES = ("7.5-search-costs-five-times", "7.5-search-costs-more-than-twice")


@pytest.mark.parametrize(("device", "said"), [("cpu", "tried"), ("cuda:0", "holds")])
def test_a_claim_about_time_is_judged_where_a_gpu_was_timed(outputs, monkeypatch, device, said):
    "The thesis timed a GPU; a CPU has other prices. Before, three claims were judged on a CPU."
    seconds = {"mixup": 1.0, "Manifold mixup": 1.0, "AIP as described": 6.0}
    seconds |= {"AIP ternary": 3.0, "AIP fast": 1.5}
    frame = pd.DataFrame({m: [s, 1.01 * s, 0.99 * s] for m, s in seconds.items()})
    frame.mixup = [1.0, 1.02, 0.995]
    monkeypatch.setattr(measured_facts, "step_seconds", lambda methods, **how: frame)
    monkeypatch.setattr(settings, "device", lambda preset: torch.device(device))
    preset = short()
    aip.table_7_5(preset)
    judged = claims.claim_table(*artefacts.saved_values(preset), 7).set_index("id")
    about = judged[judged.quantity.str.contains("elapsed time")]
    assert len(about) == 3 and {*TIMES} < {*about.index}
    assert {*about.verdict[[*TIMES]]} == {said}
    told = "no evidence: measured on a CPU; seen there: holds"
    assert all(r.startswith(told) == (device == "cpu") for r in about.reason[[*TIMES]])
    assert sum(claims.score(judged).judged.values()) == (0 if device == "cpu" else 3)


# Numbers that the equations and the figures leave to their functions


def test_a_bracket_beyond_the_ratios_is_clipped_at_both_ends():
    "Eq. 7.12 with a candidate below zero and one above one."
    lower, upper, c1, c2 = map(tensor, ([-3.0, 1.5], [-1.0, 3.0], [-2.5, 2.0], [-1.5, 2.5]))
    found = aip.update_bounds(lower, upper, c1, c2, tensor([1.0, 0.0]), tensor([0.0, 1.0]))
    assert [v.tolist() for v in found] == [[0.0, 1.0], [0.0, 1.0]]


def test_k_is_eight_where_nothing_else_is_said():
    "As section 7.4 times it; with ζ = 1 the first round asks for no loss."
    asked, (pairs, _) = [], linear_pairs()
    aip.ternary_search(lambda lam: asked.append(lam) or lam, 2)
    assert len(asked) == 14
    assert Ternary() == Ternary(8, 1.0) == aip.aip().ratio and AsDescribed() == AsDescribed(8)
    trace = aip.ternary_trace(pairs, points=5)
    assert trace[trace.kind == "bracket"]["round"].nunique() == 8


def test_at_the_image_nothing_is_searched():
    "The ratio of a pair is then from Beta(1, 1), in the description as in ours."
    model = models.build("preactresnet18", 10, 0.0625, seed=0).train()
    x, y = tensor(rng().random((8, 3, 8, 8))).float(), tensor(np.arange(8))
    expected = Mixup((0,), Beta(1.0, "pair"), loss="bce")(model, x, y, Draws(3))
    for method in (AsDescribed(2), aip.aip(rounds=2)):
        torch.testing.assert_close(replace(method, layers=(0,))(model, x, y, Draws(3)), expected)


def test_shares_of_the_loss_are_of_all_batches_together(monkeypatch):
    "Four batches of 128 images; K = 8; λ = 0.5 does not search."
    made = [linear_pairs(n, loss="bce", scale=s)[0] for n, s in ((40, 2.0), (30, 1.0))]
    asked = []
    monkeypatch.setattr(aip, "random_pairs", lambda *a, **k: asked.append((a, k)) or made)
    found = aip.search_loss_shares("net", "images")
    assert asked == [(("net", "images", "shares", 4, 128), {"loss": "bce"})]

    def reached(search):
        return sum(p.loss_at(search(p, Draws(0))).mean().item() for p in made)

    searches = {"ternary": Ternary(8), "fast": LogitCurve(3), "λ = 0.5": Fixed(0.5)}
    whole = reached(Ternary(8))
    assert found == pytest.approx({name: reached(s) / whole for name, s in searches.items()})


def test_the_numbers_of_the_searches_where_nothing_else_is_said(monkeypatch):
    "Six passes, 201 points of a grid, three passes and 65 points of the fast search; 128 images."
    asked = []
    ratio_search.golden_search(lambda lam: asked.append(lam) or lam, 2)
    ratio_search.parabolic_search(lambda lam: asked.append(lam) or lam, 2)
    assert len(asked) == 12 and [v[0].item() for v in asked[6:9]] == [0.25, 0.5, 0.75]
    assert Golden() == Golden(6) and Parabolic() == Parabolic(6)
    assert LogitCurve() == LogitCurve(3, 65)
    pairs, _ = linear_pairs()
    assert len(ratio_search.loss_curves(pairs)[0]) == 201
    lam, grid = ratio_search.worst_case(pairs)[0], torch.linspace(0, 1, 201)
    assert torch.equal(lam, grid[(lam * 200).round().long()])
    calls = []
    monkeypatch.setattr(ratio_search, "random_batch", lambda *a: calls.append(a) or (0, 1))
    monkeypatch.setattr(ratio_search, "pairs_at", lambda *a, **k: (*a[1:], k))
    found = list(ratio_search.random_pairs("net", "images", "why", statistics="frozen"))
    assert calls == [("images", 128, Draws(0), "why")]
    assert found == [(0, 1, layer, 0, {"statistics": "frozen"}) for layer in (1, 2, 3)]


def test_the_pairs_of_a_layer_are_those_of_seed_0():
    x, y = tensor(rng().random((20, 2, 3))), tensor(rng().integers(0, 5, 20))
    pairs = ratio_search.pairs_at(Linear(6, 5), x, y, 0)
    assert pairs.partner.tolist() == Draws(0).numpy("partner").permutation(20).tolist()


def test_a_valley_of_one_percent_parts_two_tops():
    shallow, deep = torch.tensor([1.0, 0.995, 1.0]), torch.tensor([1.0, 0.985, 1.0])
    assert ratio_search.unimodal(torch.stack([shallow, deep], 1)).tolist() == [True, False]


def test_golden_section_shortens_the_bracket_by_the_golden_ratio():
    "Both candidates divide every bracket alike; the answer is the best that was asked for."
    top, trace = torch.linspace(0.05, 0.95, 50), []
    answers = ratio_search.golden_search(lambda lam: -((lam - top) ** 2), 50, 9, trace=trace)
    golden = (5**0.5 - 1) / 2
    for i, at in enumerate(trace):
        width, (c1, _), (c2, _) = at["upper"] - at["lower"], at["c1"], at["c2"]
        places = (c1 - at["lower"]) / width, (c2 - at["lower"]) / width
        for found, expected in zip((width, *places), (golden**i, 1 - golden, golden), strict=True):
            assert found.tolist() == pytest.approx([expected] * 50, abs=1e-3)
        assert (at["lower"] <= top).all() and (top <= at["upper"]).all()
    reached = torch.stack([at[c][1] for at in trace for c in ("c1", "c2")]).amax(0)
    assert len(trace) == 7 and (-((answers - top) ** 2) >= reached).all()


@pytest.mark.parametrize(
    ("lam", "loss", "top"),
    [
        ((0.2, 0.5, 0.9), (-0.16, -0.01, -0.09), 0.6),  # −(λ − 0.6)²
        ((0.25, 0.5, 0.75), (-0.1225, -0.01, -0.0225), 0.6),
        ((0.25, 0.5, 0.75), (2.0, 1.0, 1.5), 0.02),  # a valley: up the higher side, to the end
        ((0.25, 0.5, 0.75), (1.5, 1.0, 2.0), 0.98),
        ((0.25, 0.5, 0.75), (1.0, 2.0, 3.0), 0.98),  # a line
        ((0.4, 0.5, 0.6), (2.0, 1.0, 1.9), 0.3),  # not farther than half of what is spanned
        ((0.4, 0.5, 0.6), (1.9, 1.0, 2.0), 0.7),
        ((0.4, 0.5, 0.6), (-1.96, -1.69, -1.44), 0.7),  # −(λ − 1.8)²
        ((0.4, 0.5, 0.6), (-1.44, -1.69, -1.96), 0.3),  # −(λ + 0.8)²
        ((0.25, 0.5, 0.75), (0.0, 1.0, 0.0), 0.625),  # at ½ it was: between, where it is higher
        ((0.25, 0.5, 0.75), (-0.065025, -2.5e-5, -0.060025), 0.625),  # −(λ − 0.505)²
        ((0.25, 0.5, 0.75), (-0.060025, -2.5e-5, -0.065025), 0.375),  # −(λ − 0.495)²
        ((0.25, 0.5, 0.75), (-0.070225, -2.25e-4, -0.055225), 0.515),  # −(λ − 0.515)²
    ],
)
def test_where_a_parabola_says_to_look_next(lam, loss, top):
    columns = (torch.tensor(v, dtype=torch.float64)[:, None] for v in (lam, loss))
    assert ratio_search._next_ratio(*columns).item() == pytest.approx(top, abs=1e-9)


def test_qualities_of_searches_are_one_table(monkeypatch):
    "A row a search, in the order they were asked for, with what each evaluates of the loss."
    made, calls = linear_pairs()[0], []
    monkeypatch.setattr(ratio_search, "random_pairs", lambda *a, **k: calls.append(a) or [made])
    searches = {"middle": Fixed(0.5), "golden": Golden(5)}
    table = ratio_search.quality_over({1: "net"}, "images", searches)
    assert calls[0] == ("net", "images", "quality", 1, 128) and len(calls) == 2
    assert [*table.columns[:2]] == ["search", "evaluations"]
    assert table.search.tolist() == ["middle", "golden", "dense grid of 201"] * 2
    assert table.evaluations.tolist() == [0, 5, 201] * 2
    alone = ratio_search.search_losses(made, searches)
    assert "dense grid of 201" in set(alone.search)


def test_the_fast_curve_is_computed_in_float32():
    "Of logits that are linear in λ it is the loss itself, closer than bf16 would allow."
    pairs, _ = linear_pairs()
    pairs = replace(pairs, h=pairs.h.float())
    for on in (False, True):
        with bf16(on):
            _, losses = LogitCurve(2, 9).curve(pairs)
        expected = ratio_search.loss_curves(pairs, 9)[1]
        torch.testing.assert_close(losses, expected.to(losses.dtype), rtol=1e-4, atol=1e-4)


def test_the_small_network_has_two_convolutions_that_halve():
    net, x = learned_ratios.small_network(6, 1), torch.rand(2, 6, 32, 32)
    assert net[:2](x).shape == (2, 16, 16, 16) and net[:4](x).shape == (2, 32, 8, 8)
    assert sum(p.numel() for p in net.parameters()) == 9 * 6 * 16 + 16 + 9 * 16 * 32 + 32 + 33
    assert MetaMixup().optimiser == AdaMixup().optimiser == Adam(1e-3, betas=(0.9, 0.999))
