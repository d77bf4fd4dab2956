"Measurements of generated images: against independent references, and what they promise."

import dataclasses
import gc
import itertools
import math
import warnings
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn as nn
import torch.nn.functional as F

from thesis_repro import gan_blocks, quality, settings
from thesis_repro.extractors import Extractor, Inception, Looking, Own, Prepared
from thesis_repro.files import BadInput
from thesis_repro.gan_networks import AtInput, DcganCritic, DcganGenerator
from thesis_repro.gan_progressive import StyleGenerator
from thesis_repro.gans import Gan
from thesis_repro.measures import Planned, ensure_measured
from thesis_repro.mixup import Plain
from thesis_repro.moments import Moments, frechet_distance
from thesis_repro.pieces import piece, specification
from thesis_repro.quality import AskedFor, ClassScore, Modes, PathLength, Quality
from thesis_repro.recipes import Adam, Classify, Phase
from thesis_repro.runs import Named, Run
from thesis_repro.store import Store
from thesis_repro.training import Length

NEEDS = 'needs the reference: pip install "thesis-repro[metrics]"'


def reference(name: str):
    return pytest.importorskip(name, reason=NEEDS)


def clouds(n=400, m=300, d=16, seed=0, dtype=torch.float64):
    "Two clouds of features that are no normal distributions."
    draw = torch.Generator().manual_seed(seed)
    a = torch.randn(n, d, generator=draw, dtype=dtype) @ torch.rand(
        d, d, generator=draw, dtype=dtype
    )
    b = torch.randn(m, d, generator=draw, dtype=dtype).exp() @ torch.rand(d, d, generator=draw).to(
        a
    )
    return a.relu(), b / 2


def draw_logits(n=500, k=10, seed=0, dtype=torch.float64):
    return 3 * torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def close(a, b, rel):
    assert math.isclose(a, b, rel_tol=rel), (a, b)


# the numbers, against other people's code


@pytest.mark.parametrize("dtype, rel", [(torch.float64, 1e-7), (torch.float32, 1e-5)])
def test_fd_is_torch_fidelitys(dtype, rel):
    theirs = reference("torch_fidelity.metric_fid")
    a, b = clouds(dtype=dtype)
    stats = [theirs.fid_features_to_statistics(x.double()) for x in (a, b)]
    expected = theirs.fid_statistics_to_metric(*stats, False)["frechet_inception_distance"]
    assert expected > 1
    ours = frechet_distance(*(Moments().add(x[:150]).add(x[150:]) for x in (a, b)))
    close(ours, expected, rel)


class Features(nn.Module):
    "Mean grey of squares, as torchmetrics wants its networks."

    num_features = 12

    def forward(self, x):
        return F.avg_pool2d(x.double(), 4).flatten(1) / 25


def test_fd_is_torchmetrics():
    theirs = reference("torchmetrics.image.fid")
    draw = torch.Generator().manual_seed(0)
    real = torch.randint(0, 256, (200, 3, 8, 8), generator=draw, dtype=torch.uint8)
    fake = (real.flip(0) // 2 + 40).roll(1, 3)
    metric = theirs.FrechetInceptionDistance(feature=Features(), input_img_size=(3, 8, 8))
    metric.set_dtype(torch.float64)
    for part in real.split(64):
        metric.update(part, real=True)
    for part in fake.split(64):
        metric.update(part, real=False)
    net = Looking(nn.Identity(), Features(), nn.Linear(12, 4).double())
    ours = [quality.cloud_of(net, x.split(50), groups=3).moments for x in (real, fake)]
    close(frechet_distance(*ours), metric.compute().item(), 1e-6)


@pytest.mark.parametrize("dtype, rel", [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_kd_is_torch_fidelitys_and_torchmetrics(dtype, rel):
    theirs, others = reference("torch_fidelity.metric_kid"), reference("torchmetrics.image.kid")
    a, b = clouds(300, 300, dtype=dtype)
    how = {"kid_subsets": 1, "kid_subset_size": 300, "verbose": False}
    found = theirs.kid_features_to_metric(a.double(), b.double(), **how)
    ours = quality.kernel_distance(a, b)
    close(ours, found["kernel_inception_distance_mean"], rel)
    close(ours, others.poly_mmd(a.double(), b.double()).item(), rel)
    assert np.allclose(quality.kernel_distances(a, b, 3, 1000), ours)  # no smaller subsets


def test_kd_of_subsets_scatters_around_kd_of_all():
    a, b = clouds(500, 400)
    found = quality.kernel_distances(a, b, subsets=100, size=100)
    whole = quality.kernel_distance(a, b)
    assert found.std() > 0 and abs(found.mean() - whole) < 4 * found.std() / 10
    assert np.array_equal(found, quality.kernel_distances(a, b, subsets=100, size=100))


def test_kd_of_unequal_numbers_is_unbiased():
    draw = torch.Generator().manual_seed(0)
    found = []
    for _ in range(400):
        a, b = (torch.randn(n, 3, generator=draw, dtype=torch.float64) for n in (6, 9))
        found.append(quality.kernel_distance(a, b))
    assert abs(np.mean(found)) < 4 * np.std(found) / 20


@pytest.mark.parametrize("dtype, rel", [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_is_is_torch_fidelitys(dtype, rel):
    theirs = reference("torch_fidelity.metric_isc")
    logits = draw_logits(dtype=dtype)
    for splits in (1, 10):
        found = theirs.isc_features_to_metric(logits, splits, shuffle=False)
        values = [ClassScore().add(part.softmax(1)).value for part in logits.split(500 // splits)]
        close(np.mean(values), found["inception_score_mean"], rel)
        assert math.isclose(np.std(values), found["inception_score_std"], rel_tol=rel, abs_tol=rel)
    joined = ClassScore()
    for part in logits.split(70):
        joined.join(ClassScore().add(part.softmax(1)))
    close(joined.value, ClassScore().add(logits.softmax(1)).value, 1e-9)


def test_is_is_torchmetrics():
    theirs = reference("torchmetrics.image.inception")
    weights = draw_logits(12, 10)

    class Logits(Features):
        def forward(self, x):
            return (super().forward(x) - 5.1) @ weights

    metric = theirs.InceptionScore(feature=Logits(), splits=1)
    x = torch.randint(0, 256, (100, 3, 8, 8), dtype=torch.uint8)
    metric.update(x)
    ours = ClassScore().add(Logits()(x).softmax(1)).value
    assert ours > 1.01
    close(ours, metric.compute()[0].item(), 1e-6)


def test_a_class_without_any_probability_does_no_harm():
    p = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    close(ClassScore().add(p).value, 2, 1e-12)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_precision_and_recall_are_torch_fidelitys(k):
    theirs = reference("torch_fidelity.metric_prc")
    made, real = clouds(350, 420, d=4)
    how = {"prc_neighborhood": k, "verbose": False}
    found = theirs.prc_features_to_metric(made, real, **how)
    ours = quality.precision_recall(made, real, k)
    assert 0.05 < found["precision"] < 0.95 and 0.05 < found["recall"] < 0.95
    assert abs(ours[0] - found["precision"]) < 1.5 / 350  # one may lie on the edge of a ball
    assert abs(ours[1] - found["recall"]) < 1.5 / 420


def test_slerp_is_torchmetrics():
    theirs = reference("torchmetrics.functional.image.perceptual_path_length")
    a, b = ends(50)
    for t in (0.0, 1e-4, 0.3, 1.0):
        expected = theirs._interpolate(a, b, t, "slerp_any")
        assert torch.allclose(quality.slerp(a, b, torch.full((50, 1), t).double()), expected)
    assert quality.slerp(a, a, torch.full((50, 1), 0.5).double()).isfinite().all()


def ends(n):
    "Two latent vectors for each of n paths."
    draw = torch.Generator().manual_seed(5)
    return [torch.randn(n, 9, generator=draw, dtype=torch.float64) for _ in range(2)]


class Bent(nn.Module):
    "A smooth generator of images of 12 numbers in [-1, 1] from latent vectors of 9."

    latent, num_classes = 9, 0

    def __init__(self):
        super().__init__()
        self.weight = draw_logits(9, 12, seed=3) / 9

    def forward(self, z, c=None):
        return torch.tanh(z @ self.weight)

    def style(self, z, c):
        return z**3

    image = forward


class Flat(nn.Module):
    "Features are the numbers from 0 to 255 themselves."

    def forward(self, x):
        return x, None


@pytest.mark.parametrize("how", ["slerp_any", "lerp"])
def test_path_lengths_are_torchmetrics_at_the_beginning_of_a_path(how):
    theirs = reference("torchmetrics.functional.image.perceptual_path_length")
    pair, net = ends(40), Bent()
    taken = iter(pair)

    class Theirs(nn.Module):
        def sample(self, n):
            return next(taken)

        def forward(self, z):
            return (net(z) + 1) * 127.5

    class Similarity(nn.Module):
        def forward(self, a, b):
            a, b = (F.normalize((x + 1) * 127.5) for x in (a, b))
            return (a - b).square().sum(1)

    expected = theirs.perceptual_path_length(
        Theirs(), 40, interpolation_method=how, epsilon=1e-3, resize=None, sim_net=Similarity()
    )[2]
    if how == "lerp":
        net.style = lambda z, c: z
    space = "w" if how == "lerp" else "z"
    start = torch.zeros(40, 1, dtype=torch.float64)
    ours = quality.path_lengths(net, Flat(), None, pair, start, space, 1e-3)
    assert len(expected) >= 38  # both ends of the distribution are cut off
    assert all((ours - v).abs().min() < 1e-5 * v for v in expected)


def test_path_length_is_the_squared_speed_at_t():
    "Against the derivative along the path, from autograd."
    pair, net, c = ends(30), Bent(), None
    t = torch.rand(30, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for space in ("z", "w"):

        def look(t, space=space):
            z = pair if space == "z" else [net.style(e, c) for e in pair]
            z = quality.slerp(*z, t) if space == "z" else torch.lerp(*z, t)
            return F.normalize((net(z) + 1) * 127.5)

        _, speed = torch.func.jvp(look, (t,), (torch.ones_like(t),))
        ours = quality.path_lengths(net, Flat(), c, pair, t, space, 1e-5)
        assert torch.allclose(ours, speed.square().sum(1), rtol=1e-3)


# what they promise


def test_zero_bias_and_the_extremes_of_the_shares():
    a, b = clouds(200, 200)
    m = Moments().add(a)
    assert abs(frechet_distance(m, m)) < 1e-9 * m.covariance.trace()
    few, many = (
        np.mean([frechet_distance(m, Moments().add(torch.randn(n, 16))) for _ in range(10)])
        for n in (20, 200)
    )
    assert few > many
    assert quality.precision_recall(a, a) == (1, 1)
    assert quality.precision_recall(a, a + 1000) == (0, 0)
    with pytest.raises(BadInput, match="precision and recall of 3 images"):
        quality.precision_recall(a[:3], b)


def test_an_interval_is_as_wide_as_numbers_scatter():
    draw = torch.Generator().manual_seed(0)
    real = Moments().add(torch.randn(2000, 3, generator=draw))

    def groups():
        return [Moments().add(torch.randn(40, 3, generator=draw) + 0.4) for _ in range(10)]

    samples = [groups() for _ in range(60)]
    scatter = np.std([frechet_distance(real, quality.joined(g)) for g in samples])
    widths = [quality.spread(real, g, 50) for g in samples]
    assert 0.8 < np.mean(widths) / scatter < 1.25
    value, low, high = quality.interval(real, samples[0])
    assert low < value < high and math.isclose(value - low, high - value)
    empty = [*samples[0], Moments(), Moments()]  # groups that got no images change nothing
    assert quality.interval(real, empty) == (value, low, high)
    with pytest.raises(BadInput, match="from 1 group of images: at least two"):
        quality.spread(real, [samples[0][0], Moments()])


class Counted(nn.Module):
    "Notes how many batches of features are alive at once."

    def __init__(self):
        super().__init__()
        self.alive, self.most = [], 0

    def forward(self, x):
        memory = F.avg_pool2d(x.float(), 4).flatten(1).numpy().copy()
        gc.collect()
        self.alive = [r for r in self.alive if r() is not None] + [weakref.ref(memory)]
        self.most = max(self.most, len(self.alive))
        return torch.from_numpy(memory)  # whatever shares the memory keeps it alive


def test_features_are_forgotten_unless_they_are_kept():
    x = torch.randint(0, 256, (300, 3, 8, 8), dtype=torch.uint8)
    for keep, most in ((0, 2), (300, 6)):
        trunk = Counted()
        cloud = quality.cloud_of(
            Looking(nn.Identity(), trunk, nn.Linear(12, 4)), x.split(50), 3, keep
        )
        assert trunk.most <= most and cloud.n == 300 and len(cloud.kept) == keep
    assert trunk.most > 2  # the test can see features that stay
    cloud = quality.cloud_of(Looking(nn.Identity(), trunk, nn.Linear(12, 4)), x.split(50), 3, 70)
    assert torch.equal(cloud.kept, F.avg_pool2d(x[:70].float(), 4).flatten(1))


def test_modes_are_classes_with_a_tenth_of_their_share():
    answers = torch.cat([torch.zeros(900), torch.ones(90), torch.full((10,), 2.0)]).long()
    found = quality.modes(answers, 4)
    assert found["found"] == 2
    expected = 0.9 * math.log(3.6) + 0.09 * math.log(0.36) + 0.01 * math.log(0.04)
    close(found["KL"], expected, 1e-12)
    assert quality.modes(torch.arange(40) % 4, 4)["KL"] == 0


# runs


DATA = Named("plain10", 200, 120, 40)


@piece
class Squares(Extractor):
    "Mean grey of squares; notes how many images it saw."

    shift: float = 0.0
    title = "squares"

    def build(self, store=None):
        torch.manual_seed(0)
        net = Looking(Prepared((16, 16), self.shift, 255.0, 1), SQUARES, nn.Linear(16, 10))
        return net


class Seen(nn.Module):
    def __init__(self):
        super().__init__()
        self.images = 0

    def forward(self, x):
        self.images += len(x)
        return F.avg_pool2d(x, 4).flatten(1)


SQUARES = Seen()


@piece
class Recogniser:
    "Finds attributes: one convolution that learns a little."

    def prepared(self, images):
        return images

    def networks(self, images, seed):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            body = [nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(128, images.classes)]
            return nn.ModuleDict({"model": nn.Sequential(*body)})

    def phases(self, nets):
        return (Phase("model", ("model",), Adam(1e-2), self.loss),)

    def loss(self, nets, batch):
        return F.binary_cross_entropy_with_logits(nets["model"](batch.x), batch.y.float())

    def judge(self, nets, images):
        return {"score": 0.0}

    def results(self, nets, images):
        return {}

    def scaled(self, preset):
        return self


def small(condition=None, **how) -> Gan:
    condition = condition or AtInput()
    return Gan(DcganGenerator(8, (16, 8), condition=condition), DcganCritic((8, 16)), **how)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A store with a GAN, a GAN with styles, one of glyphs, a classifier, a recogniser."
    store = Store(
        dataclasses.replace(settings.load("smoke", chapter=5), jobs=1),
        tmp_path_factory.mktemp("quality"),
    )
    glyphs = Named("glyphs", 200, 150, 40, attributes=("Red", "Framed", "Large"))
    runs = {
        "gan": Run(DATA, small(), Length(1, 50)),
        "style": Run(DATA, Gan(StyleGenerator(8, (8, 8), 2), DcganCritic((8, 16))), Length(1, 100)),
        "faces": Run(glyphs, small(), Length(1, 100)),
        "classifier": Run(DATA, Classify("resnet18", Plain(), width=0.0625), Length(1, 50)),
        "recogniser": Run(glyphs, Recogniser(), Length(3, 50)),
    }
    store.ensure(runs.values())
    return store, runs


def test_all_numbers_of_an_extractor_are_measured_once(trained):
    store, runs = trained
    run, first = runs["gan"], Quality(Squares(), count=100, keep=100)
    others = [dataclasses.replace(first, show=show) for show in quality.NUMBERS]
    assert {*others} == {first} and "show" not in specification(others[-1])
    before = SQUARES.images
    ensure_measured(store, [(run, m) for m in others])
    assert SQUARES.images - before == 200
    values = {m.title: m.value(store, run) for m in others}
    assert [*values] == [f"{n}-squares" for n in quality.NUMBERS]
    assert all(map(math.isfinite, values.values()))
    assert [m.unit for m in others] == ["", "", "", "", "%", "%"]
    found = first.kept(store, run)
    low, high = found["FD interval"]
    assert first.error(store, run) * 2 * 1.959964 == pytest.approx(high - low)
    assert math.isnan(others[1].error(store, run))
    assert low < found["FD"] < high and found["n"] == found["real n"] == 100
    net, x = Squares().build(), run.data.images().x_test[quality.chosen(120, 100)]
    made = torch.cat([x for x, _ in quality.generated(store, run, 100, batch=10)])
    direct = [Moments().add(net(images)[0]) for images in (x, made)]
    close(found["FD"], frechet_distance(*direct), 1e-6)
    close(found["real IS"], ClassScore().add(net(x)[1]).value, 1e-5)
    assert quality.Quality(Inception("TF")).title == "FID (TF)"


def test_the_real_cloud_is_made_once_and_again_if_damaged(trained):
    store, _ = trained
    how = (DATA, Squares(0.5), 90)
    before = SQUARES.images
    first = quality.real_cloud(store, *how)
    assert SQUARES.images - before == 90
    again = quality.real_cloud(store, *how)
    assert SQUARES.images - before == 90 and again.n == 90
    assert torch.equal(first.moments.covariance, again.moments.covariance)
    assert again.scores[0].value == first.scores[0].value
    quality.real_cloud(store, *how, keep=20)  # another question
    quality.real_cloud(store, *how, split="train")
    quality.real_cloud(store, DATA, Squares(0.25), 90)
    assert SQUARES.images - before == 4 * 90
    newest = max((store.folder / "clouds").glob("*.npz"), key=lambda f: f.stat().st_mtime_ns)
    content = newest.read_bytes()
    for damaged in (content[:100], content[:-300], b"", content[:400] + b"x" + content[401:]):
        newest.write_bytes(damaged)
        with pytest.warns(UserWarning, match="damaged: it is made again"):
            quality.real_cloud(store, DATA, Squares(0.25), 90)
        assert newest.read_bytes() == content


def test_an_extractor_of_ones_own_is_known_by_its_weights(trained):
    store, runs = trained
    run, own = runs["gan"], Own(runs["classifier"])
    m = Quality(own, count=100, resamples=0)
    assert m.needs(run) == (runs["classifier"],) and m.title == "FD-resnet18 of plain10"
    m.make(store, run)
    assert not m.absent(store, run) and "FD interval" not in m.kept(store, run)
    file = m.file(store, run)
    other = dataclasses.replace(runs["classifier"], seed=1)
    assert Quality(Own(other), count=100).absent(store, run)
    record = store.record(runs["classifier"])
    changed = dataclasses.replace(record, weights={"last": "0" * 12, "best": "0" * 12})
    with pytest.MonkeyPatch.context() as patch:
        real = store.record
        patch.setattr(store, "record", lambda r: changed if r == runs["classifier"] else real(r))
        assert m.file(store, run) != file and m.absent(store, run)
        with pytest.raises(BadInput, match="not the weights of its record"):
            quality.real_cloud(store, DATA, own, 100)  # the kept cloud was seen by others
    names = m.code()
    assert {"quality", "extractors", "moments"} <= names.keys() and "mixup" not in names


def test_what_cannot_be_measured_is_said_in_a_line(trained):
    store, runs = trained
    gan, faces = runs["gan"], runs["faces"]
    cases = [
        (
            Quality(Squares(), count=15),
            gan,
            "15 images with 16 features: FD needs at least as many",
        ),
        (Quality(Squares(), count=100), runs["classifier"], "has no generator"),
        (PathLength(Squares(), 10, "w"), gan, r"has no W: PathLength\(space='z'\)"),
        (AskedFor(count=10), gan, "AskedFor needs a run that classifies its images"),
        (AskedFor(runs["recogniser"], 10), gan, "AskedFor needs a run that classifies its images"),
        (Modes(runs["recogniser"], 10), faces, "Modes needs a run that tells classes apart"),
    ]
    for m, run, message in cases:
        with pytest.raises(BadInput, match=message):
            m.make(store, run)
        assert m.absent(store, run)
    with pytest.raises(BadInput, match="Quality: show = KD: needs features: keep = 5000"):
        Quality(Squares(), show="KD")
    with pytest.raises(BadInput, match="one of z, w"):
        PathLength(Squares(), space="v")


def test_path_lengths_of_runs(trained):
    store, runs = trained
    own = Own(runs["classifier"])
    for space in ("z", "w"):
        m = PathLength(own, 60, space)
        found = m.make(store, runs["style"])
        assert found["n"] == 60 and m.value(store, runs["style"]) == found["PPL"] > 0
        # in float64 the step does not matter
        wider = PathLength(own, 60, space, epsilon=1e-6).make(store, runs["style"])
        close(wider["PPL"], found["PPL"], 0.05)


def test_asked_for_reads_glyphs_and_asks_a_recogniser(trained):
    store, runs = trained
    found = AskedFor(count=100).make(store, runs["faces"])
    assert [*found["attributes"]] == ["Red", "Framed"] and found["real"] > 97
    found = AskedFor(runs["recogniser"], 100).make(store, runs["faces"])
    assert [*found["attributes"]] == ["Red", "Framed", "Large"]  # what is exact stays exact
    images = runs["faces"].data.images()
    x, y = images.x_test, images.y_test
    judge = AskedFor(count=100)
    right = judge.shares(store, runs["faces"], x, y)["attributes"]
    wrong = judge.shares(store, runs["faces"], x, 1 - y)["attributes"]
    assert right["Red"]["mean"] > 97 and wrong["Red"]["mean"] < 3
    net = store.networks(runs["recogniser"])["model"]
    with torch.no_grad():
        direct = (net(x / 255) > 0)[:, 2].long()
    theirs = AskedFor(runs["recogniser"]).shares(store, runs["faces"], x, y)["attributes"]["Large"]
    assert theirs == quality.balanced(y[:, 2], direct)


def test_a_generator_that_does_not_listen_gets_half():
    draw = torch.Generator().manual_seed(0)
    wanted = (torch.rand(4000, generator=draw) < 0.1).long()
    blind = (torch.rand(4000, generator=draw) < 0.3).long()
    assert abs(quality.balanced(wanted, blind)["mean"] - 50) < 5
    assert math.isnan(quality.balanced(torch.zeros(5).long(), torch.zeros(5).long())["mean"])


def test_the_error_of_what_was_asked_for_is_that_of_images():
    "Against a bootstrap of whole images in which the attributes go wrong together."
    rng = np.random.default_rng(0)
    wanted = rng.random((400, 3)) < 0.3
    found = wanted ^ ((rng.random((400, 1)) < 0.2) | (rng.random((400, 3)) < 0.05))

    def mean(some):
        pairs = zip(torch.tensor(wanted[some]).T, torch.tensor(found[some]).T, strict=True)
        return np.mean([quality.balanced(w, f)["mean"] for w, f in pairs])

    again = [mean(rng.integers(0, 400, 400)) for _ in range(400)]
    error = quality.balanced_error(torch.tensor(wanted), torch.tensor(found))
    assert 0.9 < error / np.std(again) < 1.1  # the draws are fixed
    assert quality.balanced_error(torch.tensor(wanted), torch.tensor(wanted)) == 0


def test_measurements_know_their_errors(trained):
    store, runs = trained
    asked = AskedFor(count=100)
    found = asked.make(store, runs["faces"])
    assert asked.error(store, runs["faces"]) == found["error"]
    images = runs["faces"].data.images()
    mixed = asked.shares(store, runs["faces"], images.x_test, images.y_test.roll(1, 0))
    assert 0 < mixed["error"] < 20
    by_class = AskedFor(runs["classifier"], 90)
    p = by_class.make(store, runs["gan"])["right"] / 100
    error = by_class.error(store, runs["gan"])
    assert error == pytest.approx(100 * math.sqrt(p * (1 - p) / 90), abs=1e-6)
    assert math.isnan(AskedFor(count=99).error(store, runs["faces"]))  # not measured


@pytest.mark.parametrize("weights", ["torchvision", "TF"])
def test_fewer_images_than_an_extractor_has_features_do_not_fit(trained, weights):
    run = trained[1]["gan"]  # 120 test images
    for count, there in ((100, 100), (5000, 120)):
        with pytest.raises(BadInput, match=f"{there} images with 2,048 features"):
            Quality(Inception(weights), count).fits(run)
    Quality(Squares(), 100).fits(run)  # how many it has is known when it looks


def test_a_classifier_of_ours_tells_its_features_before_it_has_learned(trained):
    store, runs = trained
    own = Own(runs["classifier"])
    assert quality.features_of(runs["classifier"]) == own.build(store).features == 32
    untrained = dataclasses.replace(runs["classifier"], seed=7)
    for count, split, there in ((31, "test", 31), (5000, "test", 120), (5000, "train", 160)):
        m = Quality(Own(untrained), count, split=split)
        cells = {("GAN", "FD"): Planned((runs["gan"],), m)}
        if there >= 32:
            assert quality.with_enough(cells) is cells
            continue
        with pytest.raises(BadInput, match=f"{there} images with 32 features"):
            quality.with_enough(cells)
    assert quality.features_of(runs["recogniser"]) == 128
    assert quality.features_of(runs["gan"]) == 0  # has no classifier: said when it is asked to look
    absent = dataclasses.replace(runs["gan"], data=Named("npz:/no/such.npz@0123456789ab"))
    few = {("GAN", "FD"): Planned((absent,), Quality(own, 31))}
    assert quality.with_enough(few) is few  # what has been measured is shown without images


def test_classes_asked_for_and_modes(trained):
    store, runs = trained
    m, run = AskedFor(runs["classifier"], 90), runs["gan"]
    found = m.make(store, run)
    x, y = (torch.cat(p) for p in zip(*quality.generated(store, run, 90), strict=True))
    with torch.no_grad():
        answers = store.weights(runs["classifier"])(x / 255).argmax(1)
    close(found["right"], 100 * (answers == y).double().mean().item(), 1e-9)
    m = Modes(runs["classifier"], 90)
    m.make(store, run)
    assert m.value(store, run) == quality.modes(answers, 10)["found"]
    uneven = dataclasses.replace(m, show="KL").value(store, run)
    close(uneven, quality.modes(answers, 10)["KL"], 1e-9)


def test_latent_vectors_are_drawn_as_in_training(trained, monkeypatch):
    store, runs = trained
    flat = Run(DATA, small(prior="uniform"), Length(1, 50))
    store.ensure([flat])
    drawn = []
    real = gan_blocks.latent

    def noted(*args, **how):
        drawn.append(real(*args, **how))
        return drawn[-1]

    monkeypatch.setattr(gan_blocks, "latent", noted)
    for run, uniform in ((flat, True), (runs["gan"], False)):
        drawn.clear()
        list(quality.generated(store, run, 100))
        flat_or_not = [bool(z.abs().max() <= 1) for z in drawn]
        assert flat_or_not == [uniform]
    drawn.clear()
    flat.recipe.judge(store.networks(flat), flat.data.images())
    flat.recipe.results(store.networks(flat), flat.data.images())
    assert len(drawn) == 2 and all(z.abs().max() <= 1 for z in drawn)


def test_generated_images_do_not_depend_on_how_many_follow(trained):
    store, runs = trained
    [(few, y), *_] = quality.generated(store, runs["gan"], 100)
    [(same, labels), *rest] = quality.generated(store, runs["gan"], 250)
    assert torch.equal(few, same) and torch.equal(y, labels) and len(rest) == 2
    index = quality.chosen(120, 250)
    assert torch.bincount(index, minlength=120).max() == 3  # in turns
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(quality.chosen(120, 7).unique()) == 7


# What is not asked for, and numbers that no reference above tells


def test_what_is_not_said_of_a_measurement():
    "KD of 50 subsets of 1,000 features; 3 neighbours; 10 groups, drawn 30 times; ε = 1e-4."
    own = Squares()
    assert Quality(own) == Quality(own, 10_000, 0, "test", "last", 10, 30, 3)
    assert PathLength(own) == PathLength(own, 1000, "z", 1e-4, "last")
    assert AskedFor() == AskedFor(None, 1000, "last") and Modes(0) == Modes(0, 1000, 0.1, "last")
    a, b = clouds(1010, 1005, 4)
    found = quality.kernel_distances(a, b)
    assert len(found) == 50 and np.array_equal(found, quality.kernel_distances(a, b, 50, 1000))
    assert torch.equal(quality.radii(a), quality.radii(a, 3))
    few = [v[:4] for v in (a, b)]  # each of four features has three others
    assert quality.precision_recall(*few) == quality.precision_recall(*few, 3)
    pair, t = ends(5), torch.full((5, 1), 0.3, dtype=torch.float64)
    lengths = quality.path_lengths(Bent(), Flat(), None, pair, t)
    assert torch.equal(lengths, quality.path_lengths(Bent(), Flat(), None, pair, t, "z", 1e-4))


def test_the_distance_to_the_third_neighbour():
    x = torch.tensor([[0.0], [1.0], [3.0], [7.0], [20.0]])
    assert quality.radii(x).flatten().tolist() == [7, 6, 4, 7, 19]


def test_the_spread_of_fd_is_that_of_drawn_groups():
    "Against all 4 draws of two groups from two, and 27 of three; the draws are fixed."
    draw = torch.Generator().manual_seed(1)
    real = Moments().add(torch.randn(500, 2, generator=draw))
    parts = [torch.randn(30, 2, generator=draw) + shift for shift in (0.0, 0.5, 1.5)]
    for n in (2, 3):
        drawn = itertools.product(parts[:n], repeat=n)
        every = [frechet_distance(real, Moments().add(torch.cat(some))) for some in drawn]
        groups = [Moments().add(part) for part in parts[:n]]
        expected = np.std(every) * math.sqrt(n / (n - 1))
        assert quality.spread(real, groups, 1000) == pytest.approx(expected, rel=0.1)
    assert quality.spread(real, groups) == quality.spread(real, groups, 30)


def test_an_interval_of_fd_is_that_of_students_t():
    "As wide as its t of one fewer than the groups with an image, thirty times drawn."
    draw = torch.Generator().manual_seed(2)
    real = Moments().add(torch.randn(500, 2, generator=draw))
    for size in (30, 1):
        groups = [Moments().add(torch.randn(size, 2, generator=draw)) for _ in range(4)]
        value, low, high = quality.interval(real, [*groups, Moments()])
        half = scipy.stats.t.ppf(0.975, 3) * quality.spread(real, groups, 30)
        assert value == frechet_distance(real, quality.joined(groups))
        assert (value - low, high - value) == pytest.approx((half, half))


def test_all_numbers_beside_real_images():
    "Generated images in one corner of the real ones: all are near, and most real ones are not."
    draw = torch.Generator().manual_seed(3)
    real = torch.randn(400, 3, generator=draw)
    made = 0.2 * torch.randn(200, 3, generator=draw)
    of = [quality.Cloud([Moments().add(v)], [], v) for v in (made, real)]
    of[0].groups = [Moments().add(part) for part in made.split(50)]
    found = quality.compared(*of)
    shares, distances = (
        quality.precision_recall(made, real, 3),
        quality.kernel_distances(made, real),
    )
    assert found["precision"] == 100 * shares[0] > 90 and found["recall"] == 100 * shares[1] < 50
    assert found["FD interval"] == quality.interval(of[1].moments, of[0].groups, 30)[1:]
    assert (found["KD"], found["KD deviation"]) == (distances.mean(), distances.std())


def test_features_are_kept_where_they_are_asked_for(trained):
    x = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8)
    net = Looking(nn.Identity(), Features(), nn.Linear(12, 4).double())
    assert quality.cloud_of(net, x.split(10)).kept.shape == (0, 12)
    assert not len(quality.real_cloud(trained[0], DATA, Squares(0.75), 20).kept)


def test_a_kept_cloud_that_holds_more_than_numbers_is_not_run(trained, tmp_path):
    "And whoever asked for it is told, at the line that asks."

    class Dangerous:
        def __reduce__(self):
            return quality.Path.mkdir, (tmp_path / "made",)

    store = Store(trained[0].preset, tmp_path / "store")
    quality.real_cloud(store, DATA, Squares(), 20)
    (path,) = store.folder.glob("clouds/*.npz")
    np.savez(path, n=np.array([Dangerous()], dtype=object))
    with pytest.warns(UserWarning, match="damaged: it is made again") as told:
        quality.real_cloud(store, DATA, Squares(), 20)
    assert not (tmp_path / "made").exists() and told[0].filename == __file__


def test_images_are_made_a_hundred_at_once_or_as_many_as_a_group_has(trained, monkeypatch):
    store, run = trained[0], trained[1]["gan"]
    labels = store.images(run.data).y_test.repeat(2)[:150]
    assert [len(y) for _, y in quality.images_for(store, run, labels)] == [100, 50]
    asked = []
    monkeypatch.setattr(quality, "generated", lambda *how: asked.append(how[-1]) or ())
    monkeypatch.setattr(quality, "compared", lambda *how: {})
    monkeypatch.setattr(quality, "scored", lambda *how: {})
    for count, groups in ((100, 10), (101, 10), (250, 2)):
        Quality(Squares(), count, groups=groups).compute(store, run)
    assert asked == [10, 11, 100]


@pytest.mark.parametrize("split, other", [("test", "train"), ("train", "test")])
def test_the_floor_of_fd_is_between_the_splits(trained, split, other):
    store, own = trained[0], Squares()
    m, of = Quality(own, 100, split=split), (split, other)
    clouds = [quality.real_cloud(store, DATA, own, 100, 0, s).moments for s in of]
    assert m.floor(store, DATA) == frechet_distance(*clouds) > 0


def test_paths_are_seen_as_images_from_0_to_255():
    seen = []

    class Noting(Flat):
        def forward(self, x):
            seen.append(x)
            return super().forward(x)

    pair, t = ends(4), torch.full((4, 1), 0.25, dtype=torch.float64)
    quality.path_lengths(Bent(), Noting(), None, pair, t, "z", 1e-3)
    for x, at in zip(seen, (t + 1e-3, t), strict=True):
        torch.testing.assert_close(x, 127.5 + 127.5 * Bent()(quality.slerp(*pair, at)))


def test_the_error_of_path_lengths_is_that_of_their_mean(trained, monkeypatch):
    lengths = torch.arange(60, dtype=torch.float64).square()
    parts = iter(lengths.split(50))
    monkeypatch.setattr(quality, "path_lengths", lambda *how: next(parts))
    found = PathLength(Squares(), 60).compute(trained[0], trained[1]["gan"])
    error = scipy.stats.sem(lengths.numpy())
    assert found == {"PPL": pytest.approx(lengths.mean()), "error": pytest.approx(error), "n": 60}


def test_shares_of_what_was_asked_for_on_numbers():
    "Two of three that should show it, one of four that should not."
    wanted, found = torch.tensor([1, 1, 1, 0, 0, 0, 0]), torch.tensor([1, 1, 0, 1, 1, 1, 0])
    shares = {"asked": 200 / 3, "not asked": 25, "mean": (200 / 3 + 25) / 2}
    assert quality.balanced(wanted, found) == pytest.approx(shares)
    variance = (2 / 9 / 3 + 3 / 16 / 4) / 4  # of two binomial shares, each of half the weight
    error = quality.balanced_error(wanted[:, None], found[:, None])
    assert error == pytest.approx(100 * math.sqrt(variance))


def test_right_is_the_mean_over_attributes(trained):
    store, faces = trained[0], trained[1]["faces"]
    images = faces.data.images()
    found = AskedFor(count=100).shares(store, faces, images.x_test, images.y_test.roll(1, 0))
    means = [f["mean"] for f in found["attributes"].values()]
    assert len(means) == 2 and found["right"] == pytest.approx(np.mean(means))


def test_a_class_with_a_tenth_of_its_share_is_found():
    "Of four classes that is one answer in forty."
    for n, found in ((25, 2), (24, 1)):
        answers = torch.cat([torch.zeros(1000 - n), torch.full((n,), 3.0)]).long()
        assert quality.modes(answers, 4)["found"] == found


def test_the_error_of_a_share_of_classes_is_that_of_a_binomial(monkeypatch):
    "Thirty right of ninety."
    y, images = torch.arange(90) % 10, SimpleNamespace(attributes=())
    found = torch.where(torch.arange(90) < 30, y, y + 1)
    monkeypatch.setattr(quality, "Own", lambda run: run)
    monkeypatch.setattr(quality, "looking", lambda *of: SimpleNamespace(classes=True))
    monkeypatch.setattr(quality, "answers", lambda net, x: found)
    store, run = SimpleNamespace(images=lambda data: images), SimpleNamespace(data=None)
    shares = AskedFor("a classifier").shares(store, run, None, y)
    assert shares == pytest.approx({"right": 100 / 3, "error": 100 * math.sqrt(2 / 9 / 90)})


def test_an_attribute_is_there_from_a_half_on(monkeypatch):
    p = torch.tensor([[0.4, 0.6], [0.9, 0.1]])
    monkeypatch.setattr(quality, "look", lambda net, x: [(None, part) for part in p.split(1)])
    for classes, found in ((False, [[0, 1], [1, 0]]), (True, [1, 0])):
        assert quality.answers(SimpleNamespace(classes=classes), None).tolist() == found
