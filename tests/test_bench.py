"The benches: what they time is a step of training, and their figures are those of paired rounds."

import contextlib

import numpy as np
import pandas as pd
import pytest
import torch

from thesis_repro import bench, models, settings
from thesis_repro.adversarial import Adversarial
from thesis_repro.attacks import PGD
from thesis_repro.draws import Draws
from thesis_repro.mixup import Plain

# The names of all figures that outputs/reference/speed-cpu has, in its order.
ADVERSARIAL = [
    *("PGD", "TRADES", "M2AT", "M2AT (a.s.)", "Ours + MAIL", "PGD, bf16", "PGD, straightforward"),
]
TIMED = [*ADVERSARIAL, bench.KEEPING, *(f"{n}, folded in every pass" for n in ("PGD", "PGD, bf16"))]


@pytest.mark.parametrize(
    "value, bars, ok",
    [(1.8, {"at_most": 1.8}, True), (1.81, {"at_most": 1.8}, False), (2, {"at_least": 3}, False)],
)
def test_a_figure_tells_whether_its_bar_is_met(value, bars, ok):
    found = bench.figure("search", value, "times", **bars)
    assert found["ok"] is ok and found["bar"]
    assert bench.figure("search", np.float64(value), "times", **bars)["ok"] is ok
    assert bench.figure("search", value, "times")["ok"] is None


class Seen(Plain):
    "A method that notes what it is given."

    def __call__(self, model, x, y, draws):
        SEEN.append((model, x, y, draws.progress))
        return super().__call__(model, x, y, draws)


SEEN = []


def test_a_step_learns_at_the_end_of_a_run_where_no_warm_up_is_left():
    SEEN.clear()
    step = bench.training_step(Seen(), 8, width=0.0625, size=16)
    step()
    model, x, y, progress = SEEN[0]
    before = [p.detach().clone() for p in model.parameters()]
    step()
    assert progress == SEEN[1][3] == 1.0 and x.shape == (8, 3, 16, 16) and 0 <= x.min()
    assert x.max() <= 1 and y.tolist() == list(range(8))
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert all(moved)


def test_the_straightforward_step_finds_the_same_images():
    "Of two classes a linear network's gradient has one sign in each pixel: one corner is left."
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2)).train()
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[1.0, -1.0] * 6, [-1.0, 1.0] * 6]))
    x, y = torch.linspace(0, 1, 48).view(4, 3, 2, 2), torch.tensor([0, 1, 0, 1])
    plain = bench.Straightforward()(net, x, y, Draws(0))
    ours = Adversarial(PGD(8 / 255, 2 / 255, 10))(net, x, y, Draws(0))
    assert net.training and all(p.grad is None for p in net.parameters())
    assert torch.allclose(plain, ours, atol=1e-5) and plain > Plain("ce")(net, x, y, Draws(0)) + 0.1
    torch.manual_seed(0)
    weaker = bench.Straightforward(steps=1)(net, x, y, Draws(0))
    assert weaker < plain - 0.01


@pytest.mark.parametrize("keep", [False, True])
def test_a_straightforward_step_is_made_in_a_process_of_its_own(keep, monkeypatch):
    said, own = [], bench.stopping.inherited
    monkeypatch.setattr(bench.stopping, "inherited", lambda **how: said.append(how) or own(**how))
    with bench.straightforward("cpu", 2, keep) as step:
        assert step() is True
    assert said == [{"THESIS_REPRO_KEEP_MEMORY": "1" if keep else "0"}]


def test_a_step_folded_in_every_pass_does_the_same_by_more_operations():
    "Six more for each of the 19 folded convolutions in nine of ten passes."
    step = bench.training_step(Adversarial(), 4, 0.0625, 16)
    step()  # the first one makes what the optimiser remembers
    few, many = bench.operations(step), bench.operations(bench.in_every_pass(step))
    assert many - few == 6 * 19 * 9
    assert few == bench.operations(step) and models._FOLDED.get() is None


@pytest.fixture
def tiny():
    "A preset whose timings are short."
    return settings.load("smoke", timing_repeats=2, timing_batch=2)


def by_name(found) -> dict:
    return {f["name"]: f for f in found}


def test_the_methods_are_compared_in_pairs(tiny, monkeypatch):
    seconds = pd.DataFrame({name: [1.0, 2.0, 10.0] for name in TIMED})
    seconds["TRADES"] = [1.2, 2.4, 30.0]
    seconds["PGD, bf16"] = [0.5, 1.0, 5.0]
    seconds[bench.PLAIN] = [4.0, 8.0, 10.0]
    seconds[bench.KEEPING] = [2.0, 4.0, 10.0]
    seconds["PGD, folded in every pass"] = [1.1, 2.2, 10.0]
    asked = {}
    real = bench.training_step
    monkeypatch.setattr(
        bench, "training_step", lambda *a, **k: asked.setdefault(len(asked), (a, k))
    )
    monkeypatch.setattr(bench, "paired_seconds", lambda steps, *a, **k: seconds[list(steps)])
    monkeypatch.setattr(bench, "_counted", list)
    found = by_name(bench.adversarial(tiny))
    assert len(asked) == 6 and real is not bench.training_step
    assert [k["compute"].bf16 for _, k in asked.values()] == [False] * 5 + [True]
    assert found["TRADES in PGD steps"]["value"] == pytest.approx(1.2)
    assert found["TRADES in PGD steps"]["ok"] and found["M2AT in PGD steps"]["ok"]
    straight = "PGD training, {}, against the straightforward"
    same = f"{straight} at the same memory management"
    for how, times in (("float32", 2), ("bf16", 4)):  # the bar is on equal terms
        both = [found[said.format(how)] for said in (straight, same)]
        assert [f["value"] for f in both] == pytest.approx([2 * times, times])
        assert both[0]["ok"] is None and both[1]["ok"] is True
    folded = "PGD training, {}, folded once against in every pass"
    fp32, bf16 = (found[folded.format(how)] for how in ("float32", "bf16"))
    assert (fp32["value"], fp32["bar"], bf16["ok"]) == (pytest.approx(1.1), "at least 1.1", None)
    assert found["seconds a step: TRADES"]["value"] == 2.4
    assert len(found) == len(TIMED) + 2 * 3 + 4


@pytest.mark.parametrize(
    "flags, device, has",
    [
        ("fpu avx512f avx512_bf16", "cpu", True),
        ("Features : asimd bf16", "cpu", True),
        ("fpu avx2 f16c", "cpu", False),
        ("fpu avx2", "cuda:0", True),
    ],
)
def test_bf16_has_a_bar_where_the_device_has_bf16(monkeypatch, flags, device, has):
    "A processor without it emulates it, slower than float32."
    monkeypatch.setattr(bench.Path, "read_text", lambda self, code: flags)
    assert bench.has_bf16(device) is has
    seconds = pd.DataFrame({n: [1.0] for n in (*TIMED, bench.KEEPING)})
    found = by_name(bench._against(seconds, device))
    same = found["PGD training, bf16, against the straightforward at the same memory management"]
    assert same["ok"] is (False if has else None)
    assert found["PGD training, float32, folded once against in every pass"]["ok"] is False


def test_all_steps_are_made_on_one_gpu(tiny, monkeypatch):
    "The straightforward ones, in processes of their own, took the next GPU that was free."
    seen, seconds = [], pd.DataFrame({n: [1.0] for n in (*TIMED, bench.KEEPING)})

    def noted(*args, compute=None, device=None):
        seen.append(compute.device if compute else device)
        return seconds

    monkeypatch.setattr(bench.devices, "use", lambda device: torch.device("cuda", 1))
    monkeypatch.setattr(bench, "training_step", noted)
    monkeypatch.setattr(bench, "paired_seconds", noted)
    straight = contextlib.nullcontext
    monkeypatch.setattr(bench, "straightforward", lambda d, *how: seen.append(d) or straight())
    monkeypatch.setattr(bench, "_counted", list)
    bench.adversarial(tiny)
    assert set(seen) == {"cuda:1"} and len(seen) == 9


def test_what_needs_no_clock_is_counted():
    found = by_name(bench._counted())
    assert found["PGD training: operations in every pass against once"]["ok"]
    products = found["PGD training: products of the straightforward against ours"]["value"]
    assert products == pytest.approx(33 / 23)


def test_every_method_makes_a_step(monkeypatch):
    for method in bench.compared_methods().values():
        bench.training_step(method, 10, width=0.0625, size=16)()


def test_an_evaluation_is_compared_at_equal_accuracy(tiny, monkeypatch):
    turns = iter([(1.0, 2.0, 50.0, 50.0), (2.0, 3.0, 50.0, 51.0)])
    names = ("ours", "pyautoattack", "ours accuracy", "pyautoattack accuracy")
    order = []

    def measured(subject, reversed):
        order.append(reversed)
        return dict(zip(names, next(turns), strict=True))

    monkeypatch.setattr(bench.speed, "speed_subject", lambda *a, **k: None)
    monkeypatch.setattr(bench.speed, "attack_speed", measured)
    found = by_name(bench.evaluation(tiny))
    assert order == [False, True]
    assert found["APGD-CE against pyautoattack"]["value"] == pytest.approx(1.75)
    assert found["APGD-CE: robust accuracy apart from pyautoattack"]["ok"] is False
    assert found["APGD-CE: seconds an evaluation"]["value"] == pytest.approx(1.5)


def test_the_data_path_is_compared_in_turns(tiny, monkeypatch):
    ours, theirs = iter([100.0, 300.0]), iter([10.0, 10.0])
    monkeypatch.setattr(bench, "data_path_speed", lambda images: next(ours))
    monkeypatch.setattr(bench, "dataloader_speed", lambda images: next(theirs))
    found = by_name(bench.data_path(tiny))
    assert found["data path"]["value"] == 200
    assert found["data path against the DataLoader"]["value"] == 20


def test_short_runs_are_made_and_the_ways_take_turns(tiny, monkeypatch):
    bench._sweep(settings.load("smoke", device="cpu", precision="fp32", jobs=1, threads=1), 2)
    order, cost = [], {1: 10.0, 2: 5.0}

    def sweeps(preset):
        order.append((preset.jobs, preset.launcher))
        seconds = cost[preset.jobs] + (preset.launcher == "ray")
        return {"start": 1.0, "sweep": seconds}

    monkeypatch.setattr(bench, "_sweeps", sweeps)
    found = by_name(bench.launching(tiny))
    one, two, ray = (1, "local"), (2, "local"), (2, "ray")
    assert order == [one, two, ray, two, ray, one]
    assert found["two workers against one process"]["value"] == pytest.approx(2)
    assert found["Ray against two workers"]["value"] == pytest.approx(1.2)
    assert found[f"{bench.SHORT} short runs: Ray"]["value"] == 6
    assert found["start, with two runs: one process"]["value"] == 1


def test_the_reference_has_every_figure():
    from thesis_repro import paths

    kept = bench.kept(paths.root() / "outputs" / "reference" / "speed-cpu" / "bench.json")
    names = {f["name"] for f in kept["figures"]}
    assert {f"{name} in PGD steps" for name in bench.TIMES_PGD} <= names
    assert {f"seconds a step: {name}" for name in ADVERSARIAL} <= names
    assert {f"{bench.SHORT} short runs: {name}" for name in bench.WAYS} <= names
    assert set(kept["made"]) == set(bench.BENCHES)
    # its README tells of these
    missed = {
        "PGD training, float32, against the straightforward at the same memory management",
        "PGD training, float32, folded once against in every pass",
        "DCGAN, bf16 against the straightforward in float32",
    }
    assert {f["name"] for f in kept["figures"] if f["ok"] is False} == missed


def test_a_bench_whose_reference_is_not_installed_is_left_out(tiny, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(bench, "data_path", lambda preset: [bench.figure("data path", 1, "s")])
    found = bench.measured(tiny, ["evaluation", "data"], tmp_path / "bench.json")
    assert [f["bench"] for f in found] == ["data"]
    assert "bench evaluation: left out: pyautoattack is not installed" in capsys.readouterr().err
    monkeypatch.setattr(bench, "_sweeps", lambda preset: {"start": 1.0, "sweep": 2.0 / preset.jobs})
    names = by_name(bench.launching(tiny))
    assert "two workers against one process" in names and not any("Ray" in n for n in names)


def test_the_data_path_is_timed_on_the_device(tiny, monkeypatch):
    seen = []
    monkeypatch.setattr(settings, "device", lambda preset: torch.device("meta"))
    monkeypatch.setattr(bench, "data_path_speed", lambda d: seen.append(d.x_train.device) or 1.0)
    monkeypatch.setattr(bench, "dataloader_speed", lambda images: 1.0)
    bench.data_path(tiny)
    assert {d.type for d in seen} == {"meta"}


@pytest.mark.parametrize("preset, epochs", [("thesis", 3), ("fast", 3), ("smoke", 3)])
def test_the_bench_of_aip_trains_for_three_epochs_at_every_preset(preset, epochs, monkeypatch):
    from thesis_repro import aip

    class Enough(Exception):
        pass

    def made(preset, row):
        assert (preset.seeds, preset.epochs, row) == (1, epochs, "AIP")
        raise Enough

    monkeypatch.setattr(aip, "timings", lambda preset, fresh: {"value": {"mixup": [1.0]}})
    monkeypatch.setattr(aip, "row_of", made)
    with pytest.raises(Enough):
        aip.bench(settings.load(preset, device="cpu"))
