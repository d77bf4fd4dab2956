"""A chapter from the outside: stock papermill, the command line and our engine share one store."""

import os
import subprocess
import sys

import nbformat
import pytest
from test_cli import TINY

from thesis_repro import notebooks, paths, workers

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


def without_lessons(chapter: str, folder, asked: str):
    "A copy of a chapter: what it exports, its settings and the cells that ask for a table."
    nb = nbformat.read(paths.notebooks() / "chapters" / f"{chapter}.ipynb", 4)
    marks = ("#| export", "#| hide", "#| default_exp", "preset:", "own = {", asked)
    nb.cells = [c for c in nb.cells if any(m in c.source for m in marks) and c.cell_type == "code"]
    nbformat.write(nb, folder / f"{chapter}.ipynb")
    return folder / f"{chapter}.ipynb"


def test_stock_papermill_and_the_command_line_share_the_store(tmp_path, tiny):
    "A chapter on one data set with one seed; then table 7.4 from the shell trains nothing."
    chapter, out = without_lessons(CHAPTER, tmp_path, "table_7_4(chosen"), tmp_path / "out.ipynb"
    given = ["-p", "preset", "tiny", "-p", "parts", "SVHN", "-p", "seeds", "1"]
    command = [sys.executable, "-m", "papermill", chapter, out, *given, "--no-progress-bar"]
    how = {"env": tiny, "cwd": tmp_path, "capture_output": True, "text": True}
    done = subprocess.run(command, **how)
    assert done.returncode == 0, done.stderr[-2000:]
    made = records(tmp_path)
    # a preset with something overridden keeps its tables in a folder of its own
    [table] = tmp_path.glob("outputs/tiny/*/tables/table_7_4.csv")
    by_papermill = table.read_bytes()
    shell = ["table", "7.4", "--preset", "tiny", "--parts", "SVHN", "--seeds", "1"]
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
    assert any("Table 7.4" in o["data"]["text/html"] for o in shown)


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


MEETING = """import time, torch
from pathlib import Path
from thesis_repro import settings, workers
Path("{own}").touch()  # each waits for the other, in the folder of the executed copies
late = time.time() + 100
while not Path("{other}").exists() and time.time() < late:
    time.sleep(0.1)
print(f"{own} met {{Path('{other}').exists()}}: threads", torch.get_num_threads(), workers.usable())
print("width", settings.load("tiny").width)
"""


@pytest.fixture
def two_chapters(tmp_path, tiny):
    "The environment of a project of two chapters that wait for each other; the second one fails."
    parameters = "preset: str = ''\njobs: int = 0"
    for own, other, end in (("05_m2at", "07_aip", "1"), ("07_aip", "05_m2at", "1 / 0")):
        sources = [parameters, MEETING.format(own=own, other=other), end]
        cells = [nbformat.v4.new_code_cell(s) for s in sources]
        cells[0].metadata.tags = ["parameters"]
        file = tmp_path / "nbs" / "chapters" / f"{own}.ipynb"
        file.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(nbformat.v4.new_notebook(cells=cells), file)
    for name in ("data", "tests"):
        (tmp_path / name).symlink_to(paths.root() / name)
    return {**tiny, "THESIS_REPRO_ROOT": str(tmp_path)}


def test_chapters_are_executed_side_by_side_each_with_its_share_of_the_cores(
    tmp_path, two_chapters
):
    command = [sys.executable, "-m", "thesis_repro", "reproduce", "--preset", "tiny"]
    command += ["--jobs", "2", "--set", "width=0.04"]
    how = {"env": two_chapters, "capture_output": True, "text": True, "cwd": tmp_path}
    done = subprocess.run(command, **how)
    assert done.returncode == 1 and "05_m2at: done in" in done.stdout, done.stderr
    assert "07_aip: failed: cell 4" in done.stderr and "failed: 07_aip" in done.stderr
    share = max(1, workers.cores() // 2)
    folder = tmp_path / "outputs" / "tiny" / "with-width-0.04" / "notebooks"
    for own in ("05_m2at", "07_aip"):
        cells = nbformat.read(folder / f"{own}.ipynb", 4).cells
        said = "".join(o.get("text", "") for c in cells for o in c.get("outputs", ()))
        assert f"{own} met True: threads {share} {share}\nwidth 0.04" in said
