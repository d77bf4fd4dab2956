"Outputs kept in git: small, of this code, and compared with fresh ones."

import base64
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

nbformat = pytest.importorskip("nbformat")
Image = pytest.importorskip("PIL.Image")
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output  # noqa: E402

from thesis_repro import kept, paths  # noqa: E402
from thesis_repro.files import BadInput  # noqa: E402
from thesis_repro.progress import MARK  # noqa: E402


def png(size: int = 100, seed: int = 0) -> bytes:
    "A picture that cannot be compressed."
    pixels = np.random.default_rng(seed).integers(0, 255, (size, size, 3), "uint8")
    made = io.BytesIO()
    Image.fromarray(pixels).save(made, "PNG")
    return made.getvalue()


def shown(data: dict, kind: str = "display_data", **metadata):
    data = {k: base64.b64encode(v).decode() if isinstance(v, bytes) else v for k, v in data.items()}
    return new_output(kind, data, metadata=metadata)


def said(text: str, name: str = "stdout"):
    return new_output("stream", name=name, text=text)


def notebooks(folder: Path, *outputs: list, status="completed") -> tuple[Path, Path]:
    "A source without outputs and its executed copy, with one code cell for each list of outputs."
    cells = [new_code_cell(f"cell({i})", outputs=o) for i, o in enumerate(outputs)]
    source, executed = folder / "source.ipynb", folder / "executed.ipynb"
    nb = new_notebook(cells=[new_markdown_cell("# A chapter"), *cells])
    injected = new_code_cell("seeds = 1", metadata={"tags": ["injected-parameters"]})
    run = new_notebook(cells=[injected, *cells], metadata={"thesis_repro": {"status": status}})
    nbformat.write(run, executed)
    for cell in cells:
        cell.outputs = []
    nbformat.write(nb, source)
    return source, executed


def outputs(source: Path) -> list[list[dict]]:
    nb = nbformat.read(source, 4)
    nbformat.validate(nb)
    return [[dict(o) for o in c.outputs] for c in nb.cells if c.cell_type == "code"]


def test_small_outputs_are_kept_and_what_belongs_to_one_execution_goes(tmp_path):
    table = {"text/html": "<table>\n<tr/></table>", "text/plain": "x"}
    lists = [
        [said("a\n"), said("b\n"), said("warning\n", "stderr"), shown(table, "execute_result")],
        [shown({}, **MARK), shown({"text/plain": "outer: 50%"}, **MARK)],
        [shown({"image/png": png(20), "text/plain": "<Figure size 640x480 with 1 Axes>"})],
        [shown({"text/plain": "[<A object at 0x7f00aa>, 0xff]"})],
        [shown({"application/json": {"a": 1}})],
        [shown({"image/png": png(20), "text/html": "<img>", "text/plain": "a figure"})],
    ]
    source, executed = notebooks(tmp_path, *lists)
    assert kept.keep_outputs(executed, source) == []
    one, two, three, four, five, six = outputs(source)
    assert [o.get("text") or dict(o["data"]) for o in one] == [
        "a\nb\n",
        {"text/html": table["text/html"]},
    ]
    assert one[1]["execution_count"] is None and two == [] and five == []
    assert [*three[0]["data"]] == [*six[0]["data"]] == ["image/png"]
    assert four[0]["data"] == {"text/plain": "[<A object>, 0xff]"}
    assert kept.stale(source, executed) == []


def test_what_is_too_large_is_left_out_and_named(tmp_path):
    long = "x" * (kept.TEXT + 1)
    table = {"text/html": "<p>" * kept.TABLE, "text/plain": "short"}
    lists = [[said(long)], [shown({"text/html": "<p>" * kept.TABLE})], [shown(table)], [said("y")]]
    source, executed = notebooks(tmp_path, *lists)
    assert kept.keep_outputs(executed, source) == [
        "source.ipynb: cell 2: left out: text/plain of 10,001 characters",
        "source.ipynb: cell 3: left out: text/html of 180,000 characters",
    ]
    one, two, three, four = outputs(source)
    assert one == two == [] and three[0]["data"] == {"text/plain": "short"} and four
    assert kept.stale(source, executed) == []


def test_pictures_become_small_and_the_notebook_stays_below_its_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "NOTEBOOK", 200_000)
    many = [[shown({"image/png": png(250, seed=i)})] for i in range(5)]
    source, executed = notebooks(tmp_path, *many)
    assert executed.stat().st_size > 1e6
    assert kept.keep_outputs(executed, source) == []
    assert source.stat().st_size <= kept.NOTEBOOK
    for (o,) in outputs(source):
        data = base64.b64decode(o["data"]["image/png"])
        assert len(data) <= kept.PICTURE and min(Image.open(io.BytesIO(data)).size) >= 50


def test_a_plot_keeps_its_size_and_colours(tmp_path):
    plot = Image.new("RGBA", (600, 400), (0, 0, 0, 0))
    plot.paste((200, 30, 30, 255), (100, 100, 300, 200))
    made = io.BytesIO()
    plot.save(made, "PNG")
    small = Image.open(io.BytesIO(kept.small_picture(made.getvalue()))).convert("RGB")
    assert small.size == (600, 400)
    assert small.getpixel((150, 150)) == (200, 30, 30) and small.getpixel((5, 5)) == (255,) * 3


def test_a_failed_copy_and_other_code_are_refused(tmp_path):
    source, executed = notebooks(tmp_path, [said("a")], status="failed")
    before = source.read_bytes()
    with pytest.raises(BadInput, match=r"executed\.ipynb: did not run to its end"):
        kept.keep_outputs(executed, source)
    source, executed = notebooks(tmp_path, [said("a")])
    source.write_text(source.read_text().replace("cell(0)", "cell(1)"))
    before = source.read_bytes()
    for compare in (
        lambda: kept.keep_outputs(executed, source),
        lambda: kept.stale(source, executed),
    ):
        with pytest.raises(BadInput, match=r"source\.ipynb: cell 2: .*other code"):
            compare()
    assert source.read_bytes() == before


def test_nbdev_clean_leaves_kept_outputs(tmp_path):
    lists = [[said("a\n")], [shown({"image/png": png(20)}), shown({"text/plain": "<A at 0x1f>"})]]
    source, executed = notebooks(tmp_path, *lists)
    kept.keep_outputs(executed, source)
    project = tmp_path / "project"
    (project / "nbs").mkdir(parents=True)
    shutil.copy(paths.root() / "pyproject.toml", project)
    (project / "thesis_repro").mkdir()
    copy = project / "nbs" / "source.ipynb"
    shutil.copy(source, copy)
    clean = Path(sys.executable).with_name("nbdev-clean")
    subprocess.run([clean], cwd=project, check=True, capture_output=True)
    after, before = json.loads(copy.read_text()), json.loads(source.read_text())
    assert [c.get("outputs") for c in after["cells"]] == [c.get("outputs") for c in before["cells"]]
    kept.keep_outputs(executed, copy)  # and then nothing changes any more
    once = copy.read_bytes()
    subprocess.run([clean], cwd=project, check=True, capture_output=True)
    assert copy.read_bytes() == once


@pytest.mark.parametrize(
    "a, b",
    [
        ("took 3.1 s", "took 12 s"),
        ("took 850 ms, 3 min", "took 2.5 µs, 1 h"),
        ("12,345 images/s", "987 images/s"),
        ("[00:12<01:40]", "[10:02<00:00]"),
        ("2024-05-01T10:00:00+0200", "2025-12-31T23:59:59Z"),
        ("/tmp/pytest-1/x.csv", "/home/me/y/z.csv"),
        ("commit 1eee59d", "commit cba1240-dirty"),
        ("<A at 0x7f001>, 0x1", "<A at 0x8e>, 0x2"),
        ("accuracy 83.25", "accuracy 81.9"),
        ("tensor([1., 2.])", "tensor([3., 4.])"),
        ("1e-05", "7.3e-06"),
        ("7.1234567e-05", "0.0"),
        ("tensor([ 1.5])", "tensor([0.5])"),
        ("array([0.13 , 0.231])", "array([0.133, 0.2  ])"),
        ("lr  -0.5", "lr 0.25"),
        ("<table id='T_1a2b3'>", "<table id='T_fedcb'>"),
        ("| a  | 1.0  |\n|----|", "| a | 10.25 |\n|---|"),
        ("Made on AMD EPYC, 2 cores; commit abc1234.", "Made on Xeon, 64 cores; commit 99aabb0."),
        ("Made on Xeon; commit 1eee59d, abc1234.", "Made on Xeon; commit 1eee59d."),
        ("Made on Xeon; AMD EPYC; commit 1eee59d.", "Made on Xeon; commit 1eee59d."),
        ("'training': '78757311'", "'training': '0ec8ab83'"),
    ],
)
def test_what_differs_from_one_execution_to_the_next_is_masked(a, b):
    assert kept.masked(a) == kept.masked(b)


@pytest.mark.parametrize(
    "a, b",
    [
        ("nine equations", "49 equations"),
        ("9 of 49", "9 of 50"),
        ("there are 49. Next", "there are 9. Next"),
        ("holds", "does not hold"),
        ("(3, 32)", "(3, 64)"),
        ("1234567", "7654321"),
        ("a: 1.0", "b: 1.0"),
    ],
)
def test_words_and_whole_numbers_are_not(a, b):
    assert kept.masked(a) != kept.masked(b)


def test_equal_tables_are_kept_as_equal_bytes(tmp_path):
    "pandas draws a styled table's id anew each time."

    def table(id, number):
        rule = f"#{id}_row0_col0 {{color: red}}"
        return shown({"text/html": f'<style>{rule}</style><td id="{id}_row0_col0">{number}</td>'})

    found = []
    for i, id in enumerate(("T_1a2b3", "T_fedcb")):
        folder = tmp_path / str(i)
        folder.mkdir()
        source, executed = notebooks(folder, [table(id, 1)], [table(id, 2)])
        kept.keep_outputs(executed, source)
        found.append(["".join(c.outputs[0].data["text/html"]) for c in cells_of(source)])
    assert found[0] == found[1]
    one, two = (set(re.findall("T_[0-9a-f]{5}", text)) for text in found[0])
    assert len(one) == len(two) == 1 and one != two


def cells_of(source):
    return [c for c in nbformat.read(source, 4).cells if c.cell_type == "code"]


def test_stale_outputs_are_named(tmp_path):
    lists = [[said("nine equations are made")], [shown({"image/png": png(9)})], [said("same")]]
    source, executed = notebooks(tmp_path, *lists)
    kept.keep_outputs(executed, source)
    nb = nbformat.read(executed, 4)
    nb.cells[1].outputs[0].text = "49 equations are made"
    nb.cells[2].outputs = []
    nbformat.write(nb, executed)
    one, two = kept.stale(source, executed)
    assert one.startswith("source.ipynb: cell 2: kept is …nine") and "…49 equations" in one
    assert two.startswith("source.ipynb: cell 3:") and "image/png" in two


@pytest.mark.parametrize("directive, lines", [("", 1), (kept.TIMES, 0)])
def test_verdicts_on_seconds_are_compared_by_their_form(tmp_path, directive, lines):
    source, executed = notebooks(tmp_path, [said("holds")])
    for file in (source, executed):
        nb = nbformat.read(file, 4)
        nb.cells[1].source = f"{directive}\nverdicts"
        nbformat.write(nb, file)
    kept.keep_outputs(executed, source)
    nb = nbformat.read(executed, 4)
    nb.cells[1].outputs[0].text = "fails"
    nbformat.write(nb, executed)
    assert len(kept.stale(source, executed)) == lines
    nb.cells[1].outputs = []
    nbformat.write(nb, executed)
    assert len(kept.stale(source, executed)) == 1
