"""The README's links lead somewhere, its commands are commands, and its two examples run as they are printed."""

import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest

from thesis_repro import cli, paths, settings
from thesis_repro.cli import main, parser

TEXT = (paths.root() / "README.md").read_text(encoding="utf-8")


def blocks(language: str, text: str = TEXT) -> list[str]:
    "The code blocks of a language."
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def page(title: str) -> str:
    "What stands under a heading."
    return re.search(rf"^###? {re.escape(title)}\n(.*?)(?=^##|\Z)", TEXT, re.S | re.M)[1]


def anchors() -> list[str]:
    "The names that GitHub gives the headings."
    titles = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", TEXT, flags=re.S), re.M)
    return [re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles]


def test_every_link_leads_somewhere():
    links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", TEXT, flags=re.S))
    inside = [a[1:] for a in links if a.startswith("#")]
    files = [a.partition("#")[0] for a in links if not re.match(r"#|[a-z]+:", a)]
    assert len(inside) > 7 and set(inside) <= set(anchors())
    assert files and not [f for f in files if not (paths.root() / f).exists()]


def test_the_seven_pages_are_short_and_linked_at_the_top():
    top = TEXT.partition("\n## ")[0]
    pages = re.findall(r"\]\(#([\w-]+)\)", top.partition("**Short pages:**")[2])
    assert len(pages) == 7
    titles = dict(
        zip(
            anchors(),
            re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", TEXT, flags=re.S), re.M),
            strict=True,
        )
    )
    assert all(
        5 < len([line for line in page(titles[p]).splitlines() if line.strip()]) <= 32
        for p in pages
    )


def commands() -> list[str]:
    "What follows `thesis-repro` in the shell blocks."
    lines = [
        line
        for block in blocks("sh")
        for line in block.splitlines()
        if not line.startswith("#SBATCH")
    ]
    found = [
        m for line in lines for m in re.findall(r"(?:thesis-repro|-m thesis_repro) ([^#;|]+)", line)
    ]
    assert len(found) > 20
    return list(dict.fromkeys(f.strip() for f in found))


@pytest.mark.parametrize("command", commands())
def test_every_command_is_one(command):
    args = parser().parse_args(shlex.split(command))
    if args.command in ("table", "figure"):
        assert cli._function(args.command, args.number, args.command)
    elif args.command == "run":
        assert cli._planned(settings.load(args.preset, int(args.what[0]), device="cpu"), args)


def settings_with(tmp_path, text: str, monkeypatch):
    "A settings.ini with more in it, and outputs in a temporary folder."
    file = tmp_path / "settings.ini"
    file.write_text(
        (paths.root() / "settings.ini").read_text(encoding="utf-8") + "\n" + text, encoding="utf-8"
    )
    monkeypatch.setenv("THESIS_REPRO_SETTINGS", str(file))
    monkeypatch.setenv("THESIS_REPRO_OUTPUTS", str(tmp_path / "outputs"))


def test_the_data_set_of_ones_own(tmp_path, monkeypatch, capsys):
    said, (section,) = (
        page("Adding your own data set"),
        blocks("ini", page("Adding your own data set")),
    )
    rng = np.random.default_rng(0)
    images = lambda n: (rng.integers(0, 256, (n, 16, 16, 3), dtype=np.uint8), np.arange(n) % 4)
    (x, y), (x_test, y_test) = images(120), images(20)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    exec(blocks("python", said)[0], {"np": np, "x": x, "y": y, "x_test": x_test, "y_test": y_test})
    file = f"npz:{tmp_path / 'data' / 'photos.npz'}"
    small = (
        section.replace("npz:data/photos.npz", file)
        .replace("epochs = 30", "epochs = 1")
        .replace("= 500", "= 20")
    )
    settings_with(
        tmp_path, small + "width = 0.0625\nbatch_size = 50\njobs = 1\ndevice = cpu\n", monkeypatch
    )
    assert main(["data", "verify", file]) == 0
    assert "120 training and 20 test images, 16 × 16 × 3, 4 classes" in capsys.readouterr().out
    words = [
        "run",
        "7.1",
        "--preset",
        "photos",
        "--parts",
        "CIFAR-10",
        "--row",
        "mixup",
        "--seed",
        "0",
    ]
    assert main(words) == 0
    for wrong, line in (
        ({"x_train": x / 255.0}, "x_train is float64: images must be uint8 from 0 to 255"),
        ({"y_test": y_test + 3}, "y_test has the label 6: y_train has the classes 0 to 3"),
        ({"y_test": None}, "has no array y_test"),
    ):
        arrays = {"x_train": x, "y_train": y, "x_test": x_test, "y_test": y_test} | wrong
        np.savez("data/photos.npz", **{k: v for k, v in arrays.items() if v is not None})
        assert main(["data", "verify", file]) == 2
        assert f"`{line}`" in said and line in capsys.readouterr().err


def test_the_method_of_ones_own(tmp_path, monkeypatch):
    mine, compare = blocks("python", page("Adding your own method"))
    (tmp_path / "mine.py").write_text(mine, encoding="utf-8")
    (tmp_path / "compare.py").write_text(compare, encoding="utf-8")
    less = "epochs = 1\ntrain_size = 100\nseeds = 1\njobs = 1\ndevice = cpu\n"
    settings_with(tmp_path, f"[smoke: chapter 5]\n{less}", monkeypatch)
    env = {**os.environ, "PYTHONPATH": str(paths.root()), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "compare.py"], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Softened" in done.stdout and "ours only" in done.stdout
    assert {f.suffix for f in (tmp_path / "outputs/smoke/tables").glob("table_1_ours.*")} >= {
        ".csv",
        ".md",
        ".tex",
    }
    assert len(list((tmp_path / "outputs/smoke/runs/mine/table_1_ours").iterdir())) == 2
