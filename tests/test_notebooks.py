"The papermill engine: what is refused, what fails, what is left on the disk and running."

import ast
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook  # noqa: E402
from processes import gone  # noqa: E402

from thesis_repro import notebooks, paths, rendering  # noqa: E402
from thesis_repro.files import BadInput  # noqa: E402
from thesis_repro.notebooks import NotebookFailed, execute  # noqa: E402

PARAMETERS = """preset: str = "smoke"  # a section of settings.ini
rounds: int = 8  # rounds of the search
step: float = 0.5  # how far a round goes
fast: bool = False  # the quick search"""


def write(folder: Path, *cells, parameters=PARAMETERS, name="01_small.ipynb") -> Path:
    "Code cells under one heading, behind a parameters cell, for a kernel that does not exist."
    cells = [new_code_cell(c) if isinstance(c, str) else c for c in cells]
    head = [
        new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        new_markdown_cell("## Table 1.1: rows"),
    ]
    kernel = {"kernelspec": {"name": "no-such-kernel", "display_name": "-", "language": "python"}}
    nbformat.write(new_notebook(cells=head + cells, metadata=kernel), folder / name)
    return folder / name


def read(path: Path):
    "A valid notebook."
    nb = nbformat.read(path, 4)
    nbformat.validate(nb)
    return nb


def status(path: Path) -> str:
    return read(path).metadata["thesis_repro"]["status"]


def texts(nb) -> str:
    "What the cells printed."
    return "".join(o.get("text", "") for c in nb.cells if c.cell_type == "code" for o in c.outputs)


def wait_for(path: Path, seconds: float = 30) -> str:
    "The text of a file once it is there and complete."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if path.exists() and path.read_text().endswith("\n"):
            return path.read_text()
        time.sleep(0.02)
    raise TimeoutError(path)


@pytest.fixture
def no_kernel(monkeypatch):
    "Starting a kernel is an error."
    monkeypatch.setattr(notebooks, "_kernel", lambda: pytest.fail("a kernel was started"))


# what is refused


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (
            {"round": 3},
            "01_small.ipynb: unknown parameter: round: known are preset, rounds, step, fast",
        ),
        ({"rounds": "3"}, "01_small.ipynb: parameter rounds = '3': must be int"),
        ({"rounds": 3.0}, "01_small.ipynb: parameter rounds = 3.0: must be int"),
        ({"rounds": True}, "01_small.ipynb: parameter rounds = True: must be int"),
        ({"step": "0.5"}, "01_small.ipynb: parameter step = '0.5': must be float"),
        ({"step": False}, "01_small.ipynb: parameter step = False: must be float"),
        ({"fast": "yes"}, "01_small.ipynb: parameter fast = 'yes': must be bool"),
        ({"fast": 1}, "01_small.ipynb: parameter fast = 1: must be bool"),
        ({"rounds": None}, "01_small.ipynb: parameter rounds = None: must be int"),
        ({"preset": None}, "01_small.ipynb: parameter preset = None: must be str"),
        ({"preset": "nope"}, "unknown preset: nope: settings.ini has thesis, fast, smoke"),
    ],
)
def test_bad_parameter_is_one_line_before_any_kernel(tmp_path, no_kernel, given, line):
    notebook, out = write(tmp_path, "1"), tmp_path / "new" / "out.ipynb"
    with pytest.raises(BadInput) as e:
        execute(notebook, out, given)
    assert str(e.value).startswith(line) and "\n" not in str(e.value)
    assert not out.parent.exists()


def test_good_parameters_pass_unchanged(tmp_path):
    given = {"rounds": 3, "step": 1, "fast": True}
    assert notebooks.check_parameters(write(tmp_path), given) == given


@pytest.mark.parametrize(
    "cell",
    [
        "rounds = 8",
        "rounds: int = 2 ** 3",
        "rounds: open = 8",
        "rounds: int",
        "rounds: list[int] = []",
        "import os",
        "rounds: int = (",
    ],
)
def test_parameters_cell_must_be_annotated_literals(tmp_path, cell):
    with pytest.raises(BadInput, match="parameters cell"):
        notebooks.parameters(write(tmp_path, parameters=cell))


def test_parameters_are_read_without_running_anything(tmp_path):
    found = notebooks.parameters(write(tmp_path))
    assert found["rounds"] == (int, 8, "rounds of the search")
    assert found["fast"] == (bool, False, "the quick search")


def test_faults_of_a_chapter(tmp_path):
    assert notebooks.faults(write(tmp_path)) == []
    two = write(tmp_path, new_code_cell("a: int = 1  # x", metadata={"tags": ["parameters"]}))
    assert "2 cells" in notebooks.faults(two)[0]
    assert (
        "nbdev_export" in notebooks.faults(write(tmp_path, "import nbdev; nbdev.nbdev_export()"))[0]
    )
    assert "no comment" in notebooks.faults(write(tmp_path, parameters="a: int = 1"))[0]


@pytest.mark.parametrize("content", [None, "{", "[1, 2]"])
def test_what_is_no_notebook_is_one_line(tmp_path, content):
    if content:
        (tmp_path / "x.ipynb").write_text(content)
    with pytest.raises(BadInput, match=r"x\.ipynb"):
        execute(tmp_path / "x.ipynb", tmp_path / "out.ipynb")


def test_chapters_by_number_name_and_stem(tmp_path, monkeypatch):
    monkeypatch.setenv("THESIS_REPRO_ROOT", str(tmp_path))
    files = [
        "chapters/02_1_first",
        "chapters/02_second",
        "chapters/05_m2at",
        "chapters/07_aip",
        "chapters/10_more",
        "companions/07_kera",
        "companions/hirano",
    ]
    for f in [*files, "chapters/_draft", "chapters/.ipynb_checkpoints/07_aip"]:
        path = tmp_path / "nbs" / f"{f}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    assert [str(p.relative_to(tmp_path / "nbs")) for p in notebooks.chapters()] == [
        f"{f}.ipynb" for f in files
    ]
    for name in ("7", 7, "07", "aip", "AIP", "07_aip", "07_aip.ipynb"):
        assert [p.name for p in notebooks.chapters(name)] == ["07_aip.ipynb"]
    for name in ("2", 2, "02"):
        found = [p.name for p in notebooks.chapters(name)]
        assert found == ["02_1_first.ipynb", "02_second.ipynb"]
    for name in ("first", "2.1", "02_1_first", "02_1_first.ipynb"):
        assert [notebooks.module(p) for p in notebooks.chapters(name)] == ["first"]
    assert [p.name for p in notebooks.chapters("kera")] == ["07_kera.ipynb"]
    known = "02_1_first, 02_second, 05_m2at, 07_aip"
    assert [p.name[:2] for p in notebooks.chapters("aip, 5")] == ["05", "07"]
    for unknown in ("8", "1_first", "1", "2.2"):
        with pytest.raises(BadInput, match=f"unknown chapter: {unknown}: there is {known}"):
            notebooks.chapters(unknown)
        with pytest.raises(BadInput, match=f"unknown chapter: {unknown}: there is {known}"):
            notebooks.chapters(f"7,{unknown}")


# what a run leaves


def test_parameters_arrive_and_provenance_is_kept(tmp_path):
    skipped = new_code_cell("1 / 0", metadata={"tags": ["skip-execution"]})
    notebook = write(
        tmp_path,
        "import sys; print(rounds, step, fast, sys.executable)",
        skipped,
        "",
        "print('end')",
    )
    before = notebook.read_bytes()
    out = tmp_path / "deep" / "out.ipynb"
    record = execute(notebook, out, {"rounds": 3, "step": 1, "preset": "fast"}, progress=False)
    nb = read(out)
    assert texts(nb) == f"3 1 False {sys.executable}\nend\n"
    assert nb.metadata["thesis_repro"] == json.loads(json.dumps(record))
    assert (
        record["status"] == "completed"
        and record["preset"] == "fast"
        and 0 < record["seconds"] < 60
    )
    assert record["parameters"] == {
        "preset": "fast",
        "rounds": 3,
        "step": 1,
        "fast": False,
    }
    assert (
        record["versions"].keys() >= {"python", "torch", "papermill"}
        and "core" in record["hardware"]
        and record["commit"]
    )
    assert (
        nbformat.read(out, 4).cells[-1].source == "print('end')" and notebook.read_bytes() == before
    )
    assert [p.name for p in out.parent.iterdir()] == ["out.ipynb"]


def test_failing_cell_is_failed_and_says_where(tmp_path):
    reason = "raise KeyError('one\\ntwo')"
    notebook = write(tmp_path, "print('before')", reason, "print('after')")
    out = tmp_path / "out.ipynb"
    with pytest.raises(NotebookFailed, match=r"^cell 4 \(Table 1.1: rows\): KeyError") as e:
        execute(notebook, out, progress=False)
    assert e.value.failures[0].cell == 4 and e.value.left_out == 0 and "\n" not in str(e.value)
    nb = read(out)
    assert status(out) == "failed" and texts(nb) == "before\nafter\n"
    assert nb.metadata["thesis_repro"]["error"] == str(e.value)
    assert nb.cells[4].outputs[0].ename == "KeyError"  # the list of what failed stands before
    assert "cell 4" in nb.cells[0].source and "KeyError" in nb.cells[0].source
    assert f"#cell-id={nb.cells[4].id}" in nb.cells[0].source


LESSONS = [
    "import json\ntotal = 3\nnet = {'bias': 1}",
    "loss = total - 1\nnet['bias'] = 0\nassert loss < 1, '<b>too large</b>'",
    "def mean(): return loss / 2",
    "'table', total",
    "mean() + 1",
    "net",
    "undefined",
    "loss = 7\n'figure', loss",
    "'last', loss",
]


def test_a_failing_cell_costs_only_what_depends_on_it(tmp_path):
    notebook, out = write(tmp_path, *LESSONS), tmp_path / "out.ipynb"
    with pytest.raises(NotebookFailed) as e:
        execute(notebook, out, progress=False)
    failed = [(f.cell, f.reason) for f in e.value.failures]
    wrong = "NameError: name 'undefined' is not defined"
    assert failed == [(4, "AssertionError: <b>too large</b>"), (9, wrong)]
    assert e.value.left_out == 3 and "3 cell(s) left out" in str(e.value)
    nb = read(out)
    shown = [
        o.get("text") or o.get("ename") or o.data["text/plain"]
        for c in nb.cells[4:]
        for o in c.get("outputs", ())
    ]
    waits = "Left out: it needs `{}`, which cell 4 (Table 1.1: rows) did not make.\n".format
    assert shown == [
        "AssertionError",
        waits("loss"),
        "('table', 3)",
        waits("mean"),
        waits("net"),
        "NameError",
        "('figure', 7)",
        "('last', 7)",
    ]
    page = rendering.rendered(out)
    assert "This notebook failed" in page and "&lt;b&gt;too large" in page
    assert "<b>too large" not in page and f'id="cell-id={nb.cells[4].id}"' in page


@pytest.mark.parametrize("death", ["os.kill(os.getpid(), 9)", "os._exit(0)"])
def test_killed_kernel_is_failed_at_once(tmp_path, death):
    notebook, out = write(tmp_path, f"import os; {death}", "print('after')"), tmp_path / "out.ipynb"
    with pytest.raises(NotebookFailed, match=r"cell 3 .*its kernel died") as e:
        execute(notebook, out, progress=False)
    assert len(e.value.failures) == 1 and status(out) == "failed" and texts(read(out)) == ""


def test_timeout_is_failed_and_leaves_nothing_running(tmp_path):
    cell = "import os, time; open('pid', 'w').write(f'{os.getpid()}\\n'); time.sleep(60)"
    notebook, out = write(tmp_path, cell, "print('after')"), tmp_path / "out.ipynb"
    with pytest.raises(NotebookFailed, match=r"cell 3 .*it took longer than 1 s$"):
        execute(notebook, out, timeout=1, progress=False)
    assert status(out) == "failed" and gone(int((tmp_path / "pid").read_text()))
    assert texts(read(out)) == "after\n" and read(out).cells[3].outputs[0].ename


def test_a_cell_that_does_not_end_when_interrupted_is_the_last(tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks, "GRACE", 1.0)
    deaf = "import os, signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    cell = deaf + "open('pid', 'w').write(f'{os.getpid()}\\n'); time.sleep(60)"
    notebook, out = write(tmp_path, cell, "print('after')"), tmp_path / "out.ipynb"
    with pytest.raises(NotebookFailed, match=r"longer than 1 s, and its kernel does not answer"):
        execute(notebook, out, timeout=1, progress=False)
    assert gone(int((tmp_path / "pid").read_text())) and texts(read(out)) == ""


def test_old_copy_stays_when_the_new_one_cannot_be_written(tmp_path, monkeypatch):
    out = tmp_path / "out.ipynb"
    execute(write(tmp_path, "print('old')"), out, progress=False)
    old = out.read_bytes()

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BadInput, match=r"out\.ipynb: cannot be written"):
        execute(write(tmp_path, "print('new')"), out, progress=False)
    assert out.read_bytes() == old
    assert sorted(p.name for p in tmp_path.iterdir()) == ["01_small.ipynb", "out.ipynb"]


# what reaches the kernel


def test_nothing_of_a_persons_own_sessions_runs_in_the_kernel(tmp_path, monkeypatch):
    trace = tmp_path / "trace"
    for kind in ("exec_lines", "startup", "PYTHONSTARTUP"):
        line = f"open({str(trace)!r}, 'a').write('{kind}\\n')"
        file = {
            "exec_lines": "ipython/profile_default/ipython_kernel_config.py",
            "startup": "ipython/profile_default/startup/00.py",
            "PYTHONSTARTUP": "startup.py",
        }[kind]
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        text = f"c.InteractiveShellApp.exec_lines = [{line!r}]" if kind == "exec_lines" else line
        (tmp_path / file).write_text(text)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONSTARTUP", str(tmp_path / "startup.py"))
    notebook, out = write(tmp_path, "print('clean')"), tmp_path / "out.ipynb"
    subprocess.run(
        [sys.executable, "-m", "papermill", str(notebook), str(out), "-k", "python3"],
        check=True,
        capture_output=True,
    )
    assert set(trace.read_text().split()) == {"exec_lines", "startup", "PYTHONSTARTUP"}  # hostile
    trace.unlink()
    execute(notebook, out, progress=False)
    assert not trace.exists() and texts(read(out)) == "clean\n"


@pytest.mark.parametrize("name", ["{braces}", "{0}", "100 %", "ünï λ"])
def test_any_folder_will_do(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    notebook = write(folder, "print(rounds)")
    execute(notebook, folder / "out.ipynb", {"rounds": 5}, progress=False)
    assert texts(read(folder / "out.ipynb")) == "5\n"
    rendering.html(folder / "out.ipynb", folder / "out.html")


def test_a_notebook_in_a_locale_without_unicode(tmp_path):
    notebook = write(tmp_path, new_markdown_cell("## λ"), "'λ = 1', open('x', 'w').encoding")
    script = "import sys; from thesis_repro import notebooks, rendering\n"
    script += "notebooks.execute('01_small.ipynb', 'out.ipynb')\n"
    script += "rendering.html('out.ipynb', 'out.html')"
    env = {**os.environ, "PYTHONPATH": str(paths.root()), "LC_ALL": "C"}
    env |= {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", script], cwd=notebook.parent, env=env)
    assert done.returncode == 0
    assert read(tmp_path / "out.ipynb").cells[-1].outputs[0].data["text/plain"].startswith("('λ")
    assert "λ" in (tmp_path / "out.html").read_text(encoding="utf-8")


NESTED = """
import time
from thesis_repro.progress import Bar
for i in Bar(range(2), "outer"):
    for j in Bar(range(20), "inner"):
        time.sleep(0.1)
print("done")"""


def test_no_progress_is_kept_and_the_driver_shows_it(tmp_path):
    notebook, out = write(tmp_path, NESTED), tmp_path / "out.ipynb"
    script = "import sys; from thesis_repro import notebooks, progress\n"
    script += "progress.FIRST = progress.EVERY = 1.0; notebooks.execute(*sys.argv[1:])"
    words = [sys.executable, "-c", script, str(notebook), str(out)]
    env = {**os.environ, "PYTHONPATH": str(paths.root())}
    done = subprocess.run(words, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [dict(o) for o in read(out).cells[-1].outputs] == [
        {"output_type": "stream", "name": "stdout", "text": "done\n"}
    ]
    assert "Table 1.1: rows:" in done.stderr and "outer:" in done.stderr


def test_a_stopped_notebook_keeps_no_progress(tmp_path):
    cell = NESTED.replace("0.1)", "0.1); open('pids', 'w').write('1\\n')").replace("20", "2000")
    process = driver(write(tmp_path, cell), tmp_path / "out.ipynb")
    wait_for(tmp_path / "pids")
    time.sleep(2)
    process.send_signal(signal.SIGTERM)
    process.wait(20)
    outputs = read(tmp_path / "out.ipynb").cells[-1].outputs
    assert not [o for o in outputs if "outer" in str(o.get("data", ""))]


# what is left running

# Without its provenance, which imports torch for seconds: this tests how the process ends.
DRIVER = """import sys
from thesis_repro import notebooks
notebooks.provenance, notebooks.GRACE = lambda notebook, given: {}, 5.0
notebooks.execute(*sys.argv[1:], progress=False)"""
LONG = """import os, subprocess, time
child = subprocess.Popen(["sleep", "60"])
open("pids", "w").write(f"{os.getpid()} {child.pid}\\n")
time.sleep(60)"""
DEAF = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"


def driver(notebook: Path, out: Path) -> subprocess.Popen:
    "A process that executes a notebook."
    environment = os.environ | {"PYTHONPATH": str(paths.root())}

    def heard():
        return signal.signal(
            signal.SIGINT, signal.SIG_DFL
        )  # tests in the background of a shell ignore it

    words = [sys.executable, "-c", DRIVER, str(notebook), str(out)]
    how = {"preexec_fn": heard, "start_new_session": True}
    return subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL, **how)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, -signal.SIGINT)]
)
def test_a_signal_leaves_no_kernel_and_no_child_behind(tmp_path, number, code):
    notebook, out = write(tmp_path, "print('before')", LONG), tmp_path / "out.ipynb"
    process = driver(notebook, out)
    pids = [int(p) for p in wait_for(tmp_path / "pids").split()]
    assert (
        status(out) == "running" and texts(read(out)) == "before\n"
    )  # the intermediate copy is a whole notebook
    process.send_signal(number)
    assert process.wait(20) == code  # as a process that never heard of notebooks would end
    assert all(gone(p) for p in pids)
    assert status(out) == "stopped" and number.name in read(out).metadata["thesis_repro"]["error"]
    assert "This notebook was stopped" in read(out).cells[0].source


def test_a_deaf_kernel_is_killed(tmp_path):
    process = driver(write(tmp_path, DEAF, LONG), tmp_path / "out.ipynb")
    pids = [int(p) for p in wait_for(tmp_path / "pids").split()]
    process.send_signal(signal.SIGINT)
    process.wait(20)
    assert all(gone(p) for p in pids)


def test_a_kernel_does_not_outlive_a_killed_group(tmp_path):
    process = driver(write(tmp_path, LONG), tmp_path / "out.ipynb")
    kernel = int(wait_for(tmp_path / "pids").split()[0])
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)
    assert gone(kernel, 15)


def test_execute_inside_a_running_event_loop(tmp_path):
    inner = write(tmp_path, "print(rounds)", name="02_inner.ipynb")
    call = "from thesis_repro.notebooks import execute\n"
    call += f"print(execute({str(inner)!r}, 'inner_out.ipynb', {{'rounds': 5}})['status'])"
    execute(write(tmp_path, call), tmp_path / "out.ipynb", progress=False)
    assert (
        "completed" in texts(read(tmp_path / "out.ipynb"))
        and texts(read(tmp_path / "inner_out.ipynb")) == "5\n"
    )


# the rest of papermill, and the page


def test_stock_papermill_runs_the_same_notebook(tmp_path):
    notebook, out = write(tmp_path, "print(rounds, preset)"), tmp_path / "out.ipynb"
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(notebook),
        str(out),
        "-k",
        "python3",
        "-p",
        "rounds",
        "3",
        "-p",
        "preset",
        "fast",
    ]
    subprocess.run(command, check=True, capture_output=True)
    assert texts(read(out)) == "3 fast\n"


PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)


def test_html_needs_no_network(tmp_path):
    formula = "$$\\hat{x} = \\lambda x_i + (1 - \\lambda) x_j$$"
    prose = new_markdown_cell(
        f"Let $\\lambda \\in [0, 1]$ be it:\n\n{formula}\n\nat $5 and $\\foo{{$."
    )
    image = "from base64 import b64decode\nfrom IPython.display import Image, display\n"
    image += f"display(Image(b64decode({PIXEL!r})))"
    execute(write(tmp_path, prose, image, "print('<b>')"), tmp_path / "out.ipynb", progress=False)
    page = rendering.html(tmp_path / "out.ipynb", tmp_path / "out.html").read_text()
    fetched = [
        w
        for w in (
            'src="http',
            "src='http",
            'src="//',
            "@import",
            'rel="stylesheet"',
            "cdnjs",
            "import(",
        )
        if w in page
    ]
    assert not fetched
    assert page.count("<math") >= 2 and 'display="block"' in page and "<mi>λ</mi>" in page
    assert f"data:image/png;base64,{PIXEL}" in page.replace("\n", "") and "&lt;b&gt;" in page


def test_a_pasted_picture_is_shown_and_a_missing_one_costs_no_page(tmp_path):
    there = new_markdown_cell("![a](attachment:a.png)", attachments={"a.png": {"image/png": PIXEL}})
    missing = new_markdown_cell("# Heading\n\n![b](attachment:b.png) <script>alert(1)</script>")
    execute(write(tmp_path, there, missing, "print(7)"), tmp_path / "out.ipynb", progress=False)
    page = rendering.rendered(tmp_path / "out.ipynb")
    assert page.count(f"data:image/png;base64,{PIXEL}") == 1
    assert "![b](attachment:b.png)" in page and "<script>alert" not in page and ">7" in page


def test_what_cannot_be_a_page_says_why(tmp_path):
    (tmp_path / "x.ipynb").write_text(json.dumps({"nbformat": 4, "metadata": {}, "cells": [{}]}))
    with pytest.warns(UserWarning, match="cannot be shown as a page"):
        page = rendering.html(tmp_path / "x.ipynb", tmp_path / "x.html").read_text()
    assert "x.ipynb: cannot be shown as a page" in page


def test_no_module_is_too_long_to_read():
    "At most 500 lines of code; empty lines and the marks of cells are not counted."
    lengths = {
        file.name: sum(bool(line.strip()) and not line.startswith("# %%") for line in file.open())
        for file in (paths.root() / "thesis_repro").glob("*.py")
        if file.name != "_modidx.py"
    }
    assert len(lengths) > 100 and not {f: n for f, n in lengths.items() if n > 500}


# a word that the field does not use → one that it does
WORDS = {
    r"shall": "will, is to",
    r"anew": "again",
    r"[Ww]hoever": "who it is",
    r"mend(s|ed)?": "repair, correct",
    r"says? so": "what it says",
    r"dear(er)?": "expensive",
    r"has right": "correctly classified",
    r"a row a method": "one row per method",
}


def test_notebooks_and_pages_are_in_plain_english():
    root = paths.root()
    texts = {f: f.read_text("utf-8") for f in [*root.glob("docs/*.md"), root / "settings.ini"]}
    for file in (f for f in root.glob("nbs/**/*.ipynb") if ".ipynb_checkpoints" not in f.parts):
        texts[file] = "\n".join(c.source for c in nbformat.read(file, 4).cells)
    found = {
        f"{file.name}: {m[0]}: better: {better}"
        for file, text in texts.items()
        for word, better in WORDS.items()
        for m in re.finditer(rf"\b{word}\b", text)
    }
    assert len(texts) > 150 and not found
    inside = r"""^\s*[rf]?"{1,3}Inside,"""  # a docstring's beginning that says nothing
    assert not [file.name for file, text in texts.items() if re.search(inside, text, re.M)]


def test_every_number_is_one_notebook():
    numbers = [f.name[:3] for f in paths.root().glob("nbs/*/[0-9][0-9][0-9]_*.ipynb")]
    assert len(numbers) > 100 and len({*numbers}) == len(numbers)


# What builds on a later notebook: docs/contributing.md names them.
LATER = {("004", "007"), ("011", "023"), ("017", "036"), ("037", "120"), ("058", "120")}
LATER |= {("060", "066"), ("063", "085")}


def test_notebooks_build_on_earlier_ones_but_for_those_that_are_named():
    there = paths.root().glob("nbs/*/[0-9][0-9][0-9]_*.ipynb")
    numbers = {f.stem[4:]: f.stem[:3] for f in there if f.parent.name != "command"}
    found = set()
    for module, own in numbers.items():
        tree = ast.parse((paths.root() / "thesis_repro" / f"{module}.py").read_text("utf-8"))
        for node in (n for n in tree.body if isinstance(n, ast.ImportFrom) and n.level):
            names = [node.module] if node.module else [a.name for a in node.names]
            found |= {(own, numbers[n]) for n in names if numbers.get(n, "") > own}
    assert found == LATER
    text = (paths.root() / "docs" / "contributing.md").read_text("utf-8")
    assert all(own in text and later in text for own, later in LATER)


def test_links_of_the_front_page_exist():
    text = (paths.root() / "README.md").read_text()
    targets = {t.partition("#")[0] for t in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in t}
    assert targets and not [t for t in targets if not (paths.root() / t).exists()]
