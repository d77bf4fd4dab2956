"""The command line as a user meets it: what it prints, what it leaves, and its exit codes."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from thesis_repro import (
    again,
    artefacts,
    attacks,
    commands,
    notebooks,
    pages,
    paths,
    pieces,
    published,
    settings,
    stopping,
    trained_networks,
)
from thesis_repro.cli import main
from thesis_repro.files import BadInput
from thesis_repro.mixup import Plain
from thesis_repro.pieces import specification
from thesis_repro.recipes import Classify
from thesis_repro.replaced import Taught
from thesis_repro.runs import Named, Run
from thesis_repro.store import RunsFailed, Store
from thesis_repro.training import Length

TINY = "\n[tiny]\n" + "\n".join(
    f"{k} = {v}"
    for k, v in {
        "cifar10": "digits10",
        "cifar100": "digits100",
        "svhn": "digits10_cluttered",
        "tiny_imagenet": "digits200",
        "epochs": 1,
        "batch_size": 50,
        "train_size": 100,
        "test_size": 50,
        "held_out": 50,
        "width": 0.03,
        "seeds": 2,
        "device": "cpu",
        "precision": "fp32",
        "jobs": 1,
        "surface_points": 3,
        "timing_batch": 4,
        "timing_repeats": 1,
    }.items()
)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    "A settings.ini with a tiny preset, and outputs and data in a temporary folder."
    (tmp_path / "settings.ini").write_text(
        (paths.root() / "settings.ini").read_text(encoding="utf-8") + TINY, encoding="utf-8"
    )
    monkeypatch.setenv("THESIS_REPRO_SETTINGS", str(tmp_path / "settings.ini"))
    monkeypatch.setenv("THESIS_REPRO_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("THESIS_REPRO_DATA", str(tmp_path / "data"))
    return tmp_path


def refused(capsys, *words):
    "The one line that a command prints when it refuses; nothing may have been written."

    def written():
        return sorted(
            f
            for k in ("runs/*/*/*", "tables/*", "measurements/*.json")
            for f in paths.outputs().glob(f"*/{k}")
        )

    before = written()
    assert main([str(w) for w in words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("thesis-repro: ")
    assert written() == before
    return err


@pytest.mark.parametrize(
    "words",
    [
        ["table", "7.1", "--parts", "", "--no-train"],
        ["plan", "--chapter="],
        ["table", "", "--no-train"],
        ["settings", "--set", ""],
        ["attack", "7.1", "--seed", "0", "--source", ""],
    ],
)
def test_an_empty_value_means_neither_all_nor_nothing(outputs, capsys, words):
    assert "an empty value" in refused(capsys, *words)


@pytest.mark.parametrize("command", [["table", "7.1"], ["plan"], ["settings"], ["report"]])
@pytest.mark.parametrize("key", ["preset", "chapter", "name", "variant"])
def test_only_keys_of_the_settings_can_be_set(outputs, capsys, command, key):
    assert f"--set: unknown key: {key}" in refused(capsys, *command, "--set", f"{key}=fast")


def helped(capsys, *words) -> str:
    "What --help prints for a command, in one line."
    with pytest.raises(SystemExit):
        main([*words, "--help"])
    return " ".join(capsys.readouterr().out.split())


# Tables, runs


def test_a_table_is_made_saved_and_found_again(capsys):
    command = ["table", "7.1", "--preset", "tiny", "--seeds", "1", "--parts", "CIFAR-10"]
    assert main(command) == 0
    folder = artefacts.folder(settings.load("tiny", seeds=1)) / "tables"
    assert {p.name for p in folder.iterdir()} == {
        f"table_7_1.{s}" for s in ("csv", "md", "tex", "json")
    }
    assert "96.97 ± 0.16" in capsys.readouterr().out
    made = {p: p.stat().st_mtime_ns for p in paths.outputs("tiny").glob("runs/*/*/*/record.json")}
    assert len(made) == 7  # the five printed rows, the fast search and AdaMixup
    assert main(command) == 0
    assert {
        p: p.stat().st_mtime_ns for p in paths.outputs("tiny").glob("runs/*/*/*/record.json")
    } == made
    capsys.readouterr()
    assert main(["claims", "--preset", "tiny", "--seeds", "1", "--json"]) == 0
    judged = {c["id"]: c for c in json.loads(capsys.readouterr().out)}
    claim = judged["7.1-aip-over-manifold-best-cifar-10"]
    assert claim["n"] == 1 and claim["verdict"] == "tried" and claim["ours"] is not None


def test_run_makes_one_cell_and_the_table_shares_it(capsys):
    only = ["--preset", "tiny", "--parts", "CIFAR-10", "--row", "mixup", "--seed", "1"]
    assert main(["run", "7.1", *only, "--column", "Best / CIFAR-10"]) == 0
    records = list(paths.outputs("tiny").glob("runs/*/*/*/record.json"))
    assert [r.parent.name.rpartition("-")[0] for r in records] == ["mixup-seed-1"]
    assert "seed 1" in capsys.readouterr().out


def test_a_run_from_its_specification(elsewhere, capsys):
    from thesis_repro.mixup import Mixup
    from thesis_repro.recipes import Classify
    from thesis_repro.runs import Named, Run
    from thesis_repro.training import Length

    recipe = Classify("preactresnet18", Mixup(), width=0.03)
    run = Run(Named("digits10", 100, 50, 50), recipe, Length(1, 50), 3)
    file = elsewhere / "mine.json"
    file.write_text(json.dumps(specification(run)))
    assert main(["run", str(file), "--preset", "tiny"]) == 0
    assert run.key in capsys.readouterr().out


# Looking things up


@pytest.mark.parametrize(
    "item, function",
    [
        ("eq 7.12", "aip"),
        ("table 7.1", "aip.table_7_1"),
        ("algorithm 3", "aip.ternary"),
        ("eq 7.3", "mixup.mix"),
    ],
)
def test_where(item, function, capsys):
    assert main(["where", item, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["state"] == "made" and f"thesis_repro.{function}" in found["function"]
    file, _, line = found["place"].partition(":")
    name = found["function"].rpartition(".")[2]
    assert name in (paths.root() / file).read_text(encoding="utf-8").splitlines()[int(line) - 1]
    assert (paths.root() / found["notebook"]).exists()


def test_where_answers_for_all_that_a_bare_number_may_be(capsys):
    "`table 6.7` was known and `where 6.7` was refused, without a command that would do."
    assert main(["where", "6.7"]) == 0
    said = capsys.readouterr().out
    assert [line.partition(":")[0] for line in said.splitlines() if line[0:1].strip()] == [
        "eq-6.4",  # which equation 6.7 is a part of
        "tab-6.7",
    ]
    assert "table_6_7" in said and "margin_reweighting.ipynb" in said
    assert "(equation, made; thesis, section 6.2.1)" in said  # it said T 6.2.1
    assert main(["where", "6.7", "--json"]) == 0
    assert [i["id"] for i in json.loads(capsys.readouterr().out)] == ["eq-6.4", "tab-6.7"]


def test_where_says_what_a_companion_is(capsys):
    assert main(["where", "sys-evolve"]) == 0
    assert "(system, made; Kera's research report, part 1)" in capsys.readouterr().out


def test_atlas_has_every_item_of_the_contract(capsys):
    assert main(["atlas", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    rows = [
        line.split(",")[0]
        for line in paths.contract().read_text(encoding="utf-8").splitlines()[1:]
        if line and line[0] != "#"
    ]
    assert [i["id"] for i in listed] == rows
    assert {"id", "kind", "title", "state", "notebook", "function", "files"} <= set(listed[0])
    chapter = [i for i in listed if i["home"] == "aip"]
    assert chapter and all(i["state"] == "made" for i in chapter), [
        i["id"] for i in chapter if i["state"] != "made"
    ]


def test_claims_without_results_are_not_run(capsys):
    assert main(["claims", "--preset", "tiny", "--json"]) == 0
    judged = json.loads(capsys.readouterr().out)
    assert len(judged) > 40 and {c["verdict"] for c in judged} == {"not run"}


@pytest.mark.parametrize(
    ("asked", "chapters"),
    [("7", {"7"}), ("aip,advprop", {"7", "advprop"}), ("2,3", {"3"}), (None, None)],
)
def test_claims_of_a_chapter_and_nothing_is_written(asked, chapters, capsys, elsewhere):
    "A command that prints left claims.json behind, and said nothing of it."
    words = ["--chapter", asked] if asked else []
    assert main(["claims", "--preset", "tiny", *words, "--json"]) == 0
    listed = published.claims()
    meant = listed if chapters is None else listed[listed.chapter.isin(chapters)]
    assert [c["id"] for c in json.loads(capsys.readouterr().out)] == [*meant.id]
    assert not list(elsewhere.rglob("claims.json"))


def test_settings_tell_what_chapters_say_otherwise(capsys):
    "The values of a preset were shown as those of all chapters."
    assert main(["settings", "--preset", "smoke"]) == 0
    said = capsys.readouterr().out
    assert "[smoke: chapters 2 5 6 advprop]\ncifar10 = faint10\n" in said
    assert "[smoke: chapter 4]\nepochs = 2\n" in said and "\ncompile = no\n" in said
    assert main(["settings", "--preset", "smoke", "--set", "epochs=7"]) == 0
    assert "smoke: chapter 4" not in capsys.readouterr().out  # seven epochs there, too


def test_settings_of_one_chapter(capsys):
    for chapter, epochs in (("6", 4), ("advprop", 5), ("aip", 3)):
        assert main(["settings", "--preset", "smoke", "--chapter", chapter]) == 0
        said = capsys.readouterr().out
        called = "7" if chapter == "aip" else chapter
        assert f"\n[smoke: chapter {called}]\n" in said and f"\nepochs = {epochs}\n" in said
        assert "chapters 2 5 6" not in said
    assert "chapter 5,7: settings shows one of 5, 7" in refused(
        capsys, "settings", "--chapter", "5,7"
    )


# Attacking


@pytest.fixture
def trained(elsewhere, capsys):
    "The key of a run of the preset tiny."
    assert (
        main(
            [
                "run",
                "7.1",
                "--preset",
                "tiny",
                "--row",
                "Baseline",
                "--column",
                "Last / CIFAR-10",
                "--seed",
                "0",
            ]
        )
        == 0
    )
    capsys.readouterr()
    folder = next((elsewhere / "outputs" / "tiny" / "runs").glob("aip/table_7_1/baseline-seed-0-*"))
    return folder.name.rpartition("-")[2]


def test_a_run_is_attacked_by_its_key_or_its_name(trained, capsys):
    words = ["--preset", "tiny", "--steps", "2", "--epsilon", "1/10", "--size", "20", "--json"]
    for name in (trained, "baseline-seed-0"):
        assert main(["attack", name, *words]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (
            found["n"] == 20
            and found["accuracy"] <= found["clean"]
            and found["attack"]["epsilon"] == 0.1
        )


def test_an_attack_that_never_moved_says_so(trained, capsys, monkeypatch):
    words = ["attack", trained, "--preset", "tiny", "--steps", "4", "--size", "20"]
    assert main(words) == 0 and "in doubt" not in capsys.readouterr().out
    loud = attacks.PGD(steps=4, logit_scale=1e9)
    monkeypatch.setattr(trained_networks, "attack_of", lambda args, given: loud)
    assert main(words) == 0
    assert "in doubt: 100 % of the attacked images had no grad" in capsys.readouterr().out


def test_bad_attacks_are_one_line_and_exit_code_2(trained, capsys):
    for words, said in [
        (["nothing"], "there is no such run at preset tiny"),
        ([trained, "--epsilon", "8"], "8/255"),
        ([trained, "--epsilon=-1/255"], "epsilon"),
        ([trained, "--step", "2"], "2/255"),
        ([trained, "--epsilon", "much"], "must be a number, or a fraction such as 8/255"),
        ([trained, "--steps", "0"], "steps"),
        ([trained, "--norm", "l7"], "l7"),
        ([trained, "--attack", "fgsm", "--steps", "3"], "--steps: the attack fgsm has none"),
        ([trained, "--attack", "square", "--norm", "l2"], "--norm: the attack square has none"),
        ([trained, "--source", "nobody"], "there is no such run"),
        (["7.1", "--row", "AIP", "--column", "CIFAR-10", "--seed", "0"], "run 7.1 with the same"),
        ([trained, "--set", "width=0.5"], "as it was trained, and width would change nothing"),
        ([trained, "--seeds", "3"], "and seeds would change nothing: leave it out"),
    ]:
        assert said in refused(capsys, "attack", *words, "--preset", "tiny")


def test_a_seed_beyond_the_presets_is_attacked_where_it_was_trained(trained, capsys):
    "`--seed 3` was answered with all rows and columns, and there was no way to say --seeds."
    which = ["7.1", "--row", "Baseline", "--column", "CIFAR-10", "--preset", "tiny", "--seed", "2"]
    attacked = ["attack", *which, "--attack", "fgsm", "--size", "20", "--json"]
    said = "table 7.1: no seed 2: preset tiny has seeds 0, 1: --seeds 3 has it too"
    assert said in refused(capsys, *attacked)
    assert "there is no such run" in refused(capsys, *attacked, "--seeds", "3")
    assert main(["run", *which, "--seeds", "3"]) == 0
    capsys.readouterr()
    assert main([*attacked, "--seeds", "3"]) == 0
    assert "baseline-seed-2" in json.loads(capsys.readouterr().out)["run"]


@pytest.mark.parametrize("how", [["--epochs", "2"], ["--set", "width=0.06", "--set", "epochs=2"]])
def test_a_run_of_other_settings_is_attacked_and_exported(how, elsewhere, capsys):
    "Neither command knew --set or --epochs: only its key led to such a run."
    which = ["7.1", "--row", "Baseline", "--column", "CIFAR-10", "--seed", "0", "--preset", "tiny"]
    attacked = ["attack", *which, "--attack", "fgsm", "--size", "20", "--json"]
    assert "run 7.1 with the same options trains it" in refused(capsys, *attacked, *how)
    assert main(["run", *which, *how]) == 0
    made = capsys.readouterr().out.split()[-1].rpartition("/")[2]
    assert main([*attacked, *how]) == 0
    assert json.loads(capsys.readouterr().out)["run"] == made
    assert main(["export", *which, *how, "--to", str(elsewhere / "n.pt")]) == 0
    assert made in capsys.readouterr().out
    assert "run 7.1 with the same options" in refused(capsys, *attacked)  # the preset's own


@pytest.fixture
def robust(monkeypatch):
    "A table of one run and two columns, which measure it under attacks of their own."
    from thesis_repro import registry
    from thesis_repro.measures import Robustness, planned_row

    weak, strong = attacks.PGD(epsilon=0.02, steps=1), attacks.PGD(epsilon=0.1, steps=2)
    columns = {"weak": Robustness(weak, "best", 20), "strong": Robustness(strong, "last", 30)}

    def plan(preset, parts):
        [run] = {r for p in whole(preset, ("CIFAR-10",)).values() for r in p.runs if r.seed == 0}
        return planned_row(preset, "CIFAR-10 / Baseline", run, columns)

    def whole(preset, parts):
        cells = registry.find("table", "7.1").plan(preset, parts)
        return {k: p for k, p in cells.items() if k[0] == "Baseline"}

    monkeypatch.setitem(registry.TABLES, "7.99", None)
    registry.table("7.99", "two attacks", "", plan, ("CIFAR-10",))
    return columns


def test_a_column_brings_its_own_attack(trained, robust, capsys):
    "`--column PGD-20` alone made the default attack instead, and said nothing of it."
    words = ["attack", "7.99", "--row", "Baseline", "--seed", "0", "--preset", "tiny", "--json"]
    preset = settings.load("tiny", 7)
    run = Store(preset).find(trained)
    for name, m in robust.items():
        assert main([*words, "--column", name]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["attack"]["epsilon"] == m.attack.epsilon and found["n"] == m.size
        assert found["accuracy"] == m.value(Store(preset), run)  # the cell's own, kept
    assert main([*words, "--column", "strong", "--steps", "1", "--size", "10"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["attack"]["epsilon"] == 0.1 and found["attack"]["steps"] == 1 and found["n"] == 10
    assert main([*words, "--column", "strong", "--attack", "fgsm"]) == 0
    assert "steps" not in json.loads(capsys.readouterr().out)["attack"]
    assert main([*words[:-1], "--column", "weak"]) == 0
    said = capsys.readouterr().out
    assert "\n  weak " in said and "(20 test images, best weights)" in said


def test_an_attack_without_a_ball_says_so(capsys):
    "Carlini and Wagner's attack looked like the tables' CW columns: no epsilon was shown."
    from thesis_repro.strong_attacks import CarliniWagner

    assert "epsilon any" in trained_networks.settings_of(CarliniWagner())
    assert "epsilon 0.1" in trained_networks.settings_of(CarliniWagner(epsilon=0.1))
    assert "step epsilon / 4" in trained_networks.settings_of(attacks.PGD())
    assert "step 0.01" in trained_networks.settings_of(attacks.PGD(step=0.01))
    said = helped(capsys, "attack")
    assert "without a ball unless --epsilon gives one (CW-PGD: --attack pgd --loss cw)" in said
    assert "radius of the ball, for pixels in [0, 1], such as 8/255" in said
    assert "print its clean and robust accuracy" in said


def test_what_a_chapter_adds_of_its_own_has_a_number():
    from thesis_repro import background, m2at, registry

    assert registry.find("table", "5.ours") is m2at.table_5_ours
    assert registry.find("figure", "5.ours") is m2at.figure_5_ours
    assert registry.find("table", "2.ours") is background.table_2_ours


# What could not be had, and what was stopped


def test_a_figure_whose_runs_failed_tells_which_and_the_command_lists_them(monkeypatch, capsys):
    name, why = "m2at-seed-1-0123456789ab", "diverged: the loss is nan at step 310"
    lost = {name: why}

    def fail(self, runs):
        raise RunsFailed({("0123456789ab", None): why}, {("0123456789ab", None): name})

    monkeypatch.setattr(Store, "ensure", fail)
    with pytest.warns(UserWarning, match="1 failed: m2at-seed-1"):
        assert main(["figure", "5.3", "--preset", "tiny"]) == 1
    assert "failed: m2at-seed-1-0123456789ab: diverged: the loss is nan" in capsys.readouterr().err
    files = {f.name for f in (paths.outputs("tiny") / "figures").iterdir()}
    assert files == {f"figure_5_3.{s}" for s in ("png", "pdf", "csv", "json")}
    facts = json.loads(
        (paths.outputs("tiny") / "figures" / "figure_5_3.json").read_text(encoding="utf-8")
    )
    assert facts["failed"] == lost and facts["cells"] == [] and facts["number"] == "5.3"
    assert facts["title"] == "Accuracy by epoch"
    assert main(["report", "--preset", "tiny"]) == 0
    page = (paths.outputs("tiny") / "report" / "index.html").read_text(encoding="utf-8")
    assert "m2at-seed-1-0123456789ab" in page and "the loss is nan at step 310" in page

    def execute(*_):
        assert main(["figure", "5.3", "--preset", "tiny"]) == 1
        return True, lost

    monkeypatch.setattr(commands, "_execute", execute)
    with pytest.warns(UserWarning):  # the chapter went to its end, and yet
        assert main(["reproduce", "--preset", "tiny", "--chapter", "5"]) == 1


def test_table_and_figure_5_ours_without_any_of_their_runs(monkeypatch):
    from thesis_repro import m2at

    def fail(self, runs):
        runs = list(runs)
        raise RunsFailed(
            {(r.key, None): "out of memory" for r in runs}, {(r.key, None): r.name for r in runs}
        )

    monkeypatch.setattr(Store, "ensure", fail)
    with pytest.warns(UserWarning):
        frame = m2at.table_5_ours(settings.load("tiny", 5)).frame
        figure = m2at.figure_5_ours(settings.load("tiny", 5))
    assert (frame.n == 0).all() and frame.reason[frame.column == "Clean"].str.contains(
        "out of memory"
    ).all()
    assert figure.number == "5.ours" and set(figure.failed.values()) == {"out of memory"}


@pytest.mark.parametrize(
    "number, code", [(signal.SIGTERM, 75), (signal.SIGALRM, 75), (signal.SIGINT, 130)]
)
def test_a_stopped_reproduce_writes_the_report_of_what_is_there(monkeypatch, capsys, number, code):
    def stop(*_):
        raise stopping.Stopped(number)

    monkeypatch.setattr(commands, "_execute", stop)
    assert main(["reproduce", "--preset", "tiny", "--chapter", "7"]) == code
    out, err = capsys.readouterr()
    page = paths.outputs("tiny") / "report" / "index.html"
    assert out == f"report: {page}\n" and page.is_file()
    assert "stopped by" in err and err.count("\n") == 1


def test_a_second_reproduce_has_nothing_to_do_until_something_changes(monkeypatch, capsys):
    from thesis_repro import again

    executed = []

    def execute(*_):
        executed.append(1)
        return outcome

    def times(*more) -> int:
        executed.clear()
        code = main(["reproduce", "--preset", "tiny", "--chapter", "7", *more])
        assert code == (0 if outcome == (True, {}) else 1)
        return len(executed)

    monkeypatch.setattr(commands, "_execute", execute)
    outcome = False, {}
    assert times() == times() == 1  # what failed is tried again
    outcome = True, {}
    assert times() == 1 and times() == 0
    assert "nothing has changed since" in capsys.readouterr().out
    assert times("--again") == 1 and times("--fresh", "changed") == 1
    assert times("--set", "width=0.02") == 1 and times() == 0
    (paths.outputs("tiny") / "tables").mkdir()
    assert times() == 0
    (paths.outputs("tiny") / "tables" / "table_7_1.csv").touch()
    assert times() == 1 and times() == 0
    (paths.outputs("tiny") / "index.html").unlink()
    assert times() == 1 and times() == 0
    with settings.settings_file().open("a") as f:
        f.write("\n# another comment")
    assert times() == 1 and times() == 0
    monkeypatch.setattr(again, "_cells", lambda notebook: "an edited cell")
    assert times() == 1 and times() == 0


def test_a_file_of_pieces_is_looked_for_where_the_command_is_given(monkeypatch, elsewhere):
    "And a reproduction with another text of it is another."
    executed = []
    monkeypatch.setattr(commands, "_execute", lambda *_: executed.append(1) or (True, {}))
    (elsewhere / "there").mkdir()
    monkeypatch.chdir(elsewhere / "there")
    mine = Path("pieces_of_a_reproduction.py")
    command = ["reproduce", "--preset", "tiny", "--chapter", "7", "--pieces", str(mine)]
    for text, times in (("size = 1", 1), ("size = 1", 1), ("size = 2", 2)):
        mine.write_text(text, encoding="utf-8")
        assert main(command) == 0 and len(executed) == times


def test_a_report_that_cannot_be_written_does_not_hide_that_it_was_stopped(monkeypatch, capsys):
    from thesis_repro import pages

    def stop(*_):
        raise stopping.Stopped(signal.SIGTERM)

    def full(preset):
        raise BadInput("the disk is full")

    monkeypatch.setattr(commands, "_execute", stop)
    monkeypatch.setattr(pages, "write_report", full)
    assert main(["reproduce", "--preset", "tiny", "--chapter", "7"]) == 75
    assert (
        "report: not written: the disk is full; thesis-repro report --preset tiny"
        in capsys.readouterr().err
    )
    monkeypatch.setattr(pages, "write_report", stop)  # the second signal
    assert main(["reproduce", "--preset", "tiny", "--chapter", "7"]) == 75


def test_an_attack_takes_a_time_limit(trained, capsys):
    words = ["attack", trained, "--preset", "tiny", "--steps", "2", "--size", "20"]
    assert main([*words, "--time-limit", "1h"]) == 0
    capsys.readouterr()
    assert "--time-limit soon: must" in refused(capsys, *words, "--time-limit", "soon")


# Speed


@pytest.fixture
def benches(monkeypatch):
    "Two benches without work, whose figures count how often they were measured."
    from thesis_repro import bench

    counts = dict.fromkeys(("one", "two"), 0)

    def made(name, preset):
        counts[name] += 1
        return [bench.figure(f"{name} figure", counts[name], "times", at_least=0)]

    for name in counts:
        monkeypatch.setattr(
            bench, name, lambda preset, name=name: made(name, preset), raising=False
        )
    monkeypatch.setattr(bench, "BENCHES", {name: ("thesis_repro.bench", name) for name in counts})
    return counts


def test_bench_keeps_the_figures_of_the_others_and_says_where_each_was_made(benches, capsys):
    file = paths.outputs("tiny") / "bench.json"

    def values():
        return {f["bench"]: f["value"] for f in json.loads(file.read_text())["figures"]}

    assert main(["bench", "--preset", "tiny"]) == 0 and values() == {"one": 1, "two": 1}
    first = json.loads(file.read_text())["made"]
    assert main(["bench", "two", "--preset", "tiny", "--batch", "8", "--repeats", "5"]) == 0
    assert values() == {"one": 1, "two": 2}
    made = json.loads(file.read_text())["made"]
    assert made["one"] == first["one"] and (made["two"]["batch"], made["two"]["repeats"]) == (8, 5)
    assert {"processor", "cores", "gpu", "versions", "commit"} <= made["one"]["environment"].keys()
    capsys.readouterr()
    assert main(["bench", "one", "--preset", "tiny", "--json"]) == 0
    assert [f["bench"] for f in json.loads(capsys.readouterr().out)] == ["one"]


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"figures": 3}', '{"figures": [{"name": "x"}], "environment": {}}']
)
def test_a_damaged_file_of_benches_is_said_and_made_anew(benches, content):
    file = paths.outputs("tiny") / "bench.json"
    file.parent.mkdir(parents=True)
    file.write_text(content)
    with pytest.warns(UserWarning, match="bench.json: damaged"):
        assert main(["bench", "one", "--preset", "tiny"]) == 0
    assert [f["bench"] for f in json.loads(file.read_text())["figures"]] == ["one"]


def test_a_bench_that_is_stopped_leaves_those_that_were_finished(benches, monkeypatch):
    from thesis_repro import bench

    def stop(preset):
        raise stopping.Stopped(signal.SIGTERM)

    monkeypatch.setattr(bench, "two", stop)
    assert main(["bench", "--preset", "tiny"]) == 75
    kept = bench.kept(paths.outputs("tiny") / "bench.json")
    assert [f["bench"] for f in kept["figures"]] == ["one"] == list(kept["made"])


def test_the_help_of_no_train_says_what_is_made_even_so(capsys):
    assert "draw it from what is there (table 7.5 is timed even so)" in helped(capsys, "table")


def test_the_help_of_bench_names_all_and_says_at_what_preset_runs_are_made(capsys):
    from thesis_repro.bench import BENCHES

    said = helped(capsys, "bench")
    names = [f'"{name}"' if " " in name else name for name in BENCHES]
    assert f"which (default: all): {', '.join(names)}; gpu" in said
    assert "at fast on a GPU and at smoke on a CPU, whatever --preset says" in said


def test_files_of_benches_from_before_are_read_and_go_on(benches, tmp_path):
    from thesis_repro import bench

    old = [bench.figure(name, 2.0, "images/s") for name in ("data path", "another")]
    file = tmp_path / "bench.json"
    file.write_text(json.dumps({"figures": old, "environment": {"commit": "old"}}))
    before = bench.kept(file)
    assert len(before["figures"]) == 2 and set(before["made"]) == {""}
    bench.keep(file, "data", [{"bench": "data", **bench.figure("data path", 1.0, "images/s")}])
    after = bench.kept(file)
    assert [f["value"] for f in after["figures"] if f["name"] == "data path"] == [1.0]
    assert len(after["figures"]) == 2 and set(after["made"]) == {"", "data"}
    assert after["made"][""] == before["made"][""]


# Bad input


@pytest.mark.parametrize(
    "line, said",
    [
        ("epochs = -3", "epochs = -3: must be a whole number from 0"),
        ("epochs = abc", "epochs = abc: must be a whole number"),
        ("colour = red", "unknown key: colour"),
    ],
)
@pytest.mark.parametrize("command", [["reproduce"], ["table", "7.1"], ["run", "7.1"]])
def test_a_bad_preset(elsewhere, capsys, line, said, command):
    with (elsewhere / "settings.ini").open("a") as f:
        f.write(f"\n[mine]\n{line}\n")
    assert said in refused(capsys, *command, "--preset", "mine")


@pytest.mark.parametrize(
    "words, said",
    [
        (["reproduce", "--preset", "huge"], "unknown preset: huge"),
        (["reproduce", "--preset", "tiny", "--chapter", "99"], "unknown chapter: 99"),
        (
            ["reproduce", "--preset", "tiny", "--epochs", "abc"],
            "epochs = abc: must be a whole number",
        ),
        (["table", "9.9", "--preset", "tiny"], "9.9"),
        (["table", "1.1", "--preset", "tiny"], "table 1.1: there is none: there are 2."),
        (["figure", "6.ours", "--preset", "tiny"], "figure 6.ours: there is none"),
        (["table", "7.1", "--preset", "tiny", "--parts", "ImageNet"], "ImageNet"),
        (
            ["run", "7.1", "--preset", "tiny", "--row", "nothing"],
            "no row nothing: rows are Baseline",
        ),
        (["run", "7.1", "--preset", "tiny", "--column", "x"], "no column x: columns are Last / CI"),
        (["run", "7.5", "--preset", "tiny"], "not those of runs: thesis-repro table 7.5 makes it"),
        (["table", "7.9"], "table 7.9: there is none: near it are 7.1, 7.1.ours, 7.2, 7"),
        (["table", "advrpop.1"], "table advrpop.1: there is none: near it are advprop."),
        (["attack", "9.9", "--seed", "0"], "table 9.9: there is none: there are 2."),
        (["attack", "7.9"], "table 7.9: there is none: near it are 7.1"),
        (["export", "advprop.9", "--to", "n.pt"], "table advprop.9: there is none: near it are ad"),
        (["attack", "5.1", "--row", "BAT"], "BAT is only quoted by the thesis from another paper"),
        (["run", "none.json", "--preset", "tiny"], "none.json"),
        (["where", "eq 99.9"], "unknown item"),
        (["atlas", "--preset", "typo"], "unknown preset: typo: settings.ini has thesis"),
        (
            ["table", "7.1", "--set", "cifar10=scenes"],
            "cifar10 = scenes: images with boxes: it must",
        ),
        (["plan", "--set", "cifar100=voc"], "a data set of classes, such as cifar10 or digits10"),
        (["table", "7.1", "--set", "voc=digits10"], "voc = digits10: images without boxes: it mu"),
        (["claims", "--chapter", "2.1"], "chapter 2.1: it has no claims: 5, 6, 7, 3, 4, "),
        (["claims", "--chapter", "99"], "unknown chapter: 99: there is 02_1_generative"),
        (["bench", "nothing"], "unknown bench: nothing"),
        (["data", "fetch", "nothing"], "unknown data set: nothing"),
        (["data", "verify"], "which data set"),
        (
            ["table", "7.1", "--preset", "thesis", "--device", "cpu"],
            "thesis-repro data fetch cifar10",
        ),
        (["table", "7.1", "--preset", "tiny", "--device", "cuda:96"], "device = cuda:96"),
        (["table", "7.1", "--preset", "tiny", "--device", "junk", "--no-train"], "device = junk"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, words, said):
    assert said in refused(capsys, *words)


@pytest.mark.parametrize("words", [["claims"], ["atlas"], ["where", "tab-7.1"]])
def test_a_root_that_is_no_checkout_is_one_line(words, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("THESIS_REPRO_ROOT", str(tmp_path))
    monkeypatch.delenv("THESIS_REPRO_SETTINGS", raising=False)
    assert f"{tmp_path}" in refused(capsys, *words)


def test_a_warning_is_one_line_said_once():
    code = """
import sys, warnings
from thesis_repro import commands

def warn(args):
    for what in ("x is old", "x is old", "y is old"):
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn(what)
    return 0

commands.runs = warn
from thesis_repro import cli
sys.exit(cli.main(["runs"]) or cli.main(["runs"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr == 2 * "thesis-repro: x is old\nthesis-repro: y is old\n"


def test_a_full_disk_under_what_is_printed_is_one_line():
    with open("/dev/full", "w") as full:
        words = [sys.executable, "-m", "thesis_repro", "atlas"]
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    said = "thesis-repro: what is printed cannot be written: No space left on device\n"
    assert done.stderr == said


def test_an_output_folder_that_cannot_be_written(elsewhere, capsys, monkeypatch):
    (elsewhere / "file").write_text("")
    monkeypatch.setenv("THESIS_REPRO_OUTPUTS", str(elsewhere / "file" / "outputs"))
    assert "cannot be written" in refused(capsys, "table", "7.1", "--preset", "tiny")


def test_a_usage_error_is_exit_code_2():
    with pytest.raises(SystemExit) as e:
        main(["dance"])
    assert e.value.code == 2


@pytest.mark.parametrize(
    "words, said",
    [
        (["table", "7.1", "--no-train", "--fresh", "changed"], "--no-train makes nothing again"),
        (["figure", "7.2", "--no-train", "--retry"], "--no-train makes nothing again"),
        (["figure", "7.2", "--no-train", "--parts", "MNIST"], "7.2: it does not use MNIST"),
        (["figure", "advprop.1", "--parts", "SVHN"], "it does not use SVHN: it uses ImageNet"),
        (["table", "7.1", "--parts", "MNIST"], "7.1: it does not use MNIST: it uses CIFAR-10"),
        (["table", "7.1", "--time-limit", "99999999999999999999h"], "must be a span of time"),
        (["table", "7.1", "--no-train", "--set", "pieces=none.py"], "none.py"),
        (["reproduce", "--chapter", ","], "chapter = ,: names no chapter"),
        (["reproduce", "--chapter", "7", "--timeout", "0"], "--timeout 0: must be at least"),
        (["reproduce", "--chapter", "7", "--parts", "MNIST"], "it is used by none of 07_aip"),
        (["bench", "gpu", "--device", "cpu", "--runs", "9.9"], "9.9"),
        (["bench", "gpu", "data", "--device", "cpu"], "bench gpu: it stands alone"),
        (["bench", "gpu", "--device", "cpu", "--budget", "foo"], "--budget foo: must be a span"),
        (["bench", "data", "--budget", "5m"], "--budget: only bench gpu has a use for it"),
        (["bench", "--out", "folder"], "--out: only bench gpu has a use for it"),
        (["bench", "data", "--runs", "5.1"], "--runs: only bench gpu has a use for it"),
        (["bench", "data", "--data", "folder"], "--data: only bench gpu has a use for it"),
        (["bench", "gpu", "--device", "cpu", "--data", "none"], "none: no images: there must be"),
        (["bench", "gpu", "--batch", "64"], "--batch: bench gpu has no use for it"),
        (["bench", "gpu", "--repeats", "3"], "--repeats: bench gpu has no use for it"),
        (["bench", "gpu", "--json"], "--json: bench gpu has no use for it"),
        (["table", "7.1", "--time-limit", "foo"], "--time-limit foo: must be a span"),
        (["records", "merge"], "records merge: which files?"),
        (["records", "accept", "junk.json"], "records accept: takes no file"),
        (["records", "upgrade", "junk.json"], "records upgrade: takes no file"),
        (["diff", "tiny", "tiny"], "tiny: has no tables or figures yet: thesis-repro reproduce"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_not_ignored(capsys, words, said):
    preset = [] if words[0] == "diff" else ["--preset", "tiny"]
    assert said in refused(capsys, *words, *preset)


def test_a_list_of_data_sets_takes_no_name(capsys):
    assert "thesis-repro data verify junk" in refused(capsys, "data", "list", "junk")


def test_every_data_set_of_a_preset_is_listed(capsys):
    "The list left out those with boxes and those for retrieval."
    from thesis_repro import detection_data, lookups, retrieval_data, scenes

    assert main(["data", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = {line.split()[0]: line for line in lines}
    every = settings.presets()
    used = {settings.dataset(settings.load(p), part) for p in every for part in settings.PARTS}
    assert {name for name in used if not name.startswith("npz:")} <= listed.keys()
    assert lines[-1].startswith("npz:PATH")
    files = detection_data.FORMS.keys() | retrieval_data.FILES.keys() | {"imagenet"}
    assert lookups.BY_HAND.keys() == files and lookups.DRAWN.keys() == scenes.STYLES.keys()
    counts = {name: form.counts for name, form in detection_data.FORMS.items()}
    counts |= {name: numbers[1:] for name, numbers in retrieval_data.COUNTS.items()}
    counts |= {"scenes": tuple(scenes.COUNTS.values())}
    for name, (train, test) in counts.items():
        assert f", {train:,} + {test:,};" in listed[name]


@pytest.mark.parametrize("action", ["fetch", "verify"])
def test_a_data_set_that_is_not_fetched_here_says_where_it_lies(action, capsys, elsewhere):
    "`data verify voc`, which presets name, was an unknown data set."
    for name, notebook in (("voc", "132_detection"), ("cub200", "110_retrieval")):
        said = refused(capsys, "data", action, name)
        assert f"{elsewhere / 'data' / name}: " in said and f"nbs/science/{notebook}" in said
    assert main(["data", action, "scenes_far"]) == 0
    assert f"nothing to {action}" in capsys.readouterr().out
    assert "did you mean clipart1k?" in refused(capsys, "data", action, "clipart")


def test_a_run_by_itself_has_no_row_and_no_seed(trained, elsewhere, capsys):
    file = elsewhere / "run.json"
    file.write_text("{}")
    own = ["--preset", "tiny"]
    for words in (["attack", trained, "--seed", "3"], ["run", file, "--seed", "3"]):
        assert "leave --seed out, or name a table" in refused(capsys, *words, *own)
    assert "leave --row out" in refused(capsys, "run", file, "--row", "mixup", *own)
    to = elsewhere / "n.pt"
    assert "leave --seed" in refused(capsys, "export", trained, "--seed", "9", "--to", to, *own)


def test_the_names_of_attacks_are_said_once():
    from thesis_repro import attacks, square_attack, strong_attacks
    from thesis_repro.cli import parser

    kinds = {"fgsm": attacks.FGSM, "pgd": attacks.PGD, "apgd": strong_attacks.APGD}
    kinds |= {"cw": strong_attacks.CarliniWagner, "square": square_attack.Square}
    kinds |= {"autoattack": strong_attacks.AutoAttack, None: attacks.PGD}
    assert {*trained_networks.ATTACKS, None} == kinds.keys()
    for name, kind in kinds.items():
        args = parser().parse_args(["attack", "7.1", *(["--attack", name] if name else [])])
        assert type(trained_networks.attack_of(args)) is kind


def test_an_unknown_network_of_a_specification_is_bad_input(elsewhere, capsys):
    from thesis_repro import models
    from thesis_repro.mixup import Mixup
    from thesis_repro.recipes import Classify
    from thesis_repro.runs import Named, Run
    from thesis_repro.training import Length

    recipe = Classify("resnet18", Mixup())
    written = specification(Run(Named("digits10", 100, 50, 50), recipe, Length(1, 50), 3))
    file = elsewhere / "run.json"
    file.write_text(json.dumps(written).replace("resnet18", "nope"))
    said = refused(capsys, "run", file, "--preset", "tiny")
    with pytest.raises(BadInput) as e:  # in the words of the networks themselves
        models.build("nope", 10)
    assert f"{file}: {e.value}" in said and "preactresnet18" in said


def test_a_method_that_does_not_fit_its_network_is_bad_input(elsewhere, capsys):
    "It was a failure of the run, with exit code 1, and its lock was left behind."
    from thesis_repro.advprop import AdvProp
    from thesis_repro.genomes import Genome, Grown, Layer
    from thesis_repro.runs import Named, Run
    from thesis_repro.training import Length

    recipe = Grown(Genome((Layer(4, norm="none"),)), AdvProp())
    file = elsewhere / "run.json"
    run = Run(Named("digits10", 100, 50, 50), recipe, Length(1, 50), 3)
    file.write_text(json.dumps(specification(run)))
    said = refused(capsys, "run", file, "--preset", "tiny")
    assert said.count("\n") <= 1 and "run.json" in said and "has no batch norm" in said
    assert not list(paths.outputs("tiny").rglob(f"*{run.key}*"))


@pytest.mark.parametrize("name", ["table 5.1", "table_5_1", "5_1", " 5.1"])
def test_a_table_by_any_of_its_names_has_its_chapters_preset(monkeypatch, name):
    "The runs were those of another scale where the chapter has a section of its own."
    made = []
    monkeypatch.setattr("thesis_repro.store.Store.ensure", lambda self, runs: made.append([*runs]))
    for called in ("5.1", name):
        main(["run", called, "--row", "CIFAR-10 / PGD", "--column", "PGD-20"])
    assert made[0] and made[0] == made[1]


def test_an_attack_calls_a_run_as_its_folder_is_called(trained, capsys):
    words = ["--preset", "tiny", "--steps", "1", "--size", "10"]
    assert main(["attack", trained, *words]) == 0
    assert capsys.readouterr().out.startswith(f"baseline-seed-0-{trained}\n")


def test_a_reproduction_rests_on_the_packages_and_on_inception(monkeypatch):
    from importlib import metadata

    from thesis_repro import again

    before = again.rests_on([], {})
    monkeypatch.setenv("THESIS_REPRO_INCEPTION", "weights.pth")
    with_weights = again.rests_on([], {})
    fewer = [*metadata.distributions()][1:]
    monkeypatch.setattr(metadata, "distributions", lambda: fewer)
    assert len({before, with_weights, again.rests_on([], {})}) == 3


def test_a_reproduction_rests_on_what_own_pieces_import(tmp_path):
    from thesis_repro import again

    mine, helper = tmp_path / "mine.py", tmp_path / "helper.py"
    mine.write_text("import helper")
    helper.write_text("A = 1")
    before = again.rests_on([], {}, [mine])
    helper.write_text("A = 2")
    assert again.rests_on([], {}, [mine]) != before


# Locales without λ


OBEY = """
import json, sys
from thesis_repro.cli import main
print([main(words) for words in json.loads(sys.argv[1])], sys.stdout.encoding)
"""


@pytest.mark.parametrize(
    "name, charmap, encoding",
    [("en_US", "ISO-8859-1", "iso8859-1"), ("ja_JP", "EUC-JP", "euc_jp")],
)
def test_commands_work_where_the_locale_has_no_unicode(tmp_path, name, charmap, encoding):
    "Fault of round 2: `table`, `claims` and `settings` ended in a UnicodeEncodeError."
    make = ["localedef", "-f", charmap, "-i", name, str(tmp_path / "own")]
    if not shutil.which("localedef") or subprocess.run(make, capture_output=True).returncode:
        pytest.skip("this machine has no sources of locales")
    here = ["--preset", "tiny", "--seeds", "1", "--set", "attack_size=5"]
    table = ["5.2", *here, "--set", "autoattack_size=none", "--parts", "CIFAR-10"]
    rows = ["--row", "TRADES (1/? = 1)"]
    commands = [["settings"], ["claims", *here], ["run", *table, *rows], ["table", *table]]
    commands[-1] += ["--no-train"]
    env = os.environ | {"LC_ALL": "own", "LOCPATH": str(tmp_path), "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, "-c", OBEY, json.dumps(commands)], env=env, capture_output=True
    )
    said = done.stdout.decode(encoding)
    assert said.splitlines()[-1] == f"[0, 0, 0, 0] {encoding}", done.stderr.decode(encoding)
    assert "TRADES (1/" in said and b"Error" not in done.stderr
    folder = artefacts.folder(settings.load("tiny", seeds=1, attack_size=5, autoattack_size="none"))
    assert "TRADES (1/λ = 1)" in (folder / "tables/table_5_2.md").read_text("utf-8")


# The core stays light


def test_the_library_and_a_run_need_no_notebook_packages(elsewhere):
    code = """
import sys
from thesis_repro import mixup, recipes, runs, settings, store, training
recipe = recipes.Classify("preactresnet18", mixup.Mixup(), width=0.03)
run = runs.Run(runs.Named("digits10", 100, 50, 50), recipe, training.Length(1, 50))
store.Store(settings.load("tiny")).make(run, progress=False)
heavy = {"matplotlib", "seaborn", "papermill", "nbdev", "nbformat", "jupyter_client", "IPython"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=one_thread)


def test_importing_the_package_costs_little_beyond_torch():
    code = """
import time
start = time.process_time()
import torch
between = time.process_time()
import thesis_repro
print(between - start, time.process_time() - between)"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    torch, ours = map(float, done.stdout.split())
    assert ours < torch / 4


def test_python_dash_m():
    done = subprocess.run(
        [sys.executable, "-m", "thesis_repro", "where", "table 7.1"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent,
    )
    assert "table_7_1" in done.stdout


def test_chapters_without_the_data_set_are_left_out_and_say_so(elsewhere, monkeypatch, capsys):
    executed = []
    monkeypatch.setattr(
        commands, "_execute", lambda chapter, *_: executed.append(chapter.stem) or (True, {})
    )
    assert main(["reproduce", "--preset", "tiny", "--parts", "SVHN"]) == 0
    out = capsys.readouterr().out
    # the conclusion has no data set of its own: it reads whatever was measured
    assert executed == ["04_d2a2gan", "07_aip", "08_conclusion"]
    assert all(
        f"{c}: left out: it does not use SVHN" in out for c in ("05_m2at", "06_margin_reweighting")
    )


# A machine that has torch and little else


SHORT = "--epochs 1 --set train_size=40 --set test_size=20 --set held_out=10 --set width=0.0625"


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    "A function that calls the command line there: exit code, output, errors."
    here, out = Path(__file__).with_name("bare.py"), tmp_path_factory.mktemp("bare")
    names = ("HOME", "PATH", "OMP_NUM_THREADS")
    env = {k: os.environ[k] for k in names if k in os.environ}
    env |= {"PYTHONPATH": str(here.parents[1]), "THESIS_REPRO_OUTPUTS": str(out)}

    def call(*words):
        command = [sys.executable, here, *" ".join(words).split()]
        done = subprocess.run(command, env=env, cwd=out, capture_output=True, text=True)
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout, done.stderr

    return call


def test_without_notebooks_autoattack_and_clusters_everything_else_works(bare):
    how = f"--preset smoke --device cpu --jobs 1 {SHORT}"
    code, out, err = bare("table 7.4", how)
    assert code == 0 and "table_7_4.csv" in out, err
    code, out, err = bare("run 7.4", how)
    assert code == 0 and "last" in out, err
    key = out.split()[-1].rpartition("-")[2]
    code, out, err = bare(f"attack {key} --preset smoke --device cpu --steps 2 --step 4/255")
    assert code == 0 and "clean" in out, err
    code, out, err = bare("plan --table 7.4", how)
    assert code == 0 and "8 of 8" not in out and "table 7.4" in out, err


def test_what_cannot_work_there_says_what_is_missing(bare):
    code, _, err = bare("reproduce --preset smoke --chapter 7")
    assert code == 2 and "papermill is missing: pip install 'thesis-repro[notebooks]'" in err
    code, _, err = bare("table 7.4 --preset smoke --launcher ray")
    assert code == 2 and "Ray is not installed: pip install thesis-repro[ray]" in err
    code, _, err = bare("table 7.4 --preset smoke --launcher slurm")
    assert code == 2 and "slurm" in err
    code, _, err = bare("bench evaluation --batch 2 --repeats 1")
    assert code == 0 and "bench evaluation: left out: pyautoattack is not installed" in err


@pytest.mark.parametrize("more", [["--epochs", "7"], ["--set", "width=0.5"], ["--parts", "SVHN"]])
def test_a_specification_is_made_as_it_is_or_not_at_all(tmp_path, more, capsys):
    recipe = Classify("preactresnet18", Plain(), width=0.03)
    file = tmp_path / "r.json"
    file.write_text(json.dumps(specification(Run(Named("digits10", 100), recipe, Length(1, 50)))))
    assert main(["run", str(file), "--preset", "tiny", *more]) == 2
    assert "would change nothing" in capsys.readouterr().err


WISH = """
import torch
import torch.nn.functional as F

from thesis_repro.made_to_order import ToOrder
from thesis_repro.pieces import piece


@piece
class WishOfTheCli:
    target: tuple[float, ...] = (0.5, 0.5)

    def __call__(self, model, x, y, draws):
        if not self.target:
            raise RuntimeError("no wish")
        wanted = F.pad(torch.tensor([self.target]), (0, 10 - len(self.target)))
        made = ToOrder(1)(model, x, wanted.expand(len(x), -1))
        return F.cross_entropy(model(made.x), y)
"""


@pytest.mark.parametrize("beside", [False, True])
def test_what_a_piece_of_ones_own_refuses_is_bad_input_and_no_failed_run(tmp_path, capsys, beside):
    "Such as an output that does not sum to one; with data that need another run as well."
    mine = tmp_path / f"wish_of_the_cli_{beside}.py"
    mine.write_text(WISH)
    run = Run(
        Named("digits10", 60, 20, 20), Classify("resnet18", Plain(), width=0.03), Length(1, 30)
    )
    spec = specification(replace(run, data=Taught(run.data, run)) if beside else run)
    words = ["run", tmp_path / "wish.json", "--preset", "tiny", "--pieces", mine]

    def asked(target):
        spec["recipe"]["method"] = {"is": "WishOfTheCli", "target": target}
        (tmp_path / "wish.json").write_text(json.dumps(spec))
        return main([str(w) for w in words])

    try:
        assert asked([]) == 1  # it fails for another reason
        assert "failed: run-seed-0-" in capsys.readouterr().err
        assert asked([0.5, 0.4]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.splitlines()[-1] == (
            f"thesis-repro: {tmp_path / 'wish.json'}: target: row 0 sums to 0.9, its least is 0:"
            " a distribution is not negative and sums to one"
        )
        made = list(paths.outputs("tiny").rglob("record.json"))
        assert len(made) == beside  # the one that it needs
        assert asked([0.5, 0.5]) == 0
    finally:
        pieces.REGISTRY.pop("WishOfTheCli", None)
        sys.modules.pop(mine.stem, None)


def test_pieces_of_a_chapter_are_loaded(tmp_path):
    own = tmp_path / "settings.ini"
    own.write_text(own.read_text(encoding="utf-8") + "\n[tiny: chapter 7]\npieces = mine.py\n")
    args = argparse.Namespace(preset="tiny", pieces=None)
    assert commands.own_files(args) == [tmp_path / "mine.py"]


def test_what_is_reproduced_rests_on_files_of_images(tmp_path):
    file, own = tmp_path / "x.npz", tmp_path / "settings.ini"
    chapter = f"\n[tiny: chapter 7]\ncifar10 = npz:{file}\n"
    own.write_text(own.read_text(encoding="utf-8") + chapter)
    seen = []
    for content in (b"one", b"another"):
        file.write_bytes(content)
        seen.append(commands._images(settings.load("tiny"), notebooks.chapters("7")))
    assert seen[0] and seen[0] != seen[1]


def test_what_another_command_removes_costs_nothing(tmp_path, monkeypatch):
    (tmp_path / "smoke" / "runs" / "gone").mkdir(parents=True)
    (tmp_path / "smoke" / "table.csv").write_text("x")
    listed = os.scandir

    def scandir(path="."):
        if Path(path).name == "gone":
            raise FileNotFoundError(path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    folder = tmp_path / "smoke"
    assert len(again._listing(folder)) == 1 and pages._size(folder) == "0 MiB"
