"""README and docs: short, links lead somewhere, commands are commands, examples run as printed."""

import configparser
import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from thesis_repro import (
    artefacts,
    claims,
    commands,
    paths,
    pieces,
    published,
    registry,
    runs,
    settings,
)
from thesis_repro.cli import main, parser
from thesis_repro.conclusion import kept_references
from thesis_repro.mixup import Plain
from thesis_repro.recipes import Classify

FILES = [paths.root() / "README.md", *sorted((paths.root() / "docs").glob("*.md"))]
TEXTS = {f.relative_to(paths.root()).as_posix(): f.read_text(encoding="utf-8") for f in FILES}
PAGES = [n for n in TEXTS if n.startswith("docs/")]
README = TEXTS["README.md"]


def prose(text: str) -> str:
    "A text without its code blocks."
    return re.sub(r"```.*?```", "", text, flags=re.S)


def blocks(language: str, text: str) -> list[str]:
    "The code blocks of a language."
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def anchors(text: str) -> list[str]:
    "The names that GitHub gives the headings."
    titles = re.findall(r"^#+ (.+)$", prose(text), re.M)
    return [re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles]


# ---- the front page


def test_the_front_page_is_short_and_has_one_picture():
    assert len(README.split()) <= 900
    assert len(re.findall(r"!\[[^]]+\]\(", README)) == 1
    assert "make reproduce" in README and "make test" in README
    assert re.search(r"^\| chapter \| claims \| holds \| fails \| inconclusive \|", README, re.M)


def test_the_scorecard_is_what_the_references_say():
    row = r"^\| (\w+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$"
    shown = [(name, *map(int, m)) for name, *m in re.findall(row, README, re.M)]
    tables = [
        claims.claim_table(*artefacts.saved_values(settings.load(preset)))
        for preset in kept_references()
    ]
    expected, aside, found = [], [], pd.concat(tables)
    found = found[found.verdict.isin(claims.JUDGED)]
    assert found.id.is_unique
    for chapter, own in published.claims().groupby("chapter"):
        verdicts = list(found.set_index("id").verdict.reindex(own.id))
        judged = [verdicts.count(word) for word in claims.JUDGED]
        left = len(verdicts) - sum(judged)
        if sum(judged):
            expected.append((chapter, len(verdicts), *judged, left))
        else:
            aside.append(f"{chapter} ({len(verdicts)})")
    assert f"None judged yet (claims): {', '.join(aside)}." in README
    assert tuple(claims.JUDGED) == ("holds", "fails", "inconclusive")
    assert shown == expected and sum(row[4] for row in shown) > 0


def test_the_front_page_leads_to_every_page():
    links = set(re.findall(r"\]\((docs/[^)#]+)\)", README))
    assert links == set(PAGES) and len(PAGES) >= 12


@pytest.mark.parametrize("name", [n for n in PAGES if n != "docs/atlas.md"])
def test_a_page_is_short(name):
    assert 150 < len(TEXTS[name].split()) < 500


@pytest.mark.parametrize("name", TEXTS)
def test_every_link_leads_somewhere(name):
    links = re.findall(r"\]\(([^)\s]+)\)", prose(TEXTS[name]))
    for link in (a for a in links if not re.match(r"[a-z]+:", a)):
        file, _, anchor = link.partition("#")
        target = (paths.root() / name).parent / file.replace("%20", " ")
        assert target.exists() if file else anchor, f"{name}: {link}"
        if anchor and (not file or target.suffix == ".md"):
            text = target.read_text(encoding="utf-8") if file else TEXTS[name]
            assert anchor in anchors(text), f"{name}: {link}"


# ---- what can be typed


def commands_of(text: str) -> list[str]:
    "What follows `thesis-repro` in the shell blocks of a text, and in its sentences."
    lines = [s for b in blocks("sh", text) for s in b.splitlines() if not s.startswith("#SBATCH")]
    lines += re.findall(r"`(thesis-repro [^`]+)`", prose(text))
    word = r"(?:^|[ `])(?:thesis-repro|-m thesis_repro) ([^#;|`]+)"
    return [m.strip() for line in lines for m in re.findall(word, line)]


COMMANDS = list(dict.fromkeys(c for text in TEXTS.values() for c in commands_of(text)))


def test_there_are_commands():
    assert len(COMMANDS) > 40
    assert {c.split()[0] for c in COMMANDS} >= {"reproduce", "table", "run", "attack", "records"}


@pytest.fixture
def own_sections(tmp_path, monkeypatch):
    "The settings with all sections that the pages print."
    text = (paths.root() / "settings.ini").read_text(encoding="utf-8")
    own = [b for page in TEXTS.values() for b in blocks("ini", page)]
    file = tmp_path / "settings.ini"
    file.write_text("\n".join([text, *own]), encoding="utf-8")
    monkeypatch.setenv("THESIS_REPRO_SETTINGS", str(file))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one(command, own_sections):
    if command.startswith("--"):
        return
    args = parser().parse_args(shlex.split(command))
    if getattr(args, "pieces", None):  # the page that has the file has a test of its own
        return
    if args.command in ("table", "figure"):
        assert registry.find(args.command, args.number)
    elif getattr(args, "row", None):
        args.device, args.parts = "cpu", ""
        what = args.what if args.command == "run" else args.run
        chosen = commands.chosen_runs(args, commands.preset_of(args, what), what)
        assert len({r.seed for r in chosen}) == 1
    if getattr(args, "preset", ""):
        assert settings.load(args.preset, **commands.overridden(args))


def test_every_section_of_settings_is_one(own_sections):
    names = {"mine", "cluster", "photos"}
    assert names <= set(settings.presets())
    for name in names:
        said = configparser.ConfigParser()
        said.read_string(next(b for t in TEXTS.values() for b in blocks("ini", t) if name in b))
        assert settings.load(name) and said.sections() == [name]


def test_every_make_target_and_every_variable_exists():
    everything = "\n".join(TEXTS.values())
    makefile = (paths.root() / "Makefile").read_text(encoding="utf-8")
    shell = re.sub(r"#.*", "", "\n".join(blocks("sh", everything)))
    inside = "\n".join(re.findall(r"`([^`]+)`", prose(everything))) + shell
    targets = set(re.findall(r"\bmake ([a-z][\w-]+)", inside))
    known = set(re.findall(r"[\w-]+", " ".join(re.findall(r"^[\w -]+(?=:)", makefile, re.M))))
    assert targets and targets <= known
    source = "\n".join(f.read_text("utf-8") for f in (paths.root() / "thesis_repro").glob("*.py"))
    assert not [v for v in set(re.findall(r"THESIS_REPRO_\w+", everything)) if v not in source]
    keys = set(re.findall(r"--set (\w+)=", everything)) - {"KEY"}
    assert keys and keys <= set(settings.KEYS)


CHEAP = ("where", "atlas", "claims", "runs", "settings", "data list")


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith(CHEAP)])
def test_commands_that_train_nothing_are_executed(command, own_sections, tmp_path, monkeypatch):
    monkeypatch.setenv("THESIS_REPRO_OUTPUTS", str(tmp_path / "outputs"))
    assert main(shlex.split(command)) == 0


# ---- the examples


def settings_with(tmp_path, text: str, monkeypatch):
    "A settings.ini with more in it, and outputs in a temporary folder."
    file = tmp_path / "settings.ini"
    own = (paths.root() / "settings.ini").read_text(encoding="utf-8")
    file.write_text(f"{own}\n{text}", encoding="utf-8")
    monkeypatch.setenv("THESIS_REPRO_SETTINGS", str(file))
    monkeypatch.setenv("THESIS_REPRO_OUTPUTS", str(tmp_path / "outputs"))


def photos(n: int, seed: int = 0):
    "Images and labels of four classes."
    x = np.random.default_rng(seed).integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)
    return x, np.arange(n) % 4


def test_the_data_set_of_ones_own(tmp_path, monkeypatch, capsys):
    said = TEXTS["docs/own-data.md"]
    (code,), (section,) = blocks("python", said), blocks("ini", said)
    (x, y), (x_test, y_test) = photos(120), photos(20, 1)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    exec(code, {"np": np, "x": x, "y": y, "x_test": x_test, "y_test": y_test})
    file = f"npz:{tmp_path / 'data' / 'photos.npz'}"
    small = section.replace("npz:data/photos.npz", file).replace("epochs = 30", "epochs = 1")
    less = "width = 0.0625\nbatch_size = 50\njobs = 1\ndevice = cpu\n"
    settings_with(tmp_path, small.replace("= 500", "= 20") + less, monkeypatch)
    assert main(["data", "verify", file]) == 0
    found = capsys.readouterr().out
    assert "120 training and 20 test images, 16 × 16 × 3, 4 classes" in found
    words = "run 7.1 --preset photos --parts CIFAR-10 --row mixup --seed 0"
    assert main(words.split()) == 0
    for wrong, line in (
        ({"x_train": x / 255.0}, "x_train is float64: images must be uint8 from 0 to 255"),
        ({"y_test": y_test + 3}, "y_test has the label 6: y_train has the classes 0 to 3"),
        ({"y_test": None}, "has no array y_test"),
    ):
        arrays = {"x_train": x, "y_train": y, "x_test": x_test, "y_test": y_test} | wrong
        np.savez("data/photos.npz", **{k: v for k, v in arrays.items() if v is not None})
        assert main(["data", "verify", file]) == 2
        assert line in " ".join(said.split()) and line in capsys.readouterr().err


def test_the_method_of_ones_own(tmp_path, monkeypatch, capsys):
    mine, compare, written, composed = blocks("python", TEXTS["docs/own-method.md"])
    (tmp_path / "mine.py").write_text(mine, encoding="utf-8")
    (tmp_path / "compare.py").write_text(compare + written, encoding="utf-8")
    less = "epochs = 1\ntrain_size = 100\nseeds = 1\ndevice = cpu\nwidth = 0.0625\n"
    settings_with(tmp_path, f"[smoke: chapter 7]\njobs = 2\n{less}", monkeypatch)
    env = {**os.environ, "PYTHONPATH": str(paths.root()), "OMP_NUM_THREADS": "1"}
    how = {"cwd": tmp_path, "env": env, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "compare.py"], **how)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Softened  your own" in done.stdout and "ours only" in done.stdout
    home = tmp_path / "outputs" / "smoke"
    assert {f.suffix for f in home.glob("also-Softened/tables/table_7_1.*")} >= {".csv", ".md"}
    made = list((home / "runs/mine/softened").iterdir())
    command = ["run", "softened.json", "--pieces", "mine.py", "--device", "cpu"]
    done = subprocess.run([sys.executable, "-m", "thesis_repro", *command], **how)
    assert done.returncode == 0 and made[0].name in done.stdout, done.stderr[-2000:]
    assert list((home / "runs/mine/softened").iterdir()) == made  # the table's, and no other
    exec(composed, {})


def test_the_description_of_a_run_says_its_place_and_label():
    written = blocks("python", TEXTS["docs/own-method.md"])[2]
    said = re.search(r"described \|= (.*)", written)
    run = runs.Run(runs.Named("digits10"), Classify("resnet18", Plain()))
    made = runs.run_of(pieces.specification(run) | eval(said[1]))
    assert (made.home, made.label, made.key) == ("mine/softened", "Softened", run.key)


def test_the_table_of_ones_own(tmp_path, monkeypatch, capsys):
    file, compared, gan = blocks("python", TEXTS["docs/own-table.md"])
    (tmp_path / "weights.py").write_text(file, encoding="utf-8")
    settings_with(tmp_path, "", monkeypatch)
    less = "epochs=1 train_size=32 test_size=20 held_out=20 width=0.0625 jobs=1 device=cpu"
    monkeypatch.setenv("THESIS_REPRO_SET", less)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    try:
        for command in blocks("sh", TEXTS["docs/own-table.md"])[0].splitlines():
            words = shlex.split(command)[1:]
            assert main(words) == 0, words
        said = capsys.readouterr().out
        assert "Steep  ours only" in said and "steps 50" in said
        exec(compared, {})
        assert "over='seeds'" in capsys.readouterr().out
    finally:
        registry.TABLES.pop("weights.ours", None)
        pieces.REGISTRY.pop("Steep", None)
        sys.modules.pop("weights", None)
    space = {}
    exec(gan, space)
    critic = space["recipe"].critic.build((3, 32, 32), 10)
    assert critic(torch.rand(2, 3, 32, 32), torch.eye(10)[:2]).score.shape == (2,)


def test_networks_from_and_for_elsewhere(tmp_path, monkeypatch):
    "The page's examples in their order, the first one with a run of a minute's preset."
    less = "epochs = 1\ntrain_size = 100\nseeds = 1\ndevice = cpu\nwidth = 0.0625\n"
    settings_with(tmp_path, f"[smoke: chapter 7]\n{less}", monkeypatch)
    cell = ["7.1", "--row", "mixup", "--column", "Last / CIFAR-10", "--seed", "0"]
    assert main(["run", *cell]) == 0
    space = {}
    for code in blocks("python", TEXTS["docs/elsewhere.md"]):
        exec(code, space)
        if "adversarial" not in space:
            size = space["net"](torch.rand(2, 3, 32, 32)).shape
            assert size == (2, 10)
    away = (space["adversarial"] - space["x"]).abs().max().item()
    assert abs(away - 8 / 255) < 1e-6 and space["loss"].isfinite()


MANY = """
import json
from mine import Softened
from thesis_repro import pieces
from thesis_repro.recipes import Classify
from thesis_repro.runs import Named, Run
from thesis_repro.training import Length
recipe = Classify("preactresnet18", Softened(0.2), width=0.03)
run = Run(Named("digits10", 100, 50, 20), recipe, Length(1, 50), home="mine/softened")
print(json.dumps(pieces.specification(run)))
"""


def test_a_piece_in_a_file_is_made_by_the_command_that_names_it(tmp_path, monkeypatch):
    mine = blocks("python", TEXTS["docs/own-method.md"])[0]
    (tmp_path / "mine.py").write_text(mine, encoding="utf-8")
    settings_with(tmp_path, "", monkeypatch)
    env = {**os.environ, "PYTHONPATH": str(paths.root()), "OMP_NUM_THREADS": "1"}
    how = {"cwd": tmp_path, "env": env, "capture_output": True, "text": True}
    written = subprocess.run([sys.executable, "-c", MANY], **how)
    (tmp_path / "softened.json").write_text(written.stdout)
    command = [sys.executable, "-m", "thesis_repro", "run", "softened.json"]
    alone = subprocess.run(command, **how)
    assert alone.returncode == 2 and "Softened: unknown piece" in alone.stderr
    done = subprocess.run([*command, "--pieces", "mine.py", "--device", "cpu"], **how)
    assert done.returncode == 0 and "last" in done.stdout, done.stderr


@pytest.mark.parametrize("jobs", [1, 2])
def test_workers_know_the_pieces_of_a_file(tmp_path, monkeypatch, jobs):
    mine = blocks("python", TEXTS["docs/own-method.md"])[0]
    (tmp_path / "mine.py").write_text(mine, encoding="utf-8")
    settings_with(tmp_path, "", monkeypatch)
    script = f"""
from dataclasses import replace
from thesis_repro import pieces, settings
from thesis_repro.store import Store
if __name__ == "__main__":
    pieces.load_pieces("mine.py")
    run = pieces.from_specification({{
        "is": "Run", "data": {{"is": "Named", "name": "digits10", "train": 100, "test": 50,
        "held_out": 20}}, "recipe": {{"is": "Classify", "network": "preactresnet18", "width": 0.03,
        "method": {{"is": "Softened", "mass": 0.2}}}}, "length": {{"is": "Length", "epochs": 1,
        "batch_size": 50}}}})
    store = Store(settings.load("smoke", device="cpu", jobs={jobs}))
    print(len(store.ensure([run, replace(run, seed=1)])))
"""
    (tmp_path / "both.py").write_text(script)
    env = {**os.environ, "PYTHONPATH": str(paths.root()), "OMP_NUM_THREADS": "1"}
    how = {"cwd": tmp_path, "env": env, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "both.py"], **how)
    assert done.returncode == 0 and done.stdout.strip() == "2", done.stderr[-1500:]
