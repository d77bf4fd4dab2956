"""The tables of chapters 3 and 4 against the thesis's sections 3.2, 3.3, 4.2 and 4.3, read by hand.

What the text leaves open is as in the author's public code, or ours; beside each such number stands
which. Every field of every piece is compared, so that a changed default is seen as well.
"""

import dataclasses
import itertools

import pytest

from thesis_repro import d2a2gan, settings, wcgan
from thesis_repro.artefacts import Table
from thesis_repro.extractors import Inception
from thesis_repro.pieces import is_piece
from thesis_repro.published import published
from thesis_repro.registry import TABLES
from thesis_repro.tables import Cell, compare, layout

FACES, PICTURES = (
    settings.load("thesis", chapter, device="cpu", precision="fp32") for chapter in (3, 4)
)
SEEDS = range(5)  # ours, as in chapters 5 to 7: here one number is printed and no ±


@pytest.fixture(autouse=True)
def inception(monkeypatch, tmp_path):
    "A machine that has Inception's weights, and no answers of people."
    monkeypatch.setattr(Inception, "missing", lambda self: "")
    monkeypatch.setenv("THESIS_REPRO_OUTPUTS", str(tmp_path))


def facts(thing):
    "A piece as its name and all its fields but those that only name it."
    if is_piece(thing):
        named = {f.name: getattr(thing, f.name) for f in dataclasses.fields(thing)}
        fields = {k: facts(v) for k, v in named.items() if k not in ("home", "label")}
        return {"is": type(thing).__name__, **fields}
    return tuple(map(facts, thing)) if isinstance(thing, tuple) else thing


def facts_of(plan) -> dict:
    "Place → what is trained, what is measured, and what is said against it."
    return {
        place: ([*map(facts, p.runs)], facts(p.measurement), p.reason) for place, p in plan.items()
    }


def same(found: dict, expected: dict):
    assert found.keys() == expected.keys()
    for place, rest in expected.items():
        assert found[place] == rest, place


def made(kind, /, **fields):
    return {"is": kind, **fields}


def run_of(data, recipe, epochs, batch, seed=0):
    length = made("Length", epochs=epochs, batch_size=batch)
    return made("Run", data=data, recipe=recipe, length=length, seed=seed, precision="fp32")


def falling(*points):
    "A rate that falls to a tenth at each of these shares of the epochs."
    return made("Decay", points=points, factor=0.1, kind="steps")


def adam(rate, *betas):
    how = {"lr": rate, "betas": betas, "weight_decay": 0.0}
    return made("Adam", **how, decay=falling(), clip=0.0)


# "SGD, rate 0.1, momentum 0.9, a tenth at epochs 150 and 225 of 300" (3.3.1). Weight decay: the
# author's code. Of chapter 4's teacher and ResNet-18 no schedule is printed: the same (ours).
_RATE = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "nesterov": False}
SGD = made("SGD", **_RATE, decay=falling(150 / 300, 225 / 300), clip=0.0)


def images(name, part, attributes=()):
    "All images of a data set; 1,000 of those to train are held out, for the history (ours)."
    sizes = {"train": 0, "test": 0, "held_out": 1000}
    return made("Named", name=name, **sizes, attributes=attributes, shrink=1, part=part)


def gan(generator, critic, game, terms, optimiser, **more):
    "One critic step for one of the generator, z ~ N(0, 1); one optimiser; no augmentation."
    how = {"critic_steps": 1, "growth": None, "average": 0.0, "prior": "normal", "flip": False}
    how |= {"parts": False, "augment": (), "optimiser": optimiser, "critic_optimiser": optimiser}
    return made("Gan", generator=generator, critic=critic, game=game, terms=terms, **how | more)


def naming(heard=True):
    "The recognition loss: in the critic on real and generated images, and in the generator."
    how = {"on_fake": heard, "to_generator": heard, "printed": False}
    return made("Auxiliary", weight=1.0, **how)


# "λ = 10, α = 0.001" (eq. 3.3; between real and generated images). Chapter 4's PGGAN is NVIDIA's
# published recipe, which has the same numbers.
PENALTY = made("GradientPenalty", weight=10.0, at="between")
DRIFT = made("Drift", weight=0.001)
EARTH_MOVER = made("Wasserstein", clip=0.0)
DCGAN_ADAM = adam(2e-4, 0.5, 0.999)  # the author's code, as DCGAN
PGGAN_ADAM = adam(1e-3, 0.0, 0.99)  # the author's code, as NVIDIA's

INPUT, EVERY, UNSEEN = made("AtInput"), made("EveryLayer"), made("Unseen")
# "a 1 × 1 convolution and a sigmoid" in every layer; m = 32 is the author's code's
WC = made("Weighted", width=32, printed=False)


# Chapter 3. "Male, Eyeglasses, Smiling, Goatee, Bangs; d = 100 for DCGAN, 512 for PGGAN" (3.3.1);
# "all of 128 × 128" (3.3.3): five doublings of 4 × 4.

FIVE = ("Male", "Eyeglasses", "Smiling", "Goatee", "Bangs")


def dcgan(place, told, branch, terms=None):
    """The DCGAN base. "Recognition branch: two fully connected layers, adversarial branch: one;
    minibatch stddev before the last convolution" (3.2.3). Widths and the hidden layer: ours."""
    widths = (512, 256, 128, 64, 32)
    generator = {"latent": 100, "channels": widths, "condition": place, "norm": "batch"}
    critic = {"channels": widths[::-1], "condition": told, "norm": "batch", "slope": 0.2}
    critic |= {"classes": made("ClassHead", hidden=(512,)) if branch else None, "compare": True}
    both = (
        made("DcganGenerator", **generator, attention=0),
        made("DcganCritic", **critic, attention=0),
    )
    terms = (naming(),) if branch else ()
    return gan(*both, made("NonSaturating"), terms, DCGAN_ADAM)


def pggan(place, told, branch, heard=True):
    "The PGGAN base. Widths and the 20,000 batches of 16 that fade a level in: the author's code."
    widths = (512, 512, 256, 128, 64, 32)
    generator = made("ProgressiveGenerator", latent=512, channels=widths, condition=place)
    head = made("ClassHead", hidden=(512,)) if branch else None
    critic = made("ProgressiveCritic", channels=widths, condition=told, classes=head)
    terms = (PENALTY, DRIFT, *((naming(heard),) if branch else ()))
    growth = made("Growth", fade=20_000 * 16 / 600_000)
    return gan(generator, critic, EARTH_MOVER, terms, PGGAN_ADAM, growth=growth)


def fused():
    "Fused-GAN, of which the text says nothing more: the sizes of the DCGAN base (ours)."
    widths, both = (512, 256, 128, 64, 32), dcgan(INPUT, INPUT, False)
    judge = both["critic"] | {"condition": UNSEEN}
    branch = made("PlainBranch", judge=judge, game=made("NonSaturating"), optimiser=DCGAN_ADAM)
    generator = made("FusedGenerator", latent=100, channels=widths)
    return both | {"generator": generator, "terms": (branch,)}


# "cPGGAN": told at the input; its critic gets y as maps before the last convolution (ours).
# "Input only has the structure of ACGAN." The base of "All layers" is not named: DCGAN (ours).
ROWS = {
    "3.1": {
        "ACGAN": dcgan(INPUT, UNSEEN, True),
        "cDCGAN": dcgan(INPUT, INPUT, False),
        "WcDCGAN (Proposed)": dcgan(WC, UNSEEN, True),
        "cPGGAN": pggan(INPUT, EVERY, False),
        "WcPGGAN (Proposed)": pggan(WC, UNSEEN, True),
    },
    "3.2": {
        "Input only": dcgan(INPUT, UNSEEN, True),
        "All layers": dcgan(EVERY, UNSEEN, True),
        "All layers+Wc-layer": pggan(WC, UNSEEN, True),
    },
    "3.3": {
        "Recognition branch: no": pggan(WC, UNSEEN, False),
        "Recognition branch: yes": pggan(WC, UNSEEN, True),
        # ours: whoever cuts the branch off leaves nobody who asks for the condition
        "No branch but the critic told y": pggan(WC, EVERY, False),
        # "recognition loss on real images only", "the adversarial branch is conditional"
        "As the author's code": pggan(WC, EVERY, True, heard=False),
    },
}


def of_faces(recipe, seed=0, attributes=FIVE):
    """The author's code: DCGAN 100 epochs in batches of 100; PGGAN batches of 16, 600,000 images
    a level, which for six levels and 181,637 images are 20 epochs."""
    length = (20, 16) if recipe["growth"] else (100, 100)
    return run_of(images("celeba", "CelebA", attributes), recipe, *length, seed)


def recogniser(data, select, seed=0):
    """Section 3.3.1: "ResNet of 101 layers, 300 epochs". Batches of 100, 224 pixels, and the choice
    of the epoch by the test split in table 3.4: the author's code."""
    method = made("MultiLabel", printed=False)
    how = {"network": "resnet101", "width": 1.0, "size": 224, "select": select}
    return run_of(data, made("Recognise", method=method, optimiser=SGD, **how), 300, 100, seed)


def quality(show, **more):
    "Torchvision's Inception, 10,000 generated images against the test images (ours)."
    how = {"count": 10_000, "keep": 0, "split": "test", "which": "last", "groups": 10}
    how |= {"resamples": 30, "neighbours": 3, "show": show}
    return made("Quality", extractor=made("Inception", weights="torchvision"), **how | more)


def as_asked(judge):
    return made("AskedFor", classifier=judge, count=10_000, which="last")


@pytest.mark.parametrize("number", ["3.1", "3.2", "3.3"])
def test_faces(number):
    "Five seeds of each row; IS and FID as printed, and how often an image is as asked (ours)."
    judge = recogniser(images("celeba", "CelebA"), "held-out")
    columns = {"IS": quality("IS"), "FID": quality("FD"), wcgan.ASKED: as_asked(judge)}
    expected = {}
    for (row, recipe), (column, m) in itertools.product(ROWS[number].items(), columns.items()):
        expected[row, column] = ([of_faces(recipe, seed) for seed in SEEDS], m, "")
    if number == "3.1":
        runs = [of_faces(ROWS["3.1"]["cDCGAN"], seed) for seed in SEEDS]
        expected = {("Real image", "IS"): (runs, quality("real IS"), "")} | expected
    plan = TABLES[number].plan(FACES, wcgan.PARTS)
    same(facts_of(plan), expected)
    in_order(number, [*plan])


def test_people_compare_each_proposal_with_its_base():
    'Section 3.3.2: "cDCGAN and WcDCGAN; cPGGAN and WcPGGAN likewise".'
    assert wcgan.PAIRED == (("cDCGAN", "WcDCGAN"), ("cPGGAN", "WcPGGAN"))
    cells = wcgan.said_by_people(FACES, wcgan.plan_3_1(FACES))
    printed = [row for row, column in printed_places("3.1") if column == "Subjective score"]
    assert [c.row for c in cells] == printed and {c.column for c in cells} == {"Subjective score"}
    for name, run in wcgan.paired_runs(FACES).items():
        row = name + " (Proposed)" * name.startswith("Wc")
        assert facts(run) == of_faces(ROWS["3.1"][row])


# "Attributes that the baseline recognises in less than 90 % … 4,000 images" (3.3.1), read off the
# first row of table 3.4. In all, equally many of each: 267 of fifteen, the next above 4,000 (ours).
WEAK = (
    "Arched_Eyebrows Attractive Bags_Under_Eyes Big_Lips Big_Nose Black_Hair Brown_Hair "
    "High_Cheekbones Narrow_Eyes Oval_Face Pointy_Nose Straight_Hair Wavy_Hair Wearing_Necklace "
    "Young"
).split()
EACH = 267


def added(recipe, seed):
    """Section 3.3.1: "images of the method trained on all 40 attributes; the condition: labels of
    samples that have the attribute; the label is the condition". A generator a seed (ours)."""
    real, generator = images("celeba", "CelebA"), of_faces(recipe, seed, ())
    how = {"count": EACH, "few": 0, "draw": seed, "targets": "hard", "asked": tuple(WEAK)}
    return made("Augmented", real=real, generator=generator, **how, teacher=None)


def test_recognition_of_attributes():
    "Table 3.4: every row from untrained weights (ours), the best epoch."
    assert len(WEAK) == 15 and 0 <= EACH * 15 - 4000 < 15
    methods = {"Fused-GAN": fused(), "ours (w/o AL)": pggan(WC, UNSEEN, True)}
    data = {"Baseline": [images("celeba", "CelebA")] * 5}
    data |= {row: [added(recipe, seed) for seed in SEEDS] for row, recipe in methods.items()}
    runs = {row: [recogniser(d, "test", s) for s, d in enumerate(ds)] for row, ds in data.items()}
    people = {"cPGGAN (w/ AL)": "cPGGAN", "ours (w/ AL)": "WcPGGAN"}
    expected = {}
    for row, column in printed_places("3.4"):
        attribute = column.replace(" ", "_")
        if row in people:
            how = f"no selection: thesis-repro select {people[row]} --preset thesis"
            expected[row, column] = ([], made("Recorded", path="best.accuracy"), how)
        else:
            m = made("Recognised", attribute=attribute, which="best")
            expected[row, column] = (runs[row], m, "")
    same(facts_of(TABLES["3.4"].plan(FACES, wcgan.PARTS)), expected)
    rows = ["Baseline", "Fused-GAN", "cPGGAN (w/ AL)", "ours (w/o AL)", "ours (w/ AL)"]
    assert [*dict.fromkeys(row for row, _ in printed_places("3.4"))] == rows
    shown_in_order("3.4", [*expected])


# Chapter 4. "CIFAR-10 and SVHN, 32 × 32" (4.3). Sizes, Adam, one critic step, 100 epochs in batches
# of 100, no augmentation, slope 0.01: the author's code. An epoch of the teacher before each of the
# GAN (4.2.2), so D2A2GAN has 200.

FILES = {"CIFAR-10": "cifar10", "SVHN": "svhn"}
_LAYERS = {"latent": 100, "channels": (256, 128, 64, 32), "condition": INPUT, "norm": "batch"}
UP = made("DcganGenerator", **_LAYERS, attention=0)


def down(told, branch):
    "DCGAN's critic; it does not compare the images of a batch."
    how = {"channels": (32, 64, 128, 256), "condition": told, "norm": "batch", "slope": 0.01}
    head = made("ClassHead", hidden=()) if branch else None
    return made("DcganCritic", **how, classes=head, compare=False, attention=0)


def looking():
    """Section 4.2.2: "the last layer a ReLU, all others leaky; minibatch stddev; the last filter as
    large as the map"; a convolution from classes to classes before GAP (text and code)."""
    how = {"channels": (32, 64), "branch": (128, 256), "after": (128, 256), "slope": 0.01}
    return made("AttentionCritic", **how, mixed=True, spread="number")


def consistency(weight):
    "λ = 10⁻⁴ (eq. 4.1) of a sum (eq. 4.8). ABN: the author's widths, three blocks a stage (ours)."
    teacher = made("AttentionNetwork", channels=(16, 32, 64), blocks=3, kernel=1)
    how = {"over": "sum", "on_fake": True, "to_generator": True}
    return made("Consistency", weight=weight, teacher=teacher, optimiser=SGD, **how)


def d2a2(*terms):
    return gan(UP, looking(), made("NonSaturating"), terms, DCGAN_ADAM, parts=True)


def nvidias():
    "PGGAN as NVIDIA published it: 512 maps to 32 × 32, half a level fades, averaged weights."
    four, head = (512,) * 4, made("ClassHead", hidden=())
    generator = made("ProgressiveGenerator", latent=512, channels=four, condition=INPUT)
    critic = made("ProgressiveCritic", channels=four, condition=UNSEEN, classes=head)
    terms, growth = (naming(), PENALTY, DRIFT), made("Growth", fade=0.5)
    return gan(generator, critic, EARTH_MOVER, terms, PGGAN_ADAM, growth=growth, average=0.999)


METHODS = {
    "cDCGAN": gan(UP, down(INPUT, False), made("NonSaturating"), (), DCGAN_ADAM),
    "ACGAN": gan(UP, down(UNSEEN, True), made("NonSaturating"), (naming(),), DCGAN_ADAM),
    "PGGAN": nvidias(),
    "D2A2GAN": d2a2(naming(), consistency(1e-4)),
}
ABLATED = {  # without L_att the teacher still learns, to be compared with (ours)
    "Baseline": METHODS["D2A2GAN"],
    "w/o L_att": d2a2(naming(), consistency(0.0)),
    "w/o L_cls": d2a2(consistency(1e-4)),
}


def of_pictures(part, recipe, seed=0):
    taught = any(term["is"] == "Consistency" for term in recipe["terms"])
    return run_of(images(FILES[part], part), recipe, 200 if taught else 100, 100, seed)


def resnet18(data, method, seed=0):
    '"ResNet of 18 layers" (4.3.1); nothing else is printed: 100 epochs, batches of 100 (ours).'
    how = {"network": "resnet18", "width": 1.0, "select": "held-out", "crop": 4, "watch": ""}
    return run_of(data, made("Classify", method=method, optimiser=SGD, **how), 100, 100, seed)


def judge_of(part):
    return resnet18(images(FILES[part], part), made("Plain", loss="ce"))


def learner(part, recipe, few, count, targets, seed):
    '"Drawn at random, equally many of each of the ten classes" (4.3.1), again for each seed.'
    generator = of_pictures(part, recipe, seed) if recipe else None
    how = {"count": count, "few": few, "draw": seed, "targets": targets, "asked": ()}
    real = images(FILES[part], part)
    data = made("Augmented", real=real, generator=generator, **how, teacher=None)
    return resnet18(data, made("Targets"), seed)


LAST = made("Recorded", path="last.accuracy")


def test_quality_of_pictures():
    "Table 4.1: torchvision's Inception, whose score of real images is the printed 9.67."
    plan, expected = TABLES["4.1"].plan(PICTURES, d2a2gan.PARTS), {}
    real = made("RealScore", extractor=made("Inception", weights="torchvision"), count=10_000)
    expected["Real", "CIFAR-10 / IS"] = ([judge_of("CIFAR-10")], real, "")
    columns = {"CIFAR-10 / IS": "IS", "CIFAR-10 / FID": "FD", "SVHN / FID": "FD"}
    for (row, recipe), (column, show) in itertools.product(METHODS.items(), columns.items()):
        part = column.partition(" / ")[0]
        runs = [of_pictures(part, recipe, seed) for seed in SEEDS]
        expected[row, column] = (runs, quality(show), "")
    ours = {place for place in plan if "resnet18 of" in place[1]}  # as an FD of other features
    same({k: v for k, v in facts_of(plan).items() if k not in ours}, expected)
    in_order("4.1", [*expected])
    assert [*dict.fromkeys(row for row, _ in plan)] == ["Real", *METHODS]


def test_ablation():
    "Table 4.2: 100 real images and 50,000 generated ones, soft (ours); all test images."
    expected = {}
    for part, (row, recipe) in itertools.product(("SVHN", "CIFAR-10"), ABLATED.items()):
        runs = [of_pictures(part, recipe, seed) for seed in SEEDS]
        expected[row, f"{part} / MSE"] = (runs, made("MapError", which="last"), "")
        expected[row, f"{part} / as asked"] = (runs, as_asked(judge_of(part)), "")
        trained = [learner(part, recipe, 100, 50_000, "soft", seed) for seed in SEEDS]
        expected[row, f"{part} / Acc."] = (trained, LAST, "")
    plan = TABLES["4.2"].plan(PICTURES, d2a2gan.PARTS)
    same(facts_of(plan), expected)
    in_order("4.2", [*plan])


# "100 and 1,000 real images; 100, 1,000, 10,000 and 50,000 generated; cDCGAN hard targets only,
# ACGAN and D2A2GAN both" (4.3.1). PGGAN: both (ours).
TARGETS = {"cDCGAN": ("hard",)} | dict.fromkeys(("ACGAN", "PGGAN", "D2A2GAN"), ("hard", "soft"))


def test_figure_4_6():
    expected = {}
    for part, few in itertools.product(("CIFAR-10", "SVHN"), (100, 1000)):
        alone = [learner(part, None, few, 0, "hard", seed) for seed in SEEDS]
        expected[f"{part} / {few} / none", "0"] = (alone, LAST, "")
        for name, targets in ((n, t) for n, both in TARGETS.items() for t in both):
            for count in (100, 1000, 10_000, 50_000):
                how = part, METHODS[name], few, count, targets
                place = f"{part} / {few} / {name} / {targets}", str(count)
                expected[place] = ([learner(*how, seed) for seed in SEEDS], LAST, "")
    same(facts_of(d2a2gan.plan_figure_4_6(PICTURES)), expected)


def test_figure_4_7():
    "The critics of ACGAN and D2A2GAN on their own generators' images."
    expected = {}
    for part, name in itertools.product(("CIFAR-10", "SVHN"), ("ACGAN", "D2A2GAN")):
        runs = [of_pictures(part, METHODS[name], seed) for seed in SEEDS]
        expected[f"{part} / {name}", "largest"] = (runs, made("Posterior", count=10_000), "")
    plan = d2a2gan.plan_figure_4_7(PICTURES)
    same(facts_of(plan), expected)
    assert [*plan] == [*expected]


# The order of rows and columns


def printed_places(number):
    frame = published(number)
    return [*zip(frame.row, frame.column, strict=True)]


COLUMNS = {
    "3.1": ["IS", "FID", "Subjective score"],
    "3.2": ["IS", "FID"],
    "3.3": ["IS", "FID"],
    "4.1": ["CIFAR-10 / IS", "CIFAR-10 / FID", "SVHN / FID"],
    "4.2": ["SVHN / MSE", "CIFAR-10 / MSE", "SVHN / Acc.", "CIFAR-10 / Acc."],
}
FIRST = {"3.1": ["Real image"], "4.1": ["Real"]}
PRINTED = ROWS | {"4.1": METHODS, "4.2": ABLATED}
OURS = {"3.3": 2}  # rows after those of the thesis


def in_order(number, places):
    "Rows and columns as printed: in the plan, in what is published, and in the table shown."
    rows = [*FIRST.get(number, []), *PRINTED[number]]
    assert [*dict.fromkeys(row for row, _ in places)] == rows
    theirs = rows[: len(rows) - OURS.get(number, 0)]
    assert [*dict.fromkeys(row for row, _ in printed_places(number))] == theirs
    shown = shown_in_order(number, places)
    assert [c for c in shown if c in COLUMNS[number]] == COLUMNS[number]


def shown_in_order(number, places) -> list[str]:
    "The columns as shown; the rows must be those of the thesis, then ours."
    frame = compare(number, [Cell(*place) for place in places])
    shown = layout(Table(number=number, title="", frame=frame))
    rows = [*dict.fromkeys(row for row, _ in [*printed_places(number), *places])]
    assert [row["name"] for row in shown["rows"]] == rows
    return [column["name"] for column in shown["columns"]]
