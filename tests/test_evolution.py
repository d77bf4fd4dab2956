"""Evolution: who is fitter, who stays, and that a killed one ends with the same champion."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from test_store import forge

from thesis_repro import evolution, launch, settings, training
from thesis_repro.draws import Draws
from thesis_repro.evolution import (
    CANDIDATE,
    Evolution,
    Evolved,
    Generations,
    Member,
    candidate,
    evolve,
    floor_of,
    members_of,
    survivors,
    trained,
    winner,
)
from thesis_repro.files import BadInput
from thesis_repro.genomes import PLAIN_NET, SPACE, Genome, Layer, Space
from thesis_repro.measures import read_kept, refresh, write_kept
from thesis_repro.mixup import Plain
from thesis_repro.models import Diverged
from thesis_repro.pieces import from_specification, specification
from thesis_repro.recipes import Adam
from thesis_repro.replaced import Taught
from thesis_repro.robustness import evaluate
from thesis_repro.runs import Named, Run
from thesis_repro.store import RunsFailed, Store
from thesis_repro.training import Length

TINY = Genome((Layer(4, pool="max"), Layer(6, pool="max")))
NEAR = Space(widths=(4, 6), kernels=(1, 3), layers=(1, 3), cost=(0.05, 3.0), like=TINY)
RECIPE = replace(CANDIDATE, network=TINY)
REAL = Named("digits10", 80, 40, 40)
R = Run(REAL, replace(RECIPE, method=Plain()), Length(2, 20), 100, label="R")
HOW = Evolution(RECIPE, NEAR, Length(1, 20), 3, 2, 2, floor=0.5)
E = Run(Evolved(REAL, R, HOW), RECIPE, Length(1, 20), label="E")


def a_store(folder, **changes):
    return Store(settings.load("smoke", device="cpu", **{"jobs": 1, **changes}), folder)


def outcome(store):
    "All that an evolution leaves: its members, and the weights of E and of every candidate."
    found = {
        f.name: json.loads((f / "record.json").read_text())["weights"] for f in store.folders()
    }
    return Generations().kept(store, E), found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    store = a_store(tmp_path_factory.mktemp("whole"))
    store.ensure([E])
    return store


def test_fitness():
    def order(*pairs, floor=80):
        members = [Member(TINY, a, t) for a, t in pairs]
        return [(m.accuracy, m.transfer) for m in survivors(members, len(members), floor)]

    assert order((90, 50), (81, 40), (99, 60)) == [(81, 40), (90, 50), (99, 60)]
    assert order((79.9, 0), (80, 99), (50, 0)) == [(80, 99), (79.9, 0), (50, 0)]
    unknown = order((90, math.nan), (85, 99))
    assert unknown[0] == (85, 99)  # where nothing is known, nothing is gained


def test_equals_keep_their_places():
    members = [Member(TINY, 90, 20, born=g) for g in range(3)]
    assert survivors(members, 2, 80) == members[:2]


def test_tournaments():
    members = [Member(TINY, 90, t) for t in (50, 40, 30, 20)]
    wins = [winner(members, 3, 80, Draws(0, step=i)).transfer for i in range(400)]
    # the fittest is among three of four in 3 of 4 cases, the next best wins in the other
    assert set(wins) == {20, 30} and 0.68 < wins.count(20) / 400 < 0.82
    assert winner(members, 4, 80, Draws(7)).transfer == 20


def test_generations_are_drawn_by_the_seed():
    e = Evolution(population=4, children=6)
    members = [Member(g, 90, t) for t, g in enumerate(e.first())]
    assert e.first()[0] == PLAIN_NET and len(set(e.first())) == 4
    assert e.first() == e.first() != replace(e, seed=1).first()
    assert replace(e, own=False).first()[:3] == e.first()[1:]
    known = {m.genome for m in members}
    born = e.next(members, {*known}, 1, 80)
    genomes = [child for child, _ in born]
    assert len({*genomes} | known) == 10 and all(g in SPACE for g in genomes)
    assert born == e.next(members, {*known}, 1, 80) != e.next(members, {*known}, 2, 80)


def test_the_members_of_an_evolution(whole):
    generations = members_of(Generations().kept(whole, E))
    floor = floor_of(whole, E.data)
    images = REAL.images()
    own = whole.weights(candidate(E.data, RECIPE.network))  # not R, which learned longer
    assert floor == 0.5 * evaluate(own, images.x_val, images.y_val)["accuracy"]
    assert [len(g) for g in generations] == [3, 3, 3]
    best = [g[0].fitness(floor) for g in generations]
    assert best == sorted(best)  # nothing that was better is lost
    for g, members in enumerate(generations):
        assert members == survivors(members, 3, floor) and all(m.born <= g for m in members)
        assert all(m.genome in NEAR for m in members)
    net = whole.weights(E)
    champion = E.data.champion(whole)
    assert champion == generations[-1][0].genome
    assert len(net.stages) == 2 + len(champion.layers)
    runs = [candidate(E.data, m.genome) for g in generations for m in g]
    assert all(whole.record(r) or whole.diverged(r) for r in runs)
    assert Generations("accuracy", 2).value(whole, E) == generations[2][0].accuracy


def test_killed_anywhere_it_ends_in_the_same(whole, tmp_path, monkeypatch):
    "Torn down after some steps, again and again: inside trainings and between generations."
    store, step, left = a_store(tmp_path, checkpoint_seconds=0.001), training.step, [0]

    class Killed(BaseException):
        pass

    def counted(*args):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return step(*args)

    monkeypatch.setattr(training, "step", counted)
    deaths = 0
    while not store.record(E):
        left[0] = 7
        try:
            store.ensure([E])
        except Killed:
            deaths += 1
    assert deaths > 3 and outcome(store) == outcome(whole)


def test_killed_between_generations(whole, tmp_path, monkeypatch):
    store, lived, seen = a_store(tmp_path), evolution.lived, []

    class Killed(BaseException):
        pass

    def then_dies(store, data, born, generation):
        found = lived(store, data, born, generation)
        if generation not in seen:
            seen.append(generation)
            raise Killed
        return found

    monkeypatch.setattr(evolution, "lived", then_dies)
    for _ in range(3):
        with pytest.raises(Killed):
            store.ensure([E])
    store.ensure([E])
    assert seen == [0, 1, 2] and outcome(store) == outcome(whole)


CHILD = """
import sys
from pathlib import Path
import test_evolution as t
t.a_store(Path(sys.argv[1]), checkpoint_seconds=0.001).ensure([t.E])
"""


def test_sigkill(whole, tmp_path):
    "A process that is killed outright, and one that goes on."
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    child = subprocess.Popen(command, env=os.environ, stderr=subprocess.DEVNULL)
    ends = time.monotonic() + 300
    while len(list(tmp_path.glob("runs/*/*/*/record.json"))) < 3:
        assert time.monotonic() < ends and child.poll() is None
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    store = a_store(tmp_path)
    assert store.record(E) is None
    store.ensure([E])
    assert outcome(store) == outcome(whole)


def test_a_generation_is_spread_over_the_launcher(tmp_path, monkeypatch):
    seen, side_by_side = [], launch.side_by_side

    def noted(store, attempt, tasks, **words):
        seen.append((words["unit"], len(tasks)))
        return side_by_side(store, attempt, tasks, **words)

    monkeypatch.setattr(launch, "side_by_side", noted)
    a_store(tmp_path).ensure([E])
    runs = [n for unit, n in seen if unit == "run"]
    assert runs == [1, 3, 2, 2, 1]  # R, three generations, E
    assert [n for unit, n in seen if unit == "measurement"] == [3, 2, 2]


def test_a_candidate_that_diverges_is_unfit_and_remembered(tmp_path, monkeypatch):
    step, doomed = training.step, HOW.first()[1]

    def unlucky(t, x, y):
        if t.recipe.network == doomed and t.recipe.method != Plain():
            raise Diverged("the loss is nan at epoch 0, step 0")
        return step(t, x, y)

    monkeypatch.setattr(training, "step", unlucky)
    store = a_store(tmp_path)
    store.ensure([R])
    first = evolve(store, replace(E.data, evolution=replace(HOW, generations=0)))[0]
    [lost] = [m for m in first if m.genome == doomed]
    assert "the loss is nan" in lost.why and lost.accuracy == 0 and first[-1] == lost


def other_code(store, run=None):
    "Let a run (or the evolution of E) seem to be made by other code than today's."
    if run:
        forge(store.home(run), code=run.code() | {"evolution": "x"})
        return
    file = Generations().file(store, E)
    kept = json.loads(file.read_text())
    on, value = (kept[k] for k in ("on", "value"))
    facts = {"code": Generations().code() | {"evolution": "x"}, "environment": kept["environment"]}
    write_kept(file.parent, "generations", on, value, **facts)


@pytest.mark.parametrize("changed", ["nothing", "evolution", "candidate", "R"])
def test_fresh_changed_evolves_again_what_other_code_evolved(whole, tmp_path, changed):
    "E was trained again, on the genome that other code had found, beside its candidates."
    store = a_store(shutil.copytree(whole.folder, tmp_path / "copy"))
    one, *others = trained(store, E.data)
    assert len(trained(store, E.data)) == len(store.folders()) - 2 > 3  # without R and E
    runs = {"nothing": [], "evolution": [None, E], "candidate": [one], "R": [R, E, one, *others]}
    for run in runs[changed]:
        other_code(store, run)
    gone = {"nothing": set(), "evolution": {E}, "candidate": {E, one}, "R": {R, E, one, *others}}
    assert {*refresh(store, [E])} == {r.name for r in gone[changed] & {R, E}}
    assert all((store.record(r) is None) == (r in gone[changed]) for r in (R, E, one, *others))
    if changed != "R":  # without R, nothing can be asked of the evolution
        kept = read_kept(Generations().file(store, E))
        assert (kept is None) == (changed != "nothing") and not Generations().outdated(store, E)
    store.ensure([E])
    assert outcome(store) == outcome(whole) and refresh(store, [E]) == []


def test_any_other_failure_is_told(tmp_path, monkeypatch):
    store = a_store(tmp_path)
    store.ensure([R])
    monkeypatch.setattr(training, "step", lambda *_: 1 / 0)
    with pytest.raises(RunsFailed, match="ZeroDivisionError"):
        evolve(store, E.data)


def test_the_run_is_known_by_how_it_evolves():
    assert from_specification(specification(E)) == E and E.needs() == (R,)
    other = replace(E.data, evolution=replace(HOW, seed=1))
    assert replace(E, data=other).key != E.key
    assert replace(E, recipe=replace(RECIPE, optimiser=Adam())).key != E.key


def test_what_a_preset_can_afford():
    real = Named("cifar10", part="CIFAR-10")
    teacher = Run(real, replace(CANDIDATE, method=Plain()), Length(40, 128), 100)
    data = Evolved(real, teacher)
    smoke, whole = (settings.load(n, "transferability") for n in ("smoke", "thesis"))
    few, all_of_it = data.scaled(smoke).evolution, data.scaled(whole).evolution
    assert all_of_it.candidates == 72 and all_of_it.length == Length(10, 128)
    assert few.candidates == 8 and few.recipe.width == smoke.width
    assert few.length == Length(round(smoke.epochs / 4), smoke.batch_size)
    random = replace(data, evolution=Evolution(population=72, generations=0))
    assert random.scaled(smoke).evolution.candidates == 8
    fewer = settings.load("thesis", "transferability", generations=3)
    short, drawn = (d.scaled(fewer).evolution for d in (data, random))
    assert (short.population, short.children, short.generations) == (8, 8, 3)
    assert short.candidates == drawn.candidates == 32 and not drawn.generations


def test_accuracy_alone(whole):
    "With that aim the most accurate comes first, whatever transfers."
    how = replace(HOW, aim="accuracy", generations=0, floor=0.0)
    [members] = evolve(whole, replace(E.data, evolution=how))
    accuracies = [m.accuracy for m in members]
    assert accuracies == sorted(accuracies, reverse=True)
    assert floor_of(whole, replace(E.data, evolution=how)) == math.inf


def test_a_plan_counts_the_candidates():
    data = replace(E.data, evolution=replace(HOW, generations=0))
    here, other = E.data.foreseen(), data.foreseen()
    assert len(here) == HOW.candidates == 7 and len(other) == 3
    assert len({r.key for r in [*here, *other]}) == 10
    assert {(r.data, r.length, r.recipe) for r in here} == {(Taught(REAL, R), HOW.length, RECIPE)}


def test_bad_input():
    with pytest.raises(BadInput, match="tournament = 3: must be at most the population, 2") as e:
        Evolution(population=2, tournament=3)
    assert "\n" not in str(e.value)
    with pytest.raises(BadInput, match="floor = 1.2"):
        Evolution(floor=1.2)
    with pytest.raises(BadInput, match="must be such as Named"):
        Evolved(REAL, None)
