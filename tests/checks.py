"""The checks of `make test` that compare files.

python tests/checks.py export|clean|parameters|readme|outputs. The tools work on a copy of the tree,
so that what they would change is not mixed up with what you have changed. Prints one line for each
fault and ends with exit code 1 if there are any.
"""

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from thesis_repro import atlas, diff, kept, notebooks, paths, rendering
from thesis_repro.files import atomic_write


def contents(folder: Path) -> dict[str, bytes]:
    "Every file under a folder, by its path."
    left_out = {"__pycache__", ".ipynb_checkpoints"}
    files = (f for f in folder.rglob("*") if f.is_file() and not left_out & {*f.parts})
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in files}


@contextlib.contextmanager
def copied():
    "A copy of the notebooks and the library, for tools that change them."
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "project"
        for name in ("nbs", "thesis_repro"):
            shutil.copytree(paths.root() / name, copy / name)
        shutil.copy(paths.root() / "pyproject.toml", copy)
        yield copy


def changed(tool: str, part: str) -> list[str]:
    "The files of the folder `part` that an nbdev command would change."
    with copied() as copy:
        command = Path(sys.executable).with_name(tool)
        subprocess.run([command], cwd=copy, check=True, stdout=subprocess.DEVNULL)
        before, after = contents(paths.root() / part), contents(copy / part)
    names = sorted(n for n in before.keys() | after.keys() if before.get(n) != after.get(n))
    return [f"{part}/{n}: {tool} would change it: run it" for n in names]


def export() -> list[str]:
    "thesis_repro/ is what nbdev-export makes of the notebooks."
    return changed("nbdev-export", "thesis_repro")


def clean() -> list[str]:
    "The notebooks are as nbdev-clean leaves them."
    return changed("nbdev-clean", "nbs")


def parameters() -> list[str]:
    "Every chapter can be run from the outside."
    return [fault for n in notebooks.chapters() for fault in notebooks.faults(n)]


def readme(write: bool = False) -> list[str]:
    "README.md is what nbs/index.ipynb makes, and docs/atlas.md what the library has."
    for name in ("THESIS_REPRO_DATA", "THESIS_REPRO_OUTPUTS", "THESIS_REPRO_SETTINGS"):
        os.environ.pop(name, None)  # the pages show what is in the project, not on this machine
    faults = []
    for name, make in {"README.md": rendering.readme, "docs/atlas.md": atlas.page}.items():
        file, text = paths.root() / name, make()
        if write:
            atomic_write(file, text)
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            faults.append(f"{name}: is not what the notebooks give: run make readme")
    return faults


def executed(copy: Path) -> bool:
    "Execute the notebooks of a copy, all but chapters and companions; whether they succeeded."
    command = [Path(sys.executable).with_name("nbdev-test"), "nbs", "--save"]
    command += ["--skip-folder-re", "^(chapters|companions)"]
    # one thread each: two notebooks at a time, and the same sums whatever the number of cores
    env = os.environ | {"THESIS_REPRO_ROOT": str(paths.root()), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=copy, env=env).returncode == 0


def exact() -> bool:
    """Whether outputs are compared to the word: where the smoke numbers are those of the baseline.

    On another machine a training may end elsewhere, and verdicts and whole numbers differ.
    """
    baseline = diff.numbers(paths.root() / "tests" / "baseline" / "smoke.csv")
    lines = diff.moved(baseline, diff.numbers("smoke"))
    moved = lines[(lines.state != "same") & ~lines.unit.isin(("s", "times"))]
    if len(moved):
        print(f"{len(moved)} smoke numbers are not those of the baseline: forms are compared only")
    return moved.empty


def outputs(write: bool = False) -> list[str]:
    "What the notebooks keep is what they show today; the chapters as executed at smoke."
    faults, same = [], not write and exact()
    with copied() as copy:
        if not executed(copy):
            faults.append("nbs: notebooks fail: see above")
        for fresh in sorted(copy.glob("nbs/**/*.ipynb")):
            own = paths.root() / fresh.relative_to(copy)
            if own in notebooks.chapters():
                continue
            if write:
                shutil.copy(fresh, own)
            else:
                faults += kept.stale(own, fresh, same)
    for chapter in notebooks.chapters():
        fresh = paths.outputs("smoke") / "notebooks" / chapter.name
        if write and fresh.exists():
            print(*kept.keep_outputs(fresh, chapter), sep="\n")
        elif not fresh.exists():
            faults.append(f"{chapter.name}: not executed at smoke: run make reproduce first")
        else:
            faults += kept.stale(chapter, fresh, same)
    if write:
        subprocess.run(
            [Path(sys.executable).with_name("nbdev-clean")], cwd=paths.root(), check=True
        )
    return faults


def main() -> int:
    "Run one check."
    checks = {f.__name__: f for f in (export, clean, parameters, readme, outputs)}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("check", choices=checks)
    parser.add_argument("--write", action="store_true", help="readme, outputs: write what is new")
    given = parser.parse_args()
    writes = given.check in ("readme", "outputs")
    faults = checks[given.check](*[given.write] * writes)
    print(*faults, sep="\n", end="\n" if faults else "")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
