"""A chapter from the outside: stock papermill, the command line and our engine share one store."""

import os
import subprocess
import sys

import nbformat
import pytest
from test_cli import TINY

from thesis_repro import notebooks, paths

CHAPTER = "07_aip"


@pytest.fixture
def tiny(tmp_path):
    "The environment of a process with a tiny preset and results in a temporary folder."
    settings = (paths.root() / "settings.ini").read_text(encoding="utf-8") + TINY
    (tmp_path / "settings.ini").write_text(settings, encoding="utf-8")
    names = {"SETTINGS": tmp_path / "settings.ini", "OUTPUTS": tmp_path / "outputs"}
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "JUPYTER_PREFER_ENV_PATH": "1",
        **{f"THESIS_REPRO_{k}": str(v) for k, v in names.items()},
    }


def records(folder):
    return {p: p.stat().st_mtime_ns for p in folder.glob("outputs/tiny/runs/*/*/*/record.json")}


def test_stock_papermill_and_the_command_line_share_the_store(tmp_path, tiny):
    "A chapter on one data set with one seed; then table 7.1 from the shell trains nothing."
    out, command = (
        tmp_path / "out.ipynb",
        [
            sys.executable,
            "-m",
            "papermill",
            str(paths.notebooks() / "chapters" / f"{CHAPTER}.ipynb"),
        ],
    )
    given = ["-p", "preset", "tiny", "-p", "parts", "SVHN", "-p", "seeds", "1"]
    done = subprocess.run(
        [*command, str(out), *given, "--no-progress-bar"],
        env=tiny,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    made = records(tmp_path)
    # a preset with something overridden keeps its tables in a folder of its own
    [table] = tmp_path.glob("outputs/tiny/*/tables/table_7_1.csv")
    by_papermill = table.read_bytes()
    shell = ["table", "7.1", "--preset", "tiny", "--parts", "SVHN", "--seeds", "1"]
    subprocess.run(
        [sys.executable, "-m", "thesis_repro", *shell], env=tiny, check=True, capture_output=True
    )
    assert records(tmp_path) == made and table.read_bytes() == by_papermill
    shown = [
        o
        for c in nbformat.read(out, 4).cells
        for o in c.get("outputs", ())
        if "text/html" in o.get("data", ())
    ]
    assert any("Table 7.1" in o["data"]["text/html"] for o in shown)


@pytest.mark.parametrize("chapter", notebooks.chapters(), ids=lambda p: p.stem)
def test_chapters_are_committed_without_outputs(chapter):
    cells = [c for c in nbformat.read(chapter, 4).cells if c.cell_type == "code"]
    assert not any(c.outputs for c in cells) and all(c.execution_count is None for c in cells)


@pytest.mark.parametrize(
    "given, said",
    [
        ({"presett": "smoke"}, "unknown parameter: presett"),
        ({"seeds": "two"}, "seeds = 'two'"),
        ({"preset": "huge"}, "unknown preset"),
    ],
)
def test_bad_parameters_are_refused_before_a_kernel_starts(tmp_path, given, said):
    chapter = paths.notebooks() / "chapters" / f"{CHAPTER}.ipynb"
    with pytest.raises(ValueError, match=said):
        notebooks.execute(chapter, tmp_path / "out.ipynb", given)
    assert not list(tmp_path.iterdir())
