"""Jobs of a Slurm queue: what they ask for, what they do without a place, and who finds them.

Most of it needs no Slurm: submitit plays the queue for one job, and three shell scripts for the
rest. Where `sinfo` answers, the same is done with real jobs. Their folders are pytest's own: on a
cluster of several nodes, say `--basetemp` with a folder that they share.
"""

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from methods import NEVER, Dawdling, left_by, same, small, store_at

from thesis_repro import clusters, paths, settings, stopping, store
from thesis_repro.checkpoints import load_checkpoint
from thesis_repro.files import BadInput
from thesis_repro.store import RunsFailed, Store

HERE = Path(__file__).parent


SWEEP = [small(Dawdling(), seed=s, epochs=30, label="queued") for s in range(4)]


def queued(folder, **changes) -> Store:
    "A store whose runs are jobs; only what stops a run saves it."
    return store_at(
        folder,
        **{"launcher": "slurm", "threads": 1, "jobs": 2, "checkpoint_seconds": NEVER, **changes},
    )


@pytest.fixture
def telling(tmp_path, monkeypatch):
    "A folder in which runs tell that they have begun; other processes can import these tests."
    monkeypatch.setenv("TELLING", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{paths.root()}:{HERE}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def until(there, seconds=200.0):
    "What `there` gives, once it is something."
    end = time.monotonic() + seconds
    while not (found := there()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)
    return found


def begun(folder, seed=0) -> int:
    "The process that trains this seed, once it has made two steps."
    file = folder / f"{seed}-1"
    return int(until(lambda: file.exists() and file.read_text()))


def whole(folder, wanted) -> list:
    "What an undisturbed sweep on this machine gives."
    store_at(folder / "whole", threads=1).ensure(wanted)
    return [left_by(folder / "whole", run) for run in wanted]


# What a job asks for


def asked(words="none", **changes) -> dict:
    return clusters._asked(
        settings.load("smoke", slurm=words, **{"device": "cpu", "threads": 3, **changes})
    )


def test_a_job_asks_for_what_the_words_say():
    plain = {"requeue": True, "signal": "B:USR2@90", "cpus_per_task": 3}
    assert asked() == plain
    assert asked("time=4:00:00 --mem-per-cpu=2G") == {
        **plain,
        "time": "4:00:00",
        "mem_per_cpu": "2G",
    }
    assert asked("cpus-per-task=8")["cpus_per_task"] == "8" and "cpus_per_task" not in asked(
        "cpus-per-gpu=8"
    )


def test_a_job_asks_for_one_gpu_where_runs_want_one():
    assert asked(device="cuda")["gres"] == "gpu:1" and "gres" not in asked()
    assert asked("gres=gpu:a100:1", device="cuda")["gres"] == "gpu:a100:1"
    assert "gres" not in asked("gpus=1", device="cuda")


@pytest.mark.parametrize("word", ["partition", "-p=gpu", "=gpu", "time=", "Time=3"])
def test_a_word_that_is_no_option_is_bad_input(word):
    with pytest.raises(
        BadInput, match=f"slurm: {word}: must be long options of sbatch, as in time=240"
    ):
        asked(f"mem=1G {word}")


@pytest.mark.parametrize(
    "word", ["array=0-3", "output=here", "signal=USR1@10", "ntasks-per-node=2"]
)
def test_what_the_launcher_says_itself_is_bad_input(word):
    with pytest.raises(BadInput, match=f"slurm: {word}: the launcher sets that itself"):
        asked(word)


def begin(at, tasks, wait=False, enough=lambda: False):
    work = dict(enumerate((t,) for t in tasks))
    return clusters.on_slurm(at, store._attempt, work, wait, None, enough)


@pytest.mark.parametrize("launcher", [clusters.on_slurm, clusters.on_ray])
def test_a_cluster_is_not_told_which_gpu(tmp_path, launcher):
    at = queued(tmp_path)
    at.preset = replace(at.preset, device="cuda:1")
    with pytest.raises(BadInput, match="device = cuda:1: .*the cluster chooses the GPU: use cuda"):
        next(launcher(at, store._attempt, {0: SWEEP[:1]}, False, None, lambda: False))


def test_without_slurm_or_submitit_nothing_is_submitted(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match="no sbatch on this machine"):
        next(begin(queued(tmp_path), SWEEP))
    (tmp_path / "sbatch").touch(mode=0o755)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(BadInput, match=r"pip install thesis-repro\[slurm\]"):
        next(begin(queued(tmp_path), SWEEP))


# A job from the inside


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGUSR2, marks=pytest.mark.long), signal.SIGTERM]
)
def test_a_job_that_is_asked_to_stop_saves_first(telling, number):
    submitit = pytest.importorskip("submitit")
    at, run = queued(telling), SWEEP[0]
    (telling / "slowly").touch()
    job = submitit.LocalExecutor(telling / "slurm").submit(
        clusters._in_job, {"GIVEN": "1"}, 1, store._attempt, at, run, False, False
    )
    pid = begun(telling)
    os.kill(pid, number)
    (telling / "slowly").unlink()
    if number == signal.SIGUSR2:  # its time is up: back into the queue, and on
        assert job.result() == "" and job.stdout().count("Starting with") == 2
        assert int((telling / "0-0").read_text()) == pid, "it began again"
        assert same(left_by(telling, run), whole(telling, [run])[0])
    else:  # whoever sends it has decided
        until(job.done)
        assert not job.paths.result_pickle.exists() and job.stdout().count("Starting with") == 1
    file = at.home(run) / "checkpoint.ckpt"
    assert file.exists() == (number == signal.SIGTERM)


def test_a_job_that_never_gets_anywhere_gives_up(monkeypatch):
    monkeypatch.setenv("SLURM_RESTART_COUNT", "100")
    with pytest.raises(RuntimeError, match="ask for more, as in slurm = time=240"):
        clusters._leave(again=True)
    with pytest.raises(SystemExit):
        clusters._leave(again=False)


# A queue of shell scripts

SBATCH = """#!/bin/sh
n=$(($(cat submitted 2>/dev/null | wc -l) + 1)); echo $n >> submitted; cp "$1" $n.sh
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$1")
[ -z "$last" ] && echo $n >> queue
[ -n "$last" ] && for i in $(seq 0 $last); do echo ${n}_$i; done >> queue
echo "Submitted batch job $n"
"""


class Queue:
    def __init__(self, place: Path):
        self.place = place
        self.script("sbatch", SBATCH)
        self.script("squeue", "#!/bin/sh\ncat queue 2>/dev/null || true\n")
        self.script("srun", "#!/bin/sh\n")

    def script(self, name: str, text: str):
        (self.place / name).write_text(text.replace("#!/bin/sh\n", f"#!/bin/sh\ncd {self.place}\n"))
        (self.place / name).chmod(0o755)

    def submitted(self) -> int:
        file = self.place / "submitted"
        return len(file.read_text().split()) if file.exists() else 0

    def asked(self, n: int) -> list[str]:
        return [
            w.removeprefix("#SBATCH --")
            for w in (self.place / f"{n}.sh").read_text().splitlines()
            if "SBATCH" in w
        ]


@pytest.fixture
def queue(tmp_path, monkeypatch):
    "`sbatch` and `squeue` that only write down what is asked; no job ever runs."
    pytest.importorskip("submitit")
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(clusters, "_PAUSE", 0.01)
    monkeypatch.setattr(clusters, "_PATIENCE", 0.0)
    return Queue(tmp_path / "bin")


def answer(store, job: str, said, kind="success"):
    (store.folder / "slurm" / f"{job}_0_result.pkl").write_bytes(pickle.dumps((kind, said)))


def test_tasks_are_one_array(queue, tmp_path):
    store = queued(tmp_path, slurm="partition=low mem=2G")
    assert list(begin(store, SWEEP, enough=lambda: True)) == []
    told = queue.asked(1)
    assert {
        "array=0-3%2",
        "partition=low",
        "mem=2G",
        "cpus-per-task=1",
        "requeue",
        "signal=B:USR2@90",
    } <= set(told)
    assert (
        not [w for w in told if w.startswith(("time", "gres", "wckey"))] and queue.submitted() == 1
    )
    assert f"exec {sys.executable}" in (queue.place / "1.sh").read_text()


def test_no_task_is_submitted_twice_while_its_job_is_there(queue, tmp_path, capsys):
    store = queued(tmp_path)
    for wanted in (SWEEP[:2], SWEEP[:2], SWEEP[1:], SWEEP):
        list(begin(store, wanted, enough=lambda: True))
    known = json.loads((tmp_path / "slurm" / "jobs.json").read_text())
    assert queue.submitted() == 2 and [known[f"_attempt {r.key}"] for r in SWEEP] == [
        "1_0",
        "1_1",
        "2_0",
        "2_1",
    ]
    assert capsys.readouterr().err.splitlines()[-1].endswith("scancel ends them: 1 2")
    (queue.place / "queue").write_text("1_0\n")  # the others are gone
    list(begin(store, SWEEP, enough=lambda: True))
    assert queue.submitted() == 3 and "array=0-2%2" in queue.asked(3)


def test_answers_come_as_jobs_end(queue, tmp_path):
    store, ends = queued(tmp_path), []
    coming = begin(
        store, SWEEP[:3], enough=lambda: len(ends) == 2 or bool(answer(store, "1_2", ""))
    )
    real = clusters._jobs

    def answered(*args):
        jobs = real(*args)
        answer(store, "1_0", "")
        answer(store, "1_1", "diverged")
        return jobs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clusters, "_jobs", answered)
        for made in coming:
            ends.append(made)
    assert ends[:2] == [(0, ""), (1, "diverged")]


def test_a_job_without_an_answer_is_submitted_again_and_given_up_in_the_end(
    queue, tmp_path, capsys
):
    queue.script("squeue", "#!/bin/sh\n")  # none of them is ever there
    with pytest.raises(RunsFailed, match="its worker was killed"):
        queued(tmp_path).ensure(SWEEP[:1])
    assert queue.submitted() == 4 and "ended without an answer" in capsys.readouterr().err


def test_a_queue_that_does_not_answer_for_a_while_loses_nothing(queue, tmp_path):
    store = queued(tmp_path)
    list(begin(store, SWEEP[:1], enough=lambda: True))
    queue.script("squeue", "#!/bin/sh\nexit 1\n")
    with pytest.raises(BadInput, match="squeue gets no answer"):
        next(begin(store, SWEEP[:1]))
    job = clusters._submitit(store.preset).SlurmJob(store.folder / "slurm", "1")
    assert clusters._ended({0: job}, gone := {}) == {} and not gone
    answer(store, "1", "diverged")
    assert clusters._ended({0: job}, gone) == {0: "diverged"}
    answer(store, "1", "Traceback", kind="error")
    assert clusters._ended({0: job}, gone) == {0: None}


def test_an_old_answer_is_not_taken_for_a_new_one(queue, tmp_path):
    store = queued(tmp_path)
    (tmp_path / "slurm").mkdir()
    answer(store, "1", "of an older Slurm's first job")
    assert list(begin(store, SWEEP[:1], enough=iter([False, True, True]).__next__)) == []


def test_what_sbatch_refuses_is_bad_input_in_its_words(queue, tmp_path):
    queue.script(
        "sbatch", "#!/bin/sh\necho 'sbatch: error: invalid partition specified: moon' >&2; exit 1\n"
    )
    with pytest.raises(
        BadInput, match="launcher = slurm: sbatch: invalid partition specified: moon"
    ):
        queued(tmp_path, slurm="partition=moon").ensure(SWEEP[:1])


# A real Slurm


def slurm(*words) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def cluster(telling, monkeypatch):
    "A folder for the runs of a Slurm that answers here; jobs that are left are cancelled."
    pytest.importorskip("submitit")
    if not shutil.which("sinfo") or subprocess.run(["sinfo"], capture_output=True).returncode:
        pytest.skip("no Slurm answers here (sinfo)")
    monkeypatch.setattr(clusters, "_PAUSE", 1.0)
    yield telling
    if left := ids(telling):
        slurm("scancel", *left)
        until(lambda: not states(telling))


def ids(folder) -> list[str]:
    file = folder / "slurm" / "jobs.json"
    return [*json.loads(file.read_text()).values()] if file.exists() else []


def states(folder) -> dict[str, str]:
    "Job → state, of the folder's jobs that are in the queue."
    there = dict(line.split() for line in slurm("squeue", "-h", "-r", "-o", "%i %T").splitlines())
    return {job: there[job] for job in ids(folder) if job in there}


COMMAND = """
import sys
import test_slurm
from thesis_repro import clusters, stopping
clusters._PAUSE = 1.0
try:
    with stopping.interruptible():
        test_slurm.queued(sys.argv[1]).ensure(test_slurm.SWEEP[: int(sys.argv[2])])
except stopping.Stopped as e:
    print(e, file=sys.stderr)
    sys.exit(e.code)
"""


def command(folder, n: int) -> subprocess.Popen:
    "A command that makes the first `n` runs of the sweep under Slurm."
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(folder), str(n)], stderr=subprocess.PIPE, text=True
    )


def at(folder, run) -> int:
    "The epoch of a run's checkpoint, once there is one."
    file = store_at(folder).home(run) / "checkpoint.ckpt"
    until(file.exists)
    return load_checkpoint(file)["at"]["epoch"]


def starts(folder, job) -> int:
    return (folder / "slurm" / f"{job}_0_log.out").read_text().count("Starting with")


def test_an_array_is_the_local_sweep(cluster):
    queued(cluster).ensure(SWEEP)
    assert len({job.partition("_")[0] for job in ids(cluster)}) == 1 and len(ids(cluster)) == 4
    assert all(
        same(left_by(cluster, run), w) for run, w in zip(SWEEP, whole(cluster, SWEEP), strict=True)
    )


def disturb(job: str, how: str):
    if how == "its time is nearly up":
        slurm("scancel", "--batch", "--signal=USR2", job)
    elif how == "somebody requeues it":
        slurm("scontrol", "requeue", job)
    else:
        slurm("sbatch", "--partition=high", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")


@pytest.mark.parametrize(
    "how", ["its time is nearly up", "somebody requeues it", "it is preempted"]
)
def test_a_run_that_loses_its_place_goes_on(cluster, how):
    if how == "it is preempted" and "high" not in slurm("sinfo", "-h", "-o", "%R").split():
        pytest.skip("this Slurm has no partition `high` that preempts the default one")
    (cluster / "slowly").touch()
    going, run = command(cluster, 1), SWEEP[0]
    pid = begun(cluster)
    [job] = ids(cluster)
    disturb(job, how)
    until(lambda: states(cluster)[job] == "PENDING")
    (cluster / "slowly").unlink()
    saved = at(cluster, run)
    slurm("scontrol", "update", f"JobId={job}", "StartTime=now")  # Slurm would wait for two minutes
    _, said = going.communicate(timeout=300)
    assert going.returncode == 0, said
    assert (
        starts(cluster, job) == 2
        and saved < run.length.epochs
        and int((cluster / "0-0").read_text()) == pid
    )
    assert same(left_by(cluster, run), whole(cluster, [run])[0])


def test_a_command_that_is_gone_finds_its_jobs_again(cluster):
    (cluster / "slowly").touch()
    first = command(cluster, 2)
    until(lambda: len(states(cluster)) == 2)
    first.terminate()
    _, said = first.communicate(timeout=60)
    assert first.returncode == stopping.AGAIN and "2 job(s) stay in the queue" in said, said
    second, jobs = command(cluster, 2), ids(cluster)
    begun(cluster)
    second.kill()
    second.communicate()
    assert states(cluster), "the jobs went with their command"
    (cluster / "slowly").unlink()
    queued(cluster).ensure(SWEEP[:2])
    assert len(list((cluster / "slurm").glob("*_submission.sh"))) == 1 and [
        starts(cluster, j) for j in jobs
    ] == [1, 1]
    made = whole(cluster, SWEEP[:2])
    assert all(same(left_by(cluster, run), w) for run, w in zip(SWEEP[:2], made, strict=True))


def test_what_slurm_began_is_finished_here(cluster):
    (cluster / "slowly").touch()
    going, run = command(cluster, 1), SWEEP[0]
    pid = begun(cluster)
    going.terminate()
    _, said = going.communicate(timeout=60)
    named = re.search(r"scancel ends them: ([\d ]+)", said)  # it says how to end them
    slurm("scancel", *named[1].split())
    until(lambda: not states(cluster))
    assert at(cluster, run) < run.length.epochs and starts(cluster, *ids(cluster)) == 1
    (cluster / "slowly").unlink()
    store_at(cluster, threads=1).ensure([run])
    assert int((cluster / "0-0").read_text()) == pid
    assert same(left_by(cluster, run), whole(cluster, [run])[0])
