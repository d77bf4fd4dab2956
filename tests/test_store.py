"The store: what is there is reused, what is absent is made once, nothing stale or swapped passes."

import contextlib
import dataclasses
import errno
import fcntl
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from gan import two
from methods import Counted, Fails, Made, Weighed, left_by, same, small, store_at
from processes import FORK, child
from samples import refused

from thesis_repro import (
    checkpoints,
    cli,
    devices,
    measures,
    paths,
    pieces,
    records,
    registry,
    settings,
    store,
)
from thesis_repro.attacks import PGD
from thesis_repro.augmented import Augmented
from thesis_repro.cli import main
from thesis_repro.detection import Detect
from thesis_repro.detection_data import Scenes
from thesis_repro.detector import SmallDetector
from thesis_repro.files import BadInput, Unwritable, atomic_json, sha256
from thesis_repro.measures import Planned, Recorded, Robustness, ensure_measured
from thesis_repro.mixup import Beta, Mixup, Plain
from thesis_repro.pieces import specification
from thesis_repro.recipes import Classify
from thesis_repro.runs import Named, Run
from thesis_repro.store import Busy, RunsFailed, Store, locked
from thesis_repro.training import Length
from thesis_repro.verdicts import unpacked

MANIFOLD = Mixup((0, 1, 2, 3), Beta(2.0), loss="bce")


def _make(folder, *wanted):
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for run in wanted:
            store_at(folder, checkpoint_seconds=0).make(run, progress=False)


def made(folder) -> dict:
    "The records in a folder, and when each was written."
    return {f: f.stat().st_mtime_ns for f in Path(folder).glob("runs/*/*/*/record.json")}


# Killed at any moment


def kill_soon(folder, run, rng):
    "Start a run, and kill it some time after it has saved something new; whether it was too late."
    file = store_at(folder).home(run) / "checkpoint.ckpt"
    before = file.stat().st_mtime_ns if file.exists() else 0
    process = FORK.Process(target=_make, args=(folder, run))
    process.start()
    while process.exitcode is None and (not file.exists() or file.stat().st_mtime_ns == before):
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.1))
    process.kill()
    process.join()
    return process.exitcode != -signal.SIGKILL


@pytest.mark.parametrize("method", [Plain(), MANIFOLD, Weighed()], ids=["plain", "mixup", "two"])
def test_kill_9_changes_nothing(tmp_path, method, long):
    run, rng = small(method, epochs=100 if long else 12), random.Random(7)
    for _ in range(20 if long else 4):
        assert not kill_soon(tmp_path / "killed", run, rng), "the run is too short to be killed"
    assert child(_make, tmp_path / "killed", run) == 0
    store_at(tmp_path / "whole", threads=1).ensure([run])
    assert same(left_by(tmp_path / "killed", run), left_by(tmp_path / "whole", run))


# Made once


def test_two_processes_train_a_run_once(tmp_path):
    run = small(Counted(str(tmp_path / "begun")))
    both = [FORK.Process(target=_make, args=(tmp_path, run)) for _ in range(2)]
    [p.start() for p in both]
    [p.join() for p in both]
    assert [p.exitcode for p in both] == [0, 0]
    assert (tmp_path / "begun").read_text() == "begun\n"


def test_a_dead_holder_frees_its_lock(tmp_path):
    run = small(epochs=2000)
    process = FORK.Process(target=_make, args=(tmp_path, run))
    process.start()
    while not list(tmp_path.glob("runs/*/*/*/checkpoint.ckpt")):
        time.sleep(0.02)
    with pytest.raises(Busy), store_at(tmp_path).lock(run.key, wait=False):
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    began = time.monotonic()
    with store_at(tmp_path).lock(run.key):
        assert time.monotonic() - began < 1


def test_a_lock_that_is_waited_for_keeps_no_file_open(tmp_path, monkeypatch):
    monkeypatch.setattr(store.distributed, "processes", lambda: 2)  # which ask again and again
    monkeypatch.setattr(store.distributed, "led", lambda action: action())
    looks = iter(range(100))
    opened = len(os.listdir("/proc/self/fd"))
    with open(tmp_path / "lock", "a") as other, contextlib.ExitStack() as held:
        fcntl.flock(other, fcntl.LOCK_EX)
        while next(looks) < 50:
            assert not store._taken(tmp_path / "lock", held, True)
        assert len(os.listdir("/proc/self/fd")) <= opened + 1


def test_some_then_the_rest_then_none(tmp_path):
    at, wanted = store_at(tmp_path, jobs=2), [small(seed=s, epochs=1) for s in range(3)]
    at.ensure(wanted[:2])
    first = made(tmp_path)
    found = at.ensure([*wanted, wanted[0]])
    assert [r.key for r in found] == [r.key for r in [*wanted, wanted[0]]]
    assert len(made(tmp_path)) == 3 and made(tmp_path).items() >= first.items()


def test_a_run_of_another_table_is_the_same_run(tmp_path):
    at, run = store_at(tmp_path), small(epochs=1)
    record = at.make(run, progress=False)
    elsewhere = dataclasses.replace(run, home="aip/table_7_1", label="baseline")
    assert at.record(elsewhere).folder == record.folder == at.home(elsewhere)
    assert at.ensure([elsewhere])[0].metrics == record.metrics and len(made(tmp_path)) == 1


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failing_run_does_not_stop_the_others(tmp_path, jobs):
    at = store_at(tmp_path, jobs=jobs)
    wanted = [small(Fails(), label="fails"), small(epochs=1)]
    with pytest.raises(RunsFailed, match=r"fails-seed-0.*cannot work") as e:
        at.ensure(wanted)
    assert e.value.failures.keys() == {(wanted[0].key, None)}
    assert e.value.named == {wanted[0].name: "ValueError: this method cannot work"}
    assert at.record(wanted[1]) is not None and at.record(wanted[0]) is None


def test_jobs_do_not_change_the_result(tmp_path):
    wanted = [small(MANIFOLD, seed=s, epochs=2) for s in range(2)]
    alone = [store_at(tmp_path / "a", jobs=2, threads=1).ensure([r])[0] for r in wanted]
    beside = store_at(tmp_path / "b", jobs=2, threads=1).ensure(wanted)
    assert [(r.weights, r.history) for r in alone] == [(r.weights, r.history) for r in beside]


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_that_others_need_is_made_first(tmp_path, jobs):
    first = small(epochs=1, label="first")
    needy = [
        dataclasses.replace(small(seed=s, epochs=1), data=Made(first, str(tmp_path)))
        for s in range(2)
    ]
    found = store_at(tmp_path, jobs=jobs).ensure(needy)
    assert len(found) == 2 and len(made(tmp_path)) == 3
    assert store_at(tmp_path).record(first) is not None


def test_nothing_is_trained_where_that_was_said(tmp_path):
    at, run = store_at(tmp_path), small(epochs=1)
    with Store.training(False), pytest.raises(RunsFailed, match="nothing is to be trained"):
        at.ensure([run])
    assert not made(tmp_path)
    at.ensure([run])
    with Store.training(False):
        assert at.ensure([run])[0] is not None


# Damage, and what is not what it says


@pytest.fixture
def kept(finished, tmp_path):
    "A copy of a store with a finished run, and the run."
    subprocess.run(["cp", "-a", f"{finished[0]}/.", tmp_path / "kept"], check=True)
    return store_at(tmp_path / "kept"), finished[1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder, run = tmp_path_factory.mktemp("finished"), small(Weighed(), epochs=2)
    store_at(folder).make(run, progress=False)
    return folder, run


def test_a_flipped_bit_in_a_record_costs_no_training(kept, monkeypatch):
    "Fault of round 2: such a run was trained again, though its weights were whole."
    at, run = kept
    before, file = at.record(run), at.home(run) / "record.json"
    monkeypatch.setattr(store, "_fulfil", None)
    for n in (0, 100, len(whole := file.read_bytes()) - 1):
        file.write_bytes(whole[:n] + bytes([whole[n] ^ 4]) + whole[n + 1 :])
        assert at.make(run, progress=False) == before and file.read_bytes() == whole
    file.write_bytes(b"")
    with monkeypatch.context() as full:  # on a disk that is full the copy serves as it is
        full.setattr(os, "fsync", _no_space)
        assert at.record(run) == before and file.read_bytes() == b""
    at.accept()
    assert at.record(run) == before and file.read_bytes() == whole
    at.renew([run])
    assert not list(file.parent.iterdir())


def _no_space(fd):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_changed_record_is_not_believed(kept):
    at, run = kept
    before = at.record(run)
    file = before.folder / "record.json"
    (before.folder / "record.json.copy").unlink()  # as in a run that version 0.2 left
    file.write_text(file.read_text().replace('"accuracy"', '"Accuracy"', 1))
    with pytest.warns(UserWarning, match="damaged"):
        assert at.record(run) is None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert at.make(run, progress=False).metrics == before.metrics


def test_without_its_marker_a_run_is_not_done(kept):
    at, run = kept
    (at.home(run) / "done").unlink()
    assert at.record(run) is None


def _whole(networks) -> dict:
    return {k: v.clone() for k, v in networks.state_dict().items()}


def test_the_networks_of_a_run_are_those_of_its_record(kept):
    at, run = kept
    nets = at.networks(run)
    assert set(nets) == {"model", "policy"} and not nets.training
    assert checkpoints.weights_digest(nets.state_dict()) == at.record(run).weights["last"]
    assert at.weights(run, "best") is not at.weights(run)


def test_swapped_weights_are_refused(kept):
    "Those of another run are whole and have a checksum of their own."
    at, run = kept
    other = small(Weighed(), seed=1, epochs=2)
    at.make(other, progress=False)
    file = at.home(run) / "weights.ckpt"
    file.write_bytes((at.home(other) / "weights.ckpt").read_bytes())
    refused(lambda: at.networks(run), str(at.home(run)), "not the weights of its record", "remove")
    refused(lambda: Robustness(size=10).make(at, run), "not the weights of its record")
    assert at.networks(other) is not None


def test_a_transfer_from_a_run_that_is_not_made_is_not_the_attack_on_the_run_itself(kept):
    at, run = kept
    source = small(Weighed(), seed=run.seed, epochs=3)
    itself, transfer = (Robustness(size=10, sources=s) for s in ((), (source,)))
    itself.make(at, run)
    assert not itself.absent(at, run) and transfer.absent(at, run)
    assert math.isnan(transfer.value(at, run)) and transfer.file(at, run) != itself.file(at, run)


def test_weights_of_last_and_best_that_change_places_are_refused(kept):
    at, run = kept
    file = at.home(run) / "weights.ckpt"
    state = checkpoints.read_checkpoint(file)
    if at.record(run).weights["last"] == at.record(run).weights["best"]:
        state["best"]["model.stages.0.1.weight"] += 1
    checkpoints.save_checkpoint(file, {"last": state["best"], "best": state["last"]})
    refused(lambda: at.networks(run), "not the weights of its record")


def test_weights_that_are_missing_or_damaged_say_what_to_do(kept):
    at, run = kept
    file = at.home(run) / "weights.ckpt"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    refused(lambda: at.networks(run), "damaged", f"remove {file.parent}")
    file.unlink()
    refused(lambda: at.networks(run), "its weights are not here", "copy weights.ckpt")
    refused(lambda: at.networks(small(seed=9)), "there is no such run at preset smoke")


# Bad places


def test_an_output_folder_that_cannot_be_written_is_bad_input(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(BadInput, match="cannot be written"):
        store_at(tmp_path / "file" / "outputs").ensure([small()])


def test_a_missing_data_set_is_bad_input_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("THESIS_REPRO_DATA", str(tmp_path / "data"))
    with pytest.raises(BadInput, match="cifar10"):
        store_at(tmp_path / "out").ensure([dataclasses.replace(small(), data=Named("cifar10"))])
    assert not list((tmp_path / "out").glob("runs/*/*/*"))


def test_a_last_batch_of_one_tiny_image_is_one_line(tmp_path):
    "Of 65 images of 8 × 8 pixels in batches of 64, batch norm would see one pixel alone."
    images = {"x_train": torch.rand(66, 8, 8, 3).mul(255).byte().numpy(), "y_train": [0, 1] * 33}
    images |= {"x_test": 255 - images["x_train"][:20], "y_test": [0, 1] * 10}
    np.savez(tmp_path / "tiny.npz", **images)
    data = Named(f"npz:{tmp_path}/tiny.npz", 65, 0, 0)
    recipe = Classify("resnet18", Plain(), width=0.0625, select="test")
    run = dataclasses.replace(small(epochs=1, batch=64), data=data, recipe=recipe)
    at = store_at(tmp_path)
    refused(lambda: at.make(run, progress=False), "a batch of one image", "choose a batch size")
    even = dataclasses.replace(run, data=dataclasses.replace(data, train=66))
    assert at.make(even, progress=False).metrics["last"]["accuracy"] >= 0


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named_with_the_way_out(tmp_path, monkeypatch, number):
    "As Lustre without `-o flock`, or NFS without lockd."

    def flock(f, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    at, run = store_at(tmp_path), small(epochs=1)
    words = (str(tmp_path), "has no locks", "set THESIS_REPRO_OUTPUTS")
    for call in (
        lambda: at.ensure([run]),
        lambda: at.ensure([run, small(seed=1)]),
        lambda: store_at(tmp_path, jobs=2).ensure([run, small(seed=1)]),
        lambda: at.make(run),
        lambda: locked(tmp_path / "x" / "lock").__enter__(),
    ):
        refused(call, *words)
    assert not list(tmp_path.glob("runs/*/*/*"))
    with pytest.raises(Unwritable):
        at.make(run)


def test_a_command_on_a_file_system_without_locks_is_one_line(tmp_path, monkeypatch, capsys):
    def flock(f, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setenv("THESIS_REPRO_OUTPUTS", str(tmp_path))
    (tmp_path / "run.json").write_text(json.dumps(specification(small(epochs=1))))
    assert cli.main(["run", str(tmp_path / "run.json"), "--device", "cpu", "--jobs", "1"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "has no locks" in said and str(tmp_path) in said


# Found by a key or the beginning of a name


def test_a_run_is_found_by_key_or_name(kept):
    at, run = kept
    folder = at.record(run).folder  # as `run` prints it; `runs` prints it below the outputs
    named = (run.key, run.key[:5], run.name, "small-seed-0")
    for text in (*named, f"{folder}", f"own/runs/{run.name}/"):
        assert at.find(text) == run, text
    refused(lambda: at.find("nobody"), "nobody: there is no such run at preset smoke")
    at.make(small(Weighed(), seed=1, epochs=1), progress=False)
    refused(lambda: at.find("small"), "2 runs begin so")


def test_the_run_of_a_file_that_was_moved_is_found_with_its_images(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (60, 16, 16, 3), dtype=np.uint8), np.arange(60) % 4
    old, new = tmp_path / "old.npz", tmp_path / "new.npz"
    np.savez(old, x_train=x[8:], y_train=y[8:], x_test=x[:8], y_test=y[:8])
    recipe = Classify("preactresnet18", Plain(), width=0.03)
    run = Run(Named(f"npz:{old}", 32, 8, 8), recipe, Length(1, 16))
    Store(settings.load("smoke", device="cpu"), tmp_path / "outputs").make(run, progress=False)
    old.rename(new)
    here = settings.load("smoke", device="cpu", cifar10=f"npz:{new}")
    at = Store(here, tmp_path / "outputs")
    found = at.find(run.key)
    assert found.key == run.key and found.data.name.startswith(f"npz:{new}@")
    assert len(at.images(found.data).x_test) == 8


HOSTILE = [
    {"class": "os.system", "command": "touch OWNED"},
    {"is": "os.system", "command": "touch OWNED"},
    {"is": "Named", "name": "digits10"},
    {"is": "Run", "data": 5},
    {},
    None,
    5,
    [],
    "Run",
]


def forge(folder, **changes):
    "Change a record, with its checksum made to fit: what somebody who writes records can do."
    found = json.loads((folder / "record.json").read_text()) | changes
    atomic_json(folder / "record.json", {k: v for k, v in found.items() if v != "absent"})
    marks = json.loads((folder / "done").read_text())
    atomic_json(folder / "done", marks | {"record.json": sha256(folder / "record.json")})


@pytest.mark.parametrize("spec", HOSTILE, ids=str)
@pytest.mark.parametrize("command", ["attack", "export", "runs", "accept", "pack"])
def test_a_record_that_names_something_else_runs_nothing(
    kept, spec, command, tmp_path, monkeypatch, capsys
):
    at, run = kept
    forge(at.home(run), run=spec)
    monkeypatch.chdir(at.folder)
    outputs = at.folder.parent / "outputs"
    outputs.mkdir()
    at.folder.rename(outputs / "smoke")
    monkeypatch.setenv("THESIS_REPRO_OUTPUTS", str(outputs))
    words = {"attack": ["attack", run.key], "runs": ["runs"], "accept": ["records", "accept"]}
    words |= {"export": ["export", run.key, "--to", str(tmp_path / "network.pt")]}
    words |= {"pack": ["records", "export", str(tmp_path / "records.json")]}
    before = sorted(outputs.rglob("*"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a record that describes nothing at all is damaged
        code = cli.main([*words[command], "--preset", "smoke"])
    said = capsys.readouterr().err
    allowed = {"attack": (2,), "runs": (0,), "accept": (2,) if isinstance(spec, dict) else (0,)}
    allowed |= {"export": (2,), "pack": (2,)}
    assert code in allowed[command] and said.count("\n") == (code == 2)
    assert "OWNED" not in {f.name for f in outputs.rglob("*")}
    assert [f for f in sorted(outputs.rglob("*")) if ".locks" not in f.parts] == [
        f for f in before if ".locks" not in f.parts
    ]


DEEP = json.loads("[" * 200 + "]" * 200)
ODD = [
    {"metrics": {}},
    {"metrics": {"last": {}}},
    {"metrics": {"last": {"accuracy": "x"}, "best": 3}},
    {"metrics": 5},
    {"metrics": "absent"},
    {"environment": {}},
    {"data": {}},
    {"history": "x"},
    {"weights": {}},
    {"weights": 7},
    {"cost": None},
    {"unknown": {"of": "a newer version"}},
    {"code": "absent"},
    {"code": 3},
    {"data": {"test": "many"}},
    {"run": {"is": "Run", "deep": DEEP}},
]


@pytest.mark.parametrize("changes", ODD, ids=lambda c: str(c)[:60])
def test_an_odd_record_never_ends_a_command_in_a_traceback(kept, changes, monkeypatch, capsys):
    at, run = kept
    forge(at.home(run), **changes)
    outputs = at.folder.parent / "outputs"
    outputs.mkdir()
    at.folder.rename(outputs / "smoke")
    monkeypatch.setenv("THESIS_REPRO_OUTPUTS", str(outputs))
    for words in (
        ["runs"],
        ["runs", "--json"],
        ["records", "accept"],
        ["attack", run.key, "--size", "10", "--steps", "1"],
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert cli.main([*words, "--preset", "smoke"]) in (0, 2), words
        assert "Traceback" not in capsys.readouterr().err


# Other code

MINE = """
from thesis_repro.mixup import Plain
from thesis_repro.pieces import piece


def scaled(loss):
    return 1.0 * loss


@piece
class MineOfTheStore:
    def __call__(self, model, x, y, draws):
        return scaled(Plain()(model, x, y, draws))
"""


def _command(words, folder):
    "A command in a process of its own; what it says goes to a file."
    os.environ.update(THESIS_REPRO_OUTPUTS=str(folder), OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = open(Path(folder) / "said", "w", encoding="utf-8")
    code = cli.main(words)
    sys.stdout.flush()
    os._exit(code)


def test_an_edited_method_is_noticed_and_made_again_when_asked(tmp_path):
    "A piece in a file of one's own, edited between two commands."
    file, spec = tmp_path / "mine_of_the_store.py", specification(small(epochs=1))
    file.write_text(MINE)
    spec["recipe"]["method"] = {"is": "MineOfTheStore"}
    (tmp_path / "run.json").write_text(json.dumps(spec))
    words = ["run", str(tmp_path / "run.json"), "--pieces", str(file), "--device", "cpu"]

    def command(*more):
        code = child(_command, [*words, "--jobs", "1", *more], tmp_path)
        (record,) = made(tmp_path / "smoke")
        return code, (tmp_path / "said").read_text(), json.loads(record.read_text())

    code, said, first = command()
    assert code == 0 and "other code" not in said
    assert any(name.endswith("mine_of_the_store.py") for name in first["code"])
    code, said, again = command("--fresh", "changed")
    assert code == 0 and again == first, "nothing has changed, so nothing is made again"
    file.write_text(MINE.replace("1.0 * loss", "0.5 * loss"))
    code, said, kept = command()
    assert code == 0 and kept == first
    assert "1 of 1 runs were made by other code (" in said and "mine_of_the_store.py)" in said
    code, said, fresh = command("--fresh", "changed")
    assert code == 0 and "other code" not in said
    assert fresh["weights"] != first["weights"] and fresh["code"] != first["code"]
    code, said, last = command("--fresh", "changed")
    assert last == fresh


def test_runs_of_other_code_can_be_accepted(kept):
    at, run = kept
    forge(at.home(run), code={"mixup": "x"})
    assert at.outdated([run, small(seed=9)]) == {run: sorted({"mixup", *run.code()})}
    before = at.record(run)
    assert at.accept() == 1 and at.accept() == 0 and at.outdated([run]) == {}
    after = at.record(run)
    assert after.code == run.code() and after.metrics == before.metrics
    assert at.networks(run) is not None


def test_a_record_that_another_command_removes_meanwhile_is_not_accepted(kept, monkeypatch):
    at, run = kept
    forge(at.home(run), code={"mixup": "x"})

    @contextlib.contextmanager
    def held(self, key):
        assert key == run.key
        (at.home(run) / "done").unlink()  # what `--fresh changed` did while it had the lock
        yield

    monkeypatch.setattr(Store, "lock", held)
    assert at.accept() == 0 and at.record(run) is None


def test_a_crash_while_records_are_accepted_loses_none(kept, monkeypatch):
    at, run = kept
    forge(at.home(run), code={"mixup": "x"})
    real = records.atomic_write

    def crash(*args, **words):
        raise KeyboardInterrupt

    monkeypatch.setattr(records, "atomic_write", crash)
    with pytest.raises(KeyboardInterrupt):
        at.accept()
    monkeypatch.setattr(records, "atomic_write", real)
    assert at.record(run).code == {"mixup": "x"} and at.accept() == 1


def test_what_is_made_again_begins_at_its_beginning(kept):
    at, run = kept
    before = at.record(run)
    assert at.renew([run, small(seed=9)]) == [run.name]
    assert at.record(run) is None and not list(at.home(run).glob("*.ckpt*"))
    assert at.make(run, progress=False).weights == before.weights


@pytest.mark.parametrize(
    ("data", "recipe", "said"),
    [
        (Scenes("scenes"), None, "scenes has boxes and no class for a whole image, which Classify"),
        (Named("digits10", 80, 40, 40), Detect(SmallDetector()), "digits10 has no boxes, which De"),
    ],
)
def test_images_with_boxes_are_a_detectors(tmp_path, capsys, monkeypatch, data, recipe, said):
    "Refused before any data are read: a classifier learned from boxes as if they were classes."
    monkeypatch.setenv("THESIS_REPRO_OUTPUTS", str(tmp_path / "outputs"))
    classifier = dataclasses.replace(small().recipe, select="test")  # no scenes are held out
    run = Run(data, recipe or classifier, Length(1, 20))
    (tmp_path / "run.json").write_text(json.dumps(pieces.specification(run)))
    assert cli.main(["run", str(tmp_path / "run.json"), "--device", "cpu"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line and not list((tmp_path / "outputs").rglob("record.json"))


# A reference comes from committed code


@pytest.fixture
def reference(tmp_path, monkeypatch):
    "A store of a reference preset in a project of its own."
    text = settings.settings_file().read_text(encoding="utf-8") + "\n[reference/mine]\nseeds = 1\n"
    (tmp_path / "settings.ini").write_text(text, encoding="utf-8")
    monkeypatch.setenv("THESIS_REPRO_ROOT", str(tmp_path))
    monkeypatch.delenv("THESIS_REPRO_OUTPUTS", raising=False)
    monkeypatch.delenv("THESIS_REPRO_SETTINGS", raising=False)
    return Store(settings.load("reference/mine", device="cpu", precision="fp32", jobs=1))


@pytest.mark.parametrize("commit", ["0123456789ab-dirty", "unknown"])
def test_a_reference_is_not_made_by_code_that_is_not_committed(reference, monkeypatch, commit):
    run = small(epochs=1)
    monkeypatch.setattr(records, "commit", lambda: commit)
    words = ("preset reference/mine", "committed code", commit)
    for call in (lambda: reference.ensure([run]), lambda: reference.make(run)):
        refused(call, *words)
    assert not list(reference.folder.glob("runs/*/*/*"))
    monkeypatch.setattr(records, "commit", lambda: "0123456789ab")
    reference.ensure([run])
    monkeypatch.setattr(records, "commit", lambda: commit)
    assert reference.ensure([run])[0] is not None  # it is there
    failing = Robustness(size=10)
    refused(lambda: failing.make(reference, run), *words)
    with pytest.raises(RunsFailed, match="committed code"):
        ensure_measured(reference, [(run, failing)])
    assert not list(reference.folder.glob("measurements/*.json"))


def test_a_reference_is_not_accepted_by_code_that_is_not_committed(reference, monkeypatch, capsys):
    run = small(epochs=1)
    monkeypatch.setattr(records, "commit", lambda: "0123456789ab")
    reference.ensure([run])
    forge(reference.home(run), code={"mixup": "x"})
    words = ["records", "accept", "--preset", "reference/mine"]
    monkeypatch.setattr(records, "commit", lambda: "0123456789ab-dirty")
    assert main(words) == 2 and "committed code" in capsys.readouterr().err
    assert reference.record(run).code == {"mixup": "x"}
    monkeypatch.setattr(records, "commit", lambda: "0123456789ab")
    assert main(words) == 0 and reference.record(run).code == run.code()


def test_elsewhere_anybody_may_try(reference, monkeypatch, tmp_path):
    monkeypatch.setattr(records, "commit", lambda: "0123456789ab-dirty")
    run = small(epochs=1)
    assert Store(settings.load("smoke", device="cpu", jobs=1), tmp_path / "x").ensure([run])
    assert Store(reference.preset, tmp_path.parent / f"{tmp_path.name}-other").ensure([run])


# Names


def test_what_a_command_calls_a_run_is_what_its_folder_is_called(kept):
    at, run = kept
    assert at.home(run).name == run.name and at.home(run).parent.name == "runs"
    assert at.home(run) == at.folder / "runs" / run.home / run.name
    assert paths.outputs("smoke") == Store(settings.load("smoke")).folder


def test_classes_of_two_modules_with_one_name_are_refused_when_they_are_made():
    other = type("Weighed", (), {"__annotations__": {}, "__module__": "elsewhere"})
    with pytest.raises(TypeError, match=r"elsewhere\.Weighed: the name is taken by methods"):
        pieces.piece(other)
    assert Classify("resnet18", Weighed()).method == Weighed()


def test_the_classifier_of_a_gan_is_refused_in_one_line(tmp_path):
    made, run = store_at(tmp_path), two("ACGAN", epochs=1)
    made.ensure([run])
    with pytest.raises(BadInput, match="has no classifier; its networks are generator, critic"):
        made.weights(run)


def test_what_is_only_drawn_forgets_nothing(kept, monkeypatch):
    "--no-train --fresh changed removed what other code had made, and made nothing."
    at, run = kept
    monkeypatch.setattr("thesis_repro.store.changed_code", lambda *_: ["mixup"])
    measured = Robustness(size=10)
    measured.make(at, run)
    plan = {("row", "column"): Planned((run,), measured)}
    assert at.outdated([run])
    assert registry._made(at, plan, False, "changed") == {}
    assert at.record(run) and not measured.absent(at, run)


def test_a_cell_knows_which_of_its_test_images_were_right(kept):
    at, run = kept
    whole = len(at.images(run.data).y_test)
    some, all_ = Robustness(size=10), Robustness()
    for m in (some, all_):
        m.make(at, run)
    cell = registry._cell(at, ("row", "column"), Planned((run, small(epochs=9)), some), {})
    assert cell.images == (10, whole) and cell.outcomes[1] is None
    right = unpacked(cell.outcomes[0], 10)
    assert 100 * right.mean() == pytest.approx(cell.values[0])
    assert right.tolist() == all_.kept(at, run)["correct"][:10]
    cell = registry._cell(at, ("row", "column"), Planned((run,), all_), {})
    assert cell.images is None and cell.outcomes is None


def test_why_a_run_has_no_number(kept):
    at, run = kept
    for m, why in ((Recorded("last.nothing"), "gives no number"), (Robustness(), "not measured")):
        assert why in registry._cell(at, ("row", "column"), Planned((run,), m), {}).reason
    absent = registry._cell(at, ("row", "column"), Planned((small(epochs=9),), Robustness()), {})
    assert "not run yet" in absent.reason


def test_an_attack_that_was_stopped_goes_on_by_the_same_code_only(kept, monkeypatch):
    at, run = kept
    m = Robustness(PGD(steps=1), size=10)
    before = m.begun(at, run)
    assert m.begun(at, run) == before
    monkeypatch.setattr(Robustness, "code", lambda self: {"attacks": "other"})
    assert m.begun(at, run) != before and m.begun(at, run).parent == before.parent
    m.begun(at, run).parent.mkdir(parents=True, exist_ok=True)
    m.begun(at, run).write_text("{}")
    m.forget(at, run)
    assert not m.begun(at, run).exists()


def test_what_other_code_measured_is_measured_again_where_its_run_is_made_again(kept, monkeypatch):
    "The run ended in the same bits, and the old measurement was taken for one of them."
    at = Store(dataclasses.replace(kept[0].preset, jobs=1), kept[0].folder)
    run, m, measured = small(seed=7, epochs=1), Robustness(size=10), []
    plan = {("row", "column"): Planned((run,), m)}
    assert registry._made(at, plan, True, "") == {}
    before, own = at.record(run).weights, measures.robust_accuracy

    def counted(*args, **how):
        measured.append(1)
        return own(*args, **how)

    monkeypatch.setattr(measures, "robust_accuracy", counted)
    monkeypatch.setattr(Robustness, "code", lambda self: {"attacks": "of today"})
    monkeypatch.setattr(Run, "code", lambda self: {"mixup": "of today"})
    assert at.outdated([run]) and m.outdated(at, run)
    assert registry._made(at, plan, True, "changed") == {}
    assert at.record(run).weights == before, "else this tests nothing"
    assert measured == [1] and not m.outdated(at, run) and not at.outdated([run])


def test_a_run_that_is_removed_and_made_otherwise_is_measured_again(kept, monkeypatch):
    "Fault of round 1: a table showed new accuracies beside attacks on the weights from before."
    at, _ = kept
    run, m, place = small(seed=7, epochs=1), Robustness(size=10), ("row", "column")
    plan, own = {place: Planned((run,), m)}, Plain.__call__
    assert registry._made(at, plan, True, "") == {}
    before, kept_file = at.record(run).weights, m.file(at, run)
    shutil.rmtree(at.home(run))  # as the message about damaged weights advises
    monkeypatch.setattr(Plain, "__call__", lambda *its: 0.5 * own(*its))
    at.ensure([run])
    assert at.record(run).weights != before, "else this tests nothing"
    assert kept_file.exists() and m.absent(at, run)
    assert "not measured yet" in registry._cell(at, place, plan[place], {}).reason
    assert registry._made(at, plan, True, "") == {}
    assert m.file(at, run) not in (kept_file, None) and not m.absent(at, run)


def test_what_failed_is_said_of_its_run_and_its_measurement_only(kept, monkeypatch):
    "Fault of round 1: failures were known by how a run's name begins."
    at, _ = kept
    long, short = (small(epochs=1, label=label, seed=s) for s, label in enumerate(("ab", "a")))
    fine, failing, own = Robustness(size=10), Robustness(size=5), measures.robust_accuracy

    def some(net, x, *how, **words):
        if len(x) == 5:
            raise BadInput("five are too few")
        return own(net, x, *how, **words)

    monkeypatch.setattr(measures, "robust_accuracy", some)
    plan = {("ab", m.size): Planned((long,), m) for m in (fine, failing)}
    with pytest.warns(UserWarning, match="1 failed"):
        failures = registry._made(at, plan, True, "")
    assert list(failures) == [(long.key, failing)]
    plan |= {("a", m.size): Planned((short,), m) for m in (fine, failing)}
    plan["ab", 7] = Planned((long,), Robustness(size=7))
    why = {place: registry._cell(at, place, p, failures).reason for place, p in plan.items()}
    assert why.pop(("ab", 5)).endswith("five are too few")
    assert not any("too few" in said for said in why.values())
    assert "not run yet" in why["a", 5] and "not measured yet" in why["ab", 7]


def test_what_another_command_has_made_again_is_not_forgotten(tmp_path, monkeypatch):
    "Of two with --fresh changed, the second removed what the first had just trained."
    store, run, own = store_at(tmp_path), small(epochs=1), Store.lock
    store.ensure([run])

    def others_first(self, key):
        monkeypatch.setattr(Store, "lock", own)
        other = store_at(tmp_path)
        assert other.renew([run])
        other.ensure([run])
        return own(self, key)

    monkeypatch.setattr(Store, "lock", others_first)
    assert store.renew([run]) == [] and store.record(run)
    assert store.renew([run]) and store.record(run) is None


def test_what_another_command_tries_again_keeps_its_checkpoint(tmp_path, monkeypatch):
    "Of two with --retry, the second removed what the first had trained until it was stopped."
    at, run, own = store_at(tmp_path), small(epochs=1), Store.lock
    file = at.home(run) / "checkpoint.ckpt"
    atomic_json(file.with_name("diverged.json"), {})

    def others_first(self, key):
        monkeypatch.setattr(Store, "lock", own)
        assert store_at(tmp_path).retry() == [run.name]
        file.write_bytes(b"half of an hour")
        return own(self, key)

    monkeypatch.setattr(Store, "lock", others_first)
    assert at.retry() == [] and file.exists()


def test_a_finished_run_needs_no_other_where_nothing_is_trained(tmp_path):
    store, generator = store_at(tmp_path), two("ACGAN", epochs=1)
    data = Augmented(small().data, generator, 10)
    run = Run(data, Classify("resnet18", Plain(), width=0.03), Length(1, 50))
    store.ensure([run])
    store.renew([generator])
    with store.training(False):
        assert store.ensure([run])[0].key == run.key


def test_a_figure_that_is_only_drawn_measures_nothing(tmp_path):
    store, run = store_at(tmp_path), small(epochs=1)
    store.ensure([run])
    plan = {("row", "column"): Planned((run,), Robustness(PGD(steps=1), size=10))}
    with pytest.MonkeyPatch.context() as patch, store.training(False):
        patch.setattr(registry, "Store", lambda preset: store)
        (cell,) = registry.measured_cells(store.preset, plan)
    assert math.isnan(cell.values[0]) and not [*tmp_path.rglob("robustness-*")]


def test_a_measurement_goes_with_a_run_that_other_code_made(tmp_path, monkeypatch):
    "The network's code is in the run's fingerprint, and weights can be the same all the same."
    store, run = store_at(tmp_path), small(epochs=1)
    task = Robustness(PGD(steps=1), size=10)
    plan = {("row", "column"): Planned((run,), task)}
    registry._made(store, plan, True, "")
    forgotten = []
    monkeypatch.setattr(Robustness, "forget", lambda self, store, run: forgotten.append(run.key))
    registry._made(store, plan, True, "changed")
    assert not forgotten
    monkeypatch.setattr(Store, "outdated", lambda self, runs: {run: ["models"]})
    registry._made(store, plan, True, "changed")
    assert forgotten == [run.key]
    monkeypatch.setattr(registry, "Store", lambda preset: store)
    registry.measured_cells(store.preset, plan)
    assert forgotten == [run.key]
    with measures.remaking():  # as a figure does with fresh="changed"
        registry.measured_cells(store.preset, plan)
    assert forgotten == [run.key] * 2


def test_a_needed_run_that_fails_stops_only_those_that_need_it(tmp_path):
    first, alone = small(Fails(), label="first"), small(epochs=1)
    needy = dataclasses.replace(small(seed=1, epochs=1), data=Made(first, str(tmp_path)))
    at = store_at(tmp_path)
    with pytest.raises(RunsFailed) as e:
        at.ensure([needy, alone])
    assert e.value.failures.keys() == {(first.key, None), (needy.key, None)}
    assert "it needs first" in e.value.failures[needy.key, None] and at.record(alone)


def test_a_missing_record_is_mended_from_its_copy(kept):
    at, run = kept
    file = at.record(run).folder / "record.json"
    file.unlink()
    assert at.record(run) and file.exists()


def test_images_are_made_alike_in_training_and_in_measuring(tmp_path):
    "On a GPU, a convolution is TF32 by default; a measurement is in IEEE float32."
    seen = []
    data = types.SimpleNamespace(made=lambda store: seen.append(devices.coarse("cuda")))
    store_at(tmp_path).images(data)
    assert seen == [False] and devices.coarse("cuda")
