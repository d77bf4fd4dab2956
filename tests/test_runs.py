"Runs: what makes two of them the same, what a preset changes, and what it says of that."

import dataclasses
from dataclasses import replace

import numpy as np
import pytest
from methods import Made, small
from samples import noise, refused

from thesis_repro import runs, settings
from thesis_repro.adversarial import Adversarial
from thesis_repro.attacks import PGD
from thesis_repro.files import sha256
from thesis_repro.mixup import Beta, Mixup, Plain
from thesis_repro.pieces import is_piece
from thesis_repro.recipes import SGD, Adam, Classify, Decay
from thesis_repro.runs import Named, Run, changed_code, code_words, scaled, seeded, shortfall
from thesis_repro.training import Length

MANIFOLD = Mixup((0, 1, 2, 3), Beta(2.0), loss="bce")
THESIS = Run(
    Named("cifar10", part="CIFAR-10"),
    Classify("wrn28_10", MANIFOLD, SGD(0.05, nesterov=True)),
    Length(500),
    home="aip/table_7_1",
    label="manifold mixup",
)


def fields(thing, path=()):
    "Every field in a piece: path and value."
    for f in (f for f in dataclasses.fields(thing) if f.compare):
        value = getattr(thing, f.name)
        yield from fields(value, (*path, f.name)) if is_piece(value) else [((*path, f.name), value)]


def changed(thing, path, value):
    "The same piece with another value at a path."
    inner = changed(getattr(thing, path[0]), path[1:], value) if len(path) > 1 else value
    return replace(thing, **{path[0]: inner})


OTHERS = {bool: lambda v: not v, int: lambda v: v + 1, float: lambda v: v / 2 + 0.01}
WORDS = {"name": "svhn", "network": "resnet18", "precision": "bf16", "select": "test"}
WORDS |= {"kind": "cosine", "loss": "ce", "per": "pair", "layers": (0, 1), "points": (0.6, 0.75)}
WORDS |= {"attributes": ("Smiling",), "watch": "test"}
PATHS = [path for path, _ in fields(THESIS)]


def other(path):
    "The thesis's run with another value in one field."
    value = dict(fields(THESIS))[path]
    if path[-1] == "input_ratio":
        return changed(THESIS, path, Beta(3.0))
    return changed(THESIS, path, WORDS.get(path[-1]) or OTHERS[type(value)](value))


# Identity


@pytest.mark.parametrize("path", PATHS, ids=".".join)
def test_every_field_counts(path):
    assert len(PATHS) > 20 and other(path).key != THESIS.key


def test_two_fields_never_stand_for_each_other():
    "No two of the changed runs have the same key."
    keys = [other(path).key for path in PATHS]
    assert len({*keys, THESIS.key}) == len(keys) + 1


def test_a_name_is_a_readable_folder():
    run = replace(small(), label="Manifold mixup, λ / α = 2 (../x)", seed=3)
    assert run.name == f"manifold-mixup-2-x-seed-3-{run.key}"
    assert replace(run, label="…").name == f"seed-3-{run.key}"


@pytest.mark.parametrize(
    "home", ["../..", "/tmp/x", "a/../b", "a", "a/b/c", "a/", "", ".a/b", "a/.b", "a b/c", "a\n/b"]
)
def test_a_home_is_two_names(home):
    "One that is not was trained again each time, or written elsewhere."
    refused(lambda: replace(small(), home=home), "Run: home = ", "two names, such as own/runs")


def test_a_run_can_need_another():
    first = small()
    second = replace(first, data=Made(first, ""))
    third = replace(first, data=Made(second, ""))
    assert first.needs() == () and second.needs() == (first,)
    assert third.needs() == (second, first) and third.part == ""
    assert second.key != replace(first, data=Made(small(seed=1), "")).key


# A file of one's own is known by its content


def write_npz(path, seed=0):
    x, y = noise(60, 8, 8, 3, seed=seed), np.arange(60) % 3
    path.parent.mkdir(exist_ok=True)
    np.savez(path, x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
    return f"npz:{path}"


def on(name, held_out=10):
    return replace(small(), data=Named(name, held_out=held_out))


def test_another_file_in_the_same_place_is_another_run(tmp_path):
    name = write_npz(tmp_path / "a.npz")
    before = on(name)
    assert before == on(name) and before.data.name.startswith(f"{name}@")
    write_npz(tmp_path / "a.npz", seed=1)
    after = on(name)
    assert after.key != before.key and after.data.images().x_train.float().mean() > 0
    images = [r.data.images().x_train for r in (after, on(name))]
    assert images[0].equal(images[1])


def test_a_file_that_moves_is_the_same_run(tmp_path):
    before = on(write_npz(tmp_path / "a.npz"))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "a.npz").rename(tmp_path / "elsewhere" / "b.npz")
    after = on(f"npz:{tmp_path}/elsewhere/b.npz")
    assert after.key == before.key and after.data.title == "b.npz"


def test_a_pinned_name_means_that_content(tmp_path):
    name = write_npz(tmp_path / "a.npz")
    pinned = on(name).data.name
    longer = f"{name}@{sha256(tmp_path / 'a.npz').upper()}"
    assert on(pinned).key == on(longer).key == on(name).key
    write_npz(tmp_path / "a.npz", seed=1)
    runs._loaded.cache_clear()
    refused(lambda: on(pinned).data.images(), "a.npz", "is another file: its SHA-256")


def test_a_file_that_is_not_there_is_bad_input(tmp_path):
    refused(lambda: on(f"npz:{tmp_path}/none.npz"), "none.npz")


# A preset scales cost, never the method


def test_scaling_leaves_the_method_alone():
    for name in ("thesis", "fast", "smoke"):
        preset = settings.load(name, device="cpu")
        run = scaled(preset, THESIS)
        bce = "bce_sum" if preset.bce == "sum" else "bce"
        assert run.recipe.method == replace(MANIFOLD, loss=bce)
        assert run.recipe.optimiser == THESIS.recipe.optimiser
        assert (run.seed, run.home, run.label) == (0, THESIS.home, THESIS.label)
        assert run.length.epochs == (preset.epochs or 500) and run.data.name == preset.cifar10
    assert scaled(settings.load("thesis", device="cpu"), THESIS) == THESIS


def test_a_preset_has_as_many_seeds():
    found = seeded(settings.load("smoke", device="cpu", seeds=3), THESIS)
    assert [r.seed for r in found] == [0, 1, 2] and len({r.key for r in found}) == 3


def test_what_is_computed_where_does_not_count():
    "Nor does a GPU that another machine has."
    presets = [
        settings.load("smoke", device="cpu", precision="fp32", **how)
        for how in ({}, {"jobs": 7, "threads": 2, "launcher": "ray"}, {"stream": "yes"})
    ]
    assert len({scaled(p, THESIS).key for p in presets}) == 1


def test_the_summed_bce_is_said():
    preset = settings.load("smoke", device="cpu", bce="sum")
    run = scaled(preset, THESIS)
    assert run.recipe.method == replace(MANIFOLD, loss="bce_sum")
    assert "loss bce_sum in place of bce" in shortfall(run, THESIS)


# What falls short is said


def test_nothing_is_said_of_the_thesis_itself():
    assert shortfall(THESIS, THESIS) == "" == shortfall(replace(THESIS, seed=4), THESIS)
    assert shortfall(replace(THESIS, home="a/b", label="x"), THESIS) == ""


@pytest.mark.parametrize("path", [p for p in PATHS if p != ("seed",)], ids=".".join)
def test_every_field_that_differs_is_said(path):
    said = shortfall(other(path), THESIS)
    assert said and "\n" not in said


def test_what_is_said():
    ours = replace(
        THESIS,
        data=Named("digits10", 1000, 200, 100, part="CIFAR-10"),
        recipe=replace(THESIS.recipe, network="resnet18", width=0.25),
        length=Length(5, 64),
        precision="bf16",
    )
    assert shortfall(ours, THESIS) == (
        "stand-in digits10, 1,000 training images, 200 test images, 100 images held out, resnet18 "
        "in place of wrn28_10, width 0.25, 5 of 500 epochs, batches of 64, bf16"
    )


def test_a_file_in_the_place_of_a_data_set_is_said(tmp_path):
    data = Named(write_npz(tmp_path / "cifar10.npz"), part="CIFAR-10")
    assert shortfall(replace(THESIS, data=data), THESIS) == "the file cifar10.npz"
    assert not data.stands_in and Named("digits10", part="CIFAR-10").stands_in
    assert not Named("svhn_extra", part="SVHN").stands_in and not Named("digits10").stands_in


def test_a_piece_in_the_place_of_another_is_said():
    attacked = replace(THESIS.recipe, method=Adversarial(PGD()), optimiser=Adam())
    said = shortfall(replace(THESIS, recipe=attacked), THESIS)
    assert said.startswith("method Adversarial(") and "optimiser Adam(" in said
    decay = replace(THESIS.recipe.optimiser, decay=Decay((0.5,)))
    said = shortfall(replace(THESIS, recipe=replace(THESIS.recipe, optimiser=decay)), THESIS)
    assert said == "points (0.5,) in place of (0.5, 0.75)"


# Other code


def test_records_without_a_fingerprint_are_of_version_0_1():
    now = small().code()
    assert changed_code({}, now) == ["version 0.1"] and changed_code(now, now) == []
    assert changed_code(now | {"mixup": "x"}, now) == ["mixup"]
    assert "attacks" not in now and "attacks" in small(Adversarial(PGD())).code()


def test_what_other_code_made_is_one_sentence():
    old = {1: ["mixup", "models"], 2: ["models"]}
    assert code_words(old, 5) == (
        "2 of 5 runs were made by other code (mixup, models): --fresh changed makes them again."
    )
    assert code_words({}, 5) == ""


def test_the_same_method_has_the_same_fingerprint():
    assert small(Plain(), seed=3).code() == small(Plain()).code() != small(Mixup()).code()
