"What is tried under other arithmetic: whatever compares numbers that it has computed."

import re
from pathlib import Path

import arithmetic

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
        words = arithmetic.command("tests", "own", Path("python"), few)
        return [Path(w).stem.removeprefix("test_") for w in words if str(w).endswith(".py")]

    assert files(False) == arithmetic.NUMERICAL and files(True) == arithmetic.FEW


def test_the_variants_are_those_that_one_machine_can_imitate():
    said = [" ".join(f"{k}={v}" for k, v in how.items()) for how in arithmetic.VARIANTS.values()]
    assert {"ATEN_CPU_CAPABILITY=default", "ATEN_CPU_CAPABILITY=avx2"} <= {*said}
    assert {"ONEDNN_MAX_CPU_ISA=AVX2", "ONEDNN_MAX_CPU_ISA=SSE41", "SET=precision=bf16"} <= {*said}
    assert [n for n in (1, 2, 4) if f"OMP_NUM_THREADS={n} SET=threads={n}" in said] == [1, 2, 4]
    assert arithmetic.OTHER_TORCH in arithmetic.VARIANTS
