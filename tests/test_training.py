"""The loop against plain references, and what it does when things go wrong."""

import dataclasses
import os
import random
import sys
import types
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from methods import Doubled, Weighed
from samples import refused

from thesis_repro import checkpoints, data, files, stopping, training
from thesis_repro.augmented import Augmented
from thesis_repro.checkpoints import load_checkpoint, save_checkpoint
from thesis_repro.draws import Draws
from thesis_repro.files import BadInput
from thesis_repro.images import batches
from thesis_repro.mixup import Mixup, Plain
from thesis_repro.models import Diverged
from thesis_repro.recipes import CONSTANT, SGD, Adam, Batch, Classify, Decay, Phase
from thesis_repro.robustness import evaluate
from thesis_repro.runs import Named, Run
from thesis_repro.training import Compute, Length


@pytest.fixture(scope="module")
def digits():
    return data.load("digits10", train_size=200, test_size=100, held_out=50)


@pytest.fixture
def quiet(device):
    return Compute(device=device, progress=False, channels_last=False)


@pytest.fixture
def begin(digits, quiet):
    "A function that begins a run."

    def begun(method=Plain(), epochs=2, folder=None, compute=quiet, recipe=None, **sgd):
        recipe = recipe or Classify("preactresnet18", method, SGD(**sgd), 0.125)
        return training.start(recipe, digits, Length(epochs, 40), 0, compute, folder)

    return begun


def same_state(a: training.Training, b: training.Training) -> bool:
    "Whether two runs have the same bits: networks, optimisers, history, best epoch."

    def equal(u, v):
        if isinstance(u, dict):
            return u.keys() == v.keys() and all(equal(u[k], v[k]) for k in u)
        if isinstance(u, (list, tuple)):
            return len(u) == len(v) and all(map(equal, u, v))
        return torch.equal(u, v) if isinstance(u, torch.Tensor) else u == v

    pairs = [(a.nets.state_dict(), b.nets.state_dict()), (a.at.history, b.at.history)]
    pairs += [(a.optimisers[k].state_dict(), b.optimisers[k].state_dict()) for k in a.optimisers]
    return all(equal(*p) for p in [*pairs, (a.at.best, b.at.best), (a.at.losses, b.at.losses)])


# The decay against torch's own


def rates_of_torch(make, epochs):
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1)
    scheduler, rates = make(sgd), []
    for _ in range(epochs):
        rates.append(sgd.param_groups[0]["lr"])
        sgd.step()
        scheduler.step()
    return rates


def test_steps_are_torchs_multistep():
    theirs = rates_of_torch(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [250, 375]), 500)
    assert [0.1 * Decay()(e / 500) for e in range(500)] == pytest.approx(theirs)


def test_cosine_is_torchs_cosine():
    theirs = rates_of_torch(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 60), 60)
    assert [0.1 * Decay(kind="cosine")(e / 60) for e in range(60)] == pytest.approx(theirs)
    assert {CONSTANT(e / 60) for e in range(61)} == {1.0}


# The loop against the plainest one


def plainest(digits, device, nets, optimisers, phases, epochs=2):
    "The loop without anything that makes it safe or fast."
    d = digits.to(device)
    steps = 0
    for epoch in range(epochs):
        nets.train()
        for step, x, y in batches(d, 40, Draws(0, epoch)):
            # 200 images in batches of 40 are 5 steps: a point of decay falls inside an epoch
            batch = Batch(x, y, Draws(0, epoch, step, (epoch + step / 5) / epochs))
            for name, loss, every, rate in phases:
                if steps % every == 0:
                    optimisers[name].param_groups[0]["lr"] = rate(epoch + step / 5)
                    nets.zero_grad()
                    loss(nets, batch).backward()
                    optimisers[name].step()
            steps += 1
    return nets


def test_training_is_plain_sgd(digits, begin, device):
    recipe = Doubled(Classify("preactresnet18", Plain(), SGD(weight_decay=1e-3), 0.125))
    ours = training.train(begin(recipe=recipe)).nets
    nets = recipe.networks(digits, 0).to(device)
    sgd = torch.optim.SGD(nets.parameters(), 0.1, 0.9, weight_decay=1e-3)

    def loss(nets, batch):
        return F.cross_entropy(nets["model"](batch.x), batch.y)

    def rate(epoch):
        return 0.1 * 0.1 ** sum(epoch >= d for d in (1.0, 1.5))

    theirs = plainest(digits, device, nets, {"": sgd}, [("", loss, 1, rate)])
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-9, atol=1e-11)


def test_two_networks_and_two_optimisers_are_the_plain_loop(digits, begin, device):
    method = Weighed(every=3)
    recipe = Doubled(Classify("preactresnet18", method, width=0.125))
    t = training.train(begin(recipe=recipe))
    nets = recipe.networks(digits, 0).to(device)
    adam = torch.optim.Adam(nets["policy"].parameters(), 3e-3, (0.9, 0.999))
    sgd = torch.optim.SGD(nets["model"].parameters(), 0.1, 0.9, weight_decay=1e-4)

    def rate(epoch):
        return 0.1 * 0.1 ** sum(epoch >= d for d in (1.0, 1.5))

    phases = [
        ("policy", method.policy_loss, 3, lambda epoch: 3e-3),
        ("model", method.joint_loss, 1, rate),
    ]
    plainest(digits, device, nets, {"policy": adam, "model": sgd}, phases)
    torch.testing.assert_close(t.nets.state_dict(), nets.state_dict(), rtol=1e-9, atol=1e-11)
    row = t.at.history[-1]
    assert row["policy lr"] == 3e-3 and row["lr"] == pytest.approx(0.1 * 0.1**2)
    assert {"loss", "policy loss"} <= row.keys()


def test_a_phase_trains_its_own_networks_alone(digits, begin):
    t = begin(Weighed(every=1))
    before = {k: v.clone() for k, v in t.nets.named_parameters()}
    _, x, y = next(batches(t.images, 40, Draws(0)))
    (policy, model) = t.phases
    batch = Batch(x, y, Draws(0))
    t.nets.train()
    training._minimise(t, policy, batch)
    moved = {k.partition(".")[0] for k, v in t.nets.named_parameters() if (v != before[k]).any()}
    assert moved == {"policy"} and all(p.grad is None for p in t.nets["model"].parameters())
    between = {k: v.clone() for k, v in t.nets.named_parameters()}
    training._minimise(t, model, batch)
    moved = {k.partition(".")[0] for k, v in t.nets.named_parameters() if (v != between[k]).any()}
    assert moved == {"model"} and all(p.requires_grad for p in t.nets.parameters())


@dataclass(frozen=True)
class TwoPhases:
    "A recipe of one number that two phases move, which writes down when each is due."

    fresh: tuple = ()
    every: int = 1
    turns: tuple = (1, 0)

    def prepared(self, images):
        return images

    def networks(self, images, seed):
        return nn.ModuleDict({"net": nn.Linear(1, 1, bias=False)})

    def phases(self, nets):
        def loss(name):
            def called(nets, batch):
                WHEN.append((name, batch.draws.epoch, batch.draws.step))
                return nets["net"].weight.sum()

            return called

        def after(nets, batch):
            WHEN.append("after")

        sgd = SGD(0.1, 0.9, 0.0, decay=CONSTANT)
        first = Phase("first", ("net",), sgd, loss("first"), self.every, self.turns)
        how = {"fresh": self.fresh, "after": after}
        return (first, Phase("second", ("net",), sgd, loss("second"), **how))

    def judge(self, nets, images):
        return {"score": 1.0}


WHEN = []


@pytest.mark.parametrize("every, turns", [(1, (1, 0)), (2, (1, 0)), (1, (2, 1)), (2, (3, 2))])
def test_phases_are_due_in_their_order(begin, every, turns):
    WHEN.clear()
    training.train(begin(recipe=TwoPhases(every=every, turns=turns), epochs=4))
    wanted = []
    for n, place in enumerate((e, s) for e in range(4) for s in range(5)):
        first = n % every == 0 and place[0] % turns[0] == turns[1]
        wanted += [("first", *place)] * first + [("second", *place), "after"]
    assert wanted == WHEN


def test_a_phase_can_keep_what_it_computed_for_the_next(begin):
    "The model learns in its own phase through features that the policy's phase computed."

    @dataclass(frozen=True)
    class Kept(type(Weighed())):
        def phases(self):
            (policy,) = super().phases()
            return (replace(policy, every=1, keeps=("model",)),)

        def policy_loss(self, nets, batch):
            batch.kept["logits"] = nets["model"](batch.x)
            return self.weights(nets, batch).square().mean()

        def joint_loss(self, nets, batch):
            return F.cross_entropy(batch.kept["logits"], batch.y)

    t = training.train(begin(Kept(), epochs=1))
    plain = training.train(begin(epochs=1))
    assert t.at.history[0]["loss"] == pytest.approx(plain.at.history[0]["loss"], rel=1e-4)


@pytest.mark.parametrize("levels", range(2, 8))
def test_an_optimiser_begins_anew_once_for_each_level_whatever_the_rounding(levels):
    fresh = tuple(level / levels for level in range(1, levels))
    phase = Phase("critic", ("critic",), SGD(), None, fresh=fresh)
    for total in range(levels, 400):
        found = [step for step in range(total) if phase.forgets(step, total)]
        assert found == [-(-level * total // levels) for level in range(1, levels)], total


@pytest.mark.parametrize("fresh, at", [((0.5,), 5), ((0.55,), 6), ((0.0,), 0), ((), None)])
def test_an_optimiser_forgets_what_it_remembers_at_that_share_of_the_run(begin, fresh, at):
    t = begin(recipe=TwoPhases(fresh=fresh))
    remembered = []
    for _ in range(2):
        for _, x, y in batches(t.images, 40, Draws(0, t.at.epoch), start=t.at.step):
            training.step(t, x, y)
            remembered += [
                s["momentum_buffer"].item() for s in t.optimisers["second"].state.values()
            ]
        t.at.epoch, t.at.step = t.at.epoch + 1, 0
    momentum = 0.0
    for n, seen in enumerate(remembered):
        momentum = 1.0 if n == at else 0.9 * momentum + 1.0
        assert seen == pytest.approx(momentum), n


def test_clipping_bounds_the_step(begin):
    t = begin(epochs=1, clip=1e-3, momentum=0.0, weight_decay=0.0)
    before = [p.detach().clone() for p in t.nets.parameters()]
    _, x, y = next(iter(batches(t.images, 40, Draws(0))))
    training.step(t, x, y)
    pairs = zip(t.nets.parameters(), before, strict=True)
    moved = torch.cat([(p - b).flatten() for p, b in pairs]).norm()
    assert moved.item() == pytest.approx(0.1 * 1e-3, rel=1e-3)


def test_evaluation_is_exact_in_odd_batches_and_restores_the_mode(digits, begin):
    net = (
        begin(recipe=Doubled(Classify("preactresnet18", Plain(), width=0.125)))
        .nets["model"]
        .train()
    )
    one = evaluate(net, digits.x_test, digits.y_test, batch_size=100)
    odd = evaluate(net, digits.x_test, digits.y_test, batch_size=7)
    assert net.training
    assert one["accuracy"] == odd["accuracy"] and one["loss"] == pytest.approx(
        odd["loss"], rel=1e-9
    )


def test_the_best_epoch_is_that_of_the_held_out_images(digits, begin):
    t = training.train(begin(epochs=4))
    seen = [h["held-out accuracy"] for h in t.at.history]
    assert t.at.best["epoch"] == 1 + seen.index(max(seen))
    t.nets.load_state_dict(t.at.best["weights"])
    assert evaluate(t.nets["model"], digits.x_val, digits.y_val)["accuracy"] == max(seen)


def test_the_best_epoch_by_test_images_is_chosen_only_where_that_is_said(digits, begin):
    recipe = Classify("preactresnet18", Plain(), width=0.125, select="test")
    row = training.train(begin(recipe=recipe, epochs=1)).at.history[0]
    assert {k.partition(" ")[0] for k in row} == {"epoch", "loss", "lr", "test"}
    refused(lambda: replace(recipe, select="nope"), "select = nope: must be one of held-out, test")


def test_test_images_that_are_watched_choose_nothing(digits, begin):
    recipe = Classify("preactresnet18", Plain(), width=0.125)
    alone = training.train(begin(recipe=recipe, epochs=2))
    watching = training.train(begin(recipe=replace(recipe, watch="test"), epochs=2))
    for one, two in zip(alone.at.history, watching.at.history, strict=True):
        assert two.keys() - one.keys() == {"test accuracy", "test loss"}
        assert one == {k: two[k] for k in one}
    assert watching.at.best["score"] == alone.at.best["score"]
    same = evaluate(watching.nets["model"], digits.x_test, digits.y_test)
    assert watching.at.history[-1]["test accuracy"] == same["accuracy"]
    refused(lambda: replace(recipe, watch="nope"), "watch = nope: must be one of")


def test_without_held_out_images_nothing_is_chosen_by_them():
    none, recipe = Named("digits10", held_out=0), Classify("resnet18", Plain())
    refused(lambda: Run(none, recipe), "no images are held out", 'select = "test"')
    assert Run(none, replace(recipe, select="test")).data is none
    with pytest.raises(BadInput, match="held out"):
        Run(Augmented(none), recipe)


def test_a_recipe_crops_by_no_more_than_the_data_set(digits):
    for own, asked, wanted in ((4, 2, 2), (1, 2, 1), (4, 4, 4)):
        recipe = Classify("preactresnet18", Plain(), crop=asked)
        assert recipe.prepared(replace(digits, crop=own)).crop == wanted


def test_history_is_the_mean_loss_of_the_epoch(begin):
    losses = []

    def watched(model, x, y, draws):
        loss = Plain()(model, x, y, draws)
        losses.append((loss.item(), len(y)))
        return loss

    t = training.train(begin(watched, epochs=1))
    mean = sum(v * n for v, n in losses) / sum(n for _, n in losses)
    assert t.at.history[0]["loss"] == pytest.approx(mean, rel=1e-12)


# Faults


@dataclass(frozen=True)
class BreaksAt:
    step: int
    epoch: int = 0

    def __call__(self, model, x, y, draws):
        loss = Plain()(model, x, y, draws)
        there = (draws.epoch, draws.step) == (self.epoch, self.step)
        return loss * float("nan") if there else loss


@pytest.mark.parametrize("step", [0, 2, 3])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(begin, tmp_path, step):
    with pytest.raises(Diverged, match=f"the loss is nan at epoch 0, step {step}: try"):
        training.train(begin(BreaksAt(step), folder=tmp_path))


def test_the_phase_whose_loss_is_not_finite_is_named(begin):
    @dataclass(frozen=True)
    class Wild(type(Weighed())):
        def policy_loss(self, nets, batch):
            loss = super().policy_loss(nets, batch)
            return loss * float("inf") if batch.draws.step == 2 else loss

    with pytest.raises(Diverged, match="the loss of the policy is .* at epoch 0, step 2"):
        training.train(begin(Wild()))


def test_a_diverged_run_keeps_the_good_checkpoint(begin, quiet, tmp_path):
    compute = replace(quiet, checkpoint_seconds=0)
    with pytest.raises(Diverged):
        training.train(begin(BreaksAt(0, epoch=1), folder=tmp_path, compute=compute))
    state = load_checkpoint(tmp_path / "checkpoint.ckpt")
    weights = [v for v in state["networks"].values() if v.is_floating_point()]
    assert weights and all(torch.isfinite(v).all() for v in weights)
    assert (state["at"]["epoch"], state["at"]["step"]) == (0, 5)


@dataclass(frozen=True)
class Poisoned:
    "Plain training whose gradient, not its loss, is not finite at one step."

    at: int = 3

    def __call__(self, model, x, y, draws):
        loss = Plain()(model, x, y, draws)
        bias = next(p for n, p in model.named_parameters() if n.endswith("bias"))
        nothing = 0 * (bias - bias.detach()).sum().sqrt()
        return loss + nothing if (draws.epoch, draws.step) == (1, self.at) else loss


def test_weights_that_are_not_finite_are_never_saved(begin, quiet, tmp_path):
    every_step = replace(quiet, checkpoint_seconds=0.0)
    with pytest.raises(Diverged, match="weights are not finite after epoch 1, step 3"):
        training.train(begin(Poisoned(), folder=tmp_path, compute=every_step))
    kept = load_checkpoint(tmp_path / "checkpoint.ckpt")
    assert (kept["at"]["epoch"], kept["at"]["step"]) == (1, 3)
    assert all(v.isfinite().all() for v in kept["networks"].values())


# What a judge gives


@dataclass(frozen=True)
class Judged:
    "Plain training that judges an epoch in its own way."

    found: object

    def __call__(self, model, x, y, draws):
        return Plain()(model, x, y, draws)

    def judge(self, model, x, y):
        return self.found


NUMPY = {"accuracy": np.float64(12.5), "loss": np.float32(1.5), "seen": np.arange(3)}
NUMPY |= {"robust accuracy": np.mean([7.0, 8.0]), "all": {"n": np.int64(3), "t": torch.tensor(2.0)}}


def test_a_judge_that_returns_numbers_of_numpy_damages_no_checkpoint(begin, quiet, tmp_path):
    "Killed in epoch 3, such a run began again, and its checkpoints were called damaged."
    compute = replace(quiet, checkpoint_seconds=0)
    stopped = begin(Judged(NUMPY), epochs=4, folder=tmp_path, compute=compute)
    with pytest.raises(stopping.Stopped), stopping.interruptible():
        training.train(_killed(stopped, epoch=2))
    state = checkpoints.read_checkpoint(tmp_path / "checkpoint.ckpt")
    assert state["at"]["epoch"] == 2 and len(state["at"]["history"]) == 2
    assert {type(v) for v in state["at"]["history"][0].values()} == {int, float, list, dict}
    again = training.train(begin(Judged(NUMPY), epochs=4, folder=tmp_path))
    assert again.at.best["score"] == 7.5 and len(again.at.history) == 4
    assert same_state(again, training.train(begin(Judged(NUMPY), epochs=4)))


def _killed(t, epoch):
    "The run, which is asked to stop in its third step of that epoch."

    def after(nets, batch):
        if (batch.draws.epoch, batch.draws.step) == (epoch, 2):
            os.kill(os.getpid(), 15)

    t.phases = (*t.phases[:-1], replace(t.phases[-1], after=after))
    return t


@pytest.mark.parametrize("score", [float("nan"), np.float32("inf")])
def test_a_score_that_is_not_finite_is_diverged(begin, score):
    with pytest.raises(Diverged, match="after epoch 1: the score of its judge is not finite"):
        training.train(begin(Judged({"accuracy": score, "loss": 1.0})))


@dataclass(frozen=True)
class Hoarding:
    "A method whose network remembers something that is no tensor."

    what: object

    def networks(self, model, images):
        what = self.what

        class Memory(nn.Module):
            def get_extra_state(self):
                return what

            def set_extra_state(self, state):
                pass

        return {"memory": Memory()}

    def joint_loss(self, nets, batch):
        return F.cross_entropy(nets["model"](batch.x), batch.y)


def test_what_could_not_be_read_again_is_not_saved(begin, quiet, tmp_path):
    compute = replace(quiet, checkpoint_seconds=0)
    for what, named in ((np.float64(1), "numpy"), (tmp_path, "PosixPath"), (object(), "object")):
        t = begin(Hoarding(what), folder=tmp_path, compute=compute)
        refused(
            lambda t=t: training.train(t), "checkpoint.ckpt: not saved: ", named, "plain values"
        )
        assert not list(tmp_path.iterdir())
    training.train(begin(Hoarding({"n": [1, "a", None, 2.5]}), epochs=1, folder=tmp_path))
    assert (tmp_path / "checkpoint.ckpt").exists()


# Checkpoints


@pytest.fixture
def two_checkpoints(tmp_path):
    file = tmp_path / "run.ckpt"
    for step in (1, 2):
        save_checkpoint(file, {"step": step, "weights": torch.arange(50.0)})
    return file


def test_every_flipped_bit_is_noticed(two_checkpoints):
    content, rng = two_checkpoints.read_bytes(), random.Random(0)
    for _ in range(100):
        blob = bytearray(content)
        blob[rng.randrange(len(blob))] ^= 1 << rng.randrange(8)
        two_checkpoints.write_bytes(blob)
        with pytest.warns(UserWarning, match="damaged"):
            assert load_checkpoint(two_checkpoints)["step"] == 1


def test_every_truncation_is_noticed(two_checkpoints):
    content = two_checkpoints.read_bytes()
    for n in range(0, len(content), len(content) // 20):
        two_checkpoints.write_bytes(content[:n])
        with pytest.warns(UserWarning, match="damaged"):
            assert load_checkpoint(two_checkpoints)["step"] == 1


@pytest.mark.parametrize("phase", ["rename of the old", "write", "fsync", "rename of the new"])
def test_a_fault_while_saving_loses_nothing(two_checkpoints, monkeypatch, phase):
    real, calls = os.replace, []

    def replaced(a, b):
        calls.append(a)
        if phase == ("rename of the old" if len(calls) == 1 else "rename of the new"):
            raise OSError("fault")
        return real(a, b)

    def fault(*args, **words):
        raise OSError("fault")

    monkeypatch.setattr(os, "replace", replaced)
    if phase == "fsync":
        monkeypatch.setattr(os, "fsync", fault)
    if phase == "write":
        monkeypatch.setattr(checkpoints, "atomic_write", fault)
    with pytest.raises((OSError, files.BadInput)):
        save_checkpoint(two_checkpoints, {"step": 3})
    monkeypatch.undo()
    assert load_checkpoint(two_checkpoints)["step"] == 2


class Evil:
    def __reduce__(self):
        return os.system, ("touch ran",)


def test_a_checkpoint_cannot_run_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(lambda: save_checkpoint(tmp_path / "a.ckpt", {"x": Evil()}), "posix.system")
    monkeypatch.setattr(checkpoints.torch, "load", lambda *a, **k: None)  # somebody else wrote it
    save_checkpoint(tmp_path / "a.ckpt", {"x": Evil()})
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match="going back to the beginning"):
        assert load_checkpoint(tmp_path / "a.ckpt") is None
    assert not (tmp_path / "ran").exists()


def test_no_checkpoint_is_no_error(tmp_path):
    assert load_checkpoint(tmp_path / "none.ckpt") is None


# Resuming


@pytest.mark.parametrize("method", [Plain(), Mixup((0, 1, 2, 3)), Weighed()], ids=str)
def test_a_run_that_is_stopped_anywhere_goes_on_to_the_same_bits(begin, quiet, tmp_path, method):
    "Both optimisers' states, the history with the epoch that was cut, and the best epoch."
    whole = training.train(begin(method, epochs=3, folder=tmp_path / "whole"))
    for epoch in range(3):
        t = begin(method, epochs=3, folder=tmp_path / "cut")
        with pytest.raises(stopping.Stopped), stopping.interruptible():
            training.train(_killed(t, epoch))
    last = begin(method, epochs=3, folder=tmp_path / "cut")
    assert (last.at.epoch, last.at.step) == (2, 3) and last.at.steps == 13
    assert same_state(training.train(last), whole)
    assert same_state(begin(method, epochs=3, folder=tmp_path / "cut"), whole)


def test_a_second_network_is_trained_and_resumed(begin, tmp_path):
    whole = training.train(begin(Weighed(), folder=tmp_path))
    fresh, again = begin(Weighed()), begin(Weighed(), folder=tmp_path)
    weights = [t.nets["policy"][1].weight for t in (whole, fresh, again)]
    assert not torch.equal(weights[0], weights[1]) and torch.equal(weights[0], weights[2])
    memory = again.optimisers["policy"].state_dict()["state"]
    assert {"exp_avg", "exp_avg_sq", "step"} <= memory[0].keys() and same_state(whole, again)


@pytest.mark.parametrize("cut", range(3))
def test_tensorboard_keeps_the_epochs_before_a_stop(begin, quiet, tmp_path, monkeypatch, cut):
    "A writer drops what an earlier one wrote at `purge_step` and later, as TensorBoard's does."
    seen = {}

    class Writer:
        def __init__(self, folder, purge_step):
            for key in [key for key in seen if key[1] >= purge_step]:
                del seen[key]

        def add_scalar(self, name, value, step):
            assert (name, step) not in seen
            seen[name, step] = value

        def close(self):
            seen["closed", 0] = True

    board = types.SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    how = {"epochs": 3, "folder": tmp_path, "compute": replace(quiet, tensorboard=True)}
    with pytest.raises(stopping.Stopped), stopping.interruptible():
        training.train(_killed(begin(Plain(), **how), cut))
    assert {step for name, step in seen if name == "loss"} == set(range(1, cut + 1))
    done = training.train(begin(Plain(), **how))
    assert seen.pop(("closed", 0))
    rows = {(k, row["epoch"]): v for row in done.at.history for k, v in row.items()}
    assert seen == {k: v for k, v in rows.items() if isinstance(v, (int, float))}


def test_a_checkpoint_of_other_networks_is_named_and_kept(begin, tmp_path):
    training.train(begin(Weighed(), folder=tmp_path))
    before = (tmp_path / "checkpoint.ckpt").read_bytes()
    with pytest.raises(BadInput, match="checkpoint.ckpt: it is of other networks .* remove it"):
        begin(Plain(), folder=tmp_path)
    assert (tmp_path / "checkpoint.ckpt").read_bytes() == before


# Precision, places


def test_bf16_and_memory_formats_give_close_losses(begin, quiet):
    def loss(**changes):
        t = begin(Mixup(), epochs=1, compute=replace(quiet, **changes))
        return training.train(t).at.history[0]["loss"]

    exact = loss(channels_last=False)
    assert loss(channels_last=True) == pytest.approx(exact, rel=1e-2)
    assert loss(precision="bf16") == pytest.approx(exact, rel=5e-2)


@dataclass(frozen=True)
class Watching:
    "Plain training that writes down where it is told the run stands, and has a judge of its own."

    def __call__(self, model, x, y, draws):
        PLACES.append((draws.progress, draws.samples, y))
        return Plain()(model, x, y, draws)

    def judge(self, model, x, y):
        return {"accuracy": 50.0, "loss": 1.0, "robust accuracy": JUDGED.pop()}


PLACES, JUDGED = [], []


def test_a_method_is_told_its_progress_and_its_samples(digits, quiet):
    PLACES.clear()
    JUDGED[:] = [1.0, 7.0, 3.0]  # from the last epoch to the first
    recipe = Classify("resnet18", Watching(), width=0.125)
    t = training.train(training.start(recipe, digits, Length(3, 60), compute=quiet))
    steps = -(-len(digits.y_train) // 60)
    assert [p for p, _, _ in PLACES] == pytest.approx([i / (3 * steps) for i in range(3 * steps)])
    assert all(torch.equal(digits.y_train[samples], y.cpu()) for _, samples, y in PLACES)
    seen = torch.cat([s for _, s, _ in PLACES[:steps]])
    assert sorted(seen.tolist()) == list(range(len(digits.y_train)))
    assert t.at.best["epoch"] == 2 and t.at.best["score"] == 7.0
    assert t.at.history[1]["held-out robust accuracy"] == 7.0


def test_weights_and_draws_are_functions_of_the_seed(digits, begin):
    recipe = Classify("preactresnet18", Weighed(), width=0.125)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, second, other = (recipe.networks(digits, seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    for name in ("model", "policy"):
        a, b, c = ([*nets[name].parameters()] for nets in (first, second, other))
        assert all(map(torch.equal, a, b)) and not all(map(torch.equal, a, c))


def test_adam_is_torchs(begin):
    optimiser = Adam(1e-3, (0.5, 0.9), 0.01).make([torch.nn.Parameter(torch.zeros(1))])
    assert optimiser.defaults["betas"] == (0.5, 0.9) and optimiser.defaults["weight_decay"] == 0.01
    with pytest.raises(files.BadInput, match="betas"):
        Adam(betas=(0.5, 1.5))


def test_compute_is_what_a_preset_says(monkeypatch):
    from thesis_repro import settings

    preset = settings.load("smoke", device="cpu", channels_last="no", checkpoint_seconds="7")
    monkeypatch.setenv("THESIS_REPRO_DETERMINISTIC", "1")
    made = Compute.of(preset, progress=False)
    assert made == Compute("cpu", "fp32", False, False, 7.0, False, False, True)
    assert {f.name for f in dataclasses.fields(made)} >= {"device", "deterministic"}
