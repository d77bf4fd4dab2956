"Fingerprints of code: what a result rests on changes them, and nothing else does."

import ast
import importlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from thesis_repro import code
from thesis_repro.attacks import PGD
from thesis_repro.code import changed, fingerprint
from thesis_repro.mixup import Mixup, Plain
from thesis_repro.recipes import Classify
from thesis_repro.runs import Named, Run

RUN = Run(Named("digits10"), Classify("resnet18", Mixup()))


@pytest.fixture
def edited(monkeypatch):
    "A function that changes a text of the library, as the next process would read it."
    monkeypatch.setattr(code, "_TEXTS", dict(code._TEXTS))

    def forget():
        code._module.cache_clear()
        code.rests_on.cache_clear()

    def edit(module, old, new):
        text = code._TEXTS[f"thesis_repro.{module}"]
        assert text.count(old) == 1, (module, old, text.count(old))
        code._TEXTS[f"thesis_repro.{module}"] = text.replace(old, new)
        forget()

    yield edit
    forget()


def of(*kinds) -> dict:
    return fingerprint(kinds)


# What counts


def test_a_number_in_a_function_that_is_called_counts(edited):
    before = of(Mixup)
    edited("mixup", "torch.lerp(full(b), full(a), lam)", "torch.lerp(full(b), full(a), 0.9 * lam)")
    assert changed(before, of(Mixup)) == ["mixup"]


def test_a_function_of_another_module_that_is_called_counts(edited):
    before = of(Mixup)
    edited("draws", "return min(int(self.progress * n), n - 1)", "return int(self.progress * n)")
    assert changed(before, of(Mixup)) == ["draws"]


def test_a_default_and_a_constant_count(edited):
    before = of(PGD), of(Mixup)
    edited("attacks", "fill: float = field(1.0,", "fill: float = field(0.9,")
    edited("mixup", 'LOSSES = {"ce": cross_entropy,', 'LOSSES = {"ce": binary_cross_entropy,')
    assert changed(before[0], of(PGD)) == ["attacks"]
    assert changed(before[1], of(Mixup)) == ["mixup"]


def test_comments_docstrings_and_layout_do_not_count(edited):
    before = of(Mixup)
    line = "mixed = torch.lerp(full(b), full(a), lam)"
    edited("mixup", line, f"# a comment\n\n    {line.replace(', full', ' ,   full')}  # another")
    edited("mixup", "Training on mixed pairs (eq. 7.2–7.4) at a layer", "Something else")
    assert of(Mixup) == before


def test_what_a_class_does_not_rest_on_does_not_count(edited):
    before = of(Plain)
    edited("mixup", "many = n if self.per == ", "many = 2 if self.per == ")  # in Beta
    assert of(Plain) == before and changed(before, of(Mixup)) != []


def test_plumbing_does_not_count(edited):
    before = RUN.code()
    assert before.keys() & code.PLUMBING == set()
    edited("files", "return [plain(v) for v in value]", "return [*map(plain, value)]")
    assert fingerprint([*map(type, (RUN, RUN.data))]).keys() & code.PLUMBING == set()


@pytest.mark.parametrize(
    "module, old, new",
    [
        ("training", "loss.backward()", "(2 * loss).backward()"),
        ("images", "return x / 255", "return x / 256"),
        ("models", 'mode="fan_out"', 'mode="fan_in"'),
        ("recipes", "return self.factor ** sum(", "return 1.0 * self.factor ** sum("),
        ("robustness", "100 * correct / len(y)", "99 * correct / len(y)"),
        ("data", 'stand_in: str = "",', 'stand_in: str = "x",'),
        ("checkpoints", "v.detach().cpu().clone() if tensor", "2 * v if tensor"),
    ],
)
def test_every_part_of_the_way_to_a_number_is_in_a_runs_fingerprint(edited, module, old, new):
    from thesis_repro import runs

    before = RUN.code()
    runs._code.cache_clear()
    edited(module, old, new)
    assert changed(before, RUN.code()) == [module]
    runs._code.cache_clear()


def test_names_that_get_values_together_count():
    module = code.Module("m", "A, B = 1, 2\n(C, [D, E]), F.g = x\nG: int = 3\nfor h in A: pass")
    assert {*module.defined} == {"A", "B", "C", "D", "E", "G", "h"}


@pytest.mark.parametrize(
    "name, module, old, new",
    [
        ("svhn", "data", "classes=10, flip=False)", "classes=10, flip=True)"),
        ("glyphs", "glyphs", "def painted() -> Source:", "def painted(of=1) -> Source:"),
        ("digits10", "digits", "def composed(name: str)", "def composed(name: str, of=1)"),
    ],
)
def test_the_reader_of_its_data_set_is_in_a_runs_fingerprint(edited, name, module, old, new):
    "Nothing but a dictionary led to it, so that a change of it aged no run."
    from thesis_repro import runs

    runs._code.cache_clear()
    run, other = replace(RUN, data=Named(name)), replace(RUN, data=Named("mnist"))
    before, apart = run.code(), other.code()
    runs._code.cache_clear()
    edited(module, old, new)
    assert changed(before, run.code()) == [module] and other.code() == apart
    runs._code.cache_clear()


def test_a_fingerprint_is_the_same_for_every_python(tmp_path):
    "`ast.dump` is not: newer versions have more fields, or leave out the empty ones."

    class Newer(ast.FunctionDef):
        _fields = (*ast.FunctionDef._fields, "type_params")

    (plain,) = ast.parse("def f(x, y=None):\n    return [x, *y, ...]").body
    newer = Newer(**dict(ast.iter_fields(plain)), type_params=[])
    newer.__class__.__name__ = "FunctionDef"
    assert code._words(newer) == code._words(plain)
    assert code._words(plain) != code._words(
        ast.parse("def f(x, y=0):\n    return [x, *y]").body[0]
    )


# A person's own pieces

MINE = """
from pathlib import Path

import helpers_of_a_test
from thesis_repro.mixup import Plain, mix
from thesis_repro.pieces import piece

RATE = 0.5


def halved(loss):
    return RATE * loss


@piece
class NAME:
    n: int = 1

    def __call__(self, model, x, y, draws):
        "A docstring."
        return halved(helpers_of_a_test.twice(Plain()(model, x, y, draws)))


def unused():
    return 1
"""
HELPERS = "def twice(x):\n    return 2 * x\n\n\ndef other(x):\n    return x\n"


@pytest.fixture
def own(tmp_path, monkeypatch):
    "A function that gives the fingerprint of an own piece, from a file with one text replaced."
    monkeypatch.syspath_prepend(tmp_path)
    from thesis_repro import pieces

    monkeypatch.setattr(pieces, "REGISTRY", dict(pieces.REGISTRY))

    def made(old="", new="", helper=HELPERS):
        assert not old or old in MINE
        for name in ("code_of_a_test", "helpers_of_a_test"):
            sys.modules.pop(name, None)
        pieces.REGISTRY.pop("MineOfATest", None)
        text = MINE.replace("NAME", "MineOfATest").replace(old or "\0", new)
        (tmp_path / "code_of_a_test.py").write_text(text)
        (tmp_path / "helpers_of_a_test.py").write_text(helper)
        sys.dont_write_bytecode = True
        importlib.invalidate_caches()
        code._module.cache_clear()
        code.rests_on.cache_clear()
        module = importlib.import_module("code_of_a_test")
        return fingerprint([module.MineOfATest])

    before = sys.dont_write_bytecode
    yield made
    sys.dont_write_bytecode = before
    code._module.cache_clear()
    code.rests_on.cache_clear()


@pytest.mark.parametrize(
    "old, new",
    [
        ("RATE = 0.5", "RATE = 0.6"),
        ("return RATE * loss", "return loss"),
        ("n: int = 1", "n: int = 2"),
        ("twice(Plain()", "other(Plain()"),
    ],
)
def test_an_edit_in_a_file_of_ones_own_counts_wherever_it_is(own, old, new):
    now = own(old, new)
    assert "code_of_a_test.py" in changed(own(), now)


def test_what_the_own_class_does_not_use_does_not_count(own):
    before = own()
    assert own("return 1\n", "return 2\n") == before
    assert own('"A docstring."', '"Another one."') == before
    assert own(helper=HELPERS.replace("return x\n", "return 3 * x\n")) == before


def test_a_helper_in_the_same_folder_counts(own):
    before = own()
    now = own(helper=HELPERS.replace("2 * x", "3 * x"))
    assert changed(before, now) == ["helpers_of_a_test.py"]


def test_what_an_own_class_takes_from_the_library_counts(own, edited):
    before = own()
    assert "mixup" in before
    edited(
        "mixup", "return -(target * F.log_softmax(full(logits), 1)).sum(1)", "return logits[:, 0]"
    )
    assert changed(before, own()) == ["mixup"]


NOTEBOOK = """
import sys
from thesis_repro.code import fingerprint
from thesis_repro.pieces import piece

text = '''
@piece
class Typed:
    m: int
    n: int = {0}

    def __call__(self, model, x, y, draws):
        "A docstring."
        return {1} * x

    @property
    def twice(self):
        return {2} * self.n
'''


def typed(*values):
    import linecache
    name = f"<cell {{values}}>"
    said = text.format(*values)
    linecache.cache[name] = (len(said), None, said.splitlines(True), name)  # as IPython does
    exec(compile(said, name, "exec"), globals())
    return fingerprint([Typed])


first = typed(1, 2, 3)
assert typed(1, 2, 3) == first
for values in ((9, 2, 3), (1, 9, 3), (1, 2, 9)):
    assert typed(*values) != first, values

import cloudpickle, pickle
worker = pickle.loads(cloudpickle.dumps(Typed))
assert fingerprint([worker]) == fingerprint([Typed])
print(cloudpickle.dumps(Typed).hex())
print(fingerprint([Typed]))
"""
WORKER = """
import pickle, sys
from thesis_repro.code import fingerprint
print(fingerprint([pickle.loads(bytes.fromhex(sys.stdin.readline()))]))
"""


def test_a_class_of_a_notebook_counts_with_its_text_and_in_workers_too():
    "A worker gets a copy of the class and cannot read its source."
    words = {"capture_output": True, "text": True, "timeout": 120}
    here = subprocess.run([sys.executable, "-c", NOTEBOOK], **words)
    assert here.returncode == 0, here.stderr
    pickled, said = here.stdout.splitlines()
    there = subprocess.run([sys.executable, "-c", WORKER], input=pickled + "\n", **words)
    assert there.stdout.strip() == said, there.stderr


def test_a_library_that_is_edited_while_it_computes_is_what_was_imported():
    assert {f"thesis_repro.{f.stem}" for f in Path(code.__file__).parent.glob("*.py")} == set(
        code._TEXTS
    )


# A chapter's notebook and the module that it exports

CHAPTER = """
import linecache, pickle, re, sys
from pathlib import Path

import cloudpickle
import thesis_repro
from thesis_repro.code import fingerprint

name = sys.argv[1]
text = Path(thesis_repro.__file__).with_name(f"{name}.py").read_text()
text = re.sub(r"^from [.] import", "from thesis_repro import", text, flags=re.M)
text = re.sub(r"^from [.](\\w)", r"from thesis_repro.\\1", text, flags=re.M)


def run(text):  # cell by cell, as IPython does: the imports are in one of their own
    for i, cell in enumerate(re.split("^# %% .*", text, flags=re.M)):
        file = f"<cell {i}>"
        linecache.cache[file] = (len(cell), None, cell.splitlines(True), file)
        exec(compile(cell, file, "exec"), globals())
    thing = globals()[sys.argv[2]]
    assert thing.__module__ == "__main__"
    copy = pickle.loads(cloudpickle.dumps(thing))
    assert fingerprint([copy]) == fingerprint([thing])
    return fingerprint([thing])


exported = fingerprint([getattr(__import__(f"thesis_repro.{name}", fromlist="x"), sys.argv[2])])
assert run(text) == exported, (run(text), exported)
old, new = sys.argv[3:]
assert text.count(old) == 1
assert run(text.replace(old, new)) != exported
"""


@pytest.mark.parametrize(
    ("module", "name", "old", "new"),
    [
        ("mixup", "Mixup", "lam = ratio(pairs, draws)", "lam = 1 - ratio(pairs, draws)"),
        ("attacks", "PGD", "fill: float = field(1.0,", "fill: float = field(0.9,"),
        ("mixup", "Mixup", "torch.lerp(full(b), full(a), lam)", "torch.lerp(full(b), full(a), 1)"),
        ("mixup", "mix", "view(-1, *[1]", "view(-1, *[2]"),
        ("aip", "Ternary", "zeta: float = field(1.0,", "zeta: float = field(0.9,"),
    ],
    ids=["method", "default", "function below", "function", "library call below"],
)
def test_what_a_notebook_exports_is_the_modules_until_it_is_edited(module, name, old, new):
    words = {"capture_output": True, "text": True, "timeout": 120}
    done = subprocess.run([sys.executable, "-c", CHAPTER, module, name, old, new], **words)
    assert done.returncode == 0, done.stderr
