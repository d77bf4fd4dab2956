"""One run in two processes: the same as in one, whatever is trained and done to the processes.

The processes are forked from a warm server and meet by Gloo, except where torchrun itself is asked.
What they assert is seen by their exit codes. Methods are compared in float64, where two processes
and one were measured to differ by 1e-15 of the weights after six steps (by 1e-10 where Adam divides
small gradients by their size), while a missing row, sum or statistic moves them by 1e-3 and more;
1e-9 is allowed. In float32 the six steps make 3e-7 to 3e-5 of it, as much as another memory layout
in one process.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections import Counter

import methods
import pytest
import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from gan import GANS
from methods import NEVER, Doubled, Weighed
from processes import FORK
from torchvision.ops import StochasticDepth

from thesis_repro import (
    checkpoints,
    cli,
    data,
    distributed,
    models,
    paths,
    pieces,
    plan,
    records,
    settings,
    stopping,
    store,
    training,
)
from thesis_repro.adversarial import Adversarial, Trades
from thesis_repro.advprop import AdvProp, Reused
from thesis_repro.aip import aip
from thesis_repro.attacks import PGD
from thesis_repro.attention_branch import AttentionNetwork
from thesis_repro.d2a2gan import AttentionCritic, Consistency
from thesis_repro.files import BadInput, Unwritable
from thesis_repro.gan_networks import DcganGenerator
from thesis_repro.gans import Auxiliary, Gan
from thesis_repro.learned_ratios import MetaMixup
from thesis_repro.m2at import MaskAndMix
from thesis_repro.mixup import Beta, Mixup, Plain
from thesis_repro.models import Diverged
from thesis_repro.pieces import piece
from thesis_repro.recipes import SGD, Classify
from thesis_repro.runs import Named, Run
from thesis_repro.store import RunsFailed, Store
from thesis_repro.training import Compute, Length
from thesis_repro.zoo_losses import LearnableBoundary, TripletLossAdversarial
from thesis_repro.zoo_weights import Bilevel, Free, WeightPerturbation


def _member(rank: int, meeting, target, args):
    "The body of a process: join the group, do what is asked, end with the exit code of a command."
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
    code = 0
    try:
        if meeting:
            dist.init_process_group(
                "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2
            )
        with warnings.catch_warnings(), stopping.interruptible():
            warnings.simplefilter("ignore")
            code = target(*args) or 0
    except stopping.Stopped as e:
        code = e.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)


def pair(folder, target, *args, joined: bool = True) -> list[int]:
    "The exit codes of two processes that do target(*args) together; -signal if one was killed."
    meeting = joined and str(folder / f"meeting-{secrets.token_hex(4)}")
    both = [FORK.Process(target=_member, args=(r, meeting, target, args)) for r in (0, 1)]
    for p in both:
        p.start()
    for p in both:
        p.join(120)
        if p.exitcode is None:
            p.kill()
    return [p.exitcode for p in both]


# The two pairs of functions, and the layer


def _calculus():
    "Derivatives of first and second order against differences, in directions that both share."
    for n in (5, 2, 1):
        draw = torch.Generator().manual_seed(n)
        x = torch.rand(n, 3, generator=draw, dtype=torch.float64, requires_grad=True)
        w = torch.rand(3, generator=draw, dtype=torch.float64, requires_grad=True)

        def cubes(x, w):
            a, b = distributed.Spread.apply(w, w.exp())
            return distributed.Join.apply((a * distributed.Slice.apply(x)) ** 3 + b, len(x))

        assert torch.equal(cubes(x, w), (w * x) ** 3 + w.exp())
        torch.manual_seed(0)
        assert torch.autograd.gradcheck(cubes, (x, w))
        assert torch.autograd.gradgradcheck(cubes, (x, w))


def test_the_rows_and_sums_have_the_derivatives_of_the_whole(tmp_path):
    assert pair(tmp_path, _calculus) == [0, 0]


def _derivatives(norm, join, x, weights):
    "A loss of a layer's output; its gradients; and those of their squares."
    out = join(norm, x)
    loss = (out * weights).tanh().sum()
    wanted = [x, *norm.parameters()]
    first = torch.autograd.grad(loss, wanted, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), wanted)
    return out, loss, *first, *second


def _shared(norm, x):
    "The layer on this process's rows."
    mine = distributed.rows(len(x))
    distributed.SharedNorm.idle = mine.start == mine.stop
    own = dict(norm.named_parameters())
    spread = dict(zip(own, distributed.Spread.apply(*own.values()), strict=True)) if own else {}
    part = torch.func.functional_call(norm, spread, (distributed.Slice.apply(x),))
    return distributed.Join.apply(part, len(x))


def _normalised():
    "The layer against torch's on the whole batch."
    for n, momentum, affine, layout in (
        (5, 0.1, True, torch.channels_last),
        (4, None, True, torch.contiguous_format),
        (3, 0.3, False, torch.contiguous_format),
        (1, 0.1, True, torch.channels_last),
    ):
        draw = torch.Generator().manual_seed(n)
        theirs = nn.BatchNorm2d(4, momentum=momentum, affine=affine).double()
        for p in theirs.parameters():
            p.data = torch.rand(p.shape, generator=draw, dtype=p.dtype)
        ours = models.Staged([nn.BatchNorm2d(4, momentum=momentum, affine=affine).double()])
        ours.stages[0].load_state_dict(theirs.state_dict())
        ours = distributed.share(ours).stages[0]
        for turn in range(5):
            x = 3 + 2 * torch.rand(n, 4, 3, 2, generator=draw, dtype=torch.float64)
            x = x.contiguous(memory_format=layout).requires_grad_()
            weights = torch.rand(x.shape, generator=draw, dtype=torch.float64)
            with contextlib.ExitStack() as how:
                for norm in (ours, theirs):
                    norm.train(turn != 3)
                    if turn == 2:
                        how.enter_context(models.batch_statistics(norm))
                    if turn == 4:
                        how.enter_context(models.frozen_statistics(norm))
                a = _derivatives(ours, _shared, x, weights)
                b = _derivatives(theirs, lambda norm, x: norm(x), x, weights)
            for i, (p, q) in enumerate(zip(a, b, strict=True)):
                torch.testing.assert_close(
                    p, q, rtol=1e-9, atol=1e-9, msg=lambda m, at=(n, turn, i): f"{at}: {m}"
                )
            torch.testing.assert_close(
                ours.state_dict(), theirs.state_dict(), rtol=1e-12, atol=1e-12
            )


def test_the_layer_is_batch_normalisation_of_the_whole_batch(tmp_path):
    assert pair(tmp_path, _normalised) == [0, 0]


def _passes():
    "A network's passes: whole, in parts, of one image, frozen, under autocast."
    for name in ("resnet18", "preactresnet18"):
        alone = models.build(name, 10, 0.0625).double()
        shared = distributed.share(models.build(name, 10, 0.0625).double())
        assert list(shared.state_dict()) == list(alone.state_dict())
        for n in (7, 1):
            x = torch.rand(
                n, 3, 16, 16, generator=torch.Generator().manual_seed(n), dtype=torch.float64
            )
            x.requires_grad_()
            penalised = []
            for net in (alone, shared):
                out = net(net(x, stop=2), start=2)
                slope = torch.autograd.grad(out.square().mean(), x, create_graph=True)[0]
                penalty = (out.square().mean() + slope.square().sum()).reshape(1)
                penalised.append(
                    [out, slope, penalty, *torch.autograd.grad(penalty, [*net.parameters()])]
                )
            torch.testing.assert_close(*penalised, rtol=1e-8, atol=1e-10)
        alone.requires_grad_(False), shared.requires_grad_(False)  # folded into convolutions
        with models.frozen_statistics(alone), models.frozen_statistics(shared):
            torch.testing.assert_close(
                *(torch.autograd.grad(m(x).sum(), x)[0] for m in (alone, shared))
            )
        a, b = alone.float(), shared.float()
        with torch.autocast("cpu", torch.bfloat16):
            images = x.float().detach().repeat(6, 1, 1, 1)
            halves = a(images, stop=1), b(images, stop=1)
            assert halves[1].dtype == halves[0].dtype
            torch.testing.assert_close(*halves, rtol=0.1, atol=0.1)
            assert b(images).dtype == torch.float32


def test_a_pass_of_both_is_the_pass_of_one(tmp_path):
    assert pair(tmp_path, _passes) == [0, 0]


def _messages():
    "Counted: a norm costs one message on the way forwards and one on the way back."
    net = distributed.share(models.build("resnet18", 10, 0.0625))
    norms, seen = sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()), Counter()

    def counted(name, send):
        def sent(*args, **how):
            seen[name] += 1
            return send(*args, **how)

        return sent

    for name in ("all_gather_into_tensor", "all_reduce"):
        setattr(distributed.dist, name, counted(name, getattr(distributed.dist, name)))
    loss = net(torch.rand(4, 3, 16, 16)).sum()
    assert seen == {"all_gather_into_tensor": norms + 1}, seen  # and one for the logits
    seen.clear()
    loss.backward()
    assert seen == {"all_reduce": norms + len(net.stages)}, seen  # and one per segment's weights


def test_a_norm_sends_one_message_each_way(tmp_path):
    assert pair(tmp_path, _messages) == [0, 0]


# Methods


@piece
class Penalty:
    "Cross entropy and the squared length of its gradient in the images."

    def __call__(self, model, x, y, draws):
        x = x.detach().requires_grad_()
        loss = F.cross_entropy(model(x), y)
        return loss + torch.autograd.grad(loss, x, create_graph=True)[0].square().sum()


SHORT = {"attack": PGD(steps=2), "selection": PGD(steps=2)}
KL = PGD(steps=2, loss="kl", start="normal")
METHODS = {
    "plain": Plain(),
    "adversarial": Adversarial(**SHORT),
    "TRADES with AWP": Adversarial(KL, loss=Trades(), perturb=WeightPerturbation(), selection=None),
    "M2AT": Adversarial(**SHORT, mix=MaskAndMix()),
    "manifold mixup": Mixup((1, 2, 3), Beta(2.0)),
    "AIP": aip(rounds=3),
    "features": Adversarial(**SHORT, loss=TripletLossAdversarial()),
    "a second network": Adversarial(**SHORT, loss=LearnableBoundary()),
    "a look ahead": Adversarial(None, loss=Bilevel(), selection=None),
    "one backward pass": Free(selection=None),
    "gradient penalty": Penalty(),
    "learned ratios": MetaMixup(),
    "in turns": Weighed(every=2, turns=(2, 1)),
    "split norms": AdvProp((Adversarial(PGD(steps=2, targeted=True)),)),
    "a gradient reused": Reused(0.05),
}


def classify(method) -> Classify:
    return Classify("resnet18", method, SGD(0.05, clip=5.0), 0.0625)


LOOKS = Gan(
    DcganGenerator(8, (16,)),
    AttentionCritic((8, 8), (8,), (8,), spread="map"),
    terms=(Auxiliary(), Consistency(teacher=AttentionNetwork((8, 8, 8), 1))),
    parts=True,
)
BOTH = GANS | {"D2A2GAN": LOOKS}
RECIPES = {name: classify(method) for name, method in METHODS.items()} | BOTH
ADAMS = {*BOTH, "in turns"}  # gradients that should be zero are divided by their own size
ROUNDED = ("plain", "adversarial", "ACGAN", "WGAN-GP")  # in float32 as well


def images():
    "90 training images in batches of 31, 31 and 28, and 21 held out: no half is like the other."
    return data.load("faint10", train_size=90, test_size=30, held_out=21)


def trained(name: str, double: bool = True) -> dict:
    "What two epochs of a recipe leave: history, best epoch and weights of all its networks."
    recipe = Doubled(RECIPES[name]) if double else RECIPES[name]
    t = training.start(recipe, images(), Length(2, 31), 1, Compute(progress=False))
    training.train(t)
    best = t.at.best["epoch"]
    return {"history": t.at.history, "best": best, "weights": t.nets.state_dict()}


def _train_all(folder):
    for name in RECIPES:
        torch.save(trained(name), folder / f"{name}-{distributed.rank()}")
    for name in ROUNDED:
        torch.save(trained(name, double=False), folder / f"float32 {name}-{distributed.rank()}")


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    "Results of every recipe in two processes, by name and rank."
    folder = tmp_path_factory.mktemp("methods")
    assert pair(folder, _train_all, folder) == [0, 0]
    return lambda name: [torch.load(folder / f"{name}-{r}") for r in (0, 1)]


def equal(a, b, rtol: float, atol: float):
    "Two nested results within a tolerance."
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for k in a:
            equal(a[k], b[k], rtol, atol)
    elif isinstance(a, (list, tuple)):
        for u, v in zip(a, b, strict=True):
            equal(u, v, rtol, atol)
    else:
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", RECIPES)
def test_two_processes_give_what_one_gives(together, name):
    ours, others = together(name)
    equal(ours, others, 0, 0)  # and both have the same bits
    equal(ours, trained(name), rtol=1e-9, atol=1e-9 if name in ADAMS else 1e-11)


@pytest.mark.parametrize("name", ROUNDED)
def test_in_float32_they_differ_by_rounding(together, name):
    equal(together(f"float32 {name}")[0], trained(name, double=False), rtol=1e-2, atol=2e-3)


# Runs, and what is done to them


def small(name="plain", epochs=3, **sgd) -> Run:
    "A run of nine steps."
    recipe = RECIPES[name]
    if name in METHODS:
        recipe = dataclasses.replace(recipe, optimiser=SGD(**{"lr": 0.05} | sgd))
    data = Named("faint10", 90, 30, 21, part="CIFAR-10")
    return Run(data, recipe, Length(epochs, 31), home="tests/runs", label=name)


def store_at(folder, **changes) -> Store:
    words = {"device": "cpu", "precision": "fp32", "jobs": 1, "checkpoint_seconds": 0.0}
    return Store(settings.load("smoke", **words | changes), folder)


def left(folder, run) -> tuple:
    "What a run left, without what it cost."
    record = store_at(folder).record(run)
    weights = checkpoints.read_checkpoint(record.folder / "weights.ckpt")
    return record.metrics, record.history, weights


def _at_step(n: int, fault, ranks=(0, 1)):
    "In the processes `ranks`, the call of `fault` before the n-th training step."
    count, real = itertools.count(), training.step

    def step(t, *batch):
        if next(count) == n and distributed.rank() in ranks:
            fault(t)
        real(t, *batch)

    training.step = step


def _signal(number: int):
    return lambda t: os.kill(os.getpid(), number)


def _make(folder, run, at=-1, number=0, ranks=(), seconds=0.0):
    "Make a run; the processes `ranks` get a signal before a step."
    _at_step(at, _signal(number), ranks)
    store_at(folder, checkpoint_seconds=seconds).make(run, progress=False)


ADVERSARIAL = pytest.param("adversarial", marks=pytest.mark.long)


@pytest.fixture(scope="module", params=[ADVERSARIAL, "WGAN-GP"])
def undisturbed(tmp_path_factory, request):
    "A run that two processes made, and its folder; the generator learns in every second step."
    folder, run = tmp_path_factory.mktemp("undisturbed"), small(request.param)
    assert pair(folder, _make, folder, run) == [0, 0]
    return folder, run


def checkpoint(folder, run) -> dict:
    "Where a run stands on the disk."
    return checkpoints.read_checkpoint(store_at(folder).home(run) / "checkpoint.ckpt")["at"]


def test_a_record_says_in_how_many_processes(undisturbed):
    record = store_at(undisturbed[0]).record(undisturbed[1])
    assert record.cost["processes"] == 2 and "in 2 processes" in record.repeatable
    assert record.cost["images_per_second"] == pytest.approx(3 * 90 / record.cost["seconds"])
    folder, alone = undisturbed[0], dataclasses.replace(undisturbed[1], length=Length(1, 31))
    store_at(folder).make(alone, progress=False)
    known = {p.key for p in plan.paid(folder.parent)}
    assert alone.key in known and record.key not in known, "a plan is for one process"


@pytest.mark.parametrize(
    "ranks", [(0, 1), *(pytest.param((n,), marks=pytest.mark.long) for n in (0, 1))]
)
def test_killed_and_made_again_is_undisturbed(undisturbed, tmp_path, ranks):
    run = undisturbed[1]
    codes = pair(tmp_path, _make, tmp_path, run, 4, signal.SIGKILL, ranks)
    assert [codes[r] for r in ranks] == [-signal.SIGKILL] * len(ranks) and 0 not in codes
    assert (checkpoint(tmp_path, run)["epoch"], checkpoint(tmp_path, run)["step"]) == (1, 1)
    assert pair(tmp_path, _make, tmp_path, run) == [0, 0]
    equal(left(tmp_path, run), left(*undisturbed), 0, 0)


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.long), 1])
def test_a_signal_to_one_stops_both_at_the_same_step(undisturbed, tmp_path, rank):
    run = undisturbed[1]
    assert (
        pair(tmp_path, _make, tmp_path, run, 4, signal.SIGTERM, (rank,), NEVER)
        == [stopping.AGAIN] * 2
    )
    assert (checkpoint(tmp_path, run)["epoch"], checkpoint(tmp_path, run)["step"]) == (1, 2)
    assert pair(tmp_path, _make, tmp_path, run) == [0, 0]
    equal(left(tmp_path, run), left(*undisturbed), 0, 0)


def test_begun_in_two_and_finished_in_one_and_the_other_way_round(tmp_path):
    run, folders = small(epochs=2, lr=0.01), [tmp_path / name for name in ("whole", "two", "one")]
    _make(folders[0], run)
    pair(tmp_path, _make, folders[1], run, 2, signal.SIGTERM, (0,), NEVER)
    with (
        pytest.raises(stopping.Stopped),
        stopping.interruptible(),
        pytest.MonkeyPatch.context() as m,
    ):
        m.setattr(training, "step", training.step)
        _make(folders[2], run, 2, signal.SIGTERM, (0,), NEVER)
    _make(folders[1], run)
    assert pair(tmp_path, _make, folders[2], run) == [0, 0]
    for folder, processes in zip(folders[1:], (1, 2), strict=True):
        equal(left(folder, run), left(folders[0], run), rtol=1e-2, atol=2e-3)
        record = store_at(folder).record(run)
        assert record.repeatable.startswith(
            "within tolerance: computed in 2 parts that differ in machine, processes, threads"
        )
        assert (
            "2 processes, 1 thread(s)" in record.repeatable
            and record.cost["processes"] == processes
        )


def _drifting(folder, run):
    def nudge(t):
        return next(t.nets["model"].parameters()).data.mul_(1 + 1e-6)

    _at_step(4, nudge, ranks=(1,))
    with pytest.raises(RunsFailed, match="weights differ between processes"):
        store_at(folder).ensure([run])
    assert store_at(folder).record(run) is None


def test_weights_that_drift_apart_are_noticed(tmp_path):
    assert pair(tmp_path, _drifting, tmp_path, small()) == [0, 0]


def _diverging(folder, run):
    for why in ("the loss is", "known from before"):
        with pytest.raises(Diverged, match=why):
            store_at(folder).make(run, progress=False)
    assert store_at(folder).retry() == [run.name]
    assert store_at(folder).diverged(run) == ""


def test_a_run_diverges_in_both(tmp_path):
    assert pair(tmp_path, _diverging, tmp_path, small(lr=1e18)) == [0, 0]


def _failing(folder, run):
    "The leader alone cannot write; then one process alone has an error of its own."
    real = training.save_checkpoint

    def full(*args):
        raise Unwritable("the disk is full")

    training.save_checkpoint = full if distributed.leads() else None
    with pytest.raises(Unwritable, match="full"):
        store_at(folder).make(run, progress=False)
    training.save_checkpoint = real

    def broken(t):
        raise MemoryError("of this process")

    _at_step(2, broken, ranks=(1,))
    with pytest.raises(
        SystemExit,
        match="process 1 of 2: MemoryError: of this process"
        if distributed.rank()
        else "process 0 of 2",
    ):
        store_at(folder).ensure([run])


def test_errors_reach_all_or_end_all(tmp_path):
    assert pair(tmp_path, _failing, tmp_path, small()) == [0, 0]


def _waiting(folder, run):
    with pytest.raises(store.Busy):
        store_at(folder).make(run, wait=False, progress=False)
    (folder / f"busy-{distributed.rank()}").touch()
    store_at(folder).make(run, progress=False)


def test_what_another_command_makes_is_waited_for(tmp_path):
    "Until that command, here a thread, lets go; nothing of the run is there till then."
    run, other, seen = small(), contextlib.ExitStack(), []
    other.enter_context(store.locked(tmp_path / "runs" / ".locks" / run.key))

    def let_go():
        while len(list(tmp_path.glob("busy-*"))) < 2:
            time.sleep(0.05)
        time.sleep(1)
        seen.extend(tmp_path.glob("runs/*/*/*"))
        other.close()

    threading.Thread(target=let_go, daemon=True).start()
    assert pair(tmp_path, _waiting, tmp_path, run) == [0, 0]
    assert seen == [] and store_at(tmp_path).record(run)


# What cannot be


def _renewed(folder, run):
    read = records.read

    def late(place):
        time.sleep(0.5 * distributed.rank())
        return read(place)

    records.read = late
    assert store_at(folder).renew([run]) == [run.name]
    assert store_at(folder).record(run) is None


def test_what_is_made_again_is_forgotten_by_both(tmp_path):
    "The second looked when the first had removed it, and waited for nobody any more."
    run = small(epochs=1)
    _make(tmp_path, run)
    assert pair(tmp_path, _renewed, tmp_path, run) == [0, 0]


def _refused():
    with pytest.raises(BadInput, match="compile"):
        training.start(RECIPES["plain"], images(), Length(), 0, Compute(compile=True))
    for layer in (nn.Dropout(), StochasticDepth(0.2, "row")):
        with pytest.raises(BadInput, match=type(layer).__name__):
            distributed.share(models.Staged([layer]))
    with pytest.raises(BadInput, match="BatchNorm1d"):
        distributed.share(models.Staged([nn.BatchNorm1d(3)]))
    rows = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    assert type(distributed.share(rows)) is nn.Sequential  # each process passes the whole batch
    rows.per_row = True
    with pytest.raises(BadInput, match="BatchNorm1d"):
        distributed.share(rows)


def test_what_cannot_be_shared_is_refused(tmp_path):
    assert pair(tmp_path, _refused) == [0, 0]


@pytest.mark.parametrize("name", ["plain", "spectral norm"])
def test_one_process_shares_nothing(monkeypatch, name):
    for word in ("all_reduce", "all_gather_into_tensor", "broadcast_object_list"):
        monkeypatch.setattr(dist, word, lambda *a, word=word, **k: pytest.fail(word))
    t = training.start(RECIPES[name], images(), Length(1, 31), 1, Compute(progress=False))
    training.train(t)
    kinds = {type(m) for m in t.nets.modules()}
    assert not kinds & {distributed.Shared, distributed.SharedNorm}


@pytest.mark.parametrize("command", [["reproduce"], ["where", "eq 7.12"], ["table", "5.1"]])
@pytest.mark.parametrize("rank", [0, 1])
def test_other_commands_are_refused_by_one_voice(monkeypatch, capsys, command, rank):
    monkeypatch.setenv("WORLD_SIZE", "2"), monkeypatch.setenv("RANK", str(rank))
    assert cli.main(command) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith(
        f"thesis-repro: {command[0]}: not with torchrun"
    ) == (rank == 0)
    assert said.err == "" or rank == 0


def test_each_process_takes_a_gpu_of_its_own_and_one_run_at_a_time(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2"), monkeypatch.setenv("RANK", "0")
    assert cli.main(["run", "5.1", "--device", "cuda:0"]) == 2
    assert "each process takes a GPU of its own" in capsys.readouterr().err
    for words in (["--jobs", "4"], ["--launcher", "ray"]):
        assert cli.main(["run", "5.1", "--device", "cpu", *words]) == 2
        assert "torchrun makes one run after the other" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with (
        pytest.raises(BadInput, match="2 processes on a machine with 1 GPU"),
        distributed.group("cuda"),
    ):
        pass


# The command


def specified(folder, run) -> str:
    "A file that describes a run."
    file = folder / "run.json"
    file.write_text(json.dumps(pieces.specification(run)))
    return str(file)


def _commanded(folder, port: int, *words):
    "What a command says goes to a file; its exit code is the process's."
    os.environ.update(MASTER_PORT=str(port), THESIS_REPRO_OUTPUTS=str(folder))
    with (folder / f"said-{os.environ['RANK']}").open("w") as f:
        with contextlib.redirect_stdout(f), contextlib.redirect_stderr(f):
            return cli.main(["run", *words, "--device", "cpu", "--jobs", "1"])


def commanded(folder, *words) -> tuple:
    "The exit codes of a command in two processes, and what each said."
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    codes = pair(folder, _commanded, folder, port, *words, joined=False)
    return codes, *((folder / f"said-{r}").read_text() for r in (0, 1))


def test_a_command_in_two_processes_speaks_once(tmp_path):
    codes, first, second = commanded(tmp_path, specified(tmp_path, small()))
    assert codes == [0, 0] and "seed 0  last" in first and second == ""
    codes, first, second = commanded(tmp_path, specified(tmp_path, small(lr=1e18)))
    assert codes == [1, 1] and "diverged: the loss is" in first and second == ""
    codes, first, second = commanded(tmp_path, str(tmp_path / "missing.json"))
    assert codes == [2, 2] and "missing.json" in first and second == ""
    codes, first, second = commanded(
        tmp_path, specified(tmp_path, small(epochs=500)), "--time-limit", "2s"
    )
    assert codes == [75, 75] and "stopped by its time limit" in first and second == ""


@pytest.mark.parametrize("name", [pytest.param("plain", marks=pytest.mark.long), "ACGAN"])
def test_torchrun_is_stopped_and_goes_on(tmp_path, name):
    "In float64, so that the weights can be compared with those of one process."
    run = small(name, epochs=20)
    run = dataclasses.replace(run, recipe=Doubled(run.recipe))
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words += ["-m", "thesis_repro", "run", specified(tmp_path, run), "--device", "cpu"]
    env = {**os.environ, "THESIS_REPRO_OUTPUTS": str(tmp_path), "OMP_NUM_THREADS": "1"}
    env |= {"PYTHONPATH": str(paths.root())}
    words += ["--jobs", "1", "--set", "checkpoint_seconds=0", "--pieces", methods.__file__]
    with (tmp_path / "said").open("w") as f:
        process = subprocess.Popen(words, env=env, stdout=f, stderr=f)
    while process.poll() is None and not list(tmp_path.glob("smoke/runs/*/*/*/checkpoint.ckpt")):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 1, "torchrun's own code, whatever those of its processes are"
    said = (tmp_path / "said").read_text()
    assert said.count("stopped by SIGTERM") == 1
    outputs = tmp_path / "smoke"
    at = checkpoint(outputs, dataclasses.replace(run, home="own/runs"))
    assert 0 < 3 * at["epoch"] + at["step"] < 60
    codes, first, _ = commanded(tmp_path, specified(tmp_path, run))
    assert codes == [0, 0] and "seed 0  " in first
    assert store_at(outputs).record(run).history[: at["epoch"]] == at["history"]
    _make(tmp_path / "alone", run)
    mine, alone = left(outputs, run)[2]["last"], left(tmp_path / "alone", run)[2]["last"]
    equal(mine, alone, rtol=1e-6, atol=1e-6)
