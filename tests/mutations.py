"""Small faults, made on purpose: which of them does no test notice?

python tests/mutations.py [MODULE …] [--list | --stale] [--only WORD] [--jobs N]

Each fault changes one constant, sign or comparison in what a method computes, a table plans or a
verdict says; the tests of its module must fail. tests/mutations.txt lists those that may survive,
each with its reason, because nobody could notice: `module: function: fault: reason`. What was
found is kept in .make/mutations/ until the module or its tests change, so that a stopped run goes
on where it was; a module that was gone through is noted in tests/mutations.json, which travels with
the project, and is not tried again while nothing changes. `--stale` lists those that are to be
tried. Exit code 1 if a fault survives that is not listed.
"""

import argparse
import ast
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".make" / "mutations"
NOTED = ROOT / "tests" / "mutations.json"  # module → of, how many faults, which survive
TESTS = {  # module → its tests, the fastest first
    "attacks": ("attacks", "masked_gradients"),
    "strong_attacks": ("attacks",),
    "square_attack": ("square_attack",),
    "robustness": ("attacks", "adversarial"),
    "adversarial": ("adversarial",),
    "mixup": ("mixup", "aip"),
    "models": ("models",),
    "draws": ("draws", "augmented"),
    "ratio_search": ("aip",),
    "fast_search": ("aip",),
    "learned_ratios": ("aip",),
    "aip": ("aip_tables", "aip"),
    "measured_facts": ("aip_tables", "aip"),
    "m2at": ("m2at",),
    "margin_reweighting": ("margin_reweighting",),
    "meeting_classes": ("margin_reweighting",),
    "zoo_attacks": ("zoo_references", "zoo"),
    "zoo_losses": ("zoo_references", "zoo"),
    "zoo_weights": ("zoo_references", "zoo"),
    "zoo": ("zoo_references", "zoo", "background"),
    "verdicts": ("verdicts", "claims"),
    "claims": ("claims",),
    "paired": ("paired",),
    "games": ("games",),
    "moments": ("moments",),
    "gan_blocks": ("gan_blocks", "diff_augment"),
    "gan_networks": ("gan_networks",),
    "gan_progressive": ("gan_progressive", "gan_networks"),
    "gans": ("gans", "diff_augment"),
    "weighted": ("gan_networks", "wcgan"),
    "attention_branch": ("d2a2gan",),
    "certainty": ("d2a2gan",),
    "gan_runs": ("d2a2gan",),
    "quality": ("quality",),
    "augmented": ("augmented",),
    "recogniser": ("wcgan",),
    "preferences": ("wcgan", "survey"),
    "extractors": ("extractors",),
    "generative": ("generative",),
    "face_attributes": ("wcgan",),
    "conditional_gans": ("wcgan",),
    "wcgan": ("wcgan",),
    "d2a2gan": ("d2a2gan",),
    "metric_learning": ("virtual_positives",),
    "adversarial_positives": ("virtual_positives",),
    "corruptions": ("corruptions",),
    "split_norms": ("split_norms",),
    "misalignment": ("misalignment",),
    "average_precision": ("detection",),
}
OTHERS = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*"}
OTHERS |= {ast.Lt: ">", ast.Gt: "<", ast.LtE: ">=", ast.GtE: "<=", ast.Eq: "!="}
LIMIT = 300  # seconds after which a fault counts as noticed: a loop without an end is one


class Fault(NamedTuple):
    "A change of the text from `start` to `end` of a line, in a function of a module."

    module: str
    function: str
    line: int
    start: int
    end: int
    new: str
    old: str
    number: int  # of its kind in the function

    def __str__(self) -> str:
        which = f" (no. {self.number + 1})" if self.number else ""
        return f"{self.module}: {self.function}: {self.old} → {self.new}{which}"


def other_constant(value) -> str:
    "Another constant than this one; empty for one that is no number."
    if isinstance(value, bool):
        return str(not value)
    if isinstance(value, int):
        return str(value + 1)
    return repr(value * 2 if value else 1.0) if isinstance(value, float) else ""


def changes(node: ast.AST, text: str) -> Iterator[tuple[int, int, int, str]]:
    "The changes of a node: line, start, end, what stands there then."
    if isinstance(node, ast.Constant) and (new := other_constant(node.value)):
        yield node.lineno, node.col_offset, node.end_col_offset, new
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield node.lineno, node.col_offset, node.col_offset + 1, ""
    sides = ()
    if isinstance(node, ast.BinOp):
        sides = ((node.left, node.op, node.right),)
    elif isinstance(node, ast.Compare):
        lefts = (node.left, *node.comparators)
        sides = zip(lefts, node.ops, node.comparators, strict=False)
    for left, op, right in sides:
        if type(op) in OTHERS and left.end_lineno == right.lineno:
            between = text[left.end_lineno - 1].encode()[left.end_col_offset : right.col_offset]
            place = left.end_col_offset + between.find(between.strip(b" ()"))
            yield left.end_lineno, place, place + len(between.strip(b" ()")), OTHERS[type(op)]


def skipped(node: ast.AST) -> bool:
    "What computes nothing that a table shows: drawing, the bounds of a piece's fields, slices."
    if isinstance(node, ast.FunctionDef):
        named = [ast.unparse(d) for d in node.decorator_list]
        return node.name.startswith(("draw", "_draw")) or any("figure" in d for d in named)
    return isinstance(node, (ast.Slice, ast.JoinedStr, ast.keyword)) and (
        getattr(node, "arg", "") in ("low", "high", "above", "below")
        or node.__class__ != ast.keyword
    )


def walk(node: ast.AST, name: str = "module") -> Iterator[tuple[str, ast.AST]]:
    "All nodes of a module with the name of the function or class they are in."
    for child in ast.iter_child_nodes(node):
        if not skipped(child):
            inside = isinstance(child, (ast.FunctionDef, ast.ClassDef))
            own = child.name if inside and name == "module" else name
            own = f"{name}.{child.name}" if inside and name != "module" else own
            yield own, child
            yield from walk(child, own)


def faults(module: str) -> list[Fault]:
    "All faults of a module, in the order of its lines."
    source = (ROOT / "thesis_repro" / f"{module}.py").read_text(encoding="utf-8")
    text, found, seen = source.splitlines(), [], {}
    for function, node in walk(ast.parse(source)):
        for line, start, end, new in changes(node, text):
            old = text[line - 1].encode()[start:end].decode()
            kind = function, old, new
            seen[kind] = seen.get(kind, -1) + 1
            found.append(Fault(module, function, line, start, end, new, old, seen[kind]))
    return sorted(found, key=lambda f: (f.line, f.start))


def tried(fault: Fault, done) -> None:
    "In a child: run the tests on a copy of the library with the fault; tell whether they fail."
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        for name in ("data", "nbs", "docs", "tests", "settings.ini", "pyproject.toml", "README.md"):
            (home / name).symlink_to(ROOT / name)
        how = {"ignore": shutil.ignore_patterns("__pycache__")}
        package = Path(shutil.copytree(ROOT / "thesis_repro", home / "thesis_repro", **how))
        file = package / f"{fault.module}.py"
        lines = [line.encode() for line in file.read_text(encoding="utf-8").split("\n")]
        line = lines[fault.line - 1]
        new = line[: fault.start] + fault.new.encode() + line[fault.end :]
        lines[fault.line - 1] = new
        file.write_bytes(b"\n".join(lines))
        for name in [n for n in sys.modules if n.partition(".")[0] == "thesis_repro"]:
            del sys.modules[name]  # or the library without the fault would be tested
        os.environ |= {"THESIS_REPRO_ROOT": folder, "PYTHONPATH": folder, "OMP_NUM_THREADS": "1"}
        sys.path[:0] = [folder, str(home / "tests")]
        os.chdir(folder)
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 1)
            os.dup2(nothing.fileno(), 2)
        import pytest

        files = [str(home / "tests" / f"test_{name}.py") for name in TESTS[fault.module]]
        codes = (int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", f])) for f in files)
        done.put(next((code for code in codes if code), 0))


def noticed(fault: Fault) -> bool:
    "Whether a test fails with the fault, or does not end."
    context = multiprocessing.get_context("fork")
    done = context.SimpleQueue()
    child = context.Process(target=tried, args=(fault, done))
    child.start()
    child.join(LIMIT)
    if child.is_alive():
        child.kill()
        child.join()
        return True
    # not by its exit code: a child of a thread may end with 1 after tests that passed
    return done.empty() or done.get() != 0


def allowed() -> dict[str, str]:
    "The faults that may survive, and why."
    lines = (ROOT / "tests" / "mutations.txt").read_text(encoding="utf-8").splitlines()
    found = (line.rpartition(": ") for line in lines if line and not line.startswith("#"))
    return {fault: why for fault, _, why in found}


def mark(module: str) -> str:
    "A checksum of what decides whether a fault of a module is noticed."
    from thesis_repro.files import sha256

    files = [ROOT / "tests" / f"test_{name}.py" for name in TESTS[module]]
    files += [ROOT / "thesis_repro" / f"{module}.py"]
    texts = [f.read_bytes() for f in files]
    return sha256(b"\0".join(texts))


def tell_apart(fault: Fault):
    "SystemExit unless the tests pass without the fault and fail on a module that cannot be read."
    copies = [fault._replace(new=fault.old), fault._replace(new="(")]
    with ThreadPoolExecutor(1) as pool:  # as the others run
        found = [*pool.map(noticed, copies)]
    if found[0]:
        raise SystemExit(f"{fault.module}: its tests fail without any fault")
    if not found[1]:
        raise SystemExit(f"{fault.module}: its tests do not run on the copy that has the fault")


def _told() -> dict[str, dict]:
    "All that tests/mutations.json says."
    return json.loads(NOTED.read_text(encoding="utf-8")) if NOTED.exists() else {}


def noted(module: str) -> dict | None:
    "What was found of a module that was gone through and has not changed."
    told, now = _told().get(module, {}), {"of": mark(module), "faults": len(faults(module))}
    return told if now.items() <= told.items() else None


def note(module: str, found: dict[str, bool]) -> None:
    "Note that all faults of a module were tried."
    told = {"of": mark(module), "faults": len(found)}
    told["survive"] = [fault for fault, seen in found.items() if not seen]
    kept = dict(sorted((_told() | {module: told}).items()))
    NOTED.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def judged(module: str, word: str, jobs: int) -> dict[str, bool]:
    "Which faults of a module are noticed; what is known already is not tried again."
    if told := noted(module):
        return {str(f): str(f) not in told["survive"] for f in faults(module) if word in str(f)}
    file, of = FOLDER / f"{module}.json", mark(module)
    known = json.loads(file.read_text()) if file.exists() else {}
    known = known if known.get("of") == of else {"of": of, "noticed": {}}
    FOLDER.mkdir(parents=True, exist_ok=True)
    asked = [f for f in faults(module) if word in str(f)]
    left = [f for f in asked if str(f) not in known["noticed"]]
    if left:
        tell_apart(left[0])
    with ThreadPoolExecutor(jobs) as pool:
        for i, (fault, seen) in enumerate(zip(left, pool.map(noticed, left), strict=True)):
            known["noticed"][str(fault)] = seen
            file.write_text(json.dumps(known, indent=1, ensure_ascii=False))
            print(f"{i + 1}/{len(left)} {'' if seen else 'SURVIVES '}{fault}", flush=True)
    found = {str(f): known["noticed"][str(f)] for f in asked}
    if not word:
        note(module, found)
    return found


def main() -> int:
    "Make the faults of some modules, and say which survive."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=", ".join(TESTS))
    parser.add_argument("--list", action="store_true", help="only list the faults")
    parser.add_argument("--stale", action="store_true", help="only list the modules to be tried")
    parser.add_argument("--only", default="", metavar="WORD", help="faults whose line has this")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="at once (2)")
    given = parser.parse_args()
    modules = given.modules or list(TESTS)
    if unknown := set(modules) - TESTS.keys():
        parser.error(f"{', '.join(unknown)}: known are {', '.join(TESTS)}")
    if given.stale:
        print(*(m for m in modules if noted(m) is None), sep="\n")
        return 0
    if given.list:
        print(*(f for m in modules for f in faults(m) if given.only in str(f)), sep="\n")
        return 0
    import matplotlib  # noqa: F401  what every child would import by itself
    import pandas  # noqa: F401
    import scipy.stats  # noqa: F401
    import torchvision  # noqa: F401

    found = {k: v for m in modules for k, v in judged(m, given.only, given.jobs).items()}
    may, survivors = allowed(), [fault for fault, seen in found.items() if not seen]
    print(*(f"{s}: {may.get(s, 'NOT LISTED')}" for s in survivors), sep="\n")
    print(f"{len(found)} faults, {len(survivors)} survive, {len(may.keys() & found)} may")
    return 1 if set(survivors) - may.keys() else 0


if __name__ == "__main__":
    sys.exit(main())
