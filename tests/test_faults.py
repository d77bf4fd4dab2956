"""Kill it, stop it, damage it, fill its disk: the same call goes on, and ends where an undisturbed
one does.

The short form is part of `make test`. `pytest --long tests/test_faults.py` does the same more
often, and what takes a kernel or a pool of workers as well. Faults come at seeded places: the n-th
event (a step, a phase of it, a file forced to the disk, a rename) of a process that is forked from
a warm server, so that a kill costs no start of Python.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from gan import two
from methods import NEVER, Telling, Weighed, left_by, same, small, store_at
from processes import FORK, child, gone
from samples import refused
from test_data import write_npz

from thesis_repro import (
    cli,
    data,
    gans,
    launch,
    paths,
    pieces,
    records,
    registry,
    stopping,
    store,
    training,
)
from thesis_repro.adversarial import Adversarial
from thesis_repro.attacks import PGD
from thesis_repro.checkpoints import load_checkpoint, read_checkpoint, save_checkpoint
from thesis_repro.draws import Draws
from thesis_repro.files import BadInput, Unwritable, atomic_write
from thesis_repro.images import batches
from thesis_repro.measures import Planned, Recorded, Robustness
from thesis_repro.mixup import Beta, Mixup
from thesis_repro.recipes import Adam
from thesis_repro.runs import Named
from thesis_repro.store import RunsFailed
from thesis_repro.training import Compute

ATTACK = PGD(step=4 / 255, steps=2)
METHODS = {
    "adversarial": Adversarial(attack=ATTACK, selection=ATTACK),
    "mixup": Mixup((0, 1, 2, 3), Beta(2.0)),
    "in turns": Weighed(every=2, turns=(2, 1)),
}
RUNS = {"plain": small, "two networks": two} | {
    name: lambda method=method, **how: small(method, **how) for name, method in METHODS.items()
}


@contextlib.contextmanager
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# A process that has a fault at its n-th event


PLACES = [
    *((training, name) for name in ("step", "_minimise", "_save", "_close_epoch", "_judged")),
    *((records, name) for name in ("record_of", "write")),
    *((os, name) for name in ("fsync", "replace")),
]


def _events(at: int, fault):
    "From now on fault(name) is called before the `at`-th event of all PLACES."
    count = iter(range(10**9))
    for module, name in PLACES:

        def before(*args, real=getattr(module, name), name=name, **words):
            if next(count) == at:
                fault(f"{name} {args[1].name}" if name == "_minimise" else name)
            return real(*args, **words)

        setattr(module, name, before)


def _signal_soon(number: int, delay: float):
    "Signal this process; after a delay, from a thread, so that it comes in the middle of anything."

    def shoot():
        time.sleep(delay)
        os.kill(os.getpid(), number)

    threading.Thread(target=shoot, daemon=True).start() if delay else shoot()


def _make(folder, wanted, at: int, number: int, delay: float, seconds: float):
    "The body of a child: make runs one after the other, signalled at event `at`."
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def strike(seam):
        with open(f"{folder}.struck", "a") as f:
            f.write(f"{seam}\n")
        _signal_soon(number, delay)

    _events(at, strike)
    try:
        with quiet(), stopping.interruptible():
            for run in wanted:
                store_at(folder, checkpoint_seconds=seconds).make(run, progress=False)
    except (stopping.Stopped, KeyboardInterrupt) as e:
        os._exit(getattr(e, "code", 130))
    os._exit(0)


def make(folder, *wanted, at=-1, number=signal.SIGKILL, delay=0.0, seconds=0.0) -> int:
    return child(_make, folder, wanted, at, number, delay, seconds)


# kill -9, SIGTERM, Ctrl-C


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_that_is_killed_and_stopped_is_the_run(tmp_path, kind, long):
    kills, stops = (17, 7) if long else (3, 2)
    run, rng = RUNS[kind](epochs=70 if long else 11), random.Random(kind)
    assert make(tmp_path / "whole", run, seconds=NEVER) == 0
    faults = [signal.SIGKILL] * kills + [signal.SIGTERM] * stops
    rng.shuffle(faults)
    ends = []
    for number in faults:
        # killed between saves of every step, stopped where nothing but the stop would save
        often = number == signal.SIGKILL
        where = {"at": rng.randrange(4, 40 if often else 9), "delay": rng.uniform(0.0001, 0.02)}
        where["seconds"] = 0.0 if often else NEVER
        ends.append(make(tmp_path / "faulty", run, number=number, **where))
    assert ends == [-number if number == signal.SIGKILL else stopping.AGAIN for number in faults]
    assert make(tmp_path / "faulty", run, seconds=NEVER) == 0
    assert same(left_by(tmp_path / "faulty", run), left_by(tmp_path / "whole", run))


SEAMS = {"step", "_minimise critic", "_minimise generator", "_save", "fsync", "replace"}
SEAMS |= {"_close_epoch", "_judged", "record_of", "write"}


@pytest.mark.parametrize(
    "number, epochs, stride, most", [(signal.SIGKILL, 4, 5, 19), (signal.SIGTERM, 8, 3, 10)]
)
def test_two_networks_are_the_same_after_faults_at_every_seam(
    tmp_path, number, epochs, stride, most
):
    "Fault after fault till the end; the generator learns in every second step."
    run, faulty = two("WGAN-GP", epochs=epochs), tmp_path / "faulty"
    assert make(tmp_path / "whole", run, seconds=NEVER) == 0
    killed = number == signal.SIGKILL
    how = {"number": number, "seconds": 0.0 if killed else NEVER}
    count, trained = 0, False
    while code := make(faulty, run, at=count if trained else stride * count % most, **how):
        assert code == (-number if killed else stopping.AGAIN)
        over = trained or epoch_of(faulty, run) == epochs
        count, trained = count + 1 if over == trained else 0, over
    assert {*(tmp_path / "faulty.struck").read_text().splitlines()} == SEAMS
    assert same(left_by(faulty, run), left_by(tmp_path / "whole", run))


def epoch_of(folder, run) -> int:
    "How many epochs of a run its checkpoint has behind it."
    with quiet():
        state = load_checkpoint(store_at(folder).home(run) / "checkpoint.ckpt")
    return state["at"]["epoch"] if state else 0


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_stop_finishes_the_step_and_saves(tmp_path, number, code):
    run = small(epochs=200)
    assert make(tmp_path, run, at=8, number=number, seconds=NEVER) == code
    at = load_checkpoint(store_at(tmp_path).home(run) / "checkpoint.ckpt")["at"]
    assert (at["epoch"], at["step"]) >= (1, 1) and store_at(tmp_path).record(run) is None


def test_a_signal_sent_twice_at_once_is_one(tmp_path):
    noted = []
    with pytest.raises(stopping.Stopped), stopping.listening(lambda: noted.append(1)):
        [signal.raise_signal(signal.SIGTERM) for _ in range(2)]  # as `timeout` does
        assert len(stopping.ASKED) == len(noted) == 2
    assert not stopping.ASKED


def test_whoever_ignored_a_signal_goes_on_ignoring_it():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with stopping.listening():
            signal.raise_signal(signal.SIGTERM)
            assert not stopping.ASKED
    finally:
        signal.signal(signal.SIGTERM, before)


def _command(words, folder, **environment):
    os.environ.update(environment, THESIS_REPRO_OUTPUTS=str(folder), OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    sys.stderr = open(Path(folder) / "said", "a")
    code = cli.main(words)
    sys.stderr.flush()
    os._exit(code)


def test_a_time_limit_is_exit_code_75_and_one_line(tmp_path):
    run = small(epochs=500)
    (tmp_path / "run.json").write_text(json.dumps(pieces.specification(run)))
    words = [
        "run",
        str(tmp_path / "run.json"),
        "--preset",
        "smoke",
        "--device",
        "cpu",
        "--jobs",
        "1",
    ]
    assert child(_command, [*words, "--time-limit", "3s"], tmp_path) == stopping.AGAIN
    said = (tmp_path / "said").read_text().splitlines()[-1]
    assert said.endswith(
        "thesis-repro: stopped by its time limit; the same command goes on where this one stood"
    )
    assert list(tmp_path.glob("smoke/runs/*/*/*/checkpoint.ckpt")) and not list(
        tmp_path.glob("smoke/runs/*/*/*/done")
    )


@pytest.mark.parametrize("text", ["", "0", "soon", "9 minutes", "m", "-3s"])
def test_what_is_no_time_limit(text):
    with pytest.raises(BadInput, match="must be a span of time"):
        stopping.seconds(text)


# A fault at every phase of a save


@pytest.fixture
def saved(tmp_path):
    "A checkpoint of step 2, with step 1 before it."
    file = tmp_path / "run.ckpt"
    for step in (1, 2):
        save_checkpoint(file, {"step": step, "weights": torch.arange(50.0)})
    return file


@contextlib.contextmanager
def fault_at_call(n: int, fault):
    "Call fault() in place of the n-th call that a save makes; gives the list of calls."
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        for module, name in (
            (os, "fsync"),
            (os, "replace"),
            (torch, "save"),
            (hashlib, "sha256"),
        ):

            def instead(*args, real=getattr(module, name), name=name):
                calls.append(name)
                return fault() if len(calls) == n + 1 else real(*args)

            patch.setattr(module, name, instead)
        yield calls


def full():
    raise OSError(28, "No space left on device")


PHASES = [
    "save",
    "sha256",
    "fsync",
    "replace",
    "replace",
    "fsync",
]  # serialise, digest, file, old, new, folder


@pytest.mark.parametrize("phase", range(len(PHASES)))
def test_an_error_at_any_phase_of_a_save_leaves_a_checkpoint(saved, phase):
    with fault_at_call(phase, full) as calls, contextlib.suppress(OSError, BadInput):
        save_checkpoint(saved, {"step": 3})
    assert calls == PHASES[: len(calls)] and len(calls) > phase
    with quiet():
        assert load_checkpoint(saved)["step"] in (2, 3)
    assert [f.name for f in saved.parent.iterdir() if f.suffix == ".tmp"] == []


@pytest.mark.parametrize("phase", range(len(PHASES)))
def test_death_at_any_phase_of_a_save_leaves_a_checkpoint(saved, phase):
    if (pid := os.fork()) == 0:
        with fault_at_call(phase, lambda: os._exit(9)):
            save_checkpoint(saved, {"step": 3})
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    with quiet():
        assert load_checkpoint(saved)["step"] == (3 if phase == 5 else 2)
        save_checkpoint(saved, {"step": 4})
        assert load_checkpoint(saved)["step"] == 4


def test_a_damaged_checkpoint_never_takes_the_place_of_the_good_one(saved):
    saved.write_bytes(saved.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="damaged .*; going back to the checkpoint before it"):
        assert load_checkpoint(saved)["step"] == 1
    with (
        fault_at_call(3, full),
        pytest.raises(BadInput, match="disk is full"),
    ):  # at the first rename after it
        save_checkpoint(saved, {"step": 3})
    with pytest.warns(UserWarning, match="missing"):
        assert load_checkpoint(saved)["step"] == 1


# A disk that is full


@pytest.fixture
def small_disk(tmp_path):
    "A disk of 4 MB."
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(
            f"a disk of 4 MB cannot be mounted here (it takes root): {mounted.stderr.strip()}"
        )
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize("kind", ["mixup", "two networks"])
def test_a_full_disk_is_named_and_the_next_call_goes_on(small_disk, tmp_path, kind):
    run, store = RUNS[kind](epochs=6), store_at(small_disk, checkpoint_seconds=0)
    notebook = atomic_write(small_disk / "notebooks" / "07.ipynb", json.dumps({"cells": ["old"]}))
    assert make(small_disk, run, at=30) == -signal.SIGKILL  # there is a checkpoint now
    file = store.home(run) / "checkpoint.ckpt"
    stood = load_checkpoint(file)["at"]
    with pytest.raises(OSError), (small_disk / "other people's").open("wb", buffering=0) as f:
        while True:
            f.write(bytes(4096))
    for call in (lambda: store.ensure([run]), lambda: atomic_write(notebook, bytes(10**6))):
        with (
            quiet(),
            pytest.raises(Unwritable, match=rf"the disk is full \(mounted at {small_disk}, 4 MB\)"),
        ):
            call()
    assert json.loads(notebook.read_text()) == {"cells": ["old"]}
    with quiet():
        now = load_checkpoint(file)["at"]
    assert (now["epoch"], now["step"]) >= (stood["epoch"], stood["step"])
    (small_disk / "other people's").unlink()
    assert make(small_disk, run) == make(tmp_path / "whole", run) == 0
    assert same(left_by(small_disk, run), left_by(tmp_path / "whole", run))


# Damage


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    "A store with a run of one network and one of two, a measurement, and runs that diverged."
    store = store_at(tmp_path_factory.mktemp("finished"))
    store.ensure([small(epochs=1), two(epochs=1)])
    Robustness(size=20).make(store, small(epochs=1))
    for run in (WILD, WILD_GAN):
        with pytest.raises(RunsFailed):
            store.ensure([run])
    return store


WILD = small(epochs=2, lr=1e30, label="wild")
WILD_GAN = dataclasses.replace(two(epochs=2, critic_optimiser=Adam(1e30)), label="wild GAN")


def damaged(content: bytes, rng: random.Random, flips: int, cuts: int):
    "Copies of a file with one bit flipped, or cut short."
    for _ in range(flips):
        blob = bytearray(content)
        blob[rng.randrange(len(blob))] ^= 1 << rng.randrange(8)
        yield bytes(blob)
    yield from (content[: rng.randrange(len(content))] for _ in range(cuts))


def _looks(store) -> dict:
    "File → what reads it, in a finished store."
    run, measured, found = small(epochs=1), Robustness(size=20), {}
    for one in (run, two(epochs=1)):
        home = store.home(one)
        found |= {
            home / "record.json": lambda one=one: store.record(one),
            home / "record.json.copy": lambda one=one: store.record(one),
            home / "weights.ckpt": lambda one=one: store.networks(one),
        }
    for wild in (WILD, WILD_GAN):
        found[store.home(wild) / "diverged.json"] = lambda wild=wild: store.diverged(wild) or None
    return found | {measured.file(store, run): lambda: measured.kept(store, run)}


def test_every_flipped_bit_and_every_cut_is_noticed(finished, long):
    rng, missed = random.Random(5), []
    for file, look in _looks(finished).items():
        whole = file.read_bytes()
        value = json.loads(whole)["value"] if file.parent.name == "measurements" else None
        value = look() if file.name.startswith("record.json") else value  # mended from the other
        for content in damaged(whole, rng, *((100, 20) if long else (12, 4))):
            file.write_bytes(content)
            try:
                with quiet():
                    found = look()
            except BadInput:
                found = None
            # of a measurement, what counts is its value; the rest tells where it comes from
            missed += [file.name] if found is not None and (value is None or found != value) else []
        file.write_bytes(whole)
        assert look() is not None
    assert missed == []


def test_a_damaged_marker_never_changes_a_record(finished, long):
    run = small(epochs=1)
    marker, whole = finished.home(run) / "done", finished.record(run)
    content = marker.read_bytes()
    with quiet():
        for bad in damaged(content, random.Random(6), *((100, 20) if long else (12, 4))):
            marker.write_bytes(bad)
            assert finished.record(run) in (None, whole)
    marker.write_bytes(content)


def test_damaged_weights_say_how_to_make_them_again(finished):
    run = small(epochs=1)
    file = finished.home(run) / "weights.ckpt"
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    with pytest.raises(BadInput, match=f"damaged .*remove {file.parent}: the run is made again"):
        finished.weights(run)
    file.write_bytes(whole)


# Runs that diverge


@pytest.mark.parametrize("wild, sound", [(WILD, small(epochs=1)), (WILD_GAN, two(epochs=1))])
def test_a_diverged_run_is_recorded_and_not_made_in_vain(finished, monkeypatch, wild, sound):
    kept = json.loads((finished.home(wild) / "diverged.json").read_text())
    said = "the loss of the generator is" if wild == WILD_GAN else "the loss is"
    assert said in kept["reason"] and {"epoch", "step", "environment"} <= kept.keys()
    monkeypatch.setattr(training, "start", lambda *a, **k: pytest.fail("trained again"))
    why = rf"wild.*-seed-0.*: diverged: {said} .*--retry tries again"
    with pytest.raises(RunsFailed, match=why):
        finished.ensure([wild, sound])
    assert finished.record(wild) is None and finished.record(sound) is not None


def test_a_collapse_is_recorded(tmp_path, monkeypatch):
    distances = iter((4.0, 1.0, 1.5, 2.5, *[3.0] * 9))  # after each epoch, and of test images

    def health(made, real):
        return {"pixel FD": next(distances), "variety": 1.0}

    monkeypatch.setattr(gans, "health", health)
    run, store = two(epochs=5), store_at(tmp_path)
    store.make(run, progress=False)
    assert store.record(run).remark.startswith("collapsed after epoch 3: pixel FD is more than")


def test_a_table_shows_what_diverged_and_the_n_of_the_rest(finished, monkeypatch, tmp_path):
    monkeypatch.setenv("THESIS_REPRO_OUTPUTS", str(tmp_path))
    monkeypatch.setattr(registry, "Store", lambda preset: finished)
    monkeypatch.setattr(registry, "TABLES", {})
    plan = {("mine", "Last"): Planned((small(epochs=1), WILD), Recorded("last.accuracy"))}
    mine = registry.table("7.ours", "Mine", "a test", lambda preset, parts: dict(plan))
    for train in (True, False):
        with quiet():
            table = mine(finished.preset, train=train)
        line = table.frame.iloc[0]
        assert (
            line.n == 1
            and "diverged: the loss is" in line.reason
            and "1 of 2 runs gave no number" in line.reason
        )
        assert bool(table.failed) == train


def test_the_command_lists_what_failed_and_retry_tries_again(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(pieces.specification(WILD)))
    words = [
        "run",
        str(tmp_path / "run.json"),
        "--preset",
        "smoke",
        "--device",
        "cpu",
        "--jobs",
        "1",
    ]

    def mark():
        return next(tmp_path.glob("smoke/runs/*/*/*/diverged.json"))

    assert child(_command, words, tmp_path) == 1
    first = mark().stat().st_mtime_ns
    assert child(_command, words, tmp_path) == 1 and mark().stat().st_mtime_ns == first
    assert child(_command, [*words, "--retry"], tmp_path) == 1 and mark().stat().st_mtime_ns > first
    said = [line for line in (tmp_path / "said").read_text().splitlines() if "failed: " in line]
    assert len(said) == 3 and "known from before" in said[1] and "known from before" not in said[2]


# Many runs, two commands


def _log(folder, word: str, key: str):
    "One more line in the log that all processes share."
    fd = os.open(Path(folder) / "log", os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    os.write(fd, f"{word} {key}\n".encode())
    os.close(fd)


def _logging(folder):
    "Write down each training that starts and each that is finished."
    start, write = store._fulfil, records.write

    def fulfil(run, home, *args):
        if not (home / "checkpoint.ckpt").exists():
            _log(folder, "start", run.key)
        return start(run, home, *args)

    def written(home, *args):
        write(home, *args)
        _log(folder, "done", home.name.rpartition("-")[2])

    store._fulfil, records.write = fulfil, written


def _schedule(folder, wanted, at: int):
    "The body of a scheduler: all the runs, saving after every step, killed at event `at`."
    torch.set_num_threads(1)
    sys.stderr = open(os.devnull, "w")
    _logging(folder)
    _events(at, lambda seam: os.kill(os.getpid(), signal.SIGKILL))
    with quiet():
        store_at(folder, checkpoint_seconds=0).ensure(wanted)
    os._exit(0)


def logged(folder, word: str) -> list[str]:
    return [
        line.split()[1]
        for line in (Path(folder) / "log").read_text().splitlines()
        if line.startswith(word)
    ]


def test_two_schedulers_with_random_kills_make_each_run_once(tmp_path, long):
    n, kills, rng = (40, 12, random.Random(8)) if long else (4, 2, random.Random(8))
    wanted, finished, running = [small(seed=s, epochs=1) for s in range(n)], 0, []
    while finished < 2:
        while len(running) < 2 - finished:
            at = rng.randrange(5, 40 * n // kills) if kills > 0 else -1
            kills -= 1
            running.append(FORK.Process(target=_schedule, args=(tmp_path, wanted, at)))
            running[-1].start()
        multiprocessing.connection.wait([p.sentinel for p in running])
        ended = [p for p in running if p.exitcode is not None]
        assert all(p.exitcode in (0, -signal.SIGKILL) for p in ended)
        finished += sum(p.exitcode == 0 for p in ended)
        running = [p for p in running if p.exitcode is None]
    done = logged(tmp_path, "done")
    assert all(store_at(tmp_path).record(r) for r in wanted)
    assert len(done) == len(set(done)) and set(done) <= {r.key for r in wanted}
    assert sorted(set(logged(tmp_path, "start"))) == sorted(r.key for r in wanted)


def test_n_of_many_then_the_rest_then_none(tmp_path):
    wanted = [small(seed=s, epochs=1, train=100) for s in range(5)]
    for upto, expected in ((2, 2), (5, 3), (5, 0)):
        (tmp_path / "log").write_text("")
        assert child(_schedule, tmp_path, wanted[:upto], -1) == 0
        assert len(logged(tmp_path, "start")) == len(logged(tmp_path, "done")) == expected


def test_a_run_that_another_command_makes_is_left_for_later(tmp_path):
    mine, others = small(seed=1, epochs=1), small(seed=0, epochs=1)
    at = store_at(tmp_path)
    with at.lock(others.key):
        assert store._attempt(at, others, False, False) == launch.BUSY
        assert store._attempt(at, mine, False, False) == ""
    assert at.record(others) is None and at.record(mine) is not None
    at.ensure([others, mine])
    assert at.record(others) is not None


# A command with workers

POOL = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, sys.argv[1])
import test_faults
from thesis_repro import stopping
try:
    with stopping.interruptible():
        how = {"jobs": 2, "checkpoint_seconds": test_faults.NEVER}
        at = test_faults.store_at(sys.argv[2], **how)
        at.ensure(test_faults.POOLED[: int(sys.argv[3])])
except (stopping.Stopped, KeyboardInterrupt) as e:
    print(e, file=sys.stderr)
    sys.exit(getattr(e, "code", 130))
"""


POOLED = [small(Telling(), seed=s, epochs=4000) for s in (0, 1)] + [
    small(Telling(), seed=s, epochs=2) for s in (2, 3)
]


def pool(folder, n=2) -> subprocess.Popen:
    "A command that makes the first `n` of POOLED in two workers."
    folder.mkdir(exist_ok=True)
    here = str(Path(__file__).parent)
    env = {
        **os.environ,
        "TELLING": str(folder),
        "PYTHONPATH": f"{paths.root()}:{here}",
        "OMP_NUM_THREADS": "1",
    }
    words = [sys.executable, "-c", POOL, here, str(folder), str(n)]
    return subprocess.Popen(
        words, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def workers(folder, seeds=(0, 1)) -> list[int]:
    "The processes that train, once they all do."
    files = [folder / f"{s}-1" for s in seeds]
    end = time.monotonic() + 400
    while not all(f.exists() and f.read_text() for f in files):
        assert time.monotonic() < end, "no worker has begun"
        time.sleep(0.05)
    return [int(f.read_text()) for f in files]


def saved_at(folder) -> list:
    "Where the runs of a pool stand."
    with quiet():
        return [
            load_checkpoint(store_at(folder).home(r) / "checkpoint.ckpt")["at"]["step"]
            for r in POOLED[:2]
        ]


def test_a_stopped_command_stops_its_workers_who_save(tmp_path):
    process = pool(tmp_path)
    pids = workers(tmp_path)
    process.terminate()  # the command alone, as a scheduler or `kill` does
    _, said = process.communicate(timeout=60)
    assert process.returncode == stopping.AGAIN, said
    assert said.splitlines()[-1] == str(stopping.Stopped(signal.SIGTERM))
    assert all(gone(p, 20) for p in pids) and len(saved_at(tmp_path)) == 2
    assert not list((tmp_path / "runs" / ".locks").glob("command-*"))


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_does_the_same(tmp_path, number):
    process = pool(tmp_path)
    pids = workers(tmp_path)
    os.killpg(process.pid, number)  # as a terminal's Ctrl-C
    _, said = process.communicate(timeout=60)
    assert process.returncode == stopping.Stopped(number).code, said
    assert (
        all(gone(p, 20) for p in pids) and len(saved_at(tmp_path)) == 2 and "Traceback" not in said
    )


@pytest.mark.long
def test_workers_of_a_killed_command_save_and_end(tmp_path):
    process = pool(tmp_path)
    pids = workers(tmp_path)
    process.kill()
    process.communicate()
    assert all(gone(p, 20) for p in pids) and len(saved_at(tmp_path)) == 2


@pytest.mark.long
def test_a_killed_worker_does_not_end_the_command(tmp_path):
    process = pool(tmp_path, 4)
    killed = workers(tmp_path)[0]
    os.kill(killed, signal.SIGKILL)
    for s in (0, 1):
        (tmp_path / f"{s}-1").unlink(missing_ok=True)
        (tmp_path / f"{s}-0").unlink(missing_ok=True)
    assert killed not in workers(
        tmp_path
    )  # it is made again, and so is the other one that joblib took down
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == stopping.AGAIN, said


CHAPTER = """
import os
from test_faults import POOLED, store_at
store_at(os.environ["TELLING"], jobs=JOBS, checkpoint_seconds=86400).ensure(POOLED[:JOBS])
"""
DRIVER = """
import sys
from thesis_repro import notebooks, stopping
try:
    with stopping.interruptible(float(sys.argv[3])):
        notebooks.execute(*sys.argv[1:3], progress=False)
except stopping.Stopped as e:
    sys.exit(e.code)
"""


@pytest.mark.long
@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("how", ["SIGTERM", "time limit"])
def test_a_stopped_notebook_has_its_runs_saved_and_is_not_done(tmp_path, jobs, how):
    nbformat = pytest.importorskip("nbformat")
    from nbformat.v4 import new_code_cell, new_notebook

    head = new_code_cell('preset: str = "smoke"  # a preset', metadata={"tags": ["parameters"]})
    cells = [
        head,
        new_code_cell(CHAPTER.replace("JOBS", str(jobs))),
        new_code_cell("print('after')"),
    ]
    nbformat.write(new_notebook(cells=cells), tmp_path / "in.ipynb")
    env = {
        **os.environ,
        "TELLING": str(tmp_path),
        "PYTHONPATH": f"{paths.root()}:{Path(__file__).parent}",
    }
    limit = "0" if how == "SIGTERM" else "45"
    words = [
        sys.executable,
        "-c",
        DRIVER,
        str(tmp_path / "in.ipynb"),
        str(tmp_path / "out.ipynb"),
        limit,
    ]
    process = subprocess.Popen(words, env=env, start_new_session=True)
    pids = workers(tmp_path, range(jobs))
    process.terminate() if how == "SIGTERM" else None
    assert process.wait(120) == stopping.AGAIN
    facts = nbformat.read(tmp_path / "out.ipynb", 4).metadata["thesis_repro"]
    assert (
        facts["status"] == "stopped"
        and ("SIGTERM" if how == "SIGTERM" else "its time limit") in facts["error"]
    )
    assert all(gone(p, 20) for p in pids)
    assert all((store_at(tmp_path).home(r) / "checkpoint.ckpt").exists() for r in POOLED[:jobs])
    assert not list(tmp_path.glob("runs/*/*/*/done"))


# How repeatable


def test_images_that_change_between_a_stop_and_the_next_call_are_refused(tmp_path):
    "Fault of round 2: such a run was trained on both data sets and called bitwise repeatable."
    file = tmp_path / "own.npz"
    first = Named(write_npz(file)).name  # with the file's checksum
    content = file.read_bytes()
    run, other = (
        dataclasses.replace(small(epochs=4, batch=20), data=Named(name, 40, 10, 10))
        for name in (first, write_npz(file, y_train=np.arange(60) % 2))
    )
    assert other.key != run.key  # by its own name the other file is another run
    file.write_bytes(content)
    how = {"at": 8, "number": signal.SIGTERM, "seconds": NEVER}
    assert make(tmp_path, run, **how) == stopping.AGAIN
    begun = (store_at(tmp_path).home(run) / "checkpoint.ckpt").read_bytes()
    write_npz(file, y_train=np.arange(60) % 2)
    refused(lambda: store_at(tmp_path).make(run, progress=False), "own.npz: is another file")
    assert (store_at(tmp_path).home(run) / "checkpoint.ckpt").read_bytes() == begun
    file.write_bytes(content)
    assert make(tmp_path, run) == 0 and make(tmp_path / "whole", run) == 0
    assert same(left_by(tmp_path, run), left_by(tmp_path / "whole", run))


def test_a_run_in_parts_on_different_threads_says_so(tmp_path):
    run = small(epochs=6)
    assert make(tmp_path, run, at=4, number=signal.SIGTERM, seconds=NEVER) == stopping.AGAIN
    file = store_at(tmp_path).home(run) / "checkpoint.ckpt"
    state = read_checkpoint(file)
    assert len(state["at"]["places"]) == 1 and "1 thread(s)" in state["at"]["places"][0]
    state["at"]["places"] = [
        state["at"]["places"][0].replace("1 thread(s)", "2 thread(s)")
    ]  # begun elsewhere
    save_checkpoint(file, state)
    assert make(tmp_path, run) == 0
    said = store_at(tmp_path).record(run).repeatable
    assert said.startswith("within tolerance: computed in 2 parts") and "2 thread(s)" in said


def test_deterministic_is_refused_where_it_cannot_be(monkeypatch, tmp_path):
    with pytest.raises(BadInput, match="deterministic: compile = yes chooses kernels"):
        Compute(deterministic=True, compile=True)
    with (
        pytest.raises(BadInput, match=r"deterministic: put_ .*leave the option out"),
        training.deterministic(),
    ):
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))
    assert not torch.are_deterministic_algorithms_enabled()
    monkeypatch.setenv("THESIS_REPRO_DETERMINISTIC", "1")
    run = small(METHODS["mixup"], epochs=1, train=100)
    record = store_at(tmp_path).make(run, progress=False)
    assert record.repeatable.startswith("bitwise on this machine")
    with pytest.raises(BadInput, match="compile"):
        store_at(tmp_path, compile="yes").ensure([small(seed=3)])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize("kind", RUNS)
def test_deterministic_training_on_a_gpu_gives_the_same_bits(tmp_path, kind, monkeypatch):
    monkeypatch.setenv("THESIS_REPRO_DETERMINISTIC", "1")
    run = RUNS[kind](epochs=3)
    records = [store_at(tmp_path / d, device="cuda").make(run, progress=False) for d in "ab"]
    assert same(*(left_by(tmp_path / d, run) for d in "ab")) and records[0].repeatable.startswith(
        "bitwise"
    )


@pytest.mark.parametrize("stream", [False, True])
def test_batches_do_not_depend_on_threads_or_on_where_one_begins(stream, tmp_path, monkeypatch):
    "Images are on the device, or read by the process itself: no loading workers have an order."
    monkeypatch.setenv("THESIS_REPRO_DATA", str(tmp_path))
    d = data.load("digits10", train_size=100, held_out=10, stream=stream)
    seen, before = {}, torch.get_num_threads()
    for n in (1, 2, 4):
        torch.set_num_threads(n)
        seen[n] = [(s, x.clone(), y) for s, x, y in batches(d, 30, Draws(1, 2))]
    torch.set_num_threads(before)
    seen["from 2"] = list(batches(d, 30, Draws(1, 2), start=2))
    for other, begin in ((2, 0), (4, 0), ("from 2", 2)):
        for (i, a, y), (j, b, z) in zip(seen[1][begin:], seen[other], strict=True):
            assert i == j and torch.equal(a, b) and torch.equal(y, z)


@pytest.mark.long
def test_two_fresh_clones_give_identical_records(tmp_path):
    words = [
        "-m",
        "thesis_repro",
        "run",
        "7.1",
        "--preset",
        "smoke",
        "--parts",
        "CIFAR-10",
        "--epochs",
        "1",
        "--seeds",
        "1",
        "--jobs",
        "1",
    ]
    found = []
    for name in "ab":
        clone = tmp_path / name
        subprocess.run(["git", "clone", "-q", str(paths.root()), str(clone)], check=True)
        gone_too = ("THESIS_REPRO_OUTPUTS", "THESIS_REPRO_ROOT", "THESIS_REPRO_SETTINGS")
        env = {k: v for k, v in os.environ.items() if k not in gone_too} | {
            "PYTHONPATH": str(clone),
            "OMP_NUM_THREADS": "1",
        }
        subprocess.run(
            [sys.executable, *words], cwd=clone, env=env, check=True, capture_output=True
        )
        files = sorted(clone.glob("outputs/smoke/runs/*/*/*/record.json"))
        found.append(
            {
                f.parent.name: {k: v for k, v in json.loads(f.read_text()).items() if k != "cost"}
                for f in files
            }
        )
    assert len(found[0]) == 7 and found[0] == found[1]


def test_a_field_of_the_record_names_its_degree(finished):
    said = finished.record(small(epochs=1)).repeatable
    assert said.split(" ")[0] in ("bitwise", "within", "statistical") and ":" in said
    gpu = records.repeatable(dataclasses.replace(Compute(), device="cuda"))
    assert gpu.startswith("statistical") and "--deterministic" in gpu


def test_a_checkpoint_that_cannot_be_read_just_now_stays(tmp_path, monkeypatch):
    "Too many open files, for example: it was set aside as damaged, and the run began anew."
    file = tmp_path / "checkpoint.ckpt"
    for step in (1, 2):
        save_checkpoint(file, {"step": step})

    def refuses(self):
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as m:
        m.setattr(Path, "read_bytes", refuses)
        with pytest.raises(BadInput, match="too many open files: call again"):
            load_checkpoint(file)
    assert sorted(p.name for p in tmp_path.iterdir()) == [file.name, f"{file.name}.previous"]
    assert load_checkpoint(file)["step"] == 2
