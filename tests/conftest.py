"""Fixtures, and `pytest --long`: the fault tests in their long form, which takes minutes."""

from types import SimpleNamespace

import pytest
from samples import Server


def pytest_addoption(parser):
    parser.addoption(
        "--long", action="store_true", help="the long form of the fault tests (minutes)"
    )


@pytest.fixture(scope="session")
def long(request) -> bool:
    "Whether the long form was asked for."
    return request.config.getoption("--long")


def pytest_collection_modifyitems(config, items):
    "Tests marked `long` are skipped in the short form."
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

    from thesis_repro import artefacts

    monkeypatch.setattr(artefacts, "TABLES", {})
    monkeypatch.setattr(artefacts, "FIGURES", {})
    monkeypatch.setattr(artefacts, "load_chapters", lambda chapter="": None)
    return artefacts.table("7.1", "two rows", "Section 7.3.2", plan, ("CIFAR-10",))


@pytest.fixture
def data_folder(tmp_path, monkeypatch):
    "An empty data folder."
    monkeypatch.setenv("THESIS_REPRO_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def server(monkeypatch):
    "A web server on this machine; nobody waits between two attempts."
    from thesis_repro import archives

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(archives, "time", SimpleNamespace(sleep=lambda seconds: None))
    with Server() as s:
        yield s
