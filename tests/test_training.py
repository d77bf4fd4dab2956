"""The loop against plain references, and what it does when things go wrong."""

import dataclasses
import os
import random
from dataclasses import dataclass

import pytest
import torch

from thesis_repro import data, files, models, training
from thesis_repro.data import Draws
from thesis_repro.mixup import Mixup, Plain
from thesis_repro.training import Compute, Schedule

QUIET = Compute(progress=False, channels_last=False)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits10", train_size=200, test_size=100, held_out=50)


def network(images, seed=0):
    return models.build(
        "preactresnet18", images.classes, 0.125, 3, images.mean, images.std, seed=seed
    )


def begin(images, method=Plain(), epochs=2, folder=None, **schedule):
    s = Schedule(epochs=epochs, batch_size=40, **schedule)
    return training.start(network(images), method, images, s, 0, QUIET, folder)


# The schedule against torch's own


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
    assert [Schedule().rate(e) for e in range(500)] == pytest.approx(theirs)


def test_cosine_is_torchs_cosine():
    theirs = rates_of_torch(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 60), 60)
    assert [Schedule(epochs=60, kind="cosine").rate(e) for e in range(60)] == pytest.approx(theirs)


# The loop against the plainest one


def test_training_is_plain_sgd(digits):
    ours = training.train(begin(digits, epochs=2, weight_decay=1e-3)).model.double()
    net = network(digits).train()
    sgd = torch.optim.SGD(net.parameters(), 0.1, 0.9, weight_decay=1e-3)
    for epoch in range(2):
        sgd.param_groups[0]["lr"] = (0.1, 0.01)[epoch]
        for step, x, y in data.batches(digits, 40, Draws(0, epoch)):
            # 200 images in batches of 40 are 5 steps: the second point of decay, 1.5 epochs, falls inside the second
            sgd.param_groups[0]["lr"] = 0.1 * 0.1 ** sum(epoch + step / 5 >= d for d in (1.0, 1.5))
            sgd.zero_grad()
            torch.nn.functional.cross_entropy(net(x), y).backward()
            sgd.step()
    theirs = net.double().state_dict()
    for k, v in ours.state_dict().items():
        assert torch.allclose(v, theirs[k], rtol=1e-3, atol=1e-5), k


def test_clipping_bounds_the_step(digits):
    t = begin(digits, epochs=1, clip=1e-3, momentum=0.0, weight_decay=0.0)
    before = [p.detach().clone() for p in t.model.parameters()]
    _, x, y = next(iter(data.batches(digits, 40, Draws(0))))
    training._update(t, x, y)
    moved = torch.cat(
        [(p - b).flatten() for p, b in zip(t.model.parameters(), before, strict=True)]
    ).norm()
    assert moved.item() == pytest.approx(0.1 * 1e-3, rel=1e-3)


def test_evaluation_is_exact_in_odd_batches_and_restores_the_mode(digits):
    net = network(digits).train()
    one = training.evaluate(net, digits.x_test, digits.y_test, batch_size=100)
    odd = training.evaluate(net, digits.x_test, digits.y_test, batch_size=7)
    assert net.training
    assert one["accuracy"] == odd["accuracy"] and one["loss"] == pytest.approx(
        odd["loss"], rel=1e-5
    )


def test_the_best_epoch_is_that_of_the_held_out_images(digits):
    t = training.train(begin(digits, epochs=4))
    seen = [h["held-out accuracy"] for h in t.at.history]
    assert t.at.best["epoch"] == 1 + seen.index(max(seen))
    net = network(digits)
    net.load_state_dict(t.at.best["weights"])
    assert training.evaluate(net, digits.x_val, digits.y_val)["accuracy"] == max(seen)


def test_history_is_the_mean_loss_of_the_epoch(digits):
    losses = []

    @dataclass(frozen=True)
    class Watched:
        def __call__(self, model, x, y, draws):
            loss = Plain()(model, x, y, draws)
            losses.append((loss.item(), len(y)))
            return loss

    t = training.train(begin(digits, Watched(), epochs=1))
    mean = sum(v * n for v, n in losses) / sum(n for _, n in losses)
    assert t.at.history[0]["loss"] == pytest.approx(mean, rel=1e-12)


# Faults


@dataclass(frozen=True)
class BreaksAt:
    step: int

    def __call__(self, model, x, y, draws):
        loss = Plain()(model, x, y, draws)
        return loss * float("nan") if draws.step == self.step else loss


@pytest.mark.parametrize("step", [0, 2, 3])
def test_a_loss_that_is_no_number_stops_the_run_and_names_the_step(digits, tmp_path, step):
    t = begin(digits, BreaksAt(step), folder=tmp_path)
    with pytest.raises(training.Diverged, match=f"epoch 0, step {step}"):
        training.train(t)


def test_a_diverged_run_keeps_the_good_checkpoint(digits, tmp_path):
    @dataclass(frozen=True)
    class Later:
        def __call__(self, model, x, y, draws):
            loss = Plain()(model, x, y, draws)
            return loss * float("nan") if draws.epoch == 1 else loss

    compute = dataclasses.replace(QUIET, checkpoint_seconds=0)
    t = training.start(
        network(digits), Later(), digits, Schedule(epochs=2, batch_size=40), 0, compute, tmp_path
    )
    with pytest.raises(training.Diverged):
        training.train(t)
    state = training.load_checkpoint(tmp_path / "checkpoint.ckpt")
    assert all(torch.isfinite(v).all() for v in state["model"].values() if v.is_floating_point())
    assert (state["at"]["epoch"], state["at"]["step"]) == (0, 5)


@pytest.fixture
def two_checkpoints(tmp_path):
    file = tmp_path / "run.ckpt"
    for step in (1, 2):
        training.save_checkpoint(file, {"step": step, "weights": torch.arange(50.0)})
    return file


def test_every_flipped_bit_is_noticed(two_checkpoints):
    content, rng = two_checkpoints.read_bytes(), random.Random(0)
    for _ in range(100):
        blob = bytearray(content)
        blob[rng.randrange(len(blob))] ^= 1 << rng.randrange(8)
        two_checkpoints.write_bytes(blob)
        with pytest.warns(UserWarning, match="damaged"):
            assert training.load_checkpoint(two_checkpoints)["step"] == 1


def test_every_truncation_is_noticed(two_checkpoints):
    content = two_checkpoints.read_bytes()
    for n in range(0, len(content), len(content) // 20):
        two_checkpoints.write_bytes(content[:n])
        with pytest.warns(UserWarning, match="damaged"):
            assert training.load_checkpoint(two_checkpoints)["step"] == 1


@pytest.mark.parametrize("phase", ["rename of the old", "write", "fsync", "rename of the new"])
def test_a_fault_while_saving_loses_nothing(two_checkpoints, monkeypatch, phase):
    real, calls = os.replace, []

    def replace(a, b):
        calls.append(a)
        if phase == ("rename of the old" if len(calls) == 1 else "rename of the new"):
            raise OSError("fault")
        return real(a, b)

    monkeypatch.setattr(os, "replace", replace)
    if phase == "fsync":
        monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError("fault")))
    if phase == "write":
        monkeypatch.setattr(
            training, "atomic_write", lambda *a, **k: (_ for _ in ()).throw(OSError("fault"))
        )
    with pytest.raises((OSError, files.BadInput)):
        training.save_checkpoint(two_checkpoints, {"step": 3})
    monkeypatch.undo()
    assert training.load_checkpoint(two_checkpoints)["step"] == 2


def test_a_checkpoint_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    training.save_checkpoint(tmp_path / "a.ckpt", {"x": Evil()})
    with pytest.warns(UserWarning):
        assert training.load_checkpoint(tmp_path / "a.ckpt") is None
    assert not (tmp_path / "ran").exists()


def test_no_checkpoint_is_no_error(tmp_path):
    assert training.load_checkpoint(tmp_path / "none.ckpt") is None


# A companion is trained and saved with the rest


@dataclass(frozen=True)
class WithCompanion:
    def companion(self, model, images):
        return torch.nn.Linear(1, 1)

    def __call__(self, model, x, y, draws, companion):
        return Plain()(model, x, y, draws) + companion(torch.ones(1, 1)).square().sum()


def test_a_companion_is_trained_and_resumed(digits, tmp_path):
    whole = training.train(begin(digits, WithCompanion(), folder=tmp_path))
    fresh = begin(digits, WithCompanion())
    assert not torch.equal(whole.companion.weight, fresh.companion.weight)
    again = begin(digits, WithCompanion(), folder=tmp_path)
    assert torch.equal(whole.companion.weight, again.companion.weight)


def test_bf16_and_memory_formats_give_close_losses(digits):
    def loss(**changes):
        compute = dataclasses.replace(QUIET, **changes)
        t = training.start(
            network(digits), Mixup(), digits, Schedule(epochs=1, batch_size=40), 0, compute
        )
        return training.train(t).at.history[0]["loss"]

    exact = loss(channels_last=False)
    assert loss(channels_last=True) == pytest.approx(exact, rel=1e-3)
    assert loss(bf16=True) == pytest.approx(exact, rel=5e-2)


@dataclass(frozen=True)
class Watching:
    "Plain training that writes down where it is told the run stands, and judges an epoch by a rule of its own."

    def __call__(self, model, x, y, draws):
        PLACES.append((draws.progress, draws.samples, y))
        return Plain()(model, x, y, draws)

    def judge(self, model, x, y):
        return {"accuracy": 50.0, "loss": 1.0, "robust accuracy": JUDGED.pop()}


PLACES, JUDGED = [], []


def test_a_method_is_told_its_progress_and_its_samples(digits):
    PLACES.clear()
    JUDGED[:] = [1.0, 7.0, 3.0]  # from the last epoch to the first
    schedule = Schedule(epochs=3, batch_size=60)
    model = models.build("resnet18", 10, 0.125)
    run = training.train(
        training.start(model, Watching(), digits, schedule, compute=Compute(progress=False))
    )
    steps = -(-len(digits.y_train) // 60)
    assert [p for p, _, _ in PLACES] == pytest.approx([i / (3 * steps) for i in range(3 * steps)])
    assert all(torch.equal(digits.y_train[samples], y) for _, samples, y in PLACES)
    assert sorted(torch.cat([s for _, s, _ in PLACES[:steps]]).tolist()) == list(
        range(len(digits.y_train))
    )
    assert run.at.best["epoch"] == 2 and run.at.best["accuracy"] == 7.0
    assert run.at.history[1]["held-out robust accuracy"] == 7.0


@dataclass(frozen=True)
class Poisoned:
    "Plain training whose gradient, not its loss, is no number at one step."

    at: int = 3

    def __call__(self, model, x, y, draws):
        loss = Plain()(model, x, y, draws)
        bias = next(p for n, p in model.named_parameters() if n.endswith("bias"))
        return loss + (
            0 * (bias - bias.detach()).sum().sqrt()
            if (draws.epoch, draws.step) == (1, self.at)
            else 0
        )


def test_weights_that_are_no_numbers_are_never_saved(digits, tmp_path):
    with pytest.raises(
        training.Diverged, match="the weights are not numbers after epoch 1, step 3|the loss is nan"
    ):
        training.train(
            dataclasses.replace(
                begin(digits, Poisoned(), epochs=2, folder=tmp_path), compute=EVERY_STEP
            )
        )
    kept = training.load_checkpoint(tmp_path / "checkpoint.ckpt")
    assert (kept["at"]["epoch"], kept["at"]["step"]) == (1, 3)
    assert all(v.isfinite().all() for v in kept["model"].values())


EVERY_STEP = dataclasses.replace(QUIET, checkpoint_seconds=0.0)
