"A recorded step gives the bits of an ordinary one, or says why it cannot be recorded."

import dataclasses

import pytest
import torch
from test_waiting import GANS, METHODS, recipe
from waiting import add_tiny

from thesis_repro import attacks, captured, settings, training
from thesis_repro.draws import Draws
from thesis_repro.files import BadInput
from thesis_repro.images import synthetic_images
from thesis_repro.mixup import Mixup, Plain
from thesis_repro.pieces import piece
from thesis_repro.recipes import SGD, Adam, Classify
from thesis_repro.training import Compute, Length

EAGER = {  # what cannot be recorded, and a word of the reason that is given
    "Free AT": "used again",
    "BiLAW": "second derivatives",
    "MetaMixup": "second derivatives",
}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    "An architecture of two blocks; a CPU does not leave an attack early, as a GPU does not."
    add_tiny(monkeypatch)
    monkeypatch.setattr(attacks.Search, "over", False)
    monkeypatch.setattr(captured, "WARM", 2)


def after(recipe, steps: int, side: int, epochs: int = 2, **how) -> training.Training:
    "A training after so many of its steps, two in an epoch, with eight images in a batch."
    images = synthetic_images(16, side)
    compute = Compute(**{"captured": True, "progress": False} | how)
    t = training.start(recipe, images, Length(epochs, 8), compute=compute)
    for _ in range(steps):
        take_one(t)
    return t


def take_one(t: training.Training) -> None:
    "One step of a training."
    if t.at.step * t.length.batch_size >= len(t.images.y_train):
        t.at.step, t.at.epoch = 0, t.at.epoch + 1
    index = training._place(t).samples.to(t.images.y_train.device)
    training.step(t, t.images.x_train[index].float() / 255, t.images.y_train[index])


def state(t: training.Training) -> list[torch.Tensor]:
    "All tensors that a step changes, and its losses."
    memory = [v for o in t.optimisers.values() for s in o.state.values() for v in s.values()]
    kept = [v for v in t.nets.state_dict().values() if torch.is_tensor(v)]
    return [*kept, *memory, *(loss for _, _, loss, _ in t.pending)]


def ordinary(monkeypatch, *what, **how) -> training.Training:
    "The same training with the same optimisers, and nothing recorded."
    with monkeypatch.context() as m:
        m.setattr(captured, "WARM", 10**9)
        return after(*what, **how)


def equal(a: training.Training, b: training.Training) -> bool:
    return all(torch.equal(x, y) for x, y in zip(state(a), state(b), strict=True))


def same(monkeypatch, *what, **how) -> training.Training:
    "A recorded training, after it was found equal to the ordinary one."
    found = after(*what, **how)
    assert equal(ordinary(monkeypatch, *what, **how), found)
    return found


@pytest.mark.parametrize("name", METHODS)
def test_a_recorded_step_of_a_method_gives_the_same_bits(name, monkeypatch):
    t = same(monkeypatch, recipe(METHODS[name]), 6, 16, epochs=3)
    assert EAGER.get(name, "nothing") in (t.recorder.why or "nothing")
    assert t.recorder.counts["replayed"] or len(t.recorder.ways) > 1 or name in EAGER


SMALL = settings.load("smoke", width=0.25)


@pytest.mark.parametrize("name", GANS)
def test_a_recorded_step_of_a_gan_gives_the_same_bits(name, monkeypatch):
    "Also where its networks learn in turns; one that grows asks for its progress."
    t = same(monkeypatch, GANS[name].scaled(SMALL), 9, 32, epochs=5)
    grows = getattr(GANS[name], "growth", None)
    assert t.recorder.why == ("it asks its draws for progress" if grows else "")
    assert bool(t.recorder.counts["replayed"]) != bool(grows)


def test_bf16_and_clipped_gradients_and_adam_are_recorded_too(monkeypatch):
    plain = dataclasses.replace(recipe(Mixup()), optimiser=Adam(clip=0.1))
    t = same(monkeypatch, plain, 6, 16, precision="bf16")
    assert t.recorder.counts == {"ordinary": 3, "replayed": 3}


@piece
class Layered:
    "A method that decides by chance and by progress, and draws a tensor for each decision."

    def __call__(self, model, x, y, draws):
        factor = draws.scheduled(lambda progress: 1.0 - progress)
        if draws.reached(0.5):
            factor = factor + draws.tensor("late", lambda g: g.random())
        logits = model(x) * draws.choice("by", (1.0, 2.0))
        return torch.nn.functional.cross_entropy(logits, y) * factor.float()


def test_each_way_through_a_step_is_recorded_by_itself(monkeypatch):
    t = same(monkeypatch, recipe(Layered()), 40, 16, epochs=20)
    ways = [{how: value for how, _, value in w.draws.decisions} for w in t.recorder.ways]
    assert len(ways) == 4 and t.recorder.counts["replayed"] >= 20
    assert {(w["reached"], w["choice"]) for w in ways} == {
        (late, by) for late in (False, True) for by in (1.0, 2.0)
    }


def test_further_ways_stay_ordinary(monkeypatch):
    monkeypatch.setattr(captured, "WAYS", 1)
    t = same(monkeypatch, recipe(Layered()), 20, 16, epochs=10)
    assert len(t.recorder.ways) == 1 and "1 recording," in t.recorder.said()


def test_a_smaller_last_batch_is_a_way_of_its_own():
    t = after(recipe(Plain()), 0, 16)
    for n in (8, 8, 8, 5, 8, 5, 5, 5):
        x, y = t.images.x_train[:n].float() / 255, t.images.y_train[:n]
        t.at.step = 0
        training.step(t, x, y)
    assert [w.x.shape[0] for w in t.recorder.ways] == [8, 5]
    assert all(w.recording for w in t.recorder.ways)


def test_an_optimiser_that_begins_again_is_recorded_anew(monkeypatch):
    "Its memory is another then, and the old recording would go on with the former one."
    forgetful = dataclasses.replace(recipe(Plain()), optimiser=Adam())
    phases = Classify.phases

    def fresh(self, nets):
        return tuple(dataclasses.replace(p, fresh=(0.5,)) for p in phases(self, nets))

    monkeypatch.setattr(Classify, "phases", fresh)
    t = same(monkeypatch, forgetful, 12, 16, epochs=6)
    assert t.recorder.ways[0].taken == 6


REFUSED = {
    "a mask chooses how many values there are": lambda model, x, y, draws: x[x > 0.5].mean(),
    "draws from a generator that has a state": lambda model, x, y, draws: 0 * torch.rand(3).mean(),
    "it asks its draws for torch": lambda model, x, y, draws: torch.rand(
        3, generator=draws.torch("noise")
    ).mean(),
    "it asks its draws for step": lambda model, x, y, draws: x.mean() * draws.step,
}


@piece
class Odd:
    "A method with a step that no recording can hold."

    why: str

    def __call__(self, model, x, y, draws):
        return REFUSED[self.why](model, x, y, draws) + model(x).mean()


@pytest.mark.parametrize("why", REFUSED)
def test_what_no_recording_holds_stays_ordinary_and_says_why(why, monkeypatch):
    t = same(monkeypatch, recipe(Odd(why)), 6, 16)
    assert why in t.recorder.said() and not t.recorder.counts["replayed"]


LATE = {
    "a mask chooses how many values there are": lambda x, draws: x[x > 0.5].mean(),
    "a step draws more than the one before": lambda x, draws: draws.tensor(
        "late", lambda g: g.random()
    ).float(),
}


@pytest.mark.parametrize("why", LATE)
def test_what_only_the_recorded_step_asks_for_is_seen(why, monkeypatch):
    "The step counts, its recording does not: all further steps are ordinary."

    @piece
    class Later:
        def __call__(self, model, x, y, draws):
            seen.append(len(y))
            late = LATE[why](x, draws) if len(seen) > 2 else 0.0
            return model(x).mean() + late * model(x).square().mean()

    seen = []
    found = after(recipe(Later()), 7, 16)
    assert found.recorder.why == why and not found.recorder.counts["replayed"]
    seen.clear()
    assert equal(ordinary(monkeypatch, recipe(Later()), 7, 16), found)


def test_a_step_that_remembers_in_python_is_seen_by_its_bits(monkeypatch):
    "What the comparisons above rest on: a leak that no refusal knows makes them fail."

    @piece
    class Counting:
        def __call__(self, model, x, y, draws):
            seen.append(len(y))
            return model(x).mean() * len(seen)

    seen = []
    found = after(recipe(Counting()), 6, 16)
    seen.clear()
    assert not equal(ordinary(monkeypatch, recipe(Counting()), 6, 16), found)


def test_small_draws_reach_the_device_in_one_block():
    r, made = captured.Recorded(), []
    for step in range(3):
        r.fill(Draws(0, step=step, progress=step / 4, samples=torch.arange(4) + step), "cpu")
        flags = r.tensor("flags", lambda g: g.random(3) < 0.5)
        asked = [flags, r.places(), r.scheduled(lambda p: p), r.tensor("one", lambda g: g.random())]
        own = Draws(0, step=step, progress=step / 4, samples=torch.arange(4) + step)
        assert torch.equal(flags, own.tensor("flags", lambda g: g.random(3) < 0.5))
        assert torch.equal(asked[1], own.places()) and asked[2] == step / 4
        made.append([t.untyped_storage().data_ptr() for t in asked])
    assert made[1] == made[2] and len(set(made[2])) == 1 and not r.refused


def test_recorded_and_ordinary_runs_resume_each_other(tmp_path, monkeypatch):
    "A checkpoint has no recordings; the rate and the way of computing are those of the new run."
    images, length = synthetic_images(16, 16), Length(4, 8)
    made = dataclasses.replace(recipe(Plain()), optimiser=SGD(0.01))

    def begun(recorded: bool):
        how = Compute(captured=recorded, progress=False)
        return training.start(made, images, length, compute=how, folder=tmp_path)

    for recorded in (True, False, True):
        t = begun(recorded)
        before = t.at.steps
        for _ in range(2):
            take_one(t)
        training._save(t)
        group = t.optimisers["model"].param_groups[0]
        assert torch.is_tensor(group["lr"]) == recorded == bool(group["fused"])
        assert t.at.steps == before + 2


def test_it_is_off_where_no_gpu_is_and_excludes_compiling(monkeypatch):
    preset = settings.load("smoke", captured="yes", device="cpu")
    assert not Compute.of(preset).captured and not settings.load("thesis").captured
    with pytest.raises(BadInput, match="captured = yes: not with compile = yes"):
        Compute(captured=True, compile=True)
    monkeypatch.setattr(training.distributed, "processes", lambda: 2)
    said = training._steps(recipe(Plain()), "cpu").said()
    assert said == "0 recordings: several processes"


def test_the_record_of_a_run_says_what_was_recorded():
    t = after(recipe(Plain()), 5, 16)
    assert t.recorder.said() == "1 recording, 3 steps ordinary, 2 steps replayed"


@pytest.mark.parametrize("name", ["Madry AT", "AIP fast", "M2AT"])
def test_a_gpu_gives_the_bits_of_ordinary_steps(name, device, monkeypatch):
    if not device.startswith("cuda"):
        pytest.skip("needs a GPU: --device cuda")
    with training.deterministic():
        found = after(recipe(METHODS[name]), 12, 16, epochs=6, device=device)
        assert equal(ordinary(monkeypatch, recipe(METHODS[name]), 12, 16, 6, device=device), found)
    assert not found.recorder.why and found.recorder.counts["replayed"]
