"Progress where it is read: a terminal, a notebook, a log, a pool; and nothing of it left."

import asyncio
import fcntl
import io
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from types import SimpleNamespace
from unittest import mock

import pytest
from tqdm import tqdm

from thesis_repro import paths, progress
from thesis_repro.progress import Bar, reporting, workers

HEAD = "import os, signal, sys, time\nfrom thesis_repro import progress\nBar = progress.Bar\n"
LONG = 600  # seconds after which something hangs, also where the machine has no time for us


def environment(**more) -> dict:
    return {**os.environ, "PYTHONPATH": str(paths.root()), **more}


def screen(text: str) -> list[str]:
    "The lines that a terminal shows in the end, and the most that it showed at once."
    lines, row, column, most = [""], 0, 0, 1
    for part in re.findall(r"\x1b\[A|\r|\n|[^\x1b\r\n]+", text):
        if part == "\r":
            column = 0
        elif part == "\n":
            row, column = row + 1, 0
            lines += [""] * (row - len(lines) + 1)
        elif part == "\x1b[A":
            row -= 1
        else:
            old = lines[row].ljust(column)
            lines[row] = old[:column] + part + old[column + len(part) :]
            column += len(part)
        most = max(most, len([line for line in lines if line.strip()]))
    return [line.rstrip() for line in lines if line.strip()], most


def in_terminal(script: str, send: int = 0, when: bytes = b"") -> tuple[list[str], int, str]:
    """Run a script in a terminal; what is on the screen in the end, the most lines, all that came.

    The signal `send` is sent to it some time after it has written `when`.
    """
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    words = [sys.executable, "-c", HEAD + script]
    process = subprocess.Popen(
        words, stdin=slave, stdout=slave, stderr=slave, env=environment(), start_new_session=True
    )
    os.close(slave)
    came = b""
    begin = time.monotonic()
    while True:
        if send and when in came:
            time.sleep(0.5)  # not while it is drawing that
            process.send_signal(send)
            send = 0
        try:
            new = os.read(master, 4096)
        except OSError:  # the other end is closed
            break
        came += new
        if not new or time.monotonic() - begin > LONG:
            break
    process.wait(LONG)
    os.close(master)
    text = came.decode().replace("\r\n", "\n")
    return *screen(text), text


# a terminal


def test_one_line_in_a_terminal_and_none_left():
    left, most, came = in_terminal(
        "for _ in Bar(range(30), 'one'): time.sleep(0.02)\nprint('done')"
    )
    assert left == ["done"] and most == 1
    assert "one: 100%" in came or re.search(r"one:  \d\d%", came)


def test_nested_bars_in_a_terminal():
    script = """
for i in Bar(range(2), "outer"):
    for j in Bar(range(15), f"inner {i}"):
        time.sleep(0.02)
print("done")"""
    left, most, came = in_terminal(script)
    assert left == ["done"] and most == 2
    assert "inner 0" in came and "inner 1" in came


def test_a_closed_bar_stays_where_that_is_asked_for():
    left, _, _ = in_terminal("for _ in Bar(range(3), 'kept', leave=True): pass")
    assert len(left) == 1 and left[0].startswith("kept: 100%")


def test_a_line_is_written_above_the_bar():
    script = """
with Bar(total=3, desc="bar") as bar:
    bar.update()
    Bar.write("a line")
    bar.update()"""
    left, _, _ = in_terminal(script)
    assert left == ["a line"]


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "TERM")])
def test_a_signal_leaves_the_terminal_clean(number, name):
    script = """
def stop(number, frame): raise SystemExit(f"stopped")
signal.signal(signal.SIGINT, stop); signal.signal(signal.SIGTERM, stop)
print("begun", flush=True)
with Bar(total=10, desc="outer") as bar:
    for _ in Bar(range(10_000_000), "inner"): time.sleep(0.001)"""
    left, _, _ = in_terminal(script, send=number, when=b"inner:")
    assert left == ["begun", "stopped"]


def test_an_error_leaves_the_terminal_clean():
    script = """
with Bar(total=10, desc="outer"):
    for i in Bar(range(10), "inner"):
        time.sleep(0.1)
        assert i < 3"""
    left, _, _ = in_terminal(script)
    assert left[0].startswith("Traceback") and not any("inner:" in line for line in left)


# a log


def in_log(script: str, tmp_path, quick: bool = True, **more) -> list[str]:
    "The lines that a script writes to a file as its standard error."
    patience = "progress.FIRST, progress.EVERY = 1.0, 2.0\n" if quick else ""
    with (tmp_path / "log").open("w") as log:
        words = [sys.executable, "-c", HEAD + patience + script]
        subprocess.run(words, stderr=log, env=environment(**more), check=True)
    text = (tmp_path / "log").read_text(errors="replace")
    assert "\r" not in text and "\x1b" not in text
    return text.splitlines()


def test_a_log_has_whole_lines_now_and_then(tmp_path):
    script = "for _ in Bar(range(50), 'training', unit='step'): time.sleep(0.1)"
    lines = in_log(script, tmp_path)
    number = r"\d+/50 \[(\d\d):(\d\d)<\d\d:\d\d, +\d+\.\d+(?:step/s|s/step)\]"
    found = [re.fullmatch(rf"training: +\d+% {number}", line) for line in lines]
    assert all(found)
    seconds = 60 * int(found[-1][1]) + int(found[-1][2])
    # after 1 and 3 seconds, every further 2 on a busy machine, and at the end
    assert 2 <= len(lines) <= 3 + seconds // 2
    assert lines[-1].startswith("training: 100% 50/50")


def test_a_line_between_those_of_a_log(tmp_path):
    script = "with Bar(total=3) as bar:\n    bar.update()\n    Bar.write('a line', file=sys.stderr)"
    assert in_log(script, tmp_path, quick=False) == ["a line"]


def test_short_work_says_nothing_in_a_log(tmp_path):
    script = "for _ in Bar(range(10)):\n for _ in Bar(range(10)): pass"
    assert in_log(script, tmp_path, quick=False) == []


@pytest.mark.parametrize("how", ["disable=True", "env"])
def test_quiet(tmp_path, how):
    more = {"TQDM_DISABLE": "1"} if how == "env" else {}
    word = "disable=True" if how != "env" else "leave=True"
    script = f"""
with Bar(total=30, watch='/nowhere', {word}) as bar:
    for _ in range(30): time.sleep(0.1); bar.update(); bar.set_postfix_str("x"); bar.refresh()"""
    assert in_log(script, tmp_path, **more) == []
    assert in_terminal("for _ in Bar(range(9), disable=True): time.sleep(0.1)")[2] == ""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "euc-jp"])
def test_any_locale_can_show_any_description(tmp_path, encoding):
    script = "for _ in Bar(range(20), 'λ → ∞'): time.sleep(0.1)"
    assert in_log(script, tmp_path, PYTHONIOENCODING=encoding)


def test_a_log_that_cannot_be_written_stops_nothing(monkeypatch):
    monkeypatch.setattr(progress, "FIRST", 0.0)
    with open("/dev/full", "w", buffering=1) as full, Bar(total=2, file=full) as bar:
        bar.update()
        bar.refresh()
        bar.close()
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())


def test_an_update_costs_little_more_than_tqdms_own():
    def spent(kind) -> float:
        with kind(total=100_000, file=io.StringIO()) as bar:
            begin = time.process_time()
            for _ in range(100_000):
                bar.update()
            return time.process_time() - begin

    pairs = [(spent(Bar), spent(tqdm)) for _ in range(3)]
    assert min(ours for ours, _ in pairs) < 5 * min(theirs for _, theirs in pairs)


# workers

WORKER = (
    HEAD
    + """
with progress.reporting(sys.argv[1]), Bar(total=100_000, desc=sys.argv[2], unit="step") as bar:
    for i in range(100_000):
        bar.set_postfix_str("loss 1.234")
        time.sleep(0.025)
        for _ in Bar(range(2), "nested"): pass
        time.sleep(0.025)
        bar.update()"""
)


def start(folder, *names):
    "Worker processes that report to a folder, once they do."
    started = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(folder), n], env=environment())
        for n in names
    ]
    for _ in waited():
        if len([w for w in workers(folder) if "%" in w and " 0/" not in w]) == len(names):
            return started


def waited():
    "Go round a loop now and then, until it is left, or hangs."
    end = time.monotonic() + LONG
    while time.monotonic() < end:
        yield
        time.sleep(0.02)
    raise TimeoutError


def test_a_parent_shows_its_workers_and_forgets_the_dead(tmp_path):
    first, second = start(tmp_path, "mixup, seed 1", "AIP, seed 2")
    try:
        log = io.StringIO()
        (tmp_path / "junk.json").write_text("{")
        (tmp_path / "list.json").write_text("[1]")
        (tmp_path / "odd.json").write_text(json.dumps({"host": 1, "pid": "x", "n": "y"}))
        with Bar(total=2, desc="runs", unit="run", file=log, watch=tmp_path) as bar:
            head, *shown = bar.lines(ncols=0)
            assert head.startswith("runs:   0% 0/2") and len(shown) == 2
            speed = r"(step/s|s/step), loss 1.234"
            pattern = rf"  (mixup, seed 1|AIP, seed 2): +\d+% \d+/100000 \[.*{speed}\]"
            seen = {*shown}
            for _ in waited():
                seen |= {*bar.lines(ncols=0)[1:]}
                if len(seen) >= 4:
                    break
            assert all(re.fullmatch(pattern, line) for line in seen)
            first.send_signal(signal.SIGKILL)
            first.wait()
            assert len(bar.lines(ncols=0)) == 2
    finally:
        first.kill()
        second.kill()
        second.wait()
    assert workers(tmp_path) == [] and len(list(tmp_path.glob("*.json"))) == 3


def test_a_worker_writes_at_most_once_a_second(tmp_path):
    (worker,) = start(tmp_path, "x")
    file, seen = next(tmp_path.glob("*.json")), set()
    for _ in waited():
        seen.add(json.loads(file.read_text())["time"])  # never half of one
        if len(seen) == 4:
            break
    worker.kill()
    worker.wait()
    assert max(seen) - min(seen) > 2.5


def test_the_terminal_of_a_parent_has_one_line_with_its_workers(tmp_path):
    (worker,) = start(tmp_path, "AIP, seed 2")
    try:
        left, most, came = in_terminal(f"""
with Bar(total=2, desc='runs', watch={str(tmp_path)!r}) as bar:
    said, say = [], bar.sp
    bar.sp = lambda text: (say(text), said.append(text))
    while len({{text for text in said[:] if 'AIP' in text}}) < 2:
        time.sleep(0.1)""")
    finally:
        worker.kill()
        worker.wait()
    drawn = came.split("\r")
    assert left == [] and most == 1
    assert len({line for line in drawn if "AIP, seed 2:" in line}) >= 2  # redrawn by itself


def test_reporting_ends_with_its_block_and_never_fails(tmp_path):
    with reporting(tmp_path / "new", "task"), Bar(total=3) as bar:
        bar.update()
        assert [f.name for f in (tmp_path / "new").glob("*.json")] == ["task.json"]
    assert not list((tmp_path / "new").iterdir()) and progress._report is None
    (tmp_path / "file").write_text("")
    with reporting(tmp_path / "file"), Bar(total=3) as bar:
        bar.update()
    assert workers(tmp_path / "file") == [] and workers(tmp_path / "nothing") == []


# a notebook

NESTED = """
import time
from thesis_repro.progress import Bar
for i in Bar(range(2), "outer"):
    for j in Bar(range(1), "inner"):
        for k in Bar(range(8), "innermost"):
            time.sleep(0.15)
    print("step", i)
for i in range(20):
    for j in Bar(range(5), "short"):
        pass
"""
LEFT_OPEN = """
bar = Bar(total=10, desc="left open")
for _ in range(3):
    time.sleep(0.6)
    bar.update()
"""
nbformat = pytest.importorskip("nbformat")


def notebook(tmp_path, *cells):
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    nbformat.write(made, tmp_path / "in.ipynb")
    return tmp_path / "in.ipynb"


def texts(nb) -> list[str]:
    return [o.get("text", "") or o.get("ename", "") for c in nb.cells for o in c.outputs]


def clean(nb, cells: int):
    "No output shows progress: at most one without any content is left in each cell."
    outputs = [o for c in nb.cells for o in c.outputs]
    assert not [o for o in outputs if "%|" in json.dumps(o) or "it/s" in json.dumps(o)]
    empty = [o for o in outputs if progress.is_progress(o)]
    assert len(empty) <= cells and all(not o.data for o in empty)


@pytest.mark.parametrize("tool", ["papermill", "nbconvert"])
def test_other_tools_keep_no_progress(tmp_path, tool):
    pytest.importorskip("papermill")
    source = notebook(tmp_path, NESTED, LEFT_OPEN, "print('after')")
    words = {
        "papermill": ["papermill", str(source), "out.ipynb", "-k", "python3"],
        "nbconvert": ["nbconvert", "--to=notebook", "--execute", str(source), "--output=out.ipynb"],
    }[tool]
    env = environment(JUPYTER_PREFER_ENV_PATH="1")
    subprocess.run([sys.executable, "-m", *words], cwd=tmp_path, env=env, check=True)
    nb = nbformat.read(tmp_path / "out.ipynb", 4)
    nbformat.validate(nb)
    clean(nb, cells=2)
    assert "".join(texts(nb)) == "step 0\nstep 1\nafter\n"
    to_html = ["nbconvert", "--to=html", "out.ipynb", "--output=out.html"]
    subprocess.run([sys.executable, "-m", *to_html], cwd=tmp_path, env=env, check=True)
    page = (tmp_path / "out.html").read_text()
    body = page[page.index("<body") :]
    assert "step 1" in body and not re.search(r"innermost:|outer:|short:|left open:", body)


def test_a_cell_shows_all_its_bars_in_one_output_twice_a_second_at_most(tmp_path):
    from nbclient import NotebookClient

    seen = []

    class Watching(NotebookClient):
        def process_message(self, msg, *where):
            if "display_data" in msg["msg_type"]:
                seen.append((msg["header"]["date"].timestamp(), msg["content"]))
            return super().process_message(msg, *where)

    fast = "for i in Bar(range(3000), 'fast'):\n    time.sleep(0.001)"
    nb = nbformat.read(notebook(tmp_path, NESTED, fast, LEFT_OPEN), 4)
    Watching(nb, kernel_name="python3").execute()
    assert len({c["transient"]["display_id"] for _, c in seen}) == 3  # one for each cell
    spans = [seen[-1][0] - seen[0][0]]
    assert len(seen) <= 2 * spans[0] + 3 + 9  # and at the end of a bar that was seen, three cells
    most = max((c["data"].get("text/plain", "") for _, c in seen), key=len).splitlines()
    assert [line.partition(":")[0] for line in most] == ["outer", "inner", "innermost"]
    assert not any("short" in json.dumps(c) for _, c in seen)
    assert all(progress.is_progress(c) for _, c in seen)


def test_a_failed_cell_leaves_no_progress(tmp_path):
    from nbclient import NotebookClient

    failing = NESTED.replace('print("step", i)', "1 / 0")
    nb = nbformat.read(notebook(tmp_path, failing, LEFT_OPEN + "\nraise KeyError"), 4)
    NotebookClient(nb, kernel_name="python3", allow_errors=True).execute()
    clean(nb, cells=2)
    assert [t for t in texts(nb) if t] == ["ZeroDivisionError", "KeyError"]


def test_a_cell_shows_the_workers_of_its_bar(tmp_path):
    from nbclient import NotebookClient

    seen = []

    class Watching(NotebookClient):
        def process_message(self, msg, *where):
            seen.append(msg["content"].get("data", {}).get("text/plain", ""))
            return super().process_message(msg, *where)

    (worker,) = start(tmp_path, "AIP, seed 2")
    try:
        cell = f"""{HEAD}
drawn = set()
with Bar(total=2, desc='runs', watch={str(tmp_path)!r}) as bar:
    while len(drawn) < 4:  # the first is before any drawing
        drawn.add(bar.place.drawn)
        time.sleep(0.1)"""
        nb = nbformat.read(notebook(tmp_path, cell), 4)
        Watching(nb, kernel_name="python3").execute()
    finally:
        worker.kill()
        worker.wait()
    shown = [s.splitlines() for s in seen if "AIP" in s]
    assert len(shown) >= 2 and all(len(lines) == 2 for lines in shown)
    clean(nb, cells=1)


# ---- labels


@pytest.mark.parametrize(
    ("heading", "shown"),
    [
        ("Table 7.1", "Table 7.1"),
        ("forty characters, no more and no less, ok", "forty characters, no more and no less…"),
        (
            "What did not reproduce, and what the thesis leaves open",
            "What did not reproduce, and what the…",
        ),
        ("two words, and more of them: " + "x" * 40, "two words, and more of them…"),
        ("x" * 41, "x" * 39 + "…"),
        ("in two\n  lines", "in two lines"),
        ("", ""),
    ],
)
def test_a_long_label_is_cut_after_a_word_and_says_so(heading, shown):
    assert progress.label(heading) == shown and len(shown) <= 40


def test_a_chapters_bar_is_labelled_with_whole_words(monkeypatch):
    from nbformat import v4

    from thesis_repro import notebooks

    async def nothing(*_):
        "In place of a kernel."

    heading = "# What did not reproduce, and what the thesis leaves open"
    book = v4.new_notebook(cells=[v4.new_markdown_cell(heading), v4.new_code_cell("1 + 1")])
    monkeypatch.setattr(notebooks, "_run_cell", nothing)
    bar = mock.Mock()
    client = SimpleNamespace(nb=book)
    asyncio.run(notebooks._run_cells(client, [], mock.Mock(), None, bar))
    bar.set_description.assert_called_once_with("What did not reproduce, and what the…")
