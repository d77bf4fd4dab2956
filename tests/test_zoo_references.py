"""Every row of the zoo, whole: the loss of a batch and its gradient in all weights, against the
publication's formulas written a second time, one sample at a time where they are per sample.

What is drawn (starts, ratios, partners, which images a triplet has) comes from the same draws; what
is made of it is written anew. The network computes in float64, so that the order of a sum decides
nothing.
"""

import copy
import dataclasses
import itertools
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn as nn
from torch.func import functional_call

from thesis_repro import pieces, zoo_losses
from thesis_repro.adversarial import Adversarial, Mail, Mart, Trades
from thesis_repro.attacks import PGD
from thesis_repro.draws import Draws
from thesis_repro.zoo import ZOO

N, K, EPS = 24, 5, 8 / 255
IMAGES = SimpleNamespace(y_train=torch.zeros(N), classes=K)


class Small(nn.Module):
    "A convolution, a mean over the picture, a linear layer: all that a row looks into."

    def __init__(self):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1)
        self.last = nn.Linear(6, K)

    def maps(self, x):
        return (6 * self.conv(x - 0.5)).tanh()

    def features(self, x):
        return self.maps(x).mean((2, 3))

    def forward(self, x):
        return self.last(self.pool(self.maps(x)).flatten(1))


@pytest.fixture
def net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        small = Small().double()
    with torch.no_grad():
        small.last.weight *= 20
    return small


@pytest.fixture
def batch(net):
    "Images, labels (some of them not the network's answer), the draws of a late step."
    g = torch.Generator().manual_seed(1)
    x = torch.rand(N, 3, 6, 6, generator=g, dtype=torch.float64)
    y = net(x).argmax(1)
    y[::4] = (y[::4] + 1) % K
    return x, y, Draws(3, 7, 5, progress=0.7, samples=torch.arange(N))


# The words that the formulas share


def logp(z):
    "Log-probabilities, one sample at a time."
    return torch.stack([row - row.exp().sum().log() for row in z])


def nll(z, y):
    return torch.stack([-row[label] for row, label in zip(logp(z), y, strict=True)])


def soft(z, target):
    return -(target * logp(z)).sum(1)


def kl(z, z_hat):
    return torch.stack(
        [(a.exp() * (a - b)).sum() for a, b in zip(logp(z), logp(z_hat), strict=True)]
    )


def others(row, label):
    "The numbers of a row but one."
    return torch.cat([row[:label], row[label + 1 :]])


def rival(row, label):
    return max((j for j in range(K) if j != label), key=lambda j: float(row[j]))


def rivals(z, y):
    return torch.tensor([rival(row, int(label)) for row, label in zip(z.detach(), y, strict=True)])


def one_hot(y):
    return torch.eye(K, dtype=torch.float64)[y]


def margin(p, y):
    "p of the nearest other class minus p of the true one."
    pairs = zip(p, y, strict=True)
    return torch.stack([others(row, label).max() - row[label] for row, label in pairs])


def mean_one(w):
    return w.detach() / w.detach().mean()


def started(x, d, start="uniform", eps=EPS):
    "Where an attack begins; `eps` may be one number per sample."
    eps = torch.as_tensor(eps, dtype=torch.float64).view(-1, 1, 1, 1)
    g = d.torch("attack")
    if start == "normal":
        noise = 0.001 * torch.randn(x.shape, generator=g, dtype=torch.float64)
    else:
        noise = eps * (2 * torch.rand(x.shape, generator=g, dtype=torch.float64) - 1)
    return boxed(x + (0 if start == "none" else noise), x, eps)


def boxed(z, x, eps):
    eps = torch.as_tensor(eps, dtype=torch.float64).view(-1, 1, 1, 1)
    return torch.minimum(torch.maximum(z, x - eps), x + eps).clamp(0, 1)


def slope(loss, z):
    z = z.detach().requires_grad_()
    return torch.autograd.grad(loss(z).sum(), z)[0]


def walk(loss, x, z, eps=EPS, step=2 / 255, steps=10):
    "All iterates of signed gradient ascent of `loss` from z."
    step = torch.as_tensor(step, dtype=torch.float64).view(-1, 1, 1, 1)
    found = [z]
    for _ in range(steps):
        z = boxed(z + step * slope(loss, z).sign(), x, eps)
        found.append(z)
    return found


def pgd(f, x, y, d, **how):
    "Madry's attack."
    start = how.pop("start", "uniform")
    eps = how.get("eps", EPS)
    return walk(lambda z: nll(f(z), y), x, started(x, d, start, eps), **how)[-1]


def pgd_kl(f, x, d):
    "TRADES's attack: away from the clean answer, which is a constant."
    clean = f(x).detach()
    return walk(lambda z: kl(clean, f(z)), x, started(x, d, "normal"))[-1]


def towards(f, x, aim, d, **how):
    "An attack that wants the class `aim`."
    return walk(lambda z: -nll(f(z), aim), x, started(x, d), **how)[-1]


def right(f, x, y):
    return f(x).argmax(1) == y


# The rows: (network, images, labels, draws, own networks) to the mean loss


def goodfellow(f, x, y, d, nets):
    fooled = boxed(x + EPS * slope(lambda z: nll(f(z), y), x).sign(), x, EPS)
    return 0.5 * nll(f(x), y).mean() + 0.5 * nll(f(fooled), y).mean()


def madry(f, x, y, d, nets):
    return nll(f(pgd(f, x, y, d)), y).mean()


def curriculum(f, x, y, d, nets):
    return nll(f(pgd(f, x, y, d, steps=1 + int(0.7 * 10))), y).mean()


def dynamic(f, x, y, d, nets):
    "Each sample alone: it goes on while FOSC is above c_t, and takes its first step in any case."
    c, z, final = 0.5 - 0.5 * (0.7 * 120) / 100, started(x, d), []
    for i in range(N):
        own, begun = z[i : i + 1], x[i : i + 1]
        for step in range(10):
            g = slope(lambda v, i=i: nll(f(v), y[i : i + 1]), own)
            fosc = EPS * g.abs().sum() - ((own - begun) * g).sum()
            if step and fosc <= c:
                break
            own = boxed(own + 2 / 255 * g.sign(), begun, EPS)
        final.append(own)
    return nll(f(torch.cat(final)), y).mean()


def friendly(f, x, y, d, nets):
    "Epoch 85 of 120: one step more after the first mistake; noise of 0.001 at every step."
    z, final = started(x, d), []
    shapes = {"dtype": torch.float64}
    noise = [
        0.001 * torch.randn(x.shape, generator=d.torch(f"noise {k}"), **shapes) for k in range(10)
    ]
    for i in range(N):
        own, begun, left = z[i : i + 1], x[i : i + 1], 1
        for step in range(10):
            if f(own).argmax() != y[i]:
                if not left:
                    break
                left -= 1
            g = slope(lambda v, i=i: nll(f(v), y[i : i + 1]), own)
            own = boxed(own + 2 / 255 * g.sign() + noise[step][i], begun, EPS)
        final.append(own)
    return nll(f(torch.cat(final)), y).mean()


def blended(images, target, lam, partner):
    lam = torch.as_tensor(lam, dtype=torch.float64)
    image = torch.stack([lam * images[i] + (1 - lam) * images[j] for i, j in enumerate(partner)])
    label = torch.stack([lam * target[i] + (1 - lam) * target[j] for i, j in enumerate(partner)])
    return image, label


def partners(d):
    return d.numpy("partner").permutation(N).tolist()


def interpolated(f, x, y, d, nets):
    lam, total = float(d.numpy("interpolation").beta(1.0, 1.0, 1)[0]), 0.0
    for images in (x, pgd(f, x, y, d)):
        z, target = blended(images, one_hot(y), lam, partners(d))
        total = total + 0.5 * soft(f(z), target).mean()
    return total


def m_tlat(f, x, y, d, nets):
    lam = float(d.numpy("interpolation").beta(1.0, 1.0, 1)[0])
    z, target = blended(x, one_hot(y), lam, partners(d))
    aim = (y + torch.as_tensor(d.numpy("target").integers(1, K, N))) % K
    return soft(f(towards(f, z, aim, d)), 0.9 * target + 0.1 * one_hot(aim)).mean()


def gif(f, x, y, d, nets):
    z, target = blended(pgd(f, x, y, d), one_hot(y), 0.5, partners(d))
    return soft(f(z), target).mean()


def smoothed(y, mass):
    rows = [
        [m if j == label else (1 - m) / (K - 1) for j in range(K)]
        for label, m in zip(y, mass, strict=True)
    ]
    return torch.tensor(rows, dtype=torch.float64)


def avmixup(f, x, y, d, nets):
    lam = torch.as_tensor(d.numpy("avmixup").beta(1.0, 1.0, N))
    vertex = (x + 2 * (pgd(f, x, y, d) - x)).clamp(0, 1)
    share = lam.view(-1, 1, 1, 1)
    return soft(f(share * x + (1 - share) * vertex), smoothed(y, lam + (1 - lam) * 0.1)).mean()


def regional(f, x, y, d, nets):
    iterates = walk(lambda z: nll(f(z), y), x, started(x, d))
    corners, total = (x, iterates[5], iterates[10]), 0.0
    shares = d.numpy("region").dirichlet((1.0, 1.0, 1.0), N)
    for i in range(N):
        point = sum(float(s) * corner[i] for s, corner in zip(shares[i], corners, strict=True))
        away = ((point - x[i]).norm() / (iterates[10][i] - x[i]).norm()).clamp(max=1)
        target = smoothed(y[i : i + 1], [1 + (0.55 - 1) * float(away)])
        total = total + soft(f(point[None]), target).sum() / N
    return total


def alp(f, x, y, d, nets):
    z, z_hat = f(x), f(pgd(f, x, y, d))
    return (nll(z_hat, y) + ((logp(z_hat).exp() - logp(z).exp()) ** 2).sum(1)).mean()


def trades(f, x, y, d, nets):
    z_hat = f(pgd_kl(f, x, d))
    return nll(f(x), y).mean() + 6 * kl(f(x), z_hat).mean()


def mart_terms(f, x, x_hat, y):
    "MART's two terms per sample."
    p, p_hat = logp(f(x)).exp(), logp(f(x_hat)).exp()
    boosted, pulled = [], []
    for i, label in enumerate(y):
        boosted.append(-p_hat[i, label].log() - (1 - others(p_hat[i], label).max()).log())
        divergence = (p[i] * (p[i] / p_hat[i]).log()).sum()
        pulled.append(6 * divergence * (1 - p[i, label]))
    return torch.stack(boosted), torch.stack(pulled)


def mart(f, x, y, d, nets):
    return sum(mart_terms(f, x, pgd(f, x, y, d, start="normal"), y)).mean()


def apart(a, b):
    return 1 - (a @ b).abs() / ((a @ a) * (b @ b)).sqrt()


def tla_terms(z, y, a, p, n):
    hinges = [(apart(a[i], p[i]) - apart(a[i], n[i]) + 0.03).clamp(min=0) for i in range(N)]
    sizes = [sum((v[i] @ v[i]).sqrt() for v in (a, p, n)) for i in range(N)]
    return nll(z, y) + 2 * torch.stack(hinges) + 0.001 * torch.stack(sizes)


def tla(f, x, y, d, nets):
    x_hat = pgd(f, x, y, d)
    a, clean, z = f.features(x_hat), f.features(x), f(x_hat)
    with torch.no_grad():  # which images: proved elsewhere
        p, n = zoo_losses.triplets(z, y, a.float(), clean.float(), d)
    return tla_terms(z, y, a, clean[p], clean[n]).mean()


def looked(maps):
    found = []
    for m in maps:
        total = sum(m).flatten()
        found.append((total - total.min()) / (total.max() - total.min()))
    return torch.stack(found)


def agkd(f, x, y, d, nets):
    x_hat = towards(f, x, rivals(f(x), y), d)
    n = zoo_losses.confused(f(x), y, d)  # which images: proved elsewhere
    back, clean = towards(f, x[n], y, d), looked(f.maps(x)).detach()
    drift = (looked(f.maps(x_hat)) - clean).abs().mean(1)
    drift = drift + (looked(f.maps(back)) - clean[n]).abs().mean(1)
    metric = tla_terms(f(x_hat), y, f.features(x_hat), f.features(x), f.features(back))
    return (metric + drift).mean()


def lbgat(f, x, y, d, nets):
    natural = nets["natural"](x)
    followed = ((f(pgd_kl(f, x, d)) - natural) ** 2).mean()
    return followed + nll(natural, y).mean()


def unsure(f, z, label):
    return logp(f(z[None]))[0, label].exp() <= 0.5


def mma(f, x, y, d, nets):
    last = nets["radii"].values.double().clamp(min=0.005)
    far = pgd(f, x, y, d, eps=last, step=last / 4)
    hinge, total = 12 / 255, 0.0
    for i in range(N):
        if unsure(f, x[i], y[i]):
            radius = 0.0
        else:
            low, high, radius = 0.0, 1.05 * hinge, float(last[i])
            for _ in range(10):
                moved = x[i] + radius * (far[i] - x[i]) / last[i]
                low, high = (low, radius) if unsure(f, moved.clamp(0, 1), y[i]) else (radius, high)
                radius = (low + high) / 2
        moved = (x[i] + radius * (far[i] - x[i]) / last[i]).clamp(0, 1)
        if radius < hinge:
            total = total + 2 / 3 * nll(f(moved[None]), y[i : i + 1]).sum() / N
    return total + 1 / 3 * nll(f(x), y).mean()


def in_own_ball(f, x, y, d, eps):
    return pgd(f, x, y, d, eps=eps, step=(eps / 5).clamp(min=2 / 255))


def iaat(f, x, y, d, nets):
    own, gamma = nets["radii"].values.double(), 1.9 / 255
    same, wide = (right(f, in_own_ball(f, x, y, d, r), y) for r in (own, own + gamma))
    clean, radii = right(f, x, y), []
    for i in range(N):
        best = own[i] + gamma if wide[i] else own[i] if same[i] else own[i] - gamma
        best = max(float(best), 0.0) if clean[i] else 0.0
        radii.append(0.1 * best + 0.9 * float(own[i]))
    radii = torch.tensor(radii, dtype=torch.float64)
    return nll(f(in_own_ball(f, x, y, d, radii)), y).mean()


def customized(f, x, y, d, nets):
    own = nets["radii"].values.double()
    wider = (own + 0.005).clamp(max=EPS)
    x_hat = pgd(f, x, y, d, eps=wider)
    radii = torch.where(right(f, x_hat, y), wider, own)
    drawn = torch.empty(N, K).exponential_(generator=d.torch("label")).double()
    rest = drawn / drawn.sum(1, keepdim=True)
    kept = (1 - 10 * radii)[:, None]
    return soft(f(x_hat), kept * one_hot(y) + (1 - kept) * rest).mean()


def pc(f, x, y, d, nets):
    x_hat, w = pgd(f, x, y, d), nets["centres"].weight
    h, total = f.features(x_hat), nll(f(x_hat), y).mean()
    for i, label in enumerate(y):
        rest = [j for j in range(K) if j != label]
        pushed = sum((h[i] - w[j]).norm() + (w[label] - w[j]).norm() for j in rest)
        total = total + 0.1 * ((h[i] - w[label]).norm() - pushed / (K - 1)) / N
    return total


def pc_lc(f, x, y, d, nets):
    z, total = f(pgd(f, x, y, d)), 0.0
    p = logp(z).exp()
    for i, label in enumerate(y):
        for j in (j for j in range(K) if j != label):
            total = total + (p[i, j] + 0.995 - p[i, label]).clamp(min=0) / N
            total = total + 0.05 * (z[i, label] - z[i, j] - 10).clamp(min=0) / N
    return total


def complement(p, y):
    rest = [others(row, label) / (1 - row[label]) for row, label in zip(p, y, strict=True)]
    return torch.stack([-(q * q.log()).sum() for q in rest])


def cot(f, x, y, d, nets):
    return (nll(f(x), y) - complement(logp(f(x)).exp(), y) / (K - 1)).mean()


def gce(f, x, y, d, nets):
    p = logp(f(pgd(f, x, y, d))).exp()
    true = torch.stack([row[label] for row, label in zip(p, y, strict=True)])
    return -(true ** (1 / 3) * complement(p, y) / math.log(K - 1)).mean()


def shifted(f, v):
    weights = {k: p + v[k] if k in v else p for k, p in f.named_parameters()}
    return lambda x: functional_call(f, weights, (x,))


def uphill(f, v, loss):
    "The gradients in the two matrices, at the weights moved by v."
    twin = copy.deepcopy(f)
    with torch.no_grad():
        for k, p in twin.named_parameters():
            p += v.get(k, 0.0)
    names = ("conv.weight", "last.weight")
    found = torch.autograd.grad(loss(twin), [twin.get_parameter(k) for k in names])
    return dict(zip(names, found, strict=True))


def awp(f, x, y, d, nets):
    x_hat = pgd(f, x, y, d)
    g = uphill(f, {}, lambda twin: nll(twin(x_hat), y).mean())
    v = {k: 0.01 * f.get_parameter(k).detach().norm() * u / u.norm() for k, u in g.items()}
    return nll(shifted(f, v)(x_hat), y).mean()


def rwp(f, x, y, d, nets):
    x_hat, v, total = pgd(f, x, y, d), {}, None

    def low(twin):
        losses = nll(twin(x_hat), y)
        return sum(loss for loss in losses if loss <= 1.7)

    def size(parts):
        return sum((p.detach() ** 2).sum() for p in parts).sqrt()

    whole = size([f.conv.weight, f.last.weight])
    for _ in range(10):
        g = uphill(f, v, low)
        total = g if total is None else {k: total[k] + g[k] for k in g}
        v = {k: 0.01 * whole * u / size(total.values()) for k, u in total.items()}
    return nll(shifted(f, v)(x_hat), y).mean()


def mlcat(f, x, y, d, nets):
    losses = nll(f(pgd(f, x, y, d)), y)
    return sum(loss if loss > 1.5 else 1.5 + 0 * loss for loss in losses) / N


def gairat(f, x, y, d, nets):
    iterates, kappa = walk(lambda z: nll(f(z), y), x, started(x, d)), torch.zeros(N)
    for i in range(N):
        for z in iterates[:10]:
            if f(z[i : i + 1]).argmax() != y[i]:
                break
            kappa[i] += 1
    assert len(kappa.unique()) > 2
    w = mean_one((1 + torch.tanh(-1 + 5 * (1 - 2 * kappa.double() / 10))) / 2)
    return (w * nll(f(iterates[-1]), y)).mean()


def lrat(f, x, y, d, nets):
    def cw(z):
        return torch.stack(
            [others(row, label).max() - row[label] for row, label in zip(f(z), y, strict=True)]
        )

    z = [f(pgd(f, x, y, d)), f(walk(cw, x, started(x, d))[-1])]
    total = 0.0
    for i, label in enumerate(y):
        margins = torch.stack([others(v[i], label).max() - v[i, label] for v in z]).detach()
        share = margins.exp() / margins.exp().sum()
        total = (
            total
            + sum(s * nll(v[i : i + 1], y[i : i + 1]).sum() for s, v in zip(share, z, strict=True))
            / N
        )
    return total


def weighed(w, start="uniform"):
    "A cross entropy with weights `w(p, y)` of mean one, constants."

    def row(f, x, y, d, nets):
        z = f(pgd(f, x, y, d, start=start))
        return (mean_one(w(logp(z).exp(), y)) * nll(z, y)).mean()

    return row


def mail_weight(p, y):
    return 1 / (1 + torch.exp(-10 * (margin(p, y) - 0.5)))


def bilaw(f, x, y, d, nets):
    z = f(pgd(f, x, y, d))
    p = logp(z.detach()).exp()
    sides = torch.stack(
        [
            (others(row, label) - row[label]).sort(descending=True).values
            for row, label in zip(p, y, strict=True)
        ]
    )
    return (mean_one(nets["weigher"](sides).squeeze(1)) * nll(z, y)).mean()


def uat(f, x, y, d, nets):
    z_hat, known = f(pgd_kl(f, x, d)), nets["labels"].known
    assert known.sum() == N // 2
    return 5 * kl(f(x).detach(), z_hat).mean() + 2 * nll(z_hat, y)[known].sum() / N


def rst(f, x, y, d, nets):
    known, guess = nets["labels"].known, nets["teacher"](x)
    told = torch.where(known, y, guess.argmax(1))
    z_hat = f(pgd_kl(f, x, d))
    taught = 2 * nll(guess, y)[known].sum() / N
    return nll(f(x), told).mean() + 6 * kl(f(x), z_hat).mean() + taught


def fast(f, x, y, d, nets):
    return nll(f(pgd(f, x, y, d, step=10 / 255, steps=1)), y).mean()


def bat(f, x, y, d, nets):
    clean = f(x).detach()
    x_hat, v = towards(f, x, rivals(clean, y), d, step=EPS, steps=1), -logp(clean)
    target = []
    for row, label in zip(v, y, strict=True):
        rest = others(row, label) - others(row, label).min() + 0.01
        shares = (0.5 * rest / rest.sum()).tolist()
        shares.insert(int(label), 0.5)
        target.append(shares)
    return soft(f(x_hat), torch.tensor(target, dtype=torch.float64)).mean()


ROWS = {
    "Goodfellow AT": goodfellow,
    "Madry AT": madry,
    "CAT (curriculum)": curriculum,
    "DAT": dynamic,
    "FAT": friendly,
    "IAT": interpolated,
    "M-TLAT": m_tlat,
    "GIF": gif,
    "AVmixup": avmixup,
    "RAT": regional,
    "ALP": alp,
    "TRADES": trades,
    "MART": mart,
    "TLA": tla,
    "AGKD-BML": agkd,
    "LBGAT": lbgat,
    "MMA": mma,
    "IAAT": iaat,
    "CAT (customized)": customized,
    "PC loss": pc,
    "PC-LC": pc_lc,
    "COT": cot,
    "GCE": gce,
    "AWP": awp,
    "RWP": rwp,
    "MLCAT": mlcat,
    "GAIRAT": gairat,
    "LRAT": lrat,
    "EWAT": weighed(lambda p, y: -(p * p.log()).sum(1)),
    "MAIL": weighed(mail_weight, "normal"),
    "WMMR": weighed(lambda p, y: torch.exp(2 * margin(p, y))),
    "BiLAW": bilaw,
    "UAT": uat,
    "RST": rst,
    "Fast AT": fast,
    "BAT": bat,
}


def own_networks(method, net):
    "The networks and memories of a method, in float64; radii as they are some visits later."
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        nets = nn.ModuleDict(method.networks(net, IMAGES)).double()
    if "radii" in nets:
        nets["radii"].values = torch.linspace(0, 12 / 255, N)[
            torch.randperm(N, generator=torch.Generator().manual_seed(0))
        ]
    return nets


def agree(ours, theirs, *modules):
    "The same loss, and the same gradient in every weight that learns from it."
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    learned = [p for m in modules for p in m.parameters()]
    gradients = [torch.autograd.grad(v, learned, allow_unused=True) for v in (ours, theirs)]
    largest = max(float(g.abs().max()) for g in gradients[1] if g is not None)
    assert largest > 1e-3
    for a, b in zip(*gradients, strict=True):
        a, b = (torch.zeros(1) if g is None else g for g in (a, b))
        torch.testing.assert_close(
            *torch.broadcast_tensors(a.double(), b.double()), rtol=1e-4, atol=1e-5 * largest
        )


def test_every_row_has_its_reference():
    assert set(ROWS) | {"Free AT"} == set(ZOO)  # Free AT: test_free_at_is_the_published_loop


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_the_published_algorithm(name, net, batch):
    method = ZOO[name].method
    nets = own_networks(method, net)
    x, y, d = batch
    theirs = ROWS[name](net, x, y, d, copy.copy(nets))
    if "radii" in nets:  # the reference reads the memory, ours changes it
        before = nets["radii"].values.clone()
        theirs = ROWS[name](net, x, y, d, nets)
        assert torch.equal(before, nets["radii"].values)
    agree(method(net, x, y, d, nets), theirs, net, *nets.values())


def value(name, net, batch):
    "The loss of a row's reference."
    x, y, d = batch
    return ROWS[name](net, x, y, d, own_networks(ZOO[name].method, net)).item()


def test_this_batch_tells_the_rows_apart(net, batch):
    "No two rows have the same loss here: a row could not pass with another's reference."
    found = sorted(value(name, net, batch) for name in ROWS)
    assert min(b - a for a, b in itertools.pairwise(found)) > 1e-6


SHARES = ("fraction", "turns", "warm_up", "after")  # of a run: see where the rows begin, below
INERT = ("selection", "optimiser", "hidden", "ahead", "restarts", "logit_scale", "fill")


def variants(part):
    "The same piece with one of its numbers, or of the pieces in it, another: path, piece."
    for f in dataclasses.fields(part):
        number = getattr(part, f.name)
        if f.name in (*SHARES, *INERT):
            continue
        if pieces.is_piece(number):
            for path, other in variants(number):
                yield f"{f.name}.{path}", dataclasses.replace(part, **{f.name: other})
        elif f.name == "step" and number is None:
            yield "step", dataclasses.replace(part, step=1.2 * part.stride)
        elif isinstance(number, (int, float)) and not isinstance(number, bool):
            other = number * 0.8 if isinstance(number, float) else max(number // 2, 3 - number)
            yield f.name, dataclasses.replace(part, **{f.name: other})


@pytest.mark.parametrize("name", ROWS)
def test_every_number_of_a_row_counts(name, net, batch):
    "With any constant a little different, the row is another than its reference."
    x, y, d = batch
    expected, method, felt = value(name, net, batch), ZOO[name].method, {}
    for path, other in variants(method):
        ours = other(net, x, y, d, own_networks(other, net)).item()
        felt[path] = ours != pytest.approx(expected, rel=1e-6)
    assert all(felt.values()), felt


BEGINNINGS = {"GAIRAT": 59 / 120, "MAIL": 75 / 120, "IAAT": 10 / 110, "FAT": 50 / 120}


@pytest.mark.parametrize(("name", "share"), [*BEGINNINGS.items(), ("FAT", 90 / 120)])
def test_rows_begin_where_the_code_does(name, share, net, batch):
    "A step before that epoch, and the first of it, learn by different losses."
    x, y, d = batch
    method, losses = ZOO[name].method, []
    for progress in (share - 2e-3, share - 1e-6, share, share + 2e-3):
        draws = dataclasses.replace(d, progress=progress)
        losses.append(method(net, x, y, draws, own_networks(method, net)).item())
    assert losses[0] == losses[1] != losses[2] == losses[3]


def test_a_weight_touches_the_term_that_is_published(net, batch):
    "MAIL-TRADES weighs the divergence alone, MAIL-MART the boosted cross entropy alone."
    x, y, d = batch
    x_hat = pgd_kl(net, x, d)
    w = mean_one(mail_weight(logp(net(x_hat)).exp(), y))
    expected = nll(net(x), y).mean() + 6 * (w * kl(net(x), net(x_hat))).mean()
    method = Adversarial(PGD(loss="kl", start="normal"), loss=Trades(), weight=Mail())
    agree(method(net, x, y, d), expected, net)
    x_hat = pgd(net, x, y, d, start="normal")
    w = mean_one(mail_weight(logp(net(x_hat)).exp(), y))
    boosted, pulled = mart_terms(net, x, x_hat, y)
    method = Adversarial(PGD(start="normal"), loss=Mart(), weight=Mail())
    agree(method(net, x, y, d), (w * boosted + pulled).mean(), net)
