"""The pieces of adversarial training against plain loops, gradients included, and misuse."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from thesis_repro import adversarial as module
from thesis_repro import data, models, training
from thesis_repro.adversarial import (
    ALP,
    Adversarial,
    After,
    AVmixup,
    Both,
    CrossEntropy,
    Divergence,
    Ewat,
    Examples,
    Gairat,
    GuidedInterpolation,
    InterpolatedAT,
    LabelSmoothing,
    Mail,
    Mart,
    Regional,
    TargetedMixup,
    Trades,
    Weight,
    Wmmr,
    attacked,
)
from thesis_repro.attacks import FGSM, PGD
from thesis_repro.checkpoints import copy_weights, load_checkpoint, read_checkpoint
from thesis_repro.draws import Draws
from thesis_repro.files import BadInput
from thesis_repro.images import pixels
from thesis_repro.models import Diverged
from thesis_repro.pieces import from_specification, piece, specification
from thesis_repro.recipes import SGD, Batch, Classify, Decay, Phase
from thesis_repro.robustness import robust_accuracy
from thesis_repro.training import Compute, Length
from thesis_repro.zoo_attacks import Growing
from thesis_repro.zoo_losses import BidirectionalMetric, TripletLossAdversarial

N, K = 7, 5
RNG = np.random.default_rng(0)
CLEAN, ATTACKED, Y = (
    RNG.normal(size=(N, K)) * 2,
    RNG.normal(size=(N, K)) * 2,
    np.array([0, 4, 2, 2, 1, 3, 0]),
)
SOFT = RNG.dirichlet(np.ones(K), N)
MIXES = (
    LabelSmoothing(),
    LabelSmoothing(mass=0.9),
    AVmixup(),
    InterpolatedAT(),
    InterpolatedAT(per="sample"),
)
MIXES += (GuidedInterpolation(), TargetedMixup(PGD(steps=2, targeted=True)), Regional())


def network(classes):
    "Small enough for a test of many steps: convolutions with batch norm on images of 8 × 8."
    torch.manual_seed(0)

    def block(i, o, stride):
        return [
            torch.nn.Conv2d(i, o, 3, stride, 1),
            torch.nn.BatchNorm2d(o),
            torch.nn.ReLU(),
        ]

    return torch.nn.Sequential(
        *block(3, 8, 2), *block(8, 8, 1), torch.nn.Flatten(), torch.nn.Linear(128, classes)
    )


# The formulas, sample by sample and class by class


def softmax(z):
    e = [math.exp(v - max(z)) for v in z]
    return [v / sum(e) for v in e]


def cross_entropy(z, t):
    return -sum(t[k] * math.log(softmax(z)[k]) for k in range(len(z)))


def onehot(y, k):
    return [float(j == y) for j in range(k)]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def largest_wrong(p, y):
    return max(p[k] for k in range(len(p)) if k != y)


def alp(c, a, y, strength=1.0, of="probabilities"):  # eq. 2.24
    u, v = (a, c) if of == "logits" else (softmax(a), softmax(c))
    return cross_entropy(a, onehot(y, len(a))) + strength * sum(
        (s - t) ** 2 for s, t in zip(u, v, strict=True)
    )


def trades(c, a, y, beta=6.0):  # eq. 2.25
    return cross_entropy(c, onehot(y, len(c))) + beta * kl(softmax(c), softmax(a))


def mart(c, a, y, beta=6.0, bce="adversarial", factor=None):  # eq. 2.26
    b = softmax(a if bce == "adversarial" else c)
    factor = 1 - softmax(c)[y] if factor is None else factor
    return (
        -math.log(b[y])
        - math.log(1 - largest_wrong(b, y))
        + beta * kl(softmax(c), softmax(a)) * factor
    )


def margin(p, y):  # eq. 2.37
    return largest_wrong(p, y) - p[y]


def gairat(kappa, steps, lam):  # eq. 2.36, its sign that of the text
    return (1 + math.tanh(lam + 5 * (1 - 2 * kappa / steps))) / 2


WEIGHTS = {  # logits and label of a sample to its weight
    Mail(): lambda z, y: 1 / (1 + math.exp(-10 * (margin(softmax(z), y) - 0.5))),  # eq. 2.38
    Mail(3.0, 0.2): lambda z, y: 1 / (1 + math.exp(-3 * (margin(softmax(z), y) + 0.2))),
    Wmmr(): lambda z, y: math.exp(2 * margin(softmax(z), y)),  # eq. 2.39
    Wmmr(0.5): lambda z, y: math.exp(0.5 * margin(softmax(z), y)),
    Ewat(): lambda z, y: -sum(p * math.log(p) for p in softmax(z)),
}


def differences(f, x, h=1e-6):
    "The gradient of f at the array x by central differences."
    g, x = np.zeros_like(x), x.copy()
    for i in np.ndindex(*x.shape):
        kept = x[i]
        x[i] = kept + h
        up = f(x)
        x[i] = kept - h
        g[i], x[i] = (up - f(x)) / (2 * h), kept
    return g


def t64(a, grad=False):
    return torch.tensor(np.asarray(a), dtype=torch.float64, requires_grad=grad)


LABELS = torch.tensor(Y)


# Losses: values, and gradients in the clean and in the adversarial logits


@pytest.mark.parametrize(
    ("ours", "reference"),
    [
        (
            lambda c, a: module.alp_loss(a, c, t64(np.eye(K)[Y]), 0.7),
            lambda c, a, y: alp(c, a, y, 0.7),
        ),
        (
            lambda c, a: module.alp_loss(a, c, t64(np.eye(K)[Y]), 0.7, "logits"),
            lambda c, a, y: alp(c, a, y, 0.7, "logits"),
        ),
        (lambda c, a: module.trades_loss(c, a, LABELS, 2.5), lambda c, a, y: trades(c, a, y, 2.5)),
        (lambda c, a: module.mart_loss(c, a, LABELS, 2.5), lambda c, a, y: mart(c, a, y, 2.5)),
        (
            lambda c, a: module.mart_loss(c, a, LABELS, 2.5, "clean"),
            lambda c, a, y: mart(c, a, y, 2.5, "clean"),
        ),
        (lambda c, a: module.divergence(c, a), lambda c, a, y: kl(softmax(c), softmax(a))),
        (lambda c, a: module.boosted_cross_entropy(a, LABELS), lambda c, a, y: mart(c, a, y, 0.0)),
    ],
    ids=["alp", "alp of logits", "trades", "mart", "mart as printed", "divergence", "boosted"],
)
def test_losses_and_their_gradients(ours, reference):
    c, a = t64(CLEAN, grad=True), t64(ATTACKED, grad=True)
    losses = ours(c, a)
    expected = [reference(CLEAN[i], ATTACKED[i], Y[i]) for i in range(N)]
    np.testing.assert_allclose(losses.detach(), expected, rtol=1e-10)
    ct = RNG.normal(size=N)  # a cotangent that no two samples share
    gc, ga = torch.autograd.grad(losses @ t64(ct), (c, a), allow_unused=True)

    def of(u, v):
        return sum(ct[i] * reference(u[i], v[i], Y[i]) for i in range(N))

    zero = torch.zeros(N, K)
    np.testing.assert_allclose(
        zero if gc is None else gc,
        differences(lambda u: of(u, ATTACKED), CLEAN),
        rtol=1e-5,
        atol=1e-7,
    )
    np.testing.assert_allclose(
        zero if ga is None else ga,
        differences(lambda v: of(CLEAN, v), ATTACKED),
        rtol=1e-5,
        atol=1e-7,
    )


def test_cross_entropy_of_soft_labels():
    z = t64(ATTACKED, grad=True)
    losses = module.cross_entropy(z, t64(SOFT))
    np.testing.assert_allclose(
        losses.detach(), [cross_entropy(ATTACKED[i], SOFT[i]) for i in range(N)], rtol=1e-10
    )
    losses.sum().backward()
    np.testing.assert_allclose(
        z.grad, np.array([softmax(r) for r in ATTACKED]) - SOFT, rtol=1e-10
    )  # p − t


def test_marts_factor_is_a_constant_where_asked():
    c = t64(CLEAN, grad=True)
    module.mart_loss(c, t64(ATTACKED), LABELS, 2.5, detach=True).sum().backward()
    fixed = [1 - softmax(CLEAN[i])[Y[i]] for i in range(N)]

    def f(u):
        return sum(mart(u[i], ATTACKED[i], Y[i], 2.5, factor=fixed[i]) for i in range(N))

    np.testing.assert_allclose(c.grad, differences(f, CLEAN), rtol=1e-5, atol=1e-7)


def test_losses_of_a_network_that_is_sure():
    "Logits far apart, in float32: the textbook forms give inf or nan."
    z = torch.tensor([[0.0, 300.0, 1.0], [300.0, 0.0, 1.0]], requires_grad=True)
    y = torch.tensor([0, 0])
    for losses in (
        module.mart_loss(z, z.flip(0), y),
        module.trades_loss(z, z.flip(0), y),
        module.boosted_cross_entropy(z, y),
    ):
        (gradient,) = torch.autograd.grad(losses.sum(), z, retain_graph=True)
        assert losses.isfinite().all() and gradient.isfinite().all()
    expected = 300 + 300 - math.log(1 + math.e)  # −log p_0 − log(1 − p_1)
    assert module.boosted_cross_entropy(z, y)[0].item() == pytest.approx(expected, rel=1e-5)


# Weights


def test_margin():
    p = np.array([softmax(r) for r in CLEAN])
    ours = module.probability_margin(t64(p), LABELS)
    np.testing.assert_allclose(ours, [margin(p[i], Y[i]) for i in range(N)], rtol=1e-12)
    assert ((ours > 0).numpy() == (p.argmax(1) != Y)).all()
    assert module.probability_margin(
        torch.tensor([[0.9, 0.1], [0.1, 0.9]]), torch.tensor([0, 0])
    ).tolist() == pytest.approx([-0.8, 0.8])


@pytest.mark.parametrize("lam", [-1.0, 0.0, 2.0])
def test_gairat(lam):
    ours = module.gairat_weight(torch.arange(11), 10, lam)
    np.testing.assert_allclose(ours, [gairat(k, 10, lam) for k in range(11)], rtol=1e-5, atol=1e-7)
    assert (
        module.gairat_weight(torch.arange(11), 10, 1e9).tolist() == [1.0] * 11
    )  # λ = ∞: ordinary training


def test_weights_grow_towards_and_beyond_the_boundary():
    "From surely right over the boundary to surely wrong, in a step of the margin each."
    steps = torch.linspace(0, 1, 21, dtype=torch.float64)
    p, y = torch.stack([1 - steps, steps], 1), torch.zeros(21, dtype=torch.long)
    for weight in (Mail(), Wmmr(), Mail(3.0, 0.2)):
        w = weight.of(p, y)
        assert (w.diff() > 0).all()
    assert (module.gairat_weight(torch.arange(11).flip(0), 10).double().diff() >= 0).all()
    assert (
        module.gairat_weight(torch.tensor(0), 10) > 0.99
        and module.gairat_weight(torch.tensor(10), 10) < 0.01
    )
    e = Ewat().of(p, y)
    assert (
        e.argmax() == 10 and (e[:11].diff() > 0).all() and e[0] == 0
    )  # towards the boundary; beyond it, it falls again
    assert Mail().of(p, y)[15].item() == pytest.approx(0.5)  # wrong by a half


@pytest.mark.parametrize("how", ["mean", "none", "three"])
def test_normalised(how):
    w = t64(RNG.random(N) * 3)
    expected = {"mean": w.numpy() * N / w.numpy().sum(), "none": w.numpy(), "three": 3 * w.numpy()}[
        how
    ]
    np.testing.assert_allclose(module.normalised(w, how), expected, rtol=1e-12)
    if how == "mean":
        assert module.normalised(torch.zeros(4)).tolist() == [1, 1, 1, 1]  # nothing to go by
        assert torch.isclose(module.normalised(torch.full((4,), 1e-30)).mean(), torch.tensor(1.0))


class Logits(torch.nn.Module):
    "Its weights are its logits: images are the numbers 0 … n − 1 (adversarial: − n … −1)."

    def __init__(self):
        super().__init__()
        self.clean, self.attacked = (
            torch.nn.Parameter(t64(CLEAN)),
            torch.nn.Parameter(t64(ATTACKED)),
        )

    def forward(self, x):
        i = x.flatten(1)[:, 0].round().long()
        return torch.where(
            (i >= 0)[:, None], self.clean[i.clamp(min=0)], self.attacked[(i + N).clamp(0, N - 1)]
        )


@dataclasses.dataclass(frozen=True)
class Minus:
    "An attack of four iterates: sample i falls at step i; at the last step all stand again."

    steps: int = 4

    def __call__(self, model, x, y, draws, seen=None):
        for step in range(self.steps):
            stands = (torch.arange(N) > step) | (step == self.steps - 1)
            z = torch.nn.functional.one_hot(torch.where(stands, y, (y + 1) % K), K).double()
            seen(step, x, z)
        return x - N


NUMBERS = torch.arange(N, dtype=torch.float64).view(N, 1, 1, 1)
KAPPA = [0, 1, 2, 4, 4, 4, 4]


def test_kappa_counts_up_to_the_first_fall():
    e = attacked(Minus(), Examples(Logits(), NUMBERS, LABELS, Draws(0)))
    assert e.survived.tolist() == KAPPA and (e.steps, e.classes) == (4, K)


def test_kappa_of_pgd_against_a_loop():
    net = network(4)
    x, y, shown = torch.rand(16, 3, 8, 8), torch.arange(16) % 4, []
    PGD(steps=5)(
        net.eval(), x, y, Draws(3), lambda step, z, logits: shown.append((step, z.clone()))
    )
    e = attacked(PGD(steps=5), Examples(net, x, y, Draws(3)))
    assert [step for step, _ in shown] == list(range(5)) and torch.equal(e.halfway, shown[2][1])
    kappa = [5] * 16
    for step, z in reversed(shown):
        predicted = net(z).argmax(1)
        kappa = [step if predicted[i] != y[i] else kappa[i] for i in range(16)]
    assert e.survived.tolist() == kappa and len(set(kappa)) > 1


@pytest.mark.parametrize("weight", [*WEIGHTS, Gairat(), Gairat(lam=0.5)], ids=str)
@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("normalise", ["mean", "none", "three"])
def test_weighted_training_and_its_gradient(weight, detach, normalise):
    "Eq. 2.35, whole: the loss, and its gradient in all logits, with the weights constant or not."
    piece = dataclasses.replace(weight, detach=detach, normalise=normalise)
    net = Logits()
    loss = Adversarial(Minus(), weight=piece)(net, NUMBERS, LABELS, Draws(0))
    loss.backward()

    def raw(a):
        if isinstance(weight, Gairat):
            return [gairat(KAPPA[i], 4, weight.lam) for i in range(N)]
        return [WEIGHTS[weight](a[i], Y[i]) for i in range(N)]

    def scaled(w):
        return [v * {"mean": N / sum(w), "none": 1, "three": 3}[normalise] for v in w]

    constant = scaled(raw(ATTACKED))

    def objective(a):
        w = constant if detach else scaled(raw(a))
        return sum(w[i] * cross_entropy(a[i], onehot(Y[i], K)) for i in range(N)) / N

    rtol = 1e-5 if isinstance(weight, Gairat) else 1e-9  # κ is a float32 matter
    assert loss.item() == pytest.approx(objective(ATTACKED), rel=rtol)
    np.testing.assert_allclose(
        net.attacked.grad, differences(objective, ATTACKED), rtol=2e-5, atol=1e-7
    )
    assert net.clean.grad is None or not net.clean.grad.any()


@pytest.mark.parametrize(
    ("loss", "reference"),
    [
        (CrossEntropy(), lambda c, a, y: cross_entropy(a, onehot(y, K))),  # eq. 2.22
        (
            Both(0.3),
            lambda c, a, y: (
                0.3 * cross_entropy(c, onehot(y, K)) + 0.7 * cross_entropy(a, onehot(y, K))
            ),
        ),
        (ALP(0.7), lambda c, a, y: alp(c, a, y, 0.7)),
        (ALP(0.7, of="logits"), lambda c, a, y: alp(c, a, y, 0.7, "logits")),
        (Trades(2.0), lambda c, a, y: trades(c, a, y, 2.0)),
        (Divergence(), lambda c, a, y: kl(softmax(c), softmax(a))),
        (Mart(2.0), lambda c, a, y: mart(c, a, y, 2.0)),
        (Mart(2.0, bce="clean"), lambda c, a, y: mart(c, a, y, 2.0, "clean")),
    ],
    ids=lambda v: "reference" if callable(v) and not hasattr(v, "__dataclass_fields__") else str(v),
)
def test_compositions(loss, reference):
    "As a piece of a step, by the gradients of both halves: nothing detached, nothing swapped."
    net = Logits()
    mean = Adversarial(Minus(), loss=loss)(net, NUMBERS, LABELS, Draws(0))
    mean.backward()

    def of(c, a):
        return sum(reference(c[i], a[i], Y[i]) for i in range(N)) / N

    assert mean.item() == pytest.approx(of(CLEAN, ATTACKED), rel=1e-9)
    of_clean, of_attacked = (
        differences(lambda c: of(c, ATTACKED), CLEAN),
        differences(lambda a: of(CLEAN, a), ATTACKED),
    )

    def grad(p):
        return torch.zeros(N, K) if p.grad is None else p.grad

    np.testing.assert_allclose(grad(net.clean), of_clean, rtol=2e-5, atol=1e-8)
    np.testing.assert_allclose(grad(net.attacked), of_attacked, rtol=2e-5, atol=1e-8)


def test_mart_detached_as_a_piece():
    gradients = []
    for detach in (True, False):
        net = Logits()
        Adversarial(Minus(), loss=Mart(detach=detach))(net, NUMBERS, LABELS, Draws(0)).backward()
        gradients.append(net.clean.grad)
    assert not torch.allclose(*gradients)


def test_warm_up():
    "Ones before the fraction of the run, without a look at the network; then the weights."

    def e(at):
        return Examples(None, NUMBERS, LABELS, Draws(0, progress=at))

    assert After(0.625, Mail())(e(0.62)).tolist() == [1.0] * N
    with pytest.raises(TypeError):  # there is no network to ask
        After(0.625, Mail())(e(0.625))
    asked = attacked(Minus(), Examples(Logits(), NUMBERS, LABELS, Draws(0, progress=0.625)))
    torch.testing.assert_close(After(0.625, Gairat())(asked), Gairat()(asked))


def test_weights_and_losses_share_one_pass():
    "A weight costs no pass: κ and weights are nearly free."

    class Counting(Logits):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return super().forward(x)

    counts = {}
    for name, method in {
        "PGD": Adversarial(Minus()),
        "MAIL": Adversarial(Minus(), weight=Mail()),
    }.items():
        net = Counting()
        method(net, NUMBERS, LABELS, Draws(0))
        counts[name] = net.calls
    assert counts == {"PGD": 1, "MAIL": 1}


class Counted(torch.autograd.Function):
    "A linear map that counts its products: forward, back to its input, back to its weights."

    passes = 0

    @staticmethod
    def forward(ctx, h, w):
        Counted.passes += 1
        ctx.save_for_backward(h, w)
        return h @ w

    @staticmethod
    def backward(ctx, g):
        (h, w), (to_h, to_w) = ctx.saved_tensors, ctx.needs_input_grad
        Counted.passes += to_h + to_w
        return g @ w.T if to_h else None, h.T @ g if to_w else None


class TwoLayers(torch.nn.Module):
    "Its upper layer is counted, which like nearly all layers has a gradient to pass on."

    def __init__(self):
        super().__init__()
        self.w, self.v = (torch.nn.Parameter(torch.randn(12, k)) for k in (12, K))

    def forward(self, x):
        return Counted.apply((x.flatten(1) @ self.w).tanh(), self.v)


def passes(method):
    net, before = TwoLayers(), Counted.passes
    method(net, torch.rand(N, 3, 2, 2), LABELS, Draws(0, progress=1.0)).backward()
    return Counted.passes - before


def test_costs():
    "In passes: ten there and back to the image, and a step (three); TRADES 27, weights nothing."
    assert passes(Adversarial()) == 23
    assert passes(Adversarial(PGD(loss="kl", start="normal"), loss=Trades())) == 27
    assert passes(Adversarial(mix=AVmixup(), weight=Gairat())) == 23
    assert passes(Adversarial(weight=After(0.5, Mail()))) == 23
    assert (
        passes(Adversarial(None, mix=TargetedMixup())) == 24
    )  # one more, of a single image, to count the classes


# Mixes


class Coded(torch.nn.Module):
    "Image i is the one-hot code of its label; the network's logits are the image."

    def forward(self, x):
        return x.flatten(1)


@dataclasses.dataclass(frozen=True)
class Still:
    "An attack that stays where it is, and shows it."

    steps: int = 2
    targeted: bool = False

    def __call__(self, model, x, y, draws, seen=None):
        for step in range(self.steps if seen else 0):
            seen(step, x, model(x))
        return x


def coded(attack, draws=Draws(0, 0, 5)):
    x = torch.eye(K)[LABELS].view(N, 1, 1, K)
    return attacked(attack, Examples(Coded(), x, LABELS, draws))


@pytest.mark.parametrize("mix", MIXES, ids=str)
def test_labels_are_distributions(mix):
    net = network(6).eval()
    e = attacked(
        PGD(steps=2), Examples(net, torch.rand(32, 3, 8, 8), torch.arange(32) % 6, Draws(1))
    )
    inputs, target = mix(e)
    assert inputs.shape == e.x.shape and target.shape == (32, 6) and not inputs.requires_grad
    assert inputs.min() >= 0 and inputs.max() <= 1 and target.min() >= 0
    torch.testing.assert_close(target.sum(1), torch.ones(32))
    again, other = mix(e), mix(dataclasses.replace(e, draws=Draws(1, 0, 1)))
    torch.testing.assert_close((inputs, target), again, rtol=0, atol=0)  # a function of the draws
    if mix not in (LabelSmoothing(mass=0.9),):
        assert not torch.equal(target, other[1])


@pytest.mark.parametrize(
    "mix",
    [
        InterpolatedAT(),
        InterpolatedAT(per="sample"),
        GuidedInterpolation(),
        GuidedInterpolation(0.2),
    ],
)
def test_images_and_labels_are_mixed_alike(mix):
    "If the image is the code of its label, the mixture is that of the mixed label: same λ, side."
    e = coded(Still())
    inputs, target = mix(e)
    torch.testing.assert_close(inputs.flatten(1), target)
    partner = torch.as_tensor(e.draws.numpy("partner").permutation(N))
    own = target.gather(1, LABELS[:, None]).squeeze(1)[LABELS != LABELS[partner]]
    if isinstance(mix, GuidedInterpolation):
        torch.testing.assert_close(own, torch.full_like(own, mix.ratio))
    else:
        assert (len(set(own.tolist())) == 1) == (mix.per == "batch")


@pytest.mark.parametrize("loss", [CrossEntropy(), Trades(2.0)], ids=str)
def test_the_mixture_is_what_is_learned(loss):
    "Loss and weights look at the mix's images and labels, TRADES at the clean images, too."
    e = coded(Still())
    e.inputs, e.target = InterpolatedAT()(e)
    method = Adversarial(Still(), mix=InterpolatedAT(), loss=loss, weight=Wmmr())
    mean = method(Coded(), e.x, LABELS, e.draws)
    z, clean = e.inputs.flatten(1), e.x.flatten(1)
    margins = torch.tensor([margin(softmax(z[i].tolist()), Y[i]) for i in range(N)])
    w = torch.exp(2 * margins)
    w = w / w.mean()
    if loss == CrossEntropy():
        expected = w * module.cross_entropy(z, e.target)
    else:  # a weight multiplies the divergence alone
        natural = module.trades_loss(clean, z, LABELS, 0.0)
        expected = natural + w * (module.trades_loss(clean, z, LABELS, 2.0) - natural)
    assert mean.item() == pytest.approx(expected.mean().item())


def test_it_mixes_what_the_attack_found():
    e = dataclasses.replace(coded(Still()), adversarial=torch.full((N, 1, 1, K), 0.25))
    for mix in (InterpolatedAT(), GuidedInterpolation()):
        torch.testing.assert_close(mix(e)[0], e.adversarial)
    assert torch.equal(LabelSmoothing()(e)[0], e.adversarial)


def test_interpolated_at_with_clean_pairs():
    "The paper's loss: half the mixed clean images, half the mixed adversarial ones."
    e = coded(Still())
    e = dataclasses.replace(e, adversarial=e.x.flip(3) * 0.5)
    e.inputs, e.target = InterpolatedAT()(e)
    clean_inputs, target = InterpolatedAT()(dataclasses.replace(e, adversarial=e.x))
    halves = [module.cross_entropy(z.flatten(1), target) for z in (clean_inputs, e.inputs)]
    torch.testing.assert_close(Both(mix=InterpolatedAT())(e), (halves[0] + halves[1]) / 2)


def test_label_smoothing():
    e = coded(Still())
    target = LabelSmoothing(mass=0.6)(e)[1]
    expected = [[0.6 if k == y else 0.4 / (K - 1) for k in range(K)] for y in Y]
    np.testing.assert_allclose(target, expected, rtol=1e-6)
    drawn = np.float32(e.draws.numpy("label smoothing").beta(1, 1, N))
    own = LabelSmoothing()(e)[1].gather(1, LABELS[:, None]).squeeze(1)
    np.testing.assert_allclose(own, drawn, rtol=1e-6)
    assert len(set(drawn)) == N  # one for each sample
    many = dataclasses.replace(e, y=torch.zeros(4000, dtype=torch.long))
    assert module.ratios(many, "a").mean().item() == pytest.approx(0.5, abs=0.02)
    assert module.ratios(many, "a").var().item() == pytest.approx(
        1 / 12, abs=0.01
    )  # Beta(1, 1) is uniform
    assert module.ratios(many, "a", 2.0).var().item() == pytest.approx(1 / 20, abs=0.01)


@pytest.mark.parametrize("how", [AVmixup(), AVmixup(1.0, 0.9, 0.3)], ids=str)
def test_avmixup_against_loops(how):
    x, adversarial = torch.rand(N, 1, 2, 2), torch.rand(N, 1, 2, 2)
    e = Examples(None, x, LABELS, Draws(4), adversarial=adversarial, classes=K)
    inputs, target = how(e)
    lam = e.draws.numpy("avmixup").beta(1, 1, N)
    for i in range(N):
        vertex = np.clip(x[i].numpy() + how.gamma * (adversarial[i] - x[i]).numpy(), 0, 1)
        np.testing.assert_allclose(
            inputs[i], lam[i] * x[i].numpy() + (1 - lam[i]) * vertex, rtol=1e-5, atol=1e-6
        )
        for k in range(K):
            near, far = (v if k == Y[i] else (1 - v) / (K - 1) for v in (how.lambda1, how.lambda2))
            assert target[i, k].item() == pytest.approx(
                lam[i] * near + (1 - lam[i]) * far, abs=1e-6
            )
    if how.gamma == 2:
        beyond = (inputs - x).abs() > (adversarial - x).abs() + 1e-6
        assert beyond.any()  # the vertex is outside of the attack's reach


def test_mixed_first_then_attacked():
    "M-TLAT: the mixture is attacked, towards a wrong class, which has a share of the label."
    calls = []

    @dataclasses.dataclass(frozen=True)
    class Noting(Still):
        targeted: bool = True

        def __call__(self, model, x, y, draws, seen=None):
            calls.append((x, y))
            return x * 0.5

    e = coded(None)
    inputs, target = TargetedMixup(Noting(), share=0.2)(e)
    (mixture, aim), mixed = calls[0], InterpolatedAT()(e)[1]
    torch.testing.assert_close(mixture.flatten(1), mixed)  # the code of the mixed label
    assert (aim != LABELS).all() and len(set(((aim - LABELS) % K).tolist())) > 1
    torch.testing.assert_close(inputs, mixture * 0.5)
    torch.testing.assert_close(target, 0.8 * mixed + 0.2 * torch.eye(K)[aim])


def test_regional_is_inside_its_triangle():
    x = torch.zeros(400, 1, 1, 3) + 0.5
    halfway, end = x + torch.tensor([0.1, 0.0, 0.0]), x + torch.tensor([0.1, 0.2, 0.0])
    y = torch.zeros(400, dtype=torch.long)
    e = Examples(None, x, y, Draws(0), adversarial=end, halfway=halfway, classes=4)
    inputs, target = Regional(0.9, 0.5)(e)
    b = (inputs - x).flatten(1).double()
    c = b[:, 1] / 0.2  # coordinates in the triangle: of the end, of halfway, of the image
    a = b[:, 0] / 0.1 - c
    assert (torch.stack([a, c, 1 - a - c]) > -1e-5).all() and b[:, 2].abs().max() < 1e-6
    assert torch.stack([a, c, 1 - a - c]).mean(1).tolist() == pytest.approx(
        [1 / 3] * 3, abs=0.03
    )  # uniform
    away = b.norm(dim=1) / math.hypot(0.1, 0.2)
    torch.testing.assert_close(target[:, 0].double(), 0.9 + (0.5 - 0.9) * away, atol=1e-5, rtol=0)


def test_a_targeted_attack_aims_at_a_wrong_class():
    aims = []

    @dataclasses.dataclass(frozen=True)
    class Aiming(Still):
        targeted: bool = True

        def __call__(self, model, x, y, draws, seen=None):
            aims.append(y)
            return super().__call__(model, x, y, draws, seen)

    coded(Aiming())
    assert (aims[0] != LABELS).all() and aims[0].min() >= 0 and aims[0].max() < K


# The composition in a run


@pytest.fixture(scope="module")
def digits():
    return dataclasses.replace(
        data.load("faint10", train_size=60, test_size=40, held_out=40), crop=0
    )


def begin(digits, method, epochs=1, folder=None, **compute):
    recipe = Classify("resnet18", method, SGD(decay=Decay(kind="cosine")), 0.0625)
    how = Compute(progress=False, **compute)
    return training.start(recipe, digits, Length(epochs, 12), 0, how, folder)


QUICK = PGD(steps=2, step=6 / 255)
WHOLE = {
    "Goodfellow": Adversarial(FGSM(), loss=Both(), selection=QUICK),
    "IAT": Adversarial(
        QUICK, mix=InterpolatedAT(), loss=Both(mix=InterpolatedAT()), selection=None
    ),
    "M-TLAT": Adversarial(None, mix=TargetedMixup(PGD(steps=2, targeted=True)), selection=None),
    "RAT": Adversarial(QUICK, mix=Regional(), selection=None),
    "TRADES on AVmixup": Adversarial(QUICK, mix=AVmixup(), loss=Trades(), selection=None),
    "MART": Adversarial(QUICK, loss=Mart(), weight=After(0.5, Wmmr(detach=False)), selection=None),
}


@pytest.mark.parametrize("name", WHOLE)
def test_training(digits, name):
    t = begin(digits, WHOLE[name])
    before = copy_weights(t.nets)
    training.train(t)
    assert math.isfinite(t.at.history[-1]["loss"])
    assert all(not torch.equal(p, before[k]) for k, p in t.nets.named_parameters())


def test_bf16_losses_are_float32(digits):
    net = network(10)
    x, y = pixels(digits.x_test[:8]), digits.y_test[:8]
    with torch.autocast("cpu", torch.bfloat16):
        for method in (
            Adversarial(QUICK, loss=Trades(), weight=Mail()),
            Adversarial(QUICK, loss=Mart(), weight=Gairat()),
        ):
            loss = method(net, x, y, Draws(0))
            assert loss.dtype == torch.float32 and loss.isfinite()
        e = Examples(net, x, y, Draws(0), inputs=x)
        assert (
            net(x).dtype == torch.bfloat16
            and e.logits.dtype == e.clean_logits.dtype == torch.float32
        )


def test_the_best_epoch_is_the_most_robust_one(digits):
    t = training.train(begin(digits, Adversarial(QUICK, selection=QUICK), epochs=3))
    robust = [row["held-out robust accuracy"] for row in t.at.history]
    assert t.at.best["score"] == max(robust)
    assert t.at.best["epoch"] == robust.index(max(robust)) + 1
    held_out = t.nets["model"], digits.x_val, digits.y_val
    judged = Adversarial(selection=QUICK).judge(*held_out)
    assert judged["robust accuracy"] == robust[-1]
    assert robust[-1] == robust_accuracy(*held_out, QUICK)["accuracy"]
    clean = Adversarial(selection=None).judge(*held_out)
    assert clean["robust accuracy"] == clean["accuracy"] >= judged["robust accuracy"]


def test_perturbed_weights_are_asked_anew():
    "What a `perturb` piece has computed with the network's own weights does not reach the loss."
    net, other = Logits(), Logits()
    other.attacked.data += 1.0 * torch.arange(K)

    def perturb(e):
        assert e.logits.shape == (N, K)  # asked, and kept
        return other

    loss = Adversarial(Minus(), perturb=perturb)(net, NUMBERS, LABELS, Draws(0))
    expected = Adversarial(Minus())(other, NUMBERS, LABELS, Draws(0))
    assert (
        loss.item()
        == expected.item()
        != Adversarial(Minus())(net, NUMBERS, LABELS, Draws(0)).item()
    )


def test_a_weight_of_ones_own_is_one_cell(digits):
    @piece
    class Doubt(Weight):
        def of(self, p, y):
            return 1 - p.gather(1, y[:, None]).squeeze(1)

    t = training.train(begin(digits, Adversarial(QUICK, weight=Doubt(), selection=None)))
    assert math.isfinite(t.at.history[-1]["loss"])
    e = attacked(Minus(), Examples(Logits(), NUMBERS, LABELS, Draws(0)))
    e.inputs = e.adversarial
    w = Doubt(normalise="none")(e)
    np.testing.assert_allclose(w, [1 - softmax(ATTACKED[i])[Y[i]] for i in range(N)], rtol=1e-9)
    assert not w.requires_grad and Doubt(detach=False)(e).requires_grad


# A network that breaks


@dataclasses.dataclass(frozen=True)
class Breaking:
    "A loss that is not a number from a step of the run on."

    step: int = 3

    def __call__(self, e):
        bad = e.draws.step >= self.step
        return CrossEntropy()(e) * (math.nan if bad else 1.0)


@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_a_loss_that_is_not_a_number(digits, tmp_path, seconds):
    "The run stops and names the step; it goes on from the last good checkpoint."
    t = begin(
        digits,
        Adversarial(QUICK, loss=Breaking(), selection=None),
        folder=tmp_path,
        checkpoint_seconds=seconds,
    )
    with pytest.raises(Diverged, match=r"epoch 0, step [34]: |at epoch 0, step 3"):
        training.train(t)
    if seconds:
        return
    state = load_checkpoint(tmp_path / "checkpoint.ckpt")
    assert state["at"]["step"] == 3 and all(v.isfinite().all() for v in state["networks"].values())
    again = begin(digits, Adversarial(QUICK, selection=None), folder=tmp_path)
    assert again.at.step == 3 and math.isfinite(training.train(again).at.history[-1]["loss"])


def test_weights_that_are_not_numbers(digits, tmp_path):
    "A network that answers NaN is met by the attack first; the message has the run's step."

    @dataclasses.dataclass(frozen=True)
    class Wrecking:
        def __call__(self, e):
            losses = CrossEntropy()(e)
            if e.draws.step == 2:
                next(p for p in e.model.parameters() if p.dim() > 1).data.fill_(math.nan)
            return losses

    t = begin(
        digits,
        Adversarial(QUICK, loss=Wrecking(), selection=None),
        folder=tmp_path,
        checkpoint_seconds=0.0,
    )
    with pytest.raises(Diverged, match=r"weights are not finite after epoch 0, step 2"):
        training.train(t)
    files = [f for f in tmp_path.iterdir() if f.name.startswith("checkpoint.ckpt")]
    good = [
        s
        for s in map(read_checkpoint, files)
        if all(v.isfinite().all() for v in s["networks"].values())
    ]
    assert sorted(s["at"]["step"] for s in good) == [1, 2] and len(good) == len(
        files
    )  # nothing after the network broke


def test_a_broken_network_is_named_by_the_attack_and_the_judge(digits):
    "The attack meets it first; the run adds its epoch and step."
    t = begin(digits, Adversarial(QUICK))
    next(t.nets.parameters()).data.fill_(math.nan)
    with pytest.raises(Diverged, match=r"^epoch 0, step 0: .*not finite at step 0 of the attack"):
        training.train(t)
    with pytest.raises(Diverged, match="not finite"):
        Adversarial(selection=QUICK).judge(t.nets["model"], digits.x_val, digits.y_val)
    t = begin(digits, Adversarial(QUICK, loss=WreckingAtTheEnd()))
    with pytest.raises(Diverged, match=r"^after epoch 1: .*not finite, before any step"):
        training.train(t)


@dataclasses.dataclass(frozen=True)
class WreckingAtTheEnd:
    "Leaves a network that answers NaN after the last step of the epoch, though the loss is finite."

    def __call__(self, e):
        losses = CrossEntropy()(e)
        if e.draws.step == 4:
            e.model.register_forward_hook(lambda m, x, z: z * math.nan)
        return losses


# Networks of pieces, and phases


class Memory(torch.nn.Module):
    "A number, and whether it was looked at."

    def __init__(self, value):
        super().__init__()
        self.value = torch.nn.Parameter(torch.tensor(value))


@piece
class Remembering:
    "A loss with a network called `name`, which is its value."

    name: str = "memory"
    value: float = 1.0

    def networks(self, model, images):
        return {self.name: Memory(self.value)}

    def __call__(self, e):
        return e.nets[self.name].value * CrossEntropy()(e)


@piece
class Moving:
    "An attack with a network of its own, which says how far it goes."

    steps: int = 1

    def networks(self, model, images):
        return {"far": Memory(0.01 * self.steps)}

    def __call__(self, model, x, y, draws, seen=None, nets=module.NO_NETWORKS):
        return (x + nets["far"].value.detach()).clamp(0, 1)


def test_the_networks_of_all_pieces_come_together():
    method = Adversarial(Moving(), loss=Both(loss=Remembering()), weight=After(0.5, Mail()))
    nets = method.networks(None, None)
    assert sorted(nets) == ["far", "memory"]
    x = torch.full((N, 1, 1, K), 0.5)
    e = method.examples(Coded(), x, LABELS, Draws(0), nets)
    torch.testing.assert_close(e.adversarial, x + 0.01)
    once = method(Coded(), x, LABELS, Draws(0), nets)
    nets["memory"].value.data += 1
    assert method(Coded(), x, LABELS, Draws(0), nets).item() == pytest.approx(2 * once.item())


def test_names_of_networks_are_distinct():
    twice = Adversarial(loss=Remembering("a"), weight=After(0.5, Remembering("a", 2.0)))
    with pytest.raises(BadInput, match="two pieces have a network called a: use one of them"):
        twice.networks(None, None)
    with pytest.raises(BadInput, match="called model"):
        Adversarial(loss=Remembering("model")).networks(None, None)
    assert Adversarial().networks(None, None) == {} and Adversarial().phases() == ()
    with pytest.raises(BadInput, match=r"memory: .*nets = method\.networks\(model, images\)"):
        Adversarial(None, loss=Remembering())(Coded(), torch.rand(N, 1, 1, K), LABELS, Draws(0))


@piece
class Judging(Remembering):
    "A loss whose network learns in a phase of its own, to be large where the loss is."

    def phases(self, method):
        def loss(nets, batch):
            now = nets["model"], batch.x, batch.y, batch.draws, nets, batch.kept
            return -(nets[self.name].value * CrossEntropy()(method.examples(*now)).detach()).mean()

        return (Phase("judging", (self.name,), SGD(0.5, 0.0, 0.0), loss),)


def test_phases_share_the_adversarial_images_and_nothing_else(digits):
    calls = []

    @dataclasses.dataclass(frozen=True)
    class Counted(Still):
        def __call__(self, model, x, y, draws, seen=None):
            calls.append(draws.step)
            return x

    t = begin(digits, Adversarial(Counted(), loss=Judging(), selection=None))
    assert [(p.name, p.trains) for p in t.phases] == [
        ("judging", ("memory",)),
        ("model", ("model",)),
    ]
    before = t.nets["memory"].value.item()
    training.train(t)
    assert calls == [0, 1, 2, 3, 4]  # once a step, though two phases need it
    assert t.nets["memory"].value.item() > before  # by its own phase, against the model's
    assert all(math.isfinite(v) for v in t.at.history[0].values())
    assert {"loss", "judging loss"} <= t.at.history[0].keys()


def test_a_joint_loss_is_the_loss_with_networks_and_what_was_kept():
    method, nets = (
        Adversarial(Still(), loss=Remembering()),
        {"model": Coded(), "memory": Memory(2.0)},
    )
    x = torch.eye(K)[LABELS].view(N, 1, 1, K)
    batch = Batch(x, LABELS, Draws(0))
    first = method.joint_loss(nets, batch)
    assert first.item() == pytest.approx(method(Coded(), x, LABELS, Draws(0), nets).item())
    batch.kept["examples"].inputs = 0 * x  # the next phase finds what this one left
    assert method.joint_loss(nets, batch).item() == pytest.approx(2 * math.log(K), rel=1e-5)


# Records and bad input


@pytest.mark.parametrize(
    "method",
    [
        *WHOLE.values(),
        *(Adversarial(mix=m, weight=w) for m in MIXES for w in (Mail(3.0), Gairat())),
    ],
)
def test_a_method_can_be_written_down(method):
    assert from_specification(json.loads(json.dumps(specification(method)))) == method


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Trades(-1), "Trades: beta = -1: must be a number from 0 on"),
        (lambda: Trades(math.nan), "beta = nan"),
        (lambda: Trades(math.inf), "beta = inf"),
        (lambda: Mart(-0.5), "Mart: beta"),
        (lambda: Mart(bce="both"), "bce = both: must be one of adversarial, clean"),
        (lambda: ALP(-1), "strength"),
        (lambda: ALP(of="features"), "of = features"),
        (lambda: Both(1.5), "share = 1.5: must be a number from 0 to 1"),
        (lambda: AVmixup(gamma=0), "gamma"),
        (lambda: AVmixup(lambda1=1.1), "lambda1"),
        (lambda: AVmixup(lambda2=-0.1), "lambda2"),
        (lambda: AVmixup(alpha=0), "alpha"),
        (lambda: LabelSmoothing(mass=2), "mass = 2"),
        (lambda: LabelSmoothing(alpha="1"), "alpha = 1: must be a number"),
        (lambda: InterpolatedAT(alpha=-1), "alpha"),
        (lambda: InterpolatedAT(per="image"), "per = image"),
        (lambda: GuidedInterpolation(2), "ratio"),
        (lambda: TargetedMixup(PGD()), "must be targeted"),
        (lambda: TargetedMixup(share=3), "share"),
        (lambda: Regional(lambda2=2), "lambda2"),
        (lambda: Mail(normalise="sum"), "Mail: normalise = sum: must be one of mean, none, three"),
        (lambda: Mail(gamma=-10), "gamma"),
        (lambda: Mail(beta=math.nan), "beta"),
        (lambda: Wmmr(alpha=-2), "alpha"),
        (lambda: Wmmr(normalise=""), "normalise"),
        (lambda: Ewat(normalise="one"), "normalise"),
        (lambda: Gairat(lam=math.nan), "lam = nan"),
        (lambda: After(75, Mail()), "fraction = 75: must be a number from 0 to 1"),
        (lambda: After(0.5, 2), "weight = 2"),
        (lambda: Adversarial(weight="mail"), "weight = mail"),
        (lambda: Adversarial(loss=None), "loss = None"),
        (lambda: module.normalised(torch.ones(2), "sum"), "normalise = sum"),
        (lambda: Gairat()(coded(None)), "Gairat: needs an attack that shows its steps"),
        (lambda: Regional()(coded(None)), "Regional: needs an attack that shows its steps"),
        (
            lambda: Adversarial(QUICK)(
                Coded(), torch.rand(2, 1, 2, 2), torch.tensor([0, 4]), Draws(0)
            ),
            "labels",
        ),
        (
            lambda: Adversarial(QUICK)(
                Coded(), torch.rand(2, 1, 2, 2), torch.tensor([-1, 0]), Draws(0)
            ),
            "labels",
        ),
        (
            lambda: Adversarial(None)(
                Coded(), torch.rand(2, 1, 2, 2), torch.tensor([0, 4]), Draws(0)
            ),
            "labels",
        ),
    ],
)
def test_bad_input(make, says):
    with pytest.raises(BadInput, match=says) as e:
        make()
    assert "\n" not in str(e.value)


# What is seen of an attack that is not ten steps from one start


def looked_on(attack, progress=0.5):
    "A batch after an attack, and the iterates that it showed."
    x, y = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 4
    draws, shown = Draws(0, progress=progress), []
    attack(network(4).eval(), x, y, draws, lambda step, z, logits: shown.append(z.clone()))
    return attacked(attack, Examples(network(4).eval(), x, y, draws)), shown


def test_kappa_counts_the_steps_of_all_restarts():
    e, shown = looked_on(PGD(steps=3, restarts=2))
    assert e.steps == len(shown) == 6 and e.survived.max() <= 6


@pytest.mark.parametrize("progress, steps", [(0.0, 1), (0.55, 6), (0.99, 10)])
def test_halfway_of_an_attack_that_grows(progress, steps):
    e, shown = looked_on(Growing(), progress)
    assert len(shown) == steps and torch.equal(e.halfway, shown[steps // 2])


class Short:
    "An attack of ten steps that ends after two, as one does that all samples leave early."

    steps = 10

    def __call__(self, model, x, y, draws, seen):
        for step in range(2):
            seen(step, x + 0.01 * step, model(x))
        return x + 0.02


def test_halfway_of_an_attack_that_ends_early_is_where_it_ended():
    e, shown = looked_on(Short())
    assert torch.equal(e.halfway, shown[1])
    assert Regional()(e)[0].shape == e.x.shape


@pytest.mark.parametrize("loss", [TripletLossAdversarial(), BidirectionalMetric(steps=1)])
@pytest.mark.parametrize("y", [(3, 3, 3), (2,)])
def test_a_batch_of_one_class_has_no_triplets(loss, y):
    "No image of its own class is pushed away as a negative."
    x, y = torch.rand(len(y), 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor(y)

    def measured(**how):
        torch.manual_seed(0)
        net = models.build("resnet18", 4, 0.0625).eval()
        e = Examples(net, x, y, Draws(0), adversarial=x, inputs=x, classes=4)
        return dataclasses.replace(loss, **how)(e)

    torch.testing.assert_close(measured(), measured(lambda1=0.0))


# Numbers and rules that no composition above rests on


def test_the_numbers_where_nothing_else_is_said():
    assert AVmixup() == AVmixup(2.0, 1.0, 0.1, 1.0) and Regional() == Regional(1.0, 0.55)
    assert InterpolatedAT() == InterpolatedAT(1.0)
    assert GuidedInterpolation() == GuidedInterpolation(0.5)
    assert TargetedMixup() == TargetedMixup(PGD(steps=10, targeted=True), 1.0, 0.1)
    assert ALP() == ALP(1.0) and Trades() == Trades(6.0) and Mart() == Mart(6.0)
    assert Gairat() == Gairat(lam=-1.0) and Adversarial().selection == PGD(steps=20)


def test_the_numbers_of_the_losses_where_nothing_else_is_said():
    c, a, rows = t64(CLEAN), t64(ATTACKED), range(N)
    eye = t64(np.eye(K)[Y])
    for ours, reference in (
        (module.alp_loss(a, c, eye), [alp(CLEAN[i], ATTACKED[i], Y[i], 1.0) for i in rows]),
        (module.trades_loss(c, a, LABELS), [trades(CLEAN[i], ATTACKED[i], Y[i], 6) for i in rows]),
        (module.mart_loss(c, a, LABELS), [mart(CLEAN[i], ATTACKED[i], Y[i], 6) for i in rows]),
    ):
        np.testing.assert_allclose(ours, reference, rtol=1e-10)
    m = torch.linspace(-1, 1, 5)
    torch.testing.assert_close(module.mail_weight(m), torch.sigmoid(10 * (m - 0.5)))
    torch.testing.assert_close(module.wmmr_weight(m), torch.exp(2 * m))
    kappa = torch.arange(11)
    torch.testing.assert_close(
        module.gairat_weight(kappa, 10), module.gairat_weight(kappa, 10, -1.0)
    )


def test_marts_factor_is_no_constant_where_nothing_else_is_said():
    gradients = []
    for how in ((), (6.0, "adversarial", False)):
        c = t64(CLEAN, grad=True)
        sum(module.mart_terms(c, t64(ATTACKED), LABELS, *how)).sum().backward()
        gradients.append(c.grad)
    torch.testing.assert_close(*gradients)


def test_every_wrong_class_can_be_aimed_at():
    e = Examples(None, torch.rand(200, 1, 1, K), torch.zeros(200).long(), Draws(0), classes=K)
    assert module.other_classes(e).unique().tolist() == [1, 2, 3, 4]


def test_an_attack_that_knows_no_target_is_not_targeted():
    with pytest.raises(BadInput, match="must be targeted"):
        TargetedMixup(Minus())


def test_no_label_is_smoother_than_that_of_the_attacks_end():
    "Where the attack was farther away halfway than at its end."
    x = torch.full((200, 1, 1, 1), 0.5)
    how = {"adversarial": x + 0.1, "halfway": x + 0.4, "classes": 4}
    e = Examples(None, x, torch.zeros(200, dtype=torch.long), Draws(0), **how)
    inputs, target = Regional(0.9, 0.5)(e)
    beyond = (inputs - x).flatten() > 0.101
    assert 0 < beyond.sum() < 200
    torch.testing.assert_close(target[beyond, 0], torch.full((int(beyond.sum()),), 0.5))


@pytest.mark.parametrize(
    ("how", "says"), [({"loss": None}, "with the batch$"), ({"mix": 1}, "with the batch, or None$")]
)
def test_only_the_loss_cannot_be_left_out(how, says):
    with pytest.raises(BadInput, match=says):
        Adversarial(**how)
