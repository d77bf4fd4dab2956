"""What people install: a wheel works without the repository; versions and citation agree."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata

import pytest

import thesis_repro
from thesis_repro import cli, paths

ROOT = paths.root()
BUILD = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
PARTS = (
    "pyproject.toml setup.py MANIFEST.in README.md LICENSE CHANGELOG.md CITATION.cff settings.ini"
)
FOLDERS = "nbs thesis_repro data/published data/splits"
DATA = "data/contract.csv data/elsewhere.csv"
OWN = "data/photos.npz data/own.csv nbs/.ipynb_checkpoints/index-checkpoint.ipynb outputs/x/y.csv"


def environment(**more) -> dict:
    "The environment without what this project's own checks say in it."
    others = {k: v for k, v in os.environ.items() if not k.startswith("THESIS_REPRO_")}
    return {**others, "PYTHONPATH": "", **more}


def called(*words, where, **more) -> subprocess.CompletedProcess:
    "What a Python says; where it fails, that is the message."
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=where,
        env=environment(**more),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done


def pip(*words, where):
    called("-m", "pip", "--disable-pip-version-check", "-q", *words, where=where)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "The wheel, made from a source distribution of a copy in which somebody has worked."
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"
    no = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for folder in FOLDERS.split():
        shutil.copytree(ROOT / folder, source / folder, ignore=no)
    for name in [*PARTS.split(), *DATA.split()]:
        shutil.copyfile(ROOT / name, source / name)
    for name in OWN.split():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("mine")
    called("-c", BUILD, place, where=source)
    how = ("--no-build-isolation", "--no-deps", "--no-index")
    pip("wheel", *how, "-w", place, next(place.glob("*.tar.gz")), where=place)
    return next(place.glob("*.whl"))


@pytest.fixture(scope="module")
def library(wheel):
    "The folder into which the wheel is installed, and which nobody may write afterwards."
    target = wheel.parent / "library"
    pip("install", "--no-deps", "--no-index", "--target", target, wheel, where=wheel.parent)
    return target


def test_a_wheel_has_what_the_library_reads_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    there = {n.removeprefix("thesis_repro/project/") for n in names if "/project/" in n}
    books = {p.relative_to(ROOT).as_posix() for p in (ROOT / "nbs").rglob("[!.]*.ipynb")}
    folders = (ROOT / "data/published", ROOT / "data/splits")
    numbers = {p.relative_to(ROOT).as_posix() for f in folders for p in f.iterdir()}
    left = {n for n in books if "/." in n}
    assert there == (books - left) | numbers | {*DATA.split(), "settings.ini"}
    rest = {n for n in names if "/project/" not in n}
    made = {p for p in (ROOT / "thesis_repro").rglob("*") if p.is_file() and p.suffix != ".pyc"}
    assert {n for n in rest if n.startswith("thesis_repro/")} == {
        p.relative_to(ROOT).as_posix() for p in made
    }
    assert {n.partition("/")[0].rpartition(".")[2] for n in rest} == {"thesis_repro", "dist-info"}
    assert "thesis_repro/py.typed" in names


COMMANDS = (
    "atlas",
    "where tab-5.1",
    "settings",
    "runs",
    "claims",
    "data list",
    "plan --preset smoke --chapter 7 --device cpu",
    "table 7.1 --preset smoke --parts CIFAR-10 --no-train",
    "table virtual_positives.1 --preset smoke --no-train",
    "settings --preset nothing",
    "figure 7.2 --no-train",
)
# the last command is called in an environment without the extra `notebooks`
CALLS = """
import os, sys
from thesis_repro import cli, paths
print(paths.__file__)
for words in sys.argv[1:]:
    for name in ("matplotlib", "seaborn") if words.startswith("figure") else ():
        sys.modules[name] = None
    print("##", words, "##", cli.main(words.split()), flush=True)
    os.chdir("/")
"""


@pytest.fixture(scope="module")
def said(library, tmp_path_factory):
    "The folder in which the commands were called, what they returned, printed and complained."
    here = tmp_path_factory.mktemp("here")
    done = called("-c", CALLS, *COMMANDS, where=here, PYTHONPATH=str(library))
    assert done.stdout.startswith(str(library))
    codes = dict(re.findall(r"^## (.*) ## (\d)$", done.stdout, re.M))
    return here, {k: int(v) for k, v in codes.items()}, done.stdout, done.stderr


def test_commands_work_from_a_wheel(said):
    _, codes, out, wrong = said
    assert codes == {c: 2 if c in COMMANDS[-2:] else 0 for c in COMMANDS}
    assert "notebook: nbs/chapters/05_m2at.ipynb" in out
    assert re.search(r"chapter 7 +(\d+) of \1\b", out) and "no runs at preset smoke" in out
    assert "Table 7.1: Classification accuracy" in out and "95.16 ± 0.14" in out
    assert re.search(r"adversarial training makes the network robust", out)
    assert "Traceback" not in wrong


def test_what_a_wheel_cannot_do_is_one_line_with_the_remedy(said):
    *_, wrong = said
    lines = [line for line in wrong.splitlines() if line.startswith("thesis-repro: ")]
    assert "settings.ini has thesis, fast, smoke" in lines[0]
    assert lines[1:] == [
        "thesis-repro: matplotlib is missing: pip install 'thesis-repro[notebooks]'"
    ]


def test_results_go_to_the_folder_of_the_first_call_and_none_to_the_library(said, library):
    here, *_ = said
    assert (here / "outputs/smoke/tables/table_7_1.csv").is_file()
    assert sorted(p.name for p in here.iterdir()) == ["outputs"]
    files = {p.relative_to(library) for p in library.rglob("*") if p.suffix != ".pyc"}
    assert not [f for f in files if "outputs" in f.parts or f.suffix in (".lock", ".tmp")]


def test_the_command_of_a_wheel_says_its_version(library, tmp_path):
    script = library / "bin" / "thesis-repro"
    done = called(script, "--version", where=tmp_path, PYTHONPATH=str(library))
    assert done.stdout == f"thesis-repro {thesis_repro.__version__}\n"


@pytest.mark.parametrize("name", ["", "DATA", "OUTPUTS"])
def test_variables_move_what_a_wheel_keeps(name, monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "_shipped", lambda: tmp_path)
    for variable in ("ROOT", "HOME", "DATA", "OUTPUTS"):
        monkeypatch.delenv(f"THESIS_REPRO_{variable}", raising=False)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    moved = tmp_path / "elsewhere"
    if name:
        monkeypatch.setenv(f"THESIS_REPRO_{name}", str(moved))
    assert paths.installed() and paths.root() == tmp_path
    assert paths.data() == (moved if name == "DATA" else here / "data")
    assert paths.outputs("smoke") == (moved if name == "OUTPUTS" else here / "outputs") / "smoke"
    monkeypatch.chdir(tmp_path)
    assert paths.home() == here
    monkeypatch.setenv("THESIS_REPRO_ROOT", str(ROOT))
    assert not paths.installed() and paths.home() == paths.root() == ROOT


def test_an_extra_is_found_by_the_module_that_is_missing(monkeypatch, tmp_path):
    assert cli._extra("papermill") == "notebooks" and cli._extra("torch_fidelity") == "metrics"
    assert cli._extra("torch") == cli._extra("nothing") == ""

    def none(name):
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(cli.metadata, "requires", none)
    assert cli._extra("papermill") == "notebooks"  # a source tree has pyproject.toml
    monkeypatch.setattr(cli.paths, "root", lambda: tmp_path)
    assert cli._extra("papermill") == ""
    with pytest.raises(ModuleNotFoundError), cli._with_extras():
        import no_such_module  # noqa: F401
