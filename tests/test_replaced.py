"""Training on replaced images: eq. 9 and 12 by hand, which images, whose output."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from thesis_repro import settings
from thesis_repro.draws import Draws
from thesis_repro.files import BadInput
from thesis_repro.images import pixels
from thesis_repro.made_to_order import ToOrder
from thesis_repro.mixup import Plain
from thesis_repro.recipes import SGD, Batch, Classify
from thesis_repro.replaced import (
    Beside,
    Halves,
    InTraining,
    Replaced,
    Taught,
    halves,
    order_of,
)
from thesis_repro.runs import Named, Run
from thesis_repro.store import Store
from thesis_repro.training import Length

DATA = Named("digits10", 60, 40, 20)
HOW = {"length": Length(1, 20), "home": "own/replaced"}
RECIPE = Classify("resnet18", Plain(), SGD(0.05), width=0.0625)
TEACHER = Run(DATA, RECIPE, label="teacher", **HOW)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    made = Store(settings.load("smoke", device="cpu", jobs=1), tmp_path_factory.mktemp("store"))
    made.ensure([TEACHER])
    return made


def rows(n=6, k=4):
    g = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(n, k, generator=g, dtype=torch.float64)
    q = torch.softmax(torch.randn(n, k, generator=g, dtype=torch.float64), 1)
    t = torch.eye(k, dtype=torch.float64)[torch.arange(n) % k]
    return logits, q, t


@pytest.mark.parametrize("p_first", [True, False])
def test_eq_9_for_made_images_by_sums(p_first):
    logits, q, t = rows()
    p, found = logits.softmax(1), halves(logits, q.log(), t, p_first)
    for i in range(len(p)):
        a, b = (p[i].tolist(), q[i].tolist())[:: 1 if p_first else -1]
        apart = sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))
        cross = -sum(y * math.log(x) for x, y in zip(p[i].tolist(), t[i].tolist(), strict=True))
        assert math.isclose(found[i], 0.5 * apart + 0.5 * cross, rel_tol=1e-9)


def test_eq_9_for_images_as_they_are_is_eq_12():
    logits, _, t = rows()
    logits.requires_grad_()
    found = halves(logits, t.log(), t)
    torch.testing.assert_close(found, F.cross_entropy(logits, t, reduction="none"))
    (mine,) = torch.autograd.grad(found.sum(), logits)
    torch.testing.assert_close(mine, (logits.softmax(1) - t).detach())


@pytest.mark.parametrize("p_first", [True, False])
def test_gradients_of_a_mixed_batch(p_first):
    logits, q, t = rows()
    log_q = torch.cat([q[:3].log(), t[3:].log()])
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: halves(z, log_q, t, p_first), logits)
    assert halves(logits, log_q, t, p_first).isfinite().all()


def test_the_infinite_order_is_refused_with_its_reason():
    with pytest.raises(BadInput, match=r"D_KL\(p, t\) is infinite for every one-hot label") as e:
        Halves(real="p")
    assert "\n" not in str(e.value)
    logits, q, t = rows()
    assert Halves(made="q") != Halves()
    labels = torch.stack([q.log(), t], 1)
    loss = Halves(made="q")(torch.nn.Identity(), logits, labels, Draws(0))
    torch.testing.assert_close(loss, halves(logits, q.log(), t, False).mean())


def test_a_larger_share_replaces_the_same_images_and_more(store):
    real, before = DATA.images(), None
    for share in (0.1, 0.25, 0.5):
        images = store.images(Replaced(DATA, TEACHER, share, ToOrder(2, lr=50.0)))
        soft = images.y_train[:, 0].isfinite().all(1)
        assert soft.sum() == round(60 * share) and set(order_of(60)[: soft.sum()].tolist()) == set(
            soft.nonzero()[:, 0].tolist()
        )
        assert torch.equal(images.x_train[~soft], real.x_train[~soft])
        assert before is None or not (before & ~soft).any()
        assert torch.equal(images.y_train[:, 1].argmax(1), real.y_train)
        assert torch.equal(images.x_test, real.x_test) and images.x_train.dtype == torch.uint8
        before = soft
    assert (images.x_train != real.x_train)[soft].flatten(1).any(1).float().mean() > 0.5


def test_q_is_what_the_teacher_says_of_the_image_as_it_is_kept(store):
    images = store.images(Replaced(DATA, TEACHER, 0.2, ToOrder(2, lr=50.0)))
    soft = images.y_train[:, 0].isfinite().all(1)
    with torch.no_grad():
        said = store.weights(TEACHER)(pixels(images.x_train[soft])).log_softmax(1)
    torch.testing.assert_close(images.y_train[soft, 0], said, rtol=1e-4, atol=1e-5)


def test_labels_alone_leave_the_pictures(store):
    data = Replaced(DATA, TEACHER, 0.2, ToOrder(2, lr=50.0))
    alone, both = store.images(replace(data, pictures=False)), store.images(data)
    assert torch.equal(alone.x_train, DATA.images().x_train)
    assert torch.equal(alone.y_train, both.y_train)


def test_made_images_are_kept_and_a_damaged_file_is_made_again(store, monkeypatch):
    from thesis_repro import replaced

    data = Replaced(DATA, TEACHER, 0.1, ToOrder(1))
    first = store.images(data).x_train.clone()
    [file] = sorted((store.folder / "made").glob("*.npz"), key=lambda f: f.stat().st_mtime)[-1:]
    replaced._replaced.cache_clear()
    monkeypatch.setattr(ToOrder, "__call__", lambda *_: pytest.fail("made a second time"))
    assert torch.equal(store.images(data).x_train, first)
    monkeypatch.undo()
    file.write_bytes(b"no archive")
    replaced._replaced.cache_clear()
    with pytest.warns(UserWarning, match="damaged: it is made again"):
        assert torch.equal(store.images(data).x_train, first)
    assert np.load(file)["x"].shape[0] == 6


def test_the_teacher_is_needed_and_counts(store):
    data = Replaced(DATA, TEACHER)
    run = Run(data, replace(RECIPE, method=Halves()), label="student", **HOW)
    assert run.needs() == (TEACHER,)
    other = replace(data, teacher=replace(TEACHER, seed=1))
    assert replace(run, data=other).key != run.key
    small = data.scaled(settings.load("smoke"))
    assert small.teacher.recipe.width == 0.125 and small.share == data.share
    with pytest.raises(BadInput, match="must be such as Named"):
        Replaced(DATA, None)


def test_in_training_asks_the_teacher_and_leaves_it_alone(store):
    images = store.images(Taught(DATA, TEACHER))
    method = InTraining(0.5, ToOrder(2, lr=50.0))
    recipe = replace(RECIPE, method=method)
    nets = recipe.networks(images, seed=3).train()
    assert not list(nets["teacher"].parameters()) and not nets["teacher"].state_dict()
    teacher = images.teacher
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    x, y = pixels(images.x_train[:10]), images.y_train[:10]
    seen = []
    nets["model"].register_forward_pre_hook(lambda m, args: seen.append(args[0].clone()))
    loss = method.joint_loss(nets, Batch(x, y, Draws(0)))
    loss.backward()
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())
    assert torch.equal(seen[-1][5:], x[5:]) and not torch.equal(seen[-1][:5], x[:5])
    with torch.no_grad():
        said = teacher(seen[-1][:5]).log_softmax(1)
        t = F.one_hot(y, 10).float()
        nets["model"].eval()
    log_q = torch.cat([said, t[5:].log()])
    assert torch.isfinite(loss) and torch.isfinite(halves(nets["model"](seen[-1]), log_q, t)).all()


def test_without_taught_data_the_network_asks_itself():
    images = DATA.images()
    nets = replace(RECIPE, method=InTraining()).networks(images, seed=0)
    assert isinstance(nets["teacher"], Beside) and nets["teacher"].held[0] is nets["model"]


def test_a_run_on_taught_data_is_made_and_its_weights_are_read(store):
    recipe = replace(RECIPE, method=InTraining(0.3, ToOrder(1)))
    run = Run(Taught(DATA, TEACHER), recipe, label="taught", **HOW)
    [record] = store.ensure([run])
    assert 0 <= record.metrics["last"]["accuracy"] <= 100
    assert store.weights(run)(pixels(DATA.images().x_test[:2])).shape == (2, 10)
