"""Fixtures, and three options: `pytest --long`, the fault tests in their long form, which takes
minutes; `pytest --device cuda`, the tests that need a device on that one; `--there`, no others."""

import os
import sys
from types import SimpleNamespace

import pytest
from samples import Server

# with a process for each file, a long one that begins last would run alone
LONGEST = {f"test_{n}" for n in "launch chapters faults readme progress distributed store".split()}


def pytest_addoption(parser):
    parser.addoption(
        "--long", action="store_true", help="the long form of the fault tests (minutes)"
    )
    parser.addoption("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    parser.addoption("--there", action="store_true", help="only the tests that take the device")


def pytest_configure(config):
    "Processes that tests start know these files and the device; on a GPU runs are deterministic."
    here = os.path.dirname(__file__)
    os.environ["PYTHONPATH"] = f"{os.environ.get('PYTHONPATH', '')}{os.pathsep}{here}".strip(":")
    os.environ["DEVICE_OF_TESTS"] = config.getoption("--device")
    if config.getoption("--device") != "cpu":
        os.environ["THESIS_REPRO_DETERMINISTIC"] = "1"
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"


@pytest.fixture(scope="session")
def long(request) -> bool:
    "Whether the long form was asked for."
    return request.config.getoption("--long")


@pytest.fixture(scope="session")
def device(request) -> str:
    "The device that was asked for."
    return request.config.getoption("--device")


def pytest_collection_modifyitems(config, items):
    "Tests marked `long` are skipped in the short form; the files that take longest come first."
    items.sort(key=lambda item: item.path.stem not in LONGEST)
    if config.getoption("--there"):
        here = [item for item in items if "device" not in item.fixturenames]
        config.hook.pytest_deselected(items=here)
        items[:] = [item for item in items if item not in here]
    for item in items:
        if item.get_closest_marker("long") and not config.getoption("--long"):
            item.add_marker(pytest.mark.skip(reason="only in the long form: pytest --long"))


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    "The folder of the preset smoke, in a place that is empty."
    monkeypatch.setenv("THESIS_REPRO_OUTPUTS", str(tmp_path / "outputs"))
    return tmp_path / "outputs" / "smoke"


@pytest.fixture
def registered(monkeypatch):
    "A table 7.1 of two rows, which is all that the register has for one test."
    from exhibits import plan

    from thesis_repro import registry

    monkeypatch.setattr(registry, "TABLES", {})
    monkeypatch.setattr(registry, "FIGURES", {})
    monkeypatch.setattr(registry, "load_chapters", lambda chapter="": None)
    return registry.table("7.1", "two rows", "Section 7.3.2", plan, ("CIFAR-10",))


@pytest.fixture
def data_folder(tmp_path, monkeypatch):
    "An empty data folder."
    monkeypatch.setenv("THESIS_REPRO_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def inception_files(tmp_path, monkeypatch):
    "Names small files in the form of Inception's, whose checksums are taken for the real ones."
    import hashlib

    import torch

    from thesis_repro import extractors

    def name(*weights):
        paths = [tmp_path / f"inception-{w}.pth" for w in weights]
        for w, path in zip(weights, paths, strict=True):
            torch.save({f"{w}.fc.weight": torch.zeros(3, 4)}, path)
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            monkeypatch.setitem(extractors.INCEPTIONS, w, digest[:8])
        monkeypatch.setenv("THESIS_REPRO_INCEPTION", os.pathsep.join(map(str, paths)))
        return paths

    there = SimpleNamespace(__spec__=None)
    monkeypatch.setitem(sys.modules, "torch_fidelity", sys.modules.get("torch_fidelity", there))
    return name


@pytest.fixture
def server(monkeypatch):
    "A web server on this machine; nobody waits between two attempts."
    from thesis_repro import archives

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(archives, "time", SimpleNamespace(sleep=lambda seconds: None))
    with Server() as s:
        yield s
