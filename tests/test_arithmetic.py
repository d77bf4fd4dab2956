"What is tried under other arithmetic: whatever compares numbers that it has computed."

import os
import re
import sys
from pathlib import Path

import arithmetic
import pytest

HERE = Path(__file__).parent
# These compare counts, files, records, and seconds with a clock of the test's own.
OTHERS = "aip_tables bench costs data faults gan_speed plan store survey".split()


def test_every_test_that_computes_is_tried():
    tests = {f.stem.removeprefix("test_"): f.read_text("utf-8") for f in HERE.glob("test_*.py")}
    torch, close = "^import torch$", r"allclose|assert_close|isclose|approx\(|torch\.equal"
    computing = {n for n, t in tests.items() if re.search(torch, t, re.M) and re.search(close, t)}
    assert computing <= {*arithmetic.NUMERICAL, *OTHERS} <= {*tests}
    assert not {*arithmetic.NUMERICAL} & {*OTHERS} and {*arithmetic.FEW} <= {*arithmetic.NUMERICAL}


def test_a_part_runs_all_of_them_and_few_the_fastest():
    def files(few):
        todo = arithmetic.commands("tests", "own", Path("python"), few)
        assert all(Path(words[-1]).stem == name for name, words in todo.items())
        return [name.removeprefix("test_") for name in todo]

    assert files(False) == arithmetic.NUMERICAL and files(True) == arithmetic.FEW


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("print(1)", "exit code 0"),
        ("1 / 0", "exit code 1"),
        ("import os; os.abort()", "exit code -6"),
        ("while 1: pass", "stopped after 2 s"),
    ],
)
def test_what_fails_aborts_or_hangs_has_not_ended_well(tmp_path, script, said):
    log = tmp_path / "a.log"
    good = arithmetic.ended_well([sys.executable, "-c", script], log, dict(os.environ), 2.0)
    assert good == (script == "print(1)") and said in log.read_text("utf-8")


def test_a_part_names_what_failed_and_is_run_again(tmp_path, monkeypatch):
    todo = {n: [sys.executable, "-c", f"import sys; sys.exit({n!r} == 'b')"] for n in "abc"}
    monkeypatch.setattr(arithmetic, "FOLDER", tmp_path)
    monkeypatch.setattr(arithmetic.paths, "root", lambda: tmp_path)
    monkeypatch.setattr(arithmetic, "commit", lambda: "1234567")
    monkeypatch.setattr(arithmetic, "commands", lambda *_: todo)
    found = arithmetic.run("tests", "own")
    assert not found["ok"] and found["failed"] == ["b"]
    todo["b"] = todo["a"]
    again = arithmetic.run("tests", "own")
    assert again["ok"] and not again["failed"] and arithmetic.run("tests", "own") == again


def test_the_variants_are_those_that_one_machine_can_imitate():
    said = [" ".join(f"{k}={v}" for k, v in how.items()) for how in arithmetic.VARIANTS.values()]
    assert {"ATEN_CPU_CAPABILITY=default", "ATEN_CPU_CAPABILITY=avx2"} <= {*said}
    assert {"ONEDNN_MAX_CPU_ISA=AVX2", "ONEDNN_MAX_CPU_ISA=SSE41", "SET=precision=bf16"} <= {*said}
    assert [n for n in (1, 2, 4) if f"OMP_NUM_THREADS={n} SET=threads={n}" in said] == [1, 2, 4]
    assert arithmetic.OTHER_TORCH in arithmetic.VARIANTS
