"""Runs keep their identity, survive kill -9, are made once, and notice damage."""

import dataclasses
import json
import multiprocessing
import os
import random
import signal
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from thesis_repro import runs, settings, stopping, training
from thesis_repro.attacks import PGD, robust_accuracy
from thesis_repro.mixup import Beta, Mixup, Plain
from thesis_repro.runs import Robustness, Run, Store, from_specification, specification
from thesis_repro.settings import BadInput
from thesis_repro.training import Schedule

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["thesis_repro.runs", "thesis_repro.mixup"])
MANIFOLD = Mixup((0, 1, 2, 3), Beta(2.0), loss="bce")


def small(method=Plain(), seed=0, epochs=3, label="small"):
    schedule = Schedule(epochs=epochs, batch_size=40)
    return Run(
        "digits10",
        "preactresnet18",
        method,
        schedule,
        seed,
        0.125,
        250,
        100,
        50,
        home="tests/runs",
        label=label,
    )


def store_at(folder, **changes):
    return Store(settings.load("smoke", device="cpu", **changes), folder)


# Identity


def test_the_key_is_pinned():
    "A key that changes with a release would orphan every record on everybody's disk."
    assert Run("cifar10", "preactresnet18", MANIFOLD, Schedule()).key == PINNED


PINNED = "1192eeb60cf8"


@pytest.mark.parametrize(
    "field, value",
    [
        ("seed", 1),
        ("width", 0.5),
        ("dataset", "svhn"),
        ("bf16", True),
        ("select", "test"),
        ("method", Mixup()),
    ],
)
def test_what_counts_changes_the_key(field, value):
    assert dataclasses.replace(small(), **{field: value}).key != small().key


def test_every_piece_survives_its_specification():
    run = small(Mixup((1, 2), Beta(0.2, per="pair"), input_ratio=Beta(1.0), loss="bce"))
    assert from_specification(json.loads(json.dumps(specification(run)))) == run


def test_a_specification_of_nothing_is_bad_input():
    with pytest.raises(BadInput, match=r"thesis_repro\.mixup\.Nothing"):
        from_specification({"class": "thesis_repro.mixup.Nothing"})


# kill -9


def _make(folder, run):
    torch.set_num_threads(1)
    store_at(folder, checkpoint_seconds=0).make(run, progress=False)


def killed_until_done(folder, run, kills, rng):
    "Start the run again and again, killing it at random moments of its life; how often it was killed."
    n = 0
    while True:
        child = FORK.Process(target=_make, args=(folder, run))
        child.start()
        child.join(rng.uniform(0.2, 1.5) if n < kills else 300)
        if child.exitcode is None:
            os.kill(child.pid, signal.SIGKILL)
            child.join()
            n += 1
        elif child.exitcode == 0:
            return n
        else:
            raise AssertionError(f"the run failed with {child.exitcode}")


def outcome(folder, run):
    record = store_at(folder).record(run)
    weights = training.read_checkpoint(record.folder / "weights.ckpt")
    return (
        record.metrics,
        record.history,
        [(k, v) for which in ("last", "best") for k, v in weights[which].items()],
    )


@pytest.mark.parametrize("method", [Plain(), MANIFOLD], ids=["plain", "manifold mixup"])
def test_kill_9_changes_nothing(tmp_path, method):
    run = small(method, epochs=25)
    kills = killed_until_done(tmp_path / "killed", run, 10, random.Random(7))
    _run_whole(tmp_path / "whole", run)
    a, b = outcome(tmp_path / "killed", run), outcome(tmp_path / "whole", run)
    assert kills >= 5, "the run is too short to be killed"
    assert a[:2] == b[:2]
    assert all(
        ka == kb and torch.equal(va, vb) for (ka, va), (kb, vb) in zip(a[2], b[2], strict=True)
    )


def _run_whole(folder, run):
    child = FORK.Process(target=_make, args=(folder, run))
    child.start()
    child.join()
    assert child.exitcode == 0


def test_a_flipped_bit_in_the_checkpoint_costs_minutes_not_the_run(tmp_path):
    run = small(epochs=40)
    child = FORK.Process(target=_make, args=(tmp_path, run))
    child.start()
    file = tmp_path / "runs" / run.home / run.name / "checkpoint.ckpt"
    while not file.with_name(file.name + ".previous").exists():
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    if not file.exists():  # killed between the two renames: that is the fault itself
        file.write_bytes(b"")
    blob = bytearray(file.read_bytes() or b"\0")
    blob[len(blob) // 2] ^= 4
    file.write_bytes(blob)
    with pytest.warns(UserWarning, match="damaged"):
        record = store_at(tmp_path).make(run, progress=False)
    assert len(record.history) == 40


# Made once


@dataclass(frozen=True)
class Counted:
    file: str

    def __call__(self, model, x, y, draws):
        if (draws.epoch, draws.step) == (0, 0):
            with open(self.file, "a") as f:
                f.write("begun\n")
        return Plain()(model, x, y, draws)


def test_two_processes_train_a_run_once(tmp_path):
    run = small(Counted(str(tmp_path / "begun")))
    children = [FORK.Process(target=_make, args=(tmp_path, run)) for _ in range(2)]
    [c.start() for c in children]
    [c.join() for c in children]
    assert [c.exitcode for c in children] == [0, 0]
    assert (tmp_path / "begun").read_text() == "begun\n"


def test_a_dead_holder_frees_its_lock(tmp_path):
    run = small(epochs=200)
    child = FORK.Process(target=_make, args=(tmp_path, run))
    child.start()
    while not list(tmp_path.glob("runs/*/*/*/checkpoint.ckpt")):
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    began = time.monotonic()
    with runs._locked(tmp_path / "runs" / ".locks" / run.key):
        assert time.monotonic() - began < 1


def test_n_of_n_then_none(tmp_path):
    store, wanted = store_at(tmp_path, jobs=2), [small(seed=s, epochs=1) for s in range(3)]
    store.ensure(wanted[:2])
    made = {p: p.stat().st_mtime_ns for p in tmp_path.glob("runs/*/*/*/record.json")}
    records = store.ensure([*wanted, wanted[0]])
    assert [r.key for r in records] == [r.key for r in [*wanted, wanted[0]]]
    assert len(list(tmp_path.glob("runs/*/*/*/record.json"))) == 3
    assert all(p.stat().st_mtime_ns == t for p, t in made.items())


@dataclass(frozen=True)
class Fails:
    def __call__(self, model, x, y, draws):
        raise ValueError("this method cannot work")


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failing_run_does_not_stop_the_others(tmp_path, jobs):
    store = store_at(tmp_path, jobs=jobs)
    wanted = [small(Fails(), label="fails"), small(epochs=1)]
    with pytest.raises(runs.RunsFailed, match=r"fails-seed-0.*cannot work"):
        store.ensure(wanted)
    assert store.record(wanted[1]) is not None and store.record(wanted[0]) is None


def test_jobs_do_not_change_the_result(tmp_path):
    wanted = [small(MANIFOLD, seed=s, epochs=2) for s in range(2)]
    alone = [store_at(tmp_path / "a", jobs=2).ensure([r])[0] for r in wanted]
    beside = store_at(tmp_path / "b", jobs=2).ensure(wanted)
    assert [(r.metrics, r.history) for r in alone] == [(r.metrics, r.history) for r in beside]


# Damage and bad places


def test_a_changed_record_is_not_believed(tmp_path):
    store, run = store_at(tmp_path), small(epochs=1)
    record = store.make(run, progress=False)
    file = record.folder / "record.json"
    file.write_text(file.read_text().replace('"accuracy"', '"Accuracy"', 1))
    with pytest.warns(UserWarning, match="damaged"):
        assert store.record(run) is None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert store.make(run, progress=False).metrics == record.metrics


def test_without_its_marker_a_run_is_not_done(tmp_path):
    store, run = store_at(tmp_path), small(epochs=1)
    (store.make(run, progress=False).folder / "done").unlink()
    assert store.record(run) is None


def test_an_output_folder_that_cannot_be_written_is_bad_input(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(BadInput, match="cannot be written"):
        store_at(tmp_path / "file" / "outputs").ensure([small()])


def test_a_missing_data_set_is_bad_input_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("THESIS_REPRO_DATA", str(tmp_path / "data"))
    with pytest.raises(BadInput, match="cifar10"):
        store_at(tmp_path / "out").ensure([dataclasses.replace(small(), dataset="cifar10")])
    assert not list((tmp_path / "out").glob("runs/*/*/*"))


def test_a_measurement_is_kept_and_a_damaged_one_taken_again(tmp_path):
    store, calls = store_at(tmp_path), []
    ask = lambda n: runs.measure(store, "m", {"n": n}, lambda: calls.append(n) or {"value": n})
    assert ask(1) == ask(1) == {"value": 1} and ask(2) == {"value": 2} and calls == [1, 2]
    file = next(Path(tmp_path).glob("measurements/m-*.json"))
    file.write_text(file.read_text().replace('"value"', '"valve"', 1))
    with pytest.warns(UserWarning, match="damaged"):
        ask(1), ask(2)
    assert len(calls) == 3


# A preset scales cost, never the method


def test_scaling_leaves_the_method_alone():
    smoke, thesis = settings.load("smoke"), settings.load("thesis")
    args = ("CIFAR-10", "preactresnet18", MANIFOLD, Schedule(), 0, "h", "l")
    a, b = runs.scaled(smoke, *args), runs.scaled(thesis, *args)
    assert (
        a.method == b.method and b.schedule == Schedule() and a.schedule.decay == b.schedule.decay
    )
    assert (a.dataset, b.dataset, a.schedule.epochs) == ("digits10", "cifar10", smoke.epochs)


# Under attack

FEW = Robustness(PGD(steps=3), size=40)


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    "Two runs of two seeds, trained."
    store, pair = (
        store_at(tmp_path_factory.mktemp("attacked"), jobs=1),
        [small(seed=s, epochs=1) for s in (0, 1)],
    )
    store.ensure(pair)
    return store, pair


def test_an_outcome_is_the_attack_on_the_weights(attacked):
    store, (run, _) = attacked
    found, d = runs.outcome(store, run, FEW), runs.images(run)
    model = store.weights(run)
    assert found == robust_accuracy(model, d.x_test[:40], d.y_test[:40], FEW.attack)
    clean = runs.outcome(store, run, Robustness())["accuracy"]
    assert clean == pytest.approx(store.record(run).value("last.accuracy"))
    assert found["accuracy"] == 100 * sum(found["correct"]) / 40


def test_outcomes_are_made_once_and_only_where_absent(attacked, monkeypatch):
    store, pair = attacked
    runs.attack_all(store, [(r, FEW) for r in pair])
    monkeypatch.setattr(runs, "robust_accuracy", lambda *a, **k: pytest.fail("attacked again"))
    runs.attack_all(store, [(r, FEW) for r in pair] * 2)
    assert runs.kept_outcome(store, pair[0], Robustness(PGD(steps=4), size=40)) is None


def test_best_weights_that_are_the_last_are_attacked_once(attacked, monkeypatch):
    store, (run, _) = attacked  # of one epoch, which is its best and its last
    last = runs.outcome(store, run, FEW)
    monkeypatch.setattr(runs, "robust_accuracy", lambda *a, **k: pytest.fail("attacked again"))
    assert runs.outcome(store, run, dataclasses.replace(FEW, which="best")) == last
    record = store.record(run)
    monkeypatch.setitem(record.metrics["best"], "epoch", 7)
    monkeypatch.setattr(store, "record", lambda r: record)
    assert runs.kept_outcome(store, run, dataclasses.replace(FEW, which="best")) is None


def test_a_transfer_comes_from_the_run_of_the_same_seed(attacked):
    store, pair = attacked
    across = Robustness(PGD(steps=3), size=40, sources=tuple(pair))
    assert [across.source(r) for r in pair] == pair
    assert FEW.source(pair[0]) is None
    assert runs._attacked(store, pair[0], across) != runs._attacked(store, pair[0], FEW)


def test_attacking_a_run_that_does_not_exist_is_bad_input(attacked):
    store, _ = attacked
    with pytest.raises(BadInput, match=r"there is no such run at preset smoke; `ensure` makes it"):
        runs.outcome(store, small(seed=7), FEW)


def test_one_failing_attack_does_not_stop_the_others(attacked):
    store, pair = attacked
    with pytest.raises(runs.RunsFailed) as e:
        runs.attack_all(store, [(small(seed=8), FEW), (pair[1], dataclasses.replace(FEW, size=30))])
    assert len(e.value.failures) == 1 and runs.kept_outcome(
        store, pair[1], dataclasses.replace(FEW, size=30)
    )


BATCHES = []  # the batches that `Told` has attacked; None: it is stopped at its second


@dataclass(frozen=True)
class Told:
    "PGD that says which batch it is at."

    def __call__(self, model, x, y, draws, seen=None):
        if None in BATCHES and len(BATCHES) == 2:
            raise stopping.Stopped(signal.SIGTERM)
        BATCHES.append(draws.step)
        return PGD(steps=2)(model, x, y, draws)


def test_an_attack_that_is_stopped_goes_on_with_the_batch_it_was_at(attacked, monkeypatch):
    store, (run, _) = attacked
    told = Robustness(Told(), size=40)
    batches = lambda *a, **k: robust_accuracy(*a, batch_size=10, progress=False, **k)
    monkeypatch.setattr(runs, "robust_accuracy", batches)
    begun = lambda: list((store.folder / "measurements" / ".begun").iterdir())
    BATCHES[:] = [None]
    with pytest.raises(stopping.Stopped):
        runs.outcome(store, run, told)
    assert (
        BATCHES == [None, 0] and len(begun()) == 1 and runs.kept_outcome(store, run, told) is None
    )
    BATCHES.clear()
    found = runs.outcome(store, run, told)
    assert BATCHES == [10, 20, 30] and not begun()
    d = runs.images(run)
    assert found == batches(store.weights(run), d.x_test[:40], d.y_test[:40], Told())
    BATCHES.clear()
    assert runs.outcome(store, run, told) == found and not BATCHES


def test_a_planned_row_says_what_is_short(monkeypatch):
    preset = settings.load("smoke", chapter=6)
    columns = {"Clean": "last.accuracy", "PGD-3": Robustness(PGD(steps=3), size=50)}
    row = ("Standard", "CIFAR-10", "resnet18", Plain(), Schedule(epochs=120), "tests/table")
    plan = runs.planned_row(preset, *row, columns)
    assert (
        "5 of 120 epochs" in plan["Standard", "Clean"].reason
        and "50 test images" in plan["Standard", "PGD-3"].reason
    )
    assert plan["Standard", "Clean"].runs == plan["Standard", "PGD-3"].runs
    absent = runs.planned_row(preset, *row, columns, parts=("SVHN",))["Standard", "PGD-3"]
    assert absent.runs == () and absent.reason == "CIFAR-10 was not asked for"


def test_a_network_that_plays_another_is_named():
    preset = dataclasses.replace(settings.load("smoke", chapter=5), wide_network="resnet18")
    plan = runs.planned_row(
        preset,
        "PGD",
        "CIFAR-10",
        "wrn34_10",
        Plain(),
        Schedule(),
        "tests/table",
        {"Clean": "last.accuracy"},
    )
    cell = plan["PGD", "Clean"]
    assert cell.reason.startswith("resnet18 in place of wrn34_10, ") and {
        r.model for r in cell.runs
    } == {"resnet18"}
