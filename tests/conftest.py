"""`pytest --long`: the fault tests in their long form, which kills, damages and fills disks many times over."""

import pytest


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
