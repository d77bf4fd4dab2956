"""The first minutes on a GPU, rehearsed on a CPU: no failure and no delay stops the rest."""

import json
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from samples import refused

from thesis_repro import (
    artefacts,
    ceilings,
    cli,
    data,
    device_agreement,
    first_minutes,
    pages,
    stopping,
)
from thesis_repro.devices import Gone
from thesis_repro.mixup import Mixup, Plain
from thesis_repro.recipes import Classify
from thesis_repro.zoo import ZOO


def test_a_rehearsal_on_a_cpu_keeps_to_its_budget_and_leaves_its_answers(tmp_path, capsys):
    began = time.monotonic()
    words = ["bench", "gpu", "--device", "cpu", "--budget", "45s", "--out", str(tmp_path)]
    assert cli.main(words) == 0
    assert time.monotonic() - began < 60
    told = json.loads((tmp_path / ceilings.ANSWERS).read_text())
    assert list(told["parts"]) == list(first_minutes.PARTS) and told["budget"] == 45
    known = told["parts"]["machine"]
    assert known["state"] in ("complete", "cut") and known["found"]["environment"]["versions"]
    assert {p["state"] for p in told["parts"].values()} <= {"complete", "cut", "not reached"}
    assert told["parts"]["runs"]["state"] == "not reached"  # no table was asked for
    said = capsys.readouterr().out
    assert "runs: not reached, 0 answers" in said and "machine: " in said
    assert {f.name for f in tmp_path.iterdir()} == {ceilings.ANSWERS}


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
    assert first_minutes.read(tmp_path / ceilings.ANSWERS) == told


def test_what_another_part_has_left_too_little_time_for_is_not_reached(tmp_path, monkeypatch):
    monkeypatch.setattr(first_minutes, "_CHILD", "import time; time.sleep(60)")
    told = first_minutes.ask("cpu", 4, tmp_path, names=("machine", "runs", "steps"), tables=["1"])
    assert [p["state"] for p in told["parts"].values()] == ["cut", "cut", "not reached"]


def test_a_checkpoint_of_an_earlier_command_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setenv("THESIS_REPRO_OUTPUTS", str(tmp_path))
    old, new = (tmp_path / "smoke/runs/a/b" / name for name in ("old", "new"))
    old.mkdir(parents=True)
    (old / "checkpoint.ckpt").touch()
    code = f"import os, time; time.sleep(1); os.mkdir({str(new)!r}); "
    code += f"open({str(new / 'checkpoint.ckpt')!r}, 'w'); time.sleep(60)"
    monkeypatch.setattr(first_minutes, "_command", lambda *words: [sys.executable, "-c", code])
    told = first_minutes._killed({"device": "cpu", "preset": "smoke", "images": {}}, "7.1")
    assert told == {"killed": True, "checkpoints": ["new", "old"]}


def test_more_time_is_kept_for_packing_where_more_is_made():
    assert [first_minutes.reserve(60 * m) for m in (1, 2, 4, 9)] == [20, 20, 20, 45]


@pytest.mark.parametrize(
    "budget, left, limit",
    [(120, 100.0, "80s"), (120, 15.0, None), (540, 100.0, "55s"), (540, 40.0, None)],
)
def test_a_table_that_the_time_does_not_hold_is_stopped_and_the_records_packed(
    monkeypatch, budget, left, limit
):
    "The part was killed in the middle of the table, and nothing was ever exported."
    said, stopped = [], SimpleNamespace(returncode=stopping.AGAIN, stdout="", stderr="")
    monkeypatch.setattr(first_minutes.time, "time", lambda: 1000.0)
    runs = first_minutes.subprocess
    monkeypatch.setattr(runs, "run", lambda words, **how: said.append(words) or stopped)
    asked = {"until": 1000.0 + left, "preset": "smoke", "device": "cpu", "out": "folder"}
    asked |= {"images": {"cifar10": "npz:mine.npz"}, "budget": budget}
    made = first_minutes._made(asked, "7.1")
    assert made["code"] == stopping.AGAIN and first_minutes._packed(asked)["code"] == 75
    assert "export" in said[-1] and len(said) == (2 if limit else 1)
    assert not limit or said[0][said[0].index("--time-limit") + 1] == limit
    assert not limit or said[0][said[0].index("--set") + 1] == "cifar10=npz:mine.npz"


def test_every_part_knows_when_its_time_is_over(tmp_path, monkeypatch):
    seen = []

    def asked_of(name, asked, file, seconds):
        assert asked["budget"] == 100
        seen.append((asked["until"] - time.time(), seconds))
        return "complete"

    monkeypatch.setattr(first_minutes, "_asked_of", asked_of)
    first_minutes.ask("cpu", 100, tmp_path, tables=["5.1"])
    assert len(seen) == len(first_minutes.PARTS)
    assert all(abs(until - seconds) < 1 for until, seconds in seen)


def test_a_plan_finds_the_ceilings_among_the_answers(tmp_path, monkeypatch):
    "A GPU that is not here answers with numbers of ours; the names are those of the part."
    asked = dict(first_minutes.machine({"device": "cpu"}))
    speeds = dict.fromkeys((k for k in asked if k.startswith(("TFLOP/s", "GB/s"))), 7.0)
    chip = SimpleNamespace(name="a GPU", major=9, minor=0, multi_processor_count=132)
    cuda = first_minutes.torch.cuda
    monkeypatch.setattr(cuda, "get_device_properties", lambda device: chip)
    monkeypatch.setattr(cuda, "mem_get_info", lambda device: (1, 2))
    monkeypatch.setattr(first_minutes.torch.version, "cuda", "13.2")
    for facts in (first_minutes._chip("cuda"), first_minutes._chip("cpu")):
        told = {"parts": {"machine": {"found": speeds | {"device": facts}}}}
        file = tmp_path / facts["name"] / ceilings.ANSWERS
        first_minutes.atomic_json(file, told)
    file = tmp_path / "a GPU" / ceilings.ANSWERS
    assert ceilings.of_gpu("", tmp_path) == ceilings.Ceilings(7, 7, 7, 7, "a GPU", str(file))
    file.unlink()
    assert ceilings.of_gpu("", tmp_path) == ceilings.A100  # a rehearsal says nothing of a GPU


def test_a_method_whose_step_fails_costs_only_its_own_answer(tmp_path, monkeypatch):
    "It was taken before its item began, and its failure ended the part."
    real = first_minutes.bench.training_step

    def step(method, *how):
        if method == broken:
            raise RuntimeError("no kernel image is available")
        return real(method, *how)

    few = dict([*first_minutes.chapter_methods().items()][:1]) | {"mixup": Mixup(loss="bce")}
    broken = next(iter(few.values()))
    monkeypatch.setattr(first_minutes, "chapter_methods", lambda: few)
    monkeypatch.setattr(first_minutes.bench, "training_step", step)
    first_minutes.part("waiting", {"device": "cpu", "batch": 4}, str(tmp_path / "part.json"))
    known = json.loads((tmp_path / "part.json").read_text())
    assert list(known["failed"]) == ["PGD"] and known["complete"]
    assert known["found"]["mixup"]["launches"] > 100


def test_trainings_at_once_share_the_device():
    asked = {"device": "cpu", "batch": 2}
    recipe = Classify("resnet18", Plain(), width=0.0625)
    assert first_minutes.seconds_at_once(recipe, asked, 16, 2, precision="fp32") > 0


def test_what_is_timed_and_compared_is_all_there(monkeypatch):
    "Networks and GANs as they are, recorded, in every pass, compiled, and several at once."
    asked = {"device": "cpu", "batch": 4}
    timed = [name for name, _ in first_minutes.steps(asked)]
    for network in first_minutes.NETWORKS:
        for how in ("bf16", "bf16, captured", "fp32", "tf32", "bf16, folded in every pass"):
            assert f"{network}, {how}" in timed
        assert f"{network}, bf16, compiled" in timed[-3:]  # it may take minutes
    assert {"DCGAN, fp32", "DCGAN, fp32, captured"} <= set(timed)
    assert {f"{n} resnet18 at once, bf16, captured" for n in (1, 2, 3)} <= set(timed)
    compared = [name for name, _ in device_agreement.agreement(asked)]
    assert compared[:4] == [
        *("torch.float32", "torch.float64"),
        *(f"ratios of AIP, torch.{kind}" for kind in ("float32", "float64")),
    ]
    every = ZOO.keys() | {"MetaMixup", "AIP fast", "AdvProp", "D2A2GAN", "detector"}
    every |= {"adversarial positives"}
    assert {f"a step of {name}, torch.float32" for name in every} <= set(compared)
    assert "precision flags" in [name for name, _ in first_minutes.machine(asked)]


@pytest.mark.parametrize("name", ["DCGAN", "adversarial positives", "detector", "AdvProp"])
def test_what_is_no_chapters_classifier_makes_a_step_in_both_types(name):
    training = device_agreement._trainings()[name]
    for dtype in (torch.float32, torch.float64):
        assert device_agreement.step_agrees(*training, "cpu", dtype) == 0


def test_a_run_is_killed_once_and_goes_on_and_the_records_are_packed(monkeypatch):
    said = []
    for name in ("_killed", "_made", "_packed"):
        monkeypatch.setattr(first_minutes, name, lambda asked, *n, name=name: said.append(name))
    for _, action in first_minutes.runs({"runs": ["5.1", "7.1"]}):
        action()
    assert said == ["_killed", "_made", "_packed", "_made", "_packed"]


def test_images_come_from_a_folder_of_pieces(tmp_path, data_folder):
    "To a machine without a network, in files of any size."
    x, y = np.zeros((4, 8, 8, 3), np.uint8), np.arange(4)
    whole, pieces = tmp_path / "whole.npz", tmp_path / "pieces"
    np.savez(whole, x_train=x, y_train=y, x_test=x + 1, y_test=y)
    pieces.mkdir()
    content = whole.read_bytes()
    for i in range(12):  # 10 and 11 come after 9
        last = (i + 1) * 100 if i < 11 else None
        (pieces / f"cifar10.npz.{i}").write_bytes(content[i * 100 : last])
    (pieces / "svhn.npz").write_bytes(content)
    (pieces / "README.md").touch()
    found = first_minutes.joined(pieces)
    assert list(found) == ["cifar10", "svhn"]
    for name in found.values():
        assert len(data.load(name).y_train) == 4
    (pieces / "cifar10.npz.5").unlink()
    refused(lambda: first_minutes.joined(pieces), "pieces of cifar10: 0, 1, 2, 3, 4, 6", "0, 1, 2")
    refused(lambda: first_minutes.joined(tmp_path / "none"), "no images", "cifar10.npz.000")


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
    assert pages.gpu_answers(home) == ""
    (home / ceilings.ANSWERS).write_text(json.dumps(told))
    assert "TFLOP/s of a product, fp32: 51.25" in pages.gpu_answers(home)
    (home / ceilings.ANSWERS).write_text("half of it")
    assert pages.gpu_answers(home) == ""
    page = pages._filled("rest.html", minutes="51.25 TFLOP/s", preset=SimpleNamespace(name="smoke"))
    assert "<pre>51.25 TFLOP/s</pre>" in page
