"Launchers: who makes which run must not matter, and no run is lost or made twice when a process, a node or a command dies."

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from thesis_repro import launch, paths, settings, stopping
from thesis_repro.adversarial import Adversarial
from thesis_repro.attacks import PGD
from thesis_repro.mixup import Beta, Mixup, Plain
from thesis_repro.runs import Run, RunsFailed, Store
from thesis_repro.settings import BadInput
from thesis_repro.training import Schedule, read_checkpoint

METHODS = (Plain(), Adversarial(attack=PGD(steps=2)), Mixup((0, 1, 2, 3), Beta(2.0)))


def sweep(n: int, epochs: int) -> list[Run]:
    "Small runs of three kinds."
    schedule = Schedule(epochs=epochs, batch_size=50)
    run = lambda i: Run(
        "faint10",
        "resnet18",
        METHODS[i % 3],
        schedule,
        i,
        0.0625,
        150,
        50,
        50,
        home="tests/sweep",
        part="CIFAR-10",
    )
    return [run(i) for i in range(n)]


def store_at(folder, **changes) -> Store:
    return Store(
        settings.load(
            "smoke", device="cpu", precision="fp32", **{"jobs": 2, "threads": 1, **changes}
        ),
        folder,
    )


def left_by(folder, runs) -> list:
    "The records without what differs from day to day, and the weights."
    found = []
    for run in runs:
        (home,) = Path(folder).glob(f"runs/*/*/*-{run.key}")  # in one place alone
        weights = read_checkpoint(home / "weights.ckpt")
        record = json.loads((home / "record.json").read_text())
        record["environment"].pop(
            "commit"
        )  # of the tests' own repository, which may move meanwhile
        found.append(
            (
                {k: v for k, v in record.items() if k != "cost"},
                [(k, v) for w in weights.values() for k, v in w.items()],
            )
        )
    return found


def same(a: list, b: list) -> bool:
    bits = lambda a, b: all(
        ka == kb and torch.equal(va, vb) for (ka, va), (kb, vb) in zip(a, b, strict=True)
    )
    return all(ra == rb and bits(wa, wb) for (ra, wa), (rb, wb) in zip(a, b, strict=True))


COMMAND = """
import signal, sys
sys.path.insert(0, "tests")
import test_launch
from thesis_repro import stopping

try:
    with stopping.interruptible():
        store = test_launch.store_at(sys.argv[1], launcher=sys.argv[2], ray_address=sys.argv[3], checkpoint_seconds=0)
        store.ensure(test_launch.sweep(int(sys.argv[4]), int(sys.argv[5])))
except stopping.Stopped as e:
    sys.exit(e.code)
"""


def command(folder, launcher: str, address: str, n: int, epochs: int) -> subprocess.Popen:
    "A command that makes the sweep."
    env = os.environ | {"PYTHONPATH": str(paths.root())}
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


def test_jobs_and_threads(monkeypatch):
    monkeypatch.setattr(launch, "cores", lambda: 12)
    of = lambda **k: (lambda p: (launch.jobs(p), launch.threads_each(p)))(
        settings.load("smoke", **{"device": "cpu", **k})
    )
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


def _hold(folder, n, here, leave):
    here.send(launch._slot(folder, n))
    leave.recv()


def test_each_worker_takes_a_gpu_of_its_own_and_a_dead_one_leaves_it(tmp_path):
    context, workers = multiprocessing.get_context("fork"), []

    def one():
        here, leave = context.Pipe(), context.Pipe()
        p = context.Process(target=_hold, args=(tmp_path, 3, here[1], leave[1]))
        p.start()
        workers.append((p, leave[0]))
        return here[0].recv()

    assert [one() for _ in range(3)] == [0, 1, 2]
    assert one() in (0, 1, 2)  # more jobs than GPUs share them
    workers[1][0].kill()
    workers[1][0].join()
    assert one() == 1
    for p, _ in workers:
        p.kill()
        p.join()


def _where(store, name, wait, progress):
    return name, f"{os.getpid()} {store.preset.device} {torch.get_num_threads()}"


def test_workers_stay_for_the_next_tasks(tmp_path):
    store, tasks = store_at(tmp_path), [(f"task {i}",) for i in range(12)]
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
    store = store_at(tmp_path, launcher="ray", ray_address="127.0.0.1:1")
    with pytest.raises(BadInput, match="no cluster answers at 127.0.0.1:1"):
        store.ensure(sweep(1, 1))


def _undisturbed(folder, n, epochs):
    "The sweep by one local command."
    runs = sweep(n, epochs)
    store_at(folder).ensure(runs)
    return runs


def test_a_sweep_survives_the_loss_of_a_node(tmp_path, cluster, long):
    "And of the command before it and the one around it: begun here, killed, gone on with two nodes, one lost, stopped, finished here."
    n, epochs = (24, 6) if long else (6, 4)
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    runs, home = _undisturbed(tmp_path / "undisturbed", n, epochs), tmp_path / "sweep"

    begun = command(home, "local", "auto", n, epochs)
    wait_for(home, max(1, n // 6), begun)
    begun.kill()
    begun.wait()
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

    records = store_at(home).ensure(runs)
    assert (
        len(records) == n and finished(home).items() >= later.items() >= kept.items()
    )  # none was made twice
    assert same(left_by(home, runs), left_by(tmp_path / "undisturbed", runs))


def test_what_fails_under_ray_is_listed_and_the_rest_made(tmp_path, cluster):
    cluster.add_node(num_cpus=2)
    good = sweep(2, 1)
    bad = Run(
        "faint10",
        "no such network",
        Plain(),
        Schedule(epochs=1, batch_size=50),
        9,
        0.0625,
        150,
        50,
        50,
        home="tests/sweep",
        part="CIFAR-10",
    )
    store, before = (
        store_at(tmp_path, launcher="ray", ray_address=cluster.address),
        signal.getsignal(signal.SIGTERM),
    )
    import ray

    try:
        with pytest.raises(RunsFailed) as e:
            store.ensure([*good, bad])
        assert (
            list(e.value.failures) == [bad.name] and "unknown model" in e.value.failures[bad.name]
        )
        assert all(store.record(r) for r in good)
        assert signal.getsignal(signal.SIGTERM) is before  # Ray has given it back
    finally:
        ray.shutdown()
