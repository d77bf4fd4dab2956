"Records of version 0.1: found under today's keys, with their weights and their measurements."

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from kept_results import noting, places_in
from methods import small, store_at

from thesis_repro import (
    checkpoints,
    former,
    m2at,
    paths,
    records,
    registry,
    settings,
)
from thesis_repro.attacks import PGD
from thesis_repro.files import BadInput, atomic_json, sha256
from thesis_repro.measures import Robustness, ensure_measured
from thesis_repro.robustness import evaluate
from thesis_repro.runs import run_of
from thesis_repro.store import RunsFailed, Store
from thesis_repro.zoo_losses import LearnableBoundary

# What version 0.1 made of chapter 6 on real CIFAR-10, at settings that are the reference's today

FORMER = Path(__file__).parent / "former"
PLACE, SETTINGS = "reference/adversarial-cpu", {"autoattack_size": "1000"}


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    "A copy of it, and what today's tables find in it: runs, measurements."
    home = tmp_path_factory.mktemp("outputs")
    place = home / settings.load(PLACE, **SETTINGS).name
    shutil.copytree(FORMER, place)
    seen = {"runs": set()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THESIS_REPRO_OUTPUTS", str(home))
        seen["measurements"] = noting(patch)
        registry.load_chapters()
        with Store.training(False):
            for made in registry.TABLES.values():
                preset = made.preset(PLACE, **SETTINGS)
                plan = made.plan(preset, ("CIFAR-10",))
                store = Store(preset)
                there = {r.key for p in plan.values() for r in p.runs if store.record(r)}
                seen["runs"] |= there
                made.cells(store, plan, {})
    return place, seen


def test_every_record_of_version_0_1_is_found_by_a_table(asked):
    home, seen = asked
    folders = sorted(home.glob("runs/*/*/*/record.json"))
    keys = {f.parent.name.rpartition("-")[2] for f in folders}
    assert len(folders) == len(keys) == 2
    assert keys == seen["runs"]
    for folder in (f.parent for f in folders):
        record = records.read(folder)
        assert run_of(record.run).key == record.key and record.metrics["last"]["accuracy"] > 10


def test_every_measurement_of_version_0_1_is_found(asked):
    home, seen = asked
    files = {f.name for f in home.glob("measurements/*.json")}
    assert len(files) == 8 and seen["measurements"] == files


def test_the_references_name_their_images_by_content_and_no_place_of_a_machine(asked):
    home, _ = asked
    for file in home.glob("runs/*/*/*/record.json"):
        name = json.loads(file.read_text("utf-8"))["run"]["data"]["name"]
        assert name == "npz:data/cifar10.npz@5cf678d3bb66"
        assert name == settings.load(PLACE).cifar10
    tracked = [f for f in home.rglob("*") if f.suffix in (".json", ".csv", ".md", ".tex")]
    for file in (f for f in tracked if "report" not in f.parts):
        assert not places_in(file), file


# A folder of version 0.1


PGD_OF_OLD = {"class": "thesis_repro.attacks.PGD", "epsilon": 8 / 255, "step": 2 / 255, "steps": 3}
PGD_OF_OLD |= {"norm": "linf", "loss": "ce", "start": "uniform", "restarts": 1, "targeted": False}
PGD_OF_OLD |= {"bn": "eval", "logit_scale": 1.0}


def spec_of_old(run) -> dict:
    "The specification of a run of `methods.small` as version 0.1 wrote it."
    o, d, length = run.recipe.optimiser, run.data, run.length
    schedule = {"class": "thesis_repro.training.Schedule", "epochs": length.epochs}
    schedule |= {"batch_size": length.batch_size, "lr": o.lr, "momentum": o.momentum}
    schedule |= {"weight_decay": o.weight_decay, "nesterov": o.nesterov, "clip": o.clip}
    schedule |= {"decay": list(o.decay.points), "factor": o.decay.factor, "kind": o.decay.kind}
    return {
        "class": "thesis_repro.runs.Run",
        "dataset": d.name,
        "model": run.recipe.network,
        "method": {"class": "thesis_repro.mixup.Plain", "loss": "ce"},
        "schedule": schedule,
        **{"seed": run.seed, "width": run.recipe.width, "select": "held-out", "bf16": False},
        **{"train_size": d.train, "test_size": d.test, "held_out": d.held_out},
    }


def made_old(store, run, key: str, how: Robustness) -> None:
    "Turn a run and its measurement into what version 0.1 would have left of them."
    record, kept = store.record(run), how.file(store, run)
    weights = checkpoints.read_checkpoint(record.folder / "weights.ckpt")
    bare = {
        which: {name.removeprefix("model."): v for name, v in state.items()}
        for which, state in weights.items()
    }
    checkpoints.save_checkpoint(record.folder / "weights.ckpt", bare)
    told = json.loads((record.folder / "record.json").read_text("utf-8"))
    told = {k: v for k, v in told.items() if k not in ("weights", "code")}
    atomic_json(record.folder / "record.json", told | {"run": spec_of_old(run)})
    marks = {n: sha256(record.folder / n) for n in ("weights.ckpt", "record.json")}
    atomic_json(record.folder / "done", marks)
    record.folder.rename(record.folder.with_name(f"small-seed-{run.seed}-{key}"))
    on = {"run": key, "attack": PGD_OF_OLD, "which": how.which, "size": how.size, "source": None}
    old = json.loads(kept.read_text("utf-8")) | {"spec": on}
    old = {k: v for k, v in old.items() if k not in ("on", "code")}
    atomic_json(kept.with_name(f"robustness-{key}.json"), old)
    kept.unlink()


HOW = Robustness(PGD(steps=3), "best", 20)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "Two runs, each attacked once, as version 0.1 left them; and what they gave."
    home = tmp_path_factory.mktemp("old")
    store, runs = store_at(home), [small(seed=seed, epochs=2) for seed in (0, 1)]
    store.ensure(runs)
    ensure_measured(store, [(r, HOW) for r in runs])
    told = {r: (store.record(r), HOW.value(store, r)) for r in runs}
    for run, key in zip(runs, ("00000000000a", "00000000000b"), strict=True):
        made_old(store, run, key, HOW)
        assert store.record(run) is None
    return home, told


@pytest.fixture
def old(trained, tmp_path):
    "A copy of that folder."
    shutil.copytree(trained[0], tmp_path / "old")
    return tmp_path / "old", trained[1]


def check(home, told):
    "Runs, weights and measurements are there as they were before."
    store = store_at(home)
    for run, (before, value) in told.items():
        now = store.record(run)
        assert (now.metrics, now.weights) == (before.metrics, before.weights)
        assert (now.history, now.environment) == (before.history, before.environment)
        assert HOW.value(store, run) == value and not HOW.absent(store, run)
        images = run.data.images()
        seen = evaluate(store.weights(run, "best"), images.x_test, images.y_test)
        assert seen["accuracy"] == now.metrics["best"]["accuracy"]
        assert store.outdated([run])[run] == ["version 0.1"]
        assert HOW.outdated(store, run) == ["version 0.1"]


def test_a_folder_is_carried_over_with_weights_and_measurements(old):
    home, told = old
    assert former.upgrade(home) == {"runs": 2, "measurements": 2, "left": {}}
    check(home, told)
    assert former.upgrade(home) == {"runs": 0, "measurements": 0, "left": {}}
    check(home, told)


@pytest.mark.parametrize("cut", ["write_kept", "save_checkpoint", "atomic_json", "atomic_write"])
@pytest.mark.parametrize("after", [0, 1])
def test_what_was_cut_off_goes_on(old, cut, after, monkeypatch):
    home, told = old
    real, calls = getattr(former, cut), []

    def once_more(*given, **how):
        calls.append(given)
        if len(calls) > after:
            raise KeyboardInterrupt
        return real(*given, **how)

    with monkeypatch.context() as patch:
        patch.setattr(former, cut, once_more)
        with pytest.raises(KeyboardInterrupt):
            former.upgrade(home)
    former.upgrade(home)
    check(home, told)


def test_without_the_files_of_weights_a_record_keeps_what_was_noted_of_them(old):
    home, told = old
    for file in home.glob("runs/*/*/*/weights.ckpt"):
        file.unlink()
    noted = {f.parent.name: json.loads(f.read_text()) for f in home.glob("runs/*/*/*/done")}
    assert former.upgrade(home)["runs"] == 2
    store = store_at(home)
    for run in told:
        digests = store.record(run).weights
        assert {d[:12] for d in digests.values()} <= {
            n["weights.ckpt"][:12] for n in noted.values()
        }
        assert HOW.value(store, run) == told[run][1]
        with pytest.raises(BadInput, match="its weights are not here"):
            store.weights(run)


def test_weights_without_the_networks_of_their_method_are_not_taken_for_whole(old):
    home, told = old
    folder = next(f for f in home.glob("runs/*/*/*") if f.name.endswith("a"))
    weights = checkpoints.read_checkpoint(folder / "weights.ckpt")
    plain, *_ = told
    composed = replace(plain.recipe.method) and m2at.trained(loss=LearnableBoundary())
    assert former._weights(folder, plain).keys() == weights.keys()
    assert former._weights(
        folder, replace(plain, recipe=replace(plain.recipe, method=m2at.trained()))
    )
    other = replace(plain, recipe=replace(plain.recipe, method=composed))
    assert former._weights(folder, other) == {}


HOSTILE = {
    "of a class that is gone": {"class": "thesis_repro.mixup.Vanished", "loss": "ce"},
    "of something to run": {"class": "os.system", "command": "touch here"},
    "with a field that is gone": {"class": "thesis_repro.mixup.Plain", "dreamed": 1},
    "that is a text": "a method",
}


@pytest.mark.parametrize("method", HOSTILE.values(), ids=HOSTILE)
def test_what_cannot_be_carried_over_stays_and_is_named(old, method, tmp_path, monkeypatch):
    home, told = old
    monkeypatch.chdir(tmp_path)
    [folder] = (f for f in home.glob("runs/*/*/*") if f.name.endswith("-00000000000a"))
    record = json.loads((folder / "record.json").read_text("utf-8"))
    record["run"]["method"] = method
    atomic_json(folder / "record.json", record)
    before = {f.name: sha256(f) for f in folder.iterdir()}
    done = former.upgrade(home)
    assert (done["runs"], done["measurements"]) == (1, 1)
    assert set(done["left"]) == {
        folder.relative_to(home).as_posix(),
        "measurements/robustness-00000000000a.json",
    }
    assert {f.name: sha256(f) for f in folder.iterdir()} == before
    assert not (tmp_path / "here").exists()
    check(home, {run: v for run, v in told.items() if run.seed == 1})


def test_measurements_of_another_form_keep_their_numbers():
    run = {"run": "440d311aadc7", "weights": {"last": "a", "best": "b"}}
    distances = list(range(0, 17, 2))
    old = {"distance": [0.0] * 9, "gradient": list(range(9)), "random": [1] * 9}
    name, on, value = former.FORMS["loss_along"](
        {"run": run, "images": 1000, "distances": distances}, old
    )
    assert (name, on["how"]) == ("randomdirections", {"is": "RandomDirections"})
    assert value == {**old, "distance": distances}
    text = json.dumps({"columns": ["pair", "loss"], "data": [[0, 1.5], [1, None]], "index": [0, 1]})
    assert former.FORMS["figure_7_2"]({"run": run}, text) == (
        "figure_7_2",
        {"run": run},
        {"pair": (0, 1), "loss": (1.5, None)},
    )
    on = former.FORMS["figure_7_3"]({"run": run, "points": 11, "radius": 0.5}, {})[1]
    assert on == {"run": run, "points": 11, "radius": 0.5, "directions": 0}


def test_nothing_is_trained_for_a_figure_that_may_not(tmp_path, monkeypatch):
    shutil.copytree(
        paths.root() / "outputs" / "reference" / "adversarial-cpu",
        tmp_path / "reference" / "adversarial-cpu",
    )
    monkeypatch.setenv("THESIS_REPRO_OUTPUTS", str(tmp_path))
    made = registry.FIGURES["5.ours"]
    preset = made.preset("reference/adversarial-cpu")
    whole = m2at.plan_5_ours(preset)
    assert registry.at_hand(preset, whole) == whole
    with Store.training(False):
        drawn = registry.at_hand(preset, whole)
        rows = {row for row, _ in drawn}
        assert rows == {*m2at.REAL} and drawn.items() <= whole.items()
        nowhere = replace(preset, width=0.5)
        absent = m2at.plan_5_ours(nowhere)
        assert registry.at_hand(nowhere, absent) == absent
        with pytest.raises(RunsFailed, match="nothing is to be trained"):
            registry.measured_cells(nowhere, absent)
