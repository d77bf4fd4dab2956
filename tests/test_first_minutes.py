"""The first minutes on a GPU, rehearsed on a CPU: no failure and no delay stops the rest."""

import json
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from thesis_repro import artefacts, cli, first_minutes, pages, stopping
from thesis_repro.devices import Gone


def test_a_rehearsal_on_a_cpu_keeps_to_its_budget_and_leaves_its_answers(tmp_path, capsys):
    began = time.monotonic()
    words = ["bench", "gpu", "--device", "cpu", "--budget", "45s", "--out", str(tmp_path)]
    assert cli.main(words) == 0
    assert time.monotonic() - began < 60
    told = json.loads((tmp_path / first_minutes.NAME).read_text())
    assert list(told["parts"]) == list(first_minutes.PARTS) and told["budget"] == 45
    known = told["parts"]["machine"]
    assert known["state"] in ("complete", "cut") and known["found"]["environment"]["versions"]
    assert {p["state"] for p in told["parts"].values()} <= {"complete", "cut", "not reached"}
    assert told["parts"]["runs"]["state"] == "not reached"  # no table was asked for
    said = capsys.readouterr().out
    assert "runs: not reached, 0 answers" in said and "machine: " in said
    assert {f.name for f in tmp_path.iterdir()} == {first_minutes.NAME}


def items(asked):
    def fails():
        raise KeyError("a name")

    def loses():
        ASKED.append("loses")
        raise torch.AcceleratorError("CUDA error: device-side assert triggered\nmore")

    yield "works", lambda: 1.5
    yield "fails", fails
    yield "loses", loses
    yield "goes on", lambda: float("nan")


ASKED = []


def test_an_item_that_fails_or_loses_the_gpu_does_not_stop_the_others(tmp_path, monkeypatch):
    lost, file = [], tmp_path / "part.json"
    monkeypatch.setitem(first_minutes.PARTS, "items", (items, 1.0))
    monkeypatch.setattr(first_minutes.devices, "_LOST", lost)
    with pytest.raises(SystemExit) as e:
        first_minutes.part("items", {}, str(file))
    assert e.value.code == stopping.AGAIN and "goes on" not in json.loads(file.read_text())["found"]
    lost.clear()  # as in another process
    first_minutes.part("items", {}, str(file))
    known = json.loads(file.read_text())
    assert known["found"] == {"works": 1.5, "goes on": None} and known["complete"]
    assert known["failed"]["fails"] == "KeyError: 'a name'" and ASKED == ["loses"]
    assert known["failed"]["loses"] == str(Gone(known["failed"]["loses"]))
    assert known["failed"]["loses"].startswith("the GPU failed: CUDA error")


@pytest.mark.parametrize(
    "code, state",
    [("import time; time.sleep(60)", "cut"), ("raise SystemExit(3)", "ended with code 3")],
)
def test_a_part_that_hangs_or_dies_is_ended_and_the_next_begins(tmp_path, monkeypatch, code, state):
    monkeypatch.setattr(first_minutes, "_CHILD", code)
    told = first_minutes.ask("cpu", 4, tmp_path, names=("machine", "agreement"))
    assert told["parts"]["machine"]["state"] == told["parts"]["agreement"]["state"] == state
    assert first_minutes.read(tmp_path / first_minutes.NAME) == told


def test_what_another_part_has_left_too_little_time_for_is_not_reached(tmp_path, monkeypatch):
    monkeypatch.setattr(first_minutes, "_CHILD", "import time; time.sleep(60)")
    told = first_minutes.ask("cpu", 1.5, tmp_path, names=("machine", "runs", "steps"), tables=["1"])
    assert [p["state"] for p in told["parts"].values()] == ["cut", "cut", "not reached"]


def test_a_checkpoint_of_an_earlier_command_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setenv("THESIS_REPRO_OUTPUTS", str(tmp_path))
    old, new = (tmp_path / "smoke/runs/a/b" / name for name in ("old", "new"))
    old.mkdir(parents=True)
    (old / "checkpoint.ckpt").touch()
    code = f"import os, time; time.sleep(1); os.mkdir({str(new)!r}); "
    code += f"open({str(new / 'checkpoint.ckpt')!r}, 'w'); time.sleep(60)"
    monkeypatch.setattr(first_minutes, "_command", lambda *words: [sys.executable, "-c", code])
    told = first_minutes._killed({"device": "cpu", "preset": "smoke"}, "7.1")
    assert told == {"killed": True, "checkpoints": ["new", "old"]}


def test_a_run_is_killed_once_and_goes_on_and_the_records_are_packed(monkeypatch):
    said = []
    for name in ("_killed", "_made", "_packed"):
        monkeypatch.setattr(first_minutes, name, lambda asked, *n, name=name: said.append(name))
    for _, action in first_minutes.runs({"runs": ["5.1", "7.1"]}):
        action()
    assert said == ["_killed", "_made", "_packed", "_made", "_packed"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"parts": 3}', "\x00"])
def test_answers_that_cannot_be_read_are_none(tmp_path, content):
    file = tmp_path / "answers.json"
    assert first_minutes.read(file) == {}
    file.write_text(content)
    assert first_minutes.read(file) == {}


def test_the_report_shows_the_answers(outputs, monkeypatch):
    home = artefacts.folder("smoke")
    home.mkdir(parents=True)
    found = {"TFLOP/s of a product, fp32": 51.25}
    told = {"parts": {"machine": {"state": "complete", "seconds": 3.0, "found": found}}}
    assert pages.first_minutes(home) == ""
    (home / first_minutes.NAME).write_text(json.dumps(told))
    assert "TFLOP/s of a product, fp32: 51.25" in pages.first_minutes(home)
    (home / first_minutes.NAME).write_text("half of it")
    assert pages.first_minutes(home) == ""
    page = pages._filled("rest.html", minutes="51.25 TFLOP/s", preset=SimpleNamespace(name="smoke"))
    assert "<pre>51.25 TFLOP/s</pre>" in page
