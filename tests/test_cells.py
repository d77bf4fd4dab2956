"Which cells can still run after one failed."

import pytest

pytest.importorskip("IPython")

from thesis_repro.cells import Lost, names_in


def left_out(*sources: str, fails=(0,)) -> dict[int, int]:
    "Cells that are left out, and the cell that each waits for; cells in `fails` fail if they run."
    lost, found = Lost(), {}
    for i, source in enumerate(sources):
        names = names_in(source)
        if needed := lost.waits_for(names):
            found[i] = needed[0]
            lost.did_not_run(names, needed[0])
        elif i in fails:
            lost.did_not_run(names, i)
        else:
            lost.ran(names)
    return found


@pytest.mark.parametrize(
    "failed, later",
    [
        ("x = 1", "x"),
        ("x = 1", "print(x + 1)"),
        ("x: int = 1", "x"),
        ("x, (y, *z) = f", "z"),
        ("x += 1", "x"),
        ("del x", "x"),
        ("x.y = 3", "x"),
        ("x.y.z[0] = 3", "x.other"),
        ("x['a'] = 3", "x"),
        ("del x[0]", "x"),
        ("x.append(3)", "x"),
        ("x[0] += 3", "x"),
        ("import x", "x.f()"),
        ("import a.b", "a.c"),
        ("import a.b as x", "x"),
        ("from a import b as x", "x"),
        ("from a import *", "anything"),
        ("def x(): pass", "x()"),
        ("async def x(): pass", "x"),
        ("class x: pass", "x()"),
        ("for x in y: pass", "x"),
        ("for i in y:\n    x = i", "x"),
        ("with a as x: pass", "x"),
        ("if a:\n    x = 1", "x"),
        ("try:\n    x = 1\nexcept ValueError:\n    pass", "x"),
        ("while a:\n    x = 1", "x"),
        ("(x := 3)", "x"),
        ("[x := i for i in a]", "x"),
        ("match a:\n    case {'k': x, **rest}: pass", "rest"),
        ("match a:\n    case [1, *x] | x: pass", "x"),
        ("%time x = f()", "x"),
        ("%%time\ny = 1\nx = f()", "x"),
        ("%%capture x\nprint(1)", "x"),
        ("x = !ls", "x"),
        ("x = 1", "%time f(x)"),
        ("x = 1", "%timeit -n 3 f(x)"),
        ("x = 1", "!ls {x}"),
        ("x = 1", "%%time\nf(x)"),
        ("x = (", "x"),
        # used in places where it is easily overlooked
        ("x = 1", "def f(): return x"),
        ("x = 1", "def f(a=x): pass"),
        ("x = 1", "@x\ndef f(): pass"),
        ("x = 1", "f = lambda: x"),
        ("x = 1", "class A(x): pass"),
        ("x = 1", "class A:\n    y = x"),
        ("x = 1", "class A:\n    def f(self): return x"),
        ("x = 1", "[i for i in range(x)]"),
        ("x = 1", "[x for i in a]"),
        ("x = 1", "{i: j for i in a if x}"),
        ("x = 1", "f'{x}'"),
        ("x = 1", "x += 1"),
        ("x = 1", "x[0] = 1"),
        ("x = 1", "x.y = 1"),
        ("x = 1", "del x"),
        ("x = 1", "for i in x: pass"),
        ("x = 1", "for x in x: pass"),
        ("x = 1", "with x: pass"),
        ("x = 1", "while x: pass"),
        ("x = 1", "if a: pass\nelif x: pass"),
        ("x = 1", "try: pass\nexcept x: pass"),
        ("x = 1", "match a:\n    case x.y: pass"),
        ("x = 1", "match a:\n    case 1 if x: pass"),
        ("x = 1", "y: x = 1"),
        ("x = 1", "if a:\n    x = 2\nx"),
        ("x = 1", "await x"),
        ("x = 1", "try:\n    pass\nfinally:\n    x"),
    ],
)
def test_what_needs_something_lost_is_left_out(failed, later):
    assert left_out(failed, later, "other") == {1: 0} | ({2: 0} if "*" in failed[-1] else {})
    assert left_out("other = 1", later) == {}  # it is because of the name


@pytest.mark.parametrize(
    "later",
    [
        "y = 1",
        "x = 2\nx",
        "x = f()",
        "import x\nx.f()",
        "from a import x\nx",
        "def x(): return x()",
        "def f(x): return x",
        "lambda x: x",
        "[x for x in a]",
        "{x: x for x in a}",
        "def f():\n    x = 1\n    return x",
        "for x in a:\n    print(x)",
        "with a as x:\n    print(x)\nx",
        "with a:\n    x = 3\nx",
        "a.x = 1",
        "f(x=3)",
        "'x'",
        "x, y = 1, 2\nx",
        "try: pass\nexcept E as x: x",
        "match a:\n    case x: x",
        "%matplotlib inline",
        "class A:\n    x = 1",
    ],
)
def test_what_does_not_need_it_runs(later):
    assert left_out("x = 1", later) == {}


def test_what_a_left_out_cell_would_have_made_is_lost_too():
    assert left_out("a = 1", "b = a", "c = b", "d = 1", "c, d") == {1: 0, 2: 0, 4: 0}


def test_a_name_that_is_made_again_is_there_again():
    assert left_out("x = 1", "x", "x = 2", "x") == {1: 0}
    assert left_out("x = 1", "for x in a: pass", "x") == {2: 0}  # perhaps it was not
    assert left_out("def f(): return a", "a = 1", "def f(): return 2", "f()", fails=(1,)) == {}


def test_functions_are_followed():
    cells = ["def f(): return g()", "def g(): return size", "size = 3", "f()", "h = 1"]
    assert left_out(*cells, fails=(2,)) == {3: 2}
    assert left_out("f = lambda: size", "size = 3", "f()", fails=(1,)) == {2: 1}
    assert left_out("class A:\n    def f(self): return a", "a = 1", "A()", fails=(1,)) == {2: 1}
    assert left_out("def f(): return f()", "f()", "a = 1", "f()", fails=(2,)) == {}  # a circle


def test_modules_are_not_changed_by_calls_but_by_assignments():
    assert left_out("import m", "m.seed(0)", "m.f()", fails=(1,)) == {}
    assert left_out("import m", "m.DEBUG = 1", "m.f()", fails=(1,)) == {2: 1}
    assert left_out("x = []", "x.append(1)", "x", fails=(1,)) == {2: 1}


def test_a_failed_star_import_costs_only_names_that_nobody_made():
    cells = ["import m", "from a import *", "m.f(len([1]))", "g(m)", "y = 1", "y"]
    assert left_out(*cells, fails=(1,)) == {3: 1}


def test_the_first_cell_is_named():
    assert left_out("a = 1", "b = 1", "b, a", fails=(0, 1)) == {2: 0}
    assert left_out("a = 1", "a = 2", "a", fails=(0, 1)) == {2: 0}
