"Pieces: what a field may be, keys that stay, and a reader that makes nothing but pieces."

import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from samples import refused

import thesis_repro
from thesis_repro import pieces
from thesis_repro.adversarial import Adversarial, After, Mail, Trades
from thesis_repro.attacks import PGD
from thesis_repro.files import BadInput
from thesis_repro.mixup import Beta, Fixed, Mixup, Plain
from thesis_repro.pieces import field, from_specification, piece, specification
from thesis_repro.recipes import SGD, Adam, Classify, Decay
from thesis_repro.runs import Named, Run
from thesis_repro.training import Length

CIFAR = Named("cifar10", part="CIFAR-10")
MANIFOLD = Mixup((0, 1, 2, 3), Beta(2.0), loss="bce")
WEIGHED = Adversarial(PGD(steps=10, step=0.01), weight=After(0.625, Mail()))
COSINE = SGD(0.05, 0.95, 5e-4, True, Decay((), kind="cosine"), 1.0)

# the keys of some runs: if one of them changes, everybody's records of that kind are lost
GOLDEN = {
    "e8e151684020": Run(CIFAR, Classify("resnet18", Plain())),
    "5d01f0894deb": Run(CIFAR, Classify("preactresnet18", MANIFOLD), Length(500), 4),
    "8ce693443bee": Run(
        CIFAR, Classify("wrn34_10", WEIGHED, SGD(0.1), select="test"), Length(120, 128), 1
    ),
    "a127a5ce4720": Run(
        Named("svhn", 5000, 1000, 500, part="SVHN"),
        Classify("resnet18", Adversarial(PGD(loss="kl", start="normal"), loss=Trades()), COSINE),
        Length(76),
        2,
        "bf16",
    ),
    "0cab45a41698": Run(
        Named("npz:/home/me/x.npz@0123456789ab"), Classify("resnet18", Plain(), Adam(), 0.5)
    ),
}
FIRST = GOLDEN["e8e151684020"]


@pytest.fixture
def own(monkeypatch):
    "Two pieces that only one test has."
    monkeypatch.setattr(pieces, "REGISTRY", dict(pieces.REGISTRY))

    @piece
    class Step:
        size: float = field(0.1, above=0, high=1)
        many: int = field(1, low=1)
        on: bool = False
        norm: str = field("linf", one_of=("linf", "l2"))

    @piece
    class Walk:
        step: object = Step()
        turns: tuple[int, ...] = field((1, 2), low=0)
        far: float | None = field(None, above=0)

    return Step, Walk


# Fields


def test_numpy_and_torch_numbers_and_lists_are_taken(own):
    Step, Walk = own
    made = Step(np.float32(0.5), np.int64(3), np.bool_(True), np.str_("l2"))
    assert made == Step(0.5, 3, True, "l2") and hash(made) == hash(Step(0.5, 3, True, "l2"))
    assert [type(v) for v in vars(made).values()] == [float, int, bool, str]
    assert Step(torch.tensor(0.5), torch.tensor(3)) == Step(0.5, 3)
    walk = Walk(turns=[np.int64(3), 4], far=1)
    assert walk == Walk(turns=(3, 4), far=1.0) and type(walk.far) is float
    for turns in ((), np.array([5, 6]), torch.tensor([5, 6])):
        assert Walk(turns=turns).turns == tuple(int(t) for t in turns)
    assert json.dumps(specification(made)) == json.dumps(specification(Step(0.5, 3, True, "l2")))


def test_numbers_of_numpy_give_the_same_key():
    run = Run(CIFAR, Classify("resnet18", Adversarial(PGD(steps=3))), seed=7)
    numbers = replace(
        run,
        seed=np.int64(7),
        recipe=Classify("resnet18", Adversarial(PGD(steps=np.int32(3))), width=np.float64(1)),
    )
    assert numbers == run and numbers.key == run.key


@pytest.mark.parametrize("number", [1e400, -math.inf, math.nan, np.float32("nan"), 10**400])
def test_no_field_takes_what_is_not_finite(own, number):
    refused(lambda: own[0](size=number), "Step: size = ", "must be a number above 0")


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"size": 8}, "size = 8: must be a number above 0 and at most 1"),
        ({"size": "0.1"}, "size = 0.1: must be a number"),
        ({"size": None}, "size = None: must be a number"),
        ({"size": True}, "size = True: must be a number"),
        ({"size": 1j}, "size = 1j: must be a number"),
        ({"size": {"a": 1}}, "size = {'a': 1}: must be a number"),
        ({"size": [0.1]}, "size = [0.1]: must be a number"),
        ({"size": np.array([0.1, 0.2])}, "must be a number"),
        ({"many": 2.0}, "many = 2.0: must be a whole number from 1 on"),
        ({"many": np.float64(2)}, "must be a whole number from 1 on"),
        ({"many": True}, "many = True: must be a whole number"),
        ({"many": 0}, "many = 0: must be a whole number from 1 on"),
        ({"on": 1}, "on = 1: must be yes or no"),
        ({"norm": "l7"}, "norm = l7: must be one of linf, l2"),
        ({"norm": ["linf"]}, "norm = ['linf']: must be one of linf, l2"),
    ],
)
def test_a_value_that_cannot_be_is_refused_in_one_line(own, fields, said):
    refused(lambda: own[0](**fields), f"Step: {next(iter(fields))} = ", said)


@pytest.mark.parametrize(
    "fields", [{"turns": {"a": 1}}, {"turns": [1, {"a": 1}]}, {"turns": "12"}, {"turns": 1}]
)
def test_a_sequence_holds_what_it_may(own, fields):
    refused(lambda: own[1](**fields), "Walk: turns = ", "must be whole numbers from 0 on")


@pytest.mark.parametrize("step", [{"is": "Step"}, {}, [1], {1, 2}, np.array([1, 2])])
def test_no_container_stands_where_a_piece_should(own, step):
    refused(lambda: own[1](step), "Walk: step = ", "must be a piece")


def test_a_long_value_is_not_shown_whole(own):
    assert len(refused(lambda: own[0](size="x" * 10_000), "must be a number")) < 200


def test_a_piece_does_not_change(own):
    with pytest.raises(FrozenInstanceError):
        own[0]().size = 2.0


def test_words_that_choose_are_checked_when_the_piece_is_made():
    "Each of these meant something else in silence once."
    refused(lambda: Classify("resnet18", Plain(), select="nope"), "Classify: select = nope")
    refused(lambda: Decay(kind="linear"), "Decay: kind = linear: must be one of steps, cosine")
    refused(lambda: PGD(loss="dlrr"), "PGD: loss = dlrr")
    refused(lambda: Run(CIFAR, FIRST.recipe, precision="fp16"), "Run: precision = fp16")
    refused(lambda: Length(0), "Length: epochs = 0: must be a whole number from 1 to")
    refused(lambda: Length(1, 0), "Length: batch_size = 0: must be a whole number from 1 to")


# Names


def test_two_modules_cannot_have_one_name(own):
    other = type("Step", (), {"__annotations__": {"size": float}, "__module__": "elsewhere"})
    with pytest.raises(TypeError, match=r"elsewhere\.Step: the name is taken by test_pieces"):
        piece(other)
    assert pieces.REGISTRY["Step"] is own[0]


def test_a_notebooks_copy_of_a_class_takes_no_name():
    copy = type("Plain", (), {"__annotations__": {"loss": str}, "loss": "ce"})
    copy.__module__ = "__main__"
    made = piece(copy)()
    assert pieces.REGISTRY["Plain"] is Plain and specification(made) == {"is": "Plain"}


def test_a_piece_of_a_module_that_nobody_loaded_is_found():
    code = """
import sys
from thesis_repro.pieces import from_specification
made = from_specification({"is": "Mixup", "layers": [0, 1], "ratio": {"is": "Fixed"}})
assert made.ratio.value == 0.5 and "thesis_repro.mixup" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# Keys


def test_golden_keys():
    assert {key: run.key for key, run in GOLDEN.items()} == {key: key for key in GOLDEN}


def test_what_only_names_or_places_is_not_in_the_key():
    run = FIRST
    assert replace(run, home="a/b", label="c", data=Named("cifar10")).key == run.key
    pinned = [Named(f"npz:{folder}/x.npz@0123456789ab") for folder in ("/a", "/b")]
    assert len({replace(run, data=d).key for d in pinned}) == 1
    other = replace(run, data=Named("npz:/a/x.npz@ba9876543210"))
    assert other.key != replace(run, data=pinned[0]).key


LATER = """
import ast
import sys
from pathlib import Path

home = Path(sys.argv[1]) / "thesis_repro"


def parsed(module):
    text = (home / f"{module}.py").read_text(encoding="utf-8")
    return text.splitlines(), ast.parse(text).body


def write(module, lines):
    (home / f"{module}.py").write_text("\\n".join(lines) + "\\n", encoding="utf-8")


def add_field(module, name, field, last=True):
    "A new field, after all others of a class or before the last one."
    lines, body = parsed(module)
    (found,) = (n for n in body if isinstance(n, ast.ClassDef) and n.name == name)
    fields = [n for n in found.body if isinstance(n, ast.AnnAssign)]
    lines.insert(fields[-1].end_lineno if last else fields[-1].lineno - 1, f"    {field}")
    write(module, lines)


def move(module, name, to, head=""):
    "A class moves to a new module, from which its old one imports it."
    lines, body = parsed(module)
    imports = [lines[n.lineno - 1 : n.end_lineno] for n in body if "Import" in type(n).__name__]
    (found,) = (n for n in body if isinstance(n, ast.ClassDef) and n.name == name)
    begin = found.decorator_list[0].lineno - 1
    write(to, [*sum(imports, []), head, *lines[begin : found.end_lineno]])
    write(module, [*lines[:begin], f"from .{to} import {name}", *lines[found.end_lineno :]])


add_field("training", "Length", "warmup: int = pieces.field(0, low=0)")
add_field("recipes", "SGD", "fused: bool = False")
add_field("recipes", "Classify", "average: object = None", last=False)
add_field("runs", "Run", "note: str = ''", last=False)
add_field("runs", "Named", "extra: tuple[int, ...] = (1, 2)", last=False)
add_field("attacks", "PGD", "momentum: float | None = None")
move("mixup", "Beta", "ratios", "Pairs = object")

sys.path[:0] = sys.argv[1:]
import test_pieces
import thesis_repro.mixup
from thesis_repro import attacks, recipes, runs, training

assert Path(thesis_repro.__file__).parent == home
assert thesis_repro.mixup.Beta.__module__ == "thesis_repro.ratios"
assert training.Length().warmup == 0 and attacks.PGD().momentum is None
assert {run.key for run in test_pieces.GOLDEN.values()} == set(test_pieces.GOLDEN)
first = test_pieces.FIRST
assert (first.note, first.data.extra, first.recipe.average) == ("", (1, 2), None)
later = runs.Run(first.data, first.recipe, training.Length(warmup=3))
assert later.key not in test_pieces.GOLDEN
"""


def test_a_new_field_with_a_default_and_a_class_that_moves_change_nobodys_key(tmp_path):
    "A copy of the library, edited as a later version may be, has the golden keys, too."
    here = Path(__file__).parent
    shutil.copytree(Path(thesis_repro.__file__).parent, tmp_path / "thesis_repro")
    words = [sys.executable, "-c", LATER, str(tmp_path), str(here)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_value_that_is_the_default_is_not_written():
    "So `PGD(steps=10)` is `PGD()`, and a step of a quarter of ε is none."
    assert specification(PGD(steps=10)) == specification(PGD()) == {"is": "PGD"}
    assert specification(SGD(decay=Decay((0.5, 0.75)))) == {"is": "SGD"}


@pytest.mark.parametrize("run", GOLDEN.values(), ids=lambda run: run.key)
def test_every_run_survives_its_specification(run):
    text = json.dumps(specification(run), allow_nan=False)
    again = from_specification(json.loads(text))
    assert again == run and again.key == run.key and type(again.recipe) is Classify


def test_what_is_no_piece_cannot_be_written_down(own):
    for thing in (print, object(), float, b"bytes"):
        refused(lambda thing=thing: specification(own[1](thing)), "cannot be written down")


def test_fixed_seeds_are_bounded():
    "A seed beyond 64 bits could not be given to torch."
    refused(lambda: Run(CIFAR, FIRST.recipe, seed=2**70), "Run: seed = ")
    refused(lambda: Length(10**18), "Length: epochs = ")


# Reading

HOSTILE = [
    {"class": "os.system", "command": "touch OWNED"},
    {"is": "os.system", "command": "touch OWNED"},
    {"is": "thesis_repro.files.atomic_write", "path": "OWNED", "content": ""},
    {"is": "Plain", "class": "os.system"},
    {"is": "Plain", "__class__": "x"},
    {"is": "Plain", "loss": {"is": "os.system", "command": "touch OWNED"}},
    {"is": "Mixup", "ratio": [{"is": "Beta"}, {"is": "subprocess.run", "args": "x"}]},
    {"is": "Mixup", "ratio": {"is": ["Beta"]}},
    {"is": "Mixup", "layers": {"0": 1}},
    {"is": ""},
    {"is": None},
    {"is": 5},
    {"is": {"is": "Plain"}},
    {"is": "REGISTRY"},
    {"is": "piece"},
    {"is": "field"},
    {"is": "Path", "args": "/etc"},
    {"is": "Store"},
    {"is": "../mixup.Plain"},
    {"is": "Plain\n", "loss": "ce"},
    {},
    {"loss": "ce"},
    {"is": "Beta", "alpha": 1e400},
    {"is": "Beta", "alpha": 10**400},
    {"is": "Beta", "alpha": float("nan")},
    {"is": "Beta", "alpha": "1"},
    {"is": "Fixed", "value": True},
    {"is": "Run"},
    {"is": "Run", "data": 3, "recipe": 4},
    {"is": "Run", "data": {"is": "Plain"}, "recipe": {"is": "Plain"}},
    {"is": "Run", "data": {"is": "Named", "name": "digits10"}, "recipe": {"is": "PGD"}},
    {"is": "Classify", "network": "resnet18", "method": 3},
    {"is": "Classify", "network": "resnet18", "method": {"is": "Decay"}, "optimiser": 3},
    {"is": "Classify", "network": ["resnet18"], "method": {"is": "Plain"}},
]


@pytest.mark.parametrize("spec", HOSTILE, ids=lambda s: re.sub(r"\W+", " ", json.dumps(s))[:50])
def test_a_hostile_specification_is_one_line_and_runs_nothing(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    modules = set(sys.modules)
    refused(lambda: from_specification(spec))
    assert not list(tmp_path.iterdir())
    assert all(m.startswith("thesis_repro") for m in set(sys.modules) - modules)


@pytest.mark.parametrize("depth", [60, 200, 400, 5000])
@pytest.mark.parametrize("kind", ["pieces", "lists"])
def test_deep_nesting_is_one_line(depth, kind):
    spec = {"is": "Plain"}
    for _ in range(depth):
        spec = [spec] if kind == "lists" else {"is": "Mixup", "ratio": spec}
    refused(lambda: from_specification(spec), "nested")


def test_the_nearest_name_is_told():
    refused(
        lambda: from_specification({"is": "Mixupp"}), "Mixupp: unknown piece: did you mean Mixup"
    )
    refused(lambda: from_specification({"is": "Beta", "alfa": 1}), "Beta: has no field alfa")


# Files of one's own


def test_a_file_of_ones_own_is_read_when_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "REGISTRY", dict(pieces.REGISTRY))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", "")
    file = tmp_path / "mine_of_a_test.py"
    file.write_text(
        "from thesis_repro.pieces import piece\n\n\n@piece\nclass MineOfATest:\n    n: int = 1\n"
    )
    spec = {"is": "MineOfATest", "n": 3}
    refused(lambda: from_specification(spec), "one of your own needs its file: pieces = mine.py")
    pieces.load_pieces(file)
    assert from_specification(spec).n == 3
    pieces.load_pieces(file)  # again, as a command and a preset may both name it


@pytest.mark.parametrize(
    "text", ["1 +", "import nothing_of_that_name", "raise SystemError('x\\ny')"]
)
def test_a_file_of_ones_own_that_cannot_be_used_is_one_line(tmp_path, text, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", "")
    file = tmp_path / f"broken_{len(text)}.py"
    file.write_text(text)
    refused(lambda: pieces.load_pieces(file), f"{file}: cannot be used for pieces")
    absent = tmp_path / "absent.py"
    said = f"{absent}: no such file: name a Python file with your pieces"
    refused(lambda: pieces.load_pieces(absent), said)
    assert file.stem not in sys.modules


def test_everything_inside_is_seen():
    run = FIRST
    names = [type(p).__name__ for p in pieces.inside(replace(run, recipe=Classify("x", MANIFOLD)))]
    assert names == ["Run", "Named", "Classify", "Mixup", "Beta", "SGD", "Decay", "Length"]
    assert [type(p) for p in pieces.inside((Fixed(), (Plain(),)))] == [Fixed, Plain]


def test_bad_input_is_a_value_error():
    assert issubclass(BadInput, ValueError)
