"""What a GPU does differently, seen on a machine without one: how it rounds, and who says so."""

from dataclasses import dataclass, replace

import pytest
import torch
from methods import small, store_at
from samples import refused

from thesis_repro import devices, runs, settings
from thesis_repro.attacks import PGD
from thesis_repro.measures import Robustness, measure
from thesis_repro.mixup import Plain
from thesis_repro.pieces import piece
from thesis_repro.robustness import robust_accuracy

SEEN = []


def now() -> tuple:
    "How a GPU would multiply at this moment: convolutions, matrices."
    return torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision


IEEE, TF32 = ("ieee", "ieee"), ("tf32", "tf32")


@piece
class Watched(Plain):
    "A method that notes how a GPU would multiply in its step."

    def __call__(self, model, x, y, draws):
        SEEN.append(now())
        return super().__call__(model, x, y, draws)


@dataclass(frozen=True)
class WatchedAttack:
    "An attack that notes how a GPU would multiply while it searches."

    def __call__(self, model, x, y, draws):
        SEEN.append(now())
        return x


class Watching(torch.nn.Linear):
    "A network that notes how a GPU would multiply in its passes."

    def forward(self, x):
        SEEN.append(now())
        return super().forward(x.flatten(1))


@pytest.mark.parametrize("name, how", [("fp32", IEEE), ("tf32", TF32), ("bf16", TF32)])
def test_one_place_says_how_a_gpu_multiplies(name, how):
    before = now()
    with pytest.raises(KeyError), devices.arithmetic(name):
        assert now() == how and devices.coarse("cuda") == (how == TF32)
        assert not devices.coarse("cpu")
        with devices.arithmetic("fp32"):
            assert now() == IEEE
        assert now() == how
        raise KeyError
    assert now() == before


def test_an_unknown_precision_is_refused():
    refused(lambda: devices.arithmetic("fp16").__enter__(), "precision = fp16", "fp32, tf32, bf16")


@pytest.mark.parametrize("name, how", [("fp32", IEEE), ("tf32", TF32), ("bf16", TF32)])
def test_a_run_is_trained_in_its_precision_and_judged_in_float32(tmp_path, monkeypatch, name, how):
    SEEN.clear()
    judged = []
    run = replace(small(Watched(), epochs=1), precision=name)
    recipe = type(run.recipe)
    for what in ("judge", "results"):
        plain = getattr(recipe, what)

        def noting(self, nets, images, plain=plain):
            judged.append(now())
            return plain(self, nets, images)

        monkeypatch.setattr(recipe, what, noting)
    record = store_at(tmp_path).make(run, progress=False)
    assert set(SEEN) == {how} and len(SEEN) == 3
    assert set(judged) == {IEEE} and len(judged) == 3
    assert record.cost["precision"] == name
    assert record.run.get("precision", "fp32") == name


def test_a_search_may_be_coarse_and_its_verdict_is_not():
    net, x = Watching(12, 3), torch.randint(0, 256, (4, 3, 2, 2), dtype=torch.uint8)
    SEEN.clear()
    robust_accuracy(net, x, torch.zeros(4).long(), WatchedAttack(), progress=False)
    assert SEEN[0] == IEEE and set(SEEN[1:]) <= {IEEE, TF32}
    SEEN.clear()
    y = net(x.float() / 255).argmax(1)
    SEEN.clear()
    robust_accuracy(net, x, y, WatchedAttack(), progress=False)
    assert SEEN == [IEEE, TF32, IEEE]


def test_a_sample_that_falls_in_tf32_falls_in_float32_or_not_at_all(monkeypatch):
    "Each hit of a coarse search is looked at again."
    monkeypatch.setattr("thesis_repro.attacks.coarse", lambda kind: True)
    net, x = Watching(12, 2), torch.full((4, 3, 2, 2), 127, dtype=torch.uint8)
    y = net(x.float() / 255).argmax(1)
    SEEN.clear()
    found = robust_accuracy(net, x, y, PGD(1.0, 1.0, 3, start="none"), progress=False)
    assert found["accuracy"] == 0
    assert SEEN[:4] == [IEEE, TF32, TF32, IEEE]  # as they are, at the start, a step on, confirmed


def test_a_measurement_is_made_in_float32(tmp_path):
    store, run = store_at(tmp_path), small(epochs=1)
    store.make(run, progress=False)
    with devices.arithmetic("tf32"):
        assert measure(store, "seen", {"run": run}, lambda: list(now())) == list(IEEE)
        assert Robustness(None).make(store, run)["n"] == 50


@pytest.mark.parametrize("preset", ["thesis", "fast", "smoke"])
def test_no_key_depends_on_whether_there_is_a_gpu(monkeypatch, preset):
    keys = set()
    for there in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        keys.add(runs.scaled(settings.load(preset), small()).key)
    assert len(keys) == 1


def test_the_presets_say_in_what_they_train():
    found = {name: settings.load(name).precision for name in ("thesis", "fast", "smoke")}
    assert found == {"thesis": "fp32", "fast": "bf16", "smoke": "fp32"}
