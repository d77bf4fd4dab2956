"""The notebooks, the chapters and the numerical tests under other arithmetic.

python tests/arithmetic.py [--variants NAME …] [--parts notebooks chapters tests] [--write]

Another processor adds up in another order, and a result may depend on that only as far as rounding
goes. Each variant makes this machine compute as another one would. What was found at this commit is
kept in .make/arithmetic/, with a log of every part, so that a stopped run goes on where it was.
`--write` notes in data/elsewhere.csv how far the variants moved the numbers of the smoke preset:
`make check-baseline` allows as much on another machine. Exit code 1 if a part failed.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from thesis_repro import diff, paths, settings
from thesis_repro.files import atomic_json, atomic_write
from thesis_repro.records import commit

FOLDER = paths.root() / ".make" / "arithmetic"
OTHER_TORCH = "torch 2.11"
VARIANTS = {
    "own": {},
    "ATen default": {"ATEN_CPU_CAPABILITY": "default"},
    "ATen AVX2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "oneDNN AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "oneDNN SSE4.1": {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    "1 thread": {"OMP_NUM_THREADS": "1", "SET": "threads=1"},
    "2 threads": {"OMP_NUM_THREADS": "2", "SET": "threads=2"},
    "4 threads": {"OMP_NUM_THREADS": "4", "SET": "threads=4"},
    "bf16": {"SET": "precision=bf16"},
    OTHER_TORCH: {},
}
# Those that compute; the others read and write files, or start processes.
NUMERICAL = (
    "adversarial advprop aip attacks augmented author_code background boundaries budgets "
    "captured corruptions d2a2gan detection diff_augment digits distributed draws evolution "
    "extractors feature_space games gan_blocks gan_networks gan_progressive gans generative "
    "genomes imagenet images m2at made_to_order margin_reweighting masked_gradients "
    "misalignment mixup model_files models moments output_control overfitting quality "
    "replaced robust_detection runner_up saliency split_norms square_attack step_times "
    "surfaces there training transferability virtual_positives waiting wcgan zoo "
    "zoo_references"
).split()
# The fastest of them that follow gradients: `make test` runs these under one variant.
FEW = "adversarial attacks models zoo zoo_references".split()
HOUR = 3600.0  # no test file takes as long, unless it hangs
MARGIN = 1.5  # another machine may move a number so many times as far as the variants did
SHARE = 1 - diff.FEW  # of the numbers moved no further; the worst, of short GANs, went anywhere


def other_torch() -> Path:
    "The Python of an environment with the oldest torch that is supported; made if absent."
    folder = FOLDER.parent / "torch-2.11"
    python = folder / "bin" / "python"
    if not (folder / "done").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        wanted = ["torch==2.11.*", "torchvision==0.26.*"]
        extras = f"{paths.root()}[notebooks,dev,eval,metrics,export]"
        subprocess.run([*install, *wanted, "--editable", extras], check=True)
        (folder / "done").touch()
    return python


def commands(part: str, variant: str, python: Path, few: bool) -> dict[str, list]:
    "The name of each log of a part → what runs; every test file has a process of its own."
    there, how = paths.root() / "tests", VARIANTS[variant].get("SET")
    if part == "notebooks":
        chapters = ("--skip-folder-re", "^(chapters|companions)")
        return {part: [python.with_name("nbdev-test"), paths.root() / "nbs", *chapters]}
    if part == "chapters":
        command = [python, "-m", "thesis_repro", "reproduce", "--preset", "smoke"]
        return {part: command + (["--set", how] if how else [])}
    pytest = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    names = FEW if few else NUMERICAL  # pytest refuses a file that is not there
    return {f"test_{n}": [*pytest, there / f"test_{n}.py"] for n in names}


def ended_well(command: list, log: Path, env: dict, seconds: float | None) -> bool:
    "Whether a command ended with code 0 and in time; what it prints goes to a log."
    with log.open("w", encoding="utf-8") as f:
        how = {"stdout": f, "stderr": subprocess.STDOUT, "env": env, "cwd": paths.root()}
        try:
            code = subprocess.run(command, timeout=seconds, **how).returncode
        except subprocess.TimeoutExpired:
            code = f"none: stopped after {seconds:.0f} s"
        print(f"exit code {code}", file=f)
    return code == 0


def run(part: str, variant: str, few: bool = False) -> dict:
    "Run a part under a variant, unless this commit already has: ok, failed, seconds."
    folder = FOLDER / variant.replace(" ", "-")
    kept, mark = folder / f"{part}.json", f"{commit()}{' few' if few else ''}"
    if kept.exists() and (found := json.loads(kept.read_text()))["commit"] == mark:
        if found["ok"] and not mark.endswith("dirty"):
            return found
    folder.mkdir(parents=True, exist_ok=True)
    python = other_torch() if variant == OTHER_TORCH else Path(sys.executable)
    todo = commands(part, variant, python, few)
    own = {k: v for k, v in VARIANTS[variant].items() if k != "SET"}
    spread = len(todo) > 1 and "OMP_NUM_THREADS" not in own
    own |= {"OMP_NUM_THREADS": "1"} if spread else {}
    env = os.environ | {"JUPYTER_PREFER_ENV_PATH": "1"} | own
    env |= {"THESIS_REPRO_OUTPUTS": str(folder / "outputs")}
    env |= {"PATH": f"{python.parent}{os.pathsep}{env['PATH']}"}
    print(f"{variant}: {part} … (log: {folder.relative_to(paths.root())}/*.log)", flush=True)
    began, seconds = time.monotonic(), HOUR if part == "tests" else None

    def good(name):
        return ended_well(todo[name], folder / f"{name}.log", env, seconds)

    with ThreadPoolExecutor(os.cpu_count() if spread else 1) as pool:
        failed = [name for name, ok in zip(todo, pool.map(good, todo), strict=True) if not ok]
    found = {"ok": not failed, "failed": failed, "seconds": time.monotonic() - began}
    atomic_json(kept, found := found | {"commit": mark})
    return found


def smoke(variant: str) -> diff.Numbers | None:
    "The numbers of the chapters under a variant; None if it has none."
    how = dict([said.split("=")]) if (said := VARIANTS[variant].get("SET")) else {}
    own = settings.load("smoke", **how).variant  # such as with-precision-bf16
    folder = FOLDER / variant.replace(" ", "-") / "outputs" / "smoke" / own
    return diff.numbers(folder) if folder.exists() else None


def moved(variants) -> pd.DataFrame:
    "Every number of the variants beside the machine's own."
    own, sides = smoke("own"), {v: smoke(v) for v in variants if v != "own"}
    found = [diff.moved(own, b).assign(variant=v) for v, b in sides.items() if own and b]
    return pd.concat(found) if found else pd.DataFrame()


def distance(line) -> float:
    "How far a number moved, in the measure of diff.TOLERANCE; nan for times, which say nothing."
    kind, far = diff.kind_of(line.unit), abs(line.delta)
    if kind in ("s", "times"):
        return math.nan
    if kind == "±":
        return far / spread if (spread := float(line.unit[1:])) else math.nan
    return far if kind else far / abs(line.a) if line.a else math.nan


def furthest(lines: pd.DataFrame) -> pd.DataFrame:
    "By kind of number: how far SHARE of the cells and of the columns' means moved, times MARGIN."
    found = pd.DataFrame(index=pd.Index(diff.TOLERANCE, name="kind"))
    far = lines.apply(distance, axis=1) * MARGIN
    for column, these in (("cell", lines.rows == 1), ("column", lines.rows > 1)):
        found[column] = far[these].groupby(lines.unit[these].map(diff.kind_of)).quantile(SHARE)
    return found


def write(lines: pd.DataFrame) -> None:
    "Note in data/elsewhere.csv how far the numbers moved."
    names = ", ".join(lines.variant.unique())
    head = (
        f"# How far {SHARE:.0%} of the numbers of the smoke preset moved at most, times {MARGIN},\n"
    )
    head += f"# under {names}.\n"
    head += "# In the measure of diff.TOLERANCE. Written by make arithmetic WRITE=yes.\n"
    file = paths.root() / "data" / "elsewhere.csv"
    atomic_write(file, head + furthest(lines).to_csv(float_format="%.3g"))
    print(f"{file.relative_to(paths.root())}: written")


def main() -> int:
    "Run what is asked for and print a table."
    parts = ("notebooks", "chapters", "tests")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--few", action="store_true", help="the fastest numerical tests only")
    parser.add_argument("--write", action="store_true", help="note how far the numbers moved")
    given = parser.parse_args()
    table, good = [], True
    for variant in given.variants:
        row = {"variant": variant}
        for part in given.parts:
            found = run(part, variant, given.few)
            good &= found["ok"]
            state = "ok" if found["ok"] else f"FAILED ({', '.join(found['failed'])})"
            row[part] = f"{state}, {found['seconds']:.0f} s"
        table.append(row)
    lines = moved(given.variants) if "chapters" in given.parts else pd.DataFrame()
    for row in table if len(lines) else []:
        states = lines[lines.variant == row["variant"]].state.value_counts()
        row["numbers"] = ", ".join(f"{n} {s}" for s, n in states.items())
    print(tabulate(table, headers="keys"))
    if given.write:
        write(lines)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
