"""Launchers: who makes which run must not matter, and no run is lost or made twice when a process,
a node or a command dies."""

import multiprocessing
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
import warnings
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from gan import Waits, two
from methods import Weighed, left_by, same, small, store_at

from thesis_repro import devices, launch, paths, settings, stopping, workers
from thesis_repro.adversarial import Adversarial
from thesis_repro.attacks import PGD
from thesis_repro.checkpoints import load_checkpoint
from thesis_repro.files import BadInput
from thesis_repro.mixup import Beta, Mixup, Plain
from thesis_repro.recipes import Classify
from thesis_repro.runs import Run
from thesis_repro.store import RunsFailed, Store
from thesis_repro.training import Length


def waiting(name: str) -> Run:
    "A run of two networks that can be held up."
    run = two(name)
    return replace(run, recipe=replace(run.recipe, terms=(*run.recipe.terms, Waits())))


KINDS = [small(Plain()), small(Adversarial(PGD(step=4 / 255, steps=2)))]
KINDS += [small(Mixup((0, 1, 2, 3), Beta(2.0))), small(Weighed(every=2, turns=(2, 1)))]
KINDS += [waiting("WGAN-GP"), waiting("ACGAN")]


def sweep(n: int, epochs: int) -> list[Run]:
    "Small runs of six kinds, with one network or two."
    kinds = [replace(run, length=Length(epochs, 50)) for run in KINDS]
    return [replace(kinds[i % 6], seed=i, home="tests/sweep") for i in range(n)]


def at(folder, **changes) -> Store:
    "A store whose runs are made by two workers of one thread each."
    return store_at(folder, **{"jobs": 2, "threads": 1, **changes})


def all_same(one, other, wanted) -> bool:
    "Whether two stores have the same of each run, which has one folder alone."
    folders = [len(list(Path(one).glob(f"runs/*/*/*-{run.key}"))) for run in wanted]
    pairs = ((left_by(one, run), left_by(other, run)) for run in wanted)
    return folders == [1] * len(wanted) and all(same(*pair) for pair in pairs)


COMMAND = """
import signal, sys
sys.path.insert(0, "tests")
import test_launch
from thesis_repro import stopping

try:
    with stopping.interruptible():
        how = {"launcher": sys.argv[2], "ray_address": sys.argv[3], "checkpoint_seconds": 0}
        wanted = test_launch.sweep(int(sys.argv[4]), int(sys.argv[5]))
        test_launch.at(sys.argv[1], **how).ensure(wanted)
except stopping.Stopped as e:
    sys.exit(e.code)
"""


def command(folder, launcher: str, address: str, n: int, epochs: int) -> subprocess.Popen:
    "A command that makes the sweep."
    env = os.environ | {"PYTHONPATH": f"{paths.root()}:{paths.root() / 'tests'}"}
    words = [sys.executable, "-c", COMMAND, str(folder), launcher, address, str(n), str(epochs)]
    return subprocess.Popen(words, cwd=paths.root(), env=env, stderr=subprocess.PIPE, text=True)


def finished(folder) -> dict:
    "The done-markers and when they were written."
    return {f: f.stat().st_mtime_ns for f in Path(folder).glob("runs/*/*/*/done")}


def wait_for(folder, n: int, process: subprocess.Popen, seconds: float = 240):
    "Until `n` runs are done while `process` lives."
    end = time.monotonic() + seconds
    while len(finished(folder)) < n:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end, f"{len(finished(folder))} of {n} runs after {seconds} s"
        time.sleep(0.05)


# How many at once


def test_a_forked_process_ends_with_its_work_and_not_with_its_idle_workers(tmp_path):
    forked = multiprocessing.get_context("fork").Process(
        target=at(tmp_path).ensure, args=(sweep(2, 1),)
    )
    forked.start()
    forked.join(100)  # workers would be idle for 300 seconds before they end
    assert forked.exitcode == 0
    assert len(list(tmp_path.glob("runs/*/*/*/record.json"))) == 2


BUSY = """
import os, sys, warnings
import {first}
import thesis_repro
from thesis_repro import workers
os.getloadavg = lambda: ({load}, 0.0, 0.0)
with warnings.catch_warnings(record=True) as said, workers.threads({count}):
    print([str(w.message) for w in said])
"""


@pytest.mark.parametrize(
    "first, load, count, warned",
    [("torch", 99, 2, True), ("torch", 99, 1, False), ("torch", 0, 2, False), ("os", 99, 2, False)],
)
def test_threads_that_would_spin_on_a_busy_machine_are_warned_of(first, load, count, warned):
    env = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    env["PYTHONPATH"] = str(paths.root())
    code = BUSY.format(first=first, load=load, count=count)
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=True)
    assert ("set OMP_WAIT_POLICY=PASSIVE, or threads = 1" in done.stdout) == warned


SPINNING = """
import time, torch
import thesis_repro
from thesis_repro.models import build
net = build("resnet18", 10, 0.25)
torch.set_num_threads({threads})
x = torch.rand(16, 3, 16, 16)
net(x).sum().backward()
began = time.perf_counter()
for _ in range(5):
    net(x).sum().backward()
print(time.perf_counter() - began)
"""


@pytest.mark.long
def test_what_the_warning_advises_is_faster_on_a_busy_machine():
    "Five steps where torch was imported first, in turns, while every core computes already."
    plain = {k: v for k, v in os.environ.items() if not k.startswith("OMP_")}
    plain |= {"PYTHONPATH": str(paths.root())}
    ways = {
        "as it is": (workers.cores(), {}),
        "passive": (workers.cores(), {"OMP_WAIT_POLICY": "PASSIVE"}),
        "one thread": (1, {}),
    }
    busy = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in range(2 * workers.cores())
    ]
    try:
        rounds = []
        for _ in range(3):
            said = {}
            for name, (threads, more) in ways.items():
                words = [sys.executable, "-c", SPINNING.format(threads=threads)]
                done = subprocess.run(words, env=plain | more, capture_output=True, text=True)
                said[name] = float(done.stdout)
            rounds.append(said)
    finally:
        for process in busy:
            process.kill()
    times = {n: statistics.median(r["as it is"] / r[n] for r in rounds) for n in ways}
    print(times)
    assert times["passive"] > 1.5 and times["one thread"] > 1.5, times


def test_jobs_and_threads(monkeypatch):
    monkeypatch.setattr(workers, "cores", lambda: 12)

    def of(**how):
        preset = settings.load("smoke", **{"device": "cpu", **how})
        return workers.jobs(preset), workers.threads_each(preset)

    assert (
        of() == (12, 1)
        and of(jobs=3) == (3, 4)
        and of(jobs=5) == (5, 2)
        and of(jobs=3, threads=2) == (3, 2)
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert (
        of(device="auto") == of(device="cuda") == (8, 1)
        and of(device="cuda:3") == (1, 12)
        and of(device="cuda", jobs=2) == (2, 6)
    )


def _where(store, name, wait, progress):
    return f"{os.getpid()} {store.preset.device} {torch.get_num_threads()}"


def test_workers_stay_for_the_next_tasks(tmp_path):
    store, tasks = at(tmp_path), [(f"task {i}",) for i in range(12)]
    twice = [launch.side_by_side(store, _where, tasks, disable=True) for _ in range(2)]
    pids = [{text.split()[0] for text in made.values()} for made in twice]
    assert pids[0] | pids[1] == pids[0] and len(pids[0]) <= 2 and str(os.getpid()) not in pids[0]
    assert {text.split()[1:] == ["cpu", "1"] for made in twice for text in made.values()} == {True}


@pytest.mark.parametrize(
    "key, value", [("launcher", "kubernetes"), ("threads", -1), ("launcher", "")]
)
def test_a_launcher_that_is_none_is_refused(key, value):
    with pytest.raises(BadInput, match=key):
        settings.load("smoke", **{key: value})


# A command and its workers


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, long):
    "A sweep that one process made, one run after the other, and its folder."
    n, epochs = (24, 6) if long else (6, 4)
    folder, runs = tmp_path_factory.mktemp("undisturbed"), sweep(n, epochs)
    store_at(folder, threads=1).ensure(runs)
    return folder, runs, epochs


@pytest.fixture(scope="module")
def orphan(tmp_path_factory, undisturbed):
    "The folder of a sweep whose command was killed after a run; its two workers have ended."
    folder, (_, runs, epochs) = tmp_path_factory.mktemp("orphan") / "sweep", undisturbed
    begun = command(folder, "local", "auto", len(runs), epochs)
    wait_for(folder, max(1, len(runs) // 6), begun)
    begun.kill()
    begun.communicate()  # which waits for the workers, too: they write to the same pipe
    return folder


@pytest.fixture
def sweep_of_a_dead_command(tmp_path, orphan):
    "A copy of it."
    return Path(shutil.copytree(orphan, tmp_path / "sweep"))


def steps(folder, run) -> int:
    "How many steps of a run its checkpoint has behind it; 0 without one."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it may just be written
        state = load_checkpoint(store_at(folder).home(run) / "checkpoint.ckpt")
    return state["at"]["steps"] if state else 0


def test_a_sweep_survives_the_loss_of_its_commands(
    sweep_of_a_dead_command, undisturbed, monkeypatch, tmp_path
):
    "Gone on by two other workers, stopped amid two networks, and finished by one process."
    folder, runs, epochs = undisturbed
    home, kept = sweep_of_a_dead_command, finished(sweep_of_a_dead_command)
    monkeypatch.setenv("TELLING", str(tmp_path))
    (tmp_path / "slowly").touch()
    on, gans = command(home, "local", "auto", len(runs), epochs), runs[4:6]
    wait_for(home, 4, on)
    while max(steps(home, run) for run in gans) < 2:
        assert on.poll() is None, on.stderr.read()
        time.sleep(0.1)
    on.send_signal(signal.SIGTERM)
    assert on.wait(60) == stopping.AGAIN, on.stderr.read()
    (tmp_path / "slowly").unlink()
    later = finished(home)
    assert any(0 < steps(home, run) < 3 * epochs for run in gans)
    assert later.items() >= kept.items() and len(later) < len(runs)
    store_at(home, threads=1).ensure(runs)
    assert len(finished(home)) == len(runs) and finished(home).items() >= later.items()
    assert all_same(home, folder, runs)


# Ray


@pytest.fixture
def cluster():
    "Two nodes of one core each, beside a head that has none."
    pytest.importorskip("ray", reason="Ray is not installed")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        yield made
    finally:
        made.shutdown()


def test_a_cluster_that_does_not_answer_is_named(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed")
    store = at(tmp_path, launcher="ray", ray_address="127.0.0.1:1")
    with pytest.raises(BadInput, match="no cluster answers at 127.0.0.1:1"):
        store.ensure(sweep(1, 1))


def test_a_sweep_survives_the_loss_of_a_node(sweep_of_a_dead_command, cluster, undisturbed):
    "Begun here and killed; gone on with two nodes, one lost; stopped; finished here."
    folder, runs, epochs = undisturbed
    n, home = len(runs), sweep_of_a_dead_command
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    kept = finished(home)
    on = command(home, "ray", cluster.address, n, epochs)
    wait_for(home, len(kept) + max(1, n // 6), on)
    cluster.remove_node(nodes[0], allow_graceful=False)
    lost_at = len(finished(home))
    wait_for(home, lost_at + max(1, n // 6), on)  # it goes on without the node
    on.send_signal(signal.SIGTERM)
    assert on.wait(60) == stopping.AGAIN, on.stderr.read()
    later = finished(home)
    assert len(kept) < len(later) < n

    records = at(home).ensure(runs)
    assert (
        len(records) == n and finished(home).items() >= later.items() >= kept.items()
    )  # none was made twice
    assert all_same(home, folder, runs)


def test_what_fails_under_ray_is_listed_and_the_rest_made(tmp_path, cluster):
    cluster.add_node(num_cpus=2)
    good = sweep(2, 1)
    unknown = Classify("no such network", Plain(), width=0.0625)
    bad = replace(small(epochs=1), recipe=unknown, home="tests/sweep")
    store, before = (
        at(tmp_path, launcher="ray", ray_address=cluster.address),
        signal.getsignal(signal.SIGTERM),
    )
    import ray

    try:
        with pytest.raises(RunsFailed) as e:
            store.ensure([*good, bad])
        assert list(e.value.failures) == [(bad.key, None)]
        assert "unknown model" in e.value.named[bad.name]
        assert all(store.record(r) for r in good)
        assert signal.getsignal(signal.SIGTERM) is before  # Ray has given it back
    finally:
        ray.shutdown()


def test_who_runs_side_by_side_shares_the_cores_until_the_other_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "cores", lambda: 8)
    preset = settings.load("smoke", device="cpu")
    monkeypatch.setenv(workers.SHARING, str(tmp_path))
    with stopping.held(tmp_path):
        alone = workers.jobs(preset)
        with stopping.held(tmp_path):
            assert (workers.jobs(preset), workers.threads_each(preset)) == (4, 1)
        (tmp_path / "of one that was killed").touch()
        assert alone == workers.jobs(preset) == 8


@pytest.mark.parametrize("folder", ["/tmp", "/scratch/" + "x" * 60])
def test_a_cluster_of_ones_own_listens_here_alone_and_any_folder_will_do(folder, monkeypatch):
    from thesis_repro import clusters

    asked = []

    def init(address, **how):
        asked.append((address, how))
        if address != "local":
            raise ConnectionError

    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", folder)
    clusters._start(SimpleNamespace(init=init), "auto")
    (_, first), (address, how) = asked
    assert address == "local" and how["_node_ip_address"] == "127.0.0.1"
    assert how["include_dashboard"] is False and "_temp_dir" not in first
    place = how.get("_temp_dir", folder + "/ray")
    longest = f"{place}/session_2026-11-29_03-31-35_123456_1234567/sockets/plasma_store"
    assert len(longest) <= 107


# A GPU that fails


def _failing(store, name, wait, progress):
    "A task whose kernel fails, as one with an index out of range does; or one that does not."
    try:
        if name.startswith("bad"):
            raise torch.AcceleratorError("CUDA error: device-side assert triggered\nCompile with …")
    except Exception as e:
        return devices.failure(e)
    return f"pid {os.getpid()}"


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_worker_that_lost_its_gpu_is_replaced_and_the_others_tasks_are_made(
    tmp_path, monkeypatch, jobs
):
    monkeypatch.setattr(workers, "gpus", lambda preset: 1)  # one: no worker is given its own
    bad = 4 if jobs == 1 else 1  # more than a killed worker is replaced
    names = [f"{kind} {i}" for i in range(bad) for kind in ("good", "bad")] + ["good at last"]
    store = at(tmp_path, jobs=jobs)
    made = launch.side_by_side(store, _failing, [(n,) for n in names], disable=True)
    said = {n: made[i] for i, n in enumerate(names)}
    failed = [t for n, t in said.items() if n.startswith("bad")]
    assert failed == ["the GPU failed: CUDA error: device-side assert triggered"] * bad
    pids = {t for n, t in said.items() if n.startswith("good")}
    assert all(t.startswith("pid") for t in pids) and f"pid {os.getpid()}" not in pids
    assert jobs == 2 or len(pids) == 1 + bad  # after each failure another worker
    assert not devices.lost()


def test_a_full_memory_is_one_line_and_is_freed(tmp_path, monkeypatch):
    "What the failed run held is free when the cache is emptied, so that the next run fits."
    held, freed = [], []

    def full(method, model, x, y, draws):
        large = torch.zeros(3)
        held.append(weakref.ref(large))
        words = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a capacity of …"
        raise torch.OutOfMemoryError(words + str(large.sum().item()))

    monkeypatch.setattr(Plain, "__call__", full)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(held[0]() is None))
    run = small(epochs=1)
    with pytest.raises(RunsFailed) as e:
        store_at(tmp_path, device="cpu").ensure([run])
    why = e.value.failures[run.key, None]
    assert why.startswith("the GPU's memory is full: ") and why.isprintable()
    assert why.endswith("(Tried to allocate 2.00 GiB)") and freed == [True]
