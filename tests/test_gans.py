"""The recipe of all GANs: its terms in float64 against formulas and finite differences, who learns
when and from what on short trainings, averaged weights, and how images are made."""

import copy
import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from samples import noise
from scipy import linalg, stats
from torch.autograd import gradcheck

from thesis_repro import games, gan_blocks, gans, training
from thesis_repro.draws import Draws
from thesis_repro.files import BadInput
from thesis_repro.games import Hinge, Judgement, NonSaturating, Saturating, Wasserstein
from thesis_repro.gan_networks import AtInput, ClassHead, DcganCritic, DcganGenerator
from thesis_repro.gan_progressive import Growth, ProgressiveCritic, ProgressiveGenerator, at_level
from thesis_repro.gans import R1, Auxiliary, Drift, Gan, GradientPenalty, Seen, Term, class_loss
from thesis_repro.images import Images, batches, pixels
from thesis_repro.models import Diverged
from thesis_repro.recipes import CONSTANT, SGD, Adam, Batch, Phase
from thesis_repro.training import Compute, Length

SMALL = DcganGenerator(4, (6,))  # with batch norm
BARE = DcganCritic((4, 6), AtInput(), norm="none")
PLAIN = {"momentum": 0.0, "weight_decay": 0.0, "decay": CONSTANT}


def drawn(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


@pytest.fixture(scope="module")
def images():
    "Noise: 24 images of 8 × 8 pixels to train on, 12 held out, 12 to test on, of three classes."
    parts = []
    for seed, n in enumerate((24, 12, 12)):
        parts += [torch.from_numpy(noise(n, 3, 8, 8, seed=seed)), torch.arange(n) % 3]
    return Images("noise", *parts, 3, (0.5,) * 3, (0.3,) * 3)


def steps(recipe, images, epochs=2, size=8):
    "The run before its first step, and after each."
    compute = Compute(progress=False, channels_last=False)
    t = training.start(recipe, images, Length(epochs, size), compute=compute)
    t.nets.train()
    yield t
    for epoch in range(epochs):
        for _, x, y in batches(t.images, size, Draws(0, epoch)):
            training.step(t, x, y)
            yield t
        t.at.epoch, t.at.step = t.at.epoch + 1, 0


# The terms


class Curved(nn.Module):
    "D(x | c) = g tanh(x W + c U) v, whose slope is g W (v (1 − tanh²)), with g how far it grew."

    def __init__(self, inputs=12, labels=2, width=3):
        super().__init__()
        sizes = (inputs, width), (labels, width), (width,)
        self.w, self.u, self.v = (nn.Parameter(drawn(*s, seed=i)) for i, s in enumerate(sizes))

    def forward(self, x, c, grown=None):
        h = torch.tanh(x.flatten(1) @ self.w.to(x) + c.to(x) @ self.u.to(x))
        return Judgement(grown * (h @ self.v.to(x)))

    def slope(self, x, c, grown):
        "By hand, in NumPy: (n,)."
        w, u, v = (p.detach().numpy() for p in (self.w, self.u, self.v))
        h = np.tanh(x.reshape(len(x), -1) @ w + c.numpy() @ u)
        return np.linalg.norm(grown * (v * (1 - h**2)) @ w.T, axis=1)


def seen(draws=Draws(0, 1, 2), n=4):
    "What a step has seen: images of 2 × 2 pixels, and a critic that is curved."
    real, fake = 0.3 * drawn(n, 3, 2, 2, seed=5), 0.3 * drawn(n, 3, 2, 2, seed=6)
    c = torch.eye(2, dtype=torch.float64)[torch.arange(n) % 2]
    nets = nn.ModuleDict({"critic": Curved()})
    return Seen(nets, real, fake.requires_grad_(), torch.arange(n) % 2, c, draws, 1.5)


def test_the_penalty_between_real_and_generated_images():
    "Algorithm 1 of Gulrajani et al. (2017): at ε x + (1 − ε) x̃ with ε of each image, λ = 10."
    s = seen()
    share = s.draws.numpy("between").random(4)[:, None, None, None]
    x = share * s.real.numpy() + (1 - share) * s.fake.detach().numpy()
    expected = 10 * np.mean((s.nets["critic"].slope(x, s.c, 1.5) - 1) ** 2)
    assert math.isclose(GradientPenalty().critic(s).item(), expected, rel_tol=1e-12)
    assert math.isclose(GradientPenalty(3.0).critic(s).item(), 0.3 * expected, rel_tol=1e-12)
    assert GradientPenalty().generator(s) == 0
    other = dataclasses.replace(s, draws=Draws(0, 1, 3))  # other places at another step
    assert GradientPenalty().critic(other).item() != pytest.approx(expected, rel=1e-6)


def test_slopes_are_taken_in_full_precision_under_autocast():
    s = seen()
    x = s.real.float()
    s.c, exact = s.c.float(), s.slopes(x)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = games.slopes(lambda x: s.nets["critic"](x, s.c, 1.5).score, x)
        found = s.slopes(x)
    assert not torch.equal(rounded, exact)  # bf16 would show
    torch.testing.assert_close(found, exact, rtol=0, atol=0)


def test_the_penalty_at_generated_images():
    "Eq. 2.9 as it is printed."
    s = seen()
    x = s.fake.detach().numpy()
    expected = 10 * np.mean((s.nets["critic"].slope(x, s.c, 1.5) - 1) ** 2)
    found = GradientPenalty(at="generated").critic(s)
    assert math.isclose(found.item(), expected, rel_tol=1e-12)


def test_the_penalty_at_real_images():
    "Eq. 9 of Mescheder et al. (2018): γ / 2 times the mean squared slope."
    s = seen()
    expected = 10 / 2 * np.mean(s.nets["critic"].slope(s.real.numpy(), s.c, 1.5) ** 2)
    assert math.isclose(R1().critic(s).item(), expected, rel_tol=1e-12)
    assert math.isclose(R1(1.0).critic(s).item(), expected / 10, rel_tol=1e-12)
    assert R1().generator(s) == 0


@pytest.mark.parametrize("term", [GradientPenalty(), GradientPenalty(at="generated"), R1()])
def test_penalties_have_the_gradient_of_finite_differences(term):
    "By the critic's weights; the generator gets none."
    s = seen()
    critic = s.nets["critic"]
    assert gradcheck(lambda *_: term.critic(s), [critic.w, critic.u, critic.v])
    (none,) = torch.autograd.grad(term.critic(s), s.fake, allow_unused=True)
    assert none is None


@pytest.mark.parametrize("term", [GradientPenalty(), R1()])
def test_penalties_are_in_full_precision_and_never_compiled(term):
    "Under autocast as without it; a compiled critic is asked for the one inside."
    s = seen()
    s.real, s.fake, s.nets = s.real.float(), s.fake.float(), s.nets.float()
    expected = term.critic(s)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(term.critic(s), expected)
        assert torch.equal(term.critic(dataclasses.replace(s, fake=s.fake.double())), expected)

    class Compiled(nn.Module):
        def __init__(self):
            super().__init__()
            self._orig_mod = s.nets["critic"]

    s.nets = {"critic": Compiled()}
    assert torch.equal(term.critic(s), expected)


@pytest.mark.parametrize("every, epoch", [(16, 3), (16, 50), (4, 5), (2, 1)])
def test_a_rare_penalty_has_the_mean_of_one_at_every_step(every, epoch):
    "However few steps an epoch has: in one step of so many, but so many times as much."
    s, count = seen(n=2), 800
    whole, term, found = R1().critic(s).item(), R1(every=every), []
    for i in range(count):
        s.draws = Draws(0, *divmod(i, epoch))
        found.append(float(torch.as_tensor(term.critic(s)).detach()))
    assert all(f == 0 or math.isclose(f, every * whole, rel_tol=1e-9) for f in found)
    taken = sum(f > 0 for f in found)
    assert stats.binomtest(taken, count, 1 / every).pvalue > 1e-4


def test_drift_is_the_mean_squared_score_of_real_images():
    s = seen()
    s.of_real, s.of_fake = Judgement(drawn(5)), Judgement(drawn(5, seed=1))
    expected = 0.001 * np.mean(drawn(5).numpy() ** 2)
    assert math.isclose(Drift().critic(s).item(), expected, rel_tol=1e-12)
    assert math.isclose(Drift(2.0).critic(s).item(), 2000 * expected, rel_tol=1e-12)
    assert Drift().generator(s) == 0


def cross_entropy(logits, y):
    "−log of the softmax's value at the class, by NumPy."
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return -np.log(p[np.arange(len(y)), y]).mean()


def test_the_class_loss():
    "Of classes; that of attributes has its test beside chapter 3."
    logits, y = drawn(6, 4).requires_grad_(), torch.tensor([0, 3, 1, 1, 2, 0])
    loss = class_loss(logits, y)
    found = logits.detach().numpy()
    assert math.isclose(loss.item(), cross_entropy(found, y.numpy()), rel_tol=1e-12)
    (gradient,) = torch.autograd.grad(loss, logits)
    p = np.exp(found) / np.exp(found).sum(1, keepdims=True)
    np.testing.assert_allclose(gradient.numpy(), (p - np.eye(4)[y.numpy()]) / 6, rtol=1e-10)
    half = class_loss(logits.detach().to(torch.bfloat16), y)
    assert half.dtype == torch.float32
    # a class is as many attributes of which one is there
    one_hot = F.one_hot(y, 4)
    by_hand = np.log1p(np.exp(found)).sum() - (found * one_hot.numpy()).sum()
    assert math.isclose(class_loss(logits, one_hot).item(), by_hand / 6, rel_tol=1e-12)
    # as printed, eq. 3.2 sums the attribute that is there
    by_hand = np.log1p(np.exp(-found[np.arange(6), y.numpy()])).mean()
    assert math.isclose(class_loss(logits, one_hot, printed=True).item(), by_hand, rel_tol=1e-12)


@pytest.mark.parametrize("printed", [False, True])
def test_the_auxiliary_classifier_and_its_options(printed):
    "L_C of ACGAN, of real and of generated images, in both losses."
    s = seen()
    s.y = torch.tensor([[0, 1], [1, 1], [1, 0], [0, 0]])
    s.of_real, s.of_fake = (Judgement(drawn(4), drawn(4, 2, seed=i)) for i in (1, 2))
    real, fake = (class_loss(said.logits, s.y, printed) for said in (s.of_real, s.of_fake))
    assert not math.isclose(real.item(), class_loss(s.of_real.logits, s.y, not printed).item())
    term = Auxiliary(2.0, printed=printed)
    torch.testing.assert_close(term.critic(s), 2 * (real + fake))
    torch.testing.assert_close(term.generator(s), 2 * fake)
    alone = dataclasses.replace(term, on_fake=False, to_generator=False)
    torch.testing.assert_close(alone.critic(s), 2 * real)
    assert alone.generator(s) == 0
    assert Auxiliary() == Auxiliary(1.0, True, True, False)


def test_a_critic_that_says_no_classes_has_no_class_loss(images):
    recipe = Gan(SMALL, BARE, terms=(Auxiliary(),))
    with pytest.raises(BadInput, match=r"says no classes.*classes = ClassHead\(\)"):
        list(steps(recipe, images))


# What a step looks at


def test_conditions_are_labels_or_attributes():
    y = torch.tensor([2, 0])
    assert gans.condition(y, 3).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert gans.condition(y, 0).shape == (2, 0)
    both = torch.tensor([[1, 0, 1], [0, 0, 1]])
    found = gans.condition(both, 3)
    assert found.tolist() == both.tolist() and found.dtype == torch.float32


@pytest.mark.parametrize("prior", ["normal", "uniform"])
def test_a_step_looks_at_as_many_generated_images(images, prior):
    recipe = Gan(SMALL, BARE, prior=prior)
    nets = recipe.networks(images, 0).eval()
    batch = Batch(pixels(images.x_train[:6]), images.y_train[:6], Draws(0, 3, 1))
    s = recipe.look(nets, batch)
    g = batch.draws.torch("latent")
    z = (
        torch.rand(6, 4, generator=g) * 2 - 1
        if prior == "uniform"
        else torch.randn(6, 4, generator=g)
    )
    torch.testing.assert_close(s.fake, nets["generator"](z, s.c))
    torch.testing.assert_close(s.real, images.x_train[:6] / 127.5 - 1)
    assert torch.equal(s.c, F.one_hot(images.y_train[:6], 3).float()) and s.grown is None
    score = nets["critic"](s.real, s.c).score
    torch.testing.assert_close(s.judge(s.real).score, score)


def test_a_step_of_networks_that_grow(images):
    recipe = Gan(ProgressiveGenerator(4, (4, 4)), ProgressiveCritic((4, 4)), growth=Growth())
    nets = recipe.networks(images, 0)
    for progress, grown, side in ((0.1, 0, 4), (0.625, 0.5, 8), (0.9, 1, 8)):
        draws = Draws(0, progress=progress)
        s = recipe.look(nets, Batch(pixels(images.x_train[:6]), images.y_train[:6], draws))
        assert s.grown == pytest.approx(grown) and s.fake.shape == (6, 3, side, side)
        expected = at_level(images.x_train[:6] / 127.5 - 1, s.grown, 2)
        torch.testing.assert_close(s.real, expected)
        expected = nets["critic"](s.real, s.c, s.grown).score
        torch.testing.assert_close(s.judge(s.real).score, expected)


@pytest.mark.parametrize("game", [NonSaturating(), Saturating(), Hinge(), Wasserstein()])
def test_losses_are_the_games_and_the_terms(images, game):
    "The generator is judged by what the critic says now; it was made under the same conditions."
    terms = (Drift(0.5), Auxiliary(0.25))
    recipe = Gan(SMALL, dataclasses.replace(BARE, classes=ClassHead()), game, terms)
    nets = recipe.networks(images, 0).double()
    y = images.y_train[:6]
    batch = Batch(pixels(images.x_train[:6]).double(), y, Draws(0))
    loss = recipe.critic_loss(nets, batch)
    s = batch.kept["seen"]
    real, fake = (nets["critic"](x, s.c) for x in (s.real, s.fake))
    named = F.cross_entropy(real.logits, y) + F.cross_entropy(fake.logits, y)
    expected = game.critic(real.score, fake.score) + 0.5 * real.score.square().mean()
    torch.testing.assert_close(loss, expected + 0.25 * named)
    loss.backward()
    assert all(p.grad is None for p in nets["generator"].parameters())  # it is not his turn
    with torch.no_grad():
        nets["critic"].heads.score.weight.mul_(2)
    loss, now = recipe.generator_loss(nets, batch), nets["critic"](s.fake, s.c)
    expected = game.generator(now.score) + 0.25 * F.cross_entropy(now.logits, y)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(p.grad is not None for p in nets["generator"].parameters())
    assert "seen" not in batch.kept


def test_parts_of_losses_are_noted_without_learning(images):
    terms = (Drift(0.5), GradientPenalty())
    recipe = Gan(SMALL, BARE, terms=terms, parts=True)
    nets = recipe.networks(images, 0).train()
    before = copy.deepcopy(nets.state_dict())
    found = recipe.noted(nets, images.x_val, images.y_val)
    assert all(torch.equal(v, before[k]) for k, v in nets.state_dict().items())
    assert all(p.grad is None for p in nets.parameters()) and nets["generator"].training
    names = ("game", "Drift", "GradientPenalty")
    assert list(found) == [f"{who} {n}" for who in ("critic", "generator") for n in names]
    index = torch.arange(100) % 12
    nets.eval()
    x, y = pixels(images.x_val[index]), images.y_val[index]
    batch = Batch(x, y, Draws(0))
    loss = recipe.critic_loss(nets, batch)
    parts = [found[f"critic {n}"] for n in names]
    assert math.isclose(sum(parts), loss.item(), rel_tol=1e-4)
    score = nets["critic"](x * 2 - 1, gans.condition(y, 3)).score
    assert math.isclose(parts[1], 0.5 * score.square().mean().item(), rel_tol=1e-4)
    loss = recipe.generator_loss(nets, batch).item()
    assert math.isclose(found["generator game"], loss, rel_tol=1e-4)
    assert found["generator Drift"] == found["generator GradientPenalty"] == 0
    with pytest.raises(BadInput, match="not for networks that grow"):
        Gan(parts=True, growth=Growth())


# Who learns when


def moved(net, before):
    return any(not torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True))


def weights(net):
    return [p.detach().clone() for p in net.parameters()]


@pytest.mark.parametrize("critic_steps, expected", [(1, 6), (2, 3), (5, 2)])
def test_the_critic_learns_more_often(images, critic_steps, expected):
    "Six steps of a real training: the generator in the first of so many steps."
    recipe = Gan(SMALL, BARE, critic_steps=critic_steps)
    run = steps(recipe, images)
    t, updates = next(run), {"generator": [], "critic": []}
    before = {name: weights(t.nets[name]) for name in updates}
    for t in run:
        for name, found in updates.items():
            found.append(moved(t.nets[name], before[name]))
            before[name] = weights(t.nets[name])
    assert updates["critic"] == [True] * 6
    assert updates["generator"] == [i % critic_steps == 0 for i in range(6)]
    counts = [next(iter(t.optimisers[n].state.values()))["step"].item() for n in updates]
    assert counts == [expected, 6]


def test_the_training_is_the_plain_loop(images):
    "Two time scales, two steps of the critic, averaged weights: by hand, with the same draws."
    optimisers = {"optimiser": SGD(0.05, **PLAIN), "critic_optimiser": SGD(0.2, **PLAIN)}
    recipe = Gan(SMALL, BARE, Hinge(), critic_steps=2, average=0.75, **optimisers)
    run = steps(recipe, images, epochs=1)
    t = next(run)
    generator, critic = (copy.deepcopy(t.nets[n]) for n in ("generator", "critic"))
    average = [p.detach().clone() for p in generator.parameters()]
    todo = list(batches(images, 8, Draws(0), augment=False))
    for (i, x, y), t in zip(todo, run, strict=True):
        z = torch.randn(8, 4, generator=Draws(0, 0, i).torch("latent"))
        c, real = F.one_hot(y, 3).float(), x * 2 - 1
        fake = generator(z, c)
        of_real, of_fake = critic(real, c).score, critic(fake.detach(), c).score
        loss = (1 - of_real).clamp(min=0).mean() + (1 + of_fake).clamp(min=0).mean()
        change(critic, loss, 0.2)
        if i % 2 == 0:
            change(generator, -critic(fake, c).score.mean(), 0.05)
            average = [
                0.75 * a + 0.25 * p for a, p in zip(average, weights(generator), strict=True)
            ]
        for name, net in (("generator", generator), ("critic", critic)):
            torch.testing.assert_close(t.nets[name].state_dict(), net.state_dict())
        torch.testing.assert_close(weights(t.nets["average"]), average)
    assert i == 2


def change(net, loss, rate):
    "One step of gradient descent."
    found = torch.autograd.grad(loss, list(net.parameters()))
    with torch.no_grad():
        for p, gradient in zip(net.parameters(), found, strict=True):
            p -= rate * gradient


def test_averaged_weights_follow_and_statistics_are_copied(images):
    recipe = Gan(SMALL, BARE, optimiser=Adam(0.05), average=0.9)
    run = steps(recipe, images)
    t = next(run)
    nets = t.nets
    expected = weights(nets["generator"])
    assert not moved(nets["average"], expected)
    assert not {*nets["average"].parameters()} & {*nets["generator"].parameters()}
    for _ in run:
        pairs = zip(expected, weights(nets["generator"]), strict=True)
        expected = [0.9 * a + 0.1 * p for a, p in pairs]
        torch.testing.assert_close(weights(nets["average"]), expected)
        buffers = [dict(nets[n].named_buffers()) for n in ("average", "generator")]
        assert len(buffers[0]) == 3 and all(
            torch.equal(v, buffers[1][k]) for k, v in buffers[0].items()
        )
    assert moved(nets["generator"], expected)
    assert gans.generator_of(nets) is nets["average"]
    assert "average" not in Gan(SMALL, BARE).networks(images, 0)
    plain = Gan(SMALL, BARE).networks(images, 0)
    assert gans.generator_of(plain) is plain["generator"]


@pytest.mark.parametrize("bound", [0.0, 0.01])
def test_a_bound_holds_after_every_step_of_the_critic(images, bound):
    "Each weight by itself is cut (algorithm 1 of Arjovsky et al.), and those of the critic only."
    recipe = Gan(SMALL, BARE, Wasserstein(bound), critic_optimiser=Adam(0.01), critic_steps=2)
    run = steps(recipe, images)
    t = next(run)
    before = torch.cat([p.flatten() for p in weights(t.nets["critic"])])
    for i, t in enumerate(run):
        now = torch.cat([p.flatten() for p in weights(t.nets["critic"])])
        if bound:
            assert now.abs().max() <= bound
            assert (now.abs() == bound).any() and (now.abs() < bound).any()
            # what was far inside moved as it would have without a bound
            if not i:
                inside = (before.abs() < bound) & (now.abs() < bound)
                assert (now - before)[inside].abs().median() == pytest.approx(0.01, rel=0.05)
        else:
            assert now.abs().max() > 0.02
        assert max(p.abs().max() for p in t.nets["generator"].parameters()) > 0.05


def test_a_game_without_a_bound_cuts_nothing(images):
    recipe = Gan(SMALL, BARE, Hinge())
    nets = recipe.networks(images, 0)
    with torch.no_grad():
        nets["critic"].heads.score.weight.fill_(7)
    recipe.clip(nets, None)
    assert (nets["critic"].heads.score.weight == 7).all()


def test_networks_grow_with_the_run(images):
    "Eight steps: levels in equal times, optimisers that begin again, how far kept in all networks."
    adam = Adam(1e-3, (0.0, 0.99))
    networks = ProgressiveGenerator(4, (4, 4)), ProgressiveCritic((4, 4))
    terms = (GradientPenalty(), Drift())
    recipe = Gan(*networks, Wasserstein(), terms, adam, adam, growth=Growth(), average=0.5)
    grown, remembered = [], []
    run = steps(recipe, images, epochs=2, size=6)
    next(run)
    for t in run:
        found = [t.nets[n].grown.item() for n in ("generator", "critic", "average")]
        assert len({*found}) == 1
        grown.append(found[0])
        layers = t.nets["generator"].small[0], t.nets["critic"].small
        pairs = zip(("generator", "critic"), layers, strict=True)
        remembered.append([t.optimisers[n].state[m.weight]["step"].item() for n, m in pairs])
    np.testing.assert_allclose(grown, [0, 0, 0, 0, 0, 0.5, 1, 1])
    assert remembered == [[n, n] for n in (1, 2, 3, 4, 1, 2, 3, 4)]
    made = gans.generate(t.nets["average"], torch.eye(3), Draws(0))
    assert made.shape == (3, 3, 8, 8)


@dataclasses.dataclass(frozen=True)
class Watcher(Term):
    "A term of the tests' own, with a network and a phase that does nothing to it."

    width: float = 1.0
    turns: tuple = (1, 0)

    def networks(self, images):
        return {"watcher": nn.Linear(1, images.classes)}

    def phases(self):
        return (Phase("watcher", ("watcher",), Adam(), lambda nets, batch: 0, turns=self.turns),)

    def scaled(self, preset):
        return Watcher(self.width * preset.width)


def test_a_term_brings_networks_and_phases(images):
    recipe = Gan(SMALL, BARE, terms=(Watcher(), Drift()))
    nets = recipe.networks(images, 0)
    assert list(nets) == ["generator", "critic", "watcher"]
    assert [p.name for p in recipe.phases(nets)] == ["watcher", "critic", "generator"]
    assert [p.turns for p in recipe.phases(nets)] == [(1, 0)] * 3
    turns = dataclasses.replace(recipe, terms=(Watcher(turns=(2, 0)),)).phases(nets)
    assert [p.turns for p in turns] == [(2, 0), (2, 1), (2, 1)]  # the two play in its pauses
    assert Watcher().critic(None) == Watcher().generator(None) == 0
    scaled = recipe.scaled(SimpleNamespace(width=0.5))
    assert scaled.terms == (Watcher(0.5), Drift())
    assert scaled.generator.channels == (4,) and scaled.critic.channels == (4, 4)


def test_networks_are_a_function_of_the_seed(images):
    recipe = Gan(SMALL, BARE, average=0.9)
    torch.manual_seed(5)
    one, other, third = (recipe.networks(images, s) for s in (0, 0, 1))
    drawn_after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), drawn_after)  # nobody else's numbers were used
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items())
    assert moved(third["generator"], weights(one["generator"]))
    assert not moved(one["average"], weights(one["generator"]))


def test_real_images_are_whole_and_mirrored_if_asked(images):
    wide = dataclasses.replace(images, crop=4, flip=True)
    for flip in (False, True):
        found = Gan(flip=flip).prepared(wide)
        assert (found.crop, found.flip) == (0, flip)


# Images from a generator


@pytest.fixture
def generator(images):
    "A generator with statistics of its own, whose pixels reach beyond one where there is no tanh."
    torch.manual_seed(0)
    net = SMALL.build((3, 8, 8), 3)
    with torch.no_grad():
        net.after[0][0].running_mean.uniform_(-0.1, 0.1)
        for layer in net.layers:
            layer.weight.mul_(10)
    net.after[1] = nn.Identity()
    return net.train()


def test_generated_images_are_the_generators(generator):
    "In evaluation mode, cut at −1 and 1, to the nearest of 256 values."
    c = torch.eye(3)[torch.arange(7) % 3]
    z = torch.randn(7, 4, generator=Draws(3).torch("generated"))
    generator.eval()
    with torch.no_grad():
        x = generator(z, c).numpy()
    generator.train()
    assert x.min() < -1 and x.max() > 1 and (np.abs(x) < 1).mean() > 0.3
    expected = np.clip((x + 1) / 2, 0, 1) * 255
    made = gans.generate(generator, c, Draws(3), batch=3)
    assert made.dtype == torch.uint8 and made.shape == (7, 3, 8, 8)
    assert np.abs(made.numpy() - expected).max() <= 0.5 + 1e-3
    assert generator.training and torch.equal(made, gans.generate(generator, c, Draws(3)))
    assert not torch.equal(made, gans.generate(generator, c, Draws(4)))
    large = gans.generate(generator, c, Draws(3), (16, 16))
    assert torch.equal(large, made.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert torch.equal(gans.generate(generator, c, Draws(3), (8, 8)), made)
    precise = gans.generate(copy.deepcopy(generator).double(), c, Draws(3))
    assert (precise.int() - made.int()).abs().max() <= 1


@pytest.mark.parametrize("how", [{"truncation": 0.5}, {"prior": "uniform"}])
def test_generated_images_begin_with_what_is_asked_for(generator, how):
    c = torch.eye(3)
    z = gan_blocks.latent((3, 4), Draws(3).torch("generated"), **how)
    generator.eval()
    with torch.no_grad():
        expected = ((generator(z, c).clamp(-1, 1) + 1) * 127.5).round().byte()
    assert torch.equal(gans.generate(generator, c, Draws(3), **how), expected)
    assert z.abs().max() <= (0.5 if "truncation" in how else 1)
    assert not generator.training


def test_images_that_are_not_finite_are_divergence(generator):
    with torch.no_grad():
        generator.layers[1].weight[0, 0, 0, 0] = math.nan
    with pytest.raises(Diverged, match="not finite"):
        gans.generate(generator, torch.eye(3), Draws(0))
    assert generator.training


# Health


def test_health_is_a_distance_of_mean_colours(images):
    def colours(x):
        "Means of 2 × 2 pixels, (n, 48) in [0, 1]."
        blocks = x.numpy().reshape(len(x), 3, 4, 2, 4, 2) / 255
        return blocks.mean((3, 5)).reshape(len(x), -1)

    rng = np.random.default_rng(0)
    made = torch.from_numpy(rng.integers(0, 200, (80, 3, 8, 8), np.uint8))
    real = torch.from_numpy(rng.integers(0, 256, (90, 3, 8, 8), np.uint8))
    a, b = colours(made), colours(real)
    np.testing.assert_allclose(gans.coarse(made).numpy(), a, rtol=1e-5)
    s, t = np.cov(a.T), np.cov(b.T)
    root = np.real(linalg.sqrtm(s @ t))
    distance = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s + t - 2 * root)
    found = gans.health(made, real)
    assert math.isclose(found["pixel FD"], distance, rel_tol=1e-4)
    variety = a.std(0, ddof=1).mean() / b.std(0, ddof=1).mean()
    assert math.isclose(found["variety"], variety, rel_tol=1e-5)
    alike = gans.health(made[:1].repeat(5, 1, 1, 1), real)
    assert alike["variety"] < 1e-6 and alike["pixel FD"] > distance
    assert gans.health(made, made[:1].repeat(5, 1, 1, 1))["variety"] > 1000  # no division by zero


@pytest.mark.parametrize(
    "distances, epoch",
    [
        ([], 0),
        ([5], 0),
        ([5, 3, 2, 3.9, 4], 0),  # twice the best is not more than twice
        ([5, 3, 2, 3.9, 4.1], 4),
        ([9, 3, 2, 2.5, 7, 8], 4),
        ([2, 9, 3, 9, 9], 3),  # it had come back once
        ([2, 9, 9, 9, 3], 0),
        ([1, 3], 1),
    ],
)
def test_a_collapse_is_a_distance_that_stays_above_twice_the_best(distances, epoch):
    history = [{"epoch": i + 1, "pixel FD": d} for i, d in enumerate(distances)]
    assert gans.collapse(history) == epoch
    said = Gan(SMALL, BARE).remark(history)
    assert said.startswith(f"collapsed after epoch {epoch}: ") if epoch else said == ""


def test_a_network_that_merely_grew_has_not_collapsed():
    "Small images are near the real ones in 4 × 4 colours; only networks of one size compare."
    small = [(0.0, 0.2), (0.0, 0.1), (0.5, 0.6), (1.0, 0.5), (1.0, 0.4), (1.0, 0.7)]
    history = [{"epoch": i + 1, "pixel FD": d, "grown": g} for i, (g, d) in enumerate(small)]
    assert gans.collapse(history) == 0 and gans.collapse(history[:3]) == 0
    late = [*history, {"epoch": 7, "pixel FD": 0.9, "grown": 1.0}]
    assert gans.collapse(late) == 6


GROWING = ProgressiveGenerator(4, (4, 4)), ProgressiveCritic((4, 4))


def test_the_best_of_networks_that_grow_is_as_large_as_the_last(images):
    recipe = Gan(*GROWING, growth=Growth())
    nets = recipe.networks(images, 0)
    scores = []
    for grown, bias in ((0.0, 0.0), (0.5, 0.0), (1.0, 5.0), (1.0, 0.0)):
        nets["generator"].grown.fill_(grown)
        with torch.no_grad():
            nets["generator"].colours[1].bias.fill_(bias)  # white: far from the real ones
        found = recipe.judge(nets, images)
        assert found["grown"] == grown
        scores.append(found["score"])
    assert scores == sorted(scores) and scores[3] - scores[2] < 100


@pytest.mark.parametrize("which", [0, 1])
def test_networks_that_do_not_grow_are_refused(images, which):
    networks = [*GROWING]
    networks[which] = (SMALL, BARE)[which]
    with pytest.raises(BadInput, match=f"growth: {type(networks[which]).__name__} does not grow"):
        Gan(*networks, growth=Growth()).networks(images, 0)


def test_a_run_is_judged_by_its_averaged_generator_on_held_out_images(images):
    recipe = Gan(SMALL, BARE, average=0.5, prior="uniform")
    nets = recipe.networks(images, 0)
    with torch.no_grad():
        for p in nets["average"].parameters():
            p.mul_(2)

    def expected(x, y, draws):
        made = gans.generate(nets["average"], F.one_hot(y, 3).float(), draws, prior="uniform")
        return gans.health(made, x)

    found = recipe.judge(nets, images)
    held_out = expected(images.x_val, images.y_val, Draws(0))
    assert found == {**held_out, "score": -held_out["pixel FD"]}
    few = dataclasses.replace(images, x_val=images.x_val[:1], y_val=images.y_val[:1])
    found = recipe.judge(nets, few)
    assert found["pixel FD"] == expected(images.x_train, images.y_train, Draws(0))["pixel FD"]
    tested = recipe.results(nets, images)
    assert tested == expected(images.x_test, images.y_test, Draws(1))
    noted = dataclasses.replace(recipe, parts=True).judge(nets, images)
    assert noted["critic game"] == recipe.noted(nets, images.x_val, images.y_val)["critic game"]
