"What a finished run leaves: which code and machine made it, and whether it is whole."

import json
import shutil
import subprocess

import pytest
import torch
from methods import small, store_at

from thesis_repro import distributed, measures, paths, pieces, records, training
from thesis_repro.files import BadInput, atomic_json, sha256
from thesis_repro.pieces import specification
from thesis_repro.records import read, repeatable, write_diverged
from thesis_repro.training import Compute

# The machine


def freshly() -> str:
    records.sums.cache_clear()
    return records.sums()


def test_the_hash_of_the_sums_depends_on_the_kernels_and_on_nothing_else(monkeypatch):
    wanted, threads = freshly(), torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(3)
    try:
        with torch.inference_mode():
            assert freshly() == wanted and torch.get_num_threads() == 3
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(threads)

    def other_order(x, w, *how, conv=torch.conv2d):
        return conv(x.flip(1), w.flip(1), *how)  # the same sum from the other end

    monkeypatch.setattr(records.F, "conv2d", other_order)
    assert freshly() != wanted
    records.sums.cache_clear()


# The commit


@pytest.fixture
def git(tmp_path, monkeypatch):
    "A function that calls git in a project of its own, which is a repository."
    root = tmp_path / "project"
    for name in ("nbs", "thesis_repro", "tests"):
        (root / name).mkdir(parents=True)
        (root / name / "file").write_text("1\n")
    (root / "settings.ini").write_text("")
    monkeypatch.setenv("THESIS_REPRO_ROOT", str(root))
    monkeypatch.delenv("THESIS_REPRO_COMMIT", raising=False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    records.commit.cache_clear()

    def git(*words, at=root):
        who = ("-c", "user.name=n", "-c", "user.email=e", "-c", "init.defaultBranch=main")
        done = subprocess.run(["git", *who, *words], cwd=at, check=True, capture_output=True)
        records.commit.cache_clear()
        return done.stdout.decode().strip()

    git("init")
    git("add", ".")
    git("commit", "-m", "one")
    yield git
    records.commit.cache_clear()


def test_the_commit_is_the_projects(git):
    assert records.commit() == git("rev-parse", "--short=12", "HEAD")


@pytest.mark.parametrize("name", ["nbs/file", "thesis_repro/file", "settings.ini"])
def test_files_that_differ_make_it_dirty(git, name):
    (paths.root() / name).write_text("2\n")
    assert records.commit() == git("rev-parse", "--short=12", "HEAD") + "-dirty"
    git("add", ".")
    assert records.commit().endswith("-dirty")
    git("commit", "-m", "two")
    assert records.commit() == git("rev-parse", "--short=12", "HEAD")


def test_what_reaches_no_result_does_not_make_it_dirty(git):
    (paths.root() / "tests" / "file").write_text("2\n")
    (paths.root() / "outputs").mkdir()
    (paths.root() / "outputs" / "record").write_text("")
    assert not records.commit().endswith("-dirty")


def test_a_new_module_that_nobody_committed_makes_it_dirty(git):
    (paths.root() / "thesis_repro" / "mine.py").write_text("")
    assert records.commit().endswith("-dirty")


def test_the_commit_of_another_repository_is_not_taken(git, monkeypatch):
    "A copy of the project without its own .git, unpacked in somebody else's repository."
    inner = paths.root() / "vendor" / "thesis"
    inner.mkdir(parents=True)
    shutil.copytree(paths.root() / "nbs", inner / "nbs")
    git("add", ".")
    git("commit", "-m", "vendored")
    monkeypatch.setenv("THESIS_REPRO_ROOT", str(inner))
    records.commit.cache_clear()
    assert records.commit() == "unknown"
    monkeypatch.setenv("THESIS_REPRO_COMMIT", "abc123")
    records.commit.cache_clear()
    assert records.commit() == "abc123"


def test_what_git_says_is_not_overruled(git, monkeypatch):
    "With the variable set, a reference could be made by code that nobody had committed."
    (paths.root() / "thesis_repro" / "file").write_text("2\n")
    monkeypatch.setenv("THESIS_REPRO_COMMIT", "abcabcabcabc")
    records.commit.cache_clear()
    assert records.commit().endswith("-dirty")


def test_without_git_or_a_repository_the_commit_is_unknown(git, monkeypatch, tmp_path):
    shutil.rmtree(paths.root() / ".git")
    records.commit.cache_clear()
    assert records.commit() == "unknown"
    monkeypatch.setenv("PATH", str(tmp_path))
    records.commit.cache_clear()
    assert records.commit() == "unknown"


# What is in a record


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "The folder of a finished run, and the run."
    run = small(epochs=2)
    return store_at(tmp_path_factory.mktemp("made")).make(run, progress=False), run


def test_a_record_says_what_where_and_how(made, device):
    record, run = made
    assert record.key == run.key and record.run == specification(run)
    assert record.folder.name == run.name and record.code == run.code()
    known = {"train": 150, "held_out": 50, "test": 50, "classes": 10, "name": "faint10"}
    assert record.data == known | {"stand_in": "CIFAR-10", "chance": 10.0}
    assert record.metrics.keys() == record.weights.keys() == {"last", "best"}
    assert [row["epoch"] for row in record.history] == [1, 2]
    assert record.cost["device"] == device and record.cost["processes"] == 1
    assert record.cost["seconds"] > 0
    assert record.environment["versions"]["torch"] == torch.__version__
    assert {"python", "torchvision", "numpy"} <= record.environment["versions"].keys()
    assert "date" not in json.dumps(record.environment)


def test_a_number_of_a_record_has_a_path(made):
    record, _ = made
    assert record.value("best.accuracy") == record.metrics["best"]["accuracy"]
    for path in ("best.nothing", "nothing"):
        with pytest.raises(KeyError):
            record.value(path)


def test_nothing_of_the_training_is_left(made):
    record, _ = made
    assert sorted(f.name for f in record.folder.iterdir()) == [
        "done",
        "record.json",
        "record.json.copy",
        "weights.ckpt",
    ]
    marks = json.loads((record.folder / "done").read_text())
    assert marks == {n: sha256(record.folder / n) for n in ("weights.ckpt", "record.json")}


@pytest.fixture
def folder(made, tmp_path):
    "A copy of it."
    return shutil.copytree(made[0].folder, tmp_path / made[0].folder.name)


def forge(folder, **changes):
    "Change a record, and make its checksum fit."
    found = json.loads((folder / "record.json").read_text()) | changes
    atomic_json(folder / "record.json", found)
    marks = json.loads((folder / "done").read_text())
    atomic_json(folder / "done", marks | {"record.json": sha256(folder / "record.json")})


def test_what_a_newer_version_adds_is_left_alone(folder, made):
    forge(folder, unheard_of={"a": 1}, environment={})
    found = read(folder)
    assert found.metrics == made[0].metrics and found.environment == {}


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"metrics": {}}, "its metrics have no last or no best"),
        ({"metrics": [1]}, "it has no metrics"),
        ({"weights": {"last": 1, "best": 2}}, "its weights have no last or no best"),
        ({"history": {}}, "it has no history"),
        ({"run": "x", "code": 3}, "it has no run, code"),
        ({"data": {}}, "it has no number of test images"),
    ],
)
def test_a_record_that_lacks_something_is_damaged(folder, changes, said):
    forge(folder, **changes)
    with pytest.warns(UserWarning, match=f"record.json: damaged .{said}.: the run is made again"):
        assert read(folder) is None


@pytest.mark.parametrize("marker", ["", "[]", "{}", "5", '{"record.json": 5}', "[" * 5000])
def test_an_odd_marker_is_damage(folder, marker):
    (folder / "done").write_text(marker)
    with pytest.warns(UserWarning, match="damaged"):
        assert read(folder) is None


# How exactly it can be repeated


def test_the_three_degrees(monkeypatch):
    assert repeatable(Compute()).startswith("bitwise on this machine")
    gpu = Compute(device="cuda")
    assert repeatable(gpu).startswith("statistical") and "--deterministic" in repeatable(gpu)
    assert repeatable(Compute(device="cuda", deterministic=True)).startswith("bitwise")
    assert repeatable(Compute(compile=True)).startswith("within tolerance: compiled")
    parts = repeatable(Compute(), ("here", "there"))
    assert parts.startswith("within tolerance: computed in 2 parts") and "here; there" in parts
    monkeypatch.setattr(distributed, "processes", lambda: 3)
    assert "in 3 processes" in repeatable(Compute())


def test_a_place_names_what_the_bits_depend_on(monkeypatch):
    run = small()
    here = records.place(run, Compute())
    assert f"torch {torch.__version__}" in here and "thread(s)" in here
    assert torch.backends.cpu.get_cpu_capability() in here
    assert pieces.key(run.code()) in here
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    assert records.place(run, Compute()) != here
    torch.set_num_threads(threads)
    monkeypatch.setattr(distributed, "processes", lambda: 2)
    assert "2 processes" in records.place(run, Compute())


# A run that diverged


def test_what_is_known_of_a_diverged_run_is_checked(tmp_path):
    run = small()
    t = training.start(run.recipe, run.data.images(), run.length)
    write_diverged(tmp_path, run, t, "the loss is nan")
    facts = records.read_diverged(tmp_path)
    assert facts["reason"] == "the loss is nan" and facts["run"] == specification(run)
    file = tmp_path / "diverged.json"
    file.write_text(file.read_text().replace("nan", "inf"))
    for text in (file.read_text(), "[]", "5", "{}", "[" * 5000):
        file.write_text(text)
        with pytest.warns(UserWarning, match="diverged.json: damaged: the run is made again"):
            assert records.read_diverged(tmp_path) is None
    assert records.read_diverged(tmp_path / "none") is None


def test_chance_is_what_one_answer_for_all_gets_right():
    y = torch.tensor([1, 1, 1, 0, 2])
    assert records.chance(y) == 60
    attributes = torch.tensor([[1, 0], [1, 0], [1, 1], [0, 0]])
    assert records.chance(attributes) == 75  # three of four, and three of four
    assert records.chance(y[:0]) == 0


def test_what_cannot_be_read_is_said_in_a_line(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(tmp_path), "read_text", refused)
    for read_it in (read, measures.read_kept):
        with pytest.raises(BadInput, match="cannot be read: permission denied"):
            read_it(tmp_path / "file.json")
