"""Before anything runs: what the Makefile and the Containerfile would do, and who is cited."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from fnmatch import fnmatch

import pytest
import yaml
from packaging.specifiers import SpecifierSet

import thesis_repro
from thesis_repro import paths

ROOT = paths.root()
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


# ---- make setup


@pytest.fixture
def make(tmp_path):
    "What make says in a copy of its folder."
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copyfile(ROOT / name, tmp_path / name)

    def said(*words) -> subprocess.CompletedProcess:
        env = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
        how = {"cwd": tmp_path, "env": env, "capture_output": True, "text": True}
        return subprocess.run(["make", *words], **how)

    return said


def locked(text: str) -> dict[str, list[str]]:
    "The packages of a lock → what needs them."
    found = {}
    for block in re.split(r"^(?=[a-z])", text, flags=re.M)[1:]:
        comment = block.partition("# via")[2]
        found[block.partition("==")[0]] = re.findall(r"[a-z][\w.-]+", comment)
    return found


def test_setup_for_the_cpu_installs_its_torch_and_nothing_of_cuda(make, tmp_path):
    done = make("-n", "setup", "TORCH=cpu")
    assert done.returncode == 0, done.stderr
    torch, vision = re.findall(r"^(?:torch|torchvision)==[\d.]+", LOCK, re.M)
    assert f"--torch-backend cpu --no-deps {torch} {vision} ||" in done.stdout
    assert "-r requirements.lock" not in done.stdout and "echo cpu > .venv/.torch" in done.stdout
    assert make(".make/requirements-cpu.lock").returncode == 0
    left = (tmp_path / ".make/requirements-cpu.lock").read_text(encoding="utf-8")
    whole, kept = locked(LOCK), locked(left)
    out = whole.keys() - kept.keys()
    assert {"torch", "torchvision", "triton", "nvidia-cublas"} <= out and len(kept) > 150
    # nobody but torch, and what is left out with it, needs any of them
    users = {user for name in out - {"torch", "torchvision"} for user in whole[name]}
    assert users <= out and "--hash" in left
    assert all(block in LOCK for block in re.split(r"^(?=[a-z])", left, flags=re.M))


def test_an_environment_stays_what_it_is_unless_another_is_asked_for(make, tmp_path):
    assert "--require-hashes -r requirements.lock" in make("-n", "setup").stdout
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/.torch").write_text("cpu\n")
    assert "--torch-backend cpu" in make("-n", "setup").stdout
    assert "-r requirements.lock" in make("-n", "setup", "TORCH=cuda").stdout


def test_another_build_of_torch_means_another_environment(make, tmp_path):
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").symlink_to(shutil.which("python3"))
    (tmp_path / ".venv/.stamp").write_text(f"{tmp_path}\n")
    assert "Nothing to be done" in make("-n", "setup").stdout
    assert "-m venv --clear .venv" in make("-n", "setup", "TORCH=cpu").stdout


def test_a_torch_that_there_is_not_is_refused_in_one_line(make):
    done = make("-n", "setup", "TORCH=tpu")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "TORCH = tpu: must be cpu or cuda" in done.stderr


# ---- what CI checks and keeps


def test_what_people_write_is_linted_and_what_is_skipped_is_listed(make):
    said = make("-n", "lint", "pytest").stdout
    assert (
        len(re.findall(r"ruff (?:check|format --check) nbs tests setup\.py thesis_rep", said)) == 2
    )
    assert re.search(r"-m pytest -rs ", said)


def test_ci_keeps_the_pages_to_which_the_front_page_sends_a_reader():
    kept = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    page = re.search(r"`(outputs/smoke/\w+/)index\.html`", (ROOT / "README.md").read_text("utf-8"))
    assert re.search(rf"^ +{page[1]}$", kept, re.M)


# ---- the container

CONTAINER = (ROOT / "Containerfile").read_text(encoding="utf-8").replace("\\\n", " ")
STEPS = [line.split(None, 1) for line in re.findall(r"^[A-Z]+ .+$", CONTAINER, re.M)]


def step(word: str) -> list[str]:
    "The arguments of all instructions of a kind."
    return [rest for kind, rest in STEPS if kind == word]


def test_the_base_has_a_python_that_the_project_takes():
    (base,) = step("FROM")
    version = re.fullmatch(r"python:(3\.\d+)-slim", base)[1]
    assert version in SpecifierSet(PROJECT["requires-python"])
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    first, last = re.search(r"Python 3\.(\d+) to 3\.(\d+)", makefile).groups()
    assert int(first) <= int(version.partition(".")[2]) <= int(last)


def excluded(name: str) -> bool:
    "Whether .dockerignore keeps a path from the build: the last line that fits decides."
    out, parts = False, name.split("/")
    tops = ["/".join(parts[: n + 1]) for n in range(len(parts))]
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.removeprefix("!")
        if line and not line.startswith("#") and any(fnmatch(t, pattern) for t in tops):
            out = not line.startswith("!")
    return out


def test_everything_that_is_copied_is_there():
    sources = [s for rest in step("COPY") for s in rest.split()[:-1]]
    assert [s for s in sources if not (ROOT / s).exists() or excluded(s)] == []
    assert excluded("data/cifar10.npz") and excluded("outputs/smoke") and excluded(".venv")
    needed = {"thesis_repro", "nbs", "settings.ini", "data/published", "Makefile", "setup.py"}
    assert needed | {"data/splits"} <= set(sources)
    before = CONTAINER.partition("RUN make setup")[0]
    readme, licence = PROJECT["readme"], "LICENSE"
    assert all(name in before for name in (readme, licence, "requirements.lock", "thesis_repro"))


def test_its_commands_are_targets_of_the_makefile(make):
    assert step("ENTRYPOINT") == ['["make"]'] and step("CMD") == ['["reproduce"]']
    said = [*re.findall(r"\bmake (\w+)", " ".join(step("RUN"))), "reproduce", "lab"]
    assert "setup" in said
    for target in said:
        assert make("-n", target).returncode == 0, target
    instructions = {kind for kind, _ in STEPS}
    assert instructions == set("FROM ARG RUN WORKDIR COPY ENV ENTRYPOINT CMD".split())
    source = "".join(f.read_text("utf-8") for f in (ROOT / "thesis_repro").glob("*.py"))
    named = re.findall(r"THESIS_REPRO_\w+", CONTAINER)
    assert named and all(name in source for name in named)


def test_no_host_of_a_registry_is_named():
    files = [
        "Makefile",
        "Containerfile",
        "setup.py",
        "pyproject.toml",
        ".ci/run",
        "MANIFEST.in",
    ]
    for name in (f for f in files if (ROOT / f).exists()):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert not re.search(r"https?://|index-url [^\s-]|\b\w+\.(io|org)/", text), name


# ---- versions and citation

CFF = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
KEYS = "cff-version message type title abstract authors version license keywords references"
KEYS += " date-released repository-code url identifiers doi contact commit preferred-citation"


def test_version_changelog_and_citation_agree():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (\d+\.\d+\.\d+) \((unreleased|\d{4}-\d\d-\d\d)\)$", text, re.M)
    every = re.findall(r"^## (.+)$", text, re.M)
    assert len(headings) == len(every) - (every[0] == "Unreleased") > 0
    assert headings[0][0] == thesis_repro.__version__ == str(CFF["version"])
    numbers = [tuple(map(int, version.split("."))) for version, _ in headings]
    assert numbers == sorted(set(numbers), reverse=True)
    released = CFF.get("date-released")
    assert (str(released) if released else "unreleased") == headings[0][1]


def test_the_citation_has_what_its_format_asks_for():
    assert CFF["cff-version"] == "1.2.0" and CFF["type"] == "software" and CFF["message"]
    assert set(CFF) <= set(KEYS.split()) and CFF["license"] == PROJECT["license"]
    assert CFF["title"] == PROJECT["name"]
    for author in CFF["authors"]:
        assert ("name" in author) != ("family-names" in author)


def test_the_thesis_is_cited():
    (thesis,) = [r for r in CFF["references"] if r["type"] == "thesis"]
    assert thesis["year"] == 2022 and thesis["institution"] == {"name": "Chubu University"}
    assert thesis["authors"] == [{"family-names": "Adachi", "given-names": "Hiroki"}]
    front = (ROOT / "README.md").read_text(encoding="utf-8")
    assert thesis["title"] in front


def test_types_are_announced():
    assert (ROOT / "thesis_repro/py.typed").exists()
    with open(ROOT / "pyproject.toml", "rb") as f:
        assert "py.typed" in tomllib.load(f)["tool"]["setuptools"]["package-data"]["thesis_repro"]


# ---- make lab


def test_the_lab_serves_the_whole_repository(make, tmp_path):
    "settings.ini, data/ and outputs/ can be opened, and the index opens by itself."
    pytest.importorskip("jupyterlab")
    done = make("-n", "lab")
    asked = re.search(r"-m jupyter lab (--.*)", done.stdout)[1].replace(str(tmp_path), str(ROOT))
    assert "default_url=/lab/tree/nbs/index.ipynb" in asked
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root"]
    words += [f"--port={port}", "--ServerApp.token=secret", *shlex.split(asked)]
    env = os.environ | {"JUPYTER_CONFIG_DIR": str(tmp_path), "JUPYTER_DATA_DIR": str(tmp_path)}
    log = (tmp_path / "log").open("w")
    server = subprocess.Popen(words, cwd=ROOT, env=env, stdout=log, stderr=log)
    try:
        for path in ("settings.ini", "data", "nbs/index.ipynb"):
            url = f"http://127.0.0.1:{port}/api/contents/{path}?content=0&token=secret"
            assert answered(url, server)["path"] == path
    finally:
        server.terminate()
        server.wait(30)


def answered(url: str, server, seconds: float = 120) -> dict:
    "What the server says; it may take a while to begin."
    end = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=30) as said:
                return json.load(said)
        except urllib.error.HTTPError:
            raise
        except (ConnectionError, urllib.error.URLError):
            assert server.poll() is None and time.monotonic() < end
            time.sleep(0.2)
